"""The published channels and grid, and the authors' files of statistics and static fields."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wxlab.channels import split_channel
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.normaliser import Normaliser, Transform

LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
UPPER = ("geopotential", "specific_humidity", "temperature", "u_component_of_wind", "v_component_of_wind", "vertical_velocity")
SURFACE = ("2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure")
CHANNELS = (*SURFACE, *(f"{name}_{level}" for name in UPPER for level in LEVELS))
STATIC = ("geopotential_at_surface", "land_sea_mask", "soil_type")
GRID = Grid.regular(121, 240)
Arrays = str | os.PathLike[str] | Mapping[str, Any]


def read_statistics(source: Arrays, channels: Sequence[str] = CHANNELS, static: Sequence[str] = ()) -> Normaliser:
    """The normaliser of the authors' ``norm_stats_*.npz``: z-scores by ``state_mean`` and ``state_std``.

    source: the file, or its arrays by name. ``residual_mean`` and ``residual_std`` are in some files and in no use: the model writes
    states.  channels: their names, in the order of the file.  static: fields that the model standardises by itself.
    Raises WxlabError for a file without these arrays, or with other numbers of channels.
    """
    arrays = _arrays(source, ("state_mean", "state_std"), "statistics")
    means, stds = (np.asarray(arrays[name], np.float64).ravel() for name in ("state_mean", "state_std"))
    if not len(means) == len(stds) == len(channels):
        raise WxlabError(f"the statistics have {len(means)} means and {len(stds)} standard deviations for {len(channels)} channels")
    transforms = {name: Transform("zscore", float(m), float(s)) for name, m, s in zip(channels, means, stds, strict=True)}
    return Normaliser({**transforms, **{name: Transform("none") for name in static}})


def read_static(source: Arrays, grid: Grid = GRID) -> np.ndarray:
    """The authors' ``static_vars.npz`` on a grid: float32 [3, H, W], in the order of ``STATIC``.

    source: the file, or its arrays by name: ``data`` (longitude, latitude, 3), ``latitude``, ``longitude``. Latitudes and longitudes are
    found by their values, so the orders of the axes and of the points do not matter.
    Raises WxlabError for a file without these arrays, and one that lacks points of the grid.
    """
    arrays = _arrays(source, ("data", "latitude", "longitude"), "static fields")
    data, latitude, longitude = (np.asarray(arrays[name]) for name in ("data", "latitude", "longitude"))
    lengths = (len(longitude), len(latitude))
    if data.shape == (*lengths[::-1], len(STATIC)):
        data = data.transpose(1, 0, 2)
    if data.shape != (*lengths, len(STATIC)):
        raise WxlabError(f"the static fields have the shape {data.shape}; they must be (longitude, latitude, 3), here {(*lengths, 3)}")
    rows = _positions(latitude, np.asarray(grid.y), "latitudes")
    columns = _positions(longitude % 360, np.asarray(grid.x) % 360, "longitudes")
    return np.ascontiguousarray(data[columns][:, rows].transpose(2, 1, 0), dtype=np.float32)


def _positions(have: np.ndarray, want: np.ndarray, what: str) -> np.ndarray:
    """Where each value of ``want`` is in ``have``."""
    nearest = np.abs(have[None, :] - want[:, None]).argmin(1)
    if not np.allclose(have[nearest], want, atol=1e-3):
        raise WxlabError(f"the static fields have {len(have)} {what} from {have[0]:g} to {have[-1]:g}, not those of the model's grid")
    return nearest


def _arrays(source: Arrays, names: Sequence[str], what: str) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        found: Mapping[str, Any] = source
    else:
        path = Path(source)
        if not path.is_file():
            raise WxlabError(f"there is no file of {what} {path}; give the authors' .npz file")
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except (ValueError, OSError, zipfile.BadZipFile, AttributeError):
            raise WxlabError(f"{path} cannot be read as a file of {what}; give the authors' .npz file") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise WxlabError(f"the {what} lack {', '.join(missing)}; found {', '.join(found) or 'nothing'}")
    return found


def level_weights(channels: Sequence[str]) -> np.ndarray:
    """Weights of channels as in GraphCast: 1 for ``2m_temperature``, 0.1 for other surface variables, levels by their pressure: [C].

    Those of one variable's levels have mean 1. Ours: the paper's own weights are not known.
    Reference: Lam et al. 2023, doi:10.1126/science.adi2336, supplement 4.2.
    """
    split = [split_channel(name) for name in channels]
    weights = np.empty(len(split))
    for i, (variable, level) in enumerate(split):
        if level is None:
            weights[i] = 1.0 if variable == "2m_temperature" else 0.1
        else:
            weights[i] = level / np.mean([other for name, other in split if name == variable and other is not None])
    return weights
