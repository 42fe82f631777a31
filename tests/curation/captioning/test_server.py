"""Captions by a server that misbehaves: every caption lands on its clip, or the clip has a reason."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from curation.captioning.client import api_key, wait_seconds
from curation.captioning.frames import clip_frames
from curation.captioning.settings import ServerSettings
from curation.captioning.worker import FINISHED, CaptionSource, caption_sources
from schemas.errors import ConfigError, ServiceError
from schemas.tables import LABELS, read_table

Settings = Callable[..., ServerSettings]
Photographs = Callable[[int], list[CaptionSource]]
NEVER_A_CAPTION = {
    "prose": "the answer is no JSON",
    "no_completion": "not a chat completion",
    "missing_field": "field 'quality'",
    "wrong_id": "is for clip '000000000000000000000000'",
    "empty": "the answer is empty",
    "no_content": "the answer is empty",
    "cut_off": "cut off at 1024 tokens",
    "half_body": "connection",
    "500": "HTTP 500: ",
    "dropped": "connection",
}
FINAL = {"400": "HTTP 400: ", "refused": "the model refused: I cannot help", "filtered": "content filter"}


def _ids(sources: Sequence[CaptionSource]) -> list[str]:
    return [str(row["clip_id"]) for source in sources for row in source.rows]


def _written(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, str]]:
    """Labels by clip id, reasons and notes of every finished source."""
    labels: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    notes: dict[str, str] = {}
    for path in folder.glob(f"*/{FINISHED}"):
        labels |= {row["clip_id"]: row for row in read_table(path.parent / "labels.parquet", LABELS).to_pylist()}
        answer = json.loads(path.read_text())
        failed |= answer["failed"]
        notes |= answer["notes"]
    return labels, failed, notes


def _assert_on_its_clip(
    servers: Any, sources: Sequence[CaptionSource], labels: dict[str, dict[str, Any]], settings: ServerSettings
) -> None:
    """The server's word for the pictures of a clip is in the caption of that clip."""
    for source in sources:
        for shown in clip_frames(source.path, source.rows, settings):
            if shown.clip_id in labels:
                assert servers.picture_word(shown.jpegs) in labels[shown.clip_id]["caption_first"]


def test_answers_out_of_order_land_on_their_clips(
    server: Any, caption_servers: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    sources = photographs(24)
    ids = _ids(sources)
    server.delay = lambda clip_id: 0.02 * (24 - ids.index(clip_id))  # the later asked, the sooner answered
    chosen = settings(max_in_flight=12)
    caption_sources(sources, chosen, "none", tmp_path / "out")
    labels, failed, notes = _written(tmp_path / "out")
    assert sorted(labels) == sorted(ids) and not failed and not notes
    assert server.answered != ids, "the answers came in another order"
    assert 2 <= server.most_in_flight <= 12
    _assert_on_its_clip(caption_servers, sources, labels, chosen)
    row = labels[ids[0]]
    assert row["caption_long"].startswith(row["caption_first"]) and row["caption_first"].endswith("in daylight.")
    assert (row["model"], row["quality"], row["watermark"]) == ("server:tiny-vision", "high", False)
    assert (row["action"], row["camera_move"], row["multi_scene"]) == ("none", "none", None)


def test_one_bad_answer_of_each_kind_is_asked_again(
    server: Any, caption_servers: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    kinds = [*NEVER_A_CAPTION, "429", "too_short", "never"]
    sources = photographs(len(kinds))
    by_id = dict(zip(_ids(sources), kinds, strict=True))
    server.behave = lambda clip_id, asked: by_id[clip_id] if asked == 0 else "fenced"
    chosen = settings(timeout_s=3.0)
    caption_sources(sources, chosen, "none", tmp_path / "out")
    labels, failed, _ = _written(tmp_path / "out")
    assert sorted(labels) == sorted(by_id) and not failed
    _assert_on_its_clip(caption_servers, sources, labels, chosen)


def test_what_never_works_is_a_reason_and_costs_no_other_clip(
    server: Any, caption_servers: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    kinds = {**NEVER_A_CAPTION, **FINAL, "never": "no answer within 6 s", "ok": ""}
    sources = photographs(len(kinds))
    by_id = dict(zip(_ids(sources), kinds, strict=True))
    server.behave = lambda clip_id, asked: by_id[clip_id]
    chosen = settings(attempts=2, timeout_s=6.0)
    caption_sources(sources, chosen, "none", tmp_path / "out")
    labels, failed, _ = _written(tmp_path / "out")
    assert sorted([*labels, *failed]) == sorted(by_id), "every clip has a caption or a reason"
    for clip, kind in by_id.items():
        if kind == "ok":
            continue
        assert kinds[kind] in failed[clip], kind
        assert len(server.times[clip]) == (1 if kind in FINAL else 2), kind
    _assert_on_its_clip(caption_servers, sources, labels, chosen)


def test_a_refused_answer_is_sampled_anew_and_an_error_is_not(
    server: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    plan = ("500", "prose", "429", "wrong_id")
    server.retry_after = "0"
    server.behave = lambda clip_id, asked: (*plan, "ok")[asked]
    caption_sources(photographs(1), settings(), "none", tmp_path / "out")
    sampled = [(body["seed"], round(body["temperature"], 6)) for body in server.bodies]
    assert sampled[0] == sampled[1], "after an error the same request"
    assert sampled[2] == sampled[3], "after a busy answer the same request"
    assert [temperature for _, temperature in sampled] == [0.2, 0.2, 0.4, 0.4, 0.6]
    assert len({seed for seed, _ in sampled}) == 3
    assert server.bodies[0]["user"] in server.headers[0]["x-request-id"]


def test_busy_answers_are_waited_for_and_blame_no_clip(
    server: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    server.behave = lambda clip_id, asked: "429" if asked < 6 else "ok"
    server.retry_after = "0.3"
    sources = photographs(2)
    caption_sources(sources, settings(attempts=2), "none", tmp_path / "out")
    labels, failed, _ = _written(tmp_path / "out")
    assert len(labels) == 2 and not failed
    for times in server.times.values():
        assert all(after - before >= 0.3 for before, after in itertools.pairwise(times)), "Retry-After is honoured"


def test_a_server_that_is_always_busy_stops_the_phase(
    server: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    server.behave = lambda clip_id, asked: "429"
    server.retry_after = "0.2"
    with pytest.raises(
        ServiceError, match=r"turned one request away .*HTTP 429: planned 429.* lower caption.server.max_in_flight"
    ):
        caption_sources(photographs(2), settings(outage_s=0.5), "none", tmp_path / "out")


def test_a_server_that_goes_away_stops_the_phase_and_what_is_done_stays(
    server: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    def gone_after_three(clip_id: str, asked: int) -> str:
        if len(server.answered) >= 3:
            server.alive = False
        return "ok" if server.alive else "dropped"

    server.behave = gone_after_three
    with pytest.raises(ServiceError, match=r"has not answered for 0.5 s .* start it again"):
        caption_sources(photographs(8), settings(max_in_flight=1, outage_s=0.5), "none", tmp_path / "out")
    labels, failed, _ = _written(tmp_path / "out")
    assert len(labels) == 3 and not failed, "no clip is blamed"


def test_a_server_that_comes_back_goes_on(
    server: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    server.alive = False
    timer = threading.Timer(2.0, lambda: setattr(server, "alive", True))
    timer.start()
    caption_sources(photographs(6), settings(attempts=2), "none", tmp_path / "out")
    timer.join()
    labels, failed, _ = _written(tmp_path / "out")
    assert len(labels) == 6 and not failed


def test_a_wrong_key_stops_the_phase(server: Any, settings: Settings, photographs: Photographs, tmp_path: Path) -> None:
    server.behave = lambda clip_id, asked: "401"
    with pytest.raises(ServiceError, match=r"HTTP 401: .*api_key_env"):
        caption_sources(photographs(2), settings(), "none", tmp_path / "out")


def test_lengths_out_of_range_are_noted_or_refused(
    server: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    server.behave = lambda clip_id, asked: "too_short"
    caption_sources(photographs(1), settings(attempts=2), "none", tmp_path / "accept")
    labels, failed, notes = _written(tmp_path / "accept")
    assert len(server.bodies) == 2 and len(labels) == 1 and not failed
    assert list(notes.values()) == ["caption_long has 4 words, asked for were 150 to 250"]
    caption_sources(photographs(1), settings(attempts=2, on_word_range="refuse"), "none", tmp_path / "refuse")
    labels, failed, notes = _written(tmp_path / "refuse")
    assert not labels and not notes and "caption_long has 4 words" in next(iter(failed.values()))


def test_a_source_that_is_gone_is_a_reason(
    server: Any, settings: Settings, photographs: Photographs, tmp_path: Path
) -> None:
    sources = photographs(2)
    Path(sources[0].path).unlink()
    caption_sources(sources, settings(), "none", tmp_path / "out")
    labels, failed, _ = _written(tmp_path / "out")
    assert list(labels) == _ids(sources)[1:]
    assert failed == {_ids(sources)[0]: "source cannot be read: No such file or directory"}


def test_waits_double_and_are_spread() -> None:
    settings = ServerSettings(backoff_s=1.0, max_backoff_s=8.0, outage_s=100.0)
    waits = [wait_seconds("a", failures, 0.0, settings) for failures in range(1, 7)]
    for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert longest / 2 <= wait <= longest
    assert wait_seconds("a", 1, 0.0, settings) == waits[0] != wait_seconds("b", 1, 0.0, settings)
    assert wait_seconds("a", 1, 30.0, settings) == 30.0
    assert wait_seconds("a", 1, 1e9, settings) == 100.0, "a server cannot put a clip off for longer than an outage"


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, server: Any, settings: Settings) -> None:
    monkeypatch.delenv("CAPTION_KEY", raising=False)
    with pytest.raises(ConfigError, match="CAPTION_KEY is not set"):
        api_key(settings(api_key_env="CAPTION_KEY"))
    monkeypatch.setenv("CAPTION_KEY", "s3cret")
    assert api_key(settings(api_key_env="CAPTION_KEY")) == "s3cret"
    assert api_key(settings()) == "none"
