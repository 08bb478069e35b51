"""What ``prepare`` was asked for, resolved against the data: everything that can be found wrong is found here, before any work."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

import wxlab
from wxlab.channels import belongs, dataset_channels, locate_channel
from wxlab.climatology import Terms, choose_terms
from wxlab.errors import WxlabError, unknown
from wxlab.events import LABELS, SizeLike, TilesLike, true_times
from wxlab.forcings import BOUNDED, DAY, FORCINGS, seconds
from wxlab.grids import METHODS, Grid, GridLike, Regridder, crop_to_multiple, default_method, grid_of, join_columns, parse_grid
from wxlab.normaliser import POLICIES
from wxlab.preparation.accumulations import apply
from wxlab.preparation.blocks import Blocks, Part, read_values
from wxlab.preparation.statistics import Request
from wxlab.splits import SPLITS, Ranges, find_runs, interval, mask_of, present, ranges_of, regular_step, resolve_splits, time_text

MADE_OF = "made_of"  # attribute of computed data
FORMAT = "wxlab store 1"
# normalised radar values lie in 0..1
RADAR: Mapping[str, Any] = {
    "rain_rate": "dbz",
    "reflectivity": {"kind": "minmax", "low": -10, "high": 60},
    "vertically_integrated_liquid_8bit": {"kind": "minmax", "low": 0, "high": 255},
}


@dataclass(frozen=True)
class Plan:
    """Everything that was asked for, resolved against the data and found possible."""

    blocks: Blocks
    step: int
    segment: np.ndarray
    splits: Ranges
    requests: Mapping[str, Request]
    fills: Mapping[str, float]
    static: tuple[str, ...]
    static_fields: np.ndarray
    events: Mapping[str, np.ndarray]
    terms: Terms
    provenance: Mapping[str, Any]

    @property
    def checksum(self) -> str:
        return digest(self.provenance["request"])

    @property
    def training(self) -> np.ndarray:
        return mask_of(self.splits["train"], len(self.blocks.times))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of ``prepare``, as they were given."""

    variables: Sequence[str] | None = None
    levels: Sequence[int] | None = None
    grid: GridLike | None = None
    time: Sequence[Any] | slice | None = None
    splits: Mapping[str, Any] | None = None
    static: Sequence[str] = ()
    forcing: Sequence[str] = ()
    normalisation: Mapping[str, Any]
    nan: str | Mapping[str, str] = "error"
    fill: Mapping[str, float]
    method: str | Mapping[str, str] | None = None
    crop: SizeLike | None = None
    tiles: TilesLike | None = None
    multiples: Sequence[int] | None = None
    accumulated: Mapping[str, Mapping[str, Any]]
    chunk_bytes: int


def make_plan(dataset: xr.Dataset, source: str, settings: Settings, work: Path) -> Plan:
    """Resolve the settings against the data.

    source: what the data are called.  Raises WxlabError for whatever does not fit.
    """
    dataset = join_columns(select_time(apply(dataset, settings.accumulated), settings.time))
    channels = dataset_channels(dataset, settings.variables, settings.levels)
    static, forcing = _names(settings.static), _names(settings.forcing)
    dataset, origin, goal = _grids(dataset, settings)
    times = seconds(dataset["time"].values)
    step = regular_step(times)
    labels = np.asarray(dataset["segment"].values).astype(np.int64) if "segment" in dataset.coords else None
    segment = find_runs(times, step, labels)
    labels = segment if labels is None else labels
    events = _events(dataset)
    if events and forcing:
        raise WxlabError(f"forcing {', '.join(forcing)} needs true times, and events are laid one after the other; prepare without forcing")
    splits = _splits(dataset, settings.splits, labels)
    frame = 4 * len(channels) * int(np.prod(goal.shape))
    chunk = -(-len(times) // -(-len(times) // max(1, settings.chunk_bytes // frame)))
    policies = _per_channel(settings.nan, channels, "error", "policy for missing values", POLICIES)
    parts = _parts(dataset, channels, origin, goal, settings.method)
    requests = _requests(dataset, settings.normalisation, channels, forcing, static)
    for name in settings.fill:
        if name not in channels:
            raise unknown("channel to fill", name, channels)
    static_fields = _static_fields(dataset, static, origin, goal)
    request = {
        "format": FORMAT,
        "source": source,
        "data": _fingerprint(dataset, channels, static),
        "channels": channels,
        "grid": goal.to_dict(),
        "times": digest(times.tolist()),
        "segments": digest(segment.tolist()),
        "splits": splits,
        "static": static,
        "forcing": forcing,
        "normalisation": {name: [value.kind, dict(value.settings or {})] for name, value in requests.items()},
        "method": [part.move.method if part.move else None for part in parts],
        "nan": policies,
        "fill": dict(settings.fill),
        "chunk": chunk,
        "events": {name: digest(values.tolist()) for name, values in events.items()},
    }
    training = times[mask_of(splits["train"], len(times))]
    return Plan(
        blocks=Blocks(work, dataset, parts, channels, forcing, goal, times, chunk, policies),
        step=step,
        segment=segment,
        splits=splits,
        requests=requests,
        fills=dict(settings.fill),
        static=static,
        static_fields=static_fields,
        events=events,
        # the yearly and daily cycle of times that were moved is none
        terms=Terms((int(training[0] % DAY),), 0, "a mean, for events are laid one after the other") if events else choose_terms(training),
        provenance={
            **{key: str(dataset.attrs.get(key, "")) for key in ("title", "licence", "citation")},
            **{key: str(dataset.attrs[key]) for key in ("autoencoder",) if key in dataset.attrs},  # whose latents these are
            "source": source,
            "request": request,
            "versions": {"python": platform.python_version(), **{package.__name__: package.__version__ for package in (wxlab, zarr, np)}},
        },
    )


def _names(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _grids(dataset: xr.Dataset, settings: Settings) -> tuple[xr.Dataset, Grid, Grid]:
    """The data, their grid and the store's grid, cropped as asked."""
    if settings.grid is None:
        dataset = crop_to_multiple(dataset, settings.multiples) if settings.multiples else dataset
        return dataset, grid_of(dataset), grid_of(dataset)
    origin = grid_of(dataset)
    goal = parse_grid(settings.grid, origin)
    return dataset, origin, crop_to_multiple(goal, settings.multiples) if settings.multiples else goal


def own_splits(dataset: xr.Dataset, labels: np.ndarray) -> dict[str, Any] | None:
    """The splits that a source brings, less segments that are not there; None when it has none."""
    return present(json.loads(dataset.attrs["splits"]), labels) if dataset.attrs.get("splits") else None


def _splits(dataset: xr.Dataset, definition: Mapping[str, Any] | None, labels: np.ndarray) -> Ranges:
    """The splits that were asked for, else those that the frames or the source bring, else the usual shares."""
    if definition is None and "split" in dataset.coords:
        owner = np.asarray(dataset["split"].values)
        found = {name: ranges_of(owner == name) for name in SPLITS}
        return {name: ranges for name, ranges in found.items() if ranges}
    sources = np.asarray(dataset["source"].values) if "source" in dataset.coords else None
    return resolve_splits(own_splits(dataset, labels) if definition is None else definition, true_times(dataset), labels, sources)


def _events(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """Where and when frames truly are, for events that are laid one after the other; empty for a plain series."""
    if "event_time" not in dataset.coords:
        return {}
    found = {name: np.asarray(dataset[name].values) for name in LABELS if name in dataset.coords and name != "split"}
    return found | {"event_time": true_times(dataset)}


def select_time(dataset: xr.Dataset, time: Any) -> xr.Dataset:
    """The times of ``prepare``: [start, end], inclusive, or [start, end, hours]; where events are laid one after the other, true times."""
    if "time" not in dataset.dims:
        raise WxlabError("the data have no dimension 'time'; a store is made of states in time")
    times = seconds(dataset["time"].values)
    if len(times) == 0 or (np.diff(times) <= 0).any():
        where = f" (at {time_text(times[int(np.argmax(np.diff(times) <= 0)) + 1])})" if len(times) else ""
        raise WxlabError(f"times must be there, ascending and each once{where}; sort with dataset.sortby('time').drop_duplicates('time')")
    if time is None:
        return dataset
    times = true_times(dataset)
    hours = None
    if not isinstance(time, (slice, str)) and isinstance(time, Sequence) and len(time) == 3:
        *time, hours = time
    start, end = interval(time, "time")
    keep = (times >= start) & (times <= end)
    if hours is not None:
        if not isinstance(hours, (int, float)) or hours <= 0:
            raise WxlabError(f"time keeps every {hours!r} hours; give a number above 0, such as 6")
        keep &= times % round(hours * 3600) == 0
    if not keep.any():
        raise WxlabError(f"no time lies in {list(time)}; the data run from {time_text(times.min())} to {time_text(times.max())}")
    return dataset.isel(time=np.flatnonzero(keep))


def _parts(dataset: xr.Dataset, channels: Sequence[str], origin: Grid, goal: Grid, method: Any) -> tuple[Part, ...]:
    located = [locate_channel(dataset, channel) for channel in channels]
    names = list(dict.fromkeys(variable for variable, _ in located))
    methods = method if isinstance(method, Mapping) else dict.fromkeys(names, method)
    for name, value in methods.items():
        if name not in names:
            raise unknown("variable to regrid", name, names)
        if value is not None and value not in METHODS:
            raise unknown("regridding method", value, METHODS)
    parts = []
    for name in names:
        extra = set(dataset[name].dims) - {"time", "level", *origin.dims}
        if extra or "time" not in dataset[name].dims:
            axes = ", ".join(map(str, dataset[name].dims))
            wanted = " and ".join(origin.dims)
            raise WxlabError(f"{name} has the dimensions {axes}; a channel has time, perhaps level, and {wanted}: select from it first")
        mine = [(place, level) for place, (variable, level) in enumerate(located) if variable == name]
        present = np.asarray(dataset["level"].values).tolist() if "level" in dataset[name].dims else []
        levels = tuple(present.index(level) for _, level in mine) if present else None
        move = None if origin == goal else Regridder(origin, goal, methods.get(name) or default_method(origin, goal))
        parts.append(Part(name, levels, tuple(place for place, _ in mine), move))
    return tuple(parts)


def _per_channel(value: Any, channels: Sequence[str], default: str, kind: str, allowed: Sequence[str]) -> dict[str, str]:
    """A setting for every channel, from one value for all or from values by channel or variable."""
    given: Mapping[str, str] = value if isinstance(value, Mapping) else dict.fromkeys(channels, value)
    result = dict.fromkeys(channels, default)
    for name, choice in given.items():
        mine = [channel for channel in channels if belongs(channel, name)]
        if not mine:
            raise unknown(f"channel in the {kind}", name, channels)
        if choice not in allowed:
            raise unknown(kind, choice, allowed)
        result |= dict.fromkeys(mine, choice)
    return result


def _requests(
    dataset: xr.Dataset, given: Mapping[str, Any], channels: Sequence[str], forcing: Sequence[str], static: Sequence[str]
) -> dict[str, Request]:
    for name in forcing:
        if name not in FORCINGS:
            raise unknown("forcing", name, FORCINGS)
    names = [*channels, *forcing, *static]
    requests = {name: Request("none" if name in BOUNDED else "zscore") for name in names}
    for name in channels:
        # an archive may say how its values become 0..1; rain rates do so through dBZ
        own = dataset[locate_channel(dataset, name)[0]].attrs.get("normalisation")
        if own is not None or name in RADAR:
            requests[name] = Request.parse(name, RADAR[name] if own is None else json.loads(own))
    for key, value in given.items():
        mine = [name for name in names if belongs(name, key)]
        if not mine:
            raise unknown("channel to normalise", key, names)
        requests |= {name: Request.parse(name, value) for name in mine}
    return requests


def _static_fields(dataset: xr.Dataset, static: Sequence[str], origin: Grid, goal: Grid) -> np.ndarray:
    fields = np.empty((len(static), *goal.shape), dtype=np.float32)
    for i, name in enumerate(static):
        if name not in dataset:
            raise unknown("static field", name, [key for key, field in dataset.data_vars.items() if "time" not in field.dims])
        field = dataset[name]
        if set(field.dims) != set(origin.dims):
            raise WxlabError(f"static field {name!r} has the dimensions {list(field.dims)}; it must have {list(origin.dims)}")
        values = read_values(field.transpose(*origin.dims)).astype(np.float32)
        if not np.isfinite(values).all():
            raise WxlabError(f"static field {name!r} has missing values; fill them first, for instance dataset[{name!r}].fillna(0)")
        fields[i] = values if origin == goal else Regridder(origin, goal, default_method(origin, goal))(values)
    return fields


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _fingerprint(dataset: xr.Dataset, channels: Sequence[str], static: Sequence[str]) -> str:
    """What tells one source from another: shapes, origin, and the values; of lazy data eight states spread over the times.

    Data that a network computes say by the attribute ``MADE_OF`` what they are: their values are rounded in another way on another
    number of threads.
    """
    total = hashlib.sha256()
    if MADE_OF in dataset.attrs:
        total.update(f"{dataset.attrs[MADE_OF]} {[(name, dataset[name].shape) for name in dataset.data_vars]}".encode())
        return total.hexdigest()
    for variable in dict.fromkeys([*(locate_channel(dataset, channel)[0] for channel in channels), *static]):
        field = dataset[variable]
        total.update(f"{variable} {field.dims} {field.shape} {field.dtype} {dataset.encoding.get('source')}".encode())
        if "time" in field.dims and field.chunks is not None:
            field = field.isel(time=np.unique(np.linspace(0, field.sizes["time"] - 1, 8).astype(int)))
        total.update(np.ascontiguousarray(read_values(field)).tobytes())
    return total.hexdigest()
