"""LaDCast against the authors' numbers, and their checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from safetensors.torch import load_file, save_file
from torch import Tensor

from wxlab import create_model, forecast, load_official
from wxlab.channels import unstack
from wxlab.encoding import decode, encode_states
from wxlab.errors import WxlabError
from wxlab.forcings import year_fraction
from wxlab.grids import Grid, area_weights
from wxlab.models import Batch
from wxlab.models.ladcast import (
    Autoencoder,
    Denoising,
    Ladcast,
    LatentForecaster,
    Reconstruction,
    evaluation_times,
    latent_statistics,
    read_statistics,
    save_autoencoder,
    save_transformer,
)
from wxlab.models.ladcast.autoencoder import latent_names
from wxlab.models.ladcast.recipe import average_decay, cosine_weights, relative_l2, rolled
from wxlab.models.ladcast.rope import rotary, rotate
from wxlab.models.ladcast.transformer import noise_features, year_features
from wxlab.nn.edm import DPMSolver, Heun, TrainingNoise, karras_sigmas, sample
from wxlab.nn.padding import SphereConv, pad_sphere
from wxlab.streams import Streams
from wxlab.verification import continuous, verify
from wxlab.verification.blocks import Block, Settings

golden = pytest.mark.golden
NETWORK, SAMPLES, FIELDS = 1e-5, 5e-5, 2e-4
TRANSFORMER = 2e-6  # tight enough to tell one layer norm's eps from another


class Case:
    """The golden case: tensors, numbers, and both models with its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ladcast"
        self.io = load_file(self.folder / "case_a/io.safetensors")
        self.json = json.loads((self.folder / "case_a.json").read_text())
        config = self.json["config"]
        self.levels = [f"{name}_{level}" for name in config["atm"] for level in config["levels"]]
        self.channels, self.static = (*self.levels, *config["sur"]), tuple(config["static"])
        self.grid = Grid(tuple(self.json["lat_full"][1:]), tuple(self.json["lon"]))
        self.states = {part: load_file(self.folder / f"case_a/{part}_state_dict.safetensors") for part in ("ae", "transformer")}
        named = {**config["ae"], "channels": self.channels, "static": self.static, "grid": self.grid}
        autoencoder = load_official("ladcast_autoencoder", self.states["ae"], config=named)
        assert isinstance(autoencoder, Autoencoder)
        self.autoencoder = autoencoder
        frames = {"return_seq_len": config["tret"], "input_seq_len": config["tin"], "statistics": self.json["latent_stats"]}
        transformer = load_official("ladcast", self.states["transformer"], config={**self.json["tr_config"], **frames})
        assert isinstance(transformer, Ladcast)
        self.transformer = transformer
        raw = self.io["pre.static_raw"].numpy()[:, 1:]
        self.units = read_statistics(self.json["normalization_param_dict"], self.channels, self.static, raw)

    def __getitem__(self, name: str) -> Tensor:
        return self.io[name]

    def assert_close(self, found: Tensor, name: str, tolerance: float) -> None:
        """Largest difference against the largest absolute value."""
        expected = self.io[name]
        assert found.shape == expected.shape, name
        assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max()), name


@pytest.fixture(scope="module")
def case(golden_dir: Path) -> Case:
    return Case(golden_dir)


def stamps(values: Tensor) -> Tensor:
    """YYYYMMDDHH -> seconds since 1970."""
    texts = [str(value) for value in values.tolist()]
    times = [np.datetime64(f"{t[:4]}-{t[4:6]}-{t[6:8]}T{t[8:10]}", "s") for t in texts]
    return torch.from_numpy(np.array(times).astype(np.int64))


# ---- spherical convolution, inputs


@golden
@pytest.mark.parametrize("kind", ["k3g1", "k3g4", "k5g1", "k5g4"])
def test_the_spherical_convolution_pole_rows_included(case: Case, kind: str) -> None:
    kernel, groups = int(kind[1]), int(kind[3])
    conv = SphereConv(4, 4, kernel, groups=groups)
    conv.load_state_dict({name: case[f"sphere.{kind}.{name}"] for name in ("weight", "bias")})
    x, expected = case[f"sphere.{kind}.x"], case[f"sphere.{kind}.y"]
    torch.testing.assert_close(pad_sphere(x, kernel // 2), case[f"sphere.{kind}.pad"], rtol=0, atol=1e-7)
    out = conv(x)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-7)
    plain = F.conv2d(pad_sphere(x, kernel // 2), conv.weight, conv.bias, groups=groups)
    assert torch.equal(plain[:, :, 1:-1], out[:, :, 1:-1]) and not torch.allclose(plain[:, :, 0], out[:, :, 0], atol=1e-2)


@golden
def test_the_authors_statistics_and_masks_prepare_the_fields(case: Case) -> None:
    raw = case["pre.raw"][:, :-1, 1:]  # without surface pressure and the row of the south pole
    torch.testing.assert_close(case.units.normalise(raw, case.channels), case["pre.x"], rtol=0, atol=1e-7)
    mask = case.units.mask(raw, case.channels)
    assert mask is not None
    sst = case.channels.index("sea_surface_temperature")
    assert torch.equal(~mask[:, sst], case["pre.nan_mask"].bool()) and mask[:, :sst].all()
    assert (case["pre.x"][:, sst][~mask[:, sst]] == -2).all()
    static = case.units.normalise(case["pre.static_raw"][:, 1:], case.static)
    torch.testing.assert_close(static, case["pre.static"], rtol=0, atol=1e-7)


# ---- the autoencoder


@golden
def test_encoding_and_decoding(case: Case) -> None:
    model = case.autoencoder
    with torch.no_grad():
        case.assert_close(model.encode(case["ae.x"], case["pre.static"]), "ae.latent", NETWORK)
        case.assert_close(model.decode(case["ae.latent"]), "ae.recon", NETWORK)
        case.assert_close(model.decode(case["ae.latent"], return_static=True), "ae.recon_with_static", NETWORK)
        case.assert_close(model(case["ae.x"], case["pre.static"]), "ae.recon_with_static", NETWORK)
        case.assert_close(model.encoder(case["ae_small.x_with_static"]), "ae_small.latent", NETWORK)
        case.assert_close(model.decoder(case["ae_small.latent"]), "ae_small.recon_with_static", NETWORK)


@golden
def test_every_block_of_the_autoencoder(case: Case) -> None:
    model = case.autoencoder
    seen: dict[str, Tensor] = {}
    handles = []
    for name in (key.removeprefix("ae.act.") for key in case.io if key.startswith("ae.act.")):
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda m, given, out, name=name: seen.__setitem__(name, out[:1])))
    with torch.no_grad():
        model(case["ae.x"], case["pre.static"])
    for handle in handles:
        handle.remove()
    assert len(seen) == 22
    for name, value in seen.items():
        case.assert_close(value, f"ae.act.{name}", NETWORK)


@golden
def test_parts_of_an_attention_block_and_the_norm_at_two_magnitudes(case: Case) -> None:
    block: Any = case.autoencoder.get_submodule(case.json["ae_mod_block"])
    with torch.no_grad():
        case.assert_close(block.attn(case["ae.mod.attn_x"]), "ae.mod.attn_y", NETWORK)
        case.assert_close(block.conv_out(case["ae.mod.attn_x"]), "ae.mod.glu_y", NETWORK)
        for size in ("tiny", "unit"):
            case.assert_close(case.autoencoder.decoder.norm_out(case[f"ae.mod.norm_out_x_{size}"]), f"ae.mod.norm_out_y_{size}", NETWORK)


@golden
def test_the_newer_autoencoder_without_its_shortcuts(case: Case) -> None:
    options = {"encoder_out_shortcut": False, "decoder_in_shortcut": False, "decoder_conv_act_fn": "silu"}
    config = {**case.json["config"]["ae"], **options, "grid": case.grid}
    model: Any = load_official("ladcast_autoencoder", case.states["ae"], config=config)
    expected = load_file(case.folder / "case_a/io_dcae_new.safetensors")
    with torch.no_grad():
        latent = model.encode(case["ae.x"], case["pre.static"])
        fields = model.decode(case["ae.latent"], return_static=True)
    for found, key in ((latent, "latent"), (fields, "recon_with_static")):
        reference = expected[f"aenew.noshort_silu.{key}"]
        assert (found - reference).abs().max() <= NETWORK * reference.abs().max()


@golden
def test_the_losses_of_the_autoencoder(case: Case) -> None:
    prediction, target, expected = case["ae.loss.pred_masked"], case["ae.loss.target"], case.json["ae_loss"]
    assert float(relative_l2(prediction, target)) == pytest.approx(expected["rel_l2"], rel=1e-5)
    weights = cosine_weights(case.grid)
    np.testing.assert_allclose(weights[:, 0].numpy(), case["ae.lat_weight_f64"].numpy(), atol=1e-6)
    assert float(relative_l2(prediction, target, weights)) == pytest.approx(expected["rel_l2_latweighted"], rel=1e-5)
    assert float((prediction - target).square().mean()) == pytest.approx(expected["mse"], rel=1e-5)
    assert float((prediction - target).flatten(2).norm(dim=-1).mean()) == pytest.approx(expected["abs_l2"], rel=1e-5)
    each = [float(relative_l2(prediction[:, i : i + 1], target[:, i : i + 1])) for i in range(prediction.shape[1])]
    assert np.mean(each) == pytest.approx(expected["rel_l2"], rel=1e-5)
    by_variable = [np.mean(each[:2]), np.mean(each[2:4]), *each[:5]]  # where the authors read the surface from the first channel on
    np.testing.assert_allclose(by_variable, expected["per_var_official_bug"], rtol=1e-5)


@golden
def test_rolling_samples(case: Case) -> None:
    shifts = case["aug.coords_xy"]
    static = case["pre.static"][None].expand(2, -1, -1, -1)
    assert torch.equal(rolled(static, shifts), case["aug.static_rolled"])
    weights = cosine_weights(case.grid).expand(2, 1, -1, 1)
    torch.testing.assert_close(rolled(weights, shifts), case["aug.lat_weight_rolled"].float(), rtol=0, atol=1e-6)


# ---- the transformer


@golden
def test_the_network_in_all_its_calls(case: Case) -> None:
    model, time = case.transformer, stamps(case["tr.timestamps"])
    x, cond, t = case["tr.x"], case["tr.cond"], case["tr.timestep"]
    with torch.no_grad():
        case.assert_close(model(x, cond, t, time), "tr.out", TRANSFORMER)
        case.assert_close(model(x, cond, t), "tr.out_no_time_elapsed", TRANSFORMER)
        case.assert_close(model(x, cond, t[:1], time[:1]), "tr.out_broadcast_t", TRANSFORMER)
        case.assert_close(model(x[:, :, :1], case["tr.cond_longer"], t, time), "tr.out_cond_longer", TRANSFORMER)


@golden
def test_every_block_of_the_transformer(case: Case) -> None:
    network, time = case.transformer.network, stamps(case["tr.timestamps"])
    seen: dict[str, Any] = {}
    paths = {"x_embedder": "embed_output", "context_embedder": "embed_known", "time_text_embed": "embed", "time_elapsed_embed": "year"}
    paths |= {"context_refiner": "refiner", "context_refiner.proj_in": "refiner.proj_in"}
    paths |= {"context_refiner.time_text_embed": "refiner.embed"}
    paths |= {f"context_refiner.token_refiner.refiner_blocks.{i}": f"refiner.blocks.{i}" for i in range(2)}
    paths |= {f"transformer_blocks.{i}": f"dual.{i}" for i in range(2)}
    paths |= {f"single_transformer_blocks.{i}": f"single.{i}" for i in range(2)}
    handles = [
        network.get_submodule(path).register_forward_hook(lambda m, given, out, name=name: seen.__setitem__(name, (given, out)))
        for name, path in {**paths, "proj_out": "proj_out"}.items()
    ]
    with torch.no_grad():
        network(case["tr.x"], case["tr.cond"], case["tr.timestep"], time)
    for handle in handles:
        handle.remove()
    given = seen["single_transformer_blocks.1"][0]
    with torch.no_grad():
        whole = network.single[1](*given[:3], given[0].shape[1])  # the last block, without leaving out the known tokens
    found = {name: out for name, (_, out) in seen.items() if isinstance(out, Tensor) and name != "proj_out"}
    for i in range(2):
        found[f"transformer_blocks.{i}.hidden"], found[f"transformer_blocks.{i}.context"] = seen[f"transformer_blocks.{i}"][1]
        joined = found.pop(f"single_transformer_blocks.{i}") if i == 0 else whole
        found[f"single_transformer_blocks.{i}.hidden"], found[f"single_transformer_blocks.{i}.context"] = joined.split([36, 18], dim=1)
    assert torch.allclose(found.pop("single_transformer_blocks.1"), whole[:, :36], atol=1e-6)
    found["norm_out"] = seen["proj_out"][0][0]
    assert {f"tr.act.{name}" for name in found} == {key for key in case.io if key.startswith("tr.act.")} - {"tr.act.temb_final"}
    for name, value in found.items():
        case.assert_close(value, f"tr.act.{name}", TRANSFORMER)
    emb = seen["transformer_blocks.0"][0][2]
    torch.testing.assert_close(emb, F.silu(case["tr.act.temb_final"]), rtol=2e-6, atol=2e-6)


@golden
def test_larger_patches(case: Case) -> None:
    state = load_file(case.folder / "case_a/transformer_patch2_state_dict.safetensors")
    model = load_official("ladcast", {key.removeprefix("p2."): value for key, value in state.items()}, config=case.json["tr_patch2_config"])
    with torch.no_grad():
        out = model(case["tr_p2.x"], case["tr_p2.cond"], case["tr.timestep"][:1], stamps(case["tr.timestamps"])[:1])
    case.assert_close(out, "tr_p2.out", TRANSFORMER)


@golden
def test_rotary_tables_of_the_case_and_of_the_paper(case: Case) -> None:
    table = case.transformer.network.rotary.table(1, 2, 3, 6, torch.device("cpu"))[:, 0]
    known = case.transformer.network.rotary.table(0, 1, 3, 6, torch.device("cpu"))[:, 0]
    real = load_file(case.folder / "real_grid_rope.safetensors")
    paper = rotary("geo", 256.0, (16, 56, 56), create_model("ladcast", "tiny", grid=LATENT).spec.grid, 6.0)
    tables = {"pred": paper.table(1, 4, 15, 30, torch.device("cpu"))[:, 0], "cond": paper.table(0, 1, 15, 30, torch.device("cpu"))[:, 0]}
    for found, expected, name in (
        (table, case.io, "rope.pred"), (known, case.io, "rope.cond"), (tables["pred"], real, "pred"), (tables["cond"], real, "cond"),
    ):  # fmt: skip
        for part, kind in ((found.real, "cos"), (found.imag, "sin")):
            torch.testing.assert_close(part.repeat_interleave(2, dim=-1), expected[f"{name}_{kind}"], rtol=0, atol=1e-7)
    assert paper.y is not None and paper.x is not None
    for ends, count, key in ((paper.y, 15, "lat_pos"), (paper.x, 30, "lon_pos")):
        torch.testing.assert_close(torch.linspace(*ends, count), real[key].float(), rtol=0, atol=1e-6)
    turned = rotate(case["rope.q"].transpose(1, 2), table[:, None]).transpose(1, 2)
    torch.testing.assert_close(turned, case["rope.q_rot"], rtol=1e-6, atol=1e-6)


LATENT = Grid(tuple(-83.25 + 12.0 * i for i in range(15)), tuple(5.25 + 12.0 * i for i in range(30)))


@golden
def test_features_of_noise_level_and_year(case: Case) -> None:
    torch.testing.assert_close(noise_features(case["emb.t"]), case["emb.t_proj"], rtol=0, atol=1e-7)
    time = stamps(case["emb.timestamps"])
    np.testing.assert_allclose(year_fraction(time.numpy()), case["emb.year_progress"], rtol=0, atol=1e-7)
    torch.testing.assert_close(year_features(time), case["emb.year_sincos"], rtol=0, atol=1e-7)


# ---- diffusion


@golden
def test_noise_levels_and_training_draws(case: Case) -> None:
    for steps, key in ((1000, "train_sigmas"), (20, "sample_sigmas_20"), (5, "sample_sigmas_5")):
        torch.testing.assert_close(karras_sigmas(steps), case[f"edm.{key}"], rtol=1e-7, atol=0)
    sigmas = case["edm.train_sigmas"][:-1]
    torch.testing.assert_close(case.transformer.preconditioning.coefficients(sigmas).noise, case["edm.train_timesteps"], rtol=0, atol=1e-7)
    assert torch.equal(TrainingNoise().snapped(case["edm.lognormal_normals"]), sigmas[case["edm.lognormal_indices"]])


@golden
def test_one_training_step_and_its_gradients(case: Case) -> None:
    model, sigmas = case.transformer, case["edm.loss.sigmas"]
    levels = sigmas.view(-1, 1, 1, 1, 1)
    clean, noise, half = case["edm.loss.clean"], case["edm.loss.noise"], model.config["sigma_data"]
    torch.testing.assert_close(clean + levels * noise, case["edm.loss.noisy"])
    torch.testing.assert_close(model.preconditioning.weight(sigmas), case["edm.loss.weighting"].flatten(), rtol=1e-6, atol=0)
    batch = Batch((case["tr.cond"] / half).transpose(1, 2), (clean / half).transpose(1, 2), stamps(case["tr.timestamps"])[:, None])
    recipe = Denoising(model)
    model.zero_grad()
    error = recipe.error(model, batch, sigmas, noise)
    expected = case.json["edm_loss"]
    assert error.mean().item() == pytest.approx(expected["weighted"], rel=1e-5)
    loss = (error * recipe.weights).mean()  # type: ignore[operator]
    assert loss.item() == pytest.approx(expected["weighted_lat"], rel=1e-5)
    loss.backward()
    twin = Ladcast(model.spec, **model.config)
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert theirs.grad is not None
        mine.data = theirs.grad
    norms = expected["grad_l2_norms_of_weighted_lat"]
    gradients = save_transformer(twin)
    assert set(gradients) == set(norms)
    for key, norm in norms.items():
        assert float(gradients[key].norm()) == pytest.approx(norm, rel=2e-4), key
    model.zero_grad()


@golden
def test_denoised_samples(case: Case) -> None:
    sigmas, noisy, time = case["edm.loss.sigmas"], case["edm.loss.noisy"], stamps(case["tr.timestamps"])
    assert torch.equal(case["edm.train_sigmas"][case["edm.loss.indices"]], sigmas)
    coefficients = case.transformer.preconditioning.coefficients(sigmas)
    scaled = coefficients.c_in.view(-1, 1, 1, 1, 1) * noisy
    torch.testing.assert_close(scaled, case["edm.loss.x_in"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(coefficients.noise, case["edm.loss.timesteps"], rtol=0, atol=1e-7)
    given = case.transformer.preconditioning.coefficients(case["tr.sigma"]).noise
    torch.testing.assert_close(given, case["tr.timestep"], rtol=0, atol=1e-7)
    with torch.no_grad():
        case.assert_close(case.transformer(scaled, case["tr.cond"], coefficients.noise, time), "edm.loss.model_out", NETWORK)
        case.assert_close(case.transformer.denoiser(case["tr.cond"], time)(noisy, sigmas), "edm.loss.denoised", NETWORK)


@golden
def test_weights_of_the_latent_rows(case: Case) -> None:
    for grid, key in ((case.transformer.spec.grid, "edm.loss.lat_weight_f64"), (LATENT, "edm.real_lat_weight_15_f64")):
        np.testing.assert_allclose(cosine_weights(grid)[:, 0], case[key].flatten(), atol=1e-6)


@golden
def test_samplers(case: Case) -> None:
    denoise, noise = case.transformer.denoiser(case["samp.cond"], stamps(case["samp.timestamp"])), case["samp.init_noise"]
    settings, steps = case.json["sampler"]["churn"], case.json["sampler"]["nsteps"]
    draws = iter(case["samp.churn_noise_f32"])
    churned = Heun(steps, churn=settings["S_churn"], low=settings["S_min"], high=settings["S_max"], inflate=settings["S_noise"])
    solver = DPMSolver(steps)
    with torch.no_grad():
        case.assert_close(sample(Heun(steps), denoise, noise), "samp.out", SAMPLES)
        case.assert_close(sample(Heun(20), denoise, noise), "samp.out20", SAMPLES)
        case.assert_close(sample(churned, denoise, noise, lambda shape: next(draws)), "samp.out_churn", SAMPLES)
        # the authors start this one from noise that is not multiplied by the first sigma
        case.assert_close(sample(solver, denoise, noise.double() / solver.sigmas[0]).float(), "samp.out_pipeline_dpmpp2m", SAMPLES)


# ---- forecasts


def initial(case: Case) -> xr.Dataset:
    """The initial fields as a user has them."""
    time = np.array([case.json["roll"]["init"]], dtype="datetime64[ns]")
    y, x = list(case.grid.y), list(case.grid.x)
    fields = case["roll.fields_in"].numpy()[:, 0][None]
    array = xr.DataArray(fields, dims=("time", "channel", "latitude", "longitude"), coords={"time": time, "channel": list(case.channels)})
    states = unstack(array.assign_coords(latitude=y, longitude=x))
    for name, field in zip(case.static, case["pre.static_raw"].numpy()[:, 1:], strict=True):
        states[name] = (("latitude", "longitude"), field)
    return states


@pytest.fixture
def forecaster(case: Case) -> LatentForecaster:
    """As the authors forecast: three sampling steps, noise that repeats."""
    case.autoencoder.normaliser = case.units
    steps = case.json["roll"]["num_inference_steps"]
    return LatentForecaster(case.autoencoder, case.transformer.with_sampling(sampling_steps=steps, noise="repeated"))


@golden
def test_two_chunks_of_a_roll_out_in_latents(case: Case, forecaster: LatentForecaster) -> None:
    model = forecaster.transformer
    start = encode_states(case.autoencoder, initial(case))
    assert model.normaliser is not None
    known = model.scaled(model.normaliser.normalise(torch.from_numpy(start["latent"].values)[:, None], model.spec.channels))
    case.assert_close(known, "roll.known_latents_norm", SAMPLES)
    made = forecast(model, start, steps=3, members=3)["latent"].isel(time=0)
    made = made.transpose("number", "level", "prediction_timedelta", ...).values
    case.assert_close(torch.from_numpy(made), "roll.latents_unnorm", SAMPLES)
    normalised = model.normaliser.normalise(torch.from_numpy(made).transpose(1, 2), model.spec.channels).transpose(1, 2) / 2
    expected = torch.cat([case["roll.chunk0.latents_norm"], case["roll.chunk1.latents_norm"]], dim=2)[:, :, :3]
    assert (normalised - expected).abs().max() <= SAMPLES * expected.abs().max()
    noise = Streams(0, [0], 3, 1).repeated().randn(case["roll.noise_member_step"].shape[1:])
    assert torch.equal(noise[0], case["roll.noise_member_step"])


@golden
def test_two_chunks_of_a_roll_out_in_fields(case: Case, forecaster: LatentForecaster) -> None:
    made = forecast(forecaster, initial(case), steps=3, members=3)
    later = decode(case.autoencoder, forecast(forecaster.transformer, encode_states(case.autoencoder, initial(case)), steps=3, members=3))
    std = case["norm.std"].numpy()
    land = np.isnan(case["roll.fields_in"].numpy()[5, 0])
    for i, name in enumerate(case.channels):
        variable, level = (name.rsplit("_", 1)[0], int(name.rsplit("_", 1)[1])) if name in case.levels else (name, None)
        fields = [source[variable] if level is None else source[variable].sel(level=level) for source in (made, later)]
        streamed, decoded = (field.isel(time=0).transpose("number", "prediction_timedelta", ...).values for field in fields)
        hidden = np.isnan(streamed)
        assert np.array_equal(hidden, np.broadcast_to(land if i == 5 else np.zeros_like(land), hidden.shape))
        assert np.allclose(streamed[~hidden], decoded[~hidden], rtol=0, atol=1e-4 * std[i])
        bound = {"rtol": 0, "atol": FIELDS * std[i], "err_msg": name}
        np.testing.assert_allclose(decoded[0], case["roll.decoded_member0"][i], **bound)
        np.testing.assert_allclose(decoded[:, -1].mean(0), case["roll.decoded_ens_mean_last"][i], **bound)
        np.testing.assert_allclose(decoded[:, -1].std(0, ddof=1), case["roll.decoded_ens_std_last"][i], **bound)


def verification(case: Case) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Members, truth and climatology of three variables, the third of which is missing on land."""
    members, truth, climate = (case[f"met.{name}"].double().numpy() for name in ("forecast", "truth", "clim"))
    time = np.array(["2018-01-01"], "datetime64[ns]")
    axes = {"latitude": list(case.grid.y), "longitude": list(case.grid.x)}

    def named(values: np.ndarray, dims: tuple[str, ...], **coords: Any) -> xr.Dataset:
        leading = values.reshape(*values.shape[:-3], *[1] * (len(dims) + 3 - values.ndim), *values.shape[-3:])
        fields = {f"x{i}": ((*dims, *axes), leading[..., i, :, :]) for i in range(3)}
        return xr.Dataset(fields, {**axes, **coords})

    lead = {"prediction_timedelta": np.zeros(1, "timedelta64[ns]")}
    calendar = {"hour": [0], "dayofyear": [1]}
    return (
        named(members, ("number", "time", "prediction_timedelta"), time=time, **lead),
        named(truth, ("time",), time=time),
        named(climate, ("hour", "dayofyear"), **calendar),
    )


@golden
def test_scores_of_an_ensemble_with_the_authors_weights(case: Case) -> None:
    expected, weights = case.json["metrics"], case.json["metrics"]["lat_weights_cos"]
    np.testing.assert_allclose(cosine_weights(case.grid)[:, 0], weights, atol=1e-6)
    whole = area_weights(Grid(tuple(case.json["lat_full"]), tuple(case.json["lon"])))
    merged = np.array([whole[0] + whole[1], *whole[2:]])  # the authors give the row that was cropped to its neighbour
    np.testing.assert_allclose(merged / merged.mean(), expected["lat_weights_area_wb2"], rtol=1e-9)
    made, truth, climate = verification(case)
    scores = verify(made, truth, metrics=("mse", "crps_fair", "acc"), climatology=climate, weights="cosine").squeeze()
    # over the ocean (the third variable) the authors divide by the number of points, not by the sum of their weights, and their
    # correlation takes the forecast's variance from land too
    land = np.isnan(truth["x2"].values[0])
    weight = np.broadcast_to(np.array(weights)[:, None], land.shape)
    departure = (made["x2"].mean("number") - climate["x2"].squeeze()).values.squeeze()
    everywhere, ocean = (np.average(departure[where] ** 2, weights=weight[where]) for where in (np.isfinite(departure), ~land))
    shares = {"mse": weight[~land].mean(), "crps_fair": weight[~land].mean()}
    shares["acc"] = np.sqrt(ocean / everywhere * weight[~land].mean() / weight[np.isfinite(departure)].mean())
    assert land.any()
    for metric, key in (("mse", "ens_mse"), ("crps_fair", "crps_lw"), ("acc", "acc")):
        found = np.array([float(scores[f"x{i}"].sel(metric=metric)) for i in range(3)])
        np.testing.assert_allclose(found * [1, 1, shares[metric]], expected[key], rtol=1e-5, err_msg=key)


@golden
def test_the_crps_of_each_point(case: Case) -> None:
    members, truth = case["met.forecast"].double().numpy(), case["met.truth"].double().numpy()
    points = truth.size
    block = Block(
        members.reshape(5, points, 1, 1, 1), truth.reshape(points, 1, 1, 1), np.ones(1), (1, 1), Settings(),
        np.arange(points), np.zeros(1), np.zeros(1, int),
    )  # fmt: skip
    total, weight = continuous.crps_fair(block)
    expected = case["met.crps"].numpy().ravel()
    assert np.array_equal(weight.ravel() == 0, np.isnan(expected))
    np.testing.assert_allclose(total.ravel(), np.nan_to_num(expected), atol=1e-5)
    skill, _ = continuous.absolute(dataclasses.replace(block, settings=Settings(ensemble="members")))
    np.testing.assert_allclose(skill.ravel() / 5, np.nan_to_num(case["met.crps_skill"].numpy().ravel()), atol=1e-5)
    spread = 2 * (skill.ravel() / 5 - total.ravel())
    seen = np.isfinite(expected)
    np.testing.assert_allclose(spread[seen], case["met.crps_spread"].numpy().ravel()[seen], atol=1e-5)


@golden
def test_errors_of_a_reconstruction_in_physical_units(case: Case) -> None:
    """Per channel, weighted by the cosine of the latitude."""
    names = (*case.channels, *case.static)
    prediction, target = (case.units.denormalise(case[f"ae.loss.{name}"], names).double() for name in ("pred_masked", "target"))
    errors = prediction - target
    found = (errors.square() * cosine_weights(case.grid)).mean((0, 2, 3))
    np.testing.assert_allclose(found, case.json["ae_loss"]["lw_mse_per_channel_unnormalised"], rtol=1e-4)


@golden
def test_initial_times_of_the_papers_evaluation(case: Case) -> None:
    for key, count in (("eval_inits_2018_10_per_month", 10), ("val_inits_2018_2_per_month", 2)):
        found = [str(time)[:13].replace("-", "").replace("T", "") for time in evaluation_times(2018, count)]
        assert found == case.json[key], key


# ---- training


@golden
def test_schedule_and_averages(case: Case) -> None:
    recipe = Denoising(create_model("ladcast"), warmup=10, lr=1e-4)
    expected = case.json["lr_cosine_warm10_total50_base1e-4"]
    np.testing.assert_allclose([1e-4 * recipe.schedule(step, 50) for step in range(len(expected))], expected, rtol=1e-9, atol=1e-18)
    for updates, decay in case.json["ema_decay"].items():
        assert average_decay(int(updates)) == pytest.approx(decay, rel=1e-9), updates


@golden
def test_windows_of_hourly_latents_are_the_authors(case: Case, tmp_path: Path) -> None:
    from wxlab.store import prepare
    from wxlab.windows import Windows

    expected = case.json["ar_dataset"]
    hours = np.datetime64("1979-01-01T05", "ns") + np.arange(expected["n_hours"]) * np.timedelta64(1, "h")
    latent = np.broadcast_to(np.arange(40.0, dtype=np.float32)[:, None, None, None], (40, 1, 4, 8)) + np.zeros((40, 1, 4, 8), np.float32)
    grid = Grid.regular(4, 8)
    coords = {"time": hours, "level": [0], "latitude": list(grid.y), "longitude": list(grid.x)}
    data = xr.Dataset({"latent": (("time", "level", "latitude", "longitude"), latent)}, coords)
    store = prepare(data, tmp_path / "s.zarr", splits={"train": ["1979-01-01", "1979-01-02"]}, normalisation={"latent": "none"})
    windows = Windows(store, "train", history=1, horizon=4, step=6)
    batch = windows.batch(np.array([3]))
    assert windows.samples == expected["len"]
    assert batch.history[0, :, 0, 0, 0].tolist() == expected["idx3_input_hours"] and batch.target is not None
    assert batch.target[0, :, 0, 0, 0].tolist() == expected["idx3_target_hours"]
    assert batch.time[0, 0] == stamps(torch.tensor([expected["idx3_timestamp"]]))[0]


# ---- checkpoints


@golden
def test_the_authors_keys_go_round(case: Case) -> None:
    for state, save, model in (
        (case.states["ae"], save_autoencoder, case.autoencoder),
        (case.states["transformer"], save_transformer, case.transformer),
    ):
        again = save(model)  # type: ignore[operator]
        assert set(again) == set(state)
        for key, value in state.items():
            assert torch.equal(again[key], value), key


SIZES = {  # of the published models: parameters and tensors
    ("ladcast_autoencoder", "paper_84"): (256_411_145, 342),
    ("ladcast_autoencoder", "paper_1024"): (1_087_247_962, 342),
    ("ladcast", "375M"): (374_938_452, 168),
    ("ladcast", "1.6B"): (1_605_496_660, 384),
}


@pytest.mark.parametrize(("name", "preset"), SIZES)
def test_published_sizes(name: str, preset: str) -> None:
    with torch.device("meta"):
        model: Any = create_model(name, preset)
    state = (save_autoencoder if name == "ladcast_autoencoder" else save_transformer)(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (count, len(state)) == SIZES[name, preset] and sum(value.numel() for value in state.values()) == count
    with torch.device("meta"):
        again = load_official(name, state, config={} if name == "ladcast" else {"grid": model.spec.grid})
    assert {key: value.shape for key, value in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert again.spec == model.spec
    if preset == "paper_84":
        assert sum(p.numel() for p in model.encoder.parameters()) == 113_199_852
        assert state["encoder.down_blocks.10.attn.to_qkv_multiscale.0.proj_in.weight"].shape == (1440, 1, 5, 5)
        assert state["decoder.up_blocks.0.attn.to_out.weight"].shape == (1008, 2 * 992)
    if preset == "375M":
        assert state["single_transformer_blocks.3.proj_out.weight"].shape == (1536, 5 * 1536)


def pair(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return create_model(name).eval(), save_autoencoder if name == "ladcast_autoencoder" else save_transformer


@pytest.mark.parametrize("name", ["ladcast_autoencoder", "ladcast"])
def test_folders_as_diffusers_writes_them_and_training_checkpoints(name: str, tmp_path: Path) -> None:
    model, save = pair(name)
    state = save(model, tmp_path / "plain")
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert config["_class_name"] in ("AutoencoderDC", "LaDCastTransformer3DModel")
    folder = "encdec" if name == "ladcast_autoencoder" else "ar_model"
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    for part, weights in ((folder, other), (f"{folder}_ema", state)):
        (tmp_path / "checkpoint-5" / part).mkdir(parents=True)
        save_file(weights, tmp_path / "checkpoint-5" / part / "diffusion_pytorch_model.safetensors")
        (tmp_path / "checkpoint-5" / part / "config.json").write_text(json.dumps({**config, "decay": 0.9999, "optimization_step": 7}))
    grid = {"grid": model.spec.grid}
    sources = (tmp_path / "plain", tmp_path / "plain/diffusion_pytorch_model.safetensors", tmp_path / "checkpoint-5", state)
    for source in sources:
        again = load_official(name, source, config={**config, **grid} if source is state else grid)
        assert again.licence == "MIT" and model.licence == "Apache-2.0"
        assert again.name == name and not again.training
        assert {**again.config, "sampling_steps": 4} == {**model.config, "sampling_steps": 4}
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key


def test_the_latent_grid_is_read_from_the_rotary_positions(tmp_path: Path) -> None:
    config = {"rope_spatial_grid_start_pos": [-499.5, 5.25], "rope_spatial_grid_end_pos": [508.5, 353.25], "rope_axes_dim": [4, 6, 6]}
    model, save = pair("ladcast")
    assert load_official("ladcast", save(model), config=config).spec.grid == LATENT
    assert load_official("ladcast", save(model)).spec.grid == LATENT  # which is the paper's


def broken(name: str, change: Any, **config: Any) -> None:
    model, save = pair(name)
    state = save(model)
    change(state)
    load_official(name, state, config={"grid": model.spec.grid, **config})


FAULTS: dict[str, tuple[Any, str]] = {
    "missing": (lambda p: broken("ladcast", lambda s: s.pop("proj_out.bias")), "missing proj_out.bias$"),
    "unexpected": (lambda p: broken("ladcast", lambda s: s.update(extra=torch.ones(1))), "unexpected extra"),
    "part of a joined one": (
        lambda p: broken("ladcast", lambda s: s.pop("transformer_blocks.0.attn.to_k.weight")),
        "missing transformer_blocks.0.attn.to_k.weight$",
    ),
    "another shape": (
        lambda p: broken("ladcast_autoencoder", lambda s: s.update({"decoder.norm_out.bias": torch.ones(3)})),
        r"decoder.norm_out.bias \[3\] should hold 8 rows of 1 numbers",
    ),
    "changes": (lambda p: save_transformer(create_model("ladcast", changes=True)), "only changes=False can be written"),  # type: ignore[arg-type]
    "another model": (lambda p: load_official("ladcast_autoencoder", {"a": torch.ones(1)}), "not the weights of a LaDCast autoencoder"),
    "another transformer": (lambda p: load_official("ladcast", {"a": torch.ones(1)}), "not the weights of a LaDCast transformer"),
    "settings": (lambda p: broken("ladcast", lambda s: None, num_layers=7), r"num_layers=7 \(the weights say 1\)"),
    "decoder settings": (
        lambda p: broken("ladcast_autoencoder", lambda s: None, static_channels=0, decoder_layers_per_block=[2, 1]),
        r"decoder_layers_per_block=\[2, 1\] \(the weights say \[1, 1\]\)",
    ),
    "unused option": (lambda p: broken("ladcast", lambda s: None, nope=True), "nope=True .* is not supported"),
    "channel names": (lambda p: broken("ladcast_autoencoder", lambda s: None, channels=["a"]), "1 names of channels were given .* with 3"),
    "no config": (lambda p: load_official("ladcast", p), "holds no config.json"),
    "no file": (lambda p: load_official("ladcast", p / "nowhere"), "there is no checkpoint file"),
    "statistics of other channels": (
        lambda p: read_statistics({"temperature": {"mean": {"500": 1.0}, "std": {"500": 1.0}}}, ["2m_temperature"]),
        r"unknown channel of the statistics '2m_temperature'; did you mean 'temperature'\?",
    ),
    "statistics of other levels": (
        lambda p: read_statistics({"temperature": {"mean": {"500": 1.0}, "std": {"500": 1.0}}}, ["temperature_850"]),
        r"no mean of 'temperature' at 850 hPa \(levels: 500\)",
    ),
    "latent statistics of another model": (
        lambda p: latent_statistics({"mean": [0.0] * 84, "std": [1.0] * 84}, ["latent_0"]),
        "84 means and 84 standard deviations, and the model has 1 channels",
    ),
    "latent statistics of text": (lambda p: latent_statistics({"mean": ["a"], "std": [1.0]}, ["latent_0"]), "hold 0 means and 1 standard"),
    "statistics that are none": (lambda p: read_statistics({"a": 3}, ["a"]), "the mean of 'a' in the statistics is None; a number"),
    "statistics as a list": (lambda p: read_statistics([1], ["a"]), "the statistics are a list; give the path"),  # type: ignore[arg-type]
    "no statistics": (lambda p: read_statistics(p / "none.json"), "there is no statistics file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str, tmp_path: Path) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault(tmp_path)
    assert "\n" not in str(error.value)


def test_statistics_as_the_generator_leaves_them(tmp_path: Path) -> None:
    """Three objects one after the other in one file; missing sea surface temperature goes to -2, static fields have their own units."""
    parts = [
        {"land_sea_mask": {"mean": 0.3, "std": 0.5}},
        {"sea_surface_temperature": {"mean": 286.0, "std": 12.0}},
        {"geopotential": {"mean": {"500": 54000.0}, "std": {"500": 3000.0}}},
    ]
    (tmp_path / "s.json").write_text("\n".join(json.dumps(part, indent=1) for part in parts))
    channels = ("geopotential_500", "sea_surface_temperature")
    units = read_statistics(tmp_path / "s.json", channels, ("land_sea_mask",))
    x = torch.tensor([57000.0, float("nan")]).view(2, 1, 1)
    assert units.normalise(x, channels).flatten().tolist() == [1.0, -2.0]
    assert not units.mask(x, channels)[1].any()  # type: ignore[index]
    assert units.transforms["land_sea_mask"].offset == 0.331487


@golden
def test_the_paper_s_statistics_travel_with_official_weights(golden_dir: Path) -> None:
    import csv

    rows = list(csv.DictReader((golden_dir / "ladcast/stats/channel_stats_1979_2017.csv").read_text().splitlines()))
    values: dict[str, Any] = {}
    for row in rows:
        entry = values.setdefault(row["variable"], {"mean": {}, "std": {}} if row["level_hPa"] else {})
        for kind in ("mean", "std"):
            if row["level_hPa"]:
                entry[kind][row["level_hPa"]] = float(row[kind])
            else:
                entry[kind] = float(row[kind])
    units = read_statistics(values)
    assert len(units.transforms) == 84 and units.transforms["geopotential_50"].offset == 199317.5625
    names = [f"{row['variable']}_{row['level_hPa']}" if row["level_hPa"] else row["variable"] for row in rows]
    assert list(units.transforms) == names

    rows = list(csv.DictReader((golden_dir / "ladcast/stats/latent_stats_1979_2017.csv").read_text().splitlines()))
    values = {kind: [float(row[kind]) for row in rows] for kind in ("mean", "std")}
    latents = latent_statistics(values, latent_names(84))
    for i in (0, 83):
        transform = latents.transforms[f"latent_{i}"]
        assert (transform.kind, transform.offset, transform.scale) == ("zscore", values["mean"][i], values["std"][i])



@golden
def test_the_fine_tuned_decoder_keeps_the_checksum(case: Case) -> None:
    recipe = Reconstruction(case.autoencoder, stage="decoder")
    groups = recipe.parameter_groups(case.autoencoder)
    ours = {id(parameter) for parameter in case.autoencoder.decoder.parameters()}
    assert {id(parameter) for group in groups for parameter in group["params"]} == ours and recipe.lr == 1e-5
