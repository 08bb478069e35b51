"""From a source to the blocks of a store: read some times, regrid, check, write; finished blocks are kept in a journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.files import atomic_file
from wxlab.forcings import compute
from wxlab.frames import Frames
from wxlab.grids import Grid, Regridder
from wxlab.splits import time_text

_READ = 256 << 20  # bytes of the source held at once


@dataclass(frozen=True)
class Part:
    """One variable of the source: its levels' positions, the channels that they become, and the way to the target grid."""

    variable: str
    levels: tuple[int, ...] | None
    channels: tuple[int, ...]
    move: Regridder | None

    def read(self, dataset: xr.Dataset, start: int, stop: int) -> np.ndarray:
        """Values [n, channels, H, W] on the target grid."""
        field = dataset[self.variable].isel(time=slice(start, stop))
        grid = ("latitude", "longitude") if "latitude" in field.dims else ("y", "x")
        dims = ["time", *(["level"] if self.levels is not None else []), *grid]
        if self.levels is not None:
            field = field.isel(level=list(self.levels))
        values = read_values(field.transpose(*dims)).astype(np.float32, copy=False)
        values = values if self.levels is not None else values[:, None]
        if self.move is None:
            return values
        return self.move(values, nan_aware=not np.isfinite(values).all())


def read_values(field: xr.DataArray) -> np.ndarray:
    """The values of a lazy field, by this thread alone.  Raises WxlabError naming the variable when its source cannot be read."""
    try:
        return np.asarray(field.compute(scheduler="synchronous").values)
    except WxlabError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        when = f" at {str(np.ravel(field['time'].values)[0])[:16]}" if "time" in field.coords else ""
        raise WxlabError(f"{field.name} could not be read{when}: {reason}; check the source and start again") from None


@dataclass(frozen=True)
class Blocks:
    """What is needed to write any block of a store: a copy of it goes to every worker."""

    work: Path
    dataset: xr.Dataset
    parts: tuple[Part, ...]
    channels: tuple[str, ...]
    forcing: tuple[str, ...]
    grid: Grid
    times: np.ndarray
    chunk: int
    policies: Mapping[str, str]

    @property
    def count(self) -> int:
        return -(-len(self.times) // self.chunk)

    def frames(self, name: str) -> Frames:
        """The array ``state`` or ``forcing`` of the unfinished store."""
        length = len(self.channels if name == "state" else self.forcing)
        return Frames(self.work / name, (len(self.times), length, *self.grid.shape), self.chunk)

    def write(self, index: int) -> None:
        """Write block ``index`` unless the journal has it."""
        entry = journal(self.work, f"block-{index:06d}")
        if entry.exists():
            return
        start, stop = index * self.chunk, min((index + 1) * self.chunk, len(self.times))
        values = np.empty((stop - start, len(self.channels), *self.grid.shape), dtype=np.float32)
        for part in self.parts:
            field = self.dataset[part.variable]
            rows = max(1, _READ // max(1, field.dtype.itemsize * (field.size // len(self.times))))
            for first in range(start, stop, rows):
                last = min(first + rows, stop)
                values[first - start : last - start, list(part.channels)] = part.read(self.dataset, first, last)
        values[~np.isfinite(values)] = np.nan
        missing = np.isnan(values).sum((2, 3))
        self._refuse(values, missing, start)
        frames = self.frames("state")
        frames.write(index, values)
        if self.forcing:
            self.frames("forcing").write(index, compute(self.forcing, self.times[start:stop], self.grid))
        digest = frames.digest(index)
        with atomic_file(entry) as temporary:
            temporary.write_text(json.dumps({"sha256": digest, "missing": missing.tolist()}))

    def _refuse(self, values: np.ndarray, missing: np.ndarray, start: int) -> None:
        for i, name in enumerate(self.channels):
            if missing[:, i].any() and self.policies[name] == "error":
                frame = int(np.flatnonzero(missing[:, i])[0])
                row, column = np.argwhere(np.isnan(values[frame, i]))[0]
                y, x = self.grid.dims
                where = f"{y} {self.grid.y[row]:g}, {x} {self.grid.x[column]:g} at {time_text(self.times[start + frame])}"
                share = 100 * missing[:, i].sum() / values[:, i].size
                raise WxlabError(
                    f"{name} misses {int(missing[:, i].sum())} values ({share:.3g} %) between {time_text(self.times[start])} and "
                    f"{time_text(self.times[start + len(values) - 1])}, the first at {where}; pass nan={{{name!r}: 'mask'}} (or 'fill'), "
                    "or leave it out"
                )


def journal(work: Path, name: str) -> Path:
    """Where the journal keeps an entry; an entry that is there is whole."""
    return work / ".journal" / name


def read_journal(work: Path, count: int) -> list[dict[str, Any]]:
    """The entries of all blocks, in order."""
    return [json.loads(journal(work, f"block-{index:06d}").read_text()) for index in range(count)]


def run_tasks(function: Callable[[int], Any], count: int, scheduler: Any = None) -> None:
    """Call ``function`` on 0..count-1, in any order.

    scheduler: None or ``threads`` (four at a time), ``synchronous``, or the address of a dask scheduler (``tcp://...``) or a
    ``distributed.Client``, whose workers must see the same files.  Raises what the first failing call raises.
    """
    if scheduler == "synchronous" or (count == 1 and scheduler in (None, "threads")):
        for index in range(count):
            function(index)
    elif scheduler in (None, "threads"):
        dask.compute(*[dask.delayed(function)(index) for index in range(count)], scheduler="threads", num_workers=4)
    elif hasattr(scheduler, "map"):
        scheduler.gather(scheduler.map(function, range(count), pure=False))
    else:
        _on_cluster(function, count, scheduler)


def check_scheduler(scheduler: Any) -> None:
    """Raise WxlabError for what ``run_tasks`` could not use."""
    if scheduler in (None, "threads", "synchronous") or hasattr(scheduler, "map") or (isinstance(scheduler, str) and "://" in scheduler):
        return
    raise WxlabError(f"scheduler {scheduler!r} is not known; give 'threads', 'synchronous' or the address of a dask scheduler (tcp://host:8786)")


def _on_cluster(function: Callable[[int], Any], count: int, address: str) -> None:
    from distributed import Client

    try:
        client = Client(address, timeout=30)
    except OSError:
        raise WxlabError(f"no dask scheduler answers at {address}; start one (dask scheduler), or pass scheduler='threads'") from None
    with client:
        client.gather(client.map(function, range(count), pure=False))
