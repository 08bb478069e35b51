"""Loss curves: of finished runs from their metrics.jsonl, and of a run while it trains."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from wxlab.errors import WxlabError
from wxlab.plots.series import line_styles
from wxlab.plots.style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
Records = Iterable[Mapping[str, Any]]
_NO_LOSS = ("step", "stage", "epoch", "seconds", "lr", "gradient", "samples_per_second")


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    run: run folder, or the file.  An unfinished last line (the run is still writing, or was killed) is left out.
    Raises WxlabError when there is no such file.
    """
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise WxlabError(f"there are no metrics at {path}; give the run folder of a training, which holds metrics.jsonl")
    records = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def loss_curves(records: Records) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves over optimiser steps: ``loss``, ``validation``, then the parts of the loss that a recipe logs.

    records: lines with ``step``, maybe ``stage``, and numbers; what is no loss (learning rate, seconds, ...) is left out, as are parts
    equal to the loss.  The steps of a later stage go on where the stage before it ended. A step that comes twice (a run killed and
    resumed) counts once, as it was last.
    """
    points: dict[str, dict[tuple[int, int], float]] = {}
    lengths: dict[int, int] = {}
    for record in records:
        if "step" not in record:
            continue
        place = int(record.get("stage", 0)), int(record["step"])
        lengths[place[0]] = max(lengths.get(place[0], 0), place[1])
        for name, value in record.items():
            if name not in _NO_LOSS and isinstance(value, (int, float)) and not isinstance(value, bool):
                points.setdefault(name, {})[place] = float(value)
    before = {stage: sum(length for other, length in lengths.items() if other < stage) for stage in lengths}
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in sorted(points, key=lambda name: (name != "loss", not name.startswith("validation"), name)):
        places = sorted(points[name])
        values = np.array([points[name][place] for place in places])
        if name == "loss" or "loss" not in curves or not np.array_equal(values, curves["loss"][1]):
            curves[name] = np.array([before[stage] + step for stage, step in places]), values
    return curves


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over the last ``width`` values (fewer at the start), NaN left out."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    last = np.arange(1, values.size + 1)
    first = np.maximum(last - width, 0)
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def draw_losses(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Losses on a logarithmic axis: noisy curves thin with their running mean over them, sparse ones with dots."""
    styles = line_styles([name.replace("_", " ") for name in curves])
    positive = True
    for (name, (steps, values)), (label, style) in zip(curves.items(), styles.items(), strict=True):
        positive = positive and bool(np.all(values[np.isfinite(values)] > 0))
        if name.rpartition(": ")[2].startswith("validation") or steps.size <= 60:
            axes.plot(steps, values, marker="o", markersize=3, label=label, **style)
        else:
            axes.plot(steps, values, linewidth=0.7, alpha=0.35, **style)
            axes.plot(steps, smooth(values, max(5, steps.size // 50)), label=label, **style)
    if positive and curves:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Optimiser step")
    axes.set_ylabel("Loss (normalised units)")
    axes.grid(True, which="both")
    if curves:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


@styled
def plot_losses(runs: Runs) -> Figure:
    """Draw the training and validation losses of one run or several.

    runs: run folder or metrics.jsonl, several of them, or several by name.
    Returns the figure. Raises WxlabError when a run has no metrics or no losses in them.
    """
    if isinstance(runs, Mapping):
        named = {str(name): run for name, run in runs.items()}
    else:
        paths = [runs] if isinstance(runs, (str, Path)) else list(runs)
        named = {Path(path).name: path for path in paths}
    curves = {}
    for name, run in named.items():
        found = loss_curves(read_metrics(run))
        if not found:
            raise WxlabError(f"the metrics of {run} hold no losses yet; train for at least one step")
        curves.update({f"{name}: {key}" if len(named) > 1 else key: curve for key, curve in found.items()})
    figure = new_figure(7.5, 3.6)
    draw_losses(figure.add_subplot(), curves)
    return figure


def _shell() -> Any:
    """The running IPython, or None."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    return getattr(_shell(), "kernel", None) is not None


class LiveLoss:
    """Losses of a run while it trains: ``train(..., callbacks=[LiveLoss()])`` calls it with each line of metrics.

    In a notebook the figure under the cell is redrawn at most every ``seconds`` and once more when the cell ends; elsewhere only the
    numbers are kept, and ``figure()`` draws them.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.records: list[dict[str, Any]] = []
        self._handle: Any = None
        self._drawn = 0.0
        self._shown = 0  # how many records the picture has

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        self.records.append({"step": len(self.records), **metrics})
        if not in_notebook():
            return
        if self._handle is None:
            _shell().events.register("post_run_cell", self._finish)
        if time.monotonic() - self._drawn >= self.seconds:
            self._show()

    @styled
    def figure(self) -> Figure:
        """The figure of all that was told so far."""
        figure = new_figure(7.5, 3.2)
        draw_losses(figure.add_subplot(), loss_curves(self.records))
        return figure

    def _show(self) -> None:
        """Draw, in place of what was drawn before."""
        from IPython.display import display

        figure = self.figure()
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
        self._drawn, self._shown = time.monotonic(), len(self.records)

    def _finish(self, _: Any = None) -> None:
        """At the end of the cell: the last picture has all records; the next cell that trains gets a picture of its own."""
        _shell().events.unregister("post_run_cell", self._finish)
        if self._shown < len(self.records):
            self._show()
        self._handle, self._drawn = None, 0.0
