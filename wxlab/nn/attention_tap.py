"""Where attention weights can be read."""

from __future__ import annotations

from torch import Tensor, nn


class AttentionTap(nn.Module):
    """Identity on attention weights after the softmax, so that a forward hook can read them.

    axes: names of the weights' axes behind the batch axis, such as ``("head", "target", "source")``; each row over the last axis sums to 1.
    kind: tells different sorts of attention in one network apart.
    """

    def __init__(self, axes: tuple[str, ...], kind: str = "attention") -> None:
        super().__init__()
        self.axes, self.kind = axes, kind

    @property
    def read(self) -> bool:
        """Whether anyone reads the weights; if not, a network may use a fused kernel that never forms them."""
        return bool(self._forward_hooks)

    def forward(self, weights: Tensor) -> Tensor:
        return weights

    def extra_repr(self) -> str:
        return f"axes={self.axes}, kind={self.kind!r}"
