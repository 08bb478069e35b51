"""Channels: how variables and levels of a Dataset become the channel axis of an array, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown

# variables that live on pressure levels: ``geopotential_500`` is one of these, ``total_precipitation_6hr`` and ``layer_1`` are not
LEVEL_VARIABLES = frozenset(
    {
        "geopotential",
        "temperature",
        "u_component_of_wind",
        "v_component_of_wind",
        "specific_humidity",
        "relative_humidity",
        "vertical_velocity",
        "wind_speed",
        "vorticity",
        "divergence",
        "potential_vorticity",
        "potential_temperature",
        "ozone_mass_mixing_ratio",
        "fraction_of_cloud_cover",
        "specific_cloud_ice_water_content",
        "specific_cloud_liquid_water_content",
        "specific_rain_water_content",
        "specific_snow_water_content",
        "latent",  # of an autoencoder: its channels lie on the axis of levels
    }
)


def split_channel(channel: str) -> tuple[str, int | None]:
    """``geopotential_500`` -> (``geopotential``, 500); ``2m_temperature`` -> (``2m_temperature``, None)."""
    match = re.fullmatch(r"(.+)_(\d+)", channel)
    if match and match[1] in LEVEL_VARIABLES:
        return match[1], int(match[2])
    return channel, None


def locate_channel(dataset: xr.Dataset, channel: str) -> tuple[str, int | None]:
    """Variable and level (hPa) of a channel in a Dataset.  Raises WxlabError when the Dataset lacks it."""
    if channel in dataset:
        if "level" in dataset[channel].dims:
            raise WxlabError(f"{channel!r} has levels, and a channel has one; name it with its level, such as '{channel}_500'")
        return channel, None
    match = re.fullmatch(r"(.+)_(\d+)", channel)
    if match and match[1] in dataset and "level" in dataset[match[1]].dims:
        level = int(match[2])
        if level not in np.asarray(dataset["level"].values):
            raise _no_level(level, match[1], dataset)
        return match[1], level
    raise unknown("variable", channel, dataset.data_vars)


def _no_level(level: object, variable: str, dataset: xr.Dataset) -> WxlabError:
    levels = ", ".join(f"{value:g}" for value in np.asarray(dataset["level"].values))
    return WxlabError(f"{variable!r} has no level {level} hPa; its levels are {levels}")


def dataset_channels(
    dataset: xr.Dataset, variables: Sequence[str] | None = None, levels: int | Sequence[int] | None = None
) -> tuple[str, ...]:
    """Names of the channels of a Dataset, variable by variable, level by level.

    variables: names of variables or of single channels (``geopotential_500``); all that vary in time when None.
    levels: hPa, one or several, for variables with levels; all when None.  Raises WxlabError for a name or level that is not there.
    """
    if variables is None:
        variables = [str(name) for name, field in dataset.data_vars.items() if "time" in field.dims]
    if isinstance(variables, str):
        variables = [variables]
    if isinstance(levels, (int, np.integer)):
        levels = [int(levels)]
    channels: list[str] = []
    for variable in variables:
        if variable not in dataset or "level" not in dataset[variable].dims:
            locate_channel(dataset, variable)
            channels.append(variable)
            continue
        present = np.asarray(dataset["level"].values)
        for level in present if levels is None else levels:
            if level not in present:
                raise _no_level(level, variable, dataset)
            channels.append(f"{variable}_{int(level)}")
    if not channels:
        raise WxlabError(f"no variable was asked for; the data have {', '.join(map(str, dataset.data_vars))}")
    if len(set(channels)) != len(channels):
        twice = sorted({name for name in channels if channels.count(name) > 1})
        raise WxlabError(f"{', '.join(twice)} asked for twice; name each channel once")
    return tuple(channels)


def stack(dataset: xr.Dataset, channels: Sequence[str]) -> xr.DataArray:
    """Put channels of a Dataset on one axis, before the two grid dimensions: [..., channel, y, x]."""
    fields = []
    for channel in channels:
        variable, level = locate_channel(dataset, channel)
        field = dataset[variable]
        fields.append((field if level is None else field.sel(level=level)).reset_coords(drop=True))
    grid = ("latitude", "longitude") if "latitude" in dataset.dims else ("y", "x")
    joined = xr.concat(fields, dim=xr.IndexVariable("channel", list(channels)), coords="minimal", compat="override", join="exact")
    return joined.transpose(..., "channel", *grid).rename("state")


def unstack(array: xr.DataArray) -> xr.Dataset:
    """Turn the channel axis [..., channel, y, x] back into variables; those on pressure levels get ``level`` back.

    Where variables have different levels, ``level`` holds them all and what a variable lacks is missing (NaN).
    """
    names = [str(name) for name in array["channel"].values]
    located = [split_channel(name) for name in names]
    levels = sorted({level for _, level in located if level is not None})
    spatial = [str(dim) for dim in array.dims[-2:]]
    variables: dict[str, xr.DataArray] = {}
    for variable in dict.fromkeys(variable for variable, _ in located):
        places = {level: index for index, (name, level) in enumerate(located) if name == variable}
        if None in places:
            variables[variable] = array.isel(channel=places[None]).drop_vars("channel")
            continue
        own = sorted(level for level in places if level is not None)
        chosen = array.isel(channel=[places[level] for level in own]).drop_vars("channel").rename(channel="level")
        chosen = chosen.assign_coords(level=np.asarray(own, dtype=np.int64))
        variables[variable] = chosen if own == levels else chosen.reindex(level=levels)
    result = xr.Dataset(variables)
    return result.transpose(..., *(["level"] if levels else []), *spatial)


def belongs(channel: str, name: str) -> bool:
    """Whether ``name`` is the channel itself or the variable that it is a level of."""
    return channel == name or re.fullmatch(re.escape(name) + r"_\d+", channel) is not None
