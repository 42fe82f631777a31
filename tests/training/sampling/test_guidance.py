"""Guidance against diffusers' own guider, and against what it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.config import build_config
from schemas.errors import ConfigError
from training.sampler_config import SamplerConfig
from training.sampling.guidance import build_guidance


def velocities(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text, null = (torch.randn(2, 16, 3, 4, 6, generator=generator) for _ in range(2))
    return text, null


def sampler(**values: Any) -> SamplerConfig:
    return build_config(SamplerConfig, values, source="test")


@pytest.mark.parametrize(
    "apg",
    [
        {},
        {"momentum": -0.5, "eta": 0.3},
        {"momentum": 0.0, "norm_threshold": 0.0},
        {"norm_threshold": 1e6, "eta": 1.0},
    ],
)
def test_projected_guidance_equals_that_of_diffusers_over_several_steps(apg: dict[str, float]) -> None:
    from diffusers.guiders import AdaptiveProjectedGuidance

    config = sampler(guidance_kind="apg", guidance=8.0, apg=apg)
    ours = build_guidance(config)
    assert ours is not None
    theirs = AdaptiveProjectedGuidance(
        guidance_scale=8.0,
        adaptive_projected_guidance_momentum=config.apg.momentum,
        adaptive_projected_guidance_rescale=config.apg.norm_threshold,
        adaptive_projected_guidance_norm_dim=(-1, -2, -4),
        eta=config.apg.eta,
        use_original_formulation=True,
    )
    for step in range(3):
        text, null = velocities(step)
        theirs.set_state(step=step, num_inference_steps=3, timestep=torch.tensor(1.0))
        theirs.prepare_inputs({"x": (text, null)})
        torch.testing.assert_close(ours.combine(text, null), theirs.forward(text, null).pred, rtol=1e-6, atol=1e-6)


def test_classifier_free_guidance_extrapolates() -> None:
    text, null = velocities(0)
    guidance = build_guidance(sampler(guidance=4.0))
    assert guidance is not None
    torch.testing.assert_close(guidance.combine(text, null), null + 4.0 * (text - null))


def test_projected_guidance_leaves_out_what_is_only_louder_and_treats_frames_apart() -> None:
    text, _ = velocities(0)
    guidance = build_guidance(sampler(guidance_kind="apg", guidance=8.0))
    assert guidance is not None
    torch.testing.assert_close(guidance.combine(text, 0.5 * text), text, rtol=0, atol=1e-5)
    null = text.clone()
    null[:, :, 1] += 1.0
    moved = (guidance.combine(text, null) - text).abs().amax(dim=(0, 1, 3, 4))
    assert moved[1] > 0.1 and moved[0] < 1e-5 and moved[2] < 1e-5


def test_a_long_difference_is_cut_to_the_threshold() -> None:
    text, null = velocities(0)
    guidance = build_guidance(sampler(guidance_kind="apg", guidance=1.0, apg={"eta": 1.0, "norm_threshold": 2.0}))
    assert guidance is not None
    lengths = torch.linalg.vector_norm(guidance.combine(text, null) - text, dim=(-1, -2, -4))
    torch.testing.assert_close(lengths, torch.full((2, 3), 2.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ({"guidance": 1.0}, 1),
        ({"guidance": 0.0}, 2),
        ({"guidance_kind": "apg", "guidance": 0.0}, 1),
        ({"guidance_kind": "apg", "guidance": 1.0}, 2),
    ],
)
def test_guidance_that_changes_nothing_is_not_computed(values: dict[str, Any], passes: int) -> None:
    assert sampler(**values).num_passes == passes
    assert (build_guidance(sampler(**values)) is None) == (passes == 1)


def test_a_negative_prompt_without_guidance_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative_prompt 'blur' has no effect with guidance 1"):
        sampler(guidance=1.0, negative_prompt="blur")
