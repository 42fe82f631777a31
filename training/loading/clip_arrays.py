"""Bytes of one packed sample to arrays: checked by clip id and crc32, read without copies, nothing unpickled or extracted.

The samples table says where each member's data lies, so no tar is walked: the 512-byte header before a member is looked at only for its
name, which must be the clip's; so must the `clip_id` in the `.json`. A bucket shorter than the clip takes the first latent frames: they are a prefix
of the stored array. Only teacher features that were stored on another grid are computed on, and so copied. Headers of `.npy` members are few and
come back all the time, so each distinct one is parsed once.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from schemas.buckets import Bucket
from schemas.errors import DataError, ShardError
from schemas.shards import CAPTION_KINDS
from training.loading.checksum import crc32
from training.loading.sample_sets import Sample
from training.loading.teacher_grid import resample_teacher

__all__ = [
    "ClipArrays",
    "NpyHeader",
    "check_clip_id",
    "check_crc32",
    "check_tar_name",
    "on_token_grid",
    "parse_clip",
    "parse_npy",
    "read_npy_header",
]

_TAR_BLOCK = 512
_TAR_NAME_BYTES = 100
_NPY_MAGIC = b"\x93NUMPY"
_USUAL_HEADER_BYTES = 128
_MOST_KNOWN = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipArrays:
    """What training needs of one clip; arrays are views into the sample's bytes, or into the micro-batch's latents."""

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


class NpyHeader(NamedTuple):
    """What a `.npy` file says of its array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """First byte of the numbers."""
    num_bytes: int
    """Of the numbers."""


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
    check_clip_id(sample.clip_id, _checked(sample, view, "json"))
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
    image_ID, teacher_TYXC = None, None
    if with_image and "image.npy" in sample.members:
        image_ID = _member(sample, view, "image.npy", axes=2)
    if with_teacher and sample.has_teacher:
        stored_TYXC = _member(sample, view, "teacher.npy", axes=4)
        teacher_TYXC = on_token_grid(sample.clip_id, stored_TYXC, sample.latent_shape, frames)
    return ClipArrays(
        clip_id=sample.clip_id,
        latent_TCHW=latent_TCHW[:frames],
        text_by_kind=texts,
        branch=sample.branch,
        teacher=sample.teacher,
        teacher_TYXC=teacher_TYXC,
        image_ID=image_ID,
    )


def parse_npy(data: memoryview) -> np.ndarray:
    """A read-only view of a `.npy` file's array: versions 1 to 3, C order, plain numbers only.

    Raises:
        ValueError: for anything else, object arrays above all, whatever the damage.
    """
    header = read_npy_header(data)
    try:
        return np.frombuffer(data[header.start :].toreadonly(), dtype=header.dtype).reshape(header.shape)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a broken .npy header: {type(error).__name__}: {error}") from error


def read_npy_header(data: memoryview) -> NpyHeader:
    """Type and shape of a `.npy` file, and where its numbers begin; ValueError as `parse_npy`."""
    key = bytes(data[:_USUAL_HEADER_BYTES])
    known = _KNOWN_HEADERS.get(key)
    if known is not None:
        return known
    try:
        header = _parse_header(data)
    except (SyntaxError, KeyError, TypeError, IndexError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"a broken .npy header: {type(error).__name__}: {error}") from error
    if header.start == len(key) and len(_KNOWN_HEADERS) < _MOST_KNOWN:
        _KNOWN_HEADERS[key] = header
    return header


_KNOWN_HEADERS: dict[bytes, NpyHeader] = {}
"""Whole headers of the usual length."""


def _parse_header(data: memoryview) -> NpyHeader:
    if bytes(data[:6]) != _NPY_MAGIC:
        raise ValueError("not a .npy file")
    size_bytes = 2 if data[6] == 1 else 4
    start = 8 + size_bytes
    end = start + int.from_bytes(data[8:start], "little")
    header = ast.literal_eval(bytes(data[start:end]).decode("latin-1" if data[6] < 3 else "utf-8"))
    dtype = np.dtype(header["descr"])
    if dtype.kind not in "fiu" or header["fortran_order"]:
        raise ValueError(f"array of type {dtype}, fortran order {header['fortran_order']}; expected numbers in C order")
    shape = tuple(header["shape"])
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError(f"array of shape {shape}; expected whole numbers")
    return NpyHeader(dtype, shape, end, prod(shape) * dtype.itemsize)


def check_tar_name(clip_id: str, name: str, header: bytes | memoryview) -> None:
    """ShardError unless a tar header, the 512 bytes before a member's data, is that of the clip's member."""
    found = bytes(header[:_TAR_NAME_BYTES]).partition(b"\0")[0]
    if found != f"{clip_id}.{name}".encode():
        raise ShardError(f"clip {clip_id}: the tar has member {found!r} where '{clip_id}.{name}' should be")


def check_crc32(clip_id: str, name: str, found: int, expected: int) -> None:
    """ShardError unless a member's checksum is that of the samples table."""
    if found != expected:
        raise ShardError(f"clip {clip_id}: {name} is damaged (crc32 {found}, expected {expected})")


def check_clip_id(clip_id: str, record: bytes | memoryview) -> None:
    """ShardError unless a `.json` member is that of the clip."""
    text, quoted = bytes(record), b'"%b"' % clip_id.encode()
    named = b'"clip_id":' + quoted in text or b'"clip_id": ' + quoted in text  # a quote within a text would be escaped
    if named and text.count(b'"clip_id"') == 1 and text.find(b"{", 1) < 0:  # nowhere else, and nothing to be nested in
        return
    try:
        found = json.loads(text)["clip_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"clip {clip_id}: json has no clip_id ({type(error).__name__}: {error})") from error
    if found != clip_id:
        raise ShardError(f"clip {clip_id}: json is that of clip {found!r}; the set was packed wrongly, pack it again")


def on_token_grid(clip_id: str, stored_TYXC: np.ndarray, latent_shape: tuple[int, ...], frames: int) -> np.ndarray:
    """A clip's teacher features on the token grid of its first latent frames; ShardError when they have none."""
    grid = (latent_shape[0], latent_shape[2] // 2, latent_shape[3] // 2)
    try:
        return resample_teacher(stored_TYXC, grid)[:frames]
    except DataError as error:
        raise ShardError(f"clip {clip_id}: {error}") from error


def _checked(sample: Sample, view: memoryview, name: str) -> memoryview:
    """A member's bytes."""
    member = sample.members.get(name)
    if member is None:
        raise ShardError(f"clip {sample.clip_id}: the samples table lists no member {name}")
    start = member.offset - sample.offset
    check_tar_name(sample.clip_id, name, view[max(0, start - _TAR_BLOCK) : start])
    data = view[start : start + member.length]
    check_crc32(sample.clip_id, name, crc32(data), member.crc32)
    return data


def _member(sample: Sample, view: memoryview, name: str, *, axes: int) -> np.ndarray:
    """One checked `.npy` member."""
    data = _checked(sample, view, name)
    try:
        array = parse_npy(data)
    except ValueError as error:
        raise ShardError(f"clip {sample.clip_id}: {name} cannot be read ({error})") from error
    if array.ndim != axes or array.dtype != np.float16:
        raise ShardError(
            f"clip {sample.clip_id}: {name} is {array.dtype} with {array.ndim} axes, expected float16, {axes}"
        )
    return array
