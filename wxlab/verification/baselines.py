"""References that any forecast has to beat: nothing changes, and what is usual at the time of the year."""

from __future__ import annotations

import numpy as np
import xarray as xr

from wxlab.climatology import Climatology
from wxlab.errors import WxlabError
from wxlab.forcings import seconds
from wxlab.grids import grid_of
from wxlab.splits import time_text
from wxlab.verification.inputs import (
    LEAD,
    Reference,
    States,
    as_forecast,
    as_states,
    channel_names,
    climatology_reader,
    has_level,
    levels_of,
    ordered,
    positions,
    same_grid,
    shared_variables,
    valid_times,
)


def persistence(states: States, *, like: xr.Dataset) -> xr.Dataset:
    """The forecast that the state at the initial time stays: x̂(t + τ) = x(t).

    states: a Dataset over time, a store, or its path, that holds the initial times of ``like``.  like: the forecast that it will be
    compared with.  Returns a forecast for its initial times, lead times, variables and levels, without members; the states are not
    copied for each lead time.  Raises WxlabError when an initial time is missing, or variables and grids do not fit.
    """
    like, states = as_forecast(like, "like"), as_states(states)
    grid = same_grid(like, grid_of(states), "states")
    index = positions(seconds(like["time"].values), states["time"].values)
    if (index < 0).any():
        absent = seconds(like["time"].values)[index < 0]
        raise WxlabError(
            f"the states lack {len(absent)} of the {len(index)} initial times of the forecast, the first of them {time_text(absent[0])}; "
            f"give states for all"
        )
    fields = {}
    for name, levels in shared_variables(like, states).items():
        field = ordered(states[name].reset_coords(drop=True), levels, ("time",), grid).isel(time=index)
        field = field.expand_dims({LEAD: like[LEAD].values}, axis=1).assign_coords(time=like["time"].values)
        fields[name] = field.isel(level=0, drop=True) if levels == [None] else field
    return xr.Dataset(fields, attrs={"model": "persistence"})


def climatology_forecast(climatology: Reference, *, like: xr.Dataset) -> xr.Dataset:
    """The forecast of the usual state at the valid time: x̂(t + τ) = c(t + τ).

    climatology: ``store.climatology()``, or a Dataset with hour and dayofyear as WeatherBench 2 has it.  like: the forecast that it
    will be compared with.  Returns a forecast for its initial times, lead times, and those of its variables that the climatology
    has, without members.  Raises WxlabError when it has none of them, or lies on another grid.
    """
    like = as_forecast(like, "like")
    read = climatology_reader(climatology, like)
    grid = grid_of(like)
    stamps, where = np.unique(valid_times(like), return_inverse=True)
    where = where.reshape(like.sizes["time"], like.sizes[LEAD])
    coords = {"time": like["time"].values, LEAD: like[LEAD].values, grid.dims[0]: like[grid.dims[0]], grid.dims[1]: like[grid.dims[1]]}
    fields = {}
    for name, field in like.data_vars.items():
        levels = [level for level in levels_of(field) if _has(climatology, str(name), level)]
        if not {"time", LEAD} <= set(field.dims) or not levels:
            continue
        values = read(str(name), levels, stamps)[where]
        if levels == [None]:
            fields[name] = xr.DataArray(values[:, :, 0], dims=("time", LEAD, *grid.dims), coords=coords)
        else:
            fields[name] = xr.DataArray(values, dims=("time", LEAD, "level", *grid.dims), coords={**coords, "level": levels})
        fields[name].attrs.update(field.attrs)
    if not fields:
        raise WxlabError(f"the climatology has none of the variables of the forecast: {', '.join(map(str, like.data_vars))}")
    return xr.Dataset(fields, attrs={"model": "climatology"})


def _has(climatology: Reference, variable: str, level: float | None) -> bool:
    if isinstance(climatology, Climatology):
        return channel_names(variable, [level])[0] in climatology.channels
    return variable in climatology and has_level(climatology[variable], level)
