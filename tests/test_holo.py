"""The HoloViews comparison: every panel holds the right field at every lead time."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.plots import holo_comparison

LEADS = np.array([5, 10], "timedelta64[m]").astype("timedelta64[ns]")


@pytest.fixture(scope="module")
def radar() -> xr.Dataset:
    hv.extension("bokeh")
    times = np.datetime64("2020-01-01T00:00", "ns") + np.arange(4) * np.timedelta64(5, "m")
    values = np.random.default_rng(0).gamma(1, 4, (4, 6, 5)).astype(np.float32)
    places = {"time": times, "y": np.arange(6) * 1000.0, "x": np.arange(5) * 1000.0}
    return xr.Dataset({"rain_rate": (("time", "y", "x"), values, {"units": "mm h-1"})}, places)


def persistence(radar: xr.Dataset, members: int = 0) -> xr.Dataset:
    last = radar.rain_rate.isel(time=[1])
    field = xr.concat([last, last], "prediction_timedelta").assign_coords(prediction_timedelta=LEADS)
    if members:
        field = xr.concat([field + k for k in range(members)], "number").assign_coords(number=np.arange(members))
    return field.to_dataset(name="rain_rate").transpose("time", ...)


def test_panels_hold_truth_and_forecasts(radar: xr.Dataset) -> None:
    layout = holo_comparison({"one": persistence(radar), "many": persistence(radar, 3)}, radar, "rain_rate", number=2)
    truth, one, many = layout
    assert list(truth.keys()) == list(one.keys()) == [5.0, 10.0]
    for position, minutes in enumerate((5.0, 10.0)):
        assert np.array_equal(truth[minutes].dimension_values(2, flat=False), radar.rain_rate.values[2 + position])
        assert np.array_equal(one[minutes].dimension_values(2, flat=False), radar.rain_rate.values[1])
        assert np.allclose(many[minutes].dimension_values(2, flat=False), radar.rain_rate.values[1] + 2)
    page = hv.renderer("bokeh").html(layout[:, :])
    assert "one" in page and "many" in page


def test_panels_need_a_common_lead_time(radar: xr.Dataset) -> None:
    other = persistence(radar).assign_coords(prediction_timedelta=LEADS * 7)
    with pytest.raises(WxlabError, match="no lead time in common"):
        holo_comparison({"a": persistence(radar), "b": other}, radar, "rain_rate")
    with pytest.raises(WxlabError, match="forecasts is empty"):
        holo_comparison({}, radar, "rain_rate")
