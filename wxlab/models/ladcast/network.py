"""LaDCast as a forecaster of latents: the transformer, its preconditioning, and the sampler that turns noise into the next frames."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from torch import Tensor

from wxlab.errors import WxlabError, is_number, is_whole, unknown
from wxlab.grids import coarse_points
from wxlab.models.base import Batch, Coordinates, Model, Spec
from wxlab.models.baselines import require_sizes
from wxlab.models.ladcast.rope import Position
from wxlab.models.ladcast.transformer import LatentTransformer
from wxlab.nn.diffusion import normals_from
from wxlab.nn.edm import Denoiser, DPMSolver, Heun, Preconditioning, Sampler, sample

if TYPE_CHECKING:
    from wxlab.rollout import Streams

STEP = 6 * 3600
SAMPLERS = ("heun", "dpm")
NOISES = ("fresh", "repeated")
STARTS = ("random", "near")
SIZES: dict[str, Any] = {
    "heads": 12, "head_dim": 128, "dual": 2, "single": 4, "refiner": 1, "mlp_ratio": 4, "patch": 1, "patch_time": 1,
    "position": "geo", "theta": 256.0, "axes": None, "latitude_factor": 6.0, "year": True, "sigma_data": 0.5, "changes": False,
    "start": "random",
}  # fmt: skip
SAMPLING: dict[str, Any] = {"sampler": "heun", "sampling_steps": 20, "churn": 0.0, "noise": "fresh", "initial_noise": 0.0}


class Ladcast(Model):
    """Diffusion in latent space: from l known latents to the next T, all T jointly with one noise level, 6 hours apart.

    heads, head_dim: width D = heads x head_dim.  dual, single, refiner: numbers of blocks.  mlp_ratio; patch, patch_time: latent cells of
    a token.  position: ``geo``, ``rotary``, ``learned`` or ``spherical_harmonics`` (see ``rope``); time is rotary in all of them.
    theta, axes: base of the rotation and channels of a head for time, latitude and longitude (None: 1/8, 7/16, 7/16 of the head).
    latitude_factor: of ``geo``; 6 in the published code, 3 in the paper.  year: the time of the year is read.
    sigma_data: standard deviation that normalised latents are given before the noise.  changes: frames are sampled as their difference
    from the last known one (as in GenCast, Price et al. 2024, arXiv:2312.15796), which is learned from far fewer samples; those of the
    paper and its code are sampled as they are.  start: of training; ``random`` weights as in the published code, or ``near``: queries
    and keys begin with an equal bias in all channels, so that by its rotation each token first attends to those around it. Without it
    the known latents are not made use of for thousands of steps.

    The rest can be changed at any time, with ``with_sampling``.  sampler: ``heun`` (2 n - 1 calls of the network for n steps) or ``dpm``
    (n calls).  sampling_steps: n.  churn: stochastic steps of ``heun``.  noise: ``fresh`` for each member, initial time and call, or
    ``repeated``: member m begins from the same noise at every call and every initial time, as in the authors' code (seed m).
    initial_noise: standard deviation of noise on the known latents at the start of a roll-out, each member its own, in units of the
    normalised latents (the authors add one draw to all members, which makes no spread).
    Reference: Zhuang and Duraisamy 2025, arXiv:2506.09193.
    Differs from the paper: latitudes turn by 6 times their angle, not 3, unless ``latitude_factor`` says so.
    """

    def __init__(self, spec: Spec, **config: Any) -> None:
        """``build`` gives every option of ``SIZES`` and ``SAMPLING``, checked."""
        super().__init__(spec, **config)
        self.network = LatentTransformer(spec, config)
        self.preconditioning = Preconditioning(config["sigma_data"])

    @property
    def sampler(self) -> Sampler:
        """What makes samples."""
        steps = self.config["sampling_steps"]
        return DPMSolver(steps) if self.config["sampler"] == "dpm" else Heun(steps, churn=self.config["churn"])

    def with_sampling(self, **changes: Any) -> Ladcast:
        """The same network with other ways to sample: ``model.with_sampling(sampling_steps=10)``; weights are shared.

        changes: any of sampler, sampling_steps, churn, noise, initial_noise.  Raises WxlabError for other names and impossible values.
        """
        for name in changes:
            if name not in SAMPLING:
                raise unknown("sampling option", name, SAMPLING)
        other = copy.copy(self)
        other.config = {**self.config, **changes}
        _check_sampling(other.config)
        return other

    def forward(self, noisy: Tensor, known: Tensor, c_noise: Tensor, time: Tensor | None = None) -> Tensor:
        """The network F.

        noisy: scaled noisy latents [B, C, T, h, w].  known: [B, C, l, h, w].  c_noise: ln(sigma) / 4, [B] or [1].
        time: of the first known frame, int64 seconds since 1970 UTC, [B] or [1]; None: no time of the year.
        Returns [B, C, T, h, w].
        """
        return self.network(noisy, known, c_noise, time)

    def denoiser(self, known: Tensor, time: Tensor | None) -> Denoiser:
        """``D(x, sigma)`` for latents x [B, C, T, h, w], given the known ones [B, C, l, h, w]; both at ``sigma_data``."""
        return self.preconditioning.denoiser(lambda x, c_noise: self.network(x, known, c_noise, time), known.dtype)

    def scaled(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, T, C, h, w] as the network has them: [B, C, T, h, w], standard deviation ``sigma_data``."""
        return (latents * self.config["sigma_data"]).transpose(1, 2)

    def clean(self, future: Tensor, known: Tensor) -> Tensor:
        """What is sampled, without noise: normalised future latents [B, T, C, h, w] and scaled known ones -> [B, C, T, h, w]."""
        return self.scaled(future) - known[:, :, -1:] if self.config["changes"] else self.scaled(future)

    def latents(self, clean: Tensor, known: Tensor) -> Tensor:
        """The inverse of ``clean``: samples and scaled known latents [B, C, ., h, w] -> normalised latents [B, T, C, h, w]."""
        states = clean + known[:, :, -1:] if self.config["changes"] else clean
        return (states / self.config["sigma_data"]).transpose(1, 2)

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        spec = self.spec
        known = self.scaled(batch.history).repeat_interleave(members, 0)  # [B M, C, l, h, w]
        time = batch.time[:, 0].repeat_interleave(members)
        normals = normals_from(self._source(batch, members, generator), known)
        noise = normals((len(spec.channels), spec.horizon, *spec.grid.shape))  # [B M, C, T, h, w]
        latents = self.latents(sample(self.sampler, self.denoiser(known, time), noise, normals), known)
        return latents.unflatten(0, (-1, members))

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        """Stream, lead time and place of each token: those to come first, then the known ones."""
        spec, config = self.spec, self.config
        rows, columns = (length // config["patch"] for length in spec.grid.shape)
        places = coarse_points(spec.grid, (rows, columns))
        streams = {"output": np.arange(1, spec.horizon + 1), "known": np.arange(1 - spec.history, 1)}
        found: Coordinates = {}
        for axis in ("query", "key"):
            named = ["known"] if kind == "refiner" else ["output", "known"]
            frames = {name: streams[name].reshape(-1, config["patch_time"]).mean(1) for name in named}
            if sizes[axis] == len(frames.get("output", ())) * rows * columns:  # of the last block no others are wanted
                del frames["known"]
            leads = np.concatenate(list(frames.values())).repeat(rows * columns)
            found[f"{axis}_stream"] = (axis,), np.repeat(list(frames), [len(steps) * rows * columns for steps in frames.values()])
            found[f"{axis}_lead"] = (axis,), (leads * spec.step * 1e9).astype("timedelta64[ns]")
            for name, values in places.items():
                found[f"{axis}_{name}"] = (axis,), np.tile(values, len(leads) // len(values))
        return found

    def _source(self, batch: Batch, members: int, generator: Streams | None) -> Streams | None:
        if self.config["noise"] == "fresh":
            return generator
        if generator is None:
            raise WxlabError("noise='repeated' is the member's own, and no one says which members these are; forecast with wxlab.forecast")
        return generator.repeated()

    def enter(self, state: Tensor, static: Tensor | None, streams: Streams) -> Tensor:
        known = super().enter(state, static, streams)
        spread = self.config["initial_noise"]
        return known + spread * streams.randn(state.shape[1:], state.dtype, state.device) if spread else known


def build(spec: Spec, **config: Any) -> Ladcast:
    """A LaDCast of a Spec, every size checked. Forcing and static fields are not read, so the model's Spec names none."""
    settings: dict[str, Any] = {**SIZES, **SAMPLING, **config}
    require_sizes(settings, dict.fromkeys(("heads", "dual", "single", "refiner", "patch", "patch_time"), 1) | {"head_dim": 8})
    if settings["position"] not in get_args(Position):
        raise unknown("position", settings["position"], get_args(Position))
    if settings["start"] not in STARTS:
        raise unknown("start", settings["start"], STARTS)
    dim = settings["head_dim"]
    place = 2 * (7 * dim // 32)  # channels for the latitude, and as many for the longitude
    axes = settings["axes"] or (dim - 2 * place, place, place)
    whole = isinstance(axes, (list, tuple)) and len(axes) == 3 and all(is_whole(width, 0) for width in axes)
    if not whole or sum(axes) != dim or any(width % 2 for width in axes):
        raise WxlabError(f"axes={axes!r} must be three even numbers of channels (time, latitude, longitude) that sum to head_dim={dim}")
    settings["axes"] = list(axes)
    for name, least in (("mlp_ratio", 0), ("sigma_data", 0), ("latitude_factor", 0), ("theta", 1)):
        if not is_number(settings[name]) or settings[name] <= least:
            raise WxlabError(f"{name}={settings[name]!r} must be a number above {least}; leave it at {SIZES[name]}")
    for name in ("year", "changes"):
        if not isinstance(settings[name], bool):
            raise WxlabError(f"{name}={settings[name]!r} must be True or False")
    _check_sampling(settings)
    if spec.step != STEP:
        raise WxlabError(
            f"LaDCast's frames are 6 h apart, and step is {spec.step / 3600:g} h; "
            "prepare the data with time=[start, end, 6], or set step=21600 where the data are hourly"
        )
    for name in ("history", "horizon"):
        if getattr(spec, name) % settings["patch_time"]:
            raise WxlabError(f"{name}={getattr(spec, name)} frames do not divide into patches of patch_time={settings['patch_time']}")
    patch = settings["patch"]
    return Ladcast(dataclasses.replace(spec, multiples=(patch, patch), forcing=(), static=(), stochastic="diffusion"), **settings)


def _check_sampling(settings: dict[str, Any]) -> None:
    for name, allowed in (("sampler", SAMPLERS), ("noise", NOISES)):
        if settings[name] not in allowed:
            raise unknown(name, settings[name], allowed)
    steps = settings["sampling_steps"]
    if not is_whole(steps, 2):
        raise WxlabError(f"sampling_steps={steps!r} must be a whole number of at least 2")
    for name in ("churn", "initial_noise"):
        if not is_number(settings[name]) or settings[name] < 0:
            raise WxlabError(f"{name}={settings[name]!r} must be a number of at least 0")
    if settings["churn"] and settings["sampler"] != "heun":
        raise WxlabError(f"churn={settings['churn']} belongs to sampler='heun', and {settings['sampler']!r} has none; set churn=0")
