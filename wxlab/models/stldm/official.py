"""The authors' checkpoints of STLDM: their key names, their settings, and ours.

A flat ``.pt`` of the state dict (or ``{'model': state dict}``), or a Hugging Face folder with ``model.safetensors`` and ``config.json``:
the same keys. 13 of them are tables of the noise schedule, which are computed here, compared when read and written when saved.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.files import atomic_file
from wxlab.grids import Grid
from wxlab.models.base import Spec
from wxlab.models.stldm.network import STLDM, build
from wxlab.models.weights import load_exactly, read_checkpoint, write_checkpoint
from wxlab.nn.diffusion import Schedule

# our name -> theirs, first match; their wrappers of an attention are all called "fn"
_PARTS = [("vae", "backbone.vae"), ("translator", "backbone.hid"), ("denoiser.time", "diff_unet.time_mlp.mlp"), ("denoiser", "diff_unet")]
_ATTENTION = re.compile(r"diff_unet\.(downs\.\d+|mid|ups\.\d+)\.(spatial|temporal)\.(norm\.g|.+)")
_THEIR_ATTENTION = re.compile(r"diff_unet\.(downs\.\d+|mid|ups\.\d+)\.(?:attn1|q?attn_(spatial|temporal|time))\.fn\.(?:fn\.)?(.+)")


def load_official(source: str | os.PathLike[str] | Mapping[str, Any], config: Mapping[str, Any] | None = None) -> STLDM:
    """An STLDM with the authors' weights, in evaluation mode.

    source: ``.pt``, ``.safetensors``, a Hugging Face folder (its ``config.json`` is read too) or a state dict.
    config: the authors' settings, which go before those of the folder: ``vp_param`` (shape_in, shape_out, ...), ``stldm_param``, and
    timesteps, sampling_timesteps, objective, beta_schedule, ddim_sampling_eta as they are or under ``param``; ``type`` ``3D`` or ``2D``;
    ``cfg_str``, the strength of the guidance, which no checkpoint holds (0 unless given). Sizes follow from the shapes; the rows and
    columns do not, and are 128 unless shape_in says otherwise. ``channels`` names the variable, ``step`` its minutes, ``grid`` is a Grid.
    Raises WxlabError naming every missing, unexpected and misshapen key, and settings that contradict the weights.
    """
    state, settings = _read(source)
    settings.update(_flat(config or {}))
    if not any(key.startswith("backbone.") for key in state) or not any(key.startswith("diff_unet.") for key in state):
        found = ", ".join(list(state)[:3])
        raise WxlabError(f"these are not STLDM weights: no key begins with 'backbone.' and 'diff_unet.' (the first keys are {found})")
    sizes, history, horizon = _sizes(state, settings)
    _check_settings(settings, {**sizes, "shape_in": history, "shape_out": horizon})
    rows, columns = (settings.get("shape_in") or [0, 1, 128, 128])[2:]
    grid = settings.get("grid") or Grid(tuple(range(rows)), tuple(range(columns)), kind="xy")
    names = tuple(settings.get("channels") or ["reflectivity"])
    spec = Spec(channels=names, grid=grid, history=history, horizon=horizon, step=int(60 * settings.get("step", 5 if horizon < 20 else 6)))
    sampling = {ours: settings[theirs] for ours, theirs in _SAMPLING.items() if settings.get(theirs) is not None}
    model = build(spec, **sizes, **sampling)
    tables = schedule_tables(model.schedule)
    weights = {key: value for key, value in state.items() if key not in tables}
    renamed = {our_name(key): value for key, value in weights.items()}
    expected = {name: their_name(name, sizes["temporal"]) for name in model.state_dict()}
    load_exactly(model, renamed, {**{our_name(key): key for key in weights}, **expected}, f"this STLDM ({_variant(sizes['temporal'])})")
    _check_tables(state, tables)
    return model.eval()


_SAMPLING = {"sampling_steps": "sampling_timesteps", "eta": "ddim_sampling_eta", "guidance": "cfg_str"}


def save_official(model: STLDM, path: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
    """The complete state dict under the authors' names, the tables of the schedule included.

    path: ``.pt`` or ``.pth`` (flat), ``.safetensors``, or a folder, which gets ``model.safetensors`` and the ``config.json`` of the
    authors' class on Hugging Face.
    """
    state = schedule_tables(model.schedule)
    temporal = model.config["temporal"]
    state.update({their_name(name, temporal): value.detach().cpu().clone() for name, value in model.state_dict().items()})
    if path is None:
        return state
    target = Path(path)
    if target.suffix in (".pt", ".pth", ".safetensors"):
        write_checkpoint(target, state, {})
    else:
        target.mkdir(parents=True, exist_ok=True)
        write_checkpoint(target / "model.safetensors", state, {})
        with atomic_file(target / "config.json") as temporary:
            temporary.write_text(json.dumps(settings_of(model), sort_keys=True, indent=2))
    return state


def settings_of(model: STLDM) -> dict[str, Any]:
    """The authors' settings of a model, as their ``config.json`` has them."""
    config, (rows, columns) = model.config, model.spec.grid.shape
    channels = len(model.spec.channels)
    return {
        "beta_schedule": config["beta_schedule"],
        "ddim_sampling_eta": config["eta"],
        "min_snr_gamma": 5,
        "min_snr_loss_weight": False,
        "objective": "pred_v",
        "offset_noise_strength": 0.0,
        "sampling_timesteps": config["sampling_steps"],
        "schedule_fn_kwargs": {},
        "stldm_param": {"in_ch": config["hid_S"], **{name: config[name] for name in _DENOISER}},
        "timesteps": config["timesteps"],
        "vp_param": {
            "shape_in": [model.spec.history, channels, rows, columns],
            "shape_out": [model.spec.horizon, channels, rows, columns],
            **{name: config[name] for name in _BACKBONE},
            "groups": 8,  # is in the published file, and nothing reads it
            "last_activation": "sigmoid",
        },
    }


_BACKBONE = ("hid_S", "hid_T", "N_S", "N_T")
_DENOISER = ("chs_mult", "num_groups", "heads", "dim_head", "base_ch", "patch_size")


def schedule_tables(schedule: Schedule) -> dict[str, Tensor]:
    """The 13 tables of the schedule [T] that official checkpoints hold, computed in float64, as float32."""
    betas, alphas = schedule.betas, schedule.alphas
    before = np.concatenate([[1.0], alphas[:-1]])
    variance = betas * (1 - before) / (1 - alphas)
    tables = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alphas),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas),
        "log_one_minus_alphas_cumprod": np.log(1 - alphas),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
        "loss_weight": alphas,  # of the velocity: snr / (snr + 1)
    }
    return {name: torch.tensor(table.astype(np.float32)) for name, table in tables.items()}


def resize(frames: Tensor, rows: int, columns: int) -> Tensor:
    """frames [..., H, W] in [0, 1] brought to [..., rows, columns] as the authors do: bilinear, no smoothing before, cut to [0, 1]."""
    flat = frames.reshape(-1, 1, *frames.shape[-2:])
    return F.interpolate(flat, (rows, columns), mode="bilinear", align_corners=False).clamp(0, 1).view(*frames.shape[:-2], rows, columns)


# ---- names


def their_name(name: str, temporal: bool) -> str:
    """The official key of our name."""
    for ours, theirs in _PARTS:
        if name.startswith(ours + "."):
            name = theirs + name[len(ours) :]
            break
    if match := _ATTENTION.fullmatch(name):
        place, kind, rest = match.groups()
        known = {"spatial": "attn_spatial", "temporal": "attn_temporal"}
        if place == "mid":
            known = {"spatial": "qattn_spatial", "temporal": "qattn_time"}
        wrapped = known[kind] if temporal else "attn1"
        return f"diff_unet.{place}.{wrapped}.fn.{rest if rest == 'norm.g' else 'fn.' + rest}"
    return name


def our_name(key: str) -> str:
    """Our name of an official key; a key that is none stays as it is."""
    if match := _THEIR_ATTENTION.fullmatch(key):
        place, kind, rest = match.groups()
        key = f"diff_unet.{place}.{'temporal' if kind in ('temporal', 'time') else 'spatial'}.{rest}"
    for ours, theirs in _PARTS:
        if key.startswith(theirs + "."):
            return ours + key[len(theirs) :]
    return key


# ---- settings and sizes


def _read(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    settings: dict[str, Any] = {}
    if not isinstance(source, Mapping) and Path(source).is_dir():
        folder = Path(source)
        settings, source = _settings_in(folder), folder / "model.safetensors"
    if isinstance(source, Mapping) and isinstance(source.get("model"), Mapping):
        source = source["model"]
    state, _ = read_checkpoint(source)
    return state, settings


def _settings_in(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        return _flat(json.loads(file.read_text()))
    except (ValueError, AttributeError, TypeError):
        raise WxlabError(f"{file} is not the JSON object of an STLDM configuration; take another copy") from None


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without their levels."""
    flat = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    for part in ("vp_param", "stldm_param", "param"):
        flat.update(config.get(part) or {})
    return flat


def _variant(temporal: bool) -> str:
    return "spatio-temporal" if temporal else "spatial-only"


def _sizes(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
    """The network's options, T1 and T2, from the shapes; what they do not say from the settings."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in state:
            raise WxlabError(f"the STLDM weights lack {key}, so sizes cannot be told; the file is incomplete")
        return tuple(state[key].shape)

    def count(pattern: str) -> int:
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    latent, blocks, levels = shape("backbone.vae.encoder.enc.0.conv.conv.weight")[0], count(r"backbone\.hid\.enc\.(\d+)\."), None
    levels = count(r"diff_unet\.downs\.(\d+)\.")
    base = shape("diff_unet.time_mlp.mlp.1.weight")[1]
    temporal = any(".attn_temporal." in key for key in state)
    heads = settings.get("heads", 4)
    inner = shape("diff_unet.mid." + ("qattn_spatial" if temporal else "attn1") + ".fn.fn.to_qkv.weight")[0] // 3
    sizes = {
        "hid_S": latent,
        "hid_T": shape("backbone.hid.enc.1.block.layer_scale_1")[0],
        "N_S": count(r"backbone\.vae\.encoder\.enc\.(\d+)\.") - 1,
        "N_T": blocks,
        "base_ch": base,
        "chs_mult": [shape(f"diff_unet.conditions.{level}.weight")[0] // base for level in range(levels)],
        "num_groups": settings.get("num_groups", 8),
        "heads": heads,
        "dim_head": inner // heads,
        "patch_size": settings.get("patch_size", 16),
        "temporal": temporal,
        "beta_schedule": settings.get("beta_schedule", "sigmoid"),
        "timesteps": len(state["betas"]) if "betas" in state else settings.get("timesteps", 50),
    }
    history = shape("backbone.hid.enc.0.block.layer_scale_1")[0] // latent
    horizon = shape(f"backbone.hid.enc.{blocks - 1}.reduction.weight")[0] // (2 * latent)
    return sizes, history, horizon


def _check_settings(settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise WxlabError where settings contradict what the weights say, or ask for what is not built."""
    asked = str(settings.get("type", ""))
    if asked and (asked != "2D") != found["temporal"]:
        raise WxlabError(
            f"the weights are of the {_variant(found['temporal'])} network and type={asked!r} asks for the "
            f"{_variant(not found['temporal'])} one; leave type out, or take the other checkpoint"
        )
    if settings.get("objective", "pred_v") != "pred_v":
        raise WxlabError(f"objective={settings['objective']!r} is not supported; every published STLDM predicts the velocity (pred_v)")
    said = {name: settings[name] for name in found if name in settings and not name.startswith("shape")}
    if "in_ch" in settings:
        said["hid_S"] = settings["in_ch"]
    said.update({name: settings[name][0] for name in ("shape_in", "shape_out") if name in settings})
    wrong = [f"{name}={value!r} (the weights say {found[name]!r})" for name, value in said.items() if value != found[name]]
    if wrong:
        raise WxlabError(f"the settings do not fit the weights: {', '.join(wrong)}")


def _check_tables(state: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> None:
    missing = [name for name in tables if name not in state]
    if missing and len(missing) < len(tables):
        raise WxlabError(f"these are not the weights of an STLDM: missing {', '.join(missing)}")
    if not missing and not torch.allclose(state["alphas_cumprod"].float(), tables["alphas_cumprod"], rtol=1e-4, atol=1e-7):
        raise WxlabError("the weights were trained with another noise schedule than beta_schedule says; give config={'beta_schedule': ...}")
