"""The embedded default data: an atmosphere, a radar, moving digits. No network, seeded, the same for the same seed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# at once, not on first use: its module has the function's name and would take its place
from wxlab.simulate.moving_digits import moving_digits

_LAZY = {"atmosphere": "weather", "radar": "rain", "seed_vortex": "vortex", "wander": "wandering"}

__all__ = ["atmosphere", "moving_digits", "radar", "seed_vortex", "wander"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'wxlab.simulate' has no attribute {name!r}")
    return getattr(import_module(f"wxlab.simulate.{_LAZY[name]}"), name)
