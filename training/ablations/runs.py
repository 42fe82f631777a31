"""One run of the set: trained by `training/train.py` in a process of its own, its result kept beside it.

    <output>/runs/<name>/config.yaml    what it is trained with
    <output>/runs/<name>/run/           an ordinary run: its checkpoints are what a killed run goes on from
    <output>/runs/<name>/log.txt        what it said
    <output>/runs/<name>/fingerprint.json    of all that decides the result
    <output>/runs/<name>/result.json    the result, and how it was measured; it is there when the run is finished

A process of its own can run out of memory or crash without ending the others. A result is used again when the configuration, the plan, the clips
of the held-out sets and the run that it begins with are the same. Price: some seconds to start each.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from schemas.config import build_config, read_yaml
from schemas.errors import ReelyardError, UsageError
from schemas.files import write_bytes, write_json
from schemas.plan import read_plan_meta
from training.ablations.data import Data, samples_hash
from training.ablations.results import RunResult, read_run
from training.config import TrainConfig

__all__ = ["RunFailedError", "RunRequest", "StoppedError", "finish_run", "noting_sigterm"]

_FINGERPRINT = "fingerprint.json"
_TRAIN = Path(__file__).resolve().parents[1] / "train.py"
_SHOWN_CHARACTERS = 300
_FRAME = " \t│╭╮╰╯─"
"""Drawn around mistakes in options."""


class RunFailedError(ReelyardError):
    """A run of the set ended with an error; the others go on."""


class StoppedError(ReelyardError):
    """A SIGTERM came: the run at hand was saved, and the set ends."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What to train."""

    name: str
    folder: Path
    """`<output>/runs/<name>`."""
    settings: dict[str, Any]
    data: Data
    init_from: Path | None
    validation: tuple[Path, ...]
    last_steps: int
    text_tokens: int

    @property
    def run(self) -> Path:
        """The run's own folder."""
        return self.folder / "run"


def finish_run(request: RunRequest) -> tuple[RunResult, bool]:
    """Train, unless it was done before; the result, and whether it was.

    Raises:
        UsageError: when the folder holds a run of other settings.
        RunFailedError: with the last thing that the run said.
        StoppedError: after a SIGTERM.
    """
    config = build_config(TrainConfig, request.settings, source=request.name)
    fingerprint = _fingerprint(request)
    kept = request.folder / "result.json"
    begun = request.folder / _FINGERPRINT
    if begun.is_file() and read_yaml(begun)["fingerprint"] != fingerprint:
        raise UsageError(
            f"{request.folder} holds a run of another configuration, plan, held-out set or first run; give another --output, or remove that folder"
        )
    measured = {"last_steps": request.last_steps, "text_tokens": request.text_tokens}
    was_done = kept.is_file()
    if was_done and (found := read_yaml(kept)).get("measured") == measured:
        return RunResult.from_json(found["result"]), True
    if not was_done:
        _start(request, fingerprint)
    result = read_run(request.run, config, last_steps=request.last_steps, text_tokens=request.text_tokens)
    write_json(kept, {"measured": measured, "result": result.to_json()})
    return result, was_done


def _start(request: RunRequest, fingerprint: str) -> None:
    """Write down what is trained, and train."""
    write_json(request.folder / _FINGERPRINT, {"fingerprint": fingerprint})
    write_bytes(request.folder / "config.yaml", yaml.safe_dump(request.settings, sort_keys=False).encode())
    _train(request)


def _train(request: RunRequest) -> None:
    arguments = ["--config", request.folder / "config.yaml", "--plan", request.data.plan, "--output", request.run]
    arguments += [part for path in request.data.samples for part in ("--samples", path)]
    arguments += [part for path in request.validation for part in ("--validation", path)]
    arguments += [] if request.init_from is None else ["--init-from", request.init_from]
    log = request.folder / "log.txt"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, _TRAIN, *map(str, arguments)], stdout=stream, stderr=subprocess.STDOUT
        )
        with noting_sigterm(process) as stopped:
            code = process.wait()
    if stopped:
        raise StoppedError(f"stopped by SIGTERM in {request.name}")
    if code:
        raise RunFailedError(f"exit code {code}: {_last_words(log)}")


@contextmanager
def noting_sigterm(process: subprocess.Popen[bytes] | None = None) -> Iterator[list[int]]:
    """A list that a SIGTERM appends to, instead of ending this process. A run is told too, finishes its step and saves; whatever else ends this
    process kills it."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        if process is not None:
            process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, previous)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


def _fingerprint(request: RunRequest) -> str:
    """Of all that decides the result; that of the run it begins with is in it, so a change goes through to those that follow."""
    before = None if request.init_from is None else read_yaml(request.init_from.parent / _FINGERPRINT)["fingerprint"]
    facts = {
        "settings": request.settings,
        "plan": read_plan_meta(request.data.plan).plan_hash,
        "init_from": before,
        "validation": [samples_hash(path) for path in request.validation],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _last_words(log: Path) -> str:
    """The error line of the log, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [words for line in text.splitlines() if (words := line.strip(_FRAME)) and not words.startswith("Try ")]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said = errors[-1] if errors else (lines[-1] if lines else "it said nothing")
    return said[:_SHOWN_CHARACTERS]
