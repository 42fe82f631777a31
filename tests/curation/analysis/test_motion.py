"""Motion of the camera and in the scene: the fit alone, and whole sources whose motion is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from curation.analysis.crops import Box
from curation.analysis.flow import FLOW_GRID, FlowSample
from curation.analysis.motion import clip_motion, whole_picture_motion

PICTURE = Box(0, 0, 144, 256)
PROXY = (144, 256)


def field(right: float, down: float, zoom: float, turn: float) -> NDArray[np.float64]:
    rows, columns = FLOW_GRID
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    y, x = y - y.mean(), x - x.mean()
    return np.stack([right + zoom * x - turn * y, down + zoom * y + turn * x], axis=-1)


def sample(tick: int, vectors: NDArray[np.float64]) -> FlowSample:
    lengths = np.hypot(vectors[..., 0], vectors[..., 1]).astype(np.float16)
    return FlowSample(tick - 1, tick, lengths, vectors.astype(np.float16), np.full(FLOW_GRID, 30, np.float16))


MOVES = st.floats(-4, 4, allow_nan=False)


@given(right=MOVES, down=MOVES, zoom=st.floats(-0.2, 0.2), turn=st.floats(-0.2, 0.2), row=st.integers(0, 11))
def test_the_fit_ignores_an_actor(right: float, down: float, zoom: float, turn: float, row: int) -> None:
    """A quarter of the picture moves on its own; the camera's motion is found all the same, everywhere."""
    camera = field(right, down, zoom, turn)
    seen = camera.copy()
    seen[row : row + 7, 4:25] += (3.0, -5.0)
    found = whole_picture_motion(seen, np.ones(FLOW_GRID, dtype=bool))
    assert np.abs(found - camera).max() < 0.02


def test_cells_without_contrast_do_not_count() -> None:
    pan = field(2.0, 0.0, 0.0, 0.0)
    pan[:12] = 0.0
    contrast = np.full(FLOW_GRID, 30, np.float16)
    contrast[:12] = 0.5
    flow = FlowSample(7, 8, np.hypot(pan[..., 0], pan[..., 1]).astype(np.float16), pan.astype(np.float16), contrast)
    motion = clip_motion([flow], 0, 33, PICTURE, PICTURE, PROXY)
    assert motion is not None and motion.mean == pytest.approx(2 / 3, abs=0.01)
    assert motion.whole == pytest.approx(2, abs=0.01) and motion.local == pytest.approx(0, abs=0.01)
    assert motion.shake is None, "one pair has no change to the next"
    blank = FlowSample(7, 8, flow.lengths, flow.vectors, np.zeros(FLOW_GRID, np.float16))
    empty = clip_motion([blank], 0, 33, PICTURE, PICTURE, PROXY)
    assert empty is not None and (empty.whole, empty.local, empty.shake) == (None, None, None)
    assert clip_motion([flow], 8, 33, PICTURE, PICTURE, PROXY) is None


def test_a_steady_pan_does_not_shake_and_a_hand_does() -> None:
    pan = [sample(tick, field(3.0, 0.0, 0.0, 0.0)) for tick in (8, 16, 24)]
    hand = [sample(tick, field(3.0 * sign, 0.0, 0.0, 0.0)) for tick, sign in ((8, 1), (16, -1), (24, 1))]
    steady, shaken = (clip_motion(flows, 0, 33, PICTURE, PICTURE, PROXY) for flows in (pan, hand))
    assert steady is not None and shaken is not None
    assert steady.whole == pytest.approx(shaken.whole, abs=0.01)
    assert steady.shake == pytest.approx(0, abs=0.01) and shaken.shake == pytest.approx(6, abs=0.02)


def test_displacements_are_of_the_crop_at_256() -> None:
    half = Box(0, 0, 72, 128)
    motion = clip_motion([sample(8, field(1.0, 0.0, 0.0, 0.0))], 0, 33, half, PICTURE, PROXY)
    assert motion is not None and motion.whole == pytest.approx(2, abs=0.01)


def camera_over(photo: Path, kind: str) -> Iterator[NDArray[np.uint8]]:
    """49 frames of 256x144: a pan of 2 pixels a frame, a slow zoom, a trembling hand, or a thing that crosses a fixed picture."""
    picture = Image.open(photo).convert("RGB").resize((640, 430), Image.Resampling.LANCZOS)
    ball = picture.crop((300, 200, 348, 248))
    tremble = np.random.default_rng(5).uniform(-4, 4, (49, 2)).cumsum(axis=0) % 40
    for number in range(49):
        left, top, width = 80.0, 80.0, 256.0
        if kind == "pan":
            left += 2 * number
        elif kind == "zoom":
            width = 256 * 0.99**number
            left, top = left + (256 - width) / 2, top + (144 - width * 144 / 256) / 2
        elif kind == "hand":
            left, top = left + tremble[number, 0], top + tremble[number, 1]
        box = (left, top, left + width, top + width * 144 / 256)
        frame = picture.resize((256, 144), Image.Resampling.BICUBIC, box=box)
        if kind == "actor":
            frame.paste(ball, (4 + 4 * number, 50))
        yield np.array(frame)


def test_camera_and_scene_are_told_apart(media, analyse, write_video, tmp_path: Path) -> None:
    found = {}
    for kind in ("pan", "zoom", "hand", "actor", "still"):
        path = write_video(tmp_path / f"{kind}.mp4", camera_over(media("china"), kind))
        (found[kind],) = analyse(path).clips
    assert found["pan"]["motion_global"] == pytest.approx(2, rel=0.15)
    for kind in ("pan", "zoom", "hand"):
        assert found[kind]["motion_global"] > 3 * found[kind]["motion_local"], kind
    for steady in ("pan", "zoom", "actor", "still"):
        assert found["hand"]["shake"] > 5 * found[steady]["shake"], steady
    actor = found["actor"]
    assert actor["motion_local"] > 3 * max(actor["motion_global"], found["still"]["motion_local"])
    assert max(found["still"][name] for name in ("motion_global", "motion_local", "shake")) < 0.05
    assert {row["motion_global_model"] for row in found.values()} == {"dis-flow-2"}
