"""The incremental stage: new variables for a trained VA-MoE, its old weights carried over by name and held back from training."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from wxlab.channels import LEVEL_VARIABLES, belongs, split_channel
from wxlab.errors import WxlabError, unknown
from wxlab.models.base import Model
from wxlab.models.vamoe.network import FREEZE, VAMoE, build, require_vamoe, variable_groups

Mapping = Literal["by_name", "by_number"]
Freeze = Literal["coded", "strict", "none"]
# tensors with an axis of channels, and which; in the decoder's rows channels are innermost
CHANNEL_AXES = {
    "loss_gen.logvar": 1,
    "loss_recons.logvar": 1,
    "patch_embed.proj.weight": 1,
    "posembedder.mlp.0.weight": 1,
    "head.weight": 0,
}


def extend(
    model: Model,
    variables: str | Sequence[str] | None = None,
    *,
    levels: Sequence[int] | None = None,
    channels: Sequence[str] | None = None,
    experts: Mapping = "by_name",
    freeze: Freeze = "coded",
    seed: int = 0,
) -> VAMoE:
    """A VA-MoE that knows further variables; train it on all of them, old and new, with ``wxlab.train``.

    model: a VA-MoE, which is left as it is.  variables: to be added, ``2m_temperature``, ``specific_humidity`` (at the model's levels)
    or single channels such as ``specific_humidity_500``.  levels: hPa, for variables on levels, instead of the model's.
    channels: the order of all channels, such as ``store.channels`` (``variables`` may then be left out); by default the new ones follow
    the old. A store in that order is made with ``variables=extended.spec.channels``.
    experts: ``by_name`` lets each variable keep its expert; ``by_number`` is the authors' way, which hands the expert of the surface to
    the first new variable on levels where the model already has surface variables.
    freeze: ``coded`` holds back attention, its norms and the experts that were carried over, as the authors' code does; ``strict``, as in
    the paper's figure, also the old columns of encoder and decoder, not even weight decay touches them; ``none``. It is part of the
    model's configuration, so that checkpoints and interrupted runs keep it.
    seed: of the new weights.

    Returns a new model without normaliser: that of the store with all variables will be its own.
    Raises WxlabError for variables that the model has, misspelt names, levels that it does not know, and channels that would be left out.
    """
    model = require_vamoe(model, "cannot be extended")
    for name, value, allowed in (("experts", experts, get_args(Mapping)), ("freeze", freeze, FREEZE)):
        if value not in allowed:
            raise unknown(name, value, allowed)
    everything = _all_channels(model, variables, levels, channels)
    sources = _sources(model.experts, tuple(variable_groups(everything)), experts)
    kept = {"channels": list(model.spec.channels), "experts": sources, "freeze": freeze}
    with _fresh_weights(model, seed):
        new = build(dataclasses.replace(model.spec, channels=everything), **{**model.config, "extension": kept})
    new.name, new.licence = model.name, model.licence
    new.to(next(model.parameters()))
    carry_over(model, new, experts)
    return new.train(model.training)


def carry_over(old: VAMoE, new: VAMoE, experts: Mapping = "by_name") -> None:
    """Give the weights of ``old`` to ``new``, in place: whole where shapes agree, by channel name where there is an axis of channels.

    What belongs to new channels, and experts of new variables, stays as it is in ``new``.
    Raises WxlabError where more than channels and experts differ, and where ``new`` lacks a channel of ``old``.
    """
    old, new = require_vamoe(old), require_vamoe(new)
    if experts not in get_args(Mapping):
        raise unknown("experts", experts, get_args(Mapping))
    lacking = [name for name in old.spec.channels if name not in new.spec.channels]
    if lacking:
        raise WxlabError(f"the new model lacks {', '.join(lacking)}, which the old one has; variables can be added, not removed")
    places = [new.spec.channels.index(name) for name in old.spec.channels]
    theirs, mine = old.state_dict(), new.state_dict()
    sources = _sources(old.experts, new.experts, experts)
    with torch.no_grad():
        for name, value in mine.items():
            source = _source_name(name, sources)
            if source is None or source not in theirs:
                continue
            given = theirs[source]
            if name in CHANNEL_AXES:
                _by_channel(name, value, len(new.spec.channels))[:, places] = _by_channel(name, given, len(old.spec.channels)).to(value)
            elif given.shape != value.shape:
                raise WxlabError(
                    f"{name} has shape {list(given.shape)} in the old model and {list(value.shape)} in the new one; "
                    "only channels may differ, not widths, depth, patches or the grid"
                )
            else:
                value.copy_(given)


def _by_channel(name: str, value: Tensor, channels: int) -> Tensor:
    """A view in which channels are the second axis."""
    return value.view(-1, channels, value.shape[-1]) if CHANNEL_AXES[name] == 0 else value


def _sources(old: Sequence[str], new: Sequence[str], experts: Mapping) -> list[int | None]:
    """For each expert of the new model the number of the old one that it continues.  old, new: the experts' variables."""
    if experts == "by_number":
        return [i if i < len(old) else None for i in range(len(new))]
    return [old.index(name) if name in old else None for name in new]


def _source_name(name: str, sources: Sequence[int | None]) -> str | None:
    """The old name of a tensor; None when it belongs to a new expert."""
    head, found, rest = name.partition(".moe.experts.")
    if not found:
        return name
    number, tensor = rest.split(".", 1)
    source = sources[int(number)]
    return None if source is None else f"{head}.moe.experts.{source}.{tensor}"


@contextlib.contextmanager
def _fresh_weights(model: VAMoE, seed: int) -> Iterator[None]:
    """New tensors on the meta device where the model is there, else drawn from the seed; global random numbers stay as they were."""
    meta = next(model.parameters()).is_meta
    with torch.random.fork_rng([]), torch.device("meta") if meta else contextlib.nullcontext():
        torch.manual_seed(seed)
        yield


def _all_channels(
    model: VAMoE, variables: str | Sequence[str] | None, levels: Sequence[int] | None, order: Sequence[str] | None
) -> tuple[str, ...]:
    """The channels of the extended model."""
    old = model.spec.channels
    if variables is None and order is None:
        raise WxlabError("no variable was named; give the new ones as variables=[...], or all channels in order as channels=store.channels")
    if order is not None:
        removed = [name for name in old if name not in order]
        if removed:
            raise WxlabError(f"channels leave out {', '.join(removed)}, which the model has; variables can be added, not removed")
    if variables is None:
        added = [name for name in order or () if name not in old]
    else:
        names = [variables] if isinstance(variables, str) or not isinstance(variables, Iterable) else list(variables)
        if not all(isinstance(name, str) and name for name in names):
            raise WxlabError(f"variables={variables!r} must be names, such as ['2m_temperature', 'specific_humidity']")
        added = [channel for name in names for channel in _channels_of(model, name, levels)]
        if levels is not None and names and not any(split_channel(channel)[1] for channel in added):
            raise WxlabError(f"levels={list(levels)} were given, and none of {', '.join(names)} lies on levels; leave them out")
    known = [name for name in added if name in old]
    if known:
        raise WxlabError(f"the model already has {', '.join(known)}; name only variables that are new")
    if len(set(added)) != len(added) or not added:
        twice = sorted({name for name in added if added.count(name) > 1})
        raise WxlabError(f"{', '.join(twice)} would be added twice; name each once" if twice else "no variable is new; name at least one")
    if order is None:
        return (*old, *added)
    _check_order(old, added, list(order))
    return tuple(order)


def _check_order(old: Sequence[str], added: Sequence[str], order: Sequence[str]) -> None:
    unfit = sorted({*added, *old} ^ {*order})
    if unfit or len(set(order)) != len(order):
        raise WxlabError(
            f"channels must name each old and each new channel once, and {', '.join(unfit) or 'some'} "
            f"{'are' if len(unfit) != 1 else 'is'} not in place; leave out variables= to add whatever is new in channels"
        )


def _channels_of(model: VAMoE, name: str, levels: Sequence[int] | None) -> list[str]:
    """Channels that a name stands for.  Raises WxlabError for levels that neither the model nor the caller knows."""
    if levels is not None and (isinstance(levels, str) or not isinstance(levels, Iterable)):
        raise WxlabError(f"levels={levels!r} must be a list of pressure levels in hPa, such as [850, 500]")
    own = list(dict.fromkeys(level for _, level in map(split_channel, model.spec.channels) if level is not None))
    variable, level = split_channel(name)
    if level is not None:
        allowed = [*own, *(levels or ())]
        if level not in allowed:
            raise WxlabError(f"{name!r} lies at {level} hPa, and {_levels_text(own)}; choose among them, or allow others with levels=[...]")
        return [name]
    if variable not in LEVEL_VARIABLES:
        _refuse_misspelt(name)
        return [name]
    if any(belongs(channel, name) for channel in model.spec.channels) and levels is None:
        raise WxlabError(f"the model already has {name}; name only variables that are new, or new levels of it with levels=[...]")
    chosen = own if levels is None else list(levels)
    if not chosen:
        raise WxlabError(f"{name!r} lies on levels, and {_levels_text(own)}; give levels=[...] in hPa")
    wrong = [level for level in chosen if isinstance(level, bool) or not isinstance(level, (int, np.integer)) or not 0 < level <= 1100]
    if wrong:
        raise WxlabError(f"{wrong[0]!r} hPa is no pressure level; give whole numbers between 1 and 1100, such as 500")
    return [f"{name}_{int(level)}" for level in chosen]


def _refuse_misspelt(name: str) -> None:
    """Names that the catalogue does not have may be a user's own, unless they are nearly one that it has."""
    from wxlab.catalog import load

    known = {*LEVEL_VARIABLES, *load().variables}
    near = get_close_matches(re.sub(r"_\d+$", "", name), known, n=1, cutoff=0.9)
    if name not in known and near:
        raise WxlabError(f"unknown variable {name!r}; did you mean {near[0]!r}? A name of your own is taken from channels=store.channels")


def _levels_text(levels: Sequence[int]) -> str:
    return f"the model's levels are {', '.join(map(str, levels))}" if levels else "the model has no levels"


def changed(before: VAMoE, after: VAMoE) -> list[str]:
    """Names of the tensors of ``after`` that were to stay what they are in ``before`` and did not: none, if all went well.

    before: the model that was extended.  after: the extended one, trained. Compared to the bit is what is frozen: whole tensors, and the
    columns of old channels where they are held (``strict``).
    Raises WxlabError when ``after`` is no extension of ``before``.
    """
    before, after = require_vamoe(before), require_vamoe(after)
    extension = after.config["extension"]
    if extension is None or tuple(extension["channels"]) != before.spec.channels:
        raise WxlabError("the second model is no extension of the first; give the model that wxlab.extend was given, and what came of it")
    theirs, held = before.state_dict(), {id(p) for p in after.partly_held()}
    places = [after.spec.channels.index(name) for name in before.spec.channels]
    moved = []
    for name, parameter in after.named_parameters():
        source, mine = _source_name(name, extension["experts"]), parameter.detach()
        if source is None or (parameter.requires_grad and id(parameter) not in held):
            continue
        same = theirs[source].to(mine)
        if id(parameter) in held:
            mine, same = _by_channel(name, mine, len(after.spec.channels))[:, places], _by_channel(name, same, len(places))
        if not torch.equal(mine, same):
            moved.append(name)
    return moved


# parts of the network by what the names of their tensors hold
PARTS = {
    "pos_embed": "position",
    "logvar": "log-variances",
    "patch_embed": "encoder",
    "head": "decoder",
    "posembedder": "index encoder",
    "norm1": "attention and its norms",
    "attn": "attention and its norms",
    "norm2": "attention and its norms",
    "Embedder": "gates",
    "shared_experts": "shared expert",
    "moe.norm": "after the experts",
    "moe.mlp": "after the experts",
}


def describe(model: VAMoE) -> pd.DataFrame:
    """What the last extension did to each tensor.

    Returns one row per tensor: ``tensor``, ``part`` of the network, ``shape``, ``numbers`` in it, ``origin`` (copied, partly copied,
    new), ``trained`` (all, new columns, none), ``copied`` and ``trainable``: how many of its numbers were carried over, and how many
    training moves.
    """
    model = require_vamoe(model)
    extension, rows = model.config["extension"], []
    held = {id(p) for p in model.partly_held()}
    old = len(extension["channels"]) / len(model.spec.channels) if extension else 0.0  # share of channels that were carried over
    for name, parameter in model.named_parameters():
        carried = extension is not None and _source_name(name, extension["experts"]) is not None
        origin = "new" if not carried else "partly copied" if name in CHANNEL_AXES else "copied"
        trained = "none" if not parameter.requires_grad else "new columns" if id(parameter) in held else "all"
        known = {"new": 0.0, "partly copied": old, "copied": 1.0}[origin]
        moving = {"none": 0.0, "new columns": 1 - old, "all": 1.0}[trained]
        rows.append(
            {
                "tensor": name, "part": _part(model, name), "shape": tuple(parameter.shape), "numbers": parameter.numel(),
                "origin": origin, "trained": trained, "copied": round(known * parameter.numel()),
                "trainable": round(moving * parameter.numel()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _part(model: VAMoE, name: str) -> str:
    _, found, rest = name.partition(".moe.experts.")
    if found:
        return f"expert of {model.experts[int(rest.split('.', 1)[0])]}"
    return next(part for word, part in PARTS.items() if word in name)
