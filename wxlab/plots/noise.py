"""Diffusion in continuous noise levels as a picture: what the network reads and writes, and where it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wxlab.plots.style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wxlab.nn.edm import Preconditioning, TrainingNoise


@styled
def plot_noise(preconditioning: Preconditioning, training: TrainingNoise, *, sampling_steps: int = 20) -> Figure:
    """Draw over the noise level σ the factors of ``D = c_skip x + c_out F(c_in x)``, and how often σ is trained and sampled.

    preconditioning, training: of a model and its recipe.  sampling_steps: of a sampler, whose levels are marked.
    Returns the figure.
    """
    import torch

    from wxlab.nn.edm import karras_sigmas

    sampled = karras_sigmas(sampling_steps)[:-1].numpy()
    sigma = np.geomspace(sampled[-1], sampled[0], 200)
    mixed = preconditioning.coefficients(torch.from_numpy(sigma))
    figure = new_figure(9.5, 2.9)
    mixing, often = figure.subplots(1, 2, sharex=True)
    shares = {"$c_{in}$": mixed.c_in, "$c_{skip}$": mixed.skip, "$c_{out}$": mixed.out}
    for name, share in shares.items():
        mixing.semilogx(sigma, share.numpy(), label=name)
    mixing.set(title="Factors", ylabel="Factor", xlabel="Noise level σ")
    mixing.legend(loc="upper right")
    density = np.exp(-0.5 * ((np.log(sigma) - training.mean) / training.std) ** 2) / (training.std * np.sqrt(2 * np.pi))
    often.fill_between(sigma, density, alpha=0.3, label="training")
    often.plot(sampled, np.zeros_like(sampled), "|", color="black", markersize=12, clip_on=False, label=f"{sampling_steps} sampling steps")
    often.set(title="How often", ylabel="Density in ln σ", xlabel="Noise level σ", ylim=(0, None))
    often.legend(loc="upper left")
    for axes in (mixing, often):
        axes.grid(True)
    return figure
