"""STLDM's variational autoencoder, applied to each frame by itself, and its Translator from the latents of the past to the future's.

N frames, C channels, c latent channels, H x W a frame, h x w = H/4 x W/4 (two halvings) its latent. Submodules bear the names of the
published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wxlab.nn.gating import GatedTranslator
from wxlab.nn.spatial import channels_last, require_even_depth


@dataclass
class Gaussian:
    """A normal distribution for each number: ``mean`` and ``logvar`` of the same shape."""

    mean: Tensor
    logvar: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """``mean + exp(logvar / 2) noise``."""
        return torch.addcmul(self.mean, torch.exp(0.5 * self.logvar), noise)

    def divergence(self) -> Tensor:
        """Kullback-Leibler divergence from N(0, 1), mean over all numbers: ``mean (exp(logvar) + mean^2 - 1 - logvar) / 2``."""
        return 0.5 * (torch.exp(self.logvar) + self.mean.square() - 1 - self.logvar).mean()

    def __getitem__(self, index: object) -> Gaussian:
        return Gaussian(self.mean[index], self.logvar[index])  # type: ignore[index]


class _Stage(nn.Module):
    """``LeakyReLU_0.2(GroupNorm_2(Conv3x3(x)))``; stride 2 halves the grid, or doubles it by a transposed convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, transposed: bool = False) -> None:
        super().__init__()
        if transposed:
            conv: nn.Module = nn.ConvTranspose2d(channels_in, channels_out, 3, stride, padding=1, output_padding=1)
        else:
            conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)
        self.conv = nn.Sequential(OrderedDict(conv=conv, norm=nn.GroupNorm(2, channels_out), act=nn.LeakyReLU(0.2, inplace=True)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Encoder(nn.Module):
    """``layers`` stages, of which the second of each pair halves the grid, and a 3x3 convolution to mean and log-variance."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        require_even_depth(layers)
        stages = [_Stage(width if i else channels, width, stride=1 + i % 2) for i in range(layers)]
        self.enc = nn.Sequential(*stages, nn.Conv2d(width, 2 * width, 3, padding=1))

    def forward(self, frames: Tensor) -> Gaussian:
        """frames [N, C, H, W] -> latents [N, c, h, w]."""
        return Gaussian(*self.enc(channels_last(frames)).chunk(2, dim=1))


class Decoder(nn.Module):
    """A 3x3 convolution, ``layers`` stages, of which the first of each pair doubles the grid, a 1x1 read-out and a sigmoid."""

    def __init__(self, width: int, channels: int, layers: int) -> None:
        super().__init__()
        stages = [_Stage(width, width, *((2, True) if i % 2 == 0 else ())) for i in range(layers)]
        self.dec = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), *stages)
        self.readout = nn.Conv2d(width, channels, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [N, c, h, w] -> frames [N, C, H, W] in (0, 1)."""
        return self.readout(self.dec(channels_last(latents))).sigmoid()


class Autoencoder(nn.Module):
    """Frames to latents and back: a mean and a log-variance for each latent number, no scaling, no skip connections."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, layers)
        self.decoder = Decoder(width, channels, layers)

    def encode(self, frames: Tensor) -> Gaussian:
        """frames [B, T, C, H, W] in [0, 1] -> latents [B, T, c, h, w]."""
        found = self.encoder(frames.flatten(0, 1))
        return Gaussian(*(value.unflatten(0, frames.shape[:2]) for value in (found.mean, found.logvar)))

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, T, c, h, w] -> frames [B, T, C, H, W] in (0, 1)."""
        return self.decoder(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])


class Translator(GatedTranslator):
    """gSTA blocks over the latents of all frames together, to a mean and a log-variance of each future latent.

    Channels are (frame, latent channel), frames slow. Drop path falls from 1 % in the first block to 0 in the last, although the
    authors configure none. Reference: Tan et al. 2022, arXiv:2211.12509.
    """

    def __init__(self, history: int, horizon: int, latent: int, width: int, layers: int) -> None:
        rates = torch.linspace(0.01, 0, layers, device="cpu").tolist()
        super().__init__(history * latent, width, 2 * horizon * latent, rates, kind="gsta", mlp_ratio=8.0)
        self.latent = latent

    def forward(self, z: Tensor) -> Gaussian:  # type: ignore[override]
        """z [B, T1, c, h, w] -> [B, T2, c, h, w]."""
        out = super().forward(channels_last(z.flatten(1, 2)))  # [B, 2 T2 c, h, w]
        return Gaussian(*out.unflatten(1, (-1, self.latent)).chunk(2, dim=1))
