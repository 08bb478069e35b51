"""What every registered model owes to training, roll-out and diagnostics, whatever is inside it."""

from __future__ import annotations

import copy
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from standins import Noise, memory_store, windows
from torch import Tensor

from wxlab.checkpoints import load_checkpoint, save_checkpoint
from wxlab.errors import WxlabError
from wxlab.models import Batch, Model, Recipe, Spec, create_model, get_entry, list_models

ALL = [pytest.param(name, marks=pytest.mark.nowcast) if name in ("extrapolation", "sprog", "steps") else name for name in list_models()]
TRAINED = [name for name in list_models() if get_entry(name).recipe is not None]
# parameters that published checkpoints hold and that nothing uses: they must ask for no gradient
DEAD = {
    "met2net": "*.spatial_gating_unit.fc.*",
    "ladder_joint": "*.spatial_gating_unit.fc.*",
    "ladder_separate": "*.spatial_gating_unit.fc.*",
    "ladder_attention": "*.spatial_gating_unit.fc.*",
    "convlstm": "cell_list.*.conv_[ol]*",
    "stldm": "denoiser.conditions.1.*",
}


def make(name: str, seed: int = 0, **options: Any) -> Model:
    """A model at preset tiny, ready to forecast."""
    torch.manual_seed(seed)
    model = create_model(name, "tiny", **options)
    model.normaliser = memory_store(model.spec).normaliser
    if name == "climatology":
        model.fit(memory_store(model.spec))  # type: ignore[operator]
    return model.eval()


def predict(model: Model, batch: Batch, members: int = 1, seed: int = 0, first: int = 0) -> Tensor:
    noise: Any = Noise(len(batch), members, seed, first)
    with torch.no_grad():
        return model.predict(batch, members, noise)


def recipes(name: str, model: Model) -> list[Recipe]:
    made = get_entry(name).recipe(model)  # type: ignore[misc]
    return made if isinstance(made, list) else [made]


@pytest.mark.parametrize("name", ALL)
def test_predictions_have_the_agreed_shape_and_are_finite(name: str) -> None:
    model = make(name)
    batch = windows(model, 3)
    before = copy.deepcopy(batch)
    prediction = predict(model, batch, members=2)
    spec = model.spec
    assert prediction.shape == (3, 2, spec.horizon, len(spec.channels), *spec.grid.shape)
    assert prediction.dtype == torch.float32 and torch.isfinite(prediction).all()
    assert torch.equal(batch.history, before.history) and torch.equal(batch.time, before.time)


@pytest.mark.parametrize("name", ALL)
def test_the_target_is_not_needed_and_not_looked_at(name: str) -> None:
    model = make(name)
    batch = windows(model)
    blind = Batch(batch.history, None, batch.time, batch.forcing, batch.static)
    assert torch.equal(predict(model, batch), predict(model, blind))


@pytest.mark.parametrize("name", ALL)
def test_members_differ_exactly_when_the_model_is_stochastic(name: str) -> None:
    model = make(name)
    prediction = predict(model, windows(model), members=2)
    assert torch.equal(prediction[:, 0], prediction[:, 1]) == (model.spec.stochastic == "none")


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_bits(name: str) -> None:
    first, second = make(name), make(name)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    batch = windows(first)
    assert torch.equal(predict(first, batch, 2, seed=3), predict(second, batch, 2, seed=3))


@pytest.mark.parametrize("name", ALL)
def test_batch_elements_are_independent(name: str) -> None:
    model = make(name)
    batch = windows(model, 3)
    together = predict(model, batch)
    for i in range(3):
        part = slice(i, i + 1)
        forcing = None if batch.forcing is None else batch.forcing[part]
        one = Batch(batch.history[part], None, batch.time[part], forcing, batch.static)
        torch.testing.assert_close(predict(model, one, first=i)[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter_that_asks_for_one(name: str) -> None:
    model = make(name).double().train()
    batch = windows(model).to("cpu", torch.float64)
    for recipe in recipes(name, model):
        loss, logs = recipe.double().loss(model, batch, torch.Generator().manual_seed(0))
        assert loss.ndim == 0 and torch.isfinite(loss.detach()) and logs
        loss.backward()
        recipe.after_step(model, 0)
    for key, parameter in model.named_parameters():
        if fnmatch(key, DEAD.get(name, "")):
            assert not parameter.requires_grad and parameter.grad is None, key
        else:
            assert parameter.requires_grad and parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", TRAINED)
def test_some_steps_of_the_recipe_lower_the_loss_and_repeat_exactly(name: str) -> None:
    ends = []
    for _ in range(2):
        model = make(name).train()
        (recipe,) = recipes(name, model)
        batch, optimiser = windows(model), recipe.optimiser(model)
        losses = []
        for step in range(12):
            loss, _ = recipe.loss(model, batch, torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            recipe.after_step(model, step)
            losses.append(float(loss.detach()))
        ends.append(losses)
    assert ends[0] == ends[1]
    assert min(ends[0][-3:]) < ends[0][0]


@pytest.mark.parametrize("name", TRAINED)
def test_training_does_not_touch_the_global_random_state(name: str) -> None:
    model = make(name).train()
    (recipe,) = recipes(name, model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    recipe.loss(model, windows(model), torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ALL)
def test_spec_and_config_rebuild_the_model(name: str) -> None:
    model = make(name)
    spec = Spec.from_dict(json.loads(json.dumps(model.spec.to_dict())))
    assert spec == model.spec
    config = json.loads(json.dumps(model.config))
    again = get_entry(name).build(spec, **config)
    assert again.spec == model.spec
    again.load_state_dict(model.state_dict())
    again.normaliser = model.normaliser
    batch = windows(model)
    assert torch.equal(predict(again.eval(), batch), predict(model, batch))


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_it_forecasts_the_same(name: str, tmp_path: Path) -> None:
    model = make(name)
    save_checkpoint(model, tmp_path / "model.safetensors")
    again = load_checkpoint(tmp_path / "model.safetensors")
    assert again.name == name and again.spec == model.spec and again.licence == model.licence and not again.training
    assert again.normaliser == model.normaliser
    batch = windows(model)
    assert torch.equal(predict(again, batch, 2), predict(model, batch, 2))


@pytest.mark.parametrize("name", ALL)
def test_a_stores_forcing_and_statics_are_no_obstacle(name: str) -> None:
    model = make(name, forcing=("year_progress_sin",), static=("land_sea_mask",))
    prediction = predict(model, windows(model))
    assert torch.isfinite(prediction).all()


@pytest.mark.parametrize("name", ALL)
def test_every_preset_can_be_built(name: str) -> None:
    entry = get_entry(name)
    assert {"tiny", "demo"} <= set(entry.presets) and entry.name == name and entry.title and entry.licence
    for preset in entry.presets:
        with torch.device("meta"):
            assert create_model(name, preset).name == name


@pytest.mark.parametrize("name", ALL)
def test_a_grid_that_does_not_fit_is_refused_in_one_sentence(name: str) -> None:
    if make(name).spec.multiples == (1, 1):
        model = make(name, grid=(7, 9))
        assert predict(model, windows(model)).shape[-2:] == (7, 9)
        return
    multiple = make(name).spec.multiples[0]
    with pytest.raises(WxlabError, match=rf"7 rows, and this model needs a multiple of {multiple};") as caught:
        create_model(name, "tiny", grid=(7, 9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_unknown_options_and_presets_are_explained(name: str) -> None:
    with pytest.raises(WxlabError, match=rf"unknown option of {name} 'horizn'; did you mean 'horizon'\? \(allowed: .*history"):
        create_model(name, horizn=3)
    with pytest.raises(WxlabError, match=rf"unknown preset of {name} 'tinny'; did you mean 'tiny'"):
        create_model(name, "tinny")


def test_unknown_models_are_explained() -> None:
    with pytest.raises(WxlabError, match=r"unknown model 'metnet'; did you mean 'met2net'\? \(allowed: .*persistence"):
        create_model("metnet")
