"""One roll-out for every model: initial states in physical units -> forecast in physical units.

    call the model -> append its frames -> keep the last ``history`` states -> refresh forcing -> again, trim to ``steps``
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from wxlab import forcings
from wxlab.channels import stack, unstack
from wxlab.errors import WxlabError
from wxlab.files import atomic_dir
from wxlab.forcings import seconds
from wxlab.grids import grid_of
from wxlab.models.base import Batch, Model
from wxlab.splits import time_text
from wxlab.store import Store, open_store


class Streams:
    """Random numbers of a call of a model: one generator for each (initial time, member).

    The stream depends on (seed, initial time, member, call) alone, so that a forecast does not change with the batch it is made in.
    """

    def __init__(self, seed: int, times: object, members: int, call: int) -> None:
        starts = seconds(times.cpu().numpy() if isinstance(times, Tensor) else times).ravel()
        self._generators = [[_generator(seed, int(start), number, call) for number in range(members)] for start in starts]

    def folded(self) -> Streams:
        """The same streams for a batch in which each (initial time, member) is an element of its own: [B M, 1, ...]."""
        flat = copy.copy(self)
        flat._generators = [[generator] for row in self._generators for generator in row]
        return flat

    def _draw(self, function: Any, shape: Sequence[int], dtype: torch.dtype, device: Any) -> Tensor:
        rows = [torch.stack([function(*shape, generator=g, dtype=dtype) for g in row]) for row in self._generators]
        return torch.stack(rows).to(device)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers [B, M, *shape]."""
        return self._draw(torch.randn, shape, dtype, device)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1): [B, M, *shape]."""
        return self._draw(torch.rand, shape, dtype, device)


def _generator(*place: int) -> torch.Generator:
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def forecast(
    model: Model,
    initial: xr.Dataset | Store | str | os.PathLike[str],
    *,
    steps: int,
    members: int = 1,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    times: object = None,
    batch_size: int = 8,
    device: str | None = None,
) -> xr.Dataset:
    """Roll a trained model out to any length.

    initial: states in physical units with ``time`` (and ``segment``, when there are gaps), or a store; it holds at least
    ``history`` states.  steps: output frames, whatever the model writes at a call.  members: of an ensemble; more than one needs a
    stochastic model.  seed: of the ensemble.  times: initial times; None: each time of ``initial`` that has its whole history.
    out: a zarr folder that is filled initial time by initial time and renamed when complete.  batch_size: initial times x members
    in one call.  device: of the network; None leaves it where it is.

    Returns a Dataset in physical units with dims time (initial), [number], prediction_timedelta (from one step on), [level], latitude,
    longitude (radar: y, x), read lazily from ``out`` when that is given.
    Raises WxlabError for an untrained model, missing channels, another grid, too few states, and members of a deterministic model.
    """
    states = _states(model, initial, steps, members)
    starts = initial_times(model, states, steps=steps) if times is None else _asked(model, states, times, steps)
    if device is not None:
        model.to(device)
    training = model.training
    model.eval()
    blocks = _blocks(model, states, starts, steps, members, seed, max(1, batch_size // members))
    try:
        if out is None:
            return _described(xr.concat(list(blocks), dim="time"), model, seed)
        with atomic_dir(Path(out)) as folder:
            for i, block in enumerate(blocks):
                described = _described(block, model, seed)
                how: dict[str, Any] = {"mode": "w"} if i == 0 else {"mode": "a", "append_dim": "time"}
                encoding = {"time": {"units": "seconds since 1970-01-01", "dtype": "int64"}} if i == 0 else None
                described.to_zarr(folder, encoding=encoding, consolidated=False, zarr_format=3, **how)
        return xr.open_zarr(Path(out), consolidated=False)
    finally:
        model.train(training)


def initial_times(model: Model, initial: xr.Dataset, *, steps: int = 1, last: int = 0) -> np.ndarray:
    """Times (datetime64) of ``initial`` from which the model can start: its history is there, in the same segment.

    steps: output frames that will be asked for.  last: also so many of them are there, so that every lead time can be verified.
    """
    times = seconds(initial["time"].values)
    spec = model.spec
    labels = initial["segment"].values if "segment" in initial.coords else np.zeros(len(times), dtype=int)
    past = past_offsets(model, steps)
    needed = np.concatenate([past, np.arange(1, last + 1) * spec.step])[None, :] + times[:, None]
    position = np.clip(np.searchsorted(times, needed), 0, len(times) - 1)
    usable = ((times[position] == needed) & (labels[position] == labels[:, None])).all(1)
    if not usable.any():
        raise WxlabError(
            f"none of the {len(times)} states has around it what {model.name or 'the model'} needs ({spec.history} states every "
            f"{spec.history_step / 3600:g} h up to it, {last} to verify after it); give more states, or data without gaps"
        )
    return np.asarray(initial["time"].values[usable])


def _asked(model: Model, states: xr.Dataset, times: object, steps: int) -> np.ndarray:
    possible = initial_times(model, states, steps=steps)
    wanted = np.atleast_1d(np.asarray(times)).astype("datetime64[ns]")
    absent = wanted[~np.isin(wanted, possible)]
    if len(absent) or not len(wanted):
        name = time_text(seconds(absent[:1])[0]) if len(absent) else "an empty list"
        raise WxlabError(
            f"{name} is no possible initial time; {len(possible)} are, from {time_text(seconds(possible[:1])[0])} "
            f"to {time_text(seconds(possible[-1:])[0])}, where the whole history is there"
        )
    return wanted


def _states(model: Model, initial: xr.Dataset | Store | str | os.PathLike[str], steps: int, members: int) -> xr.Dataset:
    """The initial states as a Dataset, everything about the request checked."""
    for name, value in (("steps", steps), ("members", members)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise WxlabError(f"{name}={value!r} must be a whole number of at least 1")
    if model.normaliser is None:
        raise WxlabError("the model has no normaliser, so it knows no units; train it, load a checkpoint, or set model.normaliser")
    if members > 1 and model.spec.stochastic == "none":
        raise WxlabError(f"{model.name or 'the model'} is deterministic, so {members} members would be copies; ask for members=1")
    states = initial if isinstance(initial, xr.Dataset) else open_store(initial).dataset()
    if "time" not in states.dims:
        raise WxlabError(f"the initial states have the dims {list(states.dims)} and no 'time'; give {model.spec.history} states or more")
    given, needed = grid_of(states), model.spec.grid
    if given.shape != needed.shape or not np.allclose([*given.y, *given.x], [*needed.y, *needed.x], atol=1e-3):
        text = [f"{grid.shape[0]}x{grid.shape[1]} from {grid.y[0]:g}, {grid.x[0]:g}" for grid in (given, needed)]
        raise WxlabError(f"the initial states lie on another grid ({text[0]}) than the model ({text[1]}); regrid or crop them first")
    return states


def _blocks(model: Model, states: xr.Dataset, starts: np.ndarray, steps: int, members: int, seed: int, size: int) -> Iterator[xr.Dataset]:
    """Forecasts of a few initial times each."""
    fields, normaliser = stack(states, model.spec.channels), model.normaliser
    assert normaliser is not None
    static = None
    if model.spec.static:
        static = torch.from_numpy(normaliser.normalise(np.array(stack(states, model.spec.static).values, np.float32), model.spec.static))
    offsets = past_offsets(model, steps)
    for first in range(0, len(starts), size):
        here = starts[first : first + size]
        wanted = here[:, None] + offsets.astype("timedelta64[s]")
        values = torch.from_numpy(np.array(fields.sel(time=wanted.ravel()).values, np.float32)).unflatten(0, wanted.shape)
        past = dict(zip(offsets.tolist(), normaliser.normalise(values, model.spec.channels, wanted).unbind(1), strict=True))
        frames = torch.stack(list(roll(model, past, seconds(here), steps, members, seed, static)), dim=2)
        valid = seconds(here)[:, None, None] + np.arange(1, steps + 1) * model.spec.step
        yield _as_dataset(model, normaliser.denormalise(frames.cpu(), model.spec.channels, valid).numpy(), here, members)


def past_offsets(model: Model, steps: int) -> np.ndarray:
    """Seconds before the initial time (0 and negative, ascending) of the states that a forecast of so many frames reads."""
    spec = model.spec
    calls = -(-steps // spec.horizon)
    if calls > 1 and spec.history_step % spec.step:
        raise WxlabError(
            f"{model.name or 'the model'} reads states every {spec.history_step / 3600:g} h and writes them every {spec.step / 3600:g} h, "
            f"so it cannot read its own output; ask for at most {spec.horizon} steps"
        )
    bases = np.arange(calls)[:, None] * spec.horizon * spec.step
    needed = bases - np.arange(spec.history) * spec.history_step
    return np.unique(needed[needed <= 0])


@torch.no_grad()
def roll(
    model: Model, past: dict[int, Tensor], starts: np.ndarray, steps: int, members: int = 1, seed: int = 0, static: Tensor | None = None
) -> Iterator[Tensor]:
    """The roll-out itself, on normalised tensors: yields the frames [B, M, C, H, W] one after the other.

    past: seconds from the initial time (0 and negative) -> state [B, C, H, W].  starts: initial times, int64 seconds [B].
    The first call makes all members from one history; then each (initial time, member) goes its own way.
    """
    spec = model.spec
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    known = {offset: state.to(device).unsqueeze(1) for offset, state in past.items()}  # [B, 1 or M, C, H, W]
    static = static.to(device) if static is not None else None
    for call, base in enumerate(range(0, steps * spec.step, spec.horizon * spec.step)):
        reads = [base - k * spec.history_step for k in reversed(range(spec.history))]
        writes = [base + k * spec.step for k in range(1, spec.horizon + 1)]
        together = max(known[offset].shape[1] for offset in reads)  # 1: all members have read the same so far
        history = torch.stack([known[offset].expand(-1, together, -1, -1, -1) for offset in reads], dim=2)  # [B, 1 or M, Ti, C, H, W]
        origin = np.repeat(starts, together)
        time = torch.from_numpy(origin[:, None] + np.array(reads + writes))
        batch = Batch(history.flatten(0, 1), None, time.to(device), _forcing(model, time, device), static)
        streams = Streams(seed, starts, members, call)
        if together == 1:
            block = model.predict(batch, members, streams)  # [B, M, To, C, H, W]
        else:
            block = model.predict(batch, 1, streams.folded())[:, 0].unflatten(0, (-1, members))
        known.update({offset: block[:, :, k] for k, offset in enumerate(writes)})
        yield from (known[offset] for offset in writes[: steps - call * spec.horizon])
        known = {offset: state for offset, state in known.items() if offset > writes[-1] - spec.history * spec.history_step}


def _forcing(model: Model, time: Tensor, device: torch.device) -> Tensor | None:
    """Normalised forcing [B, Ti+To, F, H, W] of the times of a batch."""
    names = model.spec.forcing
    if not names:
        return None
    assert model.normaliser is not None
    values = torch.from_numpy(forcings.compute(names, time.numpy().ravel(), model.spec.grid)).unflatten(0, tuple(time.shape))
    return model.normaliser.normalise(values, names).to(device)


def _as_dataset(model: Model, values: np.ndarray, starts: np.ndarray, members: int) -> xr.Dataset:
    """Frames [B, M, steps, C, H, W] in physical units as a forecast Dataset."""
    spec = model.spec
    y, x = spec.grid.dims
    leads = (np.arange(1, values.shape[2] + 1) * spec.step).astype("timedelta64[s]").astype("timedelta64[ns]")
    dims = ("time", "number", "prediction_timedelta", "channel", y, x)
    places = (starts, np.arange(members), leads, list(spec.channels), list(spec.grid.y), list(spec.grid.x))
    array = xr.DataArray(values, dims=dims, coords=dict(zip(dims, places, strict=True)))
    return unstack(array if members > 1 else array.isel(number=0, drop=True))


def _described(forecast_: xr.Dataset, model: Model, seed: int) -> xr.Dataset:
    forecast_.attrs.update({"model": model.name, "licence": model.licence, "seed": seed, "step_hours": model.spec.step / 3600})
    return forecast_
