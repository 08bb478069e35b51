"""The embedded atmosphere: an idealised Earth's weather, simulated once, kept in the user's cache, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from wxlab.errors import WxlabError, unknown
from wxlab.grids import Grid
from wxlab.simulate import cache as store_cache
from wxlab.simulate import surface
from wxlab.simulate.constants import GAS_CONSTANT, GRAVITY
from wxlab.simulate.core import REFERENCE_TEMPERATURE, RESOLUTIONS, SpectralCore
from wxlab.simulate.forcing import Forcing, rayleigh_friction, saturation_humidity
from wxlab.simulate.output import LEVEL_VARIABLES, LEVELS, STATIC_VARIABLES, SURFACE_VARIABLES, Fields, Output, units_of

SIGMA_LEVELS = 8
TIME_STEP = {"T21": 1800.0, "T31": 1800.0, "T42": 1200.0}  # s
LATENT_SHARE = 0.7  # of the heat of condensation that the air feels; with all of it the tropics become too warm and moist
FILTER_ORDER = {"T21": 5, "T31": 6, "T42": 6}  # lower damps too much, higher leaves gravity waves
EXTERNAL_HOURS = 8.0  # without this damping a 12-hour gravity wave of wavenumber 1 resounds through the pressure field
MEAN_PRESSURE = 99_900.0  # Pa, global mean at the surface, mountains included
PIECE = 96  # states written at once
BATCH = 16  # states evaluated at once
GROUP = 8  # members stepped together: more gain little and leave the processor's cache
FIRST_YEAR = 2001
MODULES = ("constants", "core", "forcing", "output", "surface", "weather")  # that the data depends on


@dataclass(frozen=True)
class Settings:
    """What determines the data; the cache's name is a checksum of it and of the code."""

    days: int
    members: int
    seed: int
    resolution: str
    step_hours: int
    spin_up: int


def atmosphere(
    *,
    days: int = 24,
    members: int = 16,
    seed: int = 0,
    grid: tuple[int, int] = (32, 64),
    resolution: str = "T21",
    step_hours: int = 6,
    levels: tuple[int, ...] = LEVELS,
    variables: tuple[str, ...] | None = None,
    spin_up: int = 20,
    cache: bool = True,
) -> xr.Dataset:
    """Simulated weather on an idealised Earth: moist Held-Suarez forcing with seasons, days, continents and mountains.

    days, members: every member is one ``segment`` of ``days`` days in a simulated year and at a phase of the year of its own;
    the training members cover the whole year, and whole members are kept for validation and test (``attrs['splits']``).
    seed: same seed, same machine: same bits.  grid: rows and columns; odd rows include the poles.  resolution: T21, T31 or T42.
    step_hours: hours between states.  levels: pressure levels in hPa, 50 to 1000.  variables: which to keep (None: all, statics
    included).  spin_up: days simulated before the first state.  cache: keep the result under the user's cache folder
    (``WXLAB_CACHE`` overrides it) and read it from there the next time.
    Returns a Dataset in WeatherBench 2's names and SI units: variables on levels [time, level, latitude, longitude], at the surface
    [time, latitude, longitude], statics [latitude, longitude]; ``sea_surface_temperature`` is NaN on land.
    Raises WxlabError for settings out of range. Reference: Held and Suarez 1994; Thatcher and Jablonowski 2016 (see forcing.py).
    """
    settings = Settings(days, members, seed, resolution, step_hours, spin_up)
    _check(settings, grid, levels)
    names = _names(variables, step_hours)
    target = Grid.regular(*grid)
    arguments = asdict(settings) | {"grid": list(grid), "levels": list(levels), "variables": list(names)}
    if not cache:
        pieces = list(_chunks(settings, target, levels, names))
        return xr.concat(pieces, "time", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override")
    kept = store_cache.cached("atmosphere", arguments, MODULES, lambda: _chunks(settings, target, levels, names))
    return kept[list(names)]  # zarr forgets the order


def _check(settings: Settings, grid: tuple[int, int], levels: tuple[int, ...]) -> None:
    limits = {"days": (1, 3650), "members": (1, 200), "spin_up": (0, 400), "seed": (0, 2**31)}
    for name, (least, most) in limits.items():
        value = getattr(settings, name)
        if not isinstance(value, int) or not least <= value <= most:
            raise WxlabError(f"{name}={value!r} must be a whole number from {least} to {most}")
    if settings.resolution not in RESOLUTIONS:
        raise unknown("resolution", settings.resolution, RESOLUTIONS)
    if settings.step_hours not in (1, 2, 3, 6, 12, 24):
        raise WxlabError(f"step_hours={settings.step_hours!r} must be one of 1, 2, 3, 6, 12, 24")
    if len(grid) != 2 or not all(isinstance(side, int) and 2 <= side <= 2000 for side in grid):
        raise WxlabError(f"grid={grid!r} must be two whole numbers, rows and columns, such as (32, 64) or (121, 240)")
    if not levels or list(levels) != sorted(set(levels)) or not all(50 <= level <= 1000 for level in levels):
        raise WxlabError(f"levels={levels!r} must be rising pressures in hPa from 50 to 1000, each once")


def _names(variables: tuple[str, ...] | None, step_hours: int) -> tuple[str, ...]:
    allowed = (*LEVEL_VARIABLES, *SURFACE_VARIABLES, f"total_precipitation_{step_hours}hr", *STATIC_VARIABLES)
    for name in variables or ():
        if name not in allowed:
            raise unknown("variable of the simulated atmosphere", name, allowed)
    return allowed if variables is None else tuple(name for name in allowed if name in variables)


# -- who lives when -------------------------------------------------------------------------------------------------------------


def splits(members: int) -> dict[str, dict[str, list[int]]]:
    """Members of each split: an eighth (at least one) each for validation and test, none where there are fewer than three."""
    held = max(1, members // 8) if members >= 3 else 0
    train = members - 2 * held
    parts = {"train": range(train), "validation": range(train, train + held), "test": range(train + held, members)}
    return {name: {"segments": list(part)} for name, part in parts.items()}


def start_dates(days: int, members: int) -> NDArray[np.datetime64]:
    """First day of each member: training members spread over the year, the held-out ones too, every member in years of its own."""
    parts = splits(members)
    phase = np.zeros(members)
    for name, shift in (("train", 0.0), ("validation", 0.25), ("test", 0.75)):
        own = parts[name]["segments"]
        phase[own] = (np.arange(len(own)) + shift) / max(len(own), 1) * 365
    years = FIRST_YEAR + np.arange(members) * (days // 365 + 2)
    first = years.astype(str).astype("datetime64[Y]").astype("datetime64[D]")
    dates: NDArray[np.datetime64] = first + np.floor(phase).astype("timedelta64[D]")
    return dates


def day_of_year(dates: NDArray[np.datetime64]) -> NDArray[np.float64]:
    """Days since the start of the year."""
    days: NDArray[np.float64] = (dates - dates.astype("datetime64[Y]")).astype("timedelta64[D]").astype(float)
    return days


# -- simulation -----------------------------------------------------------------------------------------------------------------


def make_core(resolution: str) -> SpectralCore:
    """The dynamical core with the settings that are known to be stable."""
    centres = (np.arange(SIGMA_LEVELS) + 0.5) / SIGMA_LEVELS
    return SpectralCore(
        resolution,
        SIGMA_LEVELS,
        TIME_STEP[resolution],
        rayleigh_friction(centres),
        filter_order=FILTER_ORDER[resolution],
        external_hours=EXTERNAL_HOURS,
    )


def make_orography(core: SpectralCore) -> tuple[Tensor, NDArray[np.float64]]:
    """Modal surface geopotential of the mountains, and the truncated height (m) [longitude, latitude] that the core feels."""
    modal = core.orography(surface.mountain_height(core.latitude, core.longitude).T)
    return modal, core.to_nodal(modal)[:, :, 0, 0].double().numpy() / GRAVITY


def initial_state(core: SpectralCore, forcing: Forcing, height: NDArray[np.float64], seed: int, members: list[int]) -> Tensor:
    """Rest at the equilibrium temperature, 70 % relative humidity, and a small random vorticity of each member's own."""
    k = core.levels
    log_pressure = torch.tensor(np.log(MEAN_PRESSURE) - GRAVITY * height / (GAS_CONSTANT * 270), dtype=torch.float32)[:, :, None, None]
    log_pressure = log_pressure.expand(-1, -1, 1, len(members))
    temperature = forcing.equilibrium(log_pressure)
    humidity = 0.7 * saturation_humidity(temperature, core.pressure(log_pressure.exp()))
    state = torch.zeros(*core.modal_shape, 4 * k + 1, len(members))
    degree = torch.arange(core.modal_shape[1])[None, :, None]
    for n, member in enumerate(members):
        generator = torch.Generator().manual_seed(seed * 1000 + member)
        noise = torch.randn(*core.modal_shape, 1, generator=generator)
        state[:, :, :k, n] = noise * 2e-5 / (1 + degree) * (degree > 0)
    state[:, :, k : 2 * k] = core.to_modal(humidity)
    state[:, :, 3 * k : 4 * k] = core.to_modal(temperature - REFERENCE_TEMPERATURE)
    state[:, :, 4 * k :] = core.to_modal(log_pressure)
    return core.truncate(state)


def _simulate(settings: Settings, core: SpectralCore, members: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """States [m, l, column, member] and rain (kg/m2) of the hours before, every ``step_hours``, after the spin-up."""
    orography, height = make_orography(core)
    starts = day_of_year(start_dates(settings.days, settings.members))[members] - settings.spin_up
    forcing = Forcing(core, height, starts, LATENT_SHARE)
    state = initial_state(core, forcing, height, settings.seed, members)
    core.mean_surface_pressure = MEAN_PRESSURE
    per_state = int(settings.step_hours * 3600 / core.step)
    first = settings.spin_up * 24 // settings.step_hours
    last = first + settings.days * 24 // settings.step_hours - 1
    for n in range(last + 1):
        rain = forcing.take_rain()
        if n >= first:
            yield state, rain
        if n == last:
            return
        for step in range(n * per_state, (n + 1) * per_state):
            forcing.set_time(step * core.step)
            state = core.advance(state, orography, forcing)
        if not torch.isfinite(state).all():
            day = (n + 1) * settings.step_hours / 24
            raise WxlabError(f"the simulation became unstable on day {day:.1f}; choose another seed or resolution than {settings}")


def _chunks(settings: Settings, grid: Grid, levels: tuple[int, ...], names: tuple[str, ...]) -> Iterator[xr.Dataset]:
    """The Dataset in pieces along time, in order; statics and attributes are in every piece."""
    core = make_core(settings.resolution)
    with torch.inference_mode():
        output = Output(core, make_orography(core)[0], grid, levels)
    progress = tqdm(total=settings.members, desc="simulating weather", unit="member", disable=None, leave=False)
    with progress, _one_thread():
        for start in range(0, settings.members, GROUP):
            members = list(range(start, min(start + GROUP, settings.members)))
            with torch.inference_mode():
                run = [(core.pack(state), rain) for state, rain in _simulate(settings, core, members)]
            progress.update(len(members))
            for column, member in enumerate(members):
                for begin in range(0, len(run), PIECE):
                    part = [(state[..., column], rain[..., column]) for state, rain in run[begin : begin + PIECE]]
                    yield _dataset(settings, output, part, names, member, begin)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The arrays are small: on a busy machine two threads that wait for each other are many times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _dataset(
    settings: Settings, output: Output, part: list[tuple[Tensor, Tensor]], names: tuple[str, ...], member: int, begin: int
) -> xr.Dataset:
    """One piece of one member as a Dataset."""
    first = start_dates(settings.days, settings.members)[member]
    hours = (begin + np.arange(len(part))) * settings.step_hours
    clock: NDArray[np.float64] = (hours % 24).astype(float)
    time = first.astype("datetime64[ns]") + hours.astype("timedelta64[h]")
    day = day_of_year(first[None])[0] + hours / 24
    fields: list[Fields] = []
    with torch.inference_mode():
        for lot in range(0, len(part), BATCH):
            here = slice(lot, lot + BATCH)
            state = output.core.unpack(torch.stack([state for state, _ in part[here]], -1))
            rain = torch.stack([rain for _, rain in part[here]], -1)
            fields.append(output(state, rain, day[here], clock[here]))
        statics = output.statics()
    variables: dict[str, Any] = {}
    for name in names:
        units = {"units": units_of(name)}
        if name in statics:
            variables[name] = (("latitude", "longitude"), statics[name], units)
            continue
        key = "total_precipitation" if name.startswith("total_precipitation") else name
        values = np.concatenate([piece[key] for piece in fields])
        dims = ("time", "level", "latitude", "longitude") if values.ndim == 4 else ("time", "latitude", "longitude")
        variables[name] = (dims, values, units)
    coords: dict[str, Any] = {
        "time": time,
        "segment": ("time", np.full(len(part), member)),
        "latitude": ("latitude", np.array(output.grid.y), {"units": "degrees_north"}),
        "longitude": ("longitude", np.array(output.grid.x), {"units": "degrees_east"}),
    }
    if any(name in LEVEL_VARIABLES for name in names):
        coords["level"] = ("level", np.array(output.levels), {"units": "hPa"})
    attributes = {
        "title": "Simulated weather on an idealised Earth (moist Held-Suarez)",
        "source": f"wxlab.simulate.atmosphere, dinosaur-torch core, {settings.resolution}, {SIGMA_LEVELS} sigma levels",
        "licence": "Apache-2.0",
        "splits": json.dumps(splits(settings.members)),
    }
    return xr.Dataset(variables, coords, attributes)
