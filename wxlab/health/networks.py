"""Signatures of single models, in their weights and what these make of a few windows."""

from __future__ import annotations

import inspect
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from wxlab.health.evidence import Evidence
from wxlab.health.findings import Measure, NotJudged

# variance of an encoder's latents over that before training; the smallest in short runs of the tiny network: 0.5 to 0.6 with alpha from 0.9
# on, 0.17 with alpha = 0 (which learned as well), 0.04 where gradients of the latent loss reach the encoders with ten times the weight
LATENT_VARIANCE = 0.1
# an error of the forecast that nothing is left to learn of is 0 of the data's variance, one of the mean state is 1
UNLEARNED = 0.9
LEAST_MEMORY = 0.5  # alpha under which the momentum copy is newer than two steps; the authors' weather configurations have 0.9
# the network's error over that through the momentum copy; measured: 1.0 to 1.2 as it should be, 2.4 to 15 with a copy that stood still
COPY_GAP = 2.0
# share of its first weights in the copy up to which a gap has other causes, such as too few data (measured: up to 2.7)
FIRST_WEIGHTS = 0.1
# squared error of the first estimate over the variance of what it estimates: 1 is the mean of all frames, noise is 2 and more
FIRST_ESTIMATE = 1.0
# an expert's output over the shared one's; at the authors' initialisation 5e-6 to 6e-4, still 1e-4 after 400 steps on a toy problem
INERT = 0.01
OVERLAP = 0.99  # share of its channels that an expert has in common with another; 0.995 at the authors' initialisation


@torch.no_grad()
def latent_collapse(run: Evidence) -> Measure:
    """Variance over times of the encoders' latents, the smallest of a variable, over the same before training."""
    model = run.network("met2net", "latents that a latent loss aims at")
    now, start = (_latent_variance(network, run.batch.history) for network in (model, run.fresh()))
    ratio = now / start
    worst = int(ratio.argmin())
    text = f"latents of encoder {worst + 1} of {len(ratio)} vary in time with {float(ratio[worst]):.3g} of the variance at the start"
    return Measure(float(ratio[worst]), LATENT_VARIANCE, text, below=True)


def _latent_variance(model: Any, history: Tensor) -> Tensor:
    """[V]."""
    if len(history) < 2:
        raise NotJudged("one window alone has no variance; give a store with more")
    latents = model.encoders(history)  # [B, V, T S, h, w]
    return latents.var(0).flatten(1).mean(1)


def momentum(run: Evidence) -> Measure:
    """Whether a momentum copy without memory, or one that hardly moves, kept the network from learning."""
    from wxlab.models.met2net.recipe import TwoStage

    if run.settings["name"] != "met2net":
        raise NotJudged(f"{run.settings['name']} is trained without a momentum copy")
    alpha = run.settings["recipe"].get("alpha", inspect.signature(TwoStage).parameters["alpha"].default)
    scored = [line for line in run.lines if "validation" in line and "data" in line]
    if not scored:
        raise NotJudged("the run was never validated, so that nothing says whether it learned")
    last, best = scored[-1], min(line["validation"] for line in scored)
    if alpha < LEAST_MEMORY:
        variance = float(cast(Tensor, run.batch.target).square().mean())
        text = f"with alpha={alpha:g} the momentum copy has no memory, and {best / variance:.2g} of the data's variance is left as error"
        return Measure(best / variance, UNLEARNED, text, cure="give recipe={'alpha': 0.9} or more")
    start = alpha ** last["step"]
    text = f"with alpha={alpha:g} the copy has {start:.2g} of the weights that it began with after {last['step']} steps"
    if start <= FIRST_WEIGHTS:
        return Measure(start, FIRST_WEIGHTS, text)
    gap = last["validation"] / last["data"]
    return Measure(gap, COPY_GAP, f"{text}, and the network's own error is {gap:.3g} times that through the copy")


@torch.no_grad()
def first_estimate(run: Evidence) -> Measure:
    """Squared error of STLDM's first estimate over the variance of the frames that it estimates."""
    model: Any = run.network("stldm", "first estimate")
    batch = run.batch
    guess = model.vae.decode(model.translator(model.encode(batch.history).mean).mean)
    target = cast(Tensor, batch.target)
    ratio = float((guess - target).square().mean() / target.var().clamp(min=torch.finfo(target.dtype).tiny))
    weight = run.settings["recipe"].get("constraint", 1.0)
    text = f"the first estimate (trained with constraint={weight:g}) has {ratio:.3g} times the variance of the frames as squared error"
    return Measure(ratio, FIRST_ESTIMATE, text, cure="train longer or with a larger lr" if weight else "")


def inert_experts(run: Evidence) -> Measure:
    """Norm of an expert's output over the shared expert's, in the block where it is strongest; the weakest expert."""
    from wxlab.models.vamoe.choices import expert_strength

    model = run.network("vamoe", "experts")
    strength = expert_strength(model, run.batch).max("block")
    weakest = int(strength.values.argmin())
    least, inert = float(strength[weakest]), int((strength < INERT).sum())
    name = strength["expert"].values[weakest]
    text = f"the expert of {name} adds {least:.2g} of what the shared one does, and {inert} of {len(strength)} experts are inert"
    seen = int(model.config["embed_dim"] / model.config["topk"])
    return Measure(least, INERT, text, below=True, cure=f"give model={{'expert_gain': {seen}}}, or train much longer")


def equal_gates(run: Evidence) -> Measure:
    """The largest share of its channels that an expert has in common with another, mean over blocks."""
    from wxlab.models.vamoe.choices import channel_choices

    model: Any = run.network("vamoe", "gates")
    width = model.config["embed_dim"]
    chosen = int(width / model.config["topk"])
    if len(model.experts) < 2 or chosen == width:
        raise NotJudged("there is one expert" if len(model.experts) < 2 else f"every expert sees all {width} channels (topk=1)")
    overlap = channel_choices(model, run.batch)["overlap"].mean("block").values
    overlap = np.where(np.eye(len(overlap), dtype=bool), -1, overlap)
    one, other = np.unravel_index(int(overlap.argmax()), overlap.shape)
    both = f"{model.experts[one]} and {model.experts[other]}"
    text = f"the gates of {both} pick {overlap.max():.3g} of their channels in common, by chance {chosen / width:.2g}"
    return Measure(float(overlap.max()), OVERLAP, text)
