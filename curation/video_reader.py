"""Videos by PyAV: the first video stream that is not a cover picture, from any tick on, over damage.

A damaged packet or picture ends what can be trusted until the next keyframe; decoding goes on there, and the gap is reported. A part of a long file
is reached by seeking to a keyframe before it; where a container cannot do that, it is decoded from its start. Price: pictures that a decoder
could have patched up are given away with the damaged ones. Only this module and `pictures` know PyAV.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from curation.changes import Change, ChangeMeter
from curation.frames import (
    MAX_HOLD,
    WHOLE,
    Damage,
    Ending,
    SourceFacts,
    TickRange,
    TimedFrame,
    UnreadableSourceError,
    tick_spans,
)
from curation.pictures import VideoPicture

__all__ = ["VideoReader"]

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,ivf,nut,dv,h264,hevc,av1,obu,m4v,mjpeg,webp"
"""Containers that are read. Playlists and lists (hls, dash, concat) are not: such a file would make the decoder open other files."""
_BAD_PACKETS_AT_START = 64
"""Packets that may fail before the first picture: streams cut from a broadcast start between keyframes."""
_SHORT_BY_SECONDS = Fraction(1, 2)
"""A file that ends this much before its own index says is broken off; containers round by less."""
_SEEK_EARLIER_SECONDS = (0, 20, 120)
"""How much earlier than wanted is asked for, while the container lands too late."""


class VideoReader:
    """See `SourceReader`."""

    def __init__(self, path: str, fps: Fraction) -> None:
        self._path, self._fps = path, fps
        self._own = TickRange()
        self._damages: list[Damage] = []
        self._count, self._last, self._shown = 0, Fraction(0), Fraction(0)
        self._lost_at_end: str | None = None
        self._zero: Fraction | None = None
        self._meter: ChangeMeter | None = None
        self._changes: list[Change] = []
        self._open()
        try:
            self.facts = self._facts()
            self._declared = self._declared_seconds()
            self.expected_seconds = self._declared
            if self.expected_seconds is None and self._container.duration:
                self.expected_seconds = Fraction(self._container.duration, 1_000_000)
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> None:
        """Open the file and decode its first picture."""
        import av

        try:
            # file: keeps names like a:b.mp4 from being read as addresses; playlists may not reach for the network.
            self._container = av.open(
                f"file:{self._path}", options={"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UnreadableSourceError(
                f"cannot be opened: {reason} (no media, a playlist, or the index is missing)"
            ) from error
        try:
            self._stream = _video_stream(self._container)
            self._pictures = self._decoded()
            self._first = next(self._pictures, None)
            if self._first is None:
                raise UnreadableSourceError(
                    f"cannot be decoded: no picture in it ({self._lost_at_end or 'no packets'})"
                )
        except BaseException:
            self._container.close()
            raise

    def _facts(self) -> SourceFacts:
        assert self._first is not None, "set by _open"
        frame, aspect = self._first[0], self._stream.sample_aspect_ratio
        rotation = round(frame.rotation / 90) * 90 % 360
        height, width = frame.height, frame.width
        if aspect and aspect > 0 and aspect != 1:
            width = max(1, round(width * float(aspect)))
        if rotation in (90, 270):
            height, width = width, height
        return SourceFacts(self._stream.codec_context.name, height, width, rotation)

    def _decoded(self) -> Iterator[tuple[Any, str | None]]:
        """Frames in display order, each with the reason why pictures before it are missing, if any are."""
        import av

        lost: str | None = None
        seen, failures, skipping = False, 0, False
        packets = self._container.demux(self._stream)
        while failures <= _BAD_PACKETS_AT_START:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                lost = f"the container breaks off: {error.strerror}"
                break
            if packet is None:
                break
            if skipping and not packet.is_keyframe:
                continue
            if skipping:
                self._stream.codec_context.flush_buffers()
                skipping = seen = False
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                lost = f"a packet cannot be decoded: {error.strerror}"
                skipping = seen
                failures += not seen
                continue
            for frame in frames:
                if frame.is_corrupt:
                    if seen:
                        lost, skipping = "a damaged picture", True
                        break
                    continue
                seen, failures = True, 0
                yield frame, lost
                lost = None
        self._lost_at_end = lost

    def frames(
        self, own: TickRange = WHOLE, *, lead: int = 0, tail: int = 0, changes: bool = False
    ) -> Iterator[TimedFrame]:
        self._own = own
        self._meter = ChangeMeter() if changes else None
        first, end = max(0, own.first - lead), None if own.end is None else own.end + tail
        self._reach(first)
        for _, part in itertools.groupby(self._timed(), key=lambda item: item[2]):
            shown = tick_spans(((frame, time) for frame, time, _ in part), self._fps, lambda: self._delta)
            for frame, first_tick, end_tick in shown:
                if end is not None and first_tick >= end:
                    return
                if end_tick > first:
                    told, self._changes = tuple(self._changes), []
                    yield TimedFrame(VideoPicture(frame, self.facts.rotation_degrees), first_tick, end_tick, told)
        self._note_the_end()

    def _note_the_end(self) -> None:
        """Add what is missing after the last picture of the file: by the decoder's word, or by that of the index."""
        if self._at is None:
            return
        end, reason = self._at + self._delta, self._lost_at_end
        if reason is None and self._declared is not None and end < self._declared - _SHORT_BY_SECONDS:
            reason = f"its index promises {float(self._declared):.2f} s"
        if reason is not None:
            self._damages.append(Damage(self._end_tick(self._at), None, reason))

    def _reach(self, first_tick: int) -> None:
        """Make the next picture one that lies before the tick by more than any picture is shown."""
        import av

        target = Fraction(first_tick) / self._fps - MAX_HOLD
        assert self._first is not None, "set by _open"
        zero = self._seconds(self._first[0])
        if target <= 0 or zero is None:
            return
        for earlier in _SEEK_EARLIER_SECONDS:
            place = math.floor((max(target - earlier, Fraction(0)) + zero) / self._stream.time_base)
            try:
                self._container.seek(place, stream=self._stream)
            except (av.error.FFmpegError, OSError):
                break
            self._pictures = self._decoded()
            self._first = next(self._pictures, None)
            found = None if self._first is None else self._seconds(self._first[0])
            if found is None:
                break
            if found - zero <= target:
                self._zero = zero
                return
        self._container.close()
        self._open()

    def _seconds(self, frame: Any) -> Fraction | None:
        seconds: Fraction | None = None if frame.pts is None else frame.pts * frame.time_base
        return seconds

    def _timed(self) -> Iterator[tuple[Any, Fraction, int]]:
        """Frames with strictly rising seconds since the first, and the number of damages before; without a timestamp, at the mean rate.

        Where the first frames have none, the first timestamp follows them too.
        """
        rate = self._stream.average_rate or self._stream.guessed_rate
        mean = self._delta = 1 / Fraction(rate) if rate else 1 / self._fps
        self._at: Fraction | None = None
        part, missing = 0, None
        head = [] if self._first is None else [self._first]
        for frame, lost in itertools.chain(head, self._pictures):
            stamp = self._seconds(frame)
            if stamp is not None and self._zero is not None:
                time = stamp - self._zero
            else:
                time = Fraction(0) if self._at is None else self._at + mean
                if stamp is not None:
                    self._zero = stamp - time
            missing = lost or missing
            if self._at is not None and time <= self._at:
                continue
            if self._at is not None and missing is not None:
                missing = f"{missing} at {float(self._at + self._delta):.2f} s"
                self._damages.append(Damage(self._end_tick(self._at), math.ceil(time * self._fps), missing))
                part += 1
            elif self._at is not None:
                self._delta = min(time - self._at, MAX_HOLD)
            self._at, missing = time, None
            place = time * self._fps
            if math.floor(place) in self._own:
                self._count, self._last, self._shown = self._count + 1, time, self._delta
            levels = None if self._meter is None else self._meter.levels(frame)
            if levels is not None:
                self._changes.append(Change(float(place), levels))
            yield frame, time, part

    def _end_tick(self, time: Fraction) -> int:
        return math.ceil((time + self._delta * Fraction(99, 100)) * self._fps)

    def ending(self) -> Ending:
        return Ending(self._count, self._last, self._shown, tuple(self._damages))

    def _declared_seconds(self) -> Fraction | None:
        """Length of the video stream by the container's index; None when it has none (a stream that was captured live)."""
        if self._stream.duration and self._stream.time_base:
            return Fraction(self._stream.duration * self._stream.time_base)
        return None

    def close(self) -> None:
        self._container.close()


def _video_stream(container: Any) -> Any:
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise UnreadableSourceError("cannot be decoded: there is no video stream")
    if streams[0].codec_context is None:
        raise UnreadableSourceError("cannot be decoded: no decoder for its codec")
    streams[0].codec_context.thread_count = 1
    return streams[0]
