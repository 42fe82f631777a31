"""How far a run is: a bar on a terminal, a plain line every few seconds elsewhere, with the time that is left by the plan's own costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from schemas.command import say

__all__ = ["RunProgress", "duration_words"]

_SAY_EVERY_SECONDS = 5.0


class RunProgress:
    """Rank 0's; nothing is shown before the first step."""

    def __init__(self, stop_step: int) -> None:
        self._stop_step = stop_step
        self._said = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None

    def show(self, line: Mapping[str, Any], seconds_left: float | None, *, always: bool) -> None:
        """After each step; elsewhere than on a terminal most calls do nothing, unless `always`."""
        if sys.stderr.isatty() or self._bar is not None:
            self._show_bar(line, seconds_left)
            return
        now = time.perf_counter()
        if always or now - self._said >= _SAY_EVERY_SECONDS:
            self._said = now
            left = "" if seconds_left is None or always else f", {duration_words(seconds_left)} left"
            say(
                f"step {line['step'] + 1} of {self._stop_step}: loss {line['loss']:.4f}, grad norm {line['grad_norm']:.3f}, "
                f"{line['step_ms']:.0f} ms (waited {line['data_wait_ms']:.1f} ms for data), {line['tokens_per_s']:.0f} video tokens/s{left}"
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _show_bar(self, line: Mapping[str, Any], seconds_left: float | None) -> None:
        if self._bar is None:
            self._bar, self._task = self._opened(line["step"])
        left = "" if seconds_left is None else f"{duration_words(seconds_left)} left"
        self._bar.update(
            self._task,
            completed=line["step"] + 1,
            loss=f"loss {line['loss']:.4f}",
            took=f"{line['step_ms']:.0f} ms",
            wait=f"data wait {line['data_wait_ms']:.1f} ms",
            left=left,
        )

    def _opened(self, first_step: int) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        fields = [TextColumn(f"{{task.fields[{name}]}}") for name in ("loss", "took", "wait", "left")]
        bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), *fields, console=Console(stderr=True))
        bar.start()
        empty: dict[str, Any] = dict.fromkeys(("loss", "took", "wait", "left"), "")
        return bar, bar.add_task("training", total=self._stop_step, completed=first_step, **empty)


def duration_words(seconds: float) -> str:
    """`duration_words(4000) == "1 h 07 min"`; `"12 min 30 s"` and `"8 s"` below."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole / 86_400:.1f} days"
