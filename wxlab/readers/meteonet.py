"""MeteoNet: radar reflectivity over north-west France as one HDF5 file of sequences, the layout of DiffCast's pre-processing.

    meteo.h5: scalars ``train_len`` and ``test_len``, groups ``train`` and ``test`` with datasets "0", "1", ... [25, y, x], uint8 dBZ 0..70
The file keeps no times: sequence i is put on day i from 1 January 2016, which is nothing but an order.  Validation is the last tenth of
the training sequences (the authors validate on the test sequences).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wxlab.readers.frames import FrameArray, UnreadableFrame, assemble, attempt, only_variable, root_of
from wxlab.readers.remote import brief
from wxlab.readers.source import Request

STEP, HIGHEST = 300, 70
PIXEL = 1000.0  # m, about: the grid has 0.01 degrees


def open_whole(request: Request) -> xr.Dataset:
    """All sequences one after the other, training first, each a segment, with ``split`` unless the entry has its own."""
    path = root_of(request)
    path = path / "meteo.h5" if path.is_dir() else path
    if not path.is_file():
        raise request.error(f"there is no file {path}; give meteo.h5 or the folder that holds it as uri")
    name = only_variable(request)
    counts, shape = _contents(request, path)
    total, length = sum(counts.values()), shape[0]
    segment = np.repeat(np.arange(total), length)
    seconds = segment * 86400 + np.tile(np.arange(length) * STEP, total)
    times = np.datetime64("2016-01-01", "ns") + seconds.astype("timedelta64[s]")
    coordinates: dict[str, Any] = {"time": times, "event_time": times, "segment": segment}
    if request.entry.splits is None:
        held = counts["train"] // 10
        parts = {"train": counts["train"] - held, "validation": held, "test": counts["test"]}
        coordinates["split"] = np.repeat(np.array(list(parts), dtype=object), [count * length for count in parts.values()])
    array = FrameArray(request, times, shape[1:], length, Sequences(path, counts["train"]).read)
    dataset = assemble(request, array, coordinates, PIXEL, chunk=length, north_first=True)
    dataset[name].attrs["normalisation"] = '{"kind": "minmax", "low": 0, "high": 70}'
    return dataset


def _contents(request: Request, path: Path) -> tuple[dict[str, int], tuple[int, int, int]]:
    """Sequences of each group, and the shape of one."""
    try:
        with h5py.File(path, "r") as file:
            counts = {group: int(file[f"{group}_len"][()]) for group in ("train", "test")}
            frames, rows, columns = file["train/0" if counts["train"] else "test/0"].shape
    except Exception as error:
        layout = "train_len, test_len and groups train and test of sequences '0', '1', ... [25, y, x]"
        raise request.error(f"{path} cannot be read ({brief(error)}); it must hold {layout}") from None
    return counts, (int(frames), int(rows), int(columns))


@dataclass(frozen=True)
class Sequences:
    """Sequences by number, those of the test group after those of training."""

    path: Path
    training: int

    def read(self, event: int, first: int, last: int) -> NDArray[Any]:
        """Frames [n, y, x] of one sequence."""
        name = f"train/{event}" if event < self.training else f"test/{event - self.training}"

        def frames() -> NDArray[Any]:
            with h5py.File(self.path, "r") as file:
                if name not in file:
                    raise UnreadableFrame(f"{self.path} has no sequence {name!r}")
                values = np.asarray(file[name][first:last])
            if len(values) != last - first:
                raise UnreadableFrame(f"sequence {name!r} of {self.path} is shorter than the others")
            outside = values[(values < 0) | (values > HIGHEST)]  # missing values (NaN) are neither
            if outside.size:
                raise UnreadableFrame(f"sequence {name!r} of {self.path} has the value {outside[0]}, outside 0 to {HIGHEST} dBZ")
            return values

        return attempt(self.path, frames)
