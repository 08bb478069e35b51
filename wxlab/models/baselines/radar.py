"""What the baselines' presets for radar read and write: the same fields as STLDM's, so that they can be compared side by side.

``RADAR_FIELDS``: under STLDM's names, ``RADAR_PRESETS``: all but the tests' one, named as presets beside those of other fields.
"""

from __future__ import annotations

from typing import Any

from wxlab.models import SPEC_FIELDS
from wxlab.models.stldm import PRESETS

__all__ = ["RADAR_FIELDS", "RADAR_PRESETS"]

RADAR_FIELDS: dict[str, dict[str, Any]] = {name: {k: v for k, v in p.items() if k in SPEC_FIELDS} for name, p in PRESETS.items()}
RADAR_PRESETS = {("radar_demo" if name == "demo" else name): fields for name, fields in RADAR_FIELDS.items() if name != "tiny"}
