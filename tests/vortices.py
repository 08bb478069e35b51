"""Fields with Holland vortices on known great circles and noise like weather, for tests of the tracking."""

from __future__ import annotations

import numpy as np
import xarray as xr

from wxlab.cyclones.sphere import EARTH, destination, unit
from wxlab.simulate import seed_vortex

LEVELS = [300, 500, 850]


def axes(spacing: float, south: float = -90, north: float = 90, west: float = 0, east: float = 360) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a grid: of the globe with poles, or of a region."""
    lat = np.linspace(south, north, round((north - south) / spacing) + 1)
    lon = np.arange(west, east - 1e-6, spacing)
    return lat, lon


def great_circle(lat: float, lon: float, bearing: float, km: float, steps: int, *, slp: float = 96_000.0, track: int = 0) -> xr.Dataset:
    """Six-hourly records along a great circle, ``km`` apart."""
    where = destination(np.full(steps, lat), np.full(steps, lon), bearing, np.arange(steps) * km)
    times = np.datetime64("2001-09-01", "ns") + np.arange(steps) * np.timedelta64(6, "h")
    columns = {"track_id": np.full(steps, track), "time": times, "lon": where[1], "lat": where[0], "slp": np.full(steps, slp)}
    return xr.Dataset({name: ("record", values) for name, values in columns.items()})


def noise(random: np.random.Generator, steps: int, lat: np.ndarray, lon: np.ndarray, amplitude: float) -> np.ndarray:
    """Red noise that moves: plane waves in space seen on the sphere (no direction or pole is special), of 200 to 6000 km.

    Standard deviation ``amplitude`` at the poles and a quarter of it at the equator, as weather has it.
    """
    count = 150
    length = np.exp(random.uniform(np.log(200), np.log(6000), count))  # km
    direction = random.normal(size=(count, 3))
    waves = direction / np.linalg.norm(direction, axis=1, keepdims=True) * (2 * np.pi * EARTH / length)[:, None]
    size = length / np.sqrt((length**2).sum() / 2)
    phase = waves @ unit(lat[:, None], lon[None]).reshape(-1, 3).T  # [count, points]
    turn = random.uniform(0, 2 * np.pi, count) + np.arange(steps)[:, None] * random.normal(0, 0.4, count) * np.sqrt(1500 / length)
    waved = (size * np.cos(turn)) @ np.cos(phase) - (size * np.sin(turn)) @ np.sin(phase)
    shape = (0.25 + 0.75 * np.sin(np.deg2rad(lat)) ** 2)[:, None]
    return (amplitude * shape * waved.reshape(steps, len(lat), len(lon))).astype(np.float32)


def fields(
    spacing: float,
    steps: int,
    tracks: xr.Dataset | None = None,
    *,
    region: tuple[float, float, float, float] = (-90, 90, 0, 360),
    amplitude: float = 800.0,
    radius: float | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Noise, and the vortices of some tracks in it.  region: south, north, west, east."""
    lat, lon = axes(spacing, *region)
    random = np.random.default_rng(seed)
    times = np.datetime64("2001-09-01", "ns") + np.arange(steps) * np.timedelta64(6, "h")
    flat, deep = ("time", "latitude", "longitude"), ("time", "level", "latitude", "longitude")
    coords = {"time": times, "level": LEVELS, "latitude": lat, "longitude": lon}
    wavy = noise(random, steps, lat, lon, amplitude)
    heights = np.stack([90_000 + 1.2 * wavy, 56_000 + 1.0 * wavy, 14_500 + 0.8 * wavy], 1)
    data = xr.Dataset({"mean_sea_level_pressure": (flat, 101_300 + wavy), "geopotential": (deep, heights)}, coords)
    for name in "uv":
        data[f"10m_{name}_component_of_wind"] = flat, noise(random, steps, lat, lon, 5.0)
        data[f"{name}_component_of_wind"] = deep, np.repeat(noise(random, steps, lat, lon, 8.0)[:, None], 3, 1)
    return data if tracks is None else seed_vortex(data, tracks, radius=radius)
