"""Where attention weights can be read."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wxlab.errors import WxlabError


class AttentionTap(nn.Module):
    """Identity on attention weights after the softmax, so that a forward hook can read them.

    axes: names of the weights' axes behind the batch axis, such as ``("head", "target", "source")``; each row over the last axis sums to 1.
    kind: tells different sorts of attention in one network apart.
    into: for taps of choices, whole numbers in place of weights: the axis that they point into.
    ``heads``: numbers of the heads that a reader wants; None: all.
    """

    def __init__(self, axes: tuple[str, ...], kind: str = "attention", into: str = "") -> None:
        super().__init__()
        self.axes, self.kind, self.into = axes, kind, into
        self.heads: tuple[int, ...] | None = None

    @property
    def read(self) -> bool:
        """Whether anyone reads the weights; where not, none are formed beside a fused kernel."""
        return bool(self._forward_hooks)

    def forward(self, weights: Tensor, heads: tuple[int, ...] | None = None) -> Tensor:
        """heads: numbers of those that the weights hold, where they are not all."""
        return weights

    @torch.no_grad()
    def show(self, q: Tensor, k: Tensor, leading: tuple[int, ...] = ()) -> None:
        """Form ``softmax(q kᵀ / sqrt(d))`` for a reader, if there is one, beside a fused kernel that makes the output.

        q [N, heads, n, d], k [N, kinds, m, d], where each of ``kinds`` serves as many query heads.  leading: what the axis N is made of,
        batch first.
        """
        if not self.read:
            return
        chosen = self.chosen(q.shape[1])
        group = q.shape[1] // k.shape[1]
        if chosen is not None or group > 1:
            numbers = range(q.shape[1]) if chosen is None else chosen
            q, k = q[:, list(numbers)], k[:, [number // group for number in numbers]]
        wide = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            weights = (q.to(wide) @ k.to(wide).transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        self(weights.unflatten(0, leading) if leading else weights, heads=chosen)

    def chosen(self, count: int) -> tuple[int, ...] | None:
        """The wanted heads of ``count``.  Raises WxlabError for one that is not there."""
        for number in self.heads or ():
            if number >= count:
                raise WxlabError(f"head {number} was asked for, and {self.kind} attention has the heads 0 to {count - 1}; choose of these")
        return self.heads

    def extra_repr(self) -> str:
        return f"axes={self.axes}, kind={self.kind!r}"
