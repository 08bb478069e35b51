"""The parts of LaDCast's autoencoder: residual blocks, linear attention at several scales, gated convolutions, resampling with shortcuts.

After DC-AE (Chen et al. 2025, arXiv:2410.10733) and EfficientViT (Cai et al. 2023, arXiv:2205.14756), with spherical convolutions.
Submodules bear the names of the published checkpoints, but that q, k and v are one projection. x is [B, C, H, W] throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.nn.convolution import PointwiseConv
from wxlab.nn.padding import SphereConv


class ChannelNorm(nn.Module):
    """``y = x / sqrt(mean(x²) + eps) * w + b``, the mean over channels at each point."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)
        return torch.addcmul(self.bias[:, None, None], x * scale, self.weight[:, None, None])


class ResBlock(nn.Module):
    """``x + Norm(conv(SiLU(conv(x))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SphereConv(channels, channels, 3)
        self.conv2 = SphereConv(channels, channels, 3, bias=False)
        self.norm = ChannelNorm(channels, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv2(F.silu(self.conv1(x))))


class Scale(nn.Module):
    """Queries, keys and values of a neighbourhood: depth-wise k x k, then 1x1 within groups of ``dim`` channels."""

    def __init__(self, channels: int, dim: int, kernel: int) -> None:
        super().__init__()
        self.proj_in = SphereConv(channels, channels, kernel, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=channels // dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        near = self.proj_in(x)
        weight = self.proj_out.weight.unflatten(0, (self.proj_out.groups, -1)).flatten(2)  # [G, dim, dim]
        return (weight @ near.flatten(2).unflatten(1, (len(weight), -1))).view_as(near)  # faster than a grouped convolution


class LinearAttention(nn.Module):
    """``x + Norm(W A)``, ``A = V K^T Q / (1 K^T Q)`` with ReLU on Q and K, linear in the number of points, in float32.

    Channels come in groups of 3 dim: query, key, value. The groups run over the joined axis [q | k | v | q' | k' | v' ...] of all scales
    as it lies, so that the first third of them is made of q alone (as in the published code; not the usual heads).
    """

    def __init__(self, channels: int, dim: int, scales: Sequence[int]) -> None:
        super().__init__()
        inner = channels // dim * dim
        self.dim = dim
        self.to_qkv = PointwiseConv(channels, 3 * inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(Scale(3 * inner, dim, kernel) for kernel in scales)
        self.to_out = PointwiseConv((1 + len(scales)) * inner, channels, bias=False)
        self.norm_out = ChannelNorm(channels, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x)  # [B, 3 i, H, W]
        joined = torch.cat([qkv, *(scale(qkv) for scale in self.to_qkv_multiscale)], dim=1)
        with torch.autocast(x.device.type, enabled=False):
            wide = joined if joined.dtype == torch.float64 else joined.float()
            q, k, v = wide.flatten(2).unflatten(1, (-1, 3, self.dim)).unbind(2)  # [B, G, dim, HW]
            q, k = q.relu(), k.relu()
            total = (k.sum(-1).unsqueeze(-2) @ q) + 1e-15  # [B, G, 1, HW]
            out = (v @ k.transpose(-1, -2)) @ q / total
        return x + self.norm_out(self.to_out(out.flatten(1, 2).unflatten(2, x.shape[2:]).to(joined.dtype)))


class GatedConv(nn.Module):
    """GLUMBConv: ``x + Norm(W (a SiLU(g)))``, [a, g] = depth-wise 3x3 of SiLU of a 1x1, eight times as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_inverted = PointwiseConv(channels, 8 * channels)
        self.conv_depth = SphereConv(8 * channels, 8 * channels, 3, groups=8 * channels)
        self.conv_point = PointwiseConv(4 * channels, channels, bias=False)
        self.norm = ChannelNorm(channels, 1e-7)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(value * F.silu(gate)))


class EViTBlock(nn.Module):
    """Linear attention, then the gated convolution."""

    def __init__(self, channels: int, dim: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.attn = LinearAttention(channels, dim, scales)
        self.conv_out = GatedConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))


class Down(nn.Module):
    """Half the grid: ``unshuffle(conv(x))`` plus the means of groups of channels of ``unshuffle(x)``."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = SphereConv(channels_in, channels_out // 4, 3)
        self.channels_out = channels_out

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.conv(x), 2) + group_means(F.pixel_unshuffle(x, 2), self.channels_out)


class Up(nn.Module):
    """Twice the grid: ``shuffle(conv(x))`` plus ``shuffle(repeated x)``."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = SphereConv(channels_in, 4 * channels_out, 3)
        self.repeats = 4 * channels_out // channels_in

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x) + x.repeat_interleave(self.repeats, dim=1), 2)


def group_means(x: Tensor, groups: int) -> Tensor:
    """Means of consecutive channels: [B, C, H, W] -> [B, groups, H, W]."""
    return x.unflatten(1, (groups, -1)).mean(2)
