"""Images by Pillow: the first picture of the file, turned as its EXIF says, on white where it is transparent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.frames import WHOLE, Ending, SourceFacts, TickRange, TimedFrame, UnreadableSourceError
from curation.pictures import ArrayPicture

__all__ = ["ImageReader"]


class ImageReader:
    """A source of one frame at tick 0."""

    def __init__(self, path: str) -> None:
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as stored:
                    codec, size = (stored.format or "unknown").lower(), stored.size
                    upright = ImageOps.exif_transpose(stored)
                    self._pixels = _to_rgb(upright)
        except UnidentifiedImageError as error:
            raise UnreadableSourceError("cannot be opened: not an image that Pillow knows") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UnreadableSourceError("cannot be decoded: it has too many pixels to be safe") from error
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise UnreadableSourceError(f"cannot be decoded: {_without_path(str(error), path)}") from error
        height, width = self._pixels.shape[:2]
        self.facts = SourceFacts(codec, height, width, 90 if (width, height) != size else 0)
        self.expected_seconds: Fraction | None = None

    def frames(
        self, own: TickRange = WHOLE, *, lead: int = 0, tail: int = 0, changes: bool = False
    ) -> Iterator[TimedFrame]:
        if 0 in own:
            yield TimedFrame(ArrayPicture(self._pixels), 0, 1)

    def ending(self) -> Ending:
        return Ending(frames_decoded=1, last=Fraction(0), shown=Fraction(0))

    def close(self) -> None:
        """Nothing is open: the picture was read whole."""


def _to_rgb(image: Any) -> NDArray[np.uint8]:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-9)
        grey = np.clip(values / top * 255.0, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _without_path(message: str, path: str) -> str:
    return message.replace(path, "the file")
