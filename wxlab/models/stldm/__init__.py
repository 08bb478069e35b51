"""STLDM: radar nowcasts by latent diffusion from a first estimate."""

from __future__ import annotations

from wxlab.models import Entry
from wxlab.models.stldm.network import SAMPLING, SIZES, STLDM, build
from wxlab.models.stldm.official import load_official, save_official
from wxlab.models.stldm.presets import PRESETS
from wxlab.models.stldm.recipe import recipe

__all__ = ["ENTRY", "PRESETS", "STLDM", "load_official", "recipe", "save_official"]

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
