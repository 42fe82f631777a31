"""What a check found, and how checks are run: an error in one becomes its finding, so that all the others still speak."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from schemas.errors import ReelyardError

__all__ = ["Finding", "fail", "ok", "run_checks", "skipped", "warn"]

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's table."""

    check: str
    status: Status
    text: str
    """What was found, with the numbers."""
    todo: str = ""
    """What to do; empty where nothing is to be done."""


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(check="", status="ok", text=text)


def warn(text: str, todo: str) -> Finding:
    """The run can start, and may not go well."""
    return Finding(check="", status="warn", text=text, todo=todo)


def fail(text: str, todo: str) -> Finding:
    """The run would not start, or would end."""
    return Finding(check="", status="fail", text=text, todo=todo)


def skipped(text: str) -> Finding:
    """Something that this check needs failed before."""
    return Finding(check="", status="skipped", text=text)


def run_checks(checks: Iterable[tuple[str, Callable[[], Iterable[Finding]]]]) -> list[Finding]:
    """Run each named check; the findings in order. Errors that were written for the user end with what to do after their last semicolon."""
    found: list[Finding] = []
    for name, check in checks:
        try:
            results = list(check())
        except ReelyardError as error:
            what, _, todo = str(error).rpartition("; ")
            results = [fail(what or todo, todo if what else "see the message")]
        except Exception as error:  # a check that breaks must not hide the others
            results = [fail(f"the check itself broke: {type(error).__name__}: {error}", "report it with the command")]
        found += [Finding(check=name, status=result.status, text=result.text, todo=result.todo) for result in results]
    return found
