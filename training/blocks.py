"""The blocks of the Motif-Video DiT: dual-stream, single-stream with Shared Cross-Attention, and the layers they are made of.

Each block is a pure function of its positional arguments (no state, no hooks, no knowledge of routing or loss), so that a checkpointing
wrapper, `torch.compile` or FSDP2 can be put around it. Weights are never shared between blocks; Shared Cross-Attention shares the K and V of
its OWN block: text carries no positions, so they are the text rows of the joint attention's keys and values and cost nothing to compute.

Sources: arXiv 2604.16503; `diffusers.MotifVideoTransformer3DModel`; the query LayerNorm of Shared Cross-Attention as in Motif's ComfyUI node.

Legend: B batch, L video tokens (K of them inside a route), S context tokens [image ; text] (in the decoder: the encoder's video tokens),
E text tokens, N = L + S, D width, H heads, A head width, P rotated pairs; rope is (2, B or 1, L, P).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.model_shape import ModelShape
from training.rope import apply_rope

__all__ = [
    "NORM_EPS",
    "DualBlock",
    "FeedForward",
    "HeadProjection",
    "Modulation",
    "NormalLinear",
    "SharedCrossAttention",
    "SingleBlock",
    "ZeroLinear",
    "attend",
    "modulate",
]

NORM_EPS = 1e-6


class ZeroLinear(nn.Linear):
    """A Linear that `initialize_weights` sets to zero: AdaLN modulations and outputs that must start as nothing."""


class NormalLinear(nn.Linear):
    """A Linear whose weights `initialize_weights` draws with a deviation of 0.02 (DiT's timestep MLP)."""


class Modulation(nn.Module):
    """AdaLN: `SiLU(condition) -> Linear`, split into `parts` tensors of shape (B, 1, D)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = ZeroLinear(width, parts * width)

    def forward(self, condition_BD: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(condition_BD))[:, None].chunk(self.parts, dim=-1)


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.up = nn.Linear(width_in, hidden)
        self.down = nn.Linear(hidden, width_out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(tokens), approximate="tanh"))


class HeadProjection(nn.Module):
    """Queries, keys and values of one stream, queries and keys with a per-head RMSNorm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        self.query_norm = nn.RMSNorm(shape.head_width, eps=NORM_EPS)
        self.key_norm = nn.RMSNorm(shape.head_width, eps=NORM_EPS)

    def forward(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three tensors of shape (B, N, H, A)."""
        query = self.query_norm(self.query(tokens_BND).unflatten(-1, (self.heads, -1)))
        key = self.key_norm(self.key(tokens_BND).unflatten(-1, (self.heads, -1)))
        return query, key, self.value(tokens_BND).unflatten(-1, (self.heads, -1))


class SharedCrossAttention(nn.Module):
    """Text cross-attention inside a single-stream block: a query and an output of its own, keys and values of the block.

    The output starts at zero, so that a network into which it is inserted computes bit for bit what it did before.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.query_norm = nn.LayerNorm(shape.width, eps=NORM_EPS) if shape.sca_query_norm else nn.Identity()
        self.out = ZeroLinear(shape.width, shape.width)

    def forward(
        self,
        attended_BLD: Tensor,
        text_key_BEHA: Tensor,
        text_value_BEHA: Tensor,
        head_norm: nn.Module,
        rope: Tensor,
        text_mask_BE: Tensor | None,
    ) -> Tensor:
        """What is added to the video part of the block's self-attention output; `head_norm` is the block's query RMSNorm."""
        query_BLD = self.query_norm(self.query(attended_BLD))
        query = apply_rope(head_norm(query_BLD.unflatten(-1, (self.heads, -1))), rope)
        return self.out(attend(query, text_key_BEHA, text_value_BEHA, text_mask_BE))


class DualBlock(nn.Module):
    """Video and context with weights of their own and one joint softmax."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, hidden = shape.width, shape.mlp_ratio * shape.width
        self.video_modulation = Modulation(width, 6)
        self.context_modulation = Modulation(width, 6)
        self.video_heads = HeadProjection(shape)
        self.context_heads = HeadProjection(shape)
        self.video_out = nn.Linear(width, width)
        self.context_out = nn.Linear(width, width)
        self.video_mlp = FeedForward(width, hidden, width)
        self.context_mlp = FeedForward(width, hidden, width)

    def forward(
        self, video_BLD: Tensor, context_BSD: Tensor, condition_BD: Tensor, rope: Tensor, context_mask_BS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.video_modulation(condition_BD)
        c_shift, c_scale, c_gate, c_mlp_shift, c_mlp_scale, c_mlp_gate = self.context_modulation(condition_BD)
        query, key, value = self.video_heads(modulate(video_BLD, shift, scale))
        c_query, c_key, c_value = self.context_heads(modulate(context_BSD, c_shift, c_scale))
        attended = attend(
            torch.cat([apply_rope(query, rope), c_query], dim=1),
            torch.cat([apply_rope(key, rope), c_key], dim=1),
            torch.cat([value, c_value], dim=1),
            joint_mask(context_mask_BS, video_BLD.shape[1]),
        )
        video, context = attended.split([video_BLD.shape[1], context_BSD.shape[1]], dim=1)
        video_BLD = video_BLD + gate * self.video_out(video)
        context_BSD = context_BSD + c_gate * self.context_out(context)
        video_BLD = video_BLD + mlp_gate * self.video_mlp(modulate(video_BLD, mlp_shift, mlp_scale))
        context_BSD = context_BSD + c_mlp_gate * self.context_mlp(modulate(context_BSD, c_mlp_shift, c_mlp_scale))
        return video_BLD, context_BSD


class SingleBlock(nn.Module):
    """Both streams through the same weights, attention and MLP in parallel; the DDT decoder's block as well (`cross=False`)."""

    def __init__(self, shape: ModelShape, *, cross: bool) -> None:
        super().__init__()
        width, hidden = shape.width, shape.mlp_ratio * shape.width
        self.modulation = Modulation(width, 3)
        self.heads = HeadProjection(shape)
        self.cross = SharedCrossAttention(shape) if cross else None
        self.mlp_up = nn.Linear(width, hidden)
        self.out = nn.Linear(width + hidden, width)

    def forward(
        self,
        video_BLD: Tensor,
        context_BSD: Tensor,
        condition_BD: Tensor,
        rope: Tensor,
        context_mask_BS: Tensor | None,
        num_image_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        """The first `num_image_tokens` of the context are hidden from the cross-attention."""
        num_video, num_context = video_BLD.shape[1], context_BSD.shape[1]
        shift, scale, gate = self.modulation(condition_BD)
        normed_BND = modulate(torch.cat([video_BLD, context_BSD], dim=1), shift, scale)
        query, key, value = self.heads(normed_BND)
        attended_BND = attend(
            rotate_first(query, rope, num_video),
            rotate_first(key, rope, num_video),
            value,
            joint_mask(context_mask_BS, num_video),
        )
        if self.cross is not None:
            video, context = attended_BND.split([num_video, num_context], dim=1)
            text_mask_BE = None if context_mask_BS is None else context_mask_BS[:, num_image_tokens:]
            first_text = num_video + num_image_tokens
            video = video + self.cross(
                video, key[:, first_text:], value[:, first_text:], self.heads.query_norm, rope, text_mask_BE
            )
            attended_BND = torch.cat([video, context], dim=1)
        mlp_BNM = F.gelu(self.mlp_up(normed_BND), approximate="tanh")
        update_BND = gate * self.out(torch.cat([attended_BND, mlp_BNM], dim=-1))
        video_update, context_update = update_BND.split([num_video, num_context], dim=1)
        # Added after the split: outputs that are views would make FSDP2 warn, since an in-place change of them loses its hooks.
        return video_BLD + video_update, context_BSD + context_update


def modulate(tokens_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """`LN(x) (1 + scale) + shift`, the LayerNorm without weights."""
    return F.layer_norm(tokens_BND, tokens_BND.shape[-1:], eps=NORM_EPS) * (1 + scale_B1D) + shift_B1D


def attend(query_BNHA: Tensor, key_BMHA: Tensor, value_BMHA: Tensor, mask_BM: Tensor | None) -> Tensor:
    """Softmax attention, (B, N, D); keys where `mask_BM` is false are hidden. Each row must show one key at least."""
    mask = None if mask_BM is None else mask_BM[:, None, None]
    output_BHNA = F.scaled_dot_product_attention(
        query_BNHA.transpose(1, 2), key_BMHA.transpose(1, 2), value_BMHA.transpose(1, 2), attn_mask=mask
    )
    return output_BHNA.transpose(1, 2).flatten(2)


def rotate_first(heads_BNHA: Tensor, rope: Tensor, num_video: int) -> Tensor:
    """RoPE on the first `num_video` tokens; the rest have no position."""
    return torch.cat([apply_rope(heads_BNHA[:, :num_video], rope), heads_BNHA[:, num_video:]], dim=1)


def joint_mask(context_mask_BS: Tensor | None, num_video: int) -> Tensor | None:
    """The mask of [video ; context]: video is always visible."""
    return None if context_mask_BS is None else F.pad(context_mask_BS, (num_video, 0), value=True)
