"""A forecast that comes in pieces: put together in memory, or written as they come, so that never more than one is there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr

from wxlab.errors import WxlabError
from wxlab.files import atomic_dir

LEAD = "prediction_timedelta"
Piece = tuple[dict[str, slice], xr.Dataset]  # a part of a forecast and its place in the whole
Axes = Mapping[str, np.ndarray]  # initial times, members and lead times of the whole, by their dimension


def free_place(out: str | os.PathLike[str]) -> Path:
    """Where a forecast may be written: nothing is there yet, or a forecast that it will replace."""
    target = Path(out)
    if target.exists() and not (target / LEAD / "zarr.json").is_file():
        raise WxlabError(f"{target} exists and is no forecast, so none will be written in its place; choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WxlabError(f"{target} cannot be written ({error.strerror}); choose another place") from None
    return target


def write(pieces: Iterator[Piece], target: Path, axes: Axes) -> None:
    """Write pieces one after the other; ``target`` appears when the last one is complete."""
    with atomic_dir(target) as folder:
        group = None
        for place, piece in pieces:
            if group is None:
                encoding: dict[str, Any] = {str(name): {"chunks": field.shape} for name, field in piece.data_vars.items()}
                encoding["time"] = {"units": "seconds since 1970-01-01", "dtype": "int64", "chunks": (len(axes["time"]),)}
                whole = _whole(piece, axes, lazily=True)
                whole.to_zarr(folder, mode="w", compute=False, consolidated=False, zarr_format=3, encoding=encoding)
                group = zarr.open_group(str(folder), mode="r+")
            for name, field in piece.data_vars.items():
                array: Any = group[str(name)]
                array[tuple(place.get(str(dim), slice(None)) for dim in field.dims)] = field.values


def gather(pieces: Iterator[Piece], axes: Axes) -> xr.Dataset:
    """Put the pieces together in memory."""
    whole = None
    for place, piece in pieces:
        if whole is None:
            whole = _whole(piece, axes)
        for name, field in piece.data_vars.items():
            whole[name].values[tuple(place.get(str(dim), slice(None)) for dim in field.dims)] = field.values
    assert whole is not None
    return whole


def _whole(piece: xr.Dataset, axes: Axes, lazily: bool = False) -> xr.Dataset:
    """A Dataset for the whole forecast like a piece of it, its values not filled in yet."""
    coords = {dim: axes.get(str(dim), piece[dim].values) for dim in piece.dims}

    def blank(field: xr.DataArray) -> Any:
        shape = [len(coords[dim]) for dim in field.dims]
        return dask.array.empty(shape, dtype=field.dtype, chunks=field.shape) if lazily else np.empty(shape, field.dtype)

    return xr.Dataset({name: (field.dims, blank(field), field.attrs) for name, field in piece.data_vars.items()}, coords, piece.attrs)
