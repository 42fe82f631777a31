"""Films of several shots from real media, with an overlay planted or without one, for `overlays.py` and the tests of the overlay detectors.

A film is a list of takes: parts of real videos, and photographs under a moving or a fixed camera with sensor noise. An overlay is drawn once
and blended into every frame at one place; a sign is drawn into a photograph, and so moves with it. Everything follows from (seed, index), and
every film is encoded with H.264, because compression is what faint overlays drown in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from encoders.registry import fetch

__all__ = ["CORNERS", "FPS", "MARKS", "TEXTS", "Plant", "Take", "drawn", "random_takes", "signed", "write_film"]

FPS = 12
FRAMES_PER_TAKE = 26
"""2.17 s: one clip of 33 ticks a take."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")
TEXTS = ("white", "outlined", "badge", "yellow", "thin")
MARKS = ("ring", "star", "disc", "square", "photo")
_PHOTOGRAPHS = ("china", "flower", "astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "hubble_deep_field")
_GREY = ("camera", "brick", "grass", "gravel", "coins", "moon", "cell", "ihc", "retina")
_VIDEO_PARTS = (
    *(("bikes", start) for start in (0.0, 3.1)),
    *(("bigbuckbunny", start) for start in (0.2, 2.8)),
    *(("carphone", start) for start in (0.0, 1.8)),
    *(
        ("multi_shot", start)
        for start in (12.1, 15.0, 18.4, 48.2, 51.2, 69.3, 135.5, 147.3, 154.8, 161.5, 165.9, 203.6)
    ),
)
_WORDS = ("CHANNEL 7", "Reelyard", "NEWS 24", "@filmclub", "LIVE", "stockfilm.net", "Daily Cut", "KTVX", "Preview")

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Take:
    """One shot: a part of a video, or a photograph under a camera that moves from one view to another."""

    medium: str
    start_s: float = 0.0
    views: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    """For photographs: centre x, centre y (shares of the free play) and zoom at the start and at the end."""
    change: Callable[[Picture], Picture] | None = None
    """Drawn into the photograph before the camera looks at it."""
    noise_seed: int = 0

    def frames(self, size: tuple[int, int], count: int = FRAMES_PER_TAKE) -> Iterator[Picture]:
        """`count` RGB frames of (rows, columns)."""
        if self.views is None:
            yield from _video_frames(self.medium, self.start_s, size, count)
            return
        picture = _photograph(self.medium)
        picture = picture if self.change is None else self.change(picture)
        random = np.random.default_rng(self.noise_seed)
        for index in range(count):
            seen = _view(picture, self.views, index / max(1, count - 1), size)
            yield _noisy(seen, random)


@dataclass(frozen=True)
class Plant:
    """An overlay: colour and coverage in 0..1, and where its top left corner goes."""

    rgb: Picture
    alpha: NDArray[np.float32]
    top: int
    left: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """top, left, bottom, right of what is visible of it."""
        rows, columns = np.nonzero(self.alpha > 0.02)
        return (
            self.top + int(rows.min()),
            self.left + int(columns.min()),
            self.top + int(rows.max()) + 1,
            self.left + int(columns.max()) + 1,
        )

    def onto(self, frame: Picture) -> Picture:
        """The frame with the overlay blended in."""
        height, width = self.alpha.shape
        place = np.s_[self.top : self.top + height, self.left : self.left + width]
        mixed = frame[place] * (1 - self.alpha[..., None]) + self.rgb * self.alpha[..., None]
        planted = frame.copy()
        planted[place] = np.round(mixed).astype(np.uint8)
        return planted


def random_takes(random: np.random.Generator, count: int) -> list[Take]:
    """`count` takes of different media, about half of them parts of real videos; a fifth of the photographs under a fixed camera."""
    videos = [Take(name, start) for name, start in _VIDEO_PARTS]
    photographs = [_photograph_take(random, name) for name in (*_PHOTOGRAPHS, *_GREY)]
    chosen = [videos[i] for i in random.permutation(len(videos))[: (count + 1) // 2]]
    chosen += [photographs[i] for i in random.permutation(len(photographs))[: count // 2]]
    return [chosen[i] for i in random.permutation(count)]


def _photograph_take(random: np.random.Generator, name: str) -> Take:
    first = (random.random(), random.random(), 1.2 + 0.6 * random.random())
    last = first if random.random() < 0.2 else (random.random(), random.random(), 1.2 + 0.6 * random.random())
    return Take(name, views=(first, last), noise_seed=int(random.integers(1 << 31)))


def signed(medium: str, text: str, *, moving: bool, at: tuple[float, float] = (0.5, 0.2), seed: int = 0) -> Take:
    """A photograph with a sign painted into it, `at` shares of its height and width; the camera pans or stands."""
    first = (0.3, 0.3, 1.15)
    return Take(
        medium,
        views=(first, (0.7, 0.8, 1.3) if moving else first),
        change=functools.partial(_with_sign, text=text, at=at),
        noise_seed=seed,
    )


def _with_sign(picture: Picture, *, text: str, at: tuple[float, float]) -> Picture:
    height, width = picture.shape[:2]
    font = ImageFont.load_default(size=max(12, height // 12))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    place = (round(at[1] * width), round(at[0] * height))
    left, top, right, bottom = draw.textbbox(place, text, font=font)
    draw.rectangle((left - 8, top - 6, right + 8, bottom + 6), fill=(200, 190, 160), outline=(60, 40, 30), width=2)
    draw.text(place, text, font=font, fill=(40, 30, 90))
    return np.asarray(image)


_WIDEST = 0.6
"""Share of a film's width that a plant takes at most."""


def drawn(
    style: str, *, size: tuple[int, int], share: float, opacity: float, corner: str, random: np.random.Generator
) -> Plant:
    """One of `TEXTS` or `MARKS`, `share` of the rows high, in a corner of a film of `size`."""
    rows, columns = size
    height = max(8, round(share * rows))
    rgba = _text(style, height, random) if style in TEXTS else _mark(style, height, random)
    if rgba.shape[1] > _WIDEST * columns:  # a long text in an upright film
        narrow = (round(_WIDEST * columns), max(6, round(rgba.shape[0] * _WIDEST * columns / rgba.shape[1])))
        rgba = np.asarray(Image.fromarray(rgba).resize(narrow, Image.Resampling.LANCZOS))
    rgb, alpha = rgba[..., :3], rgba[..., 3].astype(np.float32) / 255 * opacity
    gap_y, gap_x = (round((0.02 + 0.04 * random.random()) * side) for side in (rows, columns))
    top = gap_y if corner.startswith("top") else rows - gap_y - rgba.shape[0]
    left = gap_x if corner.endswith("left") else columns - gap_x - rgba.shape[1]
    return Plant(np.ascontiguousarray(rgb), alpha, max(0, top), max(0, left))


def _text(style: str, height: int, random: np.random.Generator) -> Picture:
    words = _WORDS[int(random.integers(len(_WORDS)))]
    font = ImageFont.load_default(size=height)
    stroke = max(1, height // 10) if style == "outlined" else 0
    left, top, right, bottom = (round(edge) for edge in font.getbbox(words, stroke_width=stroke))
    pad = max(2, height // 4) if style == "badge" else 1
    image = Image.new("RGBA", (right - left + 2 * pad, bottom - top + 2 * pad), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    if style == "badge":
        draw.rectangle((0, 0, *image.size), fill=(*(int(c) for c in random.integers(10, 90, 3)), 255))
    if style == "thin":
        pixels = np.zeros((image.size[1], image.size[0], 4), dtype=np.uint8)
        scale = height / 30
        (width, _), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        pixels = np.zeros((round(height * 1.3), width + 2, 4), dtype=np.uint8)
        thickness = max(1, height // 16)
        cv2.putText(
            pixels, words, (1, height), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255, 255), thickness, cv2.LINE_AA
        )
        pixels[..., :3] = 255
        return pixels
    fill = (250, 220, 40, 255) if style == "yellow" else (255, 255, 255, 255)
    draw.text((pad - left, pad - top), words, font=font, fill=fill, stroke_width=stroke, stroke_fill=(0, 0, 0, 255))
    pixels = np.array(image)
    bare = pixels[..., 3] == 0
    pixels[bare, :3] = fill[:3]
    return pixels


def _mark(style: str, height: int, random: np.random.Generator) -> Picture:
    """Drawn four times as large and reduced, so that its rim is soft."""
    big = height * 4
    hue = np.uint8([[[int(random.integers(180)), 200, 235]]])
    colour = tuple(int(c) for c in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
    if random.random() < 0.5:
        colour = (255, 255, 255)
    image = Image.new("RGBA", (big, big), (*colour, 0))
    draw = ImageDraw.Draw(image)
    whole = (0, 0, big - 1, big - 1)
    if style == "ring":
        draw.ellipse(whole, outline=(*colour, 255), width=max(4, big // 6))
        draw.ellipse((big * 0.38, big * 0.38, big * 0.62, big * 0.62), fill=(*colour, 255))
    elif style == "star":
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 0.5, 0.21) * big
        points = [(big / 2 + r * np.cos(t), big / 2 + r * np.sin(t)) for r, t in zip(reach, turns, strict=True)]
        draw.polygon(points, fill=(*colour, 255))
    elif style == "disc":
        draw.ellipse(whole, fill=(*colour, 255))
    elif style == "square":
        draw.rounded_rectangle(whole, radius=big // 5, fill=(*colour, 255))
        draw.polygon(
            [(big * 0.35, big * 0.25), (big * 0.78, big * 0.5), (big * 0.35, big * 0.75)], fill=(20, 20, 40, 255)
        )
    else:
        photograph = Image.fromarray(_photograph("astronaut")[20:260, 100:340]).resize((big, big))
        cover = Image.new("L", (big, big), 0)
        ImageDraw.Draw(cover).ellipse(whole, fill=255)
        image = Image.merge("RGBA", (*photograph.split(), cover))
    return np.asarray(image.resize((height, height), Image.Resampling.LANCZOS))


def write_film(
    takes: Sequence[Take], target: Path, *, size: tuple[int, int], plant: Plant | None = None, crf: int = 24
) -> Path:
    """Encode the takes one after another, with the overlay in every frame if one is given."""
    rows, columns = size
    pipe = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{columns}x{rows}", r=FPS)
    options = {"vcodec": "libx264", "preset": "veryfast", "crf": crf, "pix_fmt": "yuv420p", "threads": 1}
    command = ffmpeg.output(pipe, f"file:{target}", **options).overwrite_output()
    process = command.run_async(cmd=imageio_ffmpeg.get_ffmpeg_exe(), pipe_stdin=True, quiet=True)
    for take in takes:
        for frame in take.frames(size):
            process.stdin.write((frame if plant is None else plant.onto(frame)).tobytes())
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"ffmpeg could not write {target}: {errors.decode(errors='replace')[-500:]}")
    return target


def _view(
    picture: Picture,
    views: tuple[tuple[float, float, float], tuple[float, float, float]],
    share: float,
    size: tuple[int, int],
) -> Picture:
    x, y, zoom = ((1 - share) * a + share * b for a, b in zip(*views, strict=True))
    rows, columns = size
    height, width = picture.shape[:2]
    scale = max(rows / height, columns / width) * zoom
    left, top = x * (width * scale - columns), y * (height * scale - rows)
    matrix = np.array([[scale, 0, -left], [0, scale, -top]], dtype=np.float64)
    return np.asarray(
        cv2.warpAffine(picture, matrix, (columns, rows), flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    )


def _noisy(frame: Picture, random: np.random.Generator) -> Picture:
    noise = random.integers(-3, 4, frame.shape[:2], dtype=np.int16)
    return np.clip(frame.astype(np.int16) + noise[..., None], 0, 255).astype(np.uint8)


@functools.cache
def _photograph(name: str) -> Picture:
    return np.asarray(Image.open(fetch(f"media.{name}")).convert("RGB"))


@functools.lru_cache(maxsize=24)
def _video_pictures(name: str, start_s: float, count: int) -> tuple[Picture, ...]:
    capture = cv2.VideoCapture(str(fetch(f"media.{name}")))
    pictures = []
    try:
        for index in range(count):
            capture.set(cv2.CAP_PROP_POS_MSEC, (start_s + index / FPS) * 1000)
            shown, picture = capture.read()
            if not shown:
                break
            pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    finally:
        capture.release()
    if not pictures:
        raise RuntimeError(f"media.{name} has no frame at {start_s} s")
    return tuple(np.asarray(picture, dtype=np.uint8) for picture in pictures)


def _video_frames(name: str, start_s: float, size: tuple[int, int], count: int) -> Iterator[Picture]:
    rows, columns = size
    pictures = _video_pictures(name, start_s, count)
    for index in range(count):
        # A part that is shorter than a take goes back and forth.
        turn = index % (2 * len(pictures) - 2) if len(pictures) > 1 else 0
        picture = _unbordered(name, pictures[turn if turn < len(pictures) else 2 * len(pictures) - 2 - turn])
        height, width = picture.shape[:2]
        scale = max(rows / height, columns / width)
        whole = cv2.resize(picture, (int(np.ceil(width * scale)), int(np.ceil(height * scale))))
        top, left = (whole.shape[0] - rows) // 2, (whole.shape[1] - columns) // 2
        yield np.asarray(whole[top : top + rows, left : left + columns])


def _unbordered(name: str, picture: Picture) -> Picture:
    """`multi_shot` is pillarboxed; an overlay has no place on black bars."""
    return picture[:, 24:136] if name == "multi_shot" else picture
