"""Units as text: whether two spellings mean the same. No conversion; that is declared in the catalogue."""

from __future__ import annotations

import re

_SPELLINGS = {
    "K": "k kelvin degk",
    "degC": "c degc celsius degreesc",
    "Pa": "pa pascal pascals",
    "hPa": "hpa mb mbar millibar millibars",
    "m": "m metre metres meter meters gpm",
    "mm": "mm",
    "cm": "cm",
    "dam": "dam gpdam",
    "km": "km",
    "s": "s sec second seconds",
    "h": "h hr hour hours",
    "day": "day days d",
    "kg": "kg",
    "g": "g",
    "J": "j joule",
    "W": "w watt",
    "%": "% percent",
    "kt": "kt knot knots",
}
_ALIASES = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_ONE = {"1", "(0 - 1)", "0-1", "-", "dimensionless", "fraction", "~"}


def parse(text: str) -> dict[str, int] | None:
    """``m s**-1``, ``m s-1`` and ``m/s`` -> {m: 1, s: -1}; None when a part is not known."""
    text = text.strip()
    if text in _ONE:
        return {}
    powers: dict[str, int] = {}
    sign = 1
    for token in re.findall(r"/|[^\s/*^.]+(?:(?:\*\*|\^)?-?\d+)?", text.replace("degrees C", "degC")):
        if token == "/":
            sign = -1
            continue
        match = re.fullmatch(r"([A-Za-z%]+)(?:(?:\*\*|\^)?(-?\d+))?", token)
        if match is None and token == "1":
            continue
        name = _ALIASES.get(match[1].lower()) if match else None
        if match is None or name is None:
            return None
        powers[name] = powers.get(name, 0) + sign * int(match[2] or 1)
    return {name: power for name, power in powers.items() if power}


def differ(given: str, wanted: str) -> bool:
    """Whether both are understood and mean different units; a file that says nothing is believed."""
    one, other = parse(given), parse(wanted)
    return bool(given.strip()) and one is not None and other is not None and one != other


def power(text: str, exponent: int) -> str:
    """A unit to a power: ``m2 s-2`` squared is ``m4 s-4``; what is not understood stands in brackets."""
    parts = parse(text)
    if exponent == 0 or parts == {}:
        return "1"
    if exponent == 1:
        return text
    if parts is None:
        return f"{text}{exponent}" if text.isalpha() else f"({text}){exponent}"
    return " ".join(f"{name}{count * exponent}" if count * exponent != 1 else name for name, count in parts.items())
