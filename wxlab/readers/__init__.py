"""One module per source format. Most turn an entry into pieces (lazy datasets, as the file has them) that ``uniform`` joins; those of
simulators and of archives of radar frames give the whole dataset."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import xarray as xr

from wxlab.readers.source import Piece, Request
from wxlab.readers.uniform import uniform

__all__ = ["Piece", "Request", "open_entry"]


def open_entry(request: Request) -> xr.Dataset:
    """An entry as one lazy dataset in uniform names and units, by the driver that it names."""
    reader: Any = import_module(f"wxlab.readers.{request.entry.driver}")
    dataset: xr.Dataset = reader.open_whole(request) if hasattr(reader, "open_whole") else uniform(request, reader.open_pieces(request))
    return dataset
