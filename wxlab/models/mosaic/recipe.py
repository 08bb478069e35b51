"""How Mosaic is trained: fair CRPS of a small ensemble over single steps, then over short roll-outs.

The training code is not published. From the paper: the fair CRPS weighted by latitude and by channel, the base learning rate of 0.02, half
a cosine over each stage, no warm-up in the first, 500 steps of it in the following ones. Ours, because nothing is known of them: two
members, normalised states as the space of the loss, area weights of mean 1, GraphCast's channel weights, Muon (every weight is a
matrix, and the learning rate is of its kind) without weight decay, the fine-tuning stages' learning rate.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from wxlab.errors import WxlabError, unknown
from wxlab.grids import area_weights
from wxlab.models.base import Batch, Model, Recipe
from wxlab.models.mosaic.building import require_own_output
from wxlab.models.mosaic.network import Mosaic
from wxlab.models.mosaic.statistics import level_weights
from wxlab.streams import Streams

Loss = Literal["crps", "mse"]
Optimiser = Literal["muon", "adamw"]
Stage = Literal["pretraining", "finetuning"]
ChannelWeights = Literal["levels", "equal"]
FINETUNING_WARMUP = 500  # optimiser steps


def fair_crps(members: Tensor, target: Tensor) -> Tensor:
    """Fair CRPS of an ensemble at each point: ``mean_a |x_a - y| - Σ_{a≠b} |x_a - x_b| / (2 N (N - 1))``.

    members [B, N, ...], N >= 2, target [B, ...] -> [B, ...].
    Reference: Ferro 2014, Fair scores for ensemble forecasts, doi:10.1002/qj.2270.
    """
    count = members.shape[1]
    if count < 2:
        raise WxlabError("the fair CRPS of one member is not defined; give at least two")
    error = (members - target.unsqueeze(1)).abs().mean(1)
    # the sum over pairs by ranks: n log n instead of n²
    ranked = members.sort(dim=1).values
    factor = (2 * torch.arange(count, device=members.device, dtype=members.dtype) - count + 1) / (count * (count - 1))
    return error - (ranked * factor.view(-1, *[1] * (members.ndim - 2))).sum(1)


class EnsembleTraining(Recipe):
    """``L = mean over batch, steps, points and channels of α_c ω_h CRPS``; the ensemble's members differ by their noise alone.

    members: N of the fair CRPS.  loss: ``crps``, or ``mse`` (what a deterministic model is trained with; of one member).
    stage: ``pretraining`` or ``finetuning``, with its warm-up of 500 steps (ours: a tenth of a short stage) and, unless given, a tenth
    of the learning rate. The steps of the roll-out that are trained are ``spec.horizon``: see ``with_horizon``.
    channel_weights: ``levels``: see ``level_weights``; ``equal``; or channel -> weight (1 where not named).
    optimiser: ``muon``, or ``adamw`` (lr 3e-4 unless given), which affine norms need.  weight_decay: of either.
    """

    def __init__(
        self,
        model: Model,
        *,
        members: int = 2,
        loss: Loss | None = None,
        stage: Stage = "pretraining",
        channel_weights: ChannelWeights | Mapping[str, float] = "levels",
        optimiser: Optimiser = "muon",
        lr: float | None = None,
        weight_decay: float = 0.0,
        final_lr: float = 0.0,
    ) -> None:
        super().__init__()
        stochastic = model.spec.stochastic != "none"
        kind = loss or ("crps" if stochastic else "mse")
        for name, value, allowed in (("loss", kind, Loss), ("stage", stage, Stage), ("optimiser", optimiser, Optimiser)):
            if value not in get_args(allowed):
                raise unknown(name, value, get_args(allowed))
        if kind == "crps" and not stochastic:
            raise WxlabError("a deterministic mosaic (noise_dim=0) has no ensemble for a CRPS; train it with loss='mse'")
        if not isinstance(members, int) or members < 2:
            raise WxlabError(f"members={members!r} must be a whole number of at least 2, which the fair CRPS needs")
        if optimiser == "muon" and not hasattr(torch.optim, "Muon"):
            raise WxlabError(f"torch {torch.__version__} has no Muon; take optimiser='adamw', or torch 2.9 or newer")
        if optimiser == "muon" and any(parameter.ndim != 2 for parameter in model.parameters()):
            raise WxlabError("Muon trains matrices alone, and affine norms have vectors; take optimiser='adamw' or affine=False")
        rate = {"muon": 0.02, "adamw": 3e-4}[optimiser] * (0.1 if stage == "finetuning" else 1.0) if lr is None else lr
        if rate <= 0 or weight_decay < 0:
            raise WxlabError(f"lr={rate} must be positive and weight_decay={weight_decay} at least 0")
        self.members, self.kind, self.stage, self.optimiser_name = members, kind, stage, optimiser
        self.lr, self.weight_decay, self.final_lr = rate, weight_decay, final_lr
        weights = _channel_weights(channel_weights, model.spec.channels)[:, None, None] * area_weights(model.spec.grid)[None, :, None]
        self.register_buffer("weights", torch.from_numpy(weights).float(), persistent=False)  # [C, H, 1]

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        groups = self.parameter_groups(model)
        if self.optimiser_name == "muon":
            return torch.optim.Muon(groups, lr=self.lr, momentum=0.95, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95), weight_decay=self.weight_decay)

    def schedule(self, step: int, total: int) -> float:
        rise = min(FINETUNING_WARMUP, total // 10) if self.stage == "finetuning" else 0
        if step < rise:
            return 1e-6 + (1 - 1e-6) * step / rise
        floor = min(self.final_lr / self.lr, 1.0)
        return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * (step - rise) / max(1, total - rise))))

    def loss(self, model: Model, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.target is None:
            raise WxlabError("a batch without target cannot train a model; use windows of a store, which have targets")
        network, members = cast(Mosaic, model), self.members if self.kind == "crps" else 1
        noise = None
        if network.noise_generator is not None:
            shape = (len(batch), members, network.spec.horizon, network.config["noise_dim"])
            place = generator.device if generator is not None else batch.history.device
            noise = torch.randn(shape, generator=generator, dtype=batch.history.dtype, device=place).to(batch.history)
        prediction = network.roll(batch, noise)
        loss = self._score(prediction, batch).mean()
        logs: dict[str, Tensor] = {self.kind: loss.detach()}
        if members > 1:
            with torch.no_grad():
                logs["spread"] = prediction.std(1).mean()
                logs["mse_of_mean"] = (prediction.mean(1) - batch.target).square().mean()
        return loss, logs

    def _score(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The weighted score of each sample, over observed points: prediction [B, N, To, C, H, W] -> [B]."""
        target = cast(Tensor, batch.target)
        score = fair_crps(prediction, target) if self.kind == "crps" else (prediction[:, 0] - target).square()
        score = score * cast(Tensor, self.weights).to(score.dtype)
        mask = batch.target_mask
        if mask is None:
            return score.flatten(1).mean(1)
        return (score * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    def validation(self, model: Model, batch: Batch, generator: Streams | None) -> Tensor:
        """The loss itself, with noise that depends on the initial time alone: [B]."""
        network, members = cast(Mosaic, model), self.members if self.kind == "crps" else 1
        noise = None
        if network.noise_generator is not None:
            assert generator is not None
            shape = (members, network.spec.horizon, network.config["noise_dim"])
            noise = generator.randn(shape, dtype=batch.history.dtype, device=batch.history.device)[:, 0]
        return self._score(network.roll(batch, noise), batch)


def _channel_weights(given: ChannelWeights | Mapping[str, float], channels: tuple[str, ...]) -> np.ndarray:
    if isinstance(given, Mapping):
        for name in given:
            if name not in channels:
                raise unknown("channel of channel_weights", name, channels)
        return np.array([float(given.get(name, 1.0)) for name in channels])
    if given not in get_args(ChannelWeights):
        raise unknown("channel_weights", given, get_args(ChannelWeights))
    return level_weights(channels) if given == "levels" else np.ones(len(channels))


def with_horizon(model: Mosaic, steps: int) -> Mosaic:
    """The same network with the same weights, writing ``steps`` steps a call: what a fine-tuning stage on roll-outs trains.

        first = wxlab.train("mosaic", store, run_dir="single")
        wxlab.train(with_horizon(wxlab.load_checkpoint(first), 4), store, run_dir="rolled", recipe={"stage": "finetuning"})
    """
    spec = dataclasses.replace(model.spec, horizon=steps)
    require_own_output(spec)
    longer = copy.deepcopy(model)
    longer.spec = spec
    return longer
