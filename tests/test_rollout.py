"""Roll-out: the same forecast by one step or by blocks, random streams, masked points, files, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from noise import make, times_of
from torch import Tensor, nn

import wxlab
from wxlab import forcings, rollout
from wxlab.channels import stack
from wxlab.errors import WxlabError
from wxlab.forcings import seconds
from wxlab.grids import Grid
from wxlab.models import create_model
from wxlab.models.base import Batch, Model, Spec
from wxlab.normaliser import Normaliser, Transform
from wxlab.rollout import LEAD, Streams, forecast, initial_times, past_offsets
from wxlab.store import prepare
from wxlab.verification import persistence, verify

GRID = Grid.regular(4, 8)
NAMES = ("2m_temperature", "geopotential_500")
DAY = 86400
STATES = make(times_of(20), GRID)
UNITS = Normaliser({"2m_temperature": Transform("zscore", 280.0, 5.0), "geopotential_500": Transform("zscore", 56000.0, 200.0)})


class Recurrence(Model):
    """z_n = 1.5 z_(n-1) - 0.7 z_(n-2) + 0.1 from two states, ``horizon`` of them at a call."""

    def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
        frames = list(batch.history.unbind(1))
        for _ in range(self.spec.horizon):
            frames.append(1.5 * frames[-1] - 0.7 * frames[-2] + 0.1)
        return self.repeat_members(torch.stack(frames[2:], dim=1), members)


class Trend(Model):
    """z_n = 2 z_0 - z_(-k), the difference of the two states read, one step at a call."""

    def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
        return self.repeat_members(2 * batch.history[:, -1:] - batch.history[:, :1], members)


class Walk(Model):
    """The last state plus noise: stochastic, ``horizon`` steps at a call."""

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        assert generator is not None
        noise = generator.randn((self.spec.horizon, *batch.history.shape[2:]), dtype=batch.history.dtype)
        return batch.history[:, -1, None, None] + 0.5 * noise.cumsum(2)


class Recorder(Model):
    """Persistence that keeps the batches it was given."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.batches: list[Batch] = []
        self.weight = nn.Parameter(torch.zeros(()))

    def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
        self.batches.append(batch)
        assert not self.training and not torch.is_grad_enabled()
        return self.repeat_members(batch.history[:, -1:].expand(-1, self.spec.horizon, -1, -1, -1) + 1, members)


def build(kind: type[Model], normaliser: Normaliser | None = UNITS, **how: Any) -> Any:
    model = kind(Spec(**{"channels": NAMES, "grid": GRID, "history": 1, "horizon": 1, "step": DAY, **how}))
    model.normaliser = normaliser
    return model


def walk(**how: Any) -> Any:
    return build(Walk, stochastic="noise", **how)


# --- one roll-out for every model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 2, 4, 12])
def test_single_steps_chunks_and_blocks_give_the_recurrence(horizon: int) -> None:
    made = forecast(build(Recurrence, history=2, horizon=horizon), STATES, steps=7, batch_size=5)
    assert made.sizes["time"] == 19 and made[LEAD].values.tolist() == [DAY * 10**9 * n for n in range(1, 8)]
    z = (STATES["2m_temperature"].values.astype("f8") - 280) / 5
    past = [z[:-1], z[1:]]
    for n in range(7):
        past.append(1.5 * past[-1] - 0.7 * past[-2] + 0.1)
        np.testing.assert_allclose(made["2m_temperature"].values[:, n], past[-1] * 5 + 280, rtol=2e-6)


def test_states_read_further_apart_than_they_are_written() -> None:
    """Read every other day and written daily: the calls between take the days between, which lie before the initial time."""
    model = build(Trend, history=2, history_step=2 * DAY)
    assert past_offsets(model, 1).tolist() == [-2 * DAY, 0] and past_offsets(model, 5).tolist() == [-2 * DAY, -DAY, 0]
    made = forecast(model, STATES, steps=5)
    z = (STATES["2m_temperature"].values.astype("f8") - 280) / 5
    days = {n: z[2 + n : len(z) + n] for n in (-2, -1)} | {0: z[2:]}
    for n in range(5):
        days[n + 1] = 2 * days[n] - days[n - 2]
        np.testing.assert_allclose(made["2m_temperature"].values[:, n], days[n + 1] * 5 + 280, rtol=5e-6)
    assert made["time"].values[0] == STATES["time"].values[2]
    gap, days = STATES.isel(time=[*range(5), *range(6, 20)]), STATES["time"].values
    assert days[6] in initial_times(model, gap)  # one step does not read the day that is missing, more do
    assert days[6] not in initial_times(model, gap, steps=2) and days[6] not in initial_times(model, gap, last=2)


def test_a_block_whose_states_are_too_coarse_to_be_read_again() -> None:
    model = build(Trend, history=2, step=2 * DAY, history_step=DAY)
    assert forecast(model, STATES, steps=1).sizes["time"] == 19
    with pytest.raises(WxlabError, match=r"reads states every 24 h and writes them every 48 h, .* at most 1 steps"):
        forecast(model, STATES, steps=2)


def test_persistence_is_the_persistence_of_verification() -> None:
    model = create_model("persistence", channels=NAMES, grid=GRID, step=DAY, horizon=2)
    model.normaliser = UNITS
    made = forecast(model, STATES, steps=3)
    expected = persistence(STATES, like=made)
    assert dict(made.sizes) == {"time": 20, LEAD: 3, "level": 1, "latitude": 4, "longitude": 8}
    for name in ("2m_temperature", "geopotential"):
        np.testing.assert_allclose(made[name].values, expected[name].values, rtol=1e-6)
    xr.testing.assert_allclose(verify(made, STATES), verify(expected, STATES), rtol=1e-4)


def test_what_the_model_is_given_at_each_call() -> None:
    fields = ("toa_incident_solar_radiation", "year_progress_sin")
    scales = {fields[0]: Transform("zscore", 1e6, 2e6), fields[1]: Transform("none"), "land_sea_mask": Transform("zscore", 0.5, 0.5)}
    units = Normaliser({**UNITS.transforms, **scales})
    model = build(Recorder, units, history=2, horizon=2, forcing=fields, static=("land_sea_mask",)).train()
    forecast(model, STATES, steps=5, times=STATES["time"].values[3:6], batch_size=3)
    assert model.training and len(model.batches) == 3
    start = seconds(STATES["time"].values[3:6])
    for call, batch in enumerate(model.batches):
        days = np.arange(-1, 3) + 2 * call
        assert batch.target is None and batch.mask is None and batch.time.dtype == torch.int64
        assert np.array_equal(batch.time.numpy(), start[:, None] + DAY * days)
        assert batch.forcing is not None and batch.static is not None
        expected = forcings.compute(fields, batch.time.numpy().ravel(), GRID).reshape(3, 4, 2, 4, 8)
        np.testing.assert_allclose(batch.forcing.numpy()[:, :, 0] * 2e6 + 1e6, expected[:, :, 0], rtol=1e-5, atol=1)
        np.testing.assert_allclose(batch.forcing.numpy()[:, :, 1], expected[:, :, 1], rtol=1e-6)
        np.testing.assert_allclose(batch.static.numpy()[0], STATES["land_sea_mask"].values * 2 - 1)
    first, second = model.batches[0].history, model.batches[1].history
    read = np.stack([STATES["2m_temperature"].values[k - 1 : k + 1] for k in (3, 4, 5)])
    np.testing.assert_allclose(first[:, :, 0].numpy(), read / 5 - 56, atol=1e-4)
    assert torch.equal(second, torch.stack([first[:, -1] + 1] * 2, dim=1))


def test_the_model_stays_in_the_mode_it_was_in_even_after_a_fault() -> None:
    model = build(Recorder).train()
    with pytest.raises(WxlabError, match="missing values"):
        forecast(model, STATES.where(STATES["2m_temperature"] > 280), steps=1)
    assert model.training
    model.eval()
    forecast(model, STATES, steps=1)
    assert not model.training


# --- initial times -------------------------------------------------------------------------------------------------------------------


def test_initial_times_have_their_history_in_their_segment() -> None:
    states = STATES.assign_coords(segment=("time", [0] * 8 + [1] * 12)).isel(time=[*range(13), *range(14, 20)])
    model, days = build(Recurrence, history=2), STATES["time"].values
    assert initial_times(model, states).tolist() == days[[*range(1, 8), *range(9, 13), *range(15, 20)]].tolist()
    assert initial_times(model, states, last=3).tolist() == days[[*range(1, 5), 9, 15, 16]].tolist()
    assert forecast(model, states, steps=2)["time"].values.tolist() == initial_times(model, states).tolist()


@pytest.mark.parametrize(
    "how", [lambda t: t, lambda t: seconds(t), lambda t: [str(x)[:16] for x in t], lambda t: [*t, t[0]], lambda t: t[::-1]]
)
def test_initial_times_as_dates_seconds_and_text(how: Any) -> None:
    asked = STATES["time"].values[[4, 9]]
    made = forecast(build(Recurrence, history=2), STATES, steps=1, times=how(asked))
    assert made["time"].values.tolist() == asked.tolist() and made["time"].dtype == "datetime64[ns]"


def test_states_in_any_order_of_time() -> None:
    shuffled = STATES.isel(time=np.random.default_rng(0).permutation(20))
    model = build(Recurrence, history=2)
    xr.testing.assert_identical(forecast(model, shuffled, steps=3), forecast(model, STATES, steps=3))


@pytest.mark.parametrize("turned", ["from the north", "from 180 W", "east to west", "all of it"])
def test_points_in_any_order(turned: str, tmp_path: Path) -> None:
    """A model that knows where its points are reads states in another order right, and the forecast has the order of the states."""

    class Placed(Model):
        def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
            seen.append(batch)
            return self.repeat_members(batch.history[:, -1:] + torch.arange(32).view(4, 8) * batch.static[0], members)

    seen: list[Batch] = []
    states = STATES.assign(hills=(("latitude", "longitude"), np.random.default_rng(0).normal(size=GRID.shape)))
    model = build(Placed, Normaliser({**UNITS.transforms, "hills": Transform("none")}), static=("hills",))
    expected, other = forecast(model, states, steps=2), states
    if turned in ("from the north", "all of it"):
        other = other.isel(latitude=slice(None, None, -1))
    if turned in ("from 180 W", "all of it"):
        other = other.assign_coords(longitude=(other["longitude"] + 180) % 360 - 180).sortby("longitude")
    if turned in ("east to west", "all of it"):
        other = other.isel(longitude=slice(None, None, -1)).transpose("longitude", "time", ...)
    first = seen[0]
    seen.clear()
    for made in (forecast(model, other, steps=2), forecast(model, other, steps=2, out=tmp_path / "made.zarr")):
        assert torch.equal(seen[0].history, first.history) and torch.equal(seen[0].static, first.static)
        for dim in ("latitude", "longitude"):
            np.testing.assert_array_equal(made[dim], other[dim])
        back = made.assign_coords(longitude=made["longitude"] % 360).sortby(["latitude", "longitude"])
        for name in expected:
            np.testing.assert_array_equal(back[name].values, expected[name].values)
        verify(made, other, metrics=("rmse",))  # on the grid of the truth


# --- random streams ------------------------------------------------------------------------------------------------------------------


def test_streams_belong_to_seed_time_member_and_call() -> None:
    times = np.array([0, 6, 12]) * 3600
    whole = Streams(3, times, 4, 0).randn((2, 5))
    assert whole.shape == (3, 4, 2, 5) and len({float(x) for x in whole[..., 0, 0].flatten()}) == 12
    assert torch.equal(Streams(3, times[1:2], [2, 0], 0).randn((2, 5))[0], whole[1, [2, 0]])
    assert torch.equal(Streams(3, times, 4, 0).folded().randn((2, 5))[:, 0], whole.flatten(0, 1))
    assert torch.equal(Streams(np.int64(3), torch.from_numpy(times), 4, 0).randn((2, 5)), whole)  # type: ignore[arg-type]
    assert torch.equal(Streams(3, times.astype("datetime64[s]"), 4, 0).randn((2, 5)), whole)
    for other in (Streams(4, times, 4, 0), Streams(3, times, 4, 1), Streams(3, times + 1, 4, 0)):
        assert not torch.isin(other.randn((2, 5)), whole).any()
    uniform = Streams(3, times, 4, 0).rand((500,), dtype=torch.float64)
    assert uniform.dtype == torch.float64 and uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02


def test_streams_are_the_same_on_every_machine() -> None:
    """The hash is fixed, where that of Python changes from process to process."""
    assert [g.initial_seed() for g in Streams(7, [0, 3600], 1, 2)._generators[0]] == [7324597391291346594]


@pytest.mark.parametrize("horizon", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_members_do_not_depend_on_the_batch(batch_size: int, horizon: int) -> None:
    model = walk(horizon=horizon)
    whole = forecast(model, STATES, steps=3, members=3, seed=5, batch_size=60)
    assert whole["2m_temperature"].dims == ("time", "number", LEAD, "latitude", "longitude")
    parts = forecast(model, STATES, steps=3, members=3, seed=5, batch_size=batch_size)
    xr.testing.assert_identical(parts, whole)
    few = forecast(model, STATES, steps=3, members=2, seed=5, times=STATES["time"].values[[3, 7]])
    xr.testing.assert_identical(few, whole.isel(time=[3, 7], number=[0, 1]))
    one = forecast(model, STATES, steps=2, seed=5, times=STATES["time"].values[[3]])
    np.testing.assert_array_equal(one["geopotential"].values, whole["geopotential"].values[3:4, 0, :2])


def test_no_call_holds_more_fields_than_the_batch() -> None:
    sizes: list[int] = []

    class Counting(Walk):
        def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
            sizes.append(len(batch) * members)
            return super().predict(batch, members, generator)

    forecast(build(Counting, stochastic="noise"), STATES, steps=2, members=5, batch_size=3)
    assert max(sizes) == 3 and sum(sizes) == 20 * 5 * 2


def test_members_differ_and_spread_with_the_square_root_of_the_lead_time() -> None:
    made = forecast(walk(), STATES, steps=4, members=8, seed=1)
    spread = ((made["2m_temperature"] / 5).var("number", ddof=1).mean(["time", "latitude", "longitude"]) ** 0.5).values
    np.testing.assert_allclose(spread, 0.5 * np.sqrt([1, 2, 3, 4]), rtol=0.03)
    assert not np.array_equal(made["2m_temperature"], forecast(walk(), STATES, steps=4, members=8, seed=2)["2m_temperature"])
    step = np.diff(made["2m_temperature"].values / 5, axis=2)
    assert abs(np.corrcoef(step[:, :, 0].ravel(), step[:, :, 1].ravel())[0, 1]) < 0.05


# --- missing values ------------------------------------------------------------------------------------------------------------------


def with_gaps() -> xr.Dataset:
    """Two points without temperature at all times, and one at two times only."""
    values = STATES["2m_temperature"].values.copy()
    values[:, 1, 2:4] = np.nan
    values[4:6, 3, 7] = np.nan
    return STATES.assign({"2m_temperature": (("time", "latitude", "longitude"), values)})


def masked(**how: Any) -> Normaliser:
    return Normaliser(UNITS.transforms, {"2m_temperature": "mask"}, **how)


def test_masked_points_are_zero_and_stay_missing() -> None:
    model = build(Recorder, masked(), history=2)
    made = forecast(model, with_gaps(), steps=3)["2m_temperature"].values
    assert np.isnan(made[:, :, 1, 2:4]).all() and np.isfinite(made[:, :, 0]).all()
    for batch in model.batches:  # at every call what was never seen is 0, not what the network wrote there
        assert (batch.history[:, :, 0, 1, 2:4] == 0).all() and torch.isfinite(batch.history).all()
    # the point with a gap of two times: missing from the initial time whose both states lack it, there only
    missing = np.isnan(made[:, 0, 3, 7])
    assert np.flatnonzero(missing).tolist() == [4]
    assert made[3, 0, 3, 7] == pytest.approx(280 + 5)  # one state of two is there, the last reads as the mean


def test_masked_points_of_members_and_of_a_file(tmp_path: Path) -> None:
    model = build(Walk, masked(), stochastic="noise", horizon=2)
    made = forecast(model, with_gaps(), steps=3, members=3)
    assert np.isnan(made["2m_temperature"].values[..., 1, 2:4]).all() and np.isfinite(made["geopotential"]).all()
    assert forecast(model, with_gaps(), steps=3, members=3, batch_size=2, out=tmp_path / "f.zarr").load().identical(made)


def test_filled_points_are_forecast() -> None:
    units = Normaliser(UNITS.transforms, {"2m_temperature": "fill"}, {"2m_temperature": 271.0})
    made = forecast(build(Recorder, units), with_gaps(), steps=1)["2m_temperature"].values
    np.testing.assert_allclose(made[:, 0, 1, 2:4], 271 + 5, rtol=1e-6)
    assert np.isfinite(made).all()


def test_the_score_leaves_masked_points_out() -> None:
    states = with_gaps()
    ours = verify(forecast(build(Recorder, masked()), states, steps=1), states, metrics="bias")
    theirs = verify(persistence(states, like=forecast(build(Recorder, masked()), states, steps=1)), states, metrics="bias")
    np.testing.assert_allclose(ours["2m_temperature"] - theirs["2m_temperature"], 5, rtol=1e-4)
    assert ours["2m_temperature"].attrs["scored"] == theirs["2m_temperature"].attrs["scored"] < 1


# --- layout, files, stores -----------------------------------------------------------------------------------------------------------


def test_units_and_origin_travel_along() -> None:
    states = STATES.copy()
    states["2m_temperature"] = states["2m_temperature"].assign_attrs(units="K", chunks=3)
    made = forecast(walk(), states, steps=1, seed=4)
    assert made["2m_temperature"].attrs == {"units": "K"}
    assert made.attrs == {"model": "", "licence": "Apache-2.0", "seed": 4, "step_hours": 24.0}
    assert made["2m_temperature"].dtype == np.float32 and "number" not in made.dims


@pytest.mark.parametrize(("chunk_bytes", "leads"), [(1, (1, 1, 1, 1, 1)), (1600, (2, 2, 1)), (1 << 25, (5,))])
def test_a_forecast_written_in_pieces_is_the_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, leads: tuple[int, ...]
) -> None:
    monkeypatch.setattr(rollout, "CHUNK_BYTES", chunk_bytes)
    out = tmp_path / "deep" / "f.zarr"
    whole = forecast(walk(), STATES, steps=5, members=2)
    written = forecast(walk(), STATES, steps=5, members=2, batch_size=6, out=out)
    assert written.chunks["time"] == (3, 3, 3, 3, 3, 3, 2) and written.chunks[LEAD] == leads
    xr.testing.assert_identical(written.load(), whole)
    again = forecast(walk(), STATES, steps=1, out=out)  # a forecast may take the place of a forecast
    assert again.sizes[LEAD] == 1 and [path.name for path in out.parent.iterdir()] == ["f.zarr"]


def test_an_interrupted_forecast_leaves_nothing_behind_and_the_old_one_whole(tmp_path: Path) -> None:
    class Failing(Walk):
        def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
            if int(batch.time[0, 0]) > seconds(STATES["time"].values[9:10])[0]:
                raise KeyboardInterrupt
            return super().predict(batch, members, generator)

    out = tmp_path / "f.zarr"
    first = forecast(walk(), STATES, steps=2, out=out).load()
    with pytest.raises(KeyboardInterrupt):
        forecast(build(Failing, stochastic="noise"), STATES, steps=3, batch_size=4, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["f.zarr"]
    xr.testing.assert_identical(xr.open_zarr(out, consolidated=False, decode_timedelta=True).load(), first)


def test_a_store_and_its_dataset_give_the_same(tmp_path: Path) -> None:
    splits = {"train": ["2001-01-01", "2001-01-10"], "validation": ["2001-01-11", "2001-01-15"], "test": ["2001-01-16", "2001-01-20"]}
    store = wxlab.store.open_store(prepare(STATES, tmp_path / "s.zarr", variables=list(NAMES), splits=splits))
    model = build(Recurrence, store.normaliser, history=2)
    made = wxlab.forecast(model, store.path, steps=2)
    xr.testing.assert_identical(made, forecast(model, store, steps=2))
    xr.testing.assert_identical(made, forecast(model, STATES, steps=2))
    assert initial_times(model, store).tolist() == made["time"].values.tolist()
    assert forecast(model, store.dataset("test"), steps=2).sizes["time"] == 4


def test_only_the_states_that_are_needed_are_read() -> None:
    model = build(Recurrence, history=2)
    asked = STATES["time"].values[[5]]
    broken = STATES.copy(deep=True)
    broken["2m_temperature"].values[[*range(4), *range(6, 20)]] = np.nan  # refused wherever it is read
    xr.testing.assert_identical(forecast(model, broken, steps=3, times=asked), forecast(model, STATES, steps=3, times=asked))


def test_radar_fields() -> None:
    grid = Grid(tuple(1000.0 * np.arange(6)), tuple(1000.0 * np.arange(5)), "xy")
    times = np.datetime64("2020-06-01", "ns") + np.arange(10) * np.timedelta64(5, "m")
    rain = np.random.default_rng(0).gamma(1, 2, (10, 6, 5)).astype("f4")
    states = xr.Dataset({"rain_rate": (("time", "y", "x"), rain)}, coords={"time": times, "y": list(grid.y), "x": list(grid.x)})
    model = create_model("persistence", channels=("rain_rate",), grid=grid, step=300)
    model.normaliser = Normaliser({"rain_rate": Transform("dbz", 0.0, 60.0)})
    made = forecast(model, states, steps=3)
    assert made["rain_rate"].dims == ("time", LEAD, "y", "x") and made[LEAD].values[0] == np.timedelta64(5, "m")
    wet = rain > 0.05
    np.testing.assert_allclose(made["rain_rate"].values[:, 2][wet], rain[wet], rtol=1e-4)


def test_forecasts_of_anomalies_use_the_climatology_of_the_valid_time() -> None:
    """A model that says 'no anomaly' forecasts the climatology, at each valid time."""
    from wxlab.climatology import Climatology

    values = np.random.default_rng(1).normal(0, 2, (1, 5, 2, *GRID.shape)).astype("f4")
    climatology = Climatology(values, (0,), NAMES, GRID)
    units = Normaliser({name: Transform("anomaly", 0.0, 3.0) for name in NAMES}, climatology=climatology)

    class Nothing(Model):
        def predict(self, batch: Batch, members: int = 1, generator: Any = None) -> Tensor:
            return self.repeat_members(torch.zeros_like(batch.history[:, :1]).expand(-1, self.spec.horizon, -1, -1, -1), members)

    made = forecast(build(Nothing, units, horizon=2), STATES, steps=3)
    valid = STATES["time"].values[:, None] + made[LEAD].values
    expected = climatology.at(valid.ravel()).reshape(20, 3, 2, *GRID.shape)
    np.testing.assert_allclose(stack(made, NAMES).values, expected, rtol=1e-6, atol=1e-5)


# --- faults --------------------------------------------------------------------------------------------------------------------------

MODEL = build(Recurrence, history=2)
FAULTS: dict[str, tuple[Any, str]] = {
    "no model": (lambda p: forecast("runs/a", STATES, steps=1), r"model is a str; give a model, such as wxlab.load_checkpoint"),  # type: ignore[arg-type]
    "untrained": (lambda p: forecast(build(Recurrence, None, history=2), STATES, steps=1), "has no normaliser"),
    "no steps": (lambda p: forecast(MODEL, STATES, steps=0), "steps=0 must be a whole number of at least 1"),
    "half a step": (lambda p: forecast(MODEL, STATES, steps=1.5), "steps=1.5 must be a whole number"),  # type: ignore[arg-type]
    "no members": (lambda p: forecast(MODEL, STATES, steps=1, members=0), "members=0 must be"),
    "no batch": (lambda p: forecast(MODEL, STATES, steps=1, batch_size=0), "batch_size=0 must be"),
    "no seed": (lambda p: forecast(MODEL, STATES, steps=1, seed=None), "seed=None must be"),  # type: ignore[arg-type]
    "members of one": (lambda p: forecast(MODEL, STATES, steps=1, members=4), "is deterministic, so 4 members would be copies"),
    "unknown device": (lambda p: forecast(MODEL, STATES, steps=1, device="gpu"), r"unknown device 'gpu'; did you mean 'cpu'"),
    "too few states": (
        lambda p: forecast(MODEL, STATES.isel(time=[0]), steps=1),
        r"needs 2 state\(s\) every 24 h up to the initial time, without a gap, and among the 1 given there is no such run",
    ),
    "no states": (lambda p: forecast(MODEL, STATES.isel(time=[]), steps=1), "among the 0 given there is no such run"),
    "other spacing": (lambda p: forecast(MODEL, STATES.isel(time=[0, 2, 4]), steps=1), "among the 3 given every 48 h there is no"),
    "none to verify": (lambda p: initial_times(MODEL, STATES, last=30), "and 30 every 24 h after it"),
    "gap before": (lambda p: forecast(MODEL, STATES, steps=1, times=STATES["time"].values[:1]), "2001-01-01T00:00 is no possible initial"),
    "no times": (lambda p: forecast(MODEL, STATES, steps=1, times=[]), "an empty list is no possible .* 19 are, from 2001-01-02"),
    "no date": (lambda p: forecast(MODEL, STATES, steps=1, times="soon"), "'soon' is not a time"),
    "missing channel": (
        lambda p: forecast(MODEL, STATES.rename({"2m_temperature": "2m_temperatur"}), steps=1),
        "lack one of the channels .* did you mean '2m_temperatur'",
    ),
    "missing level": (lambda p: forecast(MODEL, STATES.sel(level=[700, 850]), steps=1), "lack one of the channels .* 500"),
    "missing static": (
        lambda p: forecast(build(Recurrence, history=2, static=("land_sea_mask",)), STATES.drop_vars("land_sea_mask"), steps=1),
        "lack one of the static fields that the model reads",
    ),
    "an ensemble": (lambda p: forecast(MODEL, STATES.expand_dims(number=2), steps=1), "has the dimensions number, time"),
    "other grid": (lambda p: forecast(MODEL, make(times_of(3), Grid.regular(6, 8)), steps=1), r"another grid \(6x8 .* the model \(4x8"),
    "no time": (lambda p: forecast(MODEL, STATES.isel(time=0), steps=1), "give states over 'time'"),
    "numbers as time": (lambda p: forecast(MODEL, STATES.assign_coords(time=range(20)), steps=1), "give states over 'time'"),
    "repeated times": (lambda p: forecast(MODEL, STATES.isel(time=[0, 1, 1]), steps=1), "more than once"),
    "number as states": (lambda p: forecast(MODEL, 3, steps=1), "the initial states are a int"),  # type: ignore[arg-type]
    "no such store": (lambda p: forecast(MODEL, p / "nowhere.zarr", steps=1), "there is no store at"),
    "missing value": (lambda p: forecast(MODEL, with_gaps(), steps=1), "2m_temperature has missing values, which its policy"),
    "no folder": (lambda p: forecast(MODEL, STATES, steps=1, out=p / "notes.txt" / "f.zarr"), "cannot be written"),
    "a file in its place": (lambda p: forecast(MODEL, STATES, steps=1, out=p / "notes.txt"), "exists and is no forecast"),
    "a folder in its place": (lambda p: forecast(MODEL, STATES, steps=1, out=p), "exists and is no forecast"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str, tmp_path: Path) -> None:
    fault, words = FAULTS[name]
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(WxlabError, match=words) as error:
        fault(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 320
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"] and (tmp_path / "notes.txt").read_text() == "kept"


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WxlabError, match="torch finds no GPU"):
        forecast(MODEL, STATES, steps=1, device="cuda")
    assert forecast(MODEL, STATES, steps=1, device="auto").sizes["time"] == 19
