"""TensorBoard: `tensorboard --logdir RUN` shows every number of every step, and contact sheets of the evaluations.

All numbers of a step are one event of `torch.utils.tensorboard`'s `FileWriter`, about a tenth of what one `add_scalar` each would cost. When a run
continues, a START event says from which step on earlier events are void (what `purge_step` of `SummaryWriter` writes), so the steps of an abandoned
continuation vanish. A run that had no event files until then is given what `metrics.jsonl` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard.writer import FileWriter

from training.logs.scalars import scalars
from training.logs.sinks import Sample
from training.metrics import read_lines

__all__ = ["TensorBoard"]

_FOLDER = "tensorboard"
_FLUSH_SECONDS = 10


class TensorBoard:
    """A `Sink`."""

    def __init__(self, run: Path, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder = run / _FOLDER
        is_new = not any(folder.glob("events.out.tfevents.*"))
        self._writer = FileWriter(folder, flush_secs=_FLUSH_SECONDS)
        self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=start_step)
        if is_new:
            for line in read_lines(run / "metrics.jsonl"):
                self._numbers(line["step"], scalars(line), line.get("unix_s"))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._numbers(step, values, None)

    def _numbers(self, step: int, values: Mapping[str, float], unix_s: float | None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values_ = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_summary(Summary(value=values_), step, unix_s)

    def sample(self, step: int, sample: Sample) -> None:
        """The contact sheet, as the PNG that it is."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(sample.sheet) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=sample.sheet.read_bytes())
        self._writer.add_summary(Summary(value=[Summary.Value(tag="samples", image=image)]), step)

    def flush(self) -> None:
        """See `Sink`."""
        self._writer.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()
