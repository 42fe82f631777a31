"""Reading neighbouring samples, each latent straight into its place in a micro-batch, and checking them: one copy, one request, one look.

What is done here is done for every clip of a run, and holds the interpreter's lock that the trainer needs too, so it is kept to some microseconds a
clip: positions come from whole arrays, a compiled function looks at all samples of a read while the lock is free, and nothing is made but the views
that are handed on.

Legend: n samples of one read, N samples of the sets, M member kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.errors import ShardError
from training.checks_kernel import NPY_HEADER_BYTES, facts_of, find_good
from training.clip_arrays import ClipArrays, on_token_grid
from training.member_checks import IMAGE, TEACHER, TEXTS, checked_members
from training.object_store import is_url
from training.sample_layout import MEMBER_AXES, SampleLayout
from training.sample_sets import SampleSets
from training.shard_files import ShardFiles, cut_off, unreadable

__all__ = ["Place", "SampleReader"]

_UNNEEDED_BYTES = 1 << 20
_SMALL_BYTES = 256 << 10
_FLOAT16 = np.dtype(np.float16)
_TEXT_KINDS = [kind for _, kind in TEXTS]
_MORE_KINDS = (TEACHER, IMAGE)


class Place(NamedTuple):
    """Where a sample's latent goes."""

    latent_TCHW: np.ndarray
    """A clip of a micro-batch's array."""
    memory: memoryview
    """The same, as bytes."""
    address: int
    """Of its first byte."""


class _Part(NamedTuple):
    """Memory for what is read of a sample beside its latent's place."""

    rest: np.ndarray
    """As `SampleLayout` has it; the whole sample where there is no place."""
    tail: np.ndarray | None
    """Frames that the bucket leaves out."""


class SampleReader:
    """Reads runs of samples that lie one behind the other in a shard. Any thread may read."""

    def __init__(self, sets: SampleSets, layout: SampleLayout, files: ShardFiles) -> None:
        self._sets, self._layout, self._files = sets, layout, files
        self._facts = facts_of(sets, layout)
        self._unneeded = memoryview(bytearray(_UNNEEDED_BYTES))
        """What the run does not use is read over, by all threads at once."""

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
        return self._judged(first, places, lengths, parts, filled)

    def _parts(
        self, first: int, places: Sequence[Place | None], lengths: Sequence[int]
    ) -> tuple[list[_Part], list[memoryview]]:
        """Memory for each sample, and all of it in the order of the shard."""
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
        parts: list[_Part] = []
        pieces: list[memoryview] = []
        for place, length, rest_length, begin, latent_bytes, unneeded, unneeded_end in facts:
            if place is None:
                part = _Part(np.empty(length, np.uint8), None)
                pieces.append(part.rest.data)
                parts.append(part)
                continue
            rest, tail = np.empty(rest_length, np.uint8), None
            memory = rest.data
            pieces.append(memory[:begin])
            pieces.append(place.memory)
            if latent_bytes > len(place.memory):
                tail = np.empty(latent_bytes - len(place.memory), np.uint8)
                pieces.append(tail.data)
            if unneeded == length:
                pieces.append(memory[begin:])
            else:
                cut = unneeded - latent_bytes
                pieces.append(memory[begin:cut])
                for at in range(unneeded, unneeded_end, _UNNEEDED_BYTES):
                    pieces.append(self._unneeded[: unneeded_end - at])
                pieces.append(memory[cut:])
            parts.append(_Part(rest, tail))
        return parts, pieces

    def _judged(
        self,
        first: int,
        places: Sequence[Place | None],
        lengths: Sequence[int],
        parts: Sequence[_Part],
        filled: int,
    ) -> list[ClipArrays | memoryview | ShardError]:
        """What has become of each sample, `filled` bytes being there."""
        sets = self._sets
        good, text_shapes, shape_nM4 = self._good(first, places, parts, filled == sum(lengths))
        found: list[ClipArrays | memoryview | ShardError] = []
        end = 0
        for each, (place, length, part) in enumerate(zip(places, lengths, parts, strict=True)):
            end += length
            index = first + each
            if end > filled:
                address = sets.addresses[sets.shard_N[first]]
                found.append(cut_off(address, int(sets.offset_N[first]) + end, min(length, end - filled)))
            elif place is None:
                found.append(part.rest.data.toreadonly())
            else:
                shapes = (text_shapes[each], shape_nM4[each]) if good[each] else None
                found.append(self._outcome(index, place, part, shapes))
        return found

    def _good(
        self, first: int, places: Sequence[Place | None], parts: Sequence[_Part], whole: bool
    ) -> tuple[list[bool], list[Any], np.ndarray]:
        """By sample: whether it is found good at a glance, the shapes of its texts, and those of all its arrays."""
        count = len(places)
        shape_nM4 = np.empty((count, len(MEMBER_AXES), 4), np.int64)
        if find_good is None or not whole:
            return [False] * count, [()] * count, shape_nM4
        good_n = find_good(
            first,
            np.array([part.rest.__array_interface__["data"][0] for part in parts], np.uint64),
            np.array([0 if place is None else place.address for place in places], np.uint64),
            np.array([0 if place is None else len(place.memory) for place in places], np.int64),
            np.array([0 if part.tail is None else part.tail.ctypes.data for part in parts], np.uint64),
            *self._facts,
            shape_nM4,
        )
        return good_n.tolist(), shape_nM4[:, _TEXT_KINDS, :2].tolist(), shape_nM4

    def _outcome(
        self, index: int, place: Place, part: _Part, shapes: tuple[Sequence[Sequence[int]], np.ndarray] | None
    ) -> ClipArrays | ShardError:
        """A sample that is there: its arrays, or why not. Without shapes it is looked at member by member."""
        try:
            if shapes is not None:
                return self._clip(index, place, self._members(index, part.rest, *shapes))
            tail = None if part.tail is None else part.tail.data
            rest = part.rest.data.toreadonly()
            return self._clip(index, place, checked_members(self._sets, self._layout, index, place.memory, rest, tail))
        except ShardError as error:
            return error

    def _members(
        self, index: int, rest: np.ndarray, text_shapes: Sequence[Sequence[int]], shape_M4: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Views of the arrays of a sample that was found good."""
        layout, data = self._layout, rest.data.toreadonly()
        starts = layout.rest_start_NM[index].tolist()
        members = {
            kind: np.ndarray(shape, _FLOAT16, data, starts[kind] + NPY_HEADER_BYTES)
            for kind, shape in zip(_TEXT_KINDS, text_shapes, strict=True)
        }
        if layout.keeps_more_N[index]:
            for kind in _MORE_KINDS:
                if layout.kept_NM[index, kind]:
                    shape = shape_M4[kind, : MEMBER_AXES[kind]].tolist()
                    members[kind] = np.ndarray(shape, _FLOAT16, data, starts[kind] + NPY_HEADER_BYTES)
        return members

    def _clip(self, index: int, place: Place, members: dict[int, np.ndarray]) -> ClipArrays:
        """The arrays of one sample; ShardError where its teacher features fit no grid of the latent."""
        sets, teacher_TYXC = self._sets, members.get(TEACHER)
        clip_id = sets.clip_id_N[index]
        if teacher_TYXC is not None:
            shape = tuple(sets.latent_shape_N4[index].tolist())
            teacher_TYXC = on_token_grid(clip_id, teacher_TYXC, shape, len(place.latent_TCHW))
        return ClipArrays(
            clip_id=clip_id,
            latent_TCHW=place.latent_TCHW,
            text_by_kind={caption: members[kind] for caption, kind in TEXTS},
            branch=sets.branch_N[index],
            teacher=sets.teacher_N[index],
            teacher_TYXC=teacher_TYXC,
            image_ID=members.get(IMAGE),
        )
