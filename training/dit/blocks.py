"""The blocks of the Motif-Video DiT: dual-stream, single-stream with Shared Cross-Attention, and the layers they are made of.

Each block is a pure function of its positional arguments (no state, no hooks, no knowledge of routing or loss), so that a checkpointing
wrapper, `torch.compile` or FSDP2 can be put around it. Weights are never shared between blocks; Shared Cross-Attention shares the K and V of
its OWN block: text carries no positions, so they are the text rows of the joint attention's keys and values and cost nothing to compute.

Sources: arXiv 2604.16503; `diffusers.MotifVideoTransformer3DModel`; the query LayerNorm of Shared Cross-Attention as in Motif's ComfyUI node.

Legend: B batch, L video tokens (K of them inside a route), S context tokens [image ; text] (in the decoder: the encoder's video tokens),
E text tokens, D width, H heads, A head width, P rotated pairs. How context and joined tokens lie in memory is the layout's business
(`training.dit.token_layout`): their leading axes are written `...` here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.model_shape import ModelShape
from training.dit.attention import Attention, FlashAttention
from training.dit.rope import apply_rope
from training.dit.token_layout import TokenLayout

__all__ = [
    "NORM_EPS",
    "DualBlock",
    "FeedForward",
    "FusedLinear",
    "HeadProjection",
    "Modulation",
    "NormalLinear",
    "SharedCrossAttention",
    "SingleBlock",
    "ZeroLinear",
    "modulate",
]

NORM_EPS = 1e-6

_ATTENTION = FlashAttention()


class ZeroLinear(nn.Linear):
    """A Linear that `initialize_weights` sets to zero: AdaLN modulations and outputs that must start as nothing."""


class NormalLinear(nn.Linear):
    """A Linear whose weights `initialize_weights` draws with a deviation of 0.02 (DiT's timestep MLP)."""


class FusedLinear(nn.Linear):
    """Several Linears of one input as one product; their outputs, and their rows of the weight, lie one after another."""

    def __init__(self, width_in: int, width_out: int, parts: int) -> None:
        super().__init__(width_in, parts * width_out)
        self.parts = parts


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
    """Queries, keys and values of one stream from one product, queries and keys with a per-head RMSNorm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = FusedLinear(shape.width, shape.width, 3)
        self.query_norm = nn.RMSNorm(shape.head_width, eps=NORM_EPS)
        self.key_norm = nn.RMSNorm(shape.head_width, eps=NORM_EPS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three tensors (..., H, A) of tokens (..., D)."""
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.query_norm(query), self.key_norm(key), value


class SharedCrossAttention(nn.Module):
    """Text cross-attention inside a single-stream block: a query and an output of its own, keys and values of the block.

    The output starts at zero, so that a network into which it is inserted computes bit for bit what it did before. `sca_source: own` gives it
    keys, values and head norms of its own, which ungrounds it: an ablation, and what diffusers' un-shared weights may have been trained into.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.query_norm = nn.LayerNorm(shape.width, eps=NORM_EPS) if shape.sca_query_norm else nn.Identity()
        self.own = TextHeads(shape) if shape.sca_source == "own" else None
        self.out = ZeroLinear(shape.width, shape.width)

    def forward(
        self,
        attended_BLD: Tensor,
        text_key: Tensor,
        text_value: Tensor,
        head_norm: nn.Module,
        rope_BLP2: Tensor,
        layout: TokenLayout,
        attention: Attention,
    ) -> Tensor:
        """What is added to the video part of the block's self-attention output; `head_norm` is the RMSNorm of queries that goes with the keys."""
        query_BLD = self.query_norm(self.query(attended_BLD))
        query_BLHA = apply_rope(head_norm(query_BLD.unflatten(-1, (self.heads, -1))), rope_BLP2)
        return self.out(layout.text_attention(attention, query_BLHA, text_key, text_value))


class TextHeads(nn.Module):
    """Keys and values of an ungrounded cross-attention, with the head norms of its queries and keys."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.key_value = FusedLinear(shape.width, shape.width, 2)
        self.query_norm = nn.RMSNorm(shape.head_width, eps=NORM_EPS)
        self.key_norm = nn.RMSNorm(shape.head_width, eps=NORM_EPS)

    def forward(self, normed_text: Tensor) -> tuple[Tensor, Tensor]:
        key, value = (part.unflatten(-1, (self.heads, -1)) for part in self.key_value(normed_text).chunk(2, dim=-1))
        return self.key_norm(key), value


class DualBlock(nn.Module):
    """Video and context with weights of their own and one joint softmax."""

    attention: Attention = _ATTENTION
    """What attends; see `MotifVideoDiT.set_attention`."""

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
        self, video_BLD: Tensor, context: Tensor, condition_BD: Tensor, rope_BLP2: Tensor, layout: TokenLayout
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.video_modulation(condition_BD)
        c_shift, c_scale, c_gate, c_mlp_shift, c_mlp_scale, c_mlp_gate = map(
            layout.spread, self.context_modulation(condition_BD)
        )
        query, key, value = self.video_heads(modulate(video_BLD, shift, scale))
        c_query, c_key, c_value = self.context_heads(modulate(context, c_shift, c_scale))
        attended = layout.self_attention(
            self.attention,
            layout.join(apply_rope(query, rope_BLP2), c_query),
            layout.join(apply_rope(key, rope_BLP2), c_key),
            layout.join(value, c_value),
        )
        video_attended, context_attended = layout.part(attended)
        video_BLD = torch.addcmul(video_BLD, gate, self.video_out(video_attended))
        context = torch.addcmul(context, c_gate, self.context_out(context_attended))
        video_BLD = torch.addcmul(video_BLD, mlp_gate, self.video_mlp(modulate(video_BLD, mlp_shift, mlp_scale)))
        context = torch.addcmul(context, c_mlp_gate, self.context_mlp(modulate(context, c_mlp_shift, c_mlp_scale)))
        return video_BLD, context


class SingleBlock(nn.Module):
    """Both streams through the same weights, attention and MLP in parallel; the DDT decoder's block as well (`cross=False`).

    The streams stay apart but for the softmax, so that positions, gates and the cross-attention touch only the tokens that they concern. Where
    nothing reads the context afterwards (`context_leaves=False`: the last block of the encoder and of the decoder), its queries, MLP and output are
    not computed: half of the decoder's last block.
    """

    attention: Attention = _ATTENTION
    """What attends; see `MotifVideoDiT.set_attention`."""

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
        context: Tensor,
        condition_BD: Tensor,
        rope_BLP2: Tensor,
        layout: TokenLayout,
        context_leaves: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Video and context; None in the context's place where it does not leave."""
        shift, scale, gate = self.modulation(condition_BD)
        c_shift, c_scale, c_gate = map(layout.spread, (shift, scale, gate))
        normed_BLD, normed_context = modulate(video_BLD, shift, scale), modulate(context, c_shift, c_scale)
        query, key, value = self.heads(normed_BLD)
        c_query, c_key, c_value = self.heads(normed_context)
        query, key = apply_rope(query, rope_BLP2), layout.join(apply_rope(key, rope_BLP2), c_key)
        value = layout.join(value, c_value)
        if context_leaves:
            attended = layout.self_attention(self.attention, layout.join(query, c_query), key, value)
            attended_BLD, attended_context = layout.part(attended)
            leaving = torch.addcmul(context, c_gate, self._output(attended_context, normed_context))
        else:
            leaving = None
            attended_BLD = layout.video_attention(self.attention, query, key, value)
        if self.cross is not None:
            if self.cross.own is None:
                text_key, text_value, head_norm = layout.text_of(c_key), layout.text_of(c_value), self.heads.query_norm
            else:
                text_key, text_value = self.cross.own(layout.text_of(normed_context))
                head_norm = self.cross.own.query_norm
            attended_BLD = attended_BLD + self.cross(
                attended_BLD, text_key, text_value, head_norm, rope_BLP2, layout, self.attention
            )
        return torch.addcmul(video_BLD, gate, self._output(attended_BLD, normed_BLD)), leaving

    def _output(self, attended: Tensor, normed: Tensor) -> Tensor:
        """The projection of [attention ; MLP], as two products: the wide concatenation (3.5 GB in a 720p decoder block) is never made."""
        of_attended, of_hidden = self.out.weight.split([attended.shape[-1], self.mlp_up.out_features], dim=1)
        hidden = F.gelu(self.mlp_up(normed), approximate="tanh")
        return F.linear(attended, of_attended, self.out.bias) + F.linear(hidden, of_hidden)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`LN(x) (1 + scale) + shift`, the LayerNorm without weights."""
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS), 1 + scale)
