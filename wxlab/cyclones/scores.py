"""Scores of tracks against best tracks: errors of position and intensity, hits and misses, and how sure a mean is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.cyclones.best_tracks import MATCH_DISTANCE, STORM, by_identity, match, paths
from wxlab.cyclones.layout import check, made, moments
from wxlab.cyclones.sphere import bearing, distance
from wxlab.errors import WxlabError, is_whole, unknown
from wxlab.forcings import seconds

HOUR = 3600
MEASURES = ("distance", "along", "cross", "slp_error", "wind_error")


def errors(tracks: xr.Dataset, truth: xr.Dataset, *, distance_km: float = MATCH_DISTANCE) -> pd.DataFrame:
    """Errors of every record that belongs to an observed storm.

    With the great-circle distance d from the observed to the forecast position, its direction b there and the direction h in which
    the observed storm moves (over the six hours around that time): along-track error d cos(b - h), positive where the forecast is
    ahead; cross-track error d sin(b - h), positive to the right of the motion. Observed positions between records are interpolated
    on great circles.

    tracks: with ``storm`` (``match``), else they are matched within ``distance_km`` first.  truth: best tracks.
    Returns one row a record: ``storm``, ``track_id``, ``time``, (``init_time``, ``lead`` (h), ``number``), ``distance``, ``along``,
    ``cross`` (km), ``slp_error`` (Pa), ``wind_error`` (m/s; forecast minus observed), NaN where one of both is not known.
    Raises WxlabError for what are no tracks.
    """
    truth = check(truth, "truth")
    tracks = check(tracks) if STORM in tracks else match(tracks, truth, distance_km=distance_km)
    observed = {str(name): path for name, path in paths(truth).items()}
    storms = tracks[STORM].values.astype(str)
    strange = sorted({name for name in storms if name} - set(observed))
    if strange:
        raise unknown("storm of the truth", strange[0], list(observed)[:50])
    columns = {name: np.full(len(storms), np.nan) for name in MEASURES}
    for rows in by_identity(storms, np.flatnonzero(storms != "")):
        name = storms[rows[0]]
        times = seconds(tracks["time"].values)[rows]
        there, heading = observed[name].at(times), observed[name].heading(times)
        lat, lon = tracks["lat"].values[rows], tracks["lon"].values[rows]
        away = distance(there["lat"], there["lon"], lat, lon)
        turn = np.deg2rad(bearing(there["lat"], there["lon"], lat, lon) - heading)
        columns["distance"][rows] = away
        columns["along"][rows], columns["cross"][rows] = away * np.cos(turn), away * np.sin(turn)
        for value in ("slp", "wind"):
            if value in tracks:
                columns[f"{value}_error"][rows] = tracks[value].values[rows] - there[value]
    keys = {STORM: storms, **{name: tracks[name].values for name in ("track_id", "time", "init_time", "lead", "number") if name in tracks}}
    table = pd.DataFrame({**keys, **columns})
    return table[np.isfinite(columns["distance"])].reset_index(drop=True)


def contingency(
    tracks: xr.Dataset,
    truth: xr.Dataset,
    *,
    leads: Sequence[float] | None = None,
    init_times: Sequence[object] | None = None,
    members: Sequence[int] | None = None,
    distance_km: float = MATCH_DISTANCE,
) -> pd.DataFrame:
    """Hits, misses and false alarms of a forecast by lead time, over all initial times and members.

    At each valid time: hit, an observed storm that a track which belongs to it has at that time; miss, an observed storm without
    one; false alarm, a track at that time whose storm is not observed then, or that belongs to none. Probability of detection
    hits / (hits + misses), false alarm ratio false alarms / (hits + false alarms), critical success index hits / all three.

    Every storm of the truth that is there counts: of a forecast of a region give the storms of that region.

    leads (h), init_times, members: what was forecast, also where no storm was found; None: as the tracks' own record of how they
    were made says.
    Returns a table by lead (h): hits, misses, false_alarms, pod, far, csi. Raises WxlabError for tracks that are no forecast.
    """
    truth = check(truth, "truth")
    tracks = check(tracks, needs=("track_id", "init_time", "lead"))
    known = made(tracks)
    inits = known.get("init_times", []) if init_times is None else moments(init_times, "init_times").tolist()
    hours = _numbers(known.get("leads", []) if leads is None else leads, "leads")
    if not inits or not hours:
        raise WxlabError("which forecasts were made is not known as there is no track; give init_times and leads")
    count = max(1, len(known["members"] if members is None else _numbers(members, "members")))
    tracks = tracks if STORM in tracks else match(tracks, truth, distance_km=distance_km)
    observed = list(paths(truth).items())
    begins = np.array([path.times[0] for _, path in observed])
    ends = np.array([path.times[-1] for _, path in observed])
    table = pd.DataFrame({"init": seconds(tracks["init_time"].values), "lead": np.round(tracks["lead"].values, 3)})
    table["storm"] = tracks[STORM].values.astype(str)
    rows = []
    for lead in hours:
        hits = misses = alarms = 0
        at_lead = table[table["lead"] == round(lead, 3)]
        for init in inits:
            valid = int(init + round(lead * HOUR))
            here = at_lead.loc[at_lead["init"] == init, "storm"]
            near = np.flatnonzero((begins <= valid) & (ends >= valid))
            there = {str(observed[k][0]) for k in near if np.isfinite(observed[k][1].at(np.array([valid]))["lat"][0])}
            found = int(here.isin(there).sum())
            hits += found
            misses += count * len(there) - found
            alarms += len(here) - found
        rows.append({"lead": lead, "hits": hits, "misses": misses, "false_alarms": alarms})
    result = pd.DataFrame(rows).set_index("lead")
    with np.errstate(invalid="ignore", divide="ignore"):
        result["pod"] = result["hits"] / (result["hits"] + result["misses"])
        result["far"] = result["false_alarms"] / (result["hits"] + result["false_alarms"])
        result["csi"] = result["hits"] / result[["hits", "misses", "false_alarms"]].sum(axis=1)
    return result


def _numbers(values: object, name: str) -> list[float]:
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        found = np.zeros(())
    if found.ndim != 1:
        raise WxlabError(f"{name} is {values!r}; give a list of numbers")
    return [float(value) for value in found]


def by_lead(table: pd.DataFrame, measure: str = "distance", *, samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mean of a measure by lead time with 95 % intervals by bootstrap over storms.

    Errors of one storm are alike whatever the initial time and member, so whole storms are drawn, with replacement.

    table: of ``errors``.  measure: ``distance``, ``along``, ``cross``, ``slp_error``, ``wind_error``.
    Returns a table by lead: mean, low, high, storms, records; NaN for the ends where there are fewer than two storms; without rows
    where no storm was found. Means of all but ``distance`` are signed: biases.
    Raises WxlabError for measures that the table has not, and tables without lead times.
    """
    sums, counts, leads, _ = _by_storm(table, measure)
    means = _means(sums, counts, samples, seed)
    low, high = _interval(means, (counts > 0).sum(0))
    with np.errstate(invalid="ignore"):
        mean = sums.sum(0) / counts.sum(0)
    columns = {"mean": mean, "low": low, "high": high, "storms": (counts > 0).sum(0), "records": counts.sum(0).astype(int)}
    return pd.DataFrame(columns, index=pd.Index(leads, name="lead"))


def difference(a: pd.DataFrame, b: pd.DataFrame, measure: str = "distance", *, samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Difference a - b of the mean of a measure by lead time, over the cases that both have, with bootstrap over storms.

    a, b: tables of ``errors``, of two forecasts of the same storms. A case is a storm, an initial time and a lead time; members are
    averaged first. All errors are compared by their size, whatever their sign.
    Returns a table by lead: difference, low, high (95 %), storms, cases; the difference is significant where 0 lies outside.
    Raises WxlabError when the two share no case.
    """
    keys = [STORM, "init_time", "lead"]
    for name, table in (("a", a), ("b", b)):
        missing = [key for key in [*keys, measure] if key not in table]
        if missing:
            raise WxlabError(f"table {name} has no {', '.join(missing)}; give what wxlab.cyclones.errors made of a forecast")
    size = [table.assign(**{measure: table[measure].abs()}) for table in (a, b)]
    means = [table.dropna(subset=[measure]).groupby(keys)[measure].mean() for table in size]
    pair = pd.concat(means, axis=1, join="inner", keys=["a", "b"])
    if pair.empty:
        raise WxlabError("the two forecasts share no storm, initial time and lead time; make both from the same ones")
    both = (pair["a"] - pair["b"]).rename(measure).reset_index()
    found = by_lead(both, measure, samples=samples, seed=seed)
    return found.rename(columns={"mean": "difference", "records": "cases"})


def _by_storm(table: pd.DataFrame, measure: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sums and counts [storms, leads] of a measure."""
    for name in (measure, "lead", STORM):
        if name not in table:
            raise unknown("column of the table of errors", name, table.columns)
    table = table.dropna(subset=[measure])
    leads, place = np.unique(np.round(table["lead"].to_numpy(dtype=float), 3), return_inverse=True)
    storms, which = np.unique(table[STORM].to_numpy(dtype=str), return_inverse=True)
    sums, counts = np.zeros((len(storms), len(leads))), np.zeros((len(storms), len(leads)))
    np.add.at(sums, (which, place), table[measure].to_numpy(dtype=float))
    np.add.at(counts, (which, place), 1)
    return sums, counts, leads, storms


def _means(sums: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Means [samples, leads] of storms drawn with replacement."""
    if not is_whole(samples):
        raise WxlabError(f"samples={samples!r} must be a whole number of at least 1")
    if not len(sums):
        return np.full((samples, sums.shape[1]), np.nan)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=samples).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (drawn @ sums) / (drawn @ counts)


def _interval(means: np.ndarray, storms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    some = (storms >= 2) & np.isfinite(means).any(0)
    if not some.any():
        return np.full(len(storms), np.nan), np.full(len(storms), np.nan)
    ends = np.nanquantile(np.where(some, means, 0.0), [0.025, 0.975], axis=0)
    return np.where(some, ends[0], np.nan), np.where(some, ends[1], np.nan)


def spread_and_error(mean: xr.Dataset, truth: xr.Dataset) -> pd.DataFrame:
    """Spread of an ensemble of tracks against the error of its mean, by lead time.

    Both as root mean squares in km over all records of ``mean_track``: of a reliable ensemble of M members the error is
    sqrt((M + 1) / M) times the spread, where the spread is that of the members about their mean with M - 1 in the denominator.

    mean: of ``mean_track``.  truth: best tracks.
    Returns a table by lead: spread, error, members (mean number that had the storm), records.
    """
    table = errors(mean, truth)
    spread = pd.DataFrame({name: mean[name].values for name in ("track_id", "lead", "spread", "members")})
    both = table.merge(spread, on=["track_id", "lead"]).dropna(subset=["spread", "distance"])
    rows = both.assign(spread=both["spread"] ** 2, error=both["distance"] ** 2).groupby("lead")
    result = rows[["spread", "error"]].mean() ** 0.5
    result["members"], result["records"] = rows["members"].mean(), rows.size()
    return result
