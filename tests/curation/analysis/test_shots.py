"""Where shots end, on made films whose cuts are known, and how clips are cut from them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.analysis.samples import SampleStore
from curation.analysis.settings import AnalyzeSettings, ShotSettings
from curation.analysis.shot_detector import FrameFacts
from curation.analysis.shots import Span, clip_spans, find_shots, stitch
from curation.analysis.timeline import read_timeline
from curation.decode import open_source

LENGTHS = (121, 65, 33)


def shots_of(path: Path, folder: Path) -> list[tuple[float, float]]:
    settings = AnalyzeSettings()
    reader = open_source(str(path), kind="video", fps=24.0)
    with SampleStore(folder) as store:
        timeline = read_timeline(reader.frames(), reader.facts, settings, store)
    reader.close()
    return [(shot.first / 24, shot.end / 24) for shot in find_shots(timeline.frames, settings.shots, 24.0)]


def test_hard_cut_and_fade(cases, media, media_cases, tmp_path) -> None:
    def make(target: Path) -> Path:
        sources = [media("bigbuckbunny"), media("carphone"), media("bigbuckbunny")]
        return media_cases.joined_clips(sources, target, starts=(0, 0, 2))

    (first, second, third) = shots_of(cases("joined.mp4", make), tmp_path)
    cut, fade = media_cases.JOINED_CUTS_SECONDS
    assert first == pytest.approx((0.0, cut), abs=1.5 / 24)
    assert second[0] == first[1]
    assert fade - 0.7 <= second[1] < fade < third[0] <= fade + 0.7
    assert third[1] == pytest.approx(9.0)


def test_dissolve(cases, media, media_cases, tmp_path) -> None:
    def make(target: Path) -> Path:
        return media_cases.dissolved_clips(media("carphone"), media("bigbuckbunny"), target)

    (first, second) = shots_of(cases("dissolved.mp4", make), tmp_path)
    assert first[0] == 0 and 1.5 <= first[1] <= 2.5 <= second[0] <= 3.5


def test_known_cuts_of_a_real_clip(media, tmp_path) -> None:
    """bikes.mp4: cuts seen by eye at frames 30, 76, 138, 188 and 242 of 25 fps."""
    starts = [first for first, _ in shots_of(media("bikes"), tmp_path)][1:]
    assert starts == pytest.approx([30 / 25, 76 / 25, 138 / 25, 188 / 25, 242 / 25], abs=1.5 / 24)


def test_one_take_is_one_shot(media, tmp_path) -> None:
    for name in ("bigbuckbunny", "carphone"):
        assert len(shots_of(media(name), tmp_path)) == 1


@given(st.integers(0, 1000), st.integers(0, 700))
def test_clips_fill_a_shot_greedily(first: int, ticks: int) -> None:
    shot = Span(first, first + ticks)
    clips = clip_spans(shot, LENGTHS, 48)
    if ticks < 48:
        assert clips == []
        return
    assert clips[0].first == first and all(clip.ticks in LENGTHS for clip in clips)
    assert all(before.end == after.first for before, after in itertools.pairwise(clips))
    assert 0 <= shot.end - clips[-1].end < min(LENGTHS)
    assert [clip.ticks for clip in clips] == sorted((clip.ticks for clip in clips), reverse=True)


def test_stitching_joins_only_what_may_be_joined() -> None:
    shots = [Span(0, 50), Span(50, 100, joinable=True), Span(110, 160), Span(160, 200, joinable=True)]
    assert stitch(shots, lambda before, after: True) == [Span(0, 100), Span(110, 200)]
    assert stitch(shots, lambda before, after: False) == shots


def test_blank_stretch_and_gap_end_a_shot() -> None:
    frames = [FrameFacts(tick, tick + 1, 0.0 if 40 <= tick < 44 else 120.0) for tick in range(100)]
    frames += [FrameFacts(tick, tick + 1, 120.0) for tick in range(150, 200)]
    shots = find_shots(frames, ShotSettings(), 24.0)
    assert shots == [Span(0, 40), Span(44, 100), Span(150, 200)]


def test_ramps_of_a_fade_are_in_no_shot() -> None:
    levels = (
        [120.0] * 40
        + [120.0 - 10 * i for i in range(1, 13)]
        + [0.0] * 3
        + [10.0 * i for i in range(1, 13)]
        + [120.0] * 40
    )
    frames = [FrameFacts(tick, tick + 1, level) for tick, level in enumerate(levels)]
    before, after = find_shots(frames, ShotSettings(), 24.0)
    assert before.first == 0 and 39 <= before.end <= 42
    assert 64 <= after.first <= 68 and after.end == len(levels)
