"""The incremental stage of VA-MoE: what is carried over, what is frozen and stays so, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from noise import make as make_fields
from noise import times_of
from standins import windows
from torch import Tensor

import wxlab
from wxlab import create_model, extend, load_checkpoint, prepare, train
from wxlab.checkpoints import save_checkpoint
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models.vamoe import SURFACE, UPPER_AIR, LearnedVariances, VAMoE, carry_over, changed, describe, save_official
from wxlab.store import Store, open_store

UPPER = ("geopotential_850", "geopotential_500", "temperature_850", "temperature_500")
T2M, MSL = "2m_temperature", "mean_sea_level_pressure"
LEARNT = (
    "pos_embed", "posembedder", "PosEmbedder", "GateEmbedder", "shared_experts", "moe.norm", "moe.mlp", "logvar", "head", "patch_embed",
)  # fmt: skip


def make(channels: tuple[str, ...] = UPPER, seed: int = 0, **options: Any) -> VAMoE:
    torch.manual_seed(seed)
    model = create_model("vamoe", "tiny", channels=channels, **options)
    assert isinstance(model, VAMoE)
    return model


def weights(model: VAMoE) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def columns(model: VAMoE, tensor: Tensor, name: str) -> Tensor:
    """A tensor of encoder or decoder with channels first."""
    return tensor.transpose(0, 1) if name.startswith("patch") else tensor.view(model.patch**2, len(model.spec.channels), -1).transpose(0, 1)


# ---- what is carried over ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "trainable"), [("official", 177_347_468), ("paper", 312_222_860)])
def test_share_that_learns_in_the_published_incremental_stage(preset: str, trainable: int) -> None:
    levels = [1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 50]
    with torch.device("meta"):
        old = create_model("vamoe", preset, channels=tuple(f"{name}_{level}" for name in UPPER_AIR for level in levels))
    new = extend(old, SURFACE)
    assert sum(p.numel() for p in new.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in new.parameters()) == {"official": 375_675_788, "paper": 664_741_004}[preset]
    assert describe(new)["trainable"].sum() == trainable


def test_weights_go_to_the_channels_and_experts_of_the_same_name() -> None:
    old = make((*UPPER, T2M))
    with torch.no_grad():
        old.loss_gen.logvar.normal_()
    kept = weights(old)
    order = (MSL, "specific_humidity_500", *reversed(UPPER), "specific_humidity_850", T2M)
    new = extend(old, channels=order)
    assert new.spec.channels == order and new.experts == ("specific_humidity", "temperature", "geopotential", "surface")
    for name, value in kept.items():
        assert torch.equal(old.state_dict()[name], value), name  # the old model is as it was
    for position, channel in enumerate(old.spec.channels):
        place = order.index(channel)
        for name in ("patch_embed.proj.weight", "head.weight"):
            mine = columns(new, new.state_dict()[name], name)[place]
            assert torch.equal(mine, columns(old, kept[name], name)[position]), name
        assert torch.equal(new.posembedder.mlp[0].weight[:, place], kept["posembedder.mlp.0.weight"][:, position])
        assert new.loss_gen.logvar[0, place] == kept["loss_gen.logvar"][0, position]
    assert new.loss_gen.logvar[0, order.index(MSL)] == 0
    for number, name in enumerate(new.experts):
        mine = new.blocks[1].moe.experts[number].up_proj.weight
        theirs = [kept[f"blocks.1.moe.experts.{old.experts.index(name)}.up_proj.weight"]] if name in old.experts else []
        assert all(torch.equal(mine, value) for value in theirs) and mine.requires_grad == (not theirs), name
    assert torch.equal(new.pos_embed, kept["pos_embed"]) and torch.equal(new.blocks[2].attn.qkv.weight, kept["blocks.2.attn.qkv.weight"])


def test_experts_by_number_hand_the_surface_to_the_first_new_variable() -> None:
    old = make((*UPPER, T2M))
    order = (*UPPER, "specific_humidity_850", "specific_humidity_500", T2M)
    theirs = old.blocks[0].moe.experts[2].down_proj.weight
    by_name, by_number = (extend(old, channels=order, experts=way) for way in ("by_name", "by_number"))
    assert by_name.experts[2:] == by_number.experts[2:] == ("specific_humidity", "surface")
    for model, surface in ((by_name, 3), (by_number, 2)):
        mine = [torch.equal(expert.down_proj.weight, theirs) for expert in model.blocks[0].moe.experts]
        frozen = [not expert.down_proj.weight.requires_grad for expert in model.blocks[0].moe.experts]
        assert mine == [False, False, surface == 2, surface == 3] and frozen == [True, True, surface == 2, surface == 3]


def test_new_weights_follow_the_seed_and_leave_the_users_random_numbers_alone() -> None:
    old = make()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = extend(old, T2M), extend(old, T2M), extend(old, T2M, seed=1)
    assert torch.equal(torch.rand(1), expected)
    for (name, value), again, different in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, again), name
        fresh = "experts.2" in name or name in ("patch_embed.proj.weight", "head.weight", "posembedder.mlp.0.weight")
        assert torch.equal(value, different) != fresh, name


def test_what_variables_stand_for() -> None:
    old = make()
    assert extend(old, ["specific_humidity", MSL]).spec.channels[4:] == ("specific_humidity_850", "specific_humidity_500", MSL)
    assert extend(old, "specific_humidity", levels=[700]).spec.channels[4:] == ("specific_humidity_700",)
    assert extend(old, "temperature", levels=[700]).spec.channels[4:] == ("temperature_700",)
    assert extend(old, "u_component_of_wind_500").spec.channels[4:] == ("u_component_of_wind_500",)
    assert extend(old, ["wave_height", "2m_temperature_max"]).spec.channels[4:] == ("wave_height", "2m_temperature_max")
    twice = extend(extend(old, T2M), "specific_humidity_500")
    assert twice.config["extension"]["channels"] == [*UPPER, T2M] and twice.config["extension"]["experts"] == [0, 1, None, 2]


# ---- what is frozen ---------------------------------------------------------------------------------------------------------------


def steps_of(model: VAMoE, count: int = 6, **recipe: Any) -> dict[str, Tensor]:
    """Train with large steps and much decay; the weights afterwards."""
    how = LearnedVariances(model, lr=0.03, weight_decay=0.5, **recipe)
    optimiser = how.optimiser(model.train())
    for seed in range(count):
        optimiser.zero_grad()
        how.loss(model, windows(model, seed=seed), None)[0].backward()
        optimiser.step()
    return weights(model)


def test_what_was_carried_over_is_frozen_as_coded() -> None:
    model = extend(make(), [T2M, "specific_humidity"])
    before = weights(model)
    after = steps_of(model)
    for name in before:
        moved = any(part in name for part in LEARNT) or "experts.2" in name or "experts.3" in name
        assert torch.equal(before[name], after[name]) != moved, name
    everything = extend(make(), T2M, freeze="none")
    before = weights(everything)
    after = steps_of(everything)
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_strict_freezing_holds_the_old_columns_to_the_bit() -> None:
    model = extend(make(), channels=(T2M, *UPPER[:2], "specific_humidity_500", *UPPER[2:]), freeze="strict")
    old = [model.spec.channels.index(name) for name in UPPER]
    new = [place for place in range(6) if place not in old]
    before = weights(model)
    after = steps_of(model)
    for name in ("patch_embed.proj.weight", "head.weight"):
        first, last = (columns(model, state[name], name) for state in (before, after))
        assert torch.equal(first[old], last[old]), name
        assert (first[new] != last[new]).flatten(1).float().mean(1).min() > 0.99, name
    assert torch.equal(before["patch_embed.proj.bias"], after["patch_embed.proj.bias"])
    assert torch.equal(before["blocks.0.attn.qkv.weight"], after["blocks.0.attn.qkv.weight"])
    assert not torch.equal(before["pos_embed"], after["pos_embed"])
    x = torch.randn(1, 6, 16, 32)
    expected = torch.nn.functional.conv2d(x, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=2)
    torch.testing.assert_close(model.tokens(x), expected.flatten(2).transpose(1, 2) + model.pos_embed)


def test_held_columns_pass_gradients_on() -> None:
    """Of loss and every tensor that learns they are the same as without holding anything."""
    models = [extend(make(), T2M, freeze=freeze) for freeze in ("coded", "strict")]
    gradients = []
    for model in models:
        LearnedVariances(model).loss(model, windows(model), None)[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    coded, strict = gradients
    assert set(coded) - set(strict) == {"patch_embed.proj.bias"}
    for name in strict:
        if name in ("patch_embed.proj.weight", "head.weight"):
            mine, theirs = (columns(models[0], grads[name], name) for grads in (strict, coded))
            assert not mine[:4].any() and theirs[:4].any() and torch.equal(mine[4], theirs[4]), name
        else:
            assert torch.equal(strict[name], coded[name]), name


@pytest.mark.parametrize("freeze", ["coded", "strict"])
def test_what_moved_against_the_rules_is_found(freeze: Any) -> None:
    old = make((*UPPER, T2M))
    model = extend(old, channels=(MSL, "specific_humidity_500", T2M, *UPPER), freeze=freeze)
    steps_of(model, 2)
    assert changed(old, model) == []
    with torch.no_grad():
        model.blocks[1].norm1.bias[3] += 1e-3
        model.blocks[0].moe.experts[2].up_proj.weight[0, 0] += 1e-3
        model.patch_embed.proj.weight[0, model.spec.channels.index(T2M), 0, 0] += 1e-3
        model.patch_embed.proj.weight[0, 0] += 1
    held = ["patch_embed.proj.weight"] if freeze == "strict" else []
    assert changed(old, model) == [*held, "blocks.0.moe.experts.2.up_proj.weight", "blocks.1.norm1.bias"]
    for other in (make(), extend(make(), T2M)):
        with pytest.raises(WxlabError, match="the second model is no extension of the first"):
            changed(old, other)


def test_tensors_are_listed_as_new_copied_frozen() -> None:
    table = describe(extend(make(), [T2M], freeze="strict")).set_index("tensor")
    assert tuple(table.loc["blocks.0.attn.qkv.weight", ["origin", "trained"]]) == ("copied", "none")
    assert tuple(table.loc["blocks.0.moe.experts.1.up_proj.weight", ["origin", "trained"]]) == ("copied", "none")
    assert tuple(table.loc["blocks.0.moe.experts.2.up_proj.weight", ["origin", "trained"]]) == ("new", "all")
    assert tuple(table.loc["head.weight", ["origin", "trained", "numbers", "trainable"]]) == ("partly copied", "new columns", 640, 128)
    assert tuple(table.loc["posembedder.mlp.0.weight", ["origin", "trained"]]) == ("partly copied", "all")
    assert tuple(table.loc["pos_embed", ["origin", "trained", "shape"]]) == ("copied", "all", (1, 128, 32))
    fresh = describe(make())
    assert set(fresh["origin"]) == {"new"} and (fresh["trainable"] == fresh["numbers"]).all()


# ---- with the trainer -------------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"grid": Grid.regular(4, 8), "step": 86400, "embed_dim": 16, "heads": 2, "depth": 2}
QUIET: dict[str, Any] = {"progress": False, "device": "cpu", "batch_size": 4, "lr": 0.01, "log_every": 1, "validate_every": 2}
NAMES = ["geopotential_500", "geopotential_850", T2M]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    splits = {"train": ["2001-01-01", "2001-02-09"], "validation": ["2001-02-10", "2001-02-24"], "test": ["2001-02-25", "2001-03-31"]}
    fields = make_fields(times_of(90), SMALL["grid"])
    return open_store(prepare(fields, tmp_path_factory.mktemp("extension") / "s.zarr", variables=NAMES, splits=splits))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("freeze", ["coded", "strict"])
def test_freezing_survives_an_interruption(store: Store, tmp_path: Path, freeze: Any) -> None:
    old = make(("geopotential_500", "geopotential_850"), **SMALL)
    before = weights(extend(old, channels=store.channels, freeze=freeze))

    def begin() -> VAMoE:
        return extend(old, channels=store.channels, freeze=freeze)

    how: dict[str, Any] = {"steps": 6, "ema": 0.5, "recipe": {"weight_decay": 0.5}, **QUIET}
    train(begin(), store, run_dir=tmp_path / "whole", **how)

    def interrupt(line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(begin(), store, run_dir=tmp_path / "run", callbacks=[interrupt], **how)
    train(begin(), store, run_dir=tmp_path / "run", **how)
    ends = [load_checkpoint(tmp_path / folder / "last.safetensors") for folder in ("run", "whole")]
    assert all(isinstance(end, VAMoE) for end in ends)
    after, whole = (weights(end) for end in ends)
    assert all(torch.equal(after[name], whole[name]) for name in after)
    still = [name for name in before if torch.equal(before[name], after[name])]
    frozen = [name for name, p in begin().named_parameters() if not p.requires_grad]
    assert still == frozen and len(frozen) > 10
    if freeze == "strict":
        for name in ("patch_embed.proj.weight", "head.weight"):
            first, last = (columns(begin(), state[name], name) for state in (before, after))
            assert torch.equal(first[:2], last[:2]) and not torch.equal(first[2], last[2])


def test_freezing_survives_a_checkpoint(store: Store, tmp_path: Path) -> None:
    model = extend(make(("geopotential_500", "geopotential_850"), **SMALL), T2M, freeze="strict")
    again = load_checkpoint(save_checkpoint(model, tmp_path / "m"))
    assert isinstance(again, VAMoE) and describe(again).equals(describe(model))
    before = weights(again)
    train(again, store, run_dir=tmp_path / "run", steps=3, **QUIET)
    held = [name for name, p in again.named_parameters() if not p.requires_grad]
    assert held and all(torch.equal(before[name], again.state_dict()[name]) for name in held)
    assert torch.equal(before["head.weight"].view(4, 3, -1)[:, :2], again.head.weight.detach().view(4, 3, -1)[:, :2])


def test_a_trained_model_is_tuned_over_several_steps(store: Store, tmp_path: Path) -> None:
    path = train("vamoe", store, run_dir=tmp_path / "one", preset="tiny", model={"embed_dim": 16, "heads": 2, "depth": 1}, steps=4, **QUIET)
    errors = []
    for through_time in (False, True):
        model = load_checkpoint(path)
        model.spec = dataclasses.replace(model.spec, horizon=3)
        again = train(model, store, run_dir=tmp_path / f"several-{through_time}", steps=2, recipe={"through_time": through_time}, **QUIET)
        tuned = load_checkpoint(again)
        assert tuned.spec.horizon == 3 and tuned.config == model.config
        errors.append(tuned.facts["validation"])
        fields = wxlab.forecast(tuned, store.dataset("test").isel(time=slice(0, 8)), steps=4)
        assert fields.sizes["prediction_timedelta"] == 4 and bool(fields[T2M].notnull().all())
    assert errors[0] != errors[1]


# ---- what does not fit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"no variable was named; give the new ones as variables=\[...\], or all channels in order as channels=store.channels"),
        ({"variables": "temperature"}, r"the model already has temperature; name only variables that are new, or new levels of it"),
        ({"variables": ["temperature_500", T2M]}, r"the model already has temperature_500; name only variables that are new"),
        ({"variables": "temperature", "levels": [500, 700]}, r"the model already has temperature_500"),
        ({"variables": [T2M, T2M]}, r"2m_temperature would be added twice; name each once"),
        ({"variables": []}, r"no variable is new; name at least one"),
        ({"channels": UPPER}, r"no variable is new; name at least one"),
        ({"channels": (*UPPER[1:], T2M)}, r"channels leave out geopotential_850, which the model has; variables can be added, not removed"),
        ({"variables": T2M, "channels": (*UPPER, MSL)}, r"channels must name each old and each new channel once, and .* are not in place"),
        ({"variables": "2m_temprature"}, r"unknown variable '2m_temprature'; did you mean '2m_temperature'\?"),
        ({"variables": ["specific_humdity_500"]}, r"unknown variable 'specific_humdity_500'; did you mean 'specific_humidity'\?"),
        ({"variables": 5}, r"variables=5 must be names, such as"),
        ({"variables": [T2M, ""]}, r"variables=\['2m_temperature', ''\] must be names, such as"),
        ({"variables": T2M, "levels": [500]}, r"levels=\[500\] were given, and none of 2m_temperature lies on levels; leave them out"),
        ({"variables": "specific_humidity", "levels": 500}, r"levels=500 must be a list of pressure levels in hPa, such as \[850, 500\]"),
        ({"variables": "specific_humidity_700"}, r"lies at 700 hPa, and the model's levels are 850, 500; choose among them, or allow"),
        ({"variables": "specific_humidity", "levels": [5000]}, r"5000 hPa is no pressure level; give whole numbers between 1 and 1100"),
        ({"variables": "specific_humidity", "levels": [500.5]}, r"500.5 hPa is no pressure level"),
        ({"variables": T2M, "freeze": "hard"}, r"unknown freeze 'hard'.*\(allowed: coded, none, strict\)"),
        ({"variables": T2M, "experts": "by_place"}, r"unknown experts 'by_place'.*\(allowed: by_name, by_number\)"),
    ],
)
def test_additions_that_make_no_sense_are_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(WxlabError, match=message) as caught:
        extend(make(), **given)
    assert "\n" not in str(caught.value)


def test_models_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(WxlabError, match="vit cannot be extended; give a VA-MoE"):
        extend(create_model("vit", "tiny"), T2M)
    with pytest.raises(WxlabError, match="lies on levels, and the model has no levels; give levels="):
        extend(make((T2M,)), "temperature")
    with pytest.raises(WxlabError, match="str cannot be extended; give a VA-MoE, such as load_checkpoint returns"):
        extend("runs/a", T2M)  # type: ignore[arg-type]
    old, other = make(), create_model("vit", "tiny")
    for look in (describe, save_official, lambda model: changed(old, model), lambda model: carry_over(old, model)):
        with pytest.raises(WxlabError, match="vit has no experts of variables; give a VA-MoE"):
            look(other)  # type: ignore[arg-type]
    with pytest.raises(WxlabError, match=r"unknown experts 'by_place'.*\(allowed: by_name, by_number\)"):
        carry_over(old, extend(old, T2M), "by_place")  # type: ignore[arg-type]
    with pytest.raises(WxlabError, match=r"pos_embed has shape .*32\] in the old model and .*48\] in the new one; only channels may"):
        carry_over(old, make((*UPPER, T2M), embed_dim=48))
    with pytest.raises(WxlabError, match=r"new model lacks temperature_500, which the old one has; variables can be added, not removed"):
        carry_over(old, make(UPPER[:3]))
    kept = {"channels": [MSL], "experts": [None, None, None], "freeze": "coded"}
    with pytest.raises(WxlabError, match=r"the extension keeps mean_sea_level_pressure, which the model's channels lack"):
        make((*UPPER, T2M), extension=kept)
    with pytest.raises(WxlabError, match=r"the extension names 3 experts, and these channels have 2; let wxlab.extend set it"):
        make(UPPER, extension={**kept, "channels": list(UPPER)})
