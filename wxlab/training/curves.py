"""Errors of each channel while a run trains: a callback of ``wxlab.train``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from wxlab.files import atomic_file
from wxlab.models.base import Model
from wxlab.rollout import Streams
from wxlab.store import Store, open_store
from wxlab.windows import Windows


class ChannelErrors:
    """RMSE of each channel on validation windows, before the first step and whenever the run validates.

    model: that is trained, in place.  store: its training store.  path: a JSON file that keeps the errors, so that a run that goes on,
    or is finished already, has them.  windows: so many, evenly spread.
    Give it to ``wxlab.train(model, store, ..., callbacks=[errors])``; ``errors.table()`` has a row for each step and a column for each
    channel, in normalised units. The present weights are looked at, not averaged ones.
    """

    def __init__(self, model: Model, store: Store | str | os.PathLike[str], path: str | os.PathLike[str], windows: int = 32) -> None:
        self.model, self.store, self.path, self.windows = model, open_store(store), Path(path), windows
        self.rows: dict[int, dict[str, float]] = {}
        if self.path.is_file():
            self.rows = {int(step): row for step, row in json.loads(self.path.read_text()).items()}
        else:
            self._add(0)

    def __call__(self, line: Mapping[str, Any]) -> None:
        if "validation" in line:
            self._add(int(line["step"]))

    def table(self) -> pd.DataFrame:
        """Errors by step and channel."""
        return pd.DataFrame.from_dict(dict(sorted(self.rows.items())), orient="index").rename_axis("step")

    def _add(self, step: int) -> None:
        errors = channel_errors(self.model, self.store, windows=self.windows)
        self.rows[step] = {str(channel): float(error) for channel, error in errors.items()}
        with atomic_file(self.path) as temporary:
            temporary.write_text(json.dumps(self.rows))


def channel_errors(
    model: Model, store: Store | str | os.PathLike[str], *, split: str = "validation", windows: int = 32, batch_size: int = 8
) -> pd.Series:
    """RMSE of each channel over the frames of one call of the model, over at most ``windows`` windows of a split, in normalised units."""
    spec = model.spec
    step, before = spec.step / 3600, spec.history_step / 3600
    whole = Windows(open_store(store), split, history=spec.history, horizon=spec.horizon, step=step, history_step=before)
    chosen = np.unique(np.linspace(0, whole.samples - 1, min(windows, whole.samples)).round().astype(int))
    device, training = next(model.parameters()).device, model.training
    square, count = torch.zeros(2, len(spec.channels), dtype=torch.float64)
    model.eval()
    try:
        for first in range(0, len(chosen), batch_size):
            batch = whole.batch(chosen[first : first + batch_size]).to(device)
            assert batch.target is not None
            streams = Streams(0, batch.time[:, spec.history - 1], 1, 0) if spec.stochastic != "none" else None
            with torch.no_grad():
                error = (model.predict(batch, 1, streams)[:, 0] - batch.target).square().double().cpu()
            seen = torch.ones_like(error) if batch.target_mask is None else batch.target_mask.double().cpu()
            square += (error * seen).sum((0, 1, 3, 4))
            count += seen.sum((0, 1, 3, 4))
    finally:
        model.train(training)
    return pd.Series((square / count).sqrt().numpy(), index=list(spec.channels))
