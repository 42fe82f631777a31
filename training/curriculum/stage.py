"""What a training stage says of itself: where its weights come from, what becomes of each module, which data it trains on, and who says so.

A stage is one file and complete: nothing is inherited from the stage before. Modules are named by patterns over the names of parameters, as
checkpoints have them (`dit.single_blocks.3.cross.query.weight`): parts between dots, `*` stands for any one part, and a pattern means
everything below it. `new`, `reset` and `dropped` must together say exactly how the network differs from the one that the weights come from; see
`training.curriculum.transition`. Price: a module that is renamed in the code must be renamed in the files.

A stage has parts when its data changes without its network: each part is a plan and a run of its own, starting from the one before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.buckets import FRAME_COUNTS, Bucket
from schemas.config import StrictConfig
from schemas.plan import AdmissionRule

__all__ = ["FROM_WEIGHTS", "StageConfig", "StagePart", "any_covers", "covers"]

FROM_WEIGHTS = "weights"
"""`init_from` of a stage that starts from a weights folder (`reelyard-train import`) rather than from another stage."""


def _checked_pattern(pattern: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_*?]+(\.[A-Za-z0-9_*?]+)*", pattern) is None:
        raise ValueError(
            "give a pattern of module names: letters, digits, _, * and ?, one dot between parts, for example dit.single_blocks.*.cross"
        )
    return pattern


Pattern = Annotated[str, AfterValidator(_checked_pattern)]


class StagePart(StrictConfig):
    """The data of a stage, or of one part of it: one plan."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    admission: Literal["144p", "360p", "480p", "720p", "sft"]
    """Only clips admitted at this level."""
    rules: tuple[AdmissionRule, ...] = ()
    """Further rules of the planner over the samples' columns, or over those of a table that `reelyard-plan build --scores` gives."""
    frames: dict[str, tuple[int, ...]] = Field(min_length=1)
    """Set to the lengths at which its clips are used (`144p: [1, 33]`): each clip at the longest of them that it has; a video never as an image."""
    batch_clips: dict[str, int] = Field(min_length=1)
    """Bucket to the clips of a micro-batch on one lane: `33x144x256: 32`."""
    lanes: int = Field(ge=1)
    """V of the plan; any world size that divides it can run it."""
    micro_per_step: int = Field(ge=1)
    """K of the plan: micro-batches per lane of an optimizer step."""
    epochs: int | None = Field(default=1, ge=1)
    """Times that the data is gone through; null: as many as `max_steps` needs."""
    max_steps: int | None = Field(default=None, ge=1)
    images_per_video: float | None = Field(default=None, gt=0.0)
    """Rows of images for each row of videos: 0.5 is I-V-V. Null: as the data has it."""
    domain_column: Literal["domain", "subject", "style", "branch"] = "domain"
    domain_weights: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] = Field(default_factory=dict)
    """Domain to the share of epochs in which its clips are used; domains that are not named have 1."""

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Of `batch_clips`, sorted."""
        return tuple(sorted(Bucket.parse(text) for text in self.batch_clips))

    @model_validator(mode="after")
    def _check(self) -> Self:
        lengths = {count for counts in self.frames.values() for count in counts}
        for name, counts in self.frames.items():
            if not counts or set(counts) - set(FRAME_COUNTS):
                raise ValueError(f"frames.{name} is {list(counts)}, expected one or more of {list(FRAME_COUNTS)}")
        for text, clips in self.batch_clips.items():
            frames = Bucket.parse(text).frames
            if frames not in lengths:
                raise ValueError(f"batch_clips.{text}: no set is used at {frames} frames; add {frames} to frames")
            if clips < 1:
                raise ValueError(f"batch_clips.{text} is {clips}, must be at least 1")
        without = lengths - {bucket.frames for bucket in self.buckets}
        if without:
            raise ValueError(f"batch_clips has no bucket of {min(without)} frames, which frames names; add its sizes")
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs is null and max_steps is null; give at least one, or the plan has no end")
        return self


class StageConfig(StrictConfig):
    """One stage of a curriculum."""

    number: int = Field(ge=1)
    """Place in the order of the stages."""
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """The file's name without its ending; what other stages call it by."""
    note: str = ""
    """What the stage is for."""
    quality: str = ""
    """What its clips must be, in words; the levels themselves are curation's (`decide.levels`)."""
    init_from: str | None
    """Name of the stage whose weights it starts from; `weights` for a weights folder; null for a fresh network."""
    init_weights: Literal["ema", "trained"] = "ema"
    """Which of that stage's weights. Averages exist of the DiT alone: alignment projectors are always the trained ones."""
    new: tuple[Pattern, ...] = ()
    """Modules that the weights do not have: they start as an untrained network's do."""
    reset: tuple[Pattern, ...] = ()
    """Modules that the weights have and that start again as an untrained network's do, with other shapes or the same."""
    dropped: tuple[Pattern, ...] = ()
    """Modules that the weights have and the network has not."""
    train_only: tuple[Pattern, ...] | None = Field(default=None, min_length=1)
    """Modules that are trained, the others frozen; null trains all."""
    text_encoder: str
    """Of the sets, as `set.json` names it."""
    parts: tuple[StagePart, ...] = Field(min_length=1)
    """One run each, in this order."""
    part: str | None = None
    """The part that this run trains, by name; null: the first. The first starts from `init_from`, another one from the part before it."""
    paper: tuple[str, ...] = ()
    """Keys whose values the Motif-Video report or its released files give; every other value in the file is ours."""
    ours: tuple[str, ...] = ()
    """Keys below those of `paper` that are ours all the same."""

    @property
    def part_index(self) -> int:
        """Place of `part` in `parts`."""
        names = [part.name for part in self.parts]
        return 0 if self.part is None else names.index(self.part)

    @property
    def chosen_part(self) -> StagePart:
        """The part that this run trains."""
        return self.parts[self.part_index]

    @property
    def starts_from(self) -> str | None:
        """What the run's weights come from: `init_from`, or for a later part the stage itself."""
        return self.init_from if self.part_index == 0 else self.name

    @property
    def source_part(self) -> str | None:
        """For a later part, the name of the part before it; null for the first."""
        return None if self.part_index == 0 else self.parts[self.part_index - 1].name

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names):
            raise ValueError(f"parts are named {names}; give each a name of its own")
        if self.part is not None and self.part not in names:
            raise ValueError(f"part is {self.part!r}, expected one of {names} (stage.parts), or null for the first")
        if self.init_from == self.name:
            raise ValueError(f"init_from is {self.name!r}, the stage itself; name an earlier stage, or null")
        declared = {key: getattr(self, key) for key in ("new", "reset", "dropped")}
        if self.init_from is None and any(declared.values()):
            key = next(key for key, patterns in declared.items() if patterns)
            raise ValueError(
                f"{key} is {list(declared[key])}, but init_from is null: a fresh network has no modules to tell apart; "
                f"set init_from, or {key}=[]"
            )
        for pattern in sorted(set().union(*declared.values())):
            twice = [key for key, patterns in declared.items() if pattern in patterns]
            if len(twice) > 1:
                raise ValueError(f"{pattern!r} is in {' and in '.join(twice)}; leave it in one of them")
        return self


def covers(pattern: str, name: str) -> bool:
    """Whether a parameter lies in the module that a pattern names: `covers("dit.single_blocks.*.cross", "dit.single_blocks.3.cross.out.bias")`."""
    wanted = pattern.split(".")
    found = name.split(".")[: len(wanted)]
    return len(found) == len(wanted) and all(map(fnmatchcase, found, wanted))


def any_covers(patterns: Sequence[str], name: str) -> bool:
    """Whether one of the patterns covers the name."""
    return any(covers(pattern, name) for pattern in patterns)
