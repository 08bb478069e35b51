"""Committed notebooks: what cleaning removes, what it keeps, what it can only report."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def _load() -> ModuleType:
    path = Path(__file__).parent.parent / "tools" / "nbclean.py"
    spec = importlib.util.spec_from_file_location("nbclean", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nbclean = _load()


@pytest.fixture
def book() -> Any:
    """A notebook in good order."""
    notebook = new_notebook(metadata={"kernelspec": dict(nbclean.KERNEL), "language_info": dict(nbclean.LANGUAGE)})
    checked = new_code_cell("print(1.5)", execution_count=2, outputs=[new_output("stream", name="stdout", text="1.5\n")])
    checked.metadata = nbformat.from_dict({"tags": ["nbval-check-output"]})
    parameters = new_code_cell("steps: int = 3  # how many\ntag: str | None = None  # a name", metadata={"tags": ["parameters"]})
    notebook.cells = [new_markdown_cell("# 02 · Met2Net\nWhat is it?"), parameters, checked, new_code_cell("x = 1")]
    return notebook


def _dirty(book: Any) -> Any:
    """The same after a run by papermill."""
    book.metadata["papermill"] = {"duration": 3.0}
    book.metadata["widgets"] = {"state": {}}
    book.metadata["kernelspec"] = {"name": "my-env", "display_name": "My env", "language": "python"}
    book.metadata["language_info"] = {"name": "python", "version": "3.11.2"}
    book.cells.insert(2, new_code_cell("steps = 7", metadata={"tags": ["injected-parameters"]}))
    for count, cell in enumerate((cell for cell in book.cells if cell.cell_type == "code"), 40):
        cell.execution_count = count
        cell.metadata["execution"] = {"iopub.execute_input": "now"}
        cell.metadata["papermill"] = {"status": "completed"}
    picture = new_output("display_data", data={"image/png": "AAAA", "text/plain": "<Figure>"})
    book.cells[-1].outputs = [picture, new_output("stream", name="stderr", text="warning")]
    book.cells[3].outputs += [picture, new_output("execute_result", data={"text/plain": "2"}, execution_count=41)]
    return book


def _save(book: Any, folder: Path) -> Path:
    path = folder / "02_met2net.ipynb"
    nbformat.write(book, path)
    return path


def test_a_notebook_in_order_has_no_problems(book: Any, tmp_path: Path) -> None:
    path = _save(book, tmp_path)
    before = path.read_bytes()
    assert nbclean.main(["--check", str(path)]) == 0
    assert nbclean.main([str(path)]) == 0
    assert path.read_bytes() == before


def test_cleaning_removes_every_trace_of_a_run(book: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identities = [cell.id for cell in book.cells]
    path = _save(_dirty(book), tmp_path)
    assert nbclean.main(["--check", str(path)]) == 1
    told = capsys.readouterr().out
    traces = ("'papermill'", "'widgets'", "kernelspec", "language_info", "injected", "'execution'", "other than text", "execution_count")
    for trace in traces:
        assert trace in told, trace
    assert nbclean.main([str(path)]) == 0
    assert nbclean.main(["--check", str(path)]) == 0
    cleaned = nbformat.read(path, as_version=4)
    assert [cell.id for cell in cleaned.cells] == identities
    assert set(cleaned.metadata) == {"kernelspec", "language_info"}
    parameters, checked, last = (cell for cell in cleaned.cells if cell.cell_type == "code")
    assert parameters.execution_count is None and parameters.metadata == {"tags": ["parameters"]}
    assert last.outputs == [] and last.execution_count is None
    assert [output.output_type for output in checked.outputs] == ["stream", "execute_result"]
    assert checked.execution_count == 2 == checked.outputs[1].execution_count


def test_check_changes_nothing(book: Any, tmp_path: Path) -> None:
    path = _save(_dirty(book), tmp_path)
    before = path.read_bytes()
    nbclean.main(["--check", str(path)])
    assert path.read_bytes() == before


def _edit(index: int, source: str) -> Any:
    def change(book: Any) -> None:
        book.cells[index].source = source

    return change


def _untag(book: Any) -> None:
    book.cells[1].metadata = nbformat.from_dict({})


def _move(book: Any) -> None:
    book.cells[1], book.cells[3] = book.cells[3], book.cells[1]


def _no_output(book: Any) -> None:
    book.cells[2].outputs = []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_edit(0, "# Met2Net"), "the first cell must be a heading '# NN · Title'"),
        (_edit(3, "\n".join(["x = 1"] * 26)), "cell 4 has 26 lines, at most 25"),
        (_edit(1, "steps = 3  # how many"), "not 'steps = 3  # how many'"),
        (_edit(1, "steps: int = 3"), "not 'steps: int = 3'"),
        (_edit(1, "steps: int = 0  # how many\nimport os  # no"), "not 'import os  # no'"),
        (_edit(1, "steps: int = ("), "no valid Python"),
        (_untag, "exactly one cell, the first code cell, must be tagged 'parameters' (tagged: 0)"),
        (_move, "exactly one cell, the first code cell, must be tagged 'parameters' (tagged: 1)"),
        (_no_output, "cell 3 is tagged nbval-check-output but has no text output"),
    ],
)
def test_what_cleaning_cannot_mend_is_reported(
    book: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, problem: str
) -> None:
    change(book)
    path = _save(book, tmp_path)
    for arguments in (["--check", str(path)], [str(path)]):
        assert nbclean.main(arguments) == 1
        assert problem in capsys.readouterr().out


def test_a_cell_of_25_lines_and_single_character_values_are_allowed(book: Any, tmp_path: Path) -> None:
    book.cells[3].source = "\n".join(["x = 1"] * 25)
    book.cells[1].source = "seed: int = 0  # of all randomness"
    assert nbclean.main(["--check", str(_save(book, tmp_path))]) == 0


def test_files_that_are_no_notebooks_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ipynb").write_text("no json")
    assert nbclean.main(["--check", str(tmp_path / "x.ipynb"), str(tmp_path / "absent.ipynb")]) == 1
    assert capsys.readouterr().out.count("cannot be read") == 2
