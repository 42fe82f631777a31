"""The packed sets behind a plan, for looking rather than for training: rows of the samples tables, and single members of samples.

Sets are found by the hash of their samples table, as the trainer finds them. Unlike there, shards may be missing or damaged: what is asked of such a
one raises ShardError, and the rest of the answer stands. Price: the samples tables are held in memory as Arrow.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.buckets import Bucket
from schemas.errors import PlanError, ShardError
from schemas.hashing import table_hash
from schemas.plan import PlanMeta, PlanSet
from schemas.shards import SetInfo, read_set_info, samples_path, shard_address
from schemas.tables import SAMPLES, read_table
from training.clip_arrays import parse_npy

__all__ = ["SampleRow", "SetRows", "open_set_rows"]


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One sample: where it lies, and its row of the samples table."""

    shard: int
    """Plan-wide."""
    ordinal: int
    set_name: str
    """As the plan calls it."""
    folder: Path
    info: SetInfo
    shard_name: str
    values: dict[str, Any]
    """`schemas.tables.SAMPLES`."""

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
        """
        found = next((member for member in self.values["members"] if member["name"] == name), None)
        if found is None:
            return None
        path = Path(shard_address(self.folder, self.info, self.shard_name))
        try:
            with path.open("rb") as stream:
                stream.seek(found["offset"])
                data = stream.read(found["length"])
        except OSError as error:
            raise ShardError(f"shard {path} cannot be read ({error.strerror or error})") from error
        if len(data) != found["length"] or zlib.crc32(data) != found["crc32"]:
            raise ShardError(
                f"{name} is damaged (shard {path}, bytes {found['offset']} to {found['offset'] + found['length']})"
            )
        return data

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
    folder: Path
    info: SetInfo
    table: pa.Table
    place_N: np.ndarray
    """shard_index << 32 | ordinal of each row, sorted."""
    row_N: np.ndarray
    """The row of each of them."""


class SetRows:
    """All sets of one plan, in its order."""

    def __init__(self, sets: Sequence[_OneSet]) -> None:
        self._sets = tuple(sets)
        self.folders = tuple(one.folder for one in sets)
        self.infos = tuple(one.info for one in sets)

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
                    f"the plan names sample {ordinal} of {one.plan_set.shard_names[local]}, which the set {one.folder} has not"
                )
        raise PlanError(f"the plan names shard {shard}, which none of its sets has")

    def rows_of_clip(self, clip_id: str) -> list[SampleRow]:
        """Every sample of a clip: none, one, or one for each set that has it."""
        found = []
        for one in self._sets:
            rows = pc.indices_nonzero(pc.equal(one.table.column("clip_id"), clip_id)).to_pylist()
            found += [self._row(one, row) for row in rows]
        return found

    def _row(self, one: _OneSet, row: int) -> SampleRow:
        values = one.table.slice(row, 1).to_pylist()[0]
        return SampleRow(
            shard=one.plan_set.first_shard + values["shard_index"],
            ordinal=values["ordinal"],
            set_name=one.plan_set.name,
            folder=one.folder,
            info=one.info,
            shard_name=one.plan_set.shard_names[values["shard_index"]],
            values=values,
        )


def open_set_rows(meta: PlanMeta, folders: Sequence[Path]) -> SetRows:
    """Find each of the plan's sets among `folders` by the hash of its samples table.

    Raises:
        PlanError: if a set of the plan is not among them.
        DataError: if a folder is not a set.
    """
    tables = {}
    for folder in folders:
        info, table = read_set_info(folder), read_table(samples_path(folder), SAMPLES)
        tables[table_hash(table)] = (folder, info, table)
    sets = []
    for plan_set in meta.sets:
        if plan_set.samples_hash not in tables:
            seen = ", ".join(f"{folder} ({found[:12]})" for found, (folder, _, _) in tables.items()) or "none"
            raise PlanError(
                f"the run's plan was built for other samples: its set {plan_set.name!r} has samples hash {plan_set.samples_hash[:12]}, "
                f"given: {seen}; "
                "give the sets it was built from with --samples"
            )
        sets.append(_one_set(plan_set, *tables[plan_set.samples_hash]))
    return SetRows(sets)


def _one_set(plan_set: PlanSet, folder: Path, info: SetInfo, table: pa.Table) -> _OneSet:
    shard_N, ordinal_N = (table.column(name).to_numpy().astype(np.int64) for name in ("shard_index", "ordinal"))
    place_N = (shard_N << 32) | ordinal_N
    row_N = np.argsort(place_N, kind="stable")
    return _OneSet(
        plan_set=plan_set, folder=folder, info=info, table=table.combine_chunks(), place_N=place_N[row_N], row_N=row_N
    )
