"""Trained models on disk: one safetensors file whose header says all that a forecast needs; a JSON copy lies beside it for people."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.files import atomic_file, write_json
from wxlab.models import create_model, get_entry
from wxlab.models.base import Model, Spec
from wxlab.normaliser import Normaliser

FORMAT = "wxlab-checkpoint-1"
_PACKAGES = ("wxlab", "torch", "numpy")


def save_checkpoint(model: Model, path: str | os.PathLike[str], **extra: Any) -> Path:
    """Write a model: weights, name, config, Spec, normaliser, versions, licence, citation, and ``extra`` facts (settings, scores).

    Weights and facts are one file, so that a kill at any moment leaves the old checkpoint or the new one.  Returns its path.
    """
    target = Path(path).with_suffix(".safetensors")
    facts = {
        "format": FORMAT,
        "model": model.name,
        "config": model.config,
        "spec": model.spec.to_dict(),
        "normaliser": model.normaliser.to_dict() if model.normaliser else None,
        "licence": model.licence,
        "citation": get_entry(model.name).citation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {name: version(name) for name in _PACKAGES},
        **extra,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_file(target) as temporary:
        save_file(tensors, temporary, metadata={"wxlab": json.dumps(facts)})
    write_json(target.with_suffix(".json"), facts)
    return target


def load_checkpoint(path: str | os.PathLike[str]) -> Model:
    """The model of a checkpoint, ready to forecast: in eval mode, with ``spec``, ``normaliser``, ``name``, ``config``, ``licence``.

    path: a run folder (its best checkpoint), or the ``.safetensors`` or ``.json`` file.  The other facts are at ``model.facts``.
    Raises WxlabError when the file is missing, damaged, no checkpoint of this version, or does not fit the model.
    """
    file = _locate(Path(path))
    facts, tensors = read_checkpoint(file)
    model = rebuild(facts)
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise WxlabError(f"the weights of {file} do not fit the {facts['model']!r} that its header describes; train again") from None
    return model.eval()


def read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and weights of a checkpoint file."""
    try:
        with safe_open(file, framework="pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError):
        raise WxlabError(f"{file} is not a readable safetensors file; it is damaged or something else") from None
    facts = json.loads(header.get("wxlab", "{}"))
    if facts.get("format") != FORMAT:
        raise WxlabError(
            f"{file} is not a checkpoint of this version ({FORMAT}); give one that wxlab.train wrote, "
            "or use wxlab.load_official for released weights"
        )
    return facts, tensors


def rebuild(facts: dict[str, Any]) -> Model:
    """The model that a checkpoint's facts describe, with fresh weights."""
    spec = Spec.from_dict(facts["spec"])
    shape = {name: getattr(spec, name) for name in ("channels", "grid", "history", "horizon", "step", "history_step", "forcing", "static")}
    model = create_model(facts["model"], **shape, **facts["config"])
    model.normaliser = Normaliser.from_dict(facts["normaliser"]) if facts["normaliser"] else None
    model.licence, model.facts = facts["licence"], facts
    return model


def _locate(path: Path) -> Path:
    if path.is_dir():
        path = path / "best.safetensors"
        if not path.is_file():
            raise WxlabError(f"{path.parent} holds no best.safetensors; train there first, or name a checkpoint file")
        return path
    if path.suffix not in (".safetensors", ".json"):
        raise WxlabError(f"{path} is no checkpoint; give a run folder, a .safetensors or a .json file")
    if not path.with_suffix(".safetensors").is_file():
        raise WxlabError(f"there is no checkpoint at {path}; train with wxlab.train, which returns its path")
    return path.with_suffix(".safetensors")
