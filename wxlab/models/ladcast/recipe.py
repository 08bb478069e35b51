"""How LaDCast is trained: 1 the autoencoder, 2 its decoder alone, 3 the transformer on a store of latents; each is a run of its own."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from wxlab import grids
from wxlab.errors import WxlabError, is_number, unknown
from wxlab.grids import Grid
from wxlab.models.base import Averaging, Batch, Model, Recipe, per_sample_mse
from wxlab.models.ladcast.autoencoder import Autoencoder
from wxlab.models.ladcast.dynamics import Dynamics, units
from wxlab.models.ladcast.network import Ladcast
from wxlab.models.ladcast.statistics import SST
from wxlab.nn.edm import TrainingNoise
from wxlab.nn.padding import set_detached_poles
from wxlab.streams import Streams

Stage = Literal["all", "decoder"]
Rolls = Literal["none", "longitude", "both"]
VALIDATION_LEVELS = 8  # noise levels at which a denoiser is validated


def cosine_weights(grid: Grid) -> Tensor:
    """``cos(latitude) / mean``, [H, 1], float32."""
    return torch.from_numpy(grids.cosine_weights(grid)).float()[:, None]


def relative_l2(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """``mean over samples and channels of ||w (p - t)|| / ||w t||``, norms over the field: p, t [B, C, H, W], w [..., H, W] -> scalar."""
    if weights is not None:
        prediction, target = prediction * weights, target * weights
    return ((prediction - target).flatten(2).norm(dim=-1) / target.flatten(2).norm(dim=-1).clamp(min=1e-12)).mean()


def rolled(x: Tensor, shifts: Tensor) -> Tensor:
    """Each sample of x [B, ..., H, W] moved by its own shift: shifts [B, 2] (columns, rows), towards the first column and row."""
    moves = [(-int(rows), -int(columns)) for columns, rows in shifts.tolist()]
    return torch.stack([sample.roll(move, (-2, -1)) for sample, move in zip(x, moves, strict=True)])


def average_decay(updates: int, highest: float = 0.9999, start: int = 1000) -> float:
    """How much of the average is kept at its n-th update: 0 up to ``start`` + 1, then ``min(highest, 1 - (n - start)^-0.66667)``."""
    return 0.0 if updates <= start + 1 else min(highest, 1 - (updates - start) ** -0.66667)


class _Scheduled(Recipe):
    """AdamW, linear warm-up from 0 and half a cosine to 0, gradients of norm 1 at most; averaged weights as the authors take them."""

    clip = 1.0

    def __init__(self, lr: float, weight_decay: float, warmup: float, average_from: int) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("warmup", warmup), ("average_from", average_from)):
            if not is_number(value) or value < 0 or (name == "lr" and value == 0):
                raise WxlabError(f"{name}={value!r} must be a number {'above' if name == 'lr' else 'of at least'} 0")
        self.lr, self.weight_decay, self.warmup, self.average_from = lr, weight_decay, warmup, average_from

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameter_groups(model), lr=self.lr, weight_decay=self.weight_decay)

    def schedule(self, step: int, total: int) -> float:
        rise = int(self.warmup if self.warmup >= 1 else self.warmup * total)
        if step < rise:
            return step / rise
        return 0.5 * (1 + float(np.cos(np.pi * (step - rise) / max(1, total - rise))))

    def averaging(self, decay: float) -> Averaging:
        @torch.no_grad()
        def update(averaged: Any, current: Any, count: Any) -> None:
            torch._foreach_lerp_(averaged, current, 1 - average_decay(int(count) + 1, decay, self.average_from))

        return update


class Reconstruction(_Scheduled):
    """Stages 1 and 2: relative L2 of the reconstruction, the static fields included.

    ``L = mean_{b,c} ||w (D(E(x)) - x)|| / ||w x||``; where a channel is masked (sea surface temperature on land) the reconstruction counts
    as right, and x is what the normaliser fills in (-2 with the authors' statistics).
    stage: ``all`` trains encoder and decoder, ``decoder`` (fine-tuning) the decoder alone, so that latents stay what they are.
    latitude_weights: w = cos(latitude) / mean (effective weight w²); the authors leave it off here.
    rolls: ``both``: each sample is, with probability 2/3, moved by random numbers of columns and rows, the latter through the poles, which
    is not physical; the authors use each batch three times, as it is and twice moved. ``longitude``: columns alone.  ``none``.
    require_mask: channels that must come with a mask of where they are missing; set to [] where they are complete.
    detach_poles: no weight gradient from the pole rows of the spherical convolutions, as in the authors' code.
    lr: the authors' is 1e-4 for ``all``, 1e-5 for ``decoder``.  warmup: optimiser steps from 1 on, below 1 a share of all; theirs is 3000.
    average_from: updates before weights are averaged (with ``ema``); until then the average follows the weights.
    physics: how much the relative L2 of geostrophic wind, vorticity and divergence counts beside that of the channels (of
    anomalies, where the fields are normalised as such); see ``Dynamics``. The authors have no such term.
    """

    def __init__(
        self,
        model: Model,
        *,
        stage: Stage = "all",
        latitude_weights: bool = False,
        rolls: Rolls = "both",
        require_mask: list[str] | tuple[str, ...] = (SST,),
        detach_poles: bool = False,
        lr: float | None = None,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        average_from: int = 1000,
        physics: float = 0.0,
    ) -> None:
        for name, value, allowed in (("stage", stage, Stage), ("rolls", rolls, Rolls)):
            if value not in get_args(allowed):
                raise unknown(name, value, get_args(allowed))
        super().__init__(lr if lr is not None else 1e-4 if stage == "all" else 1e-5, weight_decay, warmup, average_from)
        self.stage, self.rolls, self.unused_parameters = stage, rolls, stage == "decoder"
        self.require_mask = _masked(require_mask, model.spec.channels)
        weights = cosine_weights(model.spec.grid) if latitude_weights else None
        self.register_buffer("weights", weights, persistent=False)
        set_detached_poles(model, detach_poles)
        if not is_number(physics) or physics < 0 or (physics and rolls == "both"):
            raise WxlabError(f"physics={physics!r} must be at least 0, and above it rolls='both' makes no sense; set rolls='longitude'")
        self.physics = physics
        self.dynamics = Dynamics(model.spec.channels, model.spec.grid) if physics else None

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        network = cast(Autoencoder, model)
        return [{"params": list((network if self.stage == "all" else network.decoder).parameters())}]

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        network = cast(Autoencoder, model)
        self._check(batch)
        static = batch.static[None].expand(len(batch), -1, -1, -1) if batch.static is not None else None
        x = network.with_static(batch.history[:, -1], static)  # [B, C + S, H, W]
        observed = batch.mask[:, batch.history.shape[1] - 1] if batch.mask is not None else None
        weights = cast(Tensor | None, self.weights)
        if self.rolls != "none":
            shifts = self._shifts(x, generator)
            x = rolled(x, shifts)
            observed = rolled(observed, shifts) if observed is not None else None
            weights = rolled(weights.expand(len(x), 1, *x.shape[-2:]), shifts) if weights is not None else None
        if self.stage == "decoder":
            with torch.no_grad():
                latent = network.encoder(x)
        else:
            latent = network.encoder(x)
        out = network.decoder(latent).to(x.dtype)
        if observed is not None:
            channels = observed.shape[1]
            out = torch.cat([torch.where(observed, out[:, :channels], x[:, :channels]), out[:, channels:]], dim=1)
        loss = relative_l2(out, x, weights)
        logs = {"relative_l2": loss.detach(), "mse": (out - x).square().mean().detach()}
        if self.dynamics is not None:
            motion = self._motion(network, out, x)
            loss, logs["physics"] = loss + self.physics * motion, motion.detach()
        return loss, logs

    def _motion(self, model: Autoencoder, out: Tensor, x: Tensor) -> Tensor:
        """Relative L2 of the derived fields, squares weighted by area: out, x [B, C + S, H, W] -> scalar."""
        assert self.dynamics is not None
        channels = model.spec.channels
        offset, scale = (values.to(x) for values in units(model.normaliser, channels))
        found, true = (self.dynamics(fields[:, : len(channels)] * scale + offset) for fields in (out, x))
        return relative_l2(found, true, self.dynamics.cosine[1:-1].sqrt())

    def _check(self, batch: Batch) -> None:
        if self.require_mask and batch.mask is None:
            names = ", ".join(self.require_mask)
            raise WxlabError(
                f"{names} comes without a mask of where it is missing; prepare the store with nan={{{self.require_mask[0]!r}: 'mask'}}, "
                "or set the recipe's require_mask=[] where it is there everywhere"
            )

    def _shifts(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Columns and rows [B, 2] by which samples are moved."""
        rows, columns = x.shape[-2:]
        draw = torch.rand((len(x), 3), generator=generator, device=generator.device).cpu()
        moved = draw[:, :1] < 2 / 3
        return (draw[:, 1:] * torch.tensor([columns, rows if self.rolls == "both" else 0])).long() * moved

    def validation(self, model: Model, batch: Batch, generator: Streams | None) -> Tensor:
        """Squared error of the reconstruction of the state that is read."""
        observed = batch.mask[:, batch.history.shape[1] - 1] if batch.mask is not None else None
        return per_sample_mse(model.predict(batch)[:, 0, 0], batch.history[:, -1], observed)


def _masked(names: list[str] | tuple[str, ...], channels: tuple[str, ...]) -> list[str]:
    """The channels that must come with a mask; sea surface temperature may be named where there is none."""
    if not isinstance(names, (list, tuple)):
        raise WxlabError(f"require_mask={names!r} must be a list of channels, [] for none")
    for name in names:
        if name != SST and name not in channels:
            raise unknown("channel in require_mask", name, channels)
    return [name for name in names if name in channels]


class Denoising(_Scheduled):
    """Stage 3: the error of the denoiser at random noise levels.

    ``L = mean w(s) l (D(x + s n; s, known) - x)²``, ln s normal with ``mean`` and ``std`` and moved to the nearest of 1000 levels, one s
    for each sample, n normal, l the latitude weight cos / mean of the latent rows.
    latitude_weights: l; on in the authors' commands.  lr, weight_decay, warmup (theirs: 1000 steps), average_from: as in stage 1.
    Validation: the same error at eight fixed noise levels, with noise that depends on the time of the state alone.
    """

    def __init__(
        self,
        model: Model,
        *,
        mean: float = -1.2,
        std: float = 1.2,
        latitude_weights: bool = True,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        average_from: int = 1000,
    ) -> None:
        super().__init__(lr, weight_decay, warmup, average_from)
        if not (is_number(mean) and is_number(std) and std >= 0):
            raise WxlabError(f"mean={mean!r} and std={std!r} of the logarithm of the noise must be numbers, and std at least 0")
        self.noise = TrainingNoise(mean, std)
        weights = cosine_weights(model.spec.grid) if latitude_weights else None
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.target is None:
            raise WxlabError("a batch without target cannot train a model; use windows of a store, which have targets")
        sigma = self.noise.sample(len(batch), generator).to(batch.target)
        noise = torch.randn(batch.target.transpose(1, 2).shape, generator=generator, device=generator.device).to(batch.target)
        error = self.error(cast(Ladcast, model), batch, sigma, noise)
        if self.weights is not None:
            error = error * cast(Tensor, self.weights)
        loss = error.mean()
        return loss, {"denoising": loss.detach()}

    @staticmethod
    def error(model: Ladcast, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        """``w(s) (D - x)²``, [B, C, T, h, w], at noise levels sigma [B] and with noise [B, C, T, h, w]."""
        assert batch.target is not None
        known = model.scaled(batch.history)
        clean = model.clean(batch.target, known)
        levels = sigma.view(-1, 1, 1, 1, 1)
        denoised = model.denoiser(known, batch.time[:, 0])(clean + levels * noise, sigma)
        return model.preconditioning.weight(levels) * (denoised - clean).square()

    def validation(self, model: Model, batch: Batch, generator: Streams | None) -> Tensor:
        assert batch.target is not None and generator is not None
        errors = torch.zeros(len(batch), device=batch.target.device)
        for sigma in self.noise.quantiles(VALIDATION_LEVELS).to(batch.target).unbind():
            noise = generator.randn(batch.target.transpose(1, 2).shape[1:], batch.target.dtype, batch.target.device)[:, 0]
            errors += self.error(cast(Ladcast, model), batch, sigma.expand(len(batch)), noise).flatten(1).mean(1)
        return errors / VALIDATION_LEVELS
