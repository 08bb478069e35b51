"""Spectra of fields on a plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.signal.windows import get_window

from wxlab.errors import WxlabError, unknown
from wxlab.readers.units import power as power_of_unit
from wxlab.spectra.pieces import by_pieces

PLANE = ("y", "x")
WINDOWS = ("hann", "hamming", "blackman", "tukey")
Steps = tuple[float, float]  # between rows and between columns, metres


def radial(field: xr.DataArray, *, spacing: float | None = None, window: str | None = None) -> xr.DataArray:
    """Radially averaged power spectrum of fields on a plane.

    With F(κ) = (1/N) Σ f exp(−2πi κ·r) over the N points, P(k) is the mean of |F(κ)|² over the n(k) modes whose |κ| lies within half
    a ring of k; rings are 1/L apart, L being the longer side. The corners beyond the Nyquist wavenumber are kept, so that without a
    window Parseval's theorem holds: Σ n(k) P(k) = mean f². The square of the mean is the ring k = 0.

    field: [..., y, x].  spacing: of the points in both directions, metres; None: from the coordinates y and x, evenly spaced.
    window: ``hann``, ``hamming``, ``blackman`` or ``tukey``: what differs from the mean fades to the sides, which do not fit together,
    and whose steps would else lie over small scales; it is divided by the window's root mean square, so that a field that is alike
    everywhere keeps its variance. None: no window.
    Returns [..., wavenumber] in the square of the field's unit, with the coordinates wavenumber (cycles per metre), wavelength
    (metres) and modes, n(k). A field with a missing point has no spectrum: NaN.
    Raises WxlabError for fields without y and x, points that are not evenly spaced, and a window that is not known.
    References: Harris et al. 2001, doi:10.1175/1525-7541(2001)002<0406:MPOAHR>2.0.CO;2; Sinclair and Pegram 2005, doi:10.1002/asl.83.
    """
    steps = plane_steps(field, spacing)
    shape = field.sizes["y"], field.sizes["x"]
    taper = None if window is None else _taper(window, shape)

    def spectrum(values: np.ndarray) -> np.ndarray:
        if taper is None:
            return radial_power(values, steps)
        mean = values.mean((-2, -1), keepdims=True)
        power = radial_power((values - mean) * taper, steps)
        power[..., 0] += mean[..., 0, 0] ** 2
        return power

    units = power_of_unit(field.attrs["units"], 2) if "units" in field.attrs else None
    coordinates = radial_coordinates(shape, steps)
    result = by_pieces(spectrum, field, core=PLANE, out={"wavenumber": len(coordinates["modes"][1])}, units=units)
    return result.assign_coords(coordinates)


def plane_steps(field: xr.DataArray, spacing: float | None) -> Steps:
    """Spacing of the points of a field [..., y, x]. Raises WxlabError for other fields, and for points that are not evenly spaced."""
    if not isinstance(field, xr.DataArray) or not {"y", "x"} <= set(field.dims):
        given = f"the dimensions {', '.join(map(str, field.dims))}" if isinstance(field, xr.DataArray) else f"a {type(field).__name__}"
        raise WxlabError(f"a radial spectrum needs a DataArray with the dimensions y and x, and was given {given}")
    steps = (_step(field, "y"), _step(field, "x")) if spacing is None else (float(spacing), float(spacing))
    if not min(steps) > 0:
        raise WxlabError(f"spacing={spacing!r} must be a positive number of metres")
    return steps


def _taper(window: str, shape: tuple[int, int]) -> np.ndarray:
    """A window over both axes, of mean square 1."""
    if window not in WINDOWS:
        raise unknown("window", window, WINDOWS)
    y, x = (get_window(window, length) for length in shape)
    taper = y[:, None] * x
    return np.asarray(taper / np.sqrt((taper**2).mean()))


def radial_power(values: np.ndarray, steps: Steps) -> np.ndarray:
    """Mean of |F|² in each ring: [..., H, W] -> [..., rings].  steps: between rows and between columns, metres."""
    waves = plane_waves(values)
    return radial_means(waves, waves, steps)


def plane_waves(values: np.ndarray) -> np.ndarray:
    """Fourier coefficients of fields on a plane: [..., H, W]."""
    with np.errstate(invalid="ignore", over="ignore"):  # missing and infinite points leave NaN
        return np.asarray(np.fft.fft2(np.asarray(values, dtype=np.float64), norm="forward"))


def radial_means(one: np.ndarray, other: np.ndarray, steps: Steps) -> np.ndarray:
    """Mean of Re F G* in each ring, of Fourier coefficients F and G: [..., H, W] -> [..., rings]."""
    ring, modes = _rings(one.shape[-2:], steps)
    with np.errstate(invalid="ignore", over="ignore"):
        fields = (one.real * other.real + one.imag * other.imag).reshape(-1, ring.size)
    place = ring.ravel() + len(modes) * np.arange(len(fields))[:, None]
    sums = np.bincount(place.ravel(), fields.ravel(), minlength=len(fields) * len(modes)).reshape(len(fields), len(modes))
    return np.asarray((sums / np.maximum(modes, 1)).reshape(*one.shape[:-2], len(modes)))


def radial_coordinates(shape: tuple[int, ...], steps: tuple[float, float]) -> dict[str, Any]:
    """Wavenumber (1/m), wavelength (m) and number of modes of each ring."""
    _, modes = _rings(shape, steps)
    wavenumber = np.arange(len(modes)) / _longer_side(shape, steps)
    wavelength = np.divide(1.0, wavenumber, out=np.full(len(modes), np.inf), where=wavenumber > 0)
    return {
        "wavenumber": ("wavenumber", wavenumber, {"units": "m-1", "long_name": "wavenumber"}),
        "wavelength": ("wavenumber", wavelength, {"units": "m", "long_name": "wavelength"}),
        "modes": ("wavenumber", modes),
    }


def _rings(shape: tuple[int, ...], steps: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The ring that each mode of a field belongs to [H, W], and how many modes each ring has."""
    y, x = (np.fft.fftfreq(count, step) for count, step in zip(shape, steps, strict=True))
    ring = np.floor(np.hypot(y[:, None], x[None, :]) * _longer_side(shape, steps) + 0.5).astype(np.int64)
    return ring, np.bincount(ring.ravel())


def _longer_side(shape: tuple[int, ...], steps: tuple[float, float]) -> float:
    return max(count * step for count, step in zip(shape, steps, strict=True))


def _step(field: xr.DataArray, dim: str) -> float:
    """Metres between the points along an axis."""
    if dim not in field.coords:
        raise WxlabError(f"the field has no coordinate {dim!r}; give spacing= in metres")
    steps = np.abs(np.diff(field[dim].values.astype(np.float64)))
    if not steps.size or not np.allclose(steps, steps[0], rtol=1e-3):
        raise WxlabError(f"the points along {dim!r} are not evenly spaced; a radial spectrum needs an even grid")
    return float(steps.mean())
