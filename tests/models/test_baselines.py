"""Baselines: reference numbers of the authors' code, published counts, and what each is supposed to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from standins import Noise, windows
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.models import create_model, get_entry, load_official
from wxlab.models.base import Batch
from wxlab.models.baselines.convlstm import ScheduledSampling
from wxlab.models.baselines.simvp import differential_divergence

SHAPE = [4, 2, 16, 24]
SIMVP = [("baselines_met2net", f"simvp_{kind}", {}) for kind in ("gsta", "incepu", "tau")]
SIMVP.append(("baselines_openstl", "simvp_tau_se", {"live_gate": True}))


def golden(folder: Path, file: str, case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, all tensors and settings of one reference case."""
    tensors = load_file(folder / "met2net" / f"{file}.safetensors")
    config = json.loads((folder / "met2net" / f"{file}.json").read_text())[case]
    weights = {key.removeprefix(f"{case}.sd."): value for key, value in tensors.items() if key.startswith(f"{case}.sd.")}
    return weights, tensors, {"in_shape": SHAPE, **config}


@pytest.mark.golden
@pytest.mark.parametrize(("file", "case", "extra"), SIMVP, ids=[case for _, case, _ in SIMVP])
def test_simvp_equals_the_authors(golden_dir: Path, file: str, case: str, extra: dict[str, Any]) -> None:
    weights, tensors, config = golden(golden_dir, file, case)
    model = load_official("simvp", weights, config={**config, **extra})
    assert sum(p.numel() for p in model.parameters()) == config["params"]
    with torch.no_grad():
        torch.testing.assert_close(model(tensors["in.x"]), tensors[f"{case}.eval.out"], rtol=3e-4, atol=3e-5)
        double = model.double()(tensors["in.x"].double())
    torch.testing.assert_close(double, tensors[f"{case}.f64.eval.out"], rtol=1e-9, atol=1e-12)


@pytest.mark.golden
def test_the_squeeze_excite_of_tau_matters(golden_dir: Path) -> None:
    weights, tensors, config = golden(golden_dir, "baselines_openstl", "simvp_tau_se")
    upstream = load_official("tau", weights, config=config)
    dead = load_official("tau", weights, config={**config, "live_gate": False})
    with torch.no_grad():
        torch.testing.assert_close(upstream(tensors["in.x"]), tensors["simvp_tau_se.eval.out"], rtol=3e-4, atol=3e-5)
        assert (dead(tensors["in.x"]) - tensors["simvp_tau_se.eval.out"]).abs().max() > 0.1


@pytest.mark.golden
def test_convlstm_equals_the_authors(golden_dir: Path) -> None:
    weights, tensors, config = golden(golden_dir, "baselines_met2net", "convlstm")
    model = load_official("convlstm", weights, config=config)
    assert sum(p.numel() for p in model.parameters()) == config["params"]
    with torch.no_grad():
        torch.testing.assert_close(model(tensors["in.x"]), tensors["convlstm.eval.out"], rtol=3e-4, atol=3e-5)
        batch = Batch(tensors["in.x"], tensors["in.y"], torch.zeros(2, 8, dtype=torch.int64))
        loss, logs = ScheduledSampling(model).loss(model, batch, torch.Generator())
    assert float(logs["truth_probability"]) == 1
    assert float(loss) == pytest.approx(config["teacher_forced_loss"], rel=1e-6)


@pytest.mark.golden
def test_tau_regulariser_equals_the_authors(golden_dir: Path) -> None:
    _, tensors, config = golden(golden_dir, "baselines_met2net", "tau_diff_div_reg")
    value = differential_divergence(tensors["simvp_tau.eval.out"], tensors["in.y"])
    assert float(value) == pytest.approx(config["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("tau", {}, 12_219_553),
        ("simvp", {"translator": "gsta"}, 12_758_305),
        ("simvp", {"translator": "incepu"}, 14_666_017),
        ("convlstm", {}, 14_928_384),
        ("ladder_attention", {}, 8_698_405),
    ],
)
def test_published_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = create_model(name, "weatherbench_5p625", **options)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.spec.history == model.spec.horizon == 12 and model.spec.grid.shape == (32, 64)


@pytest.mark.parametrize("translator", ["gsta", "incepu", "tau"])
def test_official_weights_round_trip_where_widths_differ(translator: str) -> None:
    """T S != D brings the 1x1 convolutions that the reference cases do not have; four encoder stages."""
    model = create_model("simvp", "tiny", translator=translator, hid_S=8, hid_T=16, N_S=4, N_T=3, history=3, horizon=3).eval()
    batch = windows(model)
    config = {"in_shape": [3, 3, 16, 32], "drop_path": 0.1}
    again = load_official("simvp", {f"model.{key}": value for key, value in model.state_dict().items()}, config=config)
    for key in ("hid_T", "N_S", "N_T", "translator"):
        assert again.config[key] == model.config[key]
    with torch.no_grad():
        assert torch.equal(again(batch.history), model(batch.history))


def test_official_weights_that_do_not_fit_are_named() -> None:
    state = create_model("convlstm", "tiny").state_dict()
    config = {"in_shape": [2, 3, 16, 32]}
    del state["cell_list.1.conv_h.0.weight"]
    with pytest.raises(WxlabError, match=r"missing cell_list\.1\.conv_h\.0\.weight"):
        load_official("convlstm", state, config=config)
    with pytest.raises(WxlabError, match="in_shape"):
        load_official("convlstm", state)
    with pytest.raises(WxlabError, match="another model"):
        load_official("simvp", state, config=config)
    with pytest.raises(WxlabError, match="C=3"):
        load_official("convlstm", state, config={"in_shape": [2, 5, 16, 32]})


def test_persistence_repeats_the_last_frame() -> None:
    model = create_model("persistence", history=3, horizon=5)
    batch = windows(model)
    prediction = model.predict(batch, members=2)
    assert torch.equal(prediction, batch.history[:, None, -1:].expand(2, 2, 5, -1, -1, -1))


def test_random_walk_grows_like_the_square_root() -> None:
    model = create_model("random_walk", horizon=9, grid=(24, 24), channels=("a",), tendency_std=0.3, correlation_length=1.5)
    assert model.spec.stochastic == "noise"
    batch = windows(model, batch=1)
    members = 300
    departure = model.predict(batch, members, Noise(1, members))[0, :, :, 0] - batch.history[0, -1, 0]  # [M, To, H, W]
    spread = departure.square().mean((0, 2, 3)).sqrt()
    np.testing.assert_allclose(spread, 0.3 * np.sqrt(np.arange(1, 10)), rtol=0.03)
    # the correlation of neighbours is that of exp(-r^2 / (2 L^2)), and the edges in latitude know nothing of each other
    step = departure[:, 0]
    variance = float(step.square().mean())
    assert float((step[:, :, 3:] * step[:, :, :-3]).mean()) / variance == pytest.approx(np.exp(-9 / 4.5), abs=0.03)
    assert abs(float((step[:, 0] * step[:, -1]).mean())) / variance < 0.1
    # around the globe the first and the last longitude are neighbours
    assert float((step[..., 0] * step[..., -1]).mean()) / variance == pytest.approx(np.exp(-1 / 4.5), abs=0.1)


def test_random_walk_needs_a_generator() -> None:
    model = create_model("random_walk")
    with pytest.raises(WxlabError, match="generator"):
        model.predict(windows(model))


def test_climatology_needs_a_store() -> None:
    model = create_model("climatology")
    with pytest.raises(WxlabError, match="fit"):
        model.predict(windows(model))


def test_separate_encoders_keep_channels_apart_before_the_translator() -> None:
    """With the translator removed, a channel's output depends on that channel alone in b, on all of them in a."""
    reach = {}
    for name in ("ladder_joint", "ladder_separate"):
        torch.manual_seed(0)
        model = create_model(name, drop_path=0.0).eval()
        model.translator = torch.nn.Identity()
        x = windows(model, 1).history.requires_grad_()
        model(x)[:, :, 0].square().sum().backward()
        assert x.grad is not None
        reach[name] = (x.grad.abs().sum((0, 1, 3, 4)) > 0).tolist()
    assert reach == {"ladder_joint": [True, True, True], "ladder_separate": [True, False, False]}


def test_ladder_steps_have_the_same_sizes_as_met2net() -> None:
    for preset in ("tiny", "demo", "weatherbench_5p625"):
        expected = get_entry("met2net").presets[preset]
        for name in ("ladder_joint", "ladder_separate", "ladder_attention"):
            assert get_entry(name).presets[preset] == expected


def test_groups_of_channels_in_the_separate_ladder() -> None:
    model = create_model("ladder_separate", groups=[2, 1])
    assert len(model.encoders) == 2 and model.predict(windows(model)).shape == (2, 1, 2, 3, 16, 32)
    with pytest.raises(WxlabError, match="sum to 3"):
        create_model("ladder_separate", groups=[2, 2])


def test_scheduled_sampling_fades_the_truth_out() -> None:
    model = create_model("convlstm", history=2, horizon=4)
    recipe = ScheduledSampling(model, sampling_steps=10)
    batch = windows(model)
    probabilities, losses = [], []
    for step in range(12):
        loss, logs = recipe.loss(model, batch, torch.Generator().manual_seed(0))
        probabilities.append(float(logs["truth_probability"]))
        losses.append(float(loss.detach()))
        recipe.after_step(model, step)
    np.testing.assert_allclose(probabilities, [1 - i / 10 for i in range(10)] + [0, 0], atol=1e-6)
    # without any truth in the target period the loss is that of the forecast itself
    with torch.no_grad():
        forecast = model(batch.history)
        observed = model.run(batch.history, 1)
    assert batch.target is not None
    expected = torch.cat([observed - batch.history[:, 1:2], forecast - batch.target], 1).square().mean()
    assert losses[-1] == pytest.approx(float(expected), rel=1e-5) and losses[0] != losses[-1]
    assert int(recipe.state_dict()["steps_done"]) == 12


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_simvp_writes_any_number_of_frames_block_by_block(horizon: int) -> None:
    torch.manual_seed(0)
    usual = create_model("simvp", "tiny", history=2, horizon=2).eval()
    other = create_model("simvp", "tiny", history=2, horizon=horizon).eval()
    other.load_state_dict(usual.state_dict())
    batch = windows(other)
    with torch.no_grad():
        first = usual(batch.history)
        second = usual(first)
        blocks = torch.cat([first, second, usual(second)], 1)
        torch.testing.assert_close(other(batch.history), blocks[:, :horizon], rtol=1e-4, atol=1e-5)
    loss, _ = get_entry("simvp").recipe(other).loss(other.train(), batch, torch.Generator())  # type: ignore[misc]
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in other.parameters())


def test_baselines_of_radar_read_and_write_what_stldm_does() -> None:
    stldm = get_entry("stldm").presets
    for ours, theirs in {"radar_demo": "demo", "sevir": "sevir", "hko7": "hko7", "meteonet": "meteonet"}.items():
        for name in ("persistence", "simvp", "tau", "convlstm"):
            with torch.device("meta"):
                spec = create_model(name, ours).spec
            for key in ("channels", "grid", "horizon", "step", *(() if name == "persistence" else ("history",))):
                assert getattr(spec, key) == stldm[theirs][key], (name, ours, key)


@pytest.mark.parametrize("name", ["simvp", "tau", "ladder_joint", "convlstm"])
def test_unobserved_points_do_not_count_in_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    recipe = get_entry(name).recipe(model)  # type: ignore[misc]
    batch = windows(model)
    mask = torch.ones(2, 4, 3, 16, 32, dtype=torch.bool)
    mask[..., :5] = False
    spoilt = Batch(batch.history, batch.target.clone(), batch.time, mask=mask)  # type: ignore[union-attr]
    losses = []
    for value in (0.0, 50.0):
        assert spoilt.target is not None
        spoilt.target[..., :5] = value
        if name == "convlstm":  # its inputs contain the target: only the last frame is never read
            spoilt.target[:, :-1, ..., :5] = 0
        losses.append(float(recipe.loss(model, spoilt, torch.Generator())[0].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_divergence_regulariser_knows_right_from_wrong() -> None:
    frames = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(differential_divergence(frames, frames)) == pytest.approx(0, abs=1e-9)
    assert float(differential_divergence(frames, frames + 7)) == pytest.approx(0, abs=1e-6)  # only changes count
    assert float(differential_divergence(frames, frames.flip(1))) > 1e-3
    assert float(differential_divergence(frames[:, :1], frames[:, 1:2])) == 0


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("simvp", {"translator": "vit"}, "unknown translator 'vit'"),
        ("simvp", {"horizon": 3, "history_step": 3600}, "step=21600 and history_step=3600 must be equal; make them so, or give horizon=2"),
        ("ladder_joint", {"horizon": 3}, "history=2 and horizon=3"),
        ("simvp", {"N_S": 3}, "N_S=3"),
        ("simvp", {"translator": "incepu", "hid_T": 9}, "hid_T=9"),
        ("simvp", {"translator": "incepu", "hid_S": 6}, "multiple of 8"),
        ("tau", {"drop_path": 1.5}, "drop_path=1.5"),
        ("convlstm", {"kernel": 4}, "kernel=4"),
        ("convlstm", {"hidden": ()}, "hidden"),
        ("ladder_joint", {"hid_S": 3}, "hid_S=3"),
        ("random_walk", {"tendency_std": -1.0}, "tendency_std"),
    ],
)
def test_mistakes_are_explained(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(WxlabError, match=says):
        create_model(name, **options)


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"weight_decay": -1.0}, {"weight": -0.1}])
def test_recipes_refuse_impossible_settings(settings: dict[str, float]) -> None:
    model = create_model("tau")
    with pytest.raises(WxlabError, match=next(iter(settings))):
        get_entry("tau").recipe(model, **settings)  # type: ignore[misc]
