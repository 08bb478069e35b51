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
        distance: xr.DataArray = abs(xr.apply_ufunc(np.log, ours.where(ours > 0) / theirs.where(theirs > 0)))
        found.append(xr.Dataset({"ratio": ours.sum(dim, skipna=False) / total.where(total > 0), "log_error": distance.mean(dim)}))
    if not found:
        raise WxlabError("bands names no band; give first and last by name, such as bands={'large': (1, 10)}")
    return xr.concat(found, dim=xr.Variable("band", list(bands))).map(lambda each: each.assign_attrs(units="1"))


def _axis(spectrum: xr.DataArray, reference: xr.DataArray) -> str:
    """The dimension of scales, the same in both."""
    dims = [str(dim) for dim in reference.dims if "wavenumber" in str(dim) or dim == "degree"]
    same = bool(dims) and all(dim in spectrum.dims and spectrum.sizes[dim] == reference.sizes[dim] for dim in dims)
    if not same or not all(np.allclose(spectrum[dim], reference[dim]) for dim in dims):
        raise WxlabError("the two spectra have different wavenumbers or degrees; make both from fields on one grid")
    return dims[0]
