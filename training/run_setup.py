"""Everything that is decided and checked before the processes of a run meet: configuration, plan, sets, and where to continue.

All ranks do this alike from the same files, so a mistake ends each of them in the same way, before any is left waiting for another. A run
continues by itself: if its folder holds a checkpoint, the latest one is taken. What would change the maths is refused unless it is named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from schemas.buckets import Bucket
from schemas.command import say
from schemas.config import StrictConfig, build_config, load_config, read_yaml
from schemas.errors import ConfigError, DataError, PlanError, UsageError
from schemas.files import write_bytes, write_json
from schemas.plan import PlanMeta, lanes_of_rank, read_plan_meta
from schemas.shards import SetInfo
from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint, read_record
from training.checkpoints.continuation import Difference, refuse_unnamed, run_differences
from training.config import TrainConfig
from training.control.job_paths import under_ray_job
from training.control.launch import launched_rank, launched_world_size
from training.curriculum.origin import Origin
from training.curriculum.stage_plan import check_plan
from training.curriculum.starting import Start, find_start, start_note
from training.loading.clip_arrays import parse_npy
from training.loading.sample_sets import SampleSets, open_sample_sets
from training.loading.set_folders import SetPlace, read_set_file
from training.logs.settings import check_installed
from training.mesh import mesh_shape
from training.optimizing.update_rules import check_packages
from training.parallel import choose_device, choose_precision
from training.set_encoders import check_fit
from training.sync import choose_sync
from training.teachers import check_teachers, expected_widths

__all__ = [
    "PreparedRun",
    "RunInfo",
    "RunRequest",
    "check_same_start",
    "check_start_step",
    "prepare_run",
    "read_null_text",
    "read_run_info",
    "run_null_text",
    "write_run_info",
]

_RUN_INFO = "run.json"
_NULL_TEXT = "null_text.npy"
_PATH_FIELDS = ("config", "plan", "output", "init_from", "text_encoder_path", "codec_path")


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the command line asked for."""

    config: Path
    plan: Path
    samples: tuple[SetPlace, ...]
    """Folders, or URLs of an object store."""
    output: Path
    overrides: tuple[str, ...] = ()
    checkpoint: int | None = None
    """Continue from this step's checkpoint rather than from the latest."""
    init_from: Path | None = None
    """Weights to start from: a run, a checkpoint or a weights folder."""
    allow_change: tuple[str, ...] = ()
    """Keys that may differ from the checkpoint's: dotted configuration keys or sections, or `plan`."""
    teacher_paths: Mapping[str, Path] = field(default_factory=dict)
    """Online teacher to the folder or hub id of its weights; those that are not named come from the registry."""
    codec_path: Path | None = None
    """Weights of the set's codec, which decodes for online teachers and for the section `evaluation`; None takes the registry's."""
    validation_sets: tuple[Path, ...] = ()
    """Packed sets that are not trained on, for the configuration's section `validation`."""
    text_encoder_path: Path | None = None
    """Weights of the set's text encoder, which encodes the prompts of the section `evaluation`."""

    def with_absolute_paths(self) -> RunRequest:
        """The same for processes that start in other folders. A Ray job's configuration stays relative: every node has its own copy of it."""
        absolute: dict[str, Any] = {
            name: value.absolute() for name in _PATH_FIELDS if isinstance(value := getattr(self, name), Path)
        }
        absolute |= {
            name: tuple(path.absolute() if isinstance(path, Path) else path for path in getattr(self, name))
            for name in ("samples", "validation_sets")
        }
        if under_ray_job():
            del absolute["config"]
        return replace(self, **absolute)


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that can start."""

    config: TrainConfig
    plan: Path
    meta: PlanMeta
    sets: SampleSets
    null_text_ED: np.ndarray
    output: Path
    resume_from: Path | None
    start: Start | None
    """Weights to start from; None when the run goes on from a checkpoint, or starts with a fresh network."""
    origin: Origin | None
    """What the run's first weights came from, for its checkpoints."""
    start_step: int
    stop_step: int
    teacher_paths: Mapping[str, Path] = field(default_factory=dict)
    validation_sets: tuple[Path, ...] = ()
    text_encoder_path: Path | None = None
    codec_path: Path | None = None
    differences: tuple[Difference, ...] = ()
    """To the checkpoint that the run goes on from."""

    @property
    def first_step(self) -> int:
        """The step at which the optimizer began."""
        return 0 if self.origin is None else self.origin.first_step


class RunInfo(StrictConfig):
    """`<run>/run.json`: what sampling from the run must know of the sets it was trained on."""

    plan_hash: str
    fps: float
    codec: str
    codec_fingerprint: str
    text_encoder: str
    text_encoder_fingerprint: str
    set_names: tuple[str, ...]
    buckets: tuple[str, ...] = Field(min_length=1)
    """Sizes of the plan's micro-batches."""

    @property
    def largest_bucket(self) -> Bucket:
        """The trained size with most tokens; of the same number the wider one."""
        return max(map(Bucket.parse, self.buckets), key=lambda bucket: (bucket.video_tokens, bucket.width))

    @property
    def longest_frames(self) -> int:
        """Of all trained sizes."""
        return max(Bucket.parse(name).frames for name in self.buckets)


def prepare_run(request: RunRequest, *, world_size: int | None = None) -> PreparedRun:
    """Check a request and find where to start; `world_size` None means the launcher's.

    Raises:
        ConfigError, PlanError, DataError, UsageError: with what is wrong and what to do.
    """
    config = load_config(TrainConfig, request.config, request.overrides)
    meta = read_plan_meta(request.plan)
    if not request.samples:
        raise UsageError("no sample set given; name each set of the plan with --samples FOLDER")
    sets = open_sample_sets(meta, request.samples)
    if config.stage is not None:
        check_plan(config, config.stage, meta, sets.infos)
    check_fit(config, sets.infos)
    check_teachers(config.repa, sets.infos, request.teacher_paths, request.codec_path)
    precision = choose_precision(config.precision, choose_device(config.device))
    num_ranks = world_size or launched_world_size()
    lanes_of_rank(0, num_ranks, meta.num_lanes)
    mesh_shape(config.parallel, num_ranks)
    choose_sync(config.parallel, meta.sync)
    check_packages(config.optimizer)
    check_installed(config.logging)
    stop_step = meta.steps.stop if config.steps is None else config.steps
    if stop_step > meta.steps.stop:
        raise PlanError(
            f"steps is {stop_step}, the plan {request.plan} ends with step {meta.steps.stop - 1}; "
            "set steps to at most that many, or build a plan of more epochs"
        )
    checkpoint, start, origin = None, None, None
    differences: list[Difference] = []
    if request.checkpoint is not None or checkpoint_steps(request.output):
        checkpoint = find_checkpoint(request.output, request.checkpoint)
        record = read_record(checkpoint)
        differences = run_differences(
            record, config, plan_hash=meta.plan_hash, plan=request.plan, samples=sets.folders, precision=precision
        )
        refuse_unnamed(differences, request.allow_change, checkpoint)
        start_step, origin = record.next_step, record.origin
        note = start_note(origin, request.init_from)
        if note is not None and launched_rank() == 0:
            say(f"note: {note}")
    else:
        start_step = 0 if request.init_from is None else meta.steps.start
        widths = expected_widths(config.repa, sets.infos)
        start = find_start(config, widths, request.init_from, first_step=start_step)
        origin = None if start is None else start.origin
    check_start_step(request, meta, start_step, checkpoint)
    null_text_ED = read_null_text(sets.folders[0], sets.infos[0].null_text, config.model.text_width)
    _make_output(request.output)
    return PreparedRun(
        config=config,
        plan=request.plan,
        meta=meta,
        sets=sets,
        null_text_ED=null_text_ED,
        output=request.output,
        resume_from=checkpoint,
        start=start,
        origin=origin,
        start_step=start_step,
        stop_step=max(stop_step, start_step),
        teacher_paths=request.teacher_paths,
        validation_sets=request.validation_sets,
        text_encoder_path=request.text_encoder_path,
        codec_path=request.codec_path,
        differences=tuple(differences),
    )


def write_run_info(prepared: PreparedRun) -> None:
    """Write `run.json` and the null text into the run's folder."""
    info: SetInfo = prepared.sets.infos[0]
    facts = RunInfo(
        plan_hash=prepared.meta.plan_hash,
        fps=info.fps,
        codec=info.codec,
        codec_fingerprint=info.codec_fingerprint,
        text_encoder=info.text_encoder,
        text_encoder_fingerprint=info.text_encoder_fingerprint,
        set_names=tuple(found.set_name for found in prepared.sets.infos),
        buckets=tuple(entry.bucket for entry in prepared.meta.batches),
    )
    write_json(prepared.output / _RUN_INFO, facts.model_dump(mode="json"))
    write_bytes(prepared.output / _NULL_TEXT, read_set_file(prepared.sets.folders[0], info.null_text))


def read_run_info(run: Path) -> RunInfo:
    """Read `run.json`; UsageError when the folder is not a run's."""
    path = run / _RUN_INFO
    if not path.is_file():
        raise UsageError(
            f"{run} is not a training run: {_RUN_INFO} is missing; give the folder of `reelyard-train run --output`"
        )
    return build_config(RunInfo, read_yaml(path), source=str(path))


def run_null_text(run: Path, text_width: int) -> np.ndarray:
    """The null text that the run was trained with."""
    return read_null_text(run, _NULL_TEXT, text_width)


def check_start_step(request: RunRequest, meta: PlanMeta, start_step: int, checkpoint: Path | None) -> None:
    """PlanError unless the plan has the step that the run begins with, or ends before it."""
    if not meta.steps.start <= start_step <= meta.steps.stop:
        raise PlanError(
            f"plan {request.plan} has steps {meta.steps.start} to {meta.steps.stop - 1}, but the run goes on with step {start_step} "
            f"({checkpoint or 'there is no checkpoint'}); give the plan that has this step, or the checkpoint that the plan continues"
        )


def check_same_start(steps: Sequence[int], output: Path) -> None:
    """DataError unless all ranks, in order, go on with the same step: else they would wait for each other in different places."""
    if len(set(steps)) > 1:
        raise DataError(
            f"ranks would go on with different steps ({', '.join(map(str, steps))}, by rank): they see different checkpoints in {output}; "
            "start again when the files are the same on all machines, or name one with --checkpoint STEP"
        )


def read_null_text(place: SetPlace, name: str, text_width: int) -> np.ndarray:
    """States of the empty prompt, float16 (tokens, width); DataError when they do not fit the model."""
    path = f"{place}/{name}"
    try:
        states = parse_npy(memoryview(read_set_file(place, name)))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as the null text's states ({error}); pack the set again") from error
    if states.ndim != 2 or states.dtype != np.float16 or not len(states):
        raise DataError(
            f"{path}: {states.dtype} of shape {states.shape}, expected float16 (tokens, width); pack the set again"
        )
    if states.shape[1] != text_width:
        raise ConfigError(
            f"model.text_width is {text_width}, {path} is {states.shape[1]} wide; set model.text_width={states.shape[1]}"
        )
    return states


def _make_output(output: Path) -> None:
    """Make the run's folder; UsageError when it cannot be made or written to."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(
            f"--output is {output}, which is a file; expected the folder of a run, or a name that is free"
        ) from error
    except OSError as error:
        raise UsageError(
            f"--output is {output}, which cannot be made ({error.strerror}); give a folder that can be written"
        ) from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise UsageError(
            f"--output is {output}, which cannot be written; give another folder, or change its permissions"
        )
