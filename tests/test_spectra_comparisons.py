"""Spectra by closed forms on the usual grids, of lazy fields, compared with each other and with pyshtools; responses of operators."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.special import sph_harm_y
from torch import Tensor, nn

from wxlab import spectra
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models import create_model
from wxlab.models.base import Batch, Model, Spec
from wxlab.spectra import pieces
from wxlab.spectra.harmonics import scalar_coefficients, synthesis
from wxlab.spectra.sphere import EARTH_RADIUS

SHAPES = [(121, 240), (32, 64), (64, 128), (181, 360)]
GRID = Grid.regular(19, 36)


def field(values: np.ndarray, grid: Grid = GRID, *leading: str) -> xr.DataArray:
    coords = {"latitude": list(grid.y), "longitude": list(grid.x)}
    return xr.DataArray(values, coords, (*leading, "latitude", "longitude"), attrs={"units": "K"})


def noise(*shape: int, grid: Grid = GRID, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, *grid.shape))


def plane(values: np.ndarray, *leading: str) -> xr.DataArray:
    coords = {dim: np.arange(n) * 1000.0 for dim, n in zip(("y", "x"), values.shape[-2:], strict=True)}
    return xr.DataArray(values, coords, (*leading, "y", "x"), attrs={"units": "mm h-1"})


# ---- closed forms on the usual grids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_harmonics_and_parseval_on_usual_grids(shape: tuple[int, int]) -> None:
    """One line at its degree, and Σ P(l) the mean square of a sum of such, to 1e-10."""
    grid = Grid.regular(*shape)
    latitude, longitude = np.deg2rad(grid.y)[:, None], np.deg2rad(grid.x)[None]
    chosen = [(0, 0), (7, 3), (shape[0] // 3, 2), (shape[0] - 3, shape[0] - 3), (shape[0] - 3, 1), (shape[0] - 2, 0)]
    fields = [np.sqrt(4 * np.pi) * sph_harm_y(degree, order, np.pi / 2 - latitude, longitude).real for degree, order in chosen]
    power = spectra.power(field(np.stack(fields), grid, "n")).values
    expected = np.zeros_like(power)
    for i, (degree, order) in enumerate(chosen):
        expected[i, degree] = 0.5 if order else 1.0
    np.testing.assert_allclose(power, expected, atol=1e-10)
    mixed = spectra.power(field(np.stack(fields).sum(0), grid))  # of other degrees or orders, so that their mean squares add
    assert float(mixed.sum()) == pytest.approx(expected.sum(), rel=1e-10)


@pytest.mark.parametrize("shape", [(32, 64), (121, 240)], ids=str)
def test_rossby_haurwitz_wave(shape: tuple[int, int]) -> None:
    """Stream function −a² ω sin φ + a² K cos⁴φ sin φ cos 4λ: ω² a² / 3 in degree 1, 15 K² a² ⟨(cos⁴φ sin φ cos 4λ)²⟩ in degree 5."""
    grid, omega, k = Grid.regular(*shape), 7.848e-6, 5e-6
    phi, lam = np.deg2rad(grid.y)[:, None], np.deg2rad(grid.x)[None]
    c, s = np.cos(phi), np.sin(phi)
    u = EARTH_RADIUS * (omega * c + k * c**3 * (4 * s**2 - c**2) * np.cos(4 * lam))
    v = -EARTH_RADIUS * k * 4 * c**3 * s * np.sin(4 * lam)
    mean = sum((Fraction(part, n) for part, n in ((1, 3), (-4, 5), (6, 7), (-4, 9), (1, 11))), Fraction(0)) / 2  # of x² (1 − x²)⁴ / 2
    expected = np.zeros((2, shape[0] - 1))[:, : (min(shape[0] - 2, (shape[1] - 1) // 2)) + 1]
    expected[0, 1], expected[0, 5] = (EARTH_RADIUS * omega) ** 2 / 3, 15 * (EARTH_RADIUS * k) ** 2 * float(mean)
    states = xr.Dataset({"10m_u_component_of_wind": field(u, grid), "10m_v_component_of_wind": field(v + 0 * u, grid)})
    np.testing.assert_allclose(spectra.kinetic_energy(states), expected, atol=1e-10 * expected.max())


def test_zonal_energy_of_four_numbers() -> None:
    """1, 2, 3, 6 on the equator: F = 3, (−1 + i)/2 ..., −1; WeatherBench 2's S(0) = C F₀², S(k) = 2 C |F_k|²."""
    grid = Grid((-60.0, 0.0, 60.0), (0.0, 90.0, 180.0, 270.0))
    energy = spectra.zonal(field(np.tile([1.0, 2.0, 3.0, 6.0], (3, 1)), grid))
    length = 2 * np.pi * EARTH_RADIUS
    np.testing.assert_allclose(energy.sel(latitude=0) / length, [9, 2 * (0.25 + 1), 2 * 1], rtol=1e-12)
    np.testing.assert_allclose(energy.sel(latitude=60), energy.sel(latitude=0) / 2, rtol=1e-12)


@pytest.mark.parametrize("lead", ["gaussian", "equal"])
def test_pyshtools_finds_the_same(lead: str) -> None:
    expand = pytest.importorskip("pyshtools.expand", reason="pyshtools is not installed: nothing to compare with")
    if lead == "gaussian":
        x, weights = expand.SHGLQ(30)
        grid = Grid(tuple(np.rad2deg(np.arcsin(x))), tuple(np.arange(61) * 360 / 61))
        values = noise(grid=grid)
        theirs = expand.SHExpandGLQ(values, weights, x)
    else:
        grid = Grid(tuple(np.linspace(90, -90, 61)), tuple(np.arange(120) * 3.0))
        values = synthesis(scalar_coefficients(noise(), GRID), grid)  # of no degree above 17: there is one answer
        theirs = expand.SHExpandDH(values[:-1], sampling=2)
    power = (theirs**2).sum((0, 2))
    ours = spectra.power(field(values, grid))
    count = min(len(power), ours.size, 18 if lead == "equal" else 31)
    if lead == "gaussian":  # the fit stops one degree earlier, and noise has all of them
        values = synthesis(scalar_coefficients(values, grid), grid)
        power = (expand.SHExpandGLQ(values, weights, x) ** 2).sum((0, 2))[: ours.size]
        ours, count = spectra.power(field(values, grid)), ours.size
    np.testing.assert_allclose(ours[:count], power[:count], rtol=1e-10, atol=1e-12)


def test_synthesis_is_the_inverse() -> None:
    coefficients = scalar_coefficients(noise(2), GRID)
    np.testing.assert_allclose(scalar_coefficients(synthesis(coefficients, GRID), GRID), coefficients, atol=1e-12)


# ---- lazy fields and pieces ---------------------------------------------------------------------------------------------------------

MAPS = field(noise(6, 2), GRID, "time", "number").assign_coords(time=np.arange(6), number=[0, 1])
TILES = plane(np.random.default_rng(1).gamma(1.0, size=(6, 2, 12, 16)), "time", "number")
FUNCTIONS: dict[str, tuple[Callable[[xr.DataArray], xr.DataArray], xr.DataArray]] = {
    "power": (spectra.power, MAPS),
    "energy": (lambda each: spectra.kinetic_energy(each, 2 * each + each**2), MAPS),
    "zonal": (spectra.zonal, MAPS),
    "radial": (spectra.radial, TILES),
    "window": (lambda each: spectra.radial(each, window="hann"), TILES),
    "coherence": (lambda each: spectra.coherence(each, each.isel(number=0, drop=True)), MAPS),
    "rings": (lambda each: spectra.coherence(each, each[:, 0]), TILES),
    "bands": (lambda each: spectra.band_errors(spectra.power(each), spectra.power(each[0]), {"all": (1, 9)})["log_error"], MAPS),
    "resolution": (lambda each: spectra.effective_resolution(spectra.power(each), spectra.power(each[0])), MAPS),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lazy_fields_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, fields = FUNCTIONS[name]
    eager = function(fields)
    dims = fields.dims
    lazy = function(fields.chunk({dims[0]: 4, dims[1]: 1, dims[2]: 5}))
    assert lazy.chunks is not None and eager.chunks is None
    xr.testing.assert_allclose(lazy.compute(), eager, rtol=1e-12)
    monkeypatch.setattr(pieces, "PIECE", 1)
    xr.testing.assert_allclose(function(fields), eager, rtol=1e-12)


def test_lazy_fields_are_not_read_before_they_are_asked_for() -> None:
    def refuse(_: Any) -> Any:
        raise AssertionError("the fields were read")

    import dask.array as da

    fields = field(da.map_blocks(refuse, da.zeros((4, *GRID.shape), chunks=(1, -1, -1)), meta=np.empty((0, 0, 0))), GRID, "time")
    power = spectra.power(fields)
    with pytest.raises(AssertionError, match="were read"):
        power.compute()


# ---- windows ------------------------------------------------------------------------------------------------------------------------


def test_a_window_takes_the_steps_at_the_sides_away() -> None:
    """A slope has waves of all lengths where its sides meet; a window leaves those of the tile itself."""
    values = 5 + np.add.outer(np.zeros(64), np.linspace(0, 10, 64))
    bare, faded = (spectra.radial(plane(values), window=window) for window in (None, "hann"))
    assert float(faded[20:].max()) < 1e-4 * float(bare[20:].max())
    assert float(faded[0]) == pytest.approx(values.mean() ** 2, rel=0.05) == float(bare[0])


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman", "tukey"])
def test_a_window_keeps_the_variance(window: str) -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(40, 32, 48))
    power = spectra.radial(plane(values, "time"), window=window)
    assert float((power * power["modes"]).sum("wavenumber").mean()) == pytest.approx(9 + 4, rel=0.02)
    flat = power.mean("time")[2:14]
    np.testing.assert_allclose(flat, 4 / (32 * 48), rtol=0.25)


# ---- coherence ----------------------------------------------------------------------------------------------------------------------


def test_coherence_of_known_mixtures() -> None:
    """A wave and itself moved by a quarter have nothing in common: cos α of one and sin α of the other has the coherence cos α."""
    latitude, longitude = np.deg2rad(GRID.y)[:, None], np.deg2rad(GRID.x)[None]
    wave = sph_harm_y(5, 3, np.pi / 2 - latitude, longitude)
    mixed = 7 * (np.cos(0.6) * wave.real + np.sin(0.6) * wave.imag)
    assert float(spectra.coherence(field(mixed), field(wave.real)).sel(degree=5)) == pytest.approx(np.cos(0.6), rel=1e-10)
    assert float(spectra.coherence(field(-mixed), field(wave.real)).sel(degree=5)) == pytest.approx(-np.cos(0.6), rel=1e-10)
    x = 2 * np.pi * 4 * np.arange(32) / 32 + np.zeros((32, 1))
    ring = spectra.coherence(plane(2 * np.cos(x + 0.6)), plane(np.cos(x)))
    assert float(ring[4]) == pytest.approx(np.cos(0.6), rel=1e-10) and ring.dims == ("wavenumber",)


def test_coherence_of_noise() -> None:
    """Truth and as much noise: 1/√2; two noises: nothing, within three standard errors."""
    truth, other = field(noise(60, seed=1), GRID, "time"), field(noise(60, seed=2), GRID, "time")
    modes = 60 * (2 * np.arange(18) + 1)
    assert (abs(spectra.coherence(other, truth)) * np.sqrt(modes)).max() < 4
    both = spectra.coherence(truth + other, truth)
    assert (abs(both - 2**-0.5) * np.sqrt(modes)).max() < 4
    np.testing.assert_allclose(spectra.coherence(3 * truth, truth), 1)


def test_coherence_of_a_forecast_meets_its_valid_times() -> None:
    times, leads = np.datetime64("2000-01-01", "ns") + np.arange(8) * np.timedelta64(6, "h"), np.arange(1, 3) * np.timedelta64(6, "h")
    truth = field(noise(8), GRID, "time").assign_coords(time=times)
    made = [[truth.values[i + lead + 1] + noise(seed=10 * i + lead) for lead in range(2)] for i in (0, 3)]
    forecast = field(np.asarray(made)[:, :, None] + 0.1 * noise(2, 2, 3, seed=5), GRID, "time", "prediction_timedelta", "number")
    forecast = forecast.assign_coords(time=times[[0, 3]], prediction_timedelta=leads)
    found = spectra.coherence(forecast, truth)
    assert found.dims == ("prediction_timedelta", "degree")
    second = [scalar_coefficients(each, GRID) for each in (forecast.values[:, 1], truth.values[[2, 5]][:, None])]
    weight = np.where(np.arange(18) > 0, 2.0, 1.0)
    sums = [(a * b.conj() * weight).real.sum((0, 1, 3)) for a, b in ((second[0], second[1]), (second[0], second[0]))]
    expected = sums[0] / np.sqrt(sums[1] * 3 * (abs(second[1]) ** 2 * weight).sum((0, 1, 3)))
    np.testing.assert_allclose(found[1], expected, rtol=1e-10)
    assert spectra.coherence(forecast, truth, over=("time",)).dims == ("prediction_timedelta", "number", "degree")
    assert spectra.coherence(forecast.isel(time=0, number=0), truth).dims == ("prediction_timedelta", "degree")


# ---- effective resolution -----------------------------------------------------------------------------------------------------------


def _spectrum(share: Callable[[np.ndarray], np.ndarray], last: int = 40) -> tuple[xr.DataArray, xr.DataArray]:
    degree = np.arange(last + 1.0)
    wavelength = np.divide(4e7, degree, out=np.full(last + 1, np.inf), where=degree > 0)
    truth = xr.DataArray(np.maximum(degree, 1) ** -3, {"degree": degree, "wavelength": ("degree", wavelength)}, ("degree",))
    return truth * share(np.maximum(degree, 1)), truth


def test_effective_resolution_by_hand() -> None:
    """A ratio that falls linearly with the logarithm of the degree, from 1 at 1 to 0 at 16, is a half at 4."""
    assert float(spectra.effective_resolution(*_spectrum(lambda k: 1 - np.log(k) / np.log(16)))) == pytest.approx(1e7, rel=1e-12)
    dips = _spectrum(lambda k: np.where((k == 3) | (k > 10), 0.2, 0.9))
    found = float(spectra.effective_resolution(*dips))
    assert 4e7 / 11 < found < 4e7 / 10  # the dip at 3 is none to stay
    scale = (0.9 - 0.5) / 0.7 * np.log(10 / 11) + np.log(4e6)
    assert found == pytest.approx(np.exp(scale), rel=1e-12)
    quarter = spectra.effective_resolution(*_spectrum(lambda k: 1 - np.log(k) / np.log(16)), threshold=0.25)
    assert float(quarter) == pytest.approx(4e7 / 8, rel=1e-12)


def test_effective_resolution_where_there_is_none() -> None:
    assert np.isnan(spectra.effective_resolution(*_spectrum(lambda k: 0 * k + 0.6)))
    assert np.isnan(spectra.effective_resolution(*_spectrum(lambda k: np.where(k > 30, 5.0, 0.2))))  # noise at the end
    assert float(spectra.effective_resolution(*_spectrum(lambda k: np.where(k > 30, 5.0, 1 / k)), last=30)) == pytest.approx(2e7)
    assert float(spectra.effective_resolution(*_spectrum(lambda k: 0 * k + 0.1))) == pytest.approx(4e7)
    assert np.isnan(spectra.effective_resolution(*_spectrum(lambda k: k * np.nan)))
    two = xr.concat([_spectrum(lambda k: 0 * k + 0.6)[0], _spectrum(lambda k: 1 / k)[0]], "number")
    found = spectra.effective_resolution(two, _spectrum(lambda k: k)[1])
    assert found.dims == ("number",) and np.isnan(found[0]) and float(found[1]) == pytest.approx(2e7)


# ---- responses of operators ---------------------------------------------------------------------------------------------------------


def test_response_of_a_filter_is_the_filter() -> None:
    gains = 1 / (1 + np.arange(18.0))

    def smooth(fields: np.ndarray) -> np.ndarray:
        return synthesis(scalar_coefficients(fields, GRID) * gains[:, None], GRID)

    found = spectra.frequency_response(smooth, GRID, amplitude=3.0)
    assert found["degree_in"].values.tolist() == list(range(1, 18))
    np.testing.assert_allclose(found["gain"], gains[1:], rtol=1e-10)
    np.testing.assert_allclose(found["in_phase"], gains[1:], rtol=1e-10)
    np.testing.assert_allclose(found["leak"], 0, atol=1e-12)
    np.testing.assert_allclose(found["response"].sum("degree"), gains[1:] ** 2, rtol=1e-10)
    np.testing.assert_allclose(found["wavelength"], 2 * np.pi * EARTH_RADIUS / np.arange(1, 18))


def test_response_of_a_shift_and_of_a_product() -> None:
    """Moved fields keep their gain and lose phase; a product with sin φ goes to the two neighbouring degrees alone."""
    moved = spectra.frequency_response(lambda fields: np.roll(fields, 2, axis=-1), GRID, degrees=[2, 9], samples=32)
    np.testing.assert_allclose(moved["gain"], 1, rtol=1e-10)
    m = np.arange(1, 10)
    assert float(moved["in_phase"][1]) == pytest.approx((1 + 2 * np.cos(m * 2 * np.pi / 18).sum()) / 19, abs=0.1)
    sine = np.sin(np.deg2rad(GRID.y))[:, None]
    product = spectra.frequency_response(lambda fields: fields * sine, GRID, degrees=[6])
    np.testing.assert_allclose(product["leak"], 1, rtol=1e-10)
    outside = product["response"].drop_sel(degree=[5, 7])
    np.testing.assert_allclose(outside, 0, atol=1e-12)
    assert 0.1 < float(product["response"].sum()) < 0.5  # a third, over all orders


def test_response_to_another_grid_and_several_channels() -> None:
    coarse = Grid.regular(8, 16)
    fine = Grid.regular(16, 32)

    def encode(fields: np.ndarray) -> np.ndarray:
        means = fields.reshape(len(fields), 8, 2, 16, 2).mean((2, 4))
        return np.stack([means, -means], axis=1)

    found = spectra.frequency_response(encode, fine, out_grid=coarse)
    assert found.sizes == {"degree_in": 14, "degree": 7} and found["in_phase"].isnull().all()
    gain = found["gain"] / np.sqrt(2)
    assert 0.95 < float(gain[0]) < 1.01 and float(gain.sel(degree_in=6)) < float(gain[0])
    assert float(found["gain"].sel(degree_in=10)) == 0 and float(found["leak"].sel(degree_in=10)) == 1  # it has no such degree


def test_only_the_linear_part_of_a_small_change_is_read() -> None:
    found = spectra.frequency_response(spectra.about(lambda fields: 2 * fields + fields**2 + 5), GRID, degrees=[3, 4])
    np.testing.assert_allclose(found["gain"], 2, rtol=1e-10)
    np.testing.assert_allclose(found["leak"], 0, atol=1e-10)


class Halving(Model):
    """The next state is half the last one, plus noise, plus the other channel's square."""

    def __init__(self) -> None:
        super().__init__(Spec(channels=("a", "b"), grid=Grid.regular(16, 32), history=2, horizon=1, step=3600, stochastic="noise"))
        self.pool, self.total = nn.AvgPool2d(2), nn.Identity()

    def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
        last = batch.history[:, -1]
        self.pool(last)
        self.total(last.mean((1, 2, 3)))
        made = 0.5 * last + last.flip(1) ** 2 + generator.randn(last.shape[1:])[:, 0]
        return made[:, None, None].expand(-1, members, -1, -1, -1, -1)


def test_response_of_a_step_of_a_model() -> None:
    model = Halving()
    batch = Batch(torch.randn(2, 2, 2, 16, 32), None, torch.arange(6).reshape(2, 3) * 3600)
    grid, size = model.spec.grid, 0.1
    same = spectra.frequency_response(spectra.model_step(model, batch, "a"), grid, degrees=[2, 5], amplitude=size)
    np.testing.assert_allclose(same["gain"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(same["in_phase"], 0.5, rtol=1e-5)
    other = spectra.frequency_response(spectra.model_step(model, batch, "a", to="b"), grid, degrees=[2], amplitude=size)
    assert float(other["leak"][0]) > 0.5  # the product with a state of noise goes everywhere
    layer = spectra.model_step(model, batch, "a", layer="pool")
    pooled = spectra.frequency_response(layer, grid, degrees=[1, 2], out_grid=Grid.regular(8, 16), amplitude=size)
    assert 0.9 < float(pooled["gain"][0]) < 1.01
    assert not model.pool._forward_hooks


def test_response_of_an_attention_block_and_of_an_encoder() -> None:
    torch.manual_seed(0)
    model = create_model("met2net", "tiny")
    grid, (first, second, *_) = model.spec.grid, model.spec.channels
    batch = Batch(torch.randn(1, model.spec.history, len(model.spec.channels), *grid.shape), None, torch.zeros(1, 8, dtype=torch.int64))
    latent = Grid.regular(8, 16)
    how = {"out_grid": latent, "degrees": [1, 2, 5], "samples": 2, "amplitude": 0.1}
    block = spectra.frequency_response(spectra.model_step(model, batch, first, layer="translator.layers.0.attn_1"), grid, **how)
    encoder = spectra.frequency_response(spectra.model_step(model, batch, first, layer="encoders.0.enc.1"), grid, **how)
    stranger = spectra.frequency_response(spectra.model_step(model, batch, second, layer="encoders.0.enc.1"), grid, **how)
    for found in (block, encoder):
        assert (found["gain"] > 0).all() and ((found["leak"] > 0) & (found["leak"] < 1)).all()
    assert float(abs(stranger["response"]).max()) == 0  # an encoder sees its own variable alone
    assert model.training and not any(module._forward_hooks for module in model.modules())


# ---- faults -------------------------------------------------------------------------------------------------------------------------

EVEN = field(noise())
IRREGULAR = Grid((-90.0, -89.9, -89.8, *np.linspace(-30, 30, 13), 89.8, 89.9, 90.0), GRID.x)
WIND = {"u_component_of_wind": EVEN}
FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "partner": (lambda: spectra.kinetic_energy(EVEN), "the partner of the wind is missing"),
    "partner in a Dataset": (lambda: spectra.kinetic_energy(xr.Dataset(WIND)), "not its partner 'v_component_of_wind'"),
    "no wind": (lambda: spectra.kinetic_energy(xr.Dataset({"t": EVEN})), "has t and no wind"),
    "Dataset and v": (lambda: spectra.kinetic_energy(xr.Dataset(WIND), EVEN), "give a Dataset alone"),
    "latitudes": (lambda: spectra.power(field(noise(grid=IRREGULAR), IRREGULAR)), "latitudes are too irregular"),
    "longitudes": (lambda: spectra.power(EVEN.assign_coords(longitude=np.arange(36) ** 1.2)), "longitudes do not go round"),
    "window": (lambda: spectra.radial(plane(noise()), window="han"), "did you mean 'hann'"),
    "threshold": (lambda: spectra.effective_resolution(*_spectrum(lambda k: k), threshold=1.5), "threshold=1.5 must lie above 0"),
    "last": (lambda: spectra.effective_resolution(*_spectrum(lambda k: k), last=1), "leaves 1 scales"),
    "circles": (lambda: spectra.effective_resolution(spectra.zonal(EVEN), spectra.zonal(EVEN)), "no one wavelength"),
    "other levels": (
        lambda: spectra.coherence(EVEN.expand_dims(level=[500]), EVEN.expand_dims(level=[850])),
        "differ along 'level'",
    ),
    "other grid": (lambda: spectra.coherence(EVEN, EVEN.isel(latitude=slice(None, None, -1))), "differ along 'latitude'"),
    "more members": (lambda: spectra.coherence(EVEN, EVEN.expand_dims(number=2)), "the truth has the dimension 'number'"),
    "a Dataset": (lambda: spectra.coherence(EVEN, EVEN.to_dataset(name="x")), "the truth is a Dataset"),  # type: ignore[arg-type]
    "degrees": (lambda: spectra.frequency_response(lambda each: each, GRID, degrees=[30]), "must be some of 0 to 17"),
    "samples": (lambda: spectra.frequency_response(lambda each: each, GRID, samples=0), "must be positive"),
    "shape": (lambda: spectra.frequency_response(lambda each: each[:, ::2], GRID), "the operator made 4x10x36 of 4x19x36"),
    "NaN": (lambda: spectra.frequency_response(lambda each: each * np.nan, GRID), "missing or infinite"),
    "region": (lambda: spectra.frequency_response(lambda each: each, Grid(GRID.y[4:9], GRID.x)), "from pole to pole"),
    "channel": (lambda: spectra.model_step(Halving(), _batch(), "c"), "unknown channel 'c'"),
    "layer": (lambda: spectra.model_step(Halving(), _batch(), "a", layer="pol"), "did you mean 'pool'"),
    "no field": (
        lambda: spectra.model_step(Halving(), _batch(), "a", layer="total")(noise(2, grid=Grid.regular(16, 32))),
        "returns no fields",
    ),
}


def _batch() -> Batch:
    return Batch(torch.zeros(1, 2, 2, 16, 32), None, torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)


def test_valid_times_that_the_truth_lacks() -> None:
    truth = field(noise(2), GRID, "time").assign_coords(time=np.array(["2000-01-01", "2000-01-02"], "M8[ns]"))
    forecast = truth.expand_dims(prediction_timedelta=[np.timedelta64(24, "h")], axis=1)
    with pytest.raises(WxlabError, match="lacks 1 of the valid times, the first 2000-01-03"):
        spectra.coherence(forecast, truth)


def test_missing_points_leave_no_coherence() -> None:
    values = noise()
    values[3, 3] = np.nan
    assert spectra.coherence(field(values), EVEN).isnull().all()
