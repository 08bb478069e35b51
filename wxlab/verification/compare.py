"""Comparisons: tables of several forecasts, and how sure a difference between two of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.forcings import seconds
from wxlab.verification.blocks import Settings, Sums
from wxlab.verification.inputs import LEAD, Reference, States, as_forecast, as_states, channel_names, lead_position, levels_of
from wxlab.verification.metrics import METRICS, Options, check_metrics, coordinates, metric_of
from wxlab.verification.scoring import pair_sums


def scorecard(scores: Mapping[str, xr.Dataset], *, lead: float, metric: str = "rmse", **choice: float) -> pd.DataFrame:
    """A table of one metric at one lead time: a row for each channel (``geopotential_500``), a column for each forecast.

    scores: what ``verify`` returned, by name.  lead: hours.  metric: one that was scored.  choice: ``threshold=``, ``pool=``,
    ``window=`` for metrics that have several.
    Raises WxlabError for a lead time or metric that the scores do not hold, for scores by group, and when forecasts were not scored
    at the same points and initial times, which would be no comparison.
    """
    if not scores:
        raise WxlabError("there are no scores to put in a table; give {'name': verify(...), ...}")
    columns, chosen = {}, {}
    for name, score in scores.items():
        if LEAD not in score.dims or "metric" not in score.dims:
            raise WxlabError(f"the scores of {name!r} have no metric and {LEAD}; give what verify returned")
        if "group" in score.dims:
            raise WxlabError(f"the scores of {name!r} are by group; choose one with .sel(group=...), or verify without by")
        if metric not in score["metric"].values:
            raise unknown("metric of the scores", metric, score["metric"].values)
        at = score.isel({LEAD: lead_position(score[LEAD].values, lead)}).sel(metric=metric)
        chosen[str(name)] = at = _chosen(at, metric, choice)
        column: dict[str, float] = {}
        for variable, field in at.data_vars.items():
            column.update(zip(channel_names(str(variable), levels_of(field)), np.atleast_1d(field.values).tolist(), strict=True))
        columns[str(name)] = pd.Series(column, dtype=float)
    _same_points(chosen)
    order = dict.fromkeys(channel for column in columns.values() for channel in column.index)
    table = pd.DataFrame(columns).reindex(list(order)).dropna(how="all")
    return table.rename_axis("channel")


def _chosen(scores: xr.Dataset, metric: str, choice: Mapping[str, float]) -> xr.Dataset:
    """Scores at one threshold, pool and window; where the metric has none of them any will do."""
    own = METRICS[metric].dims if metric in METRICS else ()
    for dim in ("threshold", "pool", "window"):
        if dim not in scores.dims:
            continue
        values = scores[dim].values
        if dim not in own:
            scores = scores.isel({dim: 0}, drop=True)
            continue
        found = np.flatnonzero(np.isclose(values, choice.get(dim, values[0] if len(values) == 1 else np.nan)))
        if not len(found):
            listing = ", ".join(f"{value:g}" for value in values)
            said = f"{dim}={choice[dim]:g} is not among them" if dim in choice else f"say which, for example {dim}={values[0]:g}"
            raise WxlabError(f"{metric!r} was scored at {dim} {listing}; {said}")
        scores = scores.isel({dim: int(found[0])}, drop=True)
    return scores


def _same_points(scores: Mapping[str, xr.Dataset]) -> None:
    """Raises WxlabError when a variable was scored at other points or initial times in one column than in another."""
    first: dict[Any, tuple[str, float, int]] = {}
    for name, score in scores.items():
        for variable, field in score.data_vars.items():
            if "scored" not in field.attrs or "initial_times" not in score.coords:
                continue
            share, count = float(field.attrs["scored"]), int(score["initial_times"])
            other, its_share, its_count = first.setdefault(variable, (name, share, count))
            if count != its_count or abs(share - its_share) > 1e-9:
                told = [f"{100 * part:.4g} % of the points of {n} initial times" for part, n in ((its_share, its_count), (share, count))]
                raise WxlabError(
                    f"{variable!r} was scored on {told[0]} for {other!r} and on {told[1]} for {name!r}, which cannot be compared; "
                    f"verify each with common_with=[the other forecasts]"
                )


def bootstrap_difference(
    a: xr.Dataset,
    b: xr.Dataset,
    truth: States,
    *,
    metric: str = "rmse",
    lead: float,
    seed: int = 0,
    samples: int = 1000,
    block: int | None = None,
    climatology: Reference | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Difference of a metric between two forecasts, with a 95 % interval by a paired block bootstrap over initial times.

    The initial times that both have are drawn again in blocks of geometric length with mean ``block``, going round the end
    (stationary bootstrap), the same for both; the score of each draw is the metric of its mean statistic, so that for rmse the root
    comes after the mean over initial times, and csi is that of all hits, misses and false alarms. Both are scored at the points that
    both have.

    a, b: forecasts; the difference is score(a) - score(b).  truth: as for ``verify``.  metric: any of ``verify`` of which one of two
    values is better.  lead: hours.  samples: draws.  block: mean length in initial times; None: as many as begin within one lead
    time, so that forecasts which overlap stay together.  climatology: for acc.  options: thresholds, pools, windows, data_range,
    ensemble, as for ``verify``.

    Returns a table, a row for each channel (``geopotential_500``), and for each threshold, pool and window where the metric has them,
    with the columns difference; low, high (2.5 % and 97.5 % of the draws; NaN when there are fewer than two blocks of initial times,
    which say nothing of how sure it is); share_better (share of the initial times with a score at which a scores better than b).
    Raises WxlabError for what ``verify`` refuses, for forecasts without a common initial time, and for a lead time that one lacks.
    References: Künsch 1989, doi:10.1214/aos/1176347265; Politis and Romano 1994, doi:10.1080/01621459.1994.10476870.
    """
    (metric,) = check_metrics(metric)
    if METRICS[metric].better == 0:
        compared = ", ".join(name for name, entry in METRICS.items() if entry.better)
        raise WxlabError(f"of two values of {metric!r} neither is the better one; compare with one of {compared}")
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)) or samples < 1:
        raise WxlabError(f"samples={samples!r} must be a whole number of at least 1")
    wrong = [name for name in options if name not in Options.__dataclass_fields__]
    if wrong:
        raise unknown("option", wrong[0], Options.__dataclass_fields__)
    pair = _common((as_forecast(a, "a"), as_forecast(b, "b")), lead)
    states, rows = as_states(truth), []
    chosen = Options(**options)
    first = _by_channel(pair[0], pair[1], states, metric, chosen, climatology)
    second = _by_channel(pair[1], pair[0], states, metric, chosen, climatology)
    for channel, (ours, settings) in first.items():
        theirs, _ = second[channel]
        paired = _any_weight(ours) & _any_weight(theirs)
        if not paired.any():
            continue
        stamps = seconds(pair[0]["time"].values)[paired]
        length = _block_length(stamps, lead, block)
        counts = _draws(len(stamps), length, samples, np.random.default_rng(seed))
        columns = _differences(metric, (ours[0][paired], ours[1][paired]), (theirs[0][paired], theirs[1][paired]), counts)
        if len(stamps) < 2 * length:
            columns["low"] = columns["high"] = np.full_like(columns["low"], np.nan)
        rows.append(_rows(channel, columns, coordinates(metric, settings)))
    if not rows:
        raise WxlabError("no initial time has both forecasts and the truth at this lead time; give truth for their valid times")
    return pd.concat(rows)


def _differences(metric: str, ours: Sums, theirs: Sums, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the table for one channel; sums: [initial times, ...], counts: how often each was drawn [samples, times]."""
    sides = [ours, theirs]
    whole = [metric_of(metric, (total.sum(0), weight.sum(0))) for total, weight in sides]
    each = [metric_of(metric, sums) for sums in sides]
    drawn = [metric_of(metric, (np.tensordot(counts, total, 1), np.tensordot(counts, weight, 1))) for total, weight in sides]
    difference = drawn[0] - drawn[1]
    some = ~np.isnan(difference).all(0)
    ends = np.nanquantile(np.where(some, difference, 0.0), [0.025, 0.975], axis=0)
    low, high = np.where(some, ends, np.nan)
    # where both are equal, neither is better
    gap = METRICS[metric].better * (each[0] - each[1])
    defined = (~np.isnan(gap)).sum(0)
    share = np.divide((gap > 0).sum(0), defined, out=np.full(defined.shape, np.nan), where=defined > 0)
    return {"difference": whole[0] - whole[1], "low": low, "high": high, "share_better": share}


def _rows(channel: str, columns: Mapping[str, np.ndarray], extra: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    index: pd.Index = pd.Index([channel], name="channel")
    if extra:
        index = pd.MultiIndex.from_product([[channel], *extra.values()], names=["channel", *extra])
    return pd.DataFrame({name: np.ravel(values) for name, values in columns.items()}, index=index)


def _any_weight(sums: Sums) -> np.ndarray:
    """Initial times that have anything."""
    return sums[1].reshape(len(sums[1]), -1).max(1) > 0


def _common(pair: tuple[xr.Dataset, xr.Dataset], lead: float) -> list[xr.Dataset]:
    """Both forecasts at one lead time, at the initial times that both have, in their order."""
    times = np.intersect1d(pair[0]["time"].values, pair[1]["time"].values)
    if not len(times):
        raise WxlabError("the two forecasts share no initial time; make both from the same ones")
    at = [lead_position(forecast[LEAD].values, lead) for forecast in pair]
    names = [name for name in pair[0].data_vars if name in pair[1]]
    if not names:
        raise WxlabError(f"the two forecasts share no channel: {', '.join(map(str, pair[0]))} against {', '.join(map(str, pair[1]))}")
    return [forecast[names].isel({LEAD: [place]}).sel(time=times) for forecast, place in zip(pair, at, strict=True)]


def _by_channel(
    forecast: xr.Dataset, other: xr.Dataset, states: xr.Dataset, metric: str, options: Options, climatology: Reference | None
) -> dict[str, tuple[Sums, Settings]]:
    """Sums of the metric's statistic at each initial time, at the points that the other forecast has too, by channel."""
    table, _, settings = pair_sums(forecast, states, (metric,), options, climatology, (other,))
    found = {}
    for variable, score in table.items():
        total, weight = score.sums[METRICS[metric].statistic]
        for k, channel in enumerate(channel_names(variable, score.levels)):
            found[channel] = (total[:, 0, k], weight[:, 0, k]), settings[variable]
    return found


def _block_length(stamps: np.ndarray, lead: float, block: int | None) -> int:
    """Mean length of blocks: given, or the largest number of initial times that begin within one lead time."""
    if block is None:
        return int((np.searchsorted(stamps, stamps + round(lead * 3600)) - np.arange(len(stamps))).max())
    if isinstance(block, bool) or not isinstance(block, (int, np.integer)) or not 1 <= block <= len(stamps) // 2:
        raise WxlabError(f"block={block!r} must be a whole number from 1 to {len(stamps) // 2}, half of the {len(stamps)} initial times")
    return int(block)


def _draws(count: int, length: int, samples: int, random: np.random.Generator) -> np.ndarray:
    """How often each initial time occurs in each draw of the stationary bootstrap: [samples, count]."""
    place = np.arange(count)
    begins = random.random((samples, count)) < 1 / length
    begins[:, 0] = True
    last = np.maximum.accumulate(np.where(begins, place, 0), axis=1)  # where the block of each place began
    picked = (np.take_along_axis(random.integers(count, size=(samples, count)), last, axis=1) + place - last) % count
    flat = (picked + count * np.arange(samples)[:, None]).ravel()
    return np.bincount(flat, minlength=samples * count).reshape(samples, count).astype(np.float64)
