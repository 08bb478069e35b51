"""Tropical cyclones: tracking in fields and forecasts, best tracks, scores, and references to beat."""

from wxlab.cyclones.baselines import Cliper, no_forecast, persistence_of_motion
from wxlab.cyclones.best_tracks import best_tracks, match
from wxlab.cyclones.criteria import PRESETS, Criteria
from wxlab.cyclones.detect import detect
from wxlab.cyclones.ensemble import mean_track, strike_probability
from wxlab.cyclones.files import read_tracks, write_tracks
from wxlab.cyclones.follow import follow
from wxlab.cyclones.layout import summary
from wxlab.cyclones.scores import by_lead, contingency, difference, errors, spread_and_error
from wxlab.cyclones.stitch import stitch
from wxlab.cyclones.tracking import track

__all__ = [
    "PRESETS",
    "Cliper",
    "Criteria",
    "best_tracks",
    "by_lead",
    "contingency",
    "detect",
    "difference",
    "errors",
    "follow",
    "match",
    "mean_track",
    "no_forecast",
    "persistence_of_motion",
    "read_tracks",
    "spread_and_error",
    "stitch",
    "strike_probability",
    "summary",
    "track",
    "write_tracks",
]
