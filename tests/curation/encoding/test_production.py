"""The production networks, tiny and random, through the jobs of the encode and pack phases: Wan, V-JEPA 2, DINOv2, SigLIP, T5Gemma2."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from curation.encoding.settings import EncodeSettings
from curation.encoding.worker import LATENTS_INDEX, encoding_fingerprint
from curation.jobs import JOBS
from curation.pack import PackEntry
from encoders.registry import Registry, fetch
from schemas.config import build_config
from schemas.errors import ConfigError
from schemas.shards import CAPTION_KINDS, SampleRecord, SetInfo, shard_name
from schemas.tables import CLIPS, LABELS, SAMPLES, read_table, table_from_rows, write_table

TEACHERS = {"video_real": "vjepa2", "image_real": "dinov2", "video_synthetic": None, "image_synthetic": None}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> EncodeSettings:
    folder = tmp_path_factory.mktemp("models")
    fetch("text.minilm")
    return EncodeSettings(
        sets=("64p",),
        codec="wan",
        codec_options={"path": str(tiny_models.tiny_wan(folder / "wan")), "tile_pixels": 64, "tile_overlap_pixels": 16},
        teacher_by_branch=TEACHERS,
        teacher_paths={
            "vjepa2": str(tiny_models.tiny_vjepa2(folder / "vjepa2")),
            "dinov2": str(tiny_models.tiny_dinov2(folder / "dinov2")),
        },
        image_encoder="siglip",
        image_path=str(tiny_models.tiny_siglip(folder / "siglip")),
        text_encoder="transformers",
        text_path=str(tiny_models.tiny_t5gemma2(folder / "t5gemma2", Registry().local_path("text.minilm"))),
        text_options={"max_tokens": 12},
        device="cpu",
    )


def _labels(clip: str) -> dict[str, Any]:
    texts = dict.fromkeys(("subject", "style", "action", "camera_move", "model", "prompt_version"), "x")
    captions = {f"caption_{kind}": f"{kind} caption of a road with bikes " * 5 for kind in CAPTION_KINDS}
    return dict.fromkeys(LABELS.names) | texts | captions | {"clip_id": clip, "tags": []}


def _record(row: dict[str, Any], entry: dict[str, Any], labels: dict[str, Any]) -> SampleRecord:
    facts = {name: entry[name] for name in ("frames", "height", "width")}
    facts |= {name: row[name] for name in ("clip_id", "branch", "domain", "start_us", "end_us")}
    captions = {f"caption_{kind}": labels[f"caption_{kind}"] for kind in CAPTION_KINDS}
    return SampleRecord(fps=row["clip_fps"], source=row["content_hash"], **facts, **captions)


def test_a_video_and_an_image_become_samples_of_a_tar(
    settings: EncodeSettings,
    media: Callable[[str], Path],
    clip_row: Callable[..., Any],
    source_request: Callable[..., Any],
    tmp_path: Path,
) -> None:
    setup = {"settings": settings.model_dump(mode="json"), "cache_dir": None}
    models, text_models = JOBS["latents"].load(setup), JOBS["text"].load(setup)
    packed = []
    sources = (("bikes", "video", 33, (272, 640)), ("astronaut", "image", 1, (512, 512)))
    for number, (name, kind, frames, (height, width)) in enumerate(sources):
        work = tmp_path / name
        work.mkdir()
        request, crop = source_request(media(name), kind), {"top": 0, "left": 0, "bottom": height, "right": width}
        row = clip_row(number, content_hash=request.content_hash, frames=frames, crop=crop, branch=request.branch)
        clip, labels = row["clip_id"], _labels(row["clip_id"])
        write_table(work / "clips.parquet", table_from_rows(CLIPS, [row]), CLIPS)
        write_table(work / "labels.parquet", table_from_rows(LABELS, [labels]), LABELS)
        arguments = {"request": request.to_json(), "analysis": str(work), "sets_by_clip": {clip: ["64p"]}}
        assert JOBS["latents"].run(setup, models, {**arguments, "folder": str(work)}) == []
        JOBS["text"].run(setup, text_models, {"labels": str(work), "clip_ids": [clip], "folder": str(work)})
        (entry,) = json.loads((work / LATENTS_INDEX).read_text(encoding="utf-8"))
        assert entry["has_teacher"] and entry["has_image"]
        members = {f"{part}.npy": str(work / f"{clip}.64p.{part}.npy") for part in ("latent", "teacher", "image")}
        members |= {f"text_{part}.npy": str(work / f"{clip}.text_{part}.npy") for part in CAPTION_KINDS}
        packed.append(PackEntry(_record(row, entry, labels), "other", "photo", ("144p",), members).to_json())
    arguments = {"entries": packed, "set": "64p", "shard_index": 0, "folder": str(tmp_path)}
    assert JOBS["pack"].run({}, None, arguments)["num_samples"] == 2
    for row in read_table(tmp_path / "samples.parquet", SAMPLES).to_pylist():
        assert row["has_teacher"] and "image.npy" in {member["name"] for member in row["members"]}
    arrays = {}
    with tarfile.open(tmp_path / shard_name(0)) as archive:
        for member in archive:
            data, (clip, _, part) = archive.extractfile(member), member.name.partition(".")
            if data is not None and part.endswith(".npy"):
                arrays[clip, part] = np.load(io.BytesIO(data.read()), allow_pickle=False)
    for entry, rows, columns, frames in zip(packed, (48, 80), (144, 80), (9, 1), strict=True):
        clip = entry["record"]["clip_id"]
        assert arrays[clip, "latent.npy"].shape == (frames, 16, rows // 8, columns // 8)
        assert arrays[clip, "teacher.npy"].shape == (frames, rows // 16, columns // 16, 32)
        assert arrays[clip, "image.npy"].shape == (16, 24) and arrays[clip, "image.npy"].dtype == np.float16
        assert all(arrays[clip, f"text_{part}.npy"].shape == (12, 32) for part in CAPTION_KINDS)


def test_a_set_names_its_models_and_their_revisions(settings: EncodeSettings, tmp_path: Path) -> None:
    setup = {"settings": settings.model_dump(mode="json"), "cache_dir": None}
    JOBS["text"].run(setup, JOBS["text"].load(setup), {"facts": True, "folder": str(tmp_path)})
    facts = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    named = {"set_name": "64p", "fps": 24.0, "teacher_by_branch": TEACHERS, "seed": 0, "shards": ()}
    info = build_config(SetInfo, {**named, **facts}, source="facts.json")
    assert (info.image_encoder, info.image_width, info.teacher_width, info.text_width) == ("siglip", 24, 32, 32)
    expected = ["image.siglip", "latents.wan", "teacher.dinov2", "teacher.vjepa2", "text.transformers"]
    assert sorted(info.revisions) == expected
    assert all(value.startswith("sha256:") for value in info.revisions.values())
    assert np.load(tmp_path / "null_text.npy").shape[1] == 32


def test_the_key_holds_what_changes_the_files_and_nothing_else(settings: EncodeSettings, tmp_path: Path) -> None:
    def key(branch: str = "video_real", **changes: Any) -> str:
        return encoding_fingerprint(EncodeSettings(**{**settings.model_dump(), **changes}), "64p", branch)

    base = key()
    other_teacher = {**TEACHERS, "image_real": None}
    moved = shutil.copytree(str(settings.codec_options["path"]), tmp_path / "moved")
    assert key(teacher_by_branch=other_teacher) == base, "the teacher of another branch"
    assert key("image_real", teacher_by_branch=other_teacher) != key("image_real")
    for path in (moved, moved / "vae"):
        found = key(codec_options={**settings.codec_options, "path": str(path)})
        assert found == base, "weights count by content, wherever they lie"
    assert key(text_options={"max_tokens": 8}) == base
    for changes in ({"image_encoder": None}, {"codec_options": {**settings.codec_options, "tile_pixels": 32}}):
        assert key(**changes) != base


def test_names_that_do_not_exist_are_refused() -> None:
    for values, text in (
        ({"teacher_by_branch": {**TEACHERS, "video_real": "vjepa"}}, "teachers vjepa: expected efficientnet_lite0"),
        ({"text_options": {"width": 3}}, "text_options has width"),
        ({"image_encoder": "clip"}, "image_encoder"),
    ):
        with pytest.raises(ConfigError, match=text):
            build_config(EncodeSettings, values, source="test.yaml")
