"""The mesh: known centres, another library's, equal areas, nesting, faults."""

from __future__ import annotations

import healpix
import numpy as np
import pytest
import torch

from wxlab.errors import WxlabError
from wxlab.healpix_mesh import centres, pixels, radians, unit_vectors

SIZES = (1, 2, 8, 64)


def test_the_twelve_base_pixels() -> None:
    """Four on the equator, four at sin lat = 2/3 on each side."""
    north = np.degrees(np.arcsin(2 / 3))
    expected = [(lon, north) for lon in (45, 135, 225, 315)]
    expected += [(lon, 0) for lon in (0, 90, 180, 270)]
    expected += [(lon, -north) for lon in (45, 135, 225, 315)]
    np.testing.assert_allclose(centres(1), expected, atol=1e-5)


@pytest.mark.parametrize("nside", [2**n for n in range(8)])
def test_centres_equal_another_librarys_bit_by_bit(nside: int) -> None:
    longitude, latitude = healpix.pix2ang(nside, np.arange(pixels(nside)), nest=True, lonlat=True)
    found = centres(nside)
    np.testing.assert_array_equal(found[:, 0], np.where(longitude < 0, longitude + 360, longitude).astype(np.float32))
    np.testing.assert_array_equal(found[:, 1], latitude.astype(np.float32))
    assert found.dtype == np.float32 and found[:, 0].min() >= 0 and found[:, 0].max() < 360


@pytest.mark.parametrize("nside", SIZES)
def test_pixels_cover_the_sphere_evenly(nside: int) -> None:
    """Equal areas: plain means are means over the sphere, exactly so for z² but for the order of the pixels, 1/nside²."""
    points = unit_vectors(centres(nside)).double()
    assert points.shape == (12 * nside**2, 3) and len(points.unique(dim=0)) == len(points)
    np.testing.assert_allclose(points.norm(dim=1), 1, atol=1e-6)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose((points**2).mean(0), 1 / 3, atol=0.12 / nside**2)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_descendants_are_consecutive_and_lie_around_their_parent(levels: int) -> None:
    coarse, fine = 4, 4 * 2**levels
    parents = unit_vectors(centres(coarse))
    children = unit_vectors(centres(fine)).unflatten(0, (pixels(coarse), 4**levels))
    nearest = (children.flatten(0, 1) @ parents.T).argmax(1).view(pixels(coarse), -1)
    share = (nearest == torch.arange(pixels(coarse)).unsqueeze(1)).float().mean()
    assert share > (0.99 if levels == 1 else 0.85)  # pixels are no Voronoi cells
    mean = torch.nn.functional.normalize(children.mean(1), dim=1)
    assert (mean * parents).sum(1).min() > np.cos(np.radians(2.0))


def test_neighbours_in_memory_are_neighbours_on_the_globe() -> None:
    points = unit_vectors(centres(32)).unflatten(0, (-1, 128))
    spread = torch.arccos((points @ points.transpose(1, 2)).clamp(-1, 1)).amax((1, 2)).rad2deg()
    side = np.degrees(np.sqrt(4 * np.pi / pixels(32)))  # of a pixel; blocks are 8 by 16
    assert spread.max() < 2.2 * np.hypot(8, 16) * side


def test_centres_are_shared_and_cannot_be_changed() -> None:
    assert centres(4) is centres(4)
    with pytest.raises(ValueError, match="read-only"):
        centres(4)[0, 0] = 1.0
    assert radians(centres(4)).dtype == torch.float32


@pytest.mark.parametrize("nside", [0, 3, -2, 2.0])
def test_other_sizes_do_not_nest(nside: int) -> None:
    with pytest.raises(WxlabError, match=r"nside=\S+ must be a power of two"):
        centres(nside)
