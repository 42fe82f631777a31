"""The Motif-Video DiT: patch tokens through dual and single encoder blocks, then the DDT decoder, to a velocity.

The forward is explicit, top to bottom, and takes routing and the alignment tap as arguments rather than through hooks: what a training step
computes can be read here. Routed and dense passes are two graphs, by design.

Precision: each part casts its input to the type of its own weights, timesteps and positions stay in float32 up to their embedding. Under
FSDP2 therefore use `MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32, cast_forward_inputs=False)`: casting inputs would round
the timestep (0 to 1000) to steps of 4. Put `fully_shard` on each entry of `dual_blocks`, `single_blocks` and `decoder_blocks`, then on the whole.

Legend: B batch, C channels, T latent frames, Y/X latent rows and columns, L video tokens (K of them inside a route), I image tokens,
E text tokens, S = I + E context tokens, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError
from schemas.model_shape import ModelShape, token_grid
from training.blocks import DualBlock, FeedForward, Modulation, NormalLinear, SingleBlock, ZeroLinear, modulate
from training.rope import rope_table
from training.routing import Route, gather_rope, gather_tokens, scatter_tokens

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

    def forward(
        self,
        latent_BCTYX: Tensor,
        timestep_B: Tensor,
        text_BED: Tensor,
        text_mask_BE: Tensor | None = None,
        image_BID: Tensor | None = None,
        *,
        route: Route | None = None,
        tap: int | None = None,
    ) -> DiTOutput:
        """Predict the velocity.

        `latent_BCTYX` has all input channels (`flow.model_input`), `timestep_B` is 1000 s. `text_mask_BE` is true for real tokens, one at
        least in each row (dropped text is the set's null text, not nothing); None means that all are real, and lets flash attention run.
        `route` drops video tokens in training; `tap` is the encoder block whose output tokens are returned for alignment.
        Raises ConfigError when an argument does not fit the network's shape.
        """
        self._check(latent_BCTYX, text_BED, image_BID, route, tap)
        _, _, frames, rows, columns = latent_BCTYX.shape
        grid = token_grid(frames, rows, columns, self.shape.patch)
        rope = rope_table(grid, self.shape.rope_axes, self.shape.rope_theta, latent_BCTYX.device)
        condition_BD = self.time_embed(timestep_B)
        patches_BLD = self.patch_embed(latent_BCTYX)
        context_BSD, mask_BS, num_image = self._context(text_BED, text_mask_BE, image_BID)
        video_BLD, tapped = self._encode(patches_BLD, context_BSD, condition_BD, rope, mask_BS, num_image, route, tap)
        if self.shape.decoder_blocks:
            video_BLD = self._decode(patches_BLD, video_BLD, condition_BD, rope, route)
        velocity_BCTYX = self._unpatchify(self.final(video_BLD, condition_BD), grid)
        kept_BK = route.kept_BK if route is not None and tap is not None and route.covers(tap) else None
        return DiTOutput(velocity_BCTYX=velocity_BCTYX, tapped_BLD=tapped, kept_BK=kept_BK)

    def _context(
        self, text_BED: Tensor, text_mask_BE: Tensor | None, image_BID: Tensor | None
    ) -> tuple[Tensor, Tensor | None, int]:
        """[image ; text] tokens, their mask (image always visible) and the number of image tokens."""
        text = self.text_embed(text_BED)
        mask = None if text_mask_BE is None else text_mask_BE.to(torch.bool)
        if image_BID is None or self.image_embed is None:
            return text, mask, 0
        image = self.image_embed(image_BID)
        if mask is not None:
            mask = F.pad(mask, (image.shape[1], 0), value=True)
        return torch.cat([image, text], dim=1), mask, image.shape[1]

    def _encode(
        self,
        video_BLD: Tensor,
        context_BSD: Tensor,
        condition_BD: Tensor,
        rope: Tensor,
        mask_BS: Tensor | None,
        num_image: int,
        route: Route | None,
        tap: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """All encoder blocks; the video tokens at the end, and those after the tapped block."""
        tapped = None
        all_video, block_rope = video_BLD, rope
        for index, block in enumerate([*self.dual_blocks, *self.single_blocks]):
            if route is not None and index == route.start:
                all_video, video_BLD = video_BLD, gather_tokens(video_BLD, route.kept_BK)
                block_rope = gather_rope(rope, route.kept_BK)
            if index < self.shape.dual_blocks:
                video_BLD, context_BSD = block(video_BLD, context_BSD, condition_BD, block_rope, mask_BS)
            else:
                video_BLD, context_BSD = block(video_BLD, context_BSD, condition_BD, block_rope, mask_BS, num_image)
            if index == tap:
                tapped = video_BLD
            if route is not None and index == route.end:
                video_BLD, block_rope = scatter_tokens(all_video, route.kept_BK, video_BLD), rope
        return video_BLD, tapped

    def _decode(
        self, patches_BLD: Tensor, encoded_BLD: Tensor, condition_BD: Tensor, rope: Tensor, route: Route | None
    ) -> Tensor:
        """DDT decoder over [patch tokens ; encoder output], 2L tokens without text; only the first half has positions, and leaves."""
        decoded_BLD, block_rope = patches_BLD, rope
        all_decoded, all_encoded = decoded_BLD, encoded_BLD
        for index, block in enumerate(self.decoder_blocks, start=self.shape.encoder_blocks):
            if route is not None and index == route.start:
                all_decoded, decoded_BLD = decoded_BLD, gather_tokens(decoded_BLD, route.kept_BK)
                all_encoded, encoded_BLD = encoded_BLD, gather_tokens(encoded_BLD, route.kept_BK)
                block_rope = gather_rope(rope, route.kept_BK)
            decoded_BLD, encoded_BLD = block(decoded_BLD, encoded_BLD, condition_BD, block_rope, None, 0)
            if route is not None and index == route.end:
                decoded_BLD = scatter_tokens(all_decoded, route.kept_BK, decoded_BLD)
                encoded_BLD = scatter_tokens(all_encoded, route.kept_BK, encoded_BLD)
                block_rope = rope
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
        return self.proj(latent_BCTYX.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


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
