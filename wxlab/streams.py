"""Random numbers of forecasts: one stream for each initial time, member and call, whatever the batching."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wxlab.forcings import seconds


class Streams:
    """Random numbers of a call of a model: one generator for each (initial time, member).

    The stream depends on (seed, initial time, member, call) alone, so that a forecast does not change with the batch it is made in.
    times: initial times, int64 seconds or datetime64 [B].  members: how many, or their numbers.  call: number of the call.
    """

    def __init__(self, seed: int, times: object, members: int | Sequence[int], call: int) -> None:
        starts = seconds(times.cpu().numpy() if isinstance(times, Tensor) else times).ravel()
        numbers = list(range(members)) if isinstance(members, int) else [int(number) for number in members]
        self._generators = [[_generator(int(seed), int(start), number, call) for number in numbers] for start in starts]
        self._numbers = [numbers for _ in starts]
        self.call = call

    def folded(self) -> Streams:
        """The same streams for a batch in which each (initial time, member) is an element of its own: [B M, 1, ...]."""
        flat = copy.copy(self)
        flat._generators = [[generator] for row in self._generators for generator in row]
        flat._numbers = [[number] for row in self._numbers for number in row]
        return flat

    def repeated(self) -> Streams:
        """Streams that begin at the member's number alone (``manual_seed(number)``): the same at every initial time and every call."""
        same = copy.copy(self)
        same._generators = [[torch.Generator().manual_seed(number) for number in row] for row in self._numbers]
        return same

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
