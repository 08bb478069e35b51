"""prepare and the store: what is written is what was asked for, and statistics come from the training split alone."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from noise import GRID, SPLITS, make, times_of

from wxlab.errors import WxlabError
from wxlab.forcings import compute, year_fraction
from wxlab.grids import Grid, Regridder, grid_of
from wxlab.splits import find_runs, parse_time, regular_step, resolve_splits
from wxlab.store import Store, dataset_channels, open_store, prepare, stack, unstack


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return make()


@pytest.fixture(scope="module")
def store(data: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("store") / "daily.zarr"
    path = prepare(
        data,
        out,
        variables=["2m_temperature", "geopotential", "total_precipitation_24hr"],
        levels=[500, 850],
        splits=SPLITS,
        static=["land_sea_mask"],
        forcing=["toa_incident_solar_radiation", "year_progress_sin"],
        normalisation={"total_precipitation_24hr": {"kind": "log", "epsilon": 1e-3}, "geopotential": "minmax"},
        chunk_bytes=100 * 4 * 4 * 8 * 16,
    )
    return open_store(path)


# --- channels


def test_channels_become_an_axis_and_come_back(data: xr.Dataset) -> None:
    channels = dataset_channels(data, ["geopotential", "2m_temperature"], [850, 500])
    assert channels == ("geopotential_850", "geopotential_500", "2m_temperature")
    array = stack(data, channels)
    assert array.dims == ("time", "channel", "latitude", "longitude")
    back = unstack(array)
    xr.testing.assert_identical(back["geopotential"].drop_attrs(), data["geopotential"].sel(level=[500, 850]).drop_attrs())
    np.testing.assert_array_equal(back["2m_temperature"].values, data["2m_temperature"].values)


def test_unstack_with_leading_axes_and_unequal_levels() -> None:
    names = ["geopotential_500", "temperature_850", "total_precipitation_6hr", "digit"]
    array = xr.DataArray(np.random.default_rng(0).normal(size=(2, 3, 4, 4, 5)), dims=("time", "prediction_timedelta", "channel", "y", "x"))
    out = unstack(array.assign_coords(channel=names))
    assert out["geopotential"].dims == ("time", "prediction_timedelta", "level", "y", "x")
    assert out["level"].values.tolist() == [500, 850] and np.isnan(out["geopotential"].sel(level=850)).all()
    np.testing.assert_array_equal(out["temperature"].sel(level=850), array[:, :, 1])
    assert set(out.data_vars) == {"geopotential", "temperature", "total_precipitation_6hr", "digit"}


def test_all_that_varies_in_time_is_a_channel_unless_named(data: xr.Dataset) -> None:
    assert dataset_channels(data) == (
        "2m_temperature",
        "geopotential_500",
        "geopotential_700",
        "geopotential_850",
        "total_precipitation_24hr",
    )
    assert dataset_channels(data, ["geopotential_700"]) == ("geopotential_700",)
    assert dataset_channels(data, ["geopotential"], 850) == ("geopotential_850",)


# --- what is written


def test_states_are_the_source_bit_by_bit(store: Store, data: xr.Dataset) -> None:
    assert store.channels == ("2m_temperature", "geopotential_500", "geopotential_850", "total_precipitation_24hr")
    np.testing.assert_array_equal(store.read(0, len(store)), stack(data, store.channels).values)
    store.verify_checksum()


def test_the_store_is_plain_zarr(store: Store, data: xr.Dataset) -> None:
    plain = xr.open_zarr(store.path, consolidated=False)
    assert plain["state"].dims == ("time", "channel", "latitude", "longitude") and plain["state"].dtype == np.float32
    np.testing.assert_array_equal(plain["time"].values, data["time"].values)
    np.testing.assert_array_equal(plain["state"][-1, 0].values, data["2m_temperature"][-1].values)


def test_axes_step_and_splits(store: Store) -> None:
    assert store.step == 86400 and store.grid == GRID and store.segments == [(0, 730)] and len(store) == 730
    assert store.splits == {"train": [(0, 365)], "validation": [(365, 455)], "test": [(455, 730)]}


def test_statistics_are_those_of_the_training_split_only(store: Store, data: xr.Dataset) -> None:
    train = stack(data, store.channels).values[:365].astype(np.float64)
    np.testing.assert_allclose(store.mean, train.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(store.std, train.std((0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(store.tendency_std, np.diff(train, axis=0).std((0, 2, 3)), rtol=1e-10)


def test_later_data_change_no_statistic(data: xr.Dataset, tmp_path: Path) -> None:
    other = data.copy(deep=True)
    other["2m_temperature"][365:] += 50
    pair = [
        open_store(prepare(d, tmp_path / f"{i}.zarr", variables=["2m_temperature"], splits=SPLITS)) for i, d in enumerate((data, other))
    ]
    assert pair[0].attrs["normaliser"] == pair[1].attrs["normaliser"] and pair[0].attrs["checksum"] != pair[1].attrs["checksum"]
    np.testing.assert_array_equal(*(store.climatology().at(data["time"].values[400:410]) for store in pair))


def test_tendencies_stop_at_gaps(tmp_path: Path) -> None:
    axis = np.concatenate([times_of(20), times_of(20, start="2003-01-01")])
    data = make(axis)
    data["2m_temperature"][20:] += 1000
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"], splits={"train": ["2001", "2003"]}))
    assert store.tendency_std[0] < 3 < 400 < store.std[0] and store.segments == [(0, 20), (20, 40)]


def test_climatology_finds_harmonics_exactly(tmp_path: Path) -> None:
    axis = times_of(4 * 365 * 2, hours=6)
    phase, hour = 2 * np.pi * year_fraction(axis), (axis.astype("datetime64[h]").astype(int) % 24) / 24 * 2 * np.pi
    signal = 280 + 10 * np.cos(phase) + 3 * np.sin(2 * phase) + 5 * np.sin(hour) + 2 * np.sin(hour) * np.cos(phase)
    field = np.broadcast_to(signal[:, None, None], (len(axis), 4, 8)).astype(np.float32)
    grid = Grid.regular(4, 8)
    data = xr.Dataset(
        {"2m_temperature": (("time", "latitude", "longitude"), field)},
        coords={"time": axis, "latitude": list(grid.y), "longitude": list(grid.x)},
    )
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"]))
    assert store.attrs["climatology"] == {"hours": [0, 21600, 43200, 64800], "harmonics": 2, "note": ""}
    unseen = np.flatnonzero(axis >= np.datetime64("2002-09-01"))
    np.testing.assert_allclose(store.climatology().at(axis[unseen])[:, 0, 0, 0], signal[unseen], atol=2e-3)
    between = np.datetime64("2002-01-01T03")  # half-way between two hours
    near = store.climatology().at([np.datetime64("2002-01-01T00"), np.datetime64("2002-01-01T06")]).mean(0)
    np.testing.assert_allclose(store.climatology().at([between])[0], near, atol=0.02)
    out = store.climatology().dataset(axis[:2])
    assert out["2m_temperature"].dims == ("time", "latitude", "longitude")


@pytest.mark.parametrize(
    ("count", "hours", "harmonics", "slots"), [(60, 24, 0, 1), (300, 24, 1, 1), (744, 1, 0, 24), (9, 8, 0, 3), (5, 7, 0, 1), (1, 24, 0, 1)]
)
def test_climatology_has_no_more_terms_than_the_data_determine(tmp_path: Path, count: int, hours: int, harmonics: int, slots: int) -> None:
    data = make(times_of(count, hours), Grid.regular(4, 8))
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"], splits={"train": ["2001", "2001"]}))
    made = store.attrs["climatology"]
    assert (made["harmonics"], len(made["hours"])) == (harmonics, slots) and "of 2 harmonics" in made["note"]
    assert np.isfinite(store.climatology().at(data["time"].values)).all()


def test_dataset_is_lazy_physical_and_cut_by_split(store: Store, data: xr.Dataset) -> None:
    out = store.dataset("test")
    assert out["geopotential"].chunks is not None and out.attrs["licence"] == "CC0"
    np.testing.assert_array_equal(out["time"].values, data["time"].values[455:])
    np.testing.assert_array_equal(out["geopotential"].sel(level=850).values, data["geopotential"].sel(level=850).values[455:])
    np.testing.assert_array_equal(out["land_sea_mask"].values, data["land_sea_mask"].values)
    chosen = data["time"].values[[3, 700, 20]]
    np.testing.assert_array_equal(store.dataset(times=chosen)["2m_temperature"].values, data["2m_temperature"].sel(time=chosen).values)
    assert store.dataset()["segment"].values.tolist() == [0] * 730


def test_opening_reads_no_states(store: Store) -> None:
    start = time.process_time()
    opened = open_store(store.path)
    assert time.process_time() - start < 0.5 and not opened.frames._maps
    assert open_store(opened) is opened


def test_forcing_is_stored_and_normalised(store: Store) -> None:
    assert store.forcing == ("toa_incident_solar_radiation", "year_progress_sin") and store.forcing_frames is not None
    expected = compute(store.forcing, store.times, store.grid)
    np.testing.assert_array_equal(store.forcing_frames.read(0, len(store)), expected)
    normal = store.normaliser.normalise(torch.from_numpy(expected[:365]), store.forcing)
    assert abs(float(normal[:, 0].mean())) < 1e-4 and float(normal[:, 0].std()) == pytest.approx(1, abs=1e-3)
    assert store.normaliser.transforms["year_progress_sin"].kind == "none"


def test_regridding_in_prepare_is_regridding(data: xr.Dataset, tmp_path: Path) -> None:
    store = open_store(
        prepare(data, tmp_path / "s.zarr", variables=["geopotential"], levels=[500], grid="4x8", static=["land_sea_mask"], splits=SPLITS)
    )
    move = Regridder(GRID, Grid.regular(4, 8))
    np.testing.assert_allclose(store.read(0, 5)[:, 0], move(data["geopotential"].sel(level=500).values[:5]), rtol=1e-6)
    np.testing.assert_allclose(store.static_fields[0], move(data["land_sea_mask"].values), rtol=1e-5, atol=1e-6)


def test_method_by_variable_and_crop(data: xr.Dataset, tmp_path: Path) -> None:
    store = open_store(
        prepare(
            data,
            tmp_path / "s.zarr",
            variables=["2m_temperature", "total_precipitation_24hr"],
            grid=(13, 24),
            multiples=(4, 8),
            method={"total_precipitation_24hr": "conservative"},
            splits=SPLITS,
        )
    )
    assert store.grid.shape == (12, 24)
    first = [Regridder(GRID, store.grid, kind) for kind in ("bilinear", "conservative")]  # type: ignore[arg-type]
    np.testing.assert_allclose(store.read(0, 1)[0, 0], first[0](data["2m_temperature"].values[0]), rtol=1e-6)
    np.testing.assert_allclose(store.read(0, 1)[0, 1], first[1](data["total_precipitation_24hr"].values[0]), rtol=1e-5, atol=1e-9)
    cropped = open_store(prepare(data, tmp_path / "c.zarr", variables=["2m_temperature"], multiples=(3, 5), splits=SPLITS))
    assert cropped.grid.shape == (6, 15) and cropped.grid.y == GRID.y[1:7]


def test_time_is_cut_and_thinned(tmp_path: Path) -> None:
    data = make(times_of(200, hours=3), Grid.regular(4, 8))
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"], time=["2001-01-03", "2001-01-10", 12]))
    assert store.step == 43200 and len(store) == 16 and store.times[0] == parse_time("2001-01-03")


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_schedulers_and_blocks_make_no_difference(data: xr.Dataset, store: Store, tmp_path: Path, scheduler: str) -> None:
    names = ["2m_temperature", "geopotential_500", "geopotential_850", "total_precipitation_24hr"]
    size = 8 * 16 * 4 * 4
    one = open_store(prepare(data, tmp_path / "a.zarr", variables=names, splits=SPLITS, scheduler=scheduler, chunk_bytes=37 * size))
    assert one.frames.chunk == 37 and one.frames.file(19).exists()
    np.testing.assert_array_equal(one.read(30, 300), store.read(30, 300))
    np.testing.assert_array_equal(one.mean, store.mean)


def test_a_dask_cluster_prepares(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    data = make(times_of(40), Grid.regular(4, 8))
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        path = prepare(
            data, tmp_path / "s.zarr", variables=["2m_temperature"], scheduler=cluster.scheduler_address, chunk_bytes=10 * 4 * 32
        )
    np.testing.assert_array_equal(open_store(path).read(0, 40)[:, 0], data["2m_temperature"].values)


def test_same_request_is_done_already_and_another_is_refused(data: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    prepare(data, out, variables=["2m_temperature"], splits=SPLITS)
    made = out.stat().st_mtime_ns
    assert prepare(data, out, variables=["2m_temperature"], splits=SPLITS) == out and out.stat().st_mtime_ns == made
    with pytest.raises(WxlabError, match=r"they differ in.* channels.*overwrite=True"):
        prepare(data, out, variables=["geopotential"], splits=SPLITS)
    prepare(data, out, variables=["geopotential"], splits=SPLITS, overwrite=True)
    assert open_store(out).channels[0] == "geopotential_500"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr"]  # nothing is left beside it


def test_a_failed_run_goes_on_where_it_stopped(data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wxlab.preparation.blocks import Blocks

    done: list[int] = []
    write = Blocks.write

    def failing(self: Blocks, index: int) -> None:
        if index == 5 and not monkey["healed"]:
            raise OSError("disk full")
        before = (self.work / ".journal" / f"block-{index:06d}").exists()
        write(self, index)
        if not before:
            done.append(index)

    monkey = {"healed": False}
    monkeypatch.setattr(Blocks, "write", failing)
    request: dict[str, Any] = {"variables": ["2m_temperature"], "splits": SPLITS, "chunk_bytes": 100 * 4 * 128, "scheduler": "synchronous"}
    with pytest.raises(OSError, match="disk full"):
        prepare(data, tmp_path / "s.zarr", **request)
    assert done == [0, 1, 2, 3, 4] and not (tmp_path / "s.zarr").exists()
    with pytest.raises(WxlabError, match="no store at"):
        open_store(tmp_path / "s.zarr")
    with pytest.raises(WxlabError, match="is not a store"):
        open_store(tmp_path / ".s.zarr.preparing.tmp")
    monkey["healed"] = True
    prepare(data, tmp_path / "s.zarr", **request)
    assert done == [0, 1, 2, 3, 4, 5, 6, 7]
    other = {**request, "variables": ["geopotential_500"]}
    done.clear()
    prepare(data, tmp_path / "other.zarr", **other)
    assert done == list(range(8))


def test_two_at_once_make_one_store(data: xr.Dataset, tmp_path: Path) -> None:
    def make_one(_: int) -> Path:
        return prepare(
            data, tmp_path / "s.zarr", variables=["2m_temperature"], splits=SPLITS, chunk_bytes=9 * 4 * 128, scheduler="synchronous"
        )

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(make_one, range(3))) == {tmp_path / "s.zarr"}
    open_store(tmp_path / "s.zarr").verify_checksum()
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


# --- missing values, gaps, segments


def with_gaps() -> xr.Dataset:
    data = make(times_of(60), Grid.regular(4, 8))
    data["2m_temperature"][:, 0, :3] = np.nan  # never observed
    data["2m_temperature"][7] = np.nan  # a whole time
    return data


def test_missing_values_are_reported(tmp_path: Path) -> None:
    store = open_store(
        prepare(with_gaps(), tmp_path / "s.zarr", variables=["2m_temperature", "geopotential_500"], nan={"2m_temperature": "mask"})
    )
    report = store.attrs["missing"]
    assert report["share"] == {"2m_temperature": pytest.approx((59 * 3 + 32) / (60 * 32))} and store.missing == report["share"]
    assert report["never_observed"] == {"2m_temperature": 3} and report["times_without"] == {"2m_temperature": ["2001-01-08T00:00"]}
    climatology = store.climatology().at(store.times)
    assert np.isnan(climatology[:, 0]).sum() == 3 * 60 and np.isfinite(climatology[:, 1]).all()
    observed = with_gaps()["2m_temperature"].values[:42].astype(np.float64)
    assert store.mean[0] == pytest.approx(np.nanmean(observed), rel=1e-12) and store.std[0] == pytest.approx(np.nanstd(observed), rel=1e-9)


def test_climatology_leaves_missing_values_out(tmp_path: Path) -> None:
    data = make(grid=Grid.regular(4, 8))
    holes = data.copy(deep=True)
    holes["2m_temperature"].values[np.random.default_rng(3).random(holes["2m_temperature"].shape) < 0.1] = np.nan
    stores = [
        open_store(prepare(d, tmp_path / f"{i}.zarr", variables=["2m_temperature"], nan="mask", splits=SPLITS))
        for i, d in enumerate((data, holes))
    ]
    full, part = (store.climatology().at(data["time"].values) for store in stores)
    assert np.abs(full - part).max() < 0.5 and np.abs(full - part).max() > 0  # of a yearly cycle of 20


def test_irregular_times_are_runs_and_said_so(tmp_path: Path) -> None:
    hours = np.cumsum([0, 7, 7, 7, 8, 7, 9, 7, 7, 8])
    data = make(np.datetime64("2026-03-25", "ns") + hours * np.timedelta64(1, "h"), Grid.regular(4, 8))
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"], splits={"train": ["2026", "2026"]}))
    assert store.step == 7 * 3600 and store.segments == [(0, 4), (4, 6), (6, 9), (9, 10)]
    assert store.attrs["missing"]["note"].startswith("3 of 9 steps are not 7 h") and len(store.attrs["missing"]["gaps"]) == 3


def test_given_segments_and_gaps_both_cut() -> None:
    times = np.array([0, 1, 2, 3, 6, 7, 8]) * 3600
    assert regular_step(times) == 3600
    assert find_runs(times, 3600, np.array([5, 5, 9, 9, 9, 9, 9])).tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_splits_by_segment(tmp_path: Path) -> None:
    data = make(times_of(60), Grid.regular(4, 8)).assign_coords(segment=("time", np.repeat([10, 20, 30], 20)))
    data.attrs["splits"] = json.dumps({"train": {"segments": [10, 30]}, "test": {"segments": [20]}})
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"]))
    assert store.splits == {"train": [(0, 20), (40, 60)], "test": [(20, 40)]} and store.segments == [(0, 20), (20, 40), (40, 60)]


def test_splits_by_default_are_shares_in_order() -> None:
    assert resolve_splits(None, np.arange(100), np.zeros(100)) == {"train": [(0, 70)], "validation": [(70, 85)], "test": [(85, 100)]}


def test_dates_end_with_their_last_second() -> None:
    assert parse_time("2001-12-31", end=True) == parse_time("2002-01-01") - 1
    assert parse_time("2001", end=True) == parse_time("2002-01-01") - 1
    assert parse_time("2001-12-31T18", end=True) == parse_time("2001-12-31 18:00Z")


@pytest.mark.real_data
def test_real_data_with_traps(real_catalog: Path, tmp_path: Path) -> None:
    storm = open_store(prepare("storm_1996", tmp_path / "storm.zarr", nan="mask", catalog=real_catalog))
    report = storm.attrs["missing"]
    assert sum(len(times) for times in report["times_without"].values()) == 4
    assert all(count > 0 for count in report["never_observed"].values())
    week = open_store(prepare("era5_sample_1deg", tmp_path / "week.zarr", grid="30x60", catalog=real_catalog))
    assert len(week.segments) > 1 and "not 7 h" in week.attrs["missing"]["note"]
    atlantic = open_store(prepare("ncep_north_atlantic", tmp_path / "atlantic.zarr", multiples=(16, 32), catalog=real_catalog))
    assert atlantic.grid.shape == (16, 32) and np.allclose(np.diff(atlantic.grid.x), 2.5)
    assert atlantic.splits["test"][0][1] == len(atlantic) == 3652
    assert grid_of(atlantic.dataset("test")) == atlantic.grid


def test_a_source_s_own_segments_shrink_with_the_times_asked_for() -> None:
    from wxlab.splits import present

    definition = {"train": {"segments": [0, 1]}, "validation": {"segments": [2]}, "test": ["2001-01-01", "2001-02-01"]}
    assert present(definition, np.array([1, 1, 3])) == {"train": {"segments": [1]}, "test": ["2001-01-01", "2001-02-01"]}
