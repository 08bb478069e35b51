"""Spectra: how much of a field's variance, or of the wind's energy, lies at which scale."""

from __future__ import annotations

from wxlab.spectra.bands import band_errors, ratio
from wxlab.spectra.circles import zonal
from wxlab.spectra.plane import radial, radial_coordinates, radial_power
from wxlab.spectra.sphere import kinetic_energy, power

__all__ = ["band_errors", "kinetic_energy", "power", "radial", "radial_coordinates", "radial_power", "ratio", "zonal"]
