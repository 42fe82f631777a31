"""The planned loader against a raw read of the same tars and against four other loaders on the same samples.

    make bench-peers                                    # once: the other loaders, in .venv-peers
    python benchmarks/loader.py [--quick] [--json FILE]

Two sets of random arrays, as curation's packer writes them: videos (33x480x832, latents of 1.8 MB) and images (1x256x320, latents of 41 kB), each
with text states of three captions. Every side delivers the same arrays, checked by the sum of their crc32: latents stacked, the texts of a kind
one behind another, as tensors. Ours follows a plan that the planner's command made, and also checks each member's crc32, its name and the clip id;
no peer checks anything. Ours has the threads that `PlannedLoader` takes by default (two that read, one that makes batches) besides the consumer.
Each peer is run with `num_workers` 0, 1 and 2, as there are two cores, and the best counts, for each set and kind of cache anew; at 0 it reads
while the consumer waits, which costs nothing here, where the consumer does nothing else. What the peers are asked: `peers.py`.

"Cold": each side empties the page cache of its files (posix_fadvise) before each timing. "Hot": they were just read. A peer's clock runs from its
first batch to its last, and the first one's samples are not counted; ours starts when it begins to read and counts all, so that reading ahead is no
head start. `startup_s` is the time to the first batch, opening included. Rounds go through all sides in turn; the fastest round of each counts.
Processes are started, and packages imported, before.

`raw_read_ratio`: bytes of the tars per second by ours, headers and padding included, over a plain read of the same files (`preadv` of 4 MiB into one
buffer again and again, the kernel told that it is sequential), by one thread or two, whichever is faster. `raw_over_webdataset`: what that plain read
would be as a speedup; no loader can have more where the disk is what everybody waits for. `samples_per_s`: peer as named. `wait_p99_ms`: what a
consumer with steps of 50 ms waits for its next step (two videos), as `LoadedStep.wait_ms` says and the training loop logs; `next_p99_ms`: by the
consumer's clock, letting go of the last step included; peer: webdataset with 1 or 2 workers, whichever waits less. The consumer sleeps as behind a
GPU, or keeps a core busy, and a process beside it empties the page cache twice a second. `seek_ratio`: seconds from opening to the
first batch at step 100,000 of a plan of one image a step over those at step 10; peer: webdataset, which has to read again what it skips.
`seek_ratio of mosaicml_streaming`: with its state loaded. Bytes are those that the process asked the kernel for, its tables included.
`--quick`: a twelfth of the clips, one round, 40 steps, step 10,000, fewer numbers of workers. Without the peers' environment: our own rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from bench_table import Row, row, show, write
from loader_clock import cool, raw_seconds
from loader_sets import LoaderSet, build_plan, index_for_energon, pack

from schemas.buckets import Bucket
from schemas.command import say

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
PEERS = {"webdataset": 4.0, "mosaicml_streaming": 1.0, "litdata": 1.0, "energon": 1.0}
"""Peer to the speedup asked of us."""
STEP_S = 0.05
NEAR_STEP = 10
LANES = 2
RAW_THREADS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Full or quick."""

    videos: int
    images: int
    rounds: int
    wait_steps: int
    far_step: int
    workers: tuple[int, ...]
    """Of peers, tried for throughput."""
    waiting_workers: tuple[int, ...]
    """Of webdataset, tried for waits; 0 would read only when asked."""

    def set_of(self, kind: str) -> LoaderSet:
        """What is packed."""
        if kind == "videos":
            shape = {"bucket": Bucket(33, 480, 832), "batch_clips": 4}
        else:
            shape = {"bucket": Bucket(1, 256, 320), "batch_clips": 32}
        clips = self.videos if kind == "videos" else self.images
        return LoaderSet(name=kind, clips=clips, clips_per_shard=clips // 8, **shape)


FULL = Scale(
    videos=960,
    images=12288,
    rounds=6,
    wait_steps=400,
    far_step=100_000,
    workers=(0, 1, 2),
    waiting_workers=(1, 2),
)
QUICK = Scale(videos=64, images=1024, rounds=1, wait_steps=40, far_step=10_000, workers=(0, 2), waiting_workers=(2,))
RAW_GOAL = {"videos": 0.8, "images": 0.5}


class Side:
    """A process that answers requests (`loader_clock.serve`)."""

    def __init__(self, name: str, command: Sequence[object], folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": paths, "LITDATA_DISABLE_VERSION_CHECK": "1"},
            )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer; SystemExit with the end of the side's own log when it has none."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended in {do} {arguments}:\n{self._log.read_text(encoding='utf-8')[-4000:]}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A packed set with its plan, and who is there to read it."""

    what: LoaderSet
    folder: Path
    python: Path | None
    """Of the peers; None: they are not there."""

    @property
    def samples(self) -> Path:
        """The set."""
        return self.folder / self.what.name

    @property
    def tars(self) -> list[str]:
        """Its tars."""
        return [str(path) for path in sorted(self.samples.glob("*.tar"))]

    def ours(self) -> Side:
        """A fresh process of ours."""
        return Side("ours", [sys.executable, HERE / "loader_ours.py"], self.folder)

    def peer(self, name: str, batch_clips: int) -> Side:
        """A fresh process of a peer."""
        assert self.python is not None
        own = self.folder / name
        command = [self.python, HERE / "peers.py", name, self.samples, own, "--batch", batch_clips]
        return Side(name, command, self.folder)

    def plan(self, name: str, **settings: Any) -> dict[str, str]:
        """A plan of the set, as ours takes it."""
        plan = build_plan(self.samples, self.folder / name, self.what, **settings)
        return {"plan": str(plan), "samples": str(self.samples)}


def throughput_rows(bench: Bench, scale: Scale) -> list[Row]:
    """Ours against the raw read and each peer, cold and hot."""
    kind, batch_clips = bench.what.name, bench.what.batch_clips
    place = bench.plan("plan", lanes=LANES, batch_clips=batch_clips // LANES)
    total_bytes = sum(os.path.getsize(tar) for tar in bench.tars)
    with ExitStack() as stack:
        ours = stack.enter_context(bench.ours())
        expected = ours.ask("digest", **place)
        names = PEERS if bench.python else ()
        peers = {name: stack.enter_context(bench.peer(name, batch_clips)) for name in names}
        for name, side in peers.items():
            say(f"{kind}: {name} prepares")
            side.ask("write")
            if (found := side.ask("digest")) != expected:
                raise SystemExit(f"{name} delivers other arrays of {kind} than ours: {found}, expected {expected}")
        os.sync()  # what was prepared is on the disk, and is not written while someone reads
        rows = []
        for cold in (True, False):
            say(f"{kind}: {'cold' if cold else 'hot'}")
            tried = {name: _tried(side, scale, cold=cold) for name, side in peers.items()}
            rates, startup, best = _rounds(bench, ours, place, peers, tried, cold=cold, rounds=scale.rounds)
            label = f"{kind}, {'cold' if cold else 'hot'}"
            gb = rates["ours"] * total_bytes / bench.what.clips / 1e9
            goal = RAW_GOAL[kind] if cold else None
            rows += [
                row(f"raw_read_ratio {label}", gb / rates["raw"], "ratio", goal=goal, better="higher"),
                row(f"read_gb_per_s {label}", gb, "GB/s", goal=None, better="higher", peer=rates["raw"]),
            ]
            if "webdataset" in rates:
                ceiling = rates["raw"] * 1e9 / total_bytes * bench.what.clips / rates["webdataset"]
                rows.append(row(f"raw_over_webdataset {label}", ceiling, "times", goal=None, better="higher"))
            for name, wanted in PEERS.items() if peers else ():
                speedup = rates["ours"] / rates[name]
                rows.append(row(f"speedup_vs_{name} {label}", speedup, "times", goal=wanted, better="higher"))
                unit = f"peer: {best[name]} workers"
                rows += [
                    row(
                        f"samples_per_s vs {name} {label}",
                        rates["ours"],
                        f"samples/s, {unit}",
                        goal=None,
                        better="higher",
                        peer=rates[name],
                    ),
                    row(
                        f"startup_s vs {name} {label}",
                        startup["ours"],
                        f"s, {unit}",
                        goal=None,
                        better="lower",
                        peer=startup[name],
                    ),
                ]
    return rows


def _tried(side: Side, scale: Scale, *, cold: bool) -> dict[int, dict[str, float]]:
    """The fastest answer of a peer with each number of workers, in two trials (quick: one)."""
    found: dict[int, dict[str, float]] = {}
    for _ in range(min(2, scale.rounds)):
        for workers in scale.workers:
            answer = side.ask("read", cold=cold, workers=workers)
            if workers not in found or _rate(answer) > _rate(found[workers]):
                found[workers] = answer
    return found


def _raw(bench: Bench, threads: int, *, cold: bool) -> float:
    """One plain read of the tars, GB/s."""
    if cold:
        cool(bench.tars)
    return sum(os.path.getsize(tar) for tar in bench.tars) / raw_seconds(bench.tars, threads) / 1e9


def _rate(answer: dict[str, float]) -> float:
    return answer["samples"] / answer["seconds"]


def _rounds(
    bench: Bench,
    ours: Side,
    place: dict[str, str],
    peers: dict[str, Side],
    tried: dict[str, dict[int, dict[str, float]]],
    *,
    cold: bool,
    rounds: int,
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Best rate (samples/s; raw: GB/s), shortest start-up and number of workers of each side; trials count as further rounds."""
    raw = {threads: max(_raw(bench, threads, cold=cold) for _ in range(min(2, rounds))) for threads in RAW_THREADS}
    threads = max(raw, key=lambda count: raw[count])
    workers = {name: max(answers, key=lambda count: _rate(answers[count])) for name, answers in tried.items()}
    rates = {"raw": raw[threads], "ours": 0.0} | {name: _rate(tried[name][workers[name]]) for name in tried}
    startup = {"ours": np.inf} | {name: tried[name][workers[name]]["startup_s"] for name in tried}
    for _ in range(rounds):
        rates["raw"] = max(rates["raw"], _raw(bench, threads, cold=cold))
        answers = {"ours": ours.ask("read", cold=cold, **place)}
        answers |= {name: side.ask("read", cold=cold, workers=workers[name]) for name, side in peers.items()}
        for name, answer in answers.items():
            rates[name] = max(rates[name], _rate(answer))
            startup[name] = min(startup[name], answer["startup_s"])
    return rates, startup, workers


def wait_rows(bench: Bench, scale: Scale) -> list[Row]:
    """Waits of a consumer with steps of 50 ms on the videos."""
    epochs = -(-(scale.wait_steps + 2) * LANES // bench.what.clips)
    place = bench.plan("wait-plan", lanes=LANES, batch_clips=1, epochs=epochs)
    rows = []
    with ExitStack() as stack:
        ours = stack.enter_context(bench.ours())
        peer = stack.enter_context(bench.peer("webdataset", LANES)) if bench.python else None
        stack.enter_context(_kept_cool(bench.tars))
        for busy in (False, True):
            label = f"{'computing' if busy else 'sleeping'}, cold"
            say(f"waits: {label}")
            asked = {"steps": scale.wait_steps, "step_s": STEP_S, "busy": busy}
            mine = {name: np.array(found) for name, found in ours.ask("waits", **place, **asked).items()}
            theirs, unit = None, "ms"
            if peer is not None:
                found = {
                    workers: np.array(peer.ask("waits", workers=workers, epochs=epochs, **asked))
                    for workers in scale.waiting_workers
                }
                best = min(found, key=lambda workers: np.percentile(found[workers], 99))
                theirs, unit = found[best], f"ms, peer: {best} workers"
            for name, point in (("p50", 50.0), ("p99", 99.0), ("max", 100.0)):
                told, value = (float(np.percentile(mine[key], point)) for key in ("told", "next"))
                other = None if theirs is None else float(np.percentile(theirs, point))
                goal = 1.0 if name == "p99" else None
                rows.append(row(f"wait_{name}_ms {label}", told, "ms", goal=goal, better="lower"))
                rows.append(row(f"next_{name}_ms {label}", value, unit, goal=goal, better="lower", peer=other))
            rows.append(row(f"wait_steps {label}", len(mine["next"]), "steps", goal=None, better="higher"))
    return rows


@contextmanager
def _kept_cool(tars: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, HERE / "loader_clock.py", "0.5", *tars])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seek_rows(bench: Bench, scale: Scale) -> list[Row]:
    """Starting at step 10 and far behind, on the images, one clip a step."""
    epochs = -(-(scale.far_step + 10) // bench.what.clips)
    place = bench.plan("long-plan", lanes=1, batch_clips=1, epochs=epochs)
    steps = (NEAR_STEP, scale.far_step)

    def measured(name: str, turns: int) -> dict[int, dict[str, float]]:
        """The fastest of some turns at each step."""
        found: dict[int, list[dict[str, float]]] = {step: [] for step in steps}
        with bench.ours() if name == "ours" else bench.peer(name, 1) as side:
            for step in [*steps] * turns:
                found[step].append(side.ask("seek", step=step, **(place if name == "ours" else {})))
        return {step: min(answers, key=lambda answer: answer["seconds"]) for step, answers in found.items()}

    say("seek: ours")
    near, far = measured("ours", scale.rounds).values()
    theirs = None
    rows = []
    if bench.python:
        say("seek: webdataset, mosaicml_streaming")
        theirs = list(measured("webdataset", 1).values())
        state = list(measured("mosaicml_streaming", scale.rounds).values())
        ratio = state[1]["seconds"] / state[0]["seconds"]
        rows.append(row("seek_ratio of mosaicml_streaming", ratio, "ratio", goal=None, better="lower"))
    peer = theirs and theirs[1]["seconds"] / theirs[0]["seconds"]
    rows.insert(0, row("seek_ratio", far["seconds"] / near["seconds"], "ratio", goal=1.25, better="lower", peer=peer))
    for index, (step, answer) in enumerate(zip(steps, (near, far), strict=True)):
        for name, key, unit in (
            ("seek_s", "seconds", "s"),
            ("seek_bytes", "bytes", "bytes"),
            ("seek_tars", "opened", "tars"),
        ):
            other = theirs and theirs[index][key]
            rows.append(row(f"{name} step {step:,}", answer[key], unit, goal=None, better="lower", peer=other))
    return rows


def measured(scale: Scale, folder: Path, python: Path | None) -> list[Row]:
    """All rows; one set is on the disk at a time."""
    rows: list[Row] = []
    for kind in ("videos", "images"):
        bench = Bench(what=scale.set_of(kind), folder=folder / kind, python=python)
        bench.folder.mkdir()
        pack(bench.samples, bench.what)
        index_for_energon(bench.samples)
        rows += throughput_rows(bench, scale)
        rows += wait_rows(bench, scale) if kind == "videos" else seek_rows(bench, scale)
        shutil.rmtree(bench.folder)
    return rows


def main() -> None:
    """Pack, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: less data, one round")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="Python of the peers' environment")
    options = parser.parse_args()
    python: Path | None = options.peers_python
    if not options.peers_python.exists():
        say(f"no peers: {options.peers_python} is not there; run `make bench-peers`. Our own rows follow.")
        python = None
    with tempfile.TemporaryDirectory(prefix="loader-bench-") as name:
        rows = measured(QUICK if options.quick else FULL, Path(name), python)
    show(rows)
    write(options.json, rows)


if __name__ == "__main__":
    main()
