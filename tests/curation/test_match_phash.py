"""Copies without a copy-detection network: the analysis and the match with the perceptual hash, on real films, with an empty model cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from curation.analysis.models import analysis_fingerprint, load_models, model_names
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.worker import analyze_source
from curation.config import CurateConfig
from curation.match import MatchSettings, match_clips
from curation.preflight import needed_models
from schemas.tables import CLIPS, DESCRIPTORS, read_table

SETTINGS = AnalyzeSettings(nsfw=None, text_detector=None, descriptor="phash")


def test_planted_copies_are_found_without_weights(
    media: Callable[[str], Path],
    media_cases: ModuleType,
    cases: Callable[[str, Callable[[Path], Path]], Path],
    source_request: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A film, a smaller copy of it encoded again, one that begins later, and two others."""
    film = media("carphone")
    small = cases("small_copy.mp4", lambda target: media_cases.trimmed(film, target, seconds=6, size=(120, 160)))
    late = cases("late_copy.mp4", lambda target: media_cases.trimmed(film, target, start=0.7, seconds=6))
    models = load_models(SETTINGS, cache_dir=tmp_path / "nothing")
    folders = []
    for path in (film, small, late, media("bikes"), media("bigbuckbunny")):
        folders.append(tmp_path / path.stem)
        folders[-1].mkdir()
        analyze_source(source_request(path), SETTINGS, models, folders[-1])
    clips = [read_table(folder / "clips.parquet", CLIPS) for folder in folders]
    descriptors = pa.concat_tables([read_table(folder / "descriptors.parquet", DESCRIPTORS) for folder in folders])
    assert descriptors["model"].unique().to_pylist() == ["phash"]
    pairs = match_clips(descriptors, pa.concat_tables(clips), MatchSettings().for_descriptor("phash")).to_pylist()
    hashes = {row["clip_id"]: row["content_hash"] for table in clips for row in table.to_pylist()}
    verified = [{hashes[row["clip_a"]], hashes[row["clip_b"]]} for row in pairs if row["verified"]]
    own, *copies = [table["content_hash"][0].as_py() for table in clips[:3]]
    for copy in copies:
        assert {own, copy} in verified
    assert all(pair <= {own, *copies} for pair in verified)


def test_no_weights_are_asked_for(tmp_path: Path) -> None:
    config = CurateConfig.model_validate(
        {
            "output": str(tmp_path / "out"),
            "sources": [{"folder": str(tmp_path)}],
            "analyze": SETTINGS.model_dump(mode="json"),
        }
    )
    assert needed_models(config, ["analyze", "match"]) == []
    assert model_names(SETTINGS) == ()
    assert analysis_fingerprint(SETTINGS) != analysis_fingerprint(SETTINGS.model_copy(update={"descriptor": None}))


def test_neighbouring_shots_are_compared_by_the_hash(tmp_path: Path) -> None:
    describe = load_models(SETTINGS, cache_dir=tmp_path).describe_shots
    assert describe is not None
    frame = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    first, second = describe([frame, frame])
    assert float(first @ second) == 1
