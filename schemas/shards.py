"""The set folder: WebDataset tars, `samples.parquet`, `set.json` and `null_text.npy`.

    <set>/set.json            SetInfo: codec, encoders, teachers, fps, and the list of shards
    <set>/samples.parquet     one row per sample (schemas.tables.SAMPLES)
    <set>/null_text.npy       text states of the empty prompt, float16 (tokens, width), for text dropout
    <set>/shard-000000.tar    members <clip_id>.latent.npy, .text_long.npy, .text_short.npy, .text_first.npy, [.teacher.npy, .image.npy], .json

A latent is float16 T C H W, so that its first 9 or 17 frames are a contiguous prefix and ARE the 33- or 65-frame clip. Text states are
float16 (tokens, width), trimmed of padding. Teacher features are float16 (T, Y, X, width) on the token grid. Image tokens
are float16 (tokens, width), of the first frame. Members stand in exactly the order of `MEMBER_ORDER`. Nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from schemas.config import StrictConfig, build_config, read_yaml
from schemas.errors import DataError
from schemas.files import write_json

__all__ = [
    "CAPTION_KINDS",
    "MEMBER_ORDER",
    "SET_FORMAT_VERSION",
    "SampleRecord",
    "SetInfo",
    "ShardInfo",
    "read_set_info",
    "samples_path",
    "shard_address",
    "shard_name",
    "write_set_info",
]

SET_FORMAT_VERSION = 1
CAPTION_KINDS = ("long", "short", "first")
MEMBER_ORDER = ("latent.npy", "text_long.npy", "text_short.npy", "text_first.npy", "teacher.npy", "image.npy", "json")


def shard_name(index: int) -> str:
    """`shard_name(7) == "shard-000007.tar"`."""
    return f"shard-{index:06d}.tar"


def samples_path(set_folder: Path) -> Path:
    """Where a set's samples table lies."""
    return set_folder / "samples.parquet"


def shard_address(set_folder: Path, info: SetInfo, name: str) -> str:
    """Path or URL of a set's tar.

    `shard_address(Path("sets/a"), info, "b.tar")` is `sets/a/b.tar`, or `s3://bucket/tars/b.tar` if `info.location` is `s3://bucket/tars`.
    """
    return str(set_folder / name) if info.location is None else f"{info.location.rstrip('/')}/{name}"


class ShardInfo(StrictConfig):
    """One tar of a set."""

    name: str
    """File name; in an indexed set the path below the set's location."""
    size_bytes: int
    sha256: str
    """Hex; "" in an indexed set, whose tars were never read whole."""
    num_samples: int
    """Samples that samples.parquet lists."""
    modified_ns: int | None = None
    """Time of the last change when the tar was indexed, in nanoseconds since 1970; null where it is not known."""
    etag: str | None = None
    """Version of the object when the tar was indexed, as an object store or web server names it; null for files."""


class SetInfo(StrictConfig):
    """`set.json`: everything that a reader of the set must know."""

    format_version: int = SET_FORMAT_VERSION
    origin: Literal["curated", "indexed"] = "curated"
    """curated: packed by `reelyard-curate`. indexed: made by `reelyard-plan index` of tars that somebody else packed; it can be planned, but says
    nothing of codecs and encoders (empty names, widths of 0), so that Reelyard's own trainer does not take it."""
    location: str | None = None
    """Folder or URL below which the tars lie; null: beside set.json."""
    set_name: str
    """The class: 64p, 144p, ..."""
    fps: float
    codec: str
    """Name of the latent codec, as `encoders.latents.get_codec` takes it."""
    codec_fingerprint: str
    latent_channels: int
    text_encoder: str
    text_encoder_fingerprint: str
    text_width: int
    teacher_by_branch: dict[str, str | None]
    """Branch to the name of its teacher, or null."""
    teacher_width: int | None
    image_encoder: str | None = None
    """Name of the encoder of `.image.npy`; null when the set has none."""
    image_width: int | None = None
    revisions: dict[str, str] = Field(default_factory=dict)
    """Model (`latents.wan`, `teacher.vjepa2`) to the revision of its weights: a commit of the hub, or a hash of the files."""
    null_text: str = "null_text.npy"
    seed: int
    """Of the permutation that spread samples over shards."""
    shards: tuple[ShardInfo, ...]


class SampleRecord(StrictConfig):
    """The `.json` member of a sample."""

    clip_id: str
    frames: int
    height: int
    width: int
    fps: float
    branch: str
    domain: str
    source: str
    """Content hash of the source."""
    start_us: int
    end_us: int
    caption_long: str
    caption_short: str
    caption_first: str


def write_set_info(set_folder: Path, info: SetInfo) -> None:
    """Write `set.json` atomically."""
    write_json(set_folder / "set.json", info.model_dump(mode="json"))


def read_set_info(set_folder: Path) -> SetInfo:
    """Read and check `set.json`.

    Raises:
        DataError: if it is missing or of another format version.
    """
    path = set_folder / "set.json"
    if not path.is_file():
        raise DataError(
            f"{set_folder} is not a set folder: set.json is missing; give the folder that `reelyard-curate` packed, for example sets/144p"
        )
    info = build_config(SetInfo, read_yaml(path), source=str(path))
    if info.format_version != SET_FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version {info.format_version}, expected {SET_FORMAT_VERSION}; pack the set again"
        )
    return info
