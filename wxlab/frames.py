"""Frames: the raw arrays of a store, written chunk by chunk and read through memory maps."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wxlab.errors import WxlabError
from wxlab.files import atomic_file


class Frames:
    """An uncompressed zarr array (time, channel, y, x) float32, read through memory maps of its chunk files."""

    ndim = 4
    dtype = np.dtype(np.float32)

    def __init__(self, folder: Path, shape: Sequence[int], chunk: int) -> None:
        self.folder, self.shape, self.chunk = folder, tuple(shape), chunk
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "shape": self.shape, "chunk": self.chunk, "_maps": OrderedDict()}

    def file(self, index: int) -> Path:
        return self.folder / "c" / str(index) / "0" / "0" / "0"

    def check(self) -> None:
        """Raise WxlabError when a chunk file is absent or has the wrong length."""
        expected = self.chunk * int(np.prod(self.shape[1:])) * 4
        for index in range(-(-self.shape[0] // self.chunk)):
            try:
                size = self.file(index).stat().st_size
            except OSError:
                size = -1
            if size != expected:
                found = "is missing" if size < 0 else f"holds {size} bytes instead of {expected}"
                raise WxlabError(f"the store is damaged: {self.file(index)} {found}; delete the store and prepare it again")

    def map(self, index: int) -> np.ndarray:
        """Memory map [chunk, C, H, W] of one chunk file; the last 256 stay open."""
        found = self._maps.get(index)
        if found is None:
            # seen as a plain array: slicing a memmap costs several microseconds
            found = np.memmap(self.file(index), dtype=np.float32, mode="r", shape=(self.chunk, *self.shape[1:])).view(np.ndarray)
            self._maps[index] = found
            if len(self._maps) > 256:
                self._maps.popitem(last=False)
        return found

    def read_into(self, out: np.ndarray, start: int, stride: int = 1) -> None:
        """Copy the frames start, start + stride, ... into ``out`` [n, C, H, W]."""
        done, count = 0, len(out)
        while done < count:
            index, offset = divmod(start + done * stride, self.chunk)
            n = min(count - done, (self.chunk - offset - 1) // stride + 1)
            out[done : done + n] = self.map(index)[offset : offset + (n - 1) * stride + 1 : stride]
            done += n

    def read(self, start: int, stop: int, channels: slice = slice(None)) -> np.ndarray:
        """Frames [stop - start, C, H, W] as an array of their own."""
        pieces = []
        while start < stop:
            index, offset = divmod(start, self.chunk)
            n = min(stop - start, self.chunk - offset)
            pieces.append(self.map(index)[offset : offset + n, channels])
            start += n
        return np.concatenate(pieces) if pieces else np.empty((0, *self.shape[1:]), np.float32)[:, channels]

    def digest(self, index: int) -> str:
        """SHA-256 of one chunk as it lies in the file."""
        return hashlib.sha256(self.map(index).tobytes()).hexdigest()

    def __getitem__(self, key: tuple[slice | int, ...]) -> np.ndarray:
        """Slices of ascending times, as dask asks for them; it puts a whole number where one time or channel is chosen."""
        single = tuple(axis for axis, part in enumerate(key) if not isinstance(part, slice))
        times, channels, y, x = (part if isinstance(part, slice) else slice(part, part + 1) for part in key)
        start, stop, stride = times.indices(self.shape[0])
        return self.read(start, stop, channels)[::stride, :, y, x].squeeze(single)

    def write(self, index: int, values: np.ndarray) -> None:
        """Write chunk ``index`` from [n <= chunk, C, H, W], padded with NaN; the file appears whole or not at all."""
        padded = np.full((self.chunk, *self.shape[1:]), np.nan, dtype="<f4")
        padded[: len(values)] = values
        with atomic_file(self.file(index)) as temporary:
            padded.tofile(temporary)
