"""Forecasts of tracks that know nothing of the fields: what a model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from wxlab.cyclones.best_tracks import STORM, StormPath, paths, season_range
from wxlab.cyclones.layout import RECORD, check, dataset, moments
from wxlab.cyclones.sphere import Array, bearing, destination, distance
from wxlab.errors import WxlabError, is_number
from wxlab.forcings import year_fraction

HOUR = 3600
LEADS = tuple(range(12, 121, 12))
BACK = 12  # hours over which the motion is taken
RIDGE = 1e-3  # of the predictors' variance, against predictors that hardly vary in a small sample


def no_forecast(truth: xr.Dataset, init_times: Any = None, leads: Sequence[float] = LEADS) -> xr.Dataset:
    """Every storm stays where it is at the initial time, with the intensity it has: what is known without a forecast.

    truth: best tracks.  init_times: dates (None: every record's time).  leads: hours.
    Returns tracks with ``init_time``, ``lead`` and ``storm``, one for each storm that is there at an initial time; lead 0 comes first.
    Raises WxlabError for what are no tracks or lead times.
    """
    cases = _cases(truth, init_times)
    hours = _hours(leads)
    return _forecasts(cases, hours, np.zeros((len(cases.storm), len(hours))), np.zeros((len(cases.storm), len(hours))))


def persistence_of_motion(truth: xr.Dataset, init_times: Any = None, leads: Sequence[float] = LEADS) -> xr.Dataset:
    """Every storm goes on along its great circle as fast as it moved in the twelve hours before; its intensity stays.

    Of storms that were first seen six hours ago their motion since then is taken; new ones stay where they are. The rest as for
    ``no_forecast``.
    """
    cases = _cases(truth, init_times)
    hours = _hours(leads)
    share = np.asarray(hours)[None] / BACK
    return _forecasts(cases, hours, cases.east[:, None] * share, cases.north[:, None] * share)


@dataclass(frozen=True)
class Cliper:
    """Regression of a storm's displacement on climatology and persistence.

    One linear regression for each lead time and each of the eastward and poleward displacements (km) beyond where its motion leads;
    predictors: that motion, latitude and its square, their products, wind, the season, and harmonics of longitude for each
    hemisphere; the southern hemisphere is mirrored. Storms that are new and have no motion have a regression of their own. After
    Neumann 1972, NOAA Tech. Memo. NWS SR-62, in one regression for all basins.
    """

    leads: tuple[float, ...]
    coefficients: Array  # [new or not, east or poleward, leads, predictors], km
    centre: Array
    scale: Array
    seasons: tuple[int, int]

    @classmethod
    def fit(cls, truth: xr.Dataset, *, seasons: tuple[int, int], leads: Sequence[float] = LEADS) -> Cliper:
        """Fit on the storms of some seasons (both included); judge it on later ones.

        truth: best tracks.  Raises WxlabError when there are too few storms to fit.
        """
        truth, seasons = check(truth, "truth"), season_range(seasons, "seasons")
        years = truth["season"].values if "season" in truth else truth["time"].dt.year.values
        kept = np.flatnonzero((years >= seasons[0]) & (years <= seasons[1]))
        if not len(kept):
            raise WxlabError(f"no storm is of the seasons {seasons[0]}–{seasons[1]}; the best tracks are of {years.min()}–{years.max()}")
        cases, hours = _cases(truth.isel({RECORD: kept}), None), _hours(leads)
        raw = _predictors(cases)
        centre, scale = raw.mean(0), raw.std(0)
        scale[scale < 1e-9] = 1.0
        terms = _terms(raw, centre, scale)
        coefficients = np.zeros((2, 2, len(hours), terms.shape[1]))
        for k, lead in enumerate(hours):
            beyond = cases.displacement(lead) - np.stack([cases.east, cases.poleward]) * lead / BACK
            for new in (0, 1):
                good = np.isfinite(beyond[0]) & (cases.new == bool(new))
                if good.sum() < 2 * terms.shape[1]:
                    which = "new storms" if new else "cases"
                    raise WxlabError(
                        f"{int(good.sum())} {which} reach {lead:g} h, too few for a regression; use more seasons or shorter leads"
                    )
                coefficients[new, :, k] = _ridge(terms[good], beyond[:, good])
        return cls(tuple(hours), coefficients, centre, scale, seasons)

    def forecast(self, truth: xr.Dataset, init_times: Any = None) -> xr.Dataset:
        """Forecasts from every initial time, as ``no_forecast`` returns them."""
        cases = _cases(truth, init_times)
        terms = _terms(_predictors(cases), self.centre, self.scale)
        share = np.asarray(self.leads)[None] / BACK
        beyond = np.where(cases.new[:, None], *(terms @ self.coefficients[new].swapaxes(1, 2) for new in (1, 0)))  # [2, cases, leads]
        east, poleward = cases.east[:, None] * share + beyond[0], cases.poleward[:, None] * share + beyond[1]
        return _forecasts(cases, list(self.leads), east, poleward * cases.side[:, None])


def _terms(raw: Array, centre: Array, scale: Array) -> Array:
    return np.column_stack([np.ones(len(raw)), (raw - centre) / scale])


def _ridge(terms: Array, target: Array) -> Array:
    """Coefficients [2, predictors] of a regression with a small penalty on all but the constant."""
    penalty = np.full(terms.shape[1], RIDGE * len(terms))
    penalty[0] = 0
    return np.asarray(np.linalg.solve(terms.T @ terms + np.diag(penalty), terms.T @ target.T).T, dtype=np.float64)


@dataclass(frozen=True)
class _Cases:
    """Storms at initial times, one entry each; those of one storm stand together."""

    storm: np.ndarray
    time: np.ndarray
    lat: Array
    lon: Array
    wind: Array
    slp: Array
    east: Array  # displacement of the last twelve hours, km
    north: Array
    new: np.ndarray  # whether it was not there before
    paths: dict[Any, StormPath]

    @property
    def side(self) -> Array:
        """1 in the north, -1 in the south."""
        return np.where(self.lat >= 0, 1.0, -1.0)

    @property
    def poleward(self) -> Array:
        return self.north * self.side

    def displacement(self, lead: float) -> Array:
        """Eastward and poleward displacement [2, cases] (km) after some hours; NaN where the storm is gone."""
        later = np.full((2, len(self.storm)), np.nan)
        for rows in np.split(np.arange(len(self.storm)), np.flatnonzero(self.storm[1:] != self.storm[:-1]) + 1):
            there = self.paths[self.storm[rows[0]]].at(self.time[rows] + round(lead * HOUR))
            later[0, rows], later[1, rows] = there["lat"], there["lon"]
        east, north = _parts(self.lat, self.lon, later[0], later[1])
        return np.stack([east, north * self.side])


def _parts(lat: Array, lon: Array, other_lat: Array, other_lon: Array) -> tuple[Array, Array]:
    """Eastward and northward parts (km) of the great circle between positions."""
    away, direction = distance(lat, lon, other_lat, other_lon), np.deg2rad(bearing(lat, lon, other_lat, other_lon))
    return away * np.sin(direction), away * np.cos(direction)


def _cases(truth: xr.Dataset, init_times: Any) -> _Cases:
    observed = paths(check(truth, "truth"))
    wanted = None if init_times is None else moments(init_times, "init_times")
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("storm", "time", "lat", "lon", "wind", "slp", "east", "north", "new")}
    for name, path in observed.items():
        times = path.times if wanted is None else wanted
        now = path.at(times)
        moved = np.full((2, len(times)), np.nan)
        for hours in (BACK, BACK // 2):
            before = path.at(times - hours * HOUR)
            # what leads on is the direction at the end of the great circle, not at its beginning
            back = np.stack(_parts(now["lat"], now["lon"], before["lat"], before["lon"]))
            moved = np.where(np.isnan(moved), -back * BACK / hours, moved)
        new = np.isnan(moved[0])
        east, north = np.where(new, 0.0, moved)
        values = {"storm": np.full(len(times), name, dtype=object), "time": times, **now, "east": east, "north": north, "new": new}
        for key, column in values.items():
            found[key].append(np.asarray(column)[np.isfinite(now["lat"])])
    if not found["storm"] or not sum(map(len, found["storm"])):
        raise WxlabError("no storm is observed at the initial times; choose times at which the best tracks have storms")
    columns = {key: np.concatenate(parts) for key, parts in found.items()}
    return _Cases(**columns, paths=observed)


def _predictors(cases: _Cases) -> Array:
    """[cases, predictors], the south mirrored."""
    lat, u, v = np.abs(cases.lat), cases.east, cases.poleward
    wind = np.where(np.isfinite(cases.wind), cases.wind, 20.0)
    year = year_fraction(cases.time)
    season = 2 * np.pi * (year + np.where(cases.lat < 0, 0.5, 0.0))
    columns = [lat, lat**2, u, v, u * lat, v * lat, u * lat**2, v * lat**2, wind, wind * u, wind * v, np.cos(season), np.sin(season)]
    lam = np.deg2rad(cases.lon)
    for order in (1, 2, 3):
        for wave in (np.cos(order * lam), np.sin(order * lam)):
            columns += [np.where(cases.lat >= 0, wave, 0), np.where(cases.lat < 0, wave, 0)]
    return np.stack(columns, axis=1)


def _hours(leads: Sequence[float]) -> list[float]:
    hours = list(leads) if isinstance(leads, Sequence) and not isinstance(leads, str) else []
    if not hours or not all(is_number(lead) and lead > 0 for lead in hours) or sorted(set(hours)) != hours:
        raise WxlabError(f"leads is {leads!r}; give ascending numbers of hours greater than 0, such as (24, 48, 72)")
    return [float(lead) for lead in hours]


def _forecasts(cases: _Cases, leads: list[float], east: Array, north: Array) -> xr.Dataset:
    """Tracks from displacements [cases, leads] in km."""
    lead = np.concatenate([[0.0], leads])
    zero = np.zeros((len(cases.storm), 1))
    east, north = np.concatenate([zero, east], 1), np.concatenate([zero, north], 1)
    direction = np.rad2deg(np.arctan2(east, north))
    lat, lon = destination(cases.lat[:, None], cases.lon[:, None], direction, np.hypot(east, north))
    count, steps = lat.shape
    repeated = {name: np.repeat(getattr(cases, name), steps) for name in ("wind", "slp")}
    columns = {
        "track_id": np.repeat(np.arange(count), steps),
        "time": (cases.time[:, None] + np.round(lead * HOUR).astype(np.int64)).ravel(),
        "lon": lon.ravel(), "lat": lat.ravel(), **repeated,
        "init_time": np.repeat(cases.time, steps), "lead": np.tile(lead, count),
        STORM: np.repeat(cases.storm.astype(str), steps),
    }  # fmt: skip
    return dataset(columns)
