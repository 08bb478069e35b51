"""Ensembles of global fields: how variance is spread over zonal wavenumbers, and a look around with it beside the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.ticker import LogLocator, NullFormatter

from wxlab.errors import WxlabError
from wxlab.grids import area_weights, grid_of
from wxlab.plots.explorer import View
from wxlab.plots.fields import LEAD, pick_variable, select_field, select_pair
from wxlab.plots.geometry import field_cells
from wxlab.plots.losses import in_notebook
from wxlab.plots.maps import cells_on, draw_cells, map_axes, panel_size, projection_for
from wxlab.plots.series import line_styles
from wxlab.plots.style import COLOURS, TRUTH_COLOUR, channel_label, colour_scale, look, new_figure, styled
from wxlab.spectra import zonal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


NOTHING = 1e-6  # of the largest variance: what is less is not shown


def zonal_power(values: xr.DataArray) -> np.ndarray:
    """Variance by zonal wavenumber 0..W/2, the area-weighted mean over circles: [..., latitude, longitude] -> [..., W/2 + 1]."""
    energy = zonal(values)
    length = energy["wavelength"].isel(zonal_wavenumber=1, drop=True)  # of the circles; 0 where one is a pole
    area = xr.DataArray(area_weights(grid_of(values.to_dataset(name="x"))), dims="latitude").where(length > 0, 0.0)
    return np.asarray((energy * (area / length.where(length > 0, 1.0))).sum("latitude", skipna=False) / area.sum())


@styled
def plot_zonal(states: Mapping[str, xr.Dataset], variables: Sequence[str], *, columns: int = 4) -> Figure:
    """Draw the variance of global states by zonal wavenumber, and below its ratio to that of the truth, a column for each variable.

    states: by name, one of them ``truth``; their mean over time is drawn.  variables: names or channels.  columns: side by side.
    Returns the figure. Raises WxlabError for what the Datasets do not hold.
    """
    if "truth" not in states or len(states) < 2 or not variables:
        raise WxlabError(f"the states are {', '.join(states) or 'none'}; give variables, and by name 'truth' and what is compared with it")
    chosen = list(variables)
    rows, columns = -(-len(chosen) // columns), min(columns, len(chosen))
    figure = new_figure(max(2.9 * columns, 4.5), 3.9 * rows + 0.4)
    places = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, height_ratios=(2, 1) * rows)
    styles = line_styles(list(states))
    for index, variable in enumerate(chosen):
        upper, lower = places[2 * (index // columns) : 2 * (index // columns) + 2, index % columns]
        powers, label = {}, ""
        for name, dataset in states.items():
            array, base, level = pick_variable(dataset, variable)
            shown = look(base, array.attrs.get("units"))
            label = channel_label(base, level, with_units=False)
            if bool(array.isnull().any()):
                raise WxlabError(f"{label} of {name!r} has missing points, and circles with gaps have no wavenumbers; choose others")
            powers[name] = zonal_power(array * shown.scale).reshape(-1, array.sizes["longitude"] // 2 + 1).mean(0)[1:]
        least = NOTHING * powers["truth"].max()
        for name, power in powers.items():
            wave = np.arange(1, len(power) + 1)
            upper.loglog(wave, power, label=name, **styles[name])
            if name != "truth":
                known = powers["truth"]
                lower.semilogx(wave, np.divide(power, known, out=np.full_like(power, np.nan), where=known > least), **styles[name])
        lower.axhline(1, color="#999999", linewidth=0.8)
        lower.set_ylim(0, 1.6)
        upper.set_ylim(bottom=least)
        upper.set_title(label)
        upper.set_ylabel(f"Variance [{squared(shown.units)}]")
        wave_axis(upper, "")
        wave_axis(lower, "Zonal wavenumber")
    for axes in places[:, 0][1::2]:
        axes.set_ylabel("Ratio to truth")
    for index in range(len(chosen), rows * columns):
        for axes in places[2 * (index // columns) : 2 * (index // columns) + 2, index % columns]:
            axes.remove()
    figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=min(len(states), 5))
    return figure


def squared(units: str) -> str:
    return f"({units})²" if set("/ ") & set(units) else f"{units}²"


def wave_axis(axes: Axes, label: str) -> None:
    axes.grid(True)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelbottom=bool(label))


def explore_ensemble(forecast: xr.Dataset, truth: xr.Dataset, *, projection: Any = None, **first: Any) -> Any:
    """Look around in a global ensemble: in a notebook a widget to choose variable, level, time, lead time and member, elsewhere its
    first view. The map shows a member, the mean or the spread, and beside it stands the variance by zonal wavenumber.

    forecast: with members.  truth: states at its valid times.  projection: as for ``plot_map``.  first: the first view, any of
    ``variable``, ``level``, ``time``, ``lead`` and ``number`` (a member, 'mean' or 'spread').
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError for a forecast without members, a grid that does not go round, and for what the Datasets do not hold.
    """
    view = EnsembleView(forecast, truth, projection)
    choice = view.first(**first)
    if not in_notebook():
        return view.draw(**choice)
    from wxlab.plots.widget import Explorer

    return Explorer(view, choice)


class EnsembleView(View):
    """What can be chosen of a global ensemble, and its picture: a map and the variance by zonal wavenumber."""

    def __init__(self, forecast: xr.Dataset, truth: xr.Dataset, projection: Any = None) -> None:
        super().__init__(forecast, truth, projection)
        self.variables = [name for name in self.variables if {"number", LEAD, "longitude"} <= set(forecast[name].dims)]
        if not self.variables:
            raise WxlabError("there is no global ensemble in the Dataset; give what wxlab.forecast(..., members=) returned")

    @styled
    def draw(self, variable: str, **choice: Any) -> Figure:
        """The map of a choice, and the variance of the truth, of all members, of their mean and of the member that is shown."""
        number = choice.pop("number")
        true, mean = select_pair(self.dataset, self.truth, variable, choice.pop("lead"), number="mean", **choice)  # type: ignore[arg-type]
        lead: Any = mean.values[LEAD].values
        shown = select_field(self.dataset, variable, lead=lead, number=number, **choice)
        crs = projection_for(field_cells(shown.values), self.projection)
        cells = cells_on(shown.values, crs, None)
        width, height = panel_size(cells, crs, 5.6)
        figure = new_figure(width + 4.2, max(height + 0.95, 3.4))
        places = figure.add_gridspec(1, 2, width_ratios=(width, 3.6))
        axes, beside = map_axes(figure, places[0], cells, crs), figure.add_subplot(places[1])
        fields = [shown.values] if number == "spread" else [shown.values, true.values]
        scale = colour_scale(shown.look, fields)
        mesh = draw_cells(axes, cells, scale)
        figure.colorbar(mesh, ax=axes, extend=scale[2], label=shown.label, location="bottom", aspect=40, shrink=0.8, pad=0.03)
        axes.set_title(f"{shown.name} · {shown.when}")
        self._spectra(beside, variable, lead, number, {"truth": true.values, "ensemble mean": mean.values}, choice)
        beside.set_ylabel(f"Variance [{squared(shown.look.units)}]")
        return figure

    def _spectra(self, axes: Axes, variable: str, lead: Any, number: Any, lines: dict[str, xr.DataArray], choice: dict[str, Any]) -> None:
        members = [int(member) for member in self.dataset["number"].values]
        fields = {member: select_field(self.dataset, variable, lead=lead, number=member, **choice).values for member in members}
        powers = np.stack([zonal_power(field)[1:] for field in fields.values()])
        wave = np.arange(1, powers.shape[-1] + 1)
        axes.fill_between(wave, powers.min(0), powers.max(0), color=COLOURS[0], alpha=0.2, linewidth=0, label="all members")
        styles: dict[str, Any] = {"truth": {"color": TRUTH_COLOUR}, "ensemble mean": {"color": COLOURS[1]}}
        for name, field in lines.items():
            axes.plot(wave, zonal_power(field)[1:], label=name, **styles[name])
        if number in fields:
            axes.plot(wave, powers[members.index(number)], color=COLOURS[0], label=f"member {number}")
        axes.set(xscale="log", yscale="log", title="Variance by zonal wavenumber")
        wave_axis(axes, "Zonal wavenumber")
        axes.legend(loc="lower left")
