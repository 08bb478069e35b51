"""STLDM's named sizes: small ones, and the published ones with variable, step, grid and units of the archives they were trained on."""

from __future__ import annotations

from typing import Any

from wxlab.grids import Grid, parse_grid
from wxlab.normaliser import Transform

MINUTE = 60


def _pixels(side: int, kilometres: float) -> Grid:
    """A square radar grid, y and x in metres."""
    centres = tuple((i + 0.5) * kilometres * 1000 for i in range(side))
    return Grid(centres, centres, kind="xy")


def _archive(rows: int, columns: int, metres: float, *, north_first: bool) -> Grid:
    """The area of an archive in 128x128 cells, as ``prepare(..., grid="128x128")`` has it."""
    y, x = (tuple(metres * i for i in range(count)) for count in (rows, columns))
    return parse_grid((128, 128), Grid(y[::-1] if north_first else y, x, kind="xy"))


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
        "grid": _archive(384, 384, 1000, north_first=False),
        "history": 13,
        "horizon": 12,
        "step": 5 * MINUTE,
        "guidance": 1.0,
    },
    "hko7": {
        "channels": ("reflectivity",),
        "grid": _archive(480, 480, 512_000 / 480, north_first=True),
        "history": 5,
        "horizon": 20,
        "step": 6 * MINUTE,
        "guidance": 1.0,
    },
    "meteonet": {
        "channels": ("reflectivity",),
        "grid": _archive(565, 784, 1000, north_first=True),
        "history": 5,
        "horizon": 20,
        "step": 5 * MINUTE,
        "guidance": 1.0,
    },
}

# what the published weights read: values of the archive brought to 0..1
UNITS: dict[str, Transform] = {
    "sevir": Transform("minmax", 0.0, 255.0),  # digital VIL
    "hko7": Transform("minmax", -10.0, 70.0),  # dBZ
    "meteonet": Transform("minmax", 0.0, 70.0),  # dBZ
}
