"""Events: how often a threshold is reached in the forecast, in the truth, in both, point by point and in pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wxlab.verification.blocks import Block, Sums
from wxlab.verification.spatial import sliding, windows_of
from wxlab.verification.thresholds import limits

Finish = Callable[[np.ndarray], np.ndarray]


def reached(values: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """How many of the ascending thresholds each value reaches, uint8; none where it is NaN."""
    result = np.zeros(values.shape, np.uint8)
    for limit in limits(thresholds):
        np.add(result, values >= limit, out=result)
    return result


def counts(block: Block) -> Sums:
    """Hits, misses, false alarms and correct negatives of each threshold: [T, L, K, N, 4]."""
    thresholds = block.settings.thresholds
    ours, theirs = reached(block.fields("members"), thresholds), reached(block.truth, thresholds)
    return _contingency(ours, theirs, block.observed, block.weights, len(thresholds))


def pooled_counts(block: Block) -> Sums:
    """The same of pools of r x r points side by side, each an event when one of its points is: [T, L, K, N, pools, 4]."""
    return _pooled(block, lambda size: size)


def overlapping_counts(block: Block) -> Sums:
    """The same of pools that begin every r // 4 points."""
    return _pooled(block, lambda size: max(1, size // 4))


def _pooled(block: Block, stride_of: Callable[[int], int]) -> Sums:
    """The largest number of thresholds that are reached in a pool says all that its events say."""
    thresholds = block.settings.thresholds
    ours = block.as_maps(reached(block.fields("members"), thresholds))
    theirs = block.as_maps(reached(block.truth, thresholds))
    totals, weights = [], []
    for size in block.settings.pools:
        stride = stride_of(size)
        whole, weight = windows_of(block, size, stride)
        largest = [sliding(events, size, np.maximum)[..., ::stride, ::stride] for events in (ours, theirs)]
        flat = [events.reshape(*events.shape[:-2], -1) for events in largest]
        total, count = _contingency(flat[0], flat[1], whole, weight, len(thresholds))
        totals.append(total)
        weights.append(count)
    return np.stack(totals, axis=-2), np.stack(weights, axis=-1)[..., None, :]


def _contingency(ours: np.ndarray, theirs: np.ndarray, observed: np.ndarray, weights: np.ndarray, thresholds: int) -> Sums:
    """Contingency tables of each threshold from how many are reached.

    ours: [E, T, L, K, P]; theirs, observed: [T, L, K, P]; weights: [P].  Returns [T, L, K, N, 4], added up over E, and the weights.
    """
    table = _joint(ours, theirs, observed, weights, thresholds + 1)  # [T, L, K, of the truth, of the forecast]
    beyond = np.flip(np.flip(table, (-2, -1)).cumsum(-2).cumsum(-1), (-2, -1))  # as many or more
    both = np.diagonal(beyond, axis1=-2, axis2=-1)[..., 1:]
    truth, forecast, every = beyond[..., 1:, 0], beyond[..., 0, 1:], beyond[..., :1, 0]
    return np.stack([both, truth - both, forecast - both, every - truth - forecast + both], axis=-1), every[..., 0]


def _joint(ours: np.ndarray, theirs: np.ndarray, observed: np.ndarray, weights: np.ndarray, kinds: int) -> np.ndarray:
    """Weight of the points by what truth and forecast are there: [T, L, K, kinds, kinds]."""
    cells = kinds**2 + 1  # the last one is for what is not observed
    frames = int(np.prod(theirs.shape[:-1]))
    start = (cells * np.arange(frames)).reshape(*theirs.shape[:-1], 1)
    base = np.where(observed, theirs.astype(np.intp) * kinds, kinds**2) + start
    table = np.zeros(frames * cells)
    heavy = None if (weights == weights[0]).all() else np.broadcast_to(weights, theirs.shape).ravel()
    for field in ours:
        place = (base + np.where(observed, field, 0)).ravel()
        table += np.bincount(place, heavy, minlength=len(table))
    if heavy is None:
        table *= weights[0]
    return table.reshape(*theirs.shape[:-1], cells)[..., :-1].reshape(*theirs.shape[:-1], kinds, kinds)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where there is none."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole != 0)


def csi(mean: np.ndarray) -> np.ndarray:
    hits, misses, alarms, _ = np.moveaxis(mean, -1, 0)
    return _share(hits, hits + misses + alarms)


def hss(mean: np.ndarray) -> np.ndarray:
    hits, misses, alarms, negatives = np.moveaxis(mean, -1, 0)
    chance = (hits + misses) * (misses + negatives) + (hits + alarms) * (alarms + negatives)
    return _share(2 * (hits * negatives - alarms * misses), chance)


def pod(mean: np.ndarray) -> np.ndarray:
    hits, misses, _, _ = np.moveaxis(mean, -1, 0)
    return _share(hits, hits + misses)


def far(mean: np.ndarray) -> np.ndarray:
    hits, _, alarms, _ = np.moveaxis(mean, -1, 0)
    return _share(alarms, hits + alarms)


def frequency_bias(mean: np.ndarray) -> np.ndarray:
    hits, misses, alarms, _ = np.moveaxis(mean, -1, 0)
    return _share(hits + alarms, hits + misses)


def over_thresholds(score: Finish, axis: int = -1) -> Finish:
    """The mean of a score over the thresholds, 0 standing for one without events, so that all forecasts have the same thresholds."""

    def mean_score(mean: np.ndarray) -> np.ndarray:
        values = score(mean)
        return np.where(np.isnan(values) & ~np.isnan(mean[..., 0]), 0.0, values).mean(axis)

    return mean_score
