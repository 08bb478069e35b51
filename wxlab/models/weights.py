"""Published weights in files of unknown origin: tensors and plain values are read, code never is."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wxlab.errors import WxlabError, unknown
from wxlab.files import atomic_file

KINDS = (".safetensors", ".pt", ".pth", ".ckpt")


def _numpy_globals() -> list[Any]:
    """What numpy arrays among a checkpoint's settings are made of, by the module names of numpy 1 and of numpy 2."""
    makers = {"_reconstruct": np.zeros(1).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    renamed = [(maker, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, maker in makers.items()]
    return [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}, *renamed]


def read_checkpoint(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and settings of a checkpoint.

    source: ``.safetensors``, a torch file (a bare state dict, one under ``model_state``, or Lightning's dict with ``state_dict`` and
    ``hyper_parameters``), or such a dict itself. A prefix ``model.`` of all keys is removed.
    Returns the tensors by name, and the settings ({} where there are none).
    Raises WxlabError for a file that is missing, broken, without weights, or that wants to run code when read.
    """
    content: Any = source if isinstance(source, Mapping) else _read(Path(source))
    where = "the given dict" if isinstance(source, Mapping) else str(source)
    settings: Mapping[str, Any] = {}
    for name in ("state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            settings, content = content.get("hyper_parameters") or {}, content[name]
    if isinstance(content, Mapping) and isinstance(content.get("model_state"), Mapping):
        content = content["model_state"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WxlabError(f"{where} holds no weights: neither tensors by name nor such under 'state_dict'; give the file of a training run")
    if all(name.startswith("model.") for name in content):
        content = {name.removeprefix("model."): value for name, value in content.items()}
    return dict(content), dict(settings)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise WxlabError(f"there is no checkpoint file {path}; give the path of a .ckpt, .pth, .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_numpy_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual pickle protocols: what cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"(?:GLOBAL|unsupported class|unrecognized function) ([\w.]+)", str(error))
        if culprit is None:
            raise WxlabError(f"{path} cannot be read as a checkpoint; it may be cut short or of another kind") from None
        raise WxlabError(
            f"{path} was not read: it holds {culprit[1]}, and only tensors, numbers and text are accepted, because anything else "
            "can run code when read; have its author save the state dict alone"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError):
        raise WxlabError(f"{path} cannot be read as a checkpoint; it may be cut short or of another kind") from None


def write_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write a state dict in the kind that the name says: ``.safetensors``, ``.pt`` and ``.pth`` bare, ``.ckpt`` in Lightning's layout."""
    path = Path(path)
    if path.suffix not in KINDS:
        raise unknown("kind of checkpoint file", path.suffix, KINDS)
    with atomic_file(path) as temporary:
        if path.suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in state.items()}, temporary)
        elif path.suffix in (".pt", ".pth"):
            torch.save(dict(state), temporary)
        else:
            prefixed = {f"model.{name}": value for name, value in state.items()}
            torch.save({"state_dict": prefixed, "hyper_parameters": dict(settings), "hparams_name": "kwargs"}, temporary)


def load_exactly(module: torch.nn.Module, state: Mapping[str, Tensor], given: Mapping[str, str], what: str) -> None:
    """Load ``state`` (our names) into ``module``; one WxlabError names every missing, unexpected and misshapen key.

    given: our name -> the name in the file, for the messages.  what: whose weights they are.
    """
    own = module.state_dict()
    problems = [f"missing {given.get(name, name)}" for name in own if name not in state]
    problems += [f"unexpected {given.get(name, name)}" for name in state if name not in own]
    problems += [
        f"{given.get(name, name)} has shape {list(state[name].shape)} and should have {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        raise WxlabError(f"these are not the weights of {what}: {'; '.join(problems)}")
    module.load_state_dict(dict(state))
