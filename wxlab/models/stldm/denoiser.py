"""STLDM's latent denoiser: a U-Net over the frames' latents with attention in space and time, D(x_t, t, condition) = v.

n = B T2 frames; level m = 0, 1, ... has the grid h / 2^m x w / 2^m and ``widths[m]`` channels. What depends on the step alone
(``modulation``) and what depends on the condition alone (``pyramid``) is computed apart from the rest (``velocity``), so that sampling
does it once. Submodules bear the names of the published checkpoints where those say something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.models.stldm.attention import PatchAttention, SpatialAttention, TemporalAttention
from wxlab.nn.spatial import channels_last

SMALL = 16  # points of a grid

Modulation = Mapping[nn.Module, Tensor]  # a block -> its scales and shifts [1 or n, 2 C]
Pyramid = Sequence[tuple[Tensor, Tensor]]  # of each level: what the condition adds after two convolutions [at most n, C, h, w]


class Sinusoid(nn.Module):
    """``(sin(t f), cos(t f))`` with f from 1 down to 1/10000 in geometric steps."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        half = size // 2
        self.register_buffer("frequencies", torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1))), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """t [B] -> [B, size]."""
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Convolution(nn.Module):
    """``SiLU(GroupNorm(Conv3x3(x)) (1 + scale) + shift)``."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.GroupNorm(groups if channels_out % groups == 0 else 1, channels_out)

    def activate(self, y: Tensor, modulation: Tensor | None) -> Tensor:
        """The formula behind the convolution, whose result y [n, C, h, w] is."""
        weight, bias = self.norm.weight, self.norm.bias
        if modulation is None:
            return F.silu(F.group_norm(y, self.norm.num_groups, weight, bias, self.norm.eps), inplace=True)
        scale, shift = modulation.chunk(2, dim=1)
        scale = scale + 1
        if len(modulation) == 1:  # the same for all frames: part of the norm's own factors
            y = F.group_norm(y, self.norm.num_groups, weight * scale[0], bias * scale[0] + shift[0], self.norm.eps)
            return F.silu(y, inplace=True)
        y = F.group_norm(y, self.norm.num_groups, weight, bias, self.norm.eps)
        return F.silu(torch.addcmul(shift[:, :, None, None], y, scale[:, :, None, None]), inplace=True)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        return self.activate(self.proj(x), modulation)


class ResidualBlock(nn.Module):
    """Two convolutions beside a residual; the first one is told the step (``time`` features; None: it is not)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, time: int | None) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * channels_out)) if time else None
        self.block1 = _Convolution(channels_in, channels_out, groups)
        self.block2 = _Convolution(channels_out, channels_out, groups)
        self.res_conv = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        return self.block2(self.block1(x, modulation)).add_(x if self.res_conv is None else self.res_conv(x))


class ConditionedBlock(ResidualBlock):
    """A residual block of ``cat(x, c)``, c a condition: its convolutions are ``W_x x + W_c c``, and W_c c is the same at every step."""

    res_conv: nn.Conv2d

    def __init__(self, width: int, groups: int, time: int) -> None:
        super().__init__(2 * width, width, groups, time)

    def condition(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """c [n, C, h, w] -> what it adds to the first convolution and to the residual."""
        width = c.shape[1]
        return F.conv2d(c, self.block1.proj.weight[:, width:], padding=1), F.conv2d(c, self.res_conv.weight[:, width:])

    def join(self, x: Tensor, modulation: Tensor, added: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [n, C, h, w]; ``added`` belongs to the first frames, the others (all, for None) have a condition of zeros."""
        width = x.shape[1]
        y = F.conv2d(x, self.block1.proj.weight[:, :width], self.block1.proj.bias, padding=1)
        residual = F.conv2d(x, self.res_conv.weight[:, :width], self.res_conv.bias)
        if added is not None:
            y, residual = _add_first(y, added[0]), _add_first(residual, added[1])
        return self.block2(self.block1.activate(y, modulation)).add_(residual)


def _add_first(x: Tensor, part: Tensor) -> Tensor:
    """x with ``part`` added to its first elements, in place: x is fresh."""
    x[: len(part)] += part
    return x


class Down(nn.Module):
    """One level on the way down: condition, attention in space, attention in time, half the grid (the last level keeps it)."""

    def __init__(
        self, width: int, width_out: int, groups: int, time: int, *, spatial: nn.Module, temporal: nn.Module | None, halve: bool
    ) -> None:
        super().__init__()
        self.block1 = ConditionedBlock(width, groups, time)
        self.spatial = spatial
        self.block2 = ResidualBlock(width, width, groups, None)  # the published network does not tell it the step
        self.temporal = temporal
        self.last = nn.Conv2d(width, width_out, 4, 2, padding=1) if halve else nn.Conv2d(width, width_out, 3, padding=1)

    def forward(self, x: Tensor, modulation: Modulation, added: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [n, C, h, w] -> the next level's input, and the two skips."""
        first = self.spatial(self.block1.join(x, modulation[self.block1], added))
        second = self.block2(first)
        if self.temporal is not None:
            second = self.temporal(second)
        return self.last(second), first, second


class Middle(nn.Module):
    """Residual blocks around full attention in space and attention in time."""

    def __init__(self, width: int, groups: int, time: int, spatial: nn.Module, temporal: nn.Module | None) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = (ResidualBlock(width, width, groups, time) for _ in range(3))
        self.spatial, self.temporal = spatial, temporal

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        x = self.spatial(self.block1(x, modulation[self.block1]))
        x = self.block2(x, modulation[self.block2])
        if self.temporal is not None:
            x = self.temporal(x)
        return self.block3(x, modulation[self.block3])


class Up(nn.Module):
    """One level on the way up, with the two skips of the level.

    Without attention in time the published network has its spatial attention first and takes the second skip twice.
    """

    def __init__(
        self, width: int, width_out: int, groups: int, time: int, *, spatial: nn.Module, temporal: nn.Module | None, double: bool
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 4, 2, padding=1) if double else nn.Conv2d(width, width, 3, padding=1)
        self.temporal, self.spatial = temporal, spatial
        self.block1 = ResidualBlock(width + width_out, width, groups, time)
        self.block2 = ResidualBlock(width + width_out, width_out, groups, time)

    def forward(self, x: Tensor, modulation: Modulation, first: Tensor, second: Tensor) -> Tensor:
        x = _ordered(self.up(x))
        if self.temporal is None:
            x = self.block1(torch.cat([self.spatial(x), second], dim=1), modulation[self.block1])
            return self.block2(torch.cat([x, second], dim=1), modulation[self.block2])
        x = self.block1(torch.cat([self.temporal(x), second], dim=1), modulation[self.block1])
        return self.block2(torch.cat([self.spatial(x), first], dim=1), modulation[self.block2])


def _ordered(x: Tensor) -> Tensor:
    """x in the memory order that is faster: channels last, but for the smallest grids on a CPU, where weights are what takes time."""
    return x.contiguous() if x.device.type == "cpu" and x.shape[2] * x.shape[3] <= SMALL else channels_last(x)


class Denoiser(nn.Module):
    """The velocity v of noisy latents x_t [B, T2, c, h, w] at step t, given the first estimate's latents or nothing.

    latent: c.  base, multipliers: level m > 0 has ``base * multipliers[m - 1]`` channels.  groups: of the norms (one where they do not
    divide the channels).  heads, dim: of every attention.  patch: of the linear spatial attention, in points of level 0, halved with
    each level.  frames: T2.  temporal: attention in time; without it frames do not see each other.
    """

    def __init__(
        self,
        latent: int,
        base: int,
        multipliers: Sequence[int],
        *,
        groups: int,
        heads: int,
        dim: int,
        patch: int,
        frames: int,
        temporal: bool,
    ) -> None:
        super().__init__()
        widths, time = [latent, *(base * factor for factor in multipliers)], 4 * base
        levels = list(enumerate(pairwise(widths)))

        def over_time(width: int) -> TemporalAttention | None:
            return TemporalAttention(width, heads, dim, frames) if temporal else None

        def over_space(width: int, level: int) -> PatchAttention:
            return PatchAttention(width, heads, dim, patch // 2**level)

        self.time = nn.Sequential(Sinusoid(base), nn.Linear(base, time), nn.GELU(), nn.Linear(time, time))
        self.downs = nn.ModuleList(
            Down(width, below, groups, time, spatial=over_space(width, m), temporal=over_time(width), halve=m < len(levels) - 1)
            for m, (width, below) in levels
        )
        self.conditions = nn.ModuleList(nn.Conv2d(width, below, 4, 2, padding=1) for _, (width, below) in levels)
        self.conditions[-1].requires_grad_(False)  # is in every published checkpoint, and nothing uses what it gives
        self.mid = Middle(widths[-1], groups, time, SpatialAttention(widths[-1], heads, dim, frames), over_time(widths[-1]))
        self.ups = nn.ModuleList(
            Up(below, width, groups, time, spatial=over_space(below, m), temporal=over_time(below), double=m < len(levels) - 1)
            for m, (width, below) in reversed(levels)
        )

    def modulation(self, t: Tensor) -> dict[nn.Module, Tensor]:
        """Scales and shifts of every block that is told the step: t int64 [k] -> [k, 2 C] of each."""
        features = self.time(t)
        blocks = [block for block in self.modules() if isinstance(block, ResidualBlock)]
        return {block: block.mlp(features) for block in blocks if block.mlp is not None}

    def pyramid(self, condition: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the condition [B, T2, c, h, w] adds at each level."""
        c, found = channels_last(condition.flatten(0, 1)), []
        for level, down in enumerate(self.downs):
            if level:
                c = self.conditions[level - 1](c)
            found.append(cast(Down, down).block1.condition(c))
        return found

    def velocity(self, x: Tensor, modulation: Modulation, pyramid: Pyramid | None) -> Tensor:
        """x [B, T2, c, h, w] -> v. A pyramid of fewer samples than x has belongs to the first ones; the others have no condition."""
        y, skips = x.flatten(0, 1), []
        for level, down in enumerate(self.downs):
            y, first, second = down(_ordered(y), modulation, pyramid[level] if pyramid is not None else None)
            skips.append((first, second))
        y = self.mid(_ordered(y), modulation)
        for up in self.ups:
            y = up(y, modulation, *skips.pop())
        return y.unflatten(0, x.shape[:2])

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """x [B, T2, c, h, w], t int64 [B] -> v, the same shape as x.

        condition: [B, T2, c, h, w]; None: zeros at every level.  keep: bool [B], which samples have their condition (None: all).
        """
        frames = x.shape[1]
        modulation = {block: rows.repeat_interleave(frames, 0) for block, rows in self.modulation(t).items()}
        if condition is None:
            return self.velocity(x, modulation, None)
        pyramid = self.pyramid(condition)
        if keep is not None:
            kept = keep.repeat_interleave(frames).view(-1, 1, 1, 1)
            pyramid = [(first * kept, second * kept) for first, second in pyramid]
        return self.velocity(x, modulation, pyramid)
