"""Look around in a global forecast with the spectrum beside the map that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.grids import grid_of, is_global, is_periodic
from wxlab.plots.ensemble import squared, wave_axis, zonal_power
from wxlab.plots.explorer import View
from wxlab.plots.fields import LEAD, Field, select_field, select_pair
from wxlab.plots.geometry import field_cells
from wxlab.plots.losses import in_notebook
from wxlab.plots.maps import cells_on, draw_cells, map_axes, panel_size, projection_for
from wxlab.plots.style import COLOURS, TRUTH_COLOUR, colour_scale, new_figure, styled
from wxlab.spectra import power

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GLOBE = "globe"
BANDS = {"30°N to 60°N": (30.0, 60.0), "20°S to 20°N": (-20.0, 20.0), "60°S to 30°S": (-60.0, -30.0)}


def explore_spectra(
    forecast: xr.Dataset, truth: xr.Dataset, *, bands: Mapping[str, tuple[float, float]] | None = None, projection: Any = None, **first: Any
) -> Any:
    """Look around in a global forecast: in a notebook a widget to choose variable, level, time, lead time, member and a band of latitudes,
    elsewhere its first view. Beside the map stand the spectrum of what it shows and of the truth, and their ratio.

    On the globe it is power by degree of spherical harmonics, in a band (drawn on the map) variance by zonal wavenumber, the mean over
    the band's circles weighted with their areas.

    forecast: global, with lead times, with or without members.  truth: states at its valid times.  bands: southern and northern latitude by
    name; None: middle latitudes of both sides, and the tropics.  projection: as for ``plot_map``.  first: the first view, any of
    ``variable``, ``level``, ``time``, ``lead``, ``number`` (a member or 'mean') and ``band``.
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError for a forecast that does not go round the globe, a band without rows, and for what the Datasets do not hold.
    """
    view = SpectraView(forecast, truth, bands, projection)
    choice = view.first(**first)
    if not in_notebook():
        return view.draw(**choice)
    from wxlab.plots.widget import Explorer

    return Explorer(view, choice)


class SpectraView(View):
    """What can be chosen of a global forecast, and its picture: a map and its spectrum."""

    def __init__(
        self, forecast: xr.Dataset, truth: xr.Dataset, bands: Mapping[str, tuple[float, float]] | None = None, projection: Any = None
    ) -> None:
        super().__init__(forecast, truth, projection)
        self.variables = [name for name in self.variables if {LEAD, "latitude", "longitude"} <= set(forecast[name].dims)]
        if not self.variables or not is_periodic(grid_of(forecast)):
            raise WxlabError("there is no global forecast in the Dataset; give what wxlab.forecast(...) returned, all round the globe")
        self.whole = is_global(grid_of(forecast))
        self.bands = {GLOBE: (-90.0, 90.0), **(BANDS if bands is None else bands)}
        rows = forecast["latitude"].values
        for name, (south, north) in list(self.bands.items()):
            if not ((rows >= south) & (rows <= north)).any():
                if bands is not None:
                    raise WxlabError(
                        f"the band {name!r} from {south:g} to {north:g} holds no row; rows are {rows.min():g} to {rows.max():g}"
                    )
                del self.bands[name]

    def entries(self, variable: str) -> dict[str, list[Any]]:
        """What there is to choose from; a spread has no truth to stand beside."""
        found = super().entries(variable)
        if "number" in found:
            found["number"] = [number for number in found["number"] if number != "spread"]
        return {**found, "band": list(self.bands)}

    def first(self, variable: str | None = None, **given: Any) -> dict[str, Any]:
        """The first choice, with the globe as the band."""
        band = given.pop("band", GLOBE)
        if band not in self.bands:
            raise unknown("band", band, self.bands)
        entries = self.entries(self.variables[0] if variable is None else variable) if variable in (None, *self.variables) else {}
        chosen = {**super().first(variable, **given), "band": band}
        if "number" in entries and "number" not in given:
            chosen["number"] = entries["number"][1]  # a member: its spectrum is what an ensemble is for
        return chosen

    @styled
    def draw(self, variable: str, **choice: Any) -> Figure:
        """The map of a choice, its spectrum beside that of the truth and of all members, and the ratio."""
        band, number, lead = choice.pop("band"), choice.pop("number", None), choice.pop("lead")
        at = {**choice, "lead": lead}
        true, shown = select_pair(self.dataset, self.truth, variable, number=number, **at)  # type: ignore[arg-type]
        crs = projection_for(field_cells(shown.values), self.projection)
        cells = cells_on(shown.values, crs, None)
        width, height = panel_size(cells, crs, 5.6)
        figure = new_figure(width + 4.4, max(height + 0.95, 4.0))
        places = figure.add_gridspec(2, 2, width_ratios=(width, 3.8), height_ratios=(2, 1))
        axes = map_axes(figure, places[:, 0], cells, crs)
        scale = colour_scale(shown.look, [shown.values, true.values])
        mesh = draw_cells(axes, cells, scale)
        figure.colorbar(mesh, ax=axes, extend=scale[2], label=shown.label, location="bottom", aspect=40, shrink=0.8, pad=0.03)
        axes.set_title(f"{shown.name} · {shown.when}")
        if band != GLOBE:
            _outline(axes, self.bands[band])
        upper, lower = (figure.add_subplot(places[row, 1]) for row in (0, 1))
        label = "ensemble mean" if number == "mean" else "forecast" if number is None else f"member {number}"
        wave, lines = self._lines(band, {"truth": true, label: shown})
        members = [select_field(self.dataset, variable, number=each, **at) for each in self._members(variable)]
        if members:
            powers = np.stack([self._power(band, each)[1] for each in members])
            upper.fill_between(wave, powers.min(0), powers.max(0), color=COLOURS[0], alpha=0.2, linewidth=0, label="all members")
        colours = {"truth": TRUTH_COLOUR, label: COLOURS[1] if number == "mean" else COLOURS[0]}
        for name, line in lines.items():
            upper.plot(wave, line, color=colours[name], label=name)
        share = np.divide(lines[label], lines["truth"], out=np.full(len(wave), np.nan), where=lines["truth"] > 0)
        lower.plot(wave, share, color=colours[label])
        lower.axhline(1, color="#999999", linewidth=0.8)
        by_degree = self._by_degree(band)
        upper.set(xscale="log", yscale="log", ylabel=f"{'Power' if by_degree else 'Variance'} [{squared(shown.look.units)}]")
        upper.set_title("Globe" if band == GLOBE else band)
        lower.set(xscale="log", ylim=(0, 2), ylabel="Ratio to truth")
        wave_axis(upper, "")
        wave_axis(lower, "Degree" if by_degree else "Zonal wavenumber")
        upper.legend(loc="lower left", fontsize="small")
        return figure

    def _members(self, variable: str) -> list[int]:
        array = self.dataset[variable]
        return [int(member) for member in array["number"].values] if "number" in array.dims else []

    def _by_degree(self, band: str) -> bool:
        return band == GLOBE and self.whole

    def _power(self, band: str, field: Field) -> tuple[np.ndarray, np.ndarray]:
        """Degrees or wavenumbers from 1 on, and the power there."""
        if self._by_degree(band):
            found = power(field.values).values[1:]
        else:
            south, north = self.bands[band]
            rows = field.values["latitude"]
            found = zonal_power(field.values.isel(latitude=np.flatnonzero(((rows >= south) & (rows <= north)).values)))[1:]
        return np.arange(1, len(found) + 1), found

    def _lines(self, band: str, fields: Mapping[str, Field]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        found = {name: self._power(band, field) for name, field in fields.items()}
        return next(iter(found.values()))[0], {name: line for name, (_, line) in found.items()}


def _outline(axes: Axes, band: tuple[float, float]) -> None:
    """The southern and northern edge of a band on a map."""
    longitude = np.linspace(-180, 180, 181)
    for latitude in band:
        if abs(latitude) >= 90:
            continue
        if hasattr(axes, "projection"):
            import cartopy.crs as ccrs

            turned = ccrs.PlateCarree(central_longitude=float(axes.projection.proj4_params.get("lon_0", 0.0)))
            axes.plot(longitude, np.full(181, latitude), transform=turned, color="#222222", linewidth=1.2, linestyle="--")
        else:
            axes.axhline(latitude, color="#222222", linewidth=1.2, linestyle="--")
