"""What can be set of a training run, checked in one place."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wxlab.errors import WxlabError, unknown

# what may change when a run goes on: nothing that its numbers depend on
FREE = frozenset({"device", "progress", "tensorboard", "max_seconds"})


class Settings(BaseModel):
    """Settings of ``train``.

    preset, model: the network's size and overrides, when it is given by name.  recipe: settings of the model's recipe.
    steps: optimiser steps (of each stage), or epochs: passes over the training windows.  batch_size: windows per optimiser step and
    micro-batch, over all processes; accumulate: micro-batches per optimiser step.  lr: the recipe's learning rate.
    precision: ``no`` (float32), ``bf16`` or ``fp16`` autocast.  ema: decay of averaged weights, which are then validated and saved.
    clip: largest norm of the gradient.  validate_every, checkpoint_every: optimiser steps (default: an epoch, at most a quarter of all).
    patience: validations without improvement before the run ends.  max_seconds: ends the run early, after the step that passes it.
    stride: hours between the starts of training windows.  validation_windows: at most so many, evenly spread.
    log_every: optimiser steps between lines of metrics.jsonl.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    preset: str = "demo"
    model: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float | None = Field(default=None, gt=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    validate_every: int | None = Field(default=None, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    stride: float | None = Field(default=None, gt=0)
    validation_windows: int | None = Field(default=None, ge=1)
    log_every: int = Field(default=10, ge=1)
    device: str = "auto"
    tensorboard: bool = False
    progress: bool = True


def parse(values: dict[str, Any]) -> Settings:
    """Checked settings.  Raises WxlabError for unknown names (with the nearest one) and values out of range, in one sentence."""
    for name in values:
        if name not in Settings.model_fields:
            raise unknown("training setting", name, Settings.model_fields)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}={p['input']!r}: {p['msg'][0].lower()}{p['msg'][1:]}" for p in error.errors()]
        raise WxlabError(f"training settings are not usable: {'; '.join(problems)}") from None
    if settings.steps is not None and settings.epochs is not None:
        raise WxlabError(f"steps={settings.steps} and epochs={settings.epochs} were both given; give one of them")
    if settings.steps is None and settings.epochs is None:
        settings = settings.model_copy(update={"epochs": 10})
    return settings
