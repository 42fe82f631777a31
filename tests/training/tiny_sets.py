"""Small packed sets of random arrays: real tars, tables and hashes, by the contract in schemas/ and nothing else."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.buckets import latent_frames
from schemas.ids import clip_id, content_hash
from schemas.shards import SetInfo, ShardInfo, samples_path, shard_name, write_set_info
from schemas.tables import SAMPLES, table_from_rows, write_table

__all__ = ["MIXED_CLIPS", "TEXT_WIDTH", "Clip", "pack_set"]

TEXT_WIDTH, TEACHER_WIDTH, CHANNELS = 16, 12, 16


@dataclass(frozen=True)
class Clip:
    """One clip to pack."""

    frames: int
    height: int = 32
    width: int = 48
    teacher: bool = True
    branch: str = ""
    """Empty: real, an image or a video by its frames."""
    teacher_grid: tuple[int, int, int] | None = None
    """Of the stored features; None: the token grid."""

    @property
    def branch_name(self) -> str:
        return self.branch or ("image_real" if self.frames == 1 else "video_real")


MIXED_CLIPS = [
    Clip(frames, *size, teacher=(index + frames) % 3 != 0)
    for index in range(10)
    for frames, size in ((1, (32, 48)), (33, (32, 48)), (65, (32, 48)), (1, (48, 32)))
]


def pack_set(
    folder: Path,
    clips: Sequence[Clip] = MIXED_CLIPS,
    *,
    per_shard: int = 7,
    seed: int = 0,
    first: int = 0,
    text_width: int = TEXT_WIDTH,
    teacher_width: int = TEACHER_WIDTH,
    teacher_by_branch: dict[str, str | None] | None = None,
    image_shape: tuple[int, int] | None = None,
) -> Path:
    """Write a set folder with random latents, text states and teacher features, for videos image tokens of `image_shape` too.

    Clips and sources count from `first`.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows, shards = [], []
    for index in range(0, len(clips), per_shard):
        shard = index // per_shard
        widths = (text_width, teacher_width, image_shape)
        some = clips[index : index + per_shard]
        rows += _pack_shard(folder / shard_name(shard), shard, some, first + index, generator, widths)
        path = folder / shard_name(shard)
        with path.open("rb") as stream:
            digest = content_hash(stream)
        size = path.stat().st_size
        shards.append(ShardInfo(name=path.name, size_bytes=size, sha256=digest, num_samples=len(some)))
    write_table(samples_path(folder), table_from_rows(SAMPLES, rows), SAMPLES)
    np.save(folder / "null_text.npy", generator.standard_normal((2, text_width)).astype(np.float16))
    write_set_info(
        folder,
        SetInfo(
            set_name="tiny",
            fps=24.0,
            codec="dct",
            codec_fingerprint="codec",
            latent_channels=CHANNELS,
            text_encoder="minilm",
            text_encoder_fingerprint="text",
            text_width=text_width,
            teacher_by_branch=teacher_by_branch or {"video_real": "random", "image_real": "random"},
            teacher_width=teacher_width,
            image_encoder=None if image_shape is None else "siglip",
            image_width=None if image_shape is None else image_shape[1],
            seed=seed,
            shards=tuple(shards),
        ),
    )
    return folder


def _pack_shard(
    path: Path,
    shard: int,
    clips: Sequence[Clip],
    first: int,
    generator: np.random.Generator,
    widths: tuple[int, int, tuple[int, int] | None],
) -> list[dict[str, Any]]:
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for ordinal, clip in enumerate(clips):
            name = clip_id(f"{first + ordinal:064x}", 0, 1000)
            start, members, tokens = archive.offset, [], {}
            for member, data, count in _members(name, clip, generator, *widths):
                tokens[member] = count
                header = tarfile.TarInfo(f"{name}.{member}")
                header.size = len(data)
                members.append(
                    {"name": member, "offset": archive.offset + 512, "length": len(data), "crc32": zlib.crc32(data)}
                )
                archive.addfile(header, io.BytesIO(data))
            rows.append(
                {
                    "clip_id": name,
                    "set": "tiny",
                    "shard_index": shard,
                    "ordinal": ordinal,
                    "offset": start,
                    "length": archive.offset - start,
                    "members": members,
                    "latent_shape": [latent_frames(clip.frames), CHANNELS, clip.height // 8, clip.width // 8],
                    "frames": clip.frames,
                    "height": clip.height,
                    "width": clip.width,
                    **{f"text_tokens_{kind}": tokens[f"text_{kind}.npy"] for kind in ("long", "short", "first")},
                    "branch": clip.branch_name,
                    "domain": "",
                    "subject": "",
                    "style": "",
                    "source": f"{first + ordinal:064x}",
                    "start_us": 0,
                    "admissions": ["144p"],
                    "has_teacher": clip.teacher,
                }
            )
    return rows


def _members(
    name: str,
    clip: Clip,
    generator: np.random.Generator,
    text_width: int,
    teacher_width: int,
    image_shape: tuple[int, int] | None,
) -> list[tuple[str, bytes, int]]:
    """(member, bytes, rows of the array) in the order of the contract."""
    frames, rows, columns = latent_frames(clip.frames), clip.height // 8, clip.width // 8
    arrays: dict[str, tuple[int, ...]] = {"latent.npy": (frames, CHANNELS, rows, columns)}
    for kind, longest in (("long", 9), ("short", 5), ("first", 4)):
        arrays[f"text_{kind}.npy"] = (int(generator.integers(2, longest)), text_width)
    if clip.teacher:
        arrays["teacher.npy"] = (*(clip.teacher_grid or (frames, rows // 2, columns // 2)), teacher_width)
    if image_shape is not None and clip.frames > 1:
        arrays["image.npy"] = image_shape
    members = []
    for member, shape in arrays.items():
        stream = io.BytesIO()
        np.save(stream, generator.standard_normal(shape).astype(np.float16), allow_pickle=False)
        members.append((member, stream.getvalue(), shape[0]))
    return [*members, ("json", json.dumps({"clip_id": name}).encode(), 0)]
