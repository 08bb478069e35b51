"""The dynamical core: dry primitive equations with a passive tracer on sigma levels, spectral, many members at once.

``dinosaur-torch`` gives the grid, the spherical-harmonic basis, the vertical weights and the semi-implicit matrices. The explicit
terms are its equations in another order of computation: all fields of all members pass through one transform, members lie
along the last axis, and the physics is evaluated once in a time step on the fields that the dynamics has transformed anyway
(three times faster than the package's own stepper; tests hold both equal). Another core needs only the public methods here.

Axes: modal [m, l, column, member], nodal [longitude, latitude, level, member]; levels from the top down; SI units throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from dinosaur_torch import associated_legendre, coordinate_systems, primitive_equations, scales, sigma_coordinates, units
from dinosaur_torch.spherical_harmonic import Grid, GridSpec
from torch import Tensor

from wxlab.simulate.constants import GAS_CONSTANT, GRAVITY, KAPPA, RADIUS, ROTATION

REFERENCE_TEMPERATURE = 288.0  # K; the state holds differences from it
RESOLUTIONS = ("T21", "T31", "T42")

PHYSICAL = units.SimUnits(RADIUS, ROTATION, GRAVITY, GAS_CONSTANT, 461.5, 1859.0, KAPPA, scales.DEFAULT_SCALE)


@dataclass
class Nodal:
    """What the physics sees [longitude, latitude, level, member]: wind (m/s), temperature (K), specific humidity (kg/kg),
    surface pressure (Pa, one level)."""

    u: Tensor
    v: Tensor
    temperature: Tensor
    humidity: Tensor
    surface_pressure: Tensor


# fields -> tendencies of temperature (K/s) and specific humidity (1/s)
Physics = Callable[[Nodal], tuple[Tensor, Tensor]]


class SpectralCore:
    """Dry primitive equations (Durran 2010, section 8.6) with one tracer, stepped by Crank-Nicolson and Heun.

    resolution: T21, T31 or T42 with quadratic dealiasing.  levels: equidistant in sigma.  step: seconds.
    friction: Rayleigh rates per level (1/s).  filter_hours, filter_order: each step times exp(-(l/lmax)^(2 order) dt/filter_hours).
    external_hours: time in which the external gravity wave (the vertical mean of divergence) is damped.
    The state is one tensor [m, l, 4 levels + 1, member]: vorticity, humidity, divergence, temperature deviation, ln surface pressure.
    """

    def __init__(
        self,
        resolution: str,
        levels: int,
        step: float,
        friction: np.ndarray,
        *,
        filter_hours: float = 1.0,
        filter_order: int = 4,
        external_hours: float = math.inf,
    ) -> None:
        self.spec = getattr(GridSpec, resolution)(radius=RADIUS)
        self.grid = Grid(self.spec)
        self.sigma = sigma_coordinates.SigmaCoordinates.equidistant(levels, np.float64)
        self.levels, self.step = levels, step
        self.longitude = np.rad2deg(self.spec.longitudes)
        self.latitude = np.rad2deg(self.spec.latitudes)
        self.mean_surface_pressure = 0.0  # Pa; what every step holds; 0: nothing is held
        self._work: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._transforms()
        self._derivatives()
        self._vertical(external_hours)
        self._damping(friction, filter_hours, filter_order)

    # -- constants ----------------------------------------------------------------------------------------------------------

    def _transforms(self) -> None:
        harmonics = self.grid.sh
        self._fourier = harmonics.f.contiguous()  # [i, m]
        self._legendre = harmonics.p.contiguous()  # [m, j, l]
        self._fourier_t = self._fourier.T.contiguous()
        self._legendre_t = (harmonics.p * harmonics.w[:, None]).transpose(1, 2).contiguous()  # [m, l, j]
        self.modal_shape = tuple(harmonics.modal_shape)
        weights = self.spec.quadrature_weights / (2 * np.pi) / 2
        self._area = torch.tensor(weights, dtype=torch.float64)[None, :, None]  # sums to 1 over the sphere

    def _derivatives(self) -> None:
        order, degree = np.meshgrid(*self.grid.sh.modal_axes, indexing="ij")
        valid = np.abs(order) <= degree
        epsilon = np.sqrt(np.where(valid, (degree**2 - order**2) / (4.0 * degree**2 - 1), 0))
        above = np.pad(epsilon[:, 1:], [(0, 0), (0, 1)])  # of degree + 1; truncated at the end
        eigen = -degree * (degree + 1) / RADIUS**2
        inverse = np.divide(1, eigen, out=np.zeros_like(eigen), where=degree > 0)

        def columns(array: np.ndarray) -> Tensor:
            return torch.tensor(array[:, :, None, None], dtype=torch.float32)

        # cos(phi) d/dphi, and the same of an inverse Laplacian; 1/cos(phi) d/dphi cos2(phi); all divided by the radius
        up, down = (degree + 2) * above / RADIUS, -(degree - 1) * epsilon / RADIUS
        self._slope = columns(up), columns(down)
        self._slope_inverse = columns(up * np.roll(inverse, -1, 1)), columns(down * np.roll(inverse, 1, 1))
        self._minus_slope_inverse = -self._slope_inverse[0], -self._slope_inverse[1]
        self._divergence = columns(degree * above / RADIUS), columns(-(degree + 1) * epsilon / RADIUS)
        # d/dlambda: cosine and sine of one wavenumber change places
        count = len(order)
        partner = np.array([0, *(k + 1 if k % 2 else k - 1 for k in range(1, count))])
        self._partner = torch.tensor(partner)
        self._turn = columns(np.where(np.arange(count)[:, None] % 2, 1, -1) * np.abs(order) / RADIUS)
        self._turn_inverse = columns(np.where(np.arange(count)[:, None] % 2, 1, -1) * np.abs(order) / RADIUS * inverse)
        self._minus_laplacian = columns(-eigen)
        self._keep = columns((degree < degree.max()) & valid)
        self._inside = torch.tensor(valid & (degree < degree.max()))

    def _vertical(self, external_hours: float) -> None:
        levels, equations = self.levels, primitive_equations
        # built for its semi-implicit matrices; the orography enters as a tendency of our own
        coords = coordinate_systems.CoordinateSystem(self.grid, sigma_coordinates.SigmaLevels(self.sigma))
        self.reference = equations.PrimitiveEquations(
            np.full(levels, REFERENCE_TEMPERATURE), torch.zeros(self.modal_shape), coords, PHYSICAL
        )
        matrix = equations._get_implicit_term_matrix(
            0.5 * self.step, self.spec, self.sigma, np.full(levels, REFERENCE_TEMPERATURE), KAPPA, GAS_CONSTANT
        )
        size = 2 * levels + 1
        # the vertical mean of divergence is little but the external gravity (Lamb) wave, which daily heating makes resound
        calm = np.eye(size)
        calm[:levels, :levels] -= (1 - math.exp(-self.step / (3600 * external_hours))) * self.sigma.layer_thickness
        implicit = calm @ np.linalg.inv(matrix)
        # (1 + dt/2 G) = 2 - (1 - dt/2 G)
        forward = implicit @ (2 * np.eye(size) - matrix)

        def per_mode(array: np.ndarray) -> Tensor:
            repeated = np.broadcast_to(array[None], (self.modal_shape[0], *array.shape)).reshape(-1, size, size)
            return torch.tensor(repeated, dtype=torch.float32)

        self._implicit, self._propagate = per_mode(implicit), per_mode(forward)
        self.thickness = torch.tensor(self.sigma.layer_thickness, dtype=torch.float32)
        self._alpha = equations.get_sigma_ratios(self.sigma)
        self.geopotential_weights = torch.tensor(equations.get_geopotential_weights(self.sigma, GAS_CONSTANT), dtype=torch.float32)
        self._half_over_distance = torch.tensor(0.5 / self.sigma.center_to_center, dtype=torch.float32)[:, None]
        sines = np.sin(np.deg2rad(self.latitude))
        self._coriolis = torch.tensor(2 * ROTATION * sines, dtype=torch.float32)[:, None, None]
        self.cos_lat = torch.tensor(self.spec.cos_lat, dtype=torch.float32)[:, None, None]
        self._sec2 = 1 / self.cos_lat**2

    def _damping(self, friction: np.ndarray, hours: float, order: int) -> None:
        degree = np.arange(self.modal_shape[1]) / (self.modal_shape[1] - 1)
        spectral = np.exp(-self.step / (3600 * hours) * degree ** (2 * order))
        factor = np.ones((self.modal_shape[1], 4 * self.levels + 1)) * spectral[:, None]
        factor[:, -1] = spectral
        slow = np.exp(-friction * self.step)
        factor[:, : self.levels] *= slow
        factor[:, 2 * self.levels : 3 * self.levels] *= slow
        self._filter = torch.tensor(factor[None, :, :, None], dtype=torch.float32) * self._keep

    # -- transforms and derivatives -----------------------------------------------------------------------------------------

    def _scratch(self, name: str, *shape: int) -> Tensor:
        """Memory that is used again in every step: fresh pages would cost a tenth of the time."""
        if (name, shape) not in self._work:
            self._work[name, shape] = torch.empty(shape)
        return self._work[name, shape]

    def to_nodal(self, modal: Tensor, out: Tensor | None = None) -> Tensor:
        """[m, l, column, member] -> [longitude, latitude, column, member]."""
        m, j, _ = self._legendre.shape
        i, size = len(self._fourier), math.prod(modal.shape[2:])
        waves = torch.bmm(self._legendre, modal.flatten(2), out=self._scratch("waves", m, j, size))
        nodal = torch.mm(self._fourier, waves.view(m, -1), out=None if out is None else out.view(i, -1))
        return nodal.view(i, j, *modal.shape[2:])

    def to_modal(self, nodal: Tensor, out: Tensor | None = None) -> Tensor:
        """[longitude, latitude, column, member] -> [m, l, column, member]."""
        i, j, size = *nodal.shape[:2], math.prod(nodal.shape[2:])
        m, degrees = self.modal_shape
        waves = torch.mm(self._fourier_t, nodal.reshape(i, -1), out=self._scratch("waves", m, j, size).view(m, -1))
        modal = torch.bmm(self._legendre_t, waves.view(m, j, size), out=None if out is None else out.view(m, degrees, size))
        return modal.view(m, degrees, *nodal.shape[2:])

    @staticmethod
    def _neighbours(x: Tensor, coefficients: tuple[Tensor, Tensor], out: Tensor) -> None:
        """out[l] = up[l] x[l+1] + down[l] x[l-1]."""
        up, down = coefficients
        torch.mul(x[:, 1:], up[:, :-1], out=out[:, :-1])
        out[:, -1] = 0
        out[:, 1:].addcmul_(x[:, :-1], down[:, 1:])

    def modal_inputs(self, state: Tensor) -> Tensor:
        """The columns that go to the grid: vorticity, divergence, T', q, U, V, and ln ps with its two gradients."""
        k = self.levels
        vorticity, humidity, divergence, temperature = (state[:, :, n * k : (n + 1) * k] for n in range(4))
        pressure = state[:, :, 4 * k :]
        out = self._scratch("inputs", *self.modal_shape, 6 * k + 3, state.shape[-1])
        out[:, :, :k], out[:, :, k : 2 * k] = vorticity, divergence
        out[:, :, 2 * k : 3 * k], out[:, :, 3 * k : 4 * k] = temperature, humidity
        u, v = out[:, :, 4 * k : 5 * k], out[:, :, 5 * k : 6 * k]
        self._neighbours(vorticity, self._minus_slope_inverse, u)
        u.addcmul_(divergence[self._partner], self._turn_inverse)
        self._neighbours(divergence, self._slope_inverse, v)
        v.addcmul_(vorticity[self._partner], self._turn_inverse)
        out[:, :, 6 * k : 6 * k + 1] = pressure
        torch.mul(pressure[self._partner], self._turn, out=out[:, :, 6 * k + 1 : 6 * k + 2])
        self._neighbours(pressure, self._slope, out[:, :, 6 * k + 2 :])
        return out

    # -- tendencies ---------------------------------------------------------------------------------------------------------

    def cumulative(self, x: Tensor) -> Tensor:
        """Integral over sigma from the top to the lower edge of each level."""
        out = torch.empty_like(x)
        thickness = self.sigma.layer_thickness
        torch.mul(x[:, :, 0], thickness[0], out=out[:, :, 0])
        for n in range(1, self.levels):
            torch.add(out[:, :, n - 1], x[:, :, n], alpha=thickness[n], out=out[:, :, n])
        return out

    def omega_part(self, integral: Tensor, v_grad: Tensor) -> Tensor:
        """omega/p = v.grad(ln ps) - (alpha[n] F[n] + alpha[n-1] F[n-1]) / dsigma[n], F the cumulative integral (Durran eq. 8.124)."""
        out = v_grad.clone()
        thickness = self.sigma.layer_thickness
        for n in range(self.levels):
            out[:, :, n].sub_(integral[:, :, n], alpha=self._alpha[n] / thickness[n])
            if n:
                out[:, :, n].sub_(integral[:, :, n - 1], alpha=self._alpha[n - 1] / thickness[n])
        return out

    def split(self, nodal: Tensor) -> list[Tensor]:
        k = self.levels
        return list(nodal.split([k] * 6 + [1] * 3, dim=2))

    def _nodal_outputs(self, nodal: Tensor, extra: tuple[Tensor, Tensor] | None) -> Tensor:
        """The products that go back to modes: A_u, T'U, qU | A_v, T'V, qV | energy | T and q sources | ln ps."""
        k = self.levels
        vorticity, divergence, temperature, humidity, u, v, _, slope_x, slope_y = self.split(nodal)
        out = self._scratch("products", *nodal.shape[:2], 9 * k + 1, nodal.shape[-1])
        part = [out[:, :, n * k : (n + 1) * k] for n in range(9)]
        u_sec, v_sec = u * self._sec2, v * self._sec2
        v_grad = (u_sec * slope_x).addcmul_(v_sec, slope_y)
        explicit = self.cumulative(v_grad)
        full = self.cumulative(divergence).add_(explicit)
        torch.mul(explicit[:, :, -1:], -1, out=out[:, :, 9 * k :])
        # vertical advection of T', q, U, V (neighbours in memory) by sigma-dot on the inner edges
        total = torch.cumsum(self.thickness, 0)[:-1, None]
        sigma_dot = (full[:, :, -1:] * total).sub_(full[:, :, :-1]).mul_(self._half_over_distance)
        block = nodal[:, :, 2 * k : 6 * k].unflatten(2, (4, k))
        flux = (block[:, :, :, 1:] - block[:, :, :, :-1]).mul_(sigma_dot[:, :, None])
        vertical = torch.zeros_like(block)
        vertical[:, :, :, :-1] -= flux
        vertical[:, :, :, 1:] -= flux
        # momentum: (zeta + f) k x v + sigma-dot dv/dsigma + R T' grad ln ps, over cos(phi)
        absolute = vorticity + self._coriolis
        heat = (temperature * GAS_CONSTANT).mul_(self._sec2)
        torch.mul(heat, slope_x, out=part[0]).addcmul_(v_sec, absolute, value=-1).addcmul_(vertical[:, :, 2], self._sec2, value=-1)
        torch.mul(heat, slope_y, out=part[3]).addcmul_(u_sec, absolute).addcmul_(vertical[:, :, 3], self._sec2, value=-1)
        torch.mul(temperature, u_sec, out=part[1])
        torch.mul(humidity, u_sec, out=part[2])
        torch.mul(temperature, v_sec, out=part[4])
        torch.mul(humidity, v_sec, out=part[5])
        torch.mul(u, u_sec, out=part[6]).addcmul_(v, v_sec).mul_(0.5)
        reference = self.omega_part(explicit, v_grad).mul_(KAPPA * REFERENCE_TEMPERATURE)
        torch.mul(temperature, divergence, out=part[7]).add_(vertical[:, :, 0]).add_(reference)
        part[7].addcmul_(self.omega_part(full, v_grad), temperature, value=KAPPA)
        torch.mul(humidity, divergence, out=part[8]).add_(vertical[:, :, 1])
        if extra is not None:
            part[7].add_(extra[0])
            part[8].add_(extra[1])
        return out

    def _modal_tendency(self, outputs: Tensor, orography: Tensor) -> Tensor:
        """Tendency of the state from the products on the grid."""
        k = self.levels
        modal = self.to_modal(outputs, self._scratch("modal", *self.modal_shape, *outputs.shape[2:]))
        x, y = modal[:, :, : 3 * k], modal[:, :, 3 * k : 6 * k]
        tendency = modal.new_empty(*self.modal_shape, 4 * k + 1, modal.shape[-1])
        spread = self._scratch("spread", *y.shape)
        self._neighbours(y, self._divergence, spread)
        spread.addcmul_(x[self._partner], self._turn)
        vorticity = tendency[:, :, :k]
        self._neighbours(x[:, :, :k], self._divergence, vorticity)
        vorticity.addcmul_(y[:, :, :k][self._partner], self._turn, value=-1)
        energy = modal[:, :, 6 * k : 7 * k] + orography
        torch.mul(energy, self._minus_laplacian, out=tendency[:, :, 2 * k : 3 * k]).sub_(spread[:, :, :k])
        torch.sub(modal[:, :, 7 * k : 8 * k], spread[:, :, k : 2 * k], out=tendency[:, :, 3 * k : 4 * k])
        torch.sub(modal[:, :, 8 * k : 9 * k], spread[:, :, 2 * k :], out=tendency[:, :, k : 2 * k])
        tendency[:, :, 4 * k :] = modal[:, :, 9 * k :]
        return tendency.mul_(self._keep)

    # -- one time step ------------------------------------------------------------------------------------------------------

    def orography(self, height: np.ndarray) -> Tensor:
        """Modal surface geopotential [m, l, 1, 1] of a nodal height [longitude, latitude] in metres, one wavenumber clipped."""
        nodal = torch.tensor(GRAVITY * height, dtype=torch.float32)[:, :, None, None]
        return self.to_modal(nodal) * self._keep

    def pressure(self, surface_pressure: Tensor) -> Tensor:
        """Pressure of the levels (Pa) under a surface pressure [longitude, latitude, 1, member]."""
        return surface_pressure * torch.tensor(self.sigma.centers, dtype=torch.float32)[:, None]

    def truncate(self, state: Tensor) -> Tensor:
        """Without the highest wavenumber, which the derivatives need as room."""
        return state * self._keep

    def pack(self, state: Tensor) -> Tensor:
        """Only the modes within the triangle: [mode, column, member]; ``unpack`` puts the zeros back."""
        return state[self._inside]

    def unpack(self, packed: Tensor) -> Tensor:
        state = packed.new_zeros(*self.modal_shape, *packed.shape[1:])
        state[self._inside] = packed
        return state

    def fields(self, nodal: Tensor) -> Nodal:
        """The physical fields among the transformed columns."""
        _, _, temperature, humidity, u, v, pressure, _, _ = self.split(nodal)
        return Nodal(u / self.cos_lat, v / self.cos_lat, temperature + REFERENCE_TEMPERATURE, humidity, pressure.exp())

    def _on_grid(self, state: Tensor) -> Tensor:
        modal = self.modal_inputs(state)
        return self.to_nodal(modal, self._scratch("nodal", len(self.longitude), len(self.latitude), *modal.shape[2:]))

    def _solve(self, matrices: Tensor, x: Tensor) -> Tensor:
        return torch.bmm(matrices, x.flatten(0, 1)).view(*x.shape)

    def advance(self, state: Tensor, orography: Tensor, physics: Physics | None = None) -> Tensor:
        """One step: Crank-Nicolson for the fast linear terms, Heun for the rest, physics held over the step; then damping, and
        the mean surface pressure set back to ``mean_surface_pressure`` where that is not 0.

        u1 = A (B u0 + dt F(u0)),  u2 = A (B u0 + dt/2 (F(u0) + F(u1))),  A = (1 - dt/2 G)^-1,  B = 1 + dt/2 G.
        """
        k, dt = self.levels, self.step
        implicit = slice(2 * k, 4 * k + 1)
        nodal = self._on_grid(state)
        extra = physics(self.fields(nodal)) if physics else None
        correction = self._mass_correction(nodal[:, :, 6 * k : 6 * k + 1]) if self.mean_surface_pressure else None
        first = self._modal_tendency(self._nodal_outputs(nodal, extra), orography)
        carried = self._solve(self._propagate, state[:, :, implicit])
        middle = torch.add(state, first, alpha=dt)
        middle[:, :, implicit] = carried + self._solve(self._implicit, first[:, :, implicit]).mul_(dt)
        second = self._modal_tendency(self._nodal_outputs(self._on_grid(middle), extra), orography)
        mean = second.add_(first)
        result = torch.add(state, mean, alpha=0.5 * dt)
        result[:, :, implicit] = carried.add_(self._solve(self._implicit, mean[:, :, implicit]), alpha=0.5 * dt)
        result.mul_(self._filter)
        if correction is not None:
            result[0, 0, 4 * k] += correction
        return result

    def _mass_correction(self, log_pressure: Tensor) -> Tensor:
        """What to add to the constant mode of ln ps so that its mean pressure becomes the set one [member]."""
        ratio = self.mean_surface_pressure / self._mean_pressure(log_pressure)
        return (torch.log(ratio) * math.sqrt(4 * math.pi)).float()

    def _mean_pressure(self, log_pressure: Tensor) -> Tensor:
        return (log_pressure[:, :, 0].double().exp() * self._area).sum((0, 1))

    def mean_pressure(self, state: Tensor) -> Tensor:
        """Global mean surface pressure (Pa) per member: the dry mass, for these equations carry dry air only."""
        return self._mean_pressure(self.to_nodal(state[:, :, 4 * self.levels :]))


class Evaluator:
    """Spectral states on any grid of latitudes and longitudes. At the poles, where the components of the wind have no direction,
    it looks a fifth of a degree away from them."""

    def __init__(self, core: SpectralCore, latitude: np.ndarray, longitude: np.ndarray) -> None:
        self.core = core
        phi = np.deg2rad(np.clip(latitude, -89.8, 89.8))
        waves, degrees = core.spec.longitude_wavenumbers, core.spec.total_wavenumbers
        legendre = np.repeat(associated_legendre.evaluate(waves, degrees, np.sin(phi)), 2, axis=0)[1:]
        angle = np.deg2rad(longitude)[:, None] * np.arange(1, waves)
        fourier = np.empty((len(longitude), 2 * waves - 1))
        fourier[:, 0] = 1 / np.sqrt(2 * np.pi)
        fourier[:, 1::2], fourier[:, 2::2] = np.cos(angle) / np.sqrt(np.pi), np.sin(angle) / np.sqrt(np.pi)
        self._legendre, self._fourier = (torch.tensor(array, dtype=torch.float32) for array in (legendre, fourier))
        self._cos_lat = torch.tensor(np.cos(phi), dtype=torch.float32)[:, None, None]

    def surface(self, modal: Tensor) -> Tensor:
        """A modal field [m, l, column, member] on this grid [longitude, latitude, column, member]."""
        m, j, _ = self._legendre.shape
        waves = torch.bmm(self._legendre, modal.flatten(2))
        return torch.mm(self._fourier, waves.view(m, -1)).view(-1, j, *modal.shape[2:])

    def __call__(self, state: Tensor) -> tuple[Nodal, Tensor]:
        """Fields on the sigma levels and the vertical velocity omega = dp/dt (Pa/s) there."""
        core = self.core
        _, divergence, temperature, humidity, u, v, log_pressure, slope_x, slope_y = core.split(self.surface(core.modal_inputs(state)))
        pressure = log_pressure.exp()
        v_grad = (u * slope_x + v * slope_y) / self._cos_lat**2
        ratio = core.omega_part(core.cumulative(divergence + v_grad), v_grad)
        omega = ratio * pressure * torch.tensor(core.sigma.centers, dtype=torch.float32)[:, None]
        fields = Nodal(u / self._cos_lat, v / self._cos_lat, temperature + REFERENCE_TEMPERATURE, humidity, pressure)
        return fields, omega
