"""STLDM: nowcasts of radar frames by a latent diffusion model that starts from a first estimate.

    frames x --encode--> z --Translator--> mu, logvar --decode--> first estimate
                                             |
                         noise --denoiser(., t, condition = mu), S times--> z_0 --decode--> enhanced nowcast

B samples, T1 frames read, T2 frames written, C channels with values in [0, 1], H x W the grid, c = hid_S latent channels, h x w the latent
grid. Reference: Foo et al. 2025, STLDM: spatio-temporal latent diffusion model for precipitation nowcasting, arXiv:2512.21118.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from wxlab.errors import WxlabError, is_number, is_whole, unknown
from wxlab.grids import coarse_points
from wxlab.models.base import Batch, Coordinates, Model, Spec
from wxlab.models.baselines import require_sizes
from wxlab.models.stldm.denoiser import Denoiser
from wxlab.models.stldm.vae import Autoencoder, Gaussian, Translator
from wxlab.nn.diffusion import DDIM, Ancestral, Normals, Schedule, last, normals_from
from wxlab.nn.spatial import require_even_depth

if TYPE_CHECKING:
    from wxlab.rollout import Streams

SamplerKind = Literal["auto", "ddim", "ancestral"]
OUTSIDE = 1e-4  # how far rounding may take a value out of [0, 1]

SIZES: dict[str, Any] = {
    "hid_S": 32, "hid_T": 512, "N_S": 4, "N_T": 8,
    "base_ch": 64, "chs_mult": [1, 2, 4, 8], "num_groups": 8, "heads": 4, "dim_head": 32, "patch_size": 16, "temporal": True,
    "beta_schedule": "sigmoid", "timesteps": 50,
}  # fmt: skip
SAMPLING: dict[str, Any] = {
    "sampler": "auto", "sampling_steps": 20, "guidance": 0.0, "eta": 0.0, "enhance": True, "deterministic": False,
}  # fmt: skip


class STLDM(Model):
    """Radar nowcasts: a Translator's first estimate of all T2 frames, enhanced by a diffusion model in latent space.

    hid_S: latent channels c.  hid_T, N_T: width and blocks of the Translator.  N_S: stages of the autoencoder, two per halving of the
    grid.  base_ch, chs_mult: channels of the denoiser's levels.  num_groups, heads, dim_head, patch_size: of its norms and attentions.
    temporal: attention in time; False is the published spatial-only network.  beta_schedule, timesteps: the noise, T steps.

    The rest can be changed at any time, with ``with_sampling``.  sampler: ``ddim`` in ``sampling_steps`` steps, with ``eta`` times the
    noise of ancestral sampling; ``ancestral`` through all T; ``auto``, as the authors do: ddim when there are fewer steps than T.
    guidance: w of ``v = (1 + w) v_conditioned - w v_unconditioned``; 0 is none, the paper's is 1.  enhance: False forecasts the first
    estimate.  deterministic: means of the latents in place of draws, in what the Translator reads and in the first estimate (the
    authors draw, also in evaluation).

    The members of an ensemble are independent runs. With the same seed, the first estimate and the enhanced nowcast of a member come
    from the same draws.
    Differs from the authors' code in nothing but speed; what their code does that the paper does not say is noted where it is done.
    """

    value_range = (0.0, 1.0)

    def __init__(self, spec: Spec, **config: Any) -> None:
        """``build`` gives every option of ``SIZES`` and ``SAMPLING``, checked."""
        super().__init__(spec, **config)
        channels, latent = len(spec.channels), config["hid_S"]
        self.schedule = Schedule(config["beta_schedule"], config["timesteps"])
        self.vae = Autoencoder(channels, latent, config["N_S"])
        self.translator = Translator(spec.history, spec.horizon, latent, config["hid_T"], config["N_T"])
        self.denoiser = Denoiser(
            latent,
            config["base_ch"],
            config["chs_mult"],
            groups=config["num_groups"],
            heads=config["heads"],
            dim=config["dim_head"],
            patch=config["patch_size"],
            frames=spec.horizon,
            temporal=config["temporal"],
        )

    def with_sampling(self, **changes: Any) -> STLDM:
        """The same network with other ways to sample: ``model.with_sampling(sampling_steps=10, guidance=1.0)``.

        changes: any of sampler, sampling_steps, guidance, eta, enhance, deterministic.  Weights are shared with this model.
        Raises WxlabError for other names and impossible values.
        """
        for name in changes:
            if name not in SAMPLING:
                raise unknown("sampling option", name, SAMPLING)
        other = copy.copy(self)
        other.config = {**self.config, **changes}
        _sampler(self.schedule, other.config)
        return other

    def encode(self, frames: Tensor) -> Gaussian:
        """frames [B, T, C, H, W] in [0, 1] -> their latents [B, T, c, h, w].  Raises WxlabError for other shapes and values."""
        self._check(frames)
        return self.vae.encode(frames)

    @torch.no_grad()
    def forward(self, x: Tensor, generator: torch.Generator | Streams | None = None, members: int = 1) -> Tensor:
        """x [B, T1, C, H, W] in [0, 1] -> nowcasts [B M, T2, C, H, W], the M members of a sample one after the other.

        generator: draws, in this order, the noise of the input latents, of the first estimate, the initial noise, and the sampler's; a
        torch.Generator, or one stream for each (sample, member).
        """
        if not is_whole(members):
            raise WxlabError(f"members={members!r} must be a whole number of at least 1")
        if x.dim() == 5 and x.shape[1] != self.spec.history:
            raise WxlabError(f"{x.shape[1]} frames were given, and this STLDM reads {self.spec.history}; give the last {self.spec.history}")
        past = self.encode(x)
        past = Gaussian(*(value.repeat_interleave(members, 0) for value in (past.mean, past.logvar)))  # [B M, T1, c, h, w]
        normals = normals_from(generator, past.mean)
        future = self.translator(self._drawn(past, normals))  # [B M, T2, c, h, w]
        estimate = self._drawn(future, normals)
        if not self.config["enhance"]:
            return self.vae.decode(estimate)
        return self.vae.decode(self.sample(future.mean, normals))

    def _drawn(self, latents: Gaussian, normals: Normals) -> Tensor:
        return latents.mean if self.config["deterministic"] else latents.at(normals(latents.mean.shape[1:]))

    @torch.no_grad()
    def sample(self, condition: Tensor, normals: Normals, start: Tensor | None = None) -> Tensor:
        """Latents from noise.  condition: the first estimate's mean latents [B, T2, c, h, w].  start: noise to begin with (None: drawn).

        What depends on the step alone or on the condition alone is computed once; guidance runs both branches as one batch.
        """
        sampler, weight = _sampler(self.schedule, self.config), self.config["guidance"]
        table = self.denoiser.modulation(torch.tensor(sampler.times, device=condition.device))
        steps = [{block: rows[i : i + 1] for block, rows in table.items()} for i in range(len(sampler.times))]
        pyramid = self.denoiser.pyramid(condition)

        def velocity(x: Tensor, step: int) -> Tensor:
            if not weight:
                return self.denoiser.velocity(x, steps[step], pyramid)
            conditioned, free = self.denoiser.velocity(torch.cat([x, x]), steps[step], pyramid).chunk(2)
            return torch.lerp(free, conditioned, 1 + weight)

        start = normals(condition.shape[1:]) if start is None else start
        return last(sampler.trajectory(velocity, start, normals))

    @property
    def batch_parts(self) -> tuple[str, ...]:
        """Guided, both branches are one batch, the conditioned one first."""
        return ("conditioned", "free") if self.config["guidance"] else ()

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        """Lead times of frames, places of latent points."""
        leads = (np.arange(1, self.spec.horizon + 1) * self.spec.step * 10**9).astype("timedelta64[ns]")
        frames, points = (("query", "key"), ("pixel",)) if kind == "temporal" else (("frame",), ("query", "key"))
        fraction = math.isqrt(math.prod(self.spec.grid.shape) // sizes[points[0]])
        y, x = self.spec.grid.shape
        places = coarse_points(self.spec.grid, (y // fraction, x // fraction))
        found: Coordinates = {f"{axis}_lead": ((axis,), leads) for axis in frames}
        return found | {f"{axis}_{name}": ((axis,), values) for axis in points for name, values in places.items()}

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        return self(batch.history, generator, members).unflatten(0, (-1, members))

    def _check(self, frames: Tensor) -> None:
        channels, shape, dtype = len(self.spec.channels), tuple(frames.shape), self.vae.decoder.readout.weight.dtype
        if frames.dim() != 5 or shape[2] != channels:
            raise WxlabError(f"frames of shape {shape} were given; give [sample, frame, channel, row, column] with {channels} channel(s)")
        if not frames.numel():
            raise WxlabError(f"frames of shape {shape} were given, and there is nothing in them; give at least one sample")
        if frames.dtype != dtype:
            kinds = [str(kind).removeprefix("torch.") for kind in (frames.dtype, dtype)]
            raise WxlabError(f"the frames are of type {kinds[0]}, and this STLDM reads {kinds[1]}; convert them, or the model by its to()")
        for side, length, multiple in zip(("rows", "columns"), shape[3:], self.spec.multiples, strict=True):
            if length % multiple:
                raise WxlabError(f"the frames have {length} {side}, and this STLDM needs a multiple of {multiple}; crop or resize them")
        low, high = (float(value) for value in frames.detach().aminmax())
        if not (low >= -OUTSIDE and high <= 1 + OUTSIDE):  # also where they are not numbers
            if low != low or high != high:
                raise WxlabError("the frames hold missing values (NaN); fill them, or prepare the store with nan='fill' or nan='mask'")
            raise WxlabError(
                f"the frames hold values from {low:.4g} to {high:.4g}, and STLDM reads values from 0 to 1; normalise them, or prepare the "
                "store with normalisation 'dbz' for rain rates, or 'minmax' with the radar's whole range as low and high"
            )


def _sampler(schedule: Schedule, config: dict[str, Any]) -> DDIM | Ancestral:
    """The sampler that a config asks for.  Raises WxlabError when it makes no sense."""
    kind, steps, guidance = config["sampler"], config["sampling_steps"], config["guidance"]
    if kind not in get_args(SamplerKind):
        raise unknown("sampler", kind, get_args(SamplerKind))
    if not (is_number(guidance) and guidance >= 0):
        raise WxlabError(f"guidance={guidance!r} must be a finite number of at least 0 (0 is none, the paper's is 1)")
    for name in ("enhance", "deterministic"):
        if not isinstance(config[name], bool):
            raise WxlabError(f"{name}={config[name]!r} must be True or False")
    sampler = DDIM(schedule, steps, config["eta"])
    if kind == "ddim" or (kind == "auto" and steps < schedule.steps):
        return sampler
    return Ancestral(schedule)


def build(spec: Spec, **config: Any) -> STLDM:
    """An STLDM of a Spec, every size checked. Forcing and static fields are not read, so the model's Spec names none."""
    settings = {**SIZES, **SAMPLING, **config}
    _require_sizes(settings)
    settings["chs_mult"] = list(settings["chs_mult"])
    factor = settings["patch_size"] * 2 ** (settings["N_S"] // 2)
    whole = dataclasses.replace(spec, multiples=(factor, factor), forcing=(), static=(), stochastic="diffusion")
    model = STLDM(whole, **settings)
    _sampler(model.schedule, settings)
    return model


def _require_sizes(settings: dict[str, Any]) -> None:
    levels: Any = settings["chs_mult"]
    if not isinstance(levels, (list, tuple)) or not levels or not all(is_whole(factor) for factor in levels):
        raise WxlabError(f"chs_mult={levels!r} must be whole numbers of at least 1, one for each level, such as [1, 2, 4, 8]")
    # the patch is halved with each level
    multiples = {"hid_S": 2, "base_ch": 4, "patch_size": 2 ** (len(levels) - 1)}
    require_sizes(settings, {**dict.fromkeys(("hid_T", "N_T", "num_groups", "heads", "dim_head"), 1), **multiples})
    require_even_depth(settings["N_S"])
    if not isinstance(settings["temporal"], bool):
        raise WxlabError(f"temporal={settings['temporal']!r} must be True or False")
