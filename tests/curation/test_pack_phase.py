"""The set folder: damage to it or to the committed tar is mended by packing again, and an empty set is said aloud."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.commits import DONE
from curation.config import CurateConfig
from curation.engine import Engine
from curation.pack import PackEntry, assemble_shard, shard_info
from curation.pack_phase import _publish, _Shard
from curation.session import Session
from schemas.config import build_config
from schemas.shards import SampleRecord, read_set_info, shard_name
from schemas.tables import DECISIONS, SAMPLES, table_from_rows, write_table

FACTS = {
    "codec": "dct",
    "codec_fingerprint": "c",
    "latent_channels": 16,
    "text_encoder": "minilm",
    "text_encoder_fingerprint": "t",
    "text_width": 6,
    "teacher_width": None,
}
NULL = np.zeros((1, 6), np.float16)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    values = {"output": str(tmp_path / "out"), "sources": [str(tmp_path)], "encode": {"sets": ["64p"]}}
    config = build_config(CurateConfig, values, source="test")
    return Session(config, Engine(config))


def _entry(folder: Path, number: int) -> PackEntry:
    clip = hashlib.sha256(str(number).encode()).hexdigest()[:24]
    shapes = {"latent.npy": (1, 16, 8, 14)} | {f"text_{kind}.npy": (5, 6) for kind in ("long", "short", "first")}
    members = {}
    for name, shape in shapes.items():
        members[name] = str(folder / f"{clip}.{name}")
        values = np.random.default_rng(number).normal(size=shape).astype(np.float16)
        np.save(members[name], values, allow_pickle=False)
    record = SampleRecord(
        clip_id=clip,
        frames=1,
        height=64,
        width=112,
        fps=24.0,
        branch="image_real",
        domain="",
        source="s",
        start_us=0,
        end_us=0,
        caption_long="a",
        caption_short="b",
        caption_first="c",
    )
    return PackEntry(record, "other", "photo", ("144p",), members)


def _pack(session: Session, folder: Path) -> None:
    """As the phase does: what is not committed is packed, then the set is put in place."""
    shards = []
    for index in range(3):
        entry = _entry(folder, index)
        shards.append(_Shard("64p", index, [entry.record.clip_id], f"key{index}"))
        if session.commits.is_committed("pack", f"key{index}"):
            continue
        record: dict[str, Any] = {"status": DONE, "reason": None, "answer": None}
        with session.commits.unit("pack", f"key{index}", record) as unit:
            tar = unit / shard_name(index)
            rows = assemble_shard([entry], set_name="64p", shard_index=index, tar_path=tar)
            write_table(unit / "samples.parquet", table_from_rows(SAMPLES, rows), SAMPLES)
            record["answer"] = shard_info(tar, len(rows)).model_dump(mode="json")
    assert list(_publish(session, "64p", shards, (FACTS, NULL))) == []


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_cut_and_a_removed_tar_are_mended(session: Session, tmp_path: Path) -> None:
    _pack(session, tmp_path)
    folder = session.output / "sets" / "64p"
    before = _digests(folder)
    assert len(before) == 6
    os.truncate(folder / shard_name(0), 700)  # a hard link: the committed tar is cut too
    (folder / shard_name(1)).unlink()
    _pack(session, tmp_path)
    assert _digests(folder) == before


@pytest.mark.parametrize("name", ["set.json", "samples.parquet"])
def test_a_cut_table_or_set_json_is_mended(session: Session, tmp_path: Path, name: str) -> None:
    _pack(session, tmp_path)
    folder = session.output / "sets" / "64p"
    before = _digests(folder)
    os.truncate(folder / name, 50)
    _pack(session, tmp_path)
    assert _digests(folder) == before


def test_a_whole_set_is_left_alone(session: Session, tmp_path: Path) -> None:
    _pack(session, tmp_path)
    before = (session.output / "sets" / "64p").stat().st_ino
    _pack(session, tmp_path)
    assert (session.output / "sets" / "64p").stat().st_ino == before


def test_an_empty_set_is_said_with_what_rejected_the_clips(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pack(session, tmp_path)
    assert "warning" not in capsys.readouterr().err
    columns = {field.name: pa.nulls(2, field.type) for field in DECISIONS}
    columns |= {"clip_id": pa.array(["a", "b"]), "admission": pa.array(["144p"] * 2)}
    columns["decision"] = pa.array(["too_bright"] * 2)
    session.write("decisions", pa.table(columns).cast(DECISIONS))
    assert list(_publish(session, "64p", [], (FACTS, NULL))) == []
    said = capsys.readouterr().err
    assert "set 64p has no samples; the 3 that were there are gone" in said and "too_bright 2" in said
    assert read_set_info(session.output / "sets" / "64p").shards == ()
