"""What diagrams are drawn from: rank histograms, reliability, spectra by lead time, probabilities of exceedance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from wxlab.errors import WxlabError
from wxlab.readers.units import power as power_of_unit
from wxlab.spectra import radial_coordinates, radial_power
from wxlab.verification.blocks import Block, Case, Ensemble, Settings, Sums, accumulate, make_case
from wxlab.verification.ensemble import ranks, reliability_sums
from wxlab.verification.inputs import LEAD, States, as_forecast, together
from wxlab.verification.metrics import Options
from wxlab.verification.thresholds import Thresholds, limits, thresholds_of


def rank_histogram(forecast: xr.Dataset, truth: States, *, least: float | None = None, seed: int = 0) -> xr.Dataset:
    """How often the truth has each rank among the members: share of the points that were scored, by lead time.

    Rank r: r members lie below the truth, from 0 to M. Where members equal the truth, as in dry areas, the rank is drawn among those
    that it may have. The histogram of an ensemble that the truth could be a member of is flat, at 1 / (M + 1).

    forecast, truth: as for ``verify``; the forecast has members.  least: smaller values count as equal to each other, in units of the
    variable; for rain the least that is not dry, since no network writes exact zeros.  seed: of the draws, which are the same however
    forecasts are read.
    Returns a Dataset with dims (prediction_timedelta, [level], rank).
    Raises WxlabError without members, and for what ``verify`` refuses.  Reference: Hamill 2001,
    doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.
    """
    case = make_case(forecast, truth)
    _need_members(case, "a rank histogram")
    table = accumulate(case, {"ranks": lambda block: ranks(block, seed, -np.inf if least is None else least)}, {})
    found = {}
    for name, score in table.items():
        total, weight = (part.sum(0) for part in score.sums["ranks"])
        share = np.divide(total, weight[..., None], out=np.full(total.shape, np.nan), where=weight[..., None] > 0)
        found[name] = _by_lead(case, share, ("rank",), {"rank": np.arange(share.shape[-1])}, score.levels, "1")
    return together(found)


def reliability(forecast: xr.Dataset, truth: States, *, thresholds: Thresholds, bins: int | None = None) -> xr.Dataset:
    """How often an event happened where it was given a probability, the share of members that reach a threshold, by lead time.

    forecast, truth, thresholds: as for ``verify``.  bins: of equal width over 0..1; None: a bin for each number of members.
    Returns a Dataset with dims (quantity, prediction_timedelta, [level], threshold, bin), where quantity is ``probability`` (mean of
    the forecasts in the bin), ``frequency`` (of the event) and ``share`` (of all points); the first two are NaN in an empty bin.
    Raises WxlabError without members or bins, and for what ``verify`` refuses.
    Reference: Wilks 2019, doi:10.1016/C2017-0-03921-6, section 9.4.4.
    """
    if bins is not None and (isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 2):
        raise WxlabError(f"bins={bins!r} must be a whole number of at least 2")
    case = make_case(forecast, truth)
    count = int(bins or _need_members(case, "a reliability diagram") + 1)
    settings = {name: Settings(thresholds=thresholds_of(name, thresholds)) for name in case.levels}
    table = accumulate(case, {"bins": lambda block: reliability_sums(block, count)}, settings)
    found = {}
    for name, score in table.items():
        total, weight = (part.sum(0) for part in score.sums["bins"])
        area = total[..., 0]
        means = np.divide(total[..., 1:], area[..., None], out=np.full((*area.shape, 2), np.nan), where=area[..., None] > 0)
        share = np.divide(area, weight[..., None, None], out=np.full(area.shape, np.nan), where=weight[..., None, None] > 0)
        values = np.concatenate([means, share[..., None]], axis=-1)
        coords = {"threshold": list(settings[name].thresholds), "bin": np.arange(count), "quantity": ["probability", "frequency", "share"]}
        array = _by_lead(case, values, ("threshold", "bin", "quantity"), coords, score.levels, "1")
        found[name] = array.transpose("quantity", ...)
    return together(found)


def radial_spectra(forecast: xr.Dataset, truth: States, *, ensemble: Ensemble = "members") -> xr.Dataset:
    """Mean radial power spectra of forecast and truth at the same valid times, by lead time; ``wxlab.spectra.radial`` has the formula.

    forecast, truth: as for ``verify``, on y and x; fields with a missing point are left out.  ensemble: spectra of each of the
    ``members``, of their ``mean``, or of the probability-``matched`` mean.
    Returns a Dataset with dims (source, prediction_timedelta, [level], wavenumber), where source is ``forecast`` and ``truth``, in
    the square of the variable's unit, with the coordinates wavelength (metres) and modes.
    Raises WxlabError for what ``verify`` refuses, and on latitude and longitude.
    """
    case = make_case(forecast, truth)
    if case.grid.kind != "xy":
        raise WxlabError("radial spectra need a plane with y and x in metres; the forecast lies on latitude and longitude")
    steps = (abs(float(np.mean(np.diff(case.grid.y)))), abs(float(np.mean(np.diff(case.grid.x)))))
    for axis, step in zip((case.grid.y, case.grid.x), steps, strict=True):
        if len(axis) < 2 or not np.allclose(np.abs(np.diff(axis)), step, rtol=1e-3):
            raise WxlabError("radial spectra need evenly spaced y and x, at least two points along each")

    def powers(block: Block) -> Sums:
        ours, theirs = (block.as_maps(np.where(block.complete[..., None], field, 0.0)) for field in (block.fields("members"), block.truth))
        total = np.stack([radial_power(ours, steps).mean(0), radial_power(theirs, steps)], axis=-2)
        return total * block.complete[..., None, None], block.complete.astype(np.float64)

    settings = Options(ensemble=ensemble).settings("", ())
    table = accumulate(case, {"power": powers}, dict.fromkeys(case.levels, settings))
    found, rings = {}, radial_coordinates(case.grid.shape, steps)
    for name, score in table.items():
        total, weight = (part.sum(0) for part in score.sums["power"])
        mean = np.divide(total, weight[..., None, None], out=np.full(total.shape, np.nan), where=weight[..., None, None] > 0)
        units = None if score.units is None else power_of_unit(score.units, 2)
        coords = {"source": ["forecast", "truth"], **rings}
        found[name] = _by_lead(case, mean, ("source", "wavenumber"), coords, score.levels, units).transpose("source", ...)
    return together(found)


def exceedance(forecast: xr.Dataset, thresholds: Thresholds) -> xr.Dataset:
    """Probability that each threshold is reached: the share of members, NaN where one of them is missing.

    forecast: dims time, number, prediction_timedelta, ...  thresholds: as for ``verify``.
    Returns a Dataset with ``threshold`` in place of ``number``.  Raises WxlabError without members.
    """
    forecast = as_forecast(forecast)
    if "number" not in forecast.dims:
        raise WxlabError("probabilities need a forecast with members, and this one has none; make it with members=")
    found = {}
    for name, field in forecast.data_vars.items():
        if "number" not in field.dims:
            continue
        chosen = thresholds_of(str(name), thresholds)
        shares = [(field >= limit).mean("number").where(field.notnull().all("number")) for limit in limits(chosen)]
        array = xr.concat(shares, dim="threshold").assign_coords(threshold=list(chosen)).assign_attrs(units="1")
        units = {"units": field.attrs["units"]} if "units" in field.attrs else {}
        array["threshold"].attrs.update(units)
        found[str(name)] = array.transpose("time", "threshold", ...)
    return together(found)


def _need_members(case: Case, what: str) -> int:
    count = case.forecast.sizes.get("number", 1)
    if count < 2:
        raise WxlabError(f"{what} needs a forecast with members, and this one has none; make it with members=")
    return count


def _by_lead(
    case: Case, values: np.ndarray, dims: tuple[str, ...], coords: Mapping[str, object], levels: list[float | None], units: str | None
) -> xr.DataArray:
    """Values [L, K, *dims] with their names."""
    array = xr.DataArray(values, dims=(LEAD, "level", *dims), coords={LEAD: case.forecast[LEAD].values, **coords})
    array = array.isel(level=0) if levels == [None] else array.assign_coords(level=levels)
    return array.assign_attrs({} if units is None else {"units": units})
