"""Zarr stores, version 2 or 3: folders, http(s), Google Cloud and S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from zarr.storage import FsspecStore

from wxlab.readers.remote import RetryStore, is_remote
from wxlab.readers.source import Piece, Request, need_filesystem, open_with


def open_pieces(request: Request) -> list[Piece]:
    """One piece per store."""
    return [_open(request, uri) for uri in request.uris]


def _open(request: Request, uri: str) -> Piece:
    options = request.entry.options

    def opener() -> xr.Dataset:
        store: Any = uri
        if is_remote(uri):
            address, storage = request.policy.resolve(uri)
            store = RetryStore(FsspecStore.from_url(address, storage_options=storage, read_only=True), request.policy)
        return xr.open_dataset(
            store,
            engine="zarr",
            chunks=None,
            cache=False,
            consolidated=options.get("consolidated"),
            group=options.get("group"),
            decode_timedelta=True,
        )

    if is_remote(uri):
        need_filesystem(request, uri)
    elif not Path(uri).is_dir():
        raise request.error(f"there is no zarr store {uri}; check the uri of the entry or pass uri=")
    return open_with(request, uri, opener)
