"""Small packed sets and hand-made plans for the training tests: real tars, tables and hashes, by the contract in schemas/ and nothing else."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from schemas.buckets import FRAME_COUNTS, Bucket, latent_frames
from schemas.files import write_json
from schemas.hashing import table_hash
from schemas.ids import clip_id, content_hash
from schemas.plan import LANE, LEDGER, PLAN_FORMAT_VERSION, ROWS, SPARES, PlanMeta, lane_path, plan_hash
from schemas.shards import SetInfo, ShardInfo, read_set_info, samples_path, shard_name, write_set_info
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table

PROJECT = Path(__file__).resolve().parents[2]
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


@dataclass
class Plan:
    """What `make_plan` wrote."""

    folder: Path
    uses: list[dict[str, Any]] = field(default_factory=list)
    """Every (lane, step, micro, bucket, clip ids), in order of rows, then lanes."""


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


def write_plan(
    folder: Path,
    sets: Sequence[Path],
    *,
    lanes: int = 2,
    micro: int = 2,
    steps: int = 10,
    batch: dict[int, int] | None = None,
    longest: int = 65,
    spares: Sequence[tuple[int, int, int, int, int, int]] = (),
    first_step: int = 0,
    settings: dict[str, Any] | None = None,
    sync: str = "micro",
) -> Plan:
    """A uniform plan: shards dealt to lanes, each lane reads its shards in order until it has the row's clips, epoch after epoch.

    Clips longer than `longest` frames are used at `longest`. `spares` are (lane, frames, height, width, shard, ordinal). A plan that continues
    another one has a `first_step`. `settings` are what `plan.json` says that it was built with, by default the lengths alone.
    """
    batch = batch or {1: 3, 33: 2, 65: 1}
    samples, plan_sets, first = {}, [], 0
    for path in sets:
        table = read_table(samples_path(path), SAMPLES)
        names = sorted(file.name for file in path.glob("*.tar"))
        sizes = [(path / name).stat().st_size for name in names]
        plan_sets.append(
            {
                "name": path.name,
                "samples_hash": table_hash(table),
                "first_shard": first,
                "shard_names": names,
                "shard_bytes": sizes,
            }
        )
        for row in table.to_pylist():
            samples[row["shard_index"] + first, row["ordinal"]] = row
        first += len(names)
    bucket_of = {key: Bucket(min(row["frames"], longest), row["height"], row["width"]) for key, row in samples.items()}
    reserved = {(spare[4], spare[5]) for spare in spares}
    buckets = sorted(set(bucket_of.values()))
    plan = Plan(folder)
    tables, peaks = {}, []
    lengths = {read_set_info(path).set_name: [count for count in FRAME_COUNTS if count <= longest] for path in sets}
    for lane in range(lanes):
        mine = [key for key in sorted(samples) if key[0] % lanes == lane and key not in reserved]
        table, peak = _lane_rows(plan, lane, mine, samples, bucket_of, buckets, batch, steps, micro)
        for row in table:
            row["step"] += first_step
        tables[f"lane-{lane:04d}"] = table_from_rows(LANE, table)
        write_table(lane_path(folder, lane), tables[f"lane-{lane:04d}"], LANE)
        peaks.append(peak)
    tables["rows"] = table_from_rows(
        ROWS,
        [
            {"epoch": 0, "step": step, "micro": index, "tier": 0, "predicted_seconds": 1.0}
            for step in range(first_step, first_step + steps)
            for index in range(micro)
        ],
    )
    keys = ("lane", "frames", "height", "width", "shard", "ordinal")
    tables["spares"] = table_from_rows(SPARES, [dict(zip(keys, spare, strict=True)) for spare in spares])
    tables["ledger"] = table_from_rows(LEDGER, [])
    for name, schema in (("rows", ROWS), ("spares", SPARES), ("ledger", LEDGER)):
        write_table(folder / f"{name}.parquet", tables[name], schema)
    meta: dict[str, Any] = {
        "format_version": PLAN_FORMAT_VERSION,
        "table_hashes": {name: table_hash(table) for name, table in tables.items()},
        "num_lanes": lanes,
        "micro_per_step": micro,
        "num_steps": steps,
        "num_epochs": 1,
        "first_step": first_step,
        "policy": "uniform",
        "sync": sync,
        "admission": "144p",
        "seed": 0,
        "sets": plan_sets,
        "batches": [
            {
                "bucket": str(bucket),
                "clips_per_lane": batch[bucket.frames],
                "tier": 0,
                "predicted_seconds": 1.0,
                "clips_in_set": list(bucket_of.values()).count(bucket),
            }
            for bucket in buckets
        ],
        "cost_model": "none",
        "admitted_clips": len(samples),
        "used_share": 1.0,
        "peak_buffer_bytes": peaks,
        "max_buffer_bytes": max(peaks),
        "metrics": {},
        "formulas": {},
        "config": {"frames": lengths} if settings is None else settings,
        "created_by": "tests",
    }
    meta = PlanMeta.model_validate({**meta, "plan_hash": ""}).model_dump(mode="json")
    write_json(folder / "plan.json", {**meta, "plan_hash": plan_hash(meta)})
    for use in plan.uses:
        use["step"] += first_step
    plan.uses.sort(key=lambda use: (use["step"], use["micro"], use["lane"]))
    return plan


def _lane_rows(
    plan: Plan,
    lane: int,
    mine: list[tuple[int, int]],
    samples: dict[tuple[int, int], dict[str, Any]],
    bucket_of: dict[tuple[int, int], Bucket],
    buckets: list[Bucket],
    batch: dict[int, int],
    steps: int,
    micro: int,
) -> tuple[list[dict[str, Any]], int]:
    """One lane's rows, and its peak by counting every (read, use) span."""
    waiting: list[tuple[tuple[int, int], int]] = []
    position, rows, spans, arrivals = 0, [], [], []
    for index in range(steps * micro):
        bucket = buckets[index % len(buckets)]
        arrived: list[tuple[int, int]] = []
        limit = position + 3 * len(mine)
        while sum(bucket_of[key] == bucket for key, _ in waiting) < batch[bucket.frames]:
            key = mine[position % len(mine)]
            position += 1
            assert position <= limit, f"lane {lane} lacks clips of {bucket} for its batches"
            if any(key == held for held, _ in waiting):
                continue  # an epoch begins while the last one's clip still waits
            arrived.append(key)
            waiting.append((key, index))
        chosen = [item for item in waiting if bucket_of[item[0]] == bucket][: batch[bucket.frames]]
        for item in chosen:
            waiting.remove(item)
            spans.append((item, index, samples[item[0]]["length"]))
        arrivals.append(arrived)
        step, number = divmod(index, micro)
        rows.append(
            {
                "epoch": 0,
                "step": step,
                "micro": number,
                "frames": bucket.frames,
                "height": bucket.height,
                "width": bucket.width,
                "clips": [{"shard": key[0], "ordinal": key[1]} for key, _ in chosen],
            }
        )
        ids = [samples[key]["clip_id"] for key, _ in chosen]
        plan.uses.append({"lane": lane, "step": step, "micro": number, "bucket": bucket, "clip_ids": ids})
    needed = {item for item, _, _ in spans}  # the last clips to arrive are used by no row, and not read
    for index, row in enumerate(rows):
        row["reads"] = _merge([key for key in arrivals[index] if (key, index) in needed], samples)
    peak = max(
        sum(length for (_, read), used, length in spans if read <= index <= used) for index in range(steps * micro)
    )
    return rows, peak


def _merge(keys: list[tuple[int, int]], samples: dict[tuple[int, int], dict[str, Any]]) -> list[dict[str, int]]:
    """Byte ranges of samples in order, neighbours joined."""
    reads: list[dict[str, int]] = []
    for key in keys:
        row = samples[key]
        if reads and reads[-1]["shard"] == key[0] and reads[-1]["offset"] + reads[-1]["length"] == row["offset"]:
            reads[-1]["length"] += row["length"]
        else:
            reads.append({"shard": key[0], "offset": row["offset"], "length": row["length"]})
    return reads


def train_config(**changes: Any) -> dict[str, Any]:
    """A small network with routing and alignment on; `changes` replace whole sections."""
    return {
        "model": {
            "width": 32,
            "heads": 2,
            "head_width": 16,
            "dual_blocks": 1,
            "single_blocks": 3,
            "decoder_blocks": 1,
            "text_width": TEXT_WIDTH,
            "image_width": None,
            "rope_axes": [4, 6, 6],
            "timestep_width": 32,
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 3},
        "tread": {"start_block": 1, "end_block": 2, "drop_ratio": 0.5},
        "repa": {"tap_block": 1, "weight": 0.5, "hidden_width": 24},
        "ema_decays": [0.99],
        "i2v": {"probability": 0.3},
        "checkpoint": {"every_steps": 4, "keep": 3},
        "seed": 7,
        "device": "cpu",
        **changes,
    }


@pytest.fixture(scope="session")
def make_set() -> Callable[..., Path]:
    """`pack_set`."""
    return pack_set


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """`write_plan`."""
    return write_plan


@pytest.fixture(scope="session")
def clip_type() -> type[Clip]:
    """`Clip`."""
    return Clip


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 40 clips in four buckets and six shards; not to be changed."""
    return pack_set(tmp_path_factory.mktemp("sets") / "tiny")


@pytest.fixture(scope="session")
def tiny_plan(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Ten steps of two rows on two lanes over `tiny_set`; not to be changed."""
    return write_plan(tmp_path_factory.mktemp("plans") / "plan", [tiny_set])


@pytest.fixture(scope="session")
def small_config() -> Callable[..., dict[str, Any]]:
    """`train_config`."""
    return train_config


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write `train_config(**changes)` as YAML and return its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path_factory.mktemp("configs") / "train.yaml"
        path.write_text(yaml.safe_dump(train_config(**changes)))
        return path

    return write


@pytest.fixture(scope="session")
def start_training() -> Callable[..., subprocess.Popen[str]]:
    """Start `training/train.py` with arguments, with torchrun for several processes, else alone."""

    def start(*arguments: object, processes: int = 1) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), "training/train.py", *map(str, arguments)],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_arguments(tiny_set: Path, tiny_plan: Plan, config_file: Callable[..., Path]) -> Callable[..., list[str]]:
    """Arguments of a training run on `tiny_set` into a folder; `changes` go into the configuration."""

    def arguments(
        output: Path, *extra: object, plan: Path | None = None, samples: Path | None = None, **changes: Any
    ) -> list[str]:
        paths = ["--plan", plan or tiny_plan.folder, "--samples", samples or tiny_set, "--output", output]
        return [str(part) for part in ["--config", config_file(**changes), *paths, *extra]]

    return arguments


@pytest.fixture(scope="session")
def two_rank_run(
    tmp_path_factory: pytest.TempPathFactory,
    run_arguments: Callable[..., list[str]],
    start_training: Callable[..., subprocess.Popen[str]],
) -> Path:
    """The folder of ten steps on two gloo ranks, through torchrun, without interruption; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "two"
    process = start_training(*run_arguments(output), processes=2)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="session")
def kill_tree() -> Callable[[subprocess.Popen[str]], None]:
    """SIGKILL a process and all below it: torchrun starts its workers in sessions of their own."""

    def kill(process: subprocess.Popen[str]) -> None:
        for pid in [process.pid, *_descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        process.wait()

    return kill


def _descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


@pytest.fixture(scope="session")
def text_model(small_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The small network with the text width of the real default text encoder."""
    return {**small_config()["model"], "text_width": 384}


@pytest.fixture(scope="session")
def text_set(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], clip_type: type[Clip]
) -> tuple[Path, Path]:
    """A set with states of that width, and a plan of six steps over it."""
    from encoders.registry import fetch

    fetch("text.minilm")
    folder = tmp_path_factory.mktemp("text")
    samples = make_set(folder / "set", [clip_type(33), clip_type(1)] * 4, per_shard=4, text_width=384)
    return samples, write_plan(folder / "plan", [samples], lanes=2, micro=1, steps=6, batch={1: 1, 33: 1}).folder


@pytest.fixture(scope="session")
def text_run(
    tmp_path_factory: pytest.TempPathFactory,
    text_set: tuple[Path, Path],
    text_model: dict[str, Any],
    config_file: Callable[..., Path],
) -> Path:
    """A run of two steps whose prompts the real default text encoder can encode; not to be changed."""
    from training.cli import main

    run = tmp_path_factory.mktemp("runs") / "text"
    config = config_file(model=text_model, steps=2)
    arguments = ["--config", config, "--plan", text_set[1], "--samples", text_set[0], "--output", run]
    assert main(["run", *map(str, arguments)]) == 0
    return run


@pytest.fixture(scope="session")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Run attempts, one after another, through `run_driver.py`: real processes, killed at exact moments. Returns a result for each."""
    driver, folder = Path(__file__).with_name("run_driver.py"), tmp_path_factory.mktemp("driven")
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(driver), str(folder)],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None

        def run(*attempts: dict[str, Any]) -> list[dict[str, Any]]:
            results = []
            for attempt in attempts:
                process.stdin.write(json.dumps(attempt) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                assert answer, (folder / "errors").read_text()
                results.append(json.loads(answer))
            return results

        yield run
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=20)
