"""Films joined from real clips and photographs, with every transition known: hard cuts, dissolves, fades through black and white.

A shot is a take of a real clip, played to and fro for as long as it is needed, or a camera that moves over a photograph. Some shots hold what is no
transition: a flash of one to three frames, a whip pan. Everything is a function of the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from encoders.registry import fetch

__all__ = ["Film", "Transition", "make_film", "takes"]

SIZE = (180, 320)
# Takes of media.multi_shot, looked at by eye: first and last frame.
_MULTI_SHOT = """301-370 371-434 456-572 573-612 613-664 1013-1057 1108-1177 1201-1278 1279-1339 1340-1388 1427-1484 1554-1607 1608-1669 1728-1814
1815-1863 1864-1905 2060-2113 2287-2326 2349-2392 2413-2451 2452-2501 2606-2660 2709-2752 2769-2818 2819-2868 2869-2915 3018-3076 3077-3147
3211-3254 3255-3308 3309-3356 3383-3453 3454-3504 3529-3599 3678-3766 3767-3830 3864-3989 4034-4142 4143-4228 4229-4291 4475-4515 4516-4566
4599-4666 4667-4719 4769-4826 4827-4880 4881-4928 4929-4981 5021-5079"""
_BIKES = "0-29 30-74 77-135 139-185 188-240"
_PHOTOS = (
    "china",
    "flower",
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "retina",
    "hubble_deep_field",
    "motorcycle_left",
)
_PHOTOS += ("motorcycle_right", "brick", "grass", "gravel", "camera", "moon", "coins", "ihc")

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Transition:
    """From `start` to `end` seconds; a hard cut has no length."""

    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Film:
    """A written film and the truth about it."""

    path: Path
    fps: float
    frames: int
    transitions: tuple[Transition, ...]


def takes(videos: Sequence[Path] = ()) -> list[Any]:
    """Material: arrays of frames (videos) and paths (photographs). `videos`: further clips, each of which must be one take."""
    found: list[Any] = [fetch(f"media.{name}") for name in _PHOTOS]
    found += _cut_up(fetch("media.multi_shot"), _MULTI_SHOT, columns=slice(24, 136))
    found += _cut_up(fetch("media.bikes"), _BIKES)
    for path in (fetch("media.bigbuckbunny"), fetch("media.carphone"), *videos):
        found += _cut_up(path, "0-239")
    return found


def _cut_up(path: Path, spans: str, columns: slice = slice(None)) -> list[Frames]:
    """The frames of each span; two at both ends are left out, where the cut's compression may smear."""
    with av.open(str(path)) as container:
        frames = []
        for frame in container.decode(video=0):
            frames.append(_filled(frame.to_ndarray(format="rgb24")[:, columns]))
            if len(frames) >= 5400:
                break
    bounds = [[int(number) for number in span.split("-")] for span in spans.split()]
    return [np.stack(frames[first + 2 : last - 1]) for first, last in bounds]


def _filled(picture: Frames) -> Frames:
    """The middle of a picture, at the size of the film."""
    rows, columns = picture.shape[:2]
    scale = max(SIZE[0] / rows, SIZE[1] / columns)
    size = (max(SIZE[1], round(columns * scale)), max(SIZE[0], round(rows * scale)))
    large = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (size[1] - SIZE[0]) // 2, (size[0] - SIZE[1]) // 2
    return np.asarray(large[top : top + SIZE[0], left : left + SIZE[1]], dtype=np.uint8)


class _Shot:
    """Frames by number, from 0 on, without end."""

    def __init__(self, material: Any, chance: random.Random, length: int) -> None:
        self._material = material
        self._flash: dict[int, float] = {}
        if chance.random() < 0.12 and length > 24:
            at = chance.randrange(8, length - 8)
            self._flash = {at + step: chance.uniform(0.4, 0.95) for step in range(chance.choice((1, 1, 2, 3)))}
        self._from = chance.random()
        if isinstance(material, Path):
            picture = cv2.imread(str(material), cv2.IMREAD_COLOR)
            assert picture is not None, f"{material} is a picture"
            self._photo = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
            self._start = np.array([chance.uniform(0.3, 0.7), chance.uniform(0.3, 0.7), chance.uniform(0.45, 0.7)])
            self._speed = np.array([chance.uniform(-1, 1), chance.uniform(-1, 1), chance.uniform(-0.3, 0.3)]) * 0.003
            whip = chance.random() < 0.15
            self._whip = chance.randrange(6, max(7, length - 12)) if whip else None
            self._shake = chance.choice((0.0, 0.0, 0.004))
            self._noise = np.random.default_rng(chance.randrange(1 << 30)).normal(0, 1, (4096, 2))

    def frame(self, number: int) -> Frames:
        picture = self._pan(number) if isinstance(self._material, Path) else self._played(number)
        if number in self._flash:
            picture = (picture + (255.0 - picture) * self._flash[number]).astype(np.uint8)
        return picture

    def _played(self, number: int) -> Frames:
        count = len(self._material)
        place = (round(self._from * count) + number) % (2 * count)
        return np.asarray(self._material[min(place, 2 * count - 1 - place)], dtype=np.uint8)

    def _pan(self, number: int) -> Frames:
        rows, columns = self._photo.shape[:2]
        x, y, side = self._start + self._speed * number
        if self._whip is not None:
            x += 0.35 * float(np.clip((number - self._whip) / 8, 0, 1)) * (1 if x < 0.5 else -1)
        x, y = np.array([x, y]) + self._shake * self._noise[number % 4096]
        side = float(np.clip(side, 0.25, 0.95))
        width = min(side * columns, side * rows * SIZE[1] / SIZE[0])
        height = width * SIZE[0] / SIZE[1]
        left = float(np.clip(x * columns - width / 2, 0, columns - width))
        top = float(np.clip(y * rows - height / 2, 0, rows - height))
        scale = width / SIZE[1]
        matrix = np.array([[scale, 0, left], [0, scale, top]])
        blurred = self._photo if scale <= 1.5 else cv2.blur(self._photo, (round(scale), round(scale)))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(blurred, matrix, (SIZE[1], SIZE[0]), flags=flags), dtype=np.uint8)


def make_film(material: Sequence[Any], target: Path, *, seed: int, transitions: int, gradual: float, fps: int) -> Film:
    """Write one film; `gradual`: the share of transitions that are dissolves or fades."""
    chance = random.Random(seed)
    order = [chance.randrange(len(material))]
    while len(order) <= transitions:
        following = chance.randrange(len(material))
        if following != order[-1]:
            order.append(following)
    kinds = [
        chance.choice(("dissolve", "dissolve", "black", "white")) if chance.random() < gradual else "cut"
        for _ in range(transitions)
    ]
    plan, at = [], 0
    lengths = [_frames_of(kind, chance, fps) for kind in kinds]
    for index, place in enumerate(order):
        body = round(chance.uniform(1.0, 2.8) * fps)
        reach = body + sum(lengths[index] if 0 <= index < transitions else 0 for index in (index - 1, index))
        plan.append((_Shot(material[place], chance, reach), body))
    written, truth = [], []
    pictures = _pictures(plan, kinds, lengths)
    for index, kind in enumerate(kinds):
        at += plan[index][1]
        length = lengths[index]
        truth.append(Transition("cut" if kind == "cut" else kind, at / fps, (at + length) / fps))
        at += length
    total = at + plan[-1][1]
    _write(pictures, target, fps, written)
    assert len(written) == total, f"{len(written)} frames written, {total} planned"
    return Film(target, float(fps), total, tuple(truth))


def _frames_of(kind: str, chance: random.Random, fps: int) -> int:
    seconds = {"cut": 0.0, "dissolve": chance.uniform(0.3, 2.0)}.get(kind, chance.uniform(0.5, 1.5))
    return round(seconds * fps)


def _pictures(plan: Sequence[tuple[_Shot, int]], kinds: Sequence[str], lengths: Sequence[int]) -> Iterator[Frames]:
    number = 0
    for index, (shot, body) in enumerate(plan):
        for _ in range(body):
            yield shot.frame(number)
            number += 1
        if index == len(kinds):
            return
        following = plan[index + 1][0]
        for step in range(lengths[index]):
            share = (step + 0.5) / lengths[index]
            yield _mixed(kinds[index], share, shot.frame(number + step), following.frame(step))
        number = lengths[index]


def _mixed(kind: str, share: float, before: Frames, after: Frames) -> Frames:
    """A dissolve mixes both; a fade goes to one colour in the first 45 % of its length and comes back in the last 45 %."""
    if kind == "dissolve":
        return np.asarray(cv2.addWeighted(before, 1 - share, after, share, 0), dtype=np.uint8)
    picture, left = (before, 1 - share / 0.45) if share < 0.5 else (after, 1 - (1 - share) / 0.45)
    colour = 0.0 if kind == "black" else 255.0
    return (colour + (picture - colour) * max(0.0, left)).astype(np.uint8)


def _write(pictures: Iterator[Frames], target: Path, fps: int, written: list[int]) -> None:
    stream = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{SIZE[1]}x{SIZE[0]}", framerate=fps)
    options = {"vcodec": "libx264", "preset": "veryfast", "crf": 23, "pix_fmt": "yuv420p", "threads": 1}
    command = ffmpeg.output(stream, f"file:{target}", **options).overwrite_output()
    process = command.run_async(cmd=imageio_ffmpeg.get_ffmpeg_exe(), pipe_stdin=True, quiet=True)
    try:
        for picture in pictures:
            process.stdin.write(picture.tobytes())
            written.append(len(written))
    finally:
        process.communicate()
    assert process.returncode == 0, f"ffmpeg could not write {target}"
