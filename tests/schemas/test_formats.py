"""Tables, shards and plans on disk: what is written is read back, and what is foreign is refused in words."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DataError, PlanError, ReelyardError, SchemaError, UsageError
from schemas.files import write_json
from schemas.hashing import table_hash
from schemas.plan import (
    LANE,
    LEDGER,
    PLAN_FORMAT_VERSION,
    ROWS,
    SPARES,
    AdmissionRule,
    PlanMeta,
    lanes_of_rank,
    plan_hash,
    read_lane,
    read_plan_meta,
    write_lane,
)
from schemas.shards import SetInfo, ShardInfo, read_set_info, shard_name, write_set_info
from schemas.tables import (
    DESCRIPTORS,
    LABELS,
    OUTCOMES,
    SCORES,
    TABLES,
    empty_table,
    read_table,
    table_from_rows,
    write_table,
)

OUTCOME = {"clip_id": "c", "phase": "encode", "set": "64p", "reason": "decode failed"}


@pytest.mark.parametrize(
    "schema",
    [*TABLES.values(), ROWS, LANE, SPARES, LEDGER],
    ids=lambda schema: schema.metadata[b"reelyard.table"].decode(),
)
def test_empty_tables_round_trip(schema: pa.Schema, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", empty_table(schema), schema)
    read = read_table(tmp_path / "t.parquet", schema)
    assert read.schema.equals(schema, check_metadata=True)


def test_every_score_has_value_model_and_reason() -> None:
    for score in SCORES:
        assert {score, f"{score}_model", f"{score}_reason"} <= set(TABLES["clips"].names)


def test_descriptors_keep_half_precision(tmp_path: Path) -> None:
    row = {"clip_id": "c", "time_us": 5, "descriptor": [0.25] * 512, "model": "m"}
    write_table(tmp_path / "d.parquet", table_from_rows(DESCRIPTORS, [row]), DESCRIPTORS)
    assert read_table(tmp_path / "d.parquet", DESCRIPTORS).to_pylist() == [row]


def test_writing_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, table_from_rows(OUTCOMES, [OUTCOME] * 3), OUTCOMES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**OUTCOME, "extra": 1}, "unknown"),
        ({"clip_id": "c"}, "lacks"),
        ({**OUTCOME, "reason": None}, "nulls"),
    ],
)
def test_wrong_rows_are_refused(row: dict[str, object], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        table_from_rows(OUTCOMES, [row])


def test_foreign_tables_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, empty_table(LABELS), LABELS)
    with pytest.raises(
        SchemaError, match="holds table 'labels' version 1, expected 'outcomes' version 1; write it again"
    ):
        read_table(path, OUTCOMES)
    newer = OUTCOMES.with_metadata({**OUTCOMES.metadata, b"reelyard.version": b"99"})
    pq.write_table(empty_table(newer), path)
    with pytest.raises(SchemaError, match="version 99"):
        read_table(path, OUTCOMES)
    path.write_bytes(b"not parquet")
    with pytest.raises(SchemaError, match="not readable Parquet"):
        read_table(path, OUTCOMES)
    with pytest.raises(SchemaError, match="does not exist"):
        read_table(tmp_path / "none.parquet", OUTCOMES)


def set_info() -> SetInfo:
    return SetInfo(
        set_name="64p",
        fps=24.0,
        codec="dct",
        codec_fingerprint="f",
        latent_channels=16,
        text_encoder="minilm",
        text_encoder_fingerprint="f",
        text_width=384,
        teacher_by_branch={"video_real": "efficientnet_lite0", "image_real": None},
        teacher_width=320,
        seed=0,
        shards=(ShardInfo(name=shard_name(0), size_bytes=10, sha256="0" * 64, num_samples=1),),
    )


def test_set_info_round_trips_and_other_versions_are_refused(tmp_path: Path) -> None:
    write_set_info(tmp_path, set_info())
    assert read_set_info(tmp_path) == set_info()
    write_json(tmp_path / "set.json", {**set_info().model_dump(mode="json"), "format_version": 9})
    with pytest.raises(DataError, match="format_version 9, expected 1"):
        read_set_info(tmp_path)
    with pytest.raises(DataError, match="is not a set folder"):
        read_set_info(tmp_path / "none")


def plan_meta_values() -> dict[str, object]:
    values: dict[str, object] = {
        "format_version": PLAN_FORMAT_VERSION,
        "plan_hash": "",
        "table_hashes": {"rows": "a"},
        "num_lanes": 2,
        "micro_per_step": 1,
        "num_steps": 1,
        "num_epochs": 1,
        "policy": "uniform",
        "admission": "144p",
        "seed": 0,
        "sets": [],
        "batches": [],
        "cost_model": "analytic",
        "admitted_clips": 0,
        "used_share": 1.0,
        "peak_buffer_bytes": [0, 0],
        "max_buffer_bytes": 1,
        "metrics": {},
        "formulas": {},
        "config": {},
        "created_by": "test",
    }
    values = PlanMeta.model_validate(values).model_dump(mode="json")
    values["plan_hash"] = plan_hash(values)
    return values


def test_plan_meta_checks_its_own_hash(tmp_path: Path) -> None:
    values = plan_meta_values()
    write_json(tmp_path / "plan.json", values)
    assert read_plan_meta(tmp_path) == PlanMeta.model_validate(values)
    write_json(tmp_path / "plan.json", {**values, "created_by": "somebody else"})
    assert read_plan_meta(tmp_path).created_by == "somebody else"
    write_json(tmp_path / "plan.json", {**values, "seed": 1})
    with pytest.raises(PlanError, match="was changed after it was built"):
        read_plan_meta(tmp_path)
    write_json(tmp_path / "plan.json", {**values, "format_version": 1})
    with pytest.raises(PlanError, match="format_version 1, expected 2; build the plan again"):
        read_plan_meta(tmp_path)
    with pytest.raises(PlanError, match="is not a plan folder"):
        read_plan_meta(tmp_path / "none")


def test_steps_and_epochs_of_a_plan_that_continues_another_are_numbered_on() -> None:
    meta = PlanMeta.model_validate(
        {**plan_meta_values(), "first_step": 7, "first_epoch": 2, "num_steps": 3, "num_epochs": 1}
    )
    assert (meta.steps, meta.epochs) == (range(7, 10), range(2, 3))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"column": "motion"}, "give at_least and/or at_most, or one_of"),
        ({"column": "motion", "at_least": 1.0, "one_of": ["a"]}, "give at_least and/or at_most, or one_of"),
        ({"column": "motion", "at_least": 2.0, "at_most": 1.0}, "at_most 1 is below at_least 2"),
    ],
)
def test_a_rule_that_says_nothing_or_contradicts_itself_is_refused(rule: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdmissionRule.model_validate(rule)


def test_a_lane_comes_back_from_its_differences(tmp_path: Path) -> None:
    row = {
        "epoch": 0, "step": 3, "micro": 1, "frames": 33, "height": 64, "width": 112,
        "clips": [{"shard": 9, "ordinal": 4}, {"shard": 2, "ordinal": 800}],
        "reads": [{"shard": 9, "offset": 1 << 40, "length": 512}],
    }  # fmt: skip
    table = table_from_rows(LANE, [row, {**row, "clips": [], "reads": []}])
    write_lane(tmp_path, 5, table)
    meta = PlanMeta.model_validate({**plan_meta_values(), "table_hashes": {"lane-0005": table_hash(table)}})
    assert read_lane(tmp_path, 5, meta).equals(table)


@given(st.integers(1, 64).flatmap(lambda world: st.tuples(st.just(world), st.integers(1, 8))))
def test_lanes_of_ranks_partition_the_lanes(case: tuple[int, int]) -> None:
    world, per_rank = case
    lanes = [lane for rank in range(world) for lane in lanes_of_rank(rank, world, world * per_rank)]
    assert lanes == list(range(world * per_rank))


def test_a_world_size_that_does_not_divide_says_which_do() -> None:
    with pytest.raises(PlanError, match="divides the lanes \\(1, 2, 3, 6\\)"):
        lanes_of_rank(0, 4, 6)


def test_exit_codes() -> None:
    assert (ReelyardError.exit_code, UsageError.exit_code, PlanError.exit_code) == (1, 2, 1)
