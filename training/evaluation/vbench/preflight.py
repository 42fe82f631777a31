"""What scoring would need and what of it is there, in words: said before videos are made, which takes hours, and again where they are not scored.

Price: a weight file counts as there when it exists; whether it is whole is what the package says when it loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.evaluation.vbench.dimensions import DIMENSIONS
from training.evaluation.vbench.package import DEFAULT_CACHE, VBenchPackage, missing_files

__all__ = ["INSTALL", "preflight_lines"]

INSTALL = "install it in an environment of its own (pip install vbench) and give --vbench-python"


def preflight_lines(
    package: VBenchPackage | None,
    python: Path,
    dimensions: Sequence[str],
    cache: Path | None,
    *,
    allow_download: bool,
) -> list[str]:
    """The package, then the weights of each dimension; `dimensions` are empty where the prompts do not say what they are for."""
    folder = cache or DEFAULT_CACHE
    lines = [
        f"vbench: not installed for {python}, so videos will not be scored; {INSTALL}"
        if package is None
        else f"vbench: {package.version} for {python}"
    ]
    if not dimensions:
        return [*lines, "weights: the list does not say which dimensions its prompts are for, the package does"]
    missing = {name: missing_files(DIMENSIONS[name], folder) for name in dimensions}
    ready = sum(not files for files in missing.values())
    lines.append(f"weights: those of {ready} of {len(dimensions)} dimensions are in {folder}")
    for name, files in missing.items():
        if files:
            lines.append(f"  {name}: not there: {', '.join(files)}")
        else:
            lines.append(f"  {name}: {'there' if DIMENSIONS[name].files else 'needs none'}")
    if ready < len(dimensions):
        lines.append(
            "those that are not there will be fetched by the package (--allow-download)"
            if allow_download
            else "dimensions without weights will not be scored; put the files there, or let the package fetch them with --allow-download"
        )
    return lines
