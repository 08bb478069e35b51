"""Met2Net: encoders and decoders per variable around a translator with attention over variables."""

from __future__ import annotations

from typing import Any

from wxlab.grids import Grid
from wxlab.models import Entry
from wxlab.models.met2net.network import Met2Net, build
from wxlab.models.met2net.official import ASIA, load_momentum, load_official, save_official
from wxlab.models.met2net.recipe import TwoStage

__all__ = ["ENTRY", "PRESETS", "Met2Net", "TwoStage", "load_momentum", "load_official", "save_official"]

HOUR = 3600
WIND = ("10m_u_component_of_wind", "10m_v_component_of_wind")
WEATHER = (*WIND, "2m_temperature", "total_cloud_cover", "relative_humidity_1000")
_PUBLISHED: dict[str, Any] = {"history": 12, "horizon": 12, "step": HOUR, "hid_S": 32, "hid_T": 256, "N_S": 2, "N_T": 8, "drop_path": 0.1}


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "channels": WEATHER[:3],
        "grid": (16, 32),
        "history": 2,
        "horizon": 2,
        "step": 6 * HOUR,
        "hid_S": 4,
        "hid_T": 16,
        "N_S": 2,
        "N_T": 2,
        "drop_path": 0.1,
    },
    "demo": {
        "channels": WEATHER,
        "grid": (32, 64),
        "history": 4,
        "horizon": 4,
        "step": 6 * HOUR,
        "hid_S": 16,
        "hid_T": 64,
        "N_S": 4,
        "N_T": 2,
        "drop_path": 0.0,
    },
    "weatherbench_5p625": {**_PUBLISHED, "channels": WEATHER, "grid": (32, 64)},
    "weatherbench_64x128": {**_PUBLISHED, "channels": WEATHER, "grid": (64, 128), "N_S": 4},
    "era5_wind": {**_PUBLISHED, "channels": ("mean_sea_level_pressure", *WIND, "2m_temperature"), "grid": ASIA, "N_S": 4},
    "mv_mmnist": {
        **_PUBLISHED,
        "channels": ("digit", "item", "inverse"),
        "grid": Grid(tuple(range(64)), tuple(range(64)), kind="xy"),
        "history": 10,
        "horizon": 10,
        "step": HOUR,
        "hid_S": 64,
        "hid_T": 512,
        "N_S": 4,
    },
}

ENTRY = Entry(
    name="met2net",
    title="Met2Net: implicit two-stage multivariate prediction",
    presets=PRESETS,
    build=build,
    recipe=TwoStage,
    official=load_official,
    citation="Li et al. 2025, Met2Net: a decoupled two-stage spatio-temporal forecasting model, arXiv:2507.17189",
    options=frozenset({"hid_S", "hid_T", "N_S", "N_T", "groups", "block", "live_gate", "drop_path"}),
)
