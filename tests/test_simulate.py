"""The embedded data: the core equals its package, the weather is weather, the same seed gives the same bits."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from dinosaur_torch import primitive_equations, time_integration

import wxlab.simulate
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.simulate import cache, physics, surface, weather
from wxlab.simulate.constants import GAS_CONSTANT, GRAVITY
from wxlab.simulate.core import PHYSICAL, Evaluator, SpectralCore
from wxlab.simulate.forcing import Forcing, saturation_humidity
from wxlab.simulate.output import Output
from wxlab.simulate.rain import radar
from wxlab.simulate.vortex import Vortex, gradient_wind, seed_vortex

LEVELS = 8
SHORT = {"days": 1, "members": 2, "spin_up": 0, "cache": False}


@pytest.fixture(scope="module")
def core() -> SpectralCore:
    """A core without damping of any kind, as the reference steps."""
    return SpectralCore("T21", LEVELS, 1800.0, np.zeros(LEVELS), filter_hours=1e9)


@pytest.fixture(scope="module")
def state(core: SpectralCore) -> torch.Tensor:
    """Two random, smooth states with the amplitudes of weather."""
    generator = torch.Generator().manual_seed(0)
    degree = torch.arange(core.modal_shape[1])[None, :, None, None]

    def field(columns: int, amplitude: float) -> torch.Tensor:
        return torch.randn(*core.modal_shape, columns, 2, generator=generator) * amplitude / (1 + degree) ** 1.5

    parts = [field(LEVELS, 3e-5), field(LEVELS, 2e-3), field(LEVELS, 5e-6), field(LEVELS, 10.0), field(1, 0.02)]
    for wind in (parts[0], parts[2]):
        wind[0, 0] = 0
    parts[4][0, 0] += float(np.log(1e5) * np.sqrt(4 * np.pi))
    return core.unpack(core.pack(torch.cat(parts, 2)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Two members of ten days after twenty of spin-up: winter in the north and half a year later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WXLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return wxlab.simulate.atmosphere(days=10, members=2).load()


# -- the core -------------------------------------------------------------------------------------------------------------------


def test_step_equals_the_package(core: SpectralCore, state: torch.Tensor) -> None:
    """The fused step is dinosaur-torch's Crank-Nicolson RK2 of its primitive equations, for every member."""
    modal, _ = weather.make_orography(core)
    equations = primitive_equations.PrimitiveEquations(np.full(LEVELS, 288.0), modal[:, :, 0, 0] / GRAVITY, core.reference.coords, PHYSICAL)
    step = time_integration.crank_nicolson_rk2(equations, core.step)
    ours = core.advance(state, modal)
    for member in range(2):
        vorticity, humidity, divergence, temperature, pressure = state[..., member].permute(2, 0, 1).split([LEVELS] * 4 + [1])
        theirs = step(primitive_equations.State(vorticity, divergence, temperature, pressure, {"q": humidity}))
        parts = ours[..., member].permute(2, 0, 1).split([LEVELS] * 4 + [1])
        expected = (theirs.vorticity, theirs.tracers["q"], theirs.divergence, theirs.temperature_variation, theirs.log_surface_pressure)
        for found, wanted in zip(parts, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6 * float(wanted[:, 1:].abs().max()))


def test_transforms_are_inverse_and_agree_elsewhere(core: SpectralCore, state: torch.Tensor) -> None:
    nodal = core.to_nodal(state)
    torch.testing.assert_close(core.to_modal(nodal), state, rtol=1e-4, atol=1e-5)
    elsewhere = Evaluator(core, core.latitude, core.longitude)
    torch.testing.assert_close(elsewhere.surface(state), nodal, rtol=1e-4, atol=1e-4)


def test_rest_stays_at_rest(core: SpectralCore) -> None:
    """An isothermal atmosphere at rest, without mountains, does not move."""
    calm = torch.zeros(*core.modal_shape, 4 * LEVELS + 1, 1)
    calm[0, 0, -1] = float(np.log(1e5) * np.sqrt(4 * np.pi))
    flat = torch.zeros(*core.modal_shape, 1, 1)
    after = calm
    for _ in range(10):
        after = core.advance(after, flat)
    torch.testing.assert_close(after, calm, rtol=1e-5, atol=1e-9)


def test_dry_mass_is_held() -> None:
    """To single precision (1e-5 at most) with the fixer; the equations alone drift by more."""
    core = weather.make_core("T21")
    modal, height = weather.make_orography(core)
    with torch.inference_mode():
        forcing = Forcing(core, height, np.array([0.0]), weather.LATENT_SHARE)
        start = weather.initial_state(core, forcing, height, 0, [0])
        drift = {}
        for held in (0.0, float(core.mean_pressure(start))):
            core.mean_surface_pressure = held
            now = start
            for step in range(48):
                forcing.set_time(step * core.step)
                now = core.advance(now, modal, forcing)
            drift[bool(held)] = abs(float(core.mean_pressure(now) / core.mean_pressure(start)) - 1)
    assert drift[True] < 1e-5 < 3e-5 < drift[False] < 1e-3


def test_water_that_condenses_rains(core: SpectralCore) -> None:
    """In supersaturated air over dry ground, the column loses exactly the rain."""
    _, height = weather.make_orography(core)
    forcing = Forcing(core, height, np.array([0.0]), 1.0)
    shape = (64, 32, LEVELS, 1)
    fields = core.fields(torch.zeros(64, 32, 6 * LEVELS + 3, 1))
    fields.surface_pressure = torch.full((64, 32, 1, 1), 1e5)
    fields.humidity = 1.2 * saturation_humidity(fields.temperature, core.pressure(fields.surface_pressure))
    forcing.skin = torch.full_like(forcing.skin, 200.0)  # nothing evaporates
    heating, moistening = forcing(fields)
    assert heating.shape == shape and bool((heating[:, :, 3:6] > 0).all())
    loss = -(moistening * core.thickness[:, None]).sum(2) * 1e5 / GRAVITY * core.step
    torch.testing.assert_close(forcing.take_rain(), loss, rtol=1e-4, atol=1e-6)
    assert float(forcing.rain.abs().max()) == 0


# -- the weather ----------------------------------------------------------------------------------------------------------------


def test_layout(data: xr.Dataset) -> None:
    assert data.geopotential.dims == ("time", "level", "latitude", "longitude")
    assert data["2m_temperature"].dims == ("time", "latitude", "longitude")
    assert data.land_sea_mask.dims == ("latitude", "longitude")
    assert list(data.level.values) == [100, 250, 500, 700, 850, 925, 1000]
    assert data.sizes["time"] == 80 and data.indexes["time"].is_monotonic_increasing and data.indexes["time"].is_unique
    for _, member in data.groupby("segment"):
        assert (np.diff(member.time.values) == np.timedelta64(6, "h")).all()
    assert (data.time.dt.dayofyear.values[[0, 40]] == [1, 183]).all()
    for name, field in data.items():
        assert field.dtype == np.float32 and field.attrs["units"], name
        assert bool(np.isfinite(field).all()) != (name == "sea_surface_temperature"), name
    sea = data.land_sea_mask <= 0.5
    assert bool((np.isfinite(data.sea_surface_temperature) == sea).all())
    assert 0.2 < float(data.land_sea_mask.weighted(np.cos(np.deg2rad(data.latitude))).mean()) < 0.4


def test_physics(data: xr.Dataset) -> None:
    for wind, latitude in physics.jets(data).values():
        assert 20 <= wind <= 60 and 25 <= abs(latitude) <= 60
    energy = physics.kinetic_energy_spectrum(data.isel(time=slice(None, None, 4)))
    assert -5.5 <= physics.spectral_slope(energy) <= -3
    wind2 = (data.u_component_of_wind.sel(level=500) ** 2 + data.v_component_of_wind.sel(level=500) ** 2)[::4]
    mean = float(wind2.weighted(np.cos(np.deg2rad(data.latitude))).mean()) / 2
    assert energy.sum() == pytest.approx(mean, rel=0.05)
    assert 0.9 <= physics.lag_correlation(data.geopotential.sel(level=500)) <= 0.995


def test_climate_is_near_the_earths(data: xr.Dataset) -> None:
    mean = data.weighted(np.cos(np.deg2rad(data.latitude))).mean(("latitude", "longitude")).mean("time")
    assert 278 < float(mean["2m_temperature"]) < 292
    assert 1.5 < float(mean.total_precipitation_6hr) * 4000 < 5  # mm/day
    assert 18 < float(mean.total_column_water_vapour) < 35
    assert 100_500 < float(mean.mean_sea_level_pressure) < 101_800
    assert 0.3 < float(mean.total_cloud_cover) < 0.8
    assert float(data.total_precipitation_6hr.min()) >= 0 and float(data.specific_humidity.min()) >= 0


def test_geopotential_is_hydrostatic(core: SpectralCore, state: torch.Tensor) -> None:
    """Between neighbouring pressure levels d(geopotential) = -R T d(ln p), and the ground lies where the pressure is the surface's."""
    levels = tuple(range(400, 801, 10))
    flat = torch.zeros(*core.modal_shape, 1, 1)
    output = Output(core, flat, Grid.regular(32, 64), levels)
    found = output(state, torch.zeros(64, 32, 2), np.zeros(2), np.zeros(2))
    thickness = -np.diff(found["geopotential"], axis=1)
    mean = (found["temperature"][:, 1:] + found["temperature"][:, :-1]) / 2
    expected = GAS_CONSTANT * np.diff(np.log(levels))[:, None, None] * mean
    np.testing.assert_allclose(thickness, expected, rtol=3e-3)
    np.testing.assert_allclose(thickness.sum(1), expected.sum(1), rtol=3e-4)
    surface_pressure = found["mean_sea_level_pressure"] / 100  # the ground is at sea level
    near = Output(core, flat, Grid.regular(32, 64), (900, 1000))(state, torch.zeros(64, 32, 2), np.zeros(2), np.zeros(2))
    slope = (near["geopotential"][:, 1] - near["geopotential"][:, 0]) / np.log(10 / 9)
    rise = near["geopotential"][:, 1] / np.log(surface_pressure / 1000)
    close = np.abs(surface_pressure - 1000) > 5
    np.testing.assert_allclose(rise[close], -slope[close], rtol=0.05)


def test_seasons_and_days(data: xr.Dataset) -> None:
    temperature = data["2m_temperature"]
    winter, summer = temperature[:40].mean("time"), temperature[40:].mean("time")
    north = (data.latitude > 40) & (data.latitude < 70)
    land, sea = data.land_sea_mask > 0.9, data.land_sea_mask < 0.1
    change = (summer - winter).where(north)
    assert float(change.where(land).mean()) > float(change.where(sea).mean()) + 2 > 4
    # the same places, 6 UTC against 18 UTC, at the equator: Africa's morning is the Americas' night
    swing = temperature[40::4].mean("time"), temperature[42::4].mean("time")
    range_ = abs(swing[1] - swing[0]).where(abs(data.latitude) < 30)
    assert float(range_.where(land).mean()) > 1.0 > 4 * float(range_.where(sea).mean())


def test_sun_and_surface() -> None:
    latitude, longitude = np.array([-60.0, 0.0, 60.0])[None, :], np.array([0.0, 90.0])[:, None]
    noon, mean = surface.insolation(latitude, longitude, 172.0, 14.0)
    hours = np.mean([surface.insolation(latitude, longitude, 172.0, hour)[0] for hour in np.arange(0, 24, 0.25)], axis=0)
    np.testing.assert_allclose(hours, np.broadcast_to(mean, hours.shape), atol=2e-3)
    assert noon[0, 1] == pytest.approx(np.cos(np.deg2rad(23.44)), abs=1e-3)
    north_sea, south_sea = surface.sea_surface_temperature(np.array([40.0, -40.0]), 0.0, 237.0)
    assert north_sea > south_sea + 2


def test_grid_with_poles(core: SpectralCore, state: torch.Tensor) -> None:
    """At the poles scalars have one value; between grids the fields agree where points do."""
    modal, _ = weather.make_orography(core)
    rain = torch.rand(64, 32, 2, generator=torch.Generator().manual_seed(1))
    day, hour = np.array([10.0, 10.25]), np.array([0.0, 6.0])
    fields = {
        rows: Output(core, modal, Grid.regular(rows, columns), (500, 850))(state, rain, day, hour)
        for rows, columns in ((33, 64), (121, 240))
    }
    for rows, found in fields.items():
        assert found["temperature"].shape[:3] == (2, 2, rows)
        assert float(np.ptp(found["temperature"][:, :, [0, -1]], axis=-1).max()) < 0.2
        assert float(np.ptp(found["2m_temperature"][:, [0, -1]], axis=-1).max()) < 0.5
        assert all(np.isfinite(value).all() for name, value in found.items() if name != "sea_surface_temperature")
        assert found["total_precipitation"].max() <= float(rain.max()) / 1000
    # the equator is row 16 of 33 and 60 of 121; every 22.5 degrees both have a point
    np.testing.assert_allclose(fields[33]["temperature"][:, :, 16, ::4], fields[121]["temperature"][:, :, 60, ::15], atol=1e-2)


# -- seeds, cache, mistakes -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bits() -> None:
    first, again = (wxlab.simulate.atmosphere(**SHORT, seed=3) for _ in range(2))
    assert first.identical(again)
    other = wxlab.simulate.atmosphere(**SHORT, seed=4)
    assert float(abs(first.u_component_of_wind - other.u_component_of_wind).max()) > 0
    assert first.attrs["splits"] == other.attrs["splits"]


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is what is computed; a damaged store is noticed and made again; other parameters live elsewhere."""
    monkeypatch.setenv("WXLAB_CACHE", str(tmp_path))
    settings = SHORT | {"cache": True, "variables": ("geopotential", "2m_temperature", "land_sea_mask"), "levels": (500, 850)}
    fresh = wxlab.simulate.atmosphere(**settings | {"cache": False})
    kept = wxlab.simulate.atmosphere(**settings)
    assert list(kept) == ["geopotential", "2m_temperature", "land_sea_mask"] and kept.geopotential.chunks
    xr.testing.assert_identical(kept.load(), fresh)
    (folder,) = tmp_path.iterdir()
    assert cache.intact(folder)
    chunk = max((path for path in folder.rglob("c/*") if path.is_file()), key=lambda path: path.stat().st_size, default=None)
    chunk = chunk or max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-5] + b"wrong")
    xr.testing.assert_identical(wxlab.simulate.atmosphere(**settings).load(), fresh)
    assert cache.intact(folder)
    wxlab.simulate.atmosphere(**settings | {"seed": 1})
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WXLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(WxlabError, match="WXLAB_CACHE"):
        wxlab.simulate.atmosphere(**SHORT | {"cache": True})


@pytest.mark.parametrize("members", [1, 2, 3, 8, 16, 40])
def test_splits_cover_the_year(members: int) -> None:
    parts = weather.splits(members)
    numbers = sorted(n for part in parts.values() for n in part["segments"])
    assert numbers == list(range(members))
    dates = weather.start_dates(24, members)
    assert (np.diff(dates) > np.timedelta64(24, "D")).all()
    phases = np.sort(weather.day_of_year(dates[parts["train"]["segments"]]))
    gaps = np.diff([*phases, phases[0] + 365])
    assert gaps.max() - gaps.min() <= 2
    if members >= 3:
        assert parts["validation"]["segments"] and parts["test"]["segments"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"days": 0}, "days=0"),
        ({"members": 2.5}, "members=2.5"),
        ({"spin_up": -1}, "spin_up=-1"),
        ({"seed": "a"}, "seed='a'"),
        ({"resolution": "T22"}, "did you mean 'T"),
        ({"step_hours": 5}, "step_hours=5"),
        ({"grid": (32,)}, "two whole numbers"),
        ({"levels": (500, 250)}, "rising pressures"),
        ({"variables": ("geopotental",)}, "did you mean 'geopotential'"),
    ],
)
def test_mistakes(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(WxlabError, match=says.replace("(", r"\(")):
        wxlab.simulate.atmosphere(**SHORT | wrong)  # type: ignore[arg-type]


# -- radar ----------------------------------------------------------------------------------------------------------------------


def test_radar() -> None:
    radar(frames=2, size=32)
    start = time.process_time()
    event = radar(seed=1)
    assert time.process_time() - start < 0.5
    assert event.rain_rate.shape == (24, 128, 128) and event.rain_rate.dtype == np.float32
    assert float(event.rain_rate.min()) >= 0 and float(event.rain_rate.max()) <= 120
    assert 0.03 < float((event.rain_rate[0] > 0).mean()) < 0.45
    assert event.identical(radar(seed=1))
    # frames are alike, and more so when the motion is undone
    first, second = (np.log10(np.maximum(event.rain_rate.values[n], 0.1)) for n in (0, 1))
    shifted = {
        (y, x): np.corrcoef(first[8:-8, 8:-8].ravel(), second[8 + y : 120 + y, 8 + x : 120 + x].ravel())[0, 1]
        for y in range(-6, 7)
        for x in range(-6, 7)
    }
    best = max(shifted, key=lambda place: shifted[place])
    assert shifted[best] > 0.7 and shifted[best] > shifted[0, 0]


def test_radar_events() -> None:
    events = radar(events=10, frames=4, size=32)
    assert events.indexes["time"].is_unique and events.indexes["time"].is_monotonic_increasing
    assert json.loads(events.attrs["splits"]) == {
        "train": {"segments": list(range(8))},
        "validation": {"segments": [8]},
        "test": {"segments": [9]},
    }
    # an event depends on its number, not on how many there are
    np.testing.assert_array_equal(radar(events=2, frames=4, size=32).rain_rate, events.rain_rate[:8])
    assert not np.array_equal(events.rain_rate[:4], events.rain_rate[4:8])
    with pytest.raises(WxlabError, match="size=4"):
        radar(size=4)


# -- vortex ---------------------------------------------------------------------------------------------------------------------


def _calm() -> xr.Dataset:
    grid = Grid.regular(121, 240)
    times = np.datetime64("2001-09-01", "ns") + np.arange(5) * np.timedelta64(6, "h")
    level = [250, 500, 850]
    coords = {"time": times, "level": level, "latitude": list(grid.y), "longitude": list(grid.x)}
    flat, deep = ("time", "latitude", "longitude"), ("time", "level", "latitude", "longitude")
    zeros, zeros_deep = np.zeros((5, 121, 240), np.float32), np.zeros((5, 3, 121, 240), np.float32)
    names = ("geopotential", "temperature", "u_component_of_wind", "v_component_of_wind")
    fields = {name: (deep, zeros_deep.copy()) for name in names}
    wind = {f"10m_{name}_component_of_wind": (flat, zeros.copy()) for name in "uv"}
    return xr.Dataset({**fields, **wind, "mean_sea_level_pressure": (flat, zeros + 101_000)}, coords)


def _track(latitudes: list[float], **strength: list[float]) -> xr.Dataset:
    times = np.datetime64("2001-09-01T06", "ns") + np.array([0, 12]) * np.timedelta64(1, "h")
    values = {"time": times, "lon": [300.0, 306.0], "lat": latitudes, **strength}
    return xr.Dataset({name: ("record", value) for name, value in values.items()})


@pytest.mark.parametrize("south", [False, True])
def test_vortex(south: bool) -> None:
    """The deepest point lies on the track at the pressure asked for; the wind is greatest near the radius and turns the right way."""
    sign = -1 if south else 1
    quiet = _calm()
    stormy = seed_vortex(quiet, _track([sign * 18.0, sign * 21.0], slp=[96_000.0, 96_000.0]), radius=250_000.0)
    xr.testing.assert_identical(stormy.isel(time=[0, 4]), quiet.isel(time=[0, 4]))
    now = stormy.isel(time=2)  # halfway: 303E, 19.5 degrees
    place = now.mean_sea_level_pressure.argmin(("latitude", "longitude"))
    assert float(now.longitude[place["longitude"]]) == 303 and float(now.latitude[place["latitude"]]) == sign * 19.5
    assert float(now.mean_sea_level_pressure.min()) == pytest.approx(96_000, abs=1)
    row = now.sel(latitude=sign * 19.5)
    around = row.v_component_of_wind.sel(level=850)
    east = around.sel(longitude=slice(303, 330))
    peak = (float(east.longitude[np.abs(east.values).argmax()]) - 303) * 111_195 * np.cos(np.deg2rad(19.5))
    assert 150_000 < peak < 400_000
    assert 30 < sign * float(east[np.abs(east.values).argmax()]) < 90
    assert sign * float(around.sel(longitude=300)) < -20
    # inflow at 10 m, a warm core aloft, weaker wind above
    assert float(row["10m_u_component_of_wind"].sel(longitude=306)) < -3
    assert float(now.temperature.sel(level=250).max()) > 5 > float(now.temperature.sel(level=850).max())
    assert float(abs(now.v_component_of_wind.sel(level=250)).max()) < 0.7 * float(abs(now.v_component_of_wind.sel(level=850)).max())


def test_vortex_balance() -> None:
    """The profile's slope is that of its pressure, and the wind of a given strength comes out."""
    vortex = Vortex(5000.0, 200_000.0, 1.5)
    distance = np.linspace(20_000, 2_500_000, 20_000)
    pressure, slope = vortex.pressure(distance)
    np.testing.assert_allclose(np.gradient(pressure, distance)[1:-1], slope[1:-1], atol=1e-6)
    assert (slope >= 0).all() and pressure[-1] == 0
    np.testing.assert_allclose(gradient_wind(np.array([1e-3]), np.array([1e5]), 0.0), 10.0)
    stormy = seed_vortex(_calm(), _track([18.0, 18.0], wind=[40.0, 40.0]), radius=300_000.0)
    fastest = np.hypot(stormy["10m_u_component_of_wind"], stormy["10m_v_component_of_wind"]).isel(time=1).max()
    assert 0.8 * 30 < float(fastest) < 0.8 * 41


def test_vortex_mistakes() -> None:
    with pytest.raises(WxlabError, match="track lacks slp"):
        seed_vortex(_calm(), _track([10.0, 10.0]))
    with pytest.raises(WxlabError, match="no mean_sea_level_pressure"):
        seed_vortex(_calm().drop_vars("mean_sea_level_pressure"), _track([10.0, 10.0], slp=[95_000.0, 95_000.0]))
