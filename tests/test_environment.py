"""The environment files agree with each other, the package imports quickly, and the doctor tells the truth."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# PyPI name -> conda-forge name, where they differ
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base", "eccodes": "python-eccodes", "opencv-python-headless": "py-opencv"}

LOCKS = ("requirements.lock", "requirements-nowcast.lock")


def _pins(file: str) -> dict[str, str]:
    pairs = (line.split("==") for line in (ROOT / file).read_text().split() if "==" in line)
    return {canonicalize_name(name): found for name, found in pairs}


def _declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines]


def test_environment_yml_equals_pyproject() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [line for line in listed if isinstance(line, str)] + [line for part in listed if isinstance(part, dict) for line in part["pip"]]
    conda = {canonicalize_name(Requirement(line).name): str(Requirement(line).specifier) for line in lines}
    expected = {canonicalize_name(CONDA.get(r.name, r.name)): str(r.specifier) for r in _declared()}
    assert conda.pop("python") == ">=3.11"
    conda.pop("pip")
    assert conda == expected


def test_lock_satisfies_pyproject() -> None:
    exact = {name: found for file in LOCKS for name, found in _pins(file).items()}
    assert exact["torch"] == "2.13.0"
    missing = []
    for requirement in _declared():
        found = exact.get(canonicalize_name(requirement.name))
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            missing.append(f"{requirement} (lock: {found})")
    assert not missing


def test_the_lock_of_nowcasting_changes_nothing_that_is_installed_before() -> None:
    base, nowcast = map(_pins, LOCKS)
    assert not base.keys() & nowcast.keys()
    assert "opencv-python" not in nowcast  # the one with windows, which needs system libraries
    assert [name for name in base if name in ("cython", "pysteps")] == []  # nothing that is compiled here


def test_lock_has_no_package_that_breaks_with_the_cpu_build() -> None:
    names = {line.split("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().split()}
    assert not names & {"torchvision", "torchaudio", "timm", "lpips", "torchmetrics", "lightning"}
    assert not [name for name in names if name.startswith("nvidia")]


def test_import_is_quick_and_lazy() -> None:
    script = "import time; t = time.process_time(); import wxlab, sys; print(time.process_time() - t, 'torch' in sys.modules)"
    seconds, loaded = [], set()
    for _ in range(3):
        taken, torch_loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
        seconds.append(float(taken))
        loaded.add(torch_loaded)
    assert statistics.median(seconds) < 0.5
    assert loaded == {"False"}


def test_public_names_resolve() -> None:
    import wxlab

    for name in wxlab.__all__:
        assert getattr(wxlab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'forcast'"):
        _ = wxlab.forcast


def test_grib_reader_does_not_crash_python_at_exit() -> None:
    order = "names.index('pyproj') < names.index('eccodes')"
    script = f"import sys, wxlab.readers.grib; import cfgrib; names = list(sys.modules); print({order})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert done.stdout.strip() == "True"


def test_doctor_finds_this_machine_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from wxlab.doctor import examine

    monkeypatch.setenv("WXLAB_CACHE", str(tmp_path))
    findings = examine()
    assert [f.text for f in findings if f.level == "problem"] == []
    assert {"python", "packages", "device", "catalogue", "cache"} <= {f.subject for f in findings}


def test_doctor_reports_an_outdated_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from wxlab import doctor

    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "zarr" else "999.0")
    problems = {f.subject: f.text for f in doctor._packages() if f.level == "problem"}
    assert problems["zarr"] == "0.0.1 is installed, and wxlab needs >=3.0"


def test_doctor_says_what_an_extra_that_is_not_installed_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    from wxlab import doctor

    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "pysteps" else object())
    notes = {f.subject: f.text for f in doctor._packages() if f.level == "note"}
    assert notes == {"pysteps": "not installed, so no radar extrapolation; run: pip install 'wxlab[nowcast]'"}
