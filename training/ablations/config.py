"""The file of a set of ablations: a base configuration, parts of the data, and variants that each answer one question.

A variant is the base with some keys replaced, as `--set` would, perhaps on other data or from the weights that another variant ends with. Every
variant is checked as a whole configuration when the file is read, so that a mistake ends the command before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from schemas.config import StrictConfig, build_config, load_config, merge_overrides
from schemas.errors import UsageError
from training.ablations.noise import SEEDS_WANTED
from training.config import TrainConfig

__all__ = ["BASE", "AblationConfig", "DataPart", "Variant", "chosen_variants", "read_ablations", "variant_settings"]

BASE = "base"
"""Name of the run without changes; its further seeds are base-seed-1, base-seed-2, ..."""
_NAME = r"^[a-z0-9][a-z0-9_]*$"

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class DataPart(StrictConfig):
    """Other data than the plan's: some of its shards, or another admission level. It gets a plan of its own, as long as the base's."""

    share: Share = 1.0
    """Of the set's shards, spread evenly over it; shards are a stratified shuffle of a set, so some are a small copy of all."""
    admission: str | None = None
    """Level of the planner; null keeps the plan's."""


class Variant(StrictConfig):
    """One change to the base."""

    name: str = Field(pattern=_NAME)
    group: str
    """What is drawn together with the base."""
    question: str
    """What the difference to `against` answers, in a sentence."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Dotted key to value."""
    share_of_steps: dict[str, Share] = Field(default_factory=dict)
    """Dotted key to a share of the run's steps, for keys that count steps."""
    steps_share: Annotated[float, Field(gt=0.0)] = 1.0
    """Steps over those of the base."""
    data: str | None = None
    """A name in `data`; null takes the plan that is given."""
    after: str | None = None
    """Begins with the weights that this variant (or base) ends with, a fresh optimizer, and a seed of its own: with the seed of the other run it
    would see that run's very noise and times again."""
    against: str = BASE
    """What it is compared with."""


class AblationConfig(StrictConfig):
    """The file."""

    base: dict[str, Any]
    """A whole training configuration."""
    steps: int = Field(gt=0)
    """Of the base."""
    seeds: int = Field(default=SEEDS_WANTED, ge=1)
    """Runs of the base with other seeds (of weights, noise, times, captions); their spread says how large a difference chance makes."""
    last_steps: int = Field(default=50, gt=0)
    """The final loss is the mean of at most so many last steps, and at most a fifth of all."""
    text_tokens: int = Field(default=64, gt=0)
    """Text tokens of a clip, for FLOPs."""
    data: dict[str, DataPart] = Field(default_factory=dict)
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = [BASE]
        for variant in self.variants:
            if variant.name in known:
                raise ValueError(
                    f"two variants are called {variant.name!r}; a name is also a folder's: give one another"
                )
            for field in ("after", "against"):
                other = getattr(variant, field)
                if other is not None and other not in known:
                    raise ValueError(
                        f"variant {variant.name!r}: {field} is {other!r}, expected one before it: {', '.join(known)}"
                    )
            if variant.data is not None and variant.data not in self.data:
                raise ValueError(
                    f"variant {variant.name!r}: data is {variant.data!r}, expected one of {', '.join(self.data) or 'none: fill `data`'}"
                )
            known.append(variant.name)
        return self


def read_ablations(path: Path, overrides: tuple[str, ...] = ()) -> AblationConfig:
    """Read the file, and check base and variants as training configurations.

    Raises:
        ConfigError: for the file, or for a variant, which the message names.
    """
    config = load_config(AblationConfig, path, overrides)
    for variant in (None, *config.variants):
        build_config(
            TrainConfig,
            variant_settings(config, variant),
            source=f"{path}: {BASE if variant is None else variant.name}",
        )
    return config


def variant_settings(config: AblationConfig, variant: Variant | None, *, seed: int = 0) -> dict[str, Any]:
    """Values of the training configuration of a variant (None: the base), `seed` counted from the base's own.

    All variants have the base's seed, so that they differ from it in what they change; one that comes `after` another has its own.
    """
    steps = config.steps
    changes: dict[str, Any] = {}
    if variant is not None:
        steps = max(1, round(config.steps * variant.steps_share))
        changes = {
            **variant.changes,
            **{key: max(1, round(steps * share)) for key, share in variant.share_of_steps.items()},
        }
    values = merge_overrides(config.base, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    values["steps"] = steps
    values["seed"] = int(values.get("seed", 0)) + seed
    if variant is not None and variant.after is not None and "seed" not in variant.changes:
        values["seed"] = _seed_of(variant.name, values["seed"])
    return values


def _seed_of(name: str, seed: int) -> int:
    """A seed of a variant's own, far from those of the base."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "little")


def chosen_variants(config: AblationConfig, only: str) -> tuple[Variant, ...]:
    """Variants of a comma-separated list with all that they come after or are compared with; all for an empty one."""
    by_name: Mapping[str, Variant] = {variant.name: variant for variant in config.variants}
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in by_name and name != BASE]
    if unknown:
        raise UsageError(f"--only has {', '.join(unknown)}, expected some of {', '.join([BASE, *by_name])}")
    if not wanted:
        return config.variants
    needed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in needed and name != BASE:
            needed.add(name)
            variant = by_name[name]
            wanted += [other for other in (variant.after, variant.against) if other is not None]
    return tuple(variant for variant in config.variants if variant.name in needed)
