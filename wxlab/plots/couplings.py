"""Learned weights between variables beside what the data say about them, and how well both agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.colors import Normalize

from wxlab.errors import WxlabError
from wxlab.plots.style import COLOURS, new_figure, styled
from wxlab.plots.tables import entry_names, heat, thin, write_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "correlation": "Correlation, mean |r|",
    "gradient": "Correlation with gradient",
    "mutual_information": "Mutual information [nats]",
    "partners": "Balanced partners",
}
ACROSS = 4


@styled
def plot_couplings(found: xr.Dataset) -> Figure:
    """Draw learned weights, measured couplings (target down, source across, the diagonal left out), and how well they agree.

    found: from ``wxlab.attention.couplings``.  The last panel has a dot for the trained weights and a ring for each untrained network,
    with the p-value of the trained ones against permuted names of variables, and that of their gain over the untrained ones.
    Returns the figure. Raises WxlabError for another Dataset.
    """
    if not {"weight", "association", "agreement", "p_value"} <= set(found.data_vars):
        raise WxlabError("the Dataset holds no couplings; give what wxlab.attention.couplings(maps, data) returns")
    weights = {"Learned weight": found["weight"].sel(network="trained")}
    if found.sizes["network"] > 1:
        weights["Untrained weight, mean"] = found["weight"].isel(network=slice(1, None)).mean("network")
    measures = {TITLES[str(name)]: found["association"].sel(measure=name) for name in found["measure"].values}
    panels = {**dict.fromkeys(weights, _scale(*weights.values())), **{title: _scale(array) for title, array in measures.items()}}
    names = (entry_names(found["target"].values, short=True), entry_names(found["source"].values, short=True))
    side = float(np.clip(0.3 * len(names[0]), 2.1, 4.5))
    down = -(-(len(panels) + 1) // ACROSS)
    figure = new_figure(ACROSS * (side + 1.3), down * (side + 0.8) + 0.3)
    places = figure.subplots(down, ACROSS, squeeze=False).ravel()
    for axes in places[len(panels) + 1 :]:
        axes.remove()
    for axes, (title, scale) in zip(places, panels.items(), strict=False):
        values = _off({**weights, **measures}[title])
        image = heat(axes, values, names, scale, "viridis")
        if len(names[0]) <= 6:
            write_numbers(axes, image, values, "{:.2f}")
        thin(axes, names)
        axes.set_aspect("equal")
        axes.set(title=title, xlabel="Source", ylabel="Target")
        figure.colorbar(image, ax=axes, aspect=18, shrink=0.75)
    _agreement(places[len(panels)], found)
    hours, count = found.attrs["lag_hours"], found.attrs["permutations"]
    kind = "all" if found.attrs["exact"] else "random"
    title = f"{found.attrs['model'] or 'Weights'} · target {hours:g} h after source · {count} {kind} orders of the variables"
    figure.suptitle(title, x=0.005, ha="left", fontsize="medium")
    return figure


def _off(array: xr.DataArray) -> np.ndarray:
    """Without what a variable says about itself."""
    return np.where(np.eye(len(array), dtype=bool), np.nan, array.values)


def _scale(*arrays: xr.DataArray) -> Normalize:
    values = np.stack([_off(array) for array in arrays])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return Normalize(low, max(high, low + 1e-9))


def _agreement(axes: Axes, found: xr.Dataset) -> None:
    """Rank correlations of weights and measures, networks as marks."""
    measures = [str(name) for name in found["measure"].values]
    rows = np.arange(len(measures))
    values, chances = found["agreement"].values, found["p_value"].values
    for i, network in enumerate(values[1:]):
        axes.plot(network, rows, "o", color=COLOURS[1], markerfacecolor="none", label=None if i else "untrained")
    axes.plot(values[0], rows, "o", color=COLOURS[0], label="trained")
    for row, chance in enumerate(chances[0]):
        words = "not defined" if np.isnan(chance) else f"p = {chance:.2g}"
        if "gain_p_value" in found:
            words += f"\ngain p = {found['gain_p_value'].values[row]:.2g}"
        axes.text(1.02, row, words, transform=axes.get_yaxis_transform(), va="center", fontsize="small")
    axes.axvline(0, color="#777777", linewidth=0.9)
    axes.set_yticks(rows, [name.replace("_", " ") for name in measures])
    axes.set(xlim=(-1, 1), ylim=(len(measures) - 0.5, -0.8), xlabel="Rank correlation with the weights", title="Agreement")
    axes.grid(True, axis="x")
    axes.legend(fontsize="small", loc="upper left", ncols=2)
