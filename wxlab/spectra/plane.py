"""Spectra of fields on a plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.readers.units import power as power_of_unit


def radial(field: xr.DataArray, *, spacing: float | None = None) -> xr.DataArray:
    """Radially averaged power spectrum of fields on a plane.

    With F(κ) = (1/N) Σ f exp(−2πi κ·r) over the N points, P(k) is the mean of |F(κ)|² over the n(k) modes whose |κ| lies within half
    a ring of k; rings are 1/L apart, L being the longer side. Nothing is tapered, and the corners beyond the Nyquist wavenumber are
    kept, so that Parseval's theorem holds: Σ n(k) P(k) = mean f². The square of the mean is the ring k = 0.

    field: [..., y, x].  spacing: of the points in both directions, metres; None: from the coordinates y and x, evenly spaced.
    Returns [..., wavenumber] in the square of the field's unit, with the coordinates wavenumber (cycles per metre), wavelength
    (metres) and modes, n(k). A field with a missing point has no spectrum: NaN.
    Raises WxlabError for fields without y and x, and for points that are not evenly spaced.
    References: Harris et al. 2001, doi:10.1175/1525-7541(2001)002<0406:MPOAHR>2.0.CO;2; Sinclair and Pegram 2005, doi:10.1002/asl.83.
    """
    if not isinstance(field, xr.DataArray) or not {"y", "x"} <= set(field.dims):
        given = f"the dimensions {', '.join(map(str, field.dims))}" if isinstance(field, xr.DataArray) else f"a {type(field).__name__}"
        raise WxlabError(f"a radial spectrum needs a DataArray with the dimensions y and x, and was given {given}")
    steps = (_step(field, "y"), _step(field, "x")) if spacing is None else (float(spacing), float(spacing))
    if not min(steps) > 0:
        raise WxlabError(f"spacing={spacing!r} must be a positive number of metres")
    leading = [str(dim) for dim in field.dims if dim not in ("y", "x")]
    values = field.transpose(*leading, "y", "x").values
    kept = {str(name): coord for name, coord in field.coords.items() if not {"y", "x"} & set(coord.dims)}
    attrs = {"units": power_of_unit(field.attrs["units"], 2)} if "units" in field.attrs else {}
    spectrum = xr.DataArray(radial_power(values, steps), dims=(*leading, "wavenumber"), coords=kept, attrs=attrs)
    return spectrum.assign_coords(radial_coordinates(values.shape[-2:], steps))


def radial_power(values: np.ndarray, steps: tuple[float, float]) -> np.ndarray:
    """Mean of |F|² in each ring: [..., H, W] -> [..., rings].  steps: between rows and between columns, metres."""
    ring, modes = _rings(values.shape[-2:], steps)
    with np.errstate(invalid="ignore", over="ignore"):  # missing and infinite points leave NaN
        power = np.abs(np.fft.fft2(np.asarray(values, dtype=np.float64), norm="forward")) ** 2
    fields = power.reshape(-1, ring.size)
    place = ring.ravel() + len(modes) * np.arange(len(fields))[:, None]
    sums = np.bincount(place.ravel(), fields.ravel(), minlength=len(fields) * len(modes)).reshape(len(fields), len(modes))
    return np.asarray((sums / np.maximum(modes, 1)).reshape(*values.shape[:-2], len(modes)))


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
