"""The run's ledger laid over the plan: which clip stood in for which, and why.

A line that fits no place of the plan means that ledger and plan are not of one run: then nothing is told rather than something wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from schemas.errors import DataError
from training.loading.lane_batch import Substitution
from training.metrics import read_lines
from training.whatwas.uses import Place

__all__ = ["read_replaced", "replaced_at"]


_FIELDS = tuple(Substitution.__dataclass_fields__)


def read_replaced(run: Path, steps: set[int] | None = None) -> dict[int, list[Substitution]]:
    """The ledger's lines of some steps (None: all), by step.

    Raises:
        DataError: when a line lacks a field.
    """
    found: dict[int, list[Substitution]] = {}
    for path in sorted((run / "ledger").glob("lane-*.jsonl")):
        for number, line in enumerate(read_lines(path), start=1):
            missing = [name for name in _FIELDS if name not in line]
            if missing:
                raise DataError(
                    f"{path}: line {number} has no {missing[0]}; expected a line that the trainer wrote, see docs/training.md"
                )
            if steps is None or line["step"] in steps:
                found.setdefault(line["step"], []).append(Substitution(**{name: line[name] for name in _FIELDS}))
    return found


def replaced_at(places: Sequence[Place], lines: Iterable[Substitution], *, run: Path) -> Mapping[Place, Substitution]:
    """Place to the line that replaced its clip.

    Raises:
        DataError: when a line is of no place of the plan.
    """
    by_sample: dict[tuple[int, int, int, int], list[Place]] = {}
    for place in places:
        by_sample.setdefault((place.lane, place.micro, place.shard, place.ordinal), []).append(place)
    found = {}
    for line in lines:
        same = by_sample.get((line.lane, line.micro, line.shard, line.ordinal), [])
        if not same:
            raise DataError(
                f"{run}/ledger/lane-{line.lane:04d}.jsonl says that in step {line.step}, micro-batch {line.micro}, sample {line.ordinal} of shard "
                f"{line.shard} (clip {line.clip_id}) was replaced, where the plan has no such clip: the ledger is of another plan; "
                "give the plan of the run with --plan, or the ledger that the run wrote"
            )
        found[same.pop(0)] = line
    return found
