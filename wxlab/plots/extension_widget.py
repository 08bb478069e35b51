"""The widget of an extension: variables to choose beside the picture of what happens to the tensors."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from wxlab.plots.extension_explorer import extension_figure
from wxlab.plots.style import channel_label
from wxlab.plots.widget import png

if TYPE_CHECKING:
    from wxlab.models.vamoe import VAMoE

FREEZE = {"as coded": "coded", "strict: old columns too": "strict", "nothing": "none"}


class ExtensionExplorer(widgets.VBox):
    """Where no widget can be shown (a saved or exported notebook) the last picture stands in for it."""

    def __init__(self, model: VAMoE, names: Sequence[str]) -> None:
        self.model = model
        options = [(channel_label(name, with_units=False), name) for name in names]
        self.variables = widgets.SelectMultiple(options=options, value=names[:1], description="Add", rows=min(8, len(names)))
        self.freeze = widgets.Dropdown(options=list(FREEZE.items()), description="Freeze")
        self.picture = widgets.Image(format="png")
        super().__init__([widgets.HBox([self.variables, self.freeze]), self.picture])
        for control in (self.variables, self.freeze):
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _: Any = None) -> None:
        if self.variables.value:  # with nothing chosen the picture stays
            self.picture.value = png(extension_figure(self.model, self.variables.value, self.freeze.value))

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if isinstance(bundle, dict):
            bundle["image/png"] = base64.b64encode(self.picture.value).decode()
        return bundle
