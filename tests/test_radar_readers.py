"""Archives of radar frames, made here in the published layouts: what is chosen, converted, masked, refused, and never read too early."""

from __future__ import annotations

import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from wxlab.catalog import check, open_dataset
from wxlab.errors import WxlabError
from wxlab.readers.frames import without_gaps
from wxlab.readers.hko7 import linear_dbz, linear_pixel, nonlinear_dbz, read_days, read_sampler
from wxlab.store import open_store, prepare
from wxlab.windows import Windows

MASK = {"missing": "mask"}


# ---- SEVIR -------------------------------------------------------------------------------------------------------------------------
def pattern(event: int, side: int = 384) -> np.ndarray:
    """Frames [y, x, 49] whose values tell event, frame and place."""
    y, x, t = np.ogrid[:side, :side, :49]
    return ((7 * event + t + y + 2 * x) % 256).astype(np.uint8)


ROWS = [  # id, file, index, kind, time, missing
    ("S800100", "2019b", 0, "vil", "2019-06-01 00:00:01", 0.0),  # test, and the last by identifier among numbers of one length
    ("S800001", "2018", 1, "vil", "2018-05-02 18:02:00", 0.0),
    ("R18000", "2018", 0, "vil", "2018-05-02 18:00:00", 0.0),  # overlaps with the one above
    ("S800003", "2018", 2, "vil", "2018-06-01 00:00:00", 12.5),  # incomplete
    ("S800002", "2018", 2, "ir069", "2018-06-01 00:00:00", 0.0),  # another kind
    ("S800004", "2018", 0, "vil", "2018-07-01 00:00:00", 0.0),  # occurs twice
    ("S800004", "2018", 1, "vil", "2018-07-01 00:00:00", 0.0),
    ("S800005", "2019a", 0, "vil", "2019-06-01 00:00:00", 0.0),  # validation: up to and including
]


@pytest.fixture(scope="module")
def sevir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sevir")
    (root / "data" / "vil").mkdir(parents=True)
    for name, events in {"2018": (0, 1, 2), "2019a": (5,), "2019b": (6,)}.items():
        with h5py.File(root / "data" / "vil" / f"{name}.h5", "w") as file:
            file.create_dataset("vil", data=np.stack([pattern(event) for event in events]), chunks=(1, 384, 384, 49))
    columns = ["id", "file_name", "file_index", "img_type", "time_utc", "pct_missing"]
    table = pd.DataFrame([(i, f"vil/{f}.h5", n, kind, t, p) for i, f, n, kind, t, p in ROWS], columns=columns)
    table["event_type"] = "Hail"
    table.to_csv(root / "CATALOG.csv", index=False)
    return root


def test_sevir_events_order_frames_and_times(sevir: Path) -> None:
    data = open_dataset("sevir", uri=sevir)
    field = data["vertically_integrated_liquid_8bit"]
    assert field.shape == (4 * 25, 384, 384) and field.dtype == np.float32 and field.attrs["units"] == "1"
    assert list(dict.fromkeys(data["event_id"].values)) == ["R18000", "S800001", "S800005", "S800100"]
    for n, event in enumerate((0, 1, 5, 6)):
        np.testing.assert_array_equal(field.values[25 * n : 25 * n + 25], np.moveaxis(pattern(event)[..., :25], -1, 0))
    assert data["segment"].values.tolist() == np.repeat(range(4), 25).tolist()
    # two events of one afternoon: the second is a day later on the store's axis, and says when it truly was
    assert str(data["time"].values[25])[:16] == "2018-05-03T16:02" and str(data["event_time"].values[25])[:16] == "2018-05-02T16:02"
    assert (np.diff(data["time"].values) > np.timedelta64(0)).all()
    parts = [set(part.tolist()) for part in data["split"].values.reshape(4, 25)]
    assert parts == [{"train"}, {"train"}, {"validation"}, {"test"}]


def test_sevir_all_frames(sevir: Path) -> None:
    data = open_dataset("sevir", uri=sevir, options={"frames": 49})
    np.testing.assert_array_equal(data["vertically_integrated_liquid_8bit"].values[49 + 48], pattern(1)[..., 48])
    assert data.sizes["time"] == 4 * 49


def test_sevir_goes_through_prepare_as_the_authors_have_it(sevir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEVIR_DIR", str(sevir))
    store = open_store(prepare("sevir", tmp_path / "s.zarr", grid="128x128", method="bilinear"))
    windows = {split: Windows(store, split, history=13, horizon=12) for split in ("train", "validation", "test")}
    assert {split: one.samples for split, one in windows.items()} == {"train": 2, "validation": 1, "test": 1}
    batch = next(iter(windows["test"]))
    wanted = np.moveaxis(pattern(6)[1::3, 1::3, :25], -1, 0).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch.history[0, :, 0].numpy(), wanted[:13])
    np.testing.assert_array_equal(batch.target[0, :, 0].numpy(), wanted[13:])  # type: ignore[index]


def test_opening_reads_no_frame(sevir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a frame was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    assert open_dataset("sevir", uri=sevir).sizes["time"] == 100


def test_sevir_time_cuts_by_the_true_time(sevir: Path) -> None:
    data = open_dataset("sevir", uri=sevir, time={"start": "2019-01-01", "end": "2019-12-31"})
    assert list(dict.fromkeys(data["event_id"].values)) == ["S800005", "S800100"]
    with pytest.raises(WxlabError, match="no time lies in 2021-01-01 to 2021-12-31; the data run from 2018"):
        open_dataset("sevir", uri=sevir, time={"start": "2021-01-01", "end": "2021-12-31"})


def copy_of(root: Path, to: Path) -> Path:
    for path in root.rglob("*"):
        target = to / path.relative_to(root)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return to


def replaced(path: Path, content: bytes) -> None:
    path.unlink()  # the fixture has the same file
    path.write_bytes(content)


def test_sevir_missing_and_damaged_files(sevir: Path, tmp_path: Path) -> None:
    root = copy_of(sevir, tmp_path / "sevir")
    (root / "data/vil/2019b.h5").unlink()
    with pytest.raises(WxlabError, match=r"2019b\.h5, which CATALOG\.csv names, is missing; fetch it, or pass options="):
        open_dataset("sevir", uri=root)
    replaced(root / "data/vil/2019a.h5", b"not hdf5")
    data = open_dataset("sevir", uri=root, options=MASK)
    values = data["vertically_integrated_liquid_8bit"].values
    assert np.isnan(values[50:]).all() and np.isfinite(values[:50]).all()
    (root / "data/vil/2019b.h5").write_bytes(b"")
    damaged = open_dataset("sevir", uri=root)
    with pytest.raises(WxlabError, match=r"the frame of 2019-05-31T22:50 cannot be read: .*2019a\.h5 is damaged"):
        damaged["vertically_integrated_liquid_8bit"][60].compute()
    with pytest.raises(WxlabError, match=r"cannot be read: .*2019[ab]\.h5 is damaged"):
        prepare(damaged, tmp_path / "s.zarr", grid="8x8", time=["2019-01-01", "2019-12-31"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda root: {"options": {"frames": 30}}, "option frames is 30; give 25"),
        (lambda root: {"options": {"missing": "zero"}}, "unknown option missing of source 'sevir' 'zero'"),
        (lambda root: {"uri": root / "nowhere"}, "there is nothing at"),
        (lambda root: {"uri": root / "data"}, "holds no CATALOG.csv; give the folder of SEVIR"),
        (lambda root: {"variables": {"rain_rate": {"name": "a"}, "reflectivity": {"name": "b"}}}, "it has one variable"),
        (lambda root: {"variables": {"rain_rate": {"name": "vli"}}}, "no file can be opened that CATALOG.csv names"),
        (lambda root: {"options": {"frame": 49}}, "did you mean 'frames'"),
    ],
)
def test_sevir_mistakes(sevir: Path, change: Any, sentence: str) -> None:
    one_sentence(lambda: open_dataset("sevir", **{"uri": sevir, **change(sevir)}), sentence)


def one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(WxlabError) as caught:
        call()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_sevir_catalogue_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "CATALOG.csv").write_text("a,b\n1,2\n")
    one_sentence(lambda: open_dataset("sevir", uri=tmp_path), "it needs the columns id, file_name")
    (tmp_path / "CATALOG.csv").write_text("id,file_name,file_index,img_type,time_utc,pct_missing\nS1,a.h5,0,vil,2018-01-01 00:00:00,50\n")
    one_sentence(lambda: open_dataset("sevir", uri=tmp_path), "names no event of kind 'vil' with pct_missing 0")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("S1,a.h5,0,vil,yesterday,0", "line 4 of CATALOG.csv has time_utc 'yesterday', which is not a time such as 2018-06-14 18:02:00"),
        ("S1,a.h5,0,vil,2018-01-01 00:00:00,few", "line 4 of CATALOG.csv has pct_missing 'few', which is not a number"),
        ("S1,a.h5,one,vil,2018-01-01 00:00:00,0", "line 4 of CATALOG.csv has file_index 'one', which is not a whole number from 0 on"),
        ("S1,a.h5,1.5,vil,2018-01-01 00:00:00,0", "line 4 of CATALOG.csv has file_index '1.5', which is not a whole number"),
        ("S1,a.h5,-1,vil,2018-01-01 00:00:00,0", "line 4 of CATALOG.csv has file_index '-1', which is not a whole number"),
        ("S1,a.h5,,vil,2018-01-01 00:00:00,0", "line 4 of CATALOG.csv has no file_index; mend the line, or take it out"),
        ("S1,,0,vil,2018-01-01 00:00:00,0", "line 4 of CATALOG.csv has no file_name"),
        (",a.h5,0,vil,2018-01-01 00:00:00,0", "line 4 of CATALOG.csv has no id"),
    ],
)
def test_sevir_catalogue_lines_that_cannot_be_read_are_named(tmp_path: Path, line: str, sentence: str) -> None:
    """Among lines of other kinds, in which the same would not matter, and empty ones."""
    text = f"id,file_name,file_index,img_type,time_utc,pct_missing\n,,,ir069,never,none\n\n{line}\nS2,b.h5,0,vil,2018-01-02 00:00:00,0\n"
    (tmp_path / "CATALOG.csv").write_text(text)
    one_sentence(lambda: open_dataset("sevir", uri=tmp_path), sentence)


@pytest.mark.parametrize("zone", ["Z", "+00:00", " "])
def test_sevir_times_with_a_zone(sevir: Path, tmp_path: Path, zone: str) -> None:
    root = copy_of(sevir, tmp_path / "sevir")
    table = pd.read_csv(root / "CATALOG.csv", dtype=str)
    table["time_utc"] += zone.strip()
    table.loc[0, "time_utc"] = "2019-06-01T02:00:01+02:00"  # the same as before, in another zone
    replaced(root / "CATALOG.csv", table.to_csv(index=False).encode())
    xr.testing.assert_identical(
        open_dataset("sevir", uri=root)[["event_time", "split"]], open_dataset("sevir", uri=sevir)[["event_time", "split"]]
    )


# ---- HKO-7 -------------------------------------------------------------------------------------------------------------------------
def frame(number: int) -> np.ndarray:
    y, x = np.ogrid[:480, :480]
    return ((number * 11 + y + 3 * x) % 256).astype(np.uint8)


def frame_path(root: Path, stamp: pd.Timestamp, folder: str = "radarPNG", suffix: str = "png") -> Path:
    return root / folder / f"{stamp:%Y/%m/%d/RAD%y%m%d%H%M00}.{suffix}"


TRAIN = pd.date_range("2014-05-01 00:00", periods=20, freq="6min").delete([4, 10, 11])  # gaps of one and of two frames
LATE = pd.date_range("2014-12-28 00:00", periods=8, freq="6min")
TEST = pd.date_range("2015-01-10 23:30", periods=14, freq="6min").delete([6, 7, 8])  # a gap of three frames, across midnight


@pytest.fixture(scope="module")
def hko(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hko7")
    for number, stamp in enumerate(TRAIN.append([LATE, TEST])):
        for folder, suffix in (("radarPNG", "png"), ("radarPNG_mask", "mask")):
            frame_path(root, stamp, folder, suffix).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame(number)).save(frame_path(root, stamp))
        good = np.ones((480, 480), bool)
        good[number] = False
        frame_path(root, stamp, "radarPNG_mask", "mask").write_bytes(zlib.compress(good.tobytes()))
    (root / "hko_data").mkdir()
    exclude = np.zeros((480, 480), bool)
    exclude[:, :5] = True
    np.savez(root / "hko_data" / "mask_dat.npz", exclude_mask=exclude)
    for name, stamps in (("train", TRAIN.append(LATE)), ("test", TEST)):
        pd.DataFrame({"has_rainfall": np.ones(len(stamps), bool)}, index=stamps).to_pickle(root / f"hko7_rainy_{name}.pkl")
    (root / "days.txt").write_text("20140501, 0.53\n20150111, 0.21")
    return root


SAMPLERS = {"train": "hko7_rainy_train.pkl", "test": "hko7_rainy_test.pkl"}


def test_hko7_frames_gaps_segments_and_splits(hko: Path) -> None:
    data = open_dataset("hko7", uri=hko, options={"samplers": SAMPLERS})
    field = data["reflectivity"]
    assert field.shape == (20 + 8 + 6 + 5, 480, 480) and data["y"].values[0] > data["y"].values[-1]
    values = field.values
    absent = [4, 10, 11]
    assert np.isnan(values[absent]).all() and np.isfinite(np.delete(values, absent, 0)).all()  # never zeros
    np.testing.assert_allclose(values[5], frame(4) / 255 * 70 - 10, atol=1e-5)
    assert data["segment"].values.tolist() == [0] * 20 + [1] * 8 + [2] * 6 + [3] * 5
    assert data["split"].values.tolist() == ["train"] * 20 + ["validation"] * 8 + ["test"] * 11


def test_hko7_every_frame_or_days(hko: Path) -> None:
    every = open_dataset("hko7", uri=hko)
    assert every.sizes["time"] == 39 and "split" not in every.coords
    days = open_dataset("hko7", uri=hko, options={"samplers": "days.txt"})
    assert sorted({str(stamp)[:10] for stamp in days["time"].values}) == ["2014-05-01", "2015-01-11"]
    assert read_days(hko / "days.txt").astype(str).tolist() == ["2014-05-01", "2015-01-11"]


def test_hko7_missing_frames_are_refused_or_masked(hko: Path, tmp_path: Path) -> None:
    refused = "3 frames are missing, the first at 2014-05-01T00:24; pass options="
    one_sentence(lambda: open_dataset("hko7", uri=hko, options={"missing": "error"}), refused)
    samplers = {"train": SAMPLERS["train"]}
    data = open_dataset("hko7", uri=hko, options={"samplers": samplers})
    one_sentence(lambda: prepare(data, tmp_path / "s.zarr", grid="16x16"), "pass nan={'reflectivity': 'mask'}")
    store = open_store(prepare(data, tmp_path / "s.zarr", grid="16x16", nan="mask"))
    windows = Windows(store, "train", history=2, horizon=4)
    assert windows.samples == 15  # clips with up to two frames missing in a row are valid
    batch = windows.batch(np.array([0]))
    assert batch.mask is not None and batch.mask[0, :, 0].float().mean((1, 2)).tolist() == [1, 1, 1, 1, 0, 1]
    assert store.normaliser.transforms["reflectivity"].offset == -10 and store.normaliser.transforms["reflectivity"].scale == 70


def test_hko7_masks_are_applied(hko: Path) -> None:
    one = open_dataset("hko7", uri=hko, options={"masks": ["frames", "exclude"]})["reflectivity"][3].values
    bad = np.zeros((480, 480), bool)
    bad[3], bad[:, :5] = True, True
    np.testing.assert_array_equal(np.isnan(one), bad)
    frames = open_dataset("hko7", uri=hko, options={"masks": "frames"})["reflectivity"][3].values
    assert np.isnan(frames).sum() == 480


def test_hko7_scales() -> None:
    pixel = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(linear_pixel(linear_dbz(pixel)), pixel)
    np.testing.assert_allclose(linear_dbz(np.array([0, 51, 255])), [-10, 4, 60], atol=1e-5)
    # by hand: p = 0.5 gives 31 + 4 tan(-0.035)
    np.testing.assert_allclose(nonlinear_dbz(np.array([127.5])), 31 + 4 * np.tan(-0.035), rtol=1e-6)
    assert (np.diff(nonlinear_dbz(pixel)) > 0).all()
    assert linear_pixel(np.array([-40.0, 24.0, 90.0])).tolist() == [0, 124, 255]


def test_hko7_later_years_are_converted(tmp_path: Path) -> None:
    stamp = pd.Timestamp("2016-03-01 12:00")
    frame_path(tmp_path, stamp).parent.mkdir(parents=True)
    Image.fromarray(frame(0)).save(frame_path(tmp_path, stamp))
    converted = open_dataset("hko7", uri=tmp_path)["reflectivity"].values[0]
    np.testing.assert_array_equal(converted, linear_dbz(linear_pixel(nonlinear_dbz(frame(0)))))
    kept = open_dataset("hko7", uri=tmp_path, options={"scale": "linear"})["reflectivity"].values[0]
    np.testing.assert_array_equal(kept, linear_dbz(frame(0)))


def test_hko7_damaged_frames(hko: Path, tmp_path: Path) -> None:
    root = copy_of(hko, tmp_path / "hko")
    replaced(frame_path(root, TRAIN[0]), frame_path(root, TRAIN[0]).read_bytes()[:200])
    frame_path(root, TRAIN[1]).unlink()
    Image.fromarray(frame(0)[:100, :100]).save(tmp_path / "small.png")
    replaced(frame_path(root, TRAIN[2]), (tmp_path / "small.png").read_bytes())
    replaced(frame_path(root, TRAIN[3], "radarPNG_mask", "mask"), b"nothing")
    options = {"samplers": SAMPLERS, "masks": "frames"}
    values = open_dataset("hko7", uri=root, options=options)["reflectivity"][:4].values
    assert np.isnan(values).all()
    only = pd.DataFrame({"has_rainfall": True}, index=TRAIN[:4])
    only.to_pickle(root / "first.pkl")
    strict = open_dataset("hko7", uri=root, options={"samplers": "first.pkl", "masks": "frames", "missing": "error"})["reflectivity"]
    for n, text in enumerate(("is damaged (", "is missing; mend it", "not 480x480 of 8-bit grey", "RAD140501001800.mask is damaged")):
        one_sentence(strict[n].compute, text)


def test_samplers_of_several_kinds_are_read_without_running_them(hko: Path, tmp_path: Path) -> None:
    wanted = TEST.astype("datetime64[s]").astype(np.int64).tolist()
    frames = pd.DataFrame({"has_rainfall": np.arange(len(TEST)) % 2 == 0}, index=TEST)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(frames, protocol=protocol))
        assert read_sampler(path).tolist() == wanted
    nanoseconds = frames.set_axis(TEST.as_unit("ns"))
    nanoseconds.index.name = "time"
    (tmp_path / "ns.pkl").write_bytes(pickle.dumps(nanoseconds))
    assert read_sampler(tmp_path / "ns.pkl").tolist() == wanted

    class Harm:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'harm'}",)

    (tmp_path / "harm.pkl").write_bytes(pickle.dumps({"frame": frames, "other": Harm()}))
    read_sampler(tmp_path / "harm.pkl")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samplers": "none.pkl"}, "there is no sampler"),
        ({"samplers": {"training": "days.txt"}}, "unknown split of the samplers of hko7 'training'"),
        ({"samplers": "hko_data/mask_dat.npz"}, "cannot be read"),
        ({"masks": "all"}, "unknown mask of hko7 'all'"),
        ({"scale": "log"}, "unknown scale of hko7 'log'"),
    ],
)
def test_hko7_mistakes(hko: Path, options: dict[str, Any], sentence: str) -> None:
    one_sentence(lambda: open_dataset("hko7", uri=hko, options=options), sentence)


def test_hko7_wrong_places(hko: Path, tmp_path: Path) -> None:
    one_sentence(lambda: open_dataset("hko7", uri=hko / "hko_data"), "holds no folder radarPNG; give the folder of HKO-7")
    (tmp_path / "radarPNG").mkdir()
    one_sentence(lambda: open_dataset("hko7", uri=tmp_path), "holds no file like 2009/03/05/RAD090305000000.png")
    one_sentence(lambda: open_dataset("hko7", uri=hko, options={"masks": "exclude"}, variables=["rain"]), "unknown variable of hko7 'rain'")
    (tmp_path / "days.txt").write_text("first day\n")
    one_sentence(lambda: read_days(tmp_path / "days.txt"), "line 1 of")
    pd.DataFrame({"has_rainfall": [True]}).to_pickle(tmp_path / "no_times.pkl")
    one_sentence(lambda: read_sampler(tmp_path / "no_times.pkl"), "holds no times")


def test_gaps_of_up_to_two_frames_are_filled() -> None:
    times, event = without_gaps(np.array([0, 10, 40, 80, 95, 105]), 10)
    assert times.tolist() == [0, 10, 20, 30, 40, 80, 95, 105] and event.tolist() == [0, 0, 0, 0, 0, 1, 2, 2]


# ---- MeteoNet ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def meteonet(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "meteo.h5", "w") as file:
        file["train_len"], file["test_len"] = 11, 2
        for number in range(13):
            group, name = ("train", number) if number < 11 else ("test", number - 11)
            frames = np.zeros((25, 565, 784), np.uint8)
            frames[:, :8, :8] = (np.arange(25) + number)[:, None, None]
            file.create_dataset(f"{group}/{name}", data=frames, chunks=(1, 565, 784), compression=1)
    return tmp_path


def test_meteonet(meteonet: Path, tmp_path: Path) -> None:
    data = open_dataset("meteonet", uri=meteonet)
    assert data["reflectivity"].shape == (13 * 25, 565, 784)
    one = data["reflectivity"][25 * 12 + 3].values
    assert one[0, 0] == 15 and one[20, 20] == 0
    assert np.unique(data["segment"].values[data["split"].values == "validation"]).tolist() == [10]
    assert np.unique(data["segment"].values[data["split"].values == "test"]).tolist() == [11, 12]
    store = open_store(prepare(data, tmp_path / "s.zarr", crop="16x16"))
    transform = store.normaliser.transforms["reflectivity"]
    assert (transform.kind, transform.offset, transform.scale) == ("minmax", 0, 70)
    assert Windows(store, "test", history=5, horizon=20).samples == 2


def test_meteonet_damage(meteonet: Path) -> None:
    with h5py.File(meteonet / "meteo.h5", "a") as file:
        del file["train/3"]
        file["train/4"][2, 0, 0] = 255
    strict = open_dataset("meteonet", uri=meteonet / "meteo.h5")["reflectivity"]
    one_sentence(lambda: strict[3 * 25].compute(), "no sequence 'train/3'")
    one_sentence(lambda: strict[4 * 25 : 5 * 25].compute(), "has the value 255, outside 0 to 70 dBZ")
    masked = open_dataset("meteonet", uri=meteonet, options=MASK)["reflectivity"][75:150, :2, :2].values
    assert np.isnan(masked[:50]).all() and np.isfinite(masked[50:]).all()
    (meteonet / "meteo.h5").write_bytes(b"")
    one_sentence(lambda: open_dataset("meteonet", uri=meteonet), "it must hold train_len, test_len")
    (meteonet / "meteo.h5").unlink()
    one_sentence(lambda: open_dataset("meteonet", uri=meteonet), "give meteo.h5 or the folder that holds it")


@pytest.mark.parametrize(("value", "text"), [(200.0, "200.0"), (-5.0, "-5.0"), (np.inf, "inf"), (np.nan, "")])
def test_meteonet_values_beside_missing_ones(meteonet: Path, value: float, text: str) -> None:
    frames = np.zeros((25, 565, 784), np.float32)
    frames[2, 0, 0], frames[2, 0, 1] = np.nan, value
    with h5py.File(meteonet / "meteo.h5", "a") as file:
        del file["train/4"]
        file.create_dataset("train/4", data=frames, chunks=(1, 565, 784), compression=1)
    field = open_dataset("meteonet", uri=meteonet)["reflectivity"]
    if text:
        one_sentence(lambda: field[4 * 25 + 2].compute(), f"has the value {text}, outside 0 to 70 dBZ")
    else:
        assert int(np.isnan(field[4 * 25 + 2].values).sum()) == 2


# ---- composites --------------------------------------------------------------------------------------------------------------------
def composites(folder: Path, minutes: list[int], kind: str = "nc") -> Path:
    for minute in minutes:
        times = [np.datetime64("2020-07-01", "ns") + np.timedelta64(minute, "m")]
        field = np.full((1, 6, 8), minute, np.float32)
        data = xr.Dataset({"precip": (("time", "y", "x"), field, {"units": "mm/h"})}, {"time": times, "y": np.arange(6), "x": np.arange(8)})
        data.to_netcdf(folder / f"{minute:04d}.{kind}", engine="netcdf4")
    return folder


def test_composites_gaps_and_damage(tmp_path: Path) -> None:
    uri = f"{composites(tmp_path, [0, 5, 10, 20, 25, 120, 125])}/*.nc"
    one_sentence(lambda: open_dataset("radar_composites", uri=uri), "a frame is missing, the first at 2020-07-01T00:15")
    data = open_dataset("radar_composites", uri=uri, options=MASK)
    assert data["segment"].values.tolist() == [0] * 6 + [1] * 2
    np.testing.assert_array_equal(data["rain_rate"].values[:, 0, 0], [0, 5, 10, np.nan, 20, 25, 120, 125])
    (tmp_path / "0005.nc").write_bytes(b"broken")
    one_sentence(lambda: open_dataset("radar_composites", uri=uri), "0005.nc as radar")
    values = open_dataset("radar_composites", uri=uri, options=MASK)["rain_rate"].values
    np.testing.assert_array_equal(values[:, 0, 0], [0, np.nan, 10, np.nan, 20, 25, 120, 125])


def test_composites_as_zarr_in_dbz_with_a_damaged_chunk(tmp_path: Path) -> None:
    times = np.datetime64("2020-07-01", "ns") + np.arange(6) * np.timedelta64(5, "m")
    field = np.random.default_rng(0).uniform(0, 50, (6, 6, 8)).astype(np.float32)
    coords = {"time": times, "y": np.arange(6.0), "x": np.arange(8.0)}
    data = xr.Dataset({"dbz": (("time", "y", "x"), field, {"units": "dBZ"})}, coords)
    data.to_zarr(tmp_path / "r.zarr", encoding={"dbz": {"chunks": (1, 6, 8)}}, zarr_format=3, consolidated=False)
    options: dict[str, Any] = {"consolidated": False}
    entry = {"uri": tmp_path / "r.zarr", "variables": {"reflectivity": {"name": "dbz"}}}
    np.testing.assert_array_equal(open_dataset("radar_composites", **entry, options=options)["reflectivity"].values, field)
    (tmp_path / "r.zarr/dbz/c/2/0/0").write_bytes(b"broken")
    damaged = open_dataset("radar_composites", **entry, options=options)["reflectivity"]
    one_sentence(lambda: damaged.compute(), "cannot read variable 'reflectivity'")
    masked = open_dataset("radar_composites", **entry, options={**options, **MASK})["reflectivity"].values
    assert np.isnan(masked[2]).all()
    np.testing.assert_array_equal(np.delete(masked, 2, 0), np.delete(field, 2, 0))


# ---- the catalogue -----------------------------------------------------------------------------------------------------------------
FOLDERS = {"sevir": "SEVIR_DIR", "hko7": "HKO7_DIR", "meteonet": "METEONET_DIR", "radar_composites": "RADAR_DIR"}


@pytest.mark.parametrize(("name", "variable"), FOLDERS.items())
def test_archives_ask_for_their_folder(name: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(variable, raising=False)
    one_sentence(lambda: check(name), f"the environment variable {variable} is not set; set it to the folder of the data")
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    one_sentence(lambda: check(name), str(tmp_path / "none"))


def test_check_reports_on_an_archive(hko: Path) -> None:
    findings = [str(finding) for finding in check("hko7", uri=hko, options={"samplers": SAMPLERS})]
    assert any("wholly missing in 3 frames: step 4 (2014-05-01 00:24:00)" in finding for finding in findings)
    assert any("every 6 min in 4 segments, no gaps" in finding for finding in findings)
