"""The authors' checkpoints of Mosaic: their key names, their settings and files, and ours.

Parameters bear the same names here and there. What else their files may hold, geometry and static fields, is left out by the newer ones
and computed again; where it is there it is used, so that ties between neighbours fall as they fell for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.healpix_mesh import unit_vectors
from wxlab.models.base import Spec
from wxlab.models.mosaic.blocks import standardised
from wxlab.models.mosaic.building import DEFAULTS, build
from wxlab.models.mosaic.clock import QUARTER
from wxlab.models.mosaic.network import CLOCK, PLACES, Mosaic, token_places
from wxlab.models.mosaic.statistics import CHANNELS, STATIC, read_static, read_statistics
from wxlab.models.weights import load_exactly, read_checkpoint, write_checkpoint

PREFIX = "model."
GEOMETRY = re.compile(r"(static_vars|.*\.(neighbors|rel_pos|(q|k)_rope\.(cos|sin)_freqs))$")


def load_official(source: str | os.PathLike[str] | Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Mosaic:
    """A Mosaic with the authors' weights, in evaluation mode.

    source: their ``.pt``, ``.safetensors`` or a state dict, with the geometry or without it.
    config: their settings (``nv``, ``hist``, ``nlon``, ``nlat``, ``k``, ``noise_dim``, ``dim``, ``heads``, ``affine``, ``sparse_every``,
    ``stages``, ``bott``, ``step_stride``), of which the published sizes need none; ``variables`` names the channels; ``norm_stats`` and
    ``static_vars`` are their files (or the arrays in them) and become the normaliser and part of the model. ``grid`` (a Grid) gives the
    same points in another order; ``selection_heads`` and ``year_feature`` are as in ``create_model``. Without static fields, in the
    weights or as a file, the model reads them with each batch.
    Raises WxlabError naming every missing, unexpected and misshapen key, and settings that contradict the shapes.
    """
    state, settings = read_checkpoint(source)
    settings = {**settings, **(config or {})}
    stored = {name: value for name, value in state.items() if GEOMETRY.match(name)}
    weights = {name: value for name, value in state.items() if name not in stored}
    sizes = _sizes(weights, stored, settings)
    spec, static = _spec(weights, stored, settings)
    model = build(spec, **sizes, kept_static=static)
    names = {name: PREFIX + name for name in (*model.state_dict(), *weights)}
    load_exactly(model, weights if model.kept is None else {**weights, "kept": model.kept}, names, "this Mosaic")
    unexpected = [PREFIX + name for name in stored if name not in geometry(model)]
    if unexpected:
        raise WxlabError(f"these are not the weights of this Mosaic: unexpected {', '.join(unexpected)}")
    if _same_points(stored, spec.grid):
        _take_geometry(model, stored)
    if "static_vars" in settings:
        model.keep_static(torch.from_numpy(read_static(settings["static_vars"], spec.grid)))
    if "norm_stats" in settings:
        model.normaliser = read_statistics(settings["norm_stats"], spec.channels, spec.static)
    return model.eval()


def save_official(model: Mosaic, path: str | os.PathLike[str] | None = None, *, with_geometry: bool = True) -> dict[str, Tensor]:
    """The complete state dict under the authors' names, and a file of it where a path is given (``.safetensors``, ``.pt``).

    with_geometry: also what can be computed again: neighbours, directions, rotary tables and, where the model keeps them, static fields.
    """
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    if with_geometry:
        whole = model.kept is not None or not model.spec.static
        state.update({name: value.clone() for name, value in geometry(model).items() if whole or name != "static_vars"})
    state = {PREFIX + name: value for name, value in state.items()}
    if path is not None:
        write_checkpoint(path, state, {})
    return state


def geometry(model: Mosaic) -> dict[str, Tensor]:
    """What the authors' files hold beside the parameters, by their names without prefix."""
    found = {name: value for name, value in model.named_buffers() if name.endswith((".neighbors", ".rel_pos"))}
    kept = [model.kept] if model.kept is not None else []
    found["static_vars"] = torch.cat([*kept, model.places], dim=1).unsqueeze(1)
    for name, stage in model.named_modules():
        for index in range(len(getattr(stage, "blocks", ()))):
            for letter in "qk":
                place = f"{name}.blocks.{index}.attention.{letter}_rope"
                table = cast(Any, stage).rotary
                found[f"{place}.cos_freqs"], found[f"{place}.sin_freqs"] = table.cos, table.sin
    return found


def _same_points(stored: Mapping[str, Tensor], grid: Grid) -> bool:
    """Whether stored geometry is of this grid, by the places beside the static fields; without these, shapes must do."""
    if "static_vars" not in stored:
        return True
    own, theirs = standardised(unit_vectors(token_places(grid))), stored["static_vars"].flatten(0, -2)[:, -PLACES:]
    return own.shape == theirs.shape and torch.allclose(theirs.to(own), own, atol=1e-3)


def _take_geometry(model: Mosaic, stored: Mapping[str, Tensor]) -> None:
    """Use stored neighbours, directions and static fields that fit the grid; rotary tables are the same everywhere."""
    own = geometry(model)
    for name, value in stored.items():
        if own[name].shape != value.shape:
            continue
        if name == "static_vars":
            columns = value[:, 0].to(model.places)
            if model.kept is not None:
                model.kept = columns[:, : model.kept.shape[1]].clone()
            model.places = columns[:, -PLACES:].clone()
        elif name.endswith((".neighbors", ".rel_pos")):
            sources = len(model.places) if name.startswith("interp_to_hp") else model.levels[0].tokens
            if name.endswith(".neighbors") and not 0 <= int(value.min()) <= int(value.max()) < sources:
                raise WxlabError(f"{PREFIX}{name} names points beyond the {sources} that there are; the file is broken")
            model.get_submodule(name.rpartition(".")[0]).register_buffer(
                name.rpartition(".")[2], value.to(own[name].dtype).clone(), persistent=False
            )


def _number(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise WxlabError(f"{name}={value!r} of the settings must be a whole number")
    return int(value)


def _shape(weights: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in weights or weights[name].ndim != 2:
        raise WxlabError(f"the Mosaic weights lack {PREFIX}{name}, so sizes cannot be told; the file is incomplete or of another model")
    return weights[name].shape[axis]


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _sizes(weights: Mapping[str, Tensor], stored: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The network's options: from shapes, from the settings where shapes do not tell, else the published ones."""
    steps = _count(weights, r"downsample_layers\.(\d+)\.")
    width = [_shape(weights, "preprocess.0.weight", 0)] + [_shape(weights, f"downsample_layers.{i}.proj_x.weight", 0) for i in range(steps)]
    stages = [*settings.get("stages", ()), *([settings["bott"]] if "bott" in settings else [])]
    if stages and len(stages) != steps + 1:
        raise WxlabError(f"the settings have {len(stages)} levels and the Mosaic weights {steps + 1}; give all stages and bott")
    published = width == list(DEFAULTS["width"])
    if not stages and not published:
        raise WxlabError(
            f"the weights are of levels of width {width}, and the mesh, windows and blocks of those are not in them; "
            "give config={'stages': [...], 'bott': {...}} with nside, num_heads, block_attn_size, sparse_block_size, sparse_block_count"
        )
    sizes = _level_sizes(stages)
    prefixes = [f"encoder_stages.{i}" for i in range(steps)] + ["bottleneck"]
    rows = [_shape(weights, f"{prefix}.blocks.0.attention.to_k.weight", 0) for prefix in prefixes]
    sizes["kv_heads"] = [row * heads // each for row, heads, each in zip(rows, sizes["heads"], width, strict=True)]
    sizes["width"] = width
    sizes.update(_depths(weights, stages, steps))
    sizes["noise_dim"] = _shape(weights, "noise_generator.to_noise.weight", 0)
    sizes["mlp_ratio"] = _shape(weights, f"{prefixes[-1]}.blocks.0.ffn.w2.weight", 1) / width[-1]
    sizes["affine"] = "preprocess.1.weight" in weights
    sizes["sparse_every"] = _number(settings, "sparse_every", 1)
    neighbours = stored.get("interp_to_hp.neighbors")
    history = (_shape(weights, "preprocess.0.weight", 1) - PLACES - CLOCK) // _shape(weights, "postprocess.3.weight", 0)
    default = (24 if history == 2 else 20) if neighbours is None else neighbours.shape[1]
    sizes["neighbours"] = _number(settings, "k", default)
    sizes.update({name: settings[name] for name in ("selection_heads", "year_feature") if name in settings})
    _refuse_contradictions(settings, {"dim": width[0], "heads": sizes["heads"][0], "noise_dim": sizes["noise_dim"], "k": default}, stored)
    for stage, found in zip(stages, width, strict=False):
        if stage.get("dim", found) != found:
            raise WxlabError(f"the settings do not fit the weights: dim={stage['dim']} (the weights say {found})")
    return sizes


def _level_sizes(stages: Sequence[Any]) -> dict[str, Any]:
    """Sizes of each level by our names: from the settings, or the published ones where there are none."""
    names = {
        "nside": "nside", "heads": "num_heads", "window": "block_attn_size", "block": "sparse_block_size", "count": "sparse_block_count",
    }  # fmt: skip
    for stage in stages:
        lacking = [repr(name) for name in names.values() if not isinstance(stage, Mapping) or name not in stage]
        if lacking:
            raise WxlabError(f"a level of the settings lacks {', '.join(lacking)}; give {', '.join(names.values())} for each")
    return {our: [_number(stage, their, 0) for stage in stages] if stages else list(DEFAULTS[our]) for our, their in names.items()}


def _depths(weights: Mapping[str, Tensor], stages: Sequence[Any], steps: int) -> dict[str, Any]:
    """Blocks of each level: the published ones, or what the settings say, so that a file that was cut short is no smaller network.

    Counted in the weights where the settings do not tell.
    """
    if not stages:
        published = {name: list(DEFAULTS[name]) for name in ("encoder_depth", "decoder_depth")}
        return {**published, "bottleneck_depth": DEFAULTS["bottleneck_depth"]}

    def depth(index: int, name: str, place: str) -> int:
        return _number(stages[index], name, _count(weights, rf"{re.escape(place)}\.blocks\.(\d+)\."))

    return {
        "encoder_depth": [depth(i, "encoder_depth", f"encoder_stages.{i}") for i in range(steps)],
        "decoder_depth": [depth(i, "decoder_depth", f"decoder_stages.{steps - 1 - i}") for i in range(steps)],
        "bottleneck_depth": depth(-1, "depth", "bottleneck"),
    }


def _refuse_contradictions(settings: Mapping[str, Any], found: Mapping[str, int], stored: Mapping[str, Tensor]) -> None:
    """Raise WxlabError where settings contradict what the shapes say."""
    told = {name for name in found if name != "k" or "interp_to_hp.neighbors" in stored}
    differing = [name for name in sorted(told & set(settings)) if settings[name] != found[name]]
    wrong = [f"{name}={settings[name]!r} (the weights say {found[name]})" for name in differing]
    if wrong:
        raise WxlabError(f"the settings do not fit the weights: {', '.join(wrong)}")


def _spec(weights: Mapping[str, Tensor], stored: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[Spec, int]:
    """What the model reads and writes, and how many static fields it keeps."""
    channels = _shape(weights, "postprocess.3.weight", 0)
    extra = stored["static_vars"].shape[-1] - PLACES if "static_vars" in stored else len(STATIC)
    history, rest = divmod(_shape(weights, "preprocess.0.weight", 1) - extra - PLACES - CLOCK, channels)
    if rest or history < 1:
        raise WxlabError(f"the weights read no whole number of states of {channels} channels beside {extra} fields; the file is broken")
    _refuse_contradictions(settings, {"nv": channels, "hist": history}, stored)
    given = settings.get("variables", CHANNELS if channels == len(CHANNELS) else [f"channel_{i}" for i in range(channels)])
    names = (given,) if isinstance(given, str) else tuple(given)
    if len(names) != channels:
        raise WxlabError(f"variables names {len(names)} channels, and the weights write {channels}")
    grid = settings.get("grid")
    if not isinstance(grid, Grid):
        grid = Grid.regular(_number(settings, "nlat", 121), _number(settings, "nlon", 240))
    step = _number(settings, "step_stride", 4 if history == 2 else 1) * QUARTER
    fits = "static_vars" in stored and _same_points(stored, grid)
    kept = extra if fits or "static_vars" in settings else 0
    static = () if kept else STATIC
    return Spec(channels=names, grid=grid, history=history, horizon=1, step=step, static=static), kept
