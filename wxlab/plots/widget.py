"""The explorer's widget: controls beside a picture that is redrawn when one of them changes."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from wxlab.errors import WxlabError
from wxlab.plots.fields import lead_text, time_text
from wxlab.plots.style import channel_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wxlab.plots.attention_explorer import AttentionView
    from wxlab.plots.explorer import View
    from wxlab.plots.mesh import BlocksView
    from wxlab.plots.nowcast_explorer import NowcastView
    from wxlab.plots.track_explorer import TracksView

_WORDS = {
    "threshold": "Threshold", "level": "Level", "time": "Time", "lead": "Lead time", "number": "Member", "latitude": "Latitude",
    "longitude": "Longitude", "head": "Head", "storm": "Storm", "band": "Latitudes", "layer": "Layer",
}  # fmt: skip


class Explorer(widgets.VBox):
    """Controls for a View. Where no widget can be shown (a saved or exported notebook) the last picture stands in for it."""

    def __init__(self, view: View | NowcastView | BlocksView | TracksView | AttentionView, choice: dict[str, Any]) -> None:
        self.view = view
        self.values = view.entries(choice["variable"])
        names = [(channel_label(name, with_units=False), name) for name in view.variables]
        self.variable = widgets.Dropdown(options=names, value=choice["variable"], description=getattr(view, "word", "Variable"))
        self.sliders: dict[str, widgets.SelectionSlider] = {}
        self.picture = widgets.Image(format="png")
        self.message = widgets.HTML()
        self._rows = widgets.VBox()
        super().__init__([widgets.HBox([self.variable]), self._rows, self.message, self.picture])
        self._offer(choice)
        self.variable.observe(self._variable_changed, names="value")
        self._redraw()

    def along(self) -> dict[str, Any]:
        """What is chosen now along the axes that have a slider."""
        return {name: self.values[name][slider.index] for name, slider in self.sliders.items()}

    def _offer(self, choice: dict[str, Any]) -> None:
        """Sliders for the axes of the chosen variable, each where it was."""
        self.values = self.view.entries(choice["variable"])
        self.sliders = {}
        for name, values in self.values.items():
            if len(values) > 1:
                index = values.index(choice[name]) if choice.get(name) in values else 0
                slider = widgets.SelectionSlider(
                    options=[(_text(name, value), i) for i, value in enumerate(values)],
                    index=index,
                    description=_WORDS[name],
                    continuous_update=False,
                    layout=widgets.Layout(width="32em"),
                )
                slider.observe(self._redraw, names="value")
                self.sliders[name] = slider
        self._rows.children = tuple(self.sliders.values())

    def _variable_changed(self, _: Any) -> None:
        choice, kept = self.view.first(self.variable.value), self.along()
        available = self.view.entries(self.variable.value)
        self._offer({**choice, **{name: value for name, value in kept.items() if value in available.get(name, ())}})
        self._redraw()

    def _redraw(self, _: Any = None) -> None:
        try:
            figure = self.view.draw(**{**self.view.first(self.variable.value), **self.along()})
        except WxlabError as error:  # a slider may reach where the truth ends: say so and keep the picture
            self.message.value = f"<i>{error}</i>"
            return
        self.message.value = ""
        self.picture.value = png(figure)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if isinstance(bundle, dict):
            bundle["image/png"] = base64.b64encode(self.picture.value).decode()
        return bundle


def _text(name: str, value: Any) -> str:
    if name == "time":
        return time_text(value)
    if name == "lead":
        return lead_text(value)
    return f"{value:g} hPa" if name == "level" else f"{value:g}" if name == "threshold" else str(value)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
