"""The page in a real browser: clicked through, and what is on the screen is checked."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curation import funnel
from curation.commits import DONE
from curation.decide import DecideSettings
from curation.report.page import render_report
from curation.timings import Stopwatch

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def timings() -> pa.Table:
    """What a command writes of two stages of encode, with one unit that was slow."""
    watch = Stopwatch()
    with watch.phase("encode") as counts:
        counts["done"] = 3
        for stage, unit, seconds in (("latents", "a", 1.0), ("latents", "b", 5.0), ("text", "c", 0.5)):
            result = {"status": DONE, "attempts": 1, "seconds": seconds}
            watch.units("encode", [{"parts": {stage: {"unit": unit}}, "results": {stage: result}}])
    return watch.table()


@pytest.fixture
def screen(
    tables: dict[str, pa.Table],
    timings: pa.Table,
    open_page: Callable[[Path], AbstractContextManager[Any]],
    tmp_path: Path,
) -> Iterator[Any]:
    files = render_report(
        tables=tables, samples={}, funnel=funnel.build(tables, {}, {}), settings=DecideSettings(), timings=timings
    )
    (tmp_path / "index.html").write_bytes(files["index.html"])
    with open_page(tmp_path / "index.html") as driver:
        yield driver


def visible(driver: Any, selector: str) -> list[Any]:
    return [element for element in driver.find_elements("css selector", selector) if element.is_displayed()]


def click(driver: Any, selector: str) -> None:
    (button,) = visible(driver, selector)
    button.click()


def test_clicking_through_the_page(screen: Any, tables: dict[str, pa.Table], nasty: str) -> None:
    assert screen.title == "Curation report", "no markup of a file name ran"
    assert len(visible(screen, ".tab")) == 1 and len(visible(screen, ".waterfall")) == 1
    assert "too_dark" in visible(screen, ".waterfall")[0].text

    click(screen, "button[data-tab=clips]")
    assert not visible(screen, ".waterfall")
    assert {part.get_attribute("data-reason") for part in visible(screen, ".reason")} == {
        "keep",
        "too_dark",
        "static",
        "duplicate",
    }
    click(screen, ".level.on button[data-reason=too_dark]")
    figures = visible(screen, "figure")
    assert len(figures) == 4 and all("too_dark (luma" in figure.text for figure in figures)
    loaded = (
        "return [...document.querySelectorAll('.level.on .reason:not(.hidden) img')].every(i => i.naturalWidth === 192)"
    )
    assert screen.execute_script(loaded), "the strips are decoded pictures"

    figures[0].click()
    (dialog,) = visible(screen, "dialog")
    story = dialog.find_element("css selector", "pre").text
    assert figures[0].get_attribute("data-clip") in story
    assert "too_dark (luma" in story and "limit 16" in story and "not computable: no weights given" in story
    click(screen, "#close")
    assert not visible(screen, "dialog")

    click(screen, "button[data-level=sft]")
    assert screen.current_url.endswith("#clips/sft/too_dark"), "the view has an address of its own"
    screen.refresh()
    assert visible(screen, "button[data-level=sft].on") and visible(screen, "button[data-tab=clips].on")
    assert [part.get_attribute("data-reason") for part in visible(screen, ".reason")] == ["too_dark"]

    click(screen, "button[data-level='144p']")
    click(screen, "button[data-tab=copies]")
    (group,) = visible(screen, ".group")
    assert len(group.find_elements("css selector", "figure")) == 3
    click(screen, "button[data-tab=near]")
    assert any(heading.text.startswith("luma, limit 16") for heading in visible(screen, "h3"))
    click(screen, "button[data-tab=shares]")
    (domains,) = visible(screen, "table.shares[data-dimension=domain]")
    assert "night" in domains.text and "0%" in domains.text
    click(screen, "button[data-tab=sources]")
    assert nasty in visible(screen, "table.sources")[0].text
    assert not [entry for entry in screen.get_log("browser") if entry["level"] == "SEVERE"]


def test_search_hides_what_does_not_match(screen: Any, tables: dict[str, pa.Table]) -> None:
    click(screen, "button[data-tab=clips]")
    before = len(visible(screen, "figure"))
    wanted = tables["clips"]["clip_id"].to_pylist()[44]
    (box,) = visible(screen, "#search")
    box.send_keys(wanted)
    found = visible(screen, "figure")
    assert before > 20 and [figure.get_attribute("data-clip") for figure in found] == [wanted]


def test_the_waterfall_is_drawn_from_all_to_kept(screen: Any) -> None:
    with Image.open(io.BytesIO(screen.get_screenshot_as_png())) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for colour in ((0x8B, 0x98, 0xA3), (0xB3, 0x56, 0x3E), (0x3C, 0x8D, 0x5A)):
        near = np.abs(pixels - np.array(colour)).max(axis=2) <= 3
        assert near.sum() > 100, f"a bar of colour {colour} is on the screen"
    bars = screen.execute_script(
        "return [...document.querySelectorAll('.level.on .track i')].map(i => [i.className, i.offsetLeft, i.offsetWidth])"
    )
    assert bars[0][0] == "all" and bars[-1][0] == "keep"
    ends = [left for kind, left, _ in bars if kind == "cut"]
    assert ends == sorted(ends, reverse=True), "each reason takes its part from what was left"
    assert abs(ends[-1] - bars[-1][2]) <= 2, "what is left at the end is what is kept"


def test_the_histograms_show_the_limits_of_the_level(screen: Any) -> None:
    click(screen, "button[data-tab=scores]")
    (drawn,) = [svg for svg in visible(screen, ".histograms svg") if "luma" in svg.text.split()]
    assert len(drawn.find_elements("css selector", "line")) == 2, "the lowest and the highest luma of the level"
    limits = [text.text for text in drawn.find_elements("css selector", "text")]
    settings = DecideSettings().levels["144p"]
    for limit in (settings.min_luma, settings.max_luma):
        assert f"{limit:.4g}" in limits
    places = [line.rect for line in drawn.find_elements("css selector", "line")]
    box = drawn.rect
    assert all(box["x"] <= place["x"] <= box["x"] + box["width"] and place["height"] > 50 for place in places)


def test_the_table_of_the_stages_is_on_the_screen(screen: Any, timings: pa.Table) -> None:
    click(screen, "button[data-tab=speed]")
    (table,) = visible(screen, "table.speed")
    rows = [[cell.text for cell in row.find_elements("css selector", "td")] for row in visible(screen, ".speed tr")]
    (phase,) = [row for row in rows if row[:1] == ["encode"]]
    assert phase[2] == "3"
    stages = {row[1]: row[2:3] + row[4:7] for row in rows if row[:1] == [""]}
    assert stages == {"latents": ["2", "6.00", "3.00", "5.00"], "text": ["1", "0.50", "0.50", "0.50"]}
    assert timings["run"][0].as_py() in table.text
