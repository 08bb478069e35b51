"""A data set at a glance: what is missing, how values are spread, what the year looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.colors import Normalize
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator

from wxlab.errors import WxlabError, unknown
from wxlab.plots.fields import map_variables, pick_variable
from wxlab.plots.geometry import field_cells
from wxlab.plots.maps import draw_cells, map_axes
from wxlab.plots.style import COLOURS, channel_label, colour_scale, look, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wxlab.normaliser import Normaliser

_GAP_COLOUR = "#ffffff"


def _channels(dataset: xr.Dataset, variables: Sequence[str] | None) -> list[tuple[xr.DataArray, str, float | None]]:
    """Arrays by channel: level variables once for each level, those with a time axis only unless they are named."""
    found: list[tuple[xr.DataArray, str, float | None]] = []
    for name in variables if variables is not None else map_variables(dataset):
        if name in dataset.data_vars and "level" in dataset[name].dims:
            found += [(dataset[name].sel(level=level), name, float(level)) for level in dataset[name]["level"].values]
        elif variables is not None or "time" in dataset[name].dims:
            found.append(pick_variable(dataset, name))
    if not found:
        raise WxlabError("there is nothing to draw: the Dataset has no variable that is a map over time")
    return found


def time_bins(times: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Even bins over a time axis: ``(edges, bin of each time)``, one for each step, or ``most`` longer ones."""
    step = np.median(np.diff(times)).astype("timedelta64[ns]") if times.size > 1 else np.timedelta64(1, "D").astype("timedelta64[ns]")
    count = int((times[-1] - times[0]) // step) + 1
    width = step * -(-count // most)
    bins = ((times - times[0]) // width).astype(np.int64)
    return times[0] + width * np.arange(bins[-1] + 2), bins


@styled
def plot_availability(dataset: xr.Dataset, variables: Sequence[str] | None = None) -> Figure:
    """Draw what is observed and what is missing: channels (down) over time (across), and the share of states at each grid point.

    Colours say which share of grid points is observed; white is where the time axis has a gap; the numbers at the right hold for the
    whole period. The map, drawn when anything is missing, shows where: mean over time and channels.
    variables: names or channels; None: all that vary in time.
    Returns the figure. Raises WxlabError for unknown variables.
    """
    channels = _channels(dataset, variables)
    times = channels[0][0]["time"].values.astype("datetime64[ns]")
    edges, bins = time_bins(times)
    number = np.bincount(bins, minlength=len(edges) - 1)
    shares, labels, totals, places = [], [], [], []
    for array, name, level in channels:
        held = array.notnull()
        observed = np.asarray(held.mean([dim for dim in array.dims if dim != "time"]).values)
        places.append(100 * held.mean("time").drop_vars("level", errors="ignore"))
        with np.errstate(invalid="ignore"):
            shares.append(100 * np.bincount(bins, weights=observed, minlength=len(edges) - 1) / number)
        labels.append(channel_label(name, level, with_units=False))
        totals.append(100 * float(observed.mean()))
    where = sum(places[1:], places[0]) / len(places)
    complete = min(totals) >= 100
    figure = new_figure(7.5 if complete else 11.5, max(1.4 + 0.3 * len(channels), 0.0 if complete else 3.4))
    grid = figure.add_gridspec(1, 1 if complete else 2, width_ratios=None if complete else (2, 1))
    axes = figure.add_subplot(grid[0])
    norm, colours = Normalize(0, 100), mpl.colormaps["cividis_r"].with_extremes(bad=_GAP_COLOUR)
    rows = np.arange(len(channels) + 1) - 0.5
    mesh = axes.pcolormesh(edges, rows, np.ma.masked_invalid(np.stack(shares)), cmap=colours, norm=norm, rasterized=True)
    _name_rows(axes, labels, totals)
    axes.set_title(f"{len(times)} times from {pd.Timestamp(times[0]):%Y-%m-%d} to {pd.Timestamp(times[-1]):%Y-%m-%d}")
    if not complete:
        cells = field_cells(where.transpose(*[dim for dim in where.dims if dim in ("latitude", "y")], ...).load())
        place = map_axes(figure, grid[1], cells, None)
        draw_cells(place, cells, (colours, norm, "neither"))
        place.set_title("Mean over time and channels")
    figure.colorbar(mesh, ax=figure.axes[-1] if complete else place, label="Observed [%]", aspect=18, pad=0.02, location="bottom")
    return figure


def _name_rows(axes: Axes, labels: Sequence[str], totals: Sequence[float]) -> None:
    """Channels at the left, their share at the right, dates below."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(labels)), [f"{np.floor(total * 100) / 100:.4g} %" for total in totals])
    right.tick_params(length=0, labelsize="small")
    right.spines["right"].set_visible(False)
    _date_axis(axes)


def _date_axis(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("Time [UTC]")


def sample_times(array: xr.DataArray, most: int) -> xr.DataArray:
    """Every n-th time, so that at most ``most`` are left: enough for a picture of how values are spread."""
    if "time" not in array.dims:
        return array
    return array.isel(time=slice(None, None, max(1, -(-array.sizes["time"] // most))))


@styled
def plot_histograms(
    dataset: xr.Dataset, variables: Sequence[str] | None = None, *, bins: int = 60, times: int = 200, columns: int = 4
) -> Figure:
    """Draw how the values of each channel are spread (share of grid points and times; grid points count alike).

    variables: names or channels; None: all that vary in time.  bins: bars of a panel.  times: at most so many, evenly chosen.
    columns: panels side by side.  Rain is counted on a logarithmic axis.
    Returns the figure. Raises WxlabError for unknown variables.
    """
    channels = _channels(dataset, variables)
    columns = min(columns, len(channels))
    rows = -(-len(channels) // columns)
    figure = new_figure(max(2.7 * columns, 4.0), 1.9 * rows + 0.3)
    places = figure.subplots(rows, columns, squeeze=False)
    for axes, (array, name, level) in zip(places.flat, channels, strict=False):
        units = array.attrs.get("units")
        shown = look(name, units)
        values = sample_times(array, times).values.astype(np.float64).ravel() * shown.scale
        values = values[np.isfinite(values)]
        share = np.full(values.shape, 100.0 / max(values.size, 1))
        axes.hist(values, bins=bins, weights=share, color=COLOURS[0], log=shown.kind == "rain")
        axes.set_title(channel_label(name, level, units, with_units=False), fontsize="small")
        axes.set_xlabel(shown.units, fontsize="small")
        axes.tick_params(labelsize="small")
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in places.flat[len(channels) :]:
        axes.remove()
    for row in places:
        row[0].set_ylabel("Share [%]", fontsize="small")
    return figure


@styled
def plot_normalised(dataset: xr.Dataset, normaliser: Normaliser, channels: Sequence[str] | None = None, *, times: int = 200) -> Figure:
    """Draw the spread of normalised channels, as networks read them: median, middle half (box), middle 98 % (line), extremes (dots).

    dataset: states in physical units.  normaliser: of a store or model.  channels: names; None: all the normaliser knows that the
    Dataset has.  times: at most so many, evenly chosen.
    Returns the figure. Raises WxlabError when no channel is left.
    """
    from wxlab.channels import dataset_channels, stack

    held = dataset_channels(dataset)
    names = list(channels) if channels is not None else [name for name in held if name in normaliser.transforms]
    for name in names:
        if name not in held or name not in normaliser.transforms:
            raise unknown("channel", name, [name for name in held if name in normaliser.transforms])
    if not names:
        raise WxlabError("the normaliser knows none of the Dataset's channels; give the normaliser of a store made from it")
    sample = sample_times(stack(dataset, names), times)
    normalised = normaliser.normalise(sample.values, names, sample["time"].values)
    figure = new_figure(7.0, 0.9 + 0.28 * len(names))
    axes = figure.add_subplot()
    for row in range(len(names)):
        values = normalised[:, row][np.isfinite(normalised[:, row])]
        if not values.size:
            continue
        lowest, low, first, middle, third, high, highest = np.percentile(values, [0, 1, 25, 50, 75, 99, 100])
        axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=1.2)
        axes.barh(row, third - first, left=first, height=0.55, color=COLOURS[5], edgecolor=COLOURS[0], linewidth=0.8)
        axes.plot([middle, middle], [row - 0.27, row + 0.27], color=COLOURS[1], linewidth=2)
        axes.plot([lowest, highest], [row, row], linestyle="", marker=".", color="#777777", markersize=4)
    axes.set_yticks(range(len(names)), [_words(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    for line in (-1.0, 0.0, 1.0):
        axes.axvline(line, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set_xlabel("Normalised value")
    return figure


def _words(channel: str) -> str:
    base, _, suffix = channel.rpartition("_")
    return channel_label(base, float(suffix), with_units=False) if base and suffix.isdigit() else channel_label(channel, with_units=False)


@styled
def plot_climatology(dataset: xr.Dataset, variable: str, *, level: float | None = None) -> Figure:
    """Draw the course of a climatology: zonal mean by latitude (up) over time (across), and its mean over latitudes by time.

    dataset: a climatology at some times, such as ``store.climatology().dataset(times)``, or any states over time.
    Returns the figure. Raises WxlabError for unknown variables and those without latitude and time.
    """
    array, base, chosen = pick_variable(dataset, variable, level)
    if not {"time", "latitude", "longitude"} <= set(array.dims):
        raise WxlabError(f"{variable!r} has no zonal mean over time: it needs time, latitude and longitude, and has {list(array.dims)}")
    units = array.attrs.get("units")
    shown = look(base, units)
    zonal = (array.mean("longitude") * shown.scale).transpose("latitude", "time").sortby("latitude").load()
    latitude = zonal["latitude"]
    weights = latitude.copy(data=np.cos(np.radians(latitude.values)))
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    colours, norm, extend = colour_scale(shown, [zonal])
    values = np.ma.masked_invalid(zonal.values)
    mesh = left.pcolormesh(zonal["time"].values, latitude.values, values, cmap=colours, norm=norm, shading="nearest", rasterized=True)
    left.set_ylabel("Latitude [°N]")
    left.set_title(f"Zonal mean · {channel_label(base, chosen, units, with_units=False)}")
    figure.colorbar(mesh, ax=left, extend=extend, label=channel_label(base, chosen, units), aspect=22)
    bands = {"North of 30°N": latitude > 30, "Tropics": abs(latitude) <= 30, "South of 30°S": latitude < -30}
    for (name, inside), colour in zip(bands.items(), COLOURS[:3], strict=True):
        if bool(inside.any()):
            right.plot(zonal["time"].values, zonal.where(inside).weighted(weights).mean("latitude").values, label=name, color=colour)
    right.set_title("Area mean")
    right.set_ylabel(shown.label)
    right.grid(True)
    right.legend(fontsize="small")
    for axes in (left, right):
        _date_axis(axes)
    return figure
