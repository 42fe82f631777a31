"""Analysed sources, as rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from curation.analysis.settings import AnalyzeSettings
from curation.analysis.worker import analyze_source
from schemas.tables import CLIPS, DESCRIPTORS, SOURCES, THUMBNAILS, read_table


@dataclass(frozen=True)
class Analysed:
    """The tables of one source."""

    folder: Path
    source: dict[str, Any]
    clips: list[dict[str, Any]]
    descriptors: list[dict[str, Any]]
    thumbnails: list[dict[str, Any]]


@pytest.fixture(scope="session")
def analyse(analyze_models, source_request, tmp_path_factory) -> Callable[..., Analysed]:
    """`analyse(path, kind="video", settings=...)`."""

    def run(path: Path, kind: str = "video", settings: AnalyzeSettings | None = None) -> Analysed:
        folder = tmp_path_factory.mktemp("analysed")
        analyze_source(source_request(path, kind), settings or AnalyzeSettings(), analyze_models, folder)
        assert sorted(file.name for file in folder.iterdir()) == [
            "clips.parquet", "descriptors.parquet", "sources.parquet", "thumbnails.parquet",
        ]  # fmt: skip
        tables = {
            name: read_table(folder / f"{name}.parquet", schema).to_pylist()
            for name, schema in (
                ("sources", SOURCES), ("clips", CLIPS), ("descriptors", DESCRIPTORS), ("thumbnails", THUMBNAILS),
            )
        }  # fmt: skip
        (source,) = tables["sources"]
        return Analysed(folder, source, tables["clips"], tables["descriptors"], tables["thumbnails"])

    return run
