"""Experts of variables: what their gates choose, how alike they are, and what an incremental stage does to errors and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from wxlab.channels import split_channel
from wxlab.errors import WxlabError
from wxlab.plots.geometry import field_cells
from wxlab.plots.maps import draw_cells, map_axes, panel_size, projection_for
from wxlab.plots.series import line_styles
from wxlab.plots.style import COLOURS, channel_label, new_figure, styled
from wxlab.plots.tables import heat, write_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OTHER = "#cfcfcf"


def expert_label(name: str) -> str:
    """``surface`` stands for all variables without levels."""
    return "Surface" if name == "surface" else channel_label(name, with_units=False)


@styled
def plot_choices(choices: Mapping[str, xr.Dataset] | xr.Dataset, block: int = 0) -> Figure:
    """Draw which channel of the token each expert weights most, as maps; the same colour is the same channel in all of them.

    choices: from ``channel_choices``; several by name are rows.  block: whose experts.
    The eight most frequent channels have colours, all others are grey.  Returns the figure.
    """
    rows = {"": choices} if isinstance(choices, xr.Dataset) else dict(choices)
    fields = {title: _block(found, block)["favourite"] for title, found in rows.items()}
    values, counts = np.unique(np.concatenate([field.values.ravel() for field in fields.values()]), return_counts=True)
    frequent = values[np.argsort(-counts, kind="stable")][: len(COLOURS)]
    colours = ListedColormap([*COLOURS[: len(frequent)], OTHER])
    scale = (colours, BoundaryNorm(np.arange(len(frequent) + 2) - 0.5, colours.N), "neither")
    cells = field_cells(next(iter(fields.values()))[0])
    crs = projection_for(cells)
    width, height = panel_size(cells, crs, 3.4)
    across = max(field.sizes["expert"] for field in fields.values())
    figure = new_figure(across * width + 0.3, len(fields) * (height + 0.35) + 0.6)
    places = figure.add_gridspec(len(fields), across)
    for row, (title, field) in enumerate(fields.items()):
        for column, name in enumerate(field["expert"].values):
            codes = np.argmax(np.append(field[column].values[..., None] == frequent, np.ones((*field.shape[1:], 1), bool), -1), -1)
            axes = map_axes(figure, places[row, column], cells, crs)
            draw_cells(axes, field_cells(field[column].copy(data=codes.astype(float))), scale)
            axes.set_title(" · ".join(part for part in (title, expert_label(str(name))) if part))
            axes.tick_params(labelbottom=row == len(fields) - 1, labelleft=column == 0)
    marks = [Patch(color=COLOURS[i], label=f"channel {feature}") for i, feature in enumerate(frequent)]
    rest = [Patch(color=OTHER, label="others")] if len(values) > len(frequent) else []
    figure.legend(handles=[*marks, *rest], loc="outside lower center", ncols=min(5, len(marks) + 1), fontsize="small")
    return figure


@styled
def plot_shares(choices: xr.Dataset) -> Figure:
    """Draw for how many tokens each channel is picked: experts down, channels across (ordered by the mean), one panel for each block.

    0 and 1 are channels that an expert never and always picks; between them the choice depends on the token.
    choices: from ``channel_choices``.  Returns the figure.
    """
    share = choices["share"]
    labels = [expert_label(str(name)) for name in share["expert"].values]
    figure = new_figure(9.0, 0.75 + share.sizes["block"] * (0.5 + 0.24 * len(labels)))
    panels = np.atleast_1d(figure.subplots(share.sizes["block"], 1, sharex=True))
    for axes, block in zip(panels, share, strict=True):
        order = np.argsort(-block.mean("expert").values, kind="stable")
        image = heat(axes, block.values[:, order], (labels, [""] * len(order)), Normalize(0, 1), "viridis")
        axes.set_title(f"Block {int(block['block'])}")
        axes.set_xticks([])
    panels[-1].set_xlabel("Channels of the token, from most to least picked")
    figure.colorbar(image, ax=list(panels), label="Share of tokens", aspect=25, shrink=0.9)
    return figure


@styled
def plot_overlap(choices: xr.Dataset) -> Figure:
    """Draw which share of its picks an expert has in common with another, one panel for each block; what chance gives is in the title.

    choices: from ``channel_choices``.  Returns the figure.
    """
    overlap = choices["overlap"]
    labels = [expert_label(str(name)) for name in overlap["expert"].values]
    chance = float(choices["share"].isel(block=0, expert=0).mean())
    side = 0.62 * len(labels)
    figure = new_figure(overlap.sizes["block"] * (side + 0.2) + 2.6, side + 0.9 + 0.09 * max(map(len, labels)))
    panels = np.atleast_1d(figure.subplots(1, overlap.sizes["block"], sharey=True))
    for axes, block in zip(panels, overlap, strict=True):
        image = heat(axes, block.values, (labels, labels), Normalize(0, 1), "viridis")
        write_numbers(axes, image, block.values, "{:.3f}")
        axes.set_title(f"Block {int(block['block'])}")
        axes.tick_params(axis="x", rotation=90)
        axes.set_aspect("equal")
    figure.colorbar(image, ax=list(panels), label="Picks in common", aspect=18, shrink=0.8)
    figure.suptitle(f"Picks in common (by chance {chance:.2f})", x=0.005, ha="left", fontsize="medium")
    return figure


@styled
def plot_forgetting(curves: Mapping[str, pd.DataFrame], before: pd.Series, *, limit: float = 1.1) -> Figure:
    """Draw errors over an incremental stage: of the variables that the model had, against what they were, and of the new ones.

    curves: tables of ``ChannelErrors`` by name of the run.  before: errors of the model before it was extended, by channel.
    limit: dashed line.  Lines are means over the channels of a variable (left) and over all new channels (right).
    Returns the figure. Raises WxlabError when ``before`` names channels that a table lacks.
    """
    lacking = sorted({channel for table in curves.values() for channel in before.index if channel not in table})
    if lacking or not curves:
        raise WxlabError(f"the errors lack {', '.join(lacking) or 'any table'}; give tables of runs that began with the model of before=")
    figure = new_figure(9.5, 3.4)
    left, right = figure.subplots(1, 2)
    variables = list(dict.fromkeys(split_channel(channel)[0] for channel in before.index))
    colours = line_styles(variables)
    dashes = ("-", "--", ":", "-.")
    for (name, table), dash, colour in zip(curves.items(), cycle(dashes), cycle(COLOURS)):
        ratio = table[list(before.index)] / before
        for variable in variables:
            mine = [channel for channel in before.index if split_channel(channel)[0] == variable]
            words = channel_label(variable, with_units=False) + (f", {name}" if len(curves) > 1 else "")
            left.plot(
                table.index, ratio[mine].mean(axis=1), marker="o", markersize=3, label=words, **{**colours[variable], "linestyle": dash}
            )
        new = [channel for channel in table if channel not in before.index]
        right.plot(table.index, table[new].mean(axis=1), marker="o", markersize=3, color=colour, linestyle=dash, label=name)
    left.axhline(1.0, color="#777777", linewidth=0.9)
    left.axhline(limit, color="#777777", linewidth=0.9, linestyle="--")
    left.set_title("Variables that it had")
    left.set_ylabel("RMSE / RMSE before")
    right.set_title("New variables, mean")
    right.set_ylabel("RMSE (normalised units)")
    right.update_datalim([(0, 0)])  # the margin above is then a share of the whole axis
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("Optimiser step of the incremental stage")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True)
        axes.legend(fontsize="small")
    return figure


@styled
def plot_tensors(table: pd.DataFrame) -> Figure:
    """Draw what an extension did to the parts of a network: numbers carried over and frozen, carried over and trained, new.

    table: from ``describe``.  Returns the figure.
    """
    kinds = pd.DataFrame(
        {
            "part": table["part"],
            "copied, frozen": table["numbers"] - table["trainable"],
            "copied, trained": table["copied"] - (table["numbers"] - table["trainable"]),
            "new, trained": table["numbers"] - table["copied"],
        }
    )
    parts = kinds.groupby("part", sort=False).sum()
    colours = {"copied, frozen": "#9ecae1", "copied, trained": COLOURS[0], "new, trained": COLOURS[1]}
    figure = new_figure(8.0, 1.3 + 0.28 * len(parts))
    axes = figure.add_subplot()
    left = np.zeros(len(parts))
    for name, colour in colours.items():
        axes.barh(np.arange(len(parts)), parts[name], left=left, color=colour, label=name, height=0.7)
        left += parts[name].to_numpy()
    axes.set_yticks(np.arange(len(parts)), [_part_label(str(part)) for part in parts.index])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g} M" if left.max() > 2e6 else f"{value / 1e3:g} k"))
    axes.set_xlabel("Parameters")
    share = table["trainable"].sum() / table["numbers"].sum()
    axes.set_title(f"{table['trainable'].sum():,} of {table['numbers'].sum():,} parameters are trained ({share:.1%})")
    axes.legend(loc="lower right", fontsize="small")
    return figure


def _part_label(part: str) -> str:
    head, found, name = part.partition("expert of ")
    return f"expert: {expert_label(name).lower()}" if found and not head else part


def _block(choices: xr.Dataset, block: int) -> xr.Dataset:
    if block not in choices["block"].values:
        raise WxlabError(f"block={block} is not among the blocks 0 to {choices.sizes['block'] - 1}; choose one of them")
    return choices.sel(block=block)
