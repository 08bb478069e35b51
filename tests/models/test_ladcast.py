"""LaDCast: physics of the autoencoder, the transformer's parts, recipes, forecasts that carry latents."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from noise import make, times_of
from standins import Noise, windows
from torch import Tensor

import wxlab
from wxlab import create_model, forecast, rollout
from wxlab.checkpoints import load_checkpoint, save_checkpoint
from wxlab.encoding import decode, encode_states, reconstruct
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models import Batch
from wxlab.models.ladcast import Autoencoder, Denoising, Ladcast, LatentForecaster, Reconstruction, sampling_steps
from wxlab.models.ladcast.blocks import LinearAttention
from wxlab.models.ladcast.rope import Rotary, likeness, rotate, spherical_harmonics
from wxlab.models.ladcast.transformer import SingleBlock
from wxlab.normaliser import Normaliser, Transform
from wxlab.rollout import LEAD
from wxlab.store import prepare
from wxlab.streams import Streams

NAMES = ("2m_temperature", "geopotential_500", "geopotential_850")
UNITS = Normaliser({"2m_temperature": Transform("zscore", 275.0, 8.0), "geopotential_500": Transform("zscore", 5.6e4, 300.0),
                    "geopotential_850": Transform("zscore", 1.5e4, 300.0), "land_sea_mask": Transform("zscore", 0.5, 0.5)})  # fmt: skip
STATES = make(times_of(8, hours=6), Grid.regular(16, 32))


def autoencoder(**options: Any) -> Autoencoder:
    torch.manual_seed(0)
    model = create_model("ladcast_autoencoder", channels=NAMES, **options)
    assert isinstance(model, Autoencoder)
    model.normaliser = UNITS
    return model.eval()


def transformer(**options: Any) -> Ladcast:
    torch.manual_seed(1)
    model = create_model("ladcast", **{"grid": autoencoder().latent_grid, **options})
    assert isinstance(model, Ladcast)
    model.normaliser = Normaliser({name: Transform("zscore", 0.1, 0.8) for name in model.spec.channels})
    return model.eval()


def forecaster(static: bool = False, **options: Any) -> LatentForecaster:
    return LatentForecaster(autoencoder(static=("land_sea_mask",) if static else ()), transformer(**options))


# ---- the autoencoder


def deep(dtype: torch.dtype = torch.float64) -> Autoencoder:
    """Three levels, so that rolls must match a stride of 4."""
    levels = {"widths": (8, 16, 16), "layers": (1, 1, 1), "blocks": ("res", "evit", "evit"), "scales": ((), (3,), (5,))}
    return autoencoder(**levels).to(dtype)


def test_the_latent_of_a_rolled_field_is_the_rolled_latent() -> None:
    model = deep()
    x = torch.randn(2, 3, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (2, 4, 4, 8)
        for cells in (1, 3):
            torch.testing.assert_close(model.encode(x.roll(4 * cells, -1)), z.roll(cells, -1), rtol=0, atol=1e-10)
            torch.testing.assert_close(model.decode(z.roll(cells, -1)), model.decode(z).roll(4 * cells, -1), rtol=0, atol=1e-10)
        assert not torch.allclose(model.encode(x.roll(1, -1)), z, atol=1e-3)


def test_a_zonally_uniform_state_has_a_zonally_uniform_latent() -> None:
    model = deep()
    x = torch.randn(1, 3, 16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 32)
    with torch.no_grad():
        z, back = model.encode(x), model.decode(model.encode(x))
    torch.testing.assert_close(z, z[..., :1].expand_as(z), rtol=0, atol=1e-10)
    every = back[..., ::4]  # up-sampling tells the points of a cell apart
    torch.testing.assert_close(every, every[..., :1].expand_as(every), rtol=0, atol=1e-10)
    assert z.std(-2).min() > 1e-3


def test_linear_attention_is_the_quadratic_one() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(20, 9, (3,)).double()
    x = torch.randn(2, 20, 4, 6, dtype=torch.float64)
    qkv = layer.to_qkv(x)
    joined = torch.cat([qkv, layer.to_qkv_multiscale[0](qkv)], dim=1).flatten(2).unflatten(1, (-1, 27))  # [B, G, 3 dim, HW]
    q, k, v = joined[:, :, :9].relu(), joined[:, :, 9:18].relu(), joined[:, :, 18:]
    scores = k.transpose(-1, -2) @ q  # [B, G, keys, queries]
    out = (v @ (scores / (scores.sum(-2, keepdim=True) + 1e-15))).flatten(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(layer(x), x + layer.norm_out(layer.to_out(out)), rtol=1e-10, atol=1e-12)


def test_shortcuts_alone_keep_the_means_of_cells() -> None:
    """With all convolutions at zero the encoder averages and the decoder repeats: the compression starts from a sound place."""
    model = autoencoder(widths=(4, 16), blocks=("res", "res"), scales=((), ()), latent=16).double()
    for name, parameter in model.named_parameters():
        if "norm" not in name and name != "encoder.conv_in.weight":
            parameter.data.zero_()
    model.encoder.conv_in.weight.data.zero_()
    for i in range(3):
        model.encoder.conv_in.weight.data[i, i, 1, 1] = 1
    x = torch.randn(1, 3, 16, 32, dtype=torch.float64)
    z = model.encode(x)  # four numbers of each cell for each of the first channels
    assert torch.allclose(z[:, :4].sum(1), x[:, 0].unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).sum((2, 4)))


def test_static_fields_go_in_and_come_back() -> None:
    model = autoencoder(static=("land_sea_mask",))
    x, static = torch.randn(2, 3, 16, 32), torch.randn(1, 16, 32)
    with torch.no_grad():
        z = model.encode(x, static)
        assert z.equal(model.encode(torch.cat([x, static.expand(2, -1, -1, -1)], dim=1)))
        assert not z.equal(model.encode(x, -static))
        assert model.decode(z).shape == (2, 3, 16, 32) and model.decode(z, return_static=True).shape == (2, 4, 16, 32)
        assert model(x, static)[:, :3].equal(model.decode(z))


def test_what_a_latent_is() -> None:
    model = create_model("ladcast_autoencoder", "demo")
    assert isinstance(model, Autoencoder)
    rows, columns = model.spec.grid.shape
    assert (rows // model.factor, columns // model.factor) == model.latent_grid.shape
    assert model.latent_grid.y[0] == pytest.approx(np.mean(model.spec.grid.y[: model.factor]))
    assert model.latent_channels == tuple(f"latent_{i}" for i in range(model.config["latent"]))
    with torch.device("meta"):
        paper: Any = create_model("ladcast_autoencoder", "paper_84")
    assert paper.compression == 64 and (paper.latent_grid.y[0], paper.latent_grid.y[-1], paper.latent_grid.x[-1]) == (-83.25, 84.75, 353.25)
    with torch.device("meta"):
        assert create_model("ladcast", "375M").spec.grid == paper.latent_grid


def test_the_checksum_is_that_of_encoder_and_units() -> None:
    model, other = autoencoder(), autoencoder()
    assert model.checksum == other.checksum
    other.decoder.conv_out.bias.data += 1  # type: ignore[union-attr]
    assert model.checksum == other.checksum
    other.encoder.conv_out.bias.data += 1  # type: ignore[union-attr]
    assert model.checksum != other.checksum
    model.normaliser = None
    assert model.checksum != autoencoder().checksum


# ---- the transformer


@pytest.mark.parametrize("position", ["geo", "rotary", "learned", "spherical_harmonics"])
def test_every_position_tells_places_apart(position: str) -> None:
    model = transformer(position=position, grid=(4, 8))
    known = torch.randn(1, 4, 1, 4, 8)
    uniform, time, level = torch.ones(1, 4, 2, 4, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    with torch.no_grad():
        rolled = model(uniform, known.roll(2, -1), level, time)
        plain = model(uniform, known, level, time)
    assert not torch.allclose(rolled, plain.roll(2, -1), atol=1e-5)  # no encoding is blind to where a thing is
    assert model.config["position"] == position
    extra = set(model.state_dict()) - set(transformer(position="geo", grid=(4, 8)).state_dict())
    assert bool(extra) == (position in ("learned", "spherical_harmonics"))


def test_rotations_know_differences_of_positions_only() -> None:
    turning = Rotary(256.0, (4, 6, 6), (0.0, 5.0), (0.0, 9.0))
    table = turning.table(0, 3, 6, 10, torch.device("cpu"))
    assert torch.allclose(table.abs(), torch.ones(1))
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    grid = torch.arange(180).view(3, 6, 10)
    products = []
    for t, y, x in ((0, 0, 0), (1, 2, 3)):
        turned_q = rotate(q, table[grid[t + 1, y + 1, x + 2]][None])
        turned_k = rotate(k, table[grid[t, y, x]][None])
        products.append((turned_q * turned_k).sum())
    torch.testing.assert_close(products[0], products[1], rtol=1e-5, atol=1e-6)
    assert rotate(q, table[:1]).norm() == pytest.approx(float(q.norm()))


def test_the_papers_latitude_factor_is_half_the_codes() -> None:
    code, paper = (transformer(latitude_factor=factor).network.rotary for factor in (6.0, 3.0))
    assert code.y is not None and paper.y is not None and code.y[0] == pytest.approx(2 * paper.y[0]) and code.x == paper.x
    assert code.y[0] == pytest.approx(math.radians(6 * autoencoder().latent_grid.y[0]))


def test_likeness_of_places() -> None:
    grid = Grid.regular(16, 32)
    alike = {position: likeness(grid, 40.0, 100.0, position=position) for position in ("geo", "rotary")}  # type: ignore[arg-type]
    for field in alike.values():
        assert field.dims == ("latitude", "longitude") and float(field.max()) == pytest.approx(1) and float(field.min()) >= -1
        place = field.where(field == field.max(), drop=True)
        assert abs(float(place["latitude"][0]) - 40) < 6 and abs(float(place["longitude"][0]) - 100) < 6
    narrow, wide = (float((likeness(grid, 0.0, 180.0, latitude_factor=factor)[:, 16] > 0.8).sum()) for factor in (6.0, 3.0))
    assert narrow < wide  # 6 times the latitude turns twice as fast


def test_spherical_harmonics_are_orthonormal() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(12)
    basis = spherical_harmonics(np.rad2deg(np.arcsin(nodes)), 15.0 * np.arange(24), 8)
    area = np.repeat(weights, 24) * 2 * np.pi / 24
    np.testing.assert_allclose(basis.T @ (area[:, None] * basis), np.eye(81), atol=1e-12)
    assert spherical_harmonics([30.0], [0.0], 1)[0, 2] == pytest.approx(math.sqrt(3 / (4 * math.pi)) * 0.5)  # Y10 ~ sin(latitude)


def test_what_no_one_reads_of_the_last_block_is_left_out_without_a_difference() -> None:
    torch.manual_seed(0)
    block = SingleBlock(32, 16, 2).double()
    z, emb = torch.randn(2, 12, 32, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    table = torch.polar(torch.ones(12, 1, 8), torch.randn(12, 1, 8))
    torch.testing.assert_close(block(z, emb, table, 7), block(z, emb, table, 12)[:, :7], rtol=1e-12, atol=1e-12)


def test_a_near_start_sees_the_known_latents_at_once_and_nearby() -> None:
    """The attention of new networks: how much of it goes to the known token at the same place, in the single block."""
    shares = {}
    for start in ("random", "near"):
        model = transformer(grid=(4, 8), start=start)
        weights = wxlab.attention.capture(model, windows(model, 1))["single"].values.reshape(-1, 64, 96).mean(0)  # [queries, tokens]
        place = np.arange(64) % 32
        shares[start] = weights[np.arange(64), 64 + place].mean() * 96
    assert shares["random"] < 1.5 < 2.5 < shares["near"]
    names = [dict(transformer(start=start).named_parameters()) for start in ("random", "near")]
    assert names[0].keys() == names[1].keys() and transformer().config["start"] == "random"


def test_changes_are_sampled_from_the_last_known_state() -> None:
    model = transformer(changes=True, history=2)
    future, history = torch.randn(2, 2, 4, 8, 16), torch.randn(2, 2, 4, 8, 16)
    known = model.scaled(history)
    clean = model.clean(future, known)
    torch.testing.assert_close(clean, 0.5 * (future - history[:, -1:]).transpose(1, 2))
    torch.testing.assert_close(model.latents(clean, known), future)
    plain = transformer(history=2)
    torch.testing.assert_close(plain.latents(plain.clean(future, known), known), future)
    assert torch.equal(plain.clean(future, known), plain.scaled(future))
    batch = windows(model, 2)
    model.denoiser = lambda known, time: lambda x, sigma: torch.zeros_like(x)  # type: ignore[method-assign, assignment]
    made = model.predict(batch, 1, Noise(2, 1))  # type: ignore[arg-type]
    torch.testing.assert_close(made[:, 0], batch.history[:, -1:].expand(-1, 2, -1, -1, -1))  # no change: persistence


def test_attention_can_be_captured() -> None:
    model = transformer(grid=(4, 8))
    batch = windows(model, 1)
    weights = wxlab.attention.capture(model, batch)
    assert set(weights.data_vars) == {"refiner", "dual", "single"}
    for name, queries, tokens in (("refiner", 32, 32), ("dual", 96, 96), ("single", 64, 96)):
        kind = weights[name]
        assert kind.shape[1:] == (1, 2, queries, tokens) and np.allclose(kind.sum(kind.dims[-1]), 1, atol=1e-5)
    noise: Any = Noise(1, 1)
    with torch.no_grad():
        plain = model.predict(batch, 1, noise)
        handles = [m.register_forward_hook(lambda *_: None) for m in model.modules() if isinstance(m, wxlab.nn.attention_tap.AttentionTap)]
        seen = model.predict(batch, 1, Noise(1, 1))  # type: ignore[arg-type]
    assert len(handles) == 3 and torch.equal(plain, seen)


def test_a_sample_takes_39_calls_of_the_network_and_10_by_the_solver() -> None:
    model = transformer(sampling_steps=20)
    calls: list[int] = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    batch = windows(model, 2)
    with torch.no_grad():
        model.predict(batch, 3, Noise(2, 3))  # type: ignore[arg-type]
        assert len(calls) == 39
        other = model.with_sampling(sampler="dpm", sampling_steps=10)
        other.predict(batch, 1, Noise(2, 1))  # type: ignore[arg-type]
    assert len(calls) == 49 and model.config["sampling_steps"] == 20 and next(other.parameters()) is next(model.parameters())


def test_churn_and_time_of_the_year_make_a_difference() -> None:
    model = transformer()
    batch = windows(model, 1)

    def run(model: Ladcast, batch: Batch) -> Tensor:
        with torch.no_grad():
            return model.predict(batch, 1, Noise(1, 1))  # type: ignore[arg-type]

    plain = run(model, batch)
    assert not torch.allclose(plain, run(model.with_sampling(churn=4.0), batch))
    summer = Batch(batch.history, None, batch.time + 180 * 86400)
    assert not torch.allclose(plain, run(model, summer))
    blind = transformer(year=False)
    assert torch.equal(run(blind, batch), run(blind, summer))


# ---- recipes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["ladcast_autoencoder", "ladcast"])
def test_both_precisions_train(name: str, precision: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).train()
    recipe: Any = Reconstruction(model) if name == "ladcast_autoencoder" else Denoising(model)
    batch = windows(model, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss, _ = recipe.loss(model, batch, torch.Generator().manual_seed(0))
    reference, _ = recipe.loss(model, batch, torch.Generator().manual_seed(0))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(reference.item(), rel=0.02)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"), torch.no_grad():
        out = model.eval().predict(batch, 1, Noise(2, 1))  # type: ignore[arg-type]
    assert torch.isfinite(out).all()


def with_sst() -> tuple[Autoencoder, Batch]:
    """A model of sea surface temperature and a batch in which half of it is missing and filled with -2."""
    channels = ("sea_surface_temperature", "2m_temperature")
    torch.manual_seed(0)
    model: Any = create_model("ladcast_autoencoder", channels=channels)
    batch = windows(model, 3)
    mask = torch.ones(3, 2, 2, 16, 32, dtype=torch.bool)
    mask[:, :, 0, :, :16] = False
    batch.mask = mask
    batch.history = torch.where(mask[:, :1], batch.history, -2.0)
    return model, batch


def test_missing_sea_surface_temperature_counts_as_right() -> None:
    model, batch = with_sst()
    recipe = Reconstruction(model, rolls="none")
    loss, _ = recipe.loss(model, batch, torch.Generator())
    x, observed = batch.history[:, 0], batch.mask[:, 0]  # type: ignore[index]
    error = ((model(x)[:, :2] - x) * observed).flatten(2).norm(dim=-1) / x.flatten(2).norm(dim=-1)
    assert loss.item() == pytest.approx(error.mean().item(), rel=1e-5)
    validation = recipe.validation(model, batch, None)
    expected = (((model(x)[:, :2] - x) * observed) ** 2).flatten(1).sum(1) / observed.flatten(1).sum(1)
    torch.testing.assert_close(validation, expected, rtol=1e-5, atol=1e-6)


def test_a_mask_that_is_not_there_is_asked_for() -> None:
    model, batch = with_sst()
    batch.mask = None
    with pytest.raises(WxlabError, match=r"sea_surface_temperature comes without a mask .* nan=\{'sea_surface_temperature': 'mask'\}"):
        Reconstruction(model).loss(model, batch, torch.Generator())
    loss, _ = Reconstruction(model, require_mask=[]).loss(model, batch, torch.Generator())
    assert torch.isfinite(loss)


def test_rolls_move_fields_masks_static_and_weights_together() -> None:
    """A reconstruction that is right at each point stays right however samples are moved, and weights and masks follow."""
    model, batch = with_sst()
    seen: list[Tensor] = []

    class Fixed(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    model.encoder, model.decoder = Fixed(), torch.nn.Identity()  # type: ignore[assignment]
    model.decoder.forward = lambda z: 1.1 * z  # type: ignore[method-assign]
    losses = {}
    for rolls in ("none", "longitude", "both"):
        recipe = Reconstruction(model, rolls=rolls, latitude_weights=True)  # type: ignore[arg-type]
        losses[rolls] = recipe.loss(model, batch, torch.Generator().manual_seed(3))[0].item()
    assert losses["none"] == pytest.approx(losses["longitude"], rel=1e-5) == pytest.approx(losses["both"], rel=1e-5)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert torch.allclose(seen[1].sum(-1), seen[0].sum(-1), atol=1e-3) and not torch.allclose(seen[2].sum(-1), seen[0].sum(-1), atol=1e-3)


def test_two_thirds_of_the_samples_are_moved() -> None:
    model = autoencoder()
    shifts = Reconstruction(model)._shifts(torch.zeros(6000, 1, 16, 32), torch.Generator().manual_seed(0))
    moved = shifts.any(1).float().mean()
    assert float(moved) == pytest.approx(2 / 3, abs=0.02) and shifts[:, 0].max() == 31 and shifts[:, 1].max() == 15
    assert not Reconstruction(model, rolls="longitude")._shifts(torch.zeros(100, 1, 16, 32), torch.Generator())[:, 1].any()


def test_fine_tuning_moves_the_decoder_alone() -> None:
    model = autoencoder().train()
    before = copy.deepcopy(model.state_dict())
    recipe = Reconstruction(model, stage="decoder", lr=1e-2)
    optimiser = recipe.optimiser(model)
    loss, _ = recipe.loss(model, windows(model), torch.Generator().manual_seed(0))
    loss.backward()
    optimiser.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"} and recipe.unused_parameters


def test_latitude_weights_of_the_denoiser_and_its_validation() -> None:
    model = transformer()
    batch = windows(model, 3)
    recipes = [Denoising(model, latitude_weights=on) for on in (True, False)]
    weighted, plain = (recipe.loss(model, batch, torch.Generator().manual_seed(0))[0] for recipe in recipes)
    assert weighted.item() != plain.item()
    recipe = Denoising(model)
    starts = batch.time[:, 0]
    with torch.no_grad():
        errors = recipe.validation(model, batch, Streams(0, starts, 1, 0))
        assert errors.shape == (3,) and torch.equal(errors, recipe.validation(model, batch, Streams(0, starts, 1, 0)))
        one = Batch(batch.history[1:2], batch.target[1:2], batch.time[1:2])  # type: ignore[index]
        torch.testing.assert_close(recipe.validation(model, one, Streams(0, starts[1:2], 1, 0)), errors[1:2], rtol=1e-4, atol=1e-5)


def test_averages_wait_and_then_follow_their_own_decay() -> None:
    recipe = Denoising(transformer(), average_from=3)
    update = recipe.averaging(0.9999)
    averaged, path = [torch.zeros(1)], []
    for count in range(6):
        update(averaged, [torch.full((1,), float(count + 1))], torch.tensor(count))
        path.append(float(averaged[0]))
    assert path[:4] == [1, 2, 3, 4] and path[4] == pytest.approx(4 + 2**-0.66667)
    assert path[5] == pytest.approx(path[4] + (6 - path[4]) * 3**-0.66667)


def test_all_stages_through_the_trainer(tmp_path: Path) -> None:
    data = make(times_of(200, hours=6, start="2001-01-01"), Grid.regular(16, 32))
    splits = {"train": ["2001-01-01", "2001-02-05"], "validation": ["2001-02-06", "2001-02-12"], "test": ["2001-02-13", "2001-02-19"]}
    chosen: dict[str, Any] = {"variables": ["2m_temperature", "geopotential"], "levels": [500, 850], "static": ["land_sea_mask"]}
    store = prepare(data, tmp_path / "s.zarr", splits=splits, **chosen)
    how: dict[str, Any] = {"preset": "tiny", "steps": 4, "batch_size": 4, "progress": False, "validation_windows": 4}
    first = wxlab.train("ladcast_autoencoder", store, run_dir=tmp_path / "1", ema=0.99, recipe={"average_from": 1}, **how)
    tuned = load_checkpoint(first)
    how.pop("preset")
    second = wxlab.train(tuned, store, run_dir=tmp_path / "2", recipe={"stage": "decoder"}, lr=1e-3, **how)
    one, two = load_checkpoint(first), load_checkpoint(second)
    assert isinstance(one, Autoencoder) and isinstance(two, Autoencoder)
    assert one.checksum == two.checksum and not torch.equal(one.decoder.conv_out.weight, two.decoder.conv_out.weight)
    latents = wxlab.encoding.encode(second, store, tmp_path / "l.zarr")
    third = wxlab.train("ladcast", latents, run_dir=tmp_path / "3", preset="tiny", precision="bf16", **how)
    model = load_checkpoint(third)
    assert isinstance(model, Ladcast) and model.facts["data"]["provenance"]["autoencoder"] == one.checksum
    for decoder in (one, two):  # either decodes what the one encoder made
        states = wxlab.store.open_store(store).dataset("test")
        made = forecast(LatentForecaster(decoder, model), states, steps=3, members=2, times="2001-02-13")
        assert made["geopotential"].shape == (1, 2, 3, 2, 16, 32) and all(np.isfinite(field).all() for field in made.values())
    two.encoder.conv_out.bias.data += 1  # type: ignore[union-attr]
    with pytest.raises(WxlabError, match="trained on latents of another autoencoder"):
        LatentForecaster(two, model)


# ---- forecasts


def test_a_forecast_of_fields_is_the_decoded_forecast_of_latents() -> None:
    model = forecaster(static=True)
    states = STATES.isel(time=slice(2))
    made = forecast(model, states, steps=5, members=3, seed=4)
    latents = forecast(model.transformer, encode_states(model.autoencoder, states), steps=5, members=3, seed=4)
    later = decode(model.autoencoder, latents)
    assert made.sizes["prediction_timedelta"] == 5 and set(made.data_vars) == {"2m_temperature", "geopotential"}
    for name in made.data_vars:
        np.testing.assert_allclose(made[name].transpose(*later[name].dims), later[name], rtol=1e-4)
    assert latents["latent"].nbytes * 6 == sum(field.nbytes for field in made.values()) * 2


def test_latents_stay_latent_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model = forecaster()
    counts = {"encode": 0, "decode": 0}
    for name in counts:
        original = getattr(model.autoencoder, name)

        def counting(x: Tensor, *rest: Any, name: str = name, original: Any = original) -> Tensor:
            counts[name] += len(x)
            return original(x, *rest)

        monkeypatch.setattr(model.autoencoder, name, counting)
    forecast(model, STATES, steps=7, members=3, times=STATES["time"].values[:2])
    assert counts == {"encode": 2, "decode": 2 * 3 * 7}


def test_any_number_of_members_in_batches_of_any_size_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, times = forecaster(sampling_steps=2), STATES["time"].values[:1]
    whole = forecast(model, STATES, steps=3, members=65, times=times, batch_size=65)
    monkeypatch.setattr(rollout, "CHUNK_BYTES", 1)
    held: list[int] = []
    pieces = rollout._pieces

    def watched(*given: Any) -> Iterator[Any]:
        for place, piece in pieces(*given):
            held.append(piece["2m_temperature"].size)
            yield place, piece

    monkeypatch.setattr(rollout, "_pieces", watched)
    streamed = forecast(model, STATES, steps=3, members=65, times=times, batch_size=16, out=tmp_path / "f.zarr")
    assert max(held) == 16 * 16 * 32 and len(held) == 5 * 3  # one lead time of 16 members at once
    for name in whole.data_vars:
        np.testing.assert_allclose(streamed[name], whole[name], rtol=1e-4)
    assert float(whole["2m_temperature"].std("number").min()) > 0


def test_predict_is_the_first_call_of_the_roll_out() -> None:
    model = forecaster(static=True)
    made = forecast(model, STATES, steps=2, members=2, times=STATES["time"].values[:1], seed=3)
    normalised = UNITS.normalise(torch.tensor(wxlab.store.stack(STATES.isel(time=[0]), NAMES).values, dtype=torch.float32), NAMES)
    static = UNITS.normalise(torch.tensor(STATES["land_sea_mask"].values)[None], ["land_sea_mask"])
    start = STATES["time"].values[:1].astype("datetime64[s]").astype(np.int64)
    batch = Batch(normalised[None], None, torch.from_numpy(start[:, None] + np.arange(3) * 21600), static=static)
    with torch.no_grad():
        block = model.predict(batch, 2, Streams(3, start, 2, 0))
    fields = UNITS.denormalise(block, NAMES)[0, :, :, 0]
    np.testing.assert_allclose(made["2m_temperature"][0], fields, rtol=1e-5)


def test_noise_is_fresh_unless_it_shall_repeat() -> None:
    model = forecaster(horizon=1)
    seen: list[Tensor] = []
    model.transformer.network.register_forward_hook(lambda m, given, out: seen.append(given[0]))

    def first_noise(**sampling: Any) -> list[Tensor]:
        """The noise at the start of each call, [B M, ...], for two initial times and two calls."""
        seen.clear()
        chosen = model.with_sampling(sampling_steps=2, **sampling)
        forecast(chosen, STATES, steps=2, members=2, times=STATES["time"].values[:2])
        return [seen[0], seen[3]]

    fresh, repeated = torch.stack(first_noise()), torch.stack(first_noise(noise="repeated"))
    assert len({tuple(x.flatten()[:3].tolist()) for x in fresh.flatten(0, 1)}) == 8
    assert len({tuple(x.flatten()[:3].tolist()) for x in repeated.flatten(0, 1)}) == 2
    expected = torch.randn(1, 4, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(repeated[0, 1] / repeated[0, 1].std(), expected[0] / expected.std(), rtol=1e-4, atol=1e-4)


def test_initial_noise_is_each_members_own() -> None:
    model = forecaster()
    known: list[Tensor] = []
    model.transformer.network.register_forward_hook(lambda m, given, out: known.append(given[1]))
    noisy = model.with_sampling(initial_noise=0.3)
    forecast(noisy, STATES, steps=1, members=3, times=STATES["time"].values[:1])
    assert known[0].shape[0] == 3 and not torch.allclose(known[0][0], known[0][1])
    assert float((known[0][0] - known[0][1]).std()) == pytest.approx(0.3 * 0.5 * math.sqrt(2), rel=0.15)
    known.clear()
    forecast(model, STATES, steps=1, members=3, times=STATES["time"].values[:1])
    assert torch.equal(known[0][0], known[0][1])


def test_every_step_of_a_sample_can_be_looked_at() -> None:
    model, time = forecaster(static=True), STATES["time"].values[3]
    steps = sampling_steps(model, STATES, time=time, seed=2)
    made = forecast(model, STATES, steps=2, times=time, seed=2)
    assert steps["geopotential"].dims == ("sigma", LEAD, "level", "latitude", "longitude")
    np.testing.assert_allclose(steps["sigma"], model.transformer.sampler.sigmas[:-1], rtol=1e-6)
    for name in made.data_vars:  # the last step ends on the last denoised sample
        np.testing.assert_allclose(steps[name].isel(sigma=-1), made[name].isel(time=0).transpose(*steps[name].dims[1:]), rtol=1e-4)
    assert not np.allclose(steps["geopotential"][0], steps["geopotential"][-1], rtol=1e-4)
    with pytest.raises(WxlabError, match="goes up and down among the noise levels"):
        sampling_steps(model.with_sampling(churn=1.0), STATES, time=time)
    with pytest.raises(WxlabError, match="2 initial times were given"):
        sampling_steps(model, STATES, time=STATES["time"].values[3:5])


def test_missing_sea_surface_temperature_stays_missing() -> None:
    channels = ("2m_temperature", "sea_surface_temperature")
    states = make(times_of(3, hours=6), Grid.regular(16, 32))
    land = states["land_sea_mask"] > 0.5
    states["sea_surface_temperature"] = states["2m_temperature"].where(~land)
    policies: Any = {"sea_surface_temperature": "mask"}
    units = Normaliser({name: Transform("zscore", 280.0, 10.0) for name in channels}, policies, {"sea_surface_temperature": 260.0})
    torch.manual_seed(0)
    model: Any = create_model("ladcast_autoencoder", channels=channels).eval()
    model.normaliser = units
    seen: list[Tensor] = []
    model.encoder.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    made = forecast(LatentForecaster(model, transformer()), states, steps=3, members=2, times=states["time"].values[:1])
    assert (seen[0][0, 1][torch.from_numpy(land.values)] == -2).all()
    assert np.array_equal(np.isnan(made["sea_surface_temperature"][0, 0, 2]), land) and not np.isnan(made["2m_temperature"]).any()
    steps = sampling_steps(LatentForecaster(model, transformer()), states, time=states["time"].values[0])
    assert np.array_equal(np.isnan(steps["sea_surface_temperature"][0, 0]), land) and not np.isnan(steps["2m_temperature"]).any()
    back = reconstruct(model, states)
    assert np.array_equal(np.isnan(back["sea_surface_temperature"][0]), land)


def test_sampling_travels_in_the_checkpoint(tmp_path: Path) -> None:
    model = transformer().with_sampling(sampler="dpm", sampling_steps=7, noise="repeated")
    save_checkpoint(model, tmp_path / "m.safetensors")
    again = load_checkpoint(tmp_path / "m.safetensors")
    assert again.config == model.config and again.config["sampling_steps"] == 7


# ---- faults


REGION = Grid(tuple(np.linspace(20, 60, 16)), tuple(np.linspace(100, 140, 32)))
BELT = Grid(tuple(np.linspace(-30, 30, 16)), tuple(np.arange(32) * 11.25))
FAULTS: dict[str, tuple[Any, str]] = {
    "rows": (lambda: create_model("ladcast_autoencoder", "demo", grid=(34, 64)), "34 rows, and this model needs a multiple of 4"),
    "columns": (lambda: create_model("ladcast_autoencoder", "demo", grid=(32, 68)), "68 columns, and this model needs a multiple of 8"),
    "too few rows": (lambda: create_model("ladcast_autoencoder", "demo", grid=(4, 64)), "4 rows to a latent cell leave 1 latent rows"),
    "a region": (lambda: create_model("ladcast_autoencoder", grid=REGION), "the longitudes of this grid do not"),
    "a belt": (lambda: create_model("ladcast_autoencoder", grid=BELT), "latitudes -30 to 30 do not reach both poles"),
    "several states": (lambda: create_model("ladcast_autoencoder", history=2), "reads and writes one state, but history=2"),
    "no list": (lambda: create_model("ladcast_autoencoder", widths=8), "widths=8 must be a list with one entry for each level"),
    "no number": (lambda: create_model("ladcast_autoencoder", latent="4"), "latent='4' must be made of whole numbers"),
    "no layers": (lambda: create_model("ladcast_autoencoder", layers=(0, 1)), r"layers=\(0, 1\) must be made of whole numbers"),
    "no flag": (lambda: create_model("ladcast_autoencoder", out_shortcut="no"), "out_shortcut='no' must be True or False"),
    "latent channels": (lambda: autoencoder().decode(torch.zeros(1, 3, 8, 16)), "3 latent channels were given, and this autoencoder has 4"),
    "latent": (lambda: create_model("ladcast_autoencoder", latent=5), "latent=5 must divide the deepest width, 16"),
    "widths": (lambda: create_model("ladcast_autoencoder", widths=(8, 18)), r"widths=\[8, 18\] do not halve: 18 must divide by 4"),
    "uneven lists": (lambda: create_model("ladcast_autoencoder", layers=(1,)), r"have \[2, 1, 2, 2\] entries; give one for each level"),
    "blocks": (lambda: create_model("ladcast_autoencoder", blocks=("res", "vit")), r"unknown kind of block 'vit'; did you mean 'evit'"),
    "kernels": (lambda: create_model("ladcast_autoencoder", scales=((), (4,))), r"scales=\(\(\), \(4,\)\) must be a list of odd kernels"),
    "kernels of no level": (lambda: create_model("ladcast_autoencoder", scales=(3, 3)), r"scales=\(3, 3\) must be a list of odd kernels"),
    "heads too wide": (lambda: create_model("ladcast_autoencoder", head_dim=64), "head_dim=64 is more than the width of an attention"),
    "channels": (lambda: autoencoder().encode(torch.zeros(1, 2, 16, 32)), "2 channels and 0 static fields were given, .* reads 3"),
    "no static": (
        lambda: autoencoder(static=("land_sea_mask",)).encode(torch.zeros(1, 3, 16, 32)),
        r"and 1 static fields \(land_sea_mask\)",
    ),
    "cells": (lambda: autoencoder().encode(torch.zeros(1, 3, 16, 30)), "16x30 points do not divide by 2x4"),
    "step": (lambda: create_model("ladcast", step=3 * 3600), r"frames are 6 h apart, and step is 3 h; prepare .*\[start, end, 6\]"),
    "daily": (lambda: create_model("ladcast", step=86400), "and step is 24 h"),
    "position": (lambda: create_model("ladcast", position="gio"), r"unknown position 'gio'; did you mean 'geo'"),
    "axes": (lambda: create_model("ladcast", axes=(4, 6, 8)), r"axes=\(4, 6, 8\) must be three even numbers .* sum to head_dim=16"),
    "one axis": (lambda: create_model("ladcast", axes=16), "axes=16 must be three even numbers"),
    "ratio": (lambda: create_model("ladcast", mlp_ratio="4"), "mlp_ratio='4' must be a number above 0; leave it at 4"),
    "factor": (lambda: create_model("ladcast", latitude_factor=0), "latitude_factor=0 must be a number above 0; leave it at 6.0"),
    "flag": (lambda: create_model("ladcast", year="no"), "year='no' must be True or False"),
    "other latents": (
        lambda: transformer()(torch.zeros(1, 3, 2, 8, 16), torch.zeros(1, 4, 1, 8, 16), torch.zeros(1)),
        "the latents have 3 channels, and this network reads 4",
    ),
    "patches": (lambda: create_model("ladcast", patch_time=2, history=2, horizon=3), "horizon=3 frames do not divide into patches"),
    "patched rows": (lambda: create_model("ladcast", patch=2, grid=(3, 8)), "3 rows, and this model needs a multiple of 2"),
    "start": (lambda: create_model("ladcast", start="neer"), r"unknown start 'neer'; did you mean 'near'"),
    "sampler": (lambda: transformer().with_sampling(sampler="huen"), r"unknown sampler 'huen'; did you mean 'heun'"),
    "sampling": (lambda: transformer().with_sampling(steps=3), r"unknown sampling option 'steps'"),
    "sampling steps": (lambda: transformer().with_sampling(sampling_steps=1), "sampling_steps=1 must be a whole number of at least 2"),
    "churn": (lambda: create_model("ladcast", churn=-1.0), "churn=-1.0 must be a number of at least 0"),
    "noise of no number": (lambda: transformer().with_sampling(initial_noise=math.nan), "initial_noise=nan must be a number of at least 0"),
    "churn of the solver": (lambda: transformer().with_sampling(sampler="dpm", churn=2.0), "churn=2.0 belongs to sampler='heun'"),
    "repeated noise": (lambda: transformer(noise="repeated").predict(windows(transformer())), "no one says which members these are"),
    "stage": (lambda: Reconstruction(autoencoder(), stage="encoder"), r"unknown stage 'encoder'"),  # type: ignore[arg-type]
    "lr": (lambda: Denoising(transformer(), lr=0.0), "lr=0.0 must be a number above 0"),
    "lr as YAML reads it": (lambda: Denoising(transformer(), lr="1e-4"), "lr='1e-4' must be a number above 0"),  # type: ignore[arg-type]
    "noise": (lambda: Denoising(transformer(), std=-1.0), "mean=-1.2 and std=-1.0 of the logarithm of the noise must be numbers"),
    "mask of what": (lambda: Reconstruction(autoencoder(), require_mask=["sst"]), "unknown channel in require_mask 'sst'"),
    "mask as text": (
        lambda: Reconstruction(autoencoder(), require_mask="2m_temperature"),  # type: ignore[arg-type]
        "require_mask='2m_temperature' must be a list",
    ),
    "swapped pair": (lambda: LatentForecaster(transformer(), autoencoder()), "a Ladcast was given where an Autoencoder belongs"),  # type: ignore[arg-type]
    "another latent": (lambda: LatentForecaster(autoencoder(latent=8), transformer()), "has 8 latent channels, and the transformer has 4"),
    "another latent grid": (lambda: LatentForecaster(autoencoder(), transformer(grid=(4, 8))), "lie on 8x16 cells .* was made for 4x8"),
    "forecast without units": (lambda: unitless(), "the transformer has no normaliser"),
}


def unitless() -> None:
    model = transformer()
    model.normaliser = None
    LatentForecaster(autoencoder(), model)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)


def test_training_data_must_be_six_hourly(tmp_path: Path) -> None:
    for hours, words in ((3, "and step is 3 h"), (12, "and step is 12 h")):
        data = make(times_of(40, hours=hours), Grid.regular(4, 8)).rename({"2m_temperature": "latent_0"})
        store = prepare(data, tmp_path / f"{hours}.zarr", variables=["latent_0"])
        with pytest.raises(WxlabError, match=words):
            wxlab.train("ladcast", store, run_dir=tmp_path / f"r{hours}", preset="tiny", steps=1, progress=False)
    with pytest.raises(WxlabError, match="step of 6 h is no multiple of the store's step of 12 h"):
        wxlab.train("ladcast", store, run_dir=tmp_path / "r", preset="tiny", model={"step": 21600}, steps=1, progress=False)


def test_a_forecast_is_a_forecast_like_any_other() -> None:
    made = forecast(forecaster(), STATES, steps=2, members=2, times=STATES["time"].values[:3])
    scores = wxlab.verify(made, STATES, metrics=["rmse", "crps_fair", "spread"])
    assert isinstance(made, xr.Dataset) and made[LEAD].values[0] == np.timedelta64(6, "h") and np.isfinite(scores["2m_temperature"]).all()

