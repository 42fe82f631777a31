"""Which parameters decay, and which are for Muon: decided by name and number of axes alone, so the same for every layout of ranks.

Decay: weights of two axes or more. Not biases and norms (one axis). Not the embeddings of patches, time, text and image tokens: what they give is
normalised before it is used, so decay would only shrink it, and the gradient through a norm grows as its input shrinks (OLMo 2, arXiv 2501.00656,
leaves embeddings out for that). Muon: matrices inside the blocks. Not the modulations: their input is one vector per clip, so the gradient's rank
is at most the clips of the step, and making it orthogonal would blow up the rest, which is rounding noise. Not embeddings, the output and
projectors, which Muon's authors leave to AdamW as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from training.dit.blocks import FusedLinear
from training.dit.initialization import canonical_name

__all__ = ["decays", "fused_parts", "named_trained", "takes_muon"]

_EMBEDDINGS = ("patch_embed", "time_embed", "text_embed", "image_embed")
_IN_BLOCK = re.compile(r"^(?:dit\.)?(?:dual|single|decoder)_blocks\.\d+\.(?P<inside>.*)$")


def named_trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name to parameter, in the network's order, of those that are not frozen."""
    return {canonical_name(name): found for name, found in network.named_parameters() if found.requires_grad}


def decays(name: str, num_axes: int) -> bool:
    """Whether weight decay applies to a parameter."""
    return num_axes >= 2 and not any(part in _EMBEDDINGS for part in name.split("."))


def takes_muon(name: str, num_axes: int) -> bool:
    """Whether a parameter is one of Muon's."""
    found = _IN_BLOCK.match(name)
    return num_axes == 2 and found is not None and "modulation" not in found["inside"]


def fused_parts(network: nn.Module) -> Mapping[nn.Parameter, int]:
    """Weights that hold several matrices one below another, and how many: queries, keys and values."""
    fused = [module for module in network.modules() if isinstance(module, FusedLinear)]
    return {
        parameter: module.parts
        for module in fused
        for parameter in (module.weight,)
        if isinstance(parameter, nn.Parameter)
    }
