"""What counts as a cyclone and as a track: the criteria, their presets, and how any of them is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from wxlab.errors import WxlabError, is_number, unknown


@dataclass(frozen=True)
class Criteria:
    """The recipe of TempestExtremes by name. The defaults are those of Ullrich et al. 2021, section 3.3.

    Distances are great-circle degrees, pressures Pa, winds m/s, times hours.

    Detection: a candidate is a local minimum of the mean sea-level pressure, and
    contour_depth, contour_radius: the pressure rises by so much on every way out before it is that far away.
    warm_core, warm_core_radius, warm_core_offset, warm_core_levels: the thickness between the levels (m²/s², of geopotential) falls
        by so much within the radius around its maximum, which is looked for within the offset; 0: not asked.
    candidate_wind: what the 10 m wind within ``wind_radius`` reaches at least; 0: not asked.
    candidate_vorticity, vorticity_level: what the cyclonic vorticity (1/s) there reaches at least on a level (hPa); 0: not asked.
    merge_distance: of minima nearer to each other only the deepest stays.
    ridge: two minima nearer than that both stay where a ridge so much above the shallower one lies between them; 0: never.
    cells: all radii and ``range`` are at least so many rows of the grid.

    Stitching: from one time to the next a track goes to the candidate nearest to where its motion leads, and
    range: so far from its last record; where the data's steps are longer than six hours, so much more as they are longer.
    gap: without a candidate for so long at most.
    duration: at least so long from its first to its last record.
    wind, wind_hours; latitude, latitude_hours; height, height_hours: for so long with at least this wind, within this many degrees
        of the equator, over ground below this height (m). A count of n six-hourly records is written as 6 (n - 1) hours.
        0 hours mean one record.
    genesis_latitude: first seen within this many degrees of the equator.
    """

    contour_depth: float = 200.0
    contour_radius: float = 5.5
    warm_core: float = 58.8
    warm_core_radius: float = 6.5
    warm_core_offset: float = 1.0
    warm_core_levels: tuple[float, float] = (300.0, 500.0)
    wind_radius: float = 2.0
    candidate_wind: float = 0.0
    candidate_vorticity: float = 0.0
    vorticity_level: float = 850.0
    merge_distance: float = 6.0
    ridge: float = 0.0
    cells: float = 0.0
    range: float = 8.0
    gap: float = 24.0
    duration: float = 54.0
    wind: float = 10.0
    wind_hours: float = 54.0
    latitude: float = 50.0
    latitude_hours: float = 54.0
    height: float = 150.0
    height_hours: float = 54.0
    genesis_latitude: float = 90.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "warm_core_levels":
                if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2 or not all(map(is_number, value)):
                    raise WxlabError(f"warm_core_levels is {value!r}; give two levels in hPa, the upper first, such as (300, 500)")
                if not 0 < value[0] < value[1]:
                    raise WxlabError(f"warm_core_levels is {value!r}; the first must lie above the second, such as (300, 500)")
                object.__setattr__(self, item.name, (float(value[0]), float(value[1])))
            elif not is_number(value) or value < 0:
                raise WxlabError(f"{item.name} is {value!r}; it must be a number of at least 0")
        for name in ("contour_depth", "contour_radius", "range"):
            if getattr(self, name) <= 0:
                raise WxlabError(f"{name} is {getattr(self, name)!r}; it must be greater than 0")

    def at(self, spacing: float) -> Criteria:
        """The same with radii and range of at least ``cells`` rows of ``spacing`` degrees, and no radius below 1.5 rows."""
        least = self.cells * spacing
        if not least:
            return self
        names = ("contour_radius", "warm_core_radius", "merge_distance", "range")
        grown = {name: max(getattr(self, name), least) for name in names}
        grown |= {name: max(getattr(self, name), 1.5 * spacing) for name in ("wind_radius", "warm_core_offset")}
        return replace(self, **grown)


# what ``stitch`` asks for; all others are asked of candidates
STITCHING = (
    "range", "gap", "duration", "wind", "wind_hours", "latitude", "latitude_hours", "height", "height_hours", "genesis_latitude",
)  # fmt: skip

PUBLISHED = "tempest_ullrich2021"
PRESETS: dict[str, Criteria] = {
    # Ullrich et al. 2021, doi:10.5194/gmd-14-5023-2021
    PUBLISHED: Criteria(),
    # the same, but close pairs stay two, rotation is asked for where there are winds at 850 hPa, and storms begin in low latitudes
    "standard": Criteria(ridge=200.0, candidate_vorticity=5e-5, genesis_latitude=40.0, cells=2.2),
    # depth, rotation and wind as far as such grids resolve them
    "coarse": Criteria(
        contour_depth=150.0, warm_core=30.0, ridge=150.0, candidate_vorticity=2e-5, wind=8.0, genesis_latitude=40.0, cells=2.2
    ),
}
COARSE_FROM = 1.4  # degrees between rows


def criteria_for(preset: str | Criteria | None, spacing: float, **changes: Any) -> tuple[str, Criteria]:
    """The name and criteria of a preset (None: ``standard``, or ``coarse`` on grids of 1.4° and coarser) with some changed by name.

    Raises WxlabError for unknown presets and criteria, with the nearest name, and for values that mean nothing.
    """
    for name in changes:
        if name not in Criteria.__dataclass_fields__:
            raise unknown("criterion", name, Criteria.__dataclass_fields__)
    if isinstance(preset, Criteria):
        return "own", replace(preset, **changes)
    name = ("coarse" if spacing >= COARSE_FROM else "standard") if preset is None else preset
    if name not in PRESETS:
        raise unknown("preset of cyclone criteria", name, PRESETS, do="to follow one storm from where it is known to be use follow")
    return name, replace(PRESETS[name], **changes)
