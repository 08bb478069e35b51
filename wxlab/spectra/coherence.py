"""How much of the truth a forecast has in the right place, at each scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.spectra.harmonics import degree_sums, highest_degree, scalar_coefficients
from wxlab.spectra.pieces import by_pieces
from wxlab.spectra.plane import PLANE, plane_steps, plane_waves, radial_coordinates, radial_means
from wxlab.spectra.sphere import SPHERE, by_degree, on_sphere

LEAD = "prediction_timedelta"


def coherence(
    forecast: xr.DataArray, truth: xr.DataArray, *, over: Sequence[str] = ("time", "number"), spacing: float | None = None
) -> xr.DataArray:
    """Correlation of forecast and truth at each degree of spherical harmonics, or on a plane in each ring of wavenumbers.

    γ(l) = Σ f_lm t*_lm / √(Σ |f_lm|² Σ |t_lm|²), the sums over orders m and over the dimensions ``over``. 1: the same but for a factor;
    0: unrelated. γ² is the share of the truth's power that the forecast explains, however weak it is, where ``ratio`` looks at the power
    and not at places.

    forecast, truth: [..., latitude, longitude] or [..., y, x] of one grid. A forecast with lead times meets states at its valid times.
    over: dimensions of the forecast that are summed over, as far as it has them.  spacing: as for ``radial``.
    Returns [..., degree] or [..., wavenumber], −1 to 1; NaN where one has no power, and for fields with a missing point.
    Raises WxlabError for different grids, for valid times that the truth lacks, and for levels or members that differ.
    Reference: Simons et al. 1997, doi:10.1111/j.1365-246X.1997.tb00594.x, eq. 3 (there of gravity and topography).
    """
    for name, array in (("forecast", forecast), ("truth", truth)):
        if not isinstance(array, xr.DataArray):
            raise WxlabError(f"the {name} is a {type(array).__name__}; give one variable of it, a DataArray")
    truth = _at_valid_times(forecast, truth)
    plane = {"y", "x"} <= set(forecast.dims)
    core = PLANE if plane else SPHERE
    if plane:
        steps = plane_steps(forecast, spacing)
        coordinates = radial_coordinates((forecast.sizes["y"], forecast.sizes["x"]), steps)
        name, length = "wavenumber", len(coordinates["modes"][1])
    else:
        (forecast, grid), (truth, _) = on_sphere(forecast), on_sphere(truth)
        name, length = "degree", highest_degree(grid) + 1
    _require_alike(forecast, truth)

    def products(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        if plane:
            one, two = plane_waves(ours), plane_waves(theirs)
            found = [radial_means(*pair, steps) for pair in ((one, one), (two, two), _broadcast(one, two))]
        else:
            one, two = scalar_coefficients(ours, grid), scalar_coefficients(theirs, grid)
            found = [degree_sums(one), degree_sums(two), degree_sums(one, two)]
        return np.stack(np.broadcast_arrays(*found), axis=-2)

    leading = [dim for dim in forecast.dims if dim not in core]
    truth = truth.drop_vars([coord for coord in truth.coords if coord not in truth.dims]).assign_coords(
        {dim: forecast[dim] for dim in core if dim in forecast.coords}
    )
    sums = by_pieces(products, forecast, truth, core=core, out={"product": 3, name: length}).transpose(*leading, "product", name)
    sums = sums.sum([dim for dim in over if dim in leading], skipna=False)
    ours, theirs, both = (sums.isel(product=i) for i in range(3))
    size: xr.DataArray = (ours * theirs) ** 0.5
    gamma = (both / size.where(size > 0)).assign_attrs(units="1", long_name="coherence")
    return gamma.assign_coords(coordinates) if plane else by_degree(gamma, grid)


def _broadcast(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.broadcast_arrays(one, two)
    return first, second


def _at_valid_times(forecast: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """States [time, ...] as [time, prediction_timedelta, ...]; others as they are."""
    if LEAD not in forecast.coords or LEAD in truth.coords or "time" not in truth.dims or "time" not in forecast.coords:
        return truth
    times = np.atleast_1d(forecast["time"].values)
    valid = times[:, None] + np.atleast_1d(forecast[LEAD].values)
    places = truth.get_index("time").get_indexer(valid.ravel())
    if (places < 0).any():
        lost = valid.ravel()[places < 0]
        raise WxlabError(
            f"the truth lacks {len(set(lost.tolist()))} of the valid times, the first {str(lost.min())[:16]}; "
            "give states at all of them, or fewer lead times"
        )
    index = xr.DataArray(
        places.reshape(valid.shape), dims=("time", LEAD), coords={"time": times, LEAD: np.atleast_1d(forecast[LEAD].values)}
    )
    found = truth.drop_vars("time").isel(time=index)
    return found.isel({dim: 0 for dim in ("time", LEAD) if dim not in forecast.dims}, drop=True)


def _require_alike(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    """Raise WxlabError naming the first dimension that differs."""
    for dim in truth.dims:
        if dim not in forecast.dims:
            raise WxlabError(f"the truth has the dimension {dim!r} and the forecast has not; choose from it first")
        same = truth.sizes[dim] == forecast.sizes[dim]
        if same and dim in truth.coords and dim in forecast.coords:
            ours, theirs = forecast[dim].values, truth[dim].values
            same = np.allclose(ours, theirs, atol=1e-3) if dim in (*SPHERE, *PLANE) else bool(np.array_equal(ours, theirs))
        if not same:
            raise WxlabError(f"forecast and truth differ along {dim!r}; give both at the same places, times and levels")
