"""What readers share: addresses, the request they answer, and arrays that read, convert and check one block at a time."""

from __future__ import annotations

import glob
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wxlab.catalog_schema import Entry, Variable, base_variable
from wxlab.errors import WxlabError
from wxlab.readers.remote import Policy, brief, is_remote

_LATER = "try again later, or raise the options retries and timeout"
BLOCK_BYTES = 16 * 2**20  # file chunks are joined along the first dimension up to this size


@dataclass(frozen=True)
class Request:
    """An entry to be opened: its name, itself with the uri filled in, and the vocabulary."""

    name: str
    entry: Entry
    vocabulary: Mapping[str, Variable]

    @property
    def uris(self) -> list[str]:
        uri = self.entry.uri
        return [expand(part, self.name) for part in ([uri] if isinstance(uri, str) else uri or [])]

    @property
    def policy(self) -> Policy:
        return Policy.from_options(self.entry.options)

    def error(self, text: str) -> WxlabError:
        """An error that begins with the name of the source."""
        return WxlabError(f"source {self.name!r}: {text}")


@dataclass(frozen=True)
class Piece:
    """One opened file: where it lies and its variables, lazily, with the file's own names."""

    where: str
    dataset: xr.Dataset

    @property
    def remote(self) -> bool:
        return is_remote(self.where)


def expand(uri: str, name: str) -> str:
    """``${VAR}`` and ``~`` filled in; WxlabError names a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise WxlabError(
                f"source {name!r} lies at {uri}, and the environment variable {match[1]} is not set; "
                f"set it to the folder of the data (export {match[1]}=...) or pass uri="
            )
        return os.environ[match[1]]

    expanded = re.sub(r"\$\{(\w+)\}", value, uri)
    if expanded.startswith("file://"):
        expanded = expanded.removeprefix("file://")
    return expanded if is_remote(expanded) else str(Path(expanded).expanduser())


def local_files(request: Request) -> list[str]:
    """The files that the entry's addresses name: paths and patterns. A pattern among several may match nothing."""
    found: list[str] = []
    for uri in request.uris:
        if is_remote(uri):
            found.append(uri)
        elif glob.has_magic(uri) and not Path(uri).exists():
            found.extend(sorted(glob.glob(uri, recursive=True)))  # noqa: PTH207 (absolute patterns)
        elif Path(uri).is_dir():
            raise request.error(f"{uri} is a folder; give a file or a pattern such as {Path(uri) / '*.nc'}")
        elif not Path(uri).exists():
            raise request.error(f"there is no file {uri}; check the uri of the entry or pass uri=")
        else:
            found.append(uri)
    if not found:
        raise request.error(f"no file matches {' or '.join(request.uris)}; check the uri of the entry or pass uri=")
    return list(dict.fromkeys(found))


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn while opening about what is checked here anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_with(request: Request, where: str, opener: Callable[[], xr.Dataset]) -> Piece:
    """Open one file; whatever the library raises becomes one sentence with the source and the file."""
    try:
        with quiet():
            return Piece(where, request.policy.call(opener) if is_remote(where) else opener())
    except WxlabError:
        raise
    except FileNotFoundError:
        raise request.error(f"there is nothing at {where}; check the uri of the entry or pass uri=") from None
    except Exception as error:
        if "decode time" in str(error) or "calendar" in str(error):
            raise request.error(f"the time coordinate of {where} cannot be decoded ({brief(error)}); write it as CF time") from None
        tries = f" after {request.policy.retries + 1} attempts" if is_remote(where) else ""
        hint = _LATER if is_remote(where) else "the file may be damaged or of another kind"
        raise request.error(f"cannot open {where} as {request.entry.driver}{tries} ({brief(error)}); {hint}") from None


class SourceArray:
    """A variable in its file, read block by block: float32, converted, and checked once against the valid range.

    Reads that fail are tried again when the source is remote; then one WxlabError names source and variable.
    """

    def __init__(self, variable: xr.Variable, name: str, request: Request, where: str) -> None:
        source = request.entry.variables[name]
        self.variable, self.name, self.file_name, self.where = variable, name, source.name, where
        self.scale, self.offset = source.scale, source.offset
        self.source, self.policy = request.name, request.policy if is_remote(where) else None
        base, _ = base_variable(name, request.vocabulary)
        self.known = request.vocabulary[base]
        self.check = bool(request.entry.options.get("check_range", True)) and self.known.valid_range is not None
        self.salvage = request.entry.options.get("missing") == "mask"
        self.shape, self.ndim, self.dtype = variable.shape, variable.ndim, np.dtype(np.float32)

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        def read() -> NDArray[Any]:
            return np.asarray(self.variable[key].values)

        try:
            raw = self.policy.call(read) if self.policy else read()
        except WxlabError:
            raise
        except Exception as error:
            if self.salvage:
                return self._readable(key)
            tries = f" after {self.policy.retries + 1} attempts" if self.policy else ""
            hint = _LATER if self.policy else "the file may be damaged"
            raise WxlabError(
                f"source {self.source!r}: cannot read variable {self.name!r} from {self.where}{tries} ({brief(error)}); {hint}"
            ) from None
        return self._converted(raw)

    def _converted(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        values = raw.astype(np.float32) if self.scale == 1 and self.offset == 0 else (raw * self.scale + self.offset).astype(np.float32)
        if self.check:
            self._check(values)
        return values

    def _readable(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        """What can be read, frame by frame of the first axis; the rest is missing."""
        wanted = np.arange(self.shape[0])[key[0]]
        frames = []
        for position in np.atleast_1d(wanted).tolist():
            try:
                frames.append(self._converted(np.asarray(self.variable[(position, *key[1:])].values)))
            except WxlabError:
                raise
            except Exception:
                frames.append(np.full(self.shape[1:], np.nan, np.float32)[tuple(key[1:])])
        return np.stack(frames) if np.ndim(wanted) else frames[0]

    def _check(self, values: NDArray[np.float32]) -> None:
        finite = values[np.isfinite(values)]
        if not finite.size:
            return
        low, high = self.known.valid_range or (-np.inf, np.inf)
        least, most = float(finite.min()), float(finite.max())
        if least < low or most > high:
            raise WxlabError(
                f"source {self.source!r}: values of {self.name!r} ({self.file_name!r} in the file) range from {least:.6g} to {most:.6g}, "
                f"and {low:g} to {high:g}{self.known.unit} is allowed; declare scale and offset of the variable, "
                f"or options: {{check_range: false}} if the values are right"
            )
        self.check = False  # a wrong unit shows in the first block; single wild values are the business of `wxlab data check`

    def sample(self) -> None:
        """Read the first frame, so that a wrong unit shows when the source is opened."""
        self[(slice(0, 1), *(slice(None) for _ in self.shape[1:]))] if self.ndim else self[()]


def lazy(array: SourceArray, request: Request, dims: tuple[Any, ...]) -> da.Array:
    """A dask array over ``array``, in chunks that are whole file chunks."""
    chunks = block_sizes(array.variable, array.shape, dims, request.entry.options.get("chunks") or {})
    name = f"{request.name}-{array.name}-{uuid4().hex}"
    return da.from_array(array, chunks=chunks, name=name, asarray=False, lock=False, meta=np.empty((0,) * array.ndim, np.float32))


def block_sizes(variable: xr.Variable, shape: tuple[int, ...], dims: tuple[Any, ...], asked: Mapping[str, int]) -> tuple[int, ...]:
    """Chunk lengths: as asked, else the file's own, joined along the first dimension up to BLOCK_BYTES."""
    own = variable.encoding.get("preferred_chunks") or {}
    sizes = [max(1, min(length, int(own.get(dim, length)))) for dim, length in zip(dims, shape, strict=True)]
    if shape and not own:
        sizes[0] = 1
    if shape:
        block = 4 * int(np.prod(sizes))
        sizes[0] = min(shape[0], sizes[0] * max(1, BLOCK_BYTES // block)) if block else shape[0]
    for i, dim in enumerate(dims):
        if dim in asked:
            sizes[i] = shape[i] if asked[dim] == -1 else min(shape[i], int(asked[dim]))
    return tuple(max(1, size) for size in sizes)


_EXTRAS = {"cfgrib": "grib", "gcsfs": "cloud", "s3fs": "cloud"}
_IMPORTS = threading.Lock()


def need(request: Request, module: str) -> None:
    """Import an optional package, or say which extra brings it."""
    with _IMPORTS:
        try:
            __import__(module)
        except ImportError:
            raise request.error(f"it needs the package {module}; run: pip install 'wxlab[{_EXTRAS[module]}]'") from None


def need_filesystem(request: Request, uri: str) -> None:
    """Import what reads a bucket, where plain HTTPS does not."""
    scheme = request.policy.resolve(uri)[0].partition("://")[0]
    if scheme in ("gs", "gcs"):
        # otherwise gcsfs asks for the kind of bucket first, and waits a minute where there is no network
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        need(request, "gcsfs")
    elif scheme == "s3":
        need(request, "s3fs")
