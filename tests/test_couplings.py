"""Learned weights against what data say: measures with known answers, the permutation test, and its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import wxlab
from wxlab.attention import between_variables, capture, couplings, untrained
from wxlab.couplings import relation
from wxlab.errors import WxlabError
from wxlab.models import Batch, Model, create_model
from wxlab.models.vamoe import channel_choices
from wxlab.plots import plot_couplings

ROWS, COLUMNS, TIMES = 8, 16, 120
CORRELATION = 0.8


def data(times: int = TIMES) -> xr.Dataset:
    """Balanced winds, humidity that repeats the temperature of the state before, pressure correlated with temperature."""
    random = np.random.default_rng(0)
    z, t, noise = random.standard_normal((3, times, ROWS, COLUMNS))
    latitude = np.linspace(-78.75, 78.75, ROWS)
    q = np.roll(t, 1, axis=0)
    fields = {
        "geopotential": 5e4 + 500 * z,
        "u_component_of_wind": -np.gradient(z, axis=1) / np.sin(np.deg2rad(latitude))[:, None],
        "v_component_of_wind": (np.roll(z, -1, 2) - np.roll(z, 1, 2)) / np.sin(np.deg2rad(latitude))[:, None],
        "temperature": 250 + 5 * t,
        "specific_humidity": 1e-8 * (1 + 0.1 * q),
    }
    coords = {"time": np.datetime64("2000-01-01", "ns") + np.arange(times) * np.timedelta64(6, "h"), "level": [500],
              "latitude": latitude, "longitude": np.arange(COLUMNS) * 360 / COLUMNS}  # fmt: skip
    dims = ("time", "level", "latitude", "longitude")
    made = xr.Dataset({name: (dims, values[:, None]) for name, values in fields.items()}, coords)
    pressure = 1e5 + 300 * (CORRELATION * t + np.sqrt(1 - CORRELATION**2) * noise)
    return made.assign(mean_sea_level_pressure=(("time", "latitude", "longitude"), pressure))


CHANNELS = ("geopotential_500", "u_component_of_wind_500", "v_component_of_wind_500", "temperature_500", "specific_humidity_500")
ALL = (*CHANNELS, "mean_sea_level_pressure")


def maps(weight: np.ndarray, names: tuple[str, ...] = ALL) -> xr.Dataset:
    rows = weight / weight.sum(1, keepdims=True)
    coords = {"target": list(names), "source": list(names)}
    stacked = np.stack([rows, rows])[:, None]  # two layers, one sample
    return xr.Dataset({"attention": (("layer", "sample", "target", "source"), stacked)}, coords, {"model": "met2net", "step_hours": 6.0})


def random_weights(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(count), count)


# ---- measures ---------------------------------------------------------------------------------------------------------------------


def test_measures_have_their_known_values() -> None:
    found = couplings(maps(random_weights(6, 0)), data(), lag=0, permutations=9)["association"]

    def of(measure: str, target: str, source: str) -> float:
        return float(found.sel(measure=measure, target=target, source=source))

    wind, field, warmth, moisture = "u_component_of_wind_500", "geopotential_500", "temperature_500", "specific_humidity_500"
    # a wind in balance is a gradient, and has nothing to do with the height at its own place
    assert of("gradient", wind, field) == pytest.approx(1) == of("gradient", "v_component_of_wind_500", field)
    assert of("correlation", wind, field) < 0.2 and of("gradient", warmth, field) < 0.25
    assert of("correlation", warmth, "mean_sea_level_pressure") == pytest.approx(CORRELATION, abs=0.03)
    normal = -0.5 * np.log(1 - CORRELATION**2)
    assert of("mutual_information", warmth, "mean_sea_level_pressure") == pytest.approx(normal, abs=0.08)
    assert of("mutual_information", warmth, field) < 0.05 and of("correlation", warmth, moisture) < 0.2
    assert of("partners", wind, field) == of("partners", warmth, wind) == 1 and of("partners", warmth, field) == 0


def test_the_lag_goes_from_source_to_target() -> None:
    found = couplings(maps(random_weights(6, 0)), data(), measures=["correlation"], permutations=9)
    later = found["association"].sel(measure="correlation")
    assert found.attrs["lag_hours"] == 6
    assert float(later.sel(target="specific_humidity_500", source="temperature_500")) == pytest.approx(1)
    assert float(later.sel(target="temperature_500", source="specific_humidity_500")) < 0.2


def test_pairs_of_times_stay_in_their_segment() -> None:
    whole = data(40)
    parts = whole.assign_coords(segment=("time", np.arange(40) // 5))
    cut = couplings(maps(random_weights(6, 0)), parts, measures=["correlation"], permutations=9)["association"]
    kept = whole.isel(time=[i for i in range(40) if i % 5 != 4])
    moved = whole.isel(time=[i + 1 for i in range(40) if i % 5 != 4])
    x, y = (part["geopotential"].isel(level=0).values.reshape(32, -1) for part in (kept, moved))
    r = np.array([np.corrcoef(x[:, n], y[:, n])[0, 1] for n in range(x.shape[1])])
    expected = np.average(np.abs(r), weights=np.cos(np.deg2rad(whole["latitude"].values)).repeat(COLUMNS))
    assert float(cut[0, 0, 0]) == pytest.approx(expected, rel=1e-6)


def test_points_and_times_are_drawn_where_there_are_many() -> None:
    full = couplings(maps(random_weights(6, 0)), data(), measures=["correlation"], permutations=9)["association"]
    part = couplings(maps(random_weights(6, 0)), data(), measures=["correlation"], permutations=9, points=60, times=80)["association"]
    assert float(abs(part - full).max()) > 0 and float(abs(part - full).mean()) < 0.05


def test_partners_by_name() -> None:
    levels = (500, 700, 850)
    assert relation("u_component_of_wind_500", "geopotential_500", levels) == "geostrophic"
    assert relation("geopotential_500", "u_component_of_wind_700", levels) == ""
    assert relation("mean_sea_level_pressure", "10m_v_component_of_wind", levels) == "geostrophic"
    assert relation("temperature_500", "v_component_of_wind_700", levels) == "thermal wind"
    assert relation("temperature_500", "u_component_of_wind_850", levels) == ""  # 700 hPa is between them
    assert relation("2m_temperature", "10m_u_component_of_wind", levels) == relation("geopotential_500", "temperature_500", levels) == ""


def test_groups_have_the_mean_of_their_members() -> None:
    names = ("u_component_of_wind_500+v_component_of_wind_500", "geopotential_500", "temperature_500")
    grouped = couplings(maps(random_weights(3, 0), names), data(), lag=0, measures=["gradient", "partners"])
    single = couplings(maps(random_weights(6, 0)), data(), lag=0, measures=["gradient"], permutations=9)["association"][0]
    pair = single.sel(source="geopotential_500", target=["u_component_of_wind_500", "v_component_of_wind_500"])
    assert float(grouped["association"][0, 0, 1]) == pytest.approx(float(pair.mean()))
    assert grouped["relation"].values.tolist() == [["", "geostrophic", "thermal wind"], ["geostrophic", "", ""], ["thermal wind", "", ""]]


# ---- the test ---------------------------------------------------------------------------------------------------------------------


def test_weights_made_of_the_data_agree_wholly_and_exactly() -> None:
    names = ALL[:4]
    truth = couplings(maps(random_weights(4, 0), names), data(), lag=0, measures=["gradient"])["association"][0].values
    np.fill_diagonal(truth, 0.5)
    found = couplings(maps(truth**2, names), data(), lag=0, control=maps(random_weights(4, 1), names))
    assert found.attrs["exact"] == 1 and found.attrs["permutations"] == 24
    ours = found["agreement"].sel(network="trained", measure="gradient")
    assert float(ours) == pytest.approx(1) and float(found["p_value"].sel(network="trained", measure="gradient")) == pytest.approx(1 / 24)
    other = found["agreement"].sel(network="untrained 1", measure="gradient")
    assert float(found["gain"].sel(measure="gradient")) == pytest.approx(float(ours - other))
    assert ((found["p_value"] >= 1 / 24 - 1e-9) & (found["p_value"] <= 1)).all() and float(found["gain_p_value"].min()) >= 1 / 24 - 1e-9


def test_p_values_by_hand() -> None:
    """Three variables: six orders; each target ranks its two sources as the measure does, or the other way round."""
    weight = np.array([[0.2, 0.5, 0.3], [0.1, 0.5, 0.4], [0.25, 0.05, 0.7]])
    names = ALL[:3]
    found = couplings(maps(weight, names), data(), lag=0, measures=["correlation"])
    truth = found["association"][0].values
    scores = []
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        alike = [
            (weight[i, j] > weight[i, k]) == (truth[order[i], order[j]] > truth[order[i], order[k]])
            for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1))
        ]
        scores.append(np.mean([1 if same else -1 for same in alike]))
    assert float(found["agreement"][0, 0]) == pytest.approx(scores[0])
    assert float(found["p_value"][0, 0]) == pytest.approx(np.mean(np.array(scores) >= scores[0] - 1e-9))


def test_without_any_relation_p_values_are_even() -> None:
    """200 random matrices of weights: as many p-values under 0.1 as chance gives; about all orders of 6 variables."""
    null = [maps(random_weights(6, seed)) for seed in range(1, 200)]
    found = couplings(maps(random_weights(6, 0)), data(40), control=null, measures=["correlation"])
    assert found.attrs["exact"] == 1 and found.attrs["permutations"] == 720
    values = found["p_value"].values[:, 0]
    assert abs((values <= 0.1).mean() - 0.1) < 0.07 and abs(values.mean() - 0.5) < 0.08
    some = couplings(maps(random_weights(6, 0)), data(40), control=null, measures=["correlation"], permutations=400)
    assert some.attrs["exact"] == 0 and float(abs(some["p_value"] - found["p_value"]).max()) < 0.12


def test_weights_that_are_all_the_same_agree_with_nothing() -> None:
    found = couplings(maps(np.ones((6, 6))), data(40), measures=["correlation"], permutations=99)
    assert np.isnan(found["agreement"]).all() and np.isnan(found["p_value"]).all()


# ---- networks ---------------------------------------------------------------------------------------------------------------------


def windows(model: Model) -> Batch:
    spec = model.spec
    history = torch.randn(2, spec.history, len(spec.channels), *spec.grid.shape, generator=torch.Generator().manual_seed(0))
    return Batch(history, None, torch.zeros(2, spec.history + spec.horizon, dtype=torch.int64))


def test_met2net_against_untrained_networks_and_the_figure() -> None:
    model = create_model("met2net", channels=ALL, step=21600)
    batch = windows(model)
    state = torch.random.get_rng_state()
    others = untrained(model, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(other.name == "met2net" and other.spec == model.spec and not other.training for other in others)
    joined = create_model("met2net")
    joined.name = "forecaster"
    with pytest.raises(WxlabError, match="forecaster cannot be made anew from its name; give one of the registry's networks"):
        untrained(joined)
    control = [capture(other, batch) for other in others]
    assert not np.allclose(control[0].attention, control[1].attention)
    found = couplings(capture(model, batch), data(40), control=control, permutations=199)
    assert found["weight"].dims == ("network", "target", "source") and found.sizes["network"] == 3
    np.testing.assert_allclose(found["weight"].sum("source"), 1, rtol=1e-5)
    assert found["measure"].values.tolist() == ["correlation", "gradient", "mutual_information", "partners"]
    figure = plot_couplings(found)
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Learned weight", "Untrained weight, mean", "Correlation, mean |r|", "Correlation with gradient", "Mutual information [nats]",
        "Balanced partners",
    ]  # fmt: skip
    drawn = np.ma.filled(panels[2].images[0].get_array(), np.nan)
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(drawn[off], found["association"][0].values[off])
    assert np.isnan(drawn[~off]).all() and panels[0].get_xticklabels()[0].get_text() == "z500"
    agreement = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Agreement")
    np.testing.assert_allclose(agreement.lines[2].get_xdata(), found["agreement"][0])
    chances = zip(found["p_value"].values[0], found["gain_p_value"].values, strict=True)
    assert [text.get_text() for text in agreement.texts] == [f"p = {p:.2g}\ngain p = {gain:.2g}" for p, gain in chances]
    assert "met2net · target 6 h after source · 200 random orders of the variables" in figure.get_suptitle()


def test_experts_of_variables_are_joined_by_their_picks() -> None:
    torch.manual_seed(0)
    model = create_model("vamoe", channels=(*CHANNELS, "mean_sea_level_pressure", "2m_temperature"))
    batch = windows(model)
    weights = between_variables(capture(model, batch, layers="expert_channels"))
    expected = channel_choices(model, batch)["overlap"].mean("block")
    assert weights["target"].values.tolist() == list(model.experts)  # type: ignore[arg-type]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    found = couplings(capture(model, batch), data(40), measures=["correlation", "partners"], permutations=99)
    assert found.sizes["target"] == 6 and found["relation"].sel(target="geopotential", source="u_component_of_wind") == "geostrophic"


FAULTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no variables": (lambda: capture(*_pair("mosaic"), layers="gates_nside4"), {}, "run over head, branch, not over variables; capture"),
    "two variables": (lambda: maps(random_weights(2, 0), ALL[:2]), {}, "the weights join 2 variables, and a test needs at least 3"),
    "not in the data": (
        lambda: maps(random_weights(3, 0), (*ALL[:2], "geopotential_700")), {}, "unknown variable of the data 'geopotential_700'; did you"
    ),
    "measure": (lambda: maps(random_weights(6, 0)), {"measures": ["corelation"]}, "unknown measure 'corelation'; did you mean 'corr"),
    "no measure": (lambda: maps(random_weights(6, 0)), {"measures": []}, "no measure was asked for"),
    "no partners": (
        lambda: maps(random_weights(3, 0), (ALL[0], *ALL[3:5])), {"measures": "partners"}, "no two of these variables are geostrophic"
    ),
    "lag": (lambda: maps(random_weights(6, 0)), {"lag": -6}, "lag=-6 must be a number of hours of at least 0"),
    "odd lag": (lambda: maps(random_weights(6, 0)), {"lag": 5}, "0 states with another 5 h later, where 8 are needed, and lie 6 h"),
    "permutations": (lambda: maps(random_weights(6, 0)), {"permutations": 0}, "permutations=0 must be a whole number"),
    "control": (lambda: maps(random_weights(6, 0)), {"control": maps(random_weights(3, 0), ALL[:3])}, "the control has other variables"),
    "missing": (
        lambda: maps(random_weights(6, 0)), {"data": data(40).where(lambda d: d["latitude"] > -50)}, r"hold missing values \(NaN\) in geop"
    ),
    "no data": (lambda: maps(random_weights(6, 0)), {"data": [1, 2]}, "data is a list; give a Dataset in physical units, or a store"),
}  # fmt: skip


def _pair(name: str) -> tuple[Model, Batch]:
    model = create_model(name)
    return model, windows(model)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_compared_is_said(fault: str) -> None:
    given, options, message = FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        couplings(given(), **{"data": data(40), **options})
    assert "\n" not in str(caught.value)


@pytest.mark.real_data
def test_real_winds_follow_the_pressure_gradient(real_catalog: Path) -> None:
    fields = wxlab.open_dataset("era5_sample_1deg", catalog=real_catalog)
    names = ("10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure", "2m_temperature")
    found = couplings(maps(random_weights(4, 0), names), fields, lag=0)
    near = found["association"].sel(measure="gradient", source=["mean_sea_level_pressure", "2m_temperature"])
    for wind in names[:2]:
        pressure, temperature = near.sel(target=wind).values
        assert pressure > 0.55 and pressure > temperature + 0.15
    with pytest.raises(WxlabError, match="0 states with another 6 h later, where 8 are needed, and lie 7 h apart"):
        couplings(maps(random_weights(4, 0), names), fields)


def test_another_dataset_is_not_drawn() -> None:
    with pytest.raises(WxlabError, match="the Dataset holds no couplings"):
        plot_couplings(data(8))
