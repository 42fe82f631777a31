"""The validation loss against one worked out by hand, whatever the ranks and passes; which clips are held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.buckets import Bucket
from schemas.errors import DataError, ShardError, UsageError
from schemas.shards import shard_name
from training import randomness
from training.config import FlowConfig
from training.evaluation.held_out import HeldOutSets, open_held_out
from training.evaluation.settings import ValidationConfig
from training.evaluation.validation import Validation, ValidationResult, quantile_sigmas
from training.set_encoders import encoders_of


def zero(latent: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None, image: Tensor | None, /) -> Tensor:
    """A network that always answers 0: the loss is the mean square of the target."""
    return torch.zeros_like(latent[:, :16])


def measure(
    held_out: HeldOutSets, *, velocity: Any = zero, world_size: int = 1, per_pass: int = 4, **config: Any
) -> ValidationResult:
    """Every rank's part in turn, summed as the ranks would."""
    parts = []
    for rank in range(world_size):
        validation = Validation(
            held_out,
            ValidationConfig(**config),
            FlowConfig(shift=2.0),
            clips_per_pass=lambda _: per_pass,
            rank=rank,
            world_size=world_size,
        )
        world: Any = SimpleNamespace(device=torch.device("cpu"), sum_float64=lambda values: values)
        parts.append(validation.measure(velocity, world))
    summed = sum((part.losses_NS for part in parts[1:]), parts[0].losses_NS)
    return ValidationResult(clips=parts[0].clips, losses_NS=summed, sigmas_by_bucket=parts[0].sigmas_by_bucket)


@pytest.fixture(scope="module")
def held_out(tiny_set: Path) -> HeldOutSets:
    return open_held_out([tiny_set], clips_per_bucket=3)


def test_the_loss_is_the_mean_square_of_the_target(held_out: HeldOutSets) -> None:
    result = measure(held_out, num_timesteps=2, seed=5)
    for index, clip in enumerate(result.clips):
        clean = torch.from_numpy(held_out.read(clip).latent_TCHW.astype(np.float32)).transpose(0, 1)
        noise = randomness.noise(5, -1, [clip.clip_id], (16, *clip.bucket.latent_shape))[0]
        expected = float((noise - clean).square().mean())
        assert result.losses_NS[index].tolist() == pytest.approx([expected, expected], rel=1e-5)
    assert result.loss == pytest.approx(result.losses_NS.mean())


@pytest.mark.parametrize("world_size", [2, 3, 100])
def test_ranks_share_the_work_and_get_the_same_bits(held_out: HeldOutSets, world_size: int) -> None:
    alone = measure(held_out, num_timesteps=3)
    assert np.array_equal(measure(held_out, num_timesteps=3, world_size=world_size).losses_NS, alone.losses_NS)


def test_every_rank_runs_equally_many_passes(held_out: HeldOutSets) -> None:
    counts = []
    for rank in range(3):
        calls: list[int] = []

        def velocity(latent: Tensor, *others: Any, calls: list[int] = calls) -> Tensor:
            calls.append(len(latent))
            return torch.zeros_like(latent[:, :16])

        validation = Validation(
            held_out,
            ValidationConfig(num_timesteps=1),
            FlowConfig(),
            clips_per_pass=lambda _: 2,
            rank=rank,
            world_size=3,
        )
        validation.measure(velocity, SimpleNamespace(device=torch.device("cpu"), sum_float64=list))  # type: ignore[arg-type]
        counts.append(len(calls))
    assert counts == [3, 3, 3]  # 4 buckets x 3 clips in passes of 2: 8 passes


def test_times_cover_the_training_density_and_are_told_to_the_network(held_out: HeldOutSets) -> None:
    flow = FlowConfig(shift=2.0)
    sigmas = quantile_sigmas(flow, 100, 8)
    logits = torch.logit(sigmas / (2.0 - sigmas))  # the shift undone
    levels = 0.5 * (1 + torch.erf(logits / math.sqrt(2)))
    torch.testing.assert_close(levels, (torch.arange(8, dtype=torch.float64) + 0.5) / 8)
    told: set[float] = set()

    def velocity(latent: Tensor, timestep: Tensor, *others: Any) -> Tensor:
        told.update(timestep.tolist())
        assert not latent[:, 16:].any(), "nothing is given in validation"
        return torch.zeros_like(latent[:, :16])

    measure(held_out, velocity=velocity, num_timesteps=8)
    assert sorted(told) == pytest.approx((1000 * sigmas).tolist(), rel=1e-6)


def test_the_sum_does_not_hang_on_the_size_of_a_pass(held_out: HeldOutSets) -> None:
    left, right = measure(held_out, per_pass=1, num_timesteps=4), measure(held_out, per_pass=7, num_timesteps=4)
    np.testing.assert_allclose(left.losses_NS, right.losses_NS, rtol=1e-6)


def test_buckets_are_told_apart(held_out: HeldOutSets) -> None:
    line = measure(held_out, num_timesteps=2).line()
    assert list(line["buckets"]) == ["1x32x48", "1x48x32", "33x32x48", "65x32x48"]
    for bucket in line["buckets"].values():
        assert bucket["clips"] == 3 and len(bucket["by_time"]) == 2
        assert bucket["loss"] == pytest.approx(np.mean([one["loss"] for one in bucket["by_time"]]))


def test_long_clips_are_cut_and_the_choice_hangs_on_ids_alone(tiny_set: Path) -> None:
    every = open_held_out([tiny_set])
    assert len(every.clips) == 40
    few = open_held_out([tiny_set], clips_per_bucket=2, max_frames=33)
    assert {clip.bucket for clip in few.clips} == {Bucket(1, 32, 48), Bucket(1, 48, 32), Bucket(33, 32, 48)}
    for clip in few.clips:
        assert few.read(clip).latent_TCHW.shape[0] == clip.bucket.latent_shape[0]
    more = open_held_out([tiny_set], clips_per_bucket=5, max_frames=33)
    assert {clip.clip_id for clip in few.clips} <= {clip.clip_id for clip in more.clips}


def test_shared_sources_are_said_and_shared_clips_refused(
    tiny_set: Path, tmp_path: Path, make_set: Callable[..., Path], clip_type: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError, match="40 of 40 clips"):
        open_held_out([tiny_set], trained_on=[tiny_set])
    other = make_set(tmp_path / "other", [clip_type(1)], first=500)
    assert open_held_out([other], trained_on=[tiny_set]).notes == ()


def test_a_damaged_clip_ends_the_run_before_it_begins(
    tmp_path: Path, make_set: Callable[..., Path], clip_type: Callable[..., Any]
) -> None:
    folder = make_set(tmp_path / "set", [clip_type(1)])
    path = folder / shard_name(0)
    data = bytearray(path.read_bytes())
    data[700] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(ShardError, match="damaged"):
        measure(open_held_out([folder]))


def test_sets_of_other_encoders_are_refused(
    tiny_set: Path, tmp_path: Path, make_set: Callable[..., Path], clip_type: Callable[..., Any]
) -> None:
    wide = make_set(tmp_path / "wide", [clip_type(1)], first=500, text_width=24)
    with pytest.raises(DataError, match="text_width is 24"):
        open_held_out([wide], expected=encoders_of(open_held_out([tiny_set]).info))
