"""How VA-MoE and the networks on the same trunk are trained: learned variances of forecast and reconstruction, AdamW, half cosine."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from wxlab.errors import WxlabError, is_number, unknown
from wxlab.models.base import Batch, Model, Recipe
from wxlab.models.vamoe.trunk import Trunk

Reconstruct = Literal["input", "next"]
Combine = Literal["convex", "paper"]


class LearnedVariances(Recipe):
    """``L = (1 - lambda) l(out, y; s_gen) + lambda l(recons, R; s_rec)``, l as in ``LearnedVariance``.

    loss_weight: lambda.  reconstruct: R is the ``input`` (the paper, and what the word means) or the ``next`` state (the authors'
    configuration file as shipped, which makes of the branch a one-step forecast without blocks).
    combine: ``convex`` as above (the authors' code) or ``paper``: ``l(out, y; s_gen) + lambda mean((recons - R)^2)``.
    through_time: in multi-step training (a model whose ``spec.horizon`` is above 1; a trained one gets it by
    ``model.spec = dataclasses.replace(model.spec, horizon=4)``), let gradients pass from step to step; by default each step reads the
    forecast of the one before as a constant, as coded. The authors move the weights after every step; here the steps' losses are
    averaged and the weights move once.
    lr, weight_decay (of every parameter, log-variances and position embedding included), clip, final_lr: the authors' 2e-4, 0.01, 20,
    3e-7. Their clipping comes after the optimiser's step and does nothing, their batches come in order of time, their schedule moves
    once per epoch; here it clips, windows are shuffled, and the schedule moves with every step. The paper takes lr 5e-5 in the
    incremental stage.
    What an extended model holds back does not move: frozen tensors get no gradient, and tensors with columns that are held
    (``strict``) are excluded from weight decay.
    Reference: Chen et al. 2025, arXiv:2412.02503, and the authors' code.
    """

    def __init__(
        self,
        model: Model,
        *,
        lr: float = 2e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.0,
        final_lr: float = 3e-7,
        clip: float = 20.0,
        loss_weight: float = 0.1,
        reconstruct: Reconstruct = "input",
        combine: Combine = "convex",
        through_time: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"lr": lr, "clip": clip}.items():
            if not is_number(value) or value <= 0:
                raise WxlabError(f"{name}={value!r} must be a positive number")
        for name, value in {"weight_decay": weight_decay, "warmup": warmup, "final_lr": final_lr}.items():
            if not is_number(value) or value < 0:
                raise WxlabError(f"{name}={value!r} must be a number of at least 0")
        if not is_number(loss_weight) or not 0 <= loss_weight < 1:
            raise WxlabError(f"loss_weight={loss_weight!r} must be a number of at least 0 (no reconstruction) and less than 1")
        if not isinstance(through_time, bool):
            raise WxlabError(f"through_time={through_time!r} must be true or false")
        if reconstruct not in get_args(Reconstruct):
            raise unknown("reconstruct", reconstruct, get_args(Reconstruct))
        if combine not in get_args(Combine):
            raise unknown("combine", combine, get_args(Combine))
        self.lr, self.weight_decay, self.warmup, self.final_lr, self.clip = lr, weight_decay, warmup, final_lr, clip
        self.loss_weight, self.reconstruct, self.combine, self.through_time = loss_weight, reconstruct, combine, through_time
        self.unused_parameters = combine == "paper"  # the log-variances of the reconstruction

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        held = {id(p) for p in getattr(model, "partly_held", list)()}
        free = [p for p in model.parameters() if p.requires_grad]
        decayed, kept = [p for p in free if id(p) not in held], [p for p in free if id(p) in held]
        return [{"params": decayed}, *([{"params": kept, "weight_decay": 0.0}] if kept else [])]

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameter_groups(model), lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def loss(self, model: Model, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.target is None:
            raise WxlabError("a batch without target cannot train a model; use windows of a store, which have targets")
        trunk, x = cast(Trunk, model), batch.history[:, -1]
        masks = [None] * (1 + batch.target.shape[1]) if batch.mask is None else list(batch.mask[:, batch.history.shape[1] - 1 :].unbind(1))
        losses, logs = [], []
        for step, y in enumerate(batch.target.unbind(1)):
            out, recons, extra = self.run(trunk, x, generator)
            past, mask = masks[step] if step == 0 else None, masks[step + 1]
            loss, named = self.compare(trunk, out, recons, (x.detach(), past), (y, mask))
            losses.append(loss + sum(extra.values()))
            logs.append({**named, **{name: value.detach() for name, value in extra.items()}})
            x = out if self.through_time else out.detach()
        means = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
        return torch.stack(losses).mean(), means

    def run(self, model: Trunk, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Forecast, reconstruction, and further losses that a network brings."""
        return *model(x), {}

    def compare(
        self, model: Trunk, out: Tensor, recons: Tensor, now: tuple[Tensor, Tensor | None], later: tuple[Tensor, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step and what to log of it.  now, later: state and mask [B, C, H, W] before and after the step."""
        aim, mask = now if self.reconstruct == "input" else later
        forecast = model.loss_gen(out, *later)
        error = (out.detach() - later[0]).square()
        mse = error.mean() if later[1] is None else (error * later[1]).sum() / later[1].sum().clamp(min=1)
        if self.combine == "paper":
            square = (recons - aim).square()
            reconstruction = square.mean() if mask is None else (square * mask).sum() / mask.sum().clamp(min=1)
            loss = forecast + self.loss_weight * reconstruction
        else:
            reconstruction = model.loss_recons(recons, aim, mask)
            loss = (1 - self.loss_weight) * forecast + self.loss_weight * reconstruction
        return loss, {"forecast": forecast.detach(), "reconstruction": reconstruction.detach(), "mse": mse}
