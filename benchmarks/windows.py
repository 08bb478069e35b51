"""How fast windows are read: a prepared store against xbatcher on a store of one array per variable, and against a plain copy.

    python benchmarks/windows.py [--times 1460] [--batches 60]

Prints medians over batches of the CPU seconds of one batch (one thread) and their ratios, all measured in this run, alternating.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import xarray as xr
import xbatcher

from wxlab.channels import stack
from wxlab.grids import Grid
from wxlab.store import open_store, prepare
from wxlab.windows import Windows

LEVELS = [250, 500, 850]
SURFACE = ["2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure"]
UPPER = ["geopotential", "temperature", "u_component_of_wind", "v_component_of_wind", "specific_humidity"]


def random_states(times: int, grid: Grid) -> xr.Dataset:
    """States of noise: values do not matter here, only how many bytes there are."""
    random = np.random.default_rng(0)
    rows, columns = grid.shape
    fields = {name: (("time", "latitude", "longitude"), random.random((times, rows, columns), np.float32)) for name in SURFACE}
    fields |= {
        name: (("time", "level", "latitude", "longitude"), random.random((times, len(LEVELS), rows, columns), np.float32)) for name in UPPER
    }
    axis = np.datetime64("2001-01-01", "ns") + np.arange(times) * np.timedelta64(6, "h")
    return xr.Dataset(fields, coords={"time": axis, "level": LEVELS, "latitude": list(grid.y), "longitude": list(grid.x)})


def seconds(function: object, *arguments: object) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function(*arguments)  # type: ignore[operator]
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1460)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    history, horizon = 2, 2
    frames = history + horizon
    with tempfile.TemporaryDirectory() as folder:
        data = random_states(arguments.times, Grid.regular(32, 64))
        everything = {"train": {"segments": [0]}}
        store = open_store(prepare(data, Path(folder) / "prepared.zarr", splits=everything, scheduler="synchronous"))
        chunks = {name: {"chunks": (1, *data[name].shape[1:])} for name in data}
        data.to_zarr(Path(folder) / "variables.zarr", encoding=chunks, consolidated=False)
        plain = xr.open_zarr(Path(folder) / "variables.zarr", consolidated=False, chunks=None)
        windows = Windows(store, "train", history=history, horizon=horizon, batch_size=arguments.batch_size, shuffle=True, prefetch=0)
        generator = xbatcher.BatchGenerator(
            plain, {"time": frames, "latitude": 32, "longitude": 64}, input_overlap={"time": frames - 1}, preload_batch=False
        )
        flat = np.memmap(store.frames.file(0), dtype=np.float32, mode="r")
        size = frames * int(np.prod(store.frames.shape[1:]))

        def by_xbatcher(chosen: np.ndarray) -> torch.Tensor:
            return torch.stack([torch.from_numpy(stack(generator[int(i)].load(), store.channels).values) for i in chosen])

        def by_copy(chosen: np.ndarray) -> torch.Tensor:
            first = int(chosen[0]) * 997 % (len(flat) - len(chosen) * size)
            out = torch.empty(len(chosen) * size)
            out.numpy()[...] = flat[first : first + len(out)]
            return out

        order = windows.order(0)
        share = [order[i * arguments.batch_size : (i + 1) * arguments.batch_size] for i in range(min(arguments.batches, len(windows)))]
        both = torch.cat(windows.raw(share[0]), dim=1)
        if not torch.equal(both, by_xbatcher(share[0])):
            raise SystemExit("the two readers do not give the same windows")
        for chosen in share:
            windows.raw(chosen)
        taken: dict[str, list[float]] = {"copy": [], "raw": [], "batch": [], "xbatcher": []}
        for number, chosen in enumerate(share):
            taken["copy"].append(seconds(by_copy, chosen))
            taken["raw"].append(seconds(windows.raw, chosen))
            taken["batch"].append(seconds(windows.batch, chosen))
            if number < 10:
                taken["xbatcher"].append(seconds(by_xbatcher, chosen))
    mid = {name: median(values) for name, values in taken.items()}
    megabytes = arguments.batch_size * size * 4 / 1e6
    shape = f"{arguments.batch_size} windows of {frames} states of {len(store.channels)}x32x64"
    print(f"batches of {shape}: {megabytes:.1f} MB; CPU seconds, medians")
    for name, label in (
        ("copy", "copy of the same bytes from a warm memory map"),
        ("raw", "windows, physical units"),
        ("batch", "windows, normalised"),
        ("xbatcher", "xbatcher on one array per variable"),
    ):
        print(f"  {label:46s} {1e3 * mid[name]:9.3f} ms  {megabytes / 1e3 / mid[name]:6.2f} GB/s")
    print(f"windows over xbatcher: {mid['xbatcher'] / mid['batch']:.1f} times as fast, not normalised {mid['xbatcher'] / mid['raw']:.1f}")
    print(f"share of the copy's speed: {100 * mid['copy'] / mid['raw']:.0f} % (normalised: {100 * mid['copy'] / mid['batch']:.0f} %)")


if __name__ == "__main__":
    main()
