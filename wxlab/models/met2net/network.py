"""Met2Net (Li et al. 2025, arXiv:2507.17189): one encoder and decoder per variable, a translator with attention over variables.

``y = D(slice(H(stack(E(x)))))``. B samples, T frames in and out, C channels in V variables (groups), S = hid_S, D = hid_T.
Submodules of the blocks bear the names of the published checkpoints.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from wxlab.errors import WxlabError, unknown
from wxlab.models.base import Batch, Model, Spec
from wxlab.nn.attention_tap import AttentionTap
from wxlab.nn.convolution import PointwiseConv
from wxlab.nn.gating import BlockKind, GatedBlock
from wxlab.nn.spatial import Decoder, Encoder, require_even_depth

if TYPE_CHECKING:
    from wxlab.rollout import Streams

HEADS = 8  # fixed in the authors' code
DEFAULTS = {"hid_S": 32, "hid_T": 256, "N_S": 2, "N_T": 8, "groups": None, "block": "tau", "live_gate": False, "drop_path": 0.1}


class Encoders(nn.ModuleList):
    """One encoder per variable, applied to each frame; the latents are stacked for the translator."""

    def __init__(self, groups: Sequence[int], width: int, layers: int) -> None:
        super().__init__(Encoder(channels, width, layers) for channels in groups)
        self.groups = tuple(groups)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C, H, W] -> [B, V, T S, h, w], T slow and S fast."""
        frames = x.flatten(0, 1).split(self.groups, dim=1)  # V times [B T, g, H, W]
        latents = [encoder(frame)[0].unflatten(0, x.shape[:2]) for encoder, frame in zip(self, frames, strict=True)]  # [B, T, S, h, w]
        stacked = torch.stack([latent.permute(0, 3, 4, 1, 2) for latent in latents], dim=1)  # [B, V, h, w, T, S]
        return stacked.flatten(4).permute(0, 1, 4, 2, 3)


class Decoders(nn.ModuleList):
    """One decoder per variable, applied to each frame of the translator's output."""

    def __init__(self, groups: Sequence[int], width: int, layers: int) -> None:
        super().__init__(Decoder(width, channels, layers) for channels in groups)
        self.width = width

    def forward(self, z: Tensor) -> Tensor:
        """z [B, V, T S, h, w] -> [B, T, C, H, W]."""
        batch, height, width = z.shape[0], *z.shape[3:]
        latents = z.permute(1, 0, 3, 4, 2).unflatten(4, (-1, self.width)).permute(0, 1, 4, 2, 3, 5)  # [V, B, T, h, w, S]
        latents = latents.reshape(len(self), -1, height, width, self.width).permute(0, 1, 4, 2, 3)  # [V, B T, S, h, w]
        frames = [decoder(latent) for decoder, latent in zip(self, latents.unbind(), strict=True)]  # V times [B T, g, H, W]
        return torch.cat(frames, dim=1).unflatten(0, (batch, -1))


class VariableAttention(nn.Module):
    """Attention over variables: ``A = softmax(Q K^T / sqrt(n))`` over sources, ``out = SiLU(GN(W A V))``.

    Q, K and V are 1x1 convolutions with GroupNorm of one group. Channel c belongs to head c // (D/8), and all n = (D/8) h w values
    of a head are one vector per variable. ``tap`` sees A [B, 8, V, V].
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def projection() -> list[nn.Module]:
            return [PointwiseConv(width, width, bias=False), nn.GroupNorm(1, width)]

        self.q_Conv = nn.Sequential(*projection())
        self.v_Conv = nn.Sequential(*projection())
        self.k_Conv = nn.Sequential(*projection())
        self.v_post_f = nn.Sequential(*projection(), nn.SiLU())
        self.tap = AttentionTap(("head", "target", "source"))

    def forward(self, x: Tensor, variables: int) -> Tensor:
        """x [B V, D, h, w] -> the same shape."""

        n, width, h, w = x.shape

        def split(t: Tensor) -> Tensor:  # [B V, D, h, w] -> [B, V, h w 8, D/8], a view of channels-last memory
            return t.permute(0, 2, 3, 1).reshape(-1, variables, h * w * HEADS, width // HEADS)

        q, k, v = split(self.q_Conv(x)), split(self.k_Conv(x)), split(self.v_Conv(x))
        # products at each point first, then their sum over the points: no copy of q, k, v in another order
        products = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).unflatten(1, (h * w, HEADS)).sum(1)  # [B, 8, V, V]
        weights = self.tap(torch.softmax(products / math.sqrt(h * w * width // HEADS), dim=-1))
        everywhere = weights.unsqueeze(1).expand(-1, h * w, -1, -1, -1).flatten(1, 2)  # [B, h w 8, V, V]
        out = (everywhere @ v.transpose(1, 2)).transpose(1, 2).reshape(n, h, w, width)
        return self.v_post_f(out.permute(0, 3, 1, 2))


class TranslatorLayer(nn.Module):
    """``y = GN(x + VA(x))``;  ``z = GN(2 y + Block(y))`` (the block has residuals of its own)."""

    def __init__(self, width: int, block: BlockKind, drop_path: float, live_gate: bool) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(1, width)
        self.norm_2 = nn.GroupNorm(1, width)
        self.attn_1 = VariableAttention(width)
        self.block = GatedBlock(width, kind=block, drop_path=drop_path, live_gate=live_gate)

    def forward(self, x: Tensor, variables: int) -> Tensor:
        y = self.norm_1(x + self.attn_1(x, variables))  # [B V, D, h, w]
        return self.norm_2(torch.add(self.block(y), y, alpha=2))


class Translator(nn.Module):
    """From the latents of the past to those of the future: 1x1 conv, N_T layers, 1x1 conv. All layers start as copies of one."""

    def __init__(self, features: int, width: int, layers: int, *, block: BlockKind, drop_path: float, live_gate: bool) -> None:
        super().__init__()
        self.conv1 = PointwiseConv(features, width)
        first = TranslatorLayer(width, block, drop_path, live_gate)
        self.layers = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(layers - 1))])
        self.conv2 = PointwiseConv(width, features)

    def forward(self, z: Tensor) -> Tensor:
        """z [B, V, T S, h, w] -> the same shape."""
        x = self.conv1(z.flatten(0, 1).contiguous(memory_format=torch.channels_last))  # [B V, D, h, w]
        for layer in self.layers:
            x = layer(x, z.shape[1])
        return self.conv2(x).unflatten(0, z.shape[:2])


class Met2Net(Model):
    """Block forecaster: ``history`` frames in, as many out, the absolute normalised fields (no residual on the last frame).

    hid_S: latent channels S per frame.  hid_T: width D of the translator.  N_S: stages of an encoder, two per halving of the grid.
    N_T: layers of the translator.  groups: channels of each variable; None: each channel is one (the released code); the paper takes
    [2, 1, 1, 1] for u10 with v10, t2m, tcc, r.  block: ``tau`` or ``gsta``.  live_gate: TAU's squeeze-excite, dead in the released code.
    drop_path: rate in every layer of the translator (the authors' configuration files name others, which their model ignores).
    Differs from the paper: queries, keys and values are 1x1 convolutions with GroupNorm, and the translator sees N x (T S) x h x w.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        hid_S: int,
        hid_T: int,
        N_S: int,
        N_T: int,
        groups: Sequence[int] | None,
        block: BlockKind,
        live_gate: bool,
        drop_path: float,
    ) -> None:
        groups = list(groups) if groups is not None else None
        super().__init__(
            spec, hid_S=hid_S, hid_T=hid_T, N_S=N_S, N_T=N_T, groups=groups, block=block, live_gate=live_gate, drop_path=drop_path
        )
        self.groups = tuple(groups or [1] * len(spec.channels))
        self.encoders = Encoders(self.groups, hid_S, N_S)
        self.translator = Translator(spec.history * hid_S, hid_T, N_T, block=block, drop_path=drop_path, live_gate=live_gate)
        self.decoders = Decoders(self.groups, hid_S, N_S)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C, H, W], normalised -> [B, T, C, H, W]."""
        return self.decoders(self.translator(self.encoders(x)))

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        return self.repeat_members(self(batch.history), members)


def build(spec: Spec, **config: Any) -> Met2Net:
    """A Met2Net of a Spec, every size checked. Forcing and static fields are not read, so the model's Spec names none."""
    settings: dict[str, Any] = {**DEFAULTS, **config}
    if spec.history != spec.horizon:
        raise WxlabError(
            f"met2net writes as many frames as it reads, but history={spec.history} and horizon={spec.horizon}; "
            "make them equal (the roll-out makes forecasts of any length)"
        )
    if settings["block"] not in get_args(BlockKind):
        raise unknown("block", settings["block"], get_args(BlockKind))
    for name, multiple in (("hid_S", 2), ("hid_T", HEADS), ("N_S", 1), ("N_T", 1)):
        value = settings[name]
        if not isinstance(value, int) or value < 1 or value % multiple:
            raise WxlabError(f"{name}={value!r} must be a positive whole number" + (f" divisible by {multiple}" if multiple > 1 else ""))
    require_even_depth(settings["N_S"])
    if not 0 <= settings["drop_path"] < 1:
        raise WxlabError(f"drop_path={settings['drop_path']!r} must be at least 0 and less than 1")
    groups = settings["groups"]
    if groups is not None and (min(groups, default=0) < 1 or sum(groups) != len(spec.channels)):
        raise WxlabError(f"groups={list(groups)} must be numbers of channels that sum to {len(spec.channels)}, the number of channels")
    factor = 2 ** (settings["N_S"] // 2)
    return Met2Net(dataclasses.replace(spec, multiples=(factor, factor), forcing=(), static=()), **settings)
