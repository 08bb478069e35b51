"""A vision transformer on the trunk of VA-MoE: what is left of it without experts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError, is_number
from wxlab.models import Entry
from wxlab.models.base import Spec
from wxlab.models.vamoe import PRESETS, LearnedVariances
from wxlab.models.vamoe.trunk import Trunk, make_blocks, require_trunk

DEFAULTS: dict[str, Any] = {"embed_dim": 768, "depth": 24, "heads": 16, "patch": 2, "window": 8, "interval": 3, "mlp_ratio": 4.0}


class MLP(nn.Module):
    """``W_2 GELU(W_1 x + b_1) + b_2``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., E] -> [..., E]."""
        return self.fc2(F.gelu(self.fc1(x)))


class ViT(Trunk):
    """VA-MoE's encoder, attention and decoder with a two-layer network of mlp_ratio x embed_dim in place of its experts."""

    def __init__(
        self, spec: Spec, *, embed_dim: int, depth: int, heads: int, patch: int, window: int, interval: int, mlp_ratio: float
    ) -> None:
        super().__init__(
            spec, embed_dim=embed_dim, patch=patch, depth=depth, heads=heads, window=window, interval=interval, mlp_ratio=mlp_ratio
        )
        layer = partial(MLP, embed_dim, int(embed_dim * mlp_ratio))
        self.blocks = make_blocks(embed_dim, depth, heads, window, interval, layer)
        self.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W], normalised -> the next state and the reconstruction, both [B, C, H, W]."""
        first = t = self.tokens(x)
        for block in self.blocks:
            t = block.attend(t, self.shape)
            t = t + block.moe(block.norm2(t))
        return self.fields(t), self.fields(first)


def build(spec: Spec, **config: Any) -> ViT:
    """A ViT of a Spec, every size checked."""
    settings: dict[str, Any] = {**DEFAULTS, **config}
    spec = require_trunk(spec, settings)
    require_ratio(settings)
    return ViT(spec, **settings)


def require_ratio(settings: dict[str, Any]) -> None:
    """Raise WxlabError unless the hidden layers have at least one number."""
    ratio = settings["mlp_ratio"]
    if not is_number(ratio) or settings["embed_dim"] * ratio < 1:
        raise WxlabError(f"mlp_ratio={ratio!r} must be a positive number; the hidden layer has mlp_ratio x embed_dim numbers")


ENTRY = Entry(
    name="vit",
    title="Vision transformer on the trunk of VA-MoE, without experts",
    presets={
        # the size of the paper's table; its 307 M are 4 M fewer, and how they are made up is not published
        name: {**PRESETS[name], "mlp_ratio": 4.0}
        for name in ("tiny", "demo", "small", "paper")
    },
    build=build,
    recipe=LearnedVariances,
    citation="Dosovitskiy et al. 2021, arXiv:2010.11929; as in Chen et al. 2025, arXiv:2412.02503",
    options=frozenset(DEFAULTS),
)
