"""Events: radar sequences, tiles of them and several sources, laid one after the other on one time axis.

Events overlap in time, and tiles of one event have the same times; a store needs every time once. So events follow one another on
``time``, each a ``segment``, moved by whole days where it must be (the time of day stays right); the true time of every frame is
kept as coordinate ``event_time``, and splits by dates mean it. ``source``, ``origin_y`` and ``origin_x`` say where a frame comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dask
import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.forcings import DAY, seconds
from wxlab.grids import grid_of

# coordinates along time that stores keep beside ``segment``
LABELS = ("event_time", "source", "split", "origin_y", "origin_x")
SizeLike: TypeAlias = "str | Sequence[int] | Sequence[float]"
TilesLike: TypeAlias = "SizeLike | Mapping[str, Any]"


def axis_of_events(starts: np.ndarray, ends: np.ndarray, step: int) -> np.ndarray:
    """Seconds [E] by which events must be moved, in whole days, so that each begins more than ``step`` after the one before it ends.

    starts, ends: seconds of the first and last frame of each event [E].
    """
    moves = np.zeros(len(starts), dtype=np.int64)
    free = -(2**62)
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start < free:
            moves[i] = -(-(free - start) // DAY) * DAY
        free = end + int(moves[i]) + step + 1
    return moves


def true_times(dataset: xr.Dataset) -> np.ndarray:
    """Seconds [T] of the true times: ``event_time`` where events are laid one after the other, else ``time``."""
    return seconds(dataset["event_time" if "event_time" in dataset.coords else "time"].values)


def size_of(value: SizeLike, what: str) -> tuple[int, int]:
    """(rows, columns) of ``"64x64"`` or a pair."""
    sides = re.fullmatch(r"(\d+)\s*[xX]\s*(\d+)", value.strip()) if isinstance(value, str) else None
    try:
        rows, columns = (int(side) for side in (sides.groups() if sides else () if isinstance(value, str) else value))
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 2 or columns < 2:
        raise WxlabError(f"{what} is {value!r}; give 'ROWSxCOLUMNS' such as '64x64', or a pair (64, 64)")
    return rows, columns


def crop(dataset: xr.Dataset, area: SizeLike) -> xr.Dataset:
    """A part of the fields.

    area: ``"ROWSxCOLUMNS"`` points around the middle, or a box [y from, y to, x from, x to] in the units of the coordinates (metres, or
    degrees of latitude and longitude), both ends inclusive.  Raises WxlabError where the fields are smaller.
    """
    grid = grid_of(dataset)
    names = dict(zip(("rows", "columns"), grid.dims, strict=True))
    if not isinstance(area, str) and len(area) == 4:
        kept: dict[str, Any] = {}
        for dim, low, high in zip(grid.dims, (area[0], area[2]), (area[1], area[3]), strict=True):
            values = np.asarray(dataset[dim].values)
            kept[dim] = np.flatnonzero((values >= low) & (values <= high))
            if len(kept[dim]) < 2:
                span = f"{values.min():g} to {values.max():g}"
                raise WxlabError(f"crop {list(area)} keeps {len(kept[dim])} points of {dim}, which runs from {span}; widen it")
        return dataset.isel(kept)
    middle = {}
    rows, columns = grid.shape
    for (name, dim), length, wanted in zip(names.items(), grid.shape, size_of(area, "crop"), strict=True):
        if wanted > length:
            raise WxlabError(f"crop {area!r} wants {wanted} {name}, and the fields have {length}; give at most {rows}x{columns}")
        first = (length - wanted) // 2
        middle[dim] = slice(first, first + wanted)
    return dataset.isel(middle)


@dataclass(frozen=True)
class Tiles:
    """How fields are cut: size of a tile, distance from one to the next (both in points), and the least share of observed points."""

    size: tuple[int, int]
    stride: tuple[int, int]
    observed: float

    @classmethod
    def parse(cls, value: TilesLike) -> Tiles:
        """From ``"64x64"``, (64, 64), or {"size": "64x64", "stride": 32, "observed": 0.9}; stride: the size, observed: 0.5."""
        given = dict(value) if isinstance(value, Mapping) else {"size": value}
        for key in given:
            if key not in ("size", "stride", "observed"):
                raise unknown("setting of tiles", key, ("size", "stride", "observed"))
        if "size" not in given:
            raise WxlabError("tiles lack a size; give {'size': '64x64', 'stride': 32}")
        size = size_of(given["size"], "tiles")
        stride = given.get("stride", size)
        pair = (stride, stride) if isinstance(stride, int) else size_of(stride, "stride of tiles")
        observed = given.get("observed", 0.5)
        if min(pair) < 1 or not isinstance(observed, (int, float)) or not 0 <= observed <= 1:
            raise WxlabError(f"tiles have stride {stride!r} and observed {observed!r}; give at least 1 point and a share from 0 to 1")
        return cls(size, pair, float(observed))

    def corners(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """First row and column of every tile that fits, as many as possible, around the middle."""
        starts = []
        for length, size, stride in zip(shape, self.size, self.stride, strict=True):
            if size > length:
                raise WxlabError(
                    f"tiles of {self.size[0]}x{self.size[1]} do not fit into fields of {shape[0]}x{shape[1]} points; "
                    "take smaller tiles or a finer grid"
                )
            count = (length - size) // stride + 1
            first = (length - size - (count - 1) * stride) // 2
            starts.append([first + i * stride for i in range(count)])
        return [(row, column) for row in starts[0] for column in starts[1]]


def cut(dataset: xr.Dataset, tiles: Tiles) -> list[xr.Dataset]:
    """The tiles of a dataset; one whose first frame is observed at fewer points than ``tiles.observed`` is left out.

    Raises WxlabError when tiles do not fit or none is left.
    """
    y, x = grid_of(dataset).dims
    corners = tiles.corners((dataset.sizes[y], dataset.sizes[x]))
    moving = [name for name, field in dataset.data_vars.items() if {"time", y, x} <= set(field.dims)]
    (seen,) = dask.compute(*[dataset[moving].isel(time=0).notnull().to_dataarray().all("variable")], scheduler="synchronous")
    rows, columns = tiles.size
    parts = [dataset.isel({y: slice(r, r + rows), x: slice(c, c + columns)}) for r, c in corners]
    shares = [seen.values[..., r : r + rows, c : c + columns].mean() for r, c in corners]
    kept = [part for part, share in zip(parts, shares, strict=True) if share >= tiles.observed]
    if not kept:
        least, most = 100 * tiles.observed, 100 * max(shares)
        raise WxlabError(f"none of {len(parts)} tiles is observed at {least:g} % of its points, the best at {most:.0f} %; lower 'observed'")
    return kept


def join(parts: Sequence[tuple[str, xr.Dataset]]) -> xr.Dataset:
    """Datasets of one grid size laid one after the other on ``time``, lazily; every one has segments of its own.

    parts: (name of the source, Dataset with ``time``, ``y``, ``x`` and perhaps ``segment`` and the coordinates of ``LABELS``).
    Returns ``y`` and ``x`` counted from the corner of each part, which ``origin_y`` and ``origin_x`` give in the source's metres.
    Raises WxlabError where sizes, pixels or steps differ.
    """
    first_name, first = parts[0]
    for name, part in parts[1:]:
        _check_alike(first_name, first, name, part)
    own = [seconds(part["time"].values) for _, part in parts]
    moves = axis_of_events(np.array([times[0] for times in own]), np.array([times[-1] for times in own]), _step(own[0]))
    laid, number = [], 0
    for (name, part), times, move in zip(parts, own, moves.tolist(), strict=True):
        labels = _segments(part)
        laid.append(_placed(first, name, part, times + move, labels + number))
        number += int(labels.max()) + 1
    joined = xr.concat(laid, "time", coords="minimal", compat="override", join="override", combine_attrs="drop_conflicts")
    for key in ("title", "licence", "citation"):
        joined.attrs[key] = "; ".join(dict.fromkeys(str(part.attrs.get(key, "")) for _, part in parts))
    return joined


def _segments(part: xr.Dataset) -> np.ndarray:
    """Numbers from 0 of the events of one part [T]."""
    if "segment" not in part.coords:
        return np.zeros(part.sizes["time"], dtype=np.int64)
    return np.unique(part["segment"].values, return_inverse=True)[1].reshape(-1)


def _step(times: np.ndarray) -> int:
    return int(np.median(np.diff(times))) if len(times) > 1 else DAY


def _check_alike(first_name: str, first: xr.Dataset, name: str, part: xr.Dataset) -> None:
    one, other = grid_of(first), grid_of(part)
    if one.kind != "xy" or other.kind != "xy":
        raise WxlabError(f"{first_name} and {name} cannot be laid one after the other: only fields on y and x in metres can")
    if set(map(str, first.data_vars)) != set(map(str, part.data_vars)):
        theirs = [", ".join(map(str, dataset.data_vars)) for dataset in (first, part)]
        raise WxlabError(f"{first_name} has {theirs[0]} and {name} has {theirs[1]}; ask for common ones with variables=[...]")
    if one.shape != other.shape:
        raise WxlabError(
            f"fields of {first_name} have {one.shape[0]}x{one.shape[1]} points and those of {name} {other.shape[0]}x{other.shape[1]}; "
            "give tiles='64x64' or a crop, so that they become equal"
        )
    pixels = [abs(float(np.mean(np.diff(axis)))) for grid in (one, other) for axis in (grid.y, grid.x)]
    if not np.allclose(pixels, pixels[0], rtol=1e-3):
        raise WxlabError(
            f"pixels of {first_name} are {pixels[0]:g} x {pixels[1]:g} m and those of {name} {pixels[2]:g} x {pixels[3]:g} m; "
            "give one size for all, such as grid='2km'"
        )
    steps = [_step(seconds(dataset["time"].values)) / 60 for dataset in (first, part)]
    if steps[0] != steps[1]:
        raise WxlabError(
            f"{first_name} has a frame every {steps[0]:g} min and {name} every {steps[1]:g} min; "
            f"keep common ones with time=[None, None, {max(steps) / 60:.4g}]"
        )


def _placed(first: xr.Dataset, name: str, part: xr.Dataset, times: np.ndarray, labels: np.ndarray) -> xr.Dataset:
    """One part at its place on the joint axes, rows and columns in the order of the first part."""
    length = part.sizes["time"]
    coordinates: dict[str, Any] = {"segment": ("time", labels)}
    for axis in ("y", "x"):
        values, wanted = np.asarray(part[axis].values), np.asarray(first[axis].values)
        if (values[0] < values[-1]) != (wanted[0] < wanted[-1]):
            part, values = part.isel({axis: slice(None, None, -1)}), values[::-1]
        coordinates[axis] = (axis, wanted - wanted.min(), {"units": "m"})
        origin = part.coords.get(f"origin_{axis}")
        coordinates[f"origin_{axis}"] = ("time", np.full(length, values.min()) + (0 if origin is None else origin.values))
    coordinates["event_time"] = ("time", part["event_time" if "event_time" in part.coords else "time"].values)
    coordinates["source"] = ("time", np.full(length, name, dtype=object) if "source" not in part.coords else part["source"].values)
    if "split" in part.coords:
        coordinates["split"] = ("time", part["split"].values)
    coordinates["time"] = times.astype("datetime64[s]").astype("datetime64[ns]")
    return part.drop_vars([name for name in part.coords if "time" in part[name].dims]).assign_coords(coordinates)
