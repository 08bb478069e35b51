"""Maps: one field, several variables side by side, truth beside forecast beside their difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from wxlab.errors import WxlabError, unknown
from wxlab.plots.coastline import coastline
from wxlab.plots.fields import LEAD, Lead, Moment, map_variables, select_field, select_pair, select_where_it_applies
from wxlab.plots.geometry import Cells, area_rmse, field_cells
from wxlab.plots.style import MISSING_COLOUR, colour_scale, difference_scale, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

Scale = tuple[Any, Any, str]  # colour map, norm, extend
Central = float | tuple[float, float] | None


def _projections() -> dict[str, Callable[[float, float], Any]]:
    import cartopy.crs as ccrs

    return {
        "robinson": lambda lon, lat: ccrs.Robinson(central_longitude=lon),
        "equal_earth": lambda lon, lat: ccrs.EqualEarth(central_longitude=lon),
        "mollweide": lambda lon, lat: ccrs.Mollweide(central_longitude=lon),
        "orthographic": lambda lon, lat: ccrs.Orthographic(central_longitude=lon, central_latitude=lat),
        "north_polar": lambda lon, lat: ccrs.NorthPolarStereo(central_longitude=lon),
        "south_polar": lambda lon, lat: ccrs.SouthPolarStereo(central_longitude=lon),
        "lambert": lambda lon, lat: ccrs.LambertConformal(central_longitude=lon, central_latitude=lat),
    }


def projection_for(cells: Cells, projection: Any = None, central: Central = None) -> Any:
    """The cartopy projection to draw on, or None for plain axes.

    projection: a name, a cartopy projection, 'plain', or None (Robinson for a global field, plain axes for a region).
    central: longitude, or longitude and latitude, in the middle of the map (None: 0 and 30° N, or the middle of the region).
    """
    if cells.kind == "plain" or projection == "plain" or (projection is None and cells.kind == "region"):
        return None
    if not isinstance(projection, str | None):
        return projection
    known = _projections()
    name = projection or "robinson"
    if name not in known:
        raise unknown("projection", name, [*known, "plain"])
    middle = cells.middle if cells.kind == "region" else (0.0, 30.0)
    if isinstance(central, tuple):
        middle = central
    elif central is not None:
        middle = (central, middle[1])
    return known[name](*middle)


def map_axes(figure: Figure, position: Any, cells: Cells, projection: Any) -> Axes:
    """Axes for a field at a place of the figure (a SubplotSpec): its limits, aspect, ticks and coastline."""
    if projection is None:
        axes = figure.add_subplot(position)
        _plain_axes(axes, cells)
        return axes
    import cartopy.crs as ccrs

    axes = figure.add_subplot(position, projection=projection)
    geographic = ccrs.PlateCarree()
    if cells.kind == "region":
        axes.set_extent((cells.x[0], cells.x[-1], cells.y[0], cells.y[-1]), crs=geographic)
    elif isinstance(projection, (ccrs.NorthPolarStereo, ccrs.SouthPolarStereo)):
        reach = 9.0e6  # metres on the map, to about 20 degrees of latitude
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
    else:
        axes.set_global()
    axes.spines["geo"].set_linewidth(0.6)
    central = float(projection.proj4_params.get("lon_0", 0.0))
    x, y = _joined(coastline((central + 180.0) % 360.0 - 360.0))
    points = projection.transform_points(geographic, x, y)[:, :2]
    points[~np.isfinite(points).all(axis=1)] = np.nan
    _draw_coastline(axes, points[:, 0], points[:, 1])
    return axes


def _draw_coastline(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """One dark curve with a faint light rim, so that it is seen on dark colours too."""
    rim = [Stroke(linewidth=1.3, foreground="#ffffff", alpha=0.35), Normal()]
    axes.plot(x, y, color="#333333", linewidth=0.55, scalex=False, scaley=False, gid="coastline", path_effects=rim)


def _joined(lines: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lines one after the other with a gap (NaN) between, as one curve is drawn faster than many."""
    gap = np.full((1, 2), np.nan)
    points = np.concatenate([part for line in lines for part in (line, gap)])
    return points[:, 0], points[:, 1]


def _plain_axes(axes: Axes, cells: Cells) -> None:
    axes.set_xlim(cells.x[0], cells.x[-1])
    axes.set_ylim(cells.y[0], cells.y[-1])
    axes.tick_params(length=2.5, labelsize="small")
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    if cells.kind == "plain":
        axes.set_aspect("equal")
        axes.set_xlabel("x [km]")
        axes.set_ylabel("y [km]")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return
    middle = 0.0 if cells.kind == "global" else cells.middle[1]
    axes.set_aspect(1.0 / max(math.cos(math.radians(middle)), 0.2))
    for axis, edges, names in ((axes.xaxis, cells.x, "EW"), (axes.yaxis, cells.y, "NS")):
        axis.set_major_locator(MultipleLocator(_degree_step(float(edges[-1] - edges[0]))))
        axis.set_major_formatter(FuncFormatter(lambda value, _, names=names: _degrees(value, names)))
    x, y = _joined(coastline(cells.middle[0] - 180.0))
    _draw_coastline(axes, x, y)


def _degree_step(span: float) -> float:
    """A round distance of ticks that gives four to six of them."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 90)
    return next((float(step) for step in steps if span / step <= 6.01), 90.0)


def _degrees(value: float, names: str) -> str:
    value = (value + 180.0) % 360.0 - 180.0 if names == "EW" else value
    if abs(value) < 1e-6 or abs(abs(value) - 180) < 1e-6:
        return f"{abs(value):.0f}°"
    return f"{abs(value):g}°{names[0] if value > 0 else names[1]}"


def draw_cells(axes: Axes, cells: Cells, scale: Scale) -> QuadMesh:
    """Draw the cells of a field on axes from ``map_axes``."""
    colours, norm, _ = scale
    options: dict[str, Any] = {"cmap": colours, "norm": norm, "rasterized": True, "zorder": 0.5}
    if hasattr(axes, "projection"):
        import cartopy.crs as ccrs

        options["transform"] = ccrs.PlateCarree()
        options["cmap"] = colours.with_extremes(bad=(0, 0, 0, 0))  # cartopy asks for it; the ground shows through instead
        axes.patch.set_facecolor(MISSING_COLOUR)
    return axes.pcolormesh(cells.x, cells.y, np.ma.masked_invalid(cells.values), **options)


def panel_size(cells: Cells, projection: Any, width: float) -> tuple[float, float]:
    """Width and height (inches) of a map that fills its panel, neither above ``width``."""
    if projection is None:
        stretch = math.cos(math.radians(cells.middle[1])) if cells.kind == "region" else 1.0
        ratio = (cells.y[-1] - cells.y[0]) / (max(stretch, 0.2) * (cells.x[-1] - cells.x[0]))
    else:
        limits = (projection.x_limits, projection.y_limits)
        ratio = (limits[1][1] - limits[1][0]) / (limits[0][1] - limits[0][0])
        if cells.kind == "region" or "Polar" in type(projection).__name__:
            ratio = 1.0 if cells.kind == "global" else 0.8
    ratio = float(min(max(ratio, 0.35), 1.8))
    return width / max(ratio, 1.0), width * min(ratio, 1.0)


def cells_on(values: xr.DataArray, projection: Any, central: Central) -> Cells:
    """Cells of a field, cut where the projection has its seam."""
    if projection is not None:
        central = float(projection.proj4_params.get("lon_0", 0.0))
    return field_cells(values, central[0] if isinstance(central, tuple) else central)


@styled
def plot_map(
    dataset: xr.Dataset,
    variable: str,
    *,
    level: float | None = None,
    time: Moment | None = None,
    lead: Lead | None = None,
    number: int | str | None = None,
    projection: Any = None,
    central: Central = None,
    title: str | None = None,
) -> Figure:
    """Draw one field of a Dataset or forecast as a map.

    variable: name or channel (``geopotential_500``).  level: hPa.  time: a date (initial time of a forecast) or a position;
    None: the first.  lead: hours.  number: member, 'mean' or 'spread'.  projection: 'robinson', 'equal_earth', 'mollweide',
    'orthographic', 'north_polar', 'south_polar', 'lambert', 'plain' or a cartopy projection; None: by the field.
    central: longitude, or (longitude, latitude), in the middle, degrees.  title: instead of the one made from name and time.
    Returns the figure. Raises WxlabError for what the Dataset does not hold.
    """
    field = select_field(dataset, variable, level=level, time=time, lead=lead, number=number)
    crs = projection_for(field_cells(field.values), projection, central)
    cells = cells_on(field.values, crs, central)
    width, height = panel_size(cells, crs, 6.6)
    upright = height > 0.75 * width
    if upright:
        figure = new_figure(0.75 * width + 1.6, 0.75 * height + 0.5)
    else:
        figure = new_figure(width + 0.4, height + 0.95)
    axes = map_axes(figure, figure.add_gridspec(1, 1)[0], cells, crs)
    scale = colour_scale(field.look, [field.values])
    mesh = draw_cells(axes, cells, scale)
    bar = {"shrink": 0.9} if upright else {"location": "bottom", "aspect": 40, "shrink": 0.8, "pad": 0.03}
    figure.colorbar(mesh, ax=axes, extend=scale[2], label=field.label, **bar)
    axes.set_title(title if title is not None else _title(field.name, field.when))
    return figure


def _title(name: str, when: str) -> str:
    return f"{name} · {when}" if when else name


@styled
def plot_maps(
    dataset: xr.Dataset,
    variables: Sequence[str] | None = None,
    *,
    time: Moment | None = None,
    lead: Lead | None = None,
    number: int | str | None = None,
    projection: Any = None,
    columns: int = 3,
) -> Figure:
    """Draw several variables or channels at one time, a map with its own colour scale each.

    variables: names or channels; None: all (level variables at 500 hPa or their middle level), at most 12.  The rest as for
    ``plot_map``.  columns: maps side by side.
    Returns the figure. Raises WxlabError for what the Dataset does not hold.
    """
    names = list(variables) if variables is not None else map_variables(dataset)[:12]
    if not names:
        raise WxlabError("there is nothing to draw: the Dataset has no variable with latitude and longitude (or y and x)")
    fields = [select_where_it_applies(dataset, name, time=time, lead=lead, number=number) for name in names]
    columns = min(columns, len(fields))
    rows = -(-len(fields) // columns)
    crs = projection_for(field_cells(fields[0].values), projection)
    width, height = panel_size(cells_on(fields[0].values, crs, None), crs, 11.0 / max(columns, 2))
    figure = new_figure(columns * width, rows * (height + 0.75) + 0.35)
    places = figure.add_gridspec(rows, columns)
    for index, field in enumerate(fields):
        cells = cells_on(field.values, crs, None)
        axes = map_axes(figure, places[index // columns, index % columns], cells, crs)
        scale = colour_scale(field.look, [field.values])
        bar = figure.colorbar(draw_cells(axes, cells, scale), ax=axes, extend=scale[2], location="bottom", aspect=32, shrink=0.85, pad=0.04)
        bar.set_label(field.look.units)
        axes.set_title(field.name)
    when = next((field.when for field in fields if field.when), "")
    if when:
        figure.suptitle(when, x=0.005, ha="left")
    return figure


@styled
def plot_comparison(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    variable: str,
    *,
    level: float | None = None,
    time: Moment | None = None,
    leads: Sequence[Lead] | Lead | None = None,
    number: int | str | None = None,
    projection: Any = None,
    central: Central = None,
) -> Figure:
    """Draw truth, forecast and their difference side by side, one row for each lead time.

    forecast: with lead times, or without (then both are shown at ``time``).  truth: holds the times that the forecast is valid at.
    leads: hours, one or several; None: the first, middle and last (at most three).  The rest as for ``plot_map``.
    Truth and forecast share one colour scale over all rows, the differences (forecast - truth) another one. The title of each
    difference tells its area-weighted RMSE.
    Returns the figure. Raises WxlabError where the two do not meet in time or space.
    """
    choices = {"level": level, "time": time, "number": number}
    pairs = [select_pair(forecast, truth, variable, lead, **choices) for lead in _leads(forecast, leads)]
    gaps = [true.values.copy(data=predicted.values.values - true.values.values) for true, predicted in pairs]
    shown = pairs[0][0].look
    scales = [colour_scale(shown, [field.values for pair in pairs for field in pair]), difference_scale(gaps)]
    crs = projection_for(field_cells(gaps[0]), projection, central)
    width, height = panel_size(cells_on(gaps[0], crs, central), crs, 3.9)
    figure = new_figure(3 * width, len(pairs) * (height + 0.3) + 1.0)
    places = figure.add_gridspec(len(pairs), 3)
    axes = np.empty((len(pairs), 3), dtype=object)
    meshes: list[Any] = [None] * 3
    for row, ((true, predicted), gap) in enumerate(zip(pairs, gaps, strict=True)):
        for column, values in enumerate((true.values, predicted.values, gap)):
            cells = cells_on(values, crs, central)
            axes[row, column] = map_axes(figure, places[row, column], cells, crs)
            meshes[column] = draw_cells(axes[row, column], cells, scales[column // 2])
        axes[row, 0].set_title(f"Truth · {true.when}")
        axes[row, 1].set_title(f"Forecast · {predicted.when.partition(' UTC ')[2] or predicted.when}")
        rmse = f"{area_rmse(gap):#.3g}".rstrip(".")
        axes[row, 2].set_title(f"Difference · RMSE {rmse} {shown.units}".rstrip())
    if crs is None:
        _label_outer(axes)
    bar: dict[str, Any] = {"location": "bottom", "shrink": 0.85, "pad": 0.03}
    figure.colorbar(meshes[1], ax=axes[:, :2].ravel().tolist(), extend=scales[0][2], label=pairs[0][0].label, aspect=50, **bar)
    difference = f"Difference [{shown.units}]" if shown.units else "Difference"
    figure.colorbar(meshes[2], ax=axes[:, 2].tolist(), extend=scales[1][2], label=difference, aspect=25, **bar)
    figure.suptitle(pairs[0][0].name, x=0.005, ha="left")
    return figure


def _label_outer(axes: np.ndarray) -> None:
    """Ticks are labelled once: at the left and at the bottom of a block of maps."""
    for place in axes[:-1].ravel():
        place.set(xlabel="")
        place.tick_params(labelbottom=False)
    for place in axes[:, 1:].ravel():
        place.set(ylabel="")
        place.tick_params(labelleft=False)


def _leads(forecast: xr.Dataset, leads: Sequence[Lead] | Lead | None) -> list[Lead | None]:
    if LEAD not in forecast.dims:
        if leads is not None:
            raise WxlabError(f"leads={leads!r} was given, but the forecast has no {LEAD!r} axis; leave leads out")
        return [None]
    if leads is None:
        count = forecast.sizes[LEAD]
        return [forecast[LEAD].values[i] for i in sorted({0, count // 2, count - 1})]
    return [leads] if isinstance(leads, (str, int, float, np.timedelta64)) else list(leads)  # type: ignore[arg-type]
