"""Mosaic: the attention core against dense references, parts of the network, ablations, the recipe, faults."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from noise import SPLITS, make, times_of
from standins import Noise, memory_store, windows
from torch import Tensor

import wxlab
from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights
from wxlab.healpix_mesh import centres, unit_vectors
from wxlab.models import create_model
from wxlab.models.mosaic import EnsembleTraining, Mosaic, attention, fair_crps, force_engine, with_horizon
from wxlab.models.mosaic.attention_flex import block_mask
from wxlab.models.mosaic.attention_triton import readers
from wxlab.models.mosaic.blocks import Level, RMSNorm, Rotary, Up, child_offsets
from wxlab.models.mosaic.clock import advanced, day_year
from wxlab.models.mosaic.interpolation import Interpolation
from wxlab.models.mosaic.network import token_order, token_places
from wxlab.models.mosaic.statistics import level_weights
from wxlab.store import open_store

CLOSE = {"atol": 2e-6, "rtol": 0}
HOUR = 3600


def mosaic(seed: int = 0, **options: Any) -> Mosaic:
    torch.manual_seed(seed)
    model = create_model("mosaic", "tiny", **options)
    assert isinstance(model, Mosaic)
    # the small initial weights hide mistakes behind small numbers
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("to_o", "w2", "noise", "upsample")) and "interp" not in name and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


def qkv(batch: int = 2, heads: int = 4, kinds: int = 2, tokens: int = 96, width: int = 8, dtype: Any = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, h, tokens, width, generator=generator, dtype=dtype).requires_grad_() for h in (heads, kinds, kinds)]


def choice(kinds: int = 2, blocks: int = 12, count: int = 3, batch: int = 2) -> Tensor:
    return torch.rand(batch, kinds, blocks, blocks, generator=torch.Generator().manual_seed(2)).topk(count).indices


def masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Attention with a mask [B, H, N, N], written down."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1) @ v


def allowed_by(chosen: Tensor, group: int, block: int) -> Tensor:
    """[B, K, blocks, n] -> bool [B, H, N, N]."""
    blocks = chosen.shape[2]
    near = torch.zeros(*chosen.shape[:3], blocks, dtype=torch.bool).scatter_(-1, chosen, True)
    return near.repeat_interleave(group, 1).repeat_interleave(block, 2).repeat_interleave(block, 3)


# ---- the attention core -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_at_a_time", [1, 4 << 20])
def test_selection_equals_dense_attention_with_a_mask(bytes_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.GATHER_BYTES, "cpu", bytes_at_a_time)
    (q, k, v), chosen = qkv(), choice()
    above = torch.randn(q.shape, generator=torch.Generator().manual_seed(3))
    results = []
    for out in (attention.attend_selected(q, k, v, chosen, 8), masked(q, k, v, allowed_by(chosen, 2, 8))):
        results.append([out, *torch.autograd.grad(out, (q, k, v), above)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_gradients_of_the_selection_are_exact() -> None:
    q, k, v = qkv(batch=1, tokens=12, width=4, dtype=torch.float64)
    chosen = choice(batch=1, blocks=4, count=2)
    assert torch.autograd.gradcheck(lambda *x: attention.attend_selected(*x, chosen, 3), (q, k, v))


def test_all_blocks_are_dense_attention() -> None:
    (q, k, v), chosen = qkv(), choice(count=12)
    torch.testing.assert_close(attention.attend_selected(q, k, v, chosen, 8), attention.dense_attention(q, k, v), **CLOSE)
    everything = torch.ones(2, 4, 96, 96, dtype=torch.bool)
    torch.testing.assert_close(attention.dense_attention(q, k, v), masked(q, k, v, everything), **CLOSE)


def test_local_attention_stays_in_its_window() -> None:
    q, k, v = qkv()
    inside = torch.block_diag(*[torch.ones(24, 24)] * 4).bool().expand(2, 4, -1, -1)
    torch.testing.assert_close(attention.local_attention(q, k, v, 24), masked(q, k, v, inside), **CLOSE)


@pytest.mark.parametrize(("sizes", "message"), [({"window": 36}, "windows of 36"), ({"block": 0}, "blocks of 0")], ids=str)
def test_tokens_that_leave_a_rest_are_one_sentence(sizes: dict[str, int], message: str) -> None:
    q, k, v = qkv()
    with pytest.raises(WxlabError, match=rf"96 tokens do not divide into {message}; give \w+= a divisor of their number"):
        attention.block_sparse_attention(q, k, v, torch.rand(2, 96, 4, 3), **{"window": 24, "block": 8, "count": 2, **sizes})


@pytest.mark.parametrize("heads", ["official", "natural"])
def test_scores_of_blocks(heads: Any) -> None:
    """Key head c averages query heads c, c + K, ... as published, or its own group."""
    q, k, _ = qkv(heads=6, kinds=2)
    q, k = attention.block_means(q, 8), attention.block_means(k, 8)
    found = attention.selection_scores(q, k, heads)
    assert not found.requires_grad and found.shape == (2, 2, 12, 12)
    for c in range(2):
        mine = [g * 2 + c for g in range(3)] if heads == "official" else [c * 3 + g for g in range(3)]
        expected = sum(q[:, h] @ k[:, h // 3].transpose(1, 2) for h in mine) / 3
        torch.testing.assert_close(found[:, c], expected.detach(), **CLOSE)


def test_best_blocks_come_first() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [-3.0, -1.0, -2.0]]).view(1, 1, 3, 3)
    assert attention.choose_blocks(scores, 2).tolist() == [[[[1, 2], [0, 1], [1, 2]]]]
    with pytest.raises(WxlabError, match="count=4 blocks cannot be chosen of 3; choose from 1 to that many"):
        attention.choose_blocks(scores, 4)


def test_shares_of_blocks() -> None:
    """What the taps show: rows sum to 1, blocks that are not chosen have nothing, values follow."""
    (q, k, _), chosen = qkv(width=12), choice()
    shares = attention.selection_weights(q, k, chosen, 8)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 4, 12))
    near = torch.zeros(2, 2, 12, 12, dtype=torch.bool).scatter_(-1, chosen, True).repeat_interleave(2, 1)
    assert torch.equal(shares > 0, near)
    of_block = F.one_hot(torch.arange(96) // 8).float().expand(2, 2, -1, -1)  # a value that says which block it is of
    means = attention.block_means(attention.attend_selected(q, k, of_block, chosen, 8), 8)
    torch.testing.assert_close(shares, means.detach(), **CLOSE)


# ---- engines ----------------------------------------------------------------------------------------------------------------------


def test_flex_equals_gather_and_says_what_it_cannot() -> None:
    (q, k, v), chosen = qkv(batch=1, tokens=64, width=16), choice(batch=1, blocks=4, count=2)
    with torch.no_grad():
        flex = attention.attend_selected(q, k, v, chosen, 16, "flex")
        torch.testing.assert_close(flex, attention.attend_selected(q, k, v, chosen, 16, "gather"), **CLOSE)
    with pytest.raises(WxlabError, match="'flex' has gradients on a CUDA GPU alone; use 'gather'"):
        attention.attend_selected(q, k, v, chosen, 16, "flex")


def test_block_lists_of_flex() -> None:
    """Compiled kernels read the lists alone: the chosen blocks, whole, the same for all query heads of a key head."""
    chosen = choice(batch=1, blocks=4, count=2)
    mask = block_mask(chosen, 4, 16)
    assert not mask.kv_num_blocks.any() and (mask.full_kv_num_blocks == 2).all()
    assert torch.equal(mask.full_kv_indices[..., :2].long(), chosen.repeat_interleave(2, 1))
    assert mask.full_kv_indices.shape[-1] == 4 and mask.seq_lengths == (64, 64)


def test_transposed_lists_of_triton() -> None:
    """Which query blocks chose a key block, by counting."""
    chosen = choice()
    first, reader = readers(chosen)
    for b in range(2):
        for c in range(2):
            for j in range(12):
                flat = (b * 2 + c) * 12 + j
                found = reader[first[flat] : first[flat + 1]].tolist()
                assert found == [i for i in range(12) if j in chosen[b, c, i].tolist()]


INTERPRETED = """
import torch
from wxlab.models.mosaic.attention import attend_selected
from wxlab.models.mosaic.attention_triton import _Kernels

generator = torch.Generator().manual_seed(0)
# blocks of one tile, blocks of two, half precision
for batch, heads, kinds, tokens, block, count, dtype, error in (
    (2, 4, 2, 48, 16, 2, torch.float32, 2e-6), (1, 2, 1, 192, 64, 2, torch.float32, 2e-6), (1, 2, 1, 48, 16, 2, torch.float16, 2e-3),
):
    shapes = [(batch, h, tokens, 16) for h in (heads, kinds, kinds)]
    qkv = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    chosen = torch.rand(batch, kinds, tokens // block, tokens // block, generator=generator).topk(count).indices
    above = torch.randn(shapes[0], generator=generator).to(dtype)
    results = []
    for out in (_Kernels.apply(*qkv, chosen, block), attend_selected(*qkv, chosen, block, "gather")):
        results.append([out, *torch.autograd.grad(out, qkv, above)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=error, rtol=0)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: its interpreter cannot run the kernels")
def test_triton_kernels_in_the_interpreter() -> None:
    """Forward and all gradients, without a GPU."""
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: the engines flex (compiled) and triton cannot run")
@pytest.mark.parametrize("engine", ["flex", "triton"])
def test_engines_are_equal_on_a_gpu(engine: Any) -> None:
    (q, k, v), chosen = [x.detach().cuda().requires_grad_() for x in qkv(tokens=768, width=64)], choice(blocks=12).cuda()
    above = torch.randn(q.shape, device="cuda")
    results = []
    for name in ("gather", engine):
        out = attention.attend_selected(q, k, v, chosen, 64, name)
        results.append([out, *torch.autograd.grad(out, (q, k, v), above)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_triton_says_what_it_needs() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU, and triton can run")
    (q, k, v), chosen = qkv(), choice()
    with pytest.raises(WxlabError, match="'triton' needs a CUDA GPU and the package triton; use 'gather'"):
        attention.attend_selected(q, k, v, chosen, 8, "triton")


def test_engines_are_forced_by_name() -> None:
    (q, k, v), chosen = qkv(), choice()
    exact = attention.attend_selected(q, k, v, chosen, 8)
    with force_engine("bfloat16"):
        rounded = attention.attend_selected(q, k, v, chosen, 8)
        assert torch.equal(attention.attend_selected(q, k, v, chosen, 8, "gather"), exact)
    assert 1e-4 < (rounded - exact).abs().max() < 3e-2
    with pytest.raises(WxlabError, match=r"unknown attention engine 'gahter'; did you mean 'gather'"), force_engine("gahter"):  # type: ignore[arg-type]
        pass
    with pytest.raises(WxlabError, match="unknown attention engine 'cuda'"):
        attention.attend_selected(q, k, v, chosen, 8, "cuda")  # type: ignore[arg-type]


# ---- parts ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [False, True])
def test_folded_interpolation_equals_its_formula(affine: bool) -> None:
    torch.manual_seed(0)
    source, target = token_places(Grid.regular(9, 16)), centres(4)
    layer = Interpolation(source, target, 6, 16, 4, affine).double()
    if affine:
        torch.nn.init.uniform_(layer.kv_norm.weight, 0.5, 1.5)
    x = torch.randn(2, 144, 16, dtype=torch.float64, requires_grad=True)
    keys, values = layer.to_kv(layer.kv_norm(x)).unflatten(-1, (2, 4, 4)).unbind(2)  # [B, sources, heads, d]
    q = layer.to_q(layer.rel_pos).unflatten(-1, (4, 4))  # [targets, count, heads, d]
    weights = torch.einsum("ijhd,bijhd->bijh", q, keys[:, layer.neighbors] / 2).softmax(2)
    expected = layer.to_o(torch.einsum("bijh,bijhd->bihd", weights, values[:, layer.neighbors]).flatten(2))
    found = layer(x)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    above = torch.randn_like(found)
    parts = (x, *layer.parameters())
    for one, other in zip(torch.autograd.grad(found, parts, above), torch.autograd.grad(expected, parts, above), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_interpolation_reads_the_nearest_points() -> None:
    source, target = token_places(Grid.regular(9, 16)), centres(4)
    layer = Interpolation(source, target, 6, 16, 4, False)
    distance = torch.arccos((unit_vectors(target) @ unit_vectors(source).T).clamp(-1, 1).double())
    torch.testing.assert_close(distance.gather(1, layer.neighbors), distance.sort(1).values[:, :6], atol=1e-3, rtol=0)
    assert layer.rel_pos.norm(dim=-1).sub(1).abs().max() < 1e-5
    with pytest.raises(WxlabError, match="neighbours=200 must be a whole number from 1 to 144"):
        Interpolation(source, target, 200, 16, 4, False)


def test_tokens_run_along_meridians_from_the_south() -> None:
    grid = Grid((60.0, 0.0, -60.0), (-90.0, 0.0, 90.0, 180.0))
    places = token_places(grid)
    np.testing.assert_array_equal(places[:4], [[0, -60], [0, 0], [0, 60], [90, -60]])
    assert np.all(np.diff(places[:, 0]) >= 0)
    assert sorted(token_order(grid)) == list(range(12))


def test_rotation_keeps_lengths_and_knows_differences() -> None:
    """Turned pairs keep their length; points of one meridian are told apart by their difference in latitude alone."""
    rotary, x = Rotary(4, 8), torch.randn(1, 192, 2, 8)
    turned = rotary(x)
    torch.testing.assert_close(turned.unflatten(-1, (4, 2)).norm(dim=-1), x.unflatten(-1, (4, 2)).norm(dim=-1))
    lon, lat = torch.from_numpy(centres(4).copy()).deg2rad().unbind(1)
    expected = torch.polar(torch.ones(192, 4), torch.stack([lon, lon / 100, lat, lat / 100], 1))
    found = torch.view_as_complex(turned[0].unflatten(-1, (4, 2)).contiguous())
    torch.testing.assert_close(found, torch.view_as_complex(x[0].unflatten(-1, (4, 2)).contiguous()) * expected.unsqueeze(1))


def test_rotary_tables_are_one_for_each_level() -> None:
    model = mosaic(encoder_depth=(3,))
    assert len({id(module) for module in model.modules() if isinstance(module, Rotary)}) == 2


def test_norm_by_the_dtypes_epsilon() -> None:
    tiny = torch.full((1, 4), 1e-4)
    expected = 1e-4 / (1e-8 + torch.finfo(torch.float32).eps) ** 0.5
    assert RMSNorm(4)(tiny)[0, 0].item() == pytest.approx(expected, rel=1e-5)
    half = RMSNorm(4)(tiny.bfloat16())
    assert half.dtype == torch.bfloat16 and half[0, 0].item() == pytest.approx(expected, rel=1e-2)


def test_up_adds_the_skip_before_the_norm() -> None:
    levels = [Level(4, 8, 2, 1, 12, 12, 1), Level(2, 12, 3, 1, 12, 12, 1)]
    up, x, skip = Up(levels[1], levels[0], False), torch.randn(2, 48, 12), torch.randn(2, 192, 8)
    children = (x @ up.proj_x.weight.T + up.rel_pos @ up.proj_pos.weight.T).unflatten(-1, (4, 8)).flatten(1, 2)
    torch.testing.assert_close(up(x, skip), RMSNorm(8)(children + skip))
    torch.testing.assert_close(up(x, None), RMSNorm(8)(children))


@pytest.mark.parametrize(("coarse", "fine"), [(2, 4), (2, 8)])
def test_offsets_of_children_are_standardised_columns(coarse: int, fine: int) -> None:
    offsets = child_offsets(coarse, fine)
    assert offsets.shape == (12 * coarse**2, 3 * (fine // coarse) ** 2)
    torch.testing.assert_close(offsets.mean(0), torch.zeros(offsets.shape[1]), atol=1e-6, rtol=0)
    spread = offsets.std(0)
    constant = spread < 0.1  # children that lie the same way from every parent
    assert constant.sum() < len(spread) / 4
    torch.testing.assert_close(spread[~constant], torch.ones(int((~constant).sum())), atol=1e-4, rtol=0)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = create_model("mosaic", "demo")
    spread = {name: float(value.detach().std()) for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        if "interp_to_" in name or "strategy" in name:
            expected = (3 * value.shape[1]) ** -0.5  # nn.Linear's own
        elif any(part in name for part in (".attention.to_o", ".ffn.w2", ".noise_bias", "upsample_layers.", "noise_generator.")):
            expected = 0.01
        else:
            expected = min(1.0, (value.shape[0] / value.shape[1]) ** 0.5) / value.shape[1] ** 0.5
        assert spread[name] == pytest.approx(expected, rel=0.25 if value.numel() < 1000 else 0.1), name


# ---- the network ------------------------------------------------------------------------------------------------------------------


def step(model: Mosaic, batch: int = 3, members: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    spec, generator = model.spec, torch.Generator().manual_seed(0)
    x = torch.randn(batch, spec.history, len(spec.channels), *spec.grid.shape, generator=generator)
    return x, torch.rand(batch, 2, generator=generator), torch.randn(batch, members, model.config["noise_dim"], generator=generator)


@torch.no_grad()
def test_members_of_several_samples_keep_their_order() -> None:
    model = mosaic()
    x, clock, noise = step(model)
    together = model(x, clock, noise)
    assert together.shape == (3, 2, 3, 9, 16)
    for b in range(3):
        for m in range(2):
            alone = model(x[b : b + 1], clock[b : b + 1], noise[b : b + 1, m])
            torch.testing.assert_close(together[b, m], alone[0], atol=1e-4, rtol=1e-4)
    assert (together[:, 0] - together[:, 1]).abs().max() > 0.01


@torch.no_grad()
def test_the_clock_the_history_and_the_noise_are_read() -> None:
    model = mosaic()
    x, clock, noise = step(model, 1, 1)
    base = model(x, clock, noise)
    for other in (model(x.flip(1), clock, noise), model(x, clock.flip(1), noise), model(x, clock, -noise)):
        assert (other - base).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"affine": True},
        {"sparse_every": 0},
        {"sparse_every": 2, "bottleneck_depth": 2},
        {"nside": (8, 2), "window": (64, 24), "block": (16, 8)},
        {"noise_dim": 0},
        {"attention": "dense"},
        {"order": "shuffled"},
        {"compress_first": True},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_variants_forecast_and_learn(options: dict[str, Any]) -> None:
    model = mosaic(**options)
    batch = windows(model, 2)
    prediction = model.predict(batch, 2, Noise(2, 2))  # type: ignore[arg-type]
    assert prediction.shape == (2, 2, 1, 3, 9, 16) and prediction.isfinite().all()
    assert torch.equal(prediction[:, 0], prediction[:, 1]) == ("noise_dim" in options)
    settings = {"optimiser": "adamw"} if "affine" in options else {}
    with torch.enable_grad():
        loss, _ = EnsembleTraining(model, **settings).loss(model, batch, torch.Generator().manual_seed(0))
        loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gates_only_where_there_is_sparse_attention() -> None:
    model = mosaic(sparse_every=2, bottleneck_depth=3, encoder_depth=(2,))
    with_gates = [name for name, _ in model.named_parameters() if "strategy" in name]
    assert [name.split(".attention")[0] for name in with_gates] == [
        "encoder_stages.0.blocks.0", "bottleneck.blocks.0", "bottleneck.blocks.2", "decoder_stages.0.blocks.0",
    ]  # fmt: skip
    assert not any("strategy" in name for name, _ in mosaic(sparse_every=0).named_parameters())
    assert not any("strategy" in name for name, _ in mosaic(attention="dense").named_parameters())


@torch.no_grad()
def test_dense_is_what_it_says() -> None:
    """One attention of all to all: the same as windows as large as the mesh, without gates."""
    dense = mosaic(attention="dense")
    local = mosaic(sparse_every=0, window=(192, 48))
    local.load_state_dict(dense.state_dict())
    given = step(dense)
    torch.testing.assert_close(dense(*given), local(*given), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shuffled_blocks_have_the_same_weights_and_other_neighbours() -> None:
    nested, shuffled = mosaic(), mosaic(order="shuffled")
    shuffled.load_state_dict(nested.state_dict())
    given = step(nested)
    assert (nested(*given) - shuffled(*given)).abs().max() > 1e-3
    everything = {"window": (192, 48), "block": (192, 48), "count": (1, 1)}  # no neighbourhoods left: the order is nothing, gates apart
    near, far = (mosaic(order=order, **everything) for order in ("nested", "shuffled"))
    torch.testing.assert_close(near(*given), far(*given), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_compressing_first_leaves_nothing_at_the_finest_level() -> None:
    model = mosaic(compress_first=True)
    assert [len(stage.blocks) for stage in (*model.encoder_stages, model.bottleneck, *model.decoder_stages)] == [0, 3, 0]
    deep = mosaic(
        compress_first=True, nside=(8, 4, 2), width=(16, 32, 32), heads=(4, 4, 4), kv_heads=(2, 2, 2), window=(64, 64, 24),
        block=(16, 16, 8), count=(3, 3, 2), encoder_depth=(2, 1), decoder_depth=(1, 1),
    )  # fmt: skip
    assert [len(stage.blocks) for stage in (*deep.encoder_stages, deep.bottleneck, *deep.decoder_stages)] == [0, 3, 1, 2, 0]
    seen: list[Any] = []
    deep.upsample_layers[1].register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    deep(*step(deep))
    assert seen == [None]


@torch.no_grad()
def test_half_precision_inside_and_a_full_state_outside() -> None:
    model = mosaic()
    given = step(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*given)
    assert out.dtype == torch.float32
    assert 1e-6 < (out - model(*given)).abs().max() < 0.3


@torch.no_grad()
def test_static_fields_in_any_unit() -> None:
    model = mosaic(static=("land_sea_mask", "geopotential_at_surface"))
    given, static = step(model), torch.rand(2, 9, 16)
    out = model(*given, static)
    torch.testing.assert_close(model(*given, static * 5000 - 3), out, atol=2e-3, rtol=1e-3)
    assert (model(*given, static.flip(0)) - out).abs().max() > 1e-2


def test_shares_of_day_and_year() -> None:
    stamps = np.array(["2021-01-01T00", "2021-12-31T18", "2020-02-29T12"], "datetime64[s]").astype(np.int64)
    expected = [[0, 0], [0.75, 364 / 365], [0.5, 59 / 366]]
    torch.testing.assert_close(day_year(torch.from_numpy(stamps)), torch.tensor(expected, dtype=torch.float64))
    zero = torch.zeros(1, 2, dtype=torch.float64)
    torch.testing.assert_close(advanced(zero, 365, 24 * HOUR, "corrected"), torch.tensor([[365.0, 365 / 365.25]]).double())
    torch.testing.assert_close(advanced(zero, 4, 6 * HOUR, "official"), torch.tensor([[1.0, 4 / 365.25]]).double())


@torch.no_grad()
def test_steps_of_one_call_are_steps_of_the_model() -> None:
    """Members part after the first step, the window slides, the clock goes on, and goes on in the next call."""
    model = mosaic(horizon=2)
    batch, noise = windows(model, 2), torch.randn(2, 3, 2, 8)
    for calls in (0, 2):
        rolled = model.roll(batch, noise, calls)
        place = day_year(batch.time[:, 1] - calls * 2 * 6 * HOUR)
        for m in range(3):
            clocks = [advanced(place, 2 * calls + t, 6 * HOUR, "corrected").float() for t in range(2)]
            first = model(batch.history, clocks[0], noise[:, m, 0])
            second = model(torch.stack([batch.history[:, 1], first], 1), clocks[1], noise[:, m, 1])
            torch.testing.assert_close(rolled[:, m], torch.stack([first, second], 1), atol=1e-4, rtol=1e-4)


def test_a_roll_out_does_not_depend_on_the_horizon_of_training() -> None:
    """As deterministic model, two steps of one call and two calls are the same forecast."""
    model = mosaic(noise_dim=0)
    model.normaliser = memory_store(model.spec).normaliser
    longer = with_horizon(model, 2)
    fields = make(times_of(4, 6), grid=model.spec.grid)
    fields = fields[["2m_temperature", "geopotential"]].assign(temperature=fields["geopotential"] / 200).sel(level=[500, 850])
    one, two = (wxlab.forecast(each, fields, steps=4) for each in (model, longer))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-3)


# ---- attention that can be looked at ------------------------------------------------------------------------------------------------


def test_capture_shows_gates_and_blocks() -> None:
    model = mosaic()
    shown = wxlab.attention.capture(model, windows(model))
    kinds = ("local", "gates", "compression", "selection", "chosen")
    assert set(shown.data_vars) == {f"{kind}_nside{n}" for kind in kinds for n in (4, 2)}
    for name, weights in shown.items():
        if "into" in weights.attrs:
            continue
        np.testing.assert_allclose(weights.sum(weights.dims[-1]), 1, atol=1e-5, err_msg=str(name))
    fine = shown["selection_nside4"]
    assert fine.shape == (2, 2, 4, 12, 12)
    assert set(np.unique((fine > 0).sum("key_block_selection_nside4"))) == {3}


# ---- training ---------------------------------------------------------------------------------------------------------------------


def test_fair_crps_by_hand_and_by_pairs() -> None:
    members = torch.tensor([[1.0, 4.0]])
    assert fair_crps(members, torch.tensor([3.0])).item() == pytest.approx(0.5 * (2 + 1) - 0.5 * 3)
    members, target = torch.randn(5, 7, 2, 3), torch.randn(5, 2, 3)
    pairs = (members.unsqueeze(1) - members.unsqueeze(2)).abs().sum((1, 2)) / (2 * 7 * 6)
    torch.testing.assert_close(fair_crps(members, target), (members - target.unsqueeze(1)).abs().mean(1) - pairs)
    with pytest.raises(WxlabError, match="fair CRPS of one member is not defined"):
        fair_crps(members[:, :1], target)


def test_fair_crps_does_not_depend_on_the_number_of_members() -> None:
    """Its mean over perfect ensembles is that of a normal distribution, 1/√π, for any N."""
    generator = torch.Generator().manual_seed(0)
    for count in (2, 8):
        scores = fair_crps(torch.randn(200_000, count, generator=generator), torch.randn(200_000, generator=generator))
        assert scores.mean().item() == pytest.approx(np.pi**-0.5, abs=6e-3)


def test_weights_of_channels_and_latitudes() -> None:
    names = ("2m_temperature", "mean_sea_level_pressure", "temperature_500", "temperature_1000", "geopotential_850")
    np.testing.assert_allclose(level_weights(names), [1, 0.1, 2 / 3, 4 / 3, 1])
    model = mosaic()
    weights = EnsembleTraining(model).weights
    expected = torch.from_numpy(area_weights(model.spec.grid)).float()
    assert weights.shape == (3, 9, 1)
    torch.testing.assert_close(weights[0, :, 0], expected)
    assert expected.mean().item() == pytest.approx(1) and expected[0] < 0.1 * expected[4]
    only = EnsembleTraining(model, channel_weights={"2m_temperature": 0.5}).weights[:, 4, 0] / expected[4]
    torch.testing.assert_close(only, torch.tensor([0.5, 1.0, 1.0]))


def test_the_loss_is_what_it_says() -> None:
    model, recipe = mosaic(), EnsembleTraining(mosaic(), members=3, channel_weights="equal")
    batch = windows(model)
    loss, logs = recipe.loss(model, batch, torch.Generator().manual_seed(5))
    noise = torch.randn(2, 3, 1, 8, generator=torch.Generator().manual_seed(5))
    score = fair_crps(model.roll(batch, noise), batch.target)
    expected = (score.mean((0, 1, 2, 4)) * torch.from_numpy(area_weights(model.spec.grid)).float()).mean()
    torch.testing.assert_close(loss, expected)
    assert set(logs) == {"crps", "spread", "mse_of_mean"}
    hidden = dataclasses.replace(batch, mask=torch.ones(2, 3, 3, 9, 16, dtype=torch.bool))
    torch.testing.assert_close(recipe.loss(model, hidden, torch.Generator().manual_seed(5))[0], loss)
    hidden.mask[:, 2, 1] = False
    hidden.target[:, 0, 1] = 1e6
    assert recipe.loss(model, hidden, torch.Generator().manual_seed(5))[0] < 10


def test_the_deterministic_twin_is_trained_with_squared_errors() -> None:
    model = mosaic(noise_dim=0)
    recipe, batch = EnsembleTraining(model, channel_weights="equal"), windows(model)
    loss, logs = recipe.loss(model, batch, None)
    error = (model.predict(batch)[:, 0] - batch.target).square().mean((0, 1, 2, 4))
    torch.testing.assert_close(loss, (error * torch.from_numpy(area_weights(model.spec.grid)).float()).mean())
    assert set(logs) == {"mse"} and recipe.kind == "mse"


def test_optimisers_and_rates() -> None:
    model = mosaic()
    muon, adam = EnsembleTraining(model).optimiser(model), EnsembleTraining(model, optimiser="adamw").optimiser(model)
    assert isinstance(muon, torch.optim.Muon) and isinstance(adam, torch.optim.AdamW)
    assert muon.param_groups[0]["lr"] == 0.02 and muon.param_groups[0]["momentum"] == 0.95 and adam.param_groups[0]["lr"] == 3e-4
    assert EnsembleTraining(model, stage="finetuning").lr == pytest.approx(0.002)
    assert sum(len(group["params"]) for group in muon.param_groups) == len(list(model.parameters()))


def test_schedules_of_both_stages() -> None:
    first, then = (EnsembleTraining(mosaic(), stage=stage) for stage in ("pretraining", "finetuning"))  # type: ignore[arg-type]
    assert [first.schedule(s, 1000) for s in (0, 500, 1000)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert [then.schedule(s, 10_000) for s in (0, 250, 500, 5250, 10_000)] == pytest.approx([1e-6, 0.5, 1, 0.5, 0], abs=1e-6)
    assert then.schedule(10, 100) == 1  # of a short stage, a tenth
    assert EnsembleTraining(mosaic(), final_lr=0.002).schedule(10, 10) == pytest.approx(0.1)


def test_validation_is_the_loss_of_each_sample_whatever_the_batch() -> None:
    model = mosaic()
    recipe, batch = EnsembleTraining(model), windows(model, 3)
    from wxlab.streams import Streams

    def score(part: slice) -> Tensor:
        one = dataclasses.replace(batch, history=batch.history[part], target=batch.target[part], time=batch.time[part])
        with torch.no_grad():
            return recipe.validation(model, one, Streams(0, one.time[:, 1], 1, 0))

    torch.testing.assert_close(score(slice(0, 3)), torch.cat([score(slice(i, i + 1)) for i in range(3)]), atol=1e-5, rtol=1e-5)


def test_single_steps_then_roll_outs(tmp_path: Path) -> None:
    """The two stages, from a store to a forecast."""
    fields = make(times_of(730), grid=Grid.regular(9, 16))
    chosen = {"variables": ["2m_temperature", "geopotential"], "levels": [500]}
    store = open_store(wxlab.prepare(fields, tmp_path / "store.zarr", splits=SPLITS, **chosen))  # type: ignore[arg-type]
    small = {"batch_size": 2, "validation_windows": 2, "seed": 0}
    first = wxlab.train("mosaic", store, run_dir=tmp_path / "single", preset="tiny", steps=3, **small)
    single = wxlab.load_checkpoint(first)
    assert isinstance(single, Mosaic)
    longer = with_horizon(single, 2)
    assert longer.spec.horizon == 2 and longer.spec.step == 24 * HOUR
    rolled = wxlab.train(longer, store, run_dir=tmp_path / "rolled", steps=2, recipe={"stage": "finetuning"}, **small)
    model = wxlab.load_checkpoint(rolled)
    assert model.spec.horizon == 2 and model.normaliser is not None
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, single.state_dict()[name])]
    assert changed
    made = wxlab.forecast(model, store.dataset("test"), steps=3, members=2, times=store.dataset("test")["time"].values[5:6])
    assert dict(made.sizes)["prediction_timedelta"] == 3 and bool(made["geopotential"].notnull().all())


# ---- faults -----------------------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"window": (50, 24)}, r"at nside 4, with 192 tokens, window=50 leaves a rest; give a divisor of 192, such as 48 or 64"),
    ({"block": (16, 7)}, r"at nside 2, with 48 tokens, block=7 leaves a rest; give a divisor of 48, such as 6 or 8"),
    ({"count": (13, 2)}, r"at nside 4, .* count=13 blocks cannot be chosen of 12 blocks of 16; give at most 12"),
    ({"nside": (6, 2)}, r"nside=6 must be a power of two"),
    ({"nside": (2, 4), "window": (24, 64)}, r"nside=\[2, 4\] must fall from level to level"),
    ({"nside": (4,)}, r"nside=\(4,\) must name at least two levels"),
    ({"nside": 4}, r"nside=4 must name at least two levels"),
    ({"window": (64,)}, r"window=\[64\] must be 2 whole numbers of at least 1, one for each of the 2 levels"),
    ({"window": (64, 24.0)}, r"window=\[64, 24\.0\] must be 2 whole numbers"),
    ({"encoder_depth": (1, 1)}, r"encoder_depth=\[1, 1\] must be 1 whole .* one for each of the 2 levels but the bottleneck"),
    ({"width": (18, 32)}, r"width=18 must be a multiple of 16: four channels for each head"),
    ({"kv_heads": (3, 2)}, r"heads=4 must be a multiple of kv_heads=3"),
    ({"noise_dim": -1}, r"noise_dim=-1 must be a whole number of at least 0"),
    ({"neighbours": 0}, r"neighbours=0 must be a whole number of at least 1"),
    ({"mlp_ratio": 0.01}, r"mlp_ratio=0\.01 leaves no hidden unit"),
    ({"mlp_ratio": "4"}, r"mlp_ratio='4' leaves no hidden unit; give a ratio such as 4"),
    ({"compress_first": "no"}, r"compress_first='no' must be True or False"),
    ({"sparse_every": 0.5}, r"sparse_every=0\.5 must be a whole number"),
    ({"attention": "sparse"}, r"unknown attention 'sparse'.*block_sparse"),
    ({"order": "random"}, r"unknown order 'random' \(allowed: nested, shuffled\)"),
    ({"selection_heads": "nature"}, r"unknown selection_heads 'nature'; did you mean 'natural'"),
    ({"year_feature": "correct"}, r"unknown year_feature 'correct'; did you mean 'corrected'"),
    ({"grid": Grid((0.0, 1.0), (0.0, 1.0), "xy")}, r"needs latitudes and longitudes, and this grid is in metres"),
    ({"grid": Grid(tuple(range(10, 60, 5)), tuple(range(0, 60, 5)))}, r"mosaic's mesh covers the globe, and this grid does not"),
    ({"horizon": 2, "history_step": 12 * HOUR}, r"horizon=2, so history_step \(43200 s\) must be step \(21600 s\)"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: str(value)[:30])
def test_sizes_that_do_not_fit_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        create_model("mosaic", "tiny", **options)
    assert "\n" not in str(caught.value)


CALLS: list[tuple[dict[str, Any], str]] = [
    ({"history": torch.zeros(1, 1, 3, 9, 16)}, r"history of shape \[1, 1, 3, 9, 16\]; it reads \[batch, 2, 3, 9, 16\]: 2 states every 6 h"),
    ({"history": torch.zeros(1, 2, 3, 16, 9)}, r"history of shape \[1, 2, 3, 16, 9\]; .* 3 channels, rows, columns"),
    ({"day_year": torch.zeros(1)}, r"clock of shape \[1\]; it reads the share of day and year of each sample"),
    ({"noise": torch.zeros(1, 2, 1, 8)}, r"noise of shape \[1, 2, 1, 8\]; it reads \[batch, numbers\] or \[batch, members, numbers\]"),
    ({"noise": None}, r"noise of 0 numbers and reads 8 for each member"),
    ({"noise": torch.zeros(1, 2, 5)}, r"noise of 5 numbers and reads 8"),
    ({"noise": torch.zeros(2, 2, 8)}, r"noise for 2 samples and histories of 1"),
    ({"static": None}, r"reads the static fields land_sea_mask, an array of shape \[1, 9, 16\], and was given none; prepare the store"),
    ({"static": torch.zeros(2, 9, 16)}, r"and was given an array of shape \[2, 9, 16\]"),
]


@pytest.mark.parametrize(("change", "message"), CALLS, ids=lambda value: str(value)[:30])
def test_inputs_that_do_not_fit_are_one_sentence(change: dict[str, Any], message: str) -> None:
    model = mosaic(static=("land_sea_mask",))
    given = {"history": torch.zeros(1, 2, 3, 9, 16), "day_year": torch.zeros(1, 2), "noise": torch.zeros(1, 2, 8)}
    with pytest.raises(WxlabError, match=message) as caught:
        model(**{**given, "static": torch.zeros(1, 9, 16), **change})
    assert "\n" not in str(caught.value)


def test_a_forecast_needs_the_whole_history_and_the_statics() -> None:
    model = mosaic(static=("land_sea_mask",))
    model.normaliser = memory_store(model.spec).normaliser
    fields = make(times_of(3, 6), grid=model.spec.grid)
    fields = fields[["2m_temperature", "geopotential", "land_sea_mask"]].assign(temperature=fields["geopotential"]).sel(level=[500, 850])
    for given, message in ((fields.isel(time=[0]), "needs 2 state"), (fields.drop_vars("land_sea_mask"), "land_sea_mask")):
        with pytest.raises(WxlabError, match=message) as caught:
            wxlab.forecast(model, given, steps=1)
        assert "\n" not in str(caught.value)


def test_predictions_of_a_stochastic_model_need_random_streams() -> None:
    model = mosaic()
    with pytest.raises(WxlabError, match=r"needs a generator; forecast\(\.\.\., seed=\.\.\.\) gives one"):
        model.predict(windows(model))


RECIPES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"members": 1}, r"members=1 must be a whole number of at least 2, which the fair CRPS needs"),
    ({}, {"loss": "mae"}, r"unknown loss 'mae'; .*\(allowed: crps, mse\)"),
    ({}, {"stage": "tuning"}, r"unknown stage 'tuning'; did you mean 'finetuning'"),
    ({}, {"optimiser": "adam"}, r"unknown optimiser 'adam'; did you mean 'adamw'"),
    ({}, {"lr": 0.0}, r"lr=0\.0 must be positive"),
    ({}, {"channel_weights": "pressure"}, r"unknown channel_weights 'pressure'"),
    ({}, {"channel_weights": {"t2m": 1.0}}, r"unknown channel of channel_weights 't2m'"),
    ({"noise_dim": 0}, {"loss": "crps"}, r"a deterministic mosaic \(noise_dim=0\) has no ensemble for a CRPS; train it with loss='mse'"),
    ({"affine": True}, {}, r"Muon trains matrices alone, and affine norms have vectors; take optimiser='adamw' or affine=False"),
]


@pytest.mark.parametrize(("options", "settings", "message"), RECIPES, ids=lambda value: str(value)[:30])
def test_recipes_that_do_not_fit_are_one_sentence(options: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        EnsembleTraining(mosaic(**options), **settings)
    assert "\n" not in str(caught.value)
