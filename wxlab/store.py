"""The training store: one zarr group that holds states, statistics, climatology, splits and where they come from.

``prepare`` makes one, ``open_store`` opens it; channels and the Normaliser are part of the same vocabulary.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr

from wxlab.channels import dataset_channels, stack, unstack
from wxlab.climatology import Climatology
from wxlab.errors import WxlabError, unknown
from wxlab.events import LABELS
from wxlab.forcings import seconds
from wxlab.frames import Frames
from wxlab.grids import Grid
from wxlab.normaliser import Normaliser, Transform
from wxlab.preparation import FORMAT, prepare
from wxlab.preparation.accumulations import deaccumulate
from wxlab.splits import mask_of, span_text, time_text

__all__ = [
    "Climatology",
    "Normaliser",
    "Store",
    "Transform",
    "dataset_channels",
    "deaccumulate",
    "open_store",
    "prepare",
    "stack",
    "unstack",
]


class Store:
    """A prepared store, opened without reading its states.

    path; attrs (all attributes); channels, forcing, static (names); grid; times (int64 seconds UTC [T]); step (seconds);
    segment (int32 [T]) and segments ([start, stop) of each); splits {name: [[start, stop), ...]}; normaliser;
    mean, std, tendency_std (float64 [C], physical units, training split); frames (the states).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._group = _open_group(self.path)
        self.attrs: dict[str, Any] = dict(self._group.attrs)
        self.channels: tuple[str, ...] = tuple(self.attrs["channels"])
        self.forcing: tuple[str, ...] = tuple(self.attrs["forcing"])
        self.static: tuple[str, ...] = tuple(self.attrs["static"])
        self.grid = Grid.from_dict(self.attrs["grid"])
        self.step: int = self.attrs["step"]
        self.splits: dict[str, list[tuple[int, int]]] = {
            name: [(start, stop) for start, stop in ranges] for name, ranges in self.attrs["splits"].items()
        }
        self.normaliser = Normaliser.from_dict(self.attrs["normaliser"])
        if self.normaliser.anomalies:
            self.normaliser = replace(self.normaliser, climatology=self.climatology())
        self.times, self.segment = self._array("time").astype(np.int64), self._array("segment")
        self.mean, self.std, self.tendency_std = (self._array(name) for name in ("mean", "std", "tendency_std"))
        self.frames = self._frames("state", len(self.channels))
        self.forcing_frames = self._frames("forcing", len(self.forcing)) if self.forcing else None

    def _array(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self._group[name][...])  # type: ignore[index]
        except Exception:
            raise WxlabError(f"the store {self.path} is damaged: array {name!r} cannot be read; delete it and prepare it again") from None

    def _frames(self, name: str, channels: int) -> Frames:
        frames = Frames(self.path / name, (len(self.times), channels, *self.grid.shape), self.attrs["chunk"])
        frames.check()
        return frames

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        rows, columns = self.grid.shape
        span = f"{time_text(self.times[0])} to {time_text(self.times[-1])}"
        return (
            f"<Store {self.path.name}: {len(self)} times ({span}, step {span_text(self.step)}, {len(self.segments)} segments), "
            f"{len(self.channels)} channels, {rows}x{columns}>"
        )

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """[start, stop) of each segment."""
        edges = np.flatnonzero(np.diff(self.segment)) + 1
        return list(zip([0, *edges.tolist()], [*edges.tolist(), len(self)], strict=True))

    @cached_property
    def events(self) -> dict[str, np.ndarray]:
        """Where and when frames truly are [T] (``event_time``, ``source``, ``origin_y``, ``origin_x`` in metres), when events are laid one
        after the other on ``time``; empty for a plain series."""
        found = {name: self._array(name) for name in LABELS if name in self._group}
        if "event_time" in found:
            found["event_time"] = found["event_time"].astype("datetime64[s]").astype("datetime64[ns]")
        if "source" in found:
            found["source"] = np.asarray(self.attrs["sources"])[found["source"]]
        return found

    @property
    def missing(self) -> dict[str, float]:
        """Share of missing values of the channels that have any."""
        return dict(self.attrs["missing"]["share"])

    def split_ranges(self, split: str) -> list[tuple[int, int]]:
        """[start, stop) of the pieces of a split, cut at the ends of segments."""
        if split not in self.splits:
            raise unknown("split of this store", split, self.splits)
        return [
            (max(start, first), min(stop, last))
            for start, stop in self.splits[split]
            for first, last in self.segments
            if max(start, first) < min(stop, last)
        ]

    def read(self, start: int, stop: int) -> np.ndarray:
        """States [stop - start, C, H, W] float32 in physical units."""
        return self.frames.read(start, stop)

    @cached_property
    def static_fields(self) -> np.ndarray:
        """Static fields [S, H, W] float32 in physical units."""
        return self._array("static") if self.static else np.empty((0, *self.grid.shape), dtype=np.float32)

    def climatology(self) -> Climatology:
        """The climatology fitted on the training split."""
        return Climatology(self._array("climatology"), self.attrs["climatology"]["hours"], self.channels, self.grid)

    def index(self, times: object) -> np.ndarray:
        """Positions of times.  Raises WxlabError naming the first that the store lacks."""
        wanted = np.atleast_1d(seconds(times))
        found = np.clip(np.searchsorted(self.times, wanted), 0, len(self) - 1)
        absent = wanted[self.times[found] != wanted]
        if len(absent):
            span = f"{time_text(self.times[0])} to {time_text(self.times[-1])} every {span_text(self.step)}, with gaps between segments"
            raise WxlabError(f"the store {self.path.name} has no state at {time_text(absent[0])}; it runs from {span}")
        return found

    def dataset(self, split: str | None = None, times: object = None) -> xr.Dataset:
        """States in physical units as a lazy Dataset with WeatherBench 2 names, with ``segment`` along time and the static fields.

        split: name of a split, or all.  times: instead of a split, times that the store has.
        """
        y, x = self.grid.dims
        rows = max(1, (16 << 20) // (4 * int(np.prod(self.grid.shape))))
        lazy = dask.array.from_array(self.frames, chunks=(rows, 1, -1, -1), name=f"{self.path.name}-{self.attrs['checksum']}")
        coords = {"time": self.times.astype("datetime64[s]").astype("datetime64[ns]"), "channel": list(self.channels)}
        array = xr.DataArray(lazy, dims=("time", "channel", y, x), coords={**coords, y: list(self.grid.y), x: list(self.grid.x)})
        array = array.assign_coords({name: ("time", values) for name, values in {"segment": self.segment, **self.events}.items()})
        if times is not None:
            array = array.isel(time=self.index(times))
        elif split is not None:
            self.split_ranges(split)
            array = array.isel(time=np.flatnonzero(mask_of(self.splits[split], len(self))))
        result = unstack(array)
        for name, field in zip(self.static, self.static_fields, strict=True):
            result[name] = ((y, x), field)
        result.attrs = {key: self.attrs["provenance"].get(key, "") for key in ("title", "licence", "citation")}
        return result

    def verify_checksum(self) -> None:
        """Read all states and compare their checksum with the one that ``prepare`` left.  Raises WxlabError when they differ."""
        digests = [self.frames.digest(i) for i in range(-(-len(self) // self.frames.chunk))]
        if hashlib.sha256("".join(digests).encode()).hexdigest() != self.attrs["checksum"]:
            raise WxlabError(f"the states of {self.path} are not the ones that were written; delete the store and prepare it again")


def _open_group(path: Path) -> zarr.Group:
    if not path.exists():
        raise WxlabError(f"there is no store at {path}; make one with wxlab.prepare(name, {str(path)!r}, variables=[...])")
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes = dict(group.attrs)
    except Exception:
        raise WxlabError(f"{path} is not a readable zarr group; give a folder that wxlab.prepare wrote") from None
    if attributes.get("format") != FORMAT:
        raise WxlabError(f"{path} is not a store of this version ({FORMAT!r}); prepare it with wxlab.prepare")
    return group


def open_store(path: str | os.PathLike[str] | Store) -> Store:
    """Open a prepared store; a Store passes unchanged.  Raises WxlabError when there is none, or when it is damaged."""
    return path if isinstance(path, Store) else Store(path)
