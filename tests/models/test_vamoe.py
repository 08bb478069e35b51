"""VA-MoE's network and recipe, and the networks on its trunk: what the authors' numbers do not cover."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from standins import windows
from torch import Tensor

from wxlab import create_model
from wxlab.attention import capture
from wxlab.errors import WxlabError
from wxlab.models.base import Batch
from wxlab.models.baselines.topk_moe import Balanced, NoisyTopK, TopKMoE
from wxlab.models.vamoe import LearnedVariances, VAMoE, channel_choices, expert_strength, variable_groups
from wxlab.models.vamoe.experts import SwiGLU, VariableExperts, highest
from wxlab.models.vamoe.trunk import Attention, LearnedVariance


def make(name: str = "vamoe", **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, "tiny", **options)


def shaken(model: VAMoE, scale: float = 0.3) -> VAMoE:
    """Larger random weights, so that experts differ and count."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel()) * 3)
            elif "norm" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


# ---- sizes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset", "count"),
    [
        ("vamoe", "official", 375_675_788),
        ("vamoe", "paper", 664_741_004),
        ("vit", "paper", 311_272_588),
        ("topk_moe", "paper", 1_117_316_236),
        ("topk_moe", "paper_light", 613_753_996),
    ],
)
def test_published_sizes(name: str, preset: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name, preset)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_names_and_order_of_the_tensors_are_the_authors() -> None:
    names = list(make(depth=1).state_dict())
    assert names[:7] == [
        "pos_embed", "loss_gen.logvar", "loss_recons.logvar", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "posembedder.mlp.0.weight", "posembedder.mlp.0.bias",
    ]  # fmt: skip
    block = [name.removeprefix("blocks.0.") for name in names if name.startswith("blocks.0.")]
    assert block[:12] == [
        "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "norm2.weight",
        "norm2.bias", "moe.PosEmbedder.weight", "moe.PosEmbedder.bias", "moe.GateEmbedder.weight", "moe.GateEmbedder.bias",
    ]  # fmt: skip
    assert block[12] == "moe.experts.0.gate_proj.weight" and block[-5] == "moe.norm.bias" and names[-1] == "head.weight"


def test_first_weights() -> None:
    model = make(embed_dim=64, grid=(32, 64))
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    for linear in (model.blocks[0].attn.qkv, model.blocks[1].moe.shared_experts.up_proj, model.head, model.posembedder.mlp[2]):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert linear.bias is None or not linear.bias.any()
    bound = 1 / math.sqrt(5 * 4)  # torch's own for convolutions
    assert 0.9 * bound < model.patch_embed.proj.weight.abs().max().item() <= bound and model.patch_embed.proj.bias.any()
    assert not model.loss_gen.logvar.any() and not model.loss_recons.logvar.any()
    assert model.blocks[0].norm1.eps == model.blocks[0].moe.norm.eps == 1e-6


def test_experts_belong_to_variables_whatever_the_order_of_channels() -> None:
    channels = ("2m_temperature", "temperature_500", "geopotential_850", "mean_sea_level_pressure", "temperature_850")
    assert variable_groups(channels) == {"temperature": [1, 4], "geopotential": [2], "surface": [0, 3]}
    model = make(channels=channels)
    assert model.experts == ("temperature", "geopotential", "surface")
    assert model.index.tolist() == [[0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0]]
    assert make(channels=("geopotential_500",)).experts == ("geopotential",)
    assert make(channels=("2m_temperature", "a_5")).experts == ("surface",)


# ---- attention --------------------------------------------------------------------------------------------------------------------


def literal_attention(attention: Attention, x: Tensor) -> Tensor:
    """Of tokens [n, E], head by head."""
    width = x.shape[1] // attention.heads
    q, k, v = attention.qkv(x).split(x.shape[1], dim=1)
    out = []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        out.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(width), dim=1) @ v[:, part])
    return attention.proj(torch.cat(out, 1))


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("shape", [(8, 16), (11, 19), (3, 5), (16, 8)])
def test_windows_with_their_filling(shape: tuple[int, int], tapped: bool) -> None:
    torch.manual_seed(1)
    attention = Attention(12, 3, 8).double()
    with torch.no_grad():
        attention.qkv.bias.normal_()
    if tapped:
        attention.tap.register_forward_hook(lambda module, given, out: None)
    x = torch.randn(2, shape[0] * shape[1], 12, dtype=torch.float64)
    out = attention(x, shape).view(2, *shape, 12)
    rows, columns = -(-shape[0] // 8), -(-shape[1] // 8)
    filled = torch.zeros(2, 8 * rows, 8 * columns, 12, dtype=torch.float64)
    filled[:, : shape[0], : shape[1]] = x.view(2, *shape, 12)
    for sample in range(2):
        for i in range(rows):
            for j in range(columns):
                part = (slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8))
                expected = literal_attention(attention, filled[sample][part].reshape(64, 12)).view(8, 8, 12)
                found = out[sample][part]
                torch.testing.assert_close(found, expected[: found.shape[0], : found.shape[1]])


def test_attention_among_all_tokens() -> None:
    attention = Attention(12, 3, None).double()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    out = attention(x, (4, 5))
    for sample in range(2):
        torch.testing.assert_close(out[sample], literal_attention(attention, x[sample]))


def test_every_third_block_attends_to_all() -> None:
    model = make(depth=7)
    assert [block.attn.window for block in model.blocks] == [8, 8, None, 8, 8, None, 8]
    assert [block.attn.window for block in make(depth=4, interval=2, window=4).blocks] == [4, None, 4, None]


def test_attention_maps_can_be_read_and_change_nothing() -> None:
    model = shaken(make()).eval()
    batch = windows(model, 2)
    with torch.no_grad():
        before = model.predict(batch)
    maps = capture(model, batch)
    assert maps["local"].dims == ("layer_local", "sample", "window", "head", "query_local", "key_local")
    assert maps["local"].shape == (2, 2, 2, 4, 64, 64)
    assert maps["global"].shape == (1, 2, 4, 128, 128)
    np.testing.assert_allclose(maps["local"].sum("key_local"), 1, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(model.predict(batch), before)


# ---- experts ----------------------------------------------------------------------------------------------------------------------


def literal_experts(layer: VariableExperts, x: Tensor, emphasis: Tensor) -> Tensor:
    """Of tokens [T, E], one by one."""

    def swiglu(expert: SwiGLU, u: Tensor) -> Tensor:
        gate, up, down = expert.gate_proj.weight, expert.up_proj.weight, expert.down_proj.weight
        h = gate @ u
        return down @ (h / (1 + torch.exp(-h)) * (up @ u))

    out = []
    for token in x:
        y = swiglu(layer.shared_experts, token)
        for expert, row in zip(layer.experts, emphasis, strict=True):
            g = layer.GateEmbedder.weight @ (token * row) + layer.GateEmbedder.bias
            order = sorted(range(len(g)), key=lambda channel: -float(g[channel]))[: layer.chosen]
            weights = torch.exp(g[order]) / torch.exp(g[order]).sum()
            y = y + swiglu(expert, token[order] * weights * layer.gain)
        y = (y - y.mean()) / torch.sqrt(y.var(correction=0) + 1e-6) * layer.norm.weight + layer.norm.bias
        h = layer.mlp[0](y)
        out.append(layer.mlp[2](h / (1 + torch.exp(-h))))
    return torch.stack(out)


@pytest.mark.parametrize(("topk", "gain", "chosen"), [(2, 1.0, 16), (3, 5.0, 10), (1, 1.0, 32), (32, 2.0, 1)])
def test_experts_follow_their_formula(topk: float, gain: float, chosen: int) -> None:
    model = shaken(make(topk=topk, expert_gain=gain)).double()
    layer = model.blocks[0].moe
    assert layer.chosen == chosen
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    with torch.no_grad():
        emphasis = model.emphases()[0]
        torch.testing.assert_close(emphasis.sum(-1), torch.ones(3, dtype=torch.float64))
        expected = literal_experts(layer, x.flatten(0, 1), emphasis)
        torch.testing.assert_close(layer(x, emphasis).flatten(0, 1), expected)


def test_highest_is_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(50, 33, generator=generator)
    g[:20] = g[:20].round()  # many equals
    g[3, ::2], g[3, 1::2] = 0.0, -0.0
    g[4, 5], g[4, 6] = math.inf, -math.inf
    g[5] = 1e-42 * torch.arange(33)
    for count in (1, 16, 33):
        expected = g.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        assert torch.equal(highest(g, count), expected)
        assert torch.equal(highest(g.double(), count), expected)


def test_gates_are_float32_under_autocast() -> None:
    model = shaken(make())
    layer, x = model.blocks[0].moe, torch.randn(2, 20, 32)
    with torch.no_grad():
        row = model.emphases()[0][1]
        weights, channels = layer.choose(x, row)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(model._encode_index(), model.emphases(), strict=True))
            again, same = layer.choose(x, row)
            out, _ = model(torch.randn(1, 5, 16, 32))
    assert torch.equal(channels, same) and torch.equal(weights, again) and torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["vamoe", "vit", "topk_moe"])
def test_weights_of_half_precision(name: str) -> None:
    model, x = make(name).eval(), torch.randn(2, 5, 16, 32)
    with torch.no_grad():
        whole = model(x)[0]
        half = model.to(torch.bfloat16)(x.bfloat16())[0]
    assert half.dtype == torch.bfloat16 and (half.float() - whole).norm() < 0.05 * whole.norm()


def test_gain_makes_experts_count() -> None:
    def share(gain: float) -> float:
        model = make(embed_dim=64, expert_gain=gain).double()
        layer, x = model.blocks[0].moe, torch.randn(1, 30, 64, dtype=torch.float64)
        seen: list[Tensor] = []
        for expert in layer.experts:
            expert.register_forward_hook(lambda module, given, out: seen.append(out))
        with torch.no_grad():
            layer(x, model.emphases()[0])
            return float(torch.stack(seen).sum(0).norm() / layer.shared_experts(x).norm())

    assert share(1.0) < 0.01 and share(32.0) > 100 * share(1.0)


def test_encoded_index_is_kept_until_weights_change() -> None:
    model = make().eval()
    with torch.no_grad():
        first = model.emphases()
        assert model.emphases() is first
        x = torch.randn(1, 5, 16, 32)
        before = model(x)[0]
    assert model.emphases() is not first and model.emphases()[0].requires_grad
    state = copy.deepcopy(model.state_dict())

    def change_in_place() -> None:
        model.posembedder.mlp[0].weight.add_(1.0)

    def change_tensor() -> None:
        model.blocks[1].moe.PosEmbedder.bias.data = torch.ones(32) * torch.arange(32)

    def change_by_step() -> None:
        recipe = LearnedVariances(model, lr=0.1)
        with torch.enable_grad():
            recipe.loss(model, windows(model), None)[0].backward()
        recipe.optimiser(model).step()

    def change_unnoticed() -> None:
        model.posembedder.mlp[2].weight.data *= 300  # torch does not count this
        model.eval()

    for change in (change_in_place, change_tensor, change_by_step, change_unnoticed):
        with torch.no_grad():
            assert torch.equal(model(x)[0], before)
            change()
            fresh = model._encode_index()
            assert all(torch.equal(a, b) for a, b in zip(model.emphases(), fresh, strict=True))
            assert not torch.equal(fresh[1], first[1])
            model.load_state_dict(state)
            assert torch.equal(model(x)[0], before)
    twin = copy.deepcopy(model)
    with torch.inference_mode():
        assert torch.equal(twin(x)[0], before)


def test_choices_of_channels_are_counted() -> None:
    model = shaken(make()).train()
    with torch.no_grad():
        for block in model.blocks:
            block.moe.PosEmbedder.weight.mul_(20)  # experts that look at different channels
    found = channel_choices(model, windows(model, 3))
    assert dict(found.sizes) == {"block": 3, "expert": 3, "feature": 32, "other": 3, "latitude": 8, "longitude": 16}
    assert found["expert"].values.tolist() == ["geopotential", "temperature", "surface"]
    np.testing.assert_allclose(found["share"].sum("feature"), 16, rtol=1e-5)
    np.testing.assert_allclose(found["weight"].sum("feature"), 1, rtol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(found["overlap"].isel(expert=i, other=i), 1, rtol=1e-5)
    assert float(found["overlap"].min()) < 0.95
    picked = found["share"].sel(block=0, expert="surface").values > 0
    assert picked[np.unique(found["favourite"].sel(block=0, expert="surface").values)].all()
    assert model.training and not any(block.moe._forward_pre_hooks for block in model.blocks)
    for look in (channel_choices, expert_strength):
        with pytest.raises(WxlabError, match="vit has no experts of variables; give a VA-MoE"):
            look(make("vit"), windows(model))


def test_strength_of_experts_is_measured_beside_the_shared_one() -> None:
    model = shaken(make(expert_gain=16.0)).train()
    batch = windows(model, 2)
    found = expert_strength(model, batch)
    assert found.dims == ("block", "expert") and found["expert"].values.tolist() == ["geopotential", "temperature", "surface"]
    with torch.no_grad():
        tokens = model.tokens(batch.history[:, 0])
        block, row = model.blocks[0], model.emphases()[0][1]
        x = block.norm2(block.attend(tokens, model.shape)).flatten(0, 1)
        weights, channels = block.moe.choose(x, row)
        mine = block.moe.experts[1](16.0 * weights * x.gather(-1, channels)).norm()
        expected = mine / block.moe.shared_experts(x).norm()
    assert float(found[0, 1]) == pytest.approx(float(expected), rel=1e-5)
    assert model.training and not any(expert._forward_hooks for expert in model.blocks[0].moe.experts)


# ---- the recipe -------------------------------------------------------------------------------------------------------------------


def test_learned_variance_by_hand() -> None:
    loss = LearnedVariance(2).double()
    with torch.no_grad():
        loss.logvar[0, 1] = math.log(4.0)
    a = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]], dtype=torch.float64)
    b = torch.zeros_like(a)
    assert loss(a, b).item() == pytest.approx((5 + (4 / 4 + math.log(4))) / 2)
    mask = torch.tensor([[[[True, False]], [[True, True]]]])
    assert loss(a, b, mask).item() == pytest.approx((1 + (4 / 4 + math.log(4))) / 2)
    mask[0, 0] = False  # a channel without any observation does not count, nor does its log-variance
    assert loss(a, b, mask).item() == pytest.approx(4 / 4 + math.log(4))
    loss(a, b, mask).backward()
    assert loss.logvar.grad is not None and loss.logvar.grad[0, 0] == 0


def test_unobserved_points_do_not_count() -> None:
    model = make().double()
    batch = windows(model).to("cpu", torch.float64)
    mask = torch.ones(2, 2, *batch.history.shape[2:], dtype=torch.bool)
    mask[:, 1, :, :4] = False
    spoiled = Batch(batch.history, batch.target.clone(), batch.time, mask=mask)
    spoiled.target[:, :, :, :4] = 1e6
    hidden = Batch(batch.history, batch.target, batch.time, mask=mask)
    for settings in ({}, {"combine": "paper"}, {"reconstruct": "next"}, {"reconstruct": "next", "combine": "paper"}):
        recipe = LearnedVariances(model, **settings)
        one, two = (recipe.loss(model, given, None)[0] for given in (spoiled, hidden))
        torch.testing.assert_close(one, two)
        whole = recipe.loss(model, Batch(batch.history, batch.target, batch.time, mask=torch.ones_like(mask)), None)[0]
        torch.testing.assert_close(whole, recipe.loss(model, batch, None)[0])


def test_reconstruction_of_the_input_trains_encoder_and_decoder_alone() -> None:
    model = make()
    batch = windows(model)
    gradients = []
    for reconstruct in ("input", "next"):
        model.zero_grad()
        recipe = LearnedVariances(model, reconstruct=reconstruct, loss_weight=0.999999)
        recipe.loss(model, batch, None)[0].backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
        assert model.blocks[0].attn.qkv.weight.grad.norm() < 1e-4 * model.head.weight.grad.norm()
    x, y = batch.history[:, 0], batch.target[:, 0]
    expected = torch.autograd.grad(model.loss_recons(model.fields(model.tokens(x)), x), model.patch_embed.proj.weight)[0]
    torch.testing.assert_close(gradients[0], expected, rtol=1e-3, atol=1e-6)
    expected = torch.autograd.grad(model.loss_recons(model.fields(model.tokens(x)), y), model.patch_embed.proj.weight)[0]
    torch.testing.assert_close(gradients[1], expected, rtol=1e-3, atol=1e-6)


def test_multi_step_training_detached_and_through_time() -> None:
    model = shaken(make(horizon=3)).double()
    batch = windows(model).to("cpu", torch.float64)
    prediction = model.predict(batch)[:, 0]
    state = batch.history[:, 0]
    for step in range(3):
        state = model(state)[0]
        torch.testing.assert_close(prediction[:, step], state)

    def gradient(**settings: Any) -> tuple[Tensor, float]:
        model.zero_grad()
        loss, _ = LearnedVariances(model, **settings).loss(model, batch, None)
        loss.backward()
        return model.blocks[0].attn.qkv.weight.grad.clone(), loss.item()

    detached, loss = gradient()
    through, same = gradient(through_time=True)
    assert loss == pytest.approx(same) and not torch.allclose(detached, through, rtol=1e-3)
    recipe, state, parts = LearnedVariances(model), batch.history[:, 0], []
    for step in range(3):
        single = Batch(state.unsqueeze(1), batch.target[:, step : step + 1], batch.time[:, :2])
        model.zero_grad()
        recipe.loss(model, single, None)[0].backward()
        parts.append(model.blocks[0].attn.qkv.weight.grad.clone())
        state = model(state)[0].detach()
    torch.testing.assert_close(detached, torch.stack(parts).mean(0))


def test_settings_of_the_recipe() -> None:
    recipe = LearnedVariances(make())
    assert recipe.clip == 20 and recipe.lr == 2e-4
    for step, total in ((0, 10), (3, 10), (10, 10)):
        expected = 3e-7 + 0.5 * (2e-4 - 3e-7) * (1 + math.cos(math.pi * step / total))
        assert 2e-4 * recipe.schedule(step, total) == pytest.approx(expected, rel=1e-12)
    optimiser = recipe.optimiser(make())
    assert len(optimiser.param_groups) == 1
    group = optimiser.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.01)


@pytest.mark.parametrize("combine", ["convex", "paper"])
@pytest.mark.parametrize("name", ["vamoe", "vit", "topk_moe"])
def test_recipes_say_whether_parameters_are_left_out(name: str, combine: Any) -> None:
    """Training in several processes waits for the gradient of every parameter unless it is told."""
    model = make(name)
    recipe = (Balanced if name == "topk_moe" else LearnedVariances)(model, combine=combine)
    recipe.loss(model, windows(model), torch.Generator().manual_seed(0))[0].backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == (["loss_recons.logvar"] if combine == "paper" else []) and recipe.unused_parameters == bool(without)


@pytest.mark.parametrize("name", ["vamoe", "vit", "topk_moe"])
def test_each_network_learns(name: str) -> None:
    model = make(name)
    recipe = LearnedVariances(model, lr=1e-2) if name != "topk_moe" else Balanced(model, lr=1e-2)
    batch = windows(model)
    batch.target = batch.history.roll(2, dims=-1)
    optimiser, losses = recipe.optimiser(model), []
    for step in range(25):
        optimiser.zero_grad()
        loss, logs = recipe.loss(model.train(), batch, torch.Generator().manual_seed(step))
        loss.backward()
        optimiser.step()
        losses.append(logs["mse"].item())
    assert losses[-1] < 0.7 * losses[0]


# ---- routed experts ---------------------------------------------------------------------------------------------------------------


def test_each_token_goes_to_the_chosen_experts_only() -> None:
    torch.manual_seed(0)
    layer = NoisyTopK(8, 5, 2, 12).double()
    with torch.no_grad():
        layer.w_gate.normal_()
    x = torch.randn(40, 8, dtype=torch.float64)
    gates, load = layer.gates(x, None)
    assert ((gates > 0).sum(1) == 2).all() and torch.equal(load, (gates > 0).sum(0).double())
    torch.testing.assert_close(gates.sum(1), torch.ones(40, dtype=torch.float64))
    y, _ = layer(x)
    expected = sum(gates[:, i : i + 1] * expert(x) for i, expert in enumerate(layer.experts))
    torch.testing.assert_close(y, expected)
    _, alone = NoisyTopK(8, 1, 1, 4)(torch.randn(3, 8))
    assert alone == 0


def test_balance_is_lowest_when_experts_share_the_tokens() -> None:
    torch.manual_seed(0)
    layer = NoisyTopK(4, 4, 1, 4)
    with torch.no_grad():
        layer.w_gate.copy_(10 * torch.eye(4))
    even = layer(torch.eye(4).repeat(5, 1))[1]
    uneven = layer(torch.eye(4)[[0, 0, 0, 1]].repeat(5, 1))[1]
    assert even < 1e-6 < 0.001 < uneven


def test_noise_is_the_generators_and_only_for_training() -> None:
    model = make("topk_moe")
    assert isinstance(model, TopKMoE)
    with torch.no_grad():
        for block in model.blocks:
            block.moe.w_noise.normal_()
    x = torch.randn(1, 5, 16, 32)
    noisy = [model.balanced(x, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert torch.equal(model.train()(x)[0], model.eval()(x)[0])
    _, logs = Balanced(model).loss(model, windows(model), torch.Generator().manual_seed(0))
    assert {"forecast", "reconstruction", "mse", "balance"} == set(logs) and logs["balance"] > 0


def test_vit_is_the_trunk_with_a_network() -> None:
    model = make("vit", depth=1, mlp_ratio=2.0).double()
    block, x = model.blocks[0], torch.randn(1, 5, 16, 32, dtype=torch.float64)
    t = model.tokens(x)
    recons = model.fields(t)
    t = t + block.attn(block.norm1(t), model.shape)
    t = t + block.moe.fc2(F.gelu(block.moe.fc1(block.norm2(t))))
    out, again = model(x)
    torch.testing.assert_close(out, model.fields(t))
    torch.testing.assert_close(again, recons)


# ---- what does not fit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vamoe", {"grid": (15, 32)}, r"15 rows, and this model needs a multiple of 2; crop or regrid to 14 or 16 rows"),
        ("vamoe", {"grid": (16, 30), "patch": 4}, r"30 columns, and this model needs a multiple of 4"),
        ("vamoe", {"history": 2}, r"history=2, and this network reads one state; set history=1"),
        ("vamoe", {"embed_dim": 30}, r"embed_dim=30 must divide by heads=4"),
        ("vamoe", {"depth": 0}, r"depth=0 must be a positive whole number"),
        ("vamoe", {"window": 2.5}, r"window=2.5 must be a positive whole number"),
        ("vamoe", {"topk": 64}, r"topk=64 must be a number between 1 and 32"),
        ("vamoe", {"topk": 0.5}, r"topk=0.5 must be a number between 1 and 32"),
        ("vamoe", {"topk": "2"}, r"topk='2' must be a number between 1 and 32"),
        ("vamoe", {"expert_gain": 0}, r"expert_gain=0 must be a positive number"),
        ("vamoe", {"expert_gain": "k"}, r"expert_gain='k' must be a positive number"),
        ("vamoe", {"expert_gain": math.nan}, r"expert_gain=nan must be a positive number"),
        ("vamoe", {"extension": {"freeze": "coded"}}, r"must name channels, experts and freeze; let wxlab.extend set it"),
        ("vit", {"mlp_ratio": 0.01}, r"mlp_ratio=0.01 must be a positive number"),
        ("vit", {"mlp_ratio": "4"}, r"mlp_ratio='4' must be a positive number"),
        ("topk_moe", {"mlp_ratio": math.nan}, r"mlp_ratio=nan must be a positive number"),
        ("vit", {"history": 3}, r"history=3, and this network reads one state"),
        ("topk_moe", {"chosen": 4}, r"chosen=4 of 3 experts are more than there are"),
        ("topk_moe", {"experts": 0}, r"experts=0 must be a positive whole number"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        make(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, r"lr=0 must be a positive number"),
        ({"lr": "high"}, r"lr='high' must be a positive number"),
        ({"clip": -1}, r"clip=-1 must be a positive number"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1 must be a number of at least 0"),
        ({"weight_decay": None}, r"weight_decay=None must be a number of at least 0"),
        ({"loss_weight": "little"}, r"loss_weight='little' must be a number of at least 0"),
        ({"through_time": "false"}, r"through_time='false' must be true or false"),
        ({"loss_weight": 1.0}, r"loss_weight=1.0 must be a number of at least 0 \(no reconstruction\) and less than 1"),
        ({"reconstruct": "target"}, r"unknown reconstruct 'target'.*\(allowed: input, next\)"),
        ({"combine": "sum"}, r"unknown combine 'sum'.*\(allowed: convex, paper\)"),
    ],
)
def test_recipe_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        LearnedVariances(make(), **settings)


def test_fields_of_another_shape_and_batches_without_target_are_refused() -> None:
    model = make()
    with pytest.raises(WxlabError, match=r"fields of shape \[5, 16, 16\] were given, and the model reads \[C, H, W\] = \[5, 16, 32\]"):
        model(torch.zeros(1, 5, 16, 16))
    batch = windows(model)
    batch.target = None
    with pytest.raises(WxlabError, match="without target cannot train"):
        LearnedVariances(model).loss(model, batch, None)
