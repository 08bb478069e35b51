"""Spherical harmonics of fields and winds on rows of latitude, by least squares.

Harmonics have mean square 1 over the sphere, complex and without the Condon-Shortley sign, P_lm e^{imλ}: the sum of the squares of all
coefficients is the area mean of the square of the field. Rows may lie anywhere: for each order m the coefficients of the degrees m ... L
are those that fit the rows best, each row weighted with its area. That is exact for fields of no degree above L, poles or not, where
a quadrature with equally spaced rows is exact up to half that degree.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from wxlab.grids import Grid, area_weights

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]


def highest_degree(grid: Grid) -> int:
    """The last degree L that the rows determine, rows - 2, and for which the columns know all orders."""
    rows, columns = grid.shape
    return min(rows - 2, (columns - 1) // 2)


def scalar_coefficients(values: Array, grid: Grid) -> Complex:
    """Coefficients a_lm of real fields, m >= 0: [..., H, W] -> [..., L + 1, L + 1], degree by order; 0 for m > l."""
    last = highest_degree(grid)
    waves = np.fft.rfft(values, norm="forward")
    out = np.zeros((*values.shape[:-2], last + 1, last + 1), np.complex128)
    for m in range(last + 1):
        out[..., m:, m] = waves[..., m] @ _fit(grid, last, m, 0).T
    return out


def wind_coefficients(u: Array, v: Array, grid: Grid) -> tuple[Complex, Complex]:
    """Rotational and divergent coefficients of winds: [..., H, W] each -> [..., L + 1, L + 1] each, of mean square 1 as the scalar ones.

    With stream function ψ and velocity potential χ, u = −∂ψ/∂y + ∂χ/∂x and v = ∂ψ/∂x + ∂χ/∂y; the coefficients are those of
    √(l (l + 1)) / a ψ and χ. The sums u ∓ i v are sums of harmonics of spin ±1 in them, so that both are fitted at once, at the
    poles too, where u and v alone are not smooth.
    """
    last = highest_degree(grid)
    waves_u, waves_v = (np.fft.rfft(each, norm="forward") for each in (u, v))
    rotational, divergent = (np.zeros((*u.shape[:-2], last + 1, last + 1), np.complex128) for _ in range(2))
    for m in range(last + 1):
        first = max(m, 1)
        plus = (waves_u[..., m] - 1j * waves_v[..., m]) @ _fit(grid, last, m, 1).T
        minus = (waves_u[..., m] + 1j * waves_v[..., m]) @ _fit(grid, last, m, -1).T
        rotational[..., first:, m] = (plus + minus) / 2
        divergent[..., first:, m] = -1j * (plus - minus) / 2
    return rotational, divergent


def degree_sums(coefficients: Complex) -> Array:
    """Σ_m |a_lm|² over negative orders too: [..., L + 1, L + 1] -> [..., L + 1]."""
    squares = np.abs(coefficients) ** 2
    return np.asarray(squares[..., 0] + 2 * squares[..., 1:].sum(-1))


@lru_cache(maxsize=512)
def _fit(grid: Grid, last: int, m: int, spin: int) -> Array:
    """From rows to coefficients of order m, by weighted least squares: [degrees, H].  spin: 0 for scalars, ±1 for winds."""
    x = np.sin(np.deg2rad(np.asarray(grid.y)))
    basis = legendre(x, last, m) if spin == 0 else _spin_basis(x, last, m, spin)  # [degrees, H]
    root = np.sqrt(area_weights(grid))
    q, r = np.linalg.qr(root[:, None] * basis.T)
    return np.asarray(solve_triangular(r, q.T) * root)


def legendre(x: Array, last: int, m: int, over_cosine: bool = False) -> Array:
    """Associated Legendre functions of order m and degrees m ... last at x = sin(latitude), of mean square 1: [degrees, H].

    over_cosine: divided by cos(latitude), m >= 1, at the poles too.
    """
    cosine = np.sqrt(np.clip(1 - x**2, 0, None))
    k = np.arange(1.0, m + 1)
    first: Array = float(np.prod(np.sqrt((2 * k + 1) / (2 * k)))) * cosine ** (m - 1 if over_cosine else m)
    rows: list[Array] = [first]
    before, e_before = 0 * x, 0.0
    for degree in range(m + 1, last + 1):
        e = float(np.sqrt((degree**2 - m**2) / (4 * degree**2 - 1)))
        rows.append((x * rows[-1] - e_before * before) / e)
        before, e_before = rows[-2], e
    return np.stack(rows)


def _spin_basis(x: Array, last: int, m: int, spin: int) -> Array:
    """What a coefficient of order m adds to u - spin i v, for degrees max(m, 1) ... last: [degrees, H]."""
    if m == 0:
        return -legendre(x, last, 1)  # dP_l0 / dφ is √(l (l + 1)) P_l1
    over = legendre(x, last, m, over_cosine=True)
    degrees = np.arange(float(m), last + 1)[:, None]
    below = np.vstack([np.zeros_like(x), over[:-1]])
    slope = -degrees * x * over + np.sqrt((2 * degrees + 1) * (degrees**2 - m**2) / (2 * degrees - 1)) * below  # dP / dφ
    return (spin * m * over - slope) / np.sqrt(degrees * (degrees + 1))
