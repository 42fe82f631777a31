"""Stateless draws: functions of their key alone, independent between keys, with the shares asked for."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from training.randomness import CAPTION_SHARES, caption_kind, chance, noise, stream, uniform

CLIPS = [f"clip{index}" for index in range(4000)]


@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 2**40), clip=st.text(max_size=40))
def test_a_stream_is_a_function_of_its_key(seed: int, step: int, clip: str) -> None:
    first = stream(seed, step, clip, "noise").random(4)
    assert np.array_equal(first, stream(seed, step, clip, "noise").random(4))
    for other in (
        stream(seed + 1, step, clip, "noise"),
        stream(seed, step + 1, clip, "noise"),
        stream(seed, step, clip + "x", "noise"),
        stream(seed, step, clip, "timestep"),
    ):
        assert not np.array_equal(first, other.random(4))


def test_fields_of_a_key_do_not_run_together() -> None:
    assert stream(1, 23, "x", "noise").random() != stream(12, 3, "x", "noise").random()


def test_seeds_that_agree_in_32_bits_differ() -> None:
    """torch.Generator on the CPU would not tell these apart."""
    assert stream(5, 0, "x", "noise").random() != stream(5 + 2**32, 0, "x", "noise").random()


def test_known_values() -> None:
    """Fixed for ever: a change here breaks the resume of every run. Uniforms need no NumPy sampler, only Philox."""
    values = uniform(7, 11, ["a", "b"], "timestep").tolist()
    assert [value.hex() for value in values] == ["0x1.5255702c30c40p-6", "0x1.0b4d299759500p-6"]


def test_draws_do_not_depend_on_company_or_order() -> None:
    shape = (2, 3, 4, 5)
    together = noise(1, 2, ["a", "b", "c"], shape)
    assert torch.equal(together.flip(0), noise(1, 2, ["c", "b", "a"], shape))
    assert torch.equal(together[1:2], noise(1, 2, ["b"], shape))
    assert together.dtype == torch.float32


def test_another_process_draws_the_same() -> None:
    code = "from training.randomness import noise; print(noise(1, 2, ['a'], (1, 2, 2, 2)).flatten().tolist())"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == str(noise(1, 2, ["a"], (1, 2, 2, 2)).flatten().tolist())


def test_noise_is_standard_normal_and_uncorrelated_between_clips() -> None:
    drawn = noise(1, 2, CLIPS[:64], (4, 4, 8, 8)).flatten(1)
    assert abs(drawn.mean().item()) < 0.01
    assert abs(drawn.std().item() - 1.0) < 0.01
    correlation = torch.corrcoef(drawn) - torch.eye(64)
    assert correlation.abs().max() < 0.2


def test_chance_has_its_probability_and_its_ends() -> None:
    # Four standard deviations of 4000 draws at 0.1 are 0.019.
    assert abs(chance(0, 0, CLIPS, "text_dropout", 0.1).double().mean().item() - 0.1) < 0.019
    assert not chance(0, 0, CLIPS, "text_dropout", 0.0).any()
    assert chance(0, 0, CLIPS, "text_dropout", 1.0).all()
    dropped, given_frame = chance(0, 0, CLIPS, "text_dropout", 0.5), chance(0, 0, CLIPS, "image_to_video", 0.5)
    assert abs((dropped == given_frame).double().mean().item() - 0.5) < 0.04
    with pytest.raises(ConfigError, match=r"text_dropout is 1\.5"):
        chance(0, 0, CLIPS, "text_dropout", 1.5)


def test_captions_come_in_their_shares() -> None:
    kinds = [caption_kind(0, 0, clip) for clip in CLIPS]
    for kind, share in CAPTION_SHARES.items():
        assert abs(kinds.count(kind) / len(kinds) - share) < 0.032
    assert {caption_kind(0, step, "a") for step in range(50)} == {"long", "short", "first"}


def test_captions_that_a_clip_lacks_are_never_chosen() -> None:
    kinds = [caption_kind(0, 0, clip, ("short", "first")) for clip in CLIPS]
    assert abs(kinds.count("short") / len(kinds) - 0.6) < 0.032
    assert "long" not in kinds
    with pytest.raises(ConfigError, match="clip a: no caption to choose"):
        caption_kind(0, 0, "a", ())
    with pytest.raises(ConfigError, match="no caption to choose"):
        caption_kind(0, 0, "a", ("long",), {"long": 0.0, "short": 1.0})
