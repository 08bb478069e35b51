"""Published weights of SimVP, TAU and ConvLSTM (OpenSTL, and its fork in Met2Net's repository): their keys are our keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models.base import Model, Spec
from wxlab.models.baselines.convlstm import build as build_convlstm
from wxlab.models.baselines.simvp import build as build_simvp
from wxlab.models.met2net.official import CHANNELS, HOUR
from wxlab.models.weights import load_exactly, read_checkpoint


def load_simvp(source: Any, config: Mapping[str, Any] | None = None) -> Model:
    """SimVP (gSTA, IncepU or TAU) with published weights, in evaluation mode.

    source: ``.ckpt``, ``.pth``, ``.safetensors`` or a state dict.  config: the authors' settings, which go before those in the file;
    ``in_shape`` [T, C, H, W] is needed, ``drop_path`` used, the other sizes follow from the shapes. ``data_name`` names the channels.
    ``live_gate``: whether TAU's squeeze-excite acts: it does upstream, and does not in Met2Net's repository (the default).
    Raises WxlabError naming every missing, unexpected and misshapen key.
    """
    state, settings = read_checkpoint(source)
    settings.update(config or {})
    latent, channels = _shape(state, "enc.enc.0.conv.conv.weight")[:2]
    sizes: dict[str, Any] = {"hid_S": latent, "N_S": _count(state, "enc.enc."), "N_T": _count(state, "hid.enc.")}
    if "hid.enc.0.conv1.weight" in state:
        half, width = _shape(state, "hid.enc.0.conv1.weight")[:2]
        sizes |= {"translator": "incepu", "hid_T": 2 * half}
    else:
        widened, width = _shape(state, "hid.enc.0.block.mlp.fc1.weight")[:2]
        gate = _shape(state, "hid.enc.0.block.attn.spatial_gating_unit.conv1.weight")[0]
        reduction = "hid.enc.0.reduction.weight"
        sizes |= {
            "translator": "gsta" if gate == 2 * width else "tau",
            "hid_T": _shape(state, reduction)[0] if reduction in state else width,
            "mlp_ratio": widened / width,
            "drop_path": float(settings.get("drop_path", 0.0)),
            "live_gate": bool(settings.get("live_gate", False)),
        }
    return _filled(build_simvp, _spec(settings, channels, width // latent), sizes, state, "this SimVP")


def load_convlstm(source: Any, config: Mapping[str, Any] | None = None) -> Model:
    """ConvLSTM with published weights, in evaluation mode.

    source, config: as for ``load_simvp``; ``patch_size`` (2 unless given) is not in the shapes, and ``aft_seq_length`` is the horizon
    where it differs from the T of ``in_shape``.
    Raises WxlabError naming every missing, unexpected and misshapen key.
    """
    state, settings = read_checkpoint(source)
    settings.update(config or {})
    patch = int(settings.get("patch_size", 2))
    inputs, kernel = _shape(state, "cell_list.0.conv_x.0.weight")[1:3]
    if inputs % patch**2:
        raise WxlabError(f"the weights read {inputs} channels, no multiple of {patch}x{patch}; give config={{'patch_size': ...}}")
    hidden = [_shape(state, f"cell_list.{i}.conv_x.0.weight")[0] // 4 for i in range(_count(state, "cell_list."))]
    sizes = {"hidden": hidden, "kernel": kernel, "patch": patch}
    return _filled(build_convlstm, _spec(settings, inputs // patch**2, None), sizes, state, "this ConvLSTM")


def _spec(settings: Mapping[str, Any], channels: int, frames: int | None) -> Spec:
    """What the settings say of the fields, checked against what the shapes say."""
    shape = list(settings.get("in_shape", ()))
    if len(shape) != 4:
        raise WxlabError("the rows and columns of the grid are not in the weights; give config={'in_shape': [T, C, H, W]}")
    if shape[1] != channels or frames not in (None, shape[0]):
        raise WxlabError(f"in_shape={shape} does not fit the weights, which have C={channels}" + (f" and T={frames}" if frames else ""))
    names = settings.get("data_name")
    if not isinstance(names, (list, tuple)) or len(names) != channels:
        names = [f"channel_{i}" for i in range(channels)]
    horizon = shape[0] if frames else int(settings.get("aft_seq_length", shape[0]))
    channel_names = tuple(CHANNELS.get(name, name) for name in names)
    return Spec(channels=channel_names, grid=Grid.regular(*shape[2:]), history=shape[0], horizon=horizon, step=HOUR)


def _filled(build: Callable[..., Model], spec: Spec, sizes: dict[str, Any], state: Mapping[str, Tensor], what: str) -> Model:
    model = build(spec, **sizes)
    load_exactly(model, state, {}, what)
    return model.eval()


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state or state[key].dim() != 4:
        raise WxlabError(f"the weights lack {key}, so sizes cannot be told; this file is incomplete or of another model")
    return tuple(state[key].shape)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of the layers whose keys begin with ``prefix`` and an index."""
    return len({match[1] for key in state if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", key))})
