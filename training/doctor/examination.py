"""All checks of `reelyard-train doctor` in order, their table and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from schemas.files import said_if_unwritten, write_json
from training.doctor import machine_checks as machine
from training.doctor.findings import Finding, run_checks
from training.doctor.request_checks import Patient

__all__ = ["examine", "show", "summary", "write_findings"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def examine(patient: Patient) -> list[Finding]:
    """Run every check."""
    return run_checks(
        [
            ("config", patient.check_config),
            ("plan", patient.check_plan),
            ("processes", patient.check_world),
            ("sets", patient.check_sets),
            ("members", patient.check_members),
            ("fit", patient.check_fit),
            ("start", patient.check_start),
            ("models", patient.check_models),
            ("device", lambda: machine.check_device(patient)),
            ("threads", lambda: machine.check_threads(patient)),
            ("memory", lambda: machine.check_memory(patient)),
            ("disk", lambda: machine.check_disk(patient)),
            ("output", lambda: machine.check_output(patient)),
            ("open files", lambda: machine.check_files(patient)),
        ]
    )


def show(findings: Sequence[Finding]) -> None:
    """The table, on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=False, expand=False, pad_edge=False, box=None)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for one in findings:
        table.add_row(one.check, Text(one.status, style=_COLOURS[one.status]), Text(one.text), Text(one.todo))
    Console(soft_wrap=False).print(table)


def summary(findings: Sequence[Finding]) -> str:
    """One line."""
    counts = {status: sum(one.status == status for one in findings) for status in _COLOURS}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return (
        f"the run would not start, or would end early ({words})" if counts["fail"] else f"the run can start ({words})"
    )


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """All findings as JSON."""
    found = {"ok": not any(one.status == "fail" for one in findings), "findings": [asdict(one) for one in findings]}
    with said_if_unwritten(path):
        write_json(path, found)
