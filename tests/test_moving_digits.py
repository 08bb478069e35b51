"""MvMmfnist sequences: three channels on one path, reflecting walls, seeds, splits and original files."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from wxlab.errors import WxlabError
from wxlab.simulate.moving_digits import _corners, moving_digits


def test_channels_are_related_as_described() -> None:
    data = moving_digits(sequences=10, frames=6, seed=3)
    assert {name: data[name].dims for name in data} == dict.fromkeys(("digit", "item", "inverse"), ("time", "y", "x"))
    assert data.digit.shape == (60, 64, 64) and data.digit.dtype == np.float32
    np.testing.assert_array_equal(data.inverse, 1 - data.digit)
    assert set(np.unique(data.digit)) == {0.0, 1.0}
    assert len(np.unique(data.item)) > 50 and float(data.item.max()) <= 1 and float(data.item.min()) == 0
    # each frame shows something, and it moves
    assert (data.digit.sum(("y", "x")) > 20).all()
    assert float(abs(data.digit[1] - data.digit[0]).sum()) > 0


def test_same_path_in_all_channels() -> None:
    """With one object the bounding boxes of digit and item keep a constant offset along the sequence."""
    data = moving_digits(sequences=1, frames=12, objects=1, seed=1)

    def corner(name: str) -> np.ndarray:
        field = data[name].values > 0
        return np.stack([field.any(axis=2).argmax(axis=1), field.any(axis=1).argmax(axis=1)], axis=1)

    offset = corner("digit") - corner("item")
    assert (offset == offset[0]).all()
    assert len(np.unique(corner("digit"), axis=0)) > 6


def test_motion_is_straight_and_reflected() -> None:
    free = 3600
    path = _corners(np.random.default_rng(0), 400, 3, free)
    assert path.min() >= 0 and path.max() <= free
    speed = np.hypot(*np.moveaxis(np.diff(path, axis=0), -1, 0))
    # a step is 0.1 of the free range, less only in the frames where a wall is hit
    np.testing.assert_allclose(np.median(speed, axis=0), 0.1 * free, atol=2)
    assert (speed <= 0.1 * free + 2).all()
    assert path.min() < 0.05 * free and path.max() > 0.95 * free


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    first, again, other = (moving_digits(sequences=3, frames=4, seed=seed) for seed in (5, 5, 6))
    assert first.identical(again)
    assert not first.digit.equals(other.digit)


def test_segments_times_and_splits() -> None:
    data = moving_digits(sequences=20, frames=5)
    np.testing.assert_array_equal(data.segment, np.repeat(np.arange(20), 5))
    steps = np.diff(data.time.values) / np.timedelta64(1, "h")
    same = np.diff(data.segment.values) == 0
    assert (steps[same] == 1).all() and (steps[~same] > 24).all()
    splits = json.loads(data.attrs["splits"])
    segments = [set(splits[name]["segments"]) for name in ("train", "validation", "test")]
    assert [len(s) for s in segments] == [16, 2, 2] and set.union(*segments) == set(range(20))


def _idx(images: np.ndarray) -> bytes:
    return struct.pack(">4i", 0x803, *images.shape) + images.tobytes()


@pytest.mark.parametrize("kind", ["npz", "idx", "idx.gz"])
def test_original_files_are_used(tmp_path: Path, kind: str) -> None:
    images = np.zeros((20, 28, 28), np.uint8)
    images[:, 10:14, 10:14] = 100  # a grey square: binary as a digit, grey as an item
    path = tmp_path / f"images.{kind}"
    if kind == "npz":
        np.savez(path, labels=np.arange(20), x_train=images)
    else:
        path.write_bytes(_idx(images) if kind == "idx" else gzip.compress(_idx(images)))
    data = moving_digits(sequences=2, frames=3, objects=1, digits=path, items=path)
    assert (data.digit.sum(("y", "x")) == 16).all()
    np.testing.assert_allclose(data.item.sum(("y", "x")), 16 * 100 / 255, rtol=1e-6)
    assert data.attrs["digits"] == "file given"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": 20}, "size=20"),
        ({"sequences": 0}, "sequences=0"),
        ({"digits": "absent.npz"}, "absent.npz"),
    ],
)
def test_mistakes_are_explained(arguments: dict, says: str) -> None:
    with pytest.raises(WxlabError, match=says):
        moving_digits(**arguments)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    np.savez(path, labels=np.arange(20))
    with pytest.raises(WxlabError, match="28x28"):
        moving_digits(items=path)
