"""What a training run is made of: the model that fits the store, its recipes, the device."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from wxlab.errors import WxlabError, unknown
from wxlab.models import create_model, get_entry
from wxlab.models.base import Model, Recipe
from wxlab.store import Store
from wxlab.training.settings import Settings


def model_for(model_or_name: Model | str, store: Store, options: Settings) -> Model:
    """The model to train.  Raises WxlabError when it does not fit the store."""
    if isinstance(model_or_name, str):
        shape = {"channels": store.channels, "grid": store.grid, "step": store.step, "forcing": store.forcing, "static": store.static}
        model = create_model(model_or_name, options.preset, **{**shape, **options.model})
    elif isinstance(model_or_name, Model):
        model = model_or_name
        given = sorted({"preset", "model"} & options.model_fields_set)
        if given:
            raise WxlabError(f"{' and '.join(given)} cannot change a model that is already made; give them to create_model")
    else:
        raise WxlabError(f"a {type(model_or_name).__name__} cannot be trained; give a name of the registry or a model from create_model")
    spec = model.spec
    for name in ("channels", "forcing", "static"):
        mine, theirs = getattr(spec, name), getattr(store, name)
        if mine != theirs and (mine or name == "channels"):
            raise WxlabError(f"the model's {name} {list(mine)} are not the store's {list(theirs)}; create it with {name}=store.{name}")
    if spec.grid.shape != store.grid.shape:
        raise WxlabError(f"the model's grid has {spec.grid.shape} points, the store's {store.grid.shape}; create it with grid=store.grid")
    same = all(np.allclose(mine, theirs, atol=1e-3) for mine, theirs in ((spec.grid.y, store.grid.y), (spec.grid.x, store.grid.x)))
    if spec.grid.kind != store.grid.kind or not same:
        raise WxlabError(f"the model's grid has the size of the store's, {store.grid.shape}, but other coordinates; use grid=store.grid")
    return model


def stages_of(model: Model, options: Settings) -> list[Recipe]:
    """The recipes of the model, one after the other; none when there is nothing to train."""
    make = get_entry(model.name).recipe
    given = {**options.recipe, **({} if options.lr is None else {"lr": options.lr})}
    if make is None:
        if given:
            raise WxlabError(f"{model.name} has nothing to train, so it takes no {' or '.join(given)}")
        return []
    allowed = _keywords(make)
    for name in given:
        if name not in allowed:
            raise unknown(f"recipe setting of {model.name}", name, allowed)
    try:
        built = make(model, **given)
    except TypeError as error:
        raise WxlabError(f"the recipe of {model.name} cannot use {given}: {error}") from None
    return built if isinstance(built, list) else [built]


def _keywords(make: Callable[..., Any]) -> set[str]:
    """Settings that a recipe takes; ``**settings`` of a class are those of the class above it."""
    found: set[str] = set()
    functions: list[Any] = [vars(c)["__init__"] for c in make.__mro__ if "__init__" in vars(c)] if isinstance(make, type) else [make]
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        found |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found - {"self", "model"}


@contextlib.contextmanager
def randomness_kept() -> Iterator[None]:
    """Leave the global random streams as they were."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def accelerator_for(options: Settings, stages: list[Recipe]) -> Accelerator:
    """A fresh accelerator: its state is global, and an earlier run of this process may have set it otherwise."""
    gpu = torch.cuda.is_available()
    if options.device == "cuda" and not gpu:
        raise WxlabError("device='cuda' was asked for, and torch finds no GPU; give device='auto' or 'cpu'")
    cpu = options.device == "cpu" or not gpu
    if options.precision == "fp16" and cpu:
        raise WxlabError("precision='fp16' needs a GPU; give 'bf16' or 'no'")
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    unused = DistributedDataParallelKwargs(find_unused_parameters=any(recipe.unused_parameters for recipe in stages))
    return Accelerator(cpu=cpu, mixed_precision=options.precision, kwargs_handlers=[unused])
