"""The pipelines as plain lists: which stages each phase runs on the workers, and the order of the phases.

A stage of NeMo Curator, or one of your own, goes into these lists like ours do. Price: heavy imports inside the functions, because the lists are
needed on machines that only plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.session import Session

__all__ = ["PHASES", "analyze_stages", "caption_stages", "encode_stages", "match_stages", "pack_stages"]

PHASES = ("analyze", "match", "decide", "caption", "encode", "pack", "report")
"""In order; with captions among them, `decide` is done after those, with their labels."""


def analyze_stages(session: Session, workers: dict[str, int], *, group: str = "analyze") -> Sequence[Any]:
    """source, or piece of a long one -> sources row, clips, descriptors, thumbnails. `group`: of the commits."""
    from curation.stages import FolderStage

    settings, store = session.config.analyze, session.commits
    return [
        FolderStage(
            session.stage_spec("analyze", workers=workers["analyze"], store=store, group=group, settings=settings)
        ),
    ]


def match_stages(session: Session, workers: dict[str, int]) -> Sequence[Any]:
    """two blocks of frames -> pairs of frames that look alike."""
    from curation.stages import FolderStage

    settings, store = session.config.match, session.commits
    return [
        FolderStage(
            session.stage_spec("match", workers=workers["match"], store=store, group="match", settings=settings)
        ),
    ]


def caption_stages(session: Session, workers: dict[str, int]) -> Sequence[Any]:
    """clips of some sources -> labels."""
    from curation.caption_stage import CaptionStage

    settings, store = session.config.caption, session.commits
    return [
        CaptionStage(
            session.stage_spec("caption", workers=workers["caption"], store=store, group="caption", settings=settings)
        ),
    ]


def encode_stages(session: Session, workers: dict[str, int]) -> Sequence[Any]:
    """clips of a source -> latents of every set, then text states of their captions."""
    from curation.stages import FolderStage, LatentStage

    settings, store = session.config.encode, session.cache
    return [
        LatentStage(
            session.stage_spec("latents", workers=workers["latents"], store=store, group="latents", settings=settings)
        ),
        FolderStage(session.stage_spec("text", workers=workers["text"], store=store, group="text", settings=settings)),
    ]


def pack_stages(session: Session, workers: dict[str, int]) -> Sequence[Any]:
    """planned shard -> tar."""
    from curation.stages import FolderStage

    settings, store = session.config.pack, session.commits
    return [
        FolderStage(session.stage_spec("pack", workers=workers["pack"], store=store, group="pack", settings=settings)),
    ]
