"""Nowcasts: rows of frames, scores of events by lead time, diagrams of ensembles, spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import BoundaryNorm
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter

from wxlab.errors import WxlabError, unknown
from wxlab.plots.fields import LEAD, Field, Lead, Moment, lead_axis, lead_position, lead_text, pick_variable, select_field, select_pair
from wxlab.plots.geometry import field_cells
from wxlab.plots.maps import Scale, draw_cells, map_axes, panel_size, projection_for
from wxlab.plots.series import line_styles, metric_title
from wxlab.plots.style import COLOURS, MISSING_COLOUR, TRUTH_COLOUR, channel_label, colour_scale, look, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Named = xr.Dataset | Mapping[str, xr.Dataset]


@styled
def plot_frames(
    forecasts: Named,
    truth: xr.Dataset,
    variable: str,
    *,
    time: Moment | None = None,
    leads: Sequence[Lead] | None = None,
    members: Sequence[int] = (),
    number: int | str | None = None,
) -> Figure:
    """Draw frames of the truth and of forecasts in rows, lead time running to the right.

    forecasts: one or several by name.  truth: holds the times that they are valid at.  variable: name or channel.  time: initial
    time (None: the first).  leads: hours or texts such as '30min'; None: six spread over all.  members: of ensembles, a row each;
    none: one row with ``number``, a member, 'mean' or 'spread' (None: the mean).
    All frames share one colour scale, with the steps of rain rate, reflectivity or VIL where they are that.
    Returns the figure. Raises WxlabError for what the Datasets do not hold.
    """
    named = _named(forecasts, "forecasts", "what wxlab.forecast returned")
    first = pick_variable(next(iter(named.values())), variable)[0]
    if LEAD not in first.dims:
        raise WxlabError(f"the forecast of {variable!r} has no {LEAD!r}; give what wxlab.forecast returned")
    chosen: list[Any] = list(leads) if leads is not None else list(first[LEAD].values[_spread(first.sizes[LEAD], 6)])
    known = next(iter(named.values()))
    rows: dict[str, list[Field]] = {"Truth": [select_pair(known, truth, variable, lead, time=time)[0] for lead in chosen]}
    for name, dataset in named.items():
        several = members if "number" in pick_variable(dataset, variable)[0].dims else ()
        for member in several or (number,):
            label = (name or "Forecast") + (f"\nmember {member}" if several else "")
            rows[label] = [select_field(dataset, variable, time=time, lead=lead, number=member) for lead in chosen]
    cells = {label: [field_cells(field.values) for field in fields] for label, fields in rows.items()}
    crs = projection_for(cells["Truth"][0])
    width, height = panel_size(cells["Truth"][0], crs, min(1.9, 11.0 / len(chosen)))
    figure = new_figure(width * len(chosen) + 1.8, (height + 0.08) * len(rows) + 0.3)
    places = figure.add_gridspec(len(rows), len(chosen))
    scale = colour_scale(rows["Truth"][0].look, [field.values for fields in rows.values() for field in fields])
    axes = []
    for row, label in enumerate(rows):
        for column, frame in enumerate(cells[label]):
            axes.append(map_axes(figure, places[row, column], frame, crs))
            mesh = draw_cells(axes[-1], frame, scale)
            axes[-1].set(xlabel="", ylabel=label if column == 0 else "")
            axes[-1].tick_params(length=0, labelbottom=False, labelleft=False)
            if row == 0:
                axes[-1].set_title("+ " + lead_text(first[LEAD].values[lead_position(first, chosen[column])]))
    figure.colorbar(mesh, ax=axes, extend=scale[2], label=rows["Truth"][0].label, shrink=0.9, aspect=30)
    return figure


@styled
def plot_thresholds(
    scores: Named, variable: str, *, metric: str = "csi", thresholds: Sequence[float] | None = None, columns: int = 3, **choice: float
) -> Figure:
    """Draw a score of events by lead time: a panel for each threshold, a line for each forecast.

    scores: from ``verify`` with thresholds, one or several by name; ``persistence`` is drawn grey.  variable: that was scored.
    metric: csi, hss, pod, far, frequency_bias, brier, or with ``pool=`` or ``window=`` csi_pooled, csi_overlapping, fss.
    thresholds: some of those that were scored; None: all.  columns: panels side by side.
    Returns the figure. Raises WxlabError for what the scores do not hold.
    """
    named = _named(scores, "scores", "what verify returned")
    lines = {name: _metric(score, name, variable, metric, choice) for name, score in named.items()}
    first = next(iter(lines.values()))
    if "threshold" not in first.dims or LEAD not in first.dims:
        raise WxlabError(f"the scores of {variable!r} are not by threshold and lead time; give what verify returned with thresholds=")
    chosen = [_position(first, "threshold", value) for value in thresholds] if thresholds is not None else range(first.sizes["threshold"])
    rows = -(-len(chosen) // columns)
    columns = -(-len(chosen) // rows)
    figure = new_figure(max(2.9 * columns, 4.5), 2.3 * rows + 0.5)
    places = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    styles = line_styles(list(named))
    for index, (axes, position) in enumerate(zip(places.flat, chosen, strict=False)):
        threshold = float(first["threshold"].values[position])
        for name, line in lines.items():
            leads, unit = lead_axis(line)
            values = line.isel(threshold=_position(line, "threshold", threshold))
            axes.plot(leads, values, marker="o", markersize=3, label=name or None, **styles[name])
        axes.set_title(_event_words(variable, threshold, first.attrs.get("variable_units")))
        axes.grid(True)
        if index % columns == 0:
            axes.set_ylabel(metric_title(metric))
        if index + columns >= len(chosen):
            axes.set_xlabel(f"Lead time [{unit}]")
            axes.tick_params(labelbottom=True)
    for axes in places.flat[len(chosen) :]:
        axes.remove()
    if metric == "frequency_bias":
        for axes in places.flat[: len(chosen)]:
            axes.axhline(1, color="#999999", linewidth=0.8)
    else:
        places.flat[0].set_ylim(bottom=0)
    if any(named):
        figure.legend(*places.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=min(len(named), 5))
    return figure


@styled
def plot_performance(scores: Named, variable: str, *, lead: Lead | None = None) -> Figure:
    """Draw a performance diagram: probability of detection over success ratio (1 − FAR), a line through the thresholds.

    Curves of equal CSI = 1 / (1/SR + 1/POD − 1) and lines of equal frequency bias = POD / SR lie behind; the upper right is perfect.
    scores: from ``verify`` with the metrics pod and far, one or several by name.  variable: that was scored.  lead: hours or a text;
    None: the first, or that of all where they were added up.
    Returns the figure. Raises WxlabError for what the scores do not hold.
    Reference: Roebber 2009, doi:10.1175/2008WAF2222159.1.
    """
    named = _named(scores, "scores", "what verify returned")
    figure = new_figure(5.0, 5.0)
    axes = figure.add_subplot()
    ratio, detection = np.meshgrid(np.linspace(0.005, 1, 200), np.linspace(0.005, 1, 200))
    behind = axes.contour(
        ratio, detection, 1 / (1 / ratio + 1 / detection - 1), np.arange(0.1, 1, 0.1), colors="#bbbbbb", linewidths=0.7, zorder=0
    )
    axes.clabel(behind, fmt="%.1f", fontsize="x-small")
    for bias in (0.25, 0.5, 1.0, 2.0, 4.0):
        end = (min(1, 1 / bias), min(1, bias))
        axes.plot([0, end[0]], [0, end[1]], color="#dddddd", linewidth=0.7, linestyle="--", zorder=0)
        axes.annotate(f"{bias:g}", end, color="#888888", fontsize="x-small", xytext=(2, 2), textcoords="offset points")
    title, styles = "", line_styles(list(named))
    for name, score in named.items():
        pair = [_metric(score, name, variable, metric, {}) for metric in ("pod", "far")]
        if LEAD in pair[0].dims:
            place = lead_position(pair[0], lead)
            title = f"+ {lead_text(pair[0][LEAD].values[place])}"
            pair = [array.isel({LEAD: place}) for array in pair]
        success, found = 1 - pair[1].values, pair[0].values
        axes.plot(success, found, marker="o", markersize=4, label=name or None, clip_on=False, **styles[name])
        for threshold, x, y in zip(pair[0]["threshold"].values, success, found, strict=True):
            if np.isfinite(x + y):
                axes.annotate(f"{threshold:.3g}", (x, y), fontsize="x-small", xytext=(4, -8), textcoords="offset points")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Success ratio (1 − FAR)", ylabel="Probability of detection", aspect="equal", title=title)
    if any(named):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=min(len(named), 5))
    return figure


@styled
def plot_reliability(
    curves: Named, variable: str, *, lead: Lead | None = None, thresholds: Sequence[float] | None = None, columns: int = 3
) -> Figure:
    """Draw reliability diagrams: how often an event happened over its probability, and below how often each probability was given.

    curves: from ``wxlab.verification.reliability``, one or several by name.  lead: hours or a text; None: the first.  thresholds:
    some of them; None: all, at most as many as ``columns``.  A reliable forecast lies on the diagonal; the dotted line is how often
    the event happened at all.
    Returns the figure. Raises WxlabError for what the Datasets do not hold.
    """
    named = _named(curves, "curves", "what wxlab.verification.reliability returned")
    arrays = {name: _at_lead(dataset, variable, lead, "quantity", "bin") for name, dataset in named.items()}
    first = next(iter(arrays.values()))
    chosen = list(thresholds) if thresholds is not None else first["threshold"].values.tolist()[:columns]
    figure = new_figure(max(2.9 * len(chosen), 4.5), 4.3)
    places = figure.subplots(2, len(chosen), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    styles = line_styles(list(named))
    for (curve, counts), threshold in zip(places.T, chosen, strict=True):
        curve.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        for name, array in arrays.items():
            at = array.isel(threshold=_position(array, "threshold", threshold))
            probability, frequency, share = (at.sel(quantity=part).values for part in ("probability", "frequency", "share"))
            curve.plot(probability, frequency, marker="o", markersize=3, label=name or None, **styles[name])
            counts.plot(probability, share, marker="o", markersize=2, linewidth=1, **styles[name])
        curve.axhline(float(np.nansum(frequency * share)), color="#999999", linewidth=0.8, linestyle=":")
        curve.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=_event_words(variable, threshold, None))
        counts.set(xlabel="Probability", yscale="log")
        counts.grid(True)
    places[0, 0].set_ylabel("Frequency")
    places[1, 0].set_ylabel("Share")
    _suptitle(figure, first, named, places[0, 0])
    return figure


@styled
def plot_rank_histogram(histograms: Named, variable: str, *, leads: Sequence[Lead] | None = None) -> Figure:
    """Draw rank histograms, a panel for each lead time, a step line for each forecast; the dashed line is a flat one.

    histograms: from ``wxlab.verification.rank_histogram``, one or several by name, of as many members.  leads: hours or texts; None:
    the first, the middle and the last.
    A U means too little spread, a dome too much, a slope a bias.
    Returns the figure. Raises WxlabError for what the Datasets do not hold.
    """
    named = _named(histograms, "histograms", "what wxlab.verification.rank_histogram returned")
    arrays = {name: _array(dataset, name, variable, "rank") for name, dataset in named.items()}
    first = next(iter(arrays.values()))
    chosen = [lead_position(first, lead) for lead in leads] if leads is not None else _spread(first.sizes[LEAD], 3)
    figure = new_figure(max(3.0 * len(chosen), 4.5), 2.8)
    places = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    styles = line_styles(list(named))
    for axes, position in zip(places, chosen, strict=True):
        moment = first[LEAD].values[position]
        for name, array in arrays.items():
            values = array.isel({LEAD: lead_position(array, moment)}).values
            if len(arrays) == 1:
                axes.bar(np.arange(len(values)), values, width=0.9, color=COLOURS[0])
            else:
                axes.stairs(values, np.arange(len(values) + 1) - 0.5, baseline=None, label=name, linewidth=1.6, **_of_patch(styles[name]))
        axes.axhline(1 / len(values), color="#666666", linewidth=0.9, linestyle="--")
        axes.set(title=f"+ {lead_text(moment)}", xlabel="Rank of the truth")
        axes.xaxis.set_major_locator(MultipleLocator(max(1, len(values) // 6)))
    places[0].set_ylabel("Share of points")
    places[0].set_ylim(bottom=0)
    if len(arrays) > 1:
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside upper left", ncols=min(len(named), 5))
    return figure


@styled
def plot_exceedance(
    probabilities: xr.Dataset,
    variable: str,
    *,
    threshold: float,
    truth: xr.Dataset | None = None,
    time: Moment | None = None,
    leads: Sequence[Lead] | None = None,
) -> Figure:
    """Draw maps of the probability that a threshold is reached, lead time running to the right.

    probabilities: from ``wxlab.verification.exceedance``.  threshold: one of them.  truth: states; where they reach the threshold
    is outlined.  time: initial time (None: the first).  leads: hours or texts; None: four spread over all.
    Returns the figure. Raises WxlabError for what the Datasets do not hold.
    """
    array = _array(probabilities, "", variable, "threshold")
    at = array.isel(threshold=_position(array, "threshold", threshold)).to_dataset(name=variable)
    chosen: list[Any] = list(leads) if leads is not None else list(array[LEAD].values[_spread(array.sizes[LEAD], 4)])
    fields = [select_field(at, variable, time=time, lead=lead) for lead in chosen]
    cells = [field_cells(field.values) for field in fields]
    crs = projection_for(cells[0])
    width, height = panel_size(cells[0], crs, min(2.8, 11.0 / len(chosen)))
    figure = new_figure(width * len(chosen) + 1.1, height + 0.7)
    places = figure.add_gridspec(1, len(chosen))
    scale = probability_scale()
    axes = []
    for column, (frame, lead) in enumerate(zip(cells, chosen, strict=True)):
        axes.append(map_axes(figure, places[column], frame, crs))
        mesh = draw_cells(axes[-1], frame, scale)
        axes[-1].set(xlabel="", ylabel="", title="+ " + lead_text(array[LEAD].values[lead_position(array, lead)]))
        axes[-1].tick_params(length=0, labelbottom=False, labelleft=False)
        if truth is not None:
            outline_events(axes[-1], at, truth, variable, lead, time, threshold)
    words = _event_words(variable, threshold, array["threshold"].attrs.get("units"))
    label = f"Probability of {look(variable).short or variable} {words}"
    figure.colorbar(mesh, ax=axes, label=label, ticks=np.arange(0, 1.01, 0.2), shrink=0.9, aspect=25)
    return figure


def probability_scale() -> Scale:
    """Colour map, norm and ``extend`` for probabilities: white at zero, then tenths."""
    colours = mpl.colormaps["YlGnBu"].with_extremes(under="#ffffff", bad=MISSING_COLOUR)
    return colours, BoundaryNorm([0.001, *np.arange(0.1, 1.01, 0.1)], colours.N), "neither"


def outline_events(axes: Axes, at: xr.Dataset, truth: xr.Dataset, variable: str, lead: Lead, time: Moment | None, threshold: float) -> None:
    """Where the truth reaches the threshold."""
    true, _ = select_pair(at, truth, variable, lead, time=time)
    frame = field_cells(true.values)
    events = np.where(np.isnan(frame.values), 0.0, frame.values >= threshold * true.look.scale)
    middles = [(edges[1:] + edges[:-1]) / 2 for edges in (frame.x, frame.y)]
    if 0 < events.sum() < events.size:
        axes.contour(*middles, events, levels=[0.5], colors=TRUTH_COLOUR, linewidths=0.8)


@styled
def plot_spectra(spectra: Named, variable: str, *, leads: Sequence[Lead] | None = None) -> Figure:
    """Draw radial power spectra over wavelength, and below their ratio to the truth's; a column for each lead time.

    spectra: from ``wxlab.verification.radial_spectra``, one or several by name.  leads: hours or texts; None: the first, the middle
    and the last. Wavelengths shorter than two points, which only the corners of the spectrum have, are left out.
    Returns the figure. Raises WxlabError for what the Datasets do not hold.
    """
    named = _named(spectra, "spectra", "what wxlab.verification.radial_spectra returned")
    arrays = {name: _array(dataset, name, variable, "wavenumber") for name, dataset in named.items()}
    first = next(iter(arrays.values()))
    chosen = [lead_position(first, lead) for lead in leads] if leads is not None else _spread(first.sizes[LEAD], 3)
    figure = new_figure(max(3.2 * len(chosen), 4.5), 4.6)
    places = figure.subplots(2, len(chosen), squeeze=False, sharex=True, sharey="row", height_ratios=(2, 1))
    styles = line_styles(list(named))
    for (upper, lower), position in zip(places.T, chosen, strict=True):
        moment = first[LEAD].values[position]
        for index, (name, array) in enumerate(arrays.items()):
            at = array.isel({LEAD: lead_position(array, moment)})
            seen = slice(1, int((at.sizes["wavenumber"] - 1) / np.sqrt(2) + 1e-9) + 1)  # up to Nyquist along an axis of a square
            wavelength, power = at["wavelength"].values[seen] / 1000, at.isel(wavenumber=seen)
            ours, theirs = (power.sel(source=source).values for source in ("forecast", "truth"))
            if index == 0:
                upper.loglog(wavelength, theirs, color=TRUTH_COLOUR, label="truth")
            upper.loglog(wavelength, ours, label=name or "forecast", **styles[name])
            lower.loglog(wavelength, np.divide(ours, theirs, out=np.full_like(ours, np.nan), where=theirs > 0), **styles[name])
        lower.axhline(1, color="#999999", linewidth=0.8)
        upper.set_title(f"+ {lead_text(moment)}")
        lower.set_xlabel("Wavelength [km]")
        for axes in (upper, lower):
            axes.grid(True)
    lower.invert_xaxis()
    lower.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    lower.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    lower.xaxis.set_minor_formatter(NullFormatter())
    units = first.attrs.get("units")
    places[0, 0].set_ylabel(f"Power [{units}]" if units else "Power")
    places[1, 0].set_ylabel("Forecast / truth")
    figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=min(len(named) + 1, 5))
    figure.suptitle(channel_label(variable, with_units=False), x=0.99, ha="right", fontsize="medium")
    return figure


def _named(given: Named, what: str, want: str) -> dict[str, xr.Dataset]:
    named = {"": given} if isinstance(given, xr.Dataset) else dict(given)
    if not named:
        raise WxlabError(f"there is nothing to draw: {what} is empty; give {want}, or several by name")
    return named


def _spread(count: int, most: int) -> list[int]:
    """At most so many positions, evenly spread from the first to the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _array(dataset: xr.Dataset, name: str, variable: str, needed: str) -> xr.DataArray:
    array, _, _ = pick_variable(dataset, variable)
    if needed not in array.dims or LEAD not in array.dims:
        told = f" of {name!r}" if name else ""
        raise WxlabError(f"{variable!r}{told} has the dimensions {', '.join(map(str, array.dims))}; {needed} and {LEAD} are needed here")
    return array


def _at_lead(dataset: xr.Dataset, variable: str, lead: Lead | None, *needed: str) -> xr.DataArray:
    array = _array(dataset, "", variable, needed[0])
    return array.isel({LEAD: lead_position(array, lead)})


def _metric(scores: xr.Dataset, name: str, variable: str, metric: str, choice: Mapping[str, float]) -> xr.DataArray:
    """Scores of one metric, by threshold (and lead time); pools and windows as chosen."""
    array, _, _ = pick_variable(scores, variable)
    if "metric" not in array.dims or metric not in array["metric"].values:
        raise unknown("metric" + (f" of {name!r}" if name else ""), metric, array["metric"].values if "metric" in array.dims else [])
    array = array.sel(metric=metric)
    for dim in ("pool", "window"):
        if dim in array.dims:
            array = array.isel({dim: _position(array, dim, choice[dim]) if dim in choice else 0})
    return array


def _position(array: xr.DataArray, dim: str, value: float) -> int:
    """Where a threshold, pool or window stands. Raises WxlabError naming those that there are."""
    values = array[dim].values
    found = np.flatnonzero(np.isclose(values, value, rtol=1e-4))
    if not found.size:
        raise WxlabError(f"{dim}={value:g} is not among those that there are: {', '.join(f'{entry:.6g}' for entry in values)}")
    return int(found[0])


def _event_words(variable: str, threshold: float, units: str | None) -> str:
    """``≥ 2 mm/h``: an event in display units."""
    shown = look(variable, units)
    return f"≥ {threshold * shown.scale:.4g} {shown.units}".rstrip()


def _of_patch(style: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": style["color"], "linestyle": style.get("linestyle", "-")}


def _suptitle(figure: Figure, array: xr.DataArray, named: Mapping[str, Any], axes: Axes) -> None:
    figure.suptitle("+ " + lead_text(array[LEAD].values), x=0.99, ha="right", fontsize="medium")
    if any(named):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=min(len(named), 5))
