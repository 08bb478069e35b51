"""Neighbourhoods: windows that move over fields, and the fractions skill score.

One rule for all of them: a window counts only where all of its points lie inside the field and are observed. Nothing is padded, so
neither the edge nor a missing point enters a score.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wxlab.errors import WxlabError
from wxlab.verification.blocks import Block, Sums, weighted_total
from wxlab.verification.thresholds import limits


def sliding(values: np.ndarray, size: int, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Maximum, minimum, and, or of all windows of ``size`` x ``size`` points: [..., H, W] -> [..., H-size+1, W-size+1].

    combine: np.maximum and the like, for which it does not matter when a point is taken twice.
    """
    for axis in (-2, -1):
        width = 1
        while width < size:
            step = min(width, size - width)
            kept = values.shape[axis] - step
            first, second = (np.take(values, range(start, start + kept), axis) for start in (0, step))
            values, width = combine(first, second), width + step
    return values


def integral(values: np.ndarray) -> np.ndarray:
    """Sums over all points above and to the left: [..., H, W] -> [..., H+1, W+1]."""
    whole = np.zeros((*values.shape[:-2], values.shape[-2] + 1, values.shape[-1] + 1), np.float64)
    np.cumsum(np.cumsum(values, axis=-1, dtype=np.float64), axis=-2, out=whole[..., 1:, 1:])
    return whole


def window_sums(whole: np.ndarray, size: int) -> np.ndarray:
    """Sums over all windows of ``size`` x ``size`` points, from the integral of a field: [..., H-size+1, W-size+1]."""
    strips = whole[..., size:, :] - whole[..., :-size, :]
    return strips[..., size:] - strips[..., :-size]


def windows_of(block: Block, size: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Which windows are observed [T, L, K, windows], and their weights [windows], the mean of those of their points."""
    check_window(size, block.shape)
    whole = sliding(block.as_maps(block.observed), size, np.logical_and)[..., ::stride, ::stride]
    weights = window_sums(integral(block.as_maps(block.weights)), size)[::stride, ::stride] / size**2
    return whole.reshape(*whole.shape[:-2], -1), weights.ravel()


def check_window(size: int, shape: tuple[int, int]) -> None:
    """Raises WxlabError when a window does not fit into the field."""
    if size > min(shape):
        raise WxlabError(f"windows of {size}x{size} points do not fit into the {shape[0]}x{shape[1]} field; give smaller ones")


def fractions(block: Block) -> Sums:
    """(Σ(p_f − p_o)², Σ(p_f² + p_o²)) for each threshold and window size, p the share of events in a window: [T, L, K, N, S, 2]."""
    settings, fields = block.settings, block.fields("members")
    shape = (*block.truth.shape[:3], len(settings.thresholds), len(settings.windows))
    total, weight = np.zeros((*shape, 2)), np.zeros(shape)
    neighbourhoods = [windows_of(block, size) for size in settings.windows]
    for i, limit in enumerate(limits(settings.thresholds)):
        ours, theirs = (integral(block.as_maps(values >= limit)) for values in (fields, block.truth[None]))
        for j, (size, (whole, weights)) in enumerate(zip(settings.windows, neighbourhoods, strict=True)):
            forecast, truth = (window_sums(events, size).reshape(len(events), *whole.shape) for events in (ours, theirs))
            total[..., i, j, 0], weight[..., i, j] = weighted_total((forecast - truth) ** 2, whole, weights)
            both = weighted_total(forecast**2, whole, weights)[0], weighted_total(truth**2, whole, weights)[0]
            total[..., i, j, 1] = both[0] + len(forecast) * both[1]
            total[..., i, j, :] /= size**4
    return total, weight


def fss(mean: np.ndarray) -> np.ndarray:
    """1 − Σ(p_f − p_o)² / Σ(p_f² + p_o²); NaN where there is no event."""
    difference, largest = mean[..., 0], mean[..., 1]
    return 1 - np.divide(difference, largest, out=np.full_like(largest, np.nan), where=largest != 0)
