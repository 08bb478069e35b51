"""Spectra on the globe: single harmonics, Parseval, turned fields, winds of known energy, scipy's harmonics, WeatherBench 2's formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import sph_harm_y

from wxlab import spectra
from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights
from wxlab.spectra.harmonics import _fits, _spin_basis, highest_degree, least_squares, legendre, scalar_coefficients
from wxlab.spectra.sphere import EARTH_RADIUS

# poles in the rows, poles between them, Gaussian rows, few columns
GAUSS = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(20)[0]))
GRIDS = {
    "poles": Grid.regular(21, 40),
    "offset": Grid.regular(20, 40),
    "gaussian": Grid(tuple(GAUSS), tuple(np.arange(40) * 9.0)),
    "north first": Grid(tuple(np.linspace(90, -90, 21)), tuple(np.arange(40) * 9.0 - 180)),
    "few columns": Grid.regular(21, 16),
}


def field(values: np.ndarray, grid: Grid, units: str = "m s**-1") -> xr.DataArray:
    dims = ("time", "latitude", "longitude")[3 - values.ndim :]
    return xr.DataArray(values, dims=dims, coords={"latitude": list(grid.y), "longitude": list(grid.x)}, attrs={"units": units})


def angles(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes [H, 1] and longitudes [1, W] in radians."""
    return np.deg2rad(np.asarray(grid.y))[:, None], np.deg2rad(np.asarray(grid.x))[None, :]


def harmonic(degree: int, order: int, grid: Grid) -> np.ndarray:
    """Complex, of mean square 1."""
    latitude, longitude = angles(grid)
    return np.sqrt(4 * np.pi) * sph_harm_y(degree, order, np.pi / 2 - latitude, longitude)


def random_field(grid: Grid, seed: int = 0, last: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A field of random coefficients, summed with scipy's harmonics, and its power by degree."""
    random, last = np.random.default_rng(seed), highest_degree(grid) if last is None else last
    total, power = np.zeros(grid.shape), np.zeros(highest_degree(grid) + 1)
    for degree in range(last + 1):
        for order in range(degree + 1):
            a = random.normal() + (1j * random.normal() if order else 0)
            total += ((2 if order else 1) * a * harmonic(degree, order, grid)).real
            power[degree] += (2 if order else 1) * abs(a) ** 2
    return total, power


def winds(psi: dict[tuple[int, int], complex], chi: dict[tuple[int, int], complex], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """u and v of a stream function and a velocity potential given by coefficients, by derivatives that scipy's harmonics allow."""
    latitude, _ = angles(grid)
    u, v = np.zeros(grid.shape), np.zeros(grid.shape)
    cosine = np.cos(latitude)
    for potential, (along_u, along_v) in ((psi, ("-y", "x")), (chi, ("x", "y"))):
        for (degree, order), a in potential.items():
            y = harmonic(degree, order, grid)
            below = harmonic(degree - 1, order, grid) if degree > order else 0
            factor = np.sqrt((2 * degree + 1) / (2 * degree - 1) * (degree**2 - order**2))
            slopes = {"x": 1j * order * y / cosine, "y": (-degree * np.sin(latitude) * y + factor * below) / cosine}
            slopes["-y"] = -slopes["y"]
            u += (a * slopes[along_u]).real / EARTH_RADIUS
            v += (a * slopes[along_v]).real / EARTH_RADIUS
    return u, v


# ---- scalars ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_a_harmonic_is_one_line(name: str) -> None:
    grid = GRIDS[name]
    last = highest_degree(grid)
    assert last == {"poles": 19, "offset": 18, "gaussian": 18, "north first": 19, "few columns": 7}[name]
    for degree, order in ((0, 0), (1, 0), (1, 1), (3, 2), (last, 0), (last, 1), (last, last - 1), (last, last)):
        power = spectra.power(field(harmonic(degree, order, grid).real, grid))
        expected = np.zeros(last + 1)
        expected[degree] = 1.0 if order == 0 else 0.5  # the mean square of cos(mλ)
        np.testing.assert_allclose(power, expected, atol=1e-10, err_msg=f"{degree} {order}")


@pytest.mark.parametrize("name", GRIDS)
def test_random_fields_made_with_scipys_harmonics(name: str) -> None:
    grid = GRIDS[name]
    values, expected = random_field(grid)
    power = spectra.power(field(values, grid))
    np.testing.assert_allclose(power, expected, rtol=1e-9)
    assert power.attrs["units"] == "m2 s-2" and power.dims == ("degree",)
    np.testing.assert_allclose(power["wavelength"][[1, 5]] / 1000, [40008, 8001.6], rtol=1e-3)
    assert np.isinf(power["wavelength"][0])


def test_coefficients_themselves() -> None:
    grid = GRIDS["poles"]
    a = 2 - 3j
    found = scalar_coefficients((2 * a * harmonic(5, 3, grid)).real, grid)
    sign = (-1) ** 3  # scipy's have the Condon-Shortley sign
    assert found[5, 3] == pytest.approx(sign * a)
    found[5, 3] = 0
    assert np.abs(found).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([*GRIDS]), st.integers(0, 1000))
def test_parseval(name: str, seed: int) -> None:
    """Σ P(l) is the area mean of f², here integrated exactly on Gaussian rows."""
    grid = GRIDS[name]
    last = min(highest_degree(grid), 9)
    values, power = random_field(grid, seed, last)
    assert float(spectra.power(field(values, grid)).sum()) == pytest.approx(power.sum(), rel=1e-9)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    fine = Grid(tuple(np.rad2deg(np.arcsin(nodes))), tuple(np.arange(40) * 9.0))
    exact, _ = random_field(fine, seed, last)
    assert ((exact**2).mean(-1) * weights).sum() / 2 == pytest.approx(power.sum(), rel=1e-9)


def test_turning_the_globe_changes_nothing() -> None:
    grid = GRIDS["offset"]
    noise = np.random.default_rng(1).normal(size=grid.shape)  # of higher degrees than are known, too
    power = spectra.power(field(noise, grid))
    for turned in (np.roll(noise, 7, axis=1), noise[:, ::-1], noise[::-1], -noise):
        np.testing.assert_allclose(spectra.power(field(turned, grid)), power, rtol=1e-10)


def test_turning_the_axis_changes_no_power() -> None:
    """What is zonal about one axis has all orders about another."""
    grid = GRIDS["poles"]
    latitude, longitude = angles(grid)
    x = np.cos(latitude) * np.cos(longitude)
    for degree in (1, 4, 9):
        polynomial = np.polynomial.legendre.Legendre.basis(degree)(x) * np.sqrt(2 * degree + 1)
        expected = np.eye(highest_degree(grid) + 1)[degree]
        np.testing.assert_allclose(spectra.power(field(polynomial, grid)), expected, atol=1e-10)


@pytest.mark.parametrize("rows", [32, 33, 121])
def test_fits_are_well_conditioned(rows: int) -> None:
    """Every order of every degree up to rows - 2 is told apart; of one more, the first order is not where there are poles."""
    grid = Grid.regular(rows, 2 * (rows - rows % 2))
    x, root = np.sin(np.deg2rad(np.asarray(grid.y))), np.sqrt(area_weights(grid) / rows)
    worst = max(np.linalg.cond(root[:, None] * legendre(x, rows - 2, m).T) for m in range(rows - 1))
    assert worst < 3.5
    worst = max(np.linalg.cond(root[:, None] * _spin_basis(x, rows - 2, m, spin).T) for m in range(rows - 1) for spin in (1, -1))
    assert worst < 3.5
    if rows % 2:
        assert np.linalg.cond(root[:, None] * legendre(x, rows - 1, 1).T) > 1e10


@pytest.mark.parametrize(("m", "spin"), [(0, 0), (3, 0), (0, 1), (2, -1)])
def test_what_a_fit_leaves_has_no_part_in_the_harmonics_by_area(m: int, spin: int) -> None:
    """Of fields with higher degrees than are known, too: the remainder is orthogonal to each harmonic, rows weighted with their areas."""
    grid = GRIDS["poles"]
    last, x = highest_degree(grid), np.sin(np.deg2rad(np.asarray(grid.y)))
    basis = legendre(x, last, m) if spin == 0 else _spin_basis(x, last, m, spin)
    values = np.random.default_rng(0).normal(size=len(x))
    remainder = values - least_squares(basis, area_weights(grid)) @ values @ basis
    assert np.abs(remainder).max() > 1e-2
    np.testing.assert_allclose(basis @ (area_weights(grid) * remainder), 0, atol=1e-10)


def test_other_dimensions_missing_points_and_laziness() -> None:
    grid = GRIDS["poles"]
    values = np.random.default_rng(0).normal(size=(3, *grid.shape))
    values[1, 4, 4] = np.nan
    array = field(values, grid).assign_coords(time=[1, 2, 3])
    power = spectra.power(array)
    assert power.dims == ("time", "degree") and power["time"].values.tolist() == [1, 2, 3]
    assert power[1].isnull().all() and power[[0, 2]].notnull().all()
    xr.testing.assert_allclose(spectra.power(array.transpose("longitude", "time", "latitude")), power)
    xr.testing.assert_allclose(spectra.power(array.chunk({"time": 1})), power)
    assert "units" not in spectra.power(array.drop_attrs()).attrs
    last = highest_degree(grid)
    assert _fits(grid, last, 0) is _fits(grid, last, 0)  # kept for the next fields


# ---- winds ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poles", "offset", "north first"])
def test_solid_body_rotation(name: str) -> None:
    """About the axis of the poles and about one in the equator: degree 1 alone, mean energy U² / 3."""
    grid = GRIDS[name]
    latitude, longitude = angles(grid)
    about_pole = (10 * np.cos(latitude) + 0 * longitude, 0 * latitude * longitude)
    about_equator = (-10 * np.sin(latitude) * np.cos(longitude), 10 * np.sin(longitude) + 0 * latitude)
    for u, v in (about_pole, about_equator):
        energy = spectra.kinetic_energy(field(u, grid), field(v, grid))
        expected = np.zeros((2, highest_degree(grid) + 1))
        expected[0, 1] = 100 / 3
        np.testing.assert_allclose(energy, expected, atol=1e-10)
        assert energy["part"].values.tolist() == ["rotational", "divergent"] and energy.attrs["units"] == "m2 s-2"


@pytest.mark.parametrize("name", ["offset", "gaussian"])
@pytest.mark.parametrize("part", ["rotational", "divergent"])
def test_energy_of_one_potential(name: str, part: str) -> None:
    """E(l) = l (l + 1) / (2 a²) times the power of the stream function (or the potential), and vorticity gives the same."""
    grid = GRIDS[name]
    last = highest_degree(grid)
    for degree, order in ((1, 0), (1, 1), (2, 1), (7, 0), (7, 5), (last, 1), (last, last)):
        coefficient = {(degree, order): 3e6 + (1e6j if order else 0)}
        u, v = winds(coefficient, {}, grid) if part == "rotational" else winds({}, coefficient, grid)
        energy = spectra.kinetic_energy(field(u, grid), field(v, grid))
        potential = (coefficient[degree, order] * harmonic(degree, order, grid)).real
        power = float(spectra.power(field(potential, grid))[degree])
        expected = degree * (degree + 1) / (2 * EARTH_RADIUS**2) * power
        assert float(energy.sel(part=part)[degree]) == pytest.approx(expected, rel=1e-9), (degree, order)
        assert float(energy.sum()) == pytest.approx(expected, rel=1e-9), (degree, order)
        vorticity = degree * (degree + 1) / EARTH_RADIUS**2 * potential
        from_vorticity = EARTH_RADIUS**2 / (2 * degree * (degree + 1)) * float(spectra.power(field(vorticity, grid))[degree])
        assert from_vorticity == pytest.approx(expected, rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_parseval_of_winds(seed: int) -> None:
    """Both parts together are the mean of (u² + v²) / 2, integrated exactly."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    grid = Grid(tuple(np.rad2deg(np.arcsin(nodes))), tuple(np.arange(40) * 9.0))
    random = np.random.default_rng(seed)
    potentials = [{(d, m): 1e6 * (random.normal() + (1j * random.normal() if m else 0)) for d in range(1, 9) for m in range(d + 1)}
                  for _ in range(2)]  # fmt: skip
    u, v = winds(*potentials, grid)
    energy = spectra.kinetic_energy(field(u, grid), field(v, grid))
    mean = (((u**2 + v**2) / 2).mean(-1) * weights).sum() / 2
    assert float(energy.sum()) == pytest.approx(mean, rel=1e-9)
    alone = spectra.kinetic_energy(*(field(each, grid) for each in winds(potentials[0], {}, grid)))
    np.testing.assert_allclose(energy.sel(part="rotational"), alone.sel(part="rotational"), atol=1e-9 * mean)


def test_a_wind_over_the_pole_is_smooth() -> None:
    """A steady flow across the poles has u and v of all longitudes there; the fit takes it as what it is."""
    grid = GRIDS["poles"]
    latitude, longitude = angles(grid)
    potential = (-10 * np.sin(longitude) + 0 * latitude, -10 * np.sin(latitude) * np.cos(longitude))  # gradient of x
    energy = spectra.kinetic_energy(*(field(each, grid) for each in potential))
    assert float(energy.sel(part="divergent")[1]) == pytest.approx(100 / 3, rel=1e-10)
    assert float(energy.sum()) == pytest.approx(100 / 3, rel=1e-10)
    assert float(spectra.power(field(potential[0], grid))[2:].sum()) > 0.5  # of u alone it is not


def test_axes_of_u_and_v_in_other_orders() -> None:
    grid = GRIDS["offset"]
    u, v = (field(np.random.default_rng(seed).normal(size=(2, *grid.shape)), grid) for seed in (0, 1))
    expected = spectra.kinetic_energy(u, v)
    assert expected.dims == ("time", "part", "degree")
    xr.testing.assert_allclose(spectra.kinetic_energy(u, v.transpose("longitude", "time", "latitude")), expected)


def test_columns_from_east_to_west() -> None:
    """Rotation stays rotation: the same wind, its columns in the other order."""
    grid = GRIDS["offset"]
    u, v = (field(each, grid) for each in winds({(3, 2): 3e6 + 1e6j, (1, 0): 1e6}, {(4, 3): 5e5j}, grid))
    turned = [each.isel(longitude=slice(None, None, -1)) for each in (u, v)]
    np.testing.assert_allclose(spectra.kinetic_energy(*turned), spectra.kinetic_energy(u, v), atol=1e-12)
    np.testing.assert_allclose(spectra.power(turned[0]), spectra.power(u), atol=1e-12)


# ---- circles ----------------------------------------------------------------------------------------------------------------------


def test_zonal_energy_as_in_weatherbench() -> None:
    """Σ S(k) = ∫ f² dl; a wave of amplitude A has C A² / 2 at its wavenumber."""
    grid = GRIDS["offset"]
    latitude, longitude = angles(grid)
    values = 3 + 2 * np.cos(4 * longitude + latitude)
    energy = spectra.zonal(field(values, grid))
    length = 2 * np.pi * EARTH_RADIUS * np.cos(latitude[:, 0])
    expected = np.zeros((20, 21))
    expected[:, 0], expected[:, 4] = 9 * length, 2 * length
    np.testing.assert_allclose(energy, expected, atol=1e-6)
    np.testing.assert_allclose(energy.sum("zonal_wavenumber"), (values**2).mean(1) * length)
    np.testing.assert_allclose(energy["wavelength"].sel(zonal_wavenumber=4), length / 4)
    np.testing.assert_allclose(energy["frequency"].sel(zonal_wavenumber=4), 4 / length)
    assert np.isinf(energy["wavelength"].sel(zonal_wavenumber=0)).all()
    shortest = spectra.zonal(field((-1.0) ** np.arange(40) + 0 * values, grid))
    np.testing.assert_allclose(shortest[:, 20], 2 * length)  # the wave of two columns counts twice, as there
    assert energy.dims == ("latitude", "zonal_wavenumber") and energy.attrs["units"] == "m2 s-2 m"
    np.testing.assert_array_equal(energy["latitude"], grid.y)


def test_circles_of_some_latitudes_are_those_of_all() -> None:
    grid = GRIDS["offset"]
    values = field(np.random.default_rng(0).normal(size=grid.shape), grid)
    some = values.isel(latitude=slice(11, 16))
    xr.testing.assert_allclose(spectra.zonal(some), spectra.zonal(values).isel(latitude=slice(11, 16)))
    xr.testing.assert_allclose(spectra.zonal(some[:1]), spectra.zonal(values).isel(latitude=[11]))


def test_poles_are_no_circles() -> None:
    grid = GRIDS["poles"]
    energy = spectra.zonal(field(np.ones(grid.shape), grid))
    assert float(energy[[0, -1]].max()) < 1e-3 * float(energy.max())
    assert bool(energy["wavelength"].notnull().all())


# ---- comparisons ------------------------------------------------------------------------------------------------------------------


def test_ratios_by_degree_and_over_bands() -> None:
    grid = GRIDS["poles"]
    values, power = random_field(grid)
    truth = spectra.power(field(values, grid))
    half = spectra.power(field(values * np.sqrt(0.5), grid))
    np.testing.assert_allclose(spectra.ratio(half, truth), 0.5)
    errors = spectra.band_errors(half, truth, {"large": (1, 6), "small": (13, 19)})
    np.testing.assert_allclose(errors["ratio"], 0.5)
    np.testing.assert_allclose(errors["log_error"], np.log(2))
    assert errors["band"].values.tolist() == ["large", "small"]
    tilted = truth * xr.DataArray(np.where(np.arange(20) % 2, 2.0, 0.5), dims="degree")
    errors = spectra.band_errors(tilted, truth, {"all": (0, 19)})
    assert float(errors["log_error"][0]) == pytest.approx(np.log(2))
    weights = np.where(np.arange(20) % 2, 2.0, 0.5)
    assert float(errors["ratio"][0]) == pytest.approx((power * weights).sum() / power.sum())
    assert spectra.band_errors(truth, truth * 0, {"all": (0, 19)}).isnull().all().to_array().all()


def test_members_and_times_are_kept() -> None:
    grid = GRIDS["offset"]
    powers = [spectra.power(field(np.random.default_rng(seed).normal(size=(4, *grid.shape)), grid)) for seed in (0, 1)]
    errors = spectra.band_errors(powers[0], powers[1], {"all": (0, 18)})
    assert dict(errors.sizes) == {"band": 1, "time": 4}
    one = spectra.band_errors(powers[0], powers[1].mean("time"), {"all": (0, 18)})
    assert dict(one.sizes) == {"band": 1, "time": 4}


def _regional() -> xr.DataArray:
    return field(np.zeros((10, 10)), Grid(tuple(np.arange(10) * 2.0), tuple(np.arange(10) * 2.0)))


def _power(rows: int = 21) -> xr.DataArray:
    grid = Grid.regular(rows, 40)
    return spectra.power(field(np.ones(grid.shape), grid))


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "plane": (lambda: spectra.power(xr.DataArray(np.zeros((4, 4)), dims=("y", "x"))), "latitude and longitude, and was given the"),
    "array": (lambda: spectra.zonal(np.zeros((4, 4))), "was given a ndarray"),  # type: ignore[arg-type]
    "region": (lambda: spectra.power(_regional()), "longitudes do not go round the globe in even steps"),
    "band of latitudes": (
        lambda: spectra.power(field(np.zeros((5, 40)), Grid(tuple(np.arange(5) * 9.0), tuple(np.arange(40) * 9.0)))),
        "latitudes do not reach from pole to pole",
    ),
    "other grids": (
        lambda: spectra.kinetic_energy(*(field(np.zeros(grid.shape), grid) for grid in (GRIDS["poles"], GRIDS["offset"]))),
        "u and v lie on different grids",
    ),
    "other times": (
        lambda: spectra.kinetic_energy(*(field(np.zeros((1, 21, 40)), GRIDS["poles"]).assign_coords(time=[t]) for t in (1, 2))),
        "or are of different times",
    ),
    "other degrees": (lambda: spectra.ratio(_power(21), _power(19)), "different wavenumbers or degrees"),
    "degrees of nothing": (lambda: spectra.band_errors(_power(), _power(), {"far": (50, 60)}), "'far' from 50 to 60 holds nothing"),
    "no band": (lambda: spectra.band_errors(_power(), _power(), {}), "bands names no band"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)
