"""Thresholds of events, in the unit of the variable: the sets of published nowcasting work by name, or numbers of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wxlab.errors import WxlabError, unknown

VIL = "vertically_integrated_liquid_8bit"
Thresholds = str | float | Sequence[float] | Mapping[str, "str | float | Sequence[float]"]
DataRange = tuple[float, float] | Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Levels:
    """Thresholds of a variable, and the range that its pictures show from black to white."""

    thresholds: tuple[float, ...]
    data_range: tuple[float, float] | None = None


def _from_pixels(pixels: Iterable[int], low: float, high: float) -> Levels:
    """Thresholds on 8-bit pixels in dBZ."""
    return Levels(tuple(low + (high - low) * pixel / 255 for pixel in pixels), (low, high))


# SEVIR: Veillette et al. 2020. HKO-7: Shi et al. 2017, 0.5, 2, 5, 10, 30 mm/h and the pixels that stand for them by Z = 58.53 R^1.56.
# MeteoNet: the pixels that DiffCast (Yu et al. 2024) and STLDM score, 12.1, 17.6, 23.9, 32.1 dBZ.
SETS: dict[str, dict[str, Levels]] = {
    "sevir": {VIL: Levels((16.0, 74.0, 133.0, 160.0, 181.0, 219.0), (0.0, 255.0))},
    "hko7": {
        "reflectivity": _from_pixels((84, 117, 140, 158, 185), -10.0, 60.0),
        "rain_rate": Levels((0.5, 2.0, 5.0, 10.0, 30.0)),
    },
    "meteonet": {"reflectivity": _from_pixels((44, 64, 87, 117), 0.0, 70.0)},
}


def limits(thresholds: Sequence[float]) -> np.ndarray:
    """From where on a value is an event, x ≥ threshold: lower by a millionth, for what rounding to float32 has put just below it."""
    values = np.asarray(thresholds, dtype=np.float64)
    return values - 1e-6 * np.abs(values)


def thresholds_of(variable: str, thresholds: Thresholds | None) -> tuple[float, ...]:
    """Thresholds of a variable, ascending.

    thresholds: the name of a set (sevir, hko7, meteonet), numbers in the unit of the variable, or either by variable.
    Raises WxlabError for an unknown set, a set without the variable, and for what are no numbers.
    """
    if thresholds is None:
        raise WxlabError("scores of events need thresholds; give thresholds='sevir', 'hko7', 'meteonet', or numbers in the variable's unit")
    if isinstance(thresholds, Mapping):
        if variable not in thresholds:
            raise WxlabError(
                f"thresholds has nothing for {variable!r}, only for {', '.join(map(str, thresholds))}; add it, or score the others alone"
            )
        return thresholds_of(variable, thresholds[variable])
    if isinstance(thresholds, str):
        return _set(thresholds, variable).thresholds
    numbers = np.atleast_1d(np.asarray(thresholds))
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not numbers.size or not np.isfinite(numbers).all() or numbers.size > 254:
        raise WxlabError(f"thresholds={thresholds!r} are no numbers; give one or more in the unit of {variable!r}, or the name of a set")
    return tuple(np.unique(numbers.astype(np.float64)).tolist())


def data_range_of(variable: str, data_range: DataRange | None, thresholds: Thresholds | None) -> tuple[float, float]:
    """What becomes 0 and 1 where fields are scored as pictures: given, or that of the named set, or 0..255 of 8-bit values.

    Raises WxlabError when neither says it, and for limits that are not in order.
    """
    given = data_range.get(variable) if isinstance(data_range, Mapping) else data_range
    if isinstance(thresholds, Mapping):
        thresholds = thresholds.get(variable)
    if given is None and isinstance(thresholds, str):
        given = _set(thresholds, variable).data_range
    if given is None and variable == VIL:
        given = SETS["sevir"][VIL].data_range
    if given is None:
        raise WxlabError(f"scores of pictures need to know which values of {variable!r} are black and white; give data_range=(low, high)")
    limits = np.asarray(given)
    if limits.shape != (2,) or limits.dtype.kind not in "iuf" or not np.isfinite(limits).all() or not limits[0] < limits[1]:
        raise WxlabError(f"data_range={given!r} must be two numbers, the lower first")
    return float(limits[0]), float(limits[1])


def _set(name: str, variable: str) -> Levels:
    if name not in SETS:
        raise unknown("set of thresholds", name, SETS)
    if variable not in SETS[name]:
        raise WxlabError(
            f"the thresholds {name!r} are for {', '.join(SETS[name])} and not for {variable!r}; give numbers in its unit, or another set"
        )
    return SETS[name][variable]
