"""Diffusion in continuous noise levels (EDM): preconditioning, training noise, samplers, as separate objects.

One convention joins them: a denoiser ``D(x, sigma)`` gives the clean sample expected behind ``x = clean + sigma noise``, for x [B, ...]
of any float type and one sigma, or one for each element. The network is a function (scaled x, c_noise) -> F that knows nothing of it.
Reference: Karras et al. 2022, Elucidating the design space of diffusion-based generative models, arXiv:2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.nn.diffusion import Normals, last

Denoiser = Callable[[Tensor, Tensor], Tensor]
Network = Callable[[Tensor, Tensor], Tensor]


def karras_sigmas(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels from ``high`` down to ``low``, and 0 at the end: float32 [steps + 1].

    ``s_i = (high^(1/rho) + i / (steps - 1) (low^(1/rho) - high^(1/rho)))^rho`` (eq. 5).
    """
    if not isinstance(steps, int) or steps < 2:
        raise WxlabError(f"{steps!r} noise levels make no sampling; give a whole number of at least 2")
    first, last = high ** (1 / rho), low ** (1 / rho)
    levels = (first + torch.linspace(0, 1, steps) * (last - first)) ** rho
    return torch.cat([levels, torch.zeros(1)])


class Coefficients(NamedTuple):
    """How network and noisy sample make the denoised one: ``D = skip x + out F(c_in x, noise)``."""

    skip: Tensor
    out: Tensor
    c_in: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Preconditioning:
    """Scales that keep the network's input and target at unit variance for every sigma (table 1).

    sigma_data: standard deviation of the clean samples.
    """

    sigma_data: float = 0.5

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """``skip = d²/(s² + d²)``, ``out = s d / sqrt(s² + d²)``, ``in = 1 / sqrt(s² + d²)``, ``noise = ln(s) / 4``."""
        total = sigma**2 + self.sigma_data**2
        root = total.sqrt()
        return Coefficients(self.sigma_data**2 / total, sigma * self.sigma_data / root, 1 / root, sigma.log() / 4)

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error of D, ``(s² + d²) / (s d)²``, so that every sigma counts alike at first."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def denoiser(self, network: Network, dtype: torch.dtype | None = None) -> Denoiser:
        """The denoiser of a network.  dtype: what the network computes in; None: as x comes. D is in the type of x."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            levels = sigma.to(x.device).expand(len(x))
            skip, out, c_in, noise = (c.view(-1, *[1] * (x.dim() - 1)) for c in self.coefficients(levels))
            kind = dtype or x.dtype
            answer = network((c_in * x).to(kind), noise.flatten().to(kind))
            return skip * x + out * answer.to(x.dtype)

        return denoise


@dataclass(frozen=True)
class TrainingNoise:
    """Noise levels of training samples: ``ln s ~ N(mean, std²)``, moved to the nearest of ``levels`` Karras levels (0: not moved)."""

    mean: float = -1.2
    std: float = 1.2
    levels: int = 1000

    def snapped(self, normals: Tensor) -> Tensor:
        """The noise levels of standard normal numbers."""
        sigma = torch.exp(self.mean + self.std * normals)
        if not self.levels:
            return sigma
        grid = karras_sigmas(self.levels)[:-1].to(sigma)
        return grid[(sigma[:, None] - grid).abs().argmin(1)]

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise levels [count], float32, on the generator's device."""
        device = generator.device if generator is not None else None
        return self.snapped(torch.randn(count, generator=generator, device=device))

    def quantiles(self, count: int) -> Tensor:
        """Noise levels [count] in the middle of equally likely parts: a fixed set to validate with."""
        places = (torch.arange(count) + 0.5) / count
        return self.snapped(math.sqrt(2) * torch.erfinv(2 * places - 1))


class Sampler(Protocol):
    """From noise to a sample; the states on the way are float64."""

    sigmas: Tensor

    @property
    def calls(self) -> int:
        """How often the network is called."""

    def trajectory(self, denoise: Denoiser, noise: Tensor, normals: Normals | None = None) -> Iterator[Tensor]:
        """The state after each step, float64, from unit noise [B, ...]; the last one is the sample."""


def sample(sampler: Sampler, denoise: Denoiser, noise: Tensor, normals: Normals | None = None) -> Tensor:
    """The sample that a sampler makes of unit noise [B, ...], in the type of ``noise``; ``normals`` as in ``Heun.trajectory``."""
    return last(sampler.trajectory(denoise, noise, normals)).to(noise.dtype)


class Heun:
    """Second-order sampler (algorithm 1 and, with churn, 2): ``d = (x - D(x; s)) / s``, Euler to the next level, trapezium there.

    ``2 steps - 1`` calls of the network; the last step, to 0, is Euler's.
    churn: how much noise is added and taken away again over all steps; each step between ``low`` and ``high`` first goes up to
    ``s (1 + gamma)``, ``gamma = min(churn / steps, sqrt(2) - 1)``, by ``sqrt(s'² - s²) inflate`` times fresh normal numbers.
    """

    def __init__(self, steps: int = 20, *, churn: float = 0.0, low: float = 0.0, high: float = math.inf, inflate: float = 1.0) -> None:
        self.sigmas = karras_sigmas(steps)
        self.churn, self.low, self.high, self.inflate = churn, low, high, inflate

    @property
    def calls(self) -> int:
        return 2 * len(self.sigmas) - 3

    def _raised(self, sigma: Tensor) -> Tensor:
        if not self.low <= float(sigma) <= self.high:
            return sigma
        return sigma * (1 + min(self.churn / (len(self.sigmas) - 1), math.sqrt(2) - 1))

    def trajectory(self, denoise: Denoiser, noise: Tensor, normals: Normals | None = None) -> Iterator[Tensor]:
        """The state after each step, float64.

        denoise: D(x, sigma).  noise: unit normal numbers [B, ...].  normals: shape -> standard normal numbers [B, *shape], drawn once
        in every step when there is churn.
        """
        if self.churn and normals is None:
            raise WxlabError("a sampler with churn needs a source of normal numbers; pass normals=, or set churn=0")
        sigmas = self.sigmas.to(noise.device)
        x = noise.double() * sigmas[0]
        for i, (now, then) in enumerate(pairwise(sigmas)):
            if self.churn and normals is not None:
                raised = self._raised(now)
                x = x + (raised**2 - now**2).sqrt() * self.inflate * normals(x.shape[1:]).to(x)
                now = raised
            slope = (x - denoise(x, now)) / now
            ahead = x + (then - now) * slope
            if i < len(sigmas) - 2:
                ahead = x + (then - now) * (slope + (ahead - denoise(ahead, then)) / then) / 2
            x = ahead
            yield x


class DPMSolver:
    """DPM-Solver++(2M): second order from the denoised samples of two steps, one call of the network each.

    With ``h = ln(s_i / s_{i+1})``, ``r = ln(s_{i-1} / s_i) / h`` and ``q = s_{i+1} / s_i``:
    ``x <- q x - (q - 1) (D_i + (D_i - D_{i-1}) / (2 r))``; the first step without the difference, the last one ``x <- D``.
    LaDCast's code starts this sampler from noise that is not multiplied by the first sigma; here it is.
    Reference: Lu et al. 2022, arXiv:2211.01095.
    """

    def __init__(self, steps: int = 20) -> None:
        self.sigmas = karras_sigmas(steps)

    @property
    def calls(self) -> int:
        return len(self.sigmas) - 1

    def trajectory(self, denoise: Denoiser, noise: Tensor, normals: Normals | None = None) -> Iterator[Tensor]:
        """The state after each step, float64; ``normals`` are not used."""
        sigmas = self.sigmas.to(noise.device)
        x, before = noise.double() * sigmas[0], None
        for i in range(len(sigmas) - 1):
            clean = denoise(x, sigmas[i])
            if i == len(sigmas) - 2:
                yield clean
                return
            ratio, aim = sigmas[i + 1] / sigmas[i], clean
            if before is not None:
                r = (sigmas[i - 1] / sigmas[i]).log() / (sigmas[i] / sigmas[i + 1]).log()
                aim = clean + (clean - before) / (2 * r)
            x, before = ratio * x - (ratio - 1) * aim, clean
            yield x
