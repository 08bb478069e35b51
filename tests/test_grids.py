"""Grids: cell areas, and regridding that keeps what it promises to keep."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from wxlab.errors import WxlabError
from wxlab.grids import (
    Grid,
    Regridder,
    area_weights,
    crop_to_multiple,
    default_method,
    grid_of,
    is_global,
    is_periodic,
    join_columns,
    latitude_edges,
    parse_grid,
    regrid,
)

GAUSSIAN_T21 = tuple(np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(32)[0])))
EUROPE = Grid(tuple(np.arange(70, 29.9, -2.5)), tuple(np.arange(290, 370.1, 2.5)))
RADAR = Grid(tuple(250.0 + 500 * np.arange(48)), tuple(250.0 + 500 * np.arange(64)), "xy")


def smooth(grid: Grid) -> np.ndarray:
    """A field of large scales on the sphere."""
    y, x = np.deg2rad(np.asarray(grid.y))[:, None], np.deg2rad(np.asarray(grid.x))[None, :]
    return 280 + 30 * np.cos(y) ** 2 * np.cos(2 * x + 0.3) + 20 * np.sin(y)


def area_mean(field: np.ndarray, grid: Grid) -> float:
    return float((field.mean(-1) * area_weights(grid)).mean())


def test_area_weights_are_the_cells_share_of_the_sphere() -> None:
    weights = area_weights(Grid.regular(4, 8))
    expected = np.diff(np.sin(np.deg2rad([-90, -45, 0, 45, 90])))
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-12)


def test_a_row_on_a_pole_is_a_cap_of_half_a_cell() -> None:
    weights = area_weights(Grid.regular(5, 8))  # -90, -45, 0, 45, 90
    np.testing.assert_allclose(weights[0] / weights[2], (1 - np.sin(np.deg2rad(67.5))) / (2 * np.sin(np.deg2rad(22.5))), rtol=1e-12)
    assert weights.mean() == pytest.approx(1)


def test_gaussian_rows_reach_the_poles_and_come_near_the_quadrature_weights() -> None:
    grid = Grid(GAUSSIAN_T21, Grid.regular(32, 64).x)
    assert latitude_edges(grid)[[0, -1]].tolist() == [-90, 90] and is_global(grid)
    quadrature = np.polynomial.legendre.leggauss(32)[1]
    np.testing.assert_allclose(area_weights(grid), quadrature / quadrature.mean(), rtol=0.08)


def test_descending_rows_weigh_the_same() -> None:
    grid = Grid.regular(17, 32)
    flipped = Grid(grid.y[::-1], grid.x)
    np.testing.assert_allclose(area_weights(flipped), area_weights(grid)[::-1], rtol=1e-12)


def test_metres_weigh_one() -> None:
    assert area_weights(RADAR).tolist() == [1.0] * 48


PAIRS = [
    (Grid.regular(64, 128), Grid.regular(32, 64)),
    (Grid.regular(121, 240), Grid.regular(32, 64)),
    (Grid.regular(33, 64), Grid.regular(16, 40)),
    (Grid(Grid.regular(61, 120).y[::-1], Grid.regular(61, 120).x), Grid.regular(30, 60)),
    (Grid(GAUSSIAN_T21, Grid.regular(32, 64).x), Grid.regular(16, 32)),
    (Grid.regular(32, 64), Grid.regular(61, 120)),
    (EUROPE, Grid(tuple(np.arange(68, 32, -4.0)), tuple(np.arange(294, 366, 4.0)))),
    (RADAR, Grid(tuple(500.0 + 1000 * np.arange(24)), tuple(500.0 + 1000 * np.arange(32)), "xy")),
]


@pytest.mark.parametrize("method", ["conservative", "bilinear"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].shape}-{pair[1].shape}")
def test_constants_stay(pair: tuple[Grid, Grid], method: str) -> None:
    source, target = pair
    out = Regridder(source, target, method)(np.full((2, *source.shape), 287.25))
    assert out.shape == (2, *target.shape)
    np.testing.assert_allclose(out, 287.25, rtol=1e-13)


@settings(deadline=None, max_examples=25)
@given(st.tuples(st.integers(3, 40), st.integers(4, 50)), st.tuples(st.integers(3, 40), st.integers(4, 50)), st.integers(0, 99))
def test_conservative_keeps_the_area_mean_of_any_field(shape: tuple[int, int], to: tuple[int, int], seed: int) -> None:
    source, target = Grid.regular(*shape), Grid.regular(*to)
    field = np.random.default_rng(seed).normal(size=source.shape)
    out = Regridder(source, target)(field)
    assert area_mean(out, target) == pytest.approx(area_mean(field, source), abs=1e-12)
    assert out.min() >= field.min() - 1e-12 and out.max() <= field.max() + 1e-12


def test_conservative_is_the_mean_of_the_cells_below_when_they_nest() -> None:
    fine = Grid.regular(8, 16)
    coarse = Grid(parse_grid((4, 8), fine).y, tuple(22.5 / 2 + 45 * i for i in range(8)))
    field = np.random.default_rng(1).normal(size=fine.shape)
    out = Regridder(fine, coarse)(field)
    area = area_weights(fine)[:, None]
    weighted = (field * area).reshape(4, 2, 8, 2).sum((1, 3)) / (area.reshape(4, 2, 1, 1).sum((1, 3)) * 2)
    np.testing.assert_allclose(out, weighted, rtol=1e-10)


def test_bilinear_reproduces_linear_functions_inside() -> None:
    target = Grid(tuple(np.linspace(32, 68, 23)), tuple(np.linspace(291, 369, 31)))
    y, x = np.meshgrid(EUROPE.y, EUROPE.x, indexing="ij")
    out = Regridder(EUROPE, target, "bilinear")(3 * y - 0.5 * x)
    y, x = np.meshgrid(target.y, target.x, indexing="ij")
    np.testing.assert_allclose(out, 3 * y - 0.5 * x, rtol=1e-12)


def test_bilinear_goes_round_the_globe() -> None:
    source = Grid.regular(16, 36)
    target = Grid(source.y, tuple(np.arange(0, 360, 5.0)))
    field = np.broadcast_to(np.cos(np.deg2rad(np.asarray(source.x))), source.shape)
    out = Regridder(source, target, "bilinear")(field)
    assert out[0, -1] == pytest.approx((np.cos(np.deg2rad(350)) + 1) / 2)  # 355 lies between 350 and 0


@pytest.mark.parametrize(("there", "back", "error"), [("bilinear", "conservative", 0.6), ("bilinear", "bilinear", 0.6)])
def test_smooth_fields_come_back(there: str, back: str, error: float) -> None:
    grid, fine = Grid.regular(32, 64), Grid.regular(121, 240)
    field = smooth(grid)
    returned = Regridder(fine, grid, back)(Regridder(grid, fine, there)(field))
    assert np.abs(returned - field).max() < error  # of a field that spans 60
    np.testing.assert_allclose(Regridder(grid, fine, there)(field), smooth(fine), atol=error)


def test_same_area_named_otherwise_gives_the_same() -> None:
    west = Grid(EUROPE.y, tuple(value - 360 for value in EUROPE.x))
    target = Grid(tuple(np.arange(66, 34, -4.0)), tuple(np.arange(294, 366, 4.0)))
    field = np.random.default_rng(0).normal(size=EUROPE.shape)
    for method in ("conservative", "bilinear"):
        np.testing.assert_allclose(Regridder(west, target, method)(field), Regridder(EUROPE, target, method)(field), rtol=1e-9)


def test_missing_points_are_left_out_and_majorities_of_them_stay_missing() -> None:
    source, target = Grid.regular(8, 16), Grid.regular(4, 8)
    field = np.full(source.shape, 5.0)
    field[:2] = np.nan  # all of the southernmost target row
    field[4, 3] = np.nan
    aware = Regridder(source, target)(field, nan_aware=True)
    assert np.isnan(aware[0]).all() and np.isfinite(aware[1:]).all()
    np.testing.assert_allclose(aware[1:], 5.0, rtol=1e-12)
    assert np.isnan(Regridder(source, target)(field)).sum() > np.isnan(aware).sum()


def test_precision_is_kept() -> None:
    field = smooth(Grid.regular(64, 128)).astype(np.float32)
    out = Regridder(Grid.regular(64, 128), Grid.regular(32, 64))(field)
    exact = Regridder(Grid.regular(64, 128), Grid.regular(32, 64))(field.astype(np.float64))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact, rtol=1e-6)


def test_regrid_of_a_dataset_is_lazy_and_leaves_other_variables() -> None:
    source = Grid.regular(16, 32)
    field = xr.DataArray(
        np.random.default_rng(0).normal(size=(3, *source.shape)).astype(np.float32),
        dims=("time", "latitude", "longitude"),
        coords={"time": np.arange(3), "latitude": list(source.y), "longitude": list(source.x)},
        attrs={"units": "K"},
    )
    dataset = xr.Dataset({"t": field.chunk(time=1), "co2": ("time", [1.0, 2.0, 3.0])})
    out = regrid(dataset, "8x16", "conservative")
    assert out["t"].chunks is not None and out["t"].attrs == {"units": "K"} and grid_of(out) == Grid.regular(8, 16)
    np.testing.assert_allclose(out["t"].values, Regridder(source, Grid.regular(8, 16))(field.values), rtol=1e-6)
    assert out["co2"].identical(dataset["co2"])
    assert regrid(field, Grid.regular(8, 16)).dims == ("time", "latitude", "longitude")


def test_method_follows_the_direction() -> None:
    assert default_method(Grid.regular(64, 128), Grid.regular(32, 64)) == "conservative"
    assert default_method(Grid.regular(32, 64), Grid.regular(64, 128)) == "bilinear"


@pytest.mark.parametrize("given_grid", ["16x32", "16 X 32", (16, 32), [16, 32], Grid.regular(16, 32)])
def test_ways_to_name_a_grid(given_grid: object) -> None:
    assert parse_grid(given_grid, Grid.regular(64, 128)) == Grid.regular(16, 32)  # type: ignore[arg-type]


def test_rows_and_columns_of_an_area_cover_the_same_area() -> None:
    out = parse_grid((8, 16), EUROPE)
    assert out.shape == (8, 16) and out.y[0] > out.y[-1]  # as the source
    assert latitude_edges(out)[[0, -1]] == pytest.approx([71.25, 28.75])
    assert parse_grid("24x32", RADAR) == Grid(tuple(500.0 + 1000 * np.arange(24)), tuple(500.0 + 1000 * np.arange(32)), "xy")


def test_what_is_global_and_periodic() -> None:
    assert is_global(Grid.regular(33, 64)) and is_global(Grid.regular(32, 64)) and not is_global(EUROPE)
    assert is_periodic(Grid((10.0, 20.0), Grid.regular(4, 8).x)) and not is_periodic(EUROPE) and not is_periodic(RADAR)


def test_an_area_across_greenwich_is_joined() -> None:
    x = np.sort(np.asarray(EUROPE.x) % 360)
    field = np.tile(x, (len(EUROPE.y), 1))
    dataset = xr.Dataset({"u": (("latitude", "longitude"), field)}, coords={"latitude": list(EUROPE.y), "longitude": x})
    joined = join_columns(dataset)
    assert joined["longitude"].values.tolist() == list(EUROPE.x)
    np.testing.assert_array_equal(joined["u"].values[0], np.asarray(EUROPE.x) % 360)
    assert join_columns(joined).identical(joined)
    globe = xr.Dataset(coords={"longitude": list(Grid.regular(4, 8).x)})
    assert join_columns(globe).identical(globe)


def test_crop_takes_from_both_ends() -> None:
    grid = Grid(tuple(np.arange(17.0)), tuple(np.arange(35.0)))
    cropped = crop_to_multiple(grid, (4, 8))
    assert cropped.shape == (16, 32) and cropped.y[0] == 0 and cropped.x[0] == 1
    axes = {"latitude": list(grid.y), "longitude": list(grid.x)}
    dataset = xr.Dataset({"t": (("latitude", "longitude"), np.zeros(grid.shape))}, coords=axes)
    assert grid_of(crop_to_multiple(dataset, (4, 8))) == cropped
    assert crop_to_multiple(Grid.regular(32, 64), (4, 4)) == Grid.regular(32, 64)


FAULTS = {
    "grid string": (lambda: parse_grid("32*64", EUROPE), "'32\\*64' is not a grid; give 'ROWSxCOLUMNS'"),
    "one number": (lambda: parse_grid((32,), EUROPE), "is not a grid"),  # type: ignore[arg-type]
    "empty grid": (lambda: parse_grid("0x64", EUROPE), "is not a grid"),
    "outside": (lambda: Regridder(EUROPE, Grid.regular(32, 64)), "rows of the target grid lie outside the source grid"),
    "method": (lambda: Regridder(EUROPE, EUROPE, "bilinaer"), "did you mean 'bilinear'"),  # type: ignore[arg-type]
    "kinds": (lambda: Regridder(EUROPE, RADAR), "cannot go to a 'xy' grid"),
    "shape": (lambda: Regridder(RADAR, RADAR)(np.zeros((3, 3))), "do not lie on the source grid"),
    "crop": (lambda: crop_to_multiple(EUROPE, (64, 4)), "17 rows cannot be cropped to a multiple of 64"),
    "latitudes": (lambda: Grid((0.0, 100.0), (0.0, 1.0)), "are latitude and longitude swapped"),
    "unsorted": (lambda: grid_of(xr.Dataset(coords={"latitude": [0.0, 2.0, 1.0], "longitude": [0.0]})), "strictly ascending or descending"),
    "no grid": (lambda: grid_of(xr.Dataset(coords={"time": [0]})), "a grid needs latitude and longitude"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str) -> None:
    call, message = FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
