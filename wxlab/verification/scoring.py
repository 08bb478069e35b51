"""Scores: sums of statistics for each forecast, added up over initial times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError, unknown
from wxlab.forcings import DAY, seconds
from wxlab.grids import Grid, area_weights, grid_of
from wxlab.splits import time_text
from wxlab.verification.inputs import (
    LEAD,
    Reader,
    Reference,
    States,
    as_forecast,
    as_states,
    climatology_reader,
    ordered,
    positions,
    same_grid,
    shared_variables,
    valid_times,
)
from wxlab.verification.metrics import METRICS, STATISTICS, Block, Sums, metric_of

BLOCK_VALUES = 1 << 22  # numbers of the forecast that are in memory at a time
GROUPS = ("season", "month", "hour", "time")
_SEASONS = np.array(["DJF", "MAM", "JJA", "SON"])


@dataclass(frozen=True)
class Score:
    """Sums of each statistic of a variable for each forecast: [initial times, lead times, levels]."""

    levels: list[float | None]
    sums: dict[str, Sums]
    units: str | None


@dataclass(frozen=True)
class _Case:
    """A forecast beside all that it is compared with."""

    forecast: xr.Dataset
    truth: xr.Dataset
    index: np.ndarray  # of the truth: [initial times, lead times], -1 where it has no such valid time
    climatology: Reader | None
    grid: Grid

    @property
    def points(self) -> int:
        return self.grid.shape[0] * self.grid.shape[1]


def verify(
    forecast: xr.Dataset,
    truth: States,
    *,
    metrics: Sequence[str] | str = ("rmse", "mae", "bias"),
    climatology: Reference | None = None,
    by: str | None = None,
) -> xr.Dataset:
    """Score a forecast against the truth by lead time.

    With e = forecast - truth, area weights w (mean 1) and ⟨·⟩ = Σ w · / Σ w over points and initial times:
    bias ⟨e⟩, mae ⟨|e|⟩, mse ⟨e²⟩, rmse √⟨e²⟩ (of the ensemble mean, where the forecast has members);
    acc: mean over initial times of Σ w f′o′ / √(Σ w f′² Σ w o′²), primes being departures from the climatology at the valid time;
    crps ⟨mean|x − o| − Σ|x − x′| / (2 M²)⟩ over the M members, crps_fair with 2 M (M − 1) in place of 2 M²;
    spread √⟨s²⟩ with s² the variance of the members with M − 1.

    forecast: dims time (initial), [number], prediction_timedelta, [level], latitude, longitude (radar: y, x); it is read in pieces.
    truth: states over valid time, a store, or its path.  Pairs without a state of the truth are left out.  Points where the truth or
    a member is NaN are left out of sums and weights.  metrics: some of rmse, mse, mae, bias, acc, crps, crps_fair, spread.
    climatology: for acc: ``store.climatology()``, or a Dataset with hour and dayofyear.  by: None, or by the initial time's
    ``season``, ``month``, ``hour``, or each ``time`` for itself.

    Returns a Dataset with dims (metric, prediction_timedelta[, level][, group]) in the units of the variables; the coordinate
    ``initial_times`` counts the forecasts that had a truth, and the attribute ``scored`` of a variable is the share of their points
    that were scored.
    Raises WxlabError for unknown metrics and groups, and when the two share no variable, grid or valid time.
    References: Rasp et al. 2024, doi:10.1029/2023MS004019 (acc, by initial time); Ferro 2014, doi:10.1002/qj.2270 (fair CRPS);
    Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1 (spread).
    """
    metrics = check_metrics(metrics)
    if by is not None and by not in GROUPS:
        raise unknown("grouping by=", by, GROUPS)
    table, case = pair_sums(forecast, truth, metrics, climatology)
    labels, codes = _groups(case.forecast["time"].values, by)
    found = case.index >= 0
    variables = {}
    for name, score in table.items():
        grouped = {key: _add(sums, codes, len(labels)) for key, sums in score.sums.items()}
        values = np.stack([metric_of(metric, grouped[METRICS[metric].statistic]) for metric in metrics])
        array = xr.DataArray(values, dims=("metric", LEAD, "level", "group"), attrs=_attributes(score, found.sum() * case.points))
        variables[name] = array.isel(level=0) if score.levels == [None] else array.assign_coords(level=score.levels)
    counts = np.stack([found[codes == group].sum(0) for group in range(len(labels))], axis=-1)
    scores = xr.Dataset(variables).assign_coords(
        {"metric": list(metrics), LEAD: case.forecast[LEAD].values, "group": labels, "initial_times": ((LEAD, "group"), counts)}
    )
    return scores.isel(group=0, drop=True) if by is None else scores


def _attributes(score: Score, points: float) -> dict[str, Any]:
    """Unit and share of the points that were scored; acc, which counts forecasts and not points, has no such share."""
    attributes: dict[str, Any] = {} if score.units is None else {"units": score.units}
    weights = [weight for key, (_, weight) in score.sums.items() if key != "correlation"]
    if weights:
        attributes["scored"] = float(weights[0].sum() / (points * len(score.levels)))
    return attributes


def check_metrics(metrics: Sequence[str] | str) -> tuple[str, ...]:
    """Names of metrics, each once.  Raises WxlabError for an unknown one and for none."""
    names = tuple(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    if not names:
        raise WxlabError(f"metrics is empty; give some of {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return names


def pair_sums(
    forecast: xr.Dataset, truth: States, metrics: Sequence[str], climatology: Reference | None
) -> tuple[Mapping[str, Score], _Case]:
    """Sums of the statistics of metrics for each variable, initial time and lead time."""
    case = _case(forecast, truth, metrics, climatology)
    statistics = tuple(dict.fromkeys(METRICS[name].statistic for name in metrics))
    table = {}
    for name, levels in shared_variables(case.forecast, case.truth).items():
        shape = (*case.index.shape, len(levels))
        sums = {key: (np.zeros(shape), np.zeros(shape)) for key in statistics}
        for place, block in _blocks(case, name, levels):
            # a forecast that went to infinity scores infinity or NaN, without a warning for each of its points
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                for key in statistics:
                    for whole, part in zip(sums[key], STATISTICS[key](block), strict=True):
                        whole[place] = part
        units = case.truth[name].attrs.get("units", case.forecast[name].attrs.get("units"))
        table[name] = Score(levels, sums, units)
    return table, case


def _case(forecast: xr.Dataset, truth: States, metrics: Sequence[str], climatology: Reference | None) -> _Case:
    forecast, states = as_forecast(forecast), as_states(truth)
    grid = same_grid(forecast, grid_of(states), "truth")
    members = forecast.sizes.get("number", 1)
    for name in metrics:
        if members < METRICS[name].members:
            raise WxlabError(f"metric {name!r} needs {METRICS[name].members} members or more, and the forecast has {members}; leave it out")
    reader = None
    if "acc" in metrics:
        if climatology is None:
            raise WxlabError("the metric 'acc' needs a climatology; give climatology=store.climatology()")
        reader = climatology_reader(climatology, forecast)
    stamps = valid_times(forecast)
    index = positions(stamps, states["time"].values)
    if not (index >= 0).any():
        spans = [f"{time_text(t.min())} to {time_text(t.max())}" if t.size else "nothing" for t in (stamps, seconds(states["time"].values))]
        raise WxlabError(f"none of the valid times of the forecast ({spans[0]}) is a time of the truth ({spans[1]}); give truth for them")
    return _Case(forecast, states, index, reader, grid)


def _blocks(case: _Case, name: str, levels: list[float | None]) -> Iterator[tuple[tuple[slice, ...], Block]]:
    """Pieces of a variable: their place among (initial times, lead times, levels), and what is in them."""
    field = ordered(case.forecast[name], levels, ("number", "time", LEAD), case.grid)
    states = ordered(case.truth[name], levels, ("time",), case.grid)
    valid = valid_times(case.forecast)
    weights = np.repeat(area_weights(case.grid), case.grid.shape[1])
    for place in _pieces(field):
        times, leads, heights = place
        index = case.index[times, leads]
        if (index < 0).all():
            continue
        here = dict(zip(("time", LEAD, "level"), place, strict=True))
        members = np.asarray(field.isel(here).values, dtype=np.float64)
        members = members.reshape(*members.shape[:4], case.points)
        rows, where = np.unique(index, return_inverse=True)
        where = where.reshape(index.shape) - int(rows[0] < 0)
        read = states.isel(time=rows[rows >= 0], level=heights).values
        observed = _spread_out(read, where)
        normal = None
        if case.climatology is not None:
            stamps, place_of = np.unique(valid[times, leads], return_inverse=True)
            normal = _spread_out(case.climatology(name, levels[heights], stamps), place_of.reshape(index.shape))
        yield place, Block(members, observed, weights, normal)


def _spread_out(states: np.ndarray, where: np.ndarray) -> np.ndarray:
    """States [U, K, H, W] put in the places [T, L] that ``where`` names: float64 [T, L, K, P], NaN for -1."""
    flat = states.reshape(*states.shape[:2], -1)
    out = np.full((*where.shape, *flat.shape[1:]), np.nan)
    there = where >= 0
    out[there] = flat[where[there]]
    return out


def _pieces(field: xr.DataArray) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of (initial times, lead times, levels): whole chunks of a lazy field, as many as fit into memory together."""
    room = max(1, BLOCK_VALUES // max(1, field.sizes["number"] * field.shape[-2] * field.shape[-1]))
    spans = {}
    for dim in ("level", LEAD, "time"):
        size, chunk = field.sizes[dim], field.chunksizes.get(dim, (1,))[0]
        step = min(size, max(chunk, room // chunk * chunk))
        room = max(1, room // step)
        spans[dim] = [slice(first, min(first + step, size)) for first in range(0, size, step)]
    return ((time, lead, level) for time in spans["time"] for lead in spans[LEAD] for level in spans["level"])


def _groups(times: np.ndarray, by: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the groups of initial times, and the group of each time."""
    month = times.astype("datetime64[M]").astype(np.int64) % 12
    if by == "season":
        found, codes = np.unique((month + 1) % 12 // 3, return_inverse=True)
        return _SEASONS[found], codes
    stamps = seconds(times)
    keys = {"month": month + 1, "hour": stamps % DAY // 3600, "time": times, None: np.zeros(len(times), dtype=np.int64)}
    labels, codes = np.unique(keys[by], return_inverse=True)
    return labels, codes


def _add(sums: Sums, codes: np.ndarray, groups: int) -> Sums:
    """Sums over the initial times of each group: [lead times, levels, groups]."""
    total, weight = (np.stack([part[codes == group].sum(0) for group in range(groups)], axis=-1) for part in sums)
    return total, weight
