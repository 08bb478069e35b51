"""Forcings that are computed, and accumulated fields that are taken apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from noise import make, times_of

from wxlab.errors import WxlabError
from wxlab.forcings import compute, toa_solar_radiation
from wxlab.grids import Grid
from wxlab.splits import parse_time
from wxlab.store import deaccumulate, open_store, prepare


def test_sunlight_of_a_day_at_an_equinox_and_in_polar_night() -> None:
    grid = Grid.regular(17, 32)
    hours = np.datetime64("2001-03-20T01") + np.arange(24) * np.timedelta64(1, "h")
    daily = toa_solar_radiation(hours, grid).sum(0).mean(1) / 86400
    np.testing.assert_allclose(daily, 1361 / np.pi * np.cos(np.deg2rad(np.asarray(grid.y))) * 1.008, atol=10)
    assert (toa_solar_radiation(np.array(["2001-12-21T12"], "datetime64[s]"), grid)[0, -2:] == 0).all()


def test_sunlight_at_noon_in_june() -> None:
    grid = Grid((52.0,), (0.0,))
    noon = toa_solar_radiation(np.array(["2001-06-21T12:30"], "datetime64[s]"), grid)[0, 0, 0] / 3600
    zenith = np.sin(np.deg2rad(52)) * np.sin(np.deg2rad(23.44)) + np.cos(np.deg2rad(52)) * np.cos(np.deg2rad(23.44))
    assert noon == pytest.approx(1361 * 0.9675 * zenith, rel=0.01)


def test_progress_forcings() -> None:
    grid = Grid.regular(4, 8)
    out = compute(
        ["year_progress_cos", "day_progress_sin", "latitude_sin"], np.array(["2001-01-01T00", "2001-07-02T12"], "datetime64[s]"), grid
    )
    assert out.dtype == np.float32 and out.shape == (2, 3, 4, 8)
    np.testing.assert_allclose(out[:, 0, 0, 0], [1, -1], atol=1e-3)
    np.testing.assert_allclose(out[0, 1, 0], np.sin(np.deg2rad(np.asarray(grid.x))), atol=1e-6)
    np.testing.assert_allclose(out[0, 2, :, 0], np.sin(np.deg2rad(np.asarray(grid.y))), atol=1e-6)


def test_deaccumulation_restarts_where_it_should() -> None:
    hourly = np.arange(1.0, 49.0)
    times = np.datetime64("2001-01-01T01", "ns") + np.arange(48) * np.timedelta64(1, "h")
    total = np.concatenate([np.cumsum(hourly[:24]), np.cumsum(hourly[24:])])  # since 00 UTC of each day
    field = xr.DataArray(total, dims="time", coords={"time": times}, name="tp", attrs={"units": "m"})
    for resets in ((0,), None):
        np.testing.assert_allclose(deaccumulate(field, resets=resets).values[1:], hourly[1:])
    assert deaccumulate(field).values[0] == 1 and np.isnan(deaccumulate(field, resets=None).values[0])
    six = deaccumulate(field, hours=6)
    np.testing.assert_allclose(six.values, hourly.reshape(8, 6).sum(1))
    assert six["time"].values[0] == np.datetime64("2001-01-01T06") and six.attrs == {"units": "m"}
    assert np.isnan(deaccumulate(field.isel(time=[0, 1, 3, 4])).values[2])  # a gap: the interval is not known


def test_prepare_deaccumulates_and_names_the_hours(tmp_path: Path) -> None:
    data = make(times_of(96, hours=1), Grid.regular(4, 8)).drop_vars("total_precipitation_24hr")
    hours = np.arange(96) % 24
    data["total_precipitation"] = (
        ("time", "latitude", "longitude"),
        np.broadcast_to(np.where(hours == 0, 24.0, hours)[:, None, None], (96, 4, 8)),
    )
    store = open_store(
        prepare(
            data,
            tmp_path / "s.zarr",
            variables=["total_precipitation_6hr", "2m_temperature"],
            accumulated={"total_precipitation": {"resets": [0], "hours": 6}},
            splits={"train": ["2001", "2001"]},
        )
    )
    assert store.step == 6 * 3600 and store.times[0] == parse_time("2001-01-01T06")
    np.testing.assert_allclose(store.read(0, len(store))[:, 0], 6.0)


def test_forcings_need_what_they_need() -> None:
    metres = Grid((0.0, 500.0), (0.0, 500.0), "xy")
    assert compute(["day_progress_cos"], np.array(["2001-01-01T12"], "datetime64[s]"), metres)[0, 0, 0, 0] == pytest.approx(-1)
    with pytest.raises(WxlabError, match="needs latitudes and longitudes"):
        compute(["latitude_sin"], np.array([0]), metres)
