"""train killed at any moment and started again: nothing half-written is read, and it ends with the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from pointwise import ENTRIES, make_store, register

from wxlab import models
from wxlab.checkpoints import load_checkpoint
from wxlab.errors import WxlabError
from wxlab.trainer import train

PROCESSES = multiprocessing.get_context("forkserver")  # its children are forked from a process that has no threads
RUNS: dict[str, dict[str, Any]] = {
    "noisy": {"steps": 8, "ema": 0.8, "clip": 1.0},
    "met2net": {"steps": 8, "preset": "tiny", "model": {"hid_T": 8}, "accumulate": 2},
}
COMMON: dict[str, Any] = {"batch_size": 4, "log_every": 1, "validate_every": 3, "checkpoint_every": 1, "progress": False, "device": "cpu"}


def work(name: str, store: Path, run: Path, started: Event) -> None:
    """train with a slow disk: half of the time something is being written."""
    torch.set_num_threads(1)
    replace = os.replace

    def slow(source: Any, target: Any) -> None:
        time.sleep(0.01)
        replace(source, target)

    os.replace = slow  # type: ignore[assignment]
    register()
    started.set()
    train(name, store, run_dir=run, callbacks=[lambda line: time.sleep(0.02)], **RUNS[name], **COMMON)


def kept(run: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {**files, "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in records]}


def require_whole(run: Path) -> None:
    """What a reader finds is nothing or whole."""
    try:
        load_checkpoint(run)
    except WxlabError as error:
        assert "holds no best.safetensors" in str(error)
    if (run / "state" / "state.pt").exists():
        torch.load(run / "state" / "state.pt", weights_only=True)


@pytest.mark.parametrize(("name", "seed"), [("noisy", 1), ("met2net", 2)])
def test_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, seed: int) -> None:
    PROCESSES.set_forkserver_preload(["wxlab.store", "wxlab.trainer"])
    for entry, place in ENTRIES.items():
        monkeypatch.setitem(models._REGISTRY, entry, place)
    store, chance = make_store(tmp_path / "s.zarr"), random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(name, store, run_dir=whole, **RUNS[name], **COMMON)
    kills = 0
    while True:
        started = PROCESSES.Event()
        process = PROCESSES.Process(target=work, args=(name, store, killed, started))
        process.start()
        assert started.wait(60)
        process.join(chance.uniform(0.1, 0.3) if kills == 0 else chance.uniform(0.2, 0.9) if kills < 4 else 60)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        require_whole(killed)
    assert kills >= 1
    assert kept(killed) == kept(whole)
    assert not list(killed.rglob("*.tmp"))
