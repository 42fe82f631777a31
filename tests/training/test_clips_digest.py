"""The digest of a step's clips: order-free, split over ranks, and different for other clips."""

from __future__ import annotations

import torch

from training.clips_digest import clips_digest, digest_number, digest_text

IDS = [f"{index:024x}" for index in range(300)]


def test_order_does_not_matter_and_clips_do() -> None:
    assert clips_digest(IDS) == clips_digest(reversed(IDS))
    assert len({clips_digest(IDS), clips_digest(IDS[1:]), clips_digest([*IDS, IDS[0]]), clips_digest([])}) == 4


def test_parts_of_ranks_add_up_as_int64() -> None:
    parts = torch.tensor([digest_number(IDS[rank::7]) for rank in range(7)], dtype=torch.int64)
    assert digest_text(int(parts.sum())) == clips_digest(IDS)
