"""Closed contours: whether a field rises by so much on every way out of a point."""

from __future__ import annotations

import numpy as np

from wxlab.cyclones.mesh import Mesh, Window

STEEP = 70.0  # degrees of latitude beyond which rows are no good measure of distance


def may_be_closed(mesh: Mesh, field: np.ndarray, rows: np.ndarray, columns: np.ndarray, depth: float, radius: float) -> np.ndarray:
    """Which points [n] can have a closed contour: along their row and column the field rises by ``depth`` within the radius.

    Quick and necessary, not sufficient: it leaves little for ``closed``.
    """
    height, width = field.shape
    keep = np.ones(len(rows), dtype=bool)
    bar = field[rows, columns] + np.asarray(depth, field.dtype)
    across = np.ceil(radius / mesh.columns / np.maximum(mesh.cos[rows], np.cos(np.deg2rad(STEEP)))).astype(int) + 1
    upright = np.full(len(rows), int(radius / mesh.rows) + 2)
    flat = np.abs(mesh.lat[rows]) < STEEP
    for dy, dx, reach in ((-1, 0, upright), (1, 0, upright), (0, -1, across), (0, 1, across)):
        left = np.flatnonzero(keep & flat) if dx else np.flatnonzero(keep)
        for step in range(1, int(reach[left].max(initial=0)) + 1):
            row, column = rows[left] + dy * step, columns[left] + dx * step
            inside = (row >= 0) & (row < height)
            if mesh.periodic:
                column = column % width
            else:
                inside &= (column >= 0) & (column < width)
            # what lies over a pole is not looked at; a way that leaves a region shows no rise
            over = ~inside & ((row < 0) & mesh.caps[0] | (row >= height) & mesh.caps[1])
            values = field[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
            risen = over | (inside & (values >= bar[left]))
            out = ~risen & (~inside | (step >= reach[left]))
            keep[left[out]] = False
            left = left[~risen & ~out]
            if not len(left):
                break
    return keep


def basin(window: Window, values: np.ndarray, row: int, column: int, depth: float) -> np.ndarray:
    """Points [h, w] that can be reached from one without rising by ``depth`` above it; missing values are as low as it."""
    return window.filled(~(values >= values[row, column] + np.asarray(depth, values.dtype)), row, column)


def closed(window: Window, reached: np.ndarray, radius: float) -> bool:
    """Whether nothing that was reached lies beyond the radius (degrees) or where a region ends."""
    return not (reached & (window.distance > radius + 1e-9)).any() and not window.at_edge(reached)
