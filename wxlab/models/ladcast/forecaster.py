"""Forecasts of fields with LaDCast: encode, let the transformer carry latents from call to call, decode what is asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from wxlab.channels import unstack
from wxlab.errors import WxlabError
from wxlab.forcings import seconds
from wxlab.models.base import Batch, Coordinates, Model, Spec
from wxlab.models.ladcast.autoencoder import Autoencoder
from wxlab.models.ladcast.network import Ladcast
from wxlab.nn.edm import Denoiser

if TYPE_CHECKING:
    from wxlab.rollout import States
    from wxlab.streams import Streams


class LatentForecaster(Model):
    """An autoencoder and a transformer of its latents, as one forecaster of fields.

    In a roll-out the initial state is encoded once, the transformer reads its own latents from then on, and frames are decoded as they
    are written (a few at a time). To keep latents in place of fields, encode the states with ``wxlab.encoding.encode_states``, forecast
    them with the transformer, and decode later with ``wxlab.encoding.decode``.
    autoencoder, transformer: both with their normalisers (of fields, of latents).
    Raises WxlabError when the transformer was not made for latents of this autoencoder.
    """

    name = "ladcast_forecaster"

    def __init__(self, autoencoder: Autoencoder, transformer: Ladcast) -> None:
        require_pair(autoencoder, transformer)
        fields, latents = autoencoder.spec, transformer.spec
        spec = Spec(
            channels=fields.channels, grid=fields.grid, static=fields.static, multiples=fields.multiples,
            history=latents.history, horizon=latents.horizon, step=latents.step, history_step=latents.history_step, stochastic="diffusion",
        )  # fmt: skip
        super().__init__(spec)
        self.autoencoder, self.transformer = autoencoder, transformer
        self.normaliser, self.licence = autoencoder.normaliser, transformer.licence

    def with_sampling(self, **changes: Any) -> LatentForecaster:
        """The same forecaster with other ways to sample, as ``Ladcast.with_sampling``; weights are shared."""
        return LatentForecaster(self.autoencoder, self.transformer.with_sampling(**changes))

    @property
    def stepper(self) -> Model:
        return self.transformer

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        return self.transformer.attention_coordinates(kind, sizes)

    def enter(self, state: Tensor, static: Tensor | None, streams: Streams) -> Tensor:
        """Normalised fields [B, C, H, W] -> normalised latents [B, 1 or M, L, h, w]."""
        latents = encode_frames(self.autoencoder, state, static)
        assert self.transformer.normaliser is not None
        return self.transformer.enter(self.transformer.normaliser.normalise(latents, self.transformer.spec.channels), None, streams)

    def leave(self, carried: Tensor) -> Tensor:
        """Normalised latents [B, M, L, h, w] -> normalised fields [B, M, C, H, W]."""
        assert self.transformer.normaliser is not None
        latents = self.transformer.normaliser.denormalise(carried, self.transformer.spec.channels)
        return decode_frames(self.autoencoder, latents.flatten(0, 1)).unflatten(0, carried.shape[:2])

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        units, names = self.transformer.normaliser, self.transformer.spec.channels
        assert units is not None
        latents = units.normalise(encode_frames(self.autoencoder, batch.history.flatten(0, 1), batch.static), names)
        inner = Batch(latents.unflatten(0, batch.history.shape[:2]), None, batch.time)
        future = self.transformer.predict(inner, members, generator)  # [B, M, To, L, h, w]
        fields = decode_frames(self.autoencoder, units.denormalise(future, names).flatten(0, 2))
        return fields.unflatten(0, future.shape[:3])


@torch.no_grad()
def sampling_steps(forecaster: LatentForecaster, initial: States, *, time: object, seed: int = 0) -> xr.Dataset:
    """What the sampler believes at each noise level: the denoised frames of one member, decoded.

    initial: states that hold ``time``, the initial time.  seed: of the forecast whose first member this is.
    Returns a Dataset with dims (sigma, prediction_timedelta, [level], latitude, longitude), from the highest noise level to the lowest.
    """
    from wxlab.rollout import forecast

    if forecaster.transformer.config["churn"]:
        raise WxlabError("a sampler with churn goes up and down among the noise levels; look at its steps with churn=0")
    seen: dict[float, Tensor] = {}  # normalised latents [1, T, L, h, w]
    watched = copy.copy(forecaster.transformer)

    def denoiser(known: Tensor, stamps: Tensor | None) -> Denoiser:
        denoise = forecaster.transformer.denoiser(known, stamps)

        def noted(x: Tensor, sigma: Tensor) -> Tensor:
            clean = denoise(x, sigma)
            seen[float(sigma)] = watched.latents(clean.to(known.dtype), known)
            return clean

        return noted

    watched.denoiser = denoiser  # type: ignore[method-assign, assignment]
    made = forecast(LatentForecaster(forecaster.autoencoder, watched), initial, steps=watched.spec.horizon, times=time, seed=seed)
    if made.sizes["time"] != 1:
        raise WxlabError(f"{made.sizes['time']} initial times were given, and the steps of one sample can be looked at; give one time")
    steps = []
    units, names = forecaster.normaliser, forecaster.spec.channels
    assert units is not None
    lead = made["prediction_timedelta"]
    stamps = seconds((made["time"].values[0] + lead).values)
    for latents in seen.values():
        steps.append(units.denormalise(forecaster.leave(latents)[0].cpu(), names, stamps).numpy())
    y, x = forecaster.spec.grid.dims
    coords = {"sigma": list(seen), "prediction_timedelta": lead.values, "channel": list(names)}
    array = xr.DataArray(np.stack(steps), dims=(*coords, y, x), coords={**coords, y: made[y].values, x: made[x].values})
    result = unstack(array)
    for name, field in made.data_vars.items():  # which knows units, and where nothing was learned
        result[name] = result[name].where(field.isel(time=0, drop=True).notnull()).assign_attrs(field.attrs)
    return result


def require_pair(autoencoder: Autoencoder, transformer: Ladcast) -> None:
    """Raise WxlabError unless a transformer was made for the latents of an autoencoder."""
    for model, kind, named in ((autoencoder, Autoencoder, "an Autoencoder"), (transformer, Ladcast, "a Ladcast")):
        if not isinstance(model, kind):
            raise WxlabError(f"a {type(model).__name__} was given where {named} belongs; give the models (autoencoder, transformer)")
    mine, theirs, grid = autoencoder.latent_channels, transformer.spec.channels, autoencoder.latent_grid
    if mine != theirs:
        raise WxlabError(f"the autoencoder has {len(mine)} latent channels, and the transformer has {len(theirs)}; give a pair that fits")
    found = transformer.spec.grid
    if found.shape != grid.shape or not np.allclose([*found.y, *found.x], [*grid.y, *grid.x], atol=1e-3):
        raise WxlabError(
            f"the autoencoder's latents lie on {grid.shape[0]}x{grid.shape[1]} cells from {grid.y[0]:g}, {grid.x[0]:g}, and the "
            f"transformer was made for {found.shape[0]}x{found.shape[1]} from {found.y[0]:g}, {found.x[0]:g}; give a pair that fits"
        )
    for model, what in ((autoencoder, "autoencoder"), (transformer, "transformer")):
        if model.normaliser is None:
            raise WxlabError(f"the {what} has no normaliser, so it knows no units; train it, load a checkpoint, or set its normaliser")
    if transformer.normaliser is not None and transformer.normaliser.anomalies:
        raise WxlabError("latents were normalised as anomalies; encode the archive again without a normalisation of that kind")
    trained_on = transformer.facts.get("data", {}).get("provenance", {}).get("autoencoder")
    if trained_on and trained_on != autoencoder.checksum:
        raise WxlabError(
            f"the transformer was trained on latents of another autoencoder ({trained_on[:12]}..., this one is "
            f"{autoencoder.checksum[:12]}...); give that one, or encode with this one and train again"
        )


@torch.no_grad()
def encode_frames(autoencoder: Autoencoder, fields: Tensor, static: Tensor | None) -> Tensor:
    """Normalised fields [N, C, H, W] -> latents [N, L, h, w], as many frames at once as fit."""
    static = static if autoencoder.spec.static else None
    return torch.cat([autoencoder.encode(part, static) for part in fields.split(autoencoder.frames_at_once)])


@torch.no_grad()
def decode_frames(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Latents [N, L, h, w] -> normalised fields [N, C, H, W], as many frames at once as fit."""
    return torch.cat([autoencoder.decode(part) for part in latents.split(autoencoder.frames_at_once)])
