"""A mixture of experts that routes tokens, on the trunk of VA-MoE: noisy top-k gates and a loss that balances the experts' loads."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.models import Entry
from wxlab.models.base import Spec
from wxlab.models.baselines.vit import DEFAULTS as VIT
from wxlab.models.baselines.vit import MLP, require_ratio
from wxlab.models.vamoe import PRESETS, LearnedVariances
from wxlab.models.vamoe.experts import at_least_float32
from wxlab.models.vamoe.trunk import Trunk, make_blocks, require_trunk

DEFAULTS: dict[str, Any] = {**VIT, "experts": 5, "chosen": 2}
LEAST_NOISE = 0.01


class NoisyTopK(nn.Module):
    """Each token goes to the k of n experts with the highest gates, and the experts' answers are added with the gates as weights.

    ``clean = x W_g``;  training: ``H = clean + eps sd``, ``sd = softplus(x W_n) + 0.01``, eps standard normal;  evaluation: ``H = clean``.
    ``gates = softmax of the k largest H, 0 elsewhere``;  ``y = sum_i gate_i MLP_i(x)``.
    ``balance = 0.01 (cv2(importance) + cv2(load))``, cv2 = unbiased variance / (mean^2 + 1e-10), importance = sums of gates over tokens,
    load = expected number of tokens of each expert: in training ``sum Phi((clean - threshold) / sd)``, the threshold being the largest
    H that is not chosen, where the entry is above it, else the smallest that is chosen; in evaluation the number of gates above 0.
    Reference: Shazeer et al. 2017, arXiv:1701.06538.
    """

    def __init__(self, width: int, experts: int, chosen: int, hidden: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.experts = nn.ModuleList(MLP(width, hidden) for _ in range(experts))
        self.w_gate = nn.Parameter(nn.init.trunc_normal_(torch.empty(width, experts), std=0.02))
        self.w_noise = nn.Parameter(nn.init.trunc_normal_(torch.empty(width, experts), std=0.02))

    def gates(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gates [T, n] and load [n] of tokens x [T, E]; noise [T, n] is eps, None in evaluation."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            clean = x @ self.w_gate.to(x)
            spread = F.softplus(x @ self.w_noise.to(x)) + LEAST_NOISE
            noisy = clean if noise is None else clean + noise.to(clean) * spread
            experts = noisy.shape[-1]
            top = noisy.topk(min(self.chosen + 1, experts))
            best = top.indices[:, : self.chosen]
            gates = torch.zeros_like(noisy).scatter(-1, best, top.values[:, : self.chosen].softmax(-1))
            if noise is None or self.chosen == experts:
                return gates, (gates > 0).sum(0).to(gates)
            inside, outside = top.values[:, self.chosen - 1 : self.chosen], top.values[:, self.chosen :]
            threshold = torch.where(noisy > outside, outside, inside)
            chance = 0.5 * (1 + torch.erf((clean - threshold) / (spread * math.sqrt(2))))
            return gates, chance.sum(0)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens x [T, E] -> y [T, E] and the loss that balances the experts, a scalar."""
        gates, load = self.gates(x, noise)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            (mine,) = gates[:, i].nonzero(as_tuple=True)
            answer = expert(x[mine]) * gates[mine, i, None]
            y = y.index_add(0, mine, answer.to(y))
        return y, 0.01 * (squared_variation(gates.sum(0)) + squared_variation(load))


def squared_variation(x: Tensor) -> Tensor:
    """Squared coefficient of variation of x [n]: unbiased variance / (mean^2 + 1e-10); 0 of a single number."""
    return x.var() / (x.mean().square() + 1e-10) if len(x) > 1 else x.new_zeros(())


class TopKMoE(Trunk):
    """VA-MoE's encoder, attention and decoder with ``experts`` networks of mlp_ratio x embed_dim, of which each token sees ``chosen``."""

    def __init__(
        self,
        spec: Spec,
        *,
        embed_dim: int,
        depth: int,
        heads: int,
        patch: int,
        window: int,
        interval: int,
        mlp_ratio: float,
        experts: int,
        chosen: int,
    ) -> None:
        super().__init__(
            spec, embed_dim=embed_dim, patch=patch, depth=depth, heads=heads, window=window, interval=interval, mlp_ratio=mlp_ratio,
            experts=experts, chosen=chosen,
        )  # fmt: skip
        layer = partial(NoisyTopK, embed_dim, experts, chosen, int(embed_dim * mlp_ratio))
        self.blocks = make_blocks(embed_dim, depth, heads, window, interval, layer)
        self.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W], normalised -> the next state and the reconstruction, both [B, C, H, W]; the gates are without noise."""
        out, recons, _ = self.balanced(x, None)
        return out, recons

    def balanced(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Also the mean of the blocks' balancing losses. With a generator the gates are noisy, as in training."""
        first = t = self.tokens(x)  # [B, N, E]
        losses = []
        for block in self.blocks:
            t = block.attend(t, self.shape)
            tokens = block.norm2(t).flatten(0, 1)
            shape = len(tokens), len(block.moe.experts)
            noise = None if generator is None else torch.randn(shape, generator=generator, device=generator.device)
            y, loss = block.moe(tokens, noise)
            t = t + y.view_as(t)
            losses.append(loss)
        return self.fields(t), self.fields(first), torch.stack(losses).mean()


class Balanced(LearnedVariances):
    """The losses of VA-MoE and the mean of the blocks' balancing losses."""

    def run(self, model: Trunk, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        out, recons, balance = cast(TopKMoE, model).balanced(x, generator)
        return out, recons, {"balance": balance}


def build(spec: Spec, **config: Any) -> TopKMoE:
    """A TopKMoE of a Spec, every size checked."""
    settings: dict[str, Any] = {**DEFAULTS, **config}
    spec = require_trunk(spec, settings, ("experts", "chosen"))
    require_ratio(settings)
    if settings["chosen"] > settings["experts"]:
        raise WxlabError(f"chosen={settings['chosen']} of {settings['experts']} experts are more than there are; choose fewer")
    return TopKMoE(spec, **settings)


ENTRY = Entry(
    name="topk_moe",
    title="Transformer with routed experts (noisy top-k gates) on the trunk of VA-MoE",
    presets={
        # five experts of these widths come within 4 M of the sizes in the paper's table, 1113 M and (light) 609 M
        "tiny": {**PRESETS["tiny"], "mlp_ratio": 2.0, "experts": 3},
        "demo": {**PRESETS["demo"], "mlp_ratio": 2.0},
        "small": {**PRESETS["small"], "mlp_ratio": 2.0},
        "paper": {**PRESETS["paper"], "mlp_ratio": 4.0},
        "paper_light": {**PRESETS["paper"], "mlp_ratio": 2.0},
    },
    build=build,
    recipe=Balanced,
    citation="Shazeer et al. 2017, arXiv:1701.06538; as in Chen et al. 2025, arXiv:2412.02503",
    options=frozenset(DEFAULTS),
)
