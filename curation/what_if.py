"""What other thresholds would do: the decisions of two settings side by side, from the tables on disk, writing nothing.

Both sides are computed now with the same code, so what is shown is the change of the thresholds and nothing else. Price: two passes of decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from curation.config import CurateConfig, load_curate_config
from curation.decide import KEEP, decide
from curation.thresholds import DecideSettings
from schemas.errors import UsageError
from schemas.tables import ADMISSIONS

__all__ = ["changed_config", "compare_decisions", "what_if"]

_EXAMPLES = 5


def changed_config(path: Path, overrides: Sequence[str], changes: Sequence[str]) -> CurateConfig:
    """The config with `changes`, keys of the decide section (`levels.144p.min_motion=0.2`), laid over it.

    Raises:
        UsageError: a change without a value.
        ConfigError: a key or value that the config does not take.
    """
    for change in changes:
        if "=" not in change:
            raise UsageError(f"--what-if {change!r}: expected key=value, for example levels.144p.min_motion=0.2")
    prefixed = [change if change.startswith("decide.") else f"decide.{change}" for change in changes]
    return load_curate_config(path, [*overrides, *prefixed])


def what_if(
    clips: pa.Table,
    pairs: pa.Table,
    labels: pa.Table | None,
    before: DecideSettings,
    after: DecideSettings,
    published: pa.Table | None = None,
) -> str:
    """How the funnel would change, as text; `published` as in `decide`."""
    old, new = (decide(clips, pairs, labels, settings, published) for settings in (before, after))
    return compare_decisions(old, new)


def compare_decisions(before: pa.Table, after: pa.Table) -> str:
    """Two DECISIONS of the same clips as text: kept, rejected by reason, and which clips change sides, per level."""
    left, right = (pl.from_arrow(table.select(["clip_id", "admission", "decision"])) for table in (before, after))
    assert isinstance(left, pl.DataFrame) and isinstance(right, pl.DataFrame)
    both = left.join(right, on=["clip_id", "admission"], suffix="_after", validate="1:1")
    lines = []
    for admission in ADMISSIONS:
        level = both.filter(pl.col("admission") == admission)
        lines += _level(admission, level)
    moved = both.filter(pl.col("decision") != pl.col("decision_after"))
    lines.append(
        f"{moved['clip_id'].n_unique()} of {both['clip_id'].n_unique()} clips would change at some level; nothing was written"
    )
    return "\n".join(lines) + "\n"


def _level(admission: str, level: pl.DataFrame) -> list[str]:
    """Counts of one level, then examples of clips that would come in and go out."""
    counts = {
        name: (int((level["decision"] == name).sum()), int((level["decision_after"] == name).sum()))
        for name in sorted(set(level["decision"]) | set(level["decision_after"]), key=lambda name: (name != KEEP, name))
    }
    changed = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
    kept = counts.get(KEEP, (0, 0))
    lines = [f"{admission}: kept {kept[0]} -> {kept[1]} ({kept[1] - kept[0]:+d})"]
    if not changed and level.filter(pl.col("decision") != pl.col("decision_after")).is_empty():
        return [f"{lines[0]}, no change"]
    lines += [
        f"  {name:20} {old:>8} -> {new:<8} ({new - old:+d})" for name, (old, new) in changed.items() if name != KEEP
    ]
    came = level.filter((pl.col("decision") != KEEP) & (pl.col("decision_after") == KEEP))
    went = level.filter((pl.col("decision") == KEEP) & (pl.col("decision_after") != KEEP))
    lines += _examples("would come in", came, "decision") + _examples("would go out", went, "decision_after")
    return lines


def _examples(what: str, rows: pl.DataFrame, reason: str) -> list[str]:
    shown = rows.sort("clip_id").head(_EXAMPLES).rows(named=True)
    if not shown:
        return []
    more = f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
    return [f"  {what}: " + ", ".join(f"{row['clip_id']} ({row[reason]})" for row in shown) + more]
