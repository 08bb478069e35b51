"""Radial spectrum: Parseval, single waves, slopes, missing points, faults."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from wxlab import spectra
from wxlab.errors import WxlabError


def plane(values: np.ndarray, step: float = 1000.0, x_step: float | None = None) -> xr.DataArray:
    dims = ("time", "y", "x")[3 - values.ndim :]
    rows, columns = values.shape[-2:]
    coords = {"y": np.arange(rows) * step, "x": np.arange(columns) * (x_step or step)}
    return xr.DataArray(values, dims=dims, coords=coords, attrs={"units": "mm h-1"})


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.floats(0.2, 5.0), st.integers(0, 1000))
def test_parseval(rows: int, columns: int, stretch: float, seed: int) -> None:
    """Σ n(k) P(k) = mean f², whatever the shape and the spacing."""
    values = np.random.default_rng(seed).gamma(0.5, 3.0, (rows, columns))
    power = spectra.radial(plane(values, x_step=1000.0 * stretch))
    assert float((power * power["modes"]).sum()) == pytest.approx((values**2).mean(), rel=1e-12)
    assert int(power["modes"].sum()) == rows * columns
    assert float(power[0]) >= values.mean() ** 2 * (1 - 1e-12) / float(power["modes"][0])


def test_a_wave_has_its_power_at_its_wavelength() -> None:
    """a cos(2πx/λ) has a²/4 in each of two modes: a²/2 in all."""
    x = np.arange(64) * 1000.0
    power = spectra.radial(plane(3 + 2 * np.cos(2 * np.pi * x / 16e3)[None, :] + np.zeros((64, 1))))
    energy = power * power["modes"]
    assert float(energy[0]) == pytest.approx(9)
    place = int(np.abs(power["wavelength"].values - 16e3).argmin())
    assert float(power["wavelength"][place]) == pytest.approx(16e3)
    assert float(energy[place]) == pytest.approx(2)
    assert float(energy.sum()) == pytest.approx(11)
    assert np.isinf(power["wavelength"][0])
    assert power.attrs["units"] == "mm2 h-2"
    assert float(power["wavenumber"][1]) == pytest.approx(1 / 64e3)


def test_noise_of_a_slope_has_that_slope() -> None:
    size = 128
    wavenumber = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    amplitude = np.divide(1, wavenumber, out=np.zeros_like(wavenumber), where=wavenumber > 0) ** 1.5
    noise = np.random.default_rng(0).normal(size=(20, size, size))
    fields = np.fft.ifft2(np.fft.fft2(noise) * amplitude).real
    power = spectra.radial(plane(fields)).mean("time")[4 : size // 2]
    slope = np.polyfit(np.log(power["wavenumber"]), np.log(power), 1)[0]
    assert slope == pytest.approx(-3, abs=0.1)


def test_leading_dimensions_spacing_and_turned_axes() -> None:
    values = np.random.default_rng(0).normal(size=(3, 12, 20))
    array = plane(values, 2000.0)
    power = spectra.radial(array)
    assert power.dims == ("time", "wavenumber")
    for k in range(3):
        np.testing.assert_allclose(power[k], spectra.radial(array[k]))
    xr.testing.assert_allclose(power, spectra.radial(array.transpose("x", "time", "y").sortby("y", ascending=False)))
    bare = xr.DataArray(values, dims=("time", "y", "x"), attrs=array.attrs)
    xr.testing.assert_allclose(power, spectra.radial(bare, spacing=2000.0))


def test_a_missing_point_leaves_no_spectrum() -> None:
    values = np.random.default_rng(0).normal(size=(2, 8, 8))
    values[1, 3, 3] = np.nan
    power = spectra.radial(plane(values))
    assert power[1].isnull().all()
    assert power[0].notnull().all()


def test_ratio() -> None:
    values = np.random.default_rng(0).normal(size=(16, 16))
    one = spectra.radial(plane(values))
    np.testing.assert_allclose(spectra.ratio(spectra.radial(plane(3 * values)), one), 9)
    empty = spectra.ratio(one, one * 0)
    assert empty.isnull().all()
    assert empty.attrs["units"] == "1"


FAULTS = {
    "no field": (lambda: spectra.radial(np.zeros((4, 4))), "was given a ndarray"),  # type: ignore[arg-type]
    "sphere": (lambda: spectra.radial(xr.DataArray(np.zeros((4, 4)), dims=("latitude", "longitude"))), "dimensions y and x, and was given"),
    "no coordinates": (lambda: spectra.radial(xr.DataArray(np.zeros((4, 4)), dims=("y", "x"))), "no coordinate 'y'; give spacing="),
    "uneven": (lambda: spectra.radial(plane(np.zeros((4, 4))).assign_coords(x=[0, 1, 2, 5])), "along 'x' are not evenly spaced"),
    "spacing": (lambda: spectra.radial(plane(np.zeros((4, 4))), spacing=-1), "spacing=-1 must be"),
    "other grid": (
        lambda: spectra.ratio(spectra.radial(plane(np.ones((8, 8)))), spectra.radial(plane(np.ones((10, 10))))),
        "different wavenumbers",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)
