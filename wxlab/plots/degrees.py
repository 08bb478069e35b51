"""Power by degree of spherical harmonics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import xarray as xr
from matplotlib.ticker import LogLocator, NullFormatter

from wxlab.errors import WxlabError
from wxlab.plots.series import line_styles
from wxlab.plots.style import channel_label, look, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def plot_degrees(spectra: Mapping[str, xr.Dataset], *, band: tuple[float, float] | None = None, columns: int = 4) -> Figure:
    """Draw power by degree of spherical harmonics, and below its ratio to that of the truth, a column for each variable and level.

    spectra: mean spectra (from ``wxlab.spectra.power``) of each variable by name, one of them ``truth``.  band: degrees to shade.
    Returns the figure. Raises WxlabError without the truth.
    """
    if "truth" not in spectra or len(spectra) < 2:
        raise WxlabError(f"the spectra are of {', '.join(spectra) or 'nothing'}; give by name 'truth' and what is compared with it")
    panels = [(str(name), level) for name, array in spectra["truth"].items() for level in _levels(array)]
    rows, columns = -(-len(panels) // columns), min(columns, len(panels))
    figure = new_figure(max(3.0 * columns, 4.5), 3.9 * rows + 0.4)
    places = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, height_ratios=(2, 1) * rows)
    styles = line_styles(list(spectra))
    for index, (name, level) in enumerate(panels):
        upper, lower = (places[2 * (index // columns) + half, index % columns] for half in (0, 1))
        units, scale = _units(name, spectra["truth"][name])
        lines = {kind: (each[name] if level is None else each[name].sel(level=level))[1:] for kind, each in spectra.items()}
        for kind, line in lines.items():
            upper.loglog(line["degree"], line * scale, label=kind, **styles[kind])
            if kind != "truth":
                lower.semilogx(line["degree"], line / lines["truth"], **styles[kind])
        lower.axhline(1, color="#999999", linewidth=0.8)
        lower.set(xlabel="Degree", ylim=(0, 2))
        lower.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        lower.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        lower.xaxis.set_minor_formatter(NullFormatter())
        upper.set_title(channel_label(name, level, with_units=False))
        upper.set_ylabel(f"Power [{units}]" if units else "Power")
        for axes in (upper, lower):
            axes.grid(True)
            if band is not None:
                axes.axvspan(*band, color="#dddddd", alpha=0.5, linewidth=0)
    for row in range(rows):
        places[2 * row + 1, 0].set_ylabel("Ratio to truth")
    for index in range(len(panels), rows * columns):
        for half in (0, 1):
            places[2 * (index // columns) + half, index % columns].remove()
    figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return figure


def _levels(array: xr.DataArray) -> list[float | None]:
    return [float(level) for level in array["level"].values] if "level" in array.dims else [None]


def _units(name: str, spectrum: xr.DataArray) -> tuple[str, float]:
    """The unit of power to show, and what numbers in the square of the variable's usual unit are multiplied with."""
    shown = look(name)
    if not shown.units:
        return str(spectrum.attrs.get("units", "")), 1.0
    return f"({shown.units})²" if set("/ ") & set(shown.units) else f"{shown.units}²", shown.scale**2
