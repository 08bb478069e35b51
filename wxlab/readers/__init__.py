"""One module per source format: each turns a catalogue entry into pieces (lazy datasets, as the file has them); ``uniform`` joins them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wxlab.readers.source import Piece, Request

__all__ = ["Piece", "Request", "open_pieces"]


def open_pieces(request: Request) -> list[Piece]:
    """The files of an entry, opened lazily by the driver that it names."""
    reader: Any = import_module(f"wxlab.readers.{request.entry.driver}")
    pieces: list[Piece] = reader.open_pieces(request)
    return pieces
