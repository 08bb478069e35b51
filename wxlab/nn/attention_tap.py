"""Where attention weights can be read."""

from __future__ import annotations

from torch import Tensor, nn


class AttentionTap(nn.Module):
    """Identity on attention weights after the softmax, so that a forward hook can read them.

    axes: names of the weights' axes behind the batch axis, such as ``("head", "target", "source")``; each row over the last axis sums to 1.
    """

    def __init__(self, axes: tuple[str, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, weights: Tensor) -> Tensor:
        return weights

    def extra_repr(self) -> str:
        return f"axes={self.axes}"
