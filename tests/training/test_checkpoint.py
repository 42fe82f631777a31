"""Checkpoints: whole or not there, no pickle, damage noticed, readable at any world size, the newest kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from schemas.errors import DataError, UsageError
from training.checkpoints.checkpoint import (
    CheckpointRecord,
    check_files,
    checkpoint_steps,
    find_checkpoint,
    load_tensors,
    read_record,
)
from training.checkpoints.folders import remove_leftovers, remove_old_checkpoints
from training.checkpoints.writer import save_checkpoint
from training.parallel import open_world

WORKER = Path(__file__).with_name("reshard_worker.py")


def record(step: int) -> CheckpointRecord:
    return CheckpointRecord(next_step=step, plan_hash="p", config={"seed": 1}, environment={"world_size": 1})


def save(run: Path, step: int, tensors: dict[str, torch.Tensor]) -> Path:
    with open_world(torch.device("cpu")) as world:
        return save_checkpoint(run, tensors, record(step), world)


def load(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> CheckpointRecord:
    with open_world(torch.device("cpu")) as world:
        return load_tensors(checkpoint, tensors, world=world)


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"model/w": torch.randn(4, 3, generator=generator), "exp_avg/w": torch.randn(5, generator=generator)}


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    folder = save(tmp_path, 12, values)
    assert folder.name == "step-00000012"
    empty = {name: torch.full_like(value, float("nan")) for name, value in values.items()}
    found = load(folder, empty)
    assert all(torch.equal(empty[name], value) for name, value in values.items())
    assert found.next_step == 12 and found.config == {"seed": 1}
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}, "nothing pickled"
    assert set(found.files) == {path.name for path in folder.glob("*.safetensors")}


def test_a_flipped_bit_a_missing_file_and_a_missing_record_are_named(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    folder = save(tmp_path, 1, values)
    file = next(folder.glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{file.name} has sha256"):
        load(folder, values)
    file.unlink()
    with pytest.raises(DataError, match=f"{file.name} is missing"):
        load(folder, values)
    (folder / "record.json").unlink()
    with pytest.raises(DataError, match=r"record\.json is missing"):
        read_record(folder)


def test_another_network_or_format_is_refused(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    folder = save(tmp_path, 1, values)
    with pytest.raises(DataError, match=r"tensor model/new is missing, expected shape \(2,\)"):
        load(folder, {**values, "model/new": torch.zeros(2)})
    with pytest.raises(DataError, match=r"tensor model/w is \(4, 3\), expected shape \(4, 4\)"):
        load(folder, {"model/w": torch.zeros(4, 4)})
    values_of_record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**values_of_record, "format_version": 2}))
    with pytest.raises(DataError, match="format_version 2, expected 1"):
        read_record(folder)


def test_unfinished_checkpoints_are_never_found_and_make_way(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    folder = save(tmp_path, 4, values)
    unfinished = folder.with_name(".tmp-step-00000008")
    shutil.copytree(folder, unfinished)
    (unfinished / "leftover").write_text("of a killed run")
    assert checkpoint_steps(tmp_path) == [4]
    again = save(tmp_path, 8, values)
    assert checkpoint_steps(tmp_path) == [4, 8]
    assert not (again / "leftover").exists() and not unfinished.exists()
    save(tmp_path, 8, {name: value + 1 for name, value in values.items()})
    load(find_checkpoint(tmp_path, 8), values_back := {name: torch.zeros_like(v) for name, v in values.items()})
    assert torch.equal(values_back["model/w"], values["model/w"] + 1), "a step saved again replaces the old one"


def test_steps_that_are_kept_for_good_are_never_removed(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step, values)
    remove_old_checkpoints(tmp_path, keep=2, keep_every_steps=4)
    assert checkpoint_steps(tmp_path) == [4, 8, 10]


def test_what_a_kill_left_behind_is_removed_and_nothing_else(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    folder = save(tmp_path, 4, values)
    for name in (".tmp-step-00000008", ".tmp-old-step-00000002", "abandoned-step-00000012"):
        shutil.copytree(folder, folder.with_name(name))
    remove_leftovers(tmp_path)
    assert {path.name for path in folder.parent.iterdir()} == {"step-00000004", "abandoned-step-00000012"}


def test_only_the_newest_are_kept_and_missing_ones_are_named(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UsageError, match="holds no checkpoint"):
        find_checkpoint(tmp_path, None)
    for step in (2, 4, 100):
        save(tmp_path, step, values)
    remove_old_checkpoints(tmp_path, keep=2)
    assert checkpoint_steps(tmp_path) == [4, 100]
    assert find_checkpoint(tmp_path, None).name == "step-00000100"
    with pytest.raises(UsageError, match="has no checkpoint of step 2; it has 4, 100"):
        find_checkpoint(tmp_path, 2)


@pytest.fixture
def reshard(drive: Callable[..., list[dict[str, Any]]]) -> Callable[..., None]:
    """Run `reshard_worker.py` on so many ranks."""

    def run(processes: int, source: Path | str, target: Path | str, replicate: int = 1) -> None:
        arguments = [str(source), str(target), replicate]
        result = drive({"worker": str(WORKER), "arguments": arguments, "processes": processes})[0]
        assert result["codes"] == [0] * processes, result["said"]

    return run


def test_three_ranks_are_read_by_one_and_one_by_two_uneven_and_empty_parts_included(
    tmp_path: Path, reshard: Callable[..., None]
) -> None:
    reshard(3, "-", tmp_path / "three")
    reshard(1, tmp_path / "three", tmp_path / "one")
    reshard(2, tmp_path / "one", "-")
    assert len(list((tmp_path / "three").rglob("*.safetensors"))) == 3


def test_of_two_copies_of_the_network_one_is_written_and_read_by_any(
    tmp_path: Path, reshard: Callable[..., None]
) -> None:
    reshard(4, "-", tmp_path / "four", 2)
    reshard(1, tmp_path / "four", "-")
    rows = 0
    for path in (tmp_path / "four").rglob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            rows += stream.get_slice("model/rows").get_shape()[0] if "model/rows" in stream.keys() else 0  # noqa: SIM118
    assert rows == 4, "each number once"


def test_a_run_on_two_ranks_leaves_one_file_each_and_every_tensor_whole(two_rank_run: Path) -> None:
    assert checkpoint_steps(two_rank_run) == [4, 8, 10]
    folder = find_checkpoint(two_rank_run, None)
    rows: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (not a mapping)
                rows[name] = rows.get(name, 0) + stream.get_slice(name).get_shape()[0]
    weights = {name.removeprefix("model/"): count for name, count in rows.items() if name.startswith("model/")}
    for kind in ("exp_avg", "exp_avg_sq"):
        assert {name.removeprefix(f"{kind}/"): c for name, c in rows.items() if name.startswith(f"{kind}/")} == weights
    averaged = {name for name in rows if name.startswith("ema_0.99/")}
    assert averaged == {f"ema_0.99/{name}" for name in weights if name.startswith("dit.")}
    assert weights["dit.patch_embed.proj.weight"] == 32 and "projectors.random.third.weight" in weights
    facts = read_record(folder)
    assert facts.environment["world_size"] == 2 and facts.environment["threads"] == 1
    assert facts.next_step == 10


def test_the_run_of_two_ranks_continues_on_one(
    two_rank_run: Path, tmp_path: Path, run_arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    from training.cli import main
    from training.metrics import read_lines

    run = Path(shutil.copytree(two_rank_run, tmp_path / "run"))
    assert main(["run", *run_arguments(run, "--checkpoint", 8)]) == 0
    said = capsys.readouterr().err
    assert "world_size: was 2, is 1" in said and "not to the last bit" in said
    before: list[dict[str, Any]] = read_lines(two_rank_run / "metrics.jsonl")
    after = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in after] == list(range(10))
    assert [line["loss"] for line in after] == pytest.approx([line["loss"] for line in before], rel=1e-6)


def test_a_file_that_cannot_be_read_is_named(two_rank_run: Path, tmp_path: Path) -> None:

    folder = Path(shutil.copytree(find_checkpoint(two_rank_run, 10), tmp_path / "step-00000010"))
    record = read_record(folder)
    unreadable = folder / sorted(record.files)[0]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.MonkeyPatch.context() as patched, open_world(torch.device("cpu")) as world:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(DataError, match=rf"{unreadable.name} cannot be read \(Permission denied\)"):
            check_files(folder, record.files, world=world)
