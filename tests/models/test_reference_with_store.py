"""Climatology and random walk learn from a prepared store."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.models import create_model
from wxlab.models.base import Batch
from wxlab.store import Store, open_store, prepare

HOURS = np.arange(0, 3 * 365 * 24, 6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three years: one channel of pure season and hour of the day, one random walk with steps of 0.5."""
    rng = np.random.default_rng(0)
    season = 280 + 10 * np.cos(2 * np.pi * HOURS / 24 / 365.25) + 3 * np.cos(2 * np.pi * HOURS / 24)
    mean = np.broadcast_to(season[:, None, None], (len(HOURS), 4, 8)) + np.arange(4)[:, None]
    walk = np.cumsum(0.5 * rng.standard_normal((len(HOURS), 4, 8)), axis=0)
    data = xr.Dataset(
        {"2m_temperature": (("time", "latitude", "longitude"), mean), "walk": (("time", "latitude", "longitude"), walk)},
        {
            "time": np.datetime64("2000-01-01", "ns") + HOURS.astype("timedelta64[h]"),
            "latitude": np.linspace(-67.5, 67.5, 4),
            "longitude": np.arange(8) * 45.0,
        },
    ).astype(np.float32)
    return open_store(prepare(data, tmp_path_factory.mktemp("store") / "demo.zarr"))


def windows(store: Store, start: int, horizon: int) -> Batch:
    states = torch.from_numpy(store.normaliser.normalise(store.read(start, start + 1 + horizon), store.channels))
    times = torch.from_numpy(store.times[start : start + 1 + horizon])
    return Batch(states[None, :1], states[None, 1:], times[None])


def test_climatology_forecasts_the_season_and_the_hour(store: Store) -> None:
    model = create_model("climatology", channels=store.channels, grid=store.grid, step=store.step, horizon=5).fit(store)
    batch = windows(store, 4200, 5)
    prediction = model.predict(batch, members=2)
    assert prediction.shape == (1, 2, 5, 2, 4, 8)
    channel = store.channels.index("2m_temperature")
    assert batch.target is not None
    # a pure function of date and hour is forecast two years ahead (normalised units: a share of the standard deviation)
    torch.testing.assert_close(prediction[:, 1, :, channel], batch.target[:, :, channel], atol=0.02, rtol=0)
    direct = store.normaliser.normalise(store.climatology().at(store.times[4201:4206]), store.channels)
    np.testing.assert_allclose(prediction[0, 0], direct, rtol=1e-6, atol=1e-6)


def test_a_fitted_climatology_is_rebuilt_from_its_config_and_weights(store: Store) -> None:
    options = {"channels": store.channels, "grid": store.grid, "step": store.step}
    model = create_model("climatology", **options).fit(store)
    again = create_model("climatology", **options, **model.config)
    again.load_state_dict(model.state_dict())
    again.normaliser = model.normaliser
    batch = windows(store, 100, 2)
    assert torch.equal(again.predict(batch), model.predict(batch))


def test_random_walk_learns_the_step_of_each_channel(store: Store) -> None:
    options = {"channels": store.channels, "grid": store.grid}
    walk = store.channels.index("walk")
    one = create_model("random_walk", **options, step=store.step).fit(store).tendency_std
    four = create_model("random_walk", **options, step=4 * store.step).fit(store).tendency_std
    expected = 0.5 / store.normaliser.transforms["walk"].scale
    assert float(one[walk]) == pytest.approx(expected, rel=0.1)
    assert float(four[walk]) == pytest.approx(2 * expected, rel=0.1)


def test_another_stores_fields_are_refused(store: Store) -> None:
    with pytest.raises(WxlabError, match=r"channels=store\.channels"):
        create_model("climatology", grid=store.grid).fit(store)
    with pytest.raises(WxlabError, match=r"grid=store\.grid"):
        create_model("random_walk", channels=store.channels).fit(store)
    with pytest.raises(WxlabError, match="no multiple"):
        create_model("random_walk", channels=store.channels, grid=store.grid, step=3600).fit(store)
