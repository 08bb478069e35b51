"""Fields for tracking by name: a forecast or store on disk, a netCDF file, or an entry of the catalogue."""

from __future__ import annotations

import os
from pathlib import Path

import xarray as xr
import zarr

from wxlab.catalog import open_dataset
from wxlab.errors import WxlabError
from wxlab.splits import interval
from wxlab.store import open_store


def open_fields(
    source: str, *, catalog: str | os.PathLike[str] | None = None, time: tuple[str | None, str | None] = (None, None)
) -> xr.Dataset:
    """Open fields lazily.

    source: the path of a prepared store, of a zarr or netCDF file of states or forecasts, or the name of a catalogue entry.
    time: first and last (initial) time, both included; None is an open end.
    Raises WxlabError when there is neither a file nor an entry, for files that cannot be read and when no time is left.
    """
    path = Path(source)
    data = _open(path) if path.exists() else _entry(source, catalog)
    if time != (None, None) and "time" in data.dims:
        first, last = interval(time, "time")
        stamps = data["time"].values.astype("datetime64[s]").astype("int64")
        data = data.isel(time=(stamps >= first) & (stamps <= last))
        if not data.sizes["time"]:
            raise WxlabError(f"{source} has no time from {time[0] or 'its begin'} to {time[1] or 'its end'}")
    return data


def _entry(name: str, catalog: str | os.PathLike[str] | None) -> xr.Dataset:
    if os.sep in name or Path(name).suffix in (".zarr", ".nc"):
        raise WxlabError(f"there is nothing at {name}; give a store, a zarr or netCDF file, or the name of a catalogue entry")
    return open_dataset(name, catalog=catalog)


def _open(path: Path) -> xr.Dataset:
    try:
        if path.is_file():
            return xr.open_dataset(path, engine="netcdf4", decode_timedelta=True, chunks={"time": 1})
        if "normaliser" in zarr.open_group(path, mode="r").attrs:
            return open_store(path).dataset()
        return xr.open_zarr(path, consolidated=False, decode_timedelta=True)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, WxlabError):
            raise
        raise WxlabError(f"{path} cannot be read as a store, zarr or netCDF file") from None
