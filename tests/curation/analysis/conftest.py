"""Analysed sources, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """`write_video(path, frames, fps=24, crf=18)`: RGB frames as H.264; sides must be even."""
    import av

    def write(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int = 24, crf: int = 18) -> Path:
        with av.open(str(path), "w") as container:
            stream: Any = None
            for frame in frames:
                if stream is None:
                    stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast"})
                    stream.height, stream.width = frame.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.codec_context.thread_count = 1
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write
