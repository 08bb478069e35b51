"""Distances and directions on the sphere; degrees in, kilometres and degrees out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

EARTH = 6371.0  # km


def unit(lat: ArrayLike, lon: ArrayLike) -> Array:
    """Unit vectors [..., 3] of positions in degrees."""
    phi, lam = np.deg2rad(np.asarray(lat, dtype=np.float64)), np.deg2rad(np.asarray(lon, dtype=np.float64))
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.broadcast_to(np.sin(phi), np.broadcast(phi, lam).shape)], -1)


def position(vectors: Array) -> tuple[Array, Array]:
    """Latitude and longitude (0–360) in degrees of vectors [..., 3] of any length."""
    lat = np.rad2deg(np.arctan2(vectors[..., 2], np.hypot(vectors[..., 0], vectors[..., 1])))
    lon = np.rad2deg(np.arctan2(vectors[..., 1], vectors[..., 0])) % 360
    return lat, np.where(lon >= 360, 0.0, lon)  # a tiny negative angle modulo 360 is rounded to 360


def arc(lat: ArrayLike, lon: ArrayLike, other_lat: ArrayLike, other_lon: ArrayLike) -> Array:
    """Great-circle distance in degrees (haversine, exact for small distances)."""
    phi, psi = np.deg2rad(np.asarray(lat, dtype=np.float64)), np.deg2rad(np.asarray(other_lat, dtype=np.float64))
    turn = np.deg2rad(np.asarray(other_lon, dtype=np.float64) - np.asarray(lon, dtype=np.float64))
    half = np.sin((psi - phi) / 2) ** 2 + np.cos(phi) * np.cos(psi) * np.sin(turn / 2) ** 2
    return np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))


def distance(lat: ArrayLike, lon: ArrayLike, other_lat: ArrayLike, other_lon: ArrayLike) -> Array:
    """Great-circle distance in km on a sphere of 6371 km."""
    return np.deg2rad(arc(lat, lon, other_lat, other_lon)) * EARTH


def bearing(lat: ArrayLike, lon: ArrayLike, other_lat: ArrayLike, other_lon: ArrayLike) -> Array:
    """Direction in degrees clockwise from north in which the great circle to the other position begins; 0 where both are the same."""
    phi, psi = np.deg2rad(np.asarray(lat, dtype=np.float64)), np.deg2rad(np.asarray(other_lat, dtype=np.float64))
    turn = np.deg2rad(np.asarray(other_lon, dtype=np.float64) - np.asarray(lon, dtype=np.float64))
    east = np.sin(turn) * np.cos(psi)
    north = np.cos(phi) * np.sin(psi) - np.sin(phi) * np.cos(psi) * np.cos(turn)
    return np.rad2deg(np.arctan2(east, north)) % 360


def destination(lat: ArrayLike, lon: ArrayLike, direction: ArrayLike, km: ArrayLike) -> tuple[Array, Array]:
    """Where a great circle leads: position after ``km`` from a position in a direction (degrees clockwise from north)."""
    phi, lam = np.deg2rad(np.asarray(lat, dtype=np.float64)), np.deg2rad(np.asarray(lon, dtype=np.float64))
    theta, angle = np.deg2rad(np.asarray(direction, dtype=np.float64)), np.asarray(km, dtype=np.float64) / EARTH
    sine = np.sin(phi) * np.cos(angle) + np.cos(phi) * np.sin(angle) * np.cos(theta)
    east = np.sin(theta) * np.sin(angle) * np.cos(phi)
    there = lam + np.arctan2(east, np.cos(angle) - np.sin(phi) * sine)
    longitude = np.rad2deg(there) % 360
    return np.rad2deg(np.arcsin(np.clip(sine, -1, 1))), np.where(longitude >= 360, 0.0, longitude)


def between(first: Array, last: Array, share: ArrayLike) -> Array:
    """Unit vectors [..., 3] at a share of the great circle from ``first`` to ``last``; shares beyond 0..1 go on along it."""
    share = np.asarray(share, dtype=np.float64)[..., None]
    angle = np.arctan2(np.linalg.norm(np.cross(first, last), axis=-1), (first * last).sum(-1))[..., None]
    sine = np.sin(angle)
    near = sine < 1e-9
    safe = np.where(near, 1.0, sine)
    along = (np.sin((1 - share) * angle) * first + np.sin(share * angle) * last) / safe
    return np.where(near, first, along)
