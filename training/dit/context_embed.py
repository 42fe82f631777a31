"""Text states and image tokens to the network's context: [image ; text] of each clip, with the layout in which it lies.

Only real tokens are embedded and kept: padding is dropped at the door, so that no block computes or masks any. Captions of equal length come out
even; others are packed end to end. Which tokens are real is read by the host: free for masks on the CPU, one wait for the device otherwise.

Legend: B batch, E text tokens, I image tokens, S = I + E, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.dit.attention import to_device
from training.dit.blocks import FeedForward
from training.dit.token_layout import ContextLayout

__all__ = ["ImageEmbed", "TextEmbed", "embed_context", "embed_padded_context"]


class TextEmbed(FeedForward):
    """Text encoder states to context tokens: Linear, GELU (tanh), Linear."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__(text_width, width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.to(self.up.weight.dtype))


class ImageEmbed(nn.Module):
    """Vision encoder tokens to context tokens: LayerNorm, Linear, GELU, Linear, LayerNorm."""

    def __init__(self, image_width: int, width: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(image_width)
        self.up = nn.Linear(image_width, image_width)
        self.down = nn.Linear(image_width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, image_BID: Tensor) -> Tensor:
        hidden = F.gelu(self.up(self.norm_in(image_BID.to(self.up.weight.dtype))))
        return self.norm_out(self.down(hidden))

    def nothing(self) -> Tensor:
        """No tokens, (0, D), for a micro-batch without any: in training every rank's graph must have the embedder."""
        return self(self.up.weight.new_zeros(1, self.up.in_features))[:0]


def embed_context(
    text_embed: TextEmbed,
    image_embed: ImageEmbed | None,
    text_BED: Tensor,
    real_BE: Tensor | None,
    image_BID: Tensor | None,
    given_B: Tensor | None,
) -> tuple[Tensor, ContextLayout]:
    """Context without padding, even or packed. `real_BE` and `given_B` say which text tokens are real and which clips see their image; None: all."""
    batch, longest = text_BED.shape[:2]
    text = text_BED.flatten(0, 1)
    lengths = [longest] * batch
    if real_BE is not None and not bool(real_BE.all()):
        lengths = real_BE.sum(dim=1).tolist()
        text = text.index_select(0, to_device(real_BE.flatten().nonzero()[:, 0].cpu(), text.device))
    texts = text_embed(text).split(lengths)
    images = _images(image_embed, image_BID, given_B, batch)
    context = torch.cat([part for pair in zip(images, texts, strict=True) for part in pair if part is not None])
    num_image = [0 if part is None else len(part) for part in images]
    layout = ContextLayout.packed([a + b for a, b in zip(num_image, lengths, strict=True)], num_image, context.device)
    return (context.unflatten(0, (batch, -1)) if layout.packing is None else context), layout


def embed_padded_context(
    text_embed: TextEmbed,
    image_embed: ImageEmbed | None,
    text_BED: Tensor,
    real_BE: Tensor | None,
    image_BID: Tensor | None,
    given_B: Tensor | None,
) -> tuple[Tensor, ContextLayout]:
    """Context as it was given, (B, S, D), with a mask where some of it is not real: its shape depends on shapes alone."""
    batch, num_text = text_BED.shape[:2]
    context, num_image = text_embed(text_BED), 0
    real_BS = torch.ones(batch, num_text, dtype=torch.bool) if real_BE is None else real_BE.to("cpu", torch.bool)
    if image_embed is not None and image_BID is not None:
        num_image = image_BID.shape[1]
        given = torch.ones(batch, dtype=torch.bool) if given_B is None else given_B.to("cpu", torch.bool)
        context = torch.cat([image_embed(image_BID), context], dim=1)
        real_BS = torch.cat([given[:, None].expand(-1, num_image), real_BS], dim=1)
    elif image_embed is not None and image_embed.training:
        context = torch.cat([image_embed.nothing().expand(batch, -1, -1), context], dim=1)
    visible_BS = None if bool(real_BS.all()) else real_BS.to(context.device)
    return context, ContextLayout(num_image=num_image, visible_BS=visible_BS)


def _images(
    image_embed: ImageEmbed | None, image_BID: Tensor | None, given_B: Tensor | None, batch: int
) -> list[Tensor | None]:
    """Embedded image tokens of each clip that sees them."""
    images: list[Tensor | None] = [None] * batch
    if image_embed is None:
        return images
    given = [image_BID is not None] * batch if given_B is None else given_B.tolist()
    clips = [clip for clip, seen in enumerate(given) if seen and image_BID is not None]
    if image_BID is not None and clips:
        seen = image_BID.index_select(0, to_device(torch.tensor(clips), image_BID.device))
        for clip, image_ID in zip(clips, image_embed(seen).unbind(0), strict=True):
            images[clip] = image_ID
    elif image_embed.training:
        images[0] = image_embed.nothing()
    return images
