"""The user's cache of simulated data: one zarr store per checksum of parameters and code, checked before it is trusted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.files import alone, atomic_dir, write_json

MANIFEST = "checksums.json"
STORE = "data.zarr"
TIME_CHUNK = 32


def cache_dir() -> Path:
    """Where simulated data is kept: ``WXLAB_CACHE``, else the user's cache folder."""
    override = os.environ.get("WXLAB_CACHE")
    return Path(override).expanduser() if override else platformdirs.user_cache_path("wxlab")


def code_version(modules: Iterable[str]) -> str:
    """Checksum of the source of these modules of the simulator: changed code makes new data."""
    digest = hashlib.sha256(version("dinosaur-torch").encode())
    for name in sorted(modules):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()


def cached(kind: str, arguments: dict[str, Any], modules: Iterable[str], make: Callable[[], Iterable[xr.Dataset]]) -> xr.Dataset:
    """The Dataset of ``kind`` with ``arguments``, opened lazily; made from pieces along time when it is missing or damaged.

    modules: whose source the data depends on.

    Raises WxlabError when the cache folder cannot be written.
    """
    key = json.dumps([kind, arguments, code_version(modules)], sort_keys=True)
    path = cache_dir() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"
    if not intact(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(path):
                if not intact(path):  # another process may have made it while this one waited
                    with atomic_dir(path) as folder:
                        _write(folder, make())
        except OSError as error:
            reason = error.strerror or error
            raise WxlabError(
                f"cannot write the cache {path}: {reason}; set WXLAB_CACHE to a folder that can be written, or pass cache=False"
            ) from None
    opened = xr.open_dataset(path / STORE, engine="zarr", consolidated=False, chunks={})
    return opened.assign_coords({name: opened[name].load() for name in opened.coords})


def _write(folder: Path, pieces: Iterable[xr.Dataset]) -> None:
    for n, piece in enumerate(pieces):
        if n == 0:
            moving = [name for name in piece.variables if "time" in piece[name].dims and name not in piece.coords]
            chunks = {name: {"chunks": (min(TIME_CHUNK, piece.sizes["time"]), *piece[name].shape[1:])} for name in moving}
            encoding: dict[Any, Any] = {**chunks, "time": {"units": "seconds since 1970-01-01", "dtype": "int64"}}
            piece.to_zarr(folder / STORE, mode="w", consolidated=False, encoding=encoding)
        else:
            moving = [name for name in piece.data_vars if "time" in piece[name].dims]
            piece[moving].to_zarr(folder / STORE, append_dim="time", consolidated=False)
    write_json(folder / MANIFEST, _checksums(folder))


def _checksums(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes()) for path in files}


def intact(path: Path) -> bool:
    """Whether a store is there with every file as it was written; a damaged one is removed."""
    if not path.exists():
        return False
    try:
        complete = bool(json.loads((path / MANIFEST).read_text()) == _checksums(path))
    except (OSError, ValueError):
        complete = False
    if not complete:
        shutil.rmtree(path, ignore_errors=True)
    return complete
