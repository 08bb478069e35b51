"""Spectra along circles of latitude."""

from __future__ import annotations

import numpy as np
import xarray as xr

from wxlab.readers.units import power as power_of_unit
from wxlab.spectra.pieces import by_pieces
from wxlab.spectra.sphere import EARTH_RADIUS, SPHERE, on_circles


def zonal(field: xr.DataArray) -> xr.DataArray:
    """Energy spectrum along each circle of latitude, as WeatherBench 2 defines it.

    With C the length of the circle and F(k) = (1/W) Σ f exp(−2πi k j/W): S(0) = C |F(0)|², S(k) = 2 C |F(k)|² for k > 0, so that
    Σ S(k) = ∫ f² dl round the circle (with an even number of columns, the wave of two columns counts twice).

    field: [..., latitude, longitude], evenly spaced columns all round; any latitudes.
    Returns [..., latitude, zonal_wavenumber] in the square of the field's unit times metres, with the coordinates frequency (cycles per
    metre) and wavelength (metres) [latitude, zonal_wavenumber]. A circle with a missing point has no spectrum: NaN.
    Raises WxlabError for a field that does not go round the globe.
    Reference: Rasp et al. 2024, doi:10.1029/2023MS004019; WeatherBench 2, ``ZonalEnergySpectrum``.
    """
    field, grid = on_circles(field)
    latitude, columns = field["latitude"], len(grid.x)
    length = 2 * np.pi * EARTH_RADIUS * np.cos(np.deg2rad(latitude.values.astype(np.float64)))[:, None]  # [H, 1]
    wavenumber = np.arange(columns // 2 + 1)

    def spectrum(values: np.ndarray) -> np.ndarray:
        waves = np.abs(np.fft.rfft(values, norm="forward")) ** 2
        waves[..., 1:] *= 2
        return np.asarray(waves * length)

    units = power_of_unit(field.attrs["units"], 2) + " m" if "units" in field.attrs else None
    # on a name of its own, so that it is no dimension that goes in
    out = {"circle": len(latitude), "zonal_wavenumber": len(wavenumber)}
    energy = by_pieces(spectrum, field, core=SPHERE, out=out, units=units).rename(circle="latitude")
    with np.errstate(divide="ignore"):
        frequency = np.where(length > 1.0, wavenumber / length, np.where(wavenumber > 0, np.inf, 0))  # poles are no circles
        wavelength = np.where(frequency > 0, 1 / frequency, np.inf)
    return energy.assign_coords(
        latitude=latitude,
        zonal_wavenumber=("zonal_wavenumber", wavenumber),
        frequency=(("latitude", "zonal_wavenumber"), frequency, {"units": "m-1"}),
        wavelength=(("latitude", "zonal_wavenumber"), wavelength, {"units": "m"}),
    )
