"""The shape of the Motif-Video DiT, its parameter count and its analytic FLOPs, without torch.

The planner prices a micro-batch with these formulas and the trainer builds the network from the same shape, so both live here. The FLOP count
is of matrix products and attention only (norms, activations and RoPE are below 1 %), a multiply-add counted as two. Price of the analytic
form: it says nothing of kernel efficiency; a measured table (`reelyard-train profile`) is the better source where one exists.

Sources: the architecture of `diffusers.MotifVideoTransformer3DModel`; arXiv 2604.16503 for the block counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.config import StrictConfig

__all__ = ["MOTIF_2B", "TINY", "ForwardFlops", "ModelShape", "token_grid"]


def token_grid(
    latent_frames: int, latent_height: int, latent_width: int, patch: tuple[int, int, int] = (1, 2, 2)
) -> tuple[int, int, int]:
    """Tokens along (T, Y, X) of a latent; `token_grid(31, 92, 160) == (31, 46, 80)`."""
    sides = (latent_frames, latent_height, latent_width)
    if any(side % step for side, step in zip(sides, patch, strict=True)):
        raise ValueError(f"latent sides {sides} are not multiples of the patch {patch}")
    return (latent_frames // patch[0], latent_height // patch[1], latent_width // patch[2])


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """FLOPs of one forward pass of one clip, by part."""

    embedders: int
    dual: int
    single: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.embedders + self.dual + self.single + self.decoder + self.head


class ModelShape(StrictConfig):
    """Every size that decides the network's parameters. Defaults are the released 2B model (arXiv 2604.16503)."""

    width: int = Field(default=1536, gt=0)
    """Token width D."""
    heads: int = Field(default=12, gt=0)
    """Attention heads H; `width == heads * head_width`."""
    head_width: int = Field(default=128, gt=0)
    """Width of one head; the RoPE axes add up to it."""
    dual_blocks: int = Field(default=12, ge=0)
    """Dual-stream blocks (video and context have weights of their own, one joint softmax)."""
    single_blocks: int = Field(default=16, ge=0)
    """Single-stream encoder blocks. diffusers' `num_single_layers` is this plus `decoder_blocks`."""
    decoder_blocks: int = Field(default=8, ge=0)
    """DDT decoder blocks over [decoder stream ; encoder output], 2L tokens."""
    mlp_ratio: int = Field(default=4, gt=0)
    patch: tuple[int, int, int] = (1, 2, 2)
    """Patch along latent (T, Y, X)."""
    in_channels: int = Field(default=33, gt=0)
    """Noisy latent 16, condition latent 16, mask 1."""
    out_channels: int = Field(default=16, gt=0)
    text_width: int = Field(default=2560, gt=0)
    """Width of the text encoder's states (T5Gemma2: 2560, MiniLM: 384)."""
    image_width: int | None = 1152
    """Width of image tokens (SigLIP: 1152), or null for a network without the image embedder."""
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    """Head channels rotated by (T, Y, X)."""
    rope_theta: float = 10000.0
    shared_cross_attention: bool = True
    """Cross-attention to text in the single-stream encoder blocks, with the block's own K/V."""
    sca_query_norm: bool = True
    """LayerNorm on the cross-attention's query input. Sources disagree; the released parameter count has it."""
    sca_source: Literal["block", "own"] = "block"
    """Where the cross-attention's keys and values come from: the block's own self-attention, or (`own`, an ablation) weights of its own."""
    timestep_width: int = Field(default=256, gt=0)
    """Width of the sinusoidal timestep embedding."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width != self.heads * self.head_width:
            raise ValueError(f"width {self.width} must equal heads {self.heads} x head_width {self.head_width}")
        if sum(self.rope_axes) != self.head_width:
            raise ValueError(f"rope_axes {self.rope_axes} must add up to head_width {self.head_width}")
        if any(axis % 2 for axis in self.rope_axes):
            raise ValueError(f"rope_axes {self.rope_axes} must be even: channels are rotated in pairs")
        return self

    @property
    def encoder_blocks(self) -> int:
        """Dual plus single-stream encoder blocks; absolute block indices below this are encoder blocks."""
        return self.dual_blocks + self.single_blocks

    @property
    def total_blocks(self) -> int:
        """All blocks: dual 0..11, single 12..27, decoder 28..35 in the 2B shape."""
        return self.encoder_blocks + self.decoder_blocks

    def parameter_count(self) -> int:
        """Exact number of parameters; `MOTIF_2B.parameter_count() == 1_962_308_032`."""
        d = self.width
        hidden = self.mlp_ratio * d
        square = d * d + d
        patch_volume = self.patch[0] * self.patch[1] * self.patch[2]
        embed = (
            self.in_channels * patch_volume * d
            + d
            + (self.timestep_width * d + d + square)
            + (self.text_width * d + d + square)
        )
        if self.image_width is not None:
            i = self.image_width
            embed += 2 * i + (i * i + i) + (i * d + d) + 2 * d
        feed_forward = d * hidden + hidden + hidden * d + d
        dual = 2 * (6 * d * d + 6 * d) + 8 * square + 4 * self.head_width + 2 * feed_forward
        single = (3 * d * d + 3 * d) + 3 * square + 2 * self.head_width + (d * hidden + hidden) + ((d + hidden) * d + d)
        cross = 2 * square + (2 * d if self.sca_query_norm else 0)
        cross += 2 * square + 2 * self.head_width if self.sca_source == "own" else 0
        head = (2 * d * d + 2 * d) + (d * self.out_channels * patch_volume + self.out_channels * patch_volume)
        blocks = self.dual_blocks * dual + (self.single_blocks + self.decoder_blocks) * single
        return embed + blocks + (self.single_blocks * cross if self.shared_cross_attention else 0) + head

    def forward_flops(
        self,
        video_tokens: int,
        text_tokens: int,
        *,
        image_tokens: int = 0,
        route: tuple[int, int, float] | None = None,
    ) -> ForwardFlops:
        """FLOPs of one clip's forward pass.

        `route` is TREAD's (first block, last block inclusive, dropped share): blocks inside it see `max(1, round(L * (1 - drop)))` video tokens
        (both halves of the decoder's 2L where it lies in the decoder). A training step is three times the forward pass.
        """
        d = self.width
        patch_volume = self.patch[0] * self.patch[1] * self.patch[2]
        context = text_tokens + image_tokens

        def kept(block: int) -> int:
            if route is None or not route[0] <= block <= route[1]:
                return video_tokens
            return max(1, round(video_tokens * (1 - route[2])))

        def stream(tokens: int) -> int:
            return (8 + 4 * self.mlp_ratio) * d * d * tokens + 4 * d * tokens * tokens

        embedders = 2 * self.in_channels * patch_volume * d * video_tokens
        embedders += 2 * (self.timestep_width * d + d * d) + 2 * (self.text_width * d + d * d) * text_tokens
        if self.image_width is not None:
            embedders += 2 * (self.image_width * self.image_width + self.image_width * d) * image_tokens

        def single_stream(video: int, beside: int, leaves: bool) -> int:
            """A single-stream block; where nothing reads the tokens beside the video afterwards, only their keys and values are computed."""
            linear = (8 + 4 * self.mlp_ratio) * d * d * video
            linear += (8 + 4 * self.mlp_ratio if leaves else 6) * d * d * beside
            return linear + 4 * d * (video + (beside if leaves else 0)) * (video + beside) + 6 * d * d

        dual = sum(stream(kept(block) + context) + 24 * d * d for block in range(self.dual_blocks))
        single = 0
        for block in range(self.dual_blocks, self.encoder_blocks):
            tokens = kept(block)
            single += single_stream(tokens, context, block < self.encoder_blocks - 1)
            if self.shared_cross_attention:
                single += 4 * d * d * tokens + 4 * d * tokens * text_tokens
                single += 4 * d * d * text_tokens if self.sca_source == "own" else 0
        decoder = sum(
            single_stream(kept(block), kept(block), block < self.total_blocks - 1)
            for block in range(self.encoder_blocks, self.total_blocks)
        )
        head = 4 * d * d + 2 * d * self.out_channels * patch_volume * video_tokens
        return ForwardFlops(embedders=embedders, dual=dual, single=single, decoder=decoder, head=head)


MOTIF_2B = ModelShape()
"""The released 2B model with the query LayerNorm: 1,962,308,032 parameters."""

TINY = ModelShape(
    width=96,
    heads=4,
    head_width=24,
    dual_blocks=2,
    single_blocks=3,
    decoder_blocks=2,
    text_width=384,
    image_width=None,
    rope_axes=(4, 10, 10),
)
"""A network for tests and the demo on a CPU: every kind of block, MiniLM text width."""
