"""Reading over a network: retries with back-off and a time-out, for zarr stores and for files read by ranges."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore

from wxlab.errors import WxlabError

T = TypeVar("T")
SCHEMES = ("http", "https", "gs", "gcs", "s3")
BLOCK = 2**20  # bytes asked for at once from a file
BLOCKS_KEPT = 32


def is_remote(uri: str) -> bool:
    """Whether an address is one of a network; WxlabError for a scheme that cannot be read."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if match and match[1] not in (*SCHEMES, "file"):
        raise WxlabError(f"cannot read {uri}: unknown scheme {match[1]!r} (allowed: {', '.join(SCHEMES)}, file, or a path)")
    return bool(match) and not uri.startswith("file://")


class RemoteFailure(OSError):
    """A request that failed for good; callers add the names of source and variable."""


def brief(error: BaseException) -> str:
    """An error of a library in a few words and on one line."""
    if isinstance(error, RemoteFailure):
        return str(error)
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    if "Payload" in type(error).__name__:
        return "the answer was cut short"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _hopeless(error: BaseException) -> bool:
    """Whether asking again cannot help: not there, not allowed, or already asked often enough."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 425, 429)
    return isinstance(error, (FileNotFoundError, PermissionError, RemoteFailure, WxlabError, ImportError))


@dataclass(frozen=True)
class Policy:
    """How often and how long to try: ``retries`` after the first attempt, ``timeout`` seconds each, waits of ``backoff`` * 2^n seconds."""

    retries: int = 4
    timeout: float = 60.0
    backoff: float = 0.5
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Policy:
        names = ("retries", "timeout", "backoff", "storage_options")
        return cls(**{name: options[name] for name in names if name in options})

    def wait(self, attempt: int) -> float:
        return min(30.0, self.backoff * 2**attempt)

    def call(self, function: Callable[[], T]) -> T:
        """``function()``, tried again while there is hope."""
        for attempt in range(self.retries + 1):
            try:
                return function()
            except Exception as error:
                if attempt == self.retries or _hopeless(error):
                    raise
            time.sleep(self.wait(attempt))
        raise AssertionError("unreachable")

    async def acall(self, function: Callable[[], Any]) -> Any:
        """Await ``function()`` within ``timeout``, tried again while there is hope; then RemoteFailure."""
        for attempt in range(self.retries + 1):
            try:
                return await asyncio.wait_for(function(), self.timeout)
            except Exception as error:
                if isinstance(error, FileNotFoundError):
                    raise
                if attempt == self.retries or _hopeless(error):
                    late = isinstance(error, (asyncio.TimeoutError, TimeoutError))
                    reason = f"no answer within {self.timeout:g} s" if late else brief(error)
                    raise RemoteFailure(reason) from None
            await asyncio.sleep(self.wait(attempt))
        raise AssertionError("unreachable")

    def resolve(self, uri: str) -> tuple[str, dict[str, Any]]:
        """What fsspec is given for ``uri``: public buckets are read anonymously unless told otherwise, Google's over plain HTTPS."""
        options = dict(self.storage_options)
        bucket = re.fullmatch(r"gc?s://(.+)", uri)
        if bucket and options.get("token", "anon") == "anon":
            options.pop("token", None)
            uri = f"https://storage.googleapis.com/{bucket[1]}"
        if uri.startswith("http"):
            # proxies of a cluster are named in the environment
            options["client_kwargs"] = {"trust_env": True, **options.get("client_kwargs", {})}
        elif uri.startswith("s3://"):
            options.setdefault("anon", True)
        return uri, options


class RetryStore(WrapperStore[FsspecStore]):
    """A zarr store whose every request is tried again, with a time-out."""

    def __init__(self, store: FsspecStore, policy: Policy) -> None:
        super().__init__(store)
        self.policy = policy

    def _with_store(self, store: FsspecStore) -> RetryStore:
        return type(self)(store, self.policy)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found: Buffer | None = await self.policy.acall(lambda: self._store.get(key, prototype, byte_range))
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        async for item in Store._get_many(self, requests):
            yield item

    async def exists(self, key: str) -> bool:
        return bool(await self.policy.acall(lambda: self._store.exists(key)))


class RemoteFile(io.RawIOBase):
    """A remote file read by ranges, each request tried again and its length checked. Picklable."""

    def __init__(self, uri: str, policy: Policy) -> None:
        super().__init__()
        self.uri, self.policy = uri, policy
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri, self.policy)

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        uri, options = self.policy.resolve(self.uri)
        found: tuple[Any, str] = url_to_fs(uri, **options)
        return found

    @cached_property
    def size(self) -> int:
        fs, path = self._filesystem
        found = self._request(lambda: fs._info(path))["size"]
        if found is None:
            raise RemoteFailure("the server does not say how long the file is")
        return int(found)

    def _request(self, function: Callable[[], Any]) -> Any:
        from fsspec.asyn import sync

        return sync(self._filesystem[0].loop, self.policy.acall, function)

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        start, end = number * BLOCK, min(self.size, (number + 1) * BLOCK)
        fs, path = self._filesystem

        async def fetch() -> bytes:
            data: bytes = await fs._cat_file(path, start=start, end=end)
            if len(data) == self.size > end - start:  # a server that ignores ranges sends everything
                data = data[start:end]
            if len(data) != end - start:
                raise OSError(f"the answer was cut short, {len(data)} of {end - start} bytes")
            return data

        self._blocks[number] = self._request(fetch)
        if len(self._blocks) > BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return self._blocks[number]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill all of ``buffer`` from the current position, less only at the end of the file: HDF5 takes what is missing for zeros."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and self._position < self.size:
            number, skip = divmod(self._position, BLOCK)
            data = self._block(number)[skip : skip + len(view) - filled]
            view[filled : filled + len(data)] = data
            filled += len(data)
            self._position += len(data)
        return filled
