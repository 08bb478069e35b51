"""The fields that tracking reads: checked, in SI units, longitudes in order, one chunk of time steps at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.forcings import seconds
from wxlab.grids import grid_of, is_periodic
from wxlab.readers.units import differ, parse
from wxlab.splits import time_text

LEAD = "prediction_timedelta"
PRESSURE = "mean_sea_level_pressure"
GRAVITY = 9.80665
HOUR = 3600

# to what unit, and what others are turned into it
_FACTORS = {
    "Pa": {"hPa": 100.0},
    "m s-1": {"kt": 0.514444, "km h-1": 1 / 3.6},
    "m2 s-2": {"m": GRAVITY, "dam": 10 * GRAVITY},
}


@dataclass(frozen=True)
class Series:
    """One run of time steps that a track may follow: of one member, one initial time, one segment."""

    times: np.ndarray  # int64 seconds, valid
    init: int | None = None
    leads: np.ndarray | None = None  # hours
    number: int | None = None


@dataclass
class Scene:
    """The fields at one step of a series; each is read when it is first asked for."""

    series: int
    step: int
    time: int
    block: _Block
    place: dict[str, int]

    def get(self, name: str) -> np.ndarray | None:
        """A field [H, W], or None where there is none."""
        return self.block.get(name, self.place)


@dataclass
class _Block:
    """A chunk of every field."""

    arrays: Mapping[str, tuple[xr.DataArray, float]]
    loaded: dict[str, np.ndarray] = field(default_factory=dict)

    def get(self, name: str, place: Mapping[str, int]) -> np.ndarray | None:
        if name not in self.arrays:
            return None
        array, factor = self.arrays[name]
        if name not in self.loaded:
            values = np.asarray(array.values)
            self.loaded[name] = values if factor == 1 else values * np.asarray(factor, values.dtype)
        found: np.ndarray = self.loaded[name][tuple(place[str(dim)] for dim in array.dims[:-2])]
        return found


class Frames:
    """Fields for tracking: ``series`` says what belongs together, ``scenes`` reads them step by step.

    Names of fields: ``pressure``, ``u10``, ``v10``, ``u``, ``v`` (at the vorticity level), ``upper``, ``lower``, ``ground`` (geopotential).
    """

    def __init__(self, data: xr.Dataset, *, vorticity_level: float = 850.0, levels: tuple[float, float] = (300.0, 500.0)) -> None:
        if not isinstance(data, xr.Dataset):
            raise WxlabError(f"tracking needs a Dataset of fields or a forecast, and this is a {type(data).__name__}")
        if PRESSURE not in data:
            raise WxlabError(f"the data lack {PRESSURE}, by which cyclones are found; they have {', '.join(map(str, data.data_vars))}")
        self.forecast = LEAD in data.dims
        self.dim = LEAD if self.forecast else "time"
        data = _with_time(data)
        self.data = _in_order(data)
        self.grid = grid_of(self.data)
        self.lat, self.lon = np.asarray(self.grid.y), np.asarray(self.grid.x)
        self.periodic = is_periodic(self.grid)
        self.missing: list[str] = []  # what was not there, as the tracks' attributes tell it
        self.arrays = self._fields(vorticity_level, levels)
        self._check_pressure()

    @property
    def spacing(self) -> float:
        """Degrees between rows."""
        return float(np.median(np.abs(np.diff(self.lat))))

    def _fields(self, vorticity_level: float, levels: tuple[float, float]) -> dict[str, tuple[xr.DataArray, float]]:
        found = {"pressure": self._one(PRESSURE, "Pa")}
        for name, source in (("u10", "10m_u_component_of_wind"), ("v10", "10m_v_component_of_wind")):
            found[name] = self._one(source, "m s-1")
        for name, source in (("u", "u_component_of_wind"), ("v", "v_component_of_wind")):
            found[name] = self._one(source, "m s-1", vorticity_level)
        upper = self._upper_level(levels[0])
        found |= {"upper": self._one("geopotential", "m2 s-2", upper), "lower": self._one("geopotential", "m2 s-2", levels[1])}
        found["ground"] = self._one("geopotential_at_surface", "m2 s-2")
        groups = {
            "10 m wind": ("u10", "v10"),
            f"wind at {vorticity_level:g} hPa": ("u", "v"),
            f"geopotential at {levels[0]:g} and {levels[1]:g} hPa": ("upper", "lower"),
            "surface geopotential": ("ground",),
        }
        for what, names in groups.items():
            if any(found[name] is None for name in names):
                self.missing.append(what)
                found.update(dict.fromkeys(names))
        if "upper" in found and found["upper"] is not None and upper != levels[0]:
            self.missing.append(f"geopotential at {levels[0]:g} hPa ({upper:g} hPa took its place)")
        return {name: pair for name, pair in found.items() if pair is not None}

    def _upper_level(self, wanted: float) -> float:
        """The upper level of the thickness: where it is not there, the nearest one between 200 and 400 hPa."""
        if "geopotential" not in self.data or "level" not in self.data["geopotential"].dims:
            return wanted
        levels = np.asarray(self.data["level"].values, dtype=np.float64)
        near = levels[(levels >= 200) & (levels <= 400)]
        return wanted if wanted in levels or not len(near) else float(near[np.abs(near - wanted).argmin()])

    def _one(self, name: str, units: str, level: float | None = None) -> tuple[xr.DataArray, float] | None:
        """A field with its dimensions in order and the factor to the units wanted; None where it is not there."""
        if level is not None and name not in self.data and f"{name}_{level:g}" in self.data:
            name, level = f"{name}_{level:g}", None
        if name not in self.data:
            return None
        array = self.data[name]
        if level is not None:
            if "level" not in array.coords or level not in np.atleast_1d(array["level"].values):
                return None
            array = array.sel(level=level) if "level" in array.dims else array
        allowed = [dim for dim in ("time", "number", LEAD, "latitude", "longitude") if dim in array.dims]
        other = [str(dim) for dim in array.dims if dim not in allowed]
        if other:
            raise WxlabError(f"{name} has the dimension {other[0]!r}, along which there is nothing to track; select or average it first")
        return array.transpose(*allowed), _factor(name, str(array.attrs.get("units", "")), units)

    def _check_pressure(self) -> None:
        """Refuse pressures that are no Pa: they would give thresholds another meaning without a word."""
        array, factor = self.arrays["pressure"]
        corner = {dim: 0 for dim in array.dims if dim not in ("latitude", "longitude")}
        steps = [array.isel({**corner, self.dim: k}) for k in range(min(array.sizes[self.dim], 8))] if self.dim in array.dims else [array]
        for step in steps:
            values = np.asarray(step.values)
            if np.isfinite(values).any():
                typical = float(np.nanmedian(values)) * factor
                if not 50_000 < typical < 120_000:
                    hint = "; if it is in hPa, set attrs['units'] = 'hPa' and it is converted" if 500 < typical < 1200 else ""
                    raise WxlabError(f"{PRESSURE} is {typical:.4g} at the median, which is no pressure in Pa{hint}")
                return

    @cached_property
    def series(self) -> list[Series]:
        """What belongs together: by initial time and member, or by member and segment."""
        times, numbers = seconds(self.data["time"].values), _numbers(self.data)
        if self.forecast:
            leads = np.asarray(self.data[LEAD].values).astype("timedelta64[s]").astype(np.int64)
            return [Series(init + leads, int(init), leads / HOUR, number) for init in times for number in numbers]
        return [Series(part, number=number) for number in numbers for part in np.split(times, self._cuts)]

    @cached_property
    def _cuts(self) -> np.ndarray:
        """Where segments begin along time."""
        if "segment" not in self.data.coords or self.data["segment"].dims != ("time",):
            return np.empty(0, int)
        return np.flatnonzero(np.diff(np.asarray(self.data["segment"].values))) + 1

    def _belongs(self, place: Mapping[str, int]) -> tuple[int, int]:
        """Series and step of a place along time, number and lead time."""
        member, when = place.get("number", 0), place["time"]
        if self.forecast:
            return when * max(1, self.data.sizes.get("number", 1)) + member, place[LEAD]
        part = int(np.searchsorted(self._cuts, when, side="right"))
        return member * (len(self._cuts) + 1) + part, when - (int(self._cuts[part - 1]) if part else 0)

    def scenes(self) -> Iterator[Scene]:
        """The fields at each step, those of a series in the order of time.

        One chunk of each field that is asked for is in memory at a time, and each is read once; without chunks one step.
        """
        pressure = self.arrays["pressure"][0]
        dims = [str(dim) for dim in pressure.dims[:-2]]
        lengths = pressure.chunks[:-2] if pressure.chunks else [(1,) * pressure.sizes[dim] for dim in dims]
        for spans in product(*(_spans(length) for length in lengths)):
            at = dict(zip(dims, spans, strict=True))
            parts = {
                name: (array.isel({dim: slice(span.start, span.stop) for dim, span in at.items() if dim in array.dims}), factor)
                for name, (array, factor) in self.arrays.items()
            }
            block = _Block(parts)
            for where in product(*spans):
                place = dict(zip(dims, where, strict=True))
                series, step = self._belongs(place)
                inside = {dim: index - at[dim].start for dim, index in place.items()}
                yield Scene(series, step, int(self.series[series].times[step]), block, inside)


def _spans(lengths: tuple[int, ...]) -> list[range]:
    ends = np.cumsum(lengths).tolist()
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _with_time(data: xr.Dataset) -> xr.Dataset:
    """The data with a dimension time of dates, none of them twice, ascending."""
    if "time" not in data.coords:
        raise WxlabError("the data have no coordinate time; tracking needs states over time, or a forecast with time and lead times")
    if "time" not in data.dims:
        data = data.expand_dims("time")
    if not np.issubdtype(data["time"].dtype, np.datetime64):
        raise WxlabError(f"time holds {data['time'].dtype} and not dates; open the file with decode_times=True")
    if LEAD in data.dims and not np.issubdtype(data[LEAD].dtype, np.timedelta64):
        raise WxlabError(f"{LEAD} holds {data[LEAD].dtype} and not spans of time; open the file with decode_timedelta=True")
    for dim in ("time", LEAD) if LEAD in data.dims else ("time",):
        values = data.indexes[dim]
        if not values.is_unique:
            twice = values[values.duplicated()][0]
            name = time_text(seconds(np.asarray([twice.to_datetime64()]))[0]) if dim == "time" else str(twice)
            raise WxlabError(f"{dim} holds {name} more than once; drop the repeated ones first")
        if not values.is_monotonic_increasing:
            data = data.sortby(dim)
    return data


def _in_order(data: xr.Dataset) -> xr.Dataset:
    """Longitudes ascending and within one turn, whatever their convention."""
    for dim in ("latitude", "longitude"):
        if dim not in data.dims:
            raise WxlabError(f"the data have dimensions {', '.join(map(str, data.sizes))}; tracking needs latitude and longitude")
    lon = np.asarray(data["longitude"].values, dtype=np.float64)
    steps = np.diff(lon)
    if len(lon) > 2 and not (np.all(steps > 0) or np.all(steps < 0)):
        # the seam of 0–360 or of −180–180 within the area: unwrapped it is in order
        lon = np.rad2deg(np.unwrap(np.deg2rad(lon)))
        data = data.assign_coords(longitude=lon)
        steps = np.diff(lon)
    if np.all(steps < 0):
        data = data.isel(longitude=slice(None, None, -1))
        lon = lon[::-1]
    if len(lon) > 2 and np.isclose(lon[-1] - lon[0], 360):
        data = data.isel(longitude=slice(None, -1))  # the first meridian again
    if min(data.sizes["latitude"], data.sizes["longitude"]) < 3:
        raise WxlabError(f"the grid has {data.sizes['latitude']}x{data.sizes['longitude']} points; tracking needs at least 3x3")
    return data


def _numbers(data: xr.Dataset) -> list[int | None]:
    """The number of each member: its name where that is one, else its position."""
    if "number" not in data.dims:
        return [None]
    named = "number" in data.coords and np.issubdtype(data["number"].dtype, np.integer)
    return [int(number) for number in (data["number"].values if named else range(data.sizes["number"]))]


def _factor(name: str, given: str, wanted: str) -> float:
    """By what values are multiplied to get from units to other units."""
    if not differ(given, wanted):
        return 1.0
    for other, factor in _FACTORS[wanted].items():
        if parse(given) == parse(other):
            return factor
    allowed = ", ".join([wanted, *_FACTORS[wanted]])
    raise WxlabError(f"{name} is in {given!r}; tracking understands {allowed}; convert it first")
