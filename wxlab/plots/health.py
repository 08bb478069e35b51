"""Health of a training run at a glance."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from wxlab.errors import WxlabError
from wxlab.plots.style import COLOURS, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wxlab.health import Findings

END = 30.0  # times its bar; what is further away is drawn there


@styled
def plot_health(findings: Findings) -> Figure:
    """Draw how far each signature of failure is from its bar: to the right of 1 it was found, to the left it was not.

    findings: from ``wxlab.health.check``.  A signature that could not be judged has no dot; the reason stands in its place.
    Returns the figure. Raises WxlabError for anything else.
    """
    items = list(findings) if type(findings).__name__ == "Findings" else []
    if not items:
        raise WxlabError(f"findings is a {type(findings).__name__}; give what wxlab.health.check(run_dir) returned")
    figure = new_figure(8.6, 0.9 + 0.36 * len(items))
    axes = figure.add_subplot()
    for row, finding in enumerate(items):
        if finding.severity is None:
            reason = textwrap.shorten(finding.text, 78, placeholder=" ...")
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(reason, (0, row), (6, 0), va="center", fontsize="small", color="#777777", **where)
            continue
        found = finding.state == "found"
        place = float(np.clip(finding.severity, 1 / END, END))
        axes.plot([1, place], [row, row], color=COLOURS[1 if found else 0], linewidth=2.4, solid_capstyle="butt")
        axes.plot(place, row, marker="D" if found else "o", color=COLOURS[1 if found else 0], clip_on=False)
        words = f"{finding.value:.3g} (bar {'<' if finding.below else '>'} {finding.bar:.3g})"
        axes.annotate(words, (1, row), (6 if place <= 1 else -6, 0), textcoords="offset points", va="center", fontsize="small",
                      ha="left" if place <= 1 else "right")  # fmt: skip
    axes.axvline(1, color="#222222", linewidth=1.0)
    axes.set_xscale("log")
    axes.set_xlim(1 / END, END)
    axes.set_xticks([0.1, 1, 10], ["a tenth", "the bar", "ten times"])
    axes.set_yticks(range(len(items)), [finding.title for finding in items])
    axes.set_ylim(len(items) - 0.5, -0.5)
    axes.grid(axis="x")
    count = len(findings.found)
    axes.set_title(f"{count} of {len(items) - len(findings.not_judged)} signatures of failure found (orange, right of the bar)")
    return figure
