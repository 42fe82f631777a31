"""How the tokens of a micro-batch lie in memory: rows of one length, rows padded under a mask, or clips packed end to end.

Context differs in length from clip to clip: captions do, and image tokens are there for some clips only. Three layouts, one set of operations:

    even      all clips have the same context: (B, N, D), no mask
    packed    they have not: (sum of N, D), each clip's video, then its context; nothing is padded and nothing masked
    padded    they have not, but shapes must not change (compiled graphs): (B, N, D) and a mask over the keys

A block asks the layout to join video and context, to part them again and to spread what belongs to a clip over its tokens. Video tokens are always
(B, L, D). Price of packing: what AdaLN gives a clip is copied to each of its tokens.

Legend: B batch, L video tokens (K of them inside a route), S context tokens [image ; text], E text tokens, N = L + S, H heads, A head width;
`...` is (B, S) or (B, N) in the even and padded layouts, (sum over clips) in the packed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.attention import Attention

__all__ = ["ContextLayout", "Packing"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The packed layout's bookkeeping, on the device of the tokens."""

    lengths: tuple[int, ...]
    """Context tokens of each clip."""
    num_image: tuple[int, ...]
    """How many of them are image tokens, which come first."""
    clip_S: Tensor
    """Clip of each packed context token."""


@dataclass(frozen=True, kw_only=True)
class ContextLayout:
    """Even when both fields are None."""

    num_image: int = 0
    """Image tokens at the front of every context (even and padded)."""
    packing: Packing | None = None
    visible_BS: Tensor | None = None
    """Padded: the real context tokens."""

    @classmethod
    def packed(cls, lengths: Sequence[int], num_image: Sequence[int], device: torch.device) -> ContextLayout:
        """Clips end to end; even if they turn out to be alike."""
        if len(set(lengths)) == 1 and len(set(num_image)) == 1:
            return cls(num_image=num_image[0])
        clips = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        return cls(packing=Packing(lengths=tuple(lengths), num_image=tuple(num_image), clip_S=clips.to(device)))

    def spread_context(self, value_B1D: Tensor) -> Tensor:
        """A clip's value for each of its context tokens."""
        return value_B1D if self.packing is None else value_B1D[:, 0].index_select(0, self.packing.clip_S)

    def spread(self, value_B1D: Tensor, num_video: int) -> Tensor:
        """A clip's value for each of its tokens, video and context."""
        if self.packing is None:
            return value_B1D
        counts = torch.tensor([num_video + length for length in self.packing.lengths], device=value_B1D.device)
        total = num_video * len(self.packing.lengths) + sum(self.packing.lengths)
        return torch.repeat_interleave(value_B1D[:, 0], counts, dim=0, output_size=total)

    def join(self, video: Tensor, context: Tensor) -> Tensor:
        """[video ; context] of each clip: tokens, or their heads."""
        if self.packing is None:
            return torch.cat([video, context], dim=1)
        pairs = zip(video.unbind(0), context.split(list(self.packing.lengths)), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    def part(self, tokens: Tensor, num_video: int) -> tuple[Tensor, Tensor]:
        """The inverse of `join`."""
        if self.packing is None:
            video, context = tokens.split([num_video, tokens.shape[1] - num_video], dim=1)
            return video, context
        pieces = tokens.split([size for length in self.packing.lengths for size in (num_video, length)])
        return torch.stack(pieces[::2]), torch.cat(pieces[1::2])

    def context_of(self, tokens: Tensor, num_video: int) -> Tensor:
        """The context part of joined tokens alone."""
        if self.packing is None:
            return tokens[:, num_video:]
        pieces = tokens.split([num_video + length for length in self.packing.lengths])
        return torch.cat([piece[num_video:] for piece in pieces])

    def text_of(self, context: Tensor) -> Tensor:
        """The text tokens alone (of context tokens, or of their heads)."""
        if self.packing is None:
            return context[:, self.num_image :]
        pieces = context.split(list(self.packing.lengths))
        return torch.cat([piece[skip:] for piece, skip in zip(pieces, self.packing.num_image, strict=True)])

    def self_attention(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor, num_video: int) -> Tensor:
        """Each token of a clip to all real tokens of the clip; (..., D)."""
        if self.packing is not None:
            lengths = [num_video + length for length in self.packing.lengths]
            return attention.packed(query, key, value, lengths, lengths)
        visible = None if self.visible_BS is None else F.pad(self.visible_BS, (num_video, 0), value=True)
        return attention(query, key, value, visible)

    def text_attention(self, attention: Attention, query_BLHA: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Video to the real text tokens of its clip, whose keys and values are given as `text_of` gives them; (B, L, D)."""
        if self.packing is None:
            visible = None if self.visible_BS is None else self.visible_BS[:, self.num_image :]
            return attention(query_BLHA, key, value, visible)
        batch, num_video = query_BLHA.shape[:2]
        lengths = [a - b for a, b in zip(self.packing.lengths, self.packing.num_image, strict=True)]
        attended = attention.packed(query_BLHA.flatten(0, 1), key, value, [num_video] * batch, lengths)
        return attended.unflatten(0, (batch, num_video))
