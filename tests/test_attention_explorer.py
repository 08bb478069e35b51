"""The widget of attention: what it offers, and that its picture is that of the choice."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.plots import explore_attention
from wxlab.plots.attention_explorer import AttentionView
from wxlab.plots.widget import Explorer


def captured(layers: int = 2, heads: int = 3) -> xr.Dataset:
    values = np.random.default_rng(0).random((layers, 4, heads, 3, 3))
    values /= values.sum(-1, keepdims=True)
    names = ["2m_temperature", "geopotential_500", "temperature_850"]
    dims = ("layer", "sample", "head", "target", "source")
    return xr.Dataset(
        {"attention": (dims, values), "picks": (dims[:3], np.zeros((layers, 4, heads), int), {"into": "source"})},
        {"target": names, "source": names, "module": ("layer", [f"block.{k}" for k in range(layers)])},
    )


def test_picture_shows_the_choice() -> None:
    one, other = captured(), captured(3)
    view = AttentionView({"small": one, "large": other})
    assert view.variables == ["side by side", "small · attention", "large · attention"]
    assert view.entries("large · attention") == {"layer": ["mean", 0, 1, 2], "head": ["mean", 0, 1, 2]}
    figure = view.draw("large · attention", layer=2, head=1)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), other.attention[2, :, 1].mean("sample"))
    assert "layer 2 (block.2)" in figure.get_suptitle() and "head 1" in figure.get_suptitle()
    mean = view.draw(**view.first("small · attention"))
    np.testing.assert_allclose(mean.axes[0].images[0].get_array(), one.attention.mean(["layer", "sample", "head"]))


def test_two_models_stand_side_by_side() -> None:
    one, other = captured(), captured(3, heads=2)
    view = AttentionView({"small": one, "large": other})
    assert view.entries("side by side") == {"layer": ["mean", 0, 1], "head": ["mean", 0, 1]}  # what both have
    figure = view.draw("side by side", layer=1, head=0)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == ["small · attention", "large · attention"]
    for axes, each in zip(panels, (one, other), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), each.attention[1, :, 0].mean("sample"))
    assert figure.get_suptitle() == "side by side · layer 1 · head 0"
    assert AttentionView({"alone": one}).variables == ["alone · attention"]


def test_widget_redraws() -> None:
    view = AttentionView({"": captured()})
    widget = Explorer(view, view.first("attention"))
    before = widget.picture.value
    widget.sliders["layer"].index = 2
    assert widget.along() == {"layer": 1, "head": "mean"} and widget.picture.value != before
    assert explore_attention(captured(), layer=1).axes


def test_mistakes_get_one_sentence() -> None:
    for call, message in (
        (lambda: explore_attention(xr.Dataset()), "no attention to look through"),
        (lambda: explore_attention({"a": 5}), "weights is a int"),
        (lambda: explore_attention(captured(), variable="local"), "'local' was not captured; there are attention"),
        (lambda: explore_attention(captured(), layer=7), "layer=7 is not there"),
    ):
        with pytest.raises(WxlabError, match=message):
            call()
