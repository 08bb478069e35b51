"""GRIB 1 and 2 through cfgrib, without index files beside the data."""

from __future__ import annotations

from typing import Any

import xarray as xr

from wxlab.readers.remote import is_remote
from wxlab.readers.source import Piece, Request, local_files, need, open_with


def open_pieces(request: Request) -> list[Piece]:
    """One piece per file, and one more per variable whose levels or steps differ from the rest of its file."""
    need(request, "cfgrib")
    pieces = []
    for path in local_files(request):
        if is_remote(path):
            raise request.error(f"GRIB cannot be read over the network ({path}); copy the file here and pass uri=")
        first = _open(request, path, {})
        pieces.append(first)
        for source in request.entry.variables.values():
            if source.name not in first.dataset.variables:
                alone = _open(request, path, {"cfVarName": source.name})
                pieces.extend([alone] if source.name in alone.dataset.variables else [])
    return pieces


def _open(request: Request, path: str, only: dict[str, Any]) -> Piece:
    given = dict(request.entry.options.get("backend_kwargs") or {})
    kwargs = {
        "indexpath": "",
        # fields that do not fit together are left out here, and opened alone when the entry names them
        "errors": "ignore",
        **given,
        "filter_by_keys": {**given.get("filter_by_keys", {}), **only},
    }
    return open_with(
        request,
        path,
        lambda: xr.open_dataset(path, engine="cfgrib", chunks=None, cache=False, decode_timedelta=True, backend_kwargs=kwargs),
    )
