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
from curation.commits import CommitStore
from curation.config import CurateConfig
from curation.content_hashes import state_of_file
from curation.earlier_runs import published_clips
from curation.engine import Engine
from curation.inventory import Inventory, take_inventory
from curation.places import Place, open_place
from curation.timings import Stopwatch
from schemas.tables import TABLES, read_table, write_table

__all__ = ["Session"]

_HASHES = "cache/hashes.json"


@dataclass
class Session:
    """One command at work on one output folder, whose lock it holds."""

    config: CurateConfig
    engine: Engine
    watch: Stopwatch = field(default_factory=Stopwatch)
    caption_units: dict[str, tuple[str, list[str]]] | None = None
    """What `survivors.caption_units` found; three phases ask, and it takes a pass of `decide`."""

    @cached_property
    def place(self) -> Place:
        """Where the results lie: a local folder or an object store."""
        return open_place(self.config)

    @property
    def output(self) -> Path:
        """Local folder of the results, or of the copies that `place` makes."""
        return self.place.folder

    @cached_property
    def commits(self) -> CommitStore:
        """Units of analyze, match, caption and pack."""
        return self.place.commits("commits")

    @cached_property
    def cache(self) -> CommitStore:
        """Latents and text states: may be dropped after packing."""
        return self.place.commits("cache")

    @cached_property
    def inventory(self) -> Inventory:
        fingerprint = analysis_fingerprint(self.config.analyze)
        hashes = self.place.near(_HASHES)
        before = state_of_file(str(hashes)) if hashes.is_file() else None
        found = take_inventory(self.config, fingerprint, hashes)
        if state_of_file(str(hashes)) != before:
            self.place.publish(_HASHES)
        return found

    @cached_property
    def published(self) -> pa.Table:
        """clip_id and admission of what the earlier runs of `match.against` kept."""
        return published_clips(self.config.match.against)

    def table(self, name: str) -> pa.Table:
        """A table of the run as it lies on disk; SchemaError says which phase to run when it does not exist."""
        return read_table(self.place.near(_table_name(name)), TABLES[name])

    def has_table(self, name: str) -> bool:
        """Whether a table of the run was written."""
        return self.place.has(_table_name(name))

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table of the run; what was derived from it is forgotten."""
        if name in ("clips", "pairs"):
            self.caption_units = None
        write_table(self.output / _table_name(name), table, TABLES[name])
        self.place.publish(_table_name(name))

    def timeout_s(self, size_bytes: int, *, pixels: int = 0) -> float:
        """Deadline of a unit that reads a source of this size and encodes this many pixels (frames x height x width)."""
        sandbox = self.config.sandbox
        encoding_s = sandbox.timeout_s_per_megapixel * pixels / 1e6
        return sandbox.timeout_s + sandbox.timeout_s_per_mb * size_bytes / 1e6 + encoding_s

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
            root=store.address,
            scratch=self.place.attempts(self.run),
            logs=str(self.place.logs),
            output=self.place.address,
            near=str(self.config.near_path),
            attempts=self.config.sandbox.attempts,
            memory_mb=self.config.sandbox.memory_mb,
            cpus=resources.cpus,
            gpus=resources.gpus,
            workers=workers,
        )

    @property
    def run(self) -> str:
        """Name of this command's attempt counts, which are gone when it ends."""
        return f"{self.watch.run.replace(':', '')}-{os.getpid()}"

    def work(
        self,
        phase: str,
        units: Sequence[dict[str, Any]],
        build: Callable[[dict[str, int]], Sequence[Any]],
        stages: Sequence[str],
    ) -> None:
        """Run units on the engine and keep their timings."""
        self.watch.units(phase, self.engine.run(phase, units, build, stages, skipped=self.watch.skipped))
        for store in (self.commits, self.cache):
            store.refresh()


def _table_name(name: str) -> str:
    return f"tables/{name}.parquet"
