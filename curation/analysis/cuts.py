"""Hard cuts by PySceneDetect, fed frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.analysis.settings import ShotSettings

__all__ = ["CutDetector"]


class CutDetector:
    """PySceneDetect's adaptive detector, fed frame by frame; indices of frames that start a shot are collected in `found`."""

    def __init__(self, settings: ShotSettings) -> None:
        from scenedetect.common import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector

        self.found: set[int] = set()
        self._timecode = FrameTimecode
        self._shown: list[int] = []
        self._detector: Any = AdaptiveDetector(
            adaptive_threshold=settings.adaptive_threshold,
            min_scene_len=2,
            min_content_val=settings.min_content_change,
        )

    def add(self, index: int, rgb: NDArray[np.uint8]) -> None:
        """`index`: of the distinct frame. The detector counts only the frames it is shown, so its answers are mapped back."""
        place = len(self._shown)
        self._shown.append(index)
        cuts = self._detector.process_frame(self._timecode(place, 24.0), np.ascontiguousarray(rgb[..., ::-1]))
        self.found.update(self._shown[cut.frame_num] for cut in cuts)
