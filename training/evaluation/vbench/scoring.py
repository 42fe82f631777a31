"""All dimensions that can be scored, one after another, into `scores/` and a table; the rest get their reason.

A dimension whose videos are the same as at its last scoring, by the same version of the package, is not scored again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.command import say
from schemas.config import read_yaml
from schemas.errors import DataError
from schemas.files import write_json
from training.evaluation.vbench.dimensions import DIMENSIONS
from training.evaluation.vbench.package import (
    DEFAULT_CACHE,
    VBenchPackage,
    missing_files,
    score_dimension,
    write_full_info,
)
from training.evaluation.vbench.prompts import BenchPrompt, read_bench_prompts
from training.evaluation.vbench.scores import DimensionScore, read_results, report, table_lines, totals
from training.evaluation.vbench.videos import FLICKERING, is_standard_name, video_name

__all__ = ["ScoreRequest", "Scored", "score_videos", "wanted_dimensions"]

_VIDEOS_LOOKED_AT = 5
"""Of each prompt, by the package."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What to score, and with what."""

    package: VBenchPackage
    prompts: tuple[BenchPrompt, ...]
    dimensions: tuple[str, ...]
    """None asks for all that the prompts serve."""
    output: Path
    cache: Path | None
    device: str
    allow_download: bool


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The table, and how it ended."""

    lines: tuple[str, ...]
    last_line: str
    failed: bool
    """The package was called and failed."""


def score_videos(request: ScoreRequest) -> Scored:
    """Score each dimension; writes `scores/table.json`."""
    entries = _entries(request.package, request.prompts)
    wanted = wanted_dimensions(request.package, request.prompts, request.dimensions)
    full_info = request.output / "scores" / "full_info.json"
    write_full_info(full_info, entries)
    scores = {name: _score(request, name, full_info, entries) for name in wanted}
    write_json(request.output / "scores" / "table.json", report(scores, request.package.version))
    there = [row for row in scores.values() if row.score is not None]
    failed = [row for row in scores.values() if row.score is None and row.reason.startswith("the package failed")]
    words = f"{len(there)} of {len(scores)} dimensions scored by vbench {request.package.version}"
    if not there and not failed:
        words = f"videos made, not scored: vbench {request.package.version} is there, but no dimension could be scored (reasons above)"
    total = totals(scores).total
    return Scored(
        lines=tuple(table_lines(scores)),
        last_line=words + ("" if total is None else f", total {100 * total:.2f}"),
        failed=bool(failed),
    )


def wanted_dimensions(
    package: VBenchPackage | None, prompts: Sequence[BenchPrompt], chosen: Sequence[str]
) -> tuple[str, ...]:
    """Those that are chosen, else all that the prompts are for by their list or the package's own; none where neither says."""
    entries = [] if package is None else _entries(package, prompts)
    served = {name for prompt in prompts for name in prompt.dimensions}
    served |= {name for entry in entries for name in entry["dimension"]}
    return tuple(chosen) or tuple(name for name in DIMENSIONS if name in served)


def _entries(package: VBenchPackage, prompts: Sequence[BenchPrompt]) -> list[dict[str, Any]]:
    """Entries of the package's form for the prompts at hand; those of a text list are looked up in the package's own list."""
    own = {}
    if any(not prompt.entries for prompt in prompts):
        own = {prompt.text: prompt for prompt in read_bench_prompts(package.full_info)}
    found = []
    for prompt in prompts:
        entries = prompt.entries or (own[prompt.text].entries if prompt.text in own else ())
        found += [dict(entry) for entry in entries if is_standard_name(prompt.text)]
    return found


def _score(request: ScoreRequest, name: str, full_info: Path, entries: Sequence[Mapping[str, Any]]) -> DimensionScore:
    videos = request.output / "videos"
    files = [
        video_name(entry["prompt_en"], index)
        for entry in entries
        if name in entry["dimension"]
        for index in range(_VIDEOS_LOOKED_AT)
    ]
    there = [file for file in files if (videos / file).is_file()]
    if not there:
        return DimensionScore(dimension=name, score=None, reason="no video of a prompt that the package has for it")
    cache = request.cache or DEFAULT_CACHE
    missing = missing_files(DIMENSIONS[name], cache)
    if missing and not request.allow_download:
        return DimensionScore(
            dimension=name,
            score=None,
            reason=f"weights are not there: {', '.join(missing)} in {cache} (--allow-download lets vbench fetch)",
        )
    folder = request.output / "scores"
    stamp = {"vbench": request.package.version, "videos": _fingerprint(videos, there)}
    results, stamp_file = folder / f"{name}_eval_results.json", folder / f"{name}.stamp.json"
    if not (stamp_file.is_file() and results.is_file() and read_yaml(stamp_file) == stamp):
        say(f"scoring {name}: {len(there)} videos")
        outcome = score_dimension(
            request.package,
            name,
            videos=videos,
            full_info=full_info,
            output=folder,
            cache=cache,
            device=_device(request.device),
            allow_download=request.allow_download,
        )
        if isinstance(outcome, str):
            return DimensionScore(dimension=name, score=None, reason=outcome)
        write_json(stamp_file, stamp)
    return _row(results, name, len(files) - len(there))


def _row(results: Path, name: str, num_missing: int) -> DimensionScore:
    found = read_results(results)
    if name not in found:
        raise DataError(f"{results} has no result for {name}; remove it and score again")
    row = found[name]
    remarks = [row.reason] if row.reason else []
    if num_missing:
        remarks.append(f"{num_missing} videos of its prompts are missing")
    if name == FLICKERING:
        remarks.append("on unfiltered videos: VBench asks for its static filter first")
    return DimensionScore(dimension=name, score=row.score, num_videos=row.num_videos, reason="; ".join(remarks))


def _fingerprint(folder: Path, files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        facts = (folder / name).stat()
        digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _device(wanted: str) -> str:
    from training.parallel import choose_device

    return choose_device(wanted).type
