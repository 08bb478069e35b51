"""One pass over the training split of a store: moments, moments of tendencies, and the climatology, all from sums over blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wxlab.climatology import Climatology, HarmonicFit, Terms
from wxlab.errors import WxlabError, unknown
from wxlab.frames import Frames
from wxlab.grids import Grid
from wxlab.normaliser import KINDS, Transform

_PIECE = 48 << 20  # bytes of float64 held at once
_SUMS = 512 << 20  # bytes of sums of the climatology held at once


class Moments:
    """Mean, population standard deviation and range of each channel over time and space, merged block by block.

    Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115: exact for any cut into blocks, and safe for fields whose
    mean is large against their spread.
    """

    def __init__(self, channels: int) -> None:
        self.count, self.mean, self.square = (np.zeros(channels) for _ in range(3))
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Add [n, C, points], float64; missing values are left out."""
        if not len(values):
            return
        observed = np.isfinite(values)
        whole = observed.all()
        count = observed.sum((0, 2)).astype(np.float64)
        safe = np.maximum(count, 1)
        mean = (values if whole else np.where(observed, values, 0)).sum((0, 2)) / safe
        away = values - mean[:, None]
        square = np.square(away if whole else np.where(observed, away, 0)).sum((0, 2))
        total = np.maximum(self.count + count, 1)
        shift = np.where(count > 0, mean - self.mean, 0)
        self.square += square + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count += count
        self.low = np.minimum(self.low, values.min((0, 2)) if whole else np.where(observed, values, np.inf).min((0, 2)))
        self.high = np.maximum(self.high, values.max((0, 2)) if whole else np.where(observed, values, -np.inf).max((0, 2)))

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self.square / np.maximum(self.count, 1))


@dataclass(frozen=True)
class Request:
    """How one name is to be normalised: the kind, and any settings of it that the user fixed."""

    kind: str = "zscore"
    settings: Mapping[str, float] | None = None

    @classmethod
    def parse(cls, name: str, value: Any) -> Request:
        """From ``"log"`` or ``{"kind": "minmax", "low": 0, "high": 70}``."""
        settings = dict(value) if isinstance(value, Mapping) else {"kind": value}
        kind = settings.pop("kind", "zscore")
        if kind not in KINDS:
            raise unknown(f"kind of normalisation of {name!r}", kind, KINDS)
        allowed = {"minmax": {"low", "high"}, "dbz": {"low", "high", "a", "b"}, "log": {"epsilon"}}.get(kind, set())
        for setting in settings:
            if setting not in allowed:
                raise unknown(f"setting of normalisation {kind!r}", setting, allowed)
        return cls(kind, {key: float(number) for key, number in settings.items()})

    def curve(self) -> Transform | None:
        """The transform before offset and scale, where there is one that statistics must see."""
        return Transform("log", **dict(self.settings or {})) if self.kind == "log" else None

    def transform(self, mean: float, std: float, low: float, high: float) -> Transform:
        """The finished transform; the statistics are those of the values that ``curve`` gives, or of the anomalies."""
        given = dict(self.settings or {})
        if self.kind == "minmax":
            low, high = given.get("low", low), given.get("high", high)
            return Transform("minmax", low, high - low if high > low else 1.0)
        if self.kind == "dbz":
            low, high = given.pop("low", -10.0), given.pop("high", 60.0)
            return Transform("dbz", low, high - low, **given)
        if self.kind == "none":
            return Transform("none")
        if self.kind == "anomaly":
            return Transform("anomaly", 0.0, std if std > 0 else 1.0)
        return Transform(self.kind, mean, std if std > 0 else 1.0, **given)


def groups(channels: int, points: int, terms: Terms) -> list[slice]:
    """Channels that are worked on together, so that the sums of their climatology fit in memory."""
    size = len(terms.hours) * (terms.size + terms.size * (terms.size + 1) // 2) * points * 8
    together = max(1, min(channels, _SUMS // max(1, size)))
    return [slice(first, min(first + together, channels)) for first in range(0, channels, together)]


def training_statistics(
    frames: Frames,
    channels: slice,
    *,
    times: np.ndarray,
    segment: np.ndarray,
    training: np.ndarray,
    gaps: bool,
    terms: Terms,
    curves: list[Transform | None],
    anomalies: bool = False,
) -> dict[str, np.ndarray]:
    """Statistics of some channels over the times where ``training`` [T] is True.

    times: seconds [T].  segment [T]: tendencies are taken within a segment.  gaps: some training values are missing.
    terms: of the climatology.  curves: per channel of the slice, a transform whose own statistics are wanted.
    anomalies: also the spread about the climatology, in a second pass.
    Returns mean, std, low, high, tendency_mean, tendency_std, curved_mean, curved_std, anomaly_std, observed [C] and
    climatology [hours, terms, C, H, W].
    """
    first, last = channels.start, channels.stop
    points = int(np.prod(frames.shape[2:]))
    state, tendency, curved = Moments(last - first), Moments(last - first), Moments(last - first)
    fit = HarmonicFit(terms, (last - first) * points, gaps)
    rows = max(1, _PIECE // (8 * (last - first) * points))
    for start in range(0, len(times), rows):
        stop = min(start + rows, len(times))
        if not training[start:stop].any():
            continue
        before = max(0, start - 1)
        values = frames.read(before, stop, channels).reshape(stop - before, last - first, points).astype(np.float64)
        use, of = training[before:stop], segment[before:stop]
        pairs = np.flatnonzero(use[1:] & use[:-1] & (of[1:] == of[:-1]))
        tendency.add(values[pairs + 1] - values[pairs])
        chosen = values[start - before :][use[start - before :]]
        state.add(chosen)
        fit.add(times[start:stop][training[start:stop]], chosen.reshape(len(chosen), -1))
        if any(curves):
            curved.add(_curve(chosen, curves))
    result = {"mean": state.mean, "std": state.std, "low": state.low, "high": state.high, "observed": state.count}
    result |= {"tendency_mean": tendency.mean, "tendency_std": tendency.std, "curved_mean": curved.mean, "curved_std": curved.std}
    result["climatology"] = fit.solve().reshape(*fit.right.shape[:2], last - first, *frames.shape[2:])
    result["anomaly_std"] = np.full(last - first, np.nan)
    if anomalies:
        result["anomaly_std"] = _spread(frames, channels, result["climatology"], times, training, terms, rows)
    return result


def _spread(
    frames: Frames, channels: slice, coefficients: np.ndarray, times: np.ndarray, training: np.ndarray, terms: Terms, rows: int
) -> np.ndarray:
    """Root mean square [C] of the training states about their climatology."""
    climatology = Climatology(coefficients, terms.hours, (), Grid((), ()))
    square, count = np.zeros(coefficients.shape[2]), np.zeros(coefficients.shape[2])
    for start in range(0, len(times), rows):
        use = training[start : start + rows]
        if use.any():
            away = frames.read(start, start + len(use), channels)[use].astype(np.float64) - climatology.at(times[start : start + rows][use])
            square += np.nansum(away**2, axis=(0, 2, 3))
            count += np.isfinite(away).sum((0, 2, 3))
    return np.sqrt(square / np.maximum(count, 1))


def _curve(values: np.ndarray, curves: list[Transform | None]) -> np.ndarray:
    out = values.copy()
    for i, curve in enumerate(curves):
        if curve is not None:
            out[:, i] = curve.before(torch.from_numpy(values[:, i].copy())).numpy()
    return out


def check_observed(observed: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise WxlabError when a channel has no value at all in training."""
    empty = [name for name, count in zip(names, observed, strict=True) if count == 0]
    if empty:
        raise WxlabError(f"{', '.join(empty)} has no observed value in the training split; leave it out or move the split")
