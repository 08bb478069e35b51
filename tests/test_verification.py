"""Verification: hand-computed scores, missing values, pieces, oracles, references, bootstrap, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scores as oracle
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scores.probability import crps_for_ensemble

import wxlab
from wxlab import plots
from wxlab.climatology import Climatology
from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights
from wxlab.store import open_store
from wxlab.verification import blocks, bootstrap_difference, climatology_forecast, persistence, scorecard, verify

LEAD = "prediction_timedelta"
GRID = Grid.regular(4, 8)
ALL = ("rmse", "mse", "mae", "bias", "acc", "crps", "crps_fair", "spread")


def hours(*values: float) -> np.ndarray:
    return (np.array(values) * 3600).astype("timedelta64[s]").astype("timedelta64[ns]")


def on_grid(grid: Grid, **coords: Any) -> dict[str, Any]:
    return {**coords, grid.dims[0]: list(grid.y), grid.dims[1]: list(grid.x)}


def make_truth(count: int = 24, seed: int = 0, grid: Grid = GRID) -> xr.Dataset:
    random = np.random.default_rng(seed)
    times = np.datetime64("2001-12-20T00", "ns") + hours(*np.arange(count) * 6)
    return xr.Dataset(
        {
            "2m_temperature": (("time", *grid.dims), random.normal(280, 3, (count, *grid.shape)).astype("f4"), {"units": "K"}),
            "geopotential": (("time", "level", *grid.dims), random.normal(5e4, 300, (count, 2, *grid.shape)).astype("f4")),
            "land_sea_mask": (grid.dims, np.zeros(grid.shape)),
        },
        coords=on_grid(grid, time=times, level=[500, 850]),
    )


def make_forecast(truth: xr.Dataset, starts: int = 12, leads: int = 3, members: int = 0, seed: int = 1, noise: float = 1.0) -> xr.Dataset:
    """Truth at the valid time and noise; the last initial times reach beyond the truth when there are enough of them."""
    random = np.random.default_rng(seed)
    fields = truth.drop_vars("land_sea_mask")
    times = truth["time"].values
    steps = [
        fields.isel(time=np.minimum(np.arange(starts) + k + 1, len(times) - 1)).assign_coords(time=times[:starts]) for k in range(leads)
    ]
    forecast = xr.concat(steps, dim=LEAD).assign_coords({LEAD: hours(*6 * (np.arange(leads) + 1))}).transpose("time", LEAD, ...)
    if members:
        forecast = forecast.expand_dims(number=members).transpose("time", "number", LEAD, ...)
    return forecast.map(lambda field: field + noise * random.normal(size=field.shape).astype("f4"))


def make_climatology(seed: int = 2, grid: Grid = GRID) -> Climatology:
    random = np.random.default_rng(seed)
    names = ("geopotential_500", "geopotential_850", "2m_temperature")
    values = random.normal(0, 1, (4, 5, 3, *grid.shape)).astype("f4")
    values[:, 0, :2] += 5e4
    values[:, 0, 2] += 280
    return Climatology(values, (0, 21600, 43200, 64800), names, grid)


def tiny(values: Any, dims: tuple[str, ...], y: list[float] | None = None) -> xr.Dataset:
    """A Dataset of one variable on 2 x 2 points whose rows have the area weights 1 and 1, or others by their latitude."""
    array = np.asarray(values, dtype=float)
    coords: dict[str, Any] = {"time": [np.datetime64("2001-01-01", "ns")], LEAD: hours(0)}
    coords = {name: value for name, value in coords.items() if name in dims}
    return xr.Dataset({"x": (dims, array)}, coords={**coords, "latitude": y or [-45.0, 45.0], "longitude": [0.0, 180.0]})


FORECAST_DIMS = ("time", LEAD, "latitude", "longitude")
STATE_DIMS = ("time", "latitude", "longitude")


# --- answers by hand -----------------------------------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    forecast = tiny([[[[1, 2], [3, 4]]]], FORECAST_DIMS)
    truth = tiny([[[0, 2], [5, 4]]], STATE_DIMS)
    scores = verify(forecast, truth, metrics=("rmse", "mse", "mae", "bias"))["x"].isel({LEAD: 0})
    assert scores.sel(metric="mse").item() == pytest.approx((1 + 0 + 4 + 0) / 4)
    assert scores.sel(metric="rmse").item() == pytest.approx(np.sqrt(5 / 4))
    assert scores.sel(metric="mae").item() == pytest.approx(3 / 4)
    assert scores.sel(metric="bias").item() == pytest.approx(-1 / 4)


def test_area_weights_by_hand() -> None:
    """Rows at 0 and 60 degrees, edges -30, 30, 90: areas in proportion sin 30 - sin -30 = 1 and 1 - sin 30 = 1/2."""
    forecast = tiny([[[[1, 1], [4, 4]]]], FORECAST_DIMS, y=[0.0, 60.0])
    truth = tiny(np.zeros((1, 2, 2)), STATE_DIMS, y=[0.0, 60.0])
    scores = verify(forecast, truth, metrics=("bias", "mse"))["x"].isel({LEAD: 0})
    assert scores.sel(metric="bias").item() == pytest.approx((1 * 1 + 0.5 * 4) / 1.5)
    assert scores.sel(metric="mse").item() == pytest.approx((1 * 1 + 0.5 * 16) / 1.5)


def test_cosine_weights_by_hand() -> None:
    """Rows at 0 and 60 degrees weigh 1 and 1/2, and a row on a pole nothing."""
    forecast, truth = (tiny(values, dims, y=[0.0, 60.0, 90.0]) for values, dims in (
        ([[[[1, 1], [4, 4], [9, 9]]]], FORECAST_DIMS), (np.zeros((1, 3, 2)), STATE_DIMS),
    ))  # fmt: skip
    scores = verify(forecast, truth, metrics=("bias", "rmse"), weights="cosine")["x"].isel({LEAD: 0})
    assert scores.sel(metric="bias").item() == pytest.approx((1 + 0.5 * 4) / 1.5)
    assert scores.sel(metric="rmse").item() == pytest.approx(np.sqrt((1 + 0.5 * 16) / 1.5))


def test_anomaly_correlation_by_hand() -> None:
    """The mean over initial times of the correlation of departures from the climatology, which are not centred."""
    truth = tiny([[[11, 12], [13, 10]]], STATE_DIMS)
    forecast = tiny([[[[12, 11], [13, 10]]]], FORECAST_DIMS)
    usual = xr.Dataset(
        {"x": (("hour", "dayofyear", "latitude", "longitude"), np.full((1, 366, 2, 2), 10.0))},
        coords={"hour": [0], "dayofyear": np.arange(1, 367), "latitude": [-45.0, 45.0], "longitude": [0.0, 180.0]},
    )
    score = verify(forecast, truth, metrics="acc", climatology=usual)["x"].item()
    assert score == pytest.approx((2 * 1 + 1 * 2 + 3 * 3) / (1 + 4 + 9))


def test_a_level_that_no_climatology_knows_has_no_anomaly_correlation() -> None:
    truth = make_truth()
    whole = make_climatology()
    part = Climatology(whole.coefficients[:, :, [0, 2]], whole.hours, ("geopotential_500", "2m_temperature"), GRID)
    scores, expected = (verify(make_forecast(truth), truth, metrics="acc", climatology=known) for known in (part, whole))
    assert np.isnan(scores["geopotential"].sel(level=850)).all()
    xr.testing.assert_identical(scores["geopotential"].sel(level=500), expected["geopotential"].sel(level=500))


def test_ensemble_scores_by_hand() -> None:
    """Members 0 and 2, truth 1.5 everywhere: mean 1; CRPS = (1.5 + 0.5)/2 - 2·2/(2·4); fair 2·2/(2·2·1) in its place; variance 2."""
    members = np.stack([np.zeros((1, 1, 2, 2)), np.full((1, 1, 2, 2), 2.0)])
    forecast, truth = tiny(members, ("number", *FORECAST_DIMS)), tiny(np.full((1, 2, 2), 1.5), STATE_DIMS)
    metrics = ("crps", "crps_fair", "spread", "rmse", "mae", "spread_skill")
    scores = verify(forecast, truth, metrics=metrics)["x"].isel({LEAD: 0})
    assert dict(zip(metrics, scores.values.tolist(), strict=True)) == pytest.approx(
        {"crps": 0.5, "crps_fair": 0.0, "spread": np.sqrt(2), "rmse": 0.5, "mae": 0.5, "spread_skill": np.sqrt(1.5 * 2) / 0.5}
    )


def test_the_spread_of_an_honest_ensemble_is_its_error() -> None:
    """Truth and members drawn alike: with the factor (M + 1) / M the ratio is 1 for any number of members."""
    random = np.random.default_rng(0)
    for members in (2, 5):
        coords: dict[str, Any] = {"latitude": [-45.0, 45.0], "longitude": [0.0, 180.0]}
        coords["time"] = np.datetime64("2001-01-01", "ns") + hours(*np.arange(400) * 6)
        truth = xr.Dataset({"x": (STATE_DIMS, random.normal(size=(400, 2, 2)))}, coords)
        drawn = random.normal(size=(members, 400, 1, 2, 2))
        forecast = xr.Dataset({"x": (("number", *FORECAST_DIMS), drawn)}, {**coords, LEAD: hours(0)})
        scores = verify(forecast, truth, metrics=("spread_skill", "spread", "rmse"))["x"].isel({LEAD: 0})
        ratio, spread, rmse = scores.values
        assert ratio == pytest.approx(1, abs=0.04) and ratio == pytest.approx(np.sqrt((members + 1) / members) * spread / rmse)
    exact = tiny(np.zeros((3, 1, 1, 2, 2)), ("number", *FORECAST_DIMS))
    assert np.isnan(verify(exact, tiny(np.zeros((1, 2, 2)), STATE_DIMS), metrics="spread_skill")["x"]).all()


def test_a_missing_point_leaves_sum_and_weights() -> None:
    forecast = tiny([[[[1, np.nan], [3, 4]]]], FORECAST_DIMS, y=[0.0, 60.0])
    truth = tiny([[[0, 2], [np.nan, 1]]], STATE_DIMS, y=[0.0, 60.0])
    scores = verify(forecast, truth, metrics=("bias", "mse"))
    assert scores["x"].sel(metric="bias").item() == pytest.approx((1 * 1 + 0.5 * 3) / 1.5)
    assert scores["x"].sel(metric="mse").item() == pytest.approx((1 * 1 + 0.5 * 9) / 1.5)
    assert scores["x"].attrs["scored"] == pytest.approx(0.5)  # weights 4/3 and 2/3 of a sum of 4


# --- identities ----------------------------------------------------------------------------------------------------------------------


def test_a_perfect_forecast() -> None:
    truth = make_truth()
    scores = verify(make_forecast(truth, noise=0), truth, metrics=("rmse", "mae", "bias", "acc", "crps"), climatology=make_climatology())
    for name in ("2m_temperature", "geopotential"):
        assert (scores[name].drop_sel(metric="acc") == 0).all()
        np.testing.assert_allclose(scores[name].sel(metric="acc"), 1, atol=1e-12)


def test_crps_of_one_member_is_the_absolute_error() -> None:
    truth = make_truth()
    for forecast in (make_forecast(truth), make_forecast(truth, members=1)):
        scores = verify(forecast, truth, metrics=("crps", "mae"))
        xr.testing.assert_equal(scores.sel(metric="crps", drop=True), scores.sel(metric="mae", drop=True))


def test_scores_of_the_ensemble_mean() -> None:
    truth = make_truth()
    ensemble = make_forecast(truth, members=5).astype("f8")
    one = verify(ensemble.mean("number"), truth, metrics=("rmse", "mae", "bias", "acc"), climatology=make_climatology())
    xr.testing.assert_allclose(
        verify(ensemble, truth, metrics=("rmse", "mae", "bias", "acc"), climatology=make_climatology()), one, rtol=1e-10
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_crps_is_its_double_sum(members: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, state = random.normal(size=(members, 1, 1, 2, 2)), random.normal(size=(1, 2, 2))
    scores = verify(tiny(values, ("number", *FORECAST_DIMS)), tiny(state, STATE_DIMS), metrics=("crps", "crps_fair"))["x"]
    error = np.abs(values[:, 0, 0] - state[0]).mean(0)
    double = np.abs(values[:, None] - values[None]).sum((0, 1))[0, 0]
    assert scores.sel(metric="crps").item() == pytest.approx((error - double / (2 * members**2)).mean(), rel=1e-12)
    assert scores.sel(metric="crps_fair").item() == pytest.approx((error - double / (2 * members * (members - 1))).mean(), rel=1e-12)


# --- the scores library as an oracle -------------------------------------------------------------------------------------------------


def aligned(forecast: xr.Dataset, truth: xr.Dataset, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Forecast and truth of a variable at the same (time, lead), where both are."""
    valid = forecast["time"] + forecast[LEAD]
    return forecast[name].astype("f8"), truth[name].astype("f8").drop_vars("time").isel(
        time=xr.DataArray(np.searchsorted(truth["time"].values, valid.values), dims=("time", LEAD))
    ).assign_coords(time=forecast["time"], **{LEAD: forecast[LEAD]})


@pytest.mark.parametrize("gaps", [False, True])
def test_errors_agree_with_the_scores_library(gaps: bool) -> None:
    truth = make_truth()
    forecast = make_forecast(truth)
    if gaps:
        truth = truth.assign(geopotential=truth["geopotential"].where(np.random.default_rng(5).random(truth["geopotential"].shape) > 0.3))
    weights = xr.DataArray(area_weights(GRID), dims="latitude", coords={"latitude": list(GRID.y)})
    scores = verify(forecast, truth, metrics=("rmse", "mse", "mae", "bias"))
    continuous = oracle.continuous
    for name in ("2m_temperature", "geopotential"):
        pair = aligned(forecast, truth, name)
        kept = [LEAD, *(["level"] if name == "geopotential" else [])]
        for metric, function in (
            ("mse", continuous.mse),
            ("rmse", continuous.rmse),
            ("mae", continuous.mae),
            ("bias", continuous.additive_bias),
        ):
            expected = function(*pair, preserve_dims=kept, weights=weights)
            np.testing.assert_allclose(scores[name].sel(metric=metric), expected.transpose(*kept), rtol=1e-12, err_msg=metric)


def test_crps_agrees_with_the_scores_library_by_lead_time() -> None:
    truth = make_truth()
    forecast = make_forecast(truth, members=6)
    weights = xr.DataArray(area_weights(GRID), dims="latitude", coords={"latitude": list(GRID.y)})
    pair = aligned(forecast, truth, "geopotential")
    scores = verify(forecast, truth, metrics=("crps", "crps_fair"))["geopotential"]
    for metric, method in (("crps", "ecdf"), ("crps_fair", "fair")):
        expected = crps_for_ensemble(*pair, "number", method=method, preserve_dims=[LEAD, "level"], weights=weights)  # type: ignore[arg-type]
        np.testing.assert_allclose(scores.sel(metric=metric), expected.transpose(LEAD, "level"), rtol=1e-10)


# --- pieces, gaps, groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [0, 3])
@pytest.mark.parametrize("values", [1, 40, 200, 1000, 5000])
def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, values: int, members: int) -> None:
    truth = make_truth()
    truth["2m_temperature"][5:9, 1:3] = np.nan
    forecast = make_forecast(truth, starts=23, members=members)
    metrics = ALL if members else ALL[:6]
    whole = verify(forecast, truth, metrics=metrics, climatology=make_climatology())
    monkeypatch.setattr(blocks, "BLOCK_VALUES", values)
    pieces = verify(forecast, truth, metrics=metrics, climatology=make_climatology())
    xr.testing.assert_allclose(pieces, whole, rtol=1e-12, atol=1e-12)


def test_lazy_forecasts_in_chunks_give_the_same(tmp_path: Path) -> None:
    truth = make_truth()
    forecast = make_forecast(truth, members=2)
    whole = verify(forecast, truth, metrics=("rmse", "crps"))
    chunked = verify(forecast.chunk({"time": 5, LEAD: 2, "level": 1}), truth.chunk({"time": 7}), metrics=("rmse", "crps"))
    xr.testing.assert_allclose(chunked, whole, rtol=1e-12)
    forecast.chunk({"time": 5}).to_zarr(tmp_path / "f.zarr", zarr_format=3, consolidated=False)
    stored = xr.open_zarr(tmp_path / "f.zarr", consolidated=False)
    xr.testing.assert_allclose(verify(stored, truth, metrics=("rmse", "crps")), whole, rtol=1e-12)


def test_only_a_part_of_a_lazy_forecast_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 3 * 2 * 32)
    truth = make_truth()
    seen: list[int] = []
    original = blocks.Block

    def watched(members: np.ndarray, *rest: Any) -> Any:
        seen.append(members.size)
        return original(members, *rest)

    monkeypatch.setattr(blocks, "Block", watched)
    verify(make_forecast(truth).chunk({"time": 1}), truth, metrics="mae")
    assert len(seen) > 10
    assert max(seen) <= 3 * 2 * 32


def test_pairs_without_truth_drop_out() -> None:
    truth = make_truth(12)
    forecast = make_forecast(truth, starts=12)
    scores = verify(forecast, truth)
    assert scores["initial_times"].values.tolist() == [11, 10, 9]
    for k, count in enumerate((11, 10, 9)):
        shorter = verify(forecast.isel(time=slice(count)), truth)
        xr.testing.assert_allclose(scores.isel({LEAD: k}).drop_vars("initial_times"), shorter.isel({LEAD: k}).drop_vars("initial_times"))


def test_truth_in_any_order_and_with_gaps() -> None:
    truth = make_truth()
    forecast = make_forecast(truth)
    mixed = truth.isel(time=np.random.default_rng(0).permutation(24))
    xr.testing.assert_allclose(verify(forecast, mixed), verify(forecast, truth))
    gap = verify(forecast, truth.drop_isel(time=[4, 5]))
    assert gap["initial_times"].values.tolist() == [10, 10, 10]


def test_a_point_missing_in_one_member_drops_out() -> None:
    truth = make_truth()
    forecast = make_forecast(truth, members=4)
    holes = forecast["2m_temperature"].copy()
    holes[:, 2, :, 0, 0] = np.nan
    metrics = ("rmse", "crps", "crps_fair", "spread")
    one = verify(forecast.assign({"2m_temperature": holes}), truth, metrics=metrics)
    gap = truth["2m_temperature"].copy()
    gap[:, 0, 0] = np.nan
    xr.testing.assert_allclose(one, verify(forecast, truth.assign({"2m_temperature": gap}), metrics=metrics), rtol=1e-12)


def test_nothing_observed_is_nan_and_infinity_is_not_missing() -> None:
    truth = make_truth()
    forecast = make_forecast(truth)
    wild = forecast["2m_temperature"].copy()
    wild[3, 1, 0, 0] = np.inf
    scores = verify(forecast.assign({"2m_temperature": wild}), truth.assign(geopotential=truth["geopotential"] * np.nan))
    assert scores["geopotential"].isnull().all()
    assert scores["geopotential"].attrs["scored"] == 0
    rmse = scores["2m_temperature"].sel(metric="rmse").values
    assert np.isinf(rmse[1])
    assert np.isfinite(rmse[[0, 2]]).all()


@pytest.mark.parametrize(("by", "labels"), [("season", ["DJF"]), ("month", [1, 12]), ("hour", [0, 6, 12, 18]), ("time", None)])
def test_groups_of_initial_times(by: str, labels: list[Any] | None) -> None:
    truth = make_truth(72)
    forecast = make_forecast(truth, starts=60)
    scores = verify(forecast, truth, metrics=("mse", "acc"), climatology=make_climatology(), by=by)
    assert scores["geopotential"].dims == ("metric", LEAD, "level", "group")
    assert scores["group"].values.tolist() == (labels or forecast["time"].values.tolist())
    whole = verify(forecast, truth, metrics=("mse", "acc"), climatology=make_climatology())
    mean = (scores * scores["initial_times"]).sum("group") / scores["initial_times"].sum("group")
    xr.testing.assert_allclose(mean.transpose(*whole.dims), whole.drop_vars("initial_times"), rtol=1e-10)


def test_seasons_are_those_of_their_months() -> None:
    truth = make_truth(8).assign_coords(time=pd.to_datetime([f"2001-{month:02d}-15" for month in (2, 3, 5, 6, 8, 9, 11, 12)]).values)
    forecast = truth.drop_vars("land_sea_mask").expand_dims({LEAD: hours(0)})
    scores = verify(forecast, truth, by="season")
    assert dict(zip(scores["group"].values.tolist(), scores["initial_times"].values[0].tolist(), strict=True)) == dict.fromkeys(
        ("DJF", "MAM", "JJA", "SON"), 2
    )


def test_levels_that_both_have() -> None:
    truth = make_truth()
    scores = verify(make_forecast(truth), truth.isel(level=[1]))
    assert scores["level"].values.tolist() == [850]
    xr.testing.assert_allclose(scores["geopotential"], verify(make_forecast(truth), truth)["geopotential"].sel(level=[850]))


def test_radar_fields_and_one_initial_time() -> None:
    grid = Grid((0.0, 1000.0, 2000.0), (0.0, 1000.0), "xy")
    truth = make_truth(6, grid=grid)
    forecast = make_forecast(truth, starts=2)
    one = verify(forecast.isel(time=0), truth, metrics="mae")
    expected = np.abs(forecast["2m_temperature"][0].values.astype("f8") - truth["2m_temperature"].values[1:4]).mean((1, 2))
    np.testing.assert_allclose(one["2m_temperature"][0], expected, rtol=1e-12)


def test_layout_and_units() -> None:
    truth = make_truth()
    scores = verify(make_forecast(truth), truth, metrics=["rmse", "bias", "rmse"])
    assert scores["2m_temperature"].dims == ("metric", LEAD)
    assert scores["geopotential"].dims == ("metric", LEAD, "level")
    assert scores["metric"].values.tolist() == ["rmse", "bias"]
    assert scores["2m_temperature"].attrs["units"] == "K"
    assert set(scores.data_vars) == {"2m_temperature", "geopotential"}
    assert wxlab.verify is verify


def test_scores_go_to_a_file_and_into_figures(tmp_path: Path) -> None:
    truth = make_truth()
    scores = verify(make_forecast(truth), truth, metrics=("rmse", "bias"))
    scores.to_netcdf(tmp_path / "scores.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "scores.nc", engine="h5netcdf", decode_timedelta=True) as read:
        xr.testing.assert_equal(read, scores)
    still = verify(persistence(truth, like=make_forecast(truth)), truth, metrics=("rmse", "bias"))
    figure = plots.plot_scores({"model": scores, "persistence": still}, metric="rmse")
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), scores["2m_temperature"].sel(metric="rmse"))
    assert plots.plot_scorecard(scores, still).axes


# --- references ----------------------------------------------------------------------------------------------------------------------


def test_persistence_repeats_the_initial_state() -> None:
    truth = make_truth()
    forecast = make_forecast(truth, members=2)
    still = persistence(truth, like=forecast)
    assert still["geopotential"].dims == ("time", LEAD, "level", "latitude", "longitude")
    for k in range(3):
        np.testing.assert_array_equal(still["geopotential"].isel({LEAD: k}), truth["geopotential"][:12])
    expected = np.sqrt((area_weights(GRID)[:, None] * (truth["2m_temperature"].astype("f8").diff("time")[:12] ** 2)).mean())
    assert verify(still, truth)["2m_temperature"].sel(metric="rmse")[0].item() == pytest.approx(expected.item(), rel=1e-12)


def test_climatology_forecast_is_the_climatology_at_the_valid_time() -> None:
    truth = make_truth()
    forecast, climatology = make_forecast(truth, members=2), make_climatology()
    usual = climatology_forecast(climatology, like=forecast)
    assert usual["geopotential"].dims == ("time", LEAD, "level", "latitude", "longitude")
    expected = climatology.dataset(forecast["time"].values[4:5] + hours(12))
    for name in ("2m_temperature", "geopotential"):
        np.testing.assert_array_equal(usual[name][4, 1], expected[name][0])


def test_a_climatology_by_hour_and_day() -> None:
    truth = make_truth()
    forecast = make_forecast(truth)
    shape = (2, 366, *GRID.shape)
    fields = np.arange(2 * 366.0).reshape(2, 366, 1, 1) + np.zeros(shape)
    usual = xr.Dataset(
        {"2m_temperature": (("hour", "dayofyear", *GRID.dims), fields)}, coords=on_grid(GRID, hour=[0, 12], dayofyear=np.arange(1, 367))
    )
    made = climatology_forecast(usual, like=forecast.isel(time=[0, 2], **{LEAD: [1]}))
    # 20 December 2001 is day 354; from 00 to 12 h on that day, and from 12 to 00 h on the next
    assert made["2m_temperature"][:, 0, 0, 0].values.tolist() == [366 + 353, 354]
    assert set(made.data_vars) == {"2m_temperature"}


def test_truth_from_a_store(tmp_path: Path) -> None:
    truth = make_truth(120)
    path = wxlab.prepare(truth, tmp_path / "s.zarr", variables=["2m_temperature", "geopotential"])
    forecast = make_forecast(truth)
    expected = verify(forecast, truth, metrics="rmse")
    for given_truth in (path, str(path), open_store(path), open_store(path).dataset()):
        xr.testing.assert_allclose(verify(forecast, given_truth, metrics="rmse"), expected, rtol=1e-6)
    acc = verify(forecast, path, metrics="acc", climatology=open_store(path).climatology())
    assert (acc["2m_temperature"] > 0.5).all()
    xr.testing.assert_equal(persistence(path, like=forecast).compute(), persistence(truth, like=forecast))


# --- comparisons ---------------------------------------------------------------------------------------------------------------------


def test_scorecard_has_a_row_for_each_channel() -> None:
    truth = make_truth()
    scores = {"good": verify(make_forecast(truth), truth), "bad": verify(make_forecast(truth, noise=3), truth)}
    table = scorecard(scores, lead=12, metric="mae")
    assert table.index.tolist() == ["2m_temperature", "geopotential_500", "geopotential_850"]
    assert table.columns.tolist() == ["good", "bad"]
    assert table.loc["geopotential_850", "bad"] == scores["bad"]["geopotential"].sel(metric="mae", level=850)[1].item()
    assert (table["good"] < table["bad"]).all()


def test_the_difference_is_that_of_the_scores() -> None:
    truth = make_truth()
    a, b = make_forecast(truth, starts=20), make_forecast(truth, starts=20, seed=3, noise=4)
    for metric, extra in (("rmse", {}), ("mae", {}), ("acc", {"climatology": make_climatology()})):
        table = bootstrap_difference(a, b, truth, metric=metric, lead=18, samples=50, **extra)
        card = scorecard(
            {"a": verify(a, truth, metrics=metric, **extra), "b": verify(b, truth, metrics=metric, **extra)}, lead=18, metric=metric
        )
        np.testing.assert_allclose(table["difference"], (card["a"] - card["b"])[table.index], rtol=1e-9, atol=1e-12)
        assert (table["low"] <= table["high"]).all()
    assert (bootstrap_difference(a, b, truth, lead=18)["share_better"] == 1).all()
    assert (bootstrap_difference(b, a, truth, lead=18)["share_better"] == 0).all()


def gaussian(count: int, bias: float, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """A forecast whose mean error of each initial time is ``bias`` + N(0, 1), against a truth of zeros."""
    random = np.random.default_rng(seed)
    times = np.datetime64("2001-01-01", "ns") + hours(*np.arange(count + 1) * 24)
    coords = {"latitude": [-45.0, 45.0], "longitude": [0.0, 180.0]}
    errors = np.broadcast_to((bias + random.normal(size=count))[:, None, None, None], (count, 1, 2, 2))
    forecast = xr.Dataset({"x": (FORECAST_DIMS, errors)}, coords={"time": times[:-1], LEAD: hours(24), **coords})
    return forecast, xr.Dataset({"x": (STATE_DIMS, np.zeros((count + 1, 2, 2)))}, coords={"time": times, **coords})


def test_the_interval_covers_a_known_difference() -> None:
    """MSE of N(1, 1) less that of N(0, 1) is 1; its standard error over n is sqrt((2 + 4 + 2) / n)."""
    covered, widths = [], []
    for seed in range(60):
        a, truth = gaussian(200, 1.0, seed)
        b, _ = gaussian(200, 0.0, seed + 1000)
        row = bootstrap_difference(a, b, truth, metric="mse", lead=24, seed=seed, samples=300).loc["x"]
        covered.append(row["low"] <= 1 <= row["high"])
        widths.append(row["high"] - row["low"])
    assert 0.85 <= np.mean(covered) <= 1
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(8 / 200), rel=0.1)


def test_blocks_keep_overlapping_forecasts_together() -> None:
    """Errors that last for ten initial times: independent draws would give an interval that is far too narrow."""
    a, truth = gaussian(200, 0.0, 0)
    slow = a.isel(time=np.arange(200) // 10).assign_coords(time=a["time"].values)
    zero = a * 0
    narrow = bootstrap_difference(slow, zero, truth, metric="mse", lead=24, block=1).loc["x"]
    wide = bootstrap_difference(slow, zero, truth, metric="mse", lead=24, block=20).loc["x"]
    assert wide["high"] - wide["low"] > 1.8 * (narrow["high"] - narrow["low"])
    daily = hours(*np.arange(1, 11) * 24)
    long = xr.concat([slow.isel({LEAD: 0}).expand_dims({LEAD: [lead]}) for lead in daily], LEAD).transpose(*FORECAST_DIMS)
    default = bootstrap_difference(long, long * 0, truth, metric="mse", lead=240)
    xr.testing.assert_equal(default.to_xarray(), bootstrap_difference(long, long * 0, truth, metric="mse", lead=240, block=10).to_xarray())


def test_the_bootstrap_is_seeded_and_paired() -> None:
    truth = make_truth()
    a, b = make_forecast(truth, starts=20), make_forecast(truth, starts=20, seed=3)
    first = bootstrap_difference(a, b, truth, lead=6, seed=4)
    pd.testing.assert_frame_equal(first, bootstrap_difference(a, b, truth, lead=6, seed=4))
    assert not first["low"].equals(bootstrap_difference(a, b, truth, lead=6, seed=5)["low"])
    same = bootstrap_difference(a, a, truth, lead=6)
    assert (same == 0).all().all()
    # initial times that only one of them has are left out
    pd.testing.assert_frame_equal(first, bootstrap_difference(a, b, truth.isel(time=slice(21)), lead=6, seed=4))
    fewer = bootstrap_difference(a.isel(time=slice(2, 20)), b.isel(time=slice(0, 18)), truth, lead=6)
    pd.testing.assert_frame_equal(fewer, bootstrap_difference(a.isel(time=slice(2, 18)), b.isel(time=slice(2, 18)), truth, lead=6))


def test_too_few_initial_times_have_no_interval() -> None:
    truth = make_truth()
    table = bootstrap_difference(make_forecast(truth, starts=5), make_forecast(truth, starts=5, seed=3), truth, lead=18)
    assert table[["low", "high"]].isna().all().all()
    assert table["difference"].notna().all()


# --- faults --------------------------------------------------------------------------------------------------------------------------

TRUTH = make_truth()
FORECAST = make_forecast(TRUTH)
SCORES = verify(FORECAST, TRUTH)
FAULTS: dict[str, tuple[Any, str]] = {
    "unknown metric": (lambda: verify(FORECAST, TRUTH, metrics=("rmsee",)), r"unknown metric 'rmsee'; did you mean 'rmse'"),
    "no metric": (lambda: verify(FORECAST, TRUTH, metrics=()), "metrics is empty"),
    "unknown group": (lambda: verify(FORECAST, TRUTH, by="seasons"), "unknown grouping by= 'seasons'; did you mean 'season'"),
    "unknown weights": (lambda: verify(FORECAST, TRUTH, weights="cos"), "unknown weights= 'cos'; did you mean 'cosine'"),  # type: ignore[arg-type]
    "acc without climatology": (lambda: verify(FORECAST, TRUTH, metrics="acc"), "needs a climatology"),
    "no climatology": (lambda: verify(FORECAST, TRUTH, metrics="acc", climatology=TRUTH), "dimensions hour and dayofyear"),  # type: ignore[arg-type]
    "climatology of others": (
        lambda: verify(
            FORECAST.rename({"2m_temperature": "x"}), TRUTH.rename({"2m_temperature": "x"}), metrics="acc", climatology=make_climatology()
        ),
        "unknown channel of the climatology 'x'",
    ),
    "climatology elsewhere": (
        lambda: verify(FORECAST, TRUTH, metrics="acc", climatology=make_climatology(grid=Grid.regular(6, 8))),
        "than the climatology .6x8",
    ),
    "no common variable": (
        lambda: verify(FORECAST, TRUTH[["land_sea_mask", "2m_temperature"]].rename({"2m_temperature": "x"})),
        "in common",
    ),
    "no common level": (lambda: verify(FORECAST[["geopotential"]], TRUTH.assign_coords(level=[1, 2])), "in common"),
    "other grid": (lambda: verify(FORECAST, make_truth(grid=Grid.regular(6, 8))), "lies on another grid .4x8"),
    "turned grid": (lambda: verify(FORECAST, TRUTH.isel(latitude=slice(None, None, -1))), "lies on another grid"),
    "other times": (
        lambda: verify(FORECAST, TRUTH.assign_coords(time=TRUTH["time"] + np.timedelta64(3650, "D"))),
        "none of the valid times of the forecast .2001-12-20T06:00 to 2001-12-23T12:00",
    ),
    "empty forecast": (lambda: verify(FORECAST.isel(time=slice(0)), TRUTH), "none of the valid times"),
    "fair CRPS of one": (lambda: verify(FORECAST, TRUTH, metrics="crps_fair"), "'crps_fair' needs 2 members or more"),
    "spread of one": (lambda: verify(FORECAST, TRUTH, metrics="spread"), "'spread' needs 2 members or more"),
    "states as forecast": (lambda: verify(TRUTH, TRUTH), "no 'prediction_timedelta' coordinate, so it is no forecast"),
    "no dataset": (lambda: verify(FORECAST["geopotential"], TRUTH), "forecast is a DataArray"),  # type: ignore[arg-type]
    "lead times as numbers": (lambda: verify(FORECAST.assign_coords({LEAD: [6, 12, 18]}), TRUTH), "not spans of time"),
    "another dimension": (lambda: verify(FORECAST.expand_dims("run"), TRUTH), "has the dimension 'run'"),
    "forecast as truth": (lambda: verify(FORECAST, FORECAST), "give states over time, without prediction_timedelta"),
    "number as truth": (lambda: verify(FORECAST, 3), "truth is a int"),  # type: ignore[arg-type]
    "no such store": (lambda: verify(FORECAST, "nowhere.zarr"), "there is no store at nowhere.zarr"),
    "repeated times": (lambda: verify(FORECAST, TRUTH.isel(time=[0, 1, 1])), "more than once"),
    "persistence without a state": (lambda: persistence(TRUTH.isel(time=slice(1, None)), like=FORECAST), "lack 1 of the 12 initial times"),
    "climatology of nothing": (
        lambda: climatology_forecast(make_climatology(), like=FORECAST[["2m_temperature"]].rename({"2m_temperature": "x"})),
        "none",
    ),
    "lead time": (lambda: scorecard({"a": SCORES}, lead=7), "lead=7 is not among the lead times, which are 6, 12, 18 h"),
    "lead time as text": (lambda: scorecard({"a": SCORES}, lead="6h"), "lead='6h' is not a number of hours"),  # type: ignore[arg-type]
    "metric of scores": (lambda: scorecard({"a": SCORES}, lead=6, metric="acc"), "unknown metric of the scores 'acc'"),
    "no scores": (lambda: scorecard({}, lead=6), "there are no scores"),
    "no scores but states": (lambda: scorecard({"a": TRUTH}, lead=6), "give what verify returned"),
    "scores by group": (lambda: scorecard({"a": verify(FORECAST, TRUTH, by="hour")}, lead=6), "are by group"),
    "bias has no better": (lambda: bootstrap_difference(FORECAST, FORECAST, TRUTH, metric="bias", lead=6), "neither is the better"),
    "bootstrap lead time": (lambda: bootstrap_difference(FORECAST, FORECAST, TRUTH, lead=24), "lead=24 is not among"),
    "block too long": (
        lambda: bootstrap_difference(FORECAST, FORECAST, TRUTH, lead=6, block=7),
        "from 1 to 6, half of the 12 initial times",
    ),
    "no samples": (lambda: bootstrap_difference(FORECAST, FORECAST, TRUTH, lead=6, samples=0), "samples=0"),
    "no common initial time": (
        lambda: bootstrap_difference(FORECAST.isel(time=[0]), FORECAST.isel(time=[1]), TRUTH, lead=6),
        "share no initial time",
    ),
    "no common channel": (
        lambda: bootstrap_difference(FORECAST[["2m_temperature"]], FORECAST[["geopotential"]], TRUTH, lead=6),
        "share no channel",
    ),
    "nothing observed": (lambda: bootstrap_difference(FORECAST * np.nan, FORECAST, TRUTH, lead=6), "no initial time has both"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 320
