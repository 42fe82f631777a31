"""The bucket grid: which (frames, height, width) a clip may be trained at.

A class fixes the area by its 16:9 size; the other aspects take, among sides that are multiples of 16, the size nearest to that area and aspect
(smallest sum of absolute log errors, the wider one first on a tie). Portrait sizes are the transposed landscape ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

__all__ = [
    "ASPECTS",
    "CLASSES",
    "FPS",
    "FRAME_COUNTS",
    "TOKEN_PATCH",
    "Bucket",
    "bucket_sizes",
    "frame_counts_up_to",
    "latent_frames",
    "nearest_size",
    "pixel_frames",
]

FPS = 24
"""Frames per second that clips are resampled to, by default."""

FRAME_COUNTS = (1, 33, 65, 121)
"""Frames of a bucket: 4k + 1, for causal codecs that take the first frame alone and then groups of four."""

CLASSES = {"64p": (64, 112), "144p": (144, 256), "360p": (368, 640), "480p": (480, 832), "720p": (736, 1280)}
"""Class to its 16:9 (height, width) in pixels. 64p is for tests and demos."""

ASPECTS = {"16:9": 16 / 9, "21:9": 21 / 9, "4:3": 4 / 3, "1:1": 1.0, "3:4": 3 / 4, "9:16": 9 / 16}
"""Width over height."""

TOKEN_PATCH = (1, 2, 2)
"""Latent frames, rows and columns of a token."""

SIDE_MULTIPLE = 16
"""Sides are multiples of this: codec stride 8 times patch 2."""


@dataclass(frozen=True, order=True)
class Bucket:
    """One shape of a micro-batch, in pixels before the codec."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.frames not in FRAME_COUNTS:
            raise ValueError(f"bucket frames {self.frames} must be one of {FRAME_COUNTS}")
        if self.height % SIDE_MULTIPLE or self.width % SIDE_MULTIPLE or self.height <= 0 or self.width <= 0:
            raise ValueError(f"bucket size {self.width}x{self.height} must be positive multiples of {SIDE_MULTIPLE}")

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Inverse of str: `Bucket.parse("33x64x112") == Bucket(33, 64, 112)`."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdigit() for part in parts):
            raise ValueError(f"bucket {text!r} is not of the form FRAMESxHEIGHTxWIDTH, for example 33x64x112")
        return cls(*(int(part) for part in parts))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(T, H/8, W/8) of the latent; channels are the codec's."""
        return (latent_frames(self.frames), self.height // 8, self.width // 8)

    @property
    def video_tokens(self) -> int:
        """Tokens after the 1x2x2 patch."""
        frames, rows, columns = self.latent_shape
        return frames * (rows // 2) * (columns // 2)


def latent_frames(frames: int) -> int:
    """Latent frames of 4k + 1 pixel frames: 1 -> 1, 33 -> 9, 65 -> 17, 121 -> 31."""
    if frames < 1 or frames % 4 != 1:
        raise ValueError(f"frames {frames} must be 4k + 1: the codec takes the first frame alone, then groups of four")
    return (frames - 1) // 4 + 1


def pixel_frames(latent: int) -> int:
    """Inverse of `latent_frames`: 9 -> 33."""
    return 4 * (latent - 1) + 1


def frame_counts_up_to(available_frames: int) -> tuple[int, ...]:
    """Bucket lengths that fit, longest first: `frame_counts_up_to(70) == (65, 33, 1)`."""
    return tuple(count for count in reversed(FRAME_COUNTS) if count <= available_frames)


@cache
def bucket_sizes(class_name: str) -> tuple[tuple[int, int], ...]:
    """All (height, width) of a class, in the order of `ASPECTS`."""
    if class_name not in CLASSES:
        raise ValueError(f"class {class_name!r} is unknown; known: {', '.join(CLASSES)}")
    height, width = CLASSES[class_name]
    sizes = []
    for name, aspect in ASPECTS.items():
        if name == "16:9":
            sizes.append((height, width))
        elif name == "9:16":
            sizes.append((width, height))
        elif aspect < 1:
            landscape = _size_near(height * width, 1 / aspect)
            sizes.append((landscape[1], landscape[0]))
        else:
            sizes.append(_size_near(height * width, aspect))
    return tuple(sizes)


def _size_near(area: int, aspect: float) -> tuple[int, int]:
    """(height, width), multiples of 16, nearest to the area and the aspect."""

    def error(size: tuple[int, int]) -> tuple[float, int]:
        height, width = size
        return (abs(math.log(height * width / area)) + abs(math.log(width / height / aspect)), -width)

    limit = int(math.sqrt(area) * 3 / SIDE_MULTIPLE) + 1
    sides = [SIDE_MULTIPLE * step for step in range(1, limit + 1)]
    return min(((height, width) for height in sides for width in sides), key=error)


def nearest_size(class_name: str, height: int, width: int) -> tuple[int, int]:
    """The class's (height, width) whose aspect is nearest (in log) to a picture's."""
    if height <= 0 or width <= 0:
        raise ValueError(f"picture size {width}x{height} must be positive")
    aspect = math.log(width / height)
    return min(bucket_sizes(class_name), key=lambda size: abs(math.log(size[1] / size[0]) - aspect))
