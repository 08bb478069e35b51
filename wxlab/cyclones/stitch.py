"""Stitching: from candidates at single times to tracks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from wxlab.cyclones.criteria import STITCHING, Criteria, criteria_for
from wxlab.cyclones.layout import RECORD, check, dataset, groups, key_columns, made
from wxlab.cyclones.sphere import Array, arc, between, position, unit
from wxlab.errors import WxlabError
from wxlab.forcings import seconds

HOUR = 3600
PUBLISHED_STEP = 6.0  # hours, for which ``range`` is meant


@dataclass
class _Path:
    """A track that grows: positions in the candidates' table, and where and when it was last seen."""

    members: list[int]
    times: list[float] = field(default_factory=list)  # hours
    places: list[Array] = field(default_factory=list)  # unit vectors

    def expected(self, time: float) -> Array:
        """Where its last motion leads; where it is after a single record."""
        if len(self.places) < 2:
            return self.places[-1]
        share = (time - self.times[-2]) / (self.times[-1] - self.times[-2])
        return between(self.places[-2], self.places[-1], min(share, 3.0))


def stitch(candidates: xr.Dataset, preset: str | Criteria | None = None, **changes: Any) -> xr.Dataset:
    """Make tracks of candidates.

    At each time the pairs of a living track and a candidate are taken in the order of the distance between the candidate and the
    position to which the track's motion leads (great circle, its last displacement again), as long as both are free, the candidate
    lies within ``range`` of the last record and that is no older than ``gap``. What is left begins new tracks. At the end the rules
    of duration, wind, latitude, height and genesis choose among the tracks. TempestExtremes takes the candidate nearest to the last
    record, track by track; the guess by motion keeps apart storms that pass each other.

    candidates: what ``detect`` returned; of several initial times, members and segments each is stitched by itself.
    preset, changes: as for ``track``, of which only the rules of stitching are taken; None: those that came with the detection.
    Returns tracks sorted by ``track_id`` (0, 1, ...) and time. Raises WxlabError as ``track`` does, and for criteria of detection.
    """
    table = check(candidates, "candidates", needs=())
    known = made(table)
    name, criteria = _criteria(table, preset, changes, known.get("spacing", 0.0))
    step = known["step"] or PUBLISHED_STEP
    names, number = np.full(table.sizes[RECORD], -1), 0
    for rows in groups(key_columns(table)):
        for path in _link(table, rows, criteria, step):
            members = np.asarray(path)
            if _holds(table.isel({RECORD: members}), criteria, step):
                names[members] = number
                number += 1
    chosen = np.flatnonzero(names >= 0)
    chosen = chosen[np.lexsort((seconds(table["time"].values)[chosen], names[chosen]))]
    kept = table.isel({RECORD: chosen})
    columns = {"track_id": names[chosen], **{str(name): kept[name].values for name in kept.data_vars}}
    tracks = dataset(columns, {**table.attrs, "preset": name, "criteria": json.dumps(asdict(criteria))})
    return tracks.assign({name: tracks[name].assign_attrs(kept[name].attrs) for name in kept.data_vars})


def _criteria(table: xr.Dataset, preset: str | Criteria | None, changes: dict[str, Any], spacing: float) -> tuple[str, Criteria]:
    """Name and criteria: those of the detection with the rules of stitching of a preset and changes."""
    late = [name for name in changes if name in Criteria.__dataclass_fields__ and name not in STITCHING]
    if late:
        raise WxlabError(f"{late[0]} is a criterion of detection, which is over; give it to detect or track")
    if "criteria" not in table.attrs:
        return criteria_for(preset, spacing, **changes)
    given = json.loads(table.attrs["criteria"])
    known = Criteria(**{**given, "warm_core_levels": tuple(given["warm_core_levels"])})
    if preset is None:
        return table.attrs.get("preset", "own"), criteria_for(known, spacing, **changes)[1]
    detected = table.attrs.get("preset", "own")
    name, rules = criteria_for(preset, spacing, **changes)
    rules = rules.at(spacing)
    criteria = replace(known, **{rule: getattr(rules, rule) for rule in STITCHING})
    return name if name == detected else f"{detected}, stitched {name}", criteria


def _link(table: xr.Dataset, rows: np.ndarray, criteria: Criteria, step: float) -> list[list[int]]:
    """Tracks through some rows of the table, as lists of rows."""
    hours = seconds(table["time"].values)[rows] / HOUR
    places = unit(table["lat"].values[rows], table["lon"].values[rows])
    living: list[_Path] = []
    ended: list[_Path] = []
    for time in np.unique(hours):
        here = np.flatnonzero(hours == time)
        gone = [path for path in living if time - path.times[-1] > max(criteria.gap, step) + 1e-6]
        ended += gone
        living = [path for path in living if path not in gone]
        taken = _pairs(living, places[here], time, criteria, step)
        for k, row in enumerate(here):
            if k in taken:
                path = living[taken[k]]
            else:
                path = _Path([])
                living.append(path)
            path.members.append(int(rows[row]))
            path.times.append(float(time))
            path.places.append(places[row])
    return sorted([path.members for path in ended + living])


def _pairs(living: list[_Path], places: Array, time: float, criteria: Criteria, step: float) -> dict[int, int]:
    """Which living track each place (by its position) goes to."""
    if not living:
        return {}
    last = np.stack([path.places[-1] for path in living])
    guess = np.stack([path.expected(time) for path in living])
    reach = criteria.range * max(1.0, step / PUBLISHED_STEP)
    moved = _degrees(last, places)
    error = _degrees(guess, places)
    track, place = np.nonzero(moved <= reach)
    order = np.argsort(error[track, place], kind="stable")
    taken: dict[int, int] = {}
    used: set[int] = set()
    for t, p in zip(track[order].tolist(), place[order].tolist(), strict=True):
        if t not in used and p not in taken:
            taken[p] = t
            used.add(t)
    return taken


def _degrees(one: Array, other: Array) -> Array:
    """Great-circle distances [n, m] between unit vectors."""
    a, b = position(one), position(other)
    return arc(a[0][:, None], a[1][:, None], b[0][None], b[1][None])


def _holds(track: xr.Dataset, criteria: Criteria, step: float) -> bool:
    """Whether a track meets the rules of stitching."""
    hours = seconds(track["time"].values) / HOUR
    lat = np.abs(track["lat"].values)
    if hours[-1] - hours[0] < criteria.duration - 1e-6 or lat[0] > criteria.genesis_latitude:
        return False
    rules = [(lat <= criteria.latitude, criteria.latitude_hours)]
    wind = track["wind"].values if "wind" in track else np.full(len(lat), np.nan)
    if np.isfinite(wind).any():
        rules.append((wind >= criteria.wind, criteria.wind_hours))
    if "height" in track and np.isfinite(track["height"].values).any():
        rules.append((track["height"].values <= criteria.height, criteria.height_hours))
    return all((int(good.sum()) - 1) * step >= needed - 1e-6 for good, needed in rules)
