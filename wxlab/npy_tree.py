"""Trees of .npy files, as the authors of VA-MoE read them: written from any source; their gaps and statistics.

Reading one is an entry of the catalogue with ``driver: npy_tree``; the layout is described in ``wxlab.readers.npy_tree``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from wxlab.channels import dataset_channels, split_channel, stack
from wxlab.errors import WxlabError
from wxlab.files import alone, atomic_file, replace_dir, write_json
from wxlab.forcings import seconds
from wxlab.preparation.blocks import read_values
from wxlab.preparation.plan import own_splits, select_time
from wxlab.preparation.statistics import Moments
from wxlab.readers.npy_tree import GRID_FILE, LEVELS, SHORT_NAMES, gaps, statistics
from wxlab.splits import interval, mask_of, resolve_splits, time_text

__all__ = ["gaps", "statistics", "write"]

BLOCK_BYTES = 64 << 20  # of fields that are in memory at once


def write(
    name_or_dataset: str | xr.Dataset,
    out: str | os.PathLike[str],
    *,
    variables: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    time: Sequence[Any] | slice | None = None,
    train: Sequence[Any] | None = None,
    names: Mapping[str, str] | None = None,
    catalog: Any = None,
    overwrite: bool = False,
) -> Path:
    """Write a source as a tree of one .npy file per time, variable and level, with statistics, for the authors' own scripts.

    name_or_dataset: an entry of the catalogue, or a Dataset in physical units on latitude and longitude.  out: root of the tree.
    variables, levels (hPa), time: what is written, as in ``prepare``; by default all that varies in time.  train: [start, end] of the
    times from which the statistics are taken; None: the source's own training split, else all that is written.
    names: variable -> its name in the tree; by default the authors' short names, and the variable's own where they have none.
    catalog: as in ``open_dataset``.  overwrite: replace a tree that is there.

    Arrays are float32, [1, H, W] on levels and [H, W] else, rows from north to south; the means and deviations of levels that are not
    written are 0 and 1. Coordinates are left in ``grid.json``, from which this package reads them back.
    Block by block, so that memory does not grow with the source. Killed and started again for the same entry of the catalogue, it keeps
    the files that were written; the tree appears when it is whole.  Returns its root.
    Raises WxlabError for missing values, which the tree cannot mark, for levels that the statistics do not have, and for a tree that is
    there already.
    """
    dataset = select_time(_opened(name_or_dataset, catalog), time)
    channels = dataset_channels(dataset, variables, levels)
    files = _names(dataset, channels, names or {})
    training = _training(dataset, train)
    target = Path(out)
    work = target.with_name(f".{target.name}.writing.tmp")
    with alone(target):
        if target.exists() and not overwrite:
            raise WxlabError(f"{target} exists; choose another folder, or pass overwrite=True to replace it")
        _begin(work, name_or_dataset, dataset, channels, files)
        moments = Moments(len(channels))
        for times, fields in _blocks(dataset, channels):
            _write_fields(work, files, times, fields)
            chosen = fields[np.isin(times, training)]
            moments.add(chosen.reshape(*chosen.shape[:2], -1).astype(np.float64))
        _write_statistics(work, files, moments)
        (work / ".request.json").unlink()
        replace_dir(work, target)
    return target


def _opened(given: str | xr.Dataset, catalog: Any) -> xr.Dataset:
    if isinstance(given, str):
        from wxlab.catalog import open_dataset

        given = open_dataset(given, catalog=catalog)
    lacking = {"time", "latitude", "longitude"} - set(map(str, given.dims))
    if lacking:
        raise WxlabError(
            f"the data lack the dimension {', '.join(sorted(lacking))}; a tree holds fields on latitude and longitude over time"
        )
    if "number" in given.dims:
        raise WxlabError("the data have members (dimension number), and a tree holds one state per time; choose one with isel(number=...)")
    return given.isel(latitude=slice(None, None, -1)) if given["latitude"][0] < given["latitude"][-1] else given


def _names(dataset: xr.Dataset, channels: Sequence[str], names: Mapping[str, str]) -> dict[str, tuple[str, int | None]]:
    """Channel -> name and level in the tree."""
    known = {**SHORT_NAMES, **names}
    found: dict[str, tuple[str, int | None]] = {}
    for channel in channels:
        variable, level = split_channel(channel)
        if level is not None and level not in LEVELS:
            raise WxlabError(
                f"{channel} lies at {level} hPa, and the statistics have the levels {', '.join(map(str, LEVELS))}; leave it out"
            )
        found[channel] = known.get(variable, variable), level
    wrong = [name for name, _ in found.values() if not name or "/" in name or re.search(r"-[\d.]+$", name)]
    if wrong or len(set(found.values())) < len(found):
        faulty = wrong or sorted(name for name, _ in found.values())
        raise WxlabError(f"names in the tree must differ, hold no slash and not end like a level (-500); {faulty} do not")
    return found


def _training(dataset: xr.Dataset, train: Sequence[Any] | None) -> np.ndarray:
    """Times (seconds) that the statistics are taken from."""
    times = seconds(dataset["time"].values)
    if train is not None:
        first, last = interval(train, "train")
        chosen = times[(times >= first) & (times <= last)]
        if not len(chosen):
            raise WxlabError(f"no time lies in train={list(train)}; the data run from {time_text(times[0])} to {time_text(times[-1])}")
        return chosen
    labels = np.asarray(dataset["segment"].values) if "segment" in dataset.coords else np.zeros(len(times), dtype=np.int64)
    own = own_splits(dataset, labels)
    if not own or "train" not in own:
        return times
    return times[mask_of(resolve_splits({"train": own["train"]}, times, labels)["train"], len(times))]


def _begin(work: Path, given: str | xr.Dataset, dataset: xr.Dataset, channels: Sequence[str], files: Mapping[str, Any]) -> None:
    """Go on with what an earlier run of the same request left, else start anew; of a Dataset nobody knows whether it is the same."""
    points = {axis: dataset[axis].values.astype(float).tolist() for axis in ("latitude", "longitude")}
    stamps = hashlib.sha256(seconds(dataset["time"].values).tobytes()).hexdigest()
    name = given if isinstance(given, str) else None
    request = json.loads(json.dumps([name, list(channels), files, points, stamps]))
    journal = work / ".request.json"
    if name is not None and journal.exists() and json.loads(journal.read_text()) == request:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_json(journal, request)
    write_json(work / GRID_FILE, points)


def _blocks(dataset: xr.Dataset, channels: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Times (seconds) and fields [n, C, H, W] float32, as many as fit."""
    one = 4 * len(channels) * dataset.sizes["latitude"] * dataset.sizes["longitude"]
    count = max(1, BLOCK_BYTES // one)
    stamps = seconds(dataset["time"].values)
    for start in range(0, len(stamps), count):
        part = slice(start, start + count)
        fields = read_values(stack(dataset.isel(time=part), channels).rename("state")).astype(np.float32)
        missing = np.argwhere(~np.isfinite(fields).all((2, 3)))
        if len(missing):
            at, channel = missing[0]
            raise WxlabError(
                f"{channels[channel]} has missing values at {time_text(stamps[start + at])}, which a tree cannot mark; "
                "leave the variable out, or fill it first"
            )
        yield stamps[part], fields


def _write_fields(root: Path, files: Mapping[str, tuple[str, int | None]], times: np.ndarray, fields: np.ndarray) -> None:
    for stamp, states in zip(times, fields, strict=True):
        day, clock = str(np.datetime64(int(stamp), "s")).split("T")
        for (name, level), field in zip(files.values(), states, strict=True):
            top = root / "single" if level is None else root
            path = top / day[:4] / day / (f"{clock}-{name}.npy" if level is None else f"{clock}-{name}-{float(level)}.npy")
            if not path.exists():
                with atomic_file(path) as temporary, temporary.open("wb") as handle:
                    np.save(handle, field if level is None else field[None])


def _write_statistics(root: Path, files: Mapping[str, tuple[str, int | None]], moments: Moments) -> None:
    upper: dict[str, dict[str, list[float]]] = {"mean": {}, "std": {}}
    single: dict[str, dict[str, float]] = {"mean": {}, "std": {}}
    deviations = np.where(moments.std > 0, moments.std, 1.0)  # constant fields
    for (name, level), mean, std in zip(files.values(), moments.mean.tolist(), deviations.tolist(), strict=True):
        if level is None:
            single["mean"][name], single["std"][name] = mean, std
            continue
        upper["mean"].setdefault(name, [0.0] * len(LEVELS))[LEVELS.index(level)] = mean
        upper["std"].setdefault(name, [1.0] * len(LEVELS))[LEVELS.index(level)] = std
    write_json(root / "statistic" / "mean_std.json", upper)
    write_json(root / "statistic" / "mean_std_single.json", single)
