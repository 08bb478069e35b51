"""VA-MoE (Chen et al. 2025, arXiv:2412.02503): attention, and experts that belong to variables and choose channels of the tokens.

The ``vit`` network with ``channelmoe`` layers of the authors' code, which is the figure 2 of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from wxlab.channels import split_channel
from wxlab.errors import WxlabError, is_number, unknown
from wxlab.models.base import Coordinates, Spec
from wxlab.models.vamoe.experts import VariableExperts
from wxlab.models.vamoe.trunk import Trunk, make_blocks, require_trunk

SURFACE = "surface"
FREEZE = ("coded", "strict", "none")
DEFAULTS: dict[str, Any] = {
    "embed_dim": 768, "depth": 24, "heads": 16, "patch": 2, "topk": 2, "window": 8, "interval": 3, "expert_gain": 1.0, "extension": None,
}  # fmt: skip


def variable_groups(channels: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the channels of each expert: one for each variable on levels, as they come, then one for all others together."""
    groups: dict[str, list[int]] = {}
    surface: list[int] = []
    for position, channel in enumerate(channels):
        variable, level = split_channel(channel)
        (surface if level is None else groups.setdefault(variable, [])).append(position)
    return {**groups, SURFACE: surface} if surface else groups


class IndexEncoder(nn.Module):
    """Two layers that encode which channels an expert stands for."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, index: Tensor) -> Tensor:
        """index [n, C] of 0 and 1 -> [n, E]."""
        return self.mlp(index)


class VAMoE(Trunk):
    """One-step forecaster: ``t0 = patches(x) + position``; blocks of attention and variable experts; ``out, recons = head(t), head(t0)``.

    embed_dim: width E.  depth: blocks.  heads: A.  patch: side p of the square patches.  topk: each expert sees int(E / topk) channels.
    window, interval: blocks attend inside windows of so many tokens a side, every ``interval``-th to all tokens.
    expert_gain: factor on what experts see. The authors' 1 leaves them nearly without effect at the start of training, because the
    weights of the chosen channels are about 1/k; k makes them count.
    extension: which channels and experts an incremental stage keeps, and how; ``extend`` sets it, and what it freezes stays frozen
    when training goes on from a checkpoint.
    ``spec.horizon`` above 1 makes one call a roll-out of so many steps.
    """

    index: Tensor  # [n, C], 1 where a channel belongs to an expert
    held: Tensor | None  # [C], True for channels whose columns of encoder and decoder do not move

    def __init__(
        self,
        spec: Spec,
        *,
        embed_dim: int,
        depth: int,
        heads: int,
        patch: int,
        topk: float,
        window: int,
        interval: int,
        expert_gain: float,
        extension: Mapping[str, Any] | None,
    ) -> None:
        kept = dict(extension) if extension is not None else None
        super().__init__(
            spec, embed_dim=embed_dim, patch=patch, depth=depth, heads=heads, topk=topk, window=window, interval=interval,
            expert_gain=expert_gain, extension=kept,
        )  # fmt: skip
        channels, self.groups_by_name = len(spec.channels), variable_groups(spec.channels)
        index = torch.zeros(len(self.groups_by_name), channels)
        for row, positions in enumerate(self.groups_by_name.values()):
            index[row, positions] = 1
        self.register_buffer("index", index, persistent=False)
        self.posembedder = IndexEncoder(channels, embed_dim)
        layer = partial(VariableExperts, embed_dim, len(index), int(embed_dim / topk), expert_gain)
        self.blocks = make_blocks(embed_dim, depth, heads, window, interval, layer)
        self.finish()
        self._emphases: tuple[list[tuple[int, int]], list[Tensor], list[Tensor]] | None = None
        self.register_buffer("held", None, persistent=False)
        if kept is not None:
            self._freeze(kept)

    @property
    def experts(self) -> tuple[str, ...]:
        """The variable of each expert; ``surface`` stands for all without levels."""
        return tuple(self.groups_by_name)

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        """Places, and the names of experts."""
        named: Coordinates = {"expert": (("expert",), list(self.experts))} if "expert" in sizes else {}
        return named | super().attention_coordinates(kind, sizes)

    def _freeze(self, extension: Mapping[str, Any]) -> None:
        """As coded: attention, its norms and the experts that were carried over. Strict: also the old columns of encoder and decoder."""
        if extension["freeze"] == "none":
            return
        for block in self.blocks:
            for part in (block.norm1, block.attn, block.norm2):
                part.requires_grad_(False)
            for expert, old in zip(block.moe.experts, extension["experts"], strict=True):
                expert.requires_grad_(old is None)
        if extension["freeze"] == "strict":
            old_channels = set(extension["channels"])
            self.held = torch.tensor([name in old_channels for name in self.spec.channels])
            self.patch_embed.proj.bias.requires_grad_(False)

    def partly_held(self) -> list[nn.Parameter]:
        """Tensors of which some columns are held while the others learn; weight decay must leave them alone."""
        return [] if self.held is None else [self.patch_embed.proj.weight, self.head.weight]

    def encoder_weight(self) -> Tensor:
        weight = self.patch_embed.proj.weight
        return weight if self.held is None else torch.where(self.held.view(-1, 1, 1), weight.detach(), weight)

    def decoder_weight(self) -> Tensor:
        weight = self.head.weight
        if self.held is None:
            return weight
        rows = self.held.repeat(self.patch**2).unsqueeze(1)  # channels are innermost
        return torch.where(rows, weight.detach(), weight)

    def emphases(self) -> list[Tensor]:
        """P of every block, each [n, E]. They depend on the weights alone, so that without gradients they are kept until those change.

        Fused optimisers change weights without counting it, but only weights that have a gradient, and after a pass with gradients.
        Writing into ``weight.data`` is not counted either; ``eval()``, which forecasts begin with, forgets what was kept.
        """
        parameters = [*self.posembedder.parameters(), *(p for block in self.blocks for p in block.moe.PosEmbedder.parameters())]
        if torch.is_grad_enabled() or any(p.is_inference() or p.grad is not None for p in parameters):
            self._emphases = None
            return self._encode_index()
        version = [(p.data_ptr(), p._version) for p in parameters]
        if self._emphases is None or self._emphases[0] != version:
            # holding on to the weights keeps others from being put at the same address
            self._emphases = version, [p.detach() for p in parameters], self._encode_index()
        return self._emphases[2]

    def train(self, mode: bool = True) -> Self:
        self._emphases = None
        return super().train(mode)

    def _encode_index(self) -> list[Tensor]:
        with torch.autocast(self.index.device.type, enabled=False):
            z = self.posembedder(self.index)  # [n, E]
            return [block.moe.emphasis(z) for block in self.blocks]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W], normalised -> the next state and the reconstruction, both [B, C, H, W]."""
        first = t = self.tokens(x)  # [B, N, E]
        for block, emphasis in zip(self.blocks, self.emphases(), strict=True):
            t = block.attend(t, self.shape)
            t = t + block.moe(block.norm2(t), emphasis)
        return self.fields(t), self.fields(first)


def require_vamoe(model: object, fault: str = "has no experts of variables") -> VAMoE:
    """The model itself.  Raises WxlabError, which says its ``fault``, when it is another."""
    if isinstance(model, VAMoE):
        return model
    raise WxlabError(f"{getattr(model, 'name', '') or type(model).__name__} {fault}; give a VA-MoE, such as load_checkpoint returns")


def build(spec: Spec, **config: Any) -> VAMoE:
    """A VA-MoE of a Spec, every size checked. Forcing and static fields are not read, so the model's Spec names none."""
    settings: dict[str, Any] = {**DEFAULTS, **config}
    spec = require_trunk(spec, settings)
    width, topk, gain = settings["embed_dim"], settings["topk"], settings["expert_gain"]
    if not is_number(topk) or not 1 <= topk <= width:
        raise WxlabError(f"topk={topk!r} must be a number between 1 and {width}: each expert sees int({width} / topk) channels")
    if not is_number(gain) or gain <= 0:
        raise WxlabError(f"expert_gain={gain!r} must be a positive number; 1 is the authors'")
    if settings["extension"] is not None:
        _require_extension(spec, settings["extension"])
    return VAMoE(spec, **settings)


def _require_extension(spec: Spec, extension: Mapping[str, Any]) -> None:
    if not isinstance(extension, Mapping) or set(extension) != {"channels", "experts", "freeze"}:
        raise WxlabError(f"extension={extension!r} must name channels, experts and freeze; let wxlab.extend set it")
    if extension["freeze"] not in FREEZE:
        raise unknown("freeze", extension["freeze"], FREEZE)
    absent = [name for name in extension["channels"] if name not in spec.channels]
    if absent:
        raise WxlabError(f"the extension keeps {', '.join(absent)}, which the model's channels lack; variables can be added, not removed")
    given, needed = len(extension["experts"]), len(variable_groups(spec.channels))
    if given != needed:
        raise WxlabError(f"the extension names {given} experts, and these channels have {needed}; let wxlab.extend set it")
