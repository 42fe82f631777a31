"""Lane files to flat arrays and hashes, ahead of the one that is looked at.

Two threads read, decode and hash; the order of the results is that of the lanes. Price: three lanes are in memory at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.errors import SchemaError
from schemas.hashing import table_hash
from schemas.plan import LANE, lane_path
from schemas.tables import read_table

__all__ = ["LaneTable", "lane_arrays", "lane_tables"]

_AHEAD = 3


@dataclass(frozen=True)
class LaneTable:
    """A lane's columns as flat arrays."""

    epoch: np.ndarray
    step: np.ndarray
    micro: np.ndarray
    sides: np.ndarray
    """Rows x (frames, height, width)."""
    use_start: np.ndarray
    """Rows + 1: first use of each row in the next two."""
    shard: np.ndarray
    ordinal: np.ndarray
    read_start: np.ndarray
    """Rows + 1: first read of each row in the next three."""
    read_shard: np.ndarray
    read_offset: np.ndarray
    read_length: np.ndarray

    @property
    def row_of_use(self) -> np.ndarray:
        """Row of each use."""
        return np.repeat(np.arange(len(self.epoch)), np.diff(self.use_start))

    @property
    def row_of_read(self) -> np.ndarray:
        """Row of each read."""
        return np.repeat(np.arange(len(self.epoch)), np.diff(self.read_start))


def lane_arrays(table: pa.Table) -> LaneTable:
    """The table's columns without a Python object per row."""
    use_start, clips = _flat(table, "clips")
    read_start, reads = _flat(table, "reads")
    return LaneTable(
        epoch=table.column("epoch").to_numpy(),
        step=table.column("step").to_numpy(),
        micro=table.column("micro").to_numpy(),
        sides=np.stack([table.column(name).to_numpy() for name in ("frames", "height", "width")], axis=1),
        use_start=use_start,
        shard=_numbers(clips, "shard"),
        ordinal=_numbers(clips, "ordinal"),
        read_start=read_start,
        read_shard=_numbers(reads, "shard"),
        read_offset=_numbers(reads, "offset"),
        read_length=_numbers(reads, "length"),
    )


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, pa.StructArray]:
    lists = table.column(name).combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    start = lists.offsets.to_numpy().astype(np.int64)
    return start - start[0], lists.flatten()


def _numbers(structs: pa.StructArray, name: str) -> np.ndarray:
    return structs.field(name).to_numpy(zero_copy_only=False).astype(np.int64)


def lane_tables(plan: Path, num_lanes: int) -> Iterator[tuple[LaneTable, str] | str]:
    """Each lane's arrays and hash, in order, or why it cannot be read."""

    def load(lane: int) -> tuple[LaneTable, str] | str:
        try:
            table = read_table(lane_path(plan, lane), LANE)
        except (SchemaError, OSError, pa.ArrowInvalid) as error:
            return str(error)
        return lane_arrays(table), table_hash(table)

    with ThreadPoolExecutor(2) as pool:
        coming: deque[Future[tuple[LaneTable, str] | str]] = deque()
        for lane in range(num_lanes):
            coming.append(pool.submit(load, lane))
            if len(coming) == _AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
