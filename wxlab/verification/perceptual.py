"""Distances that a network judges: LPIPS of frames, Fréchet distance of videos. The network's weights are the user's; none are brought."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.models.weights import load_exactly, read_checkpoint
from wxlab.verification.blocks import Block, Ensemble, Sums, accumulate, blocks, make_case
from wxlab.verification.image import scaled
from wxlab.verification.inputs import LEAD, States
from wxlab.verification.metrics import Options
from wxlab.verification.thresholds import DataRange

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # channels of VGG-16's convolutions
VGG_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions among torchvision's features
PER_CALL = 32  # frames that a network sees at once


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity on VGG-16.

    d(x, y) = Σ_l mean over points of w_l · (f̂_l(x) − f̂_l(y))², f̂_l the activations after the last ReLU of stage l, of unit length
    over channels at each point, and w_l ≥ 0 learned.  Reference: Zhang et al. 2018, doi:10.1109/CVPR.2018.00068.
    """

    shift: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in STAGES:
            stage: list[nn.Module] = [nn.MaxPool2d(2)] if len(self.stages) else []
            for width in widths:
                stage += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(nn.Sequential(*stage))
        self.weights = nn.ModuleList([nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in STAGES])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y: [B, 3, H, W] in −1..1, at least 16 points each way -> [B]."""
        total = x.new_zeros(len(x))
        x, y = ((image - self.shift) / self.spread for image in (x, y))
        for stage, weigh in zip(self.stages, self.weights, strict=True):
            x, y = stage(x), stage(y)  # [B, 64 .. 512, H / 1 .. 16, W / 1 .. 16]
            total = total + weigh((_unit(x) - _unit(y)) ** 2).mean((1, 2, 3))
        return total


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(weights: Paths | None) -> LPIPS:
    """LPIPS with the weights of a user's files.

    weights: one file with all, as the package lpips saves its module (``net.slice1.0.weight``, ``lin0.model.1.weight``), or two:
    VGG-16 as torchvision has it (``features.0.weight``) and the linear layers (lpips/weights/v0.1/vgg.pth).
    Raises WxlabError when there are none, and for files without these weights.
    """
    if weights is None:
        raise WxlabError(
            "LPIPS was not computed: it needs the weights of VGG-16 and of the linear layers of LPIPS, and wxlab brings none; "
            "give weights=(vgg16 file, lpips linear file)"
        )
    given: dict[str, Tensor] = {}
    for path in [weights] if isinstance(weights, str | os.PathLike) else weights:
        given.update(read_checkpoint(path)[0])
    model, state, names = LPIPS().eval().requires_grad_(False), {}, {}
    order = dict(zip(map(str, VGG_NUMBERS), _places(model), strict=True))
    for key, value in given.items():
        convolution = re.fullmatch(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)", key)
        linear = re.fullmatch(r"lin(\d)\.model\.1\.weight", key)
        if convolution and convolution[1] in order:
            name = f"{order[convolution[1]]}.{convolution[2]}"
        elif linear:
            name = f"weights.{linear[1]}.weight"
        else:
            continue
        state[name], names[name] = value.float(), key
    load_exactly(model, state, names, "LPIPS on VGG-16")
    return model


def _places(model: LPIPS) -> list[str]:
    """Names of the convolutions in their order."""
    return [name for name, part in model.named_modules() if name.startswith("stages") and isinstance(part, nn.Conv2d)]


def lpips(
    forecast: xr.Dataset,
    truth: States,
    *,
    weights: Paths | None = None,
    data_range: DataRange | None = None,
    size: int = 64,
    ensemble: Ensemble = "members",
) -> xr.Dataset:
    """Mean LPIPS of the frames of a forecast by lead time; less is better, 0 is the same frame.

    Frames are brought to 0..1, resized to size x size (bicubic, cut to 0..1 again), then to −1..1, one channel as three, as the
    authors of STLDM score theirs. Frames with a missing point are left out.
    forecast, truth, data_range, ensemble: as for ``verify``.  weights: files of the user, see ``load_lpips``; nothing is downloaded.
    Returns a Dataset with dims (prediction_timedelta, [level]).  Raises WxlabError without weights, and for what ``verify`` refuses.
    """
    model = load_lpips(weights)
    if isinstance(size, bool) or not isinstance(size, int) or size < 16:
        raise WxlabError(f"size={size!r} must be a whole number of at least 16, as VGG-16 halves it four times")
    case = make_case(forecast, truth)
    plain = Options(data_range=data_range, ensemble=ensemble)
    settings = {name: plain.settings(name, ("ssim",)) for name in case.levels}

    def distances(block: Block) -> Sums:
        fields, total = block.fields("members"), np.zeros(block.complete.shape)
        if block.complete.any():
            theirs = _frames(block, block.truth).split(PER_CALL)
            for member in fields:
                pairs = zip(_frames(block, member).split(PER_CALL), theirs, strict=True)
                total[block.complete] += torch.cat([model(_resized(x, size), _resized(y, size)) for x, y in pairs]).double().numpy()
        return total, len(fields) * block.complete.astype(np.float64)

    with torch.inference_mode():
        table = accumulate(case, {"lpips": distances}, settings)
    found = {}
    for name, score in table.items():
        total, weight = (part.sum(0) for part in score.sums["lpips"])
        mean = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
        array = xr.DataArray(mean, dims=(LEAD, "level"), coords={LEAD: case.forecast[LEAD].values}, attrs={"units": "1"})
        found[name] = array.isel(level=0) if score.levels == [None] else array.assign_coords(level=score.levels)
    return xr.Dataset(found)


def _frames(block: Block, values: np.ndarray) -> Tensor:
    """Complete frames as pictures in 0..1: [n, 1, H, W]."""
    return torch.from_numpy(block.as_maps(scaled(block, values[block.complete]))).float()[:, None]


def _resized(frames: Tensor, size: int) -> Tensor:
    """[n, 1, H, W] in 0..1 -> [n, 3, size, size] in −1..1."""
    small = F.interpolate(frames, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return (2 * small - 1).expand(-1, 3, -1, -1)


@dataclass
class Moments:
    """Number, sum and sum of outer products of feature vectors, which add up over pieces."""

    count: int = 0
    total: Any = 0.0
    product: Any = 0.0

    def add(self, features: np.ndarray) -> None:
        """features: [n, D]."""
        features = np.asarray(features, dtype=np.float64)
        self.count += len(features)
        self.total = self.total + features.sum(0)
        self.product = self.product + features.T @ features

    @property
    def mean(self) -> np.ndarray:
        return np.asarray(self.total / self.count)

    @property
    def covariance(self) -> np.ndarray:
        """With n − 1."""
        return np.asarray((self.product - self.count * np.outer(self.mean, self.mean)) / (self.count - 1))


def frechet_distance(mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians, |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½).

    The trace of the root is Σ √λ over the eigenvalues λ of Σ_a^½ Σ_b Σ_a^½.
    Reference: Dowson and Landau 1982, doi:10.1016/0047-259X(82)90077-X.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ covariance_b @ root)
    shift = np.sum((np.asarray(mean_a) - np.asarray(mean_b)) ** 2)
    return float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(np.clip(middle, 0, None)).sum())


def fvd(
    forecast: xr.Dataset,
    truth: States,
    *,
    features: str | os.PathLike[str] | None = None,
    data_range: DataRange | None = None,
    ensemble: Ensemble = "members",
) -> xr.Dataset:
    """Fréchet video distance: how far the features of forecast sequences, as a Gaussian, are from those of the true sequences.

    A video is one forecast (one member) over all its lead times, brought to −1..1, one channel as three. Videos with a missing point
    are left out.
    forecast, truth, data_range, ensemble: as for ``verify``.  features: a TorchScript file of the user, called with videos
    [B, 3, T, H, W] in −1..1 and giving [B, D]; a file that takes ``rescale``, ``resize`` and ``return_features``, as the I3D file of
    StyleGAN-V does, gets rescale=False, resize=True, return_features=True. Nothing is downloaded. Such a file holds code that is
    run: use one that you trust.
    Returns a Dataset of one number for each variable (and level); the attribute ``videos`` says how many forecasts it stands on.
    Raises WxlabError without a file, for fewer than two videos, and for what ``verify`` refuses.
    Reference: Unterthiner et al. 2019, arXiv:1812.01717.
    """
    extract = load_features(features)
    case = make_case(forecast, truth)
    found = {}
    for name, levels in case.levels.items():
        settings = Options(ensemble=ensemble, data_range=data_range).settings(name, ("ssim",))
        sides = [(Moments(), Moments()) for _ in levels]
        for (_, _, heights), block in blocks(case, name, settings, whole_leads=True):
            for k, (ours, theirs) in enumerate(sides[heights]):
                complete = block.complete[:, :, k].all(1)
                if complete.any():
                    theirs.add(extract(_videos(block, block.truth[complete, :, k])))
                    for member in block.fields("members"):
                        ours.add(extract(_videos(block, member[complete, :, k])))
        if min(theirs.count for _, theirs in sides) < 2:
            raise WxlabError(f"FVD of {name!r} needs two complete sequences or more; give more initial times, all lead times with truth")
        values = [frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance) for ours, theirs in sides]
        array = xr.DataArray(values, dims="level", attrs={"units": "1", "videos": min(ours.count for ours, _ in sides)})
        found[name] = array.isel(level=0) if levels == [None] else array.assign_coords(level=levels)
    return xr.Dataset(found)


def load_features(path: str | os.PathLike[str] | None) -> Callable[[Tensor], np.ndarray]:
    """The feature extractor of a TorchScript file: videos [B, 3, T, H, W] in −1..1 -> [B, D].  Raises WxlabError without a file."""
    if path is None:
        raise WxlabError(
            "FVD was not computed: it needs an I3D network as a TorchScript file, and wxlab brings none; "
            "give features=path, for example of i3d_torchscript.pt"
        )
    if not Path(path).is_file():
        raise WxlabError(f"there is no file {path}; give the path of a TorchScript file that turns videos into features")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of TorchScript; the published I3D is in no other form
            network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError:
        raise WxlabError(f"{path} is no TorchScript file; save one with torch.jit.save") from None
    taken = {argument.name for argument in network.forward.schema.arguments}
    keywords = {"rescale": False, "resize": True, "return_features": True}
    chosen = keywords if set(keywords) <= taken else {}

    def extract(videos: Tensor) -> np.ndarray:
        try:
            with torch.inference_mode():
                features = torch.cat([network(part, **chosen) for part in videos.split(PER_CALL // 4)])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WxlabError(f"the features of {path} cannot be computed from videos {list(videos.shape)}: {reason}") from None
        if features.ndim != 2 or len(features) != len(videos):
            raise WxlabError(f"{path} gave features of shape {list(features.shape)} for {len(videos)} videos; it should give [videos, D]")
        return features.double().numpy()

    return extract


def _videos(block: Block, values: np.ndarray) -> Tensor:
    """[n, T, P] -> [n, 3, T, H, W] in −1..1."""
    frames = torch.from_numpy(block.as_maps(scaled(block, values))).float()
    return (2 * frames - 1)[:, None].expand(-1, 3, -1, -1, -1)
