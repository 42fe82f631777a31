"""Low-pass of a latent: every picture is shrunk by averaging and brought back to its size, so that fine detail is gone and the layout stays.

One function for both users: the blur of the first-frame condition in training (`i2v.blur`) and Adaptive Low-Pass Guidance when sampling. Areas are
averaged on the way down (no aliasing) and interpolated bilinearly on the way up; both are deterministic and keep a flat picture as it is. Price: the
size of the small picture is rounded to whole latent cells, so on small latents neighbouring factors may give the same result.

Source of the idea: ALG (arXiv 2506.08456), down- and up-sampling of the condition. The filters are ours.

Legend: Y/X latent rows and columns.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from schemas.errors import ConfigError

__all__ = ["low_pass"]


def low_pass(latent: Tensor, factor: float) -> Tensor:
    """The latent (..., Y, X) seen through a picture `factor` times its size (0 < factor <= 1); 1 returns the very same tensor.

    Computed in float32 and given back in the latent's dtype. Axes before the last two are independent of each other.
    """
    if not 0.0 < factor <= 1.0:
        raise ConfigError(
            f"a low-pass factor of {factor} was asked for; expected above 0 (nothing but the mean) up to 1 (unchanged)"
        )
    if factor == 1.0:
        return latent
    rows, columns = latent.shape[-2:]
    small = (max(1, round(rows * factor)), max(1, round(columns * factor)))
    if small == (rows, columns):
        return latent
    pictures_NCYX = latent.float().reshape(-1, 1, rows, columns)
    shrunk = F.interpolate(pictures_NCYX, size=small, mode="area")
    grown = F.interpolate(shrunk, size=(rows, columns), mode="bilinear", align_corners=False)
    return grown.reshape(latent.shape).to(latent.dtype)
