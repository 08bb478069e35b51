"""Metrics: what the mean of a statistic becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wxlab.errors import WxlabError, unknown
from wxlab.readers.units import power as power_of_unit
from wxlab.verification import categorical, continuous, ensemble, image, spatial
from wxlab.verification.blocks import ENSEMBLES, Ensemble, Settings, Statistic, Sums
from wxlab.verification.categorical import over_thresholds
from wxlab.verification.thresholds import DataRange, Thresholds, data_range_of, thresholds_of

STATISTICS: dict[str, Statistic] = {
    "error": continuous.error,
    "absolute": continuous.absolute,
    "squared": continuous.squared,
    "correlation": continuous.correlation,
    "crps": continuous.crps,
    "crps_fair": continuous.crps_fair,
    "variance": continuous.variance,
    "dispersion": continuous.dispersion,
    "counts": categorical.counts,
    "counts_pooled": categorical.pooled_counts,
    "counts_overlapping": categorical.overlapping_counts,
    "fractions": spatial.fractions,
    "brier": ensemble.brier,
    "absolute_scaled": image.absolute_scaled,
    "squared_scaled": image.squared_scaled,
    "signal_to_noise": image.signal_to_noise,
    "similarity": image.similarity,
}
_OF_EVENTS = ("counts", "counts_pooled", "counts_overlapping", "fractions", "brier")
_OF_PICTURES = ("absolute_scaled", "squared_scaled", "signal_to_noise", "similarity")


def _same(mean: np.ndarray) -> np.ndarray:
    return mean


@dataclass(frozen=True)
class Metric:
    """A function of the mean of a statistic.

    dims: that it has besides lead time and level.  members: how many the forecast must have.  better: 1 when larger is, -1 when
    smaller is, 0 when neither.  power: of the variable's unit; where it is 0, ``units`` is the metric's own.
    """

    statistic: str
    finish: Callable[[np.ndarray], np.ndarray] = _same
    dims: tuple[str, ...] = ()
    members: int = 1
    better: int = -1
    power: int = 1
    units: str = "1"


def _event(score: Callable[[np.ndarray], np.ndarray], statistic: str = "counts", *dims: str, better: int = 1) -> Metric:
    return Metric(statistic, score, ("threshold", *dims), better=better, power=0)


METRICS: dict[str, Metric] = {
    "rmse": Metric("squared", np.sqrt),
    "mse": Metric("squared", power=2),
    "mae": Metric("absolute"),
    "bias": Metric("error", better=0),
    "acc": Metric("correlation", better=1, power=0),
    "crps": Metric("crps"),
    "crps_fair": Metric("crps_fair", members=2),
    "spread": Metric("variance", np.sqrt, members=2, better=0),
    "spread_skill": Metric("dispersion", continuous.spread_skill, members=2, better=0, power=0),
    "csi": _event(categorical.csi),
    "hss": _event(categorical.hss),
    "pod": _event(categorical.pod),
    "far": _event(categorical.far, better=-1),
    "frequency_bias": _event(categorical.frequency_bias, better=0),
    "csi_m": Metric("counts", over_thresholds(categorical.csi), better=1, power=0),
    "hss_m": Metric("counts", over_thresholds(categorical.hss), better=1, power=0),
    "csi_pooled": _event(categorical.csi, "counts_pooled", "pool"),
    "csi_pooled_m": Metric("counts_pooled", over_thresholds(categorical.csi, -2), ("pool",), better=1, power=0),
    "csi_overlapping": _event(categorical.csi, "counts_overlapping", "pool"),
    "csi_overlapping_m": Metric("counts_overlapping", over_thresholds(categorical.csi, -2), ("pool",), better=1, power=0),
    "fss": _event(spatial.fss, "fractions", "window"),
    "brier": _event(_same, "brier", better=-1),
    "mae_scaled": Metric("absolute_scaled", power=0),
    "mse_scaled": Metric("squared_scaled", power=0),
    "psnr": Metric("signal_to_noise", better=1, power=0, units="dB"),
    "ssim": Metric("similarity", better=1, power=0),
}


@dataclass(frozen=True)
class Options:
    """What users say about metrics beside their names; ``verify`` tells what each means."""

    thresholds: Thresholds | None = None
    pools: Sequence[int] = (4, 16)
    windows: Sequence[int] = (5, 9, 17)
    data_range: DataRange | None = None
    ensemble: Ensemble | None = None

    def settings(self, variable: str, metrics: Sequence[str]) -> Settings:
        """What the metrics need of a variable.  Raises WxlabError for what is needed and not given, and for what is wrong."""
        if self.ensemble is not None and self.ensemble not in ENSEMBLES:
            raise unknown("ensemble=", self.ensemble, ENSEMBLES)
        statistics = {METRICS[name].statistic for name in metrics}
        return Settings(
            thresholds_of(variable, self.thresholds) if statistics & set(_OF_EVENTS) else (),
            _sizes("pools", self.pools),
            _sizes("windows", self.windows),
            data_range_of(variable, self.data_range, self.thresholds) if statistics & set(_OF_PICTURES) else (0.0, 1.0),
            self.ensemble,
        )


def _sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    given = np.atleast_1d(np.asarray(sizes))
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu" or given.min() < 1:
        raise WxlabError(f"{name}={sizes!r} must be one or more whole numbers of points, 1 or larger")
    return tuple(np.unique(given).tolist())


def check_metrics(metrics: Sequence[str] | str) -> tuple[str, ...]:
    """Names of metrics, each once.  Raises WxlabError for an unknown one and for none."""
    names = tuple(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    if not names:
        raise WxlabError(f"metrics is empty; give some of {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return names


def statistics_of(metrics: Sequence[str]) -> Mapping[str, Statistic]:
    return {METRICS[name].statistic: STATISTICS[METRICS[name].statistic] for name in metrics}


def metric_of(metric: str, sums: Sums) -> np.ndarray:
    """A metric of weighted sums and sums of weights; NaN where nothing was observed."""
    total, weight = sums
    weight = np.broadcast_to(np.expand_dims(weight, tuple(range(weight.ndim, total.ndim))), total.shape)
    mean = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
    return METRICS[metric].finish(mean)


def coordinates(metric: str, settings: Settings) -> dict[str, list[float]]:
    """The dimensions of a metric beside lead time and level, and what stands along them."""
    along = {"threshold": settings.thresholds, "pool": settings.pools, "window": settings.windows}
    return {dim: list(along[dim]) for dim in METRICS[metric].dims}


def units_of(metric: str, units: str | None) -> str | None:
    """The unit of a metric of a variable in ``units``; None where that is not known."""
    entry = METRICS[metric]
    if entry.power == 0:
        return entry.units
    return None if units is None else power_of_unit(units, entry.power)
