"""The scores that the authors of VA-MoE publish, as their code computes them; ``wxlab.verify`` has the usual ones."""

from __future__ import annotations

import torch
from torch import Tensor

from wxlab.errors import WxlabError

PI = 3.1416  # as in their code


def published_scores(forecast: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """RMSE and "ACC" of each sample and channel, of normalised fields.

    ``rmse = sqrt(mean w (f - o)^2)``, ``acc = sum w f o / sqrt(sum w f^2 sum w o^2)``, ``w_i = H cos(phi_i) / sum cos(phi)``,
    phi_i = 90 - 180 i / (H - 1): the rows are taken to run from pole to pole, whether they do or not.
    forecast, truth: [B, C, H, W], normalised.  Returns both [B, C]; the authors average over samples and multiply rmse by the
    channel's standard deviation.
    Differs from the anomaly correlation of ``wxlab.verify(metrics=["acc"])``: no climatology is taken off, so that the seasons and
    latitudes that any forecast knows count as skill.
    Raises WxlabError for fields of different shapes, or of a single row.
    """
    if forecast.shape != truth.shape or forecast.dim() != 4 or forecast.shape[2] < 2:
        raise WxlabError(
            f"forecast {list(forecast.shape)} and truth {list(truth.shape)} must have the same shape [B, C, H, W] with at least two rows"
        )
    rows = forecast.shape[2]
    latitude = 90 - 180 * torch.arange(rows, dtype=forecast.dtype, device=forecast.device) / (rows - 1)
    cosine = torch.cos(PI / 180 * latitude)
    w = (rows * cosine / cosine.sum()).unsqueeze(1)  # [H, 1]
    rmse = (w * (forecast - truth).square()).mean((2, 3)).sqrt()

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (w * a * b).sum((2, 3))

    return rmse, product(forecast, truth) / (product(forecast, forecast) * product(truth, truth)).sqrt()
