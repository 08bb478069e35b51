"""The series runs headless with parameters other than its defaults, and is committed clean."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
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
    "03_stldm": {
        "history": 3,
        "horizon": 4,
        "model_options": {"temporal": False},
        "recipe": {"strategy": "pretrained_vae", "weighting": "uniform"},
        "steps": 2,
        "members": 2,
        "sampling": {"sampling_steps": 2, "guidance": 0.0},
        "thresholds": [0.2, 3.0],
        "max_forecasts": 3,
        "constraint_steps": 2,
        "sweeps": ["guidance", "strategy"],
        "sweep_steps": 1,
        "regions": {
            "all": {"dataset": "simulated_radar_64", "layout": {}},
            "some": {"dataset": "simulated_radar", "layout": {"grid": "64x64"}},
        },
        "seed": 2,
    },
}



def expect_errors(result: dict[str, Any]) -> None:
    assert all(0 < error < 1e5 for scores in result["metrics"]["rmse"].values() for error in scores.values())


def expect_data(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    assert metrics["channels"] == ["geopotential_500", "total_precipitation_6hr"]
    assert min(metrics["windows"].values()) > 0
    assert all(value > 0 for value in metrics["std"].values())


def expect_ladder(result: dict[str, Any]) -> None:
    expect_errors(result)
    assert [claim["claim"][:25] for claim in result["claims"]] == ["Met2Net beats persistence"]
    assert len(result["metrics"]["ladder"]) == 3 * 2


def expect_nowcast(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    assert len(result["claims"]) == 2
    assert metrics["crps"] > 0 and metrics["mae_first_estimate"] > 0
    assert set(metrics["late_csi"]) == set(metrics["csi_by_lead"]) >= {"stldm", "first estimate", "persistence"}
    assert all(0 <= score <= 1 for by_lead in metrics["csi_by_lead"].values() for score in by_lead.values())
    if result["parameters"]["sweeps"]:
        assert {name: len(table["CSI-m"]) for name, table in metrics["sweeps"].items()} == {"guidance": 4, "strategy": 5}
        assert set(metrics["constraint"]) == {"with L_C", "without L_C"} and set(metrics["regions"]) == {"all", "some"}


EXPECTED: dict[str, Callable[[dict[str, Any]], None]] = {
    "00_start_here": expect_errors,
    "01_data_preparation": expect_data,
    "02_met2net": expect_ladder,
    "03_stldm": expect_nowcast,
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


# real radars, likewise: other events in the test split than in the others
TILES = {"grid": "2km", "tiles": {"size": "64x64", "stride": 32, "observed": 0.9}}
SWISS = {"train": 0.65, "validation": 0.35, "test": {"sources": ["radar_switzerland_2017"]}}
BRISBANE = {
    "train": ["2020-10-31T00:00", "2020-10-31T07:30"],
    "validation": ["2020-10-31T07:40", "2020-10-31T09:50"],
    "test": ["2020-10-31T10:00", "2020-10-31T13:00"],
}
RADAR: dict[str, dict[str, Any]] = {
    "radar_brisbane": {**TILES, "tiles": {"size": "64x64", "stride": 32}, "splits": BRISBANE},
    "radar_finland": {**TILES, "splits": {"train": 0.34, "validation": 0.33, "test": 0.33}},
    "radar_switzerland_2015+radar_switzerland_2017": {**TILES, "splits": SWISS},
}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("dataset", RADAR)
def test_stldm_on_real_radar(dataset: str, real_catalog: Path, tmp_path: Path) -> None:
    little = {"steps": 1, "members": 2, "max_forecasts": 2, "constraint_steps": 0, "sampling": {"sampling_steps": 1}}
    made = {"dataset": dataset, "layout": RADAR[dataset], "run_dir": str(tmp_path / "run")}
    done = run(ROOT / "notebooks" / "03_stldm.ipynb", tmp_path / "out", **little, **made)
    expect_nowcast(done.result)
    assert done.result["metrics"]["csi_by_lead"]["persistence"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_other_parameters(notebook: Path, tmp_path: Path) -> None:
    parameters = OTHER[notebook.stem]
    done = run(notebook, tmp_path / "out", run_dir=str(tmp_path / "run"), **parameters)
    result = done.result
    for name, value in parameters.items():
        assert result["parameters"][name] == value
    EXPECTED[notebook.stem](result)


@pytest.mark.parametrize("preset", sorted((ROOT / "notebooks" / "presets").glob("*.yaml")), ids=lambda path: path.name)
def test_presets_name_parameters_of_their_notebook(preset: Path) -> None:
    stem, name, _ = preset.name.split(".")
    notebook = ROOT / "notebooks" / f"{stem}.ipynb"
    assert set(load_preset(notebook, name)) <= set(parameters_of(notebook))


def test_notebooks_are_clean() -> None:
    done = subprocess.run([sys.executable, "tools/nbclean.py", "--check", *map(str, NOTEBOOKS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(NOTEBOOKS) == len(OTHER)
