"""The command line: every command says what it wrote; a mistake ends in one sentence and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_faults import CATALOGUE, T2M, states
from typer.testing import CliRunner

from wxlab.cli import app
from wxlab.errors import WxlabError

COMMANDS = [
    "data list", "data show", "data check", "data prepare", "data tree", "train", "forecast", "verify", "track", "health", "run", "sweep",
    "demo", "lab", "doctor",
]  # fmt: skip


def call(*words: str) -> str:
    """Output of a command that must succeed."""
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    states().rename({T2M: "t2m"})[["t2m"]].to_netcdf(folder / "t2m.nc", engine="h5netcdf")
    path = folder / "catalogue.yaml"
    path.write_text(CATALOGUE.format(name="mine", driver="netcdf", uri=folder / "t2m.nc", variable="t2m"))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    assert "Example: wxlab" in " ".join(call(*command.split(), "--help").split())


def test_from_data_to_scores(catalogue: Path, tmp_path: Path) -> None:
    named = ["--catalog", str(catalogue)]
    assert "mine" in call("data", "list", *named)
    assert T2M in call("data", "show", "mine", *named)
    assert "no gaps" in call("data", "check", "mine", *named)
    store, run, forecast = (str(tmp_path / name) for name in ("store.zarr", "run", "forecast.zarr"))
    assert f"wrote {store}" in call("data", "prepare", "mine", store, "--variables", T2M, *named)
    tree = call("data", "tree", "mine", str(tmp_path / "tree"), "--variables", T2M, "--end", "2001-01-02", *named)
    anew = ("--train", "2001-01-01,2001-01-01", "--overwrite")
    again = call("data", "tree", "mine", str(tmp_path / "tree"), "--variables", T2M, *anew, *named)
    assert tree == again
    assert f"wrote {tmp_path / 'tree'}" in tree and (tmp_path / "tree" / "statistic" / "mean_std_single.json").is_file()
    trained = call("train", "convlstm", store, "--run-dir", run, "--preset", "tiny", "-p", "steps=2", "-p", "lr=1e-3", "-p", "batch_size=2")
    assert "best.safetensors" in trained
    looked = call("health", run, "--steps", "4")
    assert "clear  leakage between splits" in looked and "signatures of failure found" in looked.splitlines()[-1]
    assert f"wrote {forecast}" in call("forecast", run, store, forecast, "--steps", "2")
    scores = tmp_path / "scores.nc"
    assert "rmse" in call("verify", forecast, store, "--metrics", "rmse,acc", "--out", str(scores))
    assert scores.is_file()


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A series of one notebook whose claim holds for three steps and fails for one."""
    body = """\
import pathlib
from wxlab import notebook
notebook._session = notebook._Session(pathlib.Path(run_dir))
pathlib.Path(run_dir).mkdir(parents=True, exist_ok=True)
notebook.claim("steps are many", steps, 2)
notebook.record(steps=steps)"""
    head = nbformat.v4.new_code_cell('steps: int = 3  # how many\nrun_dir: str = "runs/x"  # where')
    head.metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=[head, nbformat.v4.new_code_cell(body)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "presets").mkdir()
    nbformat.write(book, tmp_path / "01_try.ipynb")
    return tmp_path


def test_demo_checks_claims(series: Path) -> None:
    words = ["demo", "--notebooks", str(series), "--out", str(series / "out")]
    preset = series / "presets" / "01_try.demo.yaml"
    with pytest.raises(WxlabError, match=r"no notebook in .* has the preset 'demo'"):
        call(*words)
    preset.write_text("steps: 4\n")
    assert "holds: steps are many" in call(*words)
    preset.write_text("steps: 1\n")
    with pytest.raises(WxlabError, match="1 claims do not hold: 01_try: steps are many"):
        call(*words)


def test_run_and_sweep(series: Path) -> None:
    notebook = str(series / "01_try.ipynb")
    assert "FAILS: steps are many" in call("run", notebook, "--out", str(series / "out"), "-p", "steps=1")
    table = call("sweep", notebook, str(series / "sweep"), "-p", "steps=[1, 5]")
    assert "1/1" in table
    assert "sweep.csv" in table


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data", "show", "no_such_source"], "unknown data source 'no_such_source'"),
        (["train", "met2nett", "store.zarr", "--run-dir", "r", "-p", "steps"], "is not of the form NAME=VALUE"),
        (["forecast"], "Missing argument"),
    ],
)
def test_a_mistake_ends_in_a_sentence(words: list[str], says: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("wxlab")
    done = subprocess.run([program, *words], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []
