"""Real media, hard cases made of it, and real models, each made or loaded once per test run."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from curation.analysis.models import AnalyzeModels
from curation.requests import SourceRequest

MediaFetcher = Callable[[str], Path]
RequestMaker = Callable[..., SourceRequest]
ClipRow = Callable[..., dict[str, Any]]


def _module(path: Path) -> ModuleType:
    """A file beside the tests, which is no package member in importlib mode."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def media_cases() -> ModuleType:
    """`tests/media_cases.py`."""
    return _module(Path(__file__).parents[1] / "media_cases.py")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """A local S3 server: the `S3Server` of `s3_server.py`."""
    with _module(Path(__file__).parent / "s3_server.py").serve() as server:
        yield server


@pytest.fixture
def s3(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, with its endpoint and credentials in the environment of this process."""
    from curation.objects import forget_clients

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield s3_server
    s3_server.fail()
    forget_clients()


@pytest.fixture
def bucket(s3: Any) -> str:
    """Address of a new bucket on it."""
    name = f"test-{uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{s3.endpoint}/{name}", method="PUT"), timeout=30).close()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def media() -> MediaFetcher:
    """`media("bikes")`: local path of a registry medium."""
    from encoders.registry import fetch

    return lambda name: fetch(f"media.{name}")


@pytest.fixture(scope="session")
def analyze_models() -> AnalyzeModels:
    """The default networks of the analyze phase."""
    from curation.analysis.models import load_models, model_names
    from curation.analysis.settings import AnalyzeSettings
    from encoders.registry import fetch_many

    fetch_many(model_names(AnalyzeSettings()), accept_licence=True)
    return load_models(AnalyzeSettings())


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Path]], Path]:
    """`cases("name.mp4", make)`: a file that `make` writes once per test run."""
    folder = tmp_path_factory.mktemp("cases")

    def case(name: str, make: Callable[[Path], Path]) -> Path:
        path = folder / name
        return path if path.exists() else make(path)

    return case


@pytest.fixture(scope="session")
def source_request() -> RequestMaker:
    """A request for a local file."""

    def make(path: Path, kind: str = "video") -> SourceRequest:
        data = path.read_bytes()
        return SourceRequest(
            uri=f"file://{quote(str(path))}",
            path=str(path),
            content_hash=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            kind=kind,
            branch=f"{kind}_real",
            domain="",
            licence="test",
        )

    return make


@pytest.fixture(scope="session")
def clip_row() -> ClipRow:
    """A row of the clips table that passes every control of every level; keywords change single columns."""
    from schemas.ids import clip_id
    from schemas.tables import SCORES

    scores = {"nsfw": 0.01, "motion": 2.0, "motion_global": 1.0, "motion_local": 1.0, "shake": 0.1, "luma": 120.0}
    scores |= {
        "sharpness": 300.0,
        "aesthetic": None,
        "blockiness": 1.0,
        "effective_resolution_ratio": 1.0,
        "effective_fps": 24.0,
    }

    def make(number: int, **changes: Any) -> dict[str, Any]:
        content = changes.get("content_hash", hashlib.sha256(str(number).encode()).hexdigest())
        kind = changes.get("branch", "video_real").partition("_")[0]
        end_us = 0 if kind == "image" else 5_041_667
        row: dict[str, Any] = {
            "clip_id": clip_id(content, changes.get("start_us", 0), max(changes.get("start_us", 0), end_us)),
            "content_hash": content,
            "uri": f"file:///films/{number}.mp4",
            "kind": kind,
            "branch": "video_real",
            "domain": "",
            "licence": "",
            "shot": 0,
            "start_us": 0,
            "end_us": end_us,
            "frames": 1 if kind == "image" else 121,
            "clip_fps": 24.0,
            "source_fps": 0.0 if kind == "image" else 24.0,
            "source_height": 1080,
            "source_width": 1920,
            "source_bytes": 1_000_000,
            "crop": {"top": 0, "left": 0, "bottom": 1080, "right": 1920},
            "crop_flags": [],
            "overlays": [],
            "overlay_kinds": [],
            "model_frames": 4,
        }
        for name in SCORES:
            value = scores.get(name, 0.0)
            reason = "no weights given" if value is None else None
            row |= {name: value, f"{name}_model": None if value is None else "test", f"{name}_reason": reason}
        return row | changes

    return make
