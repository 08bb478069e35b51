"""The embedded data: cost in CPU seconds on one thread, 200 days without a NaN, drift of dry mass, and the table of physics.

OMP_NUM_THREADS=1 python benchmarks/simulate.py            # about five minutes
OMP_NUM_THREADS=1 python benchmarks/simulate.py --days 40  # a shorter stability run
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import xarray as xr
from dinosaur_torch import primitive_equations, time_integration

from wxlab.simulate import atmosphere, physics, radar, weather
from wxlab.simulate.constants import DAY, GRAVITY
from wxlab.simulate.core import PHYSICAL, SpectralCore
from wxlab.simulate.forcing import Forcing

SEED = 1


def start(members: int, resolution: str = "T21") -> tuple[SpectralCore, torch.Tensor, Forcing, torch.Tensor]:
    """A core, its orography, the forcing and initial states of members spread over the year."""
    core = weather.make_core(resolution)
    orography, height = weather.make_orography(core)
    forcing = Forcing(core, height, np.arange(members) * 365.0 / members, weather.LATENT_SHARE)
    state = weather.initial_state(core, forcing, height, SEED, list(range(members)))
    return core, orography, forcing, state


def day(core: SpectralCore, orography: torch.Tensor, forcing: Forcing, state: torch.Tensor, number: int) -> torch.Tensor:
    """One simulated day."""
    steps = round(DAY / core.step)
    for n in range(number * steps, (number + 1) * steps):
        forcing.set_time(n * core.step)
        state = core.advance(state, orography, forcing)
    return state


def stepping() -> None:
    """CPU seconds for one simulated day of one member, by members stepped together, and of the package's own stepper (dry)."""
    for members in (1, 4, weather.GROUP, 16):
        core, orography, forcing, state = start(members)
        state = day(core, orography, forcing, state, 0)
        begin = time.process_time()
        day(core, orography, forcing, state, 1)
        print(f"  {members:2d} members together: {(time.process_time() - begin) / members:.3f} CPU s per member and day")
    core, orography, _, state = start(1)
    parts = state[..., 0].permute(2, 0, 1).split([core.levels] * 4 + [1])
    reference = np.full(core.levels, 288.0)
    equations = primitive_equations.PrimitiveEquations(reference, orography[:, :, 0, 0] / GRAVITY, core.reference.coords, PHYSICAL)
    step = time_integration.crank_nicolson_rk2(equations, core.step)
    now = primitive_equations.State(parts[0], parts[2], parts[3], parts[4], {"q": parts[1]})
    begin = time.process_time()
    for _ in range(12):
        now = step(now)
    print(f"  dinosaur-torch's stepper, without physics: {(time.process_time() - begin) * 4:.3f} CPU s per member and day")


def stability(days: int, members: int = 2) -> None:
    """Run for ``days`` days; drift of dry mass held, and over ten days not held."""
    core, orography, forcing, state = start(members)
    first = core.mean_pressure(state)
    for n in range(10):
        state = day(core, orography, forcing, state, n)
    drift = float((core.mean_pressure(state) / first - 1).abs().max()) / 10
    core.mean_surface_pressure = weather.MEAN_PRESSURE
    worst = 0.0
    for n in range(10, days):
        state = day(core, orography, forcing, state, n)
        if not bool(torch.isfinite(state).all()):
            raise SystemExit(f"  NaN on day {n}")
        worst = max(worst, float((core.mean_pressure(state) / weather.MEAN_PRESSURE - 1).abs().max()))
    print(f"  {members} members, {days} days: no NaN; dry mass within {worst:.1e} of its value with the fixer, {drift:.1e} a day without")


def table(data: xr.Dataset) -> None:
    """What makes it weather, with the range each number has to lie in."""
    for name, (wind, latitude) in physics.jets(data).items():
        print(f"  jet at 250 hPa, {name}: {wind:.1f} m/s at {latitude:.1f} degrees (20-60 m/s between 25 and 60)")
    slope = physics.spectral_slope(physics.kinetic_energy_spectrum(data.isel(time=slice(None, None, 10))))
    print(f"  kinetic energy slope at 500 hPa, degrees 8-17: {slope:.2f} (-3 to -5.5)")
    correlation = physics.lag_correlation(data.geopotential.sel(level=500).load())
    print(f"  6-hour lag correlation of geopotential at 500 hPa: {correlation:.3f} (0.9 to 0.995)")
    mean = data.weighted(np.cos(np.deg2rad(data.latitude))).mean(("latitude", "longitude")).mean("time")
    print(
        f"  rain {float(mean.total_precipitation_6hr) * 4000:.2f} mm/day, column water {float(mean.total_column_water_vapour):.1f} kg/m2,"
    )
    print(f"  cloud cover {float(mean.total_cloud_cover):.2f}, 2 m temperature {float(mean['2m_temperature']):.1f} K")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=int, default=200, help="length of the stability run")
    days: int = parser.parse_args().days
    torch.set_num_threads(1)
    with torch.inference_mode():
        print("Stepping, T21, 8 levels, 30 minutes")
        stepping()
        print("Stability")
        stability(days)
    begin = time.process_time()
    data = atmosphere(cache=False)
    cost = time.process_time() - begin
    states = data.sizes["time"]
    print(f"Default set: {states} states in {cost:.0f} CPU s with spin-up and output, {states / cost:.1f} states per CPU s")
    table(data)
    radar(frames=2)
    begin = time.process_time()
    radar()
    print(f"Radar: 24 frames of 128 x 128 in {time.process_time() - begin:.2f} CPU s")


if __name__ == "__main__":
    main()
