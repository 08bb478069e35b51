"""The large-kernel gated blocks of SimVP-gSTA (Tan et al. 2022, arXiv:2211.12509) and TAU (Tan et al. 2023, arXiv:2206.12126).

Both see 21x21 points: a depth-wise 5x5, then a depth-wise 7x7 with dilation 3. Submodules bear the names of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.nn.convolution import DepthwiseConv, PointwiseConv
from wxlab.nn.drop_path import DropPath

BlockKind = Literal["tau", "gsta"]


class _SpatialGate(nn.Module):
    """``f = Conv1x1(DW7x7(DW5x5(p)))``. TAU: ``f * p`` (upstream: times the squeeze-excite of p). gSTA: ``sigmoid(b) * a``, [a, b] = f."""

    def __init__(self, width: int, kind: BlockKind, live_gate: bool) -> None:
        super().__init__()
        self.kind, self.live_gate = kind, live_gate
        self.conv0 = DepthwiseConv(width, 5)
        self.conv_spatial = DepthwiseConv(width, 7, dilation=3)
        self.conv1 = PointwiseConv(width, width * (2 if kind == "gsta" else 1))
        if kind == "tau":
            hidden = width // max(width // 16, 4)
            self.fc = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid())
            self.fc.requires_grad_(live_gate)  # when dead it is stored in checkpoints and never used

    def forward(self, p: Tensor) -> Tensor:
        f = self.conv1(self.conv_spatial(self.conv0(p)))  # [n, D or 2 D, h, w]
        if self.kind == "gsta":
            value, gate = f.chunk(2, dim=1)
            return gate.sigmoid() * value
        if self.live_gate:
            f = self.fc(p.mean((2, 3)))[:, :, None, None] * f
        return f * p


class GatedAttention(nn.Module):
    """``q = Conv1x1(gate(GELU(Conv1x1(x)))) + x``."""

    def __init__(self, width: int, kind: BlockKind, live_gate: bool) -> None:
        super().__init__()
        self.proj_1 = PointwiseConv(width, width)
        self.spatial_gating_unit = _SpatialGate(width, kind, live_gate)
        self.proj_2 = PointwiseConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + x


class _DepthwiseStage(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)


class MixMLP(nn.Module):
    """``Conv1x1(GELU(DW3x3(Conv1x1(x))))``, ``ratio`` times wider inside."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.fc1 = PointwiseConv(width, hidden)
        self.dwconv = _DepthwiseStage(hidden)
        self.fc2 = PointwiseConv(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class GatedBlock(nn.Module):
    """``y1 = y + DropPath(s1 * attn(BN(y)))``;  ``out = y1 + DropPath(s2 * mlp(BN(y1)))``, s1 and s2 one learned factor per channel.

    width: channels D of y [N, D, h, w].  kind: ``tau`` or ``gsta``.  live_gate: TAU's squeeze-excite as in OpenSTL; Met2Net's code
    returns before it, so the default is the dead gate, whose weights exist but are never used.
    """

    def __init__(
        self, width: int, *, kind: BlockKind = "tau", mlp_ratio: float = 4.0, drop_path: float = 0.0, live_gate: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.attn = GatedAttention(width, kind, live_gate)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = MixMLP(width, mlp_ratio)
        self.layer_scale_1 = nn.Parameter(self.norm1.weight.new_full((width,), 1e-2))
        self.layer_scale_2 = nn.Parameter(self.norm1.weight.new_full((width,), 1e-2))
        initialise_fan_out(self.mlp)
        if kind == "gsta":  # TAU's gate keeps torch's own initial values
            initialise_fan_out(self.attn)

    def forward(self, y: Tensor) -> Tensor:
        y = self.drop_path(y, self.layer_scale_1, self.attn(self.norm1(y)))
        return self.drop_path(y, self.layer_scale_2, self.mlp(self.norm2(y)))


class _Resized(nn.Module):
    """A gated block, then a 1x1 convolution where the width changes."""

    def __init__(self, width: int, width_out: int, **block: Any) -> None:
        super().__init__()
        self.block = GatedBlock(width, **block)
        self.resizes = width != width_out
        if self.resizes:
            self.reduction = PointwiseConv(width, width_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return self.reduction(x) if self.resizes else x


class GatedTranslator(nn.Module):
    """Gated blocks one after the other: the first at the width that comes in, the others at ``hidden``.

    rates: drop path of each block; there are as many blocks.  block: kind, mlp_ratio and live_gate of all of them.
    """

    def __init__(self, width: int, hidden: int, width_out: int, rates: Sequence[float], **block: Any) -> None:
        super().__init__()
        widths = [width, *[hidden] * (len(rates) - 1), width_out]
        blocks = [_Resized(inner, outer, drop_path=rate, **block) for (inner, outer), rate in zip(pairwise(widths), rates, strict=True)]
        self.enc = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> [B, width_out, h, w]."""
        return self.enc(x)


def initialise_fan_out(module: nn.Module) -> None:
    """Give every convolution inside ``module`` normal weights of variance ``2 / (k k out / groups)`` and zero bias."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
            nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
