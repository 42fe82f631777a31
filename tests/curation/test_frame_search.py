"""Frames that are like many others: each keeps its best, and they are counted."""

from __future__ import annotations

import numpy as np

from curation.frame_search import Hits, best_hits, popular_frames


def hits_of(pairs: list[tuple[int, int, float]]) -> Hits:
    first, second, cosine = zip(*pairs, strict=True)
    return Hits(np.array(first), np.array(second), np.array(cosine, dtype=np.float32))


def test_a_popular_frame_keeps_its_best_and_what_is_best_for_others() -> None:
    """Frame 0 is like 12 others, of which 9 to 12 have nothing better either."""
    pairs = [(0, other, 1 - other / 100) for other in range(1, 13)]
    pairs += [(one, one + 1, 0.995) for one in range(1, 8)]
    hits = hits_of(sorted(pairs))
    left = best_hits(hits, 2)
    of_title = left.second[left.first == 0].tolist()
    assert of_title[:2] == [1, 2]
    assert {9, 10, 11, 12} <= set(of_title), "a hit stays when it is among the best of either frame"
    assert 5 not in of_title
    assert 0 in popular_frames(left, 2).tolist()


def test_frames_with_few_hits_are_not_popular() -> None:
    hits = hits_of([(0, 1, 0.9), (2, 3, 0.8)])
    assert not len(popular_frames(hits, 2))
    assert popular_frames(hits, 1).tolist() == [0, 1, 2, 3]
    assert not len(popular_frames(Hits.none(), 8))
    assert best_hits(hits, 1) is hits
