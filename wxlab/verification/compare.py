"""Comparisons: tables of several forecasts, and how sure a difference between two of them is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.forcings import seconds
from wxlab.verification.inputs import LEAD, Reference, States, as_forecast, as_states, channel_names, lead_position, levels_of
from wxlab.verification.metrics import METRICS, Sums, metric_of
from wxlab.verification.scoring import check_metrics, pair_sums


def scorecard(scores: Mapping[str, xr.Dataset], *, lead: float, metric: str = "rmse") -> pd.DataFrame:
    """A table of one metric at one lead time: a row for each channel (``geopotential_500``), a column for each forecast.

    scores: what ``verify`` returned, by name.  lead: hours.  metric: one that was scored.
    Raises WxlabError for a lead time or metric that the scores do not hold, and for scores by group.
    """
    if not scores:
        raise WxlabError("there are no scores to put in a table; give {'name': verify(...), ...}")
    columns = {}
    for name, score in scores.items():
        if LEAD not in score.dims or "metric" not in score.dims:
            raise WxlabError(f"the scores of {name!r} have no metric and {LEAD}; give what verify returned")
        if "group" in score.dims:
            raise WxlabError(f"the scores of {name!r} are by group; choose one with .sel(group=...), or verify without by")
        if metric not in score["metric"].values:
            raise unknown("metric of the scores", metric, score["metric"].values)
        at = score.isel({LEAD: lead_position(score[LEAD].values, lead)}).sel(metric=metric)
        column: dict[str, float] = {}
        for variable, field in at.data_vars.items():
            column.update(zip(channel_names(str(variable), levels_of(field)), np.atleast_1d(field.values).tolist(), strict=True))
        columns[str(name)] = pd.Series(column, dtype=float)
    order = dict.fromkeys(channel for column in columns.values() for channel in column.index)
    table = pd.DataFrame(columns).reindex(list(order)).dropna(how="all")
    return table.rename_axis("channel")


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
) -> pd.DataFrame:
    """Difference of a metric between two forecasts, with a 95 % interval by a paired block bootstrap over initial times.

    The initial times that both have are drawn again in blocks of geometric length with mean ``block``, going round the end
    (stationary bootstrap), the same for both; the score of each draw is the metric of its mean statistic, so that for rmse the root
    comes after the mean over initial times.

    a, b: forecasts; the difference is score(a) - score(b).  truth: as for ``verify``.  metric: any of ``verify`` but bias and spread.
    lead: hours.  samples: draws.  block: mean length in initial times; None: as many as begin within one lead time, so that
    forecasts which overlap stay together.  climatology: for acc.

    Returns a table, a row for each channel (``geopotential_500``), with the columns difference; low, high (2.5 % and 97.5 % of the
    draws; NaN when there are fewer than two blocks of initial times, which say nothing of how sure it is); share_better (share of the
    initial times at which a scores better than b).
    Raises WxlabError for what ``verify`` refuses, for forecasts without a common initial time, and for a lead time that one lacks.
    References: Künsch 1989, doi:10.1214/aos/1176347265; Politis and Romano 1994, doi:10.1080/01621459.1994.10476870.
    """
    (metric,) = check_metrics(metric)
    if METRICS[metric].better == 0:
        compared = ", ".join(name for name, entry in METRICS.items() if entry.better)
        raise WxlabError(f"of two values of {metric!r} neither is the better one; compare with one of {compared}")
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)) or samples < 1:
        raise WxlabError(f"samples={samples!r} must be a whole number of at least 1")
    pair = _common((as_forecast(a, "a"), as_forecast(b, "b")), lead)
    states = as_states(truth)
    first, second = (_by_channel(forecast, states, metric, climatology) for forecast in pair)
    channels = [channel for channel in first if channel in second]
    if not channels:
        raise WxlabError(f"the two forecasts share no channel: {', '.join(first)} against {', '.join(second)}")
    ours, theirs = (tuple(np.stack([sums[c][i] for c in channels], axis=1) for i in (0, 1)) for sums in (first, second))
    paired = (ours[1] > 0) & (theirs[1] > 0)  # [initial times, channels]
    used, kept = paired.any(1), paired.any(0)
    ours, theirs = (tuple(np.where(paired, part, 0.0)[used][:, kept] for part in sums) for sums in (ours, theirs))
    if not kept.any():
        raise WxlabError("no initial time has both forecasts and the truth at this lead time; give truth for their valid times")
    stamps = seconds(pair[0]["time"].values)[used]
    length = _block_length(stamps, lead, block)
    counts = _draws(len(stamps), length, samples, np.random.default_rng(seed))
    drawn = metric_of(metric, (counts @ ours[0], counts @ ours[1])) - metric_of(metric, (counts @ theirs[0], counts @ theirs[1]))
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0) if len(stamps) >= 2 * length else np.full((2, kept.sum()), np.nan)
    # where both are equal, neither is better
    better = METRICS[metric].better * (metric_of(metric, _pair(ours)) - metric_of(metric, _pair(theirs))) > 0
    whole = [metric_of(metric, (sums[0].sum(0), sums[1].sum(0))) for sums in (ours, theirs)]
    share = better.sum(0) / paired[used][:, kept].sum(0)
    names = pd.Index(np.array(channels)[kept], name="channel")
    return pd.DataFrame({"difference": whole[0] - whole[1], "low": low, "high": high, "share_better": share}, index=names)


def _pair(sums: tuple[np.ndarray, ...]) -> Sums:
    return sums[0], sums[1]


def _common(pair: tuple[xr.Dataset, xr.Dataset], lead: float) -> list[xr.Dataset]:
    """Both forecasts at one lead time, at the initial times that both have, in their order."""
    times = np.intersect1d(pair[0]["time"].values, pair[1]["time"].values)
    if not len(times):
        raise WxlabError("the two forecasts share no initial time; make both from the same ones")
    at = [lead_position(forecast[LEAD].values, lead) for forecast in pair]
    return [forecast.isel({LEAD: [place]}).sel(time=times) for forecast, place in zip(pair, at, strict=True)]


def _by_channel(forecast: xr.Dataset, states: xr.Dataset, metric: str, climatology: Reference | None) -> dict[str, Sums]:
    """Sums of the metric's statistic at each initial time, by channel."""
    table, _ = pair_sums(forecast, states, (metric,), climatology)
    found = {}
    for variable, score in table.items():
        total, weight = score.sums[METRICS[metric].statistic]
        for k, channel in enumerate(channel_names(variable, score.levels)):
            found[channel] = total[:, 0, k], weight[:, 0, k]
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
