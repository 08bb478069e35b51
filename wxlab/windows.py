"""Windows: from a prepared store to batches of normalised tensors, the only way that training data take."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.frames import Frames
from wxlab.models.base import Batch
from wxlab.store import Store, open_store

_FULL_SHUFFLE = 8 << 30  # bytes of states up to which windows are shuffled one by one
_POOL = 16  # blocks that are shuffled together


class Windows:
    """Windows of a split in a fixed or a shuffled order, as batches.

    store: a Store or its path.  split: name.  history, horizon: frames read and frames to predict.  step, history_step, stride:
    hours between target frames, between history frames, and between the starts of windows; multiples of the store's step, which is
    the default.  batch_size: windows of a batch over all processes; process ``rank`` of ``world`` gets its contiguous share.
    shuffle: a new order each epoch, from (seed, epoch) alone; windows that are neighbours in time stay together in blocks of
    ``block`` (default: 1 up to 8 GiB of states, 64 beyond), and blocks are mixed 16 at a time.  drop_last: leave out a last batch that
    is not full; with several processes one smaller than ``world`` is left out always.  prefetch: batches read ahead by a thread.
    pin: page-locked memory, when there is a GPU.

    No window crosses the end of a split or of a segment.  Raises WxlabError when none fits.
    """

    def __init__(
        self, store: Store | str, split: str, *, history: int, horizon: int, step: float | None = None, history_step: float | None = None,
        stride: float | None = None, batch_size: int = 1, shuffle: bool = False, seed: int = 0, block: int | None = None, rank: int = 0,
        world: int = 1, drop_last: bool = False, prefetch: int = 2, pin: bool = False,
    ) -> None:
        self.store, self.split = open_store(store), split
        self.history, self.horizon = _whole("history", history), _whole("horizon", horizon, least=0)
        self.batch_size, self.world, self.rank = _whole("batch_size", batch_size), _whole("world", world), rank
        if batch_size % world or not 0 <= rank < world:
            raise WxlabError(f"batch_size {batch_size} must divide by the {world} processes, and rank {rank} lie in 0..{world - 1}")
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.prefetch, self.pin = prefetch, pin and torch.cuda.is_available()
        self._step, self._history_step = self._frames("step", step), self._frames("history_step", history_step or step)
        self.stride = self._frames("stride", stride)
        size = len(self.store) * int(np.prod(self.store.frames.shape[1:])) * 4
        self.block = _whole("block", block) if block is not None else 1 if size <= _FULL_SHUFFLE else 64
        self.before = (self.history - 1) * self._history_step
        past, future = np.arange(self.history) * self._history_step - self.before, np.arange(1, self.horizon + 1) * self._step
        self.offsets = np.concatenate([past, future])
        self.bases = self._find()
        missing, policies = self.store.missing, self.store.normaliser.nan
        self._masked = [i for i, name in enumerate(self.store.channels) if name in missing and policies.get(name) == "mask"]
        self._static = self._normalised_static()

    def _frames(self, name: str, hours: float | None) -> int:
        """A number of hours as a number of the store's frames."""
        if hours is None or not self.store.step:
            return 1
        count = hours * 3600 / self.store.step
        if count < 1 or abs(count - round(count)) > 1e-6:
            raise WxlabError(f"{name} of {hours:g} h is no multiple of the store's step of {self.store.step / 3600:g} h; give one that is")
        return round(count)

    def _find(self) -> np.ndarray:
        """Position of the last history frame of each window."""
        after = self.horizon * self._step
        ranges = self.store.split_ranges(self.split)
        found = [np.arange(start + self.before, stop - after, self.stride) for start, stop in ranges]
        bases = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        if not len(bases):
            longest = max((stop - start for start, stop in ranges), default=0)
            needed = self.before + after + 1
            hours = self.store.step / 3600
            raise WxlabError(
                f"no window of {needed} states ({(needed - 1) * hours:g} h) fits into split {self.split!r} of {self.store.path.name}: "
                f"its longest run without a gap has {longest} states ({max(longest - 1, 0) * hours:g} h); "
                "take fewer frames, a shorter step or another split"
            )
        return bases

    @property
    def samples(self) -> int:
        """Number of windows."""
        return len(self.bases)

    def __len__(self) -> int:
        """Batches of an epoch."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + (0 if self.drop_last or rest < (self.world if self.world > 1 else 1) else 1)

    def order(self, epoch: int) -> np.ndarray:
        """Numbers of the windows in the order of an epoch: a function of (seed, epoch) alone."""
        count = self.samples
        if not self.shuffle:
            return np.arange(count)
        random = np.random.default_rng([self.seed, epoch])
        if self.block == 1:
            return random.permutation(count)
        blocks = random.permutation(-(-count // self.block))
        pools = []
        for first in range(0, len(blocks), _POOL):
            members = [np.arange(b * self.block, min((b + 1) * self.block, count)) for b in blocks[first : first + _POOL]]
            pools.append(random.permutation(np.concatenate(members)))
        return np.concatenate(pools)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch ``start`` on; the same whatever came before."""
        order = self.order(epoch)
        shares = [self._share(order[i * self.batch_size : (i + 1) * self.batch_size]) for i in range(start, len(self))]
        if self.prefetch < 1:
            return (self.batch(share) for share in shares)
        return self._ahead(shares)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def _share(self, windows: np.ndarray) -> np.ndarray:
        edges = [round(len(windows) * r / self.world) for r in (self.rank, self.rank + 1)]
        return windows[edges[0] : edges[1]]

    def _ahead(self, shares: list[np.ndarray]) -> Iterator[Batch]:
        """Batches read by a thread, at most ``prefetch`` ahead; the thread ends with the iterator."""
        ready: queue.Queue[Any] = queue.Queue(self.prefetch)
        stop = threading.Event()

        def put(item: Any) -> None:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return

        def work() -> None:
            try:
                for share in shares:
                    if stop.is_set():
                        return
                    put(self.batch(share))
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def batch(self, windows: np.ndarray) -> Batch:
        """Some windows by number, normalised."""
        bases = self.bases[windows]
        raw = self.raw(windows)
        names = self.store.channels
        mask = None
        if self._masked:
            mask = torch.cat([_observed(values, self._masked) for values in raw], dim=1)
        time = torch.from_numpy(self.store.times[bases[:, None] + self.offsets])
        stamps = time.split((self.history, self.horizon), dim=1)
        history, target = (self.store.normaliser.normalise_(x, names, when) for x, when in zip(raw, stamps, strict=True))
        forcing = None
        if self.store.forcing_frames is not None:
            forcing = self._gather(self.store.forcing_frames, bases, self.offsets)
            self.store.normaliser.normalise_(forcing, self.store.forcing)
        batch = Batch(history, target if self.horizon else None, time, forcing, self._static, mask)
        return batch.pin_memory() if self.pin else batch

    def raw(self, windows: np.ndarray) -> tuple[Tensor, Tensor]:
        """History [B,Ti,C,H,W] and target [B,To,C,H,W] of some windows in physical units, missing values as NaN."""
        bases = self.bases[windows]
        frames = self.store.frames
        return self._gather(frames, bases, self.offsets[: self.history]), self._gather(frames, bases, self.offsets[self.history :])

    def _gather(self, frames: Frames, bases: np.ndarray, offsets: np.ndarray) -> Tensor:
        out = torch.empty((len(bases), len(offsets), *frames.shape[1:]))
        if not len(offsets):
            return out
        places = out.numpy()
        strides = np.unique(np.diff(offsets))
        for i, base in enumerate(bases.tolist()):
            if len(strides) <= 1:
                frames.read_into(places[i], base + int(offsets[0]), int(strides[0]) if len(strides) else 1)
            else:
                for j, offset in enumerate(offsets.tolist()):
                    frames.read_into(places[i, j : j + 1], base + offset)
        return out

    def _normalised_static(self) -> Tensor | None:
        if not self.store.static:
            return None
        return self.store.normaliser.normalise(torch.from_numpy(self.store.static_fields.copy()), self.store.static)


def _observed(values: Tensor, channels: list[int]) -> Tensor:
    observed = torch.ones(values.shape, dtype=torch.bool)
    for i in channels:
        observed[:, :, i] = torch.isfinite(values[:, :, i])
    return observed


def _whole(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise WxlabError(f"{name} is {value!r}; give a whole number of at least {least}")
    return int(value)
