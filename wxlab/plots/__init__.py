"""Figures and widgets. Functions return the Figure they drew; nothing here downloads anything."""

from __future__ import annotations

from wxlab.plots.alignment import plot_cka, plot_cka_layers
from wxlab.plots.animation import Animation, animate
from wxlab.plots.attention_explorer import explore_attention
from wxlab.plots.bars import plot_bars
from wxlab.plots.conservation import plot_conservation
from wxlab.plots.couplings import plot_couplings
from wxlab.plots.degrees import plot_degrees
from wxlab.plots.ensemble import explore_ensemble, plot_zonal
from wxlab.plots.experts import plot_choices, plot_forgetting, plot_overlap, plot_shares, plot_tensors
from wxlab.plots.explorer import explore
from wxlab.plots.extension_explorer import explore_extension
from wxlab.plots.health import plot_health
from wxlab.plots.holo import holo_comparison
from wxlab.plots.losses import LiveLoss, plot_losses
from wxlab.plots.maps import plot_comparison, plot_map, plot_maps
from wxlab.plots.mesh import explore_blocks, plot_mesh
from wxlab.plots.noise import plot_noise
from wxlab.plots.nowcast import (
    plot_exceedance,
    plot_frames,
    plot_performance,
    plot_rank_histogram,
    plot_reliability,
    plot_spectra,
    plot_thresholds,
)
from wxlab.plots.nowcast_explorer import explore_nowcast
from wxlab.plots.overview import plot_availability, plot_climatology, plot_histograms, plot_normalised
from wxlab.plots.scales import plot_ratio, plot_resolution, plot_response
from wxlab.plots.series import plot_scores, plot_series
from wxlab.plots.spectra_explorer import explore_spectra
from wxlab.plots.style import use_style
from wxlab.plots.tables import plot_attention, plot_scorecard
from wxlab.plots.track_explorer import explore_tracks, holo_tracks
from wxlab.plots.tracks import plot_spaghetti, plot_strike, plot_track_errors, plot_tracks

__all__ = [
    "Animation",
    "LiveLoss",
    "animate",
    "explore",
    "explore_attention",
    "explore_blocks",
    "explore_ensemble",
    "explore_extension",
    "explore_nowcast",
    "explore_spectra",
    "explore_tracks",
    "holo_comparison",
    "holo_tracks",
    "plot_attention",
    "plot_availability",
    "plot_bars",
    "plot_choices",
    "plot_cka",
    "plot_cka_layers",
    "plot_climatology",
    "plot_comparison",
    "plot_conservation",
    "plot_couplings",
    "plot_degrees",
    "plot_exceedance",
    "plot_forgetting",
    "plot_frames",
    "plot_health",
    "plot_histograms",
    "plot_losses",
    "plot_map",
    "plot_maps",
    "plot_mesh",
    "plot_noise",
    "plot_normalised",
    "plot_overlap",
    "plot_performance",
    "plot_rank_histogram",
    "plot_ratio",
    "plot_reliability",
    "plot_resolution",
    "plot_response",
    "plot_scorecard",
    "plot_scores",
    "plot_series",
    "plot_shares",
    "plot_spaghetti",
    "plot_spectra",
    "plot_strike",
    "plot_tensors",
    "plot_thresholds",
    "plot_track_errors",
    "plot_tracks",
    "plot_zonal",
    "use_style",
]
