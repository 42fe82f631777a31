"""The whole analysis against its floor, and against NeMo Curator's split pipeline on the same files in the same run.

    python benchmarks/analyze.py [--quick] [--json FILE] [--videos FOLDER] [--minutes N]

Files: six films of about 50 s from the registry's media, repeated under new names, each copy with other bytes at its end so that none counts as a
duplicate. Floor: PyAV decoding every frame on one thread, plus the models' own calls on the very frames that the analysis gives them, both in as many
processes as there are cores. Peer: `nemo_split.py`, which splits by stride, re-encodes and filters by motion, and scores nothing else.
"Same job" is our analysis with every model and the search for overlays switched off, since the peer has neither. It still has: shots (cuts,
dissolves, fades, flashes), clips, black borders and the crop, motion (all of it, of the camera, of the scene, shake), luma, sharpness, blocks,
effective resolution and rate, thumbnails, and the records of sources and clips. Wall times are without the no-op run (one clip of two seconds), which
is shown apart; where a run takes less than twice its no-op (`--quick`), what is left is noise and the rows that need it are left out. The ratio
of CPU seconds has no engine in it and bears a busy machine. Needs `ffprobe` on PATH and the weights pulled.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg
from bench_table import Row, row, show, write

from curation.analysis.models import AnalyzeModels
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.worker import analyze_source, load_models
from curation.requests import SourceRequest
from curation.sources import uri_of_path
from encoders.registry import fetch
from schemas.tables import SOURCES, read_table

HERE = Path(__file__).resolve().parent
FILMS = (
    ("bigbuckbunny", (720, 1280), 10),
    ("bikes", (272, 640), 5),
    ("multi_shot", (90, 160), 1),
    ("bigbuckbunny", (360, 640), 10),
    ("carphone", (288, 352), 12),
    ("bikes", (480, 854), 5),
)
"""Medium, size (height, width), how often it is repeated within a film."""
NO_MODELS = ("nsfw", "text_detector", "descriptor")


def make_films(folder: Path, *, seconds: float) -> list[Path]:
    """The six films, H.264, at most `seconds` each."""
    films = []
    for place, (name, (height, width), loops) in enumerate(FILMS):
        target = folder / f"film{place}_{name}_{height}p.mp4"
        video = ffmpeg.input(str(fetch(f"media.{name}")), stream_loop=loops - 1, t=seconds).video
        video = video.filter("scale", width, height).filter("setsar", 1)
        options = {"vcodec": "libx264", "preset": "veryfast", "crf": 23, "pix_fmt": "yuv420p", "an": None}
        command = ffmpeg.output(video, str(target), **options).overwrite_output()
        command.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True)
        films.append(target)
    return films


def repeat(films: Sequence[Path], folder: Path, *, seconds: float) -> tuple[list[Path], float]:
    """Copies of all films until there are `seconds` of video, each with a `free` box of its own; the files and their seconds."""
    folder.mkdir()
    lengths = [length(film) for film in films]
    copies: list[Path] = []
    while True:
        for film in films:
            target = folder / f"{len(copies):04d}_{film.name}"
            target.write_bytes(film.read_bytes() + struct.pack(">I4sQ", 16, b"free", len(copies)))
            copies.append(target)
        total = sum(lengths) * len(copies) / len(films)
        if total >= seconds:
            return copies, total


def length(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        return float(container.duration or 0) / 1e6


def decode(path: Path) -> float:
    """CPU seconds of decoding every frame on one thread."""
    import av

    start = time.process_time()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass
    return time.process_time() - start


class Recorder:
    """Stands before one network and keeps every call, so that it can be made again with nothing around it."""

    def __init__(self, network: Any, method: str, calls: list[tuple[Any, str, tuple[Any, ...]]]) -> None:
        self._network, self._method, self._calls = network, method, calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._network, name)
        if name != self._method:
            return value

        def recorded(*arguments: Any) -> Any:
            self._calls.append((self._network, name, arguments))
            return value(*arguments)

        return recorded


def analyze(path: Path, settings: AnalyzeSettings, models: AnalyzeModels) -> float:
    """CPU seconds of the analysis of one file in this process."""
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
        start = time.process_time()
        analyze_source(request, settings, models, Path(folder))
        seconds = time.process_time() - start
        source = read_table(Path(folder) / "sources.parquet", SOURCES).to_pylist()[0]
    if source["status"] != "ok":
        raise SystemExit(f"{path.name}: {source['status']}: {source['reason']}")
    return seconds


def cpu_seconds(films: Sequence[Path]) -> tuple[float, float, float]:
    """(analysis, decoding, models) of one copy of each film."""
    import cv2

    cv2.setNumThreads(1)
    settings = AnalyzeSettings()
    models = load_models(settings)
    analyze(films[-1], settings, models)
    analysis = decoding = inference = 0.0
    for film in films:
        calls: list[tuple[Any, str, tuple[Any, ...]]] = []
        recording = replace(
            models,
            nsfw=Recorder(models.nsfw, "scores", calls),
            text_detector=Recorder(models.text_detector, "boxes", calls),
            descriptor=Recorder(models.descriptor, "describe", calls),
        )
        analyze(film, settings, recording)
        start = time.process_time()
        for network, method, arguments in calls:
            getattr(network, method)(*arguments)
        inference += time.process_time() - start
        analysis += analyze(film, settings, models)
        decoding += decode(film)
    return analysis, decoding, inference


def decode_wall(files: Sequence[Path], processes: int) -> float:
    """Seconds of the clock for decoding all files in as many processes; their start is not counted."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(length, files[:processes])
        start = time.perf_counter()
        pool.map(decode, files, chunksize=1)
        return time.perf_counter() - start


def wall(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds of the clock of a command, and what it said; ends the benchmark if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=HERE.parent)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return time.perf_counter() - start, done.stdout


def ours(videos: Path, output: Path, *, with_models: bool) -> float:
    """The analyze phase of the command."""
    settings = {"output": str(output), "sources": json.dumps([str(videos)])}
    if not with_models:
        settings |= {f"analyze.{name}": "null" for name in NO_MODELS} | {"analyze.overlays": "false"}
    overrides = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-P", str(HERE.parent / "curation" / "run.py"), "--phase", "analyze"]
    command += ["--config", str(HERE.parent / "configs" / "curate.yaml"), *overrides]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    seconds, _ = wall(command, environment | {"PYTHONPATH": str(HERE.parent)})
    return seconds


def peer(videos: Path, output: Path) -> tuple[float, int]:
    """NeMo Curator's pipeline: seconds and clips."""
    if shutil.which("ffprobe") is None:
        raise SystemExit("the peer needs ffprobe on PATH: apt-get install ffmpeg")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        command = [sys.executable, "-P", str(HERE / "nemo_split.py"), str(videos), str(output), "--ffmpeg", folder]
        seconds, said = wall(command, dict(os.environ) | {"RAY_AUTH_MODE": "disabled"})
    clips = int(json.loads(said.strip().splitlines()[-1])["clips"])
    if clips == 0:
        raise SystemExit(f"the peer wrote no clips of {videos}: its seconds compare with nothing")
    return seconds, clips


def _without(seconds: float, noop: float) -> float | None:
    """Of the work itself; None where starting takes so much of it that the difference is noise."""
    return seconds - noop if seconds >= 2 * noop else None


def _walls(floor: float, same: float | None, full: float | None, theirs: float | None) -> list[Row]:
    """Rows by the clock that the length of the runs allows."""
    rows = []
    if full is not None:
        rows.append(row("floor_ratio", full / floor, "analysis / floor, wall", goal=1.3, better="lower"))
        rows.append(row("full analysis, wall without no-op", full, "s", goal=None, better="lower", peer=theirs))
    if same is not None:
        rows.append(row("same job, wall without no-op", same, "s", goal=None, better="lower", peer=theirs))
    for name, goal, ours_ in (("peer_speedup_same_job", 10, same), ("peer_speedup_full", 1.5, full)):
        if theirs is not None and ours_ is not None:
            rows.append(row(name, theirs / ours_, "times as fast", goal=goal, better="higher"))
    if None in (same, full, theirs):
        print("too little video for some rows: a run took less than twice its no-op", flush=True)
    return rows


def measure(folder: Path, *, quick: bool, minutes: float, more: Path | None) -> list[Row]:
    """All rows of the table."""
    (folder / "films").mkdir()
    films = make_films(folder / "films", seconds=5 if quick else 52)
    films += sorted(more.glob("*.mp4")) if more else []
    files, video = repeat(films, folder / "videos", seconds=30 if quick else minutes * 60)
    (folder / "tiny").mkdir()
    tiny = ffmpeg.output(ffmpeg.input(str(films[1]), t=2).video, str(folder / "tiny" / "tiny.mp4"))
    tiny.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True)
    print(f"{len(files)} files, {video:.0f} s of video", flush=True)
    processes = len(os.sched_getaffinity(0))
    analysis, decoding, models = cpu_seconds(films)
    copies = len(files) / len(films)
    steps: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode_wall(files, processes),
        "ours_noop": lambda: ours(folder / "tiny", folder / "out-noop", with_models=False),
        "ours_same": lambda: ours(folder / "videos", folder / "out-same", with_models=False),
        "ours_full": lambda: ours(folder / "videos", folder / "out-full", with_models=True),
        "peer_noop": lambda: peer(folder / "tiny", folder / "peer-noop"),
        "peer": lambda: peer(folder / "videos", folder / "peer"),
    }
    found = {}
    for name, step in steps.items():
        found[name] = step()
        print(f"{name}: {found[name]}", flush=True)
    # The floor's inference runs in this process, alone; on all cores it would take its CPU seconds divided by them.
    floor = found["decode"] + models * copies / processes
    same, full = (_without(found[name], found["ours_noop"]) for name in ("ours_same", "ours_full"))
    theirs, clips = _without(found["peer"][0], found["peer_noop"][0]), found["peer"][1]
    return [
        *_walls(floor, same, full, theirs),
        row("floor_ratio_cpu", analysis / (decoding + models), "analysis / floor, CPU", goal=1.3, better="lower"),
        row("no-op run, wall", found["ours_noop"], "s", goal=None, better="lower", peer=found["peer_noop"][0]),
        row("floor: decoding, wall", found["decode"], "s", goal=None, better="lower"),
        row("floor: models, wall on all cores", models * copies / processes, "s", goal=None, better="lower"),
        row("analysis, CPU per second of video", analysis * copies / video, "s", goal=None, better="lower"),
        row("decoding, CPU per second of video", decoding * copies / video, "s", goal=None, better="lower"),
        row("models, CPU per second of video", models * copies / video, "s", goal=None, better="lower"),
        row("video", video, "s", goal=None, better="higher", peer=video),
        row("clips that the peer wrote", clips, "clips", goal=None, better="higher"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute of video")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--videos", type=Path, help="folder of further films (.mp4)")
    parser.add_argument("--minutes", type=float, default=30.0, help="how much video, at least")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), quick=arguments.quick, minutes=arguments.minutes, more=arguments.videos)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
