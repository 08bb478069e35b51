"""One roll-out for every model: initial states in physical units -> forecast in physical units.

    call the model -> append its frames -> keep the last ``history`` states -> refresh forcing -> again, trim to ``steps``
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from wxlab import forcings
from wxlab.channels import locate_channel, split_channel, stack, unstack
from wxlab.errors import WxlabError, unknown
from wxlab.forcings import seconds
from wxlab.grids import Grid, grid_of, order_on, turned
from wxlab.models.base import Batch, Model
from wxlab.pieces import LEAD, Piece, free_place, gather, write
from wxlab.preparation.blocks import read_values
from wxlab.splits import parse_time, regular_step, span_text, time_text
from wxlab.store import Normaliser, Store, open_store
from wxlab.streams import Streams

CHUNK_BYTES = 32 << 20  # of a chunk of a forecast, where one lead time is not more: what is in memory of each variable at once
States = xr.Dataset | Store | str | os.PathLike[str]


def forecast(
    model: Model,
    initial: States,
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
    in one call, which changes the speed and the memory, not the random numbers.  device: of the network, ``cpu``, ``cuda`` or
    ``auto``; None leaves it where it is.

    States on the model's points in another order, from the north or from -180 degrees on, are read as what they are; the forecast has
    the order of the states.
    Missing values of the initial states are treated as in training: refused, filled, or (policy ``mask``) read as 0 of the normalised
    values. Where a masked channel is missing in all states that were read, as sea surface temperature on land, nothing was learned:
    there the model goes on reading 0, and the forecast is missing.

    Returns a Dataset in physical units with dims time (initial), [number], prediction_timedelta (from one step on), [level], latitude,
    longitude (radar: y, x), read lazily from ``out`` when that is given.
    Raises WxlabError for an untrained model, missing channels, another grid, too few states, and members of a deterministic model.
    """
    request = Request(model, steps, members, seed, batch_size)
    states = _states(model, initial)
    starts = initial_times(model, states, steps=steps) if times is None else _asked(model, states, times, steps)
    target = None if out is None else free_place(out)
    if device is not None:
        model.to(_device(device))
    training = model.training
    model.eval()
    pieces = _pieces(request, states, starts)
    axes = {"time": starts, "number": np.arange(members), LEAD: _leads(model, 0, steps)}
    try:
        if target is None:
            return gather(pieces, axes)
        write(pieces, target, axes)
    finally:
        model.train(training)
    return xr.open_zarr(target, consolidated=False, decode_timedelta=True)


@dataclass(frozen=True)
class Request:
    """What was asked for, checked against the model."""

    model: Model
    steps: int
    members: int
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            raise WxlabError(f"model is a {type(self.model).__name__}; give a model, such as wxlab.load_checkpoint(run_dir) returns")
        for name, least in (("steps", 1), ("members", 1), ("batch_size", 1), ("seed", None)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or (least is not None and value < least):
                raise WxlabError(f"{name}={value!r} must be a whole number" + ("" if least is None else f" of at least {least}"))
        if self.model.normaliser is None:
            raise WxlabError("the model has no normaliser, so it knows no units; train it, load a checkpoint, or set model.normaliser")
        if self.members > 1 and self.model.spec.stochastic == "none":
            raise WxlabError(f"{_who(self.model)} is deterministic, so {self.members} members would be copies; ask for members=1")

    @property
    def normaliser(self) -> Normaliser:
        assert self.model.normaliser is not None
        return self.model.normaliser


def _who(model: Model) -> str:
    return model.name or "the model"


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu") and not str(name).startswith("cuda"):
        raise unknown("device", name, ("auto", "cpu", "cuda"))
    if str(name).startswith("cuda") and not torch.cuda.is_available():
        raise WxlabError(f"device={name!r} was asked for, and torch finds no GPU; give device='auto' or 'cpu'")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def initial_times(model: Model, initial: States, *, steps: int = 1, last: int = 0) -> np.ndarray:
    """Times (datetime64) of ``initial`` from which the model can start: its history is there, in the same segment.

    steps: output frames that will be asked for.  last: also so many of them are there, so that every lead time can be verified.
    Raises WxlabError when there is none, saying how many states were given and how many are needed.
    """
    states = _in_order(initial)
    times = seconds(states["time"].values)
    labels = states["segment"].values if "segment" in states.coords else np.zeros(len(times), dtype=int)
    after = np.arange(1, last + 1) * model.spec.step
    needed = np.concatenate([past_offsets(model, max(steps, last)), after])[None, :] + times[:, None]
    position = np.clip(np.searchsorted(times, needed), 0, max(len(times) - 1, 0))
    usable = ((times[position] == needed) & (labels[position] == labels[:, None])).all(1) if len(times) else np.zeros(0, dtype=bool)
    if not usable.any():
        raise _too_few(model, times, last)
    return np.asarray(states["time"].values[usable])


def _too_few(model: Model, times: np.ndarray, last: int) -> WxlabError:
    spec = model.spec
    verified = f" and {last} every {span_text(spec.step)} after it" if last else ""
    spacing = f" every {span_text(regular_step(times))}" if len(times) > 1 else ""
    return WxlabError(
        f"{_who(model)} needs {spec.history} state(s) every {span_text(spec.history_step)} up to the initial time{verified}, without "
        f"a gap, and among the {len(times)} given{spacing} there is no such run; give more states, or states at that spacing"
    )


def _asked(model: Model, states: xr.Dataset, times: object, steps: int) -> np.ndarray:
    """The initial times asked for, each once, ascending."""
    possible = initial_times(model, states, steps=steps)
    given = np.atleast_1d(np.asarray(times))
    wanted = np.array([parse_time(str(value)) for value in given.ravel()]) if given.dtype.kind in "UO" else seconds(given).ravel()
    absent = wanted[~np.isin(wanted, seconds(possible))]
    if len(absent) or not len(wanted):
        name = time_text(absent[0]) if len(absent) else "an empty list"
        raise WxlabError(
            f"{name} is no possible initial time; {len(possible)} are, from {time_text(seconds(possible[:1])[0])} "
            f"to {time_text(seconds(possible[-1:])[0])}, where the whole history is there"
        )
    return np.unique(wanted).astype("datetime64[s]").astype("datetime64[ns]")


def _in_order(initial: States) -> xr.Dataset:
    """States as a Dataset with ascending times."""
    if not isinstance(initial, (xr.Dataset, Store, str, os.PathLike)):
        raise WxlabError(f"the initial states are a {type(initial).__name__}; give a Dataset with time, a store or the path of a store")
    states = initial if isinstance(initial, xr.Dataset) else open_store(initial).dataset()
    if "time" not in states.dims or not np.issubdtype(states["time"].dtype, np.datetime64):
        found = ", ".join(map(str, states.sizes))
        raise WxlabError(f"the initial states have the dimensions {found}; give states over 'time', which holds dates")
    if not states.indexes["time"].is_unique:
        raise WxlabError("the initial states have some times more than once; drop the repeated ones first")
    return states if states.indexes["time"].is_monotonic_increasing else states.sortby("time")


def _states(model: Model, initial: States) -> xr.Dataset:
    """The initial states as a Dataset that has the channels, static fields and grid of the model."""
    states = _in_order(initial)
    given, needed = grid_of(states), model.spec.grid
    if order_on(given, needed) is None:
        text = [f"{grid.shape[0]}x{grid.shape[1]} from {grid.y[0]:g}, {grid.x[0]:g}" for grid in (given, needed)]
        raise WxlabError(f"the initial states lie on another grid ({text[0]}) than the model ({text[1]}); regrid or crop them first")
    for kind, names, leading in (("channels", model.spec.channels, {"time"}), ("static fields", model.spec.static, set())):
        for name in names:
            try:
                variable, _ = locate_channel(states, name)
            except WxlabError as error:
                raise WxlabError(f"the initial states lack one of the {kind} that {_who(model)} reads: {error}") from None
            found = [str(dim) for dim in states[variable].dims]
            if set(found) - {"level", *needed.dims} != leading:
                wanted = ", ".join([*leading, *needed.dims])
                raise WxlabError(
                    f"{variable!r} of the initial states has the dimensions {', '.join(found)}, and {kind} have {wanted}; "
                    "select or average the others first"
                )
    return states


def _leads(model: Model, first: int, stop: int) -> np.ndarray:
    """Lead times of the frames ``first``, ..., ``stop`` - 1."""
    return (np.arange(first + 1, stop + 1) * model.spec.step).astype("timedelta64[s]").astype("timedelta64[ns]")


def _pieces(request: Request, states: xr.Dataset, starts: np.ndarray) -> Iterator[Piece]:
    """Forecasts of a few initial times, members and lead times each, so that no more is ever in memory."""
    spec, normaliser = request.model.spec, request.normaliser
    given, static = grid_of(states), None
    if spec.static:
        fields = np.array(turned(stack(states, spec.static).values, given, spec.grid), np.float32)
        static = torch.from_numpy(normaliser.normalise(fields, spec.static))
    size, share = max(1, request.batch_size // request.members), min(request.batch_size, request.members)
    levels = max(1, len({level for _, level in map(split_channel, spec.channels) if level is not None}))
    length = max(1, CHUNK_BYTES // (4 * min(size, len(starts)) * share * levels * spec.grid.shape[0] * spec.grid.shape[1]))
    for first in range(0, len(starts), size):
        here = starts[first : first + size]
        past, observed = _past(request, states, here)
        unseen = _never(observed)
        for m in range(0, request.members, share):
            numbers = range(m, min(m + share, request.members))
            rolled = roll(request.model, past, seconds(here), request.steps, numbers, request.seed, static, observed)
            for lead in range(0, request.steps, length):
                frames = torch.stack(list(islice(rolled, length)), dim=2).cpu()
                stop = lead + frames.shape[2]
                valid = seconds(here)[:, None, None] + np.arange(lead + 1, stop + 1) * spec.step
                values = normaliser.denormalise(frames, spec.channels, valid)
                if unseen is not None:
                    values.masked_fill_(unseen[:, None, None], torch.nan)
                axes: dict[str, Any] = {"time": here, "number": list(numbers), LEAD: _leads(request.model, lead, stop)}
                place = {dim: slice(i, i + len(axes[dim])) for dim, i in (("time", first), ("number", m), (LEAD, lead))}
                made = turned(values.numpy(), spec.grid, given)
                yield place, _described(_as_dataset(request, made, axes, given), states, request)


def _past(request: Request, states: xr.Dataset, starts: np.ndarray) -> tuple[dict[int, Tensor], dict[int, Tensor] | None]:
    """Normalised states [B, C, H, W] by seconds from the initial time, and where each was observed (None: everywhere)."""
    spec, normaliser = request.model.spec, request.normaliser
    offsets = past_offsets(request.model, request.steps)
    wanted = seconds(starts)[:, None] + offsets
    unique, inverse = np.unique(wanted, return_inverse=True)
    chosen = states.isel(time=np.searchsorted(seconds(states["time"].values), unique))
    read = np.asarray(read_values(stack(chosen, spec.channels)), np.float32)
    values = torch.from_numpy(turned(read[inverse.reshape(wanted.shape)], grid_of(states), spec.grid))
    mask = normaliser.mask(values, spec.channels)
    past = dict(zip(offsets.tolist(), normaliser.normalise(values, spec.channels, wanted).unbind(1), strict=True))
    return past, None if mask is None or mask.all() else dict(zip(past, mask.unbind(1), strict=True))


def _never(observed: dict[int, Tensor] | None) -> Tensor | None:
    """Points that no state of the past has: bool [B, C, H, W], or None where there is none."""
    unseen = None if observed is None else ~torch.stack(list(observed.values())).any(0)
    return unseen if unseen is not None and unseen.any() else None


def past_offsets(model: Model, steps: int) -> np.ndarray:
    """Seconds before the initial time (0 and negative, ascending) of the states that a forecast of so many frames reads."""
    spec = model.spec
    calls = -(-steps // spec.horizon)
    if calls > 1 and spec.history_step % spec.step:
        raise WxlabError(
            f"{_who(model)} reads states every {span_text(spec.history_step)} and writes them every {span_text(spec.step)}, "
            f"so it cannot read its own output; ask for at most {spec.horizon} steps"
        )
    bases = np.arange(calls)[:, None] * spec.horizon * spec.step
    needed = bases - np.arange(spec.history) * spec.history_step
    return np.unique(needed[needed <= 0])


@torch.no_grad()
def roll(
    model: Model,
    past: dict[int, Tensor],
    starts: np.ndarray,
    steps: int,
    members: int | Sequence[int] = 1,
    seed: int = 0,
    static: Tensor | None = None,
    observed: dict[int, Tensor] | None = None,
) -> Iterator[Tensor]:
    """The roll-out itself, on normalised tensors: yields the frames [B, M, C, H, W] one after the other.

    past: seconds from the initial time (0 and negative) -> state [B, C, H, W].  starts: initial times, int64 seconds [B].
    members: how many, or their numbers.  observed: as ``past``, bool; points that no past state has stay as they are, as in the states
    that training showed, and the model is told of all that are missing.
    The first call makes all members from one history; then each (initial time, member) goes its own way.
    """
    spec, stepper = model.spec, model.stepper
    numbers = range(members) if isinstance(members, int) else members
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    static = static.to(device) if static is not None else None
    entry = Streams(seed, starts, numbers, -1)
    known = {offset: model.enter(state.to(device), static, entry) for offset, state in past.items()}  # [B, 1 or M, ...]
    static = static if stepper.spec.static else None
    unseen = _never(observed) if stepper is model else None
    hidden = unseen.to(device)[:, None, None] if unseen is not None else None
    missing = past[max(past)].to(device)[:, None, None] if hidden is not None else None  # what stands for a missing value
    for call, base in enumerate(range(0, steps * spec.step, spec.horizon * spec.step)):
        reads = [base - k * spec.history_step for k in reversed(range(spec.history))]
        writes = [base + k * spec.step for k in range(1, spec.horizon + 1)]
        together = max(known[offset].shape[1] for offset in reads)  # 1: all members have read the same so far
        history = torch.stack([known[offset].expand(-1, together, -1, -1, -1) for offset in reads], dim=2)  # [B, 1 or M, Ti, ...]
        origin = np.repeat(starts, together)
        time = torch.from_numpy(origin[:, None] + np.array(reads + writes))
        seen = _seen(observed, [*reads, *writes], together, device) if stepper is model else None
        batch = Batch(history.flatten(0, 1), None, time.to(device), _forcing(stepper, time, device), static, seen)
        streams = Streams(seed, starts, numbers, call)
        if together == 1:
            block = stepper.predict(batch, len(numbers), streams)  # [B, M, To, ...]
        else:
            block = stepper.predict(batch, 1, streams.folded())[:, 0].unflatten(0, (-1, len(numbers)))
        if hidden is not None and missing is not None:
            block = torch.where(hidden, missing, block)
        known.update({offset: block[:, :, k] for k, offset in enumerate(writes)})
        yield from (model.leave(known[offset]) for offset in writes[: steps - call * spec.horizon])
        known = {offset: state for offset, state in known.items() if offset > writes[-1] - spec.history * spec.history_step}


def _seen(observed: dict[int, Tensor] | None, offsets: list[int], together: int, device: torch.device) -> Tensor | None:
    """The mask of a batch, bool [B together, Ti+To, C, H, W]: frames that the model writes have all that the past has anywhere."""
    if observed is None:
        return None
    unseen = _never(observed)
    written = torch.ones_like(observed[0]) if unseen is None else ~unseen
    frames = torch.stack([observed.get(offset, written) for offset in offsets], dim=1).to(device)
    return frames.repeat_interleave(together, dim=0)


def _forcing(model: Model, time: Tensor, device: torch.device) -> Tensor | None:
    """Normalised forcing [B, Ti+To, F, H, W] of the times of a batch; members share theirs."""
    names = model.spec.forcing
    if not names:
        return None
    assert model.normaliser is not None
    unique, inverse = torch.unique(time, return_inverse=True)
    values = model.normaliser.normalise(torch.from_numpy(forcings.compute(names, unique.numpy(), model.spec.grid)), names)
    return values[inverse].to(device)


def _as_dataset(request: Request, values: np.ndarray, places: dict[str, Any], grid: Grid) -> xr.Dataset:
    """Frames [B, M, leads, C, H, W] in physical units as a forecast Dataset; ``places``: coordinates of the first three."""
    y, x = grid.dims
    coords = {**places, "channel": list(request.model.spec.channels), y: list(grid.y), x: list(grid.x)}
    array = xr.DataArray(values, dims=tuple(coords), coords=coords)
    return unstack(array if request.members > 1 else array.isel(number=0, drop=True))


def _described(result: xr.Dataset, states: xr.Dataset, request: Request) -> xr.Dataset:
    """The forecast with names and units of the states, and where it comes from."""
    for name, field in result.data_vars.items():
        known = states[name].attrs if name in states else {}
        field.attrs.update({key: known[key] for key in ("units", "standard_name", "long_name") if key in known})
    model = request.model
    result.attrs = {"model": model.name, "licence": model.licence, "seed": int(request.seed), "step_hours": model.spec.step / 3600}
    return result
