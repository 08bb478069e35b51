"""Attention capture: Met2Net's maps against reference numbers, and the protocol on networks of other shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from wxlab.attention import average, capture
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models import create_model, load_official
from wxlab.models.base import Batch, Coordinates, Model, Spec
from wxlab.nn.attention_tap import AttentionTap
from wxlab.plots import plot_attention


def windows(model: Model, batch: int = 3) -> Batch:
    spec = model.spec
    history = torch.randn(batch, spec.history, len(spec.channels), *spec.grid.shape, generator=torch.Generator().manual_seed(0))
    time = torch.arange(spec.history + spec.horizon) * spec.step + torch.arange(batch)[:, None] * 86400
    return Batch(history, None, time)


class Mixed(Model):
    """Windowed attention called twice, and one map over levels: what other models may bring."""

    def __init__(self, taps: bool = True) -> None:
        spec = Spec(channels=("a", "b"), grid=Grid.regular(4, 8), history=1, horizon=1, step=3600)
        super().__init__(spec)
        self.windowed = AttentionTap(("window", "head", "query", "key"), kind="local")
        self.coarse = AttentionTap(("window", "head", "query", "key"), kind="local")
        self.levels = AttentionTap(("query", "level"), kind="vertical")
        self.dropout = nn.Dropout(0.5)
        self.taps = taps

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        return {"level": (("level",), ["500", "850"])} if kind == "vertical" else {}

    def predict(self, batch: Batch, members: int = 1, generator: object = None) -> Tensor:
        if self.taps:
            n = len(batch)
            for _ in range(2):
                self.windowed(torch.full((n, 4, 2, 5, 5), 0.2))
            self.coarse(torch.full((n, 2, 2, 3, 3), 1 / 3))
            self.levels(self.dropout(torch.tensor([[0.25, 0.75], [1.0, 0.0]])).expand(n, 2, 2))
        return self.repeat_members(batch.history, members)


def test_met2net_maps_are_labelled_and_rows_sum_to_one() -> None:
    model = create_model("met2net").train()
    maps = capture(model, windows(model))
    assert maps.attention.dims == ("layer", "sample", "head", "target", "source")
    assert maps.attention.shape == (2, 3, 8, 3, 3)
    assert maps.target.values.tolist() == maps.source.values.tolist() == list(model.spec.channels)
    np.testing.assert_allclose(maps.attention.sum("source"), 1, rtol=1e-5)
    assert float(maps.attention.std()) > 0
    assert maps.attrs["model"] == "met2net" and len(set(maps.module.values.tolist())) == 2
    np.testing.assert_array_equal(maps.time, windows(model).time[:, 1].numpy().astype("datetime64[s]"))
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_capture_leaves_the_prediction_as_it_was() -> None:
    model = create_model("met2net").eval()
    batch = windows(model)
    with torch.no_grad():
        before = model.predict(batch)
    first, second = capture(model, batch), capture(model, batch)
    assert first.identical(second)
    with torch.no_grad():
        assert torch.equal(model.predict(batch), before)


def test_groups_are_named_by_their_channels() -> None:
    model = create_model("met2net", groups=[2, 1])
    names = capture(model, windows(model)).target.values.tolist()
    assert names == ["10m_u_component_of_wind+10m_v_component_of_wind", "2m_temperature"]


def test_averages_are_the_means_and_keep_rows() -> None:
    model = create_model("ladder_attention")
    maps = capture(model, windows(model))
    one = average(maps, ("layer", "sample", "head"))
    np.testing.assert_allclose(one.attention, maps.attention.values.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(one.attention.sum("source"), 1, rtol=1e-5)
    assert average(maps, "head").attention.dims == ("layer", "sample", "target", "source")
    with pytest.raises(WxlabError, match="rows sum to 1"):
        average(maps, "source")
    with pytest.raises(WxlabError, match="did you mean 'head'"):
        average(maps, "heads")


def test_other_axes_several_kinds_and_repeated_calls() -> None:
    model = Mixed()
    maps = capture(model, windows(model))
    assert set(maps.data_vars) == {"local", "local_2", "vertical"}
    assert dict(zip(maps.local.dims, maps.local.shape, strict=True)) == {
        "layer_local": 2,
        "sample": 3,
        "window_local": 4,
        "head": 2,
        "query_local": 5,
        "key_local": 5,
    }
    assert maps.call_local.values.tolist() == [0, 1] and maps.module_local.values.tolist() == ["windowed"] * 2
    assert maps.module_local_2.values.tolist() == ["coarse"]
    assert maps.level.values.tolist() == ["500", "850"]
    # dropout is off, so rows sum to 1 although the model was in training mode
    np.testing.assert_allclose(maps.vertical.sum("level"), 1)
    np.testing.assert_allclose(maps.local.sum("key_local"), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["persistence", "tau", "convlstm"])
def test_a_model_without_attention_says_so(name: str) -> None:
    model = create_model(name)
    with pytest.raises(WxlabError, match=f"{name} has no attention to capture; choose a model with attention"):
        capture(model, windows(model))


def test_attention_that_is_not_used_says_so() -> None:
    model = Mixed(taps=False)
    with pytest.raises(WxlabError, match="without passing through its attention"):
        capture(model, windows(model))


def test_after_a_failure_no_hook_is_left_and_training_goes_on() -> None:
    model = create_model("met2net").train()
    batch = windows(model)
    taps = [module for module in model.modules() if isinstance(module, AttentionTap)]
    broken = model.decoders.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="broken"):
        capture(model, batch, heads=[1])
    broken.remove()
    with pytest.raises(WxlabError, match="head 8 was asked for, and attention attention has the heads 0 to 7"):
        capture(model, batch, heads=[0, 8])
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules()) and all(tap.heads is None for tap in taps)
    assert capture(model, batch).sizes["head"] == 8 and capture(model, batch, heads=np.arange(3)).sizes["head"] == 3


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"layers": "translator.layers.7"},
        r"unknown layer pattern 'translator.layers.7' of met2net; did you mean 'translator.layers.1.attn_1'\? "
        r"\(kinds: attention; modules: translator.layers.0.attn_1, translator.layers.1.attn_1\)",
    ),
    ({"layers": ["attention", "selection*"]}, "unknown layer pattern 'selection"),
    ({"layers": []}, r"layers=\[\] must be names or patterns"),
    ({"layers": [3]}, r"layers=\[3\] must be names or patterns"),
    ({"heads": True}, "heads=True must be numbers of heads"),
    ({"heads": 1.5}, "heads=1.5 must be numbers of heads"),
    ({"heads": -1}, "heads=-1 must be numbers of heads, from 0 on"),
    ({"heads": []}, r"heads=\[\] must be numbers of heads"),
    ({"heads": ["first"]}, "must be numbers of heads"),
    ({"dtype": "float8"}, r"unknown dtype 'float8'; did you mean .* \(allowed: float16, float32, float64\)"),
]


@pytest.mark.parametrize(("choice", "message"), FAULTS, ids=str)
def test_what_does_not_exist_is_said(choice: dict[str, Any], message: str) -> None:
    model = create_model("met2net")
    with pytest.raises(WxlabError, match=message) as caught:
        capture(model, windows(model), **choice)
    assert "\n" not in str(caught.value)


def test_batches_without_numbers_are_refused() -> None:
    model = create_model("met2net")
    batch = windows(model)
    batch.history[1, 0, 0, 2, 3] = float("nan")
    with pytest.raises(WxlabError, match=r"the batch holds missing values \(NaN\); give normalised windows"):
        capture(model, batch)
    with pytest.raises(WxlabError, match="the batch is empty; give normalised windows"):
        capture(model, windows(model, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("heads", [None, (1, 3)])
def test_shown_weights_are_those_of_the_fused_kernel(dtype: torch.dtype, heads: tuple[int, ...] | None) -> None:
    q, k, v = (torch.randn(6, count, length, 8, dtype=dtype) for count, length in ((4, 5), (2, 7), (2, 7)))  # two query heads for each key
    tap = AttentionTap(("window", "head", "query", "key"))
    seen: list[tuple[Tensor, dict[str, Any]]] = []
    tap.show(q, k, (2, 3))  # no one reads: nothing is formed
    tap.register_forward_hook(lambda module, given, named, out: seen.append((out, named)), with_kwargs=True)
    tap.heads = heads
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        tap.show(q.requires_grad_(), k, (2, 3))
    ((weights, named),) = seen
    chosen = list(range(4) if heads is None else heads)
    assert named["heads"] == heads and weights.shape == (2, 3, len(chosen), 5, 7) and not weights.requires_grad
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[:, chosen]
    found = weights.flatten(0, 1) @ v.repeat_interleave(2, 1)[:, chosen].to(weights.dtype)
    torch.testing.assert_close(found, out.to(weights.dtype), rtol=1e-5, atol=2e-2 if dtype == torch.bfloat16 else 1e-6)


def test_choices_are_neither_averaged_nor_drawn() -> None:
    model = create_model("mosaic")
    maps = capture(model, windows(model), layers="chosen_nside4")
    assert set(average(maps, ())) == set()
    with pytest.raises(WxlabError, match="'chosen_nside4' holds choices, positions along key_block, not weights; draw another kind"):
        plot_attention(maps)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["case_a", "case_c"])
def test_maps_equal_the_authors(golden_dir: Path, case: str) -> None:
    tensors = load_file(golden_dir / "met2net" / f"{case}.safetensors")
    config = json.loads((golden_dir / "met2net" / f"{case}.json").read_text())["config"]
    weights = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    model = load_official("met2net", weights, config=config).double()
    batch = Batch(tensors["in.x"], None, torch.zeros(2, 8, dtype=torch.int64))
    maps = capture(model, batch).attention
    for layer in range(maps.sizes["layer"]):
        np.testing.assert_allclose(maps[layer], tensors[f"f64.attn.layer{layer}"], rtol=1e-9)
    single = average(capture(model.float(), batch), ("sample", "head"))["attention"]
    np.testing.assert_allclose(single, tensors["attn.mean"], atol=1e-5)
