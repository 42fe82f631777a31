"""Bytes of one packed sample to arrays: checked by clip id and crc32, read without copies, nothing unpickled or extracted.

The samples table says where each member's data lies, so no tar is walked: the 512-byte header before a member is looked at only for its
name, which must be the clip's. A bucket shorter than the clip takes the first latent frames: they are a prefix of the stored array. Only
teacher features that were stored on another grid are computed on, and so copied.
"""

from __future__ import annotations

import ast
import zlib
from dataclasses import dataclass

import numpy as np

from schemas.buckets import Bucket
from schemas.errors import DataError, ShardError
from schemas.shards import CAPTION_KINDS
from training.sample_sets import Sample
from training.teacher_grid import resample_teacher

__all__ = ["ClipArrays", "parse_clip", "parse_npy"]

_TAR_BLOCK = 512
_TAR_NAME_BYTES = 100
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True, kw_only=True)
class ClipArrays:
    """What training needs of one clip; arrays are views into the sample's bytes."""

    clip_id: str
    latent_TCHW: np.ndarray
    """float16, as many frames as the bucket."""
    text_by_kind: dict[str, np.ndarray]
    """Caption kind to float16 (tokens, width)."""
    branch: str = ""
    """One of `schemas.tables.BRANCHES`."""
    teacher: str | None = None
    """The teacher of the clip's branch, as its set says."""
    teacher_TYXC: np.ndarray | None = None
    """Its features, float16 on the bucket's token grid; None when the clip has none or nobody asked."""
    image_ID: np.ndarray | None = None
    """Tokens of the first frame, float16 (tokens, width); None when the clip has none or nobody asked."""


def parse_clip(
    sample: Sample, data: bytes | memoryview, bucket: Bucket, *, with_teacher: bool, with_image: bool = False
) -> ClipArrays:
    """Arrays of one sample for one bucket; `data` is the sample's whole byte range.

    Raises:
        ShardError: when a member is missing, damaged, of another clip, or of a shape that the bucket cannot use.
    """
    view = memoryview(data)
    if len(view) != sample.length:
        raise ShardError(f"clip {sample.clip_id}: {len(view)} of {sample.length} bytes are there; the shard breaks off")
    frames, rows, columns = bucket.latent_shape
    latent_TCHW = _member(sample, view, "latent.npy", axes=4)
    if latent_TCHW.shape != sample.latent_shape:
        raise ShardError(
            f"clip {sample.clip_id}: latent.npy has shape {latent_TCHW.shape}, the samples table says {sample.latent_shape}"
        )
    if latent_TCHW.shape[0] < frames or latent_TCHW.shape[2:] != (rows, columns):
        raise ShardError(
            f"clip {sample.clip_id}: latent of shape {latent_TCHW.shape} cannot be used in bucket {bucket}"
        )
    texts = {kind: _member(sample, view, f"text_{kind}.npy", axes=2) for kind in CAPTION_KINDS}
    image_ID = None
    if with_image and "image.npy" in sample.members:
        image_ID = _member(sample, view, "image.npy", axes=2)
    return ClipArrays(
        clip_id=sample.clip_id,
        latent_TCHW=latent_TCHW[:frames],
        text_by_kind=texts,
        branch=sample.branch,
        teacher=sample.teacher,
        teacher_TYXC=_teacher(sample, view, frames) if with_teacher and sample.has_teacher else None,
        image_ID=image_ID,
    )


def parse_npy(data: memoryview) -> np.ndarray:
    """A read-only view of a `.npy` file's array: versions 1 to 3, C order, plain numbers only.

    Raises:
        ValueError: for anything else, object arrays above all, whatever the damage.
    """
    try:
        return _parse_npy(data)
    except (SyntaxError, KeyError, TypeError, IndexError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"a broken .npy header: {type(error).__name__}: {error}") from error


def _parse_npy(data: memoryview) -> np.ndarray:
    if bytes(data[:6]) != _NPY_MAGIC:
        raise ValueError("not a .npy file")
    size_bytes = 2 if data[6] == 1 else 4
    start = 8 + size_bytes
    end = start + int.from_bytes(data[8:start], "little")
    header = ast.literal_eval(bytes(data[start:end]).decode("latin-1" if data[6] < 3 else "utf-8"))
    dtype = np.dtype(header["descr"])
    if dtype.kind not in "fiu" or header["fortran_order"]:
        raise ValueError(f"array of type {dtype}, fortran order {header['fortran_order']}; expected numbers in C order")
    return np.frombuffer(data[end:], dtype=dtype).reshape(header["shape"])


def _teacher(sample: Sample, view: memoryview, frames: int) -> np.ndarray:
    """Features on the token grid of the first latent frames."""
    stored_TYXC = _member(sample, view, "teacher.npy", axes=4)
    grid = (sample.latent_shape[0], sample.latent_shape[2] // 2, sample.latent_shape[3] // 2)
    try:
        return resample_teacher(stored_TYXC, grid)[:frames]
    except DataError as error:
        raise ShardError(f"clip {sample.clip_id}: {error}") from error


def _member(sample: Sample, view: memoryview, name: str, *, axes: int) -> np.ndarray:
    """One checked `.npy` member."""
    member = sample.members.get(name)
    if member is None:
        raise ShardError(f"clip {sample.clip_id}: the samples table lists no member {name}")
    start = member.offset - sample.offset
    header = bytes(view[start - _TAR_BLOCK : start - _TAR_BLOCK + _TAR_NAME_BYTES]).rstrip(b"\0")
    expected = f"{sample.clip_id}.{name}"
    if header != expected.encode():
        raise ShardError(f"clip {sample.clip_id}: the tar has member {header!r} where {expected!r} should be")
    data = view[start : start + member.length]
    if zlib.crc32(data) != member.crc32:
        raise ShardError(
            f"clip {sample.clip_id}: {name} is damaged (crc32 {zlib.crc32(data)}, expected {member.crc32})"
        )
    try:
        array = parse_npy(data)
    except ValueError as error:
        raise ShardError(f"clip {sample.clip_id}: {name} cannot be read ({error})") from error
    if array.ndim != axes or array.dtype != np.float16:
        raise ShardError(
            f"clip {sample.clip_id}: {name} is {array.dtype} with {array.ndim} axes, expected float16, {axes}"
        )
    return array
