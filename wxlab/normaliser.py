"""The Normaliser: physical units to what networks read, and back. Built by ``prepare``, applied only in windows and roll-out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from wxlab.climatology import Climatology
from wxlab.errors import WxlabError, unknown
from wxlab.forcings import seconds

KINDS = ("zscore", "anomaly", "minmax", "dbz", "log", "none")
POLICIES = ("error", "fill", "mask")
Policy = Literal["error", "fill", "mask"]
_Array = TypeVar("_Array", Tensor, np.ndarray)


@dataclass(frozen=True)
class Transform:
    """One channel's way to normalised values, y = (f(x) − offset) / scale.

    zscore: f = x, offset the training mean, scale the training standard deviation.
    anomaly: f = x − c(t), c the climatology of the Normaliser at the time and point; offset 0, scale the training standard deviation
    of f.
    minmax: offset the minimum, scale the range.
    log: f = ln(1 + x/epsilon), then zscore of that.   none: y = x.
    dbz: f = 10 log10(a x^b) of a rain rate x in mm/h (Marshall and Palmer 1948: a = 200, b = 1.6), offset and scale the range of
    dBZ that becomes 0..1; y is cut to 0..1 both ways (a network may overshoot, and rain grows exponentially), 0 goes back to no rain.
    """

    kind: str = "zscore"
    offset: float = 0.0
    scale: float = 1.0
    epsilon: float = 1e-5
    a: float = 200.0
    b: float = 1.6

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of normalisation", self.kind, KINDS)
        if not self.scale > 0 or not self.epsilon > 0:
            raise WxlabError(f"a normalisation with scale {self.scale} and epsilon {self.epsilon} cannot be undone; both must be above 0")

    @property
    def linear(self) -> bool:
        return self.kind in ("zscore", "anomaly", "minmax", "none")

    def before(self, x: Tensor) -> Tensor:
        """f of the formula."""
        if self.kind == "log":
            return torch.log1p(x.clamp(min=0) / self.epsilon)
        if self.kind == "dbz":
            return 10 * torch.log10(self.a * x.clamp(min=1e-6) ** self.b)
        return x

    def after(self, f: Tensor) -> Tensor:
        """x of f."""
        if self.kind == "log":
            return (torch.expm1(f) * self.epsilon).clamp(min=0)
        if self.kind == "dbz":
            rain = (10 ** (f.clamp(max=self.offset + self.scale) / 10) / self.a) ** (1 / self.b)
            return torch.where(f <= self.offset, torch.zeros_like(f), rain)
        return f


@dataclass(frozen=True)
class Normaliser:
    """Transforms by channel, forcing and static name, and what happens to missing values.

    nan: name -> ``error`` (refused), ``fill`` (the value of ``fills``, physical units, takes their place) or ``mask`` (the same, or 0
    after normalisation where there is none, and ``mask`` says where). Names that are not there have the policy ``error``.
    climatology: what the channels of kind ``anomaly`` are measured from; ``times`` are needed for them and ignored otherwise.
    """

    transforms: Mapping[str, Transform]
    nan: Mapping[str, Policy] = field(default_factory=dict)
    fills: Mapping[str, float] = field(default_factory=dict)
    climatology: Climatology | None = None

    def __post_init__(self) -> None:
        for policy in self.nan.values():
            if policy not in POLICIES:
                raise unknown("policy for missing values", policy, POLICIES)

    def __hash__(self) -> int:
        return id(self)

    def _affine(self, names: Sequence[str], like: Tensor) -> tuple[Tensor, Tensor]:
        return _affine(self, tuple(names), like.dtype, like.device)

    def _move(self, x: Tensor, names: Sequence[str], times: object, sign: int) -> None:
        """Take the climatology at ``times`` [...] from the anomaly channels of x [..., C, H, W], or give it back."""
        moved = [i for i, name in enumerate(names) if self.transforms[name].kind == "anomaly"]
        if not moved:
            return
        if self.climatology is None or times is None:
            absent = "times" if self.climatology is not None else "a climatology"
            raise WxlabError(f"{names[moved[0]]} is normalised as an anomaly, which needs {absent}; pass it, or prepare with another kind")
        stamps = seconds(times.cpu().numpy() if isinstance(times, Tensor) else times)
        unique, inverse = np.unique(stamps, return_inverse=True)
        rows = [self.climatology.channels.index(names[i]) for i in moved]
        fields = torch.from_numpy(self.climatology.at(unique)[:, rows])[torch.from_numpy(inverse.ravel())]  # [n, moved, H, W]
        fields = fields.view(*stamps.shape, *fields.shape[1:]).to(x)
        for k, i in enumerate(moved):
            x.select(-3, i).sub_(fields.select(-3, k), alpha=sign)

    def _check(self, x: Tensor | np.ndarray, names: Sequence[str]) -> None:
        if x.ndim < 3 or x.shape[-3] != len(names):
            raise WxlabError(f"an array of shape {tuple(x.shape)} does not have {len(names)} channels on its third last axis")

    def normalise_(self, x: Tensor, names: Sequence[str], times: object = None) -> Tensor:
        """Normalise a tensor [..., C, H, W] in place, without looking for missing values that the policies refuse."""
        self._check(x, names)
        offset, scale = self._affine(names, x)
        self._move(x, names, times, 1)
        curved = [(x.select(-3, i), self.transforms[name]) for i, name in enumerate(names) if not self.transforms[name].linear]
        for channel, transform in curved:
            channel.copy_(transform.before(channel))
        x.sub_(offset).div_(scale)
        for channel, transform in curved:
            if transform.kind == "dbz":
                channel.clamp_(0, 1)
        for i, name in enumerate(names):
            policy = self.nan.get(name, "error")
            if policy != "error":
                value = self._fill(name) if name in self.fills and self.transforms[name].kind != "anomaly" else 0.0
                x.select(-3, i).nan_to_num_(nan=value, posinf=value, neginf=value)
        return x

    def _fill(self, name: str) -> float:
        transform = self.transforms[name]
        value = transform.before(torch.tensor(self.fills[name], dtype=torch.float64))
        return float((value - transform.offset) / transform.scale)

    def normalise(self, x: _Array, names: Sequence[str], times: object = None) -> _Array:
        """Physical units to normalised values, as a new array.

        x: tensor or numpy array [..., C, H, W], float32 or float64.  names: of its C channels.  times: datetime64 or int64 seconds,
        of a shape that broadcasts against the leading axes; only ``anomaly`` channels need them, whose missing values become 0.
        Raises WxlabError for a missing value in a channel whose policy is ``error``, and for unknown names.
        """
        self._check(x, names)
        values = torch.tensor(np.asarray(x)) if isinstance(x, np.ndarray) else x.clone()
        strict = [i for i, name in enumerate(names) if self.nan.get(name, "error") == "error"]
        for i in strict:
            if not torch.isfinite(values.select(-3, i)).all():
                raise WxlabError(
                    f"{names[i]} has missing values, which its policy 'error' refuses; "
                    "fill them, or prepare the store with nan='mask' or nan='fill'"
                )
        self.normalise_(values, names, times)
        return values.numpy() if isinstance(x, np.ndarray) else values

    def denormalise(self, x: _Array, names: Sequence[str], times: object = None) -> _Array:
        """Normalised values [..., C, H, W] to physical units, as a new array."""
        self._check(x, names)
        values = torch.tensor(np.asarray(x)) if isinstance(x, np.ndarray) else x.clone()
        offset, scale = self._affine(names, values)
        values.mul_(scale).add_(offset)
        self._move(values, names, times, -1)
        for i, name in enumerate(names):
            if not self.transforms[name].linear:
                channel = values.select(-3, i)
                channel.copy_(self.transforms[name].after(channel.clone()))
        return values.numpy() if isinstance(x, np.ndarray) else values

    def mask(self, x: Tensor, names: Sequence[str]) -> Tensor | None:
        """True where a physical tensor [..., C, H, W] is observed; None when no channel has the policy ``mask``.

        Channels that are filled count as observed.
        """
        self._check(x, names)
        masked = [i for i, name in enumerate(names) if self.nan.get(name) == "mask"]
        if not masked:
            return None
        observed = torch.ones(x.shape, dtype=torch.bool, device=x.device)
        for i in masked:
            observed.select(-3, i).copy_(torch.isfinite(x.select(-3, i)))
        return observed

    def to_dict(self) -> dict[str, Any]:
        transforms = {name: dataclasses.asdict(transform) for name, transform in self.transforms.items()}
        return {"transforms": transforms, "nan": dict(self.nan), "fills": dict(self.fills)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], climatology: Climatology | None = None) -> Normaliser:
        """The inverse of ``to_dict``, which leaves the climatology out: stores and checkpoints keep it as an array."""
        transforms = {name: Transform(**transform) for name, transform in values["transforms"].items()}
        return cls(transforms, dict(values.get("nan", {})), dict(values.get("fills", {})), climatology)

    @property
    def anomalies(self) -> bool:
        """Whether any channel is an anomaly, so that the climatology is needed."""
        return any(transform.kind == "anomaly" for transform in self.transforms.values())


@lru_cache(maxsize=64)
def _affine(normaliser: Normaliser, names: tuple[str, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    for name in names:
        if name not in normaliser.transforms:
            raise unknown("channel of the normaliser", name, normaliser.transforms)
    chosen = [normaliser.transforms[name] for name in names]
    offset = torch.tensor([t.offset for t in chosen], dtype=torch.float64).to(dtype).view(-1, 1, 1)
    scale = torch.tensor([t.scale for t in chosen], dtype=torch.float64).to(dtype).view(-1, 1, 1)
    return offset.to(device), scale.to(device)
