"""Where a token is: rotary tables for time, latitude and longitude (GeoRoPE), and what the paper could have taken instead.

A head's channels are split over (time, latitude, longitude); in each part of d, adjacent pairs (2k, 2k + 1) turn by
``position theta^(-2k/d)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import xarray as xr
from scipy.special import gammaln, lpmv
from torch import Tensor, nn

from wxlab.grids import Grid

Position = Literal["geo", "rotary", "learned", "spherical_harmonics"]
DEGREE = 8  # of the spherical harmonics: as fine as 18 rows resolve


class Rotary:
    """Rotary tables of tokens in time, latitude and longitude.

    theta: base of the frequencies.  axes: channels for time, latitude and longitude; they sum to the width of a head.
    y, x: first and last position of rows and columns, between which they are evenly spaced (``None``: no turn in space).
    """

    def __init__(
        self, theta: float, axes: Sequence[int], y: tuple[float, float] | None = None, x: tuple[float, float] | None = None
    ) -> None:
        self.theta, self.axes, self.y, self.x = theta, tuple(axes), y, x

    def table(self, first: int, frames: int, rows: int, columns: int, device: torch.device) -> Tensor:
        """Turns as complex numbers [frames rows columns, 1, head / 2]; frames are numbered from ``first`` (0: the initial time)."""
        return _table(self.theta, self.axes, self.y, self.x, (first, frames, rows, columns), device)


@lru_cache(maxsize=32)
def _table(
    theta: float,
    axes: tuple[int, ...],
    y: tuple[float, float] | None,
    x: tuple[float, float] | None,
    size: tuple[int, int, int, int],
    device: torch.device,
) -> Tensor:
    first, *shape = size
    frames, rows, columns = shape
    places = [torch.arange(first, first + frames).float()]
    for ends, count in ((y, rows), (x, columns)):
        places.append(torch.zeros(count) if ends is None else torch.linspace(*ends, count))
    parts = []
    for axis, (place, width) in enumerate(zip(places, axes, strict=True)):
        frequencies = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
        angles = torch.outer(place, frequencies)  # [n, width / 2]
        view = [1, 1, 1, width // 2]
        view[axis] = len(place)
        parts.append(angles.view(view).expand(*shape, -1))
    angles = torch.cat(parts, dim=-1).flatten(0, 2)
    return torch.complex(angles.cos(), angles.sin()).unsqueeze(1).to(device)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs of x [B, N, heads, d] by a table [N, 1, d / 2]; at least in float32."""
    wide = x if x.dtype == torch.float64 else x.float()
    turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * table
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def rotary(position: Position, theta: float, axes: Sequence[int], grid: Grid, latitude_factor: float) -> Rotary:
    """The rotary tables of a kind of position.

    geo: angles in space are ``latitude_factor`` times the latitude and the longitude, in radians. In the published code the factor is 6
    (latitudes span 6 pi), in the paper 3. Longitude is exactly periodic for the first frequency only.  rotary: row and column numbers.
    Others turn in time alone, and have their place added to the tokens.
    """
    rows, columns = grid.shape
    if position == "geo":
        y, x = (float(np.deg2rad(latitude_factor * edge)) for edge in (grid.y[0], grid.y[-1])), map(np.deg2rad, (grid.x[0], grid.x[-1]))
        return Rotary(theta, axes, tuple(y), tuple(map(float, x)))  # type: ignore[arg-type]
    if position == "rotary":
        return Rotary(theta, axes, (0.0, rows - 1.0), (0.0, columns - 1.0))
    return Rotary(theta, axes)


def likeness(
    grid: Grid,
    latitude: float,
    longitude: float,
    *,
    position: Position = "geo",
    latitude_factor: float = 6.0,
    theta: float = 256.0,
    width: int = 56,
) -> xr.DataArray:
    """How alike the turns of all tokens of a grid are to those of the token nearest to a place, 1 where they are the same.

    The mean of ``cos((position - position') theta^(-2k/d))`` over the frequencies of latitude and longitude, ``width`` channels each: what
    rotation makes of the product of a query and a key that are equal, all channels alike. Learned places are not told.
    """
    rows, columns = grid.shape
    table = rotary(position, theta, (0, width, width), grid, latitude_factor).table(0, 1, rows, columns, torch.device("cpu"))[:, 0]
    apart = [(np.asarray(axis) - place + 180) % 360 - 180 for axis, place in ((grid.y, latitude), (grid.x, longitude))]
    here = int(np.abs(apart[0]).argmin()) * columns + int(np.abs(apart[1]).argmin())
    alike = (table * table[here].conj()).real.mean(-1).view(rows, columns).numpy()
    return xr.DataArray(alike, dims=grid.dims, coords={dim: list(axis) for dim, axis in zip(grid.dims, (grid.y, grid.x), strict=True)})


class LearnedPlaces(nn.Module):
    """A learned vector for each token of the grid, added."""

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(rows * columns, width) * 0.02)

    def forward(self) -> Tensor:
        return self.table


class HarmonicPlaces(nn.Module):
    """A learned linear map of the real spherical harmonics at each token of the grid, added.

    Reference: Rußwurm et al. 2024, Geographic location encoding with spherical harmonics, arXiv:2310.06743.
    """

    basis: Tensor

    def __init__(self, latitude: Sequence[float], longitude: Sequence[float], width: int) -> None:
        super().__init__()
        basis = spherical_harmonics(latitude, longitude, DEGREE)
        self.register_buffer("basis", torch.from_numpy(basis).float(), persistent=False)
        self.map = nn.Linear(basis.shape[1], width, bias=False)

    def forward(self) -> Tensor:
        return self.map(self.basis)


def spherical_harmonics(latitude: Sequence[float], longitude: Sequence[float], degree: int) -> np.ndarray:
    """Real spherical harmonics of degrees 0..degree, orthonormal on the sphere: [rows columns, (degree + 1)²], float64.

    latitude, longitude: degrees, of rows and of columns.
    """
    sine, turn = np.sin(np.deg2rad(np.asarray(latitude, float)))[:, None], np.deg2rad(np.asarray(longitude, float))[None, :]
    columns = []
    for n in range(degree + 1):
        for m in range(-n, n + 1):
            k = abs(m)
            norm = np.sqrt((2 * n + 1) / (4 * np.pi) * np.exp(gammaln(n - k + 1) - gammaln(n + k + 1)) * (2 if m else 1))
            wave = np.cos(k * turn) if m >= 0 else np.sin(k * turn)
            columns.append((norm * lpmv(k, n, sine) * wave).ravel())
    return np.stack(columns, axis=1)
