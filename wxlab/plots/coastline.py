"""The coastline that the package carries: Natural Earth 1:110 million, public domain. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Line = NDArray[np.float64]

COASTLINE_FILE = Path(__file__).parent.parent / "data" / "coastline_110m.npz"


@cache
def _carried() -> tuple[Line, ...]:
    with np.load(COASTLINE_FILE) as stored:
        points = stored["points"].astype(np.float64)
        return tuple(np.split(points, stored["starts"][1:]))


@cache
def coastline(west: float = -180.0) -> tuple[Line, ...]:
    """Coastlines as [n, 2] arrays of longitude and latitude (degrees), longitudes in [west, west + 360].

    west: left edge of the map, -180 or 0 for the usual ones.  Returns lines split at that edge, so none jumps over the map.
    """
    return tuple(split_at(_carried(), west))


def split_at(lines: Sequence[Line], west: float) -> list[Line]:
    """Shift longitudes into [west, west + 360] and cut every line where it crosses the edge.

    lines: [n, 2] arrays of longitude and latitude (degrees) whose neighbours are joined the shorter way round.
    Returns the pieces; where a line was cut, both pieces end on the edge at the interpolated latitude.
    """
    pieces = []
    for line in lines:
        begin: int | np.integer = 0
        longitude, latitude = np.unwrap(line[:, 0], period=360.0), line[:, 1]
        turn = np.floor((longitude - west) / 360.0)
        start: list[Line] = []
        for after in np.flatnonzero(np.diff(turn)) + 1:
            edge = west + 360.0 * max(turn[after - 1], turn[after])
            part = (edge - longitude[after - 1]) / (longitude[after] - longitude[after - 1])
            crossing = np.array([[edge, latitude[after - 1] + part * (latitude[after] - latitude[after - 1])]])
            pieces.append(_piece(start, longitude[begin:after], latitude[begin:after], crossing, turn[after - 1]))
            start, begin = [crossing], after
        pieces.append(_piece(start, longitude[begin:], latitude[begin:], None, turn[-1]))
    return [piece for piece in pieces if len(piece) > 1]


def _piece(start: list[Line], longitude: Line, latitude: Line, end: Line | None, turn: float) -> Line:
    """One piece of a line moved by whole turns, without points that repeat."""
    parts = [*start, np.stack([longitude, latitude], axis=1), *([] if end is None else [end])]
    piece = np.concatenate(parts)
    piece[:, 0] -= 360.0 * turn
    moved = np.any(np.diff(piece, axis=0) != 0, axis=1)
    return piece[np.concatenate([[True], moved])]
