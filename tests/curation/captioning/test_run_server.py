"""A whole run whose captions come from a server: labels decide, a clip without a caption is an outcome."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encoders.registry import fetch
from schemas.ids import clip_id
from schemas.tables import TABLES, read_table

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(400)


def _run(folder: Path, server: Any, *more: str) -> str:
    values = {"output": folder / "out", "sources": json.dumps([str(folder / "in")]), "caption.captioner": "server"}
    values |= {"caption.server.base_url": server.url, "caption.server.model": server.model}
    values |= {"caption.server.attempts": 1, "caption.server.timeout_s": 15, "ray.caption.workers": 1}
    overrides = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    config = ROOT / "configs" / "curate_demo.yaml"
    command = [sys.executable, str(ROOT / "curation" / "run.py"), "--config", str(config), *overrides, *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _table(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(folder / "out" / "tables" / f"{name}.parquet", TABLES[name]).to_pylist()
    return rows


def test_labels_decide_and_lost_clips_have_a_reason(server: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    clips = {}
    for name in ("chelsea", "coffee", "china"):
        path = tmp_path / "in" / fetch(f"media.{name}").name
        shutil.copyfile(fetch(f"media.{name}"), path)
        clips[name] = clip_id(hashlib.sha256(path.read_bytes()).hexdigest(), 0, 0)
    server.labels = lambda clip: {"watermark": clip == clips["china"]}
    server.behave = lambda clip, asked: "never" if clip == clips["coffee"] else "ok"
    said = _run(tmp_path, server)
    assert "caption: 1 clips have no caption" in said

    labels = {row["clip_id"]: row for row in _table(tmp_path, "labels")}
    assert set(labels) == {clips["chelsea"], clips["china"]} and labels[clips["china"]]["watermark"]
    decided = {row["clip_id"]: row for row in _table(tmp_path, "decisions") if row["admission"] == "144p"}
    assert decided[clips["china"]]["decision"] == "label_watermark"
    assert decided[clips["chelsea"]]["decision"] == "keep"
    assert _table(tmp_path, "outcomes") == [
        {
            "clip_id": clips["coffee"],
            "phase": "caption",
            "set": "64p",
            "reason": "caption server: 1 tries, the last: no answer within 15 s",
        }
    ]
    funnel = json.loads((tmp_path / "out" / "report" / "funnel.json").read_text())
    assert all(identity["holds"] for identity in funnel["identities"])
    assert (funnel["sets"]["64p"]["kept"], funnel["sets"]["64p"]["packed"]) == (2, 1)
