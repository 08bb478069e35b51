"""Forecasts side by side in HoloViews: a slider over lead time that also works in a saved page, without a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from wxlab.errors import WxlabError
from wxlab.plots.fields import LEAD, Field, Moment, pick_variable, select_pair
from wxlab.plots.style import MISSING_COLOUR, colour_scale

PANEL = 260  # pixels
Panels = dict[str, dict[float, Field]]  # name -> lead time in minutes -> field


def holo_comparison(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset,
    variable: str,
    *,
    time: Moment | None = None,
    number: int | str | None = None,
    frames: int = 24,
) -> Any:
    """Truth and forecasts of one variable, next to each other, over lead time.

    forecasts: name -> forecast; the lead times that all of them have are shown.  truth: states that hold the valid times.  time:
    initial time (None: the first).  number: member, ``mean`` or ``spread`` of forecasts that have members (None: the mean).
    frames: at most so many lead times; of more every second, third, ... is shown.
    Returns a HoloViews Layout whose panels share one slider and one colour scale; call ``hv.extension("bokeh", inline=True)`` first.
    Raises WxlabError when there is no common lead time, and for what the Datasets do not hold.
    """
    import holoviews as hv

    panels = _panels(forecasts, truth, variable, time, number, frames)
    fields = [field for panel in panels.values() for field in panel.values()]
    options = _colours(fields) | {"clabel": fields[0].look.units, "toolbar": None, "xaxis": None, "yaxis": None}
    options |= {"frame_width": PANEL, "frame_height": PANEL}
    y, x = (str(dim) for dim in fields[0].values.dims)
    step = hv.Dimension("lead", label="Lead time", unit="min")
    maps = []
    for name, panel in panels.items():
        pictures = {
            minutes: hv.Image(tuple(np.asarray(part) for part in (field.values[x], field.values[y], field.values)), [x, y], [variable])
            for minutes, field in panel.items()
        }
        last = name == list(panels)[-1]
        maps.append(hv.HoloMap(pictures, kdims=[step]).opts(hv.opts.Image(title=name, colorbar=last, **options)))
    return hv.Layout(maps).cols(4)


def _panels(
    forecasts: Mapping[str, xr.Dataset], truth: xr.Dataset, variable: str, time: Moment | None, number: int | str | None, frames: int
) -> Panels:
    """The fields of each panel by lead time in minutes; the truth's come first."""
    if not forecasts:
        raise WxlabError("forecasts is empty; give at least one, such as {'stldm': forecast}")
    arrays = {name: pick_variable(dataset, variable)[0] for name, dataset in forecasts.items()}
    leads = sorted(set.intersection(*(set(array[LEAD].values.tolist()) for array in arrays.values())))
    if not leads:
        raise WxlabError(f"the forecasts {', '.join(forecasts)} have no lead time in common; make them with the same step")
    panels: Panels = {name: {} for name in ("truth", *forecasts)}
    for lead in np.array(leads[:: -(-len(leads) // frames)], dtype="timedelta64[ns]"):
        minutes = float(lead / np.timedelta64(1, "m"))
        for name, dataset in forecasts.items():
            member = number if "number" in arrays[name].dims else None
            panels["truth"][minutes], panels[name][minutes] = select_pair(dataset, truth, variable, lead, time=time, number=member)
    return panels


def _colours(fields: list[Field]) -> dict[str, Any]:
    """Colour scale of ``wxlab.plots`` in bokeh's words."""
    colours, norm, _ = colour_scale(fields[0].look, [field.values for field in fields])
    options: dict[str, Any] = {"clim": (float(norm.vmin or 0), float(norm.vmax or 1))}
    edges = getattr(norm, "boundaries", None)
    if edges is None:
        return options | {"cmap": colours, "clipping_colors": {"NaN": MISSING_COLOUR}}
    palette = [to_hex(colours(place)) for place in range(len(edges) - 1)]
    return options | {"cmap": palette, "color_levels": list(map(float, edges)), "clipping_colors": {"min": "white", "NaN": MISSING_COLOUR}}
