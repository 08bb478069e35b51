"""prepare under SIGKILL: killed at random moments, started again until it is done, and compared bit by bit with an undisturbed run.

    python benchmarks/kill_prepare.py [--kills 20] [--seed 0]

After every kill the store must be either absent or whole. Prints how far each run had come when it was killed. About a minute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.preparation.blocks import Blocks
from wxlab.store import open_store, prepare


def data() -> xr.Dataset:
    grid, random_numbers = Grid.regular(32, 64), np.random.default_rng(0)
    axis = np.datetime64("2001-01-01", "ns") + np.arange(1460) * np.timedelta64(6, "h")
    fields = {name: (("time", "latitude", "longitude"), random_numbers.random((1460, 32, 64), np.float32)) for name in ("a", "b", "c")}
    return xr.Dataset(fields, coords={"time": axis, "latitude": list(grid.y), "longitude": list(grid.x)})


def work(out: Path, pause: float, started: Event) -> None:
    """prepare with blocks that take as long as those of a far source would."""
    write = Blocks.write

    def slow(self: Blocks, index: int) -> None:
        time.sleep(pause)
        write(self, index)

    Blocks.write = slow  # type: ignore[method-assign]
    source = data()
    started.set()
    prepare(source, out, grid="16x32", forcing=["year_progress_sin"], scheduler="synchronous", chunk_bytes=20 * 4 * 3 * 512)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.zarr"
        begun = time.perf_counter()
        work(whole, 0.0, fork.Event())
        unhindered = time.perf_counter() - begun
        expected = contents(whole)
        kills = rounds = 0
        while kills < arguments.kills:
            rounds += 1
            out = Path(folder) / f"killed-{rounds}.zarr"
            while not out.exists():
                started = fork.Event()
                process = fork.Process(target=work, args=(out, 0.01, started))
                process.start()
                started.wait()
                process.join(chance.uniform(0.0, unhindered + 0.9) if kills < arguments.kills else None)
                if process.is_alive():
                    kills += 1
                    process.kill()
                    process.join()
                    blocks = len(list(out.with_name(f".{out.name}.preparing.tmp").glob(".journal/block-*")))
                    print(f"kill {kills:2d}: {blocks:2d} blocks done, store {'whole' if out.exists() else 'absent'}")
                if out.exists():
                    open_store(out).verify_checksum()
                else:
                    try:
                        open_store(out)
                    except WxlabError:
                        continue
                    raise SystemExit("an unfinished store could be opened")
            prepare(data(), out, grid="16x32", forcing=["year_progress_sin"], chunk_bytes=20 * 4 * 3 * 512)
            if contents(out) != expected:
                raise SystemExit(f"the store of round {rounds} differs from the undisturbed one")
    print(f"{kills} kills in {rounds} preparations: every result equal to the undisturbed one, bit by bit")


if __name__ == "__main__":
    main()
