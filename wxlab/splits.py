"""Splits and segments: which times belong to training, validation and test, and which follow one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wxlab.errors import WxlabError, unknown

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


def span_text(seconds: float) -> str:
    """``6 h``, or ``5 min`` where hours would not be whole."""
    return f"{seconds / 3600:g} h" if seconds % 3600 == 0 else f"{seconds / 60:g} min"


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


def resolve_splits(
    definition: Mapping[str, Any] | None, times: np.ndarray, labels: np.ndarray, sources: np.ndarray | None = None
) -> Ranges:
    """Index ranges of each split.

    definition: name -> [start, end] (dates, inclusive), a list of such pairs, {"segments": [ids]}, {"sources": [names]}, or a number:
    that share of the times that no other split names, taken in the order of time within each source (tiles and members that share
    times stay together).  None: shares of 0.7, 0.15 and 0.15.  times: true times in seconds [T].  labels: segment of each time [T].
    sources: name of the source of each time [T], where there are several.
    No window crosses the end of a split, so that two splits never share a frame; leave a gap in the dates to keep them further apart.
    Raises WxlabError for unknown names, empty splits and splits that share times.
    """
    strict = definition is not None
    definition = {"train": 0.7, "validation": 0.15, "test": 0.15} if definition is None else definition
    names = list(definition)
    owner = np.full(len(times), -1)
    for i, (name, value) in enumerate(definition.items()):
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        if _is_share(value):
            continue
        selected = _select(name, value, times, labels, sources)
        shared = np.flatnonzero(selected & (owner >= 0))
        if len(shared):
            raise WxlabError(
                f"splits {names[owner[shared[0]]]!r} and {name!r} share {len(shared)} times, the first at {time_text(times[shared[0]])}; "
                "let each time belong to one split only"
            )
        owner[selected] = i
    _share_out({i: float(definition[name]) for i, name in enumerate(names) if _is_share(definition[name])}, owner, times, sources)
    result = {name: ranges_of(owner == i) for i, name in enumerate(names) if (owner == i).any()}
    for name in names if strict else []:
        if name not in result:
            span = f"the data run from {time_text(times.min())} to {time_text(times.max())} with segments {labels.min()} to {labels.max()}"
            raise WxlabError(f"split {name!r} ({definition[name]}) holds no time; {span}")
    if "train" not in result:
        raise WxlabError("the splits name no 'train'; statistics and climatology come from it, so give one")
    return result


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _share_out(shares: Mapping[int, float], owner: np.ndarray, times: np.ndarray, sources: np.ndarray | None) -> None:
    """Give the times that have no owner yet to the splits by number, source by source, in the order of time."""
    if not shares:
        return
    if min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
        given = ", ".join(f"{share:g}" for share in shares.values())
        raise WxlabError(f"splits are the shares {given} of the times; give numbers above 0 that add up to 1 at most")
    groups = np.unique(np.zeros(len(times)) if sources is None else sources, return_inverse=True)[1].reshape(-1)
    free = owner < 0
    for group in np.unique(groups[free]):
        mine = free & (groups == group)
        distinct, rank = np.unique(times[mine], return_inverse=True)
        edges = np.maximum(1, np.round(np.cumsum(list(shares.values())) * len(distinct)))
        place = np.searchsorted(edges, rank.reshape(-1), side="right")
        owner[mine] = np.append(list(shares), -1)[place]


def present(definition: Mapping[str, Any], labels: np.ndarray) -> dict[str, Any]:
    """A source's own splits by segments, less the segments that a selection of times has left out."""
    kept = {}
    for name, value in definition.items():
        if isinstance(value, Mapping):
            value = {"segments": [number for number in value["segments"] if number in labels]}
        if not isinstance(value, Mapping) or value["segments"]:
            kept[name] = value
    return kept


def _select(name: str, value: Any, times: np.ndarray, labels: np.ndarray, sources: np.ndarray | None) -> np.ndarray:
    if isinstance(value, Mapping):
        if len(value) != 1 or not set(value) <= {"segments", "sources"}:
            allowed = "give [start, end] or {'segments': [...]}, {'sources': [...]} or a share"
            raise WxlabError(f"split {name!r} is {dict(value)}; {allowed}")
        ((kind, wanted),) = value.items()
        there = labels if kind == "segments" else np.array([""]) if sources is None else sources
        wanted = np.atleast_1d(wanted)
        absent = sorted(set(wanted.tolist()) - set(there.tolist()))
        if absent:
            present = sorted(set(there.tolist()))
            shown = ", ".join(map(str, present[:10])) + (", ..." if len(present) > 10 else "")
            raise WxlabError(f"split {name!r} names {kind} {absent} that the data do not have (they have {shown or 'one'})")
        return np.isin(there, wanted)
    several = isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(part, (list, tuple)) for part in value)
    inside = np.zeros(len(times), dtype=bool)
    for part in value if several else [value]:
        start, end = interval(part, f"split {name!r}")
        inside |= (times >= start) & (times <= end)
    return inside


def mask_of(ranges: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """True [length] inside the ranges."""
    inside = np.zeros(length, dtype=bool)
    for start, stop in ranges:
        inside[start:stop] = True
    return inside


def half_of(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half of the pieces of a split ([start, stop) each): every second one, so that seasons stay; of a last odd one its later half."""
    odd = pieces[-1:] if len(pieces) % 2 else []
    return [*pieces[1::2], *(((start + stop) // 2, stop) for start, stop in odd)]
