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
        "model_options": {"hid_T": 32, "block": "gsta"},
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
            "brisk": {"dataset": "simulated_radar_64", "layout": {}},
            "both": {"dataset": "simulated_radar_64+simulated_radar_64_calm", "layout": {}},
        },
        "seed": 2,
    },
    "04_ladcast_autoencoder": {
        "variables": ["2m_temperature", "geopotential", "u_component_of_wind", "v_component_of_wind"],
        "levels": [500],
        "static": ["land_sea_mask"],
        "normalisation": "zscore",
        "layout": {"grid": "16x32"},
        "model_options": {"latent": 8},
        "recipe": {"rolls": "none", "latitude_weights": True},
        "steps": 2,
        "finetune_steps": 0,
        "claimed": ["geopotential_500"],
        "audit_every": 8,
        "latents": [4, 1],
        "physics": [0.0, 0.2],
        "sweep_steps": 1,
        "carry_steps": 1,
        "seed": 3,
    },
    "05_ladcast_forecast": {
        "variables": ["2m_temperature", "geopotential"],
        "levels": [850, 500],
        "static": [],
        "normalisation": "zscore",
        "layout": {"grid": "16x32"},
        "autoencoder": "nowhere",
        "model_options": {"position": "learned", "horizon": 1},
        "recipe": {},
        "steps": 1,
        "sampling": {"sampler": "dpm", "sampling_steps": 2},
        "members": 2,
        "forecast_steps": 4,
        "max_forecasts": 3,
        "claimed": ["geopotential_850"],
        "sweeps": ["positions", "frames", "sampler", "initial_noise"],
        "sweep_steps": 1,
        "seed": 3,
    },
    "06_mosaic": {
        "variables": ["2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "temperature"],
        "levels": [500],
        "static": ["land_sea_mask"],
        "normalisation": "zscore",
        "model_options": {"noise_dim": 4, "selection_heads": "official"},
        "step_hours": 12,
        "history": 1,
        "steps": 2,
        "recipe": {"optimiser": "adamw", "members": 3},
        "learning_rate": 0.001,
        "members": 2,
        "forecast_steps": 2,
        "max_forecasts": 2,
        "cost_tokens": [768],
        "ablations": ["dense", "no mesh order"],
        "seed": 3,
    },
    "07_vamoe": {
        "old_variables": ["temperature"],
        "new_variables": ["specific_humidity", "2m_temperature"],
        "levels": [500],
        "normalisation": "zscore",
        "freeze": "strict",
        "experts": "by_number",
        "model_options": {"depth": 1, "expert_gain": 8.0},
        "recipe": {"reconstruct": "next"},
        "steps": 2,
        "extend_steps": 2,
        "compare_joint": False,
        "forecast_steps": 4,
        "max_forecasts": 3,
        "claim_hours": 12,
        "seed": 3,
    },
    "08_attention_and_cka": {
        "variables": ["2m_temperature", "geopotential", "10m_u_component_of_wind", "10m_v_component_of_wind"],
        "levels": [500],
        "normalisation": "zscore",
        "model_options": {"N_S": 4, "hid_T": 32},
        "second_options": {"patch": 4},
        "steps": 2,
        "frames": 2,
        "step_hours": 12,
        "samples": 10,
        "controls": 2,
        "permutations": 50,
        "seed": 3,
    },
    "09_hurricane_tracking": {
        "grid": [60, 120],
        "days": 6,
        "storms": ["2013306N07162", "2011028S13180"],
        "members": 3,
        "contour_depths": [200.0],
        "fit_seasons": [1995, 2010],
        "test_seasons": [2019, 2020],
        "leads": [24, 48],
        "networks": [],
        "seed": 2,
    },
    "10_spectral_diagnostics": {
        "variables": ["2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "temperature"],
        "levels": [500],
        "layout": {"static": ["land_sea_mask"]},
        "normalisation": "zscore",
        "ensemble": "nowhere",
        "others": {},
        "model_options": {"noise_dim": 4},
        "step_hours": 12,
        "history": 1,
        "steps": 2,
        "recipe": {"optimiser": "adamw", "members": 3},
        "learning_rate": 0.001,
        "members": 2,
        "forecast_steps": 2,
        "max_forecasts": 2,
        "judged_degree": 15,
        "threshold": 0.7,
        "response_degrees": [2, 5],
        "seed": 3,
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
    assert len(result["claims"]) == 3
    assert not all(claim["holds"] for claim in result["claims"])  # two steps teach nothing
    assert metrics["crps"] > 0 and set(metrics["mae"]) == {"first estimate", "persistence", "no rain"}
    assert set(metrics["late_csi"]) == set(metrics["csi_by_lead"]) >= {"stldm", "first estimate", "persistence"}
    assert all(0 <= score <= 1 for by_lead in metrics["csi_by_lead"].values() for score in by_lead.values())
    if result["parameters"]["sweeps"]:
        assert {name: len(table["CSI-m"]) for name, table in metrics["sweeps"].items()} == {"guidance": 4, "strategy": 5}
        assert set(metrics["constraint"]) == {"with L_C", "without L_C"} and set(metrics["regions"]) == {"brisk", "both"}


def expect_latents(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    assert len(result["claims"]) == 1 and set(metrics["explained"]) == set(metrics["worse"]) >= set(result["parameters"]["claimed"])
    assert all(value <= 1 for value in metrics["explained"].values()) and Path(metrics["checkpoint"]).is_file()
    if result["parameters"]["latents"]:
        assert metrics["compression"] == 4 * 4 / 8
        assert sorted(row["compression"] for row in metrics["compression_sweep"].values()) == [4, 16]
        assert list(metrics["physics_sweep"]) == ["physics 0", "physics 0.2"]
        assert all(set(row) == {"reconstruction", "6 h", "24 h", "48 h"} for row in metrics["carried"].values())


def expect_ensemble(result: dict[str, Any]) -> None:
    expect_errors(result)
    metrics = result["metrics"]
    assert len(result["claims"]) == 1 and set(metrics["rmse"]) == {"ensemble mean", "persistence", "climatology"}
    assert all(ratio > 0 for ratio in metrics["spread_skill"].values()) and all(abs(value) <= 1 for value in metrics["acc"].values())
    assert metrics["storage_ratio"] > 1
    if result["parameters"]["sweeps"]:
        assert list(metrics["sweeps"]["frames"]["calls"].values()) == [2 * 4, 2 * 2, 2, 2]
        assert sorted(metrics["sweeps"]["sampler"]["calls"].values()) == [20, 36, 40, 76, 80, 156, 156]
        assert all(set(table) == {"rmse", "crps_fair", "spread_skill", "calls"} for table in metrics["sweeps"].values())
        assert [len(metrics["sweeps"][name]["rmse"]) for name in ("positions", "initial_noise")] == [5, 5]


def expect_extension(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    assert result["claims"][0]["holds"] and len(result["claims"]) == 3
    assert metrics["moved_tensors"] == 0 < metrics["frozen_tensors"] and 0.4 < metrics["trainable_share"] < 1
    assert set(metrics["rmse"]) == {"before", "extended", "half the data", "persistence", "climatology"}
    assert set(metrics["ratio_old"]) == {"temperature_500"} and set(metrics["skill_new"]) == {"specific_humidity_500", "2m_temperature"}
    assert {row["against"] for row in metrics["differences"]} == {"half the data"} and len(metrics["differences"]) == 3
    assert set(metrics["forgetting"]) == {"all data", "half the data"} and set(metrics["forgetting"]["all data"]) == {"0", "1", "2"}


def expect_mesh(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    assert len(result["claims"]) == 3
    assert set(metrics["power_kept"]) == {"members", "deterministic twin", "ensemble mean"}
    assert 0 < metrics["ratio"] < 10 and all(value > 0 for kept in metrics["power_kept"].values() for value in kept.values())
    assert set(metrics["ablations"]) == {"Mosaic", *result["parameters"]["ablations"]}
    assert (metrics["drift_hpa"] is None) == ("mean_sea_level_pressure" not in result["parameters"]["variables"])


def expect_insight(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    holds = [claim["holds"] for claim in result["claims"]]
    assert len(holds) == 5 and holds[:2] == [True, True] and holds[3]  # the others are of learning
    assert set(metrics["networks"].values()) == {"trained here"}
    assert {"correlation", "gradient", "mutual_information"} <= set(metrics["agreement"]) == set(metrics["gain"])
    assert abs(metrics["unrelated"]["debiased"]) < 0.3 < metrics["unrelated"]["biased"]
    assert all(-0.3 < value <= 1 for value in metrics["trained_untrained"].values())
    assert len([name for name in metrics["layers"] if name.startswith("encoders.0")]) == 4


def expect_tracks(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    assert len(result["claims"]) == 6 and all(claim["holds"] for claim in result["claims"])
    assert set(metrics["errors_km"]) == set(result["parameters"]["storms"]) and 0 < metrics["rows"] < 0.25
    assert set(metrics["simple_km"]) == {"stays", "persistence", "CLIPER"}
    assert all(set(errors) == {"24", "48"} and errors["24"] < errors["48"] for errors in metrics["simple_km"].values())
    alone, whole = metrics["criteria"]["200 Pa, pressure alone"], metrics["criteria"]["200 Pa, all"]
    assert whole["false tracks"] == 0 < alone["false tracks"] and whole["records of storms"] == alone["records of storms"] > 0
    assert metrics["real_records"] is None and metrics["network"] is None


def expect_scales(result: dict[str, Any]) -> None:
    metrics, parameters = result["metrics"], result["parameters"]
    names = {"members", "deterministic twin", "ensemble mean"}
    assert len(result["claims"]) == 3 + ("mean_sea_level_pressure" in parameters["variables"])
    hours = {str(parameters["step_hours"] * (1 + k)) for k in range(parameters["forecast_steps"])}
    assert set(metrics["kept"]) == names == set(metrics["coherence"]) and all(set(by_lead) == hours for by_lead in metrics["kept"].values())
    assert all(1000 < km < 41000 for column in metrics["resolution_km"].values() for km in column.values())
    assert set(metrics["gain"]) == {"mean of nine", "not trained", *names - {"ensemble mean"}}
    degrees = {str(degree) for degree in parameters["response_degrees"]}
    assert all(set(row) == degrees and all(0 <= leak <= 1 for leak in row.values()) for row in metrics["leak"].values())
    assert 0.8 < metrics["gain"]["mean of nine"]["2"] < 1 and "kinetic_energy" in metrics["drift_per_day"]


EXPECTED: dict[str, Callable[[dict[str, Any]], None]] = {
    "00_start_here": expect_errors,
    "01_data_preparation": expect_data,
    "02_met2net": expect_ladder,
    "03_stldm": expect_nowcast,
    "04_ladcast_autoencoder": expect_latents,
    "05_ladcast_forecast": expect_ensemble,
    "06_mosaic": expect_mesh,
    "07_vamoe": expect_extension,
    "08_attention_and_cka": expect_insight,
    "09_hurricane_tracking": expect_tracks,
    "10_spectral_diagnostics": expect_scales,
}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_other_parameters(notebook: Path, tmp_path: Path) -> None:
    parameters = OTHER[notebook.stem]
    done = run(notebook, tmp_path / "out", run_dir=str(tmp_path / "run"), **parameters)
    result = done.result
    for name, value in parameters.items():
        assert result["parameters"][name] == value
    EXPECTED[notebook.stem](result)


@pytest.mark.slow
def test_networks_that_earlier_notebooks_left_are_taken(tmp_path: Path) -> None:
    """Also one whose channels have another order."""
    names, little = ["2m_temperature", "geopotential", "temperature"], {"steps": 2, "seed": 1}
    short = {"forecast_steps": 4, "max_forecasts": 2, **little}
    first = {"variables": names, "ladder": False, **short}
    second = {"old_variables": names[1:], "new_variables": names[:1], "extend_steps": 2, "compare_joint": False, "compare_half": False}
    folders = {"met2net": str(tmp_path / "02"), "vamoe": str(tmp_path / "07")}
    run(ROOT / "notebooks" / "02_met2net.ipynb", tmp_path / "out", run_dir=folders["met2net"], **first)
    run(ROOT / "notebooks" / "07_vamoe.ipynb", tmp_path / "out", run_dir=folders["vamoe"], **second, **short)
    book, given = ROOT / "notebooks" / "08_attention_and_cka.ipynb", {"samples": 8, "controls": 1, "permutations": 20, **folders, **little}
    taken = run(book, tmp_path / "out", run_dir=str(tmp_path / "a"), variables=names, **given).result["metrics"]["networks"]
    assert taken == {"Met2Net": "of an earlier notebook", "one encoder": "trained here", "VA-MoE": "of an earlier notebook"}


@pytest.mark.parametrize("preset", sorted((ROOT / "notebooks" / "presets").glob("*.yaml")), ids=lambda path: path.name)
def test_presets_name_parameters_of_their_notebook(preset: Path) -> None:
    stem, name, _ = preset.name.split(".")
    notebook = ROOT / "notebooks" / f"{stem}.ipynb"
    assert set(load_preset(notebook, name)) <= set(parameters_of(notebook))


def test_notebooks_are_clean() -> None:
    done = subprocess.run([sys.executable, "tools/nbclean.py", "--check", *map(str, NOTEBOOKS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(NOTEBOOKS) == len(OTHER)
