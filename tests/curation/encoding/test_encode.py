"""Latents, teacher features and text states of real clips: exact frames, exact shapes, prefixes, reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.encoding.pixels import ClipRequest, clip_pixels
from curation.encoding.settings import EncodeSettings
from curation.encoding.text import encode_captions, load_text_models, null_text, text_fingerprint
from curation.encoding.worker import EncodeModels, LatentEntry, encode_clips, encoding_fingerprint, load_models
from schemas.errors import ConfigError

SETTINGS = EncodeSettings(sets=("64p", "144p"))
ONE_SET = EncodeSettings(sets=("64p",))


@pytest.fixture(scope="module")
def models() -> EncodeModels:
    from encoders.registry import fetch

    fetch("teacher.efficientnet_lite0")
    return load_models(SETTINGS)


def clip_row(
    name: str, start_s: float, frames: int, crop: tuple[int, int, int, int], fps: float = 24.0
) -> dict[str, Any]:
    top, left, bottom, right = crop
    box = {"top": top, "left": left, "bottom": bottom, "right": right}
    return {"clip_id": name, "start_us": round(start_s * 1e6), "frames": frames, "clip_fps": fps, "crop": box}


def index(folder: Path) -> list[LatentEntry]:
    rows = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
    return [LatentEntry(**(row | {"latent_shape": tuple(row["latent_shape"])})) for row in rows]


def test_two_sets_from_one_source(models, media, source_request, tmp_path) -> None:
    whole = (0, 0, 272, 640)
    rows = [clip_row("b", 5.5, 33, whole), clip_row("a", 0.5, 65, whole)]
    assert encode_clips(source_request(media("bikes")), rows, SETTINGS, models, tmp_path) == []
    entries = index(tmp_path)
    assert [(entry.clip_id, entry.set) for entry in entries] == [
        ("a", "144p"),
        ("a", "64p"),
        ("b", "144p"),
        ("b", "64p"),
    ]
    for entry in entries:
        latent = np.load(tmp_path / f"{entry.clip_id}.{entry.set}.latent.npy", allow_pickle=False)
        teacher = np.load(tmp_path / f"{entry.clip_id}.{entry.set}.teacher.npy", allow_pickle=False)
        frames = (entry.frames - 1) // 4 + 1
        assert entry.has_teacher and latent.dtype == teacher.dtype == np.float16
        assert latent.shape == entry.latent_shape == (frames, 16, entry.height // 8, entry.width // 8)
        assert teacher.shape[:3] == (frames, entry.height // 16, entry.width // 16)
    assert {(entry.height, entry.width) for entry in entries if entry.set == "64p"} == {(48, 144)}


def test_short_clip_is_the_prefix_of_the_long_one(models, media, source_request, tmp_path) -> None:
    found = {}
    for frames in (33, 65):
        folder = tmp_path / str(frames)
        folder.mkdir()
        rows = [clip_row("c", 1.0, frames, (0, 0, 720, 1280))]
        assert encode_clips(source_request(media("bigbuckbunny")), rows, ONE_SET, models, folder) == []
        found[frames] = [np.load(folder / f"c.64p.{kind}.npy") for kind in ("latent", "teacher")]
    for short, long in zip(found[33], found[65], strict=True):
        assert short.tobytes() == long[: len(short)].tobytes()


def test_same_input_same_bytes(models, media, source_request, tmp_path) -> None:
    rows = [clip_row("c", 0.0, 33, (0, 0, 144, 193))]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        encode_clips(source_request(media("carphone")), rows, ONE_SET, models, tmp_path / name)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_decoded_latent_looks_like_the_clip(models, media, source_request, tmp_path) -> None:
    row = clip_row("c", 2.0, 33, (0, 0, 720, 1280))
    encode_clips(source_request(media("bigbuckbunny")), [row], SETTINGS, models, tmp_path)
    decoded = models.codec.decode(np.load(tmp_path / "c.144p.latent.npy"))
    request = ClipRequest.from_row(row, ("144p",))
    (pixels,) = clip_pixels(str(media("bigbuckbunny")), "video", 24.0, [request])
    error = np.square(decoded.astype(float) - pixels.by_set["144p"]).mean()
    assert 10 * np.log10(255**2 / error) > 24


def test_crop_leaves_the_bars_out(cases, media, media_cases) -> None:
    path = cases("letterbox.mp4", lambda target: media_cases.letterboxed(media("bigbuckbunny"), target))
    darkest = []
    for crop in ((0, 0, 240, 426), (36, 0, 204, 426)):
        request = ClipRequest.from_row(clip_row("c", 0.0, 33, crop), ("64p",))
        (pixels,) = clip_pixels(str(path), "video", 24.0, [request])
        darkest.append(pixels.by_set["64p"].mean(axis=(0, 2, 3)).min())
    assert darkest[0] < 5 and darkest[1] > 30


def test_frames_are_those_of_the_timeline(cases, media, media_cases) -> None:
    """An 8 fps source: each picture three times, from the very tick that the clip starts at."""
    path = cases("rate8.mp4", lambda target: media_cases.other_rate(media("carphone"), target, fps=8))
    request = ClipRequest.from_row(clip_row("c", 4 / 24, 33, (0, 0, 240, 426)), ("64p",))
    (pixels,) = clip_pixels(str(path), "video", 24.0, [request])
    frames = pixels.by_set["64p"]
    changes = [tick for tick in range(1, 33) if not np.array_equal(frames[tick], frames[tick - 1])]
    assert np.diff(changes).tolist() == [3] * (len(changes) - 1)
    assert pixels.frames_found == 33


def test_clip_beyond_the_end_is_an_outcome_and_the_others_are_kept(models, media, source_request, tmp_path) -> None:
    rows = [clip_row("good", 0.0, 33, (0, 0, 144, 193)), clip_row("late", 3.0, 65, (0, 0, 144, 193))]
    outcomes = encode_clips(source_request(media("carphone")), rows, ONE_SET, models, tmp_path)
    assert [(row["clip_id"], row["phase"], row["set"]) for row in outcomes] == [("late", "encode", "64p")]
    assert "of 65 frames" in outcomes[0]["reason"]
    assert [entry.clip_id for entry in index(tmp_path)] == ["good"]
    assert not (tmp_path / "late.64p.latent.npy").exists()


def test_source_that_is_gone_makes_outcomes_for_all(models, media, source_request, tmp_path) -> None:
    request = source_request(media("carphone"))
    gone = type(request)(**(request.to_json() | {"path": str(tmp_path / "gone.mp4")}))
    outcomes = encode_clips(gone, [clip_row("c", 0.0, 33, (0, 0, 144, 193))], SETTINGS, models, tmp_path)
    assert {row["set"] for row in outcomes} == {"64p", "144p"}
    assert index(tmp_path) == []


def test_sets_by_clip(models, media, source_request, tmp_path) -> None:
    rows = [clip_row("a", 0.0, 33, (0, 0, 144, 193)), clip_row("b", 2.0, 33, (0, 0, 144, 193))]
    wanted = {"a": ("64p",), "b": ("144p",)}
    encode_clips(source_request(media("carphone")), rows, SETTINGS, models, tmp_path, sets_by_clip=wanted)
    assert [(entry.clip_id, entry.set) for entry in index(tmp_path)] == [("a", "64p"), ("b", "144p")]


def test_image_is_one_latent_frame(models, media, source_request, tmp_path) -> None:
    settings = EncodeSettings(sets=("64p",), teacher_by_branch=dict(SETTINGS.teacher_by_branch) | {"image_real": None})
    row = clip_row("i", 0.0, 1, (0, 0, 512, 512))
    assert encode_clips(source_request(media("astronaut"), "image"), [row], settings, models, tmp_path) == []
    (entry,) = index(tmp_path)
    assert entry.latent_shape[0] == 1 and entry.height == entry.width and not entry.has_teacher
    assert not (tmp_path / "i.64p.teacher.npy").exists()


def test_overlapping_clips_are_refused(media) -> None:
    clips = [
        ClipRequest.from_row(clip_row(name, start, 33, (0, 0, 144, 193)), ("64p",))
        for name, start in (("a", 0), ("b", 1))
    ]
    with pytest.raises(ValueError, match="overlap"):
        list(clip_pixels(str(media("carphone")), "video", 24.0, clips))


def test_captions_become_three_files_and_the_empty_prompt_one_array(tmp_path) -> None:
    from encoders.registry import fetch

    fetch("text.minilm")
    text_models = load_text_models(SETTINGS)
    long = "A rabbit stands on a meadow. Behind it there is a tree."
    captions = {
        "caption_long": long,
        "caption_short": "A rabbit on a meadow.",
        "caption_first": "A rabbit stands on a meadow.",
    }
    encode_captions([{"clip_id": "c", **captions}], SETTINGS, text_models, tmp_path)
    states = {kind: np.load(tmp_path / f"c.text_{kind}.npy", allow_pickle=False) for kind in ("long", "short", "first")}
    assert all(state.dtype == np.float16 and state.shape[1] == text_models.encoder.width for state in states.values())
    assert len(states["long"]) > len(states["first"]) > len(null_text(SETTINGS, text_models)) >= 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "c.text_first.npy",
        "c.text_long.npy",
        "c.text_short.npy",
    ]


def test_fingerprints_follow_what_decides_the_files() -> None:
    base = encoding_fingerprint(SETTINGS, "64p", "video_real")
    assert (
        base
        == encoding_fingerprint(ONE_SET, "64p", "video_real")
        != encoding_fingerprint(SETTINGS, "144p", "video_real")
    )
    other_text = EncodeSettings(text_encoder="t5gemma2")
    assert encoding_fingerprint(other_text, "64p", "video_real") == base
    assert text_fingerprint(other_text) != text_fingerprint(SETTINGS)
    no_teacher = EncodeSettings(teacher_by_branch=dict.fromkeys(SETTINGS.teacher_by_branch))
    assert encoding_fingerprint(no_teacher, "64p", "video_real") != base


def test_unknown_set_and_branch_are_config_errors() -> None:
    from schemas.config import build_config

    with pytest.raises(ConfigError, match="65p"):
        build_config(EncodeSettings, {"sets": ["65p"]}, source="test.yaml")
    with pytest.raises(ConfigError, match="teacher_by_branch"):
        build_config(EncodeSettings, {"teacher_by_branch": {"video_real": None}}, source="test.yaml")
