"""STLDM against the authors' numbers, and their checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from safetensors.torch import load_file
from torch import Tensor

from wxlab import create_model, load_official
from wxlab.errors import WxlabError
from wxlab.grids import Grid, parse_grid, regrid
from wxlab.models.base import Batch
from wxlab.models.stldm import PRESETS, STLDM, save_official
from wxlab.models.stldm.official import our_name, schedule_tables, settings_of, their_name
from wxlab.models.stldm.recipe import Draws, LatentDiffusion, prior_divergence
from wxlab.nn.diffusion import DDIM, Schedule
from wxlab.nn.drop_path import DropPath
from wxlab.normaliser import Normaliser, Transform
from wxlab.readers import hko7, meteonet, sevir
from wxlab.rollout import forecast as roll_out

golden = pytest.mark.golden
OUTPUTS = {"rtol": 0, "atol": 1e-4}


class Replay:
    """Saved noises in place of a stream: each sample is its own batch element of one member."""

    def __init__(self, *noises: Tensor) -> None:
        self.noises = list(noises)

    def randn(self, shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return self.noises.pop(0).reshape(-1, 1, *shape)


class ReplayDraws(Draws):
    """Saved noises in place of a training step's draws."""

    def __init__(self, noises: list[Tensor], t: Tensor, uniform: float) -> None:
        self.noises, self.t, self.number = noises, t, uniform

    def normal(self, like: Tensor) -> Tensor:
        return self.noises.pop(0).reshape(like.shape)

    def times(self, count: int, steps: int) -> Tensor:
        return self.t

    def uniform(self, count: int) -> Tensor:
        return torch.full((count,), self.number)


class Case:
    """The reference case: its tensors, its numbers, and a model with its weights."""

    def __init__(self, folder: Path, spatial: bool = False) -> None:
        folder = folder / "stldm"
        self.tensors = load_file(folder / "case_a.tensors.safetensors")
        self.json = json.loads((folder / "case_a.json").read_text())
        self.state = load_file(folder / "case_a.state_dict.safetensors")
        if spatial:
            whole = {key: value for key, value in self.state.items() if not key.startswith("diff_unet.")}
            self.state = {**whole, **load_file(folder / "case_a_spatial.state_dict.safetensors")}
        self.config = self.json["config"]
        model = load_official("stldm", self.state, config=self.config)
        assert isinstance(model, STLDM)
        self.model = model

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def close(self, found: Tensor, name: str) -> None:
        torch.testing.assert_close(found.reshape(self[name].shape), self[name], **OUTPUTS)


@pytest.fixture(scope="module")
def case(golden_dir: Path) -> Case:
    return Case(golden_dir)


def hooked(module: torch.nn.Module, seen: dict[str, Tensor], name: str) -> None:
    module.register_forward_hook(lambda _, given, out: seen.__setitem__(name, out[0] if isinstance(out, tuple) else out))


@golden
@torch.no_grad()
def test_autoencoder(case: Case) -> None:
    seen: dict[str, Tensor] = {}
    hooked(case.model.vae.encoder.enc[1], seen, "stage")
    latents = case.model.encode(case["in.x"])
    case.close(latents.mean, "vae.mean")
    case.close(latents.logvar, "vae.logvar")
    case.close(seen["stage"][:2], "vae.enc_stage1")
    z = latents.at(case["vae.eps"].view_as(latents.mean))
    case.close(z, "vae.z")
    frames = case.model.vae.decode(z)
    case.close(frames, "vae.recon")
    case.close(frames.logit(), "vae.recon_logits")
    assert float(latents.divergence()) == pytest.approx(case.json["scalars"]["vae.kl"], rel=1e-5)


@golden
@torch.no_grad()
def test_translator_and_first_estimate(case: Case) -> None:
    seen: dict[str, Tensor] = {}
    first = case.model.translator.enc[0]
    for name, module in {"block0": first, "attn": first.block.attn, "mlp": first.block.mlp}.items():
        hooked(module, seen, name)
    out = case.model.translator(case["trans.in"])
    case.close(torch.cat([out.mean, out.logvar], 1), "trans.out")
    case.close(seen["block0"], "trans.block0")
    case.close(seen["attn"], "trans.block0_attn")
    case.close(seen["mlp"], "trans.block0_mlp")
    past = case.model.encode(case["in.x"])
    future = case.model.translator(past.at(case["bb.eps_enc"].view_as(past.mean)))
    case.close(future.mean, "bb.conds")
    case.close(case.model.vae.decode(future.at(case["bb.eps_hid"])), "bb.Y")


@golden
@torch.no_grad()
def test_denoiser(case: Case) -> None:
    network, seen = case.model.denoiser, dict[str, Tensor]()
    down = network.downs[0]
    places = {"block2": down.block2, "out": down.last, "spatial": down.spatial, "temporal": down.temporal, "mid": network.mid}
    for name, module in {**places, "up0": network.ups[0], "level1": network.conditions[0]}.items():
        hooked(module, seen, name)
    inputs: dict[str, Tensor] = {}
    down.spatial.register_forward_hook(lambda _, given, out: inputs.__setitem__("spatial", given[0]))
    down.temporal.register_forward_hook(lambda _, given, out: inputs.__setitem__("temporal", given[0]))
    x, t = case["unet.x_t"], case["unet.t"]
    condition = case["unet.cond"].view_as(x)
    case.close(network.time[0](t), "unet.temb_sincos")
    case.close(network.time(t), "unet.temb")
    case.close(network(x, t, condition), "unet.out_cond")
    case.close(inputs["spatial"], "unet.down0.block1")
    for name in ("block2", "out", "spatial", "temporal"):
        case.close(seen[name], f"unet.down0.{name}")
    case.close(seen["mid"], "unet.mid")
    case.close(seen["up0"], "unet.up0")
    case.close(seen["level1"], "unet.cond_level1")
    case.close(down.spatial.norm.over_channels(inputs["spatial"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), "unet.down0.spatial_prenorm")
    points = inputs["temporal"].permute(0, 2, 3, 1).unflatten(0, (2, 4))
    normed = down.temporal.norm.over_time(points).permute(0, 1, 4, 2, 3)
    case.close(normed, "unet.down0.temporal_prenorm")
    case.close(network(x, t, None), "unet.out_uncond")
    for module in network.modules():
        module._forward_hooks.clear()


@golden
@torch.no_grad()
def test_sampling_with_and_without_guidance(case: Case) -> None:
    noises = [case[f"samp.{name}"] for name in ("eps_enc", "eps_hid", "x_T")]
    for strength, name in ((0.0, "nocfg"), (1.0, "w1"), (0.5, "w0p5")):
        model = case.model.with_sampling(guidance=strength)
        case.close(model(case["in.x"], Replay(*noises)), f"samp.{name}.frames")
        if strength != 1:
            latents = model.sample(case["samp.cond"].view_as(case["samp.x_T"]), Replay().randn, case["samp.x_T"])
            case.close(latents, f"samp.{name}.latent")
    case.close(case.model.with_sampling(enhance=False)(case["in.x"], Replay(*noises)), "samp.mu")


@golden
@torch.no_grad()
def test_latents_after_every_guided_step(case: Case) -> None:
    model = case.model.with_sampling(guidance=1.0)
    condition = case["samp.cond"].view_as(case["samp.x_T"])
    sampler = DDIM(model.schedule, 20)
    assert [*sampler.times, -1] == case.json["ddim_times"]

    def velocity(x: Tensor, step: int) -> Tensor:
        t = torch.full((len(x),), sampler.times[step])
        return 2 * model.denoiser(x, t, condition) - model.denoiser(x, t, None)

    steps = [case["samp.x_T"], *sampler.trajectory(velocity, case["samp.x_T"], Replay().randn)]
    case.close(torch.stack(steps, 1), "samp.w1.traj")


@golden
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "steps", "options"), [("eta", 10, {"sampling_steps": 4, "eta": 0.7}), ("ddpm", 6, {"sampler": "ancestral"})]
)
def test_stochastic_samplers(case: Case, name: str, steps: int, options: dict[str, Any]) -> None:
    kept = case.model.schedule
    case.model.schedule = Schedule("sigmoid", steps)
    try:
        model = case.model.with_sampling(**{"sampling_steps": steps, **options})
        noises = Replay(*case[f"aux.{name}.noise"])
        latents = model.sample(case["samp.cond"].view_as(case["samp.x_T"]), lambda shape: noises.randn(shape)[:, 0], case["samp.x_T"])
        case.close(latents, f"aux.{name}.latent")
        assert not noises.noises
    finally:
        case.model.schedule = kept


@golden
@torch.no_grad()
def test_spatial_only(golden_dir: Path) -> None:
    case = Case(golden_dir, spatial=True)
    reference = load_file(golden_dir / "stldm" / "case_a_spatial.tensors.safetensors")
    assert case.model.config["temporal"] is False
    x, t = case["unet.x_t"], case["unet.t"]
    for name, condition in (("cond", case["unet.cond"].view_as(x)), ("uncond", None)):
        torch.testing.assert_close(case.model.denoiser(x, t, condition), reference[f"unet.out_{name}"], **OUTPUTS)
    noises = [case[f"samp.{name}"] for name in ("eps_enc", "eps_hid", "x_T")]
    frames = case.model.with_sampling(guidance=1.0)(case["in.x"], Replay(*noises))
    torch.testing.assert_close(frames, reference["samp.w1.frames"], **OUTPUTS)


@golden
@pytest.mark.parametrize("mode", ["eval.cond", "eval.uncond", "train.cond"])
def test_losses_and_gradients(golden_dir: Path, mode: str) -> None:
    case = Case(golden_dir)
    model, expected = case.model.requires_grad_(True), case.json["losses"][mode]
    recipe = LatentDiffusion()
    recipe.optimiser(model)
    model.train(mode.startswith("train"))
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    names = ("eps_enc1", "eps_diff", "eps_enc2", "eps_hid2", "eps_vae")
    draws = ReplayDraws([case[f"loss.{name}"] for name in names], case["loss.t"], 0.9 if "uncond" in mode else 0.5)
    batch = Batch(case["in.x"], case["in.y"], torch.zeros(2, 7, dtype=torch.int64))
    parts = recipe.terms(model, batch, draws)
    total = sum(parts.values())
    total.backward()
    theirs = {"reconstruction": "recon_loss", "constraint": "mu_loss", "diffusion": "diff_loss"}
    for ours, name in theirs.items():
        assert float(parts[ours].detach()) == pytest.approx(expected[name], rel=1e-5), name
    assert float(parts["prior"].detach()) == pytest.approx(expected["prior_loss"], rel=1e-4)
    assert float(total.detach()) == pytest.approx(expected["total"], rel=1e-5)
    gradients = {their_name(name, True): p.grad for name, p in model.named_parameters()}
    assert sorted(key for key, gradient in gradients.items() if gradient is None) == sorted(case.json["params_without_grad"][mode])
    norm = torch.stack([g.norm() for g in gradients.values() if g is not None]).norm()
    assert float(norm) == pytest.approx(expected["grad_norm_all"], rel=1e-3)
    for key, value in case.json["grad_norms"].get(mode, {}).items():
        found = 0.0 if gradients[key] is None else float(gradients[key].norm())
        assert found == pytest.approx(value or 0.0, rel=1e-3, abs=1e-7), key
    if mode == "eval.cond":
        for name in (name for name in case.tensors if name.startswith("grad.")):
            torch.testing.assert_close(gradients[name[5:]], case[name], rtol=1e-3, atol=1e-6)
    if mode == "train.cond":
        norms = model.translator.enc[0].block.norm1
        torch.testing.assert_close(norms.running_mean, case["train.bn0_running_mean"], **OUTPUTS)
        torch.testing.assert_close(norms.running_var, case["train.bn0_running_var"], **OUTPUTS)
        assert int(norms.num_batches_tracked) == case.json["scalars"]["train.bn0_num_batches_tracked"]


@golden
@torch.no_grad()
def test_pieces_of_the_reconstruction(case: Case) -> None:
    """The divergence counts for a millionth, which the loss's own tolerance does not see."""
    frames = torch.cat([case["in.x"], case["in.y"]], dim=1)
    latents = case.model.encode(frames)
    pieces = case.json["losses"]["pieces"]
    again = case.model.vae.decode(latents.at(case["loss.eps_vae"].view_as(latents.mean)))
    assert float((again - frames).square().mean()) == pytest.approx(pieces["ae_mse"], rel=1e-5)
    assert float(latents.divergence()) == pytest.approx(pieces["kl"], rel=1e-5)
    assert LatentDiffusion().kl == pieces["kl_weight"]
    prior = case.json["losses"]["eval.cond"]["prior_loss"]
    assert float(prior_divergence(case.model, latents.mean[:, 3:])) == pytest.approx(prior, rel=1e-4)


@golden
def test_learning_rate(golden_dir: Path) -> None:
    reference = json.loads((golden_dir / "stldm" / "metrics.json").read_text())["lr_schedule"]
    recipe = LatentDiffusion()
    assert recipe.warmup == reference["warmup"]
    for name in ("closed_form", "lr_before_optimizer_step_i"):
        for step, rate in reference[name].items():
            assert recipe.lr * recipe.schedule(int(step), reference["total_steps"]) == pytest.approx(rate, rel=1e-12)


def brought_to(frames: Tensor, target: str) -> Tensor:
    """Frames [..., y, x] by the regridding that ``prepare`` uses."""
    shape = frames.shape
    fields = xr.DataArray(frames.reshape(-1, *shape[-2:]).numpy(), dims=("time", "y", "x"))
    fields = fields.assign_coords(y=1000.0 * np.arange(shape[-2])[::-1], x=1000.0 * np.arange(shape[-1]))
    found = torch.from_numpy(regrid(fields, target, method="bilinear").values)
    return found.reshape(*shape[:-2], *found.shape[-2:])


@golden
def test_bilinear_regridding_is_the_authors_resizing(golden_dir: Path) -> None:
    """By 3.75, as from 480 to 128."""
    tensors = load_file(golden_dir / "stldm" / "metrics.tensors.safetensors")
    torch.testing.assert_close(brought_to(tensors["resize.in"], "16x16"), tensors["resize.out16"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(384, 384), (480, 480), (565, 784)], ids=["sevir", "hko7", "meteonet"])
def test_archives_are_brought_to_the_published_size_without_smoothing(size: tuple[int, int]) -> None:
    x = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x[:, None], (128, 128), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(brought_to(x, "128x128"), expected, rtol=0, atol=1e-4)
    if size == (384, 384):
        torch.testing.assert_close(brought_to(x, "128x128"), x[..., 1::3, 1::3], rtol=0, atol=1e-6)


@golden
def test_schedule_tables(case: Case) -> None:
    state = save_official(case.model)
    assert set(state) == set(case.state)
    for key, value in case.state.items():
        if "." in key:
            assert torch.equal(state[key], value), key
        else:
            torch.testing.assert_close(state[key], value, rtol=2e-7, atol=0)


# ---- checkpoints


def layout(state: dict[str, Tensor]) -> str:
    """Digest of the keys, shapes and types of a state dict."""
    lines = sorted(f"{key} {[str(n) for n in value.shape] or ['scalar']} {str(value.dtype)[6:]}" for key, value in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("preset", "temporal", "keys", "digest"),
    [
        ("hko7", True, 611, "a18c7182355b24f9ba5bebc15e85bcfdfc77e093742369ca8d5db9326eb4a649"),
        ("sevir", True, 611, "259a23c7c0e54f1c940e60f04561608126ee67ef440cf01fe7dd99b188d2838e"),
        ("hko7", False, 557, "a4830ff81ec50520df220e552894e58656c5cf2668019612e42c40e18aebda61"),
    ],
)
def test_the_published_sizes_have_the_published_keys(preset: str, temporal: bool, keys: int, digest: str) -> None:
    with torch.device("meta"):
        model = create_model("stldm", preset, temporal=temporal)
    assert isinstance(model, STLDM)
    tables = schedule_tables(Schedule())
    state = {**tables, **{their_name(name, temporal): value for name, value in model.state_dict().items()}}
    assert len(state) == keys and layout(state) == digest
    for name in model.state_dict():
        assert our_name(their_name(name, temporal)) == name


def tiny(**options: Any) -> STLDM:
    torch.manual_seed(0)
    model = create_model("stldm", "tiny", **options)
    assert isinstance(model, STLDM)
    return model.eval()


def forecast(model: STLDM) -> Tensor:
    x = torch.rand(1, model.spec.history, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return model(x, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["flat.pt", "flat.pth", "weights.safetensors", "folder"])
@pytest.mark.parametrize("temporal", [True, False], ids=["3D", "2D"])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, name: str, temporal: bool) -> None:
    model = tiny(temporal=temporal).with_sampling(guidance=0.0)
    assert isinstance(model, STLDM)
    state = save_official(model, tmp_path / name)
    config = {} if name == "folder" else settings_of(model)
    again = load_official("stldm", tmp_path / name, config=config)
    assert isinstance(again, STLDM) and not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert {key: again.config[key] for key in model.config} == model.config
    assert torch.equal(forecast(again), forecast(model))
    wrapped = load_official("stldm", {"model": state}, config=settings_of(model))
    assert torch.equal(forecast(wrapped), forecast(model))


def test_the_configuration_is_the_published_one(tmp_path: Path) -> None:
    """Byte for byte: its digest is that of the public config.json."""
    with torch.device("meta"):
        model = create_model("stldm", "hko7")
    assert isinstance(model, STLDM)
    text = json.dumps(settings_of(model), sort_keys=True, indent=2)
    assert hashlib.sha256(text.encode()).hexdigest() == "d14fa3e23cf183ea18b77220164474c72d624346f06e4db7ec585c795ada75cf"


def test_guidance_comes_from_the_caller() -> None:
    model = tiny()
    again = load_official("stldm", save_official(model), config={**settings_of(model), "cfg_str": 1.5, "sampling_timesteps": 3})
    assert again.config["guidance"] == 1.5 and again.config["sampling_steps"] == 3
    assert load_official("stldm", save_official(model), config=settings_of(model)).config["guidance"] == 0


@pytest.mark.parametrize(
    "options",
    [{"N_T": 1}, {"N_T": 1, "hid_T": 40}, {"hid_T": 24}, {"N_T": 3}, {"channels": ("a", "b")}, {"horizon": 1}, {"timesteps": 6}],
    ids=str,
)
def test_other_sizes_are_saved_and_loaded(tmp_path: Path, options: dict[str, Any]) -> None:
    """Also one block, a last block without reduction (24 = 2 T2 c), and two channels, whose names no file holds."""
    model = tiny(guidance=0.0, **options)
    save_official(model, tmp_path / "folder")
    again = load_official("stldm", tmp_path / "folder")
    assert isinstance(again, STLDM) and again.config == model.config
    assert (again.spec.history, again.spec.horizon) == (model.spec.history, model.spec.horizon)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.spec.channels == (("channel_1", "channel_2") if "channels" in options else ("reflectivity",))
    if "channels" in options:
        assert load_official("stldm", tmp_path / "folder", config={"channels": ["a", "b"]}).spec.channels == ("a", "b")


def test_a_lost_reduction_is_not_taken_for_none() -> None:
    state = save_official(tiny())
    for name in ("weight", "bias"):
        state.pop(f"backbone.hid.enc.1.reduction.{name}")
    with pytest.raises(WxlabError, match=r"missing backbone\.hid\.enc\.1\.reduction\.weight; missing backbone"):
        load_official("stldm", state, config=settings_of(tiny()))
    with pytest.raises(WxlabError, match=r"lack backbone\.hid\.enc\.1\.reduction\.weight, so sizes cannot be told"):
        load_official("stldm", state, config={"heads": 2})


def test_levels_may_be_a_tuple() -> None:
    model = tiny()
    config = settings_of(model)
    config["stldm_param"]["chs_mult"] = (1, 2)
    assert load_official("stldm", save_official(model), config=config).config["chs_mult"] == [1, 2]


@pytest.mark.parametrize("config", [[1], "hko7", 5])
def test_a_configuration_is_a_mapping(config: Any) -> None:
    with pytest.raises(WxlabError, match="is not a mapping of the authors' settings"):
        load_official("stldm", save_official(tiny()), config=config)


# ---- in the units of the archives


ARCHIVES = {
    "sevir": (Grid(tuple(sevir.PIXEL * np.arange(384)), tuple(sevir.PIXEL * np.arange(384)), "xy"), sevir.STEP),
    "hko7": (Grid(tuple(hko7.PIXEL * np.arange(480)[::-1]), tuple(hko7.PIXEL * np.arange(480)), "xy"), hko7.STEP),
    "meteonet": (Grid(tuple(meteonet.PIXEL * np.arange(565)[::-1]), tuple(meteonet.PIXEL * np.arange(784)), "xy"), meteonet.STEP),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_presets_lie_where_the_archives_do(name: str) -> None:
    whole, step = ARCHIVES[name]
    grid = parse_grid("128x128", whole)
    assert PRESETS[name]["step"] == step
    np.testing.assert_allclose([*PRESETS[name]["grid"].y, *PRESETS[name]["grid"].x], [*grid.y, *grid.x], atol=1e-6)


@pytest.mark.parametrize(("name", "low", "high"), [("sevir", 0, 255), ("hko7", -10, 60), ("meteonet", 0, 70)])
def test_published_weights_forecast_in_the_units_of_their_archive(name: str, low: float, high: float, tmp_path: Path) -> None:
    """Loaded, given frames in physical units, missing ones among them, and rolled out: no further step, and nothing but units differs."""
    save_official(tiny(), tmp_path / "folder")
    model = load_official("stldm", tmp_path / "folder", config={"preset": name})
    whole, step = ARCHIVES[name]
    assert isinstance(model, STLDM) and model.spec.step == step
    (variable,), grid = model.spec.channels, parse_grid("16x16", whole)
    share = np.random.default_rng(0).random((4, 16, 16), np.float32)
    times = np.datetime64("2015-06-01", "ns") + np.arange(4) * np.timedelta64(step, "s")
    coordinates = {"time": times, "y": list(grid.y), "x": list(grid.x)}
    states = xr.Dataset({variable: (("time", "y", "x"), low + (high - low) * share)}, coordinates)
    found = roll_out(model, states, steps=3, members=2, seed=1)[variable]
    assert found.sizes["time"] == 3 and found.sizes["number"] == 2
    assert found["prediction_timedelta"].values[0] == np.timedelta64(step, "s")
    assert low <= float(found.min()) < float(found.max()) <= high
    plain = load_official("stldm", tmp_path / "folder")
    plain.normaliser, plain.spec = Normaliser({variable: Transform("none")}), model.spec
    shares = roll_out(plain, xr.Dataset({variable: (("time", "y", "x"), share)}, coordinates), steps=3, members=2, seed=1)[variable]
    np.testing.assert_allclose(found, low + (high - low) * shares, rtol=1e-4, atol=1e-3 * (high - low))
    gaps = states.where(states["time"] != times[1])
    dry = states.copy(deep=True)
    dry[variable][1] = low
    xr.testing.assert_allclose(*(roll_out(model, data, steps=3, times=times[2:]) for data in (gaps, dry)))


def test_settings_go_before_the_preset() -> None:
    model, grid = tiny(), Grid(tuple(range(24)), tuple(range(16)), "xy")
    config = {**settings_of(model), "preset": "hko7", "channels": "rain", "step": 2.5, "grid": grid}
    found = load_official("stldm", save_official(model), config=config)
    assert found.spec.channels == ("rain",) and found.spec.step == 150 and found.spec.grid == grid
    assert found.normaliser is not None and found.normaliser.transforms["rain"].scale == 70
    again = load_official("stldm", save_official(model), config=settings_of(model))
    assert again.normaliser is None and again.spec.step == 300 and again.spec.grid.y[:2] == (0, 1)


def broken(change: Any) -> dict[str, Tensor]:
    state = save_official(tiny())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda s: s.pop("diff_unet.ups.1.up.bias"), {}, "missing diff_unet.ups.1.up.bias"),
        (lambda s: s.update({"diff_unet.extra": torch.ones(1)}), {}, "unexpected diff_unet.extra"),
        (lambda s: s.update({"backbone.hid.enc.1.reduction.bias": torch.ones(3)}), {}, r"has shape \[3\] and should have \[24\]"),
        (lambda s: s.pop("diff_unet.time_mlp.mlp.1.weight"), {}, "lack diff_unet.time_mlp.mlp.1.weight"),
        (lambda s: s.pop("betas"), {}, "missing betas"),
        (lambda s: None, {"type": "2D"}, "weights are of the spatio-temporal network and type='2D' asks for the spatial-only one"),
        (lambda s: None, {"vp_param": {"shape_out": [20, 1, 16, 16]}}, r"shape_out=\[20, 1\] \(the weights say \[3, 1\]\)"),
        (lambda s: None, {"vp_param": {"hid_T": 512}}, r"hid_T=512 \(the weights say 16\)"),
        (lambda s: None, {"vp_param": {"shape_in": [2, 3, 16, 16]}}, r"shape_in=\[2, 3\] \(the weights say \[2, 1\]\)"),
        (lambda s: None, {"vp_param": {"shape_in": [2, 16]}}, r"shape_in=\[2, 16\] must be four whole numbers"),
        (lambda s: None, {"vp_param": {"shape_out": 3}}, "shape_out=3 must be four whole numbers"),
        (lambda s: None, {"vp_param": {"last_activation": "tanh"}}, "last_activation='tanh' is not supported; every published STLDM ends"),
        (lambda s: None, {"vp_param": [2, 1]}, r"vp_param=\[2, 1\] is not a mapping"),
        (lambda s: None, {"stldm_param": {"heads": 3}}, "heads=3 must be a whole number that divides the weights' 8 channels"),
        (lambda s: None, {"stldm_param": {"heads": "2"}}, "heads='2' must be a whole number"),
        (lambda s: None, {"stldm_param": {"chs_mult": (1, 3)}}, r"chs_mult=\[1, 3\] \(the weights say \[1, 2\]\)"),
        (lambda s: None, {"step": "5"}, "step='5' must be a positive number of minutes"),
        (lambda s: None, {"step": 0}, "step=0 must be a positive number of minutes"),
        (lambda s: None, {"step": 0.001}, "step=0.001 must be a positive number of minutes that is a whole number of seconds"),
        (lambda s: None, {"step": True}, "step=True must be a positive number"),
        (lambda s: None, {"preset": "hko"}, r"unknown preset of STLDM's published weights 'hko'; did you mean 'hko7'"),
        (lambda s: None, {"preset": "demo"}, r"allowed: hko7, meteonet, sevir"),
        (lambda s: None, {"channels": ["a", "b"]}, r"channels=\['a', 'b'\] must be the name\(s\) of the weights' 1 channel\(s\)"),
        (lambda s: None, {"grid": (16, 16)}, r"grid=\(16, 16\) must be a wxlab.grids.Grid"),
        (lambda s: None, {"objective": "pred_noise"}, "objective='pred_noise' is not supported"),
        (lambda s: None, {"beta_schedule": "linear"}, "another noise schedule than beta_schedule says"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(change: Any, settings: dict[str, Any], message: str) -> None:
    config = {**settings_of(tiny()), **settings}
    with pytest.raises(WxlabError, match=message) as caught:
        load_official("stldm", broken(change), config=config)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WxlabError, match="these are not STLDM weights"):
        load_official("stldm", {"enc.weight": torch.ones(1)})
    save_official(tiny(), tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text("[1, 2")
    with pytest.raises(WxlabError, match=r"config\.json is not the JSON object"):
        load_official("stldm", tmp_path / "folder")
    with pytest.raises(WxlabError, match="no checkpoint file"):
        load_official("stldm", tmp_path / "nothing.pt")
