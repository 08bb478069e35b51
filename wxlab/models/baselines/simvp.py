"""SimVP (arXiv:2206.05099) with the translators IncepU, gSTA (arXiv:2211.12509) and TAU (arXiv:2206.12126).

One encoder and one decoder for all channels together, with a skip from the first encoder stage to the last decoder stage; the
translator sees all latent frames at once. It writes as many frames as it reads; longer forecasts are made block by block, each from
the one before, and trained so. Submodules bear the names of the published checkpoints (OpenSTL).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError, unknown
from wxlab.models import Entry
from wxlab.models.base import Batch, Model, Spec
from wxlab.models.baselines import FIELDS, SIZES, require_sizes
from wxlab.models.baselines.radar import RADAR_PRESETS
from wxlab.models.baselines.recipe import MeanSquaredError
from wxlab.nn.gating import GatedTranslator
from wxlab.nn.spatial import Decoder, Encoder, require_even_depth

if TYPE_CHECKING:
    from wxlab.rollout import Streams

TranslatorKind = Literal["gsta", "incepu", "tau"]


class GroupConv(nn.Module):
    """``LeakyReLU_0.2(GroupNorm(GroupConv_k(x)))``, eight groups where the channels divide by eight, else one."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        groups = 8 if channels_in % 8 == 0 else 1
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups)
        self.norm = nn.GroupNorm(groups, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class InceptionUnit(nn.Module):
    """A 1x1 convolution to ``hidden`` channels, then the sum of four parallel group convolutions of 3, 5, 7 and 11 points."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, hidden, 1)
        self.layers = nn.ModuleList(GroupConv(hidden, channels_out, kernel) for kernel in (3, 5, 7, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return torch.stack([layer(x) for layer in self.layers]).sum(0)


class IncepU(nn.Module):
    """Inception units down and up with concatenations as in a U-Net (the grid stays as it is).

    width: channels T S of the latent block.  hidden: D.  layers: units on each way; the last one down feeds the first one up.
    """

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        half = hidden // 2
        self.enc = nn.ModuleList(InceptionUnit(hidden if i else width, half, hidden) for i in range(layers))
        self.dec = nn.ModuleList(
            InceptionUnit(2 * hidden if i else hidden, half, hidden if i < layers - 1 else width) for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T S, h, w] -> same shape."""
        skips: list[Tensor] = []
        for unit in self.enc:
            x = unit(x)
            skips.append(x)
        skips.pop()
        x = self.dec[0](x)
        for unit in list(self.dec)[1:]:
            x = unit(torch.cat([x, skips.pop()], 1))
        return x


class SimVP(Model):
    """``y = D(translate(E(x)), skip)`` for a whole block of frames, again from y until there are ``horizon`` frames.

    hid_S: latent channels S of a frame.  hid_T: translator width D.  N_S: encoder stages (even).  N_T: translator layers.
    translator: ``gsta``, ``incepu`` or ``tau``.  mlp_ratio, drop_path: of gsta and tau.  live_gate: TAU's squeeze-excite, dead in
    Met2Net's code and live upstream.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        hid_S: int = 32,
        hid_T: int = 256,
        N_S: int = 2,
        N_T: int = 8,
        translator: TranslatorKind = "gsta",
        mlp_ratio: float = 8.0,
        drop_path: float = 0.1,
        live_gate: bool = False,
    ) -> None:
        gating: dict[str, Any] = {"mlp_ratio": mlp_ratio, "drop_path": drop_path, "live_gate": live_gate}
        super().__init__(spec, hid_S=hid_S, hid_T=hid_T, N_S=N_S, N_T=N_T, translator=translator, **gating)
        channels, width = len(spec.channels), spec.history * hid_S
        self.enc = Encoder(channels, hid_S, N_S)
        if translator == "incepu":
            self.hid: nn.Module = IncepU(width, hid_T, N_T)
        else:
            rates = np.linspace(0.01, drop_path, N_T).tolist() if drop_path else [0.0] * N_T
            self.hid = GatedTranslator(width, hid_T, width, rates, kind=translator, mlp_ratio=mlp_ratio, live_gate=live_gate)
        self.dec = Decoder(hid_S, channels, N_S)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,Ti,C,H,W] -> [B,To,C,H,W]."""
        blocks = [self.block(x)]
        while len(blocks) * self.spec.history < self.spec.horizon:
            blocks.append(self.block(blocks[-1]))
        return torch.cat(blocks, 1)[:, : self.spec.horizon]

    def block(self, x: Tensor) -> Tensor:
        """The next frames, as many as are read: [B,T,C,H,W] -> [B,T,C,H,W]."""
        shape = x.shape
        latent, skip = self.enc(x.flatten(0, 1))  # [B T, S, h, w], [B T, S, H, W]
        mixed = self.hid(latent.unflatten(0, shape[:2]).flatten(1, 2))  # [B, T S, h, w]
        return self.dec(mixed.reshape(latent.shape), skip).reshape(shape)

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        return self.repeat_members(self(batch.history), members)


def build(spec: Spec, **config: Any) -> SimVP:
    """A SimVP, every size checked. Forcing and static fields are not read, so the model's Spec names none."""
    if spec.horizon > spec.history and spec.history_step != spec.step:
        raise WxlabError(
            f"SimVP reads its own frames to write {spec.horizon} from {spec.history}, so step={spec.step} and history_step="
            f"{spec.history_step} must be equal; make them so, or give horizon={spec.history}"
        )
    translator = config.get("translator", "gsta")
    if translator not in get_args(TranslatorKind):
        raise unknown("translator", translator, get_args(TranslatorKind))
    require_sizes(config, {"hid_S": 2, "hid_T": 2 if translator == "incepu" else 1, "N_T": 1})
    require_even_depth(config.get("N_S", 2))
    width = spec.history * config.get("hid_S", 32)
    if translator == "incepu" and config.get("hid_T", 256) % 16 == 0 and width % 8:
        raise WxlabError(f"history x hid_S is {width}, and incepu's eight groups need a multiple of 8; change one of them")
    multiple = 2 ** (config.get("N_S", 2) // 2)
    return SimVP(dataclasses.replace(spec, multiples=(multiple, multiple), forcing=(), static=()), **config)


def differential_divergence(prediction: Tensor, target: Tensor, *, temperature: float = 0.1) -> Tensor:
    """TAU's regulariser: mean of ``p log(p / q)``, p and q the softmax over C H W of frame-to-frame differences / temperature.

    prediction, target [B,T,C,H,W] normalised -> scalar; 0 for a single frame. p is of the prediction, q of the target.
    Reference: Tan et al. 2023, arXiv:2206.12126, eq. 9; the tiny constants are those of OpenSTL.
    """
    if prediction.shape[1] < 2:
        return prediction.new_zeros(())
    p, q = ((y.diff(dim=1) / temperature).flatten(2).softmax(-1) for y in (prediction, target))
    return (p * torch.log(p / (q + 1e-12) + 1e-12)).mean()


class DivergenceRegularised(MeanSquaredError):
    """``L = MSE + weight * differential_divergence``, TAU's loss. weight: 0.1 as published."""

    def __init__(self, model: Model, *, weight: float = 0.1, **settings: float) -> None:
        super().__init__(model, **settings)
        if not weight >= 0:
            raise WxlabError(f"weight={weight} must be at least 0")
        self.weight = weight

    def compare(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        mse, logs = super().compare(prediction, target, mask)
        if mask is not None:  # unobserved points change in neither
            prediction, target = prediction * mask, target * mask
        divergence = differential_divergence(prediction, target)
        return mse + self.weight * divergence, {**logs, "divergence": divergence.detach()}


def _official(source: Any, config: Mapping[str, Any]) -> Model:
    from wxlab.models.baselines.official import load_simvp

    return load_simvp(source, config)


def _official_tau(source: Any, config: Mapping[str, Any]) -> Model:
    from wxlab.models.baselines.official import load_simvp

    return load_simvp(source, {"live_gate": True, **config})


_PRESETS = {name: {**FIELDS[name], **SIZES[name]} for name in FIELDS}
# the published counts are of single-variable models
_PRESETS["weatherbench_5p625"]["channels"] = ("2m_temperature",)
# as wide and deep as STLDM's autoencoder and Translator
_PRESETS |= {name: {**fields, "hid_S": 32, "hid_T": 512, "N_S": 4, "N_T": 8} for name, fields in RADAR_PRESETS.items()}
_PRESETS["radar_demo"] |= {"hid_S": 8, "hid_T": 64, "N_T": 3}
_OPTIONS = frozenset({"hid_S", "hid_T", "N_S", "N_T", "mlp_ratio", "drop_path"})

SIMVP = Entry(
    name="simvp",
    title="SimVP with a gSTA, IncepU or TAU translator",
    presets=_PRESETS,
    build=build,
    recipe=MeanSquaredError,
    official=_official,
    citation="Gao et al. 2022, arXiv:2206.05099; Tan et al. 2022, arXiv:2211.12509",
    options=_OPTIONS | {"translator", "live_gate"},
)
TAU = Entry(
    name="tau",
    title="TAU: SimVP with temporal attention units",
    presets={name: {**sizes, "translator": "tau", "live_gate": True} for name, sizes in _PRESETS.items()},
    build=build,
    recipe=DivergenceRegularised,
    official=_official_tau,
    citation="Tan et al. 2023, arXiv:2206.12126",
    options=_OPTIONS | {"translator", "live_gate"},
)
