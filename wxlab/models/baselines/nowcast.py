"""Radar extrapolation: Lagrangian persistence, S-PROG and STEPS, computed by pysteps (Pulkkinen et al. 2019, GMD 12, 4185).

    frames -> motion (Lucas-Kanade) -> the last frame carried along it, as it is (extrapolation), smoothed scale by scale as each loses
    its memory (S-PROG), or with noise in place of what is lost (STEPS)

pysteps needs a C compiler to install, so it is the extra ``nowcast`` and imported at the first forecast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import dask
import numpy as np
import torch
from torch import Tensor

from wxlab.errors import WxlabError, unknown
from wxlab.grids import Grid
from wxlab.models import Entry
from wxlab.models.base import Batch, Model, Spec
from wxlab.models.baselines.radar import RADAR_FIELDS

if TYPE_CHECKING:
    from wxlab.rollout import Streams

Outside = Literal["dry", "last", "missing"]
FRAMES = 3  # that the motion and a second-order autoregression need
_SEEDS = 2**31
_KM_PER_DEGREE = 111.2


@dataclass(frozen=True)
class Echo:
    """What is rain in a radar variable, and the scale on which it grows and decays by addition.

    threshold: the least value that is rain, in units of the variable.  logarithmic: the values are logarithms already; others are
    taken to 10 log10.  gap: how far below the threshold a dry point lies on that scale.  dry: value of a dry point in units of the
    variable; None: the lowest value seen.
    """

    threshold: float
    logarithmic: bool
    gap: float
    dry: float | None = 0.0

    @property
    def edge(self) -> float:
        """The threshold on the additive scale."""
        return self.threshold if self.logarithmic else 10 * math.log10(self.threshold)

    def to_scale(self, x: np.ndarray) -> np.ndarray:
        """Units of the variable -> additive scale; missing values stay missing."""
        rain = x >= self.threshold
        scaled = x if self.logarithmic else 10 * np.log10(np.where(rain, x, 1.0))
        return np.where(rain, scaled, np.where(np.isnan(x), np.nan, self.edge - self.gap))

    def from_scale(self, s: np.ndarray, dry: float) -> np.ndarray:
        """The inverse, ``dry`` below the threshold."""
        values = s if self.logarithmic else 10 ** (s / 10)
        return np.where(s < self.edge, dry, values)

    def dry_value(self, x: np.ndarray) -> float:
        """What a dry point holds, in units of the variable."""
        if self.dry is not None:
            return self.dry
        return min(float(np.nanmin(x)), self.threshold - self.gap)


# 0.1 mm/h, and 7 dBZ which is the same by Z = 200 R^1.6; 16 is the lowest of SEVIR's thresholds
ECHOES = {
    "rain_rate": Echo(0.1, logarithmic=False, gap=5.0),
    "reflectivity": Echo(7.0, logarithmic=True, gap=8.0, dry=None),
    "vertically_integrated_liquid_8bit": Echo(16.0, logarithmic=True, gap=16.0),
}


def installed() -> bool:
    """Whether pysteps and OpenCV are there, so that the models of this module can be made."""
    return all(find_spec(name) is not None for name in ("pysteps", "cv2"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing printed, no warnings, numpy's global random stream and the user's dask cluster left alone."""
    state = np.random.get_state()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
            dask.config.set(scheduler="synchronous"),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)


@cache
def _pysteps() -> ModuleType:
    """pysteps, imported once; it prints, and changes the filters of warnings, which ``_quiet`` undoes."""
    try:
        with _quiet():
            import pysteps
            from pysteps import motion, nowcasts  # noqa: F401
    except ImportError as error:
        raise WxlabError(f"pysteps cannot be imported ({error}); run: pip install 'wxlab[nowcast]'") from None
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise WxlabError(f"pysteps cannot read its settings file 'pystepsrc' ({text}); mend or remove that file") from None
    return pysteps


def motion_field(frames: np.ndarray) -> np.ndarray:
    """Motion from frame to frame by dense Lucas-Kanade optical flow.

    frames: [T, H, W] on the additive scale, NaN where nothing is observed; those up to a frame that is missing are not used.
    Returns [2, H, W], points per frame along x and y; zero where there is nothing to track.
    Reference: Lucas and Kanade 1981; pysteps, motion.lucaskanade.
    """
    from pysteps.motion.lucaskanade import dense_lucaskanade

    absent = np.flatnonzero(np.isnan(frames).all((1, 2)))
    usable = frames[absent[-1] + 1 :] if len(absent) else frames
    return np.asarray(dense_lucaskanade(usable)) if len(usable) > 1 else np.zeros((2, *frames.shape[1:]))


def extrapolate(field: np.ndarray, motion: np.ndarray, steps: int) -> np.ndarray:
    """Semi-Lagrangian advection: the value of each point is that of where it came from.

    field [H, W]; motion [2, H, W], points per step -> [steps, H, W], NaN where it came from outside or from unobserved points.
    Reference: Germann and Zawadzki 2002, Mon. Weather Rev. 130, 2859.
    """
    from pysteps.extrapolation.semilagrangian import extrapolate as advect

    return np.asarray(advect(field, motion, steps, allow_nonfinite_values=True))


class Extrapolation(Model):
    """Lagrangian persistence: the last frame, carried along the motion of the frames before.

    threshold: what is rain, in units of the variable; None is 0.1 mm/h, 7 dBZ or 16 of VIL.  outside: what a point holds whose air
    came from outside the frame (or from where nothing is observed): ``dry``; ``last``, the value it had; or ``missing``, NaN, which
    verification leaves out. A forecast from a last frame that is missing as a whole is missing.
    """

    def __init__(self, spec: Spec, *, threshold: float | None = None, outside: Outside = "dry", **config: Any) -> None:
        super().__init__(spec, threshold=threshold, outside=outside, **config)
        self.outside = outside
        usual = [ECHOES[name] for name in spec.channels]
        self.echoes = usual if threshold is None else [dataclasses.replace(echo, threshold=float(threshold)) for echo in usual]

    def nowcast(self, frames: np.ndarray, echo: Echo, seed: int) -> np.ndarray:
        """frames [Ti, H, W] of one channel in its own units, NaN where unobserved -> [To, H, W], NaN where nothing is known."""
        return extrapolate(frames[-1], motion_field(echo.to_scale(frames)), self.spec.horizon)

    def _filled(self, frames: np.ndarray, echo: Echo, seed: int) -> np.ndarray:
        """One channel of one forecast, dry without rain, and points that nothing is known of as ``outside`` says.

        Without any observation in the last frame nothing is known at all, and all is missing.
        """
        shape = (self.spec.horizon, *frames.shape[1:])
        last = frames[-1]
        if np.isnan(last).all():
            return np.full(shape, np.nan)
        dry = echo.dry_value(frames)
        raining = bool((last >= echo.threshold).any())
        forecast = self.nowcast(frames, echo, seed) if raining else np.where(np.isnan(last), np.nan, np.full(shape, dry))
        if self.outside == "missing":
            return forecast
        stand_in = dry if self.outside == "dry" else np.where(np.isnan(last), dry, last)
        return np.where(np.isnan(forecast), stand_in, forecast)

    def _physical(self, batch: Batch) -> np.ndarray:
        """History [B, Ti, C, H, W] in physical units, NaN where nothing was observed."""
        if self.normaliser is None:
            raise WxlabError(
                f"{self.name or 'radar extrapolation'} knows no units yet; train it (which takes the store's) or set model.normaliser"
            )
        past = batch.time[:, : batch.history.shape[1]]
        values = self.normaliser.denormalise(batch.history.cpu().double(), self.spec.channels, past)
        if batch.mask is not None:
            values.masked_fill_(~batch.mask[:, : batch.history.shape[1]].cpu(), torch.nan)
        return values.numpy()

    def _seeds(self, batch: Batch, members: int, generator: Streams | None) -> np.ndarray:
        """A seed for each [B, M, C]; the deterministic methods make one forecast for all members."""
        return np.zeros((len(batch), 1, len(self.spec.channels)), dtype=np.int64)

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        _pysteps()
        history, seeds = self._physical(batch), self._seeds(batch, members, generator)
        with _quiet():
            forecast = np.array(
                [
                    [[self._filled(frames[:, c], self.echoes[c], int(seed[c])) for c in range(len(self.echoes))] for seed in row]
                    for frames, row in zip(history, seeds, strict=True)
                ]
            )  # [B, M, C, To, H, W]
        values = torch.from_numpy(forecast).transpose(2, 3).contiguous()
        return self._normalised(values, batch).expand(-1, members, -1, -1, -1, -1)

    def _normalised(self, values: Tensor, batch: Batch) -> Tensor:
        """Physical [B, M, To, C, H, W] -> normalised, NaN staying NaN."""
        assert self.normaliser is not None
        valid = batch.time[:, None, batch.history.shape[1] :][:, :, : self.spec.horizon]
        missing = values.isnan()
        self.normaliser.normalise_(values, self.spec.channels, valid)
        return values.masked_fill_(missing, torch.nan).to(batch.history)


class Sprog(Extrapolation):
    """S-PROG: the field is split into scales, and each decays towards its mean as fast as it has lately forgotten itself.

    A second-order autoregression per scale in the moving frame; the histogram stays that of the last frame. Where it cannot be
    fitted (fields that do not change at all in the moving frame, no rain before the last frame) nothing is known of how the field
    forgets itself, and the forecast is the extrapolation.
    levels: scales, at most; small grids have fewer.
    Reference: Seed 2003, J. Appl. Meteorol. 42, 381.
    """

    def __init__(self, spec: Spec, *, levels: int = 6, **config: Any) -> None:
        super().__init__(spec, levels=levels, **config)
        self.levels = min(levels, max(3, int(math.log2(max(spec.grid.shape)))))

    def nowcast(self, frames: np.ndarray, echo: Echo, seed: int) -> np.ndarray:
        scaled = echo.to_scale(frames)
        motion = motion_field(scaled)
        if all((frame >= echo.edge).any() for frame in scaled[-FRAMES:]):
            # what pysteps raises where its autoregression cannot be fitted
            with contextlib.suppress(ValueError, IndexError, np.linalg.LinAlgError):
                return echo.from_scale(self.evolve(scaled[-FRAMES:], motion, echo, seed), echo.dry_value(frames))
        return extrapolate(frames[-1], motion, self.spec.horizon)

    def evolve(self, scaled: np.ndarray, motion: np.ndarray, echo: Echo, seed: int) -> np.ndarray:
        """The last three frames [3, H, W] and the motion [2, H, W] -> [To, H, W], all on the additive scale.

        Raises ValueError where nothing can be fitted.
        """
        from pysteps.nowcasts import sprog

        return np.asarray(sprog.forecast(scaled, motion, self.spec.horizon, precip_thr=echo.edge, n_cascade_levels=self.levels))


class Steps(Sprog):
    """STEPS: S-PROG with noise in place of the variance that each scale has lost, and a motion that each member doubts.

    The noise has the spectrum of the last frames; new rain appears only near rain. Motion perturbations as in Bowler et al.
    Reference: Bowler, Pierce and Seed 2006, Q. J. R. Meteorol. Soc. 132, 2127; Seed, Pierce and Norman 2013, Water Resour. Res. 49, 6624.
    """

    def __init__(self, spec: Spec, **config: Any) -> None:
        super().__init__(spec, **config)
        self.spacing = _kilometres(spec.grid)

    def _seeds(self, batch: Batch, members: int, generator: Streams | None) -> np.ndarray:
        if generator is None:
            raise WxlabError("steps draws noise and needs a generator; forecast(..., seed=...) gives one")
        uniform = generator.rand((len(self.spec.channels),), dtype=torch.float64)  # [B, M, C]
        return (uniform.numpy() * _SEEDS).astype(np.int64)

    def evolve(self, scaled: np.ndarray, motion: np.ndarray, echo: Echo, seed: int) -> np.ndarray:
        from pysteps.nowcasts import steps

        members = steps.forecast(
            scaled,
            motion,
            self.spec.horizon,
            n_ens_members=1,  # members are made one by one: each has its own seed, whatever else is in the batch
            n_cascade_levels=self.levels,
            precip_thr=echo.edge,
            kmperpixel=self.spacing,
            timestep=self.spec.step / 60,
            seed=seed,
        )
        return np.asarray(members[0])


def _kilometres(grid: Grid) -> float:
    """Spacing of the points of a grid: the geometric mean along both axes, in the middle of the grid."""
    steps = [abs(axis[-1] - axis[0]) / max(1, len(axis) - 1) for axis in (grid.y, grid.x)]
    if grid.kind == "xy":
        return math.sqrt(steps[0] * steps[1]) / 1000
    middle = math.cos(math.radians(grid.y[len(grid.y) // 2]))
    return math.sqrt(steps[0] * steps[1] * max(middle, 1e-3)) * _KM_PER_DEGREE


def _check(spec: Spec, config: dict[str, Any]) -> None:
    """Raise WxlabError for what cannot be extrapolated."""
    if not installed():
        raise WxlabError("radar extrapolation is computed by pysteps, which is not installed; run: pip install 'wxlab[nowcast]'")
    for name in spec.channels:
        if name not in ECHOES:
            raise unknown("channel of a radar extrapolation", name, ECHOES)
    if spec.history < FRAMES:
        raise WxlabError(f"history={spec.history} frames are too few to find motion and memory in; give history={FRAMES} or more")
    if spec.history_step != spec.step:
        raise WxlabError(f"frames are read every {spec.history_step} s and written every {spec.step} s; make step and history_step equal")
    outside, threshold, levels = (config.get(name, usual) for name, usual in (("outside", "dry"), ("threshold", None), ("levels", 6)))
    if outside not in get_args(Outside):
        raise unknown("outside", outside, get_args(Outside))
    if threshold is not None and not threshold > 0:
        raise WxlabError(f"threshold={threshold!r} must be above 0, in units of {spec.channels[0]}")
    if not isinstance(levels, int) or levels < 3:
        raise WxlabError(f"levels={levels!r} must be a whole number of at least 3")


def _builder(kind: type[Extrapolation], stochastic: Literal["none", "noise"] = "none") -> Callable[..., Model]:
    def build(spec: Spec, **config: Any) -> Model:
        _check(spec, config)
        return kind(dataclasses.replace(spec, stochastic=stochastic, forcing=(), static=()), **config)

    return build


_PRESETS = {name: {**fields, "history": max(FRAMES, fields["history"])} for name, fields in RADAR_FIELDS.items()}
_OPTIONS = frozenset({"threshold", "outside"})

EXTRAPOLATION = Entry(
    name="extrapolation",
    title="Lagrangian persistence: radar echoes carried along their motion (pysteps)",
    presets=_PRESETS,
    build=_builder(Extrapolation),
    citation="Pulkkinen et al. 2019, Geosci. Model Dev. 12, 4185",
    options=_OPTIONS,
)
SPROG = Entry(
    name="sprog",
    title="S-PROG: extrapolation that smooths each scale as it loses its memory (pysteps)",
    presets=_PRESETS,
    build=_builder(Sprog),
    citation="Seed 2003, J. Appl. Meteorol. 42, 381; Pulkkinen et al. 2019, Geosci. Model Dev. 12, 4185",
    options=_OPTIONS | {"levels"},
)
STEPS = Entry(
    name="steps",
    title="STEPS: an ensemble of extrapolations with noise in what cannot be foreseen (pysteps)",
    presets=_PRESETS,
    build=_builder(Steps, "noise"),
    citation="Bowler et al. 2006, Q. J. R. Meteorol. Soc. 132, 2127; Pulkkinen et al. 2019, Geosci. Model Dev. 12, 4185",
    options=_OPTIONS | {"levels"},
)
