"""The catalogue: from a name to an xarray Dataset in physical units, opened lazily.

``data_catalog.yaml`` is the built-in list; files named in ``WXLAB_CATALOG`` (separated by ``:``) are laid over it, later ones winning
by entry name, and ``catalog=`` last.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import xarray as xr

from wxlab.catalog_schema import Catalog, Entry, Variable, entry_problems, read_file, validate
from wxlab.data_check import Finding, examine, missing
from wxlab.errors import WxlabError, unknown

__all__ = ["Catalog", "CatalogLike", "Entry", "Finding", "Variable", "check", "load", "missing", "open_dataset"]

CatalogLike: TypeAlias = "str | os.PathLike[str] | list[str] | list[Path] | Catalog | None"
# what may be overridden of a simulated entry; every other name is a setting of the simulator
_SIMULATED_FIELDS = frozenset({"title", "time", "driver", "options", "variables", "splits", "licence", "citation"})


def builtin_path() -> Path:
    """``data_catalog.yaml``: beside the package in a source checkout, else where installation puts it."""
    places = (Path(__file__).parents[1] / "data_catalog.yaml", Path(sys.prefix) / "share" / "wxlab" / "data_catalog.yaml")
    for place in places:
        if place.is_file():
            return place
    raise WxlabError(f"data_catalog.yaml is neither at {places[0]} nor at {places[1]}; install wxlab again")


def standing_files() -> list[Path]:
    """The catalogue files in use: the built-in one and those that ``WXLAB_CATALOG`` names."""
    return [builtin_path(), *(Path(part) for part in os.environ.get("WXLAB_CATALOG", "").split(":") if part.strip())]


def load(catalog: CatalogLike = None) -> Catalog:
    """The built-in catalogue with its overlays.

    catalog: a further file, several, or a Catalog already loaded (returned as it is).
    Raises WxlabError naming every problem of the first file that has any.
    """
    if isinstance(catalog, Catalog):
        return catalog
    extra = [] if catalog is None else list(catalog) if isinstance(catalog, list) else [catalog]
    variables: dict[str, Variable] = {}
    datasets: dict[str, Entry] = {}
    for path in (*standing_files(), *extra):
        found = read_file(path, variables)
        variables |= found.variables
        datasets |= found.datasets
    return Catalog(variables=variables, datasets=datasets)


def open_dataset(name: str, *, catalog: CatalogLike = None, **overrides: Any) -> xr.Dataset:
    """A source by name, opened lazily.

    name: an entry of the catalogue.  catalog: see ``load``.  overrides: any field of the entry (``uri=``; ``time={"start": ...}`` cuts;
    ``options={...}`` adds to the entry's; ``variables=[...]`` narrows); for simulated sources also the simulator's own settings.
    Returns dims time, [number], [level in hPa], latitude, longitude (0-360, sorted) or y, x; float32 in the units of the vocabulary;
    attributes source, title, licence, citation, latitude_order, and ``splits`` as JSON where the entry has them.
    Raises WxlabError in one sentence for whatever is wrong with the name, the files or their content.
    """
    from wxlab.readers import Request, open_entry

    found = load(catalog)
    if name not in found.datasets:
        raise unknown("data source", name, found.datasets)
    entry = _overridden(name, found.datasets[name], overrides, found.variables)
    dataset = open_entry(Request(name, entry, found.variables))
    dataset.attrs |= {"source": name, "title": entry.title, "licence": entry.licence, "citation": entry.citation}
    if entry.splits is not None:
        dataset.attrs["splits"] = json.dumps(entry.splits, default=_iso)
    return dataset


def check(name: str, *, catalog: CatalogLike = None, **overrides: Any) -> list[Finding]:
    """Open a source and report on it: time gaps, missing values, always-missing regions, ranges, order of latitude.

    name, catalog, overrides: as for ``open_dataset``.  Returns findings of level ok, note or problem; ``str`` of one is a line of text.
    A source too large to read is sampled at evenly spaced times, and a finding says so.
    Raises WxlabError where the source cannot be opened.
    """
    found = load(catalog)
    options = {**overrides.pop("options", {})}
    if name in found.datasets and found.datasets[name].driver != "simulated":
        options["check_range"] = False  # here a wrong range is a finding, not the end
    if options:
        overrides["options"] = options
    return examine(open_dataset(name, catalog=found, **overrides), found.variables)


def _iso(value: Any) -> str:
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    return str(value)


def _overridden(name: str, entry: Entry, overrides: Mapping[str, Any], vocabulary: Mapping[str, Variable]) -> Entry:
    if not overrides:
        return entry
    values = {field: getattr(entry, field) for field in entry.model_fields_set}
    if "variables" in overrides and not isinstance(overrides["variables"], Mapping):
        wanted = overrides["variables"]
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        for variable in wanted:
            if entry.variables and variable not in entry.variables:
                raise unknown(f"variable of {name}", variable, entry.variables)
        overrides = {**overrides, "variables": {variable: entry.variables.get(variable, {"name": variable}) for variable in wanted}}
    options = {**entry.options, **overrides.get("options", {})}
    if "time" in overrides:
        options["cut_time"] = True
    for key, value in overrides.items():
        if key == "options":
            continue
        if entry.driver == "simulated" and key not in _SIMULATED_FIELDS:
            options[key] = value
        elif key not in Entry.model_fields:
            raise unknown("field of an entry", key, Entry.model_fields)
        else:
            values[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    values["options"] = options
    problems: list[str] = []
    changed: Entry | None = validate(Entry, _plain(values), name, problems)
    problems += [] if changed is None else entry_problems(changed, name, vocabulary)
    if problems or changed is None:
        raise WxlabError("; ".join(problems))
    return changed


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
