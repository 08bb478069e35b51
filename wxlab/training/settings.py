"""What can be set of a training run, checked in one place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wxlab.errors import WxlabError, unknown

# what may change when a run goes on: nothing that its numbers depend on
FREE = frozenset({"device", "progress", "tensorboard", "max_seconds", "checkpoint_every"})

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Settings of ``train``.

    preset, model: the network's size and overrides, when it is given by name.  recipe: settings of the model's recipe.
    steps: optimiser steps (of each stage), or epochs: passes over the training windows (10 when neither is given).
    batch_size: windows of a micro-batch, over all processes; accumulate: micro-batches per optimiser step.  lr: the recipe's learning
    rate.  precision: ``no`` (float32), ``bf16`` or ``fp16`` autocast.  ema: decay of averaged weights, which are then validated and
    saved.  clip: largest norm of the gradient; the recipe's own when not given.  validate_every, checkpoint_every: optimiser steps
    (default: an epoch, at most a quarter of all).  patience: validations without improvement before the stage ends.  max_seconds: the
    run ends early after the step that passes it, the time before an interruption included; the schedule knows nothing of it, and a
    larger one lets the run go on.  stride: hours between the starts of training windows.  validation_windows: at most so many,
    evenly spread.
    log_every: optimiser steps between lines of metrics.jsonl.  device: ``auto`` takes a GPU when there is one.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    preset: str = "demo"
    model: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count = 8
    accumulate: Count = 1
    lr: Positive | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float | None = Field(default=None, gt=0, lt=1)
    clip: Positive | None = None
    validate_every: Count | None = None
    checkpoint_every: Count | None = None
    patience: Count | None = None
    max_seconds: Positive | None = None
    stride: Positive | None = None
    validation_windows: Count | None = None
    log_every: Count = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = False
    progress: bool = True


def parse(values: dict[str, Any]) -> Settings:
    """Checked settings.  Raises WxlabError for unknown names (with the nearest one) and values out of range, in one sentence."""
    for name in values:
        if name not in Settings.model_fields:
            raise unknown("training setting", name, Settings.model_fields)
    try:
        settings = Settings(**{name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}={p['input']!r}: {p['msg'][0].lower()}{p['msg'][1:]}" for p in error.errors()]
        raise WxlabError(f"training settings are not usable: {'; '.join(problems)}") from None
    if settings.steps is not None and settings.epochs is not None:
        raise WxlabError(f"steps={settings.steps} and epochs={settings.epochs} were both given; give one of them")
    if settings.lr is not None and "lr" in settings.recipe:
        raise WxlabError(f"lr={settings.lr} and recipe={settings.recipe} both set the learning rate; give one of them")
    if settings.steps is None and settings.epochs is None:
        settings = settings.model_copy(update={"epochs": 10})
    return settings
