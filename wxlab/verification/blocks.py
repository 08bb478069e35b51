"""Forecasts beside the truth, in pieces that fit into memory, and sums of statistics over them.

A statistic is summed over the points of a forecast with its weights, for each initial time and lead time; sums are added afterwards, so
that it does not matter in which pieces forecasts are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.forcings import seconds
from wxlab.grids import Grid, area_weights, cosine_weights, grid_of
from wxlab.splits import time_text
from wxlab.verification.inputs import (
    LEAD,
    Reader,
    Reference,
    States,
    as_forecast,
    as_states,
    climatology_reader,
    lead_seconds,
    ordered,
    positions,
    same_grid,
    shared_variables,
    valid_times,
)

BLOCK_VALUES = 1 << 22  # numbers of the forecast that are in memory at a time

Ensemble = Literal["mean", "members", "matched"]
Weighting = Literal["area", "cosine"]
WEIGHTS = {"area": area_weights, "cosine": cosine_weights}  # of rows
ENSEMBLES: tuple[Ensemble, ...] = ("mean", "members", "matched")
# weighted sum and sum of weights: [T, L, K, ...]; the weights have as many dimensions or fewer, and belong to the leading ones
Sums = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """What scores of one variable need beside the fields, in its units."""

    thresholds: tuple[float, ...] = ()
    pools: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    data_range: tuple[float, float] = (0.0, 1.0)
    ensemble: Ensemble | None = None


@dataclass(frozen=True)
class Block:
    """Some forecasts of a variable beside the truth, in float64.

    members: [M, T, L, K, P] (members, initial times, lead times, levels, points); truth, climatology: [T, L, K, P], NaN where there
    is none; weights: [P], of each point; shape: rows and columns of the points; hidden: points [T, L, K, P] that do not
    count; times, leads: initial times [T] and lead times [L], seconds; levels: which of the levels [K].
    """

    members: np.ndarray
    truth: np.ndarray
    weights: np.ndarray
    shape: tuple[int, int]
    settings: Settings
    times: np.ndarray
    leads: np.ndarray
    levels: np.ndarray
    climatology: np.ndarray | None = None
    hidden: np.ndarray | None = None

    @cached_property
    def observed(self) -> np.ndarray:
        """Points that have truth and all members: only NaN is missing, an infinite forecast counts as what it is."""
        missing = np.isnan(self.truth)
        for member in self.members:
            missing |= np.isnan(member)
        return ~missing if self.hidden is None else ~(missing | self.hidden)

    @cached_property
    def complete(self) -> np.ndarray:
        """Frames [T, L, K] without a missing point."""
        return np.asarray(self.observed.all(-1))

    @cached_property
    def mean(self) -> np.ndarray:
        return self.members[0] if len(self.members) == 1 else self.members.mean(0)

    @cached_property
    def matched(self) -> np.ndarray:
        """Probability-matched mean [T, L, K, P]: the order of the ensemble mean with the values of the members.

        The n·M values of all members at the n observed points are sorted, and every M-th of them, from the middle of the first M on,
        is given to the points in the order of their mean. Ebert 2001, doi:10.1175/1520-0493(2001)129<2461:AOAPMS>2.0.CO;2.
        """
        result, count = self.mean.copy(), len(self.members)
        for place in np.ndindex(*self.truth.shape[:3]):
            points = np.flatnonzero(self.observed[place])
            values = np.sort(self.members[(slice(None), *place)][:, points], axis=None)[count // 2 :: count]
            result[place][points[np.argsort(self.mean[place][points], kind="stable")]] = values
        return result

    def fields(self, usual: Ensemble) -> np.ndarray:
        """What is scored as a single field [E, T, L, K, P]: the mean, each member, or the probability-matched mean."""
        kind = self.settings.ensemble or usual
        if kind == "members" or len(self.members) == 1:
            return self.members
        return (self.mean if kind == "mean" else self.matched)[None]

    def as_maps(self, values: np.ndarray) -> np.ndarray:
        """[..., P] as [..., H, W]."""
        return values.reshape(*values.shape[:-1], *self.shape)

    def total(self, values: np.ndarray, observed: np.ndarray | None = None) -> Sums:
        """Sum over the observed points of values [E, T, L, K, P], and over E, with the weights; and the sum of those weights."""
        return weighted_total(values, self.observed if observed is None else observed, self.weights)


def weighted_total(values: np.ndarray, observed: np.ndarray, weights: np.ndarray) -> Sums:
    """Sum of values [E, T, L, K, P] over E and the observed points [T, L, K, P] with weights [P], and the sum of the weights."""
    if observed.all():
        weight = np.full(observed.shape[:-1], weights.sum())
    else:
        values, weight = np.where(observed, values, 0.0), observed.astype(np.float64) @ weights
    return (values @ weights).sum(0), len(values) * weight


Statistic = Callable[[Block], Sums]


@dataclass(frozen=True)
class Case:
    """A forecast beside all that it is compared with."""

    forecast: xr.Dataset
    truth: xr.Dataset
    index: np.ndarray  # of the truth: [initial times, lead times], -1 where it has no such valid time or another forecast lacks it
    grid: Grid
    levels: dict[str, list[float | None]]  # of the variables that are scored
    climatology: Reader | None = None
    others: tuple[xr.Dataset, ...] = ()
    weights: Weighting = "area"

    @property
    def points(self) -> int:
        return self.grid.shape[0] * self.grid.shape[1]

    @property
    def found(self) -> np.ndarray:
        return self.index >= 0


@dataclass(frozen=True)
class Score:
    """Sums of each statistic of a variable for each forecast: [initial times, lead times, levels, ...]."""

    levels: list[float | None]
    sums: dict[str, Sums]
    units: str | None


def make_case(
    forecast: xr.Dataset,
    truth: States,
    *,
    climatology: Reference | None = None,
    common_with: Sequence[xr.Dataset] = (),
    weights: Weighting = "area",
) -> Case:
    """Check a forecast, the truth, and the other forecasts whose points it must share.  Raises WxlabError where they do not fit."""
    forecast, states = as_forecast(forecast), as_states(truth)
    grid = same_grid(forecast, grid_of(states), "truth")
    reader = None if climatology is None else climatology_reader(climatology, forecast)
    stamps = valid_times(forecast)
    index = positions(stamps, states["time"].values)
    if not (index >= 0).any():
        spans = [f"{time_text(t.min())} to {time_text(t.max())}" if t.size else "nothing" for t in (stamps, seconds(states["time"].values))]
        raise WxlabError(f"none of the valid times of the forecast ({spans[0]}) is a time of the truth ({spans[1]}); give truth for them")
    levels = shared_variables(forecast, states)
    others = []
    for given in [common_with] if isinstance(common_with, xr.Dataset) else common_with:
        other = as_forecast(given, "a forecast of common_with")
        same_grid(forecast, grid_of(other), "forecast of common_with")
        rows, columns = _places_in(other, forecast)
        index = np.where((rows >= 0)[:, None] & (columns >= 0), index, -1)
        theirs = shared_variables(forecast, other, "forecast of common_with")
        levels = {name: [level for level in levels[name] if level in theirs[name]] for name in levels if name in theirs}
        others.append(other)
    if not (index >= 0).any() or not any(levels.values()):
        raise WxlabError("the forecasts share no initial time, lead time and variable that the truth has; make them from the same times")
    levels = {name: found for name, found in levels.items() if found}
    return Case(forecast, states, index, grid, levels, reader, tuple(others), weights)


def _places_in(other: xr.Dataset, forecast: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Where the initial times and lead times of a forecast are in another one; -1 for those that are not."""
    lead = positions(lead_seconds(forecast), lead_seconds(other))
    return positions(seconds(forecast["time"].values), other["time"].values), lead


def accumulate(
    case: Case, statistics: Mapping[str, Statistic], settings: Mapping[str, Settings], *, whole_leads: bool = False
) -> dict[str, Score]:
    """Sums of statistics for each variable, initial time and lead time.

    settings: by variable; those without any have the plain ones.  whole_leads: read all lead times of a forecast together.
    The statistic ``observed``, how many points count, is always there.
    """
    table = {}
    for name, levels in case.levels.items():
        shape = (*case.index.shape, len(levels))
        sums: dict[str, Sums] = {}
        for place, block in blocks(case, name, settings.get(name, Settings()), whole_leads=whole_leads):
            # a forecast that went to infinity scores infinity or NaN, without a warning for each of its points
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                parts = {key: statistic(block) for key, statistic in statistics.items()}
            weight = block.observed @ block.weights
            for key, pair in {**parts, "observed": (weight, np.ones(weight.shape))}.items():
                if key not in sums:
                    sums[key] = np.zeros(shape + pair[0].shape[3:]), np.zeros(shape + pair[1].shape[3:])
                for whole, part in zip(sums[key], pair, strict=True):
                    whole[place] = part
        units = case.truth[name].attrs.get("units", case.forecast[name].attrs.get("units"))
        table[name] = Score(levels, sums, units)
    return table


def blocks(case: Case, name: str, settings: Settings, *, whole_leads: bool = False) -> Iterator[tuple[tuple[slice, ...], Block]]:
    """Pieces of a variable: their place among (initial times, lead times, levels), and what is in them."""
    levels = case.levels[name]
    field = ordered(case.forecast[name], levels, ("number", "time", LEAD), case.grid)
    states = ordered(case.truth[name], levels, ("time",), case.grid)
    others = [(ordered(one[name], levels, ("number", "time", LEAD), case.grid), *_places_in(one, case.forecast)) for one in case.others]
    stamps, leads, valid = seconds(case.forecast["time"].values), lead_seconds(case.forecast), valid_times(case.forecast)
    weights = np.repeat(WEIGHTS[case.weights](case.grid), case.grid.shape[1])
    for place in _pieces(field, whole_leads):
        times, columns, heights = place
        index = case.index[times, columns]
        if (index < 0).all():
            continue
        members = np.asarray(field.isel(dict(zip(("time", LEAD, "level"), place, strict=True))).values, dtype=np.float64)
        members = members.reshape(*members.shape[:4], case.points)
        rows, where = np.unique(index, return_inverse=True)
        where = where.reshape(index.shape) - int(rows[0] < 0)
        observed = _spread_out(states.isel(time=rows[rows >= 0], level=heights).values, where)
        normal = None
        if case.climatology is not None:
            moments, place_of = np.unique(valid[times, columns], return_inverse=True)
            normal = _spread_out(case.climatology(name, levels[heights], moments), place_of.reshape(index.shape))
        hidden = None
        for other, in_time, in_lead in others:
            # what the other lacks altogether has no truth here either, so that any of its fields may stand there
            there = other.isel({"time": np.maximum(in_time[times], 0), LEAD: np.maximum(in_lead[columns], 0), "level": heights}).values
            missing = np.isnan(there).any(0).reshape(*there.shape[1:4], case.points)
            hidden = missing if hidden is None else hidden | missing
        when = (stamps[times], leads[columns], np.arange(len(levels))[heights])
        yield place, Block(members, observed, weights, case.grid.shape, settings, *when, normal, hidden)


def _spread_out(states: np.ndarray, where: np.ndarray) -> np.ndarray:
    """States [U, K, H, W] put in the places [T, L] that ``where`` names: float64 [T, L, K, P], NaN for -1."""
    flat = states.reshape(*states.shape[:2], -1)
    out = np.full((*where.shape, *flat.shape[1:]), np.nan)
    there = where >= 0
    out[there] = flat[where[there]]
    return out


def _pieces(field: xr.DataArray, whole_leads: bool) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of (initial times, lead times, levels): whole chunks of a lazy field, as many as fit into memory together."""
    room = max(1, BLOCK_VALUES // max(1, field.sizes["number"] * field.shape[-2] * field.shape[-1]))
    spans = {}
    for dim in (LEAD, "level", "time") if whole_leads else ("level", LEAD, "time"):
        size, chunk = field.sizes[dim], field.chunksizes.get(dim, (1,))[0]
        step = size if whole_leads and dim == LEAD else min(size, max(chunk, room // chunk * chunk))
        room = max(1, room // step)
        spans[dim] = [slice(first, min(first + step, size)) for first in range(0, size, step)]
    return ((time, lead, level) for time in spans["time"] for lead in spans[LEAD] for level in spans["level"])
