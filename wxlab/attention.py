"""What a model attends to: attention weights read from any network, labelled.

Protocol, for whoever writes a model:

- After the softmax the network passes its weights [B, *axes] through a ``wxlab.nn.attention_tap.AttentionTap``, which returns them
  unchanged. The tap names the axes behind the batch axis, and each row over the last axis sums to 1:
  ``AttentionTap(("head", "target", "source"))``. ``kind`` tells different sorts of attention in one network apart.
- A network whose fused kernel never forms the weights keeps that kernel for its output and calls the tap's ``show`` with queries and
  keys, which forms them beside it while someone reads: reading changes no bit of a prediction.
- ``target`` and ``source`` are kept for axes that run over the predicted variables; a network whose variables are groups of channels has
  ``groups``, the number of channels in each. Other axes get other names (``window``, ``query``, ``key``) and are numbered, until
  ``Model.attention_coordinates`` says what they stand for.
- What a network chooses (positions in place of weights) goes through a tap with ``into``, the axis that they point into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from wxlab.couplings import between_variables as between_variables
from wxlab.couplings import couplings as couplings
from wxlab.couplings import untrained as untrained
from wxlab.errors import WxlabError, is_whole, unknown
from wxlab.models.base import Batch, Model
from wxlab.models.base import Coordinates as Labels
from wxlab.nn.attention_tap import AttentionTap

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass
class _Reading:
    module: str
    call: int
    part: str
    heads: tuple[int, ...] | None
    weights: np.ndarray


def capture(
    model: Model,
    batch: Batch,
    *,
    layers: str | Sequence[str] | None = None,
    heads: int | Sequence[int] | None = None,
    dtype: Literal["float16", "float32", "float64"] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Attention weights of one prediction in evaluation mode, which comes out bit for bit as it does unread.

    model: any model with AttentionTap modules.  batch: normalised windows; it is moved to the model's device.
    layers: kinds of attention (``selection_*``), or modules by name or pattern (``translator.layers.0``, ``*.blocks.1.*``); None: all.
    heads: numbers of attention heads; None: all. Kinds without heads are kept whole.  dtype: of the weights that are kept; None: as
    they are computed, float32 at least. What is not asked for is not formed, or dropped as soon as it is.
    seed: of the noise, for stochastic models.
    Returns one variable for each kind of attention with dims (layer, sample, *axes): for Met2Net ``attention`` (layer, sample, head,
    target, source), where ``target`` and ``source`` bear the channels' names and each row over ``source`` sums to 1. A layer is one
    pass through a tap, in order of execution: coordinates ``module`` and ``call`` say which (models that call a layer several times,
    such as diffusion samplers, have several calls), and ``part`` which copy of the batch, where a model runs several side by side
    (guidance). ``time`` along sample is the last observed time. Other coordinates name experts and branches, and say where tokens,
    windows and blocks lie and which lead time frames have (``query_latitude``, ``key_lead``, ...). Variables of whole numbers are
    choices; their attribute ``into`` names the axis that they point into. Where kinds disagree on a dimension, its name and those of its
    coordinates get the kind as suffix.
    Raises WxlabError when the model has no attention, and for layers, heads and types that do not exist.
    """
    taps = _taps(model, layers)
    if not len(batch) or not torch.isfinite(batch.history).all():
        fault = "holds missing values (NaN)" if len(batch) else "is empty"
        raise WxlabError(f"the batch {fault}; give normalised windows, which hold 0 where nothing was observed")
    with _recording(taps, _heads(heads), _dtype(dtype), len(batch), model.batch_parts) as readings, evaluating(model), torch.no_grad():
        model.predict(on_device_of(model, batch), members=1, generator=streams_for(model, batch, seed))
    kinds = _by_kind(taps, readings)
    if not kinds:
        raise WxlabError(f"{model_name(model)} made its prediction without passing through its attention; nothing was captured")
    return _dataset(model, batch, taps, kinds)


def average(weights: xr.Dataset, over: str | Iterable[str] = ("layer", "head")) -> xr.Dataset:
    """Mean attention over whole dimensions; rows still sum to 1. Choices have no mean and are left out.

    weights: from ``capture``.  over: any of its dimensions but the last one of a kind, e.g. ``("sample", "head")`` for one map a layer.
    Raises WxlabError for a dimension that is not there, and for the one that rows sum over.
    """
    weights = weights[[name for name, array in weights.items() if "into" not in array.attrs]]
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


def _taps(model: Model, layers: str | Sequence[str] | None) -> dict[str, AttentionTap]:
    taps = {name: module for name, module in model.named_modules() if isinstance(module, AttentionTap)}
    if not taps:
        raise WxlabError(f"{model_name(model)} has no attention to capture; choose a model with attention, such as met2net")
    if layers is None:
        return taps
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise WxlabError(f"layers={layers!r} must be names or patterns of kinds or modules; leave it out for all of them")
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name, tap in taps.items() if any(fnmatchcase(word, pattern) for word in _words(name, tap))}
        if not found:
            modules, kinds = [name.rpartition(".")[0] for name in taps], {tap.kind: None for tap in taps.values()}
            close = get_close_matches(pattern, [*kinds, *modules], n=1, cutoff=0.0)[0]
            raise WxlabError(
                f"unknown layer pattern {pattern!r} of {model_name(model)}; did you mean {close!r}? "
                f"(kinds: {', '.join(kinds)}; modules: {', '.join(dict.fromkeys(modules))})"
            )
        chosen |= found
    return {name: tap for name, tap in taps.items() if name in chosen}


def _words(name: str, tap: AttentionTap) -> list[str]:
    """What a pattern may fit: the tap's kind, its name, and the names of the modules that it is part of."""
    parts = name.split(".")
    return [tap.kind, *(".".join(parts[:count]) for count in range(1, len(parts) + 1))]


def _heads(heads: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if heads is None:
        return None
    numbers = [int(number) if isinstance(number, np.integer) else number for number in np.atleast_1d(np.asarray(heads, dtype=object))]
    if not numbers or not all(is_whole(number, 0) for number in numbers):
        raise WxlabError(f"heads={heads!r} must be numbers of heads, from 0 on, such as heads=[0, 3]; leave it out for all of them")
    return tuple(sorted(set(numbers)))


def _dtype(dtype: str | None) -> torch.dtype | None:
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return None if dtype is None else DTYPES[dtype]


@contextmanager
def _recording(
    taps: dict[str, AttentionTap], heads: tuple[int, ...] | None, dtype: torch.dtype | None, samples: int, parts: tuple[str, ...]
) -> Iterator[list[_Reading]]:
    """Readings of the taps, as they are made; afterwards no hook is left."""
    readings: list[_Reading] = []
    calls = dict.fromkeys(taps, 0)

    def hook_for(name: str) -> Callable[..., None]:
        def hook(tap: AttentionTap, given: tuple[Any, ...], formed: dict[str, Any], output: Tensor) -> None:
            kept = tap.chosen(output.shape[1 + tap.axes.index("head")]) if "head" in tap.axes and not formed.get("heads") else None
            if kept is not None:
                output = output.index_select(1 + tap.axes.index("head"), torch.tensor(kept, device=output.device))
            names = parts if parts and len(output) == samples * len(parts) else ("",)
            for part, rows in zip(names, output.detach().chunk(len(names)), strict=True):
                readings.append(_Reading(name, calls[name], part, kept or formed.get("heads"), _numbers(tap, rows, dtype)))
                calls[name] += 1

        return hook

    handles = [tap.register_forward_hook(hook_for(name), with_kwargs=True) for name, tap in taps.items()]
    try:
        for tap in taps.values():
            tap.heads = heads
        yield readings
    finally:
        for handle in handles:
            handle.remove()
        for tap in taps.values():
            tap.heads = None


def _numbers(tap: AttentionTap, values: Tensor, dtype: torch.dtype | None) -> np.ndarray:
    """An array of its own, whatever becomes of the tensor."""
    kind = values.dtype if tap.into else dtype or torch.promote_types(values.dtype, torch.float32)
    return values.to("cpu", kind, copy=True).numpy()


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


def _by_kind(taps: dict[str, AttentionTap], readings: Sequence[_Reading]) -> dict[str, list[_Reading]]:
    """Readings that can be stacked, by name of the variable they become: the tap's kind, numbered when shapes differ."""
    groups: dict[tuple[Any, ...], list[_Reading]] = {}
    for reading in readings:
        tap = taps[reading.module]
        groups.setdefault((tap.kind, tap.axes, reading.weights.shape), []).append(reading)
    named: dict[str, list[_Reading]] = {}
    for (kind, _, _), members in groups.items():
        same = sum(other[0] == kind for other in list(groups)[: len(named)])
        named[f"{kind}_{same + 1}" if same else kind] = members
    return named


def _dataset(model: Model, batch: Batch, taps: dict[str, AttentionTap], kinds: dict[str, list[_Reading]]) -> xr.Dataset:
    found = {name: _coordinates(model, batch, taps[readings[0].module], readings) for name, readings in kinds.items()}
    axes = dict.fromkeys(axis for coordinates in found.values() for along, _ in coordinates.values() for axis in along)
    shared = {axis for axis in axes if _agree([coordinates for coordinates in found.values() if axis in coordinates], axis)}
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    for name, readings in kinds.items():
        tap = taps[readings[0].module]
        dims = {axis: axis if axis in shared else f"{axis}_{name}" for axis in ("layer", "sample", *tap.axes)}
        for coordinate, (along, labels) in found[name].items():
            own = coordinate if shared.issuperset(along) else f"{coordinate}_{name}"
            coordinates[own] = (tuple(dims[axis] for axis in along), labels)
        attributes = {"long_name": f"chosen entries of {tap.into}", "into": tap.into} if tap.into else {"long_name": f"{name} weights"}
        values = np.stack([reading.weights for reading in readings])
        variables[name] = (tuple(dims.values()), values, {**attributes, "units": "1"})
        readings.clear()  # what is stacked need not be there twice
    return xr.Dataset(variables, coordinates, {"model": model.name, "step_hours": model.spec.step / 3600})


def _agree(kinds: Sequence[Labels], axis: str) -> bool:
    """Whether an axis is the same in several kinds, in its length and in all that is said of it."""
    first, *others = [{name: entry for name, entry in kind.items() if axis in entry[0]} for kind in kinds]
    return all(
        first.keys() == other.keys() and all(first[n][0] == other[n][0] and _same(first[n][1], other[n][1]) for n in first)
        for other in others
    )


def _same(one: Any, two: Any) -> bool:
    one, two = np.asarray(one), np.asarray(two)
    return np.array_equal(one, two, equal_nan=one.dtype.kind == two.dtype.kind == "f")


def _coordinates(model: Model, batch: Batch, tap: AttentionTap, readings: Sequence[_Reading]) -> Labels:
    """Coordinates by name, with the axes that they run along."""
    shape = readings[0].weights.shape
    sizes = dict(zip(tap.axes, shape[1:], strict=True))
    found: Labels = {axis: ((axis,), np.arange(length)) for axis, length in sizes.items()}
    found["sample"] = ("sample",), np.arange(shape[0])
    found["layer"] = ("layer",), np.arange(len(readings))
    for name in ("module", "call", "part"):
        labels = [getattr(reading, name) for reading in readings]
        if name != "part" or any(labels):
            found[name] = ("layer",), labels
    if readings[0].heads is not None:
        found["head"] = ("head",), np.array(readings[0].heads)
    if shape[0] == len(batch):
        last = batch.time[:, batch.history.shape[1] - 1].cpu().numpy().astype("datetime64[s]").astype("datetime64[ns]")
        found["time"] = ("sample",), last
    names = variables_of(model)
    found |= {axis: ((axis,), names) for axis in ("target", "source") if sizes.get(axis) == len(names)}
    # a batch on another grid than the model's lies elsewhere
    return found | (model.attention_coordinates(tap.kind, sizes) if batch.history.shape[-2:] == model.spec.grid.shape else {})


def variables_of(model: Model) -> list[str]:
    """Names of the model's variables: channels, or groups of channels joined by '+'."""
    channels = iter(model.spec.channels)
    groups: Sequence[int] = getattr(model, "groups", None) or [1] * len(model.spec.channels)
    return ["+".join(next(channels) for _ in range(size)) for size in groups]
