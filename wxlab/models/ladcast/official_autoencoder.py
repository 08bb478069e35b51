"""The authors' autoencoder (``AutoencoderDC``): their keys and settings, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.models.base import Spec
from wxlab.models.ladcast.autoencoder import Autoencoder, build
from wxlab.models.ladcast.network import STEP
from wxlab.models.ladcast.official import Source, chosen, load, read, require_agreement, save
from wxlab.models.ladcast.statistics import CHANNELS, GRID, SIXTH, STATIC, read_statistics

BLOCKS = {"res": "ResBlock", "evit": "EfficientViTBlock"}


def load_official(source: Source, config: Mapping[str, Any] | None = None) -> Autoencoder:
    """An autoencoder with the authors' weights, in evaluation mode.

    source: a folder with ``config.json``, a training checkpoint, a weights file, or a state dict.
    config: the authors' field names, which go before those in the folder; what the shapes say may be missing. Also ``grid`` (a Grid;
    the paper's 120x240 when not given), ``channels`` and ``static`` (names; the paper's where their number fits), and ``statistics``
    (the authors' JSON, path or dict), which become the normaliser.
    Raises WxlabError naming every missing, unexpected and misshapen key, and settings that contradict the shapes.
    """
    state, settings = read(source, "ae", ("encdec_ema", "encdec"), config)
    found = _sizes(state)
    head_dim = found.pop("head_dim") or settings.get("attention_head_dim", 32)
    total = state["encoder.conv_in.weight"].shape[1]
    fields = settings.get("static_channels", {89: 5, 90: 6}.get(total, 0)) or 0
    options = {
        "head_dim": head_dim,
        "out_shortcut": settings.get("encoder_out_shortcut", True),
        "in_shortcut": settings.get("decoder_in_shortcut", True),
        "activation": settings.get("decoder_conv_act_fn", "relu"),
    }
    usual = STATIC if fields == len(STATIC) else (*STATIC, SIXTH)
    spec = Spec(
        channels=chosen(settings.get("channels"), CHANNELS, total - fields, "channel"),
        static=chosen(settings.get("static"), usual, fields, "static"),
        grid=settings.get("grid", GRID), history=1, horizon=1, step=STEP,
    )  # fmt: skip
    model = build(spec, **found, **options)
    require_agreement(settings, {**_config(model), "static_channels": settings.get("static_channels")})
    load(model, state, _names, "this autoencoder")
    if "statistics" in settings:
        model.normaliser = read_statistics(settings["statistics"], spec.channels, spec.static)
    return model.eval()


def save_official(model: Autoencoder, path: Any = None) -> dict[str, Tensor]:
    """The state dict under the authors' names; a folder with ``config.json`` where a path is given."""

    def shape(key: str, value: Tensor) -> Tensor:
        return value.flatten(1) if re.search(r"\.attn\.to_(q|k|v|out)\.weight$", key) else value

    return save(model, _names, shape, lambda name: model.get_parameter(name).shape[0] // 3, _config(model), path)


def _names(name: str) -> list[str]:
    return [name.replace("to_qkv", f"to_{part}") for part in "qkv"] if ".attn.to_qkv.weight" in name else [name]


def _config(model: Autoencoder) -> dict[str, Any]:
    """The authors' config.json of a model."""
    mine, total = model.config, len(model.spec.channels) + len(model.spec.static)
    levels = {
        "block_types": [BLOCKS[kind] for kind in mine["blocks"]],
        "block_out_channels": mine["widths"],
        "layers_per_block": mine["layers"],
        "qkv_multiscales": mine["scales"],
    }
    return {
        "_class_name": "AutoencoderDC",
        "in_channels": total,
        "out_channels": total,
        "latent_channels": mine["latent"],
        "attention_head_dim": mine["head_dim"],
        **{f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in levels.items()},
        "encoder_out_shortcut": mine["out_shortcut"],
        "decoder_in_shortcut": mine["in_shortcut"],
        "decoder_conv_act_fn": mine["activation"],
        "static_channels": len(model.spec.static) or None,
    }


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Levels of blocks from the keys and shapes of the encoder."""
    numbers = sorted({int(match[1]) for key in state if (match := re.match(r"encoder\.down_blocks\.(\d+)\.", key))})
    if "encoder.conv_in.weight" not in state or "encoder.conv_out.weight" not in state or numbers != list(range(len(numbers))):
        raise WxlabError("these are not the weights of a LaDCast autoencoder: encoder.conv_in, encoder.conv_out or a block is missing")
    widths, layers, blocks = [state["encoder.conv_in.weight"].shape[0]], [0], ["res"]
    scales: list[list[int]] = [[]]
    head_dim = None
    for number in numbers:
        block = f"encoder.down_blocks.{number}."
        if f"{block}conv.weight" in state:  # the next level
            widths.append(4 * state[f"{block}conv.weight"].shape[0])
            layers.append(0)
            blocks.append("res")
            scales.append([])
            continue
        layers[-1] += 1
        if f"{block}attn.to_q.weight" in state:
            blocks[-1] = "evit"
            kernels = [key for key in state if key.startswith(f"{block}attn.to_qkv_multiscale.") and key.endswith("proj_in.weight")]
            scales[-1] = [state[key].shape[-1] for key in sorted(kernels, key=lambda key: int(key.split(".")[-3]))]
            if kernels:
                head_dim = state[kernels[0].replace("proj_in", "proj_out")].shape[1]
    latent = state["encoder.conv_out.weight"].shape[0]
    return {"latent": latent, "widths": widths, "layers": layers, "blocks": blocks, "scales": scales, "head_dim": head_dim}
