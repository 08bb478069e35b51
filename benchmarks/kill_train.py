"""train under SIGKILL: killed at random moments, started again until it is done, and compared bit by bit with an undisturbed run.

    python benchmarks/kill_train.py [--kills 20] [--seed 0] [--model met2net]

Every run trains the model's preset ``tiny`` with averaged weights and clipping, keeps its state every two steps and validates every
seven. After every kill the best checkpoint and the state must be either absent or whole. Prints how far each run had come when it was
killed. About two minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from wxlab.checkpoints import load_checkpoint
from wxlab.grids import Grid
from wxlab.store import prepare
from wxlab.trainer import train

NAMES = ["10m_u_component_of_wind", "10m_v_component_of_wind", "2m_temperature"]


def data() -> xr.Dataset:
    grid, random_numbers = Grid.regular(16, 32), np.random.default_rng(0)
    axis = np.datetime64("2001-01-01", "ns") + np.arange(200) * np.timedelta64(6, "h")
    fields = {name: (("time", "latitude", "longitude"), random_numbers.normal(size=(200, 16, 32)).astype(np.float32)) for name in NAMES}
    return xr.Dataset(fields, coords={"time": axis, "latitude": list(grid.y), "longitude": list(grid.x)})


def work(model: str, store: Path, run: Path) -> None:
    torch.set_num_threads(1)
    how: dict[str, Any] = {"preset": "tiny", "steps": 40, "batch_size": 4, "ema": 0.95, "clip": 1.0, "patience": 50, "device": "cpu"}
    train(model, store, run_dir=run, log_every=1, validate_every=7, checkpoint_every=2, progress=False, **how)


def outcome(run: Path) -> dict[str, Any]:
    """Weights and metrics, without the times that were measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return {"metrics": metrics, **{name: (run / f"{name}.safetensors").read_bytes() for name in ("best", "last")}}


def progress(run: Path) -> str:
    """Read what a killed run left; whatever is there must be whole."""
    best, state = run / "best.safetensors", run / "state" / "state.pt"
    step = torch.load(state, weights_only=True)["step"] if state.exists() else 0
    told = f"step {load_checkpoint(best).facts['step']}" if best.exists() else "absent"
    halves = len(list(run.rglob("*.tmp")))
    return f"state at step {step:2d}, best checkpoint {told}, {halves} unfinished files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="met2net")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance, fork = random.Random(arguments.seed), multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(data(), Path(folder) / "store.zarr", scheduler="synchronous")
        whole = Path(folder) / "whole"
        begun = time.perf_counter()
        undisturbed = fork.Process(target=work, args=(arguments.model, store, whole))
        undisturbed.start()
        undisturbed.join()
        unhindered = time.perf_counter() - begun
        kills = rounds = 0
        while kills < arguments.kills:
            rounds += 1
            run, done = Path(folder) / f"killed-{rounds}", False
            while not done:
                process = fork.Process(target=work, args=(arguments.model, store, run))
                process.start()
                process.join(chance.uniform(0.0, 0.8 * unhindered) if kills < arguments.kills else None)
                if process.exitcode is None:
                    kills += 1
                    process.kill()
                    process.join()
                    print(f"kill {kills:2d}: {progress(run)}", flush=True)
                elif process.exitcode:
                    sys.exit(f"a run that was started again failed with exit code {process.exitcode}")
                else:
                    done = True
            if outcome(run) != outcome(whole):
                sys.exit(f"run {rounds} differs from the undisturbed one")
    print(f"{kills} kills in {rounds} runs of {unhindered:.1f} s: every result equal to the undisturbed one, bit by bit")


if __name__ == "__main__":
    main()
