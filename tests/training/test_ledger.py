"""Replaced clips are written down whenever that can be done, and are on the disk before a checkpoint is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from training.ledger import Ledger
from training.loader import Substitution
from training.metrics import read_lines


def replaced(step: int, lane: int) -> Substitution:
    fields: dict[str, Any] = {name: 0 for name in Substitution.__dataclass_fields__}
    return Substitution(**{**fields, "step": step, "lane": lane})


def test_lines_that_found_no_place_are_written_with_the_next_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "ledger").touch()
    ledger.append([replaced(0, 3)])
    ledger.append([replaced(1, 3), replaced(1, 2)])
    assert capsys.readouterr().err.count("cannot be written") == 2, "once for each lane"
    (tmp_path / "ledger").unlink()
    ledger.flush()
    ledger.append([replaced(2, 3)])
    ledger.close()
    assert [line["step"] for line in read_lines(tmp_path / "ledger" / "lane-0003.jsonl")] == [0, 1, 2]
    assert [line["step"] for line in read_lines(tmp_path / "ledger" / "lane-0002.jsonl")] == [1]
    assert capsys.readouterr().err == ""


def test_lines_that_never_found_a_place_are_counted_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger").touch()
    ledger = Ledger(tmp_path)
    ledger.append([replaced(0, 3), replaced(1, 2)])
    ledger.close()
    assert "2 replaced clips are not in" in capsys.readouterr().err


def test_a_save_flushes_what_is_new_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), fsync(descriptor))[1])
    ledger = Ledger(tmp_path)
    ledger.append([replaced(0, 3), replaced(0, 2), replaced(1, 2)])
    assert flushed == []
    ledger.flush()
    assert len(flushed) == len(set(flushed)) == 2
    ledger.flush()
    assert len(flushed) == 2
    ledger.append([replaced(4, 3)])
    ledger.close()
    assert len(flushed) == 3
