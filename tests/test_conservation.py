"""What a forecast creates or loses: sequences that conserve by construction, drifts put in, and fields in exact balance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wxlab import conservation
from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights

LEADS = np.arange(1, 6) * np.timedelta64(6, "h")
TIMES = np.array(["2020-01-01", "2020-01-03"], "datetime64[ns]")


def globe(rows: int = 32, columns: int = 64) -> dict[str, np.ndarray]:
    grid = Grid.regular(rows, columns)
    return {"latitude": np.asarray(grid.y), "longitude": np.asarray(grid.x)}


def states(seed: int = 0, **kept: object) -> xr.Dataset:
    """Random states of all variables at one time."""
    generator, coords = np.random.default_rng(seed), globe()
    shape, levels = (32, 64), np.array([500, 850])
    names = {"mean_sea_level_pressure": (1e5, 1e3), "10m_u_component_of_wind": (0, 8), "10m_v_component_of_wind": (0, 8)}
    flat = {name: (("latitude", "longitude"), mean + size * generator.standard_normal(shape)) for name, (mean, size) in names.items()}
    upper = {"geopotential": (3e4, 1e3), "temperature": (260, 15), "specific_humidity": (5e-3, 1e-3), "u_component_of_wind": (0, 15)}
    upper["v_component_of_wind"] = (0, 15)
    deep = {
        name: (("level", "latitude", "longitude"), mean + size * generator.standard_normal((2, *shape)))
        for name, (mean, size) in upper.items()
    }
    return xr.Dataset({**flat, **deep}, {**coords, "level": levels})


def rolled(members: int = 2) -> tuple[xr.Dataset, xr.Dataset]:
    """A forecast that only moves its fields round the globe, and the truth, which moves them the other way."""
    start = states()
    valid = np.unique(TIMES[:, None] + LEADS)
    truth = xr.concat([start.roll(longitude=n, roll_coords=False) for n in range(len(valid))], xr.IndexVariable("time", valid))
    runs = [
        xr.concat(
            [
                xr.concat(
                    [start.roll(longitude=-3 * n - m, roll_coords=False) for n in range(len(LEADS))],
                    xr.IndexVariable("prediction_timedelta", LEADS),
                )
                for m in range(members)
            ],
            xr.IndexVariable("number", np.arange(members)),
        )
        for _ in TIMES
    ]
    return xr.concat(runs, xr.IndexVariable("time", TIMES)), truth


def test_what_only_moves_is_conserved() -> None:
    forecast, truth = rolled()
    found = conservation.report(forecast, truth)
    energies, balances = {"kinetic_energy", "total_energy"}, {"geostrophic_imbalance", "hydrostatic_imbalance"}
    expected = {"mass", "water", "divergence", "mean_flow_divergence"} | energies | balances
    assert set(found) == expected
    assert found.mass.dims == ("kind", "time", "number", "prediction_timedelta") and found.kind.values.tolist() == list(conservation.KINDS)
    for name in expected:
        assert float(abs(found[name].sel(kind="relative_drift")).max()) < 1e-12, name
        assert found[name].attrs["covers"] and found[name].attrs["misses"] and found[name].attrs["units"]
    assert "clouds" in found.water.attrs["misses"] and "500 to 850 hPa" in found.water.attrs["covers"]
    assert float(abs(conservation.drift_per_day(found).to_array()).max()) < 1e-11


def test_a_drift_of_one_in_ten_thousand_is_found() -> None:
    forecast, truth = rolled()
    growth = 1 + 1e-4 * xr.DataArray(np.arange(1, 6) / 4.0, {"prediction_timedelta": LEADS})  # 1e-4 a day
    forecast["mean_sea_level_pressure"] = forecast["mean_sea_level_pressure"] * growth
    forecast["specific_humidity"] = forecast["specific_humidity"] * (2 - growth)
    found = conservation.report(forecast, truth)
    np.testing.assert_allclose(found.mass.sel(kind="relative_drift"), np.broadcast_to(1e-4 * np.arange(1, 6) / 4, (2, 2, 5)), rtol=1e-8)
    slopes = conservation.drift_per_day(found)
    assert float(slopes.mass) == pytest.approx(1e-4, rel=1e-8) and float(slopes.water) == pytest.approx(-1e-4, rel=1e-8)
    assert float(slopes.kinetic_energy) == pytest.approx(0, abs=1e-12) and slopes.mass.attrs["units"] == "1/day"


def test_integrals_by_hand() -> None:
    """1/g ∫ dp of q = 4 and 6 g/kg at 500 and 850 hPa, of winds of 3 and 4 m/s, and area weights instead of plain means."""
    one = states().isel(latitude=slice(None))
    one["specific_humidity"] = one["specific_humidity"] * 0 + xr.DataArray([4e-3, 6e-3], {"level": [500, 850]})
    one["u_component_of_wind"], one["v_component_of_wind"] = one["u_component_of_wind"] * 0 + 3, one["v_component_of_wind"] * 0 + 4
    one["temperature"] = one["temperature"] * 0 + 260
    found = {str(array.name): float(array.max()) for array in conservation.quantities(one)}
    assert found["water"] == pytest.approx(5e-3 * 35000 / 9.80665, rel=1e-12)
    assert found["kinetic_energy"] == pytest.approx(12.5 * 35000 / 9.80665, rel=1e-12)
    energy = 1004.7 * 260 + 2.501e6 * 5e-3 + 12.5
    assert found["total_energy"] == pytest.approx(energy * 35000 / 9.80665, rel=1e-12)
    weights = area_weights(Grid.regular(32, 64))
    expected = (one["mean_sea_level_pressure"].values * weights[:, None]).mean()
    assert found["mass"] == pytest.approx(expected, rel=1e-14)


def balanced(rows: int) -> xr.Dataset:
    """A geopotential and its geostrophic wind, u = U cos φ: Φ = −a Ω U sin² φ, and T that explains the thickness exactly."""
    coords = globe(rows, 2 * rows)
    latitude = np.deg2rad(coords["latitude"])[:, None] * np.ones((1, 2 * rows))
    levels = np.array([500, 850])
    ratio, temperature = np.log(850 / 500), 270 - 20 * np.sin(latitude) ** 2
    lower = 1.4e4 - conservation.RADIUS * conservation.ROTATION * 10 * np.sin(latitude) ** 2
    upper = lower + conservation.GAS_CONSTANT * temperature * ratio
    wind = lower * 0 + 10 * np.cos(latitude)
    shear = conservation.GAS_CONSTANT * ratio * 20 / (conservation.RADIUS * conservation.ROTATION) * np.cos(latitude)
    return xr.Dataset(
        {
            "geopotential": (("level", "latitude", "longitude"), np.stack([upper, lower])),
            "temperature": (("level", "latitude", "longitude"), np.stack([temperature, temperature])),
            "u_component_of_wind": (("level", "latitude", "longitude"), np.stack([wind + shear, wind])),
            "v_component_of_wind": (("level", "latitude", "longitude"), np.zeros((2, rows, 2 * rows))),
        },
        {**coords, "level": levels},
    )


def test_balance() -> None:
    """A zonal wind in balance: nothing is ageostrophic, hydrostatic or divergent but for differences of second order."""
    coarse, fine = ({str(array.name): array for array in conservation.quantities(balanced(rows))} for rows in (32, 64))
    assert float(fine["geostrophic_imbalance"].max()) < 2e-3
    assert float(fine["geostrophic_imbalance"].max()) < 0.3 * float(coarse["geostrophic_imbalance"].max())  # second order
    assert float(fine["hydrostatic_imbalance"].max()) < 1e-12
    assert float(fine["divergence"].max()) < 1e-18 and float(fine["mean_flow_divergence"]) < 1e-18
    against = balanced(64)
    against["u_component_of_wind"] = -against["u_component_of_wind"]
    found = {str(array.name): array for array in conservation.quantities(against)}
    np.testing.assert_allclose(found["geostrophic_imbalance"], 2, atol=5e-3)
    warm = balanced(64)
    warm["temperature"] = warm["temperature"] * 1.02
    found = {str(array.name): array for array in conservation.quantities(warm)}
    assert float(found["hydrostatic_imbalance"].max()) == pytest.approx(0.02, rel=1e-9)


def test_divergence_of_a_known_wind() -> None:
    """v = V sin 2φ has divergence V/a (2 cos 2φ − tan φ sin 2φ)."""
    wind = balanced(128)
    latitude = np.deg2rad(wind["latitude"])
    wind["u_component_of_wind"] = wind["u_component_of_wind"] * 0
    wind["v_component_of_wind"] = wind["v_component_of_wind"] * 0 + 10 * np.sin(2 * latitude)
    found = {str(array.name): array for array in conservation.quantities(wind)}
    exact = 10 / conservation.RADIUS * (2 * np.cos(2 * latitude) - np.tan(latitude) * np.sin(2 * latitude))
    weights = np.cos(latitude)[1:-1]
    expected = float(np.sqrt((exact[1:-1] ** 2 * weights).sum() / weights.sum()))
    np.testing.assert_allclose(found["divergence"], expected, rtol=1e-3)


def waves(rows: int, columns: int) -> xr.Dataset:
    """A geopotential with waves and its geostrophic wind, both parts of it; T_v, with humidity, explains the thickness exactly."""
    grid = Grid.regular(rows, columns)
    coords = {"latitude": np.asarray(grid.y), "longitude": np.asarray(grid.x)}
    phi, lam = np.meshgrid(np.deg2rad(coords["latitude"]), np.deg2rad(coords["longitude"]), indexing="ij")
    radius, levels = conservation.RADIUS, np.array([500, 850])
    size = 400 / (2 * conservation.ROTATION * radius)
    lower = 1.4e4 + 400 * np.sin(phi) ** 2 * np.cos(phi) ** 4 * np.cos(3 * lam)
    virtual = 270.0 + 0 * phi
    u = -size * (2 * np.cos(phi) ** 5 - 4 * np.sin(phi) ** 2 * np.cos(phi) ** 3) * np.cos(3 * lam)  # −∂Φ/∂y / f
    v = -3 * size * np.sin(phi) * np.cos(phi) ** 3 * np.sin(3 * lam)  # ∂Φ/∂x / f
    thickness = conservation.GAS_CONSTANT * np.log(850 / 500) * virtual
    humidity = 4e-3 * np.cos(phi) ** 2
    fields = {
        "geopotential": [lower + thickness, lower],
        "temperature": [virtual / (1 + 0.608 * humidity)] * 2,
        "specific_humidity": [humidity] * 2,
        "u_component_of_wind": [u, u],
        "v_component_of_wind": [v, v],
    }
    dims = ("level", "latitude", "longitude")
    made = xr.Dataset({name: (dims, np.stack(values)) for name, values in fields.items()}, {**coords, "level": levels})
    return made.assign(surface_pressure=(dims[1:], 1e5 + 500 * np.sin(phi) + 0 * lam))


AREAS = {
    "globe": {"latitude": slice(None), "longitude": slice(None)},
    "middle latitudes, across the seam": {"latitude": slice(88, 116), "longitude": [*range(230, 256), *range(20)]},
}


@pytest.mark.parametrize("rows", [128, 129])
@pytest.mark.parametrize("area", AREAS)
def test_both_parts_of_the_wind_and_moist_air_in_balance(rows: int, area: str) -> None:
    """With and without poles on the grid, on the globe and where a region crosses 0°; a wind turned round is off by twice its size."""
    fields = waves(rows, 256).isel(AREAS[area])
    fields = fields.sortby("longitude")  # 0 to 28 and 323 to 359 degrees
    found = {str(array.name): array for array in conservation.quantities(fields)}
    assert float(found["geostrophic_imbalance"].max()) < 0.02
    assert float(found["hydrostatic_imbalance"].max()) < 1e-12
    dry = {str(array.name): array for array in conservation.quantities(fields.drop_vars("specific_humidity"))}
    assert float(dry["hydrostatic_imbalance"].max()) > 1e-4
    for part in ("u_component_of_wind", "v_component_of_wind"):
        other = {str(array.name): array for array in conservation.quantities(fields.assign({part: -fields[part]}))}
        assert float(other["geostrophic_imbalance"].min()) > 0.5, part
    assert float(found["mass"]) == pytest.approx(1e5, abs=0.01) if area == "globe" else found["mass"] > 1.003e5
    assert "surface pressure" in found["mass"].attrs["long_name"]


@pytest.mark.parametrize("rows", [64, 65])
def test_divergence_of_a_wind_to_the_east(rows: int) -> None:
    """u = U cos φ sin 2λ has divergence 2 U cos 2λ / a, everywhere the same size, across the seam too."""
    fields = waves(rows, 256)
    phi, lam = np.deg2rad(fields["latitude"]), np.deg2rad(fields["longitude"])
    fields["u_component_of_wind"] = fields["u_component_of_wind"] * 0 + 10 * np.cos(phi) * np.sin(2 * lam)
    fields["v_component_of_wind"] = fields["v_component_of_wind"] * 0
    for given in (fields, fields.isel(longitude=slice(None, None, -1))):
        found = {str(array.name): array for array in conservation.quantities(given)}
        np.testing.assert_allclose(found["divergence"], 20 / conservation.RADIUS / np.sqrt(2), rtol=1e-3)


@pytest.mark.parametrize("rows", [32, 33])
def test_order_of_rows_columns_and_levels_changes_nothing(rows: int) -> None:
    """Also where the truth runs another way than the forecast."""
    one = waves(rows, 64)
    forecast = xr.concat([one * (1 + 0.01 * n) for n in range(3)], xr.IndexVariable("prediction_timedelta", LEADS[:3]))
    forecast = forecast.expand_dims(time=TIMES[:1])
    truth = xr.concat([one * (1 + 0.002 * n) for n in range(3)], xr.IndexVariable("time", TIMES[0] + LEADS[:3]))
    expected = conservation.report(forecast, truth)
    assert "number" not in expected.dims and len(expected) == 8

    def west(states: xr.Dataset) -> xr.Dataset:
        return states.assign_coords(longitude=(states["longitude"] + 180) % 360 - 180).sortby("longitude")

    def back(dim: str) -> Callable[[xr.Dataset], xr.Dataset]:
        return lambda states: states.isel({dim: slice(None, None, -1)})

    for change in (back("latitude"), back("longitude"), back("level"), west):
        for found in (conservation.report(change(forecast), change(truth)), conservation.report(change(forecast), truth)):
            xr.testing.assert_allclose(found.isel(kind=[0, 1]), expected.isel(kind=[0, 1]), rtol=1e-10)
            assert float(found.mass.sel(kind="relative_drift")[0, 2]) == pytest.approx(1.02 / 1.004 - 1, rel=1e-9)


def test_what_cannot_be_made_is_said() -> None:
    forecast, truth = rolled()
    few = forecast[["mean_sea_level_pressure", "u_component_of_wind", "temperature"]]
    found = conservation.report(few, truth)
    assert set(found) == {"mass", "total_energy"}
    for words in ("water (needs specific_humidity on two levels", "kinetic_energy (needs both winds", "divergence (needs both winds on"):
        assert words in found.attrs["left_out"]
    assert "mass (" not in found.attrs["left_out"]
    assert conservation.report(forecast, truth).attrs["left_out"] == "nothing"


def test_nothing_has_no_relative_drift() -> None:
    """A dry tile: what is made of nothing is no number, and neither is its slope."""
    values = np.random.default_rng(0).random((2, 3, 8, 8))
    axes = {"y": np.arange(8.0), "x": np.arange(8.0)}
    forecast = xr.Dataset(
        {"rain_rate": (("time", "prediction_timedelta", "y", "x"), values)}, {"time": TIMES, "prediction_timedelta": LEADS[:3], **axes}
    )
    valid = np.unique(TIMES[:, None] + LEADS[:3])
    rain = np.ones((6, 8, 8))
    rain[4] = 0
    found = conservation.report(forecast, xr.Dataset({"rain_rate": (("time", "y", "x"), rain)}, {"time": valid, **axes}))
    relative = found.rain.sel(kind="relative_drift")
    np.testing.assert_allclose(relative[0], values[0].mean((1, 2)) - 1, rtol=1e-12)
    assert np.isnan(relative[1]).values.tolist() == [False, True, False]
    assert found.rain.sel(kind="drift").notnull().all() and np.isnan(conservation.drift_per_day(found).rain)


def test_pieces_and_stores_give_the_same(tmp_path: Path) -> None:
    forecast, truth = rolled()
    forecast.chunk({"time": 1, "prediction_timedelta": 2}).to_zarr(tmp_path / "forecast.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "forecast.zarr", chunks={}, consolidated=False, decode_timedelta=True)
    xr.testing.assert_allclose(conservation.report(lazy, truth.chunk({"time": 3})), conservation.report(forecast, truth), rtol=1e-12)


def test_fewer_variables_say_what_they_miss() -> None:
    forecast, truth = rolled()
    few = conservation.report(forecast[["mean_sea_level_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind"]], truth)
    assert set(few) == {"mass", "kinetic_energy"} and few.kinetic_energy.attrs["units"] == "m2 s-2"
    dry = conservation.report(forecast[["temperature"]], truth)
    assert (
        set(dry) == {"total_energy"} and "latent heat" in dry.total_energy.attrs["misses"] and "kinetic" in dry.total_energy.attrs["misses"]
    )
    region = forecast.isel(latitude=slice(10, 20), longitude=slice(0, 30))
    there = conservation.report(region, truth.isel(latitude=slice(10, 20), longitude=slice(0, 30)))
    assert "sides of the region" in there.mass.attrs["misses"]


def test_without_truth_the_first_lead_is_the_reference() -> None:
    forecast, _ = rolled()
    forecast["mean_sea_level_pressure"] = forecast["mean_sea_level_pressure"] + xr.DataArray(
        np.arange(5) * 100.0, {"prediction_timedelta": LEADS}
    )
    found = conservation.report(forecast)
    np.testing.assert_allclose(found.mass.sel(kind="drift"), np.broadcast_to(np.arange(5) * 100.0, (2, 2, 5)), atol=1e-6)
    assert found.attrs["reference"] == "first lead time"


def test_radar() -> None:
    values = np.random.default_rng(0).random((1, 3, 8, 8))
    dims = ("time", "prediction_timedelta", "y", "x")
    coords = {"time": TIMES[:1], "prediction_timedelta": LEADS[:3], "y": np.arange(8.0), "x": np.arange(8.0)}
    found = conservation.report(xr.Dataset({"rain_rate": (dims, values, {"units": "mm/h"})}, coords))
    np.testing.assert_allclose(found.rain.sel(kind="forecast"), values.mean((2, 3)), rtol=1e-12)
    assert found.rain.attrs["units"] == "mm/h"


def test_mistakes_get_one_sentence() -> None:
    forecast, truth = rolled()
    late = forecast.assign_coords(time=TIMES + np.timedelta64(400, "D"))
    lost = forecast.copy(deep=True)
    lost["mean_sea_level_pressure"][1, 0, 2, 4, 4] = np.nan
    for given, against, message in (
        (truth, None, "no 'prediction_timedelta' coordinate"),
        (late, truth, "lacks 10 of 10 valid times, the first 2021-02"),
        (forecast.isel(longitude=slice(2, None)), truth, "another grid"),
        (lost, truth, "mass of the forecast is missing from 18 h on"),
        (forecast[["10m_u_component_of_wind"]], truth, "no conserved quantity can be made"),
        (forecast, truth.drop_vars("mean_sea_level_pressure"), "unknown quantity of the truth 'mass'"),
        (forecast, truth.sel(level=[500]), "levels"),
        (forecast, 5, "truth is a int"),
        (forecast.isel(longitude=[0, 1, 2, 9]), None, "longitudes are 5.625 to 39.375 degrees apart; regrid to even ones"),
    ):
        with pytest.raises(WxlabError, match=message):
            conservation.report(given, against)  # type: ignore[arg-type]
    with pytest.raises(WxlabError, match="at least two lead times"):
        conservation.drift_per_day(conservation.report(forecast.isel(prediction_timedelta=[0])))
