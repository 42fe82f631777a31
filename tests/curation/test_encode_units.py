"""Units of the encode phase: each clip into the sets that it is kept for and no other, deadlines that follow the work, one planning pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation import jobs, survivors
from curation.caption_units import caption_batches, forget_failed
from curation.commits import DONE
from curation.config import CurateConfig
from curation.encode_units import EncodePlan, encode_plan, encode_units
from curation.encoding.worker import EncodeModels
from curation.engine import Engine
from curation.inventory import Inventory
from curation.phases import decide_phase
from curation.session import Session
from curation.survivors import caption_units
from encoders.latents import get_codec
from schemas.config import build_config
from schemas.tables import BRANCHES, CLIPS, PAIRS, table_from_rows, write_table


@pytest.fixture
def session(tmp_path: Path, clip_row: Any, source_request: Any) -> Session:
    """Two photographs: one large enough for 144p and 720p, one for 144p only; decided and captioned, not encoded."""
    rows, requests = [], []
    for number, (height, width) in enumerate(((1080, 1920), (270, 480))):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)).save(path)
        request = source_request(path, "image")
        crop = {"top": 0, "left": 0, "bottom": height, "right": width}
        size = {"source_height": height, "source_width": width, "crop": crop}
        rows.append(clip_row(number, content_hash=request.content_hash, uri=request.uri, branch="image_real", **size))
        requests.append(request)
    values = {
        "output": str(tmp_path / "out"),
        "sources": [str(tmp_path)],
        "encode": {"sets": ["144p", "720p"], "teacher_by_branch": dict.fromkeys(BRANCHES)},
    }
    config = build_config(CurateConfig, values, source="test")
    session = Session(config, Engine(config))
    session.write("clips", table_from_rows(CLIPS, sorted(rows, key=lambda row: str(row["clip_id"]))))
    session.write("pairs", table_from_rows(PAIRS, []))
    uris = {request.uri: request.uri for request in requests}
    session.__dict__["inventory"] = Inventory(requests, [], uris, {uri: f"k{n}" for n, uri in enumerate(uris)})
    decide_phase(session, with_labels=False)
    for key, _ in caption_units(session).values():
        with session.commits.unit("caption", key, {"status": DONE, "reason": None}):
            pass
    for row, request in zip(rows, requests, strict=True):
        key = session.inventory.key_of[request.uri]
        with session.commits.unit("analyze", key, {"status": DONE, "reason": None}) as folder:
            write_table(folder / "clips.parquet", table_from_rows(CLIPS, [row]), CLIPS)
    return session


def _latents(session: Session) -> dict[str, dict[str, Any]]:
    """File name to the latents part of its unit."""
    units = encode_units(session)
    return {unit["label"].rpartition("/")[2]: unit["parts"]["latents"] for unit in units if "latents" in unit["parts"]}


def test_a_clip_is_encoded_for_its_own_sets_only(session: Session, tmp_path: Path) -> None:
    parts = _latents(session)
    assert [sorted(sets) for part in parts.values() for sets in part["arguments"]["sets_by_clip"].values()] in (
        [["144p", "720p"], ["144p"]],
        [["144p"], ["144p", "720p"]],
    )
    plan = encode_plan(session)
    clip = next(iter(parts["0.png"]["arguments"]["sets_by_clip"]))
    with session.cache.unit("latents/144p", plan.latents[clip, "144p"], {"status": DONE, "reason": None}):
        pass
    part = _latents(session)["0.png"]
    assert part["arguments"]["sets_by_clip"] == {clip: ["720p"]}, "what is cached is not encoded again"
    folder = tmp_path / "work"
    folder.mkdir()
    settings = session.config.encode.model_dump(mode="json")
    models = EncodeModels(get_codec("dct"), {})
    setup = {"settings": settings, "cache_dir": None}
    assert jobs.JOBS["latents"].run(setup, models, {**part["arguments"], "folder": str(folder)}) == []
    assert [path.name for path in folder.glob("*.npy")] == [f"{clip}.720p.latent.npy"]


def test_the_deadline_follows_the_pixels(session: Session) -> None:
    parts = _latents(session)
    sizes = {Path(request.path).name: request.size_bytes for request in session.inventory.requests}
    assert parts["0.png"]["timeout_s"] == session.timeout_s(sizes["0.png"], pixels=144 * 256 + 736 * 1280)
    assert parts["1.png"]["timeout_s"] == session.timeout_s(sizes["1.png"], pixels=144 * 256)
    assert session.timeout_s(0, pixels=65 * 736 * 1280) > 139 + session.timeout_s(0), "measured for one clip of 720p"


def test_planning_takes_one_pass(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"decide": 0, "by_content": 0, "walks": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    class Walked(dict[Any, Any]):
        def items(self) -> Any:
            calls["walks"] += 1
            return super().items()

    def plan_of(one: Session) -> EncodePlan:
        plan = encode_plan(one)
        plan.latents = Walked(plan.latents)
        return plan

    session.caption_units = None
    monkeypatch.setattr(survivors, "decide", counted("decide", survivors.decide))
    monkeypatch.setattr(Inventory, "by_content", counted("by_content", Inventory.by_content))
    monkeypatch.setattr("curation.encode_units.encode_plan", plan_of)
    first = caption_units(session)
    assert calls == {"decide": 1, "by_content": 1, "walks": 0}
    encode_units(session)
    assert calls == {"decide": 1, "by_content": 2, "walks": 0} and caption_units(session) == first
    session.write("pairs", session.table("pairs"))
    caption_units(session)
    assert calls["decide"] == 2, "a table that was written anew is looked at anew"


def _committed_captions(session: Session, failed: dict[str, str]) -> None:
    """Commit the caption units anew, with these clips as failed."""
    for key, ids in caption_units(session).values():
        session.commits.forget("caption", key)
        answer = {"failed": {clip: reason for clip, reason in failed.items() if clip in ids}, "notes": {}}
        with session.commits.unit("caption", key, {"status": DONE, "reason": None, "answer": answer}):
            pass


def test_a_clip_without_a_caption_keeps_its_reason_until_it_is_tried_again(session: Session) -> None:
    (first_key, (bad,)), (second_key, (good,)) = caption_units(session).values()
    _committed_captions(session, {bad: "caption server: 4 tries, the last: the answer is empty"})
    plan = encode_plan(session)
    assert plan.no_caption == {bad: "caption server: 4 tries, the last: the answer is empty"}
    assert list(plan.text) == [good]
    assert caption_batches(session, caption_units(session)) == [], "nothing is tried again unasked"
    assert forget_failed(session.commits) == 1
    (task,) = caption_batches(session, caption_units(session))
    assert [member["unit"] for member in task["parts"]["caption"]["arguments"]["members"]] == [first_key]
    assert session.commits.is_committed("caption", second_key)


def test_sources_of_few_clips_share_a_task(session: Session) -> None:
    wanted = caption_units(session)
    for key, _ in wanted.values():
        session.commits.forget("caption", key)
    assert [len(task["parts"]["caption"]["arguments"]["members"]) for task in caption_batches(session, wanted)] == [
        1,
        1,
    ]
    server = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    for clips_per_unit, expected in ((1, [1, 1]), (2, [2]), (100, [2])):
        caption = {"captioner": "server", "server": {**server, "clips_per_unit": clips_per_unit}}
        values = {"output": session.config.output, "sources": ["/in"], "caption": caption}
        other = Session(build_config(CurateConfig, values, source="test"), session.engine)
        other.__dict__["inventory"] = session.inventory
        tasks = caption_batches(other, wanted)
        assert [len(task["parts"]["caption"]["arguments"]["members"]) for task in tasks] == expected
        units = {member["unit"] for task in tasks for member in task["parts"]["caption"]["arguments"]["members"]}
        assert units == {key for key, _ in wanted.values()}, "the units do not depend on the batches"
