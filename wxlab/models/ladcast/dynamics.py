"""What the equations of motion read in wind and geopotential: geostrophic wind, vorticity, divergence.

The paper's autoencoder is told of squared errors alone. These fields are first derivatives, so that errors of small scale count more.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wxlab.channels import split_channel
from wxlab.errors import WxlabError
from wxlab.grids import Grid, is_periodic
from wxlab.normaliser import Normaliser

RADIUS = 6.371e6  # of the Earth, metres
ROTATION = 7.292e-5  # of the Earth, 1/s
TROPICS = 15.0  # degrees of latitude within which wind is not geostrophic
WINDS = {"u_component_of_wind": "v_component_of_wind", "10m_u_component_of_wind": "10m_v_component_of_wind"}


class Dynamics(nn.Module):
    """Fields derived from the channels by central differences, on all rows but the first and the last.

    Of each geopotential Φ the geostrophic wind ``-1/f ∂Φ/∂y``, ``1/f ∂Φ/∂x`` (0 within 15 degrees of the equator); of each pair of winds
    vorticity ``∂v/∂x - 1/cos φ ∂(u cos φ)/∂y``, which is all of the non-divergent part, and divergence ``∂u/∂x + 1/cos φ ∂(v cos φ)/∂y``.
    channels: names.  grid: global, in latitude and longitude.
    Raises WxlabError when the channels have neither geopotential nor both winds, or the grid does not go round the globe.
    """

    columns: Tensor
    rows: Tensor
    cosine: Tensor
    coriolis: Tensor

    def __init__(self, channels: tuple[str, ...], grid: Grid) -> None:
        super().__init__()
        names = [split_channel(name) for name in channels]
        self.heights = [i for i, (variable, _) in enumerate(names) if variable == "geopotential"]
        winds = [(variable, level) for variable, level in names if variable in WINDS and (WINDS[variable], level) in names]
        self.winds = [(names.index(wind), names.index((WINDS[wind[0]], wind[1]))) for wind in winds]
        if not self.heights and not self.winds:
            raise WxlabError(f"the channels {', '.join(channels)} have neither geopotential nor both winds of a level; leave physics=0")
        if not is_periodic(grid) or len(grid.y) < 3:
            raise WxlabError("physics needs a global grid of at least 3 rows; leave physics=0")
        latitude = np.deg2rad(np.asarray(grid.y))
        cosine = np.cos(latitude)
        inverse = np.divide(1, 2 * ROTATION * np.sin(latitude), where=np.abs(np.rad2deg(latitude)) > TROPICS, out=np.zeros_like(latitude))
        east = 2 * RADIUS * cosine * np.deg2rad(grid.x[1] - grid.x[0])
        north = RADIUS * (latitude[2:] - latitude[:-2])
        for name, values in (("columns", east[1:-1]), ("rows", north), ("cosine", cosine), ("coriolis", inverse[1:-1])):
            self.register_buffer(name, torch.from_numpy(values).float()[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Physical fields [B, C, H, W] -> [B, K, H - 2, W]: m/s, and 1/s."""
        found = []
        for i in self.heights:
            found += [-self.coriolis * self._north(x[:, i]), self.coriolis * self._east(x[:, i])]
        cosine = self.cosine[1:-1]
        for i, j in self.winds:
            u, v = x[:, i], x[:, j]
            found.append(self._east(v) - self._north(u * self.cosine) / cosine)
            found.append(self._east(u) + self._north(v * self.cosine) / cosine)
        return torch.stack(found, dim=1)

    def _east(self, x: Tensor) -> Tensor:
        inner = x[..., 1:-1, :]
        return (inner.roll(-1, -1) - inner.roll(1, -1)) / self.columns

    def _north(self, x: Tensor) -> Tensor:
        return (x[..., 2:, :] - x[..., :-2, :]) / self.rows


def units(normaliser: Normaliser | None, channels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """What normalised values become physical by, ``x scale + offset``: offset and scale, [C, 1, 1] each.

    Raises WxlabError where a channel that ``Dynamics`` reads has no such number.
    """
    if normaliser is None:
        raise WxlabError("physics needs the units of the channels; train on a store, or set the model's normaliser")
    values = []
    for name in channels:
        transform = normaliser.transforms[name]
        read = split_channel(name)[0] in {"geopotential", *WINDS, *WINDS.values()}
        if read and not transform.linear:
            raise WxlabError(f"physics needs {name} normalised by an offset and a scale, not by {transform.kind!r}; prepare it so")
        values.append((transform.offset, transform.scale))
    offset, scale = torch.tensor(values, dtype=torch.float32)[:, :, None, None].unbind(1)
    return offset, scale
