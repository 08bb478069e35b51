"""Scores: sums of statistics for each forecast, added up over initial times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.forcings import DAY, seconds
from wxlab.verification.blocks import WEIGHTS, Case, Ensemble, Score, Settings, Sums, Weighting, accumulate, make_case
from wxlab.verification.inputs import LEAD, Reference, States, together
from wxlab.verification.metrics import METRICS, Options, check_metrics, coordinates, metric_of, statistics_of, units_of
from wxlab.verification.thresholds import DataRange, Thresholds

GROUPS = ("season", "month", "hour", "time")
LEADS = ("each", "all")
_SEASONS = np.array(["DJF", "MAM", "JJA", "SON"])


def verify(
    forecast: xr.Dataset,
    truth: States,
    *,
    metrics: Sequence[str] | str = ("rmse", "mae", "bias"),
    climatology: Reference | None = None,
    by: str | None = None,
    leads: Literal["each", "all"] = "each",
    thresholds: Thresholds | None = None,
    pools: Sequence[int] = (4, 16),
    windows: Sequence[int] = (5, 9, 17),
    data_range: DataRange | None = None,
    ensemble: Ensemble | None = None,
    common_with: Sequence[xr.Dataset] = (),
    weights: Weighting = "area",
) -> xr.Dataset:
    """Score a forecast against the truth by lead time.

    With e = forecast - truth, weights w of the rows (mean 1) and ⟨·⟩ = Σ w · / Σ w over points and initial times:
    bias ⟨e⟩, mae ⟨|e|⟩, mse ⟨e²⟩, rmse √⟨e²⟩;
    acc: mean over initial times of Σ w f′o′ / √(Σ w f′² Σ w o′²), primes being departures from the climatology at the valid time;
    crps ⟨mean|x − o| − Σ|x − x′| / (2 M²)⟩ over the M members, crps_fair with 2 M (M − 1) in place of 2 M²;
    spread √⟨s²⟩ with s² the variance of the members with M − 1; spread_skill √((M + 1) / M ⟨s²⟩ / ⟨e²⟩), 1 where the ensemble knows
    its error; brier ⟨(p − o)²⟩, p the share of members with the event.
    Of events x ≥ threshold, with hits a, misses b, false alarms c, correct negatives d, added up before the score is taken:
    csi a/(a+b+c), pod a/(a+b), far c/(a+c), frequency_bias (a+c)/(a+b), hss 2(ad−bc)/((a+b)(b+d)+(a+c)(c+d)), NaN where there is
    nothing to divide by; csi_m and hss_m are their means over the thresholds, with 0 in place of NaN.
    csi_pooled, csi_pooled_m: of pools of r x r points side by side, events where one of their points is;
    csi_overlapping, csi_overlapping_m: the same, pools beginning every r // 4 points.
    fss: 1 − Σ(p_f − p_o)² / Σ(p_f² + p_o²), p the share of events in each window of n x n points.
    Of pictures, (x − low) / (high − low) cut to 0..1: mae_scaled, mse_scaled, psnr (mean of 10 log10(1/MSE) of each frame), and ssim
    (11 x 11 Gaussian windows of 1.5 points, K 0.01 and 0.03).

    forecast: dims time (initial), [number], prediction_timedelta, [level], latitude, longitude (radar: y, x); it is read in pieces.
    truth: states over valid time, a store, or its path.  Pairs without a state of the truth are left out.  Points where the truth or
    a member is NaN are left out of sums and weights, and pools and windows only count where they lie inside the field and hold no
    such point: neither padding nor what is missing enters a score.
    climatology: for acc: ``store.climatology()``, or a Dataset with hour and dayofyear.  by: None, or by the initial time's
    ``season``, ``month``, ``hour``, or each ``time`` for itself.  leads: ``each``, or ``all`` added up to one score.
    thresholds: ``sevir``, ``hko7``, ``meteonet`` (what they say for the variable), numbers in its unit, or either by variable.
    pools, windows: sizes in points.  data_range: (low, high), or that by variable; None: of the named thresholds.
    ensemble: what is scored where members are not scored together: their ``mean``, each of the ``members``, counted all together, or
    the probability-``matched`` mean; None: the mean for errors, the members for events and pictures.
    common_with: other forecasts; only initial times, lead times and points that all of them have are scored, for a fair comparison.
    weights: ``area`` of the cells, or ``cosine`` of the latitude, as many papers have it (rows on a pole then count nothing).

    Returns a Dataset with dims (metric, prediction_timedelta[, level][, threshold][, pool][, window][, group]). A metric without one
    of the dimensions has the same value all along it. The attribute ``units`` is there when all metrics have one and the same,
    ``variable_units`` is that of the variable, and the coordinate ``unit_power`` its power in each metric; the coordinate
    ``initial_times`` counts the forecasts that had a truth, and the attribute ``scored`` is the share of their points that counted.
    Raises WxlabError for unknown metrics and groups, for what a metric needs and was not given, and when the two share no variable,
    grid or valid time.
    References: Rasp et al. 2024, doi:10.1029/2023MS004019 (acc, by initial time); Ferro 2014, doi:10.1002/qj.2270 (fair CRPS);
    Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1 (spread, spread_skill); Wilks 2019, doi:10.1016/C2017-0-03921-6 (events);
    Roberts and Lean 2008, doi:10.1175/2007MWR2123.1 (fss); Wang et al. 2004, doi:10.1109/TIP.2003.819861 (ssim).
    """
    metrics = check_metrics(metrics)
    for name, given, allowed in (("grouping by=", by, (None, *GROUPS)), ("leads=", leads, LEADS), ("weights=", weights, WEIGHTS)):
        if given not in allowed:
            raise unknown(name, given, allowed)
    options = Options(thresholds, pools, windows, data_range, ensemble)
    table, case, settings = pair_sums(forecast, truth, metrics, options, climatology, common_with, weights)
    labels, codes = _groups(case.forecast["time"].values, by)
    arrays = {name: _array(score, metrics, settings[name], codes, len(labels), leads) for name, score in table.items()}
    for name, score in table.items():
        arrays[name].attrs["scored"] = float(score.sums["observed"][0].sum() / (case.found.sum() * case.points * len(score.levels)))
    scores = together(arrays)
    seen = case.found if leads == "each" else np.asarray(case.found.any(1, keepdims=True))
    counts = np.stack([seen[codes == group].sum(0) for group in range(len(labels))], axis=-1)
    where = {LEAD: case.forecast[LEAD].values} if leads == "each" else {}
    powers = [METRICS[name].power for name in metrics]
    times = ((LEAD, "group"), counts) if leads == "each" else (("group",), counts[0])
    scores = scores.assign_coords({"unit_power": ("metric", powers), **where, "group": labels, "initial_times": times})
    return scores.isel(group=0).drop_vars("group") if by is None else scores


def _array(score: Score, metrics: Sequence[str], settings: Settings, codes: np.ndarray, groups: int, leads: str) -> xr.DataArray:
    """The metrics of one variable, with all dimensions that one of them has."""
    parts = []
    for metric in metrics:
        sums = _add(score.sums[METRICS[metric].statistic], codes, groups, leads == "all")
        extra = coordinates(metric, settings)
        parts.append(xr.DataArray(metric_of(metric, sums), dims=("group", LEAD, "level", *extra), coords=extra))
    array = xr.concat(xr.broadcast(*parts), dim="metric").assign_coords(metric=list(metrics))
    array = array.transpose("metric", LEAD, "level", "threshold", "pool", "window", "group", missing_dims="ignore")
    array = array.isel({LEAD: 0}) if leads == "all" else array
    array = array.isel(level=0) if score.levels == [None] else array.assign_coords(level=score.levels)
    own = {units_of(metric, score.units) for metric in metrics}
    units = {"units": own.pop()} if len(own) == 1 else {}
    known: dict[str, Any] = {**units, "variable_units": score.units}
    return array.assign_attrs({key: text for key, text in known.items() if text is not None})


def pair_sums(
    forecast: xr.Dataset,
    truth: States,
    metrics: Sequence[str],
    options: Options,
    climatology: Reference | None,
    common_with: Sequence[xr.Dataset] = (),
    weights: Weighting = "area",
) -> tuple[Mapping[str, Score], Case, Mapping[str, Settings]]:
    """Sums of the statistics of metrics for each variable, initial time and lead time."""
    if "acc" in metrics and climatology is None:
        raise WxlabError("the metric 'acc' needs a climatology; give climatology=store.climatology()")
    case = make_case(forecast, truth, climatology=climatology if "acc" in metrics else None, common_with=common_with, weights=weights)
    members = case.forecast.sizes.get("number", 1)
    for name in metrics:
        if members < METRICS[name].members:
            raise WxlabError(f"metric {name!r} needs {METRICS[name].members} members or more, and the forecast has {members}; leave it out")
    settings = {name: options.settings(name, metrics) for name in case.levels}
    return accumulate(case, statistics_of(metrics), settings), case, settings


def _groups(times: np.ndarray, by: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the groups of initial times, and the group of each time."""
    month = times.astype("datetime64[M]").astype(np.int64) % 12
    if by == "season":
        found, codes = np.unique((month + 1) % 12 // 3, return_inverse=True)
        return _SEASONS[found], codes
    stamps = seconds(times)
    keys = {"month": month + 1, "hour": stamps % DAY // 3600, "time": times, None: np.zeros(len(times), dtype=np.int64)}
    labels, codes = np.unique(keys[by], return_inverse=True)
    return labels, codes


def _add(sums: Sums, codes: np.ndarray, groups: int, all_leads: bool) -> Sums:
    """Sums over the initial times of each group, and maybe over the lead times: [groups, lead times, levels, ...]."""
    total, weight = (np.stack([part[codes == group].sum(0) for group in range(groups)]) for part in sums)
    return (total.sum(1, keepdims=True), weight.sum(1, keepdims=True)) if all_leads else (total, weight)
