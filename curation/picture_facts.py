"""Light and colour of a few frames, as measured numbers and as the words for them.

Colour names are regions of HSV, so the same pixels always have the same name. Price: names are coarse, and a colour cast shifts them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PictureFacts", "colour_shares", "frames_of_strip", "picture_facts"]

COLOURS = ("black", "grey", "white", "red", "brown", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")

_HUE_ENDS = (15, 40, 70, 165, 200, 260, 300, 345, 361)
_HUE_NAMES = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "red")
_GREY_SATURATION = 0.15
_BLACK_VALUE = 0.18
_WHITE_VALUE = 0.8
_BROWN_VALUE = 0.6
_MIN_SHARE = 0.12
"""A colour is named when at least this share of the pixels has it."""
_COLOURLESS_SHARE = 0.98
_LIGHT_STEP = 16.0
"""Luma difference between first and last frame from which the light is said to change."""


@dataclass(frozen=True)
class PictureFacts:
    """What the pixels of a clip's frames say."""

    colours: tuple[str, ...]
    """Up to three main colours, the most frequent first."""
    upper: str
    """Most frequent colour of the upper half."""
    lower: str
    colourless: bool
    """Nearly every pixel is black, grey or white."""
    contrast: float
    """Standard deviation of luma inside a frame, mean over the frames, 0 to 127.5."""
    light_change: float
    """Luma of the last frame minus that of the first; 0 for one frame."""

    @property
    def light_word(self) -> str:
        """stays the same | grows brighter | grows darker"""
        if abs(self.light_change) < _LIGHT_STEP:
            return "stays the same"
        return "grows brighter" if self.light_change > 0 else "grows darker"


def frames_of_strip(jpeg: bytes, num_frames: int) -> list[NDArray[np.uint8]]:
    """The frames of a thumbnail strip: `num_frames` pictures of equal width side by side.

    Raises:
        ValueError: if the width is no multiple of the number of frames.
    """
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        strip = np.asarray(image.convert("RGB"))
    if num_frames < 1 or strip.shape[1] % num_frames:
        raise ValueError(
            f"thumbnail strip is {strip.shape[1]} pixels wide, which {num_frames} frames cannot share equally"
        )
    return np.split(strip, num_frames, axis=1)


def picture_facts(frames: list[NDArray[np.uint8]]) -> PictureFacts:
    """Measure RGB frames (height, width, 3) of one size."""
    stack = np.stack(frames)
    shares = colour_shares(stack)
    half = stack.shape[1] // 2
    lumas = [_luma(frame) for frame in frames]
    order = sorted(COLOURS, key=lambda name: -shares[name])
    named = [name for name in order if shares[name] >= _MIN_SHARE] or order[:1]
    upper, lower = colour_shares(stack[:, : max(half, 1)]), colour_shares(stack[:, half:])
    return PictureFacts(
        colours=tuple(named[:3]),
        upper=max(COLOURS, key=lambda name: upper[name]),
        lower=max(COLOURS, key=lambda name: lower[name]),
        colourless=shares["black"] + shares["grey"] + shares["white"] >= _COLOURLESS_SHARE,
        contrast=float(np.mean([luma.std() for luma in lumas])),
        light_change=float(lumas[-1].mean() - lumas[0].mean()),
    )


def _luma(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    weighted: NDArray[np.float64] = frame @ np.array([0.2126, 0.7152, 0.0722])
    return weighted


def colour_shares(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Share of the pixels (..., 3) that each colour name has; the shares sum to 1."""
    red, green, blue = (pixels[..., channel].astype(np.float32).ravel() / 255 for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = spread / np.maximum(value, 1e-6)
    safe = np.maximum(spread, 1e-6)
    hue = np.where(
        value == red,
        ((green - blue) / safe) % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    place = np.searchsorted(np.array(_HUE_ENDS), hue * 60, side="right")
    codes = np.array([COLOURS.index(name) for name in _HUE_NAMES])[np.minimum(place, len(_HUE_NAMES) - 1)]
    orange, brown = COLOURS.index("orange"), COLOURS.index("brown")
    codes = np.where((codes == orange) & (value < _BROWN_VALUE), brown, codes)
    grey = np.where(value > _WHITE_VALUE, COLOURS.index("white"), COLOURS.index("grey"))
    codes = np.where(saturation < _GREY_SATURATION, grey, codes)
    codes = np.where(value < _BLACK_VALUE, COLOURS.index("black"), codes)
    counts = np.bincount(codes, minlength=len(COLOURS)) / len(codes)
    return {name: float(count) for name, count in zip(COLOURS, counts, strict=True)}
