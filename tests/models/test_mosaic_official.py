"""Mosaic against the authors' numbers, and their checkpoints, statistics and static fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from torch import Tensor

from wxlab import create_model, forecast, load_official
from wxlab.channels import stack, unstack
from wxlab.errors import WxlabError
from wxlab.grids import Grid, grid_of
from wxlab.healpix_mesh import centres
from wxlab.models.base import Batch
from wxlab.models.mosaic import CHANNELS, GRID, STATIC, Mosaic, attention, force_engine, read_static, read_statistics, with_horizon
from wxlab.models.mosaic.clock import advanced, day_year
from wxlab.models.mosaic.official import geometry, save_official

golden = pytest.mark.golden
FIELDS, STRICT = {"atol": 2e-5, "rtol": 0}, {"atol": 1e-5, "rtol": 0}  # the second tells a wrong ε of RMSNorm
ROLLOUT = 1e-4  # standard deviations
BRANCHES = ("attn", "bsa")


def states(x: Tensor) -> Tensor:
    """[..., longitude, latitude from the south, channel] -> [..., channel, latitude from the south, longitude]."""
    return x.movedim((-1, -2, -3), (-3, -2, -1))


class Case:
    """The golden files."""

    def __init__(self, folder: Path) -> None:
        self.json = json.loads((folder / "mosaic" / "case_a.json").read_text())
        self.state = load_file(folder / "mosaic" / "case_a_state.safetensors")
        self.tensors = load_file(folder / "mosaic" / "case_a_io.safetensors")
        self.config = {**self.json["config"], "variables": self.json["variables"]}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def model(self, state: dict[str, Tensor] | None = None, **config: Any) -> Mosaic:
        model = load_official("mosaic", self.state if state is None else state, config={**self.config, **config})
        assert isinstance(model, Mosaic)
        return model

    @property
    def static_file(self) -> dict[str, np.ndarray]:
        return {
            "data": self["static_data"].numpy(), "latitude": self["latitude"].numpy(), "longitude": self["longitude"].numpy()
        }  # fmt: skip

    @property
    def statistics_file(self) -> dict[str, np.ndarray]:
        """As the authors' era5 file, which holds statistics that nothing uses."""
        count = len(self["state_mean"])
        return {
            "state_mean": self["state_mean"].double().numpy(), "state_std": self["state_std"].double().numpy(),
            "residual_mean": np.zeros(count), "residual_std": np.ones(count),
        }  # fmt: skip

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters alone, as in the released files."""
        own = self.model()
        return {name: value for name, value in self.state.items() if name.removeprefix("model.") in own.state_dict()}

    def y(self, model: Mosaic) -> Tensor:
        with torch.no_grad():
            return model(states(self["x"][:, 0]), self["day_year_time"][:, 0], self["eps"].unsqueeze(0))


@pytest.fixture(scope="module")
def case(golden_dir: Path) -> Case:
    return Case(golden_dir)


# ---- geometry ---------------------------------------------------------------------------------------------------------------------


@golden
def test_geometry_equals_the_authors(case: Case) -> None:
    model = case.model(case.weights, static_vars=case.static_file)  # nothing of theirs but the parameters
    own = geometry(model)
    theirs = {name.removeprefix("model."): value for name, value in case.state.items()}
    stored = {name: theirs[name] for name in own}
    assert len(stored) == len(case.state) - len(list(model.parameters())) == 4 + 1 + 4 + 6 * 4
    np.testing.assert_array_equal(centres(8), case["hp_lonlat"].numpy())
    for name, value in stored.items():
        assert own[name].shape == value.shape and own[name].dtype == value.dtype, name
        if name.endswith("neighbors"):
            assert torch.equal(own[name], value), name
        else:  # equal bit by bit where torch has the same cosines
            torch.testing.assert_close(own[name], value, atol=1e-6, rtol=0, msg=name)


@golden
def test_time_of_the_day_and_of_the_year(case: Case) -> None:
    stamps = np.array(["2020-06-15T12:00", "2022-12-31T18:00"], "datetime64[s]").astype(np.int64)
    expected = torch.tensor([[0.5, 0.4535519], [0.75, 0.9972603]])
    torch.testing.assert_close(day_year(torch.from_numpy(stamps)).float(), expected, atol=1e-7, rtol=0)
    stride = case.config["step_stride"]
    moved = advanced(torch.zeros(1, 2), 1, stride * 21600, "official")[0]
    torch.testing.assert_close(moved, case["day_year_delta"], atol=1e-9, rtol=1e-6)


# ---- the network ------------------------------------------------------------------------------------------------------------------


@golden
@pytest.mark.parametrize("buffers", [True, False], ids=["with_buffers", "without"])
def test_outputs_equal_the_authors(case: Case, buffers: bool) -> None:
    model = case.model() if buffers else case.model(case.weights, static_vars=case.static_file)
    assert sum(p.numel() for p in model.parameters()) == sum(value.numel() for value in case.weights.values())
    y = case.y(model)
    torch.testing.assert_close(y, states(case["y"]), **STRICT)
    assert y.abs().max() == pytest.approx(case.json["max_abs_y"], abs=1e-4)
    with torch.no_grad():
        y2 = model(states(case["x2"][0]), case["day_year_time2"][0], case["eps"])
    torch.testing.assert_close(y2.unsqueeze(0), states(case["y2"]), **FIELDS)


@golden
def test_the_published_kernels_rounding(case: Case) -> None:
    with force_engine("bfloat16"):
        difference = (case.y(case.model()) - states(case["y_bf16"])).abs()
    assert difference.max() <= 2.5e-3 and difference.mean() <= 1.2e-4
    without = (case.y(case.model()) - states(case["y_bf16"])).abs()
    assert without.max() > 2.5e-3 and without.mean() > 1.2e-4


@golden
def test_every_intermediate(case: Case) -> None:
    model, seen = case.model(), {}
    expected = {name.removeprefix("act."): value for name, value in case.tensors.items() if name.startswith("act.")}
    assert len(expected) == 11
    for name in expected:
        model.get_submodule(name).register_forward_hook(lambda module, given, out, name=name: seen.__setitem__(name, out))
    case.y(model)
    for name, value in expected.items():
        torch.testing.assert_close(seen[name].transpose(0, 1).expand_as(value), value, **FIELDS, msg=name)


@golden
def test_interpolation(case: Case) -> None:
    with torch.no_grad():
        y = case.model().interp_to_hp(case["interp.x"].transpose(0, 1))
    torch.testing.assert_close(y.transpose(0, 1), case["interp.y"], **FIELDS)


@golden
def test_rotary_embedding(case: Case) -> None:
    block = case.model().encoder_stages[1]
    torch.testing.assert_close(block.rotary(case["rope.x"]), case["rope.y"], **FIELDS)


@golden
def test_the_same_blocks_are_chosen(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Tensor] = []
    choose = attention.choose_blocks
    monkeypatch.setattr(attention, "choose_blocks", lambda *given: (chosen.append(choose(*given)), chosen[-1])[1])
    case.y(case.model())
    names = [name for name in case.tensors if name.startswith("block_indices.")]
    assert len(chosen) == len(names) == 6
    order = ("encoder_stages.0.blocks.0", "encoder_stages.0.blocks.1", "encoder_stages.1.blocks.0", "bottleneck.blocks.0",
             "decoder_stages.0.blocks.0", "decoder_stages.1.blocks.0")  # fmt: skip
    for name, found in zip(order, chosen, strict=True):
        expected = case[f"block_indices.{name}.attention"].transpose(1, 2)  # [B, kv heads, blocks, n]
        assert torch.equal(found, expected), name


# ---- the attention core -------------------------------------------------------------------------------------------------------------


@golden
@pytest.mark.parametrize("prefix", BRANCHES)
def test_every_branch(case: Case, prefix: str) -> None:
    q, k, v = (case[f"{prefix}.{name}"].transpose(1, 2) for name in "qkv")
    level = case.config["bsa"] if prefix == "bsa" else case.config["stages"][1]
    names = ("local", "bs", "n") if prefix == "bsa" else ("block_attn_size", "sparse_block_size", "sparse_block_count")
    window, block, count = (level[name] for name in names)
    means = [attention.block_means(x, block) for x in (q, k, v)]
    scores = attention.selection_scores(means[0], means[1], "official")
    chosen = attention.choose_blocks(scores, count)
    compressed = attention.dense_attention(*means)
    local, selected = attention.local_attention(q, k, v, window), attention.attend_selected(q, k, v, chosen, block)
    gates = case[f"{prefix}.gates"].squeeze(-1).movedim(0, -1)  # [B, N, H, 3]
    gated = attention.block_sparse_attention(q, k, v, gates, window=window, block=block, count=count)
    for found, name in ((local, "o_local"), (compressed, "o_cmp_blocks"), (selected, "o_slc"), (gated, "out"), (scores, "scores")):
        torch.testing.assert_close(found.transpose(1, 2), case[f"{prefix}.{name}"], **FIELDS, msg=name)
    if prefix == "bsa":
        assert torch.equal(chosen.transpose(1, 2), case["bsa.block_indices"])


@golden
def test_the_core_inside_the_network(case: Case) -> None:
    """q, k after the rotation, v and the gates of the block that the file shows."""
    model, seen = case.model(), {}
    core = model.get_submodule(case.config["capture"] + ".attention")
    core.gate_tap.register_forward_hook(lambda module, given, out: seen.__setitem__("gates", out))
    branches = core._branches
    core._branches = lambda u, q, k, v: (seen.update(q=q, k=k, v=v), branches(u, q, k, v))[1]
    case.y(model)
    torch.testing.assert_close(seen["gates"].movedim(-1, 0).unsqueeze(-1), case["attn.gates"], **FIELDS)
    for name in "qkv":
        torch.testing.assert_close(seen[name].transpose(1, 2), case[f"attn.{name}"], **FIELDS, msg=name)


@golden
def test_gradients_of_the_selection(case: Case) -> None:
    q, k, v = (case[f"bsa.{name}"].transpose(1, 2).clone().requires_grad_() for name in "qkv")
    chosen = case["bsa.block_indices"].transpose(1, 2)
    out = attention.attend_selected(q, k, v, chosen, case.config["bsa"]["bs"])
    out.backward(case["bsa.grad_out"].transpose(1, 2))
    for x, name in ((q, "dq"), (k, "dk"), (v, "dv")):
        torch.testing.assert_close(x.grad.transpose(1, 2), case[f"bsa.{name}"], **FIELDS, msg=name)


@golden
def test_the_selections_rounding_and_normaliser(case: Case) -> None:
    q, k, v = (case[f"bsa.{name}"].transpose(1, 2) for name in "qkv")
    chosen, block = case["bsa.block_indices"].transpose(1, 2), case.config["bsa"]["bs"]
    rounded = attention.attend_selected(q, k, v, chosen, block, "bfloat16")
    torch.testing.assert_close(rounded.transpose(1, 2), case["bsa.o_slc_bf16"], atol=1e-5, rtol=0)
    # the sum of exponentials shows as the attention to a value that marks a block
    ones = torch.zeros_like(v)
    ones[..., 0] = torch.arange(v.shape[2]) // block == 0
    share = attention.attend_selected(q, k, ones, chosen, block)[..., 0]  # of block 0 in each query's softmax
    logits = torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(4, 1)[:, :, :block]) * (q.shape[-1] ** -0.5)
    expected = torch.exp(logits.logsumexp(-1) - case["bsa.lse_log2"].transpose(1, 2) * np.log(2))
    reads = (chosen == 0).any(-1).repeat_interleave(4, 1).repeat_interleave(block, 2)
    assert reads.any()
    torch.testing.assert_close(share[reads], expected[reads], **FIELDS)


# ---- roll-out ---------------------------------------------------------------------------------------------------------------------


class TheirStreams:
    """The authors' noise of each call, whatever seed, time and member is asked for."""

    eps: Tensor  # [calls, members, numbers]

    def __init__(self, seed: int, times: Any, members: Any, call: int) -> None:
        self.call, self.folds = call, False

    def folded(self) -> TheirStreams:
        self.folds = True
        return self

    def randn(self, shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
        drawn = self.eps[self.call].unsqueeze(1)  # [M, 1, numbers]: one step at a call
        return drawn.unsqueeze(1) if self.folds else drawn.unsqueeze(0)


@golden
@pytest.mark.parametrize("north_first", [False, True])
def test_roll_out_equals_the_authors(case: Case, monkeypatch: pytest.MonkeyPatch, north_first: bool) -> None:
    """The trajectory in physical units, from the door that everyone uses, with the authors' noise in place of our streams."""
    from wxlab import rollout
    from wxlab.models.mosaic import network

    model = case.model(norm_stats=case.statistics_file)
    # 0.25 of a day, 0.3125 of a year: no real date, so the clock is set by hand
    monkeypatch.setattr(network, "day_year", lambda time: torch.tensor(case.config["time"], dtype=torch.float64).expand(len(time), -1))
    monkeypatch.setattr(TheirStreams, "eps", case["rollout.eps"], raising=False)
    monkeypatch.setattr(rollout, "Streams", TheirStreams)
    grid, names, start = model.spec.grid, model.spec.channels, np.datetime64("2020-04-24T00", "ns")
    times = start + np.arange(2) * np.timedelta64(6, "h")
    coords = {"time": times, "channel": list(names), "latitude": list(grid.y), "longitude": list(grid.x)}
    fields = unstack(xr.DataArray(states(case["rollout.x_phys"])[0].numpy(), dims=tuple(coords), coords=coords))
    if north_first:
        fields = fields.isel(latitude=slice(None, None, -1))
    made = forecast(model, fields, steps=3, members=2).sortby("latitude")
    found = torch.from_numpy(stack(made, names).isel(time=0).values)  # [M, T, C, H, W]
    expected = states(case["rollout.trajectory"])[0, :, case.config["hist"] :]
    assert ((found - expected) / case["state_std"].view(-1, 1, 1)).abs().max() <= ROLLOUT


class TheirNoise:
    """The authors' noise, whatever stream is asked for."""

    def __init__(self, eps: Tensor) -> None:
        self.eps, self.call = eps, 0

    def randn(self, shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return self.eps.transpose(0, 1).unsqueeze(0)  # [1, M, To, E]


@golden
def test_several_steps_of_one_call_equal_the_authors(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from wxlab.models.mosaic import network

    model = with_horizon(case.model(norm_stats=case.statistics_file), 3)
    monkeypatch.setattr(network, "day_year", lambda time: torch.tensor(case.config["time"], dtype=torch.float64).expand(len(time), -1))
    history = model.normaliser.normalise(states(case["rollout.x_phys"]), model.spec.channels)
    with torch.no_grad():
        made = model.predict(Batch(history, None, torch.zeros(1, 5, dtype=torch.int64)), 2, TheirNoise(case["rollout.eps"]))
    expected = model.normaliser.normalise(states(case["rollout.trajectory"])[:, :, 2:], model.spec.channels)
    assert (made - expected).abs().max() <= ROLLOUT


# ---- files of statistics and static fields -----------------------------------------------------------------------------------------


@golden
@pytest.mark.parametrize("order", ["theirs", "latitude first", "from the north", "from 180 W"])
def test_static_fields_in_any_order(case: Case, order: str, tmp_path: Path) -> None:
    arrays = dict(case.static_file)
    if order == "latitude first":
        arrays["data"] = arrays["data"].transpose(1, 0, 2)
    if order == "from the north":
        arrays["data"], arrays["latitude"] = arrays["data"][:, ::-1], arrays["latitude"][::-1]
    if order == "from 180 W":
        arrays["data"], arrays["longitude"] = np.roll(arrays["data"], 12, 0), np.roll(arrays["longitude"], 12)
        arrays["longitude"] = (arrays["longitude"] + 180) % 360 - 180
    np.savez(tmp_path / "static_vars.npz", **arrays)
    grid = Grid.regular(13, 24)
    fields = read_static(tmp_path / "static_vars.npz", grid)
    np.testing.assert_array_equal(fields, states(case["static_data"]).numpy())
    model = case.model(case.weights, static_vars=tmp_path / "static_vars.npz")
    torch.testing.assert_close(case.y(model), states(case["y"]), **STRICT)


@golden
def test_statistics_of_the_authors_become_the_normaliser(case: Case, tmp_path: Path) -> None:
    np.savez(tmp_path / "norm_stats_era5.npz", **case.statistics_file)
    model = case.model(norm_stats=tmp_path / "norm_stats_era5.npz")
    x = states(case["rollout.x_phys"])
    expected = (x - case["state_mean"].view(-1, 1, 1)) / case["state_std"].view(-1, 1, 1)
    torch.testing.assert_close(model.normaliser.normalise(x, model.spec.channels), expected, atol=1e-5, rtol=1e-5)


@golden
@pytest.mark.parametrize("turned", ["north to south", "from 180 W", "both and transposed"])
def test_the_order_of_a_datasets_axes_does_not_matter(case: Case, turned: str) -> None:
    """The same weather in another order of rows, columns and axes: the same forecast at the same places.

    By a model of the authors' order, and by one of the data's own, with the same weights.
    """
    model = case.model(norm_stats=case.statistics_file)
    grid = model.spec.grid
    values = states(case["rollout.x_phys"])[0].numpy()
    times = np.datetime64("2020-04-24T00", "ns") + np.arange(2) * np.timedelta64(6, "h")
    coords = {"time": times, "channel": list(model.spec.channels), "latitude": list(grid.y), "longitude": list(grid.x)}
    fields = unstack(xr.DataArray(values, dims=tuple(coords), coords=coords))
    reference = forecast(model, fields, steps=2, members=2, seed=4)
    if turned in ("north to south", "both and transposed"):
        fields = fields.sortby("latitude", ascending=False)
    if turned in ("from 180 W", "both and transposed"):
        fields = fields.assign_coords(longitude=(fields["longitude"] + 180) % 360 - 180).sortby("longitude")
    if turned == "both and transposed":
        fields = fields.transpose("longitude", "time", ...)
    for each in (model, case.model(norm_stats=case.statistics_file, grid=grid_of(fields))):
        again = forecast(each, fields, steps=2, members=2, seed=4)
        np.testing.assert_array_equal(again["latitude"], fields["latitude"])
        again = again.assign_coords(longitude=again["longitude"] % 360).sortby("longitude").sortby("latitude")
        for name in reference:
            error = abs(again[name] - reference[name]).max() / reference[name].std()
            assert float(error) < 1e-4, name


# ---- checkpoints ------------------------------------------------------------------------------------------------------------------


@golden
def test_every_key_survives_a_round_trip(case: Case, tmp_path: Path) -> None:
    for path, geometry_too in ((tmp_path / "whole.pt", True), (tmp_path / "bare.safetensors", False)):
        state = save_official(case.model(), path, with_geometry=geometry_too)
        expected = case.state if geometry_too else case.weights
        assert set(state) == set(expected)
        for name, value in expected.items():
            assert torch.equal(state[name], value), name
        again = case.model(path, **({} if geometry_too else {"static_vars": case.static_file}))  # type: ignore[arg-type]
        torch.testing.assert_close(case.y(again), states(case["y"]), **STRICT)


@golden
def test_a_training_file_of_theirs(case: Case, tmp_path: Path) -> None:
    torch.save({"model_state_dict": case.state, "epoch": 3}, tmp_path / "mosaic.pt")
    assert torch.equal(case.y(case.model(tmp_path / "mosaic.pt")), case.y(case.model()))  # type: ignore[arg-type]


@golden
def test_neighbours_in_the_file_are_preferred(case: Case) -> None:
    """Ties fall as they fell for them; geometry of another grid is computed anew."""
    state = dict(case.state)
    state["model.interp_to_ll.neighbors"] = state["model.interp_to_ll.neighbors"].flip(1)
    state["model.interp_to_ll.rel_pos"] = state["model.interp_to_ll.rel_pos"].flip(1)
    model = case.model(state)
    assert torch.equal(model.interp_to_ll.neighbors, state["model.interp_to_ll.neighbors"])
    torch.testing.assert_close(case.y(model), states(case["y"]), **FIELDS)
    assert torch.equal(with_horizon(model, 2).interp_to_ll.neighbors, model.interp_to_ll.neighbors)
    other = case.model(state, nlat=9, nlon=16)
    assert other.interp_to_ll.neighbors.shape == (9 * 16, 8) and other.spec.static == STATIC
    rows = tuple(np.linspace(-84, 84, 13))  # as many points, elsewhere
    other = case.model(state, grid=Grid(rows, model.spec.grid.x))
    assert other.spec.static == STATIC and not torch.equal(other.interp_to_ll.neighbors, model.interp_to_ll.neighbors)
    state["model.interp_to_hp.neighbors"] = state["model.interp_to_hp.neighbors"] + 13
    with pytest.raises(WxlabError, match=r"interp_to_hp\.neighbors names points beyond the 312 that there are; the file is broken"):
        case.model(state)


# ---- published sizes, without reference numbers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, Mosaic]:
    """Without memory for the weights; the geometry is computed and takes seconds."""
    with torch.device("meta"):
        made = {preset: create_model("mosaic", preset) for preset in ("era5", "hres")}
    return {preset: model for preset, model in made.items() if isinstance(model, Mosaic)}


@pytest.mark.parametrize(("preset", "parameters", "features"), [("era5", 214_184_448, 174), ("hres", 214_310_400, 338)])
def test_published_sizes(published: dict[str, Mosaic], preset: str, parameters: int, features: int) -> None:
    model = published[preset]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(list(model.parameters())) == 131 and all(p.ndim == 2 for p in model.parameters())
    assert model.preprocess[0].in_features == features
    assert model.spec.channels == CHANNELS and len(CHANNELS) == 82 and model.spec.grid == GRID
    assert [CHANNELS[i] for i in (3, 11, 26, 40, 53, 76)] == [
        "mean_sea_level_pressure", "geopotential_500", "specific_humidity_700", "temperature_850", "u_component_of_wind_850",
        "vertical_velocity_500",
    ]  # fmt: skip
    assert len(geometry(model)) + 131 == 196
    state = {f"model.{name}": torch.empty(value.shape, device="meta") for name, value in model.named_parameters()}
    assert state["model.decoder_stages.0.blocks.1.ffn.noise_bias.weight"].shape == (4096, 32)
    assert state["model.bottleneck.blocks.0.attention.to_k.weight"].shape == (320, 1280)


def test_official_options_of_published_sizes_are_told_by_the_weights(published: dict[str, Mosaic]) -> None:
    from wxlab.models.mosaic.official import _sizes, _spec

    for preset, neighbours, step in (("era5", 24, 86400), ("hres", 20, 21600)):
        model = published[preset]
        weights = dict(model.named_parameters())
        sizes, (spec, kept) = _sizes(weights, {}, {}), _spec(weights, {}, {})
        assert sizes["neighbours"] == neighbours and spec.step == step and spec.history == model.spec.history and kept == 0
        assert spec.static == STATIC
        for name, value in sizes.items():
            assert value == model.config[name], name


# ---- what does not fit ------------------------------------------------------------------------------------------------------------

CONFIG = {
    "nlat": 9, "nlon": 16, "k": 6, "step_stride": 1, "variables": ["2m_temperature", "geopotential_500", "temperature_850"],
    "stages": [{"nside": 4, "num_heads": 4, "block_attn_size": 64, "sparse_block_size": 16, "sparse_block_count": 3}],
    "bott": {"nside": 2, "num_heads": 4, "block_attn_size": 24, "sparse_block_size": 8, "sparse_block_count": 2},
}  # fmt: skip


def small() -> dict[str, Tensor]:
    model = create_model("mosaic", static=STATIC)
    assert isinstance(model, Mosaic)
    return save_official(model, with_geometry=False)


def test_geometry_without_fields_survives_a_round_trip(tmp_path: Path) -> None:
    """What a model does not keep, its file does not hold: the fields come with each batch."""
    torch.manual_seed(0)
    model = create_model("mosaic", static=STATIC).eval()
    assert isinstance(model, Mosaic)
    state = save_official(model, tmp_path / "mosaic.pt")
    assert "model.static_vars" not in state and "model.interp_to_hp.neighbors" in state
    again = load_official("mosaic", tmp_path / "mosaic.pt", config={**CONFIG, "selection_heads": "natural"})
    given = (torch.randn(1, 2, 3, 9, 16), torch.zeros(1, 2), torch.randn(1, 2, 8), torch.randn(3, 9, 16))
    with torch.no_grad():
        assert torch.equal(again(*given), model(*given))


def test_a_file_cut_short_is_no_smaller_network(published: dict[str, Mosaic]) -> None:
    """Depths come from the settings or the published sizes, not from what is left."""
    from wxlab.models.mosaic.official import _sizes

    weights = {name: value for name, value in published["era5"].named_parameters() if "encoder_stages.0.blocks.3" not in name}
    assert _sizes(weights, {}, {})["encoder_depth"] == [4, 4]
    stage = {**CONFIG["stages"][0], "encoder_depth": 1, "decoder_depth": 2}  # type: ignore[index]
    with pytest.raises(WxlabError, match=r"missing model\.decoder_stages\.0\.blocks\.1\.attention\.to_q\.weight"):
        load_official("mosaic", small(), config={**CONFIG, "stages": [stage]})
    with pytest.raises(WxlabError, match=r"missing model\.bottleneck\.blocks\.1\."):
        load_official("mosaic", small(), config={**CONFIG, "bott": {**CONFIG["bott"], "depth": 2}})  # type: ignore[dict-item]


def test_weights_without_fields_read_them_with_each_batch() -> None:
    model = load_official("mosaic", small(), config=CONFIG)
    assert model.spec.static == STATIC and model.licence == "CC-BY-NC-4.0"
    x, clock, noise = torch.randn(1, 2, 3, 9, 16), torch.zeros(1, 2), torch.randn(1, 2, 8)
    with pytest.raises(WxlabError, match=r"reads the static fields geopotential_at_surface, .*, and was given none; prepare the store"):
        model(x, clock, noise)
    assert model(x, clock, noise, torch.randn(3, 9, 16)).shape == (1, 2, 3, 9, 16)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"model.bottleneck.blocks.0.ffn.w2.weight": None}, {}, r"lack model\.bottleneck\.blocks\.0\.ffn\.w2\.weight"),
        ({"model.postprocess.1.weight": None}, {}, r"not the weights of this Mosaic: missing model\.postprocess\.1\.weight"),
        ({"model.extra.weight": torch.zeros(3, 3)}, {}, r"unexpected model\.extra\.weight"),
        ({"model.extra.neighbors": torch.zeros(3, 3)}, {}, r"unexpected model\.extra\.neighbors"),
        ({"model.postprocess.1.weight": torch.zeros(16, 8)}, {}, r"postprocess\.1\.weight has shape \[16, 8\] and should have \[16, 16\]"),
        ({}, {"hist": 4}, r"settings do not fit the weights: hist=4 \(the weights say 2\)"),
        ({}, {"nv": 82}, r"nv=82 \(the weights say 3\)"),
        ({}, {"noise_dim": 32}, r"noise_dim=32 \(the weights say 8\)"),
        ({}, {"variables": ["2m_temperature"]}, r"variables names 1 channels, and the weights write 3"),
        ({}, {"variables": "abc"}, r"variables names 1 channels, and the weights write 3"),
        ({}, {"k": "six"}, r"k='six' of the settings must be a whole number"),
        ({}, {"stages": [3]}, r"a level of the settings lacks 'nside', .*; give nside, num_heads"),
        ({}, {"stages": []}, r"the settings have 1 levels and the Mosaic weights 2; give all stages and bott"),
        ({}, {"stages": None, "bott": None}, r"levels of width \[16, 32\].*give config=\{'stages'"),
        ({}, {"bott": {"nside": 2}}, r"a level of the settings lacks 'num_heads'"),
        ({}, {"norm_stats": {"state_mean": np.zeros(3)}}, r"the statistics lack state_std; found state_mean"),
        ({}, {"norm_stats": {"state_mean": np.zeros(4), "state_std": np.ones(4)}}, r"have 4 means and 4 standard deviations for 3"),
        ({}, {"norm_stats": "nowhere.npz"}, r"there is no file of statistics nowhere\.npz"),
        (
            {},
            {"static_vars": {"data": np.zeros((16, 9, 3)), "latitude": np.linspace(-80, 80, 9), "longitude": np.arange(16) * 22.5}},
            r"9 latitudes from -80 to 80, not those of the model's grid",
        ),
        (
            {},
            {"static_vars": {"data": np.zeros((16, 9)), "latitude": np.linspace(-90, 90, 9), "longitude": np.arange(16) * 22.5}},
            r"static fields have the shape \(16, 9\); they must be \(longitude, latitude, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], config: dict[str, Any], message: str) -> None:
    state = {**small(), **change}
    settings = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    with pytest.raises(WxlabError, match=message) as caught:
        load_official("mosaic", {name: value for name, value in state.items() if value is not None}, config=settings)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "stats.npz").write_text("no")
    with pytest.raises(WxlabError, match="cannot be read as a file of statistics"):
        read_statistics(tmp_path / "stats.npz")
