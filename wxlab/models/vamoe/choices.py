"""What the experts of a VA-MoE choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from wxlab.models.base import Batch, Model
from wxlab.models.vamoe.network import VAMoE, require_vamoe


def channel_choices(model: Model, batch: Batch) -> xr.Dataset:
    """Which channels of the tokens each expert picks, block by block, in one prediction.

    model: a VA-MoE.  batch: normalised windows.
    Returns ``share`` (block, expert, feature), the share of tokens whose gate picks the feature; ``weight`` (block, expert, feature),
    the mean weight that it gets (0 where it is not picked; sums to 1 over features); ``overlap`` (block, expert, other), the mean
    share of its picks that an expert has in common with another, 1 for itself, k / E for picks by chance; ``favourite``
    (block, expert, latitude, longitude), the feature that is picked most strongly at the last sample's patches.
    """
    network = require_vamoe(model)
    parts: list[dict[str, np.ndarray]] = []
    width = network.config["embed_dim"]

    def look(module: Any, given: tuple[Tensor, Tensor]) -> None:
        x, emphasis = given
        weights, channels = zip(*(module.choose(x, row) for row in emphasis), strict=True)
        parts.append(_summary(torch.stack(weights), torch.stack(channels), width))

    _run(network, batch, [block.moe.register_forward_pre_hook(look) for block in network.blocks])
    (h, w), p, grid = network.shape, network.patch, network.spec.grid
    y, x = (np.asarray(axis).reshape(-1, p).mean(1) for axis in (grid.y, grid.x))
    joined = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    dims = ("block", "expert")
    return xr.Dataset(
        {
            "share": ((*dims, "feature"), joined["share"]),
            "weight": ((*dims, "feature"), joined["weight"]),
            "overlap": ((*dims, "other"), joined["overlap"]),
            "favourite": ((*dims, *grid.dims), joined["favourite"].reshape(len(parts), -1, h, w)),
        },
        {
            "block": np.arange(len(parts)), "expert": list(network.experts), "other": list(network.experts), "feature": np.arange(width),
            grid.dims[0]: y, grid.dims[1]: x,
        },
    )  # fmt: skip


def _summary(weights: Tensor, channels: Tensor, width: int) -> dict[str, np.ndarray]:
    """Of weights and channels [n, B, N, k]."""
    flat = channels.flatten(1, 2)  # [n, B N, k]
    picked = torch.zeros(*flat.shape[:2], width, device=flat.device).scatter_(-1, flat, 1.0)  # [n, B N, E]
    spread = torch.zeros_like(picked).scatter_(-1, flat, weights.flatten(1, 2).float())
    common = torch.einsum("iae,jae->ij", picked, picked) / (flat.shape[1] * flat.shape[2])
    return {
        "share": picked.mean(1).cpu().numpy(),
        "weight": spread.mean(1).cpu().numpy(),
        "overlap": common.cpu().numpy(),
        "favourite": channels[:, -1, :, 0].cpu().numpy(),
    }


def expert_strength(model: Model, batch: Batch) -> xr.DataArray:
    """How much each expert contributes beside the shared one: |expert_i(x)| / |shared(x)| over all tokens of a batch, (block, expert).

    At the authors' initialisation it is about 1e-3 and less, because an expert's input is about 1/k of the token's channels and SwiGLU is
    quadratic near 0; ``expert_gain`` changes that.
    """
    network = require_vamoe(model)
    sizes = torch.zeros(len(network.blocks), 1 + len(network.experts))

    def watch(place: tuple[int, int]) -> Any:
        def look(module: Any, given: Any, out: Tensor) -> None:
            sizes[place] = out.detach().float().norm().cpu()

        return look

    handles = [
        part.register_forward_hook(watch((b, i)))
        for b, block in enumerate(network.blocks)
        for i, part in enumerate((block.moe.shared_experts, *block.moe.experts))
    ]
    _run(network, batch, handles)
    ratio = (sizes[:, 1:] / sizes[:, :1]).numpy()
    return xr.DataArray(ratio, {"block": np.arange(len(ratio)), "expert": list(network.experts)}, ("block", "expert"), "strength")


def _run(model: VAMoE, batch: Batch, handles: Sequence[Any]) -> None:
    """One prediction with hooks in place; afterwards they are gone and the model is in the mode that it was in."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(batch.history[:, -1].to(next(model.parameters())))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
