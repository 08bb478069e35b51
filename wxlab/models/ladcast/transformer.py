"""LaDCast's latent transformer (Zhuang and Duraisamy 2025, arXiv:2506.09193): F(noisy future latents; noise level, known latents, time).

Known latents are a second stream of tokens: refined, joined in the attention of the dual blocks, and one sequence with the others in the
single blocks. B samples, C latent channels, T frames, l known frames, N tokens of width D = heads x dim.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.forcings import year_fraction
from wxlab.models.base import Spec
from wxlab.models.ladcast.rope import HarmonicPlaces, LearnedPlaces, rotary, rotate
from wxlab.nn.attention_tap import AttentionTap

FEATURES = 256  # of the sinusoids of noise level and year
_NEAR_BIAS, _NEAR_SCALE = 3.0, 2.0  # several times the part of queries and keys that tokens tell apart; sharper than scale 1
_EPS = 1e-7  # of every norm but the two before attention, which have 1e-6 (as in the published code)


def frequencies(device: torch.device) -> Tensor:
    """128 numbers falling geometrically from 1 to nearly 1e-4."""
    half = FEATURES // 2
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=device) / half)


def noise_features(c_noise: Tensor) -> Tensor:
    """``[cos(c f_k), sin(c f_k)]``: [B] -> [B, 256]."""
    angles = c_noise[:, None] * frequencies(c_noise.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def year_features(time: Tensor) -> Tensor:
    """``[sin(2 pi y k) f_k, cos(2 pi y k) f_k]``, k = 1..128, y the part of the year that has passed: int64 seconds [B] -> [B, 256]."""
    y = torch.from_numpy(year_fraction(time.cpu().numpy())).float().to(time.device)
    angles = 2 * torch.pi * y[:, None] * torch.arange(1, FEATURES // 2 + 1, dtype=torch.float32, device=time.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1) * frequencies(time.device).repeat(2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``LayerNorm(x) (1 + scale) + shift``: x [B, N, D], shift and scale [B, 1, D]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


def parts_of(modulation: Tensor, count: int) -> tuple[Tensor, ...]:
    """[B, count D] -> count times [B, 1, D]."""
    return modulation.unsqueeze(1).chunk(count, dim=-1)


class MLP(nn.Module):
    """``L2(SiLU(L1 x))``."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Embedding(nn.Module):
    """What a noise level and the mean of some tokens come to: ``MLP(features(c)) + MLP(mean)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.noise = MLP(FEATURES, width)
        self.pooled = MLP(width, width)

    def forward(self, c_noise: Tensor, tokens: Tensor) -> Tensor:
        """c_noise [B], tokens [B, N, D] -> [B, D]."""
        return self.noise(noise_features(c_noise).to(tokens.dtype)) + self.pooled(tokens.mean(1))


class Heads(nn.Module):
    """Queries and keys: RMSNorm over each head with learned weights, then the rotation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_q = nn.RMSNorm(dim, eps=_EPS)
        self.norm_k = nn.RMSNorm(dim, eps=_EPS)

    def q(self, x: Tensor, table: Tensor | None) -> Tensor:
        """x [B, N, D] -> [B, N, heads, dim]."""
        return self._turned(self.norm_q, x, table)

    def k(self, x: Tensor, table: Tensor | None) -> Tensor:
        return self._turned(self.norm_k, x, table)

    def v(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.norm_q.normalized_shape[0]))

    def _turned(self, norm: nn.RMSNorm, x: Tensor, table: Tensor | None) -> Tensor:
        out = norm(self.v(x).to(norm.weight.dtype))
        return out if table is None else rotate(out, table)


class Attention(nn.Module):
    """``softmax(Q K^T / sqrt(dim)) V``: q, k, v [B, N, heads, dim] -> [B, N, D]; ``tap`` sees the weights when they are read."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.tap = AttentionTap(("head", "query", "key"), kind)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
        self.tap.show(q, k)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class RefinerBlock(nn.Module):
    """Attention among known tokens without output projection, then an MLP; both gated by the noise level. The MLP ratio is always 4."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.gates = nn.Linear(width, 2 * width)
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.heads, self.attention = Heads(dim), Attention("refiner")
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, e: Tensor, emb: Tensor, table: Tensor) -> Tensor:
        gate_a, gate_m = parts_of(self.gates(F.silu(emb)), 2)
        q, k, v = self.qkv(self.norm1(e)).chunk(3, dim=-1)
        e = torch.addcmul(e, self.attention(self.heads.q(q, table), self.heads.k(k, table), self.heads.v(v)), gate_a)
        return torch.addcmul(e, self.down(F.silu(self.up(self.norm2(e)))), gate_m)


class Refiner(nn.Module):
    """The known tokens, among themselves and with the noise level."""

    def __init__(self, width: int, dim: int, layers: int) -> None:
        super().__init__()
        self.embed = Embedding(width)
        self.proj_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(RefinerBlock(width, dim) for _ in range(layers))

    def forward(self, e: Tensor, c_noise: Tensor, table: Tensor) -> Tensor:
        """e [B, N, D] -> the same shape."""
        emb = self.embed(c_noise, e)
        e = self.proj_in(e)
        for block in self.blocks:
            e = block(e, emb, table)
        return e


class Stream(nn.Module):
    """One stream's own weights in a dual block."""

    def __init__(self, width: int, dim: int, ratio: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.heads = Heads(dim)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, int(ratio * width))
        self.down = nn.Linear(int(ratio * width), width)

    def project(self, x: Tensor, shift: Tensor, scale: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(modulated(x, shift, scale, 1e-6)).chunk(3, dim=-1)
        return self.heads.q(q, table), self.heads.k(k, table), self.heads.v(v)

    def mlp(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        inside = F.gelu(self.up(modulated(x, shift, scale, _EPS)), approximate="tanh")
        return torch.addcmul(x, self.down(inside), gate)


class DualBlock(nn.Module):
    """Output and known tokens with weights of their own, joined in the attention. Known tokens are not rotated here."""

    def __init__(self, width: int, dim: int, ratio: float) -> None:
        super().__init__()
        self.output, self.known = Stream(width, dim, ratio), Stream(width, dim, ratio)
        self.attention = Attention("dual")

    def forward(self, x: Tensor, e: Tensor, emb: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, N, D], e [B, n, D], emb (after SiLU) [B, D] -> x, e."""
        mine, theirs = (parts_of(stream.modulation(emb), 6) for stream in (self.output, self.known))
        shift, scale = mine[:2]
        known_shift, known_scale = theirs[:2]
        pairs = zip(self.output.project(x, shift, scale, table), self.known.project(e, known_shift, known_scale, None), strict=True)
        joint = self.attention(*(torch.cat(pair, dim=1) for pair in pairs))
        x = torch.addcmul(x, self.output.out(joint[:, : x.shape[1]]), mine[2])
        e = torch.addcmul(e, self.known.out(joint[:, x.shape[1] :]), theirs[2])
        return self.output.mlp(x, *mine[3:]), self.known.mlp(e, *theirs[3:])


class SingleBlock(nn.Module):
    """All tokens as one sequence: attention (without output projection) and MLP side by side, from one normalised input.

    ``into`` makes keys, values, queries and the inside of the MLP in one product.
    """

    def __init__(self, width: int, dim: int, ratio: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.into = nn.Linear(width, 3 * width + int(ratio * width))
        self.heads, self.attention = Heads(dim), Attention("single")
        self.out = nn.Linear(width + int(ratio * width), width)

    def forward(self, z: Tensor, emb: Tensor, table: Tensor, wanted: int) -> Tensor:
        """z [B, N, D] -> its first ``wanted`` tokens; what no one will read is not computed."""
        width = z.shape[-1]
        shift, scale, gate = parts_of(self.modulation(emb), 3)
        n = modulated(z, shift, scale, 1e-6)
        if wanted == z.shape[1]:
            k, v, q, inside = self.into(n).split([width, width, width, self.into.out_features - 3 * width], dim=-1)
        else:
            weight, bias, rest = self.into.weight, self.into.bias, 2 * width
            k, v = F.linear(n, weight[:rest], bias[:rest]).chunk(2, dim=-1)
            q, inside = F.linear(n[:, :wanted], weight[rest:], bias[rest:]).split([width, self.into.out_features - 3 * width], dim=-1)
        a = self.attention(self.heads.q(q, table[:wanted]), self.heads.k(k, table), self.heads.v(v))
        out = self.out(torch.cat([a, F.gelu(inside, approximate="tanh")], dim=-1))
        return torch.addcmul(z[:, :wanted], gate, out)


@torch.no_grad()
def begin_near(network: nn.Module) -> None:
    """Let queries and keys be nearly alike at first, so that their product falls with the distance that the rotation tells."""
    for block in network.modules():
        if isinstance(block, (RefinerBlock, Stream)):
            query, key, _ = block.qkv.bias.chunk(3)
        elif isinstance(block, SingleBlock):
            key, _, query = block.into.bias[: 3 * block.modulation.in_features].chunk(3)
        else:
            continue
        for bias, norm in ((query, block.heads.norm_q), (key, block.heads.norm_k)):
            bias.fill_(_NEAR_BIAS)
            norm.weight.fill_(_NEAR_SCALE)


class LatentTransformer(nn.Module):
    """The network F itself; ``config`` as in ``wxlab.models.ladcast.network.Ladcast``."""

    def __init__(self, spec: Spec, config: dict[str, Any]) -> None:
        super().__init__()
        dim, self.patch, self.patch_time = config["head_dim"], config["patch"], config["patch_time"]
        width, channels = config["heads"] * dim, len(spec.channels)
        cell = channels * self.patch_time * self.patch**2
        self.channels = channels
        self.embed_output = nn.Linear(cell, width)
        self.embed_known = nn.Linear(cell, width)
        self.refiner = Refiner(width, dim, config["refiner"])
        self.embed = Embedding(width)
        self.year = MLP(FEATURES, 2 * width) if config["year"] else None
        self.dual = nn.ModuleList(DualBlock(width, dim, config["mlp_ratio"]) for _ in range(config["dual"]))
        self.single = nn.ModuleList(SingleBlock(width, dim, config["mlp_ratio"]) for _ in range(config["single"]))
        self.modulation = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, cell)
        self.rotary = rotary(config["position"], config["theta"], config["axes"], spec.grid, config["latitude_factor"])
        self.places = self._places(spec, config, width)
        if config["start"] == "near":
            begin_near(self)

    def _places(self, spec: Spec, config: dict[str, Any], width: int) -> nn.Module | None:
        """What is added to the tokens for their place; None where the rotation says it."""
        rows, columns = (np.reshape(axis, (-1, self.patch)).mean(1) for axis in (spec.grid.y, spec.grid.x))
        if config["position"] == "learned":
            return LearnedPlaces(len(rows), len(columns), width)
        return HarmonicPlaces(rows.tolist(), columns.tolist(), width) if config["position"] == "spherical_harmonics" else None

    def tokens(self, x: Tensor) -> Tensor:
        """x [B, C, T, h, w] -> patches [B, N, C pt p p], in the order (T, h, w)."""
        p, pt = self.patch, self.patch_time
        _, channels, frames, rows, columns = x.shape
        if channels != self.channels:
            raise WxlabError(f"the latents have {channels} channels, and this network reads {self.channels}; give those of its autoencoder")
        if frames % pt or rows % p or columns % p:
            raise WxlabError(f"{frames} frames of {rows}x{columns} latent cells do not divide into patches of {pt} x {p} x {p}")
        cut = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, pt))  # [B, C, t, pt, y, p, x, p]
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def latents(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of ``tokens``; shape: [B, C, T, h, w]."""
        p, pt = self.patch, self.patch_time
        cut = tokens.view(shape[0], shape[2] // pt, shape[3] // p, shape[4] // p, self.channels, pt, p, p)
        return cut.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(shape)

    def forward(self, noisy: Tensor, known: Tensor, c_noise: Tensor, time: Tensor | None) -> Tensor:
        """noisy [B, C, T, h, w], known [B, C, l, h, w], c_noise [B] or [1], time int64 [B] or [1] -> [B, C, T, h, w]."""
        batch, rows, columns = len(noisy), noisy.shape[3] // self.patch, noisy.shape[4] // self.patch
        c_noise = c_noise.expand(batch)
        x, e = self.embed_output(self.tokens(noisy)), self.embed_known(self.tokens(known))  # [B, N, D], [B, n, D]
        frames, past = noisy.shape[2] // self.patch_time, known.shape[2] // self.patch_time
        table = self.rotary.table(1, frames, rows, columns, noisy.device)
        known_table = self.rotary.table(1 - past, past, rows, columns, noisy.device)
        if self.places is not None:
            places = self.places()
            x, e = x + places.repeat(frames, 1), e + places.repeat(past, 1)
        e = self.refiner(e, c_noise, known_table)
        emb = self.embed(c_noise, e)
        if self.year is not None and time is not None:
            scale, shift = self.year(year_features(time).to(emb.dtype)).chunk(2, dim=-1)
            emb = torch.addcmul(shift, emb, 1 + scale)
        emb = F.silu(emb)
        for block in self.dual:
            x, e = block(x, e, emb, table)
        outputs, z, both = x.shape[1], torch.cat([x, e], dim=1), torch.cat([table, known_table])
        for i, block in enumerate(self.single):
            z = block(z, emb, both, outputs if i == len(self.single) - 1 else z.shape[1])
        scale, shift = parts_of(self.modulation(emb), 2)
        return self.latents(self.proj_out(modulated(z, shift, scale, _EPS)), noisy.shape)
