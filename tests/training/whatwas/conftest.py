"""A small set whose clips can be told apart by eye and by caption, hostile captions among them, and real runs on it."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dct import DctCodec
from schemas.buckets import latent_frames
from schemas.ids import clip_id, content_hash
from schemas.shards import SampleRecord, SetInfo, ShardInfo, samples_path, shard_name, write_set_info
from schemas.tables import SAMPLES, table_from_rows, write_table

HOSTILE = "a \x1b[31mred\x1b[0m <script>document.title = 'hacked'</script> & <img src=x onerror=alert(1)> bus"
PER_SHARD = 6


@dataclass(frozen=True)
class Told:
    """A clip of the set, as it was packed."""

    clip_id: str
    frames: int
    colour: tuple[int, int, int]
    captions: dict[str, str]
    domain: str


@dataclass(frozen=True)
class StorySet:
    folder: Path
    clips: dict[str, Told]


def pack_story(folder: Path, count: int = 36, *, height: int = 32, width: int = 48) -> StorySet:
    """Clips of one colour each, in shards of six: three images, then three videos; two clips to a source."""
    folder.mkdir(parents=True)
    generator, codec = np.random.default_rng(0), DctCodec()
    rows: list[dict[str, Any]] = []
    told: dict[str, Told] = {}
    shards = []
    for shard in range(count // PER_SHARD):
        path, size = folder / shard_name(shard), 0
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for ordinal in range(PER_SHARD):
                index = shard * PER_SHARD + ordinal
                frames = 1 if ordinal < 3 else 33
                name = clip_id(f"{index // 2:064x}", index % 2, index % 2 + 1000)
                colour = tuple(int(value) for value in generator.integers(40, 216, 3))
                captions = {kind: f"{kind} caption of clip {index}" for kind in ("long", "short", "first")}
                if index % 5 == 0:
                    captions = {kind: f"{text}: {HOSTILE}" for kind, text in captions.items()}
                clip = Told(name, frames, (colour[0], colour[1], colour[2]), captions, f"domain <{index % 3}>")
                told[name] = clip
                members = _members(clip, index, generator, codec, height, width)
                for member, data in members.items():
                    header = tarfile.TarInfo(f"{name}.{member}")
                    header.size = len(data)
                    archive.addfile(header, io.BytesIO(data))
                rows.append(_row(clip, index, shard, ordinal, size, members, height, width))
                size += rows[-1]["length"]
        data = path.read_bytes()
        digest = content_hash(io.BytesIO(data))
        shards.append(ShardInfo(name=path.name, size_bytes=len(data), sha256=digest, num_samples=PER_SHARD))
    write_table(samples_path(folder), table_from_rows(SAMPLES, rows), SAMPLES)
    np.save(folder / "null_text.npy", np.ones((2, 16), np.float16))
    write_set_info(
        folder,
        SetInfo(
            set_name="story",
            fps=24.0,
            codec="dct",
            codec_fingerprint=codec.fingerprint,
            latent_channels=16,
            text_encoder="minilm",
            text_encoder_fingerprint="text",
            text_width=16,
            teacher_by_branch={"video_real": "random", "image_real": None},
            teacher_width=12,
            image_encoder="siglip",
            image_width=8,
            seed=0,
            shards=tuple(shards),
        ),
    )
    return StorySet(folder, told)


def _members(
    clip: Told, index: int, generator: np.random.Generator, codec: DctCodec, height: int, width: int
) -> dict[str, bytes]:
    """In the order of the contract."""
    frames = np.empty((clip.frames, height, width, 3), np.uint8)
    frames[:] = clip.colour
    latent = codec.encode(frames)
    arrays: dict[str, np.ndarray] = {"latent.npy": latent}
    for tokens, kind in ((7, "long"), (5, "short"), (3, "first")):
        arrays[f"text_{kind}.npy"] = generator.standard_normal((tokens, 16)).astype(np.float16)
    if clip.frames > 1:
        grid = (latent.shape[0], height // 16, width // 16, 12)
        arrays["teacher.npy"] = generator.standard_normal(grid).astype(np.float16)
        arrays["image.npy"] = generator.standard_normal((4, 8)).astype(np.float16)
    record = SampleRecord(
        clip_id=clip.clip_id,
        frames=clip.frames,
        height=height,
        width=width,
        fps=24.0,
        branch=_branch(clip),
        domain=clip.domain,
        source=f"{index // 2:064x}",
        start_us=index % 2,
        end_us=index % 2 + 1000,
        **{f"caption_{kind}": text for kind, text in clip.captions.items()},
    )
    return {name: _npy(array) for name, array in arrays.items()} | {"json": json.dumps(record.model_dump()).encode()}


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _branch(clip: Told) -> str:
    return "image_real" if clip.frames == 1 else "video_real"


def _row(
    clip: Told, index: int, shard: int, ordinal: int, start: int, members: dict[str, bytes], height: int, width: int
) -> dict[str, Any]:
    places, offset = [], start
    for name, data in members.items():
        places.append({"name": name, "offset": offset + 512, "length": len(data), "crc32": zlib.crc32(data)})
        offset += 512 + -(-len(data) // 512) * 512
    return {
        "clip_id": clip.clip_id,
        "set": "story",
        "shard_index": shard,
        "ordinal": ordinal,
        "offset": start,
        "length": offset - start,
        "members": places,
        "latent_shape": [latent_frames(clip.frames), 16, height // 8, width // 8],
        "frames": clip.frames,
        "height": height,
        "width": width,
        "text_tokens_long": 7,
        "text_tokens_short": 5,
        "text_tokens_first": 3,
        "branch": _branch(clip),
        "domain": clip.domain,
        "subject": "bus",
        "style": "",
        "source": f"{index // 2:064x}",
        "start_us": index % 2,
        "admissions": ["144p"],
        "has_teacher": clip.frames > 1,
    }


@pytest.fixture(scope="session")
def story_set(tmp_path_factory: pytest.TempPathFactory) -> StorySet:
    """36 clips in six shards; not to be changed."""
    return pack_story(tmp_path_factory.mktemp("story") / "story")


@pytest.fixture(scope="session")
def damaged(
    tmp_path_factory: pytest.TempPathFactory,
    make_plan: Callable[..., Any],
) -> tuple[StorySet, Any, set[str]]:
    """A set of which some clips are damaged after its plan was made, the plan, which has spares for lane 0 only, and the damaged clips' ids."""
    story = pack_story(tmp_path_factory.mktemp("damaged") / "story")
    spares = [(0, 1, 32, 48, 4, 0), (0, 33, 32, 48, 4, 3)]
    plan = make_plan(story.folder.parent / "plan", [story.folder], steps=6, batch={1: 3, 33: 2}, spares=spares)
    ids = list(story.clips)
    broken = {
        ids[PER_SHARD * 2],
        ids[PER_SHARD * 3 + 4],
    }  # the first image of lane 0's second shard, a video of lane 1's
    for clip in broken:
        path = story.folder / shard_name(ids.index(clip) // PER_SHARD)
        data = bytearray(path.read_bytes())
        data[data.index(f"{clip}.latent.npy".encode()) + 512 + 200] ^= 0xFF
        path.write_bytes(bytes(data))
    return story, plan, broken


@pytest.fixture(scope="session")
def train_on(config_file: Callable[..., Path]) -> Callable[..., Path]:
    """Train in this process: `train_on(run, plan, samples, *arguments, **changes of the configuration)`."""
    from training.cli import main

    def train(run: Path, plan: Path, samples: Path, *arguments: object, **changes: Any) -> Path:
        paths = ["--plan", plan, "--samples", samples, "--output", run]
        assert main([str(part) for part in ["run", "--config", config_file(**changes), *paths, *arguments]]) == 0
        return run

    return train


@pytest.fixture(scope="session")
def story_run(
    damaged: tuple[StorySet, Any, set[str]], train_on: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Five of the six steps of the damaged set's plan; not to be changed."""
    story, plan, _ = damaged
    run = tmp_path_factory.mktemp("runs") / "story"
    return train_on(run, plan.folder, story.folder, steps=5, checkpoint={"every_steps": 2, "keep": 9})
