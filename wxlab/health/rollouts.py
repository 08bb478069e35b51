"""Signatures in roll-outs beside the truth: flicker, blur, equal members, artefacts at the poles, drift."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from wxlab import spectra
from wxlab.channels import split_channel
from wxlab.conservation import PAIRS
from wxlab.grids import is_global
from wxlab.health.evidence import Evidence, Rolled
from wxlab.health.findings import Measure, NotJudged

# right frames with independent noise of 0.7 of what the truth's changes are undone by have twice the changes
FLICKER = 2.0
# half the truth's power: where the effective resolution of a forecast ends by convention
SMALL_SCALES = 0.5
# spread over error; 1 in a reliable ensemble, published ones have 0.6 and more
SPREAD = 0.1
# error of the row at a pole beside the others, each against the truth's variability there
POLES = 2.0
# of the standard deviation of weather, for the mean of the whole area: 2 to 3 K of temperature
DRIFT = 0.5
LEADS_FOR_DRIFT = 4
TINY = 1e-6  # normalised values that do not vary


def flicker(run: Evidence) -> Measure:
    """Changes from step to step that the next step undoes (second differences in time) over the truth's, the worst channel.

    The median over lead times, so that neither the first steps away from the analysis nor a growth at the end is taken for it.
    """
    rolled = run.rolled
    rolled.require(3)
    ours, theirs = (
        np.median([_rms(rolled, changes) for changes in np.moveaxis(np.diff(values, n=2, axis=-4), -4, 0)], axis=0)
        for values in (rolled.forecast, rolled.truth)
    )
    ratio = np.divide(ours, theirs, out=np.zeros_like(ours), where=theirs > TINY)
    worst = int(ratio.argmax())
    text = f"changes of {rolled.channels[worst]} from step to step that the next undoes are {ratio[worst]:.3g} times the truth's"
    return Measure(float(ratio[worst]), FLICKER, text)


def blur(run: Evidence) -> Measure:
    """Power of the winds at small scales at the last lead time over the truth's; without winds, of all fields.

    Small scales are the upper half of the degrees on the globe, else the differences between neighbouring points.
    """
    rolled = run.rolled
    rolled.require(1)
    winds = {name for pair in PAIRS for name in pair}
    chosen = [i for i, name in enumerate(rolled.channels) if split_channel(name)[0] in winds]
    what = "the winds have" if chosen else "the fields (there are no winds) have"
    chosen = chosen or list(range(len(rolled.channels)))
    ours, theirs = (_small_scales(rolled, values[..., -1, chosen, :, :]) for values in (rolled.forecast, rolled.truth))
    if not theirs > TINY**2:
        raise NotJudged("the truth has no small scales")
    text = f"{what} {ours / theirs:.3g} of the truth's power at small scales after {rolled.hours[-1]:g} h"
    return Measure(ours / theirs, SMALL_SCALES, text, below=True)


def _small_scales(rolled: Rolled, values: np.ndarray) -> float:
    """Mean of values [..., C, H, W]."""
    grid = rolled.grid
    if not is_global(grid):
        return float(np.mean(np.diff(values, axis=-1) ** 2) + np.mean(np.diff(values, axis=-2) ** 2))
    flat = values.reshape(-1, *grid.shape)
    places = {"latitude": list(grid.y), "longitude": list(grid.x)}
    power = spectra.power(xr.DataArray(flat, places, ("n", "latitude", "longitude")))
    return float(power.where(power["degree"] > power["degree"].max() / 2, 0.0).sum("degree").mean())


def equal_members(run: Evidence) -> Measure:
    """Spread of the members over the error of their mean, √((M + 1)/M · mean variance / mean squared error), over all lead times."""
    rolled = run.rolled
    rolled.require(1)
    members = rolled.forecast.shape[1]
    if members < 2:
        reason = "one member alone was forecast" if run.model.spec.stochastic != "none" else f"{run.model.name} is deterministic"
        raise NotJudged(f"{reason}, so there is no spread")
    spread = _rms(rolled, rolled.forecast.std(1, ddof=1))
    error = _rms(rolled, rolled.forecast.mean(1) - rolled.truth)
    ratio = math.sqrt((members + 1) / members * float(np.sum(spread**2)) / max(float(np.sum(error**2)), TINY**2))
    return Measure(ratio, SPREAD, f"the {members} members spread {ratio:.3g} of the error of their mean", below=True)


def poles(run: Evidence) -> Measure:
    """Error of the row at a pole over that of the other rows, each against the truth's variability there; the worse pole.

    A row that varies less than half as much as the others counts as if it did half as much.
    """
    rolled = run.rolled
    rolled.require(1)
    if not is_global(rolled.grid):
        raise NotJudged("the grid does not reach the poles")
    error = np.sqrt(np.mean((rolled.forecast - rolled.truth[:, None]) ** 2, axis=(0, 1, 2, 5)))  # [C, H]
    truth = rolled.truth - rolled.truth.mean(axis=(0, 1, 4), keepdims=True)
    varies = np.sqrt(np.mean(truth**2, axis=(0, 1, 4)))
    usual = np.sqrt(np.mean(varies[:, 1:-1] ** 2, axis=1, keepdims=True))
    relative = error / np.maximum(np.maximum(varies, usual / 2), TINY)
    rest = np.sqrt(np.mean(relative[:, 1:-1] ** 2, axis=1))
    ratio = np.sqrt(np.mean(relative[:, [0, -1]] ** 2, axis=0) / max(float(np.mean(rest**2)), TINY**2))
    worst = int(ratio.argmax())
    latitude = rolled.grid.y[[0, -1][worst]]
    text = f"the error of the row at {latitude:g} degrees is {ratio[worst]:.3g} times that of other rows, each beside how much it varies"
    return Measure(float(ratio[worst]), POLES, text)


def drift(run: Evidence) -> Measure:
    """How far the area mean's distance from climatology leaves the truth's along the roll-out, the worst channel.

    |d(last) − d(first)| over the root mean square of the truth's anomalies, d the mean over initial times, members and area of
    forecast − truth, in which the climatology of both is the same.
    """
    rolled = run.rolled
    if not np.isfinite(rolled.forecast).all():
        first = rolled.hours[int(np.isfinite(rolled.forecast).all(axis=(0, 1, 3, 4, 5)).argmin())]
        return Measure(math.inf, DRIFT, f"the roll-outs are not numbers from {first:g} h on")
    rolled.require(LEADS_FOR_DRIFT)
    away = ((rolled.forecast - rolled.truth[:, None]) * rolled.weights).astype(np.float64).mean(axis=(0, 1, 4, 5))  # [L, C]
    scale = _rms(rolled, rolled.truth - rolled.climatology)
    ratio = np.abs(away[-1] - away[0]) / np.maximum(scale, TINY)
    worst = int(ratio.argmax())
    text = f"in {rolled.hours[-1]:g} h the area mean of {rolled.channels[worst]} moves {ratio[worst]:.3g} standard deviations off"
    return Measure(float(ratio[worst]), DRIFT, text)


def _rms(rolled: Rolled, values: np.ndarray) -> np.ndarray:
    """Root mean square of values [..., C, H, W] over the area and all else, by channel [C]."""
    squares = (values.astype(np.float64) ** 2 * rolled.weights).mean(axis=(-2, -1))
    return np.sqrt(squares.reshape(-1, squares.shape[-1]).mean(0))
