"""What is different when a run goes on from a checkpoint: everything is said, and what changes the maths is refused unless it was named.

Four kinds. `free`: how long and how it runs, where plan and sets lie. `maths`: what is computed; the plan's hash is such a key, and so is the
precision that `auto` came to on the device. `bits`: the environment, on which the last bits depend. `code`: another version or commit of this
package, of which nobody knows what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from schemas.command import say
from schemas.errors import UsageError
from training.checkpoints.checkpoint import CheckpointRecord
from training.config import TrainConfig, config_differences, is_free
from training.loading.set_folders import SetPlace, absolute_place

__all__ = ["Difference", "environment_differences", "refuse_unnamed", "run_differences", "say_differences"]

Kind = Literal["free", "maths", "bits", "code"]

_MEANING: dict[Kind, str] = {
    "free": "free to change",
    "maths": "changes what is computed; named with --allow-change",
    "bits": "losses will agree closely, not to the last bit",
    "code": "other code may compute something else",
}
_CODE = ("reelyard", "commit")
_PRECISION = "precision"
"""In the configuration what was asked for, in the environment what came of it on the device. The second is compared."""
_SHORT = 80


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not as it was when the checkpoint was written."""

    key: str
    """Dotted key of the configuration, `plan`, or a fact of the environment."""
    saved: Any
    wanted: Any
    kind: Kind

    def words(self) -> str:
        """`optimizer.lr: was 0.001, is 0.0005`."""
        return f"{self.key}: was {_short(self.saved)}, is {_short(self.wanted)}"


def run_differences(
    record: CheckpointRecord,
    config: TrainConfig,
    *,
    plan_hash: str,
    plan: Path,
    samples: Sequence[SetPlace],
    precision: torch.dtype,
) -> list[Difference]:
    """Of plan, configuration and places; `precision` is what the run computes in."""
    found = []
    if record.plan_hash != plan_hash:
        saved, wanted = (f"{text[:12]}..." for text in (record.plan_hash, plan_hash))
        found.append(Difference(key="plan", saved=saved, wanted=f"{wanted} ({plan})", kind="maths"))
    computed, computes = record.environment.get(_PRECISION), str(precision).removeprefix("torch.")
    for key, (saved, wanted) in config_differences(record.config, config.model_dump(mode="json")).items():
        if key != _PRECISION or computed is None:
            found.append(Difference(key=key, saved=saved, wanted=wanted, kind="free" if is_free(key) else "maths"))
    if computed not in (None, computes):
        found.append(Difference(key=_PRECISION, saved=computed, wanted=computes, kind="maths"))
    places = (
        ("plan folder", record.plan, str(plan.resolve())),
        ("sample sets", list(record.samples), [absolute_place(place) for place in samples]),
    )
    for key, before, now in places:
        if before and before != now:
            found.append(Difference(key=key, saved=before, wanted=now, kind="free"))
    return found


def environment_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """One for each fact on which bit-exact continuation depends and that is no longer the same; precision is one of `run_differences`."""
    return [
        Difference(key=key, saved=saved.get(key), wanted=now.get(key), kind="code" if key in _CODE else "bits")
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key) and key != _PRECISION
    ]


def refuse_unnamed(differences: Sequence[Difference], allowed: Sequence[str], checkpoint: Path) -> None:
    """UsageError if a difference changes the maths and neither its key nor a section that it is in was named."""
    refused = [found for found in differences if found.kind == "maths" and not _is_named(found.key, allowed)]
    if refused:
        listed = "\n  ".join(found.words() for found in refused)
        raise UsageError(
            f"{checkpoint} was written under other settings, continuing would train something else:\n  {listed}\n"
            "use the settings of the checkpoint, name what may change with --allow-change KEY, or give another --output"
        )


def say_differences(differences: Sequence[Difference], checkpoint: Path) -> None:
    """A line for each; nothing if all is as it was."""
    if differences:
        say(f"continuing from {checkpoint}, which was written under other settings:")
    for found in differences:
        inexact = found.kind in ("bits", "code")
        say(f"  {'continuing is not exact: ' if inexact else ''}{found.words()}: {_MEANING[found.kind]}")


def _is_named(key: str, allowed: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _short(value: Any) -> str:
    """As Python writes it; a long one loses its middle."""
    text = value if isinstance(value, str) and "..." in value else repr(value)
    return text if len(text) <= 2 * _SHORT else f"{text[:_SHORT]} ... {text[-_SHORT:]}"
