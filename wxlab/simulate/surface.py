"""The idealised Earth under the simulated atmosphere: continents, mountains, and the surface temperatures that drive it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Land in cells of 10 degrees, north to south, from 0 to 360 degrees east: roughly Earth's, coarse on purpose.
_LAND = (
    "...........................######...",
    ".....#..####...........######.###...",
    ".#################.#########...#....",
    "##############.#.......####.##.....#",
    "#############...........#####......#",
    "#..#########............####.......#",
    "######.#####.............#........##",
    "#####..#..#...............##......##",
    "#####......#................###....#",
    ".###......##..#.............####....",
    ".###........###..............###....",
    ".##........####..............##.....",
    "..#..........##..............#......",
    ".............................#......",
    "....................................",
    "....................................",
    "#################....##########....#",
    "####################################",
)

# height (m), longitude, latitude, half widths in longitude and latitude (degrees)
MOUNTAINS = (
    (2000.0, 250.0, 45.0, 12.0, 18.0),
    (3500.0, 88.0, 35.0, 20.0, 12.0),
    (2500.0, 290.0, -25.0, 8.0, 22.0),
    (1500.0, 320.0, 72.0, 14.0, 8.0),
)

YEAR = 365.25  # days
SOLSTICE = 172.0  # day of the year


def land_fraction(latitude: Array, longitude: Array) -> Array:
    """Share of land in 0..1 [latitude, longitude], continuous: a smooth step through the bilinear map of 10-degree cells."""
    cells = np.array([[float(cell == "#") for cell in row] for row in _LAND])[::-1]
    # a pole has one value, the mean of the cells around it
    cells = np.vstack([np.full(36, cells[0].mean()), cells, np.full(36, cells[-1].mean())])
    rows = np.concatenate([[-90.0], np.arange(-85.0, 90, 10), [90.0]])
    place = np.interp(latitude, rows, np.arange(len(rows)))
    row = np.minimum(place.astype(int), len(rows) - 2)
    x = (np.asarray(longitude) % 360) / 10 - 0.5
    column = np.floor(x).astype(int)
    north, east = (place - row)[:, None], (x - column)[None]
    low, high = ((1 - east) * cells[n][:, column % 36] + east * cells[n][:, (column + 1) % 36] for n in (row, row + 1))
    value = (1 - north) * low + north * high
    steep = np.clip((value - 0.25) / 0.5, 0, 1)
    return steep**2 * (3 - 2 * steep)


def mountain_height(latitude: Array, longitude: Array) -> Array:
    """Height in metres [latitude, longitude] of four Gaussian ridges."""
    latitude, longitude = np.asarray(latitude)[:, None], np.asarray(longitude)[None]
    height = np.zeros(np.broadcast_shapes(latitude.shape, longitude.shape))
    for top, east, north, wide, high in MOUNTAINS:
        away = (longitude - east + 180) % 360 - 180
        height += top * np.exp(-((away / wide) ** 2) - ((latitude - north) / high) ** 2)
    return height


def season(day: Array | float, lag: float) -> Array:
    """cos of the yearly phase: 1 at ``lag`` days after the June solstice, -1 half a year later."""
    return np.cos(2 * np.pi * (np.asarray(day) - SOLSTICE - lag) / YEAR)


def sea_surface_temperature(latitude: Array, longitude: Array, day: Array | float) -> Array:
    """Sea surface temperature (K): 271 + 29 exp(-(phi - phi_s)^2 / (2 26^2)), broadcast over the arguments.

    phi_s = 5 degrees x season, 65 days after the sun; +1.5 K in the west of the Pacific and -1.5 K in its east.
    Reference: Neale and Hoskins 2000, doi:10.1006/asle.2000.0019 (zonal form as in Thatcher and Jablonowski 2016).
    """
    shifted = latitude - 5.0 * season(day, 65)
    zonal = 29 * np.exp(-(shifted**2) / (2 * 26.0**2))
    pool = 1.5 * np.cos(np.deg2rad(longitude - 140)) * np.exp(-(latitude**2) / (2 * 18.0**2))
    return 271 + zonal + pool


def insolation(latitude: Array, longitude: Array, day: Array | float, hour: Array | float) -> tuple[Array, Array]:
    """Cosine of the sun's zenith angle, not below 0, two hours before ``hour`` (UTC), and its mean over the day."""
    declination = np.deg2rad(23.44) * np.cos(2 * np.pi * (np.asarray(day) - SOLSTICE) / YEAR)
    phi = np.deg2rad(latitude)
    angle = np.deg2rad((hour - 14) * 15 + longitude)
    up, across = np.sin(phi) * np.sin(declination), np.cos(phi) * np.cos(declination)
    sunset = np.arccos(np.clip(-up / np.maximum(across, 1e-9), -1, 1))
    mean = (sunset * up + across * np.sin(sunset)) / np.pi
    return np.maximum(up + across * np.cos(angle), 0), mean


def land_temperature(latitude: Array, longitude: Array, height: Array, day: Array | float, hour: Array | float) -> Array:
    """Skin temperature of land (K): 300 - 45 sin2(phi) + 18 sin(phi) x season - 5 K/km, and a daily swing of 8 K x (mu - mean mu)."""
    sine = np.sin(np.deg2rad(latitude))
    sun, mean = insolation(latitude, longitude, day, hour)
    return 300 - 45 * sine**2 + 18 * sine * season(day, 25) - 0.005 * height + 8 * (sun - mean)
