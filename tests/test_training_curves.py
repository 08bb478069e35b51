"""Errors of each channel while a run trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pointwise import ENTRIES, make_store

from wxlab import models
from wxlab.store import Store, open_store
from wxlab.trainer import train
from wxlab.training.curves import ChannelErrors, channel_errors
from wxlab.windows import Windows

QUIET: dict[str, Any] = {"progress": False, "device": "cpu", "batch_size": 4, "steps": 6, "validate_every": 3}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in ENTRIES.items():
        monkeypatch.setitem(models._REGISTRY, name, place)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("curves") / "s.zarr"))


def test_errors_are_those_of_all_windows(store: Store) -> None:
    model = models.create_model("plain", channels=store.channels, grid=store.grid).train()
    batch = next(iter(Windows(store, "validation", history=2, horizon=1, batch_size=100)))
    assert batch.target is not None
    with torch.no_grad():
        expected = (model.predict(batch)[:, 0] - batch.target).double().square().mean((0, 1, 3, 4)).sqrt()
    found = channel_errors(model, store, windows=1000, batch_size=3)
    assert list(found.index) == list(store.channels) and model.training
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    few = channel_errors(model, store, windows=1)
    with torch.no_grad():
        first = (model.predict(batch)[:1, 0] - batch.target[:1]).double().square().mean((0, 1, 3, 4)).sqrt()
    np.testing.assert_allclose(few, first, rtol=1e-6)


def test_missing_points_do_not_count(tmp_path: Path) -> None:
    from noise import make, times_of

    from wxlab import prepare
    from wxlab.grids import Grid

    fields = make(times_of(60), Grid.regular(4, 8))
    fields["2m_temperature"][:, :2] = np.nan
    splits = {"train": ["2001-01-01", "2001-02-09"], "validation": ["2001-02-10", "2001-03-01"]}
    store = open_store(prepare(fields, tmp_path / "s.zarr", variables=["2m_temperature"], nan="mask", splits=splits))
    model = models.create_model("plain", channels=store.channels, grid=store.grid)
    batch = next(iter(Windows(store, "validation", history=2, horizon=1, batch_size=100)))
    assert batch.target is not None
    with torch.no_grad():
        error = (model.predict(batch)[:, 0] - batch.target)[..., 2:, :]
    assert channel_errors(model, store, windows=100)["2m_temperature"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)


def test_a_callback_keeps_them_in_a_file(store: Store, tmp_path: Path) -> None:
    model = models.create_model("plain", channels=store.channels, grid=store.grid)
    first = channel_errors(model, store)
    errors = ChannelErrors(model, store, tmp_path / "errors.json")
    train(model, store, run_dir=tmp_path / "run", callbacks=[errors], **QUIET)
    table = errors.table()
    assert list(table.index) == [0, 3, 6] and list(table.columns) == list(store.channels)
    np.testing.assert_allclose(table.loc[0], first)
    np.testing.assert_allclose(table.loc[6], channel_errors(model, store))
    again = ChannelErrors(model, store, tmp_path / "errors.json")
    train(model, store, run_dir=tmp_path / "run", callbacks=[again], **QUIET)  # finished already
    assert again.table().equals(table)


def test_watching_changes_nothing(store: Store, tmp_path: Path) -> None:
    states = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = models.create_model("plain", channels=store.channels, grid=store.grid, dropout=0.3)
        callbacks = [ChannelErrors(model, store, tmp_path / "errors.json")] if watched else []
        train(model, store, run_dir=tmp_path / f"run-{watched}", callbacks=callbacks, **QUIET)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
