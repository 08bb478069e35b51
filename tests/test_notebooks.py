"""The series runs headless with parameters other than its defaults, and is committed clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wxlab.runs import load_preset, parameters_of, run

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OTHER: dict[str, dict[str, Any]] = {
    "00_start_here": {"steps": 3, "seed": 1, "variables": ["2m_temperature", "temperature"], "levels": [850]},
    "01_data_preparation": {
        "variables": ["geopotential", "total_precipitation_6hr"],
        "levels": [500],
        "grid": "16x32",
        "start": "2003-01-01",
        "normalisation": "anomaly",
        "history": 2,
        "horizon": 2,
    },
    "02_met2net": {
        "variables": ["2m_temperature", "geopotential"],
        "levels": [500],
        "normalisation": "zscore",
        "history": 2,
        "horizon": 2,
        "steps": 2,
        "ladder_steps": 1,
        "forecast_steps": 4,
        "max_forecasts": 5,
        "model_options": {"hid_T": 32},
        "seed": 3,
    },
}

# real series, by parameters alone: daily steps, few points, gaps
DAILY = {"levels": [], "claim_hours": 24, "model_options": {"N_S": 2}, "history": 3, "horizon": 3, "forecast_steps": 3}
REAL: dict[str, dict[str, Any]] = {
    "ncep_north_atlantic": {**DAILY, "variables": ["mean_sea_level_pressure"]},
    "ncep_iberia": {**DAILY, "variables": ["2m_temperature", "geopotential"], "levels": [500]},
    "storm_1996": {
        **DAILY,
        "variables": ["mean_sea_level_pressure", "2m_temperature"],
        "missing": "mask",
        "history": 2,
        "horizon": 2,
        "forecast_steps": 2,
        "claim_hours": 12,
    },
}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("dataset", REAL)
def test_met2net_on_real_series(dataset: str, real_catalog: Path, tmp_path: Path) -> None:
    little = {"dataset": dataset, "steps": 2, "max_forecasts": 4, "ladder": False, "run_dir": str(tmp_path / "run")}
    done = run(ROOT / "notebooks" / "02_met2net.ipynb", tmp_path / "out", **little, **REAL[dataset])
    rmse = done.result["metrics"]["rmse"]
    assert set(rmse) == {"met2net", "persistence", "climatology"}
    assert all(0 < error < 1e5 for scores in rmse.values() for error in scores.values())
    assert done.result["parameters"]["dataset"] == dataset


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_other_parameters(notebook: Path, tmp_path: Path) -> None:
    parameters = OTHER[notebook.stem]
    done = run(notebook, tmp_path / "out", run_dir=str(tmp_path / "run"), **parameters)
    result = done.result
    for name, value in parameters.items():
        assert result["parameters"][name] == value
    metrics = result["metrics"]
    if notebook.stem == "01_data_preparation":
        assert metrics["channels"] == ["geopotential_500", "total_precipitation_6hr"]
        assert min(metrics["windows"].values()) > 0
        assert all(value > 0 for value in metrics["std"].values())
    else:
        assert all(0 < error < 1e5 for scores in metrics["rmse"].values() for error in scores.values())
    if notebook.stem == "02_met2net":
        assert [claim["claim"][:25] for claim in result["claims"]] == ["Met2Net beats persistence"]
        assert len(metrics["ladder"]) == 3 * 2


@pytest.mark.parametrize("preset", sorted((ROOT / "notebooks" / "presets").glob("*.yaml")), ids=lambda path: path.name)
def test_presets_name_parameters_of_their_notebook(preset: Path) -> None:
    stem, name, _ = preset.name.split(".")
    notebook = ROOT / "notebooks" / f"{stem}.ipynb"
    assert set(load_preset(notebook, name)) <= set(parameters_of(notebook))


def test_notebooks_are_clean() -> None:
    done = subprocess.run([sys.executable, "tools/nbclean.py", "--check", *map(str, NOTEBOOKS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(NOTEBOOKS) == len(OTHER)
