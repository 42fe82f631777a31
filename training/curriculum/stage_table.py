"""A checked chain in words: the table of the stages, and for each what it starts, resets and drops, and which values are the report's.

The table in docs/curriculum.md is this one; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas.buckets import CLASSES, Bucket
from schemas.plan import AdmissionRule
from training.config import TrainConfig
from training.curriculum.chain import Chain, StageFile
from training.curriculum.stage import StageConfig

__all__ = ["short_table", "stage_lines", "stage_table", "training_teraflops"]

_HEAD = (
    "| # | stage | sets: frames | text | teacher | parameters | largest bucket | tokens | TFLOPs a clip | TREAD | modules |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def training_teraflops(config: TrainConfig, bucket: Bucket, text_tokens: int) -> float:
    """10^12 FLOPs of a clip's forward and backward pass, its route included."""
    return 3 * config.forward_flops(bucket, text_tokens) / 1e12


def stage_table(chain: Chain, *, text_tokens: int) -> list[str]:
    """A Markdown table, a row for each stage."""
    return [*_HEAD, *(_row(chain, file, text_tokens) for file in chain.files)]


def short_table(chain: Chain, *, text_tokens: int) -> list[str]:
    """A line for each stage, for the terminal."""
    head = ("#", "stage", "from", "sets: frames", "parameters", "largest", "TFLOPs", "modules")
    rows = [head, *(_short_row(chain, file, text_tokens) for file in chain.files)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    right = {head.index(name) for name in ("#", "from", "parameters", "TFLOPs")}
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def stage_lines(chain: Chain, *, text_tokens: int) -> Iterator[str]:
    """Each stage with its buckets, transition and provenance."""
    for file in chain.files:
        config, stage = file.config, file.stage
        yield f"{stage.number}. {stage.name}: {stage.note}"
        if stage.quality:
            yield f"   clips       {stage.quality}"
        transition = chain.transitions.get(stage.name)
        start = "a fresh network" if stage.init_from is None else f"{stage.init_from} ({stage.init_weights} weights)"
        yield f"   starts from {start}" + (
            "" if transition is None or stage.init_from is None else f": {transition.line()}"
        )
        for part in stage.parts:
            yield (
                f"   part {part.name}: admission {part.admission}, {part.lanes} lanes x {part.micro_per_step} micro-batches, "
                f"images per video {_or(part.images_per_video, 'as the data has it')}"
                + (f", {part.domain_column} weights {dict(part.domain_weights)}" if part.domain_weights else "")
            )
            for rule in part.rules:
                yield f"     rule on {rule.column}: {_limits(rule)}"
            for bucket in part.buckets:
                yield (
                    f"     {bucket!s:>12}  {part.batch_clips[str(bucket)]:>4} clips a lane, {bucket.video_tokens:>7,} tokens, "
                    f"{training_teraflops(config, bucket, text_tokens):>9,.1f} TFLOPs a clip"
                )
        paper, ours = _provenance(config, stage)
        yield f"   report      {', '.join(paper)}"
        yield f"   ours        {', '.join(ours)}"


def _short_row(chain: Chain, file: StageFile, text_tokens: int) -> tuple[str, ...]:
    stage, largest = file.stage, _largest(file.stage)
    before, _, name = (stage.init_from or "-").partition("_")
    return (
        str(stage.number),
        stage.name,
        before.removeprefix("stage").lstrip("0") if name else before,
        _data(stage),
        f"{chain.parameters.get(stage.name, 0):,}",
        str(largest),
        f"{training_teraflops(file.config, largest, text_tokens):,.1f}",
        _modules(stage) if stage.name in chain.transitions else "not accounted for",
    )


def _modules(stage: StageConfig, mark: str = "") -> str:
    """``new `projectors.vjepa2`; dropped `projectors.dinov2` ``."""
    changes = [
        f"{key} {' '.join(f'{mark}{name}{mark}' for name in getattr(stage, key))}"
        for key in ("new", "reset", "dropped")
        if getattr(stage, key)
    ]
    return "; ".join(changes) or ("all new" if stage.init_from is None else "all carried")


def _data(stage: StageConfig) -> str:
    """`360p: 33 65, 480p: 1; then 480p: 1 33 65`."""
    return "; then ".join(
        ", ".join(f"{name}: {' '.join(map(str, lengths))}" for name, lengths in part.frames.items())
        + (" (sft)" if part.admission == "sft" else "")
        for part in stage.parts
    )


def _row(chain: Chain, file: StageFile, text_tokens: int) -> str:
    config, stage = file.config, file.stage
    largest = _largest(stage)
    route = config.tread
    cells = [
        str(stage.number),
        stage.name,
        _data(stage),
        f"{stage.text_encoder} {config.model.text_width}",
        _teachers(config),
        f"{chain.parameters.get(stage.name, 0):,}",
        str(largest),
        f"{largest.video_tokens:,}",
        f"{training_teraflops(config, largest, text_tokens):,.1f}",
        "off" if route is None else f"{route.drop_ratio:g} in {route.start_block} to {route.end_block}",
        _modules(stage, mark="`"),
    ]
    return f"| {' | '.join(cells)} |"


def _largest(stage: StageConfig) -> Bucket:
    """The bucket with most tokens, of the 16:9 sizes if there are any."""
    buckets = [bucket for part in stage.parts for bucket in part.buckets]
    wide = [bucket for bucket in buckets if (bucket.height, bucket.width) in CLASSES.values()]
    return max(wide or buckets, key=lambda bucket: bucket.video_tokens)


def _teachers(config: TrainConfig) -> str:
    """`image: dinov2`, by kind rather than by branch; off without alignment."""
    if config.repa is None:
        return "off"
    by_branch = config.repa.teacher_by_branch or {}
    named = {branch.partition("_")[0]: name for branch, name in by_branch.items() if name is not None}
    return ", ".join(f"{kind}: {name}" for kind, name in sorted(named.items())) or "as the sets say"


def _provenance(config: TrainConfig, stage: StageConfig) -> tuple[list[str], list[str]]:
    """(the report's keys, ours): top-level keys, a section in both when it is mixed."""
    paper = [*stage.paper, *(f"(not {key})" for key in stage.ours)]
    values: dict[str, Any] = config.model_dump(mode="json")
    ours = []
    for key in values:
        below = [name for name in stage.paper if name == key or name.startswith(f"{key}.")]
        if key == "stage":
            ours.append("stage: the rest")
        elif key not in stage.paper:
            ours.append(f"{key}: the rest" if below else key)
    return paper, [*ours, *stage.ours]


def _limits(rule: AdmissionRule) -> str:
    """`one of dynamic, fast; without a value: drop`."""
    if rule.one_of is not None:
        return f"one of {', '.join(rule.one_of)}; without a value: {rule.missing}"
    limits = [
        f"{words} {value:g}"
        for words, value in (("at least", rule.at_least), ("at most", rule.at_most))
        if value is not None
    ]
    return f"{' and '.join(limits)}; without a value: {rule.missing}"


def _or(value: object, words: str) -> str:
    return words if value is None else f"{value:g}" if isinstance(value, float) else str(value)
