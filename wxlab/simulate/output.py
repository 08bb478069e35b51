"""From spectral states on sigma levels to a Dataset on a grid and pressure levels, in WeatherBench 2's names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wxlab.grids import Grid
from wxlab.simulate import surface
from wxlab.simulate.constants import GAS_CONSTANT, GRAVITY
from wxlab.simulate.core import Evaluator, Nodal, SpectralCore
from wxlab.simulate.forcing import saturation_humidity

LEVELS = (100, 250, 500, 700, 850, 925, 1000)  # hPa
LAPSE = 0.0065  # K/m, below the lowest level
SKIN_SHARE = 0.4  # of the ground's temperature in the air at 2 m

Fields = dict[str, NDArray[np.float32]]

UNITS = {
    "geopotential": "m**2 s**-2",
    "temperature": "K",
    "u_component_of_wind": "m s**-1",
    "v_component_of_wind": "m s**-1",
    "specific_humidity": "kg kg**-1",
    "relative_humidity": "1",
    "vertical_velocity": "Pa s**-1",
    "2m_temperature": "K",
    "10m_u_component_of_wind": "m s**-1",
    "10m_v_component_of_wind": "m s**-1",
    "mean_sea_level_pressure": "Pa",
    "total_column_water_vapour": "kg m**-2",
    "total_cloud_cover": "1",
    "sea_surface_temperature": "K",
    "geopotential_at_surface": "m**2 s**-2",
    "land_sea_mask": "1",
    "slope_of_sub_gridscale_orography": "1",
    "standard_deviation_of_orography": "m",
}
LEVEL_VARIABLES = tuple(UNITS)[:7]
SURFACE_VARIABLES = tuple(UNITS)[7:14]
STATIC_VARIABLES = tuple(UNITS)[14:]


def units_of(name: str) -> str:
    """Units of a variable; precipitation is in metres of water, as in ERA5."""
    return "m" if name.startswith("total_precipitation") else UNITS[name]


@dataclass
class _Columns:
    """Where the pressure levels lie among the sigma levels [longitude, latitude, pressure level, state]."""

    above: Tensor  # index of the sigma level above
    weight: Tensor  # 0 at the level above, 1 at the one below
    log_pressure: Tensor  # ln p, [level, 1]
    log_surface: Tensor  # ln ps
    below: Tensor  # ln p - ln p of the lowest sigma level, not under 0


def _columns(core: SpectralCore, fields: Nodal, levels: tuple[int, ...]) -> _Columns:
    log_sigma = torch.tensor(np.log(core.sigma.centers), dtype=torch.float32)
    log_pressure = torch.tensor([math.log(100.0 * level) for level in levels])[:, None]
    log_surface = torch.log(fields.surface_pressure)
    place = log_pressure - log_surface
    above = torch.searchsorted(log_sigma, place.contiguous()).sub_(1).clamp_(0, core.levels - 2)
    start = log_sigma[above]
    weight = ((place - start) / (log_sigma[above + 1] - start)).clamp_(0, 1)
    return _Columns(above, weight, log_pressure, log_surface, (place - log_sigma[-1]).clamp_(min=0))


def _interpolate(x: Tensor, columns: _Columns) -> Tensor:
    """Linear in ln p; constant above the highest and below the lowest level."""
    upper = torch.gather(x, 2, columns.above)
    return upper + columns.weight * (torch.gather(x, 2, columns.above + 1) - upper)


def _geopotential(core: SpectralCore, fields: Nodal, ground: Tensor, temperature: Tensor, near: Tensor, columns: _Columns) -> Tensor:
    """Hydrostatic: exact for temperature linear in ln p between levels, constant below the lowest one, and below the ground with
    the lapse rate that the mean sea level pressure uses."""
    k = core.levels
    full = torch.einsum("gh,ijhb->ijgb", core.geopotential_weights, fields.temperature) + ground
    log_sigma = torch.tensor(np.log(core.sigma.centers), dtype=torch.float32)
    place = columns.log_pressure - columns.log_surface
    start = torch.gather(full, 2, columns.above)
    warm = torch.gather(fields.temperature, 2, columns.above)
    inside = start - GAS_CONSTANT * 0.5 * (warm + temperature) * (place - log_sigma[columns.above])
    lowest = full[:, :, k - 1 :] - GAS_CONSTANT * fields.temperature[:, :, k - 1 :] * columns.below
    under = ground - GAS_CONSTANT * (near + 0.5 * LAPSE * ground / GRAVITY) * place
    return torch.where(place > 0, under, torch.where(columns.below > 0, lowest, inside))


CLOUD_SIGMA, CLOUD_THRESHOLD = (0.3, 0.7, 0.95), (0.50, 0.55, 0.82)


def cloud_cover(relative_humidity: Tensor, sigma: NDArray[np.float64]) -> Tensor:
    """Total cloud cover from relative humidity on levels [longitude, latitude, level, state] -> [longitude, latitude, state].

    Each level: c = clip((RH - r)/(1 - r), 0, 1)^2, r = 0.50 for sigma up to 0.3, 0.55 at 0.7, 0.82 from 0.95 on, linear between;
    levels overlap at random: total = 1 - prod(1 - c).
    Reference: the quadratic form of Sundqvist and others 1989 and Slingo 1987, doi:10.1002/qj.49711347710, thresholds our own.
    """
    threshold = torch.tensor(np.interp(sigma, CLOUD_SIGMA, CLOUD_THRESHOLD), dtype=torch.float32)[:, None]
    cover = ((relative_humidity - threshold) / (1 - threshold)).clamp(0, 1) ** 2
    return 1 - torch.prod(1 - cover, dim=2)


class Output:
    """Evaluates batches of states on one grid and set of pressure levels."""

    def __init__(self, core: SpectralCore, orography: Tensor, grid: Grid, levels: tuple[int, ...]) -> None:
        self.core, self.grid, self.levels = core, grid, levels
        self.latitude, self.longitude = np.array(grid.y), np.array(grid.x)
        self._evaluate = Evaluator(core, self.latitude, self.longitude)
        self._ground = self._evaluate.surface(orography)  # m2/s2 [longitude, latitude, 1, 1]
        self.land = surface.land_fraction(self.latitude, self.longitude)
        self._rain_weights = self._linear_weights(core.latitude)

    def _linear_weights(self, source: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Linear interpolation from the core's grid as two matrices: rain must not ring or turn negative as spectral sums do."""
        rows = np.array([np.interp(self.latitude, source, unit) for unit in np.eye(len(source))])
        count = len(self.core.longitude)
        place = self.longitude / 360 * count
        west = np.floor(place).astype(int)
        columns = np.zeros((len(self.longitude), count))
        np.add.at(columns, (np.arange(len(place)), west % count), 1 - (place - west))
        np.add.at(columns, (np.arange(len(place)), (west + 1) % count), place - west)
        return torch.tensor(rows, dtype=torch.float32), torch.tensor(columns, dtype=torch.float32)

    def __call__(self, state: Tensor, rain: Tensor, day: NDArray[np.float64], hour: NDArray[np.float64]) -> Fields:
        """Fields [state, (level,) latitude, longitude] of states [m, l, column, state] with their rain (kg/m2) on the core's grid,
        their day of the year and hour (UTC). Precipitation (m) is under ``total_precipitation``."""
        fields, omega = self._evaluate(state)
        fields.humidity.clamp_(min=0)
        near = fields.temperature[:, :, -1:] * float(self.core.sigma.centers[-1]) ** (-LAPSE * GAS_CONSTANT / GRAVITY)
        out = self._on_levels(fields, omega, near) | self._at_surface(fields, near, day, hour)
        rows, columns = self._rain_weights
        out["total_precipitation"] = torch.einsum("xi,ijs,jy->xys", columns, rain, rows)[:, :, None] / 1000
        return {name: self._arrange(value, name in LEVEL_VARIABLES) for name, value in out.items()}

    @staticmethod
    def _arrange(value: Tensor, has_levels: bool) -> NDArray[np.float32]:
        array = value.permute(3, 2, 1, 0)
        return np.ascontiguousarray((array if has_levels else array[:, 0]).numpy())

    def _on_levels(self, fields: Nodal, omega: Tensor, near: Tensor) -> dict[str, Tensor]:
        columns = _columns(self.core, fields, self.levels)
        temperature = _interpolate(fields.temperature, columns)
        geopotential = _geopotential(self.core, fields, self._ground, temperature, near, columns)
        temperature = temperature * torch.exp(columns.below * (LAPSE * GAS_CONSTANT / GRAVITY))
        humidity = _interpolate(fields.humidity, columns)
        saturated = saturation_humidity(temperature, columns.log_pressure.exp())
        return {
            "geopotential": geopotential,
            "temperature": temperature,
            "u_component_of_wind": _interpolate(fields.u, columns),
            "v_component_of_wind": _interpolate(fields.v, columns),
            "specific_humidity": humidity,
            "relative_humidity": (humidity / saturated).clamp_(0, 1.2),
            "vertical_velocity": _interpolate(omega, columns),
        }

    def _at_surface(self, fields: Nodal, near: Tensor, day: NDArray[np.float64], hour: NDArray[np.float64]) -> dict[str, Tensor]:
        core = self.core
        sigma = torch.tensor(core.sigma.centers, dtype=torch.float32)[:, None]
        height = self._ground / GRAVITY
        sea, ground = self._skin(height, day, hour)
        land = torch.tensor(self.land.T, dtype=torch.float32)[:, :, None, None]
        skin = land * ground + (1 - land) * sea
        water = (fields.humidity * core.thickness[:, None]).sum(2, keepdim=True) * fields.surface_pressure / GRAVITY
        relative = fields.humidity / saturation_humidity(fields.temperature, fields.surface_pressure * sigma)
        return {
            "2m_temperature": (1 - SKIN_SHARE) * near + SKIN_SHARE * skin,
            "10m_u_component_of_wind": 0.8 * fields.u[:, :, -1:],
            "10m_v_component_of_wind": 0.8 * fields.v[:, :, -1:],
            "mean_sea_level_pressure": fields.surface_pressure * torch.exp(self._ground / (GAS_CONSTANT * (near + 0.5 * LAPSE * height))),
            "total_column_water_vapour": water,
            "total_cloud_cover": cloud_cover(relative, core.sigma.centers)[:, :, None],
            "sea_surface_temperature": torch.where(land > 0.5, torch.nan, sea).expand_as(near),
        }

    def _skin(self, height: Tensor, day: NDArray[np.float64], hour: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        latitude, longitude = self.latitude[None, :, None], self.longitude[:, None, None]
        sea = surface.sea_surface_temperature(latitude, longitude, day)
        rise = np.maximum(height[:, :, 0].numpy(), 0)
        ground = surface.land_temperature(latitude, longitude, rise, day, hour)
        sea_tensor, ground_tensor = (torch.tensor(array, dtype=torch.float32)[:, :, None] for array in (sea, ground))
        return sea_tensor, ground_tensor

    def statics(self) -> Fields:
        """Fields that do not change [latitude, longitude]; the sub-grid orography is what the ridges do within a cell."""
        deviation, slope = self._subgrid()
        return {
            "geopotential_at_surface": np.ascontiguousarray(self._ground[:, :, 0, 0].T.numpy()),
            "land_sea_mask": self.land.astype(np.float32),
            "slope_of_sub_gridscale_orography": slope.astype(np.float32),
            "standard_deviation_of_orography": deviation.astype(np.float32),
        }

    def _subgrid(self, points: int = 8) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standard deviation (m) and mean slope of the ridges on ``points`` x ``points`` places within each cell."""
        offsets = (np.arange(points) + 0.5) / points - 0.5
        rows, columns = abs(self.latitude[1] - self.latitude[0]), self.longitude[1] - self.longitude[0]
        latitude = np.clip(self.latitude[:, None] + rows * offsets, -89.9, 89.9).ravel()
        longitude = (self.longitude[:, None] + columns * offsets).ravel()
        height = surface.mountain_height(latitude, longitude)
        metre = 111_195.0  # one degree of a meridian
        small = 0.05
        north = (surface.mountain_height(latitude + small, longitude) - height) / (small * metre)
        east = (surface.mountain_height(latitude, longitude + small) - height) / (small * metre * np.cos(np.deg2rad(latitude))[:, None])
        shape = (len(self.latitude), points, len(self.longitude), points)
        return height.reshape(shape).std((1, 3)), np.hypot(north, east).reshape(shape).mean((1, 3))
