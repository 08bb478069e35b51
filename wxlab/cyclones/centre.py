"""The centre of a vortex between the grid points, and how strong it is."""

from __future__ import annotations

import numpy as np

from wxlab.cyclones.mesh import Mesh, Window
from wxlab.cyclones.sphere import EARTH, Array, position, unit

NEIGHBOURS = 1.3  # rows on each side: the eight around a point, and no more
BROAD = 0.55  # degrees: on finer grids more points, as a single one is shifted by the slope of what lies around the storm


def refine(mesh: Mesh, field: np.ndarray, row: int, column: int) -> tuple[float, float]:
    """Latitude and longitude of the lowest point of a quadratic surface through a minimum and its neighbours.

    p = c0 + c1 x + c2 y + c3 x² + c4 xy + c5 y², least squares over the nine points within one row and column, on grids finer than
    0.42° over those within 0.55°; x and y on the plane that touches the sphere at the grid point: the same at the equator and at a
    pole. Where the surface has no lowest point near the grid point that one is kept.
    """
    lat, lon = float(mesh.lat[row]), float(mesh.lon[column])
    wide, high = max(mesh.rows, mesh.columns * float(mesh.cos[row])), mesh.rows  # degrees
    window = mesh.window(lat, lon, max(NEIGHBOURS * np.hypot(wide, high), BROAD))
    if window is None:
        return lat, lon % 360
    values = np.asarray(window.of(field), dtype=np.float64)
    east, north, up = _axes(lat, lon)
    points = unit(mesh.lat[window.rows][:, None], mesh.lon[window.columns][None])
    x, y = np.rad2deg(points @ east) / wide, np.rad2deg(points @ north) / high
    reach = max(NEIGHBOURS, BROAD / high)
    near = (np.abs(x) <= reach) & (np.abs(y) <= reach) & (points @ up > 0) & np.isfinite(values)
    if near.sum() < 6:
        return lat, lon % 360
    x, y, z = x[near], y[near], values[near]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    c, *_ = np.linalg.lstsq(terms, z - z.min(), rcond=None)
    hessian = np.array([[2 * c[3], c[4]], [c[4], 2 * c[5]]])
    if hessian[0, 0] <= 0 or np.linalg.det(hessian) <= 0:
        return lat, lon % 360
    dx, dy = np.linalg.solve(hessian, -c[1:3])
    if max(abs(dx), abs(dy)) > max(1.0, reach - 0.5):
        return lat, lon % 360
    there = up + np.deg2rad(dx * wide) * east + np.deg2rad(dy * high) * north
    found_lat, found_lon = position(there)
    return float(found_lat), float(found_lon)


def _axes(lat: float, lon: float) -> tuple[Array, Array, Array]:
    """Unit vectors to the east, the north and up at a position."""
    phi, lam = np.deg2rad(lat), np.deg2rad(lon)
    east = np.array([-np.sin(lam), np.cos(lam), 0.0])
    north = np.array([-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)])
    return east, north, unit(lat, lon)


def greatest(window: Window, values: np.ndarray, radius: float) -> float:
    """The greatest value within a radius (degrees); NaN where there is none."""
    near = values[(window.distance <= radius) & np.isfinite(values)]
    return float(near.max()) if len(near) else np.nan


def cyclonic_vorticity(mesh: Mesh, window: Window, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """sign(latitude) (dv/dλ − d(u cos φ)/dφ) / (a cos φ) in 1/s at the points [h, w] of a window, by central differences."""
    lat = np.deg2rad(mesh.lat[window.rows])
    turn = np.deg2rad(np.unwrap(mesh.lon[window.columns], period=360))
    cosine = mesh.cos[window.rows][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        field = (np.gradient(v, turn, axis=1) - np.gradient(u * cosine, lat, axis=0)) / (EARTH * 1000 * cosine)
    return np.where(cosine > 1e-6, np.sign(lat)[:, None] * field, np.nan)


def radius_of_maximum_wind(window: Window, speed: np.ndarray, radius: float, spacing: float) -> float:
    """Distance (m) at which the wind is greatest in the mean around the centre; NaN where the grid does not resolve it.

    Rings of one row's width, the greatest ring refined by a parabola. Resolved means: neither within one and a half rows of the
    centre nor at the end of the radius.
    """
    ring = np.floor(window.distance / spacing + 0.5).astype(int)
    last = int(radius / spacing)
    inside = (ring <= last + 1) & np.isfinite(speed)
    count = np.bincount(ring[inside], minlength=last + 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(ring[inside], speed[inside], minlength=last + 2) / count
        where = np.bincount(ring[inside], window.distance[inside], minlength=last + 2) / count
    if last < 3 or not np.isfinite(mean).any():
        return np.nan
    peak = int(np.nanargmax(mean))
    if not 2 <= peak <= last - 1 or not np.isfinite(mean[peak - 1 : peak + 2]).all():
        return np.nan
    c2, c1, _ = np.polyfit(where[peak - 1 : peak + 2], mean[peak - 1 : peak + 2], 2)
    best = -c1 / (2 * c2) if c2 < 0 else where[peak]
    return float(np.deg2rad(best) * EARTH * 1000)
