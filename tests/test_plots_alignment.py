"""CKA drawn: cells that hold the numbers, panels by layer, pairs over layers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.plots import plot_cka, plot_cka_layers

VARIABLES = ["2m_temperature", "geopotential_500", "10m_u_component_of_wind"]


def between(rows: int = 3, columns: int = 4) -> xr.Dataset:
    values = np.random.default_rng(0).random((rows, columns))
    coords = {"layer_a": [f"a.{k}" for k in range(rows)], "layer_b": [f"b.{k}" for k in range(columns)]}
    return xr.Dataset({"cka": (("layer_a", "layer_b"), values)}, coords)


def of_variables(layers: int = 5, seed: int = 0) -> xr.Dataset:
    values = np.random.default_rng(seed).random((layers, 3, 3))
    coords = {"layer": [f"layer{k}" for k in range(layers)], "variable_a": VARIABLES, "variable_b": VARIABLES}
    return xr.Dataset({"cka": (("layer", "variable_a", "variable_b"), (values + values.swapaxes(1, 2)) / 2)}, coords)


def test_cells_hold_the_numbers() -> None:
    figure = plot_cka({"one": between(), "other": between(3, 3)})
    panels = figure.axes[:2]
    np.testing.assert_allclose(panels[0].images[0].get_array(), between().cka)
    assert [axes.get_title(loc="left") for axes in panels] == ["one", "other"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["a.0", "a.1", "a.2"]
    assert len(panels[0].texts) == 12 and panels[0].texts[0].get_text() == f"{between().cka.values[0, 0]:.2f}"
    assert not plot_cka(between(20, 20)).axes[0].texts
    assert panels[0].images[0].get_clim() == (0, 1)
    assert plot_cka(between(), low=None).axes[0].images[0].get_clim() == (float(between().cka.min()), 1)


def test_a_panel_for_each_layer() -> None:
    figure = plot_cka(of_variables())
    assert [axes.get_title(loc="left") for axes in figure.axes[:5]] == [f"layer{k}" for k in range(5)]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["t2m", "z500", "u10"]
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), of_variables().cka[2])


def test_pairs_over_layers() -> None:
    figure = plot_cka_layers({"separate": of_variables(), "joint": of_variables(3, seed=1)})
    lines = [line for line in figure.axes[0].lines if line.get_label() in ("separate", "joint")]
    first, second = np.triu_indices(3, 1)
    np.testing.assert_allclose(lines[0].get_ydata(), of_variables().cka.values[:, first, second].mean(1))
    assert len(lines[1].get_xdata()) == 3 and len(figure.axes[0].lines) == 2 * (3 + 1)


def test_mistakes_get_one_sentence() -> None:
    for call, message in (
        (lambda: plot_cka(between(), low=1.0), "low=1.0 must be a number below 1"),
        (lambda: plot_cka({}), "nothing to draw"),
        (lambda: plot_cka(xr.Dataset({"cka": ("x", [1.0])})), "has the dimensions x"),
        (lambda: plot_cka_layers({}), "nothing to draw"),
        (lambda: plot_cka_layers({"a": between()}), "wxlab.cka.variables"),
    ):
        with pytest.raises(WxlabError, match=message):
            call()
