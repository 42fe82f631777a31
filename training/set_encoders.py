"""Whether packed sets are a network's: widths and encoders before training, the same encoders whenever a trained network is asked.

Before training the set is right and the configuration may follow it; afterwards the network is right and the set must.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ConfigError, DataError
from schemas.shards import SetInfo
from training.config import TrainConfig

if TYPE_CHECKING:
    from training.run_setup import RunInfo

__all__ = ["check_encoders", "check_fit", "encoders_of", "encoders_of_run", "width_problems"]


def width_problems(config: TrainConfig, info: SetInfo) -> list[str]:
    """Where a configuration's widths are not those of a set, each with what to do; empty when all is well."""
    shape, problems = config.model, []
    for key, value, found in (
        ("model.out_channels", shape.out_channels, info.latent_channels),
        ("model.text_width", shape.text_width, info.text_width),
    ):
        if value != found:
            problems.append(f"{key} is {value}, the set {info.set_name!r} has {found} (set.json); set {key}={found}")
    if config.i2v.image_tokens and info.image_width is None:
        problems.append(
            f"i2v.image_tokens is true, but the set {info.set_name!r} has none (set.json: image_width is null); "
            "set i2v.image_tokens=false, or pack the set with an image encoder"
        )
    elif config.i2v.image_tokens and info.image_width != shape.image_width:
        problems.append(
            f"model.image_width is {shape.image_width}, the image tokens of the set {info.set_name!r} are {info.image_width} wide "
            f"(set.json); set model.image_width={info.image_width}"
        )
    return problems


def check_fit(config: TrainConfig, infos: Sequence[SetInfo]) -> None:
    """ConfigError if a set of a run does not fit the network, or image tokens are of different encoders."""
    for info in infos:
        for problem in width_problems(config, info):
            raise ConfigError(problem)
    for info in infos if config.i2v.image_tokens else ():
        if _image_encoder(info) != _image_encoder(infos[0]):
            raise ConfigError(
                f"i2v.image_tokens is true, and the sets {infos[0].set_name!r} and {info.set_name!r} were packed with different image encoders "
                "(set.json: image_encoder, revisions); train them apart, or pack them with one"
            )


def encoders_of(info: SetInfo) -> dict[str, object]:
    """What other sets of the same network must have in `set.json`."""
    return {
        "codec_fingerprint": info.codec_fingerprint,
        "text_encoder_fingerprint": info.text_encoder_fingerprint,
        "latent_channels": info.latent_channels,
        "text_width": info.text_width,
    }


def encoders_of_run(info: RunInfo, config: TrainConfig) -> dict[str, object]:
    """The same of a run."""
    return {
        "codec_fingerprint": info.codec_fingerprint,
        "text_encoder_fingerprint": info.text_encoder_fingerprint,
        "latent_channels": config.model.out_channels,
        "text_width": config.model.text_width,
    }


def check_encoders(found: SetInfo, folder: Path, expected: Mapping[str, object]) -> None:
    """DataError if a set is not one for a trained network; `expected` is of `encoders_of` or `encoders_of_run`."""
    values = found.model_dump()
    for name, wanted in expected.items():
        if values[name] != wanted:
            raise DataError(
                f"set {folder}: {name} is {values[name]!r} (set.json), the network was trained with {wanted!r}; "
                "pack it with the codec and the text encoder of the training sets"
            )


def _image_encoder(info: SetInfo) -> tuple[str | None, str | None]:
    return info.image_encoder, info.revisions.get(f"image.{info.image_encoder}")
