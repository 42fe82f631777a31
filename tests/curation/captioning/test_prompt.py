"""What a request holds, and what its settings decide."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jsonschema
import pytest

from curation.caption import CaptionSettings, caption_fingerprint, model_names
from curation.captioning import prompt
from curation.captioning.prompt import PROMPT_VERSION, request_body
from curation.captioning.settings import ServerSettings

CLIP = "ab" * 12
SERVER = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}


def _body(kind: str = "video", refused: int = 0, **changes: Any) -> dict[str, Any]:
    settings = ServerSettings(**{**SERVER, **changes})
    return request_body(CLIP, kind, 5.04, [b"one", b"two"], settings, refused=refused)


def test_a_request_holds_the_frames_in_order_and_the_id() -> None:
    text, *pictures = _body()["messages"][1]["content"]
    assert text["text"].startswith(f"clip_id: {CLIP}\n2 pictures of a clip of 5.0 seconds")
    urls = [picture["image_url"]["url"] for picture in pictures]
    assert urls == ["data:image/jpeg;base64,b25l", "data:image/jpeg;base64,dHdv"]
    assert _body() == _body() != _body(refused=1)


def test_the_schema_asks_for_every_field_and_no_other() -> None:
    for kind, of_time in (("video", True), ("image", False)):
        schema = _body(kind)["response_format"]["json_schema"]["schema"]
        jsonschema.Draft202012Validator.check_schema(schema)
        assert set(schema["required"]) == set(schema["properties"]) and schema["additionalProperties"] is False
        assert {"action", "camera_move", "multi_scene", "timelapse"}.issubset(schema["properties"]) == of_time
        assert {"caption_long", "caption_short", "subject", "style", "quality", "watermark"} <= set(schema["required"])
    assert "timelapse" not in _body("image")["messages"][0]["content"]


def test_servers_without_schemas_can_be_asked() -> None:
    assert _body(response_format="json_object")["response_format"] == {"type": "json_object"}
    assert "response_format" not in _body(response_format="none")


def test_the_temperature_rises_to_one_and_no_further() -> None:
    assert [round(_body(refused=count)["temperature"], 6) for count in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert _body(refused=3, temperature=1.5)["temperature"] == 1.5


def test_the_version_changes_with_the_words() -> None:
    """When this fails, the words or fields changed: raise PROMPT_VERSION and write the new digest here."""
    words = [_body(kind)["messages"][0]["content"] for kind in ("video", "image")]
    schemas = [_body(kind)["response_format"] for kind in ("video", "image")]
    digest = hashlib.sha256(json.dumps([words, schemas], sort_keys=True).encode()).hexdigest()[:16]
    assert (PROMPT_VERSION, digest) == ("server-1", "181568c7e1e4af88")


def _settings(**changes: Any) -> CaptionSettings:
    return CaptionSettings(captioner="server", server=ServerSettings(**{**SERVER, **changes}))


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"base_url": "http://other:8000/v1"}, False),
        ({"max_in_flight": 7, "clips_per_unit": 3, "timeout_s": 9.0, "attempts": 9, "outage_s": 1.0}, False),
        ({"api_key_env": "KEY", "backoff_s": 9.0, "max_backoff_s": 99.0}, False),
        ({"model": "other"}, True),
        ({"num_frames": 4}, True),
        ({"frame_long_side": 512}, True),
        ({"temperature": 0.0}, True),
        ({"seed": 1}, True),
        ({"max_tokens": 2048}, True),
        ({"response_format": "none"}, True),
        ({"word_tolerance": 0.5}, True),
        ({"on_word_range": "refuse"}, True),
        ({"extra_body": {"top_k": 1}}, True),
    ],
)
def test_only_what_decides_the_captions_captions_again(changes: dict[str, Any], again: bool) -> None:
    assert (caption_fingerprint(_settings(**changes)) != caption_fingerprint(_settings())) == again


def test_the_prompt_version_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = caption_fingerprint(_settings())
    monkeypatch.setattr("curation.caption.PROMPT_VERSION", "server-2")
    assert caption_fingerprint(_settings()) != before
    assert prompt.PROMPT_VERSION == PROMPT_VERSION


def test_the_default_captioner_knows_nothing_of_servers() -> None:
    tags, other = CaptionSettings(), CaptionSettings(server=ServerSettings(model="m"))
    assert caption_fingerprint(tags) == caption_fingerprint(other) != caption_fingerprint(_settings())
    assert model_names(tags) and not model_names(_settings())


def test_a_server_needs_an_address_and_a_model() -> None:
    with pytest.raises(ValueError, match=r"needs server.base_url and server.model"):
        CaptionSettings(captioner="server")
    with pytest.raises(ValueError, match="base_url"):
        ServerSettings(base_url="localhost:8000")
