"""Verification of nowcasts: events, pools, windows, pictures, ensembles, spectra, networks; masks, pieces, oracles, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from safetensors.numpy import load_file
from safetensors.torch import save_file
from scores.categorical import BasicContingencyManager, BinaryContingencyManager
from scores.probability import brier_score_for_ensemble
from scores.spatial import fss_2d
from typer.testing import CliRunner

from wxlab import spectra, verification
from wxlab.cli import app
from wxlab.errors import WxlabError
from wxlab.simulate import radar
from wxlab.verification import blocks, bootstrap_difference, exceedance, radial_spectra, rank_histogram, reliability, scorecard, verify
from wxlab.verification.metrics import METRICS, Options
from wxlab.verification.perceptual import LPIPS, STAGES, VGG_NUMBERS, Moments, frechet_distance, load_lpips
from wxlab.verification.scoring import pair_sums
from wxlab.verification.thresholds import SETS, VIL, limits

LEAD = "prediction_timedelta"
RAIN = "rain_rate"
STEP = np.timedelta64(300, "s").astype("timedelta64[ns]")
START = np.datetime64("2019-07-01", "ns")
POINTS = ("rmse", "mae", "mse", "bias", "crps", "crps_fair", "spread")
EVENTS = ("csi", "hss", "pod", "far", "frequency_bias", "csi_m", "hss_m", "brier")
WINDOWS = ("csi_pooled", "csi_pooled_m", "csi_overlapping", "csi_overlapping_m", "fss", "ssim")
PICTURES = ("mae_scaled", "mse_scaled", "psnr")
OPTIONS: dict[str, Any] = {"thresholds": (0.5, 2, 5), "pools": (3, 8), "windows": (3, 6), "data_range": (0, 40)}


def truth_of(values: Any, name: str = RAIN, units: str = "mm h-1") -> xr.Dataset:
    """States [T, H, W], five minutes apart."""
    values = np.asarray(values)
    coords = {"time": START + np.arange(len(values)) * STEP, "y": np.arange(values.shape[1]) * 1e3, "x": np.arange(values.shape[2]) * 1e3}
    return xr.Dataset({name: (("time", "y", "x"), values, {"units": units})}, coords)


def forecast_of(values: Any, name: str = RAIN) -> xr.Dataset:
    """A forecast [T, L, H, W] or [M, T, L, H, W]; the first lead time is one step."""
    values = np.asarray(values)
    dims = ("number", "time", LEAD, "y", "x")[5 - values.ndim :]
    times, leads, rows, columns = values.shape[-4:]
    coords = {"time": START + np.arange(times) * STEP, LEAD: (1 + np.arange(leads)) * STEP}
    return xr.Dataset({name: (dims, values)}, {**coords, "y": np.arange(rows) * 1e3, "x": np.arange(columns) * 1e3})


def rain(starts: int = 5, leads: int = 3, members: int = 0, size: int = 24, seed: int = 3) -> tuple[xr.Dataset, xr.Dataset]:
    """Simulated rain, and a forecast of it that is wrong by noise and displacement."""
    random = np.random.default_rng(seed)
    states = radar(frames=starts + leads, size=size, seed=seed)[RAIN].values.astype("f4")
    valid = np.stack([states[k + 1 : k + 1 + leads] for k in range(starts)])
    shape = (members, *valid.shape) if members else valid.shape
    values = np.roll(valid, 1, -1) * np.exp(0.5 * random.normal(size=shape))
    return forecast_of(values.astype("f4")), truth_of(states)


def holes(truth: xr.Dataset) -> xr.Dataset:
    """A corner that the radar does not see, and one pixel that was lost once."""
    gaps = truth[RAIN].copy()
    gaps[:, :5, :7] = np.nan
    gaps[3, 15, 20] = np.nan
    return truth.assign({RAIN: gaps})


def both(metric: str, forecast: Any, truth: Any, **options: Any) -> xr.DataArray:
    """A metric of one forecast [H, W] (or members [M, H, W]) of one lead time."""
    values = np.asarray(forecast, dtype=float)
    values = values[:, None, None] if values.ndim == 3 else values[None, None]
    states = np.stack([np.zeros_like(truth, dtype=float), np.asarray(truth, dtype=float)])
    return verify(forecast_of(values), truth_of(states), metrics=metric, **options)[RAIN].isel(metric=0, **{LEAD: 0})


def at_lead(forecast: xr.Dataset, truth: xr.Dataset, k: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Forecast and truth of one lead time, by initial time."""
    valid = truth[RAIN].isel(time=slice(k + 1, k + 1 + forecast.sizes["time"]))
    return forecast[RAIN].isel({LEAD: k}, drop=True).drop_vars("time"), valid.drop_vars("time")


# --- events --------------------------------------------------------------------------------------------------------------------------


def test_scores_of_events_by_hand() -> None:
    """At 1 mm/h: 2 hits, 1 miss, 3 false alarms, 3 correct negatives."""
    truth = [[1, 2, 3], [0, 0, 0], [0, 0, 0]]
    forecast = [[1, 5, 0], [1, 1, 1], [0, 0, 0.9]]
    chance = 2 * (2 * 3 - 3 * 1) / ((2 + 1) * (1 + 3) + (2 + 3) * (3 + 3))
    expected = {"csi": 2 / 6, "hss": chance, "pod": 2 / 3, "far": 3 / 5, "frequency_bias": 5 / 3}
    for metric, value in expected.items():
        assert both(metric, forecast, truth, thresholds=1).item() == pytest.approx(value), metric


def test_the_mean_of_thresholds_counts_what_is_undefined_as_zero() -> None:
    truth, forecast = np.zeros((4, 4)), np.zeros((4, 4))
    truth[0], forecast[0, :2] = 3, 3
    csi = both("csi", forecast, truth, thresholds=(1, 50))
    assert csi.sel(threshold=1).item() == pytest.approx(0.5)
    assert np.isnan(csi.sel(threshold=50).item())
    assert both("csi_m", forecast, truth, thresholds=(1, 50)).item() == pytest.approx(0.25)
    assert np.isnan(both("csi_m", forecast, truth * np.nan, thresholds=(1, 50)).item())


@pytest.mark.parametrize("gaps", [False, True])
def test_events_agree_with_the_scores_library(gaps: bool) -> None:
    forecast, truth = rain(members=3)
    truth = holes(truth) if gaps else truth
    ours = verify(forecast, truth, metrics=EVENTS[:5], thresholds=OPTIONS["thresholds"], leads="all")[RAIN]
    valid = np.stack([truth[RAIN].values[k + 1 : k + 4] for k in range(5)])
    for threshold in OPTIONS["thresholds"]:
        pair = xr.broadcast(xr.DataArray(valid, dims=("time", LEAD, "y", "x")), forecast[RAIN].drop_vars(forecast[RAIN].coords))
        events = [(field >= threshold).astype(float).where(pair[0].notnull()) for field in pair]
        table: BasicContingencyManager = BinaryContingencyManager(fcst_events=events[1], obs_events=events[0]).transform()
        expected = {
            "csi": table.critical_success_index(),
            "hss": table.heidke_skill_score(),
            "pod": table.probability_of_detection(),
            "far": table.false_alarm_ratio(),
            "frequency_bias": table.frequency_bias(),
        }
        for metric, value in expected.items():
            assert ours.sel(metric=metric, threshold=threshold).item() == pytest.approx(value.item(), rel=1e-12), metric


def test_a_value_on_the_threshold_is_an_event_whatever_float32_does() -> None:
    """Every pixel k of 255, brought to dBZ in float32 as the readers do, reaches the threshold that k stands for, and k − 1 does not."""
    for low, high in ((0.0, 255.0), (-10.0, 60.0), (0.0, 70.0)):
        pixels = np.arange(256)
        for values in (
            np.float32(low) + np.float32(high - low) * (pixels / 255).astype("f4"),
            (low + (high - low) * (pixels.astype("f4") / np.float32(255))).astype("f4"),
        ):
            exact = low + (high - low) * pixels / 255
            chosen = np.flatnonzero(np.abs(exact) > 1)  # beside 0 dBZ the rounding is not small beside the value
            edges = limits(exact[chosen])
            assert (values.astype("f8")[chosen] >= edges).all()
            assert (values.astype("f8")[chosen[1:] - 1] < edges[1:]).all()


def test_members_are_counted_all_together_or_as_a_mean() -> None:
    truth = [[2.0, 0], [0, 0]]
    members = np.array([[[2.0, 0], [0, 0]], [[0, 2.0], [0, 0]]])
    assert both("csi", members, truth, thresholds=1.5).item() == pytest.approx(1 / 3)  # a hit, a miss, a false alarm
    assert both("csi", members, truth, thresholds=0.5, ensemble="mean").item() == pytest.approx(1 / 2)
    assert np.isnan(both("pod", members, np.zeros((2, 2)), thresholds=1).item())
    assert both("mae", members, truth).item() == pytest.approx((1 + 1) / 4)
    assert both("mae", members, truth, ensemble="members").item() == pytest.approx((0 + 4) / 8)


def test_the_matched_mean_has_the_values_of_the_members_in_the_order_of_the_mean() -> None:
    random = np.random.default_rng(0)
    members = random.gamma(0.5, 4, (5, 1, 1, 6, 6))
    members[:, 0, 0, 0, 0] = 100.0
    forecast, truth = forecast_of(members), truth_of(np.zeros((2, 6, 6)))
    block = next(blocks.blocks(blocks.make_case(forecast, truth), RAIN, blocks.Settings()))[1]
    matched, mean = block.matched.ravel(), block.mean.ravel()
    np.testing.assert_array_equal(np.argsort(matched), np.argsort(mean))
    np.testing.assert_array_equal(np.sort(matched), np.sort(members.ravel())[2::5])
    alone = verify(forecast.isel(number=[0]), truth, metrics="mae", ensemble="matched")
    xr.testing.assert_equal(alone, verify(forecast.isel(number=[0]), truth, metrics="mae"))
    # the mean of noise has no heavy rain left; the matched mean has
    heavy = {kind: verify(forecast, truth, metrics="rmse", ensemble=kind)[RAIN].item() for kind in ("mean", "matched", "members")}
    assert heavy["mean"] < heavy["matched"]


def test_events_on_the_sphere_count_by_area() -> None:
    """Rows at 0 and 60 degrees have the areas 1 and 1/2."""
    coords = {"time": [START], LEAD: [STEP], "latitude": [0.0, 60.0], "longitude": [0.0, 180.0]}
    forecast = xr.Dataset({"x": (("time", LEAD, "latitude", "longitude"), [[[[1.0, 0], [1, 1]]]])}, coords)
    truth = xr.Dataset(
        {"x": (("time", "latitude", "longitude"), [[[1.0, 1], [1, 0]]])},
        {"time": [START + STEP], "latitude": [0.0, 60.0], "longitude": [0.0, 180.0]},
    )
    assert verify(forecast, truth, metrics="csi", thresholds=1)["x"].item() == pytest.approx((1 + 0.5) / (1 + 0.5 + 1 + 0.5))


# --- pools and windows ---------------------------------------------------------------------------------------------------------------


def naive_csi(forecast: np.ndarray, truth: np.ndarray, threshold: float, size: int, stride: int) -> float:
    """Windows one by one; those with a missing point are left out."""
    hits = others = 0
    for row in range(0, truth.shape[-2] - size + 1, stride):
        for column in range(0, truth.shape[-1] - size + 1, stride):
            part = (..., slice(row, row + size), slice(column, column + size))
            ours, theirs = ((field[part] >= threshold).any((-2, -1)) for field in (forecast, truth))
            seen = ~np.isnan(truth[part]).any((-2, -1))
            hits += int((ours & theirs & seen).sum())
            others += int(((ours ^ theirs) & seen).sum())
    return hits / (hits + others)


@pytest.mark.parametrize("gaps", [False, True])
def test_pools_are_windows_one_by_one(gaps: bool) -> None:
    forecast, truth = rain()
    truth = holes(truth) if gaps else truth
    ours = verify(forecast, truth, metrics=("csi_pooled", "csi_overlapping"), leads="all", thresholds=2, pools=(4, 8))[RAIN]
    valid = np.stack([truth[RAIN].values[k + 1 : k + 4] for k in range(5)])
    for pool in (4, 8):
        for metric, stride in (("csi_pooled", pool), ("csi_overlapping", pool // 4)):
            expected = naive_csi(forecast[RAIN].values, valid, 2, pool, stride)
            assert ours.sel(metric=metric, pool=pool).item() == pytest.approx(expected, rel=1e-12), (metric, pool)


def test_a_pool_of_one_point_is_the_point() -> None:
    forecast, truth = rain()
    scores = verify(forecast, truth, metrics=("csi", "csi_pooled", "csi_overlapping"), thresholds=(0.5, 5), pools=1)[RAIN]
    for metric in ("csi_pooled", "csi_overlapping"):
        np.testing.assert_allclose(scores.sel(metric=metric), scores.sel(metric="csi"), rtol=1e-12)


def test_fss_agrees_with_the_scores_library() -> None:
    forecast, truth = rain()
    ours = verify(forecast, truth, metrics="fss", thresholds=(0.5, 5), windows=(1, 4, 7))[RAIN].isel(metric=0)
    for k in range(3):
        fields = at_lead(forecast, truth, k)
        for window in (1, 4, 7):
            for threshold in (0.5, 5):
                size = (window, window)
                expected = fss_2d(
                    *fields, event_threshold=threshold, window_size=size, spatial_dims=("y", "x"), threshold_operator=np.greater_equal
                )
                assert ours.isel({LEAD: k}).sel(window=window, threshold=threshold).item() == pytest.approx(expected.item(), rel=1e-10)


def test_similarity_is_its_windows_one_by_one() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.random((2, 13, 14))
    kernel = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weight = np.outer(kernel, kernel) / kernel.sum() ** 2
    values = []
    for row in range(3):
        for column in range(4):
            x, y = (field[row : row + 11, column : column + 11] for field in (ours, theirs))
            mx, my = (weight * x).sum(), (weight * y).sum()
            vx, vy, vxy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum(), (weight * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert both("ssim", ours, theirs, data_range=(0, 1)).item() == pytest.approx(np.mean(values), rel=1e-10)
    assert both("ssim", ours, ours, data_range=(0, 1)).item() == pytest.approx(1, abs=1e-12)


def test_pictures_by_hand() -> None:
    """0..50 mm/h becomes 0..1 and is cut there: errors 0.2 and 0 (60 is as white as 50) of four points."""
    truth, forecast = np.array([[10.0, 50], [0, 0]]), np.array([[20.0, 60], [0, 0]])
    expected = {"mae_scaled": 0.05, "mse_scaled": 0.01, "psnr": 20.0}
    for metric, value in expected.items():
        assert both(metric, forecast, truth, data_range=(0, 50)).item() == pytest.approx(value), metric
    assert both("psnr", truth, truth, data_range=(0, 50)).item() == np.inf


# --- what is missing -----------------------------------------------------------------------------------------------------------------


def test_what_stands_where_nothing_is_observed_does_not_matter() -> None:
    forecast, truth = rain(members=3)
    truth = holes(truth)
    wild = forecast[RAIN].values.copy()
    wild[..., :5, :7] = 1e3
    metrics = (*POINTS, *EVENTS, *WINDOWS, *PICTURES)
    scores = [verify(one, truth, metrics=metrics, **OPTIONS) for one in (forecast, forecast_of(wild))]
    xr.testing.assert_allclose(*scores, rtol=1e-12)
    assert scores[0][RAIN].attrs["scored"] == pytest.approx(1 - (35 * 15 + 3) / (24 * 24 * 15))
    assert scores[0][RAIN].notnull().all()


def test_an_unseen_edge_is_like_a_smaller_field() -> None:
    forecast, truth = rain(members=2, size=32)
    cut = {"y": slice(8, None), "x": slice(8, None)}
    masked = truth.where((truth.y >= 8e3) & (truth.x >= 8e3))
    metrics = ("mae", "crps_fair", "csi", "csi_pooled", "fss", "ssim", "psnr", "brier")
    options = {**OPTIONS, "pools": (4, 8)}  # pools begin where those of the smaller field do
    xr.testing.assert_allclose(
        verify(forecast, masked, metrics=metrics, **options), verify(forecast.isel(cut), truth.isel(cut), metrics=metrics, **options)
    )


def test_padded_frames_do_not_count() -> None:
    """A sequence of the last batch that is not there is NaN, not zeros."""
    forecast, truth = rain(starts=5, leads=1)
    padded = xr.concat([truth, truth.isel(time=[-1]).assign_coords(time=truth.time[-1:] + STEP) * np.nan], "time")
    last = forecast.isel(time=[-1]).assign_coords(time=forecast.time[-1:] + STEP) * 0
    longer = xr.concat([forecast, last], "time")
    metrics = ("csi", "ssim", "psnr", "fss", "mae")
    whole, more = (verify(one, states, metrics=metrics, **OPTIONS)[RAIN] for one, states in ((forecast, truth), (longer, padded)))
    np.testing.assert_allclose(whole, more, rtol=1e-12)


# --- pieces --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [1, 3000, 8000])
def test_scored_in_pieces_is_scored_at_once(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    forecast, truth = rain(members=3)
    truth = holes(truth)

    def all_scores() -> list[xr.Dataset]:
        metrics = (*POINTS, *EVENTS, *WINDOWS, *PICTURES)
        kinds = [verify(forecast, truth, metrics=metrics, **OPTIONS), verify(forecast, truth, metrics="csi", ensemble="matched", **OPTIONS)]
        return [*kinds, rank_histogram(forecast, truth), reliability(forecast, truth, thresholds=2), radial_spectra(forecast, truth)]

    whole = all_scores()
    monkeypatch.setattr(blocks, "BLOCK_VALUES", values)
    for one, other in zip(whole, all_scores(), strict=True):
        xr.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_test_sets_in_parts_add_up() -> None:
    """The sums of two halves are the sums of the whole: a test set may be larger than memory, or come day by day."""
    forecast, truth = rain(members=2)
    options = Options(**OPTIONS)
    metrics = ("csi", "csi_overlapping", "fss", "ssim", "crps_fair")
    whole, _, _ = pair_sums(forecast, truth, metrics, options, None)
    parts = [pair_sums(forecast.isel(time=part), truth, metrics, options, None)[0] for part in (slice(2), slice(2, None))]
    for key, (total, weight) in whole[RAIN].sums.items():
        for k, entire in enumerate((total, weight)):
            np.testing.assert_allclose(np.concatenate([part[RAIN].sums[key][k] for part in parts]), entire, rtol=1e-13, err_msg=key)


def test_lead_times_and_members_together() -> None:
    forecast, truth = rain(members=2)
    together = verify(forecast, truth, metrics=("csi", "mse"), thresholds=2, leads="all")
    assert together[RAIN].dims == ("metric", "threshold")
    assert together["initial_times"].item() == 5
    each = verify(forecast, truth, metrics="mse")[RAIN]
    np.testing.assert_allclose(together[RAIN].sel(metric="mse"), each.mean(LEAD), rtol=1e-12)
    joined = forecast.stack(at=("time", "number"))[RAIN].transpose("at", LEAD, "y", "x").values
    valid = np.stack([truth[RAIN].values[k + 1 : k + 4] for k in range(5) for _ in range(2)])
    hits, union = ((joined >= 2) & (valid >= 2)).sum(), ((joined >= 2) | (valid >= 2)).sum()
    assert together[RAIN].sel(metric="csi").item() == pytest.approx(hits / union)


# --- thresholds, units, layout -------------------------------------------------------------------------------------------------------


def test_named_thresholds() -> None:
    assert SETS["sevir"][VIL].thresholds == (16, 74, 133, 160, 181, 219)
    np.testing.assert_allclose(SETS["hko7"]["reflectivity"].thresholds, np.array([84, 117, 140, 158, 185]) * 70 / 255 - 10)
    np.testing.assert_allclose(10 * np.log10(58.53 * np.array(SETS["hko7"]["rain_rate"].thresholds) ** 1.56)[0], 12.978, atol=1e-3)
    np.testing.assert_allclose(SETS["meteonet"]["reflectivity"].thresholds[0], 12.078, atol=1e-3)
    assert verification.thresholds_of(RAIN, "hko7") == (0.5, 2, 5, 10, 30)
    assert verification.thresholds_of(RAIN, {RAIN: (5, 1)}) == (1, 5)
    assert verification.thresholds_of(RAIN, {RAIN: "hko7"})[0] == 0.5


def test_variables_with_thresholds_of_their_own() -> None:
    forecast, truth = rain()
    two = [data.assign(reflectivity=10 * np.log10(200 * data[RAIN].clip(0.01) ** 1.6)) for data in (forecast, truth)]
    scores = verify(*two, metrics=("csi", "mae_scaled"), thresholds="hko7", data_range={RAIN: (0, 60)})
    assert scores[RAIN].sel(threshold=0.5).notnull().all()
    assert scores["reflectivity"].sel(threshold=0.5).isnull().all()
    assert scores["reflectivity"].sel(threshold=SETS["hko7"]["reflectivity"].thresholds[2]).notnull().all()


def test_units_are_those_of_the_metric() -> None:
    forecast, truth = rain(members=2)
    units = {"mse": "mm2 h-2", "rmse": "mm h-1", "csi": "1", "ssim": "1", "psnr": "dB", "crps_fair": "mm h-1"}
    for metric, expected in units.items():
        assert verify(forecast, truth, metrics=metric, **OPTIONS)[RAIN].attrs["units"] == expected
    mixed = verify(forecast, truth, metrics=tuple(units), **OPTIONS)
    assert "units" not in mixed[RAIN].attrs
    assert mixed[RAIN].attrs["variable_units"] == "mm h-1"
    assert mixed["unit_power"].values.tolist() == [METRICS[metric].power for metric in units] == [2, 1, 0, 0, 0, 1]
    assert mixed.attrs == {}
    assert verify(forecast, truth, metrics=("rmse", "mae"))[RAIN].attrs["units"] == "mm h-1"


def test_squares_of_units() -> None:
    from wxlab.readers.units import power

    units = {"m**2 s**-2": "m4 s-4", "K": "K2", "1": "1", "dBZ": "dBZ2", "mm/h": "mm2 h-2", "odd unit": "(odd unit)2"}
    for given, squared in units.items():
        assert power(given, 2) == squared
        assert power(given, 0) == "1"


def test_layout_of_several_metrics() -> None:
    forecast, truth = rain()
    scores = verify(forecast, truth, metrics=("csi", "fss", "csi_pooled", "rmse"), by="time", **OPTIONS)
    assert scores[RAIN].dims == ("metric", LEAD, "threshold", "pool", "window", "group")
    assert scores["threshold"].values.tolist() == [0.5, 2, 5]
    assert scores["window"].values.tolist() == [3, 6]
    rmse = scores[RAIN].sel(metric="rmse")
    assert (rmse == rmse.isel(threshold=0, pool=0, window=0)).all()
    assert verify(forecast, truth, metrics=("csi", "rmse"), thresholds=2)[RAIN].dims == ("metric", LEAD, "threshold")


# --- fair comparisons ----------------------------------------------------------------------------------------------------------------


def masked_pair() -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """A forecast everywhere, a reference that does not know a corner, and that is wrong there would it know; the truth."""
    forecast, truth = rain()
    reference = forecast[RAIN].copy() * 1.1
    reference[:, :, :8, :8] = np.nan
    forecast[RAIN][:, :, :8, :8] += 50
    return forecast, forecast.assign({RAIN: reference}), truth


def test_common_points_are_those_that_all_have() -> None:
    forecast, reference, truth = masked_pair()
    alone, common = verify(forecast, truth), verify(forecast, truth, common_with=[reference])
    seen = truth.where((truth.y >= 8e3) | (truth.x >= 8e3))
    xr.testing.assert_allclose(common, verify(forecast, seen))
    assert common[RAIN].attrs["scored"] == pytest.approx(1 - 64 / 576)
    assert (common[RAIN].sel(metric="mae") < alone[RAIN].sel(metric="mae")).all()
    xr.testing.assert_allclose(verify(reference, truth, common_with=[forecast]), verify(reference, truth))


def test_common_times_and_leads() -> None:
    forecast, _, truth = masked_pair()
    fewer = forecast.isel(time=[3, 1], **{LEAD: [2, 0]})
    common = verify(forecast, truth, common_with=[fewer])
    assert common["initial_times"].values.tolist() == [2, 0, 2]
    xr.testing.assert_allclose(common.isel({LEAD: 2}), verify(forecast.isel(time=[1, 3]), truth).isel({LEAD: 2}))


def test_a_table_of_different_points_is_refused() -> None:
    forecast, reference, truth = masked_pair()
    scores = {"model": verify(forecast, truth), "persistence": verify(reference, truth)}
    with pytest.raises(WxlabError, match=r"100 % of the points of 5 initial times for 'model' and on 88.89 %.*common_with"):
        scorecard(scores, lead=0.25, metric="mae")
    fair = {"model": verify(forecast, truth, common_with=[reference]), "persistence": verify(reference, truth, common_with=[forecast])}
    assert scorecard(fair, lead=0.25, metric="mae").notna().all().all()
    with pytest.raises(WxlabError, match="5 initial times for 'model' and on 100 % of the points of 4"):
        scorecard({"model": verify(forecast, truth), "other": verify(forecast.isel(time=slice(4)), truth)}, lead=0.25, metric="mae")


def test_the_bootstrap_scores_common_points() -> None:
    forecast, reference, truth = masked_pair()
    table = bootstrap_difference(forecast, reference, truth, metric="mae", lead=0.25, samples=20)
    ours, theirs = verify(forecast, truth, common_with=[reference]), verify(reference, truth, common_with=[forecast])
    expected = (ours - theirs)[RAIN].sel(metric="mae").isel({LEAD: 2}).item()
    assert table.loc[RAIN, "difference"] == pytest.approx(expected)


def test_the_bootstrap_of_events() -> None:
    forecast, reference, truth = masked_pair()
    table = bootstrap_difference(forecast, reference, truth, metric="csi", lead=0.25, samples=40, thresholds=(0.5, 2), block=1)
    assert table.index.tolist() == [(RAIN, 0.5), (RAIN, 2.0)]
    pairs = ((forecast, reference), (reference, forecast))
    scores = [verify(a, truth, metrics="csi", thresholds=(0.5, 2), common_with=[b])[RAIN] for a, b in pairs]
    np.testing.assert_allclose(table["difference"], (scores[0] - scores[1])[0, 2])
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()
    assert table["share_better"].between(0, 1).all()


def test_a_table_at_one_threshold() -> None:
    forecast, truth = rain()
    scores = {"model": verify(forecast, truth, metrics=("csi", "csi_m", "fss"), **OPTIONS)}
    value = scores["model"][RAIN].sel(metric="csi", threshold=2).isel({LEAD: 1}).values[0]
    assert scorecard(scores, lead=1 / 6, metric="csi", threshold=2).loc[RAIN, "model"] == value
    assert scorecard(scores, lead=1 / 6, metric="csi_m").notna().all().all()
    with pytest.raises(WxlabError, match=r"scored at threshold 0.5, 2, 5; say which, for example threshold=0.5"):
        scorecard(scores, lead=1 / 6, metric="csi")
    with pytest.raises(WxlabError, match=r"window=4 is not among them"):
        scorecard(scores, lead=1 / 6, metric="fss", threshold=2, window=4)


# --- ensembles -----------------------------------------------------------------------------------------------------------------------


def test_brier_agrees_with_the_scores_library() -> None:
    forecast, truth = rain(members=4)
    ours = verify(forecast, truth, metrics="brier", thresholds=(0.5, 5))[RAIN].isel(metric=0)
    for k in range(3):
        fields = at_lead(forecast, truth, k)
        expected = brier_score_for_ensemble(*fields, "number", np.array([0.5, 5]), fair_correction=False)
        np.testing.assert_allclose(ours.isel({LEAD: k}), expected, rtol=1e-12)


def test_probability_of_exceedance() -> None:
    members = np.array([0.0, 2, 2, 7]).reshape(4, 1, 1, 1, 1) + np.zeros((4, 1, 1, 2, 2))
    members[3, 0, 0, 0, 0] = np.nan
    share = exceedance(forecast_of(members), (1, 2, 5))[RAIN]
    assert share.dims == ("time", "threshold", LEAD, "y", "x")
    assert share[0, :, 0, 1, 1].values.tolist() == [0.75, 0.75, 0.25]
    assert share[0, :, 0, 0, 0].isnull().all()


def exchangeable(members: int = 4, size: int = 60) -> tuple[xr.Dataset, xr.Dataset]:
    """Members and truth drawn alike, three of ten points dry."""
    random = np.random.default_rng(0)
    values = random.gamma(0.5, 4, (members + 1, 1, 3, size, size)) * (random.random((members + 1, 1, 3, size, size)) > 0.3)
    return forecast_of(values[:-1]), truth_of(np.concatenate([values[-1, :, 0] * 0, values[-1, 0]]))


def test_ranks_of_a_member_are_flat_even_where_it_is_dry() -> None:
    forecast, truth = exchangeable()
    share = rank_histogram(forecast, truth)[RAIN]
    assert share.dims == (LEAD, "rank")
    np.testing.assert_allclose(share.sum("rank"), 1)
    points = 60 * 60 * 3
    chi = points * ((share.mean(LEAD) - 0.2) ** 2 / 0.2).sum().item()
    assert chi < 18.5  # 0.1 % of a chi-square with 4 degrees of freedom lies above
    high = rank_histogram(forecast, truth + 100)[RAIN]
    np.testing.assert_allclose(high.isel(rank=-1), 1)


def test_ranks_without_ties_by_hand_and_with_ties_by_seed() -> None:
    members = np.array([1.0, 2, 3]).reshape(3, 1, 1, 1, 1) + np.zeros((3, 1, 1, 1, 4))
    truth = truth_of([[[0.0] * 4], [[0.5, 1.5, 2.5, 9]]])
    np.testing.assert_array_equal(rank_histogram(forecast_of(members), truth)[RAIN][0], [0.25] * 4)
    forecast, dry = exchangeable()
    dry = dry * 0
    drizzle = rank_histogram(forecast * 0 + 1e-4, dry, least=0.1, seed=1)  # less than the least is dry, missing stays missing
    xr.testing.assert_equal(drizzle, rank_histogram(forecast * 0, dry, seed=1))
    assert rank_histogram(forecast * 0 + 1e-4, dry)[RAIN].isel(rank=0).min() > 0.9
    half = dry.where(dry[dry[RAIN].dims[-1]] > 0)
    assert rank_histogram(forecast * 0 + 5, half, least=0.1)[RAIN].isel(rank=0).min() == 1
    first = rank_histogram(forecast * 0, dry, seed=1)
    xr.testing.assert_equal(first, rank_histogram(forecast * 0, dry, seed=1))
    assert not first.equals(rank_histogram(forecast * 0, dry, seed=2))
    np.testing.assert_allclose(first[RAIN], 0.2, atol=0.03)


def test_reliability_of_a_member_lies_on_the_diagonal() -> None:
    random = np.random.default_rng(0)
    chance = random.random((1, 1, 200, 200))  # the chance of rain at each point: members and truth agree on it
    values = (random.random((10, 1, 1, 200, 200)) < chance) * 5.0
    forecast, truth = forecast_of(values), truth_of(np.stack([chance[0, 0] * 0, (random.random((200, 200)) < chance[0, 0]) * 5.0]))
    curve = reliability(forecast, truth, thresholds=1)[RAIN].isel({LEAD: 0, "threshold": 0})
    np.testing.assert_allclose(curve.sel(quantity="probability"), np.arange(11) / 10)
    # with a flat chance, k of M members leave the mean chance (k + 1) / (M + 2)
    np.testing.assert_allclose(curve.sel(quantity="frequency"), (np.arange(11) + 1) / 12, atol=0.03)
    assert curve.sel(quantity="share").sum().item() == pytest.approx(1)
    coarse = reliability(forecast, truth, thresholds=1, bins=5)[RAIN].isel({LEAD: 0, "threshold": 0})
    assert coarse.sizes["bin"] == 5
    np.testing.assert_allclose(coarse.sel(quantity="share").values[:4], curve.sel(quantity="share").values[:8].reshape(4, 2).sum(1))


def test_reliability_and_brier_tell_the_same() -> None:
    """Σ share (p − f)² + share f (1 − f) is the Brier score, as each bin has one probability."""
    forecast, truth = rain(members=4)
    truth = holes(truth)
    curve = reliability(forecast, truth, thresholds=(0.5, 2))[RAIN].fillna(0)
    p, f, share = (curve.sel(quantity=part) for part in ("probability", "frequency", "share"))
    brier = verify(forecast, truth, metrics="brier", thresholds=(0.5, 2))[RAIN].isel(metric=0)
    np.testing.assert_allclose((share * ((p - f) ** 2 + f * (1 - f))).sum("bin"), brier, rtol=1e-10)


def test_spectra_by_lead_time_are_those_of_the_fields() -> None:
    forecast, truth = rain(members=2)
    truth[RAIN][4, 3, 3] = np.nan
    made = radial_spectra(forecast, truth)
    assert made[RAIN].dims == ("source", LEAD, "wavenumber")
    assert made[RAIN].attrs["units"] == "mm2 h-2"
    complete = [0, 1, 3, 4]  # at the second lead time; the third forecast is valid at the state with a hole
    expected = spectra.radial(forecast[RAIN].isel({LEAD: 1, "time": complete})).mean(("number", "time"))
    np.testing.assert_allclose(made[RAIN].sel(source="forecast").isel({LEAD: 1}), expected, rtol=1e-10)
    states = spectra.radial(truth[RAIN].isel(time=[t + 2 for t in complete])).mean("time")
    np.testing.assert_allclose(made[RAIN].sel(source="truth").isel({LEAD: 1}), states, rtol=1e-10)
    np.testing.assert_allclose(made["wavelength"].values[1:], expected["wavelength"].values[1:])


# --- networks of the user ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Random weights in the shapes of VGG-16 and LPIPS: torchvision's file, the linear layers' file, and one with all."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    vgg, linear, whole, channels, numbers = {}, {}, {}, 3, iter(VGG_NUMBERS)
    for stage, widths in enumerate(STAGES):
        for width in widths:
            number = next(numbers)
            kernel, offset = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5, torch.randn(width) * 0.05
            for name, value in (("weight", kernel), ("bias", offset)):
                vgg[f"features.{number}.{name}"] = whole[f"net.slice{stage + 1}.{number}.{name}"] = value
            channels = width
        linear[f"lin{stage}.model.1.weight"] = whole[f"lin{stage}.model.1.weight"] = torch.rand(1, channels, 1, 1) / channels
    vgg["classifier.0.bias"] = torch.zeros(3)
    paths = folder / "vgg16.pth", folder / "vgg.pth", folder / "lpips.safetensors"
    torch.save(vgg, paths[0])
    torch.save(linear, paths[1])
    save_file({name: value.clone() for name, value in whole.items()}, paths[2])
    return paths


def test_lpips_of_the_same_is_zero_and_of_others_is_its_formula(weight_files: tuple[Path, Path, Path]) -> None:
    model = load_lpips(weight_files[:2])
    x, y = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    assert (model(x, x) == 0).all()
    weights = {**torch.load(weight_files[0]), **torch.load(weight_files[1])}
    total, numbers = torch.zeros(3), iter(VGG_NUMBERS)
    x1, y1 = (
        (i - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[:, None, None] for i in (x, y)
    )
    for stage, widths in enumerate(STAGES):
        if stage:
            x1, y1 = F.max_pool2d(x1, 2, 2), F.max_pool2d(y1, 2, 2)
        for _ in widths:
            name = f"features.{next(numbers)}"
            x1, y1 = (F.conv2d(i, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).clamp(min=0) for i in (x1, y1))
        gap = F.normalize(x1, dim=1) - F.normalize(y1, dim=1)
        total += (gap**2 * weights[f"lin{stage}.model.1.weight"]).sum(1).mean((1, 2))
    torch.testing.assert_close(model(x, y), total, rtol=1e-4, atol=1e-6)
    assert (total > 1e-3).all()
    torch.testing.assert_close(load_lpips(weight_files[2])(x, y), model(x, y))


def test_lpips_by_lead_time(weight_files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    forecast, truth = rain(starts=2, members=2, size=20)
    truth[RAIN][2, 3, 3] = np.nan  # only the frame that is whole is seen
    options: dict[str, Any] = {"weights": weight_files[2], "data_range": (0, 40), "size": 32}
    made = verification.lpips(forecast, truth, **options)
    assert made[RAIN].dims == (LEAD,)
    model = load_lpips(weight_files[2])
    pair = [
        torch.from_numpy(np.clip(field / 40, 0, 1)).float()[:, None]
        for field in (forecast[RAIN].values[:, 0, 0], np.repeat(truth[RAIN].values[[1]], 2, 0))
    ]
    small = [(2 * F.interpolate(p, (32, 32), mode="bicubic").clamp(0, 1) - 1).expand(-1, 3, -1, -1) for p in pair]
    assert made[RAIN][0].item() == pytest.approx(model(*small).mean().item(), rel=1e-4)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1)
    xr.testing.assert_allclose(verification.lpips(forecast, truth, **options), made, rtol=1e-5)
    perfect = forecast_of(np.stack([truth[RAIN].values[k + 1 : k + 4] for k in range(2)]))
    assert (verification.lpips(perfect, truth.fillna(0), **options)[RAIN].fillna(0) == 0).all()


def test_frechet_distance_is_exact() -> None:
    """|μ|² + tr: for one dimension (μ1 − μ2)² + (σ1 − σ2)²; for commuting covariances the sum of those."""
    assert frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]])) == pytest.approx(4 + 1)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    a, b = np.array([1.0, 2, 3, 0]), np.array([2.0, 2, 1, 5])
    distance = frechet_distance(np.ones(4), turn * a**2 @ turn.T, np.zeros(4), turn * b**2 @ turn.T)
    assert distance == pytest.approx(4 + ((a - b) ** 2).sum())
    spread = turn * a**2 @ turn.T
    assert frechet_distance(np.ones(4), spread, np.ones(4), spread) == pytest.approx(0, abs=1e-6)


def test_moments_add_up() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5))
    moments = Moments()
    for part in np.split(features, [3, 20]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T), rtol=1e-10)


class Features(torch.nn.Module):
    """Mean and deviation of a video."""

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        return torch.stack([videos.mean((1, 2, 3, 4)), videos.std((1, 2, 3, 4))], 1)


class Published(torch.nn.Module):
    """The same behind the keywords of the published I3D file."""

    def forward(self, videos: torch.Tensor, rescale: bool = True, resize: bool = False, return_features: bool = False) -> torch.Tensor:
        if rescale or not resize or not return_features:
            return videos[:, 0, 0, 0]
        return torch.stack([videos.mean((1, 2, 3, 4)), videos.std((1, 2, 3, 4))], 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [Features, Published])
def test_video_distance_with_a_network_of_the_user(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.script(kind()).save(str(tmp_path / "features.pt"))
    forecast, truth = rain(starts=6, members=2)
    options: dict[str, Any] = {"features": tmp_path / "features.pt", "data_range": (0, 40)}
    made = verification.fvd(forecast, truth, **options)
    valid = np.stack([truth[RAIN].values[k + 1 : k + 4] for k in range(6)])
    sides = []
    for videos in (forecast[RAIN].values.reshape(12, 3, 24, 24), valid):
        values = 2 * np.clip(videos / 40, 0, 1) - 1
        # three equal channels: the deviation over 3 n values with 3 n − 1
        deviation = np.repeat(values.reshape(len(values), -1), 3, 1).std(1, ddof=1)
        sides.append(np.stack([values.mean((1, 2, 3)), deviation]))
    expected = frechet_distance(*(part for side in sides for part in (side.mean(1), np.cov(side))))
    assert made[RAIN].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert made[RAIN].attrs["videos"] == 12
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1)
    xr.testing.assert_allclose(verification.fvd(forecast, truth, **options), made, rtol=1e-4)
    perfect = verification.fvd(forecast_of(valid), truth, **options)
    assert perfect[RAIN].item() == pytest.approx(0, abs=1e-6)


# --- command line --------------------------------------------------------------------------------------------------------------------


def test_the_command_takes_thresholds(tmp_path: Path) -> None:
    import wxlab

    forecast, truth = rain(starts=20)
    store = wxlab.prepare(truth, tmp_path / "store.zarr", variables=[RAIN])
    forecast.to_zarr(tmp_path / "forecast.zarr", zarr_format=3, consolidated=False)
    words = ["verify", str(tmp_path / "forecast.zarr"), str(store), "--metrics", "csi,mae", "--out", str(tmp_path / "s.nc")]
    done = CliRunner().invoke(app, [*words, "--thresholds", "0.5,2"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "threshold" in done.output
    with xr.open_dataset(tmp_path / "s.nc", engine="h5netcdf", decode_timedelta=True) as read:
        expected = verify(forecast, store, metrics=("csi", "mae"), thresholds=(0.5, 2))
        xr.testing.assert_allclose(read.load(), expected)
    assert CliRunner().invoke(app, [*words, "--thresholds", "hko7"], catch_exceptions=False).exit_code == 0
    with pytest.raises(WxlabError, match="unknown set of thresholds 'hko'; did you mean 'hko7'"):
        CliRunner().invoke(app, [*words, "--thresholds", "hko"], catch_exceptions=False)


# --- reference numbers ---------------------------------------------------------------------------------------------------------------

NAMES = {"SEVIR": (VIL, 0.0, 255.0), "HKO-7": ("reflectivity", -10.0, 70.0), "MeteoNet": ("reflectivity", 0.0, 70.0)}


@pytest.mark.golden
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_authors(golden_dir: Path, name: str) -> None:
    """Counts are exact, scores to float32. Errors and pictures they average over batches (of 3 and 2), not over frames."""
    record = json.loads((golden_dir / "stldm" / "metrics.json").read_text())["results"][name]
    tensors = load_file(golden_dir / "stldm" / "metrics.tensors.safetensors")
    variable, low, span = NAMES[name]
    fields = [tensors["y"][:, :, 0], *(tensors[f"pred_member{m}"][:, :, 0].clip(0, 1) for m in (0, 1))]
    truth, *members = (np.float32(low) + np.float32(span) * field for field in fields)
    forecast = forecast_of(np.stack(members), variable).assign_coords(time=START + np.arange(5) * 12 * STEP)
    times = (forecast.time.values[:, None] + forecast[LEAD].values).ravel()
    states = truth_of(truth.reshape(10, 64, 64), variable).assign_coords(time=times)
    chosen = name.lower().replace("-", "")

    metrics = ("csi", "hss", "csi_m", "hss_m", "csi_overlapping", "csi_overlapping_m")
    ours = verify(forecast, states, metrics=metrics, thresholds=chosen, leads="all")[variable]
    sums, _, _ = pair_sums(forecast, states, metrics, Options(chosen), None)
    pixels = sorted({int(key.split("-")[1]) for key in record["scores"] if key.startswith("csi-")})
    for i, pixel in enumerate(pixels):
        for metric in ("csi", "hss"):
            assert ours.sel(metric=metric)[i, 0].item() == pytest.approx(record["scores"][f"{metric}-{pixel}"], abs=2e-7)
        counted = sums[variable].sums["counts"][0].sum((0, 1, 2))[i]  # hits, misses, false alarms, correct negatives
        assert counted[[0, 3, 2, 1]].tolist() == record["counts_tp_tn_fp_fn"][f"csi-{pixel}"]
        for j, pool in enumerate((4, 16)):
            key = f"csi_{pool}-{pixel}"
            assert ours.sel(metric="csi_overlapping", pool=pool)[i].item() == pytest.approx(record["scores"][key], abs=2e-7)
            pooled = sums[variable].sums["counts_overlapping"][0].sum((0, 1, 2))[i, j]
            assert pooled[[0, 3, 2, 1]].tolist() == record["counts_tp_tn_fp_fn"][key]
    means = {"csi": ours.sel(metric="csi_m"), "hss": ours.sel(metric="hss_m")}
    means |= {f"csi_{pool}": ours.sel(metric="csi_overlapping_m", pool=pool) for pool in (4, 16)}
    for key, value in means.items():
        np.testing.assert_allclose(value, record["scores"][f"mean:{key}"], atol=2e-7)

    pictures = {"mae": "mae_scaled", "mse": "mse_scaled", "ssim": "ssim", "psnr": "psnr"}
    options: dict[str, Any] = {"metrics": tuple(pictures.values()), "thresholds": chosen, "leads": "all", "ensemble": "members"}
    batches = [verify(forecast.isel(time=part), states, **options)[variable].values for part in (slice(3), slice(3, None))]
    expected = [record["scores"][key] for key in pictures]
    np.testing.assert_allclose(np.mean(batches, axis=0), expected, rtol=1e-5)


# --- faults --------------------------------------------------------------------------------------------------------------------------

FORECAST, TRUTH = rain()
ENSEMBLE, _ = rain(members=2)
GLOBE = {"latitude": np.linspace(-80, 80, 24), "longitude": np.arange(24.0)}
SPHERE = [data.rename(y="latitude", x="longitude").assign_coords(GLOBE) for data in (FORECAST, TRUTH)]
FAULTS: dict[str, tuple[Any, str]] = {
    "no thresholds": (lambda: verify(FORECAST, TRUTH, metrics="csi"), "events need thresholds; give thresholds='sevir'"),
    "unknown set": (lambda: verify(FORECAST, TRUTH, metrics="csi", thresholds="sevr"), "set of thresholds 'sevr'; did you mean 'sevir'"),
    "set of others": (lambda: verify(FORECAST, TRUTH, metrics="csi", thresholds="sevir"), "for vertically.* and not for 'rain_rate'"),
    "no numbers": (lambda: verify(FORECAST, TRUTH, metrics="csi", thresholds=(1, np.nan)), "are no numbers"),
    "empty thresholds": (lambda: verify(FORECAST, TRUTH, metrics="csi", thresholds=()), "are no numbers"),
    "thresholds of others": (lambda: verify(FORECAST, TRUTH, metrics="csi", thresholds={"x": 1}), "nothing for 'rain_rate', only for x"),
    "no range": (lambda: verify(FORECAST, TRUTH, metrics="ssim"), "which values of 'rain_rate' are black and white"),
    "turned range": (lambda: verify(FORECAST, TRUTH, metrics="psnr", data_range=(5, 1)), "two numbers, the lower first"),
    "large window": (lambda: verify(FORECAST, TRUTH, metrics="fss", thresholds=1, windows=25), "25x25 points do not fit into the 24x24"),
    "odd pool": (lambda: verify(FORECAST, TRUTH, metrics="csi_pooled", thresholds=1, pools=(0, 4)), "pools=.0, 4. must be"),
    "small field": (lambda: verify(FORECAST.isel(x=slice(9)), TRUTH.isel(x=slice(9)), metrics="ssim", data_range=(0, 9)), "11x11 points"),
    "ensemble kind": (lambda: verify(FORECAST, TRUTH, ensemble="median"), "unknown ensemble= 'median'"),  # type: ignore[arg-type]
    "lead kind": (lambda: verify(FORECAST, TRUTH, leads="any"), "unknown leads= 'any'"),  # type: ignore[arg-type]
    "other grid": (lambda: verify(FORECAST, TRUTH, common_with=[FORECAST.isel(x=slice(9))]), "than the forecast of common_with"),
    "states in common": (lambda: verify(FORECAST, TRUTH, common_with=[TRUTH]), "a forecast of common_with has the dimensions"),
    "nothing in common": (lambda: verify(FORECAST.isel(time=[0]), TRUTH, common_with=[FORECAST.isel(time=[1])]), "share no initial time"),
    "ranks of one": (lambda: rank_histogram(FORECAST, TRUTH), "a rank histogram needs a forecast with members"),
    "reliability of one": (lambda: reliability(FORECAST, TRUTH, thresholds=1), "needs a forecast with members"),
    "bins": (lambda: reliability(ENSEMBLE, TRUTH, thresholds=1, bins=1), "bins=1 must be"),
    "exceedance of one": (lambda: exceedance(FORECAST, 1), "probabilities need a forecast with members"),
    "spectra on the sphere": (lambda: radial_spectra(*SPHERE), "need a plane with y and x"),
    "bootstrap option": (lambda: bootstrap_difference(FORECAST, FORECAST, TRUTH, lead=0.25, threshold=1), "did you mean 'thresholds'"),
    "bootstrap of bias": (lambda: bootstrap_difference(FORECAST, FORECAST, TRUTH, lead=0.25, metric="frequency_bias"), "neither is the"),
    "no weights": (lambda: verification.lpips(FORECAST, TRUTH), "LPIPS was not computed: it needs the weights of VGG-16"),
    "no network": (lambda: verification.fvd(FORECAST, TRUTH), "FVD was not computed: it needs an I3D network"),
    "no such network": (lambda: verification.fvd(FORECAST, TRUTH, features="nowhere.pt"), "there is no file nowhere.pt"),
    "text as network": (lambda: verification.fvd(FORECAST, TRUTH, features=__file__), "is no TorchScript file"),
    "no such weights": (lambda: verification.lpips(FORECAST, TRUTH, weights="nowhere.pth"), "there is no checkpoint file nowhere.pth"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 320


def test_weights_that_are_others(tmp_path: Path, weight_files: tuple[Path, Path, Path]) -> None:
    with pytest.raises(WxlabError, match=r"not the weights of LPIPS on VGG-16: missing weights.0.weight"):
        load_lpips(weight_files[0])
    assert isinstance(load_lpips(weight_files[:2]), LPIPS)
