"""Which samples a plan may use, beyond their level: rules over their labels, and over scores that curation stored.

A rule is data (schemas.plan.AdmissionRule), so that the verifier can apply it anew. Scores are in a table of their own (`clips.parquet`), joined by
clip id; a clip without a row there has no value, which is no reason to reject it unless the rule says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import UsageError
from schemas.hashing import table_hash
from schemas.plan import AdmissionRule
from schemas.tables import SAMPLES

__all__ = ["Scores", "admitted_mask", "read_scores"]


@dataclass(frozen=True)
class Scores:
    """What rules look at, and the hash of the table that it is from."""

    frame: pl.DataFrame
    """clip_id and the columns that the rules name."""
    digest: str


def read_scores(path: Path | None, rules: Sequence[AdmissionRule]) -> Scores | None:
    """The table of scores, or None where no rule needs it.

    Raises:
        UsageError: a rule names a column that is neither in the samples nor in the scores, or holds no numbers; or the table cannot be used.
    """
    wanted = list(dict.fromkeys(rule.column for rule in rules if rule.column not in SAMPLES.names))
    if not wanted:
        return None
    if path is None:
        raise UsageError(
            f"rules (config) name {', '.join(wanted)}, which the samples do not have; "
            "give the table that has them with --scores, for example the clips.parquet of the curation"
        )
    if not path.is_file():
        raise UsageError(f"--scores {path} does not exist; give a Parquet file with clip_id and {', '.join(wanted)}")
    try:
        known = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"--scores {path} cannot be read ({error}); give a Parquet file with clip_id") from error
    missing = [name for name in ("clip_id", *wanted) if name not in known]
    if missing:
        raise UsageError(f"--scores {path} has no column {', '.join(missing)}; it has {', '.join(known)}")
    table = pq.read_table(path)
    frame = pl.from_arrow(table.select(["clip_id", *wanted]))
    assert isinstance(frame, pl.DataFrame)
    if frame["clip_id"].n_unique() != len(frame):
        raise UsageError(f"--scores {path} has several rows for a clip_id; give one row per clip")
    for rule in rules:
        if rule.column in wanted:
            _check_kind(rule, frame.schema[rule.column], table.schema.field(rule.column).type)
    return Scores(frame, _digest(table, path))


def _digest(table: pa.Table, path: Path) -> str:
    try:
        return table_hash(table)
    except TypeError as error:
        for field in table.schema:
            try:
                table_hash(table.select([field.name]))
            except TypeError:
                raise UsageError(
                    f"--scores {path} has a column {field.name} of type {field.type}, of which there is no canonical hash; "
                    "write the table without it, or as numbers or text"
                ) from error
        raise


def admitted_mask(frame: pl.DataFrame, rules: Sequence[AdmissionRule], scores: Scores | None) -> pl.Series:
    """True for the rows that meet every rule (at least one), in the order of `frame`.

    Raises:
        UsageError: limits on a column that holds no numbers.
    """
    joined = frame if scores is None else frame.join(scores.frame, on="clip_id", how="left", maintain_order="left")
    expression = pl.lit(True)
    for rule in rules:
        kind = joined.schema[rule.column]
        _check_kind(rule, kind, kind)
        expression = expression & _meets(rule, kind)
    return joined.select(mask=expression).to_series()


def _check_kind(rule: AdmissionRule, kind: pl.DataType, name: object) -> None:
    if kind.is_nested():
        raise UsageError(
            f"the rule on {rule.column!r} cannot be applied: the column holds {str(name).lower()}, not one value a clip; "
            "name a column of numbers or text (config: rules)"
        )
    if rule.one_of is None and not (kind.is_numeric() or kind == pl.Boolean or kind == pl.Null):
        raise UsageError(
            f"the rule on {rule.column!r} gives numbers, the column holds {str(name).lower()}; give one_of with its values instead (config: rules)"
        )


def _meets(rule: AdmissionRule, kind: pl.DataType) -> pl.Expr:
    """Limits are compared in the column's own type: a score of 0.3 that was stored in 32 bits meets `at_most: 0.3`."""
    column = pl.col(rule.column)
    if rule.one_of is not None:
        return column.cast(pl.String).is_in(list(rule.one_of)).fill_null(rule.missing == "keep")
    if kind.is_float():
        column = column.fill_nan(None)
    else:
        column, kind = column.cast(pl.Float64), pl.Float64()
    meets = pl.lit(True)
    if rule.at_least is not None:
        meets = meets & (column >= pl.lit(rule.at_least, dtype=kind))
    if rule.at_most is not None:
        meets = meets & (column <= pl.lit(rule.at_most, dtype=kind))
    return meets.fill_null(rule.missing == "keep")
