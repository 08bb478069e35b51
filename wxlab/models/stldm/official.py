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
from torch import Tensor

from wxlab.errors import WxlabError, is_number, is_whole, unknown
from wxlab.files import atomic_file
from wxlab.grids import Grid, parse_grid
from wxlab.models.base import Spec
from wxlab.models.stldm.network import SIZES, STLDM, build
from wxlab.models.stldm.presets import PRESETS, UNITS
from wxlab.models.weights import load_exactly, read_checkpoint, write_checkpoint
from wxlab.nn.diffusion import Schedule
from wxlab.normaliser import Normaliser

# our name -> theirs, first match; their wrappers of an attention are all called "fn"
_PARTS = [("vae", "backbone.vae"), ("translator", "backbone.hid"), ("denoiser.time", "diff_unet.time_mlp.mlp"), ("denoiser", "diff_unet")]
_ATTENTION = re.compile(r"diff_unet\.(downs\.\d+|mid|ups\.\d+)\.(spatial|temporal)\.(norm\.g|.+)")
_THEIR_ATTENTION = re.compile(r"diff_unet\.(downs\.\d+|mid|ups\.\d+)\.(?:attn1|q?attn_(spatial|temporal|time))\.fn\.(?:fn\.)?(.+)")


def load_official(source: str | os.PathLike[str] | Mapping[str, Any], config: Mapping[str, Any] | None = None) -> STLDM:
    """An STLDM with the authors' weights, in evaluation mode.

    source: ``.pt``, ``.safetensors``, a Hugging Face folder (its ``config.json`` is read too) or a state dict.
    config: the authors' settings, which go before those of the folder: ``vp_param`` (shape_in, shape_out, ...), ``stldm_param``, and
    timesteps, sampling_timesteps, objective, beta_schedule, ddim_sampling_eta as they are or under ``param``; ``type`` ``3D`` or ``2D``;
    ``cfg_str``, the strength of the guidance, which no checkpoint holds (0 unless given). Sizes follow from the shapes.

    ``preset``, ``sevir``, ``hko7`` or ``meteonet``, says on what the weights were trained, so that the model can forecast at once::

        model = load_official("stldm", "folder", config={"preset": "hko7", "cfg_str": 1.0})
        store = prepare("hko7", "hko7.zarr", grid="128x128", method="bilinear", nan="mask")
        forecast(model, store, steps=20, members=10)

    It gives the variable, the minutes of a step, the grid (the archive's area in as many cells as ``shape_in`` says, 128x128 by itself)
    and the units; what is missing is read as no rain, as the authors do. ``channels``, ``step`` (minutes) and ``grid`` (a Grid, such as
    a store's) go before it. Without a preset they are reflectivity (``channel_1``, ... where the weights have several channels), 5
    minutes (6 where 20 frames or more are written, as for HKO-7), and rows and columns by their numbers, and a forecast needs
    ``model.normaliser``, such as that of a store whose values lie between 0 and 1.
    Raises WxlabError naming every missing, unexpected and misshapen key, and settings that contradict the weights.
    """
    state, settings = _read(source)
    settings.update(_flat(config or {}))
    if not any(key.startswith("backbone.") for key in state) or not any(key.startswith("diff_unet.") for key in state):
        found = ", ".join(list(state)[:3])
        raise WxlabError(f"these are not STLDM weights: no key begins with 'backbone.' and 'diff_unet.' (the first keys are {found})")
    sizes, frames_in, frames_out = _sizes(state, settings)
    _check_settings(settings, {**sizes, "shape_in": frames_in, "shape_out": frames_out})
    spec = _spec(settings, frames_in, frames_out)
    sampling = {ours: settings[theirs] for ours, theirs in _SAMPLING.items() if settings.get(theirs) is not None}
    model = build(spec, **sizes, **sampling)
    tables = schedule_tables(model.schedule)
    weights = {key: value for key, value in state.items() if key not in tables}
    renamed = {our_name(key): value for key, value in weights.items()}
    expected = {name: their_name(name, sizes["temporal"]) for name in model.state_dict()}
    load_exactly(model, renamed, {**{our_name(key): key for key in weights}, **expected}, f"this STLDM ({_variant(sizes['temporal'])})")
    _check_tables(state, tables)
    if "preset" in settings:
        model.normaliser = Normaliser(dict.fromkeys(spec.channels, UNITS[settings["preset"]]), dict.fromkeys(spec.channels, "mask"))
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
    if not isinstance(config, Mapping):
        raise WxlabError(f"config={config!r} is not a mapping of the authors' settings, such as {{'timesteps': 50}}")
    flat = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    for part in ("vp_param", "stldm_param", "param"):
        inner = config.get(part) or {}
        if not isinstance(inner, Mapping):
            raise WxlabError(f"{part}={inner!r} is not a mapping of the authors' settings")
        flat.update(inner)
    return flat


def _variant(temporal: bool) -> str:
    return "spatio-temporal" if temporal else "spatial-only"


def _sizes(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[int], list[int]]:
    """The network's options, [T1, C] and [T2, C], from the shapes; what they do not say from the settings."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in state:
            raise WxlabError(f"the STLDM weights lack {key}, so sizes cannot be told; the file is incomplete")
        return tuple(state[key].shape)

    def count(pattern: str) -> int:
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    latent, channels = shape("backbone.vae.encoder.enc.0.conv.conv.weight")[:2]
    blocks, levels = count(r"backbone\.hid\.enc\.(\d+)\."), count(r"diff_unet\.downs\.(\d+)\.")
    base = shape("diff_unet.time_mlp.mlp.1.weight")[1]
    temporal = any(".attn_temporal." in key for key in state)
    inner = shape("diff_unet.mid." + ("qattn_spatial" if temporal else "attn1") + ".fn.fn.to_qkv.weight")[0] // 3
    heads = settings.get("heads", SIZES["heads"])
    if not is_whole(heads) or inner % heads:
        raise WxlabError(f"heads={heads!r} must be a whole number that divides the weights' {inner} channels of attention")
    single = settings.get("hid_T", SIZES["hid_T"])  # one block has no width of its own
    sizes = {
        "hid_S": latent,
        "hid_T": shape("backbone.hid.enc.1.block.layer_scale_1")[0] if blocks > 1 else single,
        "N_S": count(r"backbone\.vae\.encoder\.enc\.(\d+)\.") - 1,
        "N_T": blocks,
        "base_ch": base,
        "chs_mult": [shape(f"diff_unet.conditions.{level}.weight")[0] // base for level in range(levels)],
        "num_groups": settings.get("num_groups", SIZES["num_groups"]),
        "heads": heads,
        "dim_head": inner // heads,
        "patch_size": settings.get("patch_size", SIZES["patch_size"]),
        "temporal": temporal,
        "beta_schedule": settings.get("beta_schedule", SIZES["beta_schedule"]),
        "timesteps": len(state["betas"]) if "betas" in state else settings.get("timesteps", SIZES["timesteps"]),
    }
    history = shape("backbone.hid.enc.0.block.layer_scale_1")[0] // latent
    # a last block that is as wide as what it writes has no reduction, and then only the settings know T2
    reduction, said = f"backbone.hid.enc.{blocks - 1}.reduction.weight", _frames(settings, "shape_out")
    horizon = said[0] if said and reduction not in state else shape(reduction)[0] // (2 * latent)
    return sizes, [history, channels], [horizon, channels]


def _frames(settings: Mapping[str, Any], name: str) -> list[int] | None:
    """The setting ``shape_in`` or ``shape_out``: frames, channels, rows, columns; None where it is not given."""
    value = settings.get(name)
    if value is not None and not (isinstance(value, (list, tuple)) and len(value) == 4 and all(is_whole(number) for number in value)):
        raise WxlabError(f"{name}={value!r} must be four whole numbers: frames, channels, rows, columns")
    return None if value is None else list(value)


def _spec(settings: Mapping[str, Any], frames_in: list[int], frames_out: list[int]) -> Spec:
    """What is read and written: [T1, C] and [T2, C] of the weights; names, step and grid of the settings, else of their preset."""
    (history, count), horizon, preset = frames_in, frames_out[0], settings.get("preset")
    if "preset" in settings and str(preset) not in UNITS:
        raise unknown("preset of STLDM's published weights", preset, UNITS)
    known = PRESETS[preset] if preset else {}
    names = settings.get("channels") or known.get("channels")
    names = [names] if isinstance(names, str) else names or (["reflectivity"] if count == 1 else [f"channel_{i + 1}" for i in range(count)])
    if not isinstance(names, (list, tuple)) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise WxlabError(f"channels={names!r} must be the name(s) of the weights' {count} channel(s); give config={{'channels': [...]}}")
    minutes = settings.get("step", known.get("step", 300 if horizon < 20 else 360) / 60)
    seconds = round(60 * minutes) if is_number(minutes) else 0
    if seconds < 1 or abs(seconds - 60 * minutes) > 1e-6:
        raise WxlabError(f"step={minutes!r} must be a positive number of minutes that is a whole number of seconds")
    shape, grid = _frames(settings, "shape_in"), settings.get("grid")
    if grid is not None and not isinstance(grid, Grid):
        raise WxlabError(f"grid={grid!r} must be a wxlab.grids.Grid, such as a store's grid; rows and columns alone are given by shape_in")
    if grid is None:
        rows, columns = shape[2:] if shape else (128, 128)
        grid = parse_grid((rows, columns), known["grid"]) if known else Grid(tuple(range(rows)), tuple(range(columns)), kind="xy")
    return Spec(channels=tuple(names), grid=grid, history=history, horizon=horizon, step=seconds)


def _check_settings(settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise WxlabError where settings contradict what the weights say, or ask for what is not built."""
    asked = str(settings.get("type", ""))
    if asked and (asked != "2D") != found["temporal"]:
        raise WxlabError(
            f"the weights are of the {_variant(found['temporal'])} network and type={asked!r} asks for the "
            f"{_variant(not found['temporal'])} one; leave type out, or take the other checkpoint"
        )
    for name, built, why in (("objective", "pred_v", "predicts the velocity"), ("last_activation", "sigmoid", "ends in a sigmoid")):
        if settings.get(name, built) != built:
            raise WxlabError(f"{name}={settings[name]!r} is not supported; every published STLDM {why} ({built})")
    said = {name: settings[name] for name in found if name in settings and not name.startswith("shape")}
    if "in_ch" in settings:
        said["hid_S"] = settings["in_ch"]
    said.update({name: frames[:2] for name in ("shape_in", "shape_out") if (frames := _frames(settings, name))})
    said = {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}
    wrong = [f"{name}={value!r} (the weights say {found[name]!r})" for name, value in said.items() if value != found[name]]
    if wrong:
        raise WxlabError(f"the settings do not fit the weights: {', '.join(wrong)}")


def _check_tables(state: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> None:
    missing = [name for name in tables if name not in state]
    if missing and len(missing) < len(tables):
        raise WxlabError(f"these are not the weights of an STLDM: missing {', '.join(missing)}")
    if not missing and not torch.allclose(state["alphas_cumprod"].float(), tables["alphas_cumprod"], rtol=1e-4, atol=1e-7):
        raise WxlabError("the weights were trained with another noise schedule than beta_schedule says; give config={'beta_schedule': ...}")
