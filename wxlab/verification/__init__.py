"""Verification: scores by lead time, references to beat, and how sure a difference is."""

from wxlab.verification.baselines import climatology_forecast, persistence
from wxlab.verification.compare import bootstrap_difference, scorecard
from wxlab.verification.scoring import verify

__all__ = ["bootstrap_difference", "climatology_forecast", "persistence", "scorecard", "verify"]
