"""Which samples a plan may use, beyond their level: rules over their labels, and over scores that curation stored.

A rule is data (schemas.plan.AdmissionRule), so that the verifier can apply it anew. Scores are in a table of their own (`clips.parquet`), joined by
clip id; a clip without a row there has no value, which is no reason to reject it unless the rule says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
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
        UsageError: a rule names a column that is neither in the samples nor in the scores.
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
    known = pq.read_schema(path).names
    missing = [name for name in ("clip_id", *wanted) if name not in known]
    if missing:
        raise UsageError(f"--scores {path} has no column {', '.join(missing)}; it has {', '.join(known)}")
    table = pq.read_table(path)
    frame = pl.from_arrow(table.select(["clip_id", *wanted]))
    assert isinstance(frame, pl.DataFrame)
    if frame["clip_id"].n_unique() != len(frame):
        raise UsageError(f"--scores {path} has several rows for a clip_id; give one row per clip")
    return Scores(frame, table_hash(table))


def admitted_mask(frame: pl.DataFrame, rules: Sequence[AdmissionRule], scores: Scores | None) -> pl.Series:
    """True for the rows that meet every rule, in the order of `frame`."""
    joined = frame if scores is None else frame.join(scores.frame, on="clip_id", how="left", maintain_order="left")
    expression = pl.lit(True)
    for rule in rules:
        expression = expression & _meets(rule)
    return joined.select(mask=expression).to_series()


def _meets(rule: AdmissionRule) -> pl.Expr:
    column = pl.col(rule.column)
    if rule.one_of is not None:
        meets = column.cast(pl.String).is_in(list(rule.one_of))
    else:
        column = column.cast(pl.Float64).fill_nan(None)
        meets = pl.lit(True)
        if rule.at_least is not None:
            meets = meets & (column >= rule.at_least)
        if rule.at_most is not None:
            meets = meets & (column <= rule.at_most)
    return meets.fill_null(rule.missing == "keep")
