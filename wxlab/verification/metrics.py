"""Metrics: statistics of one forecast at one lead time, and what their means become.

A statistic is summed over the points of a forecast with its weights; sums are added over initial times, and a metric is a function of
the mean. So it does not matter in which pieces forecasts are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from scores.probability import crps_for_ensemble

from wxlab.errors import WxlabError

Sums = tuple[np.ndarray, np.ndarray]  # weighted sum and sum of weights, each [T, L, K]


@dataclass(frozen=True)
class Block:
    """Some forecasts of a variable beside the truth, in float64.

    members: [M, T, L, K, P] (members, initial times, lead times, levels, points); truth, climatology: [T, L, K, P], NaN where there
    is none; weights: [P], of the area of each point.
    """

    members: np.ndarray
    truth: np.ndarray
    weights: np.ndarray
    climatology: np.ndarray | None = None

    @cached_property
    def mean(self) -> np.ndarray:
        return self.members[0] if len(self.members) == 1 else self.members.mean(0)

    @cached_property
    def observed(self) -> np.ndarray:
        """Points that have truth and all members: only NaN is missing, an infinite forecast counts as what it is."""
        return ~(np.isnan(self.members).any(0) | np.isnan(self.truth))

    @cached_property
    def error(self) -> np.ndarray:
        return self.mean - self.truth

    def crps(self, method: str) -> np.ndarray:
        dims = ("time", "lead", "level", "point")
        fields = xr.DataArray(self.members, dims=("number", *dims)), xr.DataArray(self.truth, dims=dims)
        return np.asarray(crps_for_ensemble(*fields, "number", method=method, preserve_dims="all").transpose(*dims).values)

    def total(self, values: np.ndarray, observed: np.ndarray | None = None) -> Sums:
        """Sum over the observed points with the weights, and the sum of those weights."""
        observed = self.observed if observed is None else observed
        if observed.all():
            return values @ self.weights, np.full(values.shape[:-1], self.weights.sum())
        return np.where(observed, values, 0.0) @ self.weights, observed.astype(np.float64) @ self.weights

    def correlation(self) -> Sums:
        """Anomaly correlation of each forecast, with weight 1 where it is defined."""
        if self.climatology is None:
            raise WxlabError("the metric 'acc' needs a climatology; give climatology=store.climatology()")
        observed = self.observed & ~np.isnan(self.climatology)
        ours, theirs = self.mean - self.climatology, self.truth - self.climatology
        covariance, _ = self.total(ours * theirs, observed)
        size = np.sqrt(self.total(ours**2, observed)[0] * self.total(theirs**2, observed)[0])
        defined = size != 0
        return np.divide(covariance, size, out=np.zeros_like(size), where=defined), defined.astype(np.float64)


STATISTICS: dict[str, Callable[[Block], Sums]] = {
    "error": lambda block: block.total(block.error),
    "absolute": lambda block: block.total(np.abs(block.error)),
    "squared": lambda block: block.total(block.error**2),
    "correlation": Block.correlation,
    # one member has no spread to be taken off, and its CRPS is the absolute error
    "crps": lambda block: block.total(np.abs(block.error) if len(block.members) == 1 else block.crps("ecdf")),
    "crps_fair": lambda block: block.total(block.crps("fair")),
    "variance": lambda block: block.total(block.members.var(0, ddof=1)),
}


def _same(mean: np.ndarray) -> np.ndarray:
    return mean


@dataclass(frozen=True)
class Metric:
    """A function of the mean of a statistic.  members: how many the forecast must have.  better: 1 when larger is, -1 when smaller is,
    0 when neither.  power: of the variable's unit."""

    statistic: str
    finish: Callable[[np.ndarray], np.ndarray] = _same
    members: int = 1
    better: int = -1
    power: int = 1


METRICS: dict[str, Metric] = {
    "rmse": Metric("squared", np.sqrt),
    "mse": Metric("squared", power=2),
    "mae": Metric("absolute"),
    "bias": Metric("error", better=0),
    "acc": Metric("correlation", better=1, power=0),
    "crps": Metric("crps"),
    "crps_fair": Metric("crps_fair", members=2),
    "spread": Metric("variance", np.sqrt, members=2, better=0),
}


def metric_of(metric: str, sums: Sums) -> np.ndarray:
    """A metric of weighted sums and sums of weights; NaN where nothing was observed."""
    total, weight = sums
    mean = np.divide(total, weight, out=np.full(np.broadcast_shapes(total.shape, weight.shape), np.nan), where=weight > 0)
    return METRICS[metric].finish(mean)
