"""A local server that misbehaves on plan, and photographs as sources to caption."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.captioning.settings import ServerSettings
from curation.captioning.worker import CaptionSource


@pytest.fixture(scope="session")
def caption_servers() -> ModuleType:
    """`tests/caption_server.py`, which is no package member in importlib mode."""
    path = Path(__file__).parents[2] / "caption_server.py"
    spec = importlib.util.spec_from_file_location("caption_server", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["caption_server"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(caption_servers: ModuleType) -> Iterator[Any]:
    with caption_servers.caption_server() as state:
        yield state


@pytest.fixture
def settings(server: Any) -> Callable[..., ServerSettings]:
    """Settings for the server, with short waits."""

    def make(**changes: Any) -> ServerSettings:
        values = {"base_url": server.url, "model": server.model, "timeout_s": 30.0, "backoff_s": 0.01, "outage_s": 60.0}
        return ServerSettings(**{**values, **changes})

    return make


@pytest.fixture
def photographs(tmp_path: Path, clip_row: Any, source_request: Any) -> Callable[..., list[CaptionSource]]:
    """`photographs(n)`: so many different pictures, each a source of one clip."""

    def make(count: int) -> list[CaptionSource]:
        sources = []
        for number in range(count):
            path = tmp_path / f"{number}.png"
            pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(path)
            request = source_request(path, "image")
            size = {"source_height": 72, "source_width": 96, "crop": {"top": 0, "left": 0, "bottom": 72, "right": 96}}
            row = clip_row(number, content_hash=request.content_hash, uri=request.uri, branch="image_real", **size)
            sources.append(CaptionSource(f"unit{number:03}", str(path), [row]))
        return sources

    return make
