"""Steps, spikes and clips on the terminal: tables by rich, a few lines for each clip; nothing is cut where the output is no terminal.

Captions and names come from data: characters that steer a terminal are shown as a box, and nothing is read as markup. Price: on a terminal long
captions are cut; the JSON file and the page have them whole.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
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
    use_cells,
    where_words,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["clean", "print_answer"]

_COLUMNS_ELSEWHERE = 4000
"""Where the output is no terminal: a file or another program."""
_LONGEST_CAPTION = 240
"""Characters, on a terminal."""
_MOST_RECURRING = 12


def clean(text: str) -> str:
    """Text from data for a terminal: what is not printable becomes a box."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def print_answer(answer: Answer) -> None:
    """All of an answer, on standard output."""
    console = _console()
    if answer.clip_id is not None:
        _print_clip(answer.clip_id, answer.uses, answer.lines, console)
    if answer.spikes is not None:
        _print_spikes(answer.spikes, answer.by_times, len(answer.lines), console)
        _print_recurring(answer.recurring, len(answer.spikes), len(answer.lines), console)
    for record in answer.records:
        _print_step(record, console)
    if isinstance(console.file, io.StringIO):
        print("\n".join(line.rstrip() for line in console.file.getvalue().splitlines()))


def _print_step(record: StepRecord, console: Console) -> None:
    """A step's facts and its clips, micro-batch by micro-batch."""
    console.print(_text(f"step {record.step}: {len(record.clips)} clips, plan {record.plan_hash[:12]}", style="bold"))
    for fact in facts_of_step(record):
        console.print(_text(f"  {fact}"))
    table = _table(("row", "lane", "bucket", "clip", "time", "text"), left=("bucket", "clip", "text"))
    table.add_column("where it lies; its caption; what was special", overflow="fold")
    for clip in record.clips:
        cells = [str(clip.micro), str(clip.lane), clip.bucket, clip.clip_id, f"{clip.draws.sigma:.3f}", clip.text]
        style = "yellow" if clip.planned is not None or clip.notes else None
        table.add_row(*map(_text, cells), _about(clip, console.is_terminal), style=style)
    console.print(table)


def _about(clip: ClipRecord, cut: bool) -> Text:
    """Where the clip lies, the text that was given, then what was special, a line each."""
    caption = caption_words(clip)
    if cut and len(caption) > _LONGEST_CAPTION:
        caption = caption[: _LONGEST_CAPTION - 3] + "..."
    where = ", ".join(filter(None, [where_words(clip), clip.branch, clip.domain]))
    lines = [where, caption, "; ".join([*clip_facts(clip), *clip.notes])]
    return _text("\n").join(_text(line) for line in lines if line)


def _print_spikes(spikes: Sequence[StepScore], by_times: Mapping[int, float], trained: int, console: Console) -> None:
    """The steps that stand out, highest first."""
    if not spikes:
        console.print(_text(f"no step of {trained} lies above what its neighbours make of it"))
        return
    measure = spikes[0].measure
    head = f"{len(spikes)} steps of {trained} whose {measure} stands out most against {WINDOW} steps to either side"
    console.print(_text(head, style="bold"))
    table = _table(("step", measure, "expected", "deviations", *(["by its times"] if by_times else [])))
    table.add_column("flow loss above its bucket's median", overflow="fold")
    for spike in spikes:
        numbers = [str(spike.step), f"{spike.value:.6g}", f"{spike.expected:.6g}", f"{spike.score:.1f}"]
        numbers += [f"{by_times[spike.step]:+.3g}"] if spike.step in by_times else [""] if by_times else []
        table.add_row(*numbers, _text(excess_words(spike)))
    console.print(table)


def _print_recurring(found: Sequence[Recurring], asked: int, trained: int, console: Console) -> None:
    """What several of the steps have in common."""
    if not found:
        console.print(_text(f"no clip and no source of several clips is in two of these {asked} steps"))
    for one in found[:_MOST_RECURRING]:
        console.print(_text(recurring_words(one, asked=asked, trained=trained)))
    if len(found) > _MOST_RECURRING:
        console.print(_text(f"and {len(found) - _MOST_RECURRING} more (--json has all)"))


def _print_clip(
    clip_id: str, uses: Sequence[ClipUse], lines: Mapping[int, Mapping[str, Any]], console: Console
) -> None:
    """The steps that a clip was in, with each step's loss."""
    trained = len({use.step for use in uses if use.was_there and use.step in lines})
    planned = len({use.step for use in uses if use.role != "stand_in"})
    console.print(_text(f"clip {clip_id}: trained in {trained} steps, planned in {planned}", style="bold"))
    names = ("step", "row", "lane", "bucket", "loss", "flow loss of the bucket", "grad norm")
    table = _table(names, left=("bucket",))
    table.add_column("", overflow="fold")
    for use in uses:
        table.add_row(*map(_text, use_cells(use, lines.get(use.step))))
    console.print(table)


def _text(text: str, style: str = "") -> Text:
    """Never read as markup; line breaks that are ours are joined in afterwards."""
    from rich.text import Text

    return Text(text if text == "\n" else clean(text), style=style)


def _table(names: Sequence[str], left: Collection[str] = ()) -> Table:
    """A table without lines, numbers to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, emoji=False, width=_COLUMNS_ELSEWHERE, file=io.StringIO())
