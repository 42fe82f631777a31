"""Checks of all samples of a read in one go, compiled, without the interpreter's lock: tar names, crc32, `.npy` headers, the clip id in the `.json`.

It says of each sample "all is as it should be", or that something is not, which may be damage or may be merely unusual (a header of another length, a
record with nested objects). What it is, and in which words it is told, `training.direct_read` finds out by itself, member by member. The checksum is
zlib-ng's own function, called by its address; where that wheel or its symbol is not there, `find_good` is None and every sample takes the long way.

Compiled at the first import on a machine (some seconds), then kept beside the module. Memory is given by addresses, which the caller keeps alive.

Legend: n samples of the read, N samples of the sets, M member kinds in the order of `schemas.shards.MEMBER_ORDER`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding
from numba import types

from schemas.shards import MEMBER_ORDER
from training.sample_layout import MEMBER_AXES, SampleLayout
from training.sample_sets import SampleSets

__all__ = ["NPY_HEADER_BYTES", "facts_of", "find_good"]

NPY_HEADER_BYTES = 128
"""Of the headers that `numpy.save` writes for arrays of a few axes; others take the long way."""

_TAR_BLOCK = 512
_AXES_M = np.array(MEMBER_AXES, np.int64)
_LATENT = MEMBER_ORDER.index("latent.npy")
_MOST_JSON_BYTES = 4096
_MOST_DIGITS = 9
_SUFFIX_LENGTH_M = np.array([len(f".{name}\0") for name in MEMBER_ORDER], np.int64)
_SUFFIX_MB = np.zeros((len(MEMBER_ORDER), int(_SUFFIX_LENGTH_M.max())), np.uint8)
for _kind, _name in enumerate(MEMBER_ORDER):
    _SUFFIX_MB[_kind, : _SUFFIX_LENGTH_M[_kind]] = np.frombuffer(f".{_name}\0".encode(), np.uint8)
_HEAD = np.frombuffer(b"\x93NUMPY\x01\x00v\x00{'descr': '<f2', 'fortran_order': False, 'shape': (", np.uint8)
_KEY = np.frombuffer(b'"clip_id"', np.uint8)
_QUOTE, _COLON, _SPACE, _BRACE, _COMMA, _ZERO, _NINE = (ord(letter) for letter in '": {,09')
_CLOSE = np.frombuffer(b"), }", np.uint8)
_NEWLINE = ord("\n")

_address = types.uintp
_copy = types.ExternalFunction("memcpy", _address(_address, _address, _address))
_differ = types.ExternalFunction("memcmp", types.intc(_address, _address, _address))
_crc32 = types.ExternalFunction("zng_crc32_z", types.uint32(types.uint32, _address, _address))


def facts_of(sets: SampleSets, layout: SampleLayout) -> tuple[np.ndarray, ...]:
    """What `find_good` asks of all samples, in its order and types."""
    facts = (
        (layout.name_NB, np.uint8),
        (layout.name_length_N, np.int64),
        (layout.rest_start_NM, np.int64),
        (sets.member_length_NM, np.int64),
        (sets.member_crc32_NM, np.uint32),
        (layout.kept_NM, np.bool_),
        (layout.latent_begin_N, np.int64),
        (sets.latent_shape_N4, np.int64),
    )
    return tuple(np.require(values, dtype, ["C", "W"]) for values, dtype in facts)


def _has_crc32() -> bool:
    """Whether zlib-ng's function can be called from compiled code."""
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return False
    binding.load_library_permanently(zlib_ng.__file__)
    return binding.address_of_symbol("zng_crc32_z") is not None


@numba.njit(nogil=True, error_model="numpy", inline="never")
def _shape_of(header: np.ndarray, axes: int, shape: np.ndarray) -> Any:
    """Fill `shape` from a header of float16 numbers along `axes` axes; whether it is exactly as `numpy.save` writes it."""
    for at in range(len(_HEAD)):
        if header[at] != _HEAD[at]:
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
        if at == begin:
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
        same = True
        for index in range(1, len(_KEY)):
            if record[at + index] != _KEY[index]:
                same = False
                break
        if same:
            if found >= 0:
                return False
            found = at + len(_KEY)
    if found < 0 or found + name_length + 4 > length or record[found] != _COLON:
        return False
    found += 2 if record[found + 1] == _SPACE else 1
    if record[found] != _QUOTE or record[found + name_length + 1] != _QUOTE:
        return False
    for index in range(name_length):
        if record[found + 1 + index] != name[index]:
            return False
    return True


def _find_good(
    first: int,
    rest_n: np.ndarray,
    latent_n: np.ndarray,
    latent_bytes_n: np.ndarray,
    tail_n: np.ndarray,
    name_NB: np.ndarray,
    name_length_N: np.ndarray,
    rest_start_NM: np.ndarray,
    length_NM: np.ndarray,
    crc32_NM: np.ndarray,
    kept_NM: np.ndarray,
    latent_begin_N: np.ndarray,
    latent_shape_N4: np.ndarray,
    shape_nM4: np.ndarray,
) -> Any:
    """Which of the samples from `first` on are as the samples table says; `shape_nM4` takes the shapes of their arrays.

    Addresses: of each sample's rest, of its latent's place, which has `latent_bytes_n` bytes, and of the frames behind it that its bucket leaves out
    (anything where there are none). A place of 0 bytes: the sample is not looked at.
    """
    count = len(rest_n)
    good_n = np.zeros(count, np.bool_)
    header, record = np.empty(NPY_HEADER_BYTES, np.uint8), np.empty(_MOST_JSON_BYTES, np.uint8)
    for each in range(count):
        sample = first + each
        if not latent_bytes_n[each]:
            continue
        name, name_length = name_NB[sample], name_length_N[sample]
        good = True
        for kind in range(len(_AXES_M)):
            if not kept_NM[sample, kind]:
                continue
            length, start = length_NM[sample, kind], rest_n[each] + np.uint64(rest_start_NM[sample, kind])
            tar_name = start - np.uint64(_TAR_BLOCK)
            suffix = _SUFFIX_MB[kind].ctypes.data
            good = _differ(tar_name, name.ctypes.data, name_length) == 0
            good = good and _differ(tar_name + np.uint64(name_length), suffix, _SUFFIX_LENGTH_M[kind]) == 0
            if not good:
                break
            if kind == _LATENT:
                head = latent_begin_N[sample] - rest_start_NM[sample, kind]
                tail = length - head - latent_bytes_n[each]
                crc = _crc32(np.uint32(0), start, head)
                crc = _crc32(crc, latent_n[each], latent_bytes_n[each])
                if tail:
                    crc = _crc32(crc, tail_n[each], tail)
            else:
                head = NPY_HEADER_BYTES
                crc = _crc32(np.uint32(0), start, length)
            if crc != crc32_NM[sample, kind]:
                good = False
                break
            axes = _AXES_M[kind]
            if axes:
                if head != NPY_HEADER_BYTES or length < NPY_HEADER_BYTES:
                    good = False
                    break
                _copy(header.ctypes.data, start, NPY_HEADER_BYTES)
                shape = shape_nM4[each, kind]
                good = _shape_of(header, axes, shape)
                num_bytes = 2
                for axis in range(axes):
                    num_bytes *= shape[axis]
                    good = good and (kind != _LATENT or shape[axis] == latent_shape_N4[sample, axis])
                good = good and head + num_bytes == length
            elif length <= _MOST_JSON_BYTES:
                _copy(record.ctypes.data, start, length)
                good = _is_of_clip(record, length, name, name_length)
            else:
                good = False
            if not good:
                break
        good_n[each] = good
    return good_n


_INT64, _INT64S, _INT64_PAIRS = types.int64, types.int64[::1], types.int64[:, ::1]
_SIGNATURE = types.boolean[::1](
    _INT64,
    types.uint64[::1],
    types.uint64[::1],
    _INT64S,
    types.uint64[::1],
    types.uint8[:, ::1],
    _INT64S,
    _INT64_PAIRS,
    _INT64_PAIRS,
    types.uint32[:, ::1],
    types.boolean[:, ::1],
    _INT64S,
    _INT64_PAIRS,
    types.int64[:, :, ::1],
)
find_good: Callable[..., np.ndarray] | None = None
"""`_find_good`, compiled; None where zlib-ng is not there."""
if _has_crc32():
    find_good = numba.njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")(_find_good)
