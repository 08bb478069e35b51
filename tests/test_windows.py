"""Windows: right frames, right order, no gap bridged, the same bits under seed and resume."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from noise import make, times_of

from wxlab.errors import WxlabError
from wxlab.forcings import compute
from wxlab.grids import Grid
from wxlab.models.base import Batch
from wxlab.store import Store, open_store, prepare
from wxlab.windows import Windows

SMALL = Grid.regular(4, 8)
NAMES = ["2m_temperature", "geopotential_500"]


def numbered(times: np.ndarray, segment: np.ndarray | None = None) -> xr.Dataset:
    """States that say which time they are: every value of state t is t (geopotential: 1000 t)."""
    data = make(times, SMALL)
    count = np.arange(len(times), dtype=np.float32)
    data["2m_temperature"][:] = count[:, None, None]
    data["geopotential"][:] = 1000 * count[:, None, None, None]
    return data if segment is None else data.assign_coords(segment=("time", segment))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """60 days, then a gap, then 40 days; segments change at day 20; the last 30 days are the test split."""
    times = np.concatenate([times_of(60, 6), times_of(40, 6, "2001-03-01")])
    data = numbered(times, np.repeat([1, 2, 3], [20, 40, 40]))
    splits = {"train": [str(times[0]), str(times[69])], "test": [str(times[70]), str(times[99])]}
    out = tmp_path_factory.mktemp("windows") / "s.zarr"
    none = dict.fromkeys(NAMES, "none")
    return open_store(prepare(data, out, variables=NAMES, splits=splits, normalisation=none, chunk_bytes=7 * 2 * 4 * 32))


def frames_of(batch: Batch) -> np.ndarray:
    """Numbers of the states in each window."""
    assert batch.target is not None
    return torch.cat([batch.history, batch.target], 1)[:, :, 0, 0, 0].numpy().astype(int)


def all_frames(windows: Windows, epoch: int = 0, start: int = 0) -> np.ndarray:
    return np.concatenate([frames_of(batch) for batch in windows.epoch(epoch, start)])


def test_windows_are_consecutive_states_of_one_segment(store: Store) -> None:
    windows = Windows(store, "train", history=2, horizon=3, batch_size=4)
    frames = all_frames(windows)
    assert (np.diff(frames, axis=1) == 1).all() and windows.samples == len(frames) == 16 + 36 + 6 and len(windows) == 15
    for first, last in ((0, 20), (20, 60), (60, 70)):  # segments, gap and end of the split
        assert (((frames >= first) & (frames < last)).any(1) == ((frames >= first) & (frames < last)).all(1)).all()


def test_splits_share_no_state(store: Store) -> None:
    train, test = (set(all_frames(Windows(store, split, history=3, horizon=2)).ravel()) for split in ("train", "test"))
    assert not train & test and test == set(range(70, 100))


def test_contents_and_times(store: Store) -> None:
    batch = next(iter(Windows(store, "train", history=2, horizon=1, batch_size=3)))
    assert batch.history.shape == (3, 2, 2, 4, 8) and batch.history.dtype == torch.float32
    assert batch.time.dtype == torch.int64 and batch.mask is None and batch.forcing is None and batch.static is None
    np.testing.assert_array_equal(batch.history[:, :, 1].numpy(), 1000 * batch.history[:, :, 0].numpy())
    np.testing.assert_array_equal(batch.time.numpy(), store.times[frames_of(batch)])


@pytest.mark.parametrize(
    ("settings", "offsets"),
    [
        ({"history": 3, "horizon": 2, "step": 12}, [-4, -2, 0, 2, 4]),
        ({"history": 2, "horizon": 2, "step": 6, "history_step": 12}, [-2, 0, 1, 2]),
        ({"history": 2, "horizon": 2, "step": 24, "history_step": 6}, [-1, 0, 4, 8]),
        ({"history": 1, "horizon": 1}, [0, 1]),
        ({"history": 3, "horizon": 0}, [-2, -1, 0]),
    ],
)
def test_steps_in_hours(store: Store, settings: dict[str, Any], offsets: list[int]) -> None:
    windows = Windows(store, "train", **settings, batch_size=5)
    batch = windows.batch(np.arange(windows.samples))
    frames = np.searchsorted(store.times, batch.time.numpy())
    np.testing.assert_array_equal(frames - frames[:, [settings["history"] - 1]], np.broadcast_to(offsets, frames.shape))
    values = batch.history if batch.target is None else torch.cat([batch.history, batch.target], 1)
    np.testing.assert_array_equal(values[:, :, 0, 0, 0].numpy(), frames)


def test_stride_in_hours(store: Store) -> None:
    frames = all_frames(Windows(store, "train", history=1, horizon=1, stride=24))
    assert frames[:6, 0].tolist() == [0, 4, 8, 12, 16, 20]


def test_values_are_normalised_as_the_normaliser_does(tmp_path: Path) -> None:
    data = make(times_of(40), SMALL)
    forcing = ["toa_incident_solar_radiation", "day_progress_sin"]
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=NAMES, forcing=forcing, static=["land_sea_mask"]))
    windows = Windows(store, "train", history=2, horizon=1, batch_size=2)
    batch = next(windows.epoch(0))
    assert torch.equal(batch.history[1], store.normaliser.normalise(torch.from_numpy(store.read(1, 3)), store.channels))
    raw = torch.from_numpy(compute(forcing, batch.time[1].numpy(), store.grid))
    assert batch.forcing is not None and torch.equal(batch.forcing[1], store.normaliser.normalise(raw, forcing))
    assert batch.static is not None and batch.static.shape == (1, 4, 8)
    assert abs(float(batch.static.mean())) < 1e-5


def test_missing_values_are_masked_and_zero(tmp_path: Path) -> None:
    data = make(times_of(40), SMALL)
    data["2m_temperature"][:, 0, 0] = np.nan
    data["geopotential"][5, :, 1, 1] = np.nan
    store = open_store(
        prepare(data, tmp_path / "s.zarr", variables=NAMES, nan={"2m_temperature": "mask", "geopotential": "fill"}, fill={NAMES[1]: 5e4})
    )
    batch = next(iter(Windows(store, "train", history=6, horizon=2, batch_size=2)))
    assert batch.mask is not None and batch.mask.shape == (2, 8, 2, 4, 8) and batch.target_mask is not None
    assert not batch.mask[:, :, 0, 0, 0].any() and batch.mask[:, :, 1].all() and int((~batch.mask).sum()) == 16
    assert (batch.history[:, :, 0, 0, 0] == 0).all() and torch.isfinite(batch.history).all()
    expected = (5e4 - store.mean[1]) / store.std[1]
    assert float(batch.history[0, 5, 1, 1, 1]) == pytest.approx(expected, rel=1e-4)


def test_radar_events(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rain = np.maximum(random.normal(size=(20, 16, 24)), 0).astype(np.float32) * 5
    axis = np.concatenate([np.datetime64(day, "ns") + np.arange(10) * np.timedelta64(5, "m") for day in ("2001-05-01", "2001-07-01")])
    coords = {"time": axis, "y": 500.0 * np.arange(16), "x": 500.0 * np.arange(24), "segment": ("time", np.repeat([0, 1], 10))}
    data = xr.Dataset({"rain_rate": (("time", "y", "x"), rain)}, coords=coords)
    splits = {"train": {"segments": [0]}, "test": {"segments": [1]}}
    path = prepare(data, tmp_path / "s.zarr", variables=["rain_rate"], grid="8x12", normalisation={"rain_rate": "dbz"}, splits=splits)
    store = open_store(path)
    assert store.step == 300 and store.grid.kind == "xy" and store.dataset("test")["rain_rate"].dims == ("time", "y", "x")
    windows = Windows(store, "train", history=3, horizon=3, step=1 / 12)
    batch = next(iter(windows))
    assert windows.samples == 5 and batch.history.shape == (1, 3, 1, 8, 12)
    assert float(batch.history.min()) >= 0 and float(batch.history.max()) <= 1
    np.testing.assert_allclose(
        store.normaliser.denormalise(batch.history[0], store.channels).numpy(), store.read(0, 3), rtol=1e-4, atol=0.01
    )


@pytest.mark.parametrize("block", [None, 1, 4, 64])
def test_shuffling_is_a_permutation_from_seed_and_epoch(store: Store, block: int | None) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return Windows(store, "train", history=1, horizon=1, shuffle=True, seed=seed, block=block).order(epoch).tolist()

    assert sorted(order(0, 0)) == list(range(67)) and order(0, 0) == order(0, 0)
    assert order(0, 0) != list(range(67)) and order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)


def test_blocks_stay_near_one_another(tmp_path: Path) -> None:
    data = make(times_of(500), Grid.regular(2, 4))
    store = open_store(prepare(data, tmp_path / "s.zarr", variables=NAMES, splits={"train": ["2001", "2002"]}))
    order = Windows(store, "train", history=1, horizon=1, shuffle=True, block=8).order(0)
    pool = np.unique(order[: 16 * 8] // 8)  # the first 128 windows come from 16 whole blocks (or the short last one)
    assert len(pool) <= 17 and len(np.unique(order)) == 499


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resuming_gives_the_same_batches(store: Store, prefetch: int) -> None:
    windows = Windows(store, "train", history=2, horizon=1, batch_size=4, shuffle=True, seed=3, prefetch=prefetch)
    whole = all_frames(windows, epoch=2)
    np.testing.assert_array_equal(all_frames(windows, epoch=2, start=5), whole[20:])
    again = Windows(open_store(store.path), "train", history=2, horizon=1, batch_size=4, shuffle=True, seed=3, prefetch=2)
    np.testing.assert_array_equal(all_frames(again, epoch=2), whole)


@pytest.mark.parametrize(("size", "world"), [(4, 2), (6, 3), (8, 4)])
def test_processes_share_each_batch(store: Store, size: int, world: int) -> None:
    settings: dict[str, Any] = {"history": 1, "horizon": 1, "shuffle": True, "batch_size": size}
    whole = list(Windows(store, "train", **settings).epoch(1))
    ranks = [list(Windows(store, "train", **settings, rank=rank, world=world).epoch(1)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for number, parts in enumerate(zip(*ranks, strict=True)):
        np.testing.assert_array_equal(np.concatenate([frames_of(part) for part in parts]), frames_of(whole[number]))
        assert all(len(part) for part in parts)


def test_last_batch(store: Store) -> None:
    settings: dict[str, Any] = {"history": 1, "horizon": 1, "batch_size": 10}  # 67 windows
    assert [len(b) for b in Windows(store, "train", **settings).epoch()][-2:] == [10, 7]
    assert [len(b) for b in Windows(store, "train", **settings, drop_last=True).epoch()][-1] == 10
    assert len(Windows(store, "train", **settings, drop_last=True)) == 6
    assert len(Windows(store, "train", history=1, horizon=1, batch_size=66, world=2)) == 1  # one window for two processes


def test_the_reading_thread_ends_with_its_iterator(store: Store) -> None:
    before = threading.active_count()
    windows = Windows(store, "train", history=1, horizon=1, prefetch=2)
    batches = windows.epoch(0)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_errors_of_the_reading_thread_arrive(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows(store, "train", history=1, horizon=1, prefetch=2)

    def broken(chosen: np.ndarray) -> Batch:
        raise OSError("disk is gone")

    monkeypatch.setattr(windows, "batch", broken)
    with pytest.raises(OSError, match="disk is gone"):
        next(windows.epoch(0))


def test_batches_may_be_changed(store: Store) -> None:
    windows = Windows(store, "train", history=1, horizon=1)
    first = next(windows.epoch(0))
    first.history += 100
    assert frames_of(next(windows.epoch(0)))[0, 0] == 0


def test_stores_travel_to_other_processes(store: Store) -> None:
    frames = pickle.loads(pickle.dumps(store.frames))
    np.testing.assert_array_equal(frames.read(3, 30), store.read(3, 30))


FAULTS: dict[str, tuple[Callable[[Store], Any], str]] = {
    "split": (lambda s: Windows(s, "tset", history=1, horizon=1), "unknown split of this store 'tset'; did you mean 'test'"),
    "too long": (lambda s: Windows(s, "test", history=20, horizon=11), r"no window of 31 states \(180 h\).*has 30 states \(174 h\)"),
    "step": (lambda s: Windows(s, "train", history=1, horizon=1, step=7), "step of 7 h is no multiple of the store's step of 6 h"),
    "step zero": (lambda s: Windows(s, "train", history=1, horizon=1, step=0), "step of 0 h is no multiple"),
    "stride": (lambda s: Windows(s, "train", history=1, horizon=1, stride=3), "stride of 3 h"),
    "history": (lambda s: Windows(s, "train", history=0, horizon=1), "history is 0; give a whole number of at least 1"),
    "horizon": (lambda s: Windows(s, "train", history=1, horizon=1.5), "horizon is 1.5"),  # type: ignore[arg-type]
    "batch": (lambda s: Windows(s, "train", history=1, horizon=1, batch_size=5, world=2), "batch_size 5 must divide by the 2 processes"),
    "rank": (lambda s: Windows(s, "train", history=1, horizon=1, batch_size=2, world=2, rank=2), "rank 2 lie in 0..1"),
    "store": (lambda s: Windows(s.path / "nowhere", "train", history=1, horizon=1), "no store at"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(store: Store, fault: str) -> None:
    call, message = FAULTS[fault]
    with pytest.raises(WxlabError, match=message) as caught:
        call(store)
    assert "\n" not in str(caught.value)
