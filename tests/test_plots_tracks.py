"""Figures and widget of tracks: lines where the tracks are, a cone that holds two thirds, pictures of the choice."""

from __future__ import annotations

from pathlib import Path

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.patches import Polygon

from wxlab.cyclones import by_lead, errors, mean_track, strike_probability
from wxlab.cyclones.layout import dataset
from wxlab.errors import WxlabError
from wxlab.plots import explore_tracks, holo_tracks, plot_spaghetti, plot_strike, plot_track_errors, plot_tracks
from wxlab.plots.track_explorer import TracksView

INIT = np.datetime64("2020-09-01T00", "s").astype(np.int64)
LEADS = np.arange(0, 49, 6)


def best(lon: float = 300.0, name: str = "storm1") -> xr.Dataset:
    """A storm that moves west-north-west and deepens."""
    n = len(LEADS)
    columns = {"track_id": np.full(n, name), "time": INIT + LEADS * 3600, "lon": (lon - 0.15 * LEADS) % 360, "lat": 15 + 0.08 * LEADS}
    return dataset({**columns, "wind": 20 + 0.3 * LEADS, "slp": 1.0e5 - 60.0 * LEADS})


def ensemble(members: int = 9, lon: float = 300.0) -> xr.Dataset:
    """Members that go apart to the north and south."""
    parts = []
    for member in range(members):
        one = best(lon)
        off = 0.02 * (member - members // 2) * LEADS
        keys = {"init_time": np.full(len(LEADS), INIT), "lead": LEADS.astype(float), "number": np.full(len(LEADS), member)}
        columns = {name: one[name].values for name in ("time", "lon", "wind", "slp")} | keys
        columns["time"] = INIT + LEADS * 3600
        parts.append(dataset({**columns, "lat": one["lat"].values + off, "track_id": np.full(len(LEADS), member)}))
    return xr.concat(parts, "record").assign(storm=("record", np.full(members * len(LEADS), "storm1")))


def test_tracks_lie_where_they_are_and_have_the_colour_of_their_pressure() -> None:
    figure = plot_tracks(best(), truth=best())
    axes = figure.axes[0]
    lines = next(each for each in axes.collections if isinstance(each, LineCollection) and each.get_array() is not None)
    pieces = np.array(lines.get_segments())
    np.testing.assert_allclose(pieces[:, 0, 1], best().lat.values[:-1])
    np.testing.assert_allclose(pieces[:, 0, 0] % 360, best().lon.values[:-1])
    pressure = best().slp.values / 100
    np.testing.assert_allclose(lines.get_array(), (pressure[:-1] + pressure[1:]) / 2)
    low, high = axes.get_xlim()
    assert low < pieces[..., 0].min() and high > pieces[..., 0].max() and "truth dashed" in axes.get_title(loc="left")
    assert any(axis.get_xlabel() == "Central pressure [hPa]" for axis in figure.axes)


def test_across_the_dateline_lines_are_whole() -> None:
    figure = plot_tracks(best(lon=182.0), by="wind")
    lines = next(each for each in figure.axes[0].collections if isinstance(each, LineCollection) and each.get_array() is not None)
    pieces = np.array(lines.get_segments())
    assert len(pieces) == len(LEADS) - 1 and np.abs(np.diff(pieces[..., 0], axis=1)).max() < 1


def test_over_the_seam_of_a_map_colours_stay() -> None:
    """On a map of the globe whose seam is the date line: one piece less, the others coloured as they are."""
    tracks = xr.concat([best(lon=182.0), best(lon=60.0, name="storm2"), best(lon=300.0, name="storm3")], "record")
    figure = plot_tracks(tracks)
    assert hasattr(figure.axes[0], "projection")
    lines = next(each for each in figure.axes[0].collections if isinstance(each, LineCollection) and each.get_array() is not None)
    pressure, cut = best().slp.values / 100, int(np.flatnonzero(best(lon=182.0).lon.values < 180)[0])
    middles = (pressure[:-1] + pressure[1:]) / 2
    np.testing.assert_allclose(lines.get_array(), np.delete(middles, cut - 1))
    assert len(lines.get_segments()) == len(middles) - 1


def test_round_the_globe_and_over_a_field() -> None:
    around = dataset(
        {"track_id": np.zeros(40, int), "time": INIT + np.arange(40) * 21600, "lon": np.arange(40) * 9.0 % 360, "lat": np.zeros(40)}
    )
    figure = plot_tracks(around)
    assert hasattr(figure.axes[0], "projection")
    latitude, longitude = np.arange(5.0, 26), np.arange(280.0, 311)
    field = xr.DataArray(np.full((21, 31), 101325.0), {"latitude": latitude, "longitude": longitude}, name="mean_sea_level_pressure")
    figure = plot_tracks(best(), by="none", background=field + np.arange(31))
    assert any("hPa" in axis.get_xlabel() for axis in figure.axes)


def test_the_cone_holds_two_thirds() -> None:
    tracks = ensemble()
    figure = plot_spaghetti(tracks, mean=mean_track(tracks), truth=best(), title="one")
    axes = figure.axes[0]
    cone = next(patch for patch in axes.patches if isinstance(patch, Polygon))
    last = tracks.isel(record=np.flatnonzero(tracks.lead.values == 48))
    inside = cone.get_path().contains_points(np.stack([last.lon.values - 360, last.lat.values], 1), radius=1e-6)
    inside |= cone.get_path().contains_points(np.stack([last.lon.values, last.lat.values], 1), radius=1e-6)
    assert 5 <= inside.sum() <= 7
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"two thirds of the members", "members", "mean", "truth"}


def test_each_storm_has_its_own_cone() -> None:
    """Two storms of the same members: two cones as large as each of them alone, one entry in the legend."""
    east = ensemble(lon=318.0).assign(storm=("record", np.full(81, "storm2")))
    both = xr.concat([ensemble(), east.assign(track_id=east.track_id + 9)], "record")

    def areas(tracks: xr.Dataset) -> list[float]:
        figure = plot_spaghetti(tracks, mean=mean_track(tracks))
        cones = [patch for patch in figure.axes[0].patches if isinstance(patch, Polygon)]
        assert [text.get_text() for text in figure.legends[0].get_texts()].count("two thirds of the members") == 1
        spans = [patch.get_path().get_extents() for patch in cones]
        return sorted(span.height for span in spans)

    np.testing.assert_allclose(areas(both), areas(ensemble()) * 2, rtol=0.02)


def test_strike_map_is_empty_where_nothing_strikes() -> None:
    tracks = ensemble()
    figure = plot_strike(strike_probability(tracks, members=9), tracks=tracks, truth=best())
    mesh = figure.axes[0].collections[0].get_array()
    assert np.ma.is_masked(mesh) and float(mesh.max()) == pytest.approx(1)
    assert any("120 km" in axis.get_xlabel() for axis in figure.axes)


def test_errors_over_lead_time() -> None:
    table = by_lead(errors(ensemble(), best()), "distance")
    figure = plot_track_errors({"ensemble": table, "persistence": table * 2})
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), table["mean"])
    assert figure.axes[1].get_xlabel() == "Lead time [h]"
    pressure = plot_track_errors({"ensemble": by_lead(errors(ensemble(), best()), "slp_error")}, "slp_error")
    assert "hPa" in pressure.axes[0].get_ylabel()


def test_the_widget_shows_the_choice() -> None:
    view = TracksView({"model": ensemble(), "other": ensemble(3)}, best())
    assert view.variables == ["model", "other"]
    entries = view.entries("other")
    assert entries["storm"] == ["storm1"] and entries["number"] == ["all", 0, 1, 2]
    choice = view.first("other")
    figure = view.draw(**choice)
    assert "other · storm storm1 · from 2020-09-01 00 UTC" in figure.axes[0].get_title(loc="left")
    one = view.draw(**{**choice, "number": 2})
    members = [line for line in one.axes[0].lines if line.get_label() == "members" or line.get_alpha() == 0.7]
    assert len(members) == 1
    with pytest.raises(WxlabError, match="no track of storm storm1"):
        view.draw("other", storm="storm1", time=np.datetime64("2021-01-01", "ns"))
    assert explore_tracks({"model": ensemble()}, best()).axes


def test_field_over_time_with_tracks(tmp_path: Path) -> None:
    hv.extension("bokeh")
    times = (INIT + LEADS * 3600).astype("datetime64[s]").astype("datetime64[ns]")
    coords = {"time": times, "latitude": np.arange(5.0, 26), "longitude": np.arange(280.0, 311)}
    field = xr.DataArray(np.random.default_rng(0).normal(1e5, 500, (9, 21, 31)), coords, name="mean_sea_level_pressure")
    made = holo_tracks(field, best(), frames=5)
    assert len(made) == 5
    last = made.last
    dots = next(each for each in last if isinstance(each, hv.Points))
    assert len(dots) == 1 and dots["latitude"][0] == pytest.approx(best().lat.values[8])
    # over the date line, where a picture of the globe has its seam: two pieces, none across the picture
    globe = field.isel(longitude=slice(0, 30)).assign_coords(longitude=np.arange(30) * 12.0)
    paths = next(each for each in holo_tracks(globe, best(lon=183.0), frames=5).last if isinstance(each, hv.Path) and len(each) == 2)
    assert all(np.ptp(np.asarray(piece)[:, 0]) < 10 for piece in paths.split(datatype="array"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_tracks(best().isel(record=[])), "no track to draw"),
        (lambda: plot_tracks(best(), by="rain"), "unknown intensity to colour by 'rain'"),
        (lambda: plot_tracks(xr.Dataset()), "lacks time, lon, lat, track_id"),
        (lambda: plot_spaghetti(ensemble().assign(init_time=("record", np.arange(81)))), "several initial times"),
        (lambda: plot_strike(best()), "no field of latitude and longitude"),
        (lambda: plot_track_errors({}), "nothing to draw"),
        (lambda: plot_track_errors({"a": pd.DataFrame()}, "speed"), "unknown measure 'speed'"),
        (
            lambda: explore_tracks({"a": ensemble(3, lon=100.0).drop_vars("storm")}, best()),
            "none of the forecasts .a. has an observed",
        ),
        (lambda: holo_tracks(xr.DataArray([1.0], dims="x"), best()), "give one variable"),
    ],
)
def test_mistakes_get_one_sentence(call: object, message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        call()  # type: ignore[operator]
