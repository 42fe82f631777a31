"""From one network's weights to another's: every parameter is carried, new, reset or dropped, by declaration, or the run does not start.

Pure accounting over names and shapes; no tensor is looked at, so the whole chain is checked in seconds on the meta device, and the same code stands
before a real run. A difference that nobody declared and a declaration that meets nothing are both errors, and all of them are said at once: a
typing mistake in a pattern would otherwise train a module from scratch, or keep one that should go. Price: a stage that changes nothing it did not
mean to still has to say what it changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.errors import ConfigError
from training.curriculum.stage import StageConfig, any_covers, covers

__all__ = ["Declarations", "Shapes", "Transition", "account", "check_text_encoder", "declarations_of", "modules_of"]

TEXT_EMBEDDER = "dit.text_embed"

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name to shape."""


@dataclass(frozen=True, kw_only=True)
class Declarations:
    """What a stage says of its modules, as patterns."""

    new: Sequence[str] = ()
    reset: Sequence[str] = ()
    dropped: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Transition:
    """Names of the parameters by what becomes of them; each is in exactly one."""

    carried: tuple[str, ...] = ()
    """Taken from the source as they are."""
    new: tuple[str, ...] = ()
    """Not in the source: starting weights."""
    reset: tuple[str, ...] = ()
    """In the source and not taken from it: starting weights."""
    dropped: tuple[str, ...] = ()
    """In the source, not in the network."""

    def line(self) -> str:
        """For people: `1,148 parameters carried, 64 new (dit.single_blocks.*.cross)`."""
        parts = [f"{len(self.carried):,} carried"]
        everything = [*self.carried, *self.new, *self.reset, *self.dropped]
        for key in ("new", "reset", "dropped"):
            names = getattr(self, key)
            if names:
                parts.append(f"{len(names):,} {key} ({', '.join(modules_of(names, everything))})")
        return ", ".join(parts)


def declarations_of(stage: StageConfig | None) -> Declarations:
    """What a run declares: the stage's lists for its first part, nothing for a later one (its network is that of the part before)."""
    if stage is None or stage.part_index > 0:
        return Declarations()
    return Declarations(new=stage.new, reset=stage.reset, dropped=stage.dropped)


def account(source: Shapes, network: Shapes, declared: Declarations, *, where: str) -> Transition:
    """Put each parameter of both into its place.

    `where` begins the message, for example `stage04 from stage03`.

    Raises:
        ConfigError: with every difference that is not declared, every declaration that meets nothing, and what to change.
    """
    both = [name for name in network if name in source]
    added = [name for name in network if name not in source]
    gone = [name for name in source if name not in network]
    reshaped = [name for name in both if source[name] != network[name]]
    reset = [name for name in both if any_covers(declared.reset, name)]
    problems = _Problems(everything=[*source, *added])
    problems.undeclared(
        [name for name in added if not any_covers(declared.new, name)],
        "in the network, not in the weights",
        "new",
    )
    problems.undeclared(
        [name for name in gone if not any_covers(declared.dropped, name)],
        "in the weights, not in the network",
        "dropped",
    )
    problems.undeclared(
        [name for name in reshaped if name not in set(reset)], "of another shape", "reset", source, network
    )
    problems.idle(
        declared.new, added, "new", both, "the weights have it already; for a fresh start put it into stage.reset"
    )
    problems.idle(declared.reset, both, "reset", added, "the weights do not have it; put it into stage.new")
    problems.idle(
        declared.dropped, gone, "dropped", both, "the network still has it; to start it again put it into stage.reset"
    )
    if problems.lines:
        raise ConfigError(f"{where}: the modules are not accounted for:\n  " + "\n  ".join(problems.lines))
    kept = set(both) - set(reset)
    return Transition(
        carried=tuple(name for name in both if name in kept), new=tuple(added), reset=tuple(reset), dropped=tuple(gone)
    )


def check_text_encoder(old: str | None, new: str, transition: Transition, *, where: str) -> None:
    """ConfigError if the embedder of one encoder's states would be carried over to another's: equal shapes do not make them alike."""
    carried = [name for name in transition.carried if covers(TEXT_EMBEDDER, name)]
    if old is not None and old != new and carried:
        raise ConfigError(
            f"{where}: stage.text_encoder is {new!r}, the weights were trained with {old!r}, yet {TEXT_EMBEDDER} is carried over; "
            f"add {TEXT_EMBEDDER!r} to stage.reset"
        )


def modules_of(names: Iterable[str], everything: Iterable[str]) -> list[str]:
    """The fewest patterns, each as short as can be, that cover `names` and no other name of `everything`."""
    wanted = list(names)
    others = sorted(set(everything) - set(wanted))
    found: list[str] = []
    for name in wanted:
        if not any_covers(found, name):
            found.append(_shortest(name, others))
    return [pattern for pattern in found if not any(covers(other, pattern) for other in found if other != pattern)]


def _shortest(name: str, others: Sequence[str]) -> str:
    """The shortest pattern of a name that covers none of `others`: block numbers as `*` if that is possible."""
    for form in (re.sub(r"(?<=\.)\d+(?=\.)", "*", name), name):
        parts = form.split(".")
        for length in range(1, len(parts) + 1):
            pattern = ".".join(parts[:length])
            if pattern != "dit" and not any(covers(pattern, other) for other in others):
                return pattern
    return name


@dataclass
class _Problems:
    """Collects what is wrong, a line each."""

    everything: Sequence[str]
    lines: list[str] = field(default_factory=list)

    def undeclared(
        self, names: Sequence[str], what: str, key: str, source: Shapes | None = None, network: Shapes | None = None
    ) -> None:
        """Names that should be in `stage.<key>`, by module."""
        for pattern in modules_of(names, self.everything):
            inside = [name for name in names if covers(pattern, name)]
            shapes = ""
            if source is not None and network is not None:
                shapes = f" ({inside[0]}: {source[inside[0]]} to {network[inside[0]]})"
            count = f"{len(inside)} parameter{'s are' if len(inside) > 1 else ' is'}"
            self.lines.append(f"{pattern}: {count} {what}{shapes}; add {pattern!r} to stage.{key}")

    def idle(self, patterns: Sequence[str], names: Sequence[str], key: str, elsewhere: Sequence[str], why: str) -> None:
        """Patterns of `stage.<key>` that meet none of the names they are for."""
        for pattern in patterns:
            if not any(covers(pattern, name) for name in names):
                met = any(covers(pattern, name) for name in elsewhere)
                reason = why if met else "no parameter has such a name; take it out, or mend it"
                self.lines.append(f"stage.{key}: {pattern!r} meets nothing: {reason}")
