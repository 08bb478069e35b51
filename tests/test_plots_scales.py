"""Figures by scale and of conservation, and the widget with a map beside its spectrum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wxlab import conservation, spectra
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.plots import explore_spectra, plot_conservation, plot_ratio, plot_resolution, plot_response
from wxlab.plots.ensemble import zonal_power
from wxlab.plots.spectra_explorer import SpectraView
from wxlab.plots.widget import Explorer

GRID = Grid.regular(16, 32)
LEADS = np.arange(1, 4) * np.timedelta64(6, "h").astype("timedelta64[ns]")
TIMES = np.datetime64("2020-01-01", "ns") + np.arange(8) * np.timedelta64(6, "h")


def made(members: int = 3, growth: float = 0.01) -> tuple[xr.Dataset, xr.Dataset]:
    """Truth, and a forecast of it whose pressure grows by a share at each step, with smoother small scales."""
    random = np.random.default_rng(0)
    places = {"level": [500, 850], "latitude": list(GRID.y), "longitude": list(GRID.x)}
    shape = (8, 16, 32)
    data: dict[str, Any] = {"mean_sea_level_pressure": (("time", "latitude", "longitude"), 1e5 + 500 * random.normal(size=shape))}
    for name in ("temperature", "geopotential", "u_component_of_wind", "v_component_of_wind"):
        size = (8, 2, 16, 32)
        data[name] = (("time", "level", "latitude", "longitude"), 280 + 9 * random.normal(size=size), {"units": "K"})
    truth = xr.Dataset(data, {"time": TIMES, **places})
    steps = []
    for i, lead in enumerate(LEADS):
        one = truth.shift(time=-i - 1).isel(time=slice(0, 4)).rolling(longitude=3, center=True, min_periods=1).mean()
        noisy = [one * (1 + growth * (i + 1) + 0.001 * m) for m in range(members)]
        whole = xr.concat(noisy, xr.IndexVariable("number", np.arange(members))) if members > 1 else noisy[0]
        steps.append(whole.expand_dims(prediction_timedelta=[lead]))
    forecast = xr.concat(steps, "prediction_timedelta")
    leading = [dim for dim in ("time", "number", "prediction_timedelta") if dim in forecast.dims]
    return forecast.transpose(*leading, "level", "latitude", "longitude"), truth


FORECAST, TRUTH = made()


# ---- conservation -------------------------------------------------------------------------------------------------------------------


def test_drift_of_members_thin_and_mean_bold() -> None:
    report = conservation.report(FORECAST, TRUTH)
    figure = plot_conservation(report)
    axes = next(each for each in figure.axes if each.get_title(loc="left") == "Mean sea-level pressure")
    thin, bold = [
        [line for line in axes.lines if (line.get_linewidth() < 1) == small and len(line.get_xdata()) == 3] for small in (True, False)
    ]
    assert len(thin) == 3 and len(bold) == 1
    np.testing.assert_allclose(bold[0].get_ydata(), [1.1, 2.1, 3.1], atol=0.02)
    np.testing.assert_allclose(thin[2].get_ydata(), [1.2, 2.2, 3.2], atol=0.02)
    np.testing.assert_allclose(bold[0].get_xdata(), [6, 12, 18])
    assert len(figure.axes) == len(report.data_vars)
    words = figure._supxlabel.get_text().replace("\n", " ")
    for array in report.data_vars.values():
        assert str(array.attrs["long_name"])[1:] in words
    assert "reduced to sea level" in words and "of the truth" in figure._suptitle.get_text()


def test_drift_of_initial_times_and_levels() -> None:
    alone, truth = made(members=1)
    figure = plot_conservation(conservation.report(alone, truth))
    titles = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert len([line for line in titles["Mean sea-level pressure"].lines if line.get_linewidth() < 0.7]) == 4
    levels = titles["Divergence of the wind"]
    assert [text.get_text() for text in levels.get_legend().get_texts()] == ["500 hPa", "850 hPa"]
    assert "first lead time" in plot_conservation(conservation.report(FORECAST))._suptitle.get_text()


def test_what_is_conserved_is_a_flat_line() -> None:
    """Rounding alone does not fill the panel."""
    still = xr.concat([TRUTH.isel(time=[0])] * 2, "prediction_timedelta").assign_coords(prediction_timedelta=LEADS[:2])
    figure = plot_conservation(conservation.report(still.transpose("time", "prediction_timedelta", ...)))
    assert all(axes.get_ylim()[1] == pytest.approx(1e-10) for axes in figure.axes)


# ---- scales -------------------------------------------------------------------------------------------------------------------------


def ratio_of(variable: str = "mean_sea_level_pressure") -> xr.DataArray:
    power = spectra.power(FORECAST[variable]).mean(["time", "number"])
    return spectra.ratio(power, spectra.power(TRUTH[variable]).mean("time"))


def test_ratio_by_lead_time() -> None:
    figure = plot_ratio({"members": ratio_of(), "twin": ratio_of() * 0.9}, last=10)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["members", "twin"]
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().shape == (10, 3)
    np.testing.assert_allclose(np.ravel(mesh.get_array()), ratio_of().transpose("degree", ...)[1:11].values.ravel().clip(0.125, 8))
    assert figure.axes[0].get_xlabel() == "Lead time [h]" and figure.axes[0].get_ylabel() == "Degree"


def test_effective_resolution_over_lead_time() -> None:
    variables = ["mean_sea_level_pressure", "temperature"]
    truth = {name: spectra.power(TRUTH[name]).mean("time") for name in variables}
    power = {name: spectra.power(FORECAST[name]).mean(["time", "number"]) for name in variables}
    found = xr.Dataset({name: spectra.effective_resolution(power[name], truth[name], 0.5) for name in variables})
    figure = plot_resolution({"members": found, "all": found * np.nan}, finest=2e6)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Mean sea-level pressure", "500 hPa temperature", "850 hPa temperature"]
    lines = figure.axes[1].lines
    np.testing.assert_allclose(lines[0].get_ydata(), found["temperature"].sel(level=500).fillna(2e6) / 1000)
    np.testing.assert_allclose(lines[1].get_ydata(), 2000)  # a forecast that has all scales stands at the finest


def test_responses() -> None:
    smooth = spectra.frequency_response(lambda fields: (fields + np.roll(fields, 1, -1) + np.roll(fields, -1, -1)) / 3, GRID)
    same = spectra.frequency_response(lambda fields: fields, GRID)
    figure = plot_response({"mean of three": smooth, "identity": same})
    gain, leak = figure.axes[:2]
    np.testing.assert_allclose(gain.lines[0].get_ydata(), smooth["gain"])
    np.testing.assert_allclose(leak.lines[1].get_ydata(), 0, atol=1e-12)
    shares = figure.axes[3].collections[0].get_array()
    np.testing.assert_allclose(np.diag(shares[1:]), 1)
    assert shares.min() == pytest.approx(1e-4)


# ---- widget -------------------------------------------------------------------------------------------------------------------------


def test_the_map_has_its_spectrum_beside_it() -> None:
    figure = explore_spectra(FORECAST, TRUTH, variable="temperature", level=850, lead=12, number=1)
    lines = {line.get_label(): line for line in figure.axes[2].lines}
    true = TRUTH["temperature"].sel(level=850).isel(time=2)
    np.testing.assert_allclose(lines["truth"].get_ydata(), spectra.power(true)[1:])
    member = FORECAST["temperature"].sel(level=850).isel(time=0, number=1, prediction_timedelta=1)
    np.testing.assert_allclose(lines["member 1"].get_ydata(), spectra.power(member)[1:])
    share = figure.axes[3].lines[0].get_ydata()
    np.testing.assert_allclose(share, (spectra.power(member) / spectra.power(true))[1:])
    assert figure.axes[2].get_title(loc="left") == "Globe" and figure.axes[2].get_ylabel() == "Power [K²]"
    assert "850 hPa temperature" in figure.axes[0].get_title(loc="left")


def test_a_band_of_latitudes() -> None:
    figure = explore_spectra(FORECAST, TRUTH, variable="temperature", level=500, band="30°N to 60°N", number="mean", projection="plain")
    true = TRUTH["temperature"].sel(level=500).isel(time=3)
    rows = true.isel(latitude=np.flatnonzero((true["latitude"] >= 30) & (true["latitude"] <= 60)))
    lines = {line.get_label(): line for line in figure.axes[2].lines}
    np.testing.assert_allclose(lines["truth"].get_ydata(), zonal_power(rows)[1:])
    assert set(lines) == {"truth", "ensemble mean"} and figure.axes[3].get_xlabel() == "Zonal wavenumber"
    assert [line.get_ydata()[0] for line in figure.axes[0].lines[-2:]] == [30, 60]
    assert explore_spectra(FORECAST, TRUTH, bands={"south": (-90, 0)}, band="south").axes[2].get_title(loc="left") == "south"


def test_a_forecast_without_members_has_no_choice_of_them() -> None:
    alone, truth = made(members=1)
    view = SpectraView(alone, truth)
    assert set(view.entries("temperature")) == {"level", "time", "lead", "band"}
    figure = view.draw(**view.first("temperature"))
    assert {line.get_label() for line in figure.axes[2].lines} == {"truth", "forecast"}


def test_controls_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wxlab.plots.spectra_explorer.in_notebook", lambda: True)
    widget = explore_spectra(FORECAST, TRUTH, variable="temperature", projection="plain")
    assert isinstance(widget, Explorer)
    assert list(widget.sliders) == ["level", "time", "lead", "number", "band"]
    assert widget.values["number"] == ["mean", 0, 1, 2] and widget.along()["number"] == 0
    before = widget.picture.value
    widget.sliders["band"].index = 2
    assert widget.picture.value != before and not widget.message.value
    widget.variable.value = "mean_sea_level_pressure"
    assert list(widget.sliders) == ["time", "lead", "number", "band"] and widget.along()["band"] == widget.values["band"][2]


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "no drifts": (lambda: plot_conservation(TRUTH), "holds no drifts"),
    "no ratios": (lambda: plot_ratio({}), "ratios is empty"),
    "ratio of members": (lambda: plot_ratio({"m": ratio_of().expand_dims("number")}), "must have prediction_timedelta and degree"),
    "no leads": (lambda: plot_resolution({"m": TRUTH}), "effective resolutions over prediction_timedelta"),
    "no responses": (lambda: plot_response({"m": TRUTH}), "frequency_response returns"),
    "band": (lambda: explore_spectra(FORECAST, TRUTH, band="globo"), "did you mean 'globe'"),
    "empty band": (lambda: explore_spectra(FORECAST, TRUTH, bands={"thin": (1, 2)}), "'thin' from 1 to 2 holds no row"),
    "region": (lambda: explore_spectra(FORECAST.isel(longitude=slice(9)), TRUTH), "all round the globe"),
    "states": (lambda: explore_spectra(TRUTH, TRUTH), "no lead times"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)
