"""What the filters take away: share kept against share seen, by domain, branch, length, source and label.

A group that is kept far less often than the rest will be missing from the training, whatever the reason was; the table shows it before that. Labels
exist only for clips that were captioned, so by label "seen" means captioned. Price: one group-by per dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import polars as pl
import pyarrow as pa

from curation.decide import KEEP

__all__ = ["DIMENSIONS", "Group", "kept_shares", "share_tables"]

DIMENSIONS = ("domain", "branch", "frames", "size", "subject", "style", "source")
"""In the order they are shown; `subject` and `style` are labels."""
_MOST_GROUPS = 24
_FEWEST_CLIPS = 3
"""Groups with fewer clips say nothing about a filter and are put together at the end."""
_HEAD = ("", "seen", "of all seen", "of all kept", "kept of it", "against the whole", "hours kept")


@dataclass(frozen=True)
class Group:
    """One group of one dimension."""

    name: str
    seen: int
    kept: int
    seen_hours: float
    kept_hours: float

    @property
    def share_kept(self) -> float:
        return self.kept / self.seen if self.seen else 0.0


def kept_shares(tables: Mapping[str, pa.Table], admission: str) -> dict[str, list[Group]]:
    """Dimension to its groups, those that lose most first (kept share, then size); dimensions with one group only are left out."""
    clips = _clips(tables)
    decisions = pl.from_arrow(tables["decisions"].select(["clip_id", "admission", "decision"]))
    assert isinstance(decisions, pl.DataFrame)
    kept = decisions.filter(pl.col("admission") == admission).select("clip_id", kept=pl.col("decision") == KEEP)
    joined = clips.join(kept, on="clip_id", how="left").with_columns(pl.col("kept").fill_null(False))
    found = {}
    for dimension in DIMENSIONS:
        if dimension in joined.columns:
            groups = _groups(joined.filter(pl.col(dimension).is_not_null()), dimension)
            if len(groups) > 1:
                found[dimension] = groups
    return found


def _clips(tables: Mapping[str, pa.Table]) -> pl.DataFrame:
    clips = pl.from_arrow(tables["clips"].select(["clip_id", "domain", "branch", "frames", "uri", "clip_fps", "crop"]))
    assert isinstance(clips, pl.DataFrame)
    crop = pl.col("crop").struct
    short = pl.min_horizontal(crop.field("bottom") - crop.field("top"), crop.field("right") - crop.field("left"))
    sizes = pl.when(short < 240).then(pl.lit("below 240")).when(short < 480).then(pl.lit("240 to 479"))
    frame = clips.select(
        "clip_id",
        "branch",
        domain=pl.when(pl.col("domain") == "").then(pl.lit("(none)")).otherwise("domain"),
        frames=pl.col("frames").cast(pl.String) + " frames",
        size=sizes.when(short < 720).then(pl.lit("480 to 719")).otherwise(pl.lit("720 and more")),
        source=pl.col("uri").str.split("/").list.last(),
        hours=pl.col("frames") / pl.col("clip_fps") / 3600,
    )
    if "labels" not in tables:
        return frame
    labels = pl.from_arrow(tables["labels"].select(["clip_id", "subject", "style"]))
    assert isinstance(labels, pl.DataFrame)
    return frame.join(labels, on="clip_id", how="left")


def _groups(frame: pl.DataFrame, dimension: str) -> list[Group]:
    hours_kept = pl.col("hours").filter(pl.col("kept")).sum()
    counted = frame.group_by(name=pl.col(dimension)).agg(
        seen=pl.len(), kept=pl.col("kept").sum(), seen_hours=pl.col("hours").sum(), kept_hours=hours_kept
    )
    rare = counted.filter(pl.col("seen") < _FEWEST_CLIPS)
    if len(rare) > _MOST_GROUPS:
        counted = counted.filter(pl.col("seen") >= _FEWEST_CLIPS)
        rest = rare.select(
            pl.lit(f"({len(rare)} groups below {_FEWEST_CLIPS} clips)").alias("name"), pl.exclude("name").sum()
        )
        counted = pl.concat([counted, rest.select(counted.columns).cast(counted.schema)])  # type: ignore[arg-type]
    counted = counted.with_columns(share=pl.col("kept") / pl.col("seen")).sort(
        ["share", "seen", "name"], descending=[False, True, False]
    )
    return [Group(*row) for row in counted.drop("share").iter_rows()]


def share_tables(shares: Mapping[str, list[Group]]) -> str:
    """The groups as HTML tables, with a bar for the share kept and how it compares with the whole."""
    parts = []
    for dimension, groups in shares.items():
        seen, kept = sum(group.seen for group in groups), sum(group.kept for group in groups)
        whole = kept / seen if seen else 0.0
        shown = groups if len(groups) <= _MOST_GROUPS else [*groups[: _MOST_GROUPS // 2], *groups[-_MOST_GROUPS // 2 :]]
        rows = "".join(_row(group, whole, seen, kept) for group in shown)
        note = (
            f", {len(shown)} of {len(groups)} shown: those that lose most, and least"
            if len(shown) < len(groups)
            else ""
        )
        head = "".join(f"<th>{text}</th>" for text in _HEAD)
        parts.append(
            f"<h3>by {escape(dimension)}{note}</h3><table class='shares' data-dimension='{escape(dimension)}'>"
            f"<tr>{head}</tr>{rows}</table>"
        )
    return "".join(parts) or "<p class='dim'>Every clip is of one group.</p>"


def _row(group: Group, whole: float, seen: int, kept: int) -> str:
    ratio = f"{group.share_kept / whole:.2f}" if whole else "-"
    marked = " class='low'" if whole and group.share_kept < 0.5 * whole else ""
    bar = f"<span class='bar'><i style='width:{100 * group.share_kept:.1f}%'></i></span>"
    return (
        f"<tr{marked}><td>{escape(str(group.name))}</td><td>{group.seen}</td><td>{group.seen / seen:.1%}</td>"
        f"<td>{group.kept / kept if kept else 0:.1%}</td><td>{bar} {group.share_kept:.0%}</td><td>{ratio}</td>"
        f"<td>{group.kept_hours:.3g} of {group.seen_hours:.3g}</td></tr>"
    )
