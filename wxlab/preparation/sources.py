"""From names to the one dataset that a store is made of: several sources, a part of the fields, tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.events import Tiles, crop, cut, join, true_times
from wxlab.grids import regrid
from wxlab.preparation.plan import Settings, own_splits, select_time
from wxlab.splits import resolve_splits

SourceLike: TypeAlias = "str | xr.Dataset | Sequence[str | xr.Dataset]"


def gather(given: SourceLike, catalog: Any, settings: Settings) -> tuple[xr.Dataset, str, Settings]:
    """The data of a store, its name, and the settings that are still to be applied.

    given: an entry of the catalogue, a Dataset, several of either, or entries joined by ``+``.
    """
    opened = _opened(given, catalog)
    name = "+".join(name for name, _ in opened)
    if settings.crop is not None:
        opened = [(name, crop(dataset, settings.crop)) for name, dataset in opened]
    if len(opened) == 1 and settings.tiles is None:
        return opened[0][1], name, settings
    tiles = None if settings.tiles is None else Tiles.parse(settings.tiles)
    parts: list[tuple[str, xr.Dataset]] = []
    for source, dataset in opened:
        dataset = select_time(dataset, settings.time)
        whole = _on_grid(_labelled(dataset) if settings.splits is None else dataset, settings)
        parts.extend((source, part) for part in (cut(whole, tiles) if tiles else [whole]))
    return join(parts), name, replace(settings, time=None, grid=None, method=None)


def _opened(given: SourceLike, catalog: Any) -> list[tuple[str, xr.Dataset]]:
    from wxlab.catalog import load, open_dataset

    if isinstance(given, xr.Dataset):
        return [(str(given.attrs.get("source_name", given.attrs.get("source", "a Dataset"))), given)]
    if isinstance(given, str):
        entries = load(catalog)
        names = [given] if given in entries.datasets else [name.strip() for name in given.split("+")]
        return [(name, open_dataset(name, catalog=entries)) for name in names]
    if not given:
        raise WxlabError("no source was given; name at least one entry of the catalogue")
    found = [pair for one in given for pair in _opened(one, catalog)]
    names = [name for name, _ in found]
    # two Datasets may bear one name; splits by sources must be able to tell them apart
    return [(name if names.count(name) == 1 else f"{name}_{i}", dataset) for i, (name, dataset) in enumerate(found)]


def _labelled(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with its own splits (else the usual shares) as a coordinate along time, which lasts when segments are renumbered."""
    labels = np.asarray(dataset["segment"].values) if "segment" in dataset.coords else np.zeros(dataset.sizes["time"], dtype=np.int64)
    split = np.full(dataset.sizes["time"], "", dtype=object)
    for name, ranges in resolve_splits(own_splits(dataset, labels), true_times(dataset), labels).items():
        for start, stop in ranges:
            split[start:stop] = name
    return dataset.assign_coords(split=("time", split))


def _on_grid(dataset: xr.Dataset, settings: Settings) -> xr.Dataset:
    names = [name for name in dataset.data_vars if settings.variables is None or name in settings.variables]
    dataset = dataset[names] if names else dataset
    if settings.grid is None:
        return dataset
    methods = settings.method if isinstance(settings.method, Mapping) else dict.fromkeys(map(str, names), settings.method)
    moved = {name: regrid(dataset[name], settings.grid, methods.get(str(name))) for name in names}  # type: ignore[arg-type]
    return xr.Dataset(moved, attrs=dataset.attrs)
