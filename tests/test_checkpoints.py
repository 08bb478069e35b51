"""Checkpoints: what is written comes back; what is damaged says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import wxlab
from wxlab.checkpoints import FORMAT, load_checkpoint, save_checkpoint
from wxlab.climatology import Climatology
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models import Model, create_model
from wxlab.normaliser import Normaliser, Transform

CHANNELS = ("2m_temperature", "geopotential_500")


def make(**options: Any) -> Model:
    torch.manual_seed(0)
    model = create_model("convlstm", "tiny", channels=CHANNELS, grid=(4, 8), forcing=("year_progress_sin",), **options)
    transforms = {"2m_temperature": Transform("zscore", 280.0, 12.5), "geopotential_500": Transform("minmax", 4.8e4, 1e4)}
    model.normaliser = Normaliser(transforms, {"2m_temperature": "mask"}, {})
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_checkpoint(make(), tmp_path / "run" / "best", step=7)


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as handle:
        facts: dict[str, Any] = json.loads(handle.metadata()["wxlab"])
    return facts


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = header(file)
    facts = change(facts) or facts
    save_file(load_file(file), file, metadata={"wxlab": json.dumps(facts)})


@pytest.mark.parametrize("how", ["folder", "safetensors", "json"])
def test_everything_comes_back(file: Path, how: str) -> None:
    model = load_checkpoint({"folder": file.parent, "safetensors": file, "json": file.with_suffix(".json")}[how])
    first = make()
    assert model.name == "convlstm" and model.spec == first.spec and model.config == json.loads(json.dumps(first.config))
    assert model.normaliser == first.normaliser and model.licence == "Apache-2.0" and not model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in first.state_dict().items())
    assert model.facts["step"] == 7 and model.facts["versions"]["wxlab"] == wxlab.__version__ and "1506.04214" in model.facts["citation"]
    assert model.facts["parameters"] == sum(value.numel() for value in first.parameters())


def test_the_json_beside_it_is_a_copy_for_people(file: Path) -> None:
    beside = file.with_suffix(".json")
    assert json.loads(beside.read_text()) == header(file)
    beside.write_text("{ damaged")
    assert load_checkpoint(beside).facts["step"] == 7
    beside.unlink()
    assert load_checkpoint(file.parent).facts["step"] == 7


def test_names_with_dots_and_facts_of_any_kind(tmp_path: Path) -> None:
    facts = {"lr": np.float32(0.5), "numbers": np.arange(2), "grid": Grid.regular(4, 8), "place": tmp_path}
    file = save_checkpoint(make(), tmp_path / "lr.0.5", **facts)
    assert file.name == "lr.0.5.safetensors"
    found = load_checkpoint(file).facts
    assert found["lr"] == 0.5 and found["numbers"] == [0, 1] and found["place"] == str(tmp_path)
    assert Grid.from_dict(found["grid"]) == Grid.regular(4, 8)


def test_a_climatology_of_the_units_travels_along(tmp_path: Path) -> None:
    coefficients = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 8)).astype(np.float32)
    model = make()
    climatology = Climatology(coefficients, [0, 43200], CHANNELS, model.spec.grid)
    model.normaliser = Normaliser({name: Transform("anomaly", 0.0, 2.0) for name in CHANNELS}, climatology=climatology)
    found = load_checkpoint(save_checkpoint(model, tmp_path / "a")).normaliser
    assert found is not None and found.anomalies and found.transforms == model.normaliser.transforms
    fields, times = np.random.default_rng(1).normal(size=(3, 2, 4, 8)), np.array([0, 10**6, 10**8])
    assert np.array_equal(found.normalise(fields, CHANNELS, times), model.normaliser.normalise(fields, CHANNELS, times))


def test_weights_that_share_memory_can_be_kept(tmp_path: Path) -> None:
    model: Any = make()
    model.cell_list[1] = model.cell_list[0]
    again: Any = load_checkpoint(save_checkpoint(model, tmp_path / "tied"))
    for cell in again.cell_list:
        assert all(torch.equal(value, model.cell_list[0].state_dict()[name]) for name, value in cell.state_dict().items())


def test_an_interrupted_write_leaves_the_old_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("wxlab.checkpoints.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(make(), file)
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 2


# ---- faults: what is done to the file, what is said


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("weights, honestly")


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def bare(file: Path) -> None:
    save_file(load_file(file), file)


def no_json(file: Path) -> None:
    save_file(load_file(file), file, metadata={"wxlab": "{ damaged"})


def newer(file: Path) -> None:
    rewrite(file, lambda facts: facts.update(format="wxlab-checkpoint-9"))


def no_spec(file: Path) -> None:
    rewrite(file, lambda facts: facts.pop("spec") and None)


def strange_config(file: Path) -> None:
    rewrite(file, lambda facts: facts["config"].update(colour="blue"))


def unknown_model(file: Path) -> None:
    rewrite(file, lambda facts: facts.update(model="convlstn"))


def other_model(file: Path) -> None:
    rewrite(file, lambda facts: facts.update(model="persistence", config={}))


def other_size(file: Path) -> None:
    rewrite(file, lambda facts: facts["config"].update(hidden=[4, 4]))


def odd_grid(file: Path) -> None:
    rewrite(file, lambda facts: facts["spec"]["grid"].update(y=[0, 1, 2]))


def bad_units(file: Path) -> None:
    rewrite(file, lambda facts: facts["normaliser"]["transforms"]["2m_temperature"].update(scale=0))


def lost_tensor(file: Path) -> None:
    tensors, facts = load_file(file), header(file)
    tensors.pop("conv_last.weight")
    save_file(tensors, file, metadata={"wxlab": json.dumps(facts)})


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (cut, "is damaged or no safetensors file; take another copy, or train again"),
    (cut_header, "is damaged or no safetensors file"),
    (empty, "is damaged or no safetensors file"),
    (text, "is damaged or no safetensors file"),
    (folder_instead, "holds no best.safetensors"),
    (bare, f"is not a checkpoint of this version ({FORMAT})"),
    (no_json, "is damaged or no safetensors file"),
    (newer, f"is not a checkpoint of this version ({FORMAT})"),
    (no_spec, "the header of "),
    (strange_config, "is damaged or of another version of wxlab"),
    (unknown_model, "unknown model 'convlstn'; did you mean 'convlstm'?"),
    (other_model, "do not fit the 'persistence' that its header describes"),
    (other_size, "missing, unexpected or of another shape, the first is 'cell_list.0."),
    (odd_grid, "the grid has 3 rows, and this model needs a multiple of 2"),
    (bad_units, "a normalisation with scale 0"),
    (lost_tensor, "1 of "),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS, ids=[damage.__name__ for damage, _ in FAULTS])
def test_faulty_files(file: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(file)
    with pytest.raises(WxlabError) as caught:
        load_checkpoint(file)
    said = str(caught.value)
    assert message in said and str(file) in said and "\n" not in said and caught.value.__cause__ is None


def test_faulty_paths(file: Path, tmp_path: Path) -> None:
    for path, message in {
        tmp_path: "holds no best.safetensors; train there first",
        tmp_path / "none.safetensors": "there is no checkpoint at ",
        tmp_path / "none.json": "there is no checkpoint at ",
        tmp_path / "weights.pth": "is no checkpoint; give a run folder, a .safetensors or a .json file",
        tmp_path / "nowhere": "is no checkpoint; give a run folder",
    }.items():
        with pytest.raises(WxlabError, match=message):
            load_checkpoint(path)
    shutil.rmtree(file.parent)
