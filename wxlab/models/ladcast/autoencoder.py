"""LaDCast's autoencoder (Zhuang and Duraisamy 2025, arXiv:2506.09193): fields of the whole globe to a latent state and back.

``z = E([x, static])``, ``[x, static] = D(z)``. Deterministic: no draw, no variance, no KL term (the paper's "variational regularisation"
has no counterpart in the published code).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab.errors import WxlabError, is_whole, unknown
from wxlab.grids import Grid, is_periodic
from wxlab.models.base import Batch, Model, Spec
from wxlab.models.ladcast.blocks import ChannelNorm, Down, EViTBlock, ResBlock, Up, group_means
from wxlab.nn.padding import SphereConv, require_global_rows

if TYPE_CHECKING:
    from wxlab.rollout import Streams

BLOCKS = ("res", "evit")
ACTIVATIONS = {"relu": F.relu, "silu": F.silu}
DEFAULTS: dict[str, Any] = {"head_dim": 32, "out_shortcut": True, "in_shortcut": True, "activation": "relu"}
PASS_BYTES = 256 << 20  # of activations of one pass through the network: how many frames go together


def _level(kind: str, width: int, layers: int, scales: Sequence[int], head_dim: int) -> list[nn.Module]:
    return [ResBlock(width) if kind == "res" else EViTBlock(width, head_dim, scales) for _ in range(layers)]


class Encoder(nn.Module):
    """Levels of blocks, each but the last followed by a halving; the latent is a convolution plus means of groups of channels."""

    def __init__(self, channels: int, latent: int, config: dict[str, Any]) -> None:
        super().__init__()
        widths = config["widths"]
        self.conv_in = SphereConv(channels, widths[0], 3)
        self.down_blocks = nn.ModuleList()
        levels = zip(config["blocks"], widths, config["layers"], config["scales"], strict=True)
        for i, (kind, width, layers, scales) in enumerate(levels):
            self.down_blocks.extend(_level(kind, width, layers, scales, config["head_dim"]))
            if i < len(widths) - 1:
                self.down_blocks.append(Down(width, widths[i + 1]))
        self.conv_out = SphereConv(widths[-1], latent, 3)
        self.latent, self.shortcut = latent, config["out_shortcut"]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C + S, H, W] -> [B, L, h, w]."""
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(h) + group_means(h, self.latent) if self.shortcut else self.conv_out(h)


class Decoder(nn.Module):
    """The encoder's levels backwards, each but the deepest begun by a doubling."""

    def __init__(self, channels: int, latent: int, config: dict[str, Any]) -> None:
        super().__init__()
        widths = config["widths"]
        self.conv_in = SphereConv(latent, widths[-1], 3)
        self.up_blocks = nn.ModuleList()
        levels = list(zip(config["blocks"], widths, config["layers"], config["scales"], strict=True))
        for i, (kind, width, layers, scales) in reversed(list(enumerate(levels))):
            if i < len(widths) - 1:
                self.up_blocks.append(Up(widths[i + 1], width))
            self.up_blocks.extend(_level(kind, width, layers, scales, config["head_dim"]))
        self.norm_out = ChannelNorm(widths[0], 1e-7)
        self.conv_out = SphereConv(widths[0], channels, 3)
        self.repeats = widths[-1] // latent if config["in_shortcut"] else 0
        self.activation = ACTIVATIONS[config["activation"]]

    def forward(self, z: Tensor) -> Tensor:
        """z [B, L, h, w] -> [B, C + S, H, W]."""
        h = self.conv_in(z)
        if self.repeats:
            h = h + z.repeat_interleave(self.repeats, dim=1)
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(self.activation(self.norm_out(h)))


class Autoencoder(Model):
    """From a global state [C, H, W] and static fields [S, H, W] to a latent [L, h, w] and back, h = H / 2^(levels - 1).

    latent: channels L.  widths, layers, blocks (``res`` or ``evit``), scales (kernels of the attention's further scales): for each level,
    from the finest.  head_dim: channels of an attention group.  out_shortcut, in_shortcut: the means and repeats around the latent.
    activation: before the last convolution, ``relu`` or ``silu``.
    Its ``predict`` is the reconstruction of the state that it reads: what persistence becomes when it is sent through the latent space.
    The static fields are read and reconstructed; they help, and cost nothing at forecasting.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        latent: int,
        widths: Sequence[int],
        layers: Sequence[int],
        blocks: Sequence[str],
        scales: Sequence[Sequence[int]],
        head_dim: int,
        out_shortcut: bool,
        in_shortcut: bool,
        activation: str,
    ) -> None:
        levels = {"widths": list(widths), "layers": list(layers), "blocks": list(blocks), "scales": [list(s) for s in scales]}
        others = {"head_dim": head_dim, "out_shortcut": out_shortcut, "in_shortcut": in_shortcut, "activation": activation}
        super().__init__(spec, latent=latent, **levels, **others)
        channels = len(spec.channels) + len(spec.static)
        self.encoder = Encoder(channels, latent, self.config)
        self.decoder = Decoder(channels, latent, self.config)

    @property
    def factor(self) -> int:
        """Points of the grid on a side of one latent cell."""
        return 2 ** (len(self.config["widths"]) - 1)

    @property
    def latent_channels(self) -> tuple[str, ...]:
        """Names of the latent channels."""
        return latent_names(self.config["latent"])

    @property
    def latent_grid(self) -> Grid:
        """Centres of the latent cells."""
        y, x = (np.reshape(axis, (-1, self.factor)).mean(1) for axis in (self.spec.grid.y, self.spec.grid.x))
        return Grid(tuple(y), tuple(x))

    @property
    def compression(self) -> float:
        """How many times fewer numbers the latent state has than the channels."""
        rows, columns = self.latent_grid.shape
        return len(self.spec.channels) * self.spec.grid.shape[0] * self.spec.grid.shape[1] / (self.config["latent"] * rows * columns)

    @property
    def frames_at_once(self) -> int:
        """Frames whose activations fit ``PASS_BYTES``."""
        points = self.spec.grid.shape[0] * self.spec.grid.shape[1]
        widest = max(8 * width * points // 4**i for i, width in enumerate(self.config["widths"]))
        return max(1, PASS_BYTES // (4 * widest))

    @property
    def checksum(self) -> str:
        """SHA-256 of what latents depend on: the encoder and the units. Fine-tuning the decoder leaves it as it is."""
        total = hashlib.sha256(repr(self.normaliser.to_dict() if self.normaliser else None).encode())
        if self.normaliser and self.normaliser.climatology:
            total.update(np.ascontiguousarray(self.normaliser.climatology.coefficients).tobytes())
        for name, value in self.encoder.state_dict().items():
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    def with_static(self, x: Tensor, static: Tensor | None) -> Tensor:
        """x [B, C, H, W] and static [S, H, W] or [B, S, H, W] as one tensor [B, C + S, H, W]; x may hold the static fields already.

        Raises WxlabError for other numbers of channels, and for sides that do not divide.
        """
        channels, fields = len(self.spec.channels), len(self.spec.static)
        found = 0 if static is None else static.shape[-3]
        if x.shape[1] + found != channels + fields or (static is not None and found != fields):
            raise WxlabError(
                f"{x.shape[1]} channels and {found} static fields were given, and this autoencoder reads {channels} channels and {fields} "
                f"static fields ({', '.join(self.spec.static) or 'none'}); give them in the order of its spec"
            )
        rows, columns = x.shape[-2:]
        if rows % self.factor or columns % (2 * self.factor):
            raise WxlabError(
                f"{rows}x{columns} points do not divide by {self.factor}x{2 * self.factor}, which this autoencoder needs; crop or regrid"
            )
        return x if static is None else torch.cat([x, static.to(x).expand(len(x), -1, -1, -1)], dim=1)

    def encode(self, x: Tensor, static: Tensor | None = None) -> Tensor:
        """Normalised x [B, C, H, W], static [S, H, W] -> z [B, L, h, w]."""
        return self.encoder(self.with_static(x, static))

    def decode(self, z: Tensor, return_static: bool = False) -> Tensor:
        """z [B, L, h, w] -> normalised [B, C, H, W], or [B, C + S, H, W] with the static fields."""
        if z.shape[1] != self.config["latent"]:
            raise WxlabError(f"{z.shape[1]} latent channels were given, and this autoencoder has {self.config['latent']}")
        fields = self.decoder(z)
        return fields if return_static else fields[:, : len(self.spec.channels)]

    def forward(self, x: Tensor, static: Tensor | None = None) -> Tensor:
        """The reconstruction [B, C + S, H, W] of x [B, C, H, W] and the static fields."""
        return self.decoder(self.encode(x, static))

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        return self.repeat_members(self.decode(self.encode(batch.history[:, -1], batch.static))[:, None], members)


def latent_names(count: int) -> tuple[str, ...]:
    """``latent_0``, ``latent_1``, ...: the levels of a variable ``latent``."""
    return tuple(f"latent_{i}" for i in range(count))


def build(spec: Spec, **config: Any) -> Autoencoder:
    """An autoencoder of a Spec, every size checked. Forcing is not read, so the model's Spec names none."""
    settings = {**DEFAULTS, **config}
    if (spec.history, spec.horizon) != (1, 1):
        raise WxlabError(f"an autoencoder reads and writes one state, but history={spec.history} and horizon={spec.horizon}; set both to 1")
    _check_levels(settings)
    factor = 2 ** (len(settings["widths"]) - 1)
    spec = dataclasses.replace(spec, multiples=(factor, 2 * factor), forcing=())
    rows = spec.grid.shape[0] // factor
    if rows < 2:
        raise WxlabError(f"{factor} rows to a latent cell leave {rows} latent rows, and 2 are needed; take fewer levels or more rows")
    if not is_periodic(spec.grid):
        raise WxlabError("the autoencoder's convolutions go round the globe, and the longitudes of this grid do not; take global fields")
    require_global_rows(spec.grid.y)
    return Autoencoder(spec, **settings)


def _check_levels(settings: dict[str, Any]) -> None:
    """Raise WxlabError for levels that do not fit together."""
    widths, latent, head_dim = settings["widths"], settings["latent"], settings["head_dim"]
    for name in ("widths", "layers", "blocks", "scales"):
        if not isinstance(settings[name], (list, tuple)):
            raise WxlabError(f"{name}={settings[name]!r} must be a list with one entry for each level")
    kernels = [kernel for level in settings["scales"] for kernel in (level if isinstance(level, (list, tuple)) else ["none"])]
    for name, values in (("widths", widths), ("layers", settings["layers"]), ("latent", [latent]), ("head_dim", [head_dim])):
        if not all(is_whole(value) for value in values):
            raise WxlabError(f"{name}={settings[name]!r} must be made of whole numbers of at least 1")
    for name in ("out_shortcut", "in_shortcut"):
        if not isinstance(settings[name], bool):
            raise WxlabError(f"{name}={settings[name]!r} must be True or False")
    lengths = {name: len(settings[name]) for name in ("widths", "layers", "blocks", "scales")}
    if len(set(lengths.values())) > 1 or not widths:
        raise WxlabError(f"widths, layers, blocks and scales have {list(lengths.values())} entries; give one for each level")
    for kind in settings["blocks"]:
        if kind not in BLOCKS:
            raise unknown("kind of block", kind, BLOCKS)
    if settings["activation"] not in ACTIVATIONS:
        raise unknown("activation", settings["activation"], ACTIVATIONS)
    if not all(is_whole(kernel) and kernel % 2 for kernel in kernels):
        raise WxlabError(f"scales={settings['scales']!r} must be a list of odd kernels for each level, which may be empty")
    for upper, lower in pairwise(widths):
        if lower % 4 or 4 * upper % lower:
            raise WxlabError(f"widths={list(widths)} do not halve: {lower} must divide by 4, and 4 x {upper} by {lower}")
    if widths[-1] % latent:
        raise WxlabError(f"latent={latent} must divide the deepest width, {widths[-1]}")
    small = [width for width, kind in zip(widths, settings["blocks"], strict=True) if kind == "evit" and width < head_dim]
    if small:
        raise WxlabError(f"head_dim={head_dim} is more than the width of an attention level, {min(small)}; take a smaller one")
