"""Axes as every dataset has them: time, level in hPa, latitude, longitude 0-360, member, lead time, or y and x in metres."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from wxlab.readers.source import Piece, Request

ORDER = ("time", "number", "prediction_timedelta", "hour", "dayofyear", "level", "latitude", "longitude", "y", "x")
HORIZONTAL = ("latitude", "longitude", "y", "x")
_ALIASES = {
    "time": ("time", "valid_time", "date", "datetime", "forecast_reference_time", "init_time"),
    "level": ("level", "isobaricInhPa", "isobaricInPa", "pressure_level", "pressure", "plev", "lev", "levelist", "isobaric"),
    "latitude": ("latitude", "lat", "nav_lat", "Latitude", "LAT"),
    "longitude": ("longitude", "lon", "nav_lon", "Longitude", "LON"),
    "number": ("number", "member", "realization", "ensemble", "ens"),
    "prediction_timedelta": ("prediction_timedelta", "step", "lead_time", "leadtime"),
    "y": ("y", "projection_y_coordinate"),
    "x": ("x", "projection_x_coordinate"),
    "hour": ("hour",),
    "dayofyear": ("dayofyear",),
}
_BY_NAME = {alias: axis for axis, aliases in _ALIASES.items() for alias in aliases}
_BY_STANDARD_NAME = {
    "time": "time",
    "air_pressure": "level",
    "latitude": "latitude",
    "longitude": "longitude",
    "realization": "number",
    "forecast_period": "prediction_timedelta",
    "projection_y_coordinate": "y",
    "projection_x_coordinate": "x",
}


def axis_name(dim: Hashable, dataset: xr.Dataset) -> str:
    """The uniform name of a file's dimension: by its name, else by the CF standard_name of its coordinate, else unchanged."""
    if dim in _BY_NAME:
        return _BY_NAME[str(dim)]
    standard = dataset[dim].attrs.get("standard_name") if dim in dataset.coords else None
    return _BY_STANDARD_NAME.get(standard or "", str(dim))


def axis_values(request: Request, piece: Piece, dim: Hashable, axis: str) -> NDArray[Any]:
    """Coordinate values of one dimension in uniform units; WxlabError where a coordinate is missing or makes no sense."""
    dataset = piece.dataset
    if dim not in dataset.coords:
        if axis in ("y", "x", "number"):
            return np.arange(dataset.sizes[dim])
        flat = [name for name in dataset.variables if _BY_NAME.get(str(name)) in HORIZONTAL and dataset[name].ndim == 2]
        if flat:
            raise request.error(
                f"{piece.where} has a curvilinear grid ({flat[0]} is two-dimensional); regrid it to latitude and longitude first"
            )
        raise request.error(
            f"dimension {str(dim)!r} of {piece.where} has no coordinate; add one to the file or choose a position with select"
        )
    coordinate = dataset[dim]
    if axis == "time":
        valid = dataset.variables.get("valid_time")
        # GRIB messages are labelled by their start; a field belongs to the time for which it is valid
        if valid is not None and valid.dims == (dim,):
            coordinate = dataset["valid_time"]
        return times(request, piece, coordinate)
    values = np.asarray(coordinate.values)
    if axis == "prediction_timedelta":
        if values.dtype.kind != "m":
            raise request.error(f"lead times {str(dim)!r} of {piece.where} are {values.dtype}, not time differences; give them CF units")
        return values.astype("timedelta64[ns]")
    if axis in ("hour", "dayofyear", "number"):
        return values
    values = _numbers(request, piece, dim, values)
    if axis == "level":
        return levels(values, coordinate)
    if axis == "longitude":
        # rounded so that -0.25 and 359.75 name the same meridian in every file
        return np.round(np.mod(values, 360.0), 6) % 360.0
    if axis == "latitude":
        _check_latitude(request, piece, values)
    if axis in ("y", "x"):
        return metres(request, values)
    return values


def refuse_curvilinear(request: Request, piece: Piece, dims: tuple[Hashable, ...]) -> None:
    """WxlabError when latitude or longitude of a variable with these dimensions are two-dimensional."""
    for name, variable in piece.dataset.variables.items():
        if _BY_NAME.get(str(name)) in ("latitude", "longitude") and variable.ndim == 2 and set(variable.dims) <= set(dims):
            if all(_BY_NAME.get(str(dim)) in ("y", "x") for dim in variable.dims):
                return  # a map projection, whose own y and x are used
            what = f"{piece.where} has a curvilinear grid ({name} is two-dimensional)"
            raise request.error(f"{what}; regrid it to latitude and longitude first")


def _numbers(request: Request, piece: Piece, dim: Hashable, values: NDArray[Any]) -> NDArray[np.float64]:
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        raise request.error(f"coordinate {str(dim)!r} of {piece.where} holds {values.dtype}, not numbers; mend the file") from None
    if not np.isfinite(numbers).all():
        raise request.error(f"coordinate {str(dim)!r} of {piece.where} has missing values; mend the file")
    return numbers


def _check_latitude(request: Request, piece: Piece, values: NDArray[np.float64]) -> None:
    if values.size and np.abs(values).max() > 90 + 1e-6:
        worst = values[np.abs(values).argmax()]
        raise request.error(f"latitudes of {piece.where} reach {worst:g} degrees; they must lie in -90..90 (are the axes swapped?)")
    steps = np.diff(values)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise request.error(f"latitudes of {piece.where} neither rise nor fall all the way; sort them in the file")


def times(request: Request, piece: Piece, coordinate: xr.DataArray) -> NDArray[Any]:
    """Times as datetime64[ns]; WxlabError for other calendars and undecoded numbers."""
    values = np.atleast_1d(coordinate.values)
    if values.dtype.kind == "M":
        if np.isnat(values).any():
            raise request.error(f"{int(np.isnat(values).sum())} of the times of {piece.where} are missing; mend the file")
        return values.astype("datetime64[ns]")
    if values.dtype == object and values.size and hasattr(values[0], "calendar"):
        raise request.error(
            f"{piece.where} uses the calendar {values[0].calendar!r} or dates outside 1678-2262; "
            "convert the times to the standard calendar first (xarray: convert_calendar)"
        )
    raise request.error(f"times of {piece.where} are {values.dtype} without usable CF units; add units such as 'hours since 2000-01-01'")


def levels(values: NDArray[np.float64], coordinate: xr.DataArray) -> NDArray[Any]:
    """Pressure levels in hPa, whole numbers where they are whole."""
    units = str(coordinate.attrs.get("units", "")).strip().lower()
    pascal = units in ("pa", "pascal", "pascals") or (not units and values.size > 0 and values.max() > 1200)
    hectopascal = np.round(values / 100, 6) if pascal else values
    whole = hectopascal.astype(np.int64)
    return whole if (whole == hectopascal).all() else hectopascal


def metres(request: Request, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cartesian coordinates in metres; kilometres are known by the declared resolution."""
    grid = request.entry.grid
    if grid is None or not grid.resolution_km or len(values) < 2:
        return values
    spacing = abs(float(values[1] - values[0]))
    return values * 1000 if np.isclose(spacing, grid.resolution_km, rtol=1e-3) else values


def scalar_axis(request: Request, piece: Piece, axis: str) -> NDArray[Any] | None:
    """The one value of an axis that a file has only as a scalar coordinate: time of a single state, one level."""
    for name in ("valid_time", *_ALIASES["time"]) if axis == "time" else _ALIASES[axis]:
        found = piece.dataset.coords.get(name)
        if found is not None and found.ndim == 0:
            if axis == "time":
                return times(request, piece, found)
            return levels(np.atleast_1d(found.values).astype(np.float64), found)
    start = request.entry.time.start if request.entry.time else None
    single = request.entry.time is not None and request.entry.time.step == "single"
    return np.array([pd.Timestamp(start)], "datetime64[ns]") if axis == "time" and single and start is not None else None
