"""How well copies are found: planted copies of real clips and photographs, with real SSCD descriptors, ours against the paper's rule.

    python benchmarks/copies_quick.py [--quick] [--json FILE] [--videos FOLDER]

Each source is cut into clips as if it were one take, once as it is and once changed (re-encoded, cropped, rescaled, with bars, with an overlay,
trimmed, at another frame rate). A pair of an original and a changed clip is a copy when they share at least half of their time; a sibling when
they are of the same film but share none; else of different films. Peer: one descriptor per clip, of its 10th frame, and a cosine above 0.9
(the Motif-Video report). Both see the same descriptors. Media come from the registry; the SSCD weights must have been pulled.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.decode import open_source
from curation.match import MatchSettings, match_clips
from encoders.copy_descriptor import CopyDescriptor
from encoders.registry import fetch, local_path
from schemas.ids import clip_id, fingerprint
from schemas.tables import DESCRIPTORS

FPS = 24
MOST_SECONDS = 16
SAMPLE_EVERY_TICKS = 8
PEER_COSINE = 0.9
FILMS = ("media.bigbuckbunny", "media.bikes", "media.carphone", "media.multi_shot")
PHOTOGRAPHS = (
    "china",
    "flower",
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "camera",
    "motorcycle_left",
    "brick",
    "grass",
)
IMAGE_LIMITS = (0.6, 0.7, 0.75, 0.8, 0.9)


def _cropped(area_ratio: float) -> Callable[[Any], Any]:
    side = area_ratio**0.5
    return lambda stream: stream.filter("crop", f"trunc(iw*{side}/2)*2", f"trunc(ih*{side}/2)*2")


def _scaled(ratio: float) -> Callable[[Any], Any]:
    return lambda stream: stream.filter("scale", f"trunc(iw*{ratio}/2)*2", f"trunc(ih*{ratio}/2)*2")


def _bars(stream: Any) -> Any:
    return stream.filter("pad", "iw", "trunc(ih*1.3/2)*2", 0, "(oh-ih)/2")


def _overlay(stream: Any) -> Any:
    return stream.filter("drawbox", y="ih*0.85", h="ih*0.15", w="iw", color="red", t="fill")


@dataclass(frozen=True)
class Change:
    """What is done to a file: a filter graph, the quality of the re-encode, seconds cut from the start, another frame rate."""

    apply: Callable[[Any], Any] = lambda stream: stream
    crf: int = 26
    skip_s: float = 0.0
    fps: int | None = None


CHANGES = {
    "re-encoded": Change(crf=34),
    "cropped by 10 %": Change(_cropped(0.9)),
    "cropped by 20 %": Change(_cropped(0.8)),
    "cropped by 30 %": Change(_cropped(0.7)),
    "half the size": Change(_scaled(0.5), crf=28),
    "bars above and below": Change(_bars),
    "crop + rescale + re-encode": Change(lambda stream: _scaled(0.7)(_cropped(0.85)(stream)), crf=32),
    "brighter": Change(lambda stream: stream.filter("eq", brightness=0.08, saturation=1.4, contrast=1.1)),
    "overlay on 15 %": Change(_overlay),
    "trimmed by 0.7 s": Change(skip_s=0.7, crf=28),
    "15 frames a second": Change(fps=15, crf=28),
}
QUICK = ("cropped by 20 %", "bars above and below", "crop + rescale + re-encode", "trimmed by 0.7 s")


@dataclass(frozen=True)
class Window:
    """One clip: of which film, changed or not, from when to when on the film's own clock, and its descriptors by time."""

    film: str
    version: str
    start_s: float
    end_s: float
    shift_s: float
    times_us: list[int]
    vectors: NDArray[np.float16]
    tenth: NDArray[np.float16]


def changed_copy(path: Path, change: Change, folder: Path, suffix: str) -> Path:
    """The file with the change applied, encoded again."""
    import ffmpeg
    import imageio_ffmpeg

    target = folder / f"copy{suffix}"
    seek = {"ss": change.skip_s} if change.skip_s else {}  # a seek to 0 in a photograph leaves no picture at all
    stream = change.apply(ffmpeg.input(str(path), **seek).video)
    options: dict[str, Any] = (
        {"crf": change.crf, "preset": "veryfast", "t": MOST_SECONDS} if suffix == ".mp4" else {"q": 6}
    )
    if change.fps:
        options["r"] = change.fps
    command = stream.output(str(target), **options).overwrite_output()
    command.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True)
    return target


def sampled(path: Path, kind: str) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """Frames by tick, and the number of ticks."""
    reader = open_source(str(path), kind=kind, fps=FPS)
    frames: dict[int, NDArray[np.uint8]] = {}
    end = 0
    scale = min(1.0, 640 / max(reader.facts.height, reader.facts.width))
    size = (round(reader.facts.height * scale), round(reader.facts.width * scale))
    for frame in reader.frames():
        end = frame.end_tick
        for tick in range(frame.first_tick, min(end, MOST_SECONDS * FPS)):
            if tick % SAMPLE_EVERY_TICKS == 0 or tick == 9:
                frames[tick] = frame.picture.rgb(*size)
    reader.close()
    return frames, min(end, MOST_SECONDS * FPS)


def windows_of(
    film: str, version: str, path: Path, lengths: tuple[int, ...], shift_s: float, model: CopyDescriptor
) -> list[Window]:
    """Non-overlapping clips of a film with about one descriptor a second, at least two."""
    frames, ticks = sampled(path, "video")
    made = []
    start = 0
    while fitting := [length for length in lengths if start + length <= ticks]:
        inside = [
            tick for tick in sorted(frames) if start <= tick < start + fitting[0] and tick % SAMPLE_EVERY_TICKS == 0
        ]
        places = np.linspace(0, len(inside) - 1, max(2, round(fitting[0] / FPS))).round().astype(int)
        chosen = [inside[place] for place in places]
        vectors = model.describe([frames[tick] for tick in chosen])
        near_tenth = min(frames, key=lambda tick: abs(tick - start - 9))
        tenth = model.describe([frames[near_tenth]])[0]
        times = [(tick - start) * 1_000_000 // FPS for tick in chosen]
        made.append(Window(film, version, start / FPS, (start + fitting[0]) / FPS, shift_s, times, vectors, tenth))
        start += fitting[0]
    return made


def truth(first: Window, second: Window) -> str:
    """copy, sibling, other, or unclear (they share less than half of their time)."""
    if first.film != second.film:
        return "other"
    starts = [window.start_s + window.shift_s for window in (first, second)]
    ends = [window.end_s + window.shift_s for window in (first, second)]
    shared = min(ends) - max(starts)
    shortest = min(window.end_s - window.start_s for window in (first, second))
    return "copy" if shared >= shortest / 2 else "sibling" if shared <= 0 else "unclear"


def judged_copies(windows: list[Window], settings: MatchSettings) -> set[tuple[int, int]]:
    """Index pairs that `match_clips` verifies."""
    ids, clips, rows = [], [], []
    for window in windows:
        source = fingerprint([window.film, window.version], length=64)
        start_us, end_us = round(window.start_s * 1e6), round(window.end_s * 1e6)
        ids.append(clip_id(source, start_us, end_us))
        clips.append(
            {"clip_id": ids[-1], "content_hash": source, "kind": "video", "start_us": start_us, "end_us": end_us}
        )
        rows += [(ids[-1], time, vector) for time, vector in zip(window.times_us, window.vectors, strict=True)]
    descriptors = pa.table(
        {
            "clip_id": [row[0] for row in rows],
            "time_us": [row[1] for row in rows],
            "descriptor": pa.array([row[2] for row in rows]).cast(DESCRIPTORS.field("descriptor").type),
            "model": ["sscd"] * len(rows),
        }
    ).cast(DESCRIPTORS)
    place = {name: index for index, name in enumerate(ids)}
    pairs = match_clips(descriptors, pa.Table.from_pylist(clips), settings).to_pylist()
    return {tuple(sorted((place[pair["clip_a"]], place[pair["clip_b"]]))) for pair in pairs if pair["verified"]}  # type: ignore[misc]


def peer_copies(windows: list[Window]) -> set[tuple[int, int]]:
    """Index pairs whose 10th frames have a cosine above 0.9."""
    tenth = np.stack([window.tenth for window in windows]).astype(np.float32)
    first, second = np.nonzero(np.triu(tenth @ tenth.T > PEER_COSINE, k=1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def counts(windows: list[Window], judged: set[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Per kind of truth: pairs called copies, and all pairs, of an original and a changed clip."""
    result = {kind: [0, 0] for kind in ("copy", "sibling", "other", "unclear")}
    for first in range(len(windows)):
        for second in range(first + 1, len(windows)):
            if (windows[first].version == "") == (windows[second].version == ""):
                continue
            entry = result[truth(windows[first], windows[second])]
            entry[0] += (first, second) in judged
            entry[1] += 1
    return {kind: (found, total) for kind, (found, total) in result.items()}


def films_table(names: list[str], films: dict[str, Path], model: CopyDescriptor, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for label, lengths in (("longest", (121, 65, 33)), ("33", (33,))):
        originals = [w for film, path in films.items() for w in windows_of(film, "", path, lengths, 0.0, model)]
        totals: dict[str, list[int]] = {}
        for name in names:
            change = CHANGES[name]
            copies = []
            for film, path in films.items():
                copy = changed_copy(path, change, folder, ".mp4")
                copies += windows_of(film, name, copy, lengths, change.skip_s, model)
            ours = counts(originals + copies, judged_copies(originals + copies, MatchSettings()))
            lone = counts(originals + copies, judged_copies(originals + copies, MatchSettings(sibling_margin=0.99)))
            peer = counts(originals + copies, peer_copies(originals + copies))
            line = [*ours["copy"], peer["copy"][0], *ours["sibling"], lone["sibling"][0], peer["sibling"][0]]
            line += [*ours["other"], peer["other"][0]]
            print(f"{label:8} {name:27}" + _line(line))
            for key, values in ("all changes", line), (name, line):
                totals[key] = [a + b for a, b in zip(totals.get(key, [0] * len(line)), values, strict=True)]
        print(f"{label:8} {'all changes':27}" + _line(totals["all changes"]))
        total = totals["all changes"]
        rows += [
            _row(f"copies found, clips {label}", total[0] / total[1], 0.85, "higher", total[2] / total[1]),
            _row(f"siblings taken for copies, clips {label}", total[3] / total[4], 0.02, "lower", total[6] / total[4]),
            _row(
                f"other films taken for copies, clips {label}", total[7] / total[8], 0.0, "lower", total[9] / total[8]
            ),
        ]
    return rows


def _line(line: list[int]) -> str:
    found, copies, peer, siblings, all_siblings, lone, peer_siblings, others, all_others, peer_others = line
    return (
        f" copies {found:3} of {copies:3} (paper {peer:3})   siblings {siblings:2} of {all_siblings:4}"
        f" (without the sibling rule {lone:3}, paper {peer_siblings:3})   others {others} of {all_others} (paper {peer_others})"
    )


def _row(metric: str, value: float, goal: float, better: str, peer: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "unit": "share", "goal": goal, "better": better, "peer": peer}


def photographs_table(names: list[str], model: CopyDescriptor, folder: Path) -> list[dict[str, Any]]:
    """Recall at several limits over changed photographs, and the highest cosine of two different ones."""
    usable = [name for name in names if not CHANGES[name].skip_s and not CHANGES[name].fps]
    paths = {name: fetch(f"media.{name}") for name in PHOTOGRAPHS}
    originals = np.concatenate([model.describe([_photograph(path)]) for path in paths.values()]).astype(np.float32)
    same, different = [], []
    for change in usable:
        vectors = []
        for path in paths.values():
            copy = changed_copy(path, CHANGES[change], folder, ".jpg")
            vectors.append(model.describe([_photograph(copy)])[0])
        cosine = originals @ np.stack(vectors).astype(np.float32).T
        same += np.diag(cosine).tolist()
        different += cosine[~np.eye(len(paths), dtype=bool)].tolist()
    print(
        f"\nphotographs: {len(same)} copies (lowest cosine {min(same):.2f}), {len(different)} pairs of different ones"
    )
    for limit in IMAGE_LIMITS:
        recall, wrong = np.mean(np.array(same) >= limit), int(np.sum(np.array(different) >= limit))
        print(f"  limit {limit:.2f}: {recall:6.1%} of the copies found, {wrong} different pairs taken for copies")
    print(f"  highest cosine of two different photographs {max(different):.2f}")
    limit = MatchSettings().single_frame_cosine
    value, peer = float(np.mean(np.array(same) >= limit)), float(np.mean(np.array(same) > PEER_COSINE))
    return [_row("copies found, photographs", value, 0.95, "higher", peer)]


def _photograph(path: Path) -> NDArray[np.uint8]:
    frames, _ = sampled(path, "image")
    return frames[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="four changes instead of eleven, two films instead of four"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--videos", type=Path, help="folder of further films (.mp4)")
    arguments = parser.parse_args()
    local_path("copies.sscd")
    model = CopyDescriptor()
    films = {name: fetch(name) for name in (FILMS[:2] if arguments.quick else FILMS)}
    if arguments.videos:
        films |= {path.stem: path for path in sorted(arguments.videos.glob("*.mp4"))}
    names = list(QUICK if arguments.quick else CHANGES)
    with tempfile.TemporaryDirectory() as folder:
        rows = films_table(names, films, model, Path(folder))
        rows += photographs_table(names, model, Path(folder))
    if arguments.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        machine = f"{platform.machine()} {platform.system()} {platform.python_version()}"
        arguments.json.write_text(json.dumps({"commit": commit, "machine": machine, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
