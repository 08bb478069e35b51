"""What a check returns: for each signature whether it was found, the number measured, its bar and the cure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from wxlab.errors import unknown

State = Literal["found", "clear", "not judged"]
_WORDS = {"found": "FOUND", "clear": "clear", "not judged": "-"}


class NotJudged(Exception):
    """A signature that cannot be looked for here; the message says why."""


@dataclass(frozen=True)
class Measure:
    """A number against its bar.  text: what was measured, in one sentence.  cure: instead of the signature's own.

    below: the signature is found under the bar, not above it. A number that is no number is found.
    """

    value: float
    bar: float
    text: str
    below: bool = False
    cure: str = ""

    @property
    def found(self) -> bool:
        return not (self.value >= self.bar if self.below else self.value <= self.bar)


@dataclass(frozen=True)
class Finding:
    """One signature of failure: whether it was found, by which number, and what to do.

    state: ``found``, ``clear`` or ``not judged`` (then ``text`` says why, and there is no number).  severity: how far the number is
    beyond its bar, 1 at the bar; None where nothing was judged.
    """

    name: str
    title: str
    state: State
    text: str
    cure: str
    value: float | None = None
    bar: float | None = None
    below: bool = False

    @property
    def severity(self) -> float | None:
        if self.value is None or self.bar is None:
            return None
        part, whole = (self.bar, self.value) if self.below else (self.value, self.bar)
        if math.isnan(self.value) or whole == 0:
            return math.inf if part else 0.0
        return part / whole

    def __str__(self) -> str:
        numbers = "" if self.value is None else f" ({self.value:.3g}, bar {'<' if self.below else '>'} {self.bar:.3g})"
        cure = f"; {self.cure}" if self.state == "found" else ""
        return f"{_WORDS[self.state]:6s} {self.title}: {self.text}{numbers}{cure}"


@dataclass(frozen=True)
class Findings:
    """All that was looked for in a run, in a fixed order; ``findings["flicker"]`` is one of it.

    note: what else is to be known of the run, such as that it is half done.
    """

    run_dir: Path
    items: tuple[Finding, ...]
    note: str = ""

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, name: str) -> Finding:
        for finding in self.items:
            if finding.name == name:
                return finding
        raise unknown("signature", name, [finding.name for finding in self.items])

    @property
    def found(self) -> tuple[Finding, ...]:
        """The signatures that are there."""
        return tuple(finding for finding in self.items if finding.state == "found")

    @property
    def not_judged(self) -> tuple[Finding, ...]:
        """The signatures that could not be looked for."""
        return tuple(finding for finding in self.items if finding.state == "not judged")

    def table(self) -> pd.DataFrame:
        """One row for each signature: state, value, bar, text, cure."""
        rows = [asdict(finding) for finding in self.items]
        return pd.DataFrame(rows).set_index("name")[["state", "value", "bar", "text", "cure"]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; a number that JSON does not know is None there."""
        rows = [asdict(finding) for finding in self.items]
        kept = [{**row, "value": row["value"] if row["value"] is not None and math.isfinite(row["value"]) else None} for row in rows]
        return {"note": self.note, "findings": kept}

    def __str__(self) -> str:
        return "\n".join([*map(str, self.items), *([self.note] if self.note else [])])
