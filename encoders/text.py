"""Captions to token states: the last hidden states of a frozen `transformers` text encoder, trimmed of padding.

The trainer attends to tokens, so token states are kept, never a pooled sentence vector. By default each caption goes through the network alone:
its states never depend on the captions beside it, and there is no padding to trim. A larger `batch_size` is for GPUs: texts are padded with a mask,
and composition is then part of the result (to rounding). Price of the default: about 10 ms a caption on one core for MiniLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.devices import pick_device, pick_dtype
from encoders.registry import Registry
from encoders.weights import hash_folder, quiet_loading, resolve_folder, revision_of
from schemas.errors import ConfigError, DataError
from schemas.ids import fingerprint

__all__ = ["TEXT_ENCODERS", "TextEncoder", "get_text_encoder"]

_CODE_VERSION = 1

TEXT_ENCODERS = {"minilm": "text.minilm", "t5gemma2": "text.t5gemma2"}
"""Names of a config to registry entries; `transformers` takes any path or hub id."""


class TextEncoder:
    """A frozen encoder over a `transformers` folder (config, tokenizer, safetensors); of an encoder-decoder only the encoder half is used.

    Args:
        path: folder or hub id; None means the registry's entry for `name`.
        max_tokens: longer captions are cut here; lowered to what the network's positions allow.
    """

    def __init__(
        self,
        name: str = "minilm",
        path: str | Path | None = None,
        *,
        max_tokens: int = 512,
        batch_size: int = 1,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        registry: Registry | None = None,
        revision: str | None = None,
    ) -> None:
        folder = resolve_folder(path, default=TEXT_ENCODERS.get(name, name), registry=registry, revision=revision)
        self.name = name
        self._tokenizer, self._model = _load(folder, pick_dtype(precision))
        self._device = pick_device(device, purpose=f"text encoder {name}")
        self._model.to(self._device).eval().requires_grad_(False)
        config = self._model.config.get_text_config()
        self.width: int = config.hidden_size
        limits = [self._tokenizer.model_max_length, *_position_limit(config)]
        self.max_tokens = int(min(max_tokens, *limits))
        self._batch_size = batch_size
        self.revision = revision_of(folder)
        options = [self.max_tokens, precision, batch_size]
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, hash_folder(folder), options])

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.float16]]:
        """One (tokens, width) float16 array per text, special tokens included, padding not.

        Raises:
            DataError: if a state does not fit into float16.
        """
        states: list[NDArray[np.float16]] = []
        for start in range(0, len(texts), self._batch_size):
            states += self._encode_batch(list(texts[start : start + self._batch_size]))
        return states

    def null_states(self) -> NDArray[np.float16]:
        """The states of the empty caption, used where text is dropped; at least one token."""
        return self.encode([""])[0]

    @torch.inference_mode()
    def _encode_batch(self, texts: list[str]) -> list[NDArray[np.float16]]:
        tokens = self._tokenizer(
            texts, return_tensors="pt", padding=len(texts) > 1, truncation=True, max_length=self.max_tokens
        ).to(self._device)
        if tokens["input_ids"].shape[1] == 0:
            raise DataError(
                f"the tokenizer of {self.name} gives no token for {texts[0]!r}; a caption needs at least one"
            )
        mask = tokens["attention_mask"]
        hidden_BED = self._model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        states = [
            hidden[keep.bool()].to("cpu", torch.float16).numpy() for hidden, keep in zip(hidden_BED, mask, strict=True)
        ]
        for text, state in zip(texts, states, strict=True):
            if not np.isfinite(state).all():
                raise DataError(
                    f"{self.name}: the states of {text[:60]!r} do not fit into float16; this encoder cannot be stored so"
                )
        return states


def get_text_encoder(name: str, **options: Any) -> TextEncoder:
    """`get_text_encoder("minilm")`, `get_text_encoder("transformers", path="/models/t5")`.

    Raises:
        ConfigError: an unknown name, or `transformers` without a path.
    """
    if name in TEXT_ENCODERS:
        return TextEncoder(name, **options)
    if name != "transformers":
        raise ConfigError(
            f"text encoder {name!r} is unknown; expected one of {', '.join([*TEXT_ENCODERS, 'transformers'])}"
        )
    if options.get("path") is None:
        raise ConfigError("text encoder 'transformers' needs a path: a folder or a hub id owner/name")
    return TextEncoder(name, **options)


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and encoder; DataError when weights that the encoder needs are not in the folder."""
    from transformers import (
        MODEL_FOR_TEXT_ENCODING_MAPPING,
        AutoConfig,
        AutoModel,
        AutoModelForTextEncoding,
        AutoTokenizer,
    )

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loader = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    with quiet_loading():
        whole, report = loader.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    encoder = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    ours = {id(parameter) for parameter in encoder.parameters()}
    needed = {name for name, parameter in whole.named_parameters() if id(parameter) in ours}
    # A pooler is not part of the token states; sentence encoders are often published without its weights.
    missing = sorted(key for key in needed & set(report["missing_keys"]) if not key.startswith("pooler."))
    if missing:
        raise DataError(f"{folder}: {len(missing)} weights of the encoder are missing, the first is {missing[0]}")
    return tokenizer, encoder


def _position_limit(config: Any) -> list[int]:
    """Learned positions bound the length; relative and rotary ones do not."""
    return [config.max_position_embeddings] if "max_position_embeddings" in config.to_dict() else []
