"""The HEALPix mesh: equal-area pixels in nested order, in which the descendants of a pixel are neighbours in memory.

Closed form of Gorski et al. 2005, doi:10.1086/427976, section 5; no pixelisation library is needed.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from wxlab.errors import WxlabError

_RING = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])  # of the southernmost corner of each of the 12 faces, in units of nside
_COLUMN = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])
_DEGREE = np.float32(np.pi / 180)


def require_nside(nside: int) -> None:
    """Raise WxlabError unless ``nside`` is a power of two, which nesting needs."""
    if not isinstance(nside, int) or nside < 1 or nside & (nside - 1):
        raise WxlabError(f"nside={nside!r} must be a power of two (1, 2, 4, ...), or pixels do not nest")


def pixels(nside: int) -> int:
    """Number of pixels, 12 nside²."""
    return 12 * nside**2


def _even_bits(word: np.ndarray) -> np.ndarray:
    """Bits 0, 2, 4, ... of each number, side by side."""
    out = np.zeros_like(word)
    for bit in range(32):
        out |= ((word >> (2 * bit)) & 1) << bit
    return out


@lru_cache(maxsize=16)
def centres(nside: int) -> np.ndarray:
    """Longitude (0-360) and latitude of the pixel centres in degrees, nested order: float32 [12 nside², 2], not writeable.

    Computed in float64 and rounded once, which gives the same float32 numbers as the reference implementation for nside 1 ... 128.
    Raises WxlabError unless nside is a power of two.
    """
    require_nside(nside)
    face, within = np.divmod(np.arange(pixels(nside)), nside**2)
    ix, iy = _even_bits(within), _even_bits(within >> 1)
    ring = _RING[face] * nside - ix - iy - 1  # 1 ... 4 nside - 1 from the north
    north, south = ring < nside, ring > 3 * nside
    width = np.where(north, ring, np.where(south, 4 * nside - ring, nside))  # a quarter of the ring's pixels
    shift = np.where(north | south, 0, (ring - nside) % 2)
    t = width**2 / (3 * nside**2)
    z = np.where(north, 1 - t, np.where(south, t - 1, 2 * (2 * nside - ring) / (3 * nside)))
    near_pole = (north | south) & (np.abs(z) > 0.99)
    theta = np.where(near_pole, np.arctan2(np.sqrt(np.abs(t * (2 - t))), z), np.arccos(z))
    column = (_COLUMN[face] * width + ix - iy + 1 + shift) // 2
    column = (column - 1) % (4 * nside) + 1
    phi = (column - (shift + 1) / 2) * (np.pi / 2 / width)
    out = np.stack([phi * 180 / np.pi, 90 - theta * 180 / np.pi], axis=1).astype(np.float32)
    out.setflags(write=False)
    return out


def radians(degrees: np.ndarray) -> Tensor:
    """Degrees as float32 radians by one float32 product: another order of rounding moves points by a bit, and ties to other neighbours."""
    return torch.from_numpy(degrees.astype(np.float32) * _DEGREE)


def unit_vectors(lonlat: np.ndarray) -> Tensor:
    """Points of the unit sphere, ``(cos lat cos lon, cos lat sin lon, sin lat)``: [N, 2] in degrees -> float32 [N, 3]."""
    lon, lat = radians(lonlat).unbind(1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)
