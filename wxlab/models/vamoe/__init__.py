"""VA-MoE: a mixture of experts that belong to variables, and the incremental stage that adds variables to a trained model."""

from __future__ import annotations

from typing import Any

from wxlab.models import Entry
from wxlab.models.vamoe.choices import channel_choices, expert_strength
from wxlab.models.vamoe.extension import carry_over, changed, describe, extend
from wxlab.models.vamoe.network import DEFAULTS, VAMoE, build, variable_groups
from wxlab.models.vamoe.official import load_official, save_official
from wxlab.models.vamoe.recipe import LearnedVariances
from wxlab.models.vamoe.scores import published_scores

__all__ = [
    "ENTRY",
    "PRESETS",
    "LearnedVariances",
    "VAMoE",
    "carry_over",
    "changed",
    "channel_choices",
    "describe",
    "expert_strength",
    "extend",
    "load_official",
    "published_scores",
    "save_official",
    "variable_groups",
]

HOUR = 3600
LEVELS = (1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 50)
UPPER_AIR = ("geopotential", "specific_humidity", "u_component_of_wind", "v_component_of_wind", "temperature")
SURFACE = (
    "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure", "surface_pressure",
)  # fmt: skip
ERA5 = (*(f"{variable}_{level}" for variable in UPPER_AIR for level in LEVELS), *SURFACE)
_ONE: dict[str, Any] = {"history": 1, "horizon": 1, "step": 6 * HOUR}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        **_ONE,
        "channels": ("geopotential_850", "geopotential_500", "temperature_850", "temperature_500", "2m_temperature"),
        "grid": (16, 32),
        "embed_dim": 32,
        "depth": 3,
        "heads": 4,
    },
    "demo": {
        **_ONE,
        "channels": (*(f"{v}_{level}" for v in ("geopotential", "temperature") for level in (850, 500)), *SURFACE[:4]),
        "grid": (32, 64),
        "embed_dim": 96,
        "depth": 3,
        "heads": 4,
    },
    "small": {**_ONE, "channels": ERA5, "grid": (32, 64), "embed_dim": 128, "depth": 6, "heads": 8},
    "official": {**_ONE, "channels": ERA5, "grid": (128, 256), "embed_dim": 768},
    "paper": {**_ONE, "channels": ERA5, "grid": (128, 256), "embed_dim": 1024},
}

ENTRY = Entry(
    name="vamoe",
    title="VA-MoE: variables-adaptive mixture of experts",
    presets=PRESETS,
    build=build,
    recipe=LearnedVariances,
    official=load_official,
    citation="Chen et al. 2025, VA-MoE: variables-adaptive mixture of experts for incremental weather forecasting, arXiv:2412.02503",
    options=frozenset(DEFAULTS),
)
