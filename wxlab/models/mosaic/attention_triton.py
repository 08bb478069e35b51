"""The selection branch as Triton kernels, forward and backward. For CUDA; not yet measured on one.

A program takes a tile of queries of one head and goes through the blocks chosen for it with an online softmax in base 2. Of the backward
pass, dq goes through the same list; dk and dv of a key block go through the transposed list: the query blocks that chose it.
Plain pointers throughout: block pointers are gone from present Triton. Sums are float32; products of half-precision inputs take the
tensor cores, float32 ones are not rounded to TF32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wxlab.errors import WxlabError

try:
    import triton
    import triton.language as tl
except ImportError:  # there is no Triton without a GPU
    triton = tl = None

LOG2E = math.log2(math.e)
TILES = {torch.float32: 32}  # queries or keys of a program at most, half-precision ones 64: what fits into a GPU's shared memory


def _forward(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, chosen_ptr, out_ptr, lse_ptr, tokens, scale, GROUP, HEADS, COUNT, BLOCK: tl.constexpr, TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """out [B, H, N, d] and the base-2 log-sum-exp [B, H, N] of one tile of queries."""
    tile, row = tl.program_id(0), tl.program_id(1)  # row: batch and query head
    kind = (row // HEADS) * (HEADS // GROUP) + (row % HEADS) // GROUP  # batch and key head
    width = tl.arange(0, WIDTH)
    rows = tile * TILE + tl.arange(0, TILE)
    inner = tl.arange(0, TILE)
    query = (row.to(tl.int64) * tokens + rows)[:, None] * WIDTH + width[None, :]
    q = tl.load(q_ptr + query)
    top = tl.full([TILE], -float("inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, WIDTH], tl.float32)
    choice = chosen_ptr + (kind * (tokens // BLOCK) + tile * TILE // BLOCK).to(tl.int64) * COUNT
    for n in range(COUNT):
        block = tl.load(choice + n)
        for part in range(BLOCK // TILE):
            columns = block * BLOCK + part * TILE + inner
            place = (kind.to(tl.int64) * tokens + columns)[:, None] * WIDTH + width[None, :]
            k, v = tl.load(k_ptr + place), tl.load(v_ptr + place)
            logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            higher = tl.maximum(top, tl.max(logits, 1))
            p = tl.exp2(logits - higher[:, None])
            shrink = tl.exp2(top - higher)
            total = total * shrink + tl.sum(p, 1)
            sums = sums * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            top = higher
    tl.store(out_ptr + query, (sums / total[:, None]).to(q.dtype))
    tl.store(lse_ptr + row.to(tl.int64) * tokens + rows, top + tl.log2(total))


def _backward_queries(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, above_ptr, lse_ptr, delta_ptr, chosen_ptr, dq_ptr, tokens, scale, GROUP, HEADS, COUNT, BLOCK: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries: ``ds = p (dp - δ)``, ``dq = ds k / √d``."""
    tile, row = tl.program_id(0), tl.program_id(1)
    kind = (row // HEADS) * (HEADS // GROUP) + (row % HEADS) // GROUP
    width = tl.arange(0, WIDTH)
    rows = tile * TILE + tl.arange(0, TILE)
    inner = tl.arange(0, TILE)
    line = row.to(tl.int64) * tokens + rows
    query = line[:, None] * WIDTH + width[None, :]
    q, above = tl.load(q_ptr + query), tl.load(above_ptr + query)
    lse, delta = tl.load(lse_ptr + line), tl.load(delta_ptr + line)
    dq = tl.zeros([TILE, WIDTH], tl.float32)
    choice = chosen_ptr + (kind * (tokens // BLOCK) + tile * TILE // BLOCK).to(tl.int64) * COUNT
    for n in range(COUNT):
        block = tl.load(choice + n)
        for part in range(BLOCK // TILE):
            columns = block * BLOCK + part * TILE + inner
            place = (kind.to(tl.int64) * tokens + columns)[:, None] * WIDTH + width[None, :]
            k, v = tl.load(k_ptr + place), tl.load(v_ptr + place)
            p = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * scale - lse[:, None])
            ds = p * (tl.dot(above, tl.trans(v), input_precision="ieee") - delta[:, None])
            dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(dq_ptr + query, (dq * (scale / 1.4426950408889634)).to(q.dtype))


def _backward_keys(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, above_ptr, lse_ptr, delta_ptr, first_ptr, reader_ptr, dk_ptr, dv_ptr, tokens, scale, GROUP, HEADS,
    BLOCK: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys, over the query blocks that chose its block (entries first[j] ... first[j + 1] of reader)."""
    tile, kind = tl.program_id(0), tl.program_id(1)  # kind: batch and key head
    blocks = tokens // BLOCK
    width = tl.arange(0, WIDTH)
    inner = tl.arange(0, TILE)
    place = (kind.to(tl.int64) * tokens + tile * TILE + inner)[:, None] * WIDTH + width[None, :]
    k, v = tl.load(k_ptr + place), tl.load(v_ptr + place)
    dk = tl.zeros([TILE, WIDTH], tl.float32)
    dv = tl.zeros([TILE, WIDTH], tl.float32)
    owner = kind * blocks + tile * TILE // BLOCK
    head = (kind // (HEADS // GROUP)) * HEADS + (kind % (HEADS // GROUP)) * GROUP  # batch and first query head
    for entry in range(tl.load(first_ptr + owner), tl.load(first_ptr + owner + 1)):
        reader = tl.load(reader_ptr + entry)
        for g in range(GROUP):
            for part in range(BLOCK // TILE):
                line = (head + g).to(tl.int64) * tokens + reader * BLOCK + part * TILE + inner
                query = line[:, None] * WIDTH + width[None, :]
                q, above = tl.load(q_ptr + query), tl.load(above_ptr + query)
                lse, delta = tl.load(lse_ptr + line), tl.load(delta_ptr + line)
                p = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * scale - lse[:, None])
                dv += tl.dot(tl.trans(p.to(above.dtype)), above, input_precision="ieee")
                ds = p * (tl.dot(above, tl.trans(v), input_precision="ieee") - delta[:, None])
                dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
    tl.store(dk_ptr + place, (dk * (scale / 1.4426950408889634)).to(k.dtype))
    tl.store(dv_ptr + place, dv.to(v.dtype))


_COMPILED: dict[str, Any] = (
    {kernel.__name__: triton.jit(kernel) for kernel in (_forward, _backward_queries, _backward_keys)} if triton is not None else {}
)


def readers(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The transposed lists: which query blocks chose each key block.

    chosen int64 [B, K, blocks, n] -> first int32 [B K blocks + 1] and reader int32 [B K blocks n]: the blocks of queries that chose the
    key block j of the flat (batch, key head, block) are reader[first[j]], ..., reader[first[j + 1] - 1], ascending.
    """
    batch, kinds, blocks, count = chosen.shape
    owner = (chosen.flatten(0, 1) + blocks * torch.arange(batch * kinds, device=chosen.device).view(-1, 1, 1)).flatten()
    order = owner.argsort(stable=True)
    reader = (order // count) % blocks
    first = torch.zeros(batch * kinds * blocks + 1, dtype=torch.int32, device=chosen.device)
    first[1:] = torch.bincount(owner, minlength=batch * kinds * blocks).cumsum(0)
    return first, reader.int()


class _Kernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, heads, tokens, width = q.shape
        tile, choice = min(block, TILES.get(q.dtype, 64)), chosen.int().contiguous()
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        ctx.sizes = {"GROUP": heads // k.shape[1], "HEADS": heads, "BLOCK": block, "TILE": tile, "WIDTH": width}
        ctx.scale = LOG2E / math.sqrt(width)
        count = chosen.shape[-1]
        grid = (tokens // tile, batch * heads)
        _COMPILED["_forward"][grid](q, k, v, choice, out, lse, tokens, ctx.scale, COUNT=count, **ctx.sizes)
        ctx.save_for_backward(q, k, v, choice, chosen, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, k, v, choice, chosen, out, lse = ctx.saved_tensors
        batch, heads, tokens, _ = q.shape
        above, tile = grads[0].contiguous().to(q.dtype), ctx.sizes["TILE"]
        delta = (out.float() * above.float()).sum(-1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        first, reader = readers(chosen)
        shared = (q, k, v, above, lse, delta)
        grid = (tokens // tile, batch * heads)
        _COMPILED["_backward_queries"][grid](*shared, choice, dq, tokens, ctx.scale, COUNT=chosen.shape[-1], **ctx.sizes)
        grid = (tokens // tile, batch * k.shape[1])
        _COMPILED["_backward_keys"][grid](*shared, first, reader, dk, dv, tokens, ctx.scale, **ctx.sizes)
        return dq, dk, dv, None, None


def triton_selected(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
    """``attention.attend_selected`` by the kernels.

    Raises WxlabError without Triton or a GPU, and for heads and blocks that are no powers of two of at least 16.
    """
    if triton is None or not q.is_cuda:
        raise WxlabError("the attention engine 'triton' needs a CUDA GPU and the package triton; use 'gather', which runs everywhere")
    for name, size in (("channels of a head", q.shape[-1]), ("tokens of a block", block)):
        if size < 16 or size & (size - 1):
            raise WxlabError(f"the attention engine 'triton' needs a power of two of at least 16 {name}, not {size}; use 'gather'")
    return _Kernels.apply(q, k, v, chosen, block)
