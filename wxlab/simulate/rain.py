"""Synthetic radar: bands and cells of rain that move, turn over by their size, and grow or decay."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from wxlab.errors import WxlabError

PIXEL = 1000.0  # m
STEEPEST = 120.0  # mm/h, the cap
Array = NDArray[np.float64]


def radar(
    *,
    frames: int = 24,
    size: int = 128,
    events: int = 1,
    seed: int = 0,
    step_minutes: int = 5,
    speed: Sequence[float] = (15.0, 55.0),
) -> xr.Dataset:
    """Rain rates of synthetic radar events: a Gaussian field with a rain-like spectrum that moves, deforms and renews itself.

    Per step, in a domain of twice the size: g is advected (semi-Lagrangian, bilinear) by a smooth flow; each mode of
    wavelength lambda (km) keeps phi = exp(-dt/tau), tau = max(4, 40 (lambda/20)^1.1) min, and gets fresh noise times
    sqrt(1 - phi^2), with S ~ lambda^1.75 below 30 km, lambda^1.15 to 160 km, flat above, stretched by 1-2.2 in a random direction.
    Rain = 0.1 x 10^(1.25 (g - q)) mm/h where g > q, its quantile for a rain fraction of 8-40 %, at most 120 mm/h.

    frames: per event.  size: pixels of 1 km on each side.  events: each is a ``segment`` of its own.  seed: same seed, same bits; an
    event depends on its own number only, not on how many there are.  step_minutes: between frames.  speed: least and greatest of
    the flow, km/h.
    Returns a Dataset with ``rain_rate`` [time, y, x] in mm/h, float32; x and y in metres, y from south to north. The last tenth of
    the events is the test split, the tenth before it validation (``attrs['splits']``).
    Raises WxlabError for impossible sizes. Reference for the space-time model: Seed 2003,
    doi:10.1175/1520-0450(2003)042<0381:ADASSA>2.0.CO;2; unlike there nothing is cascaded, all modes are kept in one field.
    """
    for name, value, least, most in (
        ("frames", frames, 1, 10_000),
        ("size", size, 16, 2048),
        ("events", events, 1, 100_000),
        ("seed", seed, 0, 2**31),
        ("step_minutes", step_minutes, 1, 60),
    ):
        if not isinstance(value, int) or not least <= value <= most:
            raise WxlabError(f"{name}={value!r} must be a whole number from {least} to {most}")
    try:
        slow, fast = (float(value) for value in speed)
    except (TypeError, ValueError):
        slow, fast = 1.0, 0.0
    if not 0 <= slow <= fast <= 300:
        raise WxlabError(f"speed={speed!r} must be two numbers of km/h from 0 to 300, the smaller first, such as (15, 55)")
    rates = np.empty((events * frames, size, size), np.float32)
    for event in range(events):
        rng = np.random.default_rng([seed, event])
        rates[event * frames : (event + 1) * frames] = _event(rng, frames, size, step_minutes, (slow, fast))
    return _dataset(rates, frames, size, events, step_minutes)


def _event(rng: np.random.Generator, frames: int, size: int, minutes: int, speed: tuple[float, float]) -> NDArray[np.float32]:
    """One event [frames, size, size]."""
    side = 2 * size
    amplitude, wavelength = _spectrum(rng, side)
    kept = np.exp(-minutes / np.maximum(4, 40 * (wavelength / 20) ** 1.1))
    fresh = amplitude * np.sqrt(1 - kept**2)
    flow = _flow(rng, side, minutes, speed)
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    origin = np.array([rows - flow[0], columns - flow[1]])
    middle = slice(size // 2, size // 2 + size)
    fraction, trend = rng.uniform(0.08, 0.40), 0.0
    state = _noise(rng, amplitude)
    state /= state.std()
    out = np.empty((frames, size, size), np.float32)
    threshold = float(np.quantile(state[middle, middle], 1 - fraction))
    for frame in range(frames):
        if frame:
            moved = map_coordinates(state, origin, order=1, mode="grid-wrap")
            state = np.fft.irfft2(np.fft.rfft2(moved) * kept, s=(side, side)) + _noise(rng, fresh)
            # bilinear advection smooths: the variance is put back
            state /= state.std()
            # growth and decay of the whole event over hours
            trend = trend * (1 - minutes / 180) + rng.normal(0, 0.02 * np.sqrt(minutes / 5))
        excess = state[middle, middle] + trend - threshold
        out[frame] = np.where(excess > 0, np.minimum(0.1 * 10 ** (1.25 * excess), STEEPEST), 0)
    return out


def _spectrum(rng: np.random.Generator, side: int) -> tuple[Array, Array]:
    """Amplitudes of the modes (unit variance of the field) and their wavelengths in km, both for rfft2."""
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 2.2)
    across, along = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    one = along * np.cos(angle) + across * np.sin(angle)
    other = across * np.cos(angle) - along * np.sin(angle)
    wavenumber = np.hypot(one * np.sqrt(stretch), other / np.sqrt(stretch))
    wavenumber[0, 0] = 1
    wavelength = 1 / wavenumber * PIXEL / 1000
    # per mode in two dimensions: one power of lambda more than the radial spectrum
    middle = np.minimum(wavelength, 160) / 30
    shape = np.where(wavelength < 30, (wavelength / 30) ** 1.75, middle**1.15) * np.minimum(wavelength, 160)
    shape[0, 0] = 0
    weight = np.full(shape.shape, 2.0)
    weight[:, 0] = 1
    weight[:, -1] = 1 if side % 2 == 0 else 2
    amplitude = np.sqrt(shape / (weight * shape).sum()) * side**2
    return amplitude, wavelength


def _noise(rng: np.random.Generator, amplitude: Array) -> Array:
    """A Gaussian field with the given amplitudes of its modes."""
    side = amplitude.shape[0]
    white = np.fft.rfft2(rng.standard_normal((side, side))) / side
    field: Array = np.fft.irfft2(white * amplitude, s=(side, side))
    return field


def _flow(rng: np.random.Generator, side: int, minutes: int, kmh: tuple[float, float]) -> Array:
    """Displacement in pixels per step [2, side, side]: one direction, with smooth waves across the domain of up to a third."""
    speed = rng.uniform(*kmh) * 1000 / PIXEL / 60 * minutes
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:side, :side] * (2 * np.pi / side)
    phase = rng.uniform(0, 2 * np.pi, (2, 2))
    bend = [np.sin(x + a) * np.cos(y + b) for a, b in phase]
    mean = np.array([np.sin(direction), np.cos(direction)])
    return np.array([speed * (mean[n] + 0.25 * bend[n]) for n in range(2)])


def _dataset(rates: NDArray[np.float32], frames: int, size: int, events: int, minutes: int) -> xr.Dataset:
    held = max(1, events // 10) if events >= 3 else 0
    numbers = list(range(events))
    cuts = (events - 2 * held, events - held)
    parts = {"train": numbers[: cuts[0]], "validation": numbers[cuts[0] : cuts[1]], "test": numbers[cuts[1] :]}
    length = -(-frames * minutes // 1440) + 1  # days from one event to the next, with a gap
    segment = np.repeat(numbers, frames)
    offset = segment * length * 1440 + np.tile(np.arange(frames), events) * minutes
    metres = (np.arange(size) + 0.5) * PIXEL
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), rates, {"units": "mm h**-1", "long_name": "rain rate"})},
        {
            "time": np.datetime64("2001-06-01", "ns") + offset.astype("timedelta64[m]"),
            "segment": ("time", segment),
            "y": ("y", metres, {"units": "m"}),
            "x": ("x", metres, {"units": "m"}),
        },
        {
            "title": "Synthetic radar rain",
            "source": "wxlab.simulate.radar",
            "licence": "Apache-2.0",
            "splits": json.dumps({name: {"segments": part} for name, part in parts.items()}),
        },
    )
