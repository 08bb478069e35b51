"""Grids: what they are, how large their cells are, how fields move between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeVar, cast, overload

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown


@dataclass(frozen=True)
class Grid:
    """A rectangular grid. ``kind='latlon'``: y = latitude (degrees north), x = longitude (degrees east, 0-360).
    ``kind='xy'``: y and x in metres (radar composites)."""

    y: tuple[float, ...]
    x: tuple[float, ...]
    kind: Literal["latlon", "xy"] = "latlon"

    def __post_init__(self) -> None:
        for name in ("y", "x"):
            object.__setattr__(self, name, tuple(float(value) for value in np.asarray(getattr(self, name)).ravel()))
        if self.kind == "latlon" and self.y and max(abs(value) for value in self.y) > 90 + 1e-6:
            reach = max(self.y, key=abs)
            raise WxlabError(f"latitudes reach {reach:g} degrees; they must lie in -90..90 (are latitude and longitude swapped?)")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    @property
    def dims(self) -> tuple[str, str]:
        return ("latitude", "longitude") if self.kind == "latlon" else ("y", "x")

    @classmethod
    def regular(cls, rows: int, columns: int) -> Grid:
        """A global grid, south to north: an odd number of rows includes the poles, an even one has them on cell edges."""
        spacing = 180 / (rows - 1) if rows % 2 else 180 / rows
        south = -90.0 if rows % 2 else -90 + spacing / 2
        return cls(tuple(south + spacing * i for i in range(rows)), tuple(360 / columns * i for i in range(columns)))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "y": list(self.y), "x": list(self.x)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Grid:
        return cls(tuple(values["y"]), tuple(values["x"]), values.get("kind", "latlon"))


Method = Literal["conservative", "bilinear"]
METHODS: tuple[Method, ...] = ("conservative", "bilinear")
GridLike = Grid | tuple[int, int] | str
_Fields = TypeVar("_Fields", bound=xr.Dataset | xr.DataArray)


def join_columns(fields: xr.Dataset) -> xr.Dataset:
    """Put the columns of an area that lies across 0° side by side: longitudes 0, 5, 350, 355 become 350, 355, 360, 365.

    Other fields pass unchanged.
    """
    if "longitude" not in fields.dims or fields.sizes["longitude"] < 3:
        return fields
    x = np.asarray(fields["longitude"].values, dtype=np.float64)
    steps = np.diff(x)
    usual, widest = np.median(steps), int(np.argmax(steps))
    if (steps <= 0).any() or steps[widest] < 1.5 * usual or abs(x[0] + 360 - x[-1] - usual) > 0.1 * usual:
        return fields
    joined = fields.roll(longitude=len(x) - widest - 1, roll_coords=False)
    return joined.assign_coords(longitude=np.concatenate([x[widest + 1 :], x[: widest + 1] + 360]))


def cell_edges(centres: Sequence[float]) -> np.ndarray:
    """Edges [n+1] of the cells around ``centres`` [n]: half-way between neighbours, the outer ones mirrored."""
    points = np.asarray(centres, dtype=np.float64)
    if len(points) < 2:
        return np.array([points[0] - 0.5, points[0] + 0.5])
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def latitude_edges(grid: Grid) -> np.ndarray:
    """Edges [H+1] of the rows in degrees, never beyond the poles.

    An outer row that comes closer to its pole than three quarters of half a row (as on Gaussian grids) reaches to the pole.
    """
    edges = cell_edges(grid.y)
    for end, inner in ((0, 1), (-1, -2)):
        pole = np.copysign(90.0, edges[end])
        if abs(edges[end]) > 90 or abs(pole - edges[end]) < 0.375 * abs(edges[end] - edges[inner]):
            edges[end] = pole
    return edges


def area_weights(grid: Grid) -> np.ndarray:
    """Weight of each row by the area of its cells, mean 1.

    w_i ∝ |sin(upper edge) − sin(lower edge)|; a row on a pole is the cap that it stands for. Ones on ``xy`` grids.
    Returns [H] float64.
    """
    if grid.kind == "xy" or len(grid.y) < 2:
        return np.ones(len(grid.y))
    areas = np.abs(np.diff(np.sin(np.deg2rad(latitude_edges(grid)))))
    return areas / areas.mean()


def cosine_weights(grid: Grid) -> np.ndarray:
    """Weight of each row by the cosine of its latitude, mean 1; a row on a pole counts nothing. Ones on ``xy`` grids.

    Returns [H] float64.
    """
    if grid.kind == "xy":
        return np.ones(len(grid.y))
    weights = np.cos(np.deg2rad(np.asarray(grid.y, dtype=np.float64)))
    return weights / weights.mean()


def is_periodic(grid: Grid) -> bool:
    """Whether the columns go evenly round the whole globe."""
    steps = np.diff(grid.x)
    if grid.kind != "latlon" or len(steps) == 0:
        return False
    return bool(np.allclose(steps, steps[0], rtol=1e-3) and abs(abs(steps[0]) * len(grid.x) - 360) < 0.01 * abs(steps[0]))


def is_global(grid: Grid) -> bool:
    """Whether the cells cover the whole globe."""
    return is_periodic(grid) and len(grid.y) > 1 and bool(np.isclose(np.abs(latitude_edges(grid)[[0, -1]]), 90, atol=0.01).all())


def coarse_points(grid: Grid, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Where the cells of a coarser grid lie, row by row: the mean coordinates of the points that each stands for, by dimension."""
    y, x = (np.reshape(axis, (length, -1)).mean(1) for axis, length in zip((grid.y, grid.x), shape, strict=True))
    return dict(zip(grid.dims, (y.repeat(len(x)), np.tile(x, len(y))), strict=True))


def parse_grid(grid: GridLike, source: Grid) -> Grid:
    """The grid that a user asked for.

    grid: a Grid, (rows, columns) or ``"ROWSxCOLUMNS"``; the latter two mean the regular global grid when ``source`` is global,
    else evenly spaced cells over the area of ``source``. On y and x also ``"2km"``: as many square cells of that size as fit.
    Raises WxlabError for anything else.
    """
    if isinstance(grid, Grid):
        return grid
    pixel = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(km|m)", grid.strip()) if isinstance(grid, str) else None
    if pixel:
        return _cells_of(float(pixel[1]) * (1000 if pixel[2] == "km" else 1), grid, source)
    sides = re.fullmatch(r"(\d+)\s*[xX]\s*(\d+)", grid.strip()) if isinstance(grid, str) else None
    try:
        rows, columns = (int(side) for side in (sides.groups() if sides else () if isinstance(grid, str) else grid))
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 2 or columns < 2:
        raise WxlabError(f"grid {grid!r} is not a grid; give 'ROWSxCOLUMNS' such as '32x64', a pair (32, 64), or a wxlab.grids.Grid")
    if is_global(source):
        return Grid.regular(rows, columns)
    y_edges = latitude_edges(source) if source.kind == "latlon" else cell_edges(source.y)
    x_edges = cell_edges(source.x)

    def centres(edges: np.ndarray, count: int) -> tuple[float, ...]:
        fine = np.linspace(edges[0], edges[-1], count + 1)
        return tuple((fine[1:] + fine[:-1]) / 2)

    return Grid(centres(y_edges, rows), centres(x_edges, columns), source.kind)


def _cells_of(size: float, asked: GridLike, source: Grid) -> Grid:
    """Square cells of ``size`` metres from the first corner of ``source`` on."""
    if source.kind != "xy":
        raise WxlabError(f"grid {asked!r} is a length, and the data lie on latitude and longitude; give 'ROWSxCOLUMNS' such as '32x64'")
    axes = []
    for centres in (source.y, source.x):
        edges = cell_edges(centres)
        count = int(abs(edges[-1] - edges[0]) / size + 1e-6) if size > 0 else 0
        if count < 2:
            raise WxlabError(f"grid {asked!r} gives {count} cells across {abs(edges[-1] - edges[0]):g} m; give a smaller length")
        axes.append(tuple(edges[0] + np.sign(edges[-1] - edges[0]) * size * (np.arange(count) + 0.5)))
    return Grid(axes[0], axes[1], "xy")


@lru_cache(maxsize=32)
def order_on(given: Grid, wanted: Grid) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the rows and columns of ``wanted`` are in ``given``, or None where the two are not the same points.

    Rows may run to the north or to the south, and columns start anywhere: -180 and 180 degrees are one place.
    """
    if given.kind != wanted.kind or given.shape != wanted.shape:
        return None
    found = []
    for have, want, turn in ((given.y, wanted.y, None), (given.x, wanted.x, 360.0 if given.kind == "latlon" else None)):
        distance = np.asarray(have)[None, :] - np.asarray(want)[:, None]
        distance = np.abs(distance if turn is None else (distance + turn / 2) % turn - turn / 2)
        nearest = distance.argmin(1)
        if (distance.min(1) > 1e-3 + 1e-5 * np.abs(want)).any() or len(set(nearest)) < len(nearest):
            return None
        found.append(nearest)
    return found[0], found[1]


def turned(values: np.ndarray, given: Grid, wanted: Grid) -> np.ndarray:
    """Fields [..., H, W] on ``given`` in the order of ``wanted``, which has the same points."""
    places = order_on(given, wanted)
    if places is None:
        raise WxlabError(f"fields on {_extent(given)} do not lie on the points of {_extent(wanted)}; regrid them first")
    if all(np.array_equal(order, np.arange(len(order))) for order in places):
        return values
    return np.ascontiguousarray(values[..., places[0][:, None], places[1]])


def grid_of(fields: xr.Dataset | xr.DataArray) -> Grid:
    """The grid of fields with coordinates ``latitude``, ``longitude`` or ``y``, ``x``."""
    for kind, (y, x) in (("latlon", ("latitude", "longitude")), ("xy", ("y", "x"))):
        if y in fields.coords and x in fields.coords:
            rows, columns = np.asarray(fields[y].values), np.asarray(fields[x].values)
            for name, values in ((y, rows), (x, columns)):
                steps = np.diff(values)
                if values.ndim != 1 or not (np.all(steps > 0) or np.all(steps < 0)):
                    raise WxlabError(f"coordinate {name!r} must be one-dimensional and strictly ascending or descending; sort by it first")
            return Grid(tuple(rows), tuple(columns), "latlon" if kind == "latlon" else "xy")
    raise WxlabError(f"the data have coordinates {sorted(map(str, fields.coords))}; a grid needs latitude and longitude, or y and x")


def _near(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Longitudes moved by whole turns to where the source's lie."""
    middle = (source.min() + source.max()) / 2
    return (target - middle + 180) % 360 + middle - 180


def _overlap(source: np.ndarray, target: np.ndarray, turns: Sequence[float] = (0.0,)) -> np.ndarray:
    """Share [n_target, n_source] of each target cell that each source cell covers, by their edges; ``turns`` repeats the source."""
    low, high = np.minimum(target[:-1], target[1:])[:, None], np.maximum(target[:-1], target[1:])[:, None]
    s_low, s_high = np.minimum(source[:-1], source[1:]), np.maximum(source[:-1], source[1:])
    shared = sum(np.clip(np.minimum(high, s_high + turn) - np.maximum(low, s_low + turn), 0, None) for turn in turns)
    return np.asarray(shared / (high - low))


def _linear(source: np.ndarray, target: np.ndarray, period: float | None) -> np.ndarray:
    """Weights [n_target, n_source] of linear interpolation; beyond the last point its value is kept."""
    order = np.argsort(source)
    points = source[order]
    if period:
        points = np.concatenate([points[-1:] - period, points, points[:1] + period])
        order = np.concatenate([order[-1:], order, order[:1]])
        target = (target - points[1]) % period + points[1]
    weights = np.zeros((len(target), len(source)))
    if len(source) == 1:
        return weights + 1
    upper = np.clip(np.searchsorted(points, target, side="right"), 1, len(points) - 1)
    share = np.clip((target - points[upper - 1]) / (points[upper] - points[upper - 1]), 0, 1)
    np.add.at(weights, (np.arange(len(target)), order[upper - 1]), 1 - share)
    np.add.at(weights, (np.arange(len(target)), order[upper]), share)
    return weights


@dataclass(frozen=True)
class Regridder:
    """Moves fields from one grid to another: out = rows @ field @ columnsᵀ.

    conservative: each target cell is the area-weighted mean of the source cells under it (first order; Jones 1999,
    doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2; on latitude-longitude cells it separates into sin(latitude) and longitude).
    bilinear: linear in latitude and in longitude, periodic when the source goes round the globe.
    """

    source: Grid
    target: Grid
    method: Method = "conservative"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("regridding method", self.method, METHODS)
        if self.source.kind != self.target.kind:
            raise WxlabError(f"fields on a {self.source.kind!r} grid cannot go to a {self.target.kind!r} grid; give one of the same kind")
        for name, weights in (("rows", self._coverage(0)), ("columns", self._coverage(1))):
            if weights.min() < 0.5 - 1e-6:
                raise WxlabError(
                    f"{int((weights < 0.5 - 1e-6).sum())} {name} of the target grid lie outside the source grid "
                    f"({_extent(self.source)}); choose a grid inside it"
                )

    def _coverage(self, axis: int) -> np.ndarray:
        return self._shares[axis].sum(1)

    @cached_property
    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        if self.source.kind == "xy":
            a, b = self.source, self.target
            return _overlap(cell_edges(a.y), cell_edges(b.y)), _overlap(cell_edges(a.x), cell_edges(b.x))
        rows = _overlap(np.sin(np.deg2rad(latitude_edges(self.source))), np.sin(np.deg2rad(latitude_edges(self.target))))
        columns = _overlap(cell_edges(self.source.x), cell_edges(self.target.x), turns=(-720, -360, 0, 360, 720))
        return rows, columns

    @cached_property
    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """rows [H', H] and columns [W', W]; each line sums to one."""
        if self.method == "conservative":
            rows, columns = (share / share.sum(1, keepdims=True) for share in self._shares)
            return rows, columns
        x, target_x = np.asarray(self.source.x), np.asarray(self.target.x)
        period = 360.0 if is_periodic(self.source) else None
        if self.source.kind == "latlon" and period is None:
            target_x = _near(target_x, x)
        return _linear(np.asarray(self.source.y), np.asarray(self.target.y), None), _linear(x, target_x, period)

    def __call__(self, values: np.ndarray, nan_aware: bool = False) -> np.ndarray:
        """Regrid [..., H, W] -> [..., H', W'] in the precision of ``values``.

        nan_aware: missing points are left out of the means, and a target point is missing when more than half of its weight is.
        Without it one missing point spreads over every target point that it touches.
        """
        if values.shape[-2:] != self.source.shape:
            raise WxlabError(f"fields of {values.shape[-2]}x{values.shape[-1]} points do not lie on the source grid of {self.source.shape}")
        if self.source == self.target:
            return values
        dtype = np.result_type(values.dtype, np.float32)
        rows, columns = (matrix.astype(dtype) for matrix in self.matrices)
        if not nan_aware:
            return rows @ values.astype(dtype, copy=False) @ columns.T
        observed = np.isfinite(values)
        weight = rows @ observed.astype(dtype) @ columns.T
        total = rows @ np.where(observed, values, 0).astype(dtype, copy=False) @ columns.T
        enough = weight >= 0.5
        return np.where(enough, total / np.where(enough, weight, 1), np.nan).astype(dtype, copy=False)


def _extent(grid: Grid) -> str:
    y, x = grid.dims
    return f"{y} {min(grid.y):g} to {max(grid.y):g}, {x} {min(grid.x):g} to {max(grid.x):g}"


def default_method(source: Grid, target: Grid) -> Method:
    """Conservative towards coarser cells, bilinear where the target is finer in either direction."""
    finer = any(
        np.abs(np.diff(b)).mean() < 0.999 * np.abs(np.diff(a)).mean()
        for a, b in ((source.y, target.y), (source.x, target.x))
        if len(a) > 1 and len(b) > 1
    )
    return "bilinear" if finer else "conservative"


def regrid(fields: _Fields, target: GridLike, method: Method | None = None, *, nan_aware: bool = True) -> _Fields:
    """Move a Dataset or DataArray to another grid, lazily where it is lazy.

    target: as in ``parse_grid``.  method: ``conservative`` or ``bilinear`` (default: by ``default_method``).
    nan_aware: see ``Regridder``.  Returns the same kind of object; variables without the two grid dimensions pass unchanged.
    """
    source = grid_of(fields)
    goal = parse_grid(target, source)
    move = Regridder(source, goal, method or default_method(source, goal))
    if isinstance(fields, xr.Dataset):
        return cast(_Fields, fields.map(lambda field: _regrid_field(field, move, nan_aware), keep_attrs=True))
    return cast(_Fields, _regrid_field(fields, move, nan_aware))


def _apply(values: np.ndarray, move: Regridder, nan_aware: bool) -> np.ndarray:
    # dask names its tasks after a function: an instance has no name that it could take
    return move(values, nan_aware)


def _regrid_field(field: xr.DataArray, move: Regridder, nan_aware: bool) -> xr.DataArray:
    y, x = move.source.dims
    if not {y, x} <= set(field.dims):
        return field
    if field.chunks is not None:
        field = field.chunk({y: -1, x: -1})
    result = xr.apply_ufunc(
        _apply,
        field,
        kwargs={"move": move, "nan_aware": nan_aware},
        input_core_dims=[[y, x]],
        output_core_dims=[[y, x]],
        exclude_dims={y, x},
        dask="parallelized",
        output_dtypes=[np.result_type(field.dtype, np.float32)],
        dask_gufunc_kwargs={"output_sizes": {y: len(move.target.y), x: len(move.target.x)}},
        keep_attrs=True,
    )
    return result.assign_coords({y: list(move.target.y), x: list(move.target.x)})


@overload
def crop_to_multiple(fields: Grid, multiples: Sequence[int]) -> Grid: ...
@overload
def crop_to_multiple(fields: xr.Dataset, multiples: Sequence[int]) -> xr.Dataset: ...
def crop_to_multiple(fields: Grid | xr.Dataset, multiples: Sequence[int]) -> Grid | xr.Dataset:
    """Cut rows and columns from both ends (one more from the end) until their numbers divide by ``multiples`` (rows, columns)."""
    grid = fields if isinstance(fields, Grid) else grid_of(fields)
    kept = []
    for name, length, multiple in zip(("rows", "columns"), grid.shape, multiples, strict=True):
        if multiple < 1 or length < multiple:
            raise WxlabError(f"{length} {name} cannot be cropped to a multiple of {multiple}; regrid to at least {multiple} {name}")
        first = length % multiple // 2
        kept.append(slice(first, first + length - length % multiple))
    if isinstance(fields, Grid):
        return Grid(fields.y[kept[0]], fields.x[kept[1]], fields.kind)
    return fields.isel(dict(zip(grid.dims, kept, strict=True)))
