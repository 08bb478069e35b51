"""Latents of an archive, of states and of forecasts: what an autoencoder makes of fields, and back."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from wxlab.channels import locate_channel, stack, unstack
from wxlab.errors import WxlabError, is_whole
from wxlab.files import atomic_dir
from wxlab.forcings import seconds
from wxlab.grids import area_weights, grid_of
from wxlab.models.ladcast.autoencoder import Autoencoder
from wxlab.models.ladcast.forecaster import decode_frames, encode_frames
from wxlab.preparation import prepare
from wxlab.preparation.plan import MADE_OF
from wxlab.splits import mask_of
from wxlab.store import Store, open_store

LATENT = "latent"
BLOCK_BYTES = 8 << 20  # of a block of latents, the unit of work: what a killed run loses of each thread
AUDIT_STATES = 32  # states of an audit that are in memory at a time
PathLike = str | os.PathLike[str]


def encode(
    autoencoder: Autoencoder | PathLike, store: Store | PathLike, out: PathLike, *, scheduler: Any = None, overwrite: bool = False
) -> Path:
    """Encode a store: a store of latents comes out, with the same times, segments and splits.

    autoencoder: a trained one, or the path of its checkpoint (with a cluster's scheduler: a path, which its workers can read).
    store: of the autoencoder's channels, in its order.  out, scheduler, overwrite: as in ``prepare``; a killed run goes on where it was.
    Returns the path of the store. It holds one variable ``latent`` whose levels are the autoencoder's channels, and names in its
    provenance the checksum of the autoencoder.
    Raises WxlabError for other channels, another order, another grid, missing static fields.
    """
    source, model = open_store(store), _Network.of(autoencoder)
    require_channels(model.model, source)
    latents = encode_states(autoencoder, source.dataset())
    names = np.full(len(source), "", dtype="<U16")
    for name, ranges in source.splits.items():
        names[mask_of(ranges, len(source))] = name
    latents = latents.assign_coords(split=("time", names))
    latents.attrs["source_name"] = f"latents of {source.path.name} ({source.attrs['checksum']})"
    latents.attrs[MADE_OF] = f"{source.attrs['checksum']} {model.checksum}"
    return prepare(latents, out, scheduler=scheduler, overwrite=overwrite, chunk_bytes=BLOCK_BYTES)


def require_channels(autoencoder: Autoencoder, store: Store) -> None:
    """Raise WxlabError unless a store has the channels of an autoencoder, in its order."""
    mine, theirs = autoencoder.spec.channels, store.channels
    if mine == theirs:
        return
    missing, extra = [name for name in mine if name not in theirs], [name for name in theirs if name not in mine]
    if missing or extra:
        lacks = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)}, which the autoencoder does not read"
        raise WxlabError(f"the store {store.path.name} {lacks}; prepare it with the autoencoder's channels, variables={list(mine)[:3]}...")
    first = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    raise WxlabError(
        f"the channels of {store.path.name} are in another order than the autoencoder's: number {first} is {theirs[first]!r} and should be "
        f"{mine[first]!r}; prepare it with variables in the autoencoder's order"
    )


def encode_states(autoencoder: Autoencoder | PathLike, states: xr.Dataset) -> xr.Dataset:
    """Latents of states, computed when they are read: ``latent`` (time, level, latitude, longitude).

    states: in physical units, with the autoencoder's channels, static fields and grid.  Raises WxlabError for others.
    """
    network = _Network.of(autoencoder)
    model = network.model
    fields, static = _fields(model, states), _static(model, states)
    grid = model.latent_grid
    found = xr.apply_ufunc(
        network.encode,
        fields,
        _stamps(fields),
        kwargs={"static": static},
        input_core_dims=[["channel", *model.spec.grid.dims], []],
        output_core_dims=[["level", "y", "x"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"level": model.config["latent"], "y": len(grid.y), "x": len(grid.x)}},
    )
    found = found.rename(y=grid.dims[0], x=grid.dims[1])
    found = found.assign_coords({"level": np.arange(model.config["latent"]), grid.dims[0]: list(grid.y), grid.dims[1]: list(grid.x)})
    kept = {key: states.attrs[key] for key in ("title", "licence", "citation") if key in states.attrs}
    return found.transpose("time", "level", ...).to_dataset(name=LATENT).assign_attrs(kept, autoencoder=network.checksum)


def decode(autoencoder: Autoencoder | PathLike, latents: xr.Dataset, out: PathLike | None = None) -> xr.Dataset:
    """Fields of latents, states or a forecast: the same leading dimensions, variables and levels of the autoencoder.

    latents: with ``latent`` (..., level, latitude, longitude) and ``time``.  out: a zarr folder that is filled piece by piece; None: the
    fields are computed when they are read.
    Raises WxlabError when there are no such latents.
    """
    network = _Network.of(autoencoder)
    model, grid = network.model, network.model.latent_grid
    if LATENT not in latents or latents[LATENT].sizes.get("level") != model.config["latent"] or grid_of(latents).shape != grid.shape:
        size = f"{model.config['latent']} levels on {grid.shape[0]}x{grid.shape[1]} cells"
        raise WxlabError(f"there are no latents of this autoencoder in the data: a variable {LATENT!r} with {size} is needed")
    y, x = model.spec.grid.dims
    given = latents[LATENT].rename({y: "latent_y", x: "latent_x"}).drop_vars(["latent_y", "latent_x", "level"], errors="ignore")
    leading = [dim for dim in given.dims if dim not in ("level", "latent_y", "latent_x")]
    given = _in_pieces(given, leading, model.frames_at_once)
    fields = xr.apply_ufunc(
        network.decode,
        given,
        _stamps(given),
        input_core_dims=[["level", "latent_y", "latent_x"], []],
        output_core_dims=[["channel", y, x]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"channel": len(model.spec.channels), y: len(model.spec.grid.y), x: len(model.spec.grid.x)}},
    )
    fields = fields.assign_coords({"channel": list(model.spec.channels), y: list(model.spec.grid.y), x: list(model.spec.grid.x)})
    result = unstack(fields).assign_attrs(latents.attrs)
    if out is None:
        return result
    with atomic_dir(out) as folder:
        result.to_zarr(folder, consolidated=False, zarr_format=3, compute=False).compute(scheduler="synchronous")
    return xr.open_zarr(out, consolidated=False, decode_timedelta=True)


def reconstruct(autoencoder: Autoencoder | PathLike, states: xr.Dataset) -> xr.Dataset:
    """States sent through the latent space and back, computed when they are read; missing where the states are.

    states: as for ``encode_states``.  Returns the autoencoder's variables over time.
    """
    network = _Network.of(autoencoder)
    fields, static = _fields(network.model, states), _static(network.model, states)
    core = ["channel", *network.model.spec.grid.dims]
    found = xr.apply_ufunc(
        network.reconstruct, fields, _stamps(fields), kwargs={"static": static}, input_core_dims=[core, []], output_core_dims=[core],
        dask="parallelized", output_dtypes=[np.float32],
    )  # fmt: skip
    return unstack(found)


def audit(
    autoencoder: Autoencoder | PathLike,
    store: Store | PathLike,
    *,
    seen: str = "train",
    unseen: str = "test",
    every: int = 1,
    bar: float = 0.9,
) -> pd.DataFrame:
    """How well each channel comes back, on states that training saw and on states that it did not.

    With area weights over space and means over time, ``rmse = √⟨(x' - x)²⟩`` in the unit of the channel, and ``explained = 1 - ⟨(x' - x)²⟩
    / ⟨(x - c)²⟩`` on the unseen states, c the climatology: 0 says that the latent tells no more than the date.
    store: of the fields.  seen, unseen: splits.  every: one state in so many is read.  bar: that ``explained`` should reach.
    Returns a row for each channel: rmse of both, ``worse`` (unseen over seen, minus 1), ``flagged`` (worse by more than 20 %),
    ``explained`` and ``reached``. Missing points count nowhere.
    """
    source = open_store(store)
    if not is_whole(every):
        raise WxlabError(f"every={every!r} must be a whole number of at least 1: one state in so many is read")
    sums = {split: _error_sums(autoencoder, source, split, every) for split in (seen, unseen)}
    rmse = {split: np.sqrt(error) for split, (error, _) in sums.items()}
    error, anomaly = sums[unseen]
    explained = 1 - error / anomaly
    worse = rmse[unseen] / rmse[seen] - 1
    columns = {f"rmse {seen}": rmse[seen], f"rmse {unseen}": rmse[unseen], "worse": worse, "flagged": worse > 0.2}
    return pd.DataFrame({**columns, "explained": explained, "reached": explained >= bar}, index=pd.Index(source.channels, name="channel"))


def _error_sums(autoencoder: Autoencoder | PathLike, store: Store, split: str, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares [C] of the error of the reconstruction and of the departure from the climatology, weighted by area."""
    states, usual = store.dataset(split).isel(time=slice(None, None, every)), store.climatology()
    weights = area_weights(store.grid)[:, None]
    totals = np.zeros((3, len(store.channels)))
    for first in range(0, states.sizes["time"], AUDIT_STATES):
        part = states.isel(time=slice(first, first + AUDIT_STATES))
        true, found = (stack(fields, store.channels).values.astype(np.float64) for fields in (part, reconstruct(autoencoder, part)))
        observed = np.isfinite(true) & np.isfinite(found)
        for i, field in enumerate((found - true, true - usual.at(seconds(part["time"].values)), np.ones_like(true))):
            totals[i] += (np.where(observed, field, 0) ** 2 * weights).sum((0, 2, 3))
    return totals[0] / totals[2], totals[1] / totals[2]


@lru_cache(maxsize=1)
def _loaded(path: str) -> Autoencoder:
    from wxlab.checkpoints import load_checkpoint

    model = load_checkpoint(path)
    if not isinstance(model, Autoencoder):
        raise WxlabError(f"{path} holds a {model.name!r}, and latents need an autoencoder; give the checkpoint of a ladcast_autoencoder")
    return model


class _Network:
    """An autoencoder as functions of numpy arrays. One that has a path travels to workers as the path alone."""

    def __init__(self, model: Autoencoder | None, path: str | None) -> None:
        self._model, self.path = model, path
        if self.model.normaliser is None:
            raise WxlabError("the autoencoder has no normaliser, so it knows no units; train it, load a checkpoint, or set its normaliser")
        self.checksum = self.model.checksum

    @classmethod
    def of(cls, autoencoder: Autoencoder | PathLike) -> _Network:
        if isinstance(autoencoder, Autoencoder):
            return cls(autoencoder.eval(), None)
        return cls(None, str(Path(autoencoder).resolve()))

    @property
    def model(self) -> Autoencoder:
        if self._model is not None:
            return self._model
        assert self.path is not None
        return _loaded(self.path)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return type(self).__name__, self.checksum

    def _normalised(self, fields: np.ndarray, stamps: np.ndarray) -> torch.Tensor:
        assert self.model.normaliser is not None
        values = torch.from_numpy(np.array(fields, np.float32))
        values = self.model.normaliser.normalise(values, self.model.spec.channels, stamps)
        return values.reshape(-1, *fields.shape[-3:]).to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tensor(self, static: np.ndarray | None) -> torch.Tensor | None:
        return None if static is None else torch.from_numpy(static).to(self._device)

    def encode(self, fields: np.ndarray, stamps: np.ndarray, static: np.ndarray | None) -> np.ndarray:
        """Physical fields [..., C, H, W] at times [...] -> latents [..., L, h, w]."""
        latents = encode_frames(self.model, self._normalised(fields, stamps), self._tensor(static)).cpu().numpy()
        return latents.reshape(*fields.shape[:-3], *latents.shape[1:])

    def decode(self, latents: np.ndarray, stamps: np.ndarray) -> np.ndarray:
        """Latents [..., L, h, w] at times [...] -> physical fields [..., C, H, W]."""
        flat = torch.from_numpy(np.array(latents, np.float32)).reshape(-1, *latents.shape[-3:])
        return self._physical(decode_frames(self.model, flat.to(self._device)), latents.shape[:-3], stamps)

    def reconstruct(self, fields: np.ndarray, stamps: np.ndarray, static: np.ndarray | None) -> np.ndarray:
        """Physical fields [..., C, H, W] at times [...] -> what comes back."""
        latents = encode_frames(self.model, self._normalised(fields, stamps), self._tensor(static))
        found = self._physical(decode_frames(self.model, latents), fields.shape[:-3], stamps)
        return np.where(np.isfinite(fields), found, np.nan).astype(np.float32)

    def _physical(self, fields: torch.Tensor, leading: tuple[int, ...], stamps: np.ndarray) -> np.ndarray:
        assert self.model.normaliser is not None
        values = fields.cpu().reshape(*leading, *fields.shape[1:])
        return self.model.normaliser.denormalise(values, self.model.spec.channels, np.broadcast_to(stamps, leading)).numpy()


def _fields(model: Autoencoder, states: xr.Dataset) -> xr.DataArray:
    """The channels of states [time, channel, y, x] in pieces that one pass holds.  Raises WxlabError for what does not fit."""
    given, needed = grid_of(states), model.spec.grid
    if given.shape != needed.shape or not np.allclose([*given.y, *given.x], [*needed.y, *needed.x], atol=1e-3):
        text = [f"{grid.shape[0]}x{grid.shape[1]} from {grid.y[0]:g}, {grid.x[0]:g}" for grid in (given, needed)]
        raise WxlabError(f"the states lie on another grid ({text[0]}) than the autoencoder's ({text[1]}); regrid or crop them first")
    for name in (*model.spec.channels, *model.spec.static):
        try:
            locate_channel(states, name)
        except WxlabError as error:
            raise WxlabError(f"the states lack a field that the autoencoder reads: {error}") from None
    return _in_pieces(stack(states, model.spec.channels), ["time"], model.frames_at_once).chunk(channel=-1)


def _static(model: Autoencoder, states: xr.Dataset) -> np.ndarray | None:
    """Normalised static fields [S, H, W]."""
    if not model.spec.static:
        return None
    assert model.normaliser is not None
    return model.normaliser.normalise(np.array(stack(states, model.spec.static).values, np.float32), model.spec.static)


def _in_pieces(array: xr.DataArray, leading: list[Any], frames: int) -> xr.DataArray:
    """Lazy, with at most ``frames`` frames in a chunk, all of them along the last of the leading dimensions."""
    chunks: dict[Any, int] = dict.fromkeys(array.dims, -1) | dict.fromkeys(leading, 1)
    return array.chunk(chunks | dict.fromkeys(leading[-1:], frames))


def _stamps(array: xr.DataArray) -> xr.DataArray:
    """Valid times, int64 seconds, over the leading dimensions of an array that has ``time``."""
    valid = array["time"]
    if "prediction_timedelta" in array.dims:
        valid = valid + array["prediction_timedelta"]
    return xr.DataArray(seconds(valid.values), dims=valid.dims, coords={dim: valid[dim] for dim in valid.dims})
