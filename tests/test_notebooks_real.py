"""The series on real data, by parameters alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wxlab.runs import run

T2M = "2m_temperature"
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

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
    done = run(NOTEBOOKS / "02_met2net.ipynb", tmp_path / "out", **little, **REAL[dataset])
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
@pytest.mark.nowcast
@pytest.mark.parametrize("dataset", RADAR)
def test_stldm_on_real_radar(dataset: str, real_catalog: Path, tmp_path: Path) -> None:
    little = {"steps": 1, "members": 2, "max_forecasts": 2, "constraint_steps": 0, "sampling": {"sampling_steps": 1}}
    made = {"dataset": dataset, "layout": RADAR[dataset], "run_dir": str(tmp_path / "run")}
    done = run(NOTEBOOKS / "03_stldm.ipynb", tmp_path / "out", **little, **made)
    metrics = done.result["metrics"]
    assert metrics["crps"] > 0 and all(error > 0 for error in metrics["mae"].values())
    assert set(metrics["csi_by_lead"]) == {"stldm", "first estimate", "persistence", "extrapolation", "sprog"}
    assert all(len(by_lead) == 8 for by_lead in metrics["csi_by_lead"].values())
    assert all(0 <= score <= 1 for by_lead in metrics["csi_by_lead"].values() for score in by_lead.values())
    assert done.result["parameters"]["dataset"] == dataset


@pytest.mark.slow
@pytest.mark.real_data
def test_vamoe_learns_further_variables_on_a_real_series(real_catalog: Path, tmp_path: Path) -> None:
    variables = {"old_variables": ["geopotential", "temperature"], "new_variables": ["specific_humidity", T2M, "mean_sea_level_pressure"]}
    little = {"steps": 150, "extend_steps": 100, "batch_size": 16, "forecast_steps": 1, "max_forecasts": 60, "model_options": {"patch": 1}}
    alone = {"compare_joint": False, "compare_half": False, "run_dir": str(tmp_path / "run")}
    done = run(NOTEBOOKS / "07_vamoe.ipynb", tmp_path / "out", dataset="ncep_iberia", **variables, **little, **alone)
    assert [claim["holds"] for claim in done.result["claims"]] == [True] * 3, done.result["claims"]
    skill = done.result["metrics"]["skill_new"]
    assert set(skill) == {"specific_humidity_850", "specific_humidity_500", T2M, "mean_sea_level_pressure"}
    assert all(0 < value < 0.6 for value in skill.values())


@pytest.mark.slow
@pytest.mark.real_data
def test_insight_into_networks_of_a_real_series(real_catalog: Path, tmp_path: Path) -> None:
    little = {"steps": 2, "samples": 16, "controls": 2, "permutations": 99, "frames": 3, "step_hours": 24}
    sizes = {"model_options": {"N_S": 2}, "second_options": {"patch": 1}, "run_dir": str(tmp_path / "run")}
    data = {"dataset": "ncep_iberia", "variables": [T2M, "geopotential", "temperature", "specific_humidity"], "levels": [500]}
    done = run(NOTEBOOKS / "08_attention_and_cka.ipynb", tmp_path / "out", **data, **little, **sizes)
    assert set(done.result["metrics"]["agreement"]) >= {"correlation", "mutual_information"}


@pytest.mark.slow
@pytest.mark.real_data
def test_tracks_of_a_real_storm(real_catalog: Path, tmp_path: Path) -> None:
    little = {"grid": [60, 120], "days": 6, "members": 2, "contour_depths": [200.0], "fit_seasons": [2000, 2010], "networks": []}
    given = {"real_dataset": "era5_sample_1deg", "test_seasons": [2021, 2021], "run_dir": str(tmp_path / "run"), **little}
    done = run(NOTEBOOKS / "09_hurricane_tracking.ipynb", tmp_path / "out", **given)
    assert done.result["metrics"]["real_records"] >= 10


@pytest.mark.slow
@pytest.mark.real_data
def test_scales_of_a_real_week(real_catalog: Path, tmp_path: Path) -> None:
    winds = ["10m_u_component_of_wind", "10m_v_component_of_wind"]
    splits = {"train": ["2026-03-25", "2026-03-28"], "validation": ["2026-03-29", "2026-03-29"], "test": ["2026-03-30", "2026-03-31"]}
    data = {"variables": [T2M, "mean_sea_level_pressure", *winds], "levels": [], "splits": splits, "layout": {"grid": "30x60"}}
    little = {"steps": 1, "step_hours": 7, "history": 1, "members": 2, "forecast_steps": 2, "max_forecasts": 2, "response_degrees": [2, 8]}
    alone = {"ensemble": "nowhere", "others": {}, "normalisation": "zscore", "last_degree": 28, "judged_degree": 28}
    given = {"dataset": "era5_sample_1deg", "run_dir": str(tmp_path / "run"), **data, **little, **alone}
    done = run(NOTEBOOKS / "10_spectral_diagnostics.ipynb", tmp_path / "out", **given)
    metrics = done.result["metrics"]
    assert set(metrics["resolution_km"]["members"]) == {*data["variables"]}
    assert set(metrics["drift_per_day"]) == {"mass", "kinetic_energy"} and set(metrics["coherence"]["members"]) == {"7", "14"}
    assert done.result["claims"][-1]["holds"]  # the drift that is put in
