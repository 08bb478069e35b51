"""Radar extrapolation: cells move where they should, S-PROG smooths, STEPS members are reproducible, awkward radar is no obstacle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr
from standins import Noise, windows

import wxlab
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models import Batch, Model, create_model
from wxlab.models.baselines import nowcast
from wxlab.models.baselines.nowcast import ECHOES, extrapolate, motion_field
from wxlab.normaliser import Normaliser, Transform

NAMES = ("extrapolation", "sprog", "steps")
SIDE, STEP, HORIZON = 64, 300, 6
UNITS = Normaliser({"rain_rate": Transform("dbz", 0.0, 60.0)}, nan={"rain_rate": "mask"})
EXACT = Normaliser({"rain_rate": Transform("none")})


def grid(rows: int = SIDE, columns: int = SIDE) -> Grid:
    return Grid(tuple(1000.0 * np.arange(rows)), tuple(1000.0 * np.arange(columns)), kind="xy")


def model(name: str, units: Normaliser = EXACT, **options: Any) -> Model:
    settings = {"channels": tuple(units.transforms), "grid": grid(), "history": 4, "horizon": HORIZON, "step": STEP, **options}
    made = create_model(name, "tiny", **settings)
    made.normaliser = units
    return made


def cell(y: float, x: float, width: float = 5.0, peak: float = 20.0, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    rows, columns = np.indices(shape)
    rain = peak * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
    return np.where(rain < 0.1, 0.0, rain)


def moving(frames: int, dy: float = 1.0, dx: float = 2.0) -> np.ndarray:
    """A cell with a small companion that moves dy, dx points per frame: [frames, SIDE, SIDE] in mm/h."""
    return np.stack([cell(20 + dy * t, 14 + dx * t) + cell(34 + dy * t, 24 + dx * t, 3.0, 8.0) for t in range(frames)])


def showers(frames: int, seed: int = 0, motion: int = 2) -> np.ndarray:
    """Rain with detail at all scales that moves along x while its details change: [frames, SIDE, SIDE] in mm/h."""
    generator = np.random.default_rng(seed)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij"))
    decay = np.exp(-((k * 20) ** 2)) * 0.6 + 0.39  # small scales forget sooner
    amplitude = 1 / (k + 2 / SIDE) ** 2
    state, out = 0.0, []
    for t in range(frames):
        noise = np.fft.rfft2(generator.standard_normal((SIDE, SIDE))) * amplitude
        state = noise if t == 0 else decay * state + np.sqrt(1 - decay**2) * noise
        field = np.fft.irfft2(state, s=(SIDE, SIDE))
        rain = 10 ** (10 * (field / field.std() - 0.3) / 10)
        out.append(np.roll(np.where(rain < 0.5, 0.0, rain), motion * t, axis=1))
    return np.stack(out)


def batch(made: Model, *histories: np.ndarray, mask: np.ndarray | None = None) -> Batch:
    """A batch of histories [Ti, H, W] in mm/h."""
    made_windows = windows(made, len(histories))
    rain = torch.from_numpy(np.stack(histories)).float()[:, :, None]
    assert made.normaliser is not None
    seen = None
    if mask is not None:
        seen = torch.ones(len(histories), made.spec.history + made.spec.horizon, 1, *made.spec.grid.shape, dtype=torch.bool)
        seen[:, :, 0] = torch.from_numpy(mask)
    return Batch(made.normaliser.normalise(rain, made.spec.channels), None, made_windows.time, mask=seen)


def run(made: Model, *histories: np.ndarray, members: int = 1, seed: int = 0, mask: np.ndarray | None = None) -> np.ndarray:
    """Forecast in mm/h [B, M, To, H, W]."""
    source: Any = Noise(len(histories), members, seed)
    prediction = made.predict(batch(made, *histories, mask=mask), members, source)
    assert made.normaliser is not None and prediction.dtype == torch.float32
    return made.normaliser.denormalise(prediction, made.spec.channels)[:, :, :, 0].numpy()


def centre(rain: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(rain.shape)
    return np.array([(rain * rows).sum(), (rain * columns).sum()]) / rain.sum()


def series(rain: np.ndarray, spacing: float = 1000.0) -> xr.Dataset:
    times = np.datetime64("2020-06-01", "ns") + np.arange(len(rain)) * np.timedelta64(STEP, "s")
    axes = {"time": times, "y": spacing * np.arange(rain.shape[1]), "x": spacing * np.arange(rain.shape[2])}
    return xr.Dataset({"rain_rate": (("time", "y", "x"), rain.astype(np.float32), {"units": "mm h**-1"})}, axes)


@pytest.mark.nowcast
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dy", "dx"), [(1.0, 2.0), (-0.5, 1.5)])
def test_a_moving_cell_is_carried_to_the_right_place(name: str, dy: float, dx: float) -> None:
    truth = moving(4 + HORIZON, dy, dx)
    forecast = run(model(name), truth[:4], members=8 if name == "steps" else 1)[0].mean(0)
    for lead in range(HORIZON):
        near = 0.5 * (lead + 1) if name == "steps" else 0.3  # points; each member of STEPS doubts the motion
        assert np.abs(centre(forecast[lead]) - centre(truth[4 + lead])).max() < near
    if name != "steps":
        assert np.abs(forecast[-1] - truth[-1]).mean() < 0.2 * np.abs(truth[3] - truth[-1]).mean()


@pytest.mark.nowcast
def test_motion_and_advection_are_those_of_the_field() -> None:
    truth = moving(4)
    motion = motion_field(ECHOES["rain_rate"].to_scale(truth))
    np.testing.assert_allclose(motion.mean((1, 2)), [2.0, 1.0], atol=0.1)
    uniform = np.broadcast_to(np.array([2.0, 1.0])[:, None, None], (2, SIDE, SIDE)).copy()
    carried = extrapolate(truth[-1], uniform, 3)[-1]
    np.testing.assert_allclose(carried[3:, 6:], truth[-1][:-3, :-6], atol=1e-9)
    assert np.isnan(carried[:3]).all() and np.isnan(carried[:, :6]).all()


@pytest.mark.nowcast
def test_rain_rates_and_decibels_go_there_and_back() -> None:
    rain = np.array([0.0, 0.05, 0.1, 1.0, 50.0, np.nan])
    scale = ECHOES["rain_rate"]
    np.testing.assert_allclose(scale.to_scale(rain), [-15, -15, -10, 0, 16.9897, np.nan], atol=1e-4)
    np.testing.assert_allclose(scale.from_scale(scale.to_scale(rain), 0.0), [0, 0, 0.1, 1, 50, np.nan])
    dbz = ECHOES["reflectivity"]
    values = np.array([-10.0, 3.0, 7.0, 45.0])
    assert dbz.dry_value(values) == -10
    np.testing.assert_allclose(dbz.from_scale(dbz.to_scale(values), -10.0), [-10, -10, 7, 45])
    # both thresholds are one by Z = 200 R^1.6
    assert 10 * np.log10(200 * scale.threshold**1.6) == pytest.approx(dbz.threshold, abs=0.02)


@pytest.mark.nowcast
def test_they_are_what_pysteps_gives_directly() -> None:
    from pysteps.nowcasts import sprog, steps

    rain = showers(4).astype(np.float32).astype(np.float64)
    scaled = ECHOES["rain_rate"].to_scale(rain)
    motion = motion_field(scaled)
    source = Noise(1, 1, seed=5)
    seed = int(source.rand((1,), dtype=torch.float64) * 2**31)
    with nowcast._quiet():
        direct = {
            "extrapolation": extrapolate(rain[-1], motion, HORIZON),
            "sprog": sprog.forecast(scaled[-3:], motion, HORIZON, precip_thr=-10.0, n_cascade_levels=6),
            "steps": steps.forecast(
                scaled[-3:], motion, HORIZON, n_ens_members=1, n_cascade_levels=6, precip_thr=-10.0, kmperpixel=1.0, timestep=5, seed=seed
            )[0],
        }
    for name, there in direct.items():
        if name != "extrapolation":
            there = np.where(there < -10, 0.0, 10 ** (there / 10))
        ours = run(model(name, outside="missing"), rain, seed=5)[0, 0]
        np.testing.assert_allclose(ours, there, rtol=1e-5, atol=1e-6)


def fine_detail(rain: np.ndarray) -> np.ndarray:
    """Mean squared difference between neighbours in dBR, over their variance, where nothing has come from outside: [...]."""
    inner = ECHOES["rain_rate"].to_scale(rain)[..., 8:-8, 2 * HORIZON + 4 : -4]
    return np.square(np.diff(inner, axis=-1)).mean((-2, -1)) / inner.var((-2, -1))


@pytest.mark.nowcast
def test_sprog_is_smoother_than_extrapolation_and_ever_more_so() -> None:
    histories = [showers(4, seed) for seed in range(3)]
    carried, smoothed = (fine_detail(run(model(name), *histories)[:, 0]).mean(0) for name in ("extrapolation", "sprog"))
    assert smoothed[-1] < 0.4 * carried[-1] and smoothed[-1] < 0.6 * smoothed[0]
    assert np.diff(smoothed / carried).max() < 0.02


@pytest.mark.nowcast
def test_sprog_beats_extrapolation_which_beats_persistence() -> None:
    error: dict[str, list[float]] = {name: [] for name in ("extrapolation", "sprog", "persistence")}
    inside = (slice(None), slice(None), slice(2 * HORIZON + 2, None))  # what has not come from outside
    for seed in range(3):
        rain = showers(4 + HORIZON, seed)
        truth = ECHOES["rain_rate"].to_scale(rain[4:])[inside]
        for name in error:
            options = {"history": 1} if name == "persistence" else {}
            forecast = run(model(name, **options), rain[3:4] if options else rain[:4])[0, 0]
            error[name].append(np.square(ECHOES["rain_rate"].to_scale(forecast)[inside] - truth).mean())
    means = {name: np.mean(values) for name, values in error.items()}
    assert means["sprog"] < means["extrapolation"] < means["persistence"]


@pytest.mark.nowcast
def test_members_differ_and_have_the_spread_of_the_error() -> None:
    rain = showers(4 + HORIZON)
    members = run(model("steps"), rain[:4], members=6)[0]
    assert len({member.tobytes() for member in members}) == 6
    scaled = ECHOES["rain_rate"].to_scale(members[..., 14:])
    spread = scaled.std(0, ddof=1).mean((1, 2))
    assert spread[-1] > spread[0] > 0


@pytest.mark.nowcast
def test_members_depend_on_seed_time_and_number_alone() -> None:
    made, states = model("steps", UNITS, history=3, horizon=2), series(showers(6))

    def rain(**how: Any) -> np.ndarray:
        return np.asarray(wxlab.forecast(made, states, steps=4, **{"members": 3, "seed": 7, **how})["rain_rate"].values)

    whole = rain()
    assert whole.shape == (4, 3, 4, SIDE, SIDE) and np.isfinite(whole).all()
    np.testing.assert_array_equal(rain(batch_size=2), whole)
    np.testing.assert_array_equal(rain(members=2), whole[:, :2])
    np.testing.assert_array_equal(rain(times=states.time.values[3:4])[0], whole[1])
    assert (rain(seed=8) != whole).any()


@pytest.mark.nowcast
def test_nothing_of_the_process_is_changed_and_nothing_printed(capfd: pytest.CaptureFixture[str]) -> None:
    import warnings

    import dask

    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.default_rng(0), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]
    filters, scheduler = list(warnings.filters), dask.config.get("scheduler", None)
    for name in NAMES:
        run(model(name), showers(4))
        run(model(name), np.zeros((4, SIDE, SIDE)))
    assert np.array_equal(np.random.get_state()[1], expected[1]) and torch.equal(torch.get_rng_state(), expected[2])
    assert warnings.filters == filters and dask.config.get("scheduler", None) == scheduler
    out, err = capfd.readouterr()
    assert out == err == ""


IMPORTS = """
import sys, warnings
from pathlib import Path
from wxlab.errors import WxlabError
from wxlab.models.baselines.nowcast import _pysteps
before = list(warnings.filters)
assert "pysteps" not in sys.modules
try:
    _pysteps()
except WxlabError as error:
    sys.stderr.write(str(error))
Path("pystepsrc").unlink()
_pysteps()
assert warnings.filters == before and "pysteps" in sys.modules
"""


@pytest.mark.nowcast
def test_pysteps_is_imported_late_and_quietly_and_a_broken_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pystepsrc").write_text("{ broken")
    there = {"HOME": str(tmp_path), "PATH": "", "MPLCONFIGDIR": matplotlib.get_cachedir()}
    done = subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS], capture_output=True, text=True, env=there, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-500:]
    assert "pysteps cannot read its settings file 'pystepsrc'" in done.stderr and "mend or remove that file" in done.stderr
    assert "\n" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.nowcast
@pytest.mark.parametrize("name", NAMES)
def test_without_rain_the_forecast_is_dry(name: str) -> None:
    wet, dry = showers(4), np.zeros((4, SIDE, SIDE))
    drizzle = np.full((4, SIDE, SIDE), 0.05)
    forecast = run(model(name, UNITS), dry, wet, drizzle, members=2 if name == "steps" else 1)
    assert (forecast[0] == 0).all() and (forecast[1] > 0).any() and (forecast[2] < 0.1).all()


@pytest.mark.nowcast
@pytest.mark.parametrize("name", NAMES)
def test_rain_that_appears_or_never_changes_is_no_obstacle(name: str) -> None:
    appears = np.zeros((4, SIDE, SIDE))
    appears[3] = cell(30, 30)
    pixel = np.zeros((4, SIDE, SIDE))
    pixel[range(4), 30, range(30, 34)] = 5.0
    everywhere = np.full((4, SIDE, SIDE), 2.0)
    still = np.repeat(showers(1), 4, axis=0)
    forecast = run(model(name), appears, pixel, everywhere, still)
    assert np.isfinite(forecast).all()
    np.testing.assert_allclose(forecast[0, 0, 0], appears[3], atol=1e-5)
    np.testing.assert_allclose(forecast[2, 0], 2.0, rtol=1e-6)
    np.testing.assert_allclose(forecast[3, 0, :, 8:-8, 8:-8], np.repeat(still[:1, 8:-8, 8:-8], HORIZON, axis=0), atol=0.2)


@pytest.mark.nowcast
@pytest.mark.parametrize("name", NAMES)
def test_what_comes_from_outside_is_dry_or_kept_or_missing(name: str) -> None:
    history = np.stack([np.roll(np.maximum(showers(1)[0], 1.0), 3 * t, axis=1) for t in range(4)])
    dry, last, missing = (run(model(name, outside=way), history, seed=1)[0, 0] for way in ("dry", "last", "missing"))
    unknown = np.isnan(missing)
    assert unknown[-1].mean() > unknown[0].mean() > 0
    assert name == "steps" or not unknown[:, 12:-12, -20:-4].any()  # members of STEPS go their own ways
    assert (dry[unknown] == 0).all()
    np.testing.assert_array_equal(last[unknown], np.broadcast_to(history[-1].astype(np.float32), last.shape)[unknown])
    np.testing.assert_array_equal(dry[~unknown], missing[~unknown])
    np.testing.assert_array_equal(last[~unknown], missing[~unknown])


@pytest.mark.nowcast
@pytest.mark.parametrize("name", NAMES)
def test_points_without_radar_bring_no_rain_and_stop_none(name: str) -> None:
    seen = np.ones((SIDE, SIDE), dtype=bool)
    seen[:, 40:] = False
    history = np.where(seen, moving(4), np.nan)
    forecast = run(model(name, UNITS, outside="missing"), history, mask=seen)[0, 0]
    truth = moving(4 + HORIZON)[4:]
    assert np.isnan(forecast[:, :, 40 + 2 * HORIZON + 2 :]).all() and np.isnan(forecast[0, :, 44:]).all()
    inside = forecast[2, :, :30]
    known = np.isfinite(inside)
    assert known.mean() > 0.6 and inside[known].max() > 10
    if name != "steps":
        np.testing.assert_allclose(inside[known], truth[2, :, :30][known], atol=2.0)
    assert np.isfinite(run(model(name, UNITS), history, mask=seen)).all()
    assert np.isnan(run(model(name, UNITS), np.full_like(history, np.nan), mask=np.zeros_like(seen))).all()


@pytest.mark.nowcast
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("absent", [0, 1, 2, 3])
def test_a_missing_frame_is_no_obstacle(name: str, absent: int) -> None:
    history, seen = moving(4), np.ones((4 + HORIZON, SIDE, SIDE), dtype=bool)
    seen[absent] = False
    forecast = run(model(name, UNITS), history, mask=seen)[0, 0]
    if absent == 3:  # nothing is known of the frame that would be carried along
        assert np.isnan(forecast).all()
        return
    assert np.isfinite(forecast).all() and forecast.max() > 10
    if absent < 2 and name != "steps":
        assert np.abs(centre(forecast[1]) - centre(moving(6)[-1])).max() < 0.3
    if absent == 2:  # one frame alone does not move
        np.testing.assert_allclose(forecast[-1], history[-1], atol=1e-3)


@pytest.mark.nowcast
@pytest.mark.parametrize("absent", [1, 2, 3])
def test_forecast_knows_which_frames_are_missing(absent: int) -> None:
    rain = moving(4 + 2 * HORIZON)
    whole = wxlab.forecast(model("extrapolation", UNITS), series(rain[:4]), steps=HORIZON)["rain_rate"].values[0]
    gappy = series(np.where(np.arange(4)[:, None, None] == absent, np.nan, rain[:4]))
    made = wxlab.forecast(model("extrapolation", UNITS), gappy, steps=HORIZON)["rain_rate"].values[0]
    if absent == 3:
        assert np.isnan(made).all()
    elif absent == 1:  # two frames are left to see the motion in
        assert np.abs(centre(made[-1]) - centre(whole[-1])).max() < 0.3
    else:  # one frame alone does not move: it is not taken for rain that appeared where none was
        np.testing.assert_allclose(made[-1], rain[3], atol=1e-3)


@pytest.mark.nowcast
def test_forecast_and_verification_leave_unknown_points_out() -> None:
    rain = showers(8)
    rain[:, :, 50:] = np.nan
    states = series(rain)
    ours = wxlab.forecast(model("extrapolation", UNITS, history=3, horizon=2, outside="missing"), states, steps=4)
    assert np.isnan(ours["rain_rate"].values[..., 50:]).all() and np.isnan(ours["rain_rate"].values[..., :2]).any()
    score = wxlab.verify(ours, states, metrics=("rmse",))["rain_rate"].values
    assert np.isfinite(score[..., 0]).all() and (score[..., 0] > 0).all()


@pytest.mark.nowcast
def test_members_read_on_from_their_own_frames() -> None:
    made, states = model("extrapolation", history=3, horizon=3), series(moving(3))
    forecast = wxlab.forecast(made, states, steps=6)["rain_rate"].values[0]
    truth = moving(9)[3:]
    assert np.abs(centre(forecast[-1]) - centre(truth[-1])).max() < 1.0


@pytest.mark.nowcast
@pytest.mark.parametrize("name", NAMES)
def test_reflectivity_and_liquid_are_moved_too(name: str) -> None:
    rain = showers(4)
    dbz = np.where(rain > 0, 23.0 + 16 * np.log10(np.maximum(rain, 1e-3)), -10.0)
    vil = np.where(rain > 0, np.clip(20 + 60 * np.log10(np.maximum(rain, 0.5)), 0, 254), 0.0)
    cases = {
        "reflectivity": (dbz, Transform("minmax", -10.0, 70.0), -10.0, 60.0),
        "vertically_integrated_liquid_8bit": (vil, Transform("minmax", 0.0, 255.0), 0.0, 254.0),
    }
    for channel, (history, transform, low, high) in cases.items():
        forecast = run(model(name, Normaliser({channel: transform})), history)[0, 0]
        assert forecast.min() == pytest.approx(low, abs=1e-4) and forecast.max() <= high
        wet = (forecast[1] > ECHOES[channel].threshold)[:, 8:].mean()
        assert wet == pytest.approx((history[-1] > ECHOES[channel].threshold)[:, :-8].mean(), abs=0.15)


@pytest.mark.nowcast
def test_training_takes_the_units_of_a_store_and_the_same_calls_forecast(tmp_path: Path) -> None:
    states = series(showers(24))
    store = wxlab.prepare(states, tmp_path / "radar.zarr", variables=["rain_rate"], normalisation={"rain_rate": "dbz"})
    for name in NAMES:
        path = wxlab.train(name, store, run_dir=tmp_path / name, model={"history": 3, "horizon": 4})
        loaded = wxlab.load_checkpoint(path)
        assert loaded.name == name and loaded.normaliser is not None
        members = 2 if name == "steps" else 1
        forecast = wxlab.forecast(loaded, store, steps=4, members=members, times=states.time.values[10:12])
        assert np.isfinite(forecast["rain_rate"].values).all()


@pytest.mark.nowcast
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 2}, r"history=2 frames are too few .* give history=3 or more"),
        ({"channels": ("2m_temperature",)}, r"unknown channel of a radar extrapolation '2m_temperature'.*allowed: .*rain_rate"),
        ({"history_step": 600}, r"read every 600 s and written every 300 s"),
        ({"outside": "wet"}, r"unknown outside 'wet'.*dry.*last.*missing"),
        ({"threshold": 0}, r"threshold=0 must be above 0"),
        ({"levels": 2}, r"levels=2 must be a whole number of at least 3"),
    ],
)
def test_faults_are_explained_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        create_model("sprog", "tiny", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.nowcast
def test_untrained_models_and_missing_generators_are_explained() -> None:
    made = create_model("steps", "tiny", grid=grid(), channels=("rain_rate",))
    source: Any = Noise(1, 1)
    with pytest.raises(WxlabError, match="steps knows no units yet; train it"):
        made.predict(windows(made, 1), 1, source)
    made.normaliser = UNITS
    with pytest.raises(WxlabError, match="steps draws noise and needs a generator"):
        made.predict(windows(made, 1))


def test_without_pysteps_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nowcast, "find_spec", lambda name: None if name == "pysteps" else object())
    assert not nowcast.installed()
    with pytest.raises(WxlabError, match=r"pysteps, which is not installed; run: pip install 'wxlab\[nowcast\]'"):
        create_model("extrapolation")


@pytest.mark.nowcast
@pytest.mark.real_data
def test_on_a_real_radar_the_methods_rank_as_known(real_catalog: Path) -> None:
    states = wxlab.open_dataset("radar_brisbane", catalog=real_catalog)[["rain_rate"]]
    states = states.isel(time=slice(40, 50)).isel(y=slice(0, 512, 2), x=slice(0, 512, 2)).load()
    step = int((states.time[1] - states.time[0]) / np.timedelta64(1, "s"))
    start, truth = states.time.values[2], states["rain_rate"].values[3:9] >= 1
    csi = {}
    for name in ("persistence", "extrapolation", "sprog"):
        frames = 1 if name == "persistence" else 3
        y, x = (tuple(states[axis].values.tolist()) for axis in ("y", "x"))
        made = model(name, UNITS, grid=Grid(y, x, kind="xy"), history=frames, horizon=6, step=step)
        rain = wxlab.forecast(made, states, steps=6, times=[start])["rain_rate"].values[0] >= 1
        csi[name] = (rain & truth).sum((1, 2)) / (rain | truth).sum((1, 2))
    assert csi["persistence"][0] + 0.05 < csi["extrapolation"][0] < csi["sprog"][0]
    assert csi["persistence"][2] + 0.05 < csi["extrapolation"][2] < csi["sprog"][2]
