"""Softmax attention behind one seam, over clips of one length or of many.

Every block holds an `Attention` in its attribute `attention` and calls nothing else: a recorder of attention maps or a context-parallel attention
(all-to-all from tokens to heads, attend, and back) takes its place with `MotifVideoDiT.set_attention`. A replacement need only write `__call__`:
clips laid end to end then come one by one. Nothing is hidden by masks as long as the network may pack: clips of unequal context lie end to end, so
that no padding is computed and flash kernels run. Price: a packed row of another length is another shape, which compiled graphs cannot have;
they take padded rows and a mask.

Legend: B batch, N queries and M keys of a row; Q and K all queries and keys of a packed batch, H heads, A head width, D = H A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Attention", "FlashAttention", "Segments", "to_device"]


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Where each clip of a packed batch ends, for the host and for kernels."""

    lengths: tuple[int, ...]
    ends: Tensor
    """int32, 0 first: one more than clips, on the device."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Segments:
        """Segments of these lengths; nobody waits for the device."""
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(lengths=tuple(lengths), ends=to_device(ends, device))


class Attention:
    """torch's scaled dot product attention, one call for each clip where they are packed."""

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
        self, query_QHA: Tensor, key_KHA: Tensor, value_KHA: Tensor, queries: Segments, keys: Segments
    ) -> Tensor:
        """(Q, D): each clip's queries to its own keys alone."""
        parts = zip(
            query_QHA.split(queries.lengths), key_KHA.split(keys.lengths), value_KHA.split(keys.lengths), strict=True
        )
        return torch.cat([self(query[None], key[None], value[None])[0] for query, key, value in parts])


class FlashAttention(Attention):
    """The default: packed clips in one call of torch's variable-length flash kernel where there is one (half precision on CUDA)."""

    def packed(
        self, query_QHA: Tensor, key_KHA: Tensor, value_KHA: Tensor, queries: Segments, keys: Segments
    ) -> Tensor:
        """(Q, D)."""
        half = query_QHA.dtype in (torch.bfloat16, torch.float16)
        if query_QHA.device.type != "cuda" or not half or find_spec("torch.nn.attention.varlen") is None:
            return super().packed(query_QHA, key_KHA, value_KHA, queries, keys)
        from torch.nn.attention.varlen import varlen_attn

        output_QHA = varlen_attn(
            query_QHA.contiguous(),
            key_KHA.contiguous(),
            value_KHA.contiguous(),
            queries.ends,
            keys.ends,
            max(queries.lengths),
            max(keys.lengths),
        )
        assert isinstance(output_QHA, Tensor)
        return output_QHA.flatten(1)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
