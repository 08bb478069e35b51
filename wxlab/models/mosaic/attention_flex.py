"""The selection branch by torch's ``flex_attention`` with a BlockMask made from the chosen blocks. For CUDA; not yet measured."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from wxlab.errors import WxlabError


def block_mask(chosen: Tensor, heads: int, block: int) -> BlockMask:
    """What each query block may see, for each query head: int64 [B, K, blocks, n] -> BlockMask [B, H, N, N].

    The chosen blocks are whole ones, for which compiled kernels evaluate no mask. The function of single elements says the same, because
    ``flex_attention`` that is not compiled looks at nothing else.
    """
    batch, kinds, blocks, count = chosen.shape
    group = heads // kinds
    allowed = torch.zeros(batch, kinds, blocks, blocks, dtype=torch.bool, device=chosen.device).scatter_(-1, chosen, True)

    def mask(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return allowed[b, h // group, row // block, column // block]

    # kernels read the first ``count`` entries of a row as long as all blocks
    first = torch.zeros(batch, kinds, blocks, blocks, dtype=torch.int32, device=chosen.device)
    first[..., :count] = chosen
    full = first.repeat_interleave(group, dim=1)
    counts = torch.full((batch, heads, blocks), count, dtype=torch.int32, device=chosen.device)
    # partial and whole blocks must not share a tensor, or the generated code does not compile
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts), torch.zeros_like(full), counts, full, BLOCK_SIZE=block, mask_mod=mask,
        seq_lengths=(blocks * block, blocks * block),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def flex_selected(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
    """``attention.attend_selected`` by ``flex_attention``: compiled on CUDA (the first call takes some seconds), slow elsewhere.

    Raises WxlabError for gradients without CUDA, which flex_attention does not have.
    """
    if not q.is_cuda and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise WxlabError("the attention engine 'flex' has gradients on a CUDA GPU alone; use 'gather', which runs everywhere")
    attend = _compiled() if q.is_cuda else flex_attention
    if not torch.is_grad_enabled():
        q, k, v = q.detach(), k.detach(), v.detach()  # or it refuses weights that could have gradients
    mask = block_mask(chosen, q.shape[1], block)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")  # said above
        out: Tensor = attend(q.contiguous(), k.contiguous(), v.contiguous(), block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out
