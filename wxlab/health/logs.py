"""Signatures in the logs of a run and in its store: losses that diverge, inputs that are not normalised, splits that leak."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch

from wxlab.forcings import seconds
from wxlab.health.evidence import Evidence
from wxlab.health.findings import Measure, NotJudged
from wxlab.splits import mask_of, span_text
from wxlab.store import Store

# a squared error that has doubled since its lowest: 41 % in RMSE, more than validation windows scatter
RISE = 2.0
# the training loss is compared with the scatter between its lines; three of them do not come by chance in fewer than 1 run in 500
SCATTER = 3.0
LEAST_LINES = 10  # of a training loss, for its scatter
# a z-score has root mean square 1 over the training split, values scaled to a range less; a few frames of one season hardly reach 3
LARGEST_INPUT = 5.0
SHARED = 0  # times and states that two splits may share
INPUT_FRAMES = 16
READ_BYTES = 64 << 20  # of states that are read for a signature


def diverging(run: Evidence) -> Measure:
    """The last validation error over the lowest of its stage (the worst stage); without validation how far the training loss rose."""
    if run.failure:
        return Measure(math.inf, RISE, f"the run broke off, {run.failure}")
    if not run.lines:
        raise NotJudged(f"{run.settings['name']} has nothing to train, so it has no losses")
    stages = sorted({line["stage"] for line in run.lines})
    errors = [[line["validation"] for line in run.lines if line["stage"] == stage and "validation" in line] for stage in stages]
    errors = [values for values in errors if len(values) > 1]
    if errors:
        worst = max(errors, key=lambda values: _over(values[-1], min(values)))
        text = f"the validation error ends at {worst[-1]:.3g}, and its lowest is {min(worst):.3g}"
        return Measure(_over(worst[-1], min(worst)), RISE, text)
    losses = np.array([line["loss"] for line in run.lines if line["stage"] == stages[-1] and "loss" in line])
    if len(losses) < LEAST_LINES:
        raise NotJudged(f"there are fewer than two validations and {LEAST_LINES} lines of losses; train longer or set log_every")
    part = len(losses) // 5
    first, last = (float(np.median(values)) for values in (losses[:part], losses[-part:]))
    scatter = 1.4826 * float(np.median(np.abs(np.diff(losses)))) / math.sqrt(2)
    text = f"the training loss goes from {first:.3g} to {last:.3g}, in units of its scatter"
    return Measure(0.0 if last <= first else _over(last - first, scatter), SCATTER, text)


def _over(part: float, whole: float) -> float:
    return part / whole if whole else (1.0 if not part else math.inf)


def not_normalised(run: Evidence) -> Measure:
    """The largest root mean square of a normalised channel, forcing or static field over frames spread over the training split."""
    store = run.store
    frame = 4 * int(np.prod(store.frames.shape[1:]))
    inside = np.flatnonzero(mask_of(store.splits["train"], len(store)))
    count = int(np.clip(READ_BYTES // frame, 1, INPUT_FRAMES))
    chosen = inside[np.unique(np.linspace(0, len(inside) - 1, count).round().astype(int))]
    sizes = _sizes(store, np.concatenate([store.read(i, i + 1) for i in chosen]), store.channels, store.times[chosen])
    if store.forcing_frames is not None:
        sizes |= _sizes(store, np.concatenate([store.forcing_frames.read(i, i + 1) for i in chosen]), store.forcing, None)
    if store.static:
        sizes |= _sizes(store, store.static_fields[None], store.static, None)
    name, largest = max(sizes.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
    kind = store.normaliser.transforms[name].kind
    text = f"the root mean square of {name} is {largest:.3g} after its normalisation ({kind}), the largest of {len(sizes)} inputs"
    return Measure(math.inf if math.isnan(largest) else largest, LARGEST_INPUT, text)


def _sizes(store: Store, values: np.ndarray, names: tuple[str, ...], times: Any) -> dict[str, float]:
    tensor = store.normaliser.normalise_(torch.from_numpy(np.array(values, np.float32)), names, times).double()
    return dict(zip(names, tensor.square().mean((0, 2, 3)).sqrt().tolist(), strict=True))


def leakage(run: Evidence) -> Measure:
    """How many times two splits share, by their place in the store or by their true time and source, and how many equal states."""
    store = run.store
    names = list(store.splits)
    if len(names) < 2:
        raise NotJudged(f"the store has the split {names[0]!r} alone")
    members = {name: np.flatnonzero(mask_of(store.splits[name], len(store))) for name in names}
    times, states = _true_times(store), _fingerprints(store)
    sources = store.events.get("source", np.full(len(store), ""))
    stamps = list(zip(times.tolist(), sources.tolist(), strict=True))
    shared: dict[str, int] = {}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = members[one], members[other]
            same = {stamps[k] for k in a.tolist()} & {stamps[k] for k in b.tolist()}
            copies = {states[k] for k in a.tolist() if k in states} & {states[k] for k in b.tolist() if k in states}
            shared[f"{one} and {other}"] = max(len(np.intersect1d(a, b)), len(same), len(copies))
    pair = max(shared, key=lambda key: shared[key])
    looked = "times and states" if states else "times (the states are too many to compare)"
    return Measure(shared[pair], SHARED, f"{pair} share {shared[pair]} {looked}, and the closest splits are {_gap(times, members)} apart")


def _true_times(store: Store) -> np.ndarray:
    """Seconds [T]: events that are laid one after the other on the axis of time have their own."""
    return seconds(store.events["event_time"]) if "event_time" in store.events else store.times


def _fingerprints(store: Store) -> dict[int, bytes]:
    """A digest of each state, less those that are the same at every point, such as radar without rain; none of a large store."""
    if 4 * int(np.prod(store.frames.shape)) > READ_BYTES:
        return {}
    values = store.read(0, len(store))
    alive = np.flatnonzero((np.ptp(values, axis=(2, 3)) != 0).any(1))
    return {int(i): hashlib.blake2b(values[i].tobytes(), digest_size=16).digest() for i in alive}


def _gap(times: np.ndarray, members: dict[str, np.ndarray]) -> str:
    """The shortest time between states of different splits."""
    owner = np.concatenate([np.full(len(places), k) for k, places in enumerate(members.values())])
    times = times[np.concatenate(list(members.values()))]
    order = np.argsort(times, kind="stable")
    changes = np.flatnonzero(np.diff(owner[order]))
    return span_text(float(np.diff(times[order])[changes].min())) if len(changes) else "0 h"
