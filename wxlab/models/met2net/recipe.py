"""How Met2Net is trained: two stages in one forward pass, with momentum copies of the network."""

from __future__ import annotations

import copy
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError, unknown
from wxlab.models.base import Batch, Model, Recipe, masked_mse
from wxlab.models.met2net.network import Met2Net
from wxlab.nn.drop_path import drop_path_generator

Refresh = Literal["copy", "momentum"]


class TwoStage(Recipe):
    """Implicit two-stage training: ``L = L1 + L2``, both stages predict the future.

    Stage 1, data space:    ``L1 = mean((D(H'(E(x))) - y)^2)``   trains encoders E and decoders D through the momentum translator H'.
    Stage 2, latent space:  ``L2 = mean((H(E'(x)) - E'(y))^2)``  trains the translator H; no gradient reaches the momentum encoders E'.
    ``H' <- alpha H' + (1 - alpha) H`` once per optimiser step, of the parameters (never of the BatchNorm buffers, which H' gathers by
    itself: it is always in training mode). The copies live here, not in the model. ``validation`` leaves them as they are.

    alpha: 0.9 in the authors' weather configurations, 0.999 in their paper and for moving digits.
    ema_encdec: ``copy`` (released code): E' and D' are E and D as they are now; ``momentum`` (paper): averages with alpha.
    official_grad: the authors move H' between the forward and the backward pass, so that the gradients of E are taken with weights that
    the activations do not belong to; the default moves it after the optimiser step, to the same value. With ``accumulate`` above 1,
    which the authors do not have, it makes H' move once per micro-batch.
    log_prediction: also log ``L3 = mean((D'(H(E'(x))) - y)^2)``, which the authors compute and multiply by 0.
    Points that the batch's mask calls unobserved count in no loss of data space.

    Adam without weight decay; half cosine over all steps from lr to final_lr. The authors' schedule moves once per epoch and, under
    Lightning, one epoch late (epochs 0 and 1 both train with lr). Their lr, epochs, alpha, all with batch 16: weatherbench_5p625 and
    weatherbench_64x128 1e-3, 50, 0.9; era5_wind 5e-4, 200, 0.9; mv_mmnist 5e-3, 200, 0.999.
    Reference: Li et al. 2025, arXiv:2507.17189, Algorithm 2.
    """

    def __init__(
        self,
        model: Model,
        *,
        alpha: float = 0.9,
        ema_encdec: Refresh = "copy",
        official_grad: bool = False,
        log_prediction: bool = False,
        lr: float = 1e-3,
        warmup: float = 0.0,
        final_lr: float = 1e-6,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise WxlabError(f"alpha={alpha!r} must lie between 0 (no memory) and 1 (never moves)")
        if ema_encdec not in get_args(Refresh):
            raise unknown("ema_encdec", ema_encdec, get_args(Refresh))
        if lr <= 0:
            raise WxlabError(f"lr={lr!r} must be positive")
        network = cast(Met2Net, model)
        self.alpha, self.ema_encdec, self.official_grad, self.log_prediction = alpha, ema_encdec, official_grad, log_prediction
        self.lr, self.warmup, self.final_lr = lr, warmup, final_lr
        self.encoders = copy.deepcopy(network.encoders).requires_grad_(False)
        self.translator = copy.deepcopy(network.translator).requires_grad_(False)
        self.decoders = copy.deepcopy(network.decoders).requires_grad_(False)
        self._next_translator: list[Tensor] | None = None

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameter_groups(model), lr=self.lr, fused=True)

    def loss(self, model: Model, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``L1 + L2`` and the named parts; ``generator`` draws the drop paths (None: torch's global one)."""
        if batch.target is None:
            raise WxlabError("a batch without target cannot train a model; use windows of a store, which have targets")
        network, x, y, mask = cast(Met2Net, model), batch.history, batch.target, batch.target_mask
        self.translator.train()
        with drop_path_generator(self.translator, generator), drop_path_generator(network.translator, generator):
            latents = network.encoders(x)  # [B, V, T S, h, w]
            data_loss = masked_mse(network.decoders(self.translator(latents)), y, mask)
            self._move_copies(network)
            # E' is E in the released code: its latents of x are at hand
            with torch.no_grad():
                source = latents.detach() if self.ema_encdec == "copy" else self.encoders(x)
                aim = self.encoders(y)
            future = network.translator(source)
            latent_loss = F.mse_loss(future, aim)
        logs = {"data": data_loss.detach(), "latent": latent_loss.detach()}
        if self.log_prediction:
            with torch.no_grad():
                logs["prediction"] = masked_mse(self.decoders(future), y, mask)
        if self.official_grad:
            self.after_step(model, 0)
        return data_loss + latent_loss, logs

    @torch.no_grad()
    def _move_copies(self, network: Met2Net) -> None:
        """Refresh E' and D' and keep where H' will go: it is moved once the backward pass needs its present weights no more."""
        if self._next_translator is not None:  # a further micro-batch of the same optimiser step
            return
        alpha = self.alpha if self.ema_encdec == "momentum" else 0.0
        for mine, theirs in ((self.encoders, network.encoders), (self.decoders, network.decoders)):
            torch._foreach_lerp_(list(mine.parameters()), list(theirs.parameters()), 1 - alpha)
        self._next_translator = moving_average(self.translator, network.translator, self.alpha)

    def after_step(self, model: Model, step: int) -> None:
        if self._next_translator is not None:
            for parameter, value in zip(self.translator.parameters(), self._next_translator, strict=True):
                parameter.data = value  # a new tensor, not a change in place, which autograd would refuse before the backward pass
            self._next_translator = None


def moving_average(copy_: nn.Module, online: nn.Module, alpha: float) -> list[Tensor]:
    """``alpha copy + (1 - alpha) online`` of every parameter, as new tensors."""
    return list(torch._foreach_lerp(list(copy_.parameters()), list(online.parameters()), 1 - alpha))
