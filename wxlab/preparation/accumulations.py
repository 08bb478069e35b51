"""Accumulated fields: totals since some start become totals of intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.forcings import DAY, seconds
from wxlab.splits import regular_step


def deaccumulate(field: xr.DataArray, *, resets: Sequence[int] | None = (0,), hours: float | None = None) -> xr.DataArray:
    """Totals since the start of a forecast or a day -> totals of each interval.

    P(t) = A(t) − A(t − step), or A(t) where a new accumulation started at t − step; never below 0 (packing leaves small negatives).
    field: accumulated values along ``time``.  resets: hours UTC at which accumulation starts anew ((0,) for ERA5-Land, (6, 18) for
    ERA5's short forecasts; every hour for totals that are hourly already); None: where the values drop.
    hours: sum the intervals to totals of so many hours, at times that are multiples of it.
    Returns the same unit; NaN where the interval before is not known.  Raises WxlabError when hours is no multiple of the step.
    """
    times = seconds(field["time"].values)
    step = regular_step(times)
    before = field.shift(time=1)
    follows = xr.DataArray(np.concatenate([[False], np.diff(times) == step]), dims="time")
    if resets is None:
        fresh = field < before
    else:
        fresh = xr.DataArray(np.isin((times - step) % DAY, [hour * 3600 for hour in resets]), dims="time")
    total = xr.where(fresh, field, (field - before).where(follows)).clip(min=0).transpose(*field.dims)
    if hours is not None:
        count, rest = divmod(round(hours * 3600), step) if step else (0, 0)
        if count < 1 or rest:
            raise WxlabError(f"{hours:g} h is no multiple of the data's step of {step / 3600:g} h; choose one that is")
        whole = np.zeros(len(times), dtype=bool)
        whole[count - 1 :] = times[count - 1 :] - times[: len(times) - count + 1] == step * (count - 1)
        summed = sum(total.shift(time=k) for k in range(count)).where(xr.DataArray(whole, dims="time"))
        total = summed.isel(time=np.flatnonzero(times % round(hours * 3600) == 0))
    total.attrs = dict(field.attrs)
    return total.rename(field.name)


def apply(dataset: xr.Dataset, accumulated: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """Replace accumulated variables by interval totals with the hours in the name; times whose interval is not known are left out.

    accumulated: variable -> settings of ``deaccumulate``: {"resets": [0], "hours": 6}.
    """
    for name, settings in accumulated.items():
        if name not in dataset:
            raise unknown("accumulated variable", name, dataset.data_vars)
        for key in settings:
            if key not in ("resets", "hours"):
                raise unknown(f"setting of the accumulated variable {name!r}", key, ("resets", "hours"))
        field = dataset[name] if dataset[name].chunks is not None else dataset[name].chunk({"time": 256})
        total = deaccumulate(field, **settings)
        known = deaccumulate(xr.zeros_like(field["time"], dtype=np.float32), **settings).notnull()
        total = total.sel(time=known["time"][known])
        hours = settings.get("hours") or regular_step(seconds(field["time"].values)) / 3600
        dataset = dataset.drop_vars(name).sel(time=total["time"])
        dataset[f"{re.sub(r'_[0-9]+hr$', '', name)}_{hours:g}hr"] = total
    return dataset
