"""A run that is killed at any moment and started again ends with the same bits, having seen each clip of the plan once.

Twelve steps in real processes, REPA and TREAD on, checkpoints written in the background. A kill is a SIGKILL at the n-th file operation of a kind;
after each, every checkpoint that can be found is whole.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.ids import content_hash
from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint, read_record
from training.clips_digest import clips_digest
from training.metrics import read_lines

Arguments = Callable[..., list[str]]
Drive = Callable[..., list[dict[str, Any]]]

STEPS = 12
KEEPING = {"every_steps": 2, "keep": 2, "keep_every_steps": 8}
MOMENTS = {
    "an empty folder": ("os.mkdir", r"\.tmp-step-"),
    "a file not flushed": ("open", r"\.tmp-step-.*\.safetensors"),
    "the record": ("open", r"\.tmp-step-.*record\.json"),
    "before the rename": ("os.rename", r"\.tmp-step-"),
    "after the rename": ("open", r"/checkpoints "),
    "an old one renamed": ("os.rename", r"\.tmp-old-"),
    "an old one removed": ("shutil.rmtree", r"\.tmp-old-"),
    "an old one half removed": ("os.remove", r"record\.json|safetensors"),
    "a step": ("open", r"metrics\.jsonl"),
}
"""Audit event and what its arguments match."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path, make_plan: Callable[..., Any]) -> Any:
    """Twelve steps: some clips come back, so an epoch ends on the way."""
    made = make_plan(tmp_path_factory.mktemp("plans") / "twelve", [tiny_set], micro=1, steps=STEPS)
    used = [clip for use in made.uses for clip in use["clip_ids"]]
    assert len(used) > len(set(used))
    return made


@pytest.fixture(scope="module")
def arguments(plan: Any, run_arguments: Arguments, small_config: Callable[..., Any]) -> Callable[..., list[str]]:
    """Of the run into a folder."""
    fixed = {
        "model": {**small_config()["model"], "single_blocks": 2},
        "tread": {"start_block": 1, "end_block": 1, "drop_ratio": 0.5},
        "checkpoint": KEEPING,
    }

    def make(output: Path, *extra: object, **changes: Any) -> list[str]:
        return run_arguments(output, *extra, plan=plan.folder, **{**fixed, **changes})

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, arguments: Arguments, drive: Drive) -> dict[int, Path]:
    """Twelve steps without interruption, by the number of processes."""
    runs = {count: tmp_path_factory.mktemp("whole") / f"on{count}" for count in (1, 2)}
    for result in drive(*({"arguments": arguments(run), "processes": count} for count, run in runs.items())):
        assert set(result["codes"]) == {0}, result["said"]
    return runs


def steps_of(run: Path) -> list[tuple[int, str, str]]:
    """Step, loss to the last bit and digest of the clips, of every line."""
    return [(line["step"], line["loss_hex"], line["clips_digest"]) for line in read_lines(run / "metrics.jsonl")]


def tensors(checkpoint: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every part of every tensor, by (file, name)."""
    files = sorted(checkpoint.glob("*.safetensors"))
    return {(path.name, name): value for path in files for name, value in load_file(path).items()}


def assert_whole(run: Path) -> None:
    """Every checkpoint that is found has all its files, as they were written."""
    for step in checkpoint_steps(run):
        folder = find_checkpoint(run, step)
        for name, digest in read_record(folder).files.items():
            with (folder / name).open("rb") as stream:
                assert content_hash(stream) == digest, folder / name


def assert_same(run: Path, other: Path) -> None:
    assert steps_of(run) == steps_of(other)
    left, right = tensors(find_checkpoint(run, STEPS)), tensors(find_checkpoint(other, STEPS))
    assert left.keys() == right.keys()
    assert [name for name, value in left.items() if not torch.equal(value, right[name])] == []
    assert checkpoint_steps(run) == [8, 10, 12]
    leftovers = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".tmp-")]
    assert leftovers == [], "left behind at the end of a run"


@pytest.mark.parametrize("processes", [1, 2])
def test_every_step_has_the_clips_of_the_plan(whole: dict[int, Path], plan: Any, processes: int) -> None:
    planned = [[clip for use in plan.uses if use["step"] == step for clip in use["clip_ids"]] for step in range(STEPS)]
    assert [line[2] for line in steps_of(whole[processes])] == [clips_digest(clips) for clips in planned]
    assert_whole(whole[processes])
    record = read_record(find_checkpoint(whole[processes], STEPS))
    assert record.clips_digest == clips_digest(planned[-1])
    assert record.plan == str(plan.folder.resolve()) and record.environment["mesh"] == {"shard": processes}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("parts", [(5, 12), (3, 7, 12)])
def test_twelve_steps_in_two_or_three_parts_are_the_same_bits(
    whole: dict[int, Path], tmp_path: Path, arguments: Arguments, drive: Drive, processes: int, parts: tuple[int, ...]
) -> None:
    run = tmp_path / "run"
    results = drive(*({"arguments": arguments(run, steps=steps), "processes": processes} for steps in parts))
    assert all(set(result["codes"]) == {0} for result in results), results
    assert "steps: was " in results[-1]["said"][0] and "not exact" not in results[-1]["said"][0]
    assert_same(run, whole[processes])


def kill_at(moment: str, seed: int, processes: int) -> dict[str, Any]:
    """A seeded kill: which rank (folders are rank 0's), at which of such events, and how much later."""
    draw, (event, pattern) = random.Random(seed), MOMENTS[moment]
    rank = draw.randrange(processes) if moment == "a file not flushed" else 0
    if moment == "a step":  # some time into the step after the first or second line of this process
        lines, delay_ms = draw.randint(1, 2), draw.randint(0, 20)
        return {"rank": 0, "event": event, "pattern": pattern, "count": 1, "lines": lines, "delay_ms": delay_ms}
    count, delay_ms = draw.randint(1, 2), draw.choice([0, 0, 3, 30])
    return {"rank": rank, "event": event, "pattern": pattern, "count": count, "delay_ms": delay_ms}


def run_with_kills(
    moments: list[str], seed: int, run: Path, processes: int, arguments: Arguments, drive: Drive
) -> list[dict[str, Any]]:
    """One attempt with each kill, then one that may end; whatever is found after a kill is whole."""
    command = {"arguments": arguments(run), "processes": processes}
    results = []
    for number, moment in enumerate(moments):
        results += drive({**command, "kill": kill_at(moment, seed + number, processes)})
        assert_whole(run)
    return results + drive(command)


def killed(results: list[dict[str, Any]]) -> int:
    """How many attempts ended by a kill; the others must have ended well. A rank that saw the other die first may have ended by itself."""
    for result in results:
        assert -9 in result["codes"] or set(result["codes"]) == {0}, result["said"]
    return sum(-9 in result["codes"] for result in results)


@pytest.mark.parametrize(
    ("processes", "moments"),
    [
        (1, ["a file not flushed", "before the rename", "a step"]),
        (1, ["the record", "an old one half removed", "after the rename"]),
        (2, ["an empty folder", "a file not flushed", "an old one renamed"]),
    ],
)
def test_kills_in_a_save_a_rename_a_removal_and_a_step_change_no_bit(
    whole: dict[int, Path], tmp_path: Path, arguments: Arguments, drive: Drive, processes: int, moments: list[str]
) -> None:
    results = run_with_kills(moments, 0, tmp_path / "run", processes, arguments, drive)
    assert killed(results) == 3 and results[-1]["codes"] == [0] * processes
    assert_same(tmp_path / "run", whole[processes])


def test_a_kill_while_later_checkpoints_are_set_aside_or_after_leaves_a_run_that_goes_on(
    whole: dict[int, Path], tmp_path: Path, arguments: Arguments, drive: Drive
) -> None:
    run = Path(shutil.copytree(whole[1], tmp_path / "run"))
    again = {"arguments": arguments(run, "--checkpoint", 8), "processes": 1}
    aside = {"rank": 0, "event": "os.rename", "pattern": r"abandoned-", "count": 2}
    assert drive({**again, "kill": aside})[0]["codes"] == [-9]
    assert checkpoint_steps(run) == [8, 10], "the newest goes first"
    assert_whole(run)
    assert [line[0] for line in steps_of(run)] == list(range(STEPS)), (
        "lines are dropped when no checkpoint is ahead of them"
    )
    assert [result["codes"] for result in drive(again)] == [[0]]
    assert steps_of(run) == steps_of(whole[1])
    left, right = tensors(find_checkpoint(run, STEPS)), tensors(find_checkpoint(whole[1], STEPS))
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_twenty_seeded_kills_change_no_bit(
    whole: dict[int, Path], tmp_path: Path, arguments: Arguments, drive: Drive, seed: int
) -> None:
    """A kill of a drawn kind, on one process or two, then the end."""
    draw = random.Random(1000 + seed)
    moments, processes = [list(MOMENTS)[seed % len(MOMENTS)], draw.choice(list(MOMENTS))], draw.choice([1, 2])
    results = run_with_kills(moments, 100 * seed, tmp_path / "run", processes, arguments, drive)
    assert killed(results) >= 1
    assert_same(tmp_path / "run", whole[processes])
