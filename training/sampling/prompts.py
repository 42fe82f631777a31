"""Prompts: read from a file, and encoded by the text encoder that made the captions of the training sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import ConfigError, ModelMissingError, UsageError

__all__ = ["EncodedTexts", "encode_texts", "read_prompts"]


class EncodedTexts:
    """States of some texts, (tokens, width) float16 each, and the fingerprint of what made them."""

    def __init__(self, states: Sequence[np.ndarray], fingerprint: str) -> None:
        self.states = tuple(states)
        self.fingerprint = fingerprint


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines are left out. UsageError when there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--prompts {path} cannot be read ({error}); expected a UTF-8 text, one prompt a line"
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UsageError(f"--prompts {path} holds no prompt; expected one a line")
    return prompts


def encode_texts(
    texts: Sequence[str], *, encoder: str, path: Path | None, width: int, device: str = "cpu", asked_by: str
) -> EncodedTexts:
    """Load a text encoder, encode, and let it go.

    Raises:
        ModelMissingError: when its weights are not on this machine.
        ConfigError: when its states are not as wide as the network's text input, or it is no encoder of the registry and has no path.
    """
    from encoders.text import TEXT_ENCODERS, get_text_encoder

    if path is None and encoder not in TEXT_ENCODERS:
        raise ConfigError(
            f"{asked_by} needs the text encoder that made the set's captions, {encoder!r}, which the registry does not have; "
            "give its folder with --text-encoder-path"
        )
    options: dict[str, Any] = {} if path is None else {"path": path}
    try:
        found = get_text_encoder(encoder, device=device, **options)
    except ModelMissingError as error:
        raise ModelMissingError(f"{asked_by} needs the text encoder {encoder!r}: {error}") from error
    if found.width != width:
        raise ConfigError(
            f"{asked_by}: the text encoder {encoder!r} gives states of width {found.width}, the network's model.text_width is {width}; "
            "give the encoder that made the set's captions with --text-encoder-path"
        )
    return EncodedTexts(found.encode(list(texts)), found.fingerprint)
