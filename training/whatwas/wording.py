"""What is said of clips, steps and uses in words: the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.whatwas.clip_uses import ClipUse
from training.whatwas.records import ClipRecord, StepRecord
from training.whatwas.recurring import Recurring
from training.whatwas.spikes import StepScore

__all__ = [
    "caption_words",
    "clip_facts",
    "excess_words",
    "facts_of_step",
    "hardest_words",
    "recurring_words",
    "use_cells",
    "where_words",
]

_HARDEST = 3


def where_words(clip: ClipRecord) -> str:
    """`64p/shard-000002.tar:17`: the set, the tar and the sample's place in it."""
    return f"{clip.set_name}/{clip.shard_name}:{clip.ordinal}"


def clip_facts(clip: ClipRecord) -> list[str]:
    """What is special about how the clip was trained, in few words."""
    draws, facts = clip.draws, []
    if clip.loss is not None:
        usual = "" if clip.usual_loss is None else f", {clip.usual_loss:.4g} is usual around its time"
        facts.append(f"loss {clip.loss:.4g}{usual}")
    if draws.first_frame_given:
        blur = "" if draws.blur_factor is None else f", blurred to {draws.blur_factor:.2f}"
        facts.append("first frame given" + (" with image tokens" if clip.image_tokens_given else "") + blur)
    if draws.kept_tokens < draws.video_tokens:
        facts.append(f"{draws.kept_tokens} of {draws.video_tokens} tokens kept")
    if clip.teacher is not None:
        facts.append(f"aligned to {clip.teacher}")
    if clip.planned is not None:
        kind = "a spare" if clip.planned.replacement == "spare" else "an earlier clip"
        facts.append(f"{kind} in place of {clip.planned.clip_id}: {clip.planned.reason}")
    return facts


def facts_of_step(record: StepRecord) -> list[str]:
    """Lines about the step as a whole."""
    line = record.metrics
    facts = []
    if line is not None:
        facts.append(
            f"loss {line['loss']:.6g}, flow loss {line['flow_loss']:.6g}, grad norm {line['grad_norm']:.4g}, lr {line['lr']:.4g}"
        )
        facts.append(
            "flow loss by bucket: " + ", ".join(f"{name} {loss:.6g}" for name, loss in line["loss_by_bucket"].items())
        )
        facts.append(record.digest)
    if record.replaced:
        facts.append(f"{record.replaced} of {len(record.clips)} clips stood in for damaged ones")
    facts += hardest_words(record)
    return [*facts, *record.notes]


def hardest_words(record: StepRecord) -> list[str]:
    """One line about the clips whose losses lie farthest above the usual ones; none where no losses are known."""
    above = [
        (clip.loss - clip.usual_loss, clip.clip_id)
        for clip in record.clips
        if clip.loss is not None and clip.usual_loss is not None and clip.loss > clip.usual_loss
    ]
    named = [f"{clip_id} by {excess:.4g}" for excess, clip_id in sorted(above, reverse=True)[:_HARDEST]]
    return [f"farthest above what is usual around their times: {', '.join(named)}"] if named else []


def recurring_words(one: Recurring, *, asked: int, trained: int) -> str:
    """One line."""
    steps = ", ".join(map(str, one.steps))
    line = f"{one.kind} {one.name} is in {len(one.steps)} of these {asked} steps ({steps})"
    if one.steps_in_run is not None:
        line += f"; in the run in {one.steps_in_run} of {trained} steps, so {one.expected:.2g} were to be expected"
    return line


def use_cells(use: ClipUse, line: Mapping[str, Any] | None) -> list[str]:
    """A row about one use: step, row, lane, bucket, the step's loss, the bucket's flow loss, the gradient's norm, how it came to be there."""
    numbers = ["", "", ""]
    if line is not None:
        of_bucket = line["loss_by_bucket"].get(use.bucket)
        numbers = [
            f"{line['loss']:.6g}",
            "" if of_bucket is None else f"{of_bucket:.6g}",
            f"{line['grad_norm']:.4g}",
        ]
    words = {
        "planned": "",
        "replaced": f"was replaced by {use.other}: {use.reason}",
        "stand_in": f"in place of {use.other}: {use.reason}",
    }[use.role]
    if line is None:
        words = "; ".join(filter(None, ["not trained yet", words]))
    return [str(use.step), str(use.micro), str(use.lane), use.bucket, *numbers, words]


def caption_words(clip: ClipRecord) -> str:
    """The text that was given, or what stands for it."""
    if clip.text == "dropped":
        return "(null text)"
    return "(not stored)" if clip.caption is None else clip.caption


def excess_words(spike: StepScore) -> str:
    """How far each bucket's flow loss lies above its median, the farthest first."""
    worst = sorted(spike.excess_by_bucket.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {excess:+.4g}" for name, excess in worst)
