"""STLDM: radar nowcasts by latent diffusion from a first estimate."""

from __future__ import annotations

from typing import Any

from wxlab.grids import Grid
from wxlab.models import Entry
from wxlab.models.stldm.network import SAMPLING, SIZES, STLDM, build
from wxlab.models.stldm.official import load_official, save_official
from wxlab.models.stldm.recipe import recipe

__all__ = ["ENTRY", "PRESETS", "STLDM", "load_official", "recipe", "save_official"]

MINUTE = 60


def _pixels(side: int, kilometres: float) -> Grid:
    """A square radar grid, y and x in metres."""
    centres = tuple((i + 0.5) * kilometres * 1000 for i in range(side))
    return Grid(centres, centres, kind="xy")


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "channels": ("rain_rate",),
        "grid": (16, 16),
        "history": 2,
        "horizon": 3,
        "step": 5 * MINUTE,
        "hid_S": 4,
        "hid_T": 16,
        "N_S": 2,
        "N_T": 2,
        "base_ch": 8,
        "chs_mult": (1, 2),
        "num_groups": 4,
        "heads": 2,
        "dim_head": 4,
        "patch_size": 4,
        "timesteps": 10,
        "sampling_steps": 4,
        "guidance": 0.5,
    },
    "demo": {
        "channels": ("rain_rate",),
        "grid": _pixels(64, 1),
        "history": 4,
        "horizon": 8,
        "step": 3 * MINUTE,
        "hid_S": 16,
        "hid_T": 64,
        "N_S": 4,
        "N_T": 3,
        "base_ch": 16,
        "chs_mult": (1, 2, 4),
        "num_groups": 8,
        "heads": 2,
        "dim_head": 16,
        "patch_size": 8,
        "sampling_steps": 10,
        "guidance": 1.0,
    },
    "sevir": {
        "channels": ("vertically_integrated_liquid_8bit",),
        "grid": _pixels(128, 3),
        "history": 13,
        "horizon": 12,
        "step": 5 * MINUTE,
        "guidance": 1.0,
    },
    "hko7": {
        "channels": ("reflectivity",),
        "grid": _pixels(128, 4),
        "history": 5,
        "horizon": 20,
        "step": 6 * MINUTE,
        "guidance": 1.0,
    },
    "meteonet": {
        "channels": ("reflectivity",),
        "grid": _pixels(128, 4.4),
        "history": 5,
        "horizon": 20,
        "step": 5 * MINUTE,
        "guidance": 1.0,
    },
}

ENTRY = Entry(
    name="stldm",
    title="Foo et al. 2025, STLDM: spatio-temporal latent diffusion for radar nowcasts",
    presets=PRESETS,
    build=build,
    recipe=recipe,
    official=load_official,
    citation="Foo et al. 2025, STLDM: spatio-temporal latent diffusion model for precipitation nowcasting, arXiv:2512.21118",
    options=frozenset({*SIZES, *SAMPLING}),
)
