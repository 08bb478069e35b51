"""prepare: select, regrid, statistics, climatology, splits; one training store comes out, or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from wxlab.errors import WxlabError
from wxlab.events import SizeLike, TilesLike
from wxlab.files import alone, atomic_file, replace_dir, write_json
from wxlab.grids import GridLike
from wxlab.normaliser import Normaliser, Policy, Transform
from wxlab.preparation.blocks import Blocks, check_scheduler, journal, read_journal, run_tasks
from wxlab.preparation.plan import FORMAT, Plan, Settings, digest, make_plan
from wxlab.preparation.sources import SourceLike, gather
from wxlab.preparation.statistics import check_observed, groups, training_statistics
from wxlab.splits import span_text, time_text

CHUNK_BYTES = 64 << 20


def prepare(
    name_or_dataset: SourceLike,
    out: str | os.PathLike[str],
    *,
    variables: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    grid: GridLike | None = None,
    time: Sequence[Any] | slice | None = None,
    splits: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    static: Sequence[str] = (),
    forcing: Sequence[str] = (),
    normalisation: Mapping[str, Any] | None = None,
    nan: Policy | Mapping[str, Policy] = "error",
    fill: Mapping[str, float] | None = None,
    method: str | Mapping[str, str] | None = None,
    crop: SizeLike | None = None,
    tiles: TilesLike | None = None,
    multiples: Sequence[int] | None = None,
    accumulated: Mapping[str, Mapping[str, Any]] | None = None,
    catalog: Any = None,
    overwrite: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Path:
    """Make a training store.

    name_or_dataset: an entry of the catalogue, or a Dataset in physical units with unique ascending ``time``; of radar also several,
    as a list or as ``"name+name"``, whose sequences are laid one after the other (see ``wxlab.events``).
    out: the store's folder.  variables: names or single channels (``geopotential_500``); all that vary in time when None.
    levels: hPa.  crop: before anything else, ``"ROWSxCOLUMNS"`` points around the middle, or [y from, y to, x from, x to].
    grid: Grid, (rows, columns), ``"32x64"``, or on y and x ``"2km"``; None keeps the source's.  tiles: cut the fields, after
    ``grid``, into tiles that are segments of their own: ``"64x64"``, or {"size": "64x64", "stride": 32, "observed": 0.5} to let them
    overlap and to leave out tiles that are seen at less than half of their points (the default).  multiples: crop rows and columns
    until they divide by these.  time: [start, end], inclusive, or [start, end, hours] to keep only times at multiples of so many hours.
    splits: name -> [start, end], {"segments": [...]}, {"sources": ["name"]}, or a share of the remaining times of each source, such as
    {"train": 0.65, "validation": 0.35, "test": {"sources": ["name"]}}; None: the source's own, else 70, 15 and 15 % of the times.
    scheduler: ``threads`` (default), ``synchronous``, or the address of a dask scheduler.  static: names of fields without time.
    forcing: names of ``wxlab.forcings``.  normalisation: name -> ``zscore`` (default; radar: 0..1, rain rates through ``dbz``),
    ``minmax``, ``dbz``, ``log``, ``none`` or a dict with ``kind`` and its settings.  nan: policy for missing values, ``error``,
    ``fill`` (with ``fill`` by name, in physical units; the training mean when not given) or ``mask`` (which ``fill`` may go with),
    for all or by name.  method: ``conservative`` or ``bilinear``, for all or by variable; None: conservative to coarser grids,
    bilinear to finer ones.  accumulated: variables that are totals since a start, with the settings of ``deaccumulate``:
    {"total_precipitation": {"resets": [0], "hours": 6}} gives ``total_precipitation_6hr``.
    catalog: as in ``open_dataset``.  overwrite: replace a store made from another request.
    chunk_bytes: size of a block, the unit of work and of files.

    Killed and started again with the same request it keeps the blocks that were written (in a hidden folder beside ``out``); the
    store appears only when it is whole.
    Returns the path of the store; one that was made from the same request is returned as it is.
    Raises WxlabError, one sentence, for whatever cannot be done.
    """
    check_scheduler(scheduler)
    target = Path(out)
    work = target.with_name(f".{target.name}.preparing.tmp")
    settings = Settings(
        variables=variables, levels=levels, grid=grid, time=time, splits=splits, static=static, forcing=forcing,
        nan=nan, method=method, crop=crop, tiles=tiles, multiples=multiples, chunk_bytes=chunk_bytes,
        normalisation=normalisation or {}, fill=fill or {}, accumulated=accumulated or {},
    )
    plan = make_plan(*gather(name_or_dataset, catalog, settings), work)
    with alone(target):
        if target.exists() and _is_prepared(target, plan, overwrite):
            return target
        _begin(plan)
        run_tasks(plan.blocks.write, plan.blocks.count, scheduler)
        pieces = groups(len(plan.blocks.channels), int(np.prod(plan.blocks.grid.shape)), plan.terms)
        run_tasks(partial(_statistics, plan, pieces), len(pieces), scheduler)
        _finish(plan, len(pieces))
        replace_dir(work, target)
        _drop_journal(target)
    return target


def _stored_checksum(path: Path) -> str | None:
    try:
        attributes = dict(zarr.open_group(str(path), mode="r").attrs)
        return digest(attributes["provenance"]["request"])  # type: ignore[index, call-overload]
    except Exception:
        return None


def _drop_journal(path: Path) -> None:
    shutil.rmtree(path / ".journal", ignore_errors=True)


def _is_prepared(target: Path, plan: Plan, overwrite: bool) -> bool:
    """Whether ``target`` holds what is asked for.  Raises WxlabError when it holds anything else and may not be replaced."""
    if _stored_checksum(target) == plan.checksum:
        _drop_journal(target)
        return True
    if overwrite:
        return False
    try:
        old: Any = zarr.open_group(str(target), mode="r").attrs["provenance"]
        new = json.loads(json.dumps(plan.provenance["request"]))
        differs = "was prepared from another request; they differ in " + ", ".join(k for k in new if new[k] != old["request"].get(k))
    except Exception:
        differs = "is something else than a store"
    raise WxlabError(f"{target} exists and {differs}; choose another name, or pass overwrite=True")


def _begin(plan: Plan) -> None:
    """Go on with what an earlier run of the same request left, else start anew."""
    work = plan.blocks.work
    request = work / ".journal" / "request.json"
    if request.exists() and json.loads(request.read_text()) == plan.checksum:
        for unfinished in work.rglob(".*.tmp"):  # a file that a killed worker was writing
            unfinished.unlink()
        return
    shutil.rmtree(work, ignore_errors=True)
    group = zarr.open_group(str(work), mode="w", zarr_format=3)
    names = {"state": len(plan.blocks.channels)} | ({"forcing": len(plan.blocks.forcing)} if plan.blocks.forcing else {})
    for name, channels in names.items():
        shape = (len(plan.blocks.times), channels, *plan.blocks.grid.shape)
        group.create_array(
            name,
            shape=shape,
            chunks=(plan.blocks.chunk, *shape[1:]),
            dtype="float32",
            compressors=None,
            filters=None,
            fill_value=float("nan"),
            dimension_names=("time", "channel" if name == "state" else "forcing_channel", *plan.blocks.grid.dims),
        )
    write_json(request, plan.checksum)


def _statistics(plan: Plan, pieces: list[slice], index: int) -> None:
    """Statistics of one group of channels, kept in the journal."""
    blocks = plan.blocks
    entry = journal(blocks.work, f"statistics-{index:06d}.npz")
    if entry.exists():
        return
    missing = np.concatenate([np.asarray(block["missing"]) for block in read_journal(blocks.work, blocks.count)])
    channels = pieces[index]
    result = training_statistics(
        blocks.frames("state"),
        channels,
        times=blocks.times,
        segment=plan.segment,
        training=plan.training,
        gaps=bool(missing[plan.training, channels].any()),
        terms=plan.terms,
        curves=[plan.requests[name].curve() for name in blocks.channels[channels]],
        anomalies=any(plan.requests[name].kind == "anomaly" for name in blocks.channels[channels]),
    )
    check_observed(result["observed"], blocks.channels[channels])
    with atomic_file(entry) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **result)  # type: ignore[arg-type]


def _finish(plan: Plan, pieces: int) -> None:
    """Write what is small: axes, statistics, climatology, attributes. May be done again after a kill."""
    blocks = plan.blocks
    loaded = [np.load(journal(blocks.work, f"statistics-{index:06d}.npz")) for index in range(pieces)]
    statistics = {key: np.concatenate([part[key] for part in loaded]) for key in loaded[0].files if key != "climatology"}
    climatology = np.concatenate([part["climatology"] for part in loaded], axis=2)
    entries = read_journal(blocks.work, blocks.count)
    group = zarr.open_group(str(blocks.work), mode="r+")
    y, x = blocks.grid.dims
    _write(group, "time", blocks.times, ("time",), units="seconds since 1970-01-01", calendar="proleptic_gregorian")
    _write(group, "segment", plan.segment, ("time",))
    _write(group, y, np.asarray(blocks.grid.y), (y,))
    _write(group, x, np.asarray(blocks.grid.x), (x,))
    for name in ("mean", "std", "tendency_mean", "tendency_std"):
        _write(group, name, statistics[name], ("channel",))
    _write(group, "climatology", climatology, ("hour", "term", "channel", y, x))
    for name, values in plan.events.items():
        _write(group, name, np.unique(values, return_inverse=True)[1].reshape(-1) if name == "source" else values, ("time",))
    if plan.static:
        _write(group, "static", plan.static_fields, ("static_channel", y, x))
    group.attrs.update(
        {
            "format": FORMAT,
            "channels": list(blocks.channels),
            "forcing": list(blocks.forcing),
            "static": list(plan.static),
            "grid": blocks.grid.to_dict(),
            "step": plan.step,
            "sources": np.unique(plan.events["source"]).tolist() if "source" in plan.events else [],
            "chunk": blocks.chunk,
            "splits": {name: [list(pair) for pair in ranges] for name, ranges in plan.splits.items()},
            "normaliser": _normaliser(plan, statistics).to_dict(),
            "climatology": {"hours": list(plan.terms.hours), "harmonics": plan.terms.harmonics, "note": plan.terms.note},
            "missing": _report(plan, entries),
            "provenance": json.loads(json.dumps(plan.provenance)),
            "checksum": hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest(),
        }
    )


def _write(group: zarr.Group, name: str, values: np.ndarray, dims: tuple[str, ...], **attributes: str) -> None:
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=values.shape, dimension_names=dims, overwrite=True)
    array[...] = values
    array.attrs.update(attributes)


def _normaliser(plan: Plan, statistics: Mapping[str, np.ndarray]) -> Normaliser:
    blocks = plan.blocks
    transforms: dict[str, Transform] = {}
    for i, name in enumerate(blocks.channels):
        curved = plan.requests[name].curve() is not None
        mean, std = (float(statistics[f"curved_{key}" if curved else key][i]) for key in ("mean", "std"))
        if plan.requests[name].kind == "anomaly":
            std = float(statistics["anomaly_std"][i])
        transforms[name] = plan.requests[name].transform(mean, std, float(statistics["low"][i]), float(statistics["high"][i]))
    for i, name in enumerate(blocks.forcing):
        values = np.zeros(1)
        if plan.requests[name].kind != "none":
            values = blocks.frames("forcing").read(0, len(blocks.times), slice(i, i + 1))[plan.training].astype(np.float64)
        transforms[name] = plan.requests[name].transform(values.mean(), values.std(), values.min(), values.max())
    for name, field in zip(plan.static, plan.static_fields.astype(np.float64), strict=True):
        transforms[name] = plan.requests[name].transform(field.mean(), field.std(), field.min(), field.max())
    policies: dict[str, Any] = {name: policy for name, policy in blocks.policies.items() if policy != "error"}
    means = dict(zip(blocks.channels, statistics["mean"].tolist(), strict=True))
    filled = [name for name, policy in policies.items() if policy == "fill" or name in plan.fills]
    fills = {name: float(plan.fills.get(name, means[name])) for name in filled}
    return Normaliser(transforms, policies, fills)


def _report(plan: Plan, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What is missing: gaps in time, the share of each channel, times without any value, points that never have one."""
    blocks = plan.blocks
    missing = np.concatenate([np.asarray(entry["missing"]) for entry in entries])
    points = int(np.prod(blocks.grid.shape))
    cuts = np.flatnonzero(np.diff(plan.segment)) + 1
    gaps = [{"after": time_text(blocks.times[i - 1]), "before": time_text(blocks.times[i])} for i in cuts]
    report: dict[str, Any] = {"segments": len(cuts) + 1, "gaps": gaps[:100], "share": {}, "never_observed": {}, "times_without": {}}
    odd = int((np.diff(blocks.times) != plan.step).sum())
    if odd:
        hours = f"{odd} of {len(blocks.times) - 1} steps are not {span_text(plan.step)}"
        report["note"] = f"{hours}; windows are made only within the {len(cuts) + 1} runs between them"
    for i, name in enumerate(blocks.channels):
        if missing[:, i].any():
            report["share"][name] = float(missing[:, i].mean() / points)
            report["times_without"][name] = [time_text(blocks.times[t]) for t in np.flatnonzero(missing[:, i] == points)[:100]]
            report["never_observed"][name] = _never_observed(blocks, i)
    return report


def _never_observed(blocks: Blocks, channel: int) -> int:
    frames = blocks.frames("state")
    never = np.ones(blocks.grid.shape, dtype=bool)
    for index in range(blocks.count):
        stop = min((index + 1) * blocks.chunk, len(blocks.times))
        never &= np.isnan(frames.read(index * blocks.chunk, stop, slice(channel, channel + 1))).all((0, 1))
    return int(never.sum())
