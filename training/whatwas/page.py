"""The answer as one self-contained HTML page: each step's facts and loss among its neighbours, and a card for every clip with its pictures.

No script, nothing fetched, pictures inside the page; everything from data is escaped. Price: some 10 kB a clip, so a page of thousands of clips is
tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from training.pages.markup import details, fact, facts, note, page, table
from training.pages.svg import HUES, Curve, Mark, curves
from training.whatwas.answer import Answer
from training.whatwas.records import ClipRecord, StepRecord
from training.whatwas.spikes import StepScore
from training.whatwas.thumbnails import Picture, Pictures
from training.whatwas.wording import (
    caption_words,
    clip_facts,
    excess_words,
    hardest_words,
    recurring_words,
    use_cells,
    where_words,
)

__all__ = ["render_page"]

_MOST_POINTS = 1500
"""Of a curve; of longer ones the largest of neighbours is drawn, so that no spike is lost."""
_NEIGHBOURS = 100
"""Steps to either side of a step's curve."""


def render_page(answer: Answer, pictures: Pictures) -> str:
    """The page of an answer."""
    parts = [note(text) for text in pictures.notes]
    if answer.clip_id is not None:
        parts += _clip_part(answer)
    if answer.spikes is not None:
        parts += _spikes_part(answer, answer.spikes)
    for record in answer.records:
        parts += _step_part(record, answer, pictures)
    return page(f"What was trained: {answer.title}", f"run {answer.run}", parts, dark=True, media=True)


def _spikes_part(answer: Answer, spikes: Sequence[StepScore]) -> list[str]:
    measure = answer.measure
    rows = [
        [
            str(spike.step),
            f"{spike.value:.6g}",
            f"{spike.expected:.6g}",
            f"{spike.score:.1f}",
            f"{answer.by_times[spike.step]:+.3g}" if spike.step in answer.by_times else "",
            excess_words(spike),
        ]
        for spike in spikes
    ]
    marks = [Mark(x=spike.step, title=f"step {spike.step}: {spike.score:.1f} deviations") for spike in spikes]
    series = {step: float(line[measure]) for step, line in answer.lines.items()}
    parts = [
        f"<h2>Steps whose {escape(measure)} stands out</h2>",
        _panel(series, measure, marks),
        table(
            ["step", measure, "expected", "deviations", "by its times", "flow loss of each bucket above its median"],
            rows,
            text=0,
        ),
        note(
            "Expected: the running medians of the step's buckets by its numbers of clips. Deviations: of the steps around it, "
            "by the median of their distances from it (1.4826 MAD). By its times: what the times that its clips drew make of the flow loss, from the "
            "running medians of each tenth of the time."
        ),
        "<h2>What they have in common</h2>",
    ]
    asked, trained = len(spikes), len(answer.lines)
    words = [recurring_words(one, asked=asked, trained=trained) for one in answer.recurring]
    return parts + [f"<p>{escape(line)}</p>" for line in words or ["no clip is in two of these steps"]]


def _clip_part(answer: Answer) -> list[str]:
    rows = [use_cells(use, answer.lines.get(use.step)) for use in answer.uses]
    marks = [Mark(x=use.step, title=f"step {use.step}") for use in answer.uses if use.was_there]
    series = {step: float(line["loss"]) for step, line in answer.lines.items()}
    head = ["step", "row", "lane", "bucket", "loss", "flow loss of the bucket", "grad norm", ""]
    return [f"<h2>Clip {escape(answer.clip_id or '')}</h2>", _panel(series, "loss", marks), table(head, rows, text=0)]


def _step_part(record: StepRecord, answer: Answer, pictures: Pictures) -> list[str]:
    parts = [f"<h2 id='step-{record.step}'>Step {record.step}</h2>", facts(_headline(record))]
    if record.metrics is not None:
        kind = {True: "good", False: "warn", None: "dim"}[record.digest_matches]
        parts.append(f"<p class='{kind}'>{escape(record.digest)}</p>")
    parts += [f"<p>{escape(text)}</p>" for text in hardest_words(record)]
    parts += [f"<p class='{'dim' if record.trained else 'warn'}'>{escape(text)}</p>" for text in record.notes]
    near = {step: float(line["loss"]) for step, line in answer.lines.items() if abs(step - record.step) <= _NEIGHBOURS}
    if record.metrics is not None:
        parts.append(_panel(near, "loss", [Mark(x=record.step, title=f"step {record.step}")]))
        by_bucket = record.metrics["loss_by_bucket"]
        rows = [[name, str(record.metrics["buckets"].get(name, "")), f"{loss:.6g}"] for name, loss in by_bucket.items()]
        parts.append(table(["bucket", "clips", "flow loss"], rows))
    cards = "".join(_card(clip, pictures.of(record.plan_hash, clip)) for clip in record.clips)
    return [*parts, f"<div class='clips'>{cards}</div>"]


def _headline(record: StepRecord) -> list[str]:
    line, found = record.metrics, []
    if line is not None:
        found += [fact(f"{line['loss']:.4f}", "loss"), fact(f"{line['flow_loss']:.4f}", "flow loss")]
        found += [fact(f"{line['grad_norm']:.3g}", "grad norm"), fact(f"{line['lr']:.3g}", "learning rate")]
    found.append(
        fact(str(len(record.clips)), "clips", f"{record.replaced} stood in for damaged ones" if record.replaced else "")
    )
    dropped = sum(clip.text == "dropped" for clip in record.clips)
    given = sum(clip.draws.first_frame_given for clip in record.clips)
    return [
        *found,
        fact(str(dropped), "without text"),
        fact(str(given), "with a first frame"),
        fact(record.plan_hash[:12], "plan"),
    ]


def _card(clip: ClipRecord, picture: Picture | None) -> str:
    """One clip: what it looks like, the text that was given, how it was trained, and where it lies."""
    pieces = []
    if picture is not None and picture.jpeg is not None:
        pieces.append(f"<img src='{picture.address}' alt='{escape(clip.clip_id)}'>")
    elif picture is not None:
        pieces.append(f"<p class='warn'>{escape(picture.problem or '')}</p>")
    dim = " class='dim'" if not clip.caption else ""
    pieces.append(f"<p{dim}><span class='kind {clip.text}'>{clip.text}</span>{escape(caption_words(clip))}</p>")
    special = " class='warn'" if clip.planned is not None else ""
    pieces += [f"<p{special}>{escape(text)}</p>" for text in clip_facts(clip)]
    pieces += [f"<p class='warn'>{escape(text)}</p>" for text in clip.notes]
    about = [f"time {clip.draws.sigma:.3f}", clip.bucket, clip.branch, clip.domain, clip.subject, clip.style]
    pieces.append(f"<p class='dim'>{escape(' · '.join(filter(None, about)))}</p>")
    place = f"lane {clip.lane}, row {clip.micro} · {where_words(clip)}"
    pieces.append(f"<p class='dim'><code>{escape(clip.clip_id)}</code><br>{escape(place)}</p>")
    pieces.append(details("more", _more(clip)))
    return f"<div class='clip{' other' if clip.planned is not None else ''}'>{''.join(pieces)}</div>"


def _more(clip: ClipRecord) -> str:
    lines = [f"{kind}: {text}" for kind, text in (clip.captions or {}).items()]
    end = "" if clip.end_us is None else f" to {clip.end_us / 1e6:.3f}"
    lines += [
        f"source {clip.source}",
        f"from {clip.start_us / 1e6:.3f}{end} s, stored with {clip.stored_frames} frames",
    ]
    if clip.text_tokens is not None:
        lines.append(f"{clip.text_tokens} text tokens, {clip.draws.video_tokens} video tokens")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _panel(series: Mapping[int, float], name: str, marks: Sequence[Mark]) -> str:
    points = sorted((float(step), value) for step, value in series.items())
    size = -(-len(points) // _MOST_POINTS)
    if size > 1:
        points = [max(points[first : first + size], key=lambda one: one[1]) for first in range(0, len(points), size)]
    line = Curve(name=name, colour=HUES[1], points=tuple(points))
    return f"<div class='wide'>{curves([line], x_name='step', y_name=name, height=220, marks=marks)}</div>"
