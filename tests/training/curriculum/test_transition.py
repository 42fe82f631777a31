"""Accounting of modules between two networks: declared differences pass, every other one is named with what to add."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from training.curriculum.stage import any_covers, covers
from training.curriculum.transition import Declarations, account, check_text_encoder, modules_of

OLD = {
    "dit.text_embed.up.weight": (8, 4),
    "dit.text_embed.up.bias": (8,),
    "dit.single_blocks.0.out.weight": (8, 8),
    "dit.single_blocks.1.out.weight": (8, 8),
    "projector.first.weight": (3, 8),
}
NEW = {
    "dit.text_embed.up.weight": (8, 6),
    "dit.text_embed.up.bias": (8,),
    "dit.single_blocks.0.out.weight": (8, 8),
    "dit.single_blocks.0.cross.out.weight": (8, 8),
    "dit.single_blocks.1.out.weight": (8, 8),
    "dit.single_blocks.1.cross.out.weight": (8, 8),
}
DECLARED = {"new": ["dit.single_blocks.*.cross"], "reset": ["dit.text_embed"], "dropped": ["projector"]}


def test_every_parameter_has_one_place() -> None:
    found = account(OLD, NEW, Declarations(**DECLARED), where="b from a")
    assert found.new == ("dit.single_blocks.0.cross.out.weight", "dit.single_blocks.1.cross.out.weight")
    assert found.reset == ("dit.text_embed.up.weight", "dit.text_embed.up.bias"), "the whole module starts again"
    assert found.dropped == ("projector.first.weight",)
    assert found.carried == ("dit.single_blocks.0.out.weight", "dit.single_blocks.1.out.weight")
    assert found.line() == (
        "2 carried, 2 new (dit.single_blocks.*.cross), 2 reset (dit.text_embed), 1 dropped (projector)"
    )


def test_undeclared_differences_are_all_named_with_what_to_add() -> None:
    with pytest.raises(ConfigError) as caught:
        account(OLD, NEW, Declarations(), where="b from a")
    assert str(caught.value).splitlines() == [
        "b from a: the modules are not accounted for:",
        "  dit.single_blocks.*.cross: 2 parameters are in the network, not in the weights; add 'dit.single_blocks.*.cross' to stage.new",
        "  projector: 1 parameter is in the weights, not in the network; add 'projector' to stage.dropped",
        "  dit.text_embed.up.weight: 1 parameter is of another shape (dit.text_embed.up.weight: (8, 4) to (8, 6)); "
        "add 'dit.text_embed.up.weight' to stage.reset",
    ]


@pytest.mark.parametrize(
    ("key", "pattern", "message"),
    [
        ("new", "dit.text_embed", "the weights have it already; for a fresh start put it into stage.reset"),
        ("new", "dit.nothing", "no parameter has such a name"),
        ("reset", "dit.single_blocks.*.cross", "the weights do not have it; put it into stage.new"),
        ("reset", "dit.single_blocks.7", "no parameter has such a name"),
        ("dropped", "dit.text_embed", "the network still has it; to start it again put it into stage.reset"),
        ("dropped", "projectors.*", "no parameter has such a name"),
    ],
)
def test_declarations_that_meet_nothing_are_refused(key: str, pattern: str, message: str) -> None:
    declared = {**DECLARED, key: [*DECLARED[key], pattern]}
    with pytest.raises(ConfigError) as caught:
        account(OLD, NEW, Declarations(**declared), where="b from a")
    assert f"stage.{key}: '{pattern}' meets nothing" in str(caught.value) and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_equal_networks_need_no_words() -> None:
    found = account(NEW, NEW, Declarations(), where="b from a")
    assert found.carried == tuple(NEW) and not (found.new or found.reset or found.dropped)


def test_another_text_encoder_of_equal_width_must_be_declared() -> None:
    carried = account(NEW, NEW, Declarations(), where="b from a")
    check_text_encoder("minilm", "minilm", carried, where="b from a")
    with pytest.raises(ConfigError, match=r"add 'dit\.text_embed' to stage\.reset"):
        check_text_encoder("minilm", "t5gemma2", carried, where="b from a")
    check_text_encoder(
        "minilm", "t5gemma2", account(NEW, NEW, Declarations(reset=["dit.text_embed"]), where=""), where=""
    )


def test_patterns_are_parts_between_dots() -> None:
    assert covers("dit.single_blocks.*.cross", "dit.single_blocks.12.cross.out.bias")
    assert covers("projectors.*", "projectors.dinov2.first.weight")
    assert not covers("dit.text", "dit.text_embed.up.weight")
    assert not covers("dit.single_blocks.*.cross", "dit.single_blocks.cross")
    assert not covers("dit.text_embed.up.weight.more", "dit.text_embed.up.weight")


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "1", "w"]), min_size=1, max_size=4).map(
        lambda parts: ".".join(["x", *parts])
    ),
    unique=True,
    min_size=1,
    max_size=12,
)


@given(NAMES, st.data())
def test_the_patterns_that_are_advised_cover_those_names_and_no_others(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    leaves = [name for name in names if not any(other != name and covers(name, other) for other in names)]
    wanted, others = [name for name in leaves if name in chosen], [name for name in leaves if name not in chosen]
    patterns = modules_of(wanted, leaves)
    assert all(any_covers(patterns, name) for name in wanted)
    assert not any(any_covers(patterns, name) for name in others)


@given(NAMES, NAMES, st.data())
def test_following_the_advice_is_always_enough(old: list[str], new: list[str], data: st.DataObject) -> None:
    everything = {*old, *new}
    leaves = {name for name in everything if not any(other != name and covers(name, other) for other in everything)}
    sizes = st.sampled_from([(2,), (3,)])
    source = {name: data.draw(sizes) for name in old if name in leaves}
    network = {name: data.draw(sizes) for name in new if name in leaves}
    declared: dict[str, list[str]] = {"new": [], "reset": [], "dropped": []}
    try:
        account(source, network, Declarations(), where="")
    except ConfigError as error:
        for line in str(error).splitlines()[1:]:
            _, _, advice = line.rpartition("; add ")
            pattern, _, key = advice.partition(" to stage.")
            declared[key].append(pattern.strip("'"))
    found = account(source, network, Declarations(**declared), where="")
    assert sorted([*found.carried, *found.new, *found.reset]) == sorted(network)
    assert sorted([*found.carried, *found.dropped, *found.reset]) == sorted(source)
    assert all(source[name] == network[name] for name in found.carried)
