"""What a forecast creates or loses, over lead time."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.ticker import MultipleLocator

from wxlab.errors import WxlabError
from wxlab.plots.fields import LEAD, lead_axis
from wxlab.plots.series import lead_step
from wxlab.plots.style import COLOURS, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3
BEYOND = ("level", "layer")


@styled
def plot_conservation(report: xr.Dataset) -> Figure:
    """Draw the relative drift of each conserved quantity and balance over lead time: members thin, their mean bold.

    report: from ``wxlab.conservation.report``; drift is a mean over initial times. Without members, initial times are the thin lines.
    A quantity of several levels or layers has a bold line for each and no thin ones. Below the panels stands what each cannot close.
    Returns the figure. Raises WxlabError for another Dataset.
    """
    if "kind" not in report.dims or "relative_drift" not in report["kind"].values or LEAD not in report.dims:
        raise WxlabError("the Dataset holds no drifts; give what wxlab.conservation.report(forecast, truth) returns")
    names = [str(name) for name in report.data_vars]
    columns = min(ACROSS, len(names))
    rows = -(-len(names) // columns)
    width = max(3.6 * columns, 5.0)
    words = [line for name in names for line in _caption(report[name], int(width * 15))]
    figure = new_figure(width, 2.5 * rows + 0.4 + 0.16 * len(words))
    places = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, name in zip(places.flat, names, strict=False):
        _draw(axes, report[name])
    for column in range(columns):
        lowest = places[(len(names) - 1 - column) // columns, column]
        lowest.set_xlabel(f"Lead time [{lead_axis(report[names[0]])[1]}]")
        lowest.tick_params(labelbottom=True)
    for axes in places.flat[len(names) :]:
        axes.remove()
    figure.supxlabel("\n".join(words), x=0.01, ha="left", fontsize="small", color="#555555")
    of = "what the first lead time has" if report.attrs.get("reference") == "first lead time" else "the truth"
    figure.suptitle(f"Drift in per cent of {of}", x=0.005, ha="left", fontsize="medium")
    return figure


def _draw(axes: Axes, array: xr.DataArray) -> None:
    """One quantity: its relative drift in per cent."""
    drift = 100 * array.sel(kind="relative_drift")
    leads, _ = lead_axis(drift)
    beyond = next((dim for dim in BEYOND if dim in drift.dims), None)
    thin = next((dim for dim in ("number", "time") if dim in drift.dims), None)
    mean = drift.mean([dim for dim in ("time", "number") if dim in drift.dims])
    if beyond is None or drift.sizes[beyond] == 1:
        mean = mean if beyond is None else mean.isel({beyond: 0})
        if thin is not None and drift.sizes[thin] > 1:
            each = drift.mean([dim for dim in ("time", *BEYOND) if dim in drift.dims and dim != thin])
            for i in range(each.sizes[thin]):
                label = None if i else {"number": "members", "time": "initial times"}[thin]
                axes.plot(leads, each.isel({thin: i}), color=COLOURS[0], linewidth=0.6, alpha=0.5, label=label)
        axes.plot(leads, mean, color=COLOURS[0], linewidth=2.4, label="mean")
    else:
        for i, place in enumerate(mean[beyond].values):
            label = f"{place:g} hPa" if beyond == "level" else str(place)
            axes.plot(leads, mean.isel({beyond: i}), color=COLOURS[i % len(COLOURS)], linewidth=2.4, label=label)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.xaxis.set_major_locator(MultipleLocator(lead_step(float(leads.max()))))
    axes.grid(True)
    title = str(array.attrs["long_name"])
    axes.set_title(title[0].upper() + title[1:], fontsize="medium" if len(title) < 30 else "small")
    axes.set_ylabel("Drift [%]")
    reach = float(np.abs(drift).max())
    if reach < 1e-10:  # nothing but rounding: no line should fill its panel with it
        axes.set_ylim(-1e-10, 1e-10)
    axes.legend(fontsize="small", loc="best")


def _caption(array: xr.DataArray, width: int) -> list[str]:
    text = f"{array.attrs['long_name']}: {array.attrs['covers']}; misses {array.attrs['misses']}."
    return textwrap.wrap(text[0].upper() + text[1:], width, subsequent_indent="    ")
