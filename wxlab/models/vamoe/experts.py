"""The VA-MoE layer: experts of variables, each sees the channels of a token that its gate picks.

n experts, E channels of a token, k = int(E / topk) of them for each expert.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.models.vamoe.trunk import EPS
from wxlab.nn.attention_tap import AttentionTap


class SwiGLU(nn.Module):
    """``down(SiLU(gate(u)) * up(u))`` without biases."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(inputs, hidden, bias=False)
        self.up_proj = nn.Linear(inputs, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, outputs, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """u [..., inputs] -> [..., outputs]."""
        return self.down_proj(F.silu(self.gate_proj(u)) * self.up_proj(u))


class VariableExperts(nn.Module):
    """Every expert i sees every token x, but of its E channels only the k that its gate ranks highest, in that order.

    ``P = softmax_E(W_pos z + b_pos)``, ``g = W_g (x P_i) + b_g``, ``j = top-k of g``, ``a = softmax(g_j)``,
    ``y = SwiGLU_shared(x) + sum_i SwiGLU_i(gain x_j a)``,  ``out = W_b SiLU(W_a LN(y) + b_a) + b_b``.
    z is the encoded index of the experts' variables; the gate's weights serve all experts. There is no routing of tokens and no noise.
    Differs from the paper: the softmax follows the choice of channels, the gate is shared, experts are added and a network follows.
    Experts are run one after the other: their products stacked take no less time (``benchmarks/vamoe.py``) and more memory.
    """

    def __init__(self, width: int, experts: int, chosen: int, gain: float) -> None:
        super().__init__()
        self.chosen, self.gain = chosen, gain
        self.PosEmbedder = nn.Linear(width, width)
        self.GateEmbedder = nn.Linear(width, width)
        self.experts = nn.ModuleList(SwiGLU(chosen, width, width) for _ in range(experts))
        self.shared_experts = SwiGLU(width, 2 * width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.weight_tap = AttentionTap(("expert", "token", "rank"), "expert_weights")
        self.channel_tap = AttentionTap(("expert", "token", "rank"), "expert_channels", into="feature")

    def emphasis(self, z: Tensor) -> Tensor:
        """P: how much the gate of each expert looks at each channel, [n, E] of the encoded index z [n, E]; rows sum to 1."""
        return self.PosEmbedder(z).softmax(-1)

    def choose(self, x: Tensor, emphasis: Tensor) -> tuple[Tensor, Tensor]:
        """What one expert picks of x [..., E] by its row of P [E]: the channels' weights and their positions, both [..., k], highest first.

        The emphasis is multiplied into the gate's weights, which gives the gate of ``x * P_i``. Never in less than float32: neighbours in
        rank differ by as little as 1e-6.
        """
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = at_least_float32(self.GateEmbedder.weight), at_least_float32(self.GateEmbedder.bias)
            g = F.linear(at_least_float32(x), weight * emphasis, bias)  # [..., E]
            channels = highest(g.detach(), self.chosen)
            return g.gather(-1, channels).softmax(-1), channels

    def forward(self, x: Tensor, emphasis: Tensor) -> Tensor:
        """x [B, N, E], emphasis P [n, E] -> [B, N, E]."""
        tokens = x.flatten(0, 1)  # [B N, E]: products of matrices cost torch less than those of stacks of them
        y = self.shared_experts(tokens)
        taken: dict[AttentionTap, list[Tensor]] = {tap: [] for tap in (self.weight_tap, self.channel_tap) if tap.read}
        for expert, row in zip(self.experts, emphasis.unbind(), strict=True):
            weights, channels = self.choose(tokens, row)
            for tap, values in taken.items():
                values.append(channels if tap.into else weights.detach())
            seen = (tokens.gather(-1, channels) * weights).to(tokens.dtype)  # [B N, k]
            y += expert(seen if self.gain == 1 else seen * self.gain)
        for tap, values in taken.items():
            tap(torch.stack(values).unflatten(1, x.shape[:2]).transpose(0, 1))  # [B, n, N, k]
        return self.mlp(self.norm(y)).view_as(x)


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def highest(g: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` highest values of the last axis, highest first; among equals the first one.

    torch sorts values and positions side by side, which takes several times as long on a CPU as sorting one integer of both.
    """
    if g.device.type != "cpu" or g.dtype != torch.float32:
        return g.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    bits = (0.0 - g).numpy().view(np.int32)  # without negative zero, which would rank beside zero
    bits ^= (bits >> 31) & 0x7FFFFFFF  # as an integer now in the order of the value
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(g.shape[-1])
    keys.sort(axis=-1)
    return torch.from_numpy(keys[..., :count] & 0xFFFFFFFF)
