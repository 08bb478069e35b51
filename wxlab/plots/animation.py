"""Animations of forecasts and of data: in the notebook as a small player, on disk as GIF or HTML."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter

from wxlab.errors import WxlabError
from wxlab.files import atomic_file
from wxlab.plots.fields import LEAD, Field, Moment, pick_variable, select_field, select_pair
from wxlab.plots.geometry import field_cells
from wxlab.plots.maps import Central, cells_on, draw_cells, map_axes, panel_size, projection_for
from wxlab.plots.style import colour_scale, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Animation:
    """A film: ``figure``, the number of ``frames``, and ``draw(i)`` which puts frame i on the figure.

    In a notebook it shows as a player (HTML and JavaScript, no network). ``save`` writes ``.gif`` or ``.html``.
    """

    figure: Figure
    frames: int
    draw: Callable[[int], list[Any]]
    fps: int

    def _film(self) -> FuncAnimation:
        return FuncAnimation(self.figure, self.draw, frames=self.frames, interval=1000 / self.fps, blit=False)

    @cached_property
    def html(self) -> str:
        """The player as HTML text."""
        with mpl.rc_context({"animation.embed_limit": 40}):
            return str(self._film().to_jshtml(fps=self.fps, default_mode="loop"))

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the film; the ending of the name says how (``.gif`` or ``.html``). Returns the path."""
        target = Path(path)
        if target.suffix not in (".gif", ".html"):
            raise WxlabError(f"cannot write an animation as {target.name!r}; give a name that ends in .gif or .html")
        with atomic_file(target) as temporary:
            if target.suffix == ".html":
                temporary.write_text(self.html)
            else:
                drawn = temporary.with_suffix(".gif")  # pillow knows the format by the name
                self._film().save(drawn, writer=PillowWriter(fps=self.fps))
                drawn.replace(temporary)
        return target


@styled
def animate(
    dataset: xr.Dataset,
    variable: str,
    *,
    truth: xr.Dataset | None = None,
    level: float | None = None,
    time: Moment | None = None,
    number: int | str | None = None,
    projection: Any = None,
    central: Central = None,
    fps: int = 4,
    frames: int = 40,
) -> Animation:
    """Make a film of a variable: over lead time for a forecast, over time for states.

    truth: with a forecast, shown beside it at the same valid times.  time: initial time of the forecast (None: the first), or the
    first time shown of states.  frames: at most so many; of longer ones every second, third, ... is shown.  level, number,
    projection, central as for ``plot_map``.  fps: frames a second.
    One colour scale holds for the whole film. Returns an Animation; ``.save('film.gif')`` writes it.
    Raises WxlabError for what the Datasets do not hold.
    """
    if fps <= 0 or frames < 1:
        raise WxlabError(f"fps={fps} and frames={frames} cannot make a film; both must be above 0")
    choices: dict[str, Any] = {"level": level, "number": number}
    shots = _shots(dataset, variable, truth, time, frames, choices)
    titles = ("Truth", "Forecast") if truth is not None else ("",)
    crs = projection_for(field_cells(shots[0][0].values), projection, central)
    cells = [[cells_on(field.values, crs, central) for field in shot] for shot in shots]
    width, height = panel_size(cells[0][0], crs, 5.6 if truth is None else 4.4)
    figure = new_figure(len(titles) * width + 0.5, height + 1.1)
    figure.set_dpi(72)
    scale = colour_scale(shots[0][0].look, [field.values for shot in shots for field in shot])
    places = figure.add_gridspec(1, len(titles))
    axes = [map_axes(figure, places[index], cells[0][index], crs) for index in range(len(titles))]
    meshes = [draw_cells(place, first, scale) for place, first in zip(axes, cells[0], strict=True)]
    figure.colorbar(meshes[0], ax=axes, extend=scale[2], label=shots[0][0].label, location="bottom", aspect=40, shrink=0.8, pad=0.03)

    def draw(index: int) -> list[Any]:
        for place, mesh, name, film_cells, field in zip(axes, meshes, titles, cells[index], shots[index], strict=True):
            mesh.set_array(np.ma.masked_invalid(film_cells.values))
            place.set_title(" · ".join(part for part in (name, field.when) if part), loc="left", fontsize="medium")
        return list(meshes)

    draw(0)
    return Animation(figure, len(shots), draw, fps)


def _shots(
    dataset: xr.Dataset, variable: str, truth: xr.Dataset | None, time: Moment | None, frames: int, choices: dict[str, Any]
) -> list[Sequence[Field]]:
    """The fields of each frame, left to right."""
    array, _, _ = pick_variable(dataset, variable, choices["level"])
    if LEAD in array.dims:
        leads = array[LEAD].values[:: -(-array.sizes[LEAD] // frames)]
        if truth is None:
            return [[select_field(dataset, variable, lead=lead, time=time, **choices)] for lead in leads]
        return [select_pair(dataset, truth, variable, lead, time=time, **choices) for lead in leads]
    if truth is not None:
        raise WxlabError("truth was given, but the Dataset is no forecast: it has no lead times; leave truth out")
    if "time" not in array.dims:
        raise WxlabError(f"{variable!r} has neither time nor lead time, so there is nothing to animate; use plot_map")
    first = select_field(dataset, variable, time=time, **choices)
    start = 0 if time is None else int(np.flatnonzero(array["time"].values == first.values["time"].values)[0])
    positions = range(start, array.sizes["time"], -(-(array.sizes["time"] - start) // frames))
    return [[select_field(dataset, variable, time=position, **choices)] for position in positions]
