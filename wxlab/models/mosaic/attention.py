"""Block-sparse attention on a mesh in nested order: three branches over blocks of neighbouring tokens.

    local        full attention inside windows of consecutive tokens
    compression  attention among the means of blocks; its result holds for all tokens of the block
    selection    full-resolution attention of each block to the ``count`` blocks that score highest, chosen anew for each input

Every function takes q [B, H, N, d], k and v [B, K, N, d] in SDPA's layout; query head h reads key head h // (H / K).
The selection branch has several engines, equal to rounding; ``attend_selected`` is the one door to them.
Reference: Mosaic, after native sparse attention (Yuan et al. 2025, arXiv:2502.11089).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from wxlab.errors import WxlabError, unknown

ScoreHeads = Literal["official", "natural"]
Engine = Literal["gather", "flex", "triton", "bfloat16"]
GATHER_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}  # of keys and values that are gathered at a time; the caches hold the former

_forced: ContextVar[Engine | None] = ContextVar("engine of the selection branch", default=None)


@contextmanager
def force_engine(engine: Engine) -> Iterator[None]:
    """Use one engine for every selection branch inside: ``gather``, ``flex``, ``triton`` or ``bfloat16``."""
    if engine not in get_args(Engine):
        raise unknown("attention engine", engine, get_args(Engine))
    token = _forced.set(engine)
    try:
        yield
    finally:
        _forced.reset(token)


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, *, window: int, block: int, count: int, heads: ScoreHeads = "official"
) -> Tensor:
    """``g_0 local + g_1 compression + g_2 selection``: [B, H, N, d].

    gates: of the branches in this order, for each token and query head [B, N, H, 3].  window, block: tokens of a window and of a block,
    both divisors of N.  count: blocks chosen for each block.  heads: see ``selection_scores``.
    Raises WxlabError where N leaves a rest, and for more blocks than there are.
    """
    for name, size in (("window", window), ("block", block)):
        if size < 1 or q.shape[2] % size:
            raise WxlabError(f"{q.shape[2]} tokens do not divide into {name}s of {size}; give {name}= a divisor of their number")
    means = [block_means(x, block) for x in (q, k, v)]
    chosen = choose_blocks(selection_scores(means[0], means[1], heads), count)
    if torch.is_grad_enabled() or q.is_cuda:
        return _gated(q, k, v, means, chosen, gates, window, block)
    out, group = torch.empty_like(q), q.shape[1] // k.shape[1]
    for c in range(k.shape[1]):  # one key head at a time, for less memory
        one, mine = slice(c, c + 1), slice(c * group, (c + 1) * group)
        parts = [means[0][:, mine], means[1][:, one], means[2][:, one]]
        out[:, mine] = _gated(q[:, mine], k[:, one], v[:, one], parts, chosen[:, one], gates[:, :, mine], window, block)
    return out


def _gated(
    q: Tensor, k: Tensor, v: Tensor, means: Sequence[Tensor], chosen: Tensor, gates: Tensor, window: int, block: int
) -> Tensor:
    g = gates.permute(3, 0, 2, 1).unsqueeze(-1)  # [3, B, H, N, 1]
    # the result of a block goes to its tokens by broadcasting
    compressed = g[1].unflatten(2, (-1, block)) * dense_attention(*means).unsqueeze(3)  # [B, H, blocks, block, d]
    out = torch.addcmul(compressed.flatten(2, 3), g[0], local_attention(q, k, v, window))
    return torch.addcmul(out, g[2], attend_selected(q, k, v, chosen, block))


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of all tokens to all: [B, H, N, d]. The query heads of a key head become rows, so that no key is repeated."""
    heads = k.shape[1]
    out = F.scaled_dot_product_attention(q.reshape(q.shape[0], heads, -1, q.shape[-1]), k, v)
    return out.view(q.shape)


def local_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Full attention inside consecutive windows of ``window`` tokens: [B, H, N, d]."""
    windows = (q.shape[2] // window, window)
    folded = [x.unflatten(2, windows).transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # [B N/window, heads, window, d]
    out = dense_attention(*folded)
    return out.unflatten(0, (q.shape[0], windows[0])).transpose(1, 2).flatten(2, 3)


def block_means(x: Tensor, block: int) -> Tensor:
    """Means over consecutive blocks: [B, heads, N, d] -> [B, heads, N / block, d]."""
    return x.unflatten(2, (-1, block)).mean(3)


def selection_scores(q: Tensor, k: Tensor, heads: ScoreHeads = "official") -> Tensor:
    """How much each block of queries wants each block of keys, for each key head: [B, K, blocks, blocks], without gradient.

    ``(1/G) Σ_g q_h(g) · k_{h(g) // G}`` of the block means q [B, H, blocks, d] and k [B, K, blocks, d], with G = H / K.
    heads: ``official``: key head c averages the query heads c, c + K, c + 2K, ..., each against its own key head, as the published
    weights were trained; ``natural``: the heads cG ... cG + G - 1, which read key head c.
    """
    kinds, group = k.shape[1], q.shape[1] // k.shape[1]
    with torch.no_grad():
        each = q @ k.repeat_interleave(group, dim=1).transpose(2, 3)  # [B, H, blocks, blocks]
        if heads == "official":
            return each.unflatten(1, (group, kinds)).mean(1)
        return each.unflatten(1, (kinds, group)).mean(2)


def choose_blocks(scores: Tensor, count: int) -> Tensor:
    """The ``count`` best blocks of each query block, best first: [B, K, blocks, blocks] -> int64 [B, K, blocks, count]."""
    if not 1 <= count <= scores.shape[-1]:
        raise WxlabError(f"count={count} blocks cannot be chosen of {scores.shape[-1]}; choose from 1 to that many")
    return scores.topk(count, dim=-1).indices


def attend_selected(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int, engine: Engine | None = None) -> Tensor:
    """One joint softmax of each query over all tokens of its block's chosen blocks: [B, H, N, d].

    chosen: int64 [B, K, N / block, n], the same for all queries of a block and all query heads of a key head; it gets no gradient.
    engine: ``gather`` (the default on every device), ``flex`` and ``triton`` (CUDA; written for it and not yet measured), ``bfloat16``
    (the rounding of the published kernel, for comparisons; slow); None: what ``force_engine`` says, else the default.
    Raises WxlabError for an unknown engine and one that this machine cannot run.
    """
    name = engine or _forced.get() or "gather"
    if name == "gather":
        return _Gathered.apply(q, k, v, chosen, block)
    if name == "flex":
        from wxlab.models.mosaic.attention_flex import flex_selected

        return flex_selected(q, k, v, chosen, block)
    if name == "triton":
        from wxlab.models.mosaic.attention_triton import triton_selected

        return triton_selected(q, k, v, chosen, block)
    if name == "bfloat16":
        return _rounded(q, k, v, chosen, block)
    raise unknown("attention engine", name, get_args(Engine))


def selection_weights(q: Tensor, k: Tensor, chosen: Tensor, block: int) -> Tensor:
    """What share of its attention a block of queries gives each block of keys, its queries' mean: [B, H, blocks, blocks].

    0 for blocks that are not chosen; rows sum to 1.
    """
    batch, kinds, blocks, count = chosen.shape
    group = q.shape[1] // kinds
    rows, keys = _query_blocks(q, kinds, block), _blocks(k, block)
    shares = torch.empty(len(rows), group, count, dtype=torch.float32, device=q.device)
    for part, index in _parts(chosen, block, q):
        logits = rows[part] @ keys[index].flatten(1, 2).transpose(1, 2) / math.sqrt(q.shape[-1])
        weights = torch.softmax(logits.float(), dim=-1).unflatten(2, (count, block)).sum(-1)  # [part, G block, n]
        shares[part] = weights.unflatten(1, (group, block)).mean(2)
    out = torch.zeros(batch, kinds, blocks, group, blocks, device=q.device)
    out.scatter_(-1, chosen.unsqueeze(3).expand(-1, -1, -1, group, -1), shares.view(batch, kinds, blocks, group, count))
    return out.permute(0, 1, 3, 2, 4).flatten(1, 2)


# ---- gather and SDPA: a few query blocks at a time, so that no more than GATHER_BYTES is ever gathered


def _blocks(x: Tensor, block: int) -> Tensor:
    """[B, K, N, d] -> [B K blocks, block, d]."""
    return x.contiguous().view(-1, block, x.shape[-1])


def _query_blocks(x: Tensor, kinds: int, block: int) -> Tensor:
    """[B, H, N, d] -> [B K blocks, G block, d]: the rows that read the same keys side by side."""
    return x.unflatten(1, (kinds, -1)).unflatten(3, (-1, block)).transpose(2, 3).reshape(-1, x.shape[1] // kinds * block, x.shape[-1])


def _tokens(rows: Tensor, like: Tensor, kinds: int, block: int) -> Tensor:
    """The inverse of ``_query_blocks``."""
    batch, heads, tokens, width = like.shape
    return rows.view(batch, kinds, tokens // block, heads // kinds, block, width).transpose(2, 3).reshape(like.shape)


def _parts(chosen: Tensor, block: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the flat query blocks and the flat numbers [part, n] of the key blocks that they read."""
    batch, kinds, blocks, count = chosen.shape
    first = torch.arange(batch * kinds, device=chosen.device).view(batch, kinds, 1, 1) * blocks
    index = (chosen + first).reshape(-1, count)
    bytes_each = 2 * count * block * like.shape[-1] * like.element_size()
    size = max(1, GATHER_BYTES.get(like.device.type, GATHER_BYTES["cpu"]) // bytes_each)
    for start in range(0, len(index), size):
        part = slice(start, min(start + size, len(index)))
        yield part, index[part]


class _Near:
    """Keys and values of blocks [parts, n] side by side: [parts, n block, d] each, in the same memory every time."""

    def __init__(self, *sources: Tensor) -> None:
        self.sources, self.rooms = sources, [x.new_empty(0) for x in sources]

    def __call__(self, index: Tensor) -> list[Tensor]:
        flat, near = index.flatten(), []
        for i, source in enumerate(self.sources):
            if len(self.rooms[i]) < len(flat):
                self.rooms[i] = source.new_empty(len(flat), *source.shape[1:])
            room = torch.index_select(source, 0, flat, out=self.rooms[i][: len(flat)])
            near.append(room.view(len(index), -1, source.shape[-1]))
        return near


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA of [rows, queries, d] with a head axis of 1, without which the fused kernels are not taken."""
    return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)


class _Gathered(torch.autograd.Function):
    """Selection by gathering; the backward pass gathers again instead of keeping n copies of every key and value."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(q, k, v, chosen)
        ctx.block = block
        kinds = k.shape[1]
        rows, near = _query_blocks(q, kinds, block), _Near(_blocks(k, block), _blocks(v, block))
        out = torch.empty_like(rows)
        for part, index in _parts(chosen, block, q):
            out[part] = _sdpa(rows[part], *near(index))
        return _tokens(out, q, kinds, block)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, k, v, chosen = ctx.saved_tensors
        block, kinds = ctx.block, k.shape[1]
        rows, keys, values = _query_blocks(q, kinds, block), _blocks(k, block), _blocks(v, block)
        above = _query_blocks(grads[0], kinds, block)
        near = _Near(keys, values)
        d_rows, d_keys, d_values = torch.empty_like(rows), torch.zeros_like(keys), torch.zeros_like(values)
        for part, index in _parts(chosen, block, q):
            inputs = [x.detach().requires_grad_() for x in (rows[part], *near(index))]
            with torch.enable_grad():
                out = _sdpa(*inputs)
            d_rows[part], *changes = torch.autograd.grad(out, inputs, above[part])
            for total, change in zip((d_keys, d_values), changes, strict=True):
                total.index_add_(0, index.flatten(), change.reshape(-1, *total.shape[1:]))
        return _tokens(d_rows, q, kinds, block), d_keys.view(k.shape), d_values.view(v.shape), None, None


# ---- the published kernel's rounding


def _rounded(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
    """Selection with the roundings of the published kernel: base-2 online softmax over the chosen blocks in order, best first.

    ``q log2(e) / √d``, k, v and the unnormalised probabilities are rounded to bfloat16; sums are float32.
    """

    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().float()

    kinds = k.shape[1]
    rows = rounded(_query_blocks(q, kinds, block).float() * (math.log2(math.e) / math.sqrt(q.shape[-1])))
    keys, values = rounded(_blocks(k, block)), rounded(_blocks(v, block))
    out = torch.zeros_like(rows)
    for part, index in _parts(chosen, block, q):
        top = torch.full_like(rows[part, :, :1], -torch.inf)
        total, sums = torch.zeros_like(top), torch.zeros_like(rows[part])
        for each in index.unbind(1):
            logits = rows[part] @ keys[each].transpose(1, 2)
            higher = torch.maximum(top, logits.amax(-1, keepdim=True))
            p, shrink = torch.exp2(logits - higher), torch.exp2(top - higher)
            total, sums, top = total * shrink + p.sum(-1, keepdim=True), sums * shrink + rounded(p) @ values[each], higher
        out[part] = sums / total
    return _tokens(out, q, kinds, block).to(q.dtype)
