"""The rate of new pictures: sequences of changes with a known pattern, and real films shown at other rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.analysis.repeats import effective_fps
from curation.changes import Change
from curation.decode import open_source


@given(
    file_fps=st.sampled_from([24, 25, 30, 50, 60, 120]),
    hold=st.integers(1, 4),
    motion=st.floats(4, 60),
    noise=st.floats(0, 0.2),
    seed=st.integers(0, 1000),
)
def test_every_picture_shown_several_times(file_fps: int, hold: int, motion: float, noise: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    levels = [
        motion * random.uniform(0.6, 1) if number % hold == 0 else min(motion * noise, 3.9) * random.uniform(0, 1)
        for number in range(file_fps * 5)
    ]
    changes = [Change(number * 24 / file_fps, value) for number, value in enumerate(levels)]
    found = effective_fps(changes, 0, 120, 24.0)
    assert found == pytest.approx(file_fps / hold, rel=0.03)


def test_where_nothing_moves_nothing_is_told() -> None:
    assert effective_fps([], 0, 33, 24.0) is None
    assert effective_fps([Change(float(tick), 0.2) for tick in range(33)], 0, 33, 24.0) is None
    moving_at_the_end = [Change(float(tick), 9.0 if tick > 28 else 0.0) for tick in range(33)]
    assert effective_fps(moving_at_the_end, 0, 33, 24.0) is None


def test_a_quiet_scene_with_grain_is_no_repeat_and_a_flash_changes_nothing() -> None:
    quiet = [Change(float(tick), 1.2 + 0.3 * (tick % 3)) for tick in range(121)]
    assert effective_fps(quiet, 0, 121, 24.0) == pytest.approx(24)
    flash = [*quiet[:60], Change(60.0, 150.0), *quiet[61:]]
    assert effective_fps(flash, 0, 121, 24.0) == pytest.approx(24)


@pytest.mark.parametrize(("shown_at", "made_at"), [(60, 24), (48, 24), (24, 12), (24, 8)])
def test_a_film_shown_at_another_rate(shown_at, made_at, media, media_cases, analyse, cases) -> None:
    """Half the frames of a 60 fps file get no tick and are measured all the same."""

    def make(target: Path) -> Path:
        import ffmpeg

        video = ffmpeg.input(f"file:{media('bikes')}", ss=3.1, t=2.3).video.filter("fps", fps=made_at)
        return media_cases.encode(video.filter("fps", fps=shown_at), target, crf=23)

    clips = analyse(cases(f"bikes_{made_at}_at_{shown_at}.mp4", make)).clips
    assert clips
    for clip in clips:
        assert clip["effective_fps"] == pytest.approx(made_at, rel=0.12)
        assert clip["source_fps"] == pytest.approx(shown_at, rel=0.05)


def test_a_photograph_as_video_has_no_rate(cases, media, media_cases, analyse) -> None:
    still = analyse(cases("still.mp4", lambda target: media_cases.still_video(media("flower"), target)))
    assert still.clips
    for clip in still.clips:
        assert clip["effective_fps"] is None and clip["effective_fps_reason"] == "hardly anything moves"


def test_changes_are_measured_only_when_asked_for(media) -> None:
    """One for each decoded frame but the first, with the frame's own time, whatever the rate of the ticks."""
    reader = open_source(str(media("carphone")), kind="video", fps=12.0)
    changes = [change for frame in reader.frames(changes=True) for change in frame.changes]
    count = reader.ending().frames_decoded
    reader.close()
    assert len(changes) == count - 1
    assert np.allclose(np.diff([change.tick for change in changes]), 12 / (30000 / 1001), atol=1e-3)
    assert all(0 < change.levels < 100 for change in changes)
    plain = open_source(str(media("carphone")), kind="video", fps=12.0)
    assert all(frame.changes == () for frame in plain.frames())
    plain.close()
