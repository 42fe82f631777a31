"""What one analysis costs: seconds per second of video on one core, against plain decoding of the same files in the same run.

    python benchmarks/analyze_cost.py [--quick] [--json FILE] [--videos FOLDER]

The floor is PyAV decoding every frame on one thread and doing nothing with it; the analysis runs in this process, models loaded before the clock
starts. Media come from the registry; the weights must have been pulled.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
from bench_table import Row, row, show, write

from curation.analysis.models import AnalyzeModels
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.worker import analyze_source, load_models
from curation.requests import SourceRequest
from curation.sources import uri_of_path
from encoders.registry import fetch
from schemas.tables import SOURCES, read_table

FILMS = ("media.bigbuckbunny", "media.bikes", "media.carphone", "media.multi_shot")


def decode_seconds(path: Path) -> float:
    """Seconds to decode every frame on one thread."""
    start = time.perf_counter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for _ in container.decode(stream):
            pass
    return time.perf_counter() - start


def analyze_seconds(path: Path, settings: AnalyzeSettings, models: AnalyzeModels) -> tuple[float, float]:
    """Seconds of the whole analysis, and seconds of video in the file."""
    size = path.stat().st_size
    request = SourceRequest(
        uri=uri_of_path(path),
        path=str(path),
        content_hash=None,
        size_bytes=size,
        kind="video",
        branch="video_real",
        domain="",
        licence="",
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        analyze_source(request, settings, models, Path(folder))
        seconds = time.perf_counter() - start
        source = read_table(Path(folder) / "sources.parquet", SOURCES).to_pylist()[0]
    if source["status"] != "ok":
        raise SystemExit(f"{path.name}: {source['status']}: {source['reason']}")
    return seconds, source["duration_us"] / 1e6


def measure(films: Sequence[tuple[str, Path]]) -> list[Row]:
    """One row per film, and the sums."""
    cv2.setNumThreads(1)
    settings = AnalyzeSettings()
    models = load_models(settings)
    rows: list[Row] = []
    total_analysis = total_decode = total_video = 0.0
    for name, path in films:
        decode = decode_seconds(path)
        analysis, video = analyze_seconds(path, settings, models)
        rows.append(
            row(f"analyze {name}", analysis / video, "s per s of video", goal=None, better="lower", peer=decode / video)
        )
        total_analysis, total_decode, total_video = (
            total_analysis + analysis,
            total_decode + decode,
            total_video + video,
        )
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rows.append(
        row(
            "analyze, all",
            total_analysis / total_video,
            "s per s of video",
            goal=None,
            better="lower",
            peer=total_decode / total_video,
        )
    )
    rows.append(row("video analysed", total_video, "s", goal=None, better="higher"))
    rows.append(row("peak memory of the process", peak_gb, "GB", goal=1.0, better="lower"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three short films instead of four")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--videos", type=Path, help="folder of further films (.mp4)")
    arguments = parser.parse_args()
    films = [(name, fetch(name)) for name in (FILMS[:3] if arguments.quick else FILMS)]
    if arguments.videos:
        films += [(path.stem, path) for path in sorted(arguments.videos.glob("*.mp4"))]
    rows = measure(films)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
