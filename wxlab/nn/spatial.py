"""Convolutional encoder and decoder of SimVP (Gao et al. 2022, arXiv:2206.05099), applied to each frame by itself.

Submodules bear the names of the published checkpoints (``enc.0.conv.norm.weight``). Zero padding on all sides, in longitude too.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from wxlab.errors import WxlabError, is_whole


class Stage(nn.Module):
    """``SiLU(GroupNorm_2(Conv3x3(x)))``; ``stride`` 2 halves the grid, ``upsample`` doubles it (PixelShuffle before the norm).

    Convolutions start from a truncated normal of standard deviation 0.02 and zero bias.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, upsample: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d(channels_in, channels_out * (4 if upsample else 1), 3, stride=stride, padding=1)
        nn.init.trunc_normal_(conv.weight, std=0.02)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers = OrderedDict[str, nn.Module](
            conv=nn.Sequential(conv, nn.PixelShuffle(2)) if upsample else conv,
            norm=nn.GroupNorm(2, channels_out),
            act=nn.SiLU(),
        )
        self.conv = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] in channels-last memory, the faster one, also with one channel, whose strides torch takes for the other order."""
    x = x.contiguous(memory_format=torch.channels_last)
    _, c, h, w = x.shape
    return x.as_strided(x.shape, (h * w, 1, w, 1)) if c == 1 else x


def require_even_depth(layers: int) -> None:
    """Raise WxlabError unless an encoder depth is even and at least 2."""
    if not is_whole(layers, 2) or layers % 2:
        raise WxlabError(f"N_S={layers!r} must be an even number of at least 2: layers come in pairs, of which one halves the grid")


class Encoder(nn.Module):
    """``layers`` stages, of which the second of each pair halves the grid."""

    def __init__(self, channels_in: int, width: int, layers: int) -> None:
        super().__init__()
        require_even_depth(layers)
        self.enc = nn.Sequential(*(Stage(width if i else channels_in, width, stride=1 + i % 2) for i in range(layers)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, C, H, W] -> latent [N, S, h, w] and the first stage's output [N, S, H, W] (SimVP's skip)."""
        first = latent = self.enc[0](channels_last(x))  # [N, S, H, W]
        for stage in list(self.enc)[1:]:
            latent = stage(latent)
        return latent, first


class Decoder(nn.Module):
    """``layers`` stages, of which the first of each pair doubles the grid, and a 1x1 read-out without activation."""

    def __init__(self, width: int, channels_out: int, layers: int) -> None:
        super().__init__()
        require_even_depth(layers)
        self.dec = nn.Sequential(*(Stage(width, width, upsample=i % 2 == 0) for i in range(layers)))
        self.readout = nn.Conv2d(width, channels_out, 1)

    def forward(self, latent: Tensor, skip: Tensor | None = None) -> Tensor:
        """latent [N, S, h, w] -> [N, C, H, W]; ``skip`` [N, S, H, W] is added to the input of the last stage."""
        latent = channels_last(latent)
        for stage in list(self.dec)[:-1]:
            latent = stage(latent)
        return self.readout(self.dec[-1](latent if skip is None else latent + skip))
