"""Checks of what the command names: configuration, plan, sets, their fit, and where the run would begin."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from schemas.command import progress
from schemas.config import load_config
from schemas.errors import ConfigError, DataError, ReelyardError, UsageError
from schemas.plan import PlanMeta, lanes_of_rank, read_lane, read_plan_meta
from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint, read_record
from training.checkpoints.continuation import refuse_unnamed, run_differences
from training.config import TrainConfig
from training.curriculum.stage_plan import check_plan
from training.curriculum.starting import find_start
from training.doctor.estimates import gigabytes
from training.doctor.findings import Finding, fail, ok, skipped, warn
from training.loading.object_store import is_url
from training.loading.sample_sets import ClipKey, SampleSets, open_sample_sets
from training.loading.set_folders import shard_sizes
from training.logs.settings import check_installed
from training.mesh import mesh_shape
from training.network import TrainingNetwork, build_network
from training.optimizing.update_rules import check_packages
from training.parallel import choose_device, choose_precision
from training.run_setup import RunRequest, check_start_step, read_null_text
from training.set_encoders import check_fit
from training.sync import choose_sync
from training.teachers import check_teachers, expected_widths

__all__ = ["Patient"]

_CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class Patient:
    """What is looked at. Each part is read once; asking for one that is broken raises its error again."""

    request: RunRequest
    world_size: int
    deep: bool = False
    _broken: set[str] = field(default_factory=set)

    @cached_property
    def config(self) -> TrainConfig:
        return load_config(TrainConfig, self.request.config, self.request.overrides)

    @cached_property
    def meta(self) -> PlanMeta:
        return read_plan_meta(self.request.plan)

    @cached_property
    def sets(self) -> SampleSets:
        return open_sample_sets(self.meta, self.request.samples)

    @cached_property
    def network(self) -> TrainingNetwork:
        """On the meta device: names and shapes, no memory."""
        widths = {name: width or 1024 for name, width in expected_widths(self.config.repa, self.sets.infos).items()}
        return build_network(self.config, widths)

    def lacks(self, *parts: str) -> str | None:
        """The first of these parts that cannot be had, in words for a check that is skipped."""
        for part in parts:
            if part not in self._broken:
                try:
                    getattr(self, part)
                    continue
                except ReelyardError:
                    self._broken.add(part)
            return f"needs the {part}, which failed above"
        return None

    # the checks, in the order of the table

    def check_config(self) -> Iterable[Finding]:
        config = self.config
        yield ok(f"{self.request.config}: {config.model.total_blocks} blocks of width {config.model.width}")
        if config.watchdog is None:
            yield warn("watchdog is null: a run that hangs hangs for ever", "set watchdog.seconds")

    def check_plan(self) -> Iterable[Finding]:
        meta, plan = self.meta, self.request.plan
        for lane in range(meta.num_lanes):
            read_lane(plan, lane, meta)
        yield ok(
            f"{meta.plan_hash[:12]}, format {meta.format_version}: {meta.num_steps} steps of {meta.micro_per_step} rows on {meta.num_lanes} lanes, "
            "hashes of all tables fit"
        )
        yield self._certificate()
        if self.lacks("config") is None and self.config.steps is not None and self.config.steps > meta.steps.stop:
            yield fail(
                f"steps is {self.config.steps}, the plan ends with step {meta.steps.stop - 1}",
                "set steps to at most that many, or build a plan of more epochs",
            )

    def _certificate(self) -> Finding:
        path = self.request.plan / _CERTIFICATE
        command = "reelyard-plan verify PLAN --samples SET proves it"
        if not path.is_file():
            return warn("no certificate: the plan was not verified", command)
        try:
            certificate = json.loads(path.read_text(encoding="utf-8"))
            certified, unchecked = certificate["plan_hash"], certificate["rules_not_checked"]
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}: cannot be read as a certificate ({error}); {command}") from error
        if certified != self.meta.plan_hash:
            return fail(f"the certificate is of another plan ({certified[:12]})", command)
        return (
            warn(f"verified, but for {', '.join(unchecked)}", command)
            if unchecked
            else ok("verified: every rule holds")
        )

    def check_world(self) -> Iterable[Finding]:
        if (lack := self.lacks("meta")) is not None:
            yield skipped(lack)
            return
        lanes = lanes_of_rank(0, self.world_size, self.meta.num_lanes)
        layout = ""
        if self.lacks("config") is None:
            shape = mesh_shape(self.config.parallel, self.world_size)
            sync = choose_sync(self.config.parallel, self.meta.sync)
            layout = f", {shape.replicate} x {shape.shard} ranks, in step at each {'micro-batch' if sync == 'micro' else sync}"
        yield ok(f"{self.world_size} processes, {len(lanes)} of {self.meta.num_lanes} lanes each{layout}")

    def check_sets(self) -> Iterable[Finding]:
        if (lack := self.lacks("meta")) is not None:
            yield skipped(lack)
            return
        sets = self.sets
        there = shard_sizes(sets.addresses)
        for plan_set, place in zip(sorted(self.meta.sets, key=lambda one: one.first_shard), sets.folders, strict=True):
            addresses = sets.addresses[plan_set.first_shard : plan_set.first_shard + len(plan_set.shard_names)]
            wrong = list(_wrong_shards(addresses, plan_set.shard_bytes, there))
            if wrong:
                yield fail(
                    f"{place}: {len(wrong)} of {len(addresses)} shards are not the plan's: {wrong[0]}",
                    "copy the set again, or build the plan again for what is there",
                )
            else:
                total = gigabytes(sum(plan_set.shard_bytes))
                yield ok(f"{place}: samples hash fits, {len(addresses)} shards of the plan's sizes ({total})")

    def check_members(self) -> Iterable[Finding]:
        """crc32 of every member of every sample; with --deep only."""
        if (lack := self.lacks("sets")) is not None:
            yield skipped(lack)
            return
        if not self.deep:
            yield skipped("crc32 of all members: ask with --deep")
            return
        if any(map(is_url, self.sets.addresses)):
            yield skipped("shards lie in an object store: crc32 is checked as they are read in training")
            return
        keys = list(self.sets.all_keys())
        wrong = [
            name for key in progress(keys, what="checking members", total=len(keys)) for name in self._damaged(key)
        ]
        if wrong:
            yield fail(
                f"{len(wrong)} members are damaged: {', '.join(wrong[:3])}",
                "copy these shards again; spares would replace the clips",
            )
        else:
            yield ok(f"crc32 of every member of {len(keys)} samples fits")

    def _damaged(self, key: ClipKey) -> Iterator[str]:
        sample, path = self.sets.sample(key), Path(self.sets.shard_address(key[0]))
        with path.open("rb") as stream:
            for name, member in sample.members.items():
                stream.seek(member.offset)
                if zlib.crc32(stream.read(member.length)) != member.crc32:
                    yield f"{sample.clip_id}.{name} in {path.name}"

    def check_fit(self) -> Iterable[Finding]:
        if (lack := self.lacks("config", "sets")) is not None:
            yield skipped(lack)
            return
        config, sets = self.config, self.sets
        check_fit(config, sets.infos)
        check_teachers(config.repa, sets.infos, self.request.teacher_paths, self.request.codec_path)
        read_null_text(sets.folders[0], sets.infos[0].null_text, config.model.text_width)
        if config.stage is not None:
            check_plan(config, config.stage, self.meta, sets.infos)
        check_packages(config.optimizer)
        check_installed(config.logging)
        yield ok(
            "widths, teachers and null text of the sets fit the network; packages that the configuration asks for are installed"
        )

    def check_start(self) -> Iterable[Finding]:
        """Where the run would begin, and whether a checkpoint there allows it."""
        request = self.request
        if (lack := self.lacks("config", "meta")) is not None:
            yield skipped(lack)
            return
        if request.checkpoint is None and not checkpoint_steps(request.output):
            yield self._fresh_start()
            return
        folder = find_checkpoint(request.output, request.checkpoint)
        record = read_record(folder)
        missing = [name for name in record.files if not (folder / name).is_file()]
        if missing:
            yield fail(
                f"{folder}: file {missing[0]} is missing", "copy it again, or take another with --checkpoint STEP"
            )
            return
        try:
            check_start_step(request, self.meta, record.next_step, folder)
        except ReelyardError as error:
            yield fail(str(error), "the message says")
        try:
            precision = choose_precision(self.config.precision, choose_device(self.config.device))
        except ConfigError as error:
            yield skipped(str(error))
            return
        differences = run_differences(
            record,
            self.config,
            plan_hash=self.meta.plan_hash,
            plan=request.plan,
            samples=request.samples,
            precision=precision,
        )
        try:
            refuse_unnamed(differences, request.allow_change, folder)
        except UsageError:
            words = ", ".join(one.words() for one in differences if one.kind == "maths")
            yield fail(
                f"{folder} was written under other settings: {words}",
                "use its settings, name what may change with --allow-change KEY, or give another --output",
            )
        else:
            yield ok(f"continues from {folder}, step {record.next_step} of {self.config.steps or self.meta.steps.stop}")
        world = record.environment.get("world_size")
        if world != self.world_size:
            yield warn(
                f"the checkpoint is of {world} processes, this is {self.world_size}: losses will agree closely, not to the last bit",
                "use as many processes where bits matter",
            )

    def _fresh_start(self) -> Finding:
        """What a run without a checkpoint begins with; the starting weights are looked into as the run would."""
        request = self.request
        if self.lacks("sets") is not None:
            return skipped("needs the sets")
        try:
            start_step = 0 if request.init_from is None else self.meta.steps.start
            widths = expected_widths(self.config.repa, self.sets.infos)
            start = find_start(self.config, widths, request.init_from, first_step=start_step)
            check_start_step(request, self.meta, start_step, None)
        except ReelyardError as error:
            return fail(str(error), "the message says")
        source = "with fresh weights" if start is None else f"from {start.source.words()}: {start.transition.line()}"
        return ok(f"no checkpoint in {request.output}: starts at step {start_step} {source}")

    def check_models(self) -> Iterable[Finding]:
        """Codec, text encoder and teachers, where the configuration runs them."""
        if (lack := self.lacks("config", "sets")) is not None:
            yield skipped(lack)
            return
        from encoders.registry import local_path
        from training.teachers import online_teacher_names

        config, info = self.config, self.sets.infos[0]
        if (config.validation is not None) != bool(self.request.validation_sets):
            yield (
                fail("validation is on, but no set is given", "name sets with --validation, or --set validation=null")
                if config.validation is not None
                else fail("--validation names a set, but the configuration has no section `validation`", "add one")
            )
        wanted: dict[str, Path | None] = {}
        if config.repa is not None and config.repa.source == "online":
            for name in sorted(online_teacher_names(config.repa, self.sets.infos)):
                wanted[f"teacher.{name}"] = self.request.teacher_paths.get(name)
        if config.evaluation is not None:
            wanted[f"text.{info.text_encoder}"] = self.request.text_encoder_path
        if info.codec != "dct" and (config.evaluation is not None or (config.repa and config.repa.source == "online")):
            wanted[f"latents.{info.codec}"] = self.request.codec_path
        for name, given in wanted.items():
            path = local_path(name) if given is None else given
            if path.exists():
                yield ok(f"{name}: {path}")
            else:
                yield fail(f"{name}: {path} is not there", "give the path of its weights")
        if not wanted:
            yield ok("the configuration runs no other networks")


def _wrong_shards(addresses: Iterable[str], sizes: Iterable[int], there: Mapping[str, int]) -> Iterator[str]:
    for address, size in zip(addresses, sizes, strict=True):
        found, name = there.get(address), address.rpartition("/")[2]
        if found != size:
            yield f"{name} is {'missing' if found is None else f'{found} bytes'}, expected {size}"
        elif not is_url(address) and not os.access(address, os.R_OK):
            yield f"{name} cannot be read (permissions)"
