"""Real media, hard cases made of it, and real models, each made or loaded once per test run."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import pytest

from curation.analysis.models import AnalyzeModels
from curation.requests import SourceRequest

MediaFetcher = Callable[[str], Path]
RequestMaker = Callable[..., SourceRequest]


@pytest.fixture(scope="session")
def media_cases() -> ModuleType:
    """`tests/media_cases.py`, which is no package member in importlib mode."""
    path = Path(__file__).parents[1] / "media_cases.py"
    spec = importlib.util.spec_from_file_location("media_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["media_cases"] = module
    spec.loader.exec_module(module)
    return module


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
