"""The page: self-contained, escaped, and showing each reason, each group of copies and what the filters take away."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curation import funnel
from curation.decide import DecideSettings, decide
from curation.report.near import near_limits
from curation.report.page import render_report
from curation.report.shares import kept_shares
from curation.timings import Stopwatch
from schemas.tables import CLIPS, DECISIONS, OUTCOMES, PAIRS, SOURCES, THUMBNAILS, table_from_rows

Row = dict[str, Any]
Tables = dict[str, pa.Table]


class Reader(HTMLParser):
    """Tags with their attributes, text outside of scripts, and the data blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.blocks: dict[str, Any] = {}
        self._block: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._block = (dict(attrs).get("id") or "script") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._block = None

    def handle_data(self, data: str) -> None:
        if self._block is None:
            self.text += data
        elif self._block != "script":
            self.blocks[self._block] = json.loads(data)


@pytest.fixture
def files(tables: Tables) -> dict[str, bytes]:
    return render_report(
        tables=tables, samples={}, funnel=funnel.build(tables, {}, {}), settings=DecideSettings(), timings=None
    )


@pytest.fixture
def page(files: dict[str, bytes]) -> Reader:
    reader = Reader()
    reader.feed(files["index.html"].decode())
    return reader


def test_the_page_is_self_contained_and_escaped(files: dict[str, bytes], page: Reader, nasty: str) -> None:
    html = files["index.html"].decode()
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert nasty not in html, "what comes from data is never markup"
    assert nasty in page.text, "and reads as it was written"
    assert not re.search(r"(src|href)='?\"?(https?|file):", html)
    scripts = [attributes for tag, attributes in page.tags if tag == "script" and "type" not in attributes]
    assert len(scripts) == 1, "one script, ours; data blocks do not run"
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None and "default-src 'none'" in policy and "'unsafe-inline'; script-src 'sha256-" in policy


def test_every_figure_has_its_strip_and_its_story(page: Reader, tables: Tables) -> None:
    shown = {attributes["data-clip"] for tag, attributes in page.tags if tag == "figure" and "data-clip" in attributes}
    assert shown == set(page.blocks["strips"]) == set(page.blocks["stories"])
    assert len(shown) >= 30
    for clip_id, text in page.blocks["strips"].items():
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert image.size == (192, 36)
        assert page.blocks["stories"][clip_id].startswith(f"clip     {clip_id}")


def test_every_reason_is_shown_with_measure_value_and_limit(page: Reader) -> None:
    for told in (
        "too_dark (luma 1, limit 16)",
        "static (motion 0, limit 0.05)",
        "duplicate (cosine 0.91)",
        "keep: 40 clips at level 144p, 24 shown",
        "Sources that were not read to the end: 1 of 48",
    ):
        assert told in page.text


def test_copies_stand_beside_the_clip_that_was_kept(files: dict[str, bytes], tables: Tables) -> None:
    html = files["index.html"].decode()
    group = html.split("<div class='group'>")[1].partition("</figure></div>")[0]
    decisions = tables["decisions"].to_pylist()
    rows = [row for row in decisions if row["admission"] == "144p" and row["decision"] == "duplicate"]
    assert len(rows) == 2
    assert group.count("<figure") == 3 and group.count("class='kept'") == 1
    for row in rows:
        assert row["clip_id"] in group and row["duplicate_of"] in group


def test_shares_show_what_a_filter_takes_from_a_group(tables: Tables, page: Reader) -> None:
    shares = kept_shares(tables, "144p")
    domains = {group.name: group for group in shares["domain"]}
    assert (domains["night"].seen, domains["night"].kept) == (4, 0)
    assert (domains["city"].seen, domains["city"].kept) == (43, 40)
    assert shares["domain"][0].name == "night", "the group that loses most stands first"
    assert {group.name for group in shares["subject"]} == {"animals", "people"}
    assert sum(group.seen for group in shares["subject"]) == 44, "by label, only captioned clips are seen"
    low = [attributes for tag, attributes in page.tags if tag == "tr" and attributes.get("class") == "low"]
    assert low, "the night is marked"


def test_near_limits_are_the_nearest_on_both_sides(clip_row: Callable[..., Row]) -> None:
    clips = [clip_row(number, luma=10.0 + number) for number in range(20)]
    found = near_limits(table_from_rows(CLIPS, clips), DecideSettings().levels["144p"])
    luma = next(near for near in found if near.measure == "luma" and near.limit == 16.0)
    assert [value for _, value in luma.below] == [15.0, 14.0, 13.0, 12.0, 11.0, 10.0]
    assert [value for _, value in luma.above] == [16.0, 17.0, 18.0, 19.0, 20.0, 21.0]
    assert all(clip in {row["clip_id"] for row in clips} for clip, _ in luma.below)


def test_a_score_without_value_is_near_nothing(clip_row: Callable[..., Row]) -> None:
    clips = [clip_row(number, motion=None, motion_model=None, motion_reason="image") for number in range(3)]
    found = near_limits(table_from_rows(CLIPS, clips), DecideSettings().levels["144p"])
    assert "motion" not in {near.measure for near in found}


def test_times_of_the_last_command_that_worked(tables: Tables) -> None:
    watch = Stopwatch()
    with watch.phase("analyze") as counts:
        counts["done"] = 2
        result = {"status": "done", "attempts": 1}
        units = [
            {"parts": {"analyze": {"unit": name}}, "results": {"analyze": {**result, "seconds": seconds}}}
            for name, seconds in (("a", 1.0), ("b", 3.0))
        ]
        watch.units("analyze", units)
    counted = funnel.build(tables, {}, {})
    files = render_report(tables=tables, samples={}, funnel=counted, settings=DecideSettings(), timings=watch.table())
    reader = Reader()
    reader.feed(files["index.html"].decode())
    assert "4.00" in reader.text and "2.00" in reader.text and "3.00" in reader.text


def test_the_picture_has_every_section(files: dict[str, bytes]) -> None:
    with Image.open(io.BytesIO(files["contact_sheet.png"])) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len({tuple(colour) for colour in pixels.reshape(-1, 3)[::7].tolist()}) > 10


def test_histograms_have_the_limits_drawn_in(page: Reader) -> None:
    lines = [attributes for tag, attributes in page.tags if tag == "line"]
    assert len(lines) >= 4
    assert "aesthetic" not in [text.strip() for text in page.text.split("\n")], "no values, no histogram"


def test_an_empty_run_has_a_page() -> None:
    schemas = {"sources": SOURCES, "clips": CLIPS, "pairs": PAIRS, "outcomes": OUTCOMES, "thumbnails": THUMBNAILS}
    tables = {name: schema.empty_table() for name, schema in schemas.items()}
    tables["decisions"] = decide(tables["clips"], tables["pairs"], None, DecideSettings())
    files = render_report(
        tables=tables, samples={}, funnel=funnel.build(tables, {}, {}), settings=DecideSettings(), timings=None
    )
    assert all(len(content) > 100 for content in files.values())


def test_a_keeper_of_an_earlier_run_is_named_beside_its_copy(tables: Tables) -> None:
    """Its clip and strip are in the other run's tables: the group shows its id, and the page has no picture or story of it."""
    old = "0" * 31 + "f"
    decisions = tables["decisions"].to_pylist()
    copy = next(row for row in decisions if row["decision"] == "keep")
    copy |= {"decision": "duplicate", "duplicate_of": old}
    changed = {**tables, "decisions": table_from_rows(DECISIONS, decisions)}
    page = render_report(
        tables=changed, samples={}, funnel=funnel.build(tables, {}, {}), settings=DecideSettings(), timings=None
    )["index.html"].decode("utf-8")
    assert f"{old}, a clip of an earlier run" in page
    reader = Reader()
    reader.feed(page)
    assert copy["clip_id"] in reader.blocks["stories"]
    assert old not in reader.blocks["stories"] and old not in reader.blocks["strips"]
