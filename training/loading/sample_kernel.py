"""Reads samples into place and checks them, compiled, without the interpreter's lock: tar names, crc32, `.npy` headers, the clip id of the json.

It says of each sample that it is good, or that it is there and something about it is not as usual, which may be damage or may be merely unusual (a
header of another length, a record with nested objects), or that it is not all there. What it is, and in which words it is told, `direct_read` finds
out member by member. Latents are read in pieces, whose checksum is taken while the processor's cache still holds them. The checksum is that of
zlib-ng, called by its symbol; where that wheel or its symbol is not there, every sample is looked at member by member.

Compiled at the first use on a machine (some seconds) and kept by numba, beside the module or in the user's cache folder; where it can keep nothing,
each process compiles. Memory is given by addresses, which the caller keeps alive. Lengths and positions must be those of regular samples
(`sample_layout`).

Legend: n samples of the read, N samples of the sets, M member kinds in the order of `schemas.shards.MEMBER_ORDER`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numba
import numpy as np
from llvmlite import binding
from numba import types

from schemas.shards import MEMBER_ORDER
from training.loading.sample_layout import MEMBER_AXES, SampleLayout
from training.loading.sample_sets import SampleSets

__all__ = ["GOOD", "NPY_HEADER_BYTES", "THERE", "compiled_read", "facts_of"]

NPY_HEADER_BYTES = 128
"""Of the headers that `numpy.save` writes for arrays of a few axes; others are looked at one by one."""
THERE, GOOD = 1, 2
"""Verdicts on a sample: read and not judged, and good. 0: not all of it is there."""

_TAR_BLOCK = 512
_MOST_JSON_BYTES = 4096
_PIECE_BYTES = 256 << 10
_MOST_DIGITS = 9
_LATENT = 0
assert MEMBER_ORDER[_LATENT] == "latent.npy"  # known to machine code that numba keeps, which would not notice a change
_HEAD = np.frombuffer(b"\x93NUMPY\x01\x00v\x00{'descr': '<f2', 'fortran_order': False, 'shape': (", np.uint8)
_KEY = np.frombuffer(b'"clip_id"', np.uint8)
_QUOTE, _COLON, _SPACE, _BRACE, _COMMA, _ZERO, _NINE = (ord(letter) for letter in '": {,09')
_CLOSE = np.frombuffer(b"), }", np.uint8)
_NEWLINE = ord("\n")

_settings: Any = numba.config
_address = types.uintp
_copy: Any = types.ExternalFunction("memcpy", _address(_address, _address, _address))
_differ: Any = types.ExternalFunction("memcmp", types.intc(_address, _address, _address))
_pread: Any = types.ExternalFunction("pread", types.int64(types.intc, _address, _address, types.int64))
_crc32: Any = types.ExternalFunction("zng_crc32_z", types.uint32(types.uint32, _address, _address))


def facts_of(sets: SampleSets, layout: SampleLayout) -> tuple[np.ndarray, ...]:
    """What the compiled function asks of member kinds and of all samples, in its order and types."""
    facts = (
        (sets.offset_N, np.int64),
        (sets.length_N, np.int64),
        (layout.name_NB, np.uint8),
        (layout.name_length_N, np.int64),
        (layout.rest_start_NM, np.int64),
        (sets.member_length_NM, np.int64),
        (sets.member_crc32_NM, np.uint32),
        (layout.kept_NM, np.bool_),
        (layout.latent_begin_N, np.int64),
        (layout.latent_bytes_N, np.int64),
        (layout.rest_length_N, np.int64),
        (layout.unneeded_begin_N, np.int64),
        (layout.unneeded_end_N, np.int64),
        (sets.latent_shape_N4, np.int64),
    )
    suffixes = [f".{name}\0".encode() for name in MEMBER_ORDER]
    length_M = np.array(list(map(len, suffixes)), np.int64)
    suffix_MB = np.array(suffixes, f"S{length_M.max()}").view(np.uint8).reshape(len(suffixes), -1)
    by_kind = (np.array(MEMBER_AXES, np.int64), suffix_MB, length_M)
    return *by_kind, *(np.require(values, dtype, ["C", "W"]) for values, dtype in facts)


@numba.njit(nogil=True, error_model="numpy", inline="never")
def _shape_of(header: np.ndarray, axes: int, shape: np.ndarray) -> Any:
    """Fill `shape` from a header of float16 numbers along `axes` axes; whether it is exactly as `numpy.save` writes it."""
    if _differ(header.ctypes.data, _HEAD.ctypes.data, len(_HEAD)) != 0:
        return False
    at = len(_HEAD)
    for axis in range(axes):
        if axis:
            if header[at] != _COMMA or header[at + 1] != _SPACE:
                return False
            at += 2
        begin, side = at, 0
        while _ZERO <= header[at] <= _NINE and at - begin < _MOST_DIGITS:
            side = side * 10 + header[at] - _ZERO
            at += 1
        if at == begin or (header[begin] == _ZERO and at > begin + 1):
            return False
        shape[axis] = side
    for index in range(len(_CLOSE)):
        if header[at + index] != _CLOSE[index]:
            return False
    for index in range(at + len(_CLOSE), NPY_HEADER_BYTES - 1):
        if header[index] != _SPACE:
            return False
    return header[NPY_HEADER_BYTES - 1] == _NEWLINE


@numba.njit(nogil=True, error_model="numpy", inline="never")
def _is_of_clip(record: np.ndarray, length: int, name: np.ndarray, name_length: int) -> Any:
    """Whether a flat JSON record says `"clip_id"` once, and with this name."""
    found = -1
    for at in range(length):
        if record[at] == _BRACE and at:
            return False
        if record[at] != _QUOTE or at + len(_KEY) > length:
            continue
        if _differ(record.ctypes.data + np.uint64(at), _KEY.ctypes.data, len(_KEY)) == 0:
            if found >= 0:
                return False
            found = at + len(_KEY)
    if found < 0 or found + name_length + 4 > length or record[found] != _COLON:
        return False
    found += 2 if record[found + 1] == _SPACE else 1
    if record[found] != _QUOTE or record[found + name_length + 1] != _QUOTE:
        return False
    return _differ(record.ctypes.data + np.uint64(found + 1), name.ctypes.data, name_length) == 0


@numba.njit(nogil=True, error_model="numpy", inline="never")
def _fill(descriptor: int, address: Any, length: int, offset: int) -> Any:
    """Read bytes of a file; whether all of them are there. Without a file (below 0) they are."""
    while descriptor >= 0 and length > 0:
        count = _pread(descriptor, address, length, offset)
        if count <= 0:
            return False
        address, length, offset = address + np.uint64(count), length - count, offset + count
    return True


@numba.njit(nogil=True, error_model="numpy", inline="never")
def _summed(descriptor: int, address: Any, length: int, offset: int, crc: int) -> Any:
    """Read bytes of a file piece by piece: whether all are there, and the checksum so far."""
    for begin in range(0, length, _PIECE_BYTES):
        piece, size = address + np.uint64(begin), min(_PIECE_BYTES, length - begin)
        if not _fill(descriptor, piece, size, offset + begin):
            return False, crc
        crc = _crc32(crc, piece, size)
    return True, crc


@numba.njit(nogil=True, error_model="numpy", inline="never")
def _latent_summed(
    descriptor: int,
    offset: int,
    rest: Any,
    head: tuple[int, int],
    place: tuple[Any, int],
    tail: tuple[Any, int],
) -> Any:
    """Read a sample from `offset` up to the end of its latent: whether all is there, and the latent's checksum.

    `head`: first byte of the latent's npy header in the rest, and of its numbers; `place` and `tail`: address and bytes.
    """
    start, begin = head
    if not _fill(descriptor, rest, begin, offset):
        return False, np.uint32(0)
    crc = _crc32(np.uint32(0), rest + np.uint64(start), begin - start)
    there, crc = _summed(descriptor, place[0], place[1], offset + begin, crc)
    if there and tail[1]:
        there, crc = _summed(descriptor, tail[0], tail[1], offset + begin + place[1], crc)
    return there, crc


@numba.njit(nogil=True, error_model="numpy", inline="never")
def _is_array(start: Any, length: int, head: int, axes: int, header: np.ndarray, shape: np.ndarray) -> Any:
    """Whether a member is a usual header and just as many float16 numbers as it says; `header` is scratch, `shape` takes its sides."""
    if head != NPY_HEADER_BYTES or length < NPY_HEADER_BYTES:
        return False
    _copy(header.ctypes.data, start, NPY_HEADER_BYTES)
    if not _shape_of(header, axes, shape):
        return False
    num_bytes = 2
    for axis in range(axes):
        num_bytes = min(num_bytes * shape[axis], length + 1)  # more is wrong, however much
    return head + num_bytes == length


def _read(
    descriptor: int,
    first: int,
    rest_n: np.ndarray,
    latent_n: np.ndarray,
    place_bytes_n: np.ndarray,
    tail_n: np.ndarray,
    axes_M: np.ndarray,
    suffix_MB: np.ndarray,
    suffix_length_M: np.ndarray,
    offset_N: np.ndarray,
    length_N: np.ndarray,
    name_NB: np.ndarray,
    name_length_N: np.ndarray,
    rest_start_NM: np.ndarray,
    length_NM: np.ndarray,
    crc32_NM: np.ndarray,
    kept_NM: np.ndarray,
    latent_begin_N: np.ndarray,
    latent_bytes_N: np.ndarray,
    rest_length_N: np.ndarray,
    unneeded_begin_N: np.ndarray,
    unneeded_end_N: np.ndarray,
    latent_shape_N4: np.ndarray,
    shape_nM4: np.ndarray,
) -> Any:
    """Read the samples from `first` on: the verdict on each; `shape_nM4` takes the shapes of the arrays of good ones.

    Addresses: of each sample's rest, of its latent's place, which has `place_bytes_n` bytes, and of the frames behind it that its bucket leaves out
    (anything where there are none). A place of 0 bytes: the whole sample goes to where its rest would, and is good when it is there. A descriptor
    below 0: all has been read already.
    """
    count = len(rest_n)
    verdict_n = np.zeros(count, np.uint8)
    header, record = np.empty(NPY_HEADER_BYTES, np.uint8), np.empty(_MOST_JSON_BYTES, np.uint8)
    for each in range(count):
        sample = first + each
        rest, offset = rest_n[each], offset_N[sample]
        if not place_bytes_n[each]:
            if _fill(descriptor, rest, length_N[sample], offset):
                verdict_n[each] = GOOD
            continue
        begin, latent_bytes = latent_begin_N[sample], latent_bytes_N[sample]
        head_start, behind = rest_start_NM[sample, _LATENT], unneeded_begin_N[sample] - latent_bytes
        place = latent_n[each], place_bytes_n[each]
        tail = tail_n[each], latent_bytes - place_bytes_n[each]
        there, latent_crc = _latent_summed(descriptor, offset, rest, (head_start, begin), place, tail)
        at, length = offset + begin + latent_bytes, behind - begin
        there = there and _fill(descriptor, rest + np.uint64(begin), length, at)
        at, length = offset + unneeded_end_N[sample], rest_length_N[sample] - behind
        if not there or not _fill(descriptor, rest + np.uint64(behind), length, at):
            continue
        name, name_length = name_NB[sample], name_length_N[sample]
        good = True
        for kind in range(len(axes_M)):
            if not kept_NM[sample, kind]:
                continue
            length, start = length_NM[sample, kind], rest + np.uint64(rest_start_NM[sample, kind])
            tar_name = start - np.uint64(_TAR_BLOCK)
            suffix = suffix_MB[kind].ctypes.data
            good = _differ(tar_name, name.ctypes.data, name_length) == 0
            good = good and _differ(tar_name + np.uint64(name_length), suffix, suffix_length_M[kind]) == 0
            head = begin - head_start if kind == _LATENT else NPY_HEADER_BYTES
            crc = latent_crc if kind == _LATENT else _crc32(np.uint32(0), start, length)
            axes = axes_M[kind]
            if not good or crc != crc32_NM[sample, kind]:
                good = False
            elif axes:
                shape = shape_nM4[each, kind]
                good = _is_array(start, length, head, axes, header, shape)
                if kind == _LATENT:
                    for axis in range(axes):
                        good = good and shape[axis] == latent_shape_N4[sample, axis]
            elif length <= _MOST_JSON_BYTES:
                _copy(record.ctypes.data, start, length)
                good = _is_of_clip(record, length, name, name_length)
            else:
                good = False
            if not good:
                break
        verdict_n[each] = GOOD if good else THERE
    return verdict_n


_INT64, _INT64S, _INT64_PAIRS = types.int64, types.int64[::1], types.int64[:, ::1]
_SIGNATURE = types.uint8[::1](
    _INT64,
    _INT64,
    types.uint64[::1],
    types.uint64[::1],
    _INT64S,
    types.uint64[::1],
    _INT64S,
    types.uint8[:, ::1],
    _INT64S,
    _INT64S,
    _INT64S,
    types.uint8[:, ::1],
    _INT64S,
    _INT64_PAIRS,
    _INT64_PAIRS,
    types.uint32[:, ::1],
    types.boolean[:, ::1],
    _INT64S,
    _INT64S,
    _INT64S,
    _INT64S,
    _INT64S,
    _INT64_PAIRS,
    types.int64[:, :, ::1],
)


@cache
def compiled_read() -> Callable[..., np.ndarray] | None:
    """`_read`, compiled; None where zlib-ng's function is not there to be called."""
    try:
        from zlib_ng import zlib_ng

        binding.load_library_permanently(zlib_ng.__file__)
    except (ImportError, RuntimeError):
        return None
    if binding.address_of_symbol("zng_crc32_z") is None or _settings.DISABLE_JIT:
        return None
    try:
        return _compiled(kept=True)
    except (RuntimeError, OSError):  # nowhere to keep it
        return _compiled(kept=False)


def _compiled(*, kept: bool) -> Callable[..., np.ndarray]:
    compiled: Any = numba.njit(_SIGNATURE, cache=kept, nogil=True, error_model="numpy")(_read)
    return cast(Callable[..., np.ndarray], compiled)
