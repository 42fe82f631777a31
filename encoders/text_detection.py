"""Where text is in a frame: RapidOCR's own detector over the registry's PP-OCRv6 file.

The detector class, its preprocessing and its box decoding are RapidOCR's; we hand it a session of ours, so that it downloads nothing, writes no log
and uses one thread. Boxes are upright rectangles in the coordinates of the frame given. Price: text below about 8 pixels after scaling to
`long_side` is missed, and so are logos without letters, which another detector finds.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.onnx_session import open_session
from encoders.registry import Registry
from schemas.ids import fingerprint

__all__ = ["TextBox", "TextDetector"]

_CODE_VERSION = 1
_SETTINGS: dict[str, Any] = {
    "limit_type": "max",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "thresh": 0.3,
    "box_thresh": 0.5,
    "max_candidates": 1000,
    "unclip_ratio": 1.6,
    "use_dilation": True,
    "score_mode": "fast",
}


class TextBox(NamedTuple):
    """A rectangle in pixels, bottom and right exclusive, with the detector's mean score inside it."""

    top: int
    left: int
    bottom: int
    right: int
    score: float


class TextDetector:
    """`boxes` of one RGB frame."""

    name = "ppocr_det"

    def __init__(self, *, intra_op_num_threads: int = 1, registry: Registry | None = None) -> None:
        registry = registry or Registry()
        entry = "text_detector.ppocr_det"
        self._session = open_session(registry.local_path(entry), intra_op_num_threads=intra_op_num_threads)
        self._detectors: dict[int, Any] = {}
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, registry.weights_hash(entry), _SETTINGS])

    def boxes(self, frame_HWC: NDArray[np.uint8], long_side: int = 480) -> list[TextBox]:
        """Text boxes of a (H, W, 3) uint8 frame, looked for at a long side of `long_side` pixels (never enlarged), in reading order."""
        height, width = frame_HWC.shape[:2]
        found = self._detector(long_side)(np.ascontiguousarray(frame_HWC[:, :, ::-1]))
        if found.boxes is None or found.scores is None:
            return []
        result = []
        for corners, score in zip(found.boxes, found.scores, strict=True):
            left, top = np.floor(np.min(corners, axis=0)).astype(int)
            right, bottom = np.ceil(np.max(corners, axis=0)).astype(int)
            box = TextBox(
                max(0, int(top)), max(0, int(left)), min(height, int(bottom)), min(width, int(right)), float(score)
            )
            if box.bottom > box.top and box.right > box.left:
                result.append(box)
        return result

    def _detector(self, long_side: int) -> Any:
        if long_side not in self._detectors:
            self._detectors[long_side] = _rapidocr_detector(self._session, long_side)
        return self._detectors[long_side]


def _rapidocr_detector(session: Any, long_side: int) -> Any:
    """RapidOCR's detector around our session. Its logger is turned down after the import, which sets the level."""
    from omegaconf import OmegaConf
    from rapidocr.ch_ppocr_det import TextDetector as RapidTextDetector
    from rapidocr.utils.typings import EngineType

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    settings: Any = OmegaConf.create({**_SETTINGS, "limit_side_len": long_side, "engine_type": EngineType.ONNXRUNTIME})
    OmegaConf.set_struct(settings, False)
    settings._set_flag("allow_objects", True)
    settings["session"] = session
    return RapidTextDetector(settings)
