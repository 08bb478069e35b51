"""MvMmfnist: sequences of two moving objects in three related channels (Met2Net's synthetic test bed).

``digit``: bright binary digits on black. ``item``: grey garments on black. ``inverse``: the digits, dark on white.
All three move along the same path, so each channel helps to predict the others.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wxlab.errors import WxlabError

SIDE = 28  # pixels of one object
SPEED = 0.1  # of the free range, per frame
CHANNELS = ("digit", "item", "inverse")
Images = NDArray[np.float32]  # [N, 28, 28] in 0..1

# Ten garments as rectangles (top, bottom, left, right) in a 28 x 28 frame, in the order of Fashion-MNIST's labels.
_GARMENTS: tuple[tuple[tuple[int, int, int, int], ...], ...] = (
    ((3, 25, 8, 20), (3, 10, 2, 26)),  # T-shirt
    ((2, 8, 8, 20), (8, 26, 8, 13), (8, 26, 15, 20)),  # trousers
    ((3, 25, 8, 20), (3, 22, 3, 7), (3, 22, 21, 25)),  # pullover
    ((2, 12, 10, 18), (12, 26, 7, 21)),  # dress
    ((2, 26, 7, 13), (2, 26, 15, 21), (3, 23, 3, 6), (3, 23, 22, 25)),  # coat
    ((16, 20, 3, 25), (20, 23, 2, 26), (10, 16, 18, 25)),  # sandal
    ((2, 26, 9, 19), (4, 16, 4, 24)),  # shirt
    ((14, 22, 2, 26), (11, 14, 12, 26)),  # sneaker
    ((10, 25, 3, 25), (4, 10, 8, 10), (4, 10, 18, 20), (4, 6, 8, 20)),  # bag
    ((4, 24, 16, 25), (16, 24, 3, 25)),  # ankle boot
)


def moving_digits(
    *,
    sequences: int = 100,
    frames: int = 20,
    size: int = 64,
    objects: int = 2,
    seed: int = 0,
    digits: str | os.PathLike[str] | None = None,
    items: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Moving digits and garments, MvMmfnist's three channels.

    Each object starts at a random place, moves in a random direction by 0.1 of the free range (size - 28) per frame and is
    reflected at the walls; overlapping objects are composed by the maximum (the minimum in ``inverse``).

    sequences, frames, objects: how many; ``frames`` counts input and target together.  size: side of the square picture, pixels.
    seed: same seed, same bits.  digits, items: files of the original MNIST and Fashion-MNIST images (``.npz``, or idx, also
    gzipped). Without them the digits are scikit-learn's bundled 8x8 digits, enlarged to 20x20 in a 28x28 frame, and the items
    are synthetic garments: ten silhouettes with a woven texture of their own.
    Returns a Dataset of digit, item, inverse [time, y, x] in 0..1, float32, hourly, with ``segment`` = sequence along time.
    ``attrs['splits']`` keeps the last tenth of the sequences for the test and the tenth before it for validation, each with objects
    that no other split shows. Memory: 12 bytes x sequences x frames x size^2.
    Raises WxlabError for impossible sizes and unreadable files.
    Reference: Li et al. 2025, arXiv:2507.17189, data set MvMmfnist. Differs: the published test file holds other draws.
    """
    for name, value, least in (("sequences", sequences, 1), ("frames", frames, 1), ("objects", objects, 1), ("size", size, SIDE)):
        if not isinstance(value, int) or value < least:
            raise WxlabError(f"{name}={value!r} must be a whole number of at least {least}")
    bundled, labels = _bundled_digits()
    digit_images = bundled if digits is None else (_read_images(digits) > 1 / 255).astype(np.float32)
    item_images = _garments(labels) if items is None else _read_images(items)
    rng = np.random.default_rng(seed)
    splits = _splits(sequences)
    pools = _pools(min(len(digit_images), len(item_images)), splits)
    fields = {name: np.zeros((sequences * frames, size, size), np.float32) for name in ("digit", "item")}
    for split, members in splits.items():
        for sequence in members:
            chosen = rng.choice(pools[split], objects)
            corners = _corners(rng, frames, objects, size - SIDE)
            part = slice(sequence * frames, (sequence + 1) * frames)
            _compose(fields["digit"][part], digit_images[chosen], corners)
            _compose(fields["item"][part], item_images[chosen], corners)
    # the minimum of 1 - digit over the objects, on white, is one minus their maximum on black
    fields["inverse"] = 1 - fields["digit"]
    return _dataset(fields, sequences, frames, splits, digits is None, items is None)


def _splits(sequences: int) -> dict[str, list[int]]:
    held = max(1, sequences // 10) if sequences >= 3 else 0
    numbers = list(range(sequences))
    return {
        "train": numbers[: sequences - 2 * held],
        "validation": numbers[sequences - 2 * held : sequences - held],
        "test": numbers[sequences - held :],
    }


def _pools(images: int, splits: dict[str, list[int]]) -> dict[str, NDArray[np.int64]]:
    """Which objects each split may show: disjoint tenths, as the sequences are."""
    if images < 10:
        raise WxlabError(f"{images} images are too few; give files with at least 10")
    tenth = images // 10
    edges = {"train": (0, images - 2 * tenth), "validation": (images - 2 * tenth, images - tenth), "test": (images - tenth, images)}
    return {split: np.arange(*edges[split]) for split in splits}


def _corners(rng: np.random.Generator, frames: int, objects: int, free: int) -> NDArray[np.int64]:
    """Upper left corners [frames, objects, 2]: straight motion, folded back into the free range at the walls."""
    start = rng.random((objects, 2))
    angle = rng.uniform(0, 2 * np.pi, objects)
    velocity = SPEED * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    path = start + velocity * np.arange(frames)[:, None, None]
    return np.floor(np.abs((path + 1) % 2 - 1) * free + 0.5).astype(np.int64)


def _compose(canvas: Images, images: Images, corners: NDArray[np.int64]) -> None:
    for frame, places in zip(canvas, corners, strict=True):
        for image, (y, x) in zip(images, places, strict=True):
            window = frame[y : y + SIDE, x : x + SIDE]
            np.maximum(window, image, out=window)


def _bundled_digits() -> tuple[Images, NDArray[np.int64]]:
    """scikit-learn's 1,797 digits as binary 28x28 images, and their labels."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    bundle = load_digits()
    enlarged = zoom(bundle.images / 16.0, (1, 20 / 8, 20 / 8), order=1)
    # a threshold at half of the brightest value keeps strokes as thin as MNIST's
    binary = np.pad(enlarged > 0.5, ((0, 0), (4, 4), (4, 4)))
    return binary.astype(np.float32), bundle.target.astype(np.int64)


def _garments(labels: NDArray[np.int64]) -> Images:
    """Synthetic grey garments [N,28,28]: the label's silhouette, with brightness and stripes drawn from a fixed stream."""
    rng = np.random.default_rng(20250718)
    silhouettes = np.zeros((10, SIDE, SIDE), np.float32)
    for silhouette, rectangles in zip(silhouettes, _GARMENTS, strict=True):
        for top, bottom, left, right in rectangles:
            silhouette[top:bottom, left:right] = 1
    count = len(labels)
    brightness, phase = rng.uniform(0.6, 0.9, (count, 1, 1)), rng.uniform(0, 2 * np.pi, (count, 1, 1))
    angle, wave = rng.uniform(0, np.pi, (count, 1, 1)), rng.uniform(0.4, 1.6, (count, 1, 1))
    y, x = np.mgrid[:SIDE, :SIDE]
    texture = brightness + 0.1 * np.sin(wave * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return (silhouettes[labels] * texture).astype(np.float32)


def _read_images(path: str | os.PathLike[str]) -> Images:
    """Images of an MNIST-like file in 0..1: the first [N,28,28] array of an .npz, or an idx file, gzipped or not."""
    source = Path(path)
    try:
        if source.suffix == ".npz":
            with np.load(source, allow_pickle=False) as archive:
                arrays = [archive[name] for name in archive.files]
            images = next((array for array in arrays if array.ndim == 3), np.empty(0))
        else:
            raw = source.read_bytes()
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
            magic, *shape = struct.unpack(">4i", raw[:16])
            images = np.frombuffer(raw, np.uint8, offset=16).reshape(shape) if magic == 0x803 else np.empty(0)
    except (OSError, ValueError, EOFError, struct.error) as error:
        raise WxlabError(f"cannot read images from {source}: {error}; give an .npz or idx file of 28x28 images") from None
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise WxlabError(f"{source} holds no array of 28x28 images; give MNIST's or Fashion-MNIST's .npz or idx image file")
    scale = 255 if images.dtype == np.uint8 else 1
    return (images / scale).astype(np.float32)


def _dataset(
    fields: dict[str, Images], sequences: int, frames: int, splits: dict[str, list[int]], own_digits: bool, own_items: bool
) -> xr.Dataset:
    size = fields["digit"].shape[-1]
    segment = np.repeat(np.arange(sequences), frames)
    # a day or more lies between two sequences, so no regular step leads from one to the next
    days = frames // 24 + 2
    hours = segment * days * 24 + np.tile(np.arange(frames), sequences)
    time = np.datetime64("2000-01-01", "ns") + hours.astype("timedelta64[h]")
    sources = {
        "digits": "scikit-learn's bundled digits, enlarged" if own_digits else "file given",
        "items": "synthetic garments" if own_items else "file given",
    }
    return xr.Dataset(
        {name: (("time", "y", "x"), fields[name], {"units": "1"}) for name in CHANNELS},
        coords={
            "time": time,
            "segment": ("time", segment),
            "y": np.arange(size, dtype=np.float64),
            "x": np.arange(size, dtype=np.float64),
        },
        attrs={
            "title": "MvMmfnist: moving digits and garments",
            "splits": json.dumps({name: {"segments": members} for name, members in splits.items()}),
            **sources,
        },
    )
