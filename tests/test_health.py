"""Health of training runs: each signature of failure with the fault put in, and without it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
import zarr
from oracle import FAULTS, NAMES, SPLITS, make_store, waves
from pointwise import ENTRIES

from wxlab import models
from wxlab.errors import WxlabError
from wxlab.health import SIGNATURES, Findings, check
from wxlab.health.findings import Finding, Measure
from wxlab.models import create_model
from wxlab.models.met2net.recipe import TwoStage
from wxlab.plots import plot_health
from wxlab.store import Store, open_store, prepare
from wxlab.trainer import train

QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}
ROLLED = [name for name, signature in SIGNATURES.items() if signature.rolls]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in {**ENTRIES, "oracle": "oracle:ORACLE"}.items():
        monkeypatch.setitem(models._REGISTRY, name, place)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("health") / "waves.zarr"))


def plain(store: Store, run: Path, **how: Any) -> Path:
    """A run of a model of one layer; how: settings, and those of its recipe."""
    settings = {"steps": 12, "batch_size": 8, "log_every": 1, "validate_every": 3, **QUIET, **how}
    train("plain", store, run_dir=run, preset="tiny", model={"step": store.step}, **settings)
    return run


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(WxlabError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".")
    return message


# ---- what is found in logs and splits


def test_a_run_that_is_well_shows_nothing(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = check(plain(store, tmp_path / "run", steps=40, lr=0.03), forecasts=False)
    assert not findings.found and findings.note == "" and len(findings) == len(SIGNATURES)
    assert [findings[name].state for name in ("diverging", "not_normalised", "leakage")] == ["clear"] * 3
    assert 0.9 < (findings["not_normalised"].value or 0) < 1.2 and findings["diverging"].value == pytest.approx(1, abs=0.2)
    assert "health:" not in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "health.json").read_text())
    same = [finding.name for finding in findings if finding.name not in ROLLED]
    assert {row["name"]: row for row in kept["findings"] if row["name"] in same} == {
        row["name"]: row for row in findings.to_dict()["findings"] if row["name"] in same
    }
    for finding in findings:
        assert finding.text and finding.cure and not finding.text.endswith(".") and "\n" not in finding.text


def test_losses_that_diverge(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = check(plain(store, tmp_path / "run", lr=20.0, recipe={"sgd": True}), forecasts=False)
    assert [finding.name for finding in findings.found] == ["diverging"] and (findings["diverging"].value or 0) > 10
    assert "smaller lr" in findings["diverging"].cure
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"health: {findings['diverging']}"] and "FOUND  losses that diverge: the validation error ends at" in printed[0]


@pytest.mark.parametrize(("lr", "state"), [(6.0, "found"), (0.1, "clear")])
def test_losses_that_diverge_without_validation(tmp_path: Path, lr: float, state: str) -> None:
    alone = open_store(make_store(tmp_path / "s.zarr", splits={"train": 1.0}))
    findings = check(plain(alone, tmp_path / "run", steps=20, lr=lr, recipe={"sgd": True}), forecasts=False)
    assert findings["diverging"].state == state and "the training loss goes from" in findings["diverging"].text
    assert findings["leakage"].state == "not judged" and "split 'train' alone" in findings["leakage"].text


@pytest.mark.parametrize("bad", [1, 7])
def test_a_loss_that_is_no_number_is_kept_in_mind(store: Store, tmp_path: Path, bad: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Also before the first checkpoint; the run can then still be begun anew, to the same bits."""
    run = tmp_path / "run"
    message = refusal(lambda: plain(store, run, recipe={"bad": bad}))
    assert f"the loss is nan at step {bad + 1}" in message
    findings = check(run)
    assert findings["diverging"].state == "found" and findings["diverging"].value == math.inf and findings.note == ""
    assert findings["diverging"].text == f"the run broke off, the loss is nan at step {bad + 1}"
    assert json.loads((run / "health.json").read_text())["findings"][0]["value"] is None
    assert "health: FOUND  losses that diverge" in capsys.readouterr().out
    assert (findings["blur"].state == "not judged") is (bad == 1)
    if bad == 1:
        assert findings["blur"].text == "the run failed before it kept a checkpoint"
    assert refusal(lambda: plain(store, run, recipe={"bad": bad})) == message
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, bad + 1), bad]


def test_inputs_that_are_not_normalised(tmp_path: Path) -> None:
    raw = open_store(make_store(tmp_path / "s.zarr", normalisation={"2m_temperature": "none"}))
    findings = check(plain(raw, tmp_path / "run", lr=1e-6), forecasts=False)
    finding = findings["not_normalised"]
    assert finding.state == "found" and finding.value == pytest.approx(280, abs=3)
    assert "2m_temperature is 280 after its normalisation (none), the largest of 4 inputs" in finding.text


def tampered(store: Store, path: Path, **splits: list[list[int]]) -> Store:
    shutil.copytree(store.path, path)
    group = zarr.open_group(str(path), mode="r+")
    group.attrs["splits"] = {**group.attrs["splits"], **splits}
    return open_store(path)


def test_leakage_of_times(store: Store, tmp_path: Path) -> None:
    leaky = tampered(store, tmp_path / "s.zarr", validation=[[60, 120]])
    finding = check(plain(leaky, tmp_path / "run"), forecasts=False)["leakage"]
    assert finding.state == "found" and finding.value == 12 and "train and validation share 12 times" in finding.text


def test_leakage_of_states(tmp_path: Path) -> None:
    data = waves()
    for field in data.data_vars.values():
        field[100:105] = field[10:15].values
    copied = open_store(make_store(tmp_path / "s.zarr", data))
    finding = check(plain(copied, tmp_path / "run"), forecasts=False)["leakage"]
    assert finding.state == "found" and finding.value == 5


@pytest.mark.parametrize(("splits", "shared"), [({"train": {"segments": [0]}, "validation": {"segments": [1]}}, 40), (SPLITS, 0)])
def test_leakage_of_true_times(tmp_path: Path, splits: dict[str, Any], shared: int) -> None:
    """Two tiles of one radar sequence, in two splits or cut at the same time."""
    y, x = np.arange(8) * 1000.0, np.arange(8) * 1000.0
    times = np.datetime64("2020-06-01", "ns") + np.arange(40) * np.timedelta64(5, "m")
    rain = np.random.default_rng(0).gamma(1.0, 2.0, (40, 8, 8)).astype(np.float32)
    data = xr.Dataset({"rain_rate": (("time", "y", "x"), rain)}, {"time": times, "y": y, "x": x})
    tiles = open_store(prepare(data, tmp_path / "s.zarr", normalisation={"rain_rate": "zscore"}, tiles="8x4", splits=splits))
    assert len(tiles.segments) == 2
    finding = check(plain(tiles, tmp_path / "run", lr=1e-3), forecasts=False)["leakage"]
    assert finding.value == shared and finding.state == ("found" if shared else "clear")
    assert f"the closest splits are {'0 h' if shared else '5 min'} apart" in finding.text


# ---- what is found in networks


def met2net(store: Store, run: Path, steps: int = 60, lr: float = 1e-2, **recipe: Any) -> Findings:
    size = {"hid_S": 8, "hid_T": 16, "N_T": 1, "drop_path": 0.0}
    how = {"steps": steps, "batch_size": 4, "validate_every": max(1, steps // 4), "lr": lr, "recipe": recipe, **QUIET}
    train("met2net", store, run_dir=run, preset="tiny", model=size, **how)
    return check(run, forecasts=False)


def test_latent_collapse_and_momentum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(make_store(tmp_path / "s.zarr", variables=list(NAMES[:2])))
    well = met2net(store, tmp_path / "well")
    assert not well.found and well["latent_collapse"].state == well["momentum"].state == "clear"
    assert (well["latent_collapse"].value or 0) > 0.5 and (well["momentum"].value or 9) < 0.01

    still = met2net(store, tmp_path / "still", alpha=1.0)["momentum"]
    assert still.state == "found" and (still.value or 0) > 4 and "smaller alpha" in still.cure
    assert "the copy has 1 of the weights that it began with after 60 steps, and the network's own error is" in still.text
    without = met2net(store, tmp_path / "without", alpha=0.0)["momentum"]
    assert without.state == "clear" and (without.value or 9) < 0.6
    stuck = met2net(store, tmp_path / "stuck", alpha=0.0, steps=2, lr=1e-7)["momentum"]
    assert stuck.state == "found" and stuck.value == pytest.approx(1, abs=0.3) and "0.9} or more" in stuck.cure

    def ruled(self: TwoStage, model: Any, batch: Any, generator: Any) -> Any:
        latents = model.encoders(batch.history)
        latent = F.mse_loss(model.translator(latents), model.encoders(batch.target))
        data = (model.decoders(model.translator(latents.detach())) - batch.target).square().mean()
        return 10 * latent + 0.1 * data, {"data": data.detach(), "latent": latent.detach()}

    monkeypatch.setattr(TwoStage, "loss", ruled)
    collapsed = met2net(store, tmp_path / "collapsed")["latent_collapse"]
    assert collapsed.state == "found" and (collapsed.value or 1) < 0.08


@pytest.fixture(scope="module")
def radar(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Blobs of rain that move, 24 events of 8 frames."""
    random, t, cells = np.random.default_rng(0), np.arange(8), np.arange(16)
    fields, times = [], []
    for event in range(24):
        start = random.integers(1, 9, 2)
        y, x = start[0] + t, start[1] + t
        fields.append((15 + event) * np.exp(-((cells[:, None] - y[:, None, None]) ** 2 + (cells - x[:, None, None]) ** 2) / 12.0))
        times.append(np.datetime64("2020-06-01", "ns") + np.timedelta64(event, "D") + t * np.timedelta64(5, "m"))
    axes = {"time": np.concatenate(times), "y": cells * 1000.0, "x": cells * 1000.0}
    data = xr.Dataset({"rain_rate": (("time", "y", "x"), np.concatenate(fields).astype(np.float32))}, axes)
    how: dict[str, Any] = {"normalisation": {"rain_rate": {"kind": "dbz", "low": 5, "high": 60}}, "splits": SPLITS}
    return open_store(prepare(data, tmp_path_factory.mktemp("radar") / "s.zarr", **how))


@pytest.mark.parametrize(("constraint", "state"), [(1.0, "clear"), (0.0, "found")])
def test_first_estimates_that_are_noise(radar: Store, tmp_path: Path, constraint: float, state: str) -> None:
    recipe = {"constraint": constraint, "lr": 3e-3}
    train("stldm", radar, run_dir=tmp_path, preset="tiny", steps=60, batch_size=8, validate_every=30, recipe=recipe, **QUIET)
    finding = check(tmp_path, forecasts=False)["first_estimate"]
    assert finding.state == state and f"constraint={constraint:g}" in finding.text


def test_inert_experts_and_equal_gates(store: Store, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"channels": store.channels, "grid": store.grid, "step": store.step}

    def vamoe(run: str, gain: float, apart: bool) -> Findings:
        torch.manual_seed(0)
        model: Any = create_model("vamoe", "tiny", **shape, embed_dim=32, depth=2, heads=2, expert_gain=gain)
        for block in model.blocks if apart else []:  # gates that have learned to look at channels of their own
            torch.nn.init.normal_(block.moe.PosEmbedder.weight, std=30.0)
        train(model, store, run_dir=tmp_path / run, steps=2, batch_size=4, lr=1e-6, **QUIET)
        return check(tmp_path / run, forecasts=False)

    fresh, learned = vamoe("fresh", 1.0, False), vamoe("learned", 16.0, True)
    assert fresh["inert_experts"].state == "found" and "2 of 2 experts are inert" in fresh["inert_experts"].text
    assert "'expert_gain': 16" in fresh["inert_experts"].cure
    assert fresh["equal_gates"].state == "found" and fresh["equal_gates"].value == pytest.approx(1, abs=0.01)
    assert "geopotential and surface" in fresh["equal_gates"].text
    assert learned["inert_experts"].state == "clear" and "0 of 2" in learned["inert_experts"].text
    assert learned["equal_gates"].state == "clear" and (learned["equal_gates"].value or 1) < 0.95


# ---- what is found in roll-outs


def oracle(store: Store, run: Path, fault: str, **how: Any) -> Findings:
    train("oracle", store, run_dir=run, model={"place": str(store.path), "fault": fault}, **QUIET)
    return check(run, **{"times": 4, "steps": 12, "members": 4, **how})


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_roll_outs(store: Store, tmp_path: Path, fault: str) -> None:
    findings = oracle(store, tmp_path, fault)
    found = {finding.name for finding in findings.found}
    expected = {"none": set(), "equal": {"equal_members"}, "broken": {"drift"}}.get(fault, {fault})
    assert found == expected, str(findings)
    assert findings["diverging"].text == "oracle has nothing to train, so it has no losses"
    if fault == "broken":
        assert findings["drift"].value == math.inf and "not numbers from 18 h on" in findings["drift"].text
        assert findings["flicker"].text.endswith("which 'drift' reports")
    if fault == "drift":
        assert "in 72 h the area mean of geopotential_500 moves" in findings["drift"].text
    if fault == "poles":
        assert "the row at -82.5 degrees" in findings["poles"].text


def test_what_cannot_be_judged_says_why(store: Store, radar: Store, tmp_path: Path) -> None:
    few = oracle(store, tmp_path / "few", "drift", steps=2)
    assert few["drift"].state == few["flicker"].state == "not judged" and few["blur"].state == "clear"
    assert few["drift"].text == "the roll-outs have 2 lead times and 4 are needed; ask for more steps or a longer split"
    alone = oracle(store, tmp_path / "alone", "deterministic")
    assert alone["equal_members"].text == "oracle is deterministic, so there is no spread"
    assert alone["first_estimate"].text == "oracle has no first estimate"
    without = check(tmp_path / "alone", forecasts=False)
    assert {finding.name for finding in without.not_judged} >= set(ROLLED)
    assert without["flicker"].text == "it needs roll-outs; ask for forecasts=True"
    train("persistence", radar, run_dir=tmp_path / "rain", model={"history": 2}, **QUIET)
    rain = check(tmp_path / "rain", steps=3)
    assert rain["poles"].text == "the grid does not reach the poles"
    assert rain["blur"].state == "clear" and "there are no winds" in rain["blur"].text and rain["flicker"].value == 0


def test_a_check_repeats_itself_and_leaves_random_numbers_alone(store: Store, tmp_path: Path) -> None:
    first = oracle(store, tmp_path, "none")
    torch.manual_seed(5)
    assert str(check(tmp_path, times=4, steps=12)) == str(first)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert [finding.value for finding in check(tmp_path, times=4, steps=12, seed=1)] != [finding.value for finding in first]


# ---- the store and the folder


def test_a_store_that_was_moved_is_the_same_store(store: Store, tmp_path: Path) -> None:
    here, there, run = tmp_path / "here.zarr", tmp_path / "there.zarr", tmp_path / "run"
    shutil.copytree(store.path, here)
    plain(open_store(here), run)
    here.rename(there)
    lost = check(run)
    assert {lost[name].state for name in ("leakage", "not_normalised", "flicker")} == {"not judged"}
    assert lost["leakage"].text.startswith("there is no store at") and lost["leakage"].text.endswith("give store= if it was moved")
    assert lost["diverging"].state == "clear"
    assert check(run, store=there)["leakage"].state == "clear"
    weights = (run / "best.safetensors").read_bytes()
    plain(open_store(there), run)  # a finished run is taken as it is, and knows the new place
    assert check(run)["leakage"].state == "clear" and (run / "best.safetensors").read_bytes() == weights
    shutil.rmtree(there)
    make_store(there, waves(seed=1))
    assert "is another store than the one" in check(run)["leakage"].text
    assert "is another store than the one that the run in" in refusal(lambda: check(run, store=there))
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({key: value for key, value in settings.items() if key != "store_path"}))
    assert check(run)["leakage"].text == "the run did not record where its store lies; give store="
    assert check(run, store=store)["leakage"].state == "clear"


def test_health_is_looked_at_when_a_run_ends_and_not_again(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how: dict[str, Any] = {"lr": 20.0, "recipe": {"sgd": True}}
    plain(store, tmp_path, **how)
    assert capsys.readouterr().out.count("health:") == 1
    stamp = (tmp_path / "health.json").stat().st_mtime_ns
    plain(store, tmp_path, **how)
    assert capsys.readouterr().out == "" and (tmp_path / "health.json").stat().st_mtime_ns == stamp
    (tmp_path / "health.json").unlink()  # as after a kill between the last state and the check
    plain(store, tmp_path, **how)
    assert capsys.readouterr().out.count("health:") == 1 and (tmp_path / "health.json").is_file()


def test_half_done_runs_and_bad_input(store: Store, tmp_path: Path) -> None:
    assert "holds no run of wxlab.train; name the run_dir" in refusal(lambda: check(tmp_path))
    run = plain(store, tmp_path / "run")
    (run / "last.safetensors").unlink()
    (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(keepends=True)[:7]) + '{"stage": 0, "st')
    findings = check(run, forecasts=False)
    assert findings.note.startswith("the run is half done: its logs reach step 7") and str(findings).endswith(findings.note)
    (run / "best.safetensors").unlink()
    assert "is half done and has kept no checkpoint yet" in refusal(lambda: check(run))
    (run / "settings.json").write_text("[]")
    assert "is not the JSON that wxlab.train wrote" in refusal(lambda: check(run))
    assert "steps=0 must be a whole number of at least 1" in refusal(lambda: check(run, steps=0))
    assert "device='tpu' is not known" in refusal(lambda: check(run, device="tpu"))
    assert "there is no store at" in refusal(lambda: check(plain(store, tmp_path / "other"), store=tmp_path / "nowhere"))


def test_findings_are_a_list_a_table_and_names(store: Store, tmp_path: Path) -> None:
    findings = oracle(store, tmp_path, "flicker")
    table = findings.table()
    assert list(table.index) == list(SIGNATURES) and table.loc["flicker", "state"] == "found"
    assert "unknown signature 'flickr'; did you mean 'flicker'?" in refusal(lambda: findings["flickr"])
    assert len(str(findings).splitlines()) == len(findings) and "bar > 2" in str(findings["flicker"])
    figure = plot_health(findings)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert len(written) == len(findings) and "oracle has no first estimate" in written
    assert figure.axes[0].get_title(loc="left").startswith("1 of 7 signatures of failure found")
    assert "findings is a dict; give what wxlab.health.check" in refusal(lambda: plot_health({}))  # type: ignore[arg-type]
    assert (findings["flicker"].severity or 0) > 1 and (findings["blur"].severity or 9) < 1 and findings["momentum"].severity is None


@pytest.mark.parametrize(
    ("value", "bar", "below", "found"),
    [(2.0, 2.0, False, False), (2.1, 2.0, False, True), (0.5, 0.5, True, False), (0.4, 0.5, True, True), (math.nan, 2.0, False, True),
     (math.nan, 2.0, True, True), (math.inf, 2.0, False, True), (0.0, 0.0, False, False), (1.0, 0.0, False, True)],
)  # fmt: skip
def test_numbers_against_their_bars(value: float, bar: float, below: bool, found: bool) -> None:
    assert Measure(value, bar, "", below).found is found
    severity = Finding("a", "a", "found", "a", "a", value, bar, below).severity
    assert severity is not None and (severity > 1) is found
