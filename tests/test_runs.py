"""Headless notebook runs: parameters are checked, failures are reported in a sentence, sweeps are cached and resumable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest

from wxlab import notebook
from wxlab.errors import WxlabError
from wxlab.runs import Parameter, cast, parameters_of, run, sweep

PARAMETERS = """\
steps: int = 3  # how many
rate: float = 0.5  # how fast
plot: bool = True  # draw
tag: str | None = None  # a name
run_dir: str = "runs/x"  # where results go"""
BODY = """\
import json, pathlib
from wxlab import notebook
notebook._session = notebook._Session(pathlib.Path(run_dir))
pathlib.Path(run_dir).mkdir(parents=True, exist_ok=True)
if steps < 0:
    raise ValueError("steps is negative")
notebook.claim("steps are many", steps, 2)
notebook.record(double=2 * steps, plot=plot)"""


@pytest.fixture
def notebook_file(tmp_path: Path) -> Path:
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    head = nbformat.v4.new_code_cell(PARAMETERS)
    head.metadata["tags"] = ["parameters"]
    book.cells = [head, nbformat.v4.new_code_cell(BODY)]
    path = tmp_path / "09_try.ipynb"
    nbformat.write(book, path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "09_try.demo.yaml").write_text("steps: 7\n")
    return path


def test_parameters_are_read_from_the_tagged_cell(notebook_file: Path) -> None:
    found = parameters_of(notebook_file)
    assert found["steps"] == Parameter("int", 3, "how many")
    assert found["tag"].annotation == "str | None"


CASTS = [
    ("int", "12", 12),
    ("float", "3", 3.0),
    ("bool", "false", False),
    ("str", "false", "false"),
    ("str | None", "none", None),
    ("list[int]", "[1, 2]", [1, 2]),
]


@pytest.mark.parametrize(("annotation", "given", "expected"), CASTS)
def test_strings_are_cast_by_annotation(annotation: str, given: str, expected: object) -> None:
    value = cast("x", given, Parameter(annotation, None, ""))
    assert value == expected
    assert type(value) is type(expected)


WRONG = [("int", "two"), ("int", 2.5), ("bool", "3"), ("int", True), ("list[int]", 4), ("str", 3)]


@pytest.mark.parametrize(("annotation", "given"), WRONG)
def test_wrong_types_are_refused(annotation: str, given: object) -> None:
    with pytest.raises(WxlabError, match=r"parameter x=.* must be"):
        cast("x", given, Parameter(annotation, None, ""))


def test_run_with_preset_and_parameters(notebook_file: Path, tmp_path: Path) -> None:
    done = run(notebook_file, tmp_path / "out", preset="demo", plot="false", run_dir=str(tmp_path / "r"))
    assert done.result["metrics"] == {"double": 14, "plot": False}
    assert done.result["parameters"]["steps"] == 7
    assert done.result["claims"] == [{"claim": "steps are many", "value": 7.0, "bar": 2.0, "better": "greater", "holds": True}]
    assert nbformat.read(done.notebook, 4).cells[1].metadata.tags == ["injected-parameters"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stepz": 3}, "unknown parameter of 09_try.ipynb 'stepz'; did you mean 'steps'"),
        ({"steps": "many"}, "parameter steps='many' is str, and steps must be int"),
        ({"preset": "papr"}, "unknown preset of 09_try.ipynb 'papr'"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(notebook_file: Path, tmp_path: Path, parameters: dict, message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        run(notebook_file, tmp_path / "out", **parameters)
    assert not (tmp_path / "out").exists()


def test_a_failing_cell_is_named_and_kept(notebook_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WxlabError, match="failed in cell 3: ValueError: steps is negative"):
        run(notebook_file, tmp_path / "out", steps=-1)
    assert (tmp_path / "out" / "09_try.failed.ipynb").is_file()
    assert not (tmp_path / "out" / "09_try.ipynb").exists()


def test_sweep_caches_and_survives_failures(notebook_file: Path, tmp_path: Path) -> None:
    grid = {"steps": [1, -1], "plot": ["true"]}
    table = sweep(notebook_file, tmp_path / "sweep", grid, workers=2)
    assert list(table["status"]) == ["ok", "failed"]
    assert table["metric.double"].iloc[0] == 2
    assert table["claims_held"].iloc[0] == "0/1"
    assert "steps is negative" in table["error"].iloc[1]
    again = sweep(notebook_file, tmp_path / "sweep", {"steps": [1], "plot": [True]})
    assert list(again["cached"]) == [True]
    assert again["seconds"].iloc[0] == table["seconds"].iloc[0]
    with pytest.raises(WxlabError, match="grid is empty"):
        sweep(notebook_file, tmp_path / "sweep", {"steps": []})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not a Jupyter notebook"), (json.dumps({"cells": []}), "has no cell tagged 'parameters'")],
)
def test_not_a_notebook(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    with pytest.raises(WxlabError, match=message):
        parameters_of(path)
    with pytest.raises(WxlabError, match=r"unknown notebook 'b.ipynb'; did you mean 'a.ipynb'"):
        parameters_of(tmp_path / "b.ipynb")


def test_a_notebook_finds_what_an_earlier_one_left(tmp_path: Path) -> None:
    for order, (name, seed, path) in enumerate((("a", 0, "one"), ("b", 0, "two"), ("c", 1, "one"), ("d", 0, "gone"))):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "result.json"
        file.write_text(json.dumps({"metrics": {"model": str(tmp_path / path)}, "parameters": {"seed": seed, "steps": order}}))
        os.utime(file, (order, order))
    for path in ("one", "two"):
        (tmp_path / path).mkdir()
    (tmp_path / "one" / "result.json").write_text("broken")
    assert notebook.earlier(tmp_path, "model", seed=0) == tmp_path / "two"
    assert notebook.earlier(tmp_path, "model") == notebook.earlier(tmp_path, "model", seed=0, steps=0) == tmp_path / "one"
    assert notebook.earlier(tmp_path, "model", seed=2) is None and notebook.earlier(tmp_path, "other") is None
    assert notebook.earlier(tmp_path, "model", unknown=1) is None and notebook.earlier(tmp_path / "nowhere", "model") is None
