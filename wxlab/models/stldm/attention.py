"""The three attentions of STLDM's denoiser, each with its normalisation and its residual: ``x + out(attention(norm(x)))``.

n = B T2 frames, C channels, D = heads x dim of each head. Fields come and go as [n, C, h, w]; in channels-last memory, which is what the
denoiser works in, the views [n, h, w, C] inside cost nothing. Patches, and the frames of a point, do not see each other: on a CPU they
are taken some at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.nn.attention_tap import AttentionTap

PIECE = 2048  # tokens


def _epsilon(x: Tensor) -> float:
    """Of the authors' norms: one for float32, another for every other type, float64 too."""
    return 1e-5 if x.dtype == torch.float32 else 1e-3


class Norm(nn.Module):
    """Scale by one learned factor per channel after a normalisation over channels, or over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def over_channels(self, x: Tensor) -> Tensor:
        """x [..., C] -> mean 0 and variance 1 over the channels, times g."""
        return F.layer_norm(x, x.shape[-1:], self.g.flatten(), None, _epsilon(x))

    def over_time(self, x: Tensor) -> Tensor:
        """x [B, T, ..., C] -> mean 0 and variance 1 over the times of each channel and point, times g."""
        x = x - x.mean(1, keepdim=True)
        variance = torch.linalg.vecdot(x, x, dim=1).unsqueeze(1) / x.shape[1]  # several times faster than torch.var over this axis
        return x * (torch.rsqrt(variance + _epsilon(x)) * self.g.flatten())


class _Projection(nn.Conv2d):
    """A 1x1 convolution that is applied to [..., C]."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class PatchAttention(nn.Module):
    """Linear attention within patches of P x P points: ``softmax_dim(q) softmax_points(k)^T v / sqrt(dim)``, then a norm over channels.

    There is no matrix of points by points: keys and values meet in a matrix of dim x dim for each head and patch.
    Reference: Shen et al. 2021, Efficient attention, arXiv:1812.01243.
    """

    def __init__(self, channels: int, heads: int, dim: int, patch: int) -> None:
        super().__init__()
        self.heads, self.dim, self.patch = heads, dim, patch
        self.norm = Norm(channels)
        self.to_qkv = _Projection(channels, 3 * heads * dim, bias=False)
        self.to_out = nn.Sequential(_Projection(heads * dim, channels), Norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        (n, c, h, w), p = x.shape, self.patch
        patches = x.permute(0, 2, 3, 1).reshape(n, h // p, p, w // p, p, c).transpose(2, 3).reshape(-1, p * p, c)
        out = in_pieces(self._branch, patches)
        out = out.view(n, h // p, w // p, p, p, c).transpose(2, 3).reshape(n, h, w, c)
        return x + out.permute(0, 3, 1, 2)

    def _branch(self, patches: Tensor) -> Tensor:
        """[n h/P w/P, P P, C] -> the same shape."""
        patches = self.norm.over_channels(patches)
        q, k, v = (F.linear(patches, part.flatten(1)) for part in self.to_qkv.weight.chunk(3))  # [..., P P, D]
        q, k = q.unflatten(2, (self.heads, -1)).softmax(3).flatten(2), k.softmax(1)
        heads = zip(*(part.split(self.dim, 2) for part in (q, k, v)), strict=True)  # one after the other: views, no copies
        out = torch.cat([q @ (k.transpose(1, 2) @ v * self.dim**-0.5) for q, k, v in heads], dim=2)
        return cast(Norm, self.to_out[1]).over_channels(self.to_out[0](out))


class SpatialAttention(nn.Module):
    """Attention between all points of a frame. ``tap`` sees the weights [B, T2, heads, h w, h w]."""

    def __init__(self, channels: int, heads: int, dim: int, frames: int) -> None:
        super().__init__()
        self.heads, self.frames = heads, frames
        self.norm = Norm(channels)
        self.to_qkv = _Projection(channels, 3 * heads * dim, bias=False)
        self.to_out = nn.Sequential(_Projection(heads * dim, channels))
        self.tap = AttentionTap(("frame", "head", "query", "key"), kind="spatial")

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        qkv = self.to_qkv(self.norm.over_channels(x.permute(0, 2, 3, 1)))  # [n, h, w, 3 D]
        q, k, v = qkv.view(n, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [n, heads, h w, dim]
        out = attend(q, k, v)  # [n, h w, D]
        self.tap.show(q, k, (-1, self.frames))
        return x + self.to_out(out.view(n, h, w, -1)).permute(0, 3, 1, 2)


class TemporalAttention(nn.Module):
    """Attention between the frames at each point. ``tap`` sees the weights [B, h w, heads, T2, T2].

    The norm before it runs over the frames, not over the channels: that is what the published weights were trained with. Each point
    and channel loses its mean over time, and a single frame becomes 0.
    """

    def __init__(self, channels: int, heads: int, dim: int, frames: int) -> None:
        super().__init__()
        self.heads, self.frames = heads, frames
        self.norm = Norm(channels)
        self.to_q = nn.Linear(channels, heads * dim, bias=False)
        self.to_k = nn.Linear(channels, heads * dim, bias=False)
        self.to_v = nn.Linear(channels, heads * dim, bias=False)
        self.to_out = nn.Linear(heads * dim, channels)
        self.tap = AttentionTap(("pixel", "head", "query", "key"), kind="temporal")

    def forward(self, x: Tensor) -> Tensor:
        (_, c, h, w), t = x.shape, self.frames
        points = x.permute(0, 2, 3, 1).unflatten(0, (-1, t)).movedim(1, 3).reshape(-1, t, c)

        out = in_pieces(self._branch, points)
        if self.tap.read:
            points = self.norm.over_time(points)
            self.tap.show(self._split(self.to_q(points)), self._split(self.to_k(points)), (-1, h * w))
        return x + out.view(-1, h, w, t, c).permute(0, 3, 4, 1, 2).flatten(0, 1)

    def _branch(self, points: Tensor) -> Tensor:
        """[B h w, T2, C] -> the same shape."""
        points = self.norm.over_time(points)
        return self.to_out(attend(*(self._split(to(points)) for to in (self.to_q, self.to_k, self.to_v))))

    def _split(self, x: Tensor) -> Tensor:
        """[N, T2, D] -> [N, heads, T2, dim]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(dim)) v`` of [N, heads, length, dim] -> [N, length, D]."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def in_pieces(branch: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
    """``branch`` of items [N, length, C], which do not see each other; on a CPU some at a time, so that what is between fits its cache."""
    size = max(PIECE // items.shape[1], 1)
    if items.device.type != "cpu" or len(items) <= size:
        return branch(items)
    return torch.cat([branch(part) for part in items.split(size)])
