"""What a forecast creates or loses: mass, water and energy along a roll-out, and how far its wind and mass are from balance.

Every quantity is a mean over the area of the grid, for each initial time, member and lead time, beside the same of the truth. What the
variables at hand cannot close is said with each: levels end somewhere, and surface pressure, clouds or fluxes are seldom forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.grids import area_weights, grid_of, is_global, is_periodic, join_columns, order_on
from wxlab.rollout import LEAD, States
from wxlab.splits import time_text
from wxlab.verification.inputs import as_forecast, as_states, positions, same_grid, valid_times

RADIUS = 6.371e6  # of the Earth, m
ROTATION = 7.292e-5  # of the Earth, 1/s
GRAVITY = 9.80665  # m/s2
GAS_CONSTANT = 287.05  # of dry air, J/kg/K
VAPOUR = 0.608  # what water vapour adds to the virtual temperature, for each kg/kg
HEAT_CAPACITY = 1004.7  # of dry air at constant pressure, J/kg/K
LATENT_HEAT = 2.501e6  # J/kg
TROPICS = 20.0  # degrees of latitude within which wind is not near geostrophic
KINDS = ("forecast", "truth", "drift", "relative_drift")
NEEDS = {
    "mass": "surface_pressure or mean_sea_level_pressure",
    "water": "specific_humidity on two levels or more",
    "kinetic_energy": "both winds on levels or at 10 m",
    "total_energy": "temperature on two levels or more",
    "geostrophic_imbalance": "geopotential and both winds on levels, beyond 20 degrees",
    "hydrostatic_imbalance": "geopotential and temperature on two levels or more",
    "divergence": "both winds on levels",
    "mean_flow_divergence": "both winds on two levels or more",
}
PAIRS = (("u_component_of_wind", "v_component_of_wind"), ("10m_u_component_of_wind", "10m_v_component_of_wind"))


def report(forecast: xr.Dataset, truth: States | None = None) -> xr.Dataset:
    """Conserved quantities and balances of a forecast, and their drift from the truth.

    Means over the area, each row weighted with its cells' area, of what the variables allow:

    - ``mass`` (Pa): surface pressure, else mean sea-level pressure, its usual proxy.
    - ``water`` (kg m-2): 1/g ∫ q dp; ``rain`` (of radar: the mean rate).
    - ``kinetic_energy`` (J m-2): 1/g ∫ (u² + v²)/2 dp, or, of one level or at 10 m, (u² + v²)/2 (m² s-2).
    - ``total_energy`` (J m-2): 1/g ∫ (c_p T + L q + (u² + v²)/2) dp.
    - ``geostrophic_imbalance`` (1) [level]: root mean square of wind minus geostrophic wind, f k×V_g = −∇Φ, over that of V_g, beyond 20°.
    - ``hydrostatic_imbalance`` (1) [layer]: root mean square of ΔΦ − R T_v ln(p₁/p₂), T_v the mean of both levels, over that of ΔΦ.
    - ``divergence`` (s-1) [level]: root mean square, and ``mean_flow_divergence`` of the wind's mass-weighted mean over levels.

    forecast: as ``wxlab.forecast`` returns it (lazily opened ones are read piece by piece).  truth: states at the valid times, or a store;
    None: the first lead time takes its place.
    Returns a Dataset of those variables [kind, time, (number,) prediction_timedelta, ...], kind being ``forecast``, ``truth``, ``drift``
    (forecast − truth) and ``relative_drift`` (drift over the truth's size, NaN where that is 0). Of each, ``covers`` says over what it
    was taken and ``misses`` what it cannot close; the report's ``left_out`` names the quantities that these variables do not make, and
    what each would need.  Rows and columns of forecast and truth may run either way.
    Raises WxlabError for no forecast, another or uneven grid, valid times that the truth lacks, missing values, and when nothing can be
    computed.
    References: Peixoto and Oort 1992, Physics of Climate, chapters 12-13; Trenberth 1991,
    doi:10.1175/1520-0442(1991)004<0707:CDFGAD>2.0.CO;2.
    """
    forecast = as_forecast(forecast)
    ours = {array.name: array for array in quantities(forecast)}
    if not ours:
        raise WxlabError(
            f"of {', '.join(map(str, forecast.data_vars))} no conserved quantity can be made; forecast mean_sea_level_pressure, both "
            "winds, specific_humidity or temperature on levels, or rain_rate"
        )
    theirs = {} if truth is None else _at_valid_times(forecast, as_states(truth))
    found = {}
    for name, array in ours.items():
        if truth is not None and name not in theirs:
            raise unknown("quantity of the truth", name, theirs, "give a truth with the variables of the forecast")
        reference = array.isel({LEAD: 0}, drop=True) if truth is None else theirs[str(name)]
        reference, array = (each.astype(np.float64) for each in (reference, array))
        drift = array - reference
        kinds = [array, reference.broadcast_like(array), drift, drift / abs(reference.where(reference != 0))]
        whole = xr.concat([each.reset_coords(drop=True) for each in kinds], dim=xr.IndexVariable("kind", list(KINDS)))
        found[name] = whole.transpose("kind", *array.dims).assign_attrs(array.attrs)
    left_out = "; ".join(f"{name} (needs {needs})" for name, needs in NEEDS.items() if name not in found and "latitude" in forecast.dims)
    report = xr.Dataset(found).assign_attrs(reference="first lead time" if truth is None else "truth", left_out=left_out or "nothing")
    _require_complete(report)
    return report


def quantities(states: xr.Dataset) -> Iterator[xr.DataArray]:
    """The quantities that ``report`` names, of states or forecasts with any leading dimensions, computed."""
    if "latitude" not in states.dims:
        if "rain_rate" not in states or not {"y", "x"} <= set(states.dims):
            return
        yield _named(
            states["rain_rate"].mean(["y", "x"], skipna=False, keep_attrs=True),
            "rain",
            "mean rain rate",
            "the tile",
            "what crosses its sides",
        )
        return
    area = _Area(states)
    makers: tuple[Callable[[_Area], Iterator[xr.DataArray]], ...] = (_mass, _water, _energy, _geostrophic, _hydrostatic, _divergences)
    for make in makers:
        for array in make(area):
            yield array.compute()


class _Area:
    """States on latitude and longitude, and means and derivatives over their area."""

    def __init__(self, states: xr.Dataset) -> None:
        states = join_columns(states)
        grid = grid_of(states)
        steps = np.diff(grid.x)
        if len(steps) and np.ptp(steps) > 0.01 * abs(steps[0]):
            raise WxlabError(
                f"the longitudes are {abs(steps).min():g} to {abs(steps).max():g} degrees apart; regrid to even ones, as a mean over the "
                "area needs them"
            )
        self.states = states.sortby("level") if "level" in states.dims else states
        self.weights = xr.DataArray(area_weights(grid), {"latitude": states["latitude"]})
        self.sides = "" if is_global(grid) else "what crosses the sides of the region"
        self.round = is_periodic(grid)
        self.latitude = np.deg2rad(states["latitude"].astype(np.float64))

    def has(self, *names: str, levels: int = 0) -> bool:
        """Whether the states have these variables, on at least so many levels (0: on none)."""
        return all(
            name in self.states and ("level" in self.states[name].dims) == bool(levels) and self.states.sizes.get("level", 0) >= levels
            for name in names
        )

    def mean(self, field: xr.DataArray) -> xr.DataArray:
        # the weights are of mean 1, so that a mean of the products is a mean over the area
        return (field.astype(np.float64) * self.weights).mean(["latitude", "longitude"], skipna=False)

    def rms(self, field: xr.DataArray) -> xr.DataArray:
        return self.mean(field.astype(np.float64) ** 2) ** 0.5

    def column(self, field: xr.DataArray) -> xr.DataArray:
        """1/g ∫ dp between the first and last level, by trapezoids."""
        pressure = field["level"].astype(np.float64) * 100
        return field.astype(np.float64).assign_coords(level=pressure).integrate("level") / GRAVITY

    def span(self) -> str:
        levels = self.states["level"].values
        return f"{levels[0]:g} to {levels[-1]:g} hPa, {len(levels)} levels"

    def east(self, field: xr.DataArray) -> xr.DataArray:
        """∂/∂x by central differences, on the globe across its seam."""
        if self.round:
            step = float(np.deg2rad(self.states["longitude"][1] - self.states["longitude"][0]))
            slope = (field.roll(longitude=-1, roll_coords=False) - field.roll(longitude=1, roll_coords=False)) / (2 * step)
        else:
            slope = field.differentiate("longitude") * (180 / np.pi)
        return slope / (RADIUS * np.cos(self.latitude))

    def north(self, field: xr.DataArray) -> xr.DataArray:
        return field.differentiate("latitude") * (180 / np.pi) / RADIUS

    def inner(self) -> xr.DataArray:
        """Rows whose derivatives mean something: neither the first nor the last."""
        number = xr.DataArray(np.arange(self.latitude.size), {"latitude": self.states["latitude"]})
        return (number > 0) & (number < self.latitude.size - 1)

    def rms_over(self, field: xr.DataArray, rows: xr.DataArray) -> xr.DataArray:
        """Root mean square over some rows."""
        inside = field.isel(latitude=np.flatnonzero(rows.values)).astype(np.float64)
        weights = self.weights.isel(latitude=np.flatnonzero(rows.values))
        return (inside**2 * (weights / weights.mean())).mean(["latitude", "longitude"], skipna=False) ** 0.5


def _named(array: xr.DataArray, name: str, long_name: str, covers: str, misses: str, units: str | None = None) -> xr.DataArray:
    units = array.attrs.get("units", "") if units is None else units
    attrs = {"long_name": long_name, "units": units, "covers": covers, "misses": misses or "nothing"}
    return array.drop_vars([coord for coord in array.coords if coord not in array.dims]).rename(name).assign_attrs(attrs)


def _and(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _mass(area: _Area) -> Iterator[xr.DataArray]:
    if area.has("surface_pressure"):
        mean = area.mean(area.states["surface_pressure"])
        yield _named(mean, "mass", "mean surface pressure", "the whole column, water included", area.sides, "Pa")
    elif area.has("mean_sea_level_pressure"):
        mean = area.mean(area.states["mean_sea_level_pressure"])
        misses = _and("pressure reduced to sea level changes with the temperature over land too", area.sides)
        yield _named(mean, "mass", "mean sea-level pressure", "the column down to sea level", misses, "Pa")


def _water(area: _Area) -> Iterator[xr.DataArray]:
    if area.has("specific_humidity", levels=2):
        mean = area.mean(area.column(area.states["specific_humidity"]))
        misses = _and("clouds, what lies beyond these levels, rain and evaporation", area.sides)
        yield _named(mean, "water", "water vapour", area.span(), misses, "kg m-2")


def _half_square(u: xr.DataArray, v: xr.DataArray) -> xr.DataArray:
    return (u.astype(np.float64) ** 2 + v.astype(np.float64) ** 2) / 2


def _energy(area: _Area) -> Iterator[xr.DataArray]:
    winds, states = PAIRS[0], area.states
    beyond = "what lies beyond these levels"
    kinetic = None
    if area.has(*winds, levels=1):
        kinetic = _half_square(*(states[name] for name in winds))
        if states.sizes["level"] > 1:
            yield _named(
                area.mean(area.column(kinetic)), "kinetic_energy", "kinetic energy", area.span(), _and(beyond, area.sides), "J m-2"
            )
        else:
            mean = area.mean(kinetic.isel(level=0))
            yield _named(mean, "kinetic_energy", "kinetic energy", area.span(), _and("all other levels", area.sides), "m2 s-2")
    elif area.has(*PAIRS[1]):
        mean = area.mean(_half_square(*(states[name] for name in PAIRS[1])))
        yield _named(mean, "kinetic_energy", "kinetic energy", "the wind at 10 m", _and("all above", area.sides), "m2 s-2")
    if area.has("temperature", levels=2):
        energy = HEAT_CAPACITY * states["temperature"].astype(np.float64)
        missing = [beyond, "the potential energy of the surface", "fluxes of heat and radiation"]
        if area.has("specific_humidity", levels=2):
            energy = energy + LATENT_HEAT * states["specific_humidity"]
        else:
            missing.append("latent heat (no specific_humidity)")
        if kinetic is not None:
            energy = energy + kinetic
        else:
            missing.append("kinetic energy (no winds on levels)")
        yield _named(area.mean(area.column(energy)), "total_energy", "total energy", area.span(), _and(*missing, area.sides), "J m-2")


def _geostrophic(area: _Area) -> Iterator[xr.DataArray]:
    rows = area.inner() & (abs(area.states["latitude"]) > TROPICS)
    if not area.has("geopotential", *PAIRS[0], levels=1) or not bool(rows.any()):
        return
    height, u, v = (area.states[name].astype(np.float64) for name in ("geopotential", *PAIRS[0]))
    coriolis = 2 * ROTATION * np.sin(area.latitude)
    east, north = -area.north(height) / coriolis, area.east(height) / coriolis
    size, off = (area.rms_over((x**2 + y**2) ** 0.5, rows) for x, y in ((east, north), (u - east, v - north)))
    yield _named(off / size, "geostrophic_imbalance", "wind that is not geostrophic", f"beyond {TROPICS:g}°", "curvature and friction", "1")


def _hydrostatic(area: _Area) -> Iterator[xr.DataArray]:
    if not area.has("geopotential", "temperature", levels=2):
        return
    height, virtual = (area.states[name].astype(np.float64) for name in ("geopotential", "temperature"))
    humid = area.has("specific_humidity", levels=2)
    if humid:
        virtual = virtual * (1 + VAPOUR * area.states["specific_humidity"])
    levels = area.states["level"].values.astype(np.float64)
    upper, lower = {"level": slice(None, -1)}, {"level": slice(1, None)}
    layers = xr.IndexVariable("layer", [f"{a:g}-{b:g} hPa" for a, b in pairwise(levels)])

    def between(field: xr.DataArray, which: dict[str, slice]) -> xr.DataArray:
        return field.isel(which).drop_vars("level").rename(level="layer").assign_coords(layer=layers)

    thickness = between(height, upper) - between(height, lower)
    mean = (between(virtual, upper) + between(virtual, lower)) / 2
    ratio = xr.DataArray(np.log(levels[1:] / levels[:-1]), {"layer": layers})
    off = area.rms(thickness - GAS_CONSTANT * ratio * mean) / area.rms(thickness)
    misses = _and("temperature that is not linear in ln p between two levels", "" if humid else "water vapour (no specific_humidity)")
    yield _named(off, "hydrostatic_imbalance", "thickness that temperature does not explain", area.span(), misses, "1")


def _divergences(area: _Area) -> Iterator[xr.DataArray]:
    if not area.has(*PAIRS[0], levels=1):
        return
    u, v = (area.states[name].astype(np.float64) for name in PAIRS[0])
    cosine, rows = np.cos(area.latitude), area.inner()

    def divergence(east: xr.DataArray, north: xr.DataArray) -> xr.DataArray:
        return area.rms_over(area.east(east) + area.north(north * cosine) / cosine, rows)

    yield _named(divergence(u, v), "divergence", "divergence of the wind", "all rows but the outer ones", "scales below the grid", "s-1")
    if area.states.sizes["level"] > 1:
        means = [area.column(each) / area.column(xr.ones_like(each)) for each in (u, v)]
        misses = "what lies beyond these levels; the true one moves mass, and is small"
        yield _named(divergence(*means), "mean_flow_divergence", "divergence of the mean wind over levels", area.span(), misses, "s-1")


def _at_valid_times(forecast: xr.Dataset, truth: xr.Dataset) -> dict[str, xr.DataArray]:
    """The truth's quantities at the valid times [time, prediction_timedelta, ...]; each state is read once."""
    if order_on(grid_of(truth), grid_of(forecast)) is None:
        same_grid(forecast, grid_of(truth), "truth")
    valid = valid_times(forecast)
    needed = np.unique(valid)
    places = positions(needed, truth["time"].values)
    if np.any(places < 0):
        raise WxlabError(
            f"the truth lacks {int((places < 0).sum())} of {len(needed)} valid times, the first {time_text(needed[places < 0][0])}; "
            "give states at all of them, or fewer lead times"
        )
    levels = {"level": forecast["level"]} if "level" in forecast.dims and "level" in truth.dims else {}
    if levels and not set(forecast["level"].values) <= set(truth["level"].values):
        raise WxlabError(
            f"the truth has levels {truth['level'].values.tolist()} and the forecast {forecast['level'].values.tolist()} hPa; give the same"
        )
    shared = [str(name) for name in forecast.data_vars if name in truth]
    states = truth[shared].isel(time=places).sel(levels)
    index = xr.DataArray(np.searchsorted(needed, valid), dims=("time", LEAD), coords={"time": forecast["time"], LEAD: forecast[LEAD]})
    return {str(array.name): array.drop_vars("time").isel(time=index) for array in quantities(states)}


def _require_complete(report: xr.Dataset) -> None:
    """Raise WxlabError naming the first quantity that is missing anywhere, and since which lead time."""
    for name, array in report.data_vars.items():
        for kind in KINDS[:2]:
            lost = array.sel(kind=kind).isnull().any([dim for dim in array.dims if dim not in ("kind", LEAD)])
            if bool(lost.any()):
                hours = float(report[LEAD][int(lost.values.argmax())] / np.timedelta64(1, "h"))
                raise WxlabError(f"{name} of the {kind} is missing from {hours:g} h on: its fields have missing values; give complete ones")


def drift_per_day(report: xr.Dataset) -> xr.Dataset:
    """Slope of the relative drift with lead time, mean over initial times and members, for each day: least squares through all leads.

    NaN for a quantity that the truth has none of at some time.  Raises WxlabError for fewer than two lead times.
    """
    if report.sizes[LEAD] < 2:
        raise WxlabError("a slope needs at least two lead times; make a longer forecast")
    days = report[LEAD].values / np.timedelta64(1, "D")

    def slope(array: xr.DataArray) -> xr.DataArray:
        mean = array.sel(kind="relative_drift").mean([dim for dim in ("time", "number") if dim in array.dims], skipna=False)
        centred = xr.DataArray(days - days.mean(), {LEAD: report[LEAD]})
        attrs: dict[str, Any] = {**array.attrs, "units": "1/day"}
        return ((mean * centred).sum(LEAD, skipna=False) / float((centred**2).sum())).assign_attrs(attrs)

    return xr.Dataset({name: slope(array) for name, array in report.items()})
