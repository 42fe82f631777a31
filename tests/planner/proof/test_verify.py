"""The verifier on files as they are: hashes, missing and broken files, other samples, tars; and what the certificate says."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from mutations import OpenPlan
from mutations.small_sets import build_plan_of, write_small_set

from planner.cli import app
from planner.verify import RULES, report_lines, verify_plan, write_certificate
from schemas.command import run_command
from schemas.errors import DataError, PlanError
from schemas.hashing import table_hash
from schemas.plan import LANE, lane_path, read_lane, read_plan_meta
from schemas.shards import read_set_info, write_set_info
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> OpenPlan:
    home = tmp_path_factory.mktemp("built")
    return build_plan_of("uniform", write_small_set(home / "set", 2), home / "plan", 0)


@pytest.fixture
def plan(built: OpenPlan, tmp_path: Path) -> OpenPlan:
    return built.copied(tmp_path / "plan")


def test_hashes_that_do_not_fit_are_rules_too(plan: OpenPlan) -> None:
    plan.lane(1)[3]["clips"].pop()
    write_table(lane_path(plan.folder, 1), table_from_rows(LANE, plan.lane(1)), LANE)
    assert {"table_hashes", "batch_sizes"} <= set(plan.verify().broken)
    with pytest.raises(PlanError, match="changed after it was built"):
        read_lane(plan.folder, 1, read_plan_meta(plan.folder))
    plan.meta["seed"] += 1
    (plan.folder / "plan.json").write_text(json.dumps(plan.meta))
    assert "plan_hash" in plan.verify().broken


def test_missing_and_surplus_lane_files_are_found(plan: OpenPlan) -> None:
    shutil.copy(lane_path(plan.folder, 0), lane_path(plan.folder, 7))
    lane_path(plan.folder, 2).unlink()
    broken = plan.verify().broken
    assert "lane-0002.parquet does not exist" in " ".join(broken["table_hashes"])
    assert "lane-0007" in " ".join(broken["table_hashes"])
    assert "ledger" in broken and "lane_rows" in broken


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_truncated_lane_file_is_found(keep: float, plan: OpenPlan) -> None:
    path = lane_path(plan.folder, 1)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert "lane-0001.parquet cannot be read" in plan.verify().broken["table_hashes"][0]


def test_a_lane_file_with_a_damaged_page_is_found(plan: OpenPlan) -> None:
    path = lane_path(plan.folder, 1)
    data = bytearray(path.read_bytes())
    data[40:120] = bytes(80)
    path.write_bytes(data)
    assert "table_hashes" in plan.verify().broken


@pytest.mark.parametrize("name", ["rows", "ledger", "spares"])
def test_a_table_that_cannot_be_read_is_named_and_the_rest_is_checked(name: str, plan: OpenPlan) -> None:
    (plan.folder / f"{name}.parquet").write_bytes(b"PAR1")
    report = plan.verify()
    assert f"{name}.parquet cannot be read" in report.broken["table_hashes"][0]
    assert set(report.broken) == {"table_hashes"} | ({"rows_complete"} if name == "rows" else set())


def test_other_samples_are_recognised(plan: OpenPlan, tmp_path: Path) -> None:
    other = write_small_set(tmp_path / "other", 9)
    report = verify_plan(plan.folder, [other])
    assert set(report.broken) == {"samples_hash"}, "what follows from other samples is not said again"
    assert "give the set that it was built from" in report.broken["samples_hash"][0]
    assert {"clips_known", "ledger", "once_per_step"} <= set(report.skipped)
    plan.tables["rows"][1]["predicted_seconds"] *= 2
    plan.save()
    assert set(verify_plan(plan.folder, [other]).broken) == {"samples_hash", "row_costs"}
    with pytest.raises(DataError, match="the plan reads 1 sets"):
        verify_plan(plan.folder, [other, *plan.samples])


def _rewritten(plan: OpenPlan, folder: Path, table: pa.Table, row_group_size: int = 1 << 20) -> None:
    """The plan's samples as another table in `folder`, with the hash of that one in the plan."""
    shutil.copytree(plan.samples[0], folder)
    pq.write_table(table, folder / "samples.parquet", row_group_size=row_group_size)
    plan.samples = [folder]
    plan.meta["sets"][0]["samples_hash"] = table_hash(table)


def test_samples_may_stand_in_any_order_and_any_row_groups(plan: OpenPlan, tmp_path: Path) -> None:
    table = read_table(plan.samples[0] / "samples.parquet", SAMPLES)
    order = np.random.default_rng(0).permutation(len(table))
    _rewritten(plan, tmp_path / "shuffled", table.take(pa.array(order)), row_group_size=13)
    plan.save()
    assert plan.verify().broken == {}


def test_ordinals_may_have_gaps(plan: OpenPlan, tmp_path: Path) -> None:
    table = read_table(plan.samples[0] / "samples.parquet", SAMPLES)
    spread = pa.array(table.column("ordinal").to_numpy() * 3 + 1, pa.int32())
    at = table.column_names.index("ordinal")
    _rewritten(plan, tmp_path / "gaps", table.set_column(at, SAMPLES.field("ordinal"), spread))
    for rows in (plan.tables["ledger"], plan.tables["spares"]):
        for row in rows:
            row["ordinal"] = row["ordinal"] * 3 + 1
    for lane, row, index in plan.clips():
        plan.lane(lane)[row]["clips"][index]["ordinal"] = plan.lane(lane)[row]["clips"][index]["ordinal"] * 3 + 1
    plan.save()
    assert plan.verify().broken == {}
    plan.lane(0)[0]["clips"][0]["ordinal"] += 1
    plan.save()
    assert "clips_known" in plan.verify().broken


@pytest.fixture
def with_tars(write_set: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    samples = write_set(tmp_path / "set", [[("1x64x112", index) for index in range(8)]] * 2, tars=True)
    config = tmp_path / "plan.yaml"
    config.write_text("lanes: 2\nmax_tokens_per_micro_batch: 56\n")
    arguments = ["build", "--samples", str(samples), "--config", str(config), "--output", str(tmp_path / "plan")]
    assert run_command(app, arguments) == 0
    return tmp_path / "plan", samples


def test_changed_tars_are_named(with_tars: tuple[Path, Path]) -> None:
    plan, samples = with_tars
    report = verify_plan(plan, [samples])
    assert report.ok and "shard_files" not in report.skipped
    with (samples / "shard-000001.tar").open("ab") as stream:
        stream.write(bytes(512))
    (samples / "shard-000000.tar").unlink()
    messages = " ".join(verify_plan(plan, [samples]).broken["shard_files"])
    assert "shard-000000.tar has no file" in messages and "shard-000001.tar has" in messages


def test_a_tar_that_was_changed_without_changing_its_size_is_named(with_tars: tuple[Path, Path]) -> None:
    plan, samples = with_tars
    info = read_set_info(samples)
    times = [(samples / shard.name).stat().st_mtime_ns for shard in info.shards]
    shards = [shard.model_copy(update={"modified_ns": time}) for shard, time in zip(info.shards, times, strict=True)]
    write_set_info(samples, info.model_copy(update={"shards": tuple(shards)}))
    assert verify_plan(plan, [samples]).ok
    os.utime(samples / "shard-000001.tar", ns=(times[1], times[1] + 1))
    broken = verify_plan(plan, [samples]).broken
    assert set(broken) == {"shard_files"} and "shard-000001.tar was changed" in broken["shard_files"][0]


def test_the_bound_knows_how_many_rows_there_may_be_and_not_how_many_there_are(plan: OpenPlan) -> None:
    whole = plan.verify().bounds["used_share_upper_bound"]
    largest = max(entry["clips_per_lane"] for entry in plan.meta["batches"])
    plan.meta["num_steps"] = 1
    plan.save()
    assert plan.verify().bounds["used_share_upper_bound"] == whole, (
        "a plan of few steps does not prove that there are no more"
    )
    plan.meta["config"]["max_steps"] = 1
    plan.save()
    bound = plan.verify().bounds["used_share_upper_bound"]
    assert bound == pytest.approx(2 * 3 * largest / (plan.meta["admitted_clips"] * 2))
    assert bound < whole <= 1


def test_the_used_share_is_what_integer_batches_allow(built: OpenPlan) -> None:
    bounds = built.verify().bounds
    assert bounds["used_share"] <= bounds["used_share_upper_bound"] < 1


@pytest.mark.parametrize("sync", ["micro", "step"])
def test_predicted_seconds_follow_the_sync(sync: str, tmp_path: Path) -> None:
    plan = build_plan_of("tiers", write_small_set(tmp_path / "set", 4), tmp_path / "plan", 0)
    plan.meta["sync"] = sync
    plan.save()
    bounds = plan.verify().bounds
    seconds = {entry["bucket"]: entry["predicted_seconds"] for entry in plan.meta["batches"]}
    lanes = [
        [seconds[f"{row['frames']}x{row['height']}x{row['width']}"] for row in plan.lane(lane)]
        for lane in range(plan.num_lanes)
    ]
    by_row = sum(max(row) for row in zip(*lanes, strict=True))
    by_step = sum(max(sum(lane[row : row + 2]) for lane in lanes) for row in range(0, len(lanes[0]), 2))
    assert bounds["predicted_seconds"] == pytest.approx(by_row if sync == "micro" else by_step)
    mean, sort = bounds["predicted_seconds_mean_bound"], bounds["predicted_seconds_sort_bound"]
    assert mean == pytest.approx(sum(map(sum, lanes)) / plan.num_lanes)
    assert mean <= sort <= by_row and mean <= by_step <= by_row
    assert bounds["predicted_gap"] == pytest.approx(
        bounds["predicted_seconds"] / (sort if sync == "micro" else mean) - 1
    )


def test_a_check_that_fails_leaves_no_older_certificate(plan: OpenPlan) -> None:
    path = write_certificate(plan.folder, plan.verify())
    assert path.is_file()
    plan.lane(1)[3]["clips"].pop()
    plan.save()
    assert plan.verify().broken
    assert not path.exists()
    path.write_text("{}")
    (plan.folder / "plan.json").unlink()
    with pytest.raises(PlanError, match=r"plan.json is missing"):
        plan.verify()
    assert not path.exists()


def test_the_certificate_says_what_was_proved(plan: OpenPlan) -> None:
    report = plan.verify()
    certificate = json.loads(write_certificate(plan.folder, report).read_text())
    meta = read_plan_meta(plan.folder)
    assert certificate["plan_hash"] == meta.plan_hash
    assert set(certificate["rules_that_hold"]) | set(certificate["rules_not_checked"]) == set(RULES)
    assert certificate["rules_not_checked"].keys() == {"shard_files", "clips_cap"}
    assert "max_buffer_clips is null" in certificate["rules_not_checked"]["clips_cap"]
    assert certificate["bounds"]["used_share"] == pytest.approx(meta.used_share)
    assert certificate["bounds"]["peak_buffer_bytes"] == max(meta.peak_buffer_bytes)
    assert certificate["bounds"]["peak_open_shards"] <= certificate["bounds"]["max_open_shards"]
    assert certificate["counts"]["bytes_read_unused"] == 0
    assert certificate["formulas"].keys() < certificate["bounds"].keys()
    assert plan.verify().ok, "the certificate is no part of the hash"


def test_a_plan_without_peaks_and_caps_of_its_own_is_not_held_to_them(plan: OpenPlan) -> None:
    plan.meta |= {"peak_buffer_clips": [], "peak_open_shards": [], "max_open_shards": None}
    plan.meta["config"]["max_open_shards"] = None
    plan.save()
    report = plan.verify()
    assert report.broken == {}
    assert report.skipped["peak_clips"] == "plan.json gives no peak_buffer_clips"
    plan.meta["max_open_shards"] = 4
    plan.save()
    assert "peak_open_shards" in plan.verify().broken, "a cap without the peak under it"


def test_reports_are_the_same_each_time_and_count_what_they_do_not_word(plan: OpenPlan) -> None:
    for lane in range(plan.num_lanes):
        for row in plan.lane(lane):
            row["clips"].pop()
    plan.save()
    first, again = plan.verify(), plan.verify()
    assert (first.broken, first.broken_counts, first.counts) == (again.broken, again.broken_counts, again.counts)
    rows = len(plan.tables["rows"]) * plan.num_lanes
    assert first.broken_counts["batch_sizes"] == rows
    assert any(line.strip() == f"- and {rows - 5:,} more" for line in report_lines(first))


def test_lines_give_each_rule_and_the_bounds(built: OpenPlan) -> None:
    lines = list(report_lines(built.verify()))
    assert [line.split()[1] for line in lines[: len(RULES)]] == list(RULES)
    assert any("by any schedule with this batch table" in line for line in lines)
