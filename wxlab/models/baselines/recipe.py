"""How the trained baselines learn: mean squared error of all frames, Adam, half-cosine schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.models.base import Batch, Model, Recipe, masked_mse
from wxlab.nn.drop_path import drop_path_generator


class MeanSquaredError(Recipe):
    """``L = mean((prediction - target)^2)`` over observed points of normalised fields.

    lr: highest learning rate.  weight_decay: decoupled (AdamW); 0 is plain Adam, as the authors of these baselines train them.
    warmup: share of all steps with a rising rate.  final_lr: rate at the end of the cosine.
    """

    def __init__(self, model: Model, *, lr: float = 1e-3, weight_decay: float = 0.0, warmup: float = 0.0, final_lr: float = 1e-6) -> None:
        super().__init__()
        for name, value in {"lr": lr, "weight_decay": weight_decay, "warmup": warmup, "final_lr": final_lr}.items():
            if not value >= 0 or (name == "lr" and value == 0):
                raise WxlabError(f"{name}={value} must be {'positive' if name == 'lr' else 'at least 0'}")
        self.lr, self.weight_decay, self.warmup, self.final_lr = lr, weight_decay, warmup, final_lr

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameter_groups(model), lr=self.lr, weight_decay=self.weight_decay)

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.target is None:
            raise WxlabError("a batch without target cannot train a model; use windows of a store, which have targets")
        with drop_path_generator(model, generator):
            prediction = model(batch.history)
        return self.compare(prediction, batch.target, batch.target_mask)

    def compare(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a prediction and what to log of it."""
        mse = masked_mse(prediction, target, mask)
        return mse, {"mse": mse.detach()}
