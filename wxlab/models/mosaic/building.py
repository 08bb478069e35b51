"""From a Spec and settings to a Mosaic: defaults, and every size checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

from wxlab.errors import WxlabError, unknown
from wxlab.grids import is_global
from wxlab.healpix_mesh import require_nside
from wxlab.models.base import Spec
from wxlab.models.mosaic.attention import ScoreHeads
from wxlab.models.mosaic.blocks import AttentionKind, Level, Order
from wxlab.models.mosaic.clock import YearFeature
from wxlab.models.mosaic.network import Mosaic

DEFAULTS: dict[str, Any] = {
    "nside": (64, 32, 16),
    "width": (768, 1024, 1280),
    "heads": (12, 16, 20),
    "kv_heads": (3, 4, 5),
    "window": (1024, 1024, 1024),
    "block": (128, 128, 128),
    "count": (24, 12, 4),
    "encoder_depth": (4, 4),
    "decoder_depth": (2, 2),
    "bottleneck_depth": 2,
    "neighbours": 24,
    "noise_dim": 32,
    "mlp_ratio": 4.0,
    "attention": "block_sparse",
    "selection_heads": "official",
    "order": "nested",
    "compress_first": False,
    "year_feature": "official",
    "sparse_every": 1,
    "affine": False,
    "kept_static": 0,
}
PER_LEVEL = ("nside", "width", "heads", "kv_heads", "window", "block", "count")
CHOICES = {"attention": AttentionKind, "selection_heads": ScoreHeads, "order": Order, "year_feature": YearFeature}


def build(spec: Spec, **config: Any) -> Mosaic:
    """A Mosaic of a Spec, every size checked. Forcing is not read, so the model's Spec names none."""
    settings: dict[str, Any] = {**DEFAULTS, **config}
    for name, kind in CHOICES.items():
        if settings[name] not in get_args(kind):
            raise unknown(name, settings[name], get_args(kind))
    if spec.grid.kind != "latlon":
        raise WxlabError("mosaic needs latitudes and longitudes, and this grid is in metres; use a model for radar, such as stldm")
    if not is_global(spec.grid):
        raise WxlabError("mosaic's mesh covers the globe, and this grid does not; give a global grid")
    require_own_output(spec)
    _check_whole(settings)
    _check_levels(settings)
    stochastic: Literal["none", "noise"] = "noise" if settings["noise_dim"] else "none"
    return Mosaic(dataclasses.replace(spec, forcing=(), stochastic=stochastic), **settings)


def require_own_output(spec: Spec) -> None:
    """Raise WxlabError for a Spec of several steps whose states are further apart than the steps."""
    if spec.horizon > 1 and spec.history_step != spec.step:
        raise WxlabError(
            f"mosaic reads its own output when horizon={spec.horizon}, so history_step ({spec.history_step} s) must be step ({spec.step} s)"
        )


def _check_whole(settings: dict[str, Any]) -> None:
    """Raise WxlabError unless numbers are whole and large enough, and there is one of each for each level."""
    counted = settings["nside"]
    levels = len(counted) if isinstance(counted, Sequence) else 0
    if levels < 2:
        raise WxlabError(f"nside={counted!r} must name at least two levels, fine to coarse, such as (16, 8)")
    for name in (*PER_LEVEL, "encoder_depth", "decoder_depth"):
        wanted, least = (levels, 1) if name in PER_LEVEL else (levels - 1, 0)
        values = settings[name]
        if not isinstance(values, Sequence) or len(values) != wanted or not all(_whole(value, least) for value in values):
            given = list(values) if isinstance(values, Sequence) else values
            raise WxlabError(
                f"{name}={given!r} must be {wanted} whole numbers of at least {least}, one for each of the {levels} levels"
                + ("" if name in PER_LEVEL else " but the bottleneck")
            )
    for name, least in (("bottleneck_depth", 0), ("neighbours", 1), ("noise_dim", 0), ("kept_static", 0)):
        if not _whole(settings[name], least):
            raise WxlabError(f"{name}={settings[name]!r} must be a whole number of at least {least}")
    if not isinstance(settings["sparse_every"], int):
        raise WxlabError(f"sparse_every={settings['sparse_every']!r} must be a whole number; 0 leaves local attention alone")
    for name in ("compress_first", "affine"):
        if not isinstance(settings[name], bool):
            raise WxlabError(f"{name}={settings[name]!r} must be True or False")
    ratio = settings["mlp_ratio"]
    if not isinstance(ratio, (int, float)) or not ratio * min(settings["width"]) >= 1:
        raise WxlabError(f"mlp_ratio={ratio!r} leaves no hidden unit; give a ratio such as 4")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_levels(settings: dict[str, Any]) -> None:
    """Raise WxlabError where tokens, heads and blocks of a level do not divide."""
    levels = [Level(*sizes) for sizes in zip(*(settings[name] for name in PER_LEVEL), strict=True)]
    for level in levels:
        require_nside(level.nside)
        where = f"at nside {level.nside}, with {level.tokens} tokens,"
        for name in ("window", "block"):
            size = getattr(level, name)
            if level.tokens % size:
                fits = [n for n in range(1, level.tokens + 1) if level.tokens % n == 0]
                near = sorted(sorted(fits, key=lambda n: abs(n - size))[:2])
                raise WxlabError(f"{where} {name}={size} leaves a rest; give a divisor of {level.tokens}, such as {near[0]} or {near[1]}")
        if level.count > level.tokens // level.block:
            most = level.tokens // level.block
            raise WxlabError(f"{where} count={level.count} blocks cannot be chosen of {most} blocks of {level.block}; give at most {most}")
        if level.width % (4 * level.heads):
            raise WxlabError(f"{where} width={level.width} must be a multiple of {4 * level.heads}: four channels for each head")
        if level.heads % level.kv_heads:
            raise WxlabError(f"{where} heads={level.heads} must be a multiple of kv_heads={level.kv_heads}")
    for fine, coarse in pairwise(levels):
        if fine.nside <= coarse.nside:
            raise WxlabError(f"nside={[level.nside for level in levels]} must fall from level to level, such as (16, 8)")
