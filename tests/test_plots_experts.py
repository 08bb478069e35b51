"""Figures of experts and of incremental stages, and the widget that adds variables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from wxlab import create_model, extend, plots
from wxlab.errors import WxlabError
from wxlab.models.base import Batch
from wxlab.models.vamoe import VAMoE, channel_choices, describe
from wxlab.plots.extension_explorer import extension_figure
from wxlab.plots.extension_widget import ExtensionExplorer

UPPER, T2M = ("geopotential_850", "geopotential_500", "temperature_500"), "2m_temperature"


@pytest.fixture(scope="module")
def model() -> VAMoE:
    torch.manual_seed(0)
    made = create_model("vamoe", "tiny", channels=UPPER)
    assert isinstance(made, VAMoE)
    return made


@pytest.fixture(scope="module")
def choices(model: VAMoE) -> xr.Dataset:
    states = torch.randn(2, 1, 3, *model.spec.grid.shape, generator=torch.Generator().manual_seed(0))
    return channel_choices(model, Batch(states, None, torch.zeros(2, 1, dtype=torch.int64)))


def test_maps_have_one_colour_for_a_channel(choices: xr.Dataset) -> None:
    figure = plots.plot_choices({"one": choices, "two": choices}, block=1)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        f"{row} · {name}" for row in ("one", "two") for name in ("Geopotential", "Temperature")
    ]
    favourite = choices["favourite"].sel(block=1)
    values, counts = np.unique(np.concatenate([favourite.values.ravel()] * 2), return_counts=True)
    best = values[np.argmax(counts)]
    for axes, expert in zip(figure.axes, [0, 1, 0, 1], strict=True):
        shown = np.asarray(axes.collections[0].get_array())
        assert (shown == 0).sum() >= (favourite[expert] == best).sum() > 0  # cells on the seam are drawn on both sides
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[0] == f"channel {best}" and words[-1] == "others" and len(words) == 9
    with pytest.raises(WxlabError, match="block=3 is not among the blocks 0 to 2"):
        plots.plot_choices(choices, block=3)


def test_shares_and_overlaps_show_their_numbers(choices: xr.Dataset) -> None:
    figure = plots.plot_shares(choices)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (2, 32) and shown.mean() == pytest.approx(0.5) and (np.diff(shown.mean(0)) <= 1e-6).all()
    figure = plots.plot_overlap(choices)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == [f"{value:.3f}" for value in choices["overlap"].isel(block=1).values.ravel()]
    assert "by chance 0.50" in figure._suptitle.get_text()  # type: ignore[attr-defined]


def test_forgetting_is_measured_against_the_model_before() -> None:
    before = pd.Series({"geopotential_500": 0.2, "geopotential_850": 0.4, "temperature_500": 0.1})
    table = pd.DataFrame([[0.4, 0.4, 0.2, 1.0], [0.2, 0.4, 0.1, 0.5]], [0, 10], [*before.index, T2M])
    figure = plots.plot_forgetting({"extended": table}, before)
    left, right = figure.axes
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in left.lines}
    np.testing.assert_allclose(lines["Geopotential"], [1.5, 1.0])
    np.testing.assert_allclose(lines["Temperature"], [2.0, 1.0])
    np.testing.assert_allclose(np.asarray(right.lines[0].get_ydata()), [1.0, 0.5])
    assert right.get_ylim()[0] == 0 and right.get_ylim()[1] > 1.04  # no marker is cut
    several = plots.plot_forgetting({f"run {number}": table for number in range(6)}, before).axes[1]
    assert [str(line.get_label()) for line in several.lines] == [f"run {number}" for number in range(6)]
    with pytest.raises(WxlabError, match="the errors lack geopotential_500; give tables of runs that began with the model of before="):
        plots.plot_forgetting({"extended": table.drop(columns="geopotential_500")}, before)


def test_bars_add_up_to_the_network(model: VAMoE) -> None:
    table = describe(extend(model, T2M, freeze="strict"))
    axes = plots.plot_tensors(table).axes[0]
    totals = [sum(bar.get_width() for bar in container) for container in axes.containers]
    copied, new = table["copied"].sum(), table["numbers"].sum() - table["copied"].sum()
    assert totals[0] + totals[1] == copied and totals[2] == new
    assert totals[1] + totals[2] == table["trainable"].sum() and str(f"{table['trainable'].sum():,}") in axes.get_title(loc="left")
    words = [label.get_text() for label in axes.get_yticklabels()]
    assert "expert: surface" in words and "attention and its norms" in words and len(words) == len(set(words)) == 12


def test_the_widget_adds_what_is_chosen(model: VAMoE) -> None:
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    widget = ExtensionExplorer(model, ["specific_humidity", T2M])
    pictures = [widget.picture.value]
    widget.variables.value = ("specific_humidity", T2M)
    pictures.append(widget.picture.value)
    widget.freeze.value = "strict"
    pictures.append(widget.picture.value)
    assert len(set(map(bytes, pictures))) == 3 and all(bytes(picture).startswith(b"\x89PNG") for picture in pictures)
    widget.variables.value = ()
    assert widget.picture.value == pictures[-1]
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_explorer_offers_what_is_new(model: VAMoE) -> None:
    figure = plots.explore_extension(model)
    assert any("specific humidity" in label.get_text() for label in figure.axes[0].get_yticklabels())
    surface = create_model("vamoe", "tiny", channels=(T2M,))
    assert isinstance(surface, VAMoE) and plots.explore_extension(surface).axes
    with pytest.raises(WxlabError, match="the model has all of the candidates already; name others"):
        plots.explore_extension(model, ["geopotential", "temperature"])
    with pytest.raises(WxlabError, match="vit cannot be extended; give a VA-MoE"):
        extension_figure(create_model("vit", "tiny"), [T2M])
    with pytest.raises(WxlabError, match="vit cannot be extended; give a VA-MoE"):
        plots.explore_extension(create_model("vit", "tiny"))
