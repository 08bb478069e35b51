"""What a network makes of samples, layer by layer: Gram matrices of the outputs of its modules.

Gram matrices, float64, grow row by row while the features themselves lie on disk, so that features of any width and any number of batches
give exactly what all of them at once would.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wxlab.attention import evaluating, model_name, on_device_of, streams_for
from wxlab.errors import WxlabError, unknown
from wxlab.models.base import Batch, Model

Array = NDArray[np.float64]
Rows = Literal["sample", "frame"]
CHUNK = 64 * 2**20  # bytes of features read at once
ROUNDING = 1e-13  # of a Gram matrix's largest entry: what lies below is no difference between rows


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
        new = flat(features, np.float32)
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
    seed: of the noise of stochastic models. Of modules that a pattern stands for, those are left out that say nothing of samples: tables
    of positions and the like, which are as long for one sample as for many, embeddings that are the same for all of them, and sequences
    or dictionaries, whose first output is no tensor.  The model's mode and hooks are as before afterwards.
    Raises WxlabError for a pattern that fits no module, with the nearest names, for a module given by its whole name whose rows are no
    samples, for a call that was never made, and for guided models.
    """
    if model.batch_parts:
        raise WxlabError(
            f"{model_name(model)} runs {' and '.join(model.batch_parts)} samples side by side, which rows cannot tell apart; "
            "take it without guidance, model.with_sampling(guidance=0)"
        )
    if rows not in ("sample", "frame"):
        raise unknown("rows", rows, ("sample", "frame"))
    patterns = patterns_of(layers)
    modules, tape = _chosen(model, patterns), _Tape(call)
    grams: dict[str, Gram] = {}
    owners: dict[str, list[int]] = {}
    each: dict[str, float] = {}
    count = 0
    with tape.on(modules), evaluating(model), torch.no_grad():
        for batch in batches:
            if not count:
                each = _rows_of_a_sample(model, tape, batch, seed, patterns)
            for name, output in tape.play(model, batch, seed).items():
                if name in each:
                    made = output.reshape(len(batch), -1) if rows == "sample" else output.flatten(1)
                    grams.setdefault(name, Gram()).update(made)
                    owners.setdefault(name, []).extend(count + np.arange(len(made)) // (len(made) // len(batch)))
            count += len(batch)
    if not count:
        raise WxlabError("no batch was given; give batches of a Windows, such as windows.epoch(0)")
    found = {name: Representation(gram.matrix, np.array(owners[name])) for name, gram in grams.items()}
    found = {name: one for name, one in found.items() if name in patterns or count == 1 or varies(one.gram)}
    if not found:
        raise WxlabError(
            f"none of the {len(modules)} chosen modules of {model_name(model)} was passed {call + 1} times with a tensor that differs "
            "from sample to sample"
        )
    return found


def flat(values: Any, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values.detach().cpu().float() if isinstance(values, Tensor) else values, dtype=dtype)
    if array.ndim < 1:
        raise WxlabError("a representation needs rows, one for each sample, and was given a single number")
    array = np.ascontiguousarray(array.reshape(len(array), -1))
    if not np.isfinite(array).all():
        raise WxlabError("a representation has values that are missing or infinite; leave such samples out")
    return array


def varies(gram: Array, centred: Array | None = None) -> bool:
    """Whether a Gram matrix, centred, is more than the rounding of its products."""
    if centred is None:
        means = gram.mean(0)
        centred = gram - means[:, None] - means[None] + means.mean()
    return bool(np.linalg.norm(centred) > ROUNDING * len(gram) * np.abs(gram).max())


def patterns_of(layers: str | Sequence[str]) -> list[str]:
    patterns = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Sequence) else []
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise WxlabError(f"layers={layers!r} must be names or patterns of modules, such as 'translator.layers.*'")
    return patterns


def _chosen(model: Model, patterns: Sequence[str]) -> dict[str, nn.Module]:
    named = {name: module for name, module in model.named_modules() if name}
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
    """Keeps the output of one pass (``call``) through each of some modules, by name, while a model ``play``s."""

    def __init__(self, call: int) -> None:
        self.call = call

    def play(self, model: Model, batch: Batch, seed: int) -> dict[str, Tensor]:
        """What the modules make of a batch."""
        self.calls: dict[str, int] = {}
        self.outputs: dict[str, Tensor] = {}
        model.predict(on_device_of(model, batch), members=1, generator=streams_for(model, batch, seed))
        return self.outputs

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


def _rows_of_a_sample(model: Model, tape: _Tape, batch: Batch, seed: int, patterns: Sequence[str]) -> dict[str, float]:
    """How many rows each module makes of a sample, of those that make more of more samples; found by batches of two sizes."""
    other = _samples(batch, [0] if len(batch) > 1 else [0, 0])
    many, few = ({name: len(each) if each.ndim else 0 for name, each in tape.play(model, one, seed).items()} for one in (batch, other))
    found = {name: length / len(batch) for name, length in many.items() if length and length * len(other) == few.get(name, 0) * len(batch)}
    for name in many:
        if name in patterns and name not in found:
            raise WxlabError(f"the module {name} makes {many[name]} rows, which are not those of samples; leave it out of layers")
    return found


def _samples(batch: Batch, which: list[int]) -> Batch:
    parts: dict[str, Any] = {name: getattr(batch, name) for name in ("history", "target", "time", "forcing", "mask")}
    return replace(batch, **{name: part[which] for name, part in parts.items() if part is not None})
