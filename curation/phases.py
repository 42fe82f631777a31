"""The phases that decide nothing themselves: each finds its units, leaves out what is committed, runs the rest, and writes its tables.

Every phase reads what the one before it wrote to disk, so each can be run alone. A unit's key is a hash of its inputs and of its own phase's
settings, models and code, so changing a threshold runs `decide` and touches no video. Price: the driver computes every key, every time.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from curation import pipeline
from curation.caption_units import caption_batches, say_uncaptioned
from curation.collect import analysis_tables, label_table
from curation.commits import QUARANTINED
from curation.decide import decide
from curation.encode_units import encode_units
from curation.long_films import analyze_long_films
from curation.session import Session
from curation.survivors import caption_units

__all__ = ["analyze_phase", "caption_phase", "decide_phase", "encode_phase"]

WEIGHT_OF_A_UNIT = 100_000
"""What a source costs beside its bytes, in bytes; for the estimate of the end only."""


def analyze_phase(session: Session) -> None:
    """Sources to sources, clips, descriptors and thumbnails."""
    inventory, store = session.inventory, session.commits
    with session.watch.phase("analyze") as counts:
        wanted = [
            request
            for request in inventory.by_content().values()
            if not store.is_committed("analyze", inventory.key_of[request.uri])
        ]
        counts["done"], counts["skipped"] = len(wanted), len(inventory.by_content()) - len(wanted)
        analyze_long_films(session, wanted)
        units = []
        for request in wanted:
            key = inventory.key_of[request.uri]
            if not store.is_committed("analyze", key):
                arguments = {"request": request.to_json()}
                part = {"unit": key, "arguments": arguments, "timeout_s": session.timeout_s(request.size_bytes)}
                part["weight"] = WEIGHT_OF_A_UNIT + request.size_bytes
                units.append({"label": request.uri, "parts": {"analyze": part}, "results": {}})
        session.work(
            "analyze",
            units,
            lambda workers: pipeline.analyze_stages(session, workers),
            ["analyze"],
        )
        tables = analysis_tables(
            store, "analyze", inventory.requests, inventory.unreadable, inventory.key_of, inventory.first_uri
        )
        for name, table in tables.items():
            session.write(name, table)


def decide_phase(session: Session, *, with_labels: bool) -> None:
    """Scores, pairs and (when they exist) labels to decisions: seconds of arithmetic, done anew each time."""
    with session.watch.phase("decide") as counts:
        clips = session.table("clips")
        labels = _labels_of(session, clips) if with_labels else None
        decisions = decide(clips, session.table("pairs"), labels, session.config.decide, session.published)
        session.write("decisions", decisions)
        counts["done"] = 1


def _labels_of(session: Session, clips: pa.Table) -> pa.Table | None:
    """Labels on disk, of clips that still exist; None before the first caption phase."""
    if not session.has_table("labels"):
        return None
    labels = session.table("labels")
    return labels.filter(pc.is_in(labels["clip_id"], clips["clip_id"].combine_chunks()))


def caption_phase(session: Session) -> None:
    """Survivors to labels."""
    store = session.commits
    with session.watch.phase("caption") as counts:
        wanted = caption_units(session)
        units = caption_batches(session, wanted)
        counts["done"] = sum(len(unit["parts"]["caption"]["arguments"]["members"]) for unit in units)
        counts["skipped"] = len(wanted) - counts["done"]
        session.work(
            "caption",
            units,
            lambda workers: pipeline.caption_stages(session, workers),
            ["caption"],
        )
        say_uncaptioned(store, wanted)
        keys = [key for key, _ in wanted.values() if store.record("caption", key)["status"] != QUARANTINED]
        store.bring("caption", keys)
        session.write("labels", label_table(store.folder("caption", key) for key in keys))


def encode_phase(session: Session) -> None:
    """Kept clips to latents per set, and text states of their captions, into the cache."""
    with session.watch.phase("encode") as counts:
        wanted = encode_units(session)
        units = [unit for unit in wanted if unit["parts"]]
        counts["done"], counts["skipped"] = len(units), len(wanted) - len(units)

        session.work("encode", units, lambda workers: pipeline.encode_stages(session, workers), ["latents", "text"])
