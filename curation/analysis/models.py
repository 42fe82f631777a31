"""The networks of the analyze phase, loaded once per process, and the fingerprint of the phase, which needs none of them loaded.

The fingerprint is over the settings, the hashes of the weights, and the code of the encoders, of the decoder and of this package: two machines
agree on it, and a unit is analysed again exactly when one of these changed. Price: an edited comment in them analyses everything again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curation.analysis.open_clip_models import FrameScorer, load_open_clip, open_clip_identity
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.stitching import Describe
from curation.decode import DECODE_CODE
from curation.model_identity import code_identity, model_identity
from schemas.ids import fingerprint

if TYPE_CHECKING:
    from encoders.copy_descriptor import CopyDescriptor
    from encoders.open_clip_image import OpenClipImages
    from encoders.perceptual_hash import PerceptualHash
    from encoders.registry import Registry
    from encoders.text_detection import TextDetector
    from encoders.transnet import TransNet

__all__ = ["AnalyzeModels", "analysis_fingerprint", "load_models", "model_names"]

_CODE = (
    *DECODE_CODE,
    *(f"curation.analysis.{name}" for name in ("clip_scores", "damage", "flow", "motion", "pieces", "rows")),
    *(f"curation.analysis.{name}" for name in ("clips", "crops", "marks", "models", "overlays", "samples", "scores")),
    *(f"curation.analysis.{name}" for name in ("pixel_facts", "repeats", "settings", "text_overlays")),
    "curation.analysis.open_clip_models",
    *(
        f"curation.analysis.{name}"
        for name in (
            "cuts",
            "dissolves",
            "flashes",
            "network_shots",
            "shot_detector",
            "shot_finders",
            "shots",
            "stitching",
        )
    ),
    *(f"curation.analysis.{name}" for name in ("timeline", "worker")),
)


@dataclass(frozen=True)
class AnalyzeModels:
    """Loaded networks; each has `.name` and `.fingerprint`. None: switched off in the settings."""

    nsfw: FrameScorer | None
    text_detector: TextDetector | None
    descriptor: CopyDescriptor | PerceptualHash | None
    scenes: TransNet | None = None
    aesthetic: FrameScorer | None = None
    stitcher: OpenClipImages | None = None

    @property
    def describe_shots(self) -> Describe | None:
        """What neighbouring shots are compared by; None: they are not."""
        if self.stitcher is not None:
            return self.stitcher.embed
        return None if self.descriptor is None else self.descriptor.describe


def model_names(settings: AnalyzeSettings) -> tuple[str, ...]:
    """Registry names of the weights that these settings need."""
    return tuple(name for name, _ in _models(settings))


def _models(settings: AnalyzeSettings) -> list[tuple[str, str]]:
    """(registry name, module of `encoders`) of the networks that are switched on."""
    judged = "transnetv2" if settings.shots.detector in ("transnetv2", "hybrid") else None
    wanted = (
        ("nsfw", "opennsfw" if settings.nsfw == "opennsfw" else None, "nsfw"),
        ("text_detector", settings.text_detector_used, "text_detection"),
        ("copies", None if settings.descriptor == "phash" else settings.descriptor, "copy_descriptor"),
        ("scenes", judged, "transnet"),
    )
    return [(f"{job}.{name}", module) for job, name, module in wanted if name is not None]


def load_models(settings: AnalyzeSettings, cache_dir: Path | str | None = None) -> AnalyzeModels:
    """Load from the local cache, one thread each.

    Raises:
        ModelMissingError: naming the command that pulls the missing weights.
    """
    import cv2

    from encoders.nsfw import NsfwScorer
    from encoders.registry import Registry
    from encoders.text_detection import TextDetector

    cv2.setNumThreads(1)
    registry = Registry(cache_dir=cache_dir)
    by_path = load_open_clip(settings)
    return AnalyzeModels(
        nsfw=NsfwScorer(registry=registry) if settings.nsfw == "opennsfw" else by_path.nsfw,
        aesthetic=by_path.aesthetic,
        text_detector=None if settings.text_detector_used is None else TextDetector(registry=registry),
        descriptor=_descriptor(settings, registry),
        scenes=_scenes(settings, registry),
        stitcher=_stitcher(settings),
    )


def _descriptor(settings: AnalyzeSettings, registry: Registry) -> CopyDescriptor | PerceptualHash | None:
    from encoders.copy_descriptor import CopyDescriptor
    from encoders.perceptual_hash import PerceptualHash

    if settings.descriptor is None:
        return None
    return (
        PerceptualHash() if settings.descriptor == "phash" else CopyDescriptor(settings.descriptor, registry=registry)
    )


def _scenes(settings: AnalyzeSettings, registry: Registry) -> TransNet | None:
    """torch is imported only where it is needed: it costs a worker two seconds and 200 MB."""
    if settings.shots.detector not in ("transnetv2", "hybrid"):
        return None
    import torch

    from encoders.transnet import TransNet

    torch.set_num_threads(1)
    return TransNet(device=settings.shots.device, registry=registry)


def _stitcher(settings: AnalyzeSettings) -> OpenClipImages | None:
    shots = settings.shots
    if shots.stitch_weights is None:
        return None
    import torch

    from encoders.open_clip_image import OpenClipImages

    torch.set_num_threads(1)
    return OpenClipImages(shots.stitch_weights, shots.stitch_architecture)


def _stitcher_identity(settings: AnalyzeSettings) -> list[object]:
    """Hash of the weights given by path, and the code that runs them; empty without any."""
    shots = settings.shots
    if shots.stitch_weights is None:
        return []
    from encoders.open_clip_image import OpenClipWeights

    weights = OpenClipWeights.at(shots.stitch_weights, shots.stitch_architecture)
    return [weights.weights_hash(), code_identity(["encoders.open_clip_image"])]


def analysis_fingerprint(settings: AnalyzeSettings) -> str:
    """Hash of everything that decides the tables of a source, apart from the source."""
    identities = [
        model_identity(name, [f"encoders.{module}", "encoders.onnx_session"]) for name, module in _models(settings)
    ]
    hashing = code_identity(["encoders.perceptual_hash"]) if settings.descriptor == "phash" else {}
    return fingerprint(
        [
            "analyze",
            code_identity(_CODE),
            settings.model_dump(mode="json"),
            [*identities, hashing],
            [open_clip_identity(settings), _stitcher_identity(settings)],
        ]
    )
