"""What clips look like, decoded from the latents that were trained on: of a video its first, middle and last frame side by side, as a JPEG.

So the pictures show what the network saw, codec losses and all, and no source has to be at hand. A codec is causal: its first latent frame alone
gives the first picture, and only that is decoded for `first`, which is what a large codec on a CPU can afford. Price: for a strip the whole clip is
decoded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from schemas.buckets import Bucket
from schemas.command import progress
from schemas.errors import ModelMissingError, ShardError, UsageError
from schemas.shards import SetInfo
from training.whatwas.records import ClipRecord, StepRecord
from training.whatwas.run_folder import RunFolder
from training.whatwas.set_rows import SampleRow

if TYPE_CHECKING:
    from encoders.latents import LatentCodec

__all__ = ["Picture", "Pictures", "PicturesOf", "clip_pictures", "strip_jpeg"]

PicturesOf = Literal["strip", "first", "none"]
_LONG_SIDE = 192
"""Pixels of a picture's longer side, at most."""
_GAP = 2
_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One clip's pictures, or why there are none."""

    jpeg: bytes | None
    problem: str | None = None

    @property
    def address(self) -> str:
        """As a page takes it."""
        assert self.jpeg is not None
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")


PictureKey = tuple[str, int, int, str]
"""Plan hash, plan-wide shard, ordinal, bucket."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of clips, and what somebody who looks at them should know."""

    found: Mapping[PictureKey, Picture]
    notes: tuple[str, ...] = ()

    def of(self, plan_hash: str, clip: ClipRecord) -> Picture | None:
        """The pictures of a clip; None when none were asked for, or could be made."""
        return self.found.get((plan_hash, clip.shard, clip.ordinal, clip.bucket))


def clip_pictures(
    run: RunFolder, records: Sequence[StepRecord], *, show: PicturesOf, codec_path: Path | None = None
) -> Pictures:
    """Decode each distinct clip of some steps once.

    A codec that is not on this machine costs the pictures, not the answer: a note says what to do.

    Raises:
        UsageError: when `codec_path` is given for a codec without weights.
    """
    if show == "none" or not records:
        return Pictures(found={})
    info = run.plan(records[0].step).sets.infos[0]
    if codec_path is not None and info.codec == "dct":
        raise UsageError(f"--codec-path {codec_path} was given, but the codec 'dct' has no weights; leave it out")
    from training.parallel import choose_device
    from training.sampling.pipeline import open_codec

    try:
        codec = open_codec(info.codec, codec_path, choose_device("auto"))
    except ModelMissingError as error:
        return Pictures(found={}, notes=(f"no pictures: {error}; its folder can be given with --codec-path",))
    samples: dict[PictureKey, SampleRow] = {}
    for record in records:
        sets = run.plan(record.step).sets
        for clip in record.clips:
            key = (record.plan_hash, clip.shard, clip.ordinal, clip.bucket)
            if key not in samples:
                samples[key] = sets.row(clip.shard, clip.ordinal)
    found = {
        key: _picture(codec, row, Bucket.parse(key[3]), show)
        for key, row in progress(samples.items(), what="pictures", total=len(samples), is_part=True)
    }
    return Pictures(found=found, notes=_codec_notes(codec, info))


def strip_jpeg(frames_THWC: np.ndarray) -> bytes:
    """Its first, middle and last frame side by side (one of one, two of two), each `_LONG_SIDE` pixels long at most."""
    from PIL import Image

    picked = sorted({0, len(frames_THWC) // 2, len(frames_THWC) - 1})
    height, width = frames_THWC.shape[1:3]
    scale = min(1.0, _LONG_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    strip = Image.new("RGB", (size[0] * len(picked) + _GAP * (len(picked) - 1), size[1]), "white")
    for place, index in enumerate(picked):
        frame = Image.fromarray(np.ascontiguousarray(frames_THWC[index])).resize(size, Image.Resampling.LANCZOS)
        strip.paste(frame, (place * (size[0] + _GAP), 0))
    stream = io.BytesIO()
    strip.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _picture(codec: LatentCodec, row: SampleRow, bucket: Bucket, show: PicturesOf) -> Picture:
    try:
        latent_TCHW = row.latent(bucket)
        frames_THWC = codec.decode(latent_TCHW[:1] if show == "first" else latent_TCHW)
    except ShardError as error:
        return Picture(jpeg=None, problem=f"no picture: {error}")
    except ValueError as error:
        return Picture(jpeg=None, problem=f"no picture: the codec does not take the latent ({error})")
    return Picture(jpeg=strip_jpeg(frames_THWC))


def _codec_notes(codec: LatentCodec, info: SetInfo) -> tuple[str, ...]:
    if codec.fingerprint == info.codec_fingerprint:
        return ()
    return (
        f"pictures are decoded by another codec than the one that made the set {info.set_name!r} "
        f"(fingerprint {codec.fingerprint}, set.json says {info.codec_fingerprint}): colours and detail may differ",
    )
