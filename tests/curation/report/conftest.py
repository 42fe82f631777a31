"""Tables of a small made-up run: kept clips, a dark one, a still one, copies, a bad source; names and captions full of markup."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curation.decide import DecideSettings, decide
from schemas.tables import CLIPS, LABELS, OUTCOMES, PAIRS, SOURCES, THUMBNAILS, table_from_rows

Row = dict[str, Any]
NASTY = "<script>document.title='owned'</script>&\"'"


@pytest.fixture(scope="session")
def nasty() -> str:
    """Text that would run if it were not escaped."""
    return NASTY


def strip(number: int, num_frames: int = 3) -> bytes:
    buffer = io.BytesIO()
    pixels = np.full((36, 64 * num_frames, 3), 40 + 20 * (number % 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def label_row(clip: Row, caption: str, subject: str) -> Row:
    row = dict.fromkeys(LABELS.names) | {"clip_id": clip["clip_id"], "tags": [], "subject": subject}
    texts = ("caption_long", "caption_first", "style", "action", "camera_move", "model", "prompt_version")
    return row | dict.fromkeys(texts, "x") | {"caption_short": caption}


def source_row(uri: str, **changes: Any) -> Row:
    facts = {"size_bytes": 1000, "kind": "video", "branch": "video_real", "domain": "", "licence": ""}
    decoded = {
        "codec": "h264",
        "height": 1080,
        "width": 1920,
        "rotation_degrees": 0,
        "fps": 24.0,
        "duration_us": 90_000_000,
    }
    return (
        dict.fromkeys(SOURCES.names) | facts | decoded | {"uri": uri, "frames_decoded": 2160, "status": "ok"} | changes
    )


def pair_row(first: Row, second: Row, **changes: Any) -> Row:
    ids = sorted((first["clip_id"], second["clip_id"]))
    facts = {"cosine": 0.91, "mean_cosine": 0.9, "offset_us": 250_000, "frames_agree": 3, "frames_compared": 3}
    return {"clip_a": ids[0], "clip_b": ids[1], **facts, "verified": True, **changes}


@pytest.fixture
def clips(clip_row: Callable[..., Row]) -> list[Row]:
    """Films 0 to 41 of domain `city`, 40 and 41 copies of 0; of domain `night`: four dark ones; one still one."""
    rows = [clip_row(number, uri=f"file:///films/{number}{NASTY}.mp4", domain="city") for number in range(42)]
    rows += [
        clip_row(number, luma=float(number - 49), domain="night", uri=f"file:///films/{number}.mp4")
        for number in range(50, 54)
    ]
    return [*rows, clip_row(60, motion=0.0, domain="city", uri="file:///films/60.mp4")]


@pytest.fixture
def tables(clips: list[Row]) -> dict[str, pa.Table]:
    """The tables of such a run."""
    table = table_from_rows(CLIPS, clips)
    pairs = table_from_rows(PAIRS, [pair_row(clips[0], copy) for copy in clips[40:42]])
    bad = source_row(f"file:///{NASTY}", status="failed", reason=f"cannot be opened {NASTY}", duration_us=None)
    sources = [bad, *(source_row(clip["uri"], content_hash=clip["content_hash"]) for clip in clips)]
    strips = [{"clip_id": clip["clip_id"], "num_frames": 3, "jpeg": strip(n)} for n, clip in enumerate(clips)]
    labels = [
        label_row(clip, f"caption {NASTY}", "animals" if n % 2 else "people") for n, clip in enumerate(clips[:44])
    ]
    return {
        "sources": table_from_rows(SOURCES, sources),
        "clips": table,
        "pairs": pairs,
        "decisions": decide(table, pairs, table_from_rows(LABELS, labels), DecideSettings()),
        "outcomes": OUTCOMES.empty_table(),
        "thumbnails": table_from_rows(THUMBNAILS, strips),
        "labels": table_from_rows(LABELS, labels),
    }
