"""Where shots end, on made films whose cuts are known, and how clips are cut from them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.analysis.damage import around_damage
from curation.analysis.samples import SampleStore
from curation.analysis.settings import AnalyzeSettings, ShotSettings
from curation.analysis.shot_detector import FrameFacts
from curation.analysis.shots import Span, clip_spans, find_shots, stitch
from curation.analysis.timeline import read_timeline
from curation.decode import open_source
from encoders.registry import fetch

LENGTHS = (121, 65, 33)


def shots_of(path: Path, folder: Path, detector: str = "adaptive") -> list[tuple[float, float]]:
    """Start and end of each shot in seconds, before stitching."""
    settings = AnalyzeSettings(shots=ShotSettings.model_validate({"detector": detector}))
    network = None
    if detector in ("transnetv2", "hybrid"):
        from encoders.transnet import TransNet

        fetch("scenes.transnetv2")
        network = TransNet(device="cpu")
    reader = open_source(str(path), kind="video", fps=24.0)
    with SampleStore(folder) as store:
        timeline = read_timeline(reader.frames(), reader.facts, settings, store, network)
    reader.close()
    return [(shot.first / 24, shot.end / 24) for shot in find_shots(timeline.frames, settings.shots, 24.0)]


DETECTORS = ("adaptive", "content", "transnetv2", "hybrid")


@pytest.mark.parametrize("detector", DETECTORS)
def test_hard_cut_and_fade(detector: str, cases, media, media_cases, tmp_path) -> None:
    def make(target: Path) -> Path:
        sources = [media("bigbuckbunny"), media("carphone"), media("bigbuckbunny")]
        return media_cases.joined_clips(sources, target, starts=(0, 0, 2))

    (first, second, third) = shots_of(cases("joined.mp4", make), tmp_path, detector)
    cut, fade = media_cases.JOINED_CUTS_SECONDS
    assert first == pytest.approx((0.0, cut), abs=1.5 / 24)
    assert second[0] == first[1]
    assert fade - 0.7 <= second[1] < fade < third[0] <= fade + 0.7
    assert third[1] == pytest.approx(9.0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_dissolve(detector: str, cases, media, media_cases, tmp_path) -> None:
    def make(target: Path) -> Path:
        return media_cases.dissolved_clips(media("carphone"), media("bigbuckbunny"), target)

    (first, second) = shots_of(cases("dissolved.mp4", make), tmp_path, detector)
    assert first[0] == 0 and 1.5 <= first[1] <= 2.5 <= second[0] <= 3.5


def test_known_cuts_of_a_real_clip(media, tmp_path) -> None:
    """bikes.mp4: cuts seen by eye at frames 30, 76, 138, 188 and 242 of 25 fps."""
    starts = [first for first, _ in shots_of(media("bikes"), tmp_path)][1:]
    assert starts == pytest.approx([30 / 25, 76 / 25, 138 / 25, 188 / 25, 242 / 25], abs=1.5 / 24)


def test_one_take_is_one_shot(media, tmp_path) -> None:
    for name in ("bigbuckbunny", "carphone"):
        assert len(shots_of(media(name), tmp_path)) == 1


def test_cut_times_come_from_timestamps(cases, media, media_cases, tmp_path) -> None:
    """A rate that changes, a display matrix and timestamps from before zero leave the cuts where they are in seconds."""
    bikes = media("bikes")
    turned = cases("turned.mp4", lambda target: media_cases.rotated(bikes, target))
    early = cases("early.ts", lambda target: media_cases.negative_start(bikes, target))
    for path in (turned, early):
        assert shots_of(path, tmp_path)[0][1] == pytest.approx(30 / 25, abs=1.5 / 24), path.name

    def joined(target: Path) -> Path:
        return media_cases.joined_clips(
            [media("bigbuckbunny"), media("carphone"), media("bikes")], target, starts=(0, 0, 2)
        )

    # 24 frames a second up to 2 s, then 6: the cut at 3 s is within a frame of that.
    uneven = cases("uneven.mp4", lambda target: media_cases.variable_rate(cases("joined3.mp4", joined), target))
    assert [first for first, _ in shots_of(uneven, tmp_path)] == pytest.approx([0, 3.0], abs=4.5 / 24)


def test_a_second_pass_finds_the_same(media, tmp_path) -> None:
    assert shots_of(media("bikes"), tmp_path, "hybrid") == shots_of(media("bikes"), tmp_path, "hybrid")


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


def test_break_drops_late_shots_and_keeps_what_begins_after_it() -> None:
    shots = [Span(0, 50), Span(50, 100), Span(100, 140)]
    assert around_damage(shots, [(140, None)], 24) == shots[:2]
    assert around_damage(shots, [(120, None)], 24) == shots[:1]
    assert around_damage(shots, [(60, 70)], 24) == [Span(70, 100), Span(100, 140)]
    assert around_damage(shots, [(90, 110)], 24) == [Span(0, 50), Span(110, 140)]
    assert around_damage(shots, [(80, 81), (120, None)], 24) == [Span(0, 50)]
