"""The sampler on a GPU in bf16 follows the CPU in fp32; marked `gpu`; says so and does not run where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.model_shape import TINY
from training.dit.initialization import build_model
from training.sampler_config import LatentSize, SamplerConfig
from training.sampling import Conditions, sample_latents, velocity_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device: sampling on a GPU was NOT exercised"
    ),
]


@pytest.mark.parametrize(
    "sampler", [SamplerConfig(num_steps=4), SamplerConfig(num_steps=4, solver="dpmpp_2m", guidance_kind="apg")]
)
def test_bf16_on_cuda_follows_fp32_on_the_cpu(sampler: SamplerConfig) -> None:
    network = build_model(TINY, seed=0).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    states = np.random.default_rng(0).standard_normal((2, 5, TINY.text_width)).astype(np.float16)
    found = []
    for device, dtype in ((torch.device("cpu"), torch.float32), (torch.device("cuda"), torch.bfloat16)):
        found.append(
            sample_latents(
                velocity_of(network.to(device, dtype)),
                Conditions(
                    texts=[states[0], states[1, :3]],
                    null_text_ED=states[1, :1],
                    first_frame_BCYX=torch.ones(2, 16, 4, 6),
                ),
                LatentSize(9, 32, 48),
                sampler,
                channels=16,
                shift=1.0,
                seeds=[0, 1],
                device=device,
            )
        )
    assert found[1].device.type == "cpu" and found[1].dtype == torch.float32
    difference = (found[1] - found[0]).square().mean().sqrt() / found[0].square().mean().sqrt()
    assert difference < 0.05
