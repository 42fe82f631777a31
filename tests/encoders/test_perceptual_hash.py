"""The perceptual hash: near for the same picture encoded again, far for others, and like nothing where there is nothing to see."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoders.perceptual_hash import PerceptualHash
from encoders.registry import fetch


def picture(name: str) -> NDArray[np.uint8]:
    with Image.open(fetch(f"media.{name}")) as image:
        return np.array(image.convert("RGB"))


def again(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the size, lighter, JPEG at quality 40."""
    stream = BytesIO()
    image = Image.fromarray(frame).resize((frame.shape[1] // 2, frame.shape[0] // 2))
    image.point(lambda value: min(255, round(value * 1.1) + 5)).save(stream, "JPEG", quality=40)
    with Image.open(BytesIO(stream.getvalue())) as copy:
        return np.array(copy)


def test_copies_are_near_and_others_far() -> None:
    frames = [picture(name) for name in ("chelsea", "astronaut", "china", "coffee", "rocket")]
    hashing = PerceptualHash()
    originals = hashing.describe(frames)
    assert originals.shape == (5, hashing.width) and originals.dtype == np.float16
    assert np.allclose(np.linalg.norm(originals.astype(np.float64), axis=1), 1)
    cosines = hashing.describe([again(frame) for frame in frames]).astype(np.float64) @ originals.astype(np.float64).T
    assert np.diag(cosines).min() > 0.75
    assert cosines[~np.eye(len(frames), dtype=bool)].max() < 0.4


def test_the_cosine_counts_the_bits_that_differ() -> None:
    one, other = PerceptualHash().describe([picture("chelsea"), picture("coffee")]).astype(np.float64)
    differ = np.count_nonzero(np.sign(one) != np.sign(other))
    assert one @ other == 1 - 2 * differ / PerceptualHash.num_bits
    assert np.count_nonzero(one) == PerceptualHash.num_bits


def test_a_frame_without_detail_is_like_nothing() -> None:
    flat = np.full((90, 160, 3), 17, dtype=np.uint8)
    noisy = flat + np.random.default_rng(0).integers(0, 3, flat.shape, dtype=np.uint8)
    assert not PerceptualHash().describe([flat, noisy]).any()
    assert PerceptualHash().describe([]).shape == (0, PerceptualHash.width)


def test_a_hash_depends_on_its_frame_alone() -> None:
    frames = [picture("chelsea"), picture("coffee")]
    assert np.array_equal(PerceptualHash().describe(frames)[1], PerceptualHash().describe(frames[1:])[0])
