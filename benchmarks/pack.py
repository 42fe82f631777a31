"""Encode and pack against their parts measured alone, and tar writing against a plain sequential write.

    python benchmarks/pack.py [--quick] [--json FILE]

`floor_ratio`: CPU time of encode + pack of real clips (the functions that the workers run, models loaded) over the sum of decoding with
PyAV, conversion and resizing, the codec, the teacher and the text states, each alone over the same clips. Starting the engine and the workers is
not in it, on either side. `tar_write_ratio`: bytes per second of `assemble_shard` (read, check, tar, crc32, flushed) over those of the same bytes
written to one file in pieces of 1 MiB and flushed; both by the clock, the best of some rounds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from bench_table import row, show, write

from curation.decode import open_source
from curation.encoding.pixels import ClipRequest, clip_pixels, cover
from curation.encoding.settings import EncodeSettings
from curation.encoding.text import encode_captions, load_text_models
from curation.encoding.worker import EncodeModels, encode_clips, load_models
from curation.pack import PackEntry, assemble_shard
from curation.requests import SourceRequest
from encoders.registry import Registry
from schemas.buckets import nearest_size
from schemas.shards import CAPTION_KINDS, SampleRecord

CAPTION = "A man rides a bike along a road between fields while the camera follows him from the side. "
CROP = {"top": 0, "left": 0, "bottom": 272, "right": 640}
MIB = 1 << 20


def clip_rows(count: int, frames: int) -> list[dict[str, Any]]:
    """Windows of the film, one after another."""
    return [
        {
            "clip_id": f"{number:024x}",
            "start_us": round(number * frames / 24 * 1e6),
            "frames": frames,
            "clip_fps": 24.0,
            "crop": CROP,
        }
        for number in range(count)
    ]


def cpu_s(work: Callable[[], Any]) -> float:
    """CPU seconds of this process for one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def decode(path: Path, seconds: float) -> None:
    """PyAV alone: every picture up to the end of the last clip."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= seconds:
                break


def resize_s(path: Path, rows: list[dict[str, Any]], set_name: str) -> float:
    """CPU seconds of conversion to RGB and resizing, over pictures that were decoded outside the clock."""
    request = ClipRequest.from_row(rows[0], (set_name,))
    reader, spent = open_source(str(path), kind="video", fps=24.0), 0.0
    height, width = request.size(set_name)
    for frame in itertools.islice(reader.frames(), len(rows) * rows[0]["frames"]):
        start = time.process_time()
        cover(frame.picture.rgb(reader.facts.height, reader.facts.width), request, height, width)
        spent += time.process_time() - start
    reader.close()
    return spent


def entries(rows: list[dict[str, Any]], folder: Path, set_name: str) -> list[PackEntry]:
    """The samples of the encoded clips."""
    height, width = nearest_size(set_name, CROP["bottom"], CROP["right"])
    found = []
    for one in rows:
        clip = one["clip_id"]
        members = {f"{kind}.npy": str(folder / f"{clip}.{set_name}.{kind}.npy") for kind in ("latent", "teacher")}
        members |= {f"text_{kind}.npy": str(folder / f"{clip}.text_{kind}.npy") for kind in CAPTION_KINDS}
        record = SampleRecord(
            clip_id=clip,
            frames=one["frames"],
            height=height,
            width=width,
            fps=24.0,
            branch="video_real",
            domain="",
            source="0" * 64,
            start_us=one["start_us"],
            end_us=one["start_us"],
            caption_long="",
            caption_short="",
            caption_first="",
        )
        found.append(PackEntry(record, "", "", ("144p",), members))
    return found


def floor_rows(folder: Path, count: int, frames: int) -> list[Any]:
    """Encode and pack, and each part alone."""
    registry, set_name = Registry(), "144p"
    path = Path(registry.fetch("media.bikes"))
    settings = EncodeSettings(sets=(set_name,))
    models, text_models = load_models(settings), load_text_models(settings)
    facts = {"kind": "video", "branch": "video_real", "domain": "", "licence": ""}
    request = SourceRequest(
        path=str(path), uri=path.as_uri(), content_hash="0" * 64, size_bytes=path.stat().st_size, **facts
    )
    rows = clip_rows(count, frames)
    labels = [{"clip_id": one["clip_id"], **{f"caption_{kind}": CAPTION for kind in CAPTION_KINDS}} for one in rows]
    requests = [ClipRequest.from_row(one, (set_name,)) for one in rows]
    teacher = models.teachers["efficientnet_lite0"]
    pixels = [clip.by_set[set_name] for clip in clip_pixels(str(path), "video", 24.0, requests)]
    models.codec.encode(pixels[0])
    teacher.features(pixels[0][:5])
    parts = {
        "decode_s": cpu_s(lambda: decode(path, count * frames / 24)),
        "resize_s": resize_s(path, rows, set_name),
        "codec_s": cpu_s(lambda: [models.codec.encode(clip) for clip in pixels]),
        "teacher_s": cpu_s(lambda: [teacher.features(clip) for clip in pixels]),
        "text_s": cpu_s(
            lambda: [text_models.encoder.encode([one[f"caption_{k}"] for k in CAPTION_KINDS]) for one in labels]
        ),
    }

    def ours() -> None:
        failed = encode_clips(request, rows, settings, EncodeModels(models.codec, models.teachers), folder)
        assert not failed, failed
        encode_captions(labels, settings, text_models, folder)
        assemble_shard(
            entries(rows, folder, set_name), set_name=set_name, shard_index=0, tar_path=folder / "shard-000000.tar"
        )

    spent, floor = cpu_s(ours), sum(parts.values())
    return [
        row("floor_ratio", spent / floor, "ratio", goal=1.3, better="lower", peer=1.0),
        row("encode_and_pack_s", spent, "CPU s", goal=None, better="lower", peer=floor),
        *(row(name, value, "CPU s alone", goal=None, better="lower") for name, value in parts.items()),
    ]


def tar_rows(folder: Path, count: int, rounds: int) -> list[Any]:
    """Tars of latents of 720p clips against one file of the same bytes."""
    random = np.random.default_rng(0)
    shapes = {"latent": (31, 16, 92, 160), "teacher": (31, 46, 80, 16)}
    rows = clip_rows(count, 121)
    for one in rows:
        clip = one["clip_id"]
        for kind, shape in shapes.items():
            np.save(folder / f"{clip}.720p.{kind}.npy", random.standard_normal(shape, np.float32).astype(np.float16))
        for kind in CAPTION_KINDS:
            np.save(folder / f"{clip}.text_{kind}.npy", np.ones((64, 384), np.float16))
    packed = [
        PackEntry(one.record.model_copy(update={"height": 736, "width": 1280}), "", "", ("720p",), one.members)
        for one in entries(rows, folder, "720p")
    ]
    tar, plain, best = folder / "shard-000000.tar", folder / "plain.bin", {"tar": float("inf"), "plain": float("inf")}
    for _ in range(rounds):
        tar.unlink(missing_ok=True)
        start = time.perf_counter()
        assemble_shard(packed, set_name="720p", shard_index=0, tar_path=tar)
        best["tar"] = min(best["tar"], time.perf_counter() - start)
        data = tar.read_bytes()
        plain.unlink(missing_ok=True)
        start = time.perf_counter()
        with plain.open("wb", buffering=0) as stream:
            for offset in range(0, len(data), MIB):
                stream.write(memoryview(data)[offset : offset + MIB])
            os.fsync(stream.fileno())
        best["plain"] = min(best["plain"], time.perf_counter() - start)
    size_mb = tar.stat().st_size / 1e6
    speeds = {name: size_mb / seconds for name, seconds in best.items()}
    return [
        row("tar_write_ratio", speeds["tar"] / speeds["plain"], "ratio", goal=0.8, better="higher", peer=1.0),
        row("tar_write_mb_per_s", speeds["tar"], "MB/s", goal=None, better="higher", peer=speeds["plain"]),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer clips, smaller tars")
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clips, tars = Path(name) / "clips", Path(name) / "tars"
        clips.mkdir()
        tars.mkdir()
        rows = floor_rows(clips, *((2, 33) if options.quick else (6, 33)))
        rows += tar_rows(tars, *((4, 2) if options.quick else (24, 4)))
    show(rows)
    write(options.json, rows)


if __name__ == "__main__":
    main()
