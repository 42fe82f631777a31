"""The program of docs/nemo-stages.md, as it stands there, on an analysed video: NeMo Curator's stages in a list of ours."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import av
import pyarrow.parquet as pq
import pytest

from curation.nemo_stages import clip_bytes
from encoders.registry import fetch
from schemas.tables import CLIPS, read_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "nemo-stages.md"


def _block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_a_span_is_copied_from_its_keyframe(tmp_path: Path) -> None:
    path = fetch("media.bigbuckbunny")
    with av.open(str(path)) as whole:
        every = sum(1 for _ in whole.demux(video=0))
    with av.open(io.BytesIO(clip_bytes(str(path), 1_000_000, 2_000_000))) as copy:
        stream = copy.streams.video[0]
        frames = [frame.pts * stream.time_base for frame in copy.decode(video=0)]
    assert 24 <= len(frames) < every and stream.codec_context.name == "h264"


@pytest.mark.timeout(600)
def test_the_program_of_the_page_runs(tmp_path: Path, media_cases: ModuleType) -> None:
    (tmp_path / "in").mkdir()
    media_cases.trimmed(fetch("media.bigbuckbunny"), tmp_path / "in" / "bunny.mp4", seconds=3, size=(360, 640))
    (tmp_path / "nemo_motion.py").write_text(_block("python"))
    config = tmp_path / "config.yaml"
    sources = f"sources: {json.dumps([str(tmp_path / 'in')])}\noutput: {tmp_path / 'out'}\n"
    config.write_text(sources + _block("yaml").replace("ray:\n", "ray:\n  num_cpus: 2\n  start_seconds: 300\n"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    analyze = [str(ROOT / "curation" / "run.py"), "--config", str(config), "--phase", "analyze"]
    for command in (analyze, [str(tmp_path / "nemo_motion.py"), str(config)]):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=500, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
    clips = read_table(tmp_path / "out" / "tables" / "clips.parquet", CLIPS)["clip_id"].to_pylist()
    rows = pq.read_table(done.stdout.strip().splitlines()[-1]).to_pylist()
    assert clips and [row["clip_id"] for row in rows] == sorted(clips)
    assert all(row["global_mean"] > 0 and row["error"] == "" for row in rows), rows
