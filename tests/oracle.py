"""Waves that travel around the globe, and a model that knows them: its forecasts are the truth but for the fault that is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from wxlab.grids import Grid
from wxlab.models import Entry
from wxlab.models.base import Batch, Model, Spec
from wxlab.store import open_store, prepare

HOUR = 3600
NAMES = ("10m_u_component_of_wind", "10m_v_component_of_wind", "2m_temperature", "geopotential")
FAULTS = ("none", "flicker", "blur", "equal", "poles", "drift", "broken")
SPLITS = {"train": 0.6, "validation": 0.4}


def waves(count: int = 120, rows: int = 12, columns: int = 24, seed: int = 0) -> xr.Dataset:
    """Waves of zonal wavenumbers 1 to 9 that go east, each at a speed of its own; every 6 hours."""
    random, grid = np.random.default_rng(seed), Grid.regular(rows, columns)
    time = np.arange(count)[:, None, None]
    latitude, longitude = np.deg2rad(grid.y)[:, None], np.deg2rad(grid.x)[None]
    fields: dict[str, Any] = {}
    for name in NAMES:
        field = np.zeros((count, rows, columns))
        for k in range(1, 10):
            phase, tilt, speed = 2 * np.pi * random.random(), random.normal(), 0.2 + 0.1 * random.random()
            field += k**-0.5 * np.sin(k * longitude + phase + speed * k * time + 2 * tilt * latitude)
        values = (280 + 5 * field).astype(np.float32)
        levels = name == "geopotential"
        fields[name] = (("time", *(["level"] if levels else []), "latitude", "longitude"), values[:, None] if levels else values)
    stamps = np.datetime64("2001-01-01", "ns") + np.arange(count) * np.timedelta64(6, "h")
    return xr.Dataset(fields, {"time": stamps, "level": [500], "latitude": list(grid.y), "longitude": list(grid.x)})


def make_store(path: Path, data: xr.Dataset | None = None, **how: Any) -> Path:
    return prepare(waves() if data is None else data, path, **{"variables": list(NAMES), "splits": SPLITS, **how})


class Oracle(Model):
    """Reads the truth in the store at ``place``; errors of the past go on. ``fault``: one of ``FAULTS``."""

    def __init__(self, spec: Spec, *, place: str, fault: str) -> None:
        super().__init__(spec, place=place, fault=fault)
        self.store, self.fault = open_store(place), fault
        self.unused = nn.Parameter(torch.zeros(1))

    def truth(self, time: Tensor) -> Tensor:
        """[B, T] -> [B, T, C, H, W]."""
        places = self.store.index(time.numpy().ravel())
        states = np.concatenate([self.store.read(i, i + 1) for i in places])
        values = self.store.normaliser.normalise(torch.from_numpy(states), self.store.channels)
        return values.unflatten(0, tuple(time.shape))

    def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
        past = self.spec.history
        truth = self.truth(batch.time[:, past:])  # [B, To, C, H, W]
        carried = batch.history[:, -1:] - self.truth(batch.time[:, past - 1 : past])
        noise = generator.randn((1, truth.shape[2], 1, 1)) if self.spec.stochastic != "none" else torch.zeros(1)
        made = (truth + 0.5 * carried)[:, None] + 0.1 * (1 if self.fault == "equal" else noise)
        made = made.expand(-1, members, *made.shape[2:]).clone()
        if self.fault == "flicker":
            signs = 1 - 2 * (batch.time[:, past:] // self.spec.step % 2)
            made = made + 0.7 * signs[:, None, :, None, None, None] * (1 - 2 * (torch.arange(truth.shape[-1]) % 2))
        elif self.fault == "blur":
            made = (made.roll(-1, -1) + 2 * made + made.roll(1, -1)) / 4
        elif self.fault == "poles":
            made[..., 0, :] += 3 * (1 - 2 * (torch.arange(truth.shape[-1]) % 2))
        elif self.fault == "drift":
            made[:, :, :, -1] += 0.6 * carried[:, None, :, -1] + 0.1
        elif self.fault == "broken":
            made = made + torch.where(carried.abs().amax() > 0, torch.nan, 0.05)
        return made


def _build(spec: Spec, *, place: str, fault: str = "none") -> Oracle:
    return Oracle(dataclasses.replace(spec, stochastic="none" if fault == "deterministic" else "noise"), place=place, fault=fault)


_PRESET = {"channels": ("2m_temperature",), "grid": (4, 8), "history": 2, "horizon": 2, "step": 6 * HOUR}
ORACLE = Entry("oracle", "Oracle", {"tiny": _PRESET, "demo": _PRESET}, _build, citation="none", options=frozenset({"place", "fault"}))
