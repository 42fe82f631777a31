"""A long film through the engine: its pieces on workers of their own, and the tables of one worker alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.analysis.models import load_models
from curation.analysis.worker import analyze_source
from curation.config import CurateConfig
from curation.engine import Engine
from curation.inventory import Inventory
from curation.phases import analyze_phase
from curation.session import Session
from schemas.config import build_config
from schemas.tables import CLIPS, SOURCES, read_table

OFF = {"nsfw": None, "text_detector": None, "descriptor": None, "piece_minutes": 0.5}


# The driver's side of Ray is in this process: it warns of its own deprecated settings and leaves sockets to the collector.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_pieces_on_workers_give_the_tables_of_one_worker(cases, media, media_cases, source_request, tmp_path) -> None:
    def make(target: Path) -> Path:
        return media_cases.long_film([media("bigbuckbunny"), media("carphone"), media("bikes")], media("china"), target)

    film = cases("long_film.mp4", make)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "long.mp4").write_bytes(film.read_bytes())
    (tmp_path / "films" / "short.mp4").write_bytes(
        media_cases.trimmed(media("bikes"), tmp_path / "short.mp4", seconds=3, size=(64, 112)).read_bytes()
    )
    (tmp_path / "films" / "damaged.mp4").write_bytes(b"no film at all" * 99)
    config = build_config(
        CurateConfig,
        {
            "output": str(tmp_path / "out"),
            "sources": [str(tmp_path / "films")],
            "analyze": OFF,
            "ray": {"split_from_mb": 0, "num_cpus": 2},
        },
        source="t",
    )
    with Engine(config) as engine:
        session = Session(config, engine)
        analyze_phase(session)
        inventory: Inventory = session.inventory
        clips, sources = session.table("clips"), session.table("sources").to_pylist()
        for group in ("plans", "pieces"):
            kept = session.commits.keys(group)
            assert len(kept) == (0 if group == "pieces" else 2), "what was merged is removed"
        assert len(session.commits.keys("analyze")) == 3
    assert [(Path(row["uri"]).name, row["status"]) for row in sources] == [
        ("damaged.mp4", "failed"), ("long.mp4", "ok"), ("short.mp4", "ok"),
    ]  # fmt: skip
    request = next(request for request in inventory.requests if request.uri.endswith("/long.mp4"))
    (tmp_path / "alone").mkdir()
    analyze_source(request, config.analyze, load_models(config.analyze), tmp_path / "alone")
    alone = read_table(tmp_path / "alone" / "clips.parquet", CLIPS).sort_by("clip_id")
    assert alone.equals(clips.filter([uri == request.uri for uri in clips["uri"].to_pylist()]))
    row = read_table(tmp_path / "alone" / "sources.parquet", SOURCES).to_pylist()[0]
    assert row == next(found for found in sources if found["uri"] == request.uri)
