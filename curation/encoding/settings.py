"""Settings of the encode phase: which sets are made, with which codec, teacher and text encoder.

Each set has its own fingerprint, so adding a set encodes only that one, and a new captioner encodes text only.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.buckets import CLASSES
from schemas.config import StrictConfig
from schemas.tables import BRANCHES

__all__ = ["EncodeSettings"]


_WAN_OPTIONS = ("path", "device", "precision", "revision", "frames_per_call", "tile_pixels", "tile_overlap_pixels")
_CODEC_OPTIONS: dict[str, tuple[str, ...]] = {"dct": (), "wan": _WAN_OPTIONS}
_TEXT_OPTIONS = ("precision", "max_tokens", "batch_size")
_TEACHERS = ("efficientnet_lite0", "dinov2", "vjepa2")


def _default_teachers() -> dict[str, str | None]:
    return dict.fromkeys(BRANCHES, "efficientnet_lite0")


class EncodeSettings(StrictConfig):
    """The encode phase."""

    sets: tuple[str, ...] = ("144p",)
    """Classes to make, each into a set of its own."""
    codec: Literal["dct", "wan"] = "dct"
    """Latent codec, as `encoders.latents.get_codec` takes it."""
    codec_options: dict[str, str | int] = Field(default_factory=dict)
    """Further arguments of `wan`: path (folder of its weights, else the registry's), device (else `device`), precision, revision,
    frames_per_call, tile_pixels and tile_overlap_pixels (see `encoders.wan`). `dct` has none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto: on the GPU that the stage was given, else on the CPU."""
    teacher_by_branch: dict[str, str | None] = Field(default_factory=_default_teachers)
    """Branch to its teacher (efficientnet_lite0, dinov2, vjepa2), or null for none. All teachers of a set have one width."""
    text_encoder: str = "minilm"
    """Text encoder, as `encoders.text.get_text_encoder` takes it: `minilm`, or `transformers` with `text_path`."""
    text_path: str | None = None
    """Folder or hub id (`owner/name` or `owner/name@revision`) of the encoder's files; None: the registry's entry of that name."""
    text_options: dict[str, str | int] = Field(default_factory=dict)
    """Further arguments of the text encoder: precision (float32, bfloat16), max_tokens, batch_size."""
    teacher_paths: dict[str, str] = Field(default_factory=dict)
    """Teacher name to the folder or hub id of its files, for teachers that are not in the registry's cache."""
    image_encoder: Literal["siglip"] | None = None
    """Image tokens of the first frame of each clip, for image-to-video; null makes none."""
    image_path: str | None = None
    """Folder or hub id of a SigLIP (or T5Gemma2) model for `image_encoder`; None: the registry's `image.siglip`."""

    @model_validator(mode="after")
    def _names_are_known(self) -> EncodeSettings:
        """Classes and branches are those of the schemas."""
        unknown = [name for name in self.sets if name not in CLASSES]
        if unknown or not self.sets or len(set(self.sets)) != len(self.sets):
            raise ValueError(f"sets {list(self.sets)}: expected one or more of {', '.join(CLASSES)}, each once")
        if set(self.teacher_by_branch) != set(BRANCHES):
            raise ValueError(
                f"teacher_by_branch has {sorted(self.teacher_by_branch)}: expected exactly {', '.join(BRANCHES)}"
            )
        names = {name for name in self.teacher_by_branch.values() if name is not None} | set(self.teacher_paths)
        if not names <= set(_TEACHERS):
            raise ValueError(f"teachers {', '.join(sorted(names - set(_TEACHERS)))}: expected {', '.join(_TEACHERS)}")
        return self

    @model_validator(mode="after")
    def _options_fit_the_codec(self) -> EncodeSettings:
        """An option that the codec does not take would only be found by the workers."""
        known = _CODEC_OPTIONS[self.codec]
        unknown = sorted(set(self.codec_options) - set(known))
        if unknown:
            raise ValueError(
                f"codec_options has {', '.join(unknown)}: codec {self.codec!r} takes {', '.join(known) or 'no options'}"
            )
        unknown = sorted(set(self.text_options) - set(_TEXT_OPTIONS))
        if unknown:
            raise ValueError(f"text_options has {', '.join(unknown)}: expected some of {', '.join(_TEXT_OPTIONS)}")
        return self
