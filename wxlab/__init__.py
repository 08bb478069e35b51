"""wxlab: a notebook-driven research workbench for machine-learned weather forecasting.

The way of the data:  catalog -> prepare -> windows -> train -> forecast -> verify -> look.
Everything named here is imported only when it is first used, so that ``import wxlab`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# xarray loads eccodes when it looks for its engines, and Python crashes at exit when eccodes comes before pyproj
import pyproj  # noqa: F401

__version__ = "0.1.0"

_PUBLIC = {
    "open_dataset": "wxlab.catalog",
    "prepare": "wxlab.store",
    "create_model": "wxlab.models",
    "list_models": "wxlab.models",
    "load_official": "wxlab.models",
    "train": "wxlab.trainer",
    "load_checkpoint": "wxlab.checkpoints",
    "forecast": "wxlab.rollout",
    "verify": "wxlab.verification",
    "extend": "wxlab.models.vamoe.extension",
    "explore": "wxlab.plots",
}
_MODULES = (
    "attention", "catalog", "cka", "conservation", "encoding", "grids", "health", "models", "notebook", "npy_tree",
    "plots", "rollout", "simulate", "spectra", "store", "verification", "windows",
)  # fmt: skip

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        value = import_module(f"wxlab.{name}")
    else:
        raise AttributeError(f"module 'wxlab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
