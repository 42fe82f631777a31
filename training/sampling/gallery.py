"""Clips of several prompts in one folder: numbered MP4s, one contact sheet with a row for each, and a list of what they are.

<folder>/0001.mp4, 0002.mp4, ...    <folder>/contact-sheet.png    <folder>/samples.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.files import write_json
from training.video import write_rows_sheet

__all__ = ["clip_path", "write_index"]


def clip_path(folder: Path, index: int) -> Path:
    """File of the clip with that index: `clip_path(folder, 0)` is `<folder>/0001.mp4`."""
    return folder / f"{index + 1:04d}.mp4"


def write_index(
    folder: Path, rows: Sequence[np.ndarray], clips: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Write the contact sheet (`rows` are thumbnails), then `samples.json` with what is true of all clips and of each; it comes last."""
    write_rows_sheet(folder / "contact-sheet.png", rows)
    listed = [{"file": clip_path(folder, index).name, **clip} for index, clip in enumerate(clips)]
    write_json(folder / "samples.json", {**facts, "clips": listed})
