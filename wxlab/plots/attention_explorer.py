"""Look through attention, layer by layer and head by head, of one or several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr
from matplotlib.colors import Normalize

from wxlab.errors import WxlabError
from wxlab.plots.losses import in_notebook
from wxlab.plots.style import new_figure, styled
from wxlab.plots.tables import entry_names, heat, plot_attention, thin, write_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN = "mean"
BESIDE = "side by side"


def explore_attention(weights: xr.Dataset | Mapping[str, xr.Dataset], **first: Any) -> Any:
    """Choose model and kind, layer and head, and see who looks at whom: in a notebook a widget, elsewhere its first view.

    weights: of ``wxlab.attention.capture``, of one model or of several by name.  first: the first view, any of ``variable`` (model and
    kind as the widget offers them; ``side by side``: the first kind of each of several models), ``layer`` and ``head`` (numbers, or
    ``mean``).
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError when nothing was captured that has rows and columns.
    """
    view = AttentionView({"": weights} if isinstance(weights, xr.Dataset) else weights)
    variable = first.pop("variable", view.variables[0])
    choice = {**view.first(variable), **first}
    if not in_notebook():
        return view.draw(**choice)
    from wxlab.plots.widget import Explorer

    return Explorer(view, choice)


class AttentionView:
    """What can be chosen of captured attention (layer, head), and its picture. Its variables are models and their kinds,
    and of several models ``side by side``."""

    word = "Attention"

    def __init__(self, weights: Mapping[str, xr.Dataset]) -> None:
        self.arrays: dict[str, xr.DataArray] = {}
        for name, captured in weights.items():
            if not isinstance(captured, xr.Dataset):
                raise WxlabError(f"weights is a {type(captured).__name__}; give what wxlab.attention.capture returned")
            for kind, array in captured.data_vars.items():
                if array.ndim >= 3 and "into" not in array.attrs:
                    self.arrays[f"{name} · {kind}" if name else str(kind)] = array
        if not self.arrays:
            raise WxlabError("there is no attention to look through; capture it with wxlab.attention.capture(model, batch)")
        self.beside = {
            name: next(array for key, array in self.arrays.items() if key.startswith(f"{name} · ")) for name in _names(self.arrays)
        }
        self.variables = [*([BESIDE] if len(self.beside) > 1 else []), *self.arrays]

    def entries(self, variable: str) -> dict[str, list[Any]]:
        """Layers and heads, each with their mean first; side by side those that all have."""
        sizes: dict[str, list[int]] = {}
        for array in self._chosen(variable).values():
            for name, dim in _places(array).items():
                sizes.setdefault(name, []).append(array.sizes[dim])
        return {name: [MEAN, *range(min(lengths))] for name, lengths in sizes.items()}

    def first(self, variable: str) -> dict[str, Any]:
        """The first choice: the mean of everything."""
        return {"variable": variable, **dict.fromkeys(self.entries(variable), MEAN)}

    def draw(self, variable: str, **places: Any) -> Figure:
        """The heat map of a choice, averaged over all that is not chosen. Raises WxlabError for places that are not there."""
        entries = self.entries(variable)
        for name, place in places.items():
            if place not in entries.get(name, ()):
                raise WxlabError(f"{name}={place!r} is not there; {variable} has {name} {', '.join(map(str, entries.get(name, ['none'])))}")
        found = {name: _at(array, places) for name, array in self._chosen(variable).items()}
        words = [f"{name} {place}" for name, place in places.items() if place != MEAN] or ["mean over layers and heads"]
        if variable == BESIDE:
            figure = _side_by_side({f"{name} · {array.name}": array for name, array in found.items()})
        else:
            ((_, array),) = found.items()
            figure = plot_attention(array.rename(variable))
            words = [
                f"{word} ({array['module'].item()})" if word.startswith("layer ") and "module" in array.coords else word for word in words
            ]
        figure.suptitle(" · ".join([variable, *words]), fontsize="medium", x=0.005, ha="left")
        return figure

    def _chosen(self, variable: str) -> dict[str, xr.DataArray]:
        if variable not in self.variables:
            raise WxlabError(f"{variable!r} was not captured; there are {', '.join(self.variables)}")
        return self.beside if variable == BESIDE else {variable: self.arrays[variable]}


def _names(arrays: Mapping[str, xr.DataArray]) -> list[str]:
    """Models, of keys that name model and kind."""
    return list(dict.fromkeys(key.split(" · ")[0] for key in arrays if " · " in key))


def _places(array: xr.DataArray) -> dict[str, str]:
    """The dimensions of an array that are layers, and heads or experts."""
    heads = [dim for dim in map(str, array.dims[1:-2]) if dim.startswith(("head", "expert"))]
    return {"layer": str(array.dims[0])} | ({"head": heads[-1]} if heads else {})


def _at(array: xr.DataArray, places: Mapping[str, Any]) -> xr.DataArray:
    dims = _places(array)
    return array.isel({dims[name]: place for name, place in places.items() if place != MEAN and name in dims})


@styled
def _side_by_side(arrays: Mapping[str, xr.DataArray]) -> Figure:
    """Heat maps of several models in a row, each on its own scale, for they look at different things."""
    figure = new_figure(5.2 * len(arrays), 4.6)
    for axes, (title, array) in zip(figure.subplots(1, len(arrays), squeeze=False).flat, arrays.items(), strict=True):
        rows, columns = array.dims[-2:]
        names = (entry_names(array[rows].values, short=True), entry_names(array[columns].values, short=True))
        values = array.mean(array.dims[:-2]).values
        image = heat(axes, values, names, Normalize(0.0, max(float(values.max()), 1e-9)), "viridis")
        if len(names[1]) <= 8:
            write_numbers(axes, image, values, "{:.2f}")
        thin(axes, names)
        axes.set_aspect("equal")
        axes.set(title=title, xlabel=str(columns).capitalize(), ylabel=str(rows).capitalize())
        figure.colorbar(image, ax=axes, label="Attention weight", aspect=20, shrink=0.8)
    return figure
