"""The authors' checkpoints of VA-MoE: a dict with ``model_state``, ``epoch`` and ``iters`` in a file that ends in ``.tar`` (and is none).

Keys are ours; those of runs in several processes begin with ``module.``. The file says nothing of variables, levels, heads and grid.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.files import atomic_file
from wxlab.grids import Grid
from wxlab.models.base import Spec
from wxlab.models.vamoe.network import VAMoE, build, require_vamoe, variable_groups
from wxlab.models.weights import load_exactly, read_checkpoint
from wxlab.readers import npy_tree

HOUR = 3600
# the authors' names in their order; w and r are in their data, not in their model
UPPER_AIR = {short: variable for variable, short in npy_tree.UPPER_AIR.items()}
SURFACE = {short: variable for variable, short in npy_tree.SURFACE.items()}
LEVELS = (1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 50)
# the authors' names of settings, with the shorter ones of their summaries: name here -> names there
SETTINGS = {
    "embed_dim": ("embed_dim", "E"),
    "depth": ("depth", "encoder_depths"),
    "patch": ("patch", "patch_size"),
    "heads": ("heads", "num_blocks"),
    "rows": ("rows", "h", "h_size"),
    "columns": ("columns", "w", "w_size"),
    "window": ("window", "window_size"),
    "interval": ("interval",),
    "topk": ("topk",),
    "expert_gain": ("expert_gain",),
    "channels": ("channels", "feature_dims", "in_channels", "out_channels"),
    "experts": ("experts", "num_exports", "num_experts"),
}


def load_official(source: str | os.PathLike[str] | Mapping[str, Any], config: Mapping[str, Any] | None = None) -> VAMoE:
    """A VA-MoE with the authors' weights, in evaluation mode.

    source: their ``.tar`` file or dict, or a state dict, with or without the prefix ``module.``.
    config: what shapes do not say, in the authors' names: ``h_size`` and ``w_size`` (or a ``grid``, a Grid; 8192 tokens without either
    mean 128 x 256, rows from north to south without poles), ``num_blocks`` (heads, 16 unless given), ``higher_features`` and
    ``surface_features`` (their names or ours), ``levels``; or ``channel_order``, all channels. What is not given follows the authors'
    lists: z, q, u, v, t on 13 levels, then t2m, u10, v10, msl, sp.
    Raises WxlabError naming every missing, unexpected and misshapen key, and settings that contradict the shapes.
    """
    state = _state(source)
    settings = _settings(config or {})
    sizes, found = _sizes(state)
    wrong = [f"{name}={settings[name]!r} (the weights say {size!r})" for name, size in found.items() if settings.get(name, size) != size]
    if wrong:
        raise WxlabError(f"the settings do not fit the weights: {', '.join(wrong)}; correct them or leave them out")
    sizes["topk"] = _topk(settings.get("topk"), found["embed_dim"], found["chosen"])
    sizes["heads"] = settings.get("heads", 16)
    sizes |= {name: settings[name] for name in ("window", "interval", "expert_gain") if name in settings}
    channels = _channels(settings, found["channels"], found["experts"])
    spec = Spec(channels=channels, grid=_grid(settings, found["tokens"], found["patch"]), history=1, horizon=1, step=6 * HOUR)
    groups = len(variable_groups(channels))
    if groups != found["experts"]:
        raise WxlabError(f"the weights have {found['experts']} experts, and the variables named need {groups}; correct the variables")
    model = build(spec, **sizes)
    for name in ("loss_gen.logvar", "loss_recons.logvar"):  # lacking where the authors' plain losses were used
        state.setdefault(name, torch.zeros(1, len(channels), 1, 1))
    load_exactly(model, state, {}, "this VA-MoE")
    return model.eval()


def save_official(model: VAMoE, path: str | os.PathLike[str] | None = None, *, epoch: int = 0, iters: int = 0) -> dict[str, Tensor]:
    """The state dict in the authors' order of channels, and a file of it where a path is given.

    Their order is variables on levels, variable by variable, then the others; a model with another order is turned into it.
    path: of the ``.tar`` file that their scripts read, with ``epoch`` and ``iters`` and without optimiser state.
    """
    model = require_vamoe(model)
    order = [position for positions in variable_groups(model.spec.channels).values() for position in positions]
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("logvar") or name in ("patch_embed.proj.weight", "posembedder.mlp.0.weight"):
            value = value[:, order]
        elif name == "head.weight":
            value = value.view(model.patch**2, len(order), -1)[:, order].flatten(0, 1)
        state[name] = value.detach().clone()
    if path is not None:
        with atomic_file(path) as temporary:
            prefixed = {f"module.{name}": value for name, value in state.items()}
            torch.save({"iters": iters, "epoch": epoch, "model_state": prefixed}, temporary)
    return state


def _state(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    state, _ = read_checkpoint(source)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings under our names; those that are about other things are left out."""
    ours = {there: here for here, names in SETTINGS.items() for there in names}
    settings = {ours[name]: value for name, value in config.items() if name in ours and value is not None}
    kept = ("grid", "levels", "higher_features", "surface_features", "channel_order")
    return {**settings, **{name: config[name] for name in kept if config.get(name) is not None}}


def _sizes(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, int]]:
    """The network's options, and all sizes, from the shapes."""

    def shape(name: str, dims: int) -> Sequence[int]:
        if name not in state or state[name].dim() != dims:
            raise WxlabError(f"these are not VA-MoE weights: {name} is missing or has not {dims} axes, so sizes cannot be told")
        return state[name].shape

    def count(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    width, channels, patch, _ = shape("patch_embed.proj.weight", 4)
    found = {
        "embed_dim": width,
        "channels": channels,
        "patch": patch,
        "depth": count(r"blocks\.(\d+)\."),
        "experts": count(r"blocks\.0\.moe\.experts\.(\d+)\."),
        "chosen": shape("blocks.0.moe.experts.0.gate_proj.weight", 2)[1],
        "tokens": shape("pos_embed", 3)[1],
    }
    return {name: found[name] for name in ("embed_dim", "depth", "patch")}, found


def _topk(given: float | None, width: int, chosen: int) -> float:
    """The divisor that leaves each expert ``chosen`` of ``width`` channels."""
    if given is None:
        given = width // chosen if width % chosen == 0 else width / chosen
        if int(width / given) < chosen:  # of some pairs the quotient is rounded up
            given = math.nextafter(given, 0)
    if int(width / given) != chosen:
        raise WxlabError(f"topk={given!r} leaves each expert {int(width / given)} of {width} channels, and the weights have {chosen}")
    return given


def _grid(settings: Mapping[str, Any], tokens: int, patch: int) -> Grid:
    """Given, or global rows from north to south without poles."""
    grid = settings.get("grid")
    if isinstance(grid, Grid):
        rows, columns = grid.shape
    elif "rows" in settings and "columns" in settings:
        rows, columns = int(settings["rows"]), int(settings["columns"])
    elif tokens * patch**2 == 128 * 256:
        rows, columns = 128, 256
    else:
        raise WxlabError(
            f"the weights have {tokens} tokens, which does not tell rows from columns; give config={{'h_size': ..., 'w_size': ...}}"
        )
    patches = (rows // patch) * (columns // patch)
    if patches != tokens:
        raise WxlabError(f"a grid of {rows} x {columns} has {patches} patches, and the weights have {tokens} tokens; give the right one")
    north_first = tuple(90 - 180 * (i + 0.5) / rows for i in range(rows))
    return grid if isinstance(grid, Grid) else Grid(north_first, tuple(360 / columns * i for i in range(columns)))


def _channels(settings: Mapping[str, Any], channels: int, experts: int) -> tuple[str, ...]:
    """Names of the channels, from the authors' lists where nothing else was given."""
    if "channel_order" in settings:
        names = tuple(_channel_name(str(name)) for name in settings["channel_order"])
    else:
        levels = [float(level) for level in settings.get("levels", LEVELS)]
        upper, surface = _variables(settings, channels, experts, len(levels))
        names = (*(f"{variable}_{level:g}" for variable in upper for level in levels), *surface)
    if len(names) != channels:
        raise WxlabError(
            f"the weights have {channels} channels, and the variables and levels named make {len(names)}; "
            "give config={'higher_features': [...], 'surface_features': [...], 'levels': [...]}"
        )
    return names


def _variables(settings: Mapping[str, Any], channels: int, experts: int, levels: int) -> tuple[list[str], list[str]]:
    """Variables on levels and others: those given, else as many of the authors' as the shapes have room for."""
    higher, single = settings.get("higher_features"), settings.get("surface_features")
    on_levels = len(higher) if higher is not None else experts if channels == experts * levels else experts - 1
    upper = list(UPPER_AIR)[:on_levels] if higher is None else list(higher)
    surface = list(SURFACE)[: max(0, channels - on_levels * levels)] if single is None else list(single)
    return [UPPER_AIR.get(name, name) for name in upper], [SURFACE.get(name, name) for name in surface]


def _channel_name(name: str) -> str:
    """Ours of the authors' ``z500``, ``t2m``; other names stay."""
    if name in SURFACE:
        return SURFACE[name]
    match = re.fullmatch(rf"({'|'.join(UPPER_AIR)})_?(\d+)(?:\.0)?", name)
    return f"{UPPER_AIR[match[1]]}_{match[2]}" if match else name
