"""Synthetic sets of any size for the planner's benchmarks: set.json and samples.parquet as curation packs them, and no tars.

All columns are made by NumPy and Arrow, one row group of about a million clips at a time, so that ten million clips take less than 4 GiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.buckets import Bucket
from schemas.files import atomic_path
from schemas.shards import SetInfo, ShardInfo, samples_path, shard_name, write_set_info
from schemas.tables import MEMBER, SAMPLES

__all__ = ["SetShape", "bucket_counts", "write_set"]

GROUP_CLIPS = 1 << 20
END_OF_ARCHIVE_BYTES = 1024
LATENT_CHANNELS = 16
TEXT_TOKEN_BYTES = 768
JSON_BYTES = 600
NPY_HEADER_BYTES = 128
MEMBERS = ("latent.npy", "text_long.npy", "json")
HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class SetShape:
    """What a set looks like."""

    shards: int
    clips_per_shard: int = 1000
    buckets: tuple[str, ...]
    shares: tuple[float, ...]
    concentration: float | None = 1.0
    """Each tar's mix is from a Dirichlet whose parameters sum to this; None: every tar draws from the shares."""
    sorted_by_bucket: bool = False
    """Clips of a tar in the order of their buckets, else in random order."""
    domains: int = 8
    """Each tar draws its clips' domains from a Dirichlet of total concentration 8."""
    clips_per_source: int = 4
    """Clips of a source lie in one tar, at random places."""
    seed: int = 0

    @property
    def clips(self) -> int:
        """Clips of the set."""
        return self.shards * self.clips_per_shard


def write_set(folder: Path, shape: SetShape) -> Path:
    """Write `set.json` and `samples.parquet`; the same shape gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = np.empty(shape.shards, dtype=np.int64)
    with (
        atomic_path(samples_path(folder)) as temporary,
        pq.ParquetWriter(temporary, SAMPLES, compression="zstd") as writer,
    ):
        for first, table, shard_bytes in _groups(shape):
            sizes[first : first + len(shard_bytes)] = shard_bytes
            writer.write_table(table, row_group_size=table.num_rows)
    shards = tuple(
        ShardInfo(name=shard_name(index), size_bytes=int(size), sha256="0" * 64, num_samples=shape.clips_per_shard)
        for index, size in enumerate(sizes)
    )
    write_set_info(folder, _info(shape, shards))
    return folder


def bucket_counts(shape: SetShape) -> np.ndarray:
    """Clips by (shard, bucket), as `write_set` writes them."""
    groups = range(0, shape.shards, _shards_per_group(shape))
    return np.concatenate([_counts(shape, first, _rng(shape, first, 0)) for first in groups])


def _info(shape: SetShape, shards: tuple[ShardInfo, ...]) -> SetInfo:
    return SetInfo(
        set_name="144p",
        fps=24.0,
        codec="dct",
        codec_fingerprint="c" * 16,
        latent_channels=LATENT_CHANNELS,
        text_encoder="minilm",
        text_encoder_fingerprint="t" * 16,
        text_width=TEXT_TOKEN_BYTES // 2,
        teacher_by_branch={},
        teacher_width=None,
        seed=shape.seed,
        shards=shards,
    )


def _shards_per_group(shape: SetShape) -> int:
    return max(1, GROUP_CLIPS // shape.clips_per_shard)


def _rng(shape: SetShape, first: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([shape.seed, first, purpose])


def _counts(shape: SetShape, first: int, rng: np.random.Generator) -> np.ndarray:
    shards = min(_shards_per_group(shape), shape.shards - first)
    shares = np.array(shape.shares) / sum(shape.shares)
    mixes = np.tile(shares, (shards, 1))
    if shape.concentration is not None:
        mixes = rng.dirichlet(shares * shape.concentration, size=shards)
    return rng.multinomial(shape.clips_per_shard, mixes)


def _groups(shape: SetShape) -> Iterator[tuple[int, pa.Table, np.ndarray]]:
    """(first shard, rows, bytes of each tar) of each row group."""
    for first in range(0, shape.shards, _shards_per_group(shape)):
        counts = _counts(shape, first, _rng(shape, first, 0))
        bucket = np.repeat(np.tile(np.arange(len(shape.buckets)), len(counts)), counts.ravel())
        bucket = bucket.reshape(len(counts), shape.clips_per_shard)
        if not shape.sorted_by_bucket:
            bucket = _rng(shape, first, 1).permuted(bucket, axis=1)
        yield first, *_table(shape, first, bucket, _rng(shape, first, 2))


def _table(
    shape: SetShape, first: int, bucket_SxN: np.ndarray, rng: np.random.Generator
) -> tuple[pa.Table, np.ndarray]:
    shards, per_shard = bucket_SxN.shape
    bucket, rows = bucket_SxN.ravel(), bucket_SxN.size
    sides = [Bucket.parse(text) for text in shape.buckets]
    latents = np.array(
        [(side.latent_shape[0], LATENT_CHANNELS, *side.latent_shape[1:]) for side in sides], dtype=np.int32
    )
    frames, height, width = (
        np.array([getattr(side, name) for side in sides], dtype=np.int32)[bucket]
        for name in ("frames", "height", "width")
    )
    tokens = rng.integers(16, 160, size=rows, dtype=np.int32)
    payload = np.stack(
        [
            NPY_HEADER_BYTES + 2 * latents.astype(np.int64).prod(axis=1)[bucket],
            NPY_HEADER_BYTES + TEXT_TOKEN_BYTES * tokens.astype(np.int64),
            np.full(rows, JSON_BYTES),
        ],
        axis=1,
    )
    blocks = 512 + -(-payload // 512) * 512
    length = blocks.sum(axis=1)
    ends = length.reshape(shards, per_shard).cumsum(axis=1)
    offset = (ends - length.reshape(shards, per_shard)).ravel()
    member_offset = offset[:, None] + blocks.cumsum(axis=1) - blocks + 512
    sources = -(-per_shard // shape.clips_per_source)
    source = (first * sources + np.repeat(np.arange(shards) * sources, per_shard)) + rng.integers(sources, size=rows)
    columns = {
        "clip_id": _hex_strings(rng.integers(256, size=(rows, 12), dtype=np.uint8)),
        "set": _words(["144p"], np.zeros(rows, dtype=np.int32)),
        "shard_index": np.repeat(np.arange(first, first + shards, dtype=np.int32), per_shard),
        "ordinal": np.tile(np.arange(per_shard, dtype=np.int32), shards),
        "offset": offset,
        "length": length,
        "members": _members(member_offset, payload, rng),
        "latent_shape": pa.FixedSizeListArray.from_arrays(
            pa.array(latents[bucket].ravel()), type=SAMPLES.field("latent_shape").type
        ),
        "frames": frames,
        "height": height,
        "width": width,
        "text_tokens_long": tokens,
        "text_tokens_short": np.full(rows, 8, dtype=np.int32),
        "text_tokens_first": np.full(rows, 8, dtype=np.int32),
        "branch": _words(["video_real", "image_real"], (frames == 1).astype(np.int32)),
        "domain": _words(
            [f"domain-{index:02d}" for index in range(shape.domains)], _domains(shape, shards, per_shard, rng)
        ),
        "subject": _words([""], np.zeros(rows, dtype=np.int32)),
        "style": _words([""], np.zeros(rows, dtype=np.int32)),
        "source": _source_hashes(source),
        "start_us": rng.integers(10**9, size=rows),
        "admissions": pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32)), _words(["144p"], np.zeros(rows, dtype=np.int32))
        ),
        "has_teacher": np.zeros(rows, dtype=bool),
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, type=SAMPLES.field(name).type)
        for name, column in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=SAMPLES), ends[:, -1] + END_OF_ARCHIVE_BYTES


def _domains(shape: SetShape, shards: int, per_shard: int, rng: np.random.Generator) -> np.ndarray:
    mixes = rng.dirichlet(np.full(shape.domains, 8.0 / shape.domains), size=shards).cumsum(axis=1)
    drawn = rng.random((shards, per_shard))
    return np.minimum((drawn[:, :, None] > mixes[:, None, :]).sum(axis=2), shape.domains - 1).astype(np.int32).ravel()


def _words(words: list[str], index: np.ndarray) -> pa.Array:
    return pa.array(words).take(pa.array(index))


def _members(offset_Nx3: np.ndarray, length_Nx3: np.ndarray, rng: np.random.Generator) -> pa.Array:
    rows = len(offset_Nx3)
    fields = [
        _words(list(MEMBERS), np.tile(np.arange(len(MEMBERS), dtype=np.int32), rows)),
        pa.array(offset_Nx3.ravel()),
        pa.array(length_Nx3.ravel()),
        pa.array(rng.integers(1 << 32, size=offset_Nx3.size, dtype=np.uint32)),
    ]
    starts = pa.array(np.arange(rows + 1, dtype=np.int32) * len(MEMBERS))
    return pa.ListArray.from_arrays(starts, pa.StructArray.from_arrays(fields, fields=list(MEMBER)))


def _hex_strings(values_NxB: np.ndarray) -> pa.Array:
    """Two hex digits for each byte."""
    digits = np.stack([HEX[values_NxB >> 4], HEX[values_NxB & 15]], axis=2)
    rows, width = len(values_NxB), 2 * values_NxB.shape[1]
    starts = np.arange(rows + 1, dtype=np.int32) * np.int32(width)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(starts), pa.py_buffer(np.ascontiguousarray(digits)))


def _source_hashes(number: np.ndarray) -> pa.Array:
    """64 hex digits that end in the number."""
    values, index = np.unique(number, return_inverse=True)
    bytes_Nx32 = np.zeros((len(values), 32), dtype=np.uint8)
    bytes_Nx32[:, 24:] = values.astype(">u8").view(np.uint8).reshape(-1, 8)
    return _hex_strings(bytes_Nx32).take(pa.array(index))
