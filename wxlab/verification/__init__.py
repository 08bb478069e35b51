"""Verification: scores by lead time, references to beat, how sure a difference is, and what diagrams are drawn from."""

from wxlab.verification.baselines import climatology_forecast, persistence
from wxlab.verification.compare import bootstrap_difference, scorecard
from wxlab.verification.diagrams import exceedance, radial_spectra, rank_histogram, reliability
from wxlab.verification.perceptual import fvd, lpips
from wxlab.verification.scoring import verify
from wxlab.verification.thresholds import thresholds_of

__all__ = [
    "bootstrap_difference",
    "climatology_forecast",
    "exceedance",
    "fvd",
    "lpips",
    "persistence",
    "radial_spectra",
    "rank_histogram",
    "reliability",
    "scorecard",
    "thresholds_of",
    "verify",
]
