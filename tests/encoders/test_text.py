"""Text states: MiniLM with its real weights; T5, BERT and T5Gemma2 as the real classes with tiny random weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.registry import Registry
from encoders.text import TextEncoder, get_text_encoder
from schemas.errors import ConfigError, DataError, ModelMissingError

CAPTIONS = [
    "a cat sits on a sofa",
    "a kitten rests on the couch",
    "the stock market fell sharply today, and nobody knew why",
]


@pytest.fixture(scope="module")
def minilm(registry: Registry) -> TextEncoder:
    return get_text_encoder("minilm", registry=registry)


def cosine(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    """Of the mean token states, as the sentence model pools them."""
    a, b = one.astype(np.float64).mean(0), other.astype(np.float64).mean(0)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_minilm_states_are_tokens_by_width(minilm: TextEncoder) -> None:
    states = minilm.encode(CAPTIONS)
    assert [state.shape for state in states] == [(8, 384), (8, 384), (13, 384)]
    assert all(state.dtype == np.float16 for state in states)
    assert minilm.width == 384 and minilm.max_tokens == 512
    assert minilm.null_states().shape == (2, 384)
    assert minilm.encode([]) == []


def test_similar_sentences_are_closer(minilm: TextEncoder) -> None:
    cat, kitten, market = minilm.encode(CAPTIONS)
    assert cosine(cat, kitten) > 0.6 > 0.3 > cosine(cat, market)


def test_states_do_not_depend_on_the_captions_beside(minilm: TextEncoder) -> None:
    together = minilm.encode(CAPTIONS)
    assert np.array_equal(minilm.encode([CAPTIONS[1]])[0], together[1])
    assert all(np.array_equal(a, b) for a, b in zip(minilm.encode(CAPTIONS[::-1])[::-1], together, strict=True))


def test_batches_give_the_same_states_to_rounding(minilm: TextEncoder, registry: Registry) -> None:
    batched = get_text_encoder("minilm", registry=registry, batch_size=3)
    for one, many in zip(minilm.encode(CAPTIONS), batched.encode(CAPTIONS), strict=True):
        assert one.shape == many.shape and np.allclose(one, many, atol=5e-3)
    assert batched.fingerprint != minilm.fingerprint


def test_long_captions_are_cut(registry: Registry) -> None:
    short = get_text_encoder("minilm", registry=registry, max_tokens=16)
    assert short.encode(["word " * 100])[0].shape == (16, 384)


def tiny(kind: str, folder: Path, registry: Registry, tiny_models: ModuleType) -> Path:
    """A `transformers` folder of the real class with small random weights, and MiniLM's tokenizer."""
    import torch
    import transformers

    if kind == "t5gemma2":
        return Path(tiny_models.tiny_t5gemma2(folder, registry.local_path("text.minilm")))

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(registry.local_path("text.minilm"))
    vocabulary = tokenizer.vocab_size
    network: Any
    config: Any
    if kind.startswith("t5_"):
        config = transformers.T5Config(vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        whole = kind == "t5_whole"
        network = transformers.T5ForConditionalGeneration(config) if whole else transformers.T5EncoderModel(config)
    else:
        network = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=24,
            )
        )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["t5_encoder", "t5_whole", "bert", "t5gemma2"])
def test_any_transformers_encoder_by_path(
    kind: str, tmp_path: Path, registry: Registry, tiny_models: ModuleType
) -> None:
    encoder = get_text_encoder("transformers", path=tiny(kind, tmp_path, registry, tiny_models))
    states = encoder.encode(CAPTIONS)
    assert encoder.width == 32 and all(state.shape[1] == 32 for state in states)
    assert encoder.null_states().shape[0] >= 1
    again = get_text_encoder("transformers", path=tmp_path)
    assert again.fingerprint == encoder.fingerprint
    assert all(np.array_equal(a, b) for a, b in zip(states, again.encode(CAPTIONS), strict=True))
    if kind == "bert":
        assert encoder.encode(["word " * 100])[0].shape == (24, 32)


def test_missing_weights_of_the_encoder_are_refused(
    tmp_path: Path, registry: Registry, tiny_models: ModuleType
) -> None:
    from safetensors.torch import load_file, save_file

    tiny("bert", tmp_path, registry, tiny_models)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights of the encoder are missing.*layer\.1\.output\.dense\.weight"):
        get_text_encoder("transformers", path=tmp_path)


def test_states_that_do_not_fit_into_float16_are_refused(
    tmp_path: Path, registry: Registry, tiny_models: ModuleType
) -> None:
    from safetensors.torch import load_file, save_file

    tiny("t5_encoder", tmp_path, registry, tiny_models)
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.final_layer_norm.weight"] *= 1e9
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="do not fit into float16"):
        get_text_encoder("transformers", path=tmp_path).encode(["a cat"])


def test_names_and_paths_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'minlim' is unknown; expected one of minilm"):
        get_text_encoder("minlim")
    with pytest.raises(ConfigError, match="needs a path"):
        get_text_encoder("transformers")
    with pytest.raises(ModelMissingError, match=r"models pull text\.minilm"):
        get_text_encoder("minilm", registry=Registry(cache_dir=tmp_path))
