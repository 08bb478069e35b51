"""What Mosaic knows of the time: how much of the day and of the year has passed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

YearFeature = Literal["official", "corrected"]
DAY, QUARTER = 86400, 21600  # seconds


def day_year(time: Tensor) -> Tensor:
    """Shares of the day and of the year at times [B], int64 seconds since 1970 UTC: float64 [B, 2].

    The year is ``(day of the year - 1) / (365 or 366)``: as in the published model it does not see the hour.
    """
    stamps = time.cpu().numpy().astype("datetime64[s]")
    years = stamps.astype("datetime64[Y]")
    start, end = years.astype("datetime64[D]"), (years + 1).astype("datetime64[D]")
    year = (stamps.astype("datetime64[D]") - start) / (end - start)
    return torch.from_numpy(np.stack([(time.cpu().numpy() % DAY) / DAY, year], axis=1)).to(time.device)


def advanced(place: Tensor, steps: int, step: int, year: YearFeature) -> Tensor:
    """Shares of day and year ``steps`` steps of ``step`` seconds after the initial time.

    place: [B, 2] at the initial time.  year: ``official`` adds ``s / 365.25`` a step, s in units of six hours, four times too much, as the
    published code does; ``corrected`` adds ``s / (4 · 365.25)``.
    """
    stride = step / QUARTER
    return place + steps * place.new_tensor([stride / 4, stride / (365.25 if year == "official" else 4 * 365.25)])
