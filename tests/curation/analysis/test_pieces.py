"""Films in pieces: nothing is there twice, nothing is lost, and the tables are those of the whole film."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.analysis.models import load_models
from curation.analysis.pieces import merge_pieces, num_pieces, own_shots, piece_range
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span
from curation.analysis.worker import analyze_piece, analyze_source, count_pieces
from schemas.tables import CLIPS, SOURCES, THUMBNAILS, read_table

NO_MODELS: dict[str, Any] = {"nsfw": None, "text_detector": None, "descriptor": None}
HALF_MINUTES = AnalyzeSettings(piece_minutes=0.5, **NO_MODELS)
TAKE = (47_900_000, 123_900_000)
"""Microseconds of the one long take of `media_cases.long_film`."""


@pytest.fixture(scope="module")
def film(cases, media, media_cases) -> Path:
    def make(target: Path) -> Path:
        sources = [media("bigbuckbunny"), media("carphone"), media("bikes")]
        return media_cases.long_film(sources, media("china"), target)

    return cases("long_film.mp4", make)


@pytest.fixture(scope="module")
def in_pieces(film, source_request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    analyze_source(source_request(film), HALF_MINUTES, load_models(HALF_MINUTES), folder)
    return folder


@pytest.mark.parametrize(("seconds", "count"), [(0, 1), (899, 1), (900, 2), (1499, 2), (1500, 3), (10_800, 18)])
def test_number_of_pieces(seconds: int, count: int) -> None:
    assert num_pieces(Fraction(seconds), AnalyzeSettings()) == count
    assert num_pieces(Fraction(seconds), AnalyzeSettings(piece_minutes=None)) == 1


def test_a_film_of_unknown_length_is_one_piece() -> None:
    assert num_pieces(None, AnalyzeSettings()) == 1
    assert piece_range(0, 1, AnalyzeSettings()) == (0, None)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40), st.integers(1, 4))
def test_each_tick_of_a_shot_is_in_one_piece(lengths: list[int], count: int) -> None:
    """Pieces that see the same shots share them out without an overlap and without a hole, and none crosses a cut."""
    edges = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    shots = [Span(first, end) for first, end in itertools.pairwise(edges)]
    shared = [
        shot
        for index in range(count)
        for shot in own_shots(shots, piece_range(index, count, HALF_MINUTES), HALF_MINUTES)
    ]
    assert [shot.first for shot in shared] == [0, *(shot.end for shot in shared[:-1])]
    assert shared[-1].end == edges[-1]
    assert set(edges) <= {0, *(shot.end for shot in shared)}
    boundaries = {piece_range(index, count, HALF_MINUTES).first for index in range(count)}
    assert {shot.end for shot in shared} - set(edges) <= boundaries


@pytest.mark.timeout(300)
def test_pieces_give_the_clips_of_the_whole_film(film, in_pieces, source_request, tmp_path) -> None:
    assert count_pieces(source_request(film), HALF_MINUTES) == 5
    whole = AnalyzeSettings(piece_minutes=None, **NO_MODELS)
    analyze_source(source_request(film), whole, load_models(whole), tmp_path)
    assert sorted(path.name for path in in_pieces.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
    one, many = (read_table(folder / "sources.parquet", SOURCES) for folder in (tmp_path, in_pieces))
    assert one.equals(many) and one["frames_decoded"].to_pylist() == [1800]
    expected, found = (read_table(folder / "clips.parquet", CLIPS).to_pylist() for folder in (tmp_path, in_pieces))
    outside = [[row for row in rows if not TAKE[0] <= row["start_us"] < TAKE[1]] for rows in (expected, found)]
    assert len(outside[0]) >= 15
    assert [row | {"shot": 0} for row in outside[0]] == [row | {"shot": 0} for row in outside[1]]
    inside = [row for row in found if TAKE[0] <= row["start_us"] < TAKE[1]]
    assert len(inside) >= 13
    assert {60_000_000, 90_000_000} <= {row["start_us"] for row in inside}
    for before, after in itertools.pairwise(found):
        assert before["end_us"] <= after["start_us"] and before["shot"] <= after["shot"]
    thumbnails = read_table(in_pieces / "thumbnails.parquet", THUMBNAILS)
    assert thumbnails["clip_id"].to_pylist() == [row["clip_id"] for row in found]


@pytest.mark.timeout(300)
def test_a_piece_that_fails_costs_its_own_part(film, in_pieces, source_request, tmp_path) -> None:
    """The workers died in piece 1: what the other pieces gave is kept, and the source says what is missing."""
    request, models = source_request(film), load_models(HALF_MINUTES)
    pieces: list[Path | str] = ["worker killed by SIGSEGV"] * 5
    for index in (0, 4):
        folder = tmp_path / str(index)
        folder.mkdir()
        analyze_piece(request, HALF_MINUTES, models, folder, index=index, count=5)
        pieces[index] = folder
    merge_pieces(request, pieces, HALF_MINUTES, tmp_path)
    source = read_table(tmp_path / "sources.parquet", SOURCES).to_pylist()[0]
    assert source["status"] == "truncated"
    assert source["reason"] == "the piece from 30 s on: worker killed by SIGSEGV, and 2 more"
    clips = read_table(tmp_path / "clips.parquet", CLIPS)["clip_id"].to_pylist()
    every = read_table(in_pieces / "clips.parquet", CLIPS).to_pylist()
    assert clips == [row["clip_id"] for row in every if row["start_us"] < 30e6 or row["start_us"] >= TAKE[1]]
    assert clips


def test_merge_of_pieces_that_all_failed_is_one_row(film, source_request, tmp_path) -> None:
    merge_pieces(source_request(film), ["timed out after 5 s"] * 3, HALF_MINUTES, tmp_path)
    source = read_table(tmp_path / "sources.parquet", SOURCES).to_pylist()[0]
    assert (source["status"], source["reason"]) == ("failed", "timed out after 5 s")
    assert read_table(tmp_path / "clips.parquet", CLIPS).num_rows == 0


_IN_A_CHILD = """
import json, sys
from pathlib import Path
from curation.analysis.models import load_models
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.worker import analyze_source
from curation.requests import SourceRequest
settings = AnalyzeSettings(nsfw=None, text_detector=None, descriptor=None)
models = load_models(settings)
peaks = []
for line in sys.argv[2:]:
    request = SourceRequest.from_json(json.loads(line))
    analyze_source(request, settings, models, Path(sys.argv[1]))
    # of this program's memory: ru_maxrss begins with what the process that started it held
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peaks.append(int(peak) // 1024)
print(json.dumps(peaks))
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_for_a_film_of_three_hours_is_that_of_a_piece(source_request, media_cases, tmp_path) -> None:
    """MiB at the peak after 20 minutes, and after three hours, of the same process. What grows a little has not been traced."""
    films = [media_cases.plain_film(tmp_path / f"{hours}.mp4", hours=hours) for hours in (1 / 3, 3)]
    requests = [json.dumps(source_request(film).to_json()) for film in films]
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", _IN_A_CHILD, str(tmp_path / "out"), *requests],
        capture_output=True,
        text=True,
        check=True,
    )
    short, long = json.loads(done.stdout.splitlines()[-1])
    source = read_table(tmp_path / "out" / "sources.parquet", SOURCES).to_pylist()[0]
    assert source["duration_us"] == 10_800_000_000 and source["frames_decoded"] == 10_800
    assert long < min(450, short + 120), f"{short} MiB, then {long} MiB"
