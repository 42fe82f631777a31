"""Saving in the background: one at a time, the same files, failures said on all ranks in words, signals and deaths of ranks survived."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.errors import ReelyardError
from training.checkpoints import run_saves
from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint, read_record
from training.checkpoints.parts import HostCopy, Part, plan_parts, tensors_of
from training.checkpoints.run_saves import RunSaves
from training.cli import main
from training.config import CheckpointConfig
from training.metrics import read_lines
from training.optimizing.ema import WeightAverages
from training.optimizing.optimizer import StepOptimizer
from training.parallel import open_world

Arguments = Callable[..., list[str]]
Drive = Callable[..., list[dict[str, Any]]]


class Config(SimpleNamespace):
    """As much of a TrainConfig as saving looks at."""

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"seed": 1}


@pytest.fixture
def saves(tmp_path: Path) -> Iterator[tuple[RunSaves, torch.Tensor]]:
    """Of a state with one tensor, on one rank."""
    weights = torch.arange(8.0)
    checkpoint = CheckpointConfig(every_steps=2, keep=2)
    prepared = SimpleNamespace(
        config=Config(checkpoint=checkpoint, precision="fp32"),
        output=tmp_path,
        resume_from=None,
        start_step=0,
        stop_step=10,
        meta=SimpleNamespace(plan_hash="p"),
        plan=tmp_path / "plan",
        sets=SimpleNamespace(folders=[tmp_path / "set"]),
        origin=None,
    )
    state = SimpleNamespace(tensors=lambda: {"model/w": weights})
    with open_world(torch.device("cpu")) as world:
        made = RunSaves(prepared, world, state)  # type: ignore[arg-type]
        yield made, weights
        made.close()


def test_training_goes_on_while_the_copy_is_written_and_the_next_save_waits(
    saves: tuple[RunSaves, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, weights = saves
    may_write, write = threading.Event(), run_saves.write_checkpoint

    def slow(*arguments: Any, **options: Any) -> Path:
        assert may_write.wait(20)
        return write(*arguments, **options)

    monkeypatch.setattr(run_saves, "write_checkpoint", slow)
    made.save(2)
    assert checkpoint_steps(tmp_path) == [] and not made.failed
    weights.add_(100)  # the step after
    second = threading.Thread(target=made.save, args=(4,))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "one save at most is under way"
    may_write.set()
    second.join(20)
    made.finish()
    assert checkpoint_steps(tmp_path) == [2, 4] and made.latest == find_checkpoint(tmp_path, 4)
    first = load_file(next(find_checkpoint(tmp_path, 2).glob("*.safetensors")))
    assert torch.equal(first["model/w"], torch.arange(8.0)), "as it was when it was saved"


def test_a_failure_in_the_background_is_raised_at_the_next_save_with_its_words(
    saves: tuple[RunSaves, torch.Tensor], tmp_path: Path
) -> None:
    made, _ = saves
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    made.save(2)
    while not made.failed:
        pass
    with pytest.raises(ReelyardError, match=r"step-00000002 could not be written: rank 0: .*Not a directory"):
        made.save(4)
    (tmp_path / "checkpoints").unlink()
    made.save(4)
    made.finish()
    assert checkpoint_steps(tmp_path) == [4], "said once; then saving works again"


def test_an_old_checkpoint_that_cannot_be_removed_is_said_and_the_new_one_counts(
    saves: tuple[RunSaves, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, _ = saves

    def stuck(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "step-00000001")

    monkeypatch.setattr(run_saves, "remove_old_checkpoints", stuck)
    made.save(2)
    made.finish()
    assert checkpoint_steps(tmp_path) == [2] and made.latest == find_checkpoint(tmp_path, 2)
    said = capsys.readouterr().err
    assert (
        "step-00000002 is complete, but older checkpoints could not all be removed ([Errno 13] Permission denied"
        in said
    )
    made.save(4)
    made.finish()
    assert checkpoint_steps(tmp_path) == [2, 4]


def test_a_defect_in_a_save_does_not_hide_the_error_that_ends_the_run(
    saves: tuple[RunSaves, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise AssertionError("a defect")

    monkeypatch.setattr(run_saves, "write_checkpoint", broken)
    made, _ = saves
    made.save(2)
    with pytest.raises(ReelyardError, match="why the run ends"), closing(made):
        raise ReelyardError("why the run ends")
    assert "rank 0 could not complete the last checkpoint: AssertionError: a defect" in capsys.readouterr().err


def test_a_defect_in_the_last_save_is_raised(
    saves: tuple[RunSaves, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise AssertionError("a defect")

    monkeypatch.setattr(run_saves, "write_checkpoint", broken)
    saves[0].save(2)
    with pytest.raises(AssertionError, match="a defect"):
        saves[0].close()


def test_the_copy_is_one_piece_of_memory_that_is_counted_and_used_again() -> None:
    tensors = {f"model/{n}": torch.randn(n, 33) for n in (1, 7, 0, 20)} | {"flags": torch.ones(5, dtype=torch.uint8)}
    with open_world(torch.device("cpu")) as world:
        parts = plan_parts(tensors, world)
    copy, live = HostCopy(parts, torch.device("cpu")), tensors_of(parts, tensors)
    held = sum(tensor.nbytes for tensor in tensors.values())
    assert held <= copy.num_bytes <= held + 64 * len(parts)
    first = copy.take(live)
    assert all(torch.equal(left, right) for left, right in zip(first, live, strict=True))
    before = [tensor.data_ptr() for tensor in first]
    assert [tensor.data_ptr() for tensor in copy.take(live)] == before
    assert len({tensor.untyped_storage().data_ptr() for tensor in first if len(tensor)}) == 1


def test_too_little_memory_is_said_before_the_first_step() -> None:
    huge = (Part(name="model/w", offsets=(0,), shape=(1 << 50,), dtype=torch.float32),)
    with pytest.raises(ReelyardError, match=r"GB of host memory .* set checkpoint\.asynchronous=false"):
        HostCopy(huge, torch.device("cpu"))


@pytest.fixture(scope="module")
def fast(run_arguments: Arguments, small_config: Callable[..., Any]) -> Callable[..., list[str]]:
    """Arguments of four short steps, a checkpoint after every second."""
    fixed = {
        "model": {**small_config()["model"], "single_blocks": 2},
        "tread": {"start_block": 1, "end_block": 1, "drop_ratio": 0.5},
        "ema_decays": [0.99, 0.5],
        "steps": 4,
    }

    def make(output: Path, *extra: object, **changes: Any) -> list[str]:
        return run_arguments(output, *extra, **{**fixed, "checkpoint": {"every_steps": 2}, **changes})

    return make


def test_both_ways_of_saving_write_the_same_tensors(tmp_path: Path, fast: Arguments, drive: Drive) -> None:
    for name, asynchronous in (("background", True), ("waiting", False)):
        checkpoint = {"every_steps": 2, "asynchronous": asynchronous}
        result = drive({"arguments": fast(tmp_path / name, checkpoint=checkpoint), "processes": 2})[0]
        assert result["codes"] == [0, 0], result["said"]
    for step in (2, 4):
        left, right = (find_checkpoint(tmp_path / name, step) for name in ("background", "waiting"))
        assert read_record(left).files.keys() == read_record(right).files.keys() and len(read_record(left).files) == 2
        for name in read_record(left).files:
            mine, other = load_file(left / name), load_file(right / name)
            assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_full_disk_on_one_rank_ends_all_in_words_and_the_run_goes_on_from_the_checkpoint_before(
    tmp_path: Path, fast: Arguments, drive: Drive
) -> None:
    run = tmp_path / "run"
    whole, first, full, again = drive(
        {"arguments": fast(tmp_path / "whole"), "processes": 2},
        {"arguments": fast(run, steps=2), "processes": 2},
        {"arguments": fast(run, checkpoint={"every_steps": 1}), "processes": 2, "file_bytes": {"1": 100_000}},
        {"arguments": fast(run), "processes": 2},
    )
    assert whole["codes"] == first["codes"] == again["codes"] == [0, 0]
    assert full["codes"] == [1, 1] and full["seconds"] < 40, full
    assert "step-00000003 could not be written: rank 1: " in full["said"][0] and "File too large" in full["said"][0]
    assert "Traceback" not in full["said"][0] + full["said"][1]
    assert "error" not in full["said"][1], "rank 0 says it for all"
    assert checkpoint_steps(run) == [2, 4]
    assert [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")] == [
        line["loss_hex"] for line in read_lines(tmp_path / "whole" / "metrics.jsonl")
    ]


def test_when_a_rank_dies_in_a_save_the_other_ends_by_itself(tmp_path: Path, fast: Arguments, drive: Drive) -> None:
    kill = {"rank": 1, "event": "open", "pattern": r"\.tmp-step-.*\.safetensors", "count": 1}
    result = drive({"arguments": fast(tmp_path / "run"), "processes": 2, "kill": kill, "alone": True})[0]
    assert result["codes"][1] == -9 and result["codes"][0] not in (0, -9) and result["seconds"] < 40, result
    assert checkpoint_steps(tmp_path / "run") == []
    assert drive({"arguments": fast(tmp_path / "run"), "processes": 2})[0]["codes"] == [0, 0]


def test_a_sigterm_in_a_save_finishes_it_and_the_step(tmp_path: Path, fast: Arguments, drive: Drive) -> None:
    stop = {"rank": 0, "event": "open", "pattern": r"\.tmp-step-.*\.safetensors", "count": 1}
    arguments = fast(tmp_path / "run", steps=9)
    result = drive({"arguments": arguments, "processes": 2, "terminate": stop})[0]
    assert result["codes"] == [0, 0], result["said"]
    assert "resumable, run the same command again" in result["said"][0]
    done = len(read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert 2 <= done < 9 and {2, done} <= set(checkpoint_steps(tmp_path / "run"))


def test_saved_on_two_ranks_and_continued_on_four_and_on_one_gives_the_same_line(
    tmp_path: Path, tiny_set: Path, make_plan: Callable[..., Any], fast: Arguments, drive: Drive
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], lanes=4, micro=1, steps=12, batch={1: 1, 33: 1, 65: 1}).folder

    def attempt(name: str, processes: int, steps: int) -> dict[str, Any]:
        return {"arguments": fast(tmp_path / name, plan=plan, steps=steps), "processes": processes}

    ends = drive(*(attempt(name, 2, 2) for name in ("two", "four", "one")))
    ends += drive(attempt("two", 2, 12), attempt("four", 4, 12), attempt("one", 1, 12))
    assert all(set(end["codes"]) == {0} for end in ends), ends
    assert "world_size: was 2, is 4" in ends[4]["said"][0] and "not to the last bit" in ends[4]["said"][0]
    expected = read_lines(tmp_path / "two" / "metrics.jsonl")
    for name in ("four", "one"):
        found = read_lines(tmp_path / name / "metrics.jsonl")
        assert [line["clips_digest"] for line in found] == [line["clips_digest"] for line in expected]
        assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], rel=1e-6)


@pytest.mark.parametrize("validates", [False, True])
def test_the_device_is_held_for_a_copy_before_anything_changes_the_state(
    tmp_path: Path, fast: Arguments, make_set: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, validates: bool
) -> None:
    """On a GPU the copy runs beside the next step: the update, and averages that are swapped in, must come behind it; nothing else need."""
    order: list[str] = []

    def noted(owner: Any, name: str, word: str) -> None:
        method = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            order.append(word)
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    noted(HostCopy, "take", "copy")
    noted(HostCopy, "hold_device", "hold")
    noted(StepOptimizer, "update", "update")
    noted(WeightAverages, "update", "average")
    noted(WeightAverages, "_swap", "swap")
    changes: dict[str, Any] = {"steps": 3, "checkpoint": {"every_steps": 2, "keep": 2}}
    extra: list[object] = []
    if validates:
        extra = ["--validation", make_set(tmp_path / "held-out", first=1000)]
        changes["validation"] = {"every_steps": 2, "clips_per_bucket": 1, "weights": ["ema"]}
    assert main(["run", *fast(tmp_path / "run", *extra, **changes)]) == 0
    step, measured = ["hold", "update", "average"], ["hold", "swap", "swap"] if validates else []
    assert order == [*measured, *step, *step, "copy", *measured, *step, "copy", *measured]
