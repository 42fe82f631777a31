"""What a pipeline needs beside the transformer, checked against the network before anything is written.

VAE, text encoder, tokenizer and image processor are folders on this machine: nothing is looked up on a hub. A folder may be the component's own
or that of a pipeline which has it as a subfolder. The checks are hard where a mistake would give noise without a message: latents of another VAE,
text states of another width, a tokenizer with more words than the encoder knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.config import read_yaml
from schemas.errors import ConfigError, ReelyardError, UsageError
from schemas.model_shape import ModelShape

__all__ = ["Components", "TextEncoderFacts", "VisionFacts", "check_components", "load_tokenizer", "readable"]

_TEMPORAL, _SPATIAL = 4, 8
"""Pixels per latent of the codec, along time and along rows and columns."""


@dataclass(frozen=True, kw_only=True)
class VisionFacts:
    """The vision tower inside the text encoder."""

    width: int
    image_size: int


@dataclass(frozen=True, kw_only=True)
class TextEncoderFacts:
    """What its `config.json` says."""

    is_whole: bool
    """An encoder-decoder, of which only the encoder is used."""
    width: int
    vocabulary: int
    vision: VisionFacts | None


@dataclass(frozen=True, kw_only=True)
class Components:
    """Folders that fit the network."""

    vae: Path
    text_encoder: Path
    text_facts: TextEncoderFacts
    tokenizer: Path
    feature_extractor: Path | None
    image_size: int | None
    """Side of the pictures that image-to-video wants; None where this network and this encoder cannot do it."""
    notes: tuple[str, ...]


def check_components(
    shape: ModelShape, *, vae: Path, text_encoder: Path, tokenizer: Path, feature_extractor: Path | None
) -> Components:
    """Find each component and refuse what does not fit the network.

    Raises:
        UsageError: a folder is not there or is not what it should be.
        ConfigError: it does not fit the network.
    """
    vae = _component(vae, "--vae", "vae", "config.json")
    text_encoder = _component(text_encoder, "--text-encoder", "text_encoder", "config.json")
    tokenizer = _component(tokenizer, "--tokenizer", "tokenizer", "tokenizer_config.json")
    _check_vae(vae, shape)
    facts = _text_facts(text_encoder)
    if facts.width != shape.text_width:
        raise ConfigError(
            f"--text-encoder {text_encoder} is {facts.width} wide, the network was trained on states {shape.text_width} wide "
            "(model.text_width); give the encoder that made the set's text states"
        )
    _check_tokenizer(tokenizer, facts)
    notes = []
    size, reason = _image_size(shape, facts)
    if feature_extractor is not None:
        feature_extractor = _component(
            feature_extractor, "--feature-extractor", "feature_extractor", "preprocessor_config.json"
        )
        if size is None:
            raise ConfigError(f"--feature-extractor was given, but {reason}; leave it out")
        _check_feature_extractor(feature_extractor, size)
    if size is None:
        notes.append(f"no image-to-video pipeline: {reason}")
    return Components(
        vae=vae,
        text_encoder=text_encoder,
        text_facts=facts,
        tokenizer=tokenizer,
        feature_extractor=feature_extractor,
        image_size=size,
        notes=tuple(notes),
    )


def _component(path: Path, flag: str, part: str, marker: str) -> Path:
    """`path`, or its subfolder `part` where it is a pipeline's folder; `marker` is the file that must be there."""
    if not path.is_dir():
        raise UsageError(
            f"{flag} {path} is not a folder on this machine; names of a hub are not looked up, give a folder"
        )
    folder = path if (path / marker).is_file() or not (path / part).is_dir() else path / part
    if not (folder / marker).is_file():
        raise UsageError(f"{flag} {path}: {marker} is missing; give the folder of the {part.replace('_', ' ')}")
    if marker == "config.json" and not any(folder.glob("*.safetensors")):
        raise UsageError(f"{flag} {folder} holds no .safetensors file; pickled weights are not copied, convert them")
    return folder


def _check_vae(folder: Path, shape: ModelShape) -> None:
    """The class, the channels, the grid, and the numbers by which latents are normalised."""
    from encoders.wan import WAN_MEAN, WAN_STD

    config = read_yaml(folder / "config.json")
    name = config.get("_class_name")
    if name != "AutoencoderKLWan":
        raise ConfigError(
            f"--vae {folder} is a {name}, expected an AutoencoderKLWan: MotifVideoPipeline decodes with it"
        )
    facts = {
        "z_dim": (config.get("z_dim", 16), shape.out_channels, "model.out_channels"),
        "scale_factor_temporal": (config.get("scale_factor_temporal", _TEMPORAL), _TEMPORAL, "the codec wan"),
        "scale_factor_spatial": (config.get("scale_factor_spatial", _SPATIAL), _SPATIAL, "the codec wan"),
        "latents_mean": (_numbers(config, "latents_mean", WAN_MEAN), WAN_MEAN, "the codec wan"),
        "latents_std": (_numbers(config, "latents_std", WAN_STD), WAN_STD, "the codec wan"),
    }
    for key, (found, expected, origin) in facts.items():
        if found != expected:
            raise ConfigError(
                f"--vae {folder}: config.json: {key} is {found}, the network was trained on latents with {expected} ({origin}); "
                "give the VAE that made the set's latents"
            )


def _numbers(config: dict[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(value) for value in config.get(key, default))


def _text_facts(folder: Path) -> TextEncoderFacts:
    config = read_yaml(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("t5gemma2", "t5gemma2_encoder"):
        raise ConfigError(
            f"--text-encoder {folder} is a {kind}, expected a t5gemma2 or a t5gemma2_encoder: MotifVideoPipeline reads text with a "
            "T5Gemma2Encoder; export the transformer alone, without --vae, --text-encoder and --tokenizer"
        )
    encoder = config.get("encoder", {}) if kind == "t5gemma2" else config
    text, vision = encoder.get("text_config"), encoder.get("vision_config")
    if text is None:
        raise UsageError(f"--text-encoder {folder}: config.json: text_config is missing; copy the folder again")
    return TextEncoderFacts(
        is_whole=kind == "t5gemma2",
        width=text["hidden_size"],
        vocabulary=text["vocab_size"],
        vision=None if vision is None else VisionFacts(width=vision["hidden_size"], image_size=vision["image_size"]),
    )


def load_tokenizer(folder: Path) -> Any:
    """What transformers makes of a tokenizer's folder."""
    from transformers import AutoTokenizer

    with readable("--tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@contextmanager
def readable(flag: str, folder: Path) -> Iterator[None]:
    """UsageError for whatever transformers has against a folder."""
    try:
        yield
    except ReelyardError:
        raise
    except Exception as error:  # transformers, tokenizers and huggingface_hub raise classes of their own; all mean this
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{flag} {folder} cannot be read by transformers ({reason}); copy the folder again") from error


def _check_tokenizer(folder: Path, facts: TextEncoderFacts) -> None:
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > facts.vocabulary:
        raise ConfigError(
            f"--tokenizer {folder} has {len(tokenizer)} words, the text encoder knows {facts.vocabulary} (vocab_size); "
            "give the tokenizer of that encoder"
        )
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"--tokenizer {folder} has no pad token, but the pipeline pads every prompt; set pad_token in tokenizer_config.json"
        )


def _image_size(shape: ModelShape, facts: TextEncoderFacts) -> tuple[int | None, str]:
    """The side of pictures for image-to-video, or None and why there is none."""
    if shape.image_width is None:
        return None, "the network has no image embedder (model.image_width is null)"
    if facts.vision is None:
        return None, "the text encoder has no vision tower"
    if facts.vision.width != shape.image_width:
        return None, (
            f"the text encoder's vision tower is {facts.vision.width} wide, the network wants image tokens {shape.image_width} wide "
            "(model.image_width)"
        )
    return facts.vision.image_size, ""


def _check_feature_extractor(folder: Path, image_size: int) -> None:
    config = read_yaml(folder / "preprocessor_config.json")
    kind = config.get("image_processor_type", config.get("feature_extractor_type"))
    if kind is None or not str(kind).startswith("SiglipImageProcessor"):
        raise ConfigError(f"--feature-extractor {folder} is a {kind}, expected a SiglipImageProcessor")
    size = config.get("size")
    if size != {"height": image_size, "width": image_size}:
        raise ConfigError(
            f"--feature-extractor {folder}: preprocessor_config.json: size is {size}, the vision tower wants squares of {image_size}; "
            "give the processor of that tower, or leave it out to have it made"
        )
