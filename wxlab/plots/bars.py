"""Tables of runs as bars: what a sweep found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from wxlab.errors import WxlabError
from wxlab.plots.style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def plot_bars(table: pd.DataFrame) -> Figure:
    """Draw a table of numbers: one panel for each column, one bar for each row, each column on its own scale.

    table: index = names of runs, columns = what was measured. NaN is a row without a bar.
    Returns the figure. Raises WxlabError for an empty table and for a column that holds no numbers.
    """
    if table.empty:
        raise WxlabError("the table is empty, so there is nothing to draw; give at least one row and one column")
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise WxlabError(f"column {name!r} holds no numbers; leave it out, for instance with table.drop(columns=[{name!r}])")
    places = np.arange(len(table))
    figure = new_figure(min(2.2 + 2.6 * table.shape[1], 12), 0.9 + 0.34 * len(table))
    panels = np.atleast_1d(figure.subplots(1, table.shape[1], sharey=True))
    for axes, name in zip(panels, table.columns, strict=True):
        values = table[name].to_numpy(float)
        bars = axes.barh(places, np.nan_to_num(values), height=0.62)
        axes.bar_label(bars, ["" if np.isnan(value) else f"{value:.3g}" for value in values], padding=3, fontsize="small")
        axes.margins(x=0.22)
        axes.set_title(str(name), loc="left")
    panels[0].set_yticks(places, [str(label) for label in table.index])
    panels[0].invert_yaxis()
    return figure
