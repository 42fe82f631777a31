"""The analytic FLOPs of schemas.model_shape against torch's own counter on the real network."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from schemas.buckets import CLASSES, FRAME_COUNTS, Bucket
from schemas.model_shape import MOTIF_2B, TINY, ModelShape
from training.dit.model import MotifVideoDiT
from training.dit.routing import Route


@cache
def network(shape: ModelShape) -> MotifVideoDiT:
    """On the meta device, where a route needs it to be in training."""
    with torch.device("meta"):
        return MotifVideoDiT(shape)


def counted(
    shape: ModelShape,
    latent_TYX: tuple[int, int, int],
    num_text: int,
    num_image: int,
    route: tuple[int, int, float] | None,
) -> int:
    """FLOPs of a dense or routed forward pass of one clip, counted on the meta device: nothing is computed."""
    frames, rows, columns = latent_TYX
    num_tokens = frames * (rows // 2) * (columns // 2)
    with torch.device("meta"):
        model = network(shape)
        image = torch.empty(1, num_image, shape.image_width or 0) if num_image else None
        drawn = None
        if route is not None:
            kept = torch.empty(1, max(1, round(num_tokens * (1 - route[2]))), dtype=torch.int64)
            drawn = Route(start=route[0], end=route[1], kept_BK=kept)
        arguments = (
            torch.empty(1, shape.in_channels, *latent_TYX),
            torch.empty(1),
            torch.empty(1, num_text, shape.text_width),
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*arguments, image_BID=image, route=drawn)
    return counter.get_total_flops()


BUCKETS = [Bucket(frames, height, width) for height, width in CLASSES.values() for frames in FRAME_COUNTS]


@pytest.mark.parametrize("route", [None, (2, 25, 0.5)], ids=["dense", "routed"])
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_2b_buckets_within_one_percent(bucket: Bucket, route: tuple[int, int, float] | None) -> None:
    analytic = MOTIF_2B.forward_flops(bucket.video_tokens, 512, route=route).total
    assert counted(MOTIF_2B, bucket.latent_shape, 512, 0, route) == pytest.approx(analytic, rel=0.01)


@pytest.mark.parametrize("route", [(0, 27, 0.75), (28, 35, 0.5)], ids=["whole encoder", "decoder"])
@pytest.mark.parametrize("bucket", [Bucket(1, 144, 256), Bucket(65, 368, 640)], ids=str)
def test_other_routes_within_one_percent(bucket: Bucket, route: tuple[int, int, float]) -> None:
    analytic = MOTIF_2B.forward_flops(bucket.video_tokens, 512, route=route).total
    assert counted(MOTIF_2B, bucket.latent_shape, 512, 0, route) == pytest.approx(analytic, rel=0.01)


def test_captions_of_mixed_length_cost_what_each_costs_alone() -> None:
    lengths, bucket = (512, 30, 7), Bucket(1, 144, 256)
    model = network(MOTIF_2B)
    with torch.device("meta"):
        arguments = (torch.empty(3, 33, *bucket.latent_shape), torch.empty(3), torch.empty(3, 512, 2560))
    mask = torch.arange(512)[None] < torch.tensor(lengths)[:, None]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*arguments, mask)
    analytic = sum(MOTIF_2B.forward_flops(bucket.video_tokens, length).total for length in lengths)
    assert counter.get_total_flops() == pytest.approx(analytic, rel=0.01)


def test_a_step_with_image_tokens_and_the_tiny_shape() -> None:
    analytic = MOTIF_2B.forward_flops(1296, 100, image_tokens=4096).total
    assert counted(MOTIF_2B, (9, 18, 32), 100, 4096, None) == pytest.approx(analytic, rel=0.01)
    analytic = TINY.forward_flops(252, 20, route=(1, 3, 0.5)).total
    assert counted(TINY, (9, 8, 14), 20, 0, (1, 3, 0.5)) == pytest.approx(analytic, rel=0.01)


def test_without_decoder_and_cross_attention() -> None:
    shape = MOTIF_2B.model_copy(update={"decoder_blocks": 0, "shared_cross_attention": False})
    analytic = shape.forward_flops(1296, 512).total
    assert counted(shape, (9, 18, 32), 512, 0, None) == pytest.approx(analytic, rel=0.01)
