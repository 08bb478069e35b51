"""Health of a training run: the signatures of failure that the models' papers name, which of them it shows, and what cures them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from wxlab.errors import WxlabError, is_whole
from wxlab.health import logs, networks, rollouts
from wxlab.health.evidence import Asked, Evidence
from wxlab.health.findings import Finding, Findings, Measure, NotJudged, State
from wxlab.store import Store
from wxlab.training.setup import randomness_kept

__all__ = ["SIGNATURES", "Finding", "Findings", "Signature", "check"]


@dataclass(frozen=True)
class Signature:
    """One way to fail.  judge: measures it, or raises NotJudged.  rolls: whether that needs forecasts."""

    title: str
    judge: Callable[[Evidence], Measure]
    cure: str
    rolls: bool = False


SIGNATURES = {
    "diverging": Signature(
        "losses that diverge", logs.diverging,
        "take a smaller lr or a clip; where the training loss goes on falling, take more data, or patience to stop earlier",
    ),
    "not_normalised": Signature(
        "inputs that are not normalised", logs.not_normalised,
        "prepare the store again without normalisation='none' for it, with statistics of these data",
    ),
    "leakage": Signature(
        "leakage between splits", logs.leakage,
        "prepare the store with splits that share nothing, best with days between them, and train again",
    ),
    "latent_collapse": Signature(
        "latent collapse", networks.latent_collapse,
        "let no gradient of the latent loss reach the encoders, or give the data loss more weight",
    ),
    "momentum": Signature(
        "momentum that keeps from learning", networks.momentum,
        "give a smaller alpha such as recipe={'alpha': 0.9}, or train for many times 1/(1 - alpha) steps",
    ),
    "first_estimate": Signature(
        "first estimates that are noise", networks.first_estimate,
        "train with the constraint on the first estimate, recipe={'constraint': 1.0}, and longer",
    ),
    "inert_experts": Signature(
        "inert experts", networks.inert_experts,
        "give a larger expert_gain, up to the number of channels that an expert sees, or train much longer",
    ),
    "equal_gates": Signature(
        "gates that overlap wholly", networks.equal_gates,
        "train longer or with a larger lr, for all gates begin alike and learn to differ",
    ),
    "flicker": Signature(
        "temporal flicker", rollouts.flicker,
        "let the network write its frames together (attention over time, a longer horizon), or train it on roll-outs", rolls=True,
    ),
    "blur": Signature(
        "blurred winds", rollouts.blur,
        "train longer; what a squared error cannot keep, a generative model or a score of ensembles (CRPS) can", rolls=True,
    ),
    "equal_members": Signature(
        "members that coincide", rollouts.equal_members,
        "see that noise reaches the network and that the loss rewards spread (two members at least in a CRPS)", rolls=True,
    ),
    "poles": Signature(
        "artefacts at the poles", rollouts.poles,
        "pad across the poles and weight errors with the area of their cells", rolls=True,
    ),
    "drift": Signature(
        "drift from climatology", rollouts.drift,
        "train on roll-outs of several steps or longer, and see that forcings go on along the roll-out", rolls=True,
    ),
}  # fmt: skip


def check(
    run_dir: str | os.PathLike[str],
    *,
    store: Store | str | os.PathLike[str] | None = None,
    forecasts: bool = True,
    times: int = 8,
    steps: int = 20,
    members: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> Findings:
    """Look for signatures of failure in a training run and say of each whether it was found, by which number, and what cures it.

    run_dir: of ``wxlab.train``.  store: what it was trained on, where it was moved since.  forecasts: also roll the best checkpoint
    out, from ``times`` initial times of the validation split, ``steps`` steps or as many as fit, ``members`` members where the model is
    stochastic; without them the check reads logs, weights and splits alone.  device: where networks run, ``cpu``, ``cuda`` or ``auto``.
    Returns findings that print as a list; ``findings.found`` are those that are there, ``findings["flicker"]`` is one,
    ``findings.table()`` a table. What cannot be judged (no such model, no store, too few lead times) says why.
    Raises WxlabError when there is no run, when it has not kept a checkpoint yet, and for another store than the run's own.
    """
    for name, value, least in (("times", times, 1), ("steps", steps, 1), ("members", members, 1), ("seed", seed, 0)):
        if not is_whole(value, least):
            raise WxlabError(f"{name}={value!r} must be a whole number of at least {least}")
    if device not in ("auto", "cpu", "cuda"):
        raise WxlabError(f"device={device!r} is not known; give 'auto', 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise WxlabError("device='cuda' was asked for, and torch finds no GPU; give device='auto' or 'cpu'")
    run = Evidence(run_dir, store, Asked(times, steps, members, seed, device))
    with randomness_kept(), np.errstate(all="ignore"):
        items = tuple(_judged(name, signature, run, forecasts) for name, signature in SIGNATURES.items())
    return Findings(run.path, items, run.note)


def _judged(name: str, signature: Signature, run: Evidence, forecasts: bool) -> Finding:
    try:
        if signature.rolls and not forecasts:
            raise NotJudged("it needs roll-outs; ask for forecasts=True")
        measure = signature.judge(run)
    except (NotJudged, WxlabError, RuntimeError) as reason:  # the last is torch's word for a network that does not fit into memory
        return Finding(name, signature.title, "not judged", str(reason), signature.cure)
    state: State = "found" if measure.found else "clear"
    cure = measure.cure or signature.cure
    return Finding(name, signature.title, state, measure.text, cure, float(measure.value), float(measure.bar), measure.below)
