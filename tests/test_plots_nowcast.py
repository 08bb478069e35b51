"""Figures of nowcasts: what is drawn is what was given, and faults are one sentence."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from wxlab import plots
from wxlab.errors import WxlabError
from wxlab.plots import style
from wxlab.simulate import radar
from wxlab.verification import exceedance, persistence, radial_spectra, rank_histogram, reliability, verify

LEAD = "prediction_timedelta"
RAIN = "rain_rate"
VIL = "vertically_integrated_liquid_8bit"
THRESHOLDS = (0.5, 2.0, 5.0, 10.0)


def make_forecast(truth: xr.Dataset, members: int = 4, seed: int = 0) -> xr.Dataset:
    """Five lead times from the fourth frame of each of two events, moved and scaled at random."""
    random, states = np.random.default_rng(seed), truth[RAIN].values
    starts, leads = np.array([3, 15]), np.arange(1, 6)
    fields = np.stack([[states[start + leads] * np.exp(0.3 * random.normal()) for start in starts] for _ in range(members)])
    values = np.stack([np.roll(member, random.integers(-2, 3), -1) for member in fields])
    times = truth["time"].values
    coords = {"time": times[starts], LEAD: leads * (times[1] - times[0]), "y": truth["y"], "x": truth["x"]}
    return xr.Dataset({RAIN: (("number", "time", LEAD, "y", "x"), values, {"units": "mm h-1"})}, coords)


TRUTH = radar(frames=12, size=32, events=2, seed=3)
MODEL = make_forecast(TRUTH)
STILL = persistence(TRUTH, like=MODEL)
SCORES = {
    name: verify(made, TRUTH, metrics=("csi", "pod", "far", "csi_m", "fss", "frequency_bias", "mse"), thresholds=THRESHOLDS, windows=(3, 9))
    for name, made in (("model", MODEL), ("persistence", STILL))
}


def drawn(figure: Figure) -> Figure:
    """Drawn without a warning, and known to no window manager."""
    figure.canvas.draw()
    assert not plt.get_fignums()
    return figure


def panels(figure: Figure) -> list[Any]:
    """Axes that are no colour bar."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_frames_in_rows() -> None:
    figure = drawn(plots.plot_frames({"model": MODEL, "persistence": STILL}, TRUTH, RAIN, leads=[1 / 12, "25min"], members=(0, 3), time=1))
    axes = panels(figure)
    assert [place.get_ylabel() for place in axes[::2]] == ["Truth", "model\nmember 0", "model\nmember 3", "persistence"]
    assert [place.get_title(loc="left") for place in axes[:2]] == ["+ 5 min", "+ 25 min"]
    pictures = [place.collections[0].get_array() for place in axes]
    np.testing.assert_allclose(pictures[0].reshape(32, 32), TRUTH[RAIN].values[16], rtol=1e-6)
    np.testing.assert_allclose(pictures[5].reshape(32, 32), MODEL[RAIN].values[3, 1, 4], rtol=1e-6)
    np.testing.assert_allclose(pictures[7].reshape(32, 32), TRUTH[RAIN].values[15], rtol=1e-6)
    assert len({id(place.collections[0].norm) for place in axes}) == 1


def test_frames_of_the_mean_and_all_leads() -> None:
    axes = panels(drawn(plots.plot_frames(MODEL, TRUTH, RAIN)))
    assert len(axes) == 10
    np.testing.assert_allclose(axes[5].collections[0].get_array().reshape(32, 32), MODEL[RAIN].values[:, 0, 0].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("variable", "units", "levels"),
    [(RAIN, "mm h-1", style.RAIN_LEVELS), (VIL, "1", style.VIL_LEVELS), ("reflectivity", "dBZ", style.DBZ_LEVELS)],
)
def test_radar_variables_have_steps_of_their_own(variable: str, units: str, levels: tuple[float, ...]) -> None:
    truth = TRUTH.rename({RAIN: variable})
    truth[variable].attrs["units"] = units
    figure = drawn(plots.plot_frames(MODEL.rename({RAIN: variable}), truth, variable))
    mesh = panels(figure)[0].collections[0]
    assert isinstance(mesh.norm, BoundaryNorm)
    assert tuple(mesh.norm.boundaries) == levels
    assert mesh.cmap(mesh.norm(levels[0] - 1e-3)) == (1, 1, 1, 1)  # no echo is white
    shades = [np.mean(mesh.cmap(mesh.norm(level))[:3]) for level in levels]
    assert (np.diff(shades) < 0).all()  # the more, the darker
    assert drawn(plots.plot_map(truth, variable)).axes


def test_a_panel_for_each_threshold() -> None:
    figure = drawn(plots.plot_thresholds(SCORES, RAIN))
    axes = panels(figure)
    assert [place.get_title(loc="left") for place in axes] == ["≥ 0.5 mm/h", "≥ 2 mm/h", "≥ 5 mm/h", "≥ 10 mm/h"]
    lines = axes[1].get_lines()
    np.testing.assert_allclose(lines[0].get_xdata(), [5, 10, 15, 20, 25])
    np.testing.assert_allclose(lines[0].get_ydata(), SCORES["model"][RAIN].sel(metric="csi", threshold=2).isel(window=0))
    assert lines[1].get_linestyle() == "--"
    assert axes[0].get_ylabel() == "CSI"
    fss = panels(drawn(plots.plot_thresholds(SCORES, RAIN, metric="fss", window=9, thresholds=[5])))
    np.testing.assert_allclose(fss[0].get_lines()[0].get_ydata(), SCORES["model"][RAIN].sel(metric="fss", threshold=5, window=9))
    bias = panels(drawn(plots.plot_thresholds(SCORES["model"], RAIN, metric="frequency_bias", thresholds=[0.5])))
    assert bias[0].get_ylabel() == "Frequency bias"


def test_scores_with_thresholds_in_the_usual_figures() -> None:
    axes = panels(drawn(plots.plot_scores(SCORES, metric="csi_m")))
    assert axes[0].get_ylabel() == "CSI, mean of thresholds"
    np.testing.assert_allclose(axes[0].get_lines()[0].get_ydata(), SCORES["model"][RAIN].sel(metric="csi_m").isel(threshold=0, window=0))
    assert panels(drawn(plots.plot_scores(SCORES, metric="mse")))[0].get_ylabel() == "MSE [(mm/h)²]"
    one = {name: score.sel(threshold=2) for name, score in SCORES.items()}
    assert panels(drawn(plots.plot_scores(one, metric="csi")))[0].get_ylabel() == "CSI"
    with pytest.raises(WxlabError, match=r"'csi' was scored at threshold 0.5, 2, 5, 10; choose one with scores.sel\(threshold=0.5\)"):
        plots.plot_scores(SCORES, metric="csi")
    card = plots.plot_scorecard(one["model"], one["persistence"], metric="csi").axes[0]
    assert all(text.get_text().startswith("-") for text in card.texts)  # a larger CSI is better, and better is below zero


def test_the_performance_diagram() -> None:
    figure = drawn(plots.plot_performance(SCORES, RAIN, lead="10min"))
    (axes,) = panels(figure)
    model = next(line for line in axes.get_lines() if line.get_label() == "model")
    at = SCORES["model"][RAIN].isel({LEAD: 1, "window": 0})
    np.testing.assert_allclose(model.get_xdata(), 1 - at.sel(metric="far"))
    np.testing.assert_allclose(model.get_ydata(), at.sel(metric="pod"))
    assert axes.get_title(loc="left") == "+ 10 min" or axes.get_title() == "+ 10 min"
    pooled = verify(MODEL, TRUTH, metrics=("pod", "far"), thresholds=THRESHOLDS, leads="all")
    assert drawn(plots.plot_performance(pooled, RAIN)).axes


def test_the_reliability_diagram() -> None:
    curves = reliability(MODEL, TRUTH, thresholds=THRESHOLDS)
    axes = panels(drawn(plots.plot_reliability({"model": curves}, RAIN, lead="10min", thresholds=[2, 5])))
    line = next(line for line in axes[0].get_lines() if line.get_label() == "model")
    at = curves[RAIN].isel({LEAD: 1}).sel(threshold=2)
    np.testing.assert_allclose(line.get_xdata(), at.sel(quantity="probability"))
    np.testing.assert_allclose(line.get_ydata(), at.sel(quantity="frequency"))
    dotted = next(line for line in axes[0].get_lines() if line.get_linestyle() == ":")
    frames = [start + 2 for start in (3, 15)]
    assert dotted.get_ydata()[0] == pytest.approx((TRUTH[RAIN].values[frames] >= 2).mean())


def test_rank_histograms() -> None:
    ranks = rank_histogram(MODEL, TRUTH)
    axes = panels(drawn(plots.plot_rank_histogram(ranks, RAIN)))
    assert [place.get_title(loc="left") for place in axes] == ["+ 5 min", "+ 15 min", "+ 25 min"]
    heights = [patch.get_height() for patch in axes[0].patches]
    np.testing.assert_allclose(heights, ranks[RAIN][0])
    for place in axes:
        assert place.get_ylim()[1] > max(float(ranks[RAIN].max()), 0.2) * 0.99  # no bar is cut
    two = panels(drawn(plots.plot_rank_histogram({"a": ranks, "b": ranks}, RAIN, leads=["25min"])))
    assert len(two) == 1 and len(two[0].patches) == 2


def test_maps_of_probabilities() -> None:
    shares = exceedance(MODEL, THRESHOLDS)
    figure = drawn(plots.plot_exceedance(shares, RAIN, threshold=0.5, truth=TRUTH, leads=["5min", "25min"]))
    axes = panels(figure)
    picture = axes[1].collections[0].get_array()
    np.testing.assert_allclose(picture.reshape(32, 32), (MODEL[RAIN].values[:, 0, 4] >= 0.5).mean(0))
    assert len(axes[1].collections) == 2  # and the outline of the truth
    bar = next(place for place in figure.axes if place.get_label() == "<colorbar>")
    assert bar.get_ylabel() == "Probability of rain ≥ 0.5 mm/h"


def test_spectra_and_their_ratio() -> None:
    made = {"model": radial_spectra(MODEL, TRUTH), "persistence": radial_spectra(STILL, TRUTH)}
    axes = panels(drawn(plots.plot_spectra(made, RAIN, leads=["25min"])))
    upper, lower = axes
    assert [line.get_label() for line in upper.get_lines()] == ["truth", "model", "persistence"]
    wavelength = upper.get_lines()[0].get_xdata()
    assert wavelength[0] == pytest.approx(32)
    assert wavelength[-1] == pytest.approx(2)  # two points of a kilometre
    at = made["model"][RAIN].isel({LEAD: 4})[:, 1:17]
    np.testing.assert_allclose(upper.get_lines()[1].get_ydata(), at.sel(source="forecast"))
    np.testing.assert_allclose(lower.get_lines()[0].get_ydata(), at.sel(source="forecast").values / at.sel(source="truth").values)
    assert lower.xaxis_inverted()


FAULTS: dict[str, tuple[Any, str]] = {
    "nothing": (lambda: plots.plot_thresholds({}, RAIN), "nothing to draw: scores is empty"),
    "states as forecast": (lambda: plots.plot_frames(TRUTH, TRUTH, RAIN), "has no 'prediction_timedelta'"),
    "variable": (lambda: plots.plot_frames(MODEL, TRUTH, "rain_rat"), "unknown variable 'rain_rat'; did you mean 'rain_rate'"),
    "lead": (lambda: plots.plot_frames(MODEL, TRUTH, RAIN, leads=["2min"]), "no lead time of 2 min"),
    "member": (lambda: plots.plot_frames(MODEL, TRUTH, RAIN, members=(9,)), "number=9 is not a member"),
    "metric": (lambda: plots.plot_thresholds(SCORES, RAIN, metric="cs"), "unknown metric of 'model' 'cs'; did you mean 'csi'"),
    "threshold": (lambda: plots.plot_thresholds(SCORES, RAIN, thresholds=[3]), "threshold=3 is not among .* 0.5, 2, 5, 10"),
    "window": (lambda: plots.plot_thresholds(SCORES, RAIN, metric="fss", window=4), "window=4 is not among"),
    "no thresholds": (lambda: plots.plot_thresholds(verify(MODEL, TRUTH), RAIN, metric="mae"), "not by threshold"),
    "no pod": (lambda: plots.plot_performance(verify(MODEL, TRUTH), RAIN), "unknown metric 'pod'"),
    "no curves": (lambda: plots.plot_reliability(SCORES, RAIN), "quantity and prediction_timedelta are needed"),
    "no ranks": (lambda: plots.plot_rank_histogram(SCORES["model"], RAIN), "rank and prediction_timedelta are needed"),
    "no probabilities": (lambda: plots.plot_exceedance(MODEL, RAIN, threshold=2), "threshold and prediction_timedelta are needed"),
    "no spectra": (lambda: plots.plot_spectra(SCORES, RAIN), "wavenumber and prediction_timedelta are needed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)
