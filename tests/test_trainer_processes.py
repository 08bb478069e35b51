"""Training by several processes: the numbers of one process, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pointwise import ENTRIES, make_store
from safetensors.torch import load_file
from train_in_processes import run_case

from wxlab import models
from wxlab.checkpoints import load_checkpoint
from wxlab.models.base import per_sample_mse
from wxlab.windows import Windows

TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-6}, torch.int64: {"rtol": 0, "atol": 0}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The store, what two processes made of it, and a folder for one process."""
    base = tmp_path_factory.mktemp("processes")
    store = make_store(base / "s.zarr")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_in_processes.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    (base / "two").mkdir()
    result = subprocess.run(
        [*command, str(store), str(base / "two")], cwd=here, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "find_unused_parameters" not in result.stderr and "Grad strides" not in result.stderr
    return store, base / "two", base / "one"


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["plain", "stages", "spare"])
def test_two_processes_train_like_one(folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store, two, one = folders
    for entry, place in ENTRIES.items():
        monkeypatch.setitem(models._REGISTRY, entry, place)
    run_case(name, store, one)
    for file in ("best.safetensors", "last.safetensors"):
        expected, found = load_file(one / name / file), load_file(two / name / file)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, **TOLERANCE[value.dtype])
    for mine, theirs in zip(lines(one / name), lines(two / name), strict=True):
        assert mine["step"] == theirs["step"] and theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs.get("validation") == (pytest.approx(mine["validation"], rel=1e-4) if "validation" in mine else None)


def test_statistics_of_a_share_of_the_batch_train_too(folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("statistics", "met2net"):
        run = folders[1] / name
        weights = load_file(run / "best.safetensors")
        assert all(torch.isfinite(value).all() for value in weights.values())
        found = lines(run)
        assert all(line["loss"] > 0 for line in found)
    for entry, place in ENTRIES.items():
        monkeypatch.setitem(models._REGISTRY, entry, place)
    model = load_checkpoint(folders[1] / "statistics")
    batch = next(iter(Windows(folders[0], "validation", history=2, horizon=1, batch_size=100)))
    assert batch.target is not None
    with torch.no_grad():  # of the saved statistics, though each process had its own
        expected = float(per_sample_mse(model.predict(batch)[:, 0], batch.target).mean())
    assert model.facts["validation"] == pytest.approx(expected, rel=1e-5)
    losses = [line["loss"] for line in lines(folders[1] / "statistics")]
    assert max(losses[-3:]) < 0.9 * losses[0]


def test_a_reference_forecast_is_fitted_once(folders: tuple[Path, Path, Path]) -> None:
    assert (folders[1] / "climatology" / "best.safetensors").is_file()


def test_all_processes_end_when_one_has_no_number(folders: tuple[Path, Path, Path]) -> None:
    for rank in (0, 1):
        loss, batch = json.loads((folders[1] / f"said-{rank}.json").read_text())
        assert loss.startswith("the loss is nan at step 3; nothing was overwritten")
        assert batch.startswith("batch_size 5 must divide by the 2 processes")
    state = torch.load(folders[1] / "faulty" / "state" / "state.pt", weights_only=True)
    assert state["step"] == 2 and all(torch.isfinite(value).all() for value in state["model"].values())
