"""From pieces as files have them to one dataset as everything else expects it: names, units, axes, order."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.catalog_schema import VariableSource, as_time, base_variable, nearest
from wxlab.readers.coordinates import HORIZONTAL, ORDER, axis_name, axis_values, refuse_curvilinear, scalar_axis
from wxlab.readers.source import Piece, Request, SourceArray, lazy
from wxlab.readers.units import differ

# fields that do not change with time; files often carry them with a time axis all the same
STATICS = frozenset({"geopotential_at_surface", "land_sea_mask", "slope_of_sub_gridscale_orography", "standard_deviation_of_orography"})


def uniform(request: Request, pieces: list[Piece]) -> xr.Dataset:
    """One dataset of the entry's variables: WeatherBench 2 names, SI units, float32, lazy; axes as in ``coordinates``."""
    parts: dict[str, list[xr.DataArray]] = {name: [] for name in request.entry.variables}
    for piece in pieces:
        for name, source in request.entry.variables.items():
            if source.name in piece.dataset.variables and piece.dataset[source.name].ndim:
                parts[name].append(_part(request, piece, name, source, first=not parts[name]))
    _check_present(request, pieces, parts)
    fields: dict[str, list[xr.DataArray]] = {}
    for name, found in parts.items():
        fields.setdefault(base_variable(name, request.vocabulary)[0], []).append(_join(request, name, found))
    arrays = {name: _stack_levels(request, name, found) for name, found in fields.items()}
    _check_same_grid(request, arrays)
    aligned = xr.align(*arrays.values(), join="outer", copy=False, exclude=HORIZONTAL)
    dataset = xr.Dataset(dict(zip(arrays, aligned, strict=True)))
    return describe(request, in_time(request, dataset))


def _check_present(request: Request, pieces: list[Piece], parts: dict[str, list[xr.DataArray]]) -> None:
    lacking = [(name, request.entry.variables[name].name) for name, found in parts.items() if not found]
    if not lacking:
        return
    there = sorted({str(name) for piece in pieces for name in piece.dataset.data_vars})
    name, in_file = lacking[0]
    others = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    hint = nearest(in_file, there) if nearest(in_file, there) else f" (it holds {len(there)} variables)"
    where = pieces[0].where if len(pieces) == 1 else f"the {len(pieces)} files"
    raise request.error(
        f"variable {name!r} is called {in_file!r} in the entry, and {where} has none of that name{others}{hint}; "
        "correct the name or ask for fewer with variables=[...]"
    )


def _part(request: Request, piece: Piece, name: str, source: VariableSource, first: bool) -> xr.DataArray:
    """One variable of one file, lazily, with uniform axes."""
    variable = piece.dataset.variables[source.name]
    base, level = base_variable(name, request.vocabulary)
    _check_units(request, name, source, str(variable.attrs.get("units", "")))
    array = SourceArray(variable, name, request, piece.where)
    if first and not piece.remote:
        array.sample()
    refuse_curvilinear(request, piece, variable.dims)
    axes = {dim: axis_name(dim, piece.dataset) for dim in variable.dims}
    data = xr.DataArray(lazy(array, request, variable.dims), dims=[axes[dim] for dim in variable.dims], name=base)
    data = _selected(request, piece, name, data, axes, source, level)
    if "time" not in data.dims and base not in STATICS and (time := scalar_axis(request, piece, "time")) is not None:
        data = data.expand_dims(time=time)
    if base in STATICS and "time" in data.dims:
        data = data.isel(time=0, drop=True)
    return _with_level(request, piece, name, data, level)


def _selected(
    request: Request, piece: Piece, name: str, data: xr.DataArray, axes: dict[Hashable, str], source: VariableSource, level: int | None
) -> xr.DataArray:
    """Apply ``select``, attach coordinates, refuse axes that are left over, sort longitudes and levels."""
    if len(set(axes.values())) < len(axes):
        kinds = tuple(map(str, axes))
        raise request.error(f"variable {name!r} in {piece.where} has two axes of one kind {kinds}; choose on one with select")
    wanted = {_axis_of(key, axes): value for key, value in source.select.items()}
    for key in wanted:
        if key not in data.dims:
            raise request.error(f"select: {{{key}: ...}} of variable {name!r} does not fit, its axes are {', '.join(map(str, data.dims))}")
    for dim, axis in axes.items():
        extra = axis not in ORDER
        if extra and axis not in wanted:
            if data.sizes[axis] == 1:
                data = data.isel({axis: 0})
                continue
            raise request.error(
                f"variable {name!r} in {piece.where} has the axis {axis!r} of length {data.sizes[axis]}, which is not known; "
                f"choose on it with select: {{{axis}: ...}}"
            )
        if extra:
            values = piece.dataset[dim].values if dim in piece.dataset.coords else np.arange(data.sizes[axis])
        else:
            values = axis_values(request, piece, dim, axis)
        data = data.assign_coords({axis: values})
        if axis in wanted:
            data = _choose(request, name, data, axis, wanted[axis])
    if level is not None and "level" in data.dims:
        data = _choose(request, name, data, "level", level)
    return _sorted(request, piece, data).transpose(*ORDER, missing_dims="ignore")


def _axis_of(key: str, axes: dict[Hashable, str]) -> str:
    return axes.get(key, key)


def _choose(request: Request, name: str, data: xr.DataArray, axis: str, value: Any) -> xr.DataArray:
    """The part at ``value`` (a list keeps the axis; so does a level)."""
    asked = value if isinstance(value, list) else [value]
    coordinate = data.indexes[axis]
    try:
        labels = [pd.Timestamp(item) for item in asked] if isinstance(coordinate, pd.DatetimeIndex) else asked
        positions = [int(np.flatnonzero(coordinate == label)[0]) for label in labels]
    except (IndexError, ValueError, TypeError):
        shown = ", ".join(str(item) for item in coordinate[:12]) + (", ..." if len(coordinate) > 12 else "")
        raise request.error(f"variable {name!r} has no {axis} {value} (there are: {shown}); choose one of these") from None
    chosen = data.isel({axis: positions})
    return chosen if isinstance(value, list) or axis == "level" else chosen.isel({axis: 0}, drop=True)


def _sorted(request: Request, piece: Piece, data: xr.DataArray) -> xr.DataArray:
    for axis in ("longitude", "level"):
        if axis not in data.dims:
            continue
        values = data[axis].values
        kept, order = np.unique(values, return_index=True)
        if len(kept) < len(values) and axis == "level":
            raise request.error(f"levels of {piece.where} are given twice ({', '.join(map(str, values))}); mend the file")
        if len(order) < len(values) or (np.diff(order) < 0).any():  # also drops a repeated meridian
            data = data.isel({axis: order})
    return data


def _with_level(request: Request, piece: Piece, name: str, data: xr.DataArray, level: int | None) -> xr.DataArray:
    if "level" in data.dims:
        return data
    if level is not None:
        return data.expand_dims(level=[level]).transpose(*ORDER, missing_dims="ignore")
    found = None if name in STATICS else scalar_axis(request, piece, "level")
    return data if found is None else data.expand_dims(level=found).transpose(*ORDER, missing_dims="ignore")


def _check_units(request: Request, name: str, source: VariableSource, given: str) -> None:
    base, _ = base_variable(name, request.vocabulary)
    wanted = request.vocabulary[base].units
    if source.scale == 1 and source.offset == 0 and request.entry.options.get("check_range", True) and differ(given, wanted):
        raise request.error(
            f"variable {name!r} ({source.name!r} in the file) is in {given!r}, and {wanted!r} is wanted; "
            "declare its scale and offset in the entry"
        )


def _join(request: Request, name: str, parts: list[xr.DataArray]) -> xr.DataArray:
    """Files of one variable joined along time, and along level where files hold one level each."""
    if len(parts) == 1 or "time" not in parts[0].dims:
        return parts[0]
    first = parts[0]
    for part in parts[1:]:
        for axis in HORIZONTAL:
            if axis in first.dims and (axis not in part.dims or not _same(first[axis].values, part[axis].values)):
                raise request.error(f"the files of variable {name!r} lie on different grids ({axis} differs); give files of one grid")
        if set(part.dims) != set(first.dims):
            raise request.error(f"the files of variable {name!r} have different axes {first.dims} and {part.dims}; give files of one kind")
    by_level: dict[tuple[Any, ...], list[xr.DataArray]] = {}
    for part in parts:
        by_level.setdefault(tuple(part["level"].values.tolist()) if "level" in part.dims else (), []).append(part)
    joined = []
    for group in by_level.values():
        group.sort(key=lambda part: part["time"].values[0])
        joined.append(xr.concat(group, "time", join="override", coords="minimal", compat="override") if len(group) > 1 else group[0])
    return _stack_levels(request, name, joined)


def _same(one: Any, other: Any) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, atol=1e-4))


def _stack_levels(request: Request, name: str, parts: list[xr.DataArray]) -> xr.DataArray:
    if len(parts) == 1:
        return parts[0]
    values = [int(value) for part in parts for value in part["level"].values]
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise request.error(f"variable {name!r} is defined more than once at {', '.join(map(str, twice))} hPa; keep one definition")
    return xr.concat(parts, "level", join="outer", coords="minimal", compat="override").sortby("level")


def _check_same_grid(request: Request, arrays: dict[str, xr.DataArray]) -> None:
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        for axis in HORIZONTAL:
            if axis in first.dims and axis in array.dims and not _same(first[axis].values, array[axis].values):
                raise request.error(
                    f"variables {first_name!r} and {name!r} lie on different grids ({axis} differs); make two entries of them"
                )
            if axis in array.dims and axis in first.dims:
                arrays[name] = array = array.assign_coords({axis: first[axis].values})


def in_time(request: Request, dataset: xr.Dataset) -> xr.Dataset:
    """Times unique and rising; cut to start and end where the entry or the caller says so."""
    if "time" not in dataset.dims:
        return dataset
    index = dataset.indexes["time"]
    if index.has_duplicates:
        twice = index[index.duplicated()].unique()
        shown = ", ".join(stamp.isoformat() for stamp in twice[:3]) + (", ..." if len(twice) > 3 else "")
        raise request.error(f"{len(twice)} times occur more than once ({shown}); leave out one of the files or remove the doubles")
    if not index.is_monotonic_increasing:
        dataset = dataset.isel(time=np.argsort(index.values))
    limits = request.entry.time
    if limits is None or not request.entry.options.get("cut_time"):
        return dataset
    start = None if limits.start is None else as_time(limits.start)
    end = None if limits.end is None else as_time(limits.end, end=True)
    cut = dataset.sel(time=slice(start, end))
    if not cut.sizes["time"]:
        times = dataset.indexes["time"]
        raise request.error(f"no time lies in {limits.start} to {limits.end}; the data run from {times[0]} to {times[-1]}")
    return cut


def describe(request: Request, dataset: xr.Dataset) -> xr.Dataset:
    """Attributes: names and units of variables, order of latitude, and where a region torn at longitude 0 begins."""
    for name in dataset.data_vars:
        known = request.vocabulary.get(str(name))
        if known is not None:
            dataset[name].attrs = {"standard_name": known.standard_name, "units": known.units}
    units = {"latitude": "degrees_north", "longitude": "degrees_east", "level": "hPa"}
    if request.entry.grid is not None and request.entry.grid.resolution_km:
        units |= {"y": "m", "x": "m"}
    for axis, unit in units.items():
        if axis in dataset.coords:
            dataset[axis].attrs = {"units": unit}
    if "latitude" in dataset.dims:
        values = dataset["latitude"].values
        dataset.attrs["latitude_order"] = "ascending" if len(values) < 2 or values[0] < values[-1] else "descending"
    start = seam(dataset)
    if start:
        dataset.attrs["longitude_seam"] = start
    return dataset


def seam(dataset: xr.Dataset) -> int:
    """Index of the column where a region across longitude 0 begins in the west; 0 when columns lie side by side already.

    A region from 10W to 2E has longitudes 0..2, 350..359.75 once sorted: its west is the column at 350.
    """
    if "longitude" not in dataset.dims or dataset.sizes["longitude"] < 3:
        return 0
    steps = np.diff(dataset["longitude"].values)
    widest = int(steps.argmax())
    around = 360 - float(dataset["longitude"].values[-1] - dataset["longitude"].values[0])
    torn = steps[widest] > 2 * np.median(steps) and around < 2 * np.median(steps)
    return widest + 1 if torn else 0


def contiguous(dataset: xr.Dataset) -> xr.Dataset:
    """The columns of a region across longitude 0 side by side, west to east, longitudes running on past 360.

    dataset: as ``open_dataset`` gives it.  Returns it unchanged when nothing is torn.
    """
    start = seam(dataset)
    if not start:
        return dataset
    longitude = dataset["longitude"].values
    order = np.r_[start : len(longitude), 0:start]
    rolled = dataset.isel(longitude=order).assign_coords(longitude=np.r_[longitude[start:], longitude[:start] + 360])
    rolled["longitude"].attrs = {"units": "degrees_east"}
    rolled.attrs.pop("longitude_seam", None)
    return rolled
