"""What every model shares: the Spec it states, the Batch it is given, the Model and Recipe it fulfils."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from wxlab.errors import WxlabError
from wxlab.grids import Grid

if TYPE_CHECKING:
    from wxlab.rollout import Streams
    from wxlab.store import Normaliser

Averaging = Callable[[Any, Any, Any], None]  # averaged parameters, current ones, how many updates there were
Coordinates = dict[str, tuple[tuple[str, ...], Any]]  # name -> axes and values along them
Stochastic = Literal["none", "noise", "diffusion"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a model reads and writes.

    channels: names of the predicted channels, ``variable`` or ``variable_level`` (``geopotential_500``), in tensor order.
    grid: the grid of fields [H, W].  history: frames read (Ti).  horizon: frames written by one call (To).
    step: seconds between output frames.  history_step: seconds between the frames read (``step`` unless given).
    forcing, static: names of the fields read but not predicted.  multiples: what H and W must divide by.
    """

    channels: tuple[str, ...]
    grid: Grid
    history: int
    horizon: int
    step: int
    history_step: int = 0
    forcing: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    stochastic: Stochastic = "none"
    multiples: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for name in ("channels", "forcing", "static", "multiples"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.history_step:
            object.__setattr__(self, "history_step", self.step)
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise WxlabError(f"channels {list(self.channels)} must be at least one name and no name twice; name each channel once")
        for name in ("history", "horizon", "step"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise WxlabError(f"{name}={value!r} must be a whole number of at least 1")
        for side, length, multiple in zip(("rows", "columns"), self.grid.shape, self.multiples, strict=True):
            if length % multiple:
                fits = [n for n in (length - length % multiple, length + multiple - length % multiple) if n]
                raise WxlabError(
                    f"the grid has {length} {side}, and this model needs a multiple of {multiple}; "
                    f"crop or regrid to {' or '.join(map(str, fits))} {side}"
                )

    def to_dict(self) -> dict[str, Any]:
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "grid": self.grid.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        return cls(**{**values, "grid": Grid.from_dict(values["grid"])})


@dataclass
class Batch:
    """Windows as tensors, always normalised.

    history [B,Ti,C,H,W]; target [B,To,C,H,W] or None (forecasting); forcing [B,Ti+To,F,H,W] or None; static [S,H,W] or None;
    time int64 [B,Ti+To], seconds since 1970-01-01 UTC; mask bool [B,Ti+To,C,H,W], True where observed, None when all is.
    Unobserved values are 0 in the tensors, that is the training mean, or what the normaliser fills them with.
    """

    history: Tensor
    target: Tensor | None
    time: Tensor
    forcing: Tensor | None = None
    static: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.history.shape[0]

    def _map(self, function: Any) -> Batch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: value if value is None else function(value) for name, value in values.items()}
        return Batch(**moved)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Batch:
        """Move to a device; ``dtype`` converts the floating tensors only."""
        return self._map(lambda t: t.to(device, dtype if t.is_floating_point() else None, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(lambda t: t.pin_memory())

    @property
    def target_mask(self) -> Tensor | None:
        """mask of the target frames [B,To,C,H,W]."""
        return None if self.mask is None else self.mask[:, self.history.shape[1] :]


class Model(nn.Module):
    """A forecaster. ``forward`` is the authors' mathematics; ``predict`` is what training, roll-out and tests call.

    Attributes set by ``create_model`` and ``load_checkpoint``: ``name`` and ``config`` rebuild it; ``normaliser`` knows the units;
    ``facts`` is what else a checkpoint holds (settings, scores, provenance). ``value_range``: what normalised values must lie in.
    """

    name: str = ""
    licence: str = "Apache-2.0"
    value_range: tuple[float, float] | None = None

    def __init__(self, spec: Spec, **config: Any) -> None:
        super().__init__()
        self.spec = spec
        self.config: dict[str, Any] = config
        self.normaliser: Normaliser | None = None
        self.facts: dict[str, Any] = {}

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        """Forecast one block: normalised [B, M, To, C, H, W].

        ``generator`` gives one random stream per (batch element, member); models with ``spec.stochastic == 'none'`` ignore it
        and repeat their one answer over the members.
        """
        raise NotImplementedError

    @property
    def stepper(self) -> Model:
        """What a roll-out calls again and again: the model itself, or the one inside it that carries latents from call to call."""
        return self

    def enter(self, state: Tensor, static: Tensor | None, streams: Streams) -> Tensor:
        """What the stepper carries of a normalised state: [B, C, H, W] -> [B, 1 or M, ...], once at the start of a roll-out."""
        return state.unsqueeze(1)

    def leave(self, carried: Tensor) -> Tensor:
        """The normalised state of what the stepper carries: [B, M, ...] -> [B, M, C, H, W]."""
        return carried

    @property
    def batch_parts(self) -> tuple[str, ...]:
        """Names of the copies of a batch that a network runs side by side, if it does; what a tap reads has them one after the other."""
        return ()

    def attention_coordinates(self, kind: str, sizes: Mapping[str, int]) -> Coordinates:
        """What the axes of captured attention stand for (``wxlab.attention``): names, places, times; an axis's own name labels it.

        kind: of the tap.  sizes: length of each of its axes.
        """
        return {}

    @staticmethod
    def repeat_members(prediction: Tensor, members: int) -> Tensor:
        """[B, To, C, H, W] -> [B, M, To, C, H, W] without copying."""
        return prediction.unsqueeze(1).expand(-1, members, *prediction.shape[1:])


class Recipe(nn.Module):
    """How a model is trained. Momentum copies and other state are submodules and buffers here, never of the model.

    ``unused_parameters``: a loss may leave out parameters that ask for gradients; training in several processes must know.
    ``clip``: largest norm of the gradient, where the training run sets none.
    """

    lr: float = 1e-3
    warmup: float = 0.0
    final_lr: float = 1e-6
    unused_parameters: bool = False
    clip: float | None = None

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """What the optimiser gets: parameters with their own ``lr`` or ``weight_decay`` where they differ."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameter_groups(model), lr=self.lr, weight_decay=0.01)

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch (scalar, to call backward on) and the named scalars to log."""
        raise NotImplementedError

    def schedule(self, step: int, total: int) -> float:
        """Factor on the learning rate at optimiser step ``step`` of ``total``: linear warm-up, then a half cosine to ``final_lr``."""
        rise = int(self.warmup * total)
        if step < rise:
            return (step + 1) / rise
        floor = min(self.final_lr / self.lr, 1.0)
        progress = (step - rise) / max(1, total - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def averaging(self, decay: float) -> Averaging:
        """How weights are averaged when the training run asks for it: by default with this decay from the first step on."""
        return get_ema_multi_avg_fn(decay)

    def after_step(self, model: Model, step: int) -> None:
        """Called once after each optimiser step, for momentum copies and the like."""

    def validation(self, model: Model, batch: Batch, generator: Streams | None) -> Tensor:
        """Squared error per batch element of the (ensemble mean) prediction, normalised units, observed points only: [B]."""
        assert batch.target is not None
        prediction = model.predict(batch, members=1, generator=generator)[:, 0]
        return per_sample_mse(prediction, batch.target, batch.target_mask)


def per_sample_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each batch element over all else, over observed points only: [B]."""
    error = (prediction - target).square()
    if mask is None:
        return error.flatten(1).mean(1)
    return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over all elements (observed ones, when there is a mask): scalar."""
    if mask is None:
        return (prediction - target).square().mean()
    return ((prediction - target).square() * mask).sum() / mask.sum().clamp(min=1)
