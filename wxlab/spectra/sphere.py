"""Spectra of fields and winds on the globe, by degree of spherical harmonics."""

from __future__ import annotations

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.grids import Grid, grid_of, is_global, is_periodic
from wxlab.readers.units import power as power_of_unit
from wxlab.spectra.harmonics import Array, degree_sums, highest_degree, scalar_coefficients, wind_coefficients
from wxlab.spectra.pieces import by_pieces

EARTH_RADIUS = 6.3675e6  # m, the mean of 6357 and 6378 km, as in WeatherBench 2
SPHERE = ("latitude", "longitude")
WINDS = (("u_component_of_wind", "v_component_of_wind"), ("10m_u_component_of_wind", "10m_v_component_of_wind"))


def power(field: xr.DataArray) -> xr.DataArray:
    """Power spectrum of fields on the globe by degree l of spherical harmonics.

    P(l) = Σ_m |a_lm|², with harmonics of mean square 1, so that Parseval's theorem reads Σ P(l) = area mean of f² (orthonormal harmonics
    have 4π times as much). Coefficients by Fourier transform along longitude and, for each order, least squares over latitudes weighted
    with their areas, up to degree L = rows − 2 (or what the columns know): exact for fields of no higher degree, on any rows.

    field: [..., latitude, longitude], the whole globe, evenly spaced columns.
    Returns [..., degree] in the square of the field's unit, degrees 0 ... L, with the coordinate wavelength, 2π a / l (metres).
    A field with a missing point has no spectrum: NaN.  Raises WxlabError for fields that are not on the whole globe.
    """
    field, grid = on_sphere(field)

    def spectrum(values: Array) -> Array:
        return degree_sums(scalar_coefficients(values, grid))

    units = power_of_unit(field.attrs["units"], 2) if "units" in field.attrs else None
    return by_degree(by_pieces(spectrum, field, core=SPHERE, out={"degree": highest_degree(grid) + 1}, units=units), grid)


def kinetic_energy(u: xr.DataArray | xr.Dataset, v: xr.DataArray | None = None) -> xr.DataArray:
    """Spectrum of the kinetic energy of horizontal winds by degree l, of the rotational and of the divergent wind.

    E(l) = a² / (2 l (l + 1)) Σ_m |ζ_lm|² for the vorticity ζ, the same with the divergence for the divergent wind; Σ E(l) over both is
    the area mean of (u² + v²) / 2. As the winds themselves are fitted, not their derivatives, poles need no care.

    u, v: eastward and northward wind [..., latitude, longitude], the whole globe; or a Dataset alone, with the components on levels or at
    10 m (the former, when it has both).
    Returns [..., part, degree] in the square of the wind's unit, part ``rotational`` and ``divergent`` (their sum is the kinetic
    energy), degrees 0 ... L as in ``power``.
    Raises WxlabError for a wind without its partner, not on the whole globe, or of different grids, times, levels or members.
    References: Lambert 1984, doi:10.1080/07055900.1984.9649206; Augier and Lindborg 2013, doi:10.1175/JAS-D-12-0281.1.
    """
    u, v = _pair(u, v)
    (east, grid), (north, other) = on_sphere(u), on_sphere(v)
    places = set(u.dims) & set(u.coords) & set(v.coords)
    if grid != other or dict(u.sizes) != dict(v.sizes) or not all(np.array_equal(u[dim], v[dim]) for dim in places):
        raise WxlabError("u and v lie on different grids or are of different times, levels or members; give both components of one wind")

    def spectrum(east: Array, north: Array) -> Array:
        return np.stack([degree_sums(each) / 2 for each in wind_coefficients(east, north, grid)], axis=-2)

    units = power_of_unit(u.attrs["units"], 2) if "units" in u.attrs else None
    out = {"part": 2, "degree": highest_degree(grid) + 1}
    energy = by_pieces(spectrum, east, north.drop_vars(set(north.coords) - set(north.dims)), core=SPHERE, out=out, units=units)
    return by_degree(energy.assign_coords(part=["rotational", "divergent"]), grid)


def _pair(u: xr.DataArray | xr.Dataset, v: xr.DataArray | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Both components of a wind."""
    if isinstance(u, xr.Dataset):
        if v is not None:
            raise WxlabError("kinetic_energy was given a Dataset and v; give a Dataset alone, or both components")
        for pair in WINDS:
            found = [name for name in pair if name in u]
            if len(found) == 2:
                return u[pair[0]], u[pair[1]]
            if found:
                lost = pair[1] if found[0] == pair[0] else pair[0]
                raise WxlabError(f"the Dataset has {found[0]!r} and not its partner {lost!r}; kinetic energy needs both components")
        raise WxlabError(f"the Dataset has {', '.join(map(str, u.data_vars)) or 'no variable'} and no wind; give u and v themselves")
    if v is None:
        raise WxlabError("the partner of the wind is missing; kinetic energy needs both components, u and v")
    return u, v


def on_sphere(field: xr.DataArray) -> tuple[xr.DataArray, Grid]:
    """A field on the whole globe with its columns from west to east, and its grid. Raises WxlabError for others."""
    field, grid = on_circles(field)
    if len(grid.y) < 3 or not is_global(grid):
        raise WxlabError("the latitudes do not reach from pole to pole; a spectrum on the globe needs all of them")
    return field, grid


def on_circles(field: xr.DataArray) -> tuple[xr.DataArray, Grid]:
    """A field on whole circles of latitude with its columns from west to east, and its grid. Raises WxlabError for others."""
    if not isinstance(field, xr.DataArray) or not set(SPHERE) <= set(field.dims):
        given = f"the dimensions {', '.join(map(str, field.dims))}" if isinstance(field, xr.DataArray) else f"a {type(field).__name__}"
        raise WxlabError(f"a spectrum on the globe needs a DataArray with the dimensions latitude and longitude, and was given {given}")
    grid = grid_of(field)
    if len(grid.x) < 4 or not is_periodic(grid):
        raise WxlabError("the longitudes do not go round the globe in even steps; give the whole globe on an even grid")
    if grid.x[0] < grid.x[-1]:
        return field, grid
    # the other way round, rotation and divergence would change places
    return field.isel(longitude=slice(None, None, -1)), Grid(grid.y, grid.x[::-1])


def by_degree(spectrum: xr.DataArray, grid: Grid) -> xr.DataArray:
    """A spectrum with the coordinates of its degrees."""
    degree = np.arange(highest_degree(grid) + 1)
    wavelength = np.divide(2 * np.pi * EARTH_RADIUS, degree, out=np.full(len(degree), np.inf), where=degree > 0)
    return spectrum.assign_coords(
        degree=("degree", degree, {"long_name": "degree"}), wavelength=("degree", wavelength, {"units": "m", "long_name": "wavelength"})
    )
