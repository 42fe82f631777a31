"""Domain and source of each sample as numbers, for the figures of `plan.json` that are about them.

Text is coded chunk by chunk while the table is read, so that only distinct values stay. Price: a set in which nearly every clip has a value of its
own would keep them all; past `MOST_VALUES` the column is given up, and what needs it is not checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from schemas.plan import PlanMeta
from schemas.tables import SAMPLES

__all__ = ["MOST_VALUES", "Labels", "label_codes", "labels_for"]

MOST_VALUES = 1 << 23
"""Distinct values, summed over row groups: with sources of 64 letters about 0.6 GB."""


class Labels:
    """The coded columns of one set, in the order of its table."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.chunks: dict[str, list[pa.DictionaryArray]] = {name: [] for name in columns}
        self._values = dict.fromkeys(columns, 0)

    def note(self, table: pa.Table) -> None:
        """The next rows."""
        for name in list(self.chunks):
            for chunk in table.column(name).dictionary_encode().chunks:
                self.chunks[name].append(chunk)
                self._values[name] += len(chunk.dictionary)
            if self._values[name] > MOST_VALUES:
                del self.chunks[name]


def labels_for(meta: PlanMeta) -> list[str]:
    """Columns of text that the plan's own figures are about."""
    wanted = []
    if any(name.startswith("mix_index_") and name.endswith("/domain") for name in meta.metrics):
        wanted.append(meta.domain_column)
    if "shared_source_ratio" in meta.metrics:
        wanted.append("source")
    return [
        name for name in dict.fromkeys(wanted) if name in SAMPLES.names and pa.types.is_string(SAMPLES.field(name).type)
    ]


def label_codes(sets: Sequence[Labels], name: str) -> tuple[np.ndarray, int] | None:
    """(number of each sample's value over all sets, numbers in all); None where a set has given the column up."""
    if not sets or any(name not in item.chunks for item in sets):
        return None
    chunks = [chunk for item in sets for chunk in item.chunks[name]]
    if not chunks:
        return np.zeros(0, np.int32), 0
    whole = pa.chunked_array(chunks).unify_dictionaries()
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in whole.chunks])
    return codes.astype(np.int32), len(whole.chunk(0).dictionary)
