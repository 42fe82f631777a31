"""In which steps of a run some clips were: as planned, replaced because they were damaged, or standing in for another one.

Plans name samples, so a clip that several sets hold is looked for under each of them. Price: every lane's table of every plan of the run is gone
through once, whatever the number of clips.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.loading.lane_batch import Substitution
from training.whatwas.replaced import read_replaced
from training.whatwas.run_folder import RunFolder
from training.whatwas.uses import LaneUses, Place, lane_uses

__all__ = ["ClipUse", "Role", "uses_of_clips"]

Role = Literal["planned", "replaced", "stand_in"]
"""planned: as the plan says. replaced: planned, but another clip took its place. stand_in: in the place of another clip."""


@dataclass(frozen=True, kw_only=True)
class ClipUse:
    """One clip in one step."""

    clip_id: str
    step: int
    micro: int
    lane: int
    bucket: str
    role: Role
    other: str | None
    """The clip that took its place, or whose place it took."""
    reason: str | None
    """Why the planned clip could not be used."""

    @property
    def was_there(self) -> bool:
        """Whether the step was trained on it, if it was trained."""
        return self.role != "replaced"


def uses_of_clips(run: RunFolder, clip_ids: Collection[str]) -> dict[str, list[ClipUse]]:
    """Clip id to its uses over all steps of the run's plans, steps rising; trained or not."""
    found: dict[str, list[ClipUse]] = {clip: [] for clip in clip_ids}
    ledger = read_replaced(run.run)
    for steps, plan in run.stretches():
        keys = {LaneUses.key(*place): clip for place, clip in plan.sets.places_of_clips(found).items()}
        for uses in lane_uses(plan.folder, plan.meta):
            mask_N = np.isin(uses.key_N, list(keys)) & (uses.step_N >= steps.start) & (uses.step_N < steps.stop)
            for place in uses.places(mask_N):
                clip = keys[LaneUses.key(place.shard, place.ordinal)]
                found[clip].append(_planned(clip, place, ledger.get(place.step, [])))
    for lines in ledger.values():
        for line in lines:
            if line.replaced_by in found:
                found[line.replaced_by].append(_stand_in(line))
    return {clip: sorted(uses, key=lambda use: (use.step, use.micro, use.lane)) for clip, uses in found.items()}


def _planned(clip_id: str, place: Place, lines: Sequence[Substitution]) -> ClipUse:
    """A place that the plan gives to the clip, and what the ledger says of it."""
    where = (place.micro, place.lane, place.shard, place.ordinal)
    line = next((line for line in lines if (line.micro, line.lane, line.shard, line.ordinal) == where), None)
    return ClipUse(
        clip_id=clip_id,
        step=place.step,
        micro=place.micro,
        lane=place.lane,
        bucket=str(place.bucket),
        role="planned" if line is None else "replaced",
        other=None if line is None else line.replaced_by,
        reason=None if line is None else line.reason,
    )


def _stand_in(line: Substitution) -> ClipUse:
    return ClipUse(
        clip_id=line.replaced_by,
        step=line.step,
        micro=line.micro,
        lane=line.lane,
        bucket=line.bucket,
        role="stand_in",
        other=line.clip_id,
        reason=line.reason,
    )
