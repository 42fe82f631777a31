"""What the scores say of pictures whose truth is known: pictures enlarged by known factors, and NSFW on films without anything unsafe.

    python benchmarks/score_truth.py [--quick] [--json FILE]

`effective_resolution`: median over photographs, three enlargers; "peer" is the true ratio. `nsfw_over_limit`: share of stretches of four frames a
second apart whose score is above 0.7; "peer" is the share by the highest of the four frames.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import av
import cv2
import numpy as np
from bench_table import Row, row, show, write
from numpy.typing import NDArray
from PIL import Image

from curation.analysis.pixel_facts import effective_resolution, measure_pixels
from curation.analysis.scores import agreed_nsfw
from encoders.nsfw import NsfwScorer
from encoders.registry import fetch

PHOTOS = ("china", "chelsea", "coffee", "rocket", "astronaut", "flower")
ENLARGERS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
FILMS = ("multi_shot", "bikes", "bigbuckbunny", "carphone")
LIMIT = 0.7


def enlarged(picture: NDArray[np.uint8], ratio: float, method: int) -> NDArray[np.uint8]:
    """Made smaller by area averaging, and enlarged to its own size again."""
    height, width = picture.shape
    small = cv2.resize(picture, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=method), dtype=np.uint8)


def resolution_rows(photos: tuple[str, ...]) -> list[Row]:
    """One row per true ratio."""
    pictures = [np.array(Image.open(fetch(f"media.{name}")).convert("L")) for name in photos]
    rows = []
    for ratio in (1.0, 0.5, 0.33, 0.25):
        shown = [
            enlarged(picture, ratio, method) if ratio < 1 else picture for picture in pictures for method in ENLARGERS
        ]
        found = [effective_resolution([measure_pixels(0, picture)]) for picture in shown]
        told = [value for value in found if value is not None]
        metric = f"effective_resolution at {ratio:g}"
        rows.append(row(metric, float(np.median(told)), "share", goal=None, better="higher", peer=ratio))
    return rows


def nsfw_rows(films: tuple[str, ...]) -> list[Row]:
    """Shares over all films together."""
    scorer, highest, agreed = NsfwScorer(), [], []
    for name in films:
        with av.open(str(fetch(f"media.{name}"))) as container:
            rate = round(float(container.streams.video[0].average_rate or 24))
            frames = [
                frame.to_ndarray(format="rgb24")
                for number, frame in enumerate(container.decode(video=0))
                if number % rate == rate // 2
            ]
        scores = scorer.scores(frames)
        for start in range(0, len(scores) - 3, 4):
            highest.append(float(scores[start : start + 4].max()))
            agreed.append(agreed_nsfw(scores[start : start + 4]))
    share, peer = (float(np.mean(np.array(values) > LIMIT)) for values in (agreed, highest))
    return [
        row("nsfw_over_limit", share, "share", goal=0.05, better="lower", peer=peer),
        row("nsfw stretches", len(agreed), "stretches", goal=None, better="higher"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two photographs and the three short films")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows = resolution_rows(PHOTOS[:2] if arguments.quick else PHOTOS)
    rows += nsfw_rows(FILMS[1:] if arguments.quick else FILMS)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
