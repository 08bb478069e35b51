"""A tree of one .npy file per time, variable and level.

    <root>/<YYYY>/<YYYY-MM-DD>/<HH>:00:00-<var>-<level>.npy      pressure levels, 500 or 500.0; arrays [1, H, W] or [H, W]
    <root>/single/<YYYY>/<YYYY-MM-DD>/<HH>:00:00-<var>.npy       single level; any shape with H x W elements
The tree does not say where its points lie: the entry's grid does (``poles``, ``latitude_order``, descending unless given).
A file that is missing is a frame of NaN.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from wxlab.errors import WxlabError
from wxlab.readers.source import Piece, Request

_FILE = re.compile(r"(\d\d):(\d\d):(\d\d)-([^/]+?)(?:-(\d+(?:\.\d+)?))?\.npy")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
Files = dict[np.datetime64, dict[float | None, Path]]


def open_pieces(request: Request) -> list[Piece]:
    """One piece per variable, so that each keeps its own times and levels."""
    uris = request.uris
    if len(uris) != 1 or not Path(uris[0]).is_dir():
        raise request.error(f"{' and '.join(uris)} is not one folder; give the root of the tree as uri")
    root = Path(uris[0])
    if request.entry.grid is None or request.entry.grid.poles is None:
        raise request.error("a tree of .npy files does not say where its points lie; add grid: {type: latlon, poles: true or false}")
    names = {source.name for source in request.entry.variables.values()}
    found = _scan(root, names)
    if not found:
        raise request.error(f"{root} holds no file like 2020/2020-01-01/00:00:00-z-500.0.npy of {', '.join(sorted(names))}")
    return [Piece(str(root), _dataset(request, name, files)) for name, files in found.items()]


def _scan(root: Path, names: set[str]) -> dict[str, Files]:
    """variable -> time -> level (None: single) -> file."""
    found: dict[str, Files] = {}
    for single, top in ((False, root), (True, root / "single")):
        for day in _days(top):
            with os.scandir(day) as entries:
                for file in entries:
                    match = _FILE.fullmatch(file.name)
                    if match is None or match[4] not in names or single != (match[5] is None):
                        continue
                    time = np.datetime64(f"{day.name}T{match[1]}:{match[2]}:{match[3]}", "ns")
                    level = None if single else float(match[5])
                    found.setdefault(match[4], {}).setdefault(time, {})[level] = Path(file.path)
    return found


def _days(top: Path) -> Iterator[Path]:
    for year in sorted(top.glob("[0-9][0-9][0-9][0-9]")):
        yield from (day for day in sorted(year.iterdir()) if _DAY.fullmatch(day.name))


def _dataset(request: Request, name: str, files: Files) -> xr.Dataset:
    times = sorted(files)
    levels = sorted({level for by_level in files.values() for level in by_level if level is not None})
    sample = np.asarray(_load(next(iter(files[times[0]].values()))))
    if sample.ndim < 2:
        raise request.error(f"arrays of {name!r} have shape {sample.shape}; they must be [H, W] or [1, H, W]")
    rows, columns = sample.shape[-2:]
    table = [[files[time].get(level) for level in (levels if levels else (None,))] for time in times]
    array = indexing.LazilyIndexedArray(_Tree(table, (rows, columns), bool(levels)))
    dims = ("time", "level", "latitude", "longitude") if levels else ("time", "latitude", "longitude")
    chunks = dict(zip(dims, (1, 1, rows, columns) if levels else (1, rows, columns), strict=True))
    coords: dict[str, Any] = {
        "time": np.array(times, "datetime64[ns]"),
        "latitude": _latitudes(request, rows),
        "longitude": np.arange(columns) * (360 / columns),
    }
    if levels:
        coords["level"] = ("level", np.array(levels), {"units": "hPa"})
    return xr.Dataset({name: xr.Variable(dims, array, encoding={"preferred_chunks": chunks})}, coords)


def _latitudes(request: Request, rows: int) -> NDArray[np.float64]:
    grid = request.entry.grid
    assert grid is not None
    edge = 90.0 if grid.poles else 90 - 90 / rows
    latitudes = np.linspace(edge, -edge, rows)
    return latitudes[::-1] if grid.latitude_order == "ascending" else latitudes


def _load(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except (OSError, ValueError, EOFError) as error:
        raise WxlabError(f"cannot read {path} ({' '.join(str(error).split())[:120]}); write the file again") from None


class _Tree(BackendArray):
    """The files of one variable as an array [time, (level,) H, W]."""

    def __init__(self, table: list[list[Path | None]], grid: tuple[int, int], with_levels: bool) -> None:
        self.table, self.grid, self.with_levels = table, grid, with_levels
        self.shape = (len(table), *((len(table[0]),) if with_levels else ()), *grid)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)
        return answer

    def _read(self, key: tuple[int | slice, ...]) -> NDArray[np.float32]:
        times = range(len(self.table))[key[0]]
        frames = [times] if isinstance(times, int) else list(times)
        block = np.stack([np.stack([self._field(path) for path in self.table[time]]) for time in frames])
        block = block if self.with_levels else block[:, 0]
        rest = block[(slice(None), *key[1:])]
        return rest[0] if isinstance(times, int) else rest

    def _field(self, path: Path | None) -> NDArray[np.float32]:
        if path is None:
            return np.full(self.grid, np.nan, np.float32)
        field = _load(path)
        if field.size != self.grid[0] * self.grid[1]:
            raise WxlabError(f"{path} has shape {field.shape}, and the other files have {self.grid}; write the file again")
        return np.asarray(field, np.float32).reshape(self.grid)
