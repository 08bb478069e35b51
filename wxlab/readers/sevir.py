"""SEVIR: vertically integrated liquid of storm events over the United States (Veillette et al. 2020).

    <root>/CATALOG.csv                       a row per event and kind of image
    <root>/data/vil/<year>/*.h5              dataset ``vil`` [event, y, x, frame], uint8
Events as STLDM and others choose them: kind ``vil``, ``pct_missing`` 0, identifiers that occur once, in the order of their identifiers;
test after 1 June 2019, 00:00.  The authors have no validation; here the events from 2019 to that day are kept from training.
Of the 49 frames (every 5 minutes, from two hours before ``time_utc`` on) the first 25 are used, 13 to see and 12 to predict; the option
``frames: 49`` gives all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from wxlab.events import axis_of_events
from wxlab.readers.frames import FrameArray, UnreadableFrame, assemble, attempt, missing_option, only_variable, root_of
from wxlab.readers.remote import brief
from wxlab.readers.source import Request

FRAMES, USED, STEP, BEFORE = 49, 25, 300, 7200
TEST_AFTER, VALIDATION_AFTER = pd.Timestamp("2019-06-01"), pd.Timestamp("2019-01-01")
PIXEL = 1000.0  # m
_COLUMNS = ["id", "file_name", "file_index", "img_type", "time_utc", "pct_missing"]


def open_whole(request: Request) -> xr.Dataset:
    """All chosen events one after the other, each a segment, with ``event_time`` and (unless the entry has its own) ``split``."""
    root = root_of(request)
    used = request.entry.options.get("frames", USED)
    if used not in (USED, FRAMES):
        raise request.error(f"option frames is {used!r}; give {USED} (13 to see, 12 to predict, as the authors do) or {FRAMES} (all)")
    events = choose_events(_catalog(request, root), request)
    paths = [root / "data" / str(name) for name in events["file_name"]]
    variable = request.entry.variables[only_variable(request)].name
    if missing_option(request) == "error":
        for path in dict.fromkeys(paths):
            if not path.is_file():
                raise request.error(f"{path}, which CATALOG.csv names, is missing; fetch it, or pass options={{'missing': 'mask'}}")
    starts = events["time_utc"].to_numpy().astype("datetime64[s]").astype(np.int64) - BEFORE
    frames = np.arange(used) * STEP
    moves = axis_of_events(starts, starts + frames[-1], STEP)
    true = _stamps((starts[:, None] + frames).ravel())
    reader = Events(tuple(paths), tuple(int(index) for index in events["file_index"]), variable)
    coordinates: dict[str, Any] = {
        "time": _stamps((starts[:, None] + moves[:, None] + frames).ravel()),
        "event_time": true,
        "segment": np.repeat(np.arange(len(events)), used),
        "event_id": np.repeat(events["id"].to_numpy(dtype=object), used),
    }
    if request.entry.splits is None:
        coordinates["split"] = np.repeat(split_of(events["time_utc"]), used)
    array = FrameArray(request, true, reader.size(request), used, reader.read)
    return assemble(request, array, coordinates, PIXEL, chunk=used)


def _stamps(seconds: NDArray[np.int64]) -> NDArray[Any]:
    return seconds.astype("datetime64[s]").astype("datetime64[ns]")


def _catalog(request: Request, root: Path) -> pd.DataFrame:
    """The columns of CATALOG.csv as text; the index is the line of the file, of which the first has the names."""
    path = root / "CATALOG.csv"
    if not path.is_file():
        raise request.error(f"{root} holds no CATALOG.csv; give the folder of SEVIR, which holds CATALOG.csv and data/vil")
    try:
        table = pd.read_csv(path, usecols=_COLUMNS, dtype=str, skip_blank_lines=False)
    except Exception as error:
        raise request.error(f"{path} cannot be read ({brief(error)}); it needs the columns {', '.join(_COLUMNS)}") from None
    return table.set_axis(pd.RangeIndex(2, len(table) + 2))


def choose_events(table: pd.DataFrame, request: Request) -> pd.DataFrame:
    """The rows of CATALOG.csv that are used, in the order of their identifiers; whoever occurs twice among them is left out.

    table: text.  Raises WxlabError for what cannot be read of them, naming line and column.
    """
    kept = table[table["img_type"] == "vil"].copy()
    kept["pct_missing"] = _read(kept["pct_missing"], _number, "a number", request)
    kept["time_utc"] = _read(kept["time_utc"], _time, "a time such as 2018-06-14 18:02:00", request)
    kept = kept[(kept["pct_missing"] == 0) & kept["time_utc"].notna()].copy()
    kept["file_index"] = _read(kept["file_index"], _index, "a whole number from 0 on", request)
    for name in ("id", "file_name", "file_index"):
        if kept[name].isna().any():
            raise request.error(f"line {kept.index[kept[name].isna()][0]} of CATALOG.csv has no {name}; mend the line, or take it out")
    kept = kept[~kept["id"].duplicated(keep=False)]
    if kept.empty:
        raise request.error("CATALOG.csv names no event of kind 'vil' with pct_missing 0 that occurs once; check the file")
    return kept.sort_values("id", kind="stable").reset_index(drop=True)


def _read(column: pd.Series, parse: Callable[[pd.Series], pd.Series], what: str, request: Request) -> pd.Series:
    """A column read by ``parse``, which gives a missing value for what it cannot read; what is empty is missing."""
    values = parse(column)
    wrong = column[column.notna() & values.isna()]
    if len(wrong):
        raise request.error(f"line {wrong.index[0]} of CATALOG.csv has {column.name} {wrong.iloc[0]!r}, which is not {what}")
    return values


def _number(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce")


def _index(column: pd.Series) -> pd.Series:
    values = _number(column)
    return values.where((values >= 0) & (values % 1 == 0))


def _time(column: pd.Series) -> pd.Series:
    """UTC without a time zone; a zone that is written is taken off."""
    return pd.to_datetime(column, utc=True, format="ISO8601", errors="coerce").dt.tz_localize(None)


def split_of(times: pd.Series) -> NDArray[Any]:
    """train, validation or test by ``time_utc``."""
    return np.where(times > TEST_AFTER, "test", np.where(times > VALIDATION_AFTER, "validation", "train")).astype(object)


@dataclass(frozen=True)
class Events:
    """Where each event lies: file and index in it."""

    paths: tuple[Path, ...]
    indices: tuple[int, ...]
    variable: str

    def size(self, request: Request) -> tuple[int, int]:
        """Rows and columns, from the first file that can be opened."""
        reason = ""
        for path in dict.fromkeys(self.paths):
            try:
                with h5py.File(path, "r") as file:
                    _, rows, columns, _ = file[self.variable].shape
                    return int(rows), int(columns)
            except Exception as error:
                reason = reason or f"{path} ({brief(error)})"
        raise request.error(f"no file can be opened that CATALOG.csv names, among them {reason}; check the folder data/vil")

    def read(self, event: int, first: int, last: int) -> NDArray[Any]:
        """Frames [n, y, x] of one event."""
        path, index = self.paths[event], self.indices[event]

        def frames() -> NDArray[Any]:
            with h5py.File(path, "r") as file:
                data = file[self.variable]
                if not 0 <= index < data.shape[0] or data.shape[-1] < last:
                    raise UnreadableFrame(f"{path} has {data.shape[0]} events of {data.shape[-1]} frames, and event {index} is asked for")
                return np.moveaxis(np.asarray(data[index, :, :, first:last]), -1, 0)

        return attempt(path, frames)
