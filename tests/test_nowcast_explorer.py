"""The widget of nowcasts: what it offers, and that its picture is that of the choice."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.plots import explore_nowcast
from wxlab.plots.nowcast_explorer import NowcastView
from wxlab.plots.widget import Explorer

MINUTE = np.timedelta64(1, "m").astype("timedelta64[ns]")


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    random = np.random.default_rng(0)
    times = np.datetime64("2020-01-01T00:00", "ns") + np.arange(6) * 5 * MINUTE
    places = {"y": np.arange(8) * 1000.0, "x": np.arange(8) * 1000.0}
    attributes = {"units": "mm h-1"}
    truth = xr.Dataset({"rain_rate": (("time", "y", "x"), random.gamma(1, 2, (6, 8, 8)), attributes)}, {"time": times, **places})
    values = random.gamma(1, 2, (2, 3, 2, 8, 8))
    dims = ("time", "number", "prediction_timedelta", "y", "x")
    coordinates = {"time": times[1:3], "number": [0, 1, 2], "prediction_timedelta": np.array([1, 2]) * 5 * MINUTE, **places}
    return xr.Dataset({"rain_rate": (dims, values, attributes)}, coordinates), truth


def test_picture_shows_the_choice(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    ensemble, truth = pair
    view = NowcastView(ensemble, truth, "rain_rate", [1.0, 4.0])
    entries = view.entries("rain_rate")
    assert entries["threshold"] == [1.0, 4.0] and entries["number"] == ["mean", 0, 1, 2]
    choice = view.first("rain_rate") | {"threshold": 4.0, "number": 2, "lead": entries["lead"][1], "time": entries["time"][1]}
    axes = view.draw(**choice).axes[:3]
    shown = [np.asarray(place.collections[0].get_array()).reshape(8, 8) for place in axes]
    assert [place.get_title(loc="left") for place in axes] == ["Truth", "Member 2", "Probability"]
    assert np.array_equal(shown[0], truth.rain_rate.values[4])
    assert np.array_equal(shown[1], ensemble.rain_rate.values[1, 2, 1])
    assert np.allclose(shown[2], (ensemble.rain_rate.values[1, :, 1] >= 4).mean(0))


def test_widget_redraws(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    view = NowcastView(*pair, "rain_rate", [1.0, 4.0])
    widget = Explorer(view, view.first("rain_rate"))
    before = widget.picture.value
    widget.sliders["threshold"].index = 1
    assert widget.picture.value != before and widget.message.value == ""


def test_needs_members(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    with pytest.raises(WxlabError, match="no forecast with members"):
        explore_nowcast(pair[0].isel(number=0, drop=True), pair[1], "rain_rate", thresholds=[1.0])
