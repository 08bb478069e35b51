"""The catalogue: files and their faults, overlays, overrides, the built-in entries, and the check of a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import wxlab.simulate
from wxlab.catalog import builtin_path, check, load, missing, open_dataset
from wxlab.catalog_schema import as_time, base_variable
from wxlab.data_check import gaps
from wxlab.errors import WxlabError
from wxlab.readers.uniform import contiguous

ENTRY = """
schema: 1
datasets:
  one:
    title: One
    driver: netcdf
    uri: ${CATALOG_DIR}/one.nc
    variables: {2m_temperature: {name: t2m}}
"""


@pytest.fixture(autouse=True)
def no_overlays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("real_data") is None:
        monkeypatch.delenv("WXLAB_CATALOG", raising=False)


def write(path: Path, text: str = ENTRY) -> Path:
    path.write_text(text)
    return path


def small(times: int = 8) -> xr.Dataset:
    index = pd.date_range("2020-01-01", periods=times, freq="6h", unit="ns")
    values = 280 + np.random.default_rng(0).normal(size=(times, 4, 6))
    return xr.Dataset(
        {"t2m": (("time", "lat", "lon"), values, {"units": "K"})},
        {"time": index, "lat": np.linspace(-45, 45, 4), "lon": np.arange(6) * 60.0},
    )


# ---- the built-in catalogue --------------------------------------------------------------------------------------------------------
ARCHIVES = {
    "weatherbench2_era5_64x32": "gs://weatherbench2/datasets/era5/1959-2023_01_10-6h-64x32_equiangular_conservative.zarr",
    "weatherbench2_era5_240x121": "gs://weatherbench2/datasets/era5/1959-2023_01_10-6h-240x121_equiangular_with_poles_conservative.zarr",
    "weatherbench2_era5_1440x721": "gs://weatherbench2/datasets/era5/1959-2023_01_10-wb13-6h-1440x721_with_derived_variables.zarr",
    "weatherbench2_climatology_64x32": "gs://weatherbench2/datasets/era5-hourly-climatology/1990-2019_6h_64x32_equiangular_conservative.zarr",
    "weatherbench2_hres_t0_64x32": "gs://weatherbench2/datasets/hres_t0/2016-2022-6h-64x32_equiangular_conservative.zarr",
    "weatherbench2_ifs_ens_64x32": "gs://weatherbench2/datasets/ifs_ens/2018-2022-64x32_equiangular_conservative.zarr",
    "arco_era5": "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3",
}


def test_builtin_catalogue_is_whole() -> None:
    catalogue = load()
    assert {name: catalogue.datasets[name].uri for name in ARCHIVES} == ARCHIVES
    assert all(catalogue.datasets[name].needs_network for name in ARCHIVES)
    offline = {"simulated_atmosphere", "simulated_atmosphere_small", "simulated_radar", "moving_digits"}
    assert offline <= {name for name, entry in catalogue.datasets.items() if entry.driver == "simulated" and not entry.needs_network}
    assert {"weatherbench1_5p625deg", "era5_cds_netcdf", "era5_npy_tree"} <= set(catalogue.datasets)
    assert all(entry.title and entry.licence and entry.citation for entry in catalogue.datasets.values())


def test_every_variable_of_the_vocabulary_has_a_range() -> None:
    vocabulary = load().variables
    for name, variable in vocabulary.items():
        assert variable.valid_range is not None, name
        assert variable.standard_name, name
        assert base_variable(name, vocabulary) == (name, None)


def test_level_in_a_name() -> None:
    known = load().variables
    assert base_variable("geopotential_500", known) == ("geopotential", 500)
    assert base_variable("total_precipitation_6hr", known) == ("total_precipitation_6hr", None)
    assert base_variable("unheard_of_500", known) == ("unheard_of_500", None)


@pytest.mark.parametrize("name", ["weatherbench1_5p625deg", "era5_cds_netcdf", "era5_npy_tree"])
def test_local_archives_ask_for_their_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WEATHERBENCH1_DIR", "ERA5_DIR", "ERA5_NPY_DIR"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(WxlabError, match=r"environment variable \w+ is not set; set it to the folder of the data"):
        open_dataset(name)


# ---- overlays and overrides ----------------------------------------------------------------------------------------------------------
def test_overlays_win_by_name_and_later_ones_over_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "catalog.yaml", ENTRY.replace("title: One", f"title: From {folder}"))
    monkeypatch.setenv("WXLAB_CATALOG", f"{tmp_path}/a/catalog.yaml:{tmp_path}/b/catalog.yaml")
    assert load().datasets["one"].title == "From b"
    assert load().datasets["one"].uri == f"{tmp_path}/b/one.nc"
    assert "simulated_atmosphere" in load().datasets
    assert load(tmp_path / "c" / "catalog.yaml").datasets["one"].title == "From c"
    assert load([tmp_path / "c" / "catalog.yaml", tmp_path / "a" / "catalog.yaml"]).datasets["one"].title == "From a"
    loaded = load()
    assert load(loaded) is loaded


def test_overlay_replaces_a_remote_source(tmp_path: Path) -> None:
    small().to_netcdf(tmp_path / "one.nc")
    overlay = write(tmp_path / "catalog.yaml", ENTRY.replace("  one:", "  weatherbench2_era5_64x32:"))
    assert open_dataset("weatherbench2_era5_64x32", catalog=overlay).sizes["time"] == 8


def test_overlay_may_add_variables(tmp_path: Path) -> None:
    text = ENTRY.replace("2m_temperature", "soil_moisture") + "variables:\n  soil_moisture: {units: '1', valid_range: [0, 400]}\n"
    small().drop_attrs().to_netcdf(tmp_path / "one.nc")
    assert list(open_dataset("one", catalog=write(tmp_path / "catalog.yaml", text)).data_vars) == ["soil_moisture"]


def test_yaml_merge_keys_are_allowed(tmp_path: Path) -> None:
    text = ENTRY.replace("  one:\n", "  one: &first\n") + "  two: {<<: *first, title: Two}\n"
    assert load(write(tmp_path / "catalog.yaml", text)).datasets["two"].title == "Two"


def test_variables_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().to_netcdf(tmp_path / "one.nc")
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    text = ENTRY.replace("${CATALOG_DIR}", "${MY_DATA}")
    assert "2m_temperature" in open_dataset("one", catalog=write(tmp_path / "catalog.yaml", text))


def test_overrides(tmp_path: Path) -> None:
    small().to_netcdf(tmp_path / "two.nc")
    catalogue = write(tmp_path / "catalog.yaml")
    dataset = open_dataset(
        "one", catalog=catalogue, uri=tmp_path / "two.nc", title="Two", time={"start": "2020-01-01T12", "end": "2020-01-02"}
    )
    assert dataset.attrs["title"] == "Two"
    assert list(dataset.indexes["time"]) == list(pd.date_range("2020-01-01T12", "2020-01-02T18", freq="6h"))
    assert list(open_dataset("one", catalog=catalogue, uri=tmp_path / "two.nc", variables="2m_temperature").data_vars) == ["2m_temperature"]


def test_splits_are_json(tmp_path: Path) -> None:
    small().to_netcdf(tmp_path / "one.nc")
    text = ENTRY + "    splits: {train: [2020-01-01, 2020-01-01], test: [2020-01-02T00, 2020-01-02T18]}\n"
    dataset = open_dataset("one", catalog=write(tmp_path / "catalog.yaml", text))
    splits = {"train": ["2020-01-01", "2020-01-01"], "test": ["2020-01-02T00", "2020-01-02T18"]}
    assert json.loads(dataset.attrs["splits"]) == splits
    assert "splits" not in open_dataset("one", catalog=write(tmp_path / "catalog.yaml")).attrs


def test_date_alone_as_an_end_means_all_of_the_day() -> None:
    assert as_time("2001-01-31", end=True) == pd.Timestamp("2001-01-31T23:59:59.999999999")
    assert as_time("2001-01-31T06", end=True) == pd.Timestamp("2001-01-31T06")
    assert as_time("2001-01-31") == pd.Timestamp("2001-01-31")
    assert as_time(1999, end=True) == pd.Timestamp("1999-12-31T23:59:59.999999999")


# ---- simulated entries ---------------------------------------------------------------------------------------------------------------
def generator(*, days: int = 2, members: int = 1, seed: int = 0, grid: tuple[int, int] = (4, 8)) -> xr.Dataset:
    times = pd.date_range("2000-01-01", periods=4 * days * members, freq="6h", unit="ns")
    rows, columns = grid
    values = np.full((len(times), rows, columns), 280 + seed, np.float32)
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), values, {"units": "K"}) for name in ("2m_temperature", "sea_surface_temperature")},
        {
            "time": times,
            "latitude": np.linspace(-67.5, 67.5, rows),
            "longitude": np.arange(columns) * 360 / columns,
            "segment": ("time", np.repeat(np.arange(members), 4 * days)),
        },
        {"splits": json.dumps({"train": {"segments": [0]}})},
    )


def test_simulated_entries_call_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wxlab.simulate, "atmosphere", generator)
    dataset = open_dataset("simulated_atmosphere_small")
    assert dataset.sizes["time"] <= 200
    assert dataset["2m_temperature"].chunks is not None
    assert dataset["segment"].chunks is None
    assert json.loads(dataset.attrs["splits"]) == {"train": {"segments": [0]}}
    assert dataset.attrs["source"] == "simulated_atmosphere_small"
    assert dataset.attrs["latitude_order"] == "ascending"
    other = open_dataset("simulated_atmosphere", days=3, seed=5, grid=(8, 16), variables=["2m_temperature"])
    assert dict(other.sizes) == {"time": 12, "latitude": 8, "longitude": 16}
    assert list(other.data_vars) == ["2m_temperature"]
    assert float(other["2m_temperature"].max()) == 285
    assert open_dataset("simulated_atmosphere", time={"end": "2000-01-01"}).sizes["time"] == 4


def test_settings_that_no_simulator_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wxlab.simulate, "atmosphere", generator)
    with pytest.raises(WxlabError, match="unknown setting of simulated_atmosphere 'dayz'; did you mean 'days'"):
        open_dataset("simulated_atmosphere", dayz=3)
    with pytest.raises(WxlabError, match="2m_temperatur: unknown variable; did you mean '2m_temperature'"):
        open_dataset("simulated_atmosphere", variables=["2m_temperatur"])
    with pytest.raises(WxlabError, match="unknown variable of simulated_atmosphere 'geopotential'"):
        open_dataset("simulated_atmosphere", variables=["geopotential"])


@pytest.mark.parametrize("name", ["simulated_radar", "moving_digits"])
def test_quick_simulators_as_they_are(name: str) -> None:
    dataset = open_dataset(name)
    assert dataset["segment"].dims == ("time",)
    assert dataset.indexes["time"].is_monotonic_increasing
    assert all(array.dtype == np.float32 and array.chunks for array in dataset.data_vars.values())
    assert set(dataset.data_vars) <= set(load().variables)


# ---- faults ---------------------------------------------------------------------------------------------------------------------------
def changed(old: str, new: str) -> str:
    assert old in ENTRY
    return ENTRY.replace(old, new)


CATALOGUE_FAULTS = {
    "schema of another version": (changed("schema: 1", "schema: 2"), "schema: is 2; this version reads schema 1"),
    "no schema": (changed("schema: 1", ""), "schema: is None"),
    "unknown section": (changed("datasets:", "dataset:"), "dataset: unknown section; did you mean 'datasets'"),
    "a list for a mapping": ("- 1\n- 2\n", "the file holds list"),
    "datasets is a list": ("schema: 1\ndatasets: [a]\n", "datasets: is list"),
    "entry is text": ("schema: 1\ndatasets: {a: text}\n", "datasets.a: is str 'text'; it must be a mapping of title"),
    "title missing": (changed("    title: One\n", ""), "datasets.one.title: is missing"),
    "driver unknown": (changed("netcdf", "netcfd"), "datasets.one.driver: 'netcfd' is not known; did you mean 'netcdf'"),
    "field unknown": (changed("uri:", "url:"), "datasets.one.url: unknown field; did you mean 'uri'"),
    "field of a variable unknown": (changed("{name: t2m}", "{name: t2m, scal: 2}"), "unknown field; did you mean 'scale'"),
    "uri missing": (changed("    uri: ${CATALOG_DIR}/one.nc\n", ""), "datasets.one.uri: is missing; driver netcdf needs"),
    "variable unknown": (changed("2m_temperature", "2m_temprature"), "2m_temprature: unknown variable; did you mean '2m_temperature'"),
    "name missing": (changed("{name: t2m}", "{}"), "2m_temperature.name: is missing"),
    "scale not a number": (changed("{name: t2m}", "{name: t2m, scale: much}"), "2m_temperature.scale: str 'much' does not fit"),
    "no variables": (changed("{2m_temperature: {name: t2m}}", "{}"), "datasets.one.variables: is missing; name at least one"),
    "option unknown": (ENTRY + "    options: {retrys: 3}\n", "options.retrys: unknown option of driver netcdf; did you mean 'retries'"),
    "engine unknown": (
        ENTRY + "    options: {engine: netcdf}\n",
        "options.engine: 'netcdf' is not an engine of driver netcdf; did you mean 'netcdf4'",
    ),
    "retries negative": (ENTRY + "    options: {retries: -1}\n", "options.retries: -1 must be a number of at least 0"),
    "grid unknown": (ENTRY + "    grid: {type: latlong}\n", "grid.type: 'latlong' is not known; did you mean 'latlon'"),
    "time backwards": (ENTRY + "    time: {start: 2001-01-01, end: 2000-01-01}\n", "time: starts at 2001-01-01 and ends before"),
    "time no date": (ENTRY + "    time: {start: someday}\n", "time: 'someday' is not a date"),
    "split unknown": (ENTRY + "    splits: {training: [2001-01-01, 2002-01-01]}\n", "splits.training: unknown name; did you mean 'train'"),
    "split of three": (ENTRY + "    splits: {train: [1, 2, 3]}\n", r"splits.train: must be \[first date, last date\]"),
    "splits overlap": (ENTRY + "    splits: {train: [2001-01-01, 2002-01-01], test: [2002-01-01, 2003-01-01]}\n", "train and test overlap"),
    "segment in two splits": (
        ENTRY + "    splits: {train: {segments: [0, 1]}, test: {segments: [1]}}\n",
        "segment 1 is in train and in test",
    ),
    "range upside down": ("schema: 1\nvariables: {v: {units: K, valid_range: [2, 1]}}\n", "v.valid_range: 2 is not below 1"),
    "units missing": ("schema: 1\nvariables: {v: {}}\n", "variables.v.units: is missing"),
    "simulator unknown": (
        "schema: 1\ndatasets: {s: {title: S, driver: simulated, options: {generator: atmosfere}}}\n",
        "options.generator: 'atmosfere' is not a simulator; did you mean 'atmosphere'",
    ),
    "key twice": (ENTRY + "    title: Again\n", "is not valid YAML at line 9: 'title' is given twice"),
    "date that is none": (ENTRY + "    time: {start: 2001-13-01}\n", "holds a value that cannot be: month must be in 1..12"),
    "key that is a list": ("schema: 1\n? [a, b]\n: 1\n", "is not valid YAML at line 2: found unhashable key"),
    "not YAML": ("schema: [1\n", "is not valid YAML at line"),
}


@pytest.mark.parametrize("fault", CATALOGUE_FAULTS)
def test_faults_of_catalogues(fault: str, tmp_path: Path) -> None:
    text, message = CATALOGUE_FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        load(write(tmp_path / "catalog.yaml", text))
    assert "catalog.yaml" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_every_problem_of_a_file_in_one_message(tmp_path: Path) -> None:
    text = """
schema: 3
extra: 1
variables:
  v: {units: K, valid_range: [2, 1], colour: red}
datasets:
  a: {title: A, driver: zar, uri: x, variables: {2m_temperature: {name: t}}}
  b: {title: B, driver: zarr, variables: {2m_temprature: {name: t}}, options: {retrys: 1}}
"""
    with pytest.raises(WxlabError) as caught:
        load(write(tmp_path / "catalog.yaml", text))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("has 7 problems:")
    for part, line in zip(
        ("extra", "schema", "v.colour", "a.driver", "b.variables.2m_temprature", "b.uri", "retrys"), lines[1:], strict=True
    ):
        assert part in line


NAME_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "source unknown": ({"name": "simulated_atmosfere"}, "unknown data source 'simulated_atmosfere'; did you mean 'simulated_atmosphere'"),
    "override unknown": ({"name": "one", "urii": "x"}, "unknown field of an entry 'urii'; did you mean 'uri'"),
    "override of a wrong type": ({"name": "one", "uri": 5}, "does not fit"),
    "option unknown": ({"name": "one", "options": {"engin": "scipy"}}, "unknown option of driver netcdf; did you mean 'engine'"),
    "narrowed to what it has not": ({"name": "one", "variables": ["2m_temp"]}, "unknown variable of one '2m_temp'; did you mean"),
    "split backwards": (
        {"name": "one", "splits": {"train": ["2002-01-01", "2001-01-01"]}},
        "splits.train: starts at 2002-01-01 and ends before",
    ),
}


@pytest.mark.parametrize("fault", NAME_FAULTS)
def test_faults_of_names_and_overrides(fault: str, tmp_path: Path) -> None:
    arguments, message = NAME_FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        open_dataset(**arguments, catalog=write(tmp_path / "catalog.yaml"))
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_catalogue_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WXLAB_CATALOG", str(tmp_path / "none.yaml"))
    with pytest.raises(WxlabError, match=r"cannot read catalogue .*none.yaml: there is no such file; check .* WXLAB_CATALOG"):
        load()
    (tmp_path / "none.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WxlabError, match="not UTF-8"):
        load()


def test_builtin_file_is_found() -> None:
    assert builtin_path().name == "data_catalog.yaml"


# ---- the check of a source -----------------------------------------------------------------------------------------------------------
def holes() -> xr.Dataset:
    dataset = small(20).isel(time=[0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 19])
    dataset["t2m"][2] = np.nan
    dataset["t2m"][:, 0, :2] = np.nan
    dataset["t2m"][5, 3, 3] = np.nan
    return dataset


def test_missing(tmp_path: Path) -> None:
    holes().to_netcdf(tmp_path / "one.nc")
    found = missing(open_dataset("one", catalog=write(tmp_path / "catalog.yaml")))
    assert list(found["channel"].values) == ["2m_temperature"]
    assert float(found["share"][0]) == pytest.approx((24 + 13 * 2 + 1) / (14 * 24))
    assert np.flatnonzero(found["frame"][0]).tolist() == [2]
    assert np.argwhere(found["always"][0].values).tolist() == [[0, 0], [0, 1]]


def test_missing_by_level() -> None:
    values = np.ones((3, 2, 2, 2), np.float32)
    values[1, 1] = np.nan
    dataset = xr.Dataset(
        {
            "temperature": (("time", "level", "latitude", "longitude"), values),
            "land_sea_mask": (("latitude", "longitude"), np.array([[0, 1], [np.nan, 1]])),
        },
        {"time": pd.date_range("2000", periods=3, unit="ns"), "level": [500, 850], "latitude": [0, 1], "longitude": [0, 1]},
    )
    found = missing(dataset).sel(channel=["temperature_500", "temperature_850", "land_sea_mask"])
    np.testing.assert_allclose(found["share"], [0, 1 / 3, 1 / 4])
    assert found["frame"].values.tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert found["always"].sum(["latitude", "longitude"]).values.tolist() == [0, 0, 1]


def test_gaps_stay_within_segments() -> None:
    times = pd.DatetimeIndex(["2000-01-01T00", "2000-01-01T06", "2000-01-01T12", "2001-01-01T00", "2001-01-01T06", "2001-01-01T18"])
    dataset = xr.Dataset(coords={"time": times, "segment": ("time", [0, 0, 0, 1, 1, 1])})
    step, wide = gaps(dataset)
    assert step == pd.Timedelta(hours=6)
    assert wide == [(times[4], times[5])]
    assert len(gaps(dataset.drop_vars("segment"))[1]) == 2


def test_check_reports_what_is_wrong(tmp_path: Path) -> None:
    holes().to_netcdf(tmp_path / "one.nc")
    report = "\n".join(map(str, check("one", catalog=write(tmp_path / "catalog.yaml"))))
    assert "problem: time: 14 times" in report
    assert "every 6 h with 2 gaps (2020-01-02 00:00:00 to 2020-01-03 00:00:00;" in report
    assert "15.2 % of the values are missing; wholly missing in 1 frame: step 2 (2020-01-01 12:00:00)" in report
    assert "always missing at 2 of 24 points (within latitude -45 to -45, longitude 0 to 60)" in report
    assert "ok: latitude: ascending, 4 rows" in report


def test_check_reports_a_wrong_range_instead_of_stopping(tmp_path: Path) -> None:
    (small() - 273.15).to_netcdf(tmp_path / "one.nc")
    catalogue = write(tmp_path / "catalog.yaml")
    with pytest.raises(WxlabError, match="150 to 350 K is allowed"):
        open_dataset("one", catalog=catalogue)
    findings = [finding for finding in check("one", catalog=catalogue) if finding.level == "problem"]
    assert [finding.subject for finding in findings] == ["2m_temperature"]
    assert "outside the valid range 150 to 350" in findings[0].text


def test_check_says_that_it_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wxlab.data_check as data_check

    small(40).to_netcdf(tmp_path / "one.nc")
    monkeypatch.setattr(data_check, "MOST_FRAMES", 10)
    monkeypatch.setattr(data_check, "MOST_BYTES", 1)
    report = [str(finding) for finding in check("one", catalog=write(tmp_path / "catalog.yaml"))]
    assert any("1 of 40 times were read, evenly spaced" in line for line in report)


# ---- real data -----------------------------------------------------------------------------------------------------------------------
# name: sizes, order of latitude, first column of a region across longitude 0
REAL = {
    "era5_sample_1deg": ({"time": 24, "latitude": 181, "longitude": 360}, "descending", None),
    "era5_state_tl31": ({"time": 1, "level": 37, "latitude": 32, "longitude": 64}, "ascending", None),
    "era5_ensemble_members": ({"time": 4, "number": 10, "level": 2, "latitude": 61, "longitude": 120}, "descending", None),
    "era5_uk_t2m": ({"time": 744, "latitude": 33, "longitude": 49}, "descending", 9),
    "storm_1996": ({"time": 64, "level": 1, "latitude": 33, "longitude": 36}, "ascending", None),
    "radar_brisbane": ({"time": 144, "y": 512, "x": 512}, None, None),
    "radar_finland": ({"time": 40, "y": 1226, "x": 760}, None, None),
    "radar_switzerland_2015": ({"time": 40, "y": 640, "x": 710}, None, None),
    "radar_switzerland_2017": ({"time": 40, "y": 640, "x": 710}, None, None),
    "era_interim_state_1p5": ({"time": 1, "level": 37, "latitude": 121, "longitude": 240}, "descending", None),
    "gfs_2p5": ({"time": 1, "level": 26, "latitude": 73, "longitude": 144}, "descending", None),
    "ncep_north_atlantic": ({"time": 3652, "latitude": 17, "longitude": 33}, "ascending", 5),
    "ncep_iberia": ({"time": 18226, "level": 3, "latitude": 6, "longitude": 9}, "ascending", 3),
}


@pytest.mark.real_data
def test_all_real_sources_are_tried(real_catalog: Path) -> None:
    from wxlab.catalog_schema import read_file

    assert set(read_file(real_catalog, load().variables).datasets) == set(REAL)


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_sources_are_uniform(name: str, real_catalog: Path) -> None:
    sizes, order, seam = REAL[name]
    dataset = open_dataset(name, catalog=real_catalog)
    assert dict(dataset.sizes) == sizes
    assert set(dataset.data_vars) <= set(load().variables)
    assert dataset.attrs.get("latitude_order") == order
    assert dataset.attrs.get("longitude_seam") == seam
    assert dataset.attrs["source"] == name and dataset.attrs["licence"] and dataset.attrs["citation"]
    index = dataset.indexes["time"]
    assert index.is_unique and index.is_monotonic_increasing and dataset["time"].dtype == "datetime64[ns]"
    for array in dataset.data_vars.values():
        assert array.dtype == np.float32 and array.chunks is not None
    if "longitude" in dataset.dims:
        longitude = dataset["longitude"].values
        assert (np.diff(longitude) > 0).all() and longitude[0] >= 0 and longitude[-1] < 360
        steps = np.diff(contiguous(dataset)["longitude"].values)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    if "level" in dataset.dims:
        assert dataset["level"].dtype.kind == "i" and dataset["level"].min() >= 1 and dataset["level"].max() <= 1000
    frame = dataset.isel(time=0, number=0, missing_dims="ignore").compute()
    for variable, array in frame.items():
        low, high = load().variables[str(variable)].valid_range or (0, 0)
        assert low <= float(array.min()) <= float(array.max()) <= high


@pytest.mark.real_data
def test_real_values_are_known_ones(real_catalog: Path) -> None:
    """Numbers that the files' descriptions give."""
    cyclone = open_dataset("era5_sample_1deg", catalog=real_catalog)["mean_sea_level_pressure"].isel(time=0)
    assert float(cyclone.sel(latitude=slice(-10, -25), longitude=slice(110, 130)).min()) == pytest.approx(98700, abs=100)
    gfs = open_dataset("gfs_2p5", catalog=real_catalog)["geopotential"].sel(level=500)
    assert 48000 < float(gfs.mean()) < 58000
    natlantic = open_dataset("ncep_north_atlantic", catalog=real_catalog)["mean_sea_level_pressure"].values
    assert np.sqrt(np.mean((natlantic[1:] - natlantic[:-1]) ** 2)) == pytest.approx(659, abs=2)


@pytest.mark.real_data
def test_holes_of_the_storm_are_reported(real_catalog: Path) -> None:
    found = missing(open_dataset("storm_1996", catalog=real_catalog))
    frames = {str(name): np.flatnonzero(found["frame"].sel(channel=name)).tolist() for name in found["channel"].values}
    assert sorted({frame for steps in frames.values() for frame in steps}) == [17, 36, 37]
    assert found["always"].any()
    report = "\n".join(map(str, check("storm_1996", catalog=real_catalog)))
    assert "step 17 (1996-01-09 06:00:00)" in report
    assert "step 36" in report and "step 37" in report
    assert "always missing at" in report
