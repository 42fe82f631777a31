"""Where the video tokens of each block look: attention mass by frame, exactly, while a forward pass runs.

`watch_attention` puts a meter in the place of each block's `attention`. The meter lets the block's own function make the output, so what the
network computes stays the same bit for bit, and works out the softmax a second time, in float32 and in chunks of queries, to sum it by the frame
of query and key. The paper's analysis (arXiv 2604.16503) compares the share that goes to OTHER frames between encoder and DDT decoder; in the
decoder keys are [decoder half ; encoder half], so each frame is there twice and both halves are counted apart.

Price: the attention of every watched block is computed twice, the second time without a fused kernel.

Legend: B batch, N queries, M keys, H heads, A head width, T latent frames, L = T * tokens per frame, Q query groups, G key groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from training.dit.attention import Attention
from training.dit.model import MotifVideoDiT

__all__ = ["BlockKind", "FrameLayout", "FrameMass", "WatchedBlock", "frame_masses", "watch_attention"]

BlockKind = Literal["dual", "single", "decoder"]

_MOST_SCORES = 1 << 25
"""Attention weights held at once, float32: 128 MiB."""


@dataclass(frozen=True, kw_only=True)
class FrameLayout:
    """Which tokens of one clip's joint sequence are what: `halves` times the video frames, then image tokens, then text."""

    frames: int
    tokens_per_frame: int
    halves: int = 1
    """1 in the encoder, 2 in the decoder."""
    image_tokens: int = 0
    text_tokens: int = 0

    @property
    def video_tokens(self) -> int:
        """Of all halves."""
        return self.halves * self.frames * self.tokens_per_frame

    @property
    def total_tokens(self) -> int:
        """Length of the joint sequence."""
        return self.video_tokens + self.image_tokens + self.text_tokens


@dataclass(frozen=True, kw_only=True)
class FrameMass:
    """Mean attention mass that the queries of a frame give to the keys of a frame; every row of Q sums to 1."""

    layout: FrameLayout
    mass_HQG: Tensor
    """float64; Q = T frames of queries for each half that asks, G = halves * T frames of keys, then image, then text.

    In the last decoder block the decoder half asks alone: nobody reads what the other would become.
    """

    @property
    def query_halves(self) -> int:
        """How many halves ask."""
        return self.mass_HQG.shape[1] // self.layout.frames

    def frames_between(self, query_half: int, key_half: int) -> Tensor:
        """(H, T, T) mass from the frames of one half to those of another (0 decoder or only half, 1 encoder half)."""
        count = self.layout.frames
        rows = slice(query_half * count, (query_half + 1) * count)
        return self.mass_HQG[:, rows, key_half * count : (key_half + 1) * count]

    def own_frame(self, query_half: int = 0, key_half: int | None = None) -> Tensor:
        """Share of each head that stays in the query's own frame, over all halves of keys or one."""
        return self._over_halves(
            key_half, lambda half: self.frames_between(query_half, half).diagonal(dim1=1, dim2=2).mean(1)
        )

    def other_frames(self, query_half: int = 0, key_half: int | None = None) -> Tensor:
        """Inter-frame share of each head: mass on keys of other frames, over all halves of keys or one."""
        every = self._over_halves(key_half, lambda half: self.frames_between(query_half, half).sum(2).mean(1))
        return every - self.own_frame(query_half, key_half)

    def image(self, query_half: int = 0) -> Tensor:
        """Share of each head that goes to image tokens."""
        return self._column(query_half, -2)

    def text(self, query_half: int = 0) -> Tensor:
        """Share of each head that goes to text."""
        return self._column(query_half, -1)

    def _column(self, query_half: int, column: int) -> Tensor:
        count = self.layout.frames
        return self.mass_HQG[:, query_half * count : (query_half + 1) * count, column].mean(1)

    def _over_halves(self, key_half: int | None, share: Callable[[int], Tensor]) -> Tensor:
        halves = range(self.layout.halves) if key_half is None else [key_half]
        return torch.stack([share(half) for half in halves]).sum(0)


@torch.no_grad()
def frame_masses(
    query_BNHA: Tensor, key_BMHA: Tensor, layout: FrameLayout, *, most_scores: int = _MOST_SCORES
) -> Tensor:
    """Softmax attention summed by frames, float64 (B, H, Q, G); see `FrameMass`.

    Only the video queries are looked at, `most_scores` weights at a time. No key may be hidden: give clips one by one, without padding.
    """
    batch, _, heads, width = query_BNHA.shape
    assert key_BMHA.shape[1] == layout.total_tokens, (key_BMHA.shape, layout)
    groups, per_frame, video = layout.halves * layout.frames, layout.tokens_per_frame, layout.video_tokens
    query_BHNA = query_BNHA[:, :video].transpose(1, 2).float()
    asking = query_BHNA.shape[2]
    key_BHAM = key_BMHA.permute(0, 2, 3, 1).float()
    rows = max(1, most_scores // (batch * heads * layout.total_tokens))
    mass = torch.zeros(batch, heads, asking // per_frame, groups + 2, dtype=torch.float64, device=query_BNHA.device)
    frame_of_N = torch.arange(asking, device=query_BNHA.device) // per_frame
    for start in range(0, asking, rows):
        weights = (query_BHNA[:, :, start : start + rows] @ key_BHAM / math.sqrt(width)).softmax(dim=-1)
        image, text = weights[..., video:].split([layout.image_tokens, layout.text_tokens], dim=-1)
        by_frame = weights[..., :video].unflatten(-1, (groups, per_frame)).sum(-1, dtype=torch.float64)
        rest = [part.sum(-1, keepdim=True, dtype=torch.float64) for part in (image, text)]
        mass.index_add_(2, frame_of_N[start : start + rows], torch.cat([by_frame, *rest], dim=-1))
    return mass / per_frame


@dataclass(kw_only=True)
class WatchedBlock:
    """A block and what its attention was seen to do: one `FrameMass` for each clip of each forward pass, in order."""

    kind: BlockKind
    index: int
    """Of all blocks: dual, single, decoder."""
    layout: FrameLayout
    seen: list[FrameMass] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`single 3`, by the index over all blocks."""
        return f"{self.kind} {self.index}"


@contextmanager
def watch_attention(
    model: MotifVideoDiT, layout: FrameLayout, *, most_scores: int = _MOST_SCORES
) -> Iterator[list[WatchedBlock]]:
    """While it is open, every block of `model` notes its attention; `layout` is the encoder's (one half).

    The clips of one pass must be of one shape and without padding. On leaving, the blocks have their own attention again.
    """
    decoder = FrameLayout(frames=layout.frames, tokens_per_frame=layout.tokens_per_frame, halves=2)
    blocks: list[tuple[BlockKind, Any]] = [
        *(("dual", block) for block in model.dual_blocks),
        *(("single", block) for block in model.single_blocks),
        *(("decoder", block) for block in model.decoder_blocks),
    ]
    watched = [
        WatchedBlock(kind=kind, index=index, layout=decoder if kind == "decoder" else layout)
        for index, (kind, _) in enumerate(blocks)
    ]
    before = [block.attention for _, block in blocks]
    try:
        for (_, block), notes, attention in zip(blocks, watched, before, strict=True):
            block.attention = _Meter(notes, attention, most_scores)
        yield watched
    finally:
        for (_, block), attention in zip(blocks, before, strict=True):
            block.attention = attention


class _Meter(Attention):
    """In the place of a block's attention: the same output, and a note of where the video queries looked."""

    def __init__(self, notes: WatchedBlock, attention: Attention, most_scores: int) -> None:
        self._notes = notes
        self._attention = attention
        self._most_scores = most_scores

    def __call__(
        self, query_BNHA: Tensor, key_BMHA: Tensor, value_BMHA: Tensor, visible_BM: Tensor | None = None
    ) -> Tensor:
        assert visible_BM is None, "clips are given without padding"
        layout = self._notes.layout
        if key_BMHA.shape[1] == layout.total_tokens:  # else it is Shared Cross-Attention, which sees text alone
            masses = frame_masses(query_BNHA, key_BMHA, layout, most_scores=self._most_scores)
            self._notes.seen += [FrameMass(layout=layout, mass_HQG=mass.cpu()) for mass in masses]
        return self._attention(query_BNHA, key_BMHA, value_BMHA, visible_BM)

    def packed(self, *_: Any) -> Tensor:
        raise AssertionError("clips of one shape are not packed")
