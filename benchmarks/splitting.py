"""How well shots are split: F1 on hard cuts and on dissolves and fades, per method, on films joined from real clips with every transition known.

Shots are taken before stitching; what lies between two neighbouring shots, a point or a gap, is one found transition. It counts for a true one when
it comes within 0.1 s of it and is at most 1 s longer; one found for one true, all else is false, and a false one counts against both kinds. Films
hold flashes and whip pans, which are no transitions. Speed is frames per CPU second of one core, decoding and shrinking included.

Peer: PySceneDetect's own `detect()` with its own defaults on the same files; for `adaptive` and `content`, the detector of that name.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
from bench_table import Row, row, show, write
from joined_films import Film, Transition, make_film, takes

from curation.analysis.samples import scaled_size
from curation.analysis.settings import AnalyzeSettings, ShotSettings
from curation.analysis.shot_detector import ShotDetector
from curation.analysis.shots import find_shots
from curation.decode import open_source
from encoders.registry import fetch

METHODS = ("adaptive", "content", "transnetv2", "hybrid")
GOALS = {"adaptive": (0.97, 0.85), "hybrid": (0.97, 0.85)}
TOLERANCE_SECONDS = 0.1
LONGER_SECONDS = 1.0
RATES = (24, 25, 30)

Found = list[tuple[float, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short film")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=1000, help="another seed makes other films")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="more clips to join, each of them one take")
    arguments = parser.parse_args()
    logging.getLogger("pyscenedetect").setLevel(logging.ERROR)
    count, transitions = (1, 12) if arguments.quick else (5, 28)
    videos = sorted(arguments.videos.iterdir()) if arguments.videos else []
    with tempfile.TemporaryDirectory() as folder:
        material = takes(videos)
        films = [
            make_film(
                material,
                Path(folder) / f"{number}.mp4",
                seed=arguments.seed + number,
                transitions=transitions,
                gradual=0.45,
                fps=RATES[number % len(RATES)],
            )
            for number in range(count)
        ]
        rows = measure(films)
    show(rows)
    write(arguments.json, rows)
    return 0


def measure(films: Sequence[Film]) -> list[Row]:
    kinds = [one.kind for film in films for one in film.transitions]
    rows = [
        row("hard cuts", kinds.count("cut"), "in the films", goal=None, better="higher"),
        row("dissolves and fades", len(kinds) - kinds.count("cut"), "in the films", goal=None, better="higher"),
    ]
    for method in METHODS:
        hard, gradual, speed = judged(films, ours(method))
        peer = judged(films, packaged(method)) if method in ("adaptive", "content") else (None, None, None)
        goal_hard, goal_gradual = GOALS.get(method, (None, None))
        rows.append(row(f"f1_hard {method}", hard, "F1", goal=goal_hard, better="higher", peer=peer[0]))
        rows.append(row(f"f1_gradual {method}", gradual, "F1", goal=goal_gradual, better="higher", peer=peer[1]))
        rows.append(
            row(f"frames_per_second {method}", speed, "per CPU second", goal=None, better="higher", peer=peer[2])
        )
        show(rows[-3:])
    return rows


def judged(films: Sequence[Film], finder: Callable[[Film], Found]) -> tuple[float, float, float]:
    """(F1 on hard cuts, F1 on gradual ones, frames per CPU second)."""
    hits = {True: 0, False: 0}
    misses = {True: 0, False: 0}
    false, seconds = 0, 0.0
    for film in films:
        start = time.process_time()
        found = finder(film)
        seconds += time.process_time() - start
        for true in film.transitions:
            match = next((one for one in found if matches(one, true)), None)
            if match is None:
                misses[true.kind == "cut"] += 1
            else:
                hits[true.kind == "cut"] += 1
                found.remove(match)
        false += len(found)
    scores = [2 * hits[hard] / max(1, 2 * hits[hard] + misses[hard] + false) for hard in (True, False)]
    return scores[0], scores[1], sum(film.frames for film in films) / seconds


def matches(found: tuple[float, float], true: Transition) -> bool:
    start, end = found
    near = start <= true.end + TOLERANCE_SECONDS and end >= true.start - TOLERANCE_SECONDS
    return near and end - start <= true.end - true.start + LONGER_SECONDS


def ours(method: str) -> Callable[[Film], Found]:
    """The scan's own path: decode, shrink, detect."""
    settings = AnalyzeSettings(shots=ShotSettings.model_validate({"detector": method}))
    network = None
    if method in ("transnetv2", "hybrid"):
        import torch

        from encoders.transnet import TransNet

        torch.set_num_threads(1)
        fetch("scenes.transnetv2")
        network = TransNet(device="cpu")

    def find(film: Film) -> Found:
        reader = open_source(str(film.path), kind="video", fps=settings.clip_fps)
        size = scaled_size(reader.facts.height, reader.facts.width, settings.sampling.proxy_long_side, enlarge=True)
        detector = ShotDetector(settings, network)
        for frame in reader.frames():
            detector.add(frame.first_tick, frame.end_tick, *frame.picture.small(*size))
        reader.close()
        shots = find_shots(detector.finish(), settings.shots, settings.clip_fps)
        fps = settings.clip_fps
        return [(before.end / fps, after.first / fps) for before, after in itertools.pairwise(shots)]

    return find


def packaged(method: str) -> Callable[[Film], Found]:
    """PySceneDetect as its users call it."""
    from scenedetect import AdaptiveDetector, ContentDetector, detect

    def find(film: Film) -> Found:
        detector = AdaptiveDetector() if method == "adaptive" else ContentDetector()
        starts = [scene[0].seconds for scene in detect(str(film.path), detector)][1:]
        return [(start, start) for start in starts]

    return find


if __name__ == "__main__":
    cv2.setNumThreads(1)
    sys.exit(main())
