"""A tree of one .npy file per time, variable and level, as the authors of VA-MoE read it.

    <root>/<YYYY>/<YYYY-MM-DD>/<HH>:00:00-<var>-<level>.npy      pressure levels, 500 or 500.0; arrays [1, H, W] or [H, W]
    <root>/single/<YYYY>/<YYYY-MM-DD>/<HH>:00:00-<var>.npy       single level; any shape with H x W elements
    <root>/statistic/mean_std.json                               {"mean": {var: 37 numbers}, "std": ...}
    <root>/statistic/mean_std_single.json                        {"mean": {var: number}, "std": ...}
The tree does not say where its points lie: the entry's grid does (``poles``, ``latitude_order``, descending unless given), or the file
``grid.json`` that ``wxlab.npy_tree.write`` leaves. A file that is missing is a frame of NaN, and the attribute ``gaps`` says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from wxlab.channels import split_channel
from wxlab.errors import WxlabError, is_number, unknown
from wxlab.normaliser import Normaliser, Transform
from wxlab.readers.source import Piece, Request, expand
from wxlab.readers.uniform import uniform
from wxlab.splits import regular_step

_FILE = re.compile(r"(\d\d):(\d\d):(\d\d)-([^/]+?)(?:-(\d+(?:\.\d+)?))?\.npy")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
Files = dict[np.datetime64, dict[float | None, Path]]
GRID_FILE = "grid.json"
# levels of the statistics, hPa
LEVELS = (
    1000, 975, 950, 925, 900, 875, 850, 825, 800, 775, 750, 700, 650, 600, 550, 500, 450, 400, 350, 300, 250, 225, 200, 175, 150, 125,
    100, 70, 50, 30, 20, 10, 7, 5, 3, 2, 1,
)  # fmt: skip
# the authors' names
UPPER_AIR = {
    "geopotential": "z",
    "specific_humidity": "q",
    "u_component_of_wind": "u",
    "v_component_of_wind": "v",
    "temperature": "t",
    "vertical_velocity": "w",
    "relative_humidity": "r",
}
SURFACE = {
    "2m_temperature": "t2m",
    "10m_u_component_of_wind": "u10",
    "10m_v_component_of_wind": "v10",
    "mean_sea_level_pressure": "msl",
    "surface_pressure": "sp",
}
SHORT_NAMES = {**UPPER_AIR, **SURFACE}


def open_whole(request: Request) -> xr.Dataset:
    """The tree as one dataset; ``gaps`` tells of files that are missing."""
    dataset = uniform(request, open_pieces(request))
    absent = gaps(expand(str(request.entry.uri), request.name), {source.name for source in request.entry.variables.values()})
    if len(absent):
        first = absent.iloc[0]
        level = "" if pd.isna(first["level"]) else f" at {first['level']:g} hPa"
        count = f"{len(absent)} file{'s are' if len(absent) > 1 else ' is'} missing"
        dataset.attrs["gaps"] = f"{count}, the first is {first['variable']!r}{level} at {first['time']:%Y-%m-%d %H:%M}"
    return dataset


def gaps(root: str | os.PathLike[str], variables: Iterable[str] | None = None) -> pd.DataFrame:
    """Files that a tree should have and lacks, from its names alone.

    root: of the tree.  variables: names in it (``z``, ``t2m``); None: all that it has.
    A file is missing when its variable and level occur elsewhere in the tree, and its time lies at the regular step between the first
    and the last.  Returns columns time, variable, level (hPa, NaN for single levels), in this order of sorting.
    """
    wanted = None if variables is None else {variables} if isinstance(variables, str) else set(variables)
    found = _scan(Path(root), wanted)
    if wanted and found and (absent := sorted(wanted - set(found))):
        raise unknown("variable of the tree", absent[0], _scan(Path(root), None))
    times = np.unique(np.array([time for files in found.values() for time in files], "datetime64[s]"))
    if not len(times):
        raise WxlabError(f"{root} holds no file like 2020/2020-01-01/00:00:00-z-500.0.npy; give the root of a tree")
    step = max(1, regular_step(times.astype(np.int64)))
    regular = np.arange(times[0], times[-1] + 1, step).astype("datetime64[ns]")
    rows = [
        (time, name, np.nan if level is None else level)
        for time in np.union1d(regular, times.astype("datetime64[ns]"))
        for name, files in found.items()
        for level in sorted({level for by_level in files.values() for level in by_level}, key=lambda level: level or 0.0)
        if level not in files.get(time, {})
    ]
    return pd.DataFrame(rows, columns=["time", "variable", "level"]).astype({"time": "datetime64[ns]", "level": float})


def statistics(root: str | os.PathLike[str], channels: Sequence[str], names: dict[str, str] | None = None) -> Normaliser:
    """The Normaliser that a tree's statistics mean: (x - mean) / std of each channel.

    root: of the tree.  channels: ``geopotential_500``, ``2m_temperature``.  names: variable -> its name in the tree, where that is not
    the authors' (z, q, u, v, t, w, r; t2m, u10, v10, msl, sp) nor the variable's own.
    Give it to a store (``store.normaliser = ...``) or a model to work with these numbers instead of the store's own.
    Raises WxlabError naming a file, a variable or a level that is missing.
    """
    transforms, known = {}, {**SHORT_NAMES, **(names or {})}
    channels = [channels] if isinstance(channels, str) else channels
    tables = {single: _statistic(Path(root) / "statistic" / f"mean_std{'_single' if single else ''}.json") for single in (False, True)}
    for channel in channels:
        variable, level = split_channel(channel)
        table, name = tables[level is None], known.get(variable, variable)
        if name not in table["mean"]:
            raise unknown(f"variable of the statistics in {root}", name, table["mean"])
        mean: Any = table["mean"][name]
        std: Any = table["std"].get(name)
        if level is not None:
            if level not in LEVELS:
                raise unknown("level of the statistics in hPa", level, LEVELS)
            if not all(isinstance(column, list) and len(column) == len(LEVELS) for column in (mean, std)):
                raise WxlabError(f"the statistics of {name!r} in {root} must be {len(LEVELS)} means and {len(LEVELS)} deviations")
            mean, std = mean[LEVELS.index(level)], std[LEVELS.index(level)]
        if not is_number(mean) or not is_number(std) or std <= 0:
            raise WxlabError(f"the statistics of {channel} in {root} are {mean!r} and {std!r}; give a mean and a positive deviation")
        transforms[channel] = Transform("zscore", float(mean), float(std))
    return Normaliser(transforms)


def _statistic(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table: dict[str, dict[str, Any]] = json.loads(path.read_text())
        if not isinstance(table["mean"], dict) or not isinstance(table["std"], dict):
            raise TypeError
    except FileNotFoundError:
        raise WxlabError(f"there is no {path}; a tree needs it, also when it has no such variables") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise WxlabError(f'{path} cannot be read as {{"mean": {{...}}, "std": {{...}}}}; write it again') from None
    return table


def open_pieces(request: Request) -> list[Piece]:
    """One piece per variable, so that each keeps its own times and levels."""
    uris = request.uris
    if len(uris) != 1 or not Path(uris[0]).is_dir():
        raise request.error(f"{' and '.join(uris)} is not one folder; give the root of the tree as uri")
    root = Path(uris[0])
    if not (root / GRID_FILE).is_file() and (request.entry.grid is None or request.entry.grid.poles is None):
        raise request.error("a tree of .npy files does not say where its points lie; add grid: {type: latlon, poles: true or false}")
    names = {source.name for source in request.entry.variables.values()}
    found = _scan(root, names)
    if not found:
        raise request.error(f"{root} holds no file like 2020/2020-01-01/00:00:00-z-500.0.npy of {', '.join(sorted(names))}")
    return [Piece(str(root), _dataset(request, name, files)) for name, files in found.items()]


def _scan(root: Path, names: set[str] | None) -> dict[str, Files]:
    """variable -> time -> level (None: single) -> file, of the variables in ``names``, or of all."""
    found: dict[str, Files] = {}
    for single, top in ((False, root), (True, root / "single")):
        for day in _days(top):
            with os.scandir(day) as entries:
                for file in entries:
                    match = _FILE.fullmatch(file.name)
                    if match is None or (names is not None and match[4] not in names) or single != (match[5] is None):
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
    latitude, longitude = _coordinates(request, rows, columns)
    chunks = dict(zip(dims, (1, 1, rows, columns) if levels else (1, rows, columns), strict=True))
    coords: dict[str, Any] = {
        "time": np.array(times, "datetime64[ns]"),
        "latitude": latitude,
        "longitude": longitude,
    }
    if levels:
        coords["level"] = ("level", np.array(levels), {"units": "hPa"})
    return xr.Dataset({name: xr.Variable(dims, array, encoding={"preferred_chunks": chunks})}, coords)


def _coordinates(request: Request, rows: int, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Latitudes and longitudes from the file that the writer left, else as the entry says."""
    own = Path(request.uris[0]) / GRID_FILE
    if own.is_file():
        try:
            points = json.loads(own.read_text())
            latitude, longitude = (np.asarray(points[axis], np.float64) for axis in ("latitude", "longitude"))
        except (OSError, ValueError, KeyError, TypeError):
            raise request.error(f"{own} cannot be read; write it again, or remove it and describe the grid in the entry") from None
        if (len(latitude), len(longitude)) != (rows, columns):
            raise request.error(f"{own} has {len(latitude)} x {len(longitude)} points, and the files have {rows} x {columns}; mend it")
        return latitude, longitude
    grid = request.entry.grid
    assert grid is not None
    edge = 90.0 if grid.poles else 90 - 90 / rows
    latitudes = np.linspace(edge, -edge, rows, dtype=np.float64)
    return latitudes[::-1] if grid.latitude_order == "ascending" else latitudes, np.arange(columns) * (360 / columns)


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
