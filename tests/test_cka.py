"""Centred kernel alignment: closed forms, batches against everything at once, intervals, and Met2Net's reference numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wxlab import cka, representations
from wxlab.errors import WxlabError
from wxlab.models import create_model, load_official
from wxlab.models.base import Batch, Model


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def rotation(width: int, seed: int) -> np.ndarray:
    return np.linalg.qr(normal(width, width, seed=seed))[0]


@pytest.mark.parametrize("debiased", [False, True])
def test_rotation_and_scale_change_nothing(debiased: bool) -> None:
    x, y = normal(40, 6), normal(40, 9, seed=1) + 0.5 * normal(40, 9, seed=2)
    assert cka.linear(x, 3.7 * x @ rotation(6, 3) + 11, debiased=debiased) == pytest.approx(1, abs=1e-12)
    assert cka.rbf(x, 3.7 * x @ rotation(6, 3) + 11, debiased=debiased) == pytest.approx(1, abs=1e-12)
    same = cka.linear(0.1 * x @ rotation(6, 4), y @ rotation(9, 5), debiased=debiased)
    assert same == pytest.approx(cka.linear(x, y, debiased=debiased), abs=1e-12)
    assert cka.linear(x, x * np.array([100, 1, 1, 1, 1, 1]), debiased=debiased) < 0.8  # no common scale


def test_linear_equals_its_feature_form() -> None:
    """‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features (Kornblith et al. 2019, equation 3)."""
    x, y = normal(30, 5), normal(30, 7, seed=1)
    y[:, :5] += x
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert cka.linear(x, y) == pytest.approx(expected, rel=1e-12)


def test_debiased_equals_song_s_estimator() -> None:
    """(tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) 1ᵀK̃L̃1) / (n(n−3)), K̃ with zero diagonal: by hand."""

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        n = len(k)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        both = k @ l
        value = np.trace(both) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * both.sum() / (n - 2)
        return float(value / (n * (n - 3)))

    x, y = normal(12, 3), normal(12, 4, seed=1)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert cka.linear(x, y, debiased=True) == pytest.approx(hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)), rel=1e-10)


def test_rbf_by_hand() -> None:
    x = np.array([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    gram = np.exp(-(np.array([[0, 1, 9], [1, 0, 4], [9, 4, 0]]) / (2 * 4.0)))
    np.testing.assert_allclose(cka.gaussian(x @ x.T), gram, rtol=1e-12)
    np.testing.assert_allclose(cka.gaussian(x @ x.T, 0.5), gram**4, rtol=1e-12)


def test_independent_representations() -> None:
    """Few rows of many features: the paper's estimator sees likeness where there is none, the other sees none."""
    pairs = [(normal(40, 400, seed=2 * n), normal(40, 400, seed=2 * n + 1)) for n in range(30)]
    assert min(cka.linear(x, y) for x, y in pairs) > 0.8
    values = np.array([cka.linear(x, y, debiased=True) for x, y in pairs])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    hits = 0
    for x, y in pairs[:20]:
        found = cka.between({"x": represent(x)}, {"y": represent(y)}, debiased=True, interval=0.95)
        hits += found.low.item() <= 0 <= found.high.item()
    assert hits >= 16


def represent(values: np.ndarray) -> cka.Representation:
    gram = cka.Gram()
    gram.update(values.astype(np.float32))
    return cka.Representation(gram.matrix, np.arange(len(values)))


def test_interval_has_the_width_of_repeated_experiments() -> None:
    """Half-samples spread as new samples would."""

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        x = normal(80, 4, seed=seed)
        return x, x + 1.5 * normal(80, 4, seed=1000 + seed)

    repeated = np.array([cka.linear(*draw(seed), debiased=True) for seed in range(200)])
    found = [cka.between(*({"z": represent(each)} for each in draw(seed)), debiased=True, interval=0.9) for seed in range(12)]
    widths = np.array([(each.high - each.low).item() for each in found])
    assert np.median(widths) == pytest.approx(np.ptp(np.quantile(repeated, [0.05, 0.95])), rel=0.3)
    assert sum(each.low.item() <= repeated.mean() <= each.high.item() for each in found) >= 9
    alike = [x := normal(40, 4), x + 0.05 * normal(40, 4, seed=1)]
    near = cka.between(*({"z": represent(each)} for each in alike), interval=0.99)
    assert near.cka.item() < near.high.item() <= 1  # no CKA is larger


def test_batches_give_what_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representations, "CHUNK", 8 * 50 * 3)  # three rows at once
    x = normal(23, 50).astype(np.float32)
    whole, parts = cka.Gram(), cka.Gram()
    whole.update(x)
    for first, last in ((0, 5), (5, 6), (6, 19), (19, 23)):
        parts.update(torch.from_numpy(x[first:last]))
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-12)
    np.testing.assert_allclose(whole.matrix, x.astype(np.float64) @ x.T.astype(np.float64), rtol=1e-12)
    with pytest.raises(WxlabError, match="49 features and those before had 50"):
        parts.update(x[:, :49])


def windows(model: Model, batch: int, seed: int = 0) -> Batch:
    spec, generator = model.spec, torch.Generator().manual_seed(seed)
    history = torch.randn(batch, spec.history, len(spec.channels), *spec.grid.shape, generator=generator)
    return Batch(history, None, torch.arange(spec.history + spec.horizon) * spec.step + torch.arange(batch)[:, None] * 86400)


def test_layers_of_a_model() -> None:
    model = create_model("met2net").train()
    batches = [windows(model, 5), windows(model, 4, 1)]
    joined = Batch(torch.cat([b.history for b in batches]), None, torch.cat([b.time for b in batches]))
    found = cka.compare(model, model, batches, layers=["encoders.*.enc.*", "translator.layers.?"])
    whole = cka.compare(model, model, [joined], layers=["encoders.*.enc.*", "translator.layers.?"])
    assert found.cka.dims == ("layer_a", "layer_b") and found.sizes["layer_a"] > 3
    np.testing.assert_allclose(found.cka, whole.cka, atol=1e-6)
    np.testing.assert_allclose(np.diag(found.cka), 1, atol=1e-12)
    np.testing.assert_allclose(found.cka, found.cka.T, atol=1e-12)
    assert float(found.cka.min()) < 0.999 and all(not module._forward_hooks for module in model.modules()) and model.training


def test_two_models_and_intervals() -> None:
    one, other = (create_model("met2net") for _ in range(2))
    found = cka.compare(one, other, [windows(one, 12)], layers="translator.layers.?", rows="sample", interval=0.9, debiased=True)
    assert bool((found.low <= found.cka).all() and (found.cka <= found.high).all()) and bool((found.high > found.low).all())
    with pytest.raises(WxlabError, match="halves of 3 samples"):
        cka.compare(one, other, [windows(one, 3)], layers="translator.layers.?", interval=0.9)


def test_variables_of_a_model() -> None:
    model = create_model("met2net")
    found = cka.variables(model, [windows(model, 3)], ["encoders.{}.enc.*", "translator.layers.*.block"])
    assert found.cka.dims == ("layer", "variable_a", "variable_b")
    assert found.variable_a.values.tolist() == list(model.spec.channels)
    np.testing.assert_allclose(found.cka, found.cka.transpose("layer", "variable_b", "variable_a").values, atol=1e-12)
    assert any("{}" in str(name) for name in found.layer.values) and "translator.layers.0.block" in found.layer.values
    with pytest.raises(WxlabError, match="not one for each of the 3 variables"):
        cka.variables(model, [windows(model, 3)], "encoders.0.enc.0")


def test_a_failing_model_loses_its_hooks() -> None:
    model = create_model("met2net")
    wrong = windows(model, 2)
    wrong.history = wrong.history[:, :, :2]
    with pytest.raises(Exception):  # noqa: B017  whatever the network says
        cka.features(model, [wrong])
    assert all(not module._forward_hooks for module in model.modules())


def test_samplers_pass_a_module_many_times() -> None:
    model = create_model("stldm")
    batch = windows(model, 2)
    if model.batch_parts:
        with pytest.raises(WxlabError, match="with_sampling"):
            cka.features(model, [batch], "*")
        model = model.with_sampling(guidance=0.0)  # type: ignore[operator]
    batch.history = batch.history.sigmoid()
    name = next(name for name, module in model.named_modules() if "time_mlp" in name or "mid" in name)
    first, later = (cka.features(model, [batch], name, call=call)[name].gram for call in (0, 2))
    assert not np.allclose(first, later)
    with pytest.raises(WxlabError, match=r"passed 100001 times"):
        cka.features(model, [batch], name, call=100000)


# outputs that are as long, or the same, whatever the samples are: tables of places, of variables' groups, of the noise level
TABLES = {
    "met2net": "",
    "stldm": "denoiser.time.1",
    "ladcast": "network.embed.noise.linear_1",
    "mosaic": "downsample_layers.0.proj_pos",
    "vamoe": "posembedder.mlp.0",
}


@pytest.mark.parametrize("name", TABLES)
def test_all_layers_of_every_model_have_rows_that_are_samples(name: str) -> None:
    """Batches of 4 and 1 as those of 5, also where a table happens to be as long as a batch, or twice as long."""
    model = create_model(name)
    model = model.with_sampling(guidance=0.0) if model.batch_parts else model  # type: ignore[operator]
    whole = windows(model, 5)
    whole.history = whole.history.sigmoid()
    parts = [Batch(whole.history[part], None, whole.time[part]) for part in (slice(0, 4), slice(4, 5))]
    found, other = cka.features(model, parts), cka.features(model, [whole])
    assert list(found) == list(other) and len(found) > 20 and TABLES[name] not in found
    for layer, each in found.items():
        assert each.sample.tolist() == list(range(5)), layer
        np.testing.assert_allclose(each.gram, other[layer].gram, atol=2e-3 * np.abs(each.gram).max(), err_msg=layer)
    table = cka.between(found, found)["cka"]
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-9)
    rows = {"stldm": 4, "mosaic": 48, "vamoe": 3}.get(name)
    if rows is not None:
        with pytest.raises(WxlabError, match=f"the module {TABLES[name]} makes {rows} rows, which are not those of samples; leave it out"):
            cka.features(model, parts[1:], TABLES[name])


@pytest.mark.parametrize("debiased", [False, True])
def test_rounding_is_no_variance(debiased: bool) -> None:
    """Rows that are all the same have products that differ in their last bits."""
    y = normal(12, 7)
    for value in (0.1, 1 / 3, 1e3 * np.pi):
        with pytest.raises(WxlabError, match=r"a representation (is the same for all|has no variance between) rows"):
            cka.linear(np.full((12, 50), value), y, debiased=debiased)
        with pytest.raises(WxlabError, match="half of the rows or more"):
            cka.rbf(np.full((12, 50), value), y, debiased=debiased)
        assert cka.linear(10 * value + y, y, debiased=debiased) == pytest.approx(1, abs=1e-6)
    with pytest.raises(WxlabError, match=r"the representation by dead (is the same for all|has no variance between) rows"):
        cka.between({"dead": represent(np.full((12, 5), 0.1))}, {"y": represent(y)}, debiased=debiased)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, b: cka.features(m, [b], "translator.layer.*"),
            "unknown layer pattern .* did you mean 'translator.layers.1'\\? .*outer ones are: encoders, encoders.0",
        ),
        (lambda m, b: cka.features(m, [], "*"), "no batch was given"),
        (lambda m, b: cka.features(m, [b], []), r"layers=\[\] must be names or patterns of modules"),
        (lambda m, b: cka.variables(m, [b], [3]), r"layers=\[3\] must be names or patterns of modules"),
        (lambda m, b: cka.compare(m, m, [b], layers=None), "layers=None must be names or patterns"),
        (lambda m, b: cka.variables(create_model("ladder_joint"), [b], "encoders.*"), "ladder_joint mixes its variables from the start"),
        (lambda m, b: cka.features(m, [b], "translator.layers.0", rows="frames"), "unknown rows 'frames'; did you mean 'frame'"),
        (lambda m, b: cka.compare(m, m, [b], kernel="poly", layers="translator.layers.0"), "unknown kernel 'poly'"),
        (
            lambda m, b: cka.compare(m, m, [b], layers=["encoders.0.enc.0", "translator.layers.0"], rows="frame"),
            "different numbers of rows",
        ),
        (lambda m, b: cka.linear(normal(5, 2), normal(6, 2)), "5 and 6 rows"),
        (lambda m, b: cka.linear(normal(3, 2), normal(3, 2), debiased=True), "at least 4"),
        (lambda m, b: cka.linear(np.full((5, 2), np.nan), normal(5, 2)), "missing or infinite"),
        (lambda m, b: cka.linear(np.ones((5, 2)), normal(5, 2)), "the same for all rows"),
        (lambda m, b: cka.rbf(normal(5, 2), normal(5, 2), width=0), "width=0 must be a positive"),
        (lambda m, b: cka.rbf(np.ones((5, 2)), normal(5, 2)), "half of the rows or more"),
        (lambda m, b: cka.compare(m, m, [b], layers="translator.layers.0", interval=95), "interval=95"),
    ],
)
def test_mistakes_get_one_sentence(call: object, message: str) -> None:
    model = create_model("met2net")
    with pytest.raises(WxlabError, match=message):
        call(model, windows(model, 3))  # type: ignore[operator]


@pytest.mark.golden
def test_reference_numbers(golden_dir: Path) -> None:
    folder = golden_dir / "met2net"
    case = json.loads((folder / "case_a.json").read_text())
    tensors = load_file(folder / "case_a.safetensors")
    model = load_official("met2net", {k.removeprefix("sd."): v for k, v in tensors.items() if k.startswith("sd.")}, config=case["config"])
    frames = tensors["cka.x"]
    history = frames.unflatten(0, (-1, model.spec.history))
    batch = Batch(history, None, torch.zeros(len(history), model.spec.history + model.spec.horizon, dtype=torch.int64))
    found = cka.variables(model, [batch], "encoders.{}.enc.?.conv.conv")
    np.testing.assert_allclose(found.cka, tensors["cka.encoder"], atol=1e-6)
