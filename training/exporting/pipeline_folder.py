"""A folder that `diffusers.MotifVideoPipeline.from_pretrained` loads, and `MotifVideoImage2VideoPipeline` where the network takes image tokens.

    model_index.json      class of each part
    transformer/          the network
    vae/, text_encoder/   copied; of a whole T5Gemma2 the encoder alone is written
    tokenizer/            written anew by transformers
    feature_extractor/    only for image-to-video: given, or made from the vision tower's size
    scheduler/            FlowMatchEulerDiscreteScheduler with the training's shift: the same times as ours
    guider/               AdaptiveProjectedGuidance as recommended for the released model

Price: extracting the encoder holds it in memory once, in the type it is stored in.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from schemas.files import write_json
from training.exporting.components import Components, load_tokenizer, readable
from training.exporting.transformer_folder import stamped
from training.sampler_config import ApgConfig

__all__ = ["write_pipeline_parts"]

_COPIED = ("config.json", "*.safetensors", "*.safetensors.index.json")

_GUIDANCE_SCALE = 8.0
"""The card of the released model; its other values are `ApgConfig`'s defaults."""


def write_pipeline_parts(folder: Path, parts: Components, *, shift: float) -> None:
    """All parts but the transformer, and the index of all."""
    tokenizer_class = _write_tokenizer(parts, folder / "tokenizer")
    _copy(parts.vae, folder / "vae")
    if parts.text_facts.is_whole:
        _write_encoder(parts.text_encoder, folder / "text_encoder")
    else:
        _copy(parts.text_encoder, folder / "text_encoder")
    if parts.image_size is not None:
        _write_feature_extractor(parts.feature_extractor, parts.image_size, folder / "feature_extractor")
    _write_config(
        folder / "scheduler/scheduler_config.json",
        "FlowMatchEulerDiscreteScheduler",
        {"num_train_timesteps": 1000, "shift": shift, "use_dynamic_shifting": False},
    )
    _write_config(folder / "guider/guider_config.json", "AdaptiveProjectedGuidance", _guidance(ApgConfig()))
    extractor = [None, None] if parts.image_size is None else ["transformers", "SiglipImageProcessor"]
    index = {
        "feature_extractor": extractor,
        "guider": ["diffusers", "AdaptiveProjectedGuidance"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5Gemma2Encoder"],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "MotifVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    write_json(folder / "model_index.json", stamped("MotifVideoPipeline", index))


def _guidance(apg: ApgConfig) -> dict[str, Any]:
    """Our adaptive projected guidance in diffusers' words; norms over X, Y and C, latent frame by latent frame."""
    return {
        "guidance_scale": _GUIDANCE_SCALE,
        "adaptive_projected_guidance_momentum": apg.momentum,
        "adaptive_projected_guidance_rescale": apg.norm_threshold,
        "adaptive_projected_guidance_norm_dim": [-1, -2, -4],
        "eta": apg.eta,
        "use_original_formulation": True,
    }


def _write_config(path: Path, class_name: str, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, stamped(class_name, values))


def _copy(source: Path, target: Path) -> None:
    """Configuration and safetensors; anything else in the folder stays where it is."""
    target.mkdir(parents=True)
    for pattern in _COPIED:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, target / file.name)


def _write_encoder(source: Path, target: Path) -> None:
    """The encoder half of a whole T5Gemma2."""
    from transformers import AutoModel

    from encoders.weights import load_network, quiet_loading

    with readable("--text-encoder", source), quiet_loading():
        whole = load_network(AutoModel, source, unused=("decoder.", "lm_head."))
        whole.get_encoder().save_pretrained(target)


def _write_tokenizer(parts: Components, target: Path) -> str:
    """Write it and return its class."""
    tokenizer = load_tokenizer(parts.tokenizer)
    tokenizer.save_pretrained(target)
    return type(tokenizer).__name__


def _write_feature_extractor(source: Path | None, side: int, target: Path) -> None:
    """The given one, or one for squares of `side`; its other values are SigLIP's."""
    from transformers import SiglipImageProcessor

    if source is None:
        made: Any = SiglipImageProcessor(size={"height": side, "width": side})
    else:
        with readable("--feature-extractor", source):
            made = SiglipImageProcessor.from_pretrained(source, local_files_only=True)
    made.save_pretrained(target)
