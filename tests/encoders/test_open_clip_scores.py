"""Heads on open_clip embeddings, and zero-shot NSFW: the layouts that are in use, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders.linear_head import LinearHead
from encoders.open_clip_image import OpenClipImages
from encoders.open_clip_scores import SAFE_TEXTS, UNSAFE_TEXTS, AestheticScorer, LinearNsfw, ZeroShotNsfw
from schemas.errors import DataError, ModelMissingError

Photo = Callable[[str], NDArray[np.uint8]]
WIDTH = 32


@pytest.fixture(scope="module")
def clip(tiny_clip: Callable[..., Path]) -> OpenClipImages:
    return OpenClipImages(tiny_clip())


@pytest.fixture
def frames(photo: Photo) -> list[NDArray[np.uint8]]:
    return [photo(name) for name in ("chelsea", "astronaut", "coffee")]


def network(layout: str) -> Any:
    """The published shapes, narrow: `linear` (LAION's first), `mlp` (improved predictor), `v2.5` (behind a name of its own)."""
    nn = torch.nn
    if layout == "linear":
        return nn.Linear(WIDTH, 1)
    stack = nn.Sequential(
        nn.Linear(WIDTH, 16), nn.Dropout(0.2), nn.Linear(16, 8), nn.Dropout(0.2), nn.Linear(8, 4), nn.Dropout(0.1),
        nn.Linear(4, 1),
    )  # fmt: skip
    return nn.ModuleDict({"layers" if layout == "mlp" else "scoring_head": stack})


@pytest.mark.parametrize("layout", ["linear", "mlp", "v2.5"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_heads_give_what_torch_gives(
    layout: str, suffix: str, clip: OpenClipImages, frames: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = network(layout).eval()
    file = tmp_path / f"head{suffix}"
    if suffix == ".pth":
        torch.save(head.state_dict(), file)
    else:
        save_file(head.state_dict(), file)
    scorer = AestheticScorer(clip, LinearHead(file))
    found = scorer.scores(frames)
    run = head if layout == "linear" else next(iter(head.values()))
    with torch.inference_mode():
        expected = run(torch.from_numpy(clip.embed(frames)))[:, 0].numpy()
    assert np.allclose(found, expected, atol=1e-5) and found.dtype == np.float32
    assert len(set(found.tolist())) == 3 and scorer.scores([]).shape == (0,)
    assert scorer.name == f"{clip.name}+head" and scorer.fingerprint != clip.fingerprint


def saved(path: Path, **tensors: torch.Tensor) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("outputs", [1, 2])
def test_linear_nsfw_is_a_probability(
    outputs: int, clip: OpenClipImages, frames: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    """One logit, or two of which the second is unsafe, agree where the two differ by the one."""
    direction = torch.from_numpy(clip.embed(frames[:1])) * 5
    weight = direction if outputs == 1 else torch.cat([-direction / 2, direction / 2])
    head = LinearHead(saved(tmp_path / "nsfw.pt", weight=weight, bias=torch.zeros(outputs)))
    found = LinearNsfw(clip, head).scores(frames)
    cosines = clip.embed(frames) @ clip.embed(frames[:1])[0]
    assert np.allclose(found, 1 / (1 + np.exp(-5 * cosines)), atol=1e-5)
    assert found[0] == found.max() and ((found > 0) & (found < 1)).all()


def test_zero_shot_is_the_share_of_the_unsafe_sentences(clip: OpenClipImages, frames: list[NDArray[np.uint8]]) -> None:
    found = ZeroShotNsfw(clip).scores(frames)
    texts = torch.from_numpy(clip.embed_text([*SAFE_TEXTS, *UNSAFE_TEXTS]))
    shares = (clip.logit_scale * torch.from_numpy(clip.embed(frames)) @ texts.T).softmax(dim=1)
    assert np.allclose(found, shares[:, len(SAFE_TEXTS) :].sum(dim=1).numpy(), atol=1e-5)
    assert len(set(found.tolist())) == 3 and ZeroShotNsfw(clip).scores([]).shape == (0,)


def test_heads_that_do_not_fit_are_refused(
    clip: OpenClipImages, frames: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    with pytest.raises(ModelMissingError, match="does not exist"):
        LinearHead(tmp_path / "none.pth")
    wide = LinearHead(saved(tmp_path / "wide.pth", weight=torch.zeros(1, 768)))
    with pytest.raises(DataError, match="embeddings of 768, this open_clip model gives 32"):
        AestheticScorer(clip, wide).scores(frames)
    with pytest.raises(DataError, match="gives 3 values; expected 1"):
        AestheticScorer(clip, LinearHead(saved(tmp_path / "three.pth", weight=torch.zeros(3, WIDTH))))
    with pytest.raises(DataError, match="expected linear layers"):
        LinearHead(saved(tmp_path / "conv.pth", weight=torch.zeros(1, 3, 3, 3)))
    with pytest.raises(DataError, match="the layer before it gives others"):
        LinearHead(saved(tmp_path / "broken.pth", **{"0.weight": torch.zeros(4, 8), "1.weight": torch.zeros(1, 5)}))
    with pytest.raises(DataError, match="running_mean"):
        LinearHead(saved(tmp_path / "norm.pth", weight=torch.zeros(1, 4), running_mean=torch.zeros(4)))
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(DataError, match="cannot be read as tensors"):
        LinearHead(tmp_path / "text.pth")
