"""The plan's admission rules, applied anew to the samples and to the table of scores.

A limit is compared in the column's own type (a float32 score of 0.3 meets `at_most: 0.3`); NaN counts as missing. Price: with rules on scores, the
ids of both tables are matched through one hash table in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from planner.proof.report import VerifyReport
from schemas.errors import UsageError
from schemas.hashing import TableHasher
from schemas.plan import AdmissionRule
from schemas.tables import SAMPLES

__all__ = ["meets_rule", "rules_on_samples", "rules_on_scores", "scored_mask"]


def rules_on_samples(rules: Sequence[AdmissionRule]) -> list[AdmissionRule]:
    """Those whose column the samples have."""
    return [rule for rule in rules if rule.column in SAMPLES.names]


def rules_on_scores(rules: Sequence[AdmissionRule]) -> list[AdmissionRule]:
    """Those that need a table of scores."""
    return [rule for rule in rules if rule.column not in SAMPLES.names]


def meets_rule(rule: AdmissionRule, column: pa.Array | pa.ChunkedArray, report: VerifyReport) -> np.ndarray:
    """True where the values meet the rule; a column that the rule cannot be applied to breaks `admission_rules` and rejects nothing."""
    kind = column.type
    if rule.one_of is not None:
        text = column if pa.types.is_string(kind) or pa.types.is_large_string(kind) else column.cast(pa.string())
        null = _numpy(text.is_null())
        mask = _numpy(pc.fill_null(pc.is_in(text, value_set=pa.array(rule.one_of, text.type)), False))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        null = _numpy(column.is_null())
        zero = pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)
        values = _numpy(pc.fill_null(column, zero))
        if pa.types.is_floating(kind):
            null = null | np.isnan(values)
        mask = np.ones(len(values), dtype=bool)
        if rule.at_least is not None:
            mask &= values >= rule.at_least
        if rule.at_most is not None:
            mask &= values <= rule.at_most
    else:
        report.add("admission_rules", f"the rule on {rule.column!r} gives numbers, the column holds {kind}")
        return np.ones(len(column), dtype=bool)
    return np.where(null, rule.missing == "keep", mask)


def scored_mask(
    ids: pa.ChunkedArray, rules: Sequence[AdmissionRule], scores: Path, expected: str | None, report: VerifyReport
) -> np.ndarray | None:
    """True for the ids whose scores meet all of `rules`; None where the table is another one, or lacks a column.

    Raises:
        UsageError: if `scores` is no Parquet file with clip_id.
    """
    names = ["clip_id", *dict.fromkeys(rule.column for rule in rules)]
    table, digest = _read_scores(scores, names)
    if digest != expected:
        report.add(
            "scores_hash",
            f"{scores} has hash {digest[:12]}..., the plan's rules looked at {str(expected)[:12]}...; give the table that it was built with",
        )
        return None
    missing = [name for name in names if name not in table.column_names]
    if missing:
        report.add("admission_rules", f"{scores} has no column {', '.join(missing)}, which the plan's rules name")
        return None
    known = table.column("clip_id").combine_chunks().cast(pa.large_string())
    rows = pc.index_in(ids.cast(pa.large_string()), value_set=known)
    masks = [meets_rule(rule, table.column(rule.column).take(rows), report) for rule in rules]
    return np.logical_and.reduce(masks)


def _read_scores(path: Path, names: Sequence[str]) -> tuple[pa.Table, str]:
    """The columns of `names` that are there, and the hash of the whole table, row group by row group."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"--scores {path} cannot be read ({error}); give a Parquet file with clip_id") from error
    hasher = TableHasher()
    pieces = []
    with file:
        schema = file.schema_arrow
        if "clip_id" not in schema.names:
            raise UsageError(f"--scores {path} has no column clip_id; it has {', '.join(schema.names)}")
        kept = [name for name in names if name in schema.names]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            hasher.update(table)
            pieces.append(table.select(kept))
        if not pieces:
            hasher.update(schema.empty_table())
            pieces.append(schema.empty_table().select(kept))
    return pa.concat_tables(pieces), hasher.hexdigest()


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(array.to_numpy(zero_copy_only=False))
