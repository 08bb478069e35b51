"""Forecasts without training: persistence, climatology, and persistence with a random walk (an ensemble for tests)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wxlab.climatology import Climatology
from wxlab.errors import WxlabError
from wxlab.models import Entry
from wxlab.models.base import Batch, Model, Spec
from wxlab.models.baselines import FIELDS
from wxlab.models.baselines.radar import RADAR_PRESETS

if TYPE_CHECKING:
    from wxlab.rollout import Streams
    from wxlab.store import Store


_PAIRS = 32  # of states, at most, from which a random walk learns its step


class Persistence(Model):
    """The last frame, for ever: ``y(t + n step) = x(t)``."""

    def forward(self, history: Tensor) -> Tensor:
        """history [B,Ti,C,H,W] -> [B,To,C,H,W], a view without copying."""
        return history[:, -1:].expand(-1, self.spec.horizon, -1, -1, -1)

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        return self.repeat_members(self(batch.history), members)


def _require_same_fields(spec: Spec, store: Store) -> None:
    if tuple(store.channels) != spec.channels:
        raise WxlabError(
            f"the store has channels {list(store.channels)}, the model {list(spec.channels)}; create the model with channels=store.channels"
        )
    if store.grid != spec.grid:
        raise WxlabError(
            f"the store's grid is not the model's ({store.grid.shape} and {spec.grid.shape} points); create the model with grid=store.grid"
        )


class ClimatologyForecast(Model):
    """The climatological mean of the valid date and hour (harmonics of the year for each hour), whatever the initial state.

    ``fit(store)`` gives it the climatology of the store's training split and its normaliser; without it there is nothing to forecast.
    hours (seconds of the day) and harmonics are what a fitted one is rebuilt from; leave them out otherwise.
    """

    coefficients: Tensor

    def __init__(self, spec: Spec, *, hours: Sequence[int] | None = None, harmonics: int = 0) -> None:
        super().__init__(spec, hours=hours, harmonics=harmonics)
        self.hours = None if hours is None else tuple(hours)
        shape = (len(self.hours or ()), 1 + 2 * harmonics, len(spec.channels), *spec.grid.shape)
        self.register_buffer("coefficients", torch.zeros(shape))

    def fit(self, store: Store) -> ClimatologyForecast:
        """Take climatology and units from a prepared store with the same channels and grid; returns the model itself."""
        _require_same_fields(self.spec, store)
        fitted = store.climatology()
        self.hours, self.normaliser = fitted.hours, store.normaliser
        self.coefficients = torch.tensor(fitted.coefficients, device=self.coefficients.device)
        self.config = {"hours": list(fitted.hours), "harmonics": fitted.harmonics}
        return self

    @property
    def climatology(self) -> Climatology | None:
        """The climatology in physical units; None before ``fit``."""
        if self.hours is None:
            return None
        return Climatology(self.coefficients.cpu().numpy(), self.hours, self.spec.channels, self.spec.grid)

    def forward(self, time: Tensor) -> Tensor:
        """time int64 [B,To], seconds UTC of the valid times -> normalised mean state [B,To,C,H,W] (float32)."""
        climatology = self.climatology
        if climatology is None or self.normaliser is None:
            raise WxlabError("this climatology forecast knows no climate yet; call model.fit(store) with a prepared store")
        stamps = time.flatten().cpu().numpy()
        state = self.normaliser.normalise(climatology.at(stamps), self.spec.channels, stamps)
        return torch.from_numpy(state).unflatten(0, tuple(time.shape))

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        start = batch.history.shape[1]
        mean = self(batch.time[:, start : start + self.spec.horizon])
        return self.repeat_members(mean.to(batch.history), members)


class RandomWalk(Model):
    """Persistence plus smooth Gaussian noise whose standard deviation grows like the square root of the lead time.

    ``y_n = y_(n-1) + tendency_std * e_n``, with e_n independent in time, of unit variance, and correlated in space like a Gaussian of
    ``correlation_length`` grid points. tendency_std is in normalised units for one step, one number for all channels until
    ``fit(store)`` sets each channel's own. An ensemble that needs no training: it makes ensemble workflows testable.
    """

    tendency_std: Tensor

    def __init__(self, spec: Spec, *, tendency_std: float = 0.1, correlation_length: float = 2.0) -> None:
        super().__init__(spec, tendency_std=tendency_std, correlation_length=correlation_length)
        if not (tendency_std >= 0 and correlation_length >= 0):
            raise WxlabError(f"tendency_std={tendency_std} and correlation_length={correlation_length} must not be negative")
        self.correlation_length = correlation_length
        x = spec.grid.x
        self._wraps = spec.grid.kind == "latlon" and len(x) > 1 and abs((x[1] - x[0]) * len(x) - 360) < 1e-3
        self.register_buffer("tendency_std", torch.full((len(spec.channels),), float(tendency_std)))

    def fit(self, store: Store) -> RandomWalk:
        """Take each channel's standard deviation of the change over one step from the training split; returns the model itself."""
        _require_same_fields(self.spec, store)
        lag, rest = divmod(self.spec.step, store.step)
        if rest:
            raise WxlabError(f"the model's step of {self.spec.step} s is no multiple of the store's {store.step} s; choose one that is")
        starts = [i for start, stop in store.split_ranges("train") for i in range(start, stop - lag)]
        if not starts:
            raise WxlabError(f"the training split of the store is shorter than one step of {self.spec.step} s; prepare a longer one")
        changes = []
        for i in starts[:: -(-len(starts) // _PAIRS)]:
            now, then = (store.normaliser.normalise(store.read(k, k + 1), store.channels, store.times[k : k + 1]) for k in (i, i + lag))
            changes.append((then - now).astype(np.float64))
        self.tendency_std = torch.tensor(np.std(np.concatenate(changes), axis=(0, 2, 3)), dtype=torch.float32)
        self.normaliser = store.normaliser
        return self

    def _filter(self, rows: int, columns: int) -> Tensor:
        """Spectral factor [rows, columns//2+1] of the smoothing; white noise keeps unit variance through it."""
        ky = 2 * np.pi * np.fft.fftfreq(rows)[:, None]
        kx = 2 * np.pi * np.fft.fftfreq(columns)[None, :]
        # a field correlated like exp(-r^2 / (2 L^2)) is white noise smoothed with exp(-r^2 / L^2)
        factor = np.exp(-(self.correlation_length**2) * (ky**2 + kx**2) / 4)
        factor /= np.sqrt(np.mean(factor**2))
        return torch.from_numpy(factor[:, : columns // 2 + 1])

    def smooth(self, noise: Tensor) -> Tensor:
        """White noise [..., rows, columns] -> correlated noise of unit variance, periodic along both axes."""
        rows, columns = noise.shape[-2:]
        factor = self._filter(rows, columns).to(noise)
        return torch.fft.irfft2(torch.fft.rfft2(noise) * factor, s=(rows, columns))

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        if generator is None:
            raise WxlabError("random_walk draws noise and needs a generator; forecast(..., seed=...) gives one")
        last = batch.history[:, -1]
        channels, rows, columns = last.shape[1:]
        # the margin keeps opposite edges (north and south, in particular) unrelated after periodic smoothing
        margin = int(np.ceil(4 * self.correlation_length))
        shape = (self.spec.horizon, channels, rows + margin, columns + (0 if self._wraps else margin))
        white = generator.randn(shape, dtype=last.dtype, device=last.device)  # [B,M,To,C,H+,W+]
        increments = self.smooth(white)[..., :rows, :columns] * self.tendency_std.to(last)[:, None, None]
        return last[:, None, None] + increments.cumsum(dim=2)


def _persistence(spec: Spec) -> Model:
    return Persistence(dataclasses.replace(spec, forcing=(), static=()))


def _climatology(spec: Spec, **config: Any) -> Model:
    return ClimatologyForecast(dataclasses.replace(spec, forcing=(), static=()), **config)


def _random_walk(spec: Spec, **config: Any) -> Model:
    return RandomWalk(dataclasses.replace(spec, stochastic="noise", forcing=(), static=()), **config)


_PRESETS = {name: {**FIELDS[name], "history": 1} for name in ("tiny", "demo")}
_RADAR = {name: {**fields, "history": 1} for name, fields in RADAR_PRESETS.items()}

PERSISTENCE = Entry(name="persistence", title="Persistence: the last frame", presets={**_PRESETS, **_RADAR}, build=_persistence)
CLIMATOLOGY = Entry(
    name="climatology",
    title="Climatology of the date and hour",
    presets=_PRESETS,
    build=_climatology,
    options=frozenset({"hours", "harmonics"}),
)
RANDOM_WALK = Entry(
    name="random_walk",
    title="Random walk: persistence with growing, smooth noise",
    presets=_PRESETS,
    build=_random_walk,
    options=frozenset({"tendency_std", "correlation_length"}),
)
