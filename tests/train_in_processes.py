"""Started by torchrun in test_trainer_processes.py: trains on the store of the first argument into the folder of the second."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from pointwise import register

from wxlab.errors import WxlabError
from wxlab.trainer import train

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {"steps": 10, "accumulate": 2, "clip": 0.5, "ema": 0.7, "validate_every": 3, "log_every": 1}),
    "stages": ("noisy", {"steps": 6, "model": {"dropout": 0.0}, "recipe": {"noise": 0.0}, "log_every": 1}),
    "spare": ("plain", {"steps": 3, "model": {"spare": True}}),
    "statistics": ("plain", {"steps": 12, "model": {"norm": True}, "lr": 0.1, "log_every": 1}),
    "met2net": ("met2net", {"steps": 3, "preset": "tiny", "log_every": 1}),
    "climatology": ("climatology", {}),
}
COMMON: dict[str, Any] = {"batch_size": 4, "seed": 5, "progress": False}


def run_case(name: str, store: Path, out: Path, **more: Any) -> Path:
    model, settings = CASES[name]
    shared = {} if model == "climatology" else COMMON
    return train(model, store, run_dir=out / name, **shared, **settings, **more)


def main() -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    register()
    store, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    run_case("plain", store, out, max_seconds=1e-9)
    for name in CASES:
        run_case(name, store, out)
    said = []
    for folder, how in {"faulty": {"recipe": {"bad": 2, "spoil": "second process"}}, "uneven": {"batch_size": 5}}.items():
        try:
            train("plain", store, run_dir=out / folder, **{**COMMON, "steps": 4, "checkpoint_every": 1, **how})
        except WxlabError as error:
            said.append(str(error))
    (out / f"said-{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
