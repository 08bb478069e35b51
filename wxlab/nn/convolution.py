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
        if self.dilation[0] == 1 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        out: Tensor = _Interleaved.apply(x, self.weight, self.bias, self.dilation[0])
        return out


class _Interleaved(torch.autograd.Function):
    """A dilated depth-wise convolution by way of the subgrids. The weight itself is saved, so gradients see it as it is at their time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        out = F.conv2d(_split(x, dilation), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
        return _join(out, x.shape, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        size, half = len(weight), weight.shape[-1] // 2
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            _split(gradients[0], ctx.dilation),
            _split(x, ctx.dilation),
            weight,
            [size],
            [1, 1],
            [half, half],
            [1, 1],
            False,
            [0, 0],
            size,
            list(ctx.needs_input_grad[:3]),
        )
        return None if of_x is None else _join(of_x, x.shape, ctx.dilation), of_weight, of_bias, None


def _split(x: Tensor, d: int) -> Tensor:
    """x [N, C, H, W] -> its interleaved subgrids [N d d, C, ceil(H / d), ceil(W / d)], zeros where a subgrid is shorter."""
    n, c, h, w = x.shape
    parts = x.new_zeros(n, d, d, -(-h // d), -(-w // d), c)
    for i in range(d):
        for j in range(d):
            part = x[:, :, i::d, j::d].permute(0, 2, 3, 1)
            parts[:, i, j, : part.shape[1], : part.shape[2]] = part
    return parts.flatten(0, 2).permute(0, 3, 1, 2)


def _join(parts: Tensor, shape: torch.Size, d: int) -> Tensor:
    """The inverse of ``_split``, in channels-last memory."""
    parts = parts.permute(0, 2, 3, 1).unflatten(0, (-1, d, d))
    x = parts.new_empty(shape[0], *shape[2:], shape[1])
    for i in range(d):
        for j in range(d):
            part = x[:, i::d, j::d]
            part.copy_(parts[:, i, j, : part.shape[1], : part.shape[2]])
    return x.permute(0, 3, 1, 2)
