"""The verifier catches what it should: every kind of damage, with all hashes made to fit, is named by its rule; legal changes pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from planner.building import build_plan, write_plan
from planner.samples import load_corpus
from planner.settings import PlanConfig
from planner.verify import RULES, verify_plan, write_certificate
from schemas.errors import DataError, PlanError
from schemas.hashing import table_hash
from schemas.plan import LANE, LEDGER, ROWS, SPARES, lane_path, plan_hash, read_lane, read_plan_meta
from schemas.shards import samples_path
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table

Rows = list[dict[str, Any]]


@dataclass
class Opened:
    """A plan as plain lists, to be damaged; `save` writes it back with all hashes fitting."""

    folder: Path
    samples: Path
    meta: dict[str, Any]
    tables: dict[str, Rows]

    @classmethod
    def open(cls, folder: Path, samples: Path) -> Opened:
        meta = json.loads((folder / "plan.json").read_text())
        names = {"rows": ROWS, "ledger": LEDGER, "spares": SPARES}
        tables = {name: read_table(folder / f"{name}.parquet", schema).to_pylist() for name, schema in names.items()}
        for lane in range(meta["num_lanes"]):
            tables[f"lane-{lane:04d}"] = read_table(lane_path(folder, lane), LANE).to_pylist()
        return cls(folder, samples, meta, tables)

    def lane(self, lane: int) -> Rows:
        return self.tables[f"lane-{lane:04d}"]

    def save(self) -> None:
        for name, rows in self.tables.items():
            schema = {"rows": ROWS, "ledger": LEDGER, "spares": SPARES}.get(name, LANE)
            path = self.folder / (f"lanes/{name}.parquet" if name.startswith("lane-") else f"{name}.parquet")
            table = table_from_rows(schema, rows)
            write_table(path, table, schema)
            self.meta["table_hashes"][name] = table_hash(table)
        self.meta["plan_hash"] = plan_hash(self.meta)
        (self.folder / "plan.json").write_text(json.dumps(self.meta))

    def broken(self) -> set[str]:
        self.save()
        return set(verify_plan(self.folder, [self.samples]).broken)


@pytest.fixture(scope="module")
def built(
    write_set: Callable[..., Path],
    make_shards: Callable[..., list[list[tuple[str, int]]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("built")
    samples = write_set(
        home / "set", make_shards(4, 50, seed=2), admissions=lambda index: ["144p"] if index % 11 else []
    )
    config = PlanConfig.model_validate(
        {
            "lanes": 3,
            "micro_per_step": 2,
            "epochs": 2,
            "max_tokens_per_micro_batch": 1024,
            "anneal_steps": 100,
            "cost": {"preset": "tiny"},
        }
    )
    write_plan(build_plan(load_corpus([samples], "144p"), config), home / "plan")
    return home / "plan", samples


@pytest.fixture
def opened(built: tuple[Path, Path], tmp_path: Path) -> Opened:
    plan, samples = built
    shutil.copytree(plan, tmp_path / "plan")
    return Opened.open(tmp_path / "plan", samples)


def drop_clip(plan: Opened) -> None:
    plan.lane(1)[3]["clips"].pop()


def duplicate_clip(plan: Opened) -> None:
    """A clip takes the place of another one of its bucket, in a later row of the same epoch."""
    rows = [row for row in plan.lane(0) if row["epoch"] == 0]
    for index, row in enumerate(rows):
        for later in rows[index + 1 :]:
            if all(later[key] == row[key] for key in ("frames", "height", "width")):
                later["clips"][0] = row["clips"][0]
                return
    raise AssertionError("no bucket has two rows")


def repeat_in_the_next_step(plan: Opened) -> None:
    """The first row of an epoch joins the last step of the one before, and the lane's last clip there comes again: legal but for the step."""
    rows = plan.lane(0)
    for index, row in enumerate(rows[1:], start=1):
        if row["epoch"] == 0:
            continue
        for earlier in rows[:index]:
            if all(earlier[key] == row[key] for key in ("frames", "height", "width")) and row["step"] > earlier["step"]:
                for lane in ("rows", "lane-0000", "lane-0001", "lane-0002"):
                    plan.tables[lane][index]["step"] = earlier["step"]
                row["clips"][0] = earlier["clips"][0]
                return
    raise AssertionError("no bucket is in both epochs")


def change_clip(plan: Opened) -> None:
    """A clip of one lane becomes one that the epoch leaves over, of the same bucket."""
    for entry in plan.tables["ledger"]:
        for row in plan.lane(2):
            same = all(entry[key] == row[key] for key in ("epoch", "frames", "height", "width"))
            if same:
                row["clips"][0] = {"shard": entry["shard"], "ordinal": entry["ordinal"]}
                return
    raise AssertionError("the set has no such clip")


def swap_between_lanes(plan: Opened) -> None:
    one, other = plan.lane(0)[0], plan.lane(1)[0]
    one["clips"][0], other["clips"][0] = other["clips"][0], one["clips"][0]


def wrong_bucket(plan: Opened) -> None:
    """The lane says another bucket than the other lanes, with the batch size that the table gives it."""
    row = next(row for row in plan.lane(1) if row["frames"] == 33 and row["width"] == 112)
    row["height"], row["width"] = 112, 64


def longer_than_it_is(plan: Opened) -> None:
    rows = [row for lane in range(3) for row in plan.lane(lane) if row["frames"] == 33]
    for row in rows:
        row["frames"] = 65


def unknown_clip(plan: Opened) -> None:
    plan.lane(0)[2]["clips"][0] = {"shard": 3, "ordinal": 4000}


def not_admitted(plan: Opened) -> None:
    for row in read_table(samples_path(plan.samples), SAMPLES).to_pylist():
        for mine in plan.lane(0):
            if not row["admissions"] and all(row[key] == mine[key] for key in ("frames", "height", "width")):
                mine["clips"][0] = {"shard": row["shard_index"], "ordinal": row["ordinal"]}
                return
    raise AssertionError("the set has no such clip")


def reverse_reads(plan: Opened) -> None:
    """Two reads of one shard in one row change places."""
    for row in plan.lane(0):
        for index in range(len(row["reads"]) - 1):
            one, other = row["reads"][index : index + 2]
            if one["shard"] == other["shard"]:
                row["reads"][index : index + 2] = [other, one]
                return
    raise AssertionError("no row has two reads of one shard")


def read_late(plan: Opened) -> None:
    rows = plan.lane(1)
    row = next(index for index, row in enumerate(rows) if row["reads"])
    rows[row + 1]["reads"] = [*rows[row]["reads"], *rows[row + 1]["reads"]]
    rows[row]["reads"] = []


def read_early(plan: Opened) -> None:
    """All reads of an epoch before its first row: legal order, but more buffer than the plan says."""
    rows = [row for row in plan.lane(1) if row["epoch"] == 0]
    rows[0]["reads"] = [item for row in rows for item in row["reads"]]
    for row in rows[1:]:
        row["reads"] = []


def read_twice(plan: Opened) -> None:
    row = next(row for row in plan.lane(0) if row["reads"])
    row["reads"].append(dict(row["reads"][-1]))


def read_for_nothing(plan: Opened) -> None:
    """A left-over clip of the epoch is read before a row that reads nothing else of its shard further on."""
    entry = next(entry for entry in plan.tables["ledger"] if entry["epoch"] == 0)
    samples = {
        (row["shard_index"], row["ordinal"]): row for row in read_table(samples_path(plan.samples), SAMPLES).to_pylist()
    }
    sample = samples[entry["shard"], entry["ordinal"]]
    plan.lane(0)[0]["reads"].insert(
        0, {"shard": entry["shard"], "offset": sample["offset"], "length": sample["length"]}
    )


def cut_read(plan: Opened) -> None:
    row = next(row for row in plan.lane(0) if row["reads"])
    row["reads"][0]["length"] -= 512


def over_cap(plan: Opened) -> None:
    plan.meta["max_buffer_bytes"] = max(plan.meta["peak_buffer_bytes"]) - 1


def missing_row(plan: Opened) -> None:
    plan.lane(2).pop()


def rows_out_of_order(plan: Opened) -> None:
    rows = plan.tables["rows"]
    rows[0]["step"], rows[2]["step"] = rows[2]["step"], rows[0]["step"]


def impossible_epoch(plan: Opened) -> None:
    for table in ("rows", "lane-0000", "lane-0001", "lane-0002"):
        plan.tables[table][-1]["epoch"] = 9


def forget_ledger(plan: Opened) -> None:
    plan.tables["ledger"].pop()


def ledger_of_a_used_clip(plan: Opened) -> None:
    entry = plan.tables["ledger"][0]
    samples = {
        (row["shard_index"], row["ordinal"]): row for row in read_table(samples_path(plan.samples), SAMPLES).to_pylist()
    }
    place = plan.lane(0)[0]["clips"][0]
    sample = samples[place["shard"], place["ordinal"]]
    entry |= {**place, "epoch": 0} | {key: sample[key] for key in ("clip_id", "frames", "height", "width")}


def wrong_event(plan: Opened) -> None:
    plan.tables["ledger"][0]["event"] = "lost"


def wrong_seconds(plan: Opened) -> None:
    plan.tables["rows"][1]["predicted_seconds"] *= 2


def wrong_share(plan: Opened) -> None:
    plan.meta["used_share"] += 0.001


def wrong_amplification(plan: Opened) -> None:
    plan.meta["metrics"]["read_amplification"] += 0.001


def wrong_sequential_share(plan: Opened) -> None:
    plan.meta["metrics"]["sequential_share"] -= 0.001


def wrong_count(plan: Opened) -> None:
    plan.meta["admitted_clips"] += 1


def wrong_shard(plan: Opened) -> None:
    plan.meta["sets"][0]["shard_bytes"][1] += 512


def spare_that_is_always_used(plan: Opened) -> None:
    used = [
        {
            (clip["shard"], clip["ordinal"])
            for lane in range(3)
            for row in plan.lane(lane)
            if row["epoch"] == epoch
            for clip in row["clips"]
        }
        for epoch in (0, 1)
    ]
    shard, ordinal = min(used[0] & used[1])
    plan.tables["spares"][0] |= {"shard": shard, "ordinal": ordinal}


MUTATIONS: dict[Callable[[Opened], None], str] = {
    drop_clip: "batch_sizes",
    duplicate_clip: "once_per_epoch",
    repeat_in_the_next_step: "once_per_step",
    change_clip: "ledger",
    swap_between_lanes: "read_before_use",
    wrong_bucket: "row_policy",
    longer_than_it_is: "one_shape",
    unknown_clip: "clips_known",
    not_admitted: "clips_admitted",
    reverse_reads: "reads_forward",
    read_late: "read_before_use",
    read_early: "peak_buffer",
    read_twice: "reads_once",
    read_for_nothing: "reads_used",
    cut_read: "reads_whole",
    over_cap: "buffer_cap",
    missing_row: "lane_rows",
    rows_out_of_order: "rows_complete",
    impossible_epoch: "rows_complete",
    forget_ledger: "ledger",
    ledger_of_a_used_clip: "ledger",
    wrong_event: "ledger",
    wrong_seconds: "row_costs",
    wrong_share: "used_share",
    wrong_amplification: "read_metrics",
    wrong_sequential_share: "read_metrics",
    wrong_count: "admitted_clips",
    wrong_shard: "shards_listed",
    spare_that_is_always_used: "spares",
}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_each_damage_is_named_by_its_rule(mutate: Callable[[Opened], None], opened: Opened) -> None:
    mutate(opened)
    assert MUTATIONS[mutate] in opened.broken()


def test_an_untouched_plan_and_legal_changes_hold(opened: Opened) -> None:
    assert opened.broken() == set()
    row = next(row for row in opened.lane(0) if len(row["clips"]) > 1)
    row["clips"].reverse()
    assert opened.broken() == set()
    opened.tables["ledger"].reverse()
    assert opened.broken() == set()


def test_every_rule_has_a_mutation_that_breaks_it_or_a_test_below() -> None:
    assert set(RULES) - set(MUTATIONS.values()) == {"plan_hash", "table_hashes", "samples_hash", "shard_files"}


def test_hashes_that_do_not_fit_are_rules_too(opened: Opened) -> None:
    drop_clip(opened)
    write_table(lane_path(opened.folder, 1), table_from_rows(LANE, opened.lane(1)), LANE)
    assert {"table_hashes", "batch_sizes"} <= set(verify_plan(opened.folder, [opened.samples]).broken)
    with pytest.raises(PlanError, match="changed after it was built"):
        read_lane(opened.folder, 1, read_plan_meta(opened.folder))
    opened.meta["seed"] += 1
    (opened.folder / "plan.json").write_text(json.dumps(opened.meta))
    assert "plan_hash" in verify_plan(opened.folder, [opened.samples]).broken


def test_missing_and_surplus_lane_files_are_found(opened: Opened) -> None:
    shutil.copy(lane_path(opened.folder, 0), lane_path(opened.folder, 7))
    lane_path(opened.folder, 2).unlink()
    broken = verify_plan(opened.folder, [opened.samples]).broken
    assert "lane-0002.parquet does not exist" in " ".join(broken["table_hashes"])
    assert "lane-0007" in " ".join(broken["table_hashes"])
    assert "ledger" in broken and "lane_rows" in broken


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_truncated_lane_file_is_found(keep: float, opened: Opened) -> None:
    path = lane_path(opened.folder, 1)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    broken = verify_plan(opened.folder, [opened.samples]).broken
    assert "lane-0001.parquet cannot be read" in broken["table_hashes"][0]


def test_a_lane_file_with_a_damaged_page_is_found(opened: Opened) -> None:
    path = lane_path(opened.folder, 1)
    data = bytearray(path.read_bytes())
    data[40:120] = bytes(80)
    path.write_bytes(data)
    assert "table_hashes" in verify_plan(opened.folder, [opened.samples]).broken


def test_other_samples_are_recognised(opened: Opened, write_set: Callable[..., Path], tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", [[("33x64x112", index) for index in range(9)]])
    report = verify_plan(opened.folder, [other])
    assert set(report.broken) == {"samples_hash"}, "what follows from other samples is not said again"
    assert "give the set that it was built from" in report.broken["samples_hash"][0]
    assert {"clips_known", "ledger", "once_per_step"} <= set(report.skipped)
    wrong_seconds(opened)
    opened.save()
    assert set(verify_plan(opened.folder, [other]).broken) == {"samples_hash", "row_costs"}
    with pytest.raises(DataError, match="the plan reads 1 sets"):
        verify_plan(opened.folder, [other, opened.samples])


@pytest.mark.parametrize("damage", [read_twice, reverse_reads])
def test_read_metrics_follow_the_reads_that_are_written(damage: Callable[[Opened], None], opened: Opened) -> None:
    damage(opened)
    assert "read_metrics" in opened.broken(), "a plan that reads twice or back may not say 1.000"


def test_the_bound_knows_how_many_rows_there_are(opened: Opened) -> None:
    whole = verify_plan(opened.folder, [opened.samples]).bounds["used_share_upper_bound"]
    largest = max(entry["clips_per_lane"] for entry in opened.meta["batches"])
    opened.meta["num_steps"] = 1
    opened.save()
    bound = verify_plan(opened.folder, [opened.samples]).bounds["used_share_upper_bound"]
    assert bound == pytest.approx(2 * 3 * largest / (opened.meta["admitted_clips"] * 2))
    assert bound < whole <= 1


def test_changed_tars_are_named(write_set: Callable[..., Path], tmp_path: Path) -> None:
    samples = write_set(tmp_path / "set", [[("1x64x112", index) for index in range(8)]] * 2, tars=True)
    config = PlanConfig.model_validate({"lanes": 2, "max_tokens_per_micro_batch": 56})
    write_plan(build_plan(load_corpus([samples], "144p"), config), tmp_path / "plan")
    report = verify_plan(tmp_path / "plan", [samples])
    assert report.ok and not report.skipped
    with (samples / "shard-000001.tar").open("ab") as stream:
        stream.write(bytes(512))
    (samples / "shard-000000.tar").unlink()
    messages = " ".join(verify_plan(tmp_path / "plan", [samples]).broken["shard_files"])
    assert "shard-000000.tar has no file" in messages and "shard-000001.tar has" in messages


def test_a_check_that_fails_leaves_no_older_certificate(opened: Opened) -> None:
    path = write_certificate(opened.folder, verify_plan(opened.folder, [opened.samples]))
    assert path.is_file()
    drop_clip(opened)
    assert opened.broken()
    assert not path.exists()
    path.write_text("{}")
    (opened.folder / "plan.json").unlink()
    with pytest.raises(PlanError, match=r"plan.json is missing"):
        verify_plan(opened.folder, [opened.samples])
    assert not path.exists()


def test_the_certificate_says_what_was_proved(opened: Opened) -> None:
    report = verify_plan(opened.folder, [opened.samples])
    certificate = json.loads(write_certificate(opened.folder, report).read_text())
    meta = read_plan_meta(opened.folder)
    assert certificate["plan_hash"] == meta.plan_hash
    assert set(certificate["rules_that_hold"]) | set(certificate["rules_not_checked"]) == set(RULES)
    assert certificate["rules_not_checked"].keys() == {"shard_files"}
    assert certificate["bounds"]["used_share"] == pytest.approx(meta.used_share)
    assert certificate["counts"]["bytes_read_unused"] == 0
    assert verify_plan(opened.folder, [opened.samples]).ok, "the certificate is no part of the hash"
