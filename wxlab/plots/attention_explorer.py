"""Look through attention, layer by layer and head by head, of one or several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.plots.losses import in_notebook
from wxlab.plots.tables import plot_attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN = "mean"


def explore_attention(weights: xr.Dataset | Mapping[str, xr.Dataset], **first: Any) -> Any:
    """Choose model and kind, layer and head, and see who looks at whom: in a notebook a widget, elsewhere its first view.

    weights: of ``wxlab.attention.capture``, of one model or of several by name.  first: the first view, any of ``variable`` (model and
    kind as the widget offers them), ``layer`` and ``head`` (numbers, or ``mean``).
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
    """What can be chosen of captured attention (layer, head), and its picture. Its variables are models and their kinds."""

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
        self.variables = list(self.arrays)

    def entries(self, variable: str) -> dict[str, list[Any]]:
        """Layers and heads, each with their mean first."""
        if variable not in self.arrays:
            raise WxlabError(f"{variable!r} was not captured; there are {', '.join(self.variables)}")
        array = self.arrays[variable]
        found = {"layer": str(array.dims[0])}
        for dim in map(str, array.dims[1:-2]):
            if dim.startswith(("head", "expert")):
                found["head"] = dim
        return {name: [MEAN, *np.arange(array.sizes[dim]).tolist()] for name, dim in found.items()}

    def first(self, variable: str) -> dict[str, Any]:
        """The first choice: the mean of everything."""
        return {"variable": variable, **dict.fromkeys(self.entries(variable), MEAN)}

    def draw(self, variable: str, **places: Any) -> Figure:
        """The heat map of a choice, averaged over all that is not chosen. Raises WxlabError for places that are not there."""
        array, entries = self.arrays[variable], self.entries(variable)
        words = []
        for name, place in places.items():
            if place not in entries.get(name, ()):
                raise WxlabError(f"{name}={place!r} is not there; {variable} has {name} {', '.join(map(str, entries.get(name, ['none'])))}")
            if place != MEAN:
                dim = next(str(dim) for dim in array.dims if str(dim).startswith(("layer",) if name == "layer" else ("head", "expert")))
                array = array.isel({dim: place})
                module = f" ({array['module'].item()})" if name == "layer" and "module" in array.coords and not array["module"].ndim else ""
                words.append(f"{name} {place}{module}")
        figure = plot_attention(array.rename(variable))
        figure.suptitle(" · ".join([variable, *(words or ["mean over layers and heads"])]), fontsize="medium", x=0.005, ha="left")
        return figure
