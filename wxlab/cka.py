"""Centred kernel alignment: how alike two representations of the same samples are, whatever their widths.

``CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))`` of the Gram matrices K, L [n, n] of n rows (samples) under each representation; 1 where they
are the same up to rotation and scale. Linear: K = X Xᵀ. RBF: K_ij = exp(−|x_i − x_j|² / 2σ²), σ a multiple of the median distance.

- ``biased``: HSIC = tr(K_c L_c) with both centred, as in the papers. With fewer rows than features it lies far above 0 even for
  independent representations.
- debiased: HSIC of Song et al. 2012, whose mean is 0 there; values may be a little below 0.

All here is made of Gram matrices, float64, which grow row by row while the features themselves lie on disk: features of any width and any
number of batches give exactly what all of them at once would.

References: Kornblith et al. 2019, arXiv:1905.00414; Song et al. 2012, jmlr.org/papers/v13/song12a.html; Nguyen et al. 2021,
arXiv:2010.15327.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from wxlab.attention import evaluating, model_name, on_device_of, streams_for, variables_of
from wxlab.errors import WxlabError, unknown
from wxlab.models.base import Batch, Model

Array = NDArray[np.float64]
Rows = Literal["sample", "frame"]
CHUNK = 64 * 2**20  # bytes of features read at once
DRAWS = 200  # half-samples of an interval


def linear(x: ArrayLike, y: ArrayLike, *, debiased: bool = False) -> float:
    """Linear CKA of two representations of the same rows: x [n, ...], y [n, ...], flattened behind the first axis.

    Unchanged by rotations, reflections and a common scale of either.  debiased: see the module.
    Raises WxlabError for different numbers of rows, fewer than 2 (debiased: 4), missing values, and a constant representation.
    """
    return _alignment(*_pair(x, y), debiased=debiased)


def rbf(x: ArrayLike, y: ArrayLike, *, width: float = 1.0, debiased: bool = False) -> float:
    """CKA with Gaussian kernels: as ``linear``, with σ = ``width`` times the median distance between rows, for each representation."""
    first, second = _pair(x, y)
    return _alignment(gaussian(first, width), gaussian(second, width), debiased=debiased)


def gaussian(gram: Array, width: float = 1.0) -> Array:
    """RBF Gram matrix from a linear one [n, n], with σ = ``width`` times the median distance between different rows."""
    if not width > 0:
        raise WxlabError(f"width={width!r} must be a positive number: σ is that many median distances")
    squares = np.maximum(np.diag(gram)[:, None] + np.diag(gram)[None] - 2 * gram, 0)
    median = np.median(squares[np.triu_indices(len(gram), 1)])
    if not median > 0:
        raise WxlabError("half of the rows or more are the same, so that their median distance is 0; give rows that differ")
    return np.asarray(np.exp(-squares / (2 * width**2 * median)))


class Gram:
    """The linear Gram matrix of features that come in batches: ``update`` once for each, then ``matrix`` [n, n].

    Rows that came before lie in a temporary file (float32, deleted with the object); of them ``CHUNK`` bytes are in memory at once.
    """

    def __init__(self) -> None:
        self.matrix: Array = np.zeros((0, 0))
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._width = 0

    def update(self, features: Tensor | NDArray[Any]) -> None:
        """Add rows [b, ...]. Raises WxlabError for another number of features than before, and for values that are not finite."""
        new = _flat(features, np.float32)
        before = len(self.matrix)
        if before and new.shape[1] != self._width:
            raise WxlabError(f"a batch has {new.shape[1]} features and those before had {self._width}; give all batches the same shape")
        self._width = new.shape[1]
        exact = new.astype(np.float64)
        grown = np.zeros((before + len(new), before + len(new)))
        grown[:before, :before] = self.matrix
        grown[before:, before:] = exact @ exact.T
        for first, rows in self._earlier(before):
            grown[before:, first : first + len(rows)] = exact @ rows.astype(np.float64).T
        grown[:before, before:] = grown[before:, :before].T
        self.matrix = grown
        self._file.seek(0, 2)
        self._file.write(new.tobytes())

    def _earlier(self, count: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        self._file.seek(0)
        step = max(1, CHUNK // (8 * max(self._width, 1)))
        for first in range(0, count, step):
            rows = min(step, count - first)
            yield first, np.frombuffer(self._file.read(4 * rows * self._width), np.float32).reshape(rows, self._width)


@dataclass(frozen=True)
class Representation:
    """What a layer makes of the samples: its Gram matrix [n, n], and the sample that each row belongs to [n]."""

    gram: Array
    sample: NDArray[np.int64]


def features(
    model: Model, batches: Iterable[Batch], layers: str | Sequence[str] = "*", *, rows: Rows = "sample", call: int = 0, seed: int = 0
) -> dict[str, Representation]:
    """Gram matrices of the outputs of a model's modules over batches, by the modules' names.

    layers: names or patterns (``translator.layers.*``); a bare ``*`` stands for all modules with weights of their own.
    rows: ``sample``: all that a module makes of one window is one row; ``frame``: a row is what the module's first axis counts (as in
    Met2Net's paper, where encoders see B·T frames).  call: which of the passes through a module counts (samplers make many).
    seed: of the noise of stochastic models. Modules of sequences or dictionaries, whose first output is no tensor, are left out.
    The model's mode and hooks are as before afterwards.
    Raises WxlabError for a pattern that fits no module, with the nearest names, for a call that was never made, and for guided models.
    """
    if model.batch_parts:
        raise WxlabError(
            f"{model_name(model)} runs {' and '.join(model.batch_parts)} samples side by side, which rows cannot tell apart; "
            "take it without guidance, model.with_sampling(guidance=0)"
        )
    modules, tape = _chosen(model, layers), _Tape(call)
    grams: dict[str, Gram] = {}
    owners: dict[str, list[int]] = {}
    count = 0
    with tape.on(modules), evaluating(model), torch.no_grad():
        for batch in batches:
            tape.start()
            model.predict(on_device_of(model, batch), members=1, generator=streams_for(model, batch, seed))
            for name, output in tape.outputs.items():
                made = _rows(name, output, len(batch), rows)
                grams.setdefault(name, Gram()).update(made)
                owners.setdefault(name, []).extend(count + np.arange(len(made)) // (len(made) // len(batch)))
            count += len(batch)
    if not count:
        raise WxlabError("no batch was given; give batches of a Windows, such as windows.epoch(0)")
    if not grams:
        raise WxlabError(f"none of the {len(modules)} chosen modules of {model_name(model)} was passed {call + 1} times with a tensor")
    return {name: Representation(gram.matrix, np.array(owners[name])) for name, gram in grams.items()}


def compare(
    model_a: Model,
    model_b: Model,
    batches: Iterable[Batch],
    *,
    layers: str | Sequence[str] = "*",
    layers_b: str | Sequence[str] | None = None,
    rows: Rows = "sample",
    debiased: bool = False,
    kernel: Literal["linear", "rbf"] = "linear",
    interval: float | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """CKA of each layer of one model with each layer of another (or of itself, or of another checkpoint).

    batches: read once for each model, so give a list, or the same model twice.  layers, layers_b, rows: see ``features``; both models
    must have been given the same samples.  kernel: ``linear`` or ``rbf``.  interval: a level, e.g. 0.95, for ``low`` and ``high``.
    Returns ``cka`` [layer_a, layer_b], with ``low`` and ``high``; see ``between``.
    """
    batches = list(batches)
    first = features(model_a, batches, layers, rows=rows, seed=seed)
    same = model_a is model_b and layers_b is None
    second = first if same else features(model_b, batches, layers if layers_b is None else layers_b, rows=rows, seed=seed)
    return between(first, second, debiased=debiased, kernel=kernel, interval=interval, seed=seed).assign_attrs(
        model_a=model_name(model_a), model_b=model_name(model_b)
    )


def between(
    first: Mapping[str, Representation],
    second: Mapping[str, Representation],
    *,
    debiased: bool = False,
    kernel: Literal["linear", "rbf"] = "linear",
    interval: float | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """CKA of representations, each with each: ``cka`` [layer_a, layer_b].

    interval: the level of an interval, ``low`` and ``high``, from ``DRAWS`` halves of the samples: a half differs from the whole as the
    whole does from the truth, 1/(n/2) − 1/n = 1/n, and unlike drawing with replacement it never compares a sample with its own copy,
    which would look like agreement. Rows of one sample stay together.
    Raises WxlabError for representations of different rows, and too few samples.
    Reference: Shao and Wu 1989, doi:10.1214/aos/1176347263 (the delete-half jackknife).
    """
    if kernel not in ("linear", "rbf"):
        raise unknown("kernel", kernel, ("linear", "rbf"))
    if interval is not None and not 0 < interval < 1:
        raise WxlabError(f"interval={interval!r} must be a level between 0 and 1, such as 0.95")
    everything = [*first.values(), *second.values()]
    sizes = {len(each.sample) for each in everything}
    if len(sizes) != 1:
        raise WxlabError(
            f"the layers have different numbers of rows ({', '.join(map(str, sorted(sizes)))}); take rows='sample', or other layers"
        )
    sample = everything[0].sample
    first_grams, second_grams = (
        {name: each.gram if kernel == "linear" else gaussian(each.gram) for name, each in side.items()} for side in (first, second)
    )
    dims, coords = ("layer_a", "layer_b"), {"layer_a": list(first), "layer_b": list(second)}
    whole = _matrix(first_grams, second_grams, np.arange(len(sample)), debiased)
    found = {"cka": (dims, whole)}
    if interval is not None:
        count = int(sample.max()) + 1
        if count < 8:
            raise WxlabError(f"an interval from halves of {count} samples means nothing; give at least 8 samples")
        generator = np.random.default_rng(seed)
        halves = (np.isin(sample, generator.permutation(count)[: count // 2]).nonzero()[0] for _ in range(DRAWS))
        off = np.stack([_matrix(first_grams, second_grams, half, debiased) for half in halves]) - whole
        # the estimator's spread, about the estimate itself: halves have a bias of their own
        low, high = np.quantile(off - off.mean(0), [(1 - interval) / 2, (1 + interval) / 2], axis=0)
        found |= {"low": (dims, whole - high), "high": (dims, whole - low)}
    return xr.Dataset(found, coords, {"kernel": kernel, "debiased": int(debiased), "rows": len(sample)})


def variables(
    model: Model,
    batches: Iterable[Batch],
    layers: str | Sequence[str],
    *,
    rows: Rows = "frame",
    debiased: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """CKA between the variables of one model, layer by layer: ``cka`` [layer, variable_a, variable_b].

    layers: patterns. One with ``{}`` names the modules of each variable in turn, ``encoders.{}.*`` of a Met2Net; one without names
    modules that all variables go through as rows of one batch (B·V, variables fast: Met2Net's ``translator.layers.*``).
    rows: ``frame`` as in the Met2Net paper.  debiased: see the module; with fewer rows than features the paper's is biased upwards.
    Raises WxlabError for a model that mixes its variables from the start.
    """
    names = variables_of(model)
    batches = list(batches)
    found: dict[str, list[Representation]] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        if "{}" in pattern:
            per_variable = [features(model, batches, pattern.replace("{}", str(v)), rows=rows, seed=seed) for v in range(len(names))]
            counts = {len(each) for each in per_variable}
            if len(counts) != 1:
                raise WxlabError(f"the pattern {pattern!r} fits different numbers of modules for different variables; make it narrower")
            for position, name in enumerate(per_variable[0]):
                common = name.replace(pattern.split("{}")[0] + "0", pattern.split("{}")[0] + "{}", 1)
                found[common] = [list(each.values())[position] for each in per_variable]
        else:
            for name, each in features(model, batches, pattern, rows="frame", seed=seed).items():
                found[name] = _by_variable(name, each, len(names))
    dims = ("layer", "variable_a", "variable_b")
    table = np.stack([_self_matrix([each.gram for each in layer], debiased) for layer in found.values()])
    coords = {"layer": list(found), "variable_a": names, "variable_b": names}
    return xr.Dataset({"cka": (dims, table)}, coords, {"model": model_name(model), "debiased": int(debiased), "kernel": "linear"})


def _by_variable(name: str, whole: Representation, count: int) -> list[Representation]:
    per_sample = np.bincount(whole.sample)
    if np.any(per_sample != count):
        raise WxlabError(
            f"the module {name} makes {per_sample[0]} rows of a sample, not one for each of the {count} variables; choose another"
        )
    return [Representation(whole.gram[v::count, v::count], whole.sample[v::count]) for v in range(count)]


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    first, second = (_flat(values, np.float64) for values in (x, y))
    if len(first) != len(second):
        raise WxlabError(f"the representations have {len(first)} and {len(second)} rows; give both for the same samples")
    return first @ first.T, second @ second.T


def _flat(values: Any, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values.detach().cpu().float() if isinstance(values, Tensor) else values, dtype=dtype)
    if array.ndim < 1:
        raise WxlabError("a representation needs rows, one for each sample, and was given a single number")
    array = np.ascontiguousarray(array.reshape(len(array), -1))
    if not np.isfinite(array).all():
        raise WxlabError("a representation has values that are missing or infinite; leave such samples out")
    return array


def _matrix(first: Mapping[str, Array], second: Mapping[str, Array], rows: NDArray[np.int64], debiased: bool) -> Array:
    """CKA [first, second] of the given rows."""
    sides = [[_centred(gram[np.ix_(rows, rows)], debiased) for gram in side.values()] for side in (first, second)]
    left, right = (np.stack([each.ravel() for each in side]) for side in sides)
    norms = [np.sqrt(np.einsum("ij,ij->i", side, side)) for side in (left, right)]
    _require_variance(np.concatenate(norms), debiased)
    return np.asarray(left @ right.T / np.outer(*norms))


def _self_matrix(grams: Sequence[Array], debiased: bool) -> Array:
    named = {str(index): gram for index, gram in enumerate(grams)}
    return _matrix(named, named, np.arange(len(grams[0])), debiased)


def _alignment(first: Array, second: Array, debiased: bool) -> float:
    return float(_matrix({"x": first}, {"y": second}, np.arange(len(first)), debiased)[0, 0])


def _centred(gram: Array, debiased: bool) -> Array:
    """A matrix whose products with others of its kind, summed over entries, are HSIC up to a factor: [n, n].

    Debiased: U-centring (Székely and Rizzo 2014, doi:10.1214/14-AOS1255), whose products are Song's unbiased HSIC times n (n − 3).
    """
    n = len(gram)
    least = 4 if debiased else 2
    if n < least:
        raise WxlabError(f"{'debiased ' if debiased else ''}CKA of {n} rows is not defined; give at least {least}")
    if not debiased:
        means = gram.mean(0)
        return np.asarray(gram - means[:, None] - means[None] + means.mean())
    off = gram - np.diag(np.diag(gram))
    sums = off.sum(0) / (n - 2)
    centred = off - sums[:, None] - sums[None] + sums.sum() / (n - 1)
    np.fill_diagonal(centred, 0)
    return np.asarray(centred)


def _require_variance(norms: Array, debiased: bool) -> None:
    if not np.all(norms > 0):
        reason = "is the same for all rows" if not debiased else "has no variance between rows"
        raise WxlabError(f"a representation {reason}, so that CKA is not defined; leave that layer out")


def _chosen(model: Model, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    named = {name: module for name, module in model.named_modules() if name}
    patterns = [layers] if isinstance(layers, str) else list(layers)
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        everything = pattern == "*"
        hits = {name: module for name, module in named.items() if (_has_weights(module) if everything else fnmatchcase(name, pattern))}
        if not hits:
            close = get_close_matches(pattern, list(named), n=1, cutoff=0.0)[0]
            shallow = ", ".join(name for name in named if name.count(".") < 2)
            raise WxlabError(
                f"unknown layer pattern {pattern!r} of {model_name(model)}; did you mean {close!r}? (of its {len(named)} modules the outer "
                f"ones are: {shallow})"
            )
        chosen |= hits
    return {name: named[name] for name in named if name in chosen}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


class _Tape:
    """Keeps the output of one pass (``call``) through each of some modules, by name; ``start`` before each prediction."""

    def __init__(self, call: int) -> None:
        self.call = call
        self.start()

    def start(self) -> None:
        self.calls: dict[str, int] = {}
        self.outputs: dict[str, Tensor] = {}

    @contextmanager
    def on(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        handles = [module.register_forward_hook(partial(self._keep, name)) for name, module in modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        value = output[0] if isinstance(output, tuple) and output else output
        count = self.calls.get(name, 0)
        self.calls[name] = count + 1
        if count == self.call and isinstance(value, Tensor):
            self.outputs[name] = value.detach().clone()  # later modules may write into it


def _rows(name: str, output: Tensor, samples: int, rows: Rows) -> Tensor:
    if rows not in ("sample", "frame"):
        raise unknown("rows", rows, ("sample", "frame"))
    if not output.ndim or len(output) % samples:
        raise WxlabError(
            f"the module {name} makes {len(output) if output.ndim else 0} rows of {samples} samples, which cannot be told apart; "
            "leave it out of layers"
        )
    return output.reshape(samples, -1) if rows == "sample" else output.flatten(1)
