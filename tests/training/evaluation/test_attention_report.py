"""The attention report of a real run: the command, its numbers, and the page in a real browser with names that try to be markup."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from schemas.buckets import Bucket
from schemas.errors import DataError, UsageError
from training.cli import main
from training.evaluation.attention.page import headline, render_attention
from training.evaluation.attention.report import AttentionRequest, measure_attention
from training.evaluation.set_clips import draw_clips
from training.loading.sample_sets import open_whole_sets

pytestmark = pytest.mark.timeout(180)
HOSTILE = "<img src=x onerror=\"document.title='broken'\">'\"&"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run_arguments: Callable[..., list[str]]) -> Path:
    """Two steps on the tiny set, in a folder whose name tries to be markup."""
    folder = tmp_path_factory.mktemp("attention") / HOSTILE.replace("/", "")
    assert main(["run", *run_arguments(folder, steps=2)]) == 0
    return folder


@pytest.fixture(scope="module")
def report(run: Path, tiny_set: Path) -> dict[str, Any]:
    return measure_attention(AttentionRequest(run=run, samples=tiny_set, num_clips=3, sigmas=(0.2, 0.8)))


def test_shares_of_every_block_add_up(report: dict[str, Any]) -> None:
    assert report["bucket"] == "65x32x48" and report["latent_frames"] == 17 and report["tokens_per_frame"] == 6
    assert [time["sigma"] for time in report["times"]] == [0.2, 0.8]
    for time in report["times"]:
        assert [block["name"] for block in time["blocks"]] == [
            "dual 0",
            "single 1",
            "single 2",
            "single 3",
            "decoder 4",
        ]
        for block in time["blocks"]:
            whole = sum(block[f"{name}_share"] for name in ("own_frame", "inter_frame", "image", "text"))
            assert whole == pytest.approx(1.0, abs=1e-5)
            assert len(block["inter_frame_share_by_head"]) == 2
            assert [len(row) for row in block["frames"]] == [17] * 17
        to = time["blocks"][-1]["halves"]["decoder_queries"]
        shares = [half[name] for half in to.values() for name in ("own_frame_share", "inter_frame_share")]
        assert sum(shares) == pytest.approx(1.0, abs=1e-5) and time["blocks"][-1]["text_share"] == 0
    shares_by_kind = headline(report)
    assert shares_by_kind["even"] == pytest.approx(16 / 17)
    assert 0 < shares_by_kind["encoder"] < 1 and 0 < shares_by_kind["decoder"] < 1


def test_clips_and_noise_follow_the_seed(run: Path, tiny_set: Path, report: dict[str, Any]) -> None:
    request = {"run": run, "samples": tiny_set, "num_clips": 3, "sigmas": (0.2, 0.8)}
    assert measure_attention(AttentionRequest(**request)) == report
    other = measure_attention(AttentionRequest(**request, seed=1))
    assert other["clips"] != report["clips"] and other["times"] != report["times"]


def test_longer_clips_take_part_with_their_first_frames(tiny_set: Path) -> None:
    short = draw_clips(open_whole_sets([tiny_set]), 100, seed=0, bucket=Bucket(33, 32, 48))
    long = draw_clips(open_whole_sets([tiny_set]), 100, seed=0, bucket=Bucket(65, 32, 48))
    assert len(short.clips) == 20 and len(long.clips) == 10
    assert {clip.clip_id for clip in long.clips} < {clip.clip_id for clip in short.clips}
    whole = {clip.clip_id: clip.latent_TCHW for clip in long.clips}
    for clip in short.clips:
        assert clip.latent_TCHW.shape[0] == 9
        if clip.clip_id in whole:
            assert (clip.latent_TCHW == whole[clip.clip_id][:9]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": (0.5, 1.5)}, "--sigma has [1.5], expected times from 0 (data) to 1 (noise)"),
        (
            {"bucket": Bucket(121, 32, 48)},
            "has no clip for bucket 121x32x48; it has 1x32x48, 1x48x32, 33x32x48, 65x32x48",
        ),
        ({"checkpoint": 9}, "has no checkpoint of step 9"),
    ],
)
def test_mistakes_are_said_in_words(run: Path, tiny_set: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        measure_attention(
            AttentionRequest(**{"run": run, "samples": tiny_set, "num_clips": 1, "sigmas": (0.5,), **changes})
        )
    assert message in str(caught.value)


def test_a_set_of_other_encoders_is_refused(run: Path, make_set: Callable[..., Path], tmp_path: Path) -> None:
    wide = make_set(tmp_path / "wide", text_width=24)
    with pytest.raises(DataError, match="text_width is 24"):
        measure_attention(AttentionRequest(run=run, samples=wide, num_clips=1, sigmas=(0.5,)))


def test_a_damaged_clip_is_named(run: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(tiny_set, tmp_path / "tiny"))
    for shard in folder.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:700])
    arguments = ["--run", run, "--samples", folder, "--output", tmp_path / "out", "--sigma", "0.5"]
    assert main(["evaluate", "attention", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert "error: " in said and "clip" in said and "Traceback" not in said


def test_the_command_writes_numbers_and_a_page_that_a_browser_shows(
    run: Path,
    tiny_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    open_page: Callable[[Path], AbstractContextManager[Any]],
) -> None:
    out = tmp_path / "out"
    arguments = [
        "--run",
        run,
        "--samples",
        tiny_set,
        "--output",
        out,
        "--clips",
        1,
        "--sigma",
        "0.3,0.7",
        "--bucket",
        "33x32x48",
    ]
    assert main(["evaluate", "attention", *map(str, arguments)]) == 0
    assert "video mass that goes to other frames: encoder" in capsys.readouterr().out
    report = json.loads((out / "attention.json").read_text())
    assert report["latent_frames"] == 9 and len(report["clips"]) == 1
    with open_page(out / "attention.html") as driver:
        assert driver.title == f"Attention between frames: {run.name}", "no markup of a name ran"
        maps = driver.find_elements("css selector", ".maps svg")
        assert len(maps) == 2 * (4 + 2), (
            "four encoder blocks, two halves of keys for the decoder half of the last block"
        )
        assert all(picture.is_displayed() for picture in maps)
        bars = driver.find_elements("css selector", ".wide svg g")
        assert len(bars) == 2 * 5 and all(bar.is_displayed() for bar in bars)
        widths = [float(part.get_attribute("width")) for part in bars[0].find_elements("css selector", "rect")]
        block = report["times"][0]["blocks"][0]
        assert widths[0] / sum(widths) == pytest.approx(block["inter_frame_share"], abs=0.01)
        assert len(bars[0].find_elements("css selector", "circle")) == 2, "a circle for each head"
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0, (
            "nothing was fetched"
        )
        assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_queries_of_the_decoders_encoder_half_are_folded_away(report: dict[str, Any]) -> None:
    assert "encoder half as queries" not in render_attention(report), "the last block has none"
    times = copy.deepcopy(report["times"])
    for time in times:
        halves = time["blocks"][-1]["halves"]
        halves["encoder_queries"] = halves["decoder_queries"]
    html = render_attention({**report, "times": times})
    folded = html.partition("encoder half as queries")[2].partition("</details>")[0]
    assert html.count("<details") == render_attention(report).count("<details") + 2 and folded.count("<svg") == 2


def test_a_network_without_decoder_has_a_page_too(report: dict[str, Any]) -> None:
    times = [
        {**time, "blocks": [block for block in time["blocks"] if block["kind"] != "decoder"]}
        for time in report["times"]
    ]
    html = render_attention({**report, "times": times})
    assert "none" in html and ", decoder</h3>" not in html
