"""Figures of the mesh and of spectra by degree, and the widget that chooses a place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from standins import windows

import wxlab
from wxlab import spectra
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.healpix_mesh import centres
from wxlab.models import create_model
from wxlab.models.mosaic import Mosaic
from wxlab.plots import explore_blocks, plot_degrees, plot_mesh
from wxlab.plots.mesh import BlocksView, token_at
from wxlab.plots.widget import Explorer


@pytest.fixture(scope="module")
def seen() -> tuple[Mosaic, xr.Dataset]:
    torch.manual_seed(0)
    model = create_model("mosaic", "tiny")
    assert isinstance(model, Mosaic)
    return model, wxlab.attention.capture(model, windows(model))


def test_the_nearest_pixel() -> None:
    for token in (0, 17, 100, 191):
        longitude, latitude = map(float, centres(4)[token])
        assert token_at(4, latitude, longitude) == token == token_at(4, latitude, longitude - 360)


def test_globes_show_pixels_blocks_and_windows(seen: tuple[Mosaic, xr.Dataset]) -> None:
    figure = plot_mesh(seen[0])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["192 pixels", "12 blocks of 16", "3 windows of 64", "one level up: 6 blocks of 8"]


def test_picture_shows_what_the_place_attends_to(seen: tuple[Mosaic, xr.Dataset]) -> None:
    model, weights = seen
    view = BlocksView(model, weights)
    assert view.variables == ["encoder 0, nside 4", "bottleneck 0, nside 2", "decoder 0, nside 4"]
    token = token_at(4, 40.0, 100.0)
    for layer, variable in ((0, view.variables[0]), (1, view.variables[2])):
        figure = view.draw(variable, 40.0, 100.0, 2)
        maps = [next(mesh for mesh in axes.collections if mesh.get_array() is not None) for axes in figure.axes[:2]]
        share = weights["selection_nside4"].values[layer, 0, 2, token // 16]
        shown = np.unique(np.ma.compressed(np.ma.masked_invalid(maps[0].get_array())).round(4))
        np.testing.assert_allclose(shown, np.sort(100 * share[share > 0]).round(4), atol=2e-4)
        gates = weights["gates_nside4"].values[layer, 0, token, 2]
        bars = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("Gates"))
        np.testing.assert_allclose([bar.get_height() for bar in bars.patches], 100 * gates, rtol=1e-5)  # type: ignore[attr-defined]
        assert figure.axes[0].get_title(loc="left") == "Selection: 3 of 12 blocks"


def test_the_widget_redraws_and_offers_the_heads_of_the_layer(seen: tuple[Mosaic, xr.Dataset]) -> None:
    view = BlocksView(*seen)
    widget = Explorer(view, view.first(view.variables[0]))
    before = widget.picture.value
    assert widget.variable.description == "Layer" and set(widget.sliders) == {"latitude", "longitude", "head"}
    widget.sliders["longitude"].index = 3
    moved = widget.picture.value
    assert moved != before and widget.message.value == ""
    widget.variable.value = view.variables[1]
    assert widget.picture.value != moved and widget.along()["longitude"] == -165


def test_outside_notebooks_the_first_view_is_drawn(seen: tuple[Mosaic, xr.Dataset]) -> None:
    figure = explore_blocks(*seen, layer=1, latitude=-30, longitude=200, head="mean")
    assert "bottleneck 0, nside 2 · 30°S 160°W · mean of heads" in figure.get_suptitle()


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"layer": 3}, "layer=3 is not among the 3 layers; give 0 to 2"),
    ({"latitude": 95}, "latitude=95, longitude=10 is no place"),
    ({"head": 4}, r"unknown head 4 \(allowed: mean, 0, 1, 2, 3\)|unknown head '4'"),
]


@pytest.mark.parametrize(("first", "message"), FAULTS, ids=str)
def test_what_is_not_there_is_said(seen: tuple[Mosaic, xr.Dataset], first: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        explore_blocks(*seen, **first)


def test_weights_of_another_model_are_refused(seen: tuple[Mosaic, xr.Dataset]) -> None:
    with pytest.raises(WxlabError, match="no choice of blocks of this model"):
        explore_blocks(seen[0], seen[1][["gates_nside4"]])


def test_other_models_have_no_mesh(seen: tuple[Mosaic, xr.Dataset]) -> None:
    other: Any = create_model("met2net", "tiny")
    for draw in (lambda: plot_mesh(other), lambda: explore_blocks(other, seen[1])):
        with pytest.raises(WxlabError, match="only a Mosaic has a mesh, and this is a Met2Net"):
            draw()


def test_spectra_by_degree_and_their_ratio() -> None:
    grid = Grid.regular(20, 40)
    random = np.random.default_rng(0)
    coords = {"level": [500, 850], "latitude": list(grid.y), "longitude": list(grid.x)}
    geopotential = xr.DataArray(random.normal(size=(2, *grid.shape)), dims=tuple(coords), coords=coords)
    pressure = xr.DataArray(random.normal(size=grid.shape), dims=("latitude", "longitude"), coords={k: coords[k] for k in list(coords)[1:]})
    fields = xr.Dataset({"geopotential": geopotential, "mean_sea_level_pressure": pressure})
    truth = fields.map(spectra.power)
    figure = plot_degrees({"truth": truth, "half": truth / 2}, band=(12, 18))
    upper, lower = figure.axes[:3], figure.axes[3:6]
    assert [axes.get_title(loc="left") for axes in upper] == ["500 hPa geopotential", "850 hPa geopotential", "Mean sea-level pressure"]
    assert upper[2].get_ylabel() == "Power [hPa²]"
    lines = {line.get_label(): line.get_ydata() for line in upper[2].lines}
    np.testing.assert_allclose(lines["truth"], truth["mean_sea_level_pressure"][1:] * 1e-4)
    np.testing.assert_allclose(lower[0].lines[0].get_ydata(), 0.5)
    with pytest.raises(WxlabError, match="give by name 'truth'"):
        plot_degrees({"half": truth})
