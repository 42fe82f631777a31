"""open_clip by path: a small checkpoint of the real classes, on real pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from encoders.open_clip_image import OpenClipImages, OpenClipWeights
from schemas.errors import ConfigError, DataError, ModelMissingError

Photo = Callable[[str], NDArray[np.uint8]]
TinyClip = Callable[..., Path]


@pytest.fixture(scope="module")
def clip(tiny_clip: TinyClip) -> OpenClipImages:
    return OpenClipImages(tiny_clip())


def test_embeddings_equal_open_clips_own_path(clip: OpenClipImages, tiny_clip: TinyClip, photo: Photo) -> None:
    """The same folder through open_clip's public factory, transform and tokenizer."""
    import open_clip
    import torch

    frames = [photo(name) for name in ("chelsea", "astronaut", "coffee")]
    found = clip.embed(frames)
    assert found.shape == (3, 32) and found.dtype == np.float32 and clip.width == 32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip()}")
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(Image.fromarray(frame)) for frame in frames]))
        words = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip()}")(["a cat", "a cup of coffee"]))
    for ours, theirs in ((found, expected), (clip.embed_text(["a cat", "a cup of coffee"]), words)):
        theirs = torch.nn.functional.normalize(theirs, dim=-1).numpy()
        assert np.allclose(ours, theirs, atol=1e-5)
    assert (found @ found.T)[~np.eye(3, dtype=bool)].max() < 0.9999, "different pictures differ"


def test_an_embedding_depends_on_its_frame_alone(clip: OpenClipImages, photo: Photo) -> None:
    frames = [photo(name) for name in ("chelsea", "coffee")]
    assert np.array_equal(clip.embed(frames)[1], clip.embed(frames[1:])[0])
    assert clip.embed([]).shape == clip.embed_text([]).shape == (0, 32)


def test_fingerprint_is_the_checkpoints(clip: OpenClipImages, tiny_clip: TinyClip, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tiny_clip().iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert OpenClipImages(moved).fingerprint == clip.fingerprint
    assert OpenClipImages(tiny_clip(seed=1)).fingerprint != clip.fingerprint
    assert OpenClipWeights.at(moved).weights_hash() == OpenClipWeights.at(tiny_clip()).weights_hash()


@pytest.fixture(scope="module")
def architectures(tiny_clip: TinyClip, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`tiny-clip-32`, the fixture's, and `tiny-clip-48`, wider, registered as users register theirs."""
    import open_clip

    config = json.loads((tiny_clip() / "open_clip_config.json").read_text())["model_cfg"]
    folder = tmp_path_factory.mktemp("architectures")
    for width in (32, 48):
        config["text_cfg"]["width"] = width
        (folder / f"tiny-clip-{width}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.mark.usefixtures("architectures")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_file_of_a_named_architecture(
    suffix: str, clip: OpenClipImages, tiny_clip: TinyClip, photo: Photo, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_clip() / "open_clip_model.safetensors")
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": weights}, file)
    else:
        save_file(weights, file)
    named = OpenClipImages(file, "tiny-clip-32")
    assert named.name == "open_clip:tiny-clip-32"
    assert np.array_equal(named.embed([photo("chelsea")]), clip.embed([photo("chelsea")]))
    with pytest.raises(DataError, match="cannot load"):
        OpenClipImages(file, "tiny-clip-48")


def test_what_cannot_be_loaded_is_refused(tiny_clip: TinyClip, tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="do not exist"):
        OpenClipWeights.at(tmp_path / "none")
    with pytest.raises(ModelMissingError, match="must hold open_clip_config"):
        OpenClipWeights.at(tmp_path)
    with pytest.raises(ConfigError, match="names its own architecture"):
        OpenClipWeights.at(tiny_clip(), "ViT-L-14")
    file = tmp_path / "weights.pt"
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="needs the name of its architecture"):
        OpenClipWeights.at(file)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"ends in '\.npz'"):
        OpenClipWeights.at(tmp_path / "weights.npz", "ViT-B-32")
    with pytest.raises(DataError, match="cannot load"):
        OpenClipImages(file, "no-such-architecture")


@pytest.mark.usefixtures("architectures")
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    file = tmp_path / "weights.pt"
    file.write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(DataError, match="cannot load"):
        OpenClipImages(file, "tiny-clip-32")
    assert not (tmp_path / "exploded").exists()
