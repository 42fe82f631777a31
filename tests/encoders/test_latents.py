"""Codecs: shape, scale, exact prefixes, round trips; the real Wan class in a tiny random-weight configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders.dct import DctCodec, _analysis, _synthesis
from encoders.latents import LatentCodec, get_codec
from encoders.tiling import tile_spans, tile_weights
from schemas.errors import ConfigError, DataError, ModelMissingError

Video = Callable[[str, int], NDArray[np.uint8]]
Photo = Callable[[str], NDArray[np.uint8]]


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def shrunk(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    import cv2

    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


@pytest.fixture(scope="module")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> Path:
    """The real class, 16 latent channels, a few thousand random weights, saved as a repository lays it out."""
    return Path(tiny_models.tiny_wan(tmp_path_factory.mktemp("wan")))


@pytest.fixture(params=["dct", "wan"])
def codec(request: pytest.FixtureRequest, tiny_wan: Path) -> LatentCodec:
    return get_codec("dct") if request.param == "dct" else get_codec("wan", path=tiny_wan)


def test_shapes_and_types(codec: LatentCodec, video: Video) -> None:
    frames = shrunk(video("bikes", 17), 64, 112)
    latent = codec.encode(frames)
    assert latent.shape == (5, 16, 8, 14) and latent.dtype == np.float16 and latent.flags.c_contiguous
    decoded = codec.decode(latent)
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    assert len(codec.mean) == len(codec.std) == codec.channels == 16


@pytest.mark.parametrize("prefix", [1, 5, 9])
def test_prefix_of_a_clip_has_the_prefix_of_its_latent(codec: LatentCodec, video: Video, prefix: int) -> None:
    frames = shrunk(video("bikes", 17), 64, 112)
    latent = codec.encode(frames)
    assert np.array_equal(codec.encode(frames[:prefix]), latent[: (prefix - 1) // 4 + 1])


CODECS: list[tuple[str, dict[str, Any], float]] = [
    ("dct", {}, 0.0),
    ("wan", {}, 0.0),
    ("wan", {"frames_per_call": 8}, 2e-3),
    ("wan", {"tile_pixels": 32, "tile_overlap_pixels": 16}, 0.0),
]


@pytest.mark.parametrize(("name", "options", "tolerance"), CODECS)
def test_the_33_and_65_frame_clips_are_prefixes_of_the_121_frame_clip(
    name: str, options: dict[str, Any], tolerance: float, tiny_wan: Path, video: Video
) -> None:
    """Bit for bit, also with tiles; with several groups in a call to the rounding of another order of sums."""
    codec = get_codec(name, **({"path": tiny_wan} if name == "wan" else {}), **options)
    frames = shrunk(video("bikes", 121), 48, 64)
    latent = codec.encode(frames).astype(np.float32)
    assert latent.shape == (31, 16, 6, 8)
    for short in (33, 65):
        found = codec.encode(frames[:short]).astype(np.float32)
        assert np.abs(found - latent[: (short - 1) // 4 + 1]).max() <= tolerance


def test_wan_equals_the_network_of_diffusers_whatever_goes_into_a_call(tiny_wan: Path, video: Video) -> None:
    import torch
    from diffusers import AutoencoderKLWan

    frames = shrunk(video("bikes", 33), 48, 64)
    network = AutoencoderKLWan.from_pretrained(tiny_wan / "vae", low_cpu_mem_usage=False).eval()
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1.0
    with torch.inference_mode():
        raw = network.encode(pixels).latent_dist.mode()[0].transpose(0, 1).numpy()
    for count in (4, 8, 16):
        codec = get_codec("wan", path=tiny_wan, frames_per_call=count)
        expected = (raw - np.reshape(codec.mean, (1, 16, 1, 1))) / np.reshape(codec.std, (1, 16, 1, 1))
        assert np.allclose(codec.encode(frames), expected, atol=2e-3)


def test_wan_tiles_agree_with_the_whole_away_from_their_seams(tiny_wan: Path, video: Video) -> None:
    frames = shrunk(video("bikes", 5), 96, 160)
    whole = get_codec("wan", path=tiny_wan)
    tiled = get_codec("wan", path=tiny_wan, tile_pixels=96, tile_overlap_pixels=32)
    latent = whole.encode(frames).astype(np.float32)
    error = np.abs(tiled.encode(frames).astype(np.float32) - latent)
    assert tile_spans(20, 12, 4) == [(0, 12), (8, 20)]
    assert error.max() > 0 and error.mean() < 0.05 * latent.std()
    assert tiled.fingerprint != whole.fingerprint
    large = get_codec("wan", path=tiny_wan, tile_pixels=160)
    assert np.array_equal(large.encode(frames), latent.astype(np.float16))


@pytest.mark.parametrize(
    "options", [{"frames_per_call": 6}, {"tile_pixels": 60}, {"tile_pixels": 64, "tile_overlap_pixels": 64}]
)
def test_wan_options_that_cannot_be_are_refused(tiny_wan: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        get_codec("wan", path=tiny_wan, **options)


@given(
    length=st.integers(1, 200),
    tile=st.integers(1, 80),
    overlap_share=st.floats(0, 0.95),
    stride=st.sampled_from([1, 2, 4]),
)
def test_tiles_cover_everything_and_their_weights_add_up_to_one(
    length: int, tile: int, overlap_share: float, stride: int
) -> None:
    length, tile = length * stride, tile * stride
    spans = tile_spans(length, tile, int(tile * overlap_share), stride)
    total = np.zeros(length)
    for (start, end), weight in zip(spans, tile_weights(spans), strict=True):
        assert start % stride == 0 and end - start == min(tile, length) and (weight > 0).all()
        total[start:end] += weight
    assert np.allclose(total, 1, atol=1e-5)


def test_a_view_and_a_read_only_array_are_the_same_input(codec: LatentCodec, video: Video) -> None:
    wide = shrunk(video("bikes", 5), 64, 224)
    view = wide[:, :, ::2]
    frozen = view.copy()
    frozen.flags.writeable = False
    assert np.array_equal(codec.encode(view), codec.encode(frozen))


@pytest.mark.parametrize("shape", [(4, 64, 64, 3), (0, 64, 64, 3), (5, 60, 64, 3), (5, 64, 64, 4), (64, 64, 3)])
def test_wrong_frames_are_refused_with_their_shape(codec: LatentCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="frame"):
        codec.encode(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="latent of shape"):
        codec.decode(np.zeros((2, 4, 8, 8), dtype=np.float16))


@pytest.mark.parametrize(
    ("name", "least_db"), [("bikes", 32.0), ("bigbuckbunny", 30.0), ("carphone", 25.5), ("multi_shot", 27.5)]
)
def test_dct_brings_real_clips_back_at_native_size(video: Video, name: str, least_db: float) -> None:
    frames = video(name, 33)
    codec = DctCodec()
    assert psnr(frames, codec.decode(codec.encode(frames))) > least_db


@pytest.mark.parametrize(("name", "least_db"), [("chelsea", 28.0), ("coffee", 27.0), ("flower", 28.0)])
def test_dct_brings_photographs_back(photo: Photo, name: str, least_db: float) -> None:
    pixels = photo(name)
    frames = pixels[None, : pixels.shape[0] // 8 * 8, : pixels.shape[1] // 8 * 8]
    codec = DctCodec()
    assert psnr(frames, codec.decode(codec.encode(frames))) > least_db


def test_dct_latents_have_about_zero_mean_and_unit_variance(video: Video) -> None:
    codec = DctCodec()
    parts = [codec.encode(video(name, 33)).astype(np.float64) for name in ("bikes", "bigbuckbunny", "carphone")]
    per_channel = np.concatenate([part.transpose(1, 0, 2, 3).reshape(16, -1) for part in parts], axis=1)
    assert np.abs(per_channel.mean(axis=1)).max() < 0.7
    assert 0.5 < per_channel.std() < 1.5


@given(
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    groups=st.integers(0, 2),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_dct_keeps_flat_colours_and_gives_still_frames_one_value(
    colour: tuple[int, int, int], groups: int, rows: int, columns: int
) -> None:
    frames = np.broadcast_to(np.array(colour, dtype=np.uint8), (1 + 4 * groups, 8 * rows, 8 * columns, 3))
    codec = DctCodec()
    latent = codec.encode(frames)
    assert np.abs(codec.decode(latent).astype(int) - frames.astype(int)).max() <= 1
    # The first frame and the groups have the same scale: a flat clip has one value per channel, over all latent frames.
    assert np.abs(latent.astype(np.float32) - latent[:1].astype(np.float32)).max() < 0.01


@pytest.mark.parametrize("frames", [1, 4])
def test_dct_decoding_then_encoding_is_the_identity(frames: int) -> None:
    """Analysis of synthesis is the identity on the 16 kept coefficients, so a generated latent is one that an encoder could give."""
    assert np.allclose(_synthesis(frames) @ _analysis(frames), np.eye(16), atol=1e-5)


def test_fingerprints_tell_codecs_apart(tiny_wan: Path) -> None:
    full = get_codec("wan", path=tiny_wan)
    half = get_codec("wan", path=tiny_wan, precision="bfloat16")
    assert len({DctCodec().fingerprint, full.fingerprint, half.fingerprint}) == 3
    assert get_codec("wan", path=tiny_wan / "vae").fingerprint == full.fingerprint


def test_wan_normalises_as_recorded(tiny_wan: Path, video: Video) -> None:
    import torch
    from diffusers import AutoencoderKLWan

    frames = shrunk(video("bikes", 5), 64, 64)
    codec = get_codec("wan", path=tiny_wan)
    network = AutoencoderKLWan.from_pretrained(tiny_wan / "vae", low_cpu_mem_usage=False).eval()
    pixels = torch.tensor(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
    with torch.inference_mode():
        raw = network.encode(pixels).latent_dist.mean[0].transpose(0, 1).numpy()
    shape = (1, 16, 1, 1)
    expected = (raw - np.reshape(codec.mean, shape)) / np.reshape(codec.std, shape)
    assert np.allclose(codec.encode(frames), expected, atol=2e-3)


def test_a_network_with_other_channels_is_refused(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    network: Any = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    network.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="z_dim 4, expected 16"):
        get_codec("wan", path=tmp_path)


def test_unknown_codec_and_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="codec 'dtc' is unknown; expected one of dct, wan"):
        get_codec("dtc")
    with pytest.raises(ModelMissingError, match="does not exist"):
        get_codec("wan", path=tmp_path / "absent")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelMissingError, match=r"holds no \.safetensors file"):
        get_codec("wan", path=tmp_path)
