"""Seconds and peak memory of real training micro-batches, bucket by bucket, into the cost table that the planner reads.

Each point is what a step does with a micro-batch (`train_step`): the batch goes to the device, forward, losses, backward with gradients reduced.
Random latents and texts pass through the same `BatchMaker`, so TREAD, alignment, precision and checkpointing are those of the configuration, and
optimizer state and averages take their memory as in a run. One device alone: collectives of other ranks are not in it, and a sharded run holds
less of the state. A bucket's batches are measured from few clips to many until the device is out of memory or a point takes too long. The table is
written after each bucket, so an interrupted profile keeps what it has.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from schemas.buckets import Bucket
from schemas.command import say
from schemas.cost_table import CostMeasurement, CostTable, write_cost_table
from schemas.errors import ReelyardError, UsageError
from schemas.files import said_if_unwritten
from schemas.shards import CAPTION_KINDS, read_set_info, samples_path
from schemas.tables import SAMPLES, read_table
from training.batch import BatchMaker, TrainingBatch
from training.config import TrainConfig
from training.deterministic import deterministic_kernels
from training.loading.clip_arrays import ClipArrays
from training.loading.lane_batch import LaneBatch
from training.metrics import device_name, mfu_percent
from training.network import TrainingNetwork, build_network
from training.optimizing.ema import WeightAverages
from training.optimizing.optimizer import build_optimizer
from training.parallel import World, choose_device, choose_precision, open_world, shard_network
from training.sync import micro_batch
from training.teachers import StoredTeachers

__all__ = [
    "ProfileRequest",
    "device_words",
    "measure_grid",
    "model_words",
    "parse_batches",
    "parse_buckets",
    "profile",
    "random_batch",
    "set_facts",
    "summary_lines",
]


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """What to measure."""

    config: TrainConfig
    output: Path
    buckets: tuple[Bucket, ...]
    batches: tuple[int, ...]
    """Clips of a micro-batch, rising."""
    text_tokens: int
    """Of every clip."""
    image_tokens: int | None = None
    """Of every clip of more than one frame; must be given when the configuration gives image tokens."""
    teacher_widths: Mapping[str, int]
    """Teacher to the channels of its features; must not be empty when the configuration has alignment."""
    repeats: int = 5
    max_seconds_per_point: float = 60.0
    """No more repeats, and no larger batch of the bucket, once this long was spent on one point."""

    def __post_init__(self) -> None:
        if not self.buckets or not self.batches:
            raise UsageError(
                "nothing to measure: give --buckets, or --samples SET to measure all of its buckets, and at least one batch"
            )
        if min(self.batches) < 1 or self.repeats < 1 or self.text_tokens < 1 or self.max_seconds_per_point <= 0:
            raise UsageError(
                f"batches {self.batches}, repeats {self.repeats}, text tokens {self.text_tokens} and seconds {self.max_seconds_per_point:g} "
                "must be above 0"
            )
        if self.config.i2v.image_tokens and self.image_tokens is None:
            raise UsageError(
                "i2v.image_tokens is on, but nothing says how many there are; give --image-tokens (SigLIP at 896 pixels: 4096), "
                "or --set i2v.image_tokens=false"
            )
        if self.config.repa is not None and not self.teacher_widths:
            raise UsageError(
                "repa is on, but nothing says how wide the teacher's features are; give --samples SET, --teacher-width, or --set repa=null"
            )


Point = Callable[[Bucket, int], CostMeasurement]


def profile(request: ProfileRequest) -> CostTable:
    """Measure all points and write the table.

    Raises:
        ReelyardError: if not even one clip of one bucket could be measured.
    """
    config = request.config
    with deterministic_kernels(config.deterministic), open_world(choose_device(config.device)) as world:
        if world.size > 1:
            raise UsageError(f"profile measures one device, but {world.size} processes were launched; start it alone")
        bench = _Bench(request, world)
        measured: list[CostMeasurement] = []
        table: CostTable | None = None
        for some in measure_grid(request.buckets, request.batches, bench.measure, request.max_seconds_per_point):
            measured += some
            table = CostTable(
                device=device_words(world.device),
                model=model_words(config, world.device),
                text_tokens=request.text_tokens,
                repeats=request.repeats,
                measurements=tuple(measured),
            )
            with said_if_unwritten(request.output):
                write_cost_table(request.output, table)
    if table is None:
        raise ReelyardError(
            f"no bucket of {', '.join(map(str, request.buckets))} fits {device_name(choose_device(config.device))} with {request.batches[0]} clips; "
            "try smaller buckets or batches, activation_checkpointing=true, or a larger device"
        )
    return table


def measure_grid(
    buckets: Sequence[Bucket], batches: Iterable[int], point: Point, max_seconds: float
) -> Iterator[list[CostMeasurement]]:
    """The measurements of one bucket after another, those without any left out; larger batches are not tried after one that ran out of memory
    or took longer than `max_seconds`."""
    rising = sorted(set(batches))
    for bucket in buckets:
        found: list[CostMeasurement] = []
        for clips in rising:
            try:
                found.append(point(bucket, clips))
            except torch.OutOfMemoryError:
                say(f"{bucket} x {clips}: out of memory")
                break
            say(f"{bucket} x {clips}: {found[-1].seconds:.4g} s{_memory_words(found[-1])}")
            if found[-1].seconds > max_seconds:
                break
        if found:
            yield found


def random_batch(
    config: TrainConfig,
    bucket: Bucket,
    clips: int,
    text_tokens: int,
    teacher_widths: Mapping[str, int],
    image_tokens: int | None = None,
) -> TrainingBatch:
    """A micro-batch of random clips, every text of `text_tokens` tokens, through the maker that training uses.

    The dearest that can come: all have the widest teacher, and with `image_tokens` the first frame of every video is given.
    """
    if image_tokens is not None:
        config = config.model_copy(update={"i2v": config.i2v.model_copy(update={"probability": 1.0})})
    rng = np.random.default_rng([config.seed, bucket.video_tokens, clips])

    def features(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32).astype(np.float16)

    frames, rows, columns = bucket.latent_shape
    teacher = max(teacher_widths, key=lambda name: teacher_widths[name]) if config.repa is not None else None
    arrays = tuple(
        ClipArrays(
            clip_id=f"{index:024x}",
            latent_TCHW=features(frames, config.model.out_channels, rows, columns),
            text_by_kind={kind: features(text_tokens, config.model.text_width) for kind in CAPTION_KINDS},
            teacher=teacher,
            image_ID=None if image_tokens is None else features(image_tokens, config.model.image_width or 0),
            teacher_TYXC=None
            if teacher is None
            else features(frames, rows // 2, columns // 2, teacher_widths[teacher]),
        )
        for index in range(clips)
    )
    maker = BatchMaker(config, features(text_tokens, config.model.text_width), StoredTeachers(teacher_widths))
    return maker(LaneBatch.of_clips(arrays, step=0, micro=0, lane=0, bucket=bucket))


class _Bench:
    """The network with optimizer state and averages beside it, as a run has them; built anew after running out of memory, when hooks of the
    broken pass may have left FSDP's state in the middle of something."""

    def __init__(self, request: ProfileRequest, world: World) -> None:
        self._request, self._world = request, world
        self._network: TrainingNetwork | None = None
        self._state: tuple[object, ...] = ()

    def measure(self, bucket: Bucket, clips: int) -> CostMeasurement:
        """Warm-up, then the median of the repeats, fewer where they take too long."""
        request, device = self._request, self._world.device
        batch = random_batch(
            request.config, bucket, clips, request.text_tokens, request.teacher_widths, request.image_tokens
        )
        finished = False
        try:
            network = self._ready()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            # As a row that is not a step's last: its gradients stay whole on the device, beside those of the next one.
            warm_up = _run_once(network, batch, device, last=False)
            seconds = [_run_once(network, batch, device)]
            while len(seconds) < request.repeats and warm_up + sum(seconds) < request.max_seconds_per_point:
                seconds.append(_run_once(network, batch, device))
            peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
            finished = True
        finally:
            if not finished:
                self._network, self._state = None, ()
            if device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
        return CostMeasurement(
            bucket=str(bucket),
            clips=clips,
            seconds=statistics.median(seconds),
            spread_seconds=max(seconds) - min(seconds),
            peak_memory_bytes=peak,
        )

    def _ready(self) -> TrainingNetwork:
        if self._network is None:
            config = self._request.config
            network = build_network(config, self._request.teacher_widths if config.repa is not None else {})
            self._network = shard_network(network, config, self._world)
            averages = WeightAverages(dict(self._network.dit.named_parameters()), config.ema_decays)
            self._state = (build_optimizer(self._network, config.optimizer), averages)
            self._network.train()
        return self._network


def _run_once(network: TrainingNetwork, batch: TrainingBatch, device: torch.device, *, last: bool = True) -> float:
    """Seconds of one micro-batch as `training.train_step` runs it; gradients are reduced, and cleared after, with the last of a step."""
    micro_batch(network, "micro", last=last)
    _wait(device)
    start = time.perf_counter()
    losses = network(batch.to(device))
    loss = losses.flow_total / batch.num_clips
    if losses.repa_total is not None:
        loss = loss + losses.repa_total / max(1, batch.num_teachers)
    loss.backward()
    _wait(device)
    spent = time.perf_counter() - start
    if last:
        network.zero_grad(set_to_none=True)
    return spent


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary_lines(table: CostTable, config: TrainConfig) -> list[str]:
    """The table in columns: what was measured, FLOPs per second, MFU where the device's peak is known, and how far off the FLOP count is."""
    flops = [
        3 * one.clips * config.forward_flops(Bucket.parse(one.bucket), table.text_tokens) for one in table.measurements
    ]
    rates = [count / one.seconds for count, one in zip(flops, table.measurements, strict=True)]
    precision = (
        torch.bfloat16 if config.precision == "auto" else choose_precision(config.precision, torch.device("cpu"))
    )
    rate = sum(each**2 for each in rates) / sum(rates)  # least squared relative error of flops / rate
    lines = [
        f"{'bucket':16} {'clips':>5} {'seconds':>10} {'spread':>7} {'GB':>7} {'TFLOP/s':>8} {'MFU':>6} {'FLOPs say':>9}"
    ]
    for count, one in zip(flops, table.measurements, strict=True):
        memory = "-" if one.peak_memory_bytes is None else f"{one.peak_memory_bytes / 1e9:.2f}"
        mfu = mfu_percent(count // 3, one.seconds, table.device, 1, precision)
        lines.append(
            f"{one.bucket:16} {one.clips:5d} {one.seconds:10.4g} {one.spread_seconds / one.seconds:7.1%} {memory:>7} "
            f"{count / one.seconds / 1e12:8.3g} {'-' if mfu is None else f'{mfu:.1f}%':>6} {count / rate / one.seconds - 1:+9.1%}"
        )
    lines.append(
        f"FLOPs say: seconds by the FLOP count at {rate / 1e12:.3g} TFLOP/s, the single rate that fits best, over what was measured, minus 1"
    )
    return lines


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """`"1x64x112,33x64x112"` to buckets; UsageError otherwise."""
    try:
        return tuple(dict.fromkeys(Bucket.parse(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"--buckets {text!r}: {error}") from error


def parse_batches(text: str) -> tuple[int, ...]:
    """`"1,2,4"` to numbers; UsageError otherwise."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--batches {text!r} must be numbers separated by commas, for example 1,2,4,8")
    return tuple(sorted({int(part) for part in parts}))


def set_facts(folders: Sequence[Path]) -> tuple[tuple[Bucket, ...], dict[str, int]]:
    """(all buckets of these sets, the width of each of their teachers)."""
    buckets: set[Bucket] = set()
    widths: dict[str, int] = {}
    for folder in folders:
        info = read_set_info(folder)
        names = {name for name in info.teacher_by_branch.values() if name is not None}
        widths |= {name: info.teacher_width for name in names if info.teacher_width is not None}
        table = read_table(samples_path(folder), SAMPLES).select(["frames", "height", "width"])
        buckets |= {Bucket(*row.values()) for row in table.group_by(table.column_names).aggregate([]).to_pylist()}
    return tuple(sorted(buckets)), widths


def _memory_words(one: CostMeasurement) -> str:
    return "" if one.peak_memory_bytes is None else f", {one.peak_memory_bytes / 1e9:.2f} GB"


def device_words(device: torch.device) -> str:
    """The device, as a cost table names it."""
    return device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def model_words(config: TrainConfig, device: torch.device) -> str:
    """What is trained, as a cost table names it."""
    tread = config.tread
    parts = [
        f"{config.model.parameter_count():,} parameters",
        str(choose_precision(config.precision, device)).removeprefix("torch."),
        "dense"
        if tread is None
        else f"TREAD {tread.drop_ratio:g} off in blocks {tread.start_block} to {tread.end_block}",
        *(["alignment"] if config.repa is not None else []),
        *(["checkpointing"] if config.activation_checkpointing else []),
        *(["compiled"] if config.compile else []),
        *(["ordered kernels"] if config.deterministic else []),
    ]
    return ", ".join(parts)
