"""Climatology: annual and semi-annual harmonics for each hour of the day, fitted by accumulated normal equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from wxlab.channels import unstack
from wxlab.forcings import DAY, seconds, year_fraction
from wxlab.grids import Grid

ENOUGH = 3  # samples for each coefficient; with fewer the fit is reduced
_RIDGE = 1e-7  # share of the normal matrix added to harmonics, so that it can always be solved


def basis(times: object, harmonics: int) -> np.ndarray:
    """1, cos 2πkt, sin 2πkt for k = 1..harmonics, t the fraction of the year: [T, 1 + 2 harmonics]."""
    phase = 2 * np.pi * year_fraction(times)
    columns = [np.ones_like(phase)]
    for k in range(1, harmonics + 1):
        columns += [np.cos(k * phase), np.sin(k * phase)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Terms:
    """What a climatology is made of: seconds of the day that have their own harmonics, and how many harmonics."""

    hours: tuple[int, ...]
    harmonics: int
    note: str

    @property
    def size(self) -> int:
        return 1 + 2 * self.harmonics


def choose_terms(times: object) -> Terms:
    """The terms that training times [T] determine: fewer harmonics when they do not cover the year, one hour when hours are too rare."""
    stamps = seconds(times)
    months = len(np.unique(np.floor(12 * year_fraction(stamps))))
    harmonics = 2 if months >= 11 else 1 if months >= 9 else 0
    notes = [] if harmonics == 2 else [f"{harmonics} of 2 harmonics, for the training times cover {months} of 12 parts of the year"]
    hours, counts = np.unique(stamps % DAY, return_counts=True)
    if counts.min() < ENOUGH * (1 + 2 * harmonics):
        notes.append(f"one for all hours, for some of the {len(hours)} times of day have only {counts.min()} training times")
        hours = hours[:1]
        harmonics = min(harmonics, max(0, (len(stamps) // ENOUGH - 1) // 2))
    return Terms(tuple(int(hour) for hour in hours), harmonics, "; ".join(notes))


class HarmonicFit:
    """Least squares at every point, hour by hour, from sums only: A = Σ b bᵀ and B = Σ b y, so that times may come in pieces.

    Missing values are left out; a point with fewer than ``ENOUGH`` samples per coefficient gets its mean, one without any NaN.
    """

    def __init__(self, terms: Terms, points: int, gaps: bool) -> None:
        self.terms, self.points, self.gaps = terms, points, gaps
        hours, size = len(terms.hours), terms.size
        self.right = np.zeros((hours, size, points))
        self.pairs = np.triu_indices(size)
        self.left = np.zeros((hours, len(self.pairs[0]), points if gaps else 1))

    def add(self, times: np.ndarray, values: np.ndarray) -> None:
        """Add values [n, points] at times [n]."""
        slots = _slots(times, self.terms.hours)
        rows = basis(times, self.terms.harmonics)
        products = rows[:, self.pairs[0]] * rows[:, self.pairs[1]]
        for hour in np.unique(slots):
            here = slots == hour
            chosen = values[here].astype(np.float64, copy=False)
            if self.gaps:
                observed = np.isfinite(chosen)
                chosen = np.where(observed, chosen, 0)
                self.left[hour] += products[here].T @ observed.astype(np.float64)
            else:
                self.left[hour] += products[here].sum(0)[:, None]
            self.right[hour] += rows[here].T @ chosen

    def solve(self) -> np.ndarray:
        """Coefficients [hours, 1 + 2 harmonics, points] float32."""
        size = self.terms.size
        out = np.empty(self.right.shape, dtype=np.float32)
        for hour in range(len(self.terms.hours)):
            count = self.left[hour, 0]
            matrix = np.zeros((len(count), size, size))
            matrix[:, self.pairs[0], self.pairs[1]] = self.left[hour].T
            matrix[:, self.pairs[1], self.pairs[0]] = self.left[hour].T
            ridge = np.where(count >= ENOUGH * size, _RIDGE, 1e9) * np.maximum(count, 1)
            for k in range(1, size):
                matrix[:, k, k] += ridge
            empty = count == 0
            matrix[empty] = np.eye(size)
            solved = np.linalg.solve(matrix, self.right[hour].T[:, :, None])[:, :, 0] if self.gaps else self._shared(matrix[0], hour)
            solved[np.broadcast_to(empty, len(solved))] = np.nan
            out[hour] = solved.T
        return out

    def _shared(self, matrix: np.ndarray, hour: int) -> np.ndarray:
        return np.ascontiguousarray(np.linalg.solve(matrix, self.right[hour]).T)


def _slots(times: np.ndarray, hours: Sequence[int]) -> np.ndarray:
    if len(hours) == 1:
        return np.zeros(len(times), dtype=np.int64)
    return np.searchsorted(np.asarray(hours), seconds(times) % DAY)


class Climatology:
    """Mean state by time of the year and hour of the day.

    coefficients: float32 [hours, 1 + 2 harmonics, C, H, W]; hours: seconds of the day that they stand for (ascending).
    Between hours the two neighbours are interpolated.
    """

    def __init__(self, coefficients: np.ndarray, hours: Sequence[int], channels: Sequence[str], grid: Grid) -> None:
        self.coefficients, self.hours = coefficients, tuple(hours)
        self.channels, self.grid = tuple(channels), grid
        self.harmonics = (coefficients.shape[1] - 1) // 2

    def at(self, times: object) -> np.ndarray:
        """Climatology in physical units at times [T] (int64 seconds or datetime64): float32 [T, C, H, W]."""
        stamps = np.atleast_1d(seconds(times))
        rows = basis(stamps, self.harmonics)
        hours = np.asarray(self.hours)
        of_day = stamps % DAY
        after = np.searchsorted(hours, of_day, side="right") % len(hours)
        before = (after - 1) % len(hours)
        width = (hours[after] - hours[before]) % DAY
        share = np.where(width > 0, (of_day - hours[before]) % DAY / np.maximum(width, 1), 0.0)
        out = np.empty((len(stamps), *self.coefficients.shape[2:]), dtype=np.float32)
        for i, row in enumerate(rows):
            value = np.tensordot(row, self.coefficients[before[i]], 1)
            if share[i] > 0:
                value += share[i] * (np.tensordot(row, self.coefficients[after[i]], 1) - value)
            out[i] = value
        return out

    def dataset(self, times: object) -> xr.Dataset:
        """The same as a Dataset with WeatherBench 2 names."""
        stamps = np.atleast_1d(seconds(times)).astype("datetime64[s]").astype("datetime64[ns]")
        y, x = self.grid.dims
        coords = {"time": stamps, "channel": list(self.channels), y: list(self.grid.y), x: list(self.grid.x)}
        return unstack(xr.DataArray(self.at(times), dims=("time", "channel", y, x), coords=coords))
