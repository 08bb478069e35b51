"""The training loop: what it computes, what it keeps, what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pointwise import ENTRIES, PLAIN, SPLITS, Plain, make_store
from safetensors.torch import load_file

from wxlab import models
from wxlab.checkpoints import load_checkpoint
from wxlab.errors import WxlabError
from wxlab.models.base import per_sample_mse
from wxlab.rollout import forecast
from wxlab.store import Store, open_store
from wxlab.trainer import train
from wxlab.training.run_folder import RunFolder
from wxlab.windows import Windows

QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in ENTRIES.items():
        monkeypatch.setitem(models._REGISTRY, name, place)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("trainer") / "s.zarr"))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def outcome(run: Path) -> dict[str, Any]:
    """All that two equal runs have in common."""
    files = {name: (run / name).read_bytes() for name in ("best.safetensors", "best.json", "last.safetensors", "last.json")}
    return {**files, "metrics": [{k: v for k, v in line.items() if k not in ("seconds", "stopped")} for line in lines(run)]}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Plain]:
    """The recipe of the last run of ``plain``."""
    made: list[Plain] = []

    class Traced(Plain):
        def __init__(self, model: Any, **settings: Any) -> None:
            super().__init__(model, **settings)
            made.append(self)

    monkeypatch.setattr("pointwise.PLAIN", models.Entry(**{**vars(PLAIN), "recipe": Traced}))
    return lambda: made[-1]


# ---- what it computes


def test_a_run_leaves_checkpoints_metrics_and_settings(store: Store, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    run, how = tmp_path / "run", {"preset": "tiny", "steps": 24, "batch_size": 4, "lr": 3e-3, "log_every": 6, **QUIET}
    best = train("convlstm", store.path, run_dir=run, callbacks=[seen.append], **how)
    assert best == run / "best.safetensors"
    assert {path.name for path in run.iterdir()} == {
        ".lock", "best.json", "best.safetensors", "health.json", "last.json", "last.safetensors", "metrics.jsonl", "settings.json", "state"
    }  # fmt: skip
    found = lines(run)
    assert found == seen and [line["step"] for line in found] == [6, 12, 18, 24]
    scores = [line["validation"] for line in found]
    assert scores[-1] < scores[0] and found[-1]["lr"] < found[0]["lr"] <= 3e-3
    facts = json.loads((run / "best.json").read_text())
    assert facts["validation"] == min(scores) and facts["settings"]["steps"] == 24 and facts["data"]["checksum"] == store.attrs["checksum"]
    assert facts["model"] == "convlstm" and facts["licence"] and facts["citation"] and facts["versions"]["torch"] == torch.__version__
    assert facts["spec"]["channels"] == list(store.channels) and facts["normaliser"]["transforms"]["2m_temperature"]["kind"] == "zscore"
    model = load_checkpoint(run)
    assert model.normaliser == store.normaliser and model.spec.grid == store.grid and model.facts["step"] == facts["step"]
    result = forecast(model, store.dataset("test"), steps=2)
    assert np.isfinite(result["2m_temperature"]).all() and 200 < float(result["2m_temperature"].mean()) < 350


def test_training_is_the_plain_loop_that_one_would_write(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = models.create_model("plain", channels=store.channels, grid=store.grid)
    twin = models.create_model("plain", channels=store.channels, grid=store.grid)
    twin.load_state_dict(model.state_dict())
    train(model, store, run_dir=tmp_path / "run", steps=25, batch_size=4, seed=7, **QUIET)
    windows = Windows(store, "train", history=2, horizon=1, batch_size=4, shuffle=True, seed=7, drop_last=True)
    optimiser = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.01)
    batches = [batch for epoch in range(3) for batch in windows.epoch(epoch)][:25]
    assert len(windows) == 9
    for batch in batches:
        optimiser.zero_grad()
        assert batch.target is not None
        (twin(batch.history) - batch.target).square().mean().backward()
        optimiser.step()
    for name, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_best_is_the_lowest_validation_error_of_the_saved_weights(store: Store, tmp_path: Path) -> None:
    best = train("plain", store, run_dir=tmp_path, steps=30, batch_size=8, lr=0.3, validate_every=3, **QUIET)
    scores = {line["step"]: line["validation"] for line in lines(tmp_path) if "validation" in line}
    assert sorted(scores) == list(range(3, 31, 3))
    model = load_checkpoint(best)
    assert model.facts["step"] == min(scores, key=lambda step: scores[step])
    batch = next(iter(Windows(store, "validation", history=2, horizon=1, batch_size=100)))
    assert batch.target is not None
    with torch.no_grad():
        expected = float(per_sample_mse(model.predict(batch)[:, 0], batch.target).mean())
    assert model.facts["validation"] == pytest.approx(expected, rel=1e-6)


def test_averaged_weights_are_what_is_validated_and_saved(store: Store, tmp_path: Path, traced: Callable[[], Plain]) -> None:
    train("plain", store, run_dir=tmp_path, steps=12, ema=0.9, model={"norm": True}, lr=0.1, **QUIET)
    trace = traced().trace
    average = {name: value.clone() for name, value in trace[0].items()}
    for weights in trace[1:]:
        for name, value in weights.items():
            average[name] = 0.9 * average[name] + 0.1 * value if not name.startswith("norm.r") and value.is_floating_point() else value
    saved = load_file(tmp_path / "last.safetensors")
    assert not torch.equal(saved["map.weight"], trace[-1]["map.weight"])
    torch.testing.assert_close(saved, average, rtol=1e-5, atol=1e-6)
    assert torch.equal(saved["norm.running_mean"], trace[-1]["norm.running_mean"])  # statistics are the present ones


def test_clipping_limits_the_length_of_a_step(store: Store, tmp_path: Path, traced: Callable[[], Plain]) -> None:
    train("plain", store, run_dir=tmp_path, steps=5, clip=1e-3, lr=1.0, log_every=1, recipe={"sgd": True}, **QUIET)
    trace = traced().trace
    for before, after, line in zip(trace, trace[1:], lines(tmp_path)[1:], strict=False):
        moved = torch.cat([(after[name] - before[name]).flatten() for name in after]).norm()
        assert line["gradient"] > 1e-3
        assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_accumulated_micro_batches_equal_one_large_batch(store: Store, tmp_path: Path) -> None:
    for name, how in {"large": {"batch_size": 8}, "small": {"batch_size": 2, "accumulate": 4}}.items():
        train("plain", store, run_dir=tmp_path / name, steps=4, stride=24, **how, **QUIET)
    large, small = (load_file(tmp_path / name / "last.safetensors") for name in ("large", "small"))
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)
    assert lines(tmp_path / "small")[-1]["loss"] == pytest.approx(lines(tmp_path / "large")[-1]["loss"], rel=1e-5)


def test_the_rate_follows_the_recipes_schedule(store: Store, tmp_path: Path) -> None:
    train("noisy", store, run_dir=tmp_path, steps=10, log_every=1, recipe={"stages": 1}, **QUIET)
    rates = [line["lr"] for line in lines(tmp_path)]
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01]) and rates == [*sorted(rates[:4]), *sorted(rates[4:], reverse=True)]


def test_half_precision_trains(store: Store, tmp_path: Path) -> None:
    train("convlstm", store, run_dir=tmp_path / "half", preset="tiny", steps=4, precision="bf16", seed=1, **QUIET)
    train("convlstm", store, run_dir=tmp_path / "full", preset="tiny", steps=4, seed=1, **QUIET)
    half, full = lines(tmp_path / "half")[-1]["validation"], lines(tmp_path / "full")[-1]["validation"]
    assert half != full and half == pytest.approx(full, rel=0.02)
    assert all(value.dtype != torch.bfloat16 for value in load_file(tmp_path / "half" / "last.safetensors").values())


def test_masked_points_do_not_count(tmp_path: Path) -> None:
    from noise import make, times_of

    from wxlab.grids import Grid
    from wxlab.store import prepare

    data = make(times_of(90), Grid.regular(4, 8))
    data["2m_temperature"][::3, 0] = np.nan
    how: dict[str, Any] = {"variables": ["2m_temperature"], "splits": SPLITS, "nan": "mask"}
    masked = prepare(data, tmp_path / "s.zarr", **how)
    train("plain", masked, run_dir=tmp_path / "run", steps=4, **QUIET)
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path / "run"))
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "run" / "last.safetensors").values())


@pytest.mark.parametrize("name", ["persistence", "climatology", "random_walk"])
def test_reference_forecasts_need_no_steps(store: Store, tmp_path: Path, name: str) -> None:
    model = load_checkpoint(train(name, store, run_dir=tmp_path, **QUIET))
    assert model.name == name and model.normaliser == store.normaliser
    assert np.isfinite(forecast(model, store.dataset("test"), steps=1)["geopotential"]).all()
    with pytest.raises(WxlabError, match=f"{name} has nothing to train, so it takes no lr"):
        train(name, store, run_dir=tmp_path / "other", lr=0.1, **QUIET)


def test_the_users_random_streams_and_threads_are_left_alone(store: Store, tmp_path: Path) -> None:
    draws = []
    for run in (None, tmp_path):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        if run is not None:
            train("noisy", store, run_dir=run, steps=2, **QUIET)
        draws.append((float(torch.rand(())), float(np.random.rand()), random.random()))
    assert draws[0] == draws[1]


def test_tensorboard_is_written_when_asked(store: Store, tmp_path: Path) -> None:
    train("plain", store, run_dir=tmp_path, steps=2, tensorboard=True, **QUIET)
    assert [path.name.startswith("events") for path in (tmp_path / "tensorboard").iterdir()] == [True]


def test_progress_is_shown_and_pictures_are_fed(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wxlab.plots.losses import LiveLoss, read_metrics

    live = LiveLoss()
    train("plain", store, run_dir=tmp_path, steps=4, log_every=1, callbacks=[live], device="auto")
    assert "plain:" in (shown := capsys.readouterr().err) and "/4 [" in shown
    train("plain", store, run_dir=tmp_path / "quiet", steps=4, **QUIET)
    assert capsys.readouterr().err == ""
    assert live.records == read_metrics(tmp_path) and len(live.figure().axes[0].lines) >= 2


# ---- which data it sees


def test_the_test_split_is_never_opened(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, opened, read = Store(store.path), set(), set()
    split_ranges, read_into = watched.split_ranges, watched.frames.read_into

    def spy_ranges(split: str) -> Any:
        opened.add(split)
        return split_ranges(split)

    def spy_read(out: np.ndarray, start: int, stride: int = 1) -> Any:
        read.update(range(start, start + len(out) * stride, stride))
        return read_into(out, start, stride)

    monkeypatch.setattr(watched, "split_ranges", spy_ranges)
    monkeypatch.setattr(watched.frames, "read_into", spy_read)
    train("plain", watched, run_dir=tmp_path, epochs=2, validate_every=2, **QUIET)
    ((start, stop),) = watched.splits["test"]
    assert opened == {"train", "validation"}
    assert (start, stop) == (55, 90) and read == set(range(start))


def test_other_test_data_give_the_same_weights(store: Store, tmp_path: Path) -> None:
    from noise import make, times_of
    from pointwise import NAMES

    from wxlab.grids import Grid
    from wxlab.store import prepare

    data = make(times_of(90), Grid.regular(4, 8))
    data["2m_temperature"][55:] = 250
    other = prepare(data, tmp_path / "other.zarr", variables=NAMES, splits=SPLITS)
    weights = [load_file(train("plain", s, run_dir=tmp_path / str(i), steps=6, **QUIET)) for i, s in enumerate((store, other))]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_without_a_validation_split_the_last_weights_are_the_best(tmp_path: Path) -> None:
    from noise import make, times_of

    from wxlab.grids import Grid
    from wxlab.store import prepare

    data = make(times_of(20), Grid.regular(4, 8))
    path = prepare(data, tmp_path / "s.zarr", variables=["2m_temperature"], splits={"train": ["2001-01-01", "2001-01-20"]})
    train("plain", path, run_dir=tmp_path / "run", steps=5, **QUIET)
    best, last = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(value, last[name]) for name, value in best.items())
    assert all("validation" not in line for line in lines(tmp_path / "run"))


def test_validation_windows_are_thinned_evenly(store: Store, tmp_path: Path) -> None:
    train("plain", store, run_dir=tmp_path, steps=2, validation_windows=4, **QUIET)
    whole = Windows(store, "validation", history=2, horizon=1)
    thinned = Windows(store, "validation", history=2, horizon=1, stride=96, batch_size=100)
    assert whole.samples == 13 and thinned.samples == 4
    batch = next(iter(thinned))
    assert batch.target is not None
    with torch.no_grad():
        errors = per_sample_mse(load_checkpoint(tmp_path).predict(batch)[:, 0], batch.target)
    assert min(line["validation"] for line in lines(tmp_path)) == pytest.approx(float(errors.mean()), rel=1e-6)


# ---- when it ends


def test_it_ends_when_nothing_improves(store: Store, tmp_path: Path) -> None:
    train("plain", store, run_dir=tmp_path, steps=100, validate_every=2, patience=3, lr=1e-30, **QUIET)
    assert lines(tmp_path)[-1]["step"] == 8 and lines(tmp_path)[-1]["stopped"] == "no improvement in 3 validations"
    before = outcome(tmp_path)
    train("plain", store, run_dir=tmp_path, steps=100, validate_every=2, patience=3, lr=1e-30, **QUIET)
    assert outcome(tmp_path) == before


def test_a_budget_of_time_ends_the_run_and_a_larger_one_goes_on(store: Store, tmp_path: Path) -> None:
    how: dict[str, Any] = {"steps": 9, "ema": 0.5, "log_every": 1, "validate_every": 4, **QUIET}
    train("noisy", store, run_dir=tmp_path / "whole", **how)
    short = tmp_path / "short"
    best = train("noisy", store, run_dir=short, max_seconds=1e-9, **how)
    assert best.is_file() and [line["step"] for line in lines(short)] == [1]
    assert lines(short)[-1]["stopped"] == "max_seconds=1e-09 reached"
    train("noisy", store, run_dir=short, max_seconds=1e-9, **how)  # spent already
    assert [line["step"] for line in lines(short)] == [1]
    train("noisy", store, run_dir=short, max_seconds=1e6, **how)
    budget = '"max_seconds": 1000000.0'
    assert {k: v for k, v in outcome(short).items() if k == "metrics"} == {"metrics": outcome(tmp_path / "whole")["metrics"]}
    assert budget in (short / "last.json").read_text()
    for name in ("best", "last"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (short, tmp_path / "whole"))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", ["noisy", "met2net"])
def test_interrupted_after_any_step_it_ends_with_the_same_bits(store: Store, tmp_path: Path, name: str) -> None:
    steps = 4 if name == "noisy" else 3
    how: dict[str, Any] = {"steps": steps, "batch_size": 4, "ema": 0.8, "clip": 1.0, "log_every": 1, "validate_every": 2, **QUIET}
    if name == "met2net":
        how |= {"preset": "tiny", "model": {"hid_T": 8}}
    train(name, store, run_dir=tmp_path / "whole", **how)
    total = len(lines(tmp_path / "whole"))
    assert total == (8 if name == "noisy" else 3)
    calls = 0

    def interrupt(line: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise Interrupted

    limit = 0
    for limit in range(1, total + 1):
        run = tmp_path / f"interrupted-{limit}"
        calls = 0
        with pytest.raises(Interrupted):
            train(name, store, run_dir=run, callbacks=[interrupt], **how)
        train(name, store, run_dir=run, **how)
        assert outcome(run) == outcome(tmp_path / "whole"), limit


def test_interrupted_again_and_again_it_still_ends_with_the_same_bits(store: Store, tmp_path: Path) -> None:
    how: dict[str, Any] = {"steps": 6, "batch_size": 4, "ema": 0.8, "log_every": 1, "validate_every": 2, "checkpoint_every": 1, **QUIET}
    train("noisy", store, run_dir=tmp_path / "whole", **how)

    chance = random.Random(0)

    def interrupt(line: dict[str, Any]) -> None:
        if chance.random() < 0.3:
            raise Interrupted

    interruptions, ended = 0, False
    while not ended:
        try:
            train("noisy", store, run_dir=tmp_path / "run", callbacks=[interrupt], **how)
            ended = True
        except Interrupted:
            interruptions += 1
            assert interruptions < 50
    assert interruptions > 1 and outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_metrics_that_the_state_does_not_know_are_cut(store: Store, tmp_path: Path) -> None:
    how: dict[str, Any] = {"steps": 6, "log_every": 1, "validate_every": 3, **QUIET}
    train("plain", store, run_dir=tmp_path / "whole", **how)

    def interrupt(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise Interrupted

    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train("plain", store, run_dir=run, callbacks=[interrupt], **how)
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 6, "lo')
    for leftover in (run / ".best.safetensors.1-a.tmp", run / "state" / ".state.pt.1-a.tmp"):
        leftover.write_text("half")
    train("plain", store, run_dir=run, **how)
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]
    assert outcome(run) == outcome(tmp_path / "whole")
    assert not list(run.rglob("*.tmp"))


def test_a_finished_run_is_returned_as_it_is(store: Store, tmp_path: Path) -> None:
    best = train("plain", store, run_dir=tmp_path, steps=3, **QUIET)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert train("plain", store, run_dir=tmp_path, steps=3, **QUIET) == best
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(WxlabError, match="already holds a run; go on with resume=True"):
        train("plain", store, run_dir=tmp_path, steps=3, resume=False, **QUIET)
    best.unlink()
    with pytest.raises(WxlabError, match=r"is finished, but its best.safetensors is gone"):
        train("plain", store, run_dir=tmp_path, steps=3, **QUIET)


# ---- losses that are no numbers


SPOILT = [("loss", None, "loss"), ("gradient", 1.0, "norm of the gradient"), ("gradient", None, "sum of the weights")]


@pytest.mark.parametrize(("spoil", "clip", "what"), SPOILT)
def test_a_run_without_a_number_ends_and_spoils_nothing(store: Store, tmp_path: Path, spoil: str, clip: float | None, what: str) -> None:
    how: dict[str, Any] = {"steps": 8, "clip": clip, "checkpoint_every": 1, "validate_every": 4, **QUIET}
    best: list[bytes] = []

    def look(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            best.append((tmp_path / "best.safetensors").read_bytes())

    how |= {"recipe": {"bad": 5, "spoil": spoil}, "log_every": 1, "callbacks": [look]}
    for _ in range(2):  # going on does not help, and spoils nothing either
        with pytest.raises(WxlabError, match=f"the {what} is nan at step 6; nothing was overwritten, .*{tmp_path}"):
            train("plain", store, run_dir=tmp_path, **how)
        state = torch.load(tmp_path / "state" / "state.pt", weights_only=True)
        assert state["step"] == 5 and all(torch.isfinite(value).all() for value in state["model"].values())
        assert best == [(tmp_path / "best.safetensors").read_bytes()]


# ---- faults


def faulty(call: Callable[[], Any]) -> str:
    with pytest.raises(WxlabError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and caught.value.__cause__ is None
    return message


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"setps": 3}, "unknown training setting 'setps'; did you mean 'steps'?"),
    ({"steps": 0}, "steps=0: input should be greater than or equal to 1"),
    ({"steps": "many"}, "steps='many': input should be a valid integer"),
    ({"steps": 2.5}, "steps=2.5: input should be a valid integer"),
    ({"steps": 3, "epochs": 1}, "steps=3 and epochs=1 were both given"),
    ({"batch_size": 1000}, "batch_size=1000 is more than the 38 training windows"),
    ({"lr": -1.0}, "lr=-1.0: input should be greater than 0"),
    ({"lr": float("inf")}, "lr=inf: input should be a finite number"),
    ({"lr": 0.1, "recipe": {"lr": 0.2}}, "both set the learning rate; give one of them"),
    ({"ema": 1.0}, "ema=1.0: input should be less than 1"),
    ({"precision": "half"}, "precision='half': input should be 'no', 'bf16' or 'fp16'"),
    ({"precision": "fp16"}, "precision='fp16' needs a GPU"),
    ({"device": "tpu"}, "device='tpu': input should be 'auto', 'cpu' or 'cuda'"),
    ({"progress": "yes"}, "progress='yes': input should be a valid boolean"),
    ({"stride": 36.0}, "stride of 36 h is no multiple of the store's step of 24 h"),
    ({"preset": "huge"}, "unknown preset of plain 'huge' (allowed: demo, tiny)"),
    ({"model": {"drop": 0.1}}, "unknown option of plain 'drop'; did you mean 'dropout'?"),
    ({"model": {"grid": (8, 8)}}, "the model's grid has (8, 8) points, the store's (4, 8)"),
    ({"model": {"channels": ["2m_temperature"]}}, "the model's channels ['2m_temperature'] are not the store's"),
    ({"model": {"history": 100}}, "no window of 101 states"),
    ({"model": {"step": 3600}}, "step of 1 h is no multiple of the store's step of 24 h"),
    ({"recipe": {"sdg": True}}, "unknown recipe setting of plain 'sdg'; did you mean 'sgd'?"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), SETTINGS, ids=[str(given) for given, _ in SETTINGS])
def test_faulty_settings(store: Store, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    how = {"steps": 2, **QUIET, **given}
    assert message in faulty(lambda: train("plain", store, run_dir=tmp_path / "run", **how))
    assert not (tmp_path / "run" / "state").exists() and not (tmp_path / "run" / "best.safetensors").exists()


def test_faulty_values_of_a_recipe(store: Store, tmp_path: Path) -> None:
    how: dict[str, Any] = {"run_dir": tmp_path, "preset": "tiny", "steps": 1, **QUIET}
    assert "the recipe of convlstm cannot use {'lr': 'fast'}: " in faulty(lambda: train("convlstm", store, recipe={"lr": "fast"}, **how))
    assert "lr=-1.0 must be positive" in faulty(lambda: train("convlstm", store, recipe={"lr": -1.0}, **how))
    message = faulty(lambda: train("convlstm", store, recipe={"sampling_stepz": 2}, **how))
    assert "unknown recipe setting of convlstm 'sampling_stepz'; did you mean 'sampling_steps'?" in message
    assert "(allowed: final_lr, lr, sampling_steps, warmup, weight_decay)" in message


def test_faulty_models_and_folders(store: Store, tmp_path: Path) -> None:
    how: dict[str, Any] = {"run_dir": tmp_path / "run", "steps": 1, **QUIET}
    fit = {"channels": store.channels, "grid": store.grid}
    assert "unknown model 'plane'; did you mean 'plain'?" in faulty(lambda: train("plane", store, **how))
    assert "a dict cannot be trained; give a name" in faulty(lambda: train({}, store, **how))  # type: ignore[arg-type]
    made = models.create_model("plain", **fit)
    assert "preset cannot change a model that is already made" in faulty(lambda: train(made, store, preset="demo", **how))
    swapped = models.create_model("plain", channels=store.channels[::-1], grid=store.grid)
    assert "are not the store's ['2m_temperature', 'geopotential_500']" in faulty(lambda: train(swapped, store, **how))
    upside = models.create_model("plain", channels=store.channels, grid=type(store.grid)(store.grid.y[::-1], store.grid.x))
    assert "but other coordinates" in faulty(lambda: train(upside, store, **how))
    forced = models.create_model("plain", forcing=("year_progress_sin",), **fit)
    assert "the model's forcing ['year_progress_sin'] are not the store's []" in faulty(lambda: train(forced, store, **how))
    assert "there is no store at" in faulty(lambda: train("plain", tmp_path / "none.zarr", **how))
    (tmp_path / "file").write_text("")
    assert "cannot be written (" in faulty(lambda: train("plain", store, **{**how, "run_dir": tmp_path / "file"}))


def test_faulty_runs(store: Store, tmp_path: Path) -> None:
    def go(**changed: Any) -> Path:
        return train("plain", store, **{"run_dir": tmp_path, "steps": 4, "lr": 0.1, **QUIET, **changed})

    go()
    message = faulty(lambda: go(steps=8, lr=0.2))
    assert "was started with other settings: lr (0.1 before, 0.2 now); steps (4 before, 8 now); give the same or choose" in message
    assert "model ({} before, " in faulty(lambda: go(model={"dropout": 0.5}))
    assert go(progress=False, checkpoint_every=3, max_seconds=1e6) == tmp_path / "best.safetensors"
    with RunFolder(tmp_path).alone():
        assert "another process is training in" in faulty(go)
    state = (tmp_path / "state" / "state.pt").read_bytes()
    for damage in (b"", b"nonsense", state[: len(state) // 2]):
        (tmp_path / "state" / "state.pt").write_bytes(damage)
        assert "state.pt cannot be read; delete it to begin the run anew" in faulty(go)
    torch.save({"stage": 0, "metrics_bytes": 0}, tmp_path / "state" / "state.pt")
    assert "state.pt cannot be read" in faulty(go)
    for damage in (b"{", b"[]", b"\xff\xfe"):
        (tmp_path / "settings.json").write_bytes(damage)
        assert "is not the JSON that wxlab.train wrote" in faulty(go)
    (tmp_path / "settings.json").unlink()
    assert "holds a run without its settings.json" in faulty(go)


def test_a_state_that_was_deleted_begins_anew(store: Store, tmp_path: Path) -> None:
    train("plain", store, run_dir=tmp_path, steps=4, **QUIET)
    before = outcome(tmp_path)
    (tmp_path / "state" / "state.pt").unlink()
    (tmp_path / "last.safetensors").unlink()
    train("plain", store, run_dir=tmp_path, steps=4, **QUIET)
    assert outcome(tmp_path) == before
