"""Figures of global ensembles: variance by zonal wavenumber, and the widget that shows it beside the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights
from wxlab.nn.edm import Preconditioning, TrainingNoise, karras_sigmas
from wxlab.plots import explore_ensemble, plot_noise, plot_zonal
from wxlab.plots.ensemble import EnsembleView, zonal_power
from wxlab.plots.widget import Explorer

GRID = Grid.regular(8, 16)
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")
ATTRIBUTES = {"units": "m2 s-2"}


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    random = np.random.default_rng(0)
    places = {"latitude": list(GRID.y), "longitude": list(GRID.x), "level": [500, 850]}
    times = np.datetime64("2020-01-01T00:00", "ns") + np.arange(6) * 6 * HOUR
    dims = ("time", "level", "latitude", "longitude")
    truth = xr.Dataset({"geopotential": (dims, random.normal(5e4, 300, (6, 2, 8, 16)), ATTRIBUTES)}, {"time": times, **places})
    values = random.normal(5e4, 300, (2, 3, 2, 2, 8, 16))
    coordinates = {"time": times[1:3], "number": [0, 1, 2], "prediction_timedelta": np.array([6, 12]) * HOUR, **places}
    forecast = xr.Dataset({"geopotential": (("time", "number", "prediction_timedelta", *dims[1:]), values, ATTRIBUTES)}, coordinates)
    forecast["msl"] = forecast["geopotential"].isel(number=0, level=0, drop=True)
    return forecast, truth


def test_variance_by_wavenumber_adds_up_and_finds_a_wave() -> None:
    random = np.random.default_rng(0)
    axes = {"latitude": list(GRID.y), "longitude": list(GRID.x)}
    for columns in (16, 15):
        places = {**axes, "longitude": np.arange(columns) * 360 / columns}
        field = xr.DataArray(random.normal(size=(3, 8, columns)), dims=("time", *axes), coords=places)
        weights = area_weights(GRID)[:, None]
        power = zonal_power(field)
        twice = power[..., -1] / 2 if columns % 2 == 0 else 0  # the wave of two columns
        np.testing.assert_allclose(power.sum(-1) - twice, (field.values**2 * weights).mean((1, 2)), rtol=1e-12)
    turn = np.deg2rad(GRID.x)
    wave = xr.DataArray(np.broadcast_to(4 + 3 * np.cos(5 * turn), (8, 16)), dims=tuple(axes), coords=axes)
    expected = np.zeros(9)
    expected[[0, 5]] = 16, 4.5
    np.testing.assert_allclose(zonal_power(wave), expected, atol=1e-12)
    assert np.allclose(zonal_power(wave.transpose()), expected)


def test_spectra_stand_beside_those_of_the_truth(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    truth = pair[1]
    figure = plot_zonal({"truth": truth, "reconstruction": truth * 0.5}, ["geopotential_500", "geopotential_850"])
    upper, lower = figure.axes[0], figure.axes[2]
    assert upper.get_title(loc="left") == "500 hPa geopotential" and upper.get_ylabel() == "Variance [(m²/s²)²]"
    wave = zonal_power(truth["geopotential"].sel(level=500)).mean(0)[1:]
    np.testing.assert_allclose(upper.lines[0].get_ydata(), wave)
    np.testing.assert_allclose(lower.lines[0].get_ydata(), 0.25)
    assert upper.lines[0].get_color() == "#000000" and lower.get_xlabel() == "Zonal wavenumber"


def test_noise_levels_are_drawn_where_they_are_trained_and_sampled() -> None:
    factors, often = plot_noise(Preconditioning(0.5), TrainingNoise(0.3, 1.0), sampling_steps=8).axes
    lines = {str(line.get_label()): line for line in factors.lines}
    sigma, skip, out = (np.asarray(data) for data in (*lines["$c_{skip}$"].get_data(), lines["$c_{out}$"].get_ydata()))
    np.testing.assert_allclose(skip, 0.25 / (sigma**2 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(out**2, sigma**2 * skip, rtol=1e-6)
    x, density = often.collections[0].get_paths()[0].vertices.T
    assert x[density.argmax()] == pytest.approx(np.exp(0.3), rel=0.05) and density.max() == pytest.approx(1 / np.sqrt(2 * np.pi), rel=0.01)
    np.testing.assert_allclose(often.lines[0].get_xdata(), karras_sigmas(8)[:-1])


def test_the_picture_shows_the_choice(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    forecast, truth = pair
    view = EnsembleView(forecast, truth, "plain")
    assert view.variables == ["geopotential"]  # the other has no members
    entries = view.entries("geopotential")
    assert entries["number"] == ["mean", "spread", 0, 1, 2]
    choice = {**view.first(), "lead": entries["lead"][0], "time": entries["time"][1], "level": 850, "number": 2}
    figure = view.draw(**choice)
    maps, beside = figure.axes[0], figure.axes[1]
    member = forecast["geopotential"].isel(time=1, prediction_timedelta=0, number=2).sel(level=850)
    shown = np.unique(np.asarray(maps.collections[0].get_array()))  # the column at the seam is drawn twice
    np.testing.assert_allclose(shown, np.unique(member.values))
    assert maps.get_title(loc="left") == "850 hPa geopotential · 2020-01-01 12 UTC + 6 h · member 2"
    lines = {line.get_label(): line.get_ydata() for line in beside.lines}
    assert list(lines) == ["truth", "ensemble mean", "member 2"]
    np.testing.assert_allclose(lines["truth"], zonal_power(truth["geopotential"].isel(time=3).sel(level=850))[1:])
    np.testing.assert_allclose(lines["member 2"], zonal_power(member)[1:])
    assert lines["ensemble mean"].sum() < lines["member 2"].sum()
    spread = view.draw(**{**choice, "number": "spread"})
    assert [line.get_label() for line in spread.axes[1].lines] == ["truth", "ensemble mean"]


def test_the_widget_redraws(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    view = EnsembleView(*pair, "plain")
    widget = Explorer(view, view.first())
    before = widget.picture.value
    widget.sliders["number"].index = 2
    assert widget.picture.value != before and widget.message.value == ""


FAULTS: dict[str, tuple[Any, str]] = {
    "no members": (lambda f, t: explore_ensemble(f.isel(number=0, drop=True), t), "there is no global ensemble"),
    "no truth": (lambda f, t: plot_zonal({"reconstruction": t}, ["geopotential_500"]), "give variables, and by name 'truth'"),
    "no variable": (lambda f, t: plot_zonal({"truth": t, "x": t}, ["geopotentail_500"]), "unknown variable 'geopotentail_500'"),
    "missing points": (
        lambda f, t: plot_zonal({"truth": t, "x": t.where(t["latitude"] > 0)}, ["geopotential_500"]),
        "500 hPa geopotential of 'x' has missing points",
    ),
    "later truth": (lambda f, t: explore_ensemble(f, t.isel(time=slice(2))), "the truth does not go with this forecast"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str, pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault(*pair)
    assert "\n" not in str(error.value)
