"""Anomaly normalisation: measured from the climatology at each time, the same through windows, roll-out and checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import wxlab
from wxlab.errors import WxlabError
from wxlab.store import Store, open_store
from wxlab.windows import Windows

NAMES = ("2m_temperature", "mean_sea_level_pressure")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two years of daily fields: an annual cycle of 10 units that differs from point to point, and noise of 1."""
    random = np.random.default_rng(0)
    times = np.arange("2001-01-01", "2003-01-01", dtype="datetime64[D]").astype("datetime64[ns]")
    phase = 2 * np.pi * np.arange(len(times)) / 365.25
    cycle = 10 * np.sin(phase[:, None, None] + np.linspace(0, 3, 16)[None, :, None])
    dims, shape = ("time", "latitude", "longitude"), (len(times), 16, 32)
    fields = {name: (dims, (280 + cycle + random.standard_normal(shape)).astype(np.float32)) for name in NAMES}
    coords = {"time": times, "latitude": np.linspace(-84, 84, 16), "longitude": np.arange(32) * 11.25}
    out = tmp_path_factory.mktemp("anomaly") / "store.zarr"
    return open_store(wxlab.prepare(xr.Dataset(fields, coords), out, variables=NAMES, normalisation={NAMES[0]: "anomaly"}))


def test_scale_is_the_spread_about_the_climatology(store: Store) -> None:
    transform = store.normaliser.transforms[NAMES[0]]
    assert transform.kind == "anomaly"
    assert transform.scale == pytest.approx(1.0, abs=0.02)
    assert store.normaliser.transforms[NAMES[1]].scale == pytest.approx(np.sqrt(51), rel=0.05)


def test_windows_hold_anomalies_of_their_own_times(store: Store) -> None:
    batch = next(iter(Windows(store, "train", history=2, horizon=3, batch_size=4, shuffle=True)))
    times = batch.time.numpy()
    state = store.dataset(times=times[1])[NAMES[0]].values
    climate = store.climatology().at(times[1])[:, 0]
    expected = (state - climate) / store.normaliser.transforms[NAMES[0]].scale
    found = torch.cat([batch.history, batch.target], dim=1)[1, :, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert abs(found.std() - 1) < 0.1


def test_round_trip_over_leading_axes(store: Store) -> None:
    times = store.times[:6].reshape(2, 1, 3)
    x = torch.randn(2, 4, 3, 2, 16, 32) + 280
    back = store.normaliser.denormalise(store.normaliser.normalise(x, NAMES, times), NAMES, times)
    torch.testing.assert_close(back, x, rtol=0, atol=2e-4)


def test_missing_times_are_refused_in_a_sentence(store: Store) -> None:
    with pytest.raises(WxlabError, match="2m_temperature is normalised as an anomaly, which needs times"):
        store.normaliser.normalise(torch.zeros(2, 2, 16, 32), NAMES)


def test_forecast_of_a_loaded_checkpoint_adds_the_climatology_of_the_valid_time(store: Store, tmp_path: Path) -> None:
    """A network that says 0 forecasts the climatology, through training, saving and loading."""
    path = wxlab.train("convlstm", store, run_dir=tmp_path, preset="tiny", steps=1, progress=False)
    model = wxlab.load_checkpoint(path)
    with torch.no_grad():
        model.predict = lambda batch, members=1, generator=None: torch.zeros(len(batch), 1, model.spec.horizon, *batch.history.shape[2:])
    test = store.dataset("test")
    forecast = wxlab.forecast(model, test, steps=3, times=test.time.values[20:22])
    valid = forecast.time.values[1] + forecast.prediction_timedelta.values
    np.testing.assert_allclose(forecast[NAMES[0]].values[1], store.climatology().at(valid)[:, 0], atol=1e-3)
    assert np.allclose(forecast[NAMES[1]].values, store.mean[1], atol=1e-2)
