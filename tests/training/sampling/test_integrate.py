"""From noise to latents with known velocity fields in place of the network: guidance, passes, seeds, a given first frame, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.config import build_config
from schemas.errors import UsageError
from training import randomness
from training.low_pass import low_pass
from training.sampler_config import SamplerConfig
from training.sampling import Conditions, LatentSize, sample_latents

CPU = torch.device("cpu")
SIZE = LatentSize(5, 16, 32)
SHAPE = (16, 2, 2, 4)


class Field:
    """`mean of the text + scale * x`; notes its calls."""

    def __init__(self, scale: float = 0.0) -> None:
        self.scale = scale
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        latent_BCTYX: Tensor,
        timestep_B: Tensor,
        text_BED: Tensor,
        text_mask_BE: Tensor | None,
        image_BID: Tensor | None,
        /,
    ) -> Tensor:
        self.calls.append({"latent": latent_BCTYX, "timestep": timestep_B, "mask": text_mask_BE, "image": image_BID})
        mask = torch.ones(text_BED.shape[:2], dtype=torch.bool) if text_mask_BE is None else text_mask_BE
        mean_B = text_BED.float().sum(dim=(1, 2)) / (mask.sum(dim=1) * text_BED.shape[2])
        return mean_B.view(-1, 1, 1, 1, 1) + self.scale * latent_BCTYX[:, :16]


def text(value: float, tokens: int = 3) -> np.ndarray:
    return np.full((tokens, 4), value, np.float16)


def sample(field: Field, *, seeds: tuple[int, ...] = (3,), shift: float = 1.0, **options: Any) -> Tensor:
    conditions = Conditions(
        texts=options.pop("texts", [text(0.5)] * len(seeds)),
        null_text_ED=text(0.125, 1),
        first_frame_BCYX=options.pop("first_frame", None),
        image_BID=options.pop("image", None),
    )
    size = options.pop("size", SIZE)
    config = build_config(SamplerConfig, {"num_steps": 4, "guidance": 1.0, **options}, source="test")
    return sample_latents(field, conditions, size, config, channels=16, shift=shift, seeds=seeds, device=CPU)


def noise(seed: int) -> Tensor:
    return randomness.noise(seed, 0, ["sample"], SHAPE)[0].transpose(0, 1)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_a_constant_velocity_is_integrated_exactly_and_guidance_extrapolates(solver: str) -> None:
    torch.testing.assert_close(sample(Field(), solver=solver)[0], noise(3) - 0.5)
    torch.testing.assert_close(sample(Field(), solver=solver, guidance=0.0)[0], noise(3) - 0.125)
    guided = sample(Field(), solver=solver, guidance=4.0, shift=3.0)[0]
    torch.testing.assert_close(guided, noise(3) - (0.125 + 4.0 * 0.375))


def test_more_steps_come_closer_to_the_exact_flow() -> None:
    exact = (noise(3) + 0.5) * np.exp(-1.0) - 0.5  # dx/ds = 0.5 + x from s = 1 to 0
    errors = [float((sample(Field(1.0), num_steps=steps)[0] - exact).abs().max()) for steps in (5, 10, 20)]
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2] > 0


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"guidance": 1.0}, 1),
        ({"guidance": 4.0}, 2),
        ({"guidance_kind": "apg", "guidance": 0.0}, 1),
        ({"guidance_kind": "apg", "guidance": 8.0}, 2),
    ],
)
def test_passes_of_a_step(options: dict[str, Any], passes: int) -> None:
    field = Field()
    sample(field, **options)
    assert len(field.calls) == 4 * passes
    assert [float(call["timestep"][0]) for call in field.calls[::passes]] == [1000.0, 750.0, 500.0, 250.0]


def test_a_batch_gives_each_clip_what_it_gets_alone() -> None:
    texts = [text(0.5), text(-0.25, 5), text(0.0, 1)]
    together = sample(Field(0.5), seeds=(3, 3, 9), texts=texts, guidance=3.0)
    for index, seed in enumerate((3, 3, 9)):
        alone = sample(Field(0.5), seeds=(seed,), texts=texts[index : index + 1], guidance=3.0)
        torch.testing.assert_close(together[index], alone[0])
    assert together.shape == (3, 2, 16, 2, 4) and together.dtype == torch.float32
    assert not torch.equal(together[0], together[2])


def test_no_mask_is_given_where_no_text_is_padded() -> None:
    field = Field()
    sample(field, seeds=(1, 2), texts=[text(0.5), text(0.25)], guidance=2.0)
    assert all(call["mask"] is None for call in field.calls)
    field = Field()
    sample(field, seeds=(1, 2), texts=[text(0.5), text(0.25, 5)], guidance=2.0)
    assert [call["mask"] is None for call in field.calls[:2]] == [False, True]


def test_a_given_frame_is_low_passed_for_the_first_share_of_the_steps() -> None:
    field, frame = Field(), torch.randn(1, 16, 2, 4)
    image = torch.zeros(1, 7, 6)
    sample(field, first_frame=frame, image=image, num_steps=10, guidance=2.0, low_pass={"factor": 0.5, "share": 0.2})
    for index, call in enumerate(field.calls):
        condition, mask = call["latent"][:, 16:32], call["latent"][:, 32:]
        expected = low_pass(frame, 0.5) if index // 2 < 2 else frame
        assert torch.equal(condition[:, :, 0], expected), index
        assert not condition[:, :, 1:].any()
        assert mask[:, :, 0].eq(1).all() and not mask[:, :, 1:].any()
        assert call["image"] is image
    assert not torch.equal(low_pass(frame, 0.5), frame)


def test_without_a_given_frame_condition_and_mask_are_zero() -> None:
    field = Field()
    sample(field)
    assert not any(call["latent"][:, 16:].any() for call in field.calls)
    field = Field()
    sample(field, first_frame=torch.randn(1, 16, 2, 4), low_pass={"share": 0.0})
    assert all(call["latent"][:, 16:32, 0].any() for call in field.calls)


@pytest.mark.parametrize("frames", [1, 5, 125, 241])
def test_any_length_and_side_can_be_sampled(frames: int) -> None:
    latent = sample(Field(), size=LatentSize(frames, 48, 16))
    assert latent.shape == (1, (frames - 1) // 4 + 1, 16, 6, 2)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((32, 16, 16), "frames is 32, expected 4k"),
        ((0, 16, 16), "frames is 0"),
        ((5, 60, 16), "height is 60, expected a positive multiple of 16"),
        ((5, 16, 0), "width is 0"),
    ],
)
def test_impossible_sizes_are_refused_in_words(size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LatentSize(*size)
    assert message in str(caught.value)
