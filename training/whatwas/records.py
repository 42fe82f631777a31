"""What is told of a clip and of a step: plain values, which the terminal, the JSON file and the page all show.

`ClipRecord` is the clip that was trained; what the plan had in its place, where that was another one, is in `planned`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from training.draws import ClipDraws

__all__ = ["ClipRecord", "PlannedOther", "StepRecord", "TextKind", "as_json"]

TextKind = Literal["long", "short", "first", "dropped"]


@dataclass(frozen=True, kw_only=True)
class PlannedOther:
    """The clip that the plan names, where another one was trained."""

    clip_id: str
    shard: int
    ordinal: int
    reason: str
    replacement: str
    """What kind of clip stood in: spare or earlier."""


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One clip of one step."""

    step: int
    micro: int
    lane: int
    index: int
    """Within the micro-batch."""
    bucket: str
    clip_id: str
    set_name: str
    shard_name: str
    shard: int
    """Plan-wide."""
    ordinal: int
    stored_frames: int
    """Of the sample; the bucket may use fewer."""
    branch: str
    domain: str
    subject: str
    style: str
    source: str
    """Content hash."""
    start_us: int
    end_us: int | None
    """Of the clip in its source; None where the sample does not say."""
    text: TextKind
    """The text that was given; dropped: the null text."""
    text_tokens: int | None
    """Of that caption; None for the null text."""
    captions: dict[str, str] | None
    """long, short and first, in words; None where the sample does not hold them."""
    draws: ClipDraws
    image_tokens_given: bool
    teacher: str | None
    """What the clip was aligned to; None: to nothing."""
    planned: PlannedOther | None = None
    loss: float | None = None
    """Flow loss of this clip in this step with the weights of a checkpoint, where that was asked for."""
    usual_loss: float | None = None
    """Median flow loss, in the steps around, of clips in the same tenth of the time; None where it is not known."""
    notes: tuple[str, ...] = ()
    """What could not be told, and why."""

    @property
    def caption(self) -> str | None:
        """The words that were given; empty for the null text, None where they are not known."""
        if self.text == "dropped":
            return ""
        return None if self.captions is None else self.captions.get(self.text)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step."""

    step: int
    trained: bool
    """Whether the run says that it took this step; else it is told as planned."""
    plan_hash: str
    clips: tuple[ClipRecord, ...]
    metrics: dict[str, Any] | None
    """The step's line of metrics.jsonl."""
    digest: str
    """Whether these are the clips that were trained: `matches`, `differs`, or why it cannot be said."""
    digest_matches: bool | None
    dump: str | None = None
    """Folder of what a step left behind that ended the run with a value that was not finite."""
    notes: tuple[str, ...] = field(default=())

    @property
    def replaced(self) -> int:
        """Clips that stood in for others."""
        return sum(clip.planned is not None for clip in self.clips)


def as_json(record: StepRecord) -> dict[str, Any]:
    """The record for a JSON file."""
    return dataclasses.asdict(record)
