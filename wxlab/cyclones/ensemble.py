"""Ensembles of tracks: where they strike, and their mean."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree

from wxlab.cyclones.best_tracks import STORM, match, paths
from wxlab.cyclones.layout import RECORD, check, dataset, made
from wxlab.cyclones.sphere import EARTH, Array, between, distance, position, unit
from wxlab.errors import WxlabError, is_number, is_whole
from wxlab.forcings import seconds
from wxlab.grids import Grid, GridLike, parse_grid

STRIKE_RADIUS = 120.0  # km
STEP = 10.0  # km between the points by which a track is looked at


def strike_probability(
    tracks: xr.Dataset,
    grid: GridLike | None = None,
    *,
    radius: float = STRIKE_RADIUS,
    members: int | None = None,
    storm: str | None = None,
    leads: tuple[float, float] | None = None,
) -> xr.DataArray:
    """Share of the members of which a storm passes within a radius of each point.

    Tracks are great circles between their records. A member without the storm counts as one that does not strike. Tracks without
    ``number`` are those of one member.

    tracks: of one initial time.  grid: a Grid, 'ROWSxCOLUMNS' of the globe, or None: half a degree around the tracks.  radius: km.
    members: how many there are (None: as the tracks' own record of how they were made says).  storm: only tracks that belong to it
    (``match``).  leads: only from one lead time to another (h).
    Returns [latitude, longitude], 0..1. Raises WxlabError for several initial times, an impossible radius, and fewer members than the
    tracks have.
    Reference: the strike probability maps of ECMWF, van der Grijn 2002, ECMWF Technical Memorandum 386.
    """
    tracks = check(tracks)
    if not is_number(radius) or radius <= 0:
        raise WxlabError(f"radius is {radius!r}; it must be a number of km greater than 0")
    if "init_time" in tracks and len(np.unique(tracks["init_time"].values)) > 1:
        raise WxlabError("the tracks are of several initial times; choose those of one first")
    numbers = tracks["number"].values if "number" in tracks else np.zeros(tracks.sizes[RECORD], int)
    count, there = members if members is not None else max(1, len(made(tracks)["members"])), len(np.unique(numbers))
    if not is_whole(count, max(1, there)):
        raise WxlabError(f"members is {members!r}; it must be a whole number of at least {max(1, there)}, which the tracks have")
    keep = np.ones(tracks.sizes[RECORD], dtype=bool)
    if storm is not None:
        if STORM not in tracks:
            raise WxlabError("the tracks do not say to which storm they belong; use wxlab.cyclones.match first")
        keep &= tracks[STORM].values.astype(str) == storm
    if leads is not None:
        hours = _leads(tracks)
        try:
            first, last = map(float, leads)
        except (TypeError, ValueError):
            raise WxlabError(f"leads is {leads!r}; give the first and the last lead time in hours, such as (0, 72)") from None
        keep &= (hours >= first - 1e-6) & (hours <= last + 1e-6)
    tracks, numbers = tracks.isel({RECORD: np.flatnonzero(keep)}), numbers[keep]
    place = _grid(tracks, grid, radius)
    hit = np.zeros(place.shape)
    for number in np.unique(numbers):
        hit += _struck(tracks.isel({RECORD: np.flatnonzero(numbers == number)}), place, radius)
    coords = {"latitude": np.asarray(place.y), "longitude": np.asarray(place.x)}
    name = f"probability that a storm passes within {radius:g} km"
    return xr.DataArray(hit / count, coords, ("latitude", "longitude"), name="strike_probability", attrs={"long_name": name, "units": "1"})


def _leads(tracks: xr.Dataset) -> np.ndarray:
    if "lead" not in tracks:
        raise WxlabError("leads was given, and the tracks are of no forecast: they have no lead times; leave it out")
    return np.asarray(tracks["lead"].values)


def _grid(tracks: xr.Dataset, grid: GridLike | None, radius: float) -> Grid:
    if grid is not None:
        return parse_grid(grid, Grid.regular(361, 720))
    if not tracks.sizes[RECORD]:
        raise WxlabError("there is no track, so the map needs a grid; give one such as '181x360'")
    margin = 2 + np.rad2deg(radius / EARTH)
    lat = tracks["lat"].values
    middle = position(unit(lat, tracks["lon"].values).mean(0))[1]
    away = (tracks["lon"].values - middle + 180) % 360 - 180
    south, north = max(-90.0, np.floor(lat.min() - margin)), min(90.0, np.ceil(lat.max() + margin))
    stretch = margin / max(np.cos(np.deg2rad(np.abs(lat).max())), 0.05)
    west, east = np.floor(middle + away.min() - stretch), np.ceil(middle + away.max() + stretch)
    if east - west >= 360:
        west, east = 0.0, 359.5
    return Grid(tuple(np.arange(south, north + 0.25, 0.5)), tuple(np.arange(west, east + 0.25, 0.5)))


def _struck(member: xr.Dataset, grid: Grid, radius: float) -> np.ndarray:
    """Where a member's tracks pass within the radius [H, W]."""
    points = np.concatenate([_dense(path.places) for path in paths(member).values()])
    tree = cKDTree(points)
    reach = 2 * np.sin(radius / EARTH / 2)
    lat, lon = np.asarray(grid.y), np.asarray(grid.x)
    margin = np.rad2deg(radius / EARTH) + 1e-6
    track_lat, _ = position(points)
    rows = np.flatnonzero((lat >= track_lat.min() - margin) & (lat <= track_lat.max() + margin))
    hit = np.zeros(grid.shape)
    if len(rows):
        near = tree.query(unit(lat[rows][:, None], lon[None]), distance_upper_bound=reach * (1 + 1e-9))[0]
        hit[rows] = np.isfinite(near)
    return hit


def _dense(places: Array) -> Array:
    """Points at most ten kilometres apart along a track."""
    parts = [places[:1]]
    for first, last in pairwise(places):
        length = float(np.arccos(np.clip(first @ last, -1, 1))) * EARTH
        parts.append(between(first, last, np.linspace(0, 1, max(2, int(np.ceil(length / STEP)) + 1))[1:]))
    return np.concatenate(parts)


def mean_track(tracks: xr.Dataset, truth: xr.Dataset | None = None, *, share: float = 0.5) -> xr.Dataset:
    """Mean track of each storm over the members of an ensemble.

    Position: the direction of the sum of the members' unit vectors. It goes on while at least ``share`` of all members and two of
    them have the storm; members that lost it, or never had it, are left out of mean and spread.

    tracks: with ``storm`` (``match``), else they are matched with ``truth``, which may also be one member's own tracks.
    share: 0..1.
    Returns tracks, one for each initial time and storm, with ``members`` (that have it) and ``spread`` (km, root mean square
    distance from the mean with M - 1 in the denominator); ``wind`` and ``slp`` are means.
    Raises WxlabError for tracks that are no forecast, that belong to no storms, or a share outside 0..1.
    """
    tracks = check(tracks, needs=("track_id", "init_time", "lead"))
    if not is_number(share) or not 0 <= share <= 1:
        raise WxlabError(f"share is {share!r}; it must be a number from 0 to 1")
    if STORM not in tracks:
        if truth is None:
            raise WxlabError("the tracks do not say to which storm they belong; give truth, or use wxlab.cyclones.match first")
        tracks = match(tracks, truth)
    least = max(2, int(np.ceil(share * len(made(tracks)["members"]) - 1e-9)))
    storms = tracks[STORM].values.astype(str)
    known = np.flatnonzero(storms != "")
    _, labels = np.unique(storms[known], return_inverse=True)
    inits, times = seconds(tracks["init_time"].values)[known], seconds(tracks["time"].values)[known]
    cases, first, case = np.unique(np.stack([inits, labels, times], 1), axis=0, return_index=True, return_inverse=True)
    case = case.ravel()
    count = np.bincount(case, minlength=len(cases))
    places = unit(tracks["lat"].values[known], tracks["lon"].values[known])
    lat, lon = position(np.stack([np.bincount(case, places[:, axis], len(cases)) for axis in range(3)], 1))
    away = distance(lat[case], lon[case], tracks["lat"].values[known], tracks["lon"].values[known])
    enough = count >= least
    values = {"lat": lat, "lon": lon, "members": count, "lead": tracks["lead"].values[known][first], STORM: storms[known][first]}
    values["spread"] = np.sqrt(np.bincount(case, away**2, len(cases)) / np.maximum(count - 1, 1))
    for name in ("wind", "slp"):
        if name in tracks:
            values[name] = np.bincount(case, tracks[name].values[known], len(cases)) / count
    names = np.unique(cases[enough, :2], axis=0, return_inverse=True)[1].ravel()
    columns = {"track_id": names, "time": cases[enough, 2], "init_time": cases[enough, 0]}
    attrs = {name: value for name, value in tracks.attrs.items() if name != "made"}
    return dataset({**columns, **{name: value[enough] for name, value in values.items()}}, attrs)
