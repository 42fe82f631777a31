"""Matching in blocks, against earlier runs and after additions: the same pairs as one search over everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from curation.commits import DONE, CommitStore
from curation.config import CurateConfig
from curation.earlier_runs import CLIP_FACTS, earlier_clips, published_clips, table_path
from curation.engine import Engine
from curation.match import MatchSettings, judge_hits, match_clips
from curation.match_blocks import BLOCKS, Block, block_pairs, collect_hits, search_blocks, settle_blocks
from curation.match_frames import gather_frames
from curation.match_phase import match_phase
from curation.session import Session
from schemas.errors import UsageError
from schemas.ids import clip_id
from schemas.tables import CLIPS, DECISIONS, DESCRIPTORS, PAIRS, read_table, write_table

SETTINGS = MatchSettings()


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def tables(sources: list[str], *, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """CLIP_FACTS and DESCRIPTORS: four clips of five frames per source; a source `x2` is a noisy copy of `x`."""
    facts, rows = [], []
    for name in sources:
        rng = np.random.default_rng([seed, ord(name[0])])
        frames = unit(rng.normal(size=(4, 5, 512)))
        if len(name) > 1:
            frames = unit(frames + 0.6 * unit(np.random.default_rng(ord(name[1])).normal(size=frames.shape)))
        for place, vectors in enumerate(frames):
            start, end = place * 5_000_000, (place + 1) * 5_000_000
            identity = clip_id(name, start, end)
            facts.append({"clip_id": identity, "content_hash": name, "kind": "video", "start_us": start, "end_us": end})
            rows += [(identity, second * 1_000_000, vector) for second, vector in enumerate(vectors)]
    columns: dict[str, Any] = {
        "clip_id": [row[0] for row in rows],
        "time_us": [row[1] for row in rows],
        "descriptor": pa.array([row[2].astype(np.float16) for row in rows]).cast(DESCRIPTORS.field("descriptor").type),
        "model": ["sscd"] * len(rows),
    }
    schema = pa.schema([CLIPS.field(name) for name in CLIP_FACTS])
    descriptors = pa.table(columns).cast(DESCRIPTORS).replace_schema_metadata()
    return pa.Table.from_pylist(facts, schema=schema), descriptors


def settle(
    store: CommitStore, facts: pa.Table, descriptors: pa.Table, frames: int, earlier: bool = False
) -> list[Block]:
    return settle_blocks(store, facts, descriptors, earlier=earlier, frames_per_block=frames)


def searched(store: CommitStore, blocks: list[Block]) -> tuple[list[tuple[str, Block, Block]], int]:
    """All units, after doing those that are not committed; how many those were."""
    units, done = list(block_pairs(blocks, "test")), 0
    for key, one, other in units:
        if not store.is_committed("match", key):
            folders = [store.folder(BLOCKS, block.key) for block in ([one] if one is other else [one, other])]
            with store.unit("match", key, {"status": DONE, "reason": None, "answer": None}) as folder:
                search_blocks(folders, SETTINGS, folder)
            done += 1
    return units, done


@pytest.mark.parametrize("frames", [7, 23, 1000])
def test_blocks_of_any_size_give_the_pairs_of_one_search(tmp_path: Path, frames: int) -> None:
    facts, descriptors = tables(["a", "a2", "b", "c", "c3"])
    store = CommitStore(tmp_path)
    blocks = settle(store, facts, descriptors, frames)
    assert len(blocks) == {7: 20, 23: 5, 1000: 1}[frames]
    data = gather_frames(descriptors, facts)
    pairs = judge_hits(data, collect_hits(data, store, searched(store, blocks)[0], SETTINGS), SETTINGS)
    expected = match_clips(descriptors, facts, SETTINGS)
    assert pairs.equals(expected)
    assert expected.filter(expected["verified"]).num_rows == 8


def test_added_sources_are_searched_and_nothing_twice(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    blocks = settle(store, *tables(["a", "b", "c"]), 30)
    assert searched(store, blocks)[1] == len(blocks) * (len(blocks) + 1) // 2
    facts, descriptors = tables(["a", "b", "c", "a2"])
    more = settle(store, facts, descriptors, 30)
    assert {block.key for block in blocks} < {block.key for block in more}
    new = len(more) - len(blocks)
    units, done = searched(store, more)
    assert done == new * len(blocks) + new * (new + 1) // 2, "new against all, old against old not again"
    data = gather_frames(descriptors, facts)
    assert judge_hits(data, collect_hits(data, store, units, SETTINGS), SETTINGS).equals(
        match_clips(descriptors, facts, SETTINGS)
    )


def test_a_block_whose_clips_changed_is_made_again(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    before = settle(store, *tables(["a", "b"]), 1000)
    after = settle(store, *tables(["a", "b"], seed=1), 1000)
    assert [block.key for block in before] != [block.key for block in after]


def test_blocks_of_earlier_runs_are_not_searched_against_each_other(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    old = settle(store, *tables(["a", "a2"]), 20, earlier=True)
    new = settle(store, *tables(["a3"]), 1000)
    units = list(block_pairs([*old, *new], "test"))
    assert len(old) == 2
    assert len(units) == 3
    assert all(not (one.earlier and other.earlier) for _, one, other in units)


def run_of(folder: Path, facts: pa.Table, descriptors: pa.Table, kept: dict[str, list[str]]) -> None:
    """The tables of a finished run; columns that match does not read are filled with anything that the schema takes."""
    rows = []
    for row in facts.to_pylist():
        filled = {field.name: _anything(field) for field in CLIPS}
        rows.append({**filled, **row})
    write_table(table_path(folder, "clips"), pa.Table.from_pylist(rows, schema=CLIPS), CLIPS)
    write_table(table_path(folder, "descriptors"), descriptors.cast(DESCRIPTORS), DESCRIPTORS)
    decisions = [
        {"clip_id": clip, "admission": level, "decision": "keep", "measure": None, "value": None, "limit": None, "duplicate_of": None}
        for clip, levels in kept.items()
        for level in levels
    ]  # fmt: skip
    write_table(table_path(folder, "decisions"), pa.Table.from_pylist(decisions, schema=DECISIONS), DECISIONS)


def _anything(field: pa.Field) -> Any:
    if field.nullable:
        return None
    if pa.types.is_struct(field.type):
        return dict.fromkeys(("top", "left", "bottom", "right"), 0)
    if pa.types.is_list(field.type):
        return []
    return "" if pa.types.is_string(field.type) else 0


def test_only_what_an_earlier_run_kept_takes_part(tmp_path: Path) -> None:
    facts, descriptors = tables(["a", "b"])
    kept = facts["clip_id"].to_pylist()[:3]
    run_of(tmp_path / "old", facts, descriptors, {clip: ["144p"] for clip in kept})
    present, _ = tables(["a"])
    found = earlier_clips([str(tmp_path / "old")], present.slice(0, 1))
    assert sorted(found.facts["clip_id"].to_pylist()) == sorted(kept[1:])
    assert set(found.descriptors["clip_id"].to_pylist()) == set(kept[1:])
    assert published_clips([str(tmp_path / "old")]).num_rows == 3
    with pytest.raises(UsageError, match=r"match\.against"):
        published_clips([str(tmp_path / "nothing")])


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # of Ray and NeMo Curator
def test_the_phase_in_blocks_on_ray_equals_the_phase_in_one_process(tmp_path: Path) -> None:
    """Real engine and workers; an earlier run takes part, and is not searched against itself."""
    old_facts, old_descriptors = tables(["a", "a4", "d"])
    run_of(tmp_path / "old", old_facts, old_descriptors, {clip: ["144p"] for clip in old_facts["clip_id"].to_pylist()})
    facts, descriptors = tables(["a2", "b", "c", "c3"])
    results = []
    for name, frames in (("whole", 1000), ("blocks", 45)):
        output = tmp_path / name
        run_of(output, facts, descriptors, {})
        config = CurateConfig.model_validate(
            {
                "output": str(output),
                "sources": [{"folder": str(tmp_path)}],
                "match": {"frames_per_block": frames, "against": [str(tmp_path / "old")]},
            }
        )
        with Engine(config) as engine:
            session = Session(config, engine)
            match_phase(session)
            units = session.commits.keys("match")
            match_phase(session)
            assert session.commits.keys("match") == units, "a second run finds everything committed"
        results.append(read_table(table_path(output, "pairs"), PAIRS))
    assert results[0].equals(results[1])
    verified = results[0].filter(results[0]["verified"])
    assert verified.num_rows == 4 * 2 + 4, "a2 with a and a4, and c with c3; a with a4 is the earlier run's business"
    old = pa.array(old_facts["clip_id"].to_pylist())
    both_old = pc.and_(pc.is_in(results[0]["clip_a"], old), pc.is_in(results[0]["clip_b"], old))
    assert not pc.any(both_old).as_py()


def test_the_log_says_how_many_frames_are_like_too_many_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve films that begin with one title: each title is like eleven others, and keeps eight of them."""
    facts, descriptors = tables([chr(ord("a") + place) for place in range(12)])
    vectors = np.stack(descriptors["descriptor"].to_numpy(zero_copy_only=False))
    vectors[:: 4 * 5] = vectors[0]
    column = pa.array(list(vectors)).cast(DESCRIPTORS.field("descriptor").type)
    place = DESCRIPTORS.names.index("descriptor")
    titled = descriptors.set_column(place, DESCRIPTORS.field("descriptor"), column)
    for name, most, words in (("few", 8, "12 frames are like 8 others or more"), ("many", 256, "")):
        output = tmp_path / name
        run_of(output, facts, titled, {})
        config = CurateConfig.model_validate(
            {
                "output": str(output),
                "sources": [{"folder": str(tmp_path)}],
                "match": {"max_hits_per_frame": most},
            }
        )
        with Engine(config) as engine:
            match_phase(Session(config, engine))
        said = capsys.readouterr().err
        assert words in said
        assert ("max_hits_per_frame" in said) == bool(words)
