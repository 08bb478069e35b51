"""The registry: every model by name, its presets, how it is built, trained and given the authors' weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from wxlab.errors import WxlabError, unknown
from wxlab.grids import Grid
from wxlab.models.base import Batch, Model, Recipe, Spec

__all__ = ["Batch", "Entry", "Model", "Recipe", "Spec", "create_model", "get_entry", "list_models", "load_official"]

SPEC_FIELDS = frozenset(f.name for f in dataclasses.fields(Spec)) - {"stochastic", "multiples"}

# name -> where its Entry lies; imported only when asked for
_REGISTRY = {
    "met2net": "wxlab.models.met2net:ENTRY",
    "stldm": "wxlab.models.stldm:ENTRY",
    "vamoe": "wxlab.models.vamoe:ENTRY",
    "persistence": "wxlab.models.baselines.reference:PERSISTENCE",
    "climatology": "wxlab.models.baselines.reference:CLIMATOLOGY",
    "random_walk": "wxlab.models.baselines.reference:RANDOM_WALK",
    "extrapolation": "wxlab.models.baselines.nowcast:EXTRAPOLATION",
    "sprog": "wxlab.models.baselines.nowcast:SPROG",
    "steps": "wxlab.models.baselines.nowcast:STEPS",
    "simvp": "wxlab.models.baselines.simvp:SIMVP",
    "tau": "wxlab.models.baselines.simvp:TAU",
    "convlstm": "wxlab.models.baselines.convlstm:ENTRY",
    "vit": "wxlab.models.baselines.vit:ENTRY",
    "topk_moe": "wxlab.models.baselines.topk_moe:ENTRY",
    "ladder_joint": "wxlab.models.baselines.ladder:JOINT",
    "ladder_separate": "wxlab.models.baselines.ladder:SEPARATE",
    "ladder_attention": "wxlab.models.baselines.ladder:ATTENTION",
    "ladcast_autoencoder": "wxlab.models.ladcast:AUTOENCODER",
    "ladcast": "wxlab.models.ladcast:TRANSFORMER",
    "mosaic": "wxlab.models.mosaic:ENTRY",
}


@dataclass(frozen=True)
class Entry:
    """One registered model.

    presets: name -> keyword arguments, any of the Spec's fields (``grid`` may be (rows, columns)) and of the network's own.
    build(spec, **config) -> Model.  recipe(model, **settings) -> Recipe or list of Recipes (stages); None: nothing to train.
    official(state_dict, config) -> Model; None: there are no published weights.
    """

    name: str
    title: str
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[..., Model]
    recipe: Callable[..., Recipe | list[Recipe]] | None = None
    official: Callable[..., Model] | None = None
    citation: str = ""
    licence: str = "Apache-2.0"
    official_licence: str = ""  # of the published weights, where it is another
    options: frozenset[str] = field(default_factory=frozenset)  # names of the network's own settings


def list_models() -> list[str]:
    """Names that ``create_model`` knows."""
    return list(_REGISTRY)


def get_entry(name: str) -> Entry:
    """The registry's entry of a model."""
    if name not in _REGISTRY:
        raise unknown("model", name, _REGISTRY)
    module, attribute = _REGISTRY[name].split(":")
    entry: Entry = getattr(import_module(module), attribute)
    return entry


def create_model(name: str, preset: str = "tiny", **overrides: Any) -> Model:
    """A new model by name.

    name: one of ``list_models()``.  preset: a named set of sizes (``tiny`` is for tests, ``demo`` trains in minutes, the others
    are the published ones).  overrides: any field of the Spec (``channels``, ``grid`` as Grid or (rows, columns), ``history``,
    ``horizon``, ``step`` in seconds, ...) or option of the network.
    Raises WxlabError for an unknown model, preset or option, and for sizes that do not fit together.
    """
    entry = get_entry(name)
    if preset not in entry.presets:
        raise unknown(f"preset of {name}", preset, entry.presets)
    settings = {**entry.presets[preset], **overrides}
    allowed = SPEC_FIELDS | entry.options
    for key in settings:
        if key not in allowed:
            raise unknown(f"option of {name}", key, allowed)
    grid = settings.get("grid")
    if isinstance(grid, (tuple, list)):
        settings["grid"] = Grid.regular(*grid)
    spec = Spec(**{key: value for key, value in settings.items() if key in SPEC_FIELDS})
    model = entry.build(spec, **{key: value for key, value in settings.items() if key not in SPEC_FIELDS})
    model.name, model.licence = name, entry.licence
    return model


def load_official(
    name: str, path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], *, config: Mapping[str, Any] | None = None
) -> Model:
    """A model with the authors' released weights, by their key names.

    path_or_state_dict: a checkpoint file (read safely, never unpickling code) or a state dict.  config: the authors' own field
    names; what the shapes already say may be missing.
    Raises WxlabError naming every missing and unexpected key.
    """
    entry = get_entry(name)
    if entry.official is None:
        with_weights = [n for n in _REGISTRY if get_entry(n).official is not None]
        raise WxlabError(f"{name!r} has no published weights; models that have: {', '.join(with_weights)}")
    if config is not None and not isinstance(config, Mapping):
        raise WxlabError(f"config={config!r} is not a mapping of the authors' settings; give a dict, or leave it out")
    model = entry.official(path_or_state_dict, dict(config or {}))
    model.name, model.licence = name, entry.official_licence or entry.licence
    return model
