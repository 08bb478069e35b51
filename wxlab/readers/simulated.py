"""The embedded data: catalogue entries that call a simulator."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import xarray as xr

from wxlab.errors import unknown
from wxlab.readers.source import Request
from wxlab.readers.uniform import in_time

_GENERATORS = {
    "atmosphere": ("wxlab.simulate", "atmosphere"),
    "radar": ("wxlab.simulate", "radar"),
    "moving_digits": ("wxlab.simulate.moving_digits", "moving_digits"),
}


def open_whole(request: Request) -> xr.Dataset:
    """Call the entry's generator with the rest of its options; what it returns is uniform already."""
    settings = {key: value for key, value in request.entry.options.items() if key != "cut_time"}
    module, function = _GENERATORS[settings.pop("generator")]
    generate: Any = getattr(import_module(module), function)
    parameters = inspect.signature(generate).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in settings:
            if key not in parameters:
                raise unknown(f"setting of {request.name}", key, parameters)
    dataset: xr.Dataset = generate(**settings)
    wanted = list(request.entry.variables)
    for name in wanted:
        if name not in dataset:
            raise unknown(f"variable of {request.name}", name, map(str, dataset.data_vars))
    if "latitude" in dataset.dims:
        rising = bool(dataset["latitude"][0] < dataset["latitude"][-1])
        dataset = dataset.assign_attrs(latitude_order="ascending" if rising else "descending")
    chosen = dataset[wanted] if wanted else dataset
    lazy = {name: array.copy(data=array.variable.chunk().data) for name, array in chosen.data_vars.items() if array.chunks is None}
    return in_time(request, chosen.assign(lazy))
