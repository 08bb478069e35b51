"""NetCDF files: one, a list, a pattern, or over the network by ranges (HDF5-based files only)."""

from __future__ import annotations

from typing import Any

import xarray as xr

from wxlab.readers.remote import RemoteFile, is_remote
from wxlab.readers.source import Piece, Request, local_files, need_filesystem, open_with


def open_pieces(request: Request) -> list[Piece]:
    """One piece per file."""
    return [open_file(request, path) for path in local_files(request)]


def open_file(request: Request, path: str) -> Piece:
    """One file, lazily."""
    options = request.entry.options

    def opener() -> xr.Dataset:
        target: Any = RemoteFile(path, request.policy) if is_remote(path) else path
        # ranges can only be read through a Python file, which netCDF-C does not know
        engine = "h5netcdf" if is_remote(path) else options.get("engine", "netcdf4")
        return xr.open_dataset(
            target, engine=engine, chunks=None, cache=False, decode_timedelta=True, backend_kwargs=options.get("backend_kwargs") or {}
        )

    if is_remote(path):
        need_filesystem(request, path)
    return open_with(request, path, opener)
