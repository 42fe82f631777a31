"""Rules over the samples and over a table of scores: who is in, and what is refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.admission import Scores, admitted_mask, read_scores
from planner.samples import load_corpus
from schemas.errors import DataError, UsageError
from schemas.hashing import table_hash
from schemas.plan import AdmissionRule

FRAME = pl.DataFrame(
    {
        "clip_id": ["a", "b", "c", "d", "e"],
        "frames": [1, 33, 33, 65, 121],
        "style": ["photo", "anime", "photo", "", "film"],
        "has_teacher": [True, False, True, False, True],
    },
    schema_overrides={"frames": pl.Int32},
)


def rule(**values: Any) -> AdmissionRule:
    return AdmissionRule.model_validate(values)


def kept(*rules: AdmissionRule, scores: pa.Table | None = None) -> str:
    found = None
    if scores is not None:
        frame = pl.from_arrow(scores)
        assert isinstance(frame, pl.DataFrame)
        found = Scores(frame, "")
    mask = admitted_mask(FRAME, rules, found)
    return "".join(name for name, meets in zip(FRAME["clip_id"], mask, strict=True) if meets)


def motion(values: list[float | None], kind: pa.DataType | None = None, ids: str = "abcde") -> pa.Table:
    return pa.table({"clip_id": list(ids), "motion": pa.array(values, kind or pa.float64())})


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ([rule(column="frames", at_least=33)], "bcde"),
        ([rule(column="frames", at_most=65)], "abcd"),
        ([rule(column="frames", at_least=33, at_most=65)], "bcd"),
        ([rule(column="frames", at_least=32.5, at_most=33.5)], "bc"),
        ([rule(column="style", one_of=("photo", "film"))], "ace"),
        ([rule(column="style", one_of=("photo",)), rule(column="frames", at_least=2)], "c"),
        ([rule(column="has_teacher", at_least=1)], "ace"),
        ([rule(column="frames", one_of=("33", "121"))], "bce"),
    ],
)
def test_rules_on_the_samples(rules: list[AdmissionRule], names: str) -> None:
    assert kept(*rules) == names


def test_scores_are_joined_by_clip_and_missing_ones_are_as_the_rule_says() -> None:
    """c is null, d is NaN, e has no row; rows stand in another order, and one is of a clip that the samples do not have."""
    scores = motion([0.9, math.nan, 0.1, None, 0.5], ids="bdacx")
    assert kept(rule(column="motion", at_least=0.5), scores=scores) == "bcde"
    assert kept(rule(column="motion", at_least=0.5, missing="drop"), scores=scores) == "b"
    assert kept(rule(column="motion", at_most=0.5), scores=scores) == "acde"
    assert kept(rule(column="motion", at_most=0.5, missing="drop"), scores=scores) == "a"
    both = [rule(column="motion", at_most=0.5), rule(column="style", one_of=("photo",))]
    assert kept(*both, scores=scores) == "ac"


def test_a_limit_is_compared_in_the_type_of_the_column() -> None:
    """A score of 0.3 that was stored in 32 bits is 0.300000012 in 64."""
    for kind in (pa.float32(), pa.float64()):
        scores = motion([0.3, 0.1, 0.2, 0.7, 0.30001], kind)
        assert kept(rule(column="motion", at_most=0.3), scores=scores) == "abc"
        assert kept(rule(column="motion", at_least=0.3), scores=scores) == "ade"
        assert kept(rule(column="motion", at_least=0.7), scores=scores) == "d"


@given(
    values=st.lists(st.none() | st.floats(0, 1, width=32) | st.just(math.nan), min_size=5, max_size=5),
    low=st.none() | st.floats(0, 1, width=32),
    high=st.none() | st.floats(0, 1, width=32),
    missing=st.sampled_from(["keep", "drop"]),
)
def test_rules_are_as_python_would_apply_them(
    values: list[float | None], low: float | None, high: float | None, missing: str
) -> None:
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return
    expected = ""
    for name, value in zip("abcde", values, strict=True):
        if value is None or math.isnan(value):
            expected += name * (missing == "keep")
        else:
            expected += name * ((low is None or value >= low) and (high is None or value <= high))
    one = rule(column="motion", at_least=low, at_most=high, missing=missing)
    assert kept(one, scores=motion(values)) == expected


def test_a_table_of_scores_is_read_where_a_rule_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "clips.parquet"
    table = pa.table({"clip_id": ["a"], "motion": [0.5], "luma": [0.1]})
    pq.write_table(table, path)
    assert read_scores(path, [rule(column="style", one_of=("photo",))]) is None
    found = read_scores(path, [rule(column="motion", at_least=0.1), rule(column="motion", at_most=0.9)])
    assert found is not None and found.frame.columns == ["clip_id", "motion"]
    assert found.digest == table_hash(table), "of the whole table, as the verifier hashes it"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "does not exist; give a Parquet file with clip_id and motion"),
        (pa.table({"clip_id": ["a"], "luma": [1.0]}), "has no column motion; it has clip_id, luma"),
        (pa.table({"motion": [1.0]}), "has no column clip_id"),
        (pa.table({"clip_id": ["a", "a"], "motion": [1.0, 2.0]}), "has several rows for a clip_id"),
        (pa.table({"clip_id": ["a"], "motion": ["much"]}), "rule on 'motion' gives numbers, the column holds string"),
        (pa.table({"clip_id": ["a"], "motion": pa.array([None], pa.null())}), "motion of type null"),
        (
            pa.table({"clip_id": ["a"], "motion": [1.0], "when": pa.array([0], pa.timestamp("us"))}),
            r"when of type timestamp\[us\].*write the table without it",
        ),
        ("no parquet", "cannot be read"),
    ],
)
def test_scores_that_cannot_be_used_are_refused_in_words(table: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clips.parquet"
    if isinstance(table, str):
        path.write_text(table)
    elif table is not None:
        pq.write_table(table, path)
    with pytest.raises(UsageError, match=message):
        read_scores(path, [rule(column="motion", at_least=0.1)])


def test_a_rule_without_its_table_or_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"rules \(config\) name motion, luma, which the samples do not have; give the table"
    ):
        read_scores(None, [rule(column="motion", at_least=0.1), rule(column="luma", at_most=0.9)])
    with pytest.raises(UsageError, match="rule on 'style' gives numbers, the column holds string"):
        admitted_mask(FRAME, [rule(column="style", at_least=0.1)], None)
    with pytest.raises(ValueError, match="give at_least and/or at_most, or one_of"):
        rule(column="motion")
    with pytest.raises(ValueError, match=r"at_most 0.1 is below at_least 0.5"):
        rule(column="motion", at_least=0.5, at_most=0.1)


def test_a_set_that_no_clip_of_which_meets_the_rules_is_refused(write_set: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [[("33x64x112", 0), ("1x64x112", 1)]])
    assert load_corpus([folder], "144p", [rule(column="frames", at_least=2)]).num_clips == 1
    with pytest.raises(DataError, match="none of 2 samples that are admitted at '144p' meets the rules"):
        load_corpus([folder], "144p", [rule(column="frames", at_least=999)])
