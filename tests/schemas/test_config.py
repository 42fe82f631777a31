"""Strict configuration: unknown keys, suggestions, overrides, and where each message points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from schemas.config import StrictConfig, build_config, load_config, merge_overrides
from schemas.errors import ConfigError


class Inner(StrictConfig):
    batch_size: int = 4
    names: tuple[str, ...] = ()


class Outer(StrictConfig):
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    rate: float


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_loads_and_is_frozen(tmp_path: Path) -> None:
    config = load_config(Outer, write(tmp_path, "rate: 0.5\ninner: {batch_size: 8}\n"))
    assert (config.rate, config.inner.batch_size) == (0.5, 8)
    with pytest.raises(Exception, match="frozen"):
        config.rate = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("rate: 1\ninner: {batch_sise: 8}", "inner.batch_sise"),
        ("rate: 1\nmaybe: {batch_sise: 8}", "maybe.batch_sise"),
        ("rate: 1\nmany: [{batch_sise: 8}]", "many.0.batch_sise"),
    ],
)
def test_unknown_key_names_file_key_and_a_near_one(tmp_path: Path, text: str, key: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path)
    assert f"{path}: {key}: unknown key; did you mean 'batch_size'?" in str(caught.value)


def test_unknown_key_far_from_all_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known keys here: inner, many, maybe, rate"):
        build_config(Outer, {"rate": 1, "zzz": 1}, source="x.yaml")


def test_missing_and_wrong_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Outer, {"inner": {"batch_size": "many"}}, source="x.yaml")
    message = str(caught.value)
    assert "x.yaml: rate: missing" in message
    assert "x.yaml: inner.batch_size" in message and "'many'" in message


def test_a_check_across_keys_speaks_for_itself() -> None:
    class Pair(StrictConfig):
        low: int
        high: int

        @model_validator(mode="after")
        def _check(self) -> Self:
            raise ValueError(f"low {self.low} must be below high {self.high}")

    with pytest.raises(ConfigError) as caught:
        build_config(Pair, {"low": 2, "high": 1}, source="x.yaml")
    assert str(caught.value) == "x.yaml: low 2 must be below high 1", "and not the whole file behind it"


def test_overrides_reach_nested_keys_and_leave_the_input_alone() -> None:
    values = {"inner": {"batch_size": 1}}
    merged = merge_overrides(values, ["inner.batch_size=3", "rate=0.25", "inner.names=[a, b]", "maybe=null"])
    assert merged == {"inner": {"batch_size": 3, "names": ["a", "b"]}, "rate": 0.25, "maybe": None}
    assert values == {"inner": {"batch_size": 1}}


@pytest.mark.parametrize("override", ["rate", "=3", "inner..x=3", "inner.batch_size.x=3", "rate=[1"])
def test_malformed_overrides_are_config_errors(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        merge_overrides({"inner": {"batch_size": 1}}, [override])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(Outer, write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Outer, tmp_path / "none.yaml")


class Limited(StrictConfig):
    count: int = Field(default=1, ge=1, le=100_000)
    share: float = Field(default=0.5, gt=0.0, lt=1.0)
    shares: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] = Field(default_factory=dict)
    maybe: Annotated[int, Field(ge=0)] | None = None
    kind: Literal["a", "b", "c"] = "a"
    name: str = Field(default="x", pattern=r"^[a-z0-9_]+$", min_length=1)
    dotted: str = Field(default="x.y", pattern=r"^[a-z]+\.[a-z]+$")
    flag: bool = False
    many: tuple[int, ...] = Field(default=(1,), min_length=1, max_length=2)
    table: dict[str, int] = Field(default_factory=dict)
    where: Path = Path()
    inner: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count: give a number of at least 1 and of at most 100,000 (got 0)"),
        ({"count": 100_001}, "count: give a number of at least 1 and of at most 100,000 (got 100001)"),
        ({"count": "x"}, "count: give a whole number (got 'x')"),
        ({"count": 1.5}, "count: give a whole number (got 1.5)"),
        ({"count": None}, "count: give a whole number (got None)"),
        ({"share": 1.0}, "share: give a number above 0 and below 1 (got 1.0)"),
        ({"share": "half"}, "share: give a number (got 'half')"),
        ({"shares": {"k": 0}}, "shares.k: give a number above 0 (got 0)"),
        ({"maybe": -1}, "maybe: give a number of at least 0 (got -1)"),
        ({"kind": "d"}, "kind: give 'a', 'b' or 'c' (got 'd')"),
        ({"name": "A b"}, "name: give text of the characters a-z0-9_ alone (got 'A b')"),
        ({"name": ""}, "name: give text of 1 characters or more (got '')"),
        ({"name": 7}, "name: give text, in quotes if it looks like a number (got 7)"),
        ({"dotted": "x"}, r"dotted: give text of the form ^[a-z]+\.[a-z]+$ (got 'x')"),
        ({"flag": "maybe"}, "flag: give true or false (got 'maybe')"),
        ({"many": []}, "many: give at least 1 of them (got [])"),
        ({"many": [1, 2, 3]}, "many: give at most 2 of them (got [1, 2, 3])"),
        ({"many": 1}, "many: give a list (got 1)"),
        ({"many": [1, "x"]}, "many.1: give a whole number (got 'x')"),
        ({"table": [1]}, "table: give a mapping of keys to values (got [1])"),
        ({"where": 1}, "where: give a path (got 1)"),
        ({"inner": [{"batch_size": "x"}]}, "inner.0.batch_size: give a whole number (got 'x')"),
    ],
    ids=str,
)
def test_what_should_be_given_is_said_in_words(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Limited, values, source="file.yaml")
    assert str(caught.value) == f"file.yaml: {message}"
