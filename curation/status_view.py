"""`reelyard-curate status`: reads what a command wrote of itself and says it in lines; whether it still runs is looked up, not believed.

On the command's own machine its process id and start time decide; elsewhere the age of the file does. Price: a command that ended less than
half a minute ago on another machine, killed, still counts as running.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from curation.run_status import STATUS_FILE, duration_text, process_start
from schemas.errors import UsageError

__all__ = ["read_status", "show_status", "status_lines"]

_SILENT_SECONDS = 30.0
_WATCH_SECONDS = 2.0
_CLEAR_SCREEN = "\x1b[H\x1b[2J"


def read_status(output: Path) -> dict[str, Any]:
    """The status of the last command on this output, with `state`: running, done, failed or killed.

    Raises:
        UsageError: no command has run there yet.
    """
    path = output / STATUS_FILE
    try:
        status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist: no `reelyard-curate run` has begun in {output}; give --config of the run, or its output folder"
        ) from None
    if status["state"] == "running" and not _alive(status):
        status["state"] = "killed"
    return status


def _alive(status: dict[str, Any]) -> bool:
    if status["host"] == os.uname().nodename:
        return process_start(status["pid"]) == status["process_start"]
    return time.time() - float(status["updated"]) < _SILENT_SECONDS


def show_status(output: Path, *, watch: bool, as_json: bool) -> None:
    """Print the status once, or again and again until the command has ended: redrawn on a terminal, else block after block."""
    while True:
        status = read_status(output)
        text = json.dumps(status) if as_json else "\n".join(status_lines(status))
        if watch and not as_json and sys.stdout.isatty():
            text = f"{_CLEAR_SCREEN}{text}"
        print(text, flush=True)
        if not watch or status["state"] != "running":
            return
        time.sleep(_WATCH_SECONDS)


def status_lines(status: dict[str, Any]) -> list[str]:
    """Lines for people: the command, the work at hand, its stages, the phases before."""
    lines = [_headline(status)]
    for work in status["finished"]:
        lines.append(f"  {work['phase']:8} {_units(work)} in {duration_text(work['seconds'])}{_rates(work)}")
        lines += [f"  {'':8} {_stage(stage)}" for stage in work["stages"]]
    work = status["work"]
    if work is not None:
        lines.append(f"  {work['phase']:8} {_units(work)}, {work['queue']} to go{_rates(work)}")
        lines += [f"  {'':8} {_stage(stage)}" for stage in work["stages"]]
        if status["state"] == "running" and work["seconds_left"] is not None:
            end = time.strftime("%H:%M:%S UTC", time.gmtime(status["updated"] + work["seconds_left"]))
            lines.append(
                f"  {'':8} this phase ends in about {duration_text(work['seconds_left'])}, at {end}, at the speed so far"
            )
    elif status["state"] == "running" and status["phase"] is not None:
        lines.append(f"  {status['phase']:8} no units on workers at the moment")
    return lines


def _headline(status: dict[str, Any]) -> str:
    who = f"process {status['pid']} on {status['host']}"
    spent = duration_text(status["updated"] - status["started"])
    if status["state"] == "running":
        return f"running for {spent}: phase {status['phase'] or '-'} of {', '.join(status['phases'])} ({who})"
    if status["state"] == "killed":
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status["updated"]))
        return (
            f"no command runs here: the last one ({who}) was killed in phase {status['phase'] or '-'}, last sign of life {at}; "
            "the same command again continues with what is not committed"
        )
    if status["state"] == "failed":
        return f"no command runs here: the last one ({who}) failed in phase {status['phase']} after {spent}: {status['error']}"
    return f"no command runs here: the last one ({who}) ended well after {spent}"


def _units(work: dict[str, Any]) -> str:
    text = f"{work['done']} of {work['units']} units"
    if work["skipped"]:
        text += f" ({work['skipped']} more were done before)"
    if work["quarantined"]:
        text += f", {work['quarantined']} quarantined"
    return text


def _rates(work: dict[str, Any]) -> str:
    text = f", {work['clips']} clips, {work['clips_per_second']:.2f} a second" if work["clips"] else ""
    if work["video_seconds"]:
        text += f", {work['video_hours_per_hour']:.2f} video hours an hour"
    return text


def _stage(stage: dict[str, Any]) -> str:
    share = "-" if stage["busy_share"] is None else f"{100 * stage['busy_share']:.0f} %"
    return (
        f"stage {stage['name']}: {stage['workers']} workers, busy {share} ({duration_text(stage['busy_seconds'])} of work), "
        f"{stage['running']} running, {stage['waiting']} waiting, {stage['done']} done"
    )
