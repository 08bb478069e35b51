"""The mesh of a Mosaic: its windows and blocks on the globe, and which blocks a place attends to."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

from wxlab.errors import WxlabError, unknown
from wxlab.plots.geometry import Cells, field_cells
from wxlab.plots.losses import in_notebook
from wxlab.plots.maps import draw_cells, map_axes, projection_for
from wxlab.plots.style import COLOURS, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wxlab.models.mosaic import Mosaic
    from wxlab.models.mosaic.blocks import Level

BRANCHES = ("local", "compression", "selection")
_PALETTE = ListedColormap([*COLOURS, "#44AA99", "#DDCC77", "#AA4499", "#88CCEE"])


@lru_cache(maxsize=8)
def _raster(nside: int) -> xr.DataArray:
    """The nearest pixel to each point of a fine grid: [latitude, longitude]."""
    from scipy.spatial import cKDTree

    from wxlab.healpix_mesh import centres, unit_vectors

    rows = int(np.clip(7 * nside, 90, 360))
    latitude, longitude = (np.arange(rows) + 0.5) * 180 / rows - 90, np.arange(2 * rows) * 180 / rows
    points = np.stack(np.meshgrid(longitude, latitude), axis=-1).reshape(-1, 2).astype(np.float32)
    _, nearest = cKDTree(unit_vectors(centres(nside)).numpy()).query(unit_vectors(points).numpy())
    coords = {"latitude": latitude, "longitude": longitude}
    return xr.DataArray(nearest.reshape(rows, 2 * rows), dims=("latitude", "longitude"), coords=coords)


def _levels(model: Mosaic) -> list[Level]:
    from wxlab.models.mosaic import Mosaic

    if not isinstance(model, Mosaic):
        raise WxlabError(f"only a Mosaic has a mesh, and this is a {type(model).__name__}; give a model that create_model('mosaic') made")
    return model.levels


def token_at(nside: int, latitude: float, longitude: float) -> int:
    """The pixel whose centre is nearest to a place (degrees)."""
    from wxlab.healpix_mesh import centres, unit_vectors  # with torch

    place = unit_vectors(np.array([[longitude, latitude]], dtype=np.float32))[0]
    return int((unit_vectors(centres(nside)) @ place).argmax())


def _on_map(nside: int, values: np.ndarray, central: float = 0.0) -> Cells:
    """Values of pixels [N] as cells of a map."""
    raster = _raster(nside)
    return field_cells(raster.copy(data=np.asarray(values, dtype=np.float64)[raster.values]), central)


@styled
def plot_mesh(model: Mosaic, *, central: tuple[float, float] = (15.0, 40.0)) -> Figure:
    """Draw the mesh of a Mosaic on globes: pixels, blocks and windows of the finest level, and the blocks of the next one.

    In nested order each of them is a run of numbers; colours only tell neighbours apart.
    central: longitude and latitude in the middle (degrees).  Returns the figure. Raises WxlabError for another model.
    """
    fine, coarse = _levels(model)[:2]
    panels = [
        (fine.nside, 1, f"{fine.tokens} pixels"),
        (fine.nside, fine.block, f"{fine.tokens // fine.block} blocks of {fine.block}"),
        (fine.nside, fine.window, f"{fine.tokens // fine.window} windows of {fine.window}"),
        (coarse.nside, coarse.block, f"one level up: {coarse.tokens // coarse.block} blocks of {coarse.block}"),
    ]
    figure = new_figure(3.0 * len(panels), 3.3)
    places = figure.add_gridspec(1, len(panels))
    count = _PALETTE.N
    for index, (nside, size, title) in enumerate(panels):
        group = np.arange(12 * nside**2) // size
        cells = _on_map(nside, (5 * group + group // count) % count, central[0])
        axes = map_axes(figure, places[index], cells, projection_for(cells, "orthographic", central))
        draw_cells(axes, cells, (_PALETTE, BoundaryNorm(np.arange(count + 1) - 0.5, count), "neither"))
        axes.set_title(title)
    return figure


def explore_blocks(model: Mosaic, weights: xr.Dataset, **first: Any) -> Any:
    """Choose a place and see which blocks it attends to, and its gates: in a notebook a widget, elsewhere its first view.

    model: a Mosaic with block-sparse attention.  weights: from ``wxlab.attention.capture(model, batch)``; the first sample is shown.
    first: the first view, any of ``layer`` (0, 1, ... in the order of the pass), ``latitude``, ``longitude`` and ``head``.
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError for weights of another model, and a place or head that is not there.
    """
    view = BlocksView(model, weights)
    layer = first.pop("layer", 0)
    if not isinstance(layer, int) or not 0 <= layer < len(view.variables):
        raise WxlabError(f"layer={layer!r} is not among the {len(view.variables)} layers; give 0 to {len(view.variables) - 1}")
    choice = view.first(view.variables[layer], **first)
    if not in_notebook():
        return view.draw(**choice)
    from wxlab.plots.widget import Explorer

    return Explorer(view, choice)


class BlocksView:
    """What can be chosen of a Mosaic's attention, and its picture: two maps of blocks and three gates."""

    word = "Layer"

    def __init__(self, model: Mosaic, weights: xr.Dataset) -> None:
        self.levels = {level.nside: level for level in _levels(model)}
        order = [name for name, module in model.named_modules() if hasattr(module, "gate_tap")]
        found: dict[str, tuple[int, int]] = {}
        for nside in self.levels:
            if f"selection_nside{nside}" not in weights:
                continue
            array = weights[f"selection_nside{nside}"]
            modules = weights[f"module_selection_nside{nside}" if f"module_selection_nside{nside}" in weights.coords else "module"].values
            for position in range(array.shape[0]):
                found[str(modules[position]).removesuffix(".selection_tap")] = (nside, position)
        if not found or set(found) - set(order):
            raise WxlabError("the weights hold no choice of blocks of this model; give what wxlab.attention.capture(model, batch) returned")
        self.places = {_layer_name(name, found[name][0]): found[name] for name in order if name in found}
        self.variables = list(self.places)
        self.weights = {str(name): array.values[:, 0] for name, array in weights.items()}  # of the first sample

    def entries(self, variable: str) -> dict[str, list[Any]]:
        """Places all over the globe, and the query heads."""
        nside, _ = self.places[variable]
        heads: list[Any] = ["mean", *range(self.levels[nside].heads)]
        return {"latitude": list(range(-85, 90, 5)), "longitude": list(range(-180, 180, 5)), "head": heads}

    def first(self, variable: str, latitude: float = 50, longitude: float = 10, head: int | str = "mean") -> dict[str, Any]:
        """The first choice. Raises WxlabError for places and heads that are not there."""
        if not -90 <= latitude <= 90 or not -180 <= longitude <= 360:
            raise WxlabError(f"latitude={latitude}, longitude={longitude} is no place; give degrees, -90 to 90 and -180 to 360")
        heads = self.entries(variable)["head"]
        if head not in heads:
            raise unknown("head", head, [str(entry) for entry in heads])
        return {"variable": variable, "latitude": latitude, "longitude": longitude, "head": head}

    @styled
    def draw(self, variable: str, latitude: float, longitude: float, head: int | str) -> Figure:
        """How much attention the place's block gives to the blocks, in both far-reaching branches, and how the branches are mixed."""
        nside, position = self.places[variable]
        level, token = self.levels[nside], token_at(nside, latitude, longitude)
        figure = new_figure(12.4, 3.5)
        places = figure.add_gridspec(1, 3, width_ratios=(4.6, 4.6, 2.3))
        for column, branch in enumerate(("selection", "compression")):
            share = self.weights[f"{branch}_nside{nside}"][position, :, token // level.block]  # [head, key block]
            share = share.mean(0) if head == "mean" else share[int(head)]
            self._map(figure, places[column], nside, token, np.repeat(share, level.block), branch)
        gates = self.weights[f"gates_nside{nside}"][position, token]  # [head, branch]
        self._bars(figure.add_subplot(places[2]), gates, head)
        which = "mean of heads" if head == "mean" else f"head {head}"
        figure.suptitle(f"{variable} · {_place(latitude, longitude)} · {which}", x=0.005, ha="left")
        return figure

    def _map(self, figure: Figure, place: Any, nside: int, token: int, share: np.ndarray, branch: str) -> None:
        level = self.levels[nside]
        cells = _on_map(nside, np.where(share > 0, 100 * share, np.nan))
        axes = map_axes(figure, place, cells, projection_for(cells))
        top = max(100 * float(share.max()), 1e-6)
        mesh = draw_cells(axes, cells, (mpl.colormaps["YlGnBu"], Normalize(0, top), "neither"))
        axes.patch.set_facecolor("#ffffff")
        number = np.arange(level.tokens)
        for size, colour in ((level.window, "#666666"), (level.block, COLOURS[1])):
            _outline(axes, nside, number // size == token // size, colour)
        _mark(axes, nside, token)
        chosen = int((share.reshape(-1, level.block)[:, 0] > 0).sum())
        blocks = level.tokens // level.block
        axes.set_title(f"Selection: {chosen} of {blocks} blocks" if branch == "selection" else f"Compression: means of {blocks} blocks")
        figure.colorbar(mesh, ax=axes, location="bottom", label="Share of attention [%]", aspect=40, shrink=0.7, pad=0.03)

    def _bars(self, axes: Axes, gates: np.ndarray, head: int | str) -> None:
        values = gates.mean(0) if head == "mean" else gates[int(head)]
        axes.bar(BRANCHES, 100 * values, color=[COLOURS[0], COLOURS[4], COLOURS[2]], alpha=0.8)
        for branch in range(3):
            axes.plot(np.full(len(gates), branch), 100 * gates[:, branch], ".", color="#333333", markersize=4)
        axes.set(ylim=(0, 100), title="Gates (dots: heads)", ylabel="Share of the branch [%]")
        axes.tick_params(axis="x", labelsize="small")


def _layer_name(module: str, nside: int) -> str:
    """``encoder_stages.0.blocks.1.attention`` in words."""
    parts = module.split(".")
    return f"{parts[0].removesuffix('_stages')} {parts[parts.index('blocks') + 1] if 'blocks' in parts else ''}, nside {nside}"


def _place(latitude: float, longitude: float) -> str:
    longitude = (longitude + 180) % 360 - 180
    return f"{abs(latitude):g}°{'N' if latitude >= 0 else 'S'} {abs(longitude):g}°{'E' if longitude >= 0 else 'W'}"


def _outline(axes: Axes, nside: int, inside: np.ndarray, colour: str) -> None:
    """The edge of a region of pixels."""
    import cartopy.crs as ccrs

    cells = _on_map(nside, inside.astype(np.float64))
    middles = [(edges[1:] + edges[:-1]) / 2 for edges in (cells.x, cells.y)]
    if 0 < inside.sum() < inside.size:
        axes.contour(*middles, cells.values, levels=[0.5], colors=colour, linewidths=1.4, transform=ccrs.PlateCarree())


def _mark(axes: Axes, nside: int, token: int) -> None:
    """A star on a pixel."""
    import cartopy.crs as ccrs

    from wxlab.healpix_mesh import centres

    longitude, latitude = map(float, centres(nside)[token])
    axes.plot(longitude, latitude, marker="*", markersize=10, color=COLOURS[1], markeredgecolor="#ffffff", transform=ccrs.PlateCarree())
