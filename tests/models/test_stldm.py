"""STLDM's network, sampling and recipe: what the authors' numbers do not cover."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from standins import Noise, windows
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from wxlab import create_model, load_checkpoint
from wxlab.attention import capture
from wxlab.checkpoints import save_checkpoint
from wxlab.errors import WxlabError
from wxlab.models.base import Batch, Recipe
from wxlab.models.stldm import PRESETS, STLDM, recipe
from wxlab.models.stldm.attention import Norm, PatchAttention, TemporalAttention
from wxlab.models.stldm.denoiser import ConditionedBlock, ResidualBlock, Sinusoid
from wxlab.models.stldm.recipe import Draws, FirstEstimate, LatentDiffusion, Reconstruction, observed_share, prior_divergence
from wxlab.models.stldm.vae import Gaussian
from wxlab.nn.diffusion import normals_from
from wxlab.nn.drop_path import DropPath
from wxlab.nn.gating import GatedBlock
from wxlab.normaliser import Normaliser, Transform
from wxlab.store import Store, open_store, prepare
from wxlab.trainer import train
from wxlab.training.settings import Settings
from wxlab.training.setup import stages_of


def make(**options: Any) -> STLDM:
    torch.manual_seed(0)
    model = create_model("stldm", "tiny", **options)
    assert isinstance(model, STLDM)
    return model.eval()


def frames(model: STLDM, batch: int = 2, count: int | None = None) -> Tensor:
    shape = (batch, count or model.spec.history, len(model.spec.channels), *model.spec.grid.shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- sizes


@pytest.mark.parametrize(
    ("preset", "temporal", "count"),
    [
        ("sevir", True, 83_843_105),
        ("hko7", True, 80_980_769),
        ("meteonet", True, 80_980_769),
        ("hko7", False, 79_977_441),
        ("sevir", False, 82_839_777),
    ],
)
def test_parameter_counts_are_the_published_ones(preset: str, temporal: bool, count: int) -> None:
    with torch.device("meta"):
        model = create_model("stldm", preset, temporal=temporal)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert isinstance(model, STLDM)
    if preset == "hko7" and temporal:
        parts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("vae", "translator", "denoiser")}
        assert parts == {"vae": 93_345, "translator": 38_606_432, "denoiser": 42_280_992}
        assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 2_097_664


def test_presets_have_the_published_frames() -> None:
    with torch.device("meta"):
        specs = {name: create_model("stldm", name).spec for name in PRESETS}
    found = {name: (s.history, s.horizon, s.step, s.grid.shape, s.multiples) for name, s in specs.items()}
    assert found["sevir"] == (13, 12, 300, (128, 128), (64, 64))
    assert found["hko7"] == (5, 20, 360, (128, 128), (64, 64))
    assert found["meteonet"] == (5, 20, 300, (128, 128), (64, 64))
    assert found["demo"][3] == (64, 64)
    assert all(s.stochastic == "diffusion" and s.forcing == () and s.static == () for s in specs.values())
    assert create_model("stldm", forcing=("year_progress_sin",), static=("land_sea_mask",)).spec.forcing == ()


@pytest.mark.parametrize("options", [{"channels": ("a", "b")}, {"N_S": 4, "grid": (32, 16)}, {"horizon": 1}, {"chs_mult": [1]}], ids=str)
def test_other_sizes_work(options: dict[str, Any]) -> None:
    model = make(**options)
    out = model(frames(model), stream())
    assert out.shape == (2, model.spec.horizon, len(model.spec.channels), *model.spec.grid.shape)
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (12, 16)}, r"12 rows, and this model needs a multiple of 8; crop or regrid to 8 or 16 rows"),
        ({"grid": (16, 7)}, r"7 columns, and this model needs a multiple of 8; crop or regrid to 8 columns"),
        ({"hid_S": 5}, "hid_S=5 must be a positive whole number divisible by 2"),
        ({"N_S": 3}, "N_S=3 must be an even number"),
        ({"patch_size": 3}, "patch_size=3 must be a positive whole number divisible by 2"),
        ({"N_S": "4"}, "N_S='4' must be an even number"),
        ({"chs_mult": []}, r"chs_mult=\[\] must be whole numbers"),
        ({"chs_mult": 4}, "chs_mult=4 must be whole numbers"),
        ({"chs_mult": None}, "chs_mult=None must be whole numbers"),
        ({"chs_mult": [1, True]}, r"chs_mult=\[1, True\] must be whole numbers"),
        ({"hid_T": True}, "hid_T=True must be a positive whole number"),
        ({"heads": 0}, "heads=0 must be a positive whole number"),
        ({"temporal": "no"}, "temporal='no' must be True or False"),
        ({"beta_schedule": "quadratic"}, r"unknown noise schedule 'quadratic' \(allowed: cosine, linear, sigmoid\)"),
        ({"timesteps": 1}, "a noise schedule of 1 steps makes no sense"),
        ({"sampling_steps": 11}, "sampling_steps=11 must be a whole number from 1 to 10"),
        ({"sampling_steps": True}, "sampling_steps=True must be a whole number from 1 to 10"),
        ({"sampling_steps": 2.0}, "sampling_steps=2.0 must be a whole number from 1 to 10"),
        ({"eta": 2}, "eta=2 must lie between 0"),
        ({"eta": "0.5"}, "eta='0.5' must lie between 0"),
        ({"eta": None}, "eta=None must lie between 0"),
        ({"guidance": -1}, "guidance=-1 must be a finite number of at least 0"),
        ({"guidance": math.inf}, "guidance=inf must be a finite number of at least 0"),
        ({"guidance": "1"}, "guidance='1' must be a finite number of at least 0"),
        ({"sampler": "dimm"}, "unknown sampler 'dimm'; did you mean 'ddim'"),
        ({"enhance": 1}, "enhance=1 must be True or False"),
    ],
)
def test_sizes_and_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


# ---- what is read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :1], "1 frames were given, and this STLDM reads 2; give the last 2"),
        (lambda x: x[0], r"frames of shape \(2, 1, 16, 16\) were given; give \[sample, frame, channel, row, column\]"),
        (lambda x: x.expand(-1, -1, 3, -1, -1), "with 1 channel"),
        (lambda x: x[..., :12], "12 columns, and this STLDM needs a multiple of 8; crop or resize"),
        (lambda x: x[:0], r"shape \(0, 2, 1, 16, 16\) were given, and there is nothing in them; give at least one sample"),
        (lambda x: x.double(), "frames are of type float64, and this STLDM reads float32; convert them"),
        (lambda x: (255 * x).to(torch.uint8), "frames are of type uint8, and this STLDM reads float32"),
        (lambda x: 70 * x - 10, "values from -10 to 60, and STLDM reads values from 0 to 1; normalise them"),
        (lambda x: x - 0.5, "values from -0.5"),
        (lambda x: x.masked_fill(x > 0.5, math.nan), r"missing values \(NaN\); fill them"),
        (lambda x: x.masked_fill(x > 0.5, math.inf), "to inf, and STLDM reads values from 0 to 1"),
    ],
)
def test_frames_that_cannot_be_read_are_refused(change: Any, message: str) -> None:
    model = make()
    x = frames(model)
    x[0, 0, 0, 0, 0], x[0, 0, 0, 0, 1] = 0, 1
    with pytest.raises(WxlabError, match=message) as caught:
        model(change(x), stream())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("members", [0, -1, 1.0, True, "2"])
def test_members_are_counted(members: Any) -> None:
    model = make()
    with pytest.raises(WxlabError, match=f"members={members!r} must be a whole number of at least 1"):
        model(frames(model), stream(), members)


@pytest.mark.parametrize(
    "changes",
    [{"eta": "0.5"}, {"eta": None}, {"eta": math.nan}, {"guidance": math.inf}, {"sampling_steps": True}, {"enhance": None}],
    ids=str,
)
def test_other_ways_to_sample_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(WxlabError, match=f"{name}={value!r} must") as caught:
        make().with_sampling(**changes)
    assert "\n" not in str(caught.value)


def test_targets_in_other_units_are_refused_in_training() -> None:
    model = make()
    batch = windows(model)
    assert batch.target is not None
    batch.target = batch.target * 60
    with pytest.raises(WxlabError, match="STLDM reads values from 0 to 1"):
        LatentDiffusion().loss(model, batch, stream())
    batch.target = None
    with pytest.raises(WxlabError, match="without target"):
        LatentDiffusion().loss(model, batch, stream())


def test_rounding_at_the_ends_is_forgiven() -> None:
    model = make()
    x = frames(model)
    x[0, 0, 0, 0, 0], x[0, 0, 0, 0, 1] = -1e-6, 1 + 1e-6
    assert torch.isfinite(model(x, stream())).all()


# ---- the network's parts


def test_what_the_network_is_told_separately_is_what_a_whole_convolution_would_see() -> None:
    block = ConditionedBlock(4, 2, 8).double()
    x, c, modulation = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4, 6, 6), (3, 4, 6, 6), (3, 8)))
    torch.testing.assert_close(
        block.join(x, modulation, block.condition(c)), ResidualBlock.forward(block, torch.cat([x, c], 1), modulation)
    )
    zero = ResidualBlock.forward(block, torch.cat([x, torch.zeros_like(c)], 1), modulation)
    torch.testing.assert_close(block.join(x, modulation, None), zero)
    part = block.condition(c[:2])
    torch.testing.assert_close(block.join(x, modulation, part)[2:], zero[2:])
    torch.testing.assert_close(block.join(x, modulation, part)[:2], block.join(x, modulation, block.condition(c))[:2])


def test_a_step_for_all_and_a_step_for_each_are_the_same() -> None:
    block = ResidualBlock(4, 8, 4, 8).double()
    x, modulation = torch.randn(3, 4, 6, 6, dtype=torch.float64), torch.randn(1, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x, modulation), block(x, modulation.expand(3, -1)))


def test_norms_fall_back_to_one_group() -> None:
    assert ResidualBlock(4, 16, 8, None).block1.norm.num_groups == 8
    assert ResidualBlock(4, 12, 8, None).block1.norm.num_groups == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norms_have_another_epsilon_outside_float32(dtype: torch.dtype) -> None:
    """For tiny values epsilon decides: the result is the value over its root."""
    norm, epsilon = Norm(3).to(dtype), 1e-5 if dtype == torch.float32 else 1e-3
    with torch.no_grad():
        norm.g.copy_(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
    tiny = torch.tensor([-1e-6, 0.0, 1e-6], dtype=dtype)
    expected = tiny.double() * torch.tensor([1, 2, 3]) / math.sqrt(epsilon)
    torch.testing.assert_close(norm.over_channels(tiny.view(1, 1, 3)).double().view(-1), expected, rtol=2e-2, atol=1e-9)
    times = tiny.view(1, 3, 1).expand(1, 3, 3).contiguous()
    torch.testing.assert_close(norm.over_time(times)[0, :, 0].double(), tiny.double() / math.sqrt(epsilon), rtol=2e-2, atol=1e-9)


def test_one_frame_has_nothing_to_attend_to_in_time() -> None:
    layer = TemporalAttention(6, 2, 4, 1)
    x = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(layer(x), x + layer.to_out.bias.view(1, -1, 1, 1))


def test_patches_do_not_see_each_other() -> None:
    layer = PatchAttention(6, 2, 4, 4)
    x = torch.randn(1, 6, 8, 8)
    changed = x.clone()
    changed[..., :4, 4:] += 1
    difference = (layer(changed) - layer(x)).abs().amax((0, 1))
    assert difference[:4, 4:].min() > 0 and difference[4:].max() == 0 and difference[:4, :4].max() == 0


def test_patch_attention_by_its_formula() -> None:
    layer = PatchAttention(6, 2, 4, 2).double()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    normed = layer.norm.over_channels(x.permute(0, 2, 3, 1))
    q, k, v = layer.to_qkv(normed).unflatten(-1, (3, 2, 4)).unbind(-3)  # [n, h, w, heads, dim]
    out = torch.zeros_like(q)
    for i in (0, 2):
        for j in (0, 2):
            place = (slice(None), slice(i, i + 2), slice(j, j + 2))
            rows, keys, values = (part[place].flatten(1, 2) for part in (q, k, v))  # [n, 4, heads, dim]
            context = torch.einsum("nphd,nphe->nhde", keys.softmax(1), values)
            out[place] = torch.einsum("nphd,nhde->nphe", rows.softmax(-1) / 2, context).unflatten(1, (2, 2))
    expected = x + layer.to_out[1].over_channels(layer.to_out[0](out.flatten(-2))).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("layer", [PatchAttention(6, 2, 4, 2), TemporalAttention(6, 2, 4, 3)])
def test_attention_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch, layer: nn.Module) -> None:
    """Results and gradients, with a last piece that is smaller than the others."""
    layer = layer.double()
    x = torch.randn(6, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    whole = layer(x)
    (slope,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr("wxlab.models.stldm.attention.PIECE", 22)
    pieces = layer(x)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces.square().sum(), x)[0], slope)


def test_sinusoid() -> None:
    out = Sinusoid(8)(torch.tensor([0, 3]))
    assert torch.equal(out[0], torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]))
    torch.testing.assert_close(out[1, [0, 3, 4, 7]], torch.tensor([math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]))


def test_frames_without_attention_in_time_are_independent() -> None:
    for temporal in (True, False):
        model = make(temporal=temporal)
        x = torch.randn(1, 3, 4, 8, 8)
        changed = x.clone()
        changed[:, 2] += 1
        t = torch.tensor([4])
        with torch.no_grad():
            same = torch.equal(model.denoiser(changed, t, x)[:, :2], model.denoiser(x, t, x)[:, :2])
        assert same is not temporal


def test_conditions_can_be_kept_for_some_samples() -> None:
    model = make()
    x, condition, t = torch.randn(3, 3, 4, 8, 8), torch.randn(3, 3, 4, 8, 8), torch.tensor([1, 5, 9])
    with torch.no_grad():
        mixed = model.denoiser(x, t, condition, torch.tensor([True, False, True]))
        torch.testing.assert_close(mixed[[0, 2]], model.denoiser(x, t, condition)[[0, 2]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1], model.denoiser(x, t, None)[1], rtol=1e-4, atol=1e-5)


def test_initial_weights() -> None:
    """Blocks of the Translator by fan-out without bias, torch's own elsewhere; drop path falls from 1 % to nothing."""
    model = make(hid_T=64, N_T=3)
    blocks = [module for module in model.translator.modules() if isinstance(module, GatedBlock)]
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0.01, 0.005, 0.0])
    assert blocks[1].mlp.fc1.out_channels == 512
    assert blocks[1].mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.05)
    assert blocks[1].attn.proj_1.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert not blocks[1].attn.proj_1.bias.any() and not blocks[1].mlp.fc2.bias.any()
    assert torch.equal(blocks[1].layer_scale_1, torch.full((64,), 1e-2))
    bound = 1 / math.sqrt(64)
    assert 0.9 * bound < model.translator.enc[2].reduction.weight.abs().max() <= bound
    assert model.translator.enc[2].reduction.bias.any()
    conv = model.denoiser.mid.block1.block1.proj
    assert 0.95 / math.sqrt(9 * 16) < conv.weight.abs().max() <= 1 / math.sqrt(9 * 16)


# ---- sampling


def test_sampling_can_be_changed_and_is_saved(tmp_path: Any) -> None:
    model = make()
    model.normaliser = Normaliser({"rain_rate": Transform("dbz", 5.0, 55.0)})
    x, plain = frames(model), make()(frames(model), stream())
    changed = model.with_sampling(sampling_steps=2, guidance=0.0)
    assert changed.config["sampling_steps"] == 2 and model.config["sampling_steps"] == 4
    assert changed.vae is model.vae and changed.name == "stldm" and changed.normaliser is model.normaliser
    assert torch.equal(model(x, stream()), plain) and not torch.equal(changed(x, stream()), plain)
    save_checkpoint(changed, tmp_path / "model")
    again = load_checkpoint(tmp_path / "model.safetensors")
    assert again.config == changed.config
    assert torch.equal(again(x, stream()), changed(x, stream()))
    with pytest.raises(WxlabError, match="unknown sampling option 'steps'; did you mean 'sampling_steps'"):
        model.with_sampling(steps=3)
    with pytest.raises(WxlabError, match="sampling_steps=11 must be"):
        model.with_sampling(sampling_steps=11)


def test_auto_is_ddim_in_few_steps_and_ancestral_in_all() -> None:
    model, x = make(), frames(make())
    few = {"sampling_steps": 4}
    assert torch.equal(model.with_sampling(sampler="ddim", **few)(x, stream()), model(x, stream()))
    whole = model.with_sampling(sampling_steps=10)(x, stream())
    assert torch.equal(model.with_sampling(sampler="ancestral", **few)(x, stream()), whole)
    assert not torch.equal(model.with_sampling(sampler="ddim", sampling_steps=10)(x, stream()), whole)


def test_the_first_estimate_belongs_to_the_member() -> None:
    model, x = make(), frames(make())
    first = model.with_sampling(enhance=False)(x, stream(3))
    draws = normals_from(stream(3), x)
    with torch.no_grad():
        past = model.encode(x)
        future = model.translator(past.at(draws(past.mean.shape[1:])))
        torch.testing.assert_close(first, model.vae.decode(future.at(draws(future.mean.shape[1:]))))
        enhanced = model.vae.decode(model.sample(future.mean, draws))
    torch.testing.assert_close(model(x, stream(3)), enhanced)


def test_means_in_place_of_draws() -> None:
    model, x = make(deterministic=True), frames(make())
    first = model.with_sampling(enhance=False)
    assert torch.equal(first(x, stream(0)), first(x, stream(1)))
    assert not torch.equal(model(x, stream(0)), model(x, stream(1)))


def test_guidance_is_a_step_away_from_the_unconditioned() -> None:
    model, x = make(), torch.randn(2, 3, 4, 8, 8)
    condition, start = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 8, 8)

    def sampled(guidance: float) -> Tensor:
        return model.with_sampling(sampling_steps=1, guidance=guidance).sample(condition, normals_from(None, x), start)

    t = torch.full((2,), 9)
    with torch.no_grad():
        signal, noise = model.schedule.signal[-1], model.schedule.noise[-1]
        for w in (0.0, 1.0, 2.5):
            v = (1 + w) * model.denoiser(start, t, condition) - w * model.denoiser(start, t, None)
            torch.testing.assert_close(sampled(w), signal * start - noise * v, rtol=1e-4, atol=1e-5)


def test_members_are_the_streams_own() -> None:
    model = make()
    batch = windows(model, 2)
    together: Any = Noise(2, 3)
    one: Any = Noise(1, 1, first=4)  # of the second sample and second member
    with torch.no_grad():
        ensemble = model.predict(batch, 3, together)
        alone = model.predict(Batch(batch.history[1:], None, batch.time[1:]), 1, one)
    assert ensemble.shape == (2, 3, 3, 1, 16, 16)
    torch.testing.assert_close(alone[0, 0], ensemble[1, 1], rtol=1e-4, atol=1e-5)


def test_no_gradient_is_kept_and_the_frames_are_left_alone() -> None:
    model = make(guidance=1.0, eta=0.5)
    x = frames(model).requires_grad_()
    before = x.detach().clone()
    out = model(x, stream())
    assert not out.requires_grad and torch.equal(x.detach(), before)


def most_allocated(run: Callable[[], object]) -> int:
    """Bytes that live at once at most while ``run`` runs, above what lived before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def test_memory_does_not_grow_with_the_steps() -> None:
    """Peak bytes of 3 and of 9 steps differ by no more than the table of each step, which is far less than a latent."""
    model = make(timesteps=50, guidance=1.0, grid=(32, 32))
    condition = start = torch.randn(2, 3, 4, 16, 16)
    normals = normals_from(stream(), condition)
    table = sum(rows.nbytes for rows in model.denoiser.modulation(torch.tensor([0])).values())
    few, many = (
        most_allocated(lambda n=n: model.with_sampling(sampling_steps=n).sample(condition, normals, start))  # type: ignore[misc]
        for n in (3, 9)
    )
    assert few > 10 * start.nbytes and abs(many - few) <= 6 * table < 6 * start.nbytes


def test_attention_can_be_read() -> None:
    model = make(guidance=0.0)
    batch = windows(model)
    before = model.predict(batch, 1, Noise(2, 1))  # type: ignore[arg-type]
    maps = capture(model, batch)
    assert torch.equal(model.predict(batch, 1, Noise(2, 1)), before)  # type: ignore[arg-type]
    assert {str(name).split("_")[0] for name in maps.data_vars} == {"temporal", "spatial"}
    spatial = maps["spatial"]
    assert spatial.shape == (4, 2, 3, 2, 16, 16)  # four steps, two samples, three frames, two heads, 4 x 4 points
    for array in maps.data_vars.values():
        np.testing.assert_allclose(array.sum(array.dims[-1]), 1, rtol=1e-5)
        assert array.sizes["sample"] == 2
    temporal = [name for name in maps.data_vars if str(name).startswith("temporal")]
    places = {str(place) for name in temporal for place in maps[f"module_{name}"].values}
    assert places == {f"denoiser.{part}.temporal.tap" for part in ("downs.0", "downs.1", "mid", "ups.0", "ups.1")}
    assert any(maps[name].shape[-2:] == (3, 3) and maps[name].shape[2] == 64 for name in temporal)
    guided = capture(model.with_sampling(guidance=1.0), batch)
    assert guided["spatial"].sizes["sample"] == 2 and guided["spatial"].shape[0] == 8  # with and without condition in turn


def test_reading_attention_changes_nothing() -> None:
    model = make(guidance=1.0)
    x = frames(model)
    plain = model(x, stream())
    handles = [module.register_forward_hook(lambda *_: None) for name, module in model.named_modules() if name.endswith("tap")]
    read = model(x, stream())
    for handle in handles:
        handle.remove()
    assert torch.equal(read, plain)


# ---- losses


def test_divergence_by_hand() -> None:
    one = Gaussian(torch.tensor([1.0, 0.0]), torch.tensor([0.0, math.log(2)]))
    assert float(one.divergence()) == pytest.approx(0.5 * (0.5 + (1 - math.log(2)) / 2), rel=1e-6)
    assert float(Gaussian(torch.zeros(3), torch.zeros(3)).divergence()) == 0
    torch.testing.assert_close(one.at(torch.tensor([1.0, 2.0])), torch.tensor([2.0, 2 * math.sqrt(2)]))


def losses(model: STLDM, batch: Batch, seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    return LatentDiffusion(**settings).loss(model, batch, stream(seed))[1]


def test_the_divergence_counts_in_the_reconstruction() -> None:
    model, batch = make(), windows(make())
    with torch.no_grad():
        without, heavy = (losses(model, batch, kl=weight)["reconstruction"] for weight in (0.0, 1.0))
        frames_ = torch.cat([batch.history, batch.target], 1)  # type: ignore[list-item]
        torch.testing.assert_close(heavy - without, model.encode(frames_).divergence())


def test_the_prior_reaches_the_encoder_and_the_diffusion_does_not() -> None:
    def gradient(**settings: Any) -> Tensor | None:
        model = make().double()
        batch = windows(model).to("cpu", torch.float64)
        both = {"reconstruction": 0.0, "constraint": 0.0, "diffusion": 0.0, "prior": 0.0, **settings}
        # without a condition nothing but the target's latents could carry a gradient to the encoder
        made = LatentDiffusion(**both, drop_condition=0.999)
        made.loss(model, batch, stream())[0].backward()
        return model.vae.encoder.enc[0].conv.conv.weight.grad

    prior = gradient(prior=1.0)
    assert prior is not None and prior.abs().max() > 0
    assert gradient(diffusion=1.0) is None


def test_prior_is_small_and_grows_with_the_signal_left() -> None:
    model = make().double()
    z = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    alpha = model.schedule.alphas[-1]
    expected = 0.5 * (alpha * float(z.square().mean()) + (1 - alpha) - 1 - math.log(1 - alpha))
    assert float(prior_divergence(model, z)) == pytest.approx(expected, rel=1e-4)


def test_weights_of_the_losses() -> None:
    model, batch = make(), windows(make())
    total, parts = LatentDiffusion(constraint=0.5, reconstruction=2.0).loss(model, batch, stream())
    torch.testing.assert_close(
        total.detach(), 2 * parts["reconstruction"] + 0.5 * parts["constraint"] + parts["diffusion"] + parts["prior"]
    )
    assert set(losses(model, batch, constraint=0.0)) == {"diffusion", "reconstruction", "prior"}
    snr, uniform = (losses(model, batch, weighting=kind)["diffusion"] for kind in ("snr", "uniform"))
    assert 0 < snr < uniform


def test_without_the_constraint_the_translator_runs_once() -> None:
    for weight, runs in ((1.0, 2), (0.0, 1)):
        model = make().train()
        losses(model, windows(model), constraint=weight)
        assert int(model.translator.enc[0].block.norm1.num_batches_tracked) == runs


class Noted(LatentDiffusion):
    """Notes what condition the denoiser would have got."""

    def _errors(self, network: STLDM, z: Tensor, t: Tensor, eps: Tensor, condition: Any, keep: Any = None, observed: Any = None) -> Tensor:
        self.seen = (condition is not None, keep)
        return z.flatten(1).mean(1)


def test_conditions_are_dropped_as_often_as_asked() -> None:
    model, off = make(), {"constraint": 0.0, "reconstruction": 0.0, "prior": 0.0}
    batch = windows(model, 4)
    per_batch, per_sample = Noted(**off), Noted(**off, drop_per="sample", drop_condition=0.3)
    seen: list[Any] = []
    kept: list[Tensor] = []
    with torch.no_grad():
        for seed in range(150):
            per_batch.loss(model, batch, stream(seed))
            seen.append(per_batch.seen)
        for seed in range(50):
            per_sample.loss(model, batch, stream(seed))
            whole, keep = per_sample.seen
            assert whole and keep is not None and keep.shape == (4,)
            kept.append(keep)
    assert 0.78 < np.mean([whole for whole, _ in seen]) < 0.92 and all(keep is None for _, keep in seen)
    assert 0.6 < float(torch.stack(kept).float().mean()) < 0.8


def test_unobserved_points_count_in_no_loss_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    batch = windows(model)
    mask = torch.ones(2, 5, 1, 16, 16, dtype=torch.bool)
    mask[..., 8:] = False
    masked = Batch(batch.history, batch.target, batch.time, mask=mask)
    changed = copy.deepcopy(masked)
    assert changed.target is not None and masked.target is not None
    changed.target[..., 8:] = 1 - changed.target[..., 8:]
    with torch.no_grad():
        assert losses(model, changed)["constraint"] == losses(model, masked)["constraint"] != losses(model, batch)["constraint"]
        kept, other = (FirstEstimate().validation(model, b, Noise(2, 1)) for b in (masked, changed))  # type: ignore[arg-type]
        assert torch.equal(kept, other)
        monkeypatch.setattr(model.vae, "decode", lambda latents: torch.zeros(*latents.shape[:2], 1, 16, 16))
        observed = torch.cat([masked.history, masked.target], 1)[..., :8].square().mean()
        torch.testing.assert_close(losses(model, masked, kl=0.0)["reconstruction"], observed)


@torch.no_grad()
@pytest.mark.parametrize("weighting", ["snr", "uniform"])
def test_missing_frames_count_in_no_diffusion_loss(weighting: Any) -> None:
    """Frames that do not see each other: what stands in a missing one changes nothing, and the loss is the mean over the others."""
    model, made = make(temporal=False), LatentDiffusion(weighting=weighting)
    batch = windows(model)
    mask = torch.ones(2, 5, 1, 16, 16, dtype=torch.bool)
    mask[0, 3], mask[1, 2:4] = False, False  # of the targets frame 1, and frames 0 and 1
    masked = Batch(batch.history, batch.target, batch.time, mask=mask)
    changed = copy.deepcopy(masked)
    assert batch.target is not None and changed.target is not None
    changed.target[0, 1], changed.target[1, :2] = 0, 0
    kept = losses(model, masked, weighting=weighting)["diffusion"]
    assert losses(model, changed, weighting=weighting)["diffusion"] == kept != losses(model, batch, weighting=weighting)["diffusion"]

    draws = Draws(stream(), batch.history.device, batch.history.dtype)
    past, z = model.encode(batch.history), model.encode(batch.target).mean
    condition = model.translator(past.at(draws.normal(past.mean))).mean
    t = draws.times(2, 10)
    draws.uniform(1)
    eps = draws.normal(z)
    error = (model.denoiser(model.schedule.noisy(z, t, eps), t, condition) - model.schedule.velocity(z, t, eps)).square()
    if weighting == "snr":
        error = error * model.schedule.signal[t].square().view(2, 1, 1, 1, 1)
    torch.testing.assert_close(kept, torch.cat([error[0, [0, 2]], error[1, 2:]]).mean())

    scores, others = (made.validation(model, b, Noise(2, 1)) for b in (masked, changed))  # type: ignore[arg-type]
    assert torch.equal(scores, others)
    nothing = Batch(batch.history, batch.target, batch.time, mask=torch.zeros_like(mask))
    assert float(losses(model, nothing)["diffusion"]) == 0
    whole = Batch(batch.history, batch.target, batch.time, mask=torch.ones_like(mask))
    torch.testing.assert_close(losses(model, whole)["diffusion"], losses(model, batch)["diffusion"])


def test_a_latent_counts_by_what_was_observed_of_its_patch() -> None:
    z, mask = torch.zeros(1, 1, 4, 2, 2), torch.zeros(1, 1, 2, 8, 8, dtype=torch.bool)
    mask[..., :4, :4], mask[0, 0, 0, 4:, 6:] = True, True
    share = observed_share(mask, z)
    assert share is not None and share.tolist() == [[[[1, 0], [0, 0.25]]]]
    assert observed_share(None, z) is None


def test_drop_paths_come_from_the_generator() -> None:
    model = make(N_T=3).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.5
    batch = windows(model, 8)

    def constraint(seed: int, around: int) -> float:
        torch.manual_seed(around)
        return float(losses(copy.deepcopy(model), batch, seed)["constraint"])

    assert constraint(1, 0) == constraint(1, 9) and constraint(1, 0) != constraint(2, 0)


# ---- stages, optimiser, validation


def test_optimiser_and_clipping_are_the_authors() -> None:
    model = make()
    made = recipe(model)
    assert isinstance(made, LatentDiffusion) and made.clip == 1.0 and made.unused_parameters
    optimiser = made.optimiser(model)
    settings = optimiser.defaults
    assert type(optimiser) is torch.optim.AdamW
    assert (settings["lr"], settings["betas"], settings["eps"], settings["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0.01)
    count = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
    assert count == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.denoiser.conditions[-1].parameters())


def test_short_runs_warm_up_in_a_tenth_of_their_steps() -> None:
    made = LatentDiffusion(lr=1e-3)
    assert made.schedule(0, 300) == pytest.approx(0.1) and made.schedule(30, 300) == 1
    assert made.schedule(299, 300) < 0.01 and made.schedule(300, 300) == pytest.approx(1e-3)
    assert made.schedule(2000, 200_000) == 1 and made.schedule(1999, 200_000) < 1


def parts_that_learn(model: STLDM, made: Recipe) -> set[str]:
    made.optimiser(model)
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("strategy", "freeze", "kinds", "learn"),
    [
        ("end_to_end", False, [LatentDiffusion], [{"vae", "translator", "denoiser"}]),
        ("pretrained_vae", False, [Reconstruction, LatentDiffusion], [{"vae"}, {"vae", "translator", "denoiser"}]),
        ("pretrained_vae", True, [Reconstruction, LatentDiffusion], [{"vae"}, {"translator", "denoiser"}]),
        ("pretrained_backbone", False, [FirstEstimate, LatentDiffusion], [{"vae", "translator"}, {"vae", "translator", "denoiser"}]),
        ("pretrained_backbone", True, [FirstEstimate, LatentDiffusion], [{"vae", "translator"}, {"denoiser"}]),
    ],
)
def test_stages_of_the_strategies(strategy: Any, freeze: bool, kinds: list[type], learn: list[set[str]]) -> None:
    model = make().train()
    settings = Settings(recipe={"strategy": strategy, "freeze": freeze, "drop_per": "sample"}, lr=3e-3)
    stages = stages_of(model, settings)
    assert [type(stage) for stage in stages] == kinds and all(stage.lr == 3e-3 for stage in stages)
    for stage, expected in zip(stages, learn, strict=True):
        assert parts_that_learn(model, stage) == expected
        before = copy.deepcopy(model.state_dict())
        optimiser = stage.optimiser(model)
        batch = windows(model)
        loss, logs = stage.loss(model.train(), batch, stream())
        loss.backward()
        optimiser.step()
        model.zero_grad()
        changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == expected and logs
        model.eval()
        with torch.no_grad():
            scores = stage.validation(model, batch, Noise(2, 1))  # type: ignore[arg-type]
            assert torch.equal(scores, stage.validation(model, batch, Noise(2, 1)))  # type: ignore[arg-type]
        assert scores.shape == (2,) and torch.isfinite(scores).all()


def radar_store(model: STLDM, path: Path) -> Store:
    """Rain on the model's grid in which a short run can be trained: 16 frames."""
    grid, steps = model.spec.grid, np.arange(16) * np.timedelta64(model.spec.step, "s")
    rain = np.random.default_rng(0).gamma(1.0, 2.0, (16, *grid.shape)).astype(np.float32)
    coordinates = {"time": np.datetime64("2020-06-01", "ns") + steps, **dict(zip(grid.dims, (list(grid.y), list(grid.x)), strict=True))}
    data = xr.Dataset({"rain_rate": (("time", *grid.dims), rain)}, coordinates)
    splits = {"train": 0.6, "validation": 0.4}
    return open_store(prepare(data, path, normalisation={"rain_rate": {"kind": "dbz", "low": 5, "high": 60}}, splits=splits))


def trained(model: STLDM, *parts: str) -> STLDM:
    """Weights that look as if they had been trained."""
    with torch.no_grad():
        for part in parts:
            for name, parameter in getattr(model, part).named_parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=stream(len(name))))
    return model


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(("strategy", "parts"), [("pretrained_vae", {"vae"}), ("pretrained_backbone", {"vae", "translator"})])
def test_parts_that_are_trained_already_are_not_trained_first(strategy: Any, parts: set[str], freeze: bool, tmp_path: Path) -> None:
    """One stage, in which the given parts stay to the last bit where they are frozen, BatchNorm's statistics too."""
    giver = trained(make(), *parts)
    store = radar_store(giver, tmp_path / "store")
    model = create_model("stldm", channels=store.channels, grid=store.grid, step=store.step, base_ch=16)  # another denoiser
    assert isinstance(model, STLDM)
    for part in parts:
        getattr(model, part).load_state_dict(getattr(giver, part).state_dict())
    before = copy.deepcopy(model.state_dict())
    run = tmp_path / "run"
    how = {"strategy": strategy, "freeze": freeze, "pretrained": True}
    train(model, store, run_dir=run, steps=2, batch_size=2, recipe=how, progress=False, device="cpu")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {0} and lines[-1]["step"] == 2 and "diffusion" in lines[-1]
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"vae", "translator", "denoiser"} - (parts if freeze else set())
    again = load_checkpoint(run)
    last = recipe(again, **how)  # what came from a checkpoint is trained, all of it
    assert isinstance(last, LatentDiffusion) and ("vae" in last.trains) is not freeze


def test_parts_as_they_were_initialised_are_not_taken_for_trained(tmp_path: Path) -> None:
    with pytest.raises(WxlabError, match="whose vae is trained, and this one's is as it was initialised; give train a model"):
        recipe(make(), strategy="pretrained_vae", pretrained=True)
    with pytest.raises(WxlabError, match="whose translator is trained"):
        recipe(trained(make(), "vae"), strategy="pretrained_backbone", pretrained=True)
    assert isinstance(recipe(trained(make(), "vae"), strategy="pretrained_vae", pretrained=True), LatentDiffusion)
    store, how = radar_store(make(), tmp_path / "store"), {"strategy": "pretrained_vae", "pretrained": True}
    with pytest.raises(WxlabError, match="as it was initialised"):
        train("stldm", store, run_dir=tmp_path / "run", preset="tiny", steps=1, recipe=how, progress=False)


@torch.no_grad()
def test_what_is_not_trained_does_not_choose_the_best() -> None:
    """A loss of weight 0 is out of the selection: where the first estimate is spoilt, the score without a constraint stays."""
    model, batch = make(), windows(make())
    noise: Any = lambda: Noise(2, 1)  # noqa: E731

    def scores(**weights: float) -> Tensor:
        return LatentDiffusion(**weights).validation(model, batch, noise())

    both, alone, first = scores(), scores(constraint=0.0), scores(diffusion=0.0)
    assert torch.equal(first, FirstEstimate().validation(model, batch, noise()))
    assert (alone > first).all() and (both > first).all() and (both < alone).all()
    neither = scores(constraint=0.0, diffusion=0.0)
    assert torch.equal(neither, Reconstruction().validation(model, batch, noise()))
    model.vae.decoder.readout.bias.add_(1)
    assert torch.equal(scores(constraint=0.0), alone) and not torch.equal(scores(), both) and not torch.equal(scores(diffusion=0.0), first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "pretrained"}, "unknown strategy 'pretrained'"),
        ({"freeze": True}, "freeze=True needs a first stage"),
        ({"freeze": "yes", "strategy": "pretrained_vae"}, "freeze='yes' must be True or False"),
        ({"pretrained": 1, "strategy": "pretrained_vae"}, "pretrained=1 must be True or False"),
        ({"pretrained": True}, "pretrained=True needs a first stage"),
        ({"constraint": 0, "strategy": "pretrained_backbone"}, "constraint=0 leaves nothing that trains the Translator in the first stage"),
        ({"constraint": 0.0, "strategy": "pretrained_backbone", "freeze": True}, "give a constraint above 0, or strategy 'end_to_end'"),
        ({"reconstruction": 0, "strategy": "pretrained_vae"}, r"the part\(s\) vae have nothing to learn from"),
        ({"diffusion": 0, "strategy": "pretrained_backbone", "freeze": True}, r"with diffusion=0 the part\(s\) denoiser have nothing"),
        ({"constraint": -1}, "constraint=-1 must be a number of at least 0"),
        ({"kl": "a"}, "kl='a' must be a number of at least 0"),
        ({"diffusion": math.nan}, "diffusion=nan must be a number of at least 0"),
        ({"prior": True}, "prior=True must be a number of at least 0"),
        ({"warmup": None}, "warmup=None must be a number of at least 0"),
        ({"drop_condition": 1.0}, "drop_condition=1.0 must be at least 0 and less than 1"),
        ({"drop_condition": "often"}, "drop_condition='often' must be at least 0 and less than 1"),
        ({"drop_per": "pixel"}, "unknown drop_per 'pixel'"),
        ({"weighting": "snr5"}, "unknown weighting 'snr5'; did you mean 'snr'"),
        ({"lr": 0}, "lr=0 must be a positive number"),
        ({"lr": math.inf}, "lr=inf must be a positive number"),
        ({"clip": 0}, "clip=0 must be a positive number, or None"),
        ({"clip": "1"}, "clip='1' must be a positive number, or None"),
    ],
)
def test_recipe_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        recipe(make(), **settings)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_settings_are_explained() -> None:
    with pytest.raises(WxlabError, match="unknown recipe setting of stldm 'constrain'; did you mean 'constraint'"):
        stages_of(make(), Settings(recipe={"constrain": 1.0}))


def test_an_optimiser_step_with_clipping() -> None:
    """One AdamW step by its formula: with the gradient cut to norm 1, moments of the first step."""
    model = make().double().train()
    batch = windows(model).to("cpu", torch.float64)
    made = LatentDiffusion(lr=1e-2)
    optimiser = made.optimiser(model)
    (made.loss(model, batch, stream())[0] * 1000).backward()
    weight = model.vae.decoder.readout.weight
    before = weight.detach().clone()
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], made.clip or 0.0)
    assert norm > 1
    assert weight.grad is not None
    gradient = weight.grad.clone()
    assert float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()) == pytest.approx(1, rel=1e-5)
    optimiser.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 1e-2 * 0.01) - 1e-2 * gradient / (gradient.abs() + 1e-8))


def test_training_learns_to_move_rain() -> None:
    """A blob that moves: after some steps the first estimate is nearer than the last frame."""
    model = make(hid_S=8, hid_T=32, deterministic=True).train()
    made = LatentDiffusion(lr=1e-2, diffusion=0.0, prior=0.0)
    optimiser, generator = made.optimiser(model), stream()

    def moving(seed: int) -> Batch:
        random = torch.Generator().manual_seed(seed)
        start = torch.randint(2, 10, (8, 2, 1), generator=random)
        t, grid = torch.arange(5), torch.arange(16)
        y, x = (start[:, i] + t * (1 + i) for i in range(2))  # [8, 5]
        distance = (grid[:, None] - y[..., None, None]) ** 2 + (grid - x[..., None, None]) ** 2
        field = torch.exp(-distance / 6).unsqueeze(2)
        return Batch(field[:, :2], field[:, 2:], torch.zeros(8, 5, dtype=torch.int64))

    for step in range(60):
        loss, _ = made.loss(model, moving(step), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    batch = moving(999)
    assert batch.target is not None
    estimate = model.eval().with_sampling(enhance=False)(batch.history, stream())
    error = float((estimate - batch.target).square().mean())
    persistence = float((batch.history[:, -1:] - batch.target).square().mean())
    assert error < 0.6 * persistence
