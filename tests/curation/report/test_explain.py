"""A clip's whole story, and what other thresholds would change, from tables alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.cli import main
from curation.decide import DecideSettings, decide
from curation.explain import explain
from curation.what_if import changed_config, compare_decisions, what_if
from schemas.errors import ConfigError, UsageError
from schemas.tables import OUTCOMES, TABLES, table_from_rows, write_table

Row = dict[str, Any]
Tables = dict[str, pa.Table]


def told(wanted: str, tables: Tables) -> str:
    return explain(wanted, tables, {}, DecideSettings())


def test_the_story_of_a_rejected_clip(tables: Tables, clips: list[Row]) -> None:
    dark = clips[42]
    story = told(dark["clip_id"][:12], tables)
    assert story.startswith(f"clip     {dark['clip_id']}, video_real, domain night")
    assert "144p  too_dark (luma 1, limit 16)" in story
    assert "aesthetic                   not computable: no weights given" in story
    assert "luma                        1          levels, by test" in story
    assert "shot 0, 0.000 to 5.042 s: 121 frames at 24 fps" in story
    assert "ok: h264, 1920x1080, 24.000 fps, 90.00 s, 1,000 bytes" in story


def test_the_story_of_a_copy_names_the_other_both_ways(tables: Tables, clips: list[Row]) -> None:
    decisions = {row["clip_id"]: row for row in tables["decisions"].to_pylist() if row["admission"] == "144p"}
    group = [clips[0], clips[40], clips[41]]
    copies = [clip for clip in group if decisions[clip["clip_id"]]["decision"] == "duplicate"]
    keeper = decisions[copies[0]["clip_id"]]["duplicate_of"]
    story = told(copies[0]["clip_id"], tables)
    assert f"144p  duplicate of {keeper}" in story
    offsets = []
    for clip in group[:2]:
        line = next(
            line for line in told(clip["clip_id"], tables).splitlines() if " copy: " in f" {line.split(None, 1)[-1]}"
        )
        assert "cosine 0.910, mean 0.900, 3 of 3 frames agree" in line
        offsets.append(line.rsplit("offset ", 1)[1])
    assert sorted(offsets) == ["+0.25 s", "-0.25 s"], "seen from the other clip the offset turns round"


def test_a_failure_after_the_decision_and_the_captions_are_told(tables: Tables, clips: list[Row]) -> None:
    row = {"clip_id": clips[3]["clip_id"], "phase": "encode", "set": "144p", "reason": "timed out after 9 s"}
    story = told(clips[3]["clip_id"], tables | {"outcomes": table_from_rows(OUTCOMES, [row])})
    assert "144p: failed in encode: timed out after 9 s" in story
    assert "caption_short: caption <script>" in story and "subject: animals" in story
    assert "yes/no labels: not judged by this captioner" in story


def test_a_decision_on_disk_by_other_thresholds_is_told_apart(tables: Tables, clips: list[Row]) -> None:
    strict = DecideSettings.model_validate({"levels": {"144p": {"min_luma": 125.0}}})
    story = explain(clips[3]["clip_id"], tables, {}, strict)
    assert "144p  too_dark (luma 120, limit 125) (the decision on disk, by other thresholds or labels: keep)" in story


def test_a_source_is_told_with_its_clips(tables: Tables, clips: list[Row]) -> None:
    story = told("films/52.mp4", tables)
    assert clips[44]["clip_id"] in story and "144p too_dark" in story
    bad = tables["sources"].to_pylist()[0]
    assert "failed: cannot be opened" in told(bad["uri"][-9:], tables)


def test_an_unknown_or_ambiguous_name_is_refused(tables: Tables) -> None:
    with pytest.raises(UsageError, match="neither the start of a clip id nor the end"):
        told("nothing-like-it", tables)
    with pytest.raises(UsageError, match="is the start of 47 clip ids"):
        told("", tables)


def test_what_if_tells_the_change_of_the_funnel(tables: Tables, clips: list[Row]) -> None:
    before = DecideSettings()
    after = DecideSettings.model_validate({"levels": {"144p": {"min_luma": None, "min_motion": None}}})
    text = what_if(tables["clips"], tables["pairs"], None, before, after)
    first = text.split("360p:")[0]
    assert "144p: kept 40 -> 45 (+5)" in first
    assert "too_dark                    4 -> 0        (-4)" in first and "static" in first
    assert f"{clips[42]['clip_id']} (too_dark)" in first and "would come in" in first
    assert "360p" in text and "no change" in text.split("360p:")[1]
    assert text.endswith("5 of 47 clips would change at some level; nothing was written\n")


def test_equal_settings_change_nothing(tables: Tables) -> None:
    decisions = decide(tables["clips"], tables["pairs"], None, DecideSettings())
    text = compare_decisions(decisions, decisions)
    assert text.count("no change") == 5 and "0 of 47 clips" in text


def test_changes_are_keys_of_the_decide_section(tmp_path: Path) -> None:
    path = tmp_path / "curate.yaml"
    path.write_text(f"output: {tmp_path}/out\nsources: [{tmp_path}]\n")
    changed = changed_config(path, [], ["levels.144p.min_motion=0.2", "decide.levels.360p.max_nsfw=0.1"])
    assert changed.decide.levels["144p"].min_motion == 0.2 and changed.decide.levels["360p"].max_nsfw == 0.1
    with pytest.raises(ConfigError, match="did you mean 'min_motion'"):
        changed_config(path, [], ["levels.144p.min_motoin=0.2"])
    with pytest.raises(UsageError, match="expected key=value"):
        changed_config(path, [], ["levels.144p.min_motion"])


def test_the_commands_that_only_tell_write_nothing(
    tables: Tables, clips: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Digests of every file below the output, and the times of its folders, around `decide --what-if --explain`."""
    output, config = tmp_path / "out", tmp_path / "curate.yaml"
    config.write_text(f"output: {output}\nsources: [{tmp_path}]\n")
    for name, table in tables.items():
        write_table(output / "tables" / f"{name}.parquet", table, TABLES[name])

    def state() -> dict[str, str | int]:
        return {
            str(path.relative_to(tmp_path)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else path.stat().st_mtime_ns
            for path in (output, *output.rglob("*"))
        }

    before = state()
    dark = clips[42]["clip_id"]
    arguments = ["--what-if", "levels.144p.min_luma=null", "--explain", dark]
    assert main(["decide", "--config", str(config), *arguments]) == 0
    said = capsys.readouterr().out
    assert f"clip     {dark}" in said and f"{dark} (too_dark)" in said and "nothing was written" in said
    assert len(before) > len(tables) and state() == before
