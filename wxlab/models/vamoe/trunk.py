"""What VA-MoE and the networks that it is compared with share: patches in, window and global attention, patches out.

B samples, C channels on a grid [H, W], N = h w tokens of width E, h = H / p, w = W / p; A heads.
Submodules bear the names of the authors' checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.grids import coarse_points
from wxlab.models.base import Batch, Coordinates, Model, Spec
from wxlab.nn.attention_tap import AttentionTap

if TYPE_CHECKING:
    from wxlab.rollout import Streams

EPS = 1e-6  # of every LayerNorm


def init_linear(module: nn.Module) -> None:
    """Weights from a normal of 0.02 cut at 2, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """``softmax(Q K^T / sqrt(E / A)) V`` among all tokens, or inside windows of ``window`` x ``window`` tokens.

    Windows do not overlap. At the right and the bottom the tokens are filled up with zeros to whole windows; the filling is attended to
    like any token (its Q, K and V are the biases), as in the authors' code. Longitude is not periodic.
    """

    def __init__(self, width: int, heads: int, window: int | None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        inside = ("head", "query", "key")
        self.tap = AttentionTap(("window", *inside), "local") if window else AttentionTap(inside, "global")

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """x [B, N, E], N = h w in rows -> [B, N, E]."""
        if not self.window:
            return self._attend(x.unsqueeze(1)).squeeze(1)
        batch, (h, w), side = len(x), shape, self.window
        x = x.unflatten(1, shape)
        if h % side or w % side:
            x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))  # [B, h', w', E]
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.view(batch, rows, side, columns, side, -1).transpose(2, 3)  # [B, rows, columns, side, side, E]
        x = self._attend(x.reshape(batch, rows * columns, side * side, -1))
        x = x.view(batch, rows, columns, side, side, -1).transpose(2, 3)
        return x.reshape(batch, rows * side, columns * side, -1)[:, :h, :w].flatten(1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """x [B, windows, n, E] -> the same shape."""
        q, k, v = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B windows, A, n, E / A]
        self.tap.show(q, k, tuple(x.shape[:2]) if self.window else ())
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2)).view(x.shape)


class Block(nn.Module):
    """``t' = t + Attn(LN(t))``;  ``t'' = t' + Moe(LN(t'))``. What ``moe`` is given beside the tokens, it knows itself."""

    def __init__(self, width: int, heads: int, window: int | None, moe: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, window)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.moe = moe

    def attend(self, t: Tensor, shape: tuple[int, int]) -> Tensor:
        """The first half: [B, N, E] -> [B, N, E]."""
        return t + self.attn(self.norm1(t), shape)


class LearnedVariance(nn.Module):
    """``l(a, b) = mean over B, C of (mean over H, W of (a - b)^2) / exp(s_c) + s_c`` with a learned log-variance s of each channel.

    It may become negative. Points outside ``mask`` [B, C, H, W] do not count.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logvar = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        error, logvar = (a - b).square(), self.logvar.flatten()
        if mask is None:
            return (error.mean((2, 3)) / logvar.exp() + logvar).mean()
        count = mask.sum((2, 3))  # [B, C]
        each = (error * mask).sum((2, 3)) / count.clamp(min=1) / logvar.exp() + logvar
        return (each * (count > 0)).sum() / (count > 0).sum().clamp(min=1)


class PatchEmbed(nn.Module):
    """The convolution that makes patches of p x p points tokens; all channels are mixed by it."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj: Any = nn.Conv2d(channels, width, patch, stride=patch)


class Trunk(Model):
    """Patch encoder, position embedding, decoder; the forecast is the next state itself. ``blocks`` are the subclass's.

    The decoder is applied twice: to the last block's tokens (the forecast) and to the encoder's (the reconstruction, for training).
    """

    blocks: Any  # ModuleList of Block

    def __init__(self, spec: Spec, *, embed_dim: int, patch: int, **config: Any) -> None:
        super().__init__(spec, embed_dim=embed_dim, patch=patch, **config)
        channels, (rows, columns) = len(spec.channels), spec.grid.shape
        self.patch, self.shape = patch, (rows // patch, columns // patch)
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.shape), embed_dim))
        self.loss_gen = LearnedVariance(channels)
        self.loss_recons = LearnedVariance(channels)
        self.patch_embed = PatchEmbed(channels, embed_dim, patch)

    def finish(self) -> None:
        """Add the decoder and draw the first weights; the subclass calls it last. The patch convolution keeps torch's own."""
        self.head: Any = nn.Linear(self.config["embed_dim"], self.patch**2 * len(self.spec.channels), bias=False)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_linear)

    def encoder_weight(self) -> Tensor:
        """[E, C, p, p]."""
        return self.patch_embed.proj.weight

    def decoder_weight(self) -> Tensor:
        """[p p C, E], row (p1 p + p2) C + c."""
        return self.head.weight

    def tokens(self, x: Tensor) -> Tensor:
        """Encoder: [B, C, H, W] -> [B, N, E]."""
        if x.shape[1:] != (len(self.spec.channels), *self.spec.grid.shape):
            wanted = [len(self.spec.channels), *self.spec.grid.shape]
            raise WxlabError(f"fields of shape {list(x.shape[1:])} were given, and the model reads [C, H, W] = {wanted}")
        t = F.conv2d(x, self.encoder_weight(), self.patch_embed.proj.bias, stride=self.patch)  # [B, E, h, w]
        return t.flatten(2).transpose(1, 2) + self.pos_embed

    def fields(self, t: Tensor) -> Tensor:
        """Decoder: [B, N, E] -> [B, C, H, W]."""
        (h, w), p = self.shape, self.patch
        patches = F.linear(t, self.decoder_weight()).view(len(t), h, w, p, p, -1)  # [B, h, w, p1, p2, C]
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(t), -1, h * p, w * p)

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        """Places of tokens and windows; what fills up a window has none (NaN)."""
        found: Coordinates = {}
        for name, values in coarse_points(self.spec.grid, self.shape).items():
            for axis in {"global": ("query", "key")}.get(kind, ("token",) if "token" in sizes else ()):
                found[f"{axis}_{name}"] = (axis,), values
            if kind == "local":
                side, (h, w) = math.isqrt(sizes["query"]), self.shape
                filled = np.pad(values.reshape(h, w), ((0, -h % side), (0, -w % side)), constant_values=np.nan)
                inside = filled.reshape(len(filled) // side, side, -1, side).swapaxes(1, 2).reshape(sizes["window"], -1)
                found[f"window_{name}"] = ("window",), np.nanmean(inside, axis=1)
                found |= {f"{axis}_{name}": (("window", axis), inside) for axis in ("query", "key")}
        return found

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        state, frames = batch.history[:, -1], []
        for _ in range(self.spec.horizon):
            state = self(state)[0]
            frames.append(state)
        return self.repeat_members(torch.stack(frames, 1), members)


def make_blocks(width: int, depth: int, heads: int, window: int, interval: int, layer: Callable[[], nn.Module]) -> nn.ModuleList:
    """``depth`` blocks with a ``layer`` of their own each; the last of every ``interval`` attends to all tokens."""
    return nn.ModuleList(Block(width, heads, None if (b + 1) % interval == 0 else window, layer()) for b in range(depth))


def require_trunk(spec: Spec, settings: Mapping[str, Any], sizes: Sequence[str] = ()) -> Spec:
    """The Spec of a trunk: its grid must divide into patches, and it reads neither forcing nor static fields.

    Raises WxlabError unless the frames and the sizes (those that every trunk has, and ``sizes``) are usable.
    """
    if spec.history != 1:
        raise WxlabError(f"history={spec.history}, and this network reads one state; set history=1")
    for name in ("embed_dim", "depth", "heads", "patch", "window", "interval", *sizes):
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise WxlabError(f"{name}={value!r} must be a positive whole number")
    if settings["embed_dim"] % settings["heads"]:
        raise WxlabError(f"embed_dim={settings['embed_dim']} must divide by heads={settings['heads']}")
    patch = settings["patch"]
    return dataclasses.replace(spec, multiples=(patch, patch), forcing=(), static=())
