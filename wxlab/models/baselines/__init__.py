"""Baselines: what a forecast must beat (persistence, climatology), what Met2Net is compared with, and its ablation ladder.

All share the Spec fields below, so that models trained side by side read and write the same fields.
"""

from __future__ import annotations

from typing import Any

from wxlab.errors import WxlabError
from wxlab.models.base import Spec

HOUR = 3600
WEATHER = (
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
    "2m_temperature",
    "total_cloud_cover",
    "relative_humidity_1000",
)

TINY: dict[str, Any] = {"channels": WEATHER[:3], "grid": (16, 32), "history": 2, "horizon": 2, "step": 6 * HOUR}
DEMO: dict[str, Any] = {"channels": WEATHER, "grid": (32, 64), "history": 4, "horizon": 4, "step": 6 * HOUR}
WEATHERBENCH: dict[str, Any] = {"channels": WEATHER, "grid": (32, 64), "history": 12, "horizon": 12, "step": HOUR}


def require_equal_frames(name: str, spec: Spec) -> None:
    """Raise WxlabError unless a block-to-block network is asked for as many frames as it reads."""
    if spec.history != spec.horizon:
        raise WxlabError(
            f"{name} writes as many frames as it reads, but history={spec.history} and horizon={spec.horizon}; "
            "make them equal (the roll-out makes forecasts of any length)"
        )
