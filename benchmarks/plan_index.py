"""Indexing foreign tars: samples per second and bytes read, against `tarfile` and the webdataset package on the same tars.

    python benchmarks/plan_index.py [--quick] [--json FILE]

The tars are made here: 250 clips each with a latent of 0.1 to 1.3 MB, text states and a `.json`. Data that no index needs are holes in the file, so
that the run takes no disk; webdataset reads through them, which costs it less than real data would. Both peers learn what ours learns: the
key, the place and the size of each clip, from its `.json`; ours writes the set besides. Ours is run with one worker, as the peers are (the fastest of
three turns counts), and on ten times as many tars (hard links) as it comes, with a process per core once that pays. Everything is in the page cache.
A second run with nothing changed, and one with one tar changed, show what bringing a set up to date costs.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_table import Row, row, show, write

from planner.indexing.indexer import IndexOutcome, index_set
from planner.indexing.rules import IndexRules

CLIPS = 250
CHANNELS = 16
LINKS = 10
TURNS = 3
"""Runs of each side, in turns; the fastest counts, as the machine may have other work."""
SIZES = ((33, 256, 144), (65, 256, 144), (121, 256, 144), (121, 144, 256))
RULES = IndexRules(set_name="foreign")


def made_tar(path: Path, number: int) -> None:
    """A tar whose latents are holes behind their `.npy` header."""
    rng = np.random.default_rng([5, number])
    with path.open("wb") as stream:
        for clip in range(CLIPS):
            frames, height, width = SIZES[rng.integers(len(SIZES))]
            shape = ((frames - 1) // 4 + 1, CHANNELS, height // 8, width // 8)
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f2", "fortran_order": False, "shape": shape})
            record = {"frames": frames, "height": height, "width": width, "caption": "a clip " * 30}
            members = {
                "latent.npy": (head.getvalue(), len(head.getvalue()) + 2 * int(np.prod(shape))),
                "text.npy": (b"", 768 * int(rng.integers(20, 200))),
                "json": (json.dumps(record).encode(), 0),
            }
            for suffix, (data, length) in members.items():
                info = tarfile.TarInfo(f"{number:05d}-{clip:06d}.{suffix}")
                info.size = max(length, len(data))
                stream.write(info.tobuf(tarfile.GNU_FORMAT) + data)
                stream.seek(info.size - len(data) + -info.size % 512, os.SEEK_CUR)
        stream.write(bytes(1024))


def by_tarfile(tars: list[Path]) -> int:
    """Keys, places and sizes by the standard library."""
    found = 0
    for path in tars:
        samples: dict[str, tuple[int, ...]] = {}
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                key, _, suffix = info.name.partition(".")
                if suffix == "json":
                    stream = archive.extractfile(info)
                    assert stream is not None
                    record = json.load(stream)
                    samples[key] = (info.offset, record["frames"], record["height"], record["width"])
        found += len(samples)
    return found


def by_webdataset(tars: list[Path]) -> int:
    """The same by iterating over the set."""
    import webdataset  # not by the processes that ours starts, which import this file: it brings torch

    found = 0
    for sample in webdataset.WebDataset([str(path) for path in tars], shardshuffle=False):
        found += len(json.loads(sample["json"])) > 0
    return found


def seconds(call: Callable[[], int], expected: int) -> float:
    """Of one run that must find every clip."""
    start = time.perf_counter()
    found = call()
    assert found == expected, f"{found} of {expected} clips"
    return time.perf_counter() - start


def measured(num_tars: int, folder: Path) -> list[Row]:
    """All rows, of `num_tars` tars."""
    tars = [folder / "tars" / f"{number:05d}.tar" for number in range(num_tars)]
    tars[0].parent.mkdir()
    for number, path in enumerate(tars):
        made_tar(path, number)
    clips, total = num_tars * CLIPS, sum(path.stat().st_size for path in tars)
    outcomes: list[IndexOutcome] = []

    def ours(source: str, output: str, workers: int | None, *, afresh: bool = True) -> int:
        if afresh:
            shutil.rmtree(folder / output, ignore_errors=True)
        outcome = index_set(
            [str(folder / source)], folder / output, RULES, workers=workers, keys_per_tar=source == "links"
        )
        outcomes.append(outcome)
        return outcome.report.kept

    index_set([str(tars[0])], folder / "warm", RULES)
    turns = [
        (seconds(lambda: ours("tars", "set", 1), clips), seconds(lambda: by_tarfile(tars), clips)) for _ in range(TURNS)
    ]
    single, peer_tarfile = (min(times) for times in zip(*turns, strict=True))
    peer_webdataset = seconds(lambda: by_webdataset(tars), clips)
    unchanged = seconds(lambda: ours("tars", "set", None, afresh=False), clips)
    os.utime(tars[num_tars // 2])
    one_changed = seconds(lambda: ours("tars", "set", None, afresh=False), clips)
    first, nothing, one = outcomes[0], outcomes[-2], outcomes[-1]
    assert [first.tars_read, nothing.tars_read, one.tars_read] == [num_tars, 0, 1]

    links = folder / "links"
    links.mkdir()
    for number in range(num_tars * LINKS):
        os.link(tars[number % num_tars], links / f"{number:05d}.tar")
    many = seconds(lambda: ours("links", "many", None), clips * LINKS)
    headers = 3 * clips
    return [
        row(
            "index_samples_per_s one worker",
            clips / single,
            "clips/s",
            goal=None,
            better="higher",
            peer=clips / peer_tarfile,
        ),
        row(
            f"index_samples_per_s {num_tars * LINKS} tars, as it comes",
            clips * LINKS / many,
            "clips/s",
            goal=None,
            better="higher",
        ),
        row("index_speedup over tarfile, one worker", peer_tarfile / single, "times", goal=1.5, better="higher"),
        row("index_speedup over webdataset, one worker", peer_webdataset / single, "times", goal=5.0, better="higher"),
        row("index_bytes_read_share", first.bytes_read / total, "of the bytes", goal=0.05, better="lower", peer=1.0),
        row("index_bytes_per_header", first.bytes_read / headers, "bytes", goal=None, better="lower"),
        row("index_ranges_per_header", first.requests / headers, "ranges", goal=1.0, better="lower"),
        row("second_run_s nothing changed", unchanged, "s", goal=None, better="lower", peer=single),
        row("second_run_bytes nothing changed", nothing.bytes_read, "bytes", goal=0.0, better="lower"),
        row("second_run_s one tar changed", one_changed, "s", goal=None, better="lower", peer=single),
        row(
            "second_run_bytes one tar changed",
            one.bytes_read / first.bytes_read,
            "of the first run",
            goal=2 / num_tars,
            better="lower",
        ),
    ]


def main() -> None:
    """Make tars, index them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 tars instead of 128")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
    folder = Path(tempfile.mkdtemp(prefix="plan-index-"))
    try:
        rows = measured(24 if arguments.quick else 128, folder)
    finally:
        shutil.rmtree(folder)
    show(rows)
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
