"""The folders under `<run>/checkpoints`: what is complete, and how one goes away without ever being found half there.

    step-00000004/              complete: it was renamed to this when all in it was on disk
    .tmp-step-00000008/         being written, or left by a kill
    .tmp-old-step-00000002/     being removed, or left by a kill
    abandoned-step-00000012/    of a continuation that was given up; nothing finds it

Only rank 0 makes, renames or removes folders. Whatever moment a kill comes at, what is found is whole. Price: a kill leaves a folder behind, which
the next start of the run removes (`remove_leftovers`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from schemas.errors import UsageError
from schemas.files import TEMPORARY_PREFIX, flush_to_disk

__all__ = [
    "checkpoint_folder",
    "checkpoint_steps",
    "find_checkpoint",
    "publish",
    "remove_leftovers",
    "remove_old_checkpoints",
    "set_aside_later_checkpoints",
    "temporary_folder",
]

_PREFIX = "step-"
_OLD_PREFIX = f"{TEMPORARY_PREFIX}old-"
_ABANDONED_PREFIX = "abandoned-"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of that step is, or would be."""
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def temporary_folder(run: Path, step: int) -> Path:
    """Where it is while it is written."""
    folder = checkpoint_folder(run, step)
    return folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    names = [path.name.removeprefix(_PREFIX) for path in folder.iterdir() if path.name.startswith(_PREFIX)]
    return sorted(int(name) for name in names if name.isdigit())


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The folder of one checkpoint; of the latest with None.

    Raises:
        UsageError: if there is none, with the steps that there are.
    """
    steps = checkpoint_steps(run)
    if not steps:
        raise UsageError(f"{run} holds no checkpoint; expected a folder that `reelyard-train run --output` wrote to")
    if step is not None and step not in steps:
        raise UsageError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return checkpoint_folder(run, steps[-1] if step is None else step)


def publish(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; a checkpoint of that step from an earlier attempt makes way first."""
    if target.exists():
        _remove(target)
    temporary.rename(target)
    flush_to_disk(target.parent)


def remove_old_checkpoints(run: Path, keep: int, keep_every_steps: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints, oldest first; never one whose step is a multiple of `keep_every_steps`."""
    for step in checkpoint_steps(run)[:-keep]:
        if keep_every_steps is None or step % keep_every_steps:
            _remove(checkpoint_folder(run, step))


def set_aside_later_checkpoints(run: Path, step: int) -> list[int]:
    """Rename the checkpoints of steps after `step` to `abandoned-step-...`, which nothing finds; return their steps.

    A run that continues from `step` writes its own from there on. Left in place the old ones would be taken for the newest: kept instead of
    those now written, and continued from the next time. The newest goes first, so that a kill leaves a run that merely ends earlier.
    """
    later = [found for found in checkpoint_steps(run) if found > step]
    for found in reversed(later):
        folder = checkpoint_folder(run, found)
        aside = folder.with_name(f"{_ABANDONED_PREFIX}{folder.name}")
        if aside.exists():
            _remove(aside)
        folder.rename(aside)
    return later


def remove_leftovers(run: Path) -> None:
    """Remove what a kill left of a checkpoint that was being written or removed; no other run may be writing there."""
    for prefix in (f"{TEMPORARY_PREFIX}{_PREFIX}", _OLD_PREFIX):
        for folder in (run / "checkpoints").glob(f"{prefix}*"):
            shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    """Take a checkpoint away: renamed first, so that no half-removed one is ever found."""
    doomed = folder.with_name(f"{_OLD_PREFIX}{folder.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)
