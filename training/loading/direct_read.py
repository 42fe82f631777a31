"""Reading neighbouring samples, each latent straight into its place in a micro-batch, and checking them: one copy, one look.

What is done here is done for every clip of a run, and holds the interpreter's lock that the trainer needs too, so it is kept to some microseconds a
clip: positions come from whole arrays, a compiled function reads and looks at all samples of a read while the lock is free, and nothing is made but
the views that are handed on. What that function has not found good is looked at member by member; what was not all there is read again by itself.

Legend: n samples of one read, M member kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from schemas.errors import ShardError
from schemas.shards import CAPTION_KINDS
from training.loading.clip_arrays import ClipArrays, on_token_grid
from training.loading.member_checks import KEYS, checked_members
from training.loading.object_store import is_url
from training.loading.sample_kernel import GOOD, NPY_HEADER_BYTES, THERE, compiled_read, facts_of
from training.loading.sample_layout import MEMBER_AXES, SampleLayout
from training.loading.sample_sets import SampleSets
from training.loading.shard_files import ShardFiles, cut_off, unreadable

__all__ = ["Place", "SampleReader"]

_UNNEEDED_BYTES = 1 << 20
_AHEAD_BYTES = 8 << 20
"""Of files, how far the disk is kept ahead of a read: two readers with checks between their reads leave it idle otherwise."""
_ALREADY_READ = -1
_FLOAT16 = np.dtype(np.float16)
_TEXT_KINDS = [KEYS.index(kind) for kind in CAPTION_KINDS]
_MORE_KINDS = (KEYS.index("teacher"), KEYS.index("image"))

Found = ClipArrays | memoryview | ShardError


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
        self._compiled, self._facts = compiled_read(), facts_of(sets, layout)
        self._unneeded = memoryview(bytearray(_UNNEEDED_BYTES))
        """What the run does not use is read over, by all threads at once."""

    def read(self, first: int, places: Sequence[Place | None], *, read_on_to: int = 0) -> list[Found]:
        """The samples from index `first` on: with a place as arrays, without one as bytes, unusable ones as the error.

        `read_on_to`: byte of the shard up to which somebody will read on from there; the kernel is asked to fetch some of it.
        A sample that is damaged costs none of its neighbours. ServiceError where none is to blame.
        """
        parts = self._parts(first, places)
        shape_nM4 = np.empty((len(places), len(MEMBER_AXES), 4), np.int64)
        try:
            verdicts = self._read_at_once(first, places, parts, shape_nM4, read_on_to)
        except FileNotFoundError as error:
            address, offset, length = self._range_of(first, len(places))
            return [unreadable(address, offset, length, error)] * len(places)
        text_shapes = shape_nM4[:, _TEXT_KINDS, :2].tolist()
        start_nM = self._layout.rest_start_NM[first : first + len(places)] + NPY_HEADER_BYTES
        text_starts = start_nM[:, _TEXT_KINDS].tolist()
        found: list[Found] = []
        for each, (place, part) in enumerate(zip(places, parts, strict=True)):
            index = first + each
            try:
                if verdicts[each] not in (THERE, GOOD):
                    found.append(self._read_alone(index, place, part))
                elif place is None:
                    found.append(part.rest.data.toreadonly())
                elif verdicts[each] == THERE:
                    found.append(self._looked_at(index, place, part))
                else:
                    data = part.rest.data.toreadonly()
                    facts = zip(CAPTION_KINDS, text_shapes[each], text_starts[each], strict=True)
                    arrays = {kind: np.ndarray(shape, _FLOAT16, data, start) for kind, shape, start in facts}
                    if self._layout.keeps_more_N[index]:
                        arrays |= self._more(index, data, shape_nM4[each], start_nM[each])
                    found.append(self._clip(index, place, arrays))
            except ShardError as error:
                found.append(error)
        return found

    def _range_of(self, first: int, count: int) -> tuple[str, int, int]:
        """Shard, offset and length of neighbouring samples."""
        sets, last = self._sets, first + count - 1
        offset = int(sets.offset_N[first])
        return sets.addresses[sets.shard_N[first]], offset, int(sets.offset_N[last] + sets.length_N[last]) - offset

    def _parts(self, first: int, places: Sequence[Place | None]) -> list[_Part]:
        """Memory for each sample."""
        layout, stop = self._layout, first + len(places)
        facts = zip(
            places,
            self._sets.length_N[first:stop].tolist(),
            layout.rest_length_N[first:stop].tolist(),
            layout.latent_bytes_N[first:stop].tolist(),
            strict=True,
        )
        parts: list[_Part] = []
        for place, length, rest_length, latent_bytes in facts:
            behind = 0 if place is None else latent_bytes - len(place.memory)
            tail = np.empty(behind, np.uint8) if behind else None
            parts.append(_Part(np.empty(length if place is None else rest_length, np.uint8), tail))
        return parts

    def _read_at_once(
        self,
        first: int,
        places: Sequence[Place | None],
        parts: Sequence[_Part],
        shape_nM4: np.ndarray,
        read_on_to: int,
    ) -> list[int]:
        """Read all of them, and the verdict on each; FileNotFoundError where the shard is gone."""
        address, offset, length = self._range_of(first, len(places))
        try:
            if self._compiled is not None and not is_url(address):
                with self._files.opened(address) as descriptor:
                    ahead = offset + _AHEAD_BYTES
                    self._files.read_soon(descriptor, ahead, min(length, read_on_to - ahead))
                    return self._verdicts(descriptor, first, places, parts, shape_nM4)
            samples = zip(range(first, first + len(places)), places, parts, strict=True)
            pieces = [piece for sample in samples for piece in self._pieces(*sample)]
            if self._files.read_into(address, offset, pieces) == length:
                return self._verdicts(_ALREADY_READ, first, places, parts, shape_nM4)
        except FileNotFoundError:
            raise
        except OSError:  # each by itself will show whose fault it is
            pass
        return [0] * len(places)

    def _verdicts(
        self,
        descriptor: int,
        first: int,
        places: Sequence[Place | None],
        parts: Sequence[_Part],
        shape_nM4: np.ndarray,
    ) -> list[int]:
        """What the compiled function says; without it, that all is there."""
        if self._compiled is None:
            return [THERE] * len(places)
        verdicts: list[int] = self._compiled(
            descriptor,
            first,
            np.array([part.rest.__array_interface__["data"][0] for part in parts], np.uint64),
            np.array([0 if place is None else place.address for place in places], np.uint64),
            np.array([0 if place is None else len(place.memory) for place in places], np.int64),
            np.array([0 if part.tail is None else part.tail.ctypes.data for part in parts], np.uint64),
            *self._facts,
            shape_nM4,
        ).tolist()
        return verdicts

    def _read_alone(self, index: int, place: Place | None, part: _Part) -> Found:
        """One sample by itself; ShardError when it is damaged, ServiceError when it could not be read."""
        address, offset, length = self._range_of(index, 1)
        try:
            filled = self._files.read_into(address, offset, self._pieces(index, place, part))
        except OSError as error:
            raise unreadable(address, offset, length, error) from error
        if filled < length:
            raise cut_off(address, offset + length, length - filled)
        return part.rest.data.toreadonly() if place is None else self._looked_at(index, place, part)

    def _looked_at(self, index: int, place: Place, part: _Part) -> ClipArrays:
        """A sample that is there, member by member; ShardError when it is damaged."""
        rest, tail = part.rest.data.toreadonly(), None if part.tail is None else part.tail.data
        return self._clip(index, place, checked_members(self._sets, self._layout, index, place.memory, rest, tail))

    def _pieces(self, index: int, place: Place | None, part: _Part) -> list[memoryview]:
        """The memory of one sample, in the order of the shard."""
        rest, layout = part.rest.data, self._layout
        if place is None:
            return [rest]
        begin, latent_bytes = int(layout.latent_begin_N[index]), int(layout.latent_bytes_N[index])
        unneeded, unneeded_end = int(layout.unneeded_begin_N[index]), int(layout.unneeded_end_N[index])
        latent = [place.memory] if part.tail is None else [place.memory, part.tail.data]
        over = [self._unneeded[: unneeded_end - at] for at in range(unneeded, unneeded_end, _UNNEEDED_BYTES)]
        behind = unneeded - latent_bytes
        return [piece for piece in (rest[:begin], *latent, rest[begin:behind], *over, rest[behind:]) if len(piece)]

    def _more(self, index: int, data: memoryview, shape_M4: np.ndarray, start_M: np.ndarray) -> dict[str, np.ndarray]:
        """Teacher features and image tokens of a good sample, as far as the run uses them."""
        return {
            KEYS[kind]: np.ndarray(shape_M4[kind, : MEMBER_AXES[kind]].tolist(), _FLOAT16, data, int(start_M[kind]))
            for kind in _MORE_KINDS
            if self._layout.kept_NM[index, kind]
        }

    def _clip(self, index: int, place: Place, arrays: dict[str, np.ndarray]) -> ClipArrays:
        """What is handed on of one sample, its texts in `arrays`; ShardError where its teacher features fit no grid of the latent."""
        sets, clip_id = self._sets, self._sets.clip_id_N[index]
        teacher_TYXC, image_ID = arrays.pop("teacher", None), arrays.pop("image", None)
        if teacher_TYXC is not None:
            shape = tuple(sets.latent_shape_N4[index].tolist())
            teacher_TYXC = on_token_grid(clip_id, teacher_TYXC, shape, len(place.latent_TCHW))
        return ClipArrays(
            clip_id=clip_id,
            latent_TCHW=place.latent_TCHW,
            text_by_kind=arrays,
            branch=sets.branch_N[index],
            teacher=sets.teacher_N[index],
            teacher_TYXC=teacher_TYXC,
            image_ID=image_ID,
        )
