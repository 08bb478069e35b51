"""One look for all figures: sizes, colours, and for every variable its name, display unit and colour map.

Colour maps run evenly in lightness and stay readable without red-green vision (matplotlib's viridis family, ColorBrewer's
RdBu and BrBG). Fields of one sign get a sequential map, signed fields and differences a diverging one centred on zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's palette (2008): told apart with any colour vision; black is kept for the truth
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#999933")
TRUTH_COLOUR = "#000000"
MISSING_COLOUR = "#d9d9d9"
DIFFERENCE_MAP = "RdBu_r"
RAIN_LEVELS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
DBZ_LEVELS = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0)
VIL_LEVELS = (16.0, 31.0, 59.0, 74.0, 100.0, 133.0, 160.0, 181.0, 219.0)  # those that SEVIR's nowcasts are shown with
STEPS = {"rain": (RAIN_LEVELS, "YlGnBu"), "dbz": (DBZ_LEVELS, "YlGnBu"), "vil": (VIL_LEVELS, "magma_r")}  # white below the first

_RC: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 9.5,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.labelsize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.titlesize": "large",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "image.cmap": "viridis",
}


@dataclass(frozen=True)
class Look:
    """How a variable is shown: ``shown = stored * scale`` in ``units`` (``stored`` is the unit it is kept in)."""

    title: str
    short: str = ""
    stored: str = ""
    units: str = ""
    scale: float = 1.0
    colours: str = "viridis"
    kind: Literal["plain", "signed", "rain", "dbz", "vil", "unknown"] = "plain"  # unknown: signed where values of both signs are

    @property
    def label(self) -> str:
        """Name and unit, as axes and colour bars say it."""
        return f"{self.title} [{self.units}]" if self.units else self.title


def _wind(title: str, short: str) -> Look:
    return Look(title, short, "m s-1", "m/s", colours="BrBG_r", kind="signed")


_LOOKS: dict[str, Look] = {
    "geopotential": Look("Geopotential", "z", "m2 s-2", "m²/s²"),
    "temperature": Look("Temperature", "t", "K", "K", colours="inferno"),
    "2m_temperature": Look("2 m temperature", "t2m", "K", "K", colours="inferno"),
    "sea_surface_temperature": Look("Sea surface temperature", "sst", "K", "K", colours="inferno"),
    "u_component_of_wind": _wind("Eastward wind", "u"),
    "v_component_of_wind": _wind("Northward wind", "v"),
    "10m_u_component_of_wind": _wind("10 m eastward wind", "u10"),
    "10m_v_component_of_wind": _wind("10 m northward wind", "v10"),
    "10m_wind_speed": Look("10 m wind speed", "ws10", "m s-1", "m/s", colours="cividis"),
    "wind_speed": Look("Wind speed", "ws", "m s-1", "m/s", colours="cividis"),
    "vertical_velocity": Look("Vertical velocity (down)", "w", "Pa s-1", "Pa/s", colours="BrBG_r", kind="signed"),
    "specific_humidity": Look("Specific humidity", "q", "kg kg-1", "g/kg", 1e3, "YlGnBu"),
    "relative_humidity": Look("Relative humidity", "r", "%", "%", colours="YlGnBu"),
    "mean_sea_level_pressure": Look("Mean sea-level pressure", "msl", "Pa", "hPa", 1e-2),
    "surface_pressure": Look("Surface pressure", "sp", "Pa", "hPa", 1e-2),
    "total_precipitation": Look("Precipitation", "tp", "m", "mm", 1e3, kind="rain"),
    "rain_rate": Look("Rain rate", "rain", "mm h-1", "mm/h", kind="rain"),
    "reflectivity": Look("Reflectivity", "refl", "dBZ", "dBZ", kind="dbz"),
    "vertically_integrated_liquid_8bit": Look("Vertically integrated liquid, 8 bit", "vil", "1", kind="vil"),
    "total_column_water_vapour": Look("Water vapour column", "tcwv", "kg m-2", "kg/m²", colours="YlGnBu"),
    "total_cloud_cover": Look("Cloud cover", "tcc", "1", colours="Greys_r"),
    "toa_incident_solar_radiation": Look("Solar radiation at the top", "tisr", "J m-2", "MJ/m²", 1e-6, "cividis"),
    "geopotential_at_surface": Look("Surface geopotential", "zs", "m2 s-2", "m²/s²", colours="cividis"),
    "land_sea_mask": Look("Land fraction", "lsm", "1", colours="cividis"),
    "slope_of_sub_gridscale_orography": Look("Slope of orography", "slor", "1", colours="cividis"),
    "standard_deviation_of_orography": Look("Std. dev. of orography", "sdor", "m", "m", colours="cividis"),
}

_SAME_UNIT = {"m/s": "m s-1", "mm/h": "mm h-1", "(0 - 1)": "1", "dimensionless": "1", "~": "1"}


def _plain_unit(units: str) -> str:
    """One spelling of a unit: ``m**2 s**-2`` and ``m^2 s^-2`` are ``m2 s-2``."""
    units = units.replace("**", "").replace("^", "")
    return _SAME_UNIT.get(units, units)


def use_style() -> None:
    """Set the style of every figure drawn from here on."""
    mpl.rcParams.update(_RC)


def look(variable: str, units: str | None = None) -> Look:
    """How to show a variable.

    variable: name, WeatherBench 2 style; hours at the end (``total_precipitation_6hr``) are told in the title.  units: the unit
    the numbers are in (None: the usual SI unit); numbers in any other unit are shown as they are, with that unit.
    """
    match = re.match(r"^(.*)_(\d+)hr$", variable)
    base = _LOOKS.get(match[1] if match else variable)
    stored = None if units is None else _plain_unit(units)
    told = "" if stored in (None, "1") else str(stored)
    if base is None:
        return Look(variable.replace("_", " ").capitalize(), variable, told, told, kind="unknown")
    if match:
        base = replace(base, title=f"{base.title} in {match[2]} h", short=f"{base.short}{match[2]}h")
    if stored is None or stored == base.stored:
        return base
    return replace(base, stored=str(stored), units=told, scale=1.0)


def channel_code(channel: str) -> str:
    """The short name of a channel as the field writes it: ``z500``, ``t2m``, ``msl``; its own name when there is none."""
    base, _, suffix = channel.rpartition("_")
    return f"{look(base).short}{suffix}" if suffix.isdigit() and base in _LOOKS else look(channel).short


def channel_label(variable: str, level: float | None = None, units: str | None = None, *, with_units: bool = True) -> str:
    """``500 hPa geopotential [m²/s²]``: level, name and unit of a channel."""
    shown = look(variable, units)
    title = shown.title if level is None else f"{level:g} hPa {shown.title[0].lower()}{shown.title[1:]}"
    return f"{title} [{shown.units}]" if with_units and shown.units else title


def colour_limits(fields: Iterable[xr.DataArray | np.ndarray], *, signed: bool, robust: float = 0.5) -> tuple[float, float]:
    """Limits of a colour scale shared by some fields, from quantiles, so that one odd point does not bleach the rest.

    robust: per cent left out at each end.  signed: make the limits symmetric about zero.
    """
    values = np.concatenate([np.asarray(field, dtype=np.float64).ravel() for field in fields])
    values = values[np.isfinite(values)]
    if not values.size:
        return (-1.0, 1.0) if signed else (0.0, 1.0)
    if signed:
        limit = float(np.percentile(np.abs(values), 100 - robust)) or float(np.abs(values).max()) or 1.0
        return -limit, limit
    low, high = (float(v) for v in np.percentile(values, [robust, 100 - robust]))
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = 0.01 * abs(low) or 1.0
        low, high = low - pad, high + pad
    return low, high


def colour_scale(shown: Look, fields: Iterable[xr.DataArray | np.ndarray]) -> tuple[Colormap, Normalize, str]:
    """Colour map, norm and ``extend`` of the colour bar for fields that share one scale; NaN is drawn grey."""
    fields = list(fields)
    if shown.kind in STEPS:
        levels, name = STEPS[shown.kind]
        colours: Colormap = ListedColormap(mpl.colormaps[name](np.linspace(0.15, 1, len(levels))))
        colours = colours.with_extremes(under="#ffffff", bad=MISSING_COLOUR)
        return colours, BoundaryNorm(levels, colours.N, extend="max"), "max"
    if shown.kind == "unknown":
        lowest, highest = colour_limits(fields, signed=False)
        shown = replace(shown, kind="signed", colours=DIFFERENCE_MAP) if lowest < 0 < highest else shown
    low, high = colour_limits(fields, signed=shown.kind == "signed")
    colours = mpl.colormaps[shown.colours].with_extremes(bad=MISSING_COLOUR)
    return colours, Normalize(low, high), _extend(fields, low, high)


def difference_scale(fields: Iterable[xr.DataArray | np.ndarray]) -> tuple[Colormap, Normalize, str]:
    """Colour map, norm and ``extend`` for differences: white at zero, as far below as above."""
    fields = list(fields)
    low, high = colour_limits(fields, signed=True)
    return mpl.colormaps[DIFFERENCE_MAP].with_extremes(bad=MISSING_COLOUR), Normalize(low, high), _extend(fields, low, high)


def _extend(fields: Iterable[xr.DataArray | np.ndarray], low: float, high: float) -> str:
    arrays = [np.asarray(field) for field in fields]
    below = any(bool(np.any(array < low)) for array in arrays)
    above = any(bool(np.any(array > high)) for array in arrays)
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches), known to no window manager: it is shown once, where it is returned, and freed with its last name."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Draw in the style, whatever is set outside, and leave the outside as it was."""

    @wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_RC):
            return function(*args, **kwargs)

    return drawn
