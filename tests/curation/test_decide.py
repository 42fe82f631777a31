"""Decisions: each reason, each branch, who stays of a group of copies, and that every clip is told exactly once per level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.decide import KEEP, decide, failures, limits_by_measure
from curation.thresholds import CONTROLS, DecideSettings
from schemas.config import build_config
from schemas.errors import ConfigError, DataError
from schemas.tables import ADMISSIONS, BRANCHES, CLIPS, LABELS, PAIRS, table_from_rows

Row = dict[str, Any]
ClipRow = Callable[..., Row]

SMALL_CROP = {"top": 0, "left": 0, "bottom": 100, "right": 100}
FAILURES: dict[str, Row] = {
    "nsfw": {"nsfw": 0.9},
    "no_good_crop": {"crop_flags": ["overlay", "no_good_crop"]},
    "overlay": {"overlay_area_ratio": 0.05},
    "too_small": {"crop": SMALL_CROP},
    "too_short": {"frames": 1},
    "static": {"motion": 0.01},
    "too_fast": {"motion": 90.0},
    "too_dark": {"luma": 3.0},
    "too_bright": {"luma": 250.0},
    "blurred": {"sharpness": 1.0},
    "text_heavy": {"text_area_ratio": 0.6},
    "letterboxed": {"border_area_ratio": 0.7},
}
"""Reason to the change of a clip's row that causes it, at the first level."""
VIDEO_ONLY = {"too_short", "static", "too_fast"}


def label_row(clip: Row, **changes: Any) -> Row:
    texts = dict.fromkeys(
        ("caption_long", "caption_short", "caption_first", "subject", "style", "action", "camera_move"), "x"
    )
    nulls = dict.fromkeys(("quality", "watermark", "nsfw", "padded", "multi_scene", "timelapse"))
    return {"clip_id": clip["clip_id"], **texts, **nulls, "tags": [], "model": "m", "prompt_version": "1"} | changes


def decided(
    clips: Sequence[Row],
    pairs: Sequence[tuple[Row, Row, float, bool]] = (),
    labels: Sequence[Row] | None = None,
    config: DecideSettings | None = None,
) -> dict[tuple[str, str], Row]:
    """(clip id, admission) to the decision."""
    rows = []
    for first, second, cosine, verified in pairs:
        ids = sorted((first["clip_id"], second["clip_id"]))
        counts = {"mean_cosine": cosine, "offset_us": 0, "frames_agree": 3, "frames_compared": 3, "verified": verified}
        rows.append({"clip_a": ids[0], "clip_b": ids[1], "cosine": cosine, **counts})
    table = decide(
        table_from_rows(CLIPS, clips),
        table_from_rows(PAIRS, rows),
        None if labels is None else table_from_rows(LABELS, labels),
        config or DecideSettings(),
    )
    found = {(row["clip_id"], row["admission"]): row for row in table.to_pylist()}
    assert len(found) == table.num_rows
    assert sorted(found) == sorted((clip["clip_id"], level) for clip in clips for level in ADMISSIONS)
    return found


def only(clip: Row, **arguments: Any) -> Row:
    """The decision on one clip at the first level."""
    return decided([clip], **arguments)[clip["clip_id"], ADMISSIONS[0]]


def test_a_good_clip_is_kept_at_every_level(clip_row: ClipRow) -> None:
    clip = clip_row(1)
    for row in decided([clip]).values():
        assert row["decision"] == KEEP
        assert (row["measure"], row["value"], row["limit"], row["duplicate_of"]) == (None, None, None, None)


@pytest.mark.parametrize("reason", FAILURES)
def test_reason_measure_value_and_limit(clip_row: ClipRow, reason: str) -> None:
    row = only(clip_row(1, **FAILURES[reason]))
    assert row["decision"] == reason
    changed = next(iter(FAILURES[reason]))
    expected = {"crop": ("crop_pixels", 10_000.0), "crop_flags": ("no_good_crop", 1.0)}
    measure, value = expected.get(changed, (changed, FAILURES[reason][changed]))
    assert row["measure"] == measure
    assert row["value"] == pytest.approx(value)
    below = reason in ("too_small", "too_short", "static", "too_dark", "blurred")
    assert row["value"] < row["limit"] if below else row["value"] > row["limit"]


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("reason", FAILURES)
def test_controls_apply_to_their_branches_only(clip_row: ClipRow, branch: str, reason: str) -> None:
    every = build_config(DecideSettings, {"levels": {"144p": {"branches": list(BRANCHES)}}}, source="test")
    row = only(clip_row(1, branch=branch, **FAILURES[reason]), config=every)
    applies = branch.startswith("video") or reason not in VIDEO_ONLY
    assert row["decision"] == (reason if applies else KEEP)


def test_the_table_of_controls_is_the_configs(clip_row: ClipRow) -> None:
    config = build_config(DecideSettings, {"controls": {"video_real": ["too_dark"]}}, source="test")
    assert only(clip_row(1, motion=0.0, nsfw=1.0), config=config)["decision"] == KEEP
    assert only(clip_row(1, motion=0.0, luma=0.0), config=config)["decision"] == "too_dark"
    image = clip_row(2, branch="image_real", luma=0.0)
    assert only(image, config=config)["decision"] == "too_dark", "branches that are left out keep their defaults"


@pytest.mark.parametrize("reason", ["nsfw", "static", "too_dark", "blurred", "text_heavy", "overlay"])
def test_a_missing_score_never_rejects(clip_row: ClipRow, reason: str) -> None:
    score = next(iter(FAILURES[reason]))
    assert only(clip_row(1, **{score: None, f"{score}_reason": "not computable"}))["decision"] == KEEP


def test_the_first_control_that_fails_is_the_reason(clip_row: ClipRow) -> None:
    order = [reason for reason in CONTROLS if reason in FAILURES and reason not in ("too_fast", "too_bright")]
    everything: Row = {}
    for reason in order:
        everything |= FAILURES[reason]
    for reason in order:
        assert only(clip_row(1, **everything))["decision"] == reason
        good = clip_row(1)
        everything |= {column: good[column] for column in FAILURES[reason]}


def test_synthetic_video_enters_at_720p(clip_row: ClipRow) -> None:
    clip = clip_row(1, branch="video_synthetic")
    found = {level: decided([clip])[clip["clip_id"], level]["decision"] for level in ADMISSIONS}
    assert found == dict.fromkeys(("144p", "360p", "480p"), "branch_not_admitted") | dict.fromkeys(
        ("720p", "sft"), KEEP
    )


def test_levels_grow_stricter(clip_row: ClipRow) -> None:
    clip = clip_row(1, crop={"top": 0, "left": 0, "bottom": 400, "right": 700}, frames=65)
    found = [decided([clip])[clip["clip_id"], level]["decision"] for level in ADMISSIONS]
    assert found == [KEEP, KEEP, "too_small", "too_small", "too_small"]


@pytest.mark.parametrize("label", ["nsfw", "watermark", "padded", "multi_scene", "timelapse"])
def test_labels_reject_where_they_say_so(clip_row: ClipRow, label: str) -> None:
    clip = clip_row(1)
    assert only(clip, labels=[label_row(clip, **{label: True})])["decision"] == f"label_{label}"
    assert only(clip, labels=[label_row(clip, **{label: False})])["decision"] == KEEP
    assert only(clip, labels=[label_row(clip)])["decision"] == KEEP, "not judged is no rejection"
    assert only(clip, labels=[])["decision"] == KEEP, "not captioned is no rejection"
    none = build_config(DecideSettings, {"levels": {"144p": {"labels": []}}}, source="test")
    assert only(clip, labels=[label_row(clip, **{label: True})], config=none)["decision"] == KEEP


def test_low_quality_goes_from_480p_on(clip_row: ClipRow) -> None:
    clip = clip_row(1)
    rows = decided([clip], labels=[label_row(clip, quality="low")])
    assert [rows[clip["clip_id"], level]["decision"] for level in ADMISSIONS] == [KEEP, KEEP, *["low_quality"] * 3]
    rows = decided([clip], labels=[label_row(clip, quality="medium")])
    assert rows[clip["clip_id"], "480p"]["decision"] == KEEP
    assert rows[clip["clip_id"], "sft"]["decision"] == "low_quality"


def test_of_copies_the_best_by_resolution_fps_and_size_stays(clip_row: ClipRow) -> None:
    small = {"top": 0, "left": 0, "bottom": 540, "right": 960}
    large = clip_row(1)
    fast = clip_row(2, crop=small, source_fps=60.0, source_bytes=9_000_000)
    plain = clip_row(3, crop=small)
    pairs = [(large, fast, 0.9, True), (fast, plain, 0.8, True)]
    half = build_config(DecideSettings, {"keeper": {"resolution": 0.4, "fps": 0.4}}, source="test")
    rows = decided([large, fast, plain], pairs, config=half)
    assert rows[fast["clip_id"], "144p"]["decision"] == KEEP
    assert rows[large["clip_id"], "144p"]["duplicate_of"] == fast["clip_id"]
    weights = build_config(DecideSettings, {"keeper": {"resolution": 0.6, "fps": 0.2}}, source="test")
    rows = decided([large, fast, plain], pairs, config=weights)
    assert rows[large["clip_id"], "144p"]["decision"] == KEEP
    lost = rows[plain["clip_id"], "144p"]
    assert (lost["decision"], lost["duplicate_of"], lost["measure"]) == ("duplicate", large["clip_id"], "cosine")
    assert lost["value"] == pytest.approx(0.8), "no pair with the keeper: the strongest pair in the chain"
    assert rows[fast["clip_id"], "144p"]["value"] == pytest.approx(0.9)


def test_ties_go_to_the_smallest_clip_id(clip_row: ClipRow) -> None:
    clips = [clip_row(number) for number in range(4)]
    pairs = [(clips[0], clip, 0.9, True) for clip in clips[1:]]
    rows = decided(clips, pairs)
    kept = [clip for clip in clips if rows[clip["clip_id"], "144p"]["decision"] == KEEP]
    assert kept == [min(clips, key=lambda clip: clip["clip_id"])]


def test_copies_are_decided_among_the_clips_that_pass(clip_row: ClipRow) -> None:
    best_but_dark, copy = clip_row(1, luma=2.0), clip_row(2, source_bytes=10)
    rows = decided([best_but_dark, copy], [(best_but_dark, copy, 0.95, True)])
    assert rows[best_but_dark["clip_id"], "144p"]["decision"] == "too_dark"
    assert rows[copy["clip_id"], "144p"]["decision"] == KEEP


def test_a_chain_through_a_rejected_clip_is_no_chain(clip_row: ClipRow) -> None:
    first, dark, last = clip_row(1), clip_row(2, luma=2.0), clip_row(3)
    rows = decided([first, dark, last], [(first, dark, 0.9, True), (dark, last, 0.9, True)])
    assert [rows[clip["clip_id"], "144p"]["decision"] for clip in (first, last)] == [KEEP, KEEP]


def test_pairs_that_were_not_verified_join_nothing(clip_row: ClipRow) -> None:
    first, second = clip_row(1), clip_row(2)
    rows = decided([first, second], [(first, second, 0.95, False)])
    assert {row["decision"] for row in rows.values()} == {KEEP}


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_group_keeps_exactly_one(clip_row: ClipRow, data: st.DataObject) -> None:
    """With random copies and random faults, each group of passing clips keeps one, and each duplicate names a kept clip."""
    num_clips = data.draw(st.integers(1, 12))
    faults = data.draw(st.lists(st.sampled_from([{}, {}, {"luma": 1.0}]), min_size=num_clips, max_size=num_clips))
    clips = [clip_row(number, **fault, source_bytes=number % 3) for number, fault in enumerate(faults)]
    places = st.integers(0, num_clips - 1)
    edges = data.draw(st.sets(st.tuples(places, places).filter(lambda edge: edge[0] < edge[1]), max_size=12))
    rows = decided(clips, [(clips[first], clips[second], 0.9, True) for first, second in edges])
    found: list[Mapping[str, Any]] = [rows[clip["clip_id"], "144p"] for clip in clips]
    passing = {number for number, fault in enumerate(faults) if not fault}
    groups = {number: {number} for number in passing}
    for first, second in edges:
        if first in passing and second in passing:
            joined = groups[first] | groups[second]
            for number in joined:
                groups[number] = joined
    for number in passing:
        kept = [other for other in groups[number] if found[other]["decision"] == KEEP]
        assert len(kept) == 1
        if found[number]["decision"] != KEEP:
            assert found[number]["duplicate_of"] == clips[kept[0]]["clip_id"]
    assert all(found[number]["decision"] == "too_dark" for number in range(num_clips) if number not in passing)


STRICTER: dict[str, tuple[str, list[float]]] = {
    "letterboxed": ("border_area_ratio", [0.6, 0.45, 0.38, 0.32]),
    "still_picture": ("motion_local", [0.02, 0.035, 0.045, 0.06]),
    "shaky": ("shake", [20.0, 14.0, 10.0, 6.0]),
    "low_fps": ("effective_fps", [5.0, 10.0, 12.0, 18.0]),
    "upscaled": ("effective_resolution_ratio", [0.2, 0.32, 0.38, 0.42]),
    "blocky": ("blockiness", [4.0, 2.8, 2.3, 2.0]),
}
"""Reason to its score, and values that fail at 360p, 480p, 720p and sft, and not before."""


@pytest.mark.parametrize("reason", STRICTER)
@pytest.mark.parametrize("place", range(4))
def test_new_scores_reject_from_a_level_on(clip_row: ClipRow, reason: str, place: int) -> None:
    score, values = STRICTER[reason]
    rows = decided([clip_row(1, **{score: values[place]})])
    found = [rows[clip_row(1)["clip_id"], level]["decision"] for level in ADMISSIONS]
    first = 0 if reason == "letterboxed" and place == 0 else place + 1
    assert found == [KEEP] * first + [reason] * (5 - first)
    image = decided([clip_row(2, branch="image_real", **{score: values[place]})])
    video_only = reason in ("still_picture", "shaky", "low_fps")
    assert image[clip_row(2, branch="image_real")["clip_id"], "360p"]["decision"] == (
        reason if place == 0 and not video_only else KEEP
    )


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_stricter_level_keeps_a_subset_and_a_null_rejects_nowhere(clip_row: ClipRow, data: st.DataObject) -> None:
    """Over all scores of real video; without the scores, the same clip is kept by no fewer levels."""
    scores = {
        name: data.draw(st.one_of(st.none(), st.floats(low, high, width=32)), label=name)
        for name, low, high in (
            ("nsfw", 0, 1), ("motion", 0, 50), ("motion_local", 0, 1), ("shake", 0, 20), ("luma", 0, 255),
            ("sharpness", 0, 50), ("text_area_ratio", 0, 0.5), ("border_area_ratio", 0, 1), ("blockiness", 1, 4),
            ("effective_resolution_ratio", 0, 1), ("effective_fps", 0, 60),
        )
    }  # fmt: skip
    clip = clip_row(1, **scores)
    without = clip_row(1, **dict.fromkeys(scores))
    rows, free = decided([clip]), decided([without])
    kept = [rows[clip["clip_id"], level]["decision"] == KEEP for level in ADMISSIONS]
    assert kept == sorted(kept, reverse=True)
    assert all(free[clip["clip_id"], level]["decision"] == KEEP for level in ADMISSIONS)
    for name in scores:
        fewer = decided([clip | {name: None}])
        assert all(
            fewer[clip["clip_id"], level]["decision"] == KEEP or not was
            for level, was in zip(ADMISSIONS, kept, strict=True)
        )


def test_an_enlarged_copy_does_not_beat_its_original(clip_row: ClipRow) -> None:
    small = {"top": 0, "left": 0, "bottom": 540, "right": 960}
    original = clip_row(1, crop=small, effective_resolution_ratio=0.85)
    enlarged = clip_row(2, effective_resolution_ratio=0.4, source_bytes=1_200_000)
    pairs = [(original, enlarged, 0.95, True)]
    rows = decided([original, enlarged], pairs)
    assert rows[enlarged["clip_id"], "144p"]["duplicate_of"] == original["clip_id"]
    unknown = enlarged | {"effective_resolution_ratio": None}
    rows = decided([original, unknown], pairs)
    assert rows[original["clip_id"], "144p"]["duplicate_of"] == enlarged["clip_id"], "not computable: by its pixels"


def test_noise_of_the_effective_resolution_does_not_choose(clip_row: ClipRow) -> None:
    large = clip_row(1, effective_resolution_ratio=0.70, source_bytes=5_000_000)
    coarse = clip_row(2, effective_resolution_ratio=0.74)
    rows = decided([large, coarse], [(large, coarse, 0.95, True)])
    assert rows[coarse["clip_id"], "144p"]["duplicate_of"] == large["clip_id"]


def test_nothing_in_nothing_out() -> None:
    assert decided([]) == {}


def test_same_rows_in_another_order_give_the_same_table(clip_row: ClipRow) -> None:
    clips = [clip_row(number, luma=float(40 * number)) for number in range(7)]
    pairs = table_from_rows(PAIRS, [])
    forward = decide(table_from_rows(CLIPS, clips), pairs, None, DecideSettings())
    backward = decide(table_from_rows(CLIPS, clips[::-1]), pairs, None, DecideSettings())
    assert forward.equals(backward)
    ids = forward.column("clip_id").to_pylist()
    assert ids == sorted(ids)


def test_tables_of_different_runs_are_refused(clip_row: ClipRow) -> None:
    clip, stranger = clip_row(1), clip_row(2)
    with pytest.raises(DataError, match=stranger["clip_id"]):
        decided([clip], [(clip, stranger, 0.9, True)])
    with pytest.raises(DataError, match="labels"):
        decided([clip], labels=[label_row(stranger)])
    with pytest.raises(DataError, match="more than once"):
        decide(
            pa.concat_tables([table_from_rows(CLIPS, [clip])] * 2), table_from_rows(PAIRS, []), None, DecideSettings()
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": {"240p": {}}}, "240p"),
        ({"levels": {"144p": {"min_moton": 1}}}, "did you mean 'min_motion'"),
        ({"levels": {"144p": {"min_luma": 200, "max_luma": 100}}}, "min_luma"),
        ({"levels": {"144p": {"labels": ["label_ugly"]}}}, "label_ugly"),
        ({"controls": {"video_real": ["statik"]}}, "statik"),
        ({"controls": {"audio": []}}, "audio"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(DecideSettings, values, source="test")


def test_a_changed_threshold_leaves_the_others_alone() -> None:
    changed = build_config(DecideSettings, {"levels": {"360p": {"min_motion": 1.5}}}, source="test")
    assert changed.levels["360p"].min_motion == 1.5
    assert changed.levels["360p"].min_pixels == DecideSettings().levels["360p"].min_pixels
    assert changed.levels["480p"] == DecideSettings().levels["480p"]


def test_every_failing_control_is_told_not_only_the_first(clip_row: Callable[..., Row]) -> None:
    clips = [clip_row(0), clip_row(1, motion=0.0, luma=1.0)]
    table = table_from_rows(CLIPS, clips)
    found = failures(table, None, DecideSettings()).rows(named=True)
    first = [row for row in found if row["admission"] == "144p"]
    assert [(row["clip_id"], row["control"]) for row in first] == [
        (clips[1]["clip_id"], "static"),
        (clips[1]["clip_id"], "too_dark"),
    ]
    assert (first[1]["measure"], first[1]["value"], first[1]["limit"]) == ("luma", 1.0, 16.0)


def test_what_decide_gives_is_the_first_failure(clip_row: Callable[..., Row]) -> None:
    clips = [clip_row(n, motion=n / 50, luma=200.0 - 4 * n, sharpness=float(n)) for n in range(50)]
    table = table_from_rows(CLIPS, clips)
    decisions = decide(table, table_from_rows(PAIRS, []), None, DecideSettings()).to_pylist()
    first: dict[tuple[str, str], Row] = {}
    for row in failures(table, None, DecideSettings()).rows(named=True):
        first.setdefault((row["clip_id"], row["admission"]), row)
    for row in decisions:
        told = first.get((row["clip_id"], row["admission"]))
        assert row["decision"] == ("keep" if told is None else told["control"])
        assert told is None or (row["measure"], row["value"], row["limit"]) == (
            told["measure"],
            told["value"],
            told["limit"],
        )


def test_limits_by_measure_holds_numbers_only() -> None:
    limits = limits_by_measure(DecideSettings().levels["sft"])
    assert limits["motion"] == [0.2, 20.0]
    assert not any(name.startswith("label_") or name == "quality" for name in limits)


def test_a_copy_of_what_an_earlier_run_kept_is_a_duplicate_of_it_at_that_level(clip_row: ClipRow) -> None:
    """The best new clip too, whatever its size; also a clip that was itself kept; and only at the levels that were kept."""
    new, again = clip_row(1), clip_row(2)
    pair = {"clip_a": new["clip_id"], "clip_b": "f" * 32, "cosine": 0.9, "mean_cosine": 0.9, "offset_us": 0,
            "frames_agree": 5, "frames_compared": 5, "verified": True}  # fmt: skip
    published = pa.table({"clip_id": ["f" * 32, again["clip_id"]], "admission": ["144p", "144p"]})
    rows = decide(
        table_from_rows(CLIPS, [new, again]), table_from_rows(PAIRS, [pair]), None, DecideSettings(), published
    ).to_pylist()
    found = {(row["clip_id"], row["admission"]): row for row in rows}
    assert len(rows) == 10
    assert found[new["clip_id"], "144p"]["decision"] == "duplicate"
    assert found[new["clip_id"], "144p"]["duplicate_of"] == "f" * 32
    assert found[again["clip_id"], "144p"]["duplicate_of"] == again["clip_id"]
    assert all(row["decision"] != "duplicate" for (_, level), row in found.items() if level != "144p")
    with pytest.raises(DataError, match="not among the clips"):
        decide(table_from_rows(CLIPS, [new]), table_from_rows(PAIRS, [pair]), None, DecideSettings())
