"""Softmax attention behind one seam, over clips of one length or of many.

Every block holds an `Attention` in its attribute `attention` and calls nothing else: a recorder of attention maps or a context-parallel attention
(all-to-all from tokens to heads, attend, and back) takes its place with `MotifVideoDiT.set_attention`. Nothing is hidden by masks as long as the
network may pack: clips of unequal context are laid end to end, so that no padding is computed and flash kernels run. Price: a packed row of
another length is another shape, which compiled graphs cannot have; they take padded rows and a mask.

Legend: B batch, N queries and M keys of a row; Q and K all queries and keys of a packed batch, H heads, A head width, D = H A.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Attention"]


class Attention:
    """torch's scaled dot product attention; packed rows through its variable-length flash kernel where there is one."""

    def __call__(
        self, query_BNHA: Tensor, key_BMHA: Tensor, value_BMHA: Tensor, visible_BM: Tensor | None = None
    ) -> Tensor:
        """(B, N, D). Keys where `visible_BM` is false are hidden; each row must show one at least."""
        mask = None if visible_BM is None else visible_BM[:, None, None]
        output_BHNA = F.scaled_dot_product_attention(
            query_BNHA.transpose(1, 2), key_BMHA.transpose(1, 2), value_BMHA.transpose(1, 2), attn_mask=mask
        )
        return output_BHNA.transpose(1, 2).flatten(2)

    def packed(
        self,
        query_QHA: Tensor,
        key_KHA: Tensor,
        value_KHA: Tensor,
        query_lengths: Sequence[int],
        key_lengths: Sequence[int],
    ) -> Tensor:
        """(Q, D): clips end to end, each attending to its own keys alone; lengths say where one ends."""
        if _has_varlen(query_QHA):
            return _varlen(query_QHA, key_KHA, value_KHA, query_lengths, key_lengths)
        parts = zip(
            query_QHA.split(list(query_lengths)),
            key_KHA.split(list(key_lengths)),
            value_KHA.split(list(key_lengths)),
            strict=True,
        )
        return torch.cat([self(query[None], key[None], value[None])[0] for query, key, value in parts])


def _has_varlen(query_QHA: Tensor) -> bool:
    """Whether torch's variable-length flash attention takes these: half precision on CUDA."""
    half = query_QHA.dtype in (torch.bfloat16, torch.float16)
    return query_QHA.device.type == "cuda" and half and find_spec("torch.nn.attention.varlen") is not None


def _varlen(
    query_QHA: Tensor, key_KHA: Tensor, value_KHA: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    def ends(lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query_QHA.device)

    output_QHA = varlen_attn(
        query_QHA.contiguous(),
        key_KHA.contiguous(),
        value_KHA.contiguous(),
        ends(query_lengths),
        ends(key_lengths),
        max(query_lengths),
        max(key_lengths),
    )
    assert isinstance(output_QHA, Tensor)
    return output_QHA.flatten(1)
