"""One rule for tensors that come from elsewhere: each expected one is there in its size, and there is no other. All that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Mapping, Set

from schemas.errors import DataError

__all__ = ["check_sizes", "check_tensors"]

_SHOWN = 4


def check_tensors(found: Set[str], expected: Set[str], what: str) -> None:
    """DataError with the names of missing and unknown tensors."""
    problems = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in (("missing", expected - found), ("unknown", found - expected))
        if names
    ]
    if problems:
        raise DataError(
            f"{what} has {len(found)} tensors, expected {len(expected)}: {'; '.join(problems)}; "
            "import the whole file of one network, without adapters or other parts"
        )


def check_sizes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """DataError with names and sizes, after `check_tensors`."""
    check_tensors(found.keys(), expected.keys(), what)
    wrong = [name for name in sorted(expected) if tuple(found[name]) != tuple(expected[name])]
    if wrong:
        shown = "; ".join(
            f"{name} is {tuple(found[name])}, expected {tuple(expected[name])}" for name in wrong[:_SHOWN]
        )
        raise DataError(f"{what}: {len(wrong)} tensors have another size than the network's: {shown}")
