"""Tracking of cyclones: how near, how many false, and how long, on one CPU thread.

    python benchmarks/cyclones.py [--steps 24] [--members 3] [--only speed]

Centres: vortices of Holland's profile along known great circles at 25 km/h, in moving noise (800 Pa at the poles, 200 Pa at the equator,
waves of 200 to 6000 km), with the error of the centre in grid cells. False tracks: the same noise alone, 120 days at each spacing.
Time: a 6-hourly global sequence at 0.25° (721x1440) with eight storms and all fields that the recipe reads, made lazily, step by step;
CPU seconds of detection and stitching, without those of making the fields, and the growth of the resident set. A sequence of 30 days is
120 steps; the cost is per step, so that fewer show it. Members: the same for a forecast of one and of several members.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from wxlab.cyclones import PRESETS, detect, stitch, track
from wxlab.cyclones.sphere import distance

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import vortices

POLAR = {"latitude": 90.0, "genesis_latitude": 90.0}
CASES: tuple[tuple[str, float, tuple[float, float, float], tuple[float, float, float, float], dict[str, float]], ...] = (
    ("0.25°, over the date line", 0.25, (12, 172, 75), (0, 40, 160, 215), {}),
    ("1.5°, over the date line", 1.5, (-12, 172, 75), (-90, 90, 0, 360), {}),
    ("5.6°, over the date line", 5.625, (12, 172, 75), (-90, 90, 0, 360), {}),
    ("1.5°, over the pole", 1.5, (80, 10, 10), (-90, 90, 0, 360), POLAR),
    ("5.6°, over the pole", 5.625, (-78, 10, 170), (-90, 90, 0, 360), POLAR),
)


def centres() -> None:
    print("centre error in cells: median, 95 %, steps found of those there, false tracks (8 sequences each)")
    for name, spacing, start, region, changes in CASES:
        errors: list[np.ndarray] = []
        steps, wanted, false = 20, 0, 0
        for seed in range(8):
            truth = vortices.great_circle(*start, 150, steps)
            found = track(vortices.fields(spacing, steps, truth, region=region, seed=seed), **changes)
            at = np.searchsorted(truth.time.values, found.time.values)
            away = distance(found.lat.values, found.lon.values, truth.lat.values[at], truth.lon.values[at]) / (spacing * 111.2)
            own = away < 2
            errors.append(away[own])
            wanted += steps
            false += len(set(found.track_id.values[~own].tolist()))
        all_errors = np.concatenate(errors)
        print(f"  {name}: {np.median(all_errors):.2f}, {np.quantile(all_errors, 0.95):.2f}, {len(all_errors)} of {wanted}, {false}")


def false_tracks() -> None:
    for spacing in (1.5, 5.625):
        count = dict.fromkeys(PRESETS, 0)
        for seed in range(4):
            data = vortices.fields(spacing, 120, seed=100 + seed)
            for name in PRESETS:
                count[name] += len(np.unique(track(data, name).track_id))
        print(f"false tracks in 120 days of noise at {spacing:g}°: {', '.join(f'{name} {n}' for name, n in count.items())}")


class Weather:
    """Global fields at 0.25°, made when they are read; the CPU seconds of making them are kept apart."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds, self.largest = steps, 0.0, 0
        lat, lon = vortices.axes(0.25)
        coarse = vortices.fields(1.5, steps, seed=1)
        self.coarse = coarse.pad(longitude=(0, 1), mode="wrap").assign_coords(longitude=np.arange(0, 360.1, 1.5))
        rain = np.random.default_rng(0).normal(size=(len(lat), len(lon))).astype(np.float32)
        self.small = 15 * (rain + np.roll(rain, 1, 0) + np.roll(rain, 1, 1) + np.roll(rain, (1, 1), (0, 1))) / 2  # Pa, of two cells
        storms = [
            (12, 140, 290),
            (15, 160, 80),
            (-14, 60, 240),
            (-12, 170, 160),
            (14, 310, 300),
            (18, 330, 20),
            (10, 250, 285),
            (-16, 90, 200),
        ]
        parts = [vortices.great_circle(a, b, c, 100, steps, slp=96_000 + 300 * k, track=k) for k, (a, b, c) in enumerate(storms)]
        self.truth = xr.concat(parts, "record")
        self.lat, self.lon = lat, lon
        self.made: tuple[int, xr.Dataset] | None = None

    def at(self, step: int) -> xr.Dataset:
        if self.made is None or self.made[0] != step:
            start = time.process_time()
            fine = self.coarse.isel(time=[step]).interp(latitude=self.lat, longitude=self.lon).astype(np.float32)
            fine["mean_sea_level_pressure"] = fine.mean_sea_level_pressure + self.small
            seeded = vortices.seed_vortex(fine, self.truth)
            self.made = step, seeded
            self.seconds += time.process_time() - start
        return self.made[1]

    def lazy(self) -> xr.Dataset:
        first, arrays = self.at(0), {}
        for name, field in first.data_vars.items():
            shape = field.shape
            chunks = ((1,) * self.steps, *((size,) for size in shape[1:]))
            array = da.map_blocks(
                self._read,
                chunks=chunks,
                dtype=np.float32,
                meta=np.empty((0,) * len(shape), np.float32),
                name=f"{name}-lazy",
                variable=name,
            )
            arrays[name] = field.dims, array
        coords = {**{name: first[name] for name in ("level", "latitude", "longitude")}, "time": self.coarse.time.values}
        return xr.Dataset(arrays, coords)

    def _read(self, variable: str, block_info: Any = None) -> np.ndarray:
        return self.at(block_info[None]["array-location"][0][0])[variable].values


def speed(steps: int, members: int) -> None:
    weather = Weather(steps)
    data = weather.lazy()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = []
    for preset in ("standard", "tempest_ullrich2021"):
        weather.seconds, start = 0.0, time.process_time()
        candidates = detect(data, preset)
        spent = time.process_time() - start - weather.seconds
        start = time.process_time()
        found = stitch(candidates)
        stitching = time.process_time() - start
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown.append((now - resident) / 1e3)
        per = (spent + stitching) / steps
        print(
            f"global 0.25°, {preset}: {per:.2f} CPU s a step (goal 1), of which stitching {stitching / steps:.4f}; {steps} steps, "
            f"{candidates.sizes['record']} candidates, {len(np.unique(found.track_id))} tracks of 8 storms, most memory beyond the start "
            f"{grown[-1]:.0f} MB (one step of all fields {sum(field.nbytes for field in data.isel(time=0).values()) / 1e6:.0f} MB)"
        )
    short = data.isel(time=slice(0, 6))
    leads = short.time.values - short.time.values[0]
    run = short.rename(time="prediction_timedelta").assign_coords(prediction_timedelta=leads).expand_dims(time=short.time.values[:1])
    for count in (1, members):
        ensemble = xr.concat([run] * count, xr.DataArray(np.arange(count), dims="number", name="number")) if count > 1 else run
        weather.seconds, start = 0.0, time.process_time()
        found = track(ensemble, duration=24, wind_hours=24, latitude_hours=24)
        spent = time.process_time() - start - weather.seconds
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"forecast of 6 steps, members {count}: {spent:.2f} CPU s, {spent / 6 / count:.2f} a step and member, "
            f"{len(np.unique(found.track_id))} tracks, memory {(now - resident) / 1e3:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="of the global sequence; 120 are 30 days")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--only", choices=("centres", "noise", "speed"))
    arguments = parser.parse_args()
    dask.config.set(scheduler="synchronous")
    if arguments.only in (None, "speed"):
        speed(arguments.steps, arguments.members)
    if arguments.only in (None, "centres"):
        centres()
    if arguments.only in (None, "noise"):
        false_tracks()


if __name__ == "__main__":
    main()
