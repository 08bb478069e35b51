"""The authors' checkpoints of LaDCast: diffusers-style folders and training checkpoints, read and written without diffusers.

A folder holds ``config.json`` and ``diffusion_pytorch_model.safetensors``; a training checkpoint holds such folders for the averaged
weights (``encdec_ema``, ``ar_model_ema``) and the last ones. What is one projection here can be several there, rows one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.files import write_json
from wxlab.models.base import Model
from wxlab.models.weights import read_checkpoint, write_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"
Source = str | os.PathLike[str] | Mapping[str, Any]
Names = Callable[[str], list[str]]  # of one of our tensors: those that it is made of


def read(
    source: Source, section: str, folders: Sequence[str], config: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and settings.

    source: a folder, a training checkpoint, a weights file or a state dict.  section: of a config that has several.  folders: of a
    training checkpoint, the first that is there counts.  config: goes before what the file says.
    """
    given = dict(config or {})
    nested = given.pop(section, None)
    settings: dict[str, Any] = {}
    if not isinstance(source, Mapping):
        path = Path(source)
        if path.is_dir():
            path = next((path / name for name in folders if (path / name).is_dir()), path)
            settings = _read_config(path / "config.json")
            pickled = path / WEIGHTS.replace(".safetensors", ".bin")
            path = pickled if pickled.is_file() and not (path / WEIGHTS).is_file() else path / WEIGHTS
        elif (path.parent / "config.json").is_file():
            settings = _read_config(path.parent / "config.json")
        source = path
    state, stored = read_checkpoint(source)
    return state, {**stored, **settings, **given, **(nested if isinstance(nested, Mapping) else {})}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise WxlabError(f"{path.parent} holds no config.json; give a folder as save_pretrained writes it, or a weights file") from None
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise WxlabError(f"{path} is not readable as JSON; take another copy of the checkpoint")
    return values


def load(model: Model, state: Mapping[str, Tensor], names: Names, what: str) -> None:
    """Load the authors' tensors; one WxlabError names every missing, unexpected and misshapen key."""
    loaded, problems, used = {}, [], set[str]()
    for name, own in model.state_dict().items():
        theirs = names(name)
        used.update(theirs)
        missing = [key for key in theirs if key not in state]
        problems += [f"missing {key}" for key in missing]
        if missing:
            continue
        joined = [state[key] for key in theirs]
        rows, numbers = sum(len(part) for part in joined), sum(part.numel() for part in joined)
        if (rows, numbers) != (len(own), own.numel()):
            shapes = " + ".join(f"{key} {list(part.shape)}" for key, part in zip(theirs, joined, strict=True))
            problems.append(f"{shapes} should hold {len(own)} rows of {own[0].numel()} numbers")
        else:
            loaded[name] = torch.cat(joined).reshape(own.shape) if len(joined) > 1 else joined[0].reshape(own.shape)
    problems += [f"unexpected {key}" for key in state if key not in used]
    if problems:
        raise WxlabError(f"these are not the weights of {what}: {'; '.join(problems)}")
    model.load_state_dict(loaded)


def save(
    model: Model, names: Names, shape: Callable[[str, Tensor], Tensor], width: Callable[[str], int], config: dict[str, Any], path: Any
) -> dict[str, Tensor]:
    """The complete state dict under the authors' names, and a folder of it where a path is given.

    shape: puts a tensor of theirs into their shape.  width: rows of all but the last part of one of our joined tensors.
    """
    state = {}
    for name, value in model.state_dict().items():
        theirs = names(name)
        cuts = [width(name)] * (len(theirs) - 1)
        for key, part in zip(theirs, value.detach().split([*cuts, len(value) - sum(cuts)]), strict=True):
            state[key] = shape(key, part).clone()
    if path is not None:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(folder / WEIGHTS, state, {})
        write_json(folder / "config.json", config)
    return state


def require_agreement(settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise WxlabError where settings contradict what the shapes say."""

    def plain(value: Any) -> Any:
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    wrong = [key for key in found if plain(settings.get(key, found[key])) != plain(found[key])]
    if wrong:
        listing = ", ".join(f"{key}={settings[key]!r} (the weights say {found[key]!r})" for key in wrong)
        raise WxlabError(f"the settings do not fit the weights: {listing}")


def chosen(given: Sequence[str] | None, usual: Sequence[str], count: int, kind: str) -> tuple[str, ...]:
    """Names that were given, else the usual ones where their number fits, else numbered ones.  Raises WxlabError for a wrong number."""
    if given is None:
        return tuple(usual) if len(usual) == count else tuple(f"{kind}_{i}" for i in range(count))
    if len(given) != count:
        raise WxlabError(f"{len(given)} names of {kind}s were given for weights with {count}; name each one, in the order of the weights")
    return tuple(given)
