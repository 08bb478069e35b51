"""Power spectra on the globe against pyshtools, on one CPU thread.

    python benchmarks/spectra.py [--repeats 5] [--wind]

100 fields at 121x240, and one at 721x1440. pyshtools knows two samplings, and both run beside ours, in turn: Gauss-Legendre, with as many
degrees as ours on as many rows, and Driscoll-Healy on our own rows (the south pole left out), which gives half the degrees. Ours fits all
degrees to whatever rows there are; the fits of a grid are made once and kept, and the first call, which makes them, is told apart. What is
printed are medians of CPU seconds, ratios, and how far both are from the spectrum of fields of known coefficients. Run it with
OMP_NUM_THREADS=1. ``--wind``: kinetic energy of one wind at 721x1440, too. pyshtools is no dependency: ``pip install pyshtools`` somewhere.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xarray as xr

from wxlab import spectra
from wxlab.grids import Grid
from wxlab.spectra.harmonics import synthesis


def field(values: np.ndarray, grid: Grid) -> xr.DataArray:
    return xr.DataArray(values, {"latitude": list(grid.y), "longitude": list(grid.x)}, ("n", "latitude", "longitude"))


def known(last: int, grids: list[Grid]) -> tuple[np.ndarray, list[np.ndarray]]:
    """A spectrum l^-3 of random coefficients up to a degree, and the fields of them on grids."""
    random = np.random.default_rng(0)
    degree = np.arange(last + 1.0)
    a = np.tril(random.normal(size=(last + 1, last + 1)) + 1j * random.normal(size=(last + 1, last + 1)))
    a[:, 0] = a[:, 0].real
    a *= np.maximum(degree, 1)[:, None] ** -2
    power = np.abs(a[:, 0]) ** 2 + 2 * (np.abs(a[:, 1:]) ** 2).sum(1)
    return power, [synthesis(a, grid) for grid in grids]


def seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def compare(shape: tuple[int, int], count: int, repeats: int) -> None:
    from pyshtools import expand

    rows, columns = shape
    grid, last = Grid.regular(rows, columns), rows - 2
    nodes, weights = expand.SHGLQ(last)
    gauss = Grid(tuple(np.rad2deg(np.arcsin(nodes))), tuple(np.arange(2 * last + 1) * 360 / (2 * last + 1)))
    power, (ours, theirs) = known(last, [grid, gauss])
    half = (rows - 1) // 2 - 1
    power_half, (few,) = known(half, [grid])
    dh = np.ascontiguousarray(few[:0:-1])  # from the north pole on, without the south pole

    fields = field(np.repeat(ours[None], count, 0), grid)
    start = time.process_time()
    found = spectra.power(fields)[0].values
    first = time.process_time() - start

    def gauss_legendre() -> np.ndarray:
        return np.stack([(expand.SHExpandGLQ(theirs, weights, nodes) ** 2).sum((0, 2)) for _ in range(count)])

    def driscoll_healy() -> np.ndarray:
        return np.stack([(expand.SHExpandDH(dh, sampling=2) ** 2).sum((0, 2)) for _ in range(count)])

    took = seconds({"ours": lambda: spectra.power(fields), "glq": gauss_legendre, "dh": driscoll_healy}, repeats)
    error = [
        np.abs(each / true - 1).max()
        for each, true in ((found, power), (gauss_legendre()[0], power), (driscoll_healy()[0], power_half))
    ]  # fmt: skip
    print(f"{count} at {rows}x{columns}, degrees 0-{last}: {took['ours']:.3f} s (first call {first:.2f} s), relative error {error[0]:.0e}")
    print(f"  pyshtools, Gauss-Legendre, degrees 0-{last}: {took['glq']:.3f} s: {took['glq'] / took['ours']:.2f}x, error {error[1]:.0e}")
    print(f"  pyshtools, Driscoll-Healy, degrees 0-{half}: {took['dh']:.3f} s: {took['dh'] / took['ours']:.2f}x, error {error[2]:.0e}")
    print(f"  peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB (goal 4 GB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wind", action="store_true", help="kinetic energy at 721x1440, too")
    arguments = parser.parse_args()
    compare((121, 240), 100, arguments.repeats)
    compare((721, 1440), 1, arguments.repeats)
    if arguments.wind:
        wind = field(np.random.default_rng(0).normal(size=(1, 721, 1440)), Grid.regular(721, 1440))
        start = time.process_time()
        spectra.kinetic_energy(wind, wind)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"kinetic energy of one wind at 721x1440: {time.process_time() - start:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
