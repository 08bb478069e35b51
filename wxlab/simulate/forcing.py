"""Moist Held-Suarez forcing: relaxation, sensible heat, evaporation, condensation, with seasons, days, land and sea.

Formulas (sigma = p/ps, phi latitude, kappa = R/cp), after Held and Suarez 1994,
doi:10.1175/1520-0477(1994)075<1825:APFTIO>2.0.CO;2, with the moist equilibrium temperature of Thatcher and Jablonowski 2016,
doi:10.5194/gmd-9-1263-2016; seasons, land and the condensation threshold are our own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wxlab.simulate import surface
from wxlab.simulate.constants import DAY, GRAVITY, HEAT_CAPACITY, KAPPA, LATENT_HEAT
from wxlab.simulate.core import Nodal, SpectralCore

LATENT_OVER_CP = LATENT_HEAT / HEAT_CAPACITY  # K per kg/kg
SATURATION_A, SATURATION_B = 17.27, 35.86
MELTING = 273.16
THRESHOLD_SIGMA, THRESHOLD = (0.5, 0.7, 0.82, 0.95), (0.65, 0.68, 0.78, 0.94)  # relative humidity above which water condenses
MIXING = ((-2, 12.0), (-3, 30.0))  # upper level of a pair and the time (hours) in which the two exchange their water


def rayleigh_friction(sigma: np.ndarray) -> np.ndarray:
    """Held and Suarez' friction (1/s) per level: 1/day x max(0, (sigma - 0.7)/0.3)."""
    return np.maximum(0, (sigma - 0.7) / 0.3) / DAY


def saturation_humidity(temperature: Tensor, pressure: Tensor) -> Tensor:
    """Specific humidity at saturation (kg/kg): es = 610.78 exp(17.27 (T - 273.16)/(T - 35.86)) Pa, qs = 0.622 es/(p - 0.378 es).

    es is held below a third of p, where the formula would leave its range. Reference: Tetens 1930, as in Murray 1967.
    """
    vapour = 610.78 * torch.exp(SATURATION_A * (temperature - MELTING) / (temperature - SATURATION_B))
    vapour = torch.minimum(vapour, pressure / 3)
    return 0.622 * vapour / (pressure - 0.378 * vapour)


class Forcing:
    """Tendencies of temperature and specific humidity on the grid of a core, for members with their own day of the year.

    ``rain`` [longitude, latitude, member] accumulates kg/m2 until it is read and set to zero by ``take_rain``.
    """

    def __init__(self, core: SpectralCore, height: np.ndarray, start_days: np.ndarray, latent: float) -> None:
        self.core, self.latent = core, latent
        self.start_days = np.asarray(start_days, float)
        self.latitude = core.latitude[None, :, None]
        self.longitude = core.longitude[:, None, None]
        self.height = np.maximum(height, 0)[:, :, None]
        self.land = surface.land_fraction(core.latitude, core.longitude).T[:, :, None]
        sigma = core.sigma.centers
        boundary = np.maximum(0, (sigma - 0.7) / 0.3)
        cosine = np.cos(np.deg2rad(core.latitude))

        def levels(array: np.ndarray) -> Tensor:
            return torch.tensor(array, dtype=torch.float32)

        rate = 1 / 40 + (1 / 4 - 1 / 40) * boundary[None] * cosine[:, None] ** 4
        self._relaxation = levels(rate / DAY)[:, :, None]  # [latitude, level, 1]
        self._log_sigma = levels(np.log(sigma))[:, None]
        self._sigma = levels(sigma)[:, None]
        self._static = levels(10 * cosine**2)[:, None, None]
        self._threshold = levels(np.interp(sigma, THRESHOLD_SIGMA, THRESHOLD))[:, None]
        self._wet = levels(1 - 0.65 * self.land)
        self._exner = float(sigma[-1] ** KAPPA)
        self._season_land = levels(self.land * np.sin(np.deg2rad(self.latitude)))
        self.rain = torch.zeros(len(core.longitude), len(core.latitude), len(self.start_days))
        self.set_time(0.0)

    def set_time(self, seconds: float) -> None:
        """Set sun, season and surface to ``seconds`` after the start (00 UTC of each member's first day)."""
        day = self.start_days + seconds / DAY
        hour = seconds / 3600 % 24
        sine = np.sin(np.deg2rad(self.latitude))
        warm = 292 - 63 * sine**2 + 14 * sine * surface.season(day, 30)
        self._equator = torch.tensor(warm, dtype=torch.float32)[:, :, None]  # [1, latitude, 1, member]
        self._contrast = self._season_land[:, :, None] * torch.tensor(8 * surface.season(day, 25), dtype=torch.float32)
        sea = surface.sea_surface_temperature(self.latitude, self.longitude, day)
        ground = surface.land_temperature(self.latitude, self.longitude, self.height, day, hour)
        self.skin = torch.tensor(self.land * ground + (1 - self.land) * sea, dtype=torch.float32)

    def take_rain(self) -> Tensor:
        """Rain (kg/m2) since the last call [longitude, latitude, member]."""
        rain, self.rain = self.rain, torch.zeros_like(self.rain)
        return rain

    def equilibrium(self, log_surface_pressure: Tensor) -> Tensor:
        """Radiative equilibrium (K): max(200, (p/1e5)^kappa (292 - 63 sin2(phi) + 14 sin(phi) season + contrast - 10 ln(p/1e5) cos2(phi))).

        contrast: 8 sin(phi) season sigma^2 over land only.
        """
        log_pressure = log_surface_pressure - float(np.log(1e5)) + self._log_sigma
        target = (self._equator + self._contrast * self._sigma**2).sub(log_pressure * self._static)
        return target.mul_(torch.exp(log_pressure * KAPPA)).clamp_(min=200)

    def __call__(self, nodal: Nodal) -> tuple[Tensor, Tensor]:
        temperature, humidity, surface_pressure = nodal.temperature, nodal.humidity, nodal.surface_pressure
        pressure = surface_pressure * self._sigma
        heating = self.equilibrium(torch.log(surface_pressure)).sub_(temperature).mul_(self._relaxation)
        moistening = torch.zeros_like(humidity)
        self._surface_fluxes(nodal, heating, moistening)
        self._condense(temperature, humidity, pressure, surface_pressure, heating, moistening)
        moistening.add_(humidity.clamp(max=0), alpha=-1 / 3600)
        return heating, moistening

    def _surface_fluxes(self, nodal: Nodal, heating: Tensor, moistening: Tensor) -> None:
        """Evaporation into the two lowest levels and sensible heat into the lowest, faster in wind."""
        lowest = slice(-1, None)
        u, v = nodal.u[:, :, -1], nodal.v[:, :, -1]
        exchange = (0.3 + torch.sqrt(u * u + v * v) / 8) / (1.5 * DAY)
        saturated = saturation_humidity(self.skin, nodal.surface_pressure[:, :, 0])
        moist = exchange * self._wet
        moistening[:, :, -1] += moist * (saturated - nodal.humidity[:, :, -1]).clamp_(min=0)
        self._mix(nodal.humidity, moistening)
        excess = self.skin * self._exner - nodal.temperature[:, :, lowest][:, :, 0]
        # air colder than the ground is stirred, warmer air is hardly cooled
        heating[:, :, -1] += 0.75 * exchange * torch.where(excess > 0, excess, 0.25 * excess)

    def _mix(self, humidity: Tensor, moistening: Tensor) -> None:
        """Shallow convection: humidity is exchanged between neighbouring low levels of equal mass."""
        for upper, hours in MIXING:
            flux = (humidity[:, :, upper + 1] - humidity[:, :, upper]) / (3600 * hours)
            moistening[:, :, upper] += flux
            moistening[:, :, upper + 1] -= flux

    def _condense(
        self, temperature: Tensor, humidity: Tensor, pressure: Tensor, surface_pressure: Tensor, heating: Tensor, moistening: Tensor
    ) -> None:
        """c = max(0, q - r qs)/(1 + gamma)/3 h; what condenses rains out."""
        saturated = saturation_humidity(temperature, pressure)
        gamma = saturated / (temperature - SATURATION_B) ** 2
        gamma.mul_(LATENT_OVER_CP * SATURATION_A * (MELTING - SATURATION_B)).add_(1).mul_(3 * 3600)
        condensed = humidity.addcmul(saturated, self._threshold, value=-1).clamp_(min=0).div_(gamma)
        heating.add_(condensed, alpha=self.latent * LATENT_OVER_CP)
        moistening.sub_(condensed)
        thickness = self.core.thickness[:, None]
        self.rain += (condensed * thickness).sum(2) * surface_pressure[:, :, 0] * (self.core.step / GRAVITY)
