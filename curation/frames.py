"""What reading a source yields, whatever its format: pictures on an even timeline, and an honest ending.

A tick is one frame of the timeline that clips are cut from (24 per second by default). Each decoded frame is given the ticks that it is the
nearest frame of, by timestamps, so variable frame rates, negative starts and low rates need no special case: a frame of an 8 fps source covers
three ticks, and half the frames of a 48 fps source cover none and are not handed on. Price: a frame is known only when the next one is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from curation.changes import Change
from schemas.errors import DataError

__all__ = [
    "MAX_HOLD",
    "WHOLE",
    "Damage",
    "Ending",
    "Picture",
    "SmallPicture",
    "SourceFacts",
    "SourceReader",
    "TickRange",
]
__all__ += ["TimedFrame", "UnreadableSourceError", "tick_spans"]

T = TypeVar("T")

MAX_HOLD = Fraction(2)
"""Seconds that a frame is shown at most; a longer gap in the timestamps leaves ticks without a frame, which end the shot."""


class UnreadableSourceError(DataError):
    """No picture can be had from a file; the message is the reason that the sources table shows, without the path."""


class SmallPicture(NamedTuple):
    """A picture at the size on which cuts, fades and motion are measured."""

    rgb: NDArray[np.uint8]
    """(height, width, 3)"""
    grey: NDArray[np.uint8]
    """(height, width): luma of the file's own colour matrix, 0 to 255"""


class Picture(Protocol):
    """One upright picture, converted to pixels only when asked. UnreadableSourceError for pixels of an unknown kind."""

    def rgb(self, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 (height, width, 3), scaled with area averaging."""

    def luma(self) -> NDArray[np.uint8]:
        """uint8, (height, width) as stored: not turned, not scaled, in the range of the file."""

    def small(self, height: int, width: int) -> SmallPicture:
        """For sizes far below the picture's: cheap, and a little less smooth than `rgb`."""


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
    changes: tuple[Change, ...] = ()
    """Of the decoded frames that were not told with a frame before, also of those without a tick."""


class TickRange(NamedTuple):
    """Ticks [first, end); no end: up to the last frame."""

    first: int = 0
    end: int | None = None

    def __contains__(self, tick: object) -> bool:
        return isinstance(tick, int) and tick >= self.first and (self.end is None or tick < self.end)


WHOLE = TickRange()
"""All ticks of a source."""


@dataclass(frozen=True)
class Damage:
    """A place where pictures are missing: the last whole one before it ends at `at_tick`, the next one, if any, begins at `resumes_tick`."""

    at_tick: int
    resumes_tick: int | None
    reason: str


@dataclass(frozen=True)
class Ending:
    """How the pass went, known after the last frame. All times in seconds since the first frame of the source."""

    frames_decoded: int
    last: Fraction
    """Of the last frame."""
    shown: Fraction
    """How long that one is shown; 0 for an image."""
    damages: tuple[Damage, ...] = ()
    """In order. The last one has nothing after it when the file breaks off."""

    @property
    def duration_us(self) -> int:
        """From the first frame to the end of the last one; where the file breaks off, if it does."""
        return round((self.last + self.shown) * 1_000_000)

    @property
    def fps(self) -> float | None:
        """Mean, from timestamps; None for an image."""
        if not self.shown:
            return None
        return float((self.frames_decoded - 1) / self.last) if self.last else float(1 / self.shown)

    @property
    def whole(self) -> bool:
        """No picture is known to be missing."""
        return not self.damages

    def what_is_missing(self) -> str | None:
        """For the sources table: each damage with its time, then where the file breaks off; None when nothing is missing."""
        texts = [damage.reason for damage in self.damages if damage.resumes_tick is not None]
        if len(texts) > 1:
            texts = [f"{texts[0]}, and {len(texts) - 1} more"]
        if self.broken is not None:
            texts.append(f"breaks off at {self.duration_us / 1e6:.2f} s: {self.broken}")
        return "; ".join(texts) or None

    def to_json(self) -> dict[str, Any]:
        """Plain values, exact."""
        return {
            "frames_decoded": self.frames_decoded,
            "last": str(self.last),
            "shown": str(self.shown),
            "damages": [astuple(damage) for damage in self.damages],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ending:
        return cls(
            frames_decoded=values["frames_decoded"],
            last=Fraction(values["last"]),
            shown=Fraction(values["shown"]),
            damages=tuple(Damage(*damage) for damage in values["damages"]),
        )

    @property
    def broken(self) -> str | None:
        """Why the file ends early, or None."""
        last = self.damages[-1] if self.damages else None
        return last.reason if last is not None and last.resumes_tick is None else None


class SourceReader(Protocol):
    """An opened source. Iterate `frames` once, then ask `ending`."""

    facts: SourceFacts
    expected_seconds: Fraction | None
    """Length by any word of the container; None when it has none, and for an image."""

    def frames(
        self, own: TickRange = WHOLE, *, lead: int = 0, tail: int = 0, changes: bool = False
    ) -> Iterator[TimedFrame]:
        """Frames that have a tick in `own`, or up to `lead` ticks before it, or up to `tail` ticks after it, in order.

        `changes`: measure how much every decoded frame differs from the one before.
        """

    def ending(self) -> Ending:
        """Of the frames whose time lies in `own`, and of the damage that was met on the way."""

    def close(self) -> None: ...


def tick_spans(
    timed: Iterable[tuple[T, Fraction]], fps: Fraction, last_seconds: Callable[[], Fraction]
) -> Iterator[tuple[T, int, int]]:
    """Give each tick of the timeline to the nearest item; items without a tick are left out.

    `timed`: items with strictly rising seconds. `last_seconds`, asked after the last item: how long that one is shown. An item is
    handed on when the next one is there, because its last tick lies half-way between them. Ticks before the first item, and those
    further than `MAX_HOLD` after an item, are nobody's.
    """
    held: tuple[T, Fraction, int] | None = None
    half = fps / 2
    for item, time in timed:
        if held is None:
            first = math.ceil(time * fps)
        else:
            if time - held[1] > MAX_HOLD:
                first, end = math.ceil(time * fps), math.ceil((held[1] + MAX_HOLD) * fps)
            else:
                first = end = math.ceil((held[1] + time) * half)
            if end > held[2]:
                yield held[0], held[2], end
        held = (item, time, first)
    if held is not None:
        # 0.99: so that the tick which is exactly at the end belongs to nobody, whatever the rounding of timestamps.
        end = math.ceil((held[1] + last_seconds() * Fraction(99, 100)) * fps)
        if end > held[2]:
            yield held[0], held[2], end
