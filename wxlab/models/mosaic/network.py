"""Mosaic: probabilistic forecasts by block-sparse attention on the HEALPix mesh, every member from one small noise vector.

    grid points -> MLP -> attention interpolation -> U-Net on nested meshes -> attention interpolation -> MLP -> the next state

One step writes the next normalised state itself, not a change. Submodules bear the names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.healpix_mesh import centres, unit_vectors
from wxlab.models.base import Batch, Coordinates, Model, Spec
from wxlab.models.mosaic.attention import ScoreHeads
from wxlab.models.mosaic.blocks import (
    BRANCHES,
    AttentionKind,
    Down,
    Level,
    Order,
    RMSNorm,
    Rotary,
    Stage,
    Style,
    Up,
    initialise,
    standardised,
)
from wxlab.models.mosaic.clock import YearFeature, advanced, day_year
from wxlab.models.mosaic.interpolation import Interpolation

if TYPE_CHECKING:
    from wxlab.rollout import Streams

PLACES = 3  # coordinates of a grid point on the unit sphere, read beside the static fields
CLOCK = 4  # sine and cosine of the day and of the year


class NoiseGenerator(nn.Module):
    """``z = W_z ε``: one vector for all tokens and all blocks of a member's step."""

    def __init__(self, noise_dim: int) -> None:
        super().__init__()
        self.to_noise = nn.Linear(noise_dim, noise_dim, bias=False)

    def forward(self, noise: Tensor) -> Tensor:
        return self.to_noise(noise)


def token_order(grid: Grid) -> np.ndarray:
    """The flat grid point [H W] of each token: along meridians from south to north, from 0° eastwards, whatever the grid's order."""
    rows, columns = np.argsort(grid.y), np.argsort(np.asarray(grid.x) % 360)
    return np.asarray((rows[None, :] * len(columns) + columns[:, None]).ravel())


def token_places(grid: Grid) -> np.ndarray:
    """Longitude and latitude of each token in degrees: float32 [H W, 2]."""
    latitude, longitude = np.meshgrid(grid.y, np.asarray(grid.x) % 360, indexing="ij")
    return np.stack([longitude.ravel(), latitude.ravel()], axis=1)[token_order(grid)].astype(np.float32)


class Mosaic(Model):
    """One step of ``spec.step`` from ``spec.history`` states; ``spec.horizon`` steps are made one after the other, as in a roll-out.

    nside, width, heads, kv_heads, window, block, count: of each level, fine to coarse; the last is the bottleneck. encoder_depth,
    decoder_depth: blocks of the others. Both perceptrons and interpolations have the finest level's width and heads.
    neighbours: points that each interpolation reads.  noise_dim: 0 makes the model deterministic.
    Switches for what the published code does and surely did not mean, ``official`` as published:
    selection_heads: see ``attention.selection_scores``.  year_feature: see ``clock.advanced``.
    Ablations: attention ``dense``.  order ``shuffled``: sparse attention over blocks that are no neighbourhoods.
    compress_first: no blocks and no skip at the finest level, their number added to the next (ours: the paper's variant of that name
    is known by its idea alone).  sparse_every, affine: of the published configuration, 1 and False in every released model.
    kept_static: this many static fields are part of the model (``keep_static``), beside those that the batches bring.
    """

    tokens: Tensor
    points: Tensor
    places: Tensor
    kept: Tensor | None

    def __init__(
        self,
        spec: Spec,
        *,
        nside: Sequence[int],
        width: Sequence[int],
        heads: Sequence[int],
        kv_heads: Sequence[int],
        window: Sequence[int],
        block: Sequence[int],
        count: Sequence[int],
        encoder_depth: Sequence[int],
        decoder_depth: Sequence[int],
        bottleneck_depth: int,
        neighbours: int,
        noise_dim: int,
        mlp_ratio: float,
        attention: AttentionKind,
        selection_heads: ScoreHeads,
        order: Order,
        compress_first: bool,
        year_feature: YearFeature,
        sparse_every: int,
        affine: bool,
        kept_static: int,
    ) -> None:
        super().__init__(
            spec, nside=list(nside), width=list(width), heads=list(heads), kv_heads=list(kv_heads), window=list(window),
            block=list(block), count=list(count), encoder_depth=list(encoder_depth), decoder_depth=list(decoder_depth),
            bottleneck_depth=bottleneck_depth, neighbours=neighbours, noise_dim=noise_dim, mlp_ratio=mlp_ratio, attention=attention,
            selection_heads=selection_heads, order=order, compress_first=compress_first, year_feature=year_feature,
            sparse_every=sparse_every, affine=affine, kept_static=kept_static,
        )  # fmt: skip
        self.year_feature: YearFeature = year_feature
        self.levels = levels = [Level(*sizes) for sizes in zip(nside, width, heads, kv_heads, window, block, count, strict=True)]
        style = Style(attention, selection_heads, order, noise_dim, mlp_ratio, affine)
        channels, first, places = len(spec.channels), width[0], token_places(spec.grid)
        static = len(spec.static) + kept_static
        self.register_buffer("tokens", torch.from_numpy(token_order(spec.grid)), persistent=False)
        self.register_buffer("points", torch.from_numpy(np.argsort(token_order(spec.grid))), persistent=False)
        self.register_buffer("places", standardised(unit_vectors(places)), persistent=False)
        self.register_buffer("kept", torch.zeros(len(places), kept_static) if kept_static else None)
        self.noise_generator = NoiseGenerator(noise_dim) if noise_dim else None
        self.preprocess = nn.Sequential(
            nn.Linear(spec.history * channels + static + PLACES + CLOCK, first, bias=False), RMSNorm(first, affine), nn.SiLU(),
            nn.Linear(first, first, bias=False), RMSNorm(first, affine),
        )  # fmt: skip
        mesh = centres(nside[0])
        self.interp_to_hp = Interpolation(places, mesh, neighbours, first, heads[0], affine)
        down, up, middle = list(encoder_depth), list(decoder_depth), bottleneck_depth
        if compress_first:
            down, up, middle = _moved(down, up, middle)
        rotaries = [Rotary(level.nside, level.head_width) for level in levels]

        def stage(index: int, depth: int) -> Stage:
            return Stage(levels[index], depth, style, sparse_every, rotaries[index])

        last = len(levels) - 1
        self.encoder_stages = nn.ModuleList(stage(i, down[i]) for i in range(last))
        self.downsample_layers = nn.ModuleList(Down(fine, coarse, affine) for fine, coarse in pairwise(levels))
        self.bottleneck = stage(last, middle)
        self.upsample_layers = nn.ModuleList(Up(coarse, fine, affine) for coarse, fine in pairwise(levels[::-1]))
        self.decoder_stages = nn.ModuleList(stage(i, up[i]) for i in reversed(range(last)))
        self.norm_before_interp_ll = RMSNorm(first, affine)
        self.interp_to_ll = Interpolation(mesh, places, neighbours, first, heads[0], affine)
        self.postprocess = nn.Sequential(
            RMSNorm(first, affine), nn.Linear(first, first, bias=False), nn.SiLU(), nn.Linear(first, channels, bias=False)
        )
        self._initialise()

    def _initialise(self) -> None:
        """Weights as published; interpolations and gates keep torch's default."""
        linears = {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}
        default = ("interp_to_", "strategy")
        small = (".attention.to_o", ".ffn.w2", ".noise_bias", "upsample_layers.", "noise_generator.")
        named = {name: layer for name, layer in linears.items() if not any(part in name for part in default)}
        minor = [name for name in named if any(part in name for part in small)]
        initialise([layer for name, layer in named.items() if name not in minor], [named[name] for name in minor])

    def keep_static(self, fields: Tensor) -> None:
        """Make static fields [kept_static, H, W], in any unit, part of the model."""
        self.kept = self._static_columns(fields).to(self.places)

    def _static_columns(self, fields: Tensor) -> Tensor:
        """Static fields [S, H, W] as standardised columns [tokens, S]: unweighted over the grid, so that their unit does not matter."""
        return standardised(fields.flatten(1)[:, self.tokens].T)

    def forward(self, history: Tensor, day_year: Tensor, noise: Tensor | None = None, static: Tensor | None = None) -> Tensor:
        """One step of every member.

        history [B, T, C, H, W]: normalised states, oldest first.  day_year [B, 2]: how much of the day and of the year has passed at the
        last of them.  noise [B, M, E] or [B, E]: standard normal numbers; None for a deterministic model.
        static [S, H, W]: the fields that ``spec.static`` names.
        Returns the next normalised states [B, M, C, H, W], or [B, C, H, W] where there is no member axis.
        Raises WxlabError where any of them is missing or does not fit.
        """
        self._check(history, day_year, noise, static)
        x = self.interp_to_hp(self.preprocess(self._features(history, day_year, static)))  # [B, N, D]
        z = None
        if self.noise_generator is not None and noise is not None:
            members = noise.shape[1] if noise.ndim == 3 else 1
            z = self.noise_generator(noise.reshape(-1, noise.shape[-1]))  # [B M, E]
            x = x.repeat_interleave(members, dim=0)  # members are one until here
        x = self.interp_to_ll(self.norm_before_interp_ll(self._mesh(x, z)))  # [B M, H W, D]
        with torch.autocast(x.device.type, enabled=False):  # half precision would round the state itself to 11 bits
            out = self.postprocess(x.to(self.places.dtype)).transpose(1, 2)  # [B M, C, H W]
        state = out[..., self.points].unflatten(-1, self.spec.grid.shape)
        return state if noise is None or noise.ndim == 2 else state.unflatten(0, (len(history), -1))

    def _check(self, history: Tensor, day_year: Tensor, noise: Tensor | None, static: Tensor | None) -> None:
        spec, expected = self.spec, self.config["noise_dim"]
        shape = (spec.history, len(spec.channels), *spec.grid.shape)
        if tuple(history.shape[1:]) != shape:
            raise WxlabError(
                f"mosaic was given a history of shape {list(history.shape)}; it reads [batch, {', '.join(map(str, shape))}]: "
                f"{spec.history} states every {spec.history_step / 3600:g} h, {len(spec.channels)} channels, rows, columns"
            )
        if tuple(day_year.shape) != (len(history), 2):
            raise WxlabError(f"mosaic was given a clock of shape {list(day_year.shape)}; it reads the share of day and year of each sample")
        if noise is not None and noise.ndim not in (2, 3):
            raise WxlabError(f"mosaic was given noise of shape {list(noise.shape)}; it reads [batch, numbers] or [batch, members, numbers]")
        given = 0 if noise is None else noise.shape[-1]
        if given != expected:
            raise WxlabError(f"mosaic was given noise of {given} numbers and reads {expected} for each member")
        if noise is not None and len(noise) != len(history):
            raise WxlabError(f"mosaic was given noise for {len(noise)} samples and histories of {len(history)}")
        wanted = (len(spec.static), *spec.grid.shape)
        if spec.static and (static is None or tuple(static.shape) != wanted):
            found = "none" if static is None else f"an array of shape {list(static.shape)}"
            raise WxlabError(
                f"mosaic reads the static fields {', '.join(spec.static)}, an array of shape {list(wanted)}, and was given {found}; "
                "prepare the store with static=[...]"
            )

    def _features(self, history: Tensor, day_year: Tensor, static: Tensor | None) -> Tensor:
        """What each grid point reads: [B, H W, T C + S + 3 + 4], states oldest first, then static fields, place and time."""
        states = history.flatten(3).flatten(1, 2)[..., self.tokens].transpose(1, 2)  # [B, H W, T C]
        columns = [self.kept] if self.kept is not None else []
        if self.spec.static and static is not None:
            columns.append(self._static_columns(static))
        fixed = torch.cat([*columns, self.places], dim=1).to(states)
        angles = (2 * torch.pi * day_year).unsqueeze(-1)  # [B, 2, 1]
        clock = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).to(states)  # sin day, cos day, sin year, cos year
        shape = states.shape[:2]
        return torch.cat([states, fixed.expand(shape[0], -1, -1), clock.unsqueeze(1).expand(*shape, -1)], dim=-1)

    def _mesh(self, x: Tensor, z: Tensor | None) -> Tensor:
        """The U-Net: [B, N, D] -> [B, N, D] on the finest mesh."""
        skips: list[Tensor | None] = []
        for stage, down in zip(self.encoder_stages, self.downsample_layers, strict=True):
            x = stage(x, z)
            skips.append(None if self.config["compress_first"] and not skips else x)
            x = down(x)
        x = self.bottleneck(x, z)
        for up, stage in zip(self.upsample_layers, self.decoder_stages, strict=True):
            x = stage(up(x, skips.pop()), z)
        return x

    def roll(self, batch: Batch, noise: Tensor | None, calls: int = 0) -> Tensor:
        """``spec.horizon`` steps of every member: [B, M, To, C, H, W].

        noise [B, M, To, E], or None: one member.  calls: how many times the model has been called since the initial time.
        """
        spec, size = self.spec, len(batch)
        members = 1 if noise is None else noise.shape[1]
        history, frames = batch.history, []
        place = day_year(batch.time[:, spec.history - 1].repeat_interleave(members) - calls * spec.horizon * spec.step)
        for step in range(spec.horizon):
            now = advanced(place, calls * spec.horizon + step, spec.step, self.year_feature).to(history)
            if len(history) == size:  # members have read the same so far
                now, eps = now[::members], None if noise is None else noise[:, :, step]
            else:
                eps = None if noise is None else noise[:, :, step].flatten(0, 1)
            state = self(history, now, eps, batch.static).reshape(size * members, *history.shape[2:])
            frames.append(state)
            if step + 1 < spec.horizon:
                past = history if len(history) == len(state) else history.repeat_interleave(members, dim=0)
                history = torch.cat([past[:, 1:], state.unsqueeze(1).to(past)], dim=1)
        return torch.stack(frames, dim=1).unflatten(0, (size, members))

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        """Centres of pixels, blocks and windows of the mesh (degrees), where it is not shuffled, and the names of branches."""
        found: Coordinates = {"branch": (("branch",), list(BRANCHES))} if "branch" in sizes else {}
        if self.config["order"] == "shuffled":
            return found
        pixel = unit_vectors(centres(int(kind.rpartition("_nside")[2]))).double()
        for axis, length in sizes.items():
            if axis in ("head", "key_head", "branch", "rank"):
                continue
            shape = (sizes["window"], length) if "window" in sizes and axis != "window" else (length,)
            x, y, z = pixel.reshape(*shape, -1, 3).mean(-2).unbind(-1)
            axes = ("window", axis) if len(shape) == 2 else (axis,)
            found[f"{axis}_latitude"] = axes, torch.atan2(z, torch.hypot(x, y)).rad2deg().numpy()
            found[f"{axis}_longitude"] = axes, (torch.atan2(y, x).rad2deg() % 360).numpy()
        return found

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        if self.noise_generator is None:
            return self.repeat_members(self.roll(batch, None, generator.call if generator is not None else 0)[:, 0], members)
        if generator is None:
            raise WxlabError("mosaic draws noise and needs a generator; forecast(..., seed=...) gives one")
        shape = (self.spec.horizon, self.config["noise_dim"])
        noise = generator.randn(shape, dtype=batch.history.dtype, device=batch.history.device)  # [B, M, To, E]
        return self.roll(batch, noise, generator.call)


def _moved(down: list[int], up: list[int], middle: int) -> tuple[list[int], list[int], int]:
    """Depths with the finest level's blocks at the next one."""
    if len(down) == 1:
        return [0], [0], middle + down[0] + up[0]
    return [0, down[0] + down[1], *down[2:]], [0, up[0] + up[1], *up[2:]], middle
