"""Spherical harmonics of fields and winds on rows of latitude, by least squares.

Harmonics have mean square 1 over the sphere, complex and without the Condon-Shortley sign, P_lm e^{imλ}: the sum of the squares of all
coefficients is the area mean of the square of the field. Rows may lie anywhere: for each order m the coefficients of the degrees m ... L
are those that fit the rows best, each row weighted with its area. That is exact for fields of no degree above L, poles or not, where
a quadrature with equally spaced rows is exact up to half that degree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.linalg import lapack

from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Fits = tuple[Array, ...]  # of one order: of all degrees, or of those even and odd about the equator

ROOM = 2**30  # bytes of fits that are kept for the next fields


def highest_degree(grid: Grid) -> int:
    """The last degree L that the rows determine, rows - 2, and for which the columns know all orders."""
    rows, columns = grid.shape
    return min(rows - 2, (columns - 1) // 2)


def scalar_coefficients(values: Array, grid: Grid) -> Complex:
    """Coefficients a_lm of real fields, m >= 0: [..., H, W] -> [..., L + 1, L + 1], degree by order; 0 for m > l."""
    last = highest_degree(grid)
    return _shaped(_fitted(_waves(values, last), grid, last, 0), values.shape[:-2])


def wind_coefficients(u: Array, v: Array, grid: Grid) -> tuple[Complex, Complex]:
    """Rotational and divergent coefficients of winds: [..., H, W] each -> [..., L + 1, L + 1] each, of mean square 1 as the scalar ones.

    With stream function ψ and velocity potential χ, u = −∂ψ/∂y + ∂χ/∂x and v = ∂ψ/∂x + ∂χ/∂y; the coefficients are those of
    √(l (l + 1)) / a ψ and χ. The sums u ∓ i v are sums of harmonics of spin ±1 in them, so that both are fitted at once, at the
    poles too, where u and v alone are not smooth.
    """
    last = highest_degree(grid)
    waves_u, waves_v = (_waves(each, last) for each in (u, v))
    waves_plus, waves_minus = waves_u - 1j * waves_v, waves_u + 1j * waves_v
    if _mirrored(grid):  # harmonics of spin -1 are those of spin 1 upside down, so that one fit serves both
        both = _fitted(np.concatenate([waves_plus, waves_minus[:, ::-1]], axis=-1), grid, last, 1)
        plus, minus = np.split(both, 2, axis=-1)
        number = np.arange(last + 1)
        minus *= (-1.0) ** (1 + number[:, None] + number)[..., None]
    else:
        plus, minus = _fitted(waves_plus, grid, last, 1), _fitted(waves_minus, grid, last, -1)
    rotational: Complex = (plus + minus) / 2
    divergent: Complex = -0.5j * (plus - minus)
    return _shaped(rotational, u.shape[:-2]), _shaped(divergent, u.shape[:-2])


def synthesis(coefficients: Complex, grid: Grid) -> Array:
    """The real fields of scalar coefficients, m >= 0: [..., L + 1, L + 1] -> [..., H, W]."""
    x, longitude = np.sin(np.deg2rad(np.asarray(grid.y))), np.deg2rad(np.asarray(grid.x))
    last = coefficients.shape[-1] - 1
    total = np.zeros((*coefficients.shape[:-2], *grid.shape))
    for m in range(last + 1):
        rows = coefficients[..., m:, m] @ legendre(x, last, m)  # [..., H]
        total += (2 if m else 1) * (rows[..., None] * np.exp(1j * m * longitude)).real
    return total


def degree_sums(coefficients: Complex, others: Complex | None = None) -> Array:
    """Σ_m a_lm b*_lm over negative orders too, which is real: [..., L + 1, L + 1] -> [..., L + 1].  others: b; None: a itself."""
    others = coefficients if others is None else others
    products = coefficients.real * others.real + coefficients.imag * others.imag
    return np.asarray(2 * products.sum(-1) - products[..., 0])


def _waves(values: Array, last: int) -> Complex:
    """Fourier coefficients along longitude, the orders first: [..., H, W] -> [last + 1, H, fields]."""
    fields = np.ascontiguousarray(values.reshape(-1, *values.shape[-2:]).transpose(2, 1, 0))
    return np.asarray(fft.rfft(fields, axis=0, norm="forward", overwrite_x=True)[: last + 1])


def _shaped(coefficients: Complex, leading: tuple[int, ...]) -> Complex:
    """[order, degree, fields] -> [..., degree, order]."""
    return coefficients.transpose(2, 1, 0).reshape(*leading, *coefficients.shape[1::-1])


def _fitted(waves: Complex, grid: Grid, last: int, spin: int) -> Complex:
    """Coefficients of waves along longitude: [order, H, fields] -> [order, degree, fields]; 0 for m > l.  spin: ±1 for winds."""
    out = np.zeros((last + 1, last + 1, waves.shape[-1]), np.complex128)
    real = np.ascontiguousarray(waves).view(np.float64)  # [order, H, 2 fields]
    half = (len(grid.y) + 1) // 2
    for m, fits in enumerate(_fits(grid, last, spin)):
        rows, place = real[m], out[m].view(np.float64)
        if len(fits) == 2:
            north, south = rows[:half], rows[::-1][:half]
            place[m::2] = fits[0] @ (north + south)
            if len(fits[1]):
                place[m + 1 :: 2] = fits[1] @ (north - south)
        else:
            place[max(m, abs(spin)) :] = fits[0] @ rows
    return out


_kept: dict[tuple[Grid, int, int], list[Fits]] = {}
_lock = Lock()


def _fits(grid: Grid, last: int, spin: int) -> Iterable[Fits]:
    """The fits of all orders, kept for the next fields where there is room."""
    rows = (len(grid.y) + 1) // 2 if spin == 0 and _mirrored(grid) else len(grid.y)
    if (last + 1) * (last + 2) // 2 * rows * 8 > ROOM:
        return _orders(grid, last, spin)
    with _lock:
        key = (grid, last, spin)
        plan = _kept.pop(key, None) or list(_orders(grid, last, spin))
        _kept[key] = plan  # the newest last
        while sum(fit.nbytes for kept in _kept.values() for fits in kept for fit in fits) > ROOM:
            del _kept[next(iter(_kept))]
        return plan


def _mirrored(grid: Grid) -> bool:
    y = np.asarray(grid.y)
    return bool(np.allclose(y, -y[::-1], rtol=0, atol=1e-9))


def _orders(grid: Grid, last: int, spin: int) -> Iterator[Fits]:
    """From rows to coefficients of each order m = 0 ... last: one fit, or where rows mirror each other those of the sums and differences
    of north and south, for degrees of which l − m is even and odd."""
    x, weights = np.sin(np.deg2rad(np.asarray(grid.y))), area_weights(grid)
    if spin != 0 or not _mirrored(grid):
        for m in range(last + 1):
            yield (least_squares(legendre(x, last, m) if spin == 0 else _spin_basis(x, last, m, spin), weights),)
        return
    half = (len(x) + 1) // 2
    x, weights = x[:half], weights[:half]
    if len(grid.y) % 2:
        weights = np.append(weights[:-1], weights[-1] / 2)  # the equator is its own mirror
    for m in range(last + 1):
        basis = legendre(x, last, m)
        parts = [np.ascontiguousarray(basis[start::2]) for start in (0, 1)]
        yield tuple(least_squares(part, weights) / 2 if len(part) else part for part in parts)


def least_squares(basis: Array, weights: Array) -> Array:
    """From values at rows to the coefficients of functions that fit them best: [degrees, H] -> [degrees, H].

    Raises WxlabError where the rows do not tell the functions apart.
    """
    weighted = basis * weights
    factor, lost = lapack.dpotrf(weighted @ basis.T, lower=1)
    if lost or factor.diagonal().min() < 1e-4 * factor.diagonal().max():
        raise WxlabError("the latitudes are too irregular to tell spherical harmonics apart; regrid the fields to even rows first")
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    return np.asarray((np.tril(inverse) + np.tril(inverse, -1).T) @ weighted)


def legendre(x: Array, last: int, m: int, over_cosine: bool = False) -> Array:
    """Associated Legendre functions of order m and degrees m ... last at x = sin(latitude), of mean square 1: [degrees, H].

    over_cosine: divided by cos(latitude), m >= 1, at the poles too.
    """
    cosine = np.sqrt(np.clip(1 - x**2, 0, None))
    k = np.arange(1.0, m + 1)
    degree = np.arange(float(m), last + 1)
    e = np.sqrt((degree**2 - m**2) / (4 * degree**2 - 1)).tolist()
    out = np.empty((len(degree), len(x)))
    out[0] = float(np.prod(np.sqrt((2 * k + 1) / (2 * k)))) * cosine ** (m - 1 if over_cosine else m)
    out[0, out[0] < 1e-290] = 0.0  # numbers near the smallest are slow, and what grows from them is nothing
    if len(out) > 1:
        out[1] = x * out[0] / e[1]
    for i in range(2, len(out)):
        np.multiply(x, out[i - 1], out=out[i])
        out[i] -= e[i - 1] * out[i - 2]
        out[i] /= e[i]
    return out


def _spin_basis(x: Array, last: int, m: int, spin: int) -> Array:
    """What a coefficient of order m adds to u - spin i v, for degrees max(m, 1) ... last: [degrees, H]."""
    if m == 0:
        return -legendre(x, last, 1)  # dP_l0 / dφ is √(l (l + 1)) P_l1
    over = legendre(x, last, m, over_cosine=True)
    degrees = np.arange(float(m), last + 1)[:, None]
    below = np.vstack([np.zeros_like(x), over[:-1]])
    slope = -degrees * x * over + np.sqrt((2 * degrees + 1) * (degrees**2 - m**2) / (2 * degrees - 1)) * below  # dP / dφ
    return (spin * m * over - slope) / np.sqrt(degrees * (degrees + 1))
