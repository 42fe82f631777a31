"""The vbench package in an interpreter of its own: is it there, are its weights, and its answer for one dimension.

The package downloads what it misses, quietly, while it scores. Here a dimension whose weights are not there is not scored unless downloads are
allowed, and model hubs are told to stay offline. A dimension that fails is a reason, not the end of the others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from schemas.files import write_json
from training.evaluation.vbench.dimensions import Dimension
from training.evaluation.vbench.prompts import FULL_INFO

__all__ = ["DEFAULT_CACHE", "VBenchPackage", "find_package", "missing_files", "score_dimension", "write_full_info"]

DEFAULT_CACHE = Path.home() / ".cache" / "vbench"
"""Where the package keeps its weights unless told otherwise."""

_FIND = """
import importlib.metadata, importlib.util, json, os
found = importlib.util.find_spec("vbench")
place = None if found is None or found.origin is None else os.path.dirname(found.origin)
version = importlib.metadata.version("vbench") if place else None
print(json.dumps({"place": place, "version": version}))
"""
_SCRIPT = Path(__file__).with_name("score_one.py")
_FIND_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class VBenchPackage:
    """An installed package."""

    python: Path
    version: str
    full_info: Path
    """Its list of prompts."""


def find_package(python: Path) -> VBenchPackage | None:
    """The package of an interpreter, without importing it; None when it has none.

    Raises:
        UsageError: when there is no such interpreter, or it does not answer like one.
    """
    found_at = shutil.which(python.absolute() if python.exists() else python)
    if found_at is None:
        what = "cannot be run" if python.exists() else "is not there"
        raise UsageError(
            f"--vbench-python is {python}, which {what}; expected a Python interpreter: ENVIRONMENT/bin/python"
        )
    path = Path(found_at).absolute()  # it is called from another folder
    try:
        done = subprocess.run([path, "-c", _FIND], capture_output=True, text=True, timeout=_FIND_SECONDS, check=True)
        found = json.loads(done.stdout)
        place, version = found["place"], found["version"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--vbench-python is {python}, which does not answer like a Python interpreter ({_words_of(error)}); "
            "expected one: ENVIRONMENT/bin/python"
        ) from error
    return None if place is None else VBenchPackage(python=path, version=version, full_info=Path(place) / FULL_INFO)


def _words_of(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = [line for line in (error.stderr or "").splitlines() if line.strip()]
        return f"exit code {error.returncode}{': ' + said[-1].strip()[:200] if said else ''}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"nothing in {_FIND_SECONDS:g} s"
    return (str(error) or type(error).__name__)[:200]


def missing_files(dimension: Dimension, cache: Path) -> list[str]:
    """Weight files of a dimension that are not below the cache folder."""
    return [name for name in dimension.files if not (cache / name).exists()]


def write_full_info(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """The package's list, cut to the prompts that there are videos of: it warns of every other one."""
    write_json(path, list(entries))


def score_dimension(
    package: VBenchPackage,
    dimension: str,
    *,
    videos: Path,
    full_info: Path,
    output: Path,
    cache: Path,
    device: str,
    allow_download: bool,
) -> Path | str:
    """The results file that the package wrote (`{name}_eval_results.json`), or why there is none."""
    arguments = {
        "device": device,
        "full_info": str(full_info.absolute()),
        "output": str(output.absolute()),
        "videos": str(videos.absolute()),
        "name": dimension,
        "dimension": dimension,
    }
    offline = {} if allow_download else {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    output.mkdir(parents=True, exist_ok=True)
    results = output / f"{dimension}_eval_results.json"
    results.unlink(missing_ok=True)
    log = output / f"{dimension}.log"
    with log.open("wb") as stream:
        done = subprocess.run(
            [package.python, _SCRIPT, json.dumps(arguments)],
            cwd=output,
            env={**os.environ, **offline, "VBENCH_CACHE_DIR": str(cache.absolute())},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode == 0 and results.is_file():
        return results
    return f"the package failed ({_last_line(log) or f'exit code {done.returncode}'}); see {log.name}"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
