"""What a step left behind whose loss or gradient was not finite: the dump of one that ended its run, the line of one that was left out.

    <run>/dumps/step-00000012/dump.json    every clip of the step with its loss
    <run>/skipped.jsonl                    a line for each such step that the run went on without

Values that JSON does not know are texts in them ("nan", "inf"). Price: a dump that was copied in parts is not told apart from none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schemas.errors import DataError
from training.metrics import read_lines
from training.whatwas.records import ClipRecord

__all__ = ["Dump", "read_dump", "skipped_words", "with_dumped_losses"]


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A step's dump, as far as it is told."""

    folder: str
    kind: str
    """loss or gradient."""
    value: float | str
    clips: tuple[tuple[str, float | str], ...]
    """Clip id and loss, by micro-batch, then lane, then place."""
    broken_parameters: tuple[str, ...]
    """Whose gradients are not finite."""

    @property
    def words(self) -> str:
        """What happened, and how to look closer."""
        broken = (
            f"; gradients of {len(self.broken_parameters)} parameters are not finite" if self.broken_parameters else ""
        )
        what = "loss" if self.kind == "loss" else "gradient norm"
        return f"the {what} was {self.value}{broken}; look closer with reelyard-train dump {self.folder}"


def read_dump(run: Path, step: int) -> Dump | None:
    """The step's dump; None when there is none.

    Raises:
        DataError: when it is not what a run writes.
    """
    path = run / "dumps" / f"step-{step:08d}" / "dump.json"
    if not path.is_file():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Dump(
            folder=str(path.parent),
            kind=value["kind"],
            value=value["value"],
            clips=tuple((clip["clip_id"], clip["loss"]) for clip in value["clips"]),
            broken_parameters=tuple(one["name"] for one in value["gradients"]["parameters"] if one["nonfinite"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no dump of a step ({type(error).__name__}: {error}); a dump is written whole: copy it again, or move it away"
        ) from error


def skipped_words(run: Path, step: int) -> str | None:
    """Why a step was left out; None when it was not."""
    lines = [line for line in read_lines(run / "skipped.jsonl") if line["step"] == step]
    if not lines:
        return None
    clips = [clip for line in lines for clip in line["clips"]]
    named = f"; not finite: {'; '.join(clips)}" if clips else ""
    return f"the run went on without this step: its {lines[0]['kind']} was {lines[0]['value']}{named}"


def with_dumped_losses(clips: list[ClipRecord], dump: Dump) -> list[ClipRecord]:
    """The clips with the losses of a dump; as they were when the dump has other clips.

    A loss that is not finite becomes a note on its clip.
    """
    if [clip.clip_id for clip in clips] != [name for name, _ in dump.clips]:
        return clips
    return [
        replace(clip, notes=(*clip.notes, f"its loss was {loss}"))
        if isinstance(loss, str)
        else replace(clip, loss=float(loss))
        for clip, (_, loss) in zip(clips, dump.clips, strict=True)
    ]
