"""One pass, upright frames on an even timeline, and reasons instead of crashes."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curation.decode import SourceReader, TickRange, TimedFrame, UnreadableSourceError, open_source, tick_spans


def read(path: Path, kind: str = "video", fps: float = 24.0) -> tuple[SourceReader, list[TimedFrame]]:
    reader = open_source(str(path), kind=kind, fps=fps)
    frames = list(reader.frames())
    reader.close()
    return reader, frames


def assert_whole(frames: list[TimedFrame], ticks: int) -> None:
    """Every tick of [0, ticks) belongs to exactly one frame, in order."""
    assert [tick for frame in frames for tick in range(frame.first_tick, frame.end_tick)] == list(range(ticks))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(5, 60))
def test_each_tick_goes_to_the_nearest_frame(gaps_of_90th: list[int], fps: int) -> None:
    times = [Fraction(0)]
    for gap in gaps_of_90th:
        times.append(times[-1] + Fraction(gap, 90))
    spans = list(tick_spans(enumerate_times(times), Fraction(fps), lambda: Fraction(1, 30)))
    ticks = [tick for _, first, end in spans for tick in range(first, end)]
    assert ticks == list(range(len(ticks)))
    for index, first, end in spans:
        for tick in range(first, end):
            distance = abs(times[index] - Fraction(tick, fps))
            assert distance == min(abs(time - Fraction(tick, fps)) for time in times)
    assert Fraction(ticks[-1], fps) < times[-1] + Fraction(1, 30)


def enumerate_times(times: list[Fraction]) -> list[tuple[int, Fraction]]:
    return list(enumerate(times))


def test_gap_in_timestamps_leaves_ticks_without_a_frame() -> None:
    spans = list(tick_spans([("a", Fraction(0)), ("b", Fraction(5))], Fraction(24), lambda: Fraction(1, 24)))
    assert spans == [("a", 0, 48), ("b", 120, 121)]


def test_native_rate_gives_one_tick_per_frame(media) -> None:
    reader, frames = read(media("bikes"), fps=25.0)
    assert_whole(frames, 250)
    assert reader.facts.codec == "h264" and (reader.facts.height, reader.facts.width) == (272, 640)
    ending = reader.ending()
    assert (ending.frames_decoded, ending.duration_us, ending.broken) == (250, 10_000_000, None)
    assert ending.fps == pytest.approx(25.0)


@pytest.mark.parametrize(("fps", "ticks_each"), [(8, 3), (12, 2), (48, 1)])
def test_other_rates_are_resampled_by_timestamp(fps, ticks_each, cases, media, media_cases) -> None:
    path = cases(f"rate{fps}.mp4", lambda target: media_cases.other_rate(media("bigbuckbunny"), target, fps=fps))
    reader, frames = read(path)
    assert {frame.end_tick - frame.first_tick for frame in frames[1:-1]} == {ticks_each}
    assert frames[-1].end_tick == pytest.approx(48, abs=1)
    assert reader.ending().frames_decoded == 2 * fps


def test_variable_rate_keeps_the_clock(cases, media, media_cases) -> None:
    _, frames = read(cases("vfr.mp4", lambda target: media_cases.variable_rate(media("bigbuckbunny"), target)))
    assert_whole(frames, 96)
    assert {frame.end_tick - frame.first_tick for frame in frames if frame.end_tick <= 46} == {1}
    assert {frame.end_tick - frame.first_tick for frame in frames if 50 < frame.first_tick < 90} == {4}


@pytest.mark.parametrize("case", ["negative_start", "missing_timestamps"])
def test_start_before_zero(case, cases, media, media_cases) -> None:
    path = cases(f"{case}.bin", lambda target: getattr(media_cases, case)(media("bigbuckbunny"), target))
    reader, frames = read(path)
    assert_whole(frames, 72)
    assert reader.ending().broken is None


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied_as_ffmpeg_applies_it(degrees, cases, media, media_cases, tmp_path) -> None:
    name = f"rotated{degrees}.mp4"
    path = cases(name, lambda target: media_cases.rotated(media("bigbuckbunny"), target, degrees=degrees))
    reader, frames = read(path)
    picture = frames[0].picture.rgb(reader.facts.height, reader.facts.width)
    output = ffmpeg.output(ffmpeg.input(str(path)), str(tmp_path / "truth.png"), vframes=1)
    output.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True)
    truth = np.asarray(Image.open(tmp_path / "truth.png").convert("RGB"))
    assert picture.shape == truth.shape
    assert np.abs(picture.astype(int) - truth).mean() < 3
    assert np.abs(np.rot90(picture, 2).astype(int) - truth).mean() > 20
    assert reader.facts.rotation_degrees in (90, 180, 270)


def test_pixels_that_are_not_square(cases, media, media_cases) -> None:
    reader, frames = read(cases("anamorphic.mp4", lambda target: media_cases.anamorphic(media("bigbuckbunny"), target)))
    assert (reader.facts.height, reader.facts.width) == (240, 427)
    assert frames[0].picture.rgb(240, 427).shape == (240, 427, 3)


@pytest.mark.parametrize("name", ["a:b %03d 'q' \"d\" $x.mp4", "http:--x\n.mp4", "ü 日本.mp4", b"\xff\xfe.mp4"])
def test_odd_file_names(name, cases, media, media_cases, tmp_path) -> None:
    clip = cases("one second.mp4", lambda target: media_cases.trimmed(media("carphone"), target, seconds=1))
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(clip.read_bytes())
    assert_whole(read(path)[1], 24)


def test_broken_off_file_with_its_index_in_front(cases, media, media_cases) -> None:
    def make(target: Path) -> Path:
        return media_cases.cut_file(media("bikes"), target, index_first=True)

    reader, frames = read(cases("cut_front.mp4", make))
    ending = reader.ending()
    assert ending.broken is not None
    assert 3_000_000 < ending.duration_us < 8_000_000
    assert abs(frames[-1].end_tick / 24 - ending.duration_us / 1e6) < 0.1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda cases, media, path: path, "cannot be read"),
        (lambda cases, media, path: path.write_bytes(b""), "empty"),
        (lambda cases, media, path: path.write_bytes(b"not a film" * 400), "cannot be opened"),
        (lambda cases, media, path: cases.audio_only(path), "no video stream"),
        (lambda cases, media, path: cases.cut_file(media("bikes"), path, index_first=False), "index is missing"),
    ],
    ids=["missing", "empty", "text", "audio", "cut"],
)
def test_no_picture_is_a_reason_without_the_path(make, reason, media, media_cases, tmp_path) -> None:
    path = tmp_path / "case.mp4"
    make(media_cases, media, path)
    with pytest.raises(UnreadableSourceError, match=reason) as caught:
        open_source(str(path), kind="video", fps=24.0)
    assert str(tmp_path) not in str(caught.value)


def test_image_is_one_upright_frame(media, tmp_path) -> None:
    picture = Image.open(media("china"))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    reader, frames = read(tmp_path / "turned.jpg", kind="image")
    assert (reader.facts.height, reader.facts.width) == (picture.width, picture.height)
    truth = np.rot90(np.asarray(picture), 3)
    shown = frames[0].picture.rgb(*truth.shape[:2])
    assert np.abs(shown.astype(int) - truth).mean() < 3
    assert (frames[0].first_tick, frames[0].end_tick) == (0, 1)
    assert reader.ending().fps is None


def test_transparent_and_deep_images(tmp_path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read(tmp_path / "clear.png", kind="image")[1][0].picture.rgb(32, 32).min() == 255
    Image.fromarray(np.full((32, 32), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert set(np.unique(read(tmp_path / "deep.png", kind="image")[1][0].picture.rgb(32, 32))) == {127}


def test_bad_images_are_reasons(media, tmp_path, monkeypatch) -> None:
    data = media("astronaut").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_bytes(b"hello")
    for name in ("cut.png", "text.png"):
        with pytest.raises(UnreadableSourceError) as caught:
            open_source(str(tmp_path / name), kind="image", fps=24.0)
        assert str(tmp_path) not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableSourceError, match="too many pixels"):
        open_source(str(media("astronaut")), kind="image", fps=24.0)


def test_damage_in_the_middle_costs_the_pictures_up_to_the_next_keyframe(cases, media, media_cases) -> None:
    path = cases("damaged.mp4", lambda target: media_cases.damaged_middle(media("bigbuckbunny"), target))
    reader, frames = read(path)
    ending = reader.ending()
    assert ending.damages and ending.broken is None and not ending.whole
    first = ending.damages[0]
    assert first.resumes_tick is not None and 1 <= first.at_tick < first.resumes_tick
    ticks = [tick for frame in frames for tick in range(frame.first_tick, frame.end_tick)]
    assert ticks == sorted(set(ticks)) and ticks[-1] >= 120
    assert not [tick for tick in ticks if first.at_tick <= tick < first.resumes_tick]
    assert "decoded" in str(ending.what_is_missing()) or "damaged" in str(ending.what_is_missing())


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv", "webm", "avi", "gif"])
def test_every_container_gives_the_same_timeline(extension, cases, media, media_cases) -> None:
    options = {"webm": {"vcodec": "libvpx", "preset": None, "crf": 10, "video_bitrate": "1M"}}
    options["avi"] = {"vcodec": "mpeg4", "preset": None, "crf": None}

    def make(target: Path) -> Path:
        if extension == "gif":
            return media_cases.animated(media("carphone"), target, fps=10)
        source = ffmpeg.input(str(media("carphone")), t=3).video.filter("fps", fps=24)
        return media_cases.encode(source, target, **options.get(extension, {}))

    reader, frames = read(cases(f"container.{extension}", make))
    assert_whole(frames, 72)
    assert reader.ending().whole


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv", "webm", "avi"])
@pytest.mark.parametrize("start", [30, 100])
def test_any_part_is_read_as_in_the_whole(extension, start, cases, media, media_cases) -> None:
    options: dict[str, dict[str, object]] = {
        "webm": {"vcodec": "libvpx", "preset": None, "crf": 10, "video_bitrate": "1M"}
    }
    options["avi"] = {"vcodec": "mpeg4", "preset": None, "crf": None}

    def make(target: Path) -> Path:
        return media_cases.encode(ffmpeg.input(str(media("bikes"))).video, target, g=30, **options.get(extension, {}))

    path = cases(f"part.{extension}", make)
    whole = {frame.first_tick: frame for frame in read(path)[1]}
    reader = open_source(str(path), kind="video", fps=24.0)
    own = TickRange(start, start + 24)
    part = list(reader.frames(own, lead=6, tail=6))
    assert [frame.first_tick for frame in part] == [tick for tick in sorted(whole) if start - 6 <= tick < start + 30]
    for frame in part[::7]:
        assert frame.end_tick == whole[frame.first_tick].end_tick
        assert np.array_equal(frame.picture.rgb(64, 150), whole[frame.first_tick].picture.rgb(64, 150))
    assert reader.ending().frames_decoded == 25
    reader.close()


def test_gif_with_long_delays(tmp_path) -> None:
    """Three pictures of 0.7 s each: shown for as long as they say."""
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    pictures[0].save(tmp_path / "slow.gif", save_all=True, append_images=pictures[1:], duration=700, loop=0)
    reader, frames = read(tmp_path / "slow.gif")
    assert [frame.picture.rgb(1, 1).argmax() for frame in frames] == [0, 1, 2]
    assert frames[0].first_tick == 0 and frames[1].end_tick - frames[1].first_tick == pytest.approx(17, abs=1)
    assert reader.ending().frames_decoded == 3 and reader.ending().whole


@pytest.mark.parametrize("name", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_small_picture_is_the_picture(name, cases, media, media_cases) -> None:
    """Quick shrinking shows what full averaging shows, in every layout, and grey is what is grey in it."""

    def make(target: Path) -> Path:
        source = ffmpeg.input(str(media("bikes")), t=1).video
        return media_cases.encode(source, target, pix_fmt=name)

    _, frames = read(cases(f"{name}.mp4", make))
    picture = frames[5].picture
    small, full = picture.small(109, 256), picture.rgb(109, 256)
    assert small.rgb.shape == full.shape and small.grey.shape == full.shape[:2]
    assert np.abs(small.rgb.astype(int) - full).mean() < 4
    grey = full @ np.array([0.299, 0.587, 0.114])
    assert np.abs(small.grey - grey).mean() < 4 and abs(float(small.grey.mean() - grey.mean())) < 1.5
