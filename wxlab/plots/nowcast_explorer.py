"""Look around in an ensemble of nowcasts: truth, one member, and the probability of an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.plots.fields import LEAD, pick_variable, select_field, select_pair
from wxlab.plots.geometry import field_cells
from wxlab.plots.losses import in_notebook
from wxlab.plots.maps import draw_cells, map_axes, panel_size, projection_for
from wxlab.plots.nowcast import outline_events, probability_scale
from wxlab.plots.style import colour_scale, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wxlab.verification.thresholds import Thresholds

PANEL = 3.4  # inches


def explore_nowcast(ensemble: xr.Dataset, truth: xr.Dataset, variable: str, *, thresholds: Thresholds) -> Any:
    """Look around in an ensemble: in a notebook a widget to choose threshold, time, lead time and member, elsewhere its first view.

    ensemble: forecast with members.  truth: states at its valid times.  variable: what to show.  thresholds: as for ``verify``.
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError for a forecast without members, and for what the Datasets do not hold.
    """
    view = NowcastView(ensemble, truth, variable, thresholds)
    choice = view.first(variable)
    if not in_notebook():
        return view.draw(**choice)
    from wxlab.plots.widget import Explorer

    return Explorer(view, choice)


class NowcastView:
    """What can be chosen of an ensemble (threshold, time, lead, number), and its picture."""

    def __init__(self, ensemble: xr.Dataset, truth: xr.Dataset, variable: str, thresholds: Thresholds) -> None:
        self.array = pick_variable(ensemble, variable)[0]
        if "number" not in self.array.dims or LEAD not in self.array.dims:
            raise WxlabError(f"{variable!r} is no forecast with members; give what wxlab.forecast(..., members=) returned")
        self.ensemble, self.truth, self.variables = ensemble[[variable]], truth, [variable]
        from wxlab.verification import thresholds_of  # it brings torch, which most figures do without

        self.thresholds = thresholds_of(variable, thresholds)

    def entries(self, variable: str) -> dict[str, list[Any]]:
        """What there is to choose from."""
        members = ["mean", *(int(member) for member in self.array["number"].values)]
        places = {"time": list(self.array["time"].values), "lead": list(self.array[LEAD].values)}
        return {"threshold": list(self.thresholds), **places, "number": members}

    def first(self, variable: str) -> dict[str, Any]:
        """The first choice: the first time, the middle of the lead times, the first member."""
        entries = self.entries(variable)
        middle = {"lead": entries["lead"][len(entries["lead"]) // 2], "number": entries["number"][1]}
        return {"variable": variable, "threshold": entries["threshold"][0], "time": entries["time"][0], **middle}

    @styled
    def draw(self, variable: str, *, threshold: float, time: Any, lead: Any, number: int | str) -> Figure:
        """Truth, member and probability side by side; the outline is where the truth reaches the threshold."""
        here = self.ensemble.sel(time=[time])
        true, member = select_pair(here, self.truth, variable, lead, time=time, number=number)
        from wxlab.verification import exceedance

        likely = exceedance(here, [threshold]).isel(threshold=0)
        share = select_field(likely, variable, time=time, lead=lead)
        fields = {"Truth": true, f"Member {number}" if number != "mean" else "Ensemble mean": member, "Probability": share}
        rain = colour_scale(true.look, [true.values, member.values])
        cells = [field_cells(field.values) for field in fields.values()]
        crs = projection_for(cells[0])
        width, height = panel_size(cells[0], crs, PANEL)
        figure = new_figure(3 * width + 1.2, height + 1.5)
        places = figure.add_gridspec(1, 3)
        axes = [map_axes(figure, places[column], frame, crs) for column, frame in enumerate(cells)]
        scales = [rain, rain, probability_scale()]
        for place, frame, scale, title in zip(axes, cells, scales, fields, strict=True):
            mesh = draw_cells(place, frame, scale)
            outline_events(place, likely, self.truth, variable, lead, time, threshold)
            place.set_title(title, loc="left")
            place.set(xlabel="", ylabel="")
            place.tick_params(length=0, labelbottom=False, labelleft=False)
            if place is axes[1]:
                figure.colorbar(mesh, ax=axes[:2], extend=rain[2], label=true.label, location="bottom", aspect=40, shrink=0.8)
        words = f"Probability of {threshold:g} {true.look.units} or more".replace("  ", " ")
        figure.colorbar(mesh, ax=axes[2], label=words, ticks=np.arange(0, 1.01, 0.2), location="bottom", aspect=20, shrink=0.9)
        return figure
