"""Functions of fields applied piece by piece, and lazily where the fields are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

PIECE = 2**23  # values worked on at once, 64 MiB in float64: one field is never cut


def by_pieces(
    function: Callable[..., np.ndarray], *fields: xr.DataArray, core: tuple[str, str], out: Mapping[str, int], units: str | None = None
) -> xr.DataArray:
    """``function`` of fields [..., core] to [..., out]; other dimensions are joined by name and keep their coordinates.

    function: of float64 arrays with the same number of axes, each as long as the others or of length 1.  core: the two dimensions of a
    field.  out: names and lengths of the new dimensions.  units: of the result.
    A field backed by dask gives a result that is computed when it is asked for, chunk by chunk.
    """
    whole = [field.chunk(dict.fromkeys(core, -1)) if field.chunks is not None else field for field in fields]

    def apply(*arrays: np.ndarray) -> np.ndarray:
        depth = max(array.ndim for array in arrays)
        return _cut(function, [array.reshape((1,) * (depth - array.ndim) + array.shape) for array in arrays])

    result: xr.DataArray = xr.apply_ufunc(
        apply,
        *whole,
        input_core_dims=[core] * len(fields),
        output_core_dims=[list(out)],
        join="exact",
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": dict(out)},
    )
    return result.assign_attrs({} if units is None else {"units": units})


def _cut(function: Callable[..., np.ndarray], arrays: list[np.ndarray]) -> np.ndarray:
    """Halve the first axis until the pieces are small."""
    if arrays[0].ndim == 2 or sum(array.size for array in arrays) <= PIECE:
        return function(*(np.asarray(array, dtype=np.float64) for array in arrays))
    length = max(len(array) for array in arrays)
    if length == 1:
        return _cut(function, [array[0] for array in arrays])[None]
    halves = slice(None, length // 2), slice(length // 2, None)
    return np.concatenate([_cut(function, [array if len(array) == 1 else array[half] for array in arrays]) for half in halves])
