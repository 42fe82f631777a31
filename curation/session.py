"""What the phases of one command share: config, folders, commit stores, the engine, the inventory and the clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.analysis.models import analysis_fingerprint
from curation.collect import table_path
from curation.commits import CommitStore
from curation.config import CurateConfig
from curation.engine import Engine
from curation.inventory import Inventory, take_inventory
from curation.timings import Stopwatch
from schemas.tables import TABLES, read_table, write_table

__all__ = ["Session"]

_SECONDS_PER_MEGAPIXEL = 10.0
"""Deadline of encoding. Codec and teacher of the defaults took 0.8 s of CPU, and 2.3 s of the clock on a busy machine."""


@dataclass
class Session:
    """One command at work on one output folder, whose lock it holds."""

    config: CurateConfig
    engine: Engine
    watch: Stopwatch = field(default_factory=Stopwatch)
    caption_units: dict[str, tuple[str, list[str]]] | None = None
    """What `survivors.caption_units` found; three phases ask, and it takes a pass of `decide`."""

    @property
    def output(self) -> Path:
        return self.config.output_path

    @property
    def commits(self) -> CommitStore:
        """Units of analyze, match, caption and pack."""
        return CommitStore(self.output / "commits")

    @property
    def cache(self) -> CommitStore:
        """Latents and text states: may be dropped after packing."""
        return CommitStore(self.output / "cache")

    @cached_property
    def inventory(self) -> Inventory:
        fingerprint = analysis_fingerprint(self.config.analyze)
        return take_inventory(self.config, fingerprint, self.output / "cache" / "hashes.json")

    def table(self, name: str) -> pa.Table:
        """A table of the run as it lies on disk; SchemaError says which phase to run when it does not exist."""
        return read_table(table_path(self.output, name), TABLES[name])

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table of the run; what was derived from it is forgotten."""
        if name in ("clips", "pairs"):
            self.caption_units = None
        write_table(table_path(self.output, name), table, TABLES[name])

    def timeout_s(self, size_bytes: int, *, pixels: int = 0) -> float:
        """Deadline of a unit that reads a source of this size and encodes this many pixels (frames x height x width)."""
        sandbox = self.config.sandbox
        return sandbox.timeout_s + sandbox.timeout_s_per_mb * size_bytes / 1e6 + _SECONDS_PER_MEGAPIXEL * pixels / 1e6

    def stage_spec(self, stage: str, *, workers: int, store: CommitStore, group: str, settings: Any) -> Any:
        """The `StageSpec` of a stage under this session's config."""
        from curation.stages import StageSpec

        resources, cache_dir = self.config.stage_resources(stage), self.config.cache_path
        return StageSpec(
            stage=stage,
            group=group,
            setup={
                "settings": settings.model_dump(mode="json"),
                "cache_dir": None if cache_dir is None else str(cache_dir),
            },
            root=str(store.root),
            scratch=str(self.scratch),
            logs=str(self.output / "logs"),
            attempts=self.config.sandbox.attempts,
            memory_mb=self.config.sandbox.memory_mb,
            cpus=resources.cpus,
            gpus=resources.gpus,
            workers=workers,
        )

    @property
    def scratch(self) -> Path:
        """Attempt counts of this command; gone when it ends."""
        return self.output / ".tmp-attempts" / f"{self.watch.run.replace(':', '')}-{os.getpid()}"

    def work(
        self,
        phase: str,
        units: Sequence[dict[str, Any]],
        build: Callable[[dict[str, int]], Sequence[Any]],
        stages: Sequence[str],
    ) -> None:
        """Run units on the engine and keep their timings."""
        self.watch.units(phase, self.engine.run(phase, units, build, stages, skipped=self.watch.skipped))
