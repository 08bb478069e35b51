"""The folder of a training run: settings, metrics, resume state. Killed at any moment, it never holds anything half-written that is read.

settings.json     what the run's numbers depend on; a run that goes on must be given the same
metrics.jsonl     one line of numbers now and then; what a killed run wrote after its last state is cut off when it goes on
health.json       which signatures of failure the logs, the weights and the splits show; written when training ends
state/state.pt    all that the run holds between two optimiser steps
best.safetensors, last.safetensors   checkpoints, with a JSON copy of their header beside them
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from wxlab.checkpoints import plain
from wxlab.errors import WxlabError
from wxlab.files import atomic_file, write_json

Values = dict[str, Any]
PLACES = frozenset({"store_path"})  # of settings.json: where something lies, which may change while the run goes on


class RunFolder:
    """Reads and writes what a run keeps. Of several processes only the main one writes."""

    def __init__(self, path: str | os.PathLike[str], main: bool = True) -> None:
        self.path, self.main = Path(path), main
        self.metrics_bytes = 0  # length of metrics.jsonl that belongs to the run so far

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.path / "best.safetensors"

    @property
    def _health(self) -> Path:
        return self.path / "health.json"

    @property
    def _state(self) -> Path:
        return self.path / "state" / "state.pt"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out while this one trains; the lock dies with its process.  Raises WxlabError when it is held."""
        if not self.main:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise WxlabError(f"run_dir {self.path} cannot be written ({error.strerror}); choose another folder") from None
        try:
            self._lock(handle)
            for folder in (self.path, self._state.parent):  # what a killed process was writing
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WxlabError(f"another process is training in {self.path}; wait for it or choose another run_dir") from None

    def settle(self, resume: bool, facts: Values) -> None:
        """Write what the run depends on, or compare it with what its earlier start wrote.  Raises WxlabError when they differ."""
        if not self.main:
            return
        path, facts = self.path / "settings.json", json.loads(json.dumps(facts, default=plain))
        if not path.is_file():
            if self._state.is_file() or self.best.is_file():
                raise WxlabError(f"{self.path} holds a run without its settings.json; choose another run_dir")
            write_json(path, facts)
            return
        if not resume:
            raise WxlabError(f"{self.path} already holds a run; go on with resume=True or choose another run_dir")
        try:
            before = json.loads(path.read_text())
            changed = [name for name in sorted({*before, *facts}) if before.get(name) != facts.get(name)]
            moved = PLACES.intersection(changed)
            changed = [name for name in changed if name not in PLACES]
        except (ValueError, TypeError, AttributeError):
            raise WxlabError(f"{path} is not the JSON that wxlab.train wrote; choose another run_dir") from None
        if changed:
            listing = "; ".join(f"{name} ({_short(before.get(name))} before, {_short(facts.get(name))} now)" for name in changed)
            raise WxlabError(f"the run in {self.path} was started with other settings: {listing}; give the same or choose another run_dir")
        if moved:
            write_json(path, facts)

    def keep_health(self, health: Values) -> None:
        """Write what the check at the end of training found."""
        if self.main:
            write_json(self._health, health)

    @property
    def examined(self) -> bool:
        """Whether a check has been written since the run was last changed."""
        changed = [path.stat().st_mtime_ns for path in (self._state, self.path / "metrics.jsonl", self.best) if path.is_file()]
        return self._health.is_file() and self._health.stat().st_mtime_ns >= max(changed, default=0)

    def write_state(self, state: Values) -> None:
        """Keep the state of the run, in place of the one before."""
        if self.main:
            with atomic_file(self._state) as temporary:
                torch.save({**state, "metrics_bytes": self.metrics_bytes}, temporary)

    def read_state(self) -> Values | None:
        """The state that was kept last; None when there is none."""
        if not self._state.is_file():
            return None
        try:
            state: Values = torch.load(self._state, map_location="cpu", weights_only=True)
            self.metrics_bytes = state["metrics_bytes"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError):
            raise self.damaged() from None
        return state

    def damaged(self) -> WxlabError:
        """The error for a state that is not whole."""
        return WxlabError(f"{self._state} cannot be read; delete it to begin the run anew, or choose another run_dir")

    @contextlib.contextmanager
    def metrics(self, tensorboard: bool, step: int) -> Iterator[Callable[[Values], None]]:
        """A function that appends lines to metrics.jsonl, and to TensorBoard when asked; lines that the state does not know are cut."""
        if not self.main:
            yield lambda line: None
            return
        board = _board(self.path / "tensorboard", step) if tensorboard else None
        with (self.path / "metrics.jsonl").open("ab") as handle:
            handle.truncate(min(self.metrics_bytes, handle.tell()))

            def write(line: Values) -> None:
                handle.write((json.dumps(line) + "\n").encode())
                handle.flush()
                self.metrics_bytes = handle.tell()
                if board is not None:
                    for name, value in line.items():
                        if name not in ("stage", "step") and not isinstance(value, str):
                            board.add_scalar(name, value, line["step"])

            try:
                yield write
            finally:
                if board is not None:
                    board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise WxlabError("tensorboard=True needs the package tensorboard; install it, or leave the setting out") from None
    return SummaryWriter(str(folder), purge_step=step)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
