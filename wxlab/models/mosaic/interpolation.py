"""From one set of points on the sphere to another by attention over the nearest ones."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neighbors import BallTree
from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.healpix_mesh import radians, unit_vectors
from wxlab.models.mosaic.blocks import RMSNorm


def nearest(target: np.ndarray, source: np.ndarray, count: int) -> np.ndarray:
    """Indices [targets, count] of the nearest sources by great circle, nearest first.

    target, source: longitude and latitude in degrees, float32 [N, 2].
    Each pole of a grid is many points at one place, so neighbours tie, and which of them are found is an accident of the tree: with its
    default leaf size, asked for exactly ``count``, they are the published model's.
    Raises WxlabError when there are fewer sources.
    """
    if not isinstance(count, int) or not 1 <= count <= len(source):
        raise WxlabError(f"neighbours={count!r} must be a whole number from 1 to {len(source)}, the number of points to read from")
    place = [radians(points).flip(1).numpy() for points in (source, target)]  # latitude, longitude
    found: np.ndarray = BallTree(place[0], metric="haversine").query(place[1], k=count, return_distance=False)
    return found


def directions(target: np.ndarray, source: np.ndarray, neighbours: np.ndarray) -> Tensor:
    """Unit vectors along the chords from neighbours to their target: float32 [targets, count, 3]."""
    chord = unit_vectors(target)[:, None] - unit_vectors(source)[torch.from_numpy(neighbours)]
    return chord / chord.norm(dim=-1, keepdim=True).clamp_min(1e-12)


class Interpolation(nn.Module):
    """Attention over neighbours: ``q_ij = W_q r_ij``, ``k_j, v_j = W_kv RMSNorm(x_j)``, ``out_i = W_o Σ_j softmax_j(q_ij k_j / √d) v_j``.

    r_ij is the direction from source j to target i, so each neighbour has a query of its own. As the query is linear in three numbers,
    ``q_ij k_j = r_ij (W_qᵀ k_j)``: three numbers per source and head take the place of its key, and no keys are gathered.
    """

    neighbors: Tensor
    rel_pos: Tensor

    def __init__(self, source: np.ndarray, target: np.ndarray, count: int, width: int, heads: int, affine: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(3, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_o = nn.Linear(width, width, bias=False)
        self.kv_norm = RMSNorm(width, affine)
        indices = nearest(target, source, count)
        self.register_buffer("neighbors", torch.from_numpy(indices), persistent=False)
        self.register_buffer("rel_pos", directions(target, source, indices), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, sources, D] -> [B, targets, D]."""
        x = self.kv_norm(x)
        keys, values = self.to_kv.weight.chunk(2)
        query = self.to_q.weight.unflatten(0, (self.heads, -1))  # [heads, d, 3]
        folded = torch.einsum("hde,hdw->hew", query, keys.unflatten(0, (self.heads, -1))) / math.sqrt(query.shape[1])
        u = F.linear(x, folded.flatten(0, 1)).unflatten(-1, (self.heads, 3))  # [B, sources, heads, 3]
        v = F.linear(x, values)
        return self.to_o(torch.stack([self._average(one, value) for one, value in zip(u, v, strict=True)]))

    def _average(self, u: Tensor, v: Tensor) -> Tensor:
        """Weighted means over neighbours of one batch element: u [sources, heads, 3], v [sources, D] -> [targets, D]."""
        targets, count = self.neighbors.shape
        wide = torch.promote_types(v.dtype, torch.float32)
        near = u.to(wide).flatten(1)[self.neighbors].unflatten(-1, (self.heads, 3))  # [targets, count, heads, 3]
        with torch.autocast(v.device.type, enabled=False):
            weights = torch.softmax(torch.einsum("ike,ikhe->ihk", self.rel_pos.to(wide), near), dim=-1)
        # a bag for each (target, head): the values of neighbours are summed as they are read, never gathered
        bags = self.neighbors.unsqueeze(1) * self.heads + torch.arange(self.heads, device=u.device).view(1, -1, 1)
        table = v.to(wide).reshape(-1, v.shape[-1] // self.heads)
        out = F.embedding_bag(bags.view(-1, count), table, per_sample_weights=weights.reshape(-1, count), mode="sum")
        return out.view(targets, -1).to(v.dtype)
