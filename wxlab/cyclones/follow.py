"""A follower: from a known position from one local minimum of pressure to the next, as LaDCast's authors do it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from wxlab.cyclones.detect import wind_around
from wxlab.cyclones.frames import HOUR, Frames, Scene, Series
from wxlab.cyclones.layout import check, dataset
from wxlab.cyclones.mesh import Mesh
from wxlab.errors import WxlabError, is_number
from wxlab.forcings import seconds
from wxlab.splits import time_text

WIND_RADIUS = 2.0  # degrees
EDGE = 1e-6

Start = tuple[float, float] | xr.Dataset


def follow(
    data: xr.Dataset, start: Start, *, boxes: Sequence[float] = (7, 4, 1), offset: float = 0.0, spacing: float | None = None
) -> xr.Dataset:
    """Follow one storm from where it is known to be: the tracker of LaDCast's authors, without any threshold.

    The first position is the start (plus ``offset`` on both coordinates) rounded to the grid. At each step, for each box in turn: of
    the grid points within ±(box + 3)/2 degrees in latitude and longitude of the last position those are taken that are the lowest
    within ±box/2 of themselves and do not lie on the rim of the search; the nearest of them (dlat² + dlon² in degrees) is the next
    position unless it is the last one. Where no box finds another position the storm stays: the track never ends.

    data: as for ``track``; each member and initial time is followed by itself.  start: (latitude, longitude) in degrees, or a track,
    of which the record at the first or initial time is taken.  boxes: degrees.  spacing: of the grid (None: of its rows).
    Returns tracks as ``track`` does, one for each member and initial time, the first record at lead 0; ``slp`` is that of the grid
    point. Differs from ``track``: positions lie on the grid.
    Raises WxlabError for a start outside the grid or a track without a record at the first time.
    Reference: LaDCast (Zhuang and Duraisamy 2025, arXiv:2506.09193), evaluation code.
    """
    sizes = list(boxes) if isinstance(boxes, Sequence) and not isinstance(boxes, str) else []
    if not sizes or not all(is_number(box) and box >= 0 for box in sizes):
        raise WxlabError(f"boxes is {boxes!r}; give sizes in degrees, the first to try first, such as (7, 4, 1)")
    for name, value, least in (("offset", offset, -360.0), ("spacing", spacing, 1e-3)):
        if value is not None and (not is_number(value) or value < least):
            raise WxlabError(f"{name} is {value!r}; it must be a number of degrees" + (" greater than 0" if least > 0 else ""))
    frames = Frames(data)
    mesh = Mesh(frames.lat, frames.lon, frames.periodic)
    step = frames.spacing if spacing is None else spacing
    followers = [_Follower(mesh, series, start, sizes, offset, step) for series in frames.series]
    for scene in frames.scenes():
        followers[scene.series].see(scene)
    columns: dict[str, list[np.ndarray]] = {}
    for number, follower in enumerate(followers):
        for name, values in follower.columns(number).items():
            columns.setdefault(name, []).append(values)
    criteria = {"boxes": [float(box) for box in sizes], "offset": offset}
    return dataset(
        {name: np.concatenate(parts) for name, parts in columns.items()}, {"preset": "ladcast_follower", "criteria": json.dumps(criteria)}
    )


class _Follower:
    """One track that grows."""

    def __init__(self, mesh: Mesh, series: Series, start: Start, boxes: list[float], offset: float, spacing: float) -> None:
        self.mesh, self.series, self.boxes = mesh, series, boxes
        self.first = int(series.times[0]) if series.init is None else series.init
        self.lat, self.lon = (float(np.round((value + offset) / spacing) * spacing) for value in _start(start, self.first))
        self.lon %= 360
        reach = np.abs(mesh.lat - self.lat).min(), np.abs((mesh.lon - self.lon + 180) % 360 - 180).min()
        if max(reach) > spacing:
            raise WxlabError(f"the start {self.lat:g}, {self.lon:g} lies outside the grid; give latitude and longitude within it")
        self.rows = [(self.first, self.lat, self.lon, np.nan, np.nan)]  # time, position, pressure, wind

    def see(self, scene: Scene) -> None:
        """Go on to the next time."""
        if scene.time < self.first:
            return
        pressure = scene.get("pressure")
        if pressure is not None and scene.time > self.first:
            self.lat, self.lon = _step(self.mesh, pressure, self.lat, self.lon, self.boxes)
        row = scene.time, self.lat, self.lon, *_strength(scene, self.mesh, self.lat, self.lon)
        if scene.time == self.first:
            self.rows[0] = row
        else:
            self.rows.append(row)

    def columns(self, track_id: int) -> dict[str, np.ndarray]:
        table = np.array([row[1:] for row in self.rows])
        times = np.array([row[0] for row in self.rows])
        made = {"track_id": np.full(len(times), track_id), "time": times, "lon": table[:, 1], "lat": table[:, 0]}
        made |= {"wind": table[:, 3], "slp": table[:, 2]}
        if self.series.init is not None:
            made |= {"init_time": np.full(len(times), self.first), "lead": (times - self.first) / HOUR}
        if self.series.number is not None:
            made["number"] = np.full(len(times), self.series.number)
        return made


def _start(start: Start, first: int) -> tuple[float, float]:
    """Latitude and longitude at the first time."""
    if isinstance(start, xr.Dataset):
        track = check(start, "start", needs=())
        here = np.flatnonzero(seconds(track["time"].values) == first)
        if len(here) != 1:
            raise WxlabError(f"the track to start from has {len(here)} records at {time_text(first)}; it needs one there")
        return float(track["lat"].values[here[0]]), float(track["lon"].values[here[0]])
    if not isinstance(start, Sequence) or len(start) != 2 or not all(map(is_number, start)) or abs(start[0]) > 90:
        raise WxlabError(f"start is {start!r}; give (latitude, longitude) in degrees, or a track")
    return float(start[0]), float(start[1])


def _step(mesh: Mesh, field: np.ndarray, lat: float, lon: float, boxes: list[float]) -> tuple[float, float]:
    """The next position."""
    dlat, dlon = mesh.lat - lat, (mesh.lon - lon + 180) % 360 - 180
    for box in boxes:
        reach = (box + 3) / 2
        best, chosen = np.inf, None
        for row in np.flatnonzero((np.abs(dlat) <= reach) & (np.abs(np.abs(dlat) - reach) > EDGE)).tolist():
            for column in np.flatnonzero((np.abs(dlon) <= reach) & (np.abs(np.abs(dlon) - reach) > EDGE)).tolist():
                away = dlat[row] ** 2 + dlon[column] ** 2
                if away < best and _is_lowest(mesh, field, row, column, box / 2):
                    best, chosen = away, (row, column)
        if chosen is not None and max(abs(dlat[chosen[0]]), abs(dlon[chosen[1]])) > EDGE:
            return float(mesh.lat[chosen[0]]), float(mesh.lon[chosen[1]] % 360)
    return lat, lon


def _is_lowest(mesh: Mesh, field: np.ndarray, row: int, column: int, reach: float) -> bool:
    """Whether no point within ±reach degrees in latitude and longitude is lower."""
    rows = np.abs(mesh.lat - mesh.lat[row]) <= reach
    columns = np.abs((mesh.lon - mesh.lon[column] + 180) % 360 - 180) <= reach
    return not (field[np.ix_(rows, columns)] < field[row, column]).any() and bool(np.isfinite(field[row, column]))


def _strength(scene: Scene, mesh: Mesh, lat: float, lon: float) -> tuple[float, float]:
    """Pressure at the grid point and the greatest wind around it."""
    pressure = scene.get("pressure")
    row, column = mesh.nearest(lat, lon)
    return (np.nan if pressure is None else float(pressure[row, column])), wind_around(scene, mesh, lat, lon, WIND_RADIUS)[0]
