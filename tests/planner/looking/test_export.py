"""Exports hold the whole plan: its steps are made again from the files alone, and equal the lanes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from planner.cli import app
from planner.looking.export import FIELDS
from schemas.command import run_command
from schemas.plan import lanes_of_rank, read_lane, read_plan_meta
from schemas.tables import SAMPLES, read_table

CONFIG = Path(__file__).parents[3] / "configs" / "plan_demo.yaml"


@pytest.fixture(scope="module")
def samples(
    write_set: Callable[..., Path],
    make_shards: Callable[..., list[list[tuple[str, int]]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return write_set(tmp_path_factory.mktemp("export") / "set", make_shards(5, 60))


@pytest.fixture(scope="module")
def plan(samples: Path) -> Path:
    output = samples.parent / "plan"
    more = ["--set", "lanes=4", "--set", "anneal_steps=50", "--set", "max_steps=12"]
    arguments = ["build", "--samples", str(samples), "--config", str(CONFIG), "--output", str(output), *more]
    assert run_command(app, arguments) == 0
    return output


def lane_steps(plan: Path, lane: int) -> list[tuple[int, int, int, str, list[tuple[int, int]]]]:
    """(step, micro, lane, bucket, clips) of each micro-batch of a lane."""
    return [
        (
            row["step"],
            row["micro"],
            lane,
            f"{row['frames']}x{row['height']}x{row['width']}",
            [(clip["shard"], clip["ordinal"]) for clip in row["clips"]],
        )
        for row in read_lane(plan, lane, read_plan_meta(plan)).to_pylist()
    ]


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("ranks", [4, 2, 1])
def test_archives_make_the_steps_again(plan: Path, samples: Path, tmp_path: Path, ranks: int) -> None:
    command = ["export", str(plan), "--npz", str(tmp_path / "out"), "--ranks", str(ranks), "--samples", str(samples)]
    assert run_command(app, command) == 0
    meta = read_plan_meta(plan)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"rank{rank}.npz" for rank in range(ranks)]
    for rank in range(ranks):
        found = load(tmp_path / "out" / f"rank{rank}.npz")
        assert set(found) == set(FIELDS)
        assert str(found["plan_hash"]) == meta.plan_hash and int(found["num_ranks"]) == ranks
        made = []
        for index in range(len(found["row_steps"])):
            clips = found["row_clips"][found["row_offsets"][index] : found["row_offsets"][index + 1]]
            named = list(zip(found["clip_shards"][clips].tolist(), found["clip_ordinals"][clips].tolist(), strict=True))
            assert (found["clip_rows"][clips] <= index).all(), "read before it is used"
            made.append(
                (
                    int(found["row_steps"][index]),
                    int(found["row_micros"][index]),
                    int(found["row_lanes"][index]),
                    str(found["bucket_names"][found["row_buckets"][index]]),
                    named,
                )
            )
        lanes = lanes_of_rank(rank, ranks, meta.num_lanes)
        expected = sorted((row for lane in lanes for row in lane_steps(plan, lane)), key=lambda row: row[:3])
        assert made == expected
        counts = {str(name): 0 for name in found["bucket_names"]}
        for row in expected:
            counts[row[3]] += 1
        assert list(counts.values()) == found["bucket_micro_batches"].tolist()


def test_archives_list_clips_and_shards_in_reading_order(plan: Path, samples: Path, tmp_path: Path) -> None:
    command = ["export", str(plan), "--npz", str(tmp_path / "out"), "--ranks", "4", "--samples", str(samples)]
    assert run_command(app, command) == 0
    meta = read_plan_meta(plan)
    offsets = {
        (row["shard_index"], row["offset"]): row
        for row in read_table(
            samples / "samples.parquet", SAMPLES, columns=["shard_index", "ordinal", "offset", "length"]
        ).to_pylist()
    }
    for lane in range(meta.num_lanes):
        found = load(tmp_path / "out" / f"rank{lane}.npz")
        clips, opened, seen = [], [], set()
        for row in read_lane(plan, lane, meta).to_pylist():
            for read in row["reads"]:
                if (row["epoch"], read["shard"]) not in seen:
                    seen.add((row["epoch"], read["shard"]))
                    opened.append((row["epoch"], read["shard"]))
                at = read["offset"]
                while at < read["offset"] + read["length"]:
                    sample = offsets[read["shard"], at]
                    clips.append((read["shard"], sample["ordinal"], at, sample["length"]))
                    at += sample["length"]
        columns = (found[f"clip_{name}"].tolist() for name in ("shards", "ordinals", "offsets", "lengths"))
        assert list(zip(*columns, strict=True)) == clips
        assert list(zip(found["open_epochs"].tolist(), found["open_shards"].tolist(), strict=True)) == opened
        assert found["shard_names"][0] == "64p/shard-000000.tar"


@pytest.mark.parametrize("ranks", [4, 2])
def test_the_shard_list_is_what_the_lanes_read(plan: Path, tmp_path: Path, ranks: int) -> None:
    target = tmp_path / "reads.json"
    assert run_command(app, ["export", str(plan), "--json", str(target), "--ranks", str(ranks)]) == 0
    written = json.loads(target.read_text())
    meta = read_plan_meta(plan)
    assert written["plan_hash"] == meta.plan_hash and [item["rank"] for item in written["ranks"]] == list(range(ranks))
    for item in written["ranks"]:
        found = [
            (entry["step"], entry["micro"], entry["lane"], entry["shard"], *span)
            for entry in item["reads"]
            for span in entry["ranges"]
        ]
        expected: list[tuple[Any, ...]] = []
        for lane in lanes_of_rank(item["rank"], ranks, meta.num_lanes):
            for row in read_lane(plan, lane, meta).to_pylist():
                for read in row["reads"]:
                    shard = f"64p/shard-{read['shard']:06d}.tar"
                    expected.append((row["step"], row["micro"], lane, shard, read["offset"], read["length"]))
        assert found == sorted(expected, key=lambda entry: entry[:3])


def test_the_same_plan_gives_the_same_bytes(plan: Path, samples: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        command = ["export", str(plan), "--npz", str(tmp_path / name), "--ranks", "2", "--samples", str(samples)]
        assert run_command(app, command) == 0
    assert (tmp_path / "one" / "rank1.npz").read_bytes() == (tmp_path / "two" / "rank1.npz").read_bytes()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ([], 2, "nothing to write"),
        (["--npz", "{tmp}/out"], 2, "add --samples"),
        (["--npz", "{tmp}/full", "--samples", "{samples}"], 2, "not an empty folder"),
        (["--json", "{tmp}/full/file"], 2, "exists already"),
        (["--json", "{tmp}/x.json", "--ranks", "3"], 1, "divides the lanes (1, 2, 4)"),
        (["--npz", "{tmp}/out", "--samples", "{other}"], 1, "give the sets that the plan was built from"),
    ],
)
def test_bad_input_leaves_nothing(
    more: list[str],
    code: int,
    message: str,
    plan: Path,
    samples: Path,
    write_set: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = write_set(tmp_path / "other", [[("33x64x112", index) for index in range(9)]] * 5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("keep")
    places = {"tmp": tmp_path, "samples": samples, "other": other}
    assert run_command(app, ["export", str(plan), *(item.format(**places) for item in more)]) == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other"]


def test_a_clip_used_twice_in_an_epoch_is_read_once(
    write_set: Callable[..., Path], hand_plans: ModuleType, tmp_path: Path
) -> None:
    samples = write_set(tmp_path / "set", [[("1x64x112", 0), ("33x64x112", 1)]])
    table = read_table(samples / "samples.parquet", SAMPLES).to_pylist()
    spans = [(0, row["offset"], row["length"]) for row in table]
    rows = [
        ("1x64x112", [(0, 0)], spans[:1]),
        ("1x64x112", [(0, 1)], spans[1:]),
        ("33x64x112", [(0, 1)], []),
    ]
    sets = [hand_plans.one_set(1, size=spans[1][1] + spans[1][2] + 1024)]
    hand_plans.write_plan(tmp_path / "plan", [rows], {"1x64x112": 1.0, "33x64x112": 2.0}, sets=sets)
    command = ["export", str(tmp_path / "plan"), "--npz", str(tmp_path / "out"), "--samples", str(samples)]
    assert run_command(app, command) == 0
    found = load(tmp_path / "out" / "rank0.npz")
    assert found["row_clips"].tolist() == [0, 1, 1] and found["clip_ordinals"].tolist() == [0, 1]
    assert found["bucket_names"][found["clip_buckets"]].tolist() == ["1x64x112", "1x64x112"]
