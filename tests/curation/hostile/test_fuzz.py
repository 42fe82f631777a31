"""Seeded fuzz: bytes turned over in small files of every container, decoded in a sandboxed child; always an answer, never a hang."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from curation.sandbox import ItemFailureError, Sandbox
from encoders.registry import fetch

CONTAINERS = {
    "mp4": {"movflags": "+faststart"},
    "mkv": {},
    "avi": {"vcodec": "mpeg4", "preset": None, "crf": None},
    "webm": {"vcodec": "libvpx", "preset": None, "crf": None, "deadline": "realtime"},
    "gif": {"vcodec": "gif", "pix_fmt": "rgb8", "preset": None, "crf": None},
    "ts": {"f": "mpegts"},
}


@pytest.fixture(scope="module")
def seeds(media_cases: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One second of 96x64 in every container."""
    import ffmpeg
    import imageio_ffmpeg

    folder = tmp_path_factory.mktemp("seeds")
    found = {}
    for name, options in CONTAINERS.items():
        video = ffmpeg.input(f"file:{fetch('media.bigbuckbunny')}", t=1).video.filter("scale", 96, 64)
        known = {key: value for key, value in options.items() if value is not None}
        settings = {"threads": 1, "pix_fmt": "yuv420p"} | ({} if "vcodec" in known else {"vcodec": "libx264"}) | known
        ffmpeg.output(video, f"file:{folder / name}.{name}", **settings).overwrite_output().run(
            cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True
        )
        found[name] = (folder / f"{name}.{name}").read_bytes()
    return found


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    log = tmp_path_factory.mktemp("fuzz") / "child.log"
    sandbox = Sandbox(jobs="fuzz_jobs", log=log, memory_mb=1500, python_path=(str(Path(__file__).parent),))
    yield sandbox
    sandbox.close()


def _damaged(data: bytes, seed: int) -> bytes:
    """A few bytes changed, and sometimes a piece cut out or doubled."""
    generator = random.Random(seed)
    changed = bytearray(data)
    for _ in range(generator.choice((1, 4, 16, 64))):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    if generator.random() < 0.3:
        start = generator.randrange(len(changed))
        piece = changed[start : start + generator.randrange(1, 2000)]
        changed[start : start + len(piece)] = b"" if generator.random() < 0.5 else bytes(piece) * 2
    return bytes(changed)


def _fuzz(container: str, count: int, seeds: dict[str, bytes], sandbox: Sandbox, folder: Path) -> list[str]:
    fates = []
    for seed in range(count):
        path = folder / f"{seed}.{container}"
        path.write_bytes(_damaged(seeds[container], seed))
        try:
            fates.append(sandbox.call("decode", {}, {"path": str(path)}, timeout_s=60))
        except ItemFailureError as failure:
            assert "timed out" not in str(failure), f"{container}, seed {seed}: {failure}"
            fates.append("crashed")
        path.unlink()
    return fates


@pytest.mark.timeout(300)
@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_bytes_always_get_an_answer(
    container: str, seeds: dict[str, bytes], sandbox: Sandbox, tmp_path: Path
) -> None:
    fates = _fuzz(container, 20, seeds, sandbox, tmp_path)
    assert set(fates) <= {"whole", "damaged", "unreadable", "crashed"}
    assert {"whole", "damaged", "unreadable"} & set(fates)
    assert fates.count("crashed") <= 1, "a decoder that dies costs a unit two attempts; it must stay rare"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("container", CONTAINERS)
def test_much_more_of_it(container: str, seeds: dict[str, bytes], sandbox: Sandbox, tmp_path: Path) -> None:
    fates = _fuzz(container, 500, seeds, sandbox, tmp_path)
    assert fates.count("crashed") <= 5
