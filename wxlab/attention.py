"""What a model attends to: attention weights read from any network, labelled.

Protocol, for whoever writes a model:

- After the softmax the network passes its weights [B, *axes] through a ``wxlab.nn.attention_tap.AttentionTap``, which returns them
  unchanged. The tap names the axes behind the batch axis, and each row over the last axis sums to 1:
  ``AttentionTap(("head", "target", "source"))``. ``kind`` tells different sorts of attention in one network apart.
- ``target`` and ``source`` are kept for axes that run over the predicted variables; a network whose variables are groups of channels has
  ``groups``, the number of channels in each. Other axes get other names (``window``, ``query``, ``key``) and are numbered. A model
  that knows better says so in ``attention_labels``, a mapping from the name of an axis to its labels.
- The weights need no gradient, and fused kernels that never form them cannot be tapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from wxlab.errors import WxlabError, unknown
from wxlab.models.base import Batch, Model
from wxlab.nn.attention_tap import AttentionTap


@dataclass
class _Reading:
    module: str
    call: int
    weights: np.ndarray


def capture(model: Model, batch: Batch, *, seed: int = 0) -> xr.Dataset:
    """Attention weights of one prediction in evaluation mode.

    model: any model with AttentionTap modules.  batch: normalised windows; it is moved to the model's device.
    seed: of the noise, for stochastic models.
    Returns one variable for each kind of attention with dims (layer, sample, *axes): for Met2Net ``attention`` (layer, sample, head,
    target, source), where ``target`` and ``source`` bear the channels' names and each row over ``source`` sums to 1. A layer is one
    pass through a tap, in order of execution: coordinates ``module`` and ``call`` say which (models that call a layer several times,
    such as diffusion samplers, have several calls). ``time`` along sample is the last observed time. Where two kinds disagree on
    the length of a dimension, its name gets the kind as suffix.
    Raises WxlabError when the model has no attention.
    """
    taps = {name: module for name, module in model.named_modules() if isinstance(module, AttentionTap)}
    if not taps:
        raise WxlabError(f"{model_name(model)} has no attention to capture; choose a model with attention, such as met2net")
    with _recording(taps) as readings, evaluating(model), torch.no_grad():
        model.predict(on_device_of(model, batch), members=1, generator=streams_for(model, batch, seed))
    kinds = _by_kind(taps, readings)
    if not kinds:
        raise WxlabError(f"{model_name(model)} made its prediction without passing through its attention; nothing was captured")
    return _dataset(model, batch, kinds)


def average(weights: xr.Dataset, over: str | Iterable[str] = ("layer", "head")) -> xr.Dataset:
    """Mean attention over whole dimensions; rows still sum to 1.

    weights: from ``capture``.  over: any of its dimensions but the last one of a kind, e.g. ``("sample", "head")`` for one map a layer.
    Raises WxlabError for a dimension that is not there, and for the one that rows sum over.
    """
    names = [over] if isinstance(over, str) else list(over)
    rows = {str(array.dims[-1]) for array in weights.data_vars.values()}
    for name in names:
        if name in rows:
            raise WxlabError(f"a mean over {name!r} says nothing, because rows sum to 1 along it; choose other dimensions")
        if name not in weights.dims:
            raise unknown("dimension", name, set(weights.dims) - rows)
    return weights.mean(names, keep_attrs=True)


def model_name(model: Model) -> str:
    return model.name or type(model).__name__


@contextmanager
def _recording(taps: dict[str, AttentionTap]) -> Iterator[list[_Reading]]:
    readings: list[_Reading] = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            calls = sum(reading.module == name for reading in readings)
            readings.append(_Reading(name, calls, output.detach().cpu().numpy()))

        return hook

    handles = [tap.register_forward_hook(hook_for(name)) for name, tap in taps.items()]
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def on_device_of(model: Model, batch: Batch) -> Batch:
    parameter = next(model.parameters(), None)
    return batch if parameter is None else batch.to(parameter.device, parameter.dtype)


def streams_for(model: Model, batch: Batch, seed: int) -> Any:
    if model.spec.stochastic == "none":
        return None
    from wxlab.rollout import Streams

    return Streams(seed, batch.time[:, model.spec.history - 1], 1, 0)


def _by_kind(taps: dict[str, AttentionTap], readings: Sequence[_Reading]) -> dict[str, tuple[tuple[str, ...], list[_Reading]]]:
    """Readings that can be stacked, by name of the variable they become: the tap's kind, numbered when shapes differ."""
    groups: dict[tuple[Any, ...], list[_Reading]] = {}
    for reading in readings:
        tap = taps[reading.module]
        groups.setdefault((tap.kind, tap.axes, reading.weights.shape), []).append(reading)
    named: dict[str, tuple[tuple[str, ...], list[_Reading]]] = {}
    for (kind, axes, _), members in groups.items():
        same = sum(other[0] == kind for other in list(groups)[: len(named)])
        named[f"{kind}_{same + 1}" if same else kind] = (axes, members)
    return named


def _dataset(model: Model, batch: Batch, kinds: dict[str, tuple[tuple[str, ...], list[_Reading]]]) -> xr.Dataset:
    arrays = {name: np.stack([reading.weights for reading in readings]) for name, (_, readings) in kinds.items()}
    lengths: dict[str, set[int]] = {}
    for name, (axes, _) in kinds.items():
        for axis, length in zip(("layer", "sample", *axes), arrays[name].shape, strict=True):
            lengths.setdefault(axis, set()).add(length)
    # kinds share their layers' coordinates only if there is one kind
    shared = {axis for axis, found in lengths.items() if len(found) == 1 and (axis != "layer" or len(kinds) == 1)}
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    for name, (axes, readings) in kinds.items():
        plain = ("layer", "sample", *axes)
        dims = tuple(axis if axis in shared else f"{axis}_{name}" for axis in plain)
        variables[name] = (dims, arrays[name], {"long_name": f"{name} weights", "units": "1"})
        suffix = "" if "layer" in shared else f"_{name}"
        coordinates[f"module{suffix}"] = (dims[0], [reading.module for reading in readings])
        coordinates[f"call{suffix}"] = (dims[0], [reading.call for reading in readings])
        for axis, dim, length in zip(plain, dims, arrays[name].shape, strict=True):
            coordinates[dim] = (dim, _labels(model, axis, length))
        if arrays[name].shape[1] == len(batch):
            last = batch.time[:, batch.history.shape[1] - 1].cpu().numpy().astype("datetime64[s]").astype("datetime64[ns]")
            coordinates["time"] = (dims[1], last)
    return xr.Dataset(variables, coordinates, {"model": model.name})


def _labels(model: Model, axis: str, length: int) -> Sequence[str] | np.ndarray:
    """Names along an axis: the model's own labels, variables for target and source, else numbers."""
    own = getattr(model, "attention_labels", {}).get(axis)
    if own is None and axis in ("target", "source"):
        own = variables_of(model)
    return list(own) if own is not None and len(own) == length else np.arange(length)


def variables_of(model: Model) -> list[str]:
    """Names of the model's variables: channels, or groups of channels joined by '+'."""
    channels = iter(model.spec.channels)
    groups: Sequence[int] = getattr(model, "groups", None) or [1] * len(model.spec.channels)
    return ["+".join(next(channels) for _ in range(size)) for size in groups]
