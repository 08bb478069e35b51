"""A model of one layer and recipes for it, to test the training loop with; and stores to train on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from noise import make, times_of
from torch import Tensor, nn

from wxlab import models
from wxlab.grids import Grid
from wxlab.models import Entry
from wxlab.models.base import Batch, Model, Recipe, Spec, masked_mse
from wxlab.store import prepare

NAMES = ["2m_temperature", "geopotential_500"]
SPLITS = {"train": ["2001-01-01", "2001-02-09"], "validation": ["2001-02-10", "2001-02-24"], "test": ["2001-02-25", "2001-03-31"]}


class Pointwise(Model):
    """The same affine map at every point; ``norm``, ``dropout``: of its input; ``spare``: a parameter that nothing uses."""

    def __init__(self, spec: Spec, *, norm: bool = False, dropout: float = 0.0, spare: bool = False) -> None:
        super().__init__(spec, norm=norm, dropout=dropout, spare=spare)
        channels = len(spec.channels)
        self.norm = nn.BatchNorm2d(spec.history * channels) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.map = nn.Conv2d(spec.history * channels, spec.horizon * channels, 1)
        self.spare = nn.Parameter(torch.ones(1)) if spare else None

    def forward(self, history: Tensor) -> Tensor:
        out: Tensor = self.map(self.dropout(self.norm(history.flatten(1, 2))))
        return out.unflatten(1, (self.spec.horizon, len(self.spec.channels)))

    def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
        return self.repeat_members(self(batch.history), members)


class Plain(Recipe):
    """Mean squared error.  sgd: plain gradient descent instead of AdamW.  bad: step at which ``spoil`` (loss or gradient) is no number."""

    steps: Tensor

    def __init__(self, model: Model, *, lr: float = 0.01, sgd: bool = False, bad: int = -1, spoil: str = "loss") -> None:
        super().__init__()
        self.unused_parameters = bool(model.config["spare"])
        self.lr, self.final_lr, self.sgd, self.bad, self.spoil = lr, lr, sgd, bad, spoil
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.trace: list[dict[str, Tensor]] = []

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameter_groups(model), lr=self.lr) if self.sgd else super().optimiser(model)

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.target is not None
        mse = masked_mse(model(batch.history), batch.target, batch.target_mask)
        if self.steps == self.bad:
            if self.spoil == "loss" or (self.spoil == "second process" and os.environ.get("RANK") == "1"):
                mse = mse * float("nan")
            elif self.spoil == "gradient":
                mse = mse + (model.map.weight - model.map.weight.detach()).square().sum().sqrt()  # type: ignore[union-attr, operator]
        return mse, {"mse": mse.detach()}

    def after_step(self, model: Model, step: int) -> None:
        self.steps += 1
        self.trace.append({name: value.detach().clone() for name, value in model.state_dict().items()})


class Noisy(Recipe):
    """Everything that a resume can get wrong: noise from the generator, dropout, a momentum copy, a count, a schedule with warm-up."""

    warmup = 0.3
    done: Tensor

    def __init__(self, model: Model, *, lr: float = 0.01, stage: int = 0, noise: float = 0.1) -> None:
        super().__init__()
        self.lr, self.stage, self.noise = lr, stage, noise
        self.copy = nn.Conv2d(model.map.in_channels, model.map.out_channels, 1).requires_grad_(False)  # type: ignore[union-attr, arg-type]
        self.register_buffer("done", torch.zeros(()))

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.target is not None
        noise = self.noise * torch.randn(batch.history.shape, generator=generator, device=generator.device)
        output = model(batch.history + noise)
        pull = (output.flatten(1, 2) - self.copy(batch.history.flatten(1, 2))).square().mean()
        mse = masked_mse(output, batch.target) / (1 + self.done + self.stage)
        return mse + 0.1 * pull, {"mse": mse.detach(), "pull": pull.detach()}

    @torch.no_grad()
    def after_step(self, model: Model, step: int) -> None:
        self.done += 1
        for mine, theirs in zip(self.copy.parameters(), model.map.parameters(), strict=True):  # type: ignore[union-attr]
            mine.lerp_(theirs, 0.1)


def _recipes(model: Model, *, lr: float = 0.01, stages: int = 2, noise: float = 0.1) -> list[Recipe]:
    return [Noisy(model, lr=lr, stage=stage, noise=noise) for stage in range(stages)]


_PRESET = {"channels": NAMES, "grid": (4, 8), "history": 2, "horizon": 1, "step": 86400}
_WET = {**_PRESET, "dropout": 0.2}
_OPTIONS = frozenset({"norm", "dropout", "spare"})
PLAIN = Entry("plain", "Plain", {"tiny": _PRESET, "demo": _PRESET}, Pointwise, Plain, citation="doi:1", options=_OPTIONS)
NOISY = Entry("noisy", "Noisy", {"tiny": _WET, "demo": _WET}, Pointwise, _recipes, options=_OPTIONS)
ENTRIES = {"plain": "pointwise:PLAIN", "noisy": "pointwise:NOISY"}


def register() -> None:
    """Make the models known in a process of their own."""
    models._REGISTRY.update(ENTRIES)


def make_store(path: Path, **how: Any) -> Path:
    """40 days to train, 15 to validate, 35 to test, on 4x8 points."""
    return prepare(make(times_of(90), Grid.regular(4, 8)), path, variables=NAMES, splits=SPLITS, **how)
