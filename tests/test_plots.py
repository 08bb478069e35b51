"""Figures: right cells in the right place, right words and units, right number of panels, one sentence when something is not there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from PIL import Image

from wxlab import plots
from wxlab.errors import WxlabError
from wxlab.plots import style
from wxlab.plots.coastline import COASTLINE_FILE, coastline, split_at
from wxlab.plots.fields import select_field
from wxlab.plots.geometry import area_rmse, cell_edges, field_cells, latitude_edges
from wxlab.plots.losses import loss_curves, read_metrics, smooth

TIMES = pd.date_range("2020-01-01", periods=12, freq="6h").values
LEADS = np.array([6, 12, 18, 24]) * np.timedelta64(1, "h").astype("timedelta64[ns]")


def grid_field(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """A smooth field that is the same however the grid is ordered."""
    return np.cos(np.radians(latitude))[:, None] * np.cos(np.radians(2 * longitude))[None, :]


def plane(latitude: Any, longitude: Any, values: np.ndarray) -> xr.DataArray:
    coordinates = {"latitude": np.asarray(latitude, float), "longitude": np.asarray(longitude, float)}
    return xr.DataArray(values, dims=("latitude", "longitude"), coords=coordinates)


def states(latitude: np.ndarray, longitude: np.ndarray, times: np.ndarray = TIMES) -> xr.Dataset:
    """A made-up atmosphere: t2m, msl, geopotential on two levels, 6-hour precipitation, a land-sea mask."""
    base = grid_field(latitude, longitude)
    course = np.sin(np.arange(len(times)))[:, None, None] + base
    coordinates = {"time": times, "level": [500, 850], "latitude": latitude, "longitude": longitude}
    planes = ("time", "latitude", "longitude")
    levels = np.stack([course + 55000, course + 15000], axis=1).astype(np.float32)
    return xr.Dataset(
        {
            "2m_temperature": (planes, (280 + 20 * course).astype(np.float32)),
            "mean_sea_level_pressure": (planes, (101300 + 1000 * course).astype(np.float32)),
            "geopotential": (("time", "level", "latitude", "longitude"), levels),
            "total_precipitation_6hr": (planes, (0.002 * np.abs(course)).astype(np.float32)),
            "land_sea_mask": (("latitude", "longitude"), (base > 0).astype(np.float32)),
        },
        coords=coordinates,
    )


def world(rows: int = 33, columns: int = 64) -> xr.Dataset:
    """Global, with poles, 0-360."""
    return states(np.linspace(-90, 90, rows), np.arange(columns) * 360 / columns)


def forecast_of(truth: xr.Dataset, members: int = 0) -> xr.Dataset:
    """A forecast whose error grows with lead time: 1 K an hour in t2m."""
    starts = truth["time"].values[:3]
    varying = truth.drop_vars("land_sea_mask", errors="ignore")
    blocks = []
    for lead in LEADS:
        block = varying.sel(time=starts + lead).assign_coords(time=starts)
        blocks.append(block + float(lead / np.timedelta64(1, "h")))
    forecast = xr.concat(blocks, dim=pd.Index(LEADS, name="prediction_timedelta")).transpose("time", "prediction_timedelta", ...)
    if members:
        forecast = xr.concat([forecast + number for number in range(members)], dim=pd.Index(range(members), name="number"))
    return forecast


def radar() -> xr.Dataset:
    """A rain field on a plain grid in metres, rows from the north, with a corner never observed."""
    rain = np.abs(np.random.default_rng(0).standard_normal((5, 20, 30))) * 3
    rain[:, :5, :5] = np.nan
    times = pd.date_range("2020-06-01", periods=5, freq="5min").values
    coordinates = {"time": times, "y": np.arange(20)[::-1] * 1000.0, "x": np.arange(30) * 1000.0}
    return xr.Dataset({"rain_rate": (("time", "y", "x"), rain, {"units": "mm/h"})}, coords=coordinates)


def drawn(figure: Figure) -> list[Any]:
    """Axes that hold a field, after a full rendering (which must not warn)."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    maps = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    return [axes for axes in maps if any(isinstance(item, QuadMesh) for item in axes.collections)]


def colour_bars(figure: Figure) -> list[str]:
    """Words on the colour bars."""
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    return [axes.get_xlabel() or axes.get_ylabel() for axes in bars]


def mesh_of(axes: Any) -> QuadMesh:
    return next(item for item in axes.collections if isinstance(item, QuadMesh))


def coast_of(axes: Any) -> Any:
    return next(line for line in axes.lines if line.get_gid() == "coastline")


# --- coastline ---


@pytest.mark.parametrize("west", [-180.0, 0.0, -30.0, 95.5])
def test_coastlines_never_jump_over_the_map(west: float) -> None:
    lines = coastline(west)
    assert len(lines) > 100
    for line in lines:
        assert np.abs(np.diff(line[:, 0])).max() < 180
        assert line[:, 0].min() >= west - 1e-9 and line[:, 0].max() <= west + 360 + 1e-9
        assert np.abs(line[:, 1]).max() <= 90


def test_the_coastline_is_the_earths() -> None:
    """Length in 0-360 and -180..180 agree; Land's End, Cape Horn and Cape Agulhas lie on it to a degree."""

    def length(lines: Any) -> float:
        return sum(float(np.hypot(np.diff(line[:, 0]) * np.cos(np.radians(line[1:, 1])), np.diff(line[:, 1])).sum()) for line in lines)

    assert length(coastline(0.0)) == pytest.approx(length(coastline(-180.0)), rel=1e-4)
    points = np.concatenate(coastline(-180.0))
    for longitude, latitude in ((-5.7, 50.1), (-67.3, -55.9), (20.0, -34.8), (145.0, -38.0)):
        assert np.hypot(points[:, 0] - longitude, points[:, 1] - latitude).min() < 1.0


def test_the_coastline_file_is_small_and_says_where_it_comes_from() -> None:
    assert COASTLINE_FILE.stat().st_size < 200_000
    with np.load(COASTLINE_FILE) as stored:
        assert "Natural Earth" in str(stored["source"])
        assert "public domain" in str(stored["licence"])


def test_a_line_over_the_dateline_is_cut_at_the_interpolated_latitude() -> None:
    first, second = split_at([np.array([[170.0, 0.0], [-170.0, 10.0]])], west=-180.0)
    np.testing.assert_allclose(first, [[170, 0], [180, 5]])
    np.testing.assert_allclose(second, [[-180, 5], [-170, 10]])
    (whole,) = split_at([np.array([[170.0, 0.0], [-170.0, 10.0]])], west=0.0)
    np.testing.assert_allclose(whole, [[170, 0], [190, 10]])


def test_the_maker_decodes_quantised_arcs_and_drops_the_seam() -> None:
    path = Path(__file__).parent.parent / "tools" / "make_coastline.py"
    spec = importlib.util.spec_from_file_location("make_coastline", path)
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    transform = {"scale": [10.0, 1.0], "translate": [-180.0, -90.0]}
    arcs = [[[1, 100], [-1, 1], [0, 2], [2, -1]]]  # to the dateline, along it, and away
    decoded = maker.decode_arcs({"transform": transform, "arcs": arcs})
    np.testing.assert_allclose(decoded[0], [[-170, 10], [-180, 11], [-180, 13], [-160, 12]])
    first, second = maker.without_map_edge(decoded)
    np.testing.assert_allclose(first, [[-170, 10], [-180, 11]])
    np.testing.assert_allclose(second, [[-180, 13], [-160, 12]])


# --- cells ---


def test_edges_lie_half_way_and_end_at_the_poles() -> None:
    np.testing.assert_allclose(cell_edges(np.array([1.0, 2.0, 4.0])), [0.5, 1.5, 3.0, 5.0])
    np.testing.assert_allclose(latitude_edges(np.array([-90.0, -45.0, 0.0, 45.0, 90.0])), [-90, -67.5, -22.5, 22.5, 67.5, 90])
    gauss = latitude_edges(np.array([-85.76, -80.27, 80.27, 85.76]))
    assert (gauss[0], gauss[-1]) == (-90, 90)
    np.testing.assert_allclose(latitude_edges(np.array([40.0, 41.0])), [39.5, 40.5, 41.5])


@pytest.mark.parametrize("central", [0.0, 180.0, 10.0])
@pytest.mark.parametrize("start", [0.0, -180.0])
@pytest.mark.parametrize("descending", [False, True])
def test_global_cells_fill_the_map_and_hold_the_right_values(central: float, start: float, descending: bool) -> None:
    latitude, longitude = np.linspace(-90, 90, 19), start + np.arange(36) * 10.0
    latitude = latitude[::-1] if descending else latitude
    cells = field_cells(plane(latitude, longitude, grid_field(latitude, longitude)), central)
    assert cells.kind == "global"
    assert (cells.x[0], cells.x[-1], cells.y[0], cells.y[-1]) == (central - 180, central + 180, -90, 90)
    assert np.all(np.diff(cells.x) > 0) and np.diff(cells.x).max() == pytest.approx(10)
    for longitude_here in (-176.0, -3.0, 0.0, 88.0, 179.0):
        place = (longitude_here - (central - 180)) % 360 + central - 180
        column = int(np.searchsorted(cells.x, place, side="right")) - 1
        nearest = round(longitude_here / 10) * 10
        assert cells.values[9, column] == pytest.approx(np.cos(np.radians(2 * nearest)))


def test_a_repeated_cyclic_column_counts_once() -> None:
    longitude = np.arange(37) * 10.0
    field = plane([-1, 0, 1], longitude, np.ones((3, 37)))
    assert field_cells(field).kind == "global"
    assert field_cells(field).x[-1] == 180


def test_a_region_across_greenwich_is_drawn_in_one_piece() -> None:
    longitude = np.sort(np.arange(-10, 2.1, 1.0) % 360)  # as 0..2, 350..359
    cells = field_cells(plane([50, 51, 52, 53], longitude, np.cos(np.radians(longitude))[None] * np.ones((4, 1))))
    assert cells.kind == "region"
    assert (cells.x[0], cells.x[-1]) == (-10.5, 2.5)
    np.testing.assert_allclose(cells.values[0], np.cos(np.radians(np.arange(-10, 3))))


def test_a_region_across_the_dateline_is_drawn_in_one_piece() -> None:
    cells = field_cells(plane([0, 1, 2], np.arange(170, 191), np.ones((3, 21))))
    assert cells.x[-1] - cells.x[0] == pytest.approx(21)


def test_area_rmse_is_weighted_by_area_and_leaves_out_what_is_missing() -> None:
    latitude = np.linspace(-89.5, 89.5, 180)
    error = np.where(np.abs(latitude) > 30, 2.0, 0.0)  # half the sphere
    field = plane(latitude, np.arange(8) * 45, np.tile(error[:, None], (1, 8)))
    assert area_rmse(field) == pytest.approx(np.sqrt(2.0), rel=1e-3)
    assert area_rmse(field.where(field == 2.0)) == pytest.approx(2.0)
    assert np.isnan(area_rmse(field * np.nan))


# --- words, units, colours ---


@pytest.mark.parametrize(
    ("variable", "units", "label", "scale"),
    [
        ("2m_temperature", None, "2 m temperature [K]", 1),
        ("mean_sea_level_pressure", "Pa", "Mean sea-level pressure [hPa]", 0.01),
        ("mean_sea_level_pressure", "hPa", "Mean sea-level pressure [hPa]", 1),
        ("total_precipitation_6hr", None, "Precipitation in 6 h [mm]", 1000),
        ("total_precipitation_24hr", "mm", "Precipitation in 24 h [mm]", 1),
        ("specific_humidity", "kg kg**-1", "Specific humidity [g/kg]", 1000),
        ("geopotential", "m**2 s**-2", "Geopotential [m²/s²]", 1),
        ("land_sea_mask", "1", "Land fraction", 1),
        ("made_up_thing", "furlong", "Made up thing [furlong]", 1),
        ("made_up_thing", None, "Made up thing", 1),
    ],
)
def test_every_variable_has_a_name_and_a_unit(variable: str, units: str | None, label: str, scale: float) -> None:
    shown = style.look(variable, units)
    assert shown.label == label
    assert shown.scale == pytest.approx(scale)


def test_short_names_of_channels() -> None:
    codes = [style.channel_code(name) for name in ("geopotential_500", "2m_temperature", "total_precipitation_6hr", "digit")]
    assert codes == ["z500", "t2m", "tp6h", "digit"]


def _lightness(name: str) -> np.ndarray:
    """CIE 1976 lightness along a colour map."""
    rgb = matplotlib.colormaps[name](np.linspace(0, 1, 33))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_colour_maps_run_evenly_in_lightness() -> None:
    looks = style._LOOKS.values()
    for name in {look.colours for look in looks if look.kind == "plain"}:
        steps = np.diff(_lightness(name))
        assert np.all(steps > 0) or np.all(steps < 0), name
    for name in {style.DIFFERENCE_MAP} | {look.colours for look in looks if look.kind == "signed"}:
        lightness = _lightness(name)
        assert np.all(np.diff(lightness[:16]) > 0) and np.all(np.diff(lightness[17:]) < 0), name
        assert abs(lightness[0] - lightness[-1]) < 15, name


def test_colour_limits_ignore_odd_points_and_missing_values() -> None:
    field = np.append(np.linspace(0, 1, 10_000), [1e6, np.nan])
    low, high = style.colour_limits([field], signed=False)
    assert 0 <= low < 0.02 and 0.98 < high < 1.02
    assert style.colour_limits([np.array([-3.0, 1.0])], signed=True, robust=0) == (-3.0, 3.0)
    assert style.colour_limits([np.full(4, np.nan)], signed=True) == (-1.0, 1.0)
    low, high = style.colour_limits([np.full(9, 5.0)], signed=False)
    assert low < 5 < high


# --- maps ---


@pytest.mark.parametrize("projection", [None, "plain", "orthographic", "north_polar", "mollweide"])
def test_a_global_map_on_every_projection(projection: str | None) -> None:
    figure = plots.plot_map(world(), "2m_temperature", projection=projection, time="2020-01-01T06")
    (axes,) = drawn(figure)
    assert axes.get_title(loc="left") == "2 m temperature · 2020-01-01 06 UTC"
    assert colour_bars(figure) == ["2 m temperature [K]"]
    assert hasattr(axes, "projection") == (projection != "plain")
    assert plt.get_fignums() == []


def test_a_map_shows_display_units_and_the_level() -> None:
    data = world()
    figure = plots.plot_map(data, "mean_sea_level_pressure")
    values = mesh_of(drawn(figure)[0]).get_array()
    expected = data["mean_sea_level_pressure"][0].values / 100
    assert float(values.max()) == pytest.approx(float(expected.max()), rel=1e-6)
    (axes,) = drawn(plots.plot_map(data, "geopotential_850"))
    assert axes.get_title(loc="left").startswith("850 hPa geopotential")
    (same,) = drawn(plots.plot_map(data, "geopotential", level=850))
    np.testing.assert_array_equal(mesh_of(axes).get_array(), mesh_of(same).get_array())


def test_latitudes_may_descend() -> None:
    data = world()
    turned = data.isel(latitude=slice(None, None, -1))
    one, other = (mesh_of(drawn(plots.plot_map(field, "2m_temperature"))[0]).get_array() for field in (data, turned))
    np.testing.assert_array_equal(one, other)


def test_a_regional_map_is_limited_to_its_region() -> None:
    data = states(np.arange(60.0, 39.0, -1.0), np.arange(340.0, 361.0) % 360)
    (axes,) = drawn(plots.plot_map(data, "2m_temperature"))
    assert axes.get_xlim() == (-20.5, 0.5)
    assert axes.get_ylim() == (39.5, 60.5)
    coast = coast_of(axes)
    inside = (np.abs(coast.get_xdata() + 10) < 10) & (np.abs(coast.get_ydata() - 50) < 10)
    assert inside.sum() > 10  # Ireland, Great Britain and Iberia
    labels = [text.get_text() for text in axes.get_xticklabels() if axes.get_xlim()[0] <= text.get_position()[0] <= axes.get_xlim()[1]]
    assert labels == ["20°W", "15°W", "10°W", "5°W", "0°"]
    assert drawn(plots.plot_map(data, "2m_temperature", projection="lambert"))


def test_missing_regions_are_masked_not_drawn() -> None:
    data = world()
    data["2m_temperature"] = data["2m_temperature"].where(data["latitude"] > 0)
    for projection in (None, "plain"):
        values = mesh_of(drawn(plots.plot_map(data, "2m_temperature", projection=projection))[0]).get_array()
        assert 0.45 < np.ma.getmaskarray(values).mean() < 0.55
    assert drawn(plots.plot_map(data * np.nan, "2m_temperature"))


def test_radar_is_drawn_in_kilometres_north_up() -> None:
    figure = plots.plot_map(radar(), "rain_rate", time=2)
    (axes,) = drawn(figure)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [km]", "y [km]")
    assert axes.get_xlim() == (-0.5, 29.5)
    values = mesh_of(axes).get_array().reshape(20, 30)
    assert np.ma.getmaskarray(values)[-5:, :5].all() and np.ma.getmaskarray(values).sum() == 25
    assert colour_bars(figure) == ["Rain rate [mm/h]"]
    assert axes.get_title(loc="left").endswith("2020-06-01 00:10 UTC")


def test_several_maps_have_a_colour_bar_each() -> None:
    figure = plots.plot_maps(world(), time="2020-01-02")
    assert len(drawn(figure)) == 5
    assert colour_bars(figure) == ["K", "hPa", "m²/s²", "mm", ""]
    assert len(drawn(plots.plot_maps(world(), ["geopotential_500", "geopotential_850"], projection="plain"))) == 2


def test_comparison_has_three_panels_for_each_lead_time() -> None:
    truth = world()
    figure = plots.plot_comparison(forecast_of(truth), truth, "2m_temperature", leads=[6, "24h"])
    axes = drawn(figure)
    assert len(axes) == 6
    titles = [place.get_title(loc="left") for place in axes]
    assert titles[:3] == ["Truth · 2020-01-01 06 UTC", "Forecast · + 6 h", "Difference · RMSE 6.00 K"]
    assert titles[5] == "Difference · RMSE 24.0 K"
    assert colour_bars(figure) == ["2 m temperature [K]", "Difference [K]"]
    shared = [mesh_of(place).norm for place in axes]
    assert shared[0] is shared[1] is shared[3] is shared[4]
    assert shared[2] is shared[5] and shared[2].vmin == -shared[2].vmax


def test_comparison_defaults_to_first_middle_and_last_lead() -> None:
    truth = states(np.arange(40.0, 50), np.arange(0.0, 12))
    assert len(drawn(plots.plot_comparison(forecast_of(truth, members=3), truth, "geopotential_500"))) == 9
    assert len(drawn(plots.plot_comparison(radar(), radar(), "rain_rate"))) == 3


# --- lines ---


def test_series_of_states_leaves_gaps_open() -> None:
    data = world().isel(time=[0, 1, 2, 3, 7, 8, 9])
    figure = plots.plot_series(data, "mean_sea_level_pressure", latitude=50, longitude=-10)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_ylabel() == "Mean sea-level pressure [hPa]"
    assert axes.get_title(loc="left") == "50.62°N 11.25°W"
    values = axes.lines[0].get_ydata()
    assert len(values) == 8 and np.flatnonzero(np.isnan(values)).tolist() == [4]
    expected = data["mean_sea_level_pressure"].sel(latitude=50.625, longitude=348.75).values / 100
    np.testing.assert_allclose(values[~np.isnan(values)], expected, rtol=1e-6)


def test_series_of_forecasts_beside_the_truth() -> None:
    truth = world()
    named = {"truth": truth, "model": forecast_of(truth), "ensemble": forecast_of(truth, members=5)}
    figure = plots.plot_series(named, "2m_temperature", latitude=0, longitude=0, time=[0, 2])
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(axes.lines) == 5 and len(axes.collections) == 2
    true = next(line for line in axes.lines if line.get_label() == "truth")
    assert true.get_color() == style.TRUTH_COLOUR
    assert len(true.get_xdata()) == 7  # from the first start to the end of the last forecast: 0 to 36 h
    np.testing.assert_allclose(axes.lines[0].get_ydata() - true.get_ydata()[1:5], [6, 12, 18, 24], rtol=1e-5)


SCORED = ["Mean sea-level pressure", "500 hPa geopotential", "850 hPa geopotential"]


def scores(factor: float = 1.0) -> xr.Dataset:
    """A score table: RMSE and ACC by lead time, one variable with levels."""
    coordinates = {"metric": ["rmse", "acc"], "prediction_timedelta": LEADS, "level": [500, 850]}
    flat = np.stack([np.arange(1.0, 5) * factor, 0.9 - 0.1 * np.arange(4) * factor])
    return xr.Dataset(
        {
            "mean_sea_level_pressure": (("metric", "prediction_timedelta"), flat * np.array([[100.0], [1.0]])),
            "geopotential": (("metric", "prediction_timedelta", "level"), np.stack([flat, flat], axis=-1)),
        },
        coords=coordinates,
    )


def test_scores_have_a_panel_for_each_variable_and_level() -> None:
    named = {"model": scores(0.5), "persistence": scores()}
    figure = plots.plot_scores(named, intervals={"model": (scores(0.4), scores(0.6))})
    figure.canvas.draw()
    assert [axes.get_title(loc="left") for axes in figure.axes] == SCORED
    first = figure.axes[0]
    assert first.get_ylabel() == "RMSE [hPa]" and first.get_xlabel() == "Lead time [h]"
    np.testing.assert_allclose(first.lines[0].get_xdata(), [6, 12, 18, 24])
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0.5, 1, 1.5, 2])
    assert len(first.collections) == 1 and first.lines[1].get_linestyle() == "--"
    acc = plots.plot_scores(scores(), ["geopotential_850"], metric="acc")
    assert [axes.get_ylabel() for axes in acc.axes] == ["ACC"]
    np.testing.assert_allclose(acc.axes[0].lines[0].get_ydata(), [0.9, 0.8, 0.7, 0.6])


def test_nowcasts_are_scored_in_minutes() -> None:
    table = scores().assign_coords(prediction_timedelta=LEADS / 72)
    assert plots.plot_scores(table, ["mean_sea_level_pressure"]).axes[0].get_xlabel() == "Lead time [min]"


def test_scorecard_is_blue_where_better() -> None:
    figure = plots.plot_scorecard(scores(0.5), scores())
    figure.canvas.draw()
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["-50"] * 12
    assert [text.get_text() for text in axes.get_yticklabels()] == SCORED
    image = axes.images[0]
    red, _, blue, _ = image.cmap(image.norm(-50.0))
    assert blue > red
    better = plots.plot_scorecard(scores(0.5), scores(), metric="acc").axes[0].texts
    assert [text.get_text() for text in better][:2] == ["0", "-6"]  # ACC 0.85 against 0.8: 6 % better, thus below zero


# --- losses ---


def _write_metrics(folder: Path, steps: int = 100) -> Path:
    lines = [{"step": step, "loss": 1 / (step + 1), "lr": 1e-3} for step in range(steps)]
    lines += [{"step": step, "validation": 2 / (step + 1), "seconds": 1.0} for step in range(9, steps, 10)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 100, "lo')
    return folder


def test_losses_are_read_and_drawn(tmp_path: Path) -> None:
    run = _write_metrics(tmp_path / "first")
    curves = loss_curves(read_metrics(run))
    assert sorted(curves) == ["loss", "validation"]
    assert curves["loss"][0].tolist() == list(range(100))
    figure = plots.plot_losses(run)
    figure.canvas.draw()
    assert figure.axes[0].get_yscale() == "log"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["loss", "validation"]
    several = plots.plot_losses([run, _write_metrics(tmp_path / "second", 40)])
    assert len(several.axes[0].get_legend().get_texts()) == 4


def test_a_resumed_step_counts_once_as_it_was_last() -> None:
    steps, values = loss_curves([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 1, "loss": 5.0}])["loss"]
    assert steps.tolist() == [1, 2] and values.tolist() == [5.0, 2.0]


def test_stages_follow_each_other_and_parts_of_the_loss_are_shown_once() -> None:
    lines = [{"stage": stage, "step": step, "loss": step + 10.0 * stage, "mse": step + 10.0 * stage} for stage in (0, 1) for step in (2, 4)]
    curves = loss_curves([*lines, {"stage": 1, "step": 4, "latent": 0.5, "lr": 1.0}])
    assert list(curves) == ["loss", "latent"]
    assert curves["loss"][0].tolist() == [2, 4, 6, 8] and curves["loss"][1].tolist() == [2.0, 4.0, 12.0, 14.0]
    assert curves["latent"][0].tolist() == [8]


def test_running_mean() -> None:
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0, np.nan, 5.0]), 2), [1, 2, 3, 5])


def test_live_loss_collects_without_a_screen() -> None:
    live = plots.LiveLoss()
    for step in range(5):
        live({"step": step, "loss": 1.0 / (step + 1)})
    np.testing.assert_allclose(live.figure().axes[0].lines[0].get_ydata(), 1 / np.arange(1, 6))


# --- animations ---


def test_animation_has_a_frame_for_each_lead_time(tmp_path: Path) -> None:
    truth = states(np.arange(40.0, 50), np.arange(0.0, 12))
    film = plots.animate(forecast_of(truth), "2m_temperature", truth=truth)
    assert film.frames == 4
    with Image.open(film.save(tmp_path / "film.gif")) as picture:
        assert picture.n_frames == 4
    page = film.save(tmp_path / "film.html").read_text()
    assert page.count("data:image/png;base64") == 4 and "http://" not in page.replace("http://www.w3.org", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.gif", "film.html"]
    film.draw(3)
    titles = [axes.get_title(loc="left") for axes in drawn(film.figure)]
    assert titles == ["Truth · 2020-01-02 00 UTC", "Forecast · 2020-01-01 00 UTC + 24 h"]


def test_frames_show_their_own_field_on_one_scale() -> None:
    data = world()
    film = plots.animate(data, "2m_temperature", projection="orthographic", frames=6)
    assert film.frames == 6  # every second of twelve
    (axes,) = drawn(film.figure)
    norm = mesh_of(axes).norm
    for index in (0, 5):
        film.draw(index)
        held = mesh_of(axes).get_array()
        expected = data["2m_temperature"].isel(time=2 * index)
        assert float(np.ma.max(held)) == pytest.approx(float(expected.max()), abs=1e-3)
        assert mesh_of(axes).norm is norm
    assert plots.animate(radar(), "rain_rate", time=3).frames == 2


# --- attention, overviews ---


def weights(names: list[str]) -> xr.Dataset:
    values = np.random.default_rng(0).dirichlet(np.ones(len(names)), (2, 1, 3, len(names)))
    coordinates = {"layer": [0, 1], "head": [0, 1, 2], "target": names, "source": names}
    return xr.Dataset({"attention": (("layer", "sample", "head", "target", "source"), values)}, coords=coordinates)


def test_attention_is_averaged_over_what_is_not_chosen() -> None:
    table = weights(["geopotential_500", "2m_temperature"])
    figure = plots.plot_attention(table, layer=1)
    figure.canvas.draw()
    axes = figure.axes[0]
    expected = table["attention"].sel(layer=1).mean(["sample", "head"]).values
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["500 hPa geopotential", "2 m temperature"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["z500", "t2m"]
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in expected.ravel()]
    heads = plots.plot_attention(table, panels="head")
    heads.canvas.draw()
    assert [axes.get_title(loc="left") for axes in heads.axes[:3]] == ["head 0", "head 1", "head 2"]


def test_availability_shows_gaps_and_missing_regions() -> None:
    data = world().isel(time=[0, 1, 2, 3, 4, 5, 8, 9, 10, 11])
    data["2m_temperature"] = data["2m_temperature"].where((data["latitude"] > 0) & (data["time"] != TIMES[2]))
    figure = plots.plot_availability(data)
    table, where = drawn(figure)
    shares = mesh_of(table).get_array().reshape(5, -1)
    assert np.ma.getmaskarray(shares)[:, 6:8].all() and np.ma.getmaskarray(shares).sum() == 10
    assert shares[0, 2] == 0 and shares[0, 0] == pytest.approx(100 * 16 / 33) and np.all(shares[1:, 0] == 100)
    assert where.get_title(loc="left") == "Mean over time and channels"
    assert len(drawn(plots.plot_availability(world()))) == 1


def test_histograms_and_climatology_are_in_display_units() -> None:
    figure = plots.plot_histograms(world(), ["mean_sea_level_pressure", "geopotential"])
    figure.canvas.draw()
    assert [axes.get_xlabel() for axes in figure.axes] == ["hPa", "m²/s²", "m²/s²"]
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(100)
    figure = plots.plot_climatology(world(), "mean_sea_level_pressure")
    assert len(drawn(figure)) == 1
    assert len(figure.axes[1].lines) == 3 and figure.axes[1].get_ylabel() == "Mean sea-level pressure [hPa]"


def test_normalised_channels_are_drawn_by_their_spread() -> None:
    from wxlab.store import Normaliser, Transform

    data = world()[["2m_temperature", "geopotential"]]
    normaliser = Normaliser({"2m_temperature": Transform("zscore", 280.0, 10.0), "geopotential_500": Transform("zscore", 55000.0, 1.0)})
    figure = plots.plot_normalised(data, normaliser)
    figure.canvas.draw()
    labels = {text.get_text(): place for place, text in enumerate(figure.axes[0].get_yticklabels())}
    assert set(labels) == {"2 m temperature", "500 hPa geopotential"}
    extremes = [line for line in figure.axes[0].lines if line.get_marker() == "."][labels["2 m temperature"]].get_xdata()
    expected = (data["2m_temperature"].values - 280) / 10
    np.testing.assert_allclose(extremes, [expected.min(), expected.max()], rtol=1e-4)


# --- explore ---


def test_explore_draws_the_default_view_without_a_screen() -> None:
    figure = plots.explore(world(), variable="geopotential")
    (axes,) = drawn(figure)
    assert axes.get_title(loc="left") == "500 hPa geopotential · 2020-01-01 00 UTC"
    truth = world()
    assert len(drawn(plots.explore(forecast_of(truth), truth=truth))) == 3
    (axes,) = drawn(plots.explore(forecast_of(truth, members=3), variable="2m_temperature", number="spread", lead=12))
    assert axes.get_title(loc="left").endswith("+ 12 h · ensemble spread")


def test_explore_opens_files_and_run_folders(tmp_path: Path) -> None:
    run = _write_metrics(tmp_path / "run")
    assert plots.explore(run).axes[0].get_ylabel().startswith("Loss")
    forecast_of(world(9, 16)).to_zarr(run / "forecast.zarr", consolidated=False)
    world(9, 16).to_netcdf(run / "analysis.nc", engine="netcdf4")
    (axes,) = drawn(plots.explore(run, variable="2m_temperature"))
    assert axes.get_title(loc="left").endswith("+ 24 h")
    assert drawn(plots.explore(run / "analysis.nc"))


def test_explore_opens_a_prepared_store(tmp_path: Path) -> None:
    from wxlab.store import prepare

    data = states(np.linspace(-84.375, 84.375, 16), np.arange(32) * 11.25)
    splits = {"train": ["2020-01-01", "2020-01-02"], "validation": ["2020-01-03", "2020-01-03T06"], "test": ["2020-01-03T12", "2020-01-03"]}
    path = prepare(data, tmp_path / "store.zarr", variables=["2m_temperature", "geopotential"], splits=splits)
    (axes,) = drawn(plots.explore(path, variable="geopotential", level=850, time=3))
    expected = data["geopotential"].sel(level=850).isel(time=3).values
    assert float(mesh_of(axes).get_array().max()) == pytest.approx(float(expected.max()), rel=1e-6)


def test_the_widget_redraws_what_its_sliders_choose() -> None:
    from wxlab.plots.explorer import View
    from wxlab.plots.widget import Explorer

    view = View(world(9, 16))
    widget = Explorer(view, view.first())
    before = bytes(widget.picture.value)
    assert before[1:4] == b"PNG" and sorted(widget.sliders) == ["time"]
    widget.sliders["time"].index = 3
    assert bytes(widget.picture.value) != before
    widget.variable.value = "geopotential"
    assert sorted(widget.sliders) == ["level", "time"] and widget.sliders["time"].index == 3
    widget.variable.value = "land_sea_mask"
    assert widget.sliders == {} and widget.message.value == ""


def test_in_a_kernel_figures_show_once_and_the_widget_has_a_picture() -> None:
    import nbformat
    from nbclient import NotebookClient

    sources = [
        "import numpy as np, xarray as xr, pandas as pd\nfrom wxlab import plots\n"
        "axes = {'time': pd.date_range('2020', periods=3), 'latitude': np.linspace(-80, 80, 9), 'longitude': np.arange(16) * 22.5}\n"
        "data = xr.Dataset({'2m_temperature': (tuple(axes), np.random.rand(3, 9, 16))}, coords=axes)",
        "plots.plot_map(data, '2m_temperature')",
        "plots.explore(data)",
        "live = plots.LiveLoss(seconds=60)\nfor step in range(3):\n    live({'step': step, 'loss': 1 / (step + 1)})",
        "print(live._shown)",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    shown = [[dict(output.get("data", {"text": output.get("text")})) for output in cell.outputs] for cell in book.cells]
    assert [len(outputs) for outputs in shown] == [0, 1, 1, 1, 1], shown
    assert shown[4][0]["text"] == "3\n"  # the last numbers are drawn when the cell ends
    assert "image/png" in shown[1][0] and "image/png" in shown[3][0]
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(shown[2][0])


# --- mistakes ---


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: plots.plot_map(world(), "2m_temprature"), "unknown variable '2m_temprature'; did you mean '2m_temperature'?"),
        (lambda: plots.plot_map(world(), "geopotential", level=510), "'geopotential' has no level 510 hPa; its levels are 500, 850 hPa"),
        (lambda: plots.plot_map(world(), "geopotential"), "'geopotential' lies on levels 500, 850 hPa; say which"),
        (lambda: plots.plot_map(world(), "2m_temperature", level=500), "'2m_temperature' has no levels"),
        (lambda: plots.plot_map(world(), "2m_temperature", time="2020-01-01T07"), "nearest is 2020-01-01 06 UTC"),
        (lambda: plots.plot_map(world(), "2m_temperature", time="soon"), "time='soon' is not a date"),
        (lambda: plots.plot_map(world(), "2m_temperature", time=99), "time=99 is not a position on a time axis of 12 entries"),
        (lambda: plots.plot_map(world(), "2m_temperature", lead=6), "is no forecast"),
        (lambda: plots.plot_map(world(), "land_sea_mask", time=0), "'land_sea_mask' has no time axis"),
        (lambda: plots.plot_map(world(), "2m_temperature", number=1), "has no members"),
        (lambda: plots.plot_map(world(), "2m_temperature", projection="robinsson"), "did you mean 'robinson'?"),
        (lambda: plots.plot_map(forecast_of(world()), "2m_temperature", lead=7), "has no lead time of 7 h; it has 6 h, 12 h, 18 h, 24 h"),
        (lambda: plots.plot_map(forecast_of(world()), "2m_temperature", lead="x"), "lead='x' is not a lead time"),
        (lambda: plots.plot_map(forecast_of(world(), 3), "2m_temperature", number=7), "members are 0 to 2, or 'mean' or 'spread'"),
        (lambda: plots.plot_map(world().isel(longitude=0), "2m_temperature"), "is no map"),
        (lambda: plots.plot_maps(xr.Dataset()), "there is nothing to draw"),
        (lambda: plots.plot_comparison(forecast_of(world()), world(17, 32), "2m_temperature"), "different grids (33x64 and 17x32 points)"),
        (lambda: plots.plot_comparison(forecast_of(world()), world().isel(time=[0]), "2m_temperature"), "the truth does not go with"),
        (lambda: plots.plot_series(world(), "2m_temperature", latitude=0), "needs latitude and longitude"),
        (lambda: plots.plot_series(world().sel(latitude=slice(30, 50)), "2m_temperature", latitude=60, longitude=3), "lies outside"),
        (lambda: plots.plot_scores(scores(), metric="rmsee"), "unknown metric 'rmsee'; did you mean 'rmse'?"),
        (lambda: plots.plot_scorecard(scores(), scores().isel(prediction_timedelta=[])), "share no lead time"),
        (lambda: plots.plot_losses("nowhere"), "there are no metrics at nowhere"),
        (lambda: plots.animate(world(), "land_sea_mask"), "nothing to animate"),
        (lambda: plots.animate(radar(), "rain_rate").save("film.mp4"), "ends in .gif or .html"),
        (lambda: plots.plot_attention(weights(["a", "b"]), panels="heads"), "did you mean 'head'?"),
        (lambda: plots.plot_attention(weights(["a", "b"]), layer=7), "unknown entry of layer '7'"),
        (lambda: plots.explore("nowhere"), "there is nothing at nowhere"),
        (lambda: plots.explore(world(), variable="2m_temperatur"), "did you mean '2m_temperature'?"),
        (lambda: plots.explore(world(), levels=5), "explore knows no setting 'levels'"),
        (lambda: plots.explore(xr.Dataset({"a": ("x", [1.0])})), "nothing to explore"),
    ],
)
def test_mistakes_are_told_in_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(WxlabError) as caught:
        call()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_ensemble_is_shown_as_mean_spread_or_member() -> None:
    forecast = forecast_of(world(), members=3)
    mean, spread, member = (select_field(forecast, "2m_temperature", lead=6, number=number) for number in (None, "spread", 2))
    assert mean.when.endswith("+ 6 h · ensemble mean") and member.when.endswith("member 2")
    np.testing.assert_allclose(member.values - mean.values, 1.0, atol=1e-3)
    np.testing.assert_allclose(spread.values, 1.0, atol=1e-3)
    assert spread.look.kind == "plain"


def test_importing_plots_is_light() -> None:
    """No holoviews, no widgets, no torch, no cartopy before they are needed."""
    code = "import sys, wxlab.plots; print([name for name in ('holoviews', 'ipywidgets', 'torch', 'cartopy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_style_outside_is_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    plots.plot_losses  # noqa: B018
    plots.plot_map(world(9, 16), "2m_temperature")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        plots.use_style()
        assert matplotlib.rcParams["axes.titlelocation"] == "left"


@pytest.mark.real_data
def test_real_regions_are_drawn_in_one_piece(real_catalog: Path) -> None:
    import wxlab

    assert real_catalog.is_file()
    (axes,) = drawn(plots.plot_map(wxlab.open_dataset("era5_uk_t2m"), "2m_temperature", time="2019-03-05T06"))
    west, east = axes.get_xlim()
    assert -11 < west < -9 and 1 < east < 3
    assert float(mesh_of(axes).get_array().mean()) == pytest.approx(278, abs=4)
    table, where = drawn(plots.plot_availability(wxlab.open_dataset("storm_1996")))
    shares = mesh_of(table).get_array().reshape(6, -1)
    assert (shares == 0).sum() == 4  # single variables that lack a whole step
    assert float(mesh_of(where).get_array().min()) == 0  # the region that is always missing
