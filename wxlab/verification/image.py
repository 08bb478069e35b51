"""Fields as pictures: brought to 0..1 by the data range and cut there, as the radar nowcasting literature scores them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d

from wxlab.verification.blocks import Block, Sums, weighted_total
from wxlab.verification.spatial import windows_of

WINDOW, SIGMA = 11, 1.5  # of SSIM, points
_OFFSETS = np.arange(WINDOW) - WINDOW // 2
KERNEL = np.exp(-(_OFFSETS**2) / (2 * SIGMA**2))
KERNEL /= KERNEL.sum()


def scaled(block: Block, values: np.ndarray) -> np.ndarray:
    """(x − low) / (high − low), cut to 0..1."""
    low, high = block.settings.data_range
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _difference(block: Block) -> np.ndarray:
    return scaled(block, block.fields("members")) - scaled(block, block.truth)


def absolute_scaled(block: Block) -> Sums:
    return block.total(np.abs(_difference(block)))


def squared_scaled(block: Block) -> Sums:
    return block.total(_difference(block) ** 2)


def signal_to_noise(block: Block) -> Sums:
    """10 log10(1 / MSE) of each frame, infinite where it is perfect; each frame that has a point has weight 1."""
    total, count = np.zeros(block.truth.shape[:3]), np.zeros(block.truth.shape[:3])
    for difference in _difference(block):
        square, weight = block.total(difference[None] ** 2)
        seen = weight > 0
        total[seen] += 10 * np.log10(weight[seen] / square[seen])
        count += seen
    return total, count


def similarity(block: Block) -> Sums:
    """Structural similarity of each window of 11x11 points with Gaussian weights; windows reach neither out nor over missing points."""
    whole, weights = windows_of(block, WINDOW)
    truth = np.where(block.observed, scaled(block, block.truth), 0.0)
    theirs = _local_means(block.as_maps(truth)), _local_means(block.as_maps(truth**2))
    total, count = np.zeros(whole.shape[:3]), np.zeros(whole.shape[:3])
    for member in block.fields("members"):
        field = np.where(block.observed, scaled(block, member), 0.0)
        ours = _local_means(block.as_maps(field)), _local_means(block.as_maps(field**2))
        values = ssim_map(*ours, *theirs, _local_means(block.as_maps(field * truth)))
        part = weighted_total(values.reshape(1, *whole.shape), whole, weights)
        total, count = total + part[0], count + part[1]
    return total, count


def ssim_map(mean_x: np.ndarray, square_x: np.ndarray, mean_y: np.ndarray, square_y: np.ndarray, product: np.ndarray) -> np.ndarray:
    """(2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)) with C1 = 0.01², C2 = 0.03², for values from 0 to 1."""
    c1, c2 = 0.01**2, 0.03**2
    covariance, variances = product - mean_x * mean_y, square_x - mean_x**2 + square_y - mean_y**2
    return (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))


def _local_means(values: np.ndarray) -> np.ndarray:
    """Gaussian means over the windows that lie inside: [..., H, W] -> [..., H-10, W-10]."""
    edge = WINDOW // 2
    inside = slice(edge, -edge)
    rows = correlate1d(values, KERNEL, axis=-2)[..., inside, :]
    return correlate1d(rows, KERNEL, axis=-1)[..., inside]
