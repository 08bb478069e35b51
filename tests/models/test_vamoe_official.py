"""VA-MoE against the authors' numbers, and their checkpoints."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wxlab import create_model, load_official
from wxlab.catalog import open_dataset
from wxlab.channels import dataset_channels, stack
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models.base import Batch
from wxlab.models.baselines.topk_moe import NoisyTopK
from wxlab.models.vamoe import LearnedVariances, VAMoE, carry_over, extend, published_scores, save_official
from wxlab.models.vamoe.official import _topk
from wxlab.npy_tree import statistics

golden = pytest.mark.golden
STAGES = ("base", "ext1", "ext2")
FIELDS, LOSS, STEP, ROLLOUT = {"atol": 1e-4, "rtol": 0}, {"abs": 1e-5}, {"atol": 1e-6, "rtol": 0}, {"atol": 5e-4, "rtol": 0}


class Case:
    """The golden file of the networks, one stage of it."""

    def __init__(self, folder: Path, stage: str) -> None:
        everything = load_file(folder / "vamoe" / "case_a.safetensors")
        self.json = json.loads((folder / "vamoe" / "case_a.json").read_text())
        self.tensors = {name.removeprefix(f"{stage}/"): value for name, value in everything.items() if name.startswith(f"{stage}/")}
        self.facts = self.json["stages"][stage]
        self.config = {**self.json["config"], "channel_order": self.facts["channel_order"]}
        self.x, self.y = self.tensors["x"], self.tensors["target"]
        self.batch = Batch(self.x.unsqueeze(1), self.y.unsqueeze(1), torch.zeros(len(self.x), 2, dtype=torch.int64))

    def part(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in self.tensors.items() if key.startswith(f"{name}/")}

    def model(self, weights: str = "sd", **config: Any) -> VAMoE:
        model = load_official("vamoe", self.part(weights), config={**self.config, **config})
        assert isinstance(model, VAMoE)
        return model

    def number(self, name: str) -> float:
        return float(self.tensors[f"loss/{name}"])


@pytest.fixture(params=STAGES)
def case(request: pytest.FixtureRequest, golden_dir: Path) -> Case:
    return Case(golden_dir, request.param)


def frozen_like_the_authors(case: Case, model: VAMoE) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(case.facts["grad_norm"][name] is not None)


@golden
def test_outputs_equal_the_authors(case: Case) -> None:
    model = case.model()
    assert torch.equal(model.index, case.tensors["index_matrix"])
    assert sum(p.numel() for p in model.parameters()) == case.facts["n_params"]
    with torch.no_grad():
        out, recons = model(case.x)
        torch.testing.assert_close(out, case.tensors["out"], **FIELDS)
        torch.testing.assert_close(recons, case.tensors["recons"], **FIELDS)
        prediction = model.predict(case.batch)
    assert torch.equal(prediction[:, 0, 0], out)


@golden
def test_every_intermediate(case: Case) -> None:
    model, seen = case.model(), {}
    model.posembedder.register_forward_hook(lambda module, given, out: seen.__setitem__("index_latent", out))
    model.blocks[0].norm1.register_forward_hook(lambda module, given, out: seen.__setitem__("tokens", given[0]))
    for i, block in enumerate(model.blocks):
        block.attn.register_forward_hook(lambda module, given, out, i=i: seen.__setitem__(f"block{i}_attn", out))

        def moe(module: Any, given: Any, out: Tensor, i: int = i) -> None:
            seen.update({f"block{i}_moe": out, f"block{i}_indexsoftmax": given[1]})

        block.moe.register_forward_hook(moe)
        after = model.blocks[i + 1].norm1 if i + 1 < len(model.blocks) else None
        if after is not None:
            after.register_forward_hook(lambda module, given, out, i=i: seen.__setitem__(f"block{i}_out", given[0]))
    heads: list[Tensor] = []
    fields = model.fields
    model.fields = lambda t: (heads.append(t), fields(t))[1]  # type: ignore[method-assign, func-returns-value]
    with torch.no_grad():
        model(case.x)
    seen[f"block{len(model.blocks) - 1}_out"] = heads[0]
    expected = case.part("mid")
    assert len(expected) in (5, 14) and set(expected) <= set(seen)
    for name, value in expected.items():
        torch.testing.assert_close(seen[name].reshape(value.shape), value, **FIELDS, msg=name)


@golden
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_gates_choose_what_the_authors_do(case: Case, dtype: torch.dtype) -> None:
    model = case.model().to(dtype)
    picked: list[list[tuple[Tensor, Tensor]]] = []

    def look(module: Any, given: tuple[Tensor, Tensor]) -> None:
        x, emphasis = given
        picked.append([module.choose(x, row) for row in emphasis])

    for block in model.blocks:
        block.moe.register_forward_pre_hook(look)
    with torch.no_grad():
        out, _ = model(case.x.to(dtype))
    torch.testing.assert_close(out.float(), case.tensors["out"], **FIELDS)
    gates = case.part("gate")
    assert len(gates) == (0 if case.facts["channels"] == 15 else 6)
    for i in range(len(gates) // 2):
        weights, channels = (torch.stack(parts) for parts in zip(*picked[i], strict=True))
        assert torch.equal(channels, gates[f"block{i}_idx"].long())
        torch.testing.assert_close(weights.float(), gates[f"block{i}_weight"], **FIELDS)


@golden
def test_losses_of_every_variant(case: Case) -> None:
    model = case.model()
    for settings, name in (
        ({"reconstruct": "next"}, "loss"),
        ({"reconstruct": "input"}, "loss_code_with_input_recons"),
        ({"reconstruct": "input", "combine": "paper"}, "loss_paper_literal"),
    ):
        loss, logs = LearnedVariances(model, **settings).loss(model, case.batch, None)
        assert loss.item() == pytest.approx(case.number(name), **LOSS)
        assert logs["forecast"].item() == pytest.approx(case.number("loss_pred"), **LOSS)
        if name != "loss_paper_literal":
            variant = "target" if settings["reconstruct"] == "next" else "input"
            assert logs["reconstruction"].item() == pytest.approx(case.number(f"loss_recons_vs_{variant}"), **LOSS)
        else:
            assert logs["reconstruction"].item() == pytest.approx(case.number("recons_mse_vs_input"), **LOSS)


@golden
def test_gradients_and_one_step_of_adamw(case: Case) -> None:
    model = case.model().train()
    recipe = LearnedVariances(model, reconstruct="next")
    recipe.loss(model, case.batch, None)[0].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, value in case.part("grad").items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-3 * float(value.abs().max()), msg=name)
    for name, norm in case.facts["grad_norm"].items():
        if norm is not None:
            assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-3), name
    frozen_like_the_authors(case, model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recipe.optimiser(model).step()
    after = dict(model.named_parameters())
    for name, value in case.part("adamw_step1").items():
        torch.testing.assert_close(after[name].detach(), value, **STEP, msg=name)
    for name, norm in case.facts["grad_norm"].items():
        assert torch.equal(after[name], before[name]) == (norm is None), name
    loss, _ = recipe.loss(model, case.batch, None)
    assert loss.item() == pytest.approx(case.number("after_one_adamw_step"), **LOSS)


@golden
def test_three_steps_of_a_roll_out(case: Case) -> None:
    model = case.model()
    state, frames = case.x, []
    with torch.no_grad():
        for _ in range(3):
            state = model(state)[0]
            frames.append(state)
    torch.testing.assert_close(torch.stack(frames, 1), case.tensors["rollout"], **ROLLOUT)


@golden
def test_scores_as_the_authors_compute_them(case: Case) -> None:
    rmse, acc = published_scores(case.tensors["out"], case.y)
    torch.testing.assert_close(rmse, case.tensors["metric/rmse"], **STEP)
    torch.testing.assert_close(acc, case.tensors["metric/acc"], **STEP)


@golden
@pytest.mark.parametrize("stage", ["ext1", "ext2"])
def test_extensions_carry_weights_over_to_the_bit(golden_dir: Path, stage: str) -> None:
    case = Case(golden_dir, stage)
    old = Case(golden_dir, case.facts["extends"]).model()
    new = case.model("fresh_sd")
    carry_over(old, new, "by_number")
    for name, value in case.part("sd").items():
        assert torch.equal(new.state_dict()[name], value), name
    extended = extend(old, channels=new.spec.channels, experts="by_number")
    trained = {name for name, parameter in extended.named_parameters() if parameter.requires_grad}
    if stage == "ext1":  # their list of four experts is the old model's; of the second extension it is not
        assert trained == {name for name in new.state_dict() if name not in case.facts["frozen"]}
        assert sum(p.numel() for p in extended.parameters() if p.requires_grad) == case.facts["n_trainable"]
    elsewhere = {*case.facts["fresh"], *case.facts["partly_copied"]}
    for name, value in extended.state_dict().items():
        assert torch.equal(value, case.part("sd")[name]) == (name not in elsewhere), name


@golden
def test_sizes_follow_from_the_shapes(case: Case) -> None:
    least = {name: case.json["config"][name] for name in ("h", "w", "heads", "levels")}
    model = load_official("vamoe", case.part("sd"), config=least)
    assert torch.equal(model.index, case.tensors["index_matrix"])
    with torch.no_grad():
        torch.testing.assert_close(model(case.x)[0], case.tensors["out"], **FIELDS)
    assert model.spec.channels[:2] == ("geopotential_850", "geopotential_500") and model.spec.grid.y[0] > model.spec.grid.y[-1]


@golden
def test_tree_and_statistics_as_the_authors_load_them(golden_dir: Path, tmp_path: Path) -> None:
    folder = golden_dir / "vamoe"
    with tarfile.open(folder / "case_a_loader_tree.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    facts, expected = json.loads((folder / "case_a_loader.json").read_text()), load_file(folder / "case_a_loader.safetensors")
    names = {"geopotential": "z", "temperature": "t", "2m_temperature": "t2m", "10m_u_component_of_wind": "u10"}
    entry = {"uri": str(tmp_path / "data"), "variables": {name: {"name": short} for name, short in names.items()}}
    tree = open_dataset("era5_npy_tree", **entry, options={"check_range": False})
    assert "gaps" not in tree.attrs
    channels = dataset_channels(tree, list(names), [int(level) for level in facts["levels"]])
    normaliser = statistics(tmp_path / "data", channels)
    np.testing.assert_array_equal([normaliser.transforms[name].offset for name in channels], expected["mean"])
    np.testing.assert_array_equal([normaliser.transforms[name].scale for name in channels], expected["std"])
    states = stack(tree, channels).values.astype(np.float64)
    states = normaliser.normalise(states, channels).astype(np.float32)
    hours = {"train": 6, "valid": 12, "test": 12}
    for mode, samples in facts["samples"].items():
        frames = 3 if mode == "test" else 1
        assert samples["len"] == (24 * 3 - (frames + 1) * 6) // hours[mode]  # three day folders
        for number in (name for name in samples if name != "len"):
            first = int(number) * hours[mode] // 6
            labels = states[first + 1 : first + 1 + frames]
            np.testing.assert_array_equal(states[first], expected[f"{mode}/{number}/inputs"])
            np.testing.assert_array_equal(labels[0] if frames == 1 else labels, expected[f"{mode}/{number}/labels"])


@golden
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_noisy_top_k_layer(golden_dir: Path, mode: str) -> None:
    folder = golden_dir / "vamoe"
    tensors = load_file(folder / "case_a_noisy_topk_moe.safetensors")
    facts = json.loads((folder / "case_a_noisy_topk_moe.json").read_text())
    config, info = facts["config"], facts["info"][mode]
    layer = NoisyTopK(config["din"], config["experts"], config["k"], config["hidden"])
    weights = {name.removeprefix("sd/"): value for name, value in tensors.items() if name.startswith("sd/")}
    assert layer.load_state_dict(weights, strict=False).unexpected_keys == ["mean", "std"]  # of the standard normal
    x, noise = tensors["x"], tensors["noise"] if mode == "train" else None
    gates, load = layer.gates(x, noise)
    y, balance = layer(x, noise)
    for found, name in ((gates, "gates"), (load, "load"), (y, "y"), (balance.view(1), "aux_loss")):
        torch.testing.assert_close(found.detach(), tensors[f"{mode}/{name}"], **STEP, msg=name)
    (y.square().mean() + balance).backward()
    for name, norm in info["grad_norm of mean(y^2)+aux"].items():
        gradient = layer.get_parameter(name).grad
        assert (gradient is None or not gradient.any()) if norm is None else float(gradient.norm()) == pytest.approx(norm, rel=1e-4)
    for name in ("w_gate", "w_noise"):
        if f"{mode}/grad/{name}" in tensors:
            torch.testing.assert_close(layer.get_parameter(name).grad, tensors[f"{mode}/grad/{name}"], rtol=1e-3, atol=1e-7)


# ---- scores, without reference numbers --------------------------------------------------------------------------------------------


def test_published_scores_by_hand() -> None:
    truth = torch.ones(1, 1, 3, 2)
    forecast = truth * torch.tensor([5.0, 2.0, 7.0]).view(3, 1)
    rmse, acc = published_scores(forecast, truth)  # the poles have no weight
    assert rmse.item() == pytest.approx(1.0, abs=1e-3) and acc.item() == pytest.approx(1.0, abs=1e-3)
    assert published_scores(-truth, truth)[1].item() == pytest.approx(-1.0)
    with pytest.raises(WxlabError, match=r"forecast \[1, 1, 3, 2\] and truth \[1, 1, 3, 4\] must have the same shape"):
        published_scores(truth, torch.ones(1, 1, 3, 4))


# ---- checkpoints, without reference numbers ---------------------------------------------------------------------------------------


def small(**options: Any) -> VAMoE:
    torch.manual_seed(0)
    model = create_model("vamoe", "tiny", **options)
    assert isinstance(model, VAMoE)
    return model.eval()


CONFIG = {
    "h_size": 16, "w_size": 32, "num_blocks": 4, "levels": [850.0, 500.0], "higher_features": ["z", "t"], "surface_features": ["t2m"],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_the_authors_scripts(tmp_path: Path, prefix: str) -> None:
    model, path = small(), tmp_path / "ckpt.tar"
    state = {prefix + name: value for name, value in model.state_dict().items()}
    optimiser = LearnedVariances(model).optimiser(model).state_dict()
    torch.save({"iters": 7, "epoch": 3, "model_state": state, "optimizer_state_dict": optimiser}, path)
    again = load_official("vamoe", path, config=CONFIG)
    assert again.spec.channels == model.spec.channels and not again.training and again.name == "vamoe"
    x = torch.randn(1, 5, 16, 32)
    with torch.no_grad():
        assert torch.equal(again(x)[0], model(x)[0])


def test_saved_for_the_authors_scripts_in_their_order_of_channels(tmp_path: Path) -> None:
    mixed = ("2m_temperature", "geopotential_850", "temperature_500", "geopotential_500", "temperature_850")
    model = small(channels=mixed)
    save_official(model, tmp_path / "best_ckpt.tar", epoch=2)
    content = torch.load(tmp_path / "best_ckpt.tar", weights_only=True)
    assert content["epoch"] == 2 and all(name.startswith("module.") for name in content["model_state"])
    theirs = ["z850", "z500", "t500", "t850", "t2m"]
    again = load_official(
        "vamoe", tmp_path / "best_ckpt.tar", config={"h_size": 16, "w_size": 32, "num_blocks": 4, "channel_order": theirs}
    )
    x = torch.randn(2, 5, 16, 32)
    order = [mixed.index(name) for name in again.spec.channels]
    with torch.no_grad():
        torch.testing.assert_close(again(x[:, order])[0], model(x)[0][:, order], rtol=1e-5, atol=1e-6)


def test_published_sizes_need_no_settings() -> None:
    with torch.device("meta"):
        state = create_model("vamoe", "official", depth=1, embed_dim=64).state_dict()
    model = load_official("vamoe", {name: torch.zeros(value.shape) for name, value in state.items()})
    assert model.spec.grid.shape == (128, 256) and model.config["heads"] == 16 and model.config["topk"] == 2
    assert [model.spec.channels[i] for i in (5, 18, 31, 44, 57, 54)] == [
        "geopotential_500", "specific_humidity_500", "u_component_of_wind_500", "v_component_of_wind_500", "temperature_500",
        "temperature_850",
    ]  # fmt: skip
    assert model.spec.channels[65:] == (
        "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure", "surface_pressure",
    )  # fmt: skip


@pytest.mark.parametrize("width", [96, 128])
def test_any_number_of_chosen_channels_follows_from_the_shapes(width: int) -> None:
    """Also where width / (width / k) is rounded to less than k."""
    for chosen in range(1, width + 1):
        assert int(width / _topk(None, width, chosen)) == chosen


def test_a_checkpoint_whose_choice_does_not_divide_the_width() -> None:
    model = small(embed_dim=96, topk=1.62)
    again = load_official("vamoe", model.state_dict(), config=CONFIG)
    assert again.blocks[0].moe.chosen == model.blocks[0].moe.chosen == 59


def test_runs_with_plain_losses_have_no_log_variances() -> None:
    state = {name: value for name, value in small().state_dict().items() if not name.endswith("logvar")}
    assert not load_official("vamoe", state, config=CONFIG).loss_gen.logvar.any()


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, {"embed_dim": 64}, r"settings do not fit the weights: embed_dim=64 \(the weights say 32\)"),
        ({}, {"encoder_depths": 24, "patch_size": 4}, r"depth=24 \(the weights say 3\)|patch=4 \(the weights say 2\)"),
        ({}, {"h_size": None}, r"128 tokens, which does not tell rows from columns; give config=\{'h_size'"),
        ({}, {"h_size": 32}, r"a grid of 32 x 32 has 256 patches, and the weights have 128 tokens"),
        ({}, {"surface_features": ["t2m", "u10"]}, r"the weights have 5 channels, and the variables and levels named make 6"),
        ({}, {"higher_features": ["z"], "surface_features": ["t2m", "u10", "msl"]}, r"the weights have 3 experts, .* named need 2"),
        ({}, {"topk": 4}, r"topk=4 leaves each expert 8 of 32 channels, and the weights have 16"),
        ({}, {"num_blocks": 5}, r"embed_dim=32 must divide by heads=5"),
        ({"blocks.1.norm1.weight": torch.zeros(48)}, {}, r"blocks.1.norm1.weight has shape \[48\] and should have \[32\]"),
        ({"encoder_mlp_layer.weight": torch.zeros(3)}, {}, r"not the weights of this VA-MoE: unexpected encoder_mlp_layer.weight"),
        ({"head.weight": None}, {}, r"not the weights of this VA-MoE: missing head.weight"),
        ({"pos_embed": None}, {}, r"not VA-MoE weights: pos_embed is missing"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], config: dict[str, Any], message: str) -> None:
    state = {**small().state_dict(), **change}
    with pytest.raises(WxlabError, match=message) as caught:
        load_official("vamoe", {name: value for name, value in state.items() if value is not None}, config={**CONFIG, **config})
    assert "\n" not in str(caught.value)


def test_a_grid_may_be_given() -> None:
    grid = Grid.regular(16, 32)
    model = load_official("vamoe", small().state_dict(), config={**CONFIG, "h_size": None, "w_size": None, "grid": grid})
    assert model.spec.grid == grid
