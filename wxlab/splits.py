"""Splits and segments: which times belong to training, validation and test, and which follow one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wxlab.errors import WxlabError, unknown
from wxlab.forcings import seconds

SPLITS = ("train", "validation", "test")
Ranges = dict[str, list[tuple[int, int]]]


def parse_time(value: object, end: bool = False) -> int:
    """Seconds since 1970 UTC of a date or time; a date (month, year) given as an end means its last second."""
    try:
        stamp = np.datetime64(str(value).strip().removesuffix("Z").replace(" ", "T"))
    except ValueError:
        raise WxlabError(f"{value!r} is not a time; write it as 2001-12-31 or 2001-12-31T18") from None
    if np.isnat(stamp):
        raise WxlabError(f"{value!r} is not a time; write it as 2001-12-31 or 2001-12-31T18")
    if end and np.datetime_data(stamp.dtype)[0] in ("Y", "M", "D"):
        return int((stamp + 1).astype("datetime64[s]").astype(np.int64)) - 1
    return int(stamp.astype("datetime64[s]").astype(np.int64))


def time_text(second: float) -> str:
    """2001-12-31T18:00 of seconds since 1970."""
    return str(np.datetime64(int(second), "s").astype("datetime64[m]"))


def interval(value: object, name: str) -> tuple[int, int]:
    """[start, end] as seconds, both inclusive; None is an open end."""
    if isinstance(value, slice):
        value = (value.start, value.stop)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != 2:
        raise WxlabError(f"{name} is {value!r}; give [start, end], such as ['2001-01-01', '2007-12-31']")
    start = parse_time(value[0]) if value[0] is not None else -(2**62)
    end = parse_time(value[1], end=True) if value[1] is not None else 2**62
    if end < start:
        raise WxlabError(f"{name} starts at {value[0]} and ends before that, at {value[1]}; give [start, end] in this order")
    return start, end


def regular_step(times: np.ndarray) -> int:
    """The most common difference between neighbouring times in seconds (the smallest of equally common ones); 0 for a single time."""
    if len(times) < 2:
        return 0
    steps, counts = np.unique(np.diff(times), return_counts=True)
    return int(steps[np.argmax(counts)])


def find_runs(times: np.ndarray, step: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Number [T] of the run that each time belongs to: runs end where the step is not the regular one or where ``labels`` change."""
    breaks = np.diff(times) != step
    if labels is not None:
        breaks |= labels[1:] != labels[:-1]
    return np.concatenate([[0], np.cumsum(breaks)]).astype(np.int32)


def ranges_of(selected: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], selected.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def resolve_splits(definition: Mapping[str, Any] | None, times: np.ndarray, labels: np.ndarray) -> Ranges:
    """Index ranges of each split.

    definition: name -> [start, end] (dates, inclusive) or {"segments": [ids]}; None: the first 70 % of the times are ``train``, the next
    15 % ``validation``, the rest ``test``.  times: seconds [T].  labels: segment of each time [T].
    Raises WxlabError for unknown names, empty splits and splits that share times.
    """
    if definition is None:
        edges = [0, max(1, round(0.7 * len(times))), max(1, round(0.85 * len(times))), len(times)]
        return {name: [(a, b)] for name, a, b in zip(SPLITS, edges[:-1], edges[1:], strict=True) if b > a}
    owner = np.full(len(times), -1)
    result: Ranges = {}
    for name, value in definition.items():
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        selected = _select(name, value, times, labels)
        if not selected.any():
            span = f"the data run from {time_text(times[0])} to {time_text(times[-1])} with segments {labels.min()} to {labels.max()}"
            raise WxlabError(f"split {name!r} ({value}) holds no time; {span}")
        shared = np.flatnonzero(selected & (owner >= 0))
        if len(shared):
            other = list(definition)[owner[shared[0]]]
            raise WxlabError(
                f"splits {other!r} and {name!r} share {len(shared)} times, the first at {time_text(times[shared[0]])}; "
                "let each time belong to one split only"
            )
        owner[selected] = list(definition).index(name)
        result[name] = ranges_of(selected)
    if "train" not in result:
        raise WxlabError("the splits name no 'train'; statistics and climatology come from it, so give one")
    return result


def present(definition: Mapping[str, Any], labels: np.ndarray) -> dict[str, Any]:
    """A source's own splits by segments, less the segments that a selection of times has left out."""
    kept = {}
    for name, value in definition.items():
        if isinstance(value, Mapping):
            value = {"segments": [number for number in value["segments"] if number in labels]}
        if not isinstance(value, Mapping) or value["segments"]:
            kept[name] = value
    return kept


def _select(name: str, value: Any, times: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if isinstance(value, Mapping):
        if set(value) != {"segments"}:
            raise WxlabError(f"split {name!r} is {dict(value)}; give [start, end] or {{'segments': [...]}}")
        wanted = np.atleast_1d(value["segments"])
        absent = sorted(set(wanted.tolist()) - set(labels.tolist()))
        if absent:
            present = sorted(set(labels.tolist()))
            shown = ", ".join(map(str, present[:10])) + (", ..." if len(present) > 10 else "")
            raise WxlabError(f"split {name!r} names segments {absent} that the data do not have (they have {shown})")
        return np.isin(labels, wanted)
    start, end = interval(value, f"split {name!r}")
    return (seconds(times) >= start) & (seconds(times) <= end)


def mask_of(ranges: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """True [length] inside the ranges."""
    inside = np.zeros(length, dtype=bool)
    for start, stop in ranges:
        inside[start:stop] = True
    return inside
