"""Pictures as decoders give them, turned upright and into pixels of any size only when somebody asks.

A full conversion by swscale averages areas and costs about as much as decoding the frame. The small picture that every frame needs is made
from the planes instead: halved by averaging four pixels as often as it goes, then brought to size by interpolation, then coloured. Price: edges
of the small picture are a little harder than with full averaging, and only common 8-bit formats take the short way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.frames import SmallPicture, UnreadableSourceError

__all__ = ["ArrayPicture", "VideoPicture"]

_HD_HEIGHT = 720
"""Where a file does not name its colour matrix: BT.709 from this height on, BT.601 below, as players do."""
_PLANAR = frozenset(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"))
_FULL_RANGE = 2
_RED_BLUE_709 = (0.2126, 0.0722)
_RED_BLUE_601 = (0.299, 0.114)


class VideoPicture:
    """A decoded frame of PyAV."""

    def __init__(self, frame: Any, rotation_degrees: int) -> None:
        self._frame = frame
        self._rotation = rotation_degrees

    def rgb(self, height: int, width: int) -> NDArray[np.uint8]:
        from av.video.reformatter import Colorspace, Interpolation

        turned = self._rotation in (90, 270)
        matrix = self._frame.colorspace
        if not self._names_its_matrix():
            matrix = Colorspace.ITU709 if self._is_709() else Colorspace.ITU601
        pixels = self._reformatted(
            width=height if turned else width,
            height=width if turned else height,
            format="rgb24",
            src_colorspace=matrix,
            interpolation=Interpolation.AREA,
        )
        return self._upright(pixels)

    def luma(self) -> NDArray[np.uint8]:
        if self._frame.format.name in _PLANAR:
            return _plane(self._frame.planes[0])
        return self._reformatted(format="gray")

    def small(self, height: int, width: int) -> SmallPicture:
        import cv2

        if self._frame.format.name not in _PLANAR:
            rgb = self.rgb(height, width)
            return SmallPicture(rgb, np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8))
        rows, columns = (width, height) if self._rotation in (90, 270) else (height, width)
        planes = [_shrunk(_plane(plane), rows, columns) for plane in self._frame.planes]
        full = self._frame.format.name.startswith("yuvj") or int(self._frame.color_range) == _FULL_RANGE
        coloured = cv2.transform(cv2.merge(planes), _to_rgb_matrix(self._is_709(), full))
        grey = planes[0] if full else cv2.LUT(planes[0], _widening())
        return SmallPicture(self._upright(coloured), self._upright(grey))

    def _reformatted(self, **options: Any) -> NDArray[np.uint8]:
        from av.error import FFmpegError

        try:
            return np.asarray(self._frame.reformat(**options, threads=1).to_ndarray(), dtype=np.uint8)
        except (FFmpegError, ValueError) as error:
            raise UnreadableSourceError(f"pictures of format {self._frame.format.name} cannot be converted") from error

    def _upright(self, pixels: Any) -> NDArray[np.uint8]:
        return np.ascontiguousarray(np.rot90(pixels, self._rotation // 90) if self._rotation else pixels)

    def _names_its_matrix(self) -> bool:
        return int(self._frame.colorspace) in _known_matrices()

    def _is_709(self) -> bool:
        from av.video.reformatter import Colorspace

        if self._names_its_matrix():
            return int(self._frame.colorspace) == int(Colorspace.ITU709)
        return bool(self._frame.height >= _HD_HEIGHT)


@lru_cache(maxsize=1)
def _known_matrices() -> frozenset[int]:
    from av.video.reformatter import Colorspace

    return frozenset(int(item) for item in Colorspace)


@lru_cache(maxsize=1)
def _widening() -> NDArray[np.uint8]:
    """Luma 16 to 235 to 0 to 255."""
    return np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _to_rgb_matrix(is_709: bool, full: bool) -> NDArray[np.float32]:
    """(3, 4) from (Y, Cb, Cr, 1) to (R, G, B), ITU-R BT.601 and BT.709."""
    red, blue = _RED_BLUE_709 if is_709 else _RED_BLUE_601
    green = 1 - red - blue
    luma, chroma, black = (1.0, 1.0, 0.0) if full else (255 / 219, 255 / 224, 16.0)
    to_red, to_blue = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    rows = np.array(
        [
            [luma, 0, to_red],
            [luma, -to_blue * blue / green, -to_red * red / green],
            [luma, to_blue, 0],
        ]
    )
    offset = -rows @ np.array([black, 128.0, 128.0])
    return np.hstack([rows, offset[:, None]]).astype(np.float32)


def _plane(plane: Any) -> NDArray[np.uint8]:
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]


def _shrunk(plane: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Halved while that leaves at least the size asked for, then interpolated."""
    import cv2

    while plane.shape[0] >= 2 * height and plane.shape[1] >= 2 * width:
        rows, columns = plane.shape[0] // 2, plane.shape[1] // 2
        halved = cv2.resize(plane[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
        plane = np.asarray(halved, dtype=np.uint8)
    if plane.shape == (height, width):
        return plane
    return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


class ArrayPicture:
    """Pixels that are already there, RGB."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def rgb(self, height: int, width: int) -> NDArray[np.uint8]:
        import cv2

        rows, columns = self._pixels.shape[:2]
        if (rows, columns) == (height, width):
            return self._pixels
        smaller = height * width <= rows * columns
        method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(self._pixels, (width, height), interpolation=method), dtype=np.uint8)

    def luma(self) -> NDArray[np.uint8]:
        import cv2

        return np.asarray(cv2.cvtColor(self._pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)

    def small(self, height: int, width: int) -> SmallPicture:
        import cv2

        rgb = self.rgb(height, width)
        return SmallPicture(rgb, np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8))
