"""The funnel: counts, and identities that notice what was lost or counted twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation import funnel
from curation.decide import DecideSettings, decide
from schemas.errors import DataError
from schemas.tables import CLIPS, OUTCOMES, PAIRS, SAMPLES, SOURCES, table_from_rows

Row = dict[str, Any]
Tables = dict[str, pa.Table]


def source_row(name: str, status: str = "ok", **changes: Any) -> Row:
    facts = {
        "uri": f"file:///{name}",
        "size_bytes": 10,
        "kind": "video",
        "branch": "video_real",
        "domain": "",
        "licence": "",
    }
    reason = None if status == "ok" else "it broke"
    return dict.fromkeys(SOURCES.names) | facts | {"status": status, "reason": reason} | changes


def sample_row(clip: Row, **changes: Any) -> Row:
    place = {"set": "64p", "shard_index": 0, "ordinal": 0, "offset": 0, "length": 1, "members": []}
    shape = {"latent_shape": [31, 16, 8, 14], "frames": 121, "height": 64, "width": 112}
    text = {f"text_tokens_{kind}": 3 for kind in ("long", "short", "first")}
    facts = {name: clip[name] for name in ("clip_id", "branch", "domain", "start_us")}
    labels = {"subject": "", "style": "", "source": clip["content_hash"], "admissions": ["144p"], "has_teacher": True}
    return {**place, **shape, **text, **facts, **labels, **changes}


@pytest.fixture
def tables(clip_row: Callable[..., Row]) -> Tables:
    """Five clips, three kept at the first level; four sources."""
    clips = [clip_row(0), clip_row(1), clip_row(2), clip_row(3, luma=1.0), clip_row(4, luma=1.0, motion=0.0)]
    table = table_from_rows(CLIPS, clips)
    pairs = table_from_rows(PAIRS, [])
    sources = [
        source_row("a"),
        source_row("b", "truncated"),
        source_row("c", "failed"),
        source_row("d", same_content_as="file:///a"),
    ]
    return {
        "sources": table_from_rows(SOURCES, sources),
        "clips": table,
        "pairs": pairs,
        "decisions": decide(table, pairs, None, DecideSettings()),
        "outcomes": OUTCOMES.empty_table(),
    }


def packed(tables: Tables, count: int) -> pa.Table:
    good = [row for row in tables["clips"].to_pylist() if row["luma"] > 20]
    return table_from_rows(SAMPLES, [sample_row(row, ordinal=place) for place, row in enumerate(good[:count])])


def built(tables: Tables, samples: pa.Table) -> Row:
    return funnel.build(tables, {"64p": samples}, {"64p": "144p"})


def test_counts_of_every_step(tables: Tables) -> None:
    counts = built(tables, packed(tables, 3))
    funnel.check(counts)
    assert counts["sources"]["by_status"] == {"ok": 2, "truncated": 1, "failed": 1, "quarantined": 0}
    assert counts["sources"]["by_reason"] == {"failed: it broke": 1, "truncated: it broke": 1}
    assert counts["sources"]["same_content"] == 1
    first = counts["admissions"]["144p"]
    assert (first["kept"], first["rejected"]) == (3, 2)
    assert first["rejected_by_reason"] == {"static": 1, "too_dark": 1}
    assert counts["sets"]["64p"]["by_bucket"] == {"121x64x112": 3}
    assert all(entry["holds"] for entry in counts["identities"])


def test_a_clip_that_failed_later_is_in_the_sum(tables: Tables) -> None:
    samples = packed(tables, 2)
    kept = {row["clip_id"] for row in tables["decisions"].to_pylist() if row["decision"] == "keep"}
    lost = (kept - set(samples.column("clip_id").to_pylist())).pop()
    row = {"clip_id": lost, "phase": "encode", "set": "64p", "reason": "timed out after 9 s"}
    counts = built(tables | {"outcomes": table_from_rows(OUTCOMES, [row])}, samples)
    funnel.check(counts)
    assert counts["sets"]["64p"]["failed_by_reason"] == {"encode: timed out after 9 s": 1}


def test_lost_and_doubled_clips_are_noticed(tables: Tables) -> None:
    with pytest.raises(DataError, match=r"kept = packed \+ outcomes, set 64p: 3 against 2"):
        funnel.check(built(tables, packed(tables, 2)))
    doubled = pa.concat_tables([packed(tables, 2), packed(tables, 1)])
    with pytest.raises(DataError, match="set 64p"):
        funnel.check(built(tables, doubled))
    dark = next(row for row in tables["clips"].to_pylist() if row["luma"] < 20)
    swapped = pa.concat_tables([packed(tables, 2), table_from_rows(SAMPLES, [sample_row(dark)])])
    with pytest.raises(DataError, match="set 64p"):
        funnel.check(built(tables, swapped))


def test_a_missing_decision_and_an_unknown_status_are_noticed(tables: Tables) -> None:
    short = tables | {"decisions": tables["decisions"].slice(1)}
    with pytest.raises(DataError, match=r"clips = kept \+ rejected, 144p"):
        funnel.check(built(short, packed(tables, 3)))
    strange = tables | {"sources": table_from_rows(SOURCES, [source_row("a", "vanished")])}
    with pytest.raises(DataError, match="sources ="):
        funnel.check(built(strange, packed(tables, 3)))


def test_files_say_the_same(tables: Tables, tmp_path: Path) -> None:
    counts = built(tables, packed(tables, 3))
    funnel.write(tmp_path, counts)
    assert json.loads((tmp_path / "funnel.json").read_text()) == counts
    text = (tmp_path / "funnel.txt").read_text()
    for told in ("ok 2, truncated 1, failed 1", "too_dark", "set 64p", "adds up"):
        assert told in text
    assert "DOES NOT" not in text
    assert "DOES NOT ADD UP: 3 against 2" in funnel.render(built(tables, packed(tables, 2)))


def test_an_empty_run_adds_up() -> None:
    empty = {"sources": SOURCES, "clips": CLIPS, "pairs": PAIRS, "outcomes": OUTCOMES}
    tables = {name: schema.empty_table() for name, schema in empty.items()}
    tables["decisions"] = decide(tables["clips"], tables["pairs"], None, DecideSettings())
    counts = funnel.build(tables, {}, {})
    funnel.check(counts)
    assert "none" in funnel.render(counts)
