"""Attention of every registered model: reading changes no bit, what is asked for is kept and labelled, and it is what the authors have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_mosaic_official
import test_stldm_official
import test_vamoe_official
import torch
import xarray as xr
from standins import memory_store, windows
from test_contract import make
from torch import Tensor

from wxlab.attention import average, capture, streams_for
from wxlab.grids import Grid
from wxlab.healpix_mesh import centres
from wxlab.models import Batch, Model, create_model, list_models
from wxlab.models.ladcast import LatentForecaster
from wxlab.models.mosaic import Mosaic
from wxlab.models.stldm import STLDM
from wxlab.models.vamoe import VAMoE
from wxlab.nn.attention_tap import AttentionTap
from wxlab.plots import plot_attention

WITHOUT = (
    "persistence", "climatology", "random_walk", "extrapolation", "sprog", "steps", "simvp", "tau", "convlstm",
    "ladder_joint", "ladder_separate", "ladcast_autoencoder",
)  # fmt: skip


def forecaster() -> LatentForecaster:
    autoencoder = create_model("ladcast_autoencoder", "tiny")
    transformer = create_model("ladcast", "tiny", channels=autoencoder.latent_channels, grid=autoencoder.latent_grid)  # type: ignore[arg-type]
    for each in (autoencoder, transformer):
        each.normaliser = memory_store(each.spec).normaliser
    return LatentForecaster(autoencoder, transformer)  # type: ignore[arg-type]


def both(model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch, **choice: Any) -> tuple[Tensor, Tensor, xr.Dataset]:
    """The prediction unread, the one made while capturing, and what was captured."""
    model.eval()
    with torch.no_grad():
        plain = model.predict(batch, 1, streams_for(model, batch, 0))
    made: list[Tensor] = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda *given, **named: (made.append(predict(*given, **named)), made[-1])[1])
    maps = capture(model, batch, **choice)
    return plain, made[0], maps


def check(maps: xr.Dataset) -> None:
    """Rows sum to one, choices are whole numbers, every dimension is labelled."""
    for name, array in maps.items():
        assert set(array.dims) <= set(maps.coords) and array.sizes[array.dims[1]] == 2, name
        if "into" in array.attrs:
            assert array.dtype == np.int64 and int(array.min()) >= 0, name
        else:
            assert array.dtype == np.float32 and float(array.min()) >= 0, name
            np.testing.assert_allclose(array.sum(array.dims[-1]), 1, rtol=1e-5, err_msg=str(name))


READ = [name for name in list_models() if name not in WITHOUT]


def test_the_models_without_attention_are_these() -> None:
    """So that a new model with attention is not forgotten."""
    found = [name for name in list_models() if not any(isinstance(module, AttentionTap) for module in create_model(name).modules())]
    assert set(found) == set(WITHOUT) and len(READ) == 8


@pytest.mark.parametrize("name", READ)
def test_reading_changes_no_bit_of_a_prediction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    plain, read, maps = both(model, windows(model), monkeypatch)
    assert torch.equal(plain, read)
    check(maps)
    assert maps.attrs["model"] == name and maps.attrs["step_hours"] == model.spec.step / 3600


SPECIAL: dict[str, Callable[[], Model]] = {
    "latent forecaster": forecaster,
    "guided": lambda: make("stldm", guidance=1.0),
    "in pieces": lambda: make("stldm", grid=(96, 96), guidance=0.5),
    "dense": lambda: make("mosaic", attention="dense"),
    "shuffled": lambda: make("mosaic", order="shuffled"),
    "two steps": lambda: make("mosaic", horizon=2),
    "filled windows": lambda: make("vamoe", window=3),
    "roll-out": lambda: make("vamoe", horizon=3),
    "groups": lambda: make("met2net", groups=[2, 1]),
    "larger patches": lambda: make("ladcast", patch=2),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_neither_does_it_in_other_configurations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SPECIAL[name]()
    plain, read, maps = both(model, windows(model), monkeypatch)
    assert torch.equal(plain, read)
    check(maps)


def test_half_precision_is_read_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("vamoe").bfloat16()
    plain, read, maps = both(model, windows(model).to("cpu", torch.bfloat16), monkeypatch)
    assert torch.equal(plain, read)
    check(maps)


# ---- what is asked for ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
def test_chosen_heads_and_layers_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    batch = windows(model)
    whole = capture(model, batch)
    kind = str(next(iter(whole)))
    _, _, some = both(model, batch, monkeypatch, layers=kind.removesuffix("_2"), heads=[1, 0, 1], dtype="float64")
    plain, read, last = both(model, batch, monkeypatch, layers=kind.removesuffix("_2"), heads=1)
    assert torch.equal(plain, read) and some["head"].values.tolist() == [0, 1] and last["head"].values.tolist() == [1]
    for found, heads in ((some, [0, 1]), (last, [1])):
        assert set(found) <= set(whole)
        array, full = found[kind], whole[kind]
        assert array.dtype == (np.float64 if found is some else np.float32)
        np.testing.assert_allclose(array.values, full.isel(head=heads).values, atol=1e-6)


def test_what_is_not_asked_for_is_not_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("vamoe")
    formed: dict[str, list[tuple[int, ...]]] = {}
    forward = AttentionTap.forward

    def seen(self: AttentionTap, weights: Tensor, heads: Any = None) -> Tensor:
        formed.setdefault(self.kind, []).append(tuple(weights.shape))
        return forward(self, weights, heads)

    monkeypatch.setattr(AttentionTap, "forward", seen)
    maps = capture(model, windows(model), layers="blocks.2", heads=[2], dtype="float16")
    assert set(maps) == {"global", "expert_weights", "expert_channels"} and maps["global"].dtype == np.float16
    assert formed["global"] == [(2, 1, 128, 128)] and "local" not in formed
    capture(model, windows(model), layers="global")
    assert "local" not in formed and len(formed["expert_weights"]) == 1


def test_patterns_name_kinds_and_modules() -> None:
    model = make("mosaic")
    batch = windows(model)
    assert set(capture(model, batch, layers="gates_*")) == {"gates_nside4", "gates_nside2"}
    kinds = ("local", "gates", "compression", "selection", "chosen")
    assert set(capture(model, batch, layers=["bottleneck"])) == {f"{kind}_nside2" for kind in kinds}
    one = capture(model, batch, layers=["decoder_stages.*.selection_tap", "chosen_nside2"])
    assert one["module_selection_nside4"].values.tolist() == ["decoder_stages.0.blocks.0.attention.selection_tap"]
    assert set(one) == {"selection_nside4", "chosen_nside2"}


# ---- places -----------------------------------------------------------------------------------------------------------------------


def fields_of(grid: Grid) -> tuple[Tensor, Tensor]:
    """Latitude and longitude as fields [H, W]."""
    y, x = torch.meshgrid(torch.tensor(grid.y), torch.tensor(grid.x), indexing="ij")
    return y, x


def test_tokens_of_latents_lie_where_their_patches_are() -> None:
    model = make("ladcast", patch=2, history=2, patch_time=2)
    maps = capture(model, windows(model), layers=["single", "refiner"])
    spec = model.spec
    leads = torch.arange(1 - spec.history, spec.horizon + 1) * spec.step / 3600
    for values, name in zip(fields_of(spec.grid), ("latitude", "longitude"), strict=True):
        field = values.expand(1, len(spec.channels), len(leads), *values.shape)
        known, output = (model.network.tokens(part).mean(-1)[0] for part in field.split([spec.history, spec.horizon], dim=2))  # type: ignore[operator, union-attr]
        np.testing.assert_allclose(maps[f"key_{name}_single"], torch.cat([output, known]), rtol=1e-5)
        np.testing.assert_allclose(maps[f"query_{name}_single"], output, rtol=1e-5)  # the last block's others are not wanted
        np.testing.assert_allclose(maps[f"query_{name}_refiner"], known, rtol=1e-5)
    field = leads.view(1, 1, -1, 1, 1).expand(1, len(spec.channels), -1, *spec.grid.shape)
    known, output = (model.network.tokens(part).mean(-1)[0] for part in field.split([spec.history, spec.horizon], dim=2))  # type: ignore[operator, union-attr]
    hours = maps["key_lead_single"].values / np.timedelta64(1, "h")
    np.testing.assert_allclose(hours, torch.cat([output, known]))
    assert set(maps["key_stream_single"].values[: len(output)]) == {"output"} and set(maps["key_stream_refiner"].values) == {"known"}


def test_a_forecaster_of_latents_has_the_places_of_its_transformer() -> None:
    model = forecaster()
    maps = capture(model, windows(model), layers="single")
    places = model.transformer.attention_coordinates("single", {"query": maps.sizes["query"], "key": maps.sizes["key"]})
    assert {"query_latitude", "key_longitude", "key_stream", "key_lead"} <= set(places)
    for name, (_, values) in places.items():
        np.testing.assert_array_equal(maps[name], values)
    assert maps.attrs["model"] == "ladcast_forecaster" and maps["time"].size == 2


def test_maps_of_any_kind_are_drawn_on_a_page() -> None:
    for name in READ:
        model = make(name)
        maps = capture(model, windows(model))
        for kind in (kind for kind, array in maps.items() if "into" not in array.attrs):
            assert max(plot_attention(maps, str(kind)).get_size_inches()) < 9, (name, kind)


def test_windows_lie_where_their_tokens_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("vamoe", window=3)
    assert isinstance(model, VAMoE)
    maps = capture(model, windows(model), layers=["local", "global", "expert_weights"])
    assert maps["expert"].values.tolist() == list(model.experts)
    attention = model.blocks[0].attn
    inside: list[Tensor] = []
    monkeypatch.setattr(attention, "_attend", lambda x: (inside.append(x), x)[1])
    for name, field in zip(("latitude", "longitude"), fields_of(model.spec.grid), strict=True):
        tokens = field.unfold(0, model.patch, model.patch).unfold(1, model.patch, model.patch).mean((2, 3)).flatten()
        np.testing.assert_allclose(maps[f"query_{name}_global"], tokens, rtol=1e-5)
        np.testing.assert_allclose(maps[f"token_{name}"], tokens, rtol=1e-5)
        attention((tokens + 1000).view(1, -1, 1), model.shape)  # what fills up the windows is 0
        seen = inside[-1][0, :, :, 0].numpy()  # [windows, 9]
        np.testing.assert_allclose(maps[f"query_{name}_local"], np.where(seen == 0, np.nan, seen - 1000), rtol=1e-4, atol=1e-3)
        assert np.isfinite(maps[f"window_{name}"]).all()


def test_blocks_and_windows_of_the_mesh_lie_among_their_pixels() -> None:
    model = make("mosaic")
    assert isinstance(model, Mosaic)
    maps = capture(model, windows(model), layers="encoder_stages.0")
    np.testing.assert_allclose(maps["token_latitude"], centres(4)[:, 1], atol=1e-4)
    np.testing.assert_allclose(maps["token_longitude"], centres(4)[:, 0], atol=1e-4)
    np.testing.assert_allclose(maps["query_latitude"].values.ravel(), centres(4)[:, 1], atol=1e-4)
    for axis in ("query_block", "key_block"):
        assert np.abs(maps[f"{axis}_latitude"]).max() < 60 and np.unique(maps[f"{axis}_longitude"].values.round(3)).size > 4
        inner = centres(4)[:, 1].reshape(12, 16)  # nested: a block of 16 is one of the twelve faces
        assert ((maps[f"{axis}_latitude"].values > inner.min(1)) & (maps[f"{axis}_latitude"].values < inner.max(1))).all()
    assert maps["branch"].values.tolist() == ["local", "compression", "selection"]
    shuffled = capture(make("mosaic", order="shuffled"), windows(model), layers="encoder_stages.0")
    assert not any("latitude" in str(name) for name in shuffled.coords)


def test_latent_points_and_frames_of_a_nowcast() -> None:
    model = make("stldm", guidance=1.0)
    maps = capture(model, windows(model))
    assert isinstance(model, STLDM)
    spec, side = model.spec, model.spec.grid.dims
    for kind, points in (("temporal", 64), ("temporal_2", 16)):
        shape = (int(points**0.5),) * 2
        for name, field in zip(side, fields_of(spec.grid), strict=True):
            places = torch.nn.functional.adaptive_avg_pool2d(field[None].double(), shape).flatten()
            np.testing.assert_allclose(maps[f"pixel_{name}_{kind}"], places, rtol=1e-5)
        lead = maps[f"key_lead_{kind}"].values / np.timedelta64(1, "s")
        assert lead.tolist() == [spec.step * (i + 1) for i in range(spec.horizon)]
    assert maps["query_latitude_spatial"].size == 16 and maps["frame_lead"].size == spec.horizon
    assert maps["part_spatial"].values.tolist() == ["conditioned", "free"] * (maps.sizes["layer_spatial"] // 2)
    # without its condition the network does not know what the first estimate was
    apart = average(maps, "head")["spatial"].groupby("part_spatial").mean()
    assert float(abs(apart[0] - apart[1]).max()) > 1e-4


def test_states_on_another_grid_have_no_places() -> None:
    model = make("stldm")
    larger = make("stldm", grid=(48, 48))
    maps = capture(model, windows(larger), layers="spatial")
    assert "query_latitude" not in maps.coords and "query_latitude" in capture(larger, windows(larger), layers="spatial").coords


# ---- against the authors ----------------------------------------------------------------------------------------------------------


def of_two(run: Callable[[], Any], model: Model, **choice: Any) -> xr.Dataset:
    """What is captured while something else than ``predict`` runs; both samples (or members) are rows of a batch."""
    model.predict = lambda *given, **named: run()  # type: ignore[method-assign]
    empty = torch.zeros(2, model.spec.history, len(model.spec.channels), *model.spec.grid.shape)
    return capture(model, Batch(empty, None, torch.zeros(2, model.spec.history + model.spec.horizon, dtype=torch.int64)), **choice)


@pytest.mark.golden
def test_mosaic_chooses_and_mixes_as_the_authors_do(golden_dir: Path) -> None:
    case = test_mosaic_official.Case(golden_dir)
    model = case.model()
    maps = of_two(lambda: case.y(model), model)
    names = [name for name in case.tensors if name.startswith("block_indices.")]
    assert len(names) == 6
    for name in names:
        place = name.removeprefix("block_indices.")
        kind = f"nside{model.get_submodule(place).level.nside}"
        layer = maps[f"module_chosen_{kind}"].values.tolist().index(f"{place}.chosen_tap")
        chosen, shares = maps[f"chosen_{kind}"][layer].values, maps[f"selection_{kind}"][layer].values
        np.testing.assert_array_equal(chosen.swapaxes(1, 2), case[name])
        group = shares.shape[1] // chosen.shape[1]
        held = np.zeros(shares.shape, bool)
        np.put_along_axis(held, chosen.repeat(group, 1), True, axis=-1)
        assert ((shares > 0) == held).all()
    place = case.config["capture"] + ".attention"
    level = model.get_submodule(place).level
    find = {kind: maps[f"module_{kind}_nside{level.nside}"].values.tolist().index(f"{place}.{tap}_tap") for kind, tap in
            (("gates", "gate"), ("local", "local"), ("compression", "compression"))}  # fmt: skip
    found = {kind: torch.from_numpy(maps[f"{kind}_nside{level.nside}"].values[layer]) for kind, layer in find.items()}
    torch.testing.assert_close(found["gates"].movedim(-1, 0).unsqueeze(-1), case["attn.gates"], **test_mosaic_official.FIELDS)
    v = case["attn.v"].repeat_interleave(level.heads // level.kv_heads, dim=2)  # [B, N, H, d]
    local = torch.einsum("bwhqk,bwkhd->bwqhd", found["local"], v.unflatten(1, (-1, level.window)))
    torch.testing.assert_close(local.flatten(1, 2), case["attn.o_local"], **test_mosaic_official.FIELDS)
    compressed = torch.einsum("bhqk,bkhd->bqhd", found["compression"], v.unflatten(1, (-1, level.block)).mean(2))
    torch.testing.assert_close(compressed, case["attn.o_cmp_blocks"], **test_mosaic_official.FIELDS)


@pytest.mark.golden
@pytest.mark.parametrize("stage", test_vamoe_official.STAGES)
def test_experts_pick_the_channels_that_the_authors_pick(golden_dir: Path, stage: str) -> None:
    case = test_vamoe_official.Case(golden_dir, stage)
    maps = capture(case.model(), case.batch)
    gates = case.part("gate")
    assert len(gates) == (0 if case.facts["channels"] == 15 else 6)
    for i in range(len(gates) // 2):
        channels, weights = (torch.from_numpy(maps[f"expert_{kind}"][i].values).transpose(0, 1) for kind in ("channels", "weights"))
        assert torch.equal(channels, gates[f"block{i}_idx"].long())
        torch.testing.assert_close(weights, gates[f"block{i}_weight"], **test_vamoe_official.FIELDS)


@pytest.mark.golden
def test_weights_in_time_give_the_authors_attention(golden_dir: Path) -> None:
    case = test_stldm_official.Case(golden_dir)
    x, network = case["unet.x_t"], case.model.denoiser
    condition = case["unet.cond"].view_as(x)
    maps = of_two(lambda: network(x, case["unet.t"], condition), case.model, layers="denoiser.downs.0.temporal")
    weights = torch.from_numpy(maps["temporal"].values[0])  # [B, h w, heads, T2, T2]
    layer, frames = network.downs[0].temporal, weights.shape[-1]  # type: ignore[union-attr]
    y = case["unet.down0.block2"]
    points = y.permute(0, 2, 3, 1).unflatten(0, (-1, frames)).movedim(1, 3).flatten(1, 2)  # [B, h w, T2, C]
    v = layer.to_v(layer.norm.over_time(points.flatten(0, 1))).view(*points.shape[:3], weights.shape[2], -1)  # type: ignore[operator, union-attr]
    with torch.no_grad():
        out = layer.to_out(torch.einsum("bphqk,bpkhd->bpqhd", weights, v).flatten(3))  # type: ignore[operator]
    out = out.unflatten(1, y.shape[2:]).permute(0, 3, 4, 1, 2).flatten(0, 1)
    torch.testing.assert_close(y + out, case["unet.down0.temporal"], **test_stldm_official.OUTPUTS)
