"""Spectra: how much of a field's variance, or of the wind's energy, lies at which scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wxlab.spectra.bands import band_errors, effective_resolution, ratio
from wxlab.spectra.circles import zonal
from wxlab.spectra.coherence import coherence
from wxlab.spectra.plane import radial, radial_coordinates, radial_power
from wxlab.spectra.sphere import kinetic_energy, power

if TYPE_CHECKING:
    from wxlab.spectra.response import about, frequency_response, model_step

__all__ = [
    "about",
    "band_errors",
    "coherence",
    "effective_resolution",
    "frequency_response",
    "kinetic_energy",
    "model_step",
    "power",
    "radial",
    "radial_coordinates",
    "radial_power",
    "ratio",
    "zonal",
]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name in ("about", "frequency_response", "model_step"):
        from wxlab.spectra import response

        return getattr(response, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
