"""`simanneal` on a journaled state: one move costs what it changes, whatever the size of the state.

simanneal 0.5.0 copies the state on every trial. Here the state that it copies is a handle (journal, version); the arrangement itself lives in a
`Problem`, and before each move the journal undoes whatever a rejected trial left behind. Two more of its habits are kept out: its constructor
takes the SIGINT handler (so Ctrl-C would end the annealing and not the command, and threads could not anneal at all), so it is not called; it
draws from the global `random`, which is seeded for the run and given back as it was. Price: the journal grows by one entry per accepted move.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from simanneal import Annealer

__all__ = ["AnnealResult", "Problem", "anneal", "moves_for"]

_PROBES = 64
"""Moves that are tried and taken back to find the scale of an energy change."""
_HOTTEST = 0.05
"""First temperature over the mean change of a move. A hotter start forgets the constructive arrangement: with six moves an item, one at 1 came to
nothing, this one halved the clips to hand over."""
_MOVES_PER_ITEM = 50
"""The paper's 30,000 moves for 600 tars."""
_COOLING = 1e-3
"""Last temperature over the first."""


class Problem(ABC):
    """An arrangement that can be changed and changed back; draws from the global `random`."""

    @abstractmethod
    def energy(self) -> float:
        """Of the present arrangement, from scratch; lower is better."""

    @abstractmethod
    def propose(self) -> Any | None:
        """A move, or None where there is none; changes nothing."""

    @abstractmethod
    def apply(self, move: Any) -> float:
        """Make the move and return the change of the energy."""

    @abstractmethod
    def undo(self, move: Any) -> None:
        """Take back `move`, the last one that was applied."""


@dataclass(frozen=True)
class AnnealResult:
    """What a run did; the problem is left in its best arrangement."""

    energy_before: float
    energy_after: float


class _Journal:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.moves: list[Any] = []

    def roll_back(self, version: int) -> None:
        while len(self.moves) > version:
            self.problem.undo(self.moves.pop())


@dataclass(frozen=True)
class _Handle:
    """What simanneal takes for the state; copying it is O(1)."""

    journal: _Journal
    version: int

    def copy(self) -> _Handle:
        return self


class _JournaledAnnealer(Annealer):  # type: ignore[misc]
    copy_strategy = "method"
    updates = 0

    def __init__(self, problem: Problem, steps: int, hottest: float) -> None:
        # Not Annealer.__init__: all it does besides setting the state is to take SIGINT.
        self.state = _Handle(_Journal(problem), 0)
        self.steps = steps
        self.Tmax = hottest
        self.Tmin = hottest * _COOLING

    def move(self) -> float:
        journal = self.state.journal
        journal.roll_back(self.state.version)
        move = journal.problem.propose()
        if move is None:
            return 0.0
        change = journal.problem.apply(move)
        journal.moves.append(move)
        self.state = _Handle(journal, len(journal.moves))
        return change

    def energy(self) -> float:
        self.state.journal.roll_back(self.state.version)
        return self.state.journal.problem.energy()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def moves_for(items: int, most: int) -> int:
    """Moves of a run over `items` ranges or parts: small epochs are not annealed for seconds, many times over."""
    return min(most, _MOVES_PER_ITEM * items)


def anneal(problem: Problem, *, steps: int, seed: int) -> AnnealResult:
    """Leave `problem` in the best arrangement of `steps` moves; never in a worse one than it came with."""
    before = problem.energy()
    with _seeded(seed):
        hottest = _HOTTEST * _typical_change(problem)
        if steps == 0 or hottest == 0.0:
            return AnnealResult(before, before)
        annealer = _JournaledAnnealer(problem, steps, hottest)
        best, _ = annealer.anneal()
        best.journal.roll_back(best.version)
        after = problem.energy()  # from scratch: summed changes drift
        if after > before:
            best.journal.roll_back(0)
            after = before
    return AnnealResult(before, after)


def _typical_change(problem: Problem) -> float:
    """Mean size of the energy change over a few moves, each taken back; 0 if nothing changes anything."""
    changes = []
    for _ in range(_PROBES):
        move = problem.propose()
        if move is not None:
            changes.append(abs(problem.apply(move)))
            problem.undo(move)
    return sum(changes) / len(changes) if changes else 0.0
