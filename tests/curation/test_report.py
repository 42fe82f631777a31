"""The report: self-contained, escaped, and showing each reason and each group of copies."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curation import funnel, report
from curation.decide import DecideSettings, decide
from schemas.tables import CLIPS, LABELS, OUTCOMES, PAIRS, SOURCES, THUMBNAILS, table_from_rows

Row = dict[str, Any]
NASTY = "<script>alert('x')</script>&\"'"


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def strip(number: int, num_frames: int = 3) -> bytes:
    buffer = io.BytesIO()
    pixels = np.full((36, 64 * num_frames, 3), 40 + 20 * (number % 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def label_row(clip: Row, caption: str) -> Row:
    row = dict.fromkeys(LABELS.names) | {"clip_id": clip["clip_id"], "tags": []}
    texts = ("caption_long", "caption_first", "subject", "style", "action", "camera_move", "model", "prompt_version")
    return row | dict.fromkeys(texts, "x") | {"caption_short": caption}


@pytest.fixture
def tables(clip_row: Callable[..., Row]) -> dict[str, pa.Table]:
    """Forty kept clips, a dark one, a still one and two copies; names and captions full of markup."""
    clips = [clip_row(number, uri=f"file:///films/{number}{NASTY}.mp4") for number in range(42)]
    clips += [clip_row(50, luma=1.0), clip_row(51, motion=0.0)]
    table = table_from_rows(CLIPS, clips)
    pair_rows = []
    for copy in clips[40:42]:
        first, second = sorted((clips[0]["clip_id"], copy["clip_id"]))
        counts = {
            "cosine": 0.91,
            "mean_cosine": 0.9,
            "offset_us": 0,
            "frames_agree": 3,
            "frames_compared": 3,
            "verified": True,
        }
        pair_rows.append({"clip_a": first, "clip_b": second, **counts})
    pairs = table_from_rows(PAIRS, pair_rows)
    bad = {
        "uri": f"file:///{NASTY}",
        "size_bytes": 1,
        "kind": "video",
        "branch": "video_real",
        "domain": "",
        "licence": "",
    }
    source = dict.fromkeys(SOURCES.names) | bad | {"status": "failed", "reason": f"cannot be opened {NASTY}"}
    strips = [{"clip_id": clip["clip_id"], "num_frames": 3, "jpeg": strip(n)} for n, clip in enumerate(clips)]
    return {
        "sources": table_from_rows(SOURCES, [source]),
        "clips": table,
        "pairs": pairs,
        "decisions": decide(table, pairs, None, DecideSettings()),
        "outcomes": OUTCOMES.empty_table(),
        "thumbnails": table_from_rows(THUMBNAILS, strips),
        "labels": table_from_rows(LABELS, [label_row(clip, f"caption {NASTY}") for clip in clips]),
    }


@pytest.fixture
def written(tables: dict[str, pa.Table], tmp_path: Path) -> list[Path]:
    counts = funnel.build(tables, {}, {})
    return report.write(tmp_path / "report", tables=tables, funnel=counts, settings=DecideSettings())


def test_the_page_is_self_contained_and_escaped(written: list[Path]) -> None:
    html = written[0].read_text()
    reader = Reader()
    reader.feed(html)
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "iframe", "object"}
    assert "<script" not in html
    assert NASTY in reader.text, "what was escaped reads as it was written"
    pictures = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures)
    for source in pictures:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert image.size == (192, 36)
    assert not re.search(r"(src|href)='?\"?https?:", html)


def test_every_reason_is_shown_with_measure_value_and_limit(written: list[Path]) -> None:
    reader = Reader()
    reader.feed(written[0].read_text())
    for told in (
        "too_dark (luma 1, limit 16)",
        "static (motion 0, limit 0.05)",
        "duplicate (cosine 0.91)",
        "keep: 40 clips at level 144p, 24 shown",
        "Sources that were not read to the end: 1",
    ):
        assert told in reader.text


def test_copies_stand_beside_the_clip_that_was_kept(tables: dict[str, pa.Table], written: list[Path]) -> None:
    html = written[0].read_text()
    groups = html.split("<div class='group'>")[1:]
    assert len(groups) == 1
    rows = [
        row for row in tables["decisions"].to_pylist() if row["admission"] == "144p" and row["decision"] == "duplicate"
    ]
    group = groups[0].partition("</div></figcaption></figure></div>")[0]
    assert group.count("<figure") == 3
    assert group.count("kept") == 1
    for row in rows:
        assert row["clip_id"] in group
        assert row["duplicate_of"] in group


def test_the_picture_has_every_section(written: list[Path]) -> None:
    with Image.open(written[1]) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 1000
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7].tolist()}
    assert len(colours) > 10


def test_histograms_have_the_limits_drawn_in(written: list[Path]) -> None:
    reader = Reader()
    reader.feed(written[0].read_text())
    lines = [attributes for tag, attributes in reader.tags if tag == "line"]
    assert len(lines) >= 4
    assert "aesthetic" not in [text.strip() for text in reader.text.split("\n")], "no values, no histogram"


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    schemas = {"sources": SOURCES, "clips": CLIPS, "pairs": PAIRS, "outcomes": OUTCOMES, "thumbnails": THUMBNAILS}
    tables = {name: schema.empty_table() for name, schema in schemas.items()}
    tables["decisions"] = decide(tables["clips"], tables["pairs"], None, DecideSettings())
    paths = report.write(tmp_path, tables=tables, funnel=funnel.build(tables, {}, {}), settings=DecideSettings())
    assert all(path.stat().st_size > 100 for path in paths)
