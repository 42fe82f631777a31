"""REPA: the teacher's features meet the tokens of the same place, and clips without a teacher weigh nothing."""

import pytest
import torch

from schemas.errors import ConfigError
from training.alignment import AlignmentProjector, alignment_loss
from training.initialization import initialize_weights
from training.routing import RouteSpec

GRID = (3, 4, 3)
NUM_TOKENS = 36


def position_teacher(batch: int) -> torch.Tensor:
    """Features that say where they are: unlike at any two places of the grid (T, Y, X, C)."""
    places = torch.eye(NUM_TOKENS).reshape(*GRID, NUM_TOKENS)
    return places.flatten(0, 2).expand(batch, -1, -1)


def test_routed_tokens_meet_the_teacher_of_their_place() -> None:
    teacher = position_teacher(2)
    kept = RouteSpec(start=0, end=1, drop_ratio=0.5).for_clips(
        seed=0, step=0, clip_ids=["a", "b"], num_tokens=NUM_TOKENS
    ).kept_BK  # fmt: skip
    # A student that knows the place of each of its tokens agrees wholly, one that is off by one not at all.
    right = torch.nn.functional.one_hot(kept, NUM_TOKENS).float() * 7.0
    wrong = torch.nn.functional.one_hot((kept + 1) % NUM_TOKENS, NUM_TOKENS).float()
    here = torch.tensor([True, True])
    assert alignment_loss(right, teacher, here, kept).total.item() == pytest.approx(0.0, abs=1e-6)
    assert alignment_loss(wrong, teacher, here, kept).total.item() == pytest.approx(2.0, abs=1e-6)
    assert alignment_loss(teacher * 3.0, teacher, here).total.item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_summed_over_the_clips_that_have_a_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    projected, teacher = torch.randn(2, 3, 5, 8, generator=generator).unbind(0)
    result = alignment_loss(projected, teacher, torch.tensor([True, False, True]))
    cosine = (projected * teacher).sum(-1) / (projected.norm(dim=-1) * teacher.norm(dim=-1))
    expected = (1 - cosine).mean(dim=1)
    assert result.count == 2
    assert torch.allclose(result.total, expected[0] + expected[2])


def test_an_absent_teacher_may_hold_anything() -> None:
    projected = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    teacher[1] = torch.nan
    result = alignment_loss(projected, teacher, torch.tensor([True, False]))
    result.total.backward()
    assert projected.grad is not None
    assert torch.isfinite(result.total) and torch.isfinite(projected.grad).all()
    assert projected.grad[1].abs().max() == 0.0 and projected.grad[0].abs().max() > 0.0


def test_with_no_teacher_the_projector_still_has_gradients_all_zero() -> None:
    """A rank whose micro-batch has no teacher takes part in the same reductions as the others."""
    projector = AlignmentProjector(16, teacher_width=8, hidden=12)
    initialize_weights(projector, seed=0)
    tapped = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    result = alignment_loss(projector(tapped), torch.zeros(2, 5, 8), torch.tensor([False, False]))
    result.total.backward()
    assert (result.total.item(), result.count) == (0.0, 0)
    for parameter in projector.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() == 0.0


def test_the_projector_learns_the_teacher() -> None:
    projector = AlignmentProjector(16, teacher_width=8, hidden=32)
    initialize_weights(projector, seed=0)
    generator = torch.Generator().manual_seed(0)
    tapped = torch.randn(2, 20, 16, generator=generator)
    teacher = tapped @ torch.randn(16, 8, generator=generator)
    optimizer = torch.optim.Adam(projector.parameters(), lr=1e-2)
    here = torch.tensor([True, True])
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = alignment_loss(projector(tapped), teacher, here).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_features_on_another_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 5, 8\), the teacher's features \(2, 6, 8\)"):
        alignment_loss(torch.zeros(2, 5, 8), torch.zeros(2, 6, 8), torch.tensor([True, True]))
