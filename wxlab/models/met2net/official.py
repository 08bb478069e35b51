"""The authors' checkpoints of Met2Net: their key names, their settings, and ours.

Two kinds. ``released``: every channel is a variable, keys ``enc_q_list.{i}``. ``paper`` (the first public code): channels in groups
[2, 1, 1, 1], keys ``enc_u10_q`` and so on, which do not mean what they say: ``u10`` is u10 and v10, ``v10`` is t2m, ``t2m`` tcc, ``tcc`` r.
In both ``q`` is the network and ``k`` its momentum copy; inside an encoder, a decoder and a block the names are ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models.base import Spec
from wxlab.models.met2net.network import Met2Net, build
from wxlab.models.met2net.recipe import TwoStage
from wxlab.models.weights import load_exactly, read_checkpoint, write_checkpoint
from wxlab.normaliser import Normaliser, Transform

Role = Literal["q", "k"]
PAPER_NAMES = ("u10", "v10", "t2m", "tcc")
PAPER_CHANNELS = ("u10", "v10", "t2m", "tcc", "r")
PAPER_GROUPS = (2, 1, 1, 1)
HOUR = 3600  # step of every published model

CHANNELS = {  # the authors' short names; level variables are at 1000 hPa but for q and z
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "t2m": "2m_temperature",
    "tcc": "total_cloud_cover",
    "r": "relative_humidity_1000",
    "tp": "total_precipitation_1hr",
    "z": "geopotential_500",
    "tisr": "toa_incident_solar_radiation",
    "q": "specific_humidity_850",
    "msl": "mean_sea_level_pressure",
}
ASIA = Grid(tuple(12.25 + 0.25 * i for i in range(128)), tuple(110 + 0.25 * i for i in range(128)))  # of the ERA5 wind experiments


def load_official(source: str | os.PathLike[str] | Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Met2Net:
    """A Met2Net with the authors' weights, in evaluation mode.

    source: Lightning ``.ckpt``, bare ``.pth``, ``.safetensors`` or a state dict, of either kind. Momentum copies are checked by name and
    left out; ``load_momentum`` gives them to a recipe.
    config: the authors' settings, which go before those in the file. Sizes follow from the shapes; ``in_shape`` [T, C, H, W] is needed for
    H and W where the file has no settings. ``data_name`` (list) names the channels, ``test_mean`` and ``test_std`` become the normaliser.
    A ``grid`` (a Grid) replaces the one that H and W stand for: global, the East Asian box of 0.25 degrees for ``dataname`` with "era5",
    pixels for moving digits and taxi flows.
    Raises WxlabError naming every missing, unexpected and misshapen key, and settings that contradict the shapes.
    """
    state, settings = read_checkpoint(source)
    settings.update(config or {})
    paper = _is_paper(state)
    sizes, channels, frames = _sizes(state, paper)
    _check_settings(settings, {**sizes, "T": frames, "C": channels})
    names = _channel_names(settings, channels, paper)
    spec = Spec(channels=names, grid=_grid(settings), history=frames, horizon=frames, step=HOUR)
    model = build(spec, **sizes)
    _load_role(model, state, "q", paper)
    if any(_ours(key, "k", paper) for key in state):
        expected = {_official(name, "k", paper) for name in model.state_dict()}
        _require_same_keys({key for key in state if _ours(key, "k", paper)}, expected)
    model.normaliser = _normaliser(settings, names)
    return model.eval()


def load_momentum(recipe: TwoStage, source: str | os.PathLike[str] | Mapping[str, Any]) -> None:
    """Give the momentum copies of an official checkpoint to a recipe, so that training goes on where the authors' left off."""
    state, _ = read_checkpoint(source)
    _load_role(recipe, state, "k", _is_paper(state))


def save_official(model: Met2Net, recipe: TwoStage | None = None, path: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
    """The complete state dict under the authors' names, and a file of it where a path is given.

    recipe: whose momentum copies are written; None: the network itself stands for them (as it does at the start of training).
    path: ``.safetensors``, ``.pth`` or ``.ckpt`` (Lightning's layout, with the settings).  Groups [2, 1, 1, 1] are written as ``paper``.
    """
    paper = model.groups == PAPER_GROUPS
    state = {}
    owners: tuple[tuple[Role, Met2Net | TwoStage], ...] = (("q", model), ("k", recipe or model))
    for role, owner in owners:
        state.update({_official(name, role, paper): value.detach().clone() for name, value in owner.state_dict().items()})
    if path is not None:
        shape = [model.spec.history, len(model.spec.channels), *model.spec.grid.shape]
        sizes = {name: model.config[name] for name in ("hid_S", "hid_T", "N_S", "N_T")}
        settings = {"in_shape": shape, **sizes, "data_name": _short_names(model.spec.channels)}
        if recipe is not None:
            settings["momentum_ema"] = recipe.alpha
        write_checkpoint(path, state, settings)
    return state


def _is_paper(state: Mapping[str, Tensor]) -> bool:
    if any(key.startswith("enc_q_list.") for key in state):
        return False
    if any(key.startswith("enc_u10_q.") for key in state):
        return True
    found = ", ".join(list(state)[:3])
    raise WxlabError(f"these are not Met2Net weights: no key begins with 'enc_q_list.' or 'enc_u10_q.' (the first keys are {found})")


def _ours(key: str, role: Role, paper: bool) -> str | None:
    """Our name of an official key; None when it is not of this role."""
    if match := re.match(rf"hid_{role}\.(.+)", key):
        return "translator." + match[1].replace(".ff.ff1.", ".block.")
    if match := re.match(rf"(enc|dec)_({'|'.join(PAPER_NAMES)})_{role}\.(.+)" if paper else rf"(enc|dec)_{role}_list\.(\d+)\.(.+)", key):
        index = PAPER_NAMES.index(match[2]) if paper else match[2]
        return f"{match[1]}oders.{index}.{match[3]}"
    return None


def _official(name: str, role: Role, paper: bool) -> str:
    """The official key of our name."""
    part, rest = name.split(".", 1)
    if part == "translator":
        return f"hid_{role}." + rest.replace(".block.", ".ff.ff1.")
    index, rest = rest.split(".", 1)
    return f"{part[:3]}_{PAPER_NAMES[int(index)]}_{role}.{rest}" if paper else f"{part[:3]}_{role}_list.{index}.{rest}"


def _load_role(module: Met2Net | TwoStage, state: Mapping[str, Tensor], role: Role, paper: bool) -> None:
    other: Role = "k" if role == "q" else "q"
    renamed, given = {}, {name: _official(name, role, paper) for name in module.state_dict()}
    for key, value in state.items():
        if _ours(key, other, paper) is None:
            name = _ours(key, role, paper) or key
            renamed[name], given[name] = value, key
    load_exactly(module, renamed, given, f"this Met2Net ({'paper' if paper else 'released'} kind)")


def _require_same_keys(found: set[str], expected: set[str]) -> None:
    problems = [f"missing {key}" for key in sorted(expected - found)] + [f"unexpected {key}" for key in sorted(found - expected)]
    if problems:
        raise WxlabError(f"the momentum copies do not fit the network: {'; '.join(problems)}")


def _sizes(state: Mapping[str, Tensor], paper: bool) -> tuple[dict[str, Any], int, int]:
    """The network's options, its channels and its frames, from the shapes."""
    ours = {name: value for key, value in state.items() if (name := _ours(key, "q", paper))}

    def count(pattern: str) -> int:
        return len({match[1] for name in ours if (match := re.match(pattern, name))})

    def rows(name: str, axis: int = 0) -> int:
        if name not in ours or ours[name].dim() <= axis:
            raise WxlabError(f"the Met2Net weights lack {_official(name, 'q', paper)}, so sizes cannot be told; the file is incomplete")
        return ours[name].shape[axis]

    groups = [rows(f"encoders.{i}.enc.0.conv.conv.weight", 1) for i in range(count(r"encoders\.(\d+)\."))]
    sizes: dict[str, Any] = {
        "hid_S": rows("encoders.0.enc.0.conv.conv.weight"),
        "hid_T": rows("translator.conv1.weight"),
        "N_S": count(r"encoders\.0\.enc\.(\d+)\."),
        "N_T": count(r"translator\.layers\.(\d+)\."),
        "groups": None if set(groups) == {1} else groups,
        "block": "tau" if any(".spatial_gating_unit.fc." in name for name in ours) else "gsta",
    }
    return sizes, sum(groups), rows("translator.conv2.weight") // sizes["hid_S"]


def _check_settings(settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise WxlabError where settings contradict what the shapes say."""
    if "in_shape" not in settings and "grid" not in settings:
        raise WxlabError("the rows and columns of the grid are not in the weights; give config={'in_shape': [T, C, H, W]}")
    said = {name: settings[name] for name in ("hid_S", "hid_T", "N_S", "N_T", "block") if name in settings}
    if "in_shape" in settings:
        shape = list(settings["in_shape"])
        if len(shape) != 4:
            raise WxlabError(f"in_shape={shape} must be four numbers [T, C, H, W]")
        said["T"], said["C"] = shape[:2]
    wrong = [f"{name}={value!r} (the weights say {found[name]!r})" for name, value in said.items() if value != found[name]]
    if wrong:
        raise WxlabError(f"the settings do not fit the weights: {', '.join(wrong)}")


def _grid(settings: Mapping[str, Any]) -> Grid:
    if isinstance(settings.get("grid"), Grid):
        return settings["grid"]
    rows, columns = (int(length) for length in settings["in_shape"][2:])
    data = str(settings.get("dataname", ""))
    if "era5" in data and (rows, columns) == ASIA.shape:
        return ASIA
    if "mnist" in data or "taxibj" in data:
        return Grid(tuple(range(rows)), tuple(range(columns)), kind="xy")
    return Grid.regular(rows, columns)


def _channel_names(settings: Mapping[str, Any], channels: int, paper: bool) -> tuple[str, ...]:
    names = settings.get("data_name")
    if not isinstance(names, (list, tuple)) or len(names) != channels:
        names = PAPER_CHANNELS if paper else [f"channel_{i}" for i in range(channels)]
    return tuple(CHANNELS.get(name, name) for name in names)


def _short_names(channels: Sequence[str]) -> list[str]:
    short = {long: name for name, long in CHANNELS.items()}
    return [short.get(name, name) for name in channels]


def _normaliser(settings: Mapping[str, Any], names: Sequence[str]) -> Normaliser | None:
    """The z-score that the checkpoint's settings hold (statistics of the authors' test period); None without them."""
    if settings.get("test_mean") is None or settings.get("test_std") is None:
        return None
    means, stds = (np.asarray(settings[name], dtype=np.float64).ravel() for name in ("test_mean", "test_std"))
    if len(means) != len(names) or len(stds) != len(names):
        raise WxlabError(f"the settings have {len(means)} means and {len(stds)} standard deviations for {len(names)} channels")
    return Normaliser({name: Transform("zscore", float(m), float(s)) for name, m, s in zip(names, means, stds, strict=True)})
