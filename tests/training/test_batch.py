"""Micro-batches: first frames given and blurred, image tokens, captions and dropout in their shares, routes and teachers by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.buckets import Bucket
from schemas.errors import DataError
from schemas.model_shape import TINY
from training import randomness
from training.batch import BatchMaker, TrainingBatch, pad_texts
from training.config import BlurConfig, FlowConfig, I2VConfig, TextConfig, TrainConfig, TreadConfig
from training.flow import model_input
from training.loading.clip_arrays import ClipArrays
from training.loading.lane_batch import LaneBatch
from training.low_pass import low_pass

SHAPE = TINY.model_copy(update={"text_width": 4, "image_width": 6})
VIDEO, IMAGE = Bucket(33, 32, 48), Bucket(1, 32, 48)
LENGTHS = {"long": 5, "short": 3, "first": 2}
NULL_TEXT = np.full((1, 4), 9.0, np.float16)


def clip(name: str, bucket: Bucket = VIDEO, image_shape: tuple[int, int] | None = (3, 6)) -> ClipArrays:
    """Captions of a length of their own; image tokens of ones."""
    frames, rows, columns = bucket.latent_shape
    generator = np.random.default_rng(len(name))
    return ClipArrays(
        clip_id=name,
        latent_TCHW=generator.standard_normal((frames, 16, rows, columns)).astype(np.float16),
        text_by_kind={kind: np.full((length, 4), length, np.float16) for kind, length in LENGTHS.items()},
        image_ID=None if image_shape is None else np.ones(image_shape, np.float16),
    )


def make(settings: TrainConfig, clips: list[ClipArrays], step: int = 0, bucket: Bucket = VIDEO) -> TrainingBatch:
    return BatchMaker(settings, NULL_TEXT, None)(LaneBatch.of_clips(clips, step=step, micro=0, lane=0, bucket=bucket))


def config(**sections: object) -> TrainConfig:
    return TrainConfig(model=SHAPE, device="cpu", **sections)


def names(count: int) -> list[str]:
    return [f"clip{index}" for index in range(count)]


def test_captions_and_dropout_come_in_their_shares() -> None:
    """What the network is really given, over 4000 clips: null text 0.1, else long 0.5, short 0.3, first sentence 0.2."""
    clips = [clip(name, IMAGE) for name in names(4000)]
    batch = make(config(), clips, bucket=IMAGE)
    lengths = batch.text_mask_BE.sum(dim=1)
    shares = {length: (lengths == length).double().mean().item() for length in (1, 2, 3, 5)}
    expected = {1: 0.1, 2: 0.9 * 0.2, 3: 0.9 * 0.3, 5: 0.9 * 0.5}
    for length, share in expected.items():
        # Four standard deviations of 4000 draws.
        assert shares[length] == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5), length
    dropped = lengths == 1
    assert (batch.text_BED[dropped, 0] == 9.0).all()
    assert not batch.text_mask_BE[dropped, 1:].any()
    again = make(config(), clips, step=1, bucket=IMAGE)
    assert not torch.equal(again.text_mask_BE, batch.text_mask_BE)


def test_first_frames_are_given_with_their_probability_and_never_to_images() -> None:
    settings = config(i2v=I2VConfig(probability=0.3))
    given = torch.cat(
        [make(settings, [clip(name) for name in names(40)], step=step).first_frame_given_B for step in range(20)]
    )
    assert given.double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 800) ** 0.5)
    always = config(i2v=I2VConfig(probability=1.0, image_tokens=True))
    images = make(always, [clip(name, IMAGE) for name in names(4)], bucket=IMAGE)
    assert not images.first_frame_given_B.any() and images.image_BID is None
    stacked = model_input(images.noise_BCTYX, images.condition_BCTYX, images.first_frame_given_B)
    assert stacked[:, 16:].abs().max() == 0.0
    never = make(config(), [clip(name) for name in names(4)])
    stacked = model_input(never.noise_BCTYX, never.condition_BCTYX, never.first_frame_given_B)
    assert stacked[:, 16:].abs().max() == 0.0


def test_image_tokens_go_to_clips_whose_first_frame_is_given_and_that_have_some() -> None:
    settings = config(i2v=I2VConfig(probability=0.5, image_tokens=True))
    clips = [clip(name, image_shape=None if index % 3 == 0 else (3, 6)) for index, name in enumerate(names(30))]
    batch = make(settings, clips)
    assert batch.image_BID is not None and batch.image_given_B is not None
    has_tokens = torch.tensor([each.image_ID is not None for each in clips])
    assert torch.equal(batch.image_given_B, batch.first_frame_given_B & has_tokens)
    assert 0 < batch.image_given_B.sum() < batch.first_frame_given_B.sum() < 30
    assert (batch.image_BID[batch.image_given_B] == 1.0).all() and (batch.image_BID[~batch.image_given_B] == 0.0).all()
    assert make(config(i2v=I2VConfig(probability=0.5)), clips).image_BID is None


def test_image_tokens_count_in_the_flops_of_the_clips_that_have_them() -> None:
    settings = config(i2v=I2VConfig(probability=1.0, image_tokens=True), text=TextConfig(dropout_probability=1.0))
    batch = make(settings, [clip("a"), clip("b", image_shape=None)])
    expected = settings.forward_flops(VIDEO, 1, image_tokens=3) + settings.forward_flops(VIDEO, 1)
    assert batch.forward_flops == expected
    padded = make(settings.model_copy(update={"compile": True}), [clip("a"), clip("b", image_shape=None)])
    assert padded.forward_flops == expected, "padding that is computed is no work done"


def test_image_tokens_of_two_encoders_are_refused() -> None:
    settings = config(i2v=I2VConfig(probability=1.0, image_tokens=True))
    with pytest.raises(DataError, match=r"shapes \[\(3, 6\), \(4, 6\)\] in one micro-batch"):
        make(settings, [clip("a"), clip("b", image_shape=(4, 6))])


def test_blur_falls_on_given_frames_and_grows_towards_noise() -> None:
    blur = BlurConfig(probability=0.5, factor_at_noise=0.25)
    settings = config(i2v=I2VConfig(probability=0.5, blur=blur), flow=FlowConfig(time_density="uniform"))
    clips = [clip(name) for name in names(60)]
    batch = make(settings, clips)
    first = batch.clean_BCTYX[:, :, :1]
    blurred = (batch.condition_BCTYX != first).flatten(1).any(dim=1)
    assert 0 < blurred.sum() < batch.first_frame_given_B.sum()
    assert not (blurred & ~batch.first_frame_given_B).any()
    drawn = randomness.chance(settings.seed, 0, batch.clip_ids, "blur", 0.5) & batch.first_frame_given_B
    for index in drawn.nonzero().flatten().tolist():
        factor = 1.0 - 0.75 * batch.sigma_B[index].item()
        assert torch.equal(batch.condition_BCTYX[index], low_pass(first[index], factor))
    assert torch.equal(make(settings, clips).condition_BCTYX, batch.condition_BCTYX)
    # The target stays sharp: only the condition is blurred.
    plain = make(config(flow=FlowConfig(time_density="uniform")), clips)
    assert torch.equal(plain.clean_BCTYX, batch.clean_BCTYX) and torch.equal(plain.noise_BCTYX, batch.noise_BCTYX)
    factors = [blur.factor_at(sigma) for sigma in (0.0, 0.5, 1.0)]
    assert factors == [1.0, 0.625, 0.25]
    assert BlurConfig(probability=1.0, power=2.0).factor_at(0.5) == pytest.approx(1 - 0.6 / 4)


def test_a_route_ends_at_its_step_and_the_flops_say_so() -> None:
    tread = TreadConfig(start_block=1, end_block=3, drop_ratio=0.5, until_step=2)
    settings = config(tread=tread, text=TextConfig(dropout_probability=1.0))
    routed, dense = (make(settings, [clip("a")], step=step) for step in (1, 2))
    assert routed.route is not None and routed.route.kept_BK.shape == (1, VIDEO.video_tokens // 2)
    assert dense.route is None
    assert routed.forward_flops == settings.forward_flops(VIDEO, 1)
    assert dense.forward_flops == settings.forward_flops(VIDEO, 1, routed=False) > routed.forward_flops


def test_a_route_that_drops_nothing_is_the_dense_pass() -> None:
    for start, end in ((0, 4), (1, 3), (5, 6)):
        nothing = config(tread=TreadConfig(start_block=start, end_block=end, drop_ratio=0.0))
        routed, dense = make(nothing, [clip("a")]), make(config(), [clip("a")])
        assert routed.route is None
        assert routed.forward_flops == dense.forward_flops


def test_times_follow_the_resolution() -> None:
    """The same uniforms, shifted by sqrt(tokens / base tokens): larger clips see more noise."""
    flow = FlowConfig(shift=1.0, shift_base_tokens=IMAGE.video_tokens)
    small, large = (make(config(flow=flow), [clip(n, b) for n in names(64)], bucket=b).sigma_B for b in (IMAGE, VIDEO))
    shift = (VIDEO.video_tokens / IMAGE.video_tokens) ** 0.5
    assert torch.allclose(large, shift * small / (1 + (shift - 1) * small))
    assert (large > small).all()
    one_shift = FlowConfig(shift=1.0)
    equal = (make(config(flow=one_shift), [clip(n, b) for n in names(8)], bucket=b).sigma_B for b in (IMAGE, VIDEO))
    assert torch.equal(*equal)


def test_texts_are_padded_to_the_longest_or_the_next_multiple() -> None:
    texts = [np.ones((length, 4), np.float16) for length in (3, 5)]
    for multiple, expected in ((1, 5), (4, 8), (5, 5)):
        padded, mask = pad_texts(texts, multiple)
        assert padded.shape == (2, expected, 4)
        assert mask.sum(dim=1).tolist() == [3, 5]
        assert (padded[~mask] == 0).all() and (padded[mask] == 1).all()
    assert make(config(text=TextConfig(length_multiple=8)), [clip("a")]).text_BED.shape[1] == 8


def test_a_batch_moves_its_tensors_and_keeps_what_the_host_reads() -> None:
    settings = config(
        i2v=I2VConfig(probability=1.0, image_tokens=True), tread=TreadConfig(start_block=1, end_block=2, drop_ratio=0.5)
    )
    batch = make(settings, [clip("a"), clip("b")])
    moved = batch.to(torch.device("meta"))
    assert moved.clean_BCTYX.is_meta and moved.condition_BCTYX.is_meta and moved.text_BED.is_meta
    assert moved.route is not None and moved.route.kept_BK.is_meta
    assert moved.image_BID is not None and moved.image_BID.is_meta
    assert moved.image_given_B is batch.image_given_B and moved.text_mask_BE is batch.text_mask_BE


def test_a_device_widens_latents_to_the_floats_that_a_cpu_makes() -> None:
    """What `to` does with latents as they were read: (B, T, C, Y, X) in float16."""
    from training.batch import _widened

    clips = [clip("a"), clip("b")]
    batch = LaneBatch.of_clips(clips, step=0, micro=0, lane=0, bucket=VIDEO)
    widened = _widened(batch.latents().transpose(1, 2))
    assert widened.is_contiguous() and torch.equal(widened, make(config(), clips).clean_BCTYX)
    assert _widened(widened) is widened


def test_a_batch_takes_no_more_than_it_said_before() -> None:
    settings = config(
        i2v=I2VConfig(probability=1.0, image_tokens=True, blur=BlurConfig(probability=1.0)),
        tread=TreadConfig(start_block=1, end_block=3, drop_ratio=0.5),
    )
    clips = [clip(name) for name in names(5)]
    maker = BatchMaker(settings, NULL_TEXT, None, largest_members=(128 + 5 * 4 * 2, 128 + 3 * 6 * 2))
    batch = maker(LaneBatch.of_clips(clips, step=0, micro=0, lane=0, bucket=VIDEO))
    tensors = [
        getattr(batch, name) for name in ("clean_BCTYX", "noise_BCTYX", "condition_BCTYX", "text_BED", "image_BID")
    ]
    assert batch.route is not None
    taken = sum(tensor.nbytes for tensor in tensors) + batch.route.kept_BK.nbytes
    assert taken <= maker.prepared_bytes(VIDEO, 5) < 1.5 * taken
