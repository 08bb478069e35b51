"""Detection: which minima of the mean sea-level pressure are cyclones at one time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree

from wxlab.cyclones.centre import cyclonic_vorticity, greatest, radius_of_maximum_wind, refine
from wxlab.cyclones.contours import basin, closed, may_be_closed
from wxlab.cyclones.criteria import Criteria, criteria_for
from wxlab.cyclones.frames import GRAVITY, Frames, Scene
from wxlab.cyclones.layout import records
from wxlab.cyclones.mesh import Mesh
from wxlab.cyclones.sphere import unit
from wxlab.grids import join_columns

NEIGHBOURS = 12  # minima around one that are asked whether it belongs to them


@dataclass(frozen=True)
class Candidate:
    """One cyclone at one time; positions in degrees, NaN for what the fields do not tell."""

    lat: float
    lon: float
    slp: float  # Pa
    wind: float  # m/s, the greatest at 10 m
    rmw: float  # m
    vorticity: float  # 1/s, cyclonic
    height: float  # m


def detect(data: xr.Dataset, preset: str | Criteria | None = None, **changes: Any) -> xr.Dataset:
    """Find the cyclones in every field, each time by itself.

    data: states over ``time`` or a forecast (``time``, ``prediction_timedelta``), with or without ``number``; lazily where it is lazy.
    preset, changes: as for ``track``.
    Returns candidates in the layout of tracks (dim ``record``), without ``track_id``; ``stitch`` makes tracks of them.
    Raises WxlabError as ``track`` does.
    """
    frames, name, criteria = prepared(data, preset, **changes)
    found: list[list[list[Candidate] | None]] = [[None] * len(series.times) for series in frames.series]
    mesh = Mesh(frames.lat, frames.lon, frames.periodic)
    for scene in frames.scenes():
        found[scene.series][scene.step] = _at(scene, mesh, criteria)
    attrs = {"preset": name, "criteria": json.dumps(asdict(criteria)), "not_used": "; ".join(frames.missing)}
    return records(frames, found, attrs)


def prepared(data: xr.Dataset, preset: str | Criteria | None, **changes: Any) -> tuple[Frames, str, Criteria]:
    """The fields and the criteria at their spacing."""
    spacing = _spacing(data)
    name, criteria = criteria_for(preset, spacing, **changes)
    frames = Frames(
        join_columns(data) if isinstance(data, xr.Dataset) else data,
        vorticity_level=criteria.vorticity_level,
        levels=criteria.warm_core_levels,
    )
    return frames, name, criteria.at(frames.spacing)


def _spacing(data: Any) -> float:
    lat = np.asarray(data["latitude"].values) if isinstance(data, xr.Dataset) and "latitude" in data.dims else np.zeros(1)
    return float(np.median(np.abs(np.diff(lat)))) if len(lat) > 1 else 1.0


def _at(scene: Scene, mesh: Mesh, criteria: Criteria) -> list[Candidate] | None:
    """The cyclones at one time; None where there are no data."""
    pressure = scene.get("pressure")
    if pressure is None or not np.isfinite(pressure).any():
        return None
    all_rows, all_columns = mesh.minima(pressure)
    keep = may_be_closed(mesh, pressure, all_rows, all_columns, criteria.contour_depth, criteria.contour_radius)
    keep[keep] = _deepest(mesh, pressure, all_rows, all_columns, np.flatnonzero(keep), criteria)
    found = []
    for row, column in zip(all_rows[keep].tolist(), all_columns[keep].tolist(), strict=True):
        candidate = _examine(scene, mesh, pressure, row, column, criteria)
        if candidate is not None:
            found.append(candidate)
    return found


def _deepest(mesh: Mesh, pressure: np.ndarray, rows: np.ndarray, columns: np.ndarray, chosen: np.ndarray, criteria: Criteria) -> np.ndarray:
    """Which of the chosen minima are the deepest of all minima within the merging distance.

    With ``ridge`` those go that have a deeper one among their nearest neighbours and no ridge on the straight way to it: most of the
    small minima within a large one. The others are examined by themselves.
    """
    if not criteria.merge_distance or not len(chosen):
        return np.ones(len(chosen), dtype=bool)
    places = unit(mesh.lat[rows], mesh.lon[columns])
    # equal ones in the order of the grid
    rank = np.empty(len(rows), dtype=int)
    rank[np.argsort(pressure[rows, columns], kind="stable")] = np.arange(len(rows))
    reach = 2 * np.sin(np.deg2rad(criteria.merge_distance) / 2)
    tree = cKDTree(places)
    if not criteria.ridge:
        near = tree.query_ball_point(places[chosen], reach)
        return np.array([rank[others].min() == rank[own] for others, own in zip(near, chosen, strict=True)])
    own, others = chosen, tree.query(places[chosen], k=[k + 1 for k in range(NEIGHBOURS)], distance_upper_bound=reach)[1]
    first, place = np.nonzero((others < len(rows)) & (rank[np.minimum(others, len(rows) - 1)] < rank[own][:, None]))
    start, end = own[first], others[first, place]
    bar = pressure[rows[start], columns[start]] + np.asarray(criteria.ridge, pressure.dtype)
    open_way = mesh.highest_between(pressure, rows[start], columns[start], rows[end], columns[end]) < bar
    keep = np.ones(len(chosen), dtype=bool)
    keep[first[open_way]] = False
    return keep


def _examine(scene: Scene, mesh: Mesh, pressure: np.ndarray, row: int, column: int, criteria: Criteria) -> Candidate | None:
    """A minimum as a candidate, or None when it does not meet the criteria."""
    lat, lon = float(mesh.lat[row]), float(mesh.lon[column])
    window = mesh.window(lat, lon, max(criteria.contour_radius, criteria.merge_distance if criteria.ridge else 0))
    if window is None:
        return None
    values = window.of(pressure)
    place = np.unravel_index(window.distance.argmin(), window.distance.shape)
    here = int(place[0]), int(place[1])
    if not closed(window, basin(window, values, *here, criteria.contour_depth), criteria.contour_radius):
        return None
    if criteria.ridge:
        own = basin(window, values, *here, criteria.ridge) & (window.distance <= criteria.merge_distance)
        if (own & (values < values[here])).any():
            return None
    if criteria.warm_core and not _warm(scene, mesh, lat, lon, criteria):
        return None
    vorticity = _rotation(scene, mesh, lat, lon, criteria.wind_radius)
    if criteria.candidate_vorticity and vorticity < criteria.candidate_vorticity:
        return None
    centre = refine(mesh, pressure, row, column)
    wind, rmw = wind_around(scene, mesh, *centre, criteria.wind_radius)
    if criteria.candidate_wind and wind < criteria.candidate_wind:
        return None
    ground = scene.get("ground")
    height = np.nan if ground is None else float(ground[row, column]) / GRAVITY
    return Candidate(*centre, float(values[here]), wind, rmw, vorticity, height)


def _warm(scene: Scene, mesh: Mesh, lat: float, lon: float, criteria: Criteria) -> bool:
    """Whether the thickness has a closed maximum near the position; yes where there is no thickness."""
    upper, lower = scene.get("upper"), scene.get("lower")
    window = mesh.window(lat, lon, criteria.warm_core_offset + criteria.warm_core_radius)
    if upper is None or lower is None or window is None:
        return True
    thickness = window.of(lower) - window.of(upper)  # its negative: a maximum becomes a minimum
    near = np.where((window.distance <= criteria.warm_core_offset) & np.isfinite(thickness), thickness, np.inf)
    row, column = np.unravel_index(near.argmin(), near.shape)
    if not np.isfinite(near[row, column]):
        return True
    top = float(mesh.lat[window.rows][row]), float(mesh.lon[window.columns][column])
    around = mesh.window(*top, criteria.warm_core_radius)
    if around is None:
        return True
    fall = around.of(lower) - around.of(upper)
    here = np.unravel_index(around.distance.argmin(), around.distance.shape)
    reached = basin(around, fall, int(here[0]), int(here[1]), criteria.warm_core)
    return closed(around, reached, criteria.warm_core_radius)


def _rotation(scene: Scene, mesh: Mesh, lat: float, lon: float, radius: float) -> float:
    """The greatest cyclonic vorticity near a position; NaN without winds on the level."""
    u, v = scene.get("u"), scene.get("v")
    window = mesh.window(lat, lon, radius)
    if u is None or v is None or window is None:
        return np.nan
    return greatest(window, cyclonic_vorticity(mesh, window, window.of(u), window.of(v)), radius)


def wind_around(scene: Scene, mesh: Mesh, lat: float, lon: float, radius: float) -> tuple[float, float]:
    """The greatest 10 m wind near a position and its radius; NaN without winds."""
    u, v = scene.get("u10"), scene.get("v10")
    window = mesh.window(lat, lon, radius)
    if u is None or v is None or window is None:
        return np.nan, np.nan
    speed = np.hypot(window.of(u), window.of(v))
    return greatest(window, speed, radius), radius_of_maximum_wind(window, speed, radius, mesh.rows)
