"""Mistakes in what is asked of prepare and of stores: each one clear sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from noise import SPLITS, make, times_of

from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.store import open_store, prepare, stack


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return make()


def reversed_times(data: xr.Dataset) -> xr.Dataset:
    return data.isel(time=slice(None, None, -1))


FAULTS: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], dict[str, Any], str]] = {
    "unknown variable": (lambda d: d, {"variables": ["2m_temprature"]}, "unknown variable '2m_temprature'; did you mean '2m_temperature'"),
    "no variable": (lambda d: d, {"variables": []}, "no variable was asked for"),
    "variable twice": (lambda d: d, {"variables": ["geopotential", "geopotential_500"]}, "geopotential_500 asked for twice"),
    "level not there": (lambda d: d, {"variables": ["geopotential"], "levels": [300]}, "no level 300 hPa; its levels are 500, 700, 850"),
    "no level": (lambda d: d, {"variables": ["geopotential_"]}, "unknown variable 'geopotential_'; did you mean 'geopotential'"),
    "level of a channel": (lambda d: d, {"variables": ["geopotential_300"]}, "no level 300"),
    "overlap": (lambda d: d, {"splits": {**SPLITS, "test": ["2002-03-01", "2002-12-31"]}}, "'validation' and 'test' share 31 times"),
    "empty split": (lambda d: d, {"splits": {**SPLITS, "test": ["2020", "2021"]}}, "'test' .* holds no time; the data run from 2001-01-01"),
    "split name": (
        lambda d: d,
        {"splits": {"train": ["2001", "2001"], "tset": ["2002", "2002"]}},
        "unknown split 'tset'; did you mean 'test'",
    ),
    "no training": (lambda d: d, {"splits": {"test": ["2001", "2001"]}}, "the splits name no 'train'"),
    "split segments": (lambda d: d, {"splits": {"train": {"segments": [7]}}}, "segments \\[7\\] that the data do not have"),
    "split form": (lambda d: d, {"splits": {"train": {"years": [2001]}}}, "give \\[start, end\\] or"),
    "split date": (lambda d: d, {"splits": {"train": ["2001-13-01", "2002"]}}, "'2001-13-01' is not a time"),
    "split order": (lambda d: d, {"splits": {"train": ["2002", "2001"]}}, "starts at 2002 and ends before that"),
    "times reversed": (reversed_times, {}, "times must be there, ascending and each once .*sortby"),
    "times twice": (lambda d: d.isel(time=[*range(730), 729]), {}, "each once \\(at 2002-12-31"),
    "no time": (lambda d: d.isel(time=0, drop=True), {}, "no dimension 'time'"),
    "time outside": (lambda d: d, {"time": ["1990", "1991"]}, "no time lies in .*2001-01-01"),
    "time form": (lambda d: d, {"time": "2001"}, "time is '2001'; give \\[start, end\\]"),
    "time thinning": (lambda d: d, {"time": ["2001", "2002", 0]}, "every 0 hours"),
    "grid string": (lambda d: d, {"grid": "32by64"}, "'32by64' is not a grid"),
    "grid outside": (lambda d: d.isel(longitude=slice(0, 8)), {"grid": Grid.regular(4, 8)}, "columns of the target grid lie outside"),
    "crop": (lambda d: d, {"multiples": (16, 16)}, "8 rows cannot be cropped to a multiple of 16"),
    "unsorted grid": (lambda d: d.isel(latitude=[0, 2, 1]), {}, "strictly ascending or descending"),
    "members": (lambda d: d.expand_dims(number=2), {}, "has the dimensions number, time, latitude, longitude"),
    "method": (lambda d: d, {"method": "nearest"}, "unknown regridding method 'nearest'"),
    "method of": (lambda d: d, {"method": {"t2m": "bilinear"}}, "unknown variable to regrid 't2m'"),
    "missing": (
        lambda d: d.where(d["time"] != d["time"][9]),
        {},
        "2m_temperature misses 128 values .*2001-01-10.*nan={'2m_temperature': 'mask'}",
    ),
    "policy": (lambda d: d, {"nan": "ignore"}, "unknown policy for missing values 'ignore'"),
    "policy of": (lambda d: d, {"nan": {"sst": "mask"}}, "unknown channel in the policy for missing values 'sst'"),
    "fill of": (lambda d: d, {"fill": {"sst": 271.0}}, "unknown channel to fill 'sst'"),
    "never trained": (
        lambda d: d.where(d["time"] >= d["time"][400]),
        {"nan": "mask", "splits": SPLITS},
        "no observed value in the training split",
    ),
    "kind": (lambda d: d, {"normalisation": {"2m_temperature": "z-score"}}, "did you mean 'zscore'"),
    "kind of": (lambda d: d, {"normalisation": {"t2m": "zscore"}}, "unknown channel to normalise 't2m'"),
    "kind settings": (
        lambda d: d,
        {"normalisation": {"2m_temperature": {"kind": "log", "eps": 1}}},
        "unknown setting of normalisation 'log' 'eps'",
    ),
    "forcing": (
        lambda d: d,
        {"forcing": ["toa_incident_solar"]},
        "unknown forcing 'toa_incident_solar'; did you mean 'toa_incident_solar_radiation'",
    ),
    "static": (lambda d: d, {"static": ["orography"]}, "unknown static field 'orography'.*land_sea_mask"),
    "static dims": (lambda d: d, {"static": ["2m_temperature"]}, "it must have \\['latitude', 'longitude'\\]"),
    "accumulated": (lambda d: d, {"accumulated": {"tp": {}}}, "unknown accumulated variable 'tp'"),
    "accumulated hours": (
        lambda d: d,
        {"accumulated": {"total_precipitation_24hr": {"hours": 6}}},
        "6 h is no multiple of the data's step of 24 h",
    ),
    "scheduler": (lambda d: d, {"scheduler": "dask"}, "scheduler 'dask' is not known"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_prepare(data: xr.Dataset, tmp_path: Path, fault: str) -> None:
    change, arguments, message = FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        prepare(change(data), tmp_path / "s.zarr", **{"variables": ["2m_temperature"], **arguments})
    assert "\n" not in str(caught.value) and not (tmp_path / "s.zarr").exists()


def damage(store: Path, name: str) -> Path:
    (store / name).write_bytes(b"x")
    return store


def lose(store: Path, name: str) -> Path:
    (store / name).unlink()
    return store


def test_a_channel_has_one_level(data: xr.Dataset) -> None:
    with pytest.raises(WxlabError, match="name it with its level, such as 'geopotential_500'"):
        stack(data, ["geopotential"])


STORE_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda p: open_store(p / "nowhere.zarr"), "no store at .*wxlab.prepare"),
    "a folder": (lambda p: open_store(p.parent), "not a readable zarr group"),
    "cut short": (lambda p: open_store(damage(p, "state/c/0/0/0/0")), "damaged: .* holds 1 bytes instead of"),
    "chunk lost": (lambda p: open_store(lose(p, "state/c/1/0/0/0")), "damaged: .* is missing"),
    "axis lost": (lambda p: open_store(damage(p, "time/c/0")), "array 'time' cannot be read"),
    "attributes": (lambda p: open_store(damage(p, "zarr.json")), "not a readable zarr group"),
    "split": (lambda p: open_store(p).dataset("tests"), "unknown split of this store 'tests'; did you mean 'test'"),
    "times": (lambda p: open_store(p).dataset(times=np.array(["2030-01-01"], "datetime64[s]")), "no state at 2030-01-01"),
    "not a store": (lambda p: prepare(make(times_of(9)), p.parent, variables=["2m_temperature"]), "is something else than a store"),
}


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_faults_of_stores(tmp_path: Path, fault: str) -> None:
    data = make(times_of(40), Grid.regular(4, 8))
    path = prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"], chunk_bytes=20 * 4 * 32)
    call, message = STORE_FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        call(path)
    assert "\n" not in str(caught.value)


def test_changed_states_are_noticed_by_the_checksum(tmp_path: Path) -> None:
    path = prepare(make(times_of(20), Grid.regular(4, 8)), tmp_path / "s.zarr", variables=["2m_temperature"])
    file = path / "state/c/0/0/0/0"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(WxlabError, match="not the ones that were written"):
        open_store(path).verify_checksum()


def test_source_errors_name_variable_and_time(tmp_path: Path) -> None:
    import dask.array as da

    def broken(block: np.ndarray) -> np.ndarray:
        raise OSError("connection reset\nsecond line")

    data = make(times_of(20), Grid.regular(4, 8))
    data["2m_temperature"] = (
        data["2m_temperature"].dims,
        da.from_array(data["2m_temperature"].values).map_blocks(broken, dtype=np.float32),
    )
    data.attrs["source"] = "archive"
    with pytest.raises(WxlabError, match=r"2m_temperature could not be read.*connection reset") as caught:
        prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"])
    assert "\n" not in str(caught.value)
