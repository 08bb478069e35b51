"""HKO-7: radar reflectivity around Hong Kong every 6 minutes, 480x480 (Shi et al. 2017, arXiv:1706.03458).

    <root>/radarPNG/YYYY/MM/DD/RADyymmddHHMM00.png            8-bit grey
    <root>/radarPNG_mask/YYYY/MM/DD/RADyymmddHHMM00.mask      zlib-compressed bool bytes, true where the pixel is good
    <root>/hko_data/mask_dat.npz                              exclude_mask, true where no pixel is ever used
Options
    samplers   file, or {train: file, test: file}: pickled pandas frames whose index are the times, or lists of days (.txt); under the root
               or absolute.  Without it every PNG of the tree is used.
    masks      list of what is applied, ``frames``, ``exclude`` or both: pixels outside become missing values (the authors apply none)
    scale      ``linear``, ``nonlinear``, or ``auto``: nonlinear from 2016 on, as the benchmark says
    missing    ``error`` or ``mask``: up to two frames missing in a row are kept as missing values; a longer gap ends an event
Files are named by Hong Kong time, which is kept.
"""

from __future__ import annotations

import os
import pickle
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from wxlab.errors import WxlabError, unknown
from wxlab.readers.frames import (
    FrameArray,
    UnreadableFrame,
    assemble,
    attempt,
    gap_text,
    missing_option,
    only_variable,
    root_of,
    without_gaps,
)
from wxlab.readers.remote import brief
from wxlab.readers.source import Request

STEP, SIDE = 360, 480
PIXEL = 512_000 / SIDE  # m
LOWEST, RANGE = -10.0, 70.0  # dBZ
VALIDATION_FROM = np.datetime64("2014-07-01")  # of the training sampler, which ends in December 2014
MASKS, SCALES = ("frames", "exclude"), ("auto", "linear", "nonlinear")
_FILE = re.compile(r"RAD(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)00\.png")
_DAY = re.compile(r"(\d{4})\D?(\d\d)\D?(\d\d)\D")


def linear_dbz(pixel: NDArray[Any]) -> NDArray[np.float32]:
    """Reflectivity in dBZ of pixels 0..255 on the linear scale: 70 p - 10, p = pixel / 255."""
    return (np.asarray(pixel, np.float32) / np.float32(255)) * np.float32(RANGE) + np.float32(LOWEST)


def nonlinear_dbz(pixel: NDArray[Any]) -> NDArray[np.float32]:
    """Reflectivity in dBZ of pixels 0..255 on the scale of later years: 31 + 4 tan((1.412 + 1.482) p - 1.482), p = pixel / 255."""
    p = np.asarray(pixel, np.float64) / 255
    return (31 + 4 * np.tan(p * (1.412 + 1.482) - 1.482)).astype(np.float32)


def linear_pixel(dbz: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixel 0..255 on the linear scale: floor((dBZ + 10) 255/70 + 0.5), clipped."""
    scaled = np.floor((np.asarray(dbz, np.float64) - LOWEST) * 255 / RANGE + 0.5)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def open_whole(request: Request) -> xr.Dataset:
    """All frames; runs of them are segments, with ``split`` where there are samplers and the entry has no splits of its own."""
    root = root_of(request)
    options, name = request.entry.options, only_variable(request)
    masks = options.get("masks") or []
    masks = [masks] if isinstance(masks, str) else list(masks)
    for mask in masks:
        if mask not in MASKS:
            raise unknown(f"mask of {request.name}", mask, MASKS)
    if options.get("scale", "auto") not in SCALES:
        raise unknown(f"scale of {request.name}", options["scale"], SCALES)
    folder = root / request.entry.variables[name].name
    if not folder.is_dir():
        raise request.error(f"{root} holds no folder {folder.name}; give the folder of HKO-7, which holds radarPNG, as uri")
    samplers = _times_of_samplers(request, root, folder)
    present = np.unique(np.concatenate(list(samplers.values())))
    times, segment = without_gaps(present, STEP)
    absent = times[~np.isin(times, present)]
    if missing_option(request) == "error" and len(absent):
        raise request.error(gap_text(absent))
    stamps = times.astype("datetime64[s]").astype("datetime64[ns]")
    exclude = _exclude_mask(request, root) if "exclude" in masks else None
    reader = Frames(folder, root / "radarPNG_mask" if "frames" in masks else None, exclude, options.get("scale", "auto"), times)
    coordinates: dict[str, Any] = {"time": stamps, "segment": segment}
    if set(samplers) != {""} and request.entry.splits is None:
        coordinates["split"] = _split(samplers, times)
    return assemble(request, FrameArray(request, stamps, (SIDE, SIDE), 1, reader.read), coordinates, PIXEL, chunk=16, north_first=True)


def _split(samplers: Mapping[str, NDArray[np.int64]], times: NDArray[np.int64]) -> NDArray[Any]:
    """The sampler of each time; a filled gap belongs to the sampler of the frame before it."""
    split = np.full(len(times), "", dtype=object)
    for name, own in samplers.items():
        place = np.clip(np.searchsorted(own, times, side="right") - 1, 0, None)
        split[np.abs(times - own[place]) <= 3 * STEP] = name
    late = times.astype("datetime64[s]") >= VALIDATION_FROM
    if "validation" not in samplers and "train" in samplers:
        split[(split == "train") & late] = "validation"
    return split


def _times_of_samplers(request: Request, root: Path, folder: Path) -> dict[str, NDArray[np.int64]]:
    given = request.entry.options.get("samplers")
    if given is None:
        return {"": _scan(request, folder, None)}
    files = dict(given) if isinstance(given, Mapping) else {"": given}
    found = {}
    for split, file in files.items():
        if split not in ("", "train", "validation", "test"):
            raise unknown(f"split of the samplers of {request.name}", split, ("train", "validation", "test"))
        path = root / os.path.expandvars(str(file))
        if not path.is_file():
            raise request.error(f"there is no sampler {path}; correct the option samplers, or leave it out to use every frame")
        found[split] = _scan(request, folder, read_days(path)) if path.suffix == ".txt" else read_sampler(path)
    return found


def _scan(request: Request, folder: Path, days: NDArray[Any] | None) -> NDArray[np.int64]:
    """Seconds of the PNG files of all days, or of some."""
    places = [folder / str(day).replace("-", "/") for day in days] if days is not None else sorted(folder.glob("[0-9]*/[0-9]*/[0-9]*"))
    names = [entry.name for place in places if place.is_dir() for entry in os.scandir(place)]
    matches = [match for match in map(_FILE.fullmatch, names) if match]
    if not matches:
        raise request.error(f"{folder} holds no file like 2009/03/05/RAD090305000000.png; check the uri")
    return np.sort([_seconds(*match.groups()) for match in matches])


def _seconds(year: str, month: str, day: str, hour: str, minute: str) -> int:
    return int(np.datetime64(f"20{year}-{month}-{day}T{hour}:{minute}", "s").astype(np.int64))


def read_days(path: Path) -> NDArray[Any]:
    """Days of a list: one a line, first the date, then its score."""
    days = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = _DAY.match(f"{line.strip()} ")
        if match:
            days.append(f"{match[1]}-{match[2]}-{match[3]}")
        elif line.strip():
            raise WxlabError(f"line {number} of {path} does not begin with a date such as 20090305: {line.strip()[:40]!r}; mend the list")
    if not days:
        raise WxlabError(f"{path} names no day; give a list of days, or leave the option samplers out")
    return np.array(days, dtype="datetime64[D]")


class _Inert:
    """Stands for whatever class or function a pickle names, and only remembers what it was given."""

    given: list[Any]

    def __new__(cls, *given: Any, **_: Any) -> _Inert:
        self = object.__new__(cls)
        self.given = [*given]
        return self

    def __setstate__(self, state: Any) -> None:
        self.given.append(state)

    def append(self, value: Any) -> None:
        self.given.append(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.given.append(value)


_ARRAYS = {"_reconstruct", "scalar", "_frombuffer", "ndarray", "dtype"}


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays from a pickle and runs nothing else, so that a file from elsewhere can do no harm."""

    def find_class(self, module: str, name: str) -> Any:
        if (module == "numpy" or module.startswith(("numpy.core.", "numpy._core."))) and name in _ARRAYS:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin1")
        return type(name, (_Inert,), {})


def read_sampler(path: Path) -> NDArray[np.int64]:
    """Times in seconds, sorted, of a pickled pandas frame with a DatetimeIndex, of whatever version of pandas.

    Nothing in the file is executed: classes are replaced by empty ones, and only the array of the index is taken out.
    """
    try:
        with path.open("rb") as handle:
            content = _Arrays(handle, encoding="latin1").load()
        index = _find(content, lambda item: type(item).__name__ == "DatetimeIndex" or _names(item, "DatetimeIndex"))
        values = _find(index, lambda item: isinstance(item, np.ndarray) and item.ndim == 1 and item.dtype.kind in "Mi")
    except Exception as error:
        raise WxlabError(f"sampler {path} cannot be read ({brief(error)}); give a pickled pandas frame with a DatetimeIndex") from None
    if values is None or not len(values):
        raise WxlabError(f"sampler {path} holds no times; give a pickled pandas frame with a DatetimeIndex")
    stamps = values if values.dtype.kind == "M" else values.astype("datetime64[ns]")
    found: NDArray[np.int64] = np.unique(stamps.astype("datetime64[s]").astype(np.int64))
    return found


def _names(item: Any, name: str) -> bool:
    """Whether an inert call was given a class of this name, as pandas' ``_new_DatetimeIndex(cls, state)`` is."""
    return isinstance(item, _Inert) and any(isinstance(part, type) and part.__name__ == name for part in item.given)


def _find(item: Any, wanted: Any, depth: int = 0) -> Any:
    """The first part of a nest of inert objects, lists and dictionaries that is ``wanted``."""
    if item is None or depth > 40:
        return None
    if wanted(item):
        return item
    parts = item.given if isinstance(item, _Inert) else item.values() if isinstance(item, dict) else item
    for part in parts if isinstance(item, (_Inert, dict, list, tuple)) else ():
        if (found := _find(part, wanted, depth + 1)) is not None:
            return found
    return None


def _exclude_mask(request: Request, root: Path) -> NDArray[np.bool_]:
    path = root / "hko_data" / "mask_dat.npz"
    try:
        with np.load(path, allow_pickle=False) as content:
            mask = content["exclude_mask"].astype(bool)
    except Exception as error:
        raise request.error(f"{path} cannot be read ({brief(error)}); it must hold exclude_mask, or leave 'exclude' out of masks") from None
    if mask.shape != (SIDE, SIDE):
        raise request.error(f"exclude_mask of {path} has shape {mask.shape}; it must be {SIDE}x{SIDE}")
    found: NDArray[np.bool_] = mask
    return found


@dataclass(frozen=True)
class Frames:
    """The frames of a tree by their number; masks where they are to be applied."""

    folder: Path
    masks: Path | None
    exclude: NDArray[np.bool_] | None
    scale: str
    times: NDArray[np.int64]

    def read(self, event: int, _first: int, _last: int) -> NDArray[np.float32]:
        """One frame [1, y, x] in dBZ, missing where a mask says so."""
        stamp = np.datetime64(int(self.times[event]), "s").item()
        name = f"{stamp:%Y/%m/%d/RAD%y%m%d%H%M00}"
        path = self.folder / f"{name}.png"
        pixels = attempt(path, lambda: _grey(path))
        nonlinear = self.scale == "nonlinear" or (self.scale == "auto" and stamp.year >= 2016)
        values = linear_dbz(linear_pixel(nonlinear_dbz(pixels)) if nonlinear else pixels)
        if self.masks is not None:
            mask = self.masks / f"{name}.mask"
            values[~attempt(mask, lambda: _good(mask))] = np.nan
        if self.exclude is not None:
            values[self.exclude] = np.nan
        return values[None]


def _grey(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    if pixels.shape != (SIDE, SIDE) or pixels.dtype != np.uint8:
        raise UnreadableFrame(f"{path} is an image of shape {pixels.shape} and type {pixels.dtype}, not {SIDE}x{SIDE} of 8-bit grey")
    found: NDArray[np.uint8] = pixels
    return found


def _good(path: Path) -> NDArray[np.bool_]:
    content = np.frombuffer(zlib.decompress(path.read_bytes()), dtype=bool)
    if content.size != SIDE * SIDE:
        raise UnreadableFrame(f"{path} holds {content.size} values, not {SIDE}x{SIDE}")
    return content.reshape(SIDE, SIDE)
