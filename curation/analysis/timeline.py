"""The one decoding pass of analysis: per frame a small picture, from it a few numbers; a few sampled frames; nothing else is kept.

Per distinct frame: its ticks, how far its luma reaches, whether a cut lies before it (PySceneDetect's adaptive detector), and how much it
looks like the middle of a dissolve. Per sample: optical flow to the frame before, as a coarse grid, so that a crop chosen later can still leave
the borders out of the motion score. A long film costs some 100 bytes a frame in memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.analysis.samples import SampleStore, scaled_size
from curation.analysis.settings import AnalyzeSettings
from curation.decode import SourceReader, TimedFrame

__all__ = ["FLOW_GRID", "FlowSample", "FrameFacts", "Timeline", "read_timeline"]

FLOW_GRID = (18, 32)
"""Rows and columns of the flow grid."""
_TINY = (18, 32)
_DISSOLVE_SECONDS = 1.0
_BLACK = 12
_PICTURE_RATIO = 0.25
_STILL_DIFFERENCE = 0.3
"""Frames whose mean luma difference is below this repeat the one before (animation on twos, padded rates) and are not shown to the cut detector,
whose ratio to the neighbours would be huge at every new drawing."""


@dataclass(frozen=True)
class FrameFacts:
    """What is remembered of one distinct frame."""

    first_tick: int
    end_tick: int
    luma_range: float
    """98th minus 2nd percentile of luma, 0 to 255; black bars left out."""
    cut_before: bool = False
    dissolve_change: float = 0.0
    """If the frames half a second before and after differ, and this frame is their mixture: by how much they differ, else 0."""


@dataclass(frozen=True)
class FlowSample:
    """Displacement between two neighbouring distinct frames, mean absolute per grid cell, proxy pixels per tick."""

    first_tick: int
    second_tick: int
    grid: NDArray[np.float32]


@dataclass
class Timeline:
    """Everything the pass leaves behind, apart from the sample store."""

    frames: list[FrameFacts] = field(default_factory=list)
    flows: list[FlowSample] = field(default_factory=list)
    proxy_size: tuple[int, int] = (0, 0)
    sample_size: tuple[int, int] = (0, 0)

    @property
    def end_tick(self) -> int:
        """End of the last frame."""
        return self.frames[-1].end_tick if self.frames else 0


def read_timeline(reader: SourceReader, settings: AnalyzeSettings, store: SampleStore) -> Timeline:
    """Decode the source once; samples go to `store`."""
    scan = _Scan(reader, settings, store)
    for frame in reader.frames():
        scan.add(frame)
    return scan.finish()


class _Scan:
    def __init__(self, reader: SourceReader, settings: AnalyzeSettings, store: SampleStore) -> None:
        import cv2

        cv2.setNumThreads(1)
        sampling, facts = settings.sampling, reader.facts
        self._settings, self._store = settings, store
        self._proxy = scaled_size(facts.height, facts.width, sampling.proxy_long_side, enlarge=True)
        self._sample = scaled_size(facts.height, facts.width, sampling.sample_long_side)
        self._frames: list[FrameFacts] = []
        self._flows: list[FlowSample] = []
        self._cuts = _CutDetector(settings)
        self._dissolves = _DissolveDetector(round(_DISSOLVE_SECONDS * settings.clip_fps), settings)
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_ULTRAFAST)
        self._previous: tuple[int, NDArray[np.uint8]] | None = None

    def add(self, frame: TimedFrame) -> None:
        import cv2

        rgb = frame.picture.rgb(*self._proxy)
        grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        difference = 255.0 if self._previous is None else float(cv2.absdiff(grey, self._previous[1]).mean())
        index = len(self._frames)
        if difference >= _STILL_DIFFERENCE:
            self._cuts.add(index, rgb)
        self._dissolves.add(index, frame, grey)
        self._frames.append(FrameFacts(frame.first_tick, frame.end_tick, _luma_range(grey)))
        every = self._settings.sampling.sample_every_ticks
        ticks = range(-(-frame.first_tick // every) * every, frame.end_tick, every)
        if ticks:
            self._store.add(ticks, frame.picture.rgb(*self._sample))
            self._add_flow(frame.first_tick, grey)
            # A frame that is shown for long stands still for as long.
            self._flows += [FlowSample(tick - 1, tick, np.zeros(FLOW_GRID, np.float32)) for tick in ticks[1:]]
        self._previous = (frame.first_tick, grey)

    def _add_flow(self, tick: int, grey: NDArray[np.uint8]) -> None:
        import cv2

        if self._previous is None:
            return
        before, previous = self._previous
        flow = np.asarray(self._flow.calc(previous, grey, np.zeros((*grey.shape, 2), dtype=np.float32)))
        lengths = np.hypot(flow[..., 0], flow[..., 1]) / np.float32(tick - before)
        grid = cv2.resize(lengths, (FLOW_GRID[1], FLOW_GRID[0]), interpolation=cv2.INTER_AREA)
        self._flows.append(FlowSample(before, tick, np.asarray(grid, dtype=np.float32)))

    def finish(self) -> Timeline:
        cuts, dissolves = self._cuts.found, self._dissolves.found
        frames = [
            FrameFacts(fact.first_tick, fact.end_tick, fact.luma_range, index in cuts, dissolves.get(index, 0.0))
            for index, fact in enumerate(self._frames)
        ]
        return Timeline(frames, self._flows, self._proxy, self._sample)


def _luma_range(grey: NDArray[np.uint8]) -> float:
    """98th minus 2nd percentile; without the black where enough is left, so that bars do not hide a fade to white or grey."""
    counts = np.bincount(grey[::2, ::2].ravel(), minlength=256)
    whole = _reach(counts)
    if counts[_BLACK:].sum() < _PICTURE_RATIO * counts.sum():
        return whole
    return min(whole, _reach(np.where(np.arange(256) < _BLACK, 0, counts)))


def _reach(counts: NDArray[np.int64]) -> float:
    total = counts.cumsum()
    low = int(np.searchsorted(total, total[-1] * 0.02, side="right"))
    high = int(np.searchsorted(total, total[-1] * 0.98, side="left"))
    return float(max(0, high - low))


class _CutDetector:
    """PySceneDetect's adaptive detector, fed frame by frame; indices of frames that start a shot are collected in `found`."""

    def __init__(self, settings: AnalyzeSettings) -> None:
        from scenedetect.common import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector

        self.found: set[int] = set()
        self._timecode = FrameTimecode
        self._shown: list[int] = []
        self._detector: Any = AdaptiveDetector(
            adaptive_threshold=settings.shots.adaptive_threshold,
            min_scene_len=2,
            min_content_val=settings.shots.min_content_change,
        )

    def add(self, index: int, rgb: NDArray[np.uint8]) -> None:
        """`index`: of the distinct frame. The detector counts only the frames it is shown, so its answers are mapped back."""
        place = len(self._shown)
        self._shown.append(index)
        cuts = self._detector.process_frame(self._timecode(place, 24.0), np.ascontiguousarray(rgb[..., ::-1]))
        self.found.update(self._shown[cut.frame_num] for cut in cuts)


class _DissolveDetector:
    """Finds the middle of a stretch that goes from one picture to another, unlike one, through mixtures of the two.

    A frame at share q of the span is compared with the mixture a x end + (1 - a) x start that is nearest to it: in a dissolve a is near q
    and little is left over; in a pan something else is in between; after a cut a is 0 or 1.
    """

    _SHARES = ((0.25, 0.08, 0.55), (0.5, 0.3, 0.7), (0.75, 0.45, 0.95))

    def __init__(self, span_ticks: int, settings: AnalyzeSettings) -> None:
        self.found: dict[int, float] = {}
        self._span = span_ticks
        self._change = settings.shots.dissolve_change
        self._residual = settings.shots.dissolve_residual
        self._window: deque[tuple[int, int, NDArray[np.float32]]] = deque()

    def add(self, index: int, frame: TimedFrame, grey: NDArray[np.uint8]) -> None:
        import cv2

        tiny = cv2.resize(grey, (_TINY[1], _TINY[0]), interpolation=cv2.INTER_AREA).astype(np.float32)
        window = self._window
        window.append((index, frame.first_tick, tiny))
        while len(window) > 2 and window[1][1] <= frame.first_tick - self._span:
            window.popleft()
        first_tick, start = window[0][1], window[0][2]
        difference = tiny - start
        change = float(np.abs(difference).mean())
        if frame.first_tick - first_tick < self._span or change < self._change:
            return
        middle = index
        for share, least, most in self._SHARES:
            at = first_tick + share * (frame.first_tick - first_tick)
            place, _, between = min(window, key=lambda item: abs(item[1] - at))
            mixture = float(((between - start) * difference).sum() / (difference * difference).sum())
            residual = float(np.abs(between - start - mixture * difference).mean())
            if not least <= mixture <= most or residual > self._residual * change:
                return
            middle = place if share == 0.5 else middle
        self.found[middle] = max(change, self.found.get(middle, 0.0))
