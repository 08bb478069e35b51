"""What is wrong with a dataset before anything is trained on it: gaps, missing values, implausible numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr

from wxlab.catalog_schema import Variable

MOST_FRAMES = 2000
MOST_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of a report: ``level`` is ok, note or problem; ``subject`` the variable or axis."""

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.subject}: {self.text}"


def horizontal(dataset: xr.Dataset) -> tuple[str, str]:
    """The names of the two horizontal axes."""
    return ("latitude", "longitude") if "latitude" in dataset.dims else ("y", "x")


def channel_arrays(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """Every variable at every level by channel name (``geopotential_500``), statics included."""
    channels: dict[str, xr.DataArray] = {}
    for name, array in dataset.data_vars.items():
        if "level" in array.dims:
            channels |= {f"{name}_{value:g}": array.sel(level=value, drop=True) for value in array["level"].values.tolist()}
        else:
            channels[str(name)] = array
    return channels


def missing(dataset: xr.Dataset) -> xr.Dataset:
    """Where values are missing (NaN), channel by channel.

    dataset: as ``open_dataset`` gives it, dims time, [number], [level], and two horizontal ones.
    Returns ``share`` [channel] of all values; ``frame`` [channel, time], True where a whole frame is missing; ``always`` [channel, y, x],
    True where a point is missing in every frame that is not wholly missing (sea surface temperature on land, the outside of a region).
    Channels without time are left out of ``frame`` (False there).
    """
    y, x = horizontal(dataset)
    lazy = {}
    for name, array in channel_arrays(dataset).items():
        absent = array.isnull()
        over = [dim for dim in absent.dims if dim not in ("time", y, x)]
        frame = absent.all([*over, y, x])
        seen = absent | frame if "time" in absent.dims else absent
        lazy[name] = (absent.mean(), frame, seen.all([dim for dim in absent.dims if dim not in (y, x)]))
    computed: tuple[dict[str, tuple[xr.DataArray, xr.DataArray, xr.DataArray]]] = dask.compute(lazy)
    results = computed[0]
    times = dataset.sizes.get("time", 1)
    frames = np.stack([np.broadcast_to(frame.values if frame.ndim else False, times) for _, frame, _ in results.values()])
    always = np.stack([cells.transpose(y, x).values & ~frame.values.all() for _, frame, cells in results.values()])
    coords: dict[str, Any] = {"channel": list(results), y: dataset[y], x: dataset[x]}
    if "time" in dataset.dims:
        coords["time"] = dataset["time"]
    return xr.Dataset(
        {
            "share": ("channel", np.array([float(share) for share, _, _ in results.values()])),
            "frame": (("channel", "time"), frames),
            "always": (("channel", y, x), always),
        },
        coords,
    )


def gaps(dataset: xr.Dataset) -> tuple[pd.Timedelta | None, list[tuple[pd.Timestamp, pd.Timestamp]]]:
    """The usual step between times, and the pairs of neighbours in one segment that lie further apart."""
    index = dataset.indexes["time"]
    if len(index) < 2:
        return None, []
    steps = np.diff(index.values)
    inside = np.ones(len(steps), bool)
    if "segment" in dataset.coords:
        inside = np.diff(dataset["segment"].values) == 0
    if not inside.any():
        return None, []
    values, counts = np.unique(steps[inside], return_counts=True)
    usual = values[counts.argmax()]
    wide = np.flatnonzero((steps > usual) & inside)
    return pd.Timedelta(usual), [(index[i], index[i + 1]) for i in wide.tolist()]


def examine(dataset: xr.Dataset, vocabulary: Mapping[str, Variable]) -> list[Finding]:
    """All findings about an opened dataset: times, missing values, ranges, order of latitude, units."""
    findings = _time_findings(dataset)
    sample, text = _sample(dataset)
    findings.append(Finding("ok" if sample is dataset else "note", "sample", text))
    findings.extend(_missing_findings(sample))
    findings.extend(_range_findings(sample, vocabulary))
    order = dataset.attrs.get("latitude_order")
    if order:
        findings.append(Finding("ok", "latitude", f"{order}, {dataset.sizes['latitude']} rows"))
    start = dataset.attrs.get("longitude_seam")
    if start:
        west, east = float(dataset["longitude"][start]), float(dataset["longitude"][start - 1])
        findings.append(Finding("note", "longitude", f"the region crosses longitude 0, from {west:g} to {east:g} degrees east"))
    return findings


def _sample(dataset: xr.Dataset) -> tuple[xr.Dataset, str]:
    """All of a small dataset, else evenly spaced times of it."""
    times = dataset.sizes.get("time", 1)
    frame = dataset.nbytes / times
    most = int(max(1, min(MOST_FRAMES, MOST_BYTES / max(frame, 1))))
    small = dataset.nbytes <= MOST_BYTES / 8
    if times <= most or small:
        return dataset, f"all {times} times were read"
    picks = np.unique(np.linspace(0, times - 1, most).astype(int))
    return dataset.isel(time=picks), f"{len(picks)} of {times} times were read, evenly spaced"


def _time_findings(dataset: xr.Dataset) -> list[Finding]:
    if "time" not in dataset.dims:
        return [Finding("note", "time", "there is no time axis")]
    index = dataset.indexes["time"]
    span = f"{len(index)} times from {index[0]} to {index[-1]}"
    if len(index) == 1:
        return [Finding("ok", "time", f"a single time, {index[0]}")]
    usual, wide = gaps(dataset)
    if usual is None:
        return [Finding("note", "time", f"{span}, every one a segment of its own")]
    steps = np.diff(index.values)
    if (steps == usual).mean() < 0.6 and "segment" not in dataset.coords:
        least, most = pd.Timedelta(steps.min()), pd.Timedelta(steps.max())
        return [Finding("problem", "time", f"{span}, irregular steps from {_hours(least)} to {_hours(most)}")]
    if not wide:
        segments = f" in {len(np.unique(dataset['segment']))} segments" if "segment" in dataset.coords else ""
        return [Finding("ok", "time", f"{span}, every {_hours(usual)}{segments}, no gaps")]
    shown = "; ".join(f"{one} to {other}" for one, other in wide[:5]) + ("; ..." if len(wide) > 5 else "")
    return [Finding("problem", "time", f"{span}, every {_hours(usual)} with {len(wide)} gaps ({shown})")]


def _hours(step: pd.Timedelta) -> str:
    hours = step / pd.Timedelta(hours=1)
    return f"{hours:g} h" if hours >= 1 else f"{hours * 60:g} min"


def _missing_findings(dataset: xr.Dataset) -> list[Finding]:
    found = missing(dataset)
    findings = [_missing_finding(found.sel(channel=name), dataset) for name in found["channel"].values if found["share"].sel(channel=name)]
    damaged = {finding.subject for finding in findings}
    whole = [str(name) for name, array in dataset.data_vars.items() if not damaged & set(channel_arrays(array.to_dataset()))]
    if whole:
        findings.insert(0, Finding("ok", "missing values", f"none in {', '.join(whole)}"))
    return findings


def _missing_finding(one: xr.Dataset, dataset: xr.Dataset) -> Finding:
    """One channel in which values are missing; a region that never has values is a note, anything else a problem."""
    y, x = horizontal(dataset)
    name, share, always = str(one["channel"].values), float(one["share"]), one["always"].values
    if share == 1:
        return Finding("problem", name, "every value is missing")
    parts = [f"{100 * share:.3g} % of the values are missing"]
    frames = np.flatnonzero(one["frame"].values)
    if frames.size:
        stamps = dataset.indexes["time"]
        shown = ", ".join(f"step {i} ({stamps[i]})" for i in frames[:5].tolist()) + (", ..." if frames.size > 5 else "")
        parts.append(f"wholly missing in {frames.size} frame{'s' if frames.size > 1 else ''}: {shown}")
    rows, columns = np.nonzero(always)
    if rows.size:
        edges = [f"{axis} {one[axis].values[at].min():g} to {one[axis].values[at].max():g}" for axis, at in ((y, rows), (x, columns))]
        parts.append(f"always missing at {rows.size} of {always.size} points (within {', '.join(edges)})")
    static = not frames.size and np.isclose(share, always.mean(), rtol=1e-6)
    return Finding("note" if static else "problem", name, "; ".join(parts))


def _range_findings(dataset: xr.Dataset, vocabulary: Mapping[str, Variable]) -> list[Finding]:
    limits = {str(name): dask.compute(array.min(), array.max()) for name, array in dataset.data_vars.items()}
    findings = []
    for name, (low, high) in limits.items():
        known = vocabulary.get(name)
        least, most = float(low), float(high)
        if known is None or not np.isfinite(least):
            continue
        text = f"{least:.6g} to {most:.6g}{known.unit}"
        allowed = known.valid_range
        outside = allowed is not None and (least < allowed[0] or most > allowed[1])
        if outside and allowed is not None:
            findings.append(Finding("problem", name, f"{text}, outside the valid range {allowed[0]:g} to {allowed[1]:g}"))
        else:
            findings.append(Finding("ok", name, text))
    return findings
