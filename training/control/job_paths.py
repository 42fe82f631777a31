"""Paths under `ray job submit`: the working directory there is a temporary copy of the submitted one, so what is written into it is lost.

Relative paths of results and data are refused in words; the configuration may be relative, it is part of the copy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from schemas.errors import UsageError

__all__ = ["refuse_relative_paths", "under_ray_job"]

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def under_ray_job() -> bool:
    """Whether `ray job submit` started this process, or the one that started it."""
    return _JOB_VARIABLE in os.environ


def refuse_relative_paths(by_flag: Mapping[str, Sequence[Path]]) -> None:
    """UsageError for a relative path, if this is a Ray job."""
    if not under_ray_job():
        return
    for flag, paths in by_flag.items():
        for path in paths:
            if not path.is_absolute():
                raise UsageError(
                    f"{flag} {path} is a relative path, and the working directory of a Ray job is a temporary copy of the one that was "
                    f"submitted, without data and gone afterwards; give an absolute path that every node sees, for example {flag} /data/{path.name}"
                )
