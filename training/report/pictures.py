"""Contact sheets and videos of the evaluations, in the page itself as far as they are small enough, else as links."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from training.report.run_data import EvaluationSample

__all__ = ["sample_figures"]

_MOST_SHEETS = 6
_SHEET_BYTES = 600_000
"""Of all sheets together."""
_VIDEO_BYTES = 500_000
"""Of all videos of the newest evaluation together."""
_WIDTH, _HEIGHT = 1000, 1200


def sample_figures(samples: Sequence[EvaluationSample], page: Path) -> str:
    """The newest evaluation with its videos, and earlier ones, evenly spread, as contact sheets; `page` is where the page will lie."""
    if not samples:
        return ""
    newest = samples[-1]
    figures, left = [], _SHEET_BYTES
    for sample in _spread(samples):
        found = _sheet(sample.folder / "contact-sheet.png")
        words = f"after {sample.steps_done:,} steps"
        if found is None or len(found) > left:
            body = _link(sample.folder, page, "its folder")
        else:
            left -= len(found)
            body = f"<img alt='{escape(words)}' src='data:image/jpeg;base64,{base64.b64encode(found).decode()}'>"
        figures.append(f"<figure>{body}<figcaption>{escape(words)}</figcaption></figure>")
    return (
        f"<div class='samples'>{''.join(_videos(newest, page))}</div>"
        f"<h3>Contact sheets</h3><div class='samples'>{''.join(figures)}</div>"
    )


def _spread(samples: Sequence[EvaluationSample]) -> list[EvaluationSample]:
    """The first, the last, and some between; the newest first."""
    count = min(_MOST_SHEETS, len(samples))
    places = {round(index * (len(samples) - 1) / max(1, count - 1)) for index in range(count)}
    return [samples[place] for place in sorted(places, reverse=True)]


def _sheet(path: Path) -> bytes | None:
    """A small JPEG of a PNG; None when it cannot be read."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((_WIDTH, _HEIGHT))
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=82)
            return stream.getvalue()
    except OSError:
        return None


def _videos(sample: EvaluationSample, page: Path) -> list[str]:
    figures, left = [], _VIDEO_BYTES
    for path, prompt in sample.videos:
        data = path.read_bytes() if path.is_file() and path.stat().st_size <= left else None
        if data is None:
            body = _link(path, page, path.name)
        else:
            left -= len(data)
            source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
            body = f"<video controls loop muted playsinline src='{source}'></video>"
        words = f"{prompt}, after {sample.steps_done:,} steps"
        figures.append(f"<figure>{body}<figcaption>{escape(words)}</figcaption></figure>")
    return figures


def _link(path: Path, page: Path, words: str) -> str:
    """A link that holds as long as page and run are moved together."""
    target = os.path.relpath(path.resolve(), page.resolve().parent)
    return f"<a href='{escape(quote(target), quote=True)}'>{escape(words)}</a>"
