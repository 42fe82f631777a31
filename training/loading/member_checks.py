"""One sample that was read into place, looked at member by member: its arrays, or what is wrong with it in words.

The long way, for samples that `sample_kernel` does not find good at a glance, and where that is not to be had. Its verdict counts.
"""

from __future__ import annotations

import numpy as np

from schemas.errors import ShardError
from schemas.shards import MEMBER_ORDER
from training.loading.checksum import crc32
from training.loading.clip_arrays import (
    NpyHeader,
    check_clip_id,
    check_crc32,
    check_tar_name,
    read_npy_header,
)
from training.loading.sample_layout import MEMBER_AXES, SampleLayout
from training.loading.sample_sets import SampleSets

__all__ = ["KEYS", "checked_members"]

_TAR_BLOCK = 512
_LATENT, _JSON = MEMBER_ORDER.index("latent.npy"), MEMBER_ORDER.index("json")
KEYS = tuple(name.removeprefix("text_").removesuffix(".npy") for name in MEMBER_ORDER)
"""Of the arrays of a sample: caption kinds, teacher, image."""
_FLOAT16 = np.dtype(np.float16)


def checked_members(
    sets: SampleSets,
    layout: SampleLayout,
    index: int,
    latent: memoryview,
    rest: memoryview,
    tail: memoryview | None,
) -> dict[str, np.ndarray]:
    """Views of the arrays that the run uses, but for the latent, by `KEYS`; `latent` is what lies in its place, `tail` the frames behind it.

    Raises:
        ShardError: a member is damaged, of another clip, or not what the samples table says.
    """
    clip_id = sets.clip_id_N[index]
    starts, lengths = layout.rest_start_NM[index].tolist(), sets.member_length_NM[index].tolist()
    crcs = sets.member_crc32_NM[index].tolist()
    arrays: dict[str, np.ndarray] = {}
    for kind in np.flatnonzero(layout.kept_NM[index]).tolist():
        name, at = MEMBER_ORDER[kind], starts[kind]
        check_tar_name(clip_id, name, rest[at - _TAR_BLOCK : at])
        if kind == _LATENT:
            head = rest[at : int(layout.latent_begin_N[index])]
            found = crc32(latent, crc32(head))
            check_crc32(clip_id, name, found if tail is None else crc32(tail, found), crcs[kind])
            header = _header(clip_id, name, head, MEMBER_AXES[kind])
            shape = tuple(sets.latent_shape_N4[index].tolist())
            if header.shape != shape or header.start != len(head):
                raise ShardError(f"clip {clip_id}: {name} has shape {header.shape}, the samples table says {shape}")
            continue
        data = rest[at : at + lengths[kind]]
        check_crc32(clip_id, name, crc32(data), crcs[kind])
        if kind == _JSON:
            check_clip_id(clip_id, data)
        else:
            arrays[KEYS[kind]] = _array(clip_id, name, data, MEMBER_AXES[kind])
    return arrays


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
