"""From a Dataset or forecast to the one field or series that is drawn, with the words that say what it is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.plots.style import Look, channel_label, look

LEAD = "prediction_timedelta"
SPACE = ("latitude", "longitude", "y", "x")
Moment = str | int | np.datetime64 | pd.Timestamp
Lead = int | float | str | np.timedelta64 | pd.Timedelta


@dataclass(frozen=True)
class Field:
    """One 2-D field ready to draw: values in display units, and the words for it."""

    values: xr.DataArray
    look: Look
    label: str  # name and unit
    name: str  # name alone
    when: str  # time, lead, member; may be empty


def variable_and_level(dataset: xr.Dataset, variable: str, level: float | None = None) -> tuple[str, float | None]:
    """The Dataset's own variable and level for a name, which may be a channel (``geopotential_500``).

    Raises WxlabError for a name that is not there (naming the nearest), and for a level that is missing or not said.
    """
    base, _, suffix = variable.rpartition("_")
    if variable not in dataset and suffix.isdigit() and base in dataset and "level" in dataset[base].dims:
        variable, level = base, float(suffix)
    if variable not in dataset.data_vars:
        raise unknown("variable", variable, dataset.data_vars)
    if "level" not in dataset[variable].dims:
        if level is not None:
            raise WxlabError(f"{variable!r} has no levels, so level={level:g} cannot be chosen; leave level out")
        return variable, None
    levels = [float(value) for value in dataset[variable]["level"].values]
    listing = ", ".join(f"{value:g}" for value in levels)
    if level is None:
        if len(levels) > 1:
            raise WxlabError(f"{variable!r} lies on levels {listing} hPa; say which, for example level={levels[len(levels) // 2]:g}")
        return variable, levels[0]
    if float(level) not in levels:
        raise WxlabError(f"{variable!r} has no level {level:g} hPa; its levels are {listing} hPa")
    return variable, float(level)


def pick_variable(dataset: xr.Dataset, variable: str, level: float | None = None) -> tuple[xr.DataArray, str, float | None]:
    """The array of a variable or channel, at its level: ``(array, variable, level)``."""
    variable, level = variable_and_level(dataset, variable, level)
    array = dataset[variable]
    return (array if level is None else array.sel(level=level)), variable, level


def select_field(
    dataset: xr.Dataset,
    variable: str,
    *,
    level: float | None = None,
    time: Moment | None = None,
    lead: Lead | None = None,
    number: int | str | None = None,
) -> Field:
    """One field of a Dataset or forecast, in display units.

    variable: name or channel (``geopotential_500``).  level: hPa.  time: a date (a forecast's initial time) or its position;
    None: the first.  lead: hours, a timedelta or '24h'; None: the first.  number: member, or 'mean' or 'spread' over members;
    None: the mean.
    Raises WxlabError for what the Dataset does not hold, saying what it holds.
    """
    array, variable, level = pick_variable(dataset, variable, level)
    words = []
    if "time" in array.dims:
        array = array.isel(time=time_position(array, 0 if time is None else time))
    elif time is not None:
        raise WxlabError(f"{variable!r} has no time axis, so time={time!r} cannot be chosen; leave time out")
    if "time" in array.coords:
        words.append(time_text(array["time"].values))
    if LEAD in array.dims:
        array = array.isel({LEAD: lead_position(array, lead)})
        words.append("+ " + lead_text(array[LEAD].values))
    elif lead is not None:
        raise WxlabError(f"lead={lead!r} was given, but the Dataset is no forecast: it has no {LEAD!r} axis; leave lead out")
    array, said = _pick_member(array, number)
    words += said
    array = _plane(array, variable)
    shown = look(variable, array.attrs.get("units"))
    if number == "spread":
        shown = replace(shown, kind="plain", colours="viridis")
    values = (array.astype(np.float64) * shown.scale).load()
    name = channel_label(variable, level, array.attrs.get("units"), with_units=False)
    return Field(values, shown, channel_label(variable, level, array.attrs.get("units")), name, " ".join(words))


def select_where_it_applies(dataset: xr.Dataset, variable: str, **choices: Any) -> Field:
    """``select_field`` for a choice made for many variables: what a variable has no axis for is left out, and a level not said is
    500 hPa or the middle one."""
    name, level = variable, choices.get("level")
    if name in dataset.data_vars:
        levels = "level" in dataset[name].dims
        level = (default_level(dataset, name) if level is None else level) if levels else None
    name, level = variable_and_level(dataset, name, level)
    axes = {"time": "time", "lead": LEAD, "number": "number"}
    kept = {key: choices[key] for key, dim in axes.items() if key in choices and dim in dataset[name].dims}
    return select_field(dataset, name, level=level, **kept)


def select_pair(forecast: xr.Dataset, truth: xr.Dataset, variable: str, lead: Lead | None, **choices: Any) -> tuple[Field, Field]:
    """Truth and forecast of one field at one valid time, on one grid: ``(true, predicted)``.

    choices: ``level``, ``time`` and ``number`` as for ``select_field``.
    Raises WxlabError when the truth does not hold the valid time, or lies on another grid.
    """
    predicted = select_field(forecast, variable, lead=lead, **choices)
    moment: Any = None
    if "time" in predicted.values.coords:
        moment = predicted.values["time"].values + (predicted.values[LEAD].values if lead is not None else np.timedelta64(0, "ns"))
    try:
        true = select_field(truth, variable, level=choices.get("level"), time=moment)
    except WxlabError as error:
        raise WxlabError(f"the truth does not go with this forecast: {error}") from None
    here, there = predicted.values, true.values
    if here.shape != there.shape or not all(np.allclose(here[dim], there[dim], atol=1e-3) for dim in here.dims):
        sizes = " and ".join("x".join(map(str, values.shape)) for values in (here, there))
        raise WxlabError(f"forecast and truth lie on different grids ({sizes} points); regrid one of them first")
    return true, predicted


def _pick_member(array: xr.DataArray, number: int | str | None) -> tuple[xr.DataArray, list[str]]:
    if "number" not in array.dims:
        if number is not None:
            raise WxlabError(f"number={number!r} was given, but the forecast has no members; leave number out")
        return array, []
    attrs = array.attrs
    if number is None or number == "mean":
        return array.mean("number").assign_attrs(attrs), ["· ensemble mean"]
    if number == "spread":
        return array.std("number", ddof=1).assign_attrs(attrs), ["· ensemble spread"]
    members = list(array["number"].values) if "number" in array.coords else list(range(array.sizes["number"]))
    if number not in members:
        raise WxlabError(f"number={number!r} is not a member; members are {members[0]} to {members[-1]}, or 'mean' or 'spread'")
    return array.isel(number=members.index(number)), [f"· member {number}"]


def _plane(array: xr.DataArray, variable: str) -> xr.DataArray:
    """The array as [y, x]; other axes of length 1 are dropped, longer ones refused."""
    other: list[Hashable] = [dim for dim in array.dims if dim not in SPACE]
    for dim in other:
        if array.sizes[dim] > 1:
            raise WxlabError(f"{variable!r} also has the axis {dim!r} of length {array.sizes[dim]}; choose one with .isel({dim}=0) first")
    array = array.isel(dict.fromkeys(other, 0))
    for dims in (("latitude", "longitude"), ("y", "x")):
        if set(array.dims) == set(dims):
            return array.transpose(*dims)
    axes = ", ".join(map(str, array.dims)) or "none"
    raise WxlabError(f"{variable!r} is no map: its axes are {axes}, and latitude and longitude (or y and x) are needed")


def time_position(array: xr.DataArray | xr.Dataset, time: Moment) -> int:
    """Position of a time on the time axis. Raises WxlabError naming the nearest time when it is not there."""
    times = array["time"].values
    if isinstance(time, (int, np.integer)) and not isinstance(time, bool):
        if not -len(times) <= time < len(times):
            raise WxlabError(f"time={time} is not a position on a time axis of {len(times)} entries; give 0 to {len(times) - 1} or a date")
        return int(time) % len(times)
    try:
        moment = pd.Timestamp(time).to_datetime64().astype("datetime64[ns]")
    except (ValueError, TypeError):
        raise WxlabError(f"time={time!r} is not a date; give one like '2020-01-31T12', or a position on the time axis") from None
    found = np.flatnonzero(times == moment)
    if not found.size:
        nearest = times[np.argmin(np.abs(times - moment))]
        span = f"{len(times)} times from {time_text(times.min())} to {time_text(times.max())}"
        raise WxlabError(f"the time {time_text(moment)} is not in the dataset; the nearest is {time_text(nearest)} (it holds {span})")
    return int(found[0])


def lead_position(array: xr.DataArray, lead: Lead | None) -> int:
    """Position of a lead time. Raises WxlabError listing the lead times when it is not there."""
    leads = array[LEAD].values
    if lead is None:
        return 0
    try:
        numeric = isinstance(lead, (int, float, np.number)) and not isinstance(lead, np.timedelta64)  # numpy counts spans as integers
        wanted = pd.Timedelta(hours=float(lead)) if numeric else pd.Timedelta(lead)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise WxlabError(f"lead={lead!r} is not a lead time; give hours, like 24, or a text like '24h'") from None
    found = np.flatnonzero(leads == wanted.to_timedelta64())
    if not found.size:
        listing = ", ".join(lead_text(value) for value in leads[:12]) + (", ..." if len(leads) > 12 else "")
        raise WxlabError(f"the forecast has no lead time of {lead_text(wanted.to_timedelta64())}; it has {listing}")
    return int(found[0])


def time_text(value: Any) -> str:
    """``2020-01-31 12 UTC``, with minutes only where there are some."""
    stamp = pd.Timestamp(value)
    return stamp.strftime("%Y-%m-%d %H UTC" if stamp.minute == 0 else "%Y-%m-%d %H:%M UTC")


def lead_text(value: Any) -> str:
    """``24 h``, or ``25 min`` where hours would not be whole."""
    hours = pd.Timedelta(value) / pd.Timedelta(hours=1)
    return f"{hours:g} h" if hours == round(hours) else f"{hours * 60:g} min"


def lead_axis(array: xr.DataArray) -> tuple[np.ndarray, str]:
    """Lead times as numbers with their unit: hours, or minutes for nowcasts of at most three hours."""
    hours = np.asarray(array[LEAD].values / np.timedelta64(1, "h"), dtype=np.float64)
    short = hours.size > 0 and hours.max() <= 3 and not np.allclose(hours, np.round(hours))
    return (hours * 60, "min") if short else (hours, "h")


def default_level(dataset: xr.Dataset, variable: str) -> float | None:
    """500 hPa where there is one, else the middle level; None for variables without levels."""
    if "level" not in dataset[variable].dims:
        return None
    levels = [float(value) for value in dataset[variable]["level"].values]
    return 500.0 if 500.0 in levels else levels[len(levels) // 2]


def map_variables(dataset: xr.Dataset) -> list[str]:
    """Names of the variables that are maps (maybe with more axes)."""
    planes: Sequence[set[str]] = ({"latitude", "longitude"}, {"y", "x"})
    return [str(name) for name, array in dataset.data_vars.items() if any(plane <= set(map(str, array.dims)) for plane in planes)]
