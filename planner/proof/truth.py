"""What the samples are, apart from what the plan says of them: one array per fact, ordered by (shard, offset), and counters of uses and reads.

The table is hashed and reduced to facts row group by row group; ids stay in Arrow, where one is looked up only for a message or a row of the ledger.
About 70 bytes a clip and 2 more per epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from planner.proof.admitted import meets_rule, rules_on_samples, rules_on_scores, scored_mask
from planner.proof.labels import Labels, label_codes, labels_for
from planner.proof.report import VerifyReport
from planner.proof.tars import check_shards
from schemas.errors import DataError
from schemas.hashing import TableHasher
from schemas.plan import AdmissionRule, PlanMeta
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES, check_file

__all__ = ["Truth", "load_truth"]

_ORDINAL_BITS = 31
_SIDE_BITS = 20


class Truth:
    """Facts of all samples, and how often the plan uses and reads each in each of its epochs."""

    def __init__(
        self, facts: Sequence[_SetFacts], first_shards: Sequence[int], num_shards: int, num_epochs: int
    ) -> None:
        shard = np.concatenate([item.shard + first for item, first in zip(facts, first_shards, strict=True)])
        self._ids = pa.chunked_array([chunk for item in facts for chunk in item.ids.chunks], pa.string())
        offset, ordinal = (np.concatenate([getattr(item, name) for item in facts]) for name in ("offset", "ordinal"))
        self._table_row: np.ndarray | None = None
        if not _ascending(shard, offset):
            self._table_row = np.lexsort((offset, shard))
        self.num_shards = max(num_shards, int(shard.max(initial=-1)) + 1)
        shard = self._ordered(shard)
        self.shard_first = np.searchsorted(shard, np.arange(self.num_shards + 1)).astype(np.int64)
        """Position of the first sample of each shard, and the number of samples at the end."""
        self.offset = self._ordered(offset)
        self.length = self._ordered(np.concatenate([item.length for item in facts]))
        self._places = _Places(shard, self._ordered(ordinal), self.shard_first)
        packed = pa.array(self._ordered(np.concatenate([item.sides for item in facts]))).dictionary_encode()
        self.code = packed.indices.to_numpy().astype(np.int16)
        """Index into `sizes`."""
        mask = (1 << _SIDE_BITS) - 1
        self.sizes = [
            (key >> 2 * _SIDE_BITS, key >> _SIDE_BITS & mask, key & mask) for key in packed.dictionary.to_pylist()
        ]
        """(frames, height, width): the longest buckets that occur."""
        self.level = self._ordered(np.concatenate([item.level for item in facts]))
        """Admitted at the plan's level."""
        self.meets = self._ordered(np.concatenate([item.meets for item in facts]))
        """Meets the plan's rules, as far as they could be looked at."""
        self.rules_known = True
        """False where a rule could not be looked at: then `meets` may be too wide."""
        self.uses = np.zeros((num_epochs, len(shard)), dtype=np.uint8)
        self.reads = np.zeros((num_epochs, len(shard)), dtype=np.uint8)
        self.used_before = np.zeros(len(shard) if num_epochs else 0, dtype=np.uint8)
        """Uses by the plans that this one continues, in its first epoch."""
        self.before_known = True
        """False where this plan continues another one that was not given."""
        self._labels = [item.labels for item in facts]
        self._codes: dict[str, tuple[np.ndarray, int] | None] = {}

    @property
    def num_clips(self) -> int:
        """Samples in all, admitted or not."""
        return len(self.length)

    @property
    def admitted(self) -> np.ndarray:
        """Level and rules."""
        return self.level & self.meets

    def labels(self, column: str) -> tuple[np.ndarray, int] | None:
        """(number of each sample's value in a column of text, how many numbers there are); None where the column was not kept."""
        if column not in self._codes:
            found = label_codes(self._labels, column)
            self._codes[column] = None if found is None else (self._ordered(found[0]), found[1])
            for item in self._labels:
                item.chunks.pop(column, None)
        return self._codes[column]

    def _ordered(self, values: np.ndarray) -> np.ndarray:
        return values if self._table_row is None else values[self._table_row]

    def apply_scores(
        self, rules: Sequence[AdmissionRule], scores: Path | None, meta: PlanMeta, report: VerifyReport
    ) -> None:
        """Narrow `meets` by the rules that look at scores.

        Raises:
            UsageError: if `scores` cannot be read.
        """
        if not rules:
            return
        if meta.scores_hash is None:
            report.add(
                "scores_hash",
                f"rules look at {', '.join(rule.column for rule in rules)}, but plan.json has no scores_hash",
            )
        mask = None
        if scores is not None:
            mask = scored_mask(self._ids, rules, scores, meta.scores_hash, report)
        if mask is None:
            self.rules_known = False
            columns = ", ".join(dict.fromkeys(rule.column for rule in rules))
            why = f"rules on {columns} look at scores; give the table that the plan was built with: --scores PATH"
            report.skip("admission_rules", why)
            report.skip("scores_hash", why)
            return
        self.meets &= self._ordered(mask)

    def find(self, shard: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
        """Position of each (shard, ordinal), or -1."""
        return self._places.find(shard, ordinal)

    def ids(self, positions: np.ndarray) -> pa.ChunkedArray:
        """Clip ids of some positions."""
        rows = positions if self._table_row is None else self._table_row[positions]
        return self._ids.take(pa.array(rows, pa.int64()))

    def name(self, position: int) -> str:
        """For messages."""
        shard = int(np.searchsorted(self.shard_first, position, side="right")) - 1
        return f"{self.ids(np.array([position]))[0].as_py()} (shard {shard})"

    def size(self, position: int) -> str:
        """FRAMESxHEIGHTxWIDTH of the sample, for messages."""
        return "x".join(map(str, self.sizes[self.code[position]]))

    def uses_of(self, epoch: int) -> np.ndarray:
        """Uses of each clip in one epoch of the plan, those of the continued plans included."""
        return self.uses[epoch] + self.used_before if epoch == 0 else self.uses[epoch]


class _Places:
    """(shard, ordinal) to position: by arithmetic where ordinals are 0, 1, ... in order of offset, as packed sets have them, else by search."""

    def __init__(self, shard: np.ndarray, ordinal: np.ndarray, shard_first: np.ndarray) -> None:
        self._first = shard_first
        self._order: np.ndarray | None = None
        dense = np.arange(len(shard)) - shard_first[shard] if len(shard) else ordinal
        if not (dense == ordinal).all():
            keys = (shard.astype(np.int64) << _ORDINAL_BITS) | ordinal
            self._order = np.argsort(keys, kind="stable")
            self._keys = keys[self._order]

    def find(self, shard: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
        inside = (shard >= 0) & (shard < len(self._first) - 1) & (ordinal >= 0)
        home = np.where(inside, shard, 0)
        if self._order is None:
            known = inside & (ordinal < self._first[home + 1] - self._first[home])
            return np.where(known, self._first[home] + ordinal, -1)
        keys = (home.astype(np.int64) << _ORDINAL_BITS) | np.where(inside, ordinal, 0)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(inside & (self._keys[at] == keys), self._order[at], -1)


@dataclass(frozen=True)
class _SetFacts:
    """One set's samples, in the order of its table."""

    folder: Path
    info: SetInfo
    digest: str
    ids: pa.ChunkedArray
    shard: np.ndarray
    """Within the set."""
    ordinal: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    sides: np.ndarray
    """frames, height and width in one integer."""
    level: np.ndarray
    meets: np.ndarray
    labels: Labels


def load_truth(paths: Sequence[Path], meta: PlanMeta, scores: Path | None, report: VerifyReport) -> Truth:
    """Read the sets in the plan's order; a set is recognised by its hash, else by its place.

    Raises:
        DataError: if the number of sets differs; then no clip of the plan can be looked up.
    """
    if len(paths) != len(meta.sets):
        raise DataError(
            f"the plan reads {len(meta.sets)} sets ({', '.join(item.name for item in meta.sets)}), --samples gives {len(paths)}; "
            "give each set once, in the order of the build"
        )
    rules = rules_on_samples(meta.rules)
    found = [_read_set(path, meta, rules, report) for path in paths]
    by_hash = {item.digest: item for item in found}
    chosen = [by_hash.get(planned.samples_hash, found[index]) for index, planned in enumerate(meta.sets)]
    first_shards = []
    first_shard = 0
    for planned, item in zip(meta.sets, chosen, strict=True):
        if item.digest != planned.samples_hash:
            report.add(
                "samples_hash",
                f"{item.folder} has samples {item.digest[:12]}..., the plan was built from {planned.samples_hash[:12]}... "
                f"(set {planned.name}); give the set that it was built from",
            )
        if planned.first_shard != first_shard:
            report.add(
                "shards_listed", f"set {planned.name} begins at shard {planned.first_shard}, expected {first_shard}"
            )
        check_shards(item.folder, item.info, planned.shard_names, planned.shard_bytes, report)
        first_shards.append(first_shard)
        first_shard += len(item.info.shards)
    truth = Truth(chosen, first_shards, first_shard, max(1, meta.num_epochs))
    truth.apply_scores(rules_on_scores(meta.rules), scores, meta, report)
    return truth


def _read_set(path: Path, meta: PlanMeta, rules: Sequence[AdmissionRule], report: VerifyReport) -> _SetFacts:
    folder = path.parent if path.suffix == ".parquet" else path
    info = read_set_info(folder)
    hasher = TableHasher()
    labels = Labels(labels_for(meta))
    lengths = (meta.config.get("frames") or {}).get(info.set_name)
    ids: list[pa.Array] = []
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("shard", "ordinal", "offset", "length", "sides", "level", "meets")
    }
    for table in _row_groups(path if path.suffix == ".parquet" else samples_path(folder)):
        hasher.update(table)
        labels.note(table)
        ids.extend(table.column("clip_id").chunks)
        for name in ("ordinal", "offset", "length"):
            columns[name].append(table.column(name).to_numpy())
        columns["shard"].append(table.column("shard_index").to_numpy())
        frames, height, width = (
            table.column(name).to_numpy().astype(np.int64) for name in ("frames", "height", "width")
        )
        frames, fits = _at_lengths(frames, lengths)
        columns["sides"].append(frames << 2 * _SIDE_BITS | height << _SIDE_BITS | width)
        columns["level"].append(_has(table.column("admissions").combine_chunks(), meta.admission))
        met = [meets_rule(rule, table.column(rule.column), report) for rule in rules]
        columns["meets"].append(np.logical_and.reduce([fits, *met]))
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    return _SetFacts(folder, info, hasher.hexdigest(), pa.chunked_array(ids, pa.string()), labels=labels, **whole)


def _at_lengths(frames: np.ndarray, lengths: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """(the length at which each clip is planned, True where it has one of the set's lengths): the longest that it has, an image as an image."""
    if lengths is None:
        return frames, np.ones(len(frames), dtype=bool)
    known = np.array(sorted(lengths), dtype=np.int64)
    known_of_videos = known[known > 1]
    at = np.searchsorted(known_of_videos, frames, side="right") - 1
    is_image = frames == 1
    fits = np.where(is_image, 1 in lengths, at >= 0)
    shorter = known_of_videos[np.maximum(at, 0)] if len(known_of_videos) else frames
    return np.where(is_image | ~fits, frames, shorter), fits


def _row_groups(path: Path) -> Iterator[pa.Table]:
    """The table's row groups in order (at least one, maybe empty), each read while the one before is worked on."""
    check_file(path, SAMPLES)
    with pq.ParquetFile(path) as file, ThreadPoolExecutor(1) as pool:

        def read(group: int) -> pa.Table:
            return file.read_row_group(group).select(SAMPLES.names).cast(SAMPLES)

        if not file.num_row_groups:
            yield SAMPLES.empty_table()
            return
        coming = pool.submit(read, 0)
        for group in range(file.num_row_groups):
            table = coming.result()
            if group + 1 < file.num_row_groups:
                coming = pool.submit(read, group + 1)
            yield table


def _has(lists: pa.ListArray, value: str) -> np.ndarray:
    """True for the lists that hold `value`."""
    inside = pc.equal(lists.flatten(), value).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())
    mask = np.zeros(len(lists), dtype=bool)
    mask[row[inside]] = True
    return mask


def _ascending(shard: np.ndarray, offset: np.ndarray) -> bool:
    """Sorted by (shard, offset)."""
    if len(shard) < 2:
        return True
    return bool(((shard[1:] > shard[:-1]) | ((shard[1:] == shard[:-1]) & (offset[1:] >= offset[:-1]))).all())
