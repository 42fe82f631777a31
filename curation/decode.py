"""One pass over a source: upright frames on an even timeline, in bounded memory, with an honest ending.

A tick is one frame of the timeline that clips are cut from (24 per second by default). Each decoded frame is given the ticks that it is the
nearest frame of, by timestamps, so variable frame rates, negative starts and low rates need no special case: a frame of an 8 fps source covers
three ticks, and half the frames of a 48 fps source cover none and are not handed on. Analysis and encoding read through this one
function, so a tick means the same picture in both. Rotation metadata and non-square pixels are applied: sizes are as displayed.

Decoding is single-threaded, so that workers scale by processes and a damaged file gives the same pictures everywhere. Price: a lone large file
uses one core. Only this module knows PyAV and Pillow.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError

__all__ = ["Ending", "Picture", "SourceFacts", "SourceReader", "TimedFrame", "UnreadableSourceError"]
__all__ += ["open_source", "tick_spans"]

T = TypeVar("T")

_SHORT_BY_SECONDS = Fraction(1, 2)
"""A file that ends this much before its own index says is broken off; containers round by less."""
_BAD_PACKETS_AT_START = 64
"""Packets that may fail before the first picture: streams cut from a broadcast start between keyframes."""
_MAX_HOLD = Fraction(2)
"""Seconds that a frame is shown at most; a longer gap in the timestamps leaves ticks without a frame, which end the shot."""
_HD_HEIGHT = 720
"""Where a file does not name its colour matrix: BT.709 from this height on, BT.601 below, as players do."""


class UnreadableSourceError(DataError):
    """No picture can be had from a file; the message is the reason that the sources table shows, without the path."""


class Picture(Protocol):
    """One upright picture, converted to pixels only when asked."""

    def rgb(self, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 (height, width, 3), scaled with area averaging; UnreadableSourceError for pixels of an unknown kind."""


@dataclass(frozen=True)
class SourceFacts:
    """What the container says, as displayed."""

    codec: str
    height: int
    width: int
    rotation_degrees: int
    """How far the stored picture is turned counter-clockwise to be upright: 0, 90, 180 or 270."""


@dataclass(frozen=True)
class TimedFrame:
    """A picture and the half-open range of ticks that it stands for."""

    picture: Picture
    first_tick: int
    end_tick: int


@dataclass(frozen=True)
class Ending:
    """How the pass went, known after the last frame."""

    frames_decoded: int
    duration_us: int
    """From the first frame to the end of the last one; where the file breaks, if it does."""
    fps: float | None
    """Mean, from timestamps; None for an image."""
    broken: str | None
    """Why the file ends early, or None."""


class SourceReader(Protocol):
    """An opened source. Iterate `frames` once, then ask `ending`."""

    facts: SourceFacts

    def frames(self) -> Iterator[TimedFrame]: ...

    def ending(self) -> Ending: ...

    def close(self) -> None: ...


def open_source(path: str, *, kind: str, fps: float) -> SourceReader:
    """Open a video or an image; `fps` is the rate of the timeline.

    Raises:
        UnreadableSourceError: if not one picture can be had from it.
    """
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UnreadableSourceError(f"cannot be read: {error.strerror}") from error
    if size == 0:
        raise UnreadableSourceError("cannot be opened: the file is empty")
    if kind == "image":
        return _ImageReader(path)
    return _VideoReader(path, Fraction(fps).limit_denominator(1001 * 240))


def tick_spans(
    timed: Iterable[tuple[T, Fraction]], fps: Fraction, last_seconds: Callable[[], Fraction]
) -> Iterator[tuple[T, int, int]]:
    """Give each tick of the timeline to the nearest item; items without a tick are left out.

    `timed`: items with strictly rising seconds, the first at 0. `last_seconds`, asked after the last item: how long that one is shown. An item is
    handed on when the next one is there, because its last tick lies half-way between them. Ticks further than `_MAX_HOLD` after an item
    are nobody's.
    """
    held: tuple[T, Fraction, int] | None = None
    for item, time in timed:
        first = 0
        if held is not None:
            middle = (held[1] + time) / 2
            gap = time - held[1] > _MAX_HOLD
            end = math.ceil((held[1] + _MAX_HOLD if gap else middle) * fps)
            if end > held[2]:
                yield held[0], held[2], end
            first = math.ceil((time if gap else middle) * fps)
        held = (item, time, first)
    if held is not None:
        # 0.99: so that the tick which is exactly at the end belongs to nobody, whatever the rounding of timestamps.
        end = math.ceil((held[1] + last_seconds() * Fraction(99, 100)) * fps)
        if end > held[2]:
            yield held[0], held[2], end


class _VideoPicture:
    def __init__(self, frame: Any, rotation_degrees: int) -> None:
        self._frame = frame
        self._rotation = rotation_degrees

    def rgb(self, height: int, width: int) -> NDArray[np.uint8]:
        from av.error import FFmpegError
        from av.video.reformatter import Colorspace, Interpolation

        turned = self._rotation in (90, 270)
        matrix = self._frame.colorspace
        if int(matrix) not in {int(item) for item in Colorspace}:
            matrix = Colorspace.ITU709 if self._frame.height >= _HD_HEIGHT else Colorspace.ITU601
        try:
            pixels = self._frame.reformat(
                width=height if turned else width,
                height=width if turned else height,
                format="rgb24",
                src_colorspace=matrix,
                interpolation=Interpolation.AREA,
                threads=1,
            ).to_ndarray()
        except (FFmpegError, ValueError) as error:
            raise UnreadableSourceError(f"pictures of format {self._frame.format.name} cannot be converted") from error
        return np.ascontiguousarray(np.rot90(pixels, self._rotation // 90))


class _VideoReader:
    """PyAV over the first video stream that is not a cover picture."""

    def __init__(self, path: str, fps: Fraction) -> None:
        import av

        self._fps = fps
        try:
            # file: keeps names like a:b.mp4 from being read as addresses; playlists may not reach for the network.
            self._container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UnreadableSourceError(f"cannot be opened: {reason} (no media, or the index is missing)") from error
        try:
            self._stream = self._video_stream()
            self._declared = self._declared_seconds()
            self._packets = self._decoded()
            self._first = self._first_frame()
            self.facts = self._facts()
        except BaseException:
            self._container.close()
            raise

    def _video_stream(self) -> Any:
        import av

        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            raise UnreadableSourceError("cannot be decoded: there is no video stream")
        if streams[0].codec_context is None:
            raise UnreadableSourceError("cannot be decoded: no decoder for its codec")
        streams[0].codec_context.thread_count = 1
        return streams[0]

    def _first_frame(self) -> Any:
        self._count, self._last, self._delta = 0, Fraction(0), Fraction(0)
        self._broken: str | None = None
        first = next(self._packets, None)
        if first is None:
            raise UnreadableSourceError(f"cannot be decoded: no picture in it ({self._broken or 'no packets'})")
        self._zero: Fraction | None = None
        return first

    def _facts(self) -> SourceFacts:
        frame, aspect = self._first, self._stream.sample_aspect_ratio
        rotation = round(frame.rotation / 90) * 90 % 360
        height, width = frame.height, frame.width
        if aspect and aspect > 0 and aspect != 1:
            width = max(1, round(width * float(aspect)))
        if rotation in (90, 270):
            height, width = width, height
        return SourceFacts(self._stream.codec_context.name, height, width, rotation)

    def _decoded(self) -> Iterator[Any]:
        """Frames in display order until the end or the first damage; why it stopped is in `_broken`."""
        import av

        failures, seen = 0, 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    failures += 1
                    if seen or failures > _BAD_PACKETS_AT_START:
                        self._broken = f"a packet cannot be decoded: {error.strerror}"
                        return
                    self._broken = str(error.strerror)
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        if seen:
                            self._broken = "a damaged picture"
                            return
                        continue
                    seen += 1
                    self._broken = None
                    yield frame
        except (av.error.FFmpegError, OSError) as error:
            self._broken = f"the container breaks off: {error.strerror}"

    def frames(self) -> Iterator[TimedFrame]:
        for frame, first, end in tick_spans(self._timed(), self._fps, lambda: self._delta):
            yield TimedFrame(_VideoPicture(frame, self.facts.rotation_degrees), first, end)

    def _timed(self) -> Iterator[tuple[Any, Fraction]]:
        """Frames with strictly rising seconds since the first; a frame without a timestamp follows at the mean rate.

        Where the first frames have none, the first timestamp follows them too.
        """
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._delta = 1 / Fraction(rate) if rate else 1 / self._fps
        mean, frame = self._delta, self._first
        while frame is not None:
            following = self._last + mean if self._count else Fraction(0)
            if frame.pts is not None and self._zero is None:
                self._zero = frame.pts * frame.time_base - following
            time = following if frame.pts is None or self._zero is None else frame.pts * frame.time_base - self._zero
            if self._count == 0 or time > self._last:
                if self._count:
                    self._delta = min(time - self._last, _MAX_HOLD)
                self._last = time
                self._count += 1
                yield frame, time
            frame = next(self._packets, None)

    def ending(self) -> Ending:
        end = self._last + self._delta
        broken = self._broken
        if broken is None and self._declared is not None and end < self._declared - _SHORT_BY_SECONDS:
            broken = f"its index promises {float(self._declared):.2f} s"
        fps = float((self._count - 1) / self._last) if self._last else float(1 / self._delta)
        return Ending(self._count, round(end * 1_000_000), fps, broken)

    def _declared_seconds(self) -> Fraction | None:
        """Length of the video stream by the container's index; None when it has none (a stream that was captured live)."""
        if self._stream.duration and self._stream.time_base:
            return Fraction(self._stream.duration * self._stream.time_base)
        return None

    def close(self) -> None:
        self._container.close()


class _ArrayPicture:
    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def rgb(self, height: int, width: int) -> NDArray[np.uint8]:
        import cv2

        rows, columns = self._pixels.shape[:2]
        if (rows, columns) == (height, width):
            return self._pixels
        smaller = height * width <= rows * columns
        method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(self._pixels, (width, height), interpolation=method), dtype=np.uint8)


class _ImageReader:
    """Pillow: the first picture of the file, turned as its EXIF says, on white where it is transparent."""

    def __init__(self, path: str) -> None:
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as stored:
                    codec, size = (stored.format or "unknown").lower(), stored.size
                    upright = ImageOps.exif_transpose(stored)
                    self._pixels = _to_rgb(upright)
        except UnidentifiedImageError as error:
            raise UnreadableSourceError("cannot be opened: not an image that Pillow knows") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UnreadableSourceError("cannot be decoded: it has too many pixels to be safe") from error
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise UnreadableSourceError(f"cannot be decoded: {_without_path(str(error), path)}") from error
        height, width = self._pixels.shape[:2]
        self.facts = SourceFacts(codec, height, width, 90 if (width, height) != size else 0)

    def frames(self) -> Iterator[TimedFrame]:
        yield TimedFrame(_ArrayPicture(self._pixels), 0, 1)

    def ending(self) -> Ending:
        return Ending(frames_decoded=1, duration_us=0, fps=None, broken=None)

    def close(self) -> None:
        """Nothing is open: the picture was read whole."""


def _to_rgb(image: Any) -> NDArray[np.uint8]:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-9)
        grey = np.clip(values / top * 255.0, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _without_path(message: str, path: str) -> str:
    return message.replace(path, "the file")
