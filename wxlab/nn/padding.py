"""Padding and convolution on the sphere: rows beyond a pole come from the other side of it, columns go round.

A row beyond the north pole lies on the meridian of the opposite side, and there east is where west was. So the row is rolled by half the
columns, and the part of a kernel that looks across the pole is mirrored left-right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError


def pad_sphere(x: Tensor, margin: int) -> Tensor:
    """Continue fields across the poles and round the globe.

    Row -r is row r - 1 and row H - 1 + r is row H - r, both rolled by W / 2; then columns are periodic.
    x: [..., H, W], W even, the first and the last row next to the poles.  margin: p rows and columns on each side.
    Returns [..., H + 2 p, W + 2 p].  Raises WxlabError for an odd W and for a margin wider than the field.
    """
    rows, columns = x.shape[-2:]
    if columns % 2 or margin > min(rows, columns):
        raise WxlabError(
            f"{rows}x{columns} points cannot be continued by {margin} across the poles; "
            f"the columns must be even in number, and both sides at least {margin}"
        )
    if margin == 0:
        return x
    south, north = (edge.flip(-2).roll(columns // 2, -1) for edge in (x[..., :margin, :], x[..., -margin:, :]))
    tall = torch.cat([south, x, north], dim=-2)
    return torch.cat([tall[..., -margin:], tall, tall[..., :margin]], dim=-1)


class SphereConv(nn.Conv2d):
    """Convolution of stride 1 that keeps the size of a global field and knows that directions reverse across a pole.

    Ordinary correlation of the padded field, but in the first output row the kernel rows above its middle are mirrored left-right, and in
    the last one those below. For kernels of 5 the second and the second last row also touch a row beyond the pole and keep the kernel as
    it is (as in LaDCast's code).
    kernel: odd.  detach_poles: no gradient for the weights from the two mirrored rows (as in LaDCast's code); the default is the true one.
    x: [B, C, H, W] with H >= 3 (two output rows at least) and W even.
    Reference: Zhuang and Duraisamy 2025, arXiv:2506.09193.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, groups: int = 1, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, kernel, groups=groups, bias=bias)
        self.margin = kernel // 2
        self.detach_poles = False

    def forward(self, x: Tensor) -> Tensor:
        p, rows = self.margin, x.shape[-2]
        if rows < 2:
            raise WxlabError(f"a spherical convolution needs at least 2 rows, and the field has {rows}; take fewer levels or a finer grid")
        padded = pad_sphere(x, p)
        kernel = self.weight.detach() if self.detach_poles else self.weight
        south = torch.cat([kernel[..., :p, :].flip(-1), kernel[..., p:, :]], dim=-2)
        north = torch.cat([kernel[..., : p + 1, :], kernel[..., p + 1 :, :].flip(-1)], dim=-2)
        parts = [self._correlate(padded[..., : 2 * p + 1, :], south)]
        if rows > 2:
            parts.append(self._correlate(padded[..., 1:-1, :], self.weight))
        parts.append(self._correlate(padded[..., -2 * p - 1 :, :], north))
        return torch.cat(parts, dim=-2)

    def _correlate(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias, groups=self.groups)


def set_detached_poles(network: nn.Module, detached: bool = True) -> None:
    """Let every spherical convolution inside ``network`` learn as in LaDCast's code: no weight gradient from the pole rows."""
    for module in network.modules():
        if isinstance(module, SphereConv):
            module.detach_poles = detached


def require_global_rows(rows: Sequence[float]) -> None:
    """Raise WxlabError unless latitudes reach both poles to within one and a half rows."""
    spacing = abs(rows[-1] - rows[0]) / max(1, len(rows) - 1)
    if len(rows) < 2 or 90 - max(rows) > 1.5 * spacing or 90 + min(rows) > 1.5 * spacing:
        raise WxlabError(
            f"latitudes {min(rows):g} to {max(rows):g} do not reach both poles, and this model needs the whole globe; take global fields"
        )
