"""Random data with a yearly cycle, for tests of stores and windows."""

from __future__ import annotations

import numpy as np
import xarray as xr

from wxlab.forcings import year_fraction
from wxlab.grids import Grid

GRID = Grid.regular(8, 16)
SPLITS = {"train": ["2001-01-01", "2001-12-31"], "validation": ["2002-01-01", "2002-03-31"], "test": ["2002-04-01", "2002-12-31"]}


def times_of(count: int, hours: int = 24, start: str = "2001-01-01") -> np.ndarray:
    return np.datetime64(start, "ns") + np.arange(count) * np.timedelta64(hours, "h")


def make(times: np.ndarray | None = None, grid: Grid = GRID, seed: int = 0) -> xr.Dataset:
    """Noise with a yearly cycle: 2 m temperature, geopotential at three levels, rain, and a land-sea mask."""
    axis = times_of(730) if times is None else times
    random = np.random.default_rng(seed)
    shape = (len(axis), *grid.shape)
    season = np.cos(2 * np.pi * year_fraction(axis))[:, None, None].astype(np.float32)
    upper = (
        1000 * np.array([56, 30, 15], np.float32)[:, None, None] + 200 * season[:, None] + 100 * random.random((shape[0], 3, *shape[1:]))
    )
    return xr.Dataset(
        {
            "2m_temperature": (("time", "latitude", "longitude"), 280 - 10 * season + random.normal(size=shape).astype(np.float32)),
            "geopotential": (("time", "level", "latitude", "longitude"), upper.astype(np.float32)),
            "total_precipitation_24hr": (
                ("time", "latitude", "longitude"),
                np.maximum(random.normal(size=shape), 0).astype(np.float32) / 100,
            ),
            "land_sea_mask": (("latitude", "longitude"), (random.random(grid.shape) > 0.5).astype(np.float32)),
        },
        coords={"time": axis, "level": [500, 700, 850], "latitude": list(grid.y), "longitude": list(grid.x)},
        attrs={"title": "noise", "licence": "CC0"},
    )
