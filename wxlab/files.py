"""Files that are never half written: a temporary name beside the target, then one rename."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wxlab.errors import WxlabError


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``, on failure removed."""
    target = Path(path)
    temporary = _beside(target)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it takes the place of ``path``, on failure it is removed."""
    target = Path(path)
    temporary = _beside(target)
    temporary.mkdir()
    try:
        yield temporary
        replace_dir(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_dir(new: Path, target: Path) -> None:
    """Let the complete folder ``new`` take the place of ``target``; what was there before is moved aside first, then removed."""
    old = _beside(target)
    if target.exists():
        target.replace(old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait until no other process makes the same ``target``; the lock dies with its process."""
    lock = target.with_name(f".{target.name}.lock.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(lock)
    except OSError as error:
        raise WxlabError(f"{target} cannot be written ({error.strerror}); choose another place") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _locked(lock: Path) -> int:
    """Descriptor of the lock file, held. One that its last holder removed while we waited is not the lock any more."""
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == lock.stat().st_ino:
                return handle
        os.close(handle)
