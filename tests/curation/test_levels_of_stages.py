"""The shipped stages against the shipped levels: curation's own decisions and the planner's own rules leave no bucket of any stage without clips.

Clips that pass every control are decided on at the default settings, one of each branch for each bucket; a stage's bucket that none of them can reach
is a bucket that stays empty whatever is curated.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curation.captioning.prompt import Subject
from curation.decide import KEEP, decide
from curation.tag_captions import motion_word, subject_of
from curation.thresholds import DecideSettings
from planner.admission import admitted_mask, read_scores
from schemas.buckets import Bucket, nearest_size
from schemas.tables import ADMISSIONS, BRANCHES, CLIPS, LABELS, PAIRS, table_from_rows, write_table
from training.curriculum.chain import StageFile, read_stages
from training.curriculum.stage import StagePart

ROOT = Path(__file__).resolve().parents[2]
STAGES = read_stages(ROOT / "configs" / "train").files
PARTS = [(file, part) for file in STAGES for part in file.stage.parts]
Row = dict[str, Any]


def label_row(clip: Row, action: str) -> Row:
    texts = dict.fromkeys(("caption_long", "caption_short", "caption_first", "subject", "style", "camera_move"), "x")
    flags = dict.fromkeys(("watermark", "nsfw", "padded", "multi_scene", "timelapse"), False)
    more = {"action": action, "quality": "high", "tags": ["a", "b"], "model": "m", "prompt_version": "1"}
    return {"clip_id": clip["clip_id"], **texts, **flags, **more}


def used_clips(part: StagePart, clips: list[tuple[Bucket, Row]], labels: list[Row], folder: Path) -> list[Row]:
    """Those that the part's level admits and the planner's rules leave."""
    table = decide(
        table_from_rows(CLIPS, [clip for _, clip in clips]),
        table_from_rows(PAIRS, []),
        table_from_rows(LABELS, labels),
        DecideSettings(),
    )
    kept = {
        row["clip_id"] for row in table.to_pylist() if row["admission"] == part.admission and row["decision"] == KEEP
    }
    path = folder / "labels.parquet"
    write_table(path, table_from_rows(LABELS, labels), LABELS)
    rows = [
        {"clip_id": clip["clip_id"], "branch": clip["branch"], "bucket": str(bucket)}
        for bucket, clip in clips
        if clip["clip_id"] in kept
    ]
    frame = pl.DataFrame(rows, schema=["clip_id", "branch", "bucket"], orient="row")
    return frame.filter(admitted_mask(frame, part.rules, read_scores(path, part.rules))).to_dicts()


def clips_of(part: StagePart, clip_row: Callable[..., Row]) -> list[tuple[Bucket, Row]]:
    """A clip of each branch for each bucket, at the bucket's length and three times its size."""
    numbers = count()
    found = []
    for bucket in part.buckets:
        kind = "image" if bucket.frames == 1 else "video"
        height, width = 3 * bucket.height, 3 * bucket.width
        assert any(nearest_size(name, height, width) == (bucket.height, bucket.width) for name in part.frames)
        crop = {"top": 0, "left": 0, "bottom": height, "right": width}
        for branch in BRANCHES:
            if branch.startswith(kind):
                clip = clip_row(next(numbers), branch=branch, frames=bucket.frames, crop=crop)
                found.append((bucket, clip))
    return found


@pytest.mark.parametrize(("file", "part"), PARTS, ids=[f"{file.stage.number}-{part.name}" for file, part in PARTS])
def test_every_bucket_of_every_stage_can_have_clips_and_synthetic_video_only_at_720p(
    file: StageFile, part: StagePart, clip_row: Callable[..., Row], tmp_path: Path
) -> None:
    assert part.admission in ADMISSIONS and part.admission in DecideSettings().levels
    clips = clips_of(part, clip_row)
    labels = [label_row(clip, "none" if bucket.frames == 1 else "dynamic") for bucket, clip in clips]
    used = used_clips(part, clips, labels, tmp_path)
    assert {row["bucket"] for row in used} == {str(bucket) for bucket in part.buckets}
    assert {row["branch"] for row in used} >= {"image_real", "image_synthetic"}
    synthetic = {row["bucket"] for row in used if row["branch"] == "video_synthetic"}
    assert synthetic <= {str(bucket) for bucket in part.buckets if "720p" in part.frames}
    assert bool(synthetic) == ("720p" in part.frames), "and there they are used"


def test_only_dynamic_clips_are_fine_tuned_on_at_720p(clip_row: Callable[..., Row], tmp_path: Path) -> None:
    """In the words of both captioners; the rules look at the labels table as curation writes it."""
    by_name = {(file.stage.number, part.name): part for file, part in PARTS}
    main, sft = by_name[10, "main"], by_name[10, "sft"]
    clip = (Bucket.parse("121x736x1280"), clip_row(1))
    for action, dynamic in {
        "dynamic": True,
        motion_word(8.0): True,
        motion_word(4.0): True,
        motion_word(1.0): False,
        "slow": False,
        "static": False,
        "unknown": False,
    }.items():
        labels = [label_row(clip[1], action)]
        assert bool(used_clips(sft, [clip], labels, tmp_path)) == dynamic, action
        assert used_clips(main, [clip], labels, tmp_path), "training at 720p takes every action"
    assert not used_clips(by_name[7, "sft"], [(clip[0], clip_row(2, branch="video_synthetic"))], [], tmp_path)


def test_the_domains_that_are_weighted_are_subjects_of_a_captioner() -> None:
    of_server = set(Subject.__args__)  # type: ignore[attr-defined]
    of_tagger = {subject_of("", index) for index in range(1000)} | {subject_of("airliner", 404)}
    weighted = {name for _, part in PARTS for name in part.domain_weights if part.domain_column == "subject"}
    assert weighted == {"people", "vehicle", "sport", "animal"}
    assert weighted <= of_server and weighted - of_tagger == {"sport"}, "the stage files say so beside the weights"
