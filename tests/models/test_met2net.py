"""Met2Net's network and recipe: what the authors' numbers do not cover."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab import create_model
from wxlab.errors import WxlabError
from wxlab.models.base import Batch
from wxlab.models.met2net import PRESETS, Met2Net, TwoStage
from wxlab.nn.attention_tap import AttentionTap
from wxlab.nn.convolution import DepthwiseConv, PointwiseConv
from wxlab.nn.drop_path import DropPath, drop_path_generator
from wxlab.nn.gating import GatedBlock
from wxlab.nn.spatial import Decoder, Encoder


def make(**options: Any) -> Met2Net:
    torch.manual_seed(0)
    model = create_model("met2net", "tiny", **options)
    assert isinstance(model, Met2Net)
    return model


def batch_for(model: Met2Net, size: int = 2, seed: int = 1, mask: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, model.spec.history, len(model.spec.channels), *model.spec.grid.shape)
    x, y = (torch.randn(shape, generator=generator) for _ in range(2))
    return Batch(x, y, torch.zeros(size, 2 * model.spec.history, dtype=torch.int64), mask=mask)


@pytest.mark.parametrize(
    ("preset", "options", "count"),
    [
        ("weatherbench_5p625", {}, 8_698_405),
        ("weatherbench_5p625", {"groups": [2, 1, 1, 1]}, 8_642_629),
        ("weatherbench_5p625", {"channels": list("abcdefgh")}, 8_866_696),
        ("weatherbench_64x128", {}, 9_023_365),
        ("era5_wind", {}, 8_902_276),
        ("mv_mmnist", {}, 34_271_875),
        ("weatherbench_5p625", {"channels": ["in", "out"], "history": 4, "horizon": 4}, 8_398_786),
    ],
)
def test_parameter_counts_are_the_published_ones(preset: str, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = create_model("met2net", preset, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_presets_have_the_published_shapes() -> None:
    assert set(PRESETS) == {"tiny", "demo", "weatherbench_5p625", "weatherbench_64x128", "era5_wind", "mv_mmnist"}
    with torch.device("meta"):
        specs = {name: create_model("met2net", name).spec for name in PRESETS}
    assert specs["weatherbench_5p625"].history == 12 and specs["weatherbench_5p625"].grid.shape == (32, 64)
    assert specs["weatherbench_64x128"].multiples == (4, 4)
    era5 = specs["era5_wind"]
    assert era5.channels[0] == "mean_sea_level_pressure" and era5.grid.shape == (128, 128)
    assert (era5.grid.y[0], era5.grid.y[-1], era5.grid.x[0], era5.grid.x[-1]) == (12.25, 44.0, 110.0, 141.75)
    assert specs["mv_mmnist"].horizon == 10 and specs["mv_mmnist"].grid.kind == "xy"


VARIANTS: list[dict[str, Any]] = [{"N_S": 4}, {"block": "gsta"}, {"groups": [2, 1]}, {"live_gate": True}, {"channels": ["only"]}]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_variants_forecast_and_every_live_parameter_learns(options: dict[str, Any]) -> None:
    model = make(drop_path=0.0, **options).train()
    recipe = TwoStage(model)
    batch = batch_for(model)
    assert model(batch.history).shape == batch.history.shape
    loss, _ = recipe.loss(model, batch, torch.Generator())
    loss.backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    star = options.get("block") == "gsta"
    assert all(".spatial_gating_unit.fc." in name for name in dead)
    assert len(dead) == (0 if star or options.get("live_gate") else 2 * model.config["N_T"])
    assert any(".fc." in name for name, _ in model.named_parameters()) is not star


def test_deeper_encoders_halve_the_grid_twice() -> None:
    encoder, decoder = Encoder(3, 8, 4), Decoder(8, 3, 4)
    latent, first = encoder(torch.randn(2, 3, 16, 32))
    assert latent.shape == (2, 8, 4, 8) and first.shape == (2, 8, 16, 32)
    assert decoder(latent, first).shape == (2, 3, 16, 32)
    strides = [stage.conv.conv.stride[0] for stage in encoder.enc]
    assert strides == [1, 2, 1, 2]
    assert [isinstance(stage.conv.conv, nn.Sequential) for stage in decoder.dec] == [True, False, True, False]


def test_gated_star_block_follows_its_formula() -> None:
    torch.manual_seed(2)
    block = GatedBlock(8, kind="gsta").double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.uniform_(-0.5, 0.5)
    y = torch.randn(3, 8, 7, 9, dtype=torch.float64)
    unit, attn, mlp = block.attn.spatial_gating_unit, block.attn, block.mlp

    def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.padding, dilation=layer.dilation, groups=layer.groups)

    h = (y - block.norm1.running_mean.view(1, -1, 1, 1)) / torch.sqrt(block.norm1.running_var.view(1, -1, 1, 1) + 1e-5)
    h = h * block.norm1.weight.view(1, -1, 1, 1) + block.norm1.bias.view(1, -1, 1, 1)
    f = conv(conv(conv(F.gelu(conv(h, attn.proj_1)), unit.conv0), unit.conv_spatial), unit.conv1)
    y1 = y + block.layer_scale_1.view(1, -1, 1, 1) * (conv(f[:, :8] * torch.sigmoid(f[:, 8:]), attn.proj_2) + h)
    m = conv(F.gelu(conv(conv(block.norm2(y1), mlp.fc1), mlp.dwconv.dwconv)), mlp.fc2)
    torch.testing.assert_close(block(y), y1 + block.layer_scale_2.view(1, -1, 1, 1) * m, rtol=1e-10, atol=1e-12)
    assert unit.conv0.weight.shape == (8, 1, 5, 5) and unit.conv_spatial.weight.shape == (8, 1, 7, 7)
    assert unit.conv_spatial.dilation == (3, 3)


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 4, 16, 32), (3, 4, 9, 9), (1, 4, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_interleaved_convolution_equals_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Output, gradient of the input, of weight and bias."""
    torch.manual_seed(0)
    conv = DepthwiseConv(4, 7, dilation=3).to(dtype)
    reference = nn.Conv2d(4, 4, 7, padding=9, dilation=3, groups=4).to(dtype)
    reference.load_state_dict(conv.state_dict())
    x = torch.randn(shape, dtype=dtype)
    weights = torch.randn(shape, dtype=dtype)
    results = []
    for layer in (conv, reference):
        mine = x.clone().requires_grad_()
        out = layer(mine)
        (out * weights).sum().backward()
        results.append((out.detach(), mine.grad, layer.weight.grad, layer.bias.grad))
    rtol, atol = (1e-11, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_interleaved_convolution_has_second_derivatives() -> None:
    conv = DepthwiseConv(2, 3, dilation=2).double()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: torch.func.functional_call(conv, {"weight": weight}, (x,)), (x, conv.weight))


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format], ids=str)
def test_pointwise_convolution_keeps_values_and_memory_order(memory: torch.memory_format) -> None:
    conv = PointwiseConv(6, 5)
    x = torch.randn(2, 6, 4, 3).contiguous(memory_format=memory)
    out = conv(x)
    torch.testing.assert_close(out, F.conv2d(x, conv.weight, conv.bias))
    assert out.is_contiguous(memory_format=memory)


def test_attention_weights_are_what_a_hook_reads() -> None:
    model = make(groups=[2, 1]).eval()
    taps = [module for module in model.modules() if isinstance(module, AttentionTap)]
    seen: list[Tensor] = []
    for tap in taps:
        assert tap.axes == ("head", "target", "source")
        tap.register_forward_hook(lambda module, given, out: seen.append(out))
    model(batch_for(model).history)
    assert len(seen) == model.config["N_T"] and model.groups == (2, 1)
    for weights in seen:
        assert weights.shape == (2, 8, 2, 2)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8, 2))


def test_attention_mixes_samples_never_and_variables_always() -> None:
    model = make().eval()
    x = batch_for(model, 3).history
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[:, :, 0] += 1
    assert (model(changed) - model(x))[:, :, 2].abs().max() > 1e-6


def test_initial_weights() -> None:
    """Stages truncated normal 0.02, block convolutions by fan-out, torch's own elsewhere; all layers of the translator equal."""
    model = make(hid_S=16, hid_T=64, N_T=3, N_S=4)
    for stage in [*model.encoders[0].enc, *model.decoders[0].dec]:
        conv = stage.conv.conv[0] if isinstance(stage.conv.conv, nn.Sequential) else stage.conv.conv
        assert not conv.bias.any()
        if conv.weight.numel() > 1000:
            assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    first, *others = (layer.state_dict() for layer in model.translator.layers)
    assert all(torch.equal(value, other[key]) for other in others for key, value in first.items())
    assert model.translator.layers[0].block.mlp.fc1.weight is not model.translator.layers[1].block.mlp.fc1.weight
    block = model.translator.layers[0].block
    assert block.mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.05)
    assert block.mlp.dwconv.dwconv.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.1)
    assert not block.mlp.fc2.bias.any()
    bound = 1 / math.sqrt(64)  # torch's default is uniform within 1 / sqrt(fan in)
    query = model.translator.layers[0].attn_1.q_Conv[0]
    for conv in (block.attn.proj_1, block.attn.spatial_gating_unit.conv1, query, model.translator.conv2):
        assert 0.9 * bound < conv.weight.abs().max().item() <= bound
    assert block.attn.proj_1.bias.any()
    assert torch.equal(block.layer_scale_1, torch.full((64,), 1e-2)) and torch.equal(block.layer_scale_2, torch.full((64,), 1e-2))
    assert not torch.equal(model.encoders[0].enc[1].conv.conv.weight, model.encoders[1].enc[1].conv.conv.weight)
    star = make(hid_T=64, block="gsta").translator.layers[0].block
    assert star.attn.proj_1.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05) and not star.attn.proj_1.bias.any()


def test_copies_start_equal_and_belong_to_the_recipe() -> None:
    model = make()
    recipe = TwoStage(model)
    for part in ("encoders", "translator", "decoders"):
        mine, theirs = getattr(recipe, part).state_dict(), getattr(model, part).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    assert not any(parameter.requires_grad for parameter in recipe.parameters())
    assert not {id(p) for p in recipe.parameters()} & {id(p) for p in model.parameters()}


def test_adam_and_half_cosine() -> None:
    model = make()
    recipe = TwoStage(model, lr=2e-3, final_lr=1e-6)
    optimiser = recipe.optimiser(model)
    assert type(optimiser) is torch.optim.Adam
    settings = optimiser.defaults
    assert (settings["lr"], settings["betas"], settings["eps"], settings["weight_decay"]) == (2e-3, (0.9, 0.999), 1e-8, 0)
    total = 50
    for step in (0, 1, 10, 25, 49, 50):
        expected = 1e-6 + 0.5 * (2e-3 - 1e-6) * (1 + math.cos(math.pi * step / total))
        assert 2e-3 * recipe.schedule(step, total) == pytest.approx(expected, rel=1e-12)


def train(model: Met2Net, recipe: TwoStage, steps: int, micro: int = 1) -> list[float]:
    optimiser, losses = recipe.optimiser(model), []
    model.train()
    for step in range(steps):
        for part in range(micro):
            loss, _ = recipe.loss(model, batch_for(model, seed=step), torch.Generator().manual_seed(step * micro + part))
            (loss / micro).backward()
        optimiser.step()
        optimiser.zero_grad()
        recipe.after_step(model, step)
        losses.append(loss.item())
    return losses


def test_released_copies_are_the_network_and_paper_copies_lag() -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    released, paper = TwoStage(model, alpha=0.5), TwoStage(model, alpha=0.5, ema_encdec="momentum")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    name = "0.enc.0.conv.conv.weight"
    for recipe, share in ((released, 1.0), (paper, 0.5)):
        recipe.loss(model, batch_for(model), torch.Generator())
        recipe.after_step(model, 0)
        torch.testing.assert_close(recipe.encoders.state_dict()[name], before[f"encoders.{name}"] + share)
        torch.testing.assert_close(recipe.translator.state_dict()["conv1.weight"], before["translator.conv1.weight"] + 0.5)
        running = recipe.translator.state_dict()["layers.0.block.norm1.num_batches_tracked"]
        assert running == 1  # buffers are gathered, not averaged


def test_copies_move_once_per_optimiser_step() -> None:
    """With gradient accumulation too: two equal micro-batches make one move."""
    moved = []
    for micro in (1, 2):
        model = make(drop_path=0.0)
        recipe = TwoStage(model, alpha=0.5, ema_encdec="momentum")
        with torch.no_grad():
            model.translator.conv1.weight.add_(1.0)
            model.decoders[0].readout.weight.add_(1.0)
        train(model, recipe, 1, micro)
        moved.append((recipe.translator.conv1.weight.clone(), recipe.decoders[0].readout.weight.clone()))
    for one, two in zip(*moved, strict=True):
        assert torch.equal(one, two)


def test_validation_changes_nothing() -> None:
    model = make()
    recipe = TwoStage(model, ema_encdec="momentum")
    train(model, recipe, 2)
    before = copy.deepcopy({**recipe.state_dict(), **model.state_dict()})
    model.eval()
    with torch.no_grad():
        scores = recipe.validation(model, batch_for(model), None)
    assert scores.shape == (2,)
    after = {**recipe.state_dict(), **model.state_dict()}
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_recipe_state_resumes_to_the_same_bits() -> None:
    straight = make()
    recipe = TwoStage(straight)
    train(straight, recipe, 2)
    again, saved = make(), copy.deepcopy(recipe.state_dict())
    resumed = TwoStage(again)
    resumed.load_state_dict(saved)
    again.load_state_dict(straight.state_dict())
    assert train(straight, recipe, 1) == train(again, resumed, 1)
    assert all(torch.equal(a, b) for a, b in zip(recipe.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_training_learns_and_repeats_itself() -> None:
    def run() -> list[float]:
        model = make()
        recipe = TwoStage(model, lr=5e-3)
        batch = batch_for(model)
        batch.target = batch.history.roll(1, dims=-1)
        optimiser, losses = recipe.optimiser(model), []
        for step in range(30):
            optimiser.zero_grad()
            loss, logs = recipe.loss(model.train(), batch, torch.Generator().manual_seed(step))
            loss.backward()
            optimiser.step()
            recipe.after_step(model, step)
            losses.append(logs["data"].item())
        return losses

    losses = run()
    assert losses[-1] < 0.9 * losses[0]
    assert run() == losses


def test_unobserved_points_count_in_no_loss_of_data_space() -> None:
    model = make(drop_path=0.0)
    recipe = TwoStage(model, log_prediction=True)
    batch = batch_for(model)
    mask = torch.ones(2, 4, *batch.history.shape[2:], dtype=torch.bool)
    mask[:, :, :, :8] = False
    recipe.eval()
    _, plain = recipe.loss(model, batch, torch.Generator())
    _, masked = recipe.loss(model, Batch(batch.history, batch.target, batch.time, mask=mask), torch.Generator())
    assert plain["latent"] == masked["latent"] and plain["data"] != masked["data"]
    with torch.no_grad():
        error = (model.decoders(recipe.translator(model.encoders(batch.history))) - batch.target).square()
    torch.testing.assert_close(masked["data"], error[mask[:, 2:]].mean())


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation() -> None:
    layer, x, branch = DropPath(0.25), torch.zeros(4000, 2, 1, 1), torch.ones(4000, 2, 1, 1)
    scale = torch.tensor([1.0, 2.0])
    with drop_path_generator(layer, torch.Generator().manual_seed(0)):
        out = layer(x, scale, branch)
    assert set(out[:, 0].unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    torch.testing.assert_close(out.mean((0, 2, 3)), scale, rtol=0.05, atol=0)
    assert layer.generator is None
    assert torch.equal(layer.eval()(x, scale, branch), scale.view(1, 2, 1, 1).expand_as(x))


def test_predictions_repeat_over_members() -> None:
    model = make().eval()
    batch = batch_for(model)
    with torch.no_grad():
        prediction = model.predict(batch, members=3)
        assert prediction.shape == (2, 3, *batch.history.shape[1:])
        assert torch.equal(prediction[:, 2], model(batch.history))


def test_forcing_and_static_fields_are_not_asked_for() -> None:
    model = make(forcing=("toa_incident_solar_radiation",), static=("land_sea_mask",))
    assert model.spec.forcing == () and model.spec.static == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 2, "horizon": 3}, r"history=2 and horizon=3; make them equal"),
        ({"grid": (15, 32)}, r"15 rows, and this model needs a multiple of 2; crop or regrid to 14"),
        ({"grid": (16, 30), "N_S": 4}, r"30 columns, and this model needs a multiple of 4"),
        ({"hid_S": 5}, r"hid_S=5 must be a positive whole number divisible by 2"),
        ({"hid_T": 20}, r"hid_T=20 must be a positive whole number divisible by 8"),
        ({"N_S": 3}, r"N_S=3 must be an even number"),
        ({"N_T": 0}, r"N_T=0 must be a positive whole number"),
        ({"block": "moga"}, r"unknown block 'moga'.*\(allowed: gsta, tau\)"),
        ({"groups": [2, 2]}, r"groups=\[2, 2\] must be numbers of channels that sum to 3"),
        ({"drop_path": 1.0}, r"drop_path=1.0 must be at least 0 and less than 1"),
        ({"heads": 4}, r"unknown option of met2net 'heads'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"alpha=1.5 must lie between 0"),
        ({"ema_encdec": "hard"}, r"unknown ema_encdec 'hard'"),
        ({"lr": 0}, r"lr=0 must be positive"),
    ],
)
def test_recipe_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        TwoStage(make(), **settings)


def test_a_batch_without_target_cannot_train() -> None:
    model = make()
    batch = batch_for(model)
    batch.target = None
    with pytest.raises(WxlabError, match="without target"):
        TwoStage(model).loss(model, batch, torch.Generator())
