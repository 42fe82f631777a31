"""Steps, spikes and clips on the terminal: tables by rich, one line a clip, cut to the terminal's width and whole where the output is no terminal.

Captions and names come from data: characters that steer a terminal are shown as a box, and nothing is read as markup. Price: on a narrow terminal
captions are cut short; the JSON file and the page have them whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from training.whatwas.answer import Answer
from training.whatwas.clip_uses import ClipUse
from training.whatwas.records import ClipRecord, StepRecord
from training.whatwas.recurring import Recurring
from training.whatwas.spikes import WINDOW, StepScore
from training.whatwas.wording import (
    caption_words,
    clip_facts,
    excess_words,
    facts_of_step,
    recurring_words,
    use_words,
    where_words,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["clean", "print_answer"]

_WIDE = 220
"""Columns where the output is no terminal."""


def clean(text: str) -> str:
    """Text from data for a terminal: what is not printable becomes a box."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def print_answer(answer: Answer, console: Console | None = None) -> None:
    """All of an answer, on standard output."""
    console = console or _console()
    if answer.clip_id is not None:
        _print_clip(answer.clip_id, answer.uses, answer.lines, console)
    if answer.spikes is not None:
        _print_spikes(answer.spikes, len(answer.lines), console)
        _print_recurring(answer.recurring, len(answer.spikes), len(answer.lines), console)
    for record in answer.records:
        _print_step(record, console)


def _print_step(record: StepRecord, console: Console) -> None:
    """A step's facts and its clips, micro-batch by micro-batch."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(f"step {record.step}: {len(record.clips)} clips, plan {record.plan_hash[:12]}", style="bold"))
    for fact in facts_of_step(record):
        console.print(Text(f"  {clean(fact)}"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("row", "lane", "bucket", "clip", "where", "branch", "domain", "time", "text"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("row", "lane", "time") else "left")
    table.add_column("caption, and what was special", overflow="ellipsis", no_wrap=True, ratio=1)
    for clip in record.clips:
        cells = [
            str(clip.micro),
            str(clip.lane),
            clip.bucket,
            clip.clip_id,
            where_words(clip),
            clip.branch,
            clip.domain,
        ]
        cells += [f"{clip.draws.sigma:.3f}", clip.text, _words(clip)]
        table.add_row(*(Text(clean(cell)) for cell in cells), style="yellow" if clip.planned is not None else None)
    console.print(table)


def _print_spikes(spikes: Sequence[StepScore], trained: int, console: Console) -> None:
    """The steps that stand out, highest first."""
    from rich.table import Table
    from rich.text import Text

    if not spikes:
        console.print(Text(f"no step of {trained} lies above what its neighbours make of it"))
        return
    measure = spikes[0].measure
    console.print(
        Text(
            f"{len(spikes)} steps of {trained} whose {measure} stands out most against {WINDOW} steps to either side",
            style="bold",
        )
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("step", measure, "expected", "deviations"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("flow loss above its bucket's median", no_wrap=True, overflow="ellipsis", ratio=1)
    for spike in spikes:
        numbers = (str(spike.step), f"{spike.value:.6g}", f"{spike.expected:.6g}", f"{spike.score:.1f}")
        table.add_row(*numbers, Text(excess_words(spike)))
    console.print(table)


def _print_recurring(found: Sequence[Recurring], asked: int, trained: int, console: Console) -> None:
    """What several of the steps have in common."""
    from rich.text import Text

    if not found:
        console.print(Text(f"no clip and no source of several clips is in two of these {asked} steps"))
    for one in found:
        console.print(Text(recurring_words(one, asked=asked, trained=trained)))


def _print_clip(
    clip_id: str, uses: Sequence[ClipUse], lines: Mapping[int, Mapping[str, Any]], console: Console
) -> None:
    """The steps that a clip was in, with each step's loss."""
    from rich.table import Table
    from rich.text import Text

    trained = [use for use in uses if use.was_there and use.step in lines]
    console.print(Text(f"clip {clean(clip_id)}: {len(trained)} uses trained, {len(uses)} told", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("step", "row", "lane", "bucket", "loss", "flow loss of the bucket", "grad norm"):
        table.add_column(name, justify="left" if name == "bucket" else "right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for use in uses:
        line = lines.get(use.step)
        numbers = ["", "", ""]
        if line is not None:
            of_bucket = line["loss_by_bucket"].get(use.bucket)
            numbers = [
                f"{line['loss']:.6g}",
                "" if of_bucket is None else f"{of_bucket:.6g}",
                f"{line['grad_norm']:.4g}",
            ]
        cells = [str(use.step), str(use.micro), str(use.lane), use.bucket, *numbers, use_words(use, line is not None)]
        table.add_row(*(Text(clean(cell)) for cell in cells))
    console.print(table)


def _words(clip: ClipRecord) -> str:
    """The caption that was given, then what was special."""
    return " | ".join([caption_words(clip), *clip_facts(clip), *clip.notes])


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_WIDE)
