"""Forcings: fields that are known for every time, past or future, and that models read but do not predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wxlab.errors import WxlabError, unknown
from wxlab.grids import Grid

DAY = 86400
SOLAR_CONSTANT = 1361.0  # W/m², Kopp and Lean 2011, doi:10.1029/2010GL045777


def seconds(times: object) -> np.ndarray:
    """Times (datetime64 or int seconds since 1970 UTC) as int64 seconds."""
    values = np.asarray(times)
    if np.issubdtype(values.dtype, np.datetime64):
        return values.astype("datetime64[s]").astype(np.int64)
    return values.astype(np.int64)


def year_fraction(times: object) -> np.ndarray:
    """How much of its calendar year has passed, 0..1, at each time [T]."""
    stamps = seconds(times).astype("datetime64[s]")
    years = stamps.astype("datetime64[Y]")
    start, end = years.astype("datetime64[s]"), (years + 1).astype("datetime64[s]")
    return (stamps - start).astype(np.float64) / (end - start).astype(np.float64)


def toa_solar_radiation(times: object, grid: Grid) -> np.ndarray:
    """Sunlight at the top of the atmosphere in the hour before each time, J/m²: [T, H, W].

    E = S0 (d0/d)² ∫ max(0, sin φ sin δ + cos φ cos δ cos h) dt over the hour, integrated exactly between sunrise and sunset.
    Declination δ, distance d and equation of time: Spencer 1971, Search 2(5), 172.  Same name, unit and interval as in ERA5.
    """
    middle = seconds(times) - 1800
    g = 2 * np.pi * year_fraction(middle)[:, None, None]
    declination = (
        0.006918 - 0.399912 * np.cos(g) + 0.070257 * np.sin(g) - 0.006758 * np.cos(2 * g) + 0.000907 * np.sin(2 * g)
        - 0.002697 * np.cos(3 * g) + 0.00148 * np.sin(3 * g)
    )
    distance = 1.00011 + 0.034221 * np.cos(g) + 0.00128 * np.sin(g) + 0.000719 * np.cos(2 * g) + 0.000077 * np.sin(2 * g)
    equation_of_time = 0.000075 + 0.001868 * np.cos(g) - 0.032077 * np.sin(g) - 0.014615 * np.cos(2 * g) - 0.040849 * np.sin(2 * g)
    latitude = np.deg2rad(np.asarray(grid.y))[None, :, None]
    hour = 2 * np.pi * ((middle % DAY) / DAY)[:, None, None] - np.pi + np.deg2rad(np.asarray(grid.x))[None, None, :] + equation_of_time
    hour = (hour + np.pi) % (2 * np.pi) - np.pi
    constant, swing = np.sin(latitude) * np.sin(declination), np.cos(latitude) * np.cos(declination)
    sunset = np.arccos(np.clip(-constant / np.maximum(swing, 1e-12), -1, 1))
    first, last = hour - np.pi / 24, hour + np.pi / 24
    total = np.zeros(np.broadcast_shapes(hour.shape, sunset.shape))
    for turn in (-2 * np.pi, 0.0, 2 * np.pi):
        low, high = np.maximum(first, turn - sunset), np.minimum(last, turn + sunset)
        total += np.where(high > low, constant * (high - low) + swing * (np.sin(high) - np.sin(low)), 0)
    return np.asarray(SOLAR_CONSTANT * distance * np.maximum(total, 0) * (DAY / (2 * np.pi)))


def _year(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, Grid], np.ndarray]:
    return lambda times, grid: function(2 * np.pi * year_fraction(times))[:, None, None]


def _day(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, Grid], np.ndarray]:
    def local(times: np.ndarray, grid: Grid) -> np.ndarray:
        turn = np.asarray(grid.x) / 360 if grid.kind == "latlon" else np.zeros(1)
        return function(2 * np.pi * ((times % DAY / DAY)[:, None] + turn))[:, None, :]

    return local


def _place(axis: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, Grid], np.ndarray]:
    def constant(times: np.ndarray, grid: Grid) -> np.ndarray:
        values = function(np.deg2rad(np.asarray(getattr(grid, axis))))
        return values[None, :, None] if axis == "y" else values[None, None, :]

    return constant


FORCINGS: dict[str, Callable[[np.ndarray, Grid], np.ndarray]] = {
    "toa_incident_solar_radiation": toa_solar_radiation,
    "year_progress_sin": _year(np.sin),
    "year_progress_cos": _year(np.cos),
    "day_progress_sin": _day(np.sin),
    "day_progress_cos": _day(np.cos),
    "latitude_sin": _place("y", np.sin),
    "latitude_cos": _place("y", np.cos),
    "longitude_sin": _place("x", np.sin),
    "longitude_cos": _place("x", np.cos),
}
_NEEDS_EARTH = frozenset({"toa_incident_solar_radiation", "latitude_sin", "latitude_cos", "longitude_sin", "longitude_cos"})
BOUNDED = frozenset(FORCINGS) - {"toa_incident_solar_radiation"}  # already between -1 and 1


def compute(names: Sequence[str], times: object, grid: Grid) -> np.ndarray:
    """Forcing fields by name.

    names: keys of ``FORCINGS``; ``toa_incident_solar_radiation`` is J/m² over the hour before, the others are sines and cosines of
    the time of the year, of the local solar time and of the place.  times: datetime64 or int64 seconds since 1970 UTC, [T].
    Returns float32 [T, F, H, W].  Raises WxlabError for an unknown name.
    """
    stamps = np.atleast_1d(seconds(times))
    out = np.empty((len(stamps), len(names), *grid.shape), dtype=np.float32)
    for index, name in enumerate(names):
        if name not in FORCINGS:
            raise unknown("forcing", name, FORCINGS)
        if grid.kind != "latlon" and name in _NEEDS_EARTH:
            raise WxlabError(f"forcing {name!r} needs latitudes and longitudes, and this grid is in metres; leave it out")
        out[:, index] = FORCINGS[name](stamps, grid)
    return out
