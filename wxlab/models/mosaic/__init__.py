"""Mosaic: block-sparse attention on the HEALPix mesh, probabilistic from one noise vector."""

from __future__ import annotations

from typing import Any

from wxlab.models import Entry
from wxlab.models.mosaic.attention import force_engine
from wxlab.models.mosaic.building import DEFAULTS, build
from wxlab.models.mosaic.network import Mosaic
from wxlab.models.mosaic.official import load_official, save_official
from wxlab.models.mosaic.recipe import EnsembleTraining, fair_crps, with_horizon
from wxlab.models.mosaic.statistics import CHANNELS, GRID, STATIC, read_static, read_statistics

__all__ = [
    "CHANNELS", "ENTRY", "GRID", "PRESETS", "STATIC", "EnsembleTraining", "Mosaic", "build", "fair_crps", "force_engine", "load_official",
    "read_static", "read_statistics", "save_official", "with_horizon",
]  # fmt: skip

HOUR = 3600
_OWN: dict[str, Any] = {"selection_heads": "natural", "year_feature": "corrected"}  # nothing to be faithful to
_PUBLISHED: dict[str, Any] = {"channels": CHANNELS, "grid": GRID, "horizon": 1, "static": STATIC}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        **_OWN,
        "channels": ("2m_temperature", "geopotential_500", "temperature_850"),
        "grid": (9, 16),
        "history": 2,
        "horizon": 1,
        "step": 6 * HOUR,
        "nside": (4, 2),
        "width": (16, 32),
        "heads": (4, 4),
        "kv_heads": (2, 2),
        "window": (64, 24),
        "block": (16, 8),
        "count": (3, 2),
        "encoder_depth": (1,),
        "decoder_depth": (1,),
        "bottleneck_depth": 1,
        "neighbours": 6,
        "noise_dim": 8,
    },
    "demo": {
        **_OWN,
        "channels": ("2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "geopotential_500", "temperature_850"),
        "grid": (32, 64),
        "history": 2,
        "horizon": 1,
        "step": 24 * HOUR,
        "nside": (8, 4),  # enough for fields of T21, which have waves of 17° and longer
        "width": (64, 96),
        "heads": (4, 6),
        "kv_heads": (2, 3),
        "window": (192, 96),
        "block": (16, 16),
        "count": (8, 4),
        "encoder_depth": (1,),
        "decoder_depth": (1,),
        "bottleneck_depth": 2,
        "neighbours": 8,
        "noise_dim": 16,
    },
    "era5": {**_PUBLISHED, "history": 2, "step": 24 * HOUR, "neighbours": 24},
    "hres": {**_PUBLISHED, "history": 4, "step": 6 * HOUR, "neighbours": 20},
}

ENTRY = Entry(
    name="mosaic",
    title="Mosaic: block-sparse attention on a nested mesh, probabilistic from one noise vector",
    presets=PRESETS,
    build=build,
    recipe=EnsembleTraining,
    official=load_official,
    citation="Mosaic: published code and weights at huggingface.co/maxxxzdn/mosaic",
    official_licence="CC-BY-NC-4.0",
    options=frozenset(DEFAULTS),
)
