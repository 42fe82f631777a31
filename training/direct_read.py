"""Reading neighbouring samples, each latent straight into its place in a micro-batch, and checking them: one copy, one request, one pass.

What is done for each clip here is done for every clip of a run, so it is kept to some tens of microseconds: positions come from whole arrays, npy
headers are looked up, and nothing is made but the views that are handed on.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from schemas.errors import ShardError
from schemas.shards import CAPTION_KINDS, MEMBER_ORDER
from training.checksum import crc32
from training.clip_arrays import (
    ClipArrays,
    NpyHeader,
    check_clip_id,
    check_crc32,
    check_tar_name,
    on_token_grid,
    read_npy_header,
)
from training.object_store import is_url
from training.sample_layout import SampleLayout
from training.sample_sets import SampleSets
from training.shard_files import ShardFiles, cut_off, unreadable

__all__ = ["Place", "SampleReader"]

_TAR_BLOCK = 512
_UNNEEDED_BYTES = 1 << 20
_SMALL_BYTES = 256 << 10
_LATENT, _JSON = MEMBER_ORDER.index("latent.npy"), MEMBER_ORDER.index("json")
_TEACHER, _IMAGE = MEMBER_ORDER.index("teacher.npy"), MEMBER_ORDER.index("image.npy")
_TEXTS = tuple((kind, MEMBER_ORDER.index(f"text_{kind}.npy")) for kind in CAPTION_KINDS)
_FLOAT16 = np.dtype(np.float16)
_LATENT_AXES, _TEXT_AXES, _TEACHER_AXES, _IMAGE_AXES = 4, 2, 4, 2
_AXES = {_LATENT: _LATENT_AXES, _TEACHER: _TEACHER_AXES, _IMAGE: _IMAGE_AXES, _JSON: 0}
_MEMBERS = tuple(
    (kind, f".{name}\0".encode(), _AXES.get(kind, _TEXT_AXES))
    for kind, name in enumerate(MEMBER_ORDER)
    if kind != _LATENT
)
"""Kind, what the tar's name has behind the clip id, and axes of the array; none for the json."""


class Place(NamedTuple):
    """Where a sample's latent goes."""

    latent_TCHW: np.ndarray
    """A clip of a micro-batch's array."""
    memory: memoryview
    """The same, as bytes."""


class SampleReader:
    """Reads runs of samples that lie one behind the other in a shard. Any thread may read."""

    def __init__(self, sets: SampleSets, layout: SampleLayout, files: ShardFiles) -> None:
        self._sets, self._layout, self._files = sets, layout, files
        self._unneeded = memoryview(bytearray(_UNNEEDED_BYTES))
        """What the run does not use is read over, by all threads at once."""
        self._checking = threading.Lock()
        """Held while small samples are checked: a checksum lets go of the interpreter for less time than another thread takes to wake up for it."""

    def read(self, first: int, places: Sequence[Place | None]) -> list[ClipArrays | memoryview | ShardError]:
        """The samples from index `first` on: with a place as arrays, without one as bytes, unusable ones as the error.

        A sample that is damaged costs none of its neighbours: where a read fails, each is read by itself. ServiceError where none is to blame.
        """
        sets, stop = self._sets, first + len(places)
        address = sets.addresses[sets.shard_N[first]]
        offset = int(sets.offset_N[first])
        lengths = sets.length_N[first:stop].tolist()
        small = sum(lengths) < _SMALL_BYTES * len(lengths)
        if len(places) > 1 and not small and not is_url(address):  # checked while the processor's cache still holds it
            return [each for index, place in enumerate(places) for each in self.read(first + index, [place])]
        parts, pieces = self._parts(first, places, lengths)
        try:
            filled = self._files.read_into(address, offset, pieces)
        except OSError as error:
            damage = unreadable(address, offset, sum(lengths), error)
            if len(places) > 1 and not isinstance(error, FileNotFoundError):
                return [each for index, place in enumerate(places) for each in self.read(first + index, [place])]
            return [damage] * len(places)
        with self._checking if small else nullcontext():
            return self._judged(first, places, lengths, parts, filled)

    def _judged(
        self,
        first: int,
        places: Sequence[Place | None],
        lengths: Sequence[int],
        parts: Sequence[tuple[memoryview, memoryview | None]],
        filled: int,
    ) -> list[ClipArrays | memoryview | ShardError]:
        """What has become of each sample, `filled` bytes being there."""
        sets, stop = self._sets, first + len(places)
        address = sets.addresses[sets.shard_N[first]]
        offset = int(sets.offset_N[first])
        found: list[ClipArrays | memoryview | ShardError] = []
        facts = zip(
            sets.clip_id_N[first:stop],
            self._layout.rest_start_NM[first:stop].tolist(),
            sets.member_length_NM[first:stop].tolist(),
            sets.member_crc32_NM[first:stop].tolist(),
            self._layout.kept_NM[first:stop].tolist(),
            strict=True,
        )
        end = 0
        for index, (place, length, fact) in enumerate(zip(places, lengths, facts, strict=True)):
            end += length
            rest, tail = parts[index]
            if end > filled:
                found.append(cut_off(address, offset + end, min(length, end - filled)))
            elif place is None:
                found.append(rest.toreadonly())
            else:
                try:
                    found.append(self._checked(first + index, place, rest.toreadonly(), tail, *fact))
                except ShardError as error:
                    found.append(error)
        return found

    def _parts(
        self, first: int, places: Sequence[Place | None], lengths: Sequence[int]
    ) -> tuple[list[tuple[memoryview, memoryview | None]], list[memoryview]]:
        """Memory for each sample's rest and for the frames that its bucket leaves out, and all memory in the order of the shard."""
        layout, stop = self._layout, first + len(places)
        facts = zip(
            places,
            lengths,
            layout.rest_length_N[first:stop].tolist(),
            layout.latent_begin_N[first:stop].tolist(),
            layout.latent_bytes_N[first:stop].tolist(),
            layout.unneeded_begin_N[first:stop].tolist(),
            layout.unneeded_end_N[first:stop].tolist(),
            strict=True,
        )
        parts: list[tuple[memoryview, memoryview | None]] = []
        pieces: list[memoryview] = []
        for place, length, rest_length, begin, latent_bytes, unneeded, unneeded_end in facts:
            if place is None:
                rest = np.empty(length, np.uint8).data
                pieces.append(rest)
                parts.append((rest, None))
                continue
            rest = np.empty(rest_length, np.uint8).data
            pieces.append(rest[:begin])
            pieces.append(place.memory)
            tail = None
            if latent_bytes > len(place.memory):
                tail = np.empty(latent_bytes - len(place.memory), np.uint8).data
                pieces.append(tail)
            if unneeded == length:
                pieces.append(rest[begin:])
            else:
                cut = unneeded - latent_bytes
                pieces.append(rest[begin:cut])
                for at in range(unneeded, unneeded_end, _UNNEEDED_BYTES):
                    pieces.append(self._unneeded[: unneeded_end - at])
                pieces.append(rest[cut:])
            parts.append((rest, tail))
        return parts, pieces

    def _checked(
        self,
        index: int,
        place: Place,
        rest: memoryview,
        tail: memoryview | None,
        clip_id: str,
        starts: list[int],
        lengths: list[int],
        crcs: list[int],
        kept: list[bool],
    ) -> ClipArrays:
        """The arrays of one sample, every member that the run uses checked."""
        name = clip_id.encode()
        self._check_latent(index, place, rest, tail, clip_id, starts[_LATENT], crcs[_LATENT])
        arrays: dict[int, np.ndarray] = {}
        for kind, suffix, axes in _MEMBERS:
            if not kept[kind]:
                continue
            at = starts[kind]
            data = rest[at : at + lengths[kind]]
            written = name + suffix
            if rest[at - _TAR_BLOCK : at - _TAR_BLOCK + len(written)] != written:
                check_tar_name(clip_id, MEMBER_ORDER[kind], rest[at - _TAR_BLOCK : at])
            if crc32(data) != crcs[kind]:
                check_crc32(clip_id, MEMBER_ORDER[kind], crc32(data), crcs[kind])
            if axes:
                arrays[kind] = _array(clip_id, MEMBER_ORDER[kind], data, axes)
            else:
                check_clip_id(clip_id, data)
        sets, teacher_TYXC = self._sets, arrays.get(_TEACHER)
        if teacher_TYXC is not None:
            shape = tuple(sets.latent_shape_N4[index].tolist())
            teacher_TYXC = on_token_grid(clip_id, teacher_TYXC, shape, len(place.latent_TCHW))
        return ClipArrays(
            clip_id=clip_id,
            latent_TCHW=place.latent_TCHW,
            text_by_kind={caption: arrays[kind] for caption, kind in _TEXTS},
            branch=sets.branch_N[index],
            teacher=sets.teacher_N[index],
            teacher_TYXC=teacher_TYXC,
            image_ID=arrays.get(_IMAGE),
        )

    def _check_latent(
        self, index: int, place: Place, rest: memoryview, tail: memoryview | None, clip_id: str, at: int, expected: int
    ) -> None:
        name = MEMBER_ORDER[_LATENT]
        check_tar_name(clip_id, name, rest[at - _TAR_BLOCK : at])
        head = rest[at : int(self._layout.latent_begin_N[index])]
        found = crc32(place.memory, crc32(head))
        check_crc32(clip_id, name, found if tail is None else crc32(tail, found), expected)
        header = _header(clip_id, name, head, _LATENT_AXES)
        shape = tuple(self._sets.latent_shape_N4[index].tolist())
        if header.shape != shape or header.start != len(head):
            raise ShardError(f"clip {clip_id}: {name} has shape {header.shape}, the samples table says {shape}")


def _header(clip_id: str, name: str, data: memoryview, axes: int) -> NpyHeader:
    """A member's npy header, of float16 numbers along so many axes."""
    try:
        header = read_npy_header(data)
    except ValueError as error:
        raise ShardError(f"clip {clip_id}: {name} cannot be read ({error})") from error
    if len(header.shape) != axes or header.dtype != _FLOAT16:
        raise ShardError(
            f"clip {clip_id}: {name} is {header.dtype} with {len(header.shape)} axes, expected float16, {axes}"
        )
    return header


def _array(clip_id: str, name: str, data: memoryview, axes: int) -> np.ndarray:
    """A view of a member's numbers."""
    header = _header(clip_id, name, data, axes)
    if header.start + header.num_bytes != len(data):
        raise ShardError(
            f"clip {clip_id}: {name} has {len(data) - header.start} bytes of numbers, its shape {header.shape} takes {header.num_bytes}"
        )
    return np.ndarray(header.shape, _FLOAT16, data, header.start)
