"""Places on a latitude-longitude grid: local windows of it, neighbours over the date line and the poles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wxlab.cyclones.sphere import Array

EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Window:
    """The part of a grid around a point: ``values = field[window.rows][:, window.columns]``."""

    rows: slice
    columns: np.ndarray  # ascending, modulo the width
    distance: Array  # [h, w], degrees from the point
    whole: bool  # the columns go round the globe
    caps: tuple[bool, bool]  # whether the first and the last row lie at a pole
    edges: tuple[bool, bool, bool, bool]  # whether the first and last row and the first and last column end a region

    def of(self, field: np.ndarray) -> np.ndarray:
        return field[self.rows].take(self.columns, axis=1)

    def filled(self, inside: np.ndarray, row: int, column: int) -> np.ndarray:
        """The points of ``inside`` [h, w] that are connected with one of them, over the date line and a pole too."""
        labels, count = ndimage.label(inside, EIGHT)
        if (self.whole or any(self.caps)) and count > 1:
            labels = _joined(labels, count, self.whole, self.caps)
        here = labels[row, column]
        return labels == here if here else np.zeros_like(inside)

    def at_edge(self, inside: np.ndarray) -> bool:
        """Whether some of the points lie where a region ends."""
        first, last, left, right = self.edges
        return bool(
            (first and inside[0].any()) or (last and inside[-1].any()) or (left and inside[:, 0].any()) or (right and inside[:, -1].any())
        )


def _joined(labels: np.ndarray, count: int, whole: bool, caps: tuple[bool, bool]) -> np.ndarray:
    """Labels where what touches over the seam of a full circle, or in the row of a pole, is one."""
    pairs = []
    if whole:
        left, right = labels[:, 0], labels[:, -1]
        for shift in (-1, 0, 1):
            other = np.zeros_like(right)
            low, high = max(0, shift), len(right) + min(0, shift)
            other[low:high] = right[low - shift : high - shift]
            pairs.append(np.stack([left, other]))
    for cap, row in zip(caps, (labels[0], labels[-1]), strict=True):
        if cap and row.any():
            pairs.append(np.stack([row, np.full_like(row, row[row > 0][0])]))
    if not pairs:
        return labels
    one, other = np.concatenate(pairs, axis=1)
    both = (one > 0) & (other > 0)
    graph = coo_array((np.ones(both.sum(), dtype=np.int8), (one[both], other[both])), shape=(count + 1, count + 1))
    _, group = connected_components(graph, directed=False)
    merged = group[labels] + 1
    merged[labels == 0] = 0
    return merged


class Mesh:
    """Rows and columns in degrees."""

    def __init__(self, lat: Array, lon: Array, periodic: bool) -> None:
        self.lat, self.lon, self.periodic = lat, lon, periodic
        self.rows = float(np.median(np.abs(np.diff(lat))))  # degrees
        self.columns = float(np.median(np.abs(np.diff(lon))))
        self.cos = np.cos(np.deg2rad(lat))
        # rows at a pole, or so near that nothing lies between
        first, last = (bool(periodic and abs(lat[k]) + 0.75 * self.rows >= 90) for k in (0, -1))
        self.caps = first, last

    def window(self, lat: float, lon: float, radius: float) -> Window | None:
        """All points within ``radius`` degrees and at least one more on each side; None where the point lies outside the grid."""
        reach = radius + 1.01 * self.rows
        near = np.flatnonzero(np.abs(self.lat - lat) <= reach)
        if not len(near):
            return None
        rows = slice(int(near[0]), int(near[-1]) + 1)
        columns, whole = self._columns(lat, lon, radius)
        if not len(columns):
            return None
        half = np.sin(np.deg2rad(self.lat[rows] - lat) / 2) ** 2
        turn = np.sin(np.deg2rad(self.lon[columns] - lon) / 2) ** 2
        squared = half[:, None] + (np.cos(np.deg2rad(lat)) * self.cos[rows])[:, None] * turn
        distance = np.rad2deg(2 * np.arcsin(np.sqrt(np.minimum(squared, 1.0))))
        ends = rows.start == 0, rows.stop == len(self.lat)
        caps = ends[0] and self.caps[0], ends[1] and self.caps[1]
        sides = (False, False) if self.periodic else (columns[0] == 0, columns[-1] == len(self.lon) - 1)
        edges = ends[0] and not caps[0], ends[1] and not caps[1], bool(sides[0]), bool(sides[1])
        return Window(rows, columns, distance, whole, caps, edges)

    def _columns(self, lat: float, lon: float, radius: float) -> tuple[np.ndarray, bool]:
        """Columns of a window, and whether they go all round."""
        width = len(self.lon)
        cosine, sine = np.cos(np.deg2rad(lat)), np.sin(np.deg2rad(radius))
        half = np.rad2deg(np.arcsin(sine / cosine)) if sine < cosine and radius < 90 else 180.0
        count = int(half / self.columns) + 2
        if self.periodic and 2 * count + 1 >= width:
            middle = round((lon - self.lon[0]) / self.columns)
            return (middle - width // 2 + np.arange(width)) % width, True
        if self.periodic:
            middle = round((lon - self.lon[0]) / self.columns)
            return (middle + np.arange(-count, count + 1)) % width, False
        away = (self.lon - lon + 180) % 360 - 180
        return np.flatnonzero(np.abs(away) <= count * self.columns), False

    def nearest(self, lat: float, lon: float) -> tuple[int, int]:
        """Row and column of the grid point nearest to a position."""
        row = int(np.abs(self.lat - lat).argmin())
        return row, int(np.abs((self.lon - lon + 180) % 360 - 180).argmin())

    def highest_between(
        self, field: np.ndarray, rows: np.ndarray, columns: np.ndarray, to_rows: np.ndarray, to_columns: np.ndarray
    ) -> np.ndarray:
        """The highest value on the straight way, from point to neighbouring point, between pairs of points [n]."""
        width = field.shape[1]
        down, right = to_rows - rows, to_columns - columns
        if self.periodic:
            right = (right + width // 2) % width - width // 2
        steps = np.maximum(np.abs(down), np.abs(right))
        highest = np.full(len(rows), -np.inf)
        for step in range(int(steps.max(initial=0)) + 1):
            share = np.minimum(step / np.maximum(steps, 1), 1)
            row, column = rows + np.rint(share * down).astype(int), columns + np.rint(share * right).astype(int)
            highest = np.maximum(highest, field[row, column % width])
        return highest

    @cached_property
    def pole_rows(self) -> tuple[bool, bool]:
        """Whether the first and the last row are a pole itself: one point written many times."""
        return abs(self.lat[0]) > 90 - 1e-6, abs(self.lat[-1]) > 90 - 1e-6

    def minima(self, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the points [n] that none of their eight neighbours is below; of equal neighbours the first.

        Points at the edge of a region are none: their minimum may lie outside. NaN counts as high.
        """
        padded = np.full((field.shape[0] + 2, field.shape[1] + 2), np.inf, dtype=field.dtype)
        padded[1:-1, 1:-1] = np.where(np.isnan(field), np.inf, field) if np.isnan(field.sum()) else field
        width = field.shape[1]
        if self.periodic:
            for outer, inner, pole, cap in ((0, 1, self.pole_rows[0], self.caps[0]), (-1, -2, self.pole_rows[1], self.caps[1])):
                if cap and not pole and width % 2 == 0:
                    padded[outer, 1:-1] = np.roll(padded[inner, 1:-1], width // 2)  # over the pole
            padded[:, 0], padded[:, -1] = padded[:, -2], padded[:, 1]
        centre = padded[1:-1, 1:-1]
        lowest = np.isfinite(centre)
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                if (dy, dx) == (1, 1):
                    continue
                other = padded[dy : dy + field.shape[0], dx : dx + width]
                lowest &= centre < other if (dy, dx) < (1, 1) else centre <= other
        self._trim(lowest, centre)
        rows, columns = np.nonzero(lowest)
        return rows, columns

    def _trim(self, lowest: np.ndarray, field: np.ndarray) -> None:
        """Take out the edges of a region; a pole is one point with the next row as neighbours."""
        if not self.periodic:
            lowest[:, [0, -1]] = False
        for k, inner in ((0, 1), (-1, -2)):
            if not self.caps[k]:
                lowest[k] = False
            elif self.pole_rows[k]:
                lowest[k] = False
                lowest[k, 0] = np.isfinite(field[k, 0]) and field[k, 0] < field[inner].min()
