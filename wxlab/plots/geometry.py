"""Where the cells of a field lie: edges from centres, longitudes in one piece, cells cut at the edge of the map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Edges = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """A field as cells: ``values`` [rows, columns], ``x`` [columns + 1] and ``y`` [rows + 1] edges, ascending.

    kind: 'global', 'region' (degrees) or 'plain' (kilometres).
    """

    values: NDArray[np.float64]
    x: Edges
    y: Edges
    kind: Literal["global", "region", "plain"]

    @property
    def middle(self) -> tuple[float, float]:
        return float(self.x[0] + self.x[-1]) / 2, float(self.y[0] + self.y[-1]) / 2


def cell_edges(centres: Edges) -> Edges:
    """Edges half way between the centres; the outer cells are as wide as half their distance says on both sides."""
    if centres.size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def latitude_edges(centres: Edges) -> Edges:
    """Edges of ascending latitudes, never beyond a pole, and on it where less than half a cell would be left open."""
    edges = cell_edges(centres)
    if centres.size > 1:
        reach = 0.5 * (centres[-1] - centres[0]) / (centres.size - 1)
        edges[0] = -90.0 if edges[0] < -90 + reach else edges[0]
        edges[-1] = 90.0 if edges[-1] > 90 - reach else edges[-1]
    return edges


def field_cells(field: xr.DataArray, central: float | None = None) -> Cells:
    """Cells of a 2-D field, rows and columns ascending.

    field: [latitude, longitude] in degrees, any order and any turn of longitude, or [y, x] in metres (or as their ``units`` say).
    central: longitude in the middle of a global map (None: 0). The cell that straddles the edge of a global map is cut in two, so
    that the map is full.
    """
    if "latitude" not in field.dims:
        values, y = _ascending(field.values, field["y"].values.astype(np.float64), 0)
        values, x = _ascending(values, field["x"].values.astype(np.float64), 1)
        return Cells(values, cell_edges(x) * _kilometres(field["x"]), cell_edges(y) * _kilometres(field["y"]), "plain")
    values, latitude = _ascending(field.values, field["latitude"].values.astype(np.float64), 0)
    longitude, first = np.unique(np.round(field["longitude"].values.astype(np.float64) % 360.0, 6) % 360.0, return_index=True)
    values = values[:, first]
    y = latitude_edges(latitude)
    gaps = np.diff(longitude, append=longitude[0] + 360.0)
    widest = int(np.argmax(gaps))
    if longitude.size < 4 or gaps[widest] > 1.6 * np.median(gaps):
        x = np.roll(np.where(np.arange(longitude.size) <= widest, longitude + 360.0, longitude), -(widest + 1))
        x = x - 360.0 * np.floor((x[x.size // 2] + 180.0) / 360.0)
        return Cells(np.roll(values, -(widest + 1), axis=1), cell_edges(x), y, "region")
    return _global_cells(values, longitude, y, 0.0 if central is None else central)


def _kilometres(axis: xr.DataArray) -> float:
    """Factor from the unit of an axis (metres, unless it says km) to kilometres."""
    return 1.0 if axis.attrs.get("units") == "km" else 1e-3


def _global_cells(values: NDArray[np.float64], longitude: Edges, y: Edges, central: float) -> Cells:
    """Columns in order from ``central - 180`` to ``central + 180``; the one on the seam is there twice, each half to its side."""
    west = central - 180.0
    around = (longitude - west) % 360.0
    order = np.argsort(around)
    around, values = around[order], values[:, order]
    first = (around[-1] - 360.0 + around[0]) / 2
    middles = np.concatenate([[first], (around[1:] + around[:-1]) / 2, [first + 360.0]])
    if middles[0] < -1e-6:  # the first cell begins before the map: its other part ends the map
        middles = np.concatenate([[0.0], middles[1:-1], [middles[0] + 360.0, 360.0]])
        values = np.concatenate([values, values[:, :1]], axis=1)
    elif middles[0] > 1e-6:  # the last cell ends after the map: its other part begins the map
        middles = np.concatenate([[0.0], middles[:-1], [360.0]])
        values = np.concatenate([values[:, -1:], values], axis=1)
    return Cells(values, west + middles, y, "global")


def _ascending(values: NDArray[np.float64], centres: Edges, axis: int) -> tuple[NDArray[np.float64], Edges]:
    order = np.argsort(centres)
    return np.take(values, order, axis=axis), centres[order]


def area_rmse(gap: xr.DataArray) -> float:
    """Root of the mean square over the observed cells, weighted by their area on the sphere (radar: all alike); NaN where none is."""
    cells = field_cells(gap)
    heights = np.diff(cells.y if cells.kind == "plain" else np.sin(np.radians(cells.y)))
    weights = np.where(np.isfinite(cells.values), heights[:, None] * np.diff(cells.x), 0.0)
    total = float(weights.sum())
    return math.sqrt(float((weights * np.nan_to_num(cells.values) ** 2).sum()) / total) if total else math.nan
