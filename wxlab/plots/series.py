"""Lines: values at a point over time, scores over lead time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MultipleLocator

from wxlab.errors import WxlabError, unknown
from wxlab.plots.fields import LEAD, Moment, lead_axis, pick_variable, time_position
from wxlab.plots.style import COLOURS, TRUTH_COLOUR, channel_label, look, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = xr.Dataset | Mapping[str, xr.Dataset]
# scores in the variable's unit where the table does not say so itself; all others are pure numbers
_WITH_UNIT = ("rmse", "mae", "bias", "crps", "spread", "stdev")
_TITLES = {
    "crps_fair": "Fair CRPS",
    "frequency_bias": "Frequency bias",
    "csi_m": "CSI, mean of thresholds",
    "hss_m": "HSS, mean of thresholds",
    "csi_pooled": "CSI of pools",
    "csi_pooled_m": "CSI of pools, mean of thresholds",
    "csi_overlapping": "CSI of overlapping pools",
    "csi_overlapping_m": "CSI of overlapping pools, mean of thresholds",
    "brier": "Brier score",
    "spread_skill": "Spread / skill",
    "mae_scaled": "MAE of 0..1",
    "mse_scaled": "MSE of 0..1",
}
# what every forecast is held against gets the same plain look in all figures
_REFERENCES: dict[str, dict[str, Any]] = {
    "persistence": {"color": "#777777", "linestyle": "--"},
    "climatology": {"color": "#777777", "linestyle": ":"},
    "truth": {"color": TRUTH_COLOUR},
}


def line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each name, the same in every figure with these names; references are grey, truth is black."""
    others = [name for name in names if name not in _REFERENCES]
    colours = {name: {"color": COLOURS[index % len(COLOURS)]} for index, name in enumerate(others)}
    return {name: _REFERENCES.get(name) or colours[name] for name in names}


def nearest_point(array: xr.DataArray, **point: float | None) -> tuple[dict[str, int], str]:
    """Positions of the grid point nearest to a place, and its words (``48.0°N 2.5°E``).

    point: latitude and longitude (degrees, any turn), or y and x (metres).
    Raises WxlabError for axes that are not there, and for a place outside the region.
    """
    given = {name: float(value) for name, value in point.items() if value is not None}
    dims = [str(dim) for dim in array.dims if dim in ("latitude", "longitude", "y", "x")]
    if set(given) != set(dims):
        raise WxlabError(f"the point is given by {', '.join(given) or 'nothing'}, and this dataset needs {' and '.join(dims)}")
    found: dict[str, int] = {}
    for dim in dims:
        axis = array[dim].values.astype(np.float64)
        distance = np.abs((axis - given[dim] + 180) % 360 - 180) if dim == "longitude" else np.abs(axis - given[dim])
        found[dim] = int(np.argmin(distance))
        spacing = float(np.median(np.abs(np.diff(axis)))) if axis.size > 1 else np.inf
        if distance[found[dim]] > spacing:
            raise WxlabError(f"{dim}={given[dim]:g} lies outside the dataset, which covers {axis.min():g} to {axis.max():g}")
    at = {dim: float(array[dim].values[index]) for dim, index in found.items()}
    if "latitude" in at:
        east = (at["longitude"] + 180) % 360 - 180
        return found, f"{abs(at['latitude']):.4g}°{'N' if at['latitude'] >= 0 else 'S'} {abs(east):.4g}°{'E' if east >= 0 else 'W'}"
    return found, f"x {at['x'] / 1000:g} km, y {at['y'] / 1000:g} km"


@styled
def plot_series(
    datasets: xr.Dataset | Mapping[str, xr.Dataset],
    variable: str,
    *,
    latitude: float | None = None,
    longitude: float | None = None,
    y: float | None = None,
    x: float | None = None,
    level: float | None = None,
    time: Moment | Sequence[Moment] | None = None,
) -> Figure:
    """Draw a variable at the nearest grid point over (valid) time.

    datasets: one Dataset or several by label; the label ``truth`` is drawn black. Forecasts are drawn from their initial time
    ``time`` (one or several; None: the first), ensembles as their mean and the band of their middle 80 %.
    latitude, longitude: degrees (radar: y, x in metres).  level: hPa.
    States are shown only as long as the forecasts last. Gaps in time are left open.
    Returns the figure. Raises WxlabError for what the Datasets do not hold.
    """
    named = {"": datasets} if isinstance(datasets, xr.Dataset) else dict(datasets)
    if not named:
        raise WxlabError("there is nothing to draw: datasets is empty; give a Dataset, or several by label")
    figure = new_figure(8.5, 3.2)
    axes = figure.add_subplot()
    styles = line_styles(list(named))
    spans: list[Any] = []
    words = label = ""
    for name, dataset in sorted(named.items(), key=lambda item: LEAD not in item[1].dims):
        array, base, chosen = pick_variable(dataset, variable, level)
        place, words = nearest_point(array, latitude=latitude, longitude=longitude, y=y, x=x)
        shown = look(base, array.attrs.get("units"))
        label = channel_label(base, chosen, array.attrs.get("units"))
        column = (array.isel(place) * shown.scale).load()
        if LEAD in column.dims:
            spans += _draw_forecasts(axes, column, name, styles[name], time)
        else:
            _draw_states(axes, column, name, styles[name], spans)
    axes.set_ylabel(label)
    axes.set_title(words)
    _dates(axes)
    if any(named):
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _draw_forecasts(axes: Axes, column: xr.DataArray, name: str, style: dict[str, Any], time: Any) -> list[Any]:
    """Curves of a forecast over valid time, one for each initial time; returns where they begin and end."""
    moments: list[Any] = [time] if time is None or isinstance(time, (str, int, np.datetime64, pd.Timestamp)) else list(time)
    spans: list[Any] = []
    for index, moment in enumerate(moments):
        one = column.isel(time=time_position(column, 0 if moment is None else moment)) if "time" in column.dims else column
        valid = one["time"].values + one[LEAD].values
        label = name if index == 0 else None
        if "number" in one.dims:
            low, high = one.quantile([0.1, 0.9], dim="number", skipna=True).values
            axes.fill_between(valid, low, high, color=style["color"], alpha=0.2, linewidth=0)
            one = one.mean("number")
        axes.plot(valid, one.values, marker="o", markersize=3, label=label, **style)
        spans += [one["time"].values, valid[-1]]
    return spans


def _draw_states(axes: Axes, column: xr.DataArray, name: str, style: dict[str, Any], spans: list[Any]) -> None:
    times, values = column["time"].values, column.values.astype(np.float64)
    if spans:
        inside = (times >= min(spans)) & (times <= max(spans))
        times, values = times[inside], values[inside]
    if times.size > 2:
        steps = np.diff(times)
        after = np.flatnonzero(steps > 1.5 * np.median(steps)) + 1
        values = np.insert(values, after, np.nan)
        times = np.insert(times, after, times[after - 1] + np.median(steps).astype(steps.dtype))
    axes.plot(times, values, label=name or None, linewidth=1.2 if times.size > 200 else 1.6, **style)


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("Time [UTC]")
    axes.grid(True)


def score_channels(scores: xr.Dataset, variables: Sequence[str] | None, level: float | None) -> Iterator[tuple[str, xr.DataArray, str]]:
    """Each channel of a score table: its label without unit, its scores, its display unit and factor in ``attrs``."""
    for name in variables if variables is not None else [str(name) for name in scores.data_vars]:
        chosen = level
        if name in scores.data_vars and "level" in scores[name].dims and level is None:
            for value in scores[name]["level"].values:
                yield from score_channels(scores, [f"{name}_{value:g}"], None)
            continue
        if name in scores.data_vars and "level" not in scores[name].dims:
            chosen = None
        array, base, found = pick_variable(scores, name, chosen)
        units = _variable_units(array)
        yield base if found is None else f"{base}_{found:g}", array, channel_label(base, found, units, with_units=False)


def metric_values(array: xr.DataArray, metric: str, channel: str) -> tuple[xr.DataArray, str]:
    """One metric of a channel's scores in display units, and the unit. Raises WxlabError for a metric that is not there."""
    if "metric" in array.dims:
        if metric not in array["metric"].values:
            raise unknown("metric", metric, array["metric"].values)
        array = array.sel(metric=metric)
    for dim in ("threshold", "pool", "window"):
        if dim in array.dims:
            array = _only(array, dim, metric)
    base, _, suffix = channel.rpartition("_")
    shown = look(base if suffix.isdigit() else channel, _variable_units(array))
    power = int(array["unit_power"]) if "unit_power" in array.coords else int(metric in _WITH_UNIT)
    if power == 0:
        return array, "dB" if metric == "psnr" else ""
    units = {1: shown.units, 2: f"({shown.units})²" if set("/ ") & set(shown.units) else f"{shown.units}²"}
    return array * shown.scale**power, units[power]


def _only(array: xr.DataArray, dim: str, metric: str) -> xr.DataArray:
    """Scores without a dimension along which they are all the same. Raises WxlabError where they are not."""
    first, values = array.isel({dim: 0}, drop=True), array[dim].values
    if not array.equals(first.expand_dims({dim: values}, array.get_axis_num(dim))):
        listing = ", ".join(f"{value:g}" for value in values)
        raise WxlabError(f"{metric!r} was scored at {dim} {listing}; choose one with scores.sel({dim}={values[0]:g})")
    return first


def _variable_units(array: xr.DataArray) -> str | None:
    """The unit of the variable that was scored."""
    return array.attrs.get("variable_units", array.attrs.get("units"))


@styled
def plot_scores(
    scores: Scores,
    variables: Sequence[str] | None = None,
    *,
    metric: str = "rmse",
    level: float | None = None,
    intervals: Mapping[str, tuple[xr.Dataset, xr.Dataset]] | None = None,
    columns: int = 3,
) -> Figure:
    """Draw scores over lead time, a panel for each variable and level, a line for each forecast.

    scores: from ``verify``, one or several by name; ``persistence`` and ``climatology`` are drawn grey.  variables: names or
    channels; None: all.  metric: one that was scored.  level: hPa; None: all levels.  intervals: lower and upper ends, in the
    layout of the scores, by name; drawn as bands.  columns: panels side by side.
    Returns the figure. Raises WxlabError for what the scores do not hold.
    """
    named = {"": scores} if isinstance(scores, xr.Dataset) else dict(scores)
    if not named:
        raise WxlabError("there is nothing to draw: scores is empty; give what verify returned, or several by name")
    first = next(iter(named.values()))
    panels = list(score_channels(first, variables, level))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(max(3.6 * columns, 4.5), 2.5 * rows + 0.4)
    places = figure.subplots(rows, columns, squeeze=False, sharex=True)
    styles = line_styles(list(named))
    lead_units = ""
    for axes, (channel, _, title) in zip(places.flat, panels, strict=False):
        units = ""
        for name, dataset in named.items():
            ((_, array, _),) = score_channels(dataset, [channel], None)
            line, units = metric_values(array, metric, channel)
            leads, lead_units = lead_axis(line)
            axes.plot(leads, line.values, marker="o", markersize=3, label=name or None, **styles[name])
            if intervals and name in intervals:
                ends = [metric_values(next(score_channels(end, [channel], None))[1], metric, channel)[0].values for end in intervals[name]]
                axes.fill_between(leads, *ends, color=styles[name]["color"], alpha=0.2, linewidth=0)
        axes.set_title(title)
        axes.set_ylabel(f"{metric_title(metric)} [{units}]" if units else metric_title(metric))
        axes.xaxis.set_major_locator(MultipleLocator(lead_step(float(leads.max()))))
        axes.grid(True)
        if metric == "bias":
            axes.axhline(0, color="#999999", linewidth=0.8)
        elif metric == "spread_skill":
            axes.axhline(1, color="#999999", linewidth=0.8)
        elif metric in _WITH_UNIT:
            axes.set_ylim(bottom=0)
    _finish_panels(figure, places, len(panels), named, lead_units)
    return figure


def metric_title(metric: str) -> str:
    """A metric as figures write it: ``RMSE``, ``Bias``, ``Fair CRPS``."""
    return _TITLES.get(metric) or (metric.capitalize() if metric in ("bias", "spread", "skill") else metric.upper())


def lead_step(longest: float) -> float:
    """A distance of ticks on the lead time axis that gives at most eight of them."""
    return float(next((step for step in (1, 2, 3, 6, 12, 24, 48, 72, 120) if longest / step <= 8), 240))


def _finish_panels(figure: Figure, places: np.ndarray, count: int, named: Mapping[str, Any], units: str) -> None:
    """Empty places go, the lowest panel of each column says what runs along it, one legend serves all."""
    for axes in places.flat[count:]:
        axes.remove()
    for column in range(places.shape[1]):
        lowest = places[(count - 1 - column) // places.shape[1], column]
        lowest.set_xlabel(f"Lead time [{units}]")
        lowest.tick_params(labelbottom=True)
    if any(named):
        figure.legend(*places.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=min(len(named), 5))
