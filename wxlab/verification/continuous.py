"""Errors of fields: statistics of differences, of anomalies, and of ensembles."""

from __future__ import annotations

import numpy as np

from wxlab.errors import WxlabError
from wxlab.verification.blocks import Block, Sums


def error(block: Block) -> Sums:
    return block.total(block.fields("mean") - block.truth)


def absolute(block: Block) -> Sums:
    return block.total(np.abs(block.fields("mean") - block.truth))


def squared(block: Block) -> Sums:
    return block.total((block.fields("mean") - block.truth) ** 2)


def correlation(block: Block) -> Sums:
    """Anomaly correlation of each forecast, with weight 1 where it is defined."""
    if block.climatology is None:
        raise WxlabError("the metric 'acc' needs a climatology; give climatology=store.climatology()")
    observed = block.observed & ~np.isnan(block.climatology)
    total, count = np.zeros(block.truth.shape[:3]), np.zeros(block.truth.shape[:3])
    theirs = block.truth - block.climatology
    for field in block.fields("mean"):
        ours = field - block.climatology
        covariance, _ = block.total((ours * theirs)[None], observed)
        size = np.sqrt(block.total((ours**2)[None], observed)[0] * block.total((theirs**2)[None], observed)[0])
        defined = size != 0
        total += np.divide(covariance, size, out=np.zeros_like(size), where=defined)
        count += defined
    return total, count


def crps(block: Block) -> Sums:
    """Of one member, which has no spread to be taken off, it is the absolute error."""
    return block.total(_crps(block, len(block.members)))


def crps_fair(block: Block) -> Sums:
    return block.total(_crps(block, len(block.members) - 1))


def _crps(block: Block, divisor: int) -> np.ndarray:
    """mean|x − o| − Σ|x − x′| / (2 M divisor), the double sum by Σ_i Σ_j |x_i − x_j| = 2 Σ_k (2k − M − 1) x_(k): [1, T, L, K, P]."""
    members, count = block.members, len(block.members)
    gap = np.zeros(block.truth.shape)
    for member in members:
        gap += np.abs(member - block.truth)
    gap /= count
    if count > 1:
        ordered = np.sort(members, axis=0)
        for k in range(count):
            gap -= (2 * k + 1 - count) / (count * divisor) * ordered[k]
    return gap[None]


def variance(block: Block) -> Sums:
    return block.total(block.members.var(0, ddof=1)[None])


def dispersion(block: Block) -> Sums:
    """The variance of the members times (M + 1) / M, and the squared error of their mean, which it would equal: [T, L, K, 2]."""
    count = len(block.members)
    (expected, weight), (found, _) = variance(block), block.total((block.mean - block.truth)[None] ** 2)
    return np.stack([(count + 1) / count * expected, found], axis=-1), weight


def spread_skill(mean: np.ndarray) -> np.ndarray:
    """√(what is expected / what is found), NaN where the error is 0."""
    expected, found = mean[..., 0], mean[..., 1]
    return np.sqrt(np.divide(expected, found, out=np.full(found.shape, np.nan), where=found > 0))
