"""CLIP embeddings of frames and of words through `open_clip`: one class for stitching, for zero-shot scores and for heads on top of it.

Weights come by path and nothing is downloaded: a folder as `open_clip` saves it for the hub (`open_clip_config.json` and one `.safetensors`), or a
checkpoint file together with the name of one of its architectures. The preprocessing is the one that the weights name. Frames go through the
network one at a time, so that an embedding depends on its frame alone and not on its neighbours in a batch.
Price: a GPU is used badly with batches of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.weights import hash_folder
from schemas.errors import ConfigError, DataError, ModelMissingError
from schemas.ids import content_hash, fingerprint

__all__ = ["OpenClipImages", "OpenClipWeights"]

_CODE_VERSION = 1
_CONFIG = "open_clip_config.json"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class OpenClipWeights:
    """Where weights lie and which architecture they are of; knows their hash without loading them."""

    path: Path
    model: str | None

    @classmethod
    def at(cls, path: str | Path, model: str | None = None) -> OpenClipWeights:
        """A folder (then `model` is left out: its config names the architecture), or a checkpoint file of the architecture `model`.

        Raises:
            ModelMissingError: there is nothing at `path`, or the folder lacks its config or has not exactly one .safetensors file.
            ConfigError: a file without `model`, a folder with one, or a file of another kind.
        """
        found = Path(path).expanduser()
        if found.is_dir():
            if model is not None:
                raise ConfigError(f"open_clip folder {found} names its own architecture; leave out model {model!r}")
            weights = sorted(file.name for file in found.glob("*.safetensors"))
            if not (found / _CONFIG).is_file() or len(weights) != 1:
                raise ModelMissingError(
                    f"open_clip folder {found} must hold {_CONFIG} and exactly one .safetensors file, it has {weights or 'none'}"
                    f"{'' if (found / _CONFIG).is_file() else ' and no config'}; save it as open_clip does for the hub"
                )
        elif not found.is_file():
            raise ModelMissingError(
                f"open_clip weights {found} do not exist; give a folder with {_CONFIG} or a checkpoint file"
            )
        elif found.suffix not in _SUFFIXES:
            raise ConfigError(f"open_clip checkpoint {found} ends in {found.suffix!r}; expected {', '.join(_SUFFIXES)}")
        elif model is None:
            raise ConfigError(f"open_clip checkpoint {found} needs the name of its architecture, for example ViT-L-14")
        return cls(found, model)

    @property
    def name(self) -> str:
        """For the model columns: the architecture, or the name of the folder."""
        return f"open_clip:{self.model or self.path.name}"

    def weights_hash(self) -> str:
        """sha256 of the checkpoint and of what decides how it is read."""
        if self.path.is_dir():
            return hash_folder(self.path)
        with self.path.open("rb") as stream:
            return fingerprint([self.model, content_hash(stream)])


class OpenClipImages:
    """`embed` of RGB frames and `embed_text`: L2-normalised rows whose dot products are cosines."""

    def __init__(self, path: str | Path, model: str | None = None, *, device: str = "cpu") -> None:
        import open_clip
        import torch
        from open_clip.transform import PreprocessCfg, image_transform_v2

        weights = OpenClipWeights.at(path, model)
        self._architecture = weights.model or f"local-dir:{weights.path}"
        checkpoint = None if weights.model is None else str(weights.path)
        try:
            network: Any = open_clip.create_model(
                self._architecture, checkpoint, device=device, require_pretrained=True, weights_only=True
            )
        except (
            Exception
        ) as error:  # open_clip, torch, pickle and safetensors raise their own and bare assertions; all mean the same
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise DataError(
                f"open_clip cannot load {weights.path} as {weights.model or 'what its config says'}: {reason}; give the "
                "architecture that the weights were trained with"
            ) from error
        self._network = network.eval().requires_grad_(False)
        self._transform: Any = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        self._tokenizer: Any = None
        self._torch = torch
        self._device = device
        self.name = weights.name
        self.fingerprint = fingerprint([_CODE_VERSION, weights.weights_hash(), open_clip.__version__])
        self.width = self.embed([np.zeros((8, 8, 3), dtype=np.uint8)]).shape[1]

    @property
    def logit_scale(self) -> float:
        """The factor that the network was trained to put before a cosine."""
        return float(self._network.logit_scale.exp())

    def embed(self, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D) float32, one L2-normalised row per (H, W, 3) uint8 frame."""
        from PIL import Image

        torch, rows = self._torch, []
        with torch.inference_mode():
            for frame in frames:
                pixels = self._transform(Image.fromarray(frame))[None].to(self._device)
                rows.append(_row(self._network.encode_image(pixels, normalize=True)))
        return np.stack(rows) if rows else np.zeros((0, self.width), dtype=np.float32)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) float32, one L2-normalised row per text."""
        import open_clip

        if self._tokenizer is None:
            self._tokenizer = open_clip.get_tokenizer(self._architecture)
        torch, rows = self._torch, []
        with torch.inference_mode():
            for text in texts:
                tokens = self._tokenizer([text]).to(self._device)
                rows.append(_row(self._network.encode_text(tokens, normalize=True)))
        return np.stack(rows) if rows else np.zeros((0, self.width), dtype=np.float32)


def _row(features_BD: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = features_BD[0].float().cpu().numpy()
    if not np.isfinite(values).all():
        raise DataError("open_clip gave an embedding with values that are not numbers; its weights are damaged")
    return values
