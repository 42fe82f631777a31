"""The Motif-Video DiT: patch tokens through dual and single encoder blocks, then the DDT decoder, to a velocity.

The forward is explicit, top to bottom, and takes routing and the alignment tap as arguments rather than through hooks: what a training step
computes can be read here. Routed and dense passes are two graphs, by design.

Precision: each part casts its input to the type of its own weights, timesteps and positions stay in float32 up to their embedding. Under
FSDP2 therefore use `MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32, cast_forward_inputs=False)`: casting inputs would round
the timestep (0 to 1000) to steps of 4. Put `fully_shard` on each entry of `dual_blocks`, `single_blocks` and `decoder_blocks`, then on the whole.

Legend: B batch, C channels, T latent frames, Y/X latent rows and columns, L video tokens (K of them inside a route), I image tokens,
E text tokens, D width; context is [image ; text] as the layout has it (`training.dit.token_layout`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError
from schemas.model_shape import ModelShape, token_grid
from training.dit.attention import Attention
from training.dit.blocks import DualBlock, Modulation, NormalLinear, SingleBlock, ZeroLinear, modulate
from training.dit.context_embed import ImageEmbed, TextEmbed, embed_context, embed_padded_context
from training.dit.rope import gather_rope, rope_table
from training.dit.routing import Route, gather_tokens, scatter_tokens
from training.dit.token_layout import ContextLayout

__all__ = ["DiTOutput", "MotifVideoDiT"]


class DiTOutput(NamedTuple):
    """What a forward pass gives; a tuple, because FSDP2 looks for the tensors of an output in containers it knows."""

    velocity_BCTYX: Tensor
    """In the type of the weights, unpatchified; the sampler and the loss read it in float32."""
    tapped_BLD: Tensor | None
    """Video tokens right after the tapped block; (B, K, D) when that block is routed."""
    kept_BK: Tensor | None
    """Grid positions of the tapped tokens when the tapped block is routed, None when they are all there."""


class MotifVideoDiT(nn.Module):
    """The network of `shape`. Holds parameters only (no buffers), so it builds on the meta device; see `initialization.build_model`."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.packs_context = True
        """Lay contexts of unequal length end to end. False pads and masks them: shapes then depend on the bucket and the longest text alone."""
        width = shape.width
        self.patch_embed = PatchEmbed(shape)
        self.time_embed = TimeEmbed(shape.timestep_width, width)
        self.text_embed = TextEmbed(shape.text_width, width)
        self.image_embed = ImageEmbed(shape.image_width, width) if shape.image_width is not None else None
        self.dual_blocks = nn.ModuleList(DualBlock(shape) for _ in range(shape.dual_blocks))
        self.single_blocks = nn.ModuleList(
            SingleBlock(shape, cross=shape.shared_cross_attention) for _ in range(shape.single_blocks)
        )
        self.decoder_blocks = nn.ModuleList(SingleBlock(shape, cross=False) for _ in range(shape.decoder_blocks))
        self.final = FinalLayer(shape)

    def set_attention(self, attention: Attention) -> None:
        """Let all blocks attend through this; a block alone is changed by its attribute `attention`."""
        for module in self.modules():  # not the lists' entries, which may be wrappers for checkpointing
            if isinstance(module, DualBlock | SingleBlock):
                module.attention = attention

    def forward(
        self,
        latent_BCTYX: Tensor,
        timestep_B: Tensor,
        text_BED: Tensor,
        text_mask_BE: Tensor | None = None,
        image_BID: Tensor | None = None,
        image_given_B: Tensor | None = None,
        *,
        route: Route | None = None,
        tap: int | None = None,
    ) -> DiTOutput:
        """Predict the velocity.

        `latent_BCTYX` has all input channels (`flow.model_input`), `timestep_B` is 1000 s. `text_mask_BE` is true for real tokens, one at
        least in each row (dropped text is the set's null text, not nothing); `image_given_B` says which clips see their image tokens. None means
        all. Both are read by the host: on the CPU that costs nothing, on another device it waits for it once. `route` drops video tokens in
        training; `tap` is the encoder block whose output tokens are returned for alignment.
        Raises ConfigError when an argument does not fit the network's shape.
        """
        self._check(latent_BCTYX, text_BED, image_BID, route, tap)
        _, _, frames, rows, columns = latent_BCTYX.shape
        grid = token_grid(frames, rows, columns, self.shape.patch)
        rope_1LP2 = rope_table(grid, self.shape.rope_axes, self.shape.rope_theta, latent_BCTYX.device)
        condition_BD = self.time_embed(timestep_B)
        patches_BLD = self.patch_embed(latent_BCTYX)
        embed = embed_context if self.packs_context else embed_padded_context
        context, layout = embed(self.text_embed, self.image_embed, text_BED, text_mask_BE, image_BID, image_given_B)
        video_BLD, tapped = self._encode(patches_BLD, context, condition_BD, rope_1LP2, layout, route, tap)
        if self.shape.decoder_blocks:
            video_BLD = self._decode(patches_BLD, video_BLD, condition_BD, rope_1LP2, route)
        velocity_BCTYX = self._unpatchify(self.final(video_BLD, condition_BD), grid)
        kept_BK = route.kept_BK if route is not None and tap is not None and route.covers(tap) else None
        return DiTOutput(velocity_BCTYX=velocity_BCTYX, tapped_BLD=tapped, kept_BK=kept_BK)

    def _encode(
        self,
        video_BLD: Tensor,
        context: Tensor,
        condition_BD: Tensor,
        rope_1LP2: Tensor,
        layout: ContextLayout,
        route: Route | None,
        tap: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """All encoder blocks; the video tokens at the end, and those after the tapped block."""
        tapped, all_video, rope_BLP2 = None, video_BLD, rope_1LP2
        dense = layout.beside(video_BLD.shape[1])
        tokens, last = dense, self.shape.encoder_blocks - 1
        for index, block in enumerate([*self.dual_blocks, *self.single_blocks]):
            if route is not None and index == route.start:
                all_video, video_BLD = video_BLD, gather_tokens(video_BLD, route.kept_BK)
                rope_BLP2, tokens = gather_rope(rope_1LP2, route.kept_BK), layout.beside(route.kept_BK.shape[1])
            if index < self.shape.dual_blocks:
                video_BLD, context = block(video_BLD, context, condition_BD, rope_BLP2, tokens)
            else:
                video_BLD, context = block(video_BLD, context, condition_BD, rope_BLP2, tokens, index < last)
            if index == tap:
                tapped = video_BLD
            if route is not None and index == route.end:
                video_BLD = scatter_tokens(all_video, route.kept_BK, video_BLD)
                rope_BLP2, tokens = rope_1LP2, dense
        return video_BLD, tapped

    def _decode(
        self, patches_BLD: Tensor, encoded_BLD: Tensor, condition_BD: Tensor, rope_1LP2: Tensor, route: Route | None
    ) -> Tensor:
        """DDT decoder over [patch tokens ; encoder output], 2L tokens without text; only the first half has positions, and leaves."""
        decoded_BLD, rope_BLP2, layout = patches_BLD, rope_1LP2, ContextLayout()
        all_decoded, all_encoded = decoded_BLD, encoded_BLD
        dense = layout.beside(decoded_BLD.shape[1])
        tokens, last = dense, self.shape.total_blocks - 1
        for index, block in enumerate(self.decoder_blocks, start=self.shape.encoder_blocks):
            if route is not None and index == route.start:
                all_decoded, decoded_BLD = decoded_BLD, gather_tokens(decoded_BLD, route.kept_BK)
                all_encoded, encoded_BLD = encoded_BLD, gather_tokens(encoded_BLD, route.kept_BK)
                rope_BLP2, tokens = gather_rope(rope_1LP2, route.kept_BK), layout.beside(route.kept_BK.shape[1])
            decoded_BLD, encoded_BLD = block(decoded_BLD, encoded_BLD, condition_BD, rope_BLP2, tokens, index < last)
            if route is not None and index == route.end:
                decoded_BLD = scatter_tokens(all_decoded, route.kept_BK, decoded_BLD)
                if index < last:  # after the last block nobody reads the second half
                    encoded_BLD = scatter_tokens(all_encoded, route.kept_BK, encoded_BLD)
                rope_BLP2, tokens = rope_1LP2, dense
        return decoded_BLD

    def _unpatchify(self, tokens_BLP: Tensor, grid_TYX: tuple[int, int, int]) -> Tensor:
        """(B, L, C*pt*py*px) to (B, C, T, Y, X)."""
        batch, patch = tokens_BLP.shape[0], self.shape.patch
        blocks = tokens_BLP.reshape(batch, *grid_TYX, self.shape.out_channels, *patch)
        sides = [size * step for size, step in zip(grid_TYX, patch, strict=True)]
        return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, self.shape.out_channels, *sides)

    def _check(self, latent: Tensor, text: Tensor, image: Tensor | None, route: Route | None, tap: int | None) -> None:
        """Refuse what does not fit, in words, before anything is computed."""
        shape = self.shape
        if latent.shape[1] != shape.in_channels:
            raise ConfigError(
                f"latent input has {latent.shape[1]} channels, model.in_channels is {shape.in_channels}; "
                "build it with flow.model_input, from a set whose codec has the channels of the model"
            )
        if text.shape[-1] != shape.text_width:
            raise ConfigError(
                f"text states are {text.shape[-1]} wide, model.text_width is {shape.text_width}; "
                "set it to the width of the set's text encoder (set.json)"
            )
        if image is not None and image.shape[-1] != shape.image_width:
            raise ConfigError(
                f"image tokens are {image.shape[-1]} wide, model.image_width is {shape.image_width}; "
                "set it to the width of the set's image encoder (set.json), or train without image tokens"
            )
        if tap is not None and not 0 <= tap < shape.encoder_blocks:
            raise ConfigError(f"tap is block {tap}, expected an encoder block, 0 to {shape.encoder_blocks - 1}")
        if route is not None and not 0 <= route.start <= route.end < shape.total_blocks:
            raise ConfigError(
                f"the route is blocks {route.start} to {route.end}, the network has blocks 0 to {shape.total_blocks - 1}; "
                "draw it with a RouteSpec that was validated for this shape"
            )
        if route is not None and not self.training:
            raise ConfigError(
                "a route was given in evaluation; routing is for training only: leave it out, or call train()"
            )


class PatchEmbed(nn.Module):
    """Conv3d with kernel = stride = patch; tokens row-major over (T, Y, X)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.proj = nn.Conv3d(shape.in_channels, shape.width, kernel_size=shape.patch, stride=shape.patch)

    def forward(self, latent_BCTYX: Tensor) -> Tensor:
        # Contiguous, because another stride is another compiled graph: tokens that no block has touched would have the convolution's.
        return self.proj(latent_BCTYX.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2).contiguous()


class TimeEmbed(nn.Module):
    """Cosines, then sines, of the timestep at frequencies 10000^(-i/half) in float32; then Linear, SiLU, Linear."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.num_frequencies = frequencies // 2
        self.up = NormalLinear(frequencies, width)
        self.down = NormalLinear(width, width)

    def forward(self, timestep_B: Tensor) -> Tensor:
        index = torch.arange(self.num_frequencies, dtype=torch.float32, device=timestep_B.device)
        # In this order and type as diffusers does: at a timestep of 1000 another rounding moves the waves by 1e-4.
        frequencies = torch.exp(-math.log(10000.0) * index / self.num_frequencies)
        angles = timestep_B.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.down(F.silu(self.up(waves.to(self.up.weight.dtype))))


class FinalLayer(nn.Module):
    """AdaLN (scale first, then shift: diffusers' order) and the projection to one patch of velocity."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        patch_t, patch_y, patch_x = shape.patch
        self.modulation = Modulation(shape.width, 2)
        self.proj = ZeroLinear(shape.width, shape.out_channels * patch_t * patch_y * patch_x)

    def forward(self, video_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        scale, shift = self.modulation(condition_BD)
        return self.proj(modulate(video_BLD, shift, scale))
