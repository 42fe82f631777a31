"""Lengths of a set's clips (`frames`): longer clips are used shorter, sets apart, images stay images; planned, and proved by the verifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.samples import load_corpus
from planner.settings import PlanConfig
from planner.verify import verify_plan
from schemas.config import build_config, read_yaml
from schemas.errors import ConfigError, DataError, UsageError
from schemas.files import write_json
from schemas.plan import plan_hash

ALL = ["1x64x112", "33x64x112", "65x64x112", "121x64x112"]


@pytest.fixture(scope="module")
def two_sets(write_set: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sets 64p and 144p with eight clips of each length; sizes of the second are others."""
    root = tmp_path_factory.mktemp("lengths")
    small = [[(bucket, index) for index, bucket in enumerate(ALL * 2)] for _ in range(4)]
    large = [[(bucket.replace("64x112", "144x256"), source) for bucket, source in shard] for shard in small]
    return [write_set(root / "small", small), write_set(root / "large", large, name="144p", seed=1)]


def buckets(folders: list[Path], frames: dict[str, Any]) -> dict[str, int]:
    corpus = load_corpus(folders, "144p", frames=frames)
    return {str(corpus.buckets[index]): count for index, count in sorted(Counter(corpus.bucket.tolist()).items())}


def test_clips_take_the_longest_length_that_they_have(two_sets: list[Path]) -> None:
    assert buckets(two_sets[:1], {"64p": (1, 33)}) == {"1x64x112": 8, "33x64x112": 24}
    assert buckets(two_sets[:1], {"64p": (33, 121)}) == {"33x64x112": 16, "121x64x112": 8}
    assert buckets(two_sets[:1], {"64p": (1,)}) == {"1x64x112": 8}, "a video is not made an image"
    assert buckets(two_sets[:1], {}) == dict.fromkeys(ALL, 8)


def test_a_bridge_takes_videos_of_one_set_and_images_of_another(
    two_sets: list[Path], planned: Callable[..., Any], check: Callable[..., Any], tmp_path: Path
) -> None:
    frames = {"64p": [33, 65], "144p": [1]}
    run, meta = planned(two_sets, tmp_path / "plan", frames=frames, shorten_left_over=False)
    assert {entry.bucket: entry.clips_in_set for entry in meta.batches} == {
        "1x144x256": 8,
        "33x64x112": 8,
        "65x64x112": 16,
    }
    assert meta.admitted_clips == 32
    assert run.corpus.clips_in_tables == 64
    report = verify_plan(tmp_path / "plan", two_sets)
    assert report.ok, report.broken
    assert meta.metrics["shortened_uses"] == 0


def test_the_verifier_sees_lengths_that_are_not_those_of_the_plan(
    two_sets: list[Path], planned: Callable[..., Any], tmp_path: Path
) -> None:
    planned(two_sets[:1], tmp_path / "plan", frames={"64p": [1, 33]})
    meta = read_yaml(tmp_path / "plan" / "plan.json")
    meta["config"]["frames"] = {"64p": [33]}
    write_json(tmp_path / "plan" / "plan.json", {**meta, "plan_hash": plan_hash(meta)})
    report = verify_plan(tmp_path / "plan", two_sets[:1])
    assert "admission_rules" in report.broken


def test_what_cannot_be_is_refused_in_words(two_sets: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"frames.360p \(config\) names a set that is not given"):
        load_corpus(two_sets, "144p", frames={"360p": (1,)})
    with pytest.raises(DataError, match="has one of the lengths"):
        only_images = {"64p": (1,)}
        load_corpus([_images_left_out(two_sets)], "144p", frames=only_images)
    with pytest.raises(ConfigError, match=r"frames.64p is \[7\], expected one or more of \[1, 33, 65, 121\]"):
        values = {"lanes": 1, "max_tokens_per_micro_batch": 1, "frames": {"64p": [7]}}
        build_config(PlanConfig, values, source="plan.yaml")


def _images_left_out(two_sets: list[Path]) -> Path:
    """A copy of the small set with its videos alone."""
    import shutil

    from schemas.shards import samples_path
    from schemas.tables import SAMPLES, read_table, table_from_rows, write_table

    folder = two_sets[0].with_name("videos")
    shutil.copytree(two_sets[0], folder)
    rows = [row for row in read_table(samples_path(folder), SAMPLES).to_pylist() if row["frames"] > 1]
    write_table(samples_path(folder), table_from_rows(SAMPLES, rows), SAMPLES)
    return folder
