"""The figures of the page against brute force over the lanes as Python objects."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.cli import app
from planner.mixing import mix_index, tv_floor, waste
from planner.report import binning, tally
from planner.report.charts import lanes_per_rank
from planner.report.figures import shard_opens, wait_quantile, window_mixes
from planner.report.page import render_report, write_report
from planner.report.sample_facts import load_facts
from planner.report.tally import PlanTally, open_by_row, tally_plan
from schemas.command import run_command
from schemas.errors import PlanError, UsageError
from schemas.plan import LEDGER, ROWS, read_lane, read_plan_meta, read_plan_table, write_lane
from schemas.tables import SAMPLES, read_table, write_table


@pytest.fixture
def counted(written: Any) -> PlanTally:
    meta = written.meta
    return tally_plan(
        written.plan, meta, read_plan_table(written.plan, "rows", ROWS, meta), load_facts(meta, written.sets)
    )


def bucket_of(row: dict[str, Any]) -> str:
    return f"{row['frames']}x{row['height']}x{row['width']}"


def test_rows_steps_and_seconds(written: Any, counted: PlanTally) -> None:
    lanes, meta = written.lanes(), written.meta
    seconds = {entry.bucket: entry.predicted_seconds for entry in meta.batches}
    matrix = np.array([[seconds[bucket_of(row)] for row in lane] for lane in lanes])
    assert counted.waste("micro") == pytest.approx(waste(matrix, meta.micro_per_step, "micro"), abs=1e-12)
    assert counted.waste("step") == pytest.approx(waste(matrix, meta.micro_per_step, "step"), abs=1e-12)
    assert 0.0 < counted.waste("step") < counted.waste("micro")
    assert counted.slowest_M.tolist() == matrix.max(axis=0).tolist()
    assert counted.seconds_V == pytest.approx(matrix.sum(axis=1))
    for at in range(len(lanes[0])):
        found = Counter(bucket_of(lane[at]) for lane in lanes)
        assert counted.counts_MxB[at].tolist() == [found[entry.bucket] for entry in meta.batches]
    uses = Counter(bucket_of(row) for lane in lanes for row in lane for _ in row["clips"])
    assert counted.clips_B.tolist() == [uses[entry.bucket] for entry in meta.batches]
    assert counted.clips_V.tolist() == [sum(len(row["clips"]) for row in lane) for lane in lanes]
    assert counted.bytes_V.tolist() == [sum(read["length"] for row in lane for read in row["reads"]) for lane in lanes]
    assert counted.counts_SxB().sum(axis=1).tolist() == [meta.micro_per_step * meta.num_lanes] * meta.num_steps
    assert [[entry.bucket for entry in meta.batches][cell] for cell in counted.picture_VxC[2]] == [
        bucket_of(row) for row in lanes[2]
    ]


def test_buffered_bytes_and_clips_of_every_row(written: Any, counted: PlanTally) -> None:
    """A clip waits from the read that brings it to its last use in the epoch; one clip of this plan is used twice."""
    held = []
    clips = []
    waits: Counter[int] = Counter()
    for lane in written.lanes():
        read: dict[tuple[int, int, int], int] = {}
        last: dict[tuple[int, int, int], int] = {}
        for at, row in enumerate(lane):
            for place, fact in written.samples.items():
                for item in row["reads"]:
                    if place[0] == item["shard"] and item["offset"] <= fact["offset"] < item["offset"] + item["length"]:
                        read[row["epoch"], *place] = at
            last |= {(row["epoch"], clip["shard"], clip["ordinal"]): at for clip in row["clips"]}
        assert read.keys() == last.keys()
        waits.update(last[key] - read[key] for key in read)
        inside = [[key for key in read if read[key] <= at <= last[key]] for at in range(len(lane))]
        clips.append([len(keys) for keys in inside])
        held.append([sum(written.samples[key[1:]]["length"] for key in keys) for keys in inside])
    found = counted.buffer
    assert found is not None
    assert found.bytes_VxC.tolist() == held, "as many bins as rows: every row is exact"
    assert found.peak_bytes_V.tolist() == [max(lane) for lane in held]
    assert found.peak_clips_V.tolist() == [max(lane) for lane in clips]
    assert found.peak_row_V.tolist() == [lane.index(max(lane)) for lane in held]
    assert found.highest_C.tolist() == np.max(held, axis=0).tolist()
    assert found.median_C.tolist() == np.median(held, axis=0).tolist()
    assert {wait: count for wait, count in enumerate(found.wait_rows.tolist()) if count} == dict(waits)
    ordered = sorted(waits.elements())
    assert wait_quantile(found.wait_rows, 0.5) == ordered[-(-len(ordered) // 2) - 1]
    assert wait_quantile(found.wait_rows, 1.0) == ordered[-1]


def test_domains_of_every_step(written: Any, counted: PlanTally) -> None:
    found: Counter[tuple[int, str]] = Counter()
    for lane in written.lanes():
        for row in lane:
            for clip in row["clips"]:
                fact = written.samples[clip["shard"], clip["ordinal"]]
                found[row["step"] - written.meta.first_step, fact["domain"]] += 1
    assert counted.domain_SxD is not None
    for step, counts in enumerate(counted.domain_SxD.tolist()):
        assert counts == [found[step, name] for name in counted.domains]
    in_samples = Counter(fact["domain"] for fact in written.samples.values())
    assert list(counted.domains) == sorted(in_samples, key=lambda name: (-in_samples[name], name))


def test_opens_and_visits(written: Any, counted: PlanTally) -> None:
    meta, lanes = written.meta, written.lanes()
    pairs: Counter[tuple[int, int]] = Counter()
    spans: dict[tuple[int, int, int], list[int]] = {}
    for number, lane in enumerate(lanes):
        for at, row in enumerate(lane):
            for read in row["reads"]:
                spans.setdefault((number, row["epoch"], read["shard"]), []).append(at)
    for _, epoch, shard in spans:
        pairs[epoch, shard] += 1
    visits = counted.visits
    keys = list(zip(visits.lane.tolist(), visits.epoch.tolist(), visits.shard.tolist(), strict=True))
    assert keys == list(spans), "in reading order"
    assert visits.first_row.tolist() == [rows[0] for rows in spans.values()]
    assert visits.last_row.tolist() == [rows[-1] for rows in spans.values()]
    assert visits.num_reads.tolist() == [len(rows) for rows in spans.values()]
    opens = shard_opens(visits, 12, 2, meta.first_epoch)
    assert opens.per_shard == len(spans) / 24
    assert opens.by_lanes.tolist() == [
        24 - len(pairs),
        *(list(pairs.values()).count(lanes) for lanes in range(1, max(pairs.values()) + 1)),
    ]
    shard, epoch, most, ranges = opens.most_opened[0]
    assert most == max(pairs.values()) == pairs[epoch, shard] == 2
    assert ranges == sum(len(rows) for key, rows in spans.items() if key[1:] == (epoch, shard))


def test_open_shards_are_counted_read_by_read() -> None:
    """Shards A (reads 0, 3), B (1), C (2, 4) at rows 1, 1, 3, 5, 5: A and B overlap, then A and C, and C outlives A."""
    row = np.array([1, 1, 3, 5, 5])
    assert open_by_row(row, np.array([0, 1, 2]), np.array([3, 1, 4]), 8).tolist() == [0, 2, 1, 2, 2, 2, 0, 0]
    assert open_by_row(np.empty(0, int), np.empty(0, int), np.empty(0, int), 2).tolist() == [0, 0]


def test_mixing_is_measured_as_defined(written: Any, counted: PlanTally) -> None:
    counts = counted.counts_SxB()
    mixes = window_mixes(counts)
    assert [item.window for item in mixes] == [1, 8], "this plan has fewer than 64 steps"
    for item in mixes:
        windows = [counts[at : at + item.window].sum(axis=0) for at in range(len(counts) - item.window + 1)]
        shares = counts.sum(axis=0) / counts.sum()
        tv = [0.5 * np.abs(window / window.sum() - shares).sum() for window in windows]
        assert (
            item.values == pytest.approx(tv)
            and item.mean == pytest.approx(np.mean(tv))
            and item.worst == pytest.approx(max(tv))
        )
        draws = item.window * written.meta.num_lanes * written.meta.micro_per_step
        assert (
            item.floor
            == pytest.approx(np.sqrt(shares * (1 - shares) / (2 * np.pi * draws)).sum())
            == tv_floor(shares, draws)
        )
        assert item.index == pytest.approx(item.mean / item.floor) == mix_index(counts, item.window)
        assert item.middles[0] == item.window / 2 and item.middles[-1] == len(counts) - item.window / 2
    assert window_mixes(counts[:, :1]) == [], "one bucket has nothing to mix"


def test_long_plans_are_binned(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_COLUMNS", 7)
    monkeypatch.setattr(tally, "BUFFER_COLUMNS", 5)
    monkeypatch.setattr(tally, "MOST_LANES", 2)
    meta = written.meta
    rows = read_plan_table(written.plan, "rows", ROWS, meta)
    found = tally_plan(written.plan, meta, rows, load_facts(meta, written.sets))
    assert found.drawn_lanes.tolist() == [0, 2] and found.picture_VxC.shape == (2, 7)
    lanes = written.lanes()
    names = [entry.bucket for entry in meta.batches]
    for column, row in enumerate(found.picture_rows.tolist()):
        assert found.picture_edges[column] <= row < found.picture_edges[column + 1]
        assert names[found.picture_VxC[1][column]] == bucket_of(lanes[2][row])
    assert found.buffer is not None and found.buffer.highest_C.shape == (5,)
    assert found.buffer.highest_C.max() == found.buffer.peak_bytes_V.max(), "binning keeps the peak"
    assert "one of each bin by a seeded draw; it shows 2 of 4 lanes" in render_report(written.plan, written.sets)


@pytest.mark.parametrize(("rows", "most", "edges"), [(5, 2, [0, 2, 5]), (3, 10, [0, 1, 2, 3]), (1, 1, [0, 1])])
def test_bins(rows: int, most: int, edges: list[int]) -> None:
    assert binning.bin_edges(rows, most).tolist() == edges
    values = np.arange(rows) + 1
    assert binning.bin_sum(values, np.array(edges)).sum() == values.sum()
    assert binning.bin_max(values, np.array(edges)).tolist() == [values[edge - 1] for edge in edges[1:]]
    assert binning.bin_mean(values, np.array(edges))[0] == values[: edges[1]].mean()


def test_world_sizes_are_the_divisors() -> None:
    for lanes in (1, 7, 12, 64):
        assert lanes_per_rank(lanes) == [count for count in range(1, lanes + 1) if lanes % count == 0]


def data_of(page: str) -> dict[str, Any]:
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(block)


def test_the_page_holds_the_numbers_and_nothing_from_outside(written: Any, counted: PlanTally) -> None:
    page = render_report(written.plan, written.sets)
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", page), "nothing is fetched"
    assert page.count("<script") == 2 and "<img" not in page, "markup from data is escaped"
    data = data_of(page)
    assert data["shards"][6].startswith("</script>"), "data keeps the name as it is"
    packed = data["strip"]["counts"]
    found = np.frombuffer(base64.b64decode(packed["data"]), "<u2").reshape(packed["shape"])
    assert found.tolist() == counted.counts_MxB.tolist()
    assert f"{counted.waste('micro'):.2%}" in page and f"{written.meta.used_share:.2%}" in page
    assert "Nothing: every figure is that of the constructive start." in page
    assert "Not proved: there is no certificate.json" in page and "no certificate, no bound" in page
    assert page == render_report(written.plan, written.sets), "the same plan gives the same page"


def test_peaks_of_the_samples_are_held_against_those_of_the_plan(
    written: Any, counted: PlanTally, rewrite: Callable[..., None]
) -> None:
    words = "These samples give other peaks than plan.json"
    assert words in render_report(written.plan, written.sets)
    assert counted.buffer is not None
    rewrite(written.plan, peak_buffer_bytes=counted.buffer.peak_bytes_V.tolist(), max_buffer_bytes=10_000)
    page = render_report(written.plan, written.sets)
    assert words not in page
    assert "<div class='fact bad'>" in page, "a peak above the cap is marked"


def test_without_samples_the_page_says_what_is_missing(written: Any) -> None:
    page = render_report(written.plan)
    assert "make this page with --samples to see how they mix" in page
    assert "The peaks below are those of plan.json" in page
    assert data_of(page)["buffer"] is None and data_of(page)["domains"] is None


def test_the_certificate_gives_the_bound(written: Any) -> None:
    certificate = {
        "plan_hash": written.meta.plan_hash,
        "rules_that_hold": {"once_per_epoch": "no clip twice"},
        "rules_not_checked": {"shard_files": "no tar <here>"},
        "bounds": {"used_share_upper_bound": 0.9951},
        "counts": {"lanes": 4},
    }
    path = written.plan / "certificate.json"
    path.write_text(json.dumps(certificate), encoding="utf-8")
    page = render_report(written.plan)
    assert "bound 99.51%" in page and "Proved: 1 rules hold; 1 not checked: shard_files" in page
    assert "no tar &lt;here&gt;" in page
    path.write_text(json.dumps(certificate | {"plan_hash": "0" * 64}), encoding="utf-8")
    assert "certificate.json is of another plan" in render_report(written.plan)
    path.write_text("no json", encoding="utf-8")
    assert "Not proved" in render_report(written.plan)


def test_the_ledger_is_summed_by_reason(written: Any) -> None:
    page = render_report(written.plan)
    (body,) = re.findall(r"<table class='ledger'>.*?<tbody>(.*?)</tbody>", page, re.S)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]
    found = Counter()
    for epoch, bucket, event, _, clips in rows:
        found[int(epoch), bucket, event] += int(clips.replace(",", ""))
    table = read_plan_table(written.plan, "ledger", LEDGER, written.meta).to_pylist()
    assert found == Counter((row["epoch"], bucket_of(row), row["event"].replace("_", " ")) for row in table)
    assert {event for _, _, event in found} == {"left over", "carried", "repeated"}


def test_no_curve_is_said_in_words(written: Any, rewrite: Callable[..., None]) -> None:
    assert "mix index over" in render_report(written.plan)
    rewrite(written.plan, tier_curve=[])
    assert "plan.json has no curve" in render_report(written.plan)


def test_other_samples_are_refused(written: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the plan reads 2 sets, --samples gives 1"):
        render_report(written.plan, written.sets[:1])
    path = written.sets[0] / "samples.parquet"
    table = read_table(path, SAMPLES)
    write_table(path, table.slice(0, table.num_rows - 30), SAMPLES)
    with pytest.raises(PlanError, match=r"lane \d names sample \d+ of shard 5, which --samples do not have"):
        render_report(written.plan, written.sets)


def test_samples_of_other_sizes_are_seen(written: Any) -> None:
    path = written.sets[1] / "samples.parquet"
    table = read_table(path, SAMPLES)
    moved = table.set_column(SAMPLES.get_field_index("offset"), "offset", [table["offset"].to_numpy() + 512])
    write_table(path, moved.cast(SAMPLES), SAMPLES)
    with pytest.raises(PlanError, match="none of its reads brings in time"):
        render_report(written.plan, written.sets)


def test_a_changed_lane_is_refused(written: Any) -> None:
    table = read_lane(written.plan, 1, written.meta)
    write_lane(written.plan, 1, table.slice(0, table.num_rows - 1))
    with pytest.raises(PlanError, match="lane-0001"):
        render_report(written.plan)


def test_a_built_plan_says_the_same_as_its_builder(
    write_set: Callable[..., Path], make_shards: Callable[..., Any], tmp_path: Path
) -> None:
    """Figures that the builder writes into plan.json, found again from its lanes."""
    config = Path(__file__).parents[3] / "configs" / "plan_demo.yaml"
    samples, plan = write_set(tmp_path / "set", make_shards(4, 60)), tmp_path / "plan"
    arguments = [
        "build",
        "--samples",
        str(samples),
        "--config",
        str(config),
        "--output",
        str(plan),
        "--set",
        "anneal_steps=100",
    ]
    assert run_command(app, arguments) == 0
    meta = read_plan_meta(plan)
    found = tally_plan(plan, meta, read_plan_table(plan, "rows", ROWS, meta), load_facts(meta, [samples]))
    assert found.buffer is not None
    assert tuple(found.buffer.peak_bytes_V.tolist()) == meta.peak_buffer_bytes
    assert found.clips_V.sum() == round(meta.used_share * meta.admitted_clips * meta.num_epochs)
    opens = shard_opens(found.visits, 4, meta.num_epochs).per_shard
    assert opens == pytest.approx(meta.metrics["opens_per_shard"])
    assert found.slowest_M.tolist() == read_plan_table(plan, "rows", ROWS, meta)["predicted_seconds"].to_pylist()
    assert "give other peaks" not in render_report(plan, [samples])


def test_the_command_writes_one_file(written: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "report.html"
    arguments = ["report", str(written.plan), "--output", str(output)]
    for folder in written.sets:
        arguments += ["--samples", str(folder)]
    assert run_command(app, arguments) == 0
    assert output.read_text(encoding="utf-8") == render_report(written.plan, written.sets)
    assert run_command(app, arguments) == 2
    assert "exists already; give another file, or --overwrite" in capsys.readouterr().err
    assert run_command(app, [*arguments, "--overwrite"]) == 0
    with pytest.raises(UsageError, match=r"must end in \.html"):
        write_report(written.plan, [], tmp_path / "report.pdf")
