"""The parts of Mosaic's U-Net on the mesh. Submodules bear the names of the published checkpoints; no layer has a bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.healpix_mesh import centres, pixels, radians, unit_vectors
from wxlab.models.mosaic import attention
from wxlab.models.mosaic.attention import ScoreHeads
from wxlab.nn.attention_tap import AttentionTap

AttentionKind = Literal["block_sparse", "dense"]
Order = Literal["nested", "shuffled"]
BRANCHES = ("local", "compression", "selection")
FFN_TOKENS = 4096  # at a time without gradients: the hidden layer is the largest tensor of the network
THETA = 10000.0


@dataclass(frozen=True)
class Level:
    """Sizes of one level of the mesh: width, query and key heads, window of local attention, block and count of sparse attention."""

    nside: int
    width: int
    heads: int
    kv_heads: int
    window: int
    block: int
    count: int

    @property
    def tokens(self) -> int:
        return pixels(self.nside)

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share: see ``Mosaic``."""

    attention: AttentionKind
    selection_heads: ScoreHeads
    order: Order
    noise_dim: int
    mlp_ratio: float
    affine: bool


class RMSNorm(nn.Module):
    """``x / sqrt(mean x² + ε)`` over the last axis, ε the machine epsilon of the dtype, which is float32 at least."""

    def __init__(self, width: int, affine: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, (self.width,), self.weight).to(x.dtype)


class Rotary(nn.Module):
    """Turns of a head's pairs of channels at each pixel: longitude in the first half of the head, latitude in the second.

    Angles are ``position / θ^(2i / (d/2))`` with positions in radians, so longitude is seamless at 0°/360° for the first pair only.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, nside: int, head_width: int) -> None:
        super().__init__()
        frequencies = 1.0 / THETA ** (torch.arange(0, head_width // 2, 2, device="cpu").float() / (head_width // 2))
        angles = (radians(centres(nside)).unsqueeze(-1) * frequencies).flatten(1)  # [N, d / 2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, heads, d], pairs side by side -> the same shape and dtype."""
        a, b = x.to(self.cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)  # [B, N, heads, d / 2]
        cos, sin = self.cos.unsqueeze(1), self.sin.unsqueeze(1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)


class MeshAttention(nn.Module):
    """Attention of one level: rotary positions, then ``out = W_o (g_0 local + g_1 compression + g_2 selection)``.

    The gates g are a softmax over the three branches for each token and head. Block means are taken after the rotation.
    sparse: False leaves the local branch alone, without gates.  order ``shuffled``: windows and blocks of tokens from anywhere.
    """

    def __init__(self, level: Level, style: Style, sparse: bool) -> None:
        super().__init__()
        self.level, self.style = level, style
        width, keys = level.width, level.kv_heads * level.head_width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, keys, bias=False)
        self.to_v = nn.Linear(width, keys, bias=False)
        self.to_o = nn.Linear(width, width, bias=False)
        self.to_strategy_combine_mlp = nn.Linear(width, 3 * level.heads, bias=False) if sparse else None
        if style.attention == "dense":
            self.dense_tap = AttentionTap(("head", "query", "key"), f"dense_nside{level.nside}")
        else:
            self.local_tap = AttentionTap(("window", "head", "query", "key"), f"local_nside{level.nside}")
        if sparse:
            blocks = ("head", "query_block", "key_block")
            self.gate_tap = AttentionTap(("token", "head", "branch"), f"gates_nside{level.nside}")
            self.compression_tap = AttentionTap(blocks, f"compression_nside{level.nside}")
            self.selection_tap = AttentionTap(blocks, f"selection_nside{level.nside}")
            self.chosen_tap = AttentionTap(("key_head", "query_block", "rank"), f"chosen_nside{level.nside}", into="key_block")
        if style.order == "shuffled":
            order = torch.randperm(level.tokens, generator=torch.Generator().manual_seed(0), device="cpu")
            self.register_buffer("order", order, persistent=False)
            self.register_buffer("inverse", order.argsort(), persistent=False)

    def forward(self, u: Tensor, rotary: Rotary) -> Tensor:
        """u [B, N, D] -> [B, N, D]."""
        d = self.level.head_width
        q, k, v = (project(u).unflatten(-1, (-1, d)) for project in (self.to_q, self.to_k, self.to_v))  # [B, N, heads, d]
        q, k, v = (x.transpose(1, 2) for x in (rotary(q), rotary(k), v))
        if self.style.attention == "dense":
            out = attention.dense_attention(q, k, v)
            self.dense_tap.show(q, k)
        elif self.style.order == "shuffled":
            order, inverse = self.get_buffer("order"), self.get_buffer("inverse")
            out = self._branches(u[:, order], *(x[:, :, order] for x in (q, k, v)))[:, :, inverse]
        else:
            out = self._branches(u, q, k, v)
        return self.to_o(out.transpose(1, 2).flatten(2))

    def _branches(self, u: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """u [B, N, D], q [B, H, N, d], k, v [B, K, N, d] -> [B, H, N, d]."""
        level, heads = self.level, self.style.selection_heads
        if self.local_tap.read:
            rows, keys = (x.unflatten(2, (-1, level.window)).transpose(1, 2).flatten(0, 1) for x in (q, k))  # [B windows, heads, window, d]
            self.local_tap.show(rows, keys, (-1, level.tokens // level.window))
        if self.to_strategy_combine_mlp is None:
            return attention.local_attention(q, k, v, level.window)
        logits = self.to_strategy_combine_mlp(u).unflatten(-1, (-1, 3))  # [B, N, H, 3]
        wide = torch.promote_types(logits.dtype, torch.float32)
        gates = self.gate_tap(logits.softmax(-1, dtype=wide)).to(q.dtype)
        self._show(q, k)
        return attention.block_sparse_attention(q, k, v, gates, window=level.window, block=level.block, count=level.count, heads=heads)

    @torch.no_grad()
    def _show(self, q: Tensor, k: Tensor) -> None:
        """What the compression and the selection branch look at, formed only where it is read."""
        if not (self.compression_tap.read or self.selection_tap.read or self.chosen_tap.read):
            return
        q_means, k_means = (attention.block_means(x, self.level.block) for x in (q, k))
        self.compression_tap.show(q_means, k_means)
        if self.selection_tap.read or self.chosen_tap.read:
            scores = attention.selection_scores(q_means, k_means, self.style.selection_heads)
            chosen = self.chosen_tap(attention.choose_blocks(scores, self.level.count))
            if self.selection_tap.read:
                self.selection_tap(attention.selection_weights(q, k, chosen, self.level.block))


class FeedForward(nn.Module):
    """SwiGLU with functional noise: ``W_2 (SiLU(x_1 + W_n z) x_3)`` with ``[x_1 | x_3] = W_13 u``; z is one vector per member."""

    def __init__(self, width: int, style: Style) -> None:
        super().__init__()
        hidden = int(style.mlp_ratio * width)
        self.w13 = nn.Linear(width, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.noise_bias = nn.Linear(style.noise_dim, hidden, bias=False) if style.noise_dim else None

    def forward(self, u: Tensor, z: Tensor | None) -> Tensor:
        """u [B, N, D], z [B, noise] -> [B, N, D]."""
        shift = self.noise_bias(z).unsqueeze(1) if self.noise_bias is not None else None
        parts = (u,) if torch.is_grad_enabled() else u.split(FFN_TOKENS, dim=1)
        out = [self._part(part, shift) for part in parts]
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)

    def _part(self, u: Tensor, shift: Tensor | None) -> Tensor:
        gate, linear = self.w13(u).chunk(2, dim=-1)
        return self.w2(F.silu(gate if shift is None else gate + shift) * linear)


class Block(nn.Module):
    """``h = x + Attn(RMSNorm(x))``, ``out = h + FFN(RMSNorm(h))``."""

    def __init__(self, level: Level, style: Style, sparse: bool) -> None:
        super().__init__()
        self.norm1 = RMSNorm(level.width, style.affine)
        self.attention = MeshAttention(level, style, sparse and style.attention == "block_sparse")
        self.norm2 = RMSNorm(level.width, style.affine)
        self.ffn = FeedForward(level.width, style)

    def forward(self, x: Tensor, z: Tensor | None, rotary: Rotary) -> Tensor:
        """x [B, N, D], z [B, noise] -> [B, N, D]."""
        x = x + self.attention(self.norm1(x), rotary)
        return x + self.ffn(self.norm2(x), z)


class Stage(nn.Module):
    """Blocks of one level.  sparse_every: blocks 0, s, 2s, ... have all three branches, the others (all for s <= 0) local attention."""

    def __init__(self, level: Level, depth: int, style: Style, sparse_every: int, rotary: Rotary) -> None:
        super().__init__()
        sparse = [sparse_every > 0 and index % sparse_every == 0 for index in range(depth)]
        self.blocks = nn.ModuleList(Block(level, style, each) for each in sparse)
        self.rotary = rotary

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, z, self.rotary)
        return x


def standardised(columns: Tensor) -> Tensor:
    """Columns [N, C] with mean 0 and (sample) standard deviation 1."""
    return (columns - columns.mean(0)) / (columns.std(0) + 1e-6)


def child_offsets(coarse: int, fine: int) -> Tensor:
    """Where the children of each coarse pixel lie, seen from its centre: float32 [N, 3 f], child by child, standardised."""
    children = unit_vectors(centres(fine)).unflatten(0, (pixels(coarse), -1))
    return standardised((children - unit_vectors(centres(coarse)).unsqueeze(1)).flatten(1))


class Down(nn.Module):
    """From f = (N/N')² children, which are consecutive, to their parent: ``RMSNorm(W_x [children] + W_p ρ)``."""

    rel_pos: Tensor

    def __init__(self, fine: Level, coarse: Level, affine: bool) -> None:
        super().__init__()
        self.children_each = fine.tokens // coarse.tokens
        self.proj_x = nn.Linear(self.children_each * fine.width, coarse.width, bias=False)
        self.proj_pos = nn.Linear(3 * self.children_each, coarse.width, bias=False)
        self.norm = RMSNorm(coarse.width, affine)
        self.register_buffer("rel_pos", child_offsets(coarse.nside, fine.nside), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N / f, D']."""
        children = x.unflatten(1, (-1, self.children_each)).flatten(2)
        return self.norm(self.proj_x(children) + self.proj_pos(self.rel_pos))


class Up(nn.Module):
    """From a parent to its children, and to what was there before the way down: ``RMSNorm(reshape(W_x x + W_p ρ) + skip)``."""

    rel_pos: Tensor

    def __init__(self, coarse: Level, fine: Level, affine: bool) -> None:
        super().__init__()
        self.children_each = fine.tokens // coarse.tokens
        self.proj_x = nn.Linear(coarse.width, self.children_each * fine.width, bias=False)
        self.proj_pos = nn.Linear(3 * self.children_each, self.children_each * fine.width, bias=False)
        self.norm = RMSNorm(fine.width, affine)
        self.register_buffer("rel_pos", child_offsets(coarse.nside, fine.nside), persistent=False)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """x [B, N, D], skip [B, f N, D'] -> [B, f N, D']."""
        children = self.proj_x(x) + self.proj_pos(self.rel_pos)  # [B, N, f D']
        fine = children.unflatten(-1, (self.children_each, -1)).flatten(1, 2)
        return self.norm(fine if skip is None else fine + skip)


def initialise(linears: Sequence[nn.Linear], small: Sequence[nn.Linear]) -> None:
    """``N(0, σ²)`` with ``σ = min(1, √(out/in)) / √in``, and 0.01 for the ``small`` ones."""
    for layer in linears:
        nn.init.normal_(layer.weight, std=min(1.0, math.sqrt(layer.out_features / layer.in_features)) / math.sqrt(layer.in_features))
    for layer in small:
        nn.init.normal_(layer.weight, std=0.01)
