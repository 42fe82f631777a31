"""The page in a real browser: what is drawn, clicked, typed and zoomed, with names that try to be markup."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from planner.report.page import write_report

pytestmark = pytest.mark.timeout(180)

CHARTS = {
    "time": ["strip", "cost", "lanes"],
    "mixing": ["mix-buckets", "mix-domains", "domains", "pareto"],
    "buffer": ["buffer", "peaks", "open"],
    "reads": ["grid"],
    "ranks": ["gantt"],
}
_COLOURS = """
const canvas = document.querySelector(`#${arguments[0]} canvas`);
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
for (let at = 0; at < pixels.length; at += 4) if (pixels[at + 3]) seen.add(pixels[at] << 16 | pixels[at + 1] << 8 | pixels[at + 2]);
return [...seen];
"""


@pytest.fixture
def screen(written: Any, open_page: Callable[[Path], AbstractContextManager[Any]], tmp_path: Path) -> Iterator[Any]:
    write_report(written.plan, written.sets, tmp_path / "report.html")
    with open_page(tmp_path / "report.html") as driver:
        yield driver


def visible(driver: Any, selector: str) -> list[Any]:
    return [element for element in driver.find_elements("css selector", selector) if element.is_displayed()]


def click(driver: Any, selector: str) -> None:
    (button,) = visible(driver, selector)
    button.click()


def show(driver: Any, tab: str) -> None:
    click(driver, f"button[data-tab={tab}]")


def colours(driver: Any, chart: str) -> set[int]:
    return set(driver.execute_script(_COLOURS, chart))


def span(driver: Any) -> str:
    (place,) = visible(driver, ".zoom .span")
    return str(place.text)


def hover(driver: Any, chart: str, across: float, down: float) -> str:
    """Text of the tooltip at a place of the picture, as shares of its inner width and height."""
    (canvas,) = visible(driver, f"#{chart} canvas")
    driver.execute_script(
        "const a = arguments[0].getBoundingClientRect(); arguments[0].dispatchEvent(new MouseEvent('mousemove', "
        "{clientX: a.left + 74 + arguments[1] * (a.width - 92), clientY: a.top + 20 + arguments[2] * (a.height - 56)}));",
        canvas,
        across,
        down,
    )
    (tip,) = visible(driver, "#tip")
    return str(tip.text)


def test_every_chart_is_drawn_and_nothing_complains(screen: Any, written: Any) -> None:
    assert screen.title == f"Plan {written.meta.plan_hash[:12]}", "no markup of a name ran"
    assert len(visible(screen, ".tab")) == 1 and len(visible(screen, "table.batches")) == 1
    for tab, charts in CHARTS.items():
        show(screen, tab)
        assert screen.current_url.endswith(f"#{tab}"), "a tab has an address of its own"
        for chart in charts:
            assert len(colours(screen, chart)) > 4, f"chart {chart} is not blank"
    show(screen, "mixing")
    assert "2 (this plan)" in visible(screen, "table.pareto")[0].text
    before = screen.find_element("css selector", "#pareto canvas").screenshot_as_png
    click(screen, "button[data-choice=pareto][data-value='8']")
    assert screen.find_element("css selector", "#pareto canvas").screenshot_as_png != before
    for tab in ("overview", "ledger", "numbers"):
        show(screen, tab)
        assert not visible(screen, ".chart")
    assert not [entry for entry in screen.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert screen.execute_script("return performance.getEntriesByType('resource').length") == 0, "nothing was fetched"
    assert screen.execute_script("return document.querySelectorAll('main img, main script').length") == 0


def test_strip_and_lanes_show_the_buckets_of_the_plan(screen: Any, written: Any) -> None:
    show(screen, "time")
    named = {"1x64x112": 0x4477AA, "33x64x112": 0xEE8866, "65x64x112": 0x44AA77}
    assert set(named.values()) <= colours(screen, "strip")
    (legend,) = visible(screen, "[data-legend=strip]")
    assert legend.text.split() == list(named), "cheapest first"
    lanes, rows = written.lanes(), len(written.lanes()[0])
    for lane, row in ((0, 0), (2, rows // 2), (3, rows - 1)):
        text = hover(screen, "lanes", (row + 0.5) / rows, (lane + 0.5) / len(lanes))
        found = lanes[lane][row]
        assert (
            f"lane {lane}" in text and f"step {found['step']}, micro {found['micro']}, epoch {found['epoch']}" in text
        )
        assert f"{found['frames']}x{found['height']}x{found['width']}, {len(found['clips'])} clips" in text
    click(screen, "button[data-choice=lanes][data-value=buffer]")
    assert len(colours(screen, "lanes") & set(named.values())) == 0, "the picture shows bytes now"
    click(screen, "button[data-choice=strip][data-value=tier]")
    assert "tier 0: 1x64x112, 33x64x112" in visible(screen, "[data-legend=strip]")[0].text
    _a_click_zooms_and_the_buttons_lead_back(screen, written)


def _a_click_zooms_and_the_buttons_lead_back(screen: Any, written: Any) -> None:
    show(screen, "time")
    rows = len(written.lanes()[0])
    whole = span(screen)
    assert whole == f"steps {written.meta.first_step} to {written.meta.steps[-1]} ({rows} of {rows} rows)"
    before = colours(screen, "lanes")
    (canvas,) = visible(screen, "#strip canvas")
    canvas.click()
    near = span(screen)
    assert near != whole and f"({rows / 4:.0f} of" in near
    assert visible(screen, ".slide")[0].is_enabled()
    show(screen, "buffer")
    assert span(screen) == near, "all charts over time show the same span"
    click(screen, ".tab.on button[data-zoom=right]")
    assert span(screen) != near
    click(screen, ".tab.on button[data-zoom=all]")
    show(screen, "time")
    assert span(screen) == whole and colours(screen, "lanes") == before


def test_the_buffer_marks_the_peak(screen: Any, written: Any) -> None:
    show(screen, "buffer")
    peak = screen.execute_script("return JSON.parse(document.getElementById('data').textContent).buffer.peak")
    assert visible(screen, "#buffer-lane")[0].get_attribute("value") == str(peak["lane"])
    rows = len(written.lanes()[0])
    text = hover(screen, "buffer", (peak["row"] + 0.5) / rows, 0.5)
    shown = f"{peak['bytes'] / 1e3:.4g} kB" if peak["bytes"] < 1e6 else f"{peak['bytes'] / 1e6:.4g} MB"
    assert f"fullest {shown}" in text and f"lane {peak['lane']}: {shown}" in text
    before = screen.find_element("css selector", "#buffer canvas").screenshot_as_png
    box = visible(screen, "#buffer-lane")[0]
    box.clear()
    box.send_keys(str((peak["lane"] + 1) % 4))
    after = screen.find_element("css selector", "#buffer canvas").screenshot_as_png
    one, other = (np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in (before, after))
    assert one.shape == other.shape and (one != other).any(), "another lane is drawn"


def test_tables_are_filtered(screen: Any, written: Any) -> None:
    show(screen, "ledger")
    everything = visible(screen, "table.ledger tbody tr")
    (box,) = visible(screen, "#ledger-filter")
    box.send_keys("repeated")
    rows = visible(screen, "table.ledger tbody tr")
    assert 0 < len(rows) < len(everything)
    assert all("<script>" in row.text and "repeated" in row.text for row in rows), "a reason is text, whatever is in it"
    clips = sum(int(row.find_elements("css selector", "td")[4].text) for row in rows)
    assert visible(screen, "#ledger-sum")[0].text == f"{len(rows)} lines, {clips} clips"

    show(screen, "ranks")
    lanes = written.lanes()
    screen.execute_script(
        "const w = document.getElementById('world'); w.value = '2'; w.dispatchEvent(new Event('change'));"
        "const r = document.getElementById('rank'); r.value = '1'; r.dispatchEvent(new Event('input'));"
    )
    facts = {
        text.split("\n")[-1]: text.split("\n")[0]
        for text in (part.text for part in visible(screen, "#rank-facts .fact"))
    }
    mine = lanes[2] + lanes[3]
    opens = {
        (number, row["epoch"], read["shard"]) for number in (2, 3) for row in lanes[number] for read in row["reads"]
    }
    assert facts["lanes"] == "2 to 3"
    assert facts["clips used"] == f"{sum(len(row['clips']) for row in mine):,}"
    assert facts["opens"] == str(len(opens)) and facts["shards"] == str(len({shard for _, _, shard in opens}))
    table = visible(screen, "table.visits tbody tr")
    assert len(table) == len(opens)
    visible(screen, "#shard-filter")[0].send_keys("64p/shard-000002")
    table = visible(screen, "table.visits tbody tr")
    assert len(table) == sum(shard == 2 for _, _, shard in opens) > 0
    assert all(row.text.startswith("64p/shard-000002.tar 2 ") for row in table)


def test_without_samples_the_page_works_too(
    written: Any, open_page: Callable[[Path], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    write_report(written.plan, [], tmp_path / "bare.html")
    with open_page(tmp_path / "bare.html") as driver:
        for tab, missing in (
            ("time", set()),
            ("mixing", {"mix-domains", "domains"}),
            ("buffer", {"buffer"}),
            ("ranks", set()),
        ):
            show(driver, tab)
            shown = {part.get_attribute("id") for part in visible(driver, ".chart")}
            assert shown == set(CHARTS[tab]) - missing
        assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
