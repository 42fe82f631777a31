"""Analysis of whole sources with the real models."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.analysis.marks import MARKS_MODEL
from curation.analysis.models import analysis_fingerprint, load_models, model_names
from curation.analysis.settings import AnalyzeSettings, CropSettings
from curation.analysis.worker import analyze_source
from schemas.ids import clip_id
from schemas.tables import CLIPS, DESCRIPTORS, SCORES, read_table

LOGO = (6, 8, 34, 118)
"""top, left, bottom, right of `media_cases.corner_logo`."""


@pytest.fixture(scope="module")
def joined(cases, media, media_cases) -> Path:
    def make(target: Path) -> Path:
        sources = [media("bigbuckbunny"), media("carphone"), media("bigbuckbunny")]
        return media_cases.joined_clips(sources, target, starts=(0, 0, 2))

    return cases("joined.mp4", make)


def assert_complete(analysed) -> None:
    """Every clip has its descriptors and its strip, and every score a model or a reason."""
    ids = {clip["clip_id"] for clip in analysed.clips}
    assert {row["clip_id"] for row in analysed.descriptors} == ids == {row["clip_id"] for row in analysed.thumbnails}
    for clip in analysed.clips:
        assert clip["clip_id"] == clip_id(clip["content_hash"], clip["start_us"], clip["end_us"])
        for score in SCORES:
            computed = clip[score] is not None
            assert (clip[f"{score}_model"] is not None) == computed != (clip[f"{score}_reason"] is not None)
        for ratio in ("nsfw", "text_area_ratio", "border_area_ratio"):
            assert 0 <= clip[ratio] <= 1
        crop = clip["crop"]
        assert 0 <= crop["top"] < crop["bottom"] <= clip["source_height"]
        assert 0 <= crop["left"] < crop["right"] <= clip["source_width"]
    for row in analysed.descriptors:
        assert np.linalg.norm(np.array(row["descriptor"], dtype=np.float32)) == pytest.approx(1, abs=1e-2)
    for row in analysed.thumbnails:
        strip = Image.open(io.BytesIO(row["jpeg"]))
        assert strip.width % row["num_frames"] == 0
        assert max(strip.height, strip.width // row["num_frames"]) <= 256


def test_joined_clips(joined, analyse) -> None:
    result = analyse(joined)
    assert_complete(result)
    assert result.source["status"] == "ok" and result.source["reason"] is None
    assert [(clip["shot"], clip["frames"]) for clip in result.clips] == [(0, 65), (1, 33), (2, 33)]
    for clip in result.clips:
        assert clip["end_us"] - clip["start_us"] == pytest.approx(clip["frames"] * 1e6 / 24, abs=1)
    for before, after in zip(result.clips, result.clips[1:], strict=False):
        assert before["end_us"] <= after["start_us"]


def test_same_input_same_bytes(joined, analyse) -> None:
    first, second = analyse(joined), analyse(joined)
    for file in first.folder.iterdir():
        assert file.read_bytes() == (second.folder / file.name).read_bytes(), file.name


def test_letterbox_is_cropped_away(cases, media, media_cases, analyse) -> None:
    path = cases("letterbox.mp4", lambda target: media_cases.letterboxed(media("bigbuckbunny"), target))
    (clip,) = analyse(path).clips
    assert clip["crop_flags"] == ["borders"]
    assert clip["crop"]["left"] == 0 and clip["crop"]["right"] == 426
    assert clip["crop"]["top"] == pytest.approx(34, abs=2) and clip["crop"]["bottom"] == pytest.approx(206, abs=2)
    assert clip["border_area_ratio"] == pytest.approx(0.28, abs=0.03)


def test_corner_logo_with_text_is_cropped_away(cases, media, media_cases, analyse) -> None:
    path = cases("logo.mp4", lambda target: media_cases.corner_logo(media("bikes"), target, seconds=8))
    result = analyse(path)
    assert result.clips
    for clip in result.clips:
        crop = clip["crop"]
        assert "overlay" in clip["crop_flags"] and "no_good_crop" not in clip["crop_flags"]
        assert crop["top"] >= LOGO[2] - 4 or crop["left"] >= LOGO[3] - 4
        assert clip["overlay_area_ratio"] == 0
        assert clip["overlay_kinds"] == ["text"]


def test_text_that_stays_in_one_quiet_take_is_named_and_kept(cases, media, media_cases, analyse) -> None:
    """Nothing tells it from a sign before a fixed camera."""
    still = cases("still_flower.mp4", lambda target: media_cases.still_video(media("flower"), target, seconds=3))
    path = cases("logo_one_take.mp4", lambda target: media_cases.corner_logo(still, target, seconds=3))
    (clip,) = analyse(path).clips
    assert clip["crop_flags"] == ["steady_text"] and clip["overlays"] == []


def test_logo_that_cannot_be_cropped_is_flagged(cases, media, media_cases, analyse) -> None:
    path = cases("logo.mp4", lambda target: media_cases.corner_logo(media("bikes"), target, seconds=8))
    settings = AnalyzeSettings(crop=CropSettings(max_cut_ratio=0.05))
    clip = analyse(path, settings=settings).clips[0]
    assert "no_good_crop" in clip["crop_flags"]
    assert 0.01 < clip["overlay_area_ratio"] < 0.08
    assert clip["text_area_ratio"] > 0


def test_mark_without_letters_is_found_over_the_shots(cases, media, media_cases, analyse) -> None:
    path = cases("mark.mp4", lambda target: media_cases.corner_mark(media("bikes"), target, seconds=10))
    result = analyse(path)
    assert result.clips
    for clip in result.clips:
        assert clip["crop"]["bottom"] <= 202 or clip["crop"]["right"] <= 378


def test_still_picture_as_video_does_not_move(cases, media, media_cases, analyse) -> None:
    still = analyse(cases("still.mp4", lambda target: media_cases.still_video(media("flower"), target)))
    assert still.clips and all(clip["motion"] < 0.03 for clip in still.clips)
    moving = analyse(media("carphone"))
    assert all(clip["motion"] > 0.3 for clip in moving.clips)


def test_slide_show_of_long_held_frames(cases, media, media_cases, analyse) -> None:
    """One picture every 1.9 s: every clip finds samples, and most of it stands still."""

    def make(target: Path) -> Path:
        return media_cases.slide_show(media("bigbuckbunny"), target)

    result = analyse(cases("slides.mkv", make))
    assert_complete(result)
    assert result.source["frames_decoded"] == 8
    assert result.clips and all(clip["motion"] < 0.1 for clip in result.clips)


def test_motion_is_pixels_per_frame(cases, media, media_cases, analyse) -> None:
    for pixels in (1, 3):
        name = f"pan{pixels}.mp4"
        path = cases(name, lambda target, p=pixels: media_cases.panned(media("china"), target, pixels_per_frame=p))
        (clip,) = analyse(path).clips
        assert clip["motion"] == pytest.approx(pixels, rel=0.25)


def test_copy_has_the_same_descriptors_and_another_film_has_not(cases, media, media_cases, analyse) -> None:
    def vectors(path: Path) -> np.ndarray:
        return np.array([row["descriptor"] for row in analyse(path).descriptors], dtype=np.float32)

    copy = vectors(cases("copy.mp4", lambda target: media_cases.recoded_copy(media("bigbuckbunny"), target)))
    original, other = vectors(media("bigbuckbunny")), vectors(media("carphone"))
    assert (original @ copy.T).max() > 0.75
    assert (original @ other.T).max() < 0.5


def test_cut_file_with_its_index_in_front_keeps_early_shots(joined, cases, media_cases, analyse) -> None:
    def make(target: Path) -> Path:
        return media_cases.cut_file(joined, target, index_first=True, keep=0.75)

    result = analyse(cases("joined_cut.mp4", make))
    assert_complete(result)
    assert result.source["status"] == "truncated" and "breaks off" in result.source["reason"]
    assert result.clips and result.clips[0]["start_us"] == 0
    assert result.clips[-1]["end_us"] <= result.source["duration_us"] - 1_000_000


@pytest.mark.parametrize("case", ["cut_end", "audio"])
def test_source_without_a_picture_is_one_row_with_a_reason(case, cases, media, media_cases, analyse) -> None:
    def make(target: Path) -> Path:
        if case == "audio":
            return media_cases.audio_only(target)
        return media_cases.cut_file(media("bikes"), target, index_first=False)

    result = analyse(cases(f"{case}.mp4", make))
    assert result.source["status"] == "failed" and result.source["reason"]
    assert result.source["content_hash"] is not None
    assert result.clips == result.descriptors == result.thumbnails == []


def test_missing_file_is_a_row(analyze_models, source_request, media, tmp_path) -> None:
    request = source_request(media("carphone"))
    gone = type(request)(**(request.to_json() | {"path": str(tmp_path / "gone.mp4"), "content_hash": None}))
    analyze_source(gone, AnalyzeSettings(), analyze_models, tmp_path)
    assert (tmp_path / "sources.parquet").exists()


def test_images(media, analyse) -> None:
    result = analyse(media("astronaut"), kind="image")
    assert_complete(result)
    (clip,) = result.clips
    assert (clip["start_us"], clip["end_us"], clip["frames"], clip["source_fps"]) == (0, 0, 1, 0.0)
    assert clip["motion"] is None and clip["motion_reason"] == "image"
    assert len(result.descriptors) == 1 and result.thumbnails[0]["num_frames"] == 1
    (page,) = analyse(media("page"), kind="image").clips
    assert page["text_area_ratio"] > 0.3 > clip["text_area_ratio"]


def test_turned_copy_has_the_shape_of_what_is_shown(cases, media, media_cases, analyse) -> None:
    path = cases("rotated90.mp4", lambda target: media_cases.rotated(media("bigbuckbunny"), target, degrees=90))
    result = analyse(path)
    assert (result.source["height"], result.source["width"]) == (426, 240)
    assert result.clips[0]["crop"]["bottom"] == 426


def test_fingerprint_follows_settings() -> None:
    settings = AnalyzeSettings()
    assert analysis_fingerprint(settings) == analysis_fingerprint(AnalyzeSettings())
    assert analysis_fingerprint(settings) != analysis_fingerprint(AnalyzeSettings(text_long_side=320))


def test_models_that_are_switched_off_are_not_asked_for(media, source_request, tmp_path) -> None:
    """No weights, no descriptors, the other scores as before, and each missing one with its reason."""
    settings = AnalyzeSettings(nsfw=None, text_detector=None, descriptor=None)
    assert model_names(settings) == ()
    assert model_names(AnalyzeSettings(nsfw=None)) == ("text_detector.ppocr_det", "copies.sscd")
    models = load_models(settings, cache_dir=tmp_path / "nothing")
    analyze_source(source_request(media("bikes")), settings, models, tmp_path)
    clips = read_table(tmp_path / "clips.parquet", CLIPS).to_pylist()
    assert clips and read_table(tmp_path / "descriptors.parquet", DESCRIPTORS).num_rows == 0
    for clip in clips:
        for score in ("nsfw", "text_area_ratio"):
            assert (clip[score], clip[f"{score}_model"], clip[f"{score}_reason"]) == (None, None, "switched off")
        assert clip["motion"] > 0 and clip["overlay_area_ratio_model"] == MARKS_MODEL
    assert analysis_fingerprint(settings) != analysis_fingerprint(AnalyzeSettings())


def test_overlays_that_are_switched_off_are_not_looked_for(media, source_request, tmp_path) -> None:
    """Neither the text detector is loaded nor marks searched; everything else is as it was."""
    models_off: dict[str, Any] = {"nsfw": None, "descriptor": None}
    settings = AnalyzeSettings(overlays=False, **models_off)
    assert model_names(settings) == ()
    (found,) = _first_clips(source_request(media("bikes")), settings, tmp_path / "off")
    (looked,) = _first_clips(
        source_request(media("bikes")), AnalyzeSettings(text_detector=None, **models_off), tmp_path / "on"
    )
    for score in ("text_area_ratio", "overlay_area_ratio"):
        assert (found[score], found[f"{score}_model"], found[f"{score}_reason"]) == (None, None, "switched off")
    assert looked["overlay_area_ratio"] is not None
    assert (found["overlays"], found["crop_flags"]) == ([], [])
    assert [found[name] for name in ("motion", "luma", "crop")] == [looked[name] for name in ("motion", "luma", "crop")]


def _first_clips(request: Any, settings: AnalyzeSettings, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    analyze_source(request, settings, load_models(settings, cache_dir=folder / "nothing"), folder)
    return read_table(folder / "clips.parquet", CLIPS).to_pylist()[:1]
