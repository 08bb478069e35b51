"""Latents of archives, states and forecasts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from noise import make, times_of

from wxlab import create_model, encoding, forecast, load_checkpoint
from wxlab.checkpoints import save_checkpoint
from wxlab.encoding import audit, decode, encode, encode_states, reconstruct
from wxlab.errors import WxlabError
from wxlab.grids import Grid, area_weights
from wxlab.models.ladcast import Autoencoder
from wxlab.plots.fields import pick_variable
from wxlab.store import Store, open_store, prepare

SPLITS = {"train": ["2001-01-01", "2001-01-08"], "validation": ["2001-01-09", "2001-01-10"], "test": ["2001-01-12", "2001-01-13"]}
CHOSEN: dict[str, Any] = {"variables": ["2m_temperature", "geopotential"], "levels": [500, 850]}
DATA = make(times_of(56, hours=6), Grid.regular(16, 32))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two weeks with a missing day; some times belong to no split."""
    states = DATA.isel(time=[i for i in range(56) if i // 4 != 10])
    path = prepare(states, tmp_path_factory.mktemp("data") / "fields.zarr", static=["land_sea_mask"], splits=SPLITS, **CHOSEN)
    return open_store(path)


@pytest.fixture(scope="module")
def model(store: Store) -> Autoencoder:
    torch.manual_seed(0)
    made = create_model("ladcast_autoencoder", channels=store.channels, grid=store.grid, static=store.static)
    assert isinstance(made, Autoencoder)
    made.normaliser = store.normaliser
    return made.eval()


@pytest.fixture(scope="module")
def checkpoint(model: Autoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(model, tmp_path_factory.mktemp("model") / "ae.safetensors")


def test_latents_are_told_apart_by_what_they_are_made_of(
    store: Store, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of threads rounds in another way: the same latents still."""
    path = encode(model, store, tmp_path / "latents.zarr")
    plain = encoding.encode_frames
    monkeypatch.setattr(encoding, "encode_frames", lambda *given, **options: plain(*given, **options) * (1 + 1e-6))
    assert encode(model, store, path) == path


def test_the_climatology_of_anomalies_belongs_to_the_checksum(tmp_path: Path) -> None:
    kinds = dict.fromkeys(CHOSEN["variables"], "anomaly")
    found = []
    for name, states in (("one", DATA), ("other", DATA.roll(time=8, roll_coords=False))):
        units = open_store(prepare(states, tmp_path / name, splits=SPLITS, normalisation=kinds, **CHOSEN)).normaliser
        torch.manual_seed(0)
        made = create_model("ladcast_autoencoder", channels=tuple(units.transforms), grid=Grid.regular(16, 32), static=())
        made.normaliser = dataclasses.replace(units, transforms=found[0].normaliser.transforms) if found else units
        found.append(made)
    assert found[0].checksum != found[1].checksum
    assert load_checkpoint(save_checkpoint(found[0], tmp_path / "ae.safetensors")).checksum == found[0].checksum  # type: ignore[attr-defined]


def test_a_store_of_latents_is_a_store_of_what_the_encoder_says(store: Store, model: Autoencoder, tmp_path: Path) -> None:
    latents = open_store(encode(model, store, tmp_path / "latents.zarr"))
    fields = store.normaliser.normalise(torch.from_numpy(store.read(0, len(store))), store.channels)
    static = store.normaliser.normalise(torch.from_numpy(store.static_fields), store.static)
    with torch.no_grad():
        expected = model.encode(fields, static).numpy()
    np.testing.assert_allclose(latents.read(0, len(latents)), expected, rtol=1e-5, atol=1e-6)
    assert latents.channels == model.latent_channels and latents.grid == model.latent_grid
    assert np.array_equal(latents.times, store.times) and latents.segments == store.segments and latents.splits == store.splits
    assert latents.attrs["provenance"]["autoencoder"] == model.checksum and "autoencoder" not in store.attrs["provenance"]
    train = expected[latents.splits["train"][0][0] : latents.splits["train"][0][1]]
    np.testing.assert_allclose(latents.mean, train.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert [latents.normaliser.transforms[name].kind for name in latents.channels] == ["zscore"] * 4
    data = latents.dataset("test")
    assert set(data.data_vars) == {"latent"} and data["latent"].dims == ("time", "level", "latitude", "longitude")


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_paths_schedulers_and_blocks_make_no_difference(
    store: Store, checkpoint: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_store(encode(checkpoint, store.path, tmp_path / "whole.zarr"))
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 10 * 4 * 8 * 16 * 4)
    monkeypatch.setattr("wxlab.models.ladcast.autoencoder.PASS_BYTES", 3 << 20)
    pieces = open_store(encode(checkpoint, store.path, tmp_path / "pieces.zarr", scheduler=scheduler))
    assert pieces.frames.chunk < whole.frames.chunk
    np.testing.assert_allclose(pieces.read(0, len(pieces)), whole.read(0, len(whole)), rtol=1e-4, atol=1e-5)


def test_it_goes_on_where_it_was_stopped(store: Store, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 8 * 4 * 8 * 16 * 4)  # seven blocks
    monkeypatch.setattr("wxlab.models.ladcast.autoencoder.PASS_BYTES", 1)  # one frame at once
    frames: list[int] = []
    original, limit = encoding._Network.encode, [30]

    def counted(self: Any, fields: np.ndarray, *rest: Any, **more: Any) -> np.ndarray:
        if np.prod(fields.shape[-3:]):  # dask asks what an empty array becomes
            frames.append(1)
        if len(frames) > limit[0]:
            raise KeyboardInterrupt
        return original(self, fields, *rest, **more)

    monkeypatch.setattr(encoding._Network, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        encode(model, store, tmp_path / "l.zarr", scheduler="synchronous")
    assert not (tmp_path / "l.zarr").exists()
    done = len(list(tmp_path.rglob("block-*")))
    frames.clear()
    limit[0] = 10**6
    path = encode(model, store, tmp_path / "l.zarr", scheduler="synchronous")
    assert 0 < done < 7 and len(frames) <= len(store) - 8 * (done - 1)  # blocks that were not there
    frames.clear()
    encode(model, store, tmp_path / "l.zarr")
    assert not frames and open_store(path).attrs["provenance"]["autoencoder"] == model.checksum


def test_another_autoencoder_is_another_request(store: Store, model: Autoencoder, tmp_path: Path) -> None:
    encode(model, store, tmp_path / "l.zarr")
    torch.manual_seed(1)
    other: Any = create_model("ladcast_autoencoder", channels=store.channels, grid=store.grid, static=store.static)
    other.normaliser = store.normaliser
    with pytest.raises(WxlabError, match="exists and was prepared from another request"):
        encode(other, store, tmp_path / "l.zarr")
    encode(other, store, tmp_path / "l.zarr", overwrite=True)
    assert open_store(tmp_path / "l.zarr").attrs["provenance"]["autoencoder"] == other.checksum


def test_states_go_to_latents_and_back(store: Store, model: Autoencoder, checkpoint: Path) -> None:
    states = store.dataset("test")
    latents = encode_states(checkpoint, states)
    assert latents["latent"].chunks is not None and latents.sizes == {"time": 8, "level": 4, "latitude": 8, "longitude": 16}
    there = reconstruct(model, states)
    back = decode(checkpoint, latents)
    fields = store.normaliser.normalise(torch.from_numpy(store.read(*store.splits["test"][0])), store.channels)
    static = store.normaliser.normalise(torch.from_numpy(store.static_fields), store.static)
    with torch.no_grad():
        expected = store.normaliser.denormalise(model(fields, static)[:, :3], store.channels).numpy()
    for result in (there, back):
        assert set(result.data_vars) == {"2m_temperature", "geopotential"} and result["geopotential"].attrs == {}
        np.testing.assert_allclose(result["2m_temperature"], expected[:, 0], rtol=1e-5)
        np.testing.assert_allclose(result["geopotential"].sel(level=850), expected[:, 2], rtol=1e-5)
    one = decode(model, latents.isel(time=3))
    np.testing.assert_allclose(one["2m_temperature"], expected[3, 0], rtol=1e-5)


def test_the_audit_is_that_of_the_reconstruction(store: Store, model: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "AUDIT_STATES", 3)
    table = audit(model, store, every=2, bar=-1e9)
    truth = store.dataset("test").isel(time=slice(None, None, 2))
    made = reconstruct(model, truth)
    weights = xr.DataArray(area_weights(store.grid), dims="latitude", coords={"latitude": list(store.grid.y)})
    usual = store.climatology().dataset(truth["time"].values)
    for name in store.channels:
        true, found, normal = (pick_variable(data, name)[0].astype("f8") for data in (truth, made, usual))
        error, anomaly = (((field - true) ** 2 * weights).mean() for field in (found, normal))
        assert table.loc[name, "rmse test"] == pytest.approx(float(np.sqrt(error)), rel=1e-4)
        assert table.loc[name, "explained"] == pytest.approx(float(1 - error / anomaly), rel=1e-4)
    assert table["reached"].all() and list(table.index) == list(store.channels)
    ratio = table["rmse test"] / table["rmse train"]
    assert np.allclose(table["worse"], ratio - 1) and table["flagged"].equals(ratio - 1 > 0.2)


def test_anomalies_get_the_climatology_of_their_valid_time_back(tmp_path: Path) -> None:
    kinds = {"2m_temperature": "anomaly", "geopotential": "anomaly"}
    splits = {"train": ["2001-01-01", "2001-01-10"]}
    anomalies = open_store(prepare(DATA, tmp_path / "a.zarr", normalisation=kinds, splits=splits, **CHOSEN))
    torch.manual_seed(0)
    model: Any = create_model("ladcast_autoencoder", channels=anomalies.channels, grid=anomalies.grid)
    model.normaliser = anomalies.normaliser
    transformer: Any = create_model("ladcast", grid=model.latent_grid, sampling_steps=2)
    transformer.normaliser = open_store(encode(model, anomalies, tmp_path / "l.zarr")).normaliser
    made = forecast(transformer, tmp_path / "l.zarr", steps=3, members=2, times=DATA["time"].values[:2])
    fields = decode(model, made)
    with torch.no_grad():
        latents = torch.from_numpy(made["latent"].values).flatten(0, 2)
        normalised = model.decode(latents).unflatten(0, (2, 2, 3))[:, :, :, 0].numpy()
    valid = (DATA["time"].values[:2, None] + made["prediction_timedelta"].values).ravel()
    climate = anomalies.climatology().at(valid)[:, 0].reshape(2, 1, 3, 16, 32)
    scale = anomalies.normaliser.transforms["2m_temperature"].scale
    np.testing.assert_allclose(fields["2m_temperature"], normalised * scale + climate, rtol=1e-5)


def test_a_decoded_forecast_is_written_piece_by_piece(
    store: Store, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer: Any = create_model("ladcast", grid=model.latent_grid, sampling_steps=2)
    transformer.normaliser = open_store(encode(model, store, tmp_path / "l.zarr")).normaliser
    latents = forecast(transformer, tmp_path / "l.zarr", steps=3, members=4, times="2001-01-02", out=tmp_path / "forecast.zarr")
    monkeypatch.setattr("wxlab.models.ladcast.autoencoder.PASS_BYTES", 1)
    largest: list[int] = []
    original = encoding.decode_frames
    monkeypatch.setattr(encoding, "decode_frames", lambda model, z: largest.append(len(z)) or original(model, z))
    written = decode(model, latents, tmp_path / "deep" / "fields.zarr")
    in_memory = decode(model, latents)
    assert max(largest) == 1 and written["geopotential"].shape == (1, 4, 3, 2, 16, 32)
    xr.testing.assert_allclose(written.load(), in_memory.load())
    assert latents["latent"].nbytes * 3 == written["2m_temperature"].nbytes * 3
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["fields.zarr"]


def test_the_command_line_encodes(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from wxlab.cli import app

    done = CliRunner().invoke(app, ["encode", str(checkpoint), str(store.path), str(tmp_path / "l.zarr")])
    assert done.exit_code == 0 and "l.zarr (3 times smaller than the fields)" in done.output.replace("\n", "")
    latents = open_store(tmp_path / "l.zarr")
    assert latents.channels == load_checkpoint(checkpoint).latent_channels  # type: ignore[attr-defined]

    transformer: Any = create_model("ladcast", grid=latents.grid, sampling_steps=2)
    transformer.normaliser = latents.normaliser
    trained = save_checkpoint(transformer, tmp_path / "t.safetensors")
    for source, name, more in ((store.path, "fields", ["--autoencoder", str(checkpoint)]), (latents.path, "latents", [])):
        how = ["--steps", "2", "--members", "3", "--seed", "5", *more]
        done = CliRunner().invoke(app, ["forecast", str(trained), str(source), str(tmp_path / name), *how])
        assert done.exit_code == 0 and f"wrote {tmp_path / name}" in done.output.replace("\n", "")
    fields, inner = (xr.open_zarr(tmp_path / name, consolidated=False, decode_timedelta=True) for name in ("fields", "latents"))
    later = decode(checkpoint, inner)
    assert set(fields.data_vars) == {"2m_temperature", "geopotential"} and inner["latent"].sizes["number"] == 3
    np.testing.assert_allclose(fields["2m_temperature"].transpose(*later["2m_temperature"].dims), later["2m_temperature"], rtol=1e-4)


def altered(path: Path, **how: Any) -> Path:
    return prepare(DATA, path / "other.zarr", **{"static": ["land_sea_mask"], "splits": SPLITS, **CHOSEN, **how})


FAULTS: dict[str, tuple[Any, str]] = {
    "missing channel": (lambda m, s, p: encode(m, altered(p, levels=[500]), p / "l"), "the store other.zarr lacks geopotential_850; "),
    "further channel": (
        lambda m, s, p: encode(m, altered(p, levels=[500, 700, 850]), p / "l"),
        "has geopotential_700, which the autoencoder does not read",
    ),
    "wrong order": (
        lambda m, s, p: encode(m, altered(p, levels=[850, 500]), p / "l"),
        "in another order .* number 1 is 'geopotential_850' and should be 'geopotential_500'",
    ),
    "no static": (
        lambda m, s, p: encode(m, altered(p, static=[]), p / "l"),
        "the states lack a field that the autoencoder reads: .*land_sea_mask",
    ),
    "another grid": (lambda m, s, p: encode_states(m, make(times_of(2), Grid.regular(8, 32))), r"another grid \(8x32 .* \(16x32"),
    "no units": (lambda m, s, p: encode(create_model("ladcast_autoencoder"), s, p / "l"), "the autoencoder has no normaliser"),
    "no autoencoder": (
        lambda m, s, p: encode(save_checkpoint(create_model("met2net"), p / "m.safetensors"), s, p / "l"),
        "holds a 'met2net', and latents need an autoencoder",
    ),
    "no latents": (lambda m, s, p: decode(m, s.dataset()), "a variable 'latent' with 4 levels on 8x16"),
    "audit of nothing": (lambda m, s, p: audit(m, s, every=0), "every=0 must be a whole number of at least 1"),
    "missing values": (
        lambda m, s, p: reconstruct(m, s.dataset().map(lambda f: f.where(f["latitude"] > 0) if "time" in f.dims else f)).load(),
        "2m_temperature has missing values, which its policy 'error' refuses",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str, model: Autoencoder, store: Store, tmp_path: Path) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault(model, store, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "l").exists()
