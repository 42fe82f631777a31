"""The production classes with small random weights, saved in the layout that the hub has: seconds to make, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["tiny_dinov2", "tiny_siglip", "tiny_t5gemma2", "tiny_vjepa2", "tiny_wan"]


def tiny_wan(folder: Path) -> Path:
    """`AutoencoderKLWan` of 16 latent channels, in `vae/` as a repository has it."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    network: Any = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    network.save_pretrained(folder / "vae")
    return folder


def tiny_dinov2(folder: Path, width: int = 32) -> Path:
    """`Dinov2Model`, patch 14."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=width, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def tiny_vjepa2(folder: Path, width: int = 32) -> Path:
    """`VJEPA2Model`: squares of 64, patches of 16, pairs of frames."""
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    config: Any = VJEPA2Config(
        crop_size=64,
        patch_size=16,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        pred_hidden_size=16,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    VJEPA2Model(config).save_pretrained(folder)
    return folder


def tiny_siglip(folder: Path, width: int = 24) -> Path:
    """`SiglipVisionModel`: squares of 56, patches of 14, so 16 tokens."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config: Any = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


def tiny_t5gemma2(folder: Path, tokenizer_folder: Path) -> Path:
    """`T5Gemma2ForConditionalGeneration` with its vision tower, and the tokenizer of another folder."""
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    vocabulary = tokenizer.vocab_size
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": vocabulary,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 128,
        "sliding_window": 16,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    encoder = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    make: Any = transformers.T5Gemma2Config
    config = make(encoder=encoder, decoder=dict(text), vocab_size=vocabulary)
    network = transformers.T5Gemma2ForConditionalGeneration(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
