"""Archives of radar frames: lazy arrays that read whole events, and what becomes of frames that are missing or damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wxlab.catalog_schema import as_time
from wxlab.errors import WxlabError, unknown
from wxlab.readers.remote import brief
from wxlab.readers.source import Request

MISSING = ("error", "mask")
LONGEST_GAP = 2  # frames in a row that may be missing inside an event (the rule of the HKO-7 benchmark)


class UnreadableFrame(Exception):
    """Why a frame cannot be read: the file and what is wrong with it."""


def missing_option(request: Request) -> str:
    """What the caller wants of frames that are missing or damaged: ``error`` (the default) or ``mask``."""
    choice = request.entry.options.get("missing", "error")
    if choice not in MISSING:
        raise unknown(f"option missing of source {request.name!r}", choice, MISSING)
    return str(choice)


def root_of(request: Request) -> Path:
    """The one folder (or file) of an archive.  Raises WxlabError where it is not there."""
    uris = request.uris
    if len(uris) != 1:
        raise request.error(f"uri names {len(uris)} places; give the one folder of the archive")
    root = Path(uris[0])
    if not root.exists():
        raise request.error(f"there is nothing at {root}; check the uri of the entry or pass uri=")
    return root


def only_variable(request: Request) -> str:
    """The one variable that an archive of frames has."""
    if len(request.entry.variables) != 1:
        raise request.error(f"it has one variable, and the entry names {', '.join(request.entry.variables)}; keep one")
    return next(iter(request.entry.variables))


def attempt(path: Path, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """What ``read`` gives; whatever goes wrong becomes one UnreadableFrame that names the file."""
    if not path.is_file():
        raise UnreadableFrame(f"{path} is missing")
    try:
        return read()
    except UnreadableFrame:
        raise
    except Exception as error:
        raise UnreadableFrame(f"{path} is damaged ({brief(error)})") from None


class FrameArray:
    """Frames [time, y, x], float32, of events of equal length, read when asked for.

    read: (number of the event, first frame, last frame + 1) -> [n, y, x] or UnreadableFrame.  times: true times [T], for messages.
    Unreadable frames are refused in one sentence, or become NaN with ``missing='mask'``.
    """

    ndim, dtype = 3, np.dtype(np.float32)

    def __init__(
        self, request: Request, times: NDArray[Any], size: tuple[int, int], length: int, read: Callable[[int, int, int], NDArray[Any]]
    ) -> None:
        self.name, self.times, self.length, self.read = request.name, times, length, read
        self.shape = (len(times), *size)
        self.missing = missing_option(request)
        source = next(iter(request.entry.variables.values()))
        self.scale, self.offset = source.scale, source.offset

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        first, *rest = key if isinstance(key, tuple) else (key,)
        wanted = np.arange(self.shape[0])[first]
        positions = np.atleast_1d(wanted)
        values = np.empty((len(positions), *self.shape[1:]), np.float32)
        for event in np.unique(positions // self.length).tolist():
            mine = positions // self.length == event
            frames = positions[mine] - event * self.length
            low = int(frames.min())
            values[mine] = self._event(event, low, int(frames.max()) + 1)[frames - low]
        if self.scale != 1 or self.offset != 0:
            values = values * np.float32(self.scale) + np.float32(self.offset)
        chosen: NDArray[np.float32] = values[(slice(None), *rest)]
        return chosen[0] if np.ndim(wanted) == 0 else chosen

    def _event(self, event: int, first: int, last: int) -> NDArray[Any]:
        try:
            values = self.read(event, first, last)
            if values.shape[1:] != self.shape[1:]:
                size, wanted = ("x".join(map(str, shape)) for shape in (values.shape[1:], self.shape[1:]))
                raise UnreadableFrame(f"it has {size} points and the others have {wanted}")
            return values
        except UnreadableFrame as error:
            if self.missing == "mask":
                return np.full((last - first, *self.shape[1:]), np.nan, np.float32)
            when = str(self.times[event * self.length + first])[:16]
            raise WxlabError(
                f"source {self.name!r}: the frame of {when} cannot be read: {error}; mend it, or pass options={{'missing': 'mask'}} "
                "to have such frames as missing values"
            ) from None


def assemble(
    request: Request, array: FrameArray, coordinates: Mapping[str, Any], spacing: float, *, chunk: int, north_first: bool = False
) -> xr.Dataset:
    """A lazy dataset of one variable.

    coordinates: along time, ``time`` and those of ``wxlab.events``.  spacing: metres between points.  chunk: frames read together.
    north_first: rows from north to south.  Times are cut (by ``event_time``) where the entry or the caller says so.
    """
    name = only_variable(request)
    known = request.vocabulary[name]
    rows, columns = array.shape[1:]
    y = np.arange(rows) * spacing
    lazy = da.from_array(array, chunks=(chunk, -1, -1), asarray=False, lock=False, meta=np.empty((0, 0, 0), np.float32))
    dataset = xr.Dataset(
        {name: (("time", "y", "x"), lazy, {"standard_name": known.standard_name, "units": known.units})},
        {
            **{key: ("time", values) for key, values in coordinates.items()},
            "y": ("y", y[::-1] if north_first else y, {"units": "m"}),
            "x": ("x", np.arange(columns) * spacing, {"units": "m"}),
        },
    )
    limits = request.entry.time
    if limits is None or not request.entry.options.get("cut_time"):
        return dataset
    true = dataset["event_time" if "event_time" in dataset.coords else "time"].values
    keep = np.ones(len(true), bool)
    if limits.start is not None:
        keep &= true >= as_time(limits.start).to_datetime64()
    if limits.end is not None:
        keep &= true <= as_time(limits.end, end=True).to_datetime64()
    if not keep.any():
        raise request.error(f"no time lies in {limits.start} to {limits.end}; the data run from {true.min()} to {true.max()}")
    return dataset.isel(time=np.flatnonzero(keep))


def without_gaps(times: NDArray[np.int64], step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every time that events should have, and the event of each.

    times: seconds of the frames that are there, rising [n].  step: seconds between frames.
    Up to ``LONGEST_GAP`` frames in a row may be missing inside an event; a longer gap, or one that is no multiple of ``step``, ends it.
    Returns seconds [T] and the number of the event [T].
    """
    apart = np.diff(times)
    inside = (apart % step == 0) & (apart <= (LONGEST_GAP + 1) * step)
    event = np.concatenate([[0], np.cumsum(~inside)])
    starts, ends = times[np.flatnonzero(np.diff(event, prepend=-1))], times[np.flatnonzero(np.diff(event, append=event[-1] + 1))]
    runs = [np.arange(start, end + 1, step) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.concatenate(runs), np.repeat(np.arange(len(runs)), [len(run) for run in runs])


def gap_text(absent: NDArray[np.int64]) -> str:
    """The sentence about frames that are not there; absent: their seconds."""
    first = str(np.datetime64(int(absent[0]), "s"))[:16]
    number = "a frame is" if len(absent) == 1 else f"{len(absent)} frames are"
    return f"{number} missing, the first at {first}; pass options={{'missing': 'mask'}} to have such frames as missing values"
