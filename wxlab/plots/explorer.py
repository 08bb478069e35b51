"""Look around in a data set or forecast: the view is a figure, the widget only chooses what it shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.plots.fields import LEAD, default_level, lead_position, map_variables, time_position, variable_and_level
from wxlab.plots.losses import in_notebook, plot_losses
from wxlab.plots.maps import plot_comparison, plot_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source = xr.Dataset | str | os.PathLike[str]


def explore(run_or_dataset: Source, *, truth: xr.Dataset | None = None, **first: Any) -> Any:
    """Look around in a Dataset, a forecast or a run: in a notebook a widget with sliders, elsewhere the first view as a figure.

    run_or_dataset: a Dataset in memory; or a path: of a prepared store, a zarr or netCDF file, or a run folder (its forecast, or
    else its loss curves).  truth: shown beside a forecast with the difference.  first: the first view, any of ``variable``,
    ``level``, ``time``, ``lead``, ``number`` and ``projection``.
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError when there is nothing to see at the path, or the first view is not in the data.
    """
    dataset = run_or_dataset if isinstance(run_or_dataset, xr.Dataset) else _open(Path(run_or_dataset))
    if dataset is None:
        return plot_losses(Path(os.fspath(run_or_dataset)))
    view = View(dataset, truth, first.pop("projection", None))
    choice = view.first(**first)
    if not in_notebook():
        return view.draw(**choice)
    from wxlab.plots.widget import Explorer

    return Explorer(view, choice)


class View:
    """What can be chosen in a Dataset (``variable``, and positions along level, time, lead and number), and its picture."""

    def __init__(self, dataset: xr.Dataset, truth: xr.Dataset | None = None, projection: Any = None) -> None:
        self.dataset, self.truth, self.projection = dataset, truth, projection
        self.variables = map_variables(dataset)
        if not self.variables:
            raise WxlabError("there is nothing to explore: the Dataset has no variable with latitude and longitude (or y and x)")
        if truth is not None and LEAD not in dataset.dims:
            raise WxlabError("truth was given, but the Dataset is no forecast: it has no lead times; leave truth out")

    def entries(self, variable: str) -> dict[str, list[Any]]:
        """What there is to choose from for a variable: level (hPa), time, lead (their values) and number."""
        array = self.dataset[variable]
        found: dict[str, list[Any]] = {}
        for name, dim in (("level", "level"), ("time", "time"), ("lead", LEAD), ("number", "number")):
            if dim in array.dims:
                values = array[dim].values if dim in array.coords else np.arange(array.sizes[dim])
                found[name] = list(values)
        if "number" in found:
            found["number"] = ["mean", "spread", *(int(member) for member in found["number"])]
        return found

    def first(self, variable: str | None = None, **given: Any) -> dict[str, Any]:
        """The first choice: what is given, else 500 hPa, the first time, the last lead and the ensemble mean."""
        allowed = ("level", "time", "lead", "number")
        for name in given:
            if name not in allowed:
                raise WxlabError(f"explore knows no setting {name!r}; use variable, {', '.join(allowed)} or projection")
        variable = self.variables[0] if variable is None else variable
        level = given.get("level")
        if level is None and variable in self.dataset.data_vars:
            level = default_level(self.dataset, variable)
        variable, level = variable_and_level(self.dataset, variable, level)
        array = self.dataset[variable]
        choice: dict[str, Any] = {"variable": variable}
        for name, values in self.entries(variable).items():
            if name == "level":
                choice[name] = level
            elif name == "time":
                choice[name] = values[time_position(array, given.get(name) or 0)]
            elif name == "lead":
                choice[name] = values[lead_position(array, given[name]) if given.get(name) is not None else -1]
            else:
                choice[name] = given.get(name, "mean")
        return choice

    def draw(self, variable: str, **choice: Any) -> Figure:
        """The picture of a choice; what the variable has no axis for is left out."""
        kept = {name: choice[name] for name in self.entries(variable) if name in choice}
        if self.truth is not None and "lead" in kept:
            lead = kept.pop("lead")
            return plot_comparison(self.dataset, self.truth, variable, leads=lead, projection=self.projection, **kept)
        return plot_map(self.dataset, variable, projection=self.projection, **kept)


def _open(path: Path) -> xr.Dataset | None:
    """The Dataset at a path, or None for a run folder that holds metrics only."""
    if not path.exists():
        raise WxlabError(f"there is nothing at {path}; give a Dataset, a store, a zarr or netCDF file, or a run folder")
    if path.is_file() or any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        return _open_data(path)
    inside = sorted([*path.glob("*.zarr"), *path.glob("*.nc")], key=lambda item: ("forecast" not in item.name, item.name))
    if inside:
        return _open_data(inside[0])
    if (path / "metrics.jsonl").is_file():
        return None
    raise WxlabError(f"the folder {path} holds nothing to look at: no zarr or netCDF file and no metrics.jsonl")


def _open_data(path: Path) -> xr.Dataset:
    if path.is_dir():
        import zarr

        if "normaliser" in zarr.open_group(path, mode="r").attrs:
            from wxlab.store import open_store

            return open_store(path).dataset()
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False} if path.is_dir() else {"engine": "netcdf4"}
    try:
        return xr.open_dataset(path, decode_timedelta=True, chunks=None, **options)
    except (OSError, ValueError, KeyError):
        kind = "zarr" if path.is_dir() else "netCDF"
        raise WxlabError(f"{path} cannot be read as {kind}; give a Dataset, or a zarr or netCDF file") from None
