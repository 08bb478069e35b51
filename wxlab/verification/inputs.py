"""What is scored: forecasts, truth and climatology, checked and brought into one order of dimensions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from wxlab.climatology import Climatology
from wxlab.errors import WxlabError, unknown
from wxlab.forcings import DAY, seconds
from wxlab.grids import Grid, grid_of
from wxlab.rollout import LEAD, States
from wxlab.splits import time_text
from wxlab.store import Store, open_store

Reference = Climatology | xr.Dataset
# variable, levels (None: it has none), times (int64 seconds [T]) -> [T, levels, H, W]
Reader = Callable[[str, Sequence[float | None], np.ndarray], np.ndarray]


def as_forecast(forecast: Any, name: str = "forecast") -> xr.Dataset:
    """A forecast with the dimensions ``time`` (initial) and ``prediction_timedelta``.  Raises WxlabError when it is none."""
    if not isinstance(forecast, xr.Dataset):
        raise WxlabError(f"{name} is a {type(forecast).__name__}; give the Dataset that wxlab.forecast returned")
    for dim in ("time", LEAD):
        if dim not in forecast.coords:
            raise WxlabError(
                f"{name} has the dimensions {', '.join(map(str, forecast.sizes))} and no {dim!r} coordinate, so it is no forecast; "
                f"give a Dataset with time (initial) and {LEAD}"
            )
        if dim not in forecast.dims:
            forecast = forecast.expand_dims(dim)
    if not np.issubdtype(forecast[LEAD].dtype, np.timedelta64):
        raise WxlabError(f"{LEAD} of {name} holds {forecast[LEAD].dtype} and not spans of time; open it with decode_timedelta=True")
    return forecast


def as_states(truth: States) -> xr.Dataset:
    """States over (valid) ``time``, of a Dataset, a store or its path.  Raises WxlabError for anything else."""
    if not isinstance(truth, xr.Dataset):
        if not isinstance(truth, (Store, str, os.PathLike)):
            raise WxlabError(f"truth is a {type(truth).__name__}; give a Dataset with time, a store or the path of a store")
        truth = open_store(truth).dataset()
    if LEAD in truth.dims or "time" not in truth.dims:
        raise WxlabError(f"truth has the dimensions {', '.join(map(str, truth.sizes))}; give states over time, without {LEAD}")
    if not truth.indexes["time"].is_unique:
        raise WxlabError("truth has some times more than once; drop the repeated ones first")
    return truth


def lead_seconds(forecast: xr.Dataset) -> np.ndarray:
    return np.asarray(forecast[LEAD].values).astype("timedelta64[s]").astype(np.int64)


def valid_times(forecast: xr.Dataset) -> np.ndarray:
    """Valid times [initial times, lead times] as int64 seconds."""
    return seconds(forecast["time"].values)[:, None] + lead_seconds(forecast)


def positions(wanted: np.ndarray, times: object) -> np.ndarray:
    """Where the wanted times (seconds, any shape) stand among ``times``; -1 for those that are not there."""
    stamps = seconds(times)
    if not len(stamps):
        return np.full(wanted.shape, -1)
    order = np.argsort(stamps)
    found = order[np.clip(np.searchsorted(stamps[order], wanted), 0, len(stamps) - 1)]
    return np.where(stamps[found] == wanted, found, -1)


def lead_position(leads: object, lead: float) -> int:
    """Which of some lead times is so many hours.  Raises WxlabError naming those that there are."""
    hours = np.asarray(leads).astype("timedelta64[s]").astype(np.int64) / 3600
    if isinstance(lead, bool) or not isinstance(lead, (int, float, np.number)) or isinstance(lead, np.timedelta64):
        raise WxlabError(f"lead={lead!r} is not a number of hours; the lead times are {_hours(hours)} h")
    found = np.flatnonzero(np.isclose(hours, float(lead), atol=1e-3))
    if not len(found):
        raise WxlabError(f"lead={lead:g} is not among the lead times, which are {_hours(hours)} h")
    return int(found[0])


def _hours(hours: np.ndarray) -> str:
    shown = [f"{hour:g}" for hour in hours]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", shown[-1]])


def same_grid(forecast: xr.Dataset, other: Grid, name: str) -> Grid:
    """The grid of a forecast.  Raises WxlabError when ``other`` is not the same."""
    grid = grid_of(forecast)
    if grid.kind != other.kind or grid.shape != other.shape or not np.allclose([*grid.y, *grid.x], [*other.y, *other.x], atol=1e-3):
        text = [f"{g.shape[0]}x{g.shape[1]} from {g.y[0]:g}, {g.x[0]:g}" for g in (grid, other)]
        raise WxlabError(f"the forecast lies on another grid ({text[0]}) than the {name} ({text[1]}); regrid one of them first")
    return grid


def has_level(field: xr.DataArray, level: float | None) -> bool:
    """Whether a field has a level; None: whether it is without levels."""
    if level is None or "level" not in field.dims:
        return level is None and "level" not in field.dims
    return level in field["level"].values


def levels_of(field: xr.DataArray) -> list[float | None]:
    """Levels of a field; [None] when it has none."""
    return list(field["level"].values.tolist()) if "level" in field.dims else [None]


def shared_variables(forecast: xr.Dataset, truth: xr.Dataset, named: str = "truth") -> dict[str, list[float | None]]:
    """Variables that a forecast and the truth (or another that is ``named``) share, with their levels.

    Raises WxlabError when there are none.
    """
    names = [str(name) for name, field in forecast.data_vars.items() if {"time", LEAD} <= set(field.dims)]
    both = [name for name in names if name in truth and "time" in truth[name].dims]
    found = {name: [level for level in levels_of(forecast[name]) if has_level(truth[name], level)] for name in both}
    found = {name: levels for name, levels in found.items() if levels}
    if not found:
        raise WxlabError(
            f"the forecast ({', '.join(names) or 'no variables'}) and the {named} ({', '.join(map(str, truth.data_vars))}) have no "
            f"variable and level in common; give a {named} with the same names"
        )
    return found


def ordered(field: xr.DataArray, levels: Sequence[float | None], leading: Sequence[str], grid: Grid) -> xr.DataArray:
    """A field with the dimensions (*leading, level, y, x), each of them, even when of length one, and the levels asked for."""
    if levels != [None]:
        field = field.sel(level=list(levels))
    wanted = (*leading, "level", *grid.dims)
    other = [str(dim) for dim in field.dims if dim not in wanted]
    if other:
        raise WxlabError(f"{field.name!r} has the dimension {other[0]!r}; allowed are {', '.join(wanted)}; select or average it first")
    missing = [dim for dim in wanted if dim not in field.dims]
    return field.drop_vars(missing, errors="ignore").expand_dims(missing).transpose(*wanted)


def climatology_reader(climatology: Any, forecast: xr.Dataset) -> Reader:
    """A function that reads a climatology at given times.

    climatology: a Climatology, or a Dataset with ``hour`` and ``dayofyear`` as WeatherBench 2 has it.
    Raises WxlabError for anything else, and when it lies on another grid than the forecast.
    """
    if isinstance(climatology, Climatology):
        same_grid(forecast, climatology.grid, "climatology")
        return lambda variable, levels, stamps: _harmonics(climatology, channel_names(variable, levels), stamps)
    if isinstance(climatology, xr.Dataset) and {"hour", "dayofyear"} <= set(climatology.dims):
        grid = same_grid(forecast, grid_of(climatology), "climatology")
        return lambda variable, levels, stamps: _calendar(climatology, variable, levels, stamps, grid)
    raise WxlabError("climatology is neither; give store.climatology() or a Dataset with the dimensions hour and dayofyear")


def together(arrays: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """Variables in one Dataset, NaN at the levels and thresholds that only others have."""
    return xr.merge([array.to_dataset(name=name) for name, array in arrays.items()], join="outer", compat="no_conflicts")


def channel_names(variable: str, levels: Iterable[float | None]) -> list[str]:
    """``geopotential_500`` for each level, the variable itself for None."""
    return [variable if level is None else f"{variable}_{level:g}" for level in levels]


def _harmonics(climatology: Climatology, channels: Sequence[str], stamps: np.ndarray) -> np.ndarray:
    """A climatology of some channels at some times: [T, channels, H, W], NaN at levels that it lacks where it has another one."""
    known = [channel for channel in channels if channel in climatology.channels]
    if not known:
        raise unknown("channel of the climatology", channels[0], climatology.channels)
    chosen = [climatology.channels.index(channel) for channel in known]
    values = Climatology(climatology.coefficients[:, :, chosen], climatology.hours, known, climatology.grid).at(stamps)
    result = np.full((len(values), len(channels), *values.shape[2:]), np.nan, dtype=values.dtype)
    result[:, [channel in known for channel in channels]] = values
    return result


def _calendar(fields: xr.Dataset, variable: str, levels: Sequence[float | None], stamps: np.ndarray, grid: Grid) -> np.ndarray:
    """A climatology by hour and day of year at some times: [T, levels, H, W]."""
    if variable not in fields:
        raise unknown("variable of the climatology", variable, fields.data_vars)
    for level in levels:
        if not has_level(fields[variable], level):
            raise WxlabError(f"the climatology of {variable!r} lacks the level {level if level is None else f'{level:g} hPa'}")
    days = stamps.astype("datetime64[s]").astype("datetime64[D]")
    day = (days - days.astype("datetime64[Y]")).astype(np.int64) + 1
    rows, columns = (_index(fields[name].values, wanted) for name, wanted in (("hour", stamps % DAY / 3600), ("dayofyear", day)))
    if min(rows.min(), columns.min()) < 0:
        first = stamps[(rows < 0) | (columns < 0)][0]
        hours = ", ".join(f"{hour:g}" for hour in fields["hour"].values)
        raise WxlabError(f"the climatology has nothing for {time_text(first)}; its hours are {hours}; score those valid times only")
    field = ordered(fields[variable], levels, ("hour", "dayofyear"), grid)
    picked = field.isel(hour=xr.DataArray(rows, dims="when"), dayofyear=xr.DataArray(columns, dims="when"))
    return np.asarray(picked.transpose("when", ...).values)


def _index(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Position of each wanted number among values; -1 where it is not."""
    same = np.asarray(values)[None, :] == wanted[:, None]
    return np.where(same.any(1), same.argmax(1), -1)
