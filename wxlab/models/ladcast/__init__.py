"""LaDCast: a spherical deep-compression autoencoder, and diffusion of its latents into ensembles of forecasts."""

from __future__ import annotations

from wxlab.models import Entry
from wxlab.models.ladcast.autoencoder import Autoencoder, latent_names
from wxlab.models.ladcast.autoencoder import build as build_autoencoder
from wxlab.models.ladcast.forecaster import LatentForecaster, sampling_steps
from wxlab.models.ladcast.network import STEP, Ladcast
from wxlab.models.ladcast.network import build as build_transformer
from wxlab.models.ladcast.official_autoencoder import load_official as load_autoencoder
from wxlab.models.ladcast.official_autoencoder import save_official as save_autoencoder
from wxlab.models.ladcast.official_transformer import load_official as load_transformer
from wxlab.models.ladcast.official_transformer import save_official as save_transformer
from wxlab.models.ladcast.recipe import Denoising, Reconstruction
from wxlab.models.ladcast.statistics import CHANNELS, GRID, LATENT_GRID, SIXTH, STATIC, evaluation_times, latent_statistics, read_statistics

__all__ = [
    "AUTOENCODER",
    "CHANNELS",
    "TRANSFORMER",
    "Autoencoder",
    "Denoising",
    "Ladcast",
    "LatentForecaster",
    "Reconstruction",
    "evaluation_times",
    "latent_statistics",
    "load_autoencoder",
    "load_transformer",
    "read_statistics",
    "sampling_steps",
    "save_autoencoder",
    "save_transformer",
]

WEATHER = (
    "2m_temperature", "mean_sea_level_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind", "geopotential_850",
    "geopotential_500", "temperature_850", "temperature_500",
)  # fmt: skip
_STATE = {"history": 1, "horizon": 1, "step": STEP}
_LEVELS = {"blocks": ("res", "res", "evit", "evit"), "scales": ((), (), (5,), (5,)), "head_dim": 32}
_PAPER = {**_STATE, **_LEVELS, "channels": CHANNELS, "grid": GRID, "layers": (4, 4, 4, 4)}

AUTOENCODER = Entry(
    name="ladcast_autoencoder",
    title="LaDCast's spherical deep-compression autoencoder",
    presets={
        "tiny": {
            **_STATE, "channels": WEATHER[:3], "grid": (16, 32), "latent": 4, "widths": (8, 16), "layers": (1, 1),
            "blocks": ("res", "evit"), "scales": ((), (3,)), "head_dim": 8,
        },
        "demo": {
            **_STATE, "channels": WEATHER, "grid": (32, 64), "latent": 16, "widths": (24, 48, 96), "layers": (1, 1, 1),
            "blocks": ("res", "res", "evit"), "scales": ((), (), (5,)), "head_dim": 24,
        },
        "paper_84": {**_PAPER, "static": STATIC, "latent": 84, "widths": (252, 504, 504, 1008)},
        "paper_1024": {**_PAPER, "static": (*STATIC, SIXTH), "latent": 1024, "widths": (512, 1024, 1024, 2048)},
    },
    build=build_autoencoder,
    recipe=Reconstruction,
    official=load_autoencoder,
    official_licence="MIT",
    citation="Zhuang and Duraisamy 2025, LaDCast: a latent diffusion model for medium-range ensemble weather forecasting, arXiv:2506.09193",
    options=frozenset({"latent", "widths", "layers", "blocks", "scales", "head_dim", "out_shortcut", "in_shortcut", "activation"}),
)  # fmt: skip

_FRAMES = {"history": 1, "horizon": 4, "step": STEP}
_LATENTS = {**_FRAMES, "channels": latent_names(84), "grid": LATENT_GRID, "head_dim": 128}

TRANSFORMER = Entry(
    name="ladcast",
    title="LaDCast: latent diffusion transformer",
    presets={
        "tiny": {
            **_FRAMES, "channels": latent_names(4), "grid": (4, 8), "horizon": 2, "heads": 2, "head_dim": 16, "dual": 1, "single": 1,
            "refiner": 1, "mlp_ratio": 2, "sampling_steps": 4,
        },
        "demo": {
            **_FRAMES, "channels": latent_names(16), "grid": (8, 16), "heads": 4, "head_dim": 32, "dual": 1, "single": 3, "refiner": 1,
            "patch": 2, "changes": True, "start": "near",
        },
        "375M": {**_LATENTS, "heads": 12, "dual": 2, "single": 4, "refiner": 1},
        "1.6B": {**_LATENTS, "heads": 16, "dual": 5, "single": 10, "refiner": 3},
    },
    build=build_transformer,
    recipe=Denoising,
    official=load_transformer,
    official_licence="MIT",
    citation=AUTOENCODER.citation,
    options=frozenset(
        {
            "heads", "head_dim", "dual", "single", "refiner", "mlp_ratio", "patch", "patch_time", "position", "theta", "axes",
            "latitude_factor", "year", "sigma_data", "changes", "start", "sampler", "sampling_steps", "churn", "noise", "initial_noise",
        }
    ),
)  # fmt: skip
