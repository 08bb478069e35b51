"""Diffusion in discrete steps: noise schedules, the velocity parameterisation, and samplers (DDIM, ancestral).

    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps        v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0

abar_t is the share of the signal's variance that is left after step t = 0..T-1. A sampler owns its steps and its arithmetic; the
network is a function (x, number of the step) -> v, so that whatever depends on the step alone can be computed once beforehand.
References: Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2010.02502; Salimans and Ho 2022, arXiv:2202.00512.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wxlab.errors import WxlabError, is_number, is_whole, unknown

if TYPE_CHECKING:
    from wxlab.rollout import Streams

ScheduleKind = Literal["sigmoid", "linear", "cosine"]
Velocity = Callable[[Tensor, int], Tensor]
Normals = Callable[[Sequence[int]], Tensor]


def betas_of(kind: ScheduleKind, steps: int) -> NDArray[np.float64]:
    """Noise variances beta_t of T steps, float64 [T].

    sigmoid: ``abar(u) = (s(3) - s(6 u - 3)) / (s(3) - s(-3))``, u = t / T, s the logistic function (Jabri et al. 2022,
    arXiv:2212.11972; s(3) and s(-3) rounded to float32, as published weights were trained).  cosine: ``abar(u) = cos^2((u + 0.008) /
    1.008 pi / 2)`` (Nichol and Dhariwal 2021, arXiv:2102.09672). Both: ``beta_t = clip(1 - abar(t + 1) / abar(t), 0, 0.999)``.
    linear: from 0.1 / T to 20 / T.
    """
    if kind not in get_args(ScheduleKind):
        raise unknown("noise schedule", kind, get_args(ScheduleKind))
    if not is_whole(steps, 2):
        raise WxlabError(f"a noise schedule of {steps!r} steps makes no sense; give a whole number of at least 2")
    if kind == "linear":
        return np.minimum(np.linspace(0.1 / steps, 20 / steps, steps), 0.999)
    u = np.arange(steps + 1) / steps
    if kind == "sigmoid":
        low, high = (np.float32(1) / (np.float32(1) + np.exp(np.float32(-x))) for x in (-3, 3))
        signal = (float(high) - 1 / (1 + np.exp(3 - 6 * u))) / float(high - low)
    else:
        signal = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    signal = signal / signal[0]
    return np.clip(1 - signal[1:] / signal[:-1], 0, 0.999)


class Schedule(nn.Module):
    """A noise schedule: its table abar_t, and the ways between signal, noise and velocity.

    kind: ``sigmoid``, ``linear`` or ``cosine``.  steps: T.  The tables are computed in float64 and kept as float32 buffers that no
    checkpoint holds.
    """

    signal: Tensor  # sqrt(abar)
    noise: Tensor  # sqrt(1 - abar)

    def __init__(self, kind: ScheduleKind = "sigmoid", steps: int = 50) -> None:
        super().__init__()
        self.kind, self.steps = kind, steps
        self.betas = betas_of(kind, steps)  # float64 [T]
        self.alphas = np.cumprod(1 - self.betas)  # abar, float64 [T]
        for name, table in (("signal", np.sqrt(self.alphas)), ("noise", np.sqrt(1 - self.alphas))):
            self.register_buffer(name, torch.tensor(table.astype(np.float32)), persistent=False)

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return table[t].to(like.dtype).view(-1, *[1] * (like.dim() - 1))

    def noisy(self, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """z_t of z_0 and eps [B, ...] at the steps t, int64 [B]."""
        return self._at(self.signal, t, z) * z + self._at(self.noise, t, z) * eps

    def velocity(self, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """v of z_0 and eps [B, ...] at the steps t, int64 [B]."""
        return self._at(self.signal, t, z) * eps - self._at(self.noise, t, z) * z

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, steps={self.steps}"


class Ancestral:
    """Ancestral sampling through all T steps: z_{t-1} drawn from the posterior of z_t and the estimate of z_0.

    ``mean = (beta_t sqrt(abar_{t-1}) z_0 + (1 - abar_{t-1}) sqrt(1 - beta_t) z_t) / (1 - abar_t)``, variance ``beta_t (1 - abar_{t-1}) /
    (1 - abar_t)``, no noise at the last step. Reference: Ho et al. 2020, eq. 7.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.times = list(reversed(range(schedule.steps)))

    def trajectory(self, velocity: Velocity, x: Tensor, normals: Normals) -> Iterator[Tensor]:
        """The latents after each step, from x [B, ...] at the first of ``times`` on; the last one is the sample.

        velocity(x, i): the network's v at ``times[i]``.  normals(shape): standard normal numbers [B, *shape].
        """
        betas, alphas = self.schedule.betas, self.schedule.alphas
        before = np.concatenate([[1.0], alphas[:-1]])
        for i, t in enumerate(self.times):
            z = math.sqrt(alphas[t]) * x - math.sqrt(1 - alphas[t]) * velocity(x, i)
            share = betas[t] * math.sqrt(before[t]) / (1 - alphas[t])
            x = share * z + (1 - before[t]) * math.sqrt(1 - betas[t]) / (1 - alphas[t]) * x
            if t:
                deviation = math.sqrt(max(betas[t] * (1 - before[t]) / (1 - alphas[t]), 1e-20))
                x = x.add_(normals(x.shape[1:]), alpha=deviation)
            yield x


class DDIM:
    """Sampling in S <= T steps: deterministic for ``eta = 0``, with as much fresh noise as ancestral sampling for ``eta = 1``.

    ``z_b = sqrt(abar_b) z_0 + sqrt(1 - abar_b - sigma^2) eps + sigma n``, ``sigma^2 = eta^2 (1 - abar_a / abar_b) (1 - abar_b) /
    (1 - abar_a)`` from step a to the next step b; z_0 and eps are what the network's v says, nothing is clipped. The steps are
    ``linspace(-1, T - 1, S + 1)``, computed in float64 and cut to whole numbers, backwards; the last one ends at z_0.
    Reference: Song et al. 2021, eq. 12 and 16.
    """

    def __init__(self, schedule: Schedule, steps: int, eta: float = 0.0) -> None:
        if not is_whole(steps) or steps > schedule.steps:
            raise WxlabError(f"sampling_steps={steps!r} must be a whole number from 1 to {schedule.steps}, the steps of the noise schedule")
        if not (is_number(eta) and 0 <= eta <= 1):
            raise WxlabError(f"eta={eta!r} must lie between 0 (deterministic) and 1 (as noisy as ancestral sampling)")
        self.schedule, self.eta = schedule, eta
        self.times = [int(t) for t in np.linspace(-1, schedule.steps - 1, steps + 1)][:0:-1]

    def trajectory(self, velocity: Velocity, x: Tensor, normals: Normals) -> Iterator[Tensor]:
        """As ``Ancestral.trajectory``; ``normals`` is asked only where ``eta > 0``."""
        alphas = self.schedule.alphas
        for i, a in enumerate(self.times):
            signal, noise = math.sqrt(alphas[a]), math.sqrt(1 - alphas[a])
            v = velocity(x, i)
            if i == len(self.times) - 1:
                yield signal * x - noise * v
                return
            b = self.times[i + 1]
            sigma = self.eta * math.sqrt((1 - alphas[a] / alphas[b]) * (1 - alphas[b]) / (1 - alphas[a]))
            left, right = math.sqrt(alphas[b]), math.sqrt(1 - alphas[b] - sigma**2)
            # z_0 = signal x - noise v and eps = noise x + signal v
            x = (left * signal + right * noise) * x + (right * signal - left * noise) * v
            if sigma:
                x = x.add_(normals(x.shape[1:]), alpha=sigma)
            yield x


def last(trajectory: Iterator[Tensor]) -> Tensor:
    """The end of a trajectory; the latents on the way are let go."""
    x = next(trajectory)
    for later in trajectory:
        x = later
    return x


def normals_from(source: Streams | torch.Generator | None, like: Tensor) -> Normals:
    """A function ``shape -> [B, *shape]`` of standard normal numbers in the type and on the device of ``like`` [B, ...].

    source: the roll-out's streams, one for each (batch element, member), B of them in all; or a generator for the whole batch; None:
    torch's global one.
    """
    if source is None or isinstance(source, torch.Generator):
        place = like.device if source is None else source.device
        return lambda shape: torch.randn(len(like), *shape, generator=source, dtype=like.dtype, device=place).to(like.device)
    return lambda shape: source.randn(shape, dtype=like.dtype, device=like.device).flatten(0, 1)
