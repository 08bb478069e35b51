"""prepare killed at any moment and started again: nothing half-written is read, and the result is the same to the bit."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from noise import make, times_of

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.preparation.blocks import Blocks
from wxlab.store import open_store, prepare

PROCESSES = multiprocessing.get_context("forkserver")  # its children are forked from a process that has no threads


def work(out: Path, pause: float, started: Event) -> None:
    """prepare with blocks that take as long as those of a far source would."""
    write = Blocks.write

    def slow(self: Blocks, index: int) -> None:
        time.sleep(pause)
        write(self, index)

    Blocks.write = slow  # type: ignore[method-assign]
    data = make(times_of(600, 6), Grid.regular(8, 16))
    started.set()
    names = ["2m_temperature", "geopotential"]
    extra = {"forcing": ["year_progress_sin"], "static": ["land_sea_mask"]}
    prepare(data, out, variables=names, grid="4x8", scheduler="synchronous", chunk_bytes=20 * 4 * 4 * 32, **extra)  # type: ignore[arg-type]


def start(out: Path, pause: float) -> BaseProcess:
    """A process that has its data and is about to prepare."""
    started = PROCESSES.Event()
    process = PROCESSES.Process(target=work, args=(out, pause, started))
    process.start()
    assert started.wait(60)
    return process


def finish(out: Path) -> dict[str, bytes]:
    process = start(out, 0)
    process.join(60)
    assert process.exitcode == 0
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    PROCESSES.set_forkserver_preload(["wxlab.store"])
    return finish(tmp_path_factory.mktemp("kill") / "whole.zarr")


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_and_started_again(undisturbed: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    out = tmp_path / "killed.zarr"
    process = start(out, 0.02)
    process.join(random.Random(seed).uniform(0.05, 0.8))
    process.kill()
    process.join()
    assert (process.exitcode == -signal.SIGKILL) != out.exists()
    if not out.exists():
        with pytest.raises(WxlabError, match="no store at"):
            open_store(out)
    assert finish(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["killed.zarr"]
    open_store(out).verify_checksum()
