"""Places on the grid against the plainest way to find them: neighbours, windows, contours, distances."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from wxlab.cyclones import detect
from wxlab.cyclones.mesh import Mesh
from wxlab.cyclones.sphere import arc, bearing, between, destination, distance, position, unit


def neighbours(row: int, column: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """The eight points around one on a global grid with rows at both poles, each of which is a single place."""
    found = set()
    for r in (row - 1, row, row + 1):
        for c in (column - 1, column, column + 1):
            if 0 <= r < rows:
                found.add((r, c % columns))
    for pole, inner in ((0, 1), (rows - 1, rows - 2)):
        if row == pole:
            found |= {(r, c) for r in (pole, inner) for c in range(columns)}
    return sorted(found - {(row, column)})


def closed_by_walking(field: np.ndarray, lat: np.ndarray, lon: np.ndarray, start: tuple[int, int], depth: float, radius: float) -> bool:
    """Walk to every point below the bar; closed when none lies beyond the radius."""
    bar = field[start] + np.float32(depth)
    reached, todo = {start}, [start]
    while todo:
        here = todo.pop()
        if arc(lat[start[0]], lon[start[1]], lat[here[0]], lon[here[1]]) > radius + 1e-9:
            return False
        for place in neighbours(*here, *field.shape):
            if place not in reached and field[place] < bar:
                reached.add(place)
                todo.append(place)
    return True


@pytest.mark.parametrize(("seed", "radius"), [(0, 12.0), (1, 25.0), (2, 40.0)])
def test_detection_is_what_walking_finds(seed: int, radius: float) -> None:
    """Every closed minimum and no other, over the date line and both poles."""
    random = np.random.default_rng(seed)
    lat, lon = np.linspace(-90, 90, 31), np.arange(0, 360, 6.0)
    field = gaussian_filter(random.normal(size=(31, 60)), (1.0, 1.2), mode=("nearest", "wrap"))
    field = (101_000 + 400 * field / field.std()).astype(np.float32)
    field[0], field[-1] = field[0, 0], field[-1, 0]
    if seed == 1:
        field[0] -= 1500  # a low on the south pole
        field[-2, 3] -= 1500  # and one beside the north pole
    wanted = set()
    for row in range(31):
        for column in range(60 if 0 < row < 30 else 1):
            around = [field[place] for place in neighbours(row, column, 31, 60) if place[0] not in (0, 30) or place[0] != row]
            if field[row, column] < min(around) and closed_by_walking(field, lat, lon, (row, column), 500, radius):
                wanted.add((lat[row], lon[column]))
    data = xr.Dataset(
        {"mean_sea_level_pressure": (("time", "latitude", "longitude"), field[None])},
        {"time": [np.datetime64("2001-01-01", "ns")], "latitude": lat, "longitude": lon},
    )
    options = {"contour_depth": 500, "contour_radius": radius, "warm_core": 0, "merge_distance": 0, "ridge": 0, "cells": 0}
    found = detect(data, "tempest_ullrich2021", **options)
    assert len(wanted) > 5 and found.sizes["record"] == len(wanted)
    # the fit moves a centre by less than a cell
    for a, b in wanted:
        assert distance(a, b, found.lat.values, found.lon.values).min() < 1.5 * 6 * 111.2
    if seed == 1:
        assert found.lat.min() < -84


@pytest.mark.parametrize(("lat", "lon", "radius"), [(3.0, 359.0, 20.0), (-71.0, 2.0, 25.0), (88.0, 100.0, 5.0), (-90.0, 0.0, 30.5)])
def test_windows_hold_all_that_is_near(lat: float, lon: float, radius: float) -> None:
    mesh = Mesh(np.linspace(90, -90, 61), np.arange(0, 360, 3.0), True)
    window = mesh.window(lat, lon, radius)
    assert window is not None
    everywhere = arc(lat, lon, mesh.lat[:, None], mesh.lon[None])
    np.testing.assert_allclose(window.distance, window.of(everywhere), atol=1e-9)
    assert (window.distance <= radius).sum() == (everywhere <= radius).sum()
    assert len(np.unique(window.columns)) == len(window.columns)


positions = st.tuples(st.floats(-89.9, 89.9), st.floats(0, 359.9))


@settings(max_examples=60, deadline=None)
@given(positions, st.floats(0, 360), st.floats(1, 15_000))
def test_there_and_back_on_great_circles(start: tuple[float, float], direction: float, km: float) -> None:
    """Destination, distance, bearing and the way between agree with each other."""
    lat, lon = destination(*start, direction, km)
    assert distance(*start, lat, lon) == pytest.approx(km, rel=1e-6)
    if abs(lat) < 89.99:
        assert np.cos(np.deg2rad(bearing(*start, lat, lon) - direction)) == pytest.approx(1, abs=1e-6)
    half = position(between(unit(*start), unit(lat, lon), 0.5))
    assert distance(*start, *half) == pytest.approx(km / 2, rel=1e-5)
    on = position(between(unit(*start), unit(*half), 2.0))
    assert distance(lat, lon, *on) < 1e-2
