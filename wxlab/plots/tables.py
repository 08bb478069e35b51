"""Tables of numbers as heat maps: scorecards and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import Normalize

from wxlab.errors import WxlabError, unknown
from wxlab.plots.fields import LEAD, lead_text
from wxlab.plots.series import metric_title, metric_values, score_channels
from wxlab.plots.style import DIFFERENCE_MAP, MISSING_COLOUR, channel_code, channel_label, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BETTER_WHEN_LARGER = ("acc", "r2", "skill", "csi", "ets", "hss", "pod", "fss", "ssim", "psnr")


def heat(axes: Axes, values: np.ndarray, labels: tuple[Sequence[str], Sequence[str]], norm: Normalize, colours: str) -> Any:
    """Cells on a white grid, rows and columns named."""
    colour_map = mpl.colormaps[colours].with_extremes(bad=MISSING_COLOUR)
    image = axes.imshow(np.ma.masked_invalid(values), norm=norm, cmap=colour_map, aspect="auto")
    axes.spines[:].set_visible(False)
    for axis, words in zip((axes.yaxis, axes.xaxis), labels, strict=True):
        axis.set_ticks(range(len(words)), words)
        axis.set_ticks(np.arange(1, len(words)) - 0.5, minor=True)
        axis.set_tick_params(which="both", length=0)
        if len(words) <= 24:
            axis.grid(which="minor", color="#ffffff", linewidth=1.0)
    return image


def write_numbers(axes: Axes, image: Any, values: np.ndarray, form: str) -> None:
    """Each number in its cell, light on dark colours and dark on light ones."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#222222"
            text = form.format(value)
            text = "0" if text in ("+0", "-0") else text
            axes.text(column, row, text, ha="center", va="center", fontsize="small", color=colour)


@styled
def plot_scorecard(
    scores: xr.Dataset,
    reference: xr.Dataset,
    variables: Sequence[str] | None = None,
    *,
    metric: str = "rmse",
    level: float | None = None,
    limit: float | None = None,
    names: tuple[str, str] = ("forecast", "reference"),
) -> Figure:
    """Draw how much better (blue) or worse (red) a forecast scores than a reference, in per cent: variables down, lead times across.

    (score - reference) / reference for errors; for scores that are better when larger (ACC, ...) with the other sign, so that blue
    is always better.
    scores, reference: from ``verify``.  variables, metric, level: as for ``plot_scores``.  limit: end of the colour scale, per cent
    (None: the largest value, at most 100).  names: of the two, for the title.
    Returns the figure. Raises WxlabError for what the scores do not hold and when the two share no lead time.
    """
    shared = np.intersect1d(scores[LEAD].values, reference[LEAD].values)
    if not shared.size:
        raise WxlabError("the two score tables share no lead time; score both at the same lead times")
    scores, reference = scores.sel({LEAD: shared}), reference.sel({LEAD: shared})
    rows, lines = [], []
    for channel, array, title in score_channels(scores, variables, level):
        ours, _ = metric_values(array, metric, channel)
        theirs, _ = metric_values(next(score_channels(reference, [channel], None))[1], metric, channel)
        sign = -1.0 if metric.split("_")[0] in _BETTER_WHEN_LARGER else 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            change = sign * 100 * (ours.values - theirs.values) / np.abs(theirs.values)
        rows.append(title)
        lines.append(np.where(np.isfinite(change), change, np.nan))
    values = np.stack(lines)
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    end = limit or min(max(largest, 1e-9), 100.0)
    columns = [lead_text(lead).removesuffix(" h") for lead in shared]
    figure = new_figure(max(5.0, 2.6 + 0.62 * len(columns)), 1.3 + 0.34 * len(rows))
    axes = figure.add_subplot()
    image = heat(axes, values, (rows, columns), Normalize(-end, end), DIFFERENCE_MAP)
    if values.size <= 400:
        write_numbers(axes, image, values, "{:+.0f}")
    axes.set_xlabel("Lead time [h]")
    axes.set_title(f"{metric_title(metric)} of {names[0]} against {names[1]}")
    beyond = "neither" if largest <= end else "both"
    figure.colorbar(image, ax=axes, extend=beyond, label="Change [%], blue is better", aspect=18, shrink=0.95)
    return figure


@styled
def plot_attention(
    weights: xr.Dataset | xr.DataArray,
    kind: str | None = None,
    *,
    panels: str | None = None,
    **choice: Any,
) -> Figure:
    """Draw attention as a heat map: who looks (rows) at whom (columns); each row sums to 1.

    weights: from ``wxlab.attention.capture``.  kind: which sort of attention (None: the only or first one).  panels: a dimension
    drawn as panels side by side, at most 8 (``head``, ``layer``).  choice: an entry of a dimension by label, e.g. ``layer=0``; all
    other dimensions are averaged over.
    Returns the figure. Raises WxlabError for an unknown kind, dimension or entry.
    """
    array = _attention_array(weights, kind, panels, choice)
    rows, columns = array.dims[-2:]
    others = [dim for dim in array.dims[:-2] if dim != panels]
    array = array.mean(others)
    shown = {"": array}
    if panels is not None:
        shown = {f"{panels} {entry}": array.isel({panels: i}) for i, entry in enumerate(array[panels].values[:8])}
    names = (entry_names(array[rows].values, short=False), entry_names(array[columns].values, short=True))
    figure, places = _attention_places(len(shown), names)
    norm = Normalize(0.0, max(float(array.max()), 1e-9))
    for index, (axes, (title, values)) in enumerate(zip(places.flat, shown.items(), strict=False)):
        image = heat(axes, values.values, names, norm, "viridis")
        if panels is None and len(names[1]) <= 8:
            write_numbers(axes, image, values.values, "{:.2f}")
        thin(axes, names)
        axes.set_aspect("equal")
        axes.set_title(title)
        axes.set_xlabel(str(columns).capitalize())
        if index % places.shape[1]:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel(str(rows).capitalize())
    figure.colorbar(image, ax=list(places.flat[: len(shown)]), label="Attention weight", aspect=20, shrink=0.8)
    chosen = ", ".join(f"{name} {entry}" for name, entry in choice.items())
    averaged = f"mean over {', '.join(map(str, others))}" if others else ""
    title = " · ".join(part for part in (str(array.name or "attention").capitalize(), chosen, averaged) if part)
    figure.suptitle(title, fontsize="medium", x=0.005, ha="left")
    return figure


def _attention_places(count: int, names: tuple[list[str], list[str]]) -> tuple[Figure, np.ndarray]:
    """A figure with square-celled axes for some panels, at most four side by side, with room for the names of rows."""
    across = min(count, 4)
    down = -(-count // across)
    cell = min(5.0 / max(len(names[0]), len(names[1])), 0.55) * (1.0 if count == 1 else 0.65)
    width, height = cell * len(names[1]), cell * len(names[0])
    figure = new_figure(max(across * (width + 0.15) + 0.075 * max(map(len, names[0])) + 1.4, 4.0), down * (height + 0.85) + 0.35)
    places = figure.subplots(down, across, squeeze=False)
    for axes in places.flat[count:]:
        axes.remove()
    return figure, places


def _attention_array(weights: xr.Dataset | xr.DataArray, kind: str | None, panels: str | None, choice: dict[str, Any]) -> xr.DataArray:
    """Weights of one kind, with what was chosen chosen: dims (..., rows, columns)."""
    if isinstance(weights, xr.Dataset):
        if not weights.data_vars:
            raise WxlabError("there is no attention in the Dataset; capture it with wxlab.attention.capture(model, batch)")
        if kind is not None and kind not in weights.data_vars:
            raise unknown("kind of attention", kind, weights.data_vars)
        weights = weights[kind or str(next(iter(weights.data_vars)))]
    if "into" in weights.attrs:
        raise WxlabError(f"{weights.name!r} holds choices, positions along {weights.attrs['into']}, not weights; draw another kind")
    if weights.ndim < 2:
        raise WxlabError(f"attention needs rows and columns, but its only dimensions are {list(weights.dims)}")
    free = [str(dim) for dim in weights.dims[:-2]]
    for name in [*choice, *([] if panels is None else [panels])]:
        if name not in free:
            raise unknown("dimension of this attention", name, free)
    for name, entry in choice.items():
        entries = list(weights[name].values)
        if entry not in entries:
            raise unknown(f"entry of {name}", entry, entries)
        weights = weights.isel({name: entries.index(entry)})
    return weights


def entry_names(entries: np.ndarray, short: bool) -> list[str]:
    """Channels by their words or codes, groups of channels by their first and how many more, all else as it is."""
    names = []
    for entry in map(str, entries):
        first, *more = entry.split("+")
        base, _, suffix = first.rpartition("_")
        level = float(suffix) if base and suffix.isdigit() else None
        words = channel_code(first) if short else channel_label(first if level is None else base, level, with_units=False)
        names.append(entry if entry.isdigit() else f"{words} + {len(more)}" if more else words)
    return names


def thin(axes: Axes, names: tuple[list[str], list[str]]) -> None:
    """Label every n-th row and column where there is no room for all; longer words along the bottom are turned."""
    turned = max(map(len, names[1])) > 3
    for axis, labels, most in ((axes.yaxis, names[0], 24), (axes.xaxis, names[1], 24 if turned else 12)):
        keep = range(0, len(labels), -(-len(labels) // most))
        axis.set_ticks(list(keep), [labels[i] for i in keep])
    if turned:
        axes.tick_params(axis="x", rotation=90)
