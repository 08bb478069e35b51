"""Two spectra compared: at each scale, and over bands of scales."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError


def ratio(spectrum: xr.DataArray, reference: xr.DataArray) -> xr.DataArray:
    """Power of one spectrum over that of another at each wavenumber or degree, P / P_reference; NaN where the reference has none.

    Below 1 a forecast is too smooth at that scale, above 1 too rough. Both: as the functions here return them.
    Raises WxlabError when the two have different wavenumbers or degrees.
    """
    dim = _axis(spectrum, reference)
    below = reference.where(reference > 0).assign_coords({dim: spectrum[dim]})
    return (spectrum / below).assign_attrs(units="1")


def band_errors(spectrum: xr.DataArray, reference: xr.DataArray, bands: Mapping[str, tuple[float, float]]) -> xr.Dataset:
    """How much of the reference's power a spectrum has in bands, and how far it is from it at their scales.

    ``ratio`` is Σ P / Σ P_reference over a band, and ``log_error`` the mean over its wavenumbers (or degrees) of |ln(P / P_reference)|:
    0.1 is a tenth too much or too little, and what is too much here does not make up for what is too little there.
    bands: first and last wavenumber or degree by name, both included.
    Returns both variables with the dimension ``band`` in place of the scale; NaN where the reference has no power.
    Raises WxlabError for different wavenumbers or degrees, and for a band that holds none.
    """
    dim = _axis(spectrum, reference)
    reference = reference.assign_coords({dim: spectrum[dim]})
    found = []
    for name, (first, last) in bands.items():
        inside = (spectrum[dim] >= first) & (spectrum[dim] <= last)
        if not bool(inside.any()):
            ends = [float(spectrum[dim][end]) for end in (0, -1)]
            raise WxlabError(f"the band {name!r} from {first} to {last} holds nothing; the spectrum has {dim} {ends[0]:g} to {ends[1]:g}")
        ours, theirs = (each.isel({dim: np.flatnonzero(inside.values)}) for each in (spectrum, reference))
        total = theirs.sum(dim, skipna=False)
        quotient = ours.where(ours > 0) / theirs.where(theirs > 0)
        distance = abs(xr.apply_ufunc(np.log, quotient, dask="allowed"))
        found.append(xr.Dataset({"ratio": ours.sum(dim, skipna=False) / total.where(total > 0), "log_error": distance.mean(dim)}))
    if not found:
        raise WxlabError("bands names no band; give first and last by name, such as bands={'large': (1, 10)}")
    return xr.concat(found, dim=xr.Variable("band", list(bands))).map(lambda each: each.assign_attrs(units="1"))


def effective_resolution(
    spectrum: xr.DataArray, reference: xr.DataArray, threshold: float = 0.5, *, last: float | None = None
) -> xr.DataArray:
    """The wavelength from which on a spectrum stays under a share of the reference's power.

    Where P / P_reference falls under the threshold for good, linear between neighbouring scales in the logarithm of the wavelength. NaN
    where it never does; the longest wavelength where it is under from the first on.

    spectrum, reference: as the functions here return them, the constant (wavenumber 0) left out.  threshold: above 0 and below 1.
    last: the last degree or wavenumber that counts, where the data resolve no more; None: all at which the reference has power.
    Returns metres, without the dimension of scales.
    Raises WxlabError for different wavenumbers or degrees, one or none below ``last``, and a threshold out of its range.
    Reference: Skamarock 2004, doi:10.1175/MWR2830.1, section 4.
    """
    if not 0 < threshold < 1:
        raise WxlabError(f"threshold={threshold!r} must lie above 0 and below 1; 0.5 is usual")
    dim = _axis(spectrum, reference)
    if "wavelength" not in spectrum.coords or spectrum["wavelength"].dims != (dim,):
        raise WxlabError(f"the spectrum has no one wavelength for each {dim}; give a spectrum by degree or in rings, or one circle")
    scales = spectrum[dim].values
    counted = np.flatnonzero((scales > 0) & (scales <= (np.inf if last is None else last)))
    if len(counted) < 2:
        raise WxlabError(f"last={last!r} leaves {len(counted)} scales; the spectrum has {dim} {scales[0]:g} to {scales[-1]:g}")
    share = ratio(spectrum, reference).isel({dim: counted})
    wavelength = spectrum["wavelength"].values[counted]

    def crossing(shares: np.ndarray) -> np.ndarray:
        found = [_falls(each, wavelength, threshold) for each in shares.reshape(-1, shares.shape[-1])]
        return np.reshape(found, shares.shape[:-1])

    whole = share.chunk({dim: -1}) if share.chunks is not None else share
    result: xr.DataArray = xr.apply_ufunc(crossing, whole, input_core_dims=[[dim]], dask="parallelized", output_dtypes=[np.float64])
    return result.assign_attrs(units="m", long_name="effective resolution")


def _falls(share: np.ndarray, wavelength: np.ndarray, threshold: float) -> float:
    """Where a ratio falls under the threshold for good; scales at which it is not known are passed over."""
    known = np.flatnonzero(np.isfinite(share))
    share, scale = share[known], np.log(wavelength[known])
    above = np.flatnonzero(share >= threshold)
    if not len(share) or (len(above) and above[-1] == len(share) - 1):
        return float("nan")
    if not len(above):
        return float(np.exp(scale[0]))
    i = above[-1]
    return float(np.exp(scale[i] + (scale[i + 1] - scale[i]) * (share[i] - threshold) / (share[i] - share[i + 1])))


def _axis(spectrum: xr.DataArray, reference: xr.DataArray) -> str:
    """The dimension of scales, the same in both."""
    dims = [str(dim) for dim in reference.dims if "wavenumber" in str(dim) or dim == "degree"]
    same = bool(dims) and all(dim in spectrum.dims and spectrum.sizes[dim] == reference.sizes[dim] for dim in dims)
    if not same or not all(np.allclose(spectrum[dim], reference[dim]) for dim in dims):
        raise WxlabError("the two spectra have different wavenumbers or degrees; make both from fields on one grid")
    return dims[0]
