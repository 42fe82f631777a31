"""Prompts to videos: solvers over the learned velocity, guidance, image-to-video, decoding.

prompts.py    texts to encoder states            solvers.py    Euler and DPM-Solver++ along a velocity
images.py     a picture to a first frame         guidance.py   two velocities to one
gallery.py    frames to MP4s and a sheet         integrate.py  noise to latents, with all of these
pipeline.py   a request to frames
"""

from training.sampler_config import LatentSize
from training.sampling.integrate import Conditions, Velocity, sample_latents, velocity_of
from training.sampling.pipeline import OpenSampler, SampledVideo, SampleRequest, open_sampler

__all__ = [
    "Conditions",
    "LatentSize",
    "OpenSampler",
    "SampleRequest",
    "SampledVideo",
    "Velocity",
    "open_sampler",
    "sample_latents",
    "velocity_of",
]
