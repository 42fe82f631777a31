"""Where results go: a name that is free, decided before anything is read."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import UsageError

__all__ = ["refuse_filled"]


def refuse_filled(output: Path) -> None:
    """UsageError when `output` exists and is not an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output is {output}, which exists already; give a name that is free, or remove it first")
