"""A small plan opened as plain lists, to be changed in any way and written back with every hash fitting.

`refit` replays the lanes in plain Python and writes the numbers that follow from them (peaks, used share, metrics), so that a legal change stays
legal. It is written from the definitions in schemas/plan.py, apart from both the builder and the verifier.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutations.figures import measured
from planner.verify import VerifyReport, verify_plan
from schemas.hashing import table_hash
from schemas.plan import LANE, LEDGER, ROWS, SPARES, lane_path, plan_hash
from schemas.shards import read_set_info, samples_path
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table

__all__ = ["SIDES", "NoPlaceError", "OpenPlan", "Place"]

Row = dict[str, Any]
Place = tuple[int, int]
"""Shard and ordinal of a clip."""
SIDES = ("frames", "height", "width")
_OUT = ("left_over", "carried")


class NoPlaceError(Exception):
    """The plan has no place where this change could be made."""


@dataclass
class OpenPlan:
    """A plan's tables as lists of rows, and the facts of its samples."""

    folder: Path
    samples: list[Path]
    meta: Row
    tables: dict[str, list[Row]]
    facts: dict[Place, Row]
    """Sample of each place."""
    at_offset: dict[Place, Place]
    """(shard, offset) to (shard, ordinal)."""
    scores: Path | None = None
    parents: list[Path] = field(default_factory=list)
    saved: dict[str, list[Row]] = field(default_factory=dict)

    @classmethod
    def open(
        cls, folder: Path, samples: list[Path], *, scores: Path | None = None, parents: list[Path] | None = None
    ) -> OpenPlan:
        """Read everything."""
        meta = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        names = {"rows": ROWS, "ledger": LEDGER, "spares": SPARES}
        tables = {name: read_table(folder / f"{name}.parquet", schema).to_pylist() for name, schema in names.items()}
        for lane in range(meta["num_lanes"]):
            tables[f"lane-{lane:04d}"] = read_table(lane_path(folder, lane), LANE).to_pylist()
        facts: dict[Place, Row] = {}
        first_shard = 0
        for path in samples:
            columns = [
                "clip_id",
                "shard_index",
                "ordinal",
                "offset",
                "length",
                *SIDES,
                "source",
                "domain",
                "admissions",
            ]
            for row in read_table(samples_path(path), SAMPLES, columns=columns).to_pylist():
                row["shard"] = row.pop("shard_index") + first_shard
                facts[row["shard"], row["ordinal"]] = row
            first_shard += len(read_set_info(path).shards)
        at_offset = {(place[0], row["offset"]): place for place, row in facts.items()}
        return cls(folder, samples, meta, tables, facts, at_offset, scores, parents or [], copy.deepcopy(tables))

    def copied(self, folder: Path) -> OpenPlan:
        """The same plan in another folder, with lists of its own."""
        shutil.copytree(self.folder, folder)
        tables = copy.deepcopy(self.tables)
        return OpenPlan(
            folder,
            self.samples,
            copy.deepcopy(self.meta),
            tables,
            self.facts,
            self.at_offset,
            self.scores,
            self.parents,
            self.saved,
        )

    @property
    def num_lanes(self) -> int:
        """V."""
        return int(self.meta["num_lanes"])

    def lane(self, lane: int) -> list[Row]:
        """Rows of a lane."""
        return self.tables[f"lane-{lane:04d}"]

    def clips(self) -> Iterator[tuple[int, int, int]]:
        """(lane, row, place in the batch) of every use."""
        for lane in range(self.num_lanes):
            for row, content in enumerate(self.lane(lane)):
                for index in range(len(content["clips"])):
                    yield lane, row, index

    def reads(self) -> Iterator[tuple[int, int, int]]:
        """(lane, row, number in the row) of every read."""
        for lane in range(self.num_lanes):
            for row, content in enumerate(self.lane(lane)):
                for index in range(len(content["reads"])):
                    yield lane, row, index

    def clips_of_read(self, read: Row) -> list[Place]:
        """Samples of a read that is a run of whole samples."""
        places = [self.at_offset[read["shard"], read["offset"]]]
        end = read["offset"] + read["length"]
        while (reached := self.facts[places[-1]]["offset"] + self.facts[places[-1]]["length"]) < end:
            places.append(self.at_offset[read["shard"], reached])
        return places

    def runs(self, places: list[Place]) -> list[Row]:
        """Reads of these samples in this order, neighbours in one."""
        reads: list[Row] = []
        for place in places:
            fact = self.facts[place]
            last = reads[-1] if reads else None
            if last and last["shard"] == place[0] and last["offset"] + last["length"] == fact["offset"]:
                last["length"] += fact["length"]
            else:
                reads.append({"shard": place[0], "offset": fact["offset"], "length": fact["length"]})
        return reads

    def ledger_row(self, place: Place, epoch: int, event: str) -> Row:
        """A row of the ledger."""
        fact = self.facts[place]
        keys = ("clip_id", "shard", "ordinal", *SIDES)
        return {"epoch": epoch, **{key: fact[key] for key in keys}, "event": event, "reason": "as the change asks"}

    def uses(self, epoch: int) -> Counter[Place]:
        """Uses of each clip in an epoch, by this plan's own rows."""
        counts: Counter[Place] = Counter()
        for lane in range(self.num_lanes):
            for row in self.lane(lane):
                if row["epoch"] == epoch:
                    counts.update((clip["shard"], clip["ordinal"]) for clip in row["clips"])
        return counts

    def used_before(self) -> set[Place]:
        """Clips that the continued plans used of this plan's first epoch."""
        found: set[Place] = set()
        epoch, limit = self.meta["first_epoch"], self.meta["first_step"]
        for path in reversed(self.parents):
            parent = OpenPlan.open(path, self.samples)
            for lane in range(parent.num_lanes):
                rows = [row for row in parent.lane(lane) if row["epoch"] == epoch and row["step"] < limit]
                found |= {(clip["shard"], clip["ordinal"]) for row in rows for clip in row["clips"]}
            limit = parent.meta["first_step"]
        return found

    def epochs(self) -> range:
        """Epochs of this plan."""
        return range(self.meta["first_epoch"], self.meta["first_epoch"] + self.meta["num_epochs"])

    def peaks(self, lane: int) -> tuple[int, int, int]:
        """Most bytes, clips and open shards of a lane."""
        most_bytes = most_clips = most_open = 0
        for epoch in self.epochs():
            rows = [row for row in self.lane(lane) if row["epoch"] == epoch]
            last_use = {
                (clip["shard"], clip["ordinal"]): number for number, row in enumerate(rows) for clip in row["clips"]
            }
            held: dict[Place, int] = {}
            shards = [read["shard"] for row in rows for read in row["reads"]]
            for number, row in enumerate(rows):
                for read in row["reads"]:
                    held |= {place: self.facts[place]["length"] for place in self.clips_of_read(read)}
                most_bytes, most_clips = max(most_bytes, sum(held.values())), max(most_clips, len(held))
                held = {place: length for place, length in held.items() if last_use.get(place, number) > number}
            spans = {shard: (shards.index(shard), len(shards) - 1 - shards[::-1].index(shard)) for shard in set(shards)}
            for number in range(len(shards)):
                most_open = max(most_open, sum(first <= number <= last for first, last in spans.values()))
        return most_bytes, most_clips, most_open

    def refit(self) -> None:
        """Write the numbers of plan.json that follow from the lanes; NoPlaceError if a peak is above its cap."""
        meta = self.meta
        peaks = [self.peaks(lane) for lane in range(self.num_lanes)]
        for index, (name, cap) in enumerate(
            (
                ("peak_buffer_bytes", "max_buffer_bytes"),
                ("peak_buffer_clips", "max_buffer_clips"),
                ("peak_open_shards", "max_open_shards"),
            )
        ):
            meta[name] = [peak[index] for peak in peaks]
            if meta[cap] is not None and max(meta[name]) > meta[cap]:
                raise NoPlaceError(f"the change would exceed {cap}")
        used = sum(len(self.uses(epoch)) for epoch in self.epochs())
        meta["used_share"] = used / (meta["admitted_clips"] * meta["num_epochs"])
        kept = {name: value for name, value in meta["metrics"].items() if not name.startswith("used_share")}
        meta["metrics"] = kept | measured(self)

    def save(self) -> None:
        """Write back what was changed, with all hashes fitting."""
        for name, rows in self.tables.items():
            if rows == self.saved.get(name) and name in self.meta["table_hashes"]:
                continue
            schema = {"rows": ROWS, "ledger": LEDGER, "spares": SPARES}.get(name, LANE)
            path = self.folder / (f"lanes/{name}.parquet" if name.startswith("lane-") else f"{name}.parquet")
            table = table_from_rows(schema, rows)
            write_table(path, table, schema)
            self.meta["table_hashes"][name] = table_hash(table)
        self.write_meta()

    def write_meta(self) -> None:
        """Write plan.json with a hash that fits its content."""
        self.meta["plan_hash"] = plan_hash(self.meta)
        (self.folder / "plan.json").write_text(json.dumps(self.meta), encoding="utf-8")

    def verify(self) -> VerifyReport:
        """What the verifier says of the files as they are."""
        return verify_plan(self.folder, self.samples, scores=self.scores, continues=self.parents)

    def left_over(self, epoch: int) -> list[Place]:
        """Clips that the ledger says are not used in an epoch."""
        return [
            (row["shard"], row["ordinal"])
            for row in self.tables["ledger"]
            if row["epoch"] == epoch and row["event"] in _OUT
        ]

    def continued_at(self, step: int, folder: Path) -> OpenPlan:
        """A plan in `folder` that takes over from this one at `step` with the same lanes: clips in the buffer are read again first."""
        rows = self.tables["rows"]
        keep = [index for index, row in enumerate(rows) if row["step"] >= step]
        first_epoch = rows[keep[0]]["epoch"]
        before: Counter[Place] = Counter()
        tables: dict[str, list[Row]] = {"rows": [rows[index] for index in keep]}
        for lane in range(self.num_lanes):
            old = self.lane(lane)
            cut = [row for row in old[: keep[0]] if row["epoch"] == first_epoch]
            before.update((clip["shard"], clip["ordinal"]) for row in cut for clip in row["clips"])
            ahead = {
                (clip["shard"], clip["ordinal"])
                for index in keep
                if old[index]["epoch"] == first_epoch
                for clip in old[index]["clips"]
            }
            held = [place for row in cut for read in row["reads"] for place in self.clips_of_read(read)]
            new = [copy.deepcopy(old[index]) for index in keep]
            new[0]["reads"] = self.runs([place for place in held if place in ahead]) + new[0]["reads"]
            tables[f"lane-{lane:04d}"] = new
        epochs = {rows[index]["epoch"] for index in keep}
        ledger = [row for row in self.tables["ledger"] if row["epoch"] in epochs and row["event"] in _OUT]
        out = {(row["shard"], row["ordinal"]) for row in ledger}
        tables["spares"] = [row for row in self.tables["spares"] if (row["shard"], row["ordinal"]) in out]
        meta = copy.deepcopy(self.meta)
        meta |= {
            "first_step": step,
            "num_steps": self.meta["first_step"] + self.meta["num_steps"] - step,
            "first_epoch": first_epoch,
            "num_epochs": len(epochs),
            "continues": {"plan_hash": self.meta["plan_hash"], "from_step": step, "num_lanes": self.num_lanes},
            "table_hashes": {},
        }
        folder.mkdir(parents=True)
        parents = [*self.parents, self.folder]
        child = OpenPlan(
            folder, self.samples, meta, tables, self.facts, self.at_offset, self.scores, parents, copy.deepcopy(tables)
        )
        for epoch in child.epochs():
            earlier = before if epoch == first_epoch else Counter()
            for place, times in sorted(child.uses(epoch).items()):
                ledger += [child.ledger_row(place, epoch, "repeated")] * (times - (not earlier[place]))
        tables["ledger"] = ledger
        child.refit()
        child.save()
        return child
