"""Bytes and domain of each sample by (shard, ordinal), for all sets of a plan.

A plan names clips by place and reads by bytes, so the bytes of a clip, and with them the curves of the buffer, need the samples. Only five columns
are read and their hash is not taken (the verifier does that); a clip that the samples lack is refused, and the page compares the peaks that the
samples give with those of `plan.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.looking.places import read_samples
from schemas.errors import PlanError
from schemas.plan import PlanMeta

__all__ = ["MOST_DOMAINS", "SampleFacts", "load_facts"]

MOST_DOMAINS = 255
"""Domains that are told apart, the largest first; the rest count as one."""


@dataclass(frozen=True)
class SampleFacts:
    """Facts by place: sample `ordinal` of shard `shard` is entry `first[shard] + ordinal`."""

    first: np.ndarray
    """Per plan-wide shard, and one past the last."""
    offset: np.ndarray
    length: np.ndarray
    """Bytes; 0 where there is no sample."""
    domain: np.ndarray
    """Index into `domains`."""
    domains: tuple[str, ...]

    def find(self, shard: np.ndarray, ordinal: np.ndarray, where: str) -> np.ndarray:
        """The entry of each place.

        Raises:
            PlanError: if there is no such sample; `where` begins the message.
        """
        known = (shard >= 0) & (shard < len(self.first) - 1) & (ordinal >= 0)
        entry = np.where(known, self.first[np.where(known, shard, 0)] + ordinal, 0)
        known &= entry < self.first[np.where(known, shard, 0) + 1]
        entry = np.where(known, entry, 0)
        known &= self.length[entry] > 0 if len(self.length) else False
        if not known.all():
            wrong = int(np.flatnonzero(~known)[0])
            raise PlanError(
                f"{where} names sample {ordinal[wrong]} of shard {shard[wrong]}, which --samples do not have; "
                "give the sets that the plan was built from, in the order of the build"
            )
        return entry


def load_facts(meta: PlanMeta, paths: Sequence[Path]) -> SampleFacts:
    """Read the sets (folders or samples.parquet) in the plan's order.

    Raises:
        PlanError: if their number, or the shards of one, are not the plan's, or ordinals are no positions.
    """
    table = read_samples(meta, paths, ["ordinal", "offset", "length", meta.domain_column])
    shard, ordinal, offset, length = (
        table.column(name).to_numpy() for name in ("shard", "ordinal", "offset", "length")
    )
    num_shards = sum(len(item.shard_names) for item in meta.sets)
    sizes = np.zeros(num_shards, dtype=np.int64)
    np.maximum.at(sizes, shard, ordinal.astype(np.int64) + 1)
    first = np.concatenate([[0], np.cumsum(sizes)])
    if first[-1] > 16 * len(shard) + 1_000_000:
        raise PlanError(
            f"the samples give ordinals up to {int(ordinal.max())} for {len(shard)} samples; an ordinal is a position in its tar, pack the set again"
        )
    entry = first[shard] + ordinal
    codes, names = _domains(table.column(meta.domain_column))
    facts = [np.zeros(int(first[-1]), dtype=kind) for kind in (np.int64, np.int64, np.uint8)]
    for column, values in zip(facts, (offset, length, codes), strict=True):
        column[entry] = values
    return SampleFacts(first, facts[0], facts[1], facts[2], names)


def _domains(column: pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Code of each value and the names, largest first, ties by name; what is past `MOST_DOMAINS` shares the last code."""
    encoded = pc.cast(column, pa.string()).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = encoded.dictionary.to_pylist()
    found = encoded.indices.to_numpy()
    counts = np.bincount(found, minlength=len(values))
    order = sorted(range(len(values)), key=lambda code: (-int(counts[code]), values[code]))
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(order))
    names = [values[code] or "(none)" for code in order[:MOST_DOMAINS]]
    if len(order) > MOST_DOMAINS:
        names.append(f"{len(order) - MOST_DOMAINS} others")
    return np.minimum(rank, MOST_DOMAINS)[found].astype(np.uint8), tuple(names)
