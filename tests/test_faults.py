"""Thirty mistakes of a user, from the catalogue to the scores: each gets one clear sentence and no library's traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import wxlab
from wxlab.errors import WxlabError
from wxlab.runs import Parameter, cast, load_preset
from wxlab.store import open_store
from wxlab.windows import Windows

T2M, MSL = "2m_temperature", "mean_sea_level_pressure"
CATALOGUE = """\
schema: 1
datasets:
  {name}:
    title: a source
    driver: {driver}
    uri: {uri}
    variables: {{2m_temperature: {{name: {variable}}}}}
    licence: none
    citation: none
    needs_network: false
"""


def states(count: int = 40, hours: int = 6) -> xr.Dataset:
    """Random but plausible fields, 8 x 16 points."""
    random = np.random.default_rng(0)
    times = np.datetime64("2001-01-01", "ns") + np.arange(count) * np.timedelta64(hours, "h")
    shape, dims = (count, 8, 16), ("time", "latitude", "longitude")
    fields = {T2M: 280 + 5 * random.standard_normal(shape), MSL: 101000 + 500 * random.standard_normal(shape)}
    coords = {"time": times, "latitude": np.linspace(-78.75, 78.75, 8), "longitude": np.arange(16) * 22.5}
    return xr.Dataset({name: (dims, values.astype(np.float32)) for name, values in fields.items()}, coords)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store, a trained model, a forecast, and files with something wrong about them."""
    folder = tmp_path_factory.mktemp("faults")
    data = states()
    store = open_store(wxlab.prepare(data, folder / "store.zarr", variables=[T2M, MSL]))
    checkpoint = wxlab.train("convlstm", store, run_dir=folder / "run", preset="tiny", steps=1, batch_size=2, progress=False)
    model = wxlab.load_checkpoint(checkpoint)
    forecast = wxlab.forecast(model, data, steps=2)
    data.rename({T2M: "t2m"})[["t2m"]].to_netcdf(folder / "t2m.nc", engine="h5netcdf")
    (data[[T2M]] - 273.15).rename({T2M: "t2m"}).to_netcdf(folder / "celsius.nc", engine="h5netcdf")
    xr.concat([data, data], "time")[[T2M]].rename({T2M: "t2m"}).to_netcdf(folder / "twice.nc", engine="h5netcdf")
    (folder / "text.nc").write_text("not a netCDF file")
    broken = folder / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    (folder / "notes.json").write_text("{}")
    return SimpleNamespace(folder=folder, data=data, store=store, checkpoint=checkpoint, model=model, forecast=forecast)


def catalogue(world: SimpleNamespace, file: str = "t2m.nc", *, driver: str = "netcdf", variable: str = "t2m") -> Path:
    path: Path = world.folder / f"{driver}_{Path(file).stem}_{variable}.yaml"
    path.write_text(CATALOGUE.format(name="mine", driver=driver, uri=world.folder / file, variable=variable))
    return path


def with_gap(data: xr.Dataset) -> xr.Dataset:
    holed = data.copy(deep=True)
    holed[T2M][3, 2, 2] = np.nan
    return holed


def lacking_keys() -> dict[str, torch.Tensor]:
    model = wxlab.create_model("met2net", "tiny")
    from wxlab.models.met2net import save_official

    state = dict(save_official(model))
    state.pop("hid_q.conv1.weight")
    return state


Fault = Callable[[SimpleNamespace, Path], Any]
FAULTS: dict[str, tuple[Fault, str]] = {
    # catalogue and files
    "unknown source": (lambda w, t: wxlab.open_dataset("simulated_atmosfere"), "did you mean 'simulated_atmosphere'"),
    "catalogue absent": (lambda w, t: wxlab.catalog.load(t / "no.yaml"), r"no\.yaml"),
    "unknown driver": (lambda w, t: wxlab.catalog.load(catalogue(w, driver="netcdff")), "netcdff"),
    "file absent": (lambda w, t: wxlab.open_dataset("mine", catalog=catalogue(w, "gone.nc")), r"gone\.nc"),
    "file is no netCDF": (lambda w, t: wxlab.open_dataset("mine", catalog=catalogue(w, "text.nc")), r"text\.nc"),
    "variable not in file": (lambda w, t: wxlab.open_dataset("mine", catalog=catalogue(w, variable="t2")), "t2"),
    "wrong units": (lambda w, t: wxlab.open_dataset("mine", catalog=catalogue(w, "celsius.nc")), "offset"),
    "times twice": (lambda w, t: wxlab.open_dataset("mine", catalog=catalogue(w, "twice.nc")), "more than once"),
    "unknown override": (lambda w, t: wxlab.open_dataset("mine", catalog=catalogue(w), urri="x"), "did you mean 'uri'"),
    # grids, times, splits
    "unknown variable": (lambda w, t: wxlab.prepare(w.data, t / "a", variables=["2m_temprature"]), f"did you mean '{T2M}'"),
    "level not there": (lambda w, t: wxlab.prepare(w.data, t / "a", variables=["geopotential"], levels=[500]), "geopotential"),
    "bad grid": (lambda w, t: wxlab.prepare(w.data, t / "a", variables=[T2M], grid="32by64"), "32by64"),
    "time backwards": (lambda w, t: wxlab.prepare(w.data, t / "a", variables=[T2M], time=["2001-02-01", "2001-01-01"]), "ends before"),
    "no such time": (lambda w, t: wxlab.prepare(w.data, t / "a", variables=[T2M], time=["2050-01-01", "2051-01-01"]), "2050|2001"),
    "splits overlap": (
        lambda w, t: wxlab.prepare(
            w.data, t / "a", variables=[T2M], splits={"train": ["2001-01-01", "2001-01-05"], "test": ["2001-01-05", "2001-01-08"]}
        ),
        "share",
    ),
    "unknown split": (
        lambda w, t: wxlab.prepare(w.data, t / "a", variables=[T2M], splits={"training": ["2001-01-01", "2001-01-05"]}),
        "did you mean 'train'",
    ),
    "missing values": (lambda w, t: wxlab.prepare(with_gap(w.data), t / "a", variables=[T2M]), "fill|mask"),
    "store of another request": (lambda w, t: wxlab.prepare(w.data, w.store.path, variables=[T2M]), "overwrite=True"),
    "no store": (lambda w, t: open_store(t / "none.zarr"), "there is no store"),
    "window too long": (lambda w, t: Windows(w.store, "test", history=20, horizon=20), "fewer frames"),
    # models and training
    "unknown model": (lambda w, t: wxlab.create_model("met2nett"), "did you mean 'met2net'"),
    "unknown preset": (lambda w, t: wxlab.create_model("met2net", "tinny"), "did you mean 'tiny'"),
    "grid does not divide": (lambda w, t: wxlab.create_model("met2net", "demo", grid=(33, 64)), "multiple of 4"),
    "unknown setting": (lambda w, t: wxlab.train("convlstm", w.store, run_dir=t, preset="tiny", stepz=3), "did you mean 'steps'"),
    "negative rate": (lambda w, t: wxlab.train("convlstm", w.store, run_dir=t, preset="tiny", lr=-1.0), "lr"),
    "run of other settings": (
        lambda w, t: wxlab.train("convlstm", w.store, run_dir=w.folder / "run", preset="tiny", steps=2, batch_size=2),
        "other settings",
    ),
    # checkpoints
    "checkpoint absent": (lambda w, t: wxlab.load_checkpoint(t / "best.safetensors"), "no checkpoint"),
    "checkpoint cut short": (lambda w, t: wxlab.load_checkpoint(w.folder / "broken.safetensors"), "damaged"),
    "no checkpoint at all": (lambda w, t: wxlab.load_checkpoint(w.folder / "text.nc"), "safetensors"),
    "official weights lack a key": (
        lambda w, t: wxlab.load_official("met2net", lacking_keys(), config={"in_shape": [2, 3, 16, 32]}),
        r"hid_q\.conv1\.weight",
    ),
    "no published weights": (lambda w, t: wxlab.load_official("persistence", {}), "no published weights"),
    # forecasts and scores
    "too few states": (lambda w, t: wxlab.forecast(w.model, w.data.isel(time=[0]), steps=1), "give more states"),
    "members of a deterministic model": (lambda w, t: wxlab.forecast(w.model, w.data, steps=1, members=5), "deterministic"),
    "other grid": (lambda w, t: wxlab.forecast(w.model, w.data.isel(longitude=slice(0, 8)), steps=1), "grid"),
    "unknown metric": (lambda w, t: wxlab.verify(w.forecast, w.data, metrics=["rsme"]), "did you mean 'rmse'"),
    "anomalies from nothing": (lambda w, t: wxlab.verify(w.forecast, w.data, metrics=["acc"]), "climatology"),
    "truth of another time": (
        lambda w, t: wxlab.verify(w.forecast, w.data.assign_coords(time=w.data.time + np.timedelta64(3650, "D")), metrics=["rmse"]),
        "time",
    ),
    # parameters of notebooks
    "wrong type of parameter": (lambda w, t: cast("steps", "many", Parameter("int", 3, "")), "steps must be int"),
    "unknown parameter file": (lambda w, t: load_preset(t / "02_met2net.ipynb", "papper"), "unknown preset"),
}


def test_the_table_is_long_enough() -> None:
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_gets_one_clear_sentence(name: str, world: SimpleNamespace, tmp_path: Path) -> None:
    provoke, says = FAULTS[name]
    with pytest.raises(WxlabError, match=says) as caught:
        provoke(world, tmp_path)
    error = caught.value
    assert "\n" not in str(error) or name == "unknown driver"
    assert "Traceback" not in str(error)
    assert 20 < len(str(error)) < 900
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


def test_the_message_survives_json(world: SimpleNamespace) -> None:
    """Errors go into tables of sweeps: nothing in them may break a line of JSON."""
    with pytest.raises(WxlabError) as caught:
        wxlab.create_model("met2nett")
    assert json.loads(json.dumps(str(caught.value))) == str(caught.value)
