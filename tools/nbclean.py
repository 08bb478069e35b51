"""Keep committed notebooks clean, and say where they break the rules of the series.

    python tools/nbclean.py notebooks/*.ipynb           # clean in place
    python tools/nbclean.py --check notebooks/*.ipynb   # change nothing; exit non-zero and list every problem

Cleaning removes what a run leaves behind: outputs and execution counts (kept, text only, in cells tagged ``nbval-check-output``,
where nbval compares them), times of execution, papermill's traces, widget states, the kernel's own name.
What cleaning cannot mend is listed, and the exit status is 1: a missing title or parameters cell, parameters without annotation
or comment, cells that are too long.
"""

from __future__ import annotations

import argparse
import ast
import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from wxlab.files import atomic_file

CHECKED = "nbval-check-output"
MAX_LINES = 25
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python"}
KEPT_CELL_METADATA = ("tags", "jupyter")
TITLE = re.compile(r"# \d{2} · \S")
PARAMETER = re.compile(r"^[A-Za-z_]\w*\s*:\s*\S.*=\s*\S.*  # \S")


def clean(notebook: Any) -> Any:
    """A clean copy of a notebook."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in tags(cell)]
    count = 0
    for cell in notebook.cells:
        kept = {key: value for key, value in cell.metadata.items() if key in KEPT_CELL_METADATA and value}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            count += 1
            _clean_code(cell, count)
    return notebook


def _clean_code(cell: Any, count: int) -> None:
    """Outputs stay in checked cells only, as text; the number is the cell's place, so that it does not change from run to run."""
    checked = CHECKED in tags(cell)
    outputs = [_text_only(output) for output in cell.outputs] if checked else []
    cell.outputs = [output for output in outputs if output is not None]
    cell.execution_count = count if checked and cell.outputs else None
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = cell.execution_count


def _text_only(output: Any) -> Any:
    """An output without pictures and widgets; None when nothing is left, and for errors and the error stream."""
    output = copy.deepcopy(output)
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type in ("execute_result", "display_data") and set(output.data) == {"text/plain"}:
        output.metadata = nbformat.from_dict({})
        return output
    return None


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def problems(notebook: Any) -> Iterator[str]:
    """Everything that is wrong with a notebook, cleanable or not."""
    cleaned = clean(notebook)
    yield from _traces(notebook, cleaned)
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not TITLE.match(first.source):
        yield "the first cell must be a heading '# NN · Title'"
    yield from _parameter_problems(notebook)
    identities = [cell.get("id") for cell in notebook.cells]
    if None in identities or len(set(identities)) != len(identities):
        yield "every cell needs an id of its own; save the notebook once with JupyterLab"
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        lines = cell.source.count("\n") + 1
        if lines > MAX_LINES:
            yield f"cell {number} has {lines} lines, at most {MAX_LINES} are allowed; move code into the package or split the cell"
        if CHECKED in tags(cell) and not any(_text_only(output) for output in cell.outputs):
            yield f"cell {number} is tagged {CHECKED} but has no text output to compare; run it, or remove the tag"


def _traces(notebook: Any, cleaned: Any) -> Iterator[str]:
    """What cleaning would remove or change."""
    for key in sorted(set(notebook.metadata) - set(cleaned.metadata)):
        yield f"notebook metadata has {key!r}"
    if dict(notebook.metadata.get("kernelspec", {})) != KERNEL:
        yield f"the kernelspec must be {KERNEL}"
    if dict(notebook.metadata.get("language_info", {})) != LANGUAGE:
        yield f"language_info must be {LANGUAGE}"
    count = 0
    for number, cell in enumerate(notebook.cells, 1):
        if "injected-parameters" in tags(cell):
            yield f"cell {number} holds parameters injected by papermill"
            continue
        for key in sorted(set(cell.metadata) - set(KEPT_CELL_METADATA)):
            yield f"cell {number} has metadata {key!r}"
        if cell.cell_type != "code":
            continue
        count += 1
        tidy = copy.deepcopy(cell)
        _clean_code(tidy, count)
        if tidy.outputs != cell.outputs:
            wrong = "outputs other than text" if CHECKED in tags(cell) else f"outputs, and is not tagged {CHECKED}"
            yield f"cell {number} has {wrong}"
        if tidy.execution_count != cell.execution_count:
            yield f"cell {number} has execution_count {cell.execution_count}, it must be {tidy.execution_count}"


def _parameter_problems(notebook: Any) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in tags(cell)]
    if len(tagged) != 1 or code[0] is not tagged[0]:
        yield f"exactly one cell, the first code cell, must be tagged 'parameters' (tagged: {len(tagged)})"
        return
    try:
        statements = ast.parse(tagged[0].source).body
    except SyntaxError as error:
        yield f"the parameters cell is no valid Python: {error.msg} in line {error.lineno}"
        return
    lines = tagged[0].source.splitlines()
    for statement in statements:
        line = lines[statement.lineno - 1]
        if not isinstance(statement, ast.AnnAssign) or statement.value is None or not PARAMETER.match(line):
            yield f"the parameters cell must hold lines like 'name: type = value  # comment', not {line.strip()!r}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing, list every problem")
    options = parser.parse_args(arguments)
    found = 0
    for path in options.notebooks:
        try:
            notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT)
        except (OSError, UnicodeDecodeError, nbformat.reader.NotJSONError) as error:
            print(f"{path}: cannot be read: {error}")
            found += 1
            continue
        if notebook.nbformat != 4 or notebook.nbformat_minor < 5:
            print(f"{path}: has format {notebook.nbformat}.{notebook.nbformat_minor}, 4.5 is needed for cell ids")
            found += 1
            continue
        if not options.check:
            notebook = clean(notebook)
            _write(path, notebook)
        for problem in problems(notebook):
            print(f"{path}: {problem}")
            found += 1
    return 1 if found else 0


def _write(path: Path, notebook: Any) -> None:
    """As JupyterLab writes it; a file that would not change is not touched."""
    text = nbformat.writes(notebook) + "\n"
    if path.read_text(encoding="utf-8") != text:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
