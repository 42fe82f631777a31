"""How long each stage took: units, busy seconds and their spread, from the timings table.

Busy seconds are those of the workers, so a stage that ran on two workers can be busy for twice the length of its phase.
"""

from __future__ import annotations

from html import escape

import polars as pl
import pyarrow as pa

__all__ = ["speed_table"]


def speed_table(timings: pa.Table, video_hours: float, num_clips: int) -> str:
    """One row per phase and stage of the latest command that did units in it."""
    frame = pl.from_arrow(timings)
    assert isinstance(frame, pl.DataFrame)
    rows = []
    for (phase,), part in frame.group_by(["phase"], maintain_order=True):
        worked = part.filter((pl.col("unit") == "") & (pl.col("units_done") > 0))
        if worked.is_empty():
            continue
        run = worked["run"][-1]
        wall = float(worked.filter(pl.col("run") == run)["seconds"].sum())
        units = part.filter((pl.col("run") == run) & (pl.col("unit") != ""))
        skipped = int(worked.filter(pl.col("run") == run)["units_skipped"].sum())
        rows.append(
            _row(
                str(phase),
                "",
                int(worked.filter(pl.col("run") == run)["units_done"].sum()),
                skipped,
                wall,
                None,
                None,
                run,
            )
        )
        for (stage,), own in units.group_by(["stage"], maintain_order=True):
            busy = float(own["seconds"].sum())
            rows.append(_row("", str(stage), len(own), None, busy, busy / len(own), max(own["seconds"].to_list()), run))
    head = "<tr><th>phase</th><th>stage</th><th>units</th><th>skipped</th><th>seconds</th><th>mean</th><th>longest</th><th>command of</th></tr>"
    whole = f"<p>{video_hours:.3g} hours of video, {num_clips} clips. Phases are timed by the clock, stages by the busy seconds of their workers.</p>"
    return (
        f"{whole}<table class='speed'>{head}{''.join(rows)}</table>"
        if rows
        else f"{whole}<p class='dim'>no timings</p>"
    )


def _row(
    phase: str,
    stage: str,
    units: int,
    skipped: int | None,
    seconds: float,
    mean: float | None,
    longest: float | None,
    run: str,
) -> str:
    numbers = ["" if value is None else f"{value:.2f}" for value in (seconds, mean, longest)]
    cells = [phase, stage, str(units), "" if skipped is None else str(skipped), *numbers, run if phase else ""]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
