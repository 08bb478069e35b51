"""Zarr stores, version 2 or 3: folders, http(s), Google Cloud and S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from zarr.storage import FsspecStore

from wxlab.readers.remote import RetryStore, is_remote
from wxlab.readers.source import Piece, Request, need, open_with


def open_pieces(request: Request) -> list[Piece]:
    """One piece per store."""
    return [_open(request, uri) for uri in request.uris]


def _open(request: Request, uri: str) -> Piece:
    options = request.entry.options

    def opener() -> xr.Dataset:
        store: Any = uri
        if is_remote(uri):
            policy = request.policy
            store = RetryStore(FsspecStore.from_url(uri, storage_options=policy.filesystem_options(uri), read_only=True), policy)
        return xr.open_dataset(
            store,
            engine="zarr",
            chunks=None,
            cache=False,
            consolidated=options.get("consolidated"),
            group=options.get("group"),
            decode_timedelta=True,
        )

    if uri.startswith(("gs://", "gcs://")):
        need(request, "gcsfs")
    elif uri.startswith("s3://"):
        need(request, "s3fs")
    elif not is_remote(uri) and not Path(uri).is_dir():
        raise request.error(f"there is no zarr store {uri}; check the uri of the entry or pass uri=")
    return open_with(request, uri, opener)
