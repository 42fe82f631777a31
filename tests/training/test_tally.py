"""Losses told apart by bucket and time add up over micro-batches and ranks to the step's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.tally import TIME_BINS, LossTally

CPU = torch.device("cpu")
BUCKETS = ("1x32x48", "33x32x48")


def numbers(tally: LossTally) -> list[float]:
    """As they go through the step's exchange."""
    return [*tally.sums.tolist(), *tally.counts]


@settings(max_examples=30, deadline=None)
@given(
    batches=st.lists(
        st.tuples(
            st.sampled_from(BUCKETS),
            st.lists(st.tuples(st.floats(0, 1), st.floats(0, 5)), min_size=1, max_size=4),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_two_ranks_tell_what_one_would(batches: list[tuple[str, list[tuple[float, float]], int]]) -> None:
    alone, ranks = LossTally(BUCKETS, CPU), [LossTally(BUCKETS, CPU) for _ in range(2)]
    for bucket, clips, rank in batches:
        sigma_B, losses_B = torch.tensor(clips, dtype=torch.float64).unbind(1)
        for tally in (alone, ranks[rank]):
            tally.add(bucket, sigma_B, losses_B)
    summed = [a + b for a, b in zip(*(numbers(tally) for tally in ranks), strict=True)]
    assert alone.by_bucket(summed) == pytest.approx(alone.by_bucket(numbers(alone)))
    everything = [loss for _, clips, _ in batches for _, loss in clips]
    for bucket, mean in alone.by_bucket(summed).items():
        own = [loss for name, clips, _ in batches if name == bucket for _, loss in clips]
        assert mean == pytest.approx(sum(own) / len(own))
    counts = summed[-TIME_BINS:]
    total = sum(mean * count for mean, count in zip(alone.by_time(summed), counts, strict=True) if mean is not None)
    assert total == pytest.approx(sum(everything)) and sum(counts) == len(everything)


def test_ends_belong_to_the_outer_bins_and_empty_bins_say_nothing() -> None:
    tally = LossTally(BUCKETS, CPU)
    tally.add("33x32x48", torch.tensor([0.0, 1.0, 0.349]), torch.tensor([1.0, 2.0, 4.0]))
    assert tally.by_time(numbers(tally)) == [1.0, None, None, 4.0, None, None, None, None, None, 2.0]
    assert tally.by_bucket(numbers(tally)) == {"33x32x48": pytest.approx(7 / 3)}
