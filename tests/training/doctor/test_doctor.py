"""The doctor: no false alarm on a good run, each wrong thing found with what to do, no failing check hides another, nothing is changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.tables import SAMPLES, read_table
from training.cli import main
from training.doctor import machine_checks
from training.doctor.estimates import checkpoint_bytes, estimate_memory, gigabytes
from training.doctor.findings import Finding, ok, run_checks
from training.doctor.request_checks import Patient
from training.run_setup import RunRequest

Arguments = Callable[..., list[str]]


def doctor(arguments: list[str], folder: Path, *more: object) -> tuple[int, dict[str, list[Finding]]]:
    """The exit code and the findings by check."""
    path = folder / "doctor.json"
    code = main(["doctor", *arguments, "--json", str(path), *map(str, more)])
    by_check: dict[str, list[Finding]] = {}
    facts = json.loads(path.read_text())
    assert facts["ok"] == (code == 0)
    for one in facts["findings"]:
        by_check.setdefault(one["check"], []).append(Finding(**one))
    return code, by_check


def replaced(arguments: list[str], flag: str, value: object) -> list[str]:
    changed = list(arguments)
    changed[changed.index(flag) + 1] = str(value)
    return changed


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_good_run_has_no_alarm_and_the_table_says_what_was_found(
    run_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")  # so that the table breaks no line
    code, found = doctor(run_arguments(tmp_path / "run"), tmp_path, "--processes", 2, "--deep")
    assert code == 0
    statuses = {(check, one.status) for check, some in found.items() for one in some if one.status != "ok"}
    assert statuses <= {("plan", "warn"), ("threads", "warn"), ("start", "ok")}, found
    assert [one.text for one in found["plan"]][1] == "no certificate: the plan was not verified"
    assert not (tmp_path / "run").exists(), "looking makes no folder"
    said = capsys.readouterr()
    assert "reelyard-plan verify" in said.out and "crc32 of every member of 40 samples fits" in said.out
    assert "the run can start" in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"doctor.json"}


def test_an_existing_run_is_not_changed_and_its_checkpoint_is_judged(
    two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    before = digests(two_rank_run)
    code, found = doctor(run_arguments(two_rank_run, steps=10), tmp_path, "--processes", 2)
    assert code == 0 and "continues from" in found["start"][0].text
    code, found = doctor(run_arguments(two_rank_run, "--set", "optimizer.lr=0.5"), tmp_path, "--processes", 1)
    assert code == 1
    assert "optimizer.lr" in found["start"][0].text and "--allow-change" in found["start"][0].todo
    assert "is of 2 processes, this is 1" in found["start"][1].text
    assert digests(two_rank_run) == before


def test_a_failing_check_hides_no_other(run_arguments: Arguments, tmp_path: Path, tiny_set: Path) -> None:
    """Wrong configuration, too many processes, a set with a cut and a vanished shard: all are said."""
    folder = Path(shutil.copytree(tiny_set, tmp_path / "tiny"))
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1024])
    arguments = replaced(run_arguments(tmp_path / "run", "--set", "model.text_width=384"), "--samples", folder)
    code, found = doctor(arguments, tmp_path, "--processes", 3)
    assert code == 1
    assert "world size 3 cannot run a plan of 2 lanes" in found["processes"][0].text
    assert "shard-000001.tar is" in found["sets"][0].text and "copy the set again" in found["sets"][0].todo
    assert "model.text_width is 384" in found["fit"][0].text and found["fit"][0].todo == "set model.text_width=16"
    assert found["memory"][0].status == "skipped" and found["output"][0].status == "ok"
    code, found = doctor(replaced(arguments, "--config", tmp_path / "none.yaml"), tmp_path)
    assert code == 1 and found["config"][0].status == "fail" and found["fit"][0].status == "skipped"
    assert found["sets"][0].status == "fail" and found["processes"][0].status == "ok"
    assert found["device"][0].text == "needs the config, which failed above"


def test_damage_is_found_by_deep_alone(run_arguments: Arguments, tmp_path: Path, tiny_set: Path) -> None:
    folder = Path(shutil.copytree(tiny_set, tmp_path / "tiny"))
    row = read_table(folder / "samples.parquet", SAMPLES).to_pylist()[3]
    with (folder / f"shard-{row['shard_index']:06d}.tar").open("r+b") as stream:
        stream.seek(row["members"][0]["offset"] + 200)
        stream.write(b"broken")
    arguments = replaced(run_arguments(tmp_path / "run"), "--samples", folder)
    assert doctor(arguments, tmp_path)[0] == 0
    code, found = doctor(arguments, tmp_path, "--deep")
    assert code == 1 and f"1 members are damaged: {row['clip_id']}.latent.npy" in found["members"][0].text


@pytest.mark.parametrize(
    ("certificate", "status", "words"),
    [
        ({"plan_hash": "", "rules_not_checked": {}}, "fail", "the certificate is of another plan"),
        ({"rules_not_checked": {}}, "fail", "cannot be read as a certificate"),
        (None, "ok", "verified: every rule holds"),
        ({"rules_not_checked": {"R3": "no samples"}}, "warn", "verified, but for R3"),
    ],
)
def test_certificates(
    certificate: dict[str, Any] | None,
    status: str,
    words: str,
    run_arguments: Arguments,
    tiny_plan: Any,
    tmp_path: Path,
) -> None:
    plan = Path(shutil.copytree(tiny_plan.folder, tmp_path / "plan"))
    own = json.loads((plan / "plan.json").read_text())["plan_hash"]
    written = {"plan_hash": own, "rules_not_checked": {}} if certificate is None else certificate
    if status == "warn":
        written = {"plan_hash": own, **written}
    (plan / "certificate.json").write_text(json.dumps(written))
    _, found = doctor(run_arguments(tmp_path / "run", plan=plan), tmp_path)
    assert any(one.status == status and words in one.text for one in found["plan"]), found["plan"]


def test_memory_disk_and_files_that_are_not_there(
    run_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine_checks, "available_memory", lambda: 100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    monkeypatch.setattr(machine_checks.resource, "getrlimit", lambda _: (64, 64))
    code, found = doctor(run_arguments(tmp_path / "run"), tmp_path)
    assert code == 1
    assert found["memory"][0].status == found["disk"][0].status == found["open files"][0].status == "fail"
    assert "of 100.0 MB that are free" in found["memory"][0].text
    assert "1.0 MB free" in found["disk"][0].text and "lower checkpoint.keep" in found["disk"][0].todo
    assert found["open files"][0].todo.startswith("ulimit -n ")


def test_an_output_that_cannot_be_written(run_arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, found = doctor(run_arguments(tmp_path / "file" / "run"), tmp_path)
    assert code == 1 and found["output"][0].status == "fail" and "is a file" in found["output"][0].text


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no")

    first, second = run_checks([("first", broken), ("second", lambda: [ok("fine")])])
    assert first.status == "fail" and "the check itself broke: RuntimeError: no" in first.text
    assert second == Finding(check="second", status="ok", text="fine")


def test_the_estimate_of_a_checkpoint_is_the_size_of_one(
    two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    arguments = run_arguments(tmp_path / "run")
    flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
    request = RunRequest(
        config=Path(flags["--config"]),
        plan=Path(flags["--plan"]),
        samples=(Path(flags["--samples"]),),
        output=tmp_path / "run",
    )
    patient = Patient(request, 2)
    written = sum(path.stat().st_size for path in (two_rank_run / "checkpoints/step-00000010").glob("*.safetensors"))
    assert checkpoint_bytes(patient.network, patient.config) == pytest.approx(written, rel=0.2)
    one, two = (
        estimate_memory(patient.network, patient.config, patient.meta, request.plan, patient.sets, size)
        for size in (1, 2)
    )
    assert one.state > two.state and one.loader > two.loader
    assert gigabytes(1_500_000_000) == "1.50 GB"


def test_starting_weights_are_looked_into(run_arguments: Arguments, tmp_path: Path) -> None:
    arguments = run_arguments(tmp_path / "run")
    code, found = doctor(arguments, tmp_path, "--processes", 2, "--init-from", tmp_path / "nowhere")
    assert code == 1
    assert [one.status for one in found["start"]] == ["fail"] and "nowhere" in found["start"][0].text


def test_a_validation_set_without_its_section_is_found(run_arguments: Arguments, tmp_path: Path) -> None:
    code, found = doctor(run_arguments(tmp_path / "run"), tmp_path, "--processes", 2, "--validation", tmp_path / "set")
    assert code == 1
    assert any("no section `validation`" in one.text for one in found["models"])
