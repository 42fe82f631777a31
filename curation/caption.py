"""The caption phase: labels of the clips that survived.

The default captioner needs no download beyond its 19 MB of weights: EfficientNet-Lite0 names what the thumbnails show, and the rest is told from
the scores of the analysis and from the light and colour of the same thumbnails. It judges neither quality nor watermarks, so those labels are
null and reject nothing. Each clip is captioned alone, so no answer can land on another clip. Price: plain captions; a language model that sees
the frames writes better ones: that is the captioner `server`, in `curation/captioning/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from curation.captioning.prompt import PROMPT_VERSION
from curation.captioning.settings import ServerSettings
from curation.model_identity import code_identity, model_identity
from curation.picture_facts import frames_of_strip, picture_facts
from curation.tag_captions import subject_of, write_captions
from schemas.config import StrictConfig
from schemas.errors import DataError
from schemas.ids import fingerprint
from schemas.tables import LABELS, table_from_rows

if TYPE_CHECKING:
    from encoders.tagger import ImageTagger

__all__ = ["CaptionModels", "CaptionSettings", "caption_clips", "caption_fingerprint", "load_models", "model_names"]

_MODEL_CODE = ("encoders.tagger", "encoders.efficientnet")
_PROMPT_VERSION = "tags-1"
_SERVER_CODE = ("curation.captioning.answer", "curation.captioning.frames", "curation.captioning.prompt")


class CaptionSettings(StrictConfig):
    """Settings of the caption phase."""

    captioner: Literal["tags", "server"] = "tags"
    """`tags`: EfficientNet-Lite0 tags, text seen, measured motion, light and colour. `server`: a language model that sees the frames."""
    num_tags: int = Field(default=3, ge=1, le=10)
    """At most this many tags are named."""
    min_probability: float = Field(default=0.15, ge=0, le=1)
    """Tags below it are not named."""
    server: ServerSettings = ServerSettings()
    """Of the captioner `server`."""

    @model_validator(mode="after")
    def _complete(self) -> CaptionSettings:
        missing = [name for name in ("base_url", "model") if getattr(self.server, name) is None]
        if self.captioner == "server" and missing:
            raise ValueError(
                f"captioner server needs server.{' and server.'.join(missing)}, for example "
                "base_url: http://127.0.0.1:8000/v1 and the model name that the server lists"
            )
        return self


@dataclass(frozen=True)
class CaptionModels:
    """Loaded networks of the captioner."""

    tagger: ImageTagger


def model_names(settings: CaptionSettings) -> tuple[str, ...]:
    """Registry names of the weights that these settings need."""
    return ("teacher.efficientnet_lite0",) if settings.captioner == "tags" else ()


def load_models(settings: CaptionSettings, cache_dir: Path | str | None = None) -> CaptionModels:
    """Load from the local cache; one thread, so that the same thumbnails give the same tags in every worker.

    Raises:
        ModelMissingError: naming the command that pulls the missing weights.
    """
    import torch

    from encoders.registry import Registry
    from encoders.tagger import ImageTagger

    torch.set_num_threads(1)
    return CaptionModels(tagger=ImageTagger(registry=Registry(cache_dir=cache_dir)))


def caption_fingerprint(settings: CaptionSettings) -> str:
    """Hash of everything that decides a clip's labels, apart from its row and its thumbnails; loads no network."""
    if settings.captioner == "server":
        return fingerprint(["caption", PROMPT_VERSION, settings.server.identity(), code_identity(_SERVER_CODE)])
    models = [model_identity(name, _MODEL_CODE) for name in model_names(settings)]
    sentences = code_identity(("curation.picture_facts", "curation.tag_captions"))
    plain = settings.model_dump(mode="json", exclude={"server"})
    return fingerprint(["caption", _PROMPT_VERSION, plain, models, sentences])


def caption_clips(
    clips: Sequence[Mapping[str, Any]],
    thumbnails: Mapping[str, tuple[int, bytes]],
    settings: CaptionSettings,
    models: CaptionModels,
) -> pa.Table:
    """LABELS, one row per clip, in the order given.

    Args:
        clips: CLIPS rows.
        thumbnails: clip id to (number of frames, JPEG strip).

    Raises:
        DataError: a clip has no thumbnail, or one that cannot be read.
    """
    return table_from_rows(LABELS, [_caption(clip, thumbnails, settings, models) for clip in clips])


def _caption(
    clip: Mapping[str, Any],
    thumbnails: Mapping[str, tuple[int, bytes]],
    settings: CaptionSettings,
    models: CaptionModels,
) -> dict[str, Any]:
    clip_id = clip["clip_id"]
    if clip_id not in thumbnails:
        raise DataError(f"clip {clip_id} ({clip['uri']}) has no thumbnail strip; run the analyze phase again")
    num_frames, jpeg = thumbnails[clip_id]
    try:
        frames = frames_of_strip(jpeg, num_frames)
    except (OSError, ValueError) as error:
        raise DataError(
            f"clip {clip_id} ({clip['uri']}): thumbnail strip: {error}; run the analyze phase again"
        ) from error
    tagger = models.tagger
    probable = [
        (label, probability)
        for label, probability in tagger.tags(frames, top=settings.num_tags)
        if probability >= settings.min_probability
    ]
    subject = subject_of(probable[0][0], tagger.labels.index(probable[0][0])) if probable else "unknown"
    written = write_captions(clip, picture_facts(frames), probable, subject)
    not_judged = dict.fromkeys(("quality", "watermark", "nsfw", "padded", "multi_scene", "timelapse"))
    return {
        "clip_id": clip_id,
        **vars(written),
        **not_judged,
        "tags": [label for label, _ in probable],
        "model": f"tags:{tagger.name}",
        "prompt_version": _PROMPT_VERSION,
    }
