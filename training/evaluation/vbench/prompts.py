"""VBench's prompt lists in each of their forms, and which dimensions a prompt is for.

    VBench_full_info.json      list of {"prompt_en", "dimension": [...], "auxiliary_info"}; the form that scoring needs
    a vbench wheel             has that file inside
    a text file                one prompt a line; `object_class.txt` and the like say the dimension by their name
    a folder of them           `prompts/prompts_per_dimension`

A prompt that is listed twice is one prompt with the dimensions of both: VBench makes its videos once.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from training.evaluation.vbench.dimensions import DIMENSIONS, prompt_file_dimensions

__all__ = ["FULL_INFO", "BenchPrompt", "check_dimensions", "read_bench_prompts"]

FULL_INFO = "VBench_full_info.json"


@dataclass(frozen=True, kw_only=True)
class BenchPrompt:
    """One prompt."""

    text: str
    dimensions: tuple[str, ...]
    """Empty where the list does not say."""
    entries: tuple[dict[str, Any], ...] = ()
    """Its entries of the full list as they are there, for the package; none in a text file."""


def check_dimensions(names: Sequence[str]) -> tuple[str, ...]:
    """The names, in VBench's order; UsageError for one that it does not have."""
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise UsageError(f"--dimensions has {', '.join(unknown)}, expected some of {', '.join(DIMENSIONS)}")
    return tuple(name for name in DIMENSIONS if name in names)


def read_bench_prompts(source: Path, dimensions: Sequence[str] = ()) -> tuple[BenchPrompt, ...]:
    """Prompts of a list, each once, in its order; with `dimensions` only those that serve one of them.

    Raises:
        UsageError: when the list cannot be read, has no such prompt, or does not say its dimensions and some are asked for.
    """
    try:
        found = _merged(_read(source))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"--prompts {source} cannot be read ({error or type(error).__name__}); expected {FULL_INFO}, a vbench wheel, "
            "a text file with one prompt a line, or a folder of such files"
        ) from error
    if dimensions and not any(prompt.dimensions for prompt in found):
        raise UsageError(
            f"--dimensions was given, but {source} does not say which prompt is for which dimension; give {FULL_INFO}, or leave it out"
        )
    wanted = set(dimensions)
    kept = tuple(prompt for prompt in found if not wanted or wanted & set(prompt.dimensions))
    if not kept:
        raise UsageError(f"--prompts {source} has no prompt{' for ' + ', '.join(dimensions) if dimensions else ''}")
    return kept


def _read(source: Path) -> Iterable[BenchPrompt]:
    if source.is_dir():
        files = sorted(path for path in source.glob("*.txt") if prompt_file_dimensions(path.stem))
        return [prompt for path in files for prompt in _lines(path)]
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as archive:
            return _entries(json.loads(archive.read(f"vbench/{FULL_INFO}")))
    if source.suffix == ".json":
        return _entries(json.loads(source.read_text(encoding="utf-8")))
    return _lines(source)


def _lines(path: Path) -> list[BenchPrompt]:
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    dimensions = prompt_file_dimensions(path.stem)
    return [BenchPrompt(text=text, dimensions=dimensions) for text in texts if text]


def _entries(values: Any) -> list[BenchPrompt]:
    if not isinstance(values, list):
        raise ValueError(f"a JSON {type(values).__name__}, not a list")
    prompts = []
    for number, entry in enumerate(values):
        text, dimensions = (
            (entry.get(key) for key in ("prompt_en", "dimension")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(text, str) or not text or not isinstance(dimensions, list):
            raise ValueError(f"entry {number} has no prompt_en and dimension")
        prompts.append(BenchPrompt(text=text, dimensions=tuple(map(str, dimensions)), entries=(entry,)))
    return prompts


def _merged(prompts: Iterable[BenchPrompt]) -> list[BenchPrompt]:
    """Each text once, where it came first."""
    by_text: dict[str, BenchPrompt] = {}
    for prompt in prompts:
        before = by_text.get(prompt.text)
        if before is not None:
            more = tuple(name for name in prompt.dimensions if name not in before.dimensions)
            prompt = BenchPrompt(
                text=prompt.text, dimensions=before.dimensions + more, entries=before.entries + prompt.entries
            )
        by_text[prompt.text] = prompt
    return list(by_text.values())
