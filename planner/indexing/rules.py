"""Which clip a foreign sample is: frames, height and width from its `.json`, the header of a `.npy`, or its name; and the columns beside them.

The three ways are tried in that order, each for the whole size, so that a size never mixes two sources. Nothing is guessed: a sample without a
size, or with one that no bucket has, is left out with a reason that the report counts.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.buckets import FPS, SIDE_MULTIPLE, frame_counts_up_to
from schemas.config import StrictConfig
from schemas.tables import ADMISSIONS, BRANCHES

__all__ = ["COLUMN_KEYS", "IndexRules", "LeftOutError", "SampleFacts", "npy_shape"]

COLUMN_KEYS = {
    "domain": str,
    "source": str,
    "branch": str,
    "subject": str,
    "style": str,
    "fps": float,
    "start_us": int,
    "text_tokens_long": int,
    "text_tokens_short": int,
    "text_tokens_first": int,
}
"""Columns of the samples (and fps) that a key of the `.json` member may fill, with their types."""
_FRAMES_KEYS = ("frames", "num_frames")
_MOST_FRAMES = 1 << 24
_LARGEST_SIDE = 1 << 16
_NPY_MAGIC = b"\x93NUMPY"
NPY_PREFIX = 12
"""Bytes that tell how long the header of a `.npy` is."""


class LeftOutError(Exception):
    """A sample cannot be planned. `reason` is one of few, to be counted; `detail` is about this sample."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class SampleFacts:
    """What is known of a sample when all its members were seen."""

    __slots__ = ("columns", "frames", "height", "latent_shape", "shortened", "width")

    def __init__(self, frames: int, height: int, width: int, latent_shape: list[int] | None) -> None:
        self.frames = _longest_bucket(frames)
        self.shortened = frames - self.frames
        """Frames above the longest bucket that fits."""
        self.height = height
        self.width = width
        self.latent_shape = latent_shape or [(self.frames - 1) // 4 + 1, 0, height // 8, width // 8]
        self.columns: dict[str, Any] = {}


class IndexRules(StrictConfig):
    """Everything besides the tars that decides the rows."""

    set_name: str
    """The class of the set, as plans name it."""
    fps: float = Field(default=float(FPS), gt=0.0)
    """Frames per second of the clips."""
    admissions: tuple[Literal["144p", "360p", "480p", "720p", "sft"], ...] = ADMISSIONS  # type: ignore[assignment]
    """Levels that every clip is admitted at."""
    json_member: str | None = "json"
    """Suffix of the member that holds the keys; null: no member is read for keys."""
    frames_key: str | None = None
    """Dotted path in the `.json` member; null: frames, else num_frames."""
    height_key: str = "height"
    width_key: str = "width"
    default_frames: int | None = Field(default=None, ge=1)
    """Frames where a `.json` member or a name gives only height and width: 1 for images."""
    npy_member: str | None = None
    """Suffix of the member whose array shape gives the size."""
    npy_axes: str = "T C H W"
    """What the axes of that array are; T, H and W are looked for, a missing T is one frame."""
    frame_stride: int = Field(default=4, ge=1)
    """Frames of one latent frame after the first: frames = stride (T - 1) + 1; 1 where the array holds frames."""
    side_stride: int = Field(default=8, ge=1)
    """Pixels of one latent row or column; 1 where the array holds pixels."""
    regex: str | None = None
    """Searched in the paths of the members; its groups frames, height and width give the size."""
    keys: dict[str, str] = Field(default_factory=dict)
    """Column to the dotted path in the `.json` member that fills it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for column in self.keys:
            if column not in COLUMN_KEYS:
                raise ValueError(f"--key {column}=...: no such column; known: {', '.join(COLUMN_KEYS)}")
        if not self.admissions:
            raise ValueError("--admission: give at least one level, or every plan would be empty")
        axes = self.npy_axes.split()
        if not {"H", "W"} <= set(axes) or len(set(axes)) != len(axes):
            raise ValueError(
                f"--npy-axes {self.npy_axes!r}: name each axis once, H and W among them, for example 'T C H W'"
            )
        if self.regex is not None:
            try:
                groups = set(re.compile(self.regex).groupindex)
            except re.error as error:
                raise ValueError(f"--regex {self.regex!r} is no regular expression: {error}") from error
            needed = {"height", "width"} if self.default_frames else {"frames", "height", "width"}
            if not needed <= groups:
                raise ValueError(
                    f"--regex {self.regex!r} lacks the named groups {sorted(needed - groups)}; write (?P<height>\\d+) and so on"
                )
        if self.json_member is None and self.keys:
            raise ValueError("--key needs the .json members, which --no-json leaves unread; leave one of them out")
        if self.json_member is None and self.npy_member is None and self.regex is None:
            raise ValueError("nothing tells the size of a clip: --no-json is given, and neither --npy nor --regex")
        return self

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return None if self.regex is None else re.compile(self.regex)

    @cached_property
    def _size_paths(self) -> tuple[list[list[str]], list[str], list[str]]:
        frames = [self.frames_key] if self.frames_key else list(_FRAMES_KEYS)
        return [key.split(".") for key in frames], self.height_key.split("."), self.width_key.split(".")

    @cached_property
    def _column_paths(self) -> list[tuple[str, list[str]]]:
        return [(column, path.split(".")) for column, path in self.keys.items()]

    def facts(self, paths: Iterable[str], json_data: bytes | None, npy_header: bytes | None) -> SampleFacts:
        """Size and columns of a sample from the paths of its members, its `.json` and the header of its `.npy`.

        Raises:
            LeftOutError: with the reason.
        """
        record = None if json_data is None else _record(json_data)
        facts = self._size_in_record(record) or self._size_in_array(npy_header) or self._size_in_name(paths)
        if facts is None:
            raise LeftOutError("no frames, height and width were found")
        if facts.height % SIDE_MULTIPLE or facts.width % SIDE_MULTIPLE:
            raise LeftOutError(f"a side is no multiple of {SIDE_MULTIPLE}", f"{facts.width}x{facts.height}")
        if record is not None:
            facts.columns = self._columns(record)
        return facts

    def _size_in_record(self, record: Mapping[str, Any] | None) -> SampleFacts | None:
        if record is None:
            return None
        frames_paths, height_path, width_path = self._size_paths
        frames = None
        for path in frames_paths:
            frames = _at(record, path)
            if frames is not None:
                break
        else:
            frames = self.default_frames
        height, width = _at(record, height_path), _at(record, width_path)
        if frames is None or height is None or width is None:
            return None
        return _checked_size(frames, height, width)

    def _size_in_array(self, header: bytes | None) -> SampleFacts | None:
        if header is None:
            return None
        shape = npy_shape(header)
        axes = self.npy_axes.split()
        if len(shape) != len(axes):
            raise LeftOutError("the array of the .npy has other axes", f"shape {shape}, expected {self.npy_axes!r}")
        at = dict(zip(axes, shape, strict=True))
        frames = self.frame_stride * (at.get("T", 1) - 1) + 1
        latent = [at.get("T", 1), at.get("C", 0), at["H"], at["W"]]
        return _checked_size(frames, self.side_stride * at["H"], self.side_stride * at["W"], latent)

    def _size_in_name(self, paths: Iterable[str]) -> SampleFacts | None:
        if self._pattern is None:
            return None
        for path in paths:
            found = self._pattern.search(path)
            if found is not None:
                groups = found.groupdict()
                frames = groups.get("frames") or self.default_frames
                if frames and groups["height"] and groups["width"]:
                    return _checked_size(frames, groups["height"], groups["width"])
        return None

    def _columns(self, record: Mapping[str, Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for column, path in self._column_paths:
            value = _at(record, path)
            if value is None:
                continue
            try:
                columns[column] = COLUMN_KEYS[column](value)
            except (TypeError, ValueError) as error:
                raise LeftOutError(f"its {column} is not what the column holds", repr(value)) from error
        if columns.get("branch", BRANCHES[0]) not in BRANCHES:
            raise LeftOutError(f"its branch is not one of {', '.join(BRANCHES)}", repr(columns["branch"]))
        if abs(columns.pop("fps", self.fps) - self.fps) > 1e-3:
            raise LeftOutError(
                f"its frame rate is not the set's {self.fps:g}", repr(_at(record, self.keys["fps"].split(".")))
            )
        return columns


@cache
def _longest_bucket(frames: int) -> int:
    """`_longest_bucket(80) == 65`."""
    return frame_counts_up_to(frames)[0]


def npy_shape(header: bytes) -> tuple[int, ...]:
    """The shape in the header of a `.npy` file, from its first bytes.

    Raises:
        LeftOutError: if it is no such header, or goes on behind `header`.
    """
    if header[:6] != _NPY_MAGIC or len(header) < NPY_PREFIX:
        raise LeftOutError("its .npy member is no .npy file")
    try:
        described = ast.literal_eval(
            header[npy_start(header) : npy_start(header) + npy_length(header)].decode("latin-1").strip()
        )
        shape = tuple(described["shape"])
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise LeftOutError("its .npy member has a damaged header") from error
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise LeftOutError("its .npy member has a damaged header")
    return shape


def npy_start(header: bytes) -> int:
    """Where the description begins: behind magic, version and a length of 2 bytes, or 4 from version 2 on."""
    return 10 if header[6] == 1 else 12


def npy_length(header: bytes) -> int:
    """Bytes of the description."""
    return int.from_bytes(header[8 : npy_start(header)], "little")


def _record(data: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(str(data, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise LeftOutError("its .json member is not JSON") from error
    if not isinstance(record, dict):
        raise LeftOutError("its .json member is no JSON object")
    return record


def _at(record: Any, path: Iterable[str]) -> Any:
    """What stands at a dotted path, or None."""
    for name in path:
        if not isinstance(record, dict):
            return None
        record = record.get(name)
    return record


def _checked_size(frames: Any, height: Any, width: Any, latent: list[int] | None = None) -> SampleFacts:
    """Whole positive numbers, as numbers or digits."""
    sides = [
        _whole_number(value, most)
        for value, most in ((frames, _MOST_FRAMES), (height, _LARGEST_SIDE), (width, _LARGEST_SIDE))
    ]
    if 0 in sides:
        raise LeftOutError(
            "its size is no whole positive numbers", f"frames {frames!r}, height {height!r}, width {width!r}"
        )
    return SampleFacts(sides[0], sides[1], sides[2], latent)


def _whole_number(value: Any, most: int) -> int:
    """A whole number from 1 to `most`, given as a number or in digits; 0 for anything else."""
    if type(value) is not int:
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            return 0
        value = int(value) if value <= most else 0
    return value if 1 <= value <= most else 0
