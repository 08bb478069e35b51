"""The authors' transformer (``LaDCastTransformer3DModel``): their keys and settings, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models.base import Spec
from wxlab.models.ladcast.autoencoder import latent_names
from wxlab.models.ladcast.network import STEP, Ladcast, build
from wxlab.models.ladcast.official import Source, load, read, require_agreement, save
from wxlab.models.ladcast.statistics import LATENT_GRID, latent_statistics

# our module -> theirs; several, where ours is one projection of theirs, rows in this order
_EMBED = {
    "noise.linear_1": "timestep_embedder.linear_1", "noise.linear_2": "timestep_embedder.linear_2",
    "pooled.linear_1": "text_embedder.linear_1", "pooled.linear_2": "text_embedder.linear_2",
}  # fmt: skip
_TOP = {
    "embed_output": "x_embedder.proj", "embed_known": "context_embedder.proj", "refiner.proj_in": "context_refiner.proj_in",
    "year.linear_1": "time_elapsed_embed.linear_1", "year.linear_2": "time_elapsed_embed.linear_2",
    "modulation": "norm_out.linear", "proj_out": "proj_out",
    **{f"embed.{mine}": f"time_text_embed.{theirs}" for mine, theirs in _EMBED.items()},
    **{f"refiner.embed.{mine}": f"context_refiner.time_text_embed.{theirs}" for mine, theirs in _EMBED.items()},
}  # fmt: skip
_REFINER = {
    "gates": "norm_out.linear", "norm1": "norm1", "norm2": "norm2", "qkv": "attn.to_q attn.to_k attn.to_v",
    "heads.norm_q": "attn.norm_q", "heads.norm_k": "attn.norm_k", "up": "ff.net.0.proj", "down": "ff.net.2",
}  # fmt: skip
_DUAL = {
    "output.modulation": "norm1.linear", "output.qkv": "attn.to_q attn.to_k attn.to_v", "output.out": "attn.to_out.0",
    "output.heads.norm_q": "attn.norm_q", "output.heads.norm_k": "attn.norm_k", "output.up": "ff.net.0.proj", "output.down": "ff.net.2",
    "known.modulation": "norm1_context.linear", "known.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "known.out": "attn.to_add_out", "known.heads.norm_q": "attn.norm_added_q", "known.heads.norm_k": "attn.norm_added_k",
    "known.up": "ff_context.net.0.proj", "known.down": "ff_context.net.2",
}  # fmt: skip
_SINGLE = {
    "modulation": "norm.linear", "into": "attn.to_k attn.to_v attn.to_q proj_mlp", "out": "proj_out",
    "heads.norm_q": "attn.norm_q", "heads.norm_k": "attn.norm_k",
}  # fmt: skip
_BLOCKS = (
    ("refiner.blocks", "context_refiner.token_refiner.refiner_blocks", _REFINER),
    ("dual", "transformer_blocks", _DUAL),
    ("single", "single_transformer_blocks", _SINGLE),
)


def load_official(source: Source, config: Mapping[str, Any] | None = None) -> Ladcast:
    """A transformer with the authors' weights, in evaluation mode.

    source: a folder with ``config.json``, a training checkpoint, a weights file, or a state dict.
    config: the authors' field names, which go before those in the folder; what the shapes say may be missing. The latent grid follows
    from ``rope_spatial_grid_start_pos`` and ``_end_pos`` (degrees, latitudes times ``latitude_factor``, 6 when not given), else it is the
    paper's, or the Grid ``grid``. Also ``input_seq_len`` (1), ``return_seq_len`` (4), and ``statistics`` of the latents (the authors'
    JSON, path or dict), which become the normaliser.
    Raises WxlabError naming every missing, unexpected and misshapen key, and settings that contradict the shapes or have no counterpart.
    """
    state, settings = read(source, "tr", ("ar_model_ema", "ar_model"), config)
    found, channels = _sizes(state)
    _refuse_unused(settings)
    axes = settings.get("rope_axes_dim")
    spec = Spec(
        channels=latent_names(channels), grid=_grid(settings, found["patch"]), step=STEP,
        history=settings.get("input_seq_len", 1), horizon=settings.get("return_seq_len", 4),
    )  # fmt: skip
    options = {"theta": settings.get("rope_theta", 256.0), "latitude_factor": settings.get("latitude_factor", 6.0)}
    model = build(spec, **found, **options, axes=axes)
    checked = _config(model)
    for key in ("rope_spatial_grid_start_pos", "rope_spatial_grid_end_pos"):  # which the grid was made from
        checked.pop(key)
    require_agreement(settings, checked)
    load(model, state, _names, "this LaDCast transformer")
    if "statistics" in settings:
        model.normaliser = latent_statistics(settings["statistics"], spec.channels)
    return model.eval()


def save_official(model: Ladcast, path: Any = None) -> dict[str, Tensor]:
    """The state dict under the authors' names; a folder with ``config.json`` where a path is given.

    Raises WxlabError for a network that theirs has no place for.
    """
    if model.config["changes"]:
        raise WxlabError("the authors' network samples states, and this one samples changes; only changes=False can be written")
    if model.config["position"] != "geo":
        raise WxlabError(f"the authors' network has no place for position={model.config['position']!r}; only 'geo' can be written")
    channels, width = len(model.spec.channels), model.config["heads"] * model.config["head_dim"]
    patch = [channels, model.config["patch_time"], model.config["patch"], model.config["patch"]]

    def shape(key: str, value: Tensor) -> Tensor:
        return value.unflatten(1, patch) if key.endswith("embedder.proj.weight") else value

    return save(model, _names, shape, lambda name: width, _config(model), path)


def _names(name: str) -> list[str]:
    """The authors' keys of one of our tensors."""
    module, kind = name.removeprefix("network.").rsplit(".", 1)
    if module in _TOP:
        return [f"{_TOP[module]}.{kind}"]
    for mine, theirs, table in _BLOCKS:
        if (match := re.fullmatch(rf"{re.escape(mine)}\.(\d+)\.(.+)", module)) and match[2] in table:
            return [f"{theirs}.{match[1]}.{part}.{kind}" for part in table[match[2]].split()]
    return [name]


def _sizes(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """The network's options and its channels, from the shapes."""

    def count(start: str) -> int:
        return len({key[len(start) :].split(".")[0] for key in state if key.startswith(start)})

    keys = ("x_embedder.proj.weight", "transformer_blocks.0.attn.norm_q.weight", "transformer_blocks.0.ff.net.0.proj.weight")
    absent = [key for key in keys if key not in state]
    if absent:
        raise WxlabError(f"these are not the weights of a LaDCast transformer: {', '.join(absent)} is missing")
    embed, norm, up = (state[key].shape for key in keys)
    width = embed[0]
    sizes: dict[str, Any] = {
        "heads": width // norm[0], "head_dim": norm[0], "dual": count("transformer_blocks."), "single": count("single_transformer_blocks."),
        "refiner": count("context_refiner.token_refiner.refiner_blocks."), "mlp_ratio": up[0] / width,
        "patch_time": embed[2], "patch": embed[3], "year": any(key.startswith("time_elapsed_embed.") for key in state),
    }  # fmt: skip
    if sizes["mlp_ratio"] == int(sizes["mlp_ratio"]):
        sizes["mlp_ratio"] = int(sizes["mlp_ratio"])
    return sizes, embed[1]


def _grid(settings: Mapping[str, Any], patch: int) -> Grid:
    """The latent grid that the rotary positions were made for: columns go round the globe, rows are as far apart."""
    if isinstance(settings.get("grid"), Grid):
        return settings["grid"]
    start, end = (settings.get(f"rope_spatial_grid_{which}_pos") for which in ("start", "end"))
    if start is None or end is None:
        return LATENT_GRID
    factor = settings.get("latitude_factor", 6.0)
    spacing = 360 - (end[1] - start[1])
    counts = round((end[0] - start[0]) / factor / spacing) + 1, round(360 / spacing)
    rows, columns = (max(patch, count - count % patch) for count in counts)
    return Grid(tuple(np.linspace(start[0], end[0], rows) / factor), tuple(np.linspace(start[1], end[1], columns)))


def _refuse_unused(settings: Mapping[str, Any]) -> None:
    """Options of the authors' class that no published model sets."""
    for name, usual in (("nope", False), ("scale_attn_by_lat", False), ("spatial_deg2rad", True), ("qk_norm", "rms_norm")):
        if settings.get(name, usual) not in (usual, None):
            raise WxlabError(f"{name}={settings[name]!r} of the authors' network is not supported; published weights have {usual!r}")


def _config(model: Ladcast) -> dict[str, Any]:
    """The authors' config.json of a model."""
    mine, channels, grid = model.config, len(model.spec.channels), model.spec.grid
    return {
        "_class_name": "LaDCastTransformer3DModel",
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": mine["heads"],
        "attention_head_dim": mine["head_dim"],
        "num_layers": mine["dual"],
        "num_single_layers": mine["single"],
        "num_refiner_layers": mine["refiner"],
        "mlp_ratio": mine["mlp_ratio"],
        "patch_size": mine["patch"],
        "patch_size_t": mine["patch_time"],
        "qk_norm": "rms_norm",
        "rope_theta": mine["theta"],
        "rope_axes_dim": mine["axes"],
        "rope_spatial_grid_start_pos": [mine["latitude_factor"] * grid.y[0], grid.x[0]],
        "rope_spatial_grid_end_pos": [mine["latitude_factor"] * grid.y[-1], grid.x[-1]],
        "spatial_deg2rad": True,
        "conditioning_tensor_in_channels": channels,
        "conditioning_tensor_rope_axes_dim": mine["axes"],
        "incl_time_elapsed": mine["year"],
    }
