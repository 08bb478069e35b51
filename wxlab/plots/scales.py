"""Forecasts by scale: ratios to the truth over lead time, effective resolution, and what an operator does to each scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from wxlab.errors import WxlabError
from wxlab.plots.fields import LEAD, lead_axis
from wxlab.plots.series import lead_step, line_styles
from wxlab.plots.style import DIFFERENCE_MAP, channel_label, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIMES = 4.0  # as much or as little power as colours tell apart
ACROSS = 4


@styled
def plot_ratio(ratios: Mapping[str, xr.DataArray], *, last: float | None = None) -> Figure:
    """Draw the power of forecasts over that of the truth, by degree and lead time: blue is too smooth, red too rough.

    ratios: by name, [prediction_timedelta, degree] (or wavenumber), from ``wxlab.spectra.ratio``.  last: last degree to show.
    Where a ratio is a half, a line is drawn. Returns the figure. Raises WxlabError for other dimensions.
    """
    if not ratios:
        raise WxlabError("there is nothing to draw: ratios is empty; give at least one by name")
    columns = min(ACROSS, len(ratios))
    rows = -(-len(ratios) // columns)
    figure = new_figure(3.0 * columns + 1.0, 2.7 * rows + 0.3)
    places = figure.subplots(rows, columns, squeeze=False, sharey=True)
    colours = LogNorm(1 / TIMES, TIMES)
    for axes, (name, ratio) in zip(places.flat, ratios.items(), strict=False):
        dim = next((dim for dim in ("degree", "wavenumber") if dim in ratio.dims), None)
        if dim is None or set(ratio.dims) != {LEAD, dim}:
            raise WxlabError(f"the ratio {name!r} has the dimensions {', '.join(map(str, ratio.dims))}; it must have {LEAD} and degree")
        shown = ratio.transpose(dim, LEAD)
        scales = shown[dim].values
        shown = shown.isel({dim: np.flatnonzero((scales > 0) & (scales <= (np.inf if last is None else last)))})
        leads, units = lead_axis(shown)
        values = np.clip(shown.values, 1 / TIMES / 2, TIMES * 2)
        mesh = axes.pcolormesh(leads, shown[dim], values, cmap=DIFFERENCE_MAP, norm=colours, shading="nearest")
        if min(values.shape) > 1 and np.nanmin(values) < 0.5 < np.nanmax(values):
            axes.contour(leads, shown[dim], values, [0.5], colors="black", linewidths=1)
        axes.set(title=name, xlabel=f"Lead time [{units}]", xticks=leads if len(leads) <= 6 else leads[:: -(-len(leads) // 5)])
    for axes in places[:, 0]:
        axes.set_ylabel("Degree" if dim == "degree" else "Wavenumber [1/m]")
    for axes in places.flat[len(ratios) :]:
        axes.remove()
    bar = figure.colorbar(mesh, ax=places, label="Power / power of the truth", extend="both", ticks=[0.25, 0.5, 1, 2, 4], aspect=25)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


@styled
def plot_resolution(found: Mapping[str, xr.Dataset], *, finest: float | None = None) -> Figure:
    """Draw the effective resolution of forecasts over lead time, a panel for each variable and level, a line for each forecast.

    found: by name, Datasets of ``wxlab.spectra.effective_resolution`` [prediction_timedelta, (level)], metres.  finest: what the data
    resolve, metres: a forecast that never falls under the threshold (NaN) stands there.
    Returns the figure. Raises WxlabError for Datasets without lead times.
    """
    if not found or any(LEAD not in each.dims for each in found.values()):
        raise WxlabError(f"found must hold, by name, Datasets of effective resolutions over {LEAD}")
    first = next(iter(found.values()))
    panels = [(str(name), level) for name, array in first.items() for level in (array["level"].values if "level" in array.dims else [None])]
    columns = min(ACROSS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(max(2.9 * columns, 4.5), 2.5 * rows + 0.4)
    places = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    styles = line_styles(list(found))
    for index, (name, level) in enumerate(panels):
        axes = places.flat[index]
        for kind, each in found.items():
            line = each[name] if level is None else each[name].sel(level=level)
            leads, units = lead_axis(line)
            km = line.values / 1000 if finest is None else np.where(np.isfinite(line.values), line.values, finest) / 1000
            axes.semilogy(leads, km, marker="o", markersize=3, label=kind, **styles[kind])
        if finest is not None:
            axes.axhline(finest / 1000, color="#999999", linewidth=0.8)
        axes.xaxis.set_major_locator(MultipleLocator(lead_step(float(leads.max()))))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(True)
        axes.set_title(channel_label(name, level, with_units=False))
        if index + columns >= len(panels):
            axes.set_xlabel(f"Lead time [{units}]")
            axes.tick_params(labelbottom=True)
    for axes in places[:, 0]:
        axes.set_ylabel("Resolves from [km]")
    for axes in places.flat[len(panels) :]:
        axes.remove()
    figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return figure


@styled
def plot_response(responses: Mapping[str, xr.Dataset]) -> Figure:
    """Draw what operators do to each degree: gain and leak, and for each operator which degrees come out of which.

    responses: by name, from ``wxlab.spectra.frequency_response``.
    Returns the figure. Raises WxlabError for other Datasets.
    """
    if not responses or any("response" not in each for each in responses.values()):
        raise WxlabError("responses must hold, by name, what wxlab.spectra.frequency_response returns")
    columns = max(2, len(responses))
    figure = new_figure(3.0 * columns + 0.8, 5.6)
    rows = figure.add_gridspec(2, 1, height_ratios=(1, 1.15))
    above = rows[0].subgridspec(1, 2)
    gain, leak = figure.add_subplot(above[0]), figure.add_subplot(above[1])
    for name, style in line_styles(list(responses)).items():
        each = responses[name]
        gain.plot(each["degree_in"], each["gain"], label=name, **style)
        leak.plot(each["degree_in"], each["leak"], **style)
    gain.axhline(1, color="#999999", linewidth=0.8)
    gain.set(ylabel="Gain", ylim=(0, None), title="What comes out at its own degree")
    leak.set(ylabel="Share of power", ylim=(0, 1), title="What leaks into other degrees")
    for axes in (gain, leak):
        axes.set_xlabel("Degree that goes in")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True)
    below, mesh = rows[1].subgridspec(1, columns), None
    panels: list[Axes] = []
    for column, (name, each) in enumerate(responses.items()):
        axes = figure.add_subplot(below[column])
        total = each["response"].sum("degree")
        share = (each["response"] / total.where(total > 0)).transpose("degree", "degree_in")
        norm = LogNorm(1e-4, 1)
        mesh = axes.pcolormesh(each["degree_in"], each["degree"], share.clip(1e-4), norm=norm, shading="nearest")
        axes.set(title=name, xlabel="Degree that goes in", ylabel="" if column else "Degree that comes out")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
        panels.append(axes)
    figure.colorbar(mesh, ax=panels, label="Share of power", extend="min", aspect=20)  # type: ignore[arg-type]
    figure.legend(*gain.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure
