"""Centred kernel alignment as heat maps, and of variables from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.colors import Normalize

from wxlab.errors import WxlabError
from wxlab.plots.series import line_styles
from wxlab.plots.style import channel_code, new_figure, styled
from wxlab.plots.tables import heat, write_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = (("layer_a", "layer_b"), ("variable_a", "variable_b"))
MANY = 12  # rows of a heat map above which cells get no numbers


@styled
def plot_cka(tables: xr.Dataset | Mapping[str, xr.Dataset], *, low: float | None = 0.0) -> Figure:
    """Draw CKA as heat maps on one scale up to 1: layers against layers, or variables against variables for each layer.

    tables: of ``wxlab.cka.compare`` or ``between``, one or several by title; or one of ``wxlab.cka.variables``, a panel for each of at
    most eight layers.  low: where the scale begins, below 1; None: at the smallest value.
    Returns the figure. Raises WxlabError for other tables, and when there is nothing to draw.
    """
    if isinstance(tables, xr.Dataset) and "variable_a" in tables.dims:
        layers = [str(name) for name in tables["layer"].values][:8]
        tables = {name: tables.sel(layer=name) for name in layers}
    named = {"": tables} if isinstance(tables, xr.Dataset) else dict(tables)
    if not named:
        raise WxlabError("there is nothing to draw: tables is empty; give what wxlab.cka.compare returned")
    arrays = {name: _matrix(table) for name, table in named.items()}
    sizes = [array.shape for array in arrays.values()]
    rows, columns = max(size[0] for size in sizes), max(size[1] for size in sizes)
    least = min(float(array.min()) for array in arrays.values())
    low = min(least, 0.999) if low is None else low
    if not low < 1:
        raise WxlabError(f"low={low!r} must be a number below 1, or None for the smallest value")
    across = min(len(arrays), 4)
    down = -(-len(arrays) // across)
    size = 0.24 if rows > MANY else 0.42
    figure = new_figure(min(across * (size * columns + 1.2) + 1.9, 15), down * (size * rows + 1.3) + 0.3)
    places = figure.subplots(down, across, squeeze=False)
    for axes, (name, array) in zip(places.flat, arrays.items(), strict=False):
        words = [[_word(array.dims[k], label) for label in array[array.dims[k]].values] for k in (0, 1)]
        image = heat(axes, array.values, (words[0], words[1]), Normalize(low, 1), "magma")
        axes.set_aspect("equal")
        axes.tick_params(axis="x", rotation=90)
        axes.tick_params(labelsize="x-small" if rows > MANY else "small")
        if rows <= MANY and columns <= MANY:
            write_numbers(axes, image, array.values, "{:.2f}")
        axes.set_title(name)
    for axes in places.flat[len(arrays) :]:
        axes.remove()
    figure.colorbar(
        image, ax=list(places.flat[: len(arrays)]), label="CKA", aspect=22, shrink=0.9, extend="min" if least < low else "neither"
    )
    return figure


@styled
def plot_cka_layers(tables: Mapping[str, xr.Dataset]) -> Figure:
    """Draw how alike a network's variables are from layer to layer: the mean over pairs of different variables, each pair thin.

    tables: of ``wxlab.cka.variables`` by the name of the network.  Layers that several tables share stand at one place.
    Returns the figure. Raises WxlabError for other tables.
    """
    if not tables:
        raise WxlabError("there is nothing to draw: tables is empty; give what wxlab.cka.variables returned, by name")
    layers: list[str] = []
    for table in tables.values():
        if "cka" not in table or "variable_a" not in table.dims:
            raise WxlabError(f"a table has the dimensions {', '.join(map(str, table.dims))}; give what wxlab.cka.variables returned")
        layers += [str(name) for name in table["layer"].values if str(name) not in layers]
    figure = new_figure(max(5.5, 0.55 * len(layers) + 2.5), 3.8)
    axes = figure.add_subplot()
    for name, style in line_styles(list(tables)).items():
        values = tables[name]["cka"].values
        first, second = np.triu_indices(values.shape[1], 1)
        places = [layers.index(str(layer)) for layer in tables[name]["layer"].values]
        pairs = values[:, first, second]
        axes.plot(places, pairs, linewidth=0.6, alpha=0.35, **style)
        axes.plot(places, pairs.mean(1), marker="o", markersize=4, label=name, **style)
    axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
    axes.set(ylabel="CKA between variables", ylim=(None, 1.03))
    axes.grid(True)
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def _matrix(table: xr.Dataset) -> xr.DataArray:
    for pair in AXES:
        if isinstance(table, xr.Dataset) and "cka" in table and set(pair) == set(table["cka"].dims):
            return table["cka"].transpose(*pair)
    dims = ", ".join(map(str, table.dims)) if isinstance(table, xr.Dataset) else type(table).__name__
    raise WxlabError(f"a table has the dimensions {dims}; give what wxlab.cka.compare returned")


def _word(dim: object, label: object) -> str:
    return channel_code(str(label)) if str(dim).startswith("variable") else str(label)
