"""The paper's channels and grids, and the authors' statistics files as normalisers.

Order of the 84 channels: six variables on thirteen levels, then six of the surface; five static fields follow them.
"""

from __future__ import annotations

import json
import os
from calendar import monthrange
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wxlab.channels import split_channel
from wxlab.errors import WxlabError, is_number, unknown
from wxlab.grids import Grid
from wxlab.normaliser import Normaliser, Policy, Transform

SST = "sea_surface_temperature"
RAIN = "total_precipitation_6hr"
LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
UPPER = ("geopotential", "specific_humidity", "temperature", "u_component_of_wind", "v_component_of_wind", "vertical_velocity")
SURFACE = ("10m_u_component_of_wind", "10m_v_component_of_wind", "2m_temperature", "mean_sea_level_pressure", SST, RAIN)
CHANNELS = (*(f"{name}_{level}" for name in UPPER for level in LEVELS), *SURFACE)
STATIC = (
    "land_sea_mask", "standard_deviation_of_orography",
    *(f"{kind}_of_sub_gridscale_orography" for kind in ("angle", "anisotropy", "slope")),
)  # fmt: skip
SIXTH = "geopotential_at_surface"  # a static field more, of the autoencoder with 1024 latent channels
# of the files that the authors ship, over the rows from 88.5° south to the north pole, unweighted, standard deviation unbiased
_STATIC_UNITS = dict(
    zip(
        STATIC,
        zip((0.331487, 20.45622, 0.521783, 0.160468, 0.00346316), (0.448312, 52.43335, 0.421428, 0.233940, 0.00882984), strict=True),
        strict=True,
    )
)
GRID = Grid(tuple(-88.5 + 1.5 * i for i in range(120)), tuple(1.5 * i for i in range(240)))  # 1.5 degrees without the south pole
LATENT_GRID = Grid(tuple(-83.25 + 12.0 * i for i in range(15)), tuple(5.25 + 12.0 * i for i in range(30)))
MISSING = -2.0  # stands for a missing sea surface temperature, normalised


def read_statistics(
    source: str | os.PathLike[str] | Mapping[str, Any],
    channels: Sequence[str] = CHANNELS,
    static: Sequence[str] = (),
    static_fields: np.ndarray | None = None,
) -> Normaliser:
    """The normaliser of the authors' statistics file: z-scores; missing sea surface temperature is -2 and masked, missing rain 0.

    source: JSON path, or what is in it: {variable: {"mean": m, "std": s}}, for level variables {"mean": {"500": m, ...}, ...}. The
    files as they are written, with several objects one after the other, are read as one.
    channels, static: names.  static_fields: [S, H, W] on the model's grid, whose own mean and unbiased standard deviation the authors
    take; None: the numbers of the fields that they ship.
    Raises WxlabError naming a channel that the statistics lack.
    """
    values = _read_json(source)
    transforms = {name: _transform(values, name) for name in channels}
    for i, name in enumerate(static):
        if static_fields is not None:
            field = np.asarray(static_fields[i], dtype=np.float64)
            transforms[name] = Transform("zscore", float(field.mean()), float(field.std(ddof=1)))
        elif name in _STATIC_UNITS:
            transforms[name] = Transform("zscore", *_STATIC_UNITS[name])
        else:
            transforms[name] = _transform(values, name)
    policies: dict[str, Policy] = {}
    fills: dict[str, float] = {}
    if SST in channels:
        policies[SST], fills[SST] = "mask", transforms[SST].offset + MISSING * transforms[SST].scale
    if RAIN in channels:
        policies[RAIN], fills[RAIN] = "fill", 0.0
    return Normaliser(transforms, policies, fills)


def _transform(values: Mapping[str, Any], name: str) -> Transform:
    variable, level = split_channel(name)
    if variable not in values:
        raise unknown("channel of the statistics", name, values)
    numbers = []
    for kind in ("mean", "std"):
        found = values[variable].get(kind) if isinstance(values[variable], Mapping) else None
        if level is not None:
            if not isinstance(found, Mapping) or str(level) not in found:
                levels = ", ".join(found) if isinstance(found, Mapping) else "none"
                raise WxlabError(f"the statistics have no {kind} of {variable!r} at {level} hPa (levels: {levels}); give others")
            found = found[str(level)]
        if not isinstance(found, (int, float)) or not is_number(found):
            raise WxlabError(f"the {kind} of {name!r} in the statistics is {found!r}; a number is needed")
        numbers.append(float(found))
    return Transform("zscore", numbers[0], numbers[1])


def latent_statistics(source: str | os.PathLike[str] | Mapping[str, Any], channels: Sequence[str]) -> Normaliser:
    """The normaliser of latents from the authors' {"mean": [L], "std": [L]}, JSON path or dict.

    Their factor 0.5 (``sigma_data``) is the transformer's, not the normaliser's.
    Raises WxlabError when the statistics are those of another number of channels.
    """
    values = _read_json(source)
    columns = [column if isinstance(column := values.get(kind), (list, tuple)) else [] for kind in ("mean", "std")]
    means, stds = ([number for number in column if is_number(number)] for column in columns)
    if len(means) != len(channels) or len(stds) != len(channels):
        raise WxlabError(
            f"the latent statistics hold {len(means)} means and {len(stds)} standard deviations, and the model has {len(channels)} "
            "channels; give those of its own autoencoder"
        )
    return Normaliser({name: Transform("zscore", float(m), float(s)) for name, m, s in zip(channels, means, stds, strict=True)})


def evaluation_times(year: int = 2018, per_month: int = 10) -> np.ndarray:
    """Initial times of the paper's evaluation: 00 and 12 UTC of days spread over each month, datetime64 in seconds.

    Days ``round(linspace(1, days of the month, per_month, without the end))``, halves to even. 10 a month are the 240 of the
    evaluation, 2 a month the 48 of the validation in training.
    """
    times = []
    for month in range(1, 13):
        days = np.linspace(1, monthrange(year, month)[1], per_month, endpoint=False).round().astype(int)
        times += [np.datetime64(f"{year}-{month:02}-{day:02}T{hour:02}", "s") for day in days for hour in (0, 12)]
    return np.array(times)


def _read_json(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, (str, os.PathLike)):
        raise WxlabError(f"the statistics are a {type(source).__name__}; give the path of the authors' JSON, or what is in it as a dict")
    path = Path(source)
    try:
        text = path.read_text().strip()
    except OSError:
        raise WxlabError(f"there is no statistics file {path}; give the path of the authors' JSON") from None
    decoder, values = json.JSONDecoder(), {}
    try:
        while text:
            part, end = decoder.raw_decode(text)
            values.update(part)
            text = text[end:].strip()
    except (ValueError, TypeError):
        raise WxlabError(f"{path} is no JSON of statistics; give the authors' file, {{variable: {{'mean': ..., 'std': ...}}}}") from None
    return values
