"""Inputs for models without data: random windows, a random source, a store in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wxlab.climatology import Climatology
from wxlab.models.base import Batch, Model, Spec
from wxlab.normaliser import Normaliser, Transform


class Noise:
    """A stand-in for the roll-out's streams: one generator for each (batch element, member)."""

    def __init__(self, batch: int, members: int, seed: int = 0, first: int = 0) -> None:
        self.shape, self.call = (batch, members), 0
        self.generators = [torch.Generator().manual_seed(1000 * seed + first + i) for i in range(batch * members)]

    def randn(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        rows = [torch.randn(shape, generator=generator, dtype=dtype) for generator in self.generators]
        return torch.stack(rows).unflatten(0, self.shape).to(device)

    def rand(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        rows = [torch.rand(shape, generator=generator, dtype=dtype) for generator in self.generators]
        return torch.stack(rows).unflatten(0, self.shape).to(device)


def windows(model: Model, batch: int = 2, seed: int = 0) -> Batch:
    """Random windows of a model's Spec, a day apart; within the range of values that the model asks for."""
    spec, generator = model.spec, torch.Generator().manual_seed(seed)

    def fields(frames: int, names: tuple[str, ...]) -> Tensor:
        values = torch.randn(batch, frames, len(names), *spec.grid.shape, generator=generator)
        if model.value_range is None:
            return values
        low, high = model.value_range
        return low + (high - low) * values.sigmoid()

    frames = spec.history + spec.horizon
    past = (torch.arange(spec.history) - spec.history + 1) * spec.history_step
    time = torch.cat([past, torch.arange(1, spec.horizon + 1) * spec.step]) + torch.arange(batch)[:, None] * 86400
    return Batch(
        history=fields(spec.history, spec.channels),
        target=fields(spec.horizon, spec.channels),
        time=time,
        forcing=fields(frames, spec.forcing) if spec.forcing else None,
        static=fields(1, spec.static)[0, 0] if spec.static else None,
    )


def memory_store(spec: Spec) -> Any:
    """What ``fit`` of the reference forecasts reads from a store: units and a climatology with a yearly cycle."""
    shape = (1, 3, len(spec.channels), *spec.grid.shape)
    coefficients = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return SimpleNamespace(
        channels=spec.channels,
        grid=spec.grid,
        climatology=lambda: Climatology(coefficients, [0], spec.channels, spec.grid),
        normaliser=Normaliser({name: Transform("zscore", 1.0, 2.0) for name in spec.channels}),
    )
