"""Ensembles: how often each rank occurs, how often what was said comes true, how likely an event is."""

from __future__ import annotations

import numpy as np

from wxlab.verification.blocks import Block, Sums
from wxlab.verification.thresholds import limits


def brier(block: Block) -> Sums:
    """(p − o)² for each threshold, p the share of members that reach it: [T, L, K, N]."""
    totals = []
    for limit in limits(block.settings.thresholds):
        total, weight = block.total(((block.members >= limit).mean(0) - (block.truth >= limit))[None] ** 2)
        totals.append(total)
    return np.stack(totals, axis=-1), weight


def ranks(block: Block, seed: int, least: float = -np.inf) -> Sums:
    """How much area each rank of the truth among the members has: [T, L, K, M + 1].

    least: smaller values are equal to each other. Where members equal the truth, the rank is drawn among those that it may have. The
    draw belongs to the initial time and lead time, so that it is the same however the forecasts are read.
    """
    count = len(block.members) + 1
    members, truth = (np.maximum(values, least) for values in (block.members, block.truth))  # missing values stay missing
    below, equal = (compare(members, truth).sum(0) for compare in (np.less, np.equal))
    total = np.zeros((*block.truth.shape[:3], count))
    for t, lead, level in np.ndindex(*block.truth.shape[:3]):
        key = [seed, abs(int(block.times[t])), abs(int(block.leads[lead])), int(block.levels[level])]
        draw = np.random.default_rng(key).random(below.shape[-1])
        place = (t, lead, level)
        rank = below[place] + np.floor(draw * (equal[place] + 1)).astype(np.int64)
        total[place] = np.bincount(rank, np.where(block.observed[place], block.weights, 0.0), minlength=count)
    return total, block.observed @ block.weights


def reliability_sums(block: Block, bins: int) -> Sums:
    """Area, its mean probability and its events, for each threshold and bin of probability: [T, L, K, N, bins, 3]."""
    shape = block.truth.shape[:3]
    frames = int(np.prod(shape))
    start = (bins * np.arange(frames)).reshape(*shape, 1)
    weight = np.where(block.observed, block.weights, 0.0)
    result = np.zeros((*shape, len(block.settings.thresholds), bins, 3))
    for i, limit in enumerate(limits(block.settings.thresholds)):
        reaching = (block.members >= limit).sum(0)
        probability, event = reaching / len(block.members), block.truth >= limit
        # whole numbers: a probability on an edge belongs to the bin above it
        place = (start + np.minimum(reaching * bins // len(block.members), bins - 1)).ravel()
        for k, part in enumerate((weight, weight * probability, weight * event)):
            result[..., i, :, k] = np.bincount(place, part.ravel(), minlength=frames * bins).reshape(*shape, bins)
    return result, block.observed @ block.weights
