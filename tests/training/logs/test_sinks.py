"""TensorBoard and W&B, with the real packages: every step once, whatever was abandoned; and no failure of theirs ends a run."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.checkpoints.checkpoint import checkpoint_steps
from training.cli import main
from training.logs.scalars import scalars
from training.logs.settings import LoggingConfig, WandbConfig, check_installed
from training.logs.sinks import Sample, Sinks
from training.logs.tensorboard_log import TensorBoard
from training.metrics import read_lines

Arguments = Callable[..., list[str]]
OFFLINE = {"wandb": {"project": "reel", "name": "a run", "mode": "offline"}}


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def curve(run: Path, tag: str) -> dict[int, float]:
    """Step to value; a step that is there twice fails."""
    found = events(run).Scalars(tag)
    assert len({event.step for event in found}) == len(found), f"{tag} has a step twice"
    return {event.step: event.value for event in found}


def test_every_number_of_a_line_is_a_curve(two_rank_run: Path) -> None:
    lines = read_lines(two_rank_run / "metrics.jsonl")
    tags = set(events(two_rank_run).Tags()["scalars"])
    assert tags == {name for line in lines for name in scalars(line)}
    assert {"loss", "idle_share", "loss_by_bucket/33x32x48", "micro_ms_by_bucket/33x32x48"} <= tags
    for tag in ("loss", "step_ms", "loss_by_bucket/33x32x48"):
        expected = {line["step"]: scalars(line)[tag] for line in lines if tag in scalars(line)}
        assert curve(two_rank_run, tag) == pytest.approx(expected)


def test_after_a_kill_and_a_change_no_abandoned_step_is_left(
    tmp_path: Path,
    run_arguments: Arguments,
    start_training: Callable[..., subprocess.Popen[str]],
    kill_tree: Callable[[subprocess.Popen[str]], None],
) -> None:
    run = tmp_path / "run"
    process = start_training(*run_arguments(run, logging=OFFLINE))
    deadline = time.monotonic() + 80
    while not (checkpoint_steps(run) and len(read_lines(run / "metrics.jsonl")) > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    kill_tree(process)
    process.communicate()
    first_id = (run / "wandb.json").read_text()
    changed = {"optimizer": {"lr": 5e-4, "warmup_steps": 3}, "logging": OFFLINE}
    assert main(["run", *run_arguments(run, "--checkpoint", 4, "--allow-change", "optimizer", **changed)]) == 0
    lines = read_lines(run / "metrics.jsonl")
    for tag in ("loss", "lr"):
        assert curve(run, tag) == pytest.approx({line["step"]: line[tag] for line in lines})
    assert (run / "wandb.json").read_text() == first_id
    *_, after = wandb_files(run)  # the killed one may have written nothing yet
    assert after["id"] in first_id and (after["project"], after["name"]) == ("reel", "a run")
    assert after["rewound_to"] == 3
    assert [step for step, _ in after["history"]] == list(range(4, 10))
    assert [loss for _, loss in after["history"]] == pytest.approx([line["loss"] for line in lines[4:]])


def wandb_files(run: Path) -> list[dict[str, Any]]:
    """What `wandb sync` would send of each offline folder, in the order in which they were written."""
    from wandb.proto import wandb_internal_pb2 as proto

    found = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.parent.name):
        facts: dict[str, Any] = {"history": []}
        for data in wandb_records(path.read_bytes()):
            record = proto.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                begun = record.run
                rewound = int(begun.branch_point.value) if begun.HasField("branch_point") else None
                facts |= {"id": begun.run_id, "project": begun.project, "name": begun.display_name}
                facts |= {"rewound_to": rewound}
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if "loss" in items:
                    facts["history"].append((int(items["_step"]), float(items["loss"])))
        found.append(facts)
    return found


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log after wandb's 7 bytes of header; the package has no reader of its own."""
    block, place, part = 32768, 7, b""
    while place < len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield part
            part = b""


def test_tools_that_are_turned_on_later_get_the_earlier_steps(tmp_path: Path, run_arguments: Arguments) -> None:
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run, steps=3, logging={"tensorboard": False})]) == 0
    assert not (run / "tensorboard").exists()
    assert main(["run", *run_arguments(run, steps=5, logging={"tensorboard": True, **OFFLINE})]) == 0
    lines = read_lines(run / "metrics.jsonl")
    assert curve(run, "loss") == pytest.approx({line["step"]: line["loss"] for line in lines})
    (sent,) = wandb_files(run)
    assert [step for step, _ in sent["history"]] == [0, 1, 2, 3, 4] and sent["rewound_to"] is None


class Broken:
    """A tool whose server is gone."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def numbers(self, step: int, values: Any) -> None:
        self._told.append(f"step {step}")
        raise ConnectionError("no route\nto host")

    def sample(self, step: int, sample: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None:
        self._told.append("closed")


def test_a_tool_that_fails_is_said_once_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    def never() -> Any:
        raise RuntimeError("not here")

    sinks = Sinks({"Curves": lambda: Broken(told), "Other": never})
    assert sinks
    for step in range(3):
        sinks.numbers(step, {"loss": 1.0})
    sinks.close()
    said = capsys.readouterr().err
    assert told == ["step 0"] and not sinks
    assert said.count("Curves gave up (ConnectionError: no route)") == 1 and said.count("warning") == 2


def test_contact_sheets_come_as_they_are(tmp_path: Path) -> None:
    sheet = tmp_path / "contact-sheet.png"
    Image.fromarray(np.full((6, 8, 3), 90, dtype=np.uint8)).save(sheet)
    board = TensorBoard(tmp_path, 0)
    board.sample(4, Sample(sheet=sheet, videos=()))
    board.close()
    (image,) = events(tmp_path).Images("samples")
    assert (image.step, image.width, image.height) == (4, 8, 6) and image.encoded_image_string == sheet.read_bytes()


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("wandb", "logging.wandb is on, but the package wandb is not installed; `pip install wandb`"),
        ("tensorboard", "or --set logging.tensorboard=false"),
    ],
)
def test_a_package_that_is_missing_is_named_before_anything_runs(
    package: str,
    message: str,
    tmp_path: Path,
    run_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import training.logs.settings as settings

    find = settings.find_spec
    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == package else find(name))
    assert main(["run", *run_arguments(tmp_path / "run", steps=2, logging=OFFLINE)]) == 2
    assert message in capsys.readouterr().err
    check_installed(LoggingConfig(tensorboard=package != "tensorboard"))
    assert WandbConfig(project="p").mode == "online"
