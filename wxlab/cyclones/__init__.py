"""Tropical cyclones: tracking in fields and forecasts, best tracks, scores, and references to beat."""

from wxlab.cyclones.criteria import PRESETS, Criteria
from wxlab.cyclones.detect import detect
from wxlab.cyclones.follow import follow
from wxlab.cyclones.stitch import stitch
from wxlab.cyclones.tracking import track

__all__ = ["PRESETS", "Criteria", "detect", "follow", "stitch", "track"]
