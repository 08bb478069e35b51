"""The one error that users see: what was given, what is allowed, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches


class WxlabError(ValueError):
    """A mistake in what was asked for. The message is one clear sentence; the command line prints it without a traceback."""


def unknown(kind: str, given: object, allowed: Iterable[object], do: str = "") -> WxlabError:
    """The error for a name that does not exist: what was given, the nearest name, what is allowed."""
    names = sorted(str(name) for name in allowed)
    close = get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    listing = ", ".join(names) if names else "none"
    return WxlabError(f"unknown {kind} {str(given)!r}{hint} (allowed: {listing}){'; ' + do if do else ''}")


def is_number(value: object) -> bool:
    """Whether a setting is a finite number; True, False and text are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, least: int = 1) -> bool:
    """Whether a setting is a whole number of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
