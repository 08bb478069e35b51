"""What notebooks begin and end with: ``setup``, ``claim``, ``check``, ``record``; and their headless runs: ``run`` and ``sweep``.

A notebook's result is ``result.json`` in its run folder: metrics, claims, parameters, versions.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wxlab.errors import WxlabError
from wxlab.files import write_json
from wxlab.runs import NotebookResult, code_version, run, run_key, sweep

__all__ = ["NotebookResult", "check", "claim", "earlier", "record", "run", "setup", "sweep"]

_PACKAGES = ("torch", "numpy", "xarray", "zarr", "accelerate")


@dataclass
class _Session:
    """The notebook that is running: where it writes, what it has claimed."""

    run_dir: Path
    parent: Path | None = None
    started: float = field(default_factory=time.perf_counter)
    claims: list[dict[str, Any]] = field(default_factory=list)


_session: _Session | None = None


def _current() -> _Session:
    if _session is None:
        raise WxlabError("no notebook is set up yet; call notebook.setup(run_dir) in the first cell after the parameters")
    return _session


def setup(run_dir: str | Path, *, seed: int = 0, threads: int | None = None) -> Path:
    """Begin a notebook: make its run folder, seed torch, numpy and python, set the plotting style.

    run_dir: the notebook's folder; each set of parameters, and each version of the code, gets a subfolder of its own, so that a
    changed parameter never meets the files of another run and a repeated run finds its own.  seed: for every global random stream.
    threads: for torch (None: as torch chooses).  Returns the subfolder.
    """
    global _session
    import random

    import numpy as np
    import torch

    from wxlab.plots.style import use_style

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
    use_style()
    _show_figures()
    parent = Path(run_dir)
    parameters = {name: value for name, value in _parameters().items() if name != "run_dir"}
    folder = parent / run_key(parameters, code_version())
    folder.mkdir(parents=True, exist_ok=True)
    _session = _Session(folder, parent)
    return folder


def _show_figures() -> None:
    """Let the notebook draw a Figure that ends a cell, also one made without pyplot."""
    from IPython.core.getipython import get_ipython
    from IPython.core.pylabtools import select_figure_formats

    shell = get_ipython()
    if shell is not None:
        select_figure_formats(shell, {"png"}, bbox_inches="tight")


def claim(text: str, value: float, bar: float, *, better: str = "greater") -> bool:
    """State what this run must show; it goes into ``result.json``, and ``wxlab demo`` fails when a claim does not hold.

    text: the claim in words.  value: what was measured.  bar: what it must reach (``better='greater'``: value > bar;
    ``'less'``: value < bar).  NaN holds no claim.  Returns whether it holds.
    """
    if better not in ("greater", "less"):
        raise WxlabError(f"better={better!r} is not known; use 'greater' or 'less'")
    value, bar = float(value), float(bar)
    holds = value > bar if better == "greater" else value < bar
    _current().claims.append({"claim": text, "value": value, "bar": bar, "better": better, "holds": holds})
    print(f"claim {'holds' if holds else 'FAILS'}: {text} ({value:.4g}, bar {'>' if better == 'greater' else '<'} {bar:.4g})")
    return holds


def earlier(run_dir: str | Path, name: str, **parameters: Any) -> Path | None:
    """A path that the latest run of another notebook recorded, if it ran with these parameters and the path is still there.

    run_dir: that notebook's folder.  name: of what it recorded.  parameters: values that its own must equal; others may be anything.
    """
    found = []
    for file in Path(run_dir).glob("*/result.json"):
        try:
            result = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        path, same = result.get("metrics", {}).get(name), result.get("parameters", {})
        if path and Path(path).exists() and all(key in same and same[key] == value for key, value in parameters.items()):
            found.append((file.stat().st_mtime, Path(path)))
    return max(found)[1] if found else None


def check(name: str, answer: Any, expected: Any, *, tolerance: float = 1e-6, hint: str = "") -> bool:
    """Check an exercise's answer: numbers within ``tolerance`` (relative), anything else by equality.

    ``answer=None`` means not tried yet. Prints the outcome and returns whether the answer is right.
    """
    if answer is None:
        print(f"{name}: not answered yet")
        return False
    numbers = isinstance(answer, (int, float)) and isinstance(expected, (int, float))
    right = math.isclose(answer, expected, rel_tol=tolerance, abs_tol=tolerance) if numbers else bool(answer == expected)
    print(f"{name}: right" if right else f"{name}: not yet{'; ' + hint if hint else ''}")
    return right


def record(**metrics: Any) -> Path:
    """End a notebook: write ``result.json`` with the metrics (plain numbers, strings, lists, dicts), claims, parameters and versions.

    It goes into the run's subfolder and, as the latest result, into the notebook's folder.  Returns the path of the first.
    Raises WxlabError for a value that JSON cannot hold.
    """
    session = _current()
    result = {
        "metrics": {name: _plain(name, value) for name, value in metrics.items()},
        "claims": session.claims,
        "parameters": _parameters(),
        "seconds": round(time.perf_counter() - session.started, 3),
        "versions": {"python": platform.python_version(), "wxlab": version("wxlab"), **{name: version(name) for name in _PACKAGES}},
    }
    path = session.run_dir / "result.json"
    for folder in (session.run_dir, session.parent or session.run_dir):
        write_json(folder / "result.json", result)
    return path


def _plain(name: str, value: Any) -> Any:
    """``value`` as JSON knows it; numpy scalars and arrays become numbers and lists, NaN becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    raise WxlabError(f"notebook.record got {name}={type(value).__name__}, which JSON cannot hold; give numbers, strings, lists or dicts")


def _parameters() -> dict[str, Any]:
    """The annotated names of the running notebook: its parameters cell."""
    main = sys.modules.get("__main__")
    names = getattr(main, "__annotations__", {})
    values = {name: getattr(main, name) for name in names if hasattr(main, name)}
    return {name: value for name, value in values.items() if isinstance(value, (str, int, float, bool, list, dict, type(None)))}
