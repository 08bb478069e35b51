"""Convolutions in the forms that run fast on a CPU; their parameters and sums are those of torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConv(nn.Conv2d):
    """1x1 convolution. On a CPU with channels-last memory, picture rows go to the batch axis, for which torch has the faster kernel."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        rows = super().forward(x.transpose(1, 2).flatten(0, 1).unsqueeze(2))  # [n h, c, 1, w], a view
        return rows.squeeze(2).unflatten(0, (len(x), -1)).transpose(1, 2)


class DepthwiseConv(nn.Conv2d):
    """Depth-wise convolution, size kept by zero padding.

    On a CPU a dilated one runs as an undilated one on the d x d interleaved subgrids: the same sums, several times faster.
    """

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        d = self.dilation[0]
        if d == 1 or x.device.type != "cpu":
            return super().forward(x)
        out = F.conv2d(_Split.apply(x, d), self.weight, self.bias, padding=self.kernel_size[0] // 2, groups=self.groups)
        joined: Tensor = _Join.apply(out, x.shape, d)
        return joined


class _Split(torch.autograd.Function):
    """x [N, C, H, W] -> its interleaved subgrids [N d d, C, ceil(H / d), ceil(W / d)], zeros where a subgrid is shorter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, d: int) -> Tensor:
        ctx.shape, ctx.d = x.shape, d
        return split(x, d)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Join.apply(gradients[0], ctx.shape, ctx.d), None


class _Join(torch.autograd.Function):
    """The inverse of ``_Split`` and its adjoint; in channels-last memory."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, shape: torch.Size, d: int) -> Tensor:
        ctx.d = d
        return join(parts, shape, d)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Split.apply(gradients[0], ctx.d), None, None


def split(x: Tensor, d: int) -> Tensor:
    """The sums of ``_Split``, without its gradient."""
    n, c, h, w = x.shape
    rows, columns = -(-h // d), -(-w // d)
    parts = x.new_empty(n, d, d, rows, columns, c)
    if h % d:
        parts[:, h % d :, :, -1] = 0
    if w % d:
        parts[:, :, w % d :, :, -1] = 0
    for i in range(d):
        for j in range(d):
            part = x[:, :, i::d, j::d].permute(0, 2, 3, 1)
            parts[:, i, j, : part.shape[1], : part.shape[2]] = part
    return parts.flatten(0, 2).permute(0, 3, 1, 2)


def join(parts: Tensor, shape: torch.Size, d: int) -> Tensor:
    """The sums of ``_Join``, without its gradient."""
    parts = parts.permute(0, 2, 3, 1).unflatten(0, (-1, d, d))
    x = parts.new_empty(shape[0], *shape[2:], shape[1])
    for i in range(d):
        for j in range(d):
            part = x[:, i::d, j::d]
            part.copy_(parts[:, i, j, : part.shape[1], : part.shape[2]])
    return x.permute(0, 3, 1, 2)
