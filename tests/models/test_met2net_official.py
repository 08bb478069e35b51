"""Met2Net against the authors' numbers, and their checkpoints."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wxlab import create_model, load_official
from wxlab.errors import WxlabError
from wxlab.models.base import Batch
from wxlab.models.met2net import Met2Net, TwoStage, load_momentum, save_official
from wxlab.models.met2net.recipe import Refresh
from wxlab.nn.drop_path import DropPath

golden = pytest.mark.golden
CASES = ("case_a", "case_c")
F32 = {"rtol": 3e-4, "atol": 3e-5}
F64 = {"rtol": 1e-9, "atol": 1e-12}


class Case:
    """One golden file: its tensors, its numbers, and a model and recipe with its weights."""

    def __init__(self, folder: Path, name: str, dtype: torch.dtype = torch.float64, **recipe: Any) -> None:
        self.tensors = load_file(folder / "met2net" / f"{name}.safetensors")
        self.json = json.loads((folder / "met2net" / f"{name}.json").read_text())
        self.numbers, self.config, self.dtype = self.json["scalars"], self.json["config"], dtype
        self.prefix = "f64." if dtype == torch.float64 else ""
        self.tolerance = F64 if dtype == torch.float64 else F32
        self.state = {key[3:]: value for key, value in self.tensors.items() if key.startswith("sd.")}
        model = load_official("met2net", self.state, config=self.config).to(dtype)
        assert isinstance(model, Met2Net)
        self.model = model
        kind: Refresh = "copy" if self.config["variant"] == "released" else "momentum"
        self.recipe = TwoStage(model, alpha=self.config["momentum_ema"], ema_encdec=kind, log_prediction=True, **recipe)
        load_momentum(self.recipe, self.state)
        self.drop(0.0)
        self.x, self.y = self.tensors["in.x"].to(dtype), self.tensors["in.y"].to(dtype)
        frames = self.x.shape[1]
        self.batch = Batch(self.x, self.y, torch.zeros(len(self.x), 2 * frames, dtype=torch.int64))

    def drop(self, rate: float) -> None:
        for module in (*self.model.modules(), *self.recipe.modules()):
            if isinstance(module, DropPath):
                module.rate = rate

    def official(self) -> dict[str, Tensor]:
        return save_official(self.model, self.recipe)

    def gradients(self) -> dict[str, Tensor]:
        """By official key."""
        twin = create_twin(self.model)
        for mine, parameter in zip(twin.parameters(), self.model.parameters(), strict=True):
            mine.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        return {key: value for key, value in save_official(twin).items() if "_q" in key}

    def check_losses(self, logs: dict[str, Tensor], loss: Tensor, expected: dict[str, float], **tolerance: float) -> None:
        found = [loss.item(), logs["data"].item(), logs["latent"].item(), logs["prediction"].item()]
        wanted = [expected[name] for name in ("loss", "loss_rec", "loss_latent", "loss_pre")]
        np.testing.assert_allclose(found, wanted, **(tolerance or self.tolerance))


def create_twin(model: Met2Net) -> Met2Net:
    return Met2Net(model.spec, **model.config).to(next(model.parameters()).dtype)


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=(torch.float64, torch.float32), ids=("f64", "f32"))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@golden
def test_inference_equals_the_authors(golden_dir: Path, name: str, dtype: torch.dtype) -> None:
    case = Case(golden_dir, name, dtype)
    taps: list[Tensor] = []
    for layer in case.model.translator.layers:
        layer.attn_1.tap.register_forward_hook(lambda module, given, out: taps.append(out))
    with torch.no_grad():
        out = case.model(case.x)
    torch.testing.assert_close(out, case.tensors[f"{case.prefix}eval.sample"], **case.tolerance)
    for i, weights in enumerate(taps):
        torch.testing.assert_close(weights, case.tensors[f"{case.prefix}attn.layer{i}"], **case.tolerance)
    mean = torch.stack([weights.mean((0, 1)) for weights in taps]).float()
    torch.testing.assert_close(mean, case.tensors["attn.mean"], **F32)


@golden
def test_every_intermediate_of_inference(golden_dir: Path, name: str) -> None:
    case = Case(golden_dir, name, torch.float32)
    seen: dict[str, Tensor] = {}

    def record(key: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda module, given, out: seen.__setitem__(key, out))

    translator = case.model.translator
    record("z_x", case.model.encoders)
    record("conv1_out", translator.conv1)
    record("z_y_pred", translator)
    for i, layer in enumerate(translator.layers):
        for key, path in {
            "attn_out": "attn_1",
            "norm1_out": "norm_1",
            "block_attn_out": "block.attn",
            "block_mlp_out": "block.mlp",
            "block_out": "block",
            "out": "",
        }.items():
            record(f"layer{i}.{key}", layer.get_submodule(path))
    with torch.no_grad():
        case.model(case.x)
    expected = {key.removeprefix("trace."): value for key, value in case.tensors.items() if key.startswith("trace.")}
    assert set(seen) == set(expected) and len(expected) == 15
    for key, value in expected.items():
        torch.testing.assert_close(seen[key].reshape(value.shape), value, **F32, msg=key)


@golden
def test_three_steps_in_the_official_order(golden_dir: Path, name: str, dtype: torch.dtype) -> None:
    case = Case(golden_dir, name, dtype, official_grad=True)
    case.model.train()
    steps = case.numbers["train_f64" if case.prefix else "train_f32"]
    norms = case.numbers["grad_norm_f64" if case.prefix else "grad_norm_f32"]
    predictions: list[Tensor] = []
    case.recipe.decoders.register_forward_hook(lambda module, given, out: predictions.append(out))
    optimiser = case.recipe.optimiser(case.model)
    for step, expected in enumerate(steps):
        loss, logs = case.recipe.loss(case.model, case.batch, torch.Generator())
        case.check_losses(logs, loss, expected)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            torch.testing.assert_close(predictions[0], case.tensors[f"{case.prefix}train.pre_y"], **case.tolerance)
            check_momentum(case)
            check_gradients(case, f"{case.prefix}train.grad.", norms)
        optimiser.step()
        case.recipe.after_step(case.model, step)
        if step == 0:
            check_after_one_update(case)
    if case.prefix:
        check_sums(case, case.numbers["param_abs_sum_after_3_steps_f64"])


def check_momentum(case: Case) -> None:
    """The copies after the first forward pass: averaged parameters, and BatchNorm buffers that the translator's copy gathered itself."""
    state = case.official()
    expected = {key.removeprefix("train.ema1."): value for key, value in case.tensors.items() if key.startswith("train.ema1.")}
    assert expected
    for key, value in expected.items():
        torch.testing.assert_close(state[key].to(value.dtype), value, rtol=3e-5, atol=3e-6, msg=key)
    if case.numbers.get("enc_dec_k_equals_q_after_forward"):
        assert all(torch.equal(state[key], state[key.replace("_k_", "_q_")]) for key in state if key.startswith(("enc_k_", "dec_k_")))


def check_gradients(case: Case, prefix: str, norms: dict[str, float]) -> None:
    """Against each tensor's largest value: float32 on disk; gradients that are zero but for rounding have an absolute bound."""
    f64 = case.dtype == torch.float64
    gradients = case.gradients()
    for key, value in case.tensors.items():
        if key.startswith(prefix):
            scale = float(value.abs().max())
            bound = (2e-7 if f64 else 3e-4) * scale + (1e-12 if f64 else 1e-6)
            assert float((gradients[key.removeprefix(prefix)] - value).abs().max()) <= bound, key
    parameters = {key for key in gradients if "running" not in key and "num_batches" not in key}
    assert set(norms) | set(case.numbers["no_grad_params"]) == parameters
    for key, norm in norms.items():
        np.testing.assert_allclose(gradients[key].norm().item(), norm, rtol=1e-9 if f64 else 3e-4, atol=1e-12 if f64 else 1e-6, err_msg=key)
    unused = [gradients[key].abs().max().item() for key in case.numbers["no_grad_params"]]
    assert unused and max(unused) == 0


def check_after_one_update(case: Case) -> None:
    state = case.official()
    for kind in ("adam1", "buf1"):
        expected = {key.removeprefix(f"train.{kind}."): value for key, value in case.tensors.items() if key.startswith(f"train.{kind}.")}
        assert expected
        for key, value in expected.items():
            if "k_Conv.1.bias" in key:  # its gradient is rounding alone, which Adam turns into a step of either sign
                torch.testing.assert_close(state[key].to(value.dtype), value, rtol=0, atol=2.1e-3, msg=key)
            else:
                torch.testing.assert_close(state[key].to(value.dtype), value, **F32, msg=key)


def check_sums(case: Case, expected: dict[str, float]) -> None:
    found = dict.fromkeys(expected, 0.0)
    for key, value in case.official().items():
        if value.is_floating_point():
            found[key.split(".")[0]] += value.abs().sum().item()
    assert found == pytest.approx(expected, rel=1e-6)


@golden
def test_gradients_in_the_clean_order(golden_dir: Path, name: str) -> None:
    case = Case(golden_dir, name)
    case.model.train()
    before = [parameter.clone() for parameter in case.recipe.translator.parameters()]
    loss, _ = case.recipe.loss(case.model, case.batch, torch.Generator())
    loss.backward()
    check_gradients(case, "f64clean.train.grad.", case.numbers["grad_norm_f64_clean"])
    assert all(torch.equal(a, b) for a, b in zip(before, case.recipe.translator.parameters(), strict=True))
    case.recipe.after_step(case.model, 0)
    check_momentum(case)


@golden
def test_forward_in_evaluation_mode(golden_dir: Path, name: str) -> None:
    case = Case(golden_dir, name, torch.float32)
    predictions: list[Tensor] = []
    case.recipe.decoders.register_forward_hook(lambda module, given, out: predictions.append(out))
    with torch.no_grad():
        loss, logs = case.recipe.loss(case.model.eval(), case.batch, torch.Generator())
    case.check_losses(logs, loss, case.numbers["evalfwd"])
    torch.testing.assert_close(predictions[0], case.tensors["evalfwd.pre_y"], **F32)
    state, checked = case.official(), 0
    for key, value in case.tensors.items():
        if key.startswith("evalfwd.buf."):
            torch.testing.assert_close(state[key.removeprefix("evalfwd.buf.")], value, **F32, msg=key)
            checked += 1
    assert checked == 8


@golden
def test_given_drop_paths(golden_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(golden_dir, name, official_grad=True)
    expected = case.numbers["drop_f64"]
    case.drop(expected["drop_prob"])
    masks = iter(case.tensors["drop.masks"].double())
    monkeypatch.setattr(DropPath, "draw", lambda self, x: next(masks).view(-1, 1, 1, 1))
    loss, logs = case.recipe.loss(case.model.train(), case.batch, torch.Generator())
    case.check_losses(logs, loss, expected)
    assert next(masks, None) is None
    loss.backward()
    gradients = case.gradients()
    for key, norm in case.numbers["drop_grad_norm_f64"].items():
        np.testing.assert_allclose(gradients[key].norm().item(), norm, rtol=1e-9, atol=1e-12, err_msg=key)


@golden
def test_seeded_drop_paths(golden_dir: Path, name: str) -> None:
    case = Case(golden_dir, name, torch.float32)
    expected = case.numbers["seeded_drop_f32"]
    case.drop(expected["drop_prob"])
    generator = torch.Generator().manual_seed(expected["torch_manual_seed_just_before_forward"])
    loss, logs = case.recipe.loss(case.model.train(), case.batch, generator)
    case.check_losses(logs, loss, expected, rtol=1e-5)


@golden
def test_metrics_of_the_authors(golden_dir: Path, name: str) -> None:
    case = Case(golden_dir, name, torch.float32)
    mean, std = case.tensors["metric.mean"], case.tensors["metric.std"]
    with torch.no_grad():
        error = (case.model(case.x) * std + mean) - (case.y * std + mean)  # [B, T, C, H, W]
    mse, mae = error.square().mean((0, 1, 3, 4)), error.abs().mean((0, 1, 3, 4))
    expected = case.numbers["metric_per_channel"]
    np.testing.assert_allclose(mse, expected["MSE"]["spatial_norm"], rtol=3e-4)
    np.testing.assert_allclose(mae, expected["MAE"]["spatial_norm"], rtol=3e-4)
    np.testing.assert_allclose(mse.sqrt(), expected["RMSE"]["spatial_norm"], rtol=3e-4)


@golden
def test_cka_between_encoders(golden_dir: Path, name: str) -> None:
    """Linear CKA, ||Xc' Yc||^2 / (||Xc' Xc|| ||Yc' Yc||), of the convolutions' outputs, rows = frames."""
    case = Case(golden_dir, name, torch.float32)
    features: list[list[Tensor]] = []
    for encoder in case.model.encoders:
        mine: list[Tensor] = []
        features.append(mine)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda module, given, out, mine=mine: mine.append(out.flatten(1).double()))
    with torch.no_grad():
        case.model.encoders(case.tensors["cka.x"].unsqueeze(1))
    for layer, expected in enumerate(case.tensors["cka.encoder"]):
        grams = [f[layer] - f[layer].mean(0) for f in features]
        grams = [x @ x.T for x in grams]
        found = torch.stack([torch.stack([(a * b).sum() / (a.norm() * b.norm()) for b in grams]) for a in grams])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@golden
def test_round_trip_keeps_every_tensor(golden_dir: Path, name: str, tmp_path: Path) -> None:
    case = Case(golden_dir, name, torch.float32)
    state = case.official()
    assert sorted(state) == sorted(case.state)
    assert all(torch.equal(value, case.state[key]) for key, value in state.items())
    for suffix in (".ckpt", ".pth", ".safetensors"):
        path = tmp_path / f"best{suffix}"
        save_official(case.model, case.recipe, path)
        again = load_official("met2net", path, config=None if suffix == ".ckpt" else {"in_shape": case.config["in_shape"]})
        assert isinstance(again, Met2Net) and not again.training
        recipe = TwoStage(again)
        load_momentum(recipe, path)
        assert all(torch.equal(value, state[key]) for key, value in save_official(again, recipe).items())


def small(groups: list[int] | None = None, channels: int = 2, **options: Any) -> Met2Net:
    names = tuple(f"channel_{i}" for i in range(channels))
    model = create_model("met2net", "tiny", channels=names, groups=groups, **options)
    assert isinstance(model, Met2Net)
    return model


def lightning(model: Met2Net, **settings: Any) -> dict[str, Any]:
    """A checkpoint in Lightning's layout, with numpy arrays among the settings."""
    spec = model.spec
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict((f"model.{key}", value) for key, value in save_official(model).items()),
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "in_shape": [spec.history, len(spec.channels), *spec.grid.shape],
            "hid_S": model.config["hid_S"],
            "momentum_ema": 0.9,
            "data_name": ["t2m", "r"],
            "dataname": "weather_mv_5_625",
            "test_mean": np.array([280.0, 60.0], dtype=np.float32).reshape(1, 2, 1, 1),
            "test_std": np.array([20.0, 10.0], dtype=np.float32).reshape(1, 2, 1, 1),
            "lr": np.float64(1e-3),
            **settings,
        },
    }


def test_lightning_checkpoint_with_numpy_settings(tmp_path: Path) -> None:
    model = small().eval()
    torch.save(lightning(model), tmp_path / "best.ckpt")
    loaded = load_official("met2net", tmp_path / "best.ckpt")
    assert loaded.spec.channels == ("2m_temperature", "relative_humidity_1000")
    assert loaded.spec.grid.shape == model.spec.grid.shape and loaded.spec.step == 3600
    x = torch.randn(1, 2, 2, 16, 32)
    assert torch.equal(loaded(x), model(x))
    assert loaded.normaliser is not None
    physical = loaded.normaliser.denormalise(torch.ones(2, 1, 1), loaded.spec.channels)
    assert physical.flatten().tolist() == [300.0, 70.0]


def test_files_of_numpy_1_are_read_too(tmp_path: Path) -> None:
    model = small()
    torch.save(lightning(model), tmp_path / "new.ckpt")
    with zipfile.ZipFile(tmp_path / "new.ckpt") as old, zipfile.ZipFile(tmp_path / "old.ckpt", "w") as renamed:
        for entry in old.namelist():
            content = old.read(entry)
            renamed.writestr(entry, content.replace(b"numpy._core.", b"numpy.core.") if entry.endswith("data.pkl") else content)
    assert b"numpy.core.multiarray" in (tmp_path / "old.ckpt").read_bytes()
    assert load_official("met2net", tmp_path / "old.ckpt").spec.channels[0] == "2m_temperature"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**lightning(small()), "callbacks": Malicious()}, "bad.ckpt")
    with pytest.raises(WxlabError, match=r"bad\.ckpt was not read: it holds .*only tensors, numbers and text"):
        load_official("met2net", "bad.ckpt")
    Path("bare.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(WxlabError, match=r"bare\.pth"):
        load_official("met2net", "bare.pth")
    assert not Path("harmed").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".safetensors"])
def test_broken_files_are_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(WxlabError, match=r"broken.* cannot be read as a checkpoint"):
        load_official("met2net", path)


def edited(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    merged = {**state, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def test_all_wrong_keys_are_named_at_once() -> None:
    state = save_official(small())
    wrong = torch.zeros(1, 9, 1, 1)
    changes: dict[str, Any] = {"hid_q.conv1.bias": None, "dec_q_list.1.readout.weight": wrong, "hid_q.new": wrong}
    with pytest.raises(WxlabError) as caught:
        load_official("met2net", edited(state, **changes), config={"in_shape": [2, 2, 16, 32]})
    misshapen = "dec_q_list.1.readout.weight has shape [1, 9, 1, 1] and should have [1, 4, 1, 1]"
    for words in ("missing hid_q.conv1.bias", "unexpected hid_q.new", misshapen):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"give config=\{'in_shape': \[T, C, H, W\]\}"),
        ({"in_shape": [2, 2, 16]}, r"must be four numbers"),
        ({"in_shape": [3, 2, 16, 32]}, r"T=3 \(the weights say 2\)"),
        ({"in_shape": [2, 2, 16, 32], "hid_S": 8, "N_T": 9}, r"hid_S=8 \(the weights say 4\), N_T=9 \(the weights say 2\)"),
        ({"in_shape": [2, 2, 15, 32]}, r"15 rows, and this model needs a multiple of 2"),
        ({"in_shape": [2, 2, 16, 32], "test_mean": [1.0], "test_std": [1.0]}, r"1 means"),
    ],
)
def test_settings_that_do_not_fit(config: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        load_official("met2net", save_official(small()), config=config)


def test_momentum_copies_are_all_there_or_not_at_all() -> None:
    state, config = save_official(small()), {"in_shape": [2, 2, 16, 32]}
    online = {key: value for key, value in state.items() if "_q" in key.split(".")[0]}
    assert load_official("met2net", online, config=config).spec.history == 2
    with pytest.raises(WxlabError, match=r"missing hid_k\.conv2\.bias"):
        load_official("met2net", edited(state, **{"hid_k.conv2.bias": None}), config=config)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds no weights"),
        ({"state_dict": {"a": 1}}, "holds no weights"),
        ({"a.b": torch.zeros(1)}, "these are not Met2Net weights"),
        ({"enc_q_list.0.enc.0.conv.conv.weight": torch.zeros(4, 1, 3, 3)}, "lack hid_q.conv1.weight"),
    ],
)
def test_other_models_weights_are_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        load_official("met2net", state, config={"in_shape": [2, 1, 16, 32]})


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(WxlabError, match="there is no checkpoint file"):
        load_official("met2net", tmp_path / "nothing.ckpt")
    with pytest.raises(WxlabError, match="kind of checkpoint file"):
        save_official(small(), None, tmp_path / "weights.h5")


@pytest.mark.parametrize(
    ("groups", "options", "first"),
    [([2, 1, 1, 1], {}, "enc_u10_q.enc.0."), (None, {"N_S": 4, "block": "gsta"}, "enc_q_list.0.enc.0."), ([3, 2], {}, "enc_q_list.0.")],
)
def test_sizes_follow_from_shapes(groups: list[int] | None, options: dict[str, Any], first: str) -> None:
    model = small(groups, 5, **options).eval()
    state = save_official(model)
    assert next(iter(state)).startswith(first)
    loaded = load_official("met2net", state, config={"in_shape": [2, 5, 16, 32]})
    assert {**loaded.config, "drop_path": 0.1} == {**model.config, "drop_path": 0.1}
    x = torch.randn(1, 2, 5, 16, 32)
    assert torch.equal(loaded(x), model(x))


def test_official_names_count_and_mean_what_they_say() -> None:
    model = small([2, 1, 1, 1], 5)
    state = save_official(model)
    assert len(state) == 2 * (4 * (4 * 2 + 4 * 2 + 2) + 4 + 46 * 2)
    assert torch.equal(state["enc_v10_q.enc.0.conv.conv.weight"], model.encoders[1].enc[0].conv.conv.weight)
    assert torch.equal(state["hid_k.layers.1.ff.ff1.mlp.fc2.bias"], model.translator.layers[1].block.mlp.fc2.bias)


def test_grid_of_the_named_data(tmp_path: Path) -> None:
    model = small()
    save_file(save_official(model), tmp_path / "weights.safetensors")
    pixels = load_official("met2net", tmp_path / "weights.safetensors", config={"in_shape": [2, 2, 16, 16], "dataname": "mv_mmnist"})
    assert pixels.spec.grid.kind == "xy"
    asia = load_official("met2net", tmp_path / "weights.safetensors", config={"in_shape": [2, 2, 128, 128], "dataname": "era5wind"})
    assert asia.spec.grid.y[0] == 12.25 and asia.spec.grid.x[-1] == 141.75
    given = load_official("met2net", tmp_path / "weights.safetensors", config={"grid": model.spec.grid})
    assert given.spec.grid == model.spec.grid
