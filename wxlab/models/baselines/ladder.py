"""The ablation ladder of Met2Net's Table 8: joint -> separate encoders -> + variable attention -> + two-stage training.

a. ``ladder_joint``: one encoder and decoder for all channels, one TAU translator on the joint latent.
b. ``ladder_separate``: an encoder and decoder for each variable, their latents merged (V T S channels) for the same translator.
c. ``ladder_attention``: Met2Net's network, variables as tokens, trained end to end with the plain mean squared error.
d. ``met2net``: the same network, trained in two stages.

Each step changes one thing: no step has SimVP's skip connection, all use the same TAU blocks (MLP ratio 4, dead gate, the same drop
path), widths and depths. Differs from the paper in that it does not say whether its first two rows keep the skip and the MLP ratio 8
of the published TAU baseline; that one is the model ``tau``.
Reference: Li et al. 2025, arXiv:2507.17189, Table 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.models import Entry
from wxlab.models.base import Batch, Model, Spec
from wxlab.models.baselines import FIELDS, SIZES, require_equal_frames, require_sizes
from wxlab.models.baselines.recipe import MeanSquaredError
from wxlab.models.met2net import ENTRY as MET2NET
from wxlab.models.met2net.network import Decoders, Encoders
from wxlab.nn.gating import GatedBlock
from wxlab.nn.spatial import require_even_depth

if TYPE_CHECKING:
    from wxlab.rollout import Streams


class MergedLatents(Model):
    """``y = D_v(slice(translate(merge(E_v(x_v)))))``: encoders and decoders by group of channels, one translator for all latents.

    groups: channels in each group, in order; one group is the joint model.  hid_S: latent channels of a frame and group.
    hid_T: translator width.  N_S: encoder stages (even).  N_T: translator layers.
    """

    def __init__(
        self, spec: Spec, groups: Sequence[int], *, hid_S: int = 32, hid_T: int = 256, N_S: int = 2, N_T: int = 8, drop_path: float = 0.1
    ) -> None:
        super().__init__(spec, hid_S=hid_S, hid_T=hid_T, N_S=N_S, N_T=N_T, drop_path=drop_path)
        width = len(groups) * spec.history * hid_S
        self.encoders = Encoders(groups, hid_S, N_S)
        self.translator = nn.Sequential(
            nn.Conv2d(width, hid_T, 1),
            *(GatedBlock(hid_T, kind="tau", drop_path=drop_path) for _ in range(N_T)),
            nn.Conv2d(hid_T, width, 1),
        )
        self.decoders = Decoders(groups, hid_S, N_S)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,C,H,W] -> [B,T,C,H,W]."""
        latents = self.encoders(x)  # [B, V, T S, h, w]
        return self.decoders(self.translator(latents.flatten(1, 2)).view_as(latents))

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        return self.repeat_members(self(batch.history), members)


def _checked(name: str, spec: Spec, config: dict[str, Any]) -> Spec:
    require_equal_frames(name, spec)
    require_sizes(config, {"hid_S": 2, "hid_T": 1, "N_T": 1})
    require_even_depth(config.get("N_S", 2))
    multiple = 2 ** (config.get("N_S", 2) // 2)
    return dataclasses.replace(spec, multiples=(multiple, multiple), forcing=(), static=())


def build_joint(spec: Spec, **config: Any) -> MergedLatents:
    """Step a: all channels in one group."""
    return MergedLatents(_checked("ladder_joint", spec, config), [len(spec.channels)], **config)


def build_separate(spec: Spec, *, groups: Sequence[int] | None = None, **config: Any) -> MergedLatents:
    """Step b: each channel (or group of channels) with its own encoder and decoder."""
    sizes = [1] * len(spec.channels) if groups is None else list(groups)
    if min(sizes, default=0) < 1 or sum(sizes) != len(spec.channels):
        raise WxlabError(f"groups={sizes} must be numbers of channels that sum to {len(spec.channels)}, the number of channels")
    model = MergedLatents(_checked("ladder_separate", spec, config), sizes, **config)
    model.config["groups"] = None if groups is None else sizes
    return model


_PRESETS = {name: {**FIELDS[name], **SIZES[name]} for name in FIELDS}
_OPTIONS = frozenset({"hid_S", "hid_T", "N_S", "N_T", "drop_path"})

JOINT = Entry(
    name="ladder_joint",
    title="Ladder a: one encoder and decoder for all channels",
    presets=_PRESETS,
    build=build_joint,
    recipe=MeanSquaredError,
    citation=MET2NET.citation,
    options=_OPTIONS,
)
SEPARATE = Entry(
    name="ladder_separate",
    title="Ladder b: separate encoders and decoders",
    presets=_PRESETS,
    build=build_separate,
    recipe=MeanSquaredError,
    citation=MET2NET.citation,
    options=_OPTIONS | {"groups"},
)
ATTENTION = dataclasses.replace(
    MET2NET,
    name="ladder_attention",
    title="Ladder c: separate encoders and variable attention, trained end to end",
    presets=_PRESETS,
    recipe=MeanSquaredError,
    official=None,
)
