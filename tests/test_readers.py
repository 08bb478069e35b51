"""What readers make of files: uniform axes, names, units; and one clear sentence about files that are wrong."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from wxlab.catalog import load, open_dataset
from wxlab.errors import WxlabError
from wxlab.readers.uniform import contiguous
from wxlab.readers.units import differ, parse

TIMES = pd.date_range("2020-01-01", periods=4, freq="6h", unit="ns")


def write_catalogue(folder: Path, **entries: dict[str, Any]) -> Path:
    path = folder / "catalog.yaml"
    defaults = {"title": "test", "driver": "netcdf"}
    path.write_text(yaml.safe_dump({"schema": 1, "datasets": {name: defaults | entry for name, entry in entries.items()}}))
    return path


def field(
    value: float = 280.0,
    name: str = "t2m",
    lat: str = "latitude",
    lon: str = "longitude",
    time: str | None = "time",
    lats: Any = (60.0, 20.0, -20.0, -60.0),
    lons: Any = (0.0, 90.0, 180.0, 270.0),
    times: Any = TIMES,
    units: str = "K",
) -> xr.Dataset:
    """A field whose values tell their longitude, to see whether columns stay with their coordinates."""
    values = value + np.zeros((len(lats), 1)) + np.asarray(lons, float) % 360 / 100
    coords: dict[str, Any] = {lat: list(lats), lon: list(lons)}
    dims: tuple[str, ...] = (lat, lon)
    if time is not None:
        values = np.broadcast_to(values, (len(times), *values.shape)) + np.arange(len(times))[:, None, None]
        coords, dims = coords | {time: times}, (time, *dims)
    return xr.Dataset({name: (dims, values, {"units": units})}, coords)


def opened(folder: Path, dataset: xr.Dataset, variables: dict[str, Any] | None = None, **entry: Any) -> xr.Dataset:
    file = f"file{len(list(folder.glob('file*.nc')))}.nc"
    dataset.to_netcdf(folder / file, engine="netcdf4")
    chosen = variables or {"2m_temperature": {"name": "t2m"}}
    catalogue = write_catalogue(folder, source={"uri": f"${{CATALOG_DIR}}/{file}", "variables": chosen} | entry)
    return open_dataset("source", catalog=catalogue)


def test_names_types_and_laziness(tmp_path: Path) -> None:
    dataset = opened(tmp_path, field(lat="lat", lon="lon", time="valid_time"), title="A title", licence="free", citation="doi:x")
    array = dataset["2m_temperature"]
    assert array.dims == ("time", "latitude", "longitude")
    assert array.dtype == np.float32
    assert array.chunks is not None
    assert array.attrs == {"standard_name": "air_temperature", "units": "K"}
    assert dataset["time"].dtype == "datetime64[ns]"
    assert dataset.attrs == {"source": "source", "title": "A title", "licence": "free", "citation": "doi:x", "latitude_order": "descending"}


@pytest.mark.parametrize(
    ("lats", "order"), [((60, 0, -60), "descending"), ((-60, 0, 60), "ascending"), ((85.76, 80.27, -85.76), "descending")]
)
def test_latitude_order_is_kept_and_known(lats: tuple[float, ...], order: str, tmp_path: Path) -> None:
    dataset = opened(tmp_path, field(lats=lats))
    np.testing.assert_array_equal(dataset["latitude"], lats)
    assert dataset.attrs["latitude_order"] == order


def test_longitudes_are_0_to_360_and_sorted(tmp_path: Path) -> None:
    dataset = opened(tmp_path, field(lons=np.arange(-180, 180, 30.0)))
    np.testing.assert_array_equal(dataset["longitude"], np.arange(0, 360, 30.0))
    np.testing.assert_allclose(dataset["2m_temperature"].isel(time=0, latitude=0), 280 + dataset["longitude"] / 100, rtol=1e-6)
    assert "longitude_seam" not in dataset.attrs


def test_repeated_meridian_is_dropped(tmp_path: Path) -> None:
    dataset = opened(tmp_path, field(lons=np.arange(0, 361, 60.0)))
    np.testing.assert_array_equal(dataset["longitude"], np.arange(0, 360, 60.0))


def test_region_across_greenwich(tmp_path: Path) -> None:
    dataset = opened(tmp_path, field(lons=np.arange(-10, 5, 2.5)))
    np.testing.assert_array_equal(dataset["longitude"], [0, 2.5, 350, 352.5, 355, 357.5])
    assert dataset.attrs["longitude_seam"] == 2
    together = contiguous(dataset)
    np.testing.assert_array_equal(together["longitude"], [350, 352.5, 355, 357.5, 360, 362.5])
    np.testing.assert_allclose(together["2m_temperature"][0, 0], 280 + together["longitude"] % 360 / 100, rtol=1e-6)
    assert contiguous(together) is together


def test_single_state_gets_a_time(tmp_path: Path) -> None:
    one = field(time=None).assign_coords(time=TIMES[2])
    assert list(opened(tmp_path, one).indexes["time"]) == [TIMES[2]]
    bare = field(time=None)
    dataset = opened(tmp_path, bare, time={"start": "2001-02-03T04", "step": "single"})
    assert list(dataset.indexes["time"]) == [pd.Timestamp("2001-02-03T04")]


def test_unsorted_times_are_sorted(tmp_path: Path) -> None:
    dataset = opened(tmp_path, field(times=TIMES[[2, 0, 3, 1]]))
    assert dataset.indexes["time"].is_monotonic_increasing
    np.testing.assert_allclose(dataset["2m_temperature"][:, 0, 0], [281, 283, 280, 282])


LEVEL_AXES = [
    ("level", [500, 850], {}, [500, 850]),
    ("isobaricInhPa", [850.0, 500.0], {"units": "hPa"}, [500, 850]),
    ("pressure_level", [1000.0, 50.0], {"units": "millibars"}, [50, 1000]),
    ("plev", [85000.0, 50000.0], {"units": "Pa"}, [500, 850]),
    ("plev", [100000.0, 10.0], {}, [0.1, 1000]),
]


@pytest.mark.parametrize(("axis", "values", "attrs", "expected"), LEVEL_AXES)
def test_levels_are_in_hectopascal(axis: str, values: list[float], attrs: dict[str, str], expected: list[float], tmp_path: Path) -> None:
    levels = xr.concat([field(250 + i, "t") for i in range(2)], axis).assign_coords({axis: (axis, values, attrs)})
    dataset = opened(tmp_path, levels, {"temperature": {"name": "t"}})
    assert dataset["temperature"].dims == ("time", "level", "latitude", "longitude")
    np.testing.assert_allclose(dataset["level"], expected)
    assert dataset["level"].dtype.kind == ("i" if min(expected) >= 1 else "f")
    first_given = expected.index({1000.0: 1000, 850.0: 850, 500: 500, 85000.0: 850, 100000.0: 1000}[values[0]])
    np.testing.assert_allclose(dataset["temperature"][0, first_given, 0, 0], 250)


def test_level_in_the_name_becomes_an_axis(tmp_path: Path) -> None:
    wind = xr.merge([field(10, "u500", units="m/s"), field(20, "u850", units="m s-1"), field(280)])
    ids = {"u_component_of_wind_850": {"name": "u850"}, "u_component_of_wind_500": {"name": "u500"}, "2m_temperature": {"name": "t2m"}}
    dataset = opened(tmp_path, wind, ids)
    assert set(dataset.data_vars) == {"u_component_of_wind", "2m_temperature"}
    np.testing.assert_array_equal(dataset["level"], [500, 850])
    np.testing.assert_allclose(dataset["u_component_of_wind"][0, :, 0, 0], [10, 20])


def test_select_chooses_a_level_and_a_member(tmp_path: Path) -> None:
    levels = xr.concat([field(250 + i, "t") for i in range(3)], "level").assign_coords(level=[850, 500, 250])
    members = xr.concat([levels, levels + 5], "number").assign_coords(number=[0, 1])
    members["t"].attrs["units"] = "K"
    everything = opened(tmp_path, members, {"temperature": {"name": "t"}})
    assert everything["temperature"].dims == ("time", "number", "level", "latitude", "longitude")
    chosen = opened(tmp_path, members, {"temperature": {"name": "t", "select": {"level": 500, "number": 1}}})
    assert chosen["temperature"].dims == ("time", "level", "latitude", "longitude")
    assert float(chosen["temperature"][0, 0, 0, 0]) == 256
    named = opened(tmp_path, members, {"temperature_250": {"name": "t", "select": {"number": 0}}})
    assert named["level"].values.tolist() == [250]
    assert float(named["temperature"][0, 0, 0, 0]) == 252
    several = opened(tmp_path, members, {"temperature": {"name": "t", "select": {"level": [850, 250], "number": 0}}})
    assert several["level"].values.tolist() == [250, 850]


def test_scale_and_offset(tmp_path: Path) -> None:
    celsius = field(10, units="degC")
    dataset = opened(tmp_path, celsius, {"2m_temperature": {"name": "t2m", "offset": 273.15}})
    np.testing.assert_allclose(dataset["2m_temperature"], celsius["t2m"] + 273.15, rtol=1e-6)
    height = field(5000, "gh", units="gpm").expand_dims(level=[500])
    z = opened(tmp_path, height, {"geopotential": {"name": "gh", "scale": 9.80665}})
    np.testing.assert_allclose(z["geopotential"][0, 0, 0, 0], 5000 * 9.80665, rtol=1e-6)


def test_statics_lose_their_time(tmp_path: Path) -> None:
    dataset = opened(
        tmp_path,
        xr.merge([field(), field(0.2, "lsm", units="(0 - 1)", times=TIMES[:1])], join="outer"),
        {"2m_temperature": {"name": "t2m"}, "land_sea_mask": {"name": "lsm", "scale": 0.1}},
    )
    assert dataset["land_sea_mask"].dims == ("latitude", "longitude")
    assert dataset["2m_temperature"].dims == ("time", "latitude", "longitude")


def test_lead_times_and_cartesian_axes(tmp_path: Path) -> None:
    forecast = xr.concat([field(280 + i) for i in range(2)], "step").assign_coords(step=pd.to_timedelta([6, 12], "h"))
    assert opened(tmp_path, forecast)["2m_temperature"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
    radar = field(1, "rain", lat="y", lon="x", lats=(3.0, 2.0, 1.0), lons=(0.0, 1.0), units="mm/h")
    dataset = opened(tmp_path, radar, {"rain_rate": {"name": "rain"}}, grid={"type": "cartesian", "resolution_km": 1})
    np.testing.assert_array_equal(dataset["y"], [3000, 2000, 1000])


def test_variable_without_axis_values_is_counted(tmp_path: Path) -> None:
    radar = field(1, "rain", lat="y", lon="x", units="mm/h").drop_vars(["y", "x"])
    np.testing.assert_array_equal(opened(tmp_path, radar, {"rain_rate": {"name": "rain"}})["x"], [0, 1, 2, 3])


def test_files_are_joined_by_time_by_variable_and_by_level(tmp_path: Path) -> None:
    for part in (1, 0):  # files sort by name, not by time
        field(280 + 10 * part, times=TIMES + pd.Timedelta(days=part)).to_netcdf(tmp_path / f"t2m_{9 - part}.nc")
    both = field(100, "msl", units="Pa", times=TIMES.append(TIMES + pd.Timedelta(days=1))) * 1000
    both.to_netcdf(tmp_path / "msl.nc")
    for level in (500, 850):
        field(level / 100, "u", units="m s**-1", times=both.time.values).assign_coords(level=level).to_netcdf(tmp_path / f"u_{level}.nc")
    variables = {
        "2m_temperature": {"name": "t2m"},
        "mean_sea_level_pressure": {"name": "msl"},
        "u_component_of_wind": {"name": "u"},
    }
    uris = ["${CATALOG_DIR}/t2m_*.nc", "${CATALOG_DIR}/msl.nc", "${CATALOG_DIR}/u_*.nc", "${CATALOG_DIR}/none_*.nc"]
    dataset = open_dataset("many", catalog=write_catalogue(tmp_path, many={"uri": uris, "variables": variables}))
    assert dict(dataset.sizes) == {"time": 8, "level": 2, "latitude": 4, "longitude": 4}
    np.testing.assert_allclose(dataset["2m_temperature"][:, 0, 0], [280, 281, 282, 283, 290, 291, 292, 293])
    np.testing.assert_allclose(dataset["u_component_of_wind"][0, :, 0, 0], [5, 8.5])
    assert not dataset["mean_sea_level_pressure"].isnull().any()


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
def test_engines_read_the_same(engine: str, tmp_path: Path) -> None:
    field().to_netcdf(tmp_path / "file.nc", engine="scipy" if engine == "scipy" else "netcdf4")
    entry = {"uri": "${CATALOG_DIR}/file.nc", "variables": {"2m_temperature": {"name": "t2m"}}, "options": {"engine": engine}}
    dataset = open_dataset("source", catalog=write_catalogue(tmp_path, source=entry))
    np.testing.assert_allclose(dataset["2m_temperature"], field()["t2m"], rtol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr(version: int, consolidated: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transposed = field().transpose("time", "longitude", "latitude").chunk(time=2)
        transposed.to_zarr(tmp_path / "store.zarr", zarr_format=version, consolidated=consolidated)
    entry = {"driver": "zarr", "uri": "${CATALOG_DIR}/store.zarr", "variables": {"2m_temperature": {"name": "t2m"}}}
    dataset = open_dataset("source", catalog=write_catalogue(tmp_path, source=entry))
    assert dataset["2m_temperature"].dims == ("time", "latitude", "longitude")
    np.testing.assert_allclose(dataset["2m_temperature"], field()["t2m"], rtol=1e-6)
    chunked = open_dataset("source", catalog=write_catalogue(tmp_path, source=entry), options={"chunks": {"time": 1}})
    assert chunked["2m_temperature"].chunks[0] == (1, 1, 1, 1)


def test_climatology_has_no_time(tmp_path: Path) -> None:
    hours = field(time=None).expand_dims(hour=[0, 6], dayofyear=np.arange(1, 4))
    dataset = opened(tmp_path, hours)
    assert dataset["2m_temperature"].dims == ("hour", "dayofyear", "latitude", "longitude")


def test_opened_datasets_can_be_pickled(tmp_path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(opened(tmp_path, field())))
    np.testing.assert_allclose(dataset["2m_temperature"], field()["t2m"], rtol=1e-6)


def test_opening_a_long_archive_is_quick(tmp_path: Path) -> None:
    """A million hourly chunks: the graph must not be written out when the source is opened."""
    import time

    from wxlab.readers.source import Request, SourceArray, lazy

    catalogue = load(write_catalogue(tmp_path, source={"uri": "x", "variables": {"2m_temperature": {"name": "t2m"}}}))
    request = Request("source", catalogue.datasets["source"], catalogue.variables)
    held = xr.Variable(
        ("time", "lat", "lon"), np.broadcast_to(np.float32(280), (1_300_000, 1800, 3600)), encoding={"preferred_chunks": {"time": 1}}
    )
    began = time.process_time()
    answer = lazy(SourceArray(held, "2m_temperature", request, "here"), request, held.dims)[-3:].mean().compute(scheduler="synchronous")
    assert answer == 280
    assert time.process_time() - began < 5


# ---- trees of .npy files --------------------------------------------------------------------------------------------------------------
def write_tree(root: Path, level_text: Callable[[int], str] = lambda level: f"{level}.0") -> None:
    for day in ("2020-12-31", "2021-01-01"):
        for hour in (0, 6, 12, 18):
            for level in (500, 850):
                path = root / day[:4] / day / f"{hour:02d}:00:00-z-{level_text(level)}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                shape = (1, 4, 8) if hour else (4, 8)
                np.save(path, np.full(shape, level * 100 + hour, np.float64))
            path = root / "single" / day[:4] / day / f"{hour:02d}:00:00-t2m.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.full((1, 1, 4, 8), 280 + hour, np.float32))


def tree(folder: Path, **entry: Any) -> xr.Dataset:
    variables = {"geopotential": {"name": "z"}, "2m_temperature": {"name": "t2m"}}
    full = {"driver": "npy_tree", "uri": "${CATALOG_DIR}", "variables": variables, "grid": {"type": "latlon", "poles": False}} | entry
    return open_dataset("tree", catalog=write_catalogue(folder, tree=full))


@pytest.mark.parametrize("text", ["{}.0", "{}"])
def test_npy_tree(text: str, tmp_path: Path) -> None:
    write_tree(tmp_path, text.format)
    dataset = tree(tmp_path)
    assert dict(dataset.sizes) == {"time": 8, "level": 2, "latitude": 4, "longitude": 8}
    np.testing.assert_allclose(dataset["latitude"], [67.5, 22.5, -22.5, -67.5])
    np.testing.assert_allclose(dataset["longitude"], np.arange(8) * 45)
    np.testing.assert_allclose(dataset["geopotential"][:, 1, 0, 0], [85000, 85006, 85012, 85018] * 2)
    np.testing.assert_allclose(dataset["2m_temperature"][3], 298)
    rising = tree(tmp_path, grid={"type": "latlon", "poles": True, "latitude_order": "ascending"})
    np.testing.assert_allclose(rising["latitude"], [-90, -30, 30, 90])


def test_npy_tree_with_holes(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "2021" / "2021-01-01" / "06:00:00-z-500.0.npy").unlink()
    (tmp_path / "single" / "2020" / "2020-12-31" / "00:00:00-t2m.npy").unlink()
    dataset = tree(tmp_path)
    assert dataset["geopotential"][5, 0].isnull().all()
    assert int(dataset["geopotential"].isnull().sum()) == 32
    assert dataset["2m_temperature"][0].isnull().all()
    assert int(dataset["2m_temperature"].isnull().sum()) == 32


def test_npy_tree_with_a_damaged_file(tmp_path: Path) -> None:
    write_tree(tmp_path)
    path = tmp_path / "2021" / "2021-01-01" / "06:00:00-z-500.0.npy"
    np.save(path, np.zeros((3, 3)))
    with pytest.raises(WxlabError, match=r"06:00:00-z-500.0.npy has shape \(3, 3\)"):
        tree(tmp_path)["geopotential"].values  # noqa: B018
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(WxlabError, match=r"cannot read .*06:00:00-z-500\.0\.npy"):
        tree(tmp_path)["geopotential"].values  # noqa: B018


def grib_message(values: np.ndarray, **keys: Any) -> bytes:
    import pyproj  # noqa: F401 (before eccodes)
    from eccodes import codes_get_message, codes_grib_new_from_samples, codes_release, codes_set, codes_set_values

    handle = codes_grib_new_from_samples("regular_ll_pl_grib2")
    rows, columns = values.shape
    grid = {"Ni": columns, "Nj": rows, "iDirectionIncrementInDegrees": 90, "jDirectionIncrementInDegrees": 30}
    corners = {"latitudeOfFirstGridPointInDegrees": 60, "latitudeOfLastGridPointInDegrees": 0}
    edges = {"longitudeOfFirstGridPointInDegrees": 0, "longitudeOfLastGridPointInDegrees": 270}
    for key, value in (grid | corners | edges | {"dataDate": 20200101, "dataTime": 0} | keys).items():
        codes_set(handle, key, value)
    codes_set_values(handle, values.ravel().astype(float))
    message: bytes = codes_get_message(handle)
    codes_release(handle)
    return message


def test_grib(tmp_path: Path) -> None:
    """Two variables on levels, one of them on fewer; a field belongs to the time for which it is valid."""
    pytest.importorskip("pyproj")  # before eccodes
    pytest.importorskip("cfgrib")
    parts = []
    for level in (850, 500):
        parts.append(grib_message(np.full((3, 4), 250.0 + level / 100), shortName="t", level=level, stepRange="6"))
    parts.append(grib_message(np.full((3, 4), 5.0), shortName="u", level=500, stepRange="6"))
    (tmp_path / "fields.grib").write_bytes(b"".join(parts))
    variables = {"temperature": {"name": "t"}, "u_component_of_wind": {"name": "u"}}
    entry = {"driver": "grib", "uri": "${CATALOG_DIR}/fields.grib", "variables": variables}
    dataset = open_dataset("source", catalog=write_catalogue(tmp_path, source=entry))
    assert list(dataset.indexes["time"]) == [pd.Timestamp("2020-01-01T06")]
    np.testing.assert_array_equal(dataset["level"], [500, 850])
    np.testing.assert_allclose(dataset["temperature"][0, :, 0, 0], [255, 258.5])
    np.testing.assert_allclose(dataset["u_component_of_wind"][0, :, 0, 0], [5, np.nan])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.yaml", "fields.grib"]  # no index files


# ---- units --------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["m s**-1", "m s-1", "m/s", "m s^-1", "metre/second", "m*s**-1"])
def test_spellings_of_a_unit(text: str) -> None:
    assert parse(text) == {"m": 1, "s": -1}


def test_units_that_differ() -> None:
    assert differ("degC", "K")
    assert differ("mm", "m")
    assert differ("kg m**-2", "m")
    assert not differ("(0 - 1)", "1")
    assert not differ("kg kg**-1", "kg/kg")
    assert not differ("", "K")
    assert not differ("furlong", "m")


# ---- faults: each is one clear sentence -----------------------------------------------------------------------------------------------
def noleap() -> xr.Dataset:
    return field().assign_coords(time=[cftime.DatetimeNoLeap(2000, 2, day) for day in range(1, 5)])


def curvilinear() -> xr.Dataset:
    grid = np.ones((4, 4))
    renamed = field(lat="j", lon="i").drop_vars(["j", "i"])
    return renamed.assign_coords(latitude=(("j", "i"), grid), longitude=(("j", "i"), grid))


def twice(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.isel(time=[0, 1, 1, 2])


def numbers() -> xr.Dataset:
    return field().assign_coords(time=("time", [0, 6, 12, 18]))


def two_grids() -> xr.Dataset:
    other = field(5, "u10", lat="lat", lats=(50.0, 10.0, -10.0, -50.0), units="m s-1")
    return xr.merge([field(), other])


T2M = {"2m_temperature": {"name": "t2m"}}
FAULTS: dict[str, tuple[Callable[[], xr.Dataset], dict[str, Any], str]] = {
    "variable not in the file": (field, {"2m_temperature": {"name": "t2"}}, r"'2m_temperature' is called 't2'.*did you mean 't2m'"),
    "values in Celsius without units": (lambda: field(10, units=""), T2M, r"range from 10 to .*150 to 350 K is allowed; declare scale"),
    "units say Celsius": (lambda: field(10, units="degC"), T2M, r"is in 'degC', and 'K' is wanted; declare its scale and offset"),
    "pressure in hPa": (lambda: field(1000, "msl", units=""), {"mean_sea_level_pressure": {"name": "msl"}}, r"range from 1000 to .*80000"),
    "precipitation in mm": (
        lambda: field(3, "tp", units="mm"),
        {"total_precipitation_6hr": {"name": "tp"}},
        r"is in 'mm', and 'm' is wanted",
    ),
    "calendar without leap years": (noleap, T2M, r"calendar 'noleap'.*convert"),
    "times without units": (numbers, T2M, r"times of .* are int64 without usable CF units"),
    "times twice": (lambda: twice(field()), T2M, r"1 times occur more than once \(2020-01-01T06:00:00\)"),
    "curvilinear grid": (curvilinear, T2M, r"curvilinear grid \(latitude is two-dimensional\); regrid"),
    "axes swapped": (lambda: field(lats=(0.0, 90.0, 180.0, 270.0)), T2M, r"latitudes .* reach 270 degrees.*swapped"),
    "latitudes out of order": (lambda: field(lats=(10.0, 60.0, -20.0, -60.0)), T2M, "neither rise nor fall"),
    "latitude missing": (lambda: field().drop_vars("latitude"), T2M, "dimension 'latitude' .* has no coordinate"),
    "longitude not finite": (lambda: field(lons=(0.0, 90.0, np.nan, 270.0)), T2M, "coordinate 'longitude' .* has missing values"),
    "two grids in one entry": (two_grids, T2M | {"10m_u_component_of_wind": {"name": "u10"}}, "lie on different grids"),
    "axis not known": (lambda: field().expand_dims(expver=[1, 5]), T2M, r"axis 'expver' of length 2.*select: \{expver"),
    "level that is not there": (
        lambda: field(250, "t").expand_dims(level=[500, 850]),
        {"temperature": {"name": "t", "select": {"level": 700}}},
        r"no level 700 \(there are: 500, 850\)",
    ),
    "select on an axis it has not": (
        field,
        {"2m_temperature": {"name": "t2m", "select": {"number": 1}}},
        "select: .*number.* does not fit",
    ),
    "levels twice": (lambda: field(250, "t").expand_dims(level=[500, 500]), {"temperature": {"name": "t"}}, "levels of .* are given twice"),
    "level defined twice": (
        lambda: xr.merge([field(250, "t").expand_dims(level=[500, 850]), field(250, "t500")]),
        {"temperature": {"name": "t"}, "temperature_500": {"name": "t500"}},
        "'temperature' is defined more than once at 500 hPa",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files(fault: str, tmp_path: Path) -> None:
    make, variables, message = FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        opened(tmp_path, make(), variables)
    one_sentence(caught.value)


def one_sentence(error: WxlabError) -> None:
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


def damaged(folder: Path) -> dict[str, Any]:
    field().to_netcdf(folder / "good.nc", engine="h5netcdf")
    (folder / "bad.nc").write_bytes((folder / "good.nc").read_bytes()[:2000])
    return {"uri": "${CATALOG_DIR}/bad.nc"}


def two_shapes(folder: Path) -> dict[str, Any]:
    field().to_netcdf(folder / "a.nc")
    field(lats=(50.0, 0.0, -50.0, -60.0), times=TIMES + pd.Timedelta(days=1)).to_netcdf(folder / "b.nc")
    return {"uri": "${CATALOG_DIR}/?.nc"}


def overlapping(folder: Path) -> dict[str, Any]:
    field().to_netcdf(folder / "a.nc")
    field(times=TIMES + pd.Timedelta(hours=12)).to_netcdf(folder / "b.nc")
    return {"uri": "${CATALOG_DIR}/?.nc"}


def elsewhere(folder: Path) -> dict[str, Any]:
    field().to_netcdf(folder / "a.nc")
    return {"uri": "${CATALOG_DIR}/a.nc", "time": {"start": 1900, "end": 1901}, "options": {"cut_time": True}}


def text(folder: Path) -> dict[str, Any]:
    (folder / "text.nc").write_text("not a netCDF file")
    return {"uri": "${CATALOG_DIR}/text.nc"}


PLACES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no such file": (lambda _: {"uri": "${CATALOG_DIR}/none.nc"}, "there is no file .*none.nc"),
    "no file matches": (lambda _: {"uri": "${CATALOG_DIR}/*.nc"}, r"no file matches .*\*.nc"),
    "a folder": (lambda _: {"uri": "${CATALOG_DIR}"}, "is a folder; give a file or a pattern"),
    "no zarr store": (lambda _: {"driver": "zarr", "uri": "${CATALOG_DIR}/none.zarr"}, "there is no zarr store"),
    "an empty folder as zarr": (lambda _: {"driver": "zarr", "uri": "${CATALOG_DIR}"}, "(cannot open|nothing at)"),
    "no tree": (
        lambda _: {"driver": "npy_tree", "uri": "${CATALOG_DIR}", "grid": {"type": "latlon", "poles": False}},
        "holds no file like",
    ),
    "tree without grid": (lambda _: {"driver": "npy_tree", "uri": "${CATALOG_DIR}"}, "does not say where its points lie"),
    "variable not set": (lambda _: {"uri": "${WXLAB_NOT_SET}/*.nc"}, "environment variable WXLAB_NOT_SET is not set"),
    "scheme not known": (lambda _: {"uri": "ftp://host/file.nc"}, "unknown scheme 'ftp'"),
    "damaged file": (damaged, "cannot open .*bad.nc as netcdf"),
    "not a netCDF file": (text, "cannot open .*text.nc as netcdf"),
    "GRIB that is none": (lambda folder: text(folder) | {"driver": "grib"}, "(cannot open|none of that name)"),
    "GRIB over the network": (lambda _: {"driver": "grib", "uri": "http://127.0.0.1:9/a.grib"}, "GRIB cannot be read over the network"),
    "files on two grids": (two_shapes, "lie on different grids"),
    "files that overlap": (overlapping, "2 times occur more than once"),
    "no time left": (elsewhere, "no time lies in 1900 to 1901; the data run from 2020"),
}


@pytest.mark.parametrize("fault", PLACES)
def test_faults_of_places(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WXLAB_NOT_SET", raising=False)
    make, message = PLACES[fault]
    entry = {"variables": T2M} | make(tmp_path)
    with pytest.raises(WxlabError, match=message) as caught:
        open_dataset("source", catalog=write_catalogue(tmp_path, source=entry))
    one_sentence(caught.value)


def test_file_that_vanishes_after_opening(tmp_path: Path) -> None:
    write_tree(tmp_path)
    dataset = tree(tmp_path)
    (tmp_path / "2021" / "2021-01-01" / "06:00:00-z-500.0.npy").unlink()
    with pytest.raises(WxlabError, match="cannot read") as caught:
        dataset["geopotential"].isel(time=5).values  # noqa: B018
    one_sentence(caught.value)
