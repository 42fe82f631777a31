"""Ray metrics of a command: what the status shows, as Prometheus series on the metrics port of the driver's node.

    ray_reelyard_units_total{phase, result}   ray_reelyard_clips_total{phase}   ray_reelyard_video_seconds_total{phase}
    ray_reelyard_stage_busy_seconds{phase, stage}   ray_reelyard_stage_queue{...}   ..._stage_running{...}   ..._stage_workers{...}

The driver sends them, because it sees every queue and result; CPU, memory and tasks per node are in Ray's own series. Price: Ray exports them every
ten seconds or so and drops a gauge that is not set again, so the stage series are there while their phase runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.run_status import StageLoad

__all__ = ["RunMetrics"]


class RunMetrics:
    """Made with the first value, when the driver is connected."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}

    def loads(self, phase: str, loads: list[StageLoad]) -> None:
        """Gauges per stage."""
        for load in loads:
            tags = {"phase": phase, "stage": load.name}
            self._gauge("stage_busy_seconds", "Seconds that workers of the stage worked.").set(load.busy_seconds, tags)
            self._gauge("stage_queue", "Tasks that wait for the stage.").set(load.waiting, tags)
            self._gauge("stage_running", "Tasks in work.").set(load.running, tags)
            self._gauge("stage_workers", "Workers that are up.").set(load.workers, tags)

    def unit(self, phase: str, *, quarantined: bool, clips: int, video_seconds: float) -> None:
        """One unit more."""
        tags = {"phase": phase}
        result = {"result": "quarantined" if quarantined else "done"}
        self._counter("units", "Units that ended.", ("phase", "result")).inc(1, tags | result)
        if clips:
            self._counter("clips", "Clips of these units.", ("phase",)).inc(clips, tags)
        if video_seconds > 0:
            self._counter("video_seconds", "Seconds of video of these units.", ("phase",)).inc(video_seconds, tags)

    def _gauge(self, name: str, text: str) -> Any:
        if name not in self._metrics:
            from ray.util.metrics import Gauge

            self._metrics[name] = Gauge(f"reelyard_{name}", description=text, tag_keys=("phase", "stage"))
        return self._metrics[name]

    def _counter(self, name: str, text: str, tag_keys: tuple[str, ...]) -> Any:
        if name not in self._metrics:
            from ray.util.metrics import Counter

            self._metrics[name] = Counter(f"reelyard_{name}", description=text, tag_keys=tag_keys)
        return self._metrics[name]
