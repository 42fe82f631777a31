"""REPA: the teacher's features meet the tokens of the same place, each clip its own teacher's, and clips without one weigh nothing."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from schemas.buckets import Bucket
from schemas.errors import ConfigError
from schemas.model_shape import TINY
from training.alignment import AlignmentProjector, TeacherFeatures, alignment_loss
from training.batch import BatchMaker, TrainingBatch
from training.config import I2VConfig, RepaConfig, TrainConfig, TreadConfig
from training.dit.initialization import initialize_weights
from training.dit.routing import RouteSpec
from training.loading.clip_arrays import ClipArrays
from training.loading.lane_batch import LaneBatch
from training.network import TrainingNetwork, build_network
from training.teachers import StoredTeachers

GRID = (3, 4, 3)
NUM_TOKENS = 36
SHAPE = TINY.model_copy(update={"text_width": 8, "image_width": 6})
WIDTHS = {"dinov2": 5, "vjepa2": 7}


def position_teacher(batch: int) -> Tensor:
    """Features that say where they are: unlike at any two places of the grid (T, Y, X, C)."""
    places = torch.eye(NUM_TOKENS).reshape(*GRID, NUM_TOKENS)
    return places.flatten(0, 2).expand(batch, -1, -1)


def features(rows: list[int], features_NLC: Tensor) -> TeacherFeatures:
    return TeacherFeatures(rows_N=torch.tensor(rows, dtype=torch.int64), features_NLC=features_NLC)


def projector_of(width: int, teacher_width: int, hidden: int = 12) -> AlignmentProjector:
    projector = AlignmentProjector(width, teacher_width, hidden)
    initialize_weights(projector, seed=0)
    return projector


class Nothing(AlignmentProjector):
    """A projector that lets tokens through as they are."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, tapped_BLD: Tensor) -> Tensor:
        return tapped_BLD


def test_routed_tokens_meet_the_teacher_of_their_place() -> None:
    spec = RouteSpec(start=0, end=1, drop_ratio=0.5)
    kept = spec.for_clips(seed=0, step=0, clip_ids=["a", "b", "c"], num_tokens=NUM_TOKENS).kept_BK
    # A student that knows the place of each of its tokens agrees wholly, one that is off by one not at all.
    right = nn.functional.one_hot(kept, NUM_TOKENS).float() * 7.0
    wrong = nn.functional.one_hot((kept + 1) % NUM_TOKENS, NUM_TOKENS).float()
    teacher = features([0, 2], position_teacher(2))
    assert alignment_loss(Nothing(), right, teacher, kept).total.item() == pytest.approx(0.0, abs=1e-6)
    assert alignment_loss(Nothing(), wrong, teacher, kept).total.item() == pytest.approx(2.0, abs=1e-6)
    dense = position_teacher(3) * 3.0
    assert alignment_loss(Nothing(), dense, teacher).total.item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_summed_over_the_clips_of_the_teacher() -> None:
    tapped, teacher = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    result = alignment_loss(Nothing(), tapped, features([0, 2], teacher[[0, 2]]))
    cosine = (tapped * teacher).sum(-1) / (tapped.norm(dim=-1) * teacher.norm(dim=-1))
    expected = (1 - cosine).mean(dim=1)
    assert result.count == 2
    assert torch.allclose(result.total, expected[0] + expected[2])


def test_a_clip_of_another_teacher_gives_and_gets_nothing() -> None:
    tapped = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    tapped[1] = torch.nan
    tapped.requires_grad_()
    teacher = features([0], torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)))
    result = alignment_loss(projector_of(16, 8), tapped, teacher)
    result.total.backward()
    assert tapped.grad is not None
    assert torch.isfinite(result.total) and torch.isfinite(tapped.grad).all()
    assert tapped.grad[1].abs().max() == 0.0 and tapped.grad[0].abs().max() > 0.0


def test_over_no_clips_the_projector_still_has_gradients_all_zero() -> None:
    """A rank whose micro-batch has no clip of a teacher takes part in the same reductions as the others."""
    projector = projector_of(16, 8)
    tapped = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    result = alignment_loss(projector, tapped, features([], torch.zeros(0, 5, 8)))
    result.total.backward()
    assert (result.total.item(), result.count) == (0.0, 0)
    for parameter in [*projector.parameters(), tapped]:
        assert parameter.grad is not None and parameter.grad.abs().max() == 0.0


def test_the_projector_learns_the_teacher() -> None:
    projector = projector_of(16, 8, hidden=32)
    generator = torch.Generator().manual_seed(0)
    tapped = torch.randn(2, 20, 16, generator=generator)
    teacher = features([0, 1], tapped @ torch.randn(16, 8, generator=generator))
    optimizer = torch.optim.Adam(projector.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = alignment_loss(projector, tapped, teacher).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 5, 9)])
def test_features_on_another_grid_or_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=rf"\(2, 5, 8\), the teacher's features \({shape[0]}, {shape[1]}, {shape[2]}\)"
    ):
        alignment_loss(Nothing(), torch.zeros(2, 5, 8), features([0, 1], torch.zeros(shape)))


# The network as it is trained, over micro-batches that the batch maker made.

BUCKET = Bucket(33, 32, 48)


def config(**changes: object) -> TrainConfig:
    sections: dict[str, object] = {
        "tread": TreadConfig(start_block=1, end_block=3, drop_ratio=0.5),
        "repa": RepaConfig(tap_block=2, weight=0.5, hidden_width=12),
        "i2v": I2VConfig(probability=0.5, image_tokens=True),
        **changes,
    }
    return TrainConfig(model=SHAPE, device="cpu", **sections)


def clip(name: str, teacher: str | None, bucket: Bucket = BUCKET, *, image: bool = True) -> ClipArrays:
    """A clip of random numbers whose teacher's features say where they are, as far as their width allows."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    frames, rows, columns = bucket.latent_shape

    def numbers(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float16)

    width = 0 if teacher is None else WIDTHS[teacher]
    return ClipArrays(
        clip_id=name,
        latent_TCHW=numbers(frames, 16, rows, columns),
        text_by_kind={kind: numbers(4, 8) for kind in ("long", "short", "first")},
        branch="video_real",
        teacher=teacher,
        teacher_TYXC=None if teacher is None else numbers(frames, rows // 2, columns // 2, width),
        image_ID=numbers(3, 6) if image else None,
    )


def micro_batch(settings: TrainConfig, *clips: ClipArrays, step: int = 0, bucket: Bucket = BUCKET) -> TrainingBatch:
    maker = BatchMaker(settings, np.zeros((2, 8), np.float16), StoredTeachers(WIDTHS))
    return maker(LaneBatch.of_clips(clips, step=step, micro=0, lane=0, bucket=bucket))


def network(settings: TrainConfig) -> TrainingNetwork:
    """With weights that are not those of the start, where every block does nothing."""
    built = build_network(settings, WIDTHS).to_empty(device="cpu")
    initialize_weights(built.dit, 3)
    initialize_weights(built.projectors, 3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return built.train()


def test_clips_of_one_step_are_aligned_to_teachers_of_different_widths_or_to_none() -> None:
    settings = config()
    built = network(settings)
    clips = [clip("a", "vjepa2"), clip("b", None), clip("c", "dinov2"), clip("d", "vjepa2")]
    batch = micro_batch(settings, *clips)
    assert {name: each.rows_N.tolist() for name, each in batch.teachers.items()} == {"dinov2": [2], "vjepa2": [0, 3]}
    assert batch.num_teachers == 3
    together = built(batch).repa_total
    alone = [built(micro_batch(settings, each)).repa_total for each in clips]
    assert together is not None
    assert torch.allclose(together, sum(alone), rtol=1e-5)
    assert alone[1] == 0.0 and min(alone[0], alone[2], alone[3]) > 0.1


def test_every_rank_has_gradients_for_the_same_parameters() -> None:
    """Whatever teachers, image tokens or neither a micro-batch has."""
    settings = config()
    built = network(settings)
    image = Bucket(1, 32, 48)
    batches = [
        micro_batch(settings, clip("a", "vjepa2"), clip("b", "dinov2")),
        micro_batch(settings, clip("c", "vjepa2"), clip("d", "vjepa2")),
        micro_batch(settings, clip("e", None), clip("f", None, image=False)),
        micro_batch(settings, clip("g", "dinov2", image), bucket=image),
        micro_batch(settings.model_copy(update={"tread": None}), clip("h", None, image), bucket=image),
    ]
    assert {batch.image_BID is None for batch in batches} == {True, False}
    seen = []
    for batch in batches:
        losses = built(batch)
        assert losses.repa_total is not None
        (losses.flow_total + losses.repa_total).backward()
        seen.append({name for name, parameter in built.named_parameters() if parameter.grad is not None})
        built.zero_grad(set_to_none=True)
    names = {name for name, _ in built.named_parameters()}
    assert all(each == names for each in seen), [names - each for each in seen]
    assert "projectors.dinov2.first.weight" in names and "projectors.vjepa2.third.bias" in names


@pytest.mark.parametrize("tap", [0, 2, 4], ids=["before the route", "inside", "after"])
def test_the_tapped_tokens_meet_the_features_of_their_place(tap: int) -> None:
    """Features are set to what the projector says of the token at their place: the loss is 0, and only then."""
    settings = config(repa=RepaConfig(tap_block=tap, weight=0.5, hidden_width=12))
    built = network(settings)
    batch = micro_batch(settings, clip("a", "vjepa2"), clip("b", "vjepa2"))
    caught: list[Tensor] = []
    hook = built.projectors["vjepa2"].register_forward_hook(lambda module, given, projected: caught.append(projected))
    built(batch)
    hook.remove()
    projected, tokens = caught[0].detach(), BUCKET.video_tokens
    assert batch.route is not None
    kept = batch.route.kept_BK if tap == 2 else torch.arange(tokens).expand(2, -1)
    assert projected.shape[1] == kept.shape[1]
    taught = batch.teachers["vjepa2"].features_NLC
    matching = torch.randn(2, tokens, WIDTHS["vjepa2"], generator=torch.Generator().manual_seed(0))
    matching.scatter_(1, kept[:, :, None].expand(-1, -1, WIDTHS["vjepa2"]), projected)
    losses = []
    for values in (matching, matching.roll(1, dims=1)):
        taught_here = {**batch.teachers, "vjepa2": features([0, 1], values)}
        with torch.no_grad():
            losses.append(built(replace(batch, teachers=taught_here)).repa_total.item())
    assert losses[0] == pytest.approx(0.0, abs=1e-5)
    assert losses[1] > 0.05
    assert taught.shape == matching.shape


def test_alignment_is_over_from_its_step_on_and_the_projectors_stay_in_the_graph() -> None:
    settings = config(repa=RepaConfig(tap_block=2, weight=0.5, hidden_width=12, until_step=3))
    built = network(settings)
    clips = [clip("a", "vjepa2"), clip("b", "dinov2")]
    assert micro_batch(settings, *clips, step=2).num_teachers == 2
    over = micro_batch(settings, *clips, step=3)
    assert over.num_teachers == 0
    losses = built(over)
    assert losses.repa_total is not None and losses.repa_total.item() == 0.0
    (losses.flow_total + losses.repa_total).backward()
    for parameter in built.projectors.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() == 0.0


def test_without_alignment_there_is_no_projector_and_no_loss() -> None:
    settings = config(repa=None)
    built = build_network(settings, {}).to_empty(device="cpu")
    initialize_weights(built.dit, 3)
    assert built.train()(micro_batch(settings, clip("a", "vjepa2"))).repa_total is None
    assert not [name for name, _ in built.named_parameters() if name.startswith("projectors.")]
    with pytest.raises(ConfigError, match="repa is on, but there is no teacher"):
        build_network(config(), {})
