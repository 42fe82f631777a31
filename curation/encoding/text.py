"""Text states of captions: three files per clip, and one for the empty prompt.

`<clip_id>.text_{long,short,first}.npy`, float16 (tokens, width), trimmed of padding. Texts go through the encoder one at a time by default, so a
clip's states do not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curation.encoding.settings import EncodeSettings
from curation.model_identity import code_identity, model_identity
from schemas.ids import fingerprint
from schemas.shards import CAPTION_KINDS

if TYPE_CHECKING:
    from encoders.text import TextEncoder

__all__ = ["TextModels", "encode_captions", "load_text_models", "null_text", "text_fingerprint"]


@dataclass(frozen=True)
class TextModels:
    """The loaded text encoder."""

    encoder: TextEncoder


def load_text_models(settings: EncodeSettings, cache_dir: Path | str | None = None) -> TextModels:
    """Load from the local cache.

    Raises:
        ModelMissingError: naming the command that pulls the missing weights.
    """
    import torch

    from encoders.registry import Registry
    from encoders.text import get_text_encoder

    torch.set_num_threads(1)
    options: dict[str, Any] = {"device": settings.device, **settings.text_options}
    if settings.text_path is not None:
        options["path"] = settings.text_path
    return TextModels(get_text_encoder(settings.text_encoder, registry=Registry(cache_dir=cache_dir), **options))


def text_fingerprint(settings: EncodeSettings) -> str:
    """Hash of everything that decides a caption's states, apart from the caption; loads nothing."""
    modules = ("encoders.text", "encoders.weights", "encoders.devices")
    identity = model_identity(f"text.{settings.text_encoder}", modules, path=settings.text_path)
    return fingerprint(
        ["text", code_identity(["curation.encoding.text"]), identity, settings.device, settings.text_options]
    )


def encode_captions(
    labels: Sequence[Mapping[str, Any]], settings: EncodeSettings, models: TextModels, folder: Path
) -> None:
    """Write the states of the three captions of every row of the labels table."""
    for row in labels:
        states = models.encoder.encode([row[f"caption_{kind}"] for kind in CAPTION_KINDS])
        for kind, state_EW in zip(CAPTION_KINDS, states, strict=True):
            _save(folder / f"{row['clip_id']}.text_{kind}.npy", state_EW)


def null_text(settings: EncodeSettings, models: TextModels) -> NDArray[np.float16]:
    """States of the empty prompt, float16 (tokens, width)."""
    return np.ascontiguousarray(models.encoder.null_states(), dtype=np.float16)


def _save(path: Path, values: NDArray[np.float16]) -> None:
    np.save(path, np.ascontiguousarray(values, dtype=np.float16), allow_pickle=False)
