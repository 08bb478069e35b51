"""prepare killed at any moment and started again: nothing half-written is read, and the result is the same to the bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from noise import make, times_of

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.store import open_store

SCRIPT = """
import sys, time
import xarray as xr
from wxlab.blocks import Blocks
from wxlab.store import prepare

write = Blocks.write
def slow(self, index):  # as if the source were far away
    time.sleep(float(sys.argv[3]))
    write(self, index)
Blocks.write = slow
print("ready", flush=True)
data = xr.open_dataset(sys.argv[1], engine="h5netcdf").load()
prepare(data, sys.argv[2], variables=["2m_temperature", "geopotential"], grid="4x8", forcing=["year_progress_sin"],
        static=["land_sea_mask"], scheduler="synchronous", chunk_bytes=20 * 4 * 4 * 32)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start(source: Path, out: Path, pause: float) -> subprocess.Popen[str]:
    """A process that has everything imported and is about to prepare."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), str(out), str(pause)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def run(source: Path, out: Path) -> None:
    with start(source, out, 0) as process:
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kill") / "source.nc"
    make(times_of(600, 6), Grid.regular(8, 16)).to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> dict[str, bytes]:
    run(source, source.with_name("whole.zarr"))
    return contents(source.with_name("whole.zarr"))


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_and_started_again(source: Path, undisturbed: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    out = tmp_path / "killed.zarr"
    with start(source, out, 0.02) as process:
        time.sleep(random.Random(seed).uniform(0.05, 0.8))
        process.send_signal(signal.SIGKILL)
        killed = process.wait(60) == -signal.SIGKILL
    assert killed != out.exists()
    if killed:
        with pytest.raises(WxlabError, match="no store at"):
            open_store(out)
    run(source, out)
    assert contents(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["killed.zarr"]
    open_store(out).verify_checksum()
