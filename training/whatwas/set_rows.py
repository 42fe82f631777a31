"""The packed sets behind a plan, for looking rather than for training: rows of the samples tables, and single members of samples.

Sets are found by the hash of their samples table, as the trainer finds them. Unlike there, shards may be missing or damaged: what is asked of such a
one raises ShardError, and the rest of the answer stands. Price: the samples tables are held in memory as Arrow.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.buckets import Bucket
from schemas.errors import PlanError, ShardError
from schemas.hashing import table_hash
from schemas.plan import PlanMeta, PlanSet
from schemas.shards import SetInfo
from training.loading.clip_arrays import parse_npy
from training.loading.set_folders import OpenedSet, SetPlace, open_set
from training.loading.shard_files import ShardFiles

__all__ = ["SampleRow", "SetRows", "open_set_rows"]


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One sample: where it lies, and its row of the samples table."""

    shard: int
    """Plan-wide."""
    ordinal: int
    set_name: str
    """As the plan calls it."""
    opened: OpenedSet
    files: ShardFiles
    shard_name: str
    values: dict[str, Any]
    """`schemas.tables.SAMPLES`."""

    @property
    def info(self) -> SetInfo:
        """What its set says of itself."""
        return self.opened.info

    @property
    def clip_id(self) -> str:
        """Its clip."""
        return str(self.values["clip_id"])

    def fits(self, bucket: Bucket) -> bool:
        """Whether the stored latent serves a bucket."""
        frames, _, rows, columns = self.values["latent_shape"]
        return frames >= bucket.latent_shape[0] and (rows, columns) == bucket.latent_shape[1:]

    def member(self, name: str) -> bytes | None:
        """The bytes of one member (`json`, `latent.npy`), crc32 checked; None when the sample has none of that name.

        Raises:
            ShardError: when the shard is gone, ends before, or the bytes are damaged.
            ServiceError: when an object store fails.
        """
        found = next((member for member in self.values["members"] if member["name"] == name), None)
        if found is None:
            return None
        address = self.opened.shard_address(self.shard_name)
        data = self.files.read(address, found["offset"], found["length"])
        if zlib.crc32(data) != found["crc32"]:
            end = found["offset"] + found["length"]
            raise ShardError(f"{name} is damaged (shard {address}, bytes {found['offset']} to {end})")
        return bytes(data)

    def record(self) -> dict[str, Any]:
        """The `.json` member; empty when there is none."""
        data = self.member("json")
        try:
            value = {} if data is None else json.loads(data)
        except ValueError as error:
            raise ShardError(f"json cannot be read ({error})") from error
        return value if isinstance(value, dict) else {}

    def latent(self, bucket: Bucket) -> np.ndarray:
        """The latent T C H W as a bucket uses it: its first frames."""
        data = self.member("latent.npy")
        if data is None:
            raise ShardError("the samples table lists no member latent.npy")
        try:
            latent_TCHW = parse_npy(memoryview(data))
        except ValueError as error:
            raise ShardError(f"latent.npy cannot be read ({error})") from error
        return latent_TCHW[: bucket.latent_shape[0]]


@dataclass(frozen=True, kw_only=True)
class _OneSet:
    plan_set: PlanSet
    opened: OpenedSet
    table: pa.Table
    place_N: np.ndarray
    """shard_index << 32 | ordinal of each row, sorted."""
    row_N: np.ndarray
    """The row of each of them."""


class SetRows:
    """All sets of one plan, in its order."""

    def __init__(self, sets: Sequence[_OneSet]) -> None:
        self._sets = tuple(sets)
        self._files = ShardFiles()
        self.folders = tuple(one.opened.place for one in sets)
        self.infos = tuple(one.opened.info for one in sets)

    def close(self) -> None:
        """Close all shards."""
        self._files.close()

    def row(self, shard: int, ordinal: int) -> SampleRow:
        """The sample at a plan-wide shard; PlanError when there is none."""
        for one in self._sets:
            local = shard - one.plan_set.first_shard
            if 0 <= local < len(one.plan_set.shard_names):
                place = (local << 32) | ordinal
                found = int(np.searchsorted(one.place_N, place))
                if found < len(one.place_N) and one.place_N[found] == place:
                    return self._row(one, int(one.row_N[found]))
                raise PlanError(
                    f"the plan names sample {ordinal} of {one.plan_set.shard_names[local]}, which the set {one.opened.place} has not"
                )
        raise PlanError(f"the plan names shard {shard}, which none of its sets has")

    def rows_of_clip(self, clip_id: str) -> list[SampleRow]:
        """Every sample of a clip: none, one, or one for each set that has it."""
        found = []
        for one in self._sets:
            rows = pc.indices_nonzero(pc.equal(one.table.column("clip_id"), clip_id)).to_pylist()
            found += [self._row(one, row) for row in rows]
        return found

    def places_of_clips(self, clip_ids: Collection[str]) -> dict[tuple[int, int], str]:
        """(Plan-wide shard, ordinal) of every sample of some clips, to the clip."""
        names, found = list(clip_ids), {}
        wanted = pa.array(names, pa.string())
        for one in self._sets:
            rows = pc.index_in(one.table.column("clip_id"), wanted)
            hits = pc.indices_nonzero(pc.is_valid(rows))
            columns = [one.table.column(name).take(hits).to_pylist() for name in ("shard_index", "ordinal")]
            for shard, ordinal, name in zip(*columns, rows.take(hits).to_pylist(), strict=True):
                found[one.plan_set.first_shard + shard, ordinal] = names[name]
        return found

    def _row(self, one: _OneSet, row: int) -> SampleRow:
        values = one.table.slice(row, 1).to_pylist()[0]
        return SampleRow(
            shard=one.plan_set.first_shard + values["shard_index"],
            ordinal=values["ordinal"],
            set_name=one.plan_set.name,
            opened=one.opened,
            files=self._files,
            shard_name=one.plan_set.shard_names[values["shard_index"]],
            values=values,
        )


def open_set_rows(meta: PlanMeta, places: Sequence[SetPlace]) -> SetRows:
    """Find each of the plan's sets among `places` by the hash of its samples table.

    Raises:
        PlanError: if a set of the plan is not among them.
        DataError: if a place is not a set.
    """
    found = {table_hash(opened.samples): opened for opened in map(open_set, places)}
    sets = []
    for plan_set in meta.sets:
        if plan_set.samples_hash not in found:
            seen = ", ".join(f"{opened.place} ({one[:12]})" for one, opened in found.items()) or "none"
            raise PlanError(
                f"the run's plan was built for other samples: its set {plan_set.name!r} has samples hash {plan_set.samples_hash[:12]}, "
                f"given: {seen}; give the sets it was built from with --samples"
            )
        sets.append(_one_set(plan_set, found[plan_set.samples_hash]))
    return SetRows(sets)


def _one_set(plan_set: PlanSet, opened: OpenedSet) -> _OneSet:
    table = opened.samples.combine_chunks()
    shard_N, ordinal_N = (table.column(name).to_numpy().astype(np.int64) for name in ("shard_index", "ordinal"))
    place_N = (shard_N << 32) | ordinal_N
    row_N = np.argsort(place_N, kind="stable")
    return _OneSet(plan_set=plan_set, opened=opened, table=table, place_N=place_N[row_N], row_N=row_N)
