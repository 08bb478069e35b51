"""Trees of .npy files that are written: what is in them, that they are read back, that a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from noise import make, times_of
from test_readers import write_catalogue

from wxlab import npy_tree, open_dataset, prepare
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.store import open_store

T2M, TIMES = "2m_temperature", times_of(9, hours=6)
NAMES = {"geopotential": {"name": "z"}, T2M: {"name": "t2m"}}


@pytest.fixture
def fields() -> xr.Dataset:
    return make(TIMES, Grid.regular(4, 8))[["geopotential", T2M]]


def reopened(root: Path, **entry: Any) -> xr.Dataset:
    return open_dataset("era5_npy_tree", **{"uri": str(root), "variables": NAMES, "options": {"check_range": False}, **entry})


def test_files_are_where_the_authors_look_for_them(fields: xr.Dataset, tmp_path: Path) -> None:
    root = npy_tree.write(fields, tmp_path / "tree", train=["2001-01-01", "2001-01-02"])
    assert root == tmp_path / "tree" and [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
    files = {str(path.relative_to(root)) for path in root.rglob("*.npy")}
    assert len(files) == 9 * 4
    assert {"2001/2001-01-03/00:00:00-z-500.0.npy", "single/2001/2001-01-01/18:00:00-t2m.npy"} <= files
    ordered = fields.sortby("latitude", ascending=False)  # rows run from north to south
    upper = np.load(root / "2001" / "2001-01-02" / "06:00:00-z-850.0.npy")
    assert upper.shape == (1, 4, 8) and upper.dtype == np.float32
    np.testing.assert_array_equal(upper[0], ordered["geopotential"].sel(level=850).isel(time=5))
    single = np.load(root / "single" / "2001" / "2001-01-01" / "12:00:00-t2m.npy")
    np.testing.assert_array_equal(single, ordered[T2M].isel(time=2))


def test_statistics_are_those_of_the_training_times(fields: xr.Dataset, tmp_path: Path) -> None:
    root = npy_tree.write(fields, tmp_path / "tree", train=["2001-01-01", "2001-01-01"])
    upper, single = (json.loads((root / "statistic" / f"mean_std{end}.json").read_text()) for end in ("", "_single"))
    assert set(upper["mean"]) == {"z"} and set(single["std"]) == {"t2m"} and len(upper["mean"]["z"]) == len(upper["std"]["z"]) == 37
    day = fields.isel(time=slice(0, 4)).astype("float64")
    assert single["mean"]["t2m"] == pytest.approx(float(day[T2M].mean()), rel=1e-9)
    assert upper["std"]["z"][15] == pytest.approx(float(day["geopotential"].sel(level=500).std()), rel=1e-6)  # 500 hPa is the sixteenth
    assert upper["mean"]["z"][0] == 0 and upper["std"]["z"][0] == 1  # 1000 hPa was not written
    normaliser = npy_tree.statistics(root, ["geopotential_700", T2M])
    assert normaliser.transforms["geopotential_700"].offset == upper["mean"]["z"][11]
    assert normaliser.transforms[T2M].scale == single["std"]["t2m"]


def test_a_tree_is_read_back_and_prepared(fields: xr.Dataset, tmp_path: Path) -> None:
    regional = fields.isel(latitude=slice(1, None), longitude=slice(2, 6))
    tree = reopened(npy_tree.write(regional, tmp_path / "tree"))
    expected = regional.sortby("latitude", ascending=False)
    assert "gaps" not in tree.attrs
    for name in ("latitude", "longitude", "time"):
        np.testing.assert_array_equal(tree[name], expected[name])
    for name in ("geopotential", T2M):
        np.testing.assert_array_equal(tree[name], expected[name].transpose(*tree[name].dims))
    how: dict[str, Any] = {"variables": ["geopotential", T2M], "levels": [850, 500], "splits": {"train": [TIMES[0], TIMES[-1]]}}
    store = open_store(prepare(tree, tmp_path / "s.zarr", **how))
    assert store.channels == ("geopotential_850", "geopotential_500", T2M)


def test_any_entry_of_the_catalogue_can_be_written(tmp_path: Path) -> None:
    how: dict[str, Any] = {"variables": ["temperature", "mean_sea_level_pressure", "wind"], "levels": [850]}
    with pytest.raises(WxlabError, match="unknown variable 'wind'"):
        npy_tree.write("simulated_atmosphere_small", tmp_path / "tree", **how)
    how["variables"].pop()
    source = open_dataset("simulated_atmosphere_small")
    root = npy_tree.write("simulated_atmosphere_small", tmp_path / "tree", time=[source["time"].values[0], source["time"].values[3]], **how)
    names = {"temperature": {"name": "t"}, "mean_sea_level_pressure": {"name": "msl"}}
    tree = reopened(root, variables=names)
    assert dict(tree.sizes) == {"time": 4, "level": 1, **{axis: source.sizes[axis] for axis in ("latitude", "longitude")}}
    expected = source["mean_sea_level_pressure"].isel(time=slice(4)).sortby("latitude", ascending=False)
    np.testing.assert_array_equal(tree["mean_sea_level_pressure"], expected)


def test_a_killed_run_goes_on(fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields.to_netcdf(tmp_path / "fields.nc", engine="h5netcdf")
    entry = {"title": "t", "driver": "netcdf", "uri": "${CATALOG_DIR}/fields.nc", "licence": "CC0"}
    names = {"geopotential": {"name": "geopotential"}, T2M: {"name": T2M}}
    catalogue = write_catalogue(tmp_path, fields={**entry, "variables": names, "options": {"check_range": False}})
    whole = npy_tree.write("fields", tmp_path / "whole", catalog=catalogue)
    monkeypatch.setattr(npy_tree, "BLOCK_BYTES", 3 * 4 * 4 * 4 * 8)  # three times are in memory at once
    written: list[np.ndarray] = []
    write_fields, out, work = npy_tree._write_fields, tmp_path / "tree", tmp_path / ".tree.writing.tmp"

    def fragile(root: Path, files: Any, times: np.ndarray, block: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(times)
        write_fields(root, files, times, block)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(npy_tree, "_write_fields", fragile)
        npy_tree.write("fields", out, catalog=catalogue)
    kept = {path.relative_to(work): path.stat().st_mtime_ns for path in work.rglob("*.npy")}
    assert len(kept) == 6 * 4 and not out.exists()
    npy_tree.write("fields", out, catalog=catalogue)
    assert all((out / path).stat().st_mtime_ns == stamp for path, stamp in kept.items()) and not work.exists()
    for path in (path.relative_to(whole) for path in whole.rglob("*.npy")):
        assert (out / path).read_bytes() == (whole / path).read_bytes()
    one, other = (json.loads((root / "statistic" / "mean_std.json").read_text()) for root in (out, whole))
    np.testing.assert_allclose(one["std"]["z"], other["std"]["z"], rtol=1e-9)


def test_fields_in_memory_are_always_written_anew(fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(npy_tree, "_write_statistics", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        npy_tree.write(fields, tmp_path / "tree")
    root = npy_tree.write(fields + 1, tmp_path / "tree")
    first = root / "single" / "2001" / "2001-01-01" / "00:00:00-t2m.npy"
    assert np.load(first)[0, 0] == fields[T2M][0, -1, 0].item() + 1
    npy_tree.write(fields, root, overwrite=True)
    assert np.load(first)[0, 0] == fields[T2M][0, -1, 0].item()


def test_gaps_are_listed_and_said(fields: xr.Dataset, tmp_path: Path) -> None:
    root = npy_tree.write(fields, tmp_path / "tree")
    assert npy_tree.gaps(root).empty
    (root / "2001" / "2001-01-02" / "00:00:00-z-500.0.npy").unlink()
    for path in root.rglob("12:00:00-*.npy"):
        if "2001-01-01" in str(path):
            path.unlink()
    table = npy_tree.gaps(root)
    assert [f"{row.time:%d %H} {row.variable} {row.level:g}" for row in table.itertuples()] == [
        "01 12 z 500", "01 12 z 700", "01 12 z 850", "01 12 t2m nan", "02 00 z 500"
    ]  # fmt: skip
    assert npy_tree.gaps(root, ["t2m"]).shape == npy_tree.gaps(root, "t2m").shape == (1, 3)
    with pytest.raises(WxlabError, match=r"unknown variable of the tree 'q' \(allowed: t2m, z\)"):
        npy_tree.gaps(root, ["z", "q"])
    assert reopened(root).attrs["gaps"] == "5 files are missing, the first is 'z' at 500 hPa at 2001-01-01 12:00"


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        (lambda d: d.isel(time=0, drop=True), {}, r"the data lack the dimension time; a tree holds fields on latitude and longitude over"),
        (lambda d: d.expand_dims(number=2), {}, r"the data have members \(dimension number\), .* choose one with isel"),
        (lambda d: d.assign_coords(level=[500, 700, 860]), {}, r"geopotential_860 lies at 860 hPa, and the statistics have"),
        (lambda d: d, {"names": {T2M: "a/b"}}, r"names in the tree must differ, hold no slash and .*; \['a/b'\] do not"),
        (lambda d: d, {"names": {T2M: "t-2"}}, r"names in the tree must .* not end like a level \(-500\); \['t-2'\] do not"),
        (lambda d: d, {"levels": [400]}, r"'geopotential' has no level 400 hPa; its levels are 500, 700, 850"),
        (lambda d: d, {"train": ["1990-01-01", "1990-12-31"]}, r"no time lies in train=.*the data run from 2001-01-01"),
        (lambda d: d.where(d["time"] != TIMES[2]), {}, r"geopotential_500 has missing values at .*, which a tree cannot mark"),
    ],
)
def test_what_a_tree_cannot_hold_is_one_sentence(
    fields: xr.Dataset, tmp_path: Path, change: Any, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        npy_tree.write(change(fields), tmp_path / "tree", **how)
    assert "\n" not in str(caught.value) and not (tmp_path / "tree").exists()


def test_faults_of_trees_are_one_sentence(fields: xr.Dataset, tmp_path: Path) -> None:
    root = npy_tree.write(fields, tmp_path / "tree")
    with pytest.raises(WxlabError, match="tree exists; choose another folder, or pass overwrite=True"):
        npy_tree.write(fields, root)
    with pytest.raises(WxlabError, match=r"holds no file like 2020/2020-01-01/00:00:00-z-500.0.npy; give the root of a tree"):
        npy_tree.gaps(root / "statistic")
    with pytest.raises(WxlabError, match=r"unknown variable of the statistics in .* 'msl'.*\(allowed: t2m\)"):
        npy_tree.statistics(root, ["mean_sea_level_pressure"])
    with pytest.raises(WxlabError, match=r"unknown level of the statistics in hPa '55'.*allowed"):
        npy_tree.statistics(root, ["geopotential_55"])
    (root / "grid.json").write_text("{}")
    with pytest.raises(WxlabError, match=r"grid.json cannot be read; write it again, or remove it and describe the grid in the entry"):
        reopened(root)
    statistic = root / "statistic" / "mean_std.json"
    statistic.write_text('{"mean": {"z": [1]}, "std": {"z": [1]}}')
    with pytest.raises(WxlabError, match=r"the statistics of 'z' in .* must be 37 means and 37 deviations"):
        npy_tree.statistics(root, ["geopotential_500"])
    for change, shown in (({"std": {}}, "None"), ({"std": {"t2m": 0}}, "0"), ({"std": {"t2m": "much"}}, "'much'")):
        single = root / "statistic" / "mean_std_single.json"
        single.write_text(json.dumps({"mean": {"t2m": 280.0}, **change}))
        with pytest.raises(WxlabError, match=rf"statistics of 2m_temperature in .* are 280.0 and {shown}; give a mean and"):
            npy_tree.statistics(root, T2M)
    statistic.unlink()
    with pytest.raises(WxlabError, match=r"mean_std.json; a tree needs it, also when it has no such variables"):
        npy_tree.statistics(root, ["geopotential_500"])
