"""Copies: planted ones in real media with real SSCD descriptors, and the rules on descriptors made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation.analysis.settings import AnalyzeSettings
from curation.analysis.worker import AnalyzeModels, analyze_source
from curation.match import MatchSettings, match_clips
from schemas.errors import DataError
from schemas.ids import clip_id
from schemas.tables import CLIPS, DESCRIPTORS, PAIRS, read_table

Row = dict[str, Any]
Film = tuple[list[Row], list[Row]]


def directions(count: int, seed: int) -> NDArray[np.float64]:
    """Random unit vectors (count, 512): cosines of different ones are near 0."""
    vectors = np.random.default_rng(seed).normal(size=(count, 512))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def near(vector: NDArray[np.float64], cosine: float, seed: int) -> NDArray[np.float64]:
    """A unit vector with about this cosine to `vector`."""
    side = directions(1, 10_000 + seed)[0]
    side -= (side @ vector) * vector
    return cosine * vector + (1 - cosine**2) ** 0.5 * side / np.linalg.norm(side)


def film(
    name: str,
    clips: Sequence[NDArray[np.float64]],
    *,
    kind: str = "video",
    model: str = "sscd",
    shift_us: int = 0,
) -> Film:
    """Clips of 5 s, one after another, with a descriptor a second; `shift_us` moves the frames' times."""
    rows, descriptors = [], []
    for place, vectors in enumerate(clips):
        start, end = (0, 0) if kind == "image" else (place * 5_000_000, (place + 1) * 5_000_000)
        identity = clip_id(name, start, end)
        span = {"start_us": start, "end_us": end}
        rows.append({"clip_id": identity, "content_hash": name, "kind": kind, **span})
        for second, vector in enumerate(vectors):
            time = max(0, second * 1_000_000 + shift_us)
            frame = {"time_us": time, "descriptor": vector.astype(np.float16), "model": model}
            descriptors.append({"clip_id": identity, **frame})
    return rows, descriptors


def matched(*films: Film, **settings: Any) -> dict[frozenset[str], Row]:
    """Pair of clip ids to its row."""
    rows = [row for clips, _ in films for row in clips]
    frames = [row for _, descriptors in films for row in descriptors]
    vectors = pa.array([row["descriptor"] for row in frames]).cast(DESCRIPTORS.field("descriptor").type)
    columns = {name: [row[name] for row in frames] for name in ("clip_id", "time_us", "model")}
    descriptors = pa.table({**columns, "descriptor": vectors}).select(DESCRIPTORS.names).cast(DESCRIPTORS)
    table = match_clips(descriptors, pa.Table.from_pylist(rows), MatchSettings(**settings))
    assert table.schema.equals(PAIRS)
    found = table.to_pylist()
    assert all(row["clip_a"] < row["clip_b"] for row in found)
    order = [(row["clip_a"], row["clip_b"]) for row in found]
    assert order == sorted(order)
    return {frozenset((row["clip_a"], row["clip_b"])): row for row in found}


def ids(*films: Film) -> frozenset[str]:
    return frozenset(row["clip_id"] for clips, _ in films for row in clips)


def noisy(vectors: NDArray[np.float64], cosine: float, seed: int = 0) -> NDArray[np.float64]:
    return np.stack([near(vector, cosine, seed + place) for place, vector in enumerate(vectors)])


def test_a_copy_is_verified_by_all_its_frames() -> None:
    frames = directions(5, 1)
    row = matched(first := film("a", [frames]), second := film("b", [noisy(frames, 0.8)]))[ids(first, second)]
    assert row["verified"]
    assert (row["frames_agree"], row["frames_compared"]) == (5, 5)
    assert row["cosine"] == pytest.approx(0.8, abs=0.01)


def test_one_frame_in_common_is_a_candidate_and_no_copy() -> None:
    frames, others = directions(5, 1), directions(5, 2)
    others[3] = frames[3]
    row = matched(first := film("a", [frames]), second := film("b", [others]))[ids(first, second)]
    assert row["cosine"] == pytest.approx(1.0, abs=1e-3)
    assert not row["verified"]


def test_the_same_frames_in_another_order_are_no_copy() -> None:
    frames = directions(6, 1)
    row = matched(first := film("a", [frames]), second := film("b", [frames[::-1]]))[ids(first, second)]
    assert not row["verified"]


@pytest.mark.parametrize("trim", [0, 1, 2])
def test_a_trimmed_copy_is_found_at_its_offset_until_little_is_shared(trim: int) -> None:
    frames = directions(10, 1)
    first, second = film("a", [frames[:5]]), film("b", [frames[trim : trim + 5]])
    row = matched(first, second)[ids(first, second)]
    assert row["verified"]
    assert row["frames_compared"] == 5 - trim
    late = film("b", [frames[4:9]])
    assert not matched(first, late)[ids(first, late)]["verified"]


def test_frames_taken_at_slightly_other_times_still_line_up() -> None:
    frames = directions(5, 1)
    first, second = film("a", [frames]), film("b", [noisy(frames, 0.85)], shift_us=300_000)
    assert matched(first, second)[ids(first, second)]["verified"]


def test_clips_of_one_source_are_never_copies_unless_they_overlap() -> None:
    frames = directions(5, 1)
    clips, descriptors = film("a", [frames, frames])
    assert matched((clips, descriptors)) == {}
    clips[1]["start_us"], clips[1]["end_us"] = 2_000_000, 7_000_000
    assert matched((clips, descriptors))[ids((clips, []))]["verified"]


def test_of_two_siblings_the_true_partner_is_the_copy() -> None:
    """One take in two windows that look alike (cosine 0.8), and a copy of it: each window has its partner, and only that one."""
    scene = directions(1, 7)[0]
    windows = [noisy(np.tile(scene, (5, 1)), 0.9, seed) for seed in (100, 200)]
    original = film("a", windows)
    copy = film("b", [noisy(window, 0.95, 300) for window in windows])
    found = matched(original, copy)
    partners = {frozenset((a["clip_id"], b["clip_id"])) for a, b in zip(original[0], copy[0], strict=True)}
    assert {pair for pair, row in found.items() if row["verified"]} == partners
    assert len(found) == 4, "the siblings are candidates"
    assert sum(row["verified"] for row in matched(original, copy, sibling_margin=0.99).values()) == 4


def test_a_clip_that_a_source_shows_twice_is_a_copy_of_both() -> None:
    frames = directions(5, 1)
    once, twice = film("a", [frames]), film("b", [noisy(frames, 0.95, 1), directions(5, 3), noisy(frames, 0.95, 50)])
    verified = [pair for pair, row in matched(once, twice).items() if row["verified"]]
    assert len(verified) == 2


@pytest.mark.parametrize(("cosine", "expected"), [(0.7, False), (0.85, True)])
def test_photographs_have_a_stricter_limit_of_their_own(cosine: float, expected: bool) -> None:
    frame = directions(1, 1)
    first, second = film("a", [frame], kind="image"), film("b", [noisy(frame, cosine)], kind="image")
    assert matched(first, second)[ids(first, second)]["verified"] is expected


def test_a_photograph_is_no_copy_of_a_film() -> None:
    frames = directions(5, 1)
    assert matched(film("a", [frames]), film("b", [frames[2:3]], kind="image")) == {}


def test_clips_with_unlike_numbers_of_frames() -> None:
    frames = directions(5, 1)
    short, long = film("a", [frames[1:3]]), film("b", [noisy(frames, 0.9)])
    row = matched(short, long)[ids(short, long)]
    assert row["verified"]
    assert row["frames_compared"] == 2


def test_nothing_to_match() -> None:
    assert matched(film("a", [directions(5, 1)])) == {}
    assert match_clips(DESCRIPTORS.empty_table(), CLIPS.empty_table(), MatchSettings()).num_rows == 0


def test_descriptors_of_two_models_or_two_runs_are_refused() -> None:
    first, second = film("a", [directions(5, 1)]), film("b", [directions(5, 1)], model="sscd_distilled")
    with pytest.raises(DataError, match="several models"):
        matched(first, second)
    with pytest.raises(DataError, match="not among the clips"):
        matched(first, ([], film("b", [directions(5, 1)])[1]))


@given(st.permutations(range(4)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    frames = directions(5, 1)
    films = [film(name, [noisy(frames, 0.9, seed)]) for seed, name in enumerate("abcd")]
    assert matched(*[films[place] for place in order]) == matched(*films)


@pytest.fixture(scope="module")
def analyzed(
    analyze_models: AnalyzeModels, source_request: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """The committed-looking folder of an analysed source."""
    done: dict[Path, Path] = {}

    def analyse(path: Path, kind: str = "video") -> Path:
        if path not in done:
            folder = tmp_path_factory.mktemp("unit")
            analyze_source(source_request(path, kind), AnalyzeSettings(), analyze_models, folder)
            done[path] = folder
        return done[path]

    return analyse


def real_pairs(folders: Sequence[Path]) -> tuple[list[Row], dict[str, Row]]:
    clips = pa.concat_tables([read_table(folder / "clips.parquet", CLIPS) for folder in folders])
    descriptors = pa.concat_tables([read_table(folder / "descriptors.parquet", DESCRIPTORS) for folder in folders])
    return match_clips(descriptors, clips, MatchSettings()).to_pylist(), {
        row["clip_id"]: row for row in clips.to_pylist()
    }


@pytest.mark.timeout(300)
def test_planted_copies_of_real_films_are_found_and_nothing_else(
    analyzed: Callable[..., Path],
    media: Callable[[str], Path],
    media_cases: ModuleType,
    cases: Callable[[str, Callable[[Path], Path]], Path],
) -> None:
    """A cropped, rescaled, re-encoded copy and a letterboxed one of a film, among other films and photographs."""
    bunny = media("bigbuckbunny")
    copies = [
        cases("bunny_copy.mp4", lambda target: media_cases.recoded_copy(bunny, target)),
        cases("bunny_bars.mp4", lambda target: media_cases.letterboxed(bunny, target)),
    ]
    folders = [analyzed(path) for path in (bunny, *copies, media("carphone"), media("bikes"))]
    folders += [analyzed(media(name), "image") for name in ("china", "chelsea", "astronaut")]
    pairs, clips = real_pairs(folders)
    bunny_hashes = {read_table(folder / "clips.parquet", CLIPS)["content_hash"][0].as_py() for folder in folders[:3]}
    verified = [(clips[row["clip_a"]], clips[row["clip_b"]]) for row in pairs if row["verified"]]
    assert all({a["content_hash"], b["content_hash"]} <= bunny_hashes for a, b in verified)
    film_id = read_table(folders[0] / "clips.parquet", CLIPS)["content_hash"][0].as_py()
    for folder in folders[1:3]:
        copied = set(read_table(folder / "clips.parquet", CLIPS)["clip_id"].to_pylist())
        partners = {
            row["clip_id"] for a, b in verified for row in (a, b) if film_id in (a["content_hash"], b["content_hash"])
        }
        assert copied <= partners, "every clip of the copy is tied to the film"


def test_a_cropped_and_shrunk_photograph_is_a_copy_and_others_are_not(
    analyzed: Callable[..., Path], media: Callable[[str], Path], tmp_path: Path
) -> None:
    from PIL import Image

    copy = tmp_path / "copy.jpg"
    with Image.open(media("chelsea")) as image:
        cut = image.convert("RGB").crop((20, 14, image.width - 20, image.height - 14))
        cut.resize((cut.width // 2, cut.height // 2)).save(copy, quality=60)
    folders = [analyzed(path, "image") for path in (media("chelsea"), copy, media("coffee"), media("rocket"))]
    pairs, clips = real_pairs(folders)
    assert len(pairs) == 1
    assert pairs[0]["verified"]
    assert {clips[pairs[0][side]]["uri"].rsplit("/", 1)[-1] for side in ("clip_a", "clip_b")} == {
        "chelsea.png",
        "copy.jpg",
    }


def windows(name: str, frames: NDArray[np.float64], lengths: Sequence[int], *, first: int = 0) -> Film:
    """A source with a frame a second, cut into clips of these seconds, from its second `first` on."""
    rows, descriptors, start = [], [], first
    for seconds in lengths:
        span = {"start_us": start * 1_000_000, "end_us": (start + seconds) * 1_000_000}
        identity = clip_id(name, span["start_us"], span["end_us"])
        rows.append({"clip_id": identity, "content_hash": name, "kind": "video", **span})
        for second in range(seconds):
            vector = frames[start + second].astype(np.float16)
            descriptors.append(
                {"clip_id": identity, "time_us": second * 1_000_000, "descriptor": vector, "model": "sscd"}
            )
        start += seconds
    return rows, descriptors


def test_a_trimmed_copy_that_is_cut_elsewhere_is_found_by_the_sources() -> None:
    """Clips of two seconds, and a copy a second later whose clips are cut the other way: two clips alone share one frame, which proves nothing."""
    frames = directions(17, 1)
    original = windows("a", frames, [2] * 8)
    copy = windows("b", noisy(frames[1:], 0.9), [2] * 8)
    found = matched(original, copy)
    assert found
    assert all(row["verified"] for row in found.values())
    partners = {clip["clip_id"] for pair in found for clip in (*original[0], *copy[0]) if clip["clip_id"] in pair}
    assert ids(copy) <= partners, "every clip of the copy has its partner"
    starts = {clip["clip_id"]: clip["start_us"] for clip in (*original[0], *copy[0])}
    for row in found.values():
        first, second = row["clip_a"], row["clip_b"]
        on_the_sources = row["offset_us"] + starts[second] - starts[first]
        assert abs(on_the_sources) == pytest.approx(1_000_000, abs=350_000)
    alone = matched((original[0][1:2], original[1][2:4]), (copy[0][1:2], copy[1][2:4]))
    assert [row["verified"] for row in alone.values()] == [False], "by the two clips alone it can't be told"


def test_two_films_that_share_one_stock_clip_match_there_alone() -> None:
    one, other = directions(20, 1), directions(20, 2)
    other[10:15] = noisy(one[5:10], 0.9)
    first, second = windows("a", one, [5] * 4), windows("b", other, [5] * 4)
    found = matched(first, second)
    stock = frozenset((first[0][1]["clip_id"], second[0][2]["clip_id"]))
    assert {pair for pair, row in found.items() if row["verified"]} == {stock}


@pytest.mark.parametrize(("cosine", "expected"), [(0.8, False), (0.95, True)])
def test_the_rule_of_the_paper_looks_at_one_frame_alone(cosine: float, expected: bool) -> None:
    """The frame nearest to the 10th, 0.375 s at 24 fps: the first of these; the others are of another film."""
    frames, others = directions(5, 1), directions(5, 2)
    others[:1] = noisy(frames[:1], cosine)
    first, second = film("a", [frames]), film("b", [others])
    row = matched(first, second, method="paper")[ids(first, second)]
    assert row["verified"] is expected
    assert row["frames_compared"] == 1
    assert row["cosine"] == pytest.approx(cosine, abs=0.01)
    assert not matched(first, second)[ids(first, second)]["verified"], "several frames disagree"


def test_the_rule_of_the_paper_misses_a_trimmed_copy() -> None:
    frames = directions(10, 1)
    first, second = film("a", [frames[:5]]), film("b", [frames[1:6]])
    assert matched(first, second, method="paper") == {}
    assert matched(first, second)[ids(first, second)]["verified"]
