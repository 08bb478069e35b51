"""Radar sequences of several sources, cropped, on common pixels, cut into tiles: one store with a true time for every frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from wxlab.cli import app
from wxlab.errors import WxlabError
from wxlab.events import Tiles, axis_of_events, crop, cut, join
from wxlab.forcings import DAY
from wxlab.grids import Grid, Regridder, grid_of, parse_grid
from wxlab.splits import resolve_splits
from wxlab.store import open_store, prepare
from wxlab.windows import Windows


def rain(start: str, rows: int = 12, columns: int = 16, minutes: int = 5, pixel: float = 1000.0, name: str = "rain") -> xr.Dataset:
    """Rain of which every value tells its frame, row and column; rows from north to south as radar files have them."""
    frames = 20
    t, y, x = np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns), indexing="ij")
    times = np.datetime64(start, "ns") + np.arange(frames) * np.timedelta64(minutes, "m")
    values = (t + y / 100 + x / 10000).astype(np.float32)
    coords = {"time": times, "y": np.arange(rows)[::-1] * pixel, "x": np.arange(columns) * pixel}
    return xr.Dataset({"rain_rate": (("time", "y", "x"), values)}, coords, {"source_name": name})


def samples(path: Path, history: int = 3, horizon: int = 2) -> dict[str, int]:
    return {split: Windows(path, split, history=history, horizon=horizon).samples for split in open_store(path).splits}


def test_events_are_moved_by_whole_days_and_only_where_they_must_be() -> None:
    starts = np.array([0, 600, 10 * DAY, 3 * DAY + 7200])
    ends = starts + 3600
    moves = axis_of_events(starts, ends, 300)
    assert moves.tolist() == [0, DAY, 0, 7 * DAY]
    assert ((starts + moves)[1:] > (ends + moves)[:-1] + 300).all()


def test_tiles_become_segments_with_true_times_and_origins(tmp_path: Path) -> None:
    data = rain("2020-01-01T06:00")
    path = prepare(data, tmp_path / "s.zarr", tiles={"size": "6x8", "stride": (6, 4)}, normalisation={"rain_rate": "none"})
    store = open_store(path)
    assert store.grid.shape == (6, 8) and len(store.segments) == 6 and store.step == 300
    assert (np.diff(store.times) > 0).all()
    states = store.dataset()
    for n, (row, column) in enumerate([(0, 0), (0, 4), (0, 8), (6, 0), (6, 4), (6, 8)]):
        tile = states.isel(time=states["segment"] == n)
        wanted = data["rain_rate"].isel(y=slice(row, row + 6), x=slice(column, column + 8))
        np.testing.assert_array_equal(tile["rain_rate"].values, wanted.values)
        np.testing.assert_array_equal(tile["event_time"].values, data["time"].values)
        assert set(tile["origin_y"].values) == {float(wanted["y"].min())} and set(tile["origin_x"].values) == {1000.0 * column}
        assert set(tile["source"].values) == {"rain"}
        assert str(tile["time"].values[0])[11:16] == "06:00"  # the time of day is kept
    # every tile has the same times in training: what moves from one to the next cannot be seen beforehand
    for split, frames in (("train", 14), ("validation", 3), ("test", 3)):
        chosen = store.dataset(split)
        assert chosen.sizes["time"] == 6 * frames and len(np.unique(chosen["event_time"].values)) == frames


def test_two_sources_one_held_out(tmp_path: Path) -> None:
    one, other = rain("2015-05-15T15:45", name="a"), rain("2017-01-31T09:45", name="b")
    splits = {"train": 0.65, "validation": 0.35, "test": {"sources": ["b"]}}
    store = open_store(prepare([one, other], tmp_path / "s.zarr", splits=splits))
    assert store.splits == {"train": [(0, 13)], "validation": [(13, 20)], "test": [(20, 40)]}
    np.testing.assert_array_equal(store.dataset()["time"].values[:20], one["time"].values)  # nothing overlaps, nothing is moved
    np.testing.assert_array_equal(store.dataset("test")["rain_rate"].values, other["rain_rate"].values)
    assert store.normaliser.transforms["rain_rate"].kind == "dbz"
    assert samples(store.path) == {"train": 9, "validation": 3, "test": 16}


def test_sources_of_other_size_pixel_and_order_of_rows_on_common_pixels(tmp_path: Path) -> None:
    fine = rain("2020-01-01", rows=24, columns=24, pixel=500.0, name="fine")
    coarse = rain("2020-01-01", rows=13, columns=20, name="coarse").isel(y=slice(None, None, -1))
    store = open_store(prepare([fine, coarse], tmp_path / "s.zarr", grid="1km", tiles="6x6", normalisation={"rain_rate": "none"}))
    assert store.grid.y == tuple(float(value) for value in (5000, 4000, 3000, 2000, 1000, 0))
    states = store.dataset()
    first = states["rain_rate"].isel(time=0).values
    np.testing.assert_allclose(first, fine["rain_rate"].values[0, :12, :12].reshape(6, 2, 6, 2).mean((1, 3)), rtol=1e-5)
    last = states.isel(time=states["source"] == "coarse")["rain_rate"].values[0]
    np.testing.assert_allclose(last, coarse["rain_rate"].values[0, 0:6, 1:7][::-1], rtol=1e-6)
    assert len(np.unique(store.segment)) == 4 + 6


def test_own_splits_by_segments_survive_tiles(tmp_path: Path) -> None:
    events = join([("e", rain("2020-01-01")), ("e", rain("2020-01-01")), ("e", rain("2020-01-02"))])
    events.attrs["splits"] = json.dumps({"train": {"segments": [0, 2]}, "test": {"segments": [1]}})
    store = open_store(prepare(events, tmp_path / "s.zarr", tiles="12x8"))
    assert len(store.segments) == 6
    test = store.dataset("test")
    assert test.sizes["time"] == 40 and set(np.unique(test["segment"].values)) == {1, 4}


def test_true_times_select_and_split_what_is_laid_out(tmp_path: Path) -> None:
    events = join([("e", rain("2020-01-01")), ("e", rain("2020-01-01")), ("e", rain("2019-01-01"))])
    assert str(events["time"].values[40])[:10] == "2020-01-03"
    splits = {"train": [["2019-01-01", "2019-01-01T00:30"], ["2020-01-01", "2020-01-01T00:30"]], "test": ["2020-01-01T01:00", "2020-01-02"]}
    store = open_store(prepare(events, tmp_path / "s.zarr", splits=splits))
    assert store.splits == {"train": [(0, 7), (20, 27), (40, 47)], "test": [(12, 20), (32, 40)]}
    assert samples(store.path) == {"train": 9, "test": 8}
    kept = open_store(prepare(events, tmp_path / "t.zarr", time=["2019-01-01", "2019-12-31"]))
    assert len(kept) == 20 and str(kept.events["event_time"][0])[:4] == "2019"
    assert "laid one after the other" in store.attrs["climatology"]["note"]
    assert store.climatology().at(store.times[:2]).shape == (2, 1, 12, 16)


def test_outside_the_coverage_is_masked_and_unseen_tiles_are_left_out(tmp_path: Path) -> None:
    data = rain("2020-01-01", columns=18)
    data["rain_rate"] = data["rain_rate"].where(data["x"] < 9000)
    path = prepare(data, tmp_path / "s.zarr", tiles="6x6", nan="mask")
    assert len(open_store(path).segments) == 4  # two of three columns of tiles
    batch = next(iter(Windows(path, "train", history=2, horizon=1, batch_size=100).epoch(0)))
    assert batch.mask is not None
    assert batch.mask.flatten(1).float().mean(1).unique().tolist() == [0.5, 1.0]
    assert torch.isfinite(batch.history).all() and float(batch.history.min()) >= 0 and float(batch.history.max()) <= 1


def test_crop_around_the_middle_and_by_a_box() -> None:
    data = rain("2020-01-01")
    middle = crop(data, "6x8")
    np.testing.assert_array_equal(middle["rain_rate"], data["rain_rate"][:, 3:9, 4:12])
    box = crop(data, [2000, 5000, 1000, 3000])
    assert box["y"].values.tolist() == [5000, 4000, 3000, 2000] and box["x"].values.tolist() == [1000, 2000, 3000]


@pytest.mark.parametrize("shape", [(384, 384), (480, 480), (565, 784)])
def test_bilinear_to_128_is_the_authors_resize(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    field = torch.rand(2, 1, *shape, generator=generator)
    source = Grid(tuple(np.arange(shape[0]) * 1000.0), tuple(np.arange(shape[1]) * 1000.0), "xy")
    ours = Regridder(source, parse_grid("128x128", source), "bilinear")(field.numpy())
    theirs = torch.nn.functional.interpolate(field, (128, 128), mode="bilinear", align_corners=False, antialias=False)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    if shape == (384, 384):
        np.testing.assert_array_equal(ours, field.numpy()[..., 1::3, 1::3])


def test_square_cells_of_a_length() -> None:
    source = grid_of(rain("2020-01-01", rows=13, columns=9))
    cells = parse_grid("2.5 km", source)
    assert cells.y == (11250.0, 8750.0, 6250.0, 3750.0, 1250.0) and cells.x == (750.0, 3250.0, 5750.0)
    assert parse_grid("2500m", source) == cells


def test_shares_follow_the_time_of_each_source() -> None:
    times, names = np.array([0, 1, 2, 3, 0, 1, 2, 3, 9, 9, 8, 8]), np.array(["a"] * 8 + ["b"] * 4)
    found = resolve_splits({"train": 0.5, "test": 0.5}, times, np.zeros(12), names)
    assert found == {"train": [(0, 2), (4, 6), (10, 12)], "test": [(2, 4), (6, 10)]}
    assert resolve_splits({"train": 0.5}, np.arange(4), np.zeros(4)) == {"train": [(0, 2)]}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: prepare(rain("2020-01-01"), p, tiles="64x64"), "tiles of 64x64 do not fit into fields of 12x16"),
        (lambda p: prepare(rain("2020-01-01"), p, tiles="sixty"), "tiles is 'sixty'; give 'ROWSxCOLUMNS'"),
        (lambda p: prepare(rain("2020-01-01"), p, tiles={"size": "4x4", "strides": 2}), "did you mean 'stride'"),
        (lambda p: prepare(rain("2020-01-01"), p, tiles={"stride": 2}), "tiles lack a size"),
        (lambda p: prepare(rain("2020-01-01"), p, tiles={"size": "4x4", "observed": 50}), "a share from 0 to 1"),
        (lambda p: prepare(rain("2020-01-01"), p, crop="40x8"), "crop '40x8' wants 40 rows, and the fields have 12"),
        (lambda p: prepare(rain("2020-01-01"), p, crop=[0, 100, 0, 9000]), "keeps 1 points of y, which runs from 0 to 11000"),
        (lambda p: prepare(rain("2020-01-01"), p, grid="20km"), "gives 0 cells across 12000 m"),
        (lambda p: prepare([], p), "no source was given"),
        (lambda p: prepare([rain("2020-01-01"), rain("2020-01-02", rows=10)], p), "give tiles='64x64' or a crop"),
        (lambda p: prepare([rain("2020-01-01"), rain("2020-01-02", pixel=500)], p), "give one size for all, such as grid='2km'"),
        (lambda p: prepare([rain("2020-01-01"), rain("2020-01-02", minutes=10)], p), "keep common ones with time=[None, None, 0.1667]"),
        (lambda p: prepare([rain("2020-01-01"), rain("2020-01-02").rename(rain_rate="r")], p), "ask for common ones"),
        (lambda p: prepare([rain("2020-01-01")] * 2, p, splits={"train": 0.5, "test": {"sources": ["x"]}}), "names sources ['x']"),
        (lambda p: prepare(rain("2020-01-01"), p, splits={"train": {"sources": ["x"]}}), "do not have (they have one)"),
        (lambda p: prepare(rain("2020-01-01"), p, splits={"train": 0.9, "test": 0.3}), "add up to 1"),
        (lambda p: prepare([rain("2020-01-01")] * 2, p, forcing=["day_progress_sin"]), "prepare without forcing"),
        (lambda p: prepare("simulated_radar+nonsense", p), "unknown data source 'nonsense'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, make: Any, sentence: str) -> None:
    with pytest.raises(WxlabError) as caught:
        make(tmp_path / "s.zarr")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_tiles_without_any_observation_are_refused() -> None:
    data = rain("2020-01-01")
    with pytest.raises(WxlabError, match="none of 2 tiles is observed at 50 %"):
        cut(data.where(data["x"] < 0), Tiles.parse("12x8"))


def test_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    fields = ["--variables", "rain_rate", "--crop", "120x120", "--grid", "2km", "--tiles", "30x30"]
    done = CliRunner().invoke(app, ["data", "prepare", "simulated_radar", str(out), *fields], catch_exceptions=False)
    assert done.exit_code == 0 and f"wrote {out}" in done.output
    store = open_store(out)
    assert store.grid.shape == (30, 30) and len(store.segments) == 4 * 8 and store.attrs["provenance"]["licence"] == "Apache-2.0"
    # the simulator's own splits by events hold for their tiles
    assert {split: store.dataset(split).sizes["time"] for split in store.splits} == {"train": 576, "validation": 96, "test": 96}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "settings", "counts"),
    [
        (
            "radar_switzerland_2015+radar_switzerland_2017",
            {"tiles": "128x128", "splits": {"train": 0.65, "validation": 0.35, "test": {"sources": ["radar_switzerland_2017"]}}},
            {"train": 252, "validation": 36, "test": 532},
        ),
        ("radar_finland", {"grid": "2km", "tiles": "64x64", "splits": {"train": 0.34, "validation": 0.33, "test": 0.33}}, None),
        (
            "radar_brisbane",
            {
                "grid": "2km",
                "tiles": {"size": "64x64", "stride": 32},
                "splits": {"train": ["2020-10-31T00:00", "2020-10-31T07:30"], "test": ["2020-10-31T10:00", "2020-10-31T13:00"]},
            },
            {"train": 9 * 34, "test": 9 * 7},
        ),
    ],
)
def test_real_radar_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_catalog: Path, name: str, settings: dict[str, Any], counts: dict[str, int] | None
) -> None:
    path = prepare(name, tmp_path / "s.zarr", variables=["rain_rate"], nan="mask", catalog=real_catalog, **settings)
    found = samples(path, history=5, horizon=8)
    assert counts is None or found == counts
    batch = next(iter(Windows(path, "train", history=5, horizon=8, batch_size=16, shuffle=True).epoch(0)))
    assert batch.history.shape[0] == 16 and 0 <= float(batch.history.min()) <= float(batch.history.max()) <= 1
    if name != "radar_brisbane":
        assert batch.mask is not None and 0 < float(batch.mask.float().mean()) < 1
