"""V-JEPA 2 and SigLIP: the real classes, tiny and random, against their own forward passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders.image_tokens import SiglipTokens
from encoders.teacher import Teacher, get_teacher
from encoders.weights import load_network
from schemas.errors import ConfigError, DataError

Video = Callable[[str, int], NDArray[np.uint8]]
Photo = Callable[[str], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> Path:
    return Path(tiny_models.tiny_vjepa2(tmp_path_factory.mktemp("vjepa2")))


@pytest.fixture(scope="module")
def vjepa(folder: Path) -> Teacher:
    return get_teacher("vjepa2", path=folder)


def small(frames: NDArray[np.uint8], height: int = 64, width: int = 112) -> NDArray[np.uint8]:
    import cv2

    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def test_vjepa_features_lie_on_the_token_grid(vjepa: Teacher, video: Video) -> None:
    frames = small(video("bikes", 17))
    features = vjepa.features(frames)
    assert features.shape == (5, 4, 7, 32) and features.dtype == np.float16 and vjepa.channels == 32
    assert vjepa.features(frames, (3, 2, 3)).shape == (3, 2, 3, 32)
    assert vjepa.revision.startswith("sha256:")


def test_vjepa_features_of_a_bucket_are_a_prefix_of_the_longer_one(vjepa: Teacher, video: Video) -> None:
    frames = small(video("bikes", 65))
    long = vjepa.features(frames)
    for bucket in (1, 33):
        assert np.array_equal(vjepa.features(frames[:bucket]), long[: (bucket - 1) // 4 + 1])


def test_a_latent_frame_gets_the_states_of_its_own_pictures(vjepa: Teacher, folder: Path, video: Video) -> None:
    """The network itself, on a grid of its own size: frame 0 doubled, then the pairs of each group averaged."""
    from transformers import VJEPA2Model

    frames = small(video("bikes", 9), 64, 64)
    network = load_network(VJEPA2Model, folder).eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255.0 - mean) / std
    with torch.inference_mode():
        first = network.get_vision_features(pixels[[0, 0]][None])[0].reshape(1, 4, 4, 32)
        rest = network.get_vision_features(pixels[1:][None])[0].reshape(2, 2, 4, 4, 32).mean(dim=1)
    expected = torch.cat([first, rest]).numpy()
    assert np.allclose(vjepa.features(frames, (3, 4, 4)), expected, atol=5e-3)


def test_a_tubelet_that_does_not_divide_a_group_is_refused(tmp_path: Path) -> None:
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        crop_size=32, hidden_size=12, num_hidden_layers=1, num_attention_heads=1, tubelet_size=3, pred_hidden_size=12
    )
    config.pred_num_attention_heads, config.pred_num_hidden_layers = 1, 1
    VJEPA2Model(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="tubelet_size 3, expected a divisor of 4"):
        get_teacher("vjepa2", path=tmp_path)


def test_missing_weights_are_refused_and_unused_ones_are_not_needed(tmp_path: Path, tiny_models: ModuleType) -> None:
    from safetensors.torch import load_file, save_file

    for name, make in (("dinov2", tiny_models.tiny_dinov2), ("vjepa2", tiny_models.tiny_vjepa2)):
        folder = make(tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        kept = {key: value for key, value in weights.items() if not key.startswith("predictor.")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        get_teacher(name, path=folder)
        key = next(key for key in sorted(kept) if key.startswith("encoder.layer"))
        del kept[key]
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(DataError, match="1 weights are missing"):
            get_teacher(name, path=folder)


def test_siglip_tokens_of_a_frame(tmp_path: Path, photo: Photo, tiny_models: ModuleType) -> None:
    from transformers import SiglipVisionModel

    encoder = SiglipTokens(tiny_models.tiny_siglip(tmp_path))
    square = small(photo("chelsea")[None], 56, 56)[0]
    tokens = encoder.tokens(square)
    assert tokens.shape == (encoder.num_tokens, encoder.width) == (16, 24) and tokens.dtype == np.float16
    with torch.inference_mode():
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None] / 127.5 - 1
        expected = load_network(SiglipVisionModel, tmp_path).eval()(pixel_values=pixels).last_hidden_state[0]
    assert np.allclose(tokens, expected.numpy(), atol=5e-3)
    other = encoder.tokens(photo("coffee"))
    assert other.shape == (16, 24) and not np.array_equal(other, tokens)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, tiny_models: ModuleType) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="sees no GPU"):
        SiglipTokens(tiny_models.tiny_siglip(tmp_path), device="cuda")
    with pytest.raises(ConfigError, match="precision 'half' is unknown"):
        SiglipTokens(tmp_path, precision="half")
