"""The one decoding pass of analysis: per frame a small picture, from it a few numbers; a few sampled frames; nothing else is kept.

Per distinct frame: what `shot_detector` makes of it. Per sample: optical flow to the frame before, as a coarse grid, so that a crop chosen later
can still leave the borders out of the motion score. A long film costs some 100 bytes a frame in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from curation.analysis.flow import FlowMeter, FlowSample
from curation.analysis.network_shots import SceneNetwork
from curation.analysis.pixel_facts import PixelFacts, measure_pixels
from curation.analysis.samples import SampleStore, scaled_size
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shot_detector import FrameFacts, ShotDetector
from curation.changes import Change
from curation.decode import SourceFacts, TimedFrame

__all__ = ["Timeline", "read_timeline"]

_PIXELS_EVERY = 3
"""One sampled frame in this many is measured at its own size: the shortest clip has four."""


@dataclass
class Timeline:
    """Everything the pass leaves behind, apart from the sample store."""

    frames: list[FrameFacts] = field(default_factory=list)
    flows: list[FlowSample] = field(default_factory=list)
    pixels: list[PixelFacts] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    proxy_size: tuple[int, int] = (0, 0)
    sample_size: tuple[int, int] = (0, 0)

    @property
    def end_tick(self) -> int:
        """End of the last frame."""
        return self.frames[-1].end_tick if self.frames else 0


def read_timeline(
    frames: Iterable[TimedFrame],
    facts: SourceFacts,
    settings: AnalyzeSettings,
    store: SampleStore,
    scenes: SceneNetwork | None = None,
) -> Timeline:
    """Take every frame once; samples go to `store`. `scenes`: for the shot detectors that need a network."""
    scan = _Scan(facts, settings, store, scenes)
    for frame in frames:
        scan.add(frame)
    return scan.finish()


class _Scan:
    def __init__(
        self, facts: SourceFacts, settings: AnalyzeSettings, store: SampleStore, scenes: SceneNetwork | None
    ) -> None:
        import cv2

        cv2.setNumThreads(1)
        sampling = settings.sampling
        self._settings, self._store = settings, store
        self._proxy = scaled_size(facts.height, facts.width, sampling.proxy_long_side, enlarge=True)
        self._sample = scaled_size(facts.height, facts.width, sampling.sample_long_side)
        self._shots = ShotDetector(settings, scenes)
        self._flows: list[FlowSample] = []
        self._flow = FlowMeter()
        self._pixels: list[PixelFacts] = []
        self._changes: list[Change] = []
        self._previous: tuple[int, NDArray[np.uint8]] | None = None

    def add(self, frame: TimedFrame) -> None:
        rgb, grey = frame.picture.small(*self._proxy)
        self._shots.add(frame.first_tick, frame.end_tick, rgb, grey)
        every = self._settings.sampling.sample_every_ticks
        ticks = range(-(-frame.first_tick // every) * every, frame.end_tick, every)
        self._changes += frame.changes
        measured = [tick for tick in ticks if tick // every % _PIXELS_EVERY == 0]
        if measured:
            facts = measure_pixels(measured[0], frame.picture.luma())
            self._pixels += [replace(facts, tick=tick) for tick in measured]
        if ticks:
            self._store.add(ticks, frame.picture.rgb(*self._sample))
            if self._previous is not None:
                self._flows.append(self._flow.between(*self._previous, frame.first_tick, grey))
            # A frame that is shown for long stands still for as long.
            self._flows += [FlowSample.still(tick) for tick in ticks[1:]]
        self._previous = (frame.first_tick, grey)

    def finish(self) -> Timeline:
        return Timeline(self._shots.finish(), self._flows, self._pixels, self._changes, self._proxy, self._sample)
