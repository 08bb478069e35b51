"""What the simulated weather is held to: jets, spectrum, persistence."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from dinosaur_torch import spherical_harmonic
from numpy.typing import NDArray

from wxlab.errors import WxlabError
from wxlab.simulate.constants import RADIUS


def jets(dataset: xr.Dataset, level: int = 250) -> dict[str, tuple[float, float]]:
    """Maximum of the zonal and time mean zonal wind (m/s) and its latitude (degrees) in each hemisphere."""
    wind = dataset["u_component_of_wind"].sel(level=level).mean(("time", "longitude")).load()
    found = {}
    for name, half in (("north", wind.where(wind.latitude > 0, drop=True)), ("south", wind.where(wind.latitude < 0, drop=True))):
        place = int(half.values.argmax())
        found[name] = (float(half[place]), float(half.latitude[place]))
    return found


def kinetic_energy_spectrum(dataset: xr.Dataset, level: int = 500, truncation: int = 21) -> NDArray[np.float64]:
    """Mean kinetic energy (m2/s2) per total wavenumber l = 0..truncation of the wind on a level.

    E(l) = a^2 / (2 l (l + 1)) sum_m (|zeta_lm|^2 + |delta_lm|^2) / (4 pi), harmonics of unit norm on the unit sphere.
    """
    rows, columns = dataset.sizes["latitude"], dataset.sizes["longitude"]
    if rows % 2:
        raise WxlabError(f"the grid has {rows} rows, poles among them; this spectrum needs an even number of rows")
    spec = spherical_harmonic.GridSpec(truncation + 1, truncation + 2, columns, rows, "equiangular", radius=RADIUS)
    grid = spherical_harmonic.Grid(spec)
    wind = [
        torch.tensor(dataset[f"{name}_component_of_wind"].sel(level=level).transpose("time", "longitude", "latitude").values)
        for name in ("u", "v")
    ]
    vorticity, divergence = grid.uv_nodal_to_vor_div_modal(*wind)
    power = (vorticity.double() ** 2 + divergence.double() ** 2).sum(-2).mean(0).numpy()[: truncation + 1]
    degree = np.arange(truncation + 1)
    energy: NDArray[np.float64] = np.zeros(truncation + 1)
    energy[1:] = RADIUS**2 * power[1:] / (2 * degree[1:] * (degree[1:] + 1)) / (4 * np.pi)
    return energy


def spectral_slope(energy: NDArray[np.float64], first: int = 8, last: int = 17) -> float:
    """Slope of log energy over log total wavenumber, by least squares."""
    degree = np.arange(first, last + 1)
    return float(np.polyfit(np.log(degree), np.log(energy[first : last + 1]), 1)[0])


def lag_correlation(field: xr.DataArray) -> float:
    """Correlation of anomalies (from the mean of their segment at each point) with themselves one state later, area weighted."""
    weight = np.cos(np.deg2rad(field.latitude))
    product = variance = 0.0
    for _, part in field.groupby("segment"):
        anomaly = part.transpose("time", "latitude", "longitude") - part.mean("time")
        here, later = anomaly.values[:-1], anomaly.values[1:]
        area = weight.values[None, :, None]
        product += float((area * here * later).sum())
        variance += float((area * (here**2 + later**2)).sum()) / 2
    return product / variance
