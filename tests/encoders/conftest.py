"""Real media of the registry as arrays, and the registry with the default weights in place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.registry import Registry

WEIGHTS = (
    "nsfw.opennsfw",
    "text_detector.ppocr_det",
    "copies.sscd",
    "copies.sscd_distilled",
    "teacher.efficientnet_lite0",
    "text.minilm",
)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The default cache, with the default weights; the licences of SSCD are accepted for these tests."""
    found = Registry()
    found.fetch_many(WEIGHTS, accept_licence=True)
    return found


@pytest.fixture(scope="session")
def photo(registry: Registry) -> Callable[[str], NDArray[np.uint8]]:
    """`photo("chelsea")`: RGB pixels of a photograph."""
    from PIL import Image

    def read(name: str) -> NDArray[np.uint8]:
        with Image.open(registry.fetch(f"media.{name}")) as image:
            return np.array(image.convert("RGB"))

    return read


@pytest.fixture(scope="session")
def video(registry: Registry) -> Callable[[str, int], NDArray[np.uint8]]:
    """`video("bikes", 33)`: the first frames, cut to sides that are multiples of 16."""
    import av

    def read(name: str, num_frames: int) -> NDArray[np.uint8]:
        frames: list[NDArray[np.uint8]] = []
        with av.open(str(registry.fetch(f"media.{name}"))) as container:
            for frame in container.decode(video=0):
                frames.append(np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
                if len(frames) == num_frames:
                    break
        stack = np.stack(frames)
        return np.ascontiguousarray(stack[:, : stack.shape[1] // 16 * 16, : stack.shape[2] // 16 * 16])

    return read
