"""Stochastic depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leave out a residual branch for some samples while training: ``x + scale * branch * b / keep``, ``b ~ Bernoulli(keep)`` per sample.

    rate: probability of leaving it out (0 <= rate < 1).
    Reference: Huang et al. 2016, Deep networks with stochastic depth, doi:10.1007/978-3-319-46493-0_39.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def draw(self, x: Tensor) -> Tensor:
        """1 (keep) or 0 (leave out) for each sample of x [N, ...]: [N, 1, ...]."""
        device = x.device if self.generator is None else self.generator.device
        keep = torch.empty([len(x)] + [1] * (x.dim() - 1), dtype=x.dtype, device=device)
        return keep.bernoulli_(1 - self.rate, generator=self.generator).to(x.device)

    def forward(self, x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
        """x and branch [N, C, H, W]; scale [C], one factor per channel (a layer scale) -> [N, C, H, W]."""
        scale = scale.view(1, -1, 1, 1)
        if self.training and self.rate > 0:
            scale = scale * (self.draw(x) / (1 - self.rate))
        return torch.addcmul(x, scale, branch)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


@contextmanager
def drop_path_generator(network: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Within the block every DropPath of ``network`` draws from ``generator`` (None: torch's global one)."""
    layers = [module for module in network.modules() if isinstance(module, DropPath)]
    for layer in layers:
        layer.generator = generator
    try:
        yield
    finally:
        for layer in layers:
            layer.generator = None
