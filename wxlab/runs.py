"""Headless notebook runs through papermill: one run with checked parameters, or a sweep over a grid of them."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wxlab.catalog import standing_files
from wxlab.errors import WxlabError, unknown
from wxlab.files import atomic_file

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (float, int), "str": (str,), "bool": (bool,), "list": (list, tuple), "dict": (dict,), "None": (type(None),),
}  # fmt: skip


@dataclass(frozen=True)
class NotebookResult:
    """What a run left: the executed notebook, its seconds, and its ``result.json`` (empty when it recorded none)."""

    notebook: Path
    seconds: float
    result: dict[str, Any]


def run(notebook: str | Path, out: str | Path, *, preset: str | None = None, progress: bool = False, **parameters: Any) -> NotebookResult:
    """Run a notebook headless through papermill, in the notebook's folder.

    notebook: path of the ``.ipynb``.  out: path of the executed copy (or a folder for it).  preset: name of a parameter file
    ``presets/<notebook>.<preset>.yaml`` beside it; ``parameters`` win over the preset. A string from a command line is cast by
    the parameter's annotation; a ``run_dir``
    given here counts from the caller's folder, the notebook's own default from the notebook's.
    Raises WxlabError for an unknown parameter (with the nearest name), a wrong type, a missing file, and a cell that failed.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = Path(notebook).resolve()
    declared = parameters_of(source)
    values = {**load_preset(source, preset), **parameters}
    for name in values:
        if name not in declared:
            raise unknown(f"parameter of {source.name}", name, declared)
    values = {name: cast(name, value, declared[name]) for name, value in values.items()}
    if "run_dir" in parameters:
        values["run_dir"] = str(Path(values["run_dir"]).resolve())
    target = Path(out).resolve()
    if target.suffix != ".ipynb":
        target = target / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with atomic_file(target) as temporary:
        executed = temporary.with_suffix(".ipynb")
        try:
            papermill.execute_notebook(
                source, executed, parameters=values, cwd=source.parent, kernel_name="python3", progress_bar=progress, log_output=False,
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )  # fmt: skip
            executed.replace(temporary)
        except PapermillExecutionError as error:
            failed = target.with_name(f"{target.stem}.failed.ipynb")
            executed.replace(failed)
            raise WxlabError(
                f"{source.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue} (the notebook up to there is {failed})"
            ) from None
    seconds = time.perf_counter() - started
    return NotebookResult(target, seconds, _result_of(source, {**_defaults(declared), **values}))


def _result_of(source: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    path = source.parent / str(values.get("run_dir", "")) / "result.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: ``name: annotation = default  # help``."""

    annotation: str
    default: Any
    help: str


def parameters_of(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, read from its cell tagged ``parameters``.

    Raises WxlabError when the file is missing, no notebook, has no such cell, or a line of it is not ``name: type = literal``.
    """
    path = Path(notebook)
    if not path.is_file():
        nearby = [p.name for p in path.parent.glob("*.ipynb")] if path.parent.is_dir() else []
        raise unknown("notebook", path.name, nearby, f"looked in {path.parent}")
    try:
        cells = json.loads(path.read_text())["cells"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError, TypeError):
        raise WxlabError(f"{path} is not a Jupyter notebook; give a .ipynb file") from None
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if not tagged:
        raise WxlabError(f"{path.name} has no cell tagged 'parameters', so nothing of it can be set; tag its first code cell")
    source = "".join(tagged[0]["source"])
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise WxlabError(f"{path.name}, parameters cell: {lines[node.lineno - 1]!r} is not of the form 'name: type = value  # meaning'")
        _, _, comment = lines[(node.end_lineno or node.lineno) - 1].partition("#")
        found[node.target.id] = Parameter(ast.unparse(node.annotation), ast.literal_eval(node.value), comment.strip())
    return found


def _defaults(declared: Mapping[str, Parameter]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in declared.items()}


def cast(name: str, value: Any, parameter: Parameter) -> Any:
    """``value`` as the parameter's annotation says; strings from the command line are read as YAML.

    Raises WxlabError when it does not fit: what was given, what is allowed.
    """
    allowed = [part.strip() for part in parameter.annotation.replace("Optional", "").split("|")]
    bases = [part.split("[")[0] for part in allowed]
    types = tuple(t for base in bases for t in _TYPES.get(base, (object,)))
    if isinstance(value, str) and str not in types:
        value = read_value(value)
    if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in types:
        return None
    if isinstance(value, bool) and bool not in types and object not in types:
        types = ()  # a bool is an int to Python, not to a reader
    if not isinstance(value, types):
        raise WxlabError(f"parameter {name}={value!r} is {type(value).__name__}, and {name} must be {parameter.annotation}")
    if isinstance(value, int) and not isinstance(value, bool) and "float" in bases and "int" not in bases:
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def read_value(text: str) -> Any:
    """A value written on a command line: YAML, and numbers such as 1e-3, which YAML 1.1 takes for text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise WxlabError(f"{text!r} cannot be read as a value; write a number, true, false, a word or a list such as [1, 2]") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load_preset(notebook: Path, preset: str | None) -> dict[str, Any]:
    """The parameters of ``presets/<notebook>.<preset>.yaml``; ``None`` and ``quick`` are the notebook's own defaults."""
    if preset in (None, "quick"):
        return {}
    path = notebook.parent / "presets" / f"{notebook.stem}.{preset}.yaml"
    if not path.is_file():
        names = [p.name.split(".")[1] for p in path.parent.glob(f"{notebook.stem}.*.yaml")]
        raise unknown(f"preset of {notebook.name}", preset, ["quick", *names])
    return yaml.safe_load(path.read_text()) or {}


def sweep(
    notebook: str | Path,
    out: str | Path,
    grid: Mapping[str, Sequence[Any]] | Iterable[Mapping[str, Any]],
    scheduler: str | None = None,
    *,
    preset: str | None = None,
    workers: int = 2,
) -> Any:
    """Run a notebook for every combination of a grid of parameters and collect one table.

    grid: name -> values (all combinations), or an iterable of parameter dicts.  out: folder; each run has its own subfolder,
    named by a hash of its parameters, the notebook and the code, so that a finished run is not repeated and an interrupted
    sweep goes on where it stopped.  scheduler: None for parallel processes here (``workers`` of them), or the address of a
    dask scheduler whose workers see the same files.
    Returns a pandas DataFrame, one row per run (parameters, status, seconds, metrics, claims held), also written as
    ``sweep.csv``. A failed run is a row with its error, not the end of the sweep.
    """
    import pandas as pd

    source, folder = Path(notebook).resolve(), Path(out).resolve()
    declared = parameters_of(source)
    if isinstance(grid, Mapping):
        combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    else:
        combinations = [dict(point) for point in grid]
    if not combinations:
        raise WxlabError("the sweep's grid is empty; give at least one value for each parameter")
    fixed = load_preset(source, preset)
    for point in combinations:
        for name, value in point.items():
            if name not in declared:
                raise unknown(f"parameter of {source.name}", name, declared)
            point[name] = cast(name, value, declared[name])
    code = code_version(source)
    jobs = [(str(source), str(folder / run_key({**fixed, **point}, code)), {**fixed, **point}) for point in combinations]
    if scheduler is None:
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            outcomes = list(pool.map(lambda job: _run_point(*job), jobs))
    else:
        from distributed import Client

        with Client(scheduler) as client:
            outcomes = client.gather(client.map(lambda job: _run_point(*job), jobs, pure=False))
    table = pd.DataFrame([{**point, **outcome} for point, outcome in zip(combinations, outcomes, strict=True)])
    with atomic_file(folder / "sweep.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def code_version(*files: Path) -> str:
    """Hash of every module of the package, the catalogue and further files: a changed line makes what was kept of earlier runs stale."""
    digest = hashlib.sha256()
    for path in (*files, *standing_files(), *sorted(Path(__file__).parent.rglob("*.py"))):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def run_key(parameters: Mapping[str, Any], code: str) -> str:
    """Short name of a set of parameters under a version of the code."""
    text = json.dumps(parameters, sort_keys=True, default=str) + code
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _run_point(notebook: str, folder: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """One run of a sweep in a process of its own; its row of the table."""
    done = Path(folder) / "row.json"
    if done.is_file():
        return {**json.loads(done.read_text()), "cached": True}
    request = json.dumps([notebook, str(Path(folder) / "notebook.ipynb"), {**parameters, "run_dir": folder}])
    script = "import json, sys; from wxlab.runs import run; n, o, p = json.loads(sys.argv[1]); run(n, o, **p)"
    started = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", script, request], capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"status": "ok", "seconds": round(time.perf_counter() - started, 1), "run_dir": folder, "error": ""}
    if process.returncode:
        last = [line for line in process.stderr.strip().splitlines() if line.strip()] or ["no message"]
        return {**row, "status": "failed", "error": last[-1].removeprefix("wxlab.errors.WxlabError: "), "cached": False}
    result = _result_of(Path(notebook), {"run_dir": folder})
    row.update({f"metric.{k}": v for k, v in result.get("metrics", {}).items() if isinstance(v, (int, float, str, bool))})
    row["claims_held"] = f"{sum(c['holds'] for c in result.get('claims', []))}/{len(result.get('claims', []))}"
    with atomic_file(done) as temporary:
        temporary.write_text(json.dumps(row))
    return {**row, "cached": False}
