"""The page in a real browser: pictures of the latents that were trained on, captions as text, nothing fetched and nothing run."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from training.cli import main
from training.whatwas.thumbnails import strip_jpeg


def ask(run: Path, *arguments: object) -> int:
    return main([str(part) for part in ["whatwas", "--run", run, *arguments]])


@pytest.fixture(scope="module")
def pages(story_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """step.html of two steps, spikes.html, and step.json."""
    folder = tmp_path_factory.mktemp("pages")
    asked = ("--step", 1, "--step", 3, "--html", folder / "step.html", "--json", folder / "step.json")
    assert ask(story_run, *asked) == 0
    assert ask(story_run, "--spikes", 2, "--html", folder / "spikes.html") == 0
    return folder


def test_the_page_shows_every_clip(
    pages: Path, damaged: Any, open_page: Callable[[Path], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    story, _, _ = damaged
    steps = json.loads((pages / "step.json").read_text())["steps"]
    with open_page(pages / "step.html") as driver:
        assert driver.title == "What was trained: step 1, 3"
        cards = driver.find_elements("css selector", ".clip")
        clips = [clip for step in steps for clip in step["clips"]]
        assert len(cards) == len(clips)
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('.clip img')].map(i => [i.naturalWidth, i.naturalHeight])"
        )
        assert sizes == [[48 if clip["bucket"].startswith("1x") else 3 * 48 + 4, 32] for clip in clips]
        for card, clip in zip(cards, clips, strict=True):
            told = story.clips[clip["clip_id"]]
            assert clip["clip_id"] in card.text
            if clip["text"] != "dropped":
                assert told.captions[clip["text"]].replace("\x1b", "") in card.text.replace("\x1b", "")
            assert told.domain in card.text
            (picture,) = card.find_elements("tag name", "img")
            assert picture.get_attribute("alt") == clip["clip_id"]
            assert colour_of(picture.get_attribute("src")) == pytest.approx(told.colour, abs=12)
        others = driver.find_elements("css selector", ".clip.other")
        assert len(others) == sum(clip["planned"] is not None for clip in clips)
        assert len(driver.find_elements("css selector", "svg .mark")) == 2
        assert not driver.find_elements("css selector", "script, .clip img[onerror]")
        assert driver.save_screenshot(str(tmp_path / "step.png"))
        assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_spikes_page_marks_them_in_the_curve(
    pages: Path, open_page: Callable[[Path], AbstractContextManager[Any]]
) -> None:
    with open_page(pages / "spikes.html") as driver:
        heads = [head.text for head in driver.find_elements("tag name", "h2")]
        assert heads[:2] == ["Steps whose loss stands out", "What they have in common"]
        steps = [head.removeprefix("Step ") for head in heads[2:]]
        rows = driver.find_elements("css selector", "table tbody tr")
        assert [row.text.split()[0] for row in rows[: len(steps)]] == steps
        assert len(driver.find_elements("css selector", "svg")[0].find_elements("css selector", ".mark")) == len(steps)
        assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_nothing_in_the_page_is_fetched(pages: Path) -> None:
    html = (pages / "step.html").read_text()
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert "img-src data:" in html and "&lt;script&gt;" in html


def colour_of(address: str) -> tuple[int, ...]:
    """Of the first picture's middle."""
    data = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as picture:
        return tuple(np.asarray(picture.convert("RGB"))[16, 24].tolist())


def test_a_strip_is_first_middle_and_last_frame_scaled_down() -> None:
    frames = np.zeros((33, 288, 480, 3), np.uint8)
    for index, value in ((0, 60), (16, 120), (32, 180)):
        frames[index] = value
    with Image.open(io.BytesIO(strip_jpeg(frames))) as strip:
        assert strip.size == (3 * 192 + 2 * 2, 115)
        middles = [strip.getpixel((96 + place * 194, 57)) for place in range(3)]
    assert [middle[0] for middle in middles] == pytest.approx([60, 120, 180], abs=2)
    with Image.open(io.BytesIO(strip_jpeg(frames[:1]))) as strip:
        assert strip.size == (192, 115)


@pytest.mark.parametrize(("show", "width"), [("first", 48), ("none", 0)])
def test_fewer_pictures_on_request(story_run: Path, tmp_path: Path, show: str, width: int) -> None:
    assert ask(story_run, "--step", 1, "--pictures", show, "--html", tmp_path / "step.html") == 0
    html = (tmp_path / "step.html").read_text()
    addresses = [part.partition("'")[0] for part in html.split("<img src='")[1:]]
    assert bool(addresses) is (show == "first")
    for address in addresses:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            assert picture.size == (width, 32)


def moved(story_run: Path, damaged: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the run and its set, to be spoilt."""
    story, _, _ = damaged
    return Path(shutil.copytree(story_run, tmp_path / "run")), Path(shutil.copytree(story.folder, tmp_path / "set"))


def test_without_the_codecs_weights_the_list_still_comes(
    story_run: Path, damaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = moved(story_run, damaged, tmp_path)
    info = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps(info | {"codec": "wan"}))
    assert ask(run, "--samples", folder, "--step", 1, "--html", tmp_path / "step.html") == 0
    said = capsys.readouterr()
    assert "no pictures: " in said.err and "--codec-path" in said.err
    assert "clips_digest matches" in said.out
    html = (tmp_path / "step.html").read_text()
    assert "no pictures: " in html and "<img src=" not in html and "long caption of clip" in html


def test_wan_decodes_where_its_weights_are(
    story_run: Path, damaged: Any, tmp_path: Path, tiny_models: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = moved(story_run, damaged, tmp_path)
    info = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps(info | {"codec": "wan"}))
    weights = tiny_models.tiny_wan(tmp_path / "wan")
    asked = ("--step", 1, "--pictures", "first", "--codec-path", weights, "--html", tmp_path / "step.html")
    assert ask(run, "--samples", folder, *asked) == 0
    assert "decoded by another codec than the one that made the set" in capsys.readouterr().err
    assert (tmp_path / "step.html").read_text().count("<img src=") > 0


def test_a_shard_that_is_gone_costs_its_pictures_and_captions_only(
    story_run: Path, damaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = moved(story_run, damaged, tmp_path)
    for shard in folder.glob("*.tar"):
        shard.unlink()
    assert ask(run, "--samples", folder, "--step", 1, "--html", tmp_path / "step.html") == 0
    said = capsys.readouterr().out
    assert "captions are not known: shard" in said and "clips_digest matches" in said
    assert "no picture: shard" in (tmp_path / "step.html").read_text()


def test_sets_may_lie_in_an_object_store(
    story_run: Path, damaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story, _, _ = damaged
    store = fsspec.filesystem("memory")
    store.put(str(story.folder), "/whatwas-sets/story", recursive=True)
    asked = ("--step", 1, "--html", tmp_path / "step.html", "--samples", "memory://whatwas-sets/story")
    assert ask(story_run, *asked) == 0
    assert "captions are not known" not in capsys.readouterr().out
    html = (tmp_path / "step.html").read_text()
    assert html.count("<img src=") == html.count("class='clip") - html.count("class='clips'") > 0
