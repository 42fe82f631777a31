"""Sampled frames of one source, kept on disk until its clips are known.

Shots, crops and overlays are known only after the last frame, but a source is decoded once. So a few frames a second are kept, at the size
that models see, as JPEG of quality 95 in one nameless temporary file: memory holds offsets only, whatever the length of the film. Price: about
0.1 MB a sample on disk for the time of the analysis, and the loss of that JPEG, far below what any score resolves.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

__all__ = ["SampleStore", "evenly", "scaled_size"]

_QUALITY = 95
_KEPT_DECODED = 24
"""Frames kept decoded, about 17 MB: more than the samples of the longest clip, which are looked at several times."""


@dataclass(frozen=True)
class _Entry:
    tick: int
    offset: int
    length: int


def scaled_size(height: int, width: int, long_side: int, *, enlarge: bool = False) -> tuple[int, int]:
    """(height, width) with the same aspect and the given long side; smaller pictures stay as they are unless `enlarge`."""
    longest = max(height, width)
    if longest <= long_side and not enlarge:
        return height, width
    return max(1, round(height * long_side / longest)), max(1, round(width * long_side / longest))


def evenly(ticks: Sequence[int], count: int) -> list[int]:
    """At most `count` of `ticks`, the middles of equal parts: `evenly(range(9), 3) == [1, 4, 7]`."""
    if len(ticks) <= count:
        return list(ticks)
    return [ticks[int((part + 0.5) * len(ticks) / count)] for part in range(count)]


class SampleStore:
    """Frames by tick, in rising order; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the context manager below
        self._entries: list[_Entry] = []
        self._end = 0
        self._recent: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def ticks(self) -> list[int]:
        """Ticks of all samples, rising."""
        return [entry.tick for entry in self._entries]

    def add(self, ticks: Sequence[int], rgb: NDArray[np.uint8]) -> None:
        """Keep one frame for all of `ticks`; ticks must rise."""
        import cv2

        assert not self._entries or ticks[0] > self._entries[-1].tick, "samples come in time order"
        written, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        assert written, "OpenCV encodes every uint8 picture"
        self._file.seek(self._end)
        self._file.write(data.tobytes())
        self._entries += [_Entry(tick, self._end, len(data)) for tick in ticks]
        self._end += len(data)

    def between(self, first_tick: int, end_tick: int) -> list[int]:
        """Ticks of the samples in [first_tick, end_tick)."""
        low = bisect_left(self._entries, first_tick, key=lambda entry: entry.tick)
        high = bisect_left(self._entries, end_tick, key=lambda entry: entry.tick)
        return [entry.tick for entry in self._entries[low:high]]

    def frame(self, tick: int) -> NDArray[np.uint8]:
        """The frame stored for exactly this tick, uint8 (height, width, 3); not to be written to, since the last few are kept decoded."""
        import cv2

        place = bisect_left(self._entries, tick, key=lambda entry: entry.tick)
        entry = self._entries[place]
        assert entry.tick == tick, f"no sample at tick {tick}"
        if entry.offset in self._recent:
            self._recent.move_to_end(entry.offset)
            return self._recent[entry.offset]
        self._file.seek(entry.offset)
        data = np.frombuffer(self._file.read(entry.length), dtype=np.uint8)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None, "this class wrote the JPEG"
        frame = np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        frame.flags.writeable = False
        self._recent[entry.offset] = frame
        if len(self._recent) > _KEPT_DECODED:
            self._recent.popitem(last=False)
        return frame
