"""How STLDM is trained: four losses in one step, in one stage or after training the autoencoder or the whole first estimate first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError, is_number, unknown
from wxlab.models.base import Batch, Model, Recipe, masked_mse, per_sample_mse
from wxlab.models.stldm.network import STLDM
from wxlab.models.stldm.vae import Gaussian
from wxlab.nn.drop_path import drop_path_generator

if TYPE_CHECKING:
    from wxlab.rollout import Streams

Part = Literal["vae", "translator", "denoiser"]
Strategy = Literal["end_to_end", "pretrained_vae", "pretrained_backbone"]
DropPer = Literal["batch", "sample"]
Weighting = Literal["snr", "uniform"]
PARTS: tuple[Part, ...] = get_args(Part)
# the losses from which a part gets gradients
TEACHERS: dict[Part, tuple[str, ...]] = {
    "vae": ("reconstruction", "constraint", "diffusion", "prior"), "translator": ("constraint", "diffusion"), "denoiser": ("diffusion",)
}  # fmt: skip


class Draws:
    """The random numbers of one training step, in the order in which they are asked for."""

    def __init__(self, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype) -> None:
        self.generator, self.device, self.dtype = generator, device, dtype

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def times(self, count: int, steps: int) -> Tensor:
        return torch.randint(0, steps, (count,), generator=self.generator, device=self.device)

    def uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.device)


class LatentDiffusion(Recipe):
    """``L = reconstruction + constraint + diffusion + prior`` (all weights 1), of targets y and history x, each from draws of its own:

    reconstruction: ``mean (D(z) - f)^2 + 1e-6 KL(E(f) || N(0, 1))`` of the frames f of x and y, z drawn from E(f);
    constraint (L_C): ``mean (first estimate - y)^2``;
    diffusion: ``mean abar_t mean (D(z_t, t, mu) - v)^2``, z_0 the encoder's mean of y, from which no gradient comes; t uniform, mu the
    Translator's mean, in 15 % of the batches (or, ``drop_per="sample"``, of the samples) replaced by no condition;
    prior: ``KL(N(sqrt(abar_T) z_0, 1 - abar_T) || N(0, 1))``, about 1e-6: it says whether the last step is noise.

    trains: the parts that learn, others are frozen and in evaluation mode.  constraint, reconstruction, diffusion, prior: weights; a
    loss of weight 0 is not computed.  kl: weight of the divergence within the reconstruction.  weighting: ``snr``, the factor abar_t of the
    diffusion loss, which hardly teaches the noisiest steps; ``uniform``, 1 in its place, for short runs.  drop_condition: probability.
    lr, final_lr, warmup: AdamW's rate rises linearly from a tenth of lr in ``warmup`` steps (at most a tenth of all), then half a
    cosine down to final_lr.  clip: largest norm of the gradient (None: any), unless the training run sets one.
    The Translator runs twice in a step, so that its BatchNorm statistics move twice. Points that the batch's mask calls unobserved
    count in no loss of frames; in the diffusion loss a latent counts by the share of its points that was observed. Best is the lowest
    mean of the first estimate's squared error and of the diffusion loss (as the authors choose, but on the validation split), at noises
    that are the same each time; what has weight 0 does not count.
    Differs from the authors' code: the encoder runs once where theirs runs five times, with the same sums; ``micro_batch`` and
    ``set_mu_to_0``, which have no effect there, are the trainer's ``accumulate`` and ``constraint=0``.
    """

    unused_parameters = True  # of the condition, where it is dropped

    def __init__(
        self,
        *,
        trains: Sequence[Part] = PARTS,
        reconstruction: float = 1.0,
        constraint: float = 1.0,
        diffusion: float = 1.0,
        prior: float = 1.0,
        kl: float = 1e-6,
        weighting: Weighting = "snr",
        drop_condition: float = 0.15,
        drop_per: DropPer = "batch",
        lr: float = 1e-4,
        final_lr: float = 1e-6,
        warmup: int = 2000,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.weights = {"reconstruction": reconstruction, "constraint": constraint, "diffusion": diffusion, "prior": prior}
        _check({**self.weights, "kl": kl, "final_lr": final_lr, "warmup": warmup, "weight_decay": weight_decay}, lr, clip)
        if not any(self.weights[loss] for part in trains for loss in TEACHERS[part]):
            none = ", ".join(f"{name}=0" for name, weight in self.weights.items() if not weight)
            raise WxlabError(f"with {none} the part(s) {', '.join(trains)} have nothing to learn from; give one of these losses a weight")
        if not (is_number(drop_condition) and 0 <= drop_condition < 1):
            raise WxlabError(f"drop_condition={drop_condition!r} must be at least 0 and less than 1")
        if drop_per not in get_args(DropPer):
            raise unknown("drop_per", drop_per, get_args(DropPer))
        if weighting not in get_args(Weighting):
            raise unknown("weighting", weighting, get_args(Weighting))
        self.trains, self.kl, self.weighting = tuple(trains), kl, weighting
        self.drop_condition, self.drop_per = drop_condition, drop_per
        self.lr, self.final_lr, self.warmup, self.weight_decay, self.clip = lr, final_lr, warmup, weight_decay, clip

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """The parameters of the parts that learn; those of the others are frozen from here on."""
        network = cast(STLDM, model)
        for part in PARTS:
            getattr(network, part).requires_grad_(part in self.trains)
        network.denoiser.conditions[-1].requires_grad_(False)
        return super().parameter_groups(model)

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameter_groups(model), lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def schedule(self, step: int, total: int) -> float:
        rise = min(int(self.warmup), total // 10)
        if step < rise:
            return 0.1 + 0.9 * step / rise
        floor = min(self.final_lr / self.lr, 1.0)
        progress = min((step - rise) / max(1, total - rise), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def loss(self, model: Model, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and the parts of it; ``generator`` draws all noise and drop paths (None: torch's global one)."""
        network = cast(STLDM, model)
        for part in PARTS:
            if part not in self.trains:
                getattr(network, part).eval()
        with drop_path_generator(network, generator):
            parts = self.terms(network, batch, Draws(generator, batch.history.device, batch.history.dtype))
        return _total(parts, self.weights), {name: value.detach() for name, value in parts.items()}

    def terms(self, network: STLDM, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The losses whose weight is not 0, by name."""
        x, y = batch.history, _target(batch)
        frames = torch.cat([x, y], dim=1)  # [B, T1 + T2, C, H, W]
        latents = network.encode(frames)
        past, future = latents[:, : x.shape[1]], latents[:, x.shape[1] :]
        parts = {}
        if self.weights["diffusion"]:
            z = future.mean.detach()
            parts["diffusion"] = self._diffusion(network, past, z, draws, observed_share(batch.target_mask, z))
        if self.weights["constraint"]:
            guess = network.translator(past.at(draws.normal(past.mean)))
            parts["constraint"] = masked_mse(network.vae.decode(guess.at(draws.normal(guess.mean))), y, batch.target_mask)
        if self.weights["reconstruction"]:
            again = network.vae.decode(latents.at(draws.normal(latents.mean)))
            parts["reconstruction"] = masked_mse(again, frames, batch.mask) + self.kl * latents.divergence()
        if self.weights["prior"]:
            parts["prior"] = prior_divergence(network, future.mean)
        return parts

    def _diffusion(self, network: STLDM, past: Gaussian, z: Tensor, draws: Draws, observed: Tensor | None) -> Tensor:
        condition: Tensor | None = network.translator(past.at(draws.normal(past.mean))).mean
        t = draws.times(len(z), network.schedule.steps)
        kept = draws.uniform(1 if self.drop_per == "batch" else len(z)) <= 1 - self.drop_condition
        if self.drop_per == "batch":
            condition = condition if bool(kept) else None
        keep = kept if self.drop_per == "sample" else None
        errors = self._errors(network, z, t, draws.normal(z), condition, keep, observed)
        return errors.mean() if observed is None else _mean(errors, observed.flatten(1).sum(1))

    def _errors(
        self, network: STLDM, z: Tensor, t: Tensor, eps: Tensor, condition: Tensor | None, keep: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Weighted squared error of the velocity of each sample, over what was observed of it [B, T2, h, w] (None: all): [B]."""
        schedule = network.schedule
        error = (network.denoiser(schedule.noisy(z, t, eps), t, condition, keep) - schedule.velocity(z, t, eps)).square()
        mean = error.flatten(1).mean(1) if observed is None else _mean(error.mean(2).flatten(1), observed.flatten(1))
        return mean * schedule.signal[t].square() if self.weighting == "snr" else mean

    def validation(self, model: Model, batch: Batch, generator: Streams | None) -> Tensor:
        """Mean of the first estimate's squared error and of the diffusion loss, per sample [B]; ``generator`` draws, the same each time.

        Either is left out where its weight is 0; where both are, squared error of the reconstructed target.
        """
        network, y = cast(STLDM, model), _target(batch)
        z = network.encode(y).mean
        if not (self.weights["constraint"] or self.weights["diffusion"]):
            return per_sample_mse(network.vae.decode(z), y, batch.target_mask)
        assert generator is not None

        def normal(like: Tensor) -> Tensor:
            return generator.randn(like.shape[1:], like.dtype, like.device)[:, 0]

        past = network.encode(batch.history)
        guess, errors = network.translator(past.at(normal(past.mean))), []
        if self.weights["constraint"]:
            errors.append(per_sample_mse(network.vae.decode(guess.at(normal(guess.mean))), y, batch.target_mask))
        if self.weights["diffusion"]:
            t = (generator.rand((1,), device=z.device).flatten() * network.schedule.steps).long()
            observed = observed_share(batch.target_mask, z)
            errors.append(self._errors(network, z, t, normal(z), guess.mean, observed=observed))
        return torch.stack(errors).mean(0)


class Reconstruction(LatentDiffusion):
    """The autoencoder alone: ``mean (D(z) - f)^2 + 1e-6 KL``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(trains=("vae",), **{**settings, "constraint": 0.0, "diffusion": 0.0, "prior": 0.0})


class FirstEstimate(LatentDiffusion):
    """Autoencoder and Translator: reconstruction and constraint."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(trains=("vae", "translator"), **{**settings, "diffusion": 0.0, "prior": 0.0})


def recipe(
    model: Model, *, strategy: Strategy = "end_to_end", freeze: bool = False, pretrained: bool = False, **settings: Any
) -> Recipe | list[Recipe]:
    """The stages of a strategy, each as many steps long as the training run says.

    strategy: ``end_to_end``, all at once (the paper's C); ``pretrained_vae``, the autoencoder first; ``pretrained_backbone``, autoencoder
    and Translator first, with reconstruction and constraint.  freeze: what was trained first stays as it is in the last stage.
    pretrained: the model has these parts trained already, so that there is nothing but the last stage: a model of ``load_checkpoint`` or
    ``load_official``, or one that was given them, as by ``model.vae.load_state_dict(other.vae.state_dict())``.
    settings: of ``LatentDiffusion``. (``clip`` is the same in all strategies; the authors do not clip after a trained backbone.)
    Raises WxlabError for settings that make no sense, alone or together, and where ``pretrained`` parts are as they were initialised.
    """
    if strategy not in get_args(Strategy):
        raise unknown("strategy", strategy, get_args(Strategy))
    for name, value in {"freeze": freeze, "pretrained": pretrained}.items():
        if not isinstance(value, bool):
            raise WxlabError(f"{name}={value!r} must be True or False")
        if value and strategy == "end_to_end":
            raise WxlabError(f"{name}=True needs a first stage; give strategy='pretrained_vae' or 'pretrained_backbone'")
    if strategy == "end_to_end":
        return LatentDiffusion(**settings)
    first: tuple[Part, ...] = ("vae",) if strategy == "pretrained_vae" else ("vae", "translator")
    last = LatentDiffusion(trains=[part for part in PARTS if not freeze or part not in first], **settings)
    if pretrained:
        _require_trained(cast(STLDM, model), first)
        return last
    if strategy == "pretrained_vae":
        return [Reconstruction(**settings), last]
    if not last.weights["constraint"]:
        raise WxlabError(
            "constraint=0 leaves nothing that trains the Translator in the first stage of strategy='pretrained_backbone'; "
            "give a constraint above 0, or strategy 'end_to_end' or 'pretrained_vae'"
        )
    return [FirstEstimate(**settings), last]


def _require_trained(network: STLDM, parts: Sequence[Part]) -> None:
    """Raise WxlabError where a part is as it was initialised: training moves the weights of its norms, which all begin at 1."""
    for part in parts:
        norms = [module for module in getattr(network, part).modules() if isinstance(module, (nn.GroupNorm, nn.BatchNorm2d))]
        if all(bool((norm.weight == 1).all()) for norm in norms):
            raise WxlabError(
                f"pretrained=True needs a model whose {part} is trained, and this one's is as it was initialised; give train a model of "
                f"load_checkpoint or load_official, or one whose {part} got the weights of such a model"
            )


_own = [p for p in signature(recipe).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
_settings = [p for name, p in signature(LatentDiffusion).parameters.items() if name != "trains"]
# the settings of the stages are this function's too: whoever asks it what it takes shall hear them
recipe.__signature__ = Signature([*_own, *_settings])  # type: ignore[attr-defined]


def prior_divergence(network: STLDM, z: Tensor) -> Tensor:
    """``KL(N(sqrt(abar_T) z, 1 - abar_T) || N(0, 1))``, mean over all numbers; in float32 mostly rounding."""
    signal, noise = network.schedule.signal[-1], network.schedule.noise[-1]
    return Gaussian(signal * z, 2 * torch.log(noise).expand_as(z)).divergence()


def observed_share(mask: Tensor | None, z: Tensor) -> Tensor | None:
    """How much was observed where each latent stands: mask [B, T, C, H, W], z [B, T, c, h, w] -> [B, T, h, w]; None is all."""
    if mask is None:
        return None
    rows, columns = (whole // coarse for whole, coarse in zip(mask.shape[-2:], z.shape[-2:], strict=True))
    return F.avg_pool2d(mask.to(z.dtype).mean(2), (rows, columns))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean along the last axis; 0 where all weights are."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=torch.finfo(weights.dtype).tiny)


def _target(batch: Batch) -> Tensor:
    if batch.target is None:
        raise WxlabError("a batch without target cannot train a model; use windows of a store, which have targets")
    return batch.target


def _total(parts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return torch.stack([weights[name] * value for name, value in parts.items()]).sum()


def _check(least_zero: dict[str, float], lr: float, clip: float | None) -> None:
    for name, value in least_zero.items():
        if not (is_number(value) and value >= 0):
            raise WxlabError(f"{name}={value!r} must be a number of at least 0")
    if not (is_number(lr) and lr > 0):
        raise WxlabError(f"lr={lr!r} must be a positive number")
    if clip is not None and not (is_number(clip) and clip > 0):
        raise WxlabError(f"clip={clip!r} must be a positive number, or None for no clipping")
