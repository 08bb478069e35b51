"""Whether what a network looks at agrees with what the data say: learned weights between variables against measured couplings.

The measures of what a source variable says about a target one, ``lag`` later; x and y are anomalies from the mean over time at each
point, divided by their standard deviation; means are over points, by area:

    correlation          mean |r(y, x)|
    gradient             mean of the larger of |r(y, ∂x/∂latitude)| and |r(y, ∂x/∂longitude)|: what geostrophy is made of
    mutual_information   I(y; x) in nats, of points and times drawn together
    partners             1 for the pairs that geostrophy (u ~ ∂z/∂y, v ~ ∂z/∂x) and the thermal wind (∂T/∂y ~ ∂u/∂p) join, else 0

Agreement is the rank correlation of weights and measure over the sources of each target, all targets taken together: weights are shares
of what a target looks at, and say nothing between targets, nor does what a variable says about itself count. As pairs that share a
variable are not independent, the p-value is that of Mantel's test: names of variables are permuted in rows and columns at once.
Reference: Mantel 1967, Cancer Research 27, 209; Kraskov et al. 2004, doi:10.1103/PhysRevE.69.066138 (mutual information).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import permutations as orders
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from wxlab.channels import belongs, dataset_channels, split_channel, stack
from wxlab.errors import WxlabError, is_number, is_whole, unknown
from wxlab.grids import cosine_weights, grid_of, is_periodic
from wxlab.models import get_entry, list_models
from wxlab.models.base import Model

Array = NDArray[np.float64]
MEASURES = ("correlation", "gradient", "mutual_information", "partners")
LEAST_TIMES = 8
DRAWN = 1000  # points and times of mutual information
NEIGHBOURS = 3
AT_ONCE = 16  # states read together
WINDS = ("u_component_of_wind", "v_component_of_wind")
LOW_WINDS = ("10m_u_component_of_wind", "10m_v_component_of_wind")


def couplings(
    maps: xr.Dataset,
    data: Any,
    *,
    control: xr.Dataset | Sequence[xr.Dataset] = (),
    lag: float | None = None,
    measures: Sequence[str] | None = None,
    permutations: int = 9999,
    times: int = 200,
    points: int = 1024,
    seed: int = 0,
) -> xr.Dataset:
    """Compare learned weights between variables with what the data say about them.

    maps: from ``wxlab.attention.capture``: attention over variables (Met2Net), or experts of variables, whose weight is the share of
    picks in common (VA-MoE).  data: a Dataset in physical units, or a Store.  control: the maps of untrained networks (``untrained``).
    lag: hours from source to target (None: the model's step).  measures: of ``MEASURES`` (None: all that the variables have).
    permutations: all orders of the variables' names where there are no more than one above it, else so many at random.
    times, points: at most so many, evenly and randomly chosen.
    Returns ``weight`` (network, target, source), ``association`` (measure, target, source), ``relation`` (target, source) in words,
    ``agreement`` and ``p_value`` (network, measure), and with a control ``gain`` and ``gain_p_value`` (measure): the agreement of the
    trained weights less the mean of the untrained ones. All p-values are one-sided. Rows that are all even agree with nothing (NaN).
    Raises WxlabError for maps without variables, fewer than three of them, data that lack them, hold missing values or too few times.
    """
    for name, value in (("permutations", permutations), ("times", times), ("points", points)):
        if not is_whole(value):
            raise WxlabError(f"{name}={value!r} must be a whole number of at least 1")
    trained = between_variables(maps)
    labels = [str(name) for name in trained["target"].values]
    others = [between_variables(each) for each in ([control] if isinstance(control, xr.Dataset) else control)]
    for other in others:
        if other["target"].values.tolist() != labels:
            raise WxlabError("the control has other variables than the maps; capture both with models of the same channels")
    if len(labels) < 3:
        raise WxlabError(f"the weights join {len(labels)} variables, and a test needs at least 3; give a model of more variables")
    hours = maps.attrs.get("step_hours", 0.0) if lag is None else lag
    if not is_number(hours) or hours < 0:
        raise WxlabError(f"lag={lag!r} must be a number of hours of at least 0")
    if not isinstance(data, xr.Dataset) and not hasattr(data, "dataset"):
        raise WxlabError(f"data is a {type(data).__name__}; give a Dataset in physical units, or a store that open_store returns")
    dataset = data if isinstance(data, xr.Dataset) else data.dataset()
    groups = _groups(labels, dataset_channels(dataset))
    relation = _relations(groups)
    chosen = _measures(measures, bool((relation != "").any()))
    found = _associations(chosen, groups, relation, dataset, hours, times, points, seed)

    networks = ["trained", *(f"untrained {i + 1}" for i in range(len(others)))]
    weights = np.stack([each.values.astype(np.float64) for each in (trained, *others)])
    permuted = _Permutations(len(labels), permutations, seed)
    agreement, p_value, gain, gain_p = permuted.test(weights, np.stack([found[name] for name in chosen]))
    pair = ("target", "source")
    variables: dict[str, Any] = {
        "weight": (("network", *pair), weights),
        "association": (("measure", *pair), np.stack([found[name] for name in chosen])),
        "relation": (pair, relation),
        "agreement": (("network", "measure"), agreement),
        "p_value": (("network", "measure"), p_value),
    }
    if others:
        variables |= {"gain": ("measure", gain), "gain_p_value": ("measure", gain_p)}
    facts = {"model": maps.attrs.get("model", ""), "lag_hours": float(hours), "permutations": permuted.count, "exact": int(permuted.exact)}
    return xr.Dataset(variables, {"network": networks, "measure": chosen, "target": labels, "source": labels}, facts)


def untrained(model: Model, count: int = 3, *, seed: int = 0) -> list[Model]:
    """Networks like a model with new random weights, for a control: ``[capture(each, batch) for each in untrained(model)]``.

    Raises WxlabError for a model that is none of the registry, such as one joined of two.
    """
    if model.name not in list_models():
        raise WxlabError(
            f"{model.name or type(model).__name__} cannot be made anew from its name; give one of the registry's networks, "
            "such as the transformer alone of a forecaster of latents"
        )
    entry, made = get_entry(model.name), []
    parameter = next(model.parameters())
    for i in range(count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + i)
            other = entry.build(model.spec, **model.config)
        other.name, other.licence, other.normaliser = model.name, model.licence, model.normaliser
        made.append(other.to(parameter.device, parameter.dtype).eval())
    return made


def between_variables(maps: xr.Dataset) -> xr.DataArray:
    """Mean learned weight of each source variable for each target one: (target, source).

    maps: from ``wxlab.attention.capture``.  Raises WxlabError when none of its kinds runs over variables.
    """
    for array in maps.data_vars.values():
        if array.ndim > 1 and [str(dim).partition("_")[0] for dim in array.dims[-2:]] == ["target", "source"]:
            mean = array.mean(array.dims[:-2]).astype(np.float64)
            return mean.rename(dict(zip(mean.dims, ("target", "source"), strict=True))).reset_coords(drop=True)
    for array in maps.data_vars.values():
        if array.attrs.get("into") == "feature" and "expert" in array.dims:
            common = _picks_in_common(array.values)
            names = array["expert"].values
            return xr.DataArray(common, {"target": names, "source": names}, ("target", "source"))
    axes = ", ".join(dict.fromkeys(str(dim) for array in maps.data_vars.values() for dim in array.dims[-2:]))
    raise WxlabError(
        f"the maps of {maps.attrs.get('model') or 'this model'} run over {axes or 'nothing'}, not over variables; "
        "capture those of met2net, ladder_attention or vamoe, and leave heads and layers as they are"
    )


def _picks_in_common(channels: NDArray[Any]) -> Array:
    """[..., expert, token, rank] -> share of its picks that an expert has in common with another, [expert, expert]."""
    flat = channels.reshape(-1, *channels.shape[-3:])
    width, total = int(flat.max()) + 1, np.zeros((flat.shape[1],) * 2)
    for each in flat:
        picked = np.zeros((*each.shape[:2], width), np.float32)
        np.put_along_axis(picked, each, 1, axis=-1)
        rows = picked.reshape(len(picked), -1)
        total += rows @ rows.T / each[0].size
    return total / len(flat)


def _groups(labels: Sequence[str], channels: Sequence[str]) -> list[list[str]]:
    """The data's channels behind each variable of a network: a channel, some joined by '+', a variable on levels, or ``surface``."""
    groups = []
    for label in labels:
        members: list[str] = []
        for part in label.split("+"):
            surface = part == "surface" and part not in channels
            fits = [name for name in channels if (split_channel(name)[1] is None if surface else belongs(name, part))]
            if not fits:
                raise unknown("variable of the data", part, channels, "give data with the variables of the model")
            members += fits
        groups.append(members)
    return groups


def _relations(groups: Sequence[Sequence[str]]) -> NDArray[Any]:
    """How physics joins the variables, in words, '' where it does not: [target, source]."""
    located = [split_channel(name) for members in groups for name in members]
    levels = sorted({level for name, level in located if name in WINDS and level is not None})
    out = np.full((len(groups), len(groups)), "", dtype=object)
    for i, ours in enumerate(groups):
        for j, theirs in enumerate(groups):
            if i != j:
                words = {relation(one, other, levels) for one in ours for other in theirs} - {""}
                out[i, j] = " and ".join(sorted(words))
    return out.astype(str)


def relation(one: str, other: str, levels: Sequence[int] = ()) -> str:
    """``geostrophic``, ``thermal wind`` or '': how two channels are joined by balance.

    Geostrophic: wind and geopotential of a level; wind at 10 m and pressure at sea level. Thermal wind: temperature of a level and wind of
    the same level or the next one, up or down, of ``levels``, those of winds (hPa).
    """
    for mass, wind in ((one, other), (other, one)):
        (field, level), (part, height) = split_channel(mass), split_channel(wind)
        if field == "mean_sea_level_pressure" and part in LOW_WINDS:
            return "geostrophic"
        if part not in WINDS or level is None or height is None:
            continue
        if field == "geopotential" and level == height:
            return "geostrophic"
        if field == "temperature" and not any(min(level, height) < between < max(level, height) for between in levels):
            return "thermal wind"
    return ""


def _measures(asked: Sequence[str] | None, partners: bool) -> list[str]:
    if asked is None:
        return [name for name in MEASURES if partners or name != "partners"]
    names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
    for name in names:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
    if "partners" in names and not partners:
        raise WxlabError("no two of these variables are geostrophic or thermal-wind partners; leave 'partners' out of measures")
    if not names:
        raise WxlabError(f"no measure was asked for; choose of {', '.join(MEASURES)}")
    return names


# ---- what the data say


class _Sample(NamedTuple):
    """Standardised anomalies [C, T, N] of the sources, of the targets one lag later, and of the sources' gradients [2, C, T, N]."""

    sources: Array
    targets: Array
    gradients: Array
    weights: Array  # [N], of the points, sum 1


def _associations(
    chosen: Sequence[str],
    groups: Sequence[Sequence[str]],
    relation: NDArray[Any],
    dataset: xr.Dataset,
    hours: float,
    times: int,
    points: int,
    seed: int,
) -> dict[str, Array]:
    """Each measure between groups of channels: the mean over pairs of their members."""
    channels = list(dict.fromkeys(name for members in groups for name in members))
    found: dict[str, Array] = {}
    if set(chosen) - {"partners"}:
        sample = _sample(dataset, channels, hours, times, points, seed)
        if "correlation" in chosen:
            found["correlation"] = np.abs(_correlations(sample.targets, sample.sources)) @ sample.weights
        if "gradient" in chosen:
            both = np.stack([np.abs(_correlations(sample.targets, part)) for part in sample.gradients])
            found["gradient"] = both.max(0) @ sample.weights
        if "mutual_information" in chosen:
            found["mutual_information"] = _mutual_information(sample, seed)
    place = [[channels.index(name) for name in members] for members in groups]
    grouped = {name: np.array([[values[np.ix_(i, j)].mean() for j in place] for i in place]) for name, values in found.items()}
    return grouped | {"partners": (relation != "").astype(np.float64)}


def _correlations(targets: Array, sources: Array) -> Array:
    """At each point, over time: [C, T, N], [C, T, N] -> [target, source, N]."""
    products = targets.transpose(2, 0, 1) @ sources.transpose(2, 1, 0) / targets.shape[1]
    return np.asarray(products.transpose(1, 2, 0))


def _mutual_information(sample: _Sample, seed: int) -> Array:
    from sklearn.feature_selection import mutual_info_regression

    count, length, size = sample.sources.shape
    random = np.random.default_rng(seed)
    when = random.integers(length, size=DRAWN)
    where = random.choice(size, DRAWN, p=sample.weights)
    x, y = (values[:, when, where].T for values in (sample.sources, sample.targets))
    rows = [mutual_info_regression(x, y[:, i], n_neighbors=NEIGHBOURS, random_state=seed) for i in range(count)]
    return np.stack(rows)


def _sample(dataset: xr.Dataset, channels: Sequence[str], hours: float, times: int, points: int, seed: int) -> _Sample:
    grid = grid_of(dataset)
    first, second = _pairs(dataset, hours, times)
    area = (cosine_weights(grid) if grid.kind == "latlon" else np.ones(grid.shape[0])).repeat(grid.shape[1])
    place = np.random.default_rng(seed).permutation(area.size)[:points] if area.size > points else np.arange(area.size)
    fields = stack(dataset, list(channels))
    sources, gradients = [], []
    for part in _parts(first):
        values = _read(fields, part, channels)
        slopes = _slopes(values, is_periodic(grid) if grid.kind == "latlon" else False)
        sources.append(values.reshape(*values.shape[:2], -1)[..., place])
        gradients.append(slopes.reshape(2, *values.shape[:2], -1)[..., place])
    targets = [(values := _read(fields, part, channels)).reshape(*values.shape[:2], -1)[..., place] for part in _parts(second)]
    return _Sample(
        _standardised(np.concatenate(sources).swapaxes(0, 1)),
        _standardised(np.concatenate(targets).swapaxes(0, 1)),
        _standardised(np.concatenate(gradients, axis=1).swapaxes(1, 2)),
        area[place] / area[place].sum(),
    )


def _pairs(dataset: xr.Dataset, hours: float, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of states and of those ``hours`` later in the same segment, evenly chosen."""
    stamps = dataset["time"].values.astype("datetime64[s]").astype(np.int64)
    segment = np.asarray(dataset["segment"].values) if "segment" in dataset.coords else np.zeros(len(stamps), np.int64)
    order = np.argsort(stamps, kind="stable")
    later = np.searchsorted(stamps[order], stamps + round(hours * 3600))
    partner = order[np.minimum(later, len(order) - 1)]
    fits = (stamps[partner] == stamps + round(hours * 3600)) & (segment[partner] == segment)
    first = np.flatnonzero(fits)
    if len(first) < LEAST_TIMES:
        apart = f", and lie {np.median(np.diff(np.sort(stamps))) / 3600:g} h apart" if len(stamps) > 1 else ""
        raise WxlabError(
            f"the data have {len(first)} states with another {hours:g} h later, where {LEAST_TIMES} are needed{apart}; "
            "give more times, or a lag= that fits them"
        )
    first = first[np.unique(np.linspace(0, len(first) - 1, min(most, len(first))).round().astype(int))]
    return first, partner[first]


def _parts(positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(positions), AT_ONCE):
        yield positions[start : start + AT_ONCE]


def _read(fields: xr.DataArray, positions: NDArray[np.int64], channels: Sequence[str]) -> Array:
    """[T, C, H, W]. Raises WxlabError where something is missing."""
    values = np.asarray(fields.isel(time=positions).transpose("time", "channel", ...).values, dtype=np.float64)
    missing = ", ".join(name for name, field in zip(channels, values.swapaxes(0, 1), strict=True) if not np.isfinite(field).all())
    if missing:
        raise WxlabError(f"the data hold missing values (NaN) in {missing}; fill them, or give data without these variables")
    return values


def _slopes(values: Array, periodic: bool) -> Array:
    """Differences along rows and columns, up to factors that change with the place alone: [..., H, W] -> [2, ..., H, W]."""
    along = np.roll(values, -1, -1) - np.roll(values, 1, -1) if periodic else np.gradient(values, axis=-1)
    return np.stack([np.gradient(values, axis=-2), along])


def _standardised(values: Array) -> Array:
    """Anomalies [..., T, N] from the mean over time in standard deviations; 0 where nothing changes."""
    scale = np.abs(values).max((-2, -1), keepdims=True)
    values = values - values.mean(-2, keepdims=True)
    spread = values.std(-2, keepdims=True)
    return np.divide(values, spread, out=np.zeros_like(values), where=spread > 1e-12 * scale)


# ---- whether both agree


class _Permutations:
    """Orders of V names: all of them where there are few enough, else some at random."""

    def __init__(self, variables: int, most: int, seed: int) -> None:
        self.exact = math.factorial(variables) <= most + 1
        if self.exact:
            self.rows = np.array(list(orders(range(variables))))
        else:
            random = np.random.default_rng(seed)
            self.rows = np.stack([np.arange(variables), *(random.permutation(variables) for _ in range(most))])  # as it is counts too
        self.count = len(self.rows)
        self.off = ~np.eye(variables, dtype=bool)

    def test(self, weights: Array, measures: Array) -> tuple[Array, Array, Array, Array]:
        """weights [W, V, V], the first trained, and measures [M, V, V] -> agreement and its p [W, M]; gain and its p [M]."""
        ranked, wanted = (np.stack([self._ranks(each) for each in side]) for side in (weights, measures))
        size = max(1, 2**22 // weights[0].size)
        scores = np.concatenate(
            [self._scores(ranked, wanted, self.rows[start : start + size]) for start in range(0, self.count, size)], axis=-1
        )  # [W, M, orders], the first as it is
        gains = scores[0] - scores[1:].mean(0) if len(scores) > 1 else np.full(scores.shape[1:], np.nan)
        return scores[..., 0], _p(scores), gains[..., 0], _p(gains)

    def _scores(self, ranked: Array, wanted: Array, rows: NDArray[np.int64]) -> Array:
        permuted = wanted[:, rows[:, :, None], rows[:, None, :]]  # [M, orders, V, V]
        return np.einsum("wij,mnij->wmn", ranked, permuted, optimize=True)

    def _ranks(self, matrix: Array) -> Array:
        """Ranks of each row off the diagonal, mean 0, length of all 1; 0 on it. NaN where all rows are even."""
        from scipy.stats import rankdata

        ranks = rankdata(np.round(matrix[self.off].reshape(len(matrix), -1), 12), axis=1)
        ranks = ranks - ranks.mean(1, keepdims=True)
        length = np.linalg.norm(ranks)
        out = np.zeros(matrix.shape)
        out[self.off] = (ranks / length if length > 0 else np.full(ranks.shape, np.nan)).ravel()
        return out


def _p(scores: Array) -> Array:
    """Share of all orders that agree at least as well as the first: [..., orders] -> [...]."""
    share = (scores >= scores[..., :1] - 1e-12).mean(-1)
    return np.where(np.isnan(scores[..., 0]), np.nan, share)
