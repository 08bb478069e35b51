"""A tropical-cyclone-like vortex that can be set into any global Dataset along a given track."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wxlab.errors import WxlabError
from wxlab.simulate.constants import GAS_CONSTANT, RADIUS, ROTATION

Array = NDArray[np.float64]

DENSITY = 1.15  # kg/m3 at the surface
TOP, BOTTOM = 100.0, 1000.0  # hPa, between which the warm core lies
TEMPERATURE = 300.0  # K of the air column that ties pressure to geopotential
INFLOW = 20.0  # degrees of the wind at 10 m towards the centre
NEAR_SURFACE = 0.8  # of the gradient wind at 10 m
CHANGED = (
    "mean_sea_level_pressure",
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
    "geopotential",
    "temperature",
    "u_component_of_wind",
    "v_component_of_wind",
)


@dataclass(frozen=True)
class Vortex:
    """Holland's profile. ``depth``: Pa below the surroundings.  ``radius``: of the greatest wind, m.  ``shape``: Holland's B."""

    depth: float
    radius: float
    shape: float

    def pressure(self, distance: Array) -> tuple[Array, Array]:
        """Deviation of pressure (Pa) and its slope (Pa/m): -depth (1 - exp(-(R/r)^B)), tapered to 0 from 4 R to 10 R."""
        r = np.maximum(distance, 1e-3 * self.radius)
        ratio = (self.radius / r) ** self.shape
        core = 1 - np.exp(-ratio)
        slope = -np.exp(-ratio) * ratio * self.shape / r
        x = np.clip((r / self.radius - 4) / 6, 0, 1)
        taper = (1 + np.cos(np.pi * x)) / 2
        fall = -np.pi / 2 * np.sin(np.pi * x) / (6 * self.radius)
        return -self.depth * core * taper, -self.depth * (slope * taper + core * fall)


def gradient_wind(force: Array, distance: Array, coriolis: float) -> Array:
    """V (m/s) from V^2/r + |f| V = force (m/s2): V = sqrt((f r/2)^2 + r force) - |f| r/2."""
    half = abs(coriolis) * distance / 2
    wind: Array = np.sqrt(half**2 + distance * np.maximum(force, 0)) - half
    return wind


def _depth_share(level: float) -> tuple[float, float]:
    """s of the geopotential anomaly at sea level that is felt at a pressure (hPa), and ds/dln p."""
    span = math.log(BOTTOM / TOP)
    x = min(max(math.log(level / TOP) / span, 0), 1)
    return (1 - math.cos(math.pi * x)) / 2, math.pi / 2 * math.sin(math.pi * x) / span


def seed_vortex(dataset: xr.Dataset, track: xr.Dataset, *, radius: float | None = None, shape: float = 1.5) -> xr.Dataset:
    """Set a balanced, warm-cored vortex into a Dataset along a track; fields that it does not change are left as they are.

    p' = -dp (1 - exp(-(R/r)^B)) at sea level (Holland 1980), tapered to 0 between 4 R and 10 R; geopotential' = (p'/rho0) s(p),
    rho0 = p/(R_d 300 K), s = (1 - cos(pi x))/2, x = ln(p/100 hPa)/ln 10; temperature' hydrostatic from it (warmest near 316 hPa);
    wind in gradient balance with the geopotential', anticlockwise in the north, clockwise in the south; at 10 m 0.8 of it, turned
    20 degrees inwards.

    dataset: WeatherBench 2 names and units on [time, (level,) latitude, longitude]; it is loaded, so select the times first.
    track: dim ``record`` with ``time``, ``lon``, ``lat`` and ``slp`` (Pa, the central pressure) or ``wind`` (m/s, the greatest
    gradient wind); ``track_id`` where there are several. Positions between the records are interpolated; outside of a track's
    time nothing changes.  radius: of the greatest wind in m (None: 100 km, or 0.8 of a grid row where that is more).  shape: B.
    Returns a new Dataset. Raises WxlabError when track or dataset lack what is needed.
    Reference: Holland 1980, doi:10.1175/1520-0493(1980)108<1212:AAMOTW>2.0.CO;2.
    """
    missing = [name for name in ("time", "lon", "lat") if name not in track.variables]
    if missing or not {"slp", "wind"} & set(track.variables):
        lacking = ", ".join(missing) or "slp (Pa) or wind (m/s)"
        raise WxlabError(f"the track lacks {lacking}; it needs time, lon, lat and slp or wind along the dimension record")
    if not {"time", "latitude", "longitude"} <= set(dataset.dims):
        raise WxlabError(f"the dataset has dimensions {list(dataset.dims)}; it needs time, latitude and longitude")
    if "slp" in track.variables and "mean_sea_level_pressure" not in dataset:
        raise WxlabError("the track gives central pressures and the dataset no mean_sea_level_pressure; add it or give the track's wind")
    spacing = np.deg2rad(float(np.abs(np.diff(dataset.latitude.values)).max())) * RADIUS
    radius = max(100_000.0, 0.8 * spacing) if radius is None else radius
    names = [name for name in CHANGED if name in dataset]
    order = ("time", "level", "latitude", "longitude")
    fields = {name: dataset[name].transpose(*(dim for dim in order if dim in dataset[name].dims)).copy(deep=True).load() for name in names}
    identities = track["track_id"].values if "track_id" in track.variables else np.zeros(track.sizes["record"])
    for identity in np.unique(identities):
        _seed_one(dataset, fields, track.isel(record=np.flatnonzero(identities == identity)).sortby("time"), radius, shape)
    return dataset.assign({name: field.transpose(*dataset[name].dims) for name, field in fields.items()})


def _seed_one(dataset: xr.Dataset, fields: dict[str, xr.DataArray], track: xr.Dataset, radius: float, shape: float) -> None:
    """Change the arrays of ``fields`` for one track."""
    seconds = track["time"].values.astype("datetime64[s]").astype(np.int64)
    longitudes = np.rad2deg(np.unwrap(np.deg2rad(track["lon"].values)))
    times = dataset.time.values.astype("datetime64[s]").astype(np.int64)
    strength = "slp" if "slp" in track.variables else "wind"
    for n in map(int, np.flatnonzero((times >= seconds[0]) & (times <= seconds[-1]))):
        longitude = float(np.interp(times[n], seconds, longitudes)) % 360
        latitude = float(np.interp(times[n], seconds, track["lat"].values))
        value = float(np.interp(times[n], seconds, track[strength].values))
        distance, outward = _around(dataset.latitude.values, dataset.longitude.values, latitude, longitude)
        if strength == "slp":
            here = np.unravel_index(distance.argmin(), distance.shape)
            depth = float(fields["mean_sea_level_pressure"].values[n][here]) - value
        else:
            depth = DENSITY * math.e * value**2 / shape
        if depth > 0:
            _add(fields, n, Vortex(depth, radius, shape), distance, outward, latitude)


def _around(latitudes: Array, longitudes: Array, latitude: float, longitude: float) -> tuple[Array, Array]:
    """Great-circle distance (m) from a centre [latitude, longitude] and the outward unit vector (east, north) [2, ...]."""
    phi, centre = np.deg2rad(latitudes)[:, None], np.deg2rad(latitude)
    east = np.deg2rad(longitude - longitudes)[None]
    x = np.sin(east) * np.cos(centre)
    y = np.cos(phi) * np.sin(centre) - np.sin(phi) * np.cos(centre) * np.cos(east)
    z = np.sin(phi) * np.sin(centre) + np.cos(phi) * np.cos(centre) * np.cos(east)
    length = np.hypot(x, y)
    distance = RADIUS * np.arctan2(length, z)
    return distance, -np.stack(np.broadcast_arrays(x, y)) / np.maximum(length, 1e-12)


def _add(fields: dict[str, xr.DataArray], n: int, vortex: Vortex, distance: Array, outward: Array, latitude: float) -> None:
    """Add the vortex to time ``n`` of every field."""
    sign = 1.0 if latitude >= 0 else -1.0
    # near the equator no balance holds; 5 degrees keeps the wind finite
    coriolis = 2 * ROTATION * np.sin(np.deg2rad(max(abs(latitude), 5.0)))
    pressure, slope = vortex.pressure(distance)
    around = sign * np.stack([-outward[1], outward[0]])
    if "mean_sea_level_pressure" in fields:
        fields["mean_sea_level_pressure"].values[n] += pressure.astype(np.float32)
    low = NEAR_SURFACE * gradient_wind(slope / DENSITY, distance, coriolis)
    turned = np.cos(np.deg2rad(INFLOW)) * around - np.sin(np.deg2rad(INFLOW)) * outward
    for name, part in zip(("u", "v"), turned * low, strict=True):
        if f"10m_{name}_component_of_wind" in fields:
            fields[f"10m_{name}_component_of_wind"].values[n] += part.astype(np.float32)
    levels = next((field.level.values for field in fields.values() if "level" in field.dims), np.empty(0))
    for place, level in enumerate(levels):
        share, change = _depth_share(float(level))
        to_geopotential = GAS_CONSTANT * TEMPERATURE / (BOTTOM * 100)
        wind = gradient_wind(slope * to_geopotential * share, distance, coriolis)
        changes = {
            "geopotential": pressure * to_geopotential * share,
            "temperature": -pressure * to_geopotential * change / GAS_CONSTANT,
            "u_component_of_wind": around[0] * wind,
            "v_component_of_wind": around[1] * wind,
        }
        for name, part in changes.items():
            if name in fields:
                fields[name].values[n, place] += part.astype(np.float32)
