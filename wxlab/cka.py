"""Centred kernel alignment: how alike two representations of the same samples are, whatever their widths.

``CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))`` of the Gram matrices K, L [n, n] of n rows (samples) under each representation; 1 where they
are the same up to rotation and scale. Linear: K = X Xᵀ. RBF: K_ij = exp(−|x_i − x_j|² / 2σ²), σ a multiple of the median distance.

- ``biased``: HSIC = tr(K_c L_c) with both centred, as in the papers. With fewer rows than features it lies far above 0 even for
  independent representations.
- debiased: HSIC of Song et al. 2012, whose mean is 0 there; values may be a little below 0.

All here is made of Gram matrices (``wxlab.representations``): features of any width and any number of batches give exactly what all of
them at once would.

References: Kornblith et al. 2019, arXiv:1905.00414; Song et al. 2012, jmlr.org/papers/v13/song12a.html; Nguyen et al. 2021,
arXiv:2010.15327.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from wxlab.attention import model_name, variables_of
from wxlab.errors import WxlabError, unknown
from wxlab.models.base import Batch, Model
from wxlab.representations import ROUNDING, Array, Gram, Representation, Rows, features, flat, patterns_of, varies

__all__ = ["Gram", "Representation", "between", "compare", "features", "gaussian", "linear", "rbf", "variables"]

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
    squares[squares < ROUNDING * np.abs(gram).max()] = 0
    median = np.median(squares[np.triu_indices(len(gram), 1)])
    if not median > 0:
        raise WxlabError("half of the rows or more are the same, so that their median distance is 0; give rows that differ")
    return np.asarray(np.exp(-squares / (2 * width**2 * median)))


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
        found |= {"low": (dims, whole - high), "high": (dims, np.minimum(whole - low, np.maximum(whole, 1)))}
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
    for pattern in patterns_of(layers):
        if "{}" in pattern:
            per_variable = [features(model, batches, pattern.replace("{}", str(v)), rows=rows, seed=seed) for v in range(len(names))]
            counts = {len(each) for each in per_variable}
            if len(counts) != 1:
                raise WxlabError(f"the pattern {pattern!r} fits different numbers of modules for different variables; make it narrower")
            for position, name in enumerate(per_variable[0]):
                common = name.replace(pattern.split("{}")[0] + "0", pattern.split("{}")[0] + "{}", 1)
                found[common] = [list(each.values())[position] for each in per_variable]
        elif getattr(model, "groups", None) is None:
            raise WxlabError(
                f"{model_name(model)} mixes its variables from the start, so that no rows of {pattern!r} are those of one; "
                "give a model with an encoder for each variable, such as met2net"
            )
        else:
            for name, each in features(model, batches, pattern, rows="frame", seed=seed).items():
                found[name] = _by_variable(name, each, len(names))
    dims = ("layer", "variable_a", "variable_b")
    table = np.stack(
        [
            _self_matrix({f"{layer} of {name}": one.gram for name, one in zip(names, each, strict=True)}, debiased)
            for layer, each in found.items()
        ]
    )
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
    first, second = (flat(values, np.float64) for values in (x, y))
    if len(first) != len(second):
        raise WxlabError(f"the representations have {len(first)} and {len(second)} rows; give both for the same samples")
    return first @ first.T, second @ second.T


def _matrix(first: Mapping[str, Array], second: Mapping[str, Array], rows: NDArray[np.int64], debiased: bool) -> Array:
    """CKA [first, second] of the given rows."""
    left, right = (
        np.stack([_directions(name, gram[np.ix_(rows, rows)], debiased).ravel() for name, gram in side.items()]) for side in (first, second)
    )
    return np.asarray(left @ right.T)


def _directions(name: str, gram: Array, debiased: bool) -> Array:
    """A centred matrix of length 1. Raises WxlabError where there is nothing but rounding."""
    centred = _centred(gram, debiased)
    if not varies(gram, centred):
        reason = "is the same for all rows" if not debiased else "has no variance between rows"
        what = f"the representation by {name}" if name else "a representation"
        raise WxlabError(f"{what} {reason}, so that CKA is not defined; leave that layer out")
    return np.asarray(centred / np.linalg.norm(centred))


def _self_matrix(grams: Mapping[str, Array], debiased: bool) -> Array:
    return _matrix(grams, grams, np.arange(len(next(iter(grams.values())))), debiased)


def _alignment(first: Array, second: Array, debiased: bool) -> float:
    return float(_matrix({"": first}, {"": second}, np.arange(len(first)), debiased)[0, 0])


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
