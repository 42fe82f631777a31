"""Decisions: every clip at every admission level is kept, or rejected for one reason with the measure, value and limit that decided.

The controls are a literal list, asked in one order, so a clip that fails several has the reason that stands first. Everything is polars
expressions over whole columns, so a million clips take seconds and a changed threshold costs no video. A score that could not be computed never
rejects. Duplicates are decided last, among the clips that pass everything else at that level, so a group never loses its last good copy to one
that is rejected anyway. Price: a clip that is both blurred and a copy is counted as blurred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from curation.thresholds import CONTROLS, LABEL_CONTROLS, DecideSettings, KeeperWeights, Thresholds
from curation.union_find import group_roots
from schemas.errors import DataError
from schemas.tables import ADMISSIONS, DECISIONS, SCORES

__all__ = ["KEEP", "DecideSettings", "decide", "failures", "limits_by_measure"]

KEEP = "keep"
_QUALITIES = ("low", "medium", "high")
_FLAGS = tuple(control.removeprefix("label_") for control in LABEL_CONTROLS)


@dataclass(frozen=True)
class _Control:
    """One control: a clip fails when the measure is below (`at_least`) or above (not) the level's limit; no limit, or no value: it passes."""

    reason: str
    measure: str
    limit: Callable[[Thresholds], float | None]
    at_least: bool = False

    def fails(self, level: Thresholds) -> pl.Expr:
        limit = self.limit(level)
        if limit is None:
            return pl.lit(False)
        value = pl.col(f"measure_{self.measure}")
        return ((value < limit) if self.at_least else (value > limit)).fill_null(False)


def _label(name: str) -> Callable[[Thresholds], float | None]:
    return lambda level: 0.0 if name in level.labels else None


_CONTROLS = (
    _Control("nsfw", "nsfw", lambda level: level.max_nsfw),
    _Control("label_nsfw", "label_nsfw", _label("label_nsfw")),
    _Control("no_good_crop", "no_good_crop", lambda level: None if level.allow_no_good_crop else 0.0),
    _Control("letterboxed", "border_area_ratio", lambda level: level.max_border_area_ratio),
    _Control("overlay", "overlay_area_ratio", lambda level: level.max_overlay_area_ratio),
    _Control("label_watermark", "label_watermark", _label("label_watermark")),
    _Control("too_small", "crop_pixels", lambda level: level.min_pixels, at_least=True),
    _Control("too_short", "frames", lambda level: level.min_frames, at_least=True),
    _Control("static", "motion", lambda level: level.min_motion, at_least=True),
    _Control("too_fast", "motion", lambda level: level.max_motion),
    _Control("still_picture", "motion_local", lambda level: level.min_motion_local, at_least=True),
    _Control("shaky", "shake", lambda level: level.max_shake),
    _Control("low_fps", "effective_fps", lambda level: level.min_effective_fps, at_least=True),
    _Control("too_dark", "luma", lambda level: level.min_luma, at_least=True),
    _Control("too_bright", "luma", lambda level: level.max_luma),
    _Control("blurred", "sharpness", lambda level: level.min_sharpness, at_least=True),
    _Control(
        "upscaled", "effective_resolution_ratio", lambda level: level.min_effective_resolution_ratio, at_least=True
    ),
    _Control("blocky", "blockiness", lambda level: level.max_blockiness),
    _Control("text_heavy", "text_area_ratio", lambda level: level.max_text_area_ratio),
    _Control("low_aesthetic", "aesthetic", lambda level: level.min_aesthetic, at_least=True),
    _Control("label_padded", "label_padded", _label("label_padded")),
    _Control("label_multi_scene", "label_multi_scene", _label("label_multi_scene")),
    _Control("label_timelapse", "label_timelapse", _label("label_timelapse")),
    _Control(
        "low_quality",
        "quality",
        lambda level: None if level.min_quality is None else float(_QUALITIES.index(level.min_quality)),
        at_least=True,
    ),
)
assert ("branch_not_admitted", *(control.reason for control in _CONTROLS), "duplicate") == CONTROLS

_YES_NO = frozenset(("no_good_crop", "quality", *LABEL_CONTROLS))
"""Measures that are no quantity."""
_SAME_DETAIL = 0.85
_MEASURES = tuple(dict.fromkeys(control.measure for control in _CONTROLS))


def decide(
    clips: pa.Table,
    pairs: pa.Table,
    labels: pa.Table | None,
    settings: DecideSettings,
    published: pa.Table | None = None,
) -> pa.Table:
    """DECISIONS: one row per clip and admission, sorted by clip id, then by admission, loosest first.

    Args:
        clips: CLIPS.
        pairs: PAIRS; only verified ones join clips into groups.
        labels: LABELS of those clips that have any; None before the captioner ran.
        published: clip_id and admission of what earlier runs kept; pairs may name them, and a copy of one is never kept at that level.

    Raises:
        DataError: a clip id stands twice, or pairs or labels name a clip that is not in `clips`.
    """
    measures = _measures(clips, labels)
    earlier = _earlier(measures, published)
    edges = _edges(measures, earlier, pairs)
    levels = [
        _without_copies(
            _judge(measures, settings, name),
            earlier.with_columns(may_be_copy=pl.col("admissions").list.contains(name)),
            edges,
            settings,
        )
        for name in ADMISSIONS
    ]
    interleaved = np.arange(len(ADMISSIONS) * len(measures)).reshape(len(ADMISSIONS), -1).T.reshape(-1)
    every = pl.concat(levels).select(DECISIONS.names)[interleaved]
    return every.to_arrow().cast(DECISIONS)


def failures(clips: pa.Table, labels: pa.Table | None, settings: DecideSettings) -> pl.DataFrame:
    """Every control that a clip fails, not only the first: clip_id, admission, control, measure, value, limit.

    Sorted by clip id, then by level, then by the order in which the controls are asked. Copies are not judged here.
    """
    measures = _measures(clips, labels)
    parts = []
    for place, admission in enumerate(ADMISSIONS):
        level = settings.levels[admission]
        barred = _applies("branch_not_admitted", settings) & ~pl.col("branch").is_in(level.branches)
        found: list[tuple[pl.Expr, str, str, pl.Expr, float | None]] = [
            (barred, "branch_not_admitted", "branch", pl.lit(None, pl.Float64), None)
        ]
        for control in _CONTROLS:
            fails = _applies(control.reason, settings) & control.fails(level)
            found.append(
                (fails, control.reason, control.measure, pl.col(f"measure_{control.measure}"), control.limit(level))
            )
        for order, (fails, reason, measure, value, limit) in enumerate(found):
            parts.append(
                measures.filter(fails).select(
                    "clip_id",
                    admission=pl.lit(admission),
                    control=pl.lit(reason),
                    measure=pl.lit(measure),
                    value=value.cast(pl.Float64),
                    limit=pl.lit(None if limit is None else float(limit), pl.Float64),
                    level=pl.lit(place),
                    order=pl.lit(order),
                )
            )
    return pl.concat(parts).sort(["clip_id", "level", "order"]).drop("level", "order")


def limits_by_measure(level: Thresholds) -> dict[str, list[float]]:
    """Measure to the limits that a level sets for it; labels left out, since they are yes or no.

    >>> limits_by_measure(Thresholds())["motion"]
    [0.05, 40.0]
    """
    limits: dict[str, list[float]] = {}
    for control in _CONTROLS:
        limit = control.limit(level)
        if limit is not None and control.measure not in _YES_NO:
            limits.setdefault(control.measure, []).append(float(limit))
    return limits


def _measures(clips: pa.Table, labels: pa.Table | None) -> pl.DataFrame:
    """One row per clip, sorted by clip id: `row`, clip_id, branch, `measure_*` as float64, and the facts that choose a keeper."""
    columns = ["clip_id", "branch", "crop", "crop_flags", "frames", "source_fps", "source_bytes", *SCORES]
    frame = _frame(clips.select(columns)).sort("clip_id").with_row_index("row")
    _refuse_repeats(frame["clip_id"], "clips")
    crop = pl.col("crop").struct
    pixels = (crop.field("bottom") - crop.field("top")).cast(pl.Int64) * (crop.field("right") - crop.field("left"))
    frame = frame.with_columns(
        crop_pixels=pixels, no_good_crop=pl.col("crop_flags").list.contains("no_good_crop").cast(pl.Float64)
    )
    frame = frame.join(_label_measures(labels), on="clip_id", how="left", maintain_order="left")
    if labels is not None:
        _refuse_unknown(_frame(labels.select(["clip_id"]))["clip_id"], frame["clip_id"], "labels")
    return frame.select(
        "row",
        "clip_id",
        "branch",
        *(pl.col(measure).cast(pl.Float64).alias(f"measure_{measure}") for measure in _MEASURES),
        pixels=pl.col("crop_pixels").cast(pl.Float64),
        detail=pl.col("effective_resolution_ratio").cast(pl.Float64),
        fps=pl.col("source_fps"),
        file_size=pl.col("source_bytes").cast(pl.Float64),
    )


def _label_measures(labels: pa.Table | None) -> pl.DataFrame:
    """clip_id, `label_*` as 0 or 1, quality as 0, 1 or 2; null where the captioner does not judge."""
    if labels is None:
        frame = pl.DataFrame(schema={"clip_id": pl.String, "quality": pl.String, **dict.fromkeys(_FLAGS, pl.Boolean)})
    else:
        frame = _frame(labels.select(["clip_id", "quality", *_FLAGS]))
        _refuse_repeats(frame["clip_id"], "labels")
    ranks = {name: float(rank) for rank, name in enumerate(_QUALITIES)}
    return frame.select(
        "clip_id",
        pl.col("quality").replace_strict(ranks, return_dtype=pl.Float64),
        *(pl.col(flag).cast(pl.Float64).alias(f"label_{flag}") for flag in _FLAGS),
    )


def _earlier(measures: pl.DataFrame, published: pa.Table | None) -> pl.DataFrame:
    """One row per clip that an earlier run kept, numbered after the clips of this one: row, clip_id, admissions."""
    kinds = {"clip_id": pl.String, "admission": pl.String}
    kept = pl.DataFrame(schema=kinds) if published is None else _frame(published.select(list(kinds)))
    grouped = kept.group_by("clip_id").agg(admissions=pl.col("admission")).sort("clip_id")
    return grouped.with_row_index("row", offset=len(measures)).with_columns(pl.col("row").cast(pl.UInt32))


def _edges(measures: pl.DataFrame, earlier: pl.DataFrame, pairs: pa.Table) -> pl.DataFrame:
    """Verified pairs as rows of `measures` and then of `earlier`: first, second, cosine. A clip that was itself kept earlier is a copy of that."""
    frame = _frame(pairs.select(["clip_a", "clip_b", "cosine", "verified"])).filter("verified")
    own = measures.select("row", "clip_id")
    rows = pl.concat([own, earlier.join(own, on="clip_id", how="anti").select("row", "clip_id")])
    for side in ("clip_a", "clip_b"):
        _refuse_unknown(frame[side], rows["clip_id"], "pairs")
    found = (
        frame.join(rows, left_on="clip_a", right_on="clip_id")
        .join(rows, left_on="clip_b", right_on="clip_id", suffix="_b")
        .select(first="row", second="row_b", cosine=pl.col("cosine").cast(pl.Float64))
    )
    again = own.join(earlier, on="clip_id", suffix="_b").select(first="row", second="row_b", cosine=pl.lit(1.0))
    return pl.concat([found, again])


def _judge(measures: pl.DataFrame, settings: DecideSettings, admission: str) -> pl.DataFrame:
    """`measures` with the first control that fails at this level: decision (null where none), measure, value, limit."""
    level = settings.levels[admission]
    failing = [pl.when(_applies("branch_not_admitted", settings) & ~pl.col("branch").is_in(level.branches)).then(0)]
    for index, control in enumerate(_CONTROLS, start=1):
        failing.append(pl.when(_applies(control.reason, settings) & control.fails(level)).then(index))
    values = [
        pl.when(pl.col("failed") == index).then(pl.col(f"measure_{control.measure}"))
        for index, control in enumerate(_CONTROLS, start=1)
    ]
    limits = [None, *(control.limit(level) for control in _CONTROLS)]
    indices = range(len(limits))
    return (
        measures.with_columns(failed=pl.coalesce(failing))
        .with_columns(
            decision=_looked_up(indices, CONTROLS, pl.String),
            measure=_looked_up(indices, ["branch", *(control.measure for control in _CONTROLS)], pl.String),
            value=pl.coalesce(values),
            limit=_looked_up(indices, [None if limit is None else float(limit) for limit in limits], pl.Float64),
        )
        .with_columns(
            admission=pl.lit(admission), may_be_copy=pl.col("failed").is_null() & _applies("duplicate", settings)
        )
    )


def _looked_up(indices: range, values: Sequence[object], dtype: type[pl.DataType]) -> pl.Expr:
    return pl.col("failed").replace_strict(
        list(indices), list(values)[: len(indices)], default=None, return_dtype=dtype
    )


def _applies(control: str, settings: DecideSettings) -> pl.Expr:
    branches = [branch for branch, controls in settings.controls.items() if control in controls]
    return pl.col("branch").is_in(branches)


def _without_copies(
    judged: pl.DataFrame, earlier: pl.DataFrame, edges: pl.DataFrame, settings: DecideSettings
) -> pl.DataFrame:
    """`judged` with every decision filled in: of each group of copies that pass, the best is kept and the others name it."""
    measured = ["pixels", "detail", "fps", "file_size"]
    facts = ["row", "clip_id", "may_be_copy", *measured]
    known = earlier.with_columns(**{fact: pl.lit(0.0).cast(judged.schema[fact]) for fact in measured})
    both = pl.concat([judged.select(facts).with_columns(new=True), known.select(facts).with_columns(new=False)])
    copies = _copies(both, edges, settings.keeper)
    names = both.select(keeper="row", duplicate_of="clip_id")
    copies = copies.join(names, on="keeper", how="left").select(
        "row", "duplicate_of", copy_cosine="cosine", is_copy=pl.lit(True)
    )
    joined = judged.join(copies, on="row", how="left", maintain_order="left")
    is_copy = pl.col("is_copy").fill_null(False)
    return joined.select(
        "row",
        "clip_id",
        "admission",
        "duplicate_of",
        decision=pl.when(is_copy).then(pl.lit("duplicate")).otherwise(pl.col("decision").fill_null(KEEP)),
        measure=pl.when(is_copy).then(pl.lit("cosine")).otherwise("measure"),
        value=pl.when(is_copy).then("copy_cosine").otherwise("value"),
        limit="limit",
    )


def _copies(judged: pl.DataFrame, edges: pl.DataFrame, weights: KeeperWeights) -> pl.DataFrame:
    """The new clips that another one stands for: row, keeper (row), cosine (to the keeper, or of the clip's strongest pair in a chain).

    A clip that an earlier run kept comes before every new one.
    """
    open_rows = judged["may_be_copy"].to_numpy()
    inside = edges.filter(pl.lit(open_rows).gather("first") & pl.lit(open_rows).gather("second"))
    roots = group_roots(len(open_rows), inside["first"].to_numpy(), inside["second"].to_numpy())
    members = np.union1d(inside["first"].to_numpy(), inside["second"].to_numpy())
    groups = judged.select("row", "new", "pixels", "detail", "fps", "file_size")[members].with_columns(
        group=pl.Series(roots[members])
    )
    groups = groups.with_columns(resolution=_pixels_with_detail())
    groups = groups.with_columns(
        score=sum((getattr(weights, fact) * _scaled(fact) for fact in KeeperWeights.model_fields), start=pl.lit(0.0))
    )
    keepers = groups.sort(["group", "new", "score", "row"], descending=[False, False, True, False]).group_by(
        "group", maintain_order=True
    )
    groups = groups.join(keepers.agg(keeper=pl.col("row").first()), on="group").filter(
        pl.col("new") & (pl.col("row") != pl.col("keeper"))
    )
    return groups.join(_strongest_link(groups, inside), on="row", how="left").select("row", "keeper", "cosine")


def _pixels_with_detail() -> pl.Expr:
    """Pixels times the square of the effective resolution.

    Among copies of about one size, differences of the latter below 15 % are its own noise and count as none, else the noise would
    decide. A copy where it could not be computed gets the highest of its group.
    """
    alike = ["group", (pl.col("pixels").log(2) * 2).round()]
    detail = pl.col("detail").fill_null(pl.col("detail").max().over("group")).fill_null(1.0)
    best = detail.max().over(alike)
    return pl.col("pixels") * pl.when(detail >= _SAME_DETAIL * best).then(best).otherwise(detail) ** 2


def _scaled(fact: str) -> pl.Expr:
    """Min-max inside the group, 0 to 1; 0 for all where the group agrees."""
    low, high = pl.col(fact).min().over("group"), pl.col(fact).max().over("group")
    return pl.when(high > low).then((pl.col(fact) - low) / (high - low)).otherwise(0.0)


def _strongest_link(groups: pl.DataFrame, inside: pl.DataFrame) -> pl.DataFrame:
    """row, cosine: of the pair with the keeper if there is one, else the highest of the clip's pairs."""
    both_ways = pl.concat([inside, inside.select(first="second", second="first", cosine="cosine")])
    links = both_ways.join(groups.select("row", "keeper"), left_on="first", right_on="row")
    links = links.with_columns(direct=pl.col("second") == pl.col("keeper"))
    ordered = links.sort(["first", "direct", "cosine"], descending=[False, True, True])
    return ordered.group_by("first", maintain_order=True).agg(pl.col("cosine").first()).rename({"first": "row"})


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _refuse_repeats(ids: pl.Series, what: str) -> None:
    if ids.n_unique() != len(ids):
        repeated = ids.filter(ids.is_duplicated()).sort()[0]
        raise DataError(
            f"table {what}: clip {repeated} stands there more than once; run the phase that writes it again"
        )


def _refuse_unknown(ids: pl.Series, known: pl.Series, what: str) -> None:
    strangers = ids.filter(~ids.is_in(known.implode()))
    if len(strangers):
        raise DataError(
            f"table {what} names clip {strangers.sort()[0]} ({strangers.n_unique()} in all), which is not among the clips; "
            f"{what} and clips are of different runs, run the phase that writes {what} again"
        )
