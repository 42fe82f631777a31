"""Captions by a server: many requests in flight against one at a time, and whether every answer lands on its clip.

    python benchmarks/captions.py [--quick] [--json FILE]

A local server (tests/caption_server.py) takes 2 s on average for an answer, from 1 to 3 s by clip, so that answers come in another order than
the requests. Each answer holds a word computed from the pictures of its request, which is compared with the pictures of the clip. Sources are
pictures made here, one clip each. Start-up is measured with no clip and taken from both sides. The peer is the same client with one request
in flight.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_table import Row, row, show, write
from PIL import Image

from curation.captioning.frames import clip_frames
from curation.captioning.settings import ServerSettings
from curation.captioning.worker import CaptionSource, caption_sources
from schemas.tables import LABELS, read_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from caption_server import CaptionServer, caption_server, picture_word

IN_FLIGHT = 32
SECONDS = (1.0, 3.0)


def made_sources(count: int, folder: Path) -> list[CaptionSource]:
    """Different pictures of 640 x 360, one clip each."""
    sources = []
    for number in range(count):
        path = folder / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (9, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 360), Image.Resampling.BICUBIC).save(path)
        clip = {"clip_id": f"{number:024x}", "kind": "image", "start_us": 0, "frames": 1, "clip_fps": 24.0}
        crop = {"top": 0, "left": 0, "bottom": 360, "right": 640}
        sources.append(CaptionSource(f"{number:05}", str(path), [{**clip, "crop": crop}]))
    return sources


def seconds_of(sources: list[CaptionSource], settings: ServerSettings, folder: Path) -> float:
    """Seconds from the first picture decoded to the last source written."""
    start = time.perf_counter()
    caption_sources(sources, settings, "none", folder)
    return time.perf_counter() - start


def matched_share(sources: list[CaptionSource], settings: ServerSettings, folder: Path) -> float:
    """Share of the clips whose caption holds the word of their own pictures."""
    matched = 0
    for source in sources:
        (label,) = read_table(folder / source.unit / "labels.parquet", LABELS).to_pylist()
        (shown,) = clip_frames(source.path, source.rows, settings)
        matched += label["clip_id"] == shown.clip_id and picture_word(shown.jpegs) in label["caption_long"]
    return matched / len(sources)


def measure(server: CaptionServer, many: int, few: int, folder: Path) -> list[Row]:
    """Both sides against the same server."""
    server.delay = lambda clip_id: SECONDS[0] + (SECONDS[1] - SECONDS[0]) * (int(clip_id, 16) * 7 % 11) / 10
    both = {
        count: ServerSettings(base_url=server.url, model=server.model, max_in_flight=count) for count in (1, IN_FLIGHT)
    }
    sources = made_sources(many, folder)
    start_up = seconds_of([], both[1], folder)
    alone = (seconds_of(made_sources(few, folder), both[1], folder / "alone") - start_up) / few
    server.answered.clear()
    together = (seconds_of(sources, both[IN_FLIGHT], folder / "together") - start_up) / many
    moved = sum(clip != source.rows[0]["clip_id"] for clip, source in zip(server.answered, sources, strict=True))
    return [
        row("clips_per_second", 1 / together, "clips per second", goal=None, better="higher", peer=1 / alone),
        row("in_flight_speedup", alone / together, "x", goal=0.5 * IN_FLIGHT, better="higher"),
        row("most_in_flight", server.most_in_flight, "requests", goal=IN_FLIGHT, better="higher"),
        row("answered_out_of_order_share", moved / many, "share", goal=None, better="higher"),
        row(
            "answers_matched_share",
            matched_share(sources, both[1], folder / "together"),
            "share",
            goal=1.0,
            better="higher",
        ),
        row("start_up", start_up, "s", goal=None, better="lower"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer clips")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    many, few = (96, 5) if arguments.quick else (192, 11)
    with tempfile.TemporaryDirectory() as folder, caption_server() as server:
        rows = measure(server, many, few, Path(folder))
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
