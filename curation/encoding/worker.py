"""Encoding of the kept clips of one source: latents, teacher features and image tokens for every set, from one decode.

Files: `<clip_id>.<set>.latent.npy` (float16, T C H W), `<clip_id>.<set>.teacher.npy` (float16, T Y X C, if the branch has a teacher),
`<clip_id>.<set>.image.npy` (float16, tokens by width, if an image encoder is set) and `latents.json`, the index that pack reads.
A clip that cannot be encoded becomes an outcome row; the others are not touched by it. The files depend on the source, the crop and the models
only, so another captioner or threshold encodes nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curation.decode import DECODE_CODE, UnreadableSourceError
from curation.encoding.pixels import ClipPixels, ClipRequest, clip_pixels
from curation.encoding.settings import EncodeSettings
from curation.model_identity import code_identity, model_identity
from curation.requests import SourceRequest
from schemas.files import write_json
from schemas.ids import fingerprint

if TYPE_CHECKING:
    from encoders.image_tokens import SiglipTokens
    from encoders.latents import LatentCodec
    from encoders.registry import Registry
    from encoders.teacher import Teacher

__all__ = ["LATENTS_INDEX", "EncodeModels", "LatentEntry", "encode_clips", "encoding_fingerprint", "load_models"]

LATENTS_INDEX = "latents.json"
_SHARED = ("encoders.weights", "encoders.devices")
_CODEC_CODE = {"dct": ("encoders.dct",), "wan": ("encoders.wan", "encoders.tiling", *_SHARED)}
_TEACHER_CODE = {
    "efficientnet_lite0": ("encoders.efficientnet",),
    "dinov2": _SHARED,
    "vjepa2": ("encoders.vjepa", *_SHARED),
}
_CODE = (*DECODE_CODE, "curation.encoding.pixels", "curation.encoding.worker")


@dataclass(frozen=True)
class EncodeModels:
    """Loaded networks; `teachers` by name."""

    codec: LatentCodec
    teachers: dict[str, Teacher]
    image_encoder: SiglipTokens | None = None


@dataclass(frozen=True)
class LatentEntry:
    """One row of `latents.json`."""

    clip_id: str
    set: str
    latent_shape: tuple[int, int, int, int]
    frames: int
    height: int
    width: int
    has_teacher: bool
    has_image: bool = False


def load_models(settings: EncodeSettings, cache_dir: Path | str | None = None) -> EncodeModels:
    """Load codec, teachers and image encoder from the local cache.

    Raises:
        ModelMissingError: naming the command that pulls the missing weights.
    """
    import torch

    from encoders.latents import get_codec
    from encoders.registry import Registry
    from encoders.teacher import get_teacher

    torch.set_num_threads(1)
    registry = Registry(cache_dir=cache_dir)
    teachers = {}
    for name in sorted({name for name in settings.teacher_by_branch.values() if name is not None}):
        path = {"path": settings.teacher_paths[name]} if name in settings.teacher_paths else {}
        teachers[name] = get_teacher(name, registry=registry, device=settings.device, **path)
    options: dict[str, Any] = {"device": settings.device} if settings.codec == "wan" else {}
    codec = get_codec(settings.codec, registry=registry, **options | settings.codec_options)
    return EncodeModels(codec, teachers, _load_image_encoder(settings, registry))


def _load_image_encoder(settings: EncodeSettings, registry: Registry) -> SiglipTokens | None:
    if settings.image_encoder is None:
        return None
    from encoders.image_tokens import SiglipTokens

    return SiglipTokens(settings.image_path, device=settings.device, registry=registry)


def _codec_path(settings: EncodeSettings) -> str | None:
    """Folder of the codec's own files, or its hub id; None: the registry's."""
    from encoders.weights import part_of

    path = settings.codec_options.get("path")
    folder = Path(str(path)).expanduser()
    return None if path is None else str(part_of(folder, "vae")) if folder.is_dir() else str(path)


def encoding_fingerprint(settings: EncodeSettings, set_name: str, branch: str) -> str:
    """Hash of everything that decides the files of a clip of this branch in one set, apart from source and crop; loads nothing.

    Weights in a folder count by their content, so a folder may move.
    """
    name = settings.teacher_by_branch[branch]
    codec = model_identity(
        f"latents.{settings.codec}",
        ("encoders.latents", *_CODEC_CODE[settings.codec]),
        path=_codec_path(settings),
    )
    options = {key: value for key, value in settings.codec_options.items() if key != "path"}
    teacher, image = None, None
    if name is not None:
        modules = ("encoders.teacher", *_TEACHER_CODE[name])
        teacher = model_identity(f"teacher.{name}", modules, path=settings.teacher_paths.get(name))
    if settings.image_encoder is not None:
        modules = ("encoders.image_tokens", *_SHARED)
        image = model_identity(f"image.{settings.image_encoder}", modules, path=settings.image_path)
    facts = [set_name, codec, options, settings.device, teacher, image]
    return fingerprint(["encode", code_identity(_CODE), *facts])


def encode_clips(
    request: SourceRequest,
    clips: Sequence[Mapping[str, Any]],
    settings: EncodeSettings,
    models: EncodeModels,
    folder: Path,
    *,
    sets_by_clip: Mapping[str, Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Encode rows of the clips table, all of this source, into `folder`; returns outcome rows for those that failed.

    Each clip goes into every set of the settings, or into those that `sets_by_clip` names for it.
    """
    requests = [
        ClipRequest.from_row(row, settings.sets if sets_by_clip is None else sets_by_clip[row["clip_id"]])
        for row in clips
    ]
    rates = {float(row["clip_fps"]) for row in clips}
    assert len(rates) <= 1, "the clips of one analysis share one timeline"
    name = settings.teacher_by_branch[request.branch]
    teacher = None if name is None else models.teachers[name]
    entries: list[LatentEntry] = []
    outcomes: list[dict[str, Any]] = []
    try:
        if requests:
            for pixels in clip_pixels(request.path, request.kind, rates.pop(), requests):
                entries += _encode(pixels, models, teacher, folder, outcomes)
    except UnreadableSourceError as error:
        known = {(entry.clip_id, entry.set) for entry in entries} | {(row["clip_id"], row["set"]) for row in outcomes}
        missing = [(clip.clip_id, name) for clip in requests for name in clip.sets if (clip.clip_id, name) not in known]
        outcomes += [_outcome(clip_id, name, f"source {error}") for clip_id, name in missing]
    entries.sort(key=lambda entry: (entry.clip_id, entry.set))
    write_json(folder / LATENTS_INDEX, [asdict(entry) for entry in entries])
    return sorted(outcomes, key=lambda row: (row["clip_id"], row["set"]))


def _outcome(clip_id: str, set_name: str, reason: str) -> dict[str, Any]:
    return {"clip_id": clip_id, "phase": "encode", "set": set_name, "reason": reason}


def _encode(
    pixels: ClipPixels, models: EncodeModels, teacher: Teacher | None, folder: Path, outcomes: list[dict[str, Any]]
) -> list[LatentEntry]:
    """Write the files of one clip for every set; a clip that is short or not finite is an outcome instead."""
    clip = pixels.clip
    if pixels.frames_found != clip.frames:
        reason = f"{pixels.frames_found} of {clip.frames} frames could be decoded"
        outcomes += [_outcome(clip.clip_id, name, reason) for name in pixels.by_set]
        return []
    entries = []
    for name, frames_THWC in pixels.by_set.items():
        arrays = {"latent": models.codec.encode(frames_THWC)}
        if teacher is not None:
            arrays["teacher"] = teacher.features(frames_THWC)
        if models.image_encoder is not None:
            arrays["image"] = models.image_encoder.tokens(frames_THWC[0])
        bad = [kind for kind, values in arrays.items() if not _finite(values)]
        if bad:
            outcomes.append(_outcome(clip.clip_id, name, f"values of {', '.join(bad)} are not finite in float16"))
            continue
        for kind, values in arrays.items():
            _save(folder / f"{clip.clip_id}.{name}.{kind}.npy", values)
        t, c, y, x = arrays["latent"].shape
        height, width = frames_THWC.shape[1:3]
        has_teacher, has_image = "teacher" in arrays, "image" in arrays
        shape = (t, c, y, x)
        entries.append(LatentEntry(clip.clip_id, name, shape, clip.frames, height, width, has_teacher, has_image))
    return entries


def _finite(values: NDArray[np.float16]) -> bool:
    return bool(np.isfinite(values).all())


def _save(path: Path, values: NDArray[np.float16]) -> None:
    np.save(path, np.ascontiguousarray(values, dtype=np.float16), allow_pickle=False)
