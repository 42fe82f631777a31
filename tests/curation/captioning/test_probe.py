"""Before a run: is there a server, does it have the model, does it take a picture?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curation.captioning.probe import probe_server
from curation.captioning.settings import ServerSettings
from curation.config import CurateConfig
from curation.preflight import preflight
from schemas.config import build_config
from schemas.errors import PreflightError, ServiceError

Settings = Callable[..., ServerSettings]


def test_a_good_server_is_named(server: Any, settings: Settings) -> None:
    assert probe_server(settings()) == f"tiny-vision at {server.url}"
    assert server.times.keys() == {"trial-of-the-preflight"}


def test_another_model_is_refused_with_the_names_there_are(server: Any, settings: Settings) -> None:
    with pytest.raises(ServiceError, match=r"no model 'big', it lists tiny-vision; correct caption.server.model"):
        probe_server(settings(model="big"))


def test_a_server_that_takes_no_pictures_is_refused(server: Any, settings: Settings) -> None:
    server.behave = lambda clip_id, asked: "400"
    with pytest.raises(ServiceError, match=r"refuses a trial picture with HTTP 400: .*planned 400.*takes pictures"):
        probe_server(settings())


def test_a_busy_server_is_let_through(server: Any, settings: Settings) -> None:
    server.behave = lambda clip_id, asked: "429"
    assert probe_server(settings())


def test_no_server_is_a_refusal_of_the_run(server: Any, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    server.alive = False
    values = {
        "output": str(tmp_path / "out"),
        "sources": [str(tmp_path / "in")],
        "caption": {"captioner": "server", "server": settings().model_dump()},
    }
    config = build_config(CurateConfig, values, source="test")
    with pytest.raises(PreflightError, match=r"captions: the caption server .* does not list its models"):
        preflight(config, ("caption",))
    assert "captions" not in [check.name for check in preflight(config, ("pack",))], "other phases need no server"
