"""Trained models on disk: one safetensors file whose header says all that a forecast needs; a JSON copy lies beside it for people."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import wxlab
from wxlab.climatology import Climatology
from wxlab.errors import WxlabError
from wxlab.files import atomic_file, write_json
from wxlab.grids import Grid
from wxlab.models import get_entry
from wxlab.models.base import Model, Spec
from wxlab.normaliser import Normaliser

FORMAT = "wxlab-checkpoint-1"
CLIMATOLOGY = "normaliser.climatology"  # tensor beside the weights, when the normaliser has one
_PACKAGES = ("torch", "numpy", "safetensors")


def save_checkpoint(model: Model, path: str | os.PathLike[str], **extra: Any) -> Path:
    """Write a model: weights, name, config, Spec, normaliser, versions, licence, citation, and ``extra`` facts (settings, scores).

    Weights and facts are one file, so that a kill at any moment leaves the old checkpoint or the new one.  Returns its path.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target.with_suffix(".safetensors") if target.suffix == ".json" else target.with_name(target.name + ".safetensors")
    facts = {
        **extra,
        "format": FORMAT,
        "model": model.name,
        "config": model.config,
        "spec": model.spec.to_dict(),
        "normaliser": _units(model.normaliser),
        "licence": model.licence,
        "citation": get_entry(model.name).citation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"wxlab": wxlab.__version__, **{name: version(name) for name in _PACKAGES}},
    }
    facts = json.loads(json.dumps(facts, default=plain))
    # clones, because the format refuses tensors that share memory, such as tied weights
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if model.normaliser and model.normaliser.climatology:
        tensors[CLIMATOLOGY] = torch.tensor(model.normaliser.climatology.coefficients)
    with atomic_file(target) as temporary:
        save_file(tensors, temporary, metadata={"wxlab": json.dumps(facts)})
    write_json(target.with_suffix(".json"), facts)
    return target


def load_checkpoint(path: str | os.PathLike[str]) -> Model:
    """The model of a checkpoint, ready to forecast: in eval mode, with ``spec``, ``normaliser``, ``name``, ``config``, ``licence``.

    path: a run folder (its best checkpoint), or the ``.safetensors`` or ``.json`` file; what counts is the ``.safetensors`` file, the
    JSON beside it is a copy.  The other facts are at ``model.facts``.
    Raises WxlabError when the file is missing, damaged, no checkpoint of this version, or does not fit the model.
    """
    file = _locate(Path(path))
    facts, tensors = read_checkpoint(file)
    climate = tensors.pop(CLIMATOLOGY, None)
    try:
        model = rebuild(facts, climate)
    except WxlabError as error:
        raise WxlabError(f"the header of {file} describes a model that cannot be built: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise WxlabError(f"the header of {file} is damaged or of another version of wxlab; train again, or take another copy") from None
    needed = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = [name for name in sorted({*needed, *shapes}) if name not in needed or shapes.get(name) != needed[name].shape]
    if wrong:
        raise WxlabError(
            f"the weights of {file} do not fit the {facts['model']!r} that its header describes: {len(wrong)} of {len(needed)} tensors are "
            f"missing, unexpected or of another shape, the first is {wrong[0]!r}; take another copy, or train again"
        )
    model.load_state_dict(tensors)
    return model.eval()


def read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and weights of a checkpoint file."""
    try:
        with safe_open(file, framework="pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        facts = json.loads(header.get("wxlab", "{}"))
    except (SafetensorError, OSError, ValueError):
        raise WxlabError(f"{file} is damaged or no safetensors file; take another copy, or train again") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise WxlabError(
            f"{file} is not a checkpoint of this version ({FORMAT}); give one that wxlab.train wrote, "
            "or use wxlab.load_official for released weights"
        )
    return facts, tensors


def rebuild(facts: dict[str, Any], climate: Tensor | None = None) -> Model:
    """The model that a checkpoint's facts describe, with fresh weights.  climate: the coefficients of its normaliser's climatology."""
    model = get_entry(facts["model"]).build(Spec.from_dict(facts["spec"]), **facts["config"])
    model.name, model.licence, model.facts = facts["model"], facts["licence"], facts
    units = facts["normaliser"]
    if units:
        terms, climatology = units.get("climatology"), None
        if terms and climate is not None:
            climatology = Climatology(climate.numpy(), terms["hours"], terms["channels"], model.spec.grid)
        model.normaliser = Normaliser.from_dict(units, climatology)
    return model


def _units(normaliser: Normaliser | None) -> dict[str, Any] | None:
    if normaliser is None:
        return None
    climatology = normaliser.climatology
    terms = {"hours": climatology.hours, "channels": climatology.channels} if climatology else None
    return {**normaliser.to_dict(), "climatology": terms}


def plain(value: Any) -> Any:
    """What JSON does not know, as something that it does."""
    if isinstance(value, Grid):
        return value.to_dict()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return str(value)


def _locate(path: Path) -> Path:
    if path.is_dir():
        path = path / "best.safetensors"
        if not path.is_file():
            raise WxlabError(f"{path.parent} holds no best.safetensors; train there first, or name a checkpoint file")
        return path
    if path.suffix not in (".safetensors", ".json"):
        raise WxlabError(f"{path} is no checkpoint; give a run folder, a .safetensors or a .json file")
    if not path.with_suffix(".safetensors").is_file():
        raise WxlabError(f"there is no checkpoint at {path.with_suffix('.safetensors')}; train with wxlab.train, which returns its path")
    return path.with_suffix(".safetensors")
