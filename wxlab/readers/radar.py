"""Radar composites as netCDF files or zarr stores with time, y and x: rain rates or reflectivity.

Like the drivers ``netcdf`` and ``zarr``, and besides the option ``missing`` says what becomes of files that cannot be opened, of frames
that cannot be read, and of up to two frames missing in a row: ``error`` (one sentence) or ``mask`` (frames of missing values).  A longer
gap ends an event, a ``segment``.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.readers import netcdf, zarr
from wxlab.readers.frames import gap_text, missing_option, without_gaps
from wxlab.readers.source import Piece, Request, local_files
from wxlab.readers.uniform import uniform
from wxlab.splits import regular_step


def open_whole(request: Request) -> xr.Dataset:
    """The composites as one dataset in uniform names, without gaps inside an event."""
    mask = missing_option(request) == "mask"
    dataset = uniform(request, _pieces(request, mask))
    if "time" not in dataset.dims:
        raise request.error("it has no time axis; radar sequences need one")
    seconds = dataset["time"].values.astype("datetime64[s]").astype(np.int64)
    if len(seconds) < 2:
        return dataset
    times, segment = without_gaps(seconds, regular_step(seconds))
    absent = times[~np.isin(times, seconds)]
    if len(absent) and not mask:
        raise request.error(gap_text(absent))
    whole = dataset.reindex(time=times.astype("datetime64[s]").astype("datetime64[ns]")) if len(absent) else dataset
    return whole.assign_coords(segment=("time", segment))


def _pieces(request: Request, mask: bool) -> list[Piece]:
    stores = [uri for uri in request.uris if uri.rstrip("/").endswith(".zarr")]
    if stores:
        return zarr.open_pieces(request)
    pieces, failures = [], []
    for path in local_files(request):
        try:
            pieces.append(netcdf.open_file(request, path))
        except WxlabError as error:
            failures.append(error)
            if not mask:
                raise WxlabError(f"{error}; or pass options={{'missing': 'mask'}}") from None
    if not pieces:
        raise failures[0]
    return pieces
