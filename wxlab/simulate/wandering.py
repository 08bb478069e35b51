"""Tracks that go astray: a made-up ensemble whose truth and errors are known."""

from __future__ import annotations

import numpy as np
import xarray as xr

from wxlab.cyclones.layout import RECORD, check
from wxlab.cyclones.sphere import destination
from wxlab.errors import WxlabError, is_number, is_whole
from wxlab.forcings import seconds


def wander(track: xr.Dataset, *, members: int, km_per_day: float = 100.0, seed: int = 0) -> xr.Dataset:
    """Copies of one storm's track that drift away from it, as forecasts do.

    At the first record all are right. Then each member has an offset (east, north), a sum of independent normal steps whose standard
    deviation in both directions is ``km_per_day`` after a day and grows with the root of the time, added to a constant drift of the
    same size: near sqrt(2) ``km_per_day`` in distance after a day, and growing nearly with time.

    track: one storm along ``record`` with time, lon, lat; all else is copied.  members: how many.
    Returns tracks with ``number`` (0 ...), ``track_id`` the same, and ``offset`` (km), how far each record was moved.
    Raises WxlabError for several storms in one track.
    """
    track = check(track).sortby("time")
    if len(np.unique(track["track_id"].values)) != 1:
        raise WxlabError(f"track holds {len(np.unique(track['track_id'].values))} storms; give one")
    if not is_whole(members) or not is_number(km_per_day) or km_per_day < 0:
        raise WxlabError(f"members={members!r} must be a whole number of at least 1 and km_per_day={km_per_day!r} a number of at least 0")
    days = np.diff(seconds(track["time"].values), prepend=seconds(track["time"].values)[0]) / 86400
    random = np.random.default_rng(seed)
    copies = []
    for number in range(members):
        steps = random.standard_normal((2, len(days))) * np.sqrt(days) + random.standard_normal((2, 1)) * days
        east, north = km_per_day * steps.cumsum(1)
        offset = np.hypot(east, north)
        lat, lon = destination(track["lat"].values, track["lon"].values, np.rad2deg(np.arctan2(east, north)), offset)
        moved = {"lat": (RECORD, lat), "lon": (RECORD, lon), "offset": (RECORD, offset, {"units": "km"})}
        copies.append(track.assign({**moved, "number": (RECORD, np.full(len(days), number))}))
    return xr.concat(copies, RECORD)
