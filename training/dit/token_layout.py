"""How the tokens of a micro-batch lie in memory: rows of one length, rows padded under a mask, or clips packed end to end.

Context differs in length from clip to clip: captions do, and image tokens are there for some clips only. Three layouts, one set of operations:

    even      all clips have the same context: (B, S, D), no mask
    packed    they have not: (sum of S, D), clip after clip; nothing is padded and nothing masked
    padded    they have not, but shapes must not change (compiled graphs): (B, S, D) and a mask over the keys

Video tokens are always (B, L, D). `ContextLayout` knows the context, `TokenLayout` the context beside a number of video tokens, which a route
changes. What kernels need of it is put on the device once for each, without waiting.

Legend: B batch, L video tokens (K of them inside a route), S context tokens [image ; text], E text tokens, N = L + S, D width, H heads, A head
width; `...` is (B, S) or (B, N) in the even and padded layouts, (sum over clips) in the packed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.dit.attention import Attention, Segments, to_device

__all__ = ["ContextLayout", "Packing", "TokenLayout"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Context tokens of each clip, laid end to end."""

    lengths: tuple[int, ...]
    num_image: tuple[int, ...]
    """How many of them are image tokens, which come first."""
    of_clip_SB: Tensor
    """True where a packed token is a clip's."""
    text: Segments
    """The text tokens alone."""


@dataclass(frozen=True, kw_only=True)
class ContextLayout:
    """Even when `packing` and `visible_BS` are None."""

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
        clip_S = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        return cls(
            packing=Packing(
                lengths=tuple(lengths),
                num_image=tuple(num_image),
                of_clip_SB=to_device(clip_S[:, None] == torch.arange(len(lengths)), device),
                text=Segments.of([a - b for a, b in zip(lengths, num_image, strict=True)], device),
            )
        )

    def beside(self, num_video: int) -> TokenLayout:
        """The layout of this context beside so many video tokens of each clip."""
        if self.packing is None:
            visible = None if self.visible_BS is None else F.pad(self.visible_BS, (num_video, 0), value=True)
            return TokenLayout(context=self, num_video=num_video, visible_BN=visible)
        device, clips = self.packing.of_clip_SB.device, len(self.packing.lengths)
        return TokenLayout(
            context=self,
            num_video=num_video,
            video=Segments.of([num_video] * clips, device),
            joined=Segments.of([num_video + length for length in self.packing.lengths], device),
        )


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Video and context of one micro-batch; made by `ContextLayout.beside`."""

    context: ContextLayout
    num_video: int
    visible_BN: Tensor | None = None
    """Padded: the real tokens of [video ; context]."""
    video: Segments | None = None
    """Packed: the video tokens of each clip."""
    joined: Segments | None = None
    """Packed: all tokens of each clip."""

    def spread(self, value_B1D: Tensor) -> Tensor:
        """A clip's value for each of its context tokens. A product with zeros and ones: exact, and its gradient adds up in a fixed order."""
        packing = self.context.packing
        return value_B1D if packing is None else packing.of_clip_SB.to(value_B1D.dtype) @ value_B1D[:, 0]

    def join(self, video: Tensor, context: Tensor) -> Tensor:
        """[video ; context] of each clip: tokens, or their heads."""
        packing = self.context.packing
        if packing is None:
            return torch.cat([video, context], dim=1)
        pairs = zip(video.unbind(0), context.split(packing.lengths), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    def part(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `join`."""
        packing = self.context.packing
        if packing is None:
            video, context = tokens.split([self.num_video, tokens.shape[1] - self.num_video], dim=1)
            return video, context
        pieces = tokens.split([size for length in packing.lengths for size in (self.num_video, length)])
        return torch.stack(pieces[::2]), torch.cat(pieces[1::2])

    def text_of(self, context: Tensor) -> Tensor:
        """The text tokens alone (of context tokens, or of their heads)."""
        packing = self.context.packing
        if packing is None:
            return context[:, self.context.num_image :]
        if not any(packing.num_image):
            return context
        pieces = context.split(packing.lengths)
        return torch.cat([piece[skip:] for piece, skip in zip(pieces, packing.num_image, strict=True)])

    def self_attention(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Joined heads (..., H, A): each token of a clip to all real tokens of the clip; (..., D)."""
        if self.joined is not None:
            return attention.packed(query, key, value, self.joined, self.joined)
        return attention(query, key, value, self.visible_BN)

    def video_attention(self, attention: Attention, query_BLHA: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Video to all real tokens of its clip, whose joined heads are given; (B, L, D)."""
        if self.joined is not None and self.video is not None:
            attended = attention.packed(query_BLHA.flatten(0, 1), key, value, self.video, self.joined)
            return attended.unflatten(0, query_BLHA.shape[:2])
        return attention(query_BLHA, key, value, self.visible_BN)

    def text_attention(self, attention: Attention, query_BLHA: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Video to the real text tokens of its clip, whose heads are given as `text_of` gives them; (B, L, D)."""
        packing = self.context.packing
        if packing is not None and self.video is not None:
            attended = attention.packed(query_BLHA.flatten(0, 1), key, value, self.video, packing.text)
            return attended.unflatten(0, query_BLHA.shape[:2])
        visible = self.context.visible_BS
        return attention(query_BLHA, key, value, None if visible is None else visible[:, self.context.num_image :])
