"""How many burnt-in overlays are found and cut away, and how often a scene is taken for one: planted texts and marks on films of real takes.

    python benchmarks/overlays.py [--quick] [--json FILE] [--films N]

Planted: texts and graphic marks, four corners, three sizes, opacities 1.0, 0.6 and 0.3, one per film, three to eight shots a film. Clean: such films
without a plant, and films with signs in the scene, panned or before a fixed camera, also one that the film returns to. An overlay is found in a
clip when the boxes cover half of it; it is left when the crop holds more than 2 % of it and the clip is not flagged `no_good_crop`.
Shots are given, so that the cut detector is not measured. Peer, in the same run: text boxes of one clip that stay in half of its frames.
Media come from the registry; the text detector must have been pulled.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import overlay_films as films
from bench_table import Row, row, show, write

from curation.analysis.clips import SourcePictures, clip_crop
from curation.analysis.crops import Box
from curation.analysis.overlays import find_overlays
from curation.analysis.samples import SampleStore, scaled_size
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span
from curation.analysis.text_overlays import persistent_boxes
from curation.analysis.timeline import Timeline
from curation.decode import open_source
from encoders.text_detection import TextDetector

SIZES = ((360, 640), (240, 426), (480, 854), (640, 360))
SHOTS = (6, 4, 8, 3)
SEED = 11
TICKS_PER_FRAME = 24 // films.FPS
TICKS = films.FRAMES_PER_TAKE * TICKS_PER_FRAME
LEFT = 0.02


@dataclass(frozen=True)
class Case:
    """One film: what is planted in it, if anything."""

    kind: str
    """text, mark, clean or sign."""
    opacity: float = 0.0
    share: float = 0.0
    corner: str = ""


@dataclass(frozen=True)
class Outcome:
    """One clip of one film."""

    case: Case
    found: bool
    peer_found: bool
    left: bool
    peer_left: bool


def planted_cases() -> list[Case]:
    """Every combination, in an order that keeps any beginning of it mixed."""
    combinations = itertools.product(("text", "mark"), (1.0, 0.6, 0.3), (0.04, 0.07, 0.12), films.CORNERS)
    cases = [Case(*combination) for combination in combinations]
    return [cases[i] for i in np.random.default_rng(SEED).permutation(len(cases))]


def takes_of(case: Case, number: int, random: np.random.Generator) -> list[films.Take]:
    """The shots of film `number`."""
    takes = films.random_takes(random, SHOTS[number % len(SHOTS)])
    if case.kind != "sign":
        return takes
    moving = number % 4 == 1
    sign = films.signed(("coffee", "china", "motorcycle_left")[number % 3], "OPEN DAILY", moving=moving, seed=number)
    again = films.signed(
        ("coffee", "china", "motorcycle_left")[number % 3], "OPEN DAILY", moving=moving, seed=-number - 1 & 255
    )
    return {0: [sign], 1: [sign, *takes[:3]], 2: [takes[0], sign, takes[1]], 3: [sign, takes[0], again, takes[1]]}[
        number % 4
    ]


def outcomes(case: Case, number: int, detector: TextDetector, folder: Path) -> list[Outcome]:
    """Make the film, decode it, and compare what is found with what was planted."""
    random = np.random.default_rng([SEED, number])
    size = SIZES[(number // len(SHOTS)) % len(SIZES)]
    takes = takes_of(case, number, random)
    plant = None
    if case.opacity:
        style = (films.TEXTS if case.kind == "text" else films.MARKS)[number % 5]
        plant = films.drawn(style, size=size, share=case.share, opacity=case.opacity, corner=case.corner, random=random)
    path = films.write_film(takes, folder / "film.mp4", size=size, plant=plant)
    settings = AnalyzeSettings()
    sample_size = scaled_size(*size, settings.sampling.sample_long_side)
    shots = [Span(index * TICKS, (index + 1) * TICKS) for index in range(len(takes))]
    target = None if plant is None else Box(*plant.box)
    with SampleStore(folder) as store:
        _fill(store, path, sample_size, settings)
        pictures = SourcePictures(store, Timeline(sample_size=sample_size), *size, is_image=False)
        found = find_overlays(store, shots, list(enumerate(shots)), detector, sample_size, settings)
        result = []
        for span, clip in zip(shots, found, strict=True):
            peer = persistent_boxes(clip.text, Box(0, 0, *sample_size), settings.crop)
            if target is None:
                result.append(Outcome(case, bool(clip.boxes), bool(peer), False, False))
                continue
            judged = []
            for boxes in (clip.boxes, peer):
                covered = _share([pictures.to_source(box) for box in boxes], target) >= 0.5
                choice = clip_crop(store.between(span.first, span.end), boxes, pictures, settings)
                left = choice.crop.meet(target).area > LEFT * target.area and "no_good_crop" not in choice.flags
                judged.append((covered, left))
            result.append(Outcome(case, judged[0][0], judged[1][0], judged[0][1], judged[1][1]))
    return result


def _fill(store: SampleStore, path: Path, sample_size: tuple[int, int], settings: AnalyzeSettings) -> None:
    reader = open_source(str(path), kind="video", fps=settings.clip_fps)
    every = settings.sampling.sample_every_ticks
    try:
        for frame in reader.frames():
            ticks = range(-(-frame.first_tick // every) * every, frame.end_tick, every)
            if ticks:
                store.add(ticks, np.ascontiguousarray(frame.picture.rgb(*sample_size)[..., ::-1]))
    finally:
        reader.close()


def _share(boxes: list[Box], target: Box) -> float:
    painted = np.zeros((target.bottom - target.top, target.right - target.left), dtype=bool)
    for box in boxes:
        part = box.meet(target)
        painted[max(0, part.top - target.top) : max(0, part.bottom - target.top)][
            :, max(0, part.left - target.left) : max(0, part.right - target.left)
        ] = True
    return float(painted.mean())


def table(results: list[Outcome]) -> list[Row]:
    """The rows; shares over clips."""
    strong = [one for one in results if one.case.opacity >= 0.6]
    groups = (
        ("recall", strong, 0.95),
        ("recall opacity 0.3", [one for one in results if one.case.opacity == 0.3], 0.8),
        ("recall text", [one for one in strong if one.case.kind == "text"], None),
        ("recall marks", [one for one in strong if one.case.kind == "mark"], None),
    )
    rows = [
        row(name, _mean([one.found for one in group]), "share of clips", goal=goal, better="higher",
            peer=_mean([one.peer_found for one in group]))
        for name, group, goal in groups
    ]  # fmt: skip
    clean = [one for one in results if not one.case.opacity]
    planted = [one for one in results if one.case.opacity]
    rows += [
        row(name, _mean([getattr(one, field) for one in group]), "share of clips", goal=goal, better="lower",
            peer=_mean([getattr(one, f"peer_{field}") for one in group]))
        for name, group, field, goal in (
            ("false_alarm_share", clean, "found", 0.02),
            ("false_alarm_share signs in the scene", [one for one in clean if one.case.kind == "sign"], "found", None),
            ("crop_leaves_overlay_share", planted, "left", 0.0),
            ("crop_leaves_overlay_share where found", [one for one in planted if one.found], "left", 0.0),
        )
    ]  # fmt: skip
    rows.append(row("clips", len(results), "count", goal=None, better="higher"))
    return rows


def _mean(values: list[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 planted and 4 clean films instead of 72 and 40")
    parser.add_argument("--films", type=int, help="so many planted films, and half as many clean ones")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    num_planted = arguments.films or (6 if arguments.quick else 72)
    num_clean = arguments.films // 2 if arguments.films else (4 if arguments.quick else 40)
    cases = planted_cases()[:num_planted]
    cases += [Case("clean" if number % 2 else "sign") for number in range(num_clean)]
    detector = TextDetector()
    results: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            own = outcomes(case, number if case.kind != "sign" else (number - num_planted) // 2, detector, Path(folder))
            print(
                f"{number + 1}/{len(cases)} {case}: found in {sum(one.found for one in own)} of {len(own)} clips",
                flush=True,
            )
            results += own
    rows = table(results)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
