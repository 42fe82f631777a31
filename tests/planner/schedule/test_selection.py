"""Which clips an epoch uses: exact counts, turns that go around, domains in their share of the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.pricing.batches import batch_table
from planner.pricing.costs import cost_model
from planner.samples import Corpus
from planner.schedule.demand import Demand, DemandMaker
from planner.schedule.selection import LEFT_OVER, Selection
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.errors import PlanError

CHAIN = ["1x64x112", "33x64x112", "65x64x112", "121x64x112", "33x112x64"]


def corpus_of(names: Sequence[str], domains: Sequence[str] = ("",)) -> Corpus:
    """Clips of these buckets in one shard, domains in turn."""
    buckets = tuple(sorted({Bucket.parse(name) for name in names}))
    places = np.arange(len(names))
    return Corpus(
        sets=(),
        clip_ids=pa.array([str(place) for place in places]),
        shard=np.zeros(len(names), dtype=np.int32),
        ordinal=places.astype(np.int32),
        offset=places * 10,
        length=np.full(len(names), 10),
        source=places.astype(np.int32),
        domain=(places % len(domains)).astype(np.int32),
        domains=tuple(domains),
        bucket=np.array([buckets.index(Bucket.parse(name)) for name in names], dtype=np.int32),
        buckets=buckets,
        clips_in_tables=len(names),
        scores_hash=None,
    )


def set_up(corpus: Corpus, **values: Any) -> tuple[Selection, DemandMaker]:
    """Raises PlanError where nothing fills a row."""
    config = PlanConfig.model_validate({"lanes": 2, "max_tokens_per_micro_batch": 868, **values})
    counts = np.bincount(corpus.bucket)
    lines = batch_table(dict(zip(corpus.buckets, counts.tolist(), strict=True)), config, cost_model(config, None))
    demands = DemandMaker(lines, config)
    return Selection(corpus, lines, demands.chains, config), demands


def run_epoch(
    selection: Selection, demands: DemandMaker, epoch: int, available: np.ndarray | None = None
) -> tuple[Demand, np.ndarray]:
    demand = demands.make(selection.own_counts(available, len(demands.lines)), None, epoch)
    chosen = selection.choose(epoch, demand, available)
    selection.record(np.flatnonzero(chosen != LEFT_OVER), np.ones(int((chosen != LEFT_OVER).sum()), dtype=int), chosen)
    return demand, chosen


@given(
    names=st.lists(st.sampled_from(CHAIN), min_size=1, max_size=40),
    lanes=st.integers(1, 3),
    policy=st.sampled_from(["uniform", "tiers"]),
    left_over=st.sampled_from(["carry", "drop", "repeat"]),
    shorten=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=150)
def test_counts_are_exact_and_the_least_used_come_first(
    names: list[str], lanes: int, policy: str, left_over: str, shorten: bool, seed: int
) -> None:
    corpus = corpus_of(names)
    try:
        selection, demands = set_up(
            corpus, lanes=lanes, policy=policy, left_over=left_over, shorten_left_over=shorten, seed=seed
        )
    except PlanError:
        return
    for epoch in range(6):
        uses = selection.uses.copy()
        try:
            demand, chosen = run_epoch(selection, demands, epoch)
        except PlanError:
            return
        assert np.bincount(chosen[chosen >= 0], minlength=len(demands.lines)).tolist() == demand.distinct.tolist()
        for chain in demands.chains:
            for place, line in enumerate(chain):
                above = chain[: place + 1] if shorten else [line]
                # Who could have been chosen for the line: clips of it or of a longer one that no longer one has taken.
                pool = np.isin(selection.native, above) & ~np.isin(chosen, chain[:place])
                taken, rest = uses[pool & (chosen == line)], uses[pool & (chosen != line)]
                assert set(np.flatnonzero(chosen == line).tolist()) <= set(np.flatnonzero(pool).tolist())
                if left_over != "drop" and len(taken) and len(rest):
                    assert taken.max() <= rest.min(), "used before one that was used less"


@given(count=st.integers(2, 30), lanes=st.integers(1, 3), most=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_nobody_is_left_over_twice_before_all_of_its_bucket_were(count: int, lanes: int, most: int, seed: int) -> None:
    corpus = corpus_of(["33x64x112"] * count)
    try:
        selection, demands = set_up(corpus, lanes=lanes, batch_clips={"33x64x112": most}, seed=seed)
        for epoch in range(12):
            run_epoch(selection, demands, epoch)
            assert selection.uses.max() - selection.uses.min() <= 1
    except PlanError:
        assert count < lanes * most


def test_shortening_goes_around_as_well() -> None:
    """Five clips of 65 frames on two lanes: two rows of their own, and one clip goes down, a different one each time."""
    corpus = corpus_of(["65x64x112"] * 5 + ["33x64x112"])
    selection, demands = set_up(corpus, batch_clips={"65x64x112": 2, "33x64x112": 1})
    for epoch in range(5):
        _, chosen = run_epoch(selection, demands, epoch)
        assert (chosen != LEFT_OVER).all()
    assert selection.native_uses.tolist() == [4] * 5 + [5]
    assert selection.shortened == 5


def test_drop_forgets_what_was_used() -> None:
    corpus = corpus_of(["33x64x112"] * 9)
    dropping, demands = set_up(corpus, left_over="drop", batch_clips={"33x64x112": 2})
    demand = demands.make(dropping.own_counts(None, len(demands.lines)), None, 0)
    fresh = dropping.choose(3, demand, None)
    dropping.uses[:] = np.arange(9)
    assert np.array_equal(dropping.choose(3, demand, None), fresh)
    carrying, _ = set_up(corpus, left_over="carry", batch_clips={"33x64x112": 2})
    carrying.uses[:] = np.arange(9)
    assert np.flatnonzero(carrying.choose(3, demand, None) == LEFT_OVER).tolist() == [8]
    left = {int(np.flatnonzero(dropping.choose(epoch, demand, None) == LEFT_OVER)[0]) for epoch in range(20)}
    assert len(left) > 4


@given(weight=st.floats(0.05, 1.0), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_a_domain_takes_part_in_its_share_of_any_epochs_in_a_row(weight: float, seed: int) -> None:
    corpus = corpus_of(["33x64x112"] * 40, ["cats", "dogs"])
    selection, _ = set_up(corpus, seed=seed)
    taken = []
    for epoch in range(24):
        mask = selection.eligible(epoch, {"cats": weight})
        assert mask is not None
        taken.append(mask)
    assert all(mask[1::2].all() for mask in taken), "domains without a weight take part always"
    cats = np.cumsum([np.zeros(20, dtype=int), *(mask[0::2] for mask in taken)], axis=0)
    for length in (1, 5, 24):
        for start in range(24 - length + 1):
            assert (np.abs(cats[start + length] - cats[start] - weight * length) < 1 + 1e-9).all()
    if 0.3 < weight < 0.7:
        assert 0 < taken[0][0::2].sum() < 20, "clips of a domain take part in epochs of their own"


def test_only_clips_that_take_part_are_chosen() -> None:
    corpus = corpus_of(["33x64x112"] * 20, ["cats", "dogs"])
    selection, demands = set_up(corpus, batch_clips={"33x64x112": 1})
    for epoch in range(8):
        available = selection.eligible(epoch, {"cats": 0.5})
        assert available is not None
        _, chosen = run_epoch(selection, demands, epoch, available)
        assert (chosen[~available] == LEFT_OVER).all()
        assert int((chosen != LEFT_OVER).sum()) == int(available.sum()) // 2 * 2
    assert selection.uses[0::2].mean() == pytest.approx(4, abs=0.5)
    assert selection.uses[1::2].mean() == pytest.approx(8, abs=0.5)
    assert selection.eligible(0, {}) is None
