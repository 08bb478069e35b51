"""What signatures are looked for in: the logs, settings and weights of a run, its store, some windows and some roll-outs."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wxlab.channels import stack
from wxlab.checkpoints import load_checkpoint
from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights, grid_of, turned
from wxlab.health.findings import NotJudged
from wxlab.models import get_entry
from wxlab.models.base import Batch, Model
from wxlab.rollout import forecast
from wxlab.store import Store, open_store
from wxlab.windows import Windows

WINDOWS = 4  # that a network is shown
FORECAST_BYTES = 1 << 30  # of roll-outs; of larger models fewer initial times are forecast


@dataclass(frozen=True)
class Rolled:
    """Roll-outs and the truth at their valid times, normalised.

    forecast [N, M, L, C, H, W], truth and climatology [N, L, C, H, W]; hours [L]; weights [H, 1]: area, mean 1.
    """

    forecast: np.ndarray
    truth: np.ndarray
    climatology: np.ndarray
    hours: np.ndarray
    channels: tuple[str, ...]
    grid: Grid

    @cached_property
    def weights(self) -> np.ndarray:
        return area_weights(self.grid)[:, None]

    def require(self, leads: int) -> None:
        """Raise NotJudged unless there are so many lead times, all of them numbers."""
        if len(self.hours) < leads:
            raise NotJudged(f"the roll-outs have {len(self.hours)} lead times and {leads} are needed; ask for more steps or a longer split")
        if not np.isfinite(self.forecast).all():
            raise NotJudged("the roll-outs are not numbers everywhere, which 'drift' reports")


@dataclass(frozen=True)
class Asked:
    """What a check was asked to make: initial times, steps, members and seed of its roll-outs, and where networks run."""

    times: int
    steps: int
    members: int
    seed: int
    device: str


class Evidence:
    """A run folder and what belongs to it, each read when it is first asked for.

    Raises WxlabError when there is no run, when nothing of it can be judged yet, and when ``store`` is not the one it was trained on.
    """

    def __init__(self, run_dir: str | os.PathLike[str], store: Store | str | os.PathLike[str] | None, asked: Asked) -> None:
        self.path, self.asked = Path(run_dir), asked
        self.settings = self._settings()
        self.lines = self._lines()
        self.failure = next((line["stopped"] for line in self.lines[-1:] if "loss" not in line and "stopped" in line), "")
        self.ended = bool(self.failure) or (self.path / "last.safetensors").is_file() or not self.lines
        self.has_weights = (self.path / "best.safetensors").is_file()
        if not self.has_weights and not self.failure:
            raise WxlabError(f"the run in {self.path} is half done and has kept no checkpoint yet; go on with wxlab.train, then check it")
        self._given = None if store is None else self._same(open_store(store))

    def _settings(self) -> dict[str, Any]:
        file = self.path / "settings.json"
        if not file.is_file():
            raise WxlabError(f"{self.path} holds no run of wxlab.train; name the run_dir of a training")
        try:
            settings = json.loads(file.read_text())
        except ValueError:
            settings = None
        if not isinstance(settings, dict) or "store" not in settings:
            raise WxlabError(f"{file} is not the JSON that wxlab.train wrote; train again in another run_dir")
        return settings

    def _lines(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, without one that a killed run left unfinished."""
        file, lines = self.path / "metrics.jsonl", []
        for text in file.read_text().splitlines() if file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines

    def _same(self, store: Store) -> Store:
        if store.attrs["checksum"] != self.settings["store"]:
            raise WxlabError(f"{store.path} is another store than the one that the run in {self.path} was trained on; give that one")
        return store

    @property
    def note(self) -> str:
        """What is to be known before the findings are read."""
        if self.ended:
            return ""
        step = self.lines[-1]["step"]
        return f"the run is half done: its logs reach step {step}, and what is said of the network holds for its best checkpoint so far"

    @cached_property
    def store(self) -> Store:
        """The store that the run was trained on."""
        if self._given is not None:
            return self._given
        place = self.settings.get("store_path")
        if place is None:
            raise NotJudged("the run did not record where its store lies; give store=")
        try:
            return self._same(open_store(place))
        except WxlabError as error:
            raise NotJudged(f"{error}; give store= if it was moved") from None

    @cached_property
    def model(self) -> Model:
        """The best checkpoint's network in eval mode."""
        if not self.has_weights:
            raise NotJudged("the run failed before it kept a checkpoint")
        return load_checkpoint(self.path).to(self.device)

    @property
    def device(self) -> str:
        gpu = self.asked.device == "auto" and torch.cuda.is_available()
        return "cuda" if gpu else self.asked.device.replace("auto", "cpu")

    def network(self, name: str, what: str) -> Model:
        """The model, when it is the one that a signature belongs to."""
        if self.settings["name"] != name:
            raise NotJudged(f"{self.settings['name']} has no {what}")
        return self.model

    @property
    def split(self) -> str:
        """The split that networks are judged on, never the test split."""
        return next(name for name in ("validation", "train") if name in self.store.splits)

    @cached_property
    def batch(self) -> Batch:
        """Some windows, evenly spread over the split."""
        windows = self._windows(self.model.spec.horizon)
        chosen = np.unique(np.linspace(0, windows.samples - 1, WINDOWS).round().astype(int))
        return windows.batch(chosen).to(self.device)

    @cached_property
    def rolled(self) -> Rolled:
        """Roll-outs of the best checkpoint over the split, as many steps as were asked for or as fit."""
        model, asked = self.model, self.asked
        if model.name == "ladcast_autoencoder":
            raise NotJudged("an autoencoder makes no forecasts")
        starts, steps = self._starts()
        members = asked.members if model.spec.stochastic != "none" else 1
        size = 4 * members * steps * len(model.spec.channels) * int(np.prod(model.spec.grid.shape))
        count = max(1, min(asked.times, FORECAST_BYTES // size))
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, count).round().astype(int))]
        stamps = starts.astype("datetime64[s]").astype("datetime64[ns]")
        states = self.store.dataset(self.split)
        made = forecast(model, states, steps=steps, members=members, seed=asked.seed, times=stamps, device=self.device)
        spec, grid = model.spec, grid_of(made)
        hours = np.arange(1, steps + 1) * spec.step / 3600
        valid = starts[:, None] + np.arange(1, steps + 1) * spec.step  # [N, L]
        values = stack(made, spec.channels).values
        values = turned(values if members > 1 else values[:, None], grid, spec.grid)  # [N, M, L, C, H, W]
        truth = stack(self.store.dataset(times=valid.ravel()), spec.channels).values.reshape(*valid.shape, *values.shape[3:])
        names = [self.store.channels.index(name) for name in spec.channels]
        climatology = self.store.climatology().at(valid.ravel())[:, names].reshape(truth.shape)
        return Rolled(
            self._normalised(values, valid[:, None]), self._normalised(truth, valid), self._normalised(climatology, valid), hours,
            spec.channels, spec.grid,
        )  # fmt: skip

    def _normalised(self, values: np.ndarray, times: np.ndarray) -> np.ndarray:
        """As the network sees them; what was never observed is the same number everywhere."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32).copy())
        return self.store.normaliser.normalise_(tensor, self.model.spec.channels, np.broadcast_to(times, values.shape[:-3])).numpy()

    def _starts(self) -> tuple[np.ndarray, int]:
        """Initial times (seconds) that have their history and truth within a segment of the split, and how many steps they allow."""
        for steps in range(self.asked.steps, 1, -1):
            with contextlib.suppress(WxlabError):
                return self.store.times[self._windows(steps).bases], steps
        return self.store.times[self._windows(1).bases], 1

    def _windows(self, horizon: int) -> Windows:
        spec = self.model.spec
        step, history_step = spec.step / 3600, spec.history_step / 3600
        return Windows(self.store, self.split, history=spec.history, horizon=horizon, step=step, history_step=history_step)

    def fresh(self) -> Model:
        """The network as it was before training: the same weights where training made it from a name, else others of that kind."""
        model = self.model
        torch.manual_seed(self.settings.get("seed", 0))
        return get_entry(model.name).build(model.spec, **model.config).eval().to(self.device)
