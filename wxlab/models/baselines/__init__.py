"""Baselines: what a forecast must beat (persistence, climatology), what Met2Net is compared with, and its ablation ladder.

Their presets read and write the same fields as Met2Net's, so that models of one preset can be trained side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wxlab.errors import WxlabError, is_number, is_whole
from wxlab.models import SPEC_FIELDS
from wxlab.models.base import Spec
from wxlab.models.met2net import PRESETS

__all__ = ["FIELDS", "SIZES", "require_equal_frames", "require_sizes"]

_NAMES = ("tiny", "demo", "weatherbench_5p625")
# Met2Net's presets: what is read and written, and sizes of networks with the same kinds of parts
FIELDS: dict[str, dict[str, Any]] = {name: {k: v for k, v in PRESETS[name].items() if k in SPEC_FIELDS} for name in _NAMES}
SIZES: dict[str, dict[str, Any]] = {name: {k: v for k, v in PRESETS[name].items() if k not in SPEC_FIELDS} for name in _NAMES}


def require_equal_frames(name: str, spec: Spec) -> None:
    """Raise WxlabError unless a block-to-block network is asked for as many frames as it reads."""
    if spec.history != spec.horizon:
        raise WxlabError(
            f"{name} writes as many frames as it reads, but history={spec.history} and horizon={spec.horizon}; "
            "make them equal (the roll-out makes forecasts of any length)"
        )


def require_sizes(config: Mapping[str, Any], multiples: Mapping[str, int]) -> None:
    """Raise WxlabError unless the named sizes of ``config`` are positive multiples and its ``drop_path`` is a probability below 1."""
    for name, multiple in multiples.items():
        value = config.get(name, multiple)
        if not is_whole(value) or value % multiple:
            raise WxlabError(f"{name}={value!r} must be a positive whole number" + (f" divisible by {multiple}" if multiple > 1 else ""))
    drop_path = config.get("drop_path", 0)
    if not (is_number(drop_path) and 0 <= drop_path < 1):
        raise WxlabError(f"drop_path={drop_path!r} must be at least 0 and less than 1")
