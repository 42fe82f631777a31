"""Where a frozen network runs and with which numbers: `auto` means the GPU that this process may use, else the CPU; it is said in the log.

A worker that was given no share of a GPU sees none, so `auto` follows the resources of its stage. Price: with `auto` the last bits of a result
depend on the machine; name the device where two machines must agree.
"""

from __future__ import annotations

import torch

from schemas.command import say
from schemas.errors import ConfigError

__all__ = ["DTYPES", "pick_device", "pick_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(device: str, *, purpose: str) -> str:
    """`cpu`, `cuda` or `cuda:1` of a setting that may also be `auto`.

    Raises:
        ConfigError: cuda is asked for, and this process sees no GPU.
    """
    seen = torch.cuda.is_available()
    if device.startswith("cuda") and not seen:
        raise ConfigError(
            f"{purpose}: device {device!r}, but this process sees no GPU; give its stage a share (ray.latents.gpus), or set device to cpu or auto"
        )
    chosen = ("cuda" if seen else "cpu") if device == "auto" else device
    if chosen != "cpu":
        say(f"{purpose} runs on {chosen} ({torch.cuda.get_device_name(chosen)})")
    return chosen


def pick_dtype(precision: str) -> torch.dtype:
    """The dtype of `float32` or `bfloat16`; ConfigError for another name."""
    if precision not in DTYPES:
        raise ConfigError(f"precision {precision!r} is unknown; expected one of {', '.join(DTYPES)}")
    return DTYPES[precision]
